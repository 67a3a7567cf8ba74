//! Random requests against the state machine and against a model that keeps every version of every key in a list and answers by
//! looking at all of them. Ranges with every option at every revision, txns, deletes, leases, compaction in steps, restarts with
//! and without a checkpoint, small memory budgets. Which keys a lease holds the model reads off the keys.
//!
//! `CAIRN_MODEL_SEED=n` replays one seed, `CAIRN_MODEL_SECONDS=n` goes on with new seeds for that long.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::error::EtcdError;
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::range_request::SortTarget;
use api::etcdserverpb::*;
use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use common::*;
use state_machine::{LeaseChange, LeaseFacts, Options, Outcome};
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

/// One version: None is a tombstone.
type Version = (i64, Option<KeyValue>);

#[derive(Default, Clone)]
struct Model {
    history: BTreeMap<Bytes, Vec<Version>>,
    /// Granted and remaining time to live.
    leases: BTreeMap<i64, (i64, i64)>,
    revision: i64,
    compacted: i64,
}

/// Changes of one request while it runs.
struct Writing<'a> {
    model: &'a mut Model,
    events: Vec<Event>,
}

impl Model {
    fn new() -> Model {
        Model { revision: 1, compacted: -1, ..Model::default() }
    }

    fn at(&self, revision: i64, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let inside = |candidate: &[u8]| match end {
            [] => candidate == key,
            [0] => candidate >= key,
            end => candidate >= key && candidate < end,
        };
        let newest = |versions: &Vec<Version>| {
            versions.iter().rev().find(|(main, _)| *main <= revision).and_then(|(_, kv)| kv.clone())
        };
        self.history
            .iter()
            .filter(|(key, _)| inside(key))
            .filter_map(|(_, versions)| newest(versions))
            .collect()
    }

