//! The durable store through its public face: what readers see while batches are on their way, and what is there after a kill.

mod common;
#[path = "state_store/defrag.rs"]
mod defrag;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Random, at, id, put_row as row, seed};
use state_machine::store::{Store, StoredRow, Table, WriteBatch};
use storage::snapshot::View;
use storage::state_store::{FatalHook, FjallStore, OpenError, StoreOptions};
use types::{LogPosition, RowId};

fn all_rows(store: &impl Store) -> Vec<(RowId, StoredRow)> {
    let mut out = Vec::new();
    store
        .scan(id(0, 0), id(i64::MAX, i64::MAX), &mut |id, row| {
            out.push((id, row));
            ControlFlow::Continue(())
        })
        .unwrap();
    out
}

fn meta_number(store: &impl Store, name: &str) -> Option<u64> {
    let meta = store.table(Table::Meta).unwrap();
    let value = meta.into_iter().find(|(key, _)| key == name)?.1;
    Some(u64::from_be_bytes(value.as_ref().try_into().unwrap()))
}

/// Small memtables, so that a test of seconds sees flushes, merges and journal rotation.
fn small() -> StoreOptions {
    StoreOptions { memtable_bytes: 1024 * 1024, ..StoreOptions::default() }
}

#[test]
fn what_was_written_is_seen_at_once_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(store.position(), LogPosition::default());
        assert_eq!(all_rows(&store), []);
        let mut batch = WriteBatch::at(at(7));
        batch.put_row(id(2, 0), row("a"));
        batch.put_row(id(2, 1), StoredRow { tombstone: true, value: Bytes::from_static(b"b") });
        batch.put(Table::Members, "8e9e05c52164694d", "{}");
        batch.put(Table::Alarm, "x", "");
        store.write(batch).unwrap();
        let mut batch = WriteBatch::at(at(8));
        batch.delete(Table::Alarm, "x");
        store.write(batch).unwrap();
        check_small(&store);
        assert_eq!(store.persist().unwrap(), at(8));
        check_small(&store);
    }
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!((store.position(), store.durable()), (at(8), at(8)));
    check_small(&store);
}

fn check_small(store: &FjallStore) {
    assert_eq!(store.row(id(2, 0)).unwrap(), Some(row("a")));
    assert!(store.row(id(2, 1)).unwrap().unwrap().tombstone);
    assert_eq!(store.row(id(3, 0)).unwrap(), None);
    let both = store.rows(&[id(2, 1), id(9, 0), id(2, 0)]).unwrap();
    assert_eq!(both.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(all_rows(store).len(), 2);
    assert_eq!(store.table(Table::Members).unwrap().len(), 1);
    assert_eq!(store.table(Table::Alarm).unwrap(), []);
    assert_eq!(meta_number(store, "consistent_index"), Some(8));
    assert_eq!(meta_number(store, "term"), Some(1));
}

#[test]
fn every_entry_kind_advances_applied() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    store.write(WriteBatch::at(at(41))).unwrap();
    let mut batch = WriteBatch::at(at(42));
    batch.put(Table::AuthUsers, "root", "hash");
    store.write(batch).unwrap();
    assert_eq!(store.persist().unwrap(), at(42));
    drop(store);
    assert_eq!(FjallStore::open(dir.path(), StoreOptions::default()).unwrap().position(), at(42));
}

