//! The naive model: every version of every key in a list, leases with their numbers, and answers found by looking at all of them.

use std::collections::BTreeMap;

use api::error::EtcdError;
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::range_request::SortTarget;
use api::etcdserverpb::*;
use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use state_machine::{LeaseChange, Outcome};
use types::LeaseId;

/// What an entry comes to, with what it does to leases.
pub type Expected = Result<(Outcome, Vec<LeaseChange>), EtcdError>;

/// One version: None is a tombstone.
pub type Version = (i64, Option<KeyValue>);

#[derive(Default, Clone)]
pub struct Model {
    pub history: BTreeMap<Bytes, Vec<Version>>,
    /// Granted and remaining time to live.
    pub leases: BTreeMap<i64, (i64, i64)>,
    pub revision: i64,
    pub compacted: i64,
}

/// Changes of one request while it runs.
pub struct Writing<'a> {
    pub model: &'a mut Model,
    pub events: Vec<Event>,
}

impl Model {
    pub fn new() -> Model {
        Model { revision: 1, compacted: -1, ..Model::default() }
    }

    pub fn at(&self, revision: i64, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
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
    pub fn attached(&self, lease: i64) -> Vec<Bytes> {
        let all = self.at(i64::MAX, b"", b"\0");
        all.into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    pub fn range(&self, request: &RangeRequest, current: i64) -> Result<RangeResponse, EtcdError> {
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

    pub fn writing(&mut self) -> Writing<'_> {
        Writing { model: self, events: Vec::new() }
    }

    pub fn txn(&mut self, request: &TxnRequest) -> (Result<TxnResponse, EtcdError>, Vec<Event>) {
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

    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EtcdError> {
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

    pub fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
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

    pub fn grant(&mut self, id: i64, ttl: i64) -> Expected {
        if self.model.leases.contains_key(&id) {
            return Err(EtcdError::LeaseExist);
        }
        let ttl = ttl.max(1);
        self.model.leases.insert(id, (ttl, 0));
        let answer =
            LeaseGrantResponse { header: header(self.model.revision), id, ttl, ..Default::default() };
        Ok((Outcome::LeaseGrant(answer), vec![LeaseChange::Granted { id: LeaseId(id), ttl }]))
    }

    pub fn revoke(&mut self, id: i64) -> Expected {
        self.model.leases.remove(&id).ok_or(EtcdError::LeaseNotFound)?;
        let keys = self.model.attached(id);
        self.delete_all(keys.into_iter());
        let answer = LeaseRevokeResponse { header: header(self.seen()) };
        Ok((Outcome::LeaseRevoke(answer), vec![LeaseChange::Revoked { id: LeaseId(id) }]))
    }

    pub fn checkpoint(&mut self, checkpoints: &[LeaseCheckpoint]) -> (Outcome, Vec<LeaseChange>) {
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

    pub fn close(self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.model.revision += 1;
        }
        self.events
    }
}
