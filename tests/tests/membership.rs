//! All members of a cluster replaced one by one while clients write and read, and a member that was removed while it was down. Release
//! binaries; the checkers judge what clients saw against the true history.

use std::{
    collections::BTreeMap,
    fs::File,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use api::etcdserverpb::{
    self as pb, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, PutRequest,
    RangeRequest, cluster_client::ClusterClient, kv_client::KvClient,
};
use cairn_tests::{
    checker::{History, assert_kept},
    harness::{Cluster, Kind, cairn_binary, http_get, wait_for},
    recorder::{
        channel, historian,
        traffic::{self, Shape, Traffic},
        verify_equal,
    },
};
use nix::sys::signal::Signal;

/// What a process says with its exit when it was removed (docs/operations.md).
const REMOVED: i32 = 79;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The first three run and know only each other; the others have ports and nothing else.
fn three_of(size: usize) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(Kind::Cairn, size, &[])?;
    let founders: Vec<String> =
        cluster.members[..3].iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
    for member in &mut cluster.members[..3] {
        member.add_flag(format!("--initial-cluster={}", founders.join(",")));
        member.spawn()?;
    }
    for member in &mut cluster.members[..3] {
        member.wait_healthy()?;
    }
    Ok(cluster)
}

/// A change that is refused for a reason that passes (links that are too young, a learner behind, an election) is asked for again.
fn until_done<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let mut last = None;
    let answer = wait_for(what, || {
        let answer = block_on(async { tokio::time::timeout(Duration::from_secs(20), ask()).await });
        match answer {
            Ok(Ok(answer)) => Some(answer.into_inner()),
            Ok(Err(status)) => {
                last = Some(status.to_string());
                None
            }
            Err(_) => None,
        }
    });
    answer.with_context(|| format!("the last answer was {last:?}"))
}

/// Without the time limit of the other clients: a change waits as long as it takes.
fn members_of(cluster: &Cluster, at: usize) -> Result<ClusterClient<tonic::transport::Channel>> {
    let endpoint = tonic::transport::Endpoint::from_shared(cluster.members[at].client_url.clone())?;
    Ok(ClusterClient::new(endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()))
}

fn list(cluster: &Cluster, through: usize) -> Result<Vec<pb::Member>> {
    let answer = until_done("the members to be listed", || async {
        let mut client = members_of(cluster, through).expect("an endpoint");
        client.member_list(MemberListRequest { linearizable: true }).await
    })?;
    Ok(answer.members)
}

fn id_of(cluster: &Cluster, through: usize, at: usize) -> Result<u64> {
    let name = &cluster.members[at].name;
    let found = list(cluster, through)?.into_iter().find(|member| member.name == *name);
    Ok(found.with_context(|| format!("{name} is a member"))?.id)
}

/// The settings with which a member that was added takes its place.
fn prepare_to_join(cluster: &mut Cluster, through: usize, at: usize) -> Result<()> {
    let own = &cluster.members[at];
    let mut listed = vec![format!("{}={}", own.name, own.peer_url)];
    for member in list(cluster, through)?.iter().filter(|member| !member.name.is_empty()) {
        listed.extend(member.peer_ur_ls.iter().map(|url| format!("{}={url}", member.name)));
    }
    let joiner = &mut cluster.members[at];
    joiner.add_flag(format!("--initial-cluster={}", listed.join(",")));
    joiner.add_flag("--initial-cluster-state=existing");
    Ok(())
}