#[test]
fn a_later_change_of_the_same_key_wins_inside_one_commit_and_after_replay() {
    let dir = tempfile::tempdir().unwrap();
    let check = |store: &FjallStore| {
        assert_eq!(store.row(id(2, 0)).unwrap(), None, "put, then deleted");
        assert_eq!(store.row(id(3, 0)).unwrap(), Some(row("again")), "deleted, then put");
        assert_eq!(store.table(Table::Lease).unwrap(), [(Bytes::from("l"), Bytes::from("2"))]);
        assert_eq!(store.table(Table::Auth).unwrap(), []);
    };
    {
        let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
        let mut batch = WriteBatch::at(at(1));
        batch.put_row(id(2, 0), row("gone"));
        batch.put_row(id(3, 0), row("first"));
        batch.delete_row(id(2, 0), false);
        batch.delete_row(id(3, 0), false);
        batch.put_row(id(3, 0), row("again"));
        batch.put(Table::Lease, "l", "1");
        batch.delete(Table::Lease, "l");
        batch.put(Table::Lease, "l", "2");
        batch.put(Table::Auth, "a", "1");
        batch.delete(Table::Auth, "a");
        store.write(batch).unwrap();
        check(&store);
        store.persist().unwrap();
        check(&store);
    }
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    check(&store);
    store.reclaim().unwrap();
    check(&store);
}

/// Every read races with the writer thread: a row may be in the overlay, in the tree, or between the two at that moment, and must be
/// found in each case. Compared with a plain map after every batch.
#[test]
fn no_row_is_missed_between_overlay_and_tree() {
    let seed = seed();
    println!("replay: SEED={seed} cargo test -p cairn-storage --test state_store no_row_is_missed");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), small()).unwrap();
    let mut model: BTreeMap<RowId, StoredRow> = BTreeMap::new();
    for index in 1..4000_u64 {
        let mut batch = WriteBatch::at(at(index));
        for sub in 0..1 + random.below(4) as i64 {
            let size = random.below(600) as usize;
            let stored =
                StoredRow { tombstone: random.below(8) == 0, value: Bytes::from(vec![index as u8; size]) };
            batch.put_row(id(index as i64, sub), stored.clone());
            model.insert(id(index as i64, sub), stored);
        }
        if random.below(5) == 0 {
            let victims: Vec<RowId> = (0..random.below(20))
                .filter_map(|_| {
                    let from = id(1 + random.below(index) as i64, 0);
                    model.range(from..).next().map(|(id, _)| *id)
                })
                .collect();
            for victim in victims {
                if let Some(row) = model.remove(&victim) {
                    batch.delete_row(victim, row.tombstone);
                }
            }
        }
        store.write(batch).unwrap();
        for _ in 0..4 {
            let asked = id(1 + random.below(index) as i64, random.below(4) as i64);
            assert_eq!(
                store.row(asked).unwrap().as_ref(),
                model.get(&asked),
                "row {asked} after batch {index}"
            );
        }
        if index % 50 == 0 {
            let from = id(random.below(index) as i64, random.below(3) as i64);
            let to = id(from.main.0 + random.below(index) as i64, 1);
            let mut seen = Vec::new();
            store
                .scan(from, to, &mut |id, row| {
                    seen.push((id, row));
                    ControlFlow::Continue(())
                })
                .unwrap();
            let expected: Vec<_> = model.range(from..=to).map(|(id, row)| (*id, row.clone())).collect();
            assert_eq!(seen, expected, "scan {from} to {to} after batch {index}");
        }
    }
    assert_eq!(all_rows(&store), model.into_iter().collect::<Vec<_>>());
}

/// Readers on other threads ask for rows that are surely written, while they move from overlay to tree.
#[test]
fn readers_beside_the_writer_always_find_written_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FjallStore::open(dir.path(), small()).unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2_u64)
        .map(|reader| {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut random = Random(reader + 1);
                let mut found = 0_u64;
                while !done.load(Ordering::Acquire) {
                    let newest = store.position().index.0;
                    if newest > 0 {
                        let back = random.below(newest.min(5000));
                        let asked = id((newest - back) as i64, 0);
                        assert!(store.row(asked).unwrap().is_some(), "row {asked} with {newest} written");
                        found += 1;
                    }
                }
                found
            })
        })
        .collect();
    for index in 1..60_000_u64 {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![7; 100]));
        store.write(batch).unwrap();
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

