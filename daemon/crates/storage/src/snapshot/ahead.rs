//! Builds the state of a database file while the file still arrives, so that little is left to do when it is whole.
//!
//! It is a guess at the order of the file's pages (see [`dbfile::Sequence`]), compared with the file at the end; whatever goes wrong here only
//! means that [`super::install`] does all of it from the file. Nothing of it outlives the process: until it is installed it is a `.partial`
//! directory like any other, and the file is what a restart begins with.
//!
//! Not here: receiving the file, whether its other buckets are good.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use dbfile::{BoltError, KEY_BUCKET, OutOfOrder, Sequence};
use parking_lot::Mutex;
use state_machine::store::StoreError;
use types::{LogPosition, RowId};

use super::etcd_db::{DbFile, ReadError};
use super::install::{Content, InstallError, Prepared, building, feed_tables, prove};
use crate::state_store::{self, FjallStore, Piece, StoreOptions, Take, parse_etcd_row_key};

/// Pieces that arrived and are not built in yet: a few hundred KiB each at most.
const PIECES_QUEUED: usize = 8;

/// See the module text. Dropped it removes what it built.
pub struct Ahead {
    pieces: Option<SyncSender<Step>>,
    thread: Option<JoinHandle<Option<Prepared>>>,
}

enum Step {
    Bytes(Bytes),
    Whole(DbFile),
}

#[derive(Debug, thiserror::Error)]
enum AheadError {
    #[error("the file does not come any more")]
    Gone,
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    #[error("row {0} is no key-value")]
    Row(RowId),
    #[error("the pages of the file are in another order than its tree")]
    OtherTree,
    #[error("the file is at {0}")]
    Position(LogPosition),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl Ahead {
    /// Begins a state under `root` for a file that is announced to be at `position`. `is_row` says which rows are good.
    pub fn begin(
        root: &Path,
        position: LogPosition,
        options: &StoreOptions,
        is_row: fn(RowId, &[u8]) -> bool,
    ) -> io::Result<Ahead> {
        let (pieces, arriving) = sync_channel(PIECES_QUEUED);
        let options = building(options);
        let builder = Builder { root: root.to_owned(), position, options, is_row, arriving };
        let thread = std::thread::Builder::new().name("snapshot-ahead".to_owned()).spawn(move || {
            match builder.build() {
                Ok(prepared) => Some(prepared),
                Err(error) => {
                    tracing::debug!(%error, "a snapshot is not built while it arrives");
                    None
                }
            }
        })?;
        Ok(Ahead { pieces: Some(pieces), thread: Some(thread) })
    }

    /// The next bytes of the file. Waits while building is behind. Whether there is any use in more.
    pub fn take(&mut self, bytes: Bytes) -> bool {
        self.pieces.as_ref().is_some_and(|pieces| pieces.send(Step::Bytes(bytes)).is_ok())
    }

    /// The whole file, whose bytes were given. `None` when it must be installed from the file.
    pub fn finish(mut self, db: DbFile) -> Option<Prepared> {
        let _ = self.pieces.take()?.send(Step::Whole(db));
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            // It reports its own end, and a panic has been reported.
            let _ = thread.join();
        }
    }
}

struct Builder {
    root: PathBuf,
    position: LogPosition,
    options: StoreOptions,
    is_row: fn(RowId, &[u8]) -> bool,
    arriving: Receiver<Step>,
}

impl Builder {
    fn build(self) -> Result<Prepared, AheadError> {
        let fault = |error| AheadError::Install(InstallError::Open(error));
        let partial = state_store::begin_generation(&self.root).map_err(fault)?;
        let open = || FjallStore::open_dir(partial.path(), &self.options, None);
        let mut content = Content::default();
        open().map_err(fault)?.import(self.position, |take| self.feed(&mut content, take))?;
        prove(&open().map_err(fault)?, self.position, &content)?;
        Ok(Prepared { partial, position: self.position, rows: content.rows })
    }

    fn feed(&self, content: &mut Content, take: &mut Take<'_>) -> Result<(), AheadError> {
        let mut sequence = Sequence::new(|key| parse_etcd_row_key(key).is_some());
        loop {
            match self.arriving.recv() {
                Err(_) => return Err(AheadError::Gone),
                Ok(Step::Bytes(bytes)) => {
                    let mut fault = None;
                    sequence.take(&bytes, &mut |key, value| {
                        let (id, tombstone) = parse_etcd_row_key(key).expect("the sequence has asked");
                        content.row(id, tombstone, value);
                        let taken = if (self.is_row)(id, value) {
                            take(Piece::Row { id, tombstone, value }).map_err(AheadError::Store)
                        } else {
                            Err(AheadError::Row(id))
                        };
                        match taken {
                            Ok(()) => ControlFlow::Continue(()),
                            Err(error) => {
                                fault = Some(error);
                                ControlFlow::Break(())
                            }
                        }
                    })?;
                    fault.map_or(Ok(()), Err)?;
                }
                Ok(Step::Whole(db)) => {
                    if db.position() != self.position {
                        return Err(AheadError::Position(db.position()));
                    }
                    if !sequence.is_bucket(&db.bolt, KEY_BUCKET.as_bytes())? {
                        return Err(AheadError::OtherTree);
                    }
                    let mut fault = None;
                    feed_tables(&db, content, &mut |piece| match take(piece) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(error) => {
                            fault = Some(error);
                            ControlFlow::Break(())
                        }
                    })?;
                    return fault.map_or(Ok(()), |error| Err(error.into()));
                }
            }
        }
    }
}

/// The state that was built while a snapshot arrived, until raft wants it or does not. One at most: the newest.
#[derive(Default)]
pub struct Waiting(Mutex<Option<Prepared>>);

impl Waiting {
    pub fn put(&self, prepared: Option<Prepared>) {
        let former = std::mem::replace(&mut *self.0.lock(), prepared);
        // Removing its directory takes a moment; nobody waits for the lock meanwhile.
        drop(former);
    }

    /// The one for a snapshot at this position, if it is there.
    pub fn take(&self, position: LogPosition) -> Option<Prepared> {
        self.0.lock().take_if(|prepared| prepared.position == position)
    }
}
