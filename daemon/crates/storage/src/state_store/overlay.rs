//! Changes that were given to the store and are not yet in the LSM tree. Readers look here first; an entry leaves only after the
//! commit that contains it is visible in the tree, so a reader that finds nothing here finds it there.
//!
//! Rows are append-ordered, so nearly all of them sit in a deque that is searched by bisection and emptied from the front. What
//! does not append (deletes by compaction, a row put again) is kept in a small ordered map beside it, which wins over the deque.
//!
//! Not here: the queue to the writer, the tree, any I/O.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use bytes::Bytes;
use state_machine::store::{Change, StoredRow, Table};
use types::{LogPosition, RowId};

/// Number of a batch in the order of `write` calls, from 1.
pub type Seq = u64;

/// Entries freed per hold of the overlay's lock: about 20 microseconds, so that apply's next `write` never waits longer.
const RELEASE_STEP: usize = 256;

#[derive(Default)]
pub struct Overlay {
    appended: VecDeque<(RowId, Seq, StoredRow)>,
    odd: BTreeMap<RowId, (Seq, Option<StoredRow>)>,
    tables: BTreeMap<(Table, Bytes), (Seq, Option<Bytes>)>,
    /// Applied position after the newest batch.
    pub position: LogPosition,
}

impl Overlay {
    pub fn at(position: LogPosition) -> Overlay {
        Overlay { position, ..Overlay::default() }
    }

