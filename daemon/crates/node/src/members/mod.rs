//! Changes of membership: the rules before the log, the entry in etcd's form, the wait for its outcome, and what a removed member learns.
//!
//! What the log decides is decided by the state machine, on every member alike. Not here: how a new member joins, and what the process
//! does when this member was removed.

mod auto_promotion;
mod forgotten;
mod removal;
mod rules;
mod urls;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use api::{
    error::EtcdError,
    etcdserverpb as pb,
    raftpb::{ConfChange, ConfChangeType},
};
use bytes::Bytes;
use consensus::io::Role;
use prost::Message;
use state_machine::{
    Outcome,
    membership::{Member, member_id, promote_context},
};
use tracing::{info, warn};
use transport::{PeerMember, PromoteError, PromoteRefusal};
use types::{EntryKind, MemberId};

pub use removal::Removal;
pub(crate) use {
    auto_promotion::run as promote_learners,
    forgotten::run as ask_who_goes_on,
    removal::{Rumour, note as note_removal, told as told_removed, told_of as told_of_removal},
};

use crate::{
    handle::{Handle, member_message, unexpected},
    shared::Shared,
};

/// How long a connection must have lasted to count when a member is added; etcd's number.
const STEADY: Duration = Duration::from_secs(5);

/// Longest wait for the outcome of a change. etcd's only limit is the client's patience, and a client that hangs up ends the wait here
/// too; this one bounds what is kept for clients without a limit.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(60);

/// Pause before a change that found another one under way is proposed again: the other takes a commit and an apply.
const PENDING_PAUSE: Duration = Duration::from_millis(50);

/// Pause before the leader is asked again for a promotion, unless another one is elected before.
const PROMOTE_PAUSE: Duration = Duration::from_millis(50);

/// The links of this member as the rules ask for them.
struct Links<'a>(&'a Shared);

impl Links<'_> {
    fn since(&self, id: MemberId) -> Option<Instant> {
        self.0.transport.get()?.active_since(id)
    }
}

impl rules::Heard for Links<'_> {
    fn steadily(&self, id: MemberId) -> bool {
        id == self.0.config.member || self.since(id).is_some_and(|since| since.elapsed() > STEADY)
    }

    fn now(&self, id: MemberId) -> bool {
        id == self.0.config.member || self.since(id).is_some()
    }
}

