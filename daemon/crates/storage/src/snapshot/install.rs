//! Puts a received database file in place of the state. The new state is built aside, read back and compared, synced, named, and only
//! then pointed at; a crash at any step leaves the old state or the new one, and the file itself is never touched.
//!
//! The old store may stay open and be read meanwhile. What was installed becomes the state at the next `FjallStore::open`.
//!
//! Not here: whether raft wants this snapshot. The caller stops applying before it installs.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dbfile::check_digest;
use parking_lot::Mutex;
use state_machine::store::{StoreError, Table};
use types::{LogPosition, Revision, RowId};

use super::etcd_db::{DbFile, ReadError};
use crate::state_store::{self, FjallStore, OpenError, Partial, Piece, SUB_MAX, StoreOptions, Take};

/// Installations of this process, one at a time: a second one that arrives meanwhile waits, and then sees what the first has done.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("read snapshot {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("snapshot {path}: {source}")]
    Bad { path: PathBuf, source: ReadError },
    #[error("snapshot {path}: the SHA-256 at its end does not match the database before it")]
    Digest { path: PathBuf },
    #[error("snapshot {path} is at index {found}, older than the {wanted} it was announced with")]
    TooOld { path: PathBuf, found: u64, wanted: u64 },
    #[error("the installed state is not what the snapshot holds: {what}")]
    Verify { what: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What is in place now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// From the file; what the store had before does not matter.
    pub position: LogPosition,
    /// `meta/confState` of the file, as JSON. It may lag behind the configuration that came with the snapshot message.
    pub conf_state: Option<Bytes>,
    pub rows: u64,
    /// The state in place was installed from a snapshot at this position or a later one already; nothing was changed.
    pub already: bool,
}

/// Installs the database file `db` as the state under `root`. `announced` is the position the sender gave with it: the file must be at
/// least there.
pub fn install(
    root: &Path,
    db: &Path,
    announced: LogPosition,
    options: &StoreOptions,
) -> Result<Installed, InstallError> {
    let _one = ONE_AT_A_TIME.lock();
    let io = |source| InstallError::Io { path: db.to_owned(), source };
    let bad = |source| InstallError::Bad { path: db.to_owned(), source };
    let file = File::open(db).map_err(io)?;
    if check_digest(&file).map_err(io)? == Some(false) {
        return Err(InstallError::Digest { path: db.to_owned() });
    }
    let source = DbFile::open(file).map_err(bad)?;
    let position = source.position();
    if position.index < announced.index {
        let (found, wanted) = (position.index.0, announced.index.0);
        return Err(InstallError::TooOld { path: db.to_owned(), found, wanted });
    }
    let conf_state = source.table(Table::Meta).map_err(bad)?.into_iter().find(|(key, _)| key == "confState");
    let mut installed =
        Installed { position, conf_state: conf_state.map(|(_, value)| value), rows: 0, already: false };
    if let Some(before) = state_store::installed_from(root)?
        && before.index >= position.index
    {
        return Ok(Installed { position: before, already: true, ..installed });
    }

    let partial = state_store::begin_generation(root)?;
    let expected = {
        let options = building(options);
        let open = || FjallStore::open_dir(partial.path(), &options, None);
        let mut expected = Content::default();
        open()?.import(position, |take| feed(&source, &mut expected, take)).map_err(|error| match error {
            FeedError::Read(source) => bad(source),
            FeedError::Store(error) => error.into(),
        })?;
        prove(&open()?, position, &expected)?;
        expected
    };
    installed.rows = expected.rows;
    publish(partial, position, expected.rows)?;
    Ok(installed)
}

/// A state that is built is read once, from one end to the other.
const BUILDING_CACHE_BYTES: u64 = 8 << 20;

/// A full disk is an answer to the caller here: the state in use is whole, so the process need not end.
pub(super) fn building(options: &StoreOptions) -> StoreOptions {
    let cache_bytes = options.cache_bytes.min(BUILDING_CACHE_BYTES);
    StoreOptions { on_fatal: None, cache_bytes, ..options.clone() }
}

