//! The hashes of compactions: what is stored, for how long, and that rows wait for them. That the numbers are etcd's is in `etcd.rs`.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use api::error::EtcdError;
use common::*;
use state_machine::store::{Store, Table, WriteBatch};
use state_machine::{COMPACTION_HASHES_KEPT, CompactProgress, HashKv, is_of_this_store};
use types::Revision;

fn story(bench: &mut Bench) {
    for round in 0..4 {
        for key in ["a", "b", "c", "d"] {
            bench.set(key, &format!("{key}{round}"));
        }
        bench.delete("b", "d");
    }
}

fn hash(bench: &Bench, revision: i64) -> HashKv {
    bench.reader.hash_kv(revision).unwrap()
}

#[test]
fn the_hash_of_a_compaction_is_the_one_from_before_it() {
    let mut bench = Bench::new();
    story(&mut bench);
    let before = hash(&bench, 12);
    assert_eq!(before.compact_revision, Revision(-1));
    bench.compact(12).unwrap();
    assert_eq!(hash(&bench, 12).compact_revision, Revision(12), "it is not computed yet");
    bench.compact_physically(1);
    assert_eq!(hash(&bench, 12), before);
    let next = hash(&bench, 17);
    assert_eq!(next.compact_revision, Revision(12));
    bench.compact(17).unwrap();
    bench.compact_physically(1);
    assert_eq!(hash(&bench, 17), next);
    assert_eq!(hash(&bench, 12), before, "also when history has ended behind it");
    assert_eq!(bench.reader.hash_kv(13), Err(EtcdError::Compacted));
    assert_eq!(hash(&bench, 0).compact_revision, Revision(17), "0 is the current one");
    let checksum = bench.reader.hash();
    bench.reopen(None);
    assert_eq!((hash(&bench, 12), hash(&bench, 17)), (before, next), "etcd has forgotten them by now");
    assert_eq!(bench.reader.hash(), checksum);
}

/// Two members that compact alike, one of which is started anew at the worst moments, can be compared all the time.
#[test]
fn compaction_hashes_survive_restarts_at_any_moment() {
    let (mut plain, mut restarted) = (Bench::new(), Bench::new());
    let mut rng: u64 = 7;
    let mut chance = |of: u64| {
        rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (rng >> 33).is_multiple_of(of)
    };
    let mut decided = Vec::new();
    for _ in 0..60 {
        for bench in [&mut plain, &mut restarted] {
            story(bench);
        }
        let revision = plain.reader.revision().0 - 3;
        for bench in [&mut plain, &mut restarted] {
            bench.compact(revision).unwrap();
        }
        decided.push(revision);
        if chance(2) {
            plain.compact_physically(3);
        }
        // Some steps, of which the last may be amid a run, or none.
        while chance(2) {
            restarted.machine.compact_step(2);
            if chance(2) {
                restarted.reopen(None);
            }
        }
        restarted.reopen(None);
    }
    plain.compact_physically(3);
    restarted.compact_physically(3);
    restarted.reopen(None);
    for revision in &decided[decided.len() - COMPACTION_HASHES_KEPT..] {
        assert_eq!(hash(&plain, *revision), hash(&restarted, *revision));
        assert!(hash(&plain, *revision).compact_revision.0 < *revision, "a stored one");
    }
    for bench in [&plain, &restarted] {
        let pairs = bench.machine.store().table(Table::Meta).unwrap();
        let count = |name: &str| pairs.iter().filter(|(key, _)| key.starts_with(name.as_bytes())).count();
        assert_eq!(count("cairn/compaction_hash/"), COMPACTION_HASHES_KEPT);
        assert_eq!(count("cairn/compaction_due/"), 0);
        assert!(pairs.iter().all(|(key, _)| !is_of_this_store(key)));
    }
}

/// Pairs that came with a snapshot and make no sense cost nothing but themselves.
#[test]
fn strange_pairs_of_hashes_are_passed_over() {
    let mut bench = Bench::new();
    story(&mut bench);
    let mut batch = WriteBatch::at(bench.machine.applied());
    for (key, value) in [
        ("cairn/compaction_hash/", &[][..]),
        ("cairn/compaction_hash/zz", &[1; 12]),
        ("cairn/compaction_hash/0000000000000005", &[0; 11]),
        ("cairn/compaction_hash/0000000000000006", &[0x7f; 12]),
        ("cairn/compaction_due/000000000000000f", &[9; 3]),
        ("cairn/compaction_due/ffffffffffffffff", &[0; 8]),
    ] {
        batch.put(Table::Meta, key.as_bytes().to_vec(), value.to_vec());
    }
    bench.machine.store().write(batch).unwrap();
    bench.reopen(None);
    for revision in [5, 6] {
        assert_eq!(hash(&bench, revision).compact_revision, Revision(-1), "computed");
    }
    bench.compact(12).unwrap();
    bench.compact_physically(1);
    assert_eq!(hash(&bench, 12).compact_revision, Revision(-1));
}

