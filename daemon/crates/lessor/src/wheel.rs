//! A timing wheel of lists through the slots. Seven wheels of 64 buckets each; a bucket of the first is one turn of 128 ms, one of the
//! next is 64 of those, and so on to 17,000 years. A lease is linked where its next look is due; renewing it does not touch the wheel.
//! When the wheel comes by, whoever looks decides anew where the lease belongs.
//!
//! Work is done in pieces: [`Wheel::pop`] gives one lease at a time and goes on where it stopped.

use crate::table::{NONE, Slots};

/// One turn of the first wheel. A lease is looked at within this time after its deadline.
pub(crate) const TURN_MS: u64 = 128;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 7;

/// To be looked at now.
const DUE: usize = LEVELS * SLOTS;
/// Past their deadline when they were looked at, to be decided on.
pub(crate) const EXPIRED: usize = DUE + 1;
const BUCKETS: usize = EXPIRED + 1;
const _: () = assert!(BUCKETS < 511, "a slot has nine bits for its bucket");

#[derive(Debug)]
pub(crate) struct Wheel {
    heads: [u32; BUCKETS],
    tails: [u32; BUCKETS],
    /// Buckets before this turn are empty.
    turn: u64,
    /// Leases in the wheels proper.
    turning: usize,
}

/// Why a lease was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pop {
    /// Its look is due.
    Look(u32),
    /// It is on its way to a finer wheel: link it again, with looks after this time.
    Move(u32, u64),
}

impl Wheel {
    pub fn new(clock_ms: u64) -> Wheel {
        Wheel { heads: [NONE; BUCKETS], tails: [NONE; BUCKETS], turn: clock_ms / TURN_MS, turning: 0 }
    }

    /// Links a lease that is in no list for a look at `look` ms of the lease clock, or within a turn after it.
    pub fn link(&mut self, slots: &mut Slots, at: u32, look: u64) {
        let turn = look.div_ceil(TURN_MS);
        if turn <= self.turn {
            return self.push(slots, at, DUE);
        }
        let level = ((63 - (turn ^ self.turn).leading_zeros()) / BITS) as usize;
        // Nothing is due in 17,000 years; such a lease is looked at early, which does it no harm.
        let level = level.min(LEVELS - 1);
        let slot = (turn >> (BITS * level as u32)) as usize % SLOTS;
        self.turning += 1;
        self.push(slots, at, level * SLOTS + slot);
    }

    pub fn link_expired(&mut self, slots: &mut Slots, at: u32) {
        self.push(slots, at, EXPIRED);
    }

    fn push(&mut self, slots: &mut Slots, at: u32, bucket: usize) {
        let tail = std::mem::replace(&mut self.tails[bucket], at);
        let slot = slots.get_mut(at);
        assert!(slot.bucket().is_none(), "a lease is in one list at a time");
        slot.set_bucket(Some(bucket));
        slot.previous = tail;
        slot.next = NONE;
        match tail {
            NONE => self.heads[bucket] = at,
            tail => slots.get_mut(tail).next = at,
        }
    }

    pub fn unlink(&mut self, slots: &mut Slots, at: u32) {
        let slot = slots.get_mut(at);
        let Some(bucket) = slot.bucket() else { return };
        let (previous, next) = (slot.previous, slot.next);
        slot.set_bucket(None);
        match previous {
            NONE => self.heads[bucket] = next,
            previous => slots.get_mut(previous).next = next,
        }
        match next {
            NONE => self.tails[bucket] = previous,
            next => slots.get_mut(next).previous = previous,
        }
        if bucket < DUE {
            self.turning -= 1;
        }
    }

    pub fn first_expired(&self) -> Option<u32> {
        Some(self.heads[EXPIRED]).filter(|at| *at != NONE)
    }

    /// Unlinks the next lease that something must be done about by `clock_ms`.
    pub fn pop(&mut self, slots: &mut Slots, clock_ms: u64) -> Option<Pop> {
        let until = clock_ms / TURN_MS;
        loop {
            if let Some(at) = self.take(slots, DUE) {
                return Some(Pop::Look(at));
            }
            for level in (1..LEVELS).rev() {
                let shift = BITS * level as u32;
                if self.turn & ((1 << shift) - 1) == 0
                    && let Some(at) = self.take(slots, level * SLOTS + (self.turn >> shift) as usize % SLOTS)
                {
                    return Some(Pop::Move(at, self.turn.saturating_sub(1) * TURN_MS));
                }
            }
            if let Some(at) = self.take(slots, self.turn as usize % SLOTS) {
                return Some(Pop::Look(at));
            }
            if self.turn >= until {
                return None;
            }
            self.turn = if self.turning == 0 { until } else { self.turn + 1 };
        }
    }

    fn take(&mut self, slots: &mut Slots, bucket: usize) -> Option<u32> {
        let at = Some(self.heads[bucket]).filter(|at| *at != NONE)?;
        self.unlink(slots, at);
        Some(at)
    }
}
