//! Kills, pauses and partitions.

use anyhow::{Result, bail};
use api::etcdserverpb::WatchCreateRequest;
use cairn_tests::{
    harness::{Kind, Member, http_get, real_etcd_versions},
    proxy::Flow,
    recorder::{traffic::Shape, watchers::Plan},
};
use nix::sys::signal::Signal;
use rand::Rng;

use crate::{Scene, everything, kind};

fn kills_and_pauses(kind: Kind, test: &str, rounds: usize) -> Result<()> {
    let mut scene = Scene::open(kind, test, &[], Shape::default())?;
    scene.watch_everything();
    scene.go_on(150)?;
    for round in 0..rounds {
        let leader = scene.cluster.wait_leader()?;
        // The leader, and a follower.
        let victim = (leader + round / 2 % 2 * scene.random.random_range(1..3)) % 3;
        if round % 2 == 0 {
            scene.cluster.members[victim].kill()?;
            scene.go_on(100)?;
            scene.cluster.members[victim].spawn()?;
        } else {
            scene.cluster.members[victim].signal(Signal::SIGSTOP)?;
            scene.go_on(100)?;
            // Longer than an election for sure: somebody else leads, or led all the time.
            scene.go_on(300)?;
            scene.cluster.members[victim].signal(Signal::SIGCONT)?;
        }
        scene.cluster.wait_healthy()?;
        scene.go_on(100)?;
    }
    scene.judge()?;
    Ok(())
}

#[test]
fn watches_survive_kills_and_pauses() -> Result<()> {
    kills_and_pauses(kind(), "watches_survive_kills_and_pauses", 4)
}

#[test]
fn the_checkers_believe_the_real_etcd() -> Result<()> {
    let newest = real_etcd_versions().pop();
    let (version, _) = newest.ok_or_else(|| anyhow::anyhow!("no real etcd: run tests/tools/real-etcd"))?;
    kills_and_pauses(Kind::Etcd(version), "the_checkers_believe_the_real_etcd", 2)
}

#[test]
fn watches_survive_partitions() -> Result<()> {
    let mut scene = Scene::open(kind(), "watches_survive_partitions", &[], Shape::default())?;
    scene.watch_everything();
    scene.go_on(150)?;
    for flow in [Flow::Cut, Flow::Held, Flow::Lost] {
        let leader = scene.cluster.wait_leader()?;
        let victim = (leader + scene.random.random_range(0..2)) % 3;
        scene.network.isolate(victim, flow);
        scene.go_on(250)?;
        scene.network.heal();
        scene.cluster.wait_healthy()?;
        scene.go_on(100)?;
    }
    scene.judge()?;
    Ok(())
}

/// Little log is kept, so that a member is soon beyond it.
const SHORT_LOG: [(&str, &str); 2] = [("snapshot-count", "100"), ("snapshot-catchup-entries", "50")];

/// Watchers that stay at this member whatever happens, among them one that waits for a revision the member will jump over.
fn stay_at(scene: &mut Scene, member: usize) -> Result<()> {
    let future = scene.revision()? + 400;
    let kinds = [("from now", 0), ("from the first", 1), ("from then", future)];
    for (name, start_revision) in kinds {
        let create = WatchCreateRequest { start_revision, prev_kv: true, ..everything() };
        let name = format!("stays {name}");
        let plan = Plan { name, creates: vec![create], first: member, patient: true, ..Plan::default() };
        scene.watchers.start(plan);
    }
    scene.watchers.wait_position("stays from now", 1)?;
    scene.watchers.wait_position("stays from the first", 1)
}

/// This member came back by a snapshot at least once.
fn installed(member: &Member) -> bool {
    let metrics = http_get(&member.client_url, "/metrics").map(|answer| answer.body).unwrap_or_default();
    let count = metrics.lines().find_map(|line| line.strip_prefix("cairn_snapshots_installed_total "));
    // The real etcd says it in its log.
    count.map_or_else(|| member.log().contains("applied snapshot"), |count| count != "0")
}

