//! A consistent read-only state at one applied position. Writes go on beside it; it holds no lock, but the tree keeps what the view
//! may still read, so a view is for minutes, not for ever.
//!
//! Not here: pending changes. A view is taken after the queue was drained, from the tree alone.

use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use fjall::{Keyspace, Readable, Snapshot};
use state_machine::store::{StoreError, StoredRow, Table};
use types::{LogPosition, RowId};

use super::error::store_error;
use super::keys;
use crate::snapshot::View;

/// See the module text.
pub struct StateView {
    snapshot: Snapshot,
    keyspace: Keyspace,
    position: LogPosition,
}

impl StateView {
    pub(super) fn new(snapshot: Snapshot, keyspace: Keyspace) -> Result<StateView, StoreError> {
        let position =
            read_position(&snapshot, &keyspace).map_err(store_error("read the applied position"))?;
        Ok(StateView { snapshot, keyspace, position })
    }
}

impl View for StateView {
    fn position(&self) -> LogPosition {
        self.position
    }

    fn scan(
        &self,
        ids: RangeInclusive<RowId>,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        for row in scan_tree(&self.snapshot, &self.keyspace, ids) {
            let (id, row) = row?;
            if each(id, row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        read_table(&self.snapshot, &self.keyspace, table)
    }
}

pub(super) fn scan_tree(
    snapshot: &Snapshot,
    keyspace: &Keyspace,
    ids: RangeInclusive<RowId>,
) -> impl Iterator<Item = Result<(RowId, StoredRow), StoreError>> {
    let empty = ids.is_empty() || ids.end().main.0 < 0;
    let (from, to) = (keys::row_key_from(*ids.start()), keys::row_key_to(*ids.end()));
    let range = (!empty && from <= to).then(|| snapshot.range(keyspace, from..=to));
    range.into_iter().flatten().map(|guard| {
        let (key, value) = guard.into_inner().map_err(store_error("scan rows"))?;
        let (id, tombstone) = parse(&key)?;
        Ok((id, StoredRow { tombstone, value: Bytes::copy_from_slice(&value) }))
    })
}

fn parse(key: &[u8]) -> Result<(RowId, bool), StoreError> {
    keys::parse_row_key(key).ok_or_else(|| StoreError {
        operation: "scan rows",
        source: format!("key of {} bytes among the rows", key.len()).into(),
    })
}

pub(super) fn read_table(
    snapshot: &Snapshot,
    keyspace: &Keyspace,
    table: Table,
) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let prefix = keys::table_prefix(table);
    snapshot
        .prefix(keyspace, prefix)
        .map(|guard| {
            let (key, value) = guard.into_inner().map_err(store_error("read a table"))?;
            Ok((Bytes::copy_from_slice(&key[prefix.len()..]), Bytes::copy_from_slice(&value)))
        })
        .collect()
}

/// Zero in a store that was never written.
pub(super) fn read_position(snapshot: &Snapshot, keyspace: &Keyspace) -> Result<LogPosition, fjall::Error> {
    let number = |name: &[u8]| -> Result<u64, fjall::Error> {
        let value = snapshot.get(keyspace, keys::table_key(Table::Meta, name))?;
        Ok(value.and_then(|value| value.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes))
    };
    Ok(LogPosition {
        term: types::Term(number(keys::TERM)?),
        index: types::LogIndex(number(keys::CONSISTENT_INDEX)?),
    })
}
