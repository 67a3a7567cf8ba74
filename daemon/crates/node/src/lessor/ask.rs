//! What the edge may ask about leases.

use std::sync::atomic::Ordering;

use ::lessor::{Phase, Renewal};
use api::{error::EtcdError, etcdserverpb as pb};
use state_machine::{LeaseFacts, Outcome, validate};
use types::{LeaseId, limits};

use super::leader::{Refusal, Renew, TimeToLive};
use crate::handle::{Handle, unexpected};

/// Ids tried for a lease whose id is ours to choose. They hold the member, the time and a counter, so that a second try is rare already.
const GRANT_TRIES: usize = 8;

/// A revocation makes room, so it is let in at twice the lag of others, as in etcd.
const REVOKE_LAG_MAX: u64 = 2 * limits::APPLY_LAG_MAX;

/// More leases than this are listed on a thread made for waiting: a million take half a second.
const LISTED_AT_ONCE_MAX: usize = 10_000;

/// Deadlines looked up under one hold of the lock.
const LEASES_PER_HOLD: usize = 1024;

impl Handle {
    /// A time to live below the minimum is raised, and id 0 replaced by one of ours, before the log; the answer has what was granted.
    pub async fn lease_grant(
        &self,
        mut request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, EtcdError> {
        self.voters_only()?;
        validate::lease_grant(&request)?;
        request.ttl = request.ttl.max(self.shared.config.lease_ttl_min());
        let ours = request.id == LeaseId::NONE.0;
        let mut tries = 0;
        loop {
            tries += 1;
            if ours {
                request.id = self.fresh_lease_id();
            }
            let entry = pb::InternalRaftRequest { lease_grant: Some(request), ..Default::default() };
            match self.propose(entry).await {
                Ok(Outcome::LeaseGrant(mut response)) => {
                    self.stamp(&mut response.header);
                    return Ok(response);
                }
                Ok(other) => return unexpected("lease grant", &other),
                Err(EtcdError::LeaseExist) if ours && tries < GRANT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes the keys that are attached.
    pub async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, EtcdError> {
        self.voters_only()?;
        let entry = pb::InternalRaftRequest { lease_revoke: Some(request), ..Default::default() };
        match self.propose_behind(entry, REVOKE_LAG_MAX).await? {
            Outcome::LeaseRevoke(mut response) => {
                self.stamp(&mut response.header);
                Ok(response)
            }
            other => unexpected("lease revoke", &other),
        }
    }

    /// From this member's memory if it leads and is sure of it; None: [`Handle::lease_keep_alive`] finds out. Never waits for anything
    /// but a lock that is held for microseconds.
    pub fn lease_keep_alive_now(&self, id: i64) -> Option<pb::LeaseKeepAliveResponse> {
        let shared = &self.shared;
        if !shared.is_leader.load(Ordering::Acquire) {
            return None;
        }
        let header = self.header_from_memory();
        match shared.leases.renew(shared, LeaseId(id)) {
            Renewal::Renewed(ttl) => Some(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl }),
            _ => None,
        }
    }

    /// Time to live 0 in the answer: there is no such lease. One that is over and not revoked yet makes this wait.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, EtcdError> {
        self.voters_only()?;
        // Before the renewal: a lease that the revision shows as revoked must not be seen alive at it.
        let header = self.header_from_memory();
        let ttl = match self.ask_leader(Renew(LeaseId(id))).await {
            Ok(ttl) => ttl,
            Err(Refusal::NotFound) => 0,
            Err(refusal) => return Err(error(refusal)),
        };
        Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
    }

    /// Asks the leader; over a change of leader it asks again. Time to live -1: there is no such lease.
    pub async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, EtcdError> {
        self.voters_only()?;
        let id = request.id;
        let mut response = match self.ask_leader(TimeToLive(request)).await {
            Ok(response) => response,
            Err(Refusal::NotFound) => pb::LeaseTimeToLiveResponse { id, ttl: -1, ..Default::default() },
            Err(Refusal::Error(EtcdError::Stopped)) => return Err(EtcdError::Stopped),
            Err(Refusal::Error(EtcdError::NoLeader)) => return Err(EtcdError::Timeout),
            Err(refusal) => return Err(error(refusal)),
        };
        response.header = Some(self.header(0));
        Ok(response)
    }

    /// Those that this member knows, in the order in which they end if it leads, otherwise by id.
    pub async fn lease_leases(&self) -> Result<pb::LeaseLeasesResponse, EtcdError> {
        self.voters_only()?;
        let handle = self.clone();
        let leases = if self.reader().lease_count() > LISTED_AT_ONCE_MAX {
            tokio::task::spawn_blocking(move || handle.leases_in_order())
                .await
                .map_err(|_| EtcdError::Stopped)?
        } else {
            handle.leases_in_order()
        };
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id: id.0 }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(self.header(0)), leases })
    }

    /// 63 bits, positive: member, milliseconds and a counter, from the same row as request ids, as in etcd.
    fn fresh_lease_id(&self) -> i64 {
        loop {
            let id = (self.shared.waiters.next_id() & i64::MAX as u64) as i64;
            if id != LeaseId::NONE.0 {
                return id;
            }
        }
    }

    fn leases_in_order(&self) -> Vec<LeaseId> {
        let shared = &self.shared;
        let leases = self.reader().leases();
        let mut order = Vec::with_capacity(leases.len());
        for piece in leases.chunks(LEASES_PER_HOLD) {
            let mut lessor = shared.leases.lessor.lock();
            let decides = matches!(lessor.phase(), Phase::Primary(_));
            let now = shared.leases.now(shared);
            order.extend(piece.iter().map(|LeaseFacts { id, .. }| {
                let lease = if decides { lessor.lease(*id, now) } else { None };
                (lease.map_or(u64::MAX, |lease| now.at.0 / 1_000_000 + lease.remaining_ms), *id)
            }));
        }
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Never waits for apply, which the revision of the state does while entries are applied.
    fn header_from_memory(&self) -> pb::ResponseHeader {
        self.header(self.shared.revision.load(Ordering::Acquire))
    }
}

fn error(refusal: Refusal) -> EtcdError {
    match refusal {
        Refusal::NotFound => EtcdError::LeaseNotFound,
        Refusal::NotPrimary | Refusal::NotApplied => EtcdError::Timeout,
        Refusal::Error(error) => error,
    }
}
