//! Cluster: who the members are, and changes of that.

use std::sync::Arc;

use api::etcdserverpb as pb;
use tonic::Status;

use crate::{backend::Backend, edge::Edge};

pub(super) async fn member_list<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MemberListRequest,
) -> Result<pb::MemberListResponse, Status> {
    Ok(edge.backend.member_list(request).await?)
}

pub(super) async fn member_add<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MemberAddRequest,
) -> Result<pb::MemberAddResponse, Status> {
    Ok(edge.backend.member_add(request).await?)
}

pub(super) async fn member_remove<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MemberRemoveRequest,
) -> Result<pb::MemberRemoveResponse, Status> {
    Ok(edge.backend.member_remove(request).await?)
}

pub(super) async fn member_update<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MemberUpdateRequest,
) -> Result<pb::MemberUpdateResponse, Status> {
    Ok(edge.backend.member_update(request).await?)
}

pub(super) async fn member_promote<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::MemberPromoteRequest,
) -> Result<pb::MemberPromoteResponse, Status> {
    Ok(edge.backend.member_promote(request).await?)
}
