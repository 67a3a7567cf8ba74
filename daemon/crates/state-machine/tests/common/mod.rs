//! What the tests of this crate share: a log that is applied as it is written, and a sink that remembers.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;

use api::error::EtcdError;
use api::etcdserverpb::*;
use api::mvccpb::{Event, KeyValue};
use api::raftpb;
use bytes::Bytes;
use prost::Message;
use state_machine::store::Store;
use state_machine::{LeaseChange, Memory, Options, Outcome, Reader, Sink, StateMachine};
use types::{Entry, EntryKind, LeaseId, LogIndex, LogPosition, Revision, Term};

/// Everything the sink was told, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Lease(LeaseChange),
    Events(i64, Vec<Event>),
    ConfChange(u64, Option<raftpb::ConfChangeV2>),
    SpaceExceeded(u64),
    Outcome(u64, u64, Result<Outcome, EtcdError>),
}

#[derive(Default)]
pub struct Recorder {
    pub told: Vec<Told>,
    pub deaf: bool,
}

impl Sink for Recorder {
    fn outcome(&mut self, index: LogIndex, id: u64, outcome: Result<Outcome, EtcdError>) {
        self.told.push(Told::Outcome(index.0, id, outcome));
    }
    fn wants_events(&self) -> bool {
        !self.deaf
    }
    fn events(&mut self, revision: Revision, events: Vec<Event>) {
        self.told.push(Told::Events(revision.0, events));
    }
    fn lease(&mut self, change: LeaseChange) {
        self.told.push(Told::Lease(change));
    }
    fn conf_change(&mut self, index: LogIndex, change: Option<raftpb::ConfChangeV2>) {
        self.told.push(Told::ConfChange(index.0, change));
    }
    fn space_exceeded(&mut self, index: LogIndex) {
        self.told.push(Told::SpaceExceeded(index.0));
    }
}

pub struct Bench<S: Store = Memory> {
    pub machine: StateMachine<S>,
    pub reader: Reader<S>,
    pub sink: Recorder,
    pub options: Options,
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Bench<Memory> {
    pub fn new() -> Self {
        Bench::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        Bench::open(Arc::new(Memory::new()), options)
    }
}

impl<S: Store> Bench<S> {
    pub fn open(store: Arc<S>, options: Options) -> Self {
        let machine = StateMachine::open(store, options.clone(), None).expect("the store opens");
        let reader = machine.reader();
        Bench { machine, reader, sink: Recorder::default(), options }
    }

    pub fn reopen(&mut self, checkpoint: Option<&[u8]>) {
        let store = Arc::clone(self.machine.store());
        self.machine =
            StateMachine::open(store, self.options.clone(), checkpoint).expect("the store opens again");
        self.reader = self.machine.reader();
    }

    pub fn next_entry(&self, kind: EntryKind, data: impl Into<Bytes>) -> Entry {
        Entry { term: Term(2), index: self.machine.applied().index.next(), kind, data: data.into() }
    }

    /// Applies one entry and answers its outcome.
    pub fn apply_bytes(&mut self, kind: EntryKind, data: impl Into<Bytes>) -> Result<Outcome, EtcdError> {
        let entry = self.next_entry(kind, data);
        self.machine.apply(std::slice::from_ref(&entry), &mut self.sink);
        assert_eq!(self.machine.applied(), LogPosition { term: Term(2), index: entry.index });
        match self.sink.told.last() {
            Some(Told::Outcome(index, _, outcome)) if *index == entry.index.0 => outcome.clone(),
            other => panic!("an entry ends with its outcome, not {other:?}"),
        }
    }

    pub fn request(&mut self, request: InternalRaftRequest) -> Result<Outcome, EtcdError> {
        self.apply_bytes(EntryKind::Normal, encode(&request))
    }

    pub fn put(&mut self, request: PutRequest) -> Result<PutResponse, EtcdError> {
        match self.request(InternalRaftRequest { put: Some(request), ..Default::default() })? {
            Outcome::Put(response) => Ok(response),
            other => panic!("a put is answered as a put, not {other:?}"),
        }
    }

