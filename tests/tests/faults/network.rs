//! Networks that fail.

use anyhow::Result;
use api::etcdserverpb::RangeRequest;
use cairn_tests::{
    harness::{Cluster, Kind, wait_for},
    proxy::{Flow, Network},
    recorder::Writers,
};
use rand::Rng;
use std::time::Duration;

use crate::{
    block_on, compact, endpoints, let_write, put, random, range, revision, status, verify, wait_leader_among,
    wait_metric,
};

pub fn start(size: usize, extra: &[&str]) -> Result<(Cluster, Network)> {
    let mut cluster = Cluster::prepare(Kind::Cairn, size, extra)?;
    let network = Network::between(&mut cluster)?;
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    Ok((cluster, network))
}

fn others(cluster: &Cluster, not: usize) -> Vec<usize> {
    (0..cluster.members.len()).filter(|i| *i != not).collect()
}

/// Each number is a key of its own, so that a write which nobody waits for any more may come late without hiding another.
fn count_to(number: u64, endpoints: &[String]) -> Result<i64> {
    put(endpoints, &format!("counter/{number}"), "")
}

/// The highest number there is, linearizable; None when there was no answer within the time, which is always allowed.
async fn counter_at(endpoint: &str, time: Duration) -> Option<u64> {
    let request = RangeRequest { key: "counter/".into(), range_end: "counter0".into(), ..Default::default() };
    let answer = tokio::time::timeout(time, range(endpoint, request)).await.ok()?.ok()?;
    let kv = answer.kvs.last().expect("the counter was written before the fault");
    let number = std::str::from_utf8(&kv.key).expect("text").trim_start_matches("counter/");
    Some(number.parse().expect("a number"))
}

/// A read begun after a write was acknowledged elsewhere sees it or fails, before, during and after the fault.
fn leader_loses_its_followers(fault: Flow) -> Result<()> {
    let (cluster, network) = start(3, &[])?;
    let all = endpoints(&cluster);
    count_to(0, &all)?;
    let writers = Writers::start(all.clone(), 3);
    let_write(&writers, 50)?;
    let old = cluster.wait_leader()?;
    let rest = others(&cluster, old);
    let majority: Vec<String> = rest.iter().map(|i| all[*i].clone()).collect();

    network.isolate(old, fault);
    for number in 1..=4_u64 {
        count_to(number, &majority)?;
        if let Some(seen) = block_on(counter_at(&all[old], Duration::from_millis(700))) {
            assert!(seen >= number, "a stale read: {seen} after {number} was acknowledged");
        }
    }
    wait_leader_among(&cluster, &rest)?;
    let_write(&writers, 50)?;
    count_to(5, &majority)?;
    let own = RangeRequest { key: "counter/0".into(), serializable: true, ..Default::default() };
    block_on(range(&all[old], own)).expect("a serializable read needs no quorum");
    wait_metric(&cluster.members[old], "etcd_server_has_leader", |has| has == 0.0)?;

    // Reads that wait at the old leader while the network comes back, answers to its old rounds included.
    let seen = block_on(async {
        let reads = [(); 4].map(|()| counter_at(&all[old], Duration::from_secs(3)));
        let heal = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            network.heal();
        };
        let [a, b, c, d] = reads;
        tokio::join!(a, b, c, d, heal)
    });
    for seen in [seen.0, seen.1, seen.2, seen.3].into_iter().flatten() {
        assert!(seen >= 5, "a stale read while healing: {seen} after 5 was acknowledged");
    }
    wait_for("a fresh read at the old leader", || block_on(counter_at(&all[old], Duration::from_secs(3))))
        .map(|seen| assert_eq!(seen, 5))?;
    let_write(&writers, 50)?;
    verify(&cluster, &writers.finish())
}

#[test]
fn a_leader_cut_off_serves_no_stale_read_and_rejoins() -> Result<()> {
    leader_loses_its_followers(Flow::Cut)
}

#[test]
fn a_leader_whose_links_stall_serves_no_stale_read_when_old_answers_arrive() -> Result<()> {
    leader_loses_its_followers(Flow::Held)
}

