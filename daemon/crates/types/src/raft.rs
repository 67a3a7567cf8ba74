//! What consensus, the write-ahead log and apply hand to each other. Free of any raft library's types.

use bytes::Bytes;

use crate::{LogIndex, LogPosition, MemberId, Term};

/// Numbers as on etcd's wire and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EntryKind {
    #[default]
    Normal = 0,
    ConfChange = 1,
    ConfChangeV2 = 2,
}

/// One entry of the replicated log. `data` is never decoded and encoded again: its bytes are compared across members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub term: Term,
    pub index: LogIndex,
    pub kind: EntryKind,
    pub data: Bytes,
}

impl Entry {
    pub fn position(&self) -> LogPosition {
        LogPosition { term: self.term, index: self.index }
    }
}

/// What a member must remember to keep its promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    pub vote: MemberId,
    /// Highest index known to be committed; may lag on disk, since a commit alone is not synced.
    pub commit: LogIndex,
}

/// Who votes and who only listens, at one log index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    pub voters: Vec<MemberId>,
    pub learners: Vec<MemberId>,
    pub voters_outgoing: Vec<MemberId>,
    pub learners_next: Vec<MemberId>,
    pub auto_leave: bool,
}
