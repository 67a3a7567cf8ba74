//! What grant, revoke and checkpoint entries do. As etcd's appliers, with nothing left out for requests that no edge would let in: any
//! id but zero can be granted, a negative one too, and a time to live below the minimum is the minimum.
//!
//! Not here: clocks, and who asks for a revocation.

use api::error::EtcdError;
use api::etcdserverpb::{
    LeaseCheckpointRequest, LeaseCheckpointResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse,
};
use prost::Message;
use types::LeaseId;

use super::step::{Step, header};
use crate::leases::{LeaseChange, row_key};
use crate::store::{Store, Table};

impl<S: Store> Step<'_, S> {
    pub fn lease_grant(
        &mut self,
        request: &LeaseGrantRequest,
    ) -> Result<(LeaseGrantResponse, LeaseChange), EtcdError> {
        let row = self.state.leases.grant(request.id, request.ttl)?;
        self.batch.put(Table::Lease, row_key(row.id), row.encode_to_vec());
        let response = LeaseGrantResponse {
            header: header(self.state.revision),
            id: row.id,
            ttl: row.ttl,
            ..Default::default()
        };
        Ok((response, LeaseChange::Granted { id: LeaseId(row.id), ttl: row.ttl }))
    }

    /// All keys go under one revision, in ascending order; a lease without keys makes no revision.
    pub fn lease_revoke(
        &mut self,
        request: &LeaseRevokeRequest,
    ) -> Result<(LeaseRevokeResponse, LeaseChange), EtcdError> {
        let keys = self.state.leases.revoke(request.id).ok_or(EtcdError::LeaseNotFound)?;
        for key in keys {
            self.delete_version(key);
        }
        self.batch.delete(Table::Lease, row_key(request.id));
        let response = LeaseRevokeResponse { header: header(self.seen()) };
        Ok((response, LeaseChange::Revoked { id: LeaseId(request.id) }))
    }

    /// Leases that are gone by now are passed over. Whether the remainder is stored follows from the cluster version, which is in the
    /// log too; while a member is older than 3.6 it is kept in memory only, as there.
    pub fn lease_checkpoint(
        &mut self,
        request: &LeaseCheckpointRequest,
    ) -> (LeaseCheckpointResponse, Vec<LeaseChange>) {
        let is_stored = self.state.cluster.stores_lease_checkpoints();
        let mut changes = Vec::with_capacity(request.checkpoints.len());
        for checkpoint in &request.checkpoints {
            let remaining_ttl = checkpoint.remaining_ttl;
            let Some(row) = self.state.leases.checkpoint(checkpoint.id, remaining_ttl) else { continue };
            if is_stored {
                self.batch.put(Table::Lease, row_key(row.id), row.encode_to_vec());
            }
            changes.push(LeaseChange::Checkpointed { id: LeaseId(row.id), remaining_ttl });
        }
        (LeaseCheckpointResponse { header: header(self.state.revision) }, changes)
    }
}
