//! The Lease service but for its stream.

use std::sync::Arc;

use api::etcdserverpb as pb;
use state_machine::{lease_cost, validate};
use tonic::Status;

use super::kv;
use crate::{backend::Backend, edge::Edge};

pub(super) async fn grant<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::LeaseGrantRequest,
) -> Result<pb::LeaseGrantResponse, Status> {
    kv::check_space(edge, lease_cost(&request))?;
    validate::lease_grant(&request)?;
    Ok(edge.backend.lease_grant(request).await?)
}

pub(super) async fn revoke<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::LeaseRevokeRequest,
) -> Result<pb::LeaseRevokeResponse, Status> {
    Ok(edge.backend.lease_revoke(request).await?)
}

pub(super) async fn time_to_live<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::LeaseTimeToLiveRequest,
) -> Result<pb::LeaseTimeToLiveResponse, Status> {
    Ok(edge.backend.lease_time_to_live(request).await?)
}

pub(super) async fn leases<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: pb::LeaseLeasesRequest,
) -> Result<pb::LeaseLeasesResponse, Status> {
    Ok(edge.backend.lease_leases().await?)
}
