//! States as etcd database files: ten buckets in a bbolt file. [`write`] makes one from a pinned view, [`measure`] and [`stream`] make its
//! bytes without a file, [`DbFile`] reads one, ours or etcd's.
//!
//! Not here: pages (`bolt_write`, `bolt_read`), putting a file in place of the state (`install`).

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use dbfile::{BoltError, BoltFile, EachPair, KEY_BUCKET, Status};
use state_machine::store::{StoreError, StoredRow, Table};
use types::{LogIndex, LogPosition, Revision, RowId, Term};

use super::View;
use super::bolt_write::{BoltWriter, BucketWriter, Layout, META_BYTES};
use super::room::{Careful, Room};
use crate::state_store::{SUB_MAX, etcd_row_key, parse_etcd_row_key};

/// One write call for this much of the file.
const BUFFER_BYTES: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("read the state")]
    Store(#[from] StoreError),
}

/// A finished database file without a name: it vanishes with the last handle, also when the process is killed.
#[derive(Debug)]
pub struct SnapshotFile {
    /// Positioned at its start.
    pub file: File,
    pub bytes: u64,
    /// The applied position that the file holds, the same as in its `meta` bucket.
    pub position: LogPosition,
    /// Rows in the bucket `key`.
    pub rows: u64,
}

/// Writes the view as a database file. `dir` is where the temporary file lives, on the data directory's file system, which has room
/// for it by the same reckoning that a state has; where it has not, this stops before the log runs out of it. Memory does not grow with the
/// state.
pub fn write(view: &impl View, dir: &Path) -> Result<SnapshotFile, WriteError> {
    let mut file = Careful { inner: tempfile::tempfile_in(dir)?, room: Room::of(dir)? };
    file.seek(SeekFrom::Start(META_BYTES as u64))?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let (layout, rows) = lay_out(view, BoltWriter::new(&mut out))?;
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?.inner;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&layout.meta_pages())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(SnapshotFile { file, bytes: layout.bytes(), position: view.position(), rows })
}

/// Reads all of the view to learn what the beginning of its file says. Nothing is written, and values are only counted.
pub fn measure(view: &impl View) -> Result<Layout, WriteError> {
    lay_out(view, BoltWriter::measuring()).map(|(layout, _)| layout)
}

/// Writes the view as the bytes of a database file, from the first to the last, in small pieces: `out` gathers them. `layout` is this view's,
/// from [`measure`].
///
/// # Errors
/// Also when the view is another one than was measured, at the end: what was written is worth nothing then.
pub fn stream(view: &impl View, layout: &Layout, mut out: impl Write) -> Result<(), WriteError> {
    out.write_all(&layout.meta_pages())?;
    let (found, _) = lay_out(view, BoltWriter::new(out))?;
    if found != *layout {
        return Err(io::Error::other("the state is not the one that was measured").into());
    }
    Ok(())
}

/// All buckets, and how many rows there are.
fn lay_out<W: Write>(view: &impl View, mut bolt: BoltWriter<W>) -> Result<(Layout, u64), WriteError> {
    let mut rows = 0;
    for table in Table::ALL {
        // Buckets go by name, and `key` comes before `lease`.
        if table == Table::Lease {
            rows = write_rows(view, bolt.bucket(KEY_BUCKET))?;
        }
        let mut bucket = bolt.bucket(table.name());
        let has_place = |key: &[u8]| table != Table::Meta || !state_machine::is_of_this_store(key);
        for (key, value) in view.table(table)?.into_iter().filter(|(key, _)| has_place(key)) {
            bucket.put(&key, value)?;
        }
        bucket.finish()?;
    }
    Ok((bolt.finish()?, rows))
}

