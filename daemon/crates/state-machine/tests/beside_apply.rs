//! Reads, hashes and checkpoints on other threads while entries are applied and compacted. The seed is fixed; what the threads meet
//! of each other is not, so these find by weight what `model` finds step by step.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::error::EtcdError;
use api::etcdserverpb::*;
use common::*;
use state_machine::{CheckpointError, Options, StateMachine};

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Moves a unit from one account to another in a txn, so that the sum over all accounts never changes.
fn transfer(bench: &mut Bench, rng: &mut Rng, accounts: u64) {
    let (from, to) = (rng.below(accounts), rng.below(accounts));
    if from == to {
        return;
    }
    let name = |account: u64| format!("account/{account:04}");
    let amount = |bench: &Bench, account: u64| bench.value(&name(account)).unwrap().parse::<i64>().unwrap();
    let (less, more) = (amount(bench, from) - 1, amount(bench, to) + 1);
    let success = vec![op_put(&name(from), &less.to_string()), op_put(&name(to), &more.to_string())];
    bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
}

/// RD05 under compaction: a list is one revision's, or refused; never a mixture, and a plain read never fails.
#[test]
fn lists_stay_whole_while_compaction_passes() {
    const ACCOUNTS: u64 = 3_000;
    let options = Options { inline_value_bytes_max: 4_000, ..Options::default() };
    let mut bench = Bench::with(options);
    let success = (0..ACCOUNTS).map(|account| op_put(&format!("account/{account:04}"), "0")).collect();
    bench.txn(TxnRequest { success, ..Default::default() }).unwrap();
    let done = AtomicBool::new(false);
    let reader = bench.reader.clone();
    std::thread::scope(|scope| {
        let list = scope.spawn(|| {
            let mut rng = Rng(0x1357_9bdf_0246_8ace);
            let mut lists = (0, 0);
            while !done.load(Ordering::Relaxed) || lists.0 == 0 {
                let back = rng.below(4) as i64 * 5;
                let revision = if back == 0 { 0 } else { (reader.revision().0 - back).max(2) };
                let request = RangeRequest { revision, ..range("account/", "account0") };
                match reader.range(&request) {
                    Ok(list) => {
                        let amounts = list
                            .kvs
                            .iter()
                            .map(|kv| std::str::from_utf8(&kv.value).unwrap().parse::<i64>().unwrap());
                        assert_eq!(amounts.sum::<i64>(), 0, "a list mixes revisions");
                        assert_eq!((list.kvs.len() as u64, list.count as u64), (ACCOUNTS, ACCOUNTS));
                        let newest = list.kvs.iter().map(|kv| kv.mod_revision).max().unwrap();
                        let asked = if revision > 0 { revision } else { list.header.unwrap().revision };
                        assert!(newest <= asked, "a list shows its future");
                        lists.0 += 1;
                    }
                    Err(error) => {
                        assert_eq!((error, revision > 0), (EtcdError::Compacted, true));
                        lists.1 += 1;
                    }
                }
            }
            lists
        });
        let mut rng = Rng(0x2468_ace0_1357_9bdf);
        for round in 0..4_000 {
            transfer(&mut bench, &mut rng, ACCOUNTS);
            if round % 50 == 0 {
                let revision = bench.reader.revision().0;
                let _ = bench.compact(revision - rng.below(3) as i64);
            }
            bench.machine.compact_step(20);
            if round % 7 == 0 {
                bench.machine.warm_step(5);
            }
        }
        done.store(true, Ordering::Relaxed);
        let (whole, refused) = list.join().unwrap();
        assert!(whole > 0, "{whole} lists, {refused} refused");
    });
}

