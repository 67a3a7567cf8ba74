//! Which keys appeared and vanished lately, so that a count at a revision of a moment ago (a list that continues page by page at its
//! first page's revision) costs a look at the changes since, not a walk over the range.

use std::collections::VecDeque;

use types::KeyRange;

/// Changes remembered. Scanning all of them costs about as much as walking a few pages of a list.
const CHANGES_MAX: usize = 16 * 1024;
/// Key bytes remembered, so that long keys do not make this a cache of keys.
const KEY_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug)]
struct Change {
    main: i64,
    key: Box<[u8]>,
    /// True when the key came into being, false when it was deleted.
    born: bool,
}

/// See the module text.
#[derive(Debug)]
pub(crate) struct RecentChanges {
    changes: VecDeque<Change>,
    key_bytes: usize,
    /// All changes above this revision are here.
    complete_above: i64,
}

impl RecentChanges {
    pub fn starting_at(revision: i64) -> RecentChanges {
        RecentChanges { changes: VecDeque::new(), key_bytes: 0, complete_above: revision }
    }

    pub fn note(&mut self, main: i64, key: &[u8], born: bool) {
        self.changes.push_back(Change { main, key: Box::from(key), born });
        self.key_bytes += key.len();
        while self.changes.len() > CHANGES_MAX || self.key_bytes > KEY_BYTES_MAX {
            let Some(gone) = self.changes.pop_front() else { break };
            self.key_bytes -= gone.key.len();
            self.complete_above = gone.main;
        }
    }

    /// Live keys in the range at `revision`, given how many there are now; None when that is too long ago.
    pub fn count_at(&self, revision: i64, range: &KeyRange, now: u64) -> Option<u64> {
        if revision < self.complete_above {
            return None;
        }
        let mut count = now as i64;
        for change in self.changes.iter().rev().take_while(|change| change.main > revision) {
            if range.contains(&change.key) {
                count += if change.born { -1 } else { 1 };
            }
        }
        Some(u64::try_from(count).expect("a range never held fewer keys than none"))
    }
}
