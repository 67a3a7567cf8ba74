//! What happened to some keys between two revisions: how a watcher that lags behind, or begins in the past, catches up.
//!
//! Few keys are looked up in the index, which lists the versions of each; many are found by going through the rows in order of
//! revision. Which is cheaper is estimated from a sample. Either way one call does a bounded amount of work, holds the index lock
//! only for moments, and says how far its answer is complete, so that the caller can share its time between many.
//!
//! Not here: watchers, filters, what is sent to whom, waiting for revisions to come.

use std::collections::HashSet;
use std::ops::ControlFlow;

use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use types::{KeyRange, Revision, RowId};

use crate::index::{Index, Record, Version};
use crate::range::after;
use crate::read::Reader;
use crate::rows::parse_row;
use crate::state::{decode_row, fetch, store_failed};
use crate::store::{Store, StoredRow};

/// Rows of the store that one call goes through at most, counted in whole revisions: about ten milliseconds.
const SCANNED_MAX: u64 = 16 * 1024;
/// Keys that one call looks up in the index at most, for the same reason.
const KEYS_MAX: u64 = 32 * 1024;
/// Single keys looked up under one hold of the index lock: each is a descent, together some tens of microseconds.
const LOOKUPS_PER_HOLD: usize = 64;
/// Neighbouring keys visited under one hold.
const VISITED_PER_HOLD: usize = 1024;
/// Versions noted under one hold, beyond those of the last key.
const VERSIONS_PER_HOLD: usize = 4096;
/// Rows asked of the store at once.
const ROWS_PER_FETCH: usize = 128;
/// Keys, and ranges, whose versions are counted for the estimate.
const SAMPLE_MAX: usize = 32;
/// A stretch this short is scanned without an estimate: the sample alone would cost more.
const SHORT_REVISIONS: u64 = 64;
/// Versions noted before those that will not fit into the answer are forgotten again, beyond twice the answer.
const NOTED_SLACK: usize = 1024;
/// What an event counts beyond its key and value, so that a list of tombstones has a size.
const EVENT_BYTES: usize = 32;

/// Estimated costs in nanoseconds, for the choice of the way only. A row that is read by its coordinates costs a search, in a store
/// on disk several; one that is scanned only its share of a block.
const LOOKUP_NS: u64 = 500;
const FETCH_NS: u64 = 3000;
const SCAN_NS: u64 = 300;

/// Asks for the events of some ranges. Ranges may overlap: an event is answered once.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRequest<'a> {
    /// The first revision asked for. Not below the compact revision; that itself is fine.
    pub from: Revision,
    /// The last one. Above the current revision it means the current one.
    pub to: Revision,
    pub ranges: &'a [KeyRange],
    /// Revisions in the answer; 0 counts as 1.
    pub revisions_max: usize,
    /// The answer ends with the revision whose events bring it to this many bytes of keys and values, so it may exceed it by one
    /// revision.
    pub bytes_max: usize,
}

/// What is known of the stretch that was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Ascending; every one whole, with the events of the asked ranges in the order in which they happened, never empty.
    pub revisions: Vec<(Revision, Vec<Event>)>,
    /// No event of the ranges at or below this revision (and at or above `from`) is missing. One less than `from` when nothing could
    /// be looked at because `from` is in the future. The next request begins one above it.
    pub through: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The stretch begins below this compact revision, maybe only since a moment ago.
    #[error("history below revision {0} is compacted")]
    Compacted(Revision),
}

/// What one of the two ways came to.
struct Found {
    revisions: Vec<(Revision, Vec<Event>)>,
    through: i64,
    /// A row that the index named and the store did not have.
    missing: Option<RowId>,
}

/// The way through the index would cost more than was thought.
struct TooMuch;

