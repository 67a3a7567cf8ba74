//! Backups: the state of one moment as etcd's database file, handed out in pieces, with its SHA-256 as the last one.
//!
//! A thread of its own takes a pinned view, writes it into a file without a name and reads that out again, both no faster than
//! `snapshot-save-rate`. Nothing on the write path knows of it: apply, raft and the log share no lock and no queue with this thread, and the
//! file is never synced. A client that does not take it gives its place up. Memory is a queue of pieces, whatever the size of the state. The
//! file vanishes with its handle, also when the process is killed.
//!
//! Local: no quorum and no leader are needed, and learners serve it too. Not here: the file's format (storage).

use std::{
    io::{self, Read},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use storage::snapshot::{self, HashingReader};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    handle::Handle,
    paced::{Pace, Paced},
};

/// Backups of this process at a time. Each has a file as large as the state; who wants more of them at once wants something else.
pub const BACKUPS_MAX: usize = 4;

/// Bytes of the file in one message, as in etcd.
pub const PIECE_BYTES: usize = 32 * 1024;

/// Pieces that wait for the client: a megabyte, enough to keep a fast network busy while the next ones are read.
const PIECES_QUEUED: usize = 32;

/// A client that takes nothing for so long is gone or hangs: every step of a save (a disk that is flushed, a network that changes) is shorter.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A client that is slower than this over its whole save, after [`SLOW_GRACE`], would hold its place and its file for hours: half a megabit
/// a second.
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// Before the rate counts.
const SLOW_GRACE: Duration = Duration::from_secs(600);

/// Between two looks at a queue that is full. At this pace a full queue of a megabyte is half a gigabyte a second.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// Pieces of one backup, in order; an error is the last thing that comes. Dropping it ends the backup at once.
pub type Backup = mpsc::Receiver<Result<pb::SnapshotResponse, BackupError>>;

/// Why a backup ended early.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{operation}: {source}")]
    Failed { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("this member stops")]
    Stopping,
    #[error("its client is too slow: {0}")]
    Slow(String),
}

impl Handle {
    /// Begins a backup of what this member has applied now. Returns at once.
    ///
    /// # Errors
    /// `RequestTooManyRequests` while [`BACKUPS_MAX`] others are under way.
    pub fn snapshot(&self) -> Result<Backup, EtcdError> {
        let place = Place::take().ok_or(EtcdError::RequestTooManyRequests)?;
        let (pieces, backup) = mpsc::channel(PIECES_QUEUED);
        let handle = self.clone();
        let spawned = std::thread::Builder::new().name("backup".to_owned()).spawn(move || {
            let _place = place;
            if let Err(error) = write(&handle, &pieces) {
                if pieces.is_closed() {
                    info!("a backup ended early: its client is gone");
                    return;
                }
                warn!(%error, "a backup failed");
                // A client that takes nothing would not take this either: it finds the end of the stream.
                let _ = pieces.try_send(Err(error));
            }
        });
        match spawned {
            Ok(_) => Ok(backup),
            Err(error) => {
                warn!(%error, "no thread for a backup");
                Err(EtcdError::RequestTooManyRequests)
            }
        }
    }
}

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// One of the [`BACKUPS_MAX`].
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let more = |running: usize| (running < BACKUPS_MAX).then_some(running + 1);
        RUNNING.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::AcqRel);
    }
}

type Pieces = mpsc::Sender<Result<pb::SnapshotResponse, BackupError>>;

fn failed<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl FnOnce(E) -> BackupError {
    move |source| BackupError::Failed { operation, source: Box::new(source) }
}

fn write(handle: &Handle, pieces: &Pieces) -> Result<(), BackupError> {
    let shared = &handle.shared;
    let began = Instant::now();
    let version = handle.storage_version();
    let unwanted = || pieces.is_closed() || shared.stopping.load(Ordering::Relaxed);
    let applied = || shared.applied();
    let mut written = {
        let view = shared.store().view().map_err(failed("take a view of the state"))?;
        let paced = Paced::new(&view, shared.live().snapshot_save_bytes_per_second, &applied, &unwanted);
        snapshot::write(&paced, &shared.config.snap_dir).map_err(|error| {
            if shared.stopping.load(Ordering::Relaxed) {
                BackupError::Stopping
            } else {
                failed("write the database file")(error)
            }
        })?
    };
    let mut remaining = written.bytes;
    let mut outlet = Outlet {
        pieces,
        version: &version,
        stopping: &|| shared.stopping.load(Ordering::Relaxed),
        patience: Patience::default(),
    };
    let mut reader = HashingReader::new(&mut written.file);
    let mut pace = Pace::new(shared.live().snapshot_save_bytes_per_second, &applied);
    while remaining > 0 {
        let length = PIECE_BYTES.min(usize::try_from(remaining).unwrap_or(PIECE_BYTES));
        let mut blob = vec![0; length];
        reader.read_exact(&mut blob).map_err(failed("read the database file"))?;
        remaining -= length as u64;
        pace.keep(written.bytes - remaining);
        outlet.send(remaining, blob.into())?;
    }
    outlet.send(0, Bytes::copy_from_slice(&reader.digest()))?;
    info!(
        index = written.position.index.0,
        rows = written.rows,
        bytes = written.bytes,
        took_ms = began.elapsed().as_millis() as u64,
        "handed out a backup"
    );
    Ok(())
}

