//! Segments as files: their names, finding them, and the lock that says "in use".
//!
//! The lock is an open-file-description lock over the whole file, the one etcd takes, so that an etcd still running on a directory
//! is noticed by us and we by it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use types::LogIndex;

use super::error::WalError;

/// Only the owner reads a log: it holds every value ever put.
const FILE_MODE: u32 = 0o600;

/// A segment's name: its number in the sequence, and the lowest log index that may be new in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub(super) sequence: u64,
    pub(super) index: LogIndex,
}

impl SegmentName {
    pub(super) fn file_name(self) -> String {
        format!("{:016x}-{:016x}.wal", self.sequence, self.index.0)
    }

    fn parse(name: &str) -> Option<SegmentName> {
        let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
        let number = |text: &str| {
            let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        Some(SegmentName { sequence: number(sequence)?, index: LogIndex(number(index)?) })
    }

    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.file_name())
    }
}

/// The segments of `dir` in order. Other files are not ours to judge and are passed over; a missing directory has none.
pub(super) fn list(dir: &Path) -> Result<Vec<SegmentName>, WalError> {
    let failed = |source| WalError::io("list", dir, source);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        match name.to_str().and_then(SegmentName::parse) {
            Some(name) => names.push(name),
            None if name.to_string_lossy().ends_with(".wal") => {
                tracing::warn!(file = %dir.join(&name).display(), "passed over a file that is not named like a segment");
            }
            None => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn create_file(path: &Path) -> Result<File, WalError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
    options.open(path).map_err(|source| WalError::io("create", path, source))
}

/// Opens for reading and writing, and takes the lock.
pub(super) fn open_locked(path: &Path) -> Result<File, WalError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| WalError::io("open", path, source))?;
    lock(&file, path)?;
    Ok(file)
}

/// Takes the lock without waiting. It is released when the last handle of this opening is closed.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), WalError> {
    let whole_file = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(WalError::Locked { path: path.to_owned() }),
        // No such locks here: the older kind at least keeps two of us apart.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => match file.try_lock() {
            Ok(()) => Ok(()),
            Err(std::fs::TryLockError::WouldBlock) => Err(WalError::Locked { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => Err(WalError::io("lock", path, source)),
        },
        Err(errno) => Err(WalError::io("lock", path, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_etcds() {
        let name = SegmentName { sequence: 1, index: LogIndex(0x2a) };
        assert_eq!(name.file_name(), "0000000000000001-000000000000002a.wal");
        assert_eq!(SegmentName::parse(&name.file_name()), Some(name));
        for other in [
            "0.tmp",
            "1-2.wal",
            "0000000000000001-000000000000002a.wal.broken",
            "+000000000000001-000000000000002a.wal",
        ] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }
}
