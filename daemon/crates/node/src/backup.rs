//! Backups: the state of one moment as etcd's database file, handed out in pieces, with its SHA-256 as the last one.
//!
//! A thread of its own takes a pinned view, writes it into a file without a name and reads that out again as fast as the client takes it.
//! Nothing on the write path knows of it: apply, raft and the log share no lock and no queue with this thread, the file is never synced, and
//! it is written no faster than `snapshot-save-rate`. Memory is a queue of pieces, whatever the size of the state. The file vanishes
//! with its handle, also when the process is killed.
//!
//! Local: no quorum and no leader are needed, and learners serve it too. Not here: the file's format (storage).

use std::{
    io::{self, Read},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use storage::snapshot::{self, HashingReader};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{handle::Handle, paced::Paced};

/// Backups of this process at a time. Each has a file as large as the state; who wants more of them at once wants something else.
pub const BACKUPS_MAX: usize = 4;

/// Bytes of the file in one message, as in etcd.
pub const PIECE_BYTES: usize = 32 * 1024;

/// Pieces that wait for the client: a megabyte, enough to keep a fast network busy while the next ones are read.
const PIECES_QUEUED: usize = 32;

/// Pieces of one backup, in order; an error is the last thing that comes. Dropping it ends the backup at once.
pub type Backup = mpsc::Receiver<Result<pb::SnapshotResponse, BackupError>>;

/// Why a backup ended early.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{operation}: {source}")]
    Failed { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("this member stops")]
    Stopping,
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
                let _ = pieces.blocking_send(Err(error));
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
    let mut written = {
        let view = shared.store().view().map_err(failed("take a view of the state"))?;
        let paced = Paced::new(&view, shared.config.snapshot_save_bytes_per_second, &unwanted);
        snapshot::write(&paced, &shared.config.snap_dir).map_err(|error| {
            if shared.stopping.load(Ordering::Relaxed) {
                BackupError::Stopping
            } else {
                failed("write the database file")(error)
            }
        })?
    };
    let mut remaining = written.bytes;
    let mut reader = HashingReader::new(&mut written.file);
    while remaining > 0 {
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(BackupError::Stopping);
        }
        let length = PIECE_BYTES.min(usize::try_from(remaining).unwrap_or(PIECE_BYTES));
        let mut blob = vec![0; length];
        reader.read_exact(&mut blob).map_err(failed("read the database file"))?;
        remaining -= length as u64;
        send(pieces, remaining, blob.into(), &version)?;
    }
    send(pieces, 0, Bytes::copy_from_slice(&reader.digest()), &version)?;
    info!(
        index = written.position.index.0,
        rows = written.rows,
        bytes = written.bytes,
        took_ms = began.elapsed().as_millis() as u64,
        "handed out a backup"
    );
    Ok(())
}

fn send(pieces: &Pieces, remaining_bytes: u64, blob: Bytes, version: &str) -> Result<(), BackupError> {
    let piece = pb::SnapshotResponse { header: None, remaining_bytes, blob, version: version.to_owned() };
    pieces.blocking_send(Ok(piece)).map_err(|_| failed("hand out the database file")(gone()))
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
}
