//! What the threads of one member share. Each piece has one writer, named beside it; the others read.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use api::error::EtcdError;
use consensus::{
    Status,
    io::{Input, PersistSeq, Proposal, Role},
};
use parking_lot::{Mutex, RwLock};
use state_machine::Reader;
use storage::{snapshot::Waiting, state_store::FjallStore};
use tokio::sync::watch;
use transport::Transport;
use types::{ConfState, LogIndex, MemberId, Term};

use crate::{
    apply_worker::ToApply,
    config::NodeConfig,
    defrag::Defragmentation,
    lessor::{Decided, LeaseDesk},
    live::Tunable,
    log_writer::ToLog,
    mailbox::Mailbox,
    members::{Removal, Rumour},
    metrics::Metrics,
    pulse::Pulse,
    read_gate::ReadGate,
    records::Desk,
    sentinel::Sentinel,
    snapshots::{Arrived, Outgoing},
    waiters::Waiters,
    watches::WatchDesk,
};

/// To the raft loop, which owns the core.
pub(crate) enum ToRaft {
    /// From clients; limited by [`PROPOSALS_QUEUED_MAX`].
    Propose(Proposal),
    /// Readers gather at the gate; at most one of these is queued.
    ReadersWait,
    /// From peers ([`MESSAGES_QUEUED_MAX`]) and from the member's own threads (a handful each).
    Input(Box<Input>),
    Persisted(PersistSeq),
    /// A snapshot file for a peer is ready to be streamed.
    SnapshotReady(Outgoing),
    /// From the lessor, to be proposed in the term in which it was decided or not at all; waits with the proposals.
    Decided(Box<Decided>),
    /// The first life is where it belongs: writes may be taken.
    LifeIsKept,
    Stop,
}

impl ToRaft {
    /// Boxed, since a message is many times larger than a proposal, of which most of the queue consists.
    pub(crate) fn input(input: Input) -> ToRaft {
        ToRaft::Input(Box::new(input))
    }
}

/// Proposals queued before the raft loop has seen them. The loop empties the queue on each turn, so reaching this means that it is
/// stalled, and "too many requests" is the honest answer.
pub(crate) const PROPOSALS_QUEUED_MAX: usize = 16 * 1024;

/// Bytes of proposals that the core has not taken yet: queued while a sync runs or hangs, or parked without a leader. As much as the core
/// itself takes uncommitted; by their number alone they could be 24 GiB.
pub(crate) const PROPOSAL_BYTES_QUEUED_MAX: u64 = 256 * 1024 * 1024;

/// Things queued for the raft loop before messages from peers are dropped, which raft tolerates. Twice the proposals' bound, so that a
/// burst of clients never silences the peers.
pub(crate) const MESSAGES_QUEUED_MAX: usize = 32 * 1024;

/// Two looks of the raft loop at what it has parked.
const EXPIRY_GRACE: Duration = Duration::from_secs(1);

/// Who leads, as this member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub leader: MemberId,
    pub term: Term,
    pub role: Role,
}

