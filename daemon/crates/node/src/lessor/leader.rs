//! The way of a question about a lease to whoever leads, and what the leader itself does with it.

use std::{sync::atomic::Ordering, time::Duration};

use ::lessor::Renewal;
use api::{error::EtcdError, etcdserverpb as pb};
use consensus::io::Role;
use tokio::time::{Instant, timeout, timeout_at};
use transport::{LeaseCallError, Transport};
use types::{LeaseId, MemberId};

use super::{NotNow, ask_round};
use crate::handle::Handle;

/// Pause before a leader that refused or was not reached is asked again, unless another one is elected before; etcd's number.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Longest wait for apply on behalf of a peer, as in etcd.
const APPLY_WAIT: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The last word: there is no such lease.
    NotFound,
    /// This member does not lead, or not surely.
    NotPrimary,
    /// Apply is behind.
    NotApplied,
    Error(EtcdError),
}

/// Something that only the leader knows.
pub(crate) trait Question: Clone + Send + 'static {
    type Answer: Send + 'static;

    /// On the leader. Waits where the answer is not known yet; the caller bounds that.
    fn here(self, handle: &Handle) -> impl Future<Output = Result<Self::Answer, Refusal>> + Send;

    fn there(
        self,
        transport: Transport,
        leader: MemberId,
        patience: Duration,
    ) -> impl Future<Output = Result<Self::Answer, LeaseCallError>> + Send;
}

/// Answers the seconds that the lease has again.
#[derive(Clone, Copy)]
pub(crate) struct Renew(pub(crate) LeaseId);

#[derive(Clone, Copy)]
pub(crate) struct TimeToLive(pub(crate) pb::LeaseTimeToLiveRequest);

impl Question for Renew {
    type Answer = i64;

    async fn here(self, handle: &Handle) -> Result<i64, Refusal> {
        let Renew(id) = self;
        let shared = &handle.shared;
        let desk = &shared.leases;
        let mut all_applied = false;
        loop {
            // Before looking, so that nothing that happens after the look is missed.
            let mut news = desk.news.subscribe();
            match desk.renew(shared, id) {
                Renewal::Renewed(ttl) => return Ok(ttl),
                // A success now and a revocation later would contradict each other (LE05), so these wait for the outcome.
                Renewal::Over | Renewal::Stale(_) => {
                    let told = desk.wait_for(id).ok_or(Refusal::Error(EtcdError::RequestTooManyRequests))?;
                    desk.wake();
                    let pending = match desk.renew(shared, id) {
                        Renewal::Renewed(ttl) => return Ok(ttl),
                        Renewal::Over | Renewal::Stale(_) => true,
                        _ => false,
                    };
                    if pending {
                        let _ = told.await;
                    }
                }
                Renewal::Unknown if all_applied => return Err(Refusal::NotFound),
                Renewal::Unknown => {
                    handle.all_committed_applied().await?;
                    all_applied = true;
                }
                Renewal::Unconfirmed => handle.news(&mut news, NotNow::Unconfirmed).await?,
                Renewal::NotPrimary => handle.news(&mut news, NotNow::NotPrimary).await?,
            }
        }
    }

    async fn there(
        self,
        transport: Transport,
        leader: MemberId,
        patience: Duration,
    ) -> Result<i64, LeaseCallError> {
        transport.renew_lease(leader, self.0.0, patience).await
    }
}

impl Question for TimeToLive {
    type Answer = pb::LeaseTimeToLiveResponse;

