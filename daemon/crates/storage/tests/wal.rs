//! What goes into the log comes out of it again, over restarts, segments and snapshots.

mod wal_support;

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use storage::wal::{Disk, Inspected, SystemDisk, Wal, WalError, WalMetadata, WalOptions, inspect};
use types::{ConfState, EntryKind, HardState, LogIndex, MemberId};
use wal_support::*;

#[test]
fn a_new_log_is_empty_and_says_whose_it_is() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    assert!(!Wal::exists(&dir).unwrap());
    drop(Wal::create(&dir, &ME, small_segments()).unwrap());
    assert!(Wal::exists(&dir).unwrap());

    let contents = open(&dir).unwrap();
    assert_eq!(contents.metadata, ME);
    assert_eq!((contents.snapshot, contents.hard_state), (at(0, 0), HardState::default()));
    assert_eq!((contents.conf_state, contents.entries.len()), (ConfState::default(), 0));
    assert_eq!(contents.repaired, None);

    let again = Wal::create(&dir, &ME, small_segments());
    assert!(matches!(again, Err(WalError::Exists { .. })), "{again:?}");
}

#[test]
fn entries_and_state_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    let mut written = entries(1, 1..=3);
    written[0].kind = EntryKind::ConfChange;
    written[1].data = bytes::Bytes::new();
    written[2].data = vec![0; 5000].into();
    wal.append(&written, Some(&state(1, 2))).unwrap();
    wal.sync().unwrap();
    drop(wal);

    let (mut wal, contents) = Wal::open(&dir, small_segments()).unwrap();
    assert_eq!(contents.entries, written);
    assert_eq!(contents.hard_state, state(1, 2));
    assert_eq!((wal.last_index(), wal.hard_state()), (LogIndex(3), state(1, 2)));

    wal.append(&entries(2, 4..=4), Some(&state(2, 3))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    written.extend(entries(2, 4..=4));
    let contents = open(&dir).unwrap();
    assert_eq!((contents.entries, contents.hard_state), (written, state(2, 3)));
}

#[test]
fn later_entries_replace_an_uncommitted_tail() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=6), Some(&state(1, 3))).unwrap();
    wal.append(&entries(2, 4..=5), Some(&state(2, 3))).unwrap();
    wal.sync().unwrap();
    assert_eq!(wal.last_index(), LogIndex(5));
    drop(wal);

    let mut expected = entries(1, 1..=3);
    expected.extend(entries(2, 4..=5));
    assert_eq!(open(&dir).unwrap().entries, expected);
}

#[test]
fn a_log_spans_many_segments() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    let mut expected = Vec::new();
    for index in 1..=200 {
        let group = [entry(1, index, vec![index as u8; 1000])];
        wal.append(&group, Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
        expected.extend(group);
    }
    let files = segments(&dir);
    assert!(files.len() > 10, "{files:?}");
    let name = files[1].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("0000000000000001-"), "{name}");
    for closed in &files[..files.len() - 1] {
        let len = closed.metadata().unwrap().len();
        assert!(len <= 16 * 1024 && len % 8 == 0, "a closed segment is as long as its data, not {len}");
    }
    drop(wal);
    let contents = open(&dir).unwrap();
    assert_eq!((contents.entries, contents.hard_state), (expected, state(1, 199)));
}

#[test]
fn a_group_larger_than_a_segment_gets_one_to_itself() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    let mut expected = entries(1, 1..=1);
    wal.append(&expected, None).unwrap();
    wal.sync().unwrap();
    // Above the buffer's bound too, so it is written in parts.
    let large: Vec<_> = (2..=7).map(|index| entry(1, index, vec![index as u8; 1 << 20])).collect();
    wal.append(&large, Some(&state(1, 1))).unwrap();
    wal.sync().unwrap();
    wal.append(&entries(1, 8..=8), Some(&state(1, 7))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(segments(&dir).len(), 3);
    expected.extend(large);
    expected.extend(entries(1, 8..=8));
    assert_eq!(open(&dir).unwrap().entries, expected);
}

