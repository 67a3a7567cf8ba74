//! The ordered index: every key with the coordinates of its versions, and the newest version in full.
//!
//! A B+tree whose inner nodes count the live keys below each child, so that "how many keys are in this range now" and "which key is
//! the n-th" cost a descent, not a walk. Leaves keep keys of one neighbourhood in one block of memory ([`keys`]) and their records
//! beside it. Newest values stay inline while their total is within a budget; past it they are read from the store.
//!
//! A key leaves the tree only by compaction; until then its tombstone is a record like any other, merely not counted as live.
//!
//! Not here: locking, the store, what a request means.

mod keys;
mod record;
mod tree;

use std::ops::ControlFlow;

use types::{KeyRange, RowId};

pub use record::{Facts, Record, SUB_MAX, Version};
use tree::Tree;

/// See the module text.
#[derive(Debug)]
pub struct Index {
    tree: Tree,
    inline_bytes: u64,
    inline_bytes_max: u64,
}

/// What the index takes of memory, for metrics and measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexSize {
    /// Keys that exist now.
    pub live: u64,
    /// Keys with any version, deleted ones included.
    pub keys: u64,
    /// Heap bytes asked of the allocator, inline values and key bytes included.
    pub heap_bytes: u64,
    /// Bytes of inline values.
    pub inline_bytes: u64,
}

impl Index {
    /// From records in strictly ascending key order. Newest values stay inline while all of them together take at most
    /// `inline_bytes_max` bytes.
    pub fn from_sorted(inline_bytes_max: u64, records: impl Iterator<Item = (Vec<u8>, Record)>) -> Index {
        let mut inline_bytes = 0;
        let tree = Tree::from_sorted(records.inspect(|(_, record)| {
            inline_bytes += record.value().map_or(0, |value| value.len() as u64);
        }));
        Index { tree, inline_bytes, inline_bytes_max }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.tree.get(key)
    }

    /// Records a put and answers the facts of the new version, and the lease that the key named before: 0 for none.
    pub fn put(&mut self, key: &[u8], id: RowId, lease: i64, value: &[u8]) -> (Facts, i64) {
        let (inline_bytes, max) = (&mut self.inline_bytes, self.inline_bytes_max);
        self.tree.upsert(key, |record| {
            let lease_before = record.facts().lease;
            let facts = if record.is_live() {
                Facts {
                    created: record.facts().created,
                    version: record.facts().version.saturating_add(1),
                    lease,
                }
            } else {
                Facts { created: id.main.0, version: 1, lease }
            };
            push(record, id, Some(facts), value, inline_bytes, max);
            (facts, lease_before)
        })
    }

    /// Records a tombstone for a key that exists, and answers the lease that it named: 0 for none.
    pub fn delete(&mut self, key: &[u8], id: RowId) -> i64 {
        let (inline_bytes, max) = (&mut self.inline_bytes, self.inline_bytes_max);
        self.tree.upsert(key, |record| {
            assert!(record.is_live(), "only a live key is deleted");
            let lease_before = record.facts().lease;
            push(record, id, None, &[], inline_bytes, max);
            lease_before
        })
    }

    /// A version read back from the store; `facts` is None for a tombstone. Versions of a key come in rising order.
    pub fn restore(&mut self, key: &[u8], id: RowId, facts: Option<Facts>, value: &[u8]) {
        let (inline_bytes, max) = (&mut self.inline_bytes, self.inline_bytes_max);
        self.tree.upsert(key, |record| push(record, id, facts, value, inline_bytes, max));
    }

    /// Brings a value inline that was left in the store, if version `id` is still the newest and the budget allows.
    pub fn fill(&mut self, key: &[u8], id: RowId, value: &[u8]) -> bool {
        if self.inline_bytes + value.len() as u64 > self.inline_bytes_max {
            return false;
        }
        let Some(record) = self.tree.get_mut(key) else { return false };
        if record.id() == id && record.is_live() && record.value().is_none() {
            record.set_value(value);
            self.inline_bytes += value.len() as u64;
        }
        true
    }

    /// True while another value of `bytes` would be kept inline.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.inline_bytes + bytes as u64 <= self.inline_bytes_max
    }

    /// Forgets what compaction at `at` does not keep of `key`; the key too when nothing is left.
    pub fn forget_superseded(&mut self, key: &[u8], at: i64) {
        let Some(record) = self.tree.get_mut(key) else { return };
        if record.forget_superseded(at) {
            self.tree.remove(key);
        }
    }

    /// Live keys in the range, now.
    pub fn count(&self, range: &KeyRange) -> u64 {
        match range {
            KeyRange::One(key) => u64::from(self.get(key).is_some_and(Record::is_live)),
            KeyRange::Span { start, end } if end <= start => 0,
            KeyRange::Span { start, end } => self.tree.rank(end) - self.tree.rank(start),
            KeyRange::From(start) => self.tree.live() - self.tree.rank(start),
        }
    }

    /// Live keys below `key`, now.
    pub fn rank(&self, key: &[u8]) -> u64 {
        self.tree.rank(key)
    }

    /// The live key with exactly `rank` live keys below it.
    pub fn select(&self, rank: u64) -> Option<Vec<u8>> {
        self.tree.select(rank)
    }

    /// Calls `each` for the keys from `from` to below `end` in order, deleted ones included, until it breaks.
    pub fn walk<B>(
        &self,
        from: &[u8],
        end: Option<&[u8]>,
        mut each: impl FnMut(&[u8], &Record) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.tree.walk(from, end, &mut each)
    }

    pub fn size(&self) -> IndexSize {
        IndexSize {
            live: self.tree.live(),
            keys: self.tree.keys(),
            heap_bytes: self.tree.heap_bytes() as u64,
            inline_bytes: self.inline_bytes,
        }
    }

    /// Live keys, without walking.
    pub fn live(&self) -> u64 {
        self.tree.live()
    }
}

/// Adds a version to a record within the budget for inline values.
fn push(
    record: &mut Record,
    id: RowId,
    facts: Option<Facts>,
    value: &[u8],
    inline_bytes: &mut u64,
    max: u64,
) {
    let freed = record.value().map_or(0, |value| value.len() as u64);
    let fits = facts.is_some() && *inline_bytes - freed + value.len() as u64 <= max;
    record.push(id, facts, value.len(), fits.then_some(value));
    *inline_bytes = *inline_bytes - freed + if fits { value.len() as u64 } else { 0 };
}

/// Makes records outside a tree, for bulk loads.
#[derive(Debug)]
pub struct RecordBuilder {
    older: Vec<Version>,
}

impl RecordBuilder {
    /// Brings the newest value inline, if this is it.
    pub fn fill(record: &mut Record, value: &[u8]) {
        if record.is_live() && record.value_len() as usize == value.len() {
            record.set_value(value);
        }
    }

    /// Begins with all older versions, oldest first.
    pub fn with_older(older: Vec<Version>) -> RecordBuilder {
        RecordBuilder { older }
    }

    /// Ends with the newest version, whose value is left in the store.
    pub fn newest(self, id: RowId, facts: Option<Facts>, value_len: usize) -> Record {
        let mut record = Record::vacant();
        record.push(id, facts, value_len, None);
        record.set_older(self.older);
        record
    }
}
