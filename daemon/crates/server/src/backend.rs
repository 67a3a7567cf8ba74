//! What the edge asks of a member, and nothing more. The running member implements it; tests put a small one in its place.
//!
//! Every answer carries its header already: whoever answers knows member, term and revision, the edge does not.

use std::{
    future::Future,
    task::{Context, Poll},
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use node::{Backup, Census, DefragmentError, NodeStatus};
use state_machine::History;
use types::{KeyRange, Revision};

pub(crate) type Answer<T> = Result<T, EtcdError>;

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
    fn member_add(
        &self,
        request: pb::MemberAddRequest,
    ) -> impl Future<Output = Answer<pb::MemberAddResponse>> + Send;
    fn member_remove(
        &self,
        request: pb::MemberRemoveRequest,
    ) -> impl Future<Output = Answer<pb::MemberRemoveResponse>> + Send;
    fn member_update(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> impl Future<Output = Answer<pb::MemberUpdateResponse>> + Send;
    fn member_promote(
        &self,
        request: pb::MemberPromoteRequest,
    ) -> impl Future<Output = Answer<pb::MemberPromoteResponse>> + Send;
    fn alarm(&self, request: pb::AlarmRequest) -> impl Future<Output = Answer<pb::AlarmResponse>> + Send;
    fn status(&self) -> impl Future<Output = Answer<pb::StatusResponse>> + Send;
    fn hash(&self) -> impl Future<Output = Answer<pb::HashResponse>> + Send;
    fn hash_kv(&self, request: pb::HashKvRequest) -> impl Future<Output = Answer<pb::HashKvResponse>> + Send;
    /// Gives the space of removed rows back: done when this returns, or going on in the background.
    fn defragment(&self) -> impl Future<Output = Result<(), DefragmentError>> + Send;
    /// The state of now as a database file in pieces, the last one its SHA-256. Local; ends when it is dropped.
    fn snapshot(&self) -> Answer<Backup>;
    fn move_leader(
        &self,
        request: pb::MoveLeaderRequest,
    ) -> impl Future<Output = Answer<pb::MoveLeaderResponse>> + Send;

    fn lease_grant(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> impl Future<Output = Answer<pb::LeaseGrantResponse>> + Send;
    fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> impl Future<Output = Answer<pb::LeaseRevokeResponse>> + Send;
    /// From this member's memory when it is the leader and sure of it; None: [`Backend::lease_keep_alive`] knows more.
    fn lease_keep_alive_now(&self, id: i64) -> Option<pb::LeaseKeepAliveResponse>;
    /// TTL 0 in the answer: no such lease.
    fn lease_keep_alive(&self, id: i64) -> impl Future<Output = Answer<pb::LeaseKeepAliveResponse>> + Send;
    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> impl Future<Output = Answer<pb::LeaseTimeToLiveResponse>> + Send;
    fn lease_leases(&self) -> impl Future<Output = Answer<pb::LeaseLeasesResponse>> + Send;

    /// Changes of a range between two revisions, in whole revisions and as many as one bounded look finds; says how far it came. Blocks
    /// for some milliseconds.
    fn history(&self, from: Revision, to: Revision, range: &KeyRange) -> Answer<History>;
    /// History below it can no longer be read.
    fn compact_revision(&self) -> i64;
    /// What is watched here, in slices: the first from 0, the others from where the one before says.
    fn census(&self, from: usize) -> impl Future<Output = Answer<Census>> + Send;

    type WatchRequests: WatchRequests;
    type WatchResponses: WatchResponses;
    /// One client stream with any number of watches.
    fn watch(&self) -> (Self::WatchRequests, Self::WatchResponses);
    /// Whether the bearer of this token may watch that range, asked when a watch is created and not again.
    fn may_watch(&self, token: Option<&[u8]>, key: &[u8], range_end: &[u8]) -> Answer<()>;

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

/// The asking half of a watch stream. Dropping it ends nothing: a client may be done asking and go on listening.
pub trait WatchRequests: Send + Sync + 'static {
    /// Waits while too much of what this stream asked is still to be done.
    fn send(&self, request: pb::WatchRequest) -> impl Future<Output = Result<(), WatchClosed>> + Send;
    /// The answer to a create that the edge refused, in its turn among the others.
    fn refuse(&self, reason: String) -> impl Future<Output = Result<(), WatchClosed>> + Send;
}

/// The answering half of a watch stream. Dropping it ends the stream and all its watches at once.
pub trait WatchResponses: Send + 'static {
    /// One or more whole gRPC frames, each a `WatchResponse`, in one piece. None: this member stops.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

/// The member serves this watch stream no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch stream is closed")]
pub struct WatchClosed;
