//! The lessor against an oracle that is too simple to be wrong, in virtual time: random scripts of grants, renewals, revocations, checkpoints,
//! promotions, stalls, confirmations that come and stay away, outcomes that come late or are lost.
//!
//! The oracle keeps a map of deadlines on its own count of the time that counts, and looks at all of it every time.

use std::collections::BTreeMap;

use ::lessor::{
    Config, Lessor, Mono, Now, Phase, REVOKES_IN_FLIGHT_MAX, Renewal, Revoked,
    clock::{GAP_MAX, GRACE},
};
use types::{LeaseId, Term};

const MS: u64 = 1_000_000;
const ELECTION: u64 = 1000 * MS;
const TTL_MIN: i64 = 2;
const CHECKPOINT_MS: u64 = 2500;
/// A turn of the wheel, and the millisecond that the clock is cut to.
const LATE_MS: u64 = 130;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    ttl: u64,
    /// What the log holds.
    remaining: i64,
    deadline_ms: u64,
    over: bool,
}

/// What apply would have; with the deadlines of the leader that there is, and what was proposed to it and not applied.
struct Oracle {
    rows: BTreeMap<i64, Row>,
    ran: u64,
    seen: u64,
    confirmed_until: u64,
    sole: bool,
    stood: u64,
    grace_until: u64,
}

impl Oracle {
    fn confirmed(&self, at: u64) -> bool {
        self.sole || at < self.confirmed_until
    }

    /// Nanosecond arithmetic as the crate's text says it, without anything kept between the cases.
    fn advance(&mut self, at: u64) {
        let elapsed = at - self.seen;
        if elapsed == 0 {
            return;
        }
        let inside = if self.sole { elapsed } else { self.confirmed_until.clamp(self.seen, at) - self.seen };
        let counted = inside.min(GAP_MAX);
        self.ran += counted;
        self.stood = if counted == elapsed { 0 } else { self.stood + elapsed - counted };
        if self.stood > GAP_MAX && (!self.confirmed(at) || at >= self.grace_until + GRACE) {
            self.grace_until = at + GRACE;
        }
        self.seen = at;
    }

    fn ms(&self) -> u64 {
        self.ran / MS
    }

    fn in_grace(&self) -> bool {
        self.seen < self.grace_until
    }
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Revoke(i64),
    Checkpoint(i64, i64),
}

