//! The running member behind the edge: each method of its handle under its own name.

use std::task::{Context, Poll};

use api::etcdserverpb as pb;
use bytes::Bytes;
use node::NodeStatus;
use state_machine::History;
use types::{KeyRange, Revision};

use crate::backend::{Answer, Backend, WatchClosed, WatchRequests, WatchResponses};

impl Backend for node::Handle {
    async fn put(&self, request: pb::PutRequest) -> Answer<pb::PutResponse> {
        node::Handle::put(self, request).await
    }
    async fn delete_range(&self, request: pb::DeleteRangeRequest) -> Answer<pb::DeleteRangeResponse> {
        node::Handle::delete_range(self, request).await
    }
    async fn txn(&self, request: pb::TxnRequest) -> Answer<pb::TxnResponse> {
        node::Handle::txn(self, request).await
    }
    async fn compact(&self, request: pb::CompactionRequest) -> Answer<pb::CompactionResponse> {
        node::Handle::compact(self, request).await
    }
    async fn range(&self, request: pb::RangeRequest) -> Answer<pb::RangeResponse> {
        node::Handle::range(self, request).await
    }
    async fn read_barrier(&self) -> Answer<()> {
        node::Handle::read_barrier(self).await
    }
    fn range_local(&self, request: &pb::RangeRequest) -> Answer<pb::RangeResponse> {
        node::Handle::range_local(self, request)
    }
    fn range_stream(
        &self,
        request: &pb::RangeRequest,
        piece_bytes: usize,
    ) -> Answer<impl Iterator<Item = Answer<pb::RangeStreamResponse>> + Send + 'static> {
        node::Handle::range_stream(self, request, piece_bytes)
    }
    async fn member_list(&self, request: pb::MemberListRequest) -> Answer<pb::MemberListResponse> {
        node::Handle::member_list(self, request).await
    }
    async fn member_add(&self, request: pb::MemberAddRequest) -> Answer<pb::MemberAddResponse> {
        node::Handle::member_add(self, request).await
    }
    async fn member_remove(&self, request: pb::MemberRemoveRequest) -> Answer<pb::MemberRemoveResponse> {
        node::Handle::member_remove(self, request).await
    }
    async fn member_update(&self, request: pb::MemberUpdateRequest) -> Answer<pb::MemberUpdateResponse> {
        node::Handle::member_update(self, request).await
    }
    async fn member_promote(&self, request: pb::MemberPromoteRequest) -> Answer<pb::MemberPromoteResponse> {
        node::Handle::member_promote(self, request).await
    }
    async fn alarm(&self, request: pb::AlarmRequest) -> Answer<pb::AlarmResponse> {
        node::Handle::alarm(self, request).await
    }
    async fn status(&self) -> Answer<pb::StatusResponse> {
        node::Handle::status(self).await
    }
    async fn hash(&self) -> Answer<pb::HashResponse> {
        node::Handle::hash(self).await
    }
    async fn hash_kv(&self, request: pb::HashKvRequest) -> Answer<pb::HashKvResponse> {
        node::Handle::hash_kv(self, request).await
    }
    async fn defragment(&self) -> Result<(), node::DefragmentError> {
        node::Handle::defragment(self).await
    }
    fn snapshot(&self) -> Answer<node::Backup> {
        node::Handle::snapshot(self)
    }
    async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Answer<pb::MoveLeaderResponse> {
        node::Handle::move_leader(self, request).await
    }
    async fn lease_grant(&self, request: pb::LeaseGrantRequest) -> Answer<pb::LeaseGrantResponse> {
        node::Handle::lease_grant(self, request).await
    }
    async fn lease_revoke(&self, request: pb::LeaseRevokeRequest) -> Answer<pb::LeaseRevokeResponse> {
        node::Handle::lease_revoke(self, request).await
    }
    fn lease_keep_alive_now(&self, id: i64) -> Option<pb::LeaseKeepAliveResponse> {
        node::Handle::lease_keep_alive_now(self, id)
    }
    async fn lease_keep_alive(&self, id: i64) -> Answer<pb::LeaseKeepAliveResponse> {
        node::Handle::lease_keep_alive(self, id).await
    }
    async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Answer<pb::LeaseTimeToLiveResponse> {
        node::Handle::lease_time_to_live(self, request).await
    }
    async fn lease_leases(&self) -> Answer<pb::LeaseLeasesResponse> {
        node::Handle::lease_leases(self).await
    }
    fn history(&self, from: Revision, to: Revision, range: &KeyRange) -> Answer<History> {
        node::Handle::history(self, from, to, range)
    }
    fn compact_revision(&self) -> i64 {
        self.reader().compact_revision().0
    }
    async fn census(&self, from: usize) -> Answer<node::Census> {
        node::Handle::census(self, from).await
    }
    type WatchRequests = node::WatchRequests;
    type WatchResponses = node::WatchResponses;
    fn watch(&self) -> (node::WatchRequests, node::WatchResponses) {
        node::Handle::watch(self)
    }
    fn may_watch(&self, _: Option<&[u8]>, _: &[u8], _: &[u8]) -> Answer<()> {
        Ok(())
    }
    fn header(&self, revision: i64) -> pb::ResponseHeader {
        node::Handle::header(self, revision)
    }
    fn node_status(&self) -> NodeStatus {
        node::Handle::node_status(self)
    }
    fn alarms(&self) -> Vec<pb::AlarmMember> {
        node::Handle::alarms(self)
    }
    fn cluster_version(&self) -> Option<String> {
        node::Handle::cluster_version(self)
    }
    fn storage_version(&self) -> String {
        node::Handle::storage_version(self)
    }
    fn has_space_for(&self, cost_bytes: u64) -> bool {
        node::Handle::has_space_for(self, cost_bytes)
    }
    fn raise_no_space(&self) {
        node::Handle::raise_no_space(self)
    }
    fn has_leader(&self) -> bool {
        node::Handle::has_leader(self)
    }
    fn metrics_text(&self) -> String {
        node::Handle::metrics_text(self)
    }
}

impl WatchRequests for node::WatchRequests {
    async fn send(&self, request: pb::WatchRequest) -> Result<(), WatchClosed> {
        node::WatchRequests::send(self, request).await.map_err(|_| WatchClosed)
    }
    async fn refuse(&self, reason: String) -> Result<(), WatchClosed> {
        node::WatchRequests::refuse(self, reason).await.map_err(|_| WatchClosed)
    }
}

impl WatchResponses for node::WatchResponses {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        node::WatchResponses::poll_next(self, cx)
    }
}
