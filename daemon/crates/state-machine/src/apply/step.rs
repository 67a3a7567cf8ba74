//! Changes of keys: one batch of entries against the index, with the rows that go to the store.

use std::ops::ControlFlow;

use api::error::EtcdError;
use api::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op::Request, response_op::Response,
};
use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use types::{KeyRange, Revision, RowId};

use super::prefetch::Prefetched;
use super::txn;
use crate::index::{Record, SUB_MAX};
use crate::range::{Plan, bounds};
use crate::read::{readable, whole};
use crate::rows;
use crate::state::{State, decode_row, fetch};
use crate::store::{Change, Store, StoredRow, WriteBatch};

/// One batch being applied. Within it requests open and close revisions; readers see all of it or nothing.
pub(super) struct Step<'a, S> {
    pub state: &'a mut State,
    pub store: &'a S,
    pub batch: WriteBatch,
    /// Rows above this revision are in `batch` and not yet in the store.
    base: i64,
    prefetched: Prefetched,
    /// Where the rows of `batch` lie in it, ascending.
    pending: Vec<(RowId, u32)>,
    main: i64,
    sub: i64,
    /// None while nobody listens.
    events: Option<Vec<Event>>,
}

pub(super) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl<'a, S: Store> Step<'a, S> {
    pub fn new(
        state: &'a mut State,
        store: &'a S,
        batch: WriteBatch,
        prefetched: Prefetched,
        wants_events: bool,
    ) -> Step<'a, S> {
        let base = state.revision;
        let events = wants_events.then(Vec::new);
        Step { state, store, batch, base, prefetched, pending: Vec::new(), main: base + 1, sub: 0, events }
    }

    /// Opens the revision that the next request takes if it changes anything.
    pub fn begin(&mut self) {
        self.main = self.state.revision + 1;
        self.sub = 0;
    }

    /// Closes it. Answers the revision and its events if there was a change and somebody listens.
    pub fn end(&mut self) -> Option<(Revision, Vec<Event>)> {
        if self.sub == 0 {
            return None;
        }
        self.state.revision = self.main;
        self.sub = 0;
        let events = self.events.as_mut()?;
        Some((Revision(self.main), std::mem::take(events)))
    }

    /// The revision a read inside the request sees: the new one as soon as something changed.
    pub(super) fn seen(&self) -> i64 {
        if self.sub > 0 { self.main } else { self.state.revision }
    }

    fn next_id(&mut self) -> RowId {
        assert!(self.sub < SUB_MAX, "one request changes fewer than two thousand million keys");
        let id = RowId { main: Revision(self.main), sub: self.sub };
        self.sub += 1;
        id
    }

    fn write_row(&mut self, id: RowId, row: StoredRow) {
        self.pending.push((id, self.batch.changes.len() as u32));
        self.batch.put_row(id, row);
    }

    /// Rows by coordinates: from this batch, read ahead, or from the store.
    pub fn fetch(&self, ids: &[RowId]) -> Vec<Option<StoredRow>> {
        if let [id] = ids {
            return vec![self.known(id).unwrap_or_else(|| fetch(self.store, ids).pop().flatten())];
        }
        let mut rows: Vec<Option<Option<StoredRow>>> = ids.iter().map(|id| self.known(id)).collect();
        let unknown: Vec<RowId> =
            ids.iter().zip(&rows).filter(|(_, row)| row.is_none()).map(|(id, _)| *id).collect();
        let mut read = fetch(self.store, &unknown).into_iter();
        rows.iter_mut().map(|row| row.take().unwrap_or_else(|| read.next().flatten())).collect()
    }

    /// None when only the store can tell.
    fn known(&self, id: &RowId) -> Option<Option<StoredRow>> {
        if id.main.0 <= self.base {
            return self.prefetched.get(id).cloned().map(Some);
        }
        let row = |at: usize| match &self.batch.changes[self.pending[at].1 as usize] {
            Change::PutRow { row, .. } => Some(row.clone()),
            _ => None,
        };
        Some(self.pending.binary_search_by_key(id, |(pending, _)| *pending).ok().and_then(row))
    }

    /// The key-value of a live record.
    fn kv(&self, key: &[u8], record: &Record) -> KeyValue {
        let facts = record.facts();
        let value = match record.value() {
            Some(value) => Bytes::copy_from_slice(value),
            None => {
                let id = record.id();
                let row = self.fetch(&[id]).pop().flatten();
                decode_row(id, &row.unwrap_or_else(|| panic!("row {id} of a live key is in the store"))).value
            }
        };
        KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: facts.created,
            mod_revision: record.modified(),
            version: facts.version,
            value,
            lease: facts.lease,
        }
    }

    fn live_kv(&self, key: &[u8]) -> Option<KeyValue> {
        let record = self.state.index.get(key).filter(|record| record.is_live())?;
        Some(self.kv(key, record))
    }

    fn put_version(&mut self, key: &Bytes, value: &Bytes, lease: i64) {
        let id = self.next_id();
        let (facts, lease_before) = self.state.index.put(key, id, lease, value);
        self.state.leases.reattach(key, lease_before, lease);
        if facts.version == 1 {
            self.state.recent.note(self.main, key, true);
        }
        let kv = KeyValue {
            key: key.clone(),
            create_revision: facts.created,
            mod_revision: self.main,
            version: facts.version,
            value: value.clone(),
            lease,
        };
        self.write_row(id, rows::put_row(&kv));
        if let Some(events) = &mut self.events {
            events.push(Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None });
        }
    }

    pub(super) fn delete_version(&mut self, key: Bytes) {
        let id = self.next_id();
        let lease_before = self.state.index.delete(&key, id);
        self.state.leases.reattach(&key, lease_before, 0);
        self.state.recent.note(self.main, &key, false);
        self.write_row(id, rows::tombstone_row(&key));
        if let Some(events) = &mut self.events {
            let kv = KeyValue { key, mod_revision: self.main, ..Default::default() };
            events.push(Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None });
        }
    }

    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EtcdError> {
        txn::check_put(self.state, request)?;
        let keeps = request.ignore_value || request.ignore_lease;
        let previous = if request.prev_kv || keeps { self.live_kv(&request.key) } else { None };
        let (mut value, mut lease) = (&request.value, request.lease);
        if let Some(previous) = &previous {
            if request.ignore_value {
                value = &previous.value;
            }
            if request.ignore_lease {
                lease = previous.lease;
            }
        }
        self.put_version(&request.key, value, lease);
        Ok(PutResponse { header: header(self.main), prev_kv: previous.filter(|_| request.prev_kv) })
    }

    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = KeyRange::from_request(&request.key, &request.range_end);
        let mut doomed: Vec<Bytes> = Vec::new();
        let mut previous = Vec::new();
        if let KeyRange::One(key) = &range {
            if let Some(record) = self.state.index.get(key).filter(|record| record.is_live()) {
                if request.prev_kv {
                    previous.push(self.kv(key, record));
                }
                doomed.push(key.clone());
            }
        } else {
            let (from, end) = bounds(&range);
            let _ = self.state.index.walk(&from, end.as_deref(), |key, record| -> ControlFlow<()> {
                if record.is_live() {
                    doomed.push(Bytes::copy_from_slice(key));
                    if request.prev_kv {
                        previous.push(self.kv(key, record));
                    }
                }
                ControlFlow::Continue(())
            });
        }
        let deleted = doomed.len() as i64;
        for key in doomed {
            self.delete_version(key);
        }
        DeleteRangeResponse { header: header(self.seen()), deleted, prev_kvs: previous }
    }

    /// A range as part of a write: sees what the same txn wrote before it.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        let plan = Plan::new(request)?;
        let seen = self.seen();
        let at = if self.sub > 0 && request.revision <= 0 {
            seen
        } else {
            readable(self.state, request.revision)?
        };
        // Counting by the tree is exact only for what the index shows as newest, which a txn's own writes are part of.
        whole(self.state, seen, &plan, at, |ids| self.fetch(ids)).ok_or(EtcdError::Compacted)
    }

    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, EtcdError> {
        let path = {
            let fetch = |ids: &[RowId]| self.fetch(ids);
            txn::choose(&txn::View { index: &self.state.index, fetch: &fetch }, request)
        };
        txn::check(self.state, request, &path, self.state.cluster.checks_txn_ranges())?;
        let mut steps = path.iter();
        let mut response = self.run(request, &mut steps);
        response.header = header(self.seen());
        Ok(response)
    }

    fn run(&mut self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> TxnResponse {
        let succeeded = *path.next().expect("the path covers every txn on it");
        let ops = txn::branch(request, succeeded);
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(ResponseOp { response: self.run_op(op, path) });
        }
        // Only the outermost response names a revision.
        TxnResponse { header: header(0), succeeded, responses }
    }

    /// After the checks an op can fail only when a request came past the validation at the edge (a put that keeps a value which the
    /// same txn deleted, a sort order outside its enum). etcd stops the process then; here it has no effect and an empty answer.
    fn run_op(&mut self, op: &RequestOp, path: &mut std::slice::Iter<'_, bool>) -> Option<Response> {
        Some(match op.request.as_ref()? {
            Request::RequestRange(range) => Response::ResponseRange(
                self.range(range)
                    .unwrap_or_else(|_| RangeResponse { header: header(self.seen()), ..Default::default() }),
            ),
            Request::RequestPut(put) => Response::ResponsePut(
                self.put(put)
                    .unwrap_or_else(|_| PutResponse { header: header(self.seen()), ..Default::default() }),
            ),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete_range(delete)),
            Request::RequestTxn(nested) => Response::ResponseTxn(self.run(nested, path)),
        })
    }
}
