//! Snapshots between members of release binaries: to one that is far behind, broken off and killed on both sides at every step, two in a
//! row, and to a real etcd. What must hold is always the same: a member has its old state or the new one, and all are equal in the end.
//!
//! Snapshots arrive slowly here, so that there is time to strike; which step a kill met is seen on the receiver's disk and printed.

use std::{
    fs,
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use api::etcdserverpb::{
    AlarmRequest, AlarmType, LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, Member as Listed,
    MemberAddRequest, MemberListRequest, MemberRemoveRequest, PutRequest, RangeRequest, RangeResponse,
    SnapshotRequest, StatusRequest, WatchCreateRequest, WatchRequest, alarm_request::AlarmAction,
    cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use cairn_tests::{
    harness::{Cluster, Kind, Member, http_get, wait_for},
    proxy::{Flow, Network},
    recorder::{self, channel, verify_equal},
};
use dbfile::BoltFile;
use tokio_stream::StreamExt;

/// Little log is kept, so that a follower is soon beyond it.
const SHORT_LOG: [&str; 2] = ["--snapshot-count=100", "--snapshot-catchup-entries=20"];

/// What every state of these tests holds at least, so that a snapshot over the slow network takes half a second to arrive.
const STATE_BYTES: usize = 3 << 20;
/// For each piece of at most 64 KiB.
const SLOWLY: Flow = Flow::Delayed(Duration::from_millis(10));

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|member| member.client_url.clone()).collect()
}