#[test]
fn a_view_does_not_change_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), small()).unwrap();
    for index in 1..=3000_u64 {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![1; 200]));
        batch.put(Table::Lease, "newest", index.to_string());
        store.write(batch).unwrap();
    }
    let view = store.view().unwrap();
    assert_eq!(view.position(), at(3000), "a view is not older than what was written before it");
    for index in 3001..=9000_u64 {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![2; 200]));
        batch.delete_row(id(index as i64 - 3000, 0), false);
        batch.put(Table::Lease, "newest", index.to_string());
        store.write(batch).unwrap();
    }
    store.reclaim().unwrap();
    let mut seen = 0;
    view.scan(id(0, 0)..=id(i64::MAX, 0), &mut |found, row| {
        seen += 1;
        assert_eq!((found, row.value[0]), (id(seen, 0), 1));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, 3000);
    assert_eq!(view.table(Table::Lease).unwrap()[0].1, "3000");
    assert_eq!(all_rows(&store).len(), 3000);
}

#[test]
fn the_marker_is_durable_and_outside_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(store.marker().unwrap(), None);
        store.write(WriteBatch::at(at(3))).unwrap();
        store.set_marker(b"cluster").unwrap();
        assert_eq!(store.durable(), at(3));
    }
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(store.marker().unwrap().unwrap(), "cluster");
    assert_eq!(store.position(), at(3));
    for table in Table::ALL {
        let pairs = store.table(table).unwrap();
        assert!(pairs.iter().all(|(_, value)| value != "cluster"), "{}", table.name());
    }
}

#[test]
fn an_unknown_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(FjallStore::open(dir.path(), StoreOptions::default()).unwrap());
    let format = dir.path().join("gen-0000000000000001/FORMAT");
    std::fs::write(&format, "cairn state 2\n").unwrap();
    match FjallStore::open(dir.path(), StoreOptions::default()) {
        Err(OpenError::UnknownFormat { found, .. }) => assert_eq!(found, "cairn state 2"),
        other => panic!("opened: {:?}", other.map(|_| ())),
    }
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "cairn state 2\n");
}

#[test]
fn a_store_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    assert!(matches!(FjallStore::open(dir.path(), StoreOptions::default()), Err(OpenError::Locked { .. })));
    drop(store);
    FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
}

#[test]
fn a_pointer_that_names_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(FjallStore::open(dir.path(), StoreOptions::default()).unwrap());
    for nonsense in ["", "../elsewhere", "gen-0000000000000009", "gen-0000000000000001.partial"] {
        std::fs::write(dir.path().join("CURRENT"), nonsense).unwrap();
        let opened = FjallStore::open(dir.path(), StoreOptions::default()).map(|_| ());
        assert!(matches!(opened, Err(OpenError::Pointer { .. })), "{nonsense:?}: {opened:?}");
    }
    assert!(dir.path().join("gen-0000000000000001/fjall").is_dir(), "refusing removes nothing");
}

#[test]
fn a_crash_while_the_first_state_is_made_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    // Before the tree was complete, and with the directory named but CURRENT not yet written.
    std::fs::create_dir_all(dir.path().join("gen-0000000000000001.partial/fjall")).unwrap();
    std::fs::write(dir.path().join("gen-0000000000000001.partial/fjall/0.jnl"), "").unwrap();
    drop(FjallStore::open(dir.path(), StoreOptions::default()).unwrap());
    assert!(!dir.path().join("gen-0000000000000001.partial").exists());
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    drop(FjallStore::open(dir.path(), StoreOptions::default()).unwrap());
    assert!(dir.path().join("CURRENT").exists());
}

