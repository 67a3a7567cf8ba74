//! Maintenance, as far as it exists, and the two questions of Auth that have an answer before Auth exists.

use std::sync::Arc;

use api::{error::EtcdError, etcdserverpb as pb};
use tonic::Status;

use crate::{backend::Backend, edge::Edge};

/// The revision of an auth store that never changed, as in etcd.
const AUTH_REVISION_INITIAL: u64 = 1;

pub(super) async fn alarm<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::AlarmRequest,
) -> Result<pb::AlarmResponse, Status> {
    Ok(edge.backend.alarm(request).await?)
}

pub(super) async fn status<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: pb::StatusRequest,
) -> Result<pb::StatusResponse, Status> {
    Ok(edge.backend.status().await?)
}

pub(super) async fn hash<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: pb::HashRequest,
) -> Result<pb::HashResponse, Status> {
    Ok(edge.backend.hash().await?)
}

pub(super) async fn hash_kv<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::HashKvRequest,
) -> Result<pb::HashKvResponse, Status> {
    Ok(edge.backend.hash_kv(request).await?)
}

/// Without a header, as in etcd.
pub(super) async fn defragment<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: pb::DefragmentRequest,
) -> Result<pb::DefragmentResponse, Status> {
    match edge.backend.defragment().await {
        Ok(()) => Ok(pb::DefragmentResponse::default()),
        Err(error) => Err(Status::unknown(error.to_string())),
    }
}

pub(super) async fn move_leader<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MoveLeaderRequest,
) -> Result<pb::MoveLeaderResponse, Status> {
    Ok(edge.backend.move_leader(request).await?)
}

pub(super) async fn auth_status<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: pb::AuthStatusRequest,
) -> Result<pb::AuthStatusResponse, Status> {
    Ok(pb::AuthStatusResponse {
        header: Some(edge.backend.header(0)),
        enabled: false,
        auth_revision: AUTH_REVISION_INITIAL,
    })
}

/// Refused as by an etcd that has no authentication enabled: clients with a user and a password go on without a token then.
pub(super) async fn authenticate(_: pb::AuthenticateRequest) -> Result<pb::AuthenticateResponse, Status> {
    Err(EtcdError::AuthNotEnabled.into())
}
