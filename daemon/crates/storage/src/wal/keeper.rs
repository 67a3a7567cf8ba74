//! The background thread of a log: writes zeros ahead in the segment in use, prepares the next segment (the *spare*, `0.tmp` or
//! `1.tmp`), and deletes segments that were released.
//!
//! It works at the pace of the log, not of the clock: an idle member writes nothing, so starting many costs little. Nothing here is
//! needed for correctness; when something fails it is logged once and the log goes on without that help.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::disk;
use super::error::WalError;
use super::segment;
use super::zeroed::ZeroedFile;

/// How far zeros are kept ahead of the log. The disk writes zeros several times faster than a log grows, so this is only the
/// distance that a burst may cover before the thread wakes.
const AHEAD_BYTES: u64 = 8 << 20;

/// The log wakes the thread each time it has grown by this much.
pub(super) const WAKE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
    dir: PathBuf,
    segment_bytes: u64,
    segments_kept: usize,
}

#[derive(Debug)]
struct Work {
    current: Arc<ZeroedFile>,
    /// How much of the current segment is in use.
    position: u64,
    zero_ahead: bool,
    spare: Spare,
    /// The name of the next spare: 0 or 1.
    spare_number: u8,
    /// Segments with a lower sequence were released and may be deleted.
    released_below: u64,
    purged_below: u64,
    stop: bool,
}

#[derive(Debug)]
enum Spare {
    None,
    /// The thread is creating it or writing zeros to it.
    Busy,
    Ready(ReadySpare),
    /// Could not be made; not tried again for this segment.
    Failed,
}

/// A file with reserved space, locked, not yet named as a segment.
#[derive(Debug)]
pub(super) struct ReadySpare {
    pub(super) path: PathBuf,
    pub(super) zeroed: ZeroedFile,
}

impl Keeper {
    pub(super) fn start(
        dir: PathBuf,
        segment_bytes: u64,
        segments_kept: usize,
        zero_ahead: bool,
        current: Arc<ZeroedFile>,
        position: u64,
    ) -> Keeper {
        let shared = Arc::new(Shared {
            work: Mutex::new(Work {
                current,
                position,
                zero_ahead,
                spare: Spare::None,
                spare_number: 0,
                released_below: 0,
                purged_below: 0,
                stop: false,
            }),
            wake: Condvar::new(),
            dir,
            segment_bytes,
            segments_kept,
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("wal-keeper".into()).spawn(move || of_thread.run());
        let thread = match thread {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread to prepare log space ahead: writes will be slower");
                None
            }
        };
        Keeper { shared, thread }
    }

    /// The current segment is now in use up to `position`.
    pub(super) fn grew(&self, position: u64) {
        self.shared.work.lock().position = position;
        self.shared.wake.notify_one();
    }

    /// The spare, if it is ready right now. Never waits.
    pub(super) fn take_spare(&self) -> Option<ReadySpare> {
        let mut work = self.shared.work.lock();
        match std::mem::replace(&mut work.spare, Spare::None) {
            Spare::Ready(spare) => {
                work.spare_number ^= 1;
                Some(spare)
            }
            other => {
                work.spare = other;
                None
            }
        }
    }

    /// Another segment is in use from now on.
    pub(super) fn switched(&self, current: Arc<ZeroedFile>, position: u64) {
        let mut work = self.shared.work.lock();
        work.current = current;
        work.position = position;
        if matches!(work.spare, Spare::Failed) {
            work.spare = Spare::None;
        }
        drop(work);
        self.shared.wake.notify_one();
    }

    /// Segments below this sequence number may be deleted.
    pub(super) fn released(&self, below: u64) {
        self.shared.work.lock().released_below = below;
        self.shared.wake.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
        if let Spare::Ready(spare) = std::mem::replace(&mut self.shared.work.lock().spare, Spare::None) {
            let _ = std::fs::remove_file(&spare.path);
        }
    }
}

/// What the thread does next.
enum Job {
    Zero(Arc<ZeroedFile>, u64),
    MakeSpare(PathBuf),
    ZeroSpare(ReadySpare, u64),
    Purge(u64),
    Wait,
    Stop,
}

impl Shared {
    fn run(&self) {
        let mut current_failed: Option<Arc<ZeroedFile>> = None;
        loop {
            let job = {
                let mut work = self.work.lock();
                loop {
                    match self.next_job(&mut work, current_failed.as_ref()) {
                        Job::Wait => self.wake.wait(&mut work),
                        job => break job,
                    }
                }
            };
            match job {
                Job::Stop => return,
                Job::Wait => {}
                Job::Zero(file, up_to) => {
                    if let Err(error) = file.zero_step(up_to) {
                        tracing::warn!(dir = %self.dir.display(), %error, "write zeros ahead of the log: writes will be slower");
                        current_failed = Some(file);
                    }
                }
                Job::MakeSpare(path) => self.finish_spare(self.make_spare(path)),
                Job::ZeroSpare(spare, up_to) => self.finish_spare(match spare.zeroed.zero_step(up_to) {
                    Ok(_) => Ok(spare),
                    Err(source) => {
                        let _ = std::fs::remove_file(&spare.path);
                        Err(WalError::io("write zeros to", &spare.path, source))
                    }
                }),
                Job::Purge(below) => {
                    self.purge(below);
                    self.work.lock().purged_below = below;
                }
            }
        }
    }

