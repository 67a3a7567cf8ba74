//! What apply needs from a disk: rows by revision, small tables, and one atomic batch per step that cannot be built without the
//! applied position. [`Memory`](crate::memory::Memory) is the model of this trait; the storage crate holds the durable one, and one
//! conformance suite runs on both.
//!
//! Not here: when anything becomes durable. The write-ahead log has every acknowledged entry; a store may lose its newest batches
//! in a crash, but only whole ones, newest first, and never the position apart from the data (etcd 3.5 did, issue 13766).

use std::ops::ControlFlow;

use bytes::Bytes;
use types::{LogPosition, RowId};

/// The small tables, by etcd's bucket names; `key` is not among them because its rows are addressed by [`RowId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Alarm,
    Auth,
    AuthRoles,
    AuthUsers,
    Cluster,
    Lease,
    Members,
    MembersRemoved,
    Meta,
}

impl Table {
    /// In the order of their names, which is the order in which Maintenance.Hash visits them (`key` stands between Cluster and Lease).
    pub const ALL: [Table; 9] = [
        Table::Alarm,
        Table::Auth,
        Table::AuthRoles,
        Table::AuthUsers,
        Table::Cluster,
        Table::Lease,
        Table::Members,
        Table::MembersRemoved,
        Table::Meta,
    ];

    /// The bucket name in etcd's database file.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Alarm => "alarm",
            Table::Auth => "auth",
            Table::AuthRoles => "authRoles",
            Table::AuthUsers => "authUsers",
            Table::Cluster => "cluster",
            Table::Lease => "lease",
            Table::Members => "members",
            Table::MembersRemoved => "members_removed",
            Table::Meta => "meta",
        }
    }
}

/// One stored version: an encoded `mvccpb.KeyValue`. A tombstone's value holds only the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    pub tombstone: bool,
    pub value: Bytes,
}

/// Bytes on disk, for Status and quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSize {
    pub total_bytes: u64,
    pub in_use_bytes: u64,
}

/// The disk failed. Inside apply this ends the process; it is never an answer to a client.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct StoreError {
    pub operation: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One change inside a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    PutRow { id: RowId, row: StoredRow },
    DeleteRow { id: RowId, tombstone: bool },
    Put { table: Table, key: Bytes, value: Bytes },
    Delete { table: Table, key: Bytes },
}

/// Changes that become visible and durable together, with the applied position they bring the store to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteBatch {
    position: LogPosition,
    pub changes: Vec<Change>,
}

impl WriteBatch {
    /// The only way to begin a batch. Physical compaction, which no log entry causes, passes the position of the batch before it.
    pub fn at(position: LogPosition) -> WriteBatch {
        WriteBatch { position, changes: Vec::new() }
    }

    /// The applied position after this batch. A store writes it as `meta/consistent_index` and `meta/term` (8 bytes big-endian each,
    /// as etcd does) in the same atomic step as the changes.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    pub fn put_row(&mut self, id: RowId, row: StoredRow) {
        self.changes.push(Change::PutRow { id, row });
    }

    pub fn delete_row(&mut self, id: RowId, tombstone: bool) {
        self.changes.push(Change::DeleteRow { id, tombstone });
    }

    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push(Change::Put { table, key: key.into(), value: value.into() });
    }

    pub fn delete(&mut self, table: Table, key: impl Into<Bytes>) {
        self.changes.push(Change::Delete { table, key: key.into() });
    }
}

/// See the module text. Methods may be called from any thread; `write` from one at a time.
pub trait Store: Send + Sync + 'static {
    /// One row. Sees every batch given to `write` before, whether it reached the disk or not.
    fn row(&self, id: RowId) -> Result<Option<StoredRow>, StoreError>;

    /// Several rows, answered in the order asked. Same visibility as [`Store::row`].
    fn rows(&self, ids: &[RowId]) -> Result<Vec<Option<StoredRow>>, StoreError> {
        ids.iter().map(|id| self.row(*id)).collect()
    }

    /// Rows with `from <= id <= to` in order, until `each` breaks. Sees at least everything written before the call.
    fn scan(
        &self,
        from: RowId,
        to: RowId,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// All pairs of a small table in key order. `Meta` includes the applied position.
    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Takes one batch. The order of calls is the order of effect. May wait when too many bytes are queued for the disk.
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError>;

    /// Waits until the next `write` need not wait. Apply calls it before it takes the lock that readers share, so that a slow disk
    /// delays apply alone. The default never waits.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size(&self) -> StoreSize;
}