impl<S: Store> Reader<S> {
    /// The events of the ranges from `from` to `to`, or to the point where this call has done its share. Deletes carry key and
    /// revision only, and no event a previous value: see [`Reader::previous`].
    ///
    /// # Errors
    /// `Compacted` when `from` is below the compact revision, also when it became so during the call.
    pub fn history(&self, request: &HistoryRequest<'_>) -> Result<History, HistoryError> {
        let from = request.from.0;
        let (compacted, revision) = self.compacted_and_revision();
        if from < compacted {
            return Err(HistoryError::Compacted(Revision(compacted)));
        }
        let to = request.to.0.min(revision);
        if to < from {
            return Ok(History { revisions: Vec::new(), through: Revision(from.saturating_sub(1)) });
        }
        let targets = Targets::new(request.ranges);
        let limits = Limits { revisions: request.revisions_max.max(1), bytes: request.bytes_max };
        let found = if targets.is_empty() {
            Found { revisions: Vec::new(), through: to, missing: None }
        } else if self.prefers_index(&targets, from, to, limits.revisions) {
            match self.by_index(&targets, from, to, limits) {
                Ok(found) => found,
                Err(TooMuch) => self.by_scan(&targets, from, to, limits),
            }
        } else {
            self.by_scan(&targets, from, to, limits)
        };
        // Compaction moves its revision first and removes rows later, so what was read before it moved past `from` was all there.
        let (compacted, _) = self.compacted_and_revision();
        if from < compacted {
            return Err(HistoryError::Compacted(Revision(compacted)));
        }
        if let Some(id) = found.missing {
            panic!("row {id} is in the store while no compaction allowed its removal");
        }
        Ok(History { revisions: found.revisions, through: Revision(found.through) })
    }

    /// The version that a change at revision `before` replaced. None when there was none, when it was a deletion, and when the
    /// revision before is compacted, as etcd decides it.
    pub fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue> {
        let at = before.0.checked_sub(1)?;
        let id = {
            let state = self.shared.state.read();
            if at < state.compacted {
                return None;
            }
            let version = state.index.get(key)?.at(at)?;
            if version.is_dead() {
                return None;
            }
            version.id()
        };
        // A row that is gone by now was compacted in between.
        let row = fetch(&*self.shared.store, &[id]).pop().flatten()?;
        Some(decode_row(id, &row))
    }

    fn compacted_and_revision(&self) -> (i64, i64) {
        let state = self.shared.state.read();
        (state.compacted, state.revision)
    }

    /// Estimates both ways from a sample. Wrong guesses cost time, never events.
    fn prefers_index(&self, targets: &Targets<'_>, from: i64, to: i64, revisions_max: usize) -> bool {
        let stretch = to.abs_diff(from).saturating_add(1);
        if stretch <= SHORT_REVISIONS {
            return false;
        }
        let state = self.shared.state.read();
        let (keys, versions) = targets.estimate(&state.index, from, to);
        drop(state);
        if keys > KEYS_MAX {
            return false;
        }
        // Every call looks at all keys again, so many revisions from many keys come cheaper row by row.
        let calls = versions / revisions_max as u64 + 1;
        let by_index = calls
            .saturating_mul(keys)
            .saturating_mul(LOOKUP_NS)
            .saturating_add(versions.saturating_mul(FETCH_NS));
        by_index < stretch.saturating_mul(SCAN_NS)
    }

    fn by_index(&self, targets: &Targets<'_>, from: i64, to: i64, limits: Limits) -> Result<Found, TooMuch> {
        let mut notes = Notes::new(from, to, limits.revisions);
        for keys in targets.exact.chunks(LOOKUPS_PER_HOLD) {
            let state = self.shared.state.read();
            for key in keys {
                if let Some(record) = state.index.get(key) {
                    notes.note(key, record);
                }
            }
        }
        let mut left = KEYS_MAX;
        for span in &targets.spans {
            let mut next = span.start.to_vec();
            loop {
                let mut visited = 0;
                let before = notes.noted;
                let state = self.shared.state.read();
                let stopped = state.index.walk(&next, span.end, |key, record| {
                    notes.note(key, record);
                    visited += 1;
                    if visited >= VISITED_PER_HOLD || notes.noted - before >= VERSIONS_PER_HOLD {
                        return ControlFlow::Break(after(key));
                    }
                    ControlFlow::Continue(())
                });
                drop(state);
                left = left.checked_sub(visited as u64).ok_or(TooMuch)?;
                match stopped {
                    ControlFlow::Break(key) => next = key,
                    ControlFlow::Continue(()) => break,
                }
            }
        }
        notes.forget_what_does_not_fit();
        Ok(self.read_noted(notes, limits))
    }

