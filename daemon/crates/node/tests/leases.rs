//! Leases of whole members: real threads, logs, stores and sockets; only time is short.

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb};
use node::Handle;
use support::*;
use types::LeaseId;

async fn grant(handle: &Handle, id: i64, ttl: i64) -> pb::LeaseGrantResponse {
    let request = pb::LeaseGrantRequest { id, ttl };
    handle.lease_grant(request).await.expect("a grant")
}

async fn keep_alive(handle: &Handle, id: i64) -> i64 {
    handle.lease_keep_alive(id).await.expect("a keep-alive").ttl
}

async fn time_to_live(handle: &Handle, id: i64) -> pb::LeaseTimeToLiveResponse {
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    handle.lease_time_to_live(request).await.expect("a time to live")
}

async fn put_with_lease(handle: &Handle, key: &str, lease: i64) {
    let request =
        pb::PutRequest { key: key.to_owned().into(), value: "v".into(), lease, ..Default::default() };
    handle.put(request).await.expect("a put");
}

fn metric(handle: &Handle, name: &str) -> u64 {
    let text = handle.metrics_text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.and_then(|value| value.parse::<f64>().ok()).expect("the metric") as u64
}

fn exists(handle: &Handle, id: i64) -> bool {
    handle.reader().lease(LeaseId(id)).is_some()
}

#[test]
fn a_lease_lives_while_it_is_kept_alive_and_takes_its_keys_with_it() {
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        let granted = grant(&handle, 7, 2).await;
        assert_eq!((granted.id, granted.ttl), (7, 2), "the answer says what was granted");
        let chosen = grant(&handle, 0, 60).await;
        assert!(chosen.id > 0);
        assert_eq!(
            handle.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 5 }).await,
            Err(EtcdError::LeaseExist)
        );
        put_with_lease(&handle, "a", 7).await;
        put_with_lease(&handle, "b", 7).await;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            assert_eq!(keep_alive(&handle, 7).await, 2);
            assert!(handle.lease_keep_alive(7).await.is_ok());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let lives = time_to_live(&handle, 7).await;
        assert_eq!((lives.granted_ttl, lives.keys.len()), (2, 2));
        let listed = handle.lease_leases().await.expect("a list").leases;
        assert_eq!(listed.iter().map(|lease| lease.id).collect::<Vec<_>>(), [7, chosen.id], "by their ends");
        let revision = handle.header(0).revision;
        wait("the lease to end", || !exists(&handle, 7)).await;
        assert_eq!(handle.header(0).revision, revision + 1, "its keys go under one revision");
        assert_eq!(get(&handle, "a").await, Ok(None));
        assert_eq!(keep_alive(&handle, 7).await, 0);
        let over = time_to_live(&handle, 7).await;
        assert_eq!((over.id, over.ttl, over.granted_ttl), (7, -1, 0));
        assert_eq!(metric(&handle, "etcd_debugging_server_lease_expired_total"), 1);
        assert_eq!(metric(&handle, "etcd_debugging_lease_granted_total"), 2);
        assert!(metric(&handle, "etcd_debugging_lease_renewed_total") >= 2);
    });
}

/// Regression LE03.
#[test]
fn concurrent_revoke_of_one_lease() {
    let cluster = Cluster::start(3);
    let handles = cluster.handles();
    block_on(async {
        for round in 1..=20 {
            grant(&handles[0], round, 60).await;
            put_with_lease(&handles[0], "k", round).await;
            let revision = handles[0].header(0).revision;
            let revokes = handles.iter().map(|handle| {
                let handle = handle.clone();
                tokio::spawn(async move { handle.lease_revoke(pb::LeaseRevokeRequest { id: round }).await })
            });
            let mut won = 0;
            for revoke in revokes.collect::<Vec<_>>() {
                match revoke.await.expect("no panic") {
                    Ok(revoked) => {
                        assert_eq!(revoked.header.expect("a header").revision, revision + 1);
                        won += 1;
                    }
                    Err(error) => assert_eq!(error, EtcdError::LeaseNotFound),
                }
            }
            assert_eq!(won, 1, "one of them revoked it");
        }
    });
}

