//! The lessor: one table, one clock, and what must be proposed. See the crate's text.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::{LeaseId, Term};

use crate::{
    clock::{Clock, Mono, Now},
    table::{Record, TTL_MAX, Table},
    wheel::Pop,
};

/// Leases decided to be over whose revocation has not been applied, at a time. A round of so many takes some ten milliseconds, so 50,000
/// go in about a second; more at once would make clients' writes wait behind them, and come near the 5,000 committed and unapplied entries
/// at which clients are told "too many requests".
pub const REVOKES_IN_FLIGHT_MAX: usize = 2048;

/// Checkpoints that wait to be proposed. Whoever finds the queue full is looked at a little later.
const CHECKPOINTS_QUEUED_MAX: usize = 16_384;

/// A record of a rest is taken this late and rounded up this much together, at most.
const ROUNDED_MS: u64 = 2000;

/// That little, in milliseconds.
const CHECKPOINT_AGAIN_MS: u64 = 1000;

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Nanoseconds.
    pub election_timeout: u64,
    /// Milliseconds; none: nothing is checkpointed, while records of others are still cleared.
    pub checkpoint_interval_ms: Option<u64>,
    /// Shorter leases live so many seconds all the same: the log may hold any number.
    pub ttl_min: i64,
    /// Keys the hash of ids.
    pub seed: [u64; 2],
}

/// What the lessor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Another member decides; nothing is known here.
    Idle,
    /// This member leads in this term and takes the table.
    Building(Term),
    /// This member leads in this term and decides.
    Primary(Term),
}

/// What became of a keep-alive. Times to live in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It has its full time again.
    Renewed(i64),
    /// So it has, but a record of its remaining time stands in the log: to be answered when [`Lessor::is_stale`] no longer holds.
    Stale(i64),
    /// It is over; its revocation is under way.
    Over,
    Unknown,
    /// Leadership must be confirmed first.
    Unconfirmed,
    /// This member does not decide (yet).
    NotPrimary,
}

/// A lease as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ttl: i64,
    /// 0 when it is over.
    pub remaining_ms: u64,
    pub is_over: bool,
}

/// What [`Lessor::revoked`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It had been decided here.
    Expired,
    /// A client revoked it.
    Asked,
    Unknown,
}

/// See the module text. One caller at a time; each call is short, apart from those that take a budget.
#[derive(Debug)]
pub struct Lessor {
    config: Config,
    clock: Clock,
    phase: Phase,
    table: Table,
    /// Revoked while the table was being taken: the copy that is loaded may still hold them.
    gone: BTreeSet<LeaseId>,
    /// Recorded meanwhile for leases that are not loaded yet.
    records: BTreeMap<LeaseId, i64>,
    /// Over, and not revoked yet.
    over: usize,
    checkpoints: VecDeque<LeaseId>,
    clearings: VecDeque<LeaseId>,
}