fn write_rows<W: Write>(view: &impl View, mut bucket: BucketWriter<'_, W>) -> Result<u64, WriteError> {
    let mut rows = 0;
    let mut fault = None;
    let all = RowId::default()..=RowId { main: Revision(i64::MAX), sub: SUB_MAX };
    view.scan(all, &mut |id, row| {
        let (key, len) = etcd_row_key(id, row.tombstone);
        match bucket.put(&key[..len], row.value) {
            Ok(()) => {
                rows += 1;
                ControlFlow::Continue(())
            }
            Err(error) => {
                fault = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = fault {
        return Err(error.into());
    }
    bucket.finish()?;
    Ok(rows)
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error("a bbolt database without the bucket {0:?}: not one of etcd's")]
    NoBucket(&'static str),
    #[error("bucket key: a key of {0} bytes is not a revision")]
    RowKey(usize),
    #[error("bucket meta: {name} has {bytes} bytes instead of 8")]
    MetaNumber { name: &'static str, bytes: usize },
}

/// Called with an id, whether the row is a tombstone, and its value, until it breaks.
pub type EachRow<'a> = dyn FnMut(RowId, bool, &[u8]) -> ControlFlow<()> + 'a;

/// An etcd database file.
pub struct DbFile {
    pub(super) bolt: BoltFile,
    position: LogPosition,
}

impl DbFile {
    /// A digest after the database is no hindrance; whether it fits is [`super::check_digest`]'s business.
    pub fn open(file: File) -> Result<DbFile, ReadError> {
        let bolt = BoltFile::open(file)?;
        for needed in [KEY_BUCKET, Table::Meta.name()] {
            if !bolt.bucket_names().any(|name| name == needed.as_bytes()) {
                return Err(ReadError::NoBucket(needed));
            }
        }
        let mut db = DbFile { bolt, position: LogPosition::default() };
        let (mut index, mut term) = (None, None);
        db.each_pair(Table::Meta, &mut |key, value| {
            match key {
                b"consistent_index" => index = Some(Bytes::copy_from_slice(value)),
                b"term" => term = Some(Bytes::copy_from_slice(value)),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        let number = |name: &'static str, value: Option<Bytes>| match value {
            None => Ok(0),
            Some(value) => match value.as_ref().try_into() {
                Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
                Err(_) => Err(ReadError::MetaNumber { name, bytes: value.len() }),
            },
        };
        db.position = LogPosition {
            term: Term(number("term", term)?),
            index: LogIndex(number("consistent_index", index)?),
        };
        Ok(db)
    }

    /// `meta/consistent_index` and `meta/term`. The term is 0 in files written before etcd 3.5, both are in a new database.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// Bytes of the pages in use, which etcd's status calls the total size.
    pub fn used_bytes(&self) -> u64 {
        self.bolt.used_bytes()
    }

    /// Every row in order, its value as a slice of the page.
    pub fn each_row(&self, each: &mut EachRow<'_>) -> Result<(), ReadError> {
        let mut fault = None;
        self.bolt.each(KEY_BUCKET.as_bytes(), &mut |key, value| match parse_etcd_row_key(key) {
            Some((id, tombstone)) => each(id, tombstone, value),
            None => {
                fault = Some(ReadError::RowKey(key.len()));
                ControlFlow::Break(())
            }
        })?;
        fault.map_or(Ok(()), Err)
    }

    /// Every pair of a small table in order; none when the file has no such bucket (etcd adds missing ones when it opens a file).
    pub fn each_pair(&self, table: Table, each: &mut EachPair<'_>) -> Result<(), ReadError> {
        self.bolt.each(table.name().as_bytes(), each)?;
        Ok(())
    }

    /// All pairs of a small table.
    pub fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        let mut out = Vec::new();
        self.each_pair(table, &mut |key, value| {
            out.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        Ok(out)
    }

    /// Everything etcd's `snapshot status` says of a file.
    pub fn status(&self) -> Result<Status, ReadError> {
        Ok(dbfile::status_of(&self.bolt)?)
    }
}

impl View for DbFile {
    fn position(&self) -> LogPosition {
        self.position
    }

    fn scan(
        &self,
        ids: std::ops::RangeInclusive<RowId>,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.each_row(&mut |id, tombstone, value| {
            if id > *ids.end() {
                ControlFlow::Break(())
            } else if id < *ids.start() {
                ControlFlow::Continue(())
            } else {
                each(id, StoredRow { tombstone, value: Bytes::copy_from_slice(value) })
            }
        })
        .map_err(|error| StoreError { operation: "read a database file", source: error.into() })
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        DbFile::table(self, table)
            .map_err(|error| StoreError { operation: "read a database file", source: error.into() })
    }
}
