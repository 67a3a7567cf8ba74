//! Random requests against the state machine and against a model that keeps every version of every key in a list and answers by
//! looking at all of them. Ranges with every option at every revision, txns, deletes, leases, compaction in steps, restarts with
//! and without a checkpoint, small memory budgets. Which keys a lease holds the model reads off the keys.
//!
//! `CAIRN_MODEL_SEED=n` replays one seed, `CAIRN_MODEL_SECONDS=n` goes on with new seeds for that long.

mod common;
#[path = "model/naive.rs"]
mod naive;

use std::time::{Duration, Instant};

use api::error::EtcdError;
use api::etcdserverpb::compare::TargetUnion;
use api::etcdserverpb::*;
use api::mvccpb::Event;
use bytes::Bytes;
use common::*;
use naive::{Expected, Model, Version};
use state_machine::{LeaseFacts, Options, Outcome};
use types::{Entry, EntryKind, LeaseId};

/// Seeds of a plain run; fast enough for every commit.
const SEEDS: u64 = 1000;
const STEPS: usize = 400;

/// Leases that may be granted; more are named.
const LEASES: [i64; 6] = [1, 2, 3, 0x7000_0000_0000_0001, i64::MAX, -4];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Story {
    rng: Rng,
    model: Model,
    bench: Bench,
    keys: u64,
    checkpoint: Option<Vec<u8>>,
    batch: Vec<(InternalRaftRequest, Expected, Vec<Event>)>,
}

impl Story {
    fn new(seed: u64) -> Story {
        let mut rng = Rng(seed);
        let inline_value_bytes_max = [0, 40, 400, u64::MAX][rng.below(4) as usize];
        let options = Options { inline_value_bytes_max, ..Options::default() };
        let keys = [3, 12, 150, 700][rng.below(4) as usize];
        Story {
            rng,
            model: Model::new(),
            bench: Bench::with(options),
            keys,
            checkpoint: None,
            batch: Vec::new(),
        }
    }

    fn key(&mut self) -> Bytes {
        let number = self.rng.below(self.keys);
        match self.rng.below(20) {
            0 => Bytes::from_static(b"\0"),
            1 => Bytes::from(vec![b'z'; 1 + number as usize]),
            2 => Bytes::from(vec![0xff; 1 + number as usize % 3]),
            _ => Bytes::from(format!("/k/{number:x}")),
        }
    }

    fn span(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        match self.rng.below(6) {
            0 | 1 => (key, Bytes::new()),
            2 => (key, Bytes::from_static(b"\0")),
            3 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            _ => {
                let end = self.key();
                (key, end)
            }
        }
    }

    /// Mostly one that is likely to exist.
    fn lease(&mut self) -> i64 {
        let granted: Vec<i64> = self.model.leases.keys().copied().collect();
        match self.rng.below(10) {
            0 => 99,
            1..=3 => LEASES[self.rng.below(LEASES.len() as u64) as usize],
            _ if granted.is_empty() => 0,
            _ => granted[self.rng.below(granted.len() as u64) as usize],
        }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(vec![b'a' + self.rng.below(4) as u8; self.rng.below(6) as usize * 3])
    }

    fn revision(&mut self) -> i64 {
        let current = self.model.revision;
        match self.rng.below(10) {
            0..=4 => 0,
            5 => current + 1 - self.rng.below(2) as i64,
            6 => -(self.rng.below(4) as i64),
            _ => current - self.rng.below(current as u64) as i64,
        }
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.span();
        let limit = if self.rng.chance(50) { self.rng.below(8) as i64 - 1 } else { 0 };
        let mut request =
            RangeRequest { key, range_end, limit, revision: self.revision(), ..Default::default() };
        if self.rng.chance(40) {
            request.sort_order = self.rng.below(3) as i32;
            request.sort_target = self.rng.below(5) as i32;
        }
        request.keys_only = self.rng.chance(20);
        request.count_only = self.rng.chance(15);
        if self.rng.chance(20) {
            let mut bound = || if self.rng.chance(50) { 0 } else { self.rng.below(60) as i64 - 2 };
            request.min_mod_revision = bound();
            request.max_mod_revision = bound();
            request.min_create_revision = bound();
            request.max_create_revision = bound();
        }
        request
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.rng.chance(10);
        let value = if ignore_value { Bytes::new() } else { self.value() };
        let (prev_kv, ignore_lease) = (self.rng.chance(30), self.rng.chance(10));
        let lease = if self.rng.chance(30) { self.lease() } else { 0 };
        PutRequest { key: self.key(), value, lease, prev_kv, ignore_value, ignore_lease }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.span();
        DeleteRangeRequest { key, range_end, prev_kv: self.rng.chance(30) }
    }

