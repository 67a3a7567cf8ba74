//! The end of the log, in memory: what raft reads. Entries are here from the moment they are handed to the log writer, durable or not;
//! which of them are durable is raft's own number (`persisted`).
//!
//! Not here: the disk. Whoever needs what was forgotten gets a snapshot.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{self, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};
use types::{LogIndex, LogPosition, MemberId, Term};

/// What an entry costs beside its data: the struct and its share of the deque.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

pub(crate) struct Tail {
    /// Used once, when raft starts.
    initial: RaftState,
    /// The position before the first entry; its term is kept for matching.
    base: LogPosition,
    entries: VecDeque<eraftpb::Entry>,
    bytes: u64,
    /// Peers for which raft asked for a snapshot since the last look. Raft asks through a shared reference.
    wishes: RefCell<Vec<MemberId>>,
}

/// What an entry takes in memory.
pub(crate) fn cost(entry: &eraftpb::Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Tail {
    pub fn new(initial: RaftState, base: LogPosition, entries: Vec<eraftpb::Entry>) -> Tail {
        let bytes = entries.iter().map(cost).sum();
        Tail { initial, base, entries: entries.into(), bytes, wishes: RefCell::default() }
    }

    pub fn first(&self) -> LogIndex {
        self.base.index.next()
    }

    pub fn last(&self) -> LogIndex {
        LogIndex(self.base.index.0 + self.entries.len() as u64)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The term at an index that is in memory, or just below it.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        let offset = index.0.checked_sub(self.first().0)?;
        self.entries.get(offset as usize).map(|entry| Term(entry.term))
    }

    /// Appends, first dropping whatever stood at these indexes: a new leader may overwrite what an old one left.
    pub fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first().0 && first.index <= self.last().0 + 1,
            "appended entries begin at {} and touch the log {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        let keep = (first.index - self.first().0) as usize;
        for entry in self.entries.drain(keep..) {
            self.bytes -= cost(&entry);
        }
        self.bytes += entries.iter().map(cost).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// A snapshot takes the place of the whole log.
    pub fn restore(&mut self, position: LogPosition) {
        self.entries.clear();
        self.bytes = 0;
        self.base = position;
    }

    /// Forgets entries up to `wanted`, and as far as `through` while the rest has more than `bytes_max`.
    pub fn forget(&mut self, wanted: LogIndex, through: LogIndex, bytes_max: u64) {
        let through = through.min(self.last());
        while self.base.index < through && (self.base.index < wanted || self.bytes > bytes_max) {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= cost(&entry);
            self.base = LogPosition { term: Term(entry.term), index: LogIndex(entry.index) };
        }
    }

    pub fn take_wishes(&mut self) -> Vec<MemberId> {
        std::mem::take(self.wishes.get_mut())
    }
}

impl raft::Storage for Tail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low < self.first().0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let from = (low - self.first().0) as usize;
        let to = (high - self.first().0) as usize;
        let mut size = 0u64;
        let mut out = Vec::new();
        for entry in self.entries.range(from..to.max(from)) {
            // Tag and length bytes of the four fields; raft-rs checks the exact size again.
            size = size.saturating_add(entry.data.len() as u64 + 16);
            if !out.is_empty() && size > max {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(LogIndex(index)) {
            Some(term) => Ok(term.0),
            None if index < self.base.index.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    /// Never there at once: the wish is noted, the driver makes the snapshot, and the core itself puts the peer's progress into the
    /// snapshot state when the message is built.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        self.wishes.borrow_mut().push(MemberId(to));
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::Storage as _;

    fn entry(index: u64, term: u64) -> eraftpb::Entry {
        eraftpb::Entry { index, term, data: vec![0u8; 100].into(), ..eraftpb::Entry::default() }
    }

    fn tail(from: u64, to: u64) -> Tail {
        let base = LogPosition { term: Term(1), index: LogIndex(from - 1) };
        Tail::new(RaftState::default(), base, (from..=to).map(|index| entry(index, 1)).collect())
    }

    #[test]
    fn an_overlapping_append_replaces_the_rest() {
        let mut log = tail(1, 5);
        log.append(&[entry(4, 2)]);
        assert_eq!(log.last(), LogIndex(4));
        assert_eq!(log.term(4).unwrap(), 2);
        assert_eq!(log.bytes(), 4 * (100 + ENTRY_OVERHEAD_BYTES));
    }

    #[test]
    fn forgetting_keeps_a_tail_and_the_term_below_it() {
        let mut log = tail(1, 100);
        log.forget(LogIndex(40), LogIndex(50), u64::MAX);
        assert_eq!((log.first(), log.last()), (LogIndex(41), LogIndex(100)));
        assert_eq!(log.term(40).unwrap(), 1, "the term before the first entry stays, to match appends");
        assert!(log.term(39).is_err() && log.entries(40, 42, None, GetEntriesContext::empty(false)).is_err());
    }

    #[test]
    fn forgetting_for_bytes_stops_at_what_is_durable_elsewhere() {
        let mut log = tail(1, 100);
        log.forget(LogIndex(0), LogIndex(50), 0);
        assert_eq!(
            log.first(),
            LogIndex(51),
            "over the bound, the kept tail goes, and nothing above `through`"
        );
        log.forget(LogIndex(1000), LogIndex(1000), 0);
        assert_eq!((log.first(), log.last()), (LogIndex(101), LogIndex(100)));
        assert_eq!(log.bytes(), 0);
    }

    #[test]
    fn reads_are_bounded_by_bytes_but_never_empty() {
        let log = tail(1, 10);
        let read = |max: u64| log.entries(1, 11, Some(max), GetEntriesContext::empty(false)).unwrap().len();
        assert_eq!((read(0), read(300), read(u64::MAX)), (1, 2, 10));
    }
}
