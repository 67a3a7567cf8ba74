//! What the tests of the log share: short ways to write entries, a seeded source of randomness, and a disk with faults.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use storage::wal::{Disk, SystemDisk, Wal, WalContents, WalError, WalMetadata, WalOptions};
use types::{ClusterId, ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

pub const ME: WalMetadata =
    WalMetadata { member_id: MemberId(0x8e9e05c52164694d), cluster_id: ClusterId(7), dir_uuid: None };

/// Segments small enough that a test fills several, and no background writes, so that files are a function of the calls.
pub fn small_segments() -> WalOptions {
    WalOptions { segment_bytes: 16 * 1024, zero_ahead: false, ..WalOptions::default() }
}

pub fn with_disk(disk: Arc<dyn Disk>) -> WalOptions {
    WalOptions { disk, ..small_segments() }
}

pub fn entry(term: u64, index: u64, data: impl AsRef<[u8]>) -> Entry {
    Entry {
        term: Term(term),
        index: LogIndex(index),
        kind: EntryKind::Normal,
        data: Bytes::copy_from_slice(data.as_ref()),
    }
}

pub fn entries(term: u64, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index, format!("value {index} of term {term}"))).collect()
}

pub fn state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: ME.member_id, commit: LogIndex(commit) }
}

pub fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term(term), index: LogIndex(index) }
}

pub fn voters(ids: &[u64]) -> ConfState {
    ConfState { voters: ids.iter().copied().map(MemberId).collect(), ..ConfState::default() }
}

pub fn open(dir: &Path) -> Result<WalContents, WalError> {
    Wal::open(dir, with_disk(Arc::new(FaultyDisk::never()))).map(|(_, contents)| contents)
}

/// The segments in order.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    paths.sort();
    paths
}

/// All files of a directory with their contents.
pub fn contents_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect()
}

pub fn copy_dir(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for path in contents_of(from).keys() {
        std::fs::copy(path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// splitmix64: small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The real disk, but the nth operation and all later ones fail. Syncing is only pretended: it matters to a test when it is asked
/// for, and the files outlive the process either way.
#[derive(Debug)]
pub struct FaultyDisk {
    left: AtomicUsize,
    error: fn() -> io::Error,
    /// Which operations count and fail: all, or those of this name.
    only: Option<&'static str>,
}

impl FaultyDisk {
    /// Never fails, and is fast.
    pub fn never() -> FaultyDisk {
        FaultyDisk::after(usize::MAX, broken_disk)
    }

    pub fn after(operations: usize, error: fn() -> io::Error) -> FaultyDisk {
        FaultyDisk { left: AtomicUsize::new(operations), error, only: None }
    }

    pub fn only(name: &'static str, after: usize, error: fn() -> io::Error) -> FaultyDisk {
        FaultyDisk { only: Some(name), ..FaultyDisk::after(after, error) }
    }

    fn step<T>(&self, name: &str, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.only.is_some_and(|only| only != name) {
            return operation();
        }
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() { Err((self.error)()) } else { operation() }
    }
}

impl Disk for FaultyDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step("write", || SystemDisk.write_at(file, bytes, offset))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step("sync", || file.metadata().map(drop))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step("sync_dir", || dir.metadata().map(drop))
    }

    fn reserve(&self, file: &File, len: u64) -> io::Result<()> {
        self.step("reserve", || SystemDisk.reserve(file, len))
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.step("set_len", || SystemDisk.set_len(file, len))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", || SystemDisk.rename(from, to))
    }
}

pub fn no_space() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::ENOSPC)
}

pub fn broken_disk() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::EIO)
}