    fn compare(&mut self) -> Compare {
        let (key, mut range_end) = self.span();
        if self.rng.chance(70) {
            range_end = Bytes::new();
        }
        let number = self.rng.below(1 + self.model.revision as u64 * 2) as i64;
        let target_union = match self.rng.below(6) {
            0 => Some(TargetUnion::Version(number % 4)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease())),
            _ => None,
        };
        let (result, target) = (self.rng.below(4) as i32, self.rng.below(5) as i32);
        Compare { result, target, key, range_end, target_union }
    }

    fn txn(&mut self, depth: u64) -> TxnRequest {
        let ops = |story: &mut Story| -> Vec<RequestOp> {
            (0..story.rng.below(4))
                .map(|_| match story.rng.below(if depth < 3 { 8 } else { 7 }) {
                    0..=2 => op(request_op::Request::RequestPut(story.put())),
                    3 => op(request_op::Request::RequestDeleteRange(story.delete())),
                    4..=6 => op(request_op::Request::RequestRange(story.range())),
                    _ => op_txn(story.txn(depth + 1)),
                })
                .collect()
        };
        let (success, failure) = (ops(self), ops(self));
        let compare = (0..self.rng.below(3)).map(|_| self.compare()).collect();
        TxnRequest { compare, success, failure }
    }

    /// Writes gather in a batch, so that several entries meet in one hold of the lock.
    fn write(&mut self) {
        let request = match self.rng.below(12) {
            0..=5 => InternalRaftRequest { put: Some(self.put()), ..Default::default() },
            6 => InternalRaftRequest { delete_range: Some(self.delete()), ..Default::default() },
            7..=9 => InternalRaftRequest { txn: Some(self.txn(0)), ..Default::default() },
            _ => self.about_leases(),
        };
        let (expected, events) = if let Some(put) = &request.put {
            let mut writing = self.model.writing();
            let answer = writing.put(put).map(|answer| (Outcome::Put(answer), Vec::new()));
            (answer, writing.close())
        } else if let Some(delete) = &request.delete_range {
            let mut writing = self.model.writing();
            let answer = writing.delete(delete);
            (Ok((Outcome::DeleteRange(answer), Vec::new())), writing.close())
        } else if let Some(grant) = &request.lease_grant {
            (self.model.writing().grant(grant.id, grant.ttl), Vec::new())
        } else if let Some(revoke) = &request.lease_revoke {
            let mut writing = self.model.writing();
            let answer = writing.revoke(revoke.id);
            (answer, writing.close())
        } else if let Some(checkpoint) = &request.lease_checkpoint {
            (Ok(self.model.writing().checkpoint(&checkpoint.checkpoints)), Vec::new())
        } else {
            let (answer, events) = self.model.txn(request.txn.as_ref().unwrap());
            (answer.map(|answer| (Outcome::Txn(answer), Vec::new())), events)
        };
        self.batch.push((request, expected, events));
        if self.rng.chance(60) {
            self.flush();
        }
    }

    fn about_leases(&mut self) -> InternalRaftRequest {
        let id = LEASES[self.rng.below(LEASES.len() as u64) as usize];
        match self.rng.below(8) {
            0..=3 => grant(id, self.rng.below(100) as i64 - 20),
            4..=5 => revoke(id),
            _ => {
                let count = self.rng.below(4);
                let remainders: Vec<(i64, i64)> =
                    (0..count).map(|_| (self.lease(), self.rng.below(50) as i64 - 5)).collect();
                checkpoint(&remainders)
            }
        }
    }

    fn check_leases(&self) {
        let reader = &self.bench.reader;
        let facts = |(&id, &(granted_ttl, remaining_ttl)): (&i64, &(i64, i64))| LeaseFacts {
            id: LeaseId(id),
            granted_ttl,
            remaining_ttl,
        };
        let expected: Vec<LeaseFacts> = self.model.leases.iter().map(facts).collect();
        assert_eq!(reader.leases(), expected);
        assert_eq!(reader.lease_count(), expected.len());
        for lease in expected {
            assert_eq!(reader.lease(lease.id), Some(lease));
            assert_eq!(reader.lease_keys(lease.id), Some(self.model.attached(lease.id.0)), "{}", lease.id);
        }
        assert_eq!((reader.lease(LeaseId(99)), reader.lease_keys(LeaseId(99))), (None, None));
    }

    fn flush(&mut self) {
        let mut index = self.bench.machine.applied().index;
        let mut expected = Vec::new();
        let mut entries = Vec::new();
        for (request, outcome, events) in self.batch.drain(..) {
            index = index.next();
            let mut entry = self.bench.next_entry(EntryKind::Normal, encode(&request));
            entry.index = index;
            entries.push(entry);
            let (outcome, leases) = match outcome {
                Ok((outcome, leases)) => (Ok(outcome), leases),
                Err(refusal) => (Err(refusal), Vec::new()),
            };
            expected.extend(leases.into_iter().map(Told::Lease));
            if let Some(event) = events.first() {
                expected.push(Told::Events(event.kv.as_ref().unwrap().mod_revision, events));
            }
            expected.push(Told::Outcome(index.0, 77, outcome));
        }
        self.bench.sink.told.clear();
        let entries: Vec<Entry> = entries;
        self.bench.machine.apply(&entries, &mut self.bench.sink);
        assert_eq!(self.bench.sink.told, expected);
        assert_eq!(self.bench.reader.revision().0, self.model.revision);
    }

    fn compact(&mut self) {
        self.flush();
        let target = self.model.revision + 1 - self.rng.below(12) as i64;
        let expected = if target <= self.model.compacted {
            Err(EtcdError::Compacted)
        } else if target > self.model.revision {
            Err(EtcdError::FutureRev)
        } else {
            self.model.compacted = target;
            Ok(self.model.revision)
        };
        assert_eq!(self.bench.compact(target).map(|done| done.header.unwrap().revision), expected);
    }

    fn restart(&mut self) {
        self.flush();
        let checkpoint = if self.rng.chance(70) { self.checkpoint.take() } else { None };
        self.bench.reopen(checkpoint.as_deref());
        let size = self.bench.reader.index_size();
        assert_eq!(size.live, self.model.at(i64::MAX, b"", b"\0").len() as u64);
        self.check_leases();
    }

    fn read(&mut self) {
        self.flush();
        let request = self.range();
        let expected = self.model.range(&request, self.model.revision);
        assert_eq!(self.bench.reader.range(&request), expected, "{request:?}");
        if state_machine::validate::range_stream(&request).is_ok() {
            let pieces = self.bench.reader.range_stream(&request, 100);
            let gathered = pieces.and_then(|mut pieces| {
                pieces.try_fold(RangeResponse::default(), |mut all, piece| {
                    let piece = piece?.range_response.unwrap();
                    assert!(all.header.is_none(), "only the last piece has a header");
                    all.kvs.extend(piece.kvs);
                    (all.header, all.more, all.count) = (piece.header, piece.more, piece.count);
                    Ok(all)
                })
            });
            assert_eq!(gathered, expected, "{request:?} as a stream");
        }
    }

    fn read_txn(&mut self) {
        self.flush();
        let mut request = self.txn(3);
        let reads = |op: &RequestOp| matches!(op.request, Some(request_op::Request::RequestRange(_)));
        request.success.retain(reads);
        request.failure.retain(reads);
        let (expected, _) = self.model.clone().txn(&request);
        assert_eq!(self.bench.reader.txn_read_only(&request), expected, "{request:?}");
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.rng.below(100) {
                0..=49 => self.write(),
                50..=74 => self.read(),
                75..=81 => self.read_txn(),
                82..=84 => self.compact(),
                85..=91 => {
                    let rows_max = 1 + self.rng.below(30) as usize;
                    self.bench.machine.compact_step(rows_max);
                }
                92..=94 => {
                    let mut bytes = Vec::new();
                    self.checkpoint = self.bench.reader.checkpoint(&mut bytes).map(|_| bytes);
                }
                95 => self.restart(),
                96 => {
                    self.flush();
                    self.check_leases();
                }
                _ => {
                    let keys_max = 1 + self.rng.below(9) as usize;
                    self.bench.machine.warm_step(keys_max);
                }
            }
        }
        self.flush();
        // Removal leaves exactly what a revision can still show, whatever way it went.
        self.bench.compact_physically(7);
        let kept: usize =
            self.model.history.values().map(|versions| kept(versions, self.model.compacted)).sum();
        assert_eq!(self.bench.machine.store().row_count(), kept);
        let before = self.bench.reader.hash_kv(0).unwrap();
        self.restart();
        assert_eq!(self.bench.reader.hash_kv(0).unwrap(), before);
    }
}

/// Versions that compaction at `compacted` keeps: all from there on, and before it the newest if it lives.
fn kept(versions: &[Version], compacted: i64) -> usize {
    let below = versions.partition_point(|(main, _)| *main < compacted);
    let is_shown = versions.get(below).is_none_or(|(main, _)| *main > compacted);
    let is_live = below > 0 && versions[below - 1].1.is_some();
    versions.len() - below + usize::from(is_shown && is_live)
}

#[test]
fn random_requests_agree_with_the_model() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let one = number("CAIRN_MODEL_SEED");
    let until = number("CAIRN_MODEL_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut seed = one.unwrap_or(0);
    loop {
        let run = std::panic::catch_unwind(|| Story::new(seed).run());
        if let Err(panic) = run {
            eprintln!("replay: CAIRN_MODEL_SEED={seed} cargo test -p cairn-state-machine --test model");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
        let goes_on = until.map_or(seed < SEEDS, |until| Instant::now() < until);
        if one.is_some() || !goes_on {
            break;
        }
    }
}