fn metric(member: &Member, name: &str) -> Option<f64> {
    let answer = http_get(&member.client_url, "/metrics").ok()?;
    answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn installed(member: &Member) -> f64 {
    metric(member, "cairn_snapshots_installed_total").unwrap_or_default()
}

async fn range(endpoint: &str, key: &str, serializable: bool) -> Result<RangeResponse> {
    let request = RangeRequest {
        key: key.as_bytes().to_vec().into(),
        range_end: format!("{key}\u{7f}").into(),
        serializable,
        ..Default::default()
    };
    Ok(KvClient::new(channel(endpoint)?).range(request).await?.into_inner())
}

async fn put(endpoint: &str, key: &str, lease: i64) -> Result<i64> {
    let request = PutRequest {
        key: key.as_bytes().to_vec().into(),
        value: "value".into(),
        lease,
        ..Default::default()
    };
    let answer = KvClient::new(channel(endpoint)?).put(request).await?.into_inner();
    Ok(answer.header.context("a header")?.revision)
}

/// What this member itself has, also when it hears of nobody.
fn own_revision(member: &Member) -> Result<i64> {
    wait_for("an answer from its own state", || {
        block_on(async {
            let mut client = MaintenanceClient::new(channel(&member.client_url).ok()?);
            let answer = client.status(StatusRequest {}).await.ok()?.into_inner();
            Some(answer.header?.revision)
        })
    })
}

/// Everything up to this revision in a backup from this member, which it gives whoever leads: row by row, as HashKV would see it.
fn rows(member: &Member, revision: i64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut file = tempfile::tempfile()?;
    block_on(async {
        let mut client = MaintenanceClient::new(channel(&member.client_url)?);
        let mut pieces = client.snapshot(SnapshotRequest {}).await?.into_inner();
        while let Some(piece) = pieces.message().await? {
            file.write_all(&piece.blob)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let mut rows = Vec::new();
    BoltFile::open(file)?.each(b"key", &mut |key, value| {
        if key[..8] <= revision.to_be_bytes()[..] {
            rows.push((key.to_vec(), value.to_vec()));
        }
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn wait_equal(cluster: &Cluster) -> Result<()> {
    let mut last = None;
    wait_for("equal members", || {
        block_on(verify_equal(&endpoints(cluster)))
            .inspect_err(|error| last = Some(format!("{error:#}")))
            .ok()
    })
    .with_context(|| format!("{last:?}"))
}

/// Writes until these members have forgotten what they had in their logs before. They do so a few times a second, and only behind a
/// hundred entries.
fn outgrow_the_log(url: &str, members: &[&Member]) -> Result<()> {
    // Three times what the small entries behind them can take.
    const LARGE_BYTES: f64 = 100.0 * 1024.0;
    block_on(recorder::fill(url, 8, 300, 1024))?;
    wait_for("the log to be forgotten", || {
        block_on(recorder::fill(url, 8, 40, 16)).ok()?;
        let mut bytes = members.iter().map(|member| metric(member, "cairn_raft_log_memory_bytes"));
        bytes.all(|bytes| bytes.is_some_and(|bytes| bytes < LARGE_BYTES)).then_some(())
    })
}

/// How far a receiver is, by what is on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    /// The first of the bytes.
    Begun,
    /// A good part of them.
    HalfWay,
    /// All bytes are there, synced and named. The new state is built as they arrive and has no name yet.
    Named,
    /// It is complete and has its name.
    Complete,
    /// It is the one in use.
    InUse,
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What is in a state directory: the pointer to the state in use, and all that have names.
fn states(member: &Member) -> (String, Vec<String>) {
    let state = member.data_dir.join("member/state");
    let named =
        names(&state).into_iter().filter(|name| name.starts_with("gen-") && !name.ends_with(".partial"));
    (fs::read_to_string(state.join("CURRENT")).unwrap_or_default(), named.collect())
}

/// By comparison with what was there before. Looks the later steps up first: a step that ends meanwhile is never taken for an earlier one.
fn step(member: &Member, before: &(String, Vec<String>)) -> Step {
    let snap = member.data_dir.join("member/snap");
    let (current, named) = states(member);
    if current != before.0 {
        return Step::InUse;
    }
    if named.iter().any(|name| !before.1.contains(name)) {
        return Step::Complete;
    }
    let files = names(&snap);
    if files.iter().any(|name| name.ends_with(".snap.db")) {
        return Step::Named;
    }
    let arrived = files
        .iter()
        .filter(|name| name.starts_with("tmp-"))
        .filter_map(|name| Some(snap.join(name).metadata().ok()?.len()))
        .max();
    match arrived {
        None => Step::Nothing,
        Some(bytes) if bytes > STATE_BYTES as u64 / 2 => Step::HalfWay,
        Some(_) => Step::Begun,
    }
}

/// Three members, of whom one falls behind again and again.
struct Scene {
    cluster: Cluster,
    network: Network,
    behind: usize,
    /// What all of them had when it fell behind, and what the others had when it could hear of them again.
    old: i64,
    new: i64,
}

impl Scene {
    fn open(flags: &[&str]) -> Result<Scene> {
        let flags: Vec<&str> = SHORT_LOG.iter().chain(flags).copied().collect();
        let mut cluster = Cluster::prepare(Kind::Cairn, 3, &flags)?;
        let network = Network::between(&mut cluster)?;
        for member in &mut cluster.members {
            member.spawn()?;
        }
        cluster.wait_healthy()?;
        let leader = cluster.wait_leader()?;
        let scene = Scene { cluster, network, behind: (leader + 1) % 3, old: 0, new: 0 };
        block_on(recorder::fill(&scene.other().client_url, 8, STATE_BYTES >> 14, 16 << 10))?;
        wait_equal(&scene.cluster)?;
        Ok(scene)
    }

    fn member(&self) -> &Member {
        &self.cluster.members[self.behind]
    }

    /// One that is not behind.
    fn other(&self) -> &Member {
        &self.cluster.members[(self.behind + 1) % 3]
    }

    /// Cuts the member off and lets the others write until the log that it would need is gone. Afterwards nobody writes.
    fn fall_behind(&mut self, change: impl FnOnce(&Member) -> Result<()>) -> Result<()> {
        wait_equal(&self.cluster)?;
        self.old = own_revision(self.member())?;
        self.network.isolate(self.behind, Flow::Cut);
        let others = [(self.behind + 1) % 3, (self.behind + 2) % 3];
        // It may have led.
        wait_for("a leader among the others", || {
            let leads =
                |at: &&usize| metric(&self.cluster.members[**at], "etcd_server_is_leader") == Some(1.0);
            others.iter().find(leads).copied()
        })?;
        change(self.other())?;
        let url = self.other().client_url.clone();
        wait_for("the others to write", || block_on(put(&url, "fill/first", 0)).ok())?;
        outgrow_the_log(&url, &others.map(|at| &self.cluster.members[at]))?;
        self.new = block_on(range(&url, "x", false))?.header.context("a header")?.revision;
        Ok(())
    }

    /// The member hears the others again, and what they send comes slowly.
    fn heal_slowly(&self) {
        self.network.heal();
        for other in (0..3).filter(|at| *at != self.behind) {
            self.network.set(other, self.behind, SLOWLY);
        }
    }

    /// The member alone, on what is on its disk: the old state or the new one, and that one whole.
    fn is_old_or_new(&self) -> Result<i64> {
        let revision = own_revision(self.member())?;
        if revision != self.old && revision != self.new {
            bail!("revision {revision} is neither the old {} nor the new {}", self.old, self.new);
        }
        let equal = rows(self.member(), revision)? == rows(self.other(), revision)?;
        assert!(equal, "other rows than everybody else's up to revision {revision}");
        Ok(revision)
    }

    /// Nothing of a transfer is left.
    fn is_tidy(&self) -> Result<()> {
        let (state, snap) =
            (self.member().data_dir.join("member/state"), self.member().data_dir.join("member/snap"));
        wait_for("the remains of transfers to go", || {
            let remains =
                names(&snap).iter().any(|name| name.starts_with("tmp-") || name.ends_with(".snap.db"));
            let partial = names(&state).iter().any(|name| name.ends_with(".partial"));
            (!remains && !partial).then_some(())
        })
    }
}

#[test]
fn a_receiver_killed_at_any_step_has_the_old_state_or_the_new_one() -> Result<()> {
    let mut scene = Scene::open(&[])?;
    for goal in [Step::Begun, Step::HalfWay, Step::Named, Step::Complete, Step::InUse] {
        scene.fall_behind(|_| Ok(()))?;
        let before = states(scene.member());
        scene.heal_slowly();
        // The later steps are over in a moment.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while step(scene.member(), &before) < goal {
            assert!(std::time::Instant::now() < deadline, "no {goal:?} within a minute");
            std::thread::sleep(Duration::from_micros(100));
        }
        let behind = scene.behind;
        scene.cluster.members[behind].kill()?;
        let met = step(scene.member(), &before);
        scene.network.isolate(behind, Flow::Cut);
        scene.cluster.members[behind].spawn()?;
        let revision = scene.is_old_or_new()?;
        println!(
            "killed at {met:?} for {goal:?}: it has the {} state",
            if revision == scene.new { "new" } else { "old" }
        );
        match met {
            Step::Nothing | Step::Begun | Step::HalfWay => assert_eq!(revision, scene.old),
            Step::Complete | Step::InUse => {
                assert_eq!(revision, scene.new, "what the log names is installed at the next start");
            }
            Step::Named => {}
        }
        scene.network.heal();
        wait_equal(&scene.cluster)?;
        scene.is_tidy()?;
    }
    Ok(())
}

#[test]
fn a_transfer_that_breaks_off_begins_anew_and_harms_nothing() -> Result<()> {
    let mut scene = Scene::open(&[])?;
    let half_way = |scene: &Scene, before: &(String, Vec<String>)| {
        wait_for("half of a snapshot", || (step(scene.member(), before) >= Step::HalfWay).then_some(()))
    };
    scene.fall_behind(|_| Ok(()))?;
    let before = states(scene.member());
    for _ in 0..2 {
        scene.heal_slowly();
        half_way(&scene, &before)?;
        scene.network.isolate(scene.behind, Flow::Cut);
        if step(scene.member(), &before) <= Step::HalfWay {
            assert_eq!(scene.is_old_or_new()?, scene.old, "half of a snapshot is nothing");
            scene.is_tidy()?;
        }
    }
    // Now whoever sends it is killed.
    scene.heal_slowly();
    let leader = scene.cluster.wait_leader()?;
    half_way(&scene, &before)?;
    if leader != scene.behind {
        scene.cluster.members[leader].kill()?;
        let rest: Vec<String> =
            (0..3).filter(|at| *at != leader).map(|at| endpoints(&scene.cluster)[at].clone()).collect();
        wait_for("equal members without the sender", || block_on(verify_equal(&rest)).ok())?;
        assert!(own_revision(scene.member())? >= scene.new);
        scene.cluster.members[leader].spawn()?;
    }
    scene.cluster.wait_healthy()?;
    wait_equal(&scene.cluster)?;
    scene.is_tidy()
}

/// Revisions of the events under `watched/`, as they come from this member.
fn watch(endpoint: &str) -> Result<Arc<Mutex<Vec<i64>>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (events, endpoint) = (seen.clone(), endpoint.to_owned());
    let (opened, open) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        block_on(async {
            let create = WatchCreateRequest {
                key: "watched/".into(),
                range_end: "watched0".into(),
                ..Default::default()
            };
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            // The stream stays open on our side.
            let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
            let endpoint = tonic::transport::Endpoint::from_shared(endpoint)?;
            let mut client = WatchClient::new(endpoint.connect().await?);
            let mut stream = client.watch(requests).await?.into_inner();
            while let Some(response) = stream.message().await? {
                if response.created {
                    opened.send(())?;
                }
                let revisions =
                    response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision));
                events.lock().expect("no panic").extend(revisions);
            }
            Ok::<_, anyhow::Error>(())
        })
    });
    open.recv_timeout(Duration::from_secs(60)).context("the watch opens")?;
    Ok(seen)
}

async fn members(endpoint: &str, linearizable: bool) -> Result<Vec<Listed>> {
    let request = MemberListRequest { linearizable };
    Ok(ClusterClient::new(channel(endpoint)?).member_list(request).await?.into_inner().members)
}

async fn alarm(endpoint: &str, action: AlarmAction, member: u64) -> Result<Vec<u64>> {
    let request = AlarmRequest { action: action as i32, member_id: member, alarm: AlarmType::Nospace as i32 };
    let answer = MaintenanceClient::new(channel(endpoint)?).alarm(request).await?.into_inner();
    Ok(answer.alarms.into_iter().map(|alarm| alarm.member_id).collect())
}

async fn leases(endpoint: &str) -> Result<Vec<i64>> {
    let answer = LeaseClient::new(channel(endpoint)?).lease_leases(LeaseLeasesRequest {}).await?.into_inner();
    let mut ids: Vec<i64> = answer.leases.into_iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

async fn grant(endpoint: &str, id: i64) -> Result<()> {
    let request = LeaseGrantRequest { id, ttl: 3600 };
    LeaseClient::new(channel(endpoint)?).lease_grant(request).await?;
    put(endpoint, &format!("leased/{id}"), id).await?;
    Ok(())
}

async fn revoke(endpoint: &str, id: i64) -> Result<()> {
    LeaseClient::new(channel(endpoint)?).lease_revoke(LeaseRevokeRequest { id }).await?;
    Ok(())
}

/// Two snapshots, one after the other, each of which brings leases, an alarm, members and events that the member heard nothing of.
#[test]
fn leases_alarms_members_and_watches_are_right_after_two_snapshots() -> Result<()> {
    const STRANGER: u64 = 0x5eed;
    let mut scene = Scene::open(&[])?;
    let url = scene.member().client_url.clone();
    let seen = watch(&url)?;
    let mut expected = Vec::new();
    block_on(grant(&scene.other().client_url, 1))?;
    let mut added = 0;

    let before = installed(scene.member());
    scene.fall_behind(|other| {
        let there = &other.client_url;
        for number in 0..50 {
            expected.push(wait_for("a put", || block_on(put(there, &format!("watched/{number}"), 0)).ok())?);
        }
        block_on(revoke(there, 1))?;
        block_on(grant(there, 2))?;
        let request =
            MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: true };
        let answer = wait_for("a place for a learner", || {
            block_on(async {
                ClusterClient::new(channel(there).ok()?).member_add(request.clone()).await.ok()
            })
        })?;
        added = answer.into_inner().member.context("the new member")?.id;
        Ok(())
    })?;
    // The others are full as well as he: nothing more is written while the alarm stands.
    let there = scene.other().client_url.clone();
    block_on(alarm(&there, AlarmAction::Activate, STRANGER))?;
    scene.network.heal();
    wait_for("a snapshot", || (installed(scene.member()) > before).then_some(()))?;
    wait_equal(&scene.cluster)?;
    assert_eq!(block_on(leases(&url))?, [2]);
    let leased = block_on(range(&url, "leased/", true))?.kvs;
    assert_eq!(leased.iter().map(|kv| kv.lease).collect::<Vec<_>>(), [2]);
    let listed = block_on(members(&url, false))?;
    assert_eq!(listed, block_on(members(&there, true))?);
    assert!(listed.iter().any(|member| member.id == added && member.is_learner), "{listed:?}");
    wait_for("the alarm", || (block_on(alarm(&url, AlarmAction::Get, 0)).ok()? == [STRANGER]).then_some(()))?;
    let refused = block_on(put(&url, "refused", 0)).expect_err("the alarm is in force here too");
    assert!(format!("{refused:#}").contains("database space exceeded"), "{refused:#}");
    block_on(alarm(&there, AlarmAction::Deactivate, STRANGER))?;

    let before = installed(scene.member());
    scene.fall_behind(|other| {
        let there = &other.client_url;
        for number in 0..50 {
            expected.push(wait_for("a put", || block_on(put(there, &format!("watched/{number}"), 0)).ok())?);
        }
        block_on(grant(there, 3))?;
        wait_for("the learner to go", || {
            let request = MemberRemoveRequest { id: added };
            block_on(async { ClusterClient::new(channel(there).ok()?).member_remove(request).await.ok() })
        })?;
        Ok(())
    })?;
    scene.network.heal();
    wait_for("another snapshot", || (installed(scene.member()) > before).then_some(()))?;
    wait_equal(&scene.cluster)?;
    assert_eq!(block_on(leases(&url))?, [2, 3]);
    assert_eq!(block_on(members(&url, false))?, block_on(members(&there, true))?);
    assert!(block_on(members(&url, false))?.iter().all(|member| member.id != added));
    assert!(block_on(alarm(&url, AlarmAction::Get, 0))?.is_empty());
    // Attachments came along: a revocation deletes at every member, at one revision.
    block_on(revoke(&url, 2))?;
    wait_equal(&scene.cluster)?;
    assert_eq!(block_on(range(&url, "leased/2", true))?.kvs.len(), 0);
    expected.push(block_on(put(&url, "watched/last", 0))?);
    wait_for("the last event", || (seen.lock().expect("no panic").last() == expected.last()).then_some(()))?;
    assert_eq!(*seen.lock().expect("no panic"), expected, "each event once and in order, over two snapshots");
    Ok(())
}

/// An etcd that was away since the beginning takes our snapshot, follows, and starts again from what it stored.
#[test]
fn a_real_etcd_far_behind_follows_from_our_snapshot() -> Result<()> {
    for version in ["3.4", "3.5"] {
        println!("etcd {version}");
        follows_from_our_snapshot(version).with_context(|| format!("etcd {version}"))?;
    }
    Ok(())
}

fn follows_from_our_snapshot(version: &str) -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    cluster.members[2].play(&Kind::Etcd(version.to_owned()))?;
    for member in &mut cluster.members[..2] {
        SHORT_LOG.iter().for_each(|flag| member.add_flag(*flag));
        // The etcd comes later.
        member.add_flag("--initial-cluster-attendance=majority");
        member.spawn()?;
    }
    for member in &mut cluster.members[..2] {
        member.wait_healthy()?;
    }
    let ours = cluster.members[0].client_url.clone();
    // A member that never comes: so the cluster version stays what an etcd 3.4 can take. One that has come and gone, too.
    let mut added = Vec::new();
    for port in [1, 2] {
        let request =
            MemberAddRequest { peer_ur_ls: vec![format!("http://127.0.0.1:{port}")], is_learner: true };
        let answer = wait_for("a place for a learner", || {
            block_on(async {
                ClusterClient::new(channel(&ours).ok()?).member_add(request.clone()).await.ok()
            })
        })?;
        added.push(answer.into_inner().member.context("the new member")?.id);
        if port == 1 {
            let request = MemberRemoveRequest { id: added[0] };
            block_on(async {
                ClusterClient::new(channel(&ours)?).member_remove(request).await.context("remove")
            })?;
        }
    }
    block_on(grant(&ours, 7))?;
    outgrow_the_log(&ours, &[&cluster.members[0], &cluster.members[1]])?;

    cluster.members[2].spawn()?;
    cluster.wait_healthy()?;
    wait_equal(&cluster)?;
    assert!(cluster.members[2].log().contains("snapshot"), "it came by a snapshot");
    let theirs = cluster.members[2].client_url.clone();
    assert_eq!(block_on(leases(&theirs))?, [7]);
    let list = |endpoint: &str| -> Option<Vec<Listed>> {
        let mut list = block_on(members(endpoint, false)).ok()?;
        list.sort_by_key(|member| member.id);
        Some(list)
    };
    wait_for("equal lists of members", || {
        let (ours, theirs) = (list(&ours)?, list(&theirs)?);
        (ours == theirs && ours.iter().any(|member| member.name == "m3")).then_some(())
    })?;
    // It goes on with entries, as a voter, and so it does after a kill.
    block_on(recorder::fill(&theirs, 4, 50, 100))?;
    wait_equal(&cluster)?;
    cluster.members[2].kill()?;
    block_on(recorder::fill(&ours, 2, 4, 100))?;
    cluster.members[2].spawn()?;
    cluster.wait_healthy()?;
    wait_equal(&cluster)
}
