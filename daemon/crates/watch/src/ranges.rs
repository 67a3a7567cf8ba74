//! Which watchers a key concerns. Distinct ranges are kept once, exact keys in a hash map and the others in an interval tree; each knows
//! the groups of watchers on it. So ten thousand watchers on one prefix are found with one look-up, and ten thousand keys with another.

use std::collections::HashMap;

use bytes::Bytes;
use slab::Slab;
use types::KeyRange;

use crate::{
    events::RevisionEvents,
    tree::{Interval, IntervalTree},
};

pub(crate) type RangeId = u32;
pub(crate) type GroupId = u32;

#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) range: KeyRange,
    /// Groups of watchers on it, of all streams and in whatever state.
    pub(crate) groups: Vec<GroupId>,
    /// Watchers that have no group yet since they begin in the future.
    pub(crate) waiting: u32,
}

#[derive(Debug)]
pub(crate) struct Ranges {
    all: Slab<Watched>,
    keys: HashMap<Bytes, RangeId>,
    spans: IntervalTree,
}

/// A key as it came in is a part of what was read from a connection, and would keep all of that in memory.
fn owned(range: &KeyRange) -> KeyRange {
    let copy = |key: &Bytes| Bytes::copy_from_slice(key);
    match range {
        KeyRange::One(key) => KeyRange::One(copy(key)),
        KeyRange::Span { start, end } => KeyRange::Span { start: copy(start), end: copy(end) },
        KeyRange::From(start) => KeyRange::From(copy(start)),
    }
}

/// None for a single key.
fn interval_of(range: &KeyRange) -> Option<Interval> {
    match range {
        KeyRange::One(_) => None,
        KeyRange::Span { start, end } => Some(Interval { start: start.clone(), end: Some(end.clone()) }),
        KeyRange::From(start) => Some(Interval { start: start.clone(), end: None }),
    }
}

impl Ranges {
    pub(crate) fn new(seed: u64) -> Ranges {
        Ranges { all: Slab::new(), keys: HashMap::new(), spans: IntervalTree::new(seed) }
    }

    pub(crate) fn get(&self, id: RangeId) -> &Watched {
        &self.all[id as usize]
    }

    /// How many places there are for ranges, used or not.
    pub(crate) fn places(&self) -> usize {
        self.all.capacity()
    }

    pub(crate) fn at(&self, place: usize) -> Option<&Watched> {
        self.all.get(place)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A watcher waits with this range until its revision comes; ended by [`Ranges::release`].
    pub(crate) fn hold(&mut self, range: KeyRange) -> RangeId {
        let interval = interval_of(&range);
        let known = match &interval {
            None => self.keys.get(range.start()).copied(),
            Some(interval) => self.spans.get(interval),
        };
        let id = known.unwrap_or_else(|| {
            let entry = self.all.vacant_entry();
            let id = entry.key() as RangeId;
            let range = owned(&range);
            match interval_of(&range) {
                None => {
                    let KeyRange::One(key) = &range else { unreachable!("only a single key is no interval") };
                    self.keys.insert(key.clone(), id);
                }
                Some(interval) => self.spans.insert(interval, id),
            }
            entry.insert(Watched { range, groups: Vec::new(), waiting: 0 });
            id
        });
        self.all[id as usize].waiting += 1;
        id
    }

    pub(crate) fn release(&mut self, id: RangeId) {
        let watched = &mut self.all[id as usize];
        watched.waiting -= 1;
        self.drop_unused(id);
    }

    /// Answers the place of the group among those of the range.
    pub(crate) fn join(&mut self, id: RangeId, group: GroupId) -> u32 {
        let groups = &mut self.all[id as usize].groups;
        groups.push(group);
        groups.len() as u32 - 1
    }

    /// Takes the group at this place away; answers the group that has the place now.
    pub(crate) fn leave(&mut self, id: RangeId, place: u32) -> Option<GroupId> {
        let groups = &mut self.all[id as usize].groups;
        groups.swap_remove(place as usize);
        let moved = groups.get(place as usize).copied();
        if groups.capacity() > 64 && groups.len() * 4 < groups.capacity() {
            groups.shrink_to(groups.len() * 2);
        }
        self.drop_unused(id);
        moved
    }

    fn drop_unused(&mut self, id: RangeId) {
        let watched = &self.all[id as usize];
        if watched.waiting > 0 || !watched.groups.is_empty() {
            return;
        }
        let watched = self.all.remove(id as usize);
        match interval_of(&watched.range) {
            None => drop(self.keys.remove(watched.range.start())),
            Some(interval) => self.spans.remove(&interval),
        }
        if self.all.is_empty() {
            self.all.shrink_to_fit();
            self.keys.shrink_to_fit();
        }
    }

    pub(crate) fn matching(&self, key: &[u8], each: &mut impl FnMut(RangeId)) {
        if let Some(id) = self.keys.get(key) {
            each(*id);
        }
        self.spans.stab(key, each);
    }

    /// Pairs of a range and the position of an event in it, ascending.
    pub(crate) fn hits(&self, events: &RevisionEvents, out: &mut Vec<(RangeId, u32)>) {
        out.clear();
        for at in 0..events.len() {
            self.matching(events.key(at), &mut |id| out.push((id, at as u32)));
        }
        if events.len() > 1 {
            out.sort_unstable();
        }
    }
}