impl Leadership {
    /// This member leads.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}

pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    /// Snapshots from a leader on their way to raft.
    pub(crate) arrived: Arrived,
    /// What of it may change, as it is now.
    pub(crate) live: watch::Sender<Tunable>,
    /// Written by the loops.
    pub(crate) pulse: Pulse,
    pub(crate) raft: Mailbox<ToRaft>,
    pub(crate) log: Mailbox<ToLog>,
    pub(crate) apply: Mailbox<ToApply>,
    pub(crate) waiters: Waiters,
    /// Added by clients' threads, taken off by the raft loop; limited by [`PROPOSAL_BYTES_QUEUED_MAX`].
    pub(crate) proposal_bytes: AtomicU64,
    pub(crate) gate: ReadGate,
    pub(crate) watch: WatchDesk,
    pub(crate) leases: LeaseDesk,
    pub(crate) records: Desk,
    pub(crate) sentinel: Sentinel,
    pub(crate) metrics: Metrics,
    pub(crate) defragmentation: Defragmentation,
    /// Swapped by the apply worker when a snapshot is installed.
    pub(crate) reader: RwLock<Reader<FjallStore>>,
    pub(crate) store: RwLock<Arc<FjallStore>>,
    /// Written by the raft loop.
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) term: AtomicU64,
    pub(crate) committed: AtomicU64,
    /// The same as in `leadership`, for those who ask once per request.
    pub(crate) leader: AtomicU64,
    pub(crate) is_leader: AtomicBool,
    pub(crate) last_leader_change: Mutex<Instant>,
    /// This member leads, is the only voter, and has applied an entry of its own term: whatever was acknowledged is applied here, and
    /// nobody else can acknowledge anything, so a read needs no round.
    pub(crate) sole_leader: AtomicBool,
    pub(crate) raft_status: Mutex<Status>,
    /// Written by the apply worker.
    pub(crate) applied: AtomicU64,
    /// Term of the newest entry whose outcome was told.
    pub(crate) applied_term: AtomicU64,
    pub(crate) is_learner: AtomicBool,
    pub(crate) is_joining: AtomicBool,
    /// Of the state, for those who must not wait for the state's lock: never ahead of it, and not behind what anybody was told.
    pub(crate) revision: AtomicI64,
    pub(crate) compacted: watch::Sender<i64>,
    /// Who votes and who learns as of `applied`. For a position other than that ask the state itself ([`crate::snapshots::conf_state`]).
    pub(crate) conf_state: Mutex<ConfState>,
    /// What was built of a snapshot that arrived.
    pub(crate) prepared: Waiting,
    /// A NOSPACE alarm of this member is on its way into the log.
    pub(crate) raising_alarm: AtomicBool,
    /// Set once, when this member knows of its own removal.
    pub(crate) removal: watch::Sender<Option<Removal>>,
    pub(crate) rumour: Rumour,
    pub(crate) stopping: AtomicBool,
    pub(crate) runtime: tokio::runtime::Handle,
    /// The way to the peers, for those who ask them something. Set once, when the member starts; it answers to this very struct.
    pub(crate) transport: OnceLock<Transport>,
}

impl Shared {
    /// Room in the queue for a proposal of so many bytes. One that is larger than all the room fits when nothing else is queued.
    pub(crate) fn reserve_proposal(&self, bytes: u64) -> bool {
        let before = self.proposal_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(bytes) <= PROPOSAL_BYTES_QUEUED_MAX;
        if !fits {
            self.release_proposals(bytes);
        }
        fits
    }

    pub(crate) fn release_proposals(&self, bytes: u64) {
        self.proposal_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn live(&self) -> Tunable {
        *self.live.borrow()
    }

    pub(crate) fn applied(&self) -> LogIndex {
        LogIndex(self.applied.load(Ordering::Acquire))
    }

    pub(crate) fn committed(&self) -> LogIndex {
        LogIndex(self.committed.load(Ordering::Acquire))
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    pub(crate) fn reader(&self) -> Reader<FjallStore> {
        self.reader.read().clone()
    }

    pub(crate) fn store(&self) -> Arc<FjallStore> {
        self.store.read().clone()
    }

    /// Who votes and who learns from now on. By the apply worker, when it is in force.
    pub(crate) fn note_conf_state(&self, state: ConfState) {
        self.is_learner.store(crate::is_learner(self.config.member, &state), Ordering::Release);
        if crate::is_part(self.config.member, &state) {
            self.is_joining.store(false, Ordering::Release);
        }
        *self.conf_state.lock() = state;
    }

    /// Ends the waits whose time is over. Run apart from the threads that may wait for a disk: whatever hangs, clients are told.
    pub(crate) fn expire_waits(&self, now: Instant) {
        let limit = self.config.request_timeout();
        // The raft loop goes first with what it has parked: it knows more about that.
        let Some(deadline) = now.checked_sub(limit + EXPIRY_GRACE) else { return };
        let error = if now.duration_since(*self.last_leader_change.lock()) < limit {
            EtcdError::TimeoutDueToLeaderFail
        } else if self.leader.load(Ordering::Acquire) == MemberId::NONE.0 {
            EtcdError::NoLeader
        } else {
            EtcdError::Timeout
        };
        let expired = self.waiters.expire(deadline, error);
        self.metrics.proposals_failed.add(expired as u64);
        self.gate.expire(deadline, error);
    }

    /// Until the first configuration with this member in it is in force; never again afterwards.
    pub(crate) fn is_joining(&self) -> bool {
        self.is_joining.load(Ordering::Acquire)
    }

    pub(crate) fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Acquire)
    }
}
