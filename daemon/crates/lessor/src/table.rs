//! The leases of a leader in memory: 32 bytes each in chunks that never move, an index of 5 to 10 bytes each, and the timing wheel's
//! lists through them.

use types::LeaseId;

use crate::{index::Index, wheel::Wheel};

/// Leases in one piece of memory: 32 KiB. A vector that doubles would copy a million leases at once and hold twice the room.
const CHUNK: usize = 1024;

/// No slot: ends lists, and means that a lease is in none.
pub(crate) const NONE: u32 = u32::MAX;

const TTL_BITS: u32 = 34;
const BUCKET_BITS: u32 = 9;
const BUCKET_NONE: u64 = (1 << BUCKET_BITS) - 1;
/// Longest time that a slot can hold, in seconds; etcd's longest lease is 9,000,000,000 s.
pub(crate) const TTL_MAX: u64 = (1 << TTL_BITS) - 1;

/// What the log may hold about a lease's remaining time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Nothing: a leader change begins the whole time anew.
    None = 0,
    /// Some rest of the time, or a proposal with it is on its way.
    Rest = 1,
    /// As Rest, and the lease was renewed since: the record must go.
    Stale = 2,
}

/// One lease. The last word packs ttl (34 bits), bucket (9), record (2), whether it was decided to be over (1), and
/// whether its deadline is the rest that a former leader recorded (1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub id: i64,
    /// On the lease clock, in milliseconds.
    pub deadline: u64,
    word: u64,
    pub previous: u32,
    pub next: u32,
}

const RECORD_AT: u32 = TTL_BITS + BUCKET_BITS;
const OVER_AT: u32 = RECORD_AT + 2;
const REST_AT: u32 = OVER_AT + 1;

impl Slot {
    /// `ttl` in seconds, at most [`TTL_MAX`].
    fn new(id: i64, ttl: u64, deadline: u64) -> Slot {
        assert!(ttl <= TTL_MAX, "a ttl of {ttl} s was cut to what a slot holds");
        Slot { id, deadline, word: ttl | BUCKET_NONE << TTL_BITS, previous: NONE, next: NONE }
    }

    /// Seconds.
    pub fn ttl(&self) -> u64 {
        self.word & TTL_MAX
    }

    pub fn bucket(&self) -> Option<usize> {
        let bucket = self.word >> TTL_BITS & BUCKET_NONE;
        (bucket != BUCKET_NONE).then_some(bucket as usize)
    }

    pub fn set_bucket(&mut self, bucket: Option<usize>) {
        let bucket = bucket.map_or(BUCKET_NONE, |bucket| bucket as u64);
        self.word = self.word & !(BUCKET_NONE << TTL_BITS) | bucket << TTL_BITS;
    }

    pub fn record(&self) -> Record {
        match self.word >> RECORD_AT & 3 {
            0 => Record::None,
            1 => Record::Rest,
            _ => Record::Stale,
        }
    }

    pub fn set_record(&mut self, record: Record) {
        self.word = self.word & !(3 << RECORD_AT) | (record as u64) << RECORD_AT;
    }

    pub fn is_rest(&self) -> bool {
        self.word >> REST_AT & 1 == 1
    }

    pub fn set_rest(&mut self, rest: bool) {
        self.word = self.word & !(1 << REST_AT) | u64::from(rest) << REST_AT;
    }

    pub fn is_over(&self) -> bool {
        self.word >> OVER_AT & 1 == 1
    }

    pub fn set_over(&mut self, over: bool) {
        self.word = self.word & !(1 << OVER_AT) | u64::from(over) << OVER_AT;
    }
}

/// Everything that a leader knows; handed out on demotion, so that whoever has time may free it.
#[derive(Debug)]
pub struct Table {
    pub(crate) slots: Slots,
    pub(crate) index: Index,
    pub(crate) wheel: Wheel,
}

impl Table {
    pub(crate) fn new(seed: [u64; 2], clock_ms: u64) -> Table {
        Table { slots: Slots::default(), index: Index::new(seed), wheel: Wheel::new(clock_ms) }
    }

    pub(crate) fn find(&self, id: LeaseId) -> Option<u32> {
        self.index.find(id.0, &self.slots)
    }

    /// The lease is not there yet.
    pub(crate) fn insert(&mut self, id: LeaseId, ttl: u64, deadline: u64) -> u32 {
        let at = self.slots.take(Slot::new(id.0, ttl, deadline));
        self.index.insert(id.0, at, &self.slots);
        at
    }

    pub(crate) fn remove(&mut self, at: u32) {
        self.wheel.unlink(&mut self.slots, at);
        let id = self.slots.get(at).id;
        self.index.remove(id, &self.slots);
        self.slots.give_back(at);
    }

    /// Bytes of memory, for measurements.
    pub fn bytes(&self) -> usize {
        self.slots.chunks.len() * CHUNK * size_of::<Slot>() + self.index.bytes()
    }
}

/// Slots by number, free ones in a list.
#[derive(Debug)]
pub(crate) struct Slots {
    chunks: Vec<Box<[Slot]>>,
    free: u32,
    used: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { chunks: Vec::new(), free: NONE, used: 0 }
    }
}

impl Slots {
    pub fn get(&self, at: u32) -> &Slot {
        &self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }

    pub fn get_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }

    pub fn len(&self) -> usize {
        self.used
    }

    fn take(&mut self, slot: Slot) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let at = self.free;
        self.free = self.get(at).next;
        *self.get_mut(at) = slot;
        self.used += 1;
        at
    }

    fn give_back(&mut self, at: u32) {
        let free = self.free;
        self.get_mut(at).next = free;
        self.free = at;
        self.used -= 1;
    }

    fn grow(&mut self) {
        let first = self.chunks.len() * CHUNK;
        let end = first + CHUNK;
        assert!(end < NONE as usize, "fewer than four billion leases");
        let slot = |at: usize| {
            let next = if at + 1 == end { NONE } else { at as u32 + 1 };
            Slot { next, ..Slot::new(0, 0, 0) }
        };
        self.chunks.push((first..end).map(slot).collect());
        self.free = first as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_32_bytes_and_its_parts_do_not_touch() {
        assert_eq!(size_of::<Slot>(), 32);
        let mut slot = Slot::new(-7, TTL_MAX, 5);
        assert_eq!(
            (slot.ttl(), slot.bucket(), slot.record(), slot.is_over()),
            (TTL_MAX, None, Record::None, false)
        );
        slot.set_bucket(Some(449));
        slot.set_record(Record::Stale);
        slot.set_over(true);
        assert_eq!(
            (slot.ttl(), slot.bucket(), slot.record(), slot.is_over()),
            (TTL_MAX, Some(449), Record::Stale, true)
        );
        slot.set_record(Record::Rest);
        slot.set_over(false);
        slot.set_bucket(None);
        assert_eq!(
            (slot.ttl(), slot.bucket(), slot.record(), slot.is_over()),
            (TTL_MAX, None, Record::Rest, false)
        );
    }
}