    /// Keys on a lease, ascending.
    fn attached(&self, lease: i64) -> Vec<Bytes> {
        let all = self.at(i64::MAX, b"", b"\0");
        all.into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    fn range(&self, request: &RangeRequest, current: i64) -> Result<RangeResponse, EtcdError> {
        let at = if request.revision <= 0 { current } else { request.revision };
        if at > current {
            return Err(EtcdError::FutureRev);
        }
        if at < self.compacted {
            return Err(EtcdError::Compacted);
        }
        let mut kvs = self.at(at, &request.key, &request.range_end);
        let count = kvs.len() as i64;
        let header = Some(ResponseHeader { revision: current, ..Default::default() });
        if request.count_only {
            return Ok(RangeResponse { header, count, ..Default::default() });
        }
        let (order, target) = (request.sort_order, request.sort_target);
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let fetches_all =
            filters.iter().any(|bound| *bound != 0) || order == 2 || (order == 1 && target != 0);
        if request.limit > 0 && !fetches_all {
            kvs.truncate(request.limit as usize + 1);
        }
        kvs.retain(|kv| {
            (filters[0] == 0 || kv.mod_revision >= filters[0])
                && (filters[1] == 0 || kv.mod_revision <= filters[1])
                && (filters[2] == 0 || kv.create_revision >= filters[2])
                && (filters[3] == 0 || kv.create_revision <= filters[3])
        });
        match target {
            1 => kvs.sort_by_key(|kv| kv.version),
            2 => kvs.sort_by_key(|kv| kv.create_revision),
            3 => kvs.sort_by_key(|kv| kv.mod_revision),
            4 => kvs.sort_by_key(|kv| kv.value.clone()),
            _ => {}
        }
        if order == 2 {
            kvs.reverse();
        }
        let more = request.limit > 0 && kvs.len() as i64 > request.limit;
        if request.limit > 0 {
            kvs.truncate(request.limit as usize);
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
            if target != SortTarget::Value as i32 {
                kvs.iter_mut().for_each(|kv| kv.lease = 0);
            }
        }
        Ok(RangeResponse { header, kvs, more, count })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let ordering =
            |kv: &KeyValue| match (CompareTarget::try_from(compare.target).unwrap(), &compare.target_union) {
                (CompareTarget::Version, Some(TargetUnion::Version(n))) => kv.version.cmp(n),
                (CompareTarget::Version, _) => kv.version.cmp(&0),
                (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => kv.create_revision.cmp(n),
                (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
                (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => kv.mod_revision.cmp(n),
                (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
                (CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.value.cmp(value),
                (CompareTarget::Value, _) => kv.value.as_ref().cmp(b"".as_slice()),
                (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => kv.lease.cmp(n),
                (CompareTarget::Lease, _) => kv.lease.cmp(&0),
            };
        let fits = |kv: &KeyValue| match CompareResult::try_from(compare.result).unwrap() {
            CompareResult::Equal => ordering(kv).is_eq(),
            CompareResult::NotEqual => ordering(kv).is_ne(),
            CompareResult::Greater => ordering(kv).is_gt(),
            CompareResult::Less => ordering(kv).is_lt(),
        };
        let kvs = self.at(self.revision, &compare.key, &compare.range_end);
        if kvs.is_empty() {
            return compare.target != CompareTarget::Value as i32 && fits(&KeyValue::default());
        }
        kvs.iter().all(fits)
    }

    fn writing(&mut self) -> Writing<'_> {
        Writing { model: self, events: Vec::new() }
    }

    fn txn(&mut self, request: &TxnRequest) -> (Result<TxnResponse, EtcdError>, Vec<Event>) {
        let before = self.clone();
        let mut writing = self.writing();
        let done = before.check(request).map(|()| {
            let mut response = writing.run(request, &before);
            response.header = header(writing.seen());
            response
        });
        (done, writing.close())
    }

    fn check(&self, request: &TxnRequest) -> Result<(), EtcdError> {
        let mut path = Vec::new();
        self.flatten(request, &mut path);
        for op in &path {
            let request_op::Request::RequestPut(put) = op else { continue };
            let keeps = put.ignore_value || put.ignore_lease;
            if keeps && self.at(self.revision, &put.key, b"").is_empty() {
                return Err(EtcdError::KeyNotFound);
            }
            if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                return Err(EtcdError::LeaseNotFound);
            }
        }
        for op in &path {
            if let request_op::Request::RequestRange(range) = op {
                if range.revision > self.revision {
                    return Err(EtcdError::FutureRev);
                }
                if range.revision != 0 && range.revision < self.compacted {
                    return Err(EtcdError::Compacted);
                }
            }
        }
        Ok(())
    }

    fn flatten(&self, request: &TxnRequest, path: &mut Vec<request_op::Request>) {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        for op in if succeeded { &request.success } else { &request.failure } {
            match op.request.as_ref().unwrap() {
                request_op::Request::RequestTxn(nested) => self.flatten(nested, path),
                other => path.push(other.clone()),
            }
        }
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl Writing<'_> {
    fn main(&self) -> i64 {
        self.model.revision + 1
    }

    fn seen(&self) -> i64 {
        self.model.revision + i64::from(!self.events.is_empty())
    }

    fn live(&self, key: &[u8]) -> Option<KeyValue> {
        self.model.at(i64::MAX, key, b"").pop()
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EtcdError> {
        if request.lease != 0 && !self.model.leases.contains_key(&request.lease) {
            return Err(EtcdError::LeaseNotFound);
        }
        let previous = self.live(&request.key);
        if previous.is_none() && (request.ignore_value || request.ignore_lease) {
            return Err(EtcdError::KeyNotFound);
        }
        let main = self.main();
        let old = previous.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            value: if request.ignore_value { old.value } else { request.value.clone() },
            create_revision: if previous.is_some() { old.create_revision } else { main },
            mod_revision: main,
            version: old.version + 1,
            lease: if request.ignore_lease { old.lease } else { request.lease },
        };
        self.model.history.entry(request.key.clone()).or_default().push((main, Some(kv.clone())));
        self.events.push(Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None });
        Ok(PutResponse { header: header(main), prev_kv: previous.filter(|_| request.prev_kv) })
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = self.model.at(i64::MAX, &request.key, &request.range_end);
        self.delete_all(doomed.iter().map(|kv| kv.key.clone()));
        let deleted = doomed.len() as i64;
        let prev_kvs = if request.prev_kv { doomed } else { Vec::new() };
        DeleteRangeResponse { header: header(self.seen()), deleted, prev_kvs }
    }

    fn delete_all(&mut self, keys: impl Iterator<Item = Bytes>) {
        let main = self.main();
        for key in keys {
            self.model.history.get_mut(&key).unwrap().push((main, None));
            let kv = KeyValue { key, mod_revision: main, ..Default::default() };
            self.events.push(Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None });
        }
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Expected {
        if self.model.leases.contains_key(&id) {
            return Err(EtcdError::LeaseExist);
        }
        let ttl = ttl.max(1);
        self.model.leases.insert(id, (ttl, 0));
        let answer =
            LeaseGrantResponse { header: header(self.model.revision), id, ttl, ..Default::default() };
        Ok((Outcome::LeaseGrant(answer), vec![LeaseChange::Granted { id: LeaseId(id), ttl }]))
    }

    fn revoke(&mut self, id: i64) -> Expected {
        self.model.leases.remove(&id).ok_or(EtcdError::LeaseNotFound)?;
        let keys = self.model.attached(id);
        self.delete_all(keys.into_iter());
        let answer = LeaseRevokeResponse { header: header(self.seen()) };
        Ok((Outcome::LeaseRevoke(answer), vec![LeaseChange::Revoked { id: LeaseId(id) }]))
    }

    fn checkpoint(&mut self, checkpoints: &[LeaseCheckpoint]) -> (Outcome, Vec<LeaseChange>) {
        let mut changes = Vec::new();
        for &LeaseCheckpoint { id, remaining_ttl } in checkpoints {
            if let Some((_, remaining)) = self.model.leases.get_mut(&id) {
                *remaining = remaining_ttl;
                changes.push(LeaseChange::Checkpointed { id: LeaseId(id), remaining_ttl });
            }
        }
        let answer = LeaseCheckpointResponse { header: header(self.model.revision) };
        (Outcome::LeaseCheckpoint(answer), changes)
    }

    fn run(&mut self, request: &TxnRequest, before: &Model) -> TxnResponse {
        let succeeded = request.compare.iter().all(|compare| before.holds(compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let responses = ops
            .iter()
            .map(|op| {
                let response = match op.request.as_ref().unwrap() {
                    request_op::Request::RequestRange(range) => {
                        response_op::Response::ResponseRange(self.model.range(range, self.seen()).unwrap())
                    }
                    request_op::Request::RequestPut(put) => response_op::Response::ResponsePut(
                        self.put(put)
                            .unwrap_or_else(|_| PutResponse { header: header(self.seen()), prev_kv: None }),
                    ),
                    request_op::Request::RequestDeleteRange(delete) => {
                        response_op::Response::ResponseDeleteRange(self.delete(delete))
                    }
                    request_op::Request::RequestTxn(nested) => {
                        response_op::Response::ResponseTxn(self.run(nested, before))
                    }
                };
                ResponseOp { response: Some(response) }
            })
            .collect();
        TxnResponse { header: header(0), succeeded, responses }
    }

    fn close(self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.model.revision += 1;
        }
        self.events
    }
}

/// What an entry comes to, with what it does to leases.
type Expected = Result<(Outcome, Vec<LeaseChange>), EtcdError>;

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