/// Where the pieces leave, one after the other, as fast as the client takes them.
struct Outlet<'a> {
    pieces: &'a Pieces,
    version: &'a str,
    stopping: &'a dyn Fn() -> bool,
    patience: Patience,
}

impl Outlet<'_> {
    fn send(&mut self, remaining_bytes: u64, blob: Bytes) -> Result<(), BackupError> {
        let bytes = blob.len() as u64;
        let piece =
            pb::SnapshotResponse { header: None, remaining_bytes, blob, version: self.version.to_owned() };
        let mut piece = Ok(piece);
        loop {
            if (self.stopping)() {
                return Err(BackupError::Stopping);
            }
            match self.pieces.try_send(piece) {
                Ok(()) => {
                    self.patience.taken(bytes, Instant::now());
                    return Ok(());
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    return Err(failed("hand out the database file")(gone()));
                }
                Err(mpsc::error::TrySendError::Full(back)) => piece = back,
            }
            if let Some(why) = self.patience.ends(Instant::now()) {
                return Err(BackupError::Slow(why));
            }
            std::thread::sleep(FULL_PAUSE);
        }
    }
}

/// How long a client may take. Its place and its file are not for ever.
struct Patience {
    began: Instant,
    bytes: u64,
    last: Instant,
}

impl Default for Patience {
    fn default() -> Patience {
        let now = Instant::now();
        Patience { began: now, bytes: 0, last: now }
    }
}

impl Patience {
    fn taken(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        self.last = now;
    }

    /// Why it is at its end, while the client does not take the next piece.
    fn ends(&self, now: Instant) -> Option<String> {
        let idle = now.saturating_duration_since(self.last);
        if idle >= IDLE_MAX {
            let taken = self.bytes;
            return Some(format!("it took nothing for {} s, and {taken} bytes before", idle.as_secs()));
        }
        let all = now.saturating_duration_since(self.began);
        let due = SLOW_GRACE + Duration::from_secs(self.bytes / BYTES_PER_SECOND_MIN);
        (all >= due).then(|| {
            let rate = self.bytes / all.as_secs().max(1);
            format!("{rate} bytes/s over {} s, at least {BYTES_PER_SECOND_MIN} are asked for", all.as_secs())
        })
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants it any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_backups_run_at_once() {
        let all: Vec<Place> = (0..BACKUPS_MAX).map(|_| Place::take().expect("there is room")).collect();
        assert!(Place::take().is_none());
        drop(all);
        assert!(Place::take().is_some());
    }
    #[test]
    fn a_client_that_takes_nothing_gives_its_place_up() {
        let mut patience = Patience::default();
        let (almost, over) =
            (patience.began + Duration::from_secs(59), patience.began + Duration::from_secs(60));
        assert_eq!(patience.ends(almost), None);
        assert_eq!(patience.ends(over).unwrap(), "it took nothing for 60 s, and 0 bytes before");
        patience.taken(7, almost);
        assert_eq!(patience.ends(over), None, "it moves again");
        let later = almost + Duration::from_secs(60);
        assert_eq!(patience.ends(later).unwrap(), "it took nothing for 60 s, and 7 bytes before");
    }

    #[test]
    fn a_client_that_trickles_gives_its_place_up_and_a_slow_one_does_not() {
        for (bytes_per_minute, ends) in [(32 * 1024, true), (60 * BYTES_PER_SECOND_MIN, false)] {
            let mut patience = Patience::default();
            let mut now = patience.began;
            let ended = (0..24 * 60).find_map(|minute| {
                now += Duration::from_secs(59);
                patience.taken(bytes_per_minute, now);
                now += Duration::from_secs(1);
                patience.ends(now).map(|why| (minute + 1, why))
            });
            match ended {
                Some((minute, why)) => {
                    assert!(ends, "{why}");
                    assert_eq!(minute, 11);
                    assert_eq!(why, "546 bytes/s over 660 s, at least 65536 are asked for");
                }
                None => assert!(!ends),
            }
        }
    }

    #[test]
    fn a_full_queue_ends_with_the_patience_with_the_client_or_with_the_member() {
        let (pieces, mut backup) = mpsc::channel(1);
        let asked = std::cell::Cell::new(0);
        let stopping = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        let mut outlet =
            Outlet { pieces: &pieces, version: "3.7.0", stopping: &stopping, patience: Patience::default() };
        outlet.send(1, Bytes::from_static(b"a")).unwrap();
        assert!(matches!(outlet.send(0, Bytes::from_static(b"b")), Err(BackupError::Stopping)));
        outlet.stopping = &|| false;
        // The clock of the machine may have begun less than an hour ago; what the client took is moved instead.
        if let Some(long_ago) = Instant::now().checked_sub(IDLE_MAX) {
            outlet.patience.last = long_ago;
            assert!(matches!(outlet.send(0, Bytes::from_static(b"b")), Err(BackupError::Slow(_))));
        }
        assert_eq!(backup.try_recv().unwrap().unwrap().remaining_bytes, 1);
        backup.close();
        assert!(matches!(outlet.send(0, Bytes::from_static(b"b")), Err(BackupError::Failed { .. })));
    }
}
