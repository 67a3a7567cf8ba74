//! Automatic compaction: the leader forgets history by itself, by age or by number of revisions.
//!
//! Every member keeps the samples that the decision needs, so that one that takes over goes on where its predecessor was. What it
//! decides is proposed like a client's compaction: when a revision is forgotten is in the log, and no clock matters to apply.

use std::{
    collections::VecDeque,
    sync::{Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};
use types::Revision;

use crate::{handle::Handle, live::Tunable, shared::Shared};

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Whatever was current within this time.
    Periodic(Duration),
    /// This many revisions before the current one.
    Revisions(u64),
}

/// With a longer retention than this history is still forgotten once in that time, as in etcd.
const PERIOD_MAX: Duration = Duration::from_secs(3600);

/// Samples in one period, as in etcd: what is kept is at most a tenth of a period older than asked.
const SAMPLES_PER_PERIOD: u32 = 10;

/// A shorter retention than ten of these is sampled no more often: nobody gains by it, and a timer needs some length.
const SAMPLE_MIN: Duration = Duration::from_millis(100);

/// How often revisions are counted, as in etcd.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);

/// The revision of an empty store: to compact up to it forgets nothing.
const EMPTY: Revision = Revision(1);

impl AutoCompaction {
    /// From one compaction to the next.
    fn spacing(self) -> Duration {
        match self {
            AutoCompaction::Periodic(retention) => retention.min(PERIOD_MAX),
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        }
    }

    /// From one look at the revision to the next, which is also when a compaction that failed is tried again.
    fn sample_interval(self) -> Duration {
        match self {
            AutoCompaction::Periodic(_) => (self.spacing() / SAMPLES_PER_PERIOD).max(SAMPLE_MIN),
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        }
    }
}

/// What a member sees when it samples.
#[derive(Clone, Copy, Debug)]
struct Seen {
    revision: Revision,
    /// Compacted up to here already, by whomever.
    compacted: Revision,
    is_leader: bool,
}

/// When to compact, and up to where. Times are since the member began to sample.
struct Schedule {
    policy: AutoCompaction,
    /// No compaction before this.
    due: Duration,
    /// When each revision was first seen, oldest first, one entry per revision seen: what was current at least a retention ago, and
    /// everything after it. Grows by at most one entry per sample.
    first_seen: VecDeque<(Duration, Revision)>,
}

impl Schedule {
    fn new(policy: AutoCompaction) -> Schedule {
        let due = match policy {
            AutoCompaction::Periodic(retention) => retention,
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        };
        Schedule { policy, due, first_seen: VecDeque::new() }
    }

    /// The revision to compact to now. The same is answered again at the next sample unless [`Schedule::done`] is called.
    fn decide(&mut self, now: Duration, seen: Seen) -> Option<Revision> {
        self.sample(now, seen.revision);
        if !seen.is_leader || now < self.due {
            return None;
        }
        let target = match self.policy {
            AutoCompaction::Periodic(retention) => {
                let (since, revision) = *self.first_seen.front()?;
                // Nothing is known of so long ago yet.
                if now.saturating_sub(since) < retention {
                    return None;
                }
                revision
            }
            AutoCompaction::Revisions(kept) => Revision(seen.revision.0.saturating_sub_unsigned(kept)),
        };
        if target <= seen.compacted.max(EMPTY) {
            self.done(now);
            return None;
        }
        Some(target)
    }

    fn sample(&mut self, now: Duration, revision: Revision) {
        let AutoCompaction::Periodic(retention) = self.policy else { return };
        if self.first_seen.back().is_none_or(|(_, last)| *last != revision) {
            self.first_seen.push_back((now, revision));
        }
        // The second one is old enough, so the first is more than old enough.
        while self.first_seen.get(1).is_some_and(|(since, _)| now.saturating_sub(*since) >= retention) {
            self.first_seen.pop_front();
        }
    }

    /// What was decided took effect.
    fn done(&mut self, now: Duration) {
        // Half a sample early, so that a timer that was late this time does not cost a whole sample the next time.
        let spacing = self.policy.spacing().saturating_sub(self.policy.sample_interval() / 2);
        self.due = now.saturating_add(spacing);
    }
}