    fn read_noted(&self, notes: Notes, limits: Limits) -> Found {
        let mut events = Collected::new(limits);
        for group in pieces(&notes.versions) {
            let puts: Vec<RowId> =
                group.iter().filter(|noted| !noted.is_dead).map(|noted| noted.id).collect();
            let mut rows = fetch(&*self.shared.store, &puts).into_iter();
            for noted in group {
                if !events.has_room_before(noted.id.main.0) {
                    return events.found(noted.id.main.0 - 1);
                }
                if noted.is_dead {
                    events.push(noted.id, deleted(noted.id, notes.keys[noted.key as usize].clone()));
                    continue;
                }
                match rows.next().expect("one row for each that was asked") {
                    Some(row) => events.push(noted.id, put(decode_row(noted.id, &row))),
                    None => events.missing = Some(noted.id),
                }
            }
        }
        events.found(notes.to)
    }

    fn by_scan(&self, targets: &Targets<'_>, from: i64, to: i64, limits: Limits) -> Found {
        let matcher = Matcher::new(targets);
        let mut events = Collected::new(limits);
        let mut stopped_before = None;
        let (mut visited, mut main) = (0, 0);
        let first = RowId { main: Revision(from.max(0)), sub: 0 };
        let last = RowId { main: Revision(to), sub: i64::MAX };
        self.shared
            .store
            .scan(first, last, &mut |id, row| {
                if id.main.0 != main {
                    main = id.main.0;
                    if visited >= SCANNED_MAX || !events.has_room_before(main) {
                        stopped_before = Some(main);
                        return ControlFlow::Break(());
                    }
                }
                visited += 1;
                if let Some(event) = matcher.event(id, row) {
                    events.push(id, event);
                }
                ControlFlow::Continue(())
            })
            .unwrap_or_else(|error| store_failed(error));
        events.found(stopped_before.map_or(to, |before: i64| before - 1))
    }
}

fn put(kv: KeyValue) -> Event {
    Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None }
}

fn deleted(id: RowId, key: Bytes) -> Event {
    let kv = KeyValue { key, mod_revision: id.main.0, ..Default::default() };
    Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None }
}

#[derive(Clone, Copy)]
struct Limits {
    revisions: usize,
    bytes: usize,
}

/// The answer while it grows.
struct Collected {
    revisions: Vec<(Revision, Vec<Event>)>,
    bytes: usize,
    limits: Limits,
    missing: Option<RowId>,
}

impl Collected {
    fn new(limits: Limits) -> Collected {
        Collected { revisions: Vec::new(), bytes: 0, limits, missing: None }
    }

    /// Whether an event of revision `main` may still come: those of a revision that has begun always may.
    fn has_room_before(&self, main: i64) -> bool {
        let Some((last, _)) = self.revisions.last() else { return true };
        last.0 == main || (self.revisions.len() < self.limits.revisions && self.bytes < self.limits.bytes)
    }

    fn push(&mut self, id: RowId, event: Event) {
        let kv = event.kv.as_ref();
        self.bytes += EVENT_BYTES + kv.map_or(0, |kv| kv.key.len() + kv.value.len());
        match self.revisions.last_mut() {
            Some((last, events)) if *last == id.main => events.push(event),
            _ => self.revisions.push((id.main, vec![event])),
        }
    }

    fn found(self, through: i64) -> Found {
        Found { revisions: self.revisions, through, missing: self.missing }
    }
}

/// A version in the asked stretch.
struct Noted {
    id: RowId,
    is_dead: bool,
    /// Its key, among those noted.
    key: u32,
}

/// Versions found in the index, of which only the earliest are kept: those that fit into the answer.
struct Notes {
    from: i64,
    /// Lowered when more is found than fits: beyond it nothing is noted.
    to: i64,
    revisions_max: usize,
    versions: Vec<Noted>,
    keys: Vec<Bytes>,
    /// All that were ever noted, for the length of a hold.
    noted: usize,
}