struct World {
    seed: u64,
    random: Random,
    at: u64,
    lessor: Lessor,
    oracle: Oracle,
    term: u64,
    log: Vec<Entry>,
    /// Ids still to be loaded while the table is taken.
    loading: Option<Vec<(i64, Row)>>,
    expired: u64,
    renewed: u64,
    checkpointed: u64,
    cleared: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let config = Config {
            election_timeout: ELECTION,
            checkpoint_interval_ms: (!seed.is_multiple_of(4)).then_some(CHECKPOINT_MS),
            ttl_min: TTL_MIN,
            seed: [seed, seed ^ 0x5555],
        };
        let oracle = Oracle {
            rows: BTreeMap::new(),
            ran: 0,
            seen: 0,
            confirmed_until: 0,
            sole: false,
            stood: 0,
            grace_until: 0,
        };
        World {
            seed,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            at: 0,
            lessor: Lessor::new(config),
            oracle,
            term: 1,
            log: Vec::new(),
            loading: None,
            expired: 0,
            renewed: 0,
            checkpointed: 0,
            cleared: 0,
        }
    }

    fn now(&self) -> Now {
        Now { at: Mono(self.at), sole: self.oracle.sole }
    }

    fn fail(&self, what: impl std::fmt::Display) -> ! {
        panic!(
            "{what} at {} ms\nreplay: LESSOR_SEED={} cargo test -p cairn-lessor --test model",
            self.at / MS,
            self.seed
        )
    }

    fn leads(&self) -> bool {
        matches!(self.lessor.phase(), Phase::Primary(_))
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=24 => self.pass_time(),
            25..=44 => self.tick(),
            45..=54 => self.grant(),
            55..=69 => self.renew(),
            70..=73 => self.revoke(),
            74..=84 => self.apply(),
            85..=92 => self.confirm(),
            93 if !self.leads() || self.random.one_in(6) => self.change_leadership(),
            95 => self.become_sole(),
            _ => self.query(),
        }
        self.go_on_loading();
        self.lessor.check();
    }

    fn pass_time(&mut self) {
        let span = match self.random.below(40) {
            0 => self.random.below(40_000),
            1..=4 => self.random.below(3000),
            _ => self.random.below(250),
        };
        self.at += span * MS + self.random.below(MS);
        // Not always looked at, so that a gap is one only when nobody looked.
        if self.random.one_in(2) {
            self.oracle.advance(self.at);
            let _ = self.lessor.lease(LeaseId(-1), self.now());
        }
    }

    fn confirm(&mut self) {
        if self.lessor.phase() == Phase::Idle {
            return;
        }
        let ago = self.random.below(600) * MS;
        let start = self.at.saturating_sub(ago);
        self.oracle.advance(self.at);
        self.oracle.confirmed_until = self.oracle.confirmed_until.max(start + ELECTION);
        self.lessor.confirm(Mono(start), self.now());
    }

    fn become_sole(&mut self) {
        self.oracle.advance(self.at);
        let _ = self.lessor.lease(LeaseId(-1), self.now());
        self.oracle.sole = !self.oracle.sole && self.leads();
    }

    fn change_leadership(&mut self) {
        self.oracle.advance(self.at);
        if self.lessor.phase() == Phase::Idle {
            self.term += 1;
            self.lessor.begin(Term(self.term), self.now());
            // A copy that is already a little newer than the state at this moment is what a reader gets.
            self.loading = Some(self.oracle.rows.iter().map(|(id, row)| (*id, *row)).collect());
            for row in self.oracle.rows.values_mut() {
                row.over = false;
                row.deadline_ms = u64::MAX;
            }
            // Entries of the former leader were all applied before, those of this one are none yet.
            self.log.clear();
        } else {
            let _ = self.lessor.demote(self.now());
            self.oracle.confirmed_until = 0;
            self.oracle.sole = false;
            self.loading = None;
            if self.random.one_in(2) {
                // What was proposed may be committed all the same.
                while !self.log.is_empty() {
                    self.apply_one(0);
                }
            }
            self.log.clear();
        }
    }

    fn go_on_loading(&mut self) {
        let Some(mut rest) = self.loading.take() else { return };
        self.oracle.advance(self.at);
        let _ = self.lessor.lease(LeaseId(-1), self.now());
        for _ in 0..1 + self.random.below(20) {
            let Some((id, copied)) = rest.pop() else { break };
            self.lessor.load(LeaseId(id), copied.ttl as i64, copied.remaining);
            let now_ms = self.oracle.ms();
            if let Some(row) = self.oracle.rows.get_mut(&id).filter(|row| row.deadline_ms == u64::MAX) {
                let left = if row.remaining > 0 { row.remaining as u64 } else { row.ttl };
                row.deadline_ms = now_ms + left.min(row.ttl) * 1000 + ELECTION / MS;
            }
        }
        if rest.is_empty() {
            self.lessor.promoted();
        } else {
            self.loading = Some(rest);
        }
    }

    fn grant(&mut self) {
        let id = self.random.below(300) as i64 - 20;
        if self.oracle.rows.contains_key(&id) {
            return;
        }
        let asked = match self.random.below(5) {
            0 => self.random.below(5) as i64 - 2,
            1 => self.random.below(100) as i64,
            2 => self.random.below(5000) as i64,
            _ => 2 + self.random.below(10) as i64,
        };
        if self.lessor.phase() != Phase::Idle {
            self.oracle.advance(self.at);
        }
        let ttl = asked.max(TTL_MIN) as u64;
        let deadline_ms = self.oracle.ms() + ttl * 1000;
        self.oracle.rows.insert(id, Row { ttl, remaining: 0, deadline_ms, over: false });
        self.lessor.granted(LeaseId(id), asked, self.now());
    }

    fn some_id(&mut self) -> i64 {
        self.random.below(300) as i64 - 20
    }

    fn renew(&mut self) {
        let id = self.some_id();
        let got = self.lessor.renew(LeaseId(id), self.now());
        if !self.leads() {
            return assert_eq!(got, Renewal::NotPrimary);
        }
        self.oracle.advance(self.at);
        let (confirmed, ms) = (self.oracle.confirmed(self.at), self.oracle.ms());
        match (self.oracle.rows.get_mut(&id), got) {
            (_, Renewal::Unconfirmed) if !confirmed => {}
            (None, Renewal::Unknown) if confirmed => {}
            (Some(row), Renewal::Over) if confirmed && row.over => {}
            (Some(row), Renewal::Renewed(ttl) | Renewal::Stale(ttl))
                if confirmed && !row.over && ttl as u64 == row.ttl =>
            {
                // LE02: who is told of a success is sure of the whole time, whoever leads next.
                assert!(
                    got == Renewal::Stale(ttl) || row.remaining <= 0,
                    "seed {}: lease {id} is renewed while the log says {row:?}",
                    self.seed
                );
                row.deadline_ms = ms + row.ttl * 1000;
                self.renewed += 1;
            }
            (row, got) => {
                let row = row.copied();
                self.fail(format_args!("renewal of {id} says {got:?}, expected by {row:?}"));
            }
        }
    }

    fn revoke(&mut self) {
        let id = self.some_id();
        self.applied_revoke(id);
    }

    fn applied_revoke(&mut self, id: i64) {
        let row = self.oracle.rows.remove(&id);
        let got = self.lessor.revoked(LeaseId(id));
        if self.leads() {
            let expected = match row {
                None => Revoked::Unknown,
                Some(row) if row.over => Revoked::Expired,
                Some(_) => Revoked::Asked,
            };
            assert_eq!(got, expected, "seed {}", self.seed);
        }
    }

    fn apply(&mut self) {
        for _ in 0..1 + self.random.below(50) {
            if self.log.is_empty() {
                return;
            }
            self.apply_one(0);
        }
    }

    fn apply_one(&mut self, at: usize) {
        match self.log.remove(at) {
            Entry::Revoke(id) => self.applied_revoke(id),
            Entry::Checkpoint(id, remaining) => {
                if let Some(row) = self.oracle.rows.get_mut(&id) {
                    row.remaining = remaining;
                }
                self.lessor.checkpointed(LeaseId(id), remaining);
            }
        }
    }

    fn tick(&mut self) {
        self.oracle.advance(self.at);
        let budget = 1 + self.random.below(400) as usize;
        let more = self.lessor.turn(self.now(), budget);
        let mut over = Vec::new();
        self.lessor.expire(self.now(), 512, &mut over);
        let may = self.leads() && self.oracle.confirmed(self.at) && !self.oracle.in_grace();
        if !may && !over.is_empty() {
            self.fail(format_args!("{over:?} end while nobody may end"));
        }
        let ms = self.oracle.ms();
        for LeaseId(id) in &over {
            match self.oracle.rows.get_mut(id) {
                Some(row) if !row.over && row.deadline_ms <= ms => row.over = true,
                row => {
                    let row = row.copied();
                    self.fail(format_args!("lease {id} ends too early, at {ms} of the clock: {row:?}"));
                }
            }
        }
        if may && !more && over.len() < 512 {
            let late = |row: &Row| !row.over && row.deadline_ms + LATE_MS <= ms;
            if let Some((id, row)) = self.oracle.rows.iter().find(|(_, row)| late(row)) {
                self.fail(format_args!("lease {id} should have ended, at {ms} of the clock: {row:?}"));
            }
        }
        assert!(self.lessor.over() <= REVOKES_IN_FLIGHT_MAX);
        if self.random.one_in(10) {
            for LeaseId(id) in &over {
                self.oracle.rows.get_mut(id).expect("it is there").over = false;
            }
            self.lessor.refused(&over);
        } else {
            self.expired += over.len() as u64;
            self.log.extend(over.iter().map(|id| Entry::Revoke(id.0)));
        }
        self.checkpoint(ms);
    }

    fn checkpoint(&mut self, ms: u64) {
        if !self.leads() {
            return;
        }
        for (LeaseId(id), rest) in self.lessor.take_checkpoints(self.now(), 100) {
            let Some(row) = self.oracle.rows.get(&id) else { self.fail("checkpoint of nobody") };
            let left = row.deadline_ms.saturating_sub(ms);
            if row.over || rest as u64 != left.div_ceil(1000) || row.ttl * 1000 <= CHECKPOINT_MS {
                self.fail(format_args!("checkpoint of {id} says {rest} s: {row:?} at {ms}"));
            }
            // A refusal is forgotten.
            if !self.random.one_in(10) {
                self.checkpointed += 1;
                self.log.push(Entry::Checkpoint(id, rest));
            }
        }
        let clear = self.lessor.take_clearings(100);
        if self.random.one_in(5) {
            self.lessor.refused(&clear);
        } else {
            self.cleared += clear.len() as u64;
            self.log.extend(clear.iter().map(|id| Entry::Checkpoint(id.0, 0)));
        }
    }

    fn query(&mut self) {
        let id = self.some_id();
        let got = self.lessor.lease(LeaseId(id), self.now());
        self.oracle.advance(self.at);
        if !self.leads() {
            return;
        }
        let ms = self.oracle.ms();
        let expected = self.oracle.rows.get(&id).map(|row| {
            let left = if row.over { 0 } else { row.deadline_ms.saturating_sub(ms) };
            (row.ttl as i64, left, row.over)
        });
        let got = got.map(|lease| (lease.ttl, lease.remaining_ms, lease.is_over));
        if got != expected {
            self.fail(format_args!("lease {id} is {got:?}, expected {expected:?}"));
        }
        assert_eq!(self.lessor.len(), self.oracle.rows.len(), "seed {}", self.seed);
    }
}

#[test]
fn the_lessor_agrees_with_a_naive_one_whatever_happens() {
    let given = std::env::var("LESSOR_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = given.map_or(1..=1000, |seed: u64| seed..=seed);
    let (mut expired, mut renewed, mut checkpointed, mut cleared) = (0, 0, 0, 0);
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..4000 {
            world.step();
        }
        expired += world.expired;
        renewed += world.renewed;
        checkpointed += world.checkpointed;
        cleared += world.cleared;
    }
    if given.is_none() {
        // A model in which nothing happens shows nothing.
        assert!(expired > 10_000 && renewed > 10_000, "{expired} expired, {renewed} renewed");
        assert!(checkpointed > 1000 && cleared > 100, "{checkpointed} checkpointed, {cleared} cleared");
    }
}
