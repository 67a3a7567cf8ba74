//! One file that is written from front to back by its owner while a background thread writes zeros ahead of it.
//!
//! The rule that keeps data safe is in [`Frontier`]: zeros are only written to a range that was claimed first, a claim never begins
//! below what the owner has taken, and the owner waits for a claim that its next write would run into.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Zeros written per claim. Bounds how long the owner may have to wait, and what one of its syncs may have to carry along.
pub(super) const STEP_BYTES: u64 = 512 * 1024;

static ZEROS: [u8; STEP_BYTES as usize] = [0; STEP_BYTES as usize];

/// Claims begin on a page, so that zeros and data never share one that is being written out.
const PAGE_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct ZeroedFile {
    file: Arc<File>,
    frontier: Mutex<Frontier>,
    released: Condvar,
}

/// Who may write where, in byte offsets.
#[derive(Debug)]
struct Frontier {
    /// Everything below belongs to the owner.
    taken: u64,
    /// Everything below was written, by either side.
    zeroed: u64,
    /// Zeros go no further; lowered to nothing when the owner closes the file.
    limit: u64,
    /// The range in which zeros are being written right now.
    claim: Option<(u64, u64)>,
}

impl Frontier {
    fn must_wait(&self, end: u64) -> bool {
        self.claim.is_some_and(|(start, _)| start < end)
    }

    fn start(&self) -> u64 {
        self.zeroed.max(self.taken.next_multiple_of(PAGE_BYTES))
    }

    fn claim(&mut self, up_to: u64) -> Option<(u64, u64)> {
        let start = self.start();
        let end = (start + STEP_BYTES).min(up_to.min(self.limit));
        if self.claim.is_some() || start >= end {
            return None;
        }
        self.claim = Some((start, end));
        self.claim
    }
}

impl ZeroedFile {
    /// A file that is written up to `written` and whose space up to `limit` is reserved.
    pub(super) fn new(file: Arc<File>, taken: u64, written: u64, limit: u64) -> ZeroedFile {
        let frontier = Frontier { taken, zeroed: written.max(taken), limit, claim: None };
        ZeroedFile { file, frontier: Mutex::new(frontier), released: Condvar::new() }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The owner is about to write up to `end`. Waits for at most one step of zeros.
    pub(super) fn take(&self, end: u64) {
        let mut frontier = self.frontier.lock();
        while frontier.must_wait(end) {
            self.released.wait(&mut frontier);
        }
        frontier.taken = frontier.taken.max(end);
    }

    /// Whether a step towards `up_to` has anything to do.
    pub(super) fn wants_zeros(&self, up_to: u64) -> bool {
        let frontier = self.frontier.lock();
        frontier.start() < up_to.min(frontier.limit)
    }

    /// No zeros from here on: the owner is about to cut the file to its length.
    pub(super) fn close(&self) {
        let mut frontier = self.frontier.lock();
        frontier.limit = 0;
        while frontier.claim.is_some() {
            self.released.wait(&mut frontier);
        }
    }

    /// Writes one step of zeros towards `up_to` and makes it durable. False when there is nothing left to do.
    pub(super) fn zero_step(&self, up_to: u64) -> io::Result<bool> {
        let Some((start, end)) = self.frontier.lock().claim(up_to) else { return Ok(false) };
        let written = self.file.write_all_at(&ZEROS[..(end - start) as usize], start);
        {
            let mut frontier = self.frontier.lock();
            frontier.claim = None;
            if written.is_ok() {
                frontier.zeroed = end;
            }
        }
        self.released.notify_all();
        written?;
        // Outside of the claim: the owner may write on while this waits for the disk.
        self.file.sync_data()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_never_touch_what_the_owner_has_taken() {
        let mut frontier = Frontier { taken: 100, zeroed: 0, limit: 10 * STEP_BYTES, claim: None };
        let (start, end) = frontier.claim(u64::MAX).unwrap();
        assert_eq!((start, end), (PAGE_BYTES, PAGE_BYTES + STEP_BYTES));
        assert!(!frontier.must_wait(PAGE_BYTES), "writing up to the claim needs no waiting");
        assert!(frontier.must_wait(PAGE_BYTES + 1));
        assert_eq!(frontier.claim(u64::MAX), None, "one claim at a time");

        (frontier.claim, frontier.zeroed, frontier.taken) = (None, end, end + 5);
        let (start, _) = frontier.claim(u64::MAX).unwrap();
        assert!(start >= frontier.taken, "the owner ran ahead of the zeros");
    }

    #[test]
    fn zeros_end_at_the_limit() {
        let mut frontier = Frontier { taken: 0, zeroed: 0, limit: 100, claim: None };
        assert_eq!(frontier.claim(u64::MAX), Some((0, 100)));
        (frontier.claim, frontier.zeroed) = (None, 100);
        assert_eq!(frontier.claim(u64::MAX), None);
    }

    #[test]
    fn a_file_is_zeroed_ahead_of_its_owner_and_keeps_the_owners_bytes() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let ahead = ZeroedFile::new(file.clone(), 0, 0, 3 * STEP_BYTES);
        ahead.take(5);
        file.write_all_at(b"owner", 0).unwrap();
        while ahead.zero_step(2 * STEP_BYTES).unwrap() {}
        assert_eq!(file.metadata().unwrap().len(), 2 * STEP_BYTES);
        let mut head = [1; 10];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(&head, b"owner\0\0\0\0\0");

        ahead.close();
        assert!(!ahead.zero_step(u64::MAX).unwrap(), "a closed file is left alone");
    }
}
