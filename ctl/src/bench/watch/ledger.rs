//! What was put against what each watcher saw: count, order and a digest, so that one lost, repeated or exchanged event among
//! millions shows, for a few instructions each.
//!
//! The put side notes the revision of every acknowledged put in the account of its key (or the one account of the prefix); a
//! watcher notes every event in its sight. In the end the two must agree. A put without an answer may have happened or not, so
//! that many events may be there besides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A value begins with the time of its put, in nanoseconds since the ledger's epoch, and the put's number.
pub const STAMP_BYTES: usize = 16;

/// The beginning of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub sent: u64,
    pub number: u64,
}

impl Stamp {
    pub fn write(self, value: &mut [u8]) {
        value[..8].copy_from_slice(&self.sent.to_be_bytes());
        value[8..STAMP_BYTES].copy_from_slice(&self.number.to_be_bytes());
    }

    /// `None`: the value is not one of ours.
    pub fn read(value: &[u8]) -> Option<Stamp> {
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        Some(Stamp { sent: number(value.get(..8)?)?, number: number(value.get(8..STAMP_BYTES)?)? })
    }
}

/// Spreads a revision over 64 bits, so that sums of different sets of revisions differ.
fn digest(revision: i64) -> u64 {
    let x = (revision as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The puts that one watcher, or all watchers of a prefix, must see.
#[derive(Default)]
struct Account {
    puts: AtomicU64,
    digest: AtomicU64,
    unknown: AtomicU64,
}

/// What was put. Shared by all threads.
pub struct Ledger {
    epoch: Instant,
    accounts: Vec<Account>,
    /// When each put was acknowledged, by its number; zero: not yet. Empty when nobody asks.
    acked: Vec<AtomicU64>,
    last_ack: AtomicU64,
    /// Puts sent before are warm-up: their events must arrive, but their times do not count.
    counted_from: AtomicU64,
}

impl Ledger {
    /// `accounts`: one per key when watchers watch single keys, else one. `acks`: for how many puts the time of their answer is
    /// kept.
    pub fn new(accounts: usize, acks: usize) -> Ledger {
        Ledger {
            epoch: Instant::now(),
            accounts: (0..accounts).map(|_| Account::default()).collect(),
            acked: (0..acks).map(|_| AtomicU64::new(0)).collect(),
            last_ack: AtomicU64::new(0),
            counted_from: AtomicU64::new(u64::MAX),
        }
    }

    /// The warm-up ends at this time.
    pub fn count_from(&self, at: Instant) {
        self.counted_from.store(self.nanos(at), Ordering::Relaxed);
    }

    pub fn counted_from(&self) -> u64 {
        self.counted_from.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the epoch. Zero is before anything was put.
    pub fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn account(&self, key: u64) -> &Account {
        &self.accounts[key as usize % self.accounts.len()]
    }

    /// A put was answered.
    pub fn acked(&self, key: u64, number: u64, revision: i64, at: Instant) {
        let (account, nanos) = (self.account(key), self.nanos(at));
        account.puts.fetch_add(1, Ordering::Relaxed);
        account.digest.fetch_add(digest(revision), Ordering::Relaxed);
        self.last_ack.fetch_max(nanos, Ordering::Relaxed);
        if let Some(slot) = self.acked.get(number as usize) {
            slot.store(nanos, Ordering::Relaxed);
        }
    }

    /// A put was not answered, or with an error: whether it happened is not known.
    pub fn unknown(&self, key: u64) {
        self.account(key).unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// When a put was acknowledged; `None`: not yet, or nobody asked for such times.
    pub fn acked_at(&self, number: u64) -> Option<u64> {
        self.acked.get(number as usize).map(|slot| slot.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0)
    }

    /// When the last put was acknowledged.
    pub fn last_ack(&self) -> Duration {
        Duration::from_nanos(self.last_ack.load(Ordering::Relaxed))
    }

    /// How many events so many watchers must see altogether, one account after another.
    pub fn expected(&self, watchers: usize) -> u64 {
        (0..watchers).map(|watcher| self.account(watcher as u64).puts.load(Ordering::Relaxed)).sum()
    }

    /// What is wrong with what a watcher saw.
    pub fn verdict(&self, watcher: usize, sight: &Sight) -> Verdict {
        let account = self.account(watcher as u64);
        let puts = account.puts.load(Ordering::Relaxed);
        let unknown = account.unknown.load(Ordering::Relaxed);
        let same = sight.digest == account.digest.load(Ordering::Relaxed);
        let exchanged = unknown == 0 && sight.events == puts && !same;
        Verdict {
            missing: puts.saturating_sub(sight.events).max(u64::from(exchanged)),
            surplus: sight.events.saturating_sub(puts.saturating_add(unknown)).max(u64::from(exchanged)),
            disorder: sight.disorder,
        }
    }
}

/// What one watcher saw.
#[derive(Clone, Default)]
pub struct Sight {
    pub events: u64,
    digest: u64,
    last: i64,
    /// Events at or below the revision before them: out of order, or there twice.
    disorder: u64,
}

impl Sight {
    /// Each put has a revision of its own, so revisions must rise with every event.
    pub fn see(&mut self, revision: i64) {
        self.events += 1;
        self.digest = self.digest.wrapping_add(digest(revision));
        if revision <= self.last {
            self.disorder += 1;
        } else {
            self.last = revision;
        }
    }
}

/// Events that one watcher, or all together, got wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub missing: u64,
    pub surplus: u64,
    pub disorder: u64,
}

impl Verdict {
    pub fn flawless(&self) -> bool {
        *self == Verdict::default()
    }

    pub fn add(&mut self, other: Verdict) {
        self.missing += other.missing;
        self.surplus += other.surplus;
        self.disorder += other.disorder;
    }
}

/// Every revision after the first must be there, in order: for a watcher of all keys. The events of one revision stay together.
#[derive(Debug, PartialEq, Eq)]
pub struct Unbroken {
    pub events: u64,
    pub last: i64,
    pub missing: u64,
    pub disorder: u64,
}

impl Unbroken {
    /// Expects `first` next.
    pub fn from(first: i64) -> Unbroken {
        Unbroken { events: 0, last: first - 1, missing: 0, disorder: 0 }
    }

    /// `opens`: the event is the first of its response, where no revision may go on (nobody asked for fragments).
    pub fn see(&mut self, revision: i64, opens: bool) {
        self.events += 1;
        if revision > self.last {
            self.missing += (revision - self.last - 1).unsigned_abs();
            self.last = revision;
        } else if revision < self.last || opens {
            self.disorder += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts at revisions 2..=11 in one account, and what a watcher makes of `seen`.
    fn verdict(seen: impl IntoIterator<Item = i64>, unknown: u64) -> Verdict {
        let ledger = Ledger::new(1, 0);
        (2..=11).for_each(|revision| ledger.acked(0, 0, revision, Instant::now()));
        (0..unknown).for_each(|_| ledger.unknown(0));
        let mut sight = Sight::default();
        seen.into_iter().for_each(|revision| sight.see(revision));
        ledger.verdict(0, &sight)
    }

    #[test]
    fn every_event_once_in_order_is_flawless() {
        assert!(verdict(2..=11, 0).flawless());
    }

    #[test]
    fn a_gap_is_missing() {
        assert_eq!(verdict((2..=11).filter(|r| *r != 6), 0), Verdict { missing: 1, surplus: 0, disorder: 0 });
        assert_eq!(verdict(2..=10, 0), Verdict { missing: 1, surplus: 0, disorder: 0 });
        assert_eq!(verdict([], 0), Verdict { missing: 10, surplus: 0, disorder: 0 });
    }

    #[test]
    fn an_event_twice_is_surplus_and_disorder() {
        assert_eq!(verdict((2..=11).chain([11]), 0), Verdict { missing: 0, surplus: 1, disorder: 1 });
    }

    #[test]
    fn a_lost_event_is_not_hidden_by_another_one_that_comes_twice_or_does_not_belong_there() {
        let twice = (2..=11).map(|r| if r == 6 { 5 } else { r });
        assert_eq!(verdict(twice, 0), Verdict { missing: 1, surplus: 1, disorder: 1 });
        let foreign = (2..=11).map(|r| if r == 11 { 12 } else { r });
        assert_eq!(verdict(foreign, 0), Verdict { missing: 1, surplus: 1, disorder: 0 });
    }

    #[test]
    fn two_events_exchanged_are_disorder() {
        assert_eq!(
            verdict([2, 3, 5, 4, 6, 7, 8, 9, 10, 11], 0),
            Verdict { missing: 0, surplus: 0, disorder: 1 }
        );
    }

    #[test]
    fn a_put_of_unknown_outcome_may_be_seen_or_not_but_excuses_no_loss() {
        assert!(verdict(2..=11, 1).flawless());
        assert!(verdict(2..=12, 1).flawless());
        assert_eq!(verdict(2..=13, 1).surplus, 1);
        assert_eq!(verdict(2..=10, 1).missing, 1);
    }

    #[test]
    fn watchers_of_single_keys_are_held_to_the_puts_of_their_key() {
        let ledger = Ledger::new(2, 3);
        let at = Instant::now();
        ledger.acked(0, 0, 2, at);
        ledger.acked(1, 1, 3, at);
        ledger.acked(0, 2, 4, at + Duration::from_secs(1));
        assert_eq!(
            (ledger.expected(2), ledger.expected(3)),
            (3, 5),
            "the third watcher shares the first key"
        );
        let mut sight = Sight::default();
        sight.see(2);
        assert_eq!(ledger.verdict(0, &sight).missing, 1);
        sight.see(4);
        assert!(ledger.verdict(0, &sight).flawless());
        assert_eq!(ledger.verdict(1, &sight), Verdict { missing: 0, surplus: 1, disorder: 0 });
        assert!(ledger.acked_at(2) > ledger.acked_at(0) && ledger.acked_at(9).is_none());
        assert!(ledger.last_ack() >= Duration::from_secs(1));
    }

    #[test]
    fn stamps_survive_the_value_and_short_values_have_none() {
        let mut value = vec![0xff; 20];
        let stamp = Stamp { sent: u64::MAX - 1, number: 7 };
        stamp.write(&mut value);
        assert_eq!((Stamp::read(&value), Stamp::read(&value[..15])), (Some(stamp), None));
    }

    #[test]
    fn a_watcher_of_everything_misses_no_revision() {
        let run = |events: &[(i64, bool)]| {
            let mut unbroken = Unbroken::from(2);
            events.iter().for_each(|(revision, opens)| unbroken.see(*revision, *opens));
            (unbroken.missing, unbroken.disorder)
        };
        assert_eq!(run(&[(2, true), (3, false), (3, false), (4, true)]), (0, 0));
        assert_eq!(run(&[(3, true), (7, true)]), (4, 0), "2, 4, 5 and 6 are not there");
        assert_eq!(run(&[(2, true), (3, false), (3, true)]), (0, 1), "a revision split over two responses");
        assert_eq!(run(&[(2, true), (3, true), (2, true)]), (0, 1));
    }
}