    pub fn insert(&mut self, seq: Seq, position: LogPosition, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutRow { id, row } => {
                    let appends = self.appended.back().is_none_or(|(last, ..)| last < id);
                    if appends && (self.odd.is_empty() || !self.odd.contains_key(id)) {
                        self.appended.push_back((*id, seq, row.clone()));
                    } else {
                        self.odd.insert(*id, (seq, Some(row.clone())));
                    }
                }
                Change::DeleteRow { id, .. } => {
                    self.odd.insert(*id, (seq, None));
                }
                Change::Put { table, key, value } => {
                    self.tables.insert((*table, key.clone()), (seq, Some(value.clone())));
                }
                Change::Delete { table, key } => {
                    self.tables.insert((*table, key.clone()), (seq, None));
                }
            }
        }
        self.position = position;
    }

    /// `None`: not pending, ask the tree. `Some(None)`: pending as deleted.
    pub fn row(&self, id: RowId) -> Option<Option<StoredRow>> {
        if !self.odd.is_empty()
            && let Some((_, row)) = self.odd.get(&id)
        {
            return Some(row.clone());
        }
        let at = self.appended.binary_search_by_key(&id, |(id, ..)| *id).ok()?;
        Some(Some(self.appended[at].2.clone()))
    }

    /// Pending rows within `ids` in order, at most `rows_max` of them. The second value is the last id up to which the answer is
    /// complete.
    pub fn rows(
        &self,
        ids: RangeInclusive<RowId>,
        rows_max: usize,
    ) -> (Vec<(RowId, Option<StoredRow>)>, RowId) {
        let (from, to) = (*ids.start(), *ids.end());
        let start = self.appended.partition_point(|(id, ..)| *id < from);
        let mut appended = self
            .appended
            .range(start..)
            .take_while(|(id, ..)| *id <= to)
            .map(|(id, _, row)| (*id, row))
            .peekable();
        let mut odd = self.odd.range(ids).map(|(id, (_, row))| (*id, row)).peekable();
        let mut out = Vec::new();
        loop {
            let next = match (appended.peek(), odd.peek()) {
                (None, None) => return (out, to),
                (Some((a, _)), Some((b, _))) if a == b => {
                    appended.next();
                    continue;
                }
                (Some((a, row)), Some((b, _))) if a < b => (*a, Some((*row).clone())),
                (Some((a, row)), None) => (*a, Some((*row).clone())),
                (_, Some((b, row))) => (*b, (*row).clone()),
            };
            if appended.peek().is_some_and(|(a, _)| *a == next.0) {
                appended.next();
            } else {
                odd.next();
            }
            let last = next.0;
            out.push(next);
            if out.len() >= rows_max {
                return (out, last);
            }
        }
    }

    /// Pending pairs of a table; `None` is a deleted key.
    pub fn table(&self, table: Table) -> Vec<(Bytes, Option<Bytes>)> {
        self.tables
            .range((table, Bytes::new())..)
            .take_while(|((of, _), _)| *of == table)
            .map(|((_, key), (_, value))| (key.clone(), value.clone()))
            .collect()
    }

    pub fn has_odd_rows(&self) -> bool {
        !self.odd.is_empty()
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.appended.is_empty() && self.odd.is_empty() && self.tables.is_empty()
    }

    /// Forgets a bounded part of what was committed up to `seq`. Freed rows go to `freed`, so that the caller drops them without
    /// the lock. `false` when nothing more is left to free at the front.
    pub fn release_appended(&mut self, seq: Seq, freed: &mut Vec<StoredRow>) -> bool {
        for _ in 0..RELEASE_STEP {
            match self.appended.front() {
                Some((_, of, _)) if *of <= seq => {
                    let (_, _, row) = self.appended.pop_front().expect("front was there");
                    freed.push(row);
                }
                _ => return false,
            }
        }
        true
    }

    /// Forgets the entries of these committed changes that live outside the deque, unless a later batch replaced them.
    pub fn release_others(&mut self, seq: Seq, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutRow { id, .. } | Change::DeleteRow { id, .. } => {
                    if !self.odd.is_empty() && self.odd.get(id).is_some_and(|(of, _)| *of <= seq) {
                        self.odd.remove(id);
                    }
                }
                Change::Put { table, key, .. } | Change::Delete { table, key } => {
                    let at = (*table, key.clone());
                    if self.tables.get(&at).is_some_and(|(of, _)| *of <= seq) {
                        self.tables.remove(&at);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Revision;

    fn id(main: i64) -> RowId {
        RowId { main: Revision(main), sub: 0 }
    }

    fn row(text: &'static str) -> StoredRow {
        StoredRow { tombstone: false, value: Bytes::from_static(text.as_bytes()) }
    }

    fn put(main: i64, text: &'static str) -> Change {
        Change::PutRow { id: id(main), row: row(text) }
    }

    fn delete(main: i64) -> Change {
        Change::DeleteRow { id: id(main), tombstone: false }
    }

    #[test]
    fn a_delete_hides_the_row_until_both_are_committed() {
        let mut overlay = Overlay::default();
        let (first, second) = (vec![put(2, "a"), put(3, "b")], vec![delete(2)]);
        overlay.insert(1, LogPosition::default(), &first);
        overlay.insert(2, LogPosition::default(), &second);
        assert_eq!(overlay.row(id(2)), Some(None));
        assert_eq!(overlay.row(id(3)), Some(Some(row("b"))));
        let mut freed = Vec::new();
        assert!(!overlay.release_appended(1, &mut freed));
        overlay.release_others(1, &first);
        assert_eq!(overlay.row(id(2)), Some(None), "batch 2 is still pending");
        assert_eq!(overlay.row(id(3)), None);
        overlay.release_others(2, &second);
        assert!(overlay.is_empty());
    }

    #[test]
    fn a_row_put_again_wins_and_survives_the_commit_of_the_first() {
        let mut overlay = Overlay::default();
        let (first, second) = (vec![put(5, "old")], vec![put(5, "new"), put(4, "before")]);
        overlay.insert(1, LogPosition::default(), &first);
        overlay.insert(2, LogPosition::default(), &second);
        let all = overlay.rows(id(0)..=id(9), 10);
        assert_eq!(all, (vec![(id(4), Some(row("before"))), (id(5), Some(row("new")))], id(9)));
        overlay.release_appended(1, &mut Vec::new());
        overlay.release_others(1, &first);
        assert_eq!(overlay.row(id(5)), Some(Some(row("new"))));
    }

    #[test]
    fn a_bounded_answer_says_how_far_it_is_complete() {
        let mut overlay = Overlay::default();
        overlay.insert(1, LogPosition::default(), &[put(2, "a"), put(4, "b"), put(6, "c"), delete(3)]);
        let (some, complete_to) = overlay.rows(id(0)..=id(9), 2);
        assert_eq!(some, vec![(id(2), Some(row("a"))), (id(3), None)]);
        assert_eq!(complete_to, id(3));
    }
}