impl Handle {
    /// A voter or a learner with these peer URLs. Its id is made of them and of the time, here and once.
    pub async fn member_add(
        &self,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, EtcdError> {
        self.voters_only()?;
        let live = self.shared.live();
        let peer_urls = urls::peer_urls(&request.peer_ur_ls)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = member_id(&peer_urls, "", Some(now));
        let member = Member { id, peer_urls, is_learner: request.is_learner, ..Member::default() };
        if live.strict_reconfig_check {
            rules::add(&self.reader().membership(), member.is_learner, &Links(&self.shared))?;
        }
        let kind = if member.is_learner {
            ConfChangeType::ConfChangeAddLearnerNode
        } else {
            ConfChangeType::ConfChangeAddNode
        };
        let members = self.change(kind, id, member.add_context(live.max_learners)).await?;
        info!(member = %id, urls = ?member.peer_urls, learner = member.is_learner, "member added");
        Ok(pb::MemberAddResponse {
            header: Some(self.header_of_cluster()),
            member: Some(member_message(member)),
            members: messages(members),
        })
    }

    /// For ever: the id never belongs to the cluster again. A member may be asked to remove itself. A leader hands over before it goes.
    pub async fn member_remove(
        &self,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, EtcdError> {
        self.voters_only()?;
        let id = MemberId(request.id);
        if self.shared.live().strict_reconfig_check {
            rules::remove(&self.reader().membership(), id, &Links(&self.shared))?;
        }
        let members = self.change(ConfChangeType::ConfChangeRemoveNode, id, Vec::new()).await?;
        info!(member = %id, "member removed");
        Ok(pb::MemberRemoveResponse { header: Some(self.header_of_cluster()), members: messages(members) })
    }

    /// Other peer URLs; name, client URLs and standing stay.
    pub async fn member_update(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, EtcdError> {
        self.voters_only()?;
        let id = MemberId(request.id);
        // etcd takes any text here and ends when it means to dial it. The given order stays.
        urls::peer_urls(&request.peer_ur_ls)?;
        let peer_urls = request.peer_ur_ls.iter().map(|url| url.trim().to_owned()).collect();
        let member = Member { id, peer_urls, ..Member::default() };
        let members = self.change(ConfChangeType::ConfChangeUpdateNode, id, member.update_context()).await?;
        info!(member = %id, urls = ?member.peer_urls, "member updated");
        Ok(pb::MemberUpdateResponse { header: Some(self.header_of_cluster()), members: messages(members) })
    }

    /// Makes a learner a voter once it has caught up. Only the leader knows; others ask it.
    pub async fn member_promote(
        &self,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, EtcdError> {
        self.voters_only()?;
        let members = self.promote_anywhere(MemberId(request.id)).await?;
        info!(member = %MemberId(request.id), "member promoted");
        Ok(pb::MemberPromoteResponse { header: Some(self.header_of_cluster()), members: messages(members) })
    }

    async fn promote_anywhere(&self, id: MemberId) -> Result<Vec<Member>, EtcdError> {
        let shared = &self.shared;
        let deadline = tokio::time::Instant::now() + shared.config.request_timeout();
        let mut leadership = shared.leadership.subscribe();
        let was_learner = self.reader().member(id).is_some_and(|member| member.is_learner);
        let mut asked_in_vain = false;
        loop {
            let now = *leadership.borrow_and_update();
            if now.role == Role::Leader {
                match self.promote_as_leader(id).await {
                    Err(EtcdError::NotLeader) => {}
                    outcome => return outcome,
                }
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return Err(if now.leader.is_none() { EtcdError::NoLeader } else { EtcdError::Timeout });
            }
            let asks = now.leader != shared.config.member && !now.leader.is_none();
            if let Some(transport) = shared.transport.get().filter(|_| asks) {
                match transport.promote_member(now.leader, id, left).await {
                    Ok(members) => {
                        // Answered when it is applied here as well, if that is soon.
                        let applied = tokio::time::timeout(left, self.read_barrier()).await;
                        let there = || members.into_iter().map(member_of).collect();
                        return Ok(if matches!(applied, Ok(Ok(()))) { self.members() } else { there() });
                    }
                    // An earlier try of ours may have done it and lost the answer.
                    Err(PromoteError::Refused(PromoteRefusal::NotLearner))
                        if asked_in_vain && was_learner =>
                    {
                        self.read_barrier().await?;
                        return Ok(self.members());
                    }
                    Err(PromoteError::Refused(refusal)) => return Err(refused(refusal)),
                    Err(PromoteError::NoAnswer(cause)) => {
                        asked_in_vain = true;
                        tracing::debug!(leader = %now.leader, cause, "the leader was asked for a promotion in vain");
                    }
                }
            }
            let pause = if now.leader.is_none() {
                deadline
            } else {
                deadline.min(tokio::time::Instant::now() + PROMOTE_PAUSE)
            };
            let _ = tokio::time::timeout_at(pause, leadership.changed()).await;
        }
    }

    /// On the leader, which alone knows how far the learner is; `NotLeader` elsewhere.
    pub(crate) async fn promote_as_leader(&self, id: MemberId) -> Result<Vec<Member>, EtcdError> {
        if self.shared.raft_status.lock().role != Role::Leader {
            return Err(EtcdError::NotLeader);
        }
        // Others may have applied more, and told clients of it.
        self.read_barrier().await?;
        let membership = self.reader().membership();
        let status = self.shared.raft_status.lock().clone();
        rules::is_ready(&membership, id, &status)?;
        if self.shared.live().strict_reconfig_check {
            rules::promote(&membership)?;
        }
        self.change(ConfChangeType::ConfChangeAddNode, id, promote_context(id)).await
    }

    /// Refuses what replicated facts forbid already, and answers when the change is applied here. While another change is under way at the
    /// leader, or the leader hands over since it is the one to go, it waits for its turn. Where it does no harm to ask twice it is asked
    /// again when nobody knows what became of it. A time-out means unknown.
    async fn change(
        &self,
        kind: ConfChangeType,
        id: MemberId,
        context: Vec<u8>,
    ) -> Result<Vec<Member>, EtcdError> {
        let shared = &self.shared;
        let context = Bytes::from(context);
        let deadline = Instant::now() + CHANGE_WAIT_MAX;
        // An earlier try may have done it, or may do it yet.
        let mut in_doubt = false;
        loop {
            if in_doubt && self.is_done(kind, id) {
                return Ok(self.members());
            }
            if self.reader().membership().check(kind, id, &context).is_err() {
                // This member may lag behind a change that was acknowledged by another one. What the cluster knows is what counts.
                let caught_up = self.read_barrier().await;
                caught_up.map_err(|error| if in_doubt { EtcdError::Timeout } else { error })?;
                if in_doubt && self.is_done(kind, id) {
                    return Ok(self.members());
                }
                self.reader().membership().check(kind, id, &context)?;
            }
            let request = shared.waiters.next_id();
            let change = ConfChange {
                id: Some(request),
                r#type: Some(kind as i32),
                node_id: Some(id.0),
                context: (!context.is_empty()).then(|| context.clone()),
            };
            let data = Bytes::from(change.encode_to_vec());
            if data.len() as u64 > shared.config.max_request_bytes {
                return Err(EtcdError::RequestTooLarge);
            }
            let patience = shared.config.request_timeout();
            let until =
                if is_repeatable(kind) { None } else { Some(deadline.max(Instant::now() + patience)) };
            let told = self.submit(request, EntryKind::ConfChange, data, until)?;
            match told.await.unwrap_or(Err(EtcdError::Stopped)) {
                Ok(Outcome::ConfChange(members)) => return Ok(members),
                Ok(other) => return unexpected("change of membership", &other),
                // It was not taken.
                Err(EtcdError::ProposalDropped) if Instant::now() < deadline => {
                    tokio::time::sleep(PENDING_PAUSE).await;
                }
                Err(EtcdError::Timeout | EtcdError::TimeoutDueToLeaderFail)
                    if is_repeatable(kind) && Instant::now() < deadline =>
                {
                    in_doubt = true;
                }
                Err(_) if in_doubt && self.is_done(kind, id) => return Ok(self.members()),
                Err(EtcdError::NoLeader) if in_doubt => return Err(EtcdError::Timeout),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a change that was proposed has taken effect here.
    fn is_done(&self, kind: ConfChangeType, id: MemberId) -> bool {
        let reader = self.reader();
        let member = reader.member(id);
        match kind {
            ConfChangeType::ConfChangeRemoveNode => reader.is_removed(id),
            // Added, or promoted.
            ConfChangeType::ConfChangeAddNode => member.is_some_and(|member| !member.is_learner),
            ConfChangeType::ConfChangeAddLearnerNode => member.is_some(),
            ConfChangeType::ConfChangeUpdateNode => false,
        }
    }
}

/// An id is added, promoted and removed once in its life, whoever asks how often. An old update would undo a newer one.
fn is_repeatable(kind: ConfChangeType) -> bool {
    kind != ConfChangeType::ConfChangeUpdateNode
}

/// As the leader, for a peer; never passed on.
pub(crate) async fn promote_for_peer(
    shared: Option<Arc<Shared>>,
    id: MemberId,
) -> Result<Vec<PeerMember>, PromoteRefusal> {
    let handle = Handle { shared: shared.ok_or(PromoteRefusal::Other)? };
    match handle.promote_as_leader(id).await {
        Ok(members) => Ok(members.into_iter().map(crate::peers::peer_member).collect()),
        Err(EtcdError::MemberNotFound) => Err(PromoteRefusal::NotFound),
        Err(EtcdError::MemberNotLearner) => Err(PromoteRefusal::NotLearner),
        Err(EtcdError::LearnerNotReady) => Err(PromoteRefusal::NotReady),
        Err(EtcdError::MemberNotEnoughStarted) => Err(PromoteRefusal::NotEnoughStarted),
        Err(error) => {
            warn!(member = %id, %error, "a promotion that a peer asked for failed");
            Err(PromoteRefusal::Other)
        }
    }
}

fn refused(refusal: PromoteRefusal) -> EtcdError {
    match refusal {
        PromoteRefusal::NotFound => EtcdError::MemberNotFound,
        PromoteRefusal::NotLearner => EtcdError::MemberNotLearner,
        PromoteRefusal::NotReady => EtcdError::LearnerNotReady,
        PromoteRefusal::NotEnoughStarted => EtcdError::MemberNotEnoughStarted,
        PromoteRefusal::Other => EtcdError::Timeout,
    }
}

fn member_of(member: PeerMember) -> Member {
    Member {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    }
}

fn messages(members: Vec<Member>) -> Vec<pb::Member> {
    members.into_iter().map(member_message).collect()
}
