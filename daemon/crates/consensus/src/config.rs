//! What a core starts from: its settings and what was found on disk, checked before raft sees it. raft-rs panics on states that an
//! operator can produce by restoring half a backup; here each of them is an error that says what was found.

use raft::eraftpb;
use types::{ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

/// No term, index or commit can be larger: at a million steps a second it takes 146,000 years to get there. Anything above is garbage,
/// and refusing it keeps the additions inside raft from overflowing.
pub const COORDINATE_MAX: u64 = 1 << 62;

/// Settings of one core. All members of a cluster should agree on the ticks.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: MemberId,
    /// Ticks without a leader before a member campaigns; the real time-out is drawn from this to twice this. More than `heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between heartbeats; at least 1.
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    /// Bytes of entries in one append message, and in one Apply; a single larger entry travels alone.
    pub append_bytes_max: u64,
    /// Append messages on the way to one peer without an answer.
    pub inflight_messages_max: usize,
    /// Bytes of entries proposed and not yet committed, past which proposals are dropped.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries handed out to be written and not yet confirmed, past which neither proposals nor appends are taken. The log in
    /// memory can forget nothing of them.
    pub unpersisted_bytes_max: u64,
    /// The log in memory forgets what Compact allows when it is larger than this, even for slow peers.
    pub log_tail_bytes_max: u64,
    /// The same while a peer is fed by snapshot: what it will need after the snapshot is kept, up to this much. Past it the peer is given up
    /// and begins again when there is less to do.
    pub log_feed_bytes_max: u64,
    /// Entries kept below the compacted position, for slow peers.
    pub log_tail_entries_keep: u64,
    /// Unique for each start of the process; part of every read context, so that an answer to a former life confirms nothing.
    pub boot: u64,
}

/// As in etcd: 512 messages of at most 1 MiB on the way to a peer.
const INFLIGHT_MESSAGES_MAX_DEFAULT: usize = 512;
/// Past this much a leader without quorum only piles up memory; etcd has no such bound and grows.
const UNCOMMITTED_BYTES_MAX_DEFAULT: u64 = 256 * 1024 * 1024;
/// As much as a leader has on the way to one peer, so that only a disk that hangs gets here. Without it a leader whose disk hangs would
/// go on to commit with the others and keep all of it in memory.
const UNPERSISTED_BYTES_MAX_DEFAULT: u64 = 512 * 1024 * 1024;
/// Enough for a follower that was away for four seconds at fifty thousand puts of 300 bytes a second; past it a snapshot is cheaper than
/// the memory.
const LOG_TAIL_BYTES_MAX_DEFAULT: u64 = 64 * 1024 * 1024;
/// A state of 8 GiB takes five minutes at the default pace; this is what comes in meanwhile at five thousand puts of 300 bytes a second.
/// With the usual bound such a peer would be given one snapshot after the other for ever.
const LOG_FEED_BYTES_MAX_DEFAULT: u64 = 512 * 1024 * 1024;
/// etcd's `snapshot-catchup-entries`.
const LOG_TAIL_ENTRIES_KEEP_DEFAULT: u64 = 5000;

impl Config {
    /// etcd's defaults: an election after ten heartbeats, pre-vote on.
    pub fn new(id: MemberId, boot: u64) -> Config {
        Config {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            append_bytes_max: types::limits::APPEND_BYTES_MAX,
            inflight_messages_max: INFLIGHT_MESSAGES_MAX_DEFAULT,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX_DEFAULT,
            unpersisted_bytes_max: UNPERSISTED_BYTES_MAX_DEFAULT,
            log_tail_bytes_max: LOG_TAIL_BYTES_MAX_DEFAULT,
            log_feed_bytes_max: LOG_FEED_BYTES_MAX_DEFAULT,
            log_tail_entries_keep: LOG_TAIL_ENTRIES_KEEP_DEFAULT,
            boot,
        }
    }

    pub(crate) fn to_raft(&self, applied: LogIndex) -> raft::Config {
        raft::Config {
            id: self.id.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: self.append_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: self.pre_vote,
            read_only_option: raft::ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: false,
            priority: 0,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: self.append_bytes_max,
            ..raft::Config::default()
        }
    }
}

/// What was found on disk. A new member has all of it empty.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub hard_state: HardState,
    /// As of `applied`.
    pub conf_state: ConfState,
    /// The entries begin after this.
    pub snapshot: LogPosition,
    pub entries: Vec<Entry>,
    /// What the state holds; entries above it are handed out again.
    pub applied: LogIndex,
}

impl Recovered {
    /// Whether a member can have left this behind, and up to where it is known to be committed.
    ///
    /// # Errors
    /// As [`crate::Core::new`].
    pub fn committed(&self) -> Result<LogIndex, LoadError> {
        check_recovered(self).map(|checked| LogIndex(checked.hard_state.commit))
    }
}

