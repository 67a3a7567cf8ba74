//! What could make a lease end too soon, or never: ids that are used again, alarms, leadership that is being handed over.

mod support;

use std::time::{Duration, Instant};

use api::etcdserverpb as pb;
use node::Handle;
use support::*;
use types::LeaseId;

async fn grant(handle: &Handle, id: i64, ttl: i64) {
    handle.lease_grant(pb::LeaseGrantRequest { id, ttl }).await.expect("a grant");
}

fn exists(handle: &Handle, id: i64) -> bool {
    handle.reader().lease(LeaseId(id)).is_some()
}

async fn corrupt_alarm(handle: &Handle, action: pb::alarm_request::AlarmAction) {
    let request = pb::AlarmRequest {
        action: action as i32,
        member_id: handle.node_status().member.0,
        alarm: pb::AlarmType::Corrupt as i32,
    };
    handle.alarm(request).await.expect("an alarm");
}

/// While a member is said to be corrupt apply refuses revocations. What ended meanwhile is revoked afterwards, and can be renewed until then.
#[test]
fn leases_that_end_under_an_alarm_are_revoked_when_it_is_over() {
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        for id in 1..=20 {
            grant(&handle, id, 1).await;
        }
        grant(&handle, 99, 1).await;
        corrupt_alarm(&handle, pb::alarm_request::AlarmAction::Activate).await;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert_eq!(handle.lease_keep_alive(99).await.map(|kept| kept.ttl), Ok(1));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!((1..=20).all(|id| exists(&handle, id)), "nothing is revoked under the alarm");
        let applied = handle.node_status().applied.0;
        assert!(applied < 200, "nor proposed again and again: {applied} entries");
        assert_eq!(handle.lease_keep_alive(1).await.map(|kept| kept.ttl), Ok(1), "it is still there");
        corrupt_alarm(&handle, pb::alarm_request::AlarmAction::Deactivate).await;
        wait("all of them to end", || handle.reader().lease_count() == 0).await;
    });
}

/// A client revokes a lease and grants it anew in one breath, and the leader finds the former one to be over while neither is applied: the
/// decision about that one must not reach the new one.
#[test]
fn the_end_of_a_lease_does_not_end_its_successor_of_the_same_id() {
    const ROUNDS: i64 = 6;
    const LEASES: i64 = 100;
    let cluster = Cluster::start(3);
    block_on(async {
        let mut seen = 0;
        for round in 1..=ROUNDS {
            let leader = cluster.leader().await;
            let handle = cluster.handle(leader);
            let ids: Vec<i64> = (1..=LEASES).map(|n| round * 1000 + n).collect();
            for id in &ids {
                grant(&handle, *id, 1).await;
            }
            // Nothing is committed for a while, shorter than an election takes, and their time ends in it.
            tokio::time::sleep(Duration::from_millis(800)).await;
            let mut clients = tokio::task::JoinSet::new();
            cluster.cut_off(leader);
            for id in ids {
                let handle = handle.clone();
                clients.spawn(async move {
                    // Both are on their way at once, in this order.
                    let revoke = handle.lease_revoke(pb::LeaseRevokeRequest { id });
                    let anew = handle.lease_grant(pb::LeaseGrantRequest { id, ttl: 600 });
                    let (_, anew) = tokio::join!(revoke, anew);
                    // Another leader may have come in spite of all.
                    anew.is_ok().then_some(id)
                });
            }
            tokio::time::sleep(ELECTION / 2).await;
            cluster.connect(leader);
            let mut anew = Vec::new();
            while let Some(client) = clients.join_next().await {
                anew.extend(client.expect("no panic"));
            }
            // Whatever was decided before this one is applied by then.
            let handle = cluster.handle(cluster.leader().await);
            grant(&handle, round, 1).await;
            wait("a lease to end", || !exists(&handle, round)).await;
            let lost: Vec<i64> = anew.iter().copied().filter(|id| !exists(&handle, *id)).collect();
            assert!(lost.is_empty(), "leases of 600 s ended at once: {lost:?}");
            seen += anew.len();
        }
        assert!(seen > 0, "no lease was granted anew");
    });
}

/// Whoever is told to campaign is elected at once and not after an election timeout, so a leader that hands over knows nothing for sure.
#[test]
fn keep_alives_are_not_answered_from_memory_while_leadership_is_handed_over() {
    let cluster = Cluster::start(3);
    block_on(async {
        let old = cluster.leader().await;
        let handle = cluster.handle(old);
        grant(&handle, 7, 60).await;
        wait("the first confirmation", || handle.lease_keep_alive_now(7).is_some()).await;
        let target = (old + 1) % 3;
        cluster.cut_off(target);
        let target_id = cluster.member(target).id.0;
        let asked = handle.clone();
        let transfer =
            tokio::spawn(async move { asked.move_leader(pb::MoveLeaderRequest { target_id }).await });
        wait("answers from memory to end", || handle.lease_keep_alive_now(7).is_none()).await;
        assert_eq!(handle.lease_keep_alive(7).await.map(|kept| kept.ttl), Ok(60), "when the attempt is over");
        wait("answers from memory again", || handle.lease_keep_alive_now(7).is_some()).await;
        assert!(transfer.await.expect("no panic").is_err(), "the other one was cut off");
    });
}
