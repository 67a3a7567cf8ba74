//! Values that a batch will need and that are not in memory, read from the store before the lock is taken, so that readers do not
//! wait for a disk. An optimisation only: what is missing here is read when it is needed.

use std::collections::BTreeMap;

use api::etcdserverpb::compare::CompareTarget;
use api::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};
use types::RowId;

use super::decode::Command;
use crate::state::{Shared, fetch};
use crate::store::{Store, StoredRow};

/// Rows read ahead for one batch. Ranges are not looked into: a single key is the usual case, and the rest is bounded anyway.
const ROWS_MAX: usize = 1024;

pub(super) type Prefetched = BTreeMap<RowId, StoredRow>;

pub(super) fn prefetch<S: Store>(shared: &Shared<S>, commands: &[Command]) -> Prefetched {
    let mut keys: Vec<&[u8]> = Vec::new();
    for command in commands {
        match command {
            Command::Put { request, .. } => put(request, &mut keys),
            Command::Request { request, .. } => {
                if let Some(request) = &request.put {
                    put(request, &mut keys);
                } else if let Some(delete) = &request.delete_range {
                    if delete.prev_kv {
                        keys.push(&delete.key);
                    }
                } else if let Some(request) = &request.txn {
                    txn(request, &mut keys);
                }
            }
            _ => {}
        }
    }
    if keys.is_empty() {
        return Prefetched::new();
    }
    let ids: Vec<RowId> = {
        let state = shared.state.read();
        let missing = |key: &&[u8]| {
            let record = state.index.get(key)?;
            (record.is_live() && record.value().is_none()).then(|| record.id())
        };
        keys.iter().filter_map(missing).take(ROWS_MAX).collect()
    };
    let rows = fetch(&*shared.store, &ids);
    ids.into_iter().zip(rows).filter_map(|(id, row)| Some((id, row?))).collect()
}

fn put<'a>(request: &'a PutRequest, keys: &mut Vec<&'a [u8]>) {
    if request.prev_kv || request.ignore_value || request.ignore_lease {
        keys.push(&request.key);
    }
}

fn txn<'a>(request: &'a TxnRequest, keys: &mut Vec<&'a [u8]>) {
    let values = request.compare.iter().filter(|compare| compare.target == CompareTarget::Value as i32);
    keys.extend(values.map(|compare| compare.key.as_ref()));
    for RequestOp { request } in request.success.iter().chain(&request.failure) {
        match request {
            Some(Request::RequestPut(request)) => put(request, keys),
            Some(Request::RequestRange(range)) if !range.keys_only && !range.count_only => {
                keys.push(&range.key)
            }
            Some(Request::RequestDeleteRange(delete)) if delete.prev_kv => keys.push(&delete.key),
            Some(Request::RequestTxn(nested)) => txn(nested, keys),
            _ => {}
        }
    }
}