    /// Deleting comes first, since it makes room; then the segment in use, then the next one.
    fn next_job(&self, work: &mut Work, current_failed: Option<&Arc<ZeroedFile>>) -> Job {
        if work.released_below > work.purged_below {
            return Job::Purge(work.released_below);
        }
        if work.stop {
            return Job::Stop;
        }
        if !work.zero_ahead {
            return Job::Wait;
        }
        let failed = current_failed.is_some_and(|failed| Arc::ptr_eq(failed, &work.current));
        let up_to = (work.position + AHEAD_BYTES).min(self.segment_bytes);
        if !failed && work.current.wants_zeros(up_to) {
            return Job::Zero(work.current.clone(), up_to);
        }
        let wanted = spare_bytes(work.position, self.segment_bytes);
        if wanted == 0 {
            return Job::Wait;
        }
        match std::mem::replace(&mut work.spare, Spare::Busy) {
            Spare::None => Job::MakeSpare(self.dir.join(format!("{}.tmp", work.spare_number))),
            Spare::Ready(spare) if spare.zeroed.wants_zeros(wanted) => Job::ZeroSpare(spare, wanted),
            other => {
                work.spare = other;
                Job::Wait
            }
        }
    }

    fn make_spare(&self, path: PathBuf) -> Result<ReadySpare, WalError> {
        let file = segment::create_file(&path)?;
        let prepared = segment::lock(&file, &path).and_then(|()| {
            disk::reserve(&file, self.segment_bytes)
                .map_err(|source| WalError::io("reserve space for", &path, source))
        });
        if let Err(error) = prepared {
            // An empty file that is never used would only confuse the operator.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(ReadySpare { path, zeroed: ZeroedFile::new(Arc::new(file), 0, 0, self.segment_bytes) })
    }

    fn finish_spare(&self, made: Result<ReadySpare, WalError>) {
        let spare = match made {
            Ok(spare) => Spare::Ready(spare),
            Err(error) => {
                tracing::warn!(%error, "prepare the next log segment: it will be made when needed");
                Spare::Failed
            }
        };
        self.work.lock().spare = spare;
    }

    /// Deletes released segments, oldest first, while more than `segments_kept` exist; stops at one that somebody else has locked,
    /// such as a backup tool.
    fn purge(&self, below: u64) {
        if self.segments_kept == 0 {
            return;
        }
        let deleted = (|| -> Result<(), WalError> {
            let names = segment::list(&self.dir)?;
            let excess = names.len().saturating_sub(self.segments_kept);
            for name in names.iter().take(excess).take_while(|name| name.sequence < below) {
                let path = name.path(&self.dir);
                let _locked: File = segment::open_locked(&path)?;
                std::fs::remove_file(&path).map_err(|source| WalError::io("delete", &path, source))?;
                tracing::info!(file = %path.display(), "deleted a log segment that is no longer needed");
            }
            Ok(())
        })();
        if let Err(error) = deleted {
            tracing::warn!(%error, "delete released log segments: will try again when the next one is released");
        }
    }
}

/// How much of the spare should be ready when the segment in use is filled up to `position`: begun after a quarter, done by three
/// quarters, so that the two writers share the disk evenly.
fn spare_bytes(position: u64, segment_bytes: u64) -> u64 {
    (position.saturating_sub(segment_bytes / 4) * 2).min(segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spare_is_ready_well_before_it_is_needed() {
        assert_eq!(spare_bytes(0, 100), 0, "an idle member prepares nothing");
        assert_eq!(spare_bytes(25, 100), 0);
        assert_eq!(spare_bytes(50, 100), 50);
        assert_eq!(spare_bytes(75, 100), 100);
        assert_eq!(spare_bytes(1000, 100), 100);
    }
}
