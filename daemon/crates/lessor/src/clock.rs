//! The lease clock. It counts the time in which this member could have answered a keep-alive, and no other.
//!
//! Two things stop it. First, unconfirmed leadership: a round that a quorum answered confirms this member from the round's start for one
//! election timeout, since with check-quorum and pre-vote nobody who answered helps to elect another leader before that time is over.
//! (A transfer of leadership is quicker: whoever hands over is in doubt from then on.) The only voter of a cluster is always confirmed. What
//! a keep-alive promised does not hang on this: a new leader is promoted after the round began, and adds an election timeout to every
//! deadline. Second, gaps of the process: when nobody looked at the clock for longer than
//! [`GAP_MAX`] the process was paused or starved, keep-alives wait in its sockets, and only `GAP_MAX` of the gap counts.
//!
//! After either nothing expires for [`GRACE`]: those who waited are served first.
//!
//! Clocks of two machines are assumed to run at the same speed to within what an election timeout forgives, as raft's leases do.

/// Most that one look at the clock adds. The driver looks every 100 ms or oftener, so a gap beyond this is a stall and not jitter.
pub const GAP_MAX: u64 = 500_000_000;

/// Time after a stall in which nothing expires, in nanoseconds: what it takes to read and answer what gathered in the sockets of some ten
/// thousand clients.
pub const GRACE: u64 = 1_000_000_000;

/// A point on a monotonic clock, in nanoseconds since any fixed moment of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

impl Mono {
    #[must_use]
    pub fn plus(self, nanoseconds: u64) -> Mono {
        Mono(self.0.saturating_add(nanoseconds))
    }

    /// Nanoseconds since `earlier`; 0 when it is not earlier.
    pub fn since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a caller knows when it calls.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Mono,
    /// This member leads and is the only voter, so that nobody can confirm or contest it.
    pub sole: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    election: u64,
    ran: u64,
    seen: Mono,
    confirmed_until: Mono,
    /// Time that was not counted since it last ran without a loss.
    stood: u64,
    grace_until: Mono,
}

impl Clock {
    /// `election`: the election timeout in nanoseconds.
    pub fn new(election: u64) -> Clock {
        Clock { election, ran: 0, seen: Mono(0), confirmed_until: Mono(0), stood: 0, grace_until: Mono(0) }
    }

    /// Milliseconds that count.
    pub fn ms(&self) -> u64 {
        self.ran / 1_000_000
    }

    pub fn advance(&mut self, now: Now) {
        // Threads read the time before they get here, so it may be a little older than what another one brought.
        let at = now.at.max(self.seen);
        let elapsed = at.since(self.seen);
        let confirmed = if now.sole { elapsed } else { at.min(self.confirmed_until).since(self.seen) };
        let counted = confirmed.min(GAP_MAX);
        self.ran += counted;
        self.seen = at;
        let lost = elapsed - counted;
        if lost == 0 {
            // Two looks at one moment say nothing.
            if elapsed > 0 {
                self.stood = 0;
            }
            return;
        }
        self.stood = self.stood.saturating_add(lost);
        // On a machine that stalls again and again leases must end all the same: a stall too soon after the last grace gets none.
        let may_wait = !self.is_confirmed(now) || at >= self.grace_until.plus(GRACE);
        if self.stood > GAP_MAX && may_wait {
            self.grace_until = at.plus(GRACE);
        }
    }

    /// A quorum answered a round that began at `start`.
    pub fn confirm(&mut self, start: Mono, now: Now) {
        self.advance(now);
        self.confirmed_until = self.confirmed_until.max(start.plus(self.election));
    }

    /// Another term, or one that may begin at any time: nothing that was confirmed counts.
    pub fn doubt(&mut self, now: Now) {
        self.advance(now);
        self.confirmed_until = Mono(0);
    }

    pub fn is_confirmed(&self, now: Now) -> bool {
        now.sole || now.at < self.confirmed_until
    }

    pub fn in_grace(&self) -> bool {
        self.seen < self.grace_until
    }

    pub fn confirmed_until(&self) -> Mono {
        self.confirmed_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Now {
        Now { at: Mono(ms * MS), sole: false }
    }

    #[test]
    fn the_clock_runs_only_while_leadership_is_confirmed() {
        let mut clock = Clock::new(1000 * MS);
        clock.advance(at(300));
        assert_eq!(clock.ms(), 0, "nobody has confirmed it yet");
        clock.confirm(Mono(250 * MS), at(300));
        clock.advance(at(700));
        assert_eq!(clock.ms(), 400);
        clock.advance(at(1150));
        clock.advance(at(1400));
        assert_eq!(clock.ms(), 950, "until one election timeout after the round began");
        assert!(!clock.is_confirmed(at(1250)) && clock.is_confirmed(at(1249)));
    }

    #[test]
    fn a_gap_counts_for_little_and_grants_a_grace_once() {
        let sole = |ms| Now { sole: true, ..at(ms) };
        let mut clock = Clock::new(1000 * MS);
        clock.advance(sole(100));
        clock.advance(sole(30_100));
        assert_eq!(clock.ms(), 600, "30 s in which the process did not run count as half a second");
        assert!(clock.in_grace());
        clock.advance(sole(30_600));
        clock.advance(sole(31_100));
        assert!(!clock.in_grace());
        clock.advance(sole(31_700));
        assert!(!clock.in_grace(), "a machine that stalls all the time still lets leases end");
    }
}
