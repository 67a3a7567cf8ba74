//! The gates before a request, asked in one order on every member: corrupt, no space, then (when applied) quota.
//!
//! The first two follow from the replicated alarms and so decide alike everywhere. The quota is local: over it a request is applied
//! all the same, only the answer changes and an alarm is asked for.

use api::error::EtcdError;
use api::etcdserverpb::{
    AlarmType, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
};

use crate::alarms::Alarms;

/// What etcd charges a put beyond its key and value, for index and page.
const PUT_OVERHEAD_BYTES: u64 = 256;

/// What etcd charges a lease, for its row and page.
const LEASE_BYTES: u64 = 64;

/// Bytes a lease costs by etcd's reckoning: the same for each.
pub fn lease_cost(_: &LeaseGrantRequest) -> u64 {
    LEASE_BYTES
}

/// Bytes a put costs by etcd's reckoning.
pub fn put_cost(put: &PutRequest) -> u64 {
    PUT_OVERHEAD_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// Bytes a txn costs at most: the dearer branch, nested txns included (TR01).
pub fn txn_cost(txn: &TxnRequest) -> u64 {
    let cost = |ops: &[RequestOp]| {
        ops.iter().fold(0u64, |sum, op| {
            sum.saturating_add(match &op.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                Some(Request::RequestTxn(nested)) => txn_cost(nested),
                _ => 0,
            })
        })
    };
    cost(&txn.success).max(cost(&txn.failure))
}

pub(super) fn not_corrupt(alarms: &Alarms) -> Result<(), EtcdError> {
    if alarms.has(AlarmType::Corrupt) { Err(EtcdError::Corrupt) } else { Ok(()) }
}

/// Refuses what would add data while any member is out of space.
pub(super) fn has_space(alarms: &Alarms, cost: u64) -> Result<(), EtcdError> {
    if cost > 0 && alarms.has(AlarmType::Nospace) { Err(EtcdError::NoSpace) } else { Ok(()) }
}

/// The local quota at the beginning of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    pub used: u64,
    pub max: Option<u64>,
}

impl Quota {
    pub fn exceeded_by(&self, cost: u64) -> bool {
        cost > 0 && self.max.is_some_and(|max| self.used.saturating_add(cost) >= max)
    }
}
