//! History for watches against what a listener was told live: the same events, whatever the chunks, the ranges and the way to them.
//!
//! `CAIRN_HISTORY_SEED=n` replays one seed. `cargo test --release -p cairn-state-machine --test history -- --ignored --nocapture`
//! prints how fast the ways are.

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use api::etcdserverpb::*;
use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use common::*;
use state_machine::store::{Store, StoreError, StoreSize, StoredRow, Table, WriteBatch};
use state_machine::{History, HistoryError, HistoryRequest, Memory, Options, Reader};
use types::{KeyRange, Revision, RowId};

const SEEDS: u64 = 150;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

type Revisions = Vec<(Revision, Vec<Event>)>;

fn one(key: &str) -> KeyRange {
    KeyRange::One(bytes(key))
}

fn span(start: &str, end: &str) -> KeyRange {
    KeyRange::Span { start: bytes(start), end: bytes(end) }
}

fn everything() -> KeyRange {
    KeyRange::From(Bytes::from_static(b"\0"))
}

fn ask(
    reader: &Reader<Memory>,
    ranges: &[KeyRange],
    from: i64,
    to: i64,
    max: (usize, usize),
) -> Result<History, HistoryError> {
    let (revisions_max, bytes_max) = max;
    let (from, to) = (Revision(from), Revision(to));
    reader.history(&HistoryRequest { from, to, ranges, revisions_max, bytes_max })
}

const NO_LIMIT: (usize, usize) = (usize::MAX, usize::MAX);

/// Asks again and again until the end is reached, as a watcher does.
fn ask_in_chunks(
    reader: &Reader<Memory>,
    ranges: &[KeyRange],
    from: i64,
    to: i64,
    max: (usize, usize),
) -> Result<Revisions, HistoryError> {
    let (mut next, mut all) = (from, Vec::new());
    while next <= to {
        let history = ask(reader, ranges, next, to, max)?;
        assert!(history.through.0 >= next, "every call makes progress: {} from {next}", history.through);
        assert!(history.through.0 <= to);
        assert!(history.revisions.len() <= max.0.max(1));
        assert!(history.revisions.iter().all(|(revision, _)| *revision <= history.through));
        if let [rest @ .., _] = history.revisions.as_slice() {
            let bytes: usize = rest.iter().flat_map(|(_, events)| events).map(size).sum();
            assert!(rest.is_empty() || bytes < max.1, "{bytes} bytes before the last revision, of {}", max.1);
        }
        all.extend(history.revisions);
        next = history.through.0 + 1;
    }
    Ok(all)
}

fn size(event: &Event) -> usize {
    let kv = event.kv.as_ref().unwrap();
    kv.key.len() + kv.value.len()
}

/// What the sink was told, of these ranges.
fn truth(told: &Revisions, ranges: &[KeyRange], from: i64, to: i64) -> Revisions {
    let inside = |event: &&Event| ranges.iter().any(|range| range.contains(&event.kv.as_ref().unwrap().key));
    told.iter()
        .filter(|(revision, _)| (from..=to).contains(&revision.0))
        .map(|(revision, events)| (*revision, events.iter().filter(inside).cloned().collect::<Vec<_>>()))
        .filter(|(_, events)| !events.is_empty())
        .collect()
}

struct Story {
    rng: Rng,
    bench: Bench,
    keys: u64,
    told: Revisions,
}

impl Story {
    fn new(seed: u64) -> Story {
        let mut rng = Rng(seed);
        let inline_value_bytes_max = [0, 200, u64::MAX][rng.below(3) as usize];
        let keys = [2, 9, 60, 500][rng.below(4) as usize];
        let bench = Bench::with(Options { inline_value_bytes_max, ..Options::default() });
        Story { rng, bench, keys, told: Vec::new() }
    }

    fn key(&mut self) -> String {
        format!("/{}/{:02x}", ["a", "b", "ba"][self.rng.below(3) as usize], self.rng.below(self.keys))
    }

    fn range(&mut self) -> KeyRange {
        match self.rng.below(10) {
            0..=4 => one(&self.key()),
            5 => everything(),
            6 => KeyRange::From(bytes(&self.key())),
            7 => span("/b", "/c"),
            _ => span(&self.key(), &self.key()),
        }
    }

