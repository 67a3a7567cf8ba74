//! What a txn decides before it changes anything: its path, judged on the state before it, and whether that path may run.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use api::error::EtcdError;
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request};
use bytes::Bytes;
use types::{KeyRange, RowId};

use crate::index::{Index, Record};
use crate::range::bounds;
use crate::state::{State, decode_row};
use crate::store::StoredRow;

/// The newest state, with a way to values that are not in memory.
pub(crate) struct View<'a> {
    pub index: &'a Index,
    pub fetch: &'a dyn Fn(&[RowId]) -> Vec<Option<StoredRow>>,
}

/// Which branch each txn on the path takes: the outermost first, nested ones as execution meets them.
pub(crate) type Path = Vec<bool>;

/// Evaluates all comparisons of the path, nested ones included, on the state as it is.
pub(crate) fn choose(view: &View<'_>, request: &TxnRequest) -> Path {
    let mut path = Path::new();
    choose_into(view, request, &mut path);
    path
}

fn choose_into(view: &View<'_>, request: &TxnRequest, path: &mut Path) {
    let succeeded = request.compare.iter().all(|compare| holds(view, compare));
    path.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            choose_into(view, nested, path);
        }
    }
}

pub(crate) fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn holds(view: &View<'_>, compare: &Compare) -> bool {
    let range = KeyRange::from_request(&compare.key, &compare.range_end);
    let mut any = false;
    let mut all = true;
    if let KeyRange::One(key) = &range {
        if let Some(record) = view.index.get(key).filter(|record| record.is_live()) {
            (any, all) = (true, record_holds(view, record, compare));
        }
    } else {
        let (from, end) = bounds(&range);
        let _ = view.index.walk(&from, end.as_deref(), |_, record| {
            if !record.is_live() {
                return ControlFlow::Continue(());
            }
            any = true;
            all = record_holds(view, record, compare);
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    if any {
        return all;
    }
    // Nothing there: a value is never right, the numbers are zero.
    compare.target != CompareTarget::Value as i32 && numbers_hold(compare, 0, 0, 0, 0)
}

fn record_holds(view: &View<'_>, record: &Record, compare: &Compare) -> bool {
    if compare.target == CompareTarget::Value as i32 {
        let empty = Bytes::new();
        let wanted = match &compare.target_union {
            Some(TargetUnion::Value(value)) => value,
            _ => &empty,
        };
        let ordering = match record.value() {
            Some(value) => value.cmp(wanted),
            None => {
                let id = record.id();
                let row = (view.fetch)(&[id]).pop().flatten();
                let row = row.unwrap_or_else(|| panic!("row {id} of a live key is in the store"));
                decode_row(id, &row).value.as_ref().cmp(wanted)
            }
        };
        return result_holds(compare.result, ordering);
    }
    let facts = record.facts();
    numbers_hold(compare, facts.version, facts.created, record.modified(), facts.lease)
}

/// A union of another kind than the target counts as zero. An unknown target compares as equal.
fn numbers_hold(compare: &Compare, version: i64, created: i64, modified: i64, lease: i64) -> bool {
    let union = &compare.target_union;
    let (have, wanted) = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => {
            (version, if let Some(TargetUnion::Version(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Create) => {
            (created, if let Some(TargetUnion::CreateRevision(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Mod) => {
            (modified, if let Some(TargetUnion::ModRevision(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Lease) => (lease, if let Some(TargetUnion::Lease(n)) = union { *n } else { 0 }),
        Ok(CompareTarget::Value) | Err(_) => (0, 0),
    };
    result_holds(compare.result, have.cmp(&wanted))
}

/// An unknown operator always holds.
fn result_holds(result: i32, ordering: Ordering) -> bool {
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// Whether the path may run, on the state before it: first all puts in order, then all ranges. `top_ranges` is false while members
/// older than 3.7 belong to the cluster.
pub(super) fn check(
    state: &State,
    request: &TxnRequest,
    path: &Path,
    top_ranges: bool,
) -> Result<(), EtcdError> {
    check_puts(state, request, &mut path.iter())?;
    check_all_ranges(state, request, &mut path.iter(), top_ranges)
}

fn check_puts(
    state: &State,
    request: &TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<(), EtcdError> {
    let succeeded = *path.next().expect("the path covers every txn on it");
    for op in branch(request, succeeded) {
        match &op.request {
            Some(Request::RequestPut(put)) => check_put_in_txn(state, put)?,
            Some(Request::RequestTxn(nested)) => check_puts(state, nested, path)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_all_ranges(
    state: &State,
    request: &TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
    own_ranges: bool,
) -> Result<(), EtcdError> {
    let succeeded = *path.next().expect("the path covers every txn on it");
    for op in branch(request, succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) if own_ranges => check_range(state, range)?,
            Some(Request::RequestTxn(nested)) => check_all_ranges(state, nested, path, true)?,
            _ => {}
        }
    }
    Ok(())
}

/// The rules of a put that need the state, in the order of a plain put; [`check_put_in_txn`] asks them the other way round.
pub(super) fn check_put(state: &State, put: &PutRequest) -> Result<(), EtcdError> {
    has_lease(state, put).and_then(|()| has_key_to_keep(state, put))
}

/// As observed on etcd 3.5: inside a txn a missing key is told before a missing lease.
fn check_put_in_txn(state: &State, put: &PutRequest) -> Result<(), EtcdError> {
    has_key_to_keep(state, put).and_then(|()| has_lease(state, put))
}

fn has_lease(state: &State, put: &PutRequest) -> Result<(), EtcdError> {
    if put.lease == 0 || state.leases.exists(put.lease) { Ok(()) } else { Err(EtcdError::LeaseNotFound) }
}

fn has_key_to_keep(state: &State, put: &PutRequest) -> Result<(), EtcdError> {
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && !state.index.get(&put.key).is_some_and(Record::is_live) {
        return Err(EtcdError::KeyNotFound);
    }
    Ok(())
}

/// Inside a txn a negative revision counts as below the compact revision, unlike in a plain range.
pub(crate) fn check_range(state: &State, range: &RangeRequest) -> Result<(), EtcdError> {
    match range.revision {
        0 => Ok(()),
        asked if asked > state.revision => Err(EtcdError::FutureRev),
        asked if asked < state.compacted => Err(EtcdError::Compacted),
        _ => Ok(()),
    }
}
