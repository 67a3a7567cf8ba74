//! Leases on clusters of release binaries while leaders are killed and paused: none ends before its time, none lives on for ever, its
//! keys go together, and who was told that it is gone is never told otherwise.
//!
//! `CAIRN_TESTS_KIND=3.5` runs the same stories against the real etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};
use api::etcdserverpb::{
    LeaseLeasesRequest, PutRequest, WatchCreateRequest, kv_client::KvClient, lease_client::LeaseClient,
};
use cairn_tests::{
    checker::{
        self, Evidence, History, What, history,
        lease::{Answer, LeaseEvidence, lease_violations},
    },
    harness::{Cluster, Kind, Member, http_get, slow_disk::SlowDisk, wait_for},
    proxy::{Flow, Network},
    recorder::{
        Clock, channel, historian,
        lessees::{KeptAlive, Lessees},
        verify_equal,
        watchers::{Plan, Watchers},
    },
};
use nix::sys::signal::Signal;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn kind() -> Kind {
    std::env::var("CAIRN_TESTS_KIND").map_or(Kind::Cairn, Kind::Etcd)
}

/// Members, lease clients, and a watch of all keys that sees when leases end.
struct Scene {
    lessees: Lessees,
    watchers: Watchers,
    clock: Clock,
    cluster: Cluster,
    network: Network,
}

impl Scene {
    fn open(size: usize, extra: &[&str]) -> Result<Scene> {
        Scene::begin(Cluster::prepare(kind(), size, extra)?)
    }

    fn begin(mut cluster: Cluster) -> Result<Scene> {
        let network = Network::between(&mut cluster)?;
        for member in &mut cluster.members {
            member.spawn()?;
        }
        cluster.wait_healthy()?;
        let clock = Clock::start();
        let endpoints = endpoints(&cluster);
        let mut watchers = Watchers::new(clock, &endpoints);
        for (first, member) in cluster.members.iter().enumerate() {
            let create = WatchCreateRequest {
                key: "l/".into(),
                range_end: "l0".into(),
                start_revision: 1,
                ..Default::default()
            };
            let name = format!("keys at {}", member.name);
            watchers.start(Plan { name, creates: vec![create], first, ..Plan::default() });
        }
        Ok(Scene { lessees: Lessees::new(clock), watchers, clock, cluster, network })
    }

    fn url(&self, member: usize) -> String {
        self.cluster.members[member].client_url.clone()
    }

    /// A lease with so many keys.
    fn lease(&self, member: usize, id: i64, ttl: i64, keys: usize) -> Result<i64> {
        let url = self.url(member);
        block_on(async {
            let id = self.lessees.grant(&url, id, ttl).await?;
            for number in 0..keys {
                self.lessees.put(&url, &key(id, number), id).await?;
            }
            Ok(id)
        })
    }

    /// Waits until this member says that the lease is not there.
    fn wait_gone(&self, member: usize, id: i64) -> Result<()> {
        wait_for(&format!("lease {id:x} to end"), || {
            let answer = block_on(self.lessees.time_to_live(&self.url(member), id)).ok()?;
            (answer.ttl == -1).then_some(())
        })
    }

    fn left(&self, member: usize, id: i64) -> Result<i64> {
        wait_for("an answer about a lease", || {
            block_on(self.lessees.time_to_live(&self.url(member), id)).ok().map(|answer| answer.ttl)
        })
    }