impl Lessor {
    pub fn new(config: Config) -> Lessor {
        Lessor {
            config,
            clock: Clock::new(config.election_timeout),
            phase: Phase::Idle,
            table: Table::new(config.seed, 0),
            gone: BTreeSet::new(),
            records: BTreeMap::new(),
            over: 0,
            checkpoints: VecDeque::new(),
            clearings: VecDeque::new(),
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn len(&self) -> usize {
        self.table.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leases that were decided to be over and are not revoked yet.
    pub fn over(&self) -> usize {
        self.over
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// This member leads in `term` and has applied an entry of it. From now on it is told of every change that apply makes, and then
    /// gets the leases that the state holds at some later point, in pieces.
    pub fn begin(&mut self, term: Term, now: Now) {
        self.clock.advance(now);
        self.reset();
        self.phase = Phase::Building(term);
    }

    /// A lease of the copied table; `remaining` seconds if they are positive, otherwise `ttl`. What apply has told since is newer.
    pub fn load(&mut self, id: LeaseId, ttl: i64, remaining: i64) {
        assert!(matches!(self.phase, Phase::Building(_)), "a table is loaded between begin and promoted");
        if self.gone.contains(&id) || self.table.find(id).is_some() {
            return;
        }
        let remaining = self.records.remove(&id).unwrap_or(remaining);
        let ttl = self.bound_ttl(ttl);
        let rest = if remaining > 0 { remaining as u64 } else { ttl };
        // A rest is not below the minimum: who takes over gives everybody that much.
        let rest_ms = rest.min(ttl).saturating_mul(1000) + self.config.election_timeout / 1_000_000;
        let at = self.table.insert(id, ttl, self.clock.ms() + rest_ms);
        if remaining > 0 {
            let slot = self.table.slots.get_mut(at);
            slot.set_record(Record::Rest);
            slot.set_rest(true);
        }
        self.link(at, self.clock.ms());
    }

    /// The whole copy was loaded.
    pub fn promoted(&mut self) {
        let Phase::Building(term) = self.phase else { panic!("a table was being taken") };
        self.gone.clear();
        self.records.clear();
        self.phase = Phase::Primary(term);
    }

    /// This member leads no longer, or in another term. The table is given back to be freed where nobody waits.
    #[must_use]
    pub fn demote(&mut self, now: Now) -> Table {
        self.clock.doubt(now);
        self.phase = Phase::Idle;
        self.reset()
    }

    fn reset(&mut self) -> Table {
        self.gone.clear();
        self.records.clear();
        self.over = 0;
        self.checkpoints.clear();
        self.clearings.clear();
        std::mem::replace(&mut self.table, Table::new(self.config.seed, self.clock.ms()))
    }

    /// Apply granted a lease.
    pub fn granted(&mut self, id: LeaseId, ttl: i64, now: Now) {
        if self.phase == Phase::Idle {
            return;
        }
        self.clock.advance(now);
        self.gone.remove(&id);
        self.records.remove(&id);
        // Known when the copied table was newer than this.
        if self.table.find(id).is_none() {
            let ttl = self.bound_ttl(ttl);
            let clock_ms = self.clock.ms();
            let at = self.table.insert(id, ttl, clock_ms + ttl * 1000);
            self.link(at, clock_ms);
        }
    }

    /// Apply revoked a lease.
    pub fn revoked(&mut self, id: LeaseId) -> Revoked {
        if let Phase::Building(_) = self.phase {
            self.gone.insert(id);
        }
        let Some(at) = self.table.find(id) else { return Revoked::Unknown };
        let was_over = self.table.slots.get(at).is_over();
        self.over -= usize::from(was_over);
        self.table.remove(at);
        if was_over { Revoked::Expired } else { Revoked::Asked }
    }

    /// Apply recorded what was left of a lease, or with 0 that nothing is recorded.
    pub fn checkpointed(&mut self, id: LeaseId, remaining: i64) {
        let Some(at) = self.table.find(id) else {
            if let Phase::Building(_) = self.phase {
                self.records.insert(id, remaining);
            }
            return;
        };
        let slot = self.table.slots.get_mut(at);
        match (remaining > 0, slot.record()) {
            (true, Record::None) => slot.set_record(Record::Rest),
            (true, Record::Rest | Record::Stale) => {}
            (false, _) => slot.set_record(Record::None),
        }
    }

    /// A quorum answered a round that this member began, as leader, at `start`.
    pub fn confirm(&mut self, start: Mono, now: Now) {
        self.clock.confirm(start, now);
    }

    /// Another leader may come before the present confirmation is over: this one hands its office to somebody.
    pub fn doubt(&mut self, now: Now) {
        self.clock.doubt(now);
    }

    pub fn is_confirmed(&self, now: Now) -> bool {
        self.clock.is_confirmed(now)
    }

    /// Leadership is confirmed up to here, unless this member is the only voter.
    pub fn confirmed_until(&self) -> Mono {
        self.clock.confirmed_until()
    }

    /// Gives a lease its full time again. Only the deadline is written.
    pub fn renew(&mut self, id: LeaseId, now: Now) -> Renewal {
        if !matches!(self.phase, Phase::Primary(_)) {
            return Renewal::NotPrimary;
        }
        self.clock.advance(now);
        if !self.clock.is_confirmed(now) {
            return Renewal::Unconfirmed;
        }
        let Some(at) = self.table.find(id) else { return Renewal::Unknown };
        let clock_ms = self.clock.ms();
        let slot = self.table.slots.get_mut(at);
        if slot.is_over() {
            return Renewal::Over;
        }
        let ttl = slot.ttl();
        let deadline = clock_ms + ttl * 1000;
        let earlier = deadline < slot.deadline;
        slot.deadline = deadline;
        slot.set_rest(false);
        let stale = slot.record() != Record::None;
        if slot.record() == Record::Rest {
            slot.set_record(Record::Stale);
            self.clearings.push_back(id);
        }
        if earlier {
            // Only within an election timeout after a promotion.
            self.table.wheel.unlink(&mut self.table.slots, at);
            self.link(at, clock_ms);
        }
        if stale { Renewal::Stale(ttl as i64) } else { Renewal::Renewed(ttl as i64) }
    }

    /// Whether the log may still hold a record that is older than the last renewal of the lease.
    pub fn is_stale(&self, id: LeaseId) -> bool {
        self.table.find(id).is_some_and(|at| self.table.slots.get(at).record() == Record::Stale)
    }

    /// Whether this lease was decided to be over; a lease that was granted anew under its id was not.
    pub fn is_over(&self, id: LeaseId) -> bool {
        self.table.find(id).is_some_and(|at| self.table.slots.get(at).is_over())
    }

    /// Whether something of this lease stands in the log, or was decided to be put there.
    pub fn is_recorded(&self, id: LeaseId) -> bool {
        self.table.find(id).is_some_and(|at| self.table.slots.get(at).record() != Record::None)
    }

    pub fn lease(&mut self, id: LeaseId, now: Now) -> Option<Lease> {
        self.clock.advance(now);
        let slot = self.table.slots.get(self.table.find(id)?);
        let is_over = slot.is_over();
        let remaining_ms = if is_over { 0 } else { slot.deadline.saturating_sub(self.clock.ms()) };
        Some(Lease { ttl: slot.ttl() as i64, remaining_ms, is_over })
    }

    /// Turns the wheel: at most `budget` leases are looked at. True when there are more to look at.
    pub fn turn(&mut self, now: Now, budget: usize) -> bool {
        self.clock.advance(now);
        if !matches!(self.phase, Phase::Primary(_)) {
            return false;
        }
        let clock_ms = self.clock.ms();
        for _ in 0..budget {
            match self.table.wheel.pop(&mut self.table.slots, clock_ms) {
                None => return false,
                Some(Pop::Move(at, after)) => self.link(at, after),
                Some(Pop::Look(at)) => self.look(at, clock_ms),
            }
        }
        true
    }

    fn look(&mut self, at: u32, clock_ms: u64) {
        let slot = self.table.slots.get(at);
        if slot.deadline <= clock_ms {
            return self.table.wheel.link_expired(&mut self.table.slots, at);
        }
        if self.is_checkpoint_due(at, clock_ms) {
            if self.checkpoints.len() >= CHECKPOINTS_QUEUED_MAX {
                let again = slot.deadline.min(clock_ms + CHECKPOINT_AGAIN_MS);
                return self.table.wheel.link(&mut self.table.slots, at, again);
            }
            self.checkpoints.push_back(LeaseId(slot.id));
        }
        self.link(at, clock_ms);
    }

    /// Decides which leases are over and appends them to `out`, as many as may be under way. The caller proposes their revocation in
    /// this term, or says [`Lessor::refused`] of them. A proposal that entered the leader's log has an outcome or the leader is none any more,
    /// so nothing is proposed again without need: a second revocation could hit a lease that was granted anew under the same id.
    pub fn expire(&mut self, now: Now, max: usize, out: &mut Vec<LeaseId>) {
        self.clock.advance(now);
        let may =
            matches!(self.phase, Phase::Primary(_)) && self.clock.is_confirmed(now) && !self.clock.in_grace();
        if !may {
            return;
        }
        let clock_ms = self.clock.ms();
        while out.len() < max && self.over < REVOKES_IN_FLIGHT_MAX {
            let Some(at) = self.table.wheel.first_expired() else { return };
            self.table.wheel.unlink(&mut self.table.slots, at);
            let slot = self.table.slots.get_mut(at);
            if slot.deadline > clock_ms {
                // It was renewed in the meantime.
                self.link(at, clock_ms);
                continue;
            }
            slot.set_over(true);
            out.push(LeaseId(slot.id));
            self.over += 1;
        }
    }

    /// What was proposed for these, to revoke or to clear them, has not entered the log, or apply has refused it: it is decided on again.
    pub fn refused(&mut self, ids: &[LeaseId]) {
        for id in ids {
            let Some(at) = self.table.find(*id) else { continue };
            let slot = self.table.slots.get_mut(at);
            if slot.is_over() {
                slot.set_over(false);
                self.over -= 1;
                self.table.wheel.link_expired(&mut self.table.slots, at);
            } else if slot.record() == Record::Stale {
                self.clearings.push_back(*id);
            }
        }
    }

    /// What is left of long leases, to be recorded: seconds, rounded up as in etcd. At most `max`. If they cannot be proposed they are
    /// forgotten until their next turn.
    pub fn take_checkpoints(&mut self, now: Now, max: usize) -> Vec<(LeaseId, i64)> {
        self.clock.advance(now);
        let clock_ms = self.clock.ms();
        let mut out = Vec::new();
        while out.len() < max
            && let Some(id) = self.checkpoints.pop_front()
        {
            let Some(at) = self.table.find(id) else { continue };
            let slot = self.table.slots.get_mut(at);
            let rest = slot.deadline.saturating_sub(clock_ms).div_ceil(1000);
            // What was renewed since has no rest to record; what is being cleared must not be overtaken by an older rest.
            if slot.is_over() || slot.record() == Record::Stale || rest == 0 || rest >= slot.ttl() {
                continue;
            }
            slot.set_record(Record::Rest);
            out.push((id, rest as i64));
        }
        out
    }

    /// Renewed leases whose record must go. At most `max`; the caller proposes it or says [`Lessor::refused`].
    pub fn take_clearings(&mut self, max: usize) -> Vec<LeaseId> {
        let mut out = Vec::new();
        while out.len() < max
            && let Some(id) = self.clearings.pop_front()
        {
            if self.is_stale(id) {
                out.push(id);
            }
        }
        out
    }

    pub fn has_checkpoints(&self) -> bool {
        !self.checkpoints.is_empty() || !self.clearings.is_empty()
    }

    /// Seconds that a slot can hold and a leader enforces.
    fn bound_ttl(&self, ttl: i64) -> u64 {
        ttl.max(self.config.ttl_min).max(1).unsigned_abs().min(TTL_MAX)
    }

    /// Links a lease for its next look after `after`: its deadline, or the next whole checkpoint interval since it was renewed.
    fn link(&mut self, at: u32, after: u64) {
        let look = self.next_look(at, after);
        self.table.wheel.link(&mut self.table.slots, at, look);
    }

    fn next_look(&self, at: u32, after: u64) -> u64 {
        let deadline = self.table.slots.get(at).deadline;
        let Some((interval, since)) = self.since_renewal(at, after) else { return deadline };
        let intervals = (since.div_euclid(interval) + 1).max(1);
        let look = after as i64 - since + intervals * interval;
        deadline.min(look as u64)
    }

    fn is_checkpoint_due(&self, at: u32, clock_ms: u64) -> bool {
        self.since_renewal(at, clock_ms).is_some_and(|(interval, since)| since >= interval)
    }

    /// For a lease longer than the checkpoint interval: that interval, and how long before `at_ms` it was renewed. Nothing is kept about
    /// renewals: it is the deadline without the full time. For a lease that was taken over with a rest this is before the promotion, which is true.
    fn since_renewal(&self, at: u32, at_ms: u64) -> Option<(i64, i64)> {
        let interval = self.config.checkpoint_interval_ms?.max(1);
        let slot = self.table.slots.get(at);
        let ttl_ms = slot.ttl() * 1000;
        // The rest was recorded a little late and rounded up, and an election timeout was added: without all that the next record, which says
        // the same again, would be due at once.
        let added = if slot.is_rest() { self.config.election_timeout / 1_000_000 + ROUNDED_MS } else { 0 };
        let since = at_ms as i64 - (slot.deadline as i64 - ttl_ms as i64) + added as i64;
        (ttl_ms > interval).then_some((interval as i64, since))
    }

    /// For tests: everything that must hold between two calls.
    #[doc(hidden)]
    pub fn check(&self) {
        assert!(self.over <= self.len(), "{} of {} leases are over", self.over, self.len());
    }
}
