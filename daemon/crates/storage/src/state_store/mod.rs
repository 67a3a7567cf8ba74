//! The durable state: rows by revision and etcd's small tables, in an LSM tree (fjall) that is never synced per batch. The
//! write-ahead log has every acknowledged entry; the store only promises to come back at a whole-batch prefix, with the applied
//! position that belongs to it, and to be synced when [`FjallStore::persist`] says so.
//!
//! `write` puts a batch into the overlay, where every reader looks first, and into a bounded queue; one thread merges queued batches
//! into commits. So apply never waits for fjall's journal lock, for an fsync, or for its back-pressure, until the queue is full.
//!
//! There is one keyspace, and that is a decision. fjall flushes keyspaces one by one, and a flush takes every sealed memtable, also
//! one sealed after the journal was synced for it. With rows and applied position in two keyspaces a power loss in that window could
//! leave the position ahead of the rows. In one keyspace a batch is in one memtable, a flush installs whole memtables in one step,
//! and the position cannot part from its data. No idle keyspace can keep journals alive either (fjall issue 288). The price: every
//! flushed table ends in the small tables' keys, so tables overlap at that end and are merged once more instead of being moved.
//!
//! Compaction deletes rows by id; the space comes back when the tree merges the deletes with the rows, in the background while
//! writes go on, or at once with [`FjallStore::reclaim`].
//!
//! Not here: what rows mean, when to persist (node), how a snapshot file looks ([`crate::snapshot`]).

mod directory;
mod error;
mod import;
mod journal;
mod keys;
mod overlay;
mod view;
mod writer;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;
use state_machine::store::{Store, StoreError, StoreSize, StoredRow, Table, WriteBatch};
use types::{LogPosition, Revision, RowId};

pub use error::{Failed, OpenError};
pub use keys::{SUB_MAX, TABLE_KEY_BYTES_MAX, etcd_row_key, parse_etcd_row_key};
pub use view::StateView;
pub use writer::FatalHook;

pub(crate) use directory::{Partial, begin as begin_generation, installed_from, record_installed};
pub use directory::{clean_unused, look};
pub(crate) use import::{Piece, Take};

use error::store_error as failed;
use writer::{Counters, Shared};

const KEYSPACE: &str = "state";
const FJALL_DIR: &str = "fjall";
const FJALL_LOCK_FILE: &str = "lock";
/// fjall writes this file last when it creates a database.
const FJALL_VERSION_FILE: &str = "version";

/// fjall's smallest. Journals are sealed at 64 MB and freed when the one keyspace has flushed what is in them, so more would only be
/// reached behind a stuck flush.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One thread that flushes whatever else happens, one that merges.
const WORKER_THREADS: usize = 2;

/// Tables are 32 MiB, so 256 open files cover 8 GiB, etcd's largest recommended quota; beyond it files are reopened.
const OPEN_FILES_MAX: usize = 256;
const TABLE_BYTES: u64 = 32 * 1024 * 1024;

/// Twice fjall's default: rows are read in runs (index rebuild, snapshots, compaction, watchers catching up), and single reads of a
/// row that the index does not hold inline are rare.
const BLOCK_BYTES: u32 = 8 * 1024;

/// Rows of one step of a scan. Between steps nothing is held: neither the overlay nor a view of the tree.
const SCAN_STEP_ROWS: usize = 2048;
/// The same by size, for large values.
const SCAN_STEP_BYTES: usize = 4 * 1024 * 1024;

/// What may be tuned.
#[derive(Clone)]
pub struct StoreOptions {
    /// Block cache. The index holds the newest values inline, so the cache serves history and compaction.
    pub cache_bytes: u64,
    /// Size at which a memtable is flushed. Up to five exist under back-pressure.
    pub memtable_bytes: u64,
    /// Batches waiting for the writer, by their size in memory. Past it `wait_for_room` waits, and `write` past twice of it. It must
    /// hold what apply produces during one fsync of the journal, about a second on a busy disk; if it is full for other reasons, the
    /// disk is slower than apply and more queueing would only move the wait.
    pub queue_bytes_max: usize,
    /// Called once when the store can no longer write.
    pub on_fatal: Option<FatalHook>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            cache_bytes: 64 * 1024 * 1024,
            memtable_bytes: 16 * 1024 * 1024,
            queue_bytes_max: 64 * 1024 * 1024,
            on_fatal: None,
        }
    }
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions")
            .field("cache_bytes", &self.cache_bytes)
            .field("memtable_bytes", &self.memtable_bytes)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .finish_non_exhaustive()
    }
}

