//! The lessor of a running member: the pure one behind a lock, a thread that looks at it, and the ways in which clients and peers ask.
//!
//! - [`LeaseDesk`] is where keep-alives are answered. Its lock is held for microseconds by everybody: clients' threads renew under it,
//!   apply tells of changes, the raft loop of confirmations, the thread below takes pieces.
//! - [`work`] is the thread: it takes the table on promotion, turns the wheel, asks for rounds, proposes.
//! - [`ask`] has the methods of [`crate::Handle`], [`leader`] the way to whoever leads.
//!
//! **Expiry.** A lease that is over is revoked by an entry of its own, as etcd writes it, and not by one entry for many: members of etcd
//! may read the same log, and nothing private is ever put into their messages. What would be gained by one entry is had by proposing
//! many at once: they share a message, a write, a sync and a hold of the state's lock. Such a proposal carries the term in which it was
//! decided, and the raft loop drops it unless this member still leads in that term; it is never passed on to another leader, who may
//! have renewed the lease (regression LE01).
//!
//! **Confirmation.** A keep-alive is answered from memory while this member knows that nobody else can have been elected: the rounds of
//! ordinary reads say so, and while leases exist the thread asks for a round per third of an election timeout if nobody else does. None of
//! it waits for the disk or for apply.
//!
//! Not here: when a lease ends (the lessor crate), what exists (state-machine).

mod ask;
mod grants;
mod leader;
mod metrics;
mod work;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ::lessor::{Config, Lease, Lessor, Mono, Now, Phase, Renewal, Revoked, Table};
use consensus::io::Proposal;
use parking_lot::{Condvar, Mutex};
use state_machine::LeaseChange;
use tokio::sync::{oneshot, watch};
use types::{LeaseId, Term};

pub(crate) use grants::Grants;
pub(crate) use leader::{Question, Refusal, Renew, TimeToLive};
pub(crate) use work::{REFUSED_PAUSE, run};

use crate::{config::NodeConfig, shared::Shared};
use metrics::LeaseMetrics;

/// Keep-alives that may wait for the outcome of a revocation, or for a record to be cleared, at a time: some 10 MB.
const WAITS_MAX: usize = 100_000;

/// What the lessor wants to have in the log, decided in a term and worth nothing in another.
pub(crate) struct Decided {
    pub(crate) term: Term,
    /// Revocations, of one lease each; otherwise records of many.
    pub(crate) revokes: bool,
    /// Each with its leases, on which the lessor decides again if it does not get into the log.
    pub(crate) entries: Vec<(Proposal, Vec<LeaseId>)>,
}

/// See the module text.
pub(crate) struct LeaseDesk {
    origin: Instant,
    lessor: Mutex<Lessor>,
    /// Something changed that keep-alives without an answer may wait for: confirmed, promoted, demoted.
    news: watch::Sender<()>,
    waits: Mutex<HashMap<LeaseId, Vec<oneshot::Sender<()>>>>,
    waiting: AtomicUsize,
    /// What was given to raft and has no outcome yet, by request id; as many as the lessor lets be under way.
    under_way: Mutex<HashMap<u64, Vec<LeaseId>>>,
    /// Apply refused something of it: nothing is decided before this moment.
    hold: Mutex<Option<Instant>>,
    /// Tables of former terms, freed by the thread.
    former: Mutex<Vec<Table>>,
    wake: Mutex<bool>,
    woken: Condvar,
    pub(crate) metrics: LeaseMetrics,
}