/// The background thread prepares segments while the log runs through them; whichever way the race goes, the bytes are right.
#[test]
fn segments_prepared_in_the_background_hold_the_same_log() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let options = WalOptions { segment_bytes: 3 << 20, segments_kept: 0, ..WalOptions::default() };
    let mut wal = Wal::create(&dir, &ME, options.clone()).unwrap();
    let mut random = Random(1);
    let mut expected = Vec::new();
    for index in 1..=1200 {
        let len = random.below(40_000);
        let group = [entry(1, index, random.bytes(len))];
        wal.append(&group, Some(&state(1, index - 1))).unwrap();
        if index % 3 == 0 {
            wal.sync().unwrap();
        }
        expected.extend(group);
        if index % 400 == 0 {
            drop(wal);
            let (reopened, contents) = Wal::open(&dir, options.clone()).unwrap();
            assert!(contents.entries == expected, "the log at {index} is what was written");
            wal = reopened;
        }
    }
    assert!(segments(&dir).len() > 5);
    drop(wal);
    let left: Vec<_> =
        contents_of(&dir).into_keys().filter(|path| path.extension().unwrap() != "wal").collect();
    assert!(left.is_empty(), "no spare stays behind: {left:?}");
}

#[test]
fn reading_begins_at_the_newest_snapshot_that_is_committed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=10), Some(&state(1, 10))).unwrap();
    let conf = ConfState {
        learners: vec![MemberId(9)],
        learners_next: vec![MemberId(3)],
        voters_outgoing: vec![MemberId(4)],
        auto_leave: true,
        ..voters(&[1, 2, u64::MAX])
    };
    wal.append_snapshot(at(1, 4), &voters(&[1])).unwrap();
    wal.append_snapshot(at(1, 8), &conf).unwrap();
    wal.append_snapshot(at(1, 11), &voters(&[5])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let contents = open(&dir).unwrap();
    assert_eq!((contents.snapshot, contents.conf_state), (at(1, 8), conf));
    assert_eq!(contents.entries, entries(1, 9..=10));
}

/// A snapshot from the leader: the store is replaced first, then the log says so. A crash in between leaves the old log, a crash
/// after it the new position, and never a log that begins where the store is not.
#[test]
fn log_and_snapshot_in_step() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=50), Some(&state(1, 40))).unwrap();
    wal.sync().unwrap();

    wal.append_snapshot(at(3, 100), &voters(&[1, 2, 3])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (mut wal, contents) = Wal::open(&dir, small_segments()).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len()), (at(0, 0), 50), "not before the commit says so");

    // What the next start does, or the same process when nothing crashed.
    wal.append_snapshot(at(3, 100), &voters(&[1, 2, 3])).unwrap();
    wal.append(&[], Some(&state(3, 100))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (mut wal, contents) = Wal::open(&dir, small_segments()).unwrap();
    assert_eq!((contents.snapshot, contents.hard_state), (at(3, 100), state(3, 100)));
    assert_eq!((contents.entries.len(), wal.last_index()), (0, LogIndex(100)));

    wal.append(&entries(3, 101..=103), Some(&state(3, 102))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(&dir).unwrap().entries, entries(3, 101..=103));
}

/// The leader's snapshot replaces a log with another history: entries of the old one behind the snapshot must not come back, or
/// this member would vote with a last term that is too low.
#[test]
fn a_received_snapshot_drops_the_old_tail_for_good() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=105), Some(&state(1, 90))).unwrap();
    wal.sync().unwrap();
    wal.append_snapshot(at(3, 100), &voters(&[1])).unwrap();
    wal.append(&[], Some(&state(3, 100))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (mut wal, contents) = Wal::open(&dir, small_segments()).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len()), (at(3, 100), 0));

    wal.append(&entries(3, 101..=102), None).unwrap();
    wal.append_snapshot(at(3, 100), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(&dir).unwrap().entries, entries(3, 101..=102), "a repeated record drops nothing");
}

/// Entries that were replaced from below the snapshot on are gone, also those behind it that nothing was written over.
#[test]
fn a_tail_replaced_from_below_the_snapshot_stays_gone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=9), Some(&state(1, 4))).unwrap();
    wal.append(&entries(2, 5..=6), Some(&state(2, 6))).unwrap();
    wal.append_snapshot(at(2, 6), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (wal, contents) = Wal::open(&dir, small_segments()).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len(), wal.last_index()), (at(2, 6), 0, LogIndex(6)));
}