    fn ranges(&mut self) -> Vec<KeyRange> {
        let count = [0, 1, 1, 1, 2, 5, 40, 200][self.rng.below(8) as usize];
        (0..count).map(|_| self.range()).collect()
    }

    fn write(&mut self) {
        let value = "v".repeat(self.rng.below(40) as usize);
        match self.rng.below(10) {
            0..=5 => {
                let key = bytes(&self.key());
                let put = PutRequest { key, value: bytes(&value), ..Default::default() };
                self.bench.put(put).unwrap();
            }
            6 | 7 => {
                let end = if self.rng.chance(50) { String::new() } else { self.key() };
                let key = self.key();
                self.bench.delete(&key, &end);
            }
            8 => {
                // What a revoked lease does: many deletes of single keys in one revision.
                let success = (0..self.rng.below(30)).map(|_| op_delete(&self.key(), "")).collect();
                self.bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
            }
            _ => {
                // The edge refuses a key that is put twice; apply takes it, and so does a txn whose delete has no end.
                let ops = (0..self.rng.below(8)).map(|_| match self.rng.below(4) {
                    0 => op_delete(&self.key(), "\0"),
                    1 => op_delete(&self.key(), ""),
                    _ => op_put(&self.key(), &value),
                });
                let success = ops.collect::<Vec<_>>();
                self.bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
            }
        }
        for told in self.bench.sink.told.drain(..) {
            if let Told::Events(revision, events) = told {
                self.told.push((Revision(revision), events));
            }
        }
    }

    fn check(&mut self) {
        let (current, compacted) = (self.bench.reader.revision().0, self.bench.reader.compact_revision().0);
        let ranges = self.ranges();
        let mut revision = || self.rng.below(current as u64 + 3) as i64;
        let (from, to) = (revision(), revision());
        let reader = self.bench.reader.clone();
        if from < compacted {
            let refused = Err(HistoryError::Compacted(Revision(compacted)));
            assert_eq!(ask(&reader, &ranges, from, to, NO_LIMIT), refused);
        }
        let from = if self.rng.chance(30) { compacted } else { from.max(compacted) };
        let end = to.min(current);
        let expected = truth(&self.told, &ranges, from, end);
        let whole = ask(&reader, &ranges, from, to, NO_LIMIT).unwrap();
        assert_eq!(whole.through.0, if end < from { from - 1 } else { end });
        assert_eq!(whole.revisions, expected, "from {from} to {to} of {ranges:?}");
        let max = match self.rng.below(4) {
            0 => (1, usize::MAX),
            1 => (usize::MAX, 1),
            2 => (0, 0),
            _ => (1 + self.rng.below(20) as usize, 1 + self.rng.below(3000) as usize),
        };
        assert_eq!(ask_in_chunks(&reader, &ranges, from, end, max).unwrap(), expected, "limits {max:?}");
        self.check_previous(&expected, compacted);
    }