impl Notes {
    fn new(from: i64, to: i64, revisions_max: usize) -> Notes {
        Notes { from, to, revisions_max, versions: Vec::new(), keys: Vec::new(), noted: 0 }
    }

    fn note(&mut self, key: &[u8], record: &Record) {
        let Some((older, newest)) = between(record, self.from, self.to) else { return };
        let mut fits = older;
        if let Some(last) = older.get(self.revisions_max - 1) {
            // As many as fit, of this key alone. The cut is between revisions: a txn may have changed the key twice.
            let end = older.partition_point(|version| version.main() <= last.main());
            if let Some(next) = older.get(end) {
                self.to = next.main() - 1;
                fits = &older[..end];
            }
        }
        let older = fits;
        let place = u32::try_from(self.keys.len()).expect("one call looks at fewer keys than that");
        let mut add = |version: Version| {
            self.versions.push(Noted { id: version.id(), is_dead: version.is_dead(), key: place });
        };
        older.iter().copied().for_each(&mut add);
        newest.filter(|newest| newest.main() <= self.to).into_iter().for_each(&mut add);
        self.noted += older.len() + 1;
        self.keys.push(Bytes::copy_from_slice(key));
        if self.versions.len() > self.revisions_max.saturating_mul(2).saturating_add(NOTED_SLACK) {
            self.forget_what_does_not_fit();
        }
    }

    fn forget_what_does_not_fit(&mut self) {
        self.versions.sort_unstable_by_key(|noted| noted.id);
        let (mut revisions, mut last) = (0, None);
        for noted in &self.versions {
            if last != Some(noted.id.main) {
                last = Some(noted.id.main);
                revisions += 1;
                if revisions > self.revisions_max {
                    self.to = self.to.min(noted.id.main.0 - 1);
                    break;
                }
            }
        }
        let kept = self.versions.partition_point(|noted| noted.id.main.0 <= self.to);
        self.versions.truncate(kept);
    }
}

/// The versions of a key from one revision to another: older ones, and the newest if it is among them. None when there are none.
fn between(record: &Record, from: i64, to: i64) -> Option<(&[Version], Option<Version>)> {
    let newest = record.newest();
    if newest.main() < from {
        return None;
    }
    let older = record.older();
    let start = older.partition_point(|version| version.main() < from);
    let end = if newest.main() <= to {
        older.len()
    } else {
        start + older[start..].partition_point(|version| version.main() <= to)
    };
    let newest = (newest.main() <= to).then_some(newest);
    (start < end || newest.is_some()).then(|| (&older[start..end], newest))
}

/// Cuts a list into pieces of whole revisions, each of about what is asked of the store at once.
fn pieces(versions: &[Noted]) -> impl Iterator<Item = &[Noted]> {
    let mut rest = versions;
    std::iter::from_fn(move || {
        let last = rest.get(ROWS_PER_FETCH.min(rest.len()).checked_sub(1)?)?.id.main;
        let (piece, later) = rest.split_at(rest.partition_point(|noted| noted.id.main <= last));
        rest = later;
        Some(piece)
    })
}

/// `start <= key`, and `key < end` if there is an end.
#[derive(Clone, Copy)]
struct Span<'a> {
    start: &'a [u8],
    end: Option<&'a [u8]>,
}

impl Span<'_> {
    fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && self.end.is_none_or(|end| key < end)
    }
}

/// The asked ranges without overlap: single keys, and spans that hold none of them, each ascending.
struct Targets<'a> {
    exact: Vec<&'a [u8]>,
    spans: Vec<Span<'a>>,
}