/// Adds a learner through this member, starts it, and promotes it when it has caught up.
fn join(cluster: &mut Cluster, through: usize, at: usize) -> Result<()> {
    let request =
        MemberAddRequest { peer_ur_ls: vec![cluster.members[at].peer_url.clone()], is_learner: true };
    let added = until_done("a place in the cluster", || {
        let request = request.clone();
        async { members_of(cluster, through).expect("an endpoint").member_add(request).await }
    })?;
    let id = added.member.context("the added member")?.id;
    prepare_to_join(cluster, through, at)?;
    cluster.members[at].spawn()?;
    cluster.members[at].wait_healthy()?;
    until_done("the learner to be promoted", || async {
        members_of(cluster, through).expect("an endpoint").member_promote(MemberPromoteRequest { id }).await
    })?;
    wait_for("the promoted member to be ready", || {
        http_get(&cluster.members[at].client_url, "/readyz").ok().filter(|answer| answer.status == 200)
    })?;
    Ok(())
}

/// The answer may be lost with the member that was asked, should it be the one that goes.
fn remove(cluster: &Cluster, through: usize, id: u64) -> Result<()> {
    until_done("a member to be removed", || async {
        let mut client = members_of(cluster, through).expect("an endpoint");
        match client.member_remove(MemberRemoveRequest { id }).await {
            Err(_) if is_gone(cluster, id).await => {
                Ok(tonic::Response::new(pb::MemberRemoveResponse::default()))
            }
            answer => answer,
        }
    })?;
    Ok(())
}

async fn is_gone(cluster: &Cluster, id: u64) -> bool {
    for member in &cluster.members {
        let Ok(channel) = channel(&member.client_url) else { continue };
        let list = MemberListRequest { linearizable: true };
        if let Ok(answer) = ClusterClient::new(channel).member_list(list).await {
            return answer.into_inner().members.iter().all(|member| member.id != id);
        }
    }
    false
}

/// The process ended because it was removed, and says through whom.
fn left(cluster: &mut Cluster, at: usize, asked_of: &str) -> Result<()> {
    let status = cluster.members[at].wait_exit()?;
    let log = cluster.members[at].log();
    let name = &cluster.members[at].name;
    assert_eq!(status.code(), Some(REMOVED), "{name} was removed; its log:\n{log}");
    let expected = format!("was removed from its cluster, as asked of member {asked_of}");
    assert!(log.contains(&expected), "{name} says {expected:?}; its log:\n{log}");
    assert!(is_marked_removed(cluster, at)?);
    Ok(())
}

fn is_marked_removed(cluster: &Cluster, at: usize) -> Result<bool> {
    let text = std::fs::read(cluster.members[at].data_dir.join("member/identity.json"))?;
    let identity: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(identity["state"].to_string().contains("removed"))
}

/// One linearizable read: the key had this version, made at `version` (0: none), when the store was at `revision`.
struct Observation {
    key: String,
    revision: i64,
    version: i64,
}

/// Clients that read and write through all endpoints, and hold each answer against everything that any of them knew before.
struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<Observation>>>,
}

impl Readers {
    fn start(endpoints: &[String], count: usize) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicI64::new(0));
        let threads = (0..count)
            .map(|me| {
                let (stop, seen, endpoints) = (stop.clone(), seen.clone(), endpoints.to_vec());
                std::thread::spawn(move || runtime().block_on(read(me, &endpoints, &stop, &seen)))
            })
            .collect();
        Readers { stop, threads }
    }

    fn finish(self) -> Vec<Observation> {
        self.stop.store(true, Ordering::Release);
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("every read was linearizable"))
            .collect()
    }
}

