//! Followers that fall behind the log, and are killed while they catch up.

use std::{fs, time::Duration};

use anyhow::Result;
use cairn_tests::{
    harness::{Cluster, Kind, wait_for},
    recorder::{self, Writers, verify_equal},
};
use nix::sys::signal::Signal;
use rand::Rng;

use crate::{block_on, disk::expect_refused, endpoints, let_write, metric, random, verify};

/// Little log is kept, so that a follower is soon beyond it.
const SHORT_LOG: [&str; 2] = ["--snapshot-count=100", "--snapshot-catchup-entries=50"];

const MIB: u64 = 1 << 20;

/// With sixteen clients, so that it is soon done.
pub fn fill(endpoint: &str, count: usize, bytes: usize) -> Result<()> {
    block_on(recorder::fill(endpoint, 16, count, bytes))
}

/// Kills this member, writes, starts it again, until it came back by a snapshot. The leader lets go of its log a few times a second
/// only, so that a follower which is back soon may find what it needs.
fn fall_behind(cluster: &mut Cluster, follower: usize, mut write: impl FnMut() -> Result<()>) -> Result<()> {
    const ROUNDS: usize = 5;
    for _ in 0..ROUNDS {
        cluster.members[follower].kill()?;
        write()?;
        cluster.members[follower].spawn()?;
        cluster.wait_healthy()?;
        if metric(&cluster.members[follower], "cairn_snapshots_installed_total")
            .is_some_and(|count| count > 0.0)
        {
            return Ok(());
        }
    }
    anyhow::bail!("no snapshot was needed in {ROUNDS} rounds");
}

#[test]
fn snapshot_count_counts_entries() -> Result<()> {
    let flags = ["--snapshot-count=1000", "--snapshot-catchup-entries=100"];
    let mut cluster = Cluster::start_with(Kind::Cairn, 3, &flags)?;
    let leader = cluster.wait_leader()?;
    let url = cluster.members[leader].client_url.clone();
    // Sixteen entries come in a batch under this load: were batches counted, five rounds would not reach a thousand.
    fall_behind(&mut cluster, (leader + 1) % 3, || fill(&url, 3000, 16))?;
    block_on(verify_equal(&endpoints(&cluster)))
}

#[test]
fn a_stopped_follower_costs_the_leader_no_memory_and_catches_up() -> Result<()> {
    let mut flags = SHORT_LOG.to_vec();
    flags.push("--inline-value-bytes-max=8MiB");
    let mut cluster = Cluster::start_with(Kind::Cairn, 3, &flags)?;
    let leader = cluster.wait_leader()?;
    let url = cluster.members[leader].client_url.clone();
    // The state store takes its share of memory with the first.
    let bytes = 64 << 10;
    fill(&url, 1536, bytes)?;
    let before = cluster.members[leader].memory()?;
    let follower = (leader + 1) % 3;
    cluster.members[follower].signal(Signal::SIGSTOP)?;
    fill(&url, 5120, bytes)?;
    let after = cluster.members[leader].memory()?;
    cluster.members[follower].signal(Signal::SIGCONT)?;
    println!("leader: {} MiB before, {} MiB after", before / MIB, after / MIB);
    // The queue of a stream holds 64 MiB, the state store's buffers come and go.
    assert!(
        after < before + 192 * MIB,
        "the leader keeps what the follower did not take: {} MiB before 320 MiB of writes, {} MiB after",
        before / MIB,
        after / MIB
    );
    cluster.wait_healthy()?;
    wait_for("equal members", || block_on(verify_equal(&endpoints(&cluster))).ok())?;
    Ok(())
}

#[test]
fn a_follower_killed_while_a_snapshot_arrives_comes_back() -> Result<()> {
    let mut random = random("a_follower_killed_while_a_snapshot_arrives_comes_back");
    let mut cluster = Cluster::start_with(Kind::Cairn, 3, &SHORT_LOG)?;
    let all = endpoints(&cluster);
    let leader = cluster.wait_leader()?;
    let follower = (leader + 1) % 3;
    // Enough state that a snapshot takes a while.
    fill(&all[leader], 400, 64 << 10)?;
    let writers = Writers::start(vec![all[leader].clone(), all[(leader + 2) % 3].clone()], 4);
    let mut installed = 0.0;
    for _ in 0..5 {
        cluster.members[follower].kill()?;
        let_write(&writers, 400)?;
        cluster.members[follower].spawn()?;
        for _ in 0..random.random_range(1..4) {
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            cluster.members[follower].kill()?;
            cluster.members[follower].spawn()?;
        }
        cluster.wait_healthy()?;
        installed += metric(&cluster.members[follower], "cairn_snapshots_installed_total").unwrap_or(0.0);
    }
    println!("{installed} snapshots were installed by the last start of each round");
    // Without a kill in between, so that the way through a snapshot was gone for certain.
    fall_behind(&mut cluster, follower, || let_write(&writers, 400))?;
    let record = writers.finish();
    verify(&cluster, &record)?;

    // All three at once, then the one that came by a snapshot without its state: its log begins behind the snapshot.
    for member in &mut cluster.members {
        member.kill()?;
    }
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    verify(&cluster, &record)?;
    assert!(cluster.members[follower].terminate()?.success());
    fs::remove_dir_all(cluster.members[follower].data_dir.join("member/state"))?;
    expect_refused(&mut cluster.members[follower], 66, "STATE_MISSING", &[])
}
