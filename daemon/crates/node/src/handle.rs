//! The handle of a running member: what the client edge may ask. Cheap to clone, usable from any thread or runtime.
//!
//! Answers come with their header filled in. A timeout means "unknown": the request may still take effect. Requests are expected to
//! have passed `state_machine::validate` at the edge; apply refuses what must not happen in any case.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use consensus::io::{Input, Proposal, ProposalId};
use prost::Message;
use state_machine::{
    History, HistoryError, HistoryRequest, Outcome, Reader, membership::Member, store::Store,
};
use storage::state_store::FjallStore;
use tokio::sync::{oneshot, watch};
use tracing::warn;
use types::{EntryKind, KeyRange, LogIndex, MemberId, Revision, Term, limits};

use crate::{
    mailbox::PushError,
    metrics_text,
    read_gate::Joined,
    records,
    shared::{Leadership, PROPOSALS_QUEUED_MAX, Shared, ToRaft},
};

/// Keys and values in one answer of [`Handle::history`]: some milliseconds of reading.
const HISTORY_BYTES_MAX: usize = 1024 * 1024;

/// See the module text.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

/// What `/health`, Status and `/metrics` show of consensus, read without waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeStatus {
    pub member: MemberId,
    pub leader: MemberId,
    pub is_leader: bool,
    pub is_learner: bool,
    /// The configuration of which this member is a part has not arrived yet.
    pub is_joining: bool,
    pub term: Term,
    pub committed: LogIndex,
    pub applied: LogIndex,
}