    /// Everybody learns the end; then all that was seen is judged.
    fn judge(mut self) -> Result<Vec<checker::lease::Exchange>> {
        self.network.heal();
        self.cluster.wait_healthy()?;
        let url = self.url(0);
        self.watchers.wait_all(block_on(historian::current(&url))?)?;
        let streams = self.watchers.finish();
        let mut history = History::default();
        let last = block_on(historian::current(&url))?;
        block_on(historian::learn(&mut history, &url, last))?;
        let promises = self.lessees.promises();
        let mut violations = historian::verify(&mut history, &promises);
        violations.extend(checker::watch_violations(&Evidence { streams: &streams, history: &history }));
        let mut revision_seen: BTreeMap<i64, Duration> = BTreeMap::new();
        for entry in streams.iter().flat_map(|stream| &stream.entries) {
            let What::Received(response) = &entry.what else { continue };
            for event in &response.events {
                let seen = revision_seen.entry(history::revision(event)).or_insert(entry.at);
                *seen = (*seen).min(entry.at);
            }
        }
        let exchanges = self.lessees.exchanges();
        let written: BTreeSet<i64> = promises.acknowledged.keys().copied().collect();
        violations.extend(lease_violations(&LeaseEvidence {
            exchanges: &exchanges,
            history: &history,
            revision_seen: &revision_seen,
            written: &written,
        }));
        let renewals =
            exchanges.iter().filter(|exchange| matches!(exchange.what, Answer::KeptAlive { ttl: 1.., .. }));
        println!(
            "{} revisions, {} lease calls, {} renewals, {:?} in all",
            history.through(),
            exchanges.len(),
            renewals.count(),
            self.clock.now()
        );
        checker::assert_kept("leases", &violations);
        block_on(verify_equal(&endpoints(&self.cluster)))?;
        Ok(exchanges)
    }
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|member| member.client_url.clone()).collect()
}

fn key(lease: i64, number: usize) -> String {
    format!("l/{lease:x}/{number}")
}

/// Leases are kept alive through every member while the leader is killed; they live as long as that, and end when it stops. Others
/// that nobody renews end too.
#[test]
fn kept_alive_through_any_member_while_the_leader_is_killed() -> Result<()> {
    const TTL: i64 = 5;
    let mut scene = Scene::open(3, &[])?;
    let all = endpoints(&scene.cluster);
    let (mut ids, mut kept) = (Vec::new(), Vec::new());
    for member in 0..3_usize {
        let id = scene.lease(member, 100 + member as i64, TTL, 3)?;
        let mut order = all.clone();
        order.rotate_left(member);
        ids.push(id);
        kept.push(scene.lessees.keep_alive(&order, id, Duration::from_millis(300)));
    }
    let left_alone = scene.lease(0, 200, TTL, 2)?;
    for _ in 0..2 {
        let leader = scene.cluster.wait_leader()?;
        scene.cluster.members[leader].kill()?;
        // Longer than the TTL together.
        KeptAlive::go_on(&kept, 18)?;
        scene.cluster.members[leader].spawn()?;
        scene.cluster.wait_healthy()?;
    }
    for id in &ids {
        assert!(scene.left(0, *id)? > 0, "lease {id} was kept alive all the time");
    }
    drop(kept);
    for id in ids.into_iter().chain([left_alone]) {
        scene.wait_gone(1, id)?;
    }
    scene.judge()?;
    Ok(())
}

/// A leader that slept through the end of its leadership wakes up with deadlines long gone, and revokes nothing.
#[test]
fn old_leader_cannot_revoke() -> Result<()> {
    let scene = Scene::open(3, &[])?;
    let old = scene.cluster.wait_leader()?;
    let others: Vec<usize> = (0..3).filter(|member| *member != old).collect();
    // Long enough for an election, short enough to be over before the old leader wakes.
    const TTL: i64 = 4;
    let ids = (1..=10).map(|id| scene.lease(old, id, TTL, 1)).collect::<Result<Vec<_>>>()?;
    scene.cluster.members[old].signal(Signal::SIGSTOP)?;
    let majority: Vec<String> = others.iter().map(|member| scene.url(*member)).collect();
    let kept: Vec<_> =
        ids.iter().map(|id| scene.lessees.keep_alive(&majority, *id, Duration::from_millis(250))).collect();
    // Renewed by the new leader over more than a TTL: what the old one remembers is long over.
    KeptAlive::go_on(&kept, 20)?;
    scene.cluster.members[old].signal(Signal::SIGCONT)?;
    KeptAlive::go_on(&kept, 8)?;
    for id in &ids {
        assert!(scene.left(others[0], *id)? > 0, "lease {id} was renewed all the time");
    }
    drop(kept);
    for id in ids {
        scene.wait_gone(others[0], id)?;
    }
    scene.judge()?;
    Ok(())
}