#[test]
fn own_snapshots_keep_the_tail_behind_them() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    for index in 1..=60 {
        wal.append(&[entry(1, index, vec![1; 1000])], Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
    }
    wal.append_snapshot(at(1, 20), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let contents = open(&dir).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len()), (at(1, 20), 40));
    assert_eq!(contents.entries[0].index, LogIndex(21));
}

#[test]
fn two_snapshots_in_a_short_time() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, WalOptions { segments_kept: 1, ..small_segments() }).unwrap();
    for index in 1..=60 {
        wal.append(&[entry(1, index, vec![1; 1000])], Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
    }
    wal.append_snapshot(at(1, 30), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    // The second is not synced yet: the first is what a restart would need.
    wal.append_snapshot(at(1, 50), &voters(&[1, 2])).unwrap();
    wal.release_to(LogIndex(50)).unwrap();
    drop(wal);
    let contents = open(&dir).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len()), (at(1, 50), 10));
    let oldest = segments(&dir)[0].file_name().unwrap().to_str().unwrap()[17..33].to_owned();
    let oldest = u64::from_str_radix(&oldest, 16).unwrap();
    assert!((2..=30).contains(&oldest), "the log from 30 on is still there, it begins at {oldest}");
}

#[test]
fn released_segments_are_deleted_and_others_are_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let options = WalOptions { segments_kept: 2, ..small_segments() };
    let mut wal = Wal::create(&dir, &ME, options.clone()).unwrap();
    for index in 1..=100 {
        wal.append(&[entry(1, index, vec![1; 1000])], Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
    }
    let before = segments(&dir);
    wal.release_to(LogIndex(99)).unwrap();
    wal.append_snapshot(at(1, 80), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    assert_eq!(segments(&dir), before, "without a snapshot nothing is released, whatever is asked");

    wal.release_to(LogIndex(50)).unwrap();
    // Closing the log waits for the thread that deletes.
    drop(wal);
    let (mut wal, contents) = Wal::open(&dir, options.clone()).unwrap();
    assert_eq!(contents.entries.len(), 20);
    wal.release_to(LogIndex(u64::MAX)).unwrap();
    drop(wal);
    let after = segments(&dir);
    assert!(after.len() < before.len() && after.len() >= 2, "{} became {}", before.len(), after.len());
    assert_eq!(after, before[before.len() - after.len()..]);
    assert_eq!(open(&dir).unwrap().entries.len(), 20);
}

/// A segment before the snapshot is not read: here it is rubbish, and nobody minds.
#[test]
fn start_reads_only_the_needed_log() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    for index in 1..=100 {
        wal.append(&[entry(1, index, vec![1; 1000])], Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
    }
    wal.append_snapshot(at(1, 95), &voters(&[1])).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let files = segments(&dir);
    for unneeded in &files[..files.len() - 2] {
        std::fs::write(unneeded, b"not a log").unwrap();
    }
    let contents = open(&dir).unwrap();
    assert_eq!((contents.snapshot, contents.entries.len()), (at(1, 95), 5));

    std::fs::write(&files[files.len() - 1], b"not a log").unwrap();
    assert!(open(&dir).is_err(), "the needed part is read");
}

#[test]
fn a_log_in_use_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    assert!(matches!(open(&dir), Err(WalError::Locked { .. })));
    drop(wal);
    open(&dir).unwrap();
}

/// Power loss on a preallocated file: data up to some point, zeros from there.
#[test]
fn zero_tail_after_power_loss() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=5), Some(&state(1, 4))).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let file = &segments(&dir)[0];
    for len in [16 * 1024, 64 * 1024, 16 * 1024 + 3] {
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
        let contents = open(&dir).unwrap();
        assert_eq!((contents.entries, contents.repaired), (entries(1, 1..=5), None), "{len} bytes");
    }
}