impl Handle {
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, EtcdError> {
        self.voters_only()?;
        let request = pb::InternalRaftRequest { put: Some(request), ..Default::default() };
        match self.propose(request).await? {
            Outcome::Put(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("put", &other),
        }
    }

    pub async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, EtcdError> {
        self.voters_only()?;
        let request = pb::InternalRaftRequest { delete_range: Some(request), ..Default::default() };
        match self.propose(request).await? {
            Outcome::DeleteRange(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("delete range", &other),
        }
    }

    /// A txn without writes is a read and never enters the log; it is linearizable unless every range in it is serializable.
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
        self.voters_only()?;
        if state_machine::is_read_only(&request) {
            if !state_machine::is_serializable(&request) {
                self.read_barrier().await?;
            }
            self.confirmed_only()?;
            let mut response = self.reader().txn_read_only(&request)?;
            self.stamp(&mut response.header);
            return Ok(response);
        }
        let request = pb::InternalRaftRequest { txn: Some(request), ..Default::default() };
        match self.propose(request).await? {
            Outcome::Txn(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("txn", &other),
        }
    }

    /// With `physical` also waits until this member has dropped the old versions.
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, EtcdError> {
        self.voters_only()?;
        let (physical, revision) = (request.physical, request.revision);
        let mut finished = self.shared.compacted.subscribe();
        let request = pb::InternalRaftRequest { compaction: Some(request), ..Default::default() };
        let outcome = self.propose(request).await;
        if physical && !matches!(&outcome, Err(error) if *error != EtcdError::Compacted) {
            // The wait has the same bound as the request itself; physical compaction goes on whatever the client learns.
            let wait = finished.wait_for(|finished| *finished >= revision);
            let limit = self.shared.config.request_timeout();
            if tokio::time::timeout(limit, wait).await.is_err() {
                return Err(EtcdError::Timeout);
            }
        }
        match outcome? {
            Outcome::Compaction(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("compaction", &other),
        }
    }

    /// Linearizable unless `serializable`; learners answer only serializable reads.
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        if !request.serializable {
            self.voters_only()?;
            self.read_barrier().await?;
        }
        self.range_local(&request)
    }

    /// Waits until this member has applied everything that was committed when it was asked. Streams use it once, then read locally
    /// with [`Handle::range_local`].
    pub async fn read_barrier(&self) -> Result<(), EtcdError> {
        let shared = &self.shared;
        if shared.sole_leader.load(Ordering::Acquire) {
            return Ok(());
        }
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(EtcdError::Stopped);
        }
        let passed = match shared.gate.join() {
            Joined::First(passed) => {
                shared.raft.push(ToRaft::ReadersWait);
                passed
            }
            Joined::Another(passed) => passed,
            Joined::Full => return Err(EtcdError::RequestTooManyRequests),
            Joined::Closed => return Err(EtcdError::Stopped),
        };
        passed.await.unwrap_or(Err(EtcdError::Stopped))
    }

    /// A local read at the current or the asked revision, without any round.
    pub fn range_local(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        self.confirmed_only()?;
        self.shared.metrics.ranges.add(1);
        let mut response = self.reader().range(request)?;
        self.stamp(&mut response.header);
        Ok(response)
    }

    /// As [`Handle::range_local`], in pieces of about so many bytes.
    pub fn range_stream(
        &self,
        request: &pb::RangeRequest,
        piece_bytes: usize,
    ) -> Result<impl Iterator<Item = Result<pb::RangeStreamResponse, EtcdError>> + Send + 'static, EtcdError>
    {
        self.confirmed_only()?;
        self.reader().range_stream(request, piece_bytes)
    }

    /// Changes of a range between two revisions, as far as one bounded look comes. Blocks for some milliseconds.
    ///
    /// # Errors
    /// `Compacted` when the first revision is below the compact revision.
    pub fn history(&self, from: Revision, to: Revision, range: &KeyRange) -> Result<History, EtcdError> {
        self.confirmed_only()?;
        let ranges = std::slice::from_ref(range);
        let request =
            HistoryRequest { from, to, ranges, revisions_max: usize::MAX, bytes_max: HISTORY_BYTES_MAX };
        self.reader().history(&request).map_err(|HistoryError::Compacted(_)| EtcdError::Compacted)
    }

    /// For streams that read in chunks of their own.
    pub fn reader(&self) -> Reader<FjallStore> {
        self.shared.reader()
    }

    /// The header's revision stays zero, as in etcd's cluster API.
    pub async fn member_list(
        &self,
        request: pb::MemberListRequest,
    ) -> Result<pb::MemberListResponse, EtcdError> {
        if request.linearizable {
            self.voters_only()?;
            self.read_barrier().await?;
        }
        let members = self.members().into_iter().map(member_message).collect();
        Ok(pb::MemberListResponse { header: Some(self.header_of_cluster()), members })
    }

    pub async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, EtcdError> {
        self.voters_only()?;
        let request = pb::InternalRaftRequest { alarm: Some(request), ..Default::default() };
        match self.propose(request).await? {
            Outcome::Alarm(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("alarm", &other),
        }
    }

    /// Maintenance.Status in full; local, served by learners too.
    pub async fn status(&self) -> Result<pb::StatusResponse, EtcdError> {
        let status = self.node_status();
        let size = self.shared.store().size();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        errors.extend(self.alarms().iter().map(|alarm| {
            let kind = alarm.alarm().as_str_name();
            format!("memberID:{} alarm:{kind} ", alarm.member_id)
        }));
        let downgrade = self.reader().downgrade();
        Ok(pb::StatusResponse {
            header: Some(self.header(0)),
            version: limits::ETCD_VERSION.to_owned(),
            db_size: saturate(size.total_bytes),
            leader: status.leader.0,
            raft_index: status.committed.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: saturate(size.in_use_bytes),
            is_learner: status.is_learner,
            storage_version: self.storage_version(),
            db_size_quota: self.quota_bytes(),
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: downgrade.enabled,
                target_version: downgrade.target_version,
            }),
        })
    }

    /// Reads the whole store: seconds on a large one, on a thread made for waiting.
    pub async fn hash(&self) -> Result<pb::HashResponse, EtcdError> {
        self.confirmed_only()?;
        let reader = self.reader();
        let hash =
            tokio::task::spawn_blocking(move || reader.hash()).await.map_err(|_| EtcdError::Stopped)?;
        Ok(pb::HashResponse { header: Some(self.header(0)), hash })
    }

