//! Whole states as files in etcd's database format. The same bytes serve a lagging peer, a backup, and the road from and to etcd:
//! [`write`] makes a file from a pinned view, [`stream`] its bytes alone, [`DbFile`] reads one, [`install`] puts one in place of the state, [`Ahead`] builds
//! that state while the file arrives,
//! [`restore`] makes a new cluster's first state of one.
//!
//! Not here: bbolt's pages as they are read, digests (dbfile), sending and receiving (transport), when to do either (node).

mod ahead;
mod behind;
mod bolt_write;
mod etcd_db;
mod install;
mod restore;
mod room;

use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use state_machine::store::{Store, StoreError, StoredRow, Table};
use types::{LogIndex, LogPosition, RowId, Term};

pub use ahead::{Ahead, Waiting};
pub use behind::SyncBehind;
pub use bolt_write::{Layout, PAGE_BYTES};
pub use dbfile::{
    BoltError, DIGEST_BYTES, EachPair, HashingReader, KEY_BUCKET, Status, append_digest, check_digest,
    has_digest, sha256,
};
pub use etcd_db::{DbFile, EachRow, ReadError, SnapshotFile, WriteError, measure, stream, write};
pub use install::{InstallError, Installed, Prepared, install};
pub use restore::{Restoration, RestoreError, Restored, restore};
pub use room::Room;

/// A consistent, unchanging state at one applied position.
pub trait View {
    /// The position that the rows and tables are at.
    fn position(&self) -> LogPosition;

    /// Rows in order until `each` breaks.
    fn scan(
        &self,
        ids: RangeInclusive<RowId>,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// All pairs of a small table in key order.
    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
}

/// Any store as a view. The caller sees to it that nobody writes meanwhile: a plain store has no moment to hold on to.
pub struct Quiet<'a, S> {
    store: &'a S,
    position: LogPosition,
}

impl<'a, S: Store> Quiet<'a, S> {
    pub fn new(store: &'a S) -> Result<Quiet<'a, S>, StoreError> {
        let meta = store.table(Table::Meta)?;
        let number = |name: &str| {
            let value = meta.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref());
            value.and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes)
        };
        let position =
            LogPosition { term: Term(number("term")), index: LogIndex(number("consistent_index")) };
        Ok(Quiet { store, position })
    }
}

impl<S: Store> View for Quiet<'_, S> {
    fn position(&self) -> LogPosition {
        self.position
    }

    fn scan(
        &self,
        ids: RangeInclusive<RowId>,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.store.scan(*ids.start(), *ids.end(), each)
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.store.table(table)
    }
}