#[test]
fn a_follower_passes_keep_alives_on_and_learns_the_end_of_a_lease() {
    let cluster = Cluster::start(3);
    block_on(async {
        let leader = cluster.leader().await;
        let follower = cluster.handle((leader + 1) % 3);
        let leader = cluster.handle(leader);
        let granted = grant(&follower, 0, 3).await;
        put_with_lease(&follower, "k", granted.id).await;
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            assert_eq!(keep_alive(&follower, granted.id).await, granted.ttl);
            assert!(
                follower.lease_keep_alive_now(granted.id).is_none(),
                "only the leader answers from memory"
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let lives = time_to_live(&follower, granted.id).await;
        assert_eq!((lives.granted_ttl, lives.keys.len()), (granted.ttl, 1));
        assert_eq!(
            lives.header.expect("a header").member_id,
            follower.node_status().member.0,
            "the header is of whoever was asked"
        );
        wait("the lease to end", || !exists(&leader, granted.id)).await;
        assert_eq!(keep_alive(&follower, granted.id).await, 0);
        assert_eq!(time_to_live(&follower, granted.id).await.ttl, -1);
    });
}

/// Regression LE07.
#[test]
fn keepalive_without_quorum_round() {
    let cluster = Cluster::start(3);
    block_on(async {
        let leader = cluster.leader().await;
        let handle = cluster.handle(leader);
        grant(&handle, 7, 60).await;
        assert_eq!(keep_alive(&handle, 7).await, 60);
        let before = metric(&handle, "cairn_read_rounds_total");
        let began = Instant::now();
        let mut answered = 0u64;
        for _ in 0..100_000 {
            answered += u64::from(handle.lease_keep_alive_now(7).is_some());
        }
        let rounds = metric(&handle, "cairn_read_rounds_total") - before;
        let thirds = began.elapsed().as_millis() as u64 / (ELECTION.as_millis() as u64 / 3);
        assert!(answered > 0);
        assert!(rounds <= thirds + 2, "{rounds} rounds for {answered} keep-alives in {:?}", began.elapsed());
    });
}

/// A leader that is killed takes its memory with it: its successor gives every lease its time anew.
#[test]
fn a_lease_survives_its_leader() {
    let cluster = Cluster::start(3);
    block_on(async {
        let leader = cluster.leader().await;
        let survivor = cluster.handle((leader + 1) % 3);
        let granted = grant(&survivor, 0, 4).await;
        put_with_lease(&survivor, "k", granted.id).await;
        let stop = AtomicBool::new(false);
        let kept = async {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                match survivor.lease_keep_alive(granted.id).await {
                    Ok(answer) => {
                        assert_eq!(answer.ttl, granted.ttl, "a lease that is kept alive is never lost");
                        answers += 1;
                    }
                    Err(error) => {
                        assert!(matches!(error, EtcdError::NoLeader | EtcdError::Timeout), "{error}")
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answers
        };
        let killed = async {
            let asked = {
                let survivor = survivor.clone();
                tokio::spawn(async move {
                    // Regression LE06: a question over a change of leader gets its answer.
                    for _ in 0..100 {
                        let lives = time_to_live(&survivor, granted.id).await;
                        assert!(lives.ttl >= 0 && lives.granted_ttl == granted.ttl, "{lives:?}");
                        tokio::time::sleep(Duration::from_millis(30)).await;
                    }
                })
            };
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.cut_off(leader);
            asked.await.expect("every question was answered");
            stop.store(true, Ordering::Relaxed);
        };
        let (answers, ()) = tokio::join!(kept, killed);
        assert!(answers > 0, "nothing was kept alive");
        wait("another leader", || survivor.node_status().leader.0 != cluster.member(leader).id.0).await;
        wait("the lease to end", || !exists(&survivor, granted.id)).await;
    });
}

/// Regression LE01: a leader that nobody hears any more revokes nothing, and gives no time to anybody either.
#[test]
fn old_leader_cannot_revoke() {
    let cluster = Cluster::start(3);
    block_on(async {
        let old = cluster.leader().await;
        let deposed = cluster.handle(old);
        let survivor = cluster.handle((old + 1) % 3);
        grant(&deposed, 7, 3).await;
        put_with_lease(&deposed, "k", 7).await;
        cluster.cut_off(old);
        wait("another leader", || {
            let leader = survivor.node_status().leader;
            !leader.is_none() && leader != cluster.member(old).id
        })
        .await;
        let until = Instant::now() + Duration::from_secs(7);
        while Instant::now() < until {
            assert_eq!(keep_alive(&survivor, 7).await, 3);
            assert!(deposed.lease_keep_alive_now(7).is_none(), "its leadership is confirmed by nobody");
            assert!(exists(&deposed, 7), "it has revoked nothing");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(metric(&deposed, "etcd_debugging_server_lease_expired_total"), 0);
        cluster.connect(old);
        wait("the old leader to follow", || deposed.node_status().leader == survivor.node_status().leader)
            .await;
        assert_eq!(get(&deposed, "k").await, Ok(Some("v".to_owned())));
        assert_eq!(keep_alive(&deposed, 7).await, 3, "through the new leader");
    });
}

/// Regression LE02, and that nothing is recorded of leases that are kept alive, or when it is switched off.
#[test]
fn checkpoint_survives_leader_change() {
    let cluster = Cluster::start_with(3, |config| {
        config.lease_checkpoint_interval = Some(Duration::from_secs(1));
    });
    block_on(async {
        let leader = cluster.leader().await;
        let (old, next) = (cluster.handle(leader), cluster.handle((leader + 1) % 3));
        grant(&old, 7, 40).await;
        grant(&old, 8, 40).await;
        let recorded =
            |handle: &Handle| handle.reader().lease(LeaseId(7)).map_or(0, |lease| lease.remaining_ttl);
        // Not by the clock, but by what the members have: five records later is five seconds later.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(1..=36).contains(&recorded(&next)) {
            assert!(Instant::now() < deadline, "waited a minute for the time that is left to be recorded");
            assert_eq!(keep_alive(&old, 8).await, 40);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let to = next.node_status().member;
        old.move_leader(pb::MoveLeaderRequest { target_id: to.0 }).await.expect("a transfer");
        let left = time_to_live(&old, 7).await.ttl;
        assert!((1..=37).contains(&left), "{left} s: neither the whole time again nor nothing");
        assert!(time_to_live(&old, 8).await.ttl > left, "the other one has its whole time");
        assert_eq!(keep_alive(&old, 7).await, 40);
        assert_eq!(recorded(&next), 0, "the record is gone before the keep-alive is answered");
        assert!(time_to_live(&old, 7).await.ttl > left);
    });
}

#[test]
fn nothing_is_recorded_when_checkpoints_are_off() {
    let cluster = Cluster::start_with(1, |config| config.lease_checkpoint_interval = None);
    let handle = cluster.handle(0);
    block_on(async {
        grant(&handle, 7, 4000).await;
        grant(&handle, 8, 3).await;
        wait("a short lease to end", || !exists(&handle, 8)).await;
        assert_eq!(handle.reader().lease(LeaseId(7)).map(|lease| lease.remaining_ttl), Some(0));
    });
}

/// Regression LE04: whoever was told of a grant by one member may ask any other at once.
#[test]
fn keepalive_during_grant() {
    let cluster = Cluster::start(3);
    let handles = cluster.handles();
    block_on(async {
        cluster.leader().await;
        for round in 1..=150 {
            let (by, asked) = (&handles[round % 3], &handles[(round + 1) % 3]);
            let id = round as i64;
            let racing = {
                let asked = asked.clone();
                tokio::spawn(async move { asked.lease_keep_alive(id).await.expect("an answer").ttl })
            };
            let granted = grant(by, id, 60).await;
            assert_eq!(keep_alive(asked, id).await, granted.ttl, "round {round}");
            assert!([0, 60].contains(&racing.await.expect("no panic")));
        }
    });
}

/// Regression LE05: at the end of a lease a keep-alive either saves it, or says that it is gone, and then it is.
#[test]
fn no_success_for_revoked_lease() {
    let cluster = Cluster::start(3);
    let handles = cluster.handles();
    block_on(async {
        cluster.leader().await;
        let mut clients = tokio::task::JoinSet::new();
        for id in 1..=60 {
            let asked = handles[id as usize % 3].clone();
            clients.spawn(async move {
                grant(&asked, id, 1).await;
                let mut saved = 0;
                loop {
                    // Ever later, so that some of them come at the very end.
                    tokio::time::sleep(Duration::from_millis(900 + 25 * saved)).await;
                    let ttl = keep_alive(&asked, id).await;
                    if ttl == 0 {
                        break;
                    }
                    saved += 1;
                }
                for _ in 0..3 {
                    assert_eq!(keep_alive(&asked, id).await, 0, "lease {id} came back");
                    assert_eq!(time_to_live(&asked, id).await.ttl, -1);
                }
                saved
            });
        }
        let mut saved = 0;
        while let Some(client) = clients.join_next().await {
            saved += client.expect("no panic");
        }
        assert!(saved > 0, "no keep-alive came in time");
        wait("all of them to be gone everywhere", || {
            handles.iter().all(|handle| handle.reader().lease_count() == 0)
        })
        .await;
    });
}

#[test]
fn many_leases_that_end_at_once_are_gone_and_everybody_else_is_served() {
    const LEASES: i64 = 5000;
    let cluster = Cluster::start(3);
    block_on(async {
        let leader = cluster.leader().await;
        let handle = cluster.handle(leader);
        let term = handle.node_status().term;
        grant(&handle, 1, 60).await;
        let mut grants = tokio::task::JoinSet::new();
        for client in 0..50 {
            let handle = handle.clone();
            grants.spawn(async move {
                for n in 0..LEASES / 50 {
                    grant(&handle, 100 + client * 1000 + n, 3).await;
                }
            });
        }
        while let Some(done) = grants.join_next().await {
            done.expect("no panic");
        }
        let other = cluster.handle((leader + 1) % 3);
        wait("all of them to be gone", || {
            let _ = handle.lease_keep_alive_now(1);
            other.reader().lease_count() == 1
        })
        .await;
        assert_eq!(keep_alive(&other, 1).await, 60);
        assert_eq!(metric(&other, "etcd_debugging_lease_revoked_total"), LEASES as u64);
        // Every member applies at its own pace, and only the leader that decided an end counts it as one: on a slow machine another may
        // have led for a while.
        wait("the leader to have counted them, or to have changed", || {
            metric(&handle, "etcd_debugging_server_lease_expired_total") == LEASES as u64
                || handle.node_status().term != term
        })
        .await;
    });
}

/// Leadership moves all the time, and what each leader has decided about leases ends with its term.
#[test]
fn leases_that_are_kept_alive_survive_any_number_of_leaders() {
    const TTL: i64 = 3;
    let cluster = Cluster::start(3);
    let handles = cluster.handles();
    block_on(async {
        cluster.leader().await;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for id in 1..=30 {
            grant(&handles[0], id, TTL).await;
        }
        for id in 1..=30 {
            let (asked, stop) = (handles[id as usize % 3].clone(), stop.clone());
            clients.spawn(async move {
                let mut renewed = Instant::now();
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    // The time counts from when the last success was asked for; whoever was away for longer has lost it by right.
                    let began = Instant::now();
                    let ttl = asked.lease_keep_alive(id).await.map(|answer| answer.ttl);
                    match ttl {
                        Ok(TTL) => (renewed, answers) = (began, answers + 1),
                        Ok(ttl) => {
                            let away = renewed.elapsed();
                            assert!(
                                away >= Duration::from_secs(TTL as u64),
                                "lease {id}: {ttl} after {away:?}"
                            );
                            return answers;
                        }
                        Err(error) => {
                            assert!(matches!(error, EtcdError::NoLeader | EtcdError::Timeout), "{error}");
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                answers
            });
        }
        for round in 0..12 {
            let leader = cluster.leader().await;
            let target_id = handles[(leader + 1 + round % 2) % 3].node_status().member.0;
            // It may lead no longer, or an election may be faster.
            let _ = handles[leader].move_leader(pb::MoveLeaderRequest { target_id }).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut answers = 0;
        while let Some(client) = clients.join_next().await {
            answers += client.expect("no panic");
        }
        assert!(answers > 0, "nothing was kept alive");
    });
}