#[test]
fn as_many_are_kept_as_etcd_keeps() {
    let mut bench = Bench::new();
    for _ in 0..8 {
        story(&mut bench);
    }
    let last = COMPACTION_HASHES_KEPT as i64 + 5;
    let expected: Vec<HashKv> = (2..=last)
        .map(|revision| {
            let before = hash(&bench, revision);
            bench.compact(revision).unwrap();
            if revision % 3 == 0 {
                bench.compact_physically(2);
            }
            before
        })
        .collect();
    bench.compact_physically(2);
    for before in expected {
        let revision = before.hash_revision.0;
        if revision > last - COMPACTION_HASHES_KEPT as i64 {
            assert_eq!(hash(&bench, revision), before, "however far the removal before had come");
        } else {
            assert_eq!(bench.reader.hash_kv(revision), Err(EtcdError::Compacted));
        }
    }
}

#[test]
fn rows_wait_for_the_hash_and_nothing_else_does() {
    let mut bench = Bench::new();
    story(&mut bench);
    let (rows, before) = (bench.machine.store().row_count(), hash(&bench, 15));
    bench.compact(15).unwrap();
    let job = bench.machine.compaction_hash_job().expect("one is due");
    assert!(bench.machine.compaction_hash_job().is_none(), "only once");
    assert_eq!(bench.machine.compact_step(100), CompactProgress::Hashing);
    // Writes and another compaction go on.
    bench.set("e", "1");
    bench.compact(18).unwrap();
    assert_eq!(bench.machine.compact_step(100), CompactProgress::Hashing);
    assert_eq!(bench.machine.store().row_count(), rows + 1);
    job.run(&mut || true);
    assert_eq!(bench.machine.compact_step(100), CompactProgress::Finished(Revision(15)));
    assert_eq!(hash(&bench, 15).hash, before.hash);
    bench.compact_physically(100);
    assert_eq!(hash(&bench, 18).compact_revision, Revision(15));
}

/// OP09: what asks for hashes while compactions come gets answers, and equal ones for equal marks.
#[test]
fn corruption_check_during_compaction() {
    const ROUNDS: i64 = 400;
    let mut bench = Bench::new();
    story(&mut bench);
    let reader = bench.reader.clone();
    let ended = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let checker = scope.spawn(|| {
            let mut answers = Vec::new();
            loop {
                let last = ended.load(Ordering::Acquire);
                answers.push(reader.hash_kv(0).expect("the present has a hash, whatever is compacted"));
                if last {
                    return answers;
                }
            }
        });
        for _ in 0..ROUNDS {
            story(&mut bench);
            let revision = bench.reader.revision().0;
            bench.compact(revision - 5).unwrap();
            // A member that removes late, then one that removes at once.
            bench.compact(revision - 2).unwrap();
            bench.compact_physically(3);
        }
        ended.store(true, Ordering::Release);
        checker.join().unwrap()
    });
    let mut known = BTreeMap::new();
    for answer in &answers {
        let marks = (answer.hash_revision, answer.compact_revision);
        assert_eq!(*known.entry(marks).or_insert(answer.hash), answer.hash, "{marks:?}");
    }
    assert!(!known.is_empty());
}

#[test]
fn a_hash_that_is_given_up_keeps_no_row() {
    for stopped in [false, true] {
        let mut bench = Bench::new();
        story(&mut bench);
        bench.compact(15).unwrap();
        let job = bench.machine.compaction_hash_job().expect("one is due");
        if stopped {
            job.run(&mut || false);
        } else {
            drop(job);
        }
        assert_eq!(bench.machine.compact_step(100), CompactProgress::Finished(Revision(15)));
        assert_eq!(hash(&bench, 15).compact_revision, Revision(15), "a hash of a part is no hash");
    }
}

/// The state machine was replaced by a received snapshot: the job ends by itself and stores nothing.
#[test]
fn a_job_ends_with_its_state_machine() {
    let mut bench = Bench::new();
    story(&mut bench);
    bench.compact(15).unwrap();
    let job = bench.machine.compaction_hash_job().expect("one is due");
    let old = bench.reader.clone();
    bench.reopen(None);
    let mut asked = 0;
    job.run(&mut || {
        asked += 1;
        true
    });
    assert_eq!(asked, 0, "nothing is read any more");
    assert_eq!(old.hash_kv(15).unwrap().compact_revision, Revision(15));
}
