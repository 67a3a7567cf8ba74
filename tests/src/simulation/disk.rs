//! A member's disk: log and state, of which only what was synced survives a crash. What was written and not confirmed may survive in
//! part, in order, as on a real disk.

use std::collections::BTreeMap;

use consensus::io::Persist;
use state_machine::Memory;
use types::{Entry, HardState, LogIndex, LogPosition, Term};

use super::sentry::Papers;

#[derive(Clone, Default)]
pub struct Disk {
    pub papers: Papers,
    /// The truth, which nobody in the cluster knows: it lacks something that its member once promised.
    pub is_damaged: bool,
    /// The truth too: which life of the cluster it is of. The first is 0.
    pub lineage: u32,
    /// Where it is: all that its member had on disk when that was lost.
    pub lost: Option<(LogPosition, HardState)>,
    pub hard_state: HardState,
    /// A commit that was written without sync.
    pub unsynced: Option<HardState>,
    /// The log begins after this.
    pub snapshot: LogPosition,
    pub entries: Vec<Entry>,
    /// The state store as it was last made durable.
    pub state: Memory,
    /// Received snapshots, kept until they are installed or ignored.
    pub received: BTreeMap<LogPosition, Memory>,
}

impl Disk {
    pub fn write(&mut self, persist: &Persist) {
        if !persist.must_sync {
            self.unsynced = persist.hard_state.or(self.unsynced);
            return;
        }
        if let Some(hard_state) = self.unsynced.take() {
            self.hard_state = hard_state;
        }
        if let Some((position, _)) = &persist.snapshot {
            self.snapshot = *position;
            self.entries.clear();
        }
        if let Some(first) = persist.entries.first() {
            assert!(
                first.index.0 <= self.last().index.0 + 1 && first.index > self.snapshot.index,
                "a write at {} leaves no gap after {}",
                first.index,
                self.last()
            );
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(persist.entries.iter().cloned());
        }
        if let Some(hard_state) = persist.hard_state {
            self.hard_state = hard_state;
        }
    }

    pub fn crash(&mut self, unsynced_survives: bool) {
        if let Some(hard_state) = self.unsynced.take()
            && unsynced_survives
        {
            self.hard_state = hard_state;
        }
    }

    /// A snapshot of what is committed may reach the successor of the start that it was made for, whose promises about the log it then keeps:
    /// whatever of them counted for a commit is in it. With the term and the vote that were lost nothing is lacking any more.
    pub fn is_whole_again(&self) -> bool {
        self.is_damaged
            && self.lost.is_some_and(|(last, before)| {
                let now = self.hard_state;
                let votes = before.vote.is_none() || before.vote == now.vote;
                self.snapshot.index >= last.index
                    && (now.term > before.term || (now.term == before.term && votes))
            })
    }

    pub fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.snapshot, Entry::position)
    }

    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        let offset = index.0.checked_sub(self.snapshot.index.0 + 1)?;
        self.entries.get(offset as usize).map(|entry| entry.term)
    }

    /// Drops what the durable state makes superfluous.
    pub fn release(&mut self, through: LogPosition) {
        if through.index > self.snapshot.index && self.term_at(through.index) == Some(through.term) {
            self.entries.retain(|entry| entry.index > through.index);
            self.snapshot = through;
        }
    }
}