/// A whole state that was read back and compared, and is not the one in use. Dropped it is removed.
#[derive(Debug)]
pub struct Prepared {
    pub(super) partial: Partial,
    pub(super) position: LogPosition,
    pub(super) rows: u64,
}

impl Prepared {
    /// Puts it in place of the state, like [`install`] with the file that it was built from; how many rows it has.
    pub fn install(self, root: &Path) -> Result<u64, InstallError> {
        let _one = ONE_AT_A_TIME.lock();
        if state_store::installed_from(root)?.is_none_or(|before| before.index < self.position.index) {
            publish(self.partial, self.position, self.rows)?;
        }
        Ok(self.rows)
    }
}

fn publish(partial: Partial, position: LogPosition, rows: u64) -> Result<(), InstallError> {
    state_store::record_installed(partial.path(), position)?;
    partial.publish()?;
    tracing::info!(%position, rows, "snapshot installed");
    Ok(())
}

/// Compares an imported state with what was imported. It was opened anew, so that this is what the next start will find.
pub(super) fn prove(
    store: &FjallStore,
    position: LogPosition,
    expected: &Content,
) -> Result<(), InstallError> {
    let view = store.view()?;
    if super::View::position(&view) != position {
        return Err(InstallError::Verify { what: "another position" });
    }
    if content(&view)? != *expected {
        return Err(InstallError::Verify { what: "other rows or tables" });
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sums over everything in a state, for comparing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) rows: u64,
    crc: u32,
}

impl Content {
    pub(super) fn row(&mut self, id: RowId, tombstone: bool, value: &[u8]) {
        let (key, len) = state_store::etcd_row_key(id, tombstone);
        self.rows += 1;
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &key[..len]), value);
    }

    pub(super) fn pair(&mut self, table: Table, key: &[u8], value: &[u8]) {
        for bytes in [table.name().as_bytes(), key, value] {
            self.crc = crc32c::crc32c_append(self.crc, &(bytes.len() as u64).to_be_bytes());
            self.crc = crc32c::crc32c_append(self.crc, bytes);
        }
    }
}

pub(super) fn content(view: &impl super::View) -> Result<Content, StoreError> {
    let mut content = Content::default();
    let all = RowId::default()..=RowId { main: Revision(i64::MAX), sub: SUB_MAX };
    view.scan(all, &mut |id, row| {
        content.row(id, row.tombstone, &row.value);
        ControlFlow::Continue(())
    })?;
    for table in Table::ALL {
        for (key, value) in view.table(table)? {
            if !is_position(table, &key) {
                content.pair(table, &key, &value);
            }
        }
    }
    Ok(content)
}

/// The position is the batch's own, and compared as such.
fn is_position(table: Table, key: &[u8]) -> bool {
    table == Table::Meta && (key == b"consistent_index" || key == b"term")
}

fn feed(source: &DbFile, content: &mut Content, take: &mut Take<'_>) -> Result<(), FeedError> {
    let mut fault = None;
    let mut step = |taken: Result<(), StoreError>| match taken {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            fault = Some(error);
            ControlFlow::Break(())
        }
    };
    source.each_row(&mut |id, tombstone, value| {
        content.row(id, tombstone, value);
        step(take(Piece::Row { id, tombstone, value }))
    })?;
    feed_tables(source, content, &mut |piece| step(take(piece)))?;
    fault.map_or(Ok(()), |error| Err(error.into()))
}

/// What comes behind the rows.
pub(super) fn feed_tables(
    source: &DbFile,
    content: &mut Content,
    step: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    for table in Table::ALL {
        source.each_pair(table, &mut |key, value| {
            if is_position(table, key) {
                return ControlFlow::Continue(());
            }
            content.pair(table, key, value);
            step(Piece::Pair { table, key, value })
        })?;
    }
    Ok(())
}
