//! What the log holds of remaining times, where a slip would show only at the next change of leader.

use lessor::{Config, Lessor, Mono, Now, Renewal};
use types::{LeaseId, Term};

const ID: LeaseId = LeaseId(7);
const INTERVAL_MS: u64 = 10_000;

fn at(ms: u64) -> Now {
    Now { at: Mono(ms * 1_000_000), sole: true }
}

fn lessor() -> Lessor {
    Lessor::new(Config {
        election_timeout: 1_000_000_000,
        checkpoint_interval_ms: Some(INTERVAL_MS),
        ttl_min: 1,
        seed: [3, 5],
    })
}

/// Runs to `to` as the driver does, and answers what is to be recorded on the way.
fn run(lessor: &mut Lessor, from: u64, to: u64) -> Vec<(LeaseId, i64)> {
    let mut rests = Vec::new();
    for ms in (from..=to).step_by(100) {
        while lessor.turn(at(ms), 100) {}
        rests.extend(lessor.take_checkpoints(at(ms), 100));
    }
    rests
}

/// The record that is to go would be followed by a new one, and the news that the former is gone would be taken for news of both.
#[test]
fn nothing_is_recorded_while_a_former_record_is_being_cleared() {
    let mut lessor = lessor();
    lessor.begin(Term(1), at(100));
    lessor.promoted();
    lessor.granted(ID, 100, at(100));
    let rests = run(&mut lessor, 100, 15_000);
    assert_eq!(rests.len(), 1, "{rests:?}");
    lessor.checkpointed(ID, rests[0].1);
    assert_eq!(lessor.renew(ID, at(15_000)), Renewal::Stale(100));
    assert_eq!(lessor.take_clearings(10), [ID]);
    assert_eq!(run(&mut lessor, 15_000, 45_000), [], "the clearing takes its time");
    lessor.checkpointed(ID, 0);
    assert!(!run(&mut lessor, 45_000, 60_000).is_empty(), "from here on there are records again");
}

/// The copied table may be older than what apply tells while it is taken.
#[test]
fn a_record_that_comes_while_the_table_is_taken_counts() {
    let mut lessor = lessor();
    lessor.begin(Term(1), at(100));
    lessor.checkpointed(ID, 5);
    lessor.load(ID, 60, 0);
    lessor.promoted();
    let lease = lessor.lease(ID, at(100)).expect("it was loaded");
    assert_eq!(lease.remaining_ms, 6000, "what was left, and an election timeout");
    assert_eq!(lessor.renew(ID, at(200)), Renewal::Stale(60), "the record must go before the answer");
}