/// A crash at each step of a log's creation: the next creation starts over, unless the log was complete, and then it opens.
#[test]
fn killed_right_after_log_creation() {
    let (mut complete, mut absent) = (0, 0);
    for operations in 0.. {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("wal");
        let created = Wal::create(&dir, &ME, with_disk(Arc::new(FaultyDisk::after(operations, broken_disk))));
        let done = created.is_ok();
        drop(created);
        if Wal::exists(&dir).unwrap() {
            complete += 1;
        } else {
            absent += 1;
            drop(Wal::create(&dir, &ME, small_segments()).unwrap());
        }
        let contents = open(&dir).unwrap();
        assert_eq!((contents.metadata, contents.entries.len()), (ME, 0), "after {operations} operations");
        assert!(!root.path().join("wal.tmp").exists());
        if done {
            break;
        }
    }
    assert!(absent > 3 && complete > 1, "{absent} creations left nothing, {complete} a log");
}

#[test]
fn a_log_can_be_made_in_a_directory_that_exists() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("lost+found"), b"").unwrap();
    std::fs::write(root.path().join("new.tmp"), b"left by a crash").unwrap();
    drop(Wal::create(root.path(), &ME, small_segments()).unwrap());
    assert_eq!(open(root.path()).unwrap().metadata, ME);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open(empty.path()), Err(WalError::Missing { .. })));
}

/// Operations of the real disk, in order.
#[derive(Debug, Default)]
struct Journal(Mutex<Vec<&'static str>>);

impl Journal {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn note(&self, operation: &'static str) {
        self.0.lock().unwrap().push(operation);
    }
}

impl Disk for Journal {
    fn write_at(&self, file: &std::fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.note("write");
        SystemDisk.write_at(file, bytes, offset)
    }

    fn sync(&self, file: &std::fs::File) -> std::io::Result<()> {
        self.note("sync");
        SystemDisk.sync(file)
    }

    fn sync_dir(&self, dir: &std::path::Path) -> std::io::Result<()> {
        self.note("sync_dir");
        SystemDisk.sync_dir(dir)
    }

    fn reserve(&self, file: &std::fs::File, len: u64) -> std::io::Result<()> {
        SystemDisk.reserve(file, len)
    }

    fn set_len(&self, file: &std::fs::File, len: u64) -> std::io::Result<()> {
        self.note("set_len");
        SystemDisk.set_len(file, len)
    }

    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
        self.note("rename");
        SystemDisk.rename(from, to)
    }
}

/// The log's part of it: when `sync` has returned, one write and one sync have happened, in this order.
#[test]
fn single_node_acks_only_what_is_synced() {
    let root = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::default());
    let mut wal = Wal::create(&root.path().join("wal"), &ME, with_disk(journal.clone())).unwrap();
    assert_eq!(journal.take(), ["write", "sync", "rename", "sync_dir", "rename", "sync_dir"]);

    wal.append(&entries(1, 1..=3), Some(&state(1, 0))).unwrap();
    wal.append(&entries(1, 4..=6), Some(&state(1, 3))).unwrap();
    assert_eq!(journal.take(), [""; 0], "a group is collected first");
    wal.sync().unwrap();
    assert_eq!(journal.take(), ["write", "sync"]);
    wal.sync().unwrap();
    assert_eq!(journal.take(), [""; 0], "nothing to do");

    wal.append(&[], Some(&state(1, 6))).unwrap();
    wal.flush().unwrap();
    assert_eq!(journal.take(), ["write"], "a commit alone is written and not synced");
    wal.sync().unwrap();
    assert_eq!(journal.take(), ["sync"]);

    // A new segment: the old one is durable before the new one has its name.
    wal.append(&[], Some(&state(2, 6))).unwrap();
    wal.append(&[entry(2, 7, vec![1; 16 * 1024])], None).unwrap();
    assert_eq!(journal.take(), ["write", "sync", "set_len", "write", "sync", "rename", "sync_dir"]);
}

