//! The model of [`Store`]: ordered maps in memory. Exact and slow enough to be obvious; tests and simulations run on it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use parking_lot::RwLock;
use types::RowId;

use crate::rows::meta;
use crate::store::{Change, Store, StoreError, StoreSize, StoredRow, Table, WriteBatch};

/// Bytes counted for a row or pair beyond its value, so that sizes are plausible next to a disk's.
const ROW_OVERHEAD_BYTES: u64 = 32;

/// See the module text. A clone is an independent copy: what a test keeps as "the disk before the crash".
#[derive(Debug, Default)]
pub struct Memory {
    inner: RwLock<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    rows: BTreeMap<RowId, StoredRow>,
    tables: BTreeMap<(Table, Bytes), Bytes>,
    bytes: u64,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Number of rows, tombstones included.
    pub fn row_count(&self) -> usize {
        self.inner.read().rows.len()
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Memory { inner: RwLock::new(self.inner.read().clone()) }
    }
}

impl PartialEq for Memory {
    fn eq(&self, other: &Memory) -> bool {
        let (a, b) = (self.inner.read().clone(), other.inner.read().clone());
        a.rows == b.rows && a.tables == b.tables
    }
}

fn row_bytes(row: &StoredRow) -> u64 {
    row.value.len() as u64 + ROW_OVERHEAD_BYTES
}

fn pair_bytes(key: &Bytes, value: &Bytes) -> u64 {
    (key.len() + value.len()) as u64 + ROW_OVERHEAD_BYTES
}

impl Inner {
    fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.bytes += pair_bytes(&key, &value);
        if let Some(old) = self.tables.insert((table, key.clone()), value) {
            self.bytes -= pair_bytes(&key, &old);
        }
    }
}

impl Store for Memory {
    fn row(&self, id: RowId) -> Result<Option<StoredRow>, StoreError> {
        Ok(self.inner.read().rows.get(&id).cloned())
    }

    fn scan(
        &self,
        from: RowId,
        to: RowId,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if from > to {
            return Ok(());
        }
        // The callback may call back into the store, so no lock is held while it runs.
        let mut next = Some(from);
        while let Some(start) = next.take() {
            const SCAN_ROWS: usize = 256;
            let rows: Vec<(RowId, StoredRow)> = self
                .inner
                .read()
                .rows
                .range(start..=to)
                .take(SCAN_ROWS)
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            if rows.len() == SCAN_ROWS {
                let last = rows[SCAN_ROWS - 1].0;
                next = last
                    .sub
                    .checked_add(1)
                    .map(|sub| RowId { main: last.main, sub })
                    .filter(|next| *next <= to);
            }
            for (id, row) in rows {
                if each(id, row).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let inner = self.inner.read();
        let pairs = inner.tables.range((table, Bytes::new())..).take_while(|((of, _), _)| *of == table);
        Ok(pairs.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut inner = self.inner.write();
        let position = batch.position();
        for change in batch.changes {
            match change {
                Change::PutRow { id, row } => {
                    inner.bytes += row_bytes(&row);
                    if let Some(old) = inner.rows.insert(id, row) {
                        inner.bytes -= row_bytes(&old);
                    }
                }
                Change::DeleteRow { id, .. } => {
                    if let Some(old) = inner.rows.remove(&id) {
                        inner.bytes -= row_bytes(&old);
                    }
                }
                Change::Put { table, key, value } => inner.put(table, key, value),
                Change::Delete { table, key } => {
                    if let Some(old) = inner.tables.remove(&(table, key.clone())) {
                        inner.bytes -= pair_bytes(&key, &old);
                    }
                }
            }
        }
        let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
        inner.put(Table::Meta, Bytes::from_static(meta::CONSISTENT_INDEX), number(position.index.0));
        inner.put(Table::Meta, Bytes::from_static(meta::TERM), number(position.term.0));
        Ok(())
    }

    fn size(&self) -> StoreSize {
        let bytes = self.inner.read().bytes;
        StoreSize { total_bytes: bytes, in_use_bytes: bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_store() {
        crate::conformance::store_conformance(Memory::new, |store| store.clone());
    }
}