/// See the module text. Dropping it commits what is queued, without syncing it.
pub struct FjallStore {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    durable: Mutex<LogPosition>,
    /// Last, so that the directory is free for cleanup only when everything above has let go of it.
    _claim: Option<directory::InUse>,
}

impl FjallStore {
    /// Opens the state under `root`, which is created when missing, and removes what crashed installations left there.
    pub fn open(root: &Path, options: StoreOptions) -> Result<FjallStore, OpenError> {
        let generation = match directory::current(root)? {
            Some(generation) => generation,
            None => {
                let partial = directory::begin(root)?;
                drop(FjallStore::open_dir(partial.path(), &options, None)?);
                partial.publish()?;
                directory::current(root)?.expect("a state was just published")
            }
        };
        let claim = generation.claim;
        FjallStore::open_dir(&generation.path, &options, Some(claim))
    }

    /// Opens a single state directory, below whatever names it.
    pub(crate) fn open_dir(
        dir: &Path,
        options: &StoreOptions,
        claim: Option<directory::InUse>,
    ) -> Result<FjallStore, OpenError> {
        let path = dir.join(FJALL_DIR);
        let version = path.join(FJALL_VERSION_FILE);
        let is_there = version.try_exists().map_err(OpenError::io("look for", &version))?;
        if !is_there && claim.is_some() {
            // It had one when it got its name: what else is there may be all of the state.
            let what = format!("{} is missing", version.display());
            return Err(OpenError::Inconsistent { path, what });
        }
        if !is_there && path.is_dir() {
            // A crash while it was created; it holds nothing yet, and fjall itself would stumble over it for ever.
            fs::remove_dir_all(&path).map_err(OpenError::io("remove unfinished", &path))?;
        }
        let (db, keyspace) = open_tree(&path, options)?;
        let (position, counters) = {
            let snapshot = db.snapshot();
            let position = view::read_position(&snapshot, &keyspace).map_err(OpenError::fjall(&path))?;
            let counters = keyspace.get(keys::COUNTERS_KEY).map_err(OpenError::fjall(&path))?;
            (position, counters.map_or(Counters::default(), |bytes| Counters::decode(&bytes)))
        };
        let shared = Shared::new(db, keyspace, position, options.queue_bytes_max, options.on_fatal.clone());
        let shared = Arc::new(shared);
        let writer = std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(counters)
            })
            .map_err(OpenError::io("start the writer thread for", dir))?;
        // fjall has synced its journal while opening, so what was recovered is on the disk.
        Ok(FjallStore { shared, writer: Some(writer), durable: Mutex::new(position), _claim: claim })
    }

    /// Applied position after the newest batch given to `write`.
    pub fn position(&self) -> LogPosition {
        self.shared.overlay.read().position
    }

    /// Position up to which the disk has everything, as far as is known.
    pub fn durable(&self) -> LogPosition {
        *self.durable.lock()
    }

    /// Waits until everything written before the call is committed, then syncs it. Returns the durable position. May take long;
    /// `write` goes on meanwhile, into the queue.
    pub fn persist(&self) -> Result<LogPosition, StoreError> {
        let position = self.shared.drain().map_err(failed("persist"))?;
        if let Err(error) = self.shared.db.persist(PersistMode::SyncAll) {
            return Err(failed("persist")(self.shared.fail(format!("sync: {error}"))));
        }
        let mut durable = self.durable.lock();
        if position.index > durable.index {
            *durable = position;
        }
        Ok(*durable)
    }

    /// The state at or after everything written before the call.
    pub fn view(&self) -> Result<StateView, StoreError> {
        self.shared.drain().map_err(failed("take a view"))?;
        // Only the writer commits, and a commit becomes visible as a whole, so the tree is at a batch boundary at any time.
        StateView::new(self.shared.db.snapshot(), self.shared.keyspace.clone())
    }

    /// A small record beside the tables, for whoever identifies this state; not part of snapshots.
    pub fn marker(&self) -> Result<Option<Bytes>, StoreError> {
        let found = self.shared.keyspace.get(keys::MARKER_KEY).map_err(failed("read the marker"))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Replaces the record; it is on disk when this returns.
    pub fn set_marker(&self, marker: &[u8]) -> Result<(), StoreError> {
        self.shared.set_marker(marker.to_vec()).map_err(failed("write the marker"))?;
        self.persist().map(|_| ())
    }

    /// Merges the whole tree now, so that deleted rows give back their space. Runs in the calling thread for as long as rewriting
    /// everything takes; reads and writes go on. Views opened before keep the old files.
    pub fn reclaim(&self) -> Result<(), StoreError> {
        let flush = || -> Result<(), Failed> {
            self.shared.drain()?;
            self.shared.flush()
        };
        flush().map_err(failed("reclaim space"))?;
        self.shared.keyspace.major_compact().map_err(failed("reclaim space"))?;
        // fjall drops the files of former versions when the next memtable is sealed, and seals none that is empty.
        self.shared.rewrite_position().and_then(|()| flush()).map_err(failed("reclaim space"))
    }

    /// Number of fjall's journals, for diagnosis.
    pub fn journal_count(&self) -> usize {
        self.shared.db.journal_count()
    }

    fn tree_row(&self, id: RowId) -> Result<Option<StoredRow>, StoreError> {
        // A put is asked for first: readers look for tombstones only when they copy or hash history.
        for tombstone in [false, true] {
            let Some(key) = keys::row_key(id, tombstone) else { return Ok(None) };
            if let Some(value) = self.shared.keyspace.get(key).map_err(failed("read a row"))? {
                return Ok(Some(StoredRow { tombstone, value: Bytes::copy_from_slice(&value) }));
            }
        }
        Ok(None)
    }

    /// One step of a scan: rows from `from` on, in order, and the id up to which they are complete.
    fn scan_step(&self, from: RowId, to: RowId) -> Result<(Vec<(RowId, StoredRow)>, RowId), StoreError> {
        // First the overlay, then the tree: what leaves the overlay in between is in the tree already.
        let (pending, mut complete_to) = self.shared.overlay.read().rows(from..=to, SCAN_STEP_ROWS);
        let snapshot = self.shared.db.snapshot();
        let mut out: Vec<(RowId, StoredRow)> = Vec::new();
        let mut bytes = 0;
        let mut pending = pending.into_iter().peekable();
        for row in view::scan_tree(&snapshot, &self.shared.keyspace, from..=complete_to) {
            let (id, row) = row?;
            while let Some((early, pending)) = pending.next_if(|(pending, _)| *pending < id) {
                out.extend(pending.map(|row| (early, row)));
            }
            let newest = match pending.next_if(|(pending, _)| *pending == id) {
                Some((_, replaced)) => replaced,
                None => Some(row),
            };
            if let Some(row) = newest {
                bytes += row.value.len();
                out.push((id, row));
            }
            if out.len() >= SCAN_STEP_ROWS || bytes >= SCAN_STEP_BYTES {
                complete_to = id;
                return Ok((out, complete_to));
            }
        }
        out.extend(pending.filter_map(|(id, row)| row.map(|row| (id, row))));
        Ok((out, complete_to))
    }
}

