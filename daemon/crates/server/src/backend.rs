//! What the edge asks of a member, and nothing more. The running member implements it; tests put a small one in its place.
//!
//! Every answer carries its header already: whoever answers knows member, term and revision, the edge does not.

use std::future::Future;

use api::{error::EtcdError, etcdserverpb as pb};
use node::NodeStatus;

type Answer<T> = Result<T, EtcdError>;

/// One member as the client edge sees it. Cheap to clone: every runtime of the edge keeps its own.
///
/// Futures may be dropped at any await (the client went away); a write that was handed over may still take effect then.
/// Functions without `async` answer from memory and never wait.
pub trait Backend: Clone + Send + Sync + 'static {
    fn put(&self, request: pb::PutRequest) -> impl Future<Output = Answer<pb::PutResponse>> + Send;
    fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> impl Future<Output = Answer<pb::DeleteRangeResponse>> + Send;
    fn txn(&self, request: pb::TxnRequest) -> impl Future<Output = Answer<pb::TxnResponse>> + Send;
    fn compact(
        &self,
        request: pb::CompactionRequest,
    ) -> impl Future<Output = Answer<pb::CompactionResponse>> + Send;
    /// Linearizable unless `serializable`.
    fn range(&self, request: pb::RangeRequest) -> impl Future<Output = Answer<pb::RangeResponse>> + Send;
    /// Waits until this member has applied everything that was committed when it was asked.
    fn read_barrier(&self) -> impl Future<Output = Answer<()>> + Send;
    /// Reads at the current or the asked revision without any round.
    fn range_local(&self, request: &pb::RangeRequest) -> Answer<pb::RangeResponse>;
    /// The same in pieces of about `piece_bytes`, each read when it is asked for, all at one revision. The last one carries a
    /// header with that revision alone.
    fn range_stream(
        &self,
        request: &pb::RangeRequest,
        piece_bytes: usize,
    ) -> Answer<impl Iterator<Item = Answer<pb::RangeStreamResponse>> + Send + 'static>;
    fn member_list(
        &self,
        request: pb::MemberListRequest,
    ) -> impl Future<Output = Answer<pb::MemberListResponse>> + Send;
    fn alarm(&self, request: pb::AlarmRequest) -> impl Future<Output = Answer<pb::AlarmResponse>> + Send;
    fn status(&self) -> impl Future<Output = Answer<pb::StatusResponse>> + Send;
    fn hash(&self) -> impl Future<Output = Answer<pb::HashResponse>> + Send;
    fn hash_kv(&self, request: pb::HashKvRequest) -> impl Future<Output = Answer<pb::HashKvResponse>> + Send;
    fn move_leader(
        &self,
        request: pb::MoveLeaderRequest,
    ) -> impl Future<Output = Answer<pb::MoveLeaderResponse>> + Send;

    /// Header of now; `revision` as given, or the store's current one when zero.
    fn header(&self, revision: i64) -> pb::ResponseHeader;
    /// Asked once per request: must be a few loads, not a lock.
    fn node_status(&self) -> NodeStatus;
    /// Alarms that are raised.
    fn alarms(&self) -> Vec<pb::AlarmMember>;
    /// "3.7.0", or None before it was decided.
    fn cluster_version(&self) -> Option<String>;
    /// As `/version` shows it; empty before it is known.
    fn storage_version(&self) -> String;
    /// Whether a request of this cost fits the quota now.
    fn has_space_for(&self, cost_bytes: u64) -> bool;
    /// Raises this member's NOSPACE alarm and does not wait for it.
    fn raise_no_space(&self);
    /// True while a leader is known, or was within three election timeouts.
    fn has_leader(&self) -> bool;
    /// Prometheus text of the member's own metrics.
    fn metrics_text(&self) -> String;
}

/// Each method of the handle under its own name.
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
        node::Handle::reader(self).range_stream(request, piece_bytes)
    }
    async fn member_list(&self, request: pb::MemberListRequest) -> Answer<pb::MemberListResponse> {
        node::Handle::member_list(self, request).await
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
    async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Answer<pb::MoveLeaderResponse> {
        node::Handle::move_leader(self, request).await
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
