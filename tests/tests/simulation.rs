//! Runs the simulation over many seeds. One seed is one history; a seed that fails prints the command that repeats it.
//!
//! `SIM_SEEDS=20000 cargo test -p cairn-tests --test simulation many_seeds` looks longer, `SIM_FIRST_SEED` says where to begin.

use std::sync::atomic::{AtomicU64, Ordering};

use cairn_tests::simulation::{self, Defect, Outcome, Setup};

/// Enough to meet every fault in combination, few enough for every change.
const SEEDS_DEFAULT: u64 = 140;
const DAMAGED_DEFAULT: u64 = 60;
const LIVES_DEFAULT: u64 = 40;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// On all processors; to the end, whichever fail.
fn run_many(count: u64, run: impl Fn(u64) -> Outcome + Sync) -> Vec<Outcome> {
    let first = setting("SIM_FIRST_SEED").unwrap_or(0);
    let next = AtomicU64::new(first);
    let outcomes = std::sync::Mutex::new(Vec::new());
    let failed = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed))) {
                        Ok(outcome) => outcomes.lock().expect("nothing fails here").push(outcome),
                        Err(_) => failed.lock().expect("nothing fails here").push(seed),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nothing fails here");
    assert!(failed.is_empty(), "seeds {failed:?} failed, each as told above");
    outcomes.into_inner().expect("nothing fails here")
}

#[test]
fn many_seeds() {
    let count = setting("SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let outcomes = run_many(count, simulation::run);
    let sum = |number: fn(&Outcome) -> u64| outcomes.iter().map(number).sum::<u64>();
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

/// Directories are wiped, rolled back, swapped and run twice, where the others can know; `SIM_WINDOW=1`: also where they cannot, and
/// what goes wrong then is counted.
#[test]
fn many_seeds_with_damaged_directories() {
    let count = setting("SIM_SEEDS").unwrap_or(DAMAGED_DEFAULT);
    let window = setting("SIM_WINDOW").is_some();
    let outcomes =
        run_many(count, |seed| simulation::run_damaged(seed, Setup { window, ..Setup::default() }));
    let sum = |number: fn(&Outcome) -> u64| outcomes.iter().map(number).sum::<u64>();
    let (damaged, twins, swaps) = (sum(|o| o.damaged), sum(|o| o.twins), sum(|o| o.swaps));
    let (refused, quarantines, expelled) = (sum(|o| o.refused), sum(|o| o.quarantines), sum(|o| o.expelled));
    let (restored, notes) = (sum(|o| o.restored), sum(|o| o.notes));
    let acknowledged = sum(|o| o.acknowledged as u64);
    println!(
        "{count} seeds: {acknowledged} acknowledged; directories: {damaged} damaged, {twins} run twice, {swaps} swapped, \
         {restored} found again; {notes} notes; {refused} calls refused, {quarantines} silenced, {expelled} ended"
    );
    println!("window: opened in {}, hurt in {}", sum(|o| o.window_opened), sum(|o| o.window_hurt));
    if count >= DAMAGED_DEFAULT {
        assert!(
            damaged > count / 2 && twins > count / 30 && swaps > count / 10 && restored > count / 10,
            "directories are damaged, run twice, swapped and found again in these histories"
        );
        assert!(
            expelled > count / 2 && quarantines > 0 && notes > 5 * count && acknowledged > 100 * count,
            "the others notice and go on in these histories"
        );
    }
}

/// Members are forced into lives of their own while the others live, and majorities are wiped and found the cluster anew.
#[test]
fn many_seeds_with_several_lives() {
    let count = setting("SIM_SEEDS").unwrap_or(LIVES_DEFAULT);
    let setup = Setup { lives: true, ..Setup::default() };
    let outcomes = run_many(count, |seed| simulation::run_damaged(seed, setup));
    let sum = |number: fn(&Outcome) -> u64| outcomes.iter().map(number).sum::<u64>();
    let (forced, wiped, led) = (sum(|o| o.forced), sum(|o| o.wiped), sum(|o| o.led));
    let (refused, restored) = (sum(|o| o.refused), sum(|o| o.restored));
    println!(
        "{count} seeds: {forced} forced, {wiped} majorities wiped, {led} other lives had a leader; {refused} calls refused, {restored} \
         directories found again"
    );
    if count >= LIVES_DEFAULT {
        assert!(
            forced > count / 4 && wiped > 0 && led > count / 4 && refused > 20 * count,
            "several lives exist at one time, and meet, in these histories"
        );
    }
}

/// Seeds until one fails.
fn caught(defect: Defect, setup: Setup, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| {
        let setup = Setup { defect: Some(defect), ..setup };
        std::panic::catch_unwind(|| simulation::run_damaged(*seed, setup)).is_err()
    })
}

/// The checks see what the rules are for.
#[test]
fn planted_defects_are_caught() {
    for defect in [Defect::TakesEverybody, Defect::IgnoresRecords, Defect::IgnoresMarks] {
        assert!(caught(defect, Setup::default(), 200).is_some(), "{defect:?} is caught");
    }
    // A majority is wiped and founds anew while a voter that joined later goes on, which campaigns at the founders' addresses.
    let joined = Setup { lives: true, joined: true, ..Setup::default() };
    let seed = caught(Defect::HearsEverybody, joined, 400).expect("whom a founder must not hear is heard");
    let held_off = simulation::run_damaged(seed, joined).held_off;
    assert!(held_off > 0, "it is held off where the rule holds, and nothing else is wrong: seed {seed}");
}

/// SIM_SEED says which.
#[test]
fn one_seed() {
    let seed = setting("SIM_SEED").unwrap_or(1);
    let window = setting("SIM_WINDOW").is_some();
    let lives = setting("SIM_LIVES").is_some();
    let joined = setting("SIM_JOINED").is_some();
    let outcome = match setting("SIM_DAMAGE") {
        Some(_) => simulation::run_damaged(seed, Setup { window, lives, joined, ..Setup::default() }),
        None => simulation::run(seed),
    };
    println!("{outcome:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 14, 159] {
        assert_eq!(simulation::run(seed), simulation::run(seed), "seed {seed}");
        // How a hub gathers what several watches of a stream are told is not part of it.
        let damaged = || Outcome { digest: 0, ..simulation::run_damaged(seed, Setup::default()) };
        assert_eq!(damaged(), damaged(), "seed {seed}");
    }
}
