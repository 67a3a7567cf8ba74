//! Runs the simulation over many seeds. One seed is one history; a seed that fails prints the command that repeats it.
//!
//! `SIM_SEEDS=20000 cargo test -p cairn-tests --test simulation many_seeds` looks longer, `SIM_FIRST_SEED` says where to begin.

use std::sync::atomic::{AtomicU64, Ordering};

use cairn_tests::simulation;

/// Enough to meet every fault in combination, few enough for every change.
const SEEDS_DEFAULT: u64 = 200;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn many_seeds() {
    let first = setting("SIM_FIRST_SEED").unwrap_or(0);
    let count = setting("SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let next = AtomicU64::new(first);
    let outcomes = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let outcome = simulation::run(seed);
                    outcomes.lock().expect("no other thread failed").push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no thread failed");
    let sum = |number: fn(&simulation::Outcome) -> u64| outcomes.iter().map(number).sum::<u64>();
    let acknowledged = sum(|outcome| outcome.acknowledged as u64);
    let reads = sum(|outcome| outcome.reads);
    let terms = sum(|outcome| outcome.terms as u64);
    let crashes = sum(|outcome| outcome.crashes);
    let snapshots = sum(|outcome| outcome.snapshots);
    let changes = sum(|outcome| outcome.changes);
    let leaders_removed = sum(|outcome| outcome.leaders_removed);
    let left_alone = sum(|outcome| outcome.left_alone);
    let compared = sum(|outcome| outcome.states_compared);
    let renewals = sum(|outcome| outcome.renewals);
    let expiries = sum(|outcome| outcome.expiries);
    let checkpoints = sum(|outcome| outcome.checkpoints);
    println!(
        "{} seeds: {acknowledged} acknowledged, {reads} reads, {terms} terms with a leader, {crashes} crashes, \
         {snapshots} snapshots installed, {changes} conf changes applied, {compared} states compared",
        outcomes.len()
    );
    println!("membership: {leaders_removed} leaders removed, {left_alone} removals left one voter");
    let watches = sum(|outcome| outcome.watches);
    let watch_events = sum(|outcome| outcome.watch_events);
    let bookmarks = sum(|outcome| outcome.bookmarks);
    let cancelled = sum(|outcome| outcome.compacted_watches);
    println!(
        "watches: {watches} watches, {watch_events} events, {bookmarks} bookmarks, {cancelled} cancelled by compaction"
    );
    println!("leases: {renewals} renewed, {expiries} expired, {checkpoints} checkpoints");
    // A simulation in which nothing happens finds nothing.
    if count >= SEEDS_DEFAULT {
        assert!(
            acknowledged > 100 * count && reads > 50 * count && compared > 10 * count,
            "clients got something done in these histories"
        );
        assert!(
            terms > 2 * count && crashes > 2 * count && snapshots > count / 4 && changes > count / 4,
            "elections, crashes, snapshots and changes of membership happen in these histories"
        );
        assert!(
            leaders_removed > count / 20 && left_alone > count / 20,
            "leaders are removed, and clusters shrink to one voter, in these histories"
        );
        assert!(
            renewals > 20 * count && expiries > 5 * count && checkpoints > 5 * count,
            "leases live and end in these histories"
        );
        assert!(
            watches > 30 * count
                && watch_events > 1000 * count
                && bookmarks > 50 * count
                && cancelled > count,
            "watches are resumed, told much, and overtaken by compaction in these histories"
        );
    }
}

/// SIM_SEED says which.
#[test]
fn one_seed() {
    let outcome = simulation::run(setting("SIM_SEED").unwrap_or(1));
    println!("{outcome:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 14, 159] {
        assert_eq!(simulation::run(seed), simulation::run(seed), "seed {seed}");
    }
}