/// The same with an old leader that is cut off, and whose clients it may still answer.
#[test]
fn a_leader_that_is_cut_off_cannot_revoke() -> Result<()> {
    let scene = Scene::open(3, &[])?;
    let old = scene.cluster.wait_leader()?;
    let others: Vec<usize> = (0..3).filter(|member| *member != old).collect();
    let ids = (1..=5).map(|id| scene.lease(old, id, 4, 1)).collect::<Result<Vec<_>>>()?;
    // First at the old leader, then wherever an answer is.
    let mut order = vec![scene.url(old)];
    order.extend(others.iter().map(|member| scene.url(*member)));
    let kept: Vec<_> =
        ids.iter().map(|id| scene.lessees.keep_alive(&order, *id, Duration::from_millis(250))).collect();
    KeptAlive::go_on(&kept, 2)?;
    scene.network.isolate(old, Flow::Held);
    KeptAlive::go_on(&kept, 16)?;
    scene.network.heal();
    KeptAlive::go_on(&kept, 4)?;
    drop(kept);
    for id in ids {
        scene.wait_gone(others[0], id)?;
    }
    scene.judge()?;
    Ok(())
}

/// Of a key that nobody watches.
async fn put(endpoint: &str, key: &'static str) -> Result<()> {
    KvClient::new(channel(endpoint)?).put(PutRequest { key: key.into(), ..Default::default() }).await?;
    Ok(())
}

/// The disk hangs for longer than the leases live. Their clients are answered from memory all the time, nothing is revoked, and when the
/// disk goes on the leases are there.
#[test]
fn an_only_member_whose_disk_hangs_revokes_nothing() -> Result<()> {
    const TTL: i64 = 3;
    let mut cluster = Cluster::prepare(kind(), 1, &[])?;
    let dir = cluster.path().to_owned();
    let disk = SlowDisk::of(&mut cluster.members[0], &dir)?;
    let scene = Scene::begin(cluster)?;
    let leader = scene.cluster.wait_leader()?;
    let url = scene.url(leader);
    let ids = (1..=5).map(|id| scene.lease(leader, id, TTL, 1)).collect::<Result<Vec<_>>>()?;
    let renew =
        |id: &i64| scene.lessees.keep_alive(std::slice::from_ref(&url), *id, Duration::from_millis(200));
    let kept: Vec<_> = ids.iter().map(renew).collect();
    KeptAlive::go_on(&kept, 2)?;
    disk.hang()?;
    let write = std::thread::spawn({
        let url = url.clone();
        move || block_on(put(&url, "n/a put that needs the disk"))
    });
    // Two TTLs.
    KeptAlive::go_on(&kept, 30)?;
    // Its client may have given up by now.
    let is_over = write.is_finished();
    disk.go_on()?;
    let outcome = write.join().expect("no panic");
    assert!(!is_over || outcome.is_err(), "acknowledged, and not synced");
    KeptAlive::go_on(&kept, 5)?;
    for id in &ids {
        assert!(scene.left(leader, *id)? > 0, "lease {id} was renewed all the time");
    }
    drop(kept);
    for id in ids {
        scene.wait_gone(leader, id)?;
    }
    scene.judge()?;
    Ok(())
}

/// After a change of leaders a lease has its whole TTL and one election timeout at most: what the new leader says is left is bounded,
/// however long the old one had counted. It ends in the end.
#[test]
fn a_change_of_leaders_gives_one_ttl_and_no_more() -> Result<()> {
    const TTL: i64 = 6;
    let mut scene = Scene::open(3, &[])?;
    let id = scene.lease(0, 0, TTL, 2)?;
    for _ in 0..3 {
        let leader = scene.cluster.wait_leader()?;
        scene.cluster.members[leader].kill()?;
        let asked = (leader + 1) % 3;
        let left = scene.left(asked, id)?;
        assert!((0..=TTL + 1).contains(&left), "{left} of {TTL} s are left after a change of leaders");
        scene.cluster.members[leader].spawn()?;
        scene.cluster.wait_healthy()?;
    }
    scene.wait_gone(0, id)?;
    scene.judge()?;
    Ok(())
}

