//! What a core says about itself. Values, taken at one moment.

use types::{LogIndex, MemberId, Term};

use crate::io::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// The leader looks for where the logs agree, one message at a time.
    Probe,
    /// Entries flow.
    Replicate,
    /// A snapshot is on its way; no entries are sent.
    Snapshot,
}

/// A member as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: MemberId,
    pub learner: bool,
    /// It holds everything up to here, durably.
    pub matched: LogIndex,
    pub next: LogIndex,
    pub state: PeerState,
    /// It was heard of since the last check of the quorum, at most an election time-out ago.
    pub recent_active: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: MemberId,
    pub role: Role,
    pub term: Term,
    /// `MemberId::NONE` when none is known.
    pub leader: MemberId,
    /// This member may campaign: it is a voter of its own configuration.
    pub voter: bool,
    pub committed: LogIndex,
    /// Durable here.
    pub persisted: LogIndex,
    pub applied: LogIndex,
    /// The log in memory.
    pub first_index: LogIndex,
    pub last_index: LogIndex,
    pub log_tail_bytes: u64,
    pub lead_transferee: Option<MemberId>,
    /// On a leader every member of the configuration, itself included, by id; empty elsewhere.
    pub peers: Vec<Peer>,
}