    /// The version before each event is the one that the events before it made.
    fn check_previous(&mut self, events: &Revisions, compacted: i64) {
        for (revision, events) in events.iter().take(20) {
            let key = events[0].kv.as_ref().unwrap().key.clone();
            let before = self.told.iter().rev().filter(|(earlier, _)| earlier < revision);
            let last = before.flat_map(|(_, events)| events.iter().rev()).find_map(|event| {
                event.kv.as_ref().filter(|kv| kv.key == key).map(|kv| (event.r#type, kv.clone()))
            });
            let expected = last.filter(|(kind, _)| *kind == EventType::Put as i32).map(|(_, kv)| kv);
            let expected = expected.filter(|_| revision.0 > compacted);
            assert_eq!(self.bench.reader.previous(&key, *revision), expected, "{key:?} before {revision}");
        }
    }

    fn compact(&mut self) {
        let current = self.bench.reader.revision().0;
        let target = current - self.rng.below(30) as i64;
        if target > self.bench.reader.compact_revision().0 && target > 0 {
            self.bench.compact(target).unwrap();
        }
        for _ in 0..self.rng.below(6) {
            self.bench.machine.compact_step(1 + self.rng.below(20) as usize);
        }
        if self.rng.chance(40) {
            self.bench.compact_physically(100);
        }
    }

    fn run(&mut self) {
        for _ in 0..250 {
            match self.rng.below(100) {
                0..=84 => self.write(),
                85..=95 => self.check(),
                96..=98 => self.compact(),
                _ => self.bench.reopen(None),
            }
        }
        self.check();
    }
}

/// WA05/WA06 are part of it: reads begin at the compact revision as often as elsewhere.
#[test]
fn history_is_what_a_listener_was_told() {
    if let Ok(seed) = std::env::var("CAIRN_HISTORY_SEED") {
        return Story::new(seed.parse().expect("a number")).run();
    }
    for seed in 0..SEEDS {
        let ran = std::panic::catch_unwind(|| Story::new(seed).run());
        if let Err(panic) = ran {
            eprintln!("replay: CAIRN_HISTORY_SEED={seed} cargo test -p cairn-state-machine --test history");
            std::panic::resume_unwind(panic);
        }
    }
}

fn deletion(key: &str, revision: i64) -> Event {
    let kv = KeyValue { key: bytes(key), mod_revision: revision, ..Default::default() };
    Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None }
}

/// WA06: a watch opened at the compact revision gets the delete of that revision, before and after the rows below are removed.
#[test]
fn delete_kept_for_watch_at_compact_revision() {
    let mut bench = Bench::new();
    bench.set("a", "1");
    bench.set("b", "1");
    let at = bench.delete("a", "c").header.unwrap().revision;
    bench.set("c", "1");
    bench.compact(at).unwrap();
    let expected = vec![(Revision(at), vec![deletion("a", at), deletion("b", at)])];
    for steps in [0, 1, 1000] {
        for _ in 0..steps {
            bench.machine.compact_step(1);
        }
        for ranges in [vec![one("a"), one("b")], vec![span("a", "c")]] {
            let history = ask(&bench.reader, &ranges, at, at + 1, NO_LIMIT).unwrap();
            assert_eq!((history.revisions, history.through), (expected.clone(), Revision(at + 1)));
        }
        assert_eq!(bench.reader.previous(b"a", Revision(at)), None, "what was before is compacted");
    }
    bench.reopen(None);
    assert_eq!(ask(&bench.reader, &[everything()], at, at, NO_LIMIT).unwrap().revisions, expected);
}

/// A txn may delete a key without an end and put it again; a watch from that very revision gets both after compaction.
#[test]
fn a_revision_stays_whole_when_compacting_on_it() {
    let mut bench = Bench::new();
    bench.set("k", "old");
    let success = vec![op_delete("k", "\0"), op_put("k", "new")];
    let at = bench.txn(TxnRequest { success, ..Default::default() }).unwrap().header.unwrap().revision;
    let whole = ask(&bench.reader, &[one("k")], at, at, NO_LIMIT).unwrap();
    assert_eq!(whole.revisions[0].1.len(), 2);
    let hash = {
        bench.compact(at).unwrap();
        bench.reader.hash_kv(0).unwrap()
    };
    bench.compact_physically(10);
    assert_eq!(ask(&bench.reader, &[one("k")], at, at, NO_LIMIT).unwrap(), whole);
    assert_eq!(bench.reader.hash_kv(0).unwrap(), hash, "what stays on the disk does not enter the hash");
    bench.set("other", "1");
    bench.compact(at + 1).unwrap();
    bench.compact_physically(10);
    assert_eq!(bench.machine.store().row_count(), 2, "the next compaction takes it");
}

/// The future holds nothing yet, and says so without moving the caller on.
#[test]
fn nothing_is_known_of_the_future() {
    let mut bench = Bench::new();
    let now = bench.set("k", "1");
    let history = ask(&bench.reader, &[everything()], now + 1, now + 9, NO_LIMIT).unwrap();
    assert_eq!(history, History { revisions: Vec::new(), through: Revision(now) });
    let history = ask(&bench.reader, &[everything()], now + 5, now + 9, NO_LIMIT).unwrap();
    assert_eq!(history.through, Revision(now + 4));
    let history = ask(&bench.reader, &[], 1, i64::MAX, NO_LIMIT).unwrap();
    assert_eq!(history.through, Revision(now), "no ranges match nothing, and all of it");
}

/// A long stretch without a match is not one long call: each does a bounded share and says how far it came.
#[test]
fn a_stretch_without_a_match_takes_several_calls() {
    let mut bench = Bench::new();
    bench.sink.deaf = true;
    for number in 0..500 {
        let success = (0..100).map(|part| op_put(&format!("x{number:03}/{part:02}"), "v")).collect();
        bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
    }
    // Live in the range: too many for a look at each, and none of them changed since.
    let to = bench.reader.revision().0;
    let ranges = [KeyRange::From(bytes("x0")), one("never")];
    let mut next = 2;
    let mut calls = 0;
    while next <= to {
        let history = ask(&bench.reader, &ranges[1..], next, to, NO_LIMIT).unwrap();
        assert!(history.revisions.is_empty());
        next = history.through.0 + 1;
        calls += 1;
    }
    assert_eq!(calls, 1, "a key of which the index knows nothing");
    let first = ask(&bench.reader, &ranges, 2, to, NO_LIMIT).unwrap();
    assert!(first.through.0 < to, "50,000 rows are more than a call's share");
    let all = ask_in_chunks(&bench.reader, &ranges, 2, to, NO_LIMIT).unwrap();
    assert_eq!(all.iter().map(|(_, events)| events.len()).sum::<usize>(), 50_000);
    assert!(all.iter().all(|(_, events)| events.len() == 100), "no revision is divided");
}

/// Compaction and its removal of rows run beside readers: they get everything or are told, never a list with holes.
#[test]
fn history_beside_compaction_is_whole_or_refused() {
    const ROUNDS: i64 = 3_000;
    let mut bench = Bench::with(Options { inline_value_bytes_max: 100, ..Options::default() });
    bench.sink.deaf = true;
    let done = AtomicBool::new(false);
    let reader = bench.reader.clone();
    // Revision r changes key r % 10, and key 0 too, except that every 5th deletes it.
    let keys_of = |revision: i64| -> BTreeSet<String> {
        [format!("k{}", revision % 10), "k0".to_owned()].into_iter().collect()
    };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut rng = Rng(7);
            let (mut whole, mut refused) = (0, 0);
            while !done.load(Ordering::Relaxed) || whole == 0 {
                let (compacted, current) = (reader.compact_revision().0, reader.revision().0);
                let from = compacted.max(2) + rng.below(20) as i64;
                if from > current {
                    continue;
                }
                let ranges = if rng.chance(50) { vec![span("k", "l")] } else { vec![one("k0"), one("k3")] };
                match ask(&reader, &ranges, from, current, NO_LIMIT) {
                    Err(HistoryError::Compacted(at)) => {
                        assert!(at.0 > from);
                        refused += 1;
                    }
                    Ok(history) => {
                        whole += 1;
                        let expected: Vec<(i64, Vec<String>)> = (from..=history.through.0)
                            .map(|revision| {
                                let keys = keys_of(revision).into_iter();
                                let inside = |key: &String| ranges.iter().any(|r| r.contains(key.as_bytes()));
                                (revision, keys.filter(inside).collect())
                            })
                            .collect();
                        let found: Vec<(i64, Vec<String>)> = history
                            .revisions
                            .iter()
                            .map(|(revision, events)| {
                                let kvs: Vec<KeyValue> =
                                    events.iter().map(|event| event.kv.clone().unwrap()).collect();
                                (revision.0, names(&kvs))
                            })
                            .collect();
                        assert_eq!(found, expected);
                    }
                }
            }
            (whole, refused)
        });
        for round in 0..ROUNDS {
            let revision = bench.reader.revision().0 + 1;
            let op = |key: String| {
                let lives = bench.value(&key).is_some();
                if revision % 5 == 0 && lives { op_delete(&key, "") } else { op_put(&key, "v") }
            };
            let success = keys_of(revision).into_iter().map(op).collect();
            bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
            if round % 50 == 49 {
                bench.compact(revision - 10).unwrap();
            }
            bench.machine.compact_step(4);
        }
        done.store(true, Ordering::Relaxed);
        let (whole, refused) = reading.join().unwrap();
        eprintln!("{whole} whole, {refused} refused");
    });
}