/// Cuts this member off while others go on, until it came back by a snapshot. The leader lets go of its log a few times a second only,
/// so that a member which is back soon may find what it needs.
fn fall_behind(
    scene: &mut Scene,
    member: usize,
    mut meanwhile: impl FnMut(&mut Scene) -> Result<()>,
) -> Result<()> {
    const ROUNDS: usize = 5;
    for _ in 0..ROUNDS {
        scene.network.isolate(member, Flow::Cut);
        scene.go_on(500)?;
        meanwhile(scene)?;
        scene.go_on(300)?;
        scene.network.heal();
        scene.cluster.wait_healthy()?;
        if installed(&scene.cluster.members[member]) {
            return Ok(());
        }
    }
    bail!("no snapshot was needed in {ROUNDS} rounds");
}

#[test]
fn no_time_travel_after_snapshot() -> Result<()> {
    let mut scene = Scene::open(kind(), "no_time_travel_after_snapshot", &SHORT_LOG, Shape::default())?;
    scene.go_on(150)?;
    let behind = (scene.cluster.wait_leader()? + 1) % 3;
    stay_at(&mut scene, behind)?;
    fall_behind(&mut scene, behind, |_| Ok(()))?;
    scene.go_on(100)?;
    // Never canceled, so never excused: everything comes, once and in order.
    let weight = scene.judge()?;
    assert_eq!(weight.compacted, 0);
    assert_eq!(weight.streams, 3, "a stream broke, which is no test of this");
    Ok(())
}

/// The start lies ahead of the member that is asked and behind what the others have written: in the future here, in the past there.
/// Once the member catches up, the watch begins exactly at its start, with no event and no bookmark below it.
#[test]
fn future_watch_no_old_events() -> Result<()> {
    let mut scene = Scene::open(kind(), "future_watch_no_old_events", &[], Shape::default())?;
    scene.go_on(150)?;
    let behind = (scene.cluster.wait_leader()? + 1) % 3;
    scene.network.isolate(behind, Flow::Cut);
    let cut_at = scene.revision()?;
    scene.go_on(200)?;
    let known = scene.revision()?;
    assert!(cut_at + 50 < known, "the others went on");
    for (name, start_revision) in [("ahead here", known - 20), ("ahead everywhere", known + 200)] {
        let create = WatchCreateRequest { start_revision, prev_kv: true, ..everything() };
        let name = name.to_owned();
        let plan = Plan { name, creates: vec![create], first: behind, patient: true, ..Plan::default() };
        scene.watchers.start(plan);
    }
    // Not before its `created` came, or it would be no watch of the future.
    scene.watchers.wait_created(2)?;
    scene.network.heal();
    scene.cluster.wait_healthy()?;
    scene.watchers.wait_position("ahead here", known)?;
    scene.go_on(300)?;
    let weight = scene.judge()?;
    assert_eq!(weight.streams, 2, "a stream broke, which is no test of this");
    Ok(())
}

#[test]
fn a_snapshot_that_is_compacted_beyond_a_watch_ends_it_with_a_word() -> Result<()> {
    let test = "a_snapshot_that_is_compacted_beyond_a_watch_ends_it_with_a_word";
    let mut scene = Scene::open(kind(), test, &SHORT_LOG, Shape::default())?;
    scene.go_on(150)?;
    let leader = scene.cluster.wait_leader()?;
    let behind = (leader + 1) % 3;
    stay_at(&mut scene, behind)?;
    // Above what all of them still need.
    fall_behind(&mut scene, behind, |scene| {
        let at = scene.revision()? - 20;
        scene.compact((behind + 1) % 3, at)
    })?;
    scene.go_on(100)?;
    let weight = scene.judge()?;
    assert!(weight.compacted > 0, "nobody was told of the compaction: {weight:?}");
    Ok(())
}