#[test]
fn a_follower_isolated_again_and_again_does_not_raise_the_term() -> Result<()> {
    let (cluster, network) = start(3, &[])?;
    let writers = Writers::start(endpoints(&cluster), 3);
    for fault in [Flow::Cut, Flow::Lost, Flow::Cut] {
        let leader = cluster.wait_leader()?;
        let away = (leader + 1) % 3;
        network.isolate(away, fault);
        // It stands for election when it gives the leader up.
        wait_metric(&cluster.members[away], "etcd_server_has_leader", |has| has == 0.0)?;
        let before = status(&cluster.members[away])?.raft_term;
        let_write(&writers, 300)?;
        let after = status(&cluster.members[away])?.raft_term;
        assert_eq!(before, after, "alone it can win no election, so it must not begin one");
        let cluster_term = status(&cluster.members[leader])?.raft_term;
        assert!(cluster_term >= after, "{cluster_term} is the term of the majority, {after} that of one");
        network.heal();
        wait_metric(&cluster.members[away], "etcd_server_has_leader", |has| has == 1.0)?;
    }
    verify(&cluster, &writers.finish())
}

#[test]
fn links_that_fail_in_one_direction_stop_nothing() -> Result<()> {
    let (cluster, network) = start(3, &[])?;
    let writers = Writers::start(endpoints(&cluster), 3);
    let_write(&writers, 50)?;

    // The follower speaks, nobody hears it; then it hears nothing of the leader but can speak.
    let leader = cluster.wait_leader()?;
    let follower = (leader + 1) % 3;
    network.set(follower, leader, Flow::Lost);
    let_write(&writers, 200)?;
    network.heal();
    let_write(&writers, 50)?;
    let leader = cluster.wait_leader()?;
    let follower = (leader + 1) % 3;
    network.set(leader, follower, Flow::Lost);
    wait_metric(&cluster.members[follower], "etcd_server_has_leader", |has| has == 0.0)?;
    let_write(&writers, 200)?;
    network.heal();
    let_write(&writers, 50)?;

    // The leader speaks and hears nobody: it must give up, or its heartbeats would keep the others from electing.
    let leader = cluster.wait_leader()?;
    let rest = others(&cluster, leader);
    rest.iter().for_each(|i| network.set(*i, leader, Flow::Lost));
    wait_metric(&cluster.members[leader], "etcd_server_is_leader", |leads| leads == 0.0)?;
    wait_leader_among(&cluster, &rest)?;
    let_write(&writers, 100)?;
    network.heal();
    wait_metric(&cluster.members[leader], "etcd_server_has_leader", |has| has == 1.0)?;
    verify(&cluster, &writers.finish())
}

#[test]
fn a_network_that_never_rests_loses_nothing() -> Result<()> {
    let mut random = random("a_network_that_never_rests_loses_nothing");
    let (cluster, network) = start(3, &["--snapshot-count=100", "--snapshot-catchup-entries=50"])?;
    let writers = Writers::start(endpoints(&cluster), 4);
    for _ in 0..12 {
        for _ in 0..2 {
            let from = random.random_range(0..3);
            let to = (from + random.random_range(1..3)) % 3;
            let flow = match random.random_range(0..5) {
                0 => Flow::Delayed(Duration::from_millis(random.random_range(1..40))),
                1 => Flow::Held,
                2 => Flow::Lost,
                3 => Flow::Cut,
                _ => Flow::Open,
            };
            network.set(from, to, flow);
        }
        std::thread::sleep(Duration::from_millis(random.random_range(50..600)));
        if random.random_bool(0.4) {
            network.heal();
            let_write(&writers, 20)?;
            // History goes at different paces on the members; what they answer must not show it.
            let member = &cluster.members[random.random_range(0..3)];
            let _ = revision(member).and_then(|seen| compact(member, seen - 10));
        }
    }
    network.heal();
    let_write(&writers, 50)?;
    verify(&cluster, &writers.finish())
}