    /// As [`Handle::hash`], for the key space at one revision.
    pub async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, EtcdError> {
        self.confirmed_only()?;
        let reader = self.reader();
        let result = tokio::task::spawn_blocking(move || reader.hash_kv(request.revision))
            .await
            .map_err(|_| EtcdError::Stopped)??;
        Ok(pb::HashKvResponse {
            header: Some(self.header(0)),
            hash: result.hash,
            compact_revision: result.compact_revision.0,
            hash_revision: result.hash_revision.0,
        })
    }

    /// Only on the leader, only to a voter; returns when the other one leads.
    pub async fn move_leader(
        &self,
        request: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, EtcdError> {
        let me = self.shared.config.member;
        let target = MemberId(request.target_id);
        let mut leadership = self.shared.leadership.subscribe();
        if leadership.borrow_and_update().leader != me {
            return Err(EtcdError::NotLeader);
        }
        let is_voter = self.shared.conf_state.lock().voters.contains(&target);
        if !is_voter {
            return Err(EtcdError::BadLeaderTransferee);
        }
        if target == me {
            return Ok(pb::MoveLeaderResponse { header: Some(self.header_of_cluster()) });
        }
        records::close_soon(&self.shared, self.shared.config.election_timeout() / 2).await;
        self.shared.raft.push(ToRaft::input(Input::TransferLeader(target)));
        let limit = self.shared.config.request_timeout();
        let moved = leadership.wait_for(|now| now.leader == target);
        match tokio::time::timeout(limit, moved).await {
            Ok(Ok(_)) => Ok(pb::MoveLeaderResponse { header: Some(self.header_of_cluster()) }),
            Ok(Err(_)) => Err(EtcdError::Stopped),
            Err(_) => Err(EtcdError::LeaderTransferTimeout),
        }
    }

    /// cluster_id, member_id, raft_term of now; `revision` as given, or the store's current one when zero.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        let revision = if revision == 0 { self.reader().revision().0 } else { revision };
        pb::ResponseHeader { revision, ..self.header_of_cluster() }
    }

