//! What must hold of leases in every history. Promises are what clients were told; times are the virtual clock's, which is everybody's.

use std::collections::{BTreeMap, BTreeSet};

use api::etcdserverpb::{InternalRaftRequest, RangeRequest};
use state_machine::{LeaseChange, Memory, Reader};
use types::{Entry, LeaseId, Term};

use super::Time;

/// Time units of a second.
const SECOND: Time = 1000;
/// A lease that nobody renews is gone this long after its time in fine weather: a grace of a second, a transfer of leadership that
/// holds up proposals for an election timeout, and the ticks of the driver.
const OVERDUE_MAX: Time = 3 * SECOND;
/// An id is granted anew after this long.
const REUSED_AFTER: Time = 15 * SECOND;
/// What a new leader adds to everybody's time.
const ELECTION: Time = SECOND;

/// A grant or a revocation that a client waits for.
#[derive(Clone, Copy, Debug)]
pub enum LeaseCall {
    Grant { lease: i64, ttl: i64, sent: Time },
    Revoke { lease: i64 },
}

/// What is promised about a lease, from one grant of its id to the next.
#[derive(Debug, Default)]
struct Promise {
    /// Nobody may see it end before.
    until: Time,
    /// When a client first heard of it.
    known_at: Option<Time>,
    /// The last time its full time was begun anew by anybody, whether a client heard of it or not.
    touched: Time,
    ttl: i64,
    /// When the grant was first applied anywhere.
    granted_at: Time,
    revocation_asked: bool,
}

/// An expiry on its way through the log.
struct Decision {
    lease: i64,
    term: Term,
    at: Time,
}

#[derive(Default)]
pub struct LeaseChecks {
    promises: BTreeMap<i64, Promise>,
    decisions: BTreeMap<u64, Decision>,
    /// By the log, as far as anybody applied it.
    alive: BTreeSet<i64>,
    gone: BTreeMap<i64, Time>,
    pub renewals: u64,
    pub expiries: u64,
    pub checkpoints: u64,
}

impl LeaseChecks {
    /// An id that was free for so long that no leader has anything on its way for the lease that had it. Sooner, an expiry or a
    /// checkpoint decided for that one can hit the next: the log names leases by nothing else.
    pub fn long_gone(&self, now: Time) -> Option<i64> {
        self.gone.iter().find(|(_, since)| now - **since > REUSED_AFTER).map(|(lease, _)| *lease)
    }

    pub fn asked(&mut self, call: LeaseCall) {
        if let LeaseCall::Revoke { lease } = call {
            self.promises.entry(lease).or_default().revocation_asked = true;
        }
    }

    pub fn answered(&mut self, call: LeaseCall, ok: bool, now: Time) {
        if let LeaseCall::Grant { lease, ttl, sent } = call
            && ok
        {
            let promise = self.promises.entry(lease).or_default();
            if promise.ttl == ttl {
                promise.until = promise.until.max(sent + ttl as u64 * SECOND);
                promise.known_at.get_or_insert(now);
            }
        }
    }

    pub fn touched(&mut self, lease: i64, at: Time) {
        let promise = self.promises.entry(lease).or_default();
        promise.touched = promise.touched.max(at);
    }

    /// A client heard that its lease was renewed. The leader answers from memory, so it may have renewed the lease that had this id
    /// before; that is seen by the time, if it differs.
    pub fn renewed(&mut self, lease: i64, renewed_at: Time, ttl: i64) {
        let promise = self.promises.entry(lease).or_default();
        if ttl == promise.ttl && promise.granted_at <= renewed_at {
            promise.until = promise.until.max(renewed_at + ttl as u64 * SECOND);
            self.renewals += 1;
        }
    }

    /// A client was told that there is no such lease, when it had asked at `sent`.
    pub fn not_found(&mut self, lease: i64, sent: Time, now: Time) {
        let promise = self.promises.entry(lease).or_default();
        let was_known = promise.known_at.is_some_and(|known_at| known_at <= sent);
        assert!(
            promise.until <= now || promise.revocation_asked || !was_known,
            "lease {lease} is said to be gone at {now}, it was promised until {}",
            promise.until
        );
    }