type Interruption = Box<dyn FnOnce() + Send>;

/// A store in which something happens just before the next read.
#[derive(Default)]
struct Interrupted {
    rows: Memory,
    next: Mutex<Option<Interruption>>,
}

impl Interrupted {
    fn interrupt(&self) {
        let next = self.next.lock().unwrap().take();
        if let Some(interruption) = next {
            interruption();
        }
    }
}

impl Store for Interrupted {
    fn row(&self, id: RowId) -> Result<Option<StoredRow>, StoreError> {
        self.interrupt();
        self.rows.row(id)
    }
    fn scan(
        &self,
        from: RowId,
        to: RowId,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.interrupt();
        self.rows.scan(from, to, each)
    }
    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.rows.table(table)
    }
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.rows.write(batch)
    }
    fn size(&self) -> StoreSize {
        self.rows.size()
    }
}

/// WA04: compaction that comes between the look at the index and the read of the rows, or before the scan, is an answer. At the
/// very revision where the reader begins it takes nothing away.
#[test]
fn compaction_in_the_middle_is_told() {
    for by_index in [true, false] {
        for (compacted, expected) in [(11, Err(HistoryError::Compacted(Revision(11)))), (10, Ok(10))] {
            let store = Arc::new(Interrupted::default());
            let bench = Arc::new(Mutex::new(Bench::open(Arc::clone(&store), Options::default())));
            for number in 0..400 {
                bench.lock().unwrap().set(if number % 40 == 9 { "k" } else { "other" }, "v");
            }
            let reader = bench.lock().unwrap().reader.clone();
            *store.next.lock().unwrap() = Some(Box::new({
                let bench = Arc::clone(&bench);
                move || {
                    let mut bench = bench.lock().unwrap();
                    bench.compact(compacted).unwrap();
                    bench.compact_physically(1000);
                }
            }));
            let ranges = if by_index { vec![one("k")] } else { vec![everything()] };
            let (from, to) = (Revision(10), Revision(if by_index { 400 } else { 60 }));
            let request =
                HistoryRequest { from, to, ranges: &ranges, revisions_max: 1000, bytes_max: usize::MAX };
            let found = reader.history(&request);
            let first = found.map(|history| {
                let last = history.revisions.last().unwrap().0;
                assert!(history.revisions.len() >= 10 && last.0 > to.0 - 40);
                history.revisions[0].0.0
            });
            // Key k changes at 11, 51 and so on.
            let expected = expected.map(|from| if by_index { from + 1 } else { from });
            assert_eq!(first, expected, "by the index: {by_index}");
            assert!(store.next.lock().unwrap().is_none(), "the interruption came");
        }
    }
}

