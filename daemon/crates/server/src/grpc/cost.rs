//! What a request would cost of the quota, in etcd's arithmetic, and whether it writes at all.

use api::etcdserverpb::{self as pb, request_op::Request};

/// What one put costs besides key and value: index and bookkeeping, as etcd estimates them.
const PUT_OVERHEAD_BYTES: u64 = 256;

/// Nested txns deeper than this count as nothing here; validation refuses far fewer levels, but the quota is asked first and must
/// not follow a hostile request down the stack. prost itself refuses to decode beyond 100 levels of messages.
const DEPTH_MAX: usize = 128;

pub(super) fn put(request: &pb::PutRequest) -> u64 {
    PUT_OVERHEAD_BYTES + request.key.len() as u64 + request.value.len() as u64
}

/// The dearer branch; nested ones count.
pub(super) fn txn(request: &pb::TxnRequest) -> u64 {
    txn_at(request, 0)
}

fn txn_at(request: &pb::TxnRequest, depth: usize) -> u64 {
    if depth > DEPTH_MAX {
        return 0;
    }
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(request)) => put(request),
                Some(Request::RequestTxn(request)) => txn_at(request, depth + 1),
                _ => 0,
            })
            .sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

/// A txn of nothing but ranges is answered without the log; a nested one counts as writing, as in etcd.
pub(super) fn is_read_only(request: &pb::TxnRequest) -> bool {
    let ranges =
        |ops: &[pb::RequestOp]| ops.iter().all(|op| matches!(op.request, Some(Request::RequestRange(_))));
    ranges(&request.success) && ranges(&request.failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_of(bytes: usize) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest {
            key: "k".into(),
            value: vec![0; bytes].into(),
            ..Default::default()
        }))
    }

    #[test]
    fn nested_txn_costs_quota() {
        let inner = pb::TxnRequest { success: vec![put_of(100), put_of(1)], ..Default::default() };
        let outer = pb::TxnRequest {
            success: vec![op(Request::RequestTxn(inner)), put_of(10)],
            failure: vec![put_of(200)],
            ..Default::default()
        };
        assert_eq!(txn(&outer), (257 + 100) + (257 + 1) + (257 + 10));
        assert!(!is_read_only(&outer));
    }

    #[test]
    fn the_dearer_branch_counts_and_reads_are_free() {
        let read = op(Request::RequestRange(pb::RangeRequest::default()));
        let request =
            pb::TxnRequest { success: vec![read.clone()], failure: vec![put_of(9)], ..Default::default() };
        assert_eq!(txn(&request), 257 + 9);
        let request = pb::TxnRequest { success: vec![read], ..Default::default() };
        assert_eq!(txn(&request), 0);
        assert!(is_read_only(&request));
    }
}