    async fn here(self, handle: &Handle) -> Result<pb::LeaseTimeToLiveResponse, Refusal> {
        let TimeToLive(request) = self;
        let id = LeaseId(request.id);
        let shared = &handle.shared;
        let desk = &shared.leases;
        let mut all_applied = false;
        loop {
            let mut news = desk.news.subscribe();
            match desk.look(shared, id) {
                Ok(Some(lease)) => {
                    let keys = if request.keys {
                        // A lease may have very many.
                        let reader = handle.reader();
                        let copy = tokio::task::spawn_blocking(move || reader.lease_keys(id));
                        copy.await.map_err(|_| Refusal::Error(EtcdError::Stopped))?
                    } else {
                        Some(Vec::new())
                    };
                    // None: it was revoked just now.
                    let Some(keys) = keys else { return Err(Refusal::NotFound) };
                    return Ok(pb::LeaseTimeToLiveResponse {
                        header: None,
                        id: request.id,
                        ttl: (lease.remaining_ms / 1000) as i64,
                        granted_ttl: lease.ttl,
                        keys,
                    });
                }
                Ok(None) if all_applied => return Err(Refusal::NotFound),
                Ok(None) => {
                    handle.all_committed_applied().await?;
                    all_applied = true;
                }
                Err(why) => handle.news(&mut news, why).await?,
            }
        }
    }

    async fn there(
        self,
        transport: Transport,
        leader: MemberId,
        patience: Duration,
    ) -> Result<pb::LeaseTimeToLiveResponse, LeaseCallError> {
        transport.lease_time_to_live(leader, self.0, patience).await
    }
}

impl Handle {
    /// A lease that is not known may be one whose grant is committed and not applied (LE04).
    async fn all_committed_applied(&self) -> Result<(), Refusal> {
        match timeout(APPLY_WAIT, self.read_barrier()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ (EtcdError::Stopped | EtcdError::RequestTooManyRequests))) => {
                Err(Refusal::Error(error))
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::NotApplied),
        }
    }

    /// Waits until something changes; at once an error when this member does not lead at all.
    async fn news(&self, news: &mut tokio::sync::watch::Receiver<()>, why: NotNow) -> Result<(), Refusal> {
        let shared = &self.shared;
        if shared.stopping.load(Ordering::Acquire) {
            return Err(Refusal::Error(EtcdError::Stopped));
        }
        if !shared.is_leader.load(Ordering::Acquire) {
            return Err(Refusal::NotPrimary);
        }
        if why == NotNow::Unconfirmed {
            ask_round(shared);
        }
        news.changed().await.map_err(|_| Refusal::Error(EtcdError::Stopped))
    }

    /// Asks whoever leads, again while that changes, until the time for a request is over.
    pub(super) async fn ask_leader<Q: Question>(&self, question: Q) -> Result<Q::Answer, Refusal> {
        let shared = &self.shared;
        let deadline = Instant::now() + shared.config.request_timeout();
        let mut leadership = shared.leadership.subscribe();
        loop {
            if shared.stopping.load(Ordering::Acquire) {
                return Err(Refusal::Error(EtcdError::Stopped));
            }
            let now = *leadership.borrow_and_update();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let error = if now.leader.is_none() { EtcdError::NoLeader } else { EtcdError::Timeout };
                return Err(Refusal::Error(error));
            }
            if now.role == Role::Leader {
                match timeout(left, question.clone().here(self)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(last @ (Refusal::NotFound | Refusal::Error(_)))) => return Err(last),
                    Ok(Err(Refusal::NotPrimary | Refusal::NotApplied)) | Err(_) => {}
                }
            } else if let Some(transport) = shared.transport.get().filter(|_| !now.leader.is_none()) {
                let answer = question.clone().there(transport.clone(), now.leader, left);
                // A leader that was killed or cut off does not answer; its successor does.
                tokio::select! {
                    answer = answer => match answer {
                        Ok(answer) => return Ok(answer),
                        Err(LeaseCallError::NotFound) => return Err(Refusal::NotFound),
                        Err(LeaseCallError::NoAnswer(cause)) => {
                            tracing::debug!(leader = %now.leader, cause, "the leader was asked about a lease in vain");
                        }
                    },
                    _ = leadership.changed() => continue,
                }
            }
            // Whatever refused is not over yet.
            let pause =
                if now.leader.is_none() { deadline } else { deadline.min(Instant::now() + ASK_AGAIN) };
            let _ = timeout_at(pause, leadership.changed()).await;
        }
    }
}
