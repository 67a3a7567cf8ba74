//! The disk operations on which acknowledged data depends, as a trait, so that a test can decorate the real ones with faults.
//!
//! Not here: reading, and the background zero-filling, whose failures only cost speed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// What the log does to a disk. An implementation must not return before the operation is done.
pub trait Disk: fmt::Debug + Send + Sync {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Data and what is needed to read it back, including the file's length.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes creations and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Reserves space so that the file is at least `len` bytes long and reads as zeros behind its data.
    fn reserve(&self, file: &File, len: u64) -> io::Result<()>;

    fn set_len(&self, file: &File, len: u64) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn reserve(&self, file: &File, len: u64) -> io::Result<()> {
        reserve(file, len)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
}

/// `fallocate`, or a sparse extension where the file system has none.
pub(super) fn reserve(file: &File, len: u64) -> io::Result<()> {
    let bytes = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                return if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) };
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
