//! How much of a disk a file beside the log and the state may take. A member whose disk is full ends, so whatever can be made another time
//! stops before that: a backup, a snapshot from a peer.

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

/// Free bytes that stay: two segments of the log, and as much again for what the state store writes meanwhile.
const KEPT_BYTES: u64 = 256 << 20;

/// Between two looks.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

/// Free bytes on the file system, for whoever is not root.
fn free(directory: &Path) -> io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(directory)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

type Ask<'a> = dyn Fn() -> io::Result<u64> + Send + 'a;

/// The room on one file system for one file.
pub struct Room<'a> {
    ask: Box<Ask<'a>>,
    kept: u64,
    unseen: u64,
}

impl Room<'_> {
    pub fn of(directory: &Path) -> io::Result<Room<'static>> {
        let directory = directory.to_owned();
        Room::new(Box::new(move || free(&directory)))
    }

    /// On a small disk half of what is free at first may be taken: a small file must not fail because of a large reserve.
    fn new(ask: Box<Ask<'_>>) -> io::Result<Room<'_>> {
        let kept = KEPT_BYTES.min(ask()? / 2);
        Ok(Room { ask, kept, unseen: 0 })
    }

    /// Before so many bytes are written.
    ///
    /// # Errors
    /// `StorageFull`, with the figures in the text, when less than the reserve would be left.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        self.unseen += bytes;
        if self.unseen < LOOK_EVERY_BYTES {
            return Ok(());
        }
        let ahead = std::mem::take(&mut self.unseen);
        self.needs(ahead)
    }

    /// Whether so many bytes more fit.
    ///
    /// # Errors
    /// As [`Room::take`].
    pub fn needs(&self, bytes: u64) -> io::Result<()> {
        let free = (self.ask)()?;
        if free.saturating_sub(bytes) >= self.kept {
            return Ok(());
        }
        let what = format!(
            "no room for it beside the log and the state: {} MiB are free, {} MiB of them are kept",
            free >> 20,
            self.kept >> 20
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, what))
    }
}

/// A writer that stops while there is room left.
pub(super) struct Careful<'a, W> {
    pub(super) inner: W,
    pub(super) room: Room<'a>,
}

impl<W: Write> Write for Careful<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room.take(bytes.len() as u64)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Seek> Seek for Careful<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Writes in pieces of a MiB until it is stopped; what is free then, and what was said.
    fn fill(disk: u64) -> (u64, String) {
        let free = std::sync::atomic::AtomicU64::new(disk);
        let ask = || Ok(free.load(std::sync::atomic::Ordering::Relaxed));
        let mut room = Room::new(Box::new(ask)).expect("it can be asked");
        loop {
            if let Err(error) = room.take(MIB) {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                return (ask().expect("it can be asked"), error.to_string());
            }
            free.fetch_sub(MIB, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_file_beside_the_log_leaves_it_room() {
        let (left, said) = fill(1024 * MIB);
        assert!((KEPT_BYTES..KEPT_BYTES + 2 * LOOK_EVERY_BYTES).contains(&left), "{left} bytes were left");
        assert!(said.contains("256 MiB of them are kept"), "{said}");
        let (left, _) = fill(100 * MIB);
        assert!((50 * MIB..58 * MIB).contains(&left), "half of a small disk: {left} bytes were left");
    }

    #[test]
    fn what_is_stopped_was_not_written() {
        let written = Rc::new(Cell::new(0));
        struct Sink(Rc<Cell<usize>>);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.set(self.0.get() + bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let room = Room::new(Box::new(|| Ok(4 * MIB))).expect("it can be asked");
        let mut careful = Careful { inner: Sink(written.clone()), room };
        let error = careful.write_all(&vec![0; 8 << 20]).expect_err("there is no room");
        assert_eq!((error.kind(), written.get()), (io::ErrorKind::StorageFull, 0));
    }
}
