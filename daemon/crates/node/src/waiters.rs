//! Clients that wait for their proposal to be applied, by request id. Registered before the proposal is queued, completed by the
//! apply worker, expired by the raft loop's clock.
//!
//! An expired waiter learns "timed out", which means unknown: the entry may still be applied later.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use api::error::EtcdError;
use parking_lot::Mutex;
use state_machine::Outcome;
use tokio::sync::oneshot;
use types::MemberId;

/// Shards of the table: enough that client threads and the apply worker seldom meet on one lock.
const SHARDS: usize = 16;

pub(crate) type Answer = Result<Outcome, EtcdError>;

pub(crate) struct Waiters {
    shards: [Mutex<HashMap<u64, Waiter>>; SHARDS],
    next: AtomicU64,
    count: AtomicUsize,
}

struct Waiter {
    tell: oneshot::Sender<Answer>,
    /// In the future for one who waits longer than others.
    since: Instant,
    /// When the proposal was last given to whoever led; parked proposals are given anew.
    given: Instant,
}

impl Waiters {
    /// Request ids begin with the member's low 16 bits, then 40 bits of milliseconds since 1970, then a counter: unique across members
    /// and restarts, as etcd's generator has it, so that a replayed entry never answers another request.
    pub(crate) fn new(member: MemberId, unix_ms: u64) -> Waiters {
        let prefix = (member.0 & 0xffff) << 48;
        let time = (unix_ms & 0xff_ffff_ffff) << 8;
        Waiters {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            next: AtomicU64::new(prefix | time),
            count: AtomicUsize::new(0),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        // Carries out of the counter run into the milliseconds: more than 256 requests per millisecond borrow from the future,
        // which a restart (tens of milliseconds at least) gives back.
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn register(&self, id: u64) -> oneshot::Receiver<Answer> {
        self.register_since(id, Instant::now())
    }

    /// As [`Waiters::register`], for one who waits until then instead of for `usual`.
    pub(crate) fn register_until(
        &self,
        id: u64,
        until: Instant,
        usual: Duration,
    ) -> oneshot::Receiver<Answer> {
        self.register_since(id, until.checked_sub(usual).unwrap_or(until))
    }

    fn register_since(&self, id: u64, since: Instant) -> oneshot::Receiver<Answer> {
        let (tell, told) = oneshot::channel();
        let former = self.shard(id).lock().insert(id, Waiter { tell, since, given: Instant::now() });
        assert!(former.is_none(), "request id {id:x} given out twice");
        self.count.fetch_add(1, Ordering::Relaxed);
        told
    }

    /// Tells the waiter of this request, if it waits here and still listens.
    pub(crate) fn complete(&self, id: u64, answer: Answer) {
        let waiter = self.shard(id).lock().remove(&id);
        if let Some(waiter) = waiter {
            self.count.fetch_sub(1, Ordering::Relaxed);
            // A client that hung up is not an error.
            let _ = waiter.tell.send(answer);
        }
    }

    /// Whether somebody still wants to know: false once the waiter was told, or has hung up.
    pub(crate) fn waits(&self, id: u64) -> bool {
        self.shard(id).lock().get(&id).is_some_and(|waiter| !waiter.tell.is_closed())
    }

    /// A parked proposal goes to the leader that there is now.
    pub(crate) fn given_anew(&self, id: u64, now: Instant) {
        if let Some(waiter) = self.shard(id).lock().get_mut(&id) {
            waiter.given = now;
        }
    }

    /// Ends every wait that began before `deadline`.
    pub(crate) fn expire(&self, deadline: Instant, error: EtcdError) -> usize {
        self.end(error, |waiter| waiter.since < deadline)
    }

    /// Ends every wait for a proposal that was given to a former leader, before `since`.
    pub(crate) fn expire_given_before(&self, since: Instant, error: EtcdError) -> usize {
        self.end(error, |waiter| waiter.given < since)
    }

    fn end(&self, error: EtcdError, over: impl Fn(&Waiter) -> bool) -> usize {
        let mut expired = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let ids: Vec<u64> = shard.iter().filter(|(_, waiter)| over(waiter)).map(|(id, _)| *id).collect();
            expired.extend(ids.into_iter().filter_map(|id| shard.remove(&id)));
        }
        self.count.fetch_sub(expired.len(), Ordering::Relaxed);
        let count = expired.len();
        for waiter in expired {
            let _ = waiter.tell.send(Err(error));
        }
        count
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Waiter>> {
        &self.shards[(id as usize) % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_waiter_is_told_once_and_a_late_outcome_is_nobodys() {
        let waiters = Waiters::new(MemberId(0xabcd_1234), 1_700_000_000_000);
        let id = waiters.next_id();
        assert_eq!(id >> 48, 0x1234, "ids begin with the member");
        let mut told = waiters.register(id);
        assert!(waiters.waits(id));
        assert_eq!(waiters.expire(Instant::now() + std::time::Duration::from_secs(1), EtcdError::Timeout), 1);
        assert!(matches!(told.try_recv(), Ok(Err(EtcdError::Timeout))));
        assert!(!waiters.waits(id), "told");
        waiters.complete(id, Ok(Outcome::Nothing));
        assert_eq!(waiters.count(), 0);
        let (old, parked) = (waiters.next_id(), waiters.next_id());
        let mut lost = waiters.register(old);
        let mut kept = waiters.register(parked);
        let change = Instant::now() + std::time::Duration::from_secs(1);
        waiters.given_anew(parked, change);
        assert_eq!(waiters.expire_given_before(change, EtcdError::TimeoutDueToLeaderFail), 1);
        assert!(matches!(lost.try_recv(), Ok(Err(EtcdError::TimeoutDueToLeaderFail))));
        assert!(kept.try_recv().is_err(), "given to the new leader");
        waiters.complete(parked, Ok(Outcome::Nothing));
        let long = waiters.next_id();
        let mut patient =
            waiters.register_until(long, Instant::now() + Duration::from_secs(60), Duration::ZERO);
        assert_eq!(waiters.expire(Instant::now(), EtcdError::Timeout), 0);
        assert!(patient.try_recv().is_err(), "its own time is not over");
        waiters.complete(long, Ok(Outcome::Nothing));
        let gone = waiters.next_id();
        drop(waiters.register(gone));
        assert!(!waiters.waits(gone), "hung up");
    }
}