#[test]
fn a_state_that_lost_a_file_is_not_taken_for_one_that_was_never_made() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    let mut batch = WriteBatch::at(at(7));
    batch.put_row(id(2, 0), row("a"));
    store.write(batch).unwrap();
    store.persist().unwrap();
    drop(store);
    let tree = dir.path().join("gen-0000000000000001/fjall");
    let refused = || match FjallStore::open(dir.path(), StoreOptions::default()).map(|_| ()) {
        Err(OpenError::Inconsistent { what, .. }) => assert!(what.contains("fjall/version"), "{what}"),
        other => panic!("{other:?}"),
    };
    let version = std::fs::read(tree.join("version")).unwrap();
    std::fs::remove_file(tree.join("version")).unwrap();
    refused();
    std::fs::write(tree.join("version"), version).unwrap();
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(store.position(), at(7), "nothing was removed");
    drop(store);
    std::fs::remove_dir_all(&tree).unwrap();
    refused();
    assert!(!tree.exists(), "no empty state in its place");
}

#[test]
fn a_row_id_without_a_key_is_an_error_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
    let mut batch = WriteBatch::at(at(1));
    batch.put_row(id(-1, 0), row("x"));
    assert!(store.write(batch).is_err());
    assert_eq!(store.position(), LogPosition::default());
    store.write(WriteBatch::at(at(1))).unwrap();
}

/// Journals must go when their rows are in tables: fjall kept them for idle keyspaces (its issue 288).
#[test]
fn journals_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path(), small()).unwrap();
    for index in 1..=6000_u64 {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![index as u8; 48 * 1024]));
        store.write(batch).unwrap();
    }
    store.persist().unwrap();
    assert!(store.journal_count() <= 3, "{} journals after 280 MB", store.journal_count());
}

// A process that writes until it is killed.

const CHILD_DIR: &str = "CAIRN_STORE_CHILD_DIR";

/// What batch `index` contains, so that the parent can tell what a store at any position must hold.
fn rows_of(index: u64) -> Vec<(RowId, StoredRow)> {
    let mut random = Random(index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // Some batches hold no row: they move only the position.
    (0..random.below(4) as i64)
        .map(|sub| {
            let value = vec![index as u8; 100 + random.below(2000) as usize];
            (id(index as i64, sub), StoredRow { tombstone: random.below(9) == 0, value: value.into() })
        })
        .collect()
}

#[test]
fn child_that_writes_until_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    // As the daemon does: a store that cannot write ends the process.
    let on_fatal: FatalHook = Arc::new(|reason| {
        println!("fatal {reason}");
        std::process::exit(70);
    });
    let options = StoreOptions { on_fatal: Some(on_fatal), ..small() };
    let store = Arc::new(FjallStore::open(Path::new(&dir), options).unwrap());
    let persister = Arc::clone(&store);
    std::thread::spawn(move || {
        loop {
            let durable = persister.persist().unwrap();
            println!("durable {}", durable.index);
            std::io::stdout().flush().unwrap();
        }
    });
    let merges = std::env::var_os(defrag::RECLAIMS).is_some();
    if merges {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            loop {
                store.reclaim().unwrap();
                println!("reclaimed");
            }
        });
    }
    for index in store.position().index.0 + 1.. {
        let mut batch = WriteBatch::at(at(index));
        for (id, row) in rows_of(index) {
            batch.put_row(id, row);
        }
        batch.put(Table::Lease, "newest", index.to_string());
        store.write(batch).unwrap();
        if merges {
            // At full speed each merge would have far more to do than the one before.
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

#[test]
fn applied_position_saved_with_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    // Rounds on one directory, so that fjall reopens what it was killed in (its issue 257: writes stuck after that).
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_until_killed", "--exact", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut durable = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(index) = line.strip_prefix("durable ") {
                durable = index.parse().unwrap();
            }
            if durable > before + 2_000 + round * 3_000 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(durable > before, "round {round}: the child made progress after the kill before");

        before = check_prefix(dir.path(), durable);
    }
    assert!(before > 20_000, "enough was written to flush, merge and rotate: {before}");
}