async fn read(me: usize, endpoints: &[String], stop: &AtomicBool, seen: &AtomicI64) -> Vec<Observation> {
    let channels: Vec<_> = endpoints.iter().map(|endpoint| channel(endpoint).expect("an endpoint")).collect();
    let (mut at, mut turn, mut observed) = (me, me, Vec::new());
    while !stop.load(Ordering::Acquire) {
        turn += 1;
        let mut client = KvClient::new(channels[at % channels.len()].clone());
        let floor = seen.load(Ordering::Acquire);
        let answer = if turn.is_multiple_of(4) {
            let put = PutRequest { key: format!("r/{me}").into(), value: "x".into(), ..Default::default() };
            client.put(put).await.map(|answer| (answer.into_inner().header, None))
        } else {
            let key = traffic::key(turn % Shape::default().keys);
            let range = RangeRequest { key: key.clone().into(), ..Default::default() };
            client.range(range).await.map(|answer| {
                let answer = answer.into_inner();
                let version = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
                (answer.header, Some((key, version)))
            })
        };
        match answer {
            Ok((header, read)) => {
                let revision = header.expect("a header").revision;
                assert!(
                    revision >= floor,
                    "revision {revision} at {} after {floor} was known",
                    endpoints[at % endpoints.len()]
                );
                seen.fetch_max(revision, Ordering::AcqRel);
                observed.extend(read.map(|(key, version)| Observation { key, revision, version }));
            }
            Err(_) => {
                at += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    observed
}

/// Each read saw the newest version of its key at its revision.
fn verify_reads(history: &History, observed: &[Observation]) {
    let mut versions: BTreeMap<Vec<u8>, Vec<(i64, i64)>> = BTreeMap::new();
    for (revision, events) in history.revisions() {
        for event in events {
            let is_put = cairn_tests::checker::history::is_put(event);
            let key = cairn_tests::checker::history::key(event).to_vec();
            versions.entry(key).or_default().push((revision, if is_put { revision } else { 0 }));
        }
    }
    for Observation { key, revision, version } in observed {
        let known = versions.get(key.as_bytes()).map_or(&[][..], Vec::as_slice);
        let at = known.partition_point(|(changed, _)| changed <= revision);
        let expected = at.checked_sub(1).map_or(0, |at| known[at].1);
        assert_eq!(*version, expected, "{key} at revision {revision}");
    }
}

/// The same command twice: stopped when the learner was added, and once more, which goes on from there.
fn replace_by_command(cluster: &mut Cluster, old: usize, new: usize) -> Result<()> {
    let told = cluster.path().join("replace.log");
    let stays: Vec<&str> = (0..cluster.members.len())
        .filter(|at| *at != old && cluster.members[*at].is_running())
        .map(|at| cluster.members[at].client_url.as_str())
        .collect();
    let through = (0..cluster.members.len())
        .find(|at| *at != old && cluster.members[*at].is_running())
        .context("somebody stays")?;
    let mut command = Command::new(cairn_binary("cairnctl")?);
    command
        .arg(format!("--endpoints={}", stays.join(",")))
        .args(["member", "replace", &cluster.members[old].name, "--timeout=60s"])
        .arg(format!("--name={}", cluster.members[new].name))
        .arg(format!("--peer-urls={}", cluster.members[new].peer_url))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&told)?);
    let mut first = command.spawn().context("run cairnctl")?;
    let added = wait_for("cairnctl to have added the learner", || {
        std::fs::read_to_string(&told).ok().filter(|text| text.contains("start the new member now"))
    });
    first.kill()?;
    first.wait()?;
    added?;
    prepare_to_join(cluster, through, new)?;
    cluster.members[new].spawn()?;
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        bail!("the command goes on: {output:?}");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("replaced by"), "{said}");
    Ok(())
}

