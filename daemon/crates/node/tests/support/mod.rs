//! What the tests of whole members share: members in one process with real threads, logs, stores and sockets on loopback, and a net between
//! them that can be cut.
#![allow(dead_code, reason = "each test file uses its own part")]

mod net;

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb, raftpb};
use bytes::Bytes;
use identity::{Boot, FirstMember, GenesisConfig, Home, Record, Unique};
use node::{Fatal, Handle, Node, NodeConfig, OwnIdentity, Parts};
use prost::Message;
use state_machine::membership::{Member, cluster_id, member_id};
use storage::wal::{Wal, WalMetadata, WalOptions};
use types::{Entry, EntryKind, HardState, LogIndex, MemberId, Term};

pub use net::Net;

pub fn fatal(cause: Fatal) -> ! {
    panic!("a member of the test cannot go on: {cause}")
}

pub struct Running {
    pub member: Member,
    pub node: Node,
}

pub fn config(directory: &Path, member: &Member, members: &[Member]) -> NodeConfig {
    let ids: Vec<MemberId> = members.iter().map(|member| member.id).collect();
    NodeConfig {
        member: member.id,
        cluster: cluster_id(&ids),
        name: member.name.clone(),
        advertise_client_urls: vec!["http://127.0.0.1:1".to_owned()],
        advertise_peer_urls: member.peer_urls.clone(),
        heartbeat: Duration::from_millis(50),
        election_ticks: 10,
        pre_vote: true,
        max_request_bytes: 1536 * 1024,
        max_txn_ops: 128,
        quota_backend_bytes: 0,
        snapshot_count: 100,
        snapshot_catchup_entries: 10,
        snapshot_send_bytes_per_second: None,
        snapshot_save_bytes_per_second: None,
        inline_value_bytes_max: 1 << 20,
        compaction_batch: 1000,
        compaction_sleep: Duration::from_millis(1),
        auto_compaction: None,
        max_learners: 1,
        strict_reconfig_check: true,
        auto_promote_learner: false,
        watch_progress_interval: Duration::from_secs(600),
        lease_checkpoint_interval: Some(Duration::from_secs(300)),
        initial_election_tick_advance: true,
        state_dir: directory.join("state"),
        snap_dir: directory.join("snap"),
        progress: |_| {},
        replayed: |_, _| {},
        fatal,
    }
}

/// The next start on the directory that holds this log, as the daemon's identity file counts them.
pub fn own_identity(wal_dir: &Path, founders: &[Member]) -> OwnIdentity {
    let random = || Unique::for_test(rand());
    let file = wal_dir.with_extension("identity");
    let (dir, before): (Unique, Option<Boot>) = match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).expect("what was written here"),
        Err(_) => (random(), None),
    };
    let next = Boot {
        seq: before.map_or(1, |boot| boot.seq + 1),
        nonce: random(),
        previous: before.map(|boot| boot.nonce),
    };
    // A machine that is put back to an earlier moment, memory and all, goes on with the start that it had.
    let goes_on = std::fs::remove_file(wal_dir.with_extension("reverted")).is_ok();
    let boot = before.filter(|_| goes_on).unwrap_or(next);
    let text = serde_json::to_vec(&(dir, Some(boot))).expect("JSON");
    std::fs::write(&file, text).expect("the identity");
    OwnIdentity {
        record: Record { dir, boot, home: Home::default(), version: "0.0.0".to_owned() },
        earlier: Vec::new(),
        cluster_uuid: None,
        parent_uuid: None,
        attendees: BTreeMap::new(),
        // Its clusters are founded here: whoever leads first may begin their life, be everybody there or not.
        config: Some(GenesisConfig {
            members: founders
                .iter()
                .map(|founder| FirstMember {
                    name: founder.name.clone(),
                    peer_urls: founder.peer_urls.clone(),
                })
                .collect(),
            token: String::new(),
            token_sha256: String::new(),
            restored: None,
        }),
        fresh_uuid: random(),
        keeps_life: false,
    }
}

/// Unlike any other of this process and of others at the same time.
fn rand() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(0));
    half() << 64 | half()
}

/// A small segment, so that a test machine does not zero-fill gigabytes.
pub fn wal_options() -> WalOptions {
    WalOptions { segment_bytes: 1 << 20, ..WalOptions::default() }
}

pub fn genesis(members: &[Member]) -> (Vec<Entry>, HardState) {
    let mut sorted = members.to_vec();
    sorted.sort_by_key(|member| member.id);
    let entries: Vec<Entry> = sorted
        .iter()
        .zip(1..)
        .map(|(member, index)| {
            let change = raftpb::ConfChange {
                id: Some(0),
                r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
                node_id: Some(member.id.0),
                context: Some(Bytes::from(member.bootstrap_context())),
            };
            Entry {
                term: Term(1),
                index: LogIndex(index),
                kind: EntryKind::ConfChange,
                data: Bytes::from(change.encode_to_vec()),
            }
        })
        .collect();
    let commit = LogIndex(entries.len() as u64);
    (entries, HardState { term: Term(1), vote: MemberId::NONE, commit })
}

