//! Recent history in memory: the revisions that were just told, without a gap, bounded in number and bytes. A watcher that fell behind a
//! little is caught up from here and never touches the store. Previous versions, where a watcher asked for them, are not counted: they at
//! most double it.

use std::{collections::VecDeque, sync::Arc};

use types::Revision;

use crate::events::RevisionEvents;

#[derive(Debug)]
pub(crate) struct Ring {
    revisions: VecDeque<Arc<RevisionEvents>>,
    bytes: usize,
    revisions_max: usize,
    bytes_max: usize,
}

impl Ring {
    pub(crate) fn new(revisions_max: usize, bytes_max: usize) -> Ring {
        Ring { revisions: VecDeque::new(), bytes: 0, revisions_max, bytes_max }
    }

    /// The revision after the newest one, or the first of all.
    pub(crate) fn push(&mut self, events: Arc<RevisionEvents>) {
        if let Some(newest) = self.revisions.back() {
            assert_eq!(newest.revision.next(), events.revision, "recent history has no gap");
        }
        self.bytes += events.memory_bytes();
        self.revisions.push_back(events);
        while self.revisions.len() > self.revisions_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.revisions.pop_front() else { break };
            self.bytes -= oldest.memory_bytes();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.revisions = VecDeque::new();
        self.bytes = 0;
    }

    pub(crate) fn get(&self, revision: Revision) -> Option<&Arc<RevisionEvents>> {
        let oldest = self.revisions.front()?.revision.0;
        let at = usize::try_from(revision.0.checked_sub(oldest)?).ok()?;
        self.revisions.get(at)
    }
}