/// Follows the policy that is in force until the member stops. One that changes begins to sample anew.
pub(crate) async fn run(shared: Weak<Shared>) {
    let Some(mut live) = shared.upgrade().map(|shared| shared.live.subscribe()) else { return };
    loop {
        let policy = live.borrow_and_update().auto_compaction;
        let other = async |live: &mut tokio::sync::watch::Receiver<Tunable>| {
            live.wait_for(|live| live.auto_compaction != policy).await.is_ok()
        };
        let goes_on = match policy {
            Some(policy) => tokio::select! {
                () = follow(&shared, policy) => false,
                changed = other(&mut live) => changed,
            },
            None => other(&mut live).await,
        };
        if !goes_on {
            return;
        }
    }
}

/// Samples, decides and proposes until the member stops.
async fn follow(shared: &Weak<Shared>, policy: AutoCompaction) {
    let mut schedule = Schedule::new(policy);
    let started = Instant::now();
    let mut samples = interval(policy.sample_interval());
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        samples.tick().await;
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        let handle = Handle { shared };
        let reader = handle.reader();
        let seen = Seen {
            revision: reader.revision(),
            compacted: reader.compact_revision(),
            is_leader: handle.node_status().is_leader,
        };
        drop(reader);
        let now = started.elapsed();
        let Some(target) = schedule.decide(now, seen) else { continue };
        let request = pb::CompactionRequest { revision: target.0, physical: false };
        match handle.compact(request).await {
            Ok(_) => {
                info!(revision = target.0, current = seen.revision.0, keep = ?policy, "automatic compaction");
                schedule.done(now);
            }
            Err(EtcdError::Compacted) => {
                debug!(revision = target.0, "automatic compaction: somebody else compacted further");
                schedule.done(now);
            }
            Err(EtcdError::Stopped) => return,
            Err(error) => {
                warn!(%error, revision = target.0, "automatic compaction failed; the next sample tries again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER_COMPACTED: Revision = Revision(-1);

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn minutes(minutes: u64) -> Duration {
        seconds(60 * minutes)
    }

    const fn hours(hours: u64) -> Duration {
        minutes(60 * hours)
    }

    /// A member whose every proposal takes effect at once, and whose revision, leadership and fortune are given as functions of time.
    struct World {
        revision: fn(Duration) -> i64,
        is_leader: fn(Duration) -> bool,
        succeeds: fn(Duration) -> bool,
    }

    impl Default for World {
        fn default() -> World {
            World { revision: |now| 1 + now.as_secs() as i64, is_leader: |_| true, succeeds: |_| true }
        }
    }

    impl World {
        /// Every proposal until `end`: when, to which revision.
        fn proposals(&self, policy: AutoCompaction, end: Duration) -> Vec<(Duration, i64)> {
            let mut schedule = Schedule::new(policy);
            let mut compacted = NEVER_COMPACTED;
            let mut proposals = Vec::new();
            let mut now = Duration::ZERO;
            while now <= end {
                let revision = Revision((self.revision)(now));
                let seen = Seen { revision, compacted, is_leader: (self.is_leader)(now) };
                if let Some(target) = schedule.decide(now, seen) {
                    proposals.push((now, target.0));
                    if (self.succeeds)(now) {
                        compacted = target;
                        schedule.done(now);
                    }
                }
                now += policy.sample_interval();
            }
            proposals
        }
    }

    #[test]
    fn a_short_retention_compacts_once_per_retention_to_what_was_current_then() {
        let got = World::default().proposals(AutoCompaction::Periodic(minutes(10)), minutes(35));
        // At 10 min there is only the empty store to compact to.
        assert_eq!(got, [(minutes(20), 601), (minutes(30), 1201)]);
    }

    #[test]
    fn a_long_retention_waits_for_its_first_compaction_and_then_compacts_every_hour() {
        let got = World::default().proposals(AutoCompaction::Periodic(hours(24)), hours(27));
        let second = |hour: i64| 1 + hour * 3600;
        // At 24 h there is only the empty store to compact to.
        assert_eq!(got, [(hours(25), second(1)), (hours(26), second(2)), (hours(27), second(3))]);
    }

    #[test]
    fn what_is_younger_than_the_retention_is_never_forgotten_however_late_the_timer() {
        let retention = minutes(10);
        let mut schedule = Schedule::new(AutoCompaction::Periodic(retention));
        let mut now = Duration::ZERO;
        let mut random = 42u64;
        let mut compacted = NEVER_COMPACTED;
        let mut compactions = 0;
        for _ in 0..5_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            now += minutes(1) + seconds((random >> 33) % 600);
            let revision_at = |time: Duration| Revision(2 + time.as_secs() as i64);
            let seen = Seen { revision: revision_at(now), compacted, is_leader: true };
            if let Some(target) = schedule.decide(now, seen) {
                assert!(target <= revision_at(now - retention), "{target:?} at {now:?}");
                compacted = target;
                compactions += 1;
                schedule.done(now);
            }
        }
        assert!(compactions > 1_000, "{compactions}");
    }

    #[test]
    fn only_the_leader_compacts_and_a_new_one_knows_the_past() {
        let world = World { is_leader: |now| now >= minutes(25), ..World::default() };
        let got = world.proposals(AutoCompaction::Periodic(minutes(10)), minutes(36));
        assert_eq!(got, [(minutes(25), 15 * 60 + 1), (minutes(35), 25 * 60 + 1)]);
        let follower = World { is_leader: |_| false, ..World::default() };
        assert_eq!(follower.proposals(AutoCompaction::Periodic(minutes(10)), hours(10)), []);
        assert_eq!(follower.proposals(AutoCompaction::Revisions(1), hours(10)), []);
    }

    #[test]
    fn a_failed_compaction_is_tried_again_at_the_next_sample() {
        let world = World { succeeds: |now| now >= minutes(22), ..World::default() };
        let got = world.proposals(AutoCompaction::Periodic(minutes(10)), minutes(33));
        let expected = [20, 21, 22, 32].map(|minute| (minutes(minute), (minute as i64 - 10) * 60 + 1));
        assert_eq!(got, expected);
    }

    #[test]
    fn a_store_at_rest_is_compacted_once() {
        let world = World { revision: |now| if now < minutes(5) { 1 } else { 7 }, ..World::default() };
        assert_eq!(world.proposals(AutoCompaction::Periodic(minutes(10)), hours(5)), [(minutes(20), 7)]);
        assert_eq!(world.proposals(AutoCompaction::Revisions(3), hours(5)), [(minutes(5), 4)]);
    }

    #[test]
    fn what_a_client_compacted_is_not_compacted_again() {
        let mut schedule = Schedule::new(AutoCompaction::Revisions(10));
        let mut at = |minute, compacted| {
            let seen = Seen { revision: Revision(100), compacted: Revision(compacted), is_leader: true };
            schedule.decide(minutes(minute), seen)
        };
        assert_eq!(at(5, 95), None);
        assert_eq!(at(10, 90), None);
        assert_eq!(at(15, 89), Some(Revision(90)));
    }

    #[test]
    fn a_number_of_revisions_is_kept_looking_every_five_minutes() {
        for (kept, expected) in [
            (0, vec![(5, 301), (10, 601), (15, 901)]),
            (100, vec![(5, 201), (10, 501), (15, 801)]),
            // Not one, and the empty store's is none to forget.
            (600, vec![(15, 301)]),
            (10_000, vec![]),
            (u64::MAX, vec![]),
        ] {
            let got = World::default().proposals(AutoCompaction::Revisions(kept), minutes(19));
            let expected: Vec<_> = expected.into_iter().map(|(minute, to)| (minutes(minute), to)).collect();
            assert_eq!(got, expected, "keeping {kept}");
        }
    }

    #[test]
    fn extreme_retentions_neither_spin_nor_overflow() {
        for retention in [Duration::from_nanos(1), Duration::from_nanos(i64::MAX as u64), Duration::MAX] {
            let policy = AutoCompaction::Periodic(retention);
            assert!(policy.sample_interval() >= SAMPLE_MIN && policy.sample_interval() <= minutes(6));
            let mut schedule = Schedule::new(policy);
            let seen = Seen { revision: Revision(9), compacted: NEVER_COMPACTED, is_leader: true };
            schedule.decide(Duration::ZERO, seen);
            schedule.done(Duration::MAX);
        }
    }

    #[test]
    fn memory_is_one_sample_per_revision_within_the_retention() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(hours(2)));
        for minute in (0..600).step_by(6) {
            schedule.sample(minutes(minute), Revision(minute as i64 / 60));
        }
        assert_eq!(schedule.first_seen.len(), 3, "{:?}", schedule.first_seen);
    }
}