impl<'a> Targets<'a> {
    fn new(ranges: &'a [KeyRange]) -> Targets<'a> {
        let (mut exact, mut all): (Vec<&[u8]>, Vec<Span<'_>>) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                KeyRange::One(key) => exact.push(key),
                KeyRange::Span { start, end } if end <= start => {}
                KeyRange::Span { start, end } => all.push(Span { start, end: Some(end) }),
                KeyRange::From(start) => all.push(Span { start, end: None }),
            }
        }
        all.sort_unstable_by_key(|span| span.start);
        let mut spans: Vec<Span<'_>> = Vec::new();
        for span in all {
            match spans.last_mut() {
                Some(last) if last.end.is_none_or(|end| span.start <= end) => {
                    last.end = last.end.zip(span.end).map(|(a, b)| a.max(b));
                }
                _ => spans.push(span),
            }
        }
        exact.sort_unstable();
        exact.dedup();
        exact.retain(|key| !within(&spans, key));
        Targets { exact, spans }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.spans.is_empty()
    }

    /// About how many keys there are to look at, and how many versions they have in the stretch.
    fn estimate(&self, index: &Index, from: i64, to: i64) -> (u64, u64) {
        let count = |record: &Record| {
            between(record, from, to)
                .map_or(0, |(older, newest)| older.len() as u64 + u64::from(newest.is_some()))
        };
        let mut versions = 0;
        let step = self.exact.len().div_ceil(SAMPLE_MAX).max(1);
        let mut sampled = 0;
        for key in self.exact.iter().step_by(step) {
            sampled += index.get(key).map_or(0, count);
        }
        versions += sampled * step as u64;

        let step = self.spans.len().div_ceil(SAMPLE_MAX).max(1);
        let looked_at = self.spans.len().div_ceil(step).max(1);
        let (mut keys, mut span_versions) = (0, 0);
        for span in self.spans.iter().step_by(step) {
            let end = span.end.map_or(index.live(), |end| index.rank(end));
            let live = end.saturating_sub(index.rank(span.start));
            let (mut visited, mut sampled) = (0, 0);
            let most = (SAMPLE_MAX / looked_at).max(1) as u64;
            let _ = index.walk(span.start, span.end, |_, record| {
                visited += 1;
                sampled += count(record);
                if visited == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let here = live.max(visited);
            keys += here;
            span_versions += sampled * here / visited.max(1);
        }
        let step = step as u64;
        (self.exact.len() as u64 + self.spans.len() as u64 + keys * step, versions + span_versions * step)
    }
}

fn within(spans: &[Span<'_>], key: &[u8]) -> bool {
    let after = spans.partition_point(|span| span.start <= key);
    after > 0 && spans[after - 1].contains(key)
}

/// Tells whether a row belongs to the targets, in the form that is fastest for them.
enum Matcher<'a> {
    Key(&'a [u8]),
    Span(Span<'a>),
    Many { exact: HashSet<&'a [u8]>, spans: &'a [Span<'a>] },
}

impl<'a> Matcher<'a> {
    fn new(targets: &'a Targets<'a>) -> Matcher<'a> {
        match (targets.exact.as_slice(), targets.spans.as_slice()) {
            ([key], []) => Matcher::Key(key),
            ([], [span]) => Matcher::Span(*span),
            (exact, spans) => Matcher::Many { exact: exact.iter().copied().collect(), spans },
        }
    }

    fn matches(&self, key: &[u8]) -> bool {
        match self {
            Matcher::Key(only) => *only == key,
            Matcher::Span(span) => span.contains(key),
            Matcher::Many { exact, spans } => exact.contains(key) || within(spans, key),
        }
    }

    /// The event of a row, sharing its memory; None for a row of another key.
    fn event(&self, id: RowId, row: StoredRow) -> Option<Event> {
        // Rows were written by this crate or checked when they were imported; one that does not parse is a damaged disk.
        let parts = parse_row(&row.value).unwrap_or_else(|| panic!("row {id} is no key-value"));
        if !self.matches(&row.value[parts.key.clone()]) {
            return None;
        }
        let key = row.value.slice(parts.key);
        if row.tombstone {
            return Some(deleted(id, key));
        }
        Some(put(KeyValue {
            key,
            create_revision: parts.created,
            mod_revision: parts.modified,
            version: parts.version,
            value: row.value.slice(parts.value),
            lease: parts.lease,
        }))
    }
}

#[cfg(test)]
mod tests;
