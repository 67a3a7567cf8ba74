//! One running member: the threads that own consensus, log, state and reads, and the handle with which the rest asks them.
//!
//! ```text
//! Handle ──proposals, readers──► raft loop ──persist──► log writer
//!    ▲                            │  ▲  ▲                  │
//!    │                       apply│  │  └────persisted─────┘
//!    └──outcomes── apply worker ◄─┘  └──messages── transport
//! ```
//!
//! Each thread owns its piece outright; between them are mailboxes. A piece of state that several read has one writer (`shared.rs`).
//!
//! Not here: raft's decisions (consensus), what an entry does (state-machine), files (storage), the client wire (server), who this
//! member is (the daemon).

mod announce;
mod apply_worker;
mod auto_compaction;
mod backup;
mod config;
mod defrag;
mod handle;
mod keeper;
mod lessor;
mod live;
mod log_writer;
mod mailbox;
mod members;
mod metrics;
mod metrics_text;
mod paced;
mod peers;
mod pulse;
mod quorum;
mod raft_loop;
mod read_gate;
mod records;
mod replay;
mod reports;
mod sentinel;
mod shared;
mod snapshots;
mod v2_store;
mod waiters;
mod watches;

use std::{
    net::TcpListener,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use consensus::{
    Core, Recovered,
    io::{Input, Role},
};
use identity::Unique;
use parking_lot::{Mutex, RwLock};
use state_machine::{Options, Reader, StateMachine};
use storage::{
    state_store::{FjallStore, StoreOptions},
    wal::{Wal, WalContents},
};
use tokio::{runtime::Runtime, sync::watch};
use tracing::{info, warn};
use transport::{Limits, Timeouts, Transport, TransportConfig, frame_bytes_max};
use types::{ConfState, Entry, LogPosition, MemberId, limits};

pub use announce::*;
pub use auto_compaction::AutoCompaction;
pub use backup::{BACKUPS_MAX, Backup, BackupError, PIECE_BYTES};
pub use config::{Fatal, NodeConfig};
/// Part of [`StartError`]: the daemon tells a log that is older than the state from other damage.
pub use consensus::LoadError;
pub use defrag::DefragmentError;
pub use handle::{Handle, NodeStatus};
pub use live::Tunable;
pub use members::Removal;
pub use pulse::{Beat, Beats, Work};
pub use quorum::Quorum;
pub use records::OwnIdentity;
pub use sentinel::{Expelled, Heard};
pub use shared::Leadership;
pub use watches::{Census, WatchClosed, WatchRequests, WatchResponses, WatchedRange};

use apply_worker::ApplyWorker;
use lessor::LeaseDesk;
use mailbox::{Mailbox, wait_until};
use metrics::Metrics;
use read_gate::ReadGate;
use records::Desk;
use sentinel::Sentinel;
use shared::{Shared, ToRaft};
use waiters::Waiters;
use watches::WatchDesk;

/// I/O threads for peers. Framing is cheap; two let a snapshot's checksums and a busy stream run beside each other.
const PEER_THREADS: usize = 2;

/// What the daemon has opened before the member can run.
pub struct Parts {
    pub wal: Wal,
    pub contents: WalContents,
    /// Bound to the listen-peer-urls.
    pub peer_listeners: Vec<TcpListener>,
    /// Unique to this start of the process.
    pub boot: u64,
    pub identity: OwnIdentity,
    /// Whom a member that joins can answer before its log names anybody. They become peers, or are forgotten, as the log says.
    pub remotes: Vec<Remote>,
}

/// A member of the cluster that is joined, as the cluster itself named it.
#[derive(Clone, Debug)]
pub struct Remote {
    pub id: MemberId,
    pub peer_urls: Vec<String>,
}

/// Why a member does not start. Nothing was changed on disk, unless the state had to catch up with the log before.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("state store: {0}")]
    Store(#[from] storage::state_store::OpenError),
    #[error("state: {0}")]
    State(#[from] state_machine::OpenError),
    #[error("log and state: {0}")]
    Load(#[from] LoadError),
    #[error("the identity file is of life {identity} of the cluster, the state is of {state}")]
    OtherLife { identity: Unique, state: Unique },
    #[error("received snapshot: {0}")]
    Snapshot(#[from] snapshots::SnapshotError),
    #[error("peer transport: {0}")]
    Transport(#[from] transport::StartError),
    #[error("start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl StartError {
    /// No packet of this start has left, so it need not count.
    pub fn comes_before_anybody_is_met(&self) -> bool {
        match self {
            StartError::Store(_)
            | StartError::State(_)
            | StartError::Load(_)
            | StartError::OtherLife { .. }
            | StartError::Snapshot(_) => true,
            StartError::Transport(_) | StartError::Thread(_) => false,
        }
    }
}

/// A running member. Dropped without [`Node::stop`], its threads go on until the process ends.
pub struct Node {
    shared: Arc<Shared>,
    transport: Transport,
    raft: JoinHandle<()>,
    log: JoinHandle<()>,
    apply: JoinHandle<()>,
    keeper: JoinHandle<()>,
    lessor: JoinHandle<()>,
    watches: [JoinHandle<()>; 2],
    runtime: Runtime,
}

impl Node {
    pub fn start(config: NodeConfig, parts: Parts) -> Result<Node, StartError> {
        let Parts { wal, contents, peer_listeners, boot, identity, remotes } = parts;
        snapshots::resume(&config, contents.snapshot)?;
        let store = Arc::new(FjallStore::open(&config.state_dir, store_options(&config))?);
        let checkpoint = load_checkpoint(&config);
        let started = Instant::now();
        let mut machine = StateMachine::open(store.clone(), machine_options(&config), checkpoint.as_deref())?;
        drop(checkpoint);
        let applied = machine.applied();
        let reader = machine.reader();
        info!(
            applied = applied.index.0,
            revision = reader.revision().0,
            keys = reader.key_count(),
            took_ms = started.elapsed().as_millis() as u64,
            "recovered the state"
        );

        same_life(&identity, &reader)?;
        same_history(applied, &contents.entries)?;
        let mut recovered = Recovered {
            hard_state: contents.hard_state,
            conf_state: machine.conf_state(),
            snapshot: contents.snapshot,
            entries: contents.entries,
            applied: applied.index,
        };
        let committed = recovered.committed()?;
        let changes = replay::replay(&mut machine, &recovered.entries, committed, config.replayed);
        recovered.conf_state = machine.conf_state();
        recovered.applied = machine.applied().index;
        let core = Core::new(core_config(&config, boot), recovered)?;

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(PEER_THREADS)
            .thread_name("peer-io")
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::new(
            &config,
            identity,
            &core,
            &machine,
            store,
            runtime.handle().clone(),
            remotes.clone(),
        ));
        let face = Arc::new(peers::PeerFace(Arc::downgrade(&shared)));
        let transport = Transport::start(transport_config(&config, peer_listeners, &runtime), face)?;
        assert!(shared.transport.set(transport.clone()).is_ok(), "a member has one transport");
        peers::follow_members(&shared, &transport, &reader);
        for remote in &remotes {
            transport.add_remote(remote.id, peers::parse_urls(&remote.peer_urls));
        }
        // Removed in an earlier start, which ended before it could say so.
        members::note_removal(&shared, &reader, &changes);

        let wal = Arc::new(Mutex::new(wal));
        let log = spawn("log-writer", {
            let (shared, wal) = (shared.clone(), wal.clone());
            move || log_writer::run(shared, wal)
        })?;
        let worker = ApplyWorker::new(shared.clone(), machine, transport.clone());
        let worker = Arc::new(Mutex::new(worker));
        let apply = spawn("apply", {
            let (shared, worker) = (shared.clone(), worker.clone());
            move || apply_worker::run(shared, worker)
        })?;
        let raft = spawn("raft", {
            let (shared, transport, worker) = (shared.clone(), transport.clone(), worker.clone());
            move || raft_loop::run(shared, core, transport, wal, worker)
        })?;
        let keeper = spawn("keeper", {
            let shared = shared.clone();
            move || keeper::run(shared)
        })?;
        let lessor = spawn("lessor", {
            let shared = shared.clone();
            move || lessor::run(shared)
        })?;
        runtime.spawn(peers::expire_waits(Arc::downgrade(&shared)));
        runtime.spawn(peers::publish(Arc::downgrade(&shared)));
        runtime.spawn(peers::watch_versions(Arc::downgrade(&shared)));
        runtime.spawn(records::run(Arc::downgrade(&shared)));
        runtime.spawn(sentinel::watch(Arc::downgrade(&shared)));
        runtime.spawn(members::ask_who_goes_on(Arc::downgrade(&shared)));
        runtime.spawn(auto_compaction::run(Arc::downgrade(&shared)));
        runtime.spawn(members::promote_learners(Arc::downgrade(&shared)));
        let watches = watches::start(&shared)?;
        Ok(Node { shared, transport, raft, log, apply, keeper, lessor, watches, runtime })
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: self.shared.clone() }
    }

    /// Hands leadership over if this member leads, before its clients are sent away: they find the next leader in office. Waits an election
    /// timeout and a half at most.
    pub fn hand_over(&self) {
        hand_over(&self.shared);
    }

    /// Hands leadership over if this member still leads, lets every thread finish what it has, and makes the state durable. The transfer is
    /// given an election timeout and a half; the rest takes as long as the disk does.
    pub fn stop(self) {
        let Node { shared, transport, raft, log, apply, keeper, lessor, watches, runtime } = self;
        hand_over(&shared);
        shared.stopping.store(true, Ordering::Release);
        keeper.thread().unpark();
        join("keeper", keeper);
        shared.leases.wake();
        join("lessor", lessor);
        shared.raft.push(ToRaft::Stop);
        join("raft", raft);
        shared.raft.close();
        shared.log.close();
        join("log-writer", log);
        shared.apply.close();
        join("apply", apply);
        shared.watch.stop();
        for thread in watches {
            join("watch", thread);
        }
        transport.stop();
        shared.waiters.expire(Instant::now() + Duration::from_secs(1), api::error::EtcdError::Stopped);
        shared.gate.close();
        let checkpoint = keeper::take_checkpoint(&shared.reader());
        if let Err(error) = shared.store().persist() {
            (shared.config.fatal)(Fatal::Store(error.to_string()));
        }
        if let Some(bytes) = checkpoint {
            keeper::save_checkpoint(&shared.config, &bytes);
        }
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// The file may know a life that the state learns from the log: of a cluster that was forced out of the state's.
fn same_life(identity: &OwnIdentity, reader: &Reader<FjallStore>) -> Result<(), StartError> {
    match (identity.cluster_uuid, reader.cluster_uuid()) {
        (Some(file), Some(state)) if file != state && identity.parent_uuid != Some(state) => {
            Err(StartError::OtherLife { identity: file, state })
        }
        _ => Ok(()),
    }
}

/// A log and a state that meet at one index need not belong together: half a backup, or another member's directory, has the index and
/// another term. Where the log begins above the state's position, or a state of an old etcd names no term, there is nothing to compare.
fn same_history(applied: LogPosition, entries: &[Entry]) -> Result<(), LoadError> {
    let at = entries.partition_point(|entry| entry.index < applied.index);
    match entries.get(at).filter(|entry| entry.index == applied.index) {
        Some(entry) if entry.term != applied.term && applied.term.0 > 0 => {
            Err(LoadError::AppliedOtherTerm { index: applied.index, state: applied.term, log: entry.term })
        }
        _ => Ok(()),
    }
}

/// To the voter that has most of the log: it needs the least time to take over.
fn hand_over(shared: &Shared) {
    let me = shared.config.member;
    let status = shared.raft_status.lock().clone();
    if status.role != Role::Leader {
        return;
    }
    let best = status
        .peers
        .iter()
        .filter(|peer| peer.id != me && !peer.learner && peer.recent_active)
        .max_by_key(|peer| peer.matched);
    let Some(best) = best else { return };
    records::close(shared, shared.config.election_timeout() / 2);
    info!(to = %best.id, "handing leadership over before stopping");
    shared.raft.push(ToRaft::input(Input::TransferLeader(best.id)));
    let limit = shared.config.election_timeout() * 3 / 2;
    let moved =
        wait_until(limit, Duration::from_millis(5), || shared.leadership.borrow().role != Role::Leader);
    if !moved {
        warn!(to = %best.id, "leadership was not taken over in time; the others will elect");
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(body)
}

/// A thread that panicked has ended the process already; nothing is left to do with it here.
fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        warn!(thread = name, "thread ended by a panic");
    }
}

fn store_options(config: &NodeConfig) -> StoreOptions {
    let fatal = config.fatal;
    StoreOptions {
        on_fatal: Some(Arc::new(move |error: &str| fatal(Fatal::Store(error.to_owned())))),
        ..StoreOptions::default()
    }
}

fn machine_options(config: &NodeConfig) -> Options {
    Options {
        max_txn_ops: config.max_txn_ops,
        inline_value_bytes_max: config.inline_value_bytes_max,
        quota_backend_bytes: config.quota_backend_bytes,
        progress: config.progress,
    }
}

fn core_config(config: &NodeConfig, boot: u64) -> consensus::Config {
    consensus::Config {
        election_ticks: config.election_ticks,
        pre_vote: config.pre_vote,
        log_tail_entries_keep: config.snapshot_catchup_entries,
        ..consensus::Config::new(config.member, boot)
    }
}

fn transport_config(config: &NodeConfig, listeners: Vec<TcpListener>, runtime: &Runtime) -> TransportConfig {
    TransportConfig {
        runtime: runtime.handle().clone(),
        listeners,
        member: config.member,
        cluster: config.cluster,
        server_version: limits::ETCD_VERSION.to_owned(),
        peer_urls: config.advertise_peer_urls.clone(),
        limits: Limits { frame_bytes_max: frame_bytes_max(config.max_request_bytes), ..Limits::default() },
        timeouts: Timeouts::for_election_timeout(config.election_timeout()),
    }
}

/// A checkpoint only saves time; without one the index is rebuilt from every row.
fn load_checkpoint(config: &NodeConfig) -> Option<Vec<u8>> {
    match storage::checkpoint::load(&config.snap_dir) {
        Ok(loaded) => loaded.payload(),
        Err(error) => {
            warn!(%error, "the index checkpoint cannot be read; the index is rebuilt from the store");
            None
        }
    }
}

fn is_part(member: MemberId, state: &ConfState) -> bool {
    state.voters.contains(&member) || state.learners.contains(&member)
}

fn is_learner(member: MemberId, state: &ConfState) -> bool {
    state.learners.contains(&member) && !state.voters.contains(&member)
}

impl Shared {
    fn new(
        config: &NodeConfig,
        identity: OwnIdentity,
        core: &Core,
        machine: &StateMachine<FjallStore>,
        store: Arc<FjallStore>,
        runtime: tokio::runtime::Handle,
        elders: Vec<Remote>,
    ) -> Shared {
        let joining = !elders.is_empty() && !is_part(config.member, &machine.conf_state());
        let unix_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let status = core.status();
        let leadership = Leadership { leader: MemberId::NONE, term: status.term, role: Role::Follower };
        let applied = machine.applied();
        Shared {
            config: config.clone(),
            arrived: snapshots::Arrived::default(),
            live: watch::Sender::new(config.tunable()),
            pulse: pulse::Pulse::default(),
            raft: Mailbox::new(),
            log: Mailbox::new(),
            apply: Mailbox::new(),
            waiters: Waiters::new(config.member, unix_ms),
            proposal_bytes: AtomicU64::new(0),
            gate: ReadGate::new(),
            watch: WatchDesk::new(unix_ms),
            leases: LeaseDesk::new(config),
            records: Desk::new(identity, &machine.reader(), joining),
            sentinel: Sentinel::new(elders),
            metrics: Metrics::new(),
            defragmentation: defrag::Defragmentation::new(),
            reader: RwLock::new(machine.reader()),
            store: RwLock::new(store),
            leadership: watch::Sender::new(leadership),
            term: AtomicU64::new(status.term.0),
            committed: AtomicU64::new(status.committed.0),
            last_leader_change: Mutex::new(Instant::now()),
            sole_leader: AtomicBool::new(false),
            raft_status: Mutex::new(status),
            applied: AtomicU64::new(applied.index.0),
            applied_term: AtomicU64::new(applied.term.0),
            revision: AtomicI64::new(machine.reader().revision().0),
            compacted: watch::Sender::new(machine.reader().compact_revision().0),
            conf_state: Mutex::new(machine.conf_state()),
            prepared: Default::default(),
            leader: AtomicU64::new(MemberId::NONE.0),
            is_leader: AtomicBool::new(false),
            is_learner: AtomicBool::new(is_learner(config.member, &machine.conf_state())),
            is_joining: AtomicBool::new(joining),
            raising_alarm: AtomicBool::new(false),
            removal: watch::Sender::new(None),
            rumour: members::Rumour::default(),
            stopping: AtomicBool::new(false),
            runtime,
            transport: OnceLock::new(),
        }
    }
}