pub fn boot(directory: &Path, member: &Member, members: &[Member], listener: TcpListener) -> Running {
    boot_with(directory, member, members, listener, |_| ())
}

pub fn boot_with(
    directory: &Path,
    member: &Member,
    members: &[Member],
    listener: TcpListener,
    adjust: impl FnOnce(&mut NodeConfig),
) -> Running {
    boot_as(directory, member, members, listener, |config, _| adjust(config))
}

/// What this start is may be adjusted too.
pub fn boot_as(
    directory: &Path,
    member: &Member,
    members: &[Member],
    listener: TcpListener,
    adjust: impl FnOnce(&mut NodeConfig, &mut OwnIdentity),
) -> Running {
    let mut config = config(directory, member, members);
    std::fs::create_dir_all(directory).expect("the member's directory");
    let wal_dir = directory.join("wal");
    if !Wal::exists(&wal_dir).expect("look for a log") {
        let metadata = WalMetadata { member_id: member.id, cluster_id: config.cluster, dir_uuid: None };
        let mut wal = Wal::create(&wal_dir, &metadata, wal_options()).expect("create the log");
        let (entries, hard_state) = genesis(members);
        wal.append(&entries, Some(&hard_state)).expect("write genesis");
        wal.sync().expect("sync genesis");
    }
    let (wal, contents) = Wal::open(&wal_dir, wal_options()).expect("open the log");
    let mut identity = own_identity(&wal_dir, members);
    adjust(&mut config, &mut identity);
    let boot = identity.record.boot.nonce.low_u64();
    let parts = Parts { wal, contents, peer_listeners: vec![listener], boot, identity, remotes: vec![] };
    let node = Node::start(config, parts).expect("start the member");
    Running { member: member.clone(), node }
}

pub fn plan(count: usize) -> (Vec<Member>, Vec<TcpListener>) {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let members = listeners
        .iter()
        .zip(1..)
        .map(|(listener, i)| {
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            Member {
                id: member_id(std::slice::from_ref(&url), "test", None),
                name: format!("m{i}"),
                peer_urls: vec![url],
                ..Member::default()
            }
        })
        .collect();
    (members, listeners)
}

pub async fn put(handle: &Handle, key: &str, value: &str) -> Result<i64, EtcdError> {
    let request =
        pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    handle.put(request).await.map(|response| response.header.expect("a header").revision)
}

pub async fn get(handle: &Handle, key: &str) -> Result<Option<String>, EtcdError> {
    let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let response = handle.range(request).await?;
    Ok(response.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Until the condition holds; a minute is a hang.
pub async fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The heartbeat of [`config`] ten times.
pub const ELECTION: Duration = Duration::from_millis(500);

/// Members that reach each other through a [`Net`]. Stopped when dropped.
pub struct Cluster {
    members: Vec<Member>,
    nodes: Vec<Running>,
    net: Net,
    _directory: tempfile::TempDir,
}

impl Cluster {
    pub fn start(count: usize) -> Cluster {
        Cluster::start_with(count, |_| ())
    }

    pub fn start_with(count: usize, adjust: impl Fn(&mut NodeConfig)) -> Cluster {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut members, listeners) = plan(count);
        let net = Net::between(&mut members);
        let start = |(member, listener): (&Member, TcpListener)| {
            boot_with(&directory.path().join(&member.name), member, &members, listener, &adjust)
        };
        let nodes = members.iter().zip(listeners).map(start).collect();
        Cluster { members, nodes, net, _directory: directory }
    }

    pub fn member(&self, at: usize) -> &Member {
        &self.members[at]
    }

    pub fn handle(&self, at: usize) -> Handle {
        self.nodes[at].node.handle()
    }

    pub fn handles(&self) -> Vec<Handle> {
        (0..self.nodes.len()).map(|at| self.handle(at)).collect()
    }

    /// The member that leads, once one does.
    pub async fn leader(&self) -> usize {
        let leader = || (0..self.nodes.len()).find(|at| self.handle(*at).node_status().is_leader);
        wait("a leader", || leader().is_some()).await;
        leader().expect("it leads")
    }

    /// Nothing reaches this member or leaves it.
    pub fn cut_off(&self, at: usize) {
        self.net.cut_off(self.members[at].id);
    }

    pub fn connect(&self, at: usize) {
        self.net.connect(self.members[at].id);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once: a member that stops hands its office to somebody who may be stopping.
        std::thread::scope(|scope| {
            for running in self.nodes.drain(..) {
                scope.spawn(move || running.node.stop());
            }
        });
    }
}