#[test]
fn every_member_is_replaced_under_load_and_nothing_is_lost() -> Result<()> {
    let mut cluster = three_of(6)?;
    let endpoints: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    let shape = Shape { pause: Duration::from_millis(8), ..Shape::default() };
    let traffic = Traffic::start(&endpoints, shape);
    let readers = Readers::start(&endpoints, 3);
    traffic.go_on(100)?;

    // A follower goes, asked of another member than itself.
    let leader = cluster.wait_leader()?;
    let (old, through) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = id_of(&cluster, through, old)?;
    join(&mut cluster, through, 3)?;
    remove(&cluster, through, id)?;
    let by = format!("{} (", cluster.members[through].name);
    left(&mut cluster, old, &by)?;
    traffic.go_on(100)?;

    // The leader goes, asked of itself. Should it lose its office meanwhile, it goes as a follower.
    let leader = cluster.wait_leader()?;
    let id = id_of(&cluster, leader, leader)?;
    join(&mut cluster, leader, 4)?;
    remove(&cluster, leader, id)?;
    left(&mut cluster, leader, &format!("{id:x}"))?;
    traffic.go_on(100)?;

    // The last of the founders, or of those who are left of them and the first newcomer.
    let old = (0..4).find(|at| cluster.members[*at].is_running()).context("somebody old runs")?;
    replace_by_command(&mut cluster, old, 5)?;
    left(&mut cluster, old, "")?;
    traffic.go_on(100)?;

    // Its directory refuses to start, and says so without asking anybody.
    cluster.members[old].spawn()?;
    assert_eq!(cluster.members[old].wait_exit()?.code(), Some(REMOVED));

    let promises = traffic.finish();
    let observed = readers.finish();
    assert!(promises.acknowledged.len() >= 400 && observed.len() >= 100, "clients got something done");
    let stay: Vec<usize> = (0..6).filter(|at| cluster.members[*at].is_running()).collect();
    assert_eq!(stay.len(), 3);
    let lists: Vec<Vec<pb::Member>> = stay.iter().map(|at| list(&cluster, *at)).collect::<Result<_>>()?;
    assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "{lists:?}");
    let mut listed: Vec<&str> = lists[0].iter().map(|member| member.name.as_str()).collect();
    listed.sort_unstable();
    let names: Vec<&str> = stay.iter().map(|at| cluster.members[*at].name.as_str()).collect();
    assert_eq!(listed, names, "they are voters who told their names: {lists:?}");
    assert!(lists[0].iter().all(|member| !member.is_learner), "{lists:?}");

    let left_over: Vec<String> = stay.iter().map(|at| endpoints[*at].clone()).collect();
    block_on(async {
        let mut history = History::default();
        let through = historian::current(&left_over[0]).await?;
        historian::learn(&mut history, &left_over[0], through).await?;
        assert_kept("writes", &historian::verify(&mut history, &promises));
        verify_reads(&history, &observed);
        verify_equal(&left_over).await
    })
}

/// Nobody talks to it any more, so its log will never tell it. One peer that does not lead is not believed; a majority of its voters is.
#[test]
fn a_member_that_was_removed_while_it_was_down_learns_it_when_it_comes_back() -> Result<()> {
    let mut cluster = three_of(3)?;
    let leader = cluster.wait_leader()?;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = id_of(&cluster, other, gone)?;
    cluster.members[gone].kill()?;
    remove(&cluster, other, id)?;
    // Both have applied it: they list two.
    for at in [leader, other] {
        assert_eq!(list(&cluster, at)?.len(), 2);
    }
    let leader = cluster.wait_leader()?;
    let other = 3 - leader - gone;
    cluster.members[leader].signal(Signal::SIGSTOP)?;
    let before = cluster.members[gone].log().len();
    cluster.members[gone].spawn()?;
    let says = "removed from the cluster";
    wait_for("a peer to say that it was removed", || {
        cluster.members[gone].log()[before..].contains(says).then_some(())
    })
    .with_context(|| format!("its log ends:\n{}", cluster.members[gone].log_tail()))?;
    let log = cluster.members[gone].log();
    assert!(!log[before..].contains("the cluster has removed this member"), "one peer is not enough:\n{log}");
    assert!(!is_marked_removed(&cluster, gone)?);
    cluster.members[leader].signal(Signal::SIGCONT)?;
    let status = cluster.members[gone].wait_exit()?;
    let log = cluster.members[gone].log();
    assert_eq!(status.code(), Some(REMOVED), "{log}");
    assert!(log[before..].contains("was removed from its cluster"), "{log}");
    assert!(is_marked_removed(&cluster, gone)?);
    block_on(verify_equal(&[
        cluster.members[leader].client_url.clone(),
        cluster.members[other].client_url.clone(),
    ]))
}