/// A query while leaders change waits and answers, within the time that a client gives it.
#[test]
fn ttl_query_over_leader_change() -> Result<()> {
    let mut scene = Scene::open(3, &[])?;
    let id = scene.lease(0, 77, 600, 3)?;
    let others = || (0..3_usize).cycle().skip(1);
    let mut answers = 0;
    for _ in 0..2 {
        let leader = scene.cluster.wait_leader()?;
        let asked: Vec<usize> = others().take(3).filter(|member| *member != leader).collect();
        scene.cluster.members[leader].kill()?;
        for member in asked {
            // At once, before anybody knows of a new leader.
            let answer = block_on(scene.lessees.time_to_live(&scene.url(member), id));
            let answer = answer.with_context(|| format!("asked {member} while leaders change"))?;
            assert_eq!((answer.id, answer.granted_ttl, answer.keys.len()), (id, 600, 3));
            answers += 1;
        }
        scene.cluster.members[leader].spawn()?;
        scene.cluster.wait_healthy()?;
    }
    assert_eq!(answers, 4);
    block_on(scene.lessees.revoke(&scene.url(0), id))?;
    scene.wait_gone(1, id)?;
    scene.judge()?;
    Ok(())
}

fn installed(member: &Member) -> bool {
    let metrics = http_get(&member.client_url, "/metrics").map(|answer| answer.body).unwrap_or_default();
    let count = metrics.lines().find_map(|line| line.strip_prefix("cairn_snapshots_installed_total "));
    count.map_or_else(|| member.log().contains("applied snapshot"), |count| count != "0")
}

async fn listed(endpoint: &str) -> Result<BTreeSet<i64>> {
    let mut client = LeaseClient::new(channel(endpoint)?);
    let answer = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner();
    Ok(answer.leases.into_iter().map(|lease| lease.id).collect())
}

/// A member that was far behind knows the leases after the snapshot, and expires them when it leads.
#[test]
fn leases_in_snapshots() -> Result<()> {
    let flags = match kind() {
        Kind::Cairn => ["--snapshot-count=100", "--snapshot-catchup-entries=50"],
        Kind::Etcd(_) => ["--snapshot-count=100", "--experimental-snapshot-catchup-entries=50"],
    };
    let mut scene = Scene::open(3, &flags)?;
    let leader = scene.cluster.wait_leader()?;
    let behind = (leader + 1) % 3;
    let early = scene.lease(leader, 0xe, 600, 2)?;
    let mut late = Vec::new();
    for round in 0..5 {
        scene.network.isolate(behind, Flow::Cut);
        let id = scene.lease(leader, 0x100 + round, 600, 300)?;
        late.push(id);
        // The leader lets go of its log a few times a second only.
        late.push(scene.lease(leader, 0x200 + round, 600, 300)?);
        scene.network.heal();
        scene.cluster.wait_healthy()?;
        if installed(&scene.cluster.members[behind]) {
            break;
        }
    }
    assert!(installed(&scene.cluster.members[behind]), "no snapshot was needed");
    let url = scene.url(behind);
    let expected: BTreeSet<i64> = late.iter().copied().chain([early]).collect();
    wait_for("the leases at the member that was behind", || {
        (block_on(listed(&url)).ok()? == expected).then_some(())
    })?;
    let keys = block_on(scene.lessees.time_to_live(&url, late[0]))?.keys;
    assert_eq!(keys.len(), 300, "attachments come with the snapshot");
    // From its own disk as well.
    scene.cluster.members[behind].kill()?;
    scene.cluster.members[behind].spawn()?;
    scene.cluster.wait_healthy()?;
    assert_eq!(block_on(listed(&url))?, expected);
    block_on(scene.lessees.revoke(&url, late[0]))?;
    scene.judge()?;
    Ok(())
}

/// Many leases end in the same second: each at one revision of its own or together with others, never by halves, and the cluster goes on.
#[test]
fn many_leases_end_at_once() -> Result<()> {
    let scene = Scene::open(3, &[])?;
    let ids = (1..=300).map(|id| scene.lease(0, id, 3, 1)).collect::<Result<Vec<_>>>()?;
    for id in ids {
        scene.wait_gone(1, id)?;
    }
    scene.judge()?;
    Ok(())
}
