//! A disk that fails while the log is written: nothing is acknowledged after it, and everything acknowledged before is there at the
//! next start.

mod wal_support;

use std::path::Path;
use std::sync::Arc;

use storage::wal::{Wal, WalError};
use types::LogIndex;
use wal_support::*;

/// Appends and syncs entries until the disk fails. Returns the last acknowledged index and the failure.
fn write_until_failure(wal: &mut Wal) -> (u64, Option<WalError>) {
    let mut acknowledged = wal.last_index().0;
    for index in acknowledged + 1..=60 {
        let group = [entry(1, index, vec![index as u8; 1000])];
        let written = wal.append(&group, Some(&state(1, index - 1))).and_then(|()| wal.sync());
        if let Err(error) = written {
            return (acknowledged, Some(error));
        }
        acknowledged = index;
    }
    (acknowledged, None)
}

fn acknowledged_is_there(dir: &Path, acknowledged: u64) {
    let contents = open(dir).unwrap();
    let found = contents.entries.len() as u64;
    assert!(found >= acknowledged, "{acknowledged} acknowledged, {found} found");
    for (at, entry) in contents.entries.iter().enumerate() {
        assert_eq!(entry.index, LogIndex(at as u64 + 1));
        assert!(entry.data.iter().all(|byte| *byte == entry.index.0 as u8));
    }
}

#[test]
fn a_failed_sync_is_the_answer_to_everything_after_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let disk = Arc::new(FaultyDisk::only("sync", 3, broken_disk));
    let mut wal = Wal::create(&dir, &ME, with_disk(disk)).unwrap();
    let (acknowledged, error) = write_until_failure(&mut wal);
    let error = error.unwrap();
    assert_eq!(acknowledged, 2);
    assert!(matches!(error, WalError::Io { action: "sync", .. }) && !error.is_no_space(), "{error:?}");

    let again = [
        wal.append(&[], Some(&state(1, 1))),
        wal.append_snapshot(at(1, 1), &voters(&[1])),
        wal.flush(),
        wal.sync(),
        wal.release_to(LogIndex(1)),
    ];
    for result in again {
        assert_eq!(result.unwrap_err().to_string(), error.to_string(), "the same cause for ever");
    }
    drop(wal);
    acknowledged_is_there(&dir, acknowledged);
}

/// The disk fails at the nth operation, for every n of a run over several segments.
#[test]
fn failure_at_every_operation_loses_nothing_acknowledged() {
    for operations in 6.. {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("wal");
        let disk = Arc::new(FaultyDisk::after(operations, broken_disk));
        let Ok(mut wal) = Wal::create(&dir, &ME, with_disk(disk)) else { continue };
        let (acknowledged, error) = write_until_failure(&mut wal);
        drop(wal);
        acknowledged_is_there(&dir, acknowledged);

        // The member is started again and goes on.
        let disk = Arc::new(FaultyDisk::never());
        let (mut wal, _) = Wal::open(&dir, with_disk(disk)).unwrap();
        let (acknowledged, second) = write_until_failure(&mut wal);
        assert!(acknowledged == 60 && second.is_none());
        drop(wal);
        acknowledged_is_there(&dir, 60);
        if error.is_none() {
            assert!(operations > 100, "the run takes many operations");
            return;
        }
    }
}

#[test]
fn full_disk_then_restart() {
    for operation in ["write", "reserve"] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("wal");
        let disk = Arc::new(FaultyDisk::only(operation, 3, no_space));
        let mut wal = Wal::create(&dir, &ME, with_disk(disk)).unwrap();
        let (acknowledged, error) = write_until_failure(&mut wal);
        let error = error.unwrap();
        assert!(error.is_no_space(), "{error}");
        assert!(error.to_string().contains("no space left"), "{error}");
        drop(wal);

        // The disk is still full: reading back works all the same.
        let full = Arc::new(FaultyDisk::only("reserve", 0, no_space));
        let (_wal, contents) = Wal::open(&dir, with_disk(full)).unwrap();
        assert!(contents.entries.len() as u64 >= acknowledged);
    }
}

#[test]
fn a_torn_tail_on_a_full_disk_is_cut_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=5), None).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let bytes = std::fs::read(&segments(&dir)[0]).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    std::fs::write(&segments(&dir)[0], &bytes[..end - 10]).unwrap();
    let full = Arc::new(FaultyDisk::only("reserve", 0, no_space));
    let (mut wal, contents) = Wal::open(&dir, with_disk(full)).unwrap();
    assert!(contents.repaired.is_some());
    let next = wal.last_index().next().0;
    wal.append(&entries(1, next..=next), None).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(&dir).unwrap().entries, entries(1, 1..=next));
}