/// Many watchers of single keys catch up together, in one call as in many.
#[test]
fn thousands_of_single_keys_at_once() {
    let mut bench = Bench::new();
    let mut told: Revisions = Vec::new();
    for number in 0..6_000 {
        bench.set(&format!("key/{:04}", number * 7 % 4_000), "v");
        let Some(Told::Events(revision, events)) = bench.sink.told.drain(..).next() else { panic!() };
        told.push((Revision(revision), events));
    }
    let ranges: Vec<KeyRange> = (0..3_000).map(|number| one(&format!("key/{:04}", number * 2))).collect();
    let to = bench.reader.revision().0;
    let expected = truth(&told, &ranges, 2, to);
    assert_eq!(expected.len(), 3_000);
    assert_eq!(ask_in_chunks(&bench.reader, &ranges, 2, to, NO_LIMIT).unwrap(), expected);
    assert_eq!(ask_in_chunks(&bench.reader, &ranges, 2, to, (500, 1 << 20)).unwrap(), expected);
    // Few of them over a long stretch go by the index.
    assert_eq!(
        ask_in_chunks(&bench.reader, &ranges[..9], 2, to, (2, 1 << 20)).unwrap(),
        expected_of(&told, &ranges[..9])
    );
}

fn expected_of(told: &Revisions, ranges: &[KeyRange]) -> Revisions {
    truth(told, ranges, 0, i64::MAX)
}
