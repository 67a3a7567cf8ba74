//! Whole states as files in etcd's database format.

use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use state_machine::store::{StoreError, StoredRow, Table};
use types::{LogPosition, RowId};

/// A consistent, unchanging state at one applied position.
pub trait View {
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
