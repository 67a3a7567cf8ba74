//! The handle of a running member: what the client edge may ask. Cheap to clone, usable from any thread or runtime.
//!
//! Answers come with their header filled in, except `member_id`-independent parts that etcd leaves empty. A timeout means "unknown":
//! the request may still take effect.

use std::sync::Arc;

use api::{error::EtcdError, etcdserverpb as pb};
use state_machine::membership::Member;
use types::{LogIndex, MemberId, Term};

/// See the module text.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {}

/// What `/health`, Status and `/metrics` show of consensus, read without waiting.
#[derive(Clone, Debug, Default)]
pub struct NodeStatus {
    pub member: MemberId,
    pub leader: MemberId,
    pub is_learner: bool,
    pub term: Term,
    pub committed: LogIndex,
    pub applied: LogIndex,
}

impl Handle {
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn delete_range(&self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, EtcdError> {
        unimplemented_yet(request)
    }
    /// Linearizable unless `serializable`; learners answer only serializable reads.
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        unimplemented_yet(request)
    }
    /// Waits until this member has applied everything that was committed when it was asked. Streams use it once, then read locally
    /// with [`Handle::range_local`].
    pub async fn read_barrier(&self) -> Result<(), EtcdError> {
        unimplemented_yet(())
    }
    /// A local read at the current or the asked revision, without any round.
    pub fn range_local(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn member_list(&self, request: pb::MemberListRequest) -> Result<pb::MemberListResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, EtcdError> {
        unimplemented_yet(request)
    }
    /// Maintenance.Status in full.
    pub async fn status(&self) -> Result<pb::StatusResponse, EtcdError> {
        unimplemented_yet(())
    }
    pub async fn hash(&self) -> Result<pb::HashResponse, EtcdError> {
        unimplemented_yet(())
    }
    pub async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, EtcdError> {
        unimplemented_yet(request)
    }
    pub async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Result<pb::MoveLeaderResponse, EtcdError> {
        unimplemented_yet(request)
    }

    /// cluster_id, member_id, raft_term of now; `revision` as given, or the store's current one when zero.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        unimplemented_yet(revision)
    }
    pub fn node_status(&self) -> NodeStatus {
        unimplemented_yet(())
    }
    pub fn members(&self) -> Vec<Member> {
        unimplemented_yet(())
    }
    /// Alarms that are raised, as Maintenance.Alarm lists them.
    pub fn alarms(&self) -> Vec<pb::AlarmMember> {
        unimplemented_yet(())
    }
    /// "3.7.0", or None before it was decided.
    pub fn cluster_version(&self) -> Option<String> {
        unimplemented_yet(())
    }
    /// As `/version` shows it; empty before it is known.
    pub fn storage_version(&self) -> String {
        unimplemented_yet(())
    }
    /// `quota-backend-bytes` as it takes effect; 0 when there is none.
    pub fn quota_bytes(&self) -> i64 {
        unimplemented_yet(())
    }
    /// Whether a request of this cost fits the quota now (etcd checks before it validates).
    pub fn has_space_for(&self, cost_bytes: u64) -> bool {
        unimplemented_yet(cost_bytes)
    }
    /// Raises this member's NOSPACE alarm and does not wait for it.
    pub fn raise_no_space(&self) {
        unimplemented_yet(())
    }
    /// True while a leader is known, or was within three election timeouts: what the `hasleader` metadata asks.
    pub fn has_leader(&self) -> bool {
        unimplemented_yet(())
    }
    /// Prometheus text of this member's own metrics, etcd's names.
    pub fn metrics_text(&self) -> String {
        unimplemented_yet(())
    }
}

fn unimplemented_yet<A, B>(_: A) -> B {
    unreachable!("the node is being built")
}