/// The store holds exactly the batches up to its position, and that is not below what was synced. Returns the position's index.
fn check_prefix(root: &Path, durable: u64) -> u64 {
    let store = FjallStore::open(root, small()).unwrap();
    let position = store.position();
    assert_eq!(position, at(position.index.0));
    assert!(position.index.0 >= durable, "{position} is below what was synced, {durable}");
    assert_eq!(store.table(Table::Lease).unwrap()[0].1, position.index.0.to_string());
    let mut found = all_rows(&store).into_iter();
    for index in 1..=position.index.0 {
        for expected in rows_of(index) {
            assert_eq!(found.next(), Some(expected), "batch {index} of {position}");
        }
    }
    assert_eq!(found.next(), None, "a row above {position}");
    position.index.0
}

/// A limit on the size of files stands for the full disk: writes fail in the middle of a batch with an error, as with ENOSPC.
#[test]
fn full_disk_then_restart() {
    let dir = tempfile::tempdir().unwrap();
    drop(FjallStore::open(dir.path(), small()).unwrap());
    let run = Command::new("sh")
        .args([
            "-c",
            r#"trap "" XFSZ; ulimit -f 30000; exec "$0" child_that_writes_until_killed --exact --nocapture"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD_DIR, dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.status.code(), Some(70), "the fatal hook ended the process: {output}");
    assert_eq!(output.lines().filter(|line| line.starts_with("fatal ")).count(), 1, "{output}");
    let durable =
        output.lines().filter_map(|line| line.strip_prefix("durable ")).filter_map(|text| text.parse().ok());
    let durable = durable.max().expect("something was synced before the disk was full");
    // With room again it opens, holds everything acknowledged, and goes on.
    let before = check_prefix(dir.path(), durable);
    let store = FjallStore::open(dir.path(), small()).unwrap();
    store.write(WriteBatch::at(at(before + 1))).unwrap();
    assert_eq!(store.persist().unwrap(), at(before + 1));
}

/// After a power loss any page of the unsynced tail may be missing while later ones are there. Whatever is missing, the store opens,
/// at a whole batch before the gap.
#[test]
fn gaps_in_the_unsynced_journal_cost_only_what_follows() {
    let written = tempfile::tempdir().unwrap();
    {
        let store = FjallStore::open(written.path(), StoreOptions::default()).unwrap();
        for index in 1..=1500 {
            let mut batch = WriteBatch::at(at(index));
            for (id, row) in rows_of(index) {
                batch.put_row(id, row);
            }
            batch.put(Table::Lease, "newest", index.to_string());
            store.write(batch).unwrap();
            if index % 10 == 0 {
                // Commits of ten: the journal has many batches to cut between.
                store.view().unwrap();
            }
        }
    }
    let journal = Path::new("gen-0000000000000001/fjall/0.jnl");
    let good = std::fs::read(written.path().join(journal)).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut random = Random(0xdead);
    let mut shorter = 0;
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        copy(written.path(), dir.path());
        let mut bad = good.clone();
        for _ in 0..1 + random.below(3) {
            let page = random.below(end as u64 / 4096 + 1) as usize * 4096;
            let to = (page + 4096).min(bad.len());
            if random.below(2) == 0 {
                bad[page..to].fill(0);
            } else {
                bad[page + random.below(4000) as usize] ^= 0x15;
            }
        }
        std::fs::write(dir.path().join(journal), &bad[..end]).unwrap();
        let reached = match FjallStore::open(dir.path(), StoreOptions::default()) {
            Ok(store) if store.position() == LogPosition::default() => 0,
            Ok(store) => {
                drop(store);
                check_prefix(dir.path(), 0)
            }
            Err(error) => panic!("round {round}: {error}"),
        };
        shorter += u64::from(reached < 1500);
        // And it is a store like any other from there on.
        let store = FjallStore::open(dir.path(), StoreOptions::default()).unwrap();
        store.write(WriteBatch::at(at(reached + 1))).unwrap();
        drop(store);
        assert_eq!(
            FjallStore::open(dir.path(), StoreOptions::default()).unwrap().position(),
            at(reached + 1)
        );
    }
    assert!(shorter >= 35, "damage was found in {shorter} of 40");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