    pub(crate) fn header_of_cluster(&self) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.shared.config.cluster.0,
            member_id: self.shared.config.member.0,
            revision: 0,
            raft_term: self.shared.term().0,
        }
    }

    pub(crate) fn stamp(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision));
    }

    pub fn node_status(&self) -> NodeStatus {
        let shared = &self.shared;
        NodeStatus {
            member: shared.config.member,
            leader: MemberId(shared.leader.load(Ordering::Acquire)),
            is_leader: shared.is_leader.load(Ordering::Acquire),
            is_learner: shared.is_learner(),
            is_joining: shared.is_joining(),
            term: shared.term(),
            committed: shared.committed(),
            applied: shared.applied(),
        }
    }

    /// Tells of each change of leader or term.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    pub fn members(&self) -> Vec<Member> {
        self.reader().members()
    }

    /// Alarms that are raised, as Maintenance.Alarm lists them.
    pub fn alarms(&self) -> Vec<pb::AlarmMember> {
        self.reader().alarms()
    }

    /// "3.7.0", or None before it was decided.
    pub fn cluster_version(&self) -> Option<String> {
        self.reader().cluster_version()
    }

    /// As `/version` shows it: the schema of the store follows the cluster version.
    pub fn storage_version(&self) -> String {
        self.cluster_version().unwrap_or_default()
    }

    /// `quota-backend-bytes` as it takes effect; 0 when there is none.
    pub fn quota_bytes(&self) -> i64 {
        match self.shared.live().quota_backend_bytes {
            0 => state_machine::QUOTA_BACKEND_BYTES_DEFAULT,
            negative if negative < 0 => 0,
            bytes => bytes,
        }
    }

    /// Whether a request of this cost would exceed the quota now (etcd checks before it validates).
    pub fn has_space_for(&self, cost_bytes: u64) -> bool {
        let quota = self.quota_bytes();
        quota <= 0 || {
            let size = self.shared.store().size();
            size.total_bytes.saturating_add(cost_bytes) < quota as u64
        }
    }

    /// Raises this member's NOSPACE alarm and does not wait for it.
    pub fn raise_no_space(&self) {
        crate::peers::raise_no_space(&self.shared);
    }

    /// Prometheus text of this member's own metrics, etcd's names.
    pub fn metrics_text(&self) -> String {
        metrics_text::render(self)
    }

    /// Puts a request into the log and waits for its outcome on this member.
    pub(crate) async fn propose(&self, request: pb::InternalRaftRequest) -> Result<Outcome, EtcdError> {
        self.propose_behind(request, limits::APPLY_LAG_MAX).await
    }

    /// As [`Handle::propose`], refused when more entries than `lag_max` are committed and not applied.
    pub(crate) async fn propose_behind(
        &self,
        mut request: pb::InternalRaftRequest,
        lag_max: u64,
    ) -> Result<Outcome, EtcdError> {
        let shared = &self.shared;
        if shared.committed().0.saturating_sub(shared.applied().0) > lag_max {
            return Err(EtcdError::RequestTooManyRequests);
        }
        let id = shared.waiters.next_id();
        request.header = Some(pb::RequestHeader { id, ..Default::default() });
        let data = Bytes::from(request.encode_to_vec());
        drop(request);
        if data.len() as u64 > shared.config.max_request_bytes {
            return Err(EtcdError::RequestTooLarge);
        }
        let outcome = self.submit(id, EntryKind::Normal, data, None)?;
        outcome.await.unwrap_or(Err(EtcdError::Stopped))
    }

    /// Waits for the outcome as long as for every request, or until then.
    pub(crate) fn submit(
        &self,
        id: u64,
        kind: EntryKind,
        data: Bytes,
        until: Option<Instant>,
    ) -> Result<oneshot::Receiver<Result<Outcome, EtcdError>>, EtcdError> {
        let shared = &self.shared;
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(EtcdError::Stopped);
        }
        let bytes = data.len() as u64;
        if !shared.reserve_proposal(bytes) {
            return Err(EtcdError::RequestTooManyRequests);
        }
        let told = match until {
            None => shared.waiters.register(id),
            Some(until) => shared.waiters.register_until(id, until, shared.config.request_timeout()),
        };
        let proposal = Proposal { id: ProposalId(id), kind, data };
        match shared.raft.try_push_patient(ToRaft::Propose(proposal), PROPOSALS_QUEUED_MAX) {
            Ok(()) => Ok(told),
            Err(refused) => {
                shared.release_proposals(bytes);
                let error = match refused {
                    PushError::Full(_) => EtcdError::RequestTooManyRequests,
                    PushError::Closed(_) => EtcdError::Stopped,
                };
                shared.waiters.complete(id, Err(error));
                Err(error)
            }
        }
    }

    /// Learners serve nothing but serializable reads, Status and Snapshot.
    pub(crate) fn voters_only(&self) -> Result<(), EtcdError> {
        if self.shared.is_learner() { Err(EtcdError::NotSupportedForLearner) } else { Ok(()) }
    }

    /// True while a leader is known, or was within three election timeouts: what the `hasleader` metadata asks.
    pub fn has_leader(&self) -> bool {
        let known = self.shared.leader.load(Ordering::Acquire) != MemberId::NONE.0;
        known || {
            let lost_for = self.shared.last_leader_change.lock().elapsed();
            self.shared.term().0 > 0 && lost_for < 3 * self.shared.config.election_timeout()
        }
    }
}

pub(crate) fn member_message(member: Member) -> pb::Member {
    pb::Member {
        id: member.id.0,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

fn saturate(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// An entry with this request's id was applied and is of another kind. Ids are unique among members that make them as we do, but
/// whoever forwards an entry chooses its id, so this is no bug of ours to end the process for. What became of the request is unknown.
pub(crate) fn unexpected<T>(asked: &str, outcome: &Outcome) -> Result<T, EtcdError> {
    let answered = match outcome {
        Outcome::Put(_) => "put",
        Outcome::DeleteRange(_) => "delete range",
        Outcome::Txn(_) => "txn",
        _ => "something else",
    };
    warn!(asked, answered, "another member used the id of a request of ours");
    Err(EtcdError::Timeout)
}