impl LeaseDesk {
    pub(crate) fn new(config: &NodeConfig) -> LeaseDesk {
        let chance = RandomState::new();
        let config = Config {
            election_timeout: nanoseconds(config.election_timeout()),
            checkpoint_interval_ms: config.lease_checkpoint_interval.map(|interval| {
                u64::try_from(interval.as_millis()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
            }),
            ttl_min: config.lease_ttl_min(),
            seed: [chance.hash_one(0), chance.hash_one(1)],
        };
        LeaseDesk {
            origin: Instant::now(),
            lessor: Mutex::new(Lessor::new(config)),
            news: watch::Sender::new(()),
            waits: Mutex::default(),
            waiting: AtomicUsize::new(0),
            under_way: Mutex::default(),
            hold: Mutex::default(),
            former: Mutex::default(),
            wake: Mutex::new(false),
            woken: Condvar::new(),
            metrics: LeaseMetrics::new(),
        }
    }

    fn now(&self, shared: &Shared) -> Now {
        Now { at: self.mono(Instant::now()), sole: shared.sole_leader.load(Ordering::Acquire) }
    }

    fn mono(&self, at: Instant) -> Mono {
        Mono(nanoseconds(at.saturating_duration_since(self.origin)))
    }

    /// Apply worker, before it tells anybody of the entries: what they did to leases.
    pub(crate) fn applied(&self, shared: &Shared, changes: &[LeaseChange]) {
        let mut expired = 0;
        let mut lessor = self.lessor.lock();
        let was_empty = lessor.is_empty();
        let now = self.now(shared);
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => lessor.granted(id, ttl, now),
                LeaseChange::Revoked { id } => expired += u64::from(lessor.revoked(id) == Revoked::Expired),
                LeaseChange::Checkpointed { id, remaining_ttl } => lessor.checkpointed(id, remaining_ttl),
            }
        }
        let awaited = expired > 0 || (was_empty && !lessor.is_empty());
        drop(lessor);
        self.metrics.count(changes, expired);
        self.end_waits(changes);
        if awaited {
            self.wake();
        }
    }

    /// Raft loop, after it has published who leads now: whatever was known here belongs to the past.
    pub(crate) fn leadership_changed(&self, shared: &Shared) {
        let table = {
            let mut lessor = self.lessor.lock();
            let now = self.now(shared);
            lessor.demote(now)
        };
        self.under_way.lock().clear();
        self.former.lock().push(table);
        let waits = std::mem::take(&mut *self.waits.lock());
        self.waiting.fetch_sub(waits.values().map(Vec::len).sum(), Ordering::Relaxed);
        drop(waits);
        self.news.send_replace(());
        self.wake();
    }

    /// Raft loop of a leader: a quorum answered a round that began then.
    pub(crate) fn confirmed(&self, shared: &Shared, began: Instant) {
        {
            let mut lessor = self.lessor.lock();
            let now = self.now(shared);
            lessor.confirm(self.mono(began.checked_sub(margin(&shared.config)).unwrap_or(began)), now);
        }
        if self.news.receiver_count() > 0 {
            self.news.send_replace(());
        }
    }

    /// Raft loop of a leader that begins to hand over: its successor waits for no election timeout.
    pub(crate) fn doubted(&self, shared: &Shared) {
        let mut lessor = self.lessor.lock();
        let now = self.now(shared);
        lessor.doubt(now);
    }

    /// Raft loop: what of this may go into the log now, and is on its way from here on. `granted` says whether a grant of that id is in the
    /// log already; if it is applied by now, the lease is another one than was decided on.
    pub(crate) fn admit(&self, decided: Decided, granted: impl Fn(LeaseId) -> bool) -> Vec<Proposal> {
        let mut lessor = self.lessor.lock();
        if lessor.phase() != Phase::Primary(decided.term) {
            return Vec::new();
        }
        let revokes = decided.revokes;
        let mut under_way = self.under_way.lock();
        let mut admitted = Vec::with_capacity(decided.entries.len());
        for (proposal, leases) in decided.entries {
            let is_meant = |id: &LeaseId| {
                let decided = if revokes { lessor.is_over(*id) } else { lessor.is_recorded(*id) };
                decided && !granted(*id)
            };
            if !leases.iter().all(is_meant) {
                lessor.refused(&leases);
                continue;
            }
            under_way.insert(proposal.id.0, leases);
            admitted.push(proposal);
        }
        admitted
    }

    /// This did not get into the log: its queue was full, or this member cannot propose now.
    pub(crate) fn refused(&self, decided: &Decided) {
        let mut lessor = self.lessor.lock();
        if lessor.phase() == Phase::Primary(decided.term) {
            decided.entries.iter().for_each(|(_, leases)| lessor.refused(leases));
        }
    }

    /// These requests have an outcome, if it is one. What was refused is decided on again; after a refusal by apply, which says the same
    /// to the next one as well, after a pause.
    pub(crate) fn ended(&self, requests: impl Iterator<Item = (u64, bool)>, pause: Duration) {
        let mut under_way = self.under_way.lock();
        if under_way.is_empty() {
            return;
        }
        let mut failed = Vec::new();
        for (id, succeeded) in requests {
            let Some(leases) = under_way.remove(&id) else { continue };
            if !succeeded {
                failed.extend(leases);
            }
        }
        drop(under_way);
        if failed.is_empty() {
            return;
        }
        self.lessor.lock().refused(&failed);
        // They are not over any more, and can be renewed.
        self.tell_waits(failed.iter().copied());
        *self.hold.lock() = Some(Instant::now() + pause);
    }

    fn renew(&self, shared: &Shared, id: LeaseId) -> Renewal {
        let renewal = {
            let mut lessor = self.lessor.lock();
            let now = self.now(shared);
            lessor.renew(id, now)
        };
        if let Renewal::Renewed(_) | Renewal::Stale(_) = renewal {
            self.metrics.renewed.add(1);
        }
        renewal
    }

    /// Of the leader that is sure to be one.
    fn look(&self, shared: &Shared, id: LeaseId) -> Result<Option<Lease>, NotNow> {
        let mut lessor = self.lessor.lock();
        let now = self.now(shared);
        if !matches!(lessor.phase(), Phase::Primary(_)) {
            return Err(NotNow::NotPrimary);
        }
        if !lessor.is_confirmed(now) {
            return Err(NotNow::Unconfirmed);
        }
        Ok(lessor.lease(id, now))
    }

    /// Told when the lease is revoked, its record is cleared, or this member leads no longer. None: too many wait.
    fn wait_for(&self, id: LeaseId) -> Option<oneshot::Receiver<()>> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITS_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let (tell, told) = oneshot::channel();
        self.waits.lock().entry(id).or_default().push(tell);
        Some(told)
    }

    fn end_waits(&self, changes: &[LeaseChange]) {
        // Whoever registers looks at the lease once more, so that none is missed here.
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        self.tell_waits(changes.iter().filter_map(|change| match *change {
            LeaseChange::Revoked { id } | LeaseChange::Checkpointed { id, .. } => Some(id),
            LeaseChange::Granted { .. } => None,
        }));
    }

    fn tell_waits(&self, leases: impl Iterator<Item = LeaseId>) {
        let mut over = Vec::new();
        {
            let mut waits = self.waits.lock();
            for id in leases {
                over.extend(waits.remove(&id).unwrap_or_default());
            }
        }
        self.waiting.fetch_sub(over.len(), Ordering::Relaxed);
        drop(over);
    }

    /// Forgets those that wait no longer: their client has gone, or what they waited for came before they could be told.
    fn sweep_waits(&self) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut gone = 0;
        self.waits.lock().retain(|_, waits| {
            let before = waits.len();
            waits.retain(|wait| !wait.is_closed());
            gone += before - waits.len();
            !waits.is_empty()
        });
        self.waiting.fetch_sub(gone, Ordering::Relaxed);
    }

    pub(crate) fn wake(&self) {
        *self.wake.lock() = true;
        self.woken.notify_one();
    }

    /// The thread's pause: until somebody wakes it, at most `limit`.
    fn sleep(&self, limit: Duration) {
        let mut wake = self.wake.lock();
        if !*wake {
            self.woken.wait_for(&mut wake, limit);
        }
        *wake = false;
    }
}

/// Why the desk cannot answer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotNow {
    NotPrimary,
    Unconfirmed,
}

/// A member counts its election timeout in ticks, the first of which may come right after the heartbeat that it answered, and the last a
/// tick early. By so much the confirmation is shorter than an election timeout.
fn margin(config: &NodeConfig) -> Duration {
    config.heartbeat * (config.election_ticks / 4).min(2) as u32
}

fn nanoseconds(duration: Duration) -> u64 {
    // 584 years.
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// A round of confirmation that nobody's read needs.
fn ask_round(shared: &Arc<Shared>) {
    if shared.gate.ask() {
        shared.raft.push(crate::shared::ToRaft::ReadersWait);
    }
}
