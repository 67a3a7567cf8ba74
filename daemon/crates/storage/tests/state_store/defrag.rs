//! Giving space back while everything else goes on.

use std::path::PathBuf;

use storage::snapshot;
use storage::state_store::clean_unused;

use super::common::{Everything, everything, plausible_batch};
use super::*;

/// Set for the child that is to be killed while it merges.
pub const RECLAIMS: &str = "CAIRN_TEST_RECLAIMS";

fn content(store: &FjallStore) -> Everything {
    everything(&store.view().unwrap())
}

/// Revisions `1..=last`, of which only every fourth is kept.
fn thinned(root: &Path, last: u64) -> FjallStore {
    let store = FjallStore::open(root, small()).unwrap();
    for index in 1..=last {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![index as u8; 2000]));
        batch.put(Table::Lease, "newest", index.to_string());
        store.write(batch).unwrap();
    }
    let mut batch = WriteBatch::at(at(last + 1));
    (1..=last as i64).filter(|main| main % 4 > 0).for_each(|main| batch.delete_row(id(main, 0), false));
    store.write(batch).unwrap();
    store
}

/// AP05 and OP04: readers of the old state, readers of the new one and a writer go on beside it, and nobody waits for anybody.
#[test]
fn defrag_does_not_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let store = thinned(dir.path(), 8000);
    let before = content(&store);
    let pinned = store.view().unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 8002.. {
                let mut batch = WriteBatch::at(at(index));
                batch.put_row(id(index as i64, 0), row("later"));
                store.write(batch).unwrap();
                // Beside it, and also all the time that it takes.
                if ended.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                assert_eq!(all_rows(&store)[..before.rows.len()], before.rows);
            }
        });
        for _ in 0..2 {
            store.reclaim().unwrap();
        }
        ended.store(true, Ordering::Release);
    });
    assert_eq!(everything(&pinned), before);
    drop(pinned);
    let after = content(&store);
    assert_eq!(after.rows[..before.rows.len()], before.rows);
    assert!(after.rows[before.rows.len()..].iter().all(|(_, row)| row.value == "later"));
    drop(store);
    assert_eq!(content(&FjallStore::open(dir.path(), small()).unwrap()), after);
}

/// OP04: it neither waits for a reader that stays, nor takes anything away from it; the space comes back once it is gone.
#[test]
fn defrag_not_blocked_by_readers() {
    let dir = tempfile::tempdir().unwrap();
    let store = thinned(dir.path(), 4000);
    let before = content(&store);
    let reader = store.view().unwrap();
    store.reclaim().unwrap();
    assert_eq!(everything(&reader), before);
    drop(reader);
    store.reclaim().unwrap();
    assert_eq!(content(&store), before);
    assert!(store.size().total_bytes < 4_000_000, "a quarter of 8 MB is left: {:?}", store.size());
}

/// OP02: flushes, journals and what is durable are as before.
#[test]
fn defrag_keeps_options() {
    let dir = tempfile::tempdir().unwrap();
    let store = thinned(dir.path(), 2000);
    store.reclaim().unwrap();
    for index in 2002..=12_000 {
        let mut batch = WriteBatch::at(at(index));
        batch.put_row(id(index as i64, 0), row(vec![7; 1000]));
        store.write(batch).unwrap();
    }
    assert_eq!(store.persist().unwrap(), at(12_000));
    assert!(store.journal_count() <= 3, "memtables are flushed at the size that was asked for");
    drop(store);
    let store = FjallStore::open(dir.path(), small()).unwrap();
    assert_eq!(store.position(), at(12_000));
    assert_eq!(all_rows(&store).len(), 500 + 9999);
}

/// OP03: it fails, says so, and leaves nothing; later it succeeds.
#[test]
fn defrag_error_path() {
    let dir = tempfile::tempdir().unwrap();
    let store = thinned(dir.path(), 4000);
    store.reclaim().unwrap();
    let before = content(&store);
    // fjall has one such directory for its own keyspace, too.
    let mut found = Vec::new();
    find(dir.path(), "tables", &mut found);
    let bytes = |path: &PathBuf| -> u64 {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let tables = found.into_iter().max_by_key(bytes).expect("the tables are in a directory");
    let files = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&tables).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let there = files();
    let aside = tables.with_extension("aside");
    std::fs::rename(&tables, &aside).unwrap();
    store.reclaim().expect_err("nothing can be written");
    std::fs::rename(&aside, &tables).unwrap();
    assert_eq!(files(), there);
    let prefix = dir.path().to_owned();
    let open_and_gone = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(&prefix) && target.to_string_lossy().ends_with(" (deleted)"));
    assert_eq!(open_and_gone.count(), 0);

    let mut batch = WriteBatch::at(at(4002));
    batch.put_row(id(4002, 0), row("goes on"));
    store.write(batch).unwrap();
    store.reclaim().unwrap();
    let after = content(&store);
    assert_eq!(after.rows[..before.rows.len()], before.rows);
    assert_eq!((after.rows.len(), store.persist().unwrap()), (before.rows.len() + 1, at(4002)));
}

fn find(root: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            find(&entry.path(), name, found);
            found.extend((entry.file_name() == name).then(|| entry.path()));
        }
    }
}

/// AP04: killed while it merges what it has, again and again, a store is at a whole batch like any other.
#[test]
fn crash_in_defrag_keeps_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for _ in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_until_killed", "--exact", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .env(RECLAIMS, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (mut durable, mut merges) = (0, 0);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(index) = line.strip_prefix("durable ") {
                durable = index.parse().unwrap();
            }
            merges += u32::from(line == "reclaimed");
            // Another one has begun by now, or will in a moment.
            if merges > 0 && durable > before {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        before = check_prefix(dir.path(), durable);
    }
}

/// AP06: a snapshot is installed beside the store that is being merged; the one never touches the other's files.
#[test]
fn snapshot_install_excludes_defrag() {
    let sender = tempfile::tempdir().unwrap();
    let source = FjallStore::open(sender.path(), small()).unwrap();
    let mut random = Random(seed());
    for main in 2..1500 {
        source.write(plausible_batch(&mut random, main, 300)).unwrap();
    }
    let view = source.view().unwrap();
    let sent = everything(&view);
    let mut file = snapshot::write(&view, sender.path()).unwrap().file;
    let path = sender.path().join("db");
    std::io::copy(&mut file, &mut std::fs::File::create(&path).unwrap()).unwrap();

    let receiver = tempfile::tempdir().unwrap();
    let old = thinned(receiver.path(), 4000);
    let before = content(&old);
    let installed = AtomicBool::new(false);
    let new = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !installed.load(Ordering::Acquire) {
                old.reclaim().unwrap();
            }
        });
        snapshot::install(receiver.path(), &path, sent.position, &small()).unwrap();
        let new = FjallStore::open(receiver.path(), small()).unwrap();
        installed.store(true, Ordering::Release);
        new
    });
    assert_eq!((content(&old), content(&new)), (before, sent.clone()));
    clean_unused(receiver.path()).unwrap();
    let states = || {
        let names = std::fs::read_dir(receiver.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("gen-")).count()
    };
    assert_eq!(states(), 2, "who still reads the old one keeps it");
    drop(old);
    clean_unused(receiver.path()).unwrap();
    assert_eq!(states(), 1);
    new.reclaim().unwrap();
    assert_eq!(content(&new), sent);
}