/// A checkpoint that was written while entries were applied stands for its position: loaded beside the later store it gives the
/// same state as a full scan.
#[test]
fn checkpoints_written_beside_apply_are_exact() {
    let mut bench = Bench::with(Options { inline_value_bytes_max: 20_000, ..Options::default() });
    let mut rng = Rng(0xdead_beef_cafe_f00d);
    let mut step = |bench: &mut Bench| {
        let key = format!("key/{:05}", rng.below(6_000));
        match rng.below(10) {
            0 => drop(bench.delete(&key, "")),
            1 => drop(bench.delete(&key, &format!("{key}~"))),
            _ => drop(bench.set(&key, &rng.below(1_000_000).to_string())),
        }
        rng.below(400)
    };
    (0..20_000).for_each(|_| {
        step(&mut bench);
    });
    let (mut used, mut refused) = (0, 0);
    for round in 0..25 {
        let reader = bench.reader.clone();
        let checkpoint = std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let mut bytes = Vec::new();
                reader.checkpoint(&mut bytes).map(|position| (position, bytes))
            });
            let mut steps = 0;
            while !writing.is_finished() || steps < 200 {
                let draw = step(&mut bench);
                if round % 3 == 1 && draw == 0 {
                    let revision = bench.reader.revision().0;
                    let _ = bench.compact(revision - 300);
                }
                bench.machine.compact_step(10);
                steps += 1;
            }
            writing.join().unwrap()
        });
        let Some((position, bytes)) = checkpoint else {
            refused += 1;
            continue;
        };
        assert!(position <= bench.machine.applied());
        let store = Arc::new(bench.machine.store().as_ref().clone());
        let loaded = StateMachine::open(Arc::clone(&store), bench.options.clone(), Some(&bytes)).unwrap();
        match loaded.checkpoint_ignored() {
            None => used += 1,
            Some(CheckpointError::BelowCompaction { .. }) => refused += 1,
            Some(other) => panic!("{other}"),
        }
        let scanned = StateMachine::open(store, bench.options.clone(), None).unwrap();
        let (a, b) = (loaded.reader(), scanned.reader());
        let current = b.revision().0;
        let first = b.compact_revision().0.max(2);
        for revision in [0, current, (current + first) / 2, first] {
            let request = RangeRequest { revision, ..range("\0", "\0") };
            assert_eq!(a.range(&request), b.range(&request), "at {revision} in round {round}");
            assert_eq!(a.hash_kv(revision), b.hash_kv(revision), "at {revision} in round {round}");
        }
        assert_eq!(a.hash(), b.hash());
    }
    assert!(used >= 10, "{used} checkpoints used, {refused} overtaken by compaction");
}

/// A checkpoint that is damaged, foreign or from the wrong time is named and not used.
#[test]
fn wrong_checkpoints_are_ignored_with_a_reason() {
    let mut bench = Bench::new();
    for number in 0..50 {
        bench.set(&format!("k{number}"), "value");
    }
    let mut good = Vec::new();
    bench.reader.checkpoint(&mut good).unwrap();
    let before = Arc::new(bench.machine.store().as_ref().clone());
    for number in 0..50 {
        bench.set(&format!("k{number}"), "other");
    }
    let mut later = Vec::new();
    bench.reader.checkpoint(&mut later).unwrap();
    let open = |store: Arc<state_machine::Memory>, bytes: &[u8]| {
        let machine = StateMachine::open(store, Options::default(), Some(bytes)).unwrap();
        (machine.checkpoint_ignored().cloned(), machine.reader().range(&range("k", "l")).unwrap())
    };
    let now = || Arc::new(bench.machine.store().as_ref().clone());
    let truth = bench.range("k", "l");
    assert_eq!(open(now(), &good), (None, truth.clone()));
    assert_eq!(open(now(), &later), (None, truth.clone()));
    assert!(matches!(open(Arc::clone(&before), &later).0, Some(CheckpointError::BeyondStore { .. })));
    assert_eq!(open(now(), b"").0, Some(CheckpointError::NotACheckpoint));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        let (reason, range) = open(now(), &bad);
        assert!(reason.is_some(), "byte {at} is covered");
        assert_eq!(range, truth);
    }
    for len in [8, 20, 80, good.len() - 1] {
        assert!(open(now(), &good[..len]).0.is_some(), "cut at {len}");
    }

    // Another store at the same position.
    let mut other = Bench::new();
    for number in 0..50 {
        other.set(&format!("k{number}"), "elsewhere");
    }
    let foreign = Arc::new(other.machine.store().as_ref().clone());
    assert!(matches!(open(foreign, &good).0, Some(CheckpointError::OtherStore(_))));

    // Removal may have taken a tombstone that the checkpoint has not seen.
    bench.delete("k1", "");
    let revision = bench.set("last", "1");
    bench.compact(revision).unwrap();
    bench.compact_physically(1000);
    let compacted = Arc::new(bench.machine.store().as_ref().clone());
    let (reason, range) = open(compacted, &later);
    assert!(matches!(reason, Some(CheckpointError::BelowCompaction { .. })));
    assert_eq!(names(&range.kvs).len(), 49, "the deleted key stays deleted");
}

/// Values left in the store by a start come into memory step by step, within the budget.
#[test]
fn values_come_inline_after_a_start_from_a_checkpoint() {
    let mut bench = Bench::with(Options { inline_value_bytes_max: 300, ..Options::default() });
    for number in 0..100 {
        bench.set(&format!("k{number:02}"), "0123456789");
    }
    let truth = bench.range("k", "l");
    let mut bytes = Vec::new();
    bench.reader.checkpoint(&mut bytes).unwrap();
    bench.reopen(Some(&bytes));
    assert_eq!(bench.reader.index_size().inline_bytes, 0);
    assert_eq!(bench.range("k", "l"), truth, "not inline is not missing");
    bench.set("k50", "new");
    while bench.machine.warm_step(7) {}
    let inline = bench.reader.index_size().inline_bytes;
    assert!((290..=300).contains(&inline), "{inline} bytes inline");
    assert_eq!(bench.value("k50").as_deref(), Some("new"));
    assert!(!bench.machine.warm_step(7));
}