    /// Puts and answers the new revision.
    pub fn set(&mut self, key: &str, value: &str) -> i64 {
        let put = PutRequest { key: bytes(key), value: bytes(value), ..Default::default() };
        self.put(put).expect("a plain put succeeds").header.expect("a header").revision
    }

    pub fn delete(&mut self, key: &str, end: &str) -> DeleteRangeResponse {
        let delete = DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false };
        self.delete_range(delete).expect("a delete succeeds")
    }

    pub fn delete_range(&mut self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, EtcdError> {
        match self.request(InternalRaftRequest { delete_range: Some(request), ..Default::default() })? {
            Outcome::DeleteRange(response) => Ok(response),
            other => panic!("a delete is answered as a delete, not {other:?}"),
        }
    }

    pub fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, EtcdError> {
        match self.request(InternalRaftRequest { txn: Some(request), ..Default::default() })? {
            Outcome::Txn(response) => Ok(response),
            other => panic!("a txn is answered as a txn, not {other:?}"),
        }
    }

    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, EtcdError> {
        match self.request(grant(id, ttl))? {
            Outcome::LeaseGrant(response) => Ok(response),
            other => panic!("a grant is answered as a grant, not {other:?}"),
        }
    }

    pub fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, EtcdError> {
        match self.request(revoke(id))? {
            Outcome::LeaseRevoke(response) => Ok(response),
            other => panic!("a revocation is answered as a revocation, not {other:?}"),
        }
    }

    /// Attached keys, as text.
    pub fn lease_keys(&self, id: i64) -> Option<Vec<String>> {
        let keys = self.reader.lease_keys(LeaseId(id))?;
        Some(keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect())
    }

    pub fn compact(&mut self, revision: i64) -> Result<CompactionResponse, EtcdError> {
        let compaction = CompactionRequest { revision, physical: false };
        match self.request(InternalRaftRequest { compaction: Some(compaction), ..Default::default() })? {
            Outcome::Compaction(response) => Ok(response),
            other => panic!("a compaction is answered as a compaction, not {other:?}"),
        }
    }

    /// Runs the physical part to its end.
    pub fn compact_physically(&mut self, rows_max: usize) {
        while self.machine.compact_step(rows_max) != state_machine::CompactProgress::Idle {}
    }

    pub fn range(&self, key: &str, end: &str) -> RangeResponse {
        self.reader.range(&range(key, end)).expect("a plain range succeeds")
    }

    pub fn value(&self, key: &str) -> Option<String> {
        self.range(key, "").kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
    }

    pub fn keys(&self, key: &str, end: &str) -> Vec<String> {
        names(&self.range(key, end).kvs)
    }
}

pub fn encode(request: &InternalRaftRequest) -> Vec<u8> {
    let mut request = request.clone();
    request.header.get_or_insert_with(|| RequestHeader { id: 77, ..Default::default() });
    request.encode_to_vec()
}

pub fn grant(id: i64, ttl: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_grant: Some(LeaseGrantRequest { id, ttl }), ..Default::default() }
}

pub fn revoke(id: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_revoke: Some(LeaseRevokeRequest { id }), ..Default::default() }
}

pub fn checkpoint(remainders: &[(i64, i64)]) -> InternalRaftRequest {
    let checkpoint = |&(id, remaining_ttl): &(i64, i64)| LeaseCheckpoint { id, remaining_ttl };
    let checkpoints = remainders.iter().map(checkpoint).collect();
    InternalRaftRequest {
        lease_checkpoint: Some(LeaseCheckpointRequest { checkpoints }),
        ..Default::default()
    }
}

pub fn names(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

pub fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

pub fn op_put(key: &str, value: &str) -> RequestOp {
    op(request_op::Request::RequestPut(PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..Default::default()
    }))
}

pub fn op_delete(key: &str, end: &str) -> RequestOp {
    op(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(end),
        prev_kv: false,
    }))
}

pub fn op_range(request: RangeRequest) -> RequestOp {
    op(request_op::Request::RequestRange(request))
}

pub fn op_txn(request: TxnRequest) -> RequestOp {
    op(request_op::Request::RequestTxn(request))
}

pub fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}
