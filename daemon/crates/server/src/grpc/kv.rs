//! The KV service but for its stream. Checks come in etcd's order: quota, then the fields of the request, then its size.

use std::{future::Future, sync::Arc};

use api::{error::EtcdError, etcdserverpb as pb};
use prost::Message;
use state_machine::{is_read_only, put_cost, txn_cost, validate};
use tonic::Status;

use super::{Answer, wide_range, wire};
use crate::{backend::Backend, edge::Edge, metrics::RequestType};

pub(super) async fn range<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::RangeRequest,
) -> Result<Answer, Status> {
    validate::range(&request)?;
    if wide_range::is_wide(&request) {
        // Boxed, so that small reads do not carry the state of large ones.
        let frames = timed(edge, RequestType::Range, Box::pin(wide_range::range(edge, request))).await?;
        return Ok(Answer::Parts { length: frames.length(), parts: frames.framed()? });
    }
    let answer = timed(edge, RequestType::Range, edge.backend.range(request)).await?;
    Ok(Answer::Message(wire::encode(&answer)?))
}

pub(super) async fn put<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::PutRequest,
) -> Result<pb::PutResponse, Status> {
    check_space(edge, put_cost(&request))?;
    validate::put(&request)?;
    check_size(edge, &request)?;
    timed(edge, RequestType::Put, edge.backend.put(request)).await
}

pub(super) async fn delete_range<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::DeleteRangeRequest,
) -> Result<pb::DeleteRangeResponse, Status> {
    validate::delete_range(&request)?;
    check_size(edge, &request)?;
    timed(edge, RequestType::DeleteRange, edge.backend.delete_range(request)).await
}

pub(super) async fn txn<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::TxnRequest,
) -> Result<pb::TxnResponse, Status> {
    check_space(edge, txn_cost(&request))?;
    validate::txn(&request, edge.shared.config.txn_ops_max)?;
    let kind = if is_read_only(&request) {
        RequestType::ReadonlyTxn
    } else {
        check_size(edge, &request)?;
        RequestType::Txn
    };
    timed(edge, kind, edge.backend.txn(request)).await
}

pub(super) async fn compact<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::CompactionRequest,
) -> Result<pb::CompactionResponse, Status> {
    timed(edge, RequestType::Compaction, edge.backend.compact(request)).await
}

/// The member refuses what would exceed its quota, and tells the cluster; `cost` zero is free.
pub(super) fn check_space<B: Backend>(edge: &Edge<B>, cost_bytes: u64) -> Result<(), Status> {
    if cost_bytes == 0 || edge.backend.has_space_for(cost_bytes) {
        return Ok(());
    }
    edge.backend.raise_no_space();
    Err(EtcdError::NoSpace.into())
}

/// `max-request-bytes` bounds the replicated form, which the member checks exactly when it has it. What is too large already as it
/// came is refused here, before anything copies it.
fn check_size<B: Backend, M: Message>(edge: &Edge<B>, request: &M) -> Result<(), Status> {
    let is_too_large = request.encoded_len() as u64 > edge.shared.config.request_bytes_max;
    if is_too_large { Err(EtcdError::RequestTooLarge.into()) } else { Ok(()) }
}

async fn timed<B: Backend, T>(
    edge: &Edge<B>,
    kind: RequestType,
    answer: impl Future<Output = Result<T, EtcdError>>,
) -> Result<T, Status> {
    let since = std::time::Instant::now();
    let answer = answer.await;
    edge.metrics.request(kind, answer.is_ok(), since.elapsed());
    answer.map_err(Status::from)
}
