//! Fills an empty store with a whole state, as sorted tables written directly: no journal, no memtable, nothing to merge afterwards.
//! The state appears in one step at the end; before it the store is as empty as it was.
//!
//! Not here: where the state comes from, and reading it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use fjall::Slice;
use state_machine::store::{StoreError, Table};
use types::{LogPosition, RowId};

use super::FjallStore;
use super::error::store_error;
use super::keys::{self, COUNTERS_KEY};
use super::writer::Counters;
use crate::snapshot::SyncBehind;

/// One piece of a state. Rows come first, by id; then pairs, by table in the order of [`Table::ALL`], by key within it. The applied
/// position is not among them.
pub enum Piece<'a> {
    Row { id: RowId, tombstone: bool, value: &'a [u8] },
    Pair { table: Table, key: &'a [u8], value: &'a [u8] },
}

/// Takes the pieces one by one.
pub type Take<'a> = dyn FnMut(Piece<'_>) -> Result<(), StoreError> + 'a;

/// Where fjall keeps the tables of a keyspace, under their numbers.
const TABLES_FOLDER: &str = "tables";

/// Syncs the table that is being written. fjall syncs each at its end, and tells whoever asked if that fails: here it is only done earlier, so
/// that there is never much of it to do.
fn sync_newest(tables: &Path) {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
    let newest = fs::read_dir(tables).ok().and_then(|entries| entries.flatten().filter_map(number).max());
    if let Some(file) = newest.and_then(|number| File::open(tables.join(number.to_string())).ok()) {
        let _ = file.sync_data();
    }
}

impl FjallStore {
    /// Ends the handle, because what it knows of its store is outdated afterwards.
    pub(crate) fn import<E: From<StoreError>>(
        self,
        position: LogPosition,
        feed: impl FnOnce(&mut Take<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let fault = store_error::<fjall::Error>;
        let tables = self.shared.keyspace.path().join(TABLES_FOLDER);
        let mut behind = SyncBehind::new(move || {
            sync_newest(&tables);
            Ok(())
        })
        .map_err(store_error("begin an import"))?;
        let mut ingestion = self.shared.keyspace.start_ingestion().map_err(fault("begin an import"))?;
        let mut counters = Counters::default();
        let mut counted = false;
        // Gathered, because the position belongs among these in the order of keys. A handful of pairs.
        let mut meta: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        feed(&mut |piece| match piece {
            Piece::Row { id, tombstone, value } => {
                let key = keys::row_key(id, tombstone).ok_or_else(|| StoreError {
                    operation: "import a row",
                    source: format!("row {id} is outside the range of ids").into(),
                })?;
                counters.add_row(value.len());
                behind.wrote((keys::ROW_KEY_BYTES + value.len()) as u64);
                ingestion.write(key, Slice::new(value)).map_err(fault("import a row"))
            }
            Piece::Pair { table: Table::Meta, key, value } => {
                meta.insert(key.to_vec(), value.to_vec());
                Ok(())
            }
            Piece::Pair { table, key, value } => {
                if !std::mem::replace(&mut counted, true) {
                    ingestion.write(COUNTERS_KEY, counters.encode()).map_err(fault("import"))?;
                }
                ingestion
                    .write(keys::table_key(table, key), Slice::new(value))
                    .map_err(fault("import a pair"))
            }
        })?;
        if !counted {
            ingestion.write(COUNTERS_KEY, counters.encode()).map_err(fault("import"))?;
        }
        meta.insert(keys::CONSISTENT_INDEX.to_vec(), position.index.0.to_be_bytes().to_vec());
        meta.insert(keys::TERM.to_vec(), position.term.0.to_be_bytes().to_vec());
        for (key, value) in meta {
            ingestion.write(keys::table_key(Table::Meta, &key), value).map_err(fault("import a pair"))?;
        }
        Ok(ingestion.finish().map_err(fault("end an import"))?)
    }
}