/// Why the state on disk is none that a member can have left behind. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("raft settings: {0}")]
    Config(String),
    #[error(
        "hard state has commit {commit}, but the log ends at {last}: {} committed entries are missing",
        commit.0 - last.0
    )]
    CommitBeyondLog { commit: LogIndex, last: LogIndex },
    #[error(
        "state is applied through {applied}, but the log ends at {last}: the log is older than the state"
    )]
    AppliedBeyondLog { applied: LogIndex, last: LogIndex },
    #[error(
        "state is applied through {applied}, but the log begins after {snapshot}: entries between are missing"
    )]
    AppliedBelowLog { applied: LogIndex, snapshot: LogIndex },
    #[error(
        "state was made from entry {index} of term {state}, but the log's has term {log}: they belong to different members or times"
    )]
    AppliedOtherTerm { index: LogIndex, state: Term, log: Term },
    #[error(
        "hard state has term {term}, but the log ends with term {last}: the hard state is older than the log"
    )]
    TermBehindLog { term: Term, last: Term },
    #[error("log holds index {found} where {expected} belongs")]
    EntryOutOfPlace { expected: LogIndex, found: LogIndex },
    #[error("entry {index} has term {term}, after term {before}")]
    EntryTerm { index: LogIndex, term: Term, before: Term },
    #[error("entry {0} is a joint configuration change, which neither etcd nor cairn writes")]
    EntryKind(LogIndex),
    #[error("log begins after {0}, which no log can")]
    SnapshotPosition(LogPosition),
    #[error("configuration {state:?}: {reason}")]
    ConfState { state: ConfState, reason: &'static str },
    #[error("{what} {value} is beyond any that can be reached")]
    Absurd { what: &'static str, value: u64 },
    #[error("raft: {0}")]
    Raft(String),
}

/// What raft-rs needs to hold of a configuration, so that restoring it does not panic. Empty is legal: a joiner knows nobody yet.
pub(crate) fn check_conf_state(state: &ConfState) -> Result<(), &'static str> {
    if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave {
        return Err("joint configurations are not supported");
    }
    if state.voters.is_empty() && !state.learners.is_empty() {
        return Err("learners without a voter");
    }
    let mut all: Vec<MemberId> = state.voters.iter().chain(&state.learners).copied().collect();
    all.sort_unstable();
    if all.first().is_some_and(|id| id.is_none()) {
        return Err("member 0");
    }
    if all.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("a member stands in it twice");
    }
    Ok(())
}

/// A recovered state that raft accepts: the commit raised to what is known to be committed.
pub(crate) struct Checked {
    pub hard_state: eraftpb::HardState,
    pub applied: LogIndex,
    pub last: LogPosition,
}

pub(crate) fn check_recovered(recovered: &Recovered) -> Result<Checked, LoadError> {
    let Recovered { hard_state, conf_state, snapshot, entries, applied } = recovered;
    for (what, value) in [
        ("term", hard_state.term.0),
        ("commit", hard_state.commit.0),
        ("snapshot index", snapshot.index.0),
        ("snapshot term", snapshot.term.0),
        ("applied index", applied.0),
        ("last term", entries.last().map_or(0, |entry| entry.term.0)),
    ] {
        if value > COORDINATE_MAX {
            return Err(LoadError::Absurd { what, value });
        }
    }
    check_conf_state(conf_state)
        .map_err(|reason| LoadError::ConfState { state: conf_state.clone(), reason })?;
    if (snapshot.index.0 == 0) != (snapshot.term.0 == 0) {
        return Err(LoadError::SnapshotPosition(*snapshot));
    }

    let mut last = *snapshot;
    for entry in entries {
        if entry.index != last.index.next() {
            return Err(LoadError::EntryOutOfPlace { expected: last.index.next(), found: entry.index });
        }
        if entry.term.0 == 0 || entry.term < last.term {
            return Err(LoadError::EntryTerm { index: entry.index, term: entry.term, before: last.term });
        }
        if entry.kind == EntryKind::ConfChangeV2 {
            return Err(LoadError::EntryKind(entry.index));
        }
        last = entry.position();
    }
    if hard_state.term < last.term {
        return Err(LoadError::TermBehindLog { term: hard_state.term, last: last.term });
    }
    if hard_state.commit > last.index {
        return Err(LoadError::CommitBeyondLog { commit: hard_state.commit, last: last.index });
    }
    if *applied > last.index {
        return Err(LoadError::AppliedBeyondLog { applied: *applied, last: last.index });
    }
    if *applied < snapshot.index {
        return Err(LoadError::AppliedBelowLog { applied: *applied, snapshot: snapshot.index });
    }
    // A commit alone is not synced, so the state may know of more than the hard state does. What was applied was committed, and so was
    // whatever a snapshot holds.
    let commit = hard_state.commit.max(*applied);
    let raft_state = eraftpb::HardState {
        term: hard_state.term.0,
        vote: hard_state.vote.0,
        commit: commit.0,
        ..eraftpb::HardState::default()
    };
    Ok(Checked { hard_state: raft_state, applied: *applied, last })
}
