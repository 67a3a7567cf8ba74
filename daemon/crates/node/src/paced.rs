//! Reads a view no faster than allowed, for whoever writes a whole state into a file beside members that serve clients.
//!
//! The rate is a ceiling: what the disk was late is made up for, so that a file takes its size divided by the rate when the disk keeps up.
//! Not here: what the rate is (settings), and the pace of the network (transport).

use std::{
    num::NonZeroU64,
    ops::{ControlFlow, RangeInclusive},
    time::{Duration, Instant},
};

use bytes::Bytes;
use state_machine::store::{StoreError, StoredRow, Table};
use storage::snapshot::View;
use types::{LogPosition, RowId};

/// Between two looks at the clock and at whether anybody still wants the result: a fraction of a millisecond of work, so that a put that needs
/// the same processor hardly notices.
const LOOK_EVERY_BYTES: u64 = 128 * 1024;

/// What a row takes in a file beside its value: the element, and its key.
const ROW_OVERHEAD_BYTES: u64 = 34;

/// At most so many bytes a second since it began.
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    began: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Pace {
        Pace { rate, began: Instant::now() }
    }

    /// Waits until this many bytes, counted from the beginning, are due.
    pub(crate) fn keep(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let due = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        std::thread::sleep(due.saturating_sub(self.began.elapsed()));
    }
}

/// A view that is read no faster than this many bytes a second, and not at all once nobody wants the result.
pub(crate) struct Paced<'a, V> {
    view: &'a V,
    pace: Pace,
    unwanted: &'a dyn Fn() -> bool,
}

impl<'a, V: View> Paced<'a, V> {
    pub(crate) fn new(view: &'a V, rate: Option<NonZeroU64>, unwanted: &'a dyn Fn() -> bool) -> Self {
        Paced { view, pace: Pace::new(rate), unwanted }
    }
}

impl<V: View> View for Paced<'_, V> {
    fn position(&self) -> LogPosition {
        self.view.position()
    }

    fn scan(
        &self,
        ids: RangeInclusive<RowId>,
        each: &mut dyn FnMut(RowId, StoredRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let (mut bytes, mut looked, mut unwanted) = (0, 0, false);
        self.view.scan(ids, &mut |id, row| {
            bytes += row.value.len() as u64 + ROW_OVERHEAD_BYTES;
            if bytes - looked >= LOOK_EVERY_BYTES {
                looked = bytes;
                if (self.unwanted)() {
                    unwanted = true;
                    return ControlFlow::Break(());
                }
                self.pace.keep(bytes);
            }
            each(id, row)
        })?;
        if unwanted {
            let source = "nobody wants it any more".into();
            return Err(StoreError { operation: "read the whole state", source });
        }
        Ok(())
    }

    fn table(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.view.table(table)
    }
}