impl Store for FjallStore {
    fn row(&self, id: RowId) -> Result<Option<StoredRow>, StoreError> {
        if let Some(pending) = self.shared.overlay.read().row(id) {
            return Ok(pending);
        }
        self.tree_row(id)
    }

    fn rows(&self, ids: &[RowId]) -> Result<Vec<Option<StoredRow>>, StoreError> {
        let pending: Vec<_> = {
            let overlay = self.shared.overlay.read();
            ids.iter().map(|id| overlay.row(*id)).collect()
        };
        ids.iter()
            .zip(pending)
            .map(|(id, pending)| match pending {
                Some(row) => Ok(row),
                None => self.tree_row(*id),
            })
            .collect()
    }

    fn scan(
        &self,
        from: RowId,
        to: RowId,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut from = from;
        while from <= to {
            let (rows, complete_to) = self.scan_step(from, to)?;
            for (id, row) in rows {
                if each(id, row).is_break() {
                    return Ok(());
                }
            }
            if complete_to >= to {
                return Ok(());
            }
            from = after(complete_to);
        }
        Ok(())
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let (pending, position) = {
            let overlay = self.shared.overlay.read();
            (overlay.table(table), overlay.position)
        };
        let snapshot = self.shared.db.snapshot();
        let stored = view::read_table(&snapshot, &self.shared.keyspace, table)?;
        let mut merged: std::collections::BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
        for (key, value) in pending {
            match value {
                Some(value) => merged.insert(key, value),
                None => merged.remove(&key),
            };
        }
        if table == Table::Meta && position != LogPosition::default() {
            let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
            merged.insert(Bytes::from_static(keys::CONSISTENT_INDEX), number(position.index.0));
            merged.insert(Bytes::from_static(keys::TERM), number(position.term.0));
        }
        Ok(merged.into_iter().collect())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        writer::check(&batch).map_err(|what| StoreError { operation: "write", source: what.into() })?;
        self.shared.write(batch).map_err(failed("write"))
    }