#[test]
fn no_fsync_still_writes_out() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let journal = Arc::new(Journal::default());
    let options = WalOptions { unsafe_no_fsync: true, ..with_disk(journal.clone()) };
    let mut wal = Wal::create(&dir, &ME, options).unwrap();
    wal.append(&entries(1, 1..=9), Some(&state(1, 5))).unwrap();
    wal.sync().unwrap();
    let operations = journal.take();
    assert!(operations.contains(&"write") && !operations.contains(&"sync"), "{operations:?}");

    // As another process sees it, while this one has not closed anything.
    let mut seen = Vec::new();
    let damage = inspect(&dir, &mut |record| {
        if let Inspected::Entry(entry) = record.record {
            seen.push(entry);
        }
    });
    assert_eq!((damage.unwrap(), seen), (None, entries(1, 1..=9)));
    drop(wal);
    assert_eq!(open(&dir).unwrap().entries, entries(1, 1..=9));
}

/// Closed segments too: synced writes that follow must not stand behind a gap.
#[test]
fn what_was_written_without_fsync_is_synced_by_the_next_open() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let journal = Arc::new(Journal::default());
    let options = WalOptions { unsafe_no_fsync: true, ..with_disk(journal.clone()) };
    let mut wal = Wal::create(&dir, &ME, options).unwrap();
    for index in 1..=4 {
        wal.append(&[entry(1, index, vec![1; 16 * 1024])], Some(&state(1, index))).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    let segments = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "wal"))
        .count();
    assert!(segments > 2, "{segments}");
    assert!(!journal.take().contains(&"sync"));
    drop(Wal::open(&dir, with_disk(journal.clone())).unwrap());
    let syncs = journal.take().iter().filter(|operation| **operation == "sync").count();
    assert!(syncs >= segments, "{syncs} syncs for {segments} segments");
}

#[test]
fn the_file_begins_as_etcds_does() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let mut wal = Wal::create(&dir, &ME, WalOptions { zero_ahead: false, ..WalOptions::default() }).unwrap();
    wal.append(&entries(1, 1..=1), Some(&state(1, 1))).unwrap();
    wal.sync().unwrap();
    let file = std::fs::File::open(&segments(&dir)[0]).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 64_000_000);
    let mut head = [0; 24];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head[..16], [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0]);

    let mut kinds = Vec::new();
    let damage = inspect(&dir, &mut |record| {
        kinds.push(match record.record {
            Inspected::Metadata(metadata) => {
                assert_eq!((metadata, record.offset), (ME, 16));
                "metadata"
            }
            Inspected::Crc(_) => "crc",
            Inspected::Snapshot(..) => "snapshot",
            Inspected::Entry(_) => "entry",
            Inspected::State(_) => "state",
        });
    });
    assert_eq!(damage.unwrap(), None);
    assert_eq!(kinds, ["crc", "metadata", "snapshot", "crc", "entry", "state"]);
}

#[test]
#[should_panic(expected = "continues the log")]
fn a_gap_never_reaches_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(&root.path().join("wal"), &ME, small_segments()).unwrap();
    let _ = wal.append(&entries(1, 2..=2), None);
}

#[test]
#[should_panic(expected = "lies behind the commit")]
fn a_committed_entry_is_never_replaced() {
    let root = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(&root.path().join("wal"), &ME, small_segments()).unwrap();
    wal.append(&entries(1, 1..=2), Some(&state(1, 2))).unwrap();
    let _ = wal.append(&entries(2, 2..=2), None);
}

/// The directory's own number is part of the record that every segment begins with, and a log that an etcd began never gets one.
#[test]
fn every_segment_names_the_directory_it_was_made_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let uuid = Some(identity::Unique::for_test(0x1234_5678_9abc_def0_1234_5678_9abc_def0));
    for (name, dir_uuid) in [("ours", uuid), ("theirs", None)] {
        let path = dir.path().join(name);
        let metadata = WalMetadata { dir_uuid, ..ME };
        let mut wal = Wal::create(&path, &metadata, small_segments()).unwrap();
        for index in 1..=40 {
            let mut written = entries(1, index..=index);
            written[0].data = vec![7; 5000].into();
            wal.append(&written, None).unwrap();
            wal.sync().unwrap();
        }
        drop(wal);
        let segments = std::fs::read_dir(&path).expect("list").count();
        assert!(segments > 2, "several segments, not {segments}");
        let contents = open(&path).unwrap();
        assert_eq!((contents.metadata, contents.entries.len()), (metadata, 40));
    }
}
