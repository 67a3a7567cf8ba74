//! What goes into the core and what comes out of it. The driver feeds [`Input`]s, obeys [`Output`]s and decides nothing.

use api::raftpb;
use bytes::Bytes;
use types::{ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

/// Names one proposal between core and driver. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// Names one waiting read between core and driver. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// Numbers the Persist outputs from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistSeq(pub u64);

#[derive(Clone, Debug)]
pub struct Proposal {
    pub id: ProposalId,
    pub kind: EntryKind,
    pub data: Bytes,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "inputs are handed over one by one and not kept; a box would cost every message an allocation"
)]
pub enum Input {
    /// One heartbeat interval has passed.
    Tick,
    /// From a peer. Whatever it holds, it is either stepped or reported; it never stops the core.
    Message(raftpb::Message),
    /// Gathered into one raft message.
    Propose(Vec<Proposal>),
    /// A leader's conf change that changes nothing of the configuration (an update of a member). It is taken while no other conf change may
    /// be unapplied, nobody's conf change waits for it, and it is never passed on to another leader.
    Note(Proposal),
    /// A linearizable read; joins the next round, never one in flight.
    Read(ReadTicket),
    /// Every Persist output up to and including this one is on disk.
    Persisted(PersistSeq),
    /// Apply has finished everything up to `index`. Every conf-change entry up to it is listed with the change that raft must make,
    /// or None when apply refused it.
    Applied {
        index: LogIndex,
        conf_changes: Vec<(LogIndex, Option<raftpb::ConfChangeV2>)>,
    },
    /// The transport could not reach the peer.
    Unreachable(MemberId),
    /// A snapshot stream to the peer ended.
    SnapshotStatus {
        to: MemberId,
        ok: bool,
    },
    TransferLeader(MemberId),
    Campaign,
    /// The state store is durable through here: older log may be forgotten, apart from the tail kept for slow followers. Anything above
    /// what was applied is left alone. (`conf_state` is for the driver's own snapshot record; the core needs none.)
    Compact {
        through: LogPosition,
        conf_state: ConfState,
    },
    /// The driver has installed the snapshot that [`Output::InstallSnapshot`] asked for; state is now at `position`.
    SnapshotInstalled {
        position: LogPosition,
    },
}

/// To be written to the log in one go, in this order: snapshot record, entries, hard state.
#[derive(Clone, Debug)]
pub struct Persist {
    pub seq: PersistSeq,
    pub snapshot: Option<(LogPosition, ConfState)>,
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// False when only the commit moved: such a record may be lost.
    pub must_sync: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    NoLeader,
    LeaderChanged,
    /// The leader has not committed in its term yet (regression RD03).
    NoCommitInTerm,
    /// raft dropped the round without saying why; asking again is always safe.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    NoLeader,
    /// A leadership transfer is in progress.
    Transferring,
    /// Uncommitted entries already exceed the bound.
    TooMuchUncommitted,
    /// A conf change while an earlier one may still be unapplied. raft itself would turn it into an empty entry.
    ConfChangePending,
    /// This member leads and was asked to remove itself while others vote. It hands leadership over instead; asked again, the next leader
    /// does it.
    HandsOver,
    /// Not one that a log can hold: a joint change, or a conf change that does not decode.
    Malformed,
}

/// Something that a correct peer or driver does not do. For the log; the core went on unharmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Stable name, for rate limits and tests.
    pub kind: &'static str,
    pub from: MemberId,
    pub text: String,
}

#[derive(Clone, Debug)]
pub enum Output {
    Persist(Persist),
    /// May leave at once: messages that must wait for the disk come out only after it.
    Send(Vec<raftpb::Message>),
    /// Committed, persisted here, contiguous with the last.
    Apply(Vec<Entry>),
    /// The state may be read for these tickets once `index` is applied.
    ReadReady {
        tickets: Vec<ReadTicket>,
        index: LogIndex,
    },
    /// The round failed; the driver feeds the tickets again or gives up at their deadline.
    ReadRetry {
        tickets: Vec<ReadTicket>,
        reason: RetryReason,
    },
    ProposalDropped {
        ids: Vec<ProposalId>,
        reason: DropReason,
    },
    Leadership {
        leader: MemberId,
        term: Term,
        role: Role,
    },
    /// Leader: this peer needs what the log no longer holds. The driver streams a snapshot of its state at some applied position,
    /// built with [`Core::snapshot_message`](crate::Core::snapshot_message), and ends with [`Input::SnapshotStatus`].
    SendSnapshot {
        to: MemberId,
    },
    /// Follower: a snapshot was accepted, its bytes are already here. Install it, then [`Input::SnapshotInstalled`].
    InstallSnapshot {
        position: LogPosition,
        conf_state: ConfState,
    },
    /// Follower: a MsgSnap was not accepted (too old, garbage, another one is being installed). Its bytes may be thrown away. Not said of
    /// a copy of the very snapshot that is being installed, whose bytes are in use.
    SnapshotIgnored {
        position: LogPosition,
    },
    Report(Report),
}