    fn wait_for_room(&self) -> Result<(), StoreError> {
        self.shared.wait_for_room().map_err(failed("write"))
    }

    fn size(&self) -> StoreSize {
        let in_use = self.shared.in_use_bytes.load(Ordering::Relaxed);
        let total = self.shared.total_bytes.load(Ordering::Relaxed);
        StoreSize { total_bytes: total.max(in_use), in_use_bytes: in_use }
    }
}

impl Drop for FjallStore {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the state store's writer thread panicked");
        }
    }
}

/// The next possible id.
fn after(id: RowId) -> RowId {
    if id.sub < SUB_MAX {
        RowId { main: id.main, sub: id.sub + 1 }
    } else {
        RowId { main: Revision(id.main.0.saturating_add(1)), sub: 0 }
    }
}

/// fjall's own lock, for as long as its files are touched before it opens them.
fn lock_tree(path: &Path) -> Result<fs::File, OpenError> {
    let lock = path.join(FJALL_LOCK_FILE);
    let file =
        fs::File::options().read(true).write(true).open(&lock).map_err(OpenError::io("open", &lock))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(OpenError::io("lock", &lock)(error)),
    }
}

fn open_tree(path: &Path, options: &StoreOptions) -> Result<(Database, Keyspace), OpenError> {
    if path.join(FJALL_VERSION_FILE).exists() {
        let _lock = lock_tree(path)?;
        let cut = journal::cut_damaged_tail(path)
            .map_err(OpenError::io("cut the unsynced end of the journal in", path))?;
        if let Some(cut) = cut {
            tracing::info!(journal = %cut.journal.display(), at = cut.at, before = cut.before, "end of the journal cut");
        }
    }
    let db = Database::builder(path)
        .cache_size(options.cache_bytes)
        .worker_threads(WORKER_THREADS)
        .max_cached_files(Some(OPEN_FILES_MAX))
        .max_journaling_size(JOURNAL_BYTES_MAX)
        // Values are mostly below the size at which compressing pays, and the writer's time is the scarcer good.
        .journal_compression(CompressionType::None)
        .open()
        .map_err(OpenError::fjall(path))?;
    let memtable_bytes = options.memtable_bytes;
    let create = || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(memtable_bytes)
            .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
            .data_block_compression_policy(CompressionPolicy::disabled())
            // Rows are asked for by ids that the index knows, so a filter on the last level would never say no.
            .expect_point_read_hits(true)
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
                10.0,
            ))))
            .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
    };
    let keyspace = db.keyspace(KEYSPACE, create).map_err(OpenError::fjall(path))?;
    Ok((db, keyspace))
}