    pub fn decided(&mut self, request: u64, lease: i64, term: Term, at: Time) {
        self.decisions.insert(request, Decision { lease, term, at });
    }

    /// An entry is applied for the first time anywhere.
    pub fn commits(&mut self, entry: &Entry, request: Option<&InternalRaftRequest>, now: Time) {
        let Some(request) = request else { return };
        self.checkpoints += u64::from(request.lease_checkpoint.is_some());
        if let Some(grant) = &request.lease_grant
            && self.alive.insert(grant.id)
        {
            self.gone.remove(&grant.id);
            // What somebody asked to revoke before may hit the lease that has the id now.
            let revocation_asked = self.promises.get(&grant.id).is_some_and(|old| old.revocation_asked);
            let promise = Promise { ttl: grant.ttl, granted_at: now, revocation_asked, ..Promise::default() };
            self.promises.insert(grant.id, promise);
        }
        let Some(revoke) = &request.lease_revoke else { return };
        let was_alive = self.alive.remove(&revoke.id);
        self.gone.insert(revoke.id, now);
        let id = request.header.as_ref().map_or(0, |header| header.id);
        let Some(Decision { lease, term, at }) = self.decisions.get(&id) else { return };
        assert_eq!(
            entry.term,
            *term,
            "the expiry of lease {lease} was decided by the leader of term {term}, the log has it at {}",
            entry.position()
        );
        let promised = self.promises.get(lease).map_or(0, |promise| promise.until);
        let granted_at = self.promises.get(lease).map_or(0, |promise| promise.granted_at);
        assert!(
            !was_alive || (promised <= *at && granted_at <= *at),
            "lease {lease} expired at {at}, decided in term {term}; it was granted at {granted_at} and promised until {promised}"
        );
        self.expiries += u64::from(was_alive);
    }

    /// In fine weather, with a leader that decides since `since`: nobody outlives his time for long.
    pub fn not_overdue(&self, reader: &Reader<Memory>, since: Time, now: Time) {
        for facts in reader.leases() {
            let touched = self.promises.get(&facts.id.0).map_or(0, |promise| promise.touched);
            let due = touched.max(since + ELECTION) + facts.granted_ttl as u64 * SECOND;
            assert!(
                now <= due + OVERDUE_MAX,
                "lease {} of {} s is still there at {now}, its last touch was at {touched}, a leader decides since {since}",
                facts.id.0,
                facts.granted_ttl
            );
        }
    }
}

/// After an entry that revokes a lease, no key names it; and whatever a key names exists and knows it.
pub fn keys_go_with_their_lease(member: u64, reader: &Reader<Memory>, changes: &[LeaseChange]) {
    if changes.is_empty() {
        return;
    }
    let everything = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let kvs = reader.range(&everything).expect("a plain read is answered").kvs;
    for (at, change) in changes.iter().enumerate() {
        // An id may be granted anew in the same batch, and used.
        let is_granted = |later: &LeaseChange| matches!(later, LeaseChange::Granted { .. });
        if let LeaseChange::Revoked { id } = change
            && !changes[at..].iter().any(is_granted)
        {
            let left: Vec<_> = kvs.iter().filter(|kv| kv.lease == id.0).map(|kv| &kv.key).collect();
            assert!(left.is_empty(), "{member} still has {left:?} of lease {}, which it revoked", id.0);
        }
    }
    for kv in kvs.iter().filter(|kv| kv.lease != 0) {
        let keys = reader.lease_keys(LeaseId(kv.lease));
        assert!(
            keys.is_some_and(|keys| keys.contains(&kv.key)),
            "{member} has key {:?} of lease {}, which does not know it",
            kv.key,
            kv.lease
        );
    }
}
