//! Reads a view no faster than allowed, for whoever hands out a whole state beside clients that are served.
//!
//! The rate counts only while somebody writes. A member whose applied index does not move has nobody to spare, and a backup of it at night
//! should not take minutes for the sake of puts that do not come.
//! Not here: what the rate is (settings).

use std::{
    num::NonZeroU64,
    ops::{ControlFlow, RangeInclusive},
    time::{Duration, Instant},
};

use bytes::Bytes;
use state_machine::store::{StoreError, StoredRow, Table};
use storage::snapshot::View;
use types::{LogIndex, LogPosition, RowId};

/// Between two looks at the clock and at whether anybody still wants the result: a fraction of a millisecond of work, so that a put that needs
/// the same processor hardly notices.
const LOOK_EVERY_BYTES: u64 = 128 * 1024;

/// What a row takes in a file beside its value: the element, and its key.
const ROW_OVERHEAD_BYTES: u64 = 34;

/// Without a write for so long nobody is in the way. A few commits of a busy member, and less than anybody notices.
const QUIET_AFTER: Duration = Duration::from_millis(50);

/// What a slow disk made late is made up for up to this much. More would be a burst, and bursts are what is to be avoided.
const LATE_MAX: Duration = Duration::from_millis(20);

/// At most so many bytes a second while writes are applied.
pub(crate) struct Pace<'a> {
    rate: Option<NonZeroU64>,
    /// The applied index: whether it moves is all that counts.
    applied: &'a dyn Fn() -> LogIndex,
    seen: LogIndex,
    moved: Instant,
    bytes: u64,
    /// When the bytes so far were due.
    due: Instant,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(rate: Option<NonZeroU64>, applied: &'a dyn Fn() -> LogIndex) -> Pace<'a> {
        let now = Instant::now();
        Pace { rate, applied, seen: applied(), moved: now, bytes: 0, due: now }
    }

    /// Waits until this many bytes, counted from the beginning, are due.
    pub(crate) fn keep(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let wait = self.due_in(bytes, rate, Instant::now());
        std::thread::sleep(wait);
    }

    fn due_in(&mut self, bytes: u64, rate: NonZeroU64, now: Instant) -> Duration {
        let applied = (self.applied)();
        if applied != self.seen {
            (self.seen, self.moved) = (applied, now);
        }
        let took = Duration::from_secs_f64((bytes - self.bytes) as f64 / rate.get() as f64);
        self.bytes = bytes;
        if now.saturating_duration_since(self.moved) >= QUIET_AFTER {
            self.due = now;
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(LATE_MAX).unwrap_or(now);
        self.due = self.due.max(earliest) + took;
        self.due.saturating_duration_since(now)
    }
}

/// A view that is read no faster than this many bytes a second, and not at all once nobody wants the result.
pub(crate) struct Paced<'a, V> {
    view: &'a V,
    rate: Option<NonZeroU64>,
    applied: &'a dyn Fn() -> LogIndex,
    unwanted: &'a dyn Fn() -> bool,
}

impl<'a, V: View> Paced<'a, V> {
    pub(crate) fn new(
        view: &'a V,
        rate: Option<NonZeroU64>,
        applied: &'a dyn Fn() -> LogIndex,
        unwanted: &'a dyn Fn() -> bool,
    ) -> Self {
        Paced { view, rate, applied, unwanted }
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
        let mut pace = Pace::new(self.rate, self.applied);
        self.view.scan(ids, &mut |id, row| {
            bytes += row.value.len() as u64 + ROW_OVERHEAD_BYTES;
            if bytes - looked >= LOOK_EVERY_BYTES {
                looked = bytes;
                if (self.unwanted)() {
                    unwanted = true;
                    return ControlFlow::Break(());
                }
                pace.keep(bytes);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const RATE: NonZeroU64 = NonZeroU64::new(1_000_000).unwrap();

    #[test]
    fn the_rate_counts_while_writes_are_applied_and_not_without() {
        let index = Cell::new(LogIndex(1));
        let applied = || index.get();
        let mut pace = Pace::new(Some(RATE), &applied);
        let start = pace.due;
        let ms = |ms| start + Duration::from_millis(ms);
        let mut bytes = 0;
        // A write every millisecond: ten kilobytes are ten milliseconds.
        for at in [1, 11, 21] {
            index.set(LogIndex(at));
            bytes += 10_000;
            assert_eq!(pace.due_in(bytes, RATE, ms(at - 1)), Duration::from_millis(10));
        }
        // Nobody writes any more: the next 50 ms still count, then nothing does, however much it is.
        assert_eq!(pace.due_in(bytes + 10_000, RATE, ms(30)), Duration::from_millis(10));
        assert_eq!(pace.due_in(bytes + 900_000_000, RATE, ms(70)), Duration::ZERO);
        // A write again: no debt is left of the time without a limit.
        index.set(LogIndex(99));
        assert_eq!(pace.due_in(bytes + 900_010_000, RATE, ms(71)), Duration::from_millis(9));
    }

    #[test]
    fn what_was_late_is_made_up_for_only_a_little() {
        let index = Cell::new(LogIndex(1));
        let applied = || index.get();
        let mut pace = Pace::new(Some(RATE), &applied);
        let start = pace.due;
        index.set(LogIndex(2));
        // The disk took a second for the first ten kilobytes; what follows goes at once for 20 ms of it, then at the rate again.
        let late = start + Duration::from_secs(1);
        assert_eq!(pace.due_in(10_000, RATE, late), Duration::ZERO);
        assert_eq!(pace.due_in(20_000, RATE, late), Duration::ZERO);
        assert_eq!(pace.due_in(30_000, RATE, late), Duration::from_millis(10));
    }
}
