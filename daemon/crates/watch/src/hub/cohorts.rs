//! Watchers that are behind. Those of one stream that are equally far behind are a cohort: it has a next revision, is fed from recent
//! history or from a slice of the store's, and when there is nothing left it follows live events, joined with those of its stream that do
//! already. One stream has few cohorts: one that follows, and others only while they catch up.
//!
//! The store is read in slices, one at a time, by streams in turn. A slice is read only for a stream with room for it, so what waits for
//! slow clients is bounded, and it serves every cohort that needs nothing beyond it. What a stream has no room for is thrown away and
//! read again.

use std::{collections::BTreeMap, sync::Arc};

use types::{KeyRange, Revision};

use super::{FutureKey, Group, Hub, Options, Picks, Place, StreamId};
use crate::{
    events::{Previous, RevisionEvents},
    gauges::Gauges,
    queue::{Delivery, Full, Reply},
    ranges::{GroupId, RangeId},
};

pub(super) type CohortId = u64;

/// Cohorts that one slice serves: what it costs to hand it out to so many is some milliseconds.
const SHARERS_MAX: usize = 4096;
/// Cohorts looked at that do not fit, before the search is given up: ten thousand with a prefix each are not all compared with all.
const MISFITS_MAX: usize = 256;
/// Single keys that different cohorts may bring into one slice: each is one look-up.
const SHARED_KEYS_MAX: usize = 512;
/// How far ahead of the slice's beginning a cohort may be to be served by it: what a slice of many small revisions holds.
const SHARED_REVISIONS: i64 = 2048;

/// Slices that are read and not yet handed out: one is handed out while the next is read.
const SLICES_MAX: usize = 2;

/// With so few groups the ranges are tried one by one, without asking the search tree.
const GROUPS_TRIED_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Follows live events.
    Synced,
    /// In the queue of those to be fed.
    Ready,
    /// Until the client reads.
    NoRoom,
    WantsRead,
    /// Until this job is done.
    Reading(u64),
}

#[derive(Debug)]
pub(super) struct Cohort {
    pub(super) stream: StreamId,
    /// The lowest revision that its watchers were not given. Without meaning while it follows.
    pub(super) next: Revision,
    pub(super) state: State,
    /// It followed before: what it missed is told with the revisions at which it happened, as etcd tells it.
    was_synced: bool,
    pub(super) groups: BTreeMap<(RangeId, Options), GroupId>,
    pub(super) watchers: i64,
    slice: Option<Arc<Slice>>,
}

impl Cohort {
    pub(super) fn wants_previous(&self) -> bool {
        self.groups.keys().any(|(_, options)| options.has(Options::PREVIOUS))
    }
}

/// History of the store between two revisions.
#[derive(Debug)]
pub struct Slice {
    /// Ascending, each with every event of the ranges that were asked for.
    pub revisions: Vec<Arc<RevisionEvents>>,
    /// Nothing up to here is missing.
    pub through: Revision,
}

/// What to read next.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadJob {
    pub id: u64,
    pub from: Revision,
    pub to: Revision,
    pub ranges: Vec<KeyRange>,
    /// Somebody needs previous versions: [`RevisionEvents::fill_previous`].
    pub previous: bool,
    pub revisions_max: usize,
    pub bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct Reading {
    id: u64,
    sharers: Vec<CohortId>,
}

impl Hub {
    pub(super) fn cohort(&self, id: CohortId) -> &Cohort {
        &self.cohorts[&id]
    }

    pub(super) fn cohort_mut(&mut self, id: CohortId) -> &mut Cohort {
        self.cohorts.get_mut(&id).expect("a cohort that is named exists")
    }

    pub(super) fn add_cohort(&mut self, stream: StreamId, next: Revision, state: State) -> CohortId {
        self.cohorts_made += 1;
        let id = self.cohorts_made;
        let groups = BTreeMap::new();
        self.cohorts
            .insert(id, Cohort { stream, next, state, was_synced: false, groups, watchers: 0, slice: None });
        self.stream_mut(stream).cohorts.insert(id);
        id
    }

    /// A watcher that was given everything up to the current revision.
    pub(super) fn follow(&mut self, stream: StreamId, id: i64, range: RangeId, options: Options) {
        let cohort = self.stream(stream).synced.unwrap_or_else(|| {
            let cohort = self.add_cohort(stream, Revision(0), State::Synced);
            self.stream_mut(stream).synced = Some(cohort);
            cohort
        });
        self.add_watcher(cohort, id, range, options);
    }

    pub(super) fn add_watcher(&mut self, cohort: CohortId, id: i64, range: RangeId, options: Options) {
        let entry = self.cohorts.get_mut(&cohort).expect("a cohort that is named exists");
        entry.watchers += 1;
        if entry.state != State::Synced {
            Gauges::add(&self.gauges.slow_watchers, 1);
        }
        let stream = entry.stream;
        let group = *entry.groups.entry((range, options)).or_insert_with(|| {
            let group = self.groups.insert(Group {
                stream,
                cohort,
                range,
                place: 0,
                options,
                active: false,
                ids: Vec::new(),
                shared: None,
            });
            self.groups[group].place = self.ranges.join(range, group as GroupId);
            group as GroupId
        });
        self.put_into_group(group, id);
    }

    fn put_into_group(&mut self, id: GroupId, watcher: i64) {
        let group = &mut self.groups[id as usize];
        let at = group.ids.len() as u32;
        group.ids.push(watcher);
        group.shared = None;
        let stream = group.stream;
        self.stream_mut(stream).watchers.insert(watcher, Place::Group { group: id, at });
    }

    /// The watcher is no longer in the stream's list.
    pub(super) fn leave_group(&mut self, id: GroupId, at: u32) {
        let group = &mut self.groups[id as usize];
        group.ids.swap_remove(at as usize);
        group.shared = None;
        let (stream, cohort) = (group.stream, group.cohort);
        let moved = group.ids.get(at as usize).copied();
        let is_empty = group.ids.is_empty();
        if let Some(moved) = moved {
            self.stream_mut(stream).watchers.insert(moved, Place::Group { group: id, at });
        }
        if is_empty {
            self.drop_group(id);
        }
        let entry = self.cohort_mut(cohort);
        entry.watchers -= 1;
        let (is_synced, is_empty) = (entry.state == State::Synced, entry.groups.is_empty());
        if !is_synced {
            Gauges::add(&self.gauges.slow_watchers, -1);
        }
        if is_empty {
            self.drop_cohort(cohort);
        }
    }

    fn drop_group(&mut self, id: GroupId) {
        let group = self.groups.remove(id as usize);
        self.cohort_mut(group.cohort).groups.remove(&(group.range, group.options));
        if let Some(moved) = self.ranges.leave(group.range, group.place) {
            self.groups[moved as usize].place = group.place;
        }
    }

    /// It has no watchers any more.
    fn drop_cohort(&mut self, id: CohortId) {
        self.unlist_waiting(id);
        let cohort = self.cohorts.remove(&id).expect("a cohort that is named exists");
        let stream = self.stream_mut(cohort.stream);
        stream.cohorts.remove(&id);
        if stream.synced == Some(id) {
            stream.synced = None;
        }
    }

    fn unlist_waiting(&mut self, id: CohortId) {
        let Cohort { stream, next, state, .. } = *self.cohort(id);
        if state == State::WantsRead {
            self.wants_read.remove(&(next, id));
            self.stream_mut(stream).waiting.remove(&next);
        }
    }

    /// A cohort that follows no longer does, from this revision on. The caller says how it goes on.
    pub(super) fn fall_behind(&mut self, id: CohortId, next: Revision) {
        let cohort = self.cohort_mut(id);
        assert_eq!(cohort.state, State::Synced, "only who follows can fall behind");
        cohort.state = State::Ready;
        cohort.was_synced = true;
        cohort.next = next;
        let (stream, watchers) = (cohort.stream, cohort.watchers);
        self.stream_mut(stream).synced = None;
        Gauges::add(&self.gauges.slow_watchers, watchers);
    }

    /// Futures before `bound` follow from now on.
    pub(super) fn begin_futures(&mut self, bound: FutureKey) {
        while let Some(entry) = self.futures.first_entry().filter(|entry| *entry.key() < bound) {
            let (key, future) = entry.remove_entry();
            self.stream_mut(key.stream).futures -= 1;
            self.follow(key.stream, key.id, future.range, future.options);
            self.ranges.release(future.range);
        }
    }

    /// The store passed its first revision, and the events were not told.
    pub(super) fn begin_late(&mut self, key: FutureKey) {
        let future = self.futures.remove(&key).expect("the caller found it");
        self.stream_mut(key.stream).futures -= 1;
        let cohort = self.add_cohort(key.stream, key.next, State::Ready);
        self.ready.push_back(cohort);
        self.add_watcher(cohort, key.id, future.range, future.options);
        self.ranges.release(future.range);
    }

    /// The queue of this stream, which was full, has room.
    pub fn drained(&mut self, stream: u64) {
        let Some(&stream) = self.stream_ids.get(&stream) else { return };
        for id in &self.streams[stream as usize].cohorts {
            let cohort = self.cohorts.get_mut(id).expect("a cohort that is named exists");
            if cohort.state == State::NoRoom {
                cohort.state = State::Ready;
                self.ready.push_back(*id);
            }
        }
    }

    /// Feeds cohorts from memory, in turn, a bounded number of revisions each. True when there is more to do. `previous` is for recent
    /// events that nobody wanted with previous versions when they were told; a read counts as a revision.
    pub fn work(&mut self, revisions_max: usize, previous: &dyn Previous) -> bool {
        /// One turn of one cohort.
        const TURN: usize = 128;
        let mut left = revisions_max;
        while left > 0 {
            let Some(id) = self.ready.pop_front() else { break };
            // A cohort may have gone since it was queued.
            if self.cohorts.get(&id).is_none_or(|cohort| cohort.state != State::Ready) {
                continue;
            }
            let turn = TURN.min(left);
            // Even one with nothing to feed costs a step.
            left = left.saturating_sub(self.feed(id, turn, previous).max(1));
        }
        !self.ready.is_empty()
    }

    /// Answers how many revisions it was fed and previous versions that took.
    fn feed(&mut self, id: CohortId, turn: usize, previous: &dyn Previous) -> usize {
        let mut fed = 0;
        loop {
            let cohort = &self.cohorts[&id];
            let next = cohort.next;
            if next > self.current {
                self.sync(id);
                return fed;
            }
            if fed >= turn {
                self.ready.push_back(id);
                return fed;
            }
            // What needs many reads is not fed from here, unless it was compacted meanwhile: then there is nothing to read, and the
            // events without previous versions are better than no watch.
            let is_compacted = next < self.compacted && cohort.slice.is_none();
            let is_cheap = |events: &&Arc<RevisionEvents>| {
                is_compacted || !events.is_bulk(self.config.previous_reads_max) || !cohort.wants_previous()
            };
            let (events, header) = if let Some(recent) = self.ring.get(next).filter(is_cheap) {
                (recent.clone(), if cohort.was_synced { next } else { self.current })
            } else if let Some(slice) = &cohort.slice {
                let at = slice.revisions.partition_point(|events| events.revision < next);
                match slice.revisions.get(at) {
                    Some(events) => (events.clone(), self.current),
                    None => {
                        let through = slice.through;
                        let cohort = self.cohort_mut(id);
                        cohort.next = next.max(through.next());
                        cohort.slice = None;
                        continue;
                    }
                }
            } else {
                self.want_read(id);
                return fed;
            };
            fed += 1;
            let fits = self.feed_one(id, &events, header, previous, &mut fed);
            let cohort = self.cohort_mut(id);
            if !fits {
                cohort.next = events.revision;
                cohort.state = State::NoRoom;
                cohort.slice = None;
                return fed;
            }
            cohort.next = events.revision.next();
        }
    }

    /// False when there was no room; then nothing of the revision is queued.
    fn feed_one(
        &mut self,
        id: CohortId,
        events: &Arc<RevisionEvents>,
        header: Revision,
        previous: &dyn Previous,
        reads: &mut usize,
    ) -> bool {
        let cohort = &self.cohorts[&id];
        let mut deliveries: Vec<Delivery> = Vec::new();
        let mut hits = std::mem::take(&mut self.hits);
        if cohort.groups.len() <= GROUPS_TRIED_MAX {
            hits.clear();
            for (range, _) in cohort.groups.keys() {
                if hits.last().is_some_and(|(last, _)| last == range) {
                    continue;
                }
                let range_keys = &self.ranges.get(*range).range;
                let inside = (0..events.len()).filter(|at| range_keys.contains(events.key(*at)));
                hits.extend(inside.map(|at| (*range, at as u32)));
            }
        } else {
            self.ranges.hits(events, &mut hits);
        }
        for hits in hits.chunk_by(|a, b| a.0 == b.0) {
            let mut picks = Picks::new(events, hits);
            let range = hits[0].0;
            for (_, group) in cohort.groups.range((range, Options(0))..=(range, Options(u8::MAX))) {
                let group = &mut self.groups[*group as usize];
                if let Some(pick) = picks.get(group.options) {
                    group.active = true;
                    if group.options.has(Options::PREVIOUS) {
                        *reads += events.fill_picked(&pick, previous);
                    }
                    deliveries.push(group.delivery(events, pick, header));
                }
            }
        }
        self.hits = hits;
        let queue = &self.streams[cohort.stream as usize].queue;
        for (at, delivery) in deliveries.into_iter().enumerate() {
            match queue.offer(delivery, at > 0) {
                Ok(waker) => self.wakers.extend(waker),
                Err(Full) => return false,
            }
        }
        true
    }

    /// It was given everything: it follows, together with those of its stream that do already.
    fn sync(&mut self, id: CohortId) {
        let cohort = self.cohort_mut(id);
        cohort.state = State::Synced;
        cohort.slice = None;
        let (stream, watchers) = (cohort.stream, cohort.watchers);
        Gauges::add(&self.gauges.slow_watchers, -watchers);
        let stream = self.stream_mut(stream);
        match stream.synced {
            None => stream.synced = Some(id),
            Some(other) => self.merge(id, other),
        }
    }

    /// Puts two cohorts of a stream together that are at the same revision and in the same state, which is synced or waiting to read.
    /// The second is listed as such, the first is not; under the second's name both go on.
    fn merge(&mut self, from: CohortId, into: CohortId) {
        let from_cohort = self.cohorts.remove(&from).expect("a cohort that is named exists");
        self.stream_mut(from_cohort.stream).cohorts.remove(&from);
        let was_synced = from_cohort.was_synced;
        let into_cohort = self.cohort_mut(into);
        into_cohort.was_synced &= was_synced;
        into_cohort.watchers += from_cohort.watchers;
        for (key, group) in from_cohort.groups {
            match self.cohort(into).groups.get(&key).copied() {
                None => {
                    self.cohort_mut(into).groups.insert(key, group);
                    self.groups[group as usize].cohort = into;
                }
                Some(target) => {
                    let moved = self.groups.remove(group as usize);
                    if let Some(neighbour) = self.ranges.leave(moved.range, moved.place) {
                        self.groups[neighbour as usize].place = moved.place;
                    }
                    for watcher in moved.ids {
                        self.put_into_group(target, watcher);
                    }
                    self.groups[target as usize].active |= moved.active;
                }
            }
        }
    }

    /// Recent history does not reach back that far.
    fn want_read(&mut self, id: CohortId) {
        let Cohort { stream, next, .. } = *self.cohort(id);
        if next < self.compacted {
            self.cancel_compacted(id);
            return;
        }
        if let Some(other) = self.stream(stream).waiting.get(&next).copied() {
            self.merge(id, other);
            return;
        }
        self.cohort_mut(id).state = State::WantsRead;
        self.wants_read.insert((next, id));
        self.stream_mut(stream).waiting.insert(next, id);
        self.enter_line(stream);
    }

    fn enter_line(&mut self, stream: StreamId) {
        let entry = self.stream_mut(stream);
        if !entry.in_line {
            entry.in_line = true;
            self.line.push_back(stream);
        }
    }

    /// The store no longer has what it wanted to read, but recent history has.
    pub(super) fn read_no_more(&mut self, id: CohortId) {
        self.unlist_waiting(id);
        self.cohort_mut(id).state = State::Ready;
        self.ready.push_back(id);
    }

    /// What its watchers need next is gone for good.
    pub(super) fn cancel_compacted(&mut self, id: CohortId) {
        let stream = self.cohort(id).stream;
        let groups: Vec<GroupId> = self.cohort(id).groups.values().copied().collect();
        for group in groups {
            while let Some(watcher) =
                self.groups.get(group as usize).and_then(|group| group.ids.last().copied())
            {
                let options = self.groups[group as usize].options;
                let at = self.groups[group as usize].ids.len() as u32 - 1;
                self.reply(stream, Reply::Compacted { id: watcher, compacted: self.compacted }, 0);
                self.stream_mut(stream).watchers.insert(watcher, Place::Dead);
                self.uncount(stream, options);
                self.leave_group(group, at);
            }
        }
    }

    /// The next slice of history to be read, if one is wanted and none is being read.
    pub fn next_read(&mut self) -> Option<ReadJob> {
        self.slices.retain(|slice| slice.strong_count() > 0);
        if self.reading.is_some() || self.slices.len() >= SLICES_MAX {
            return None;
        }
        while let Some(stream) = self.line.pop_front() {
            let entry = self.stream_mut(stream);
            entry.in_line = false;
            let Some((next, leader)) = entry.waiting.first_key_value().map(|(next, id)| (*next, *id)) else {
                continue;
            };
            if !entry.queue.has_half() {
                for (next, id) in std::mem::take(&mut entry.waiting) {
                    self.wants_read.remove(&(next, id));
                    self.cohort_mut(id).state = State::NoRoom;
                }
                continue;
            }
            let job = self.begin_read(leader, next);
            if !self.stream(stream).waiting.is_empty() {
                self.enter_line(stream);
            }
            return Some(job);
        }
        None
    }

    fn begin_read(&mut self, leader: CohortId, from: Revision) -> ReadJob {
        let mut wanted: BTreeMap<RangeId, ()> =
            self.cohort(leader).groups.keys().map(|(range, _)| (*range, ())).collect();
        let is_key = |range: &RangeId| matches!(self.ranges.get(*range).range, KeyRange::One(_));
        let keys_only = wanted.keys().all(is_key);
        let mut sharers = vec![leader];
        let near = (from, 0)..=(Revision(from.0.saturating_add(SHARED_REVISIONS)), CohortId::MAX);
        let mut misfits = 0;
        for (_, id) in self.wants_read.range(near).take(SHARERS_MAX) {
            let cohort = self.cohort(*id);
            // One that brings no work of its own, or a few keys to other keys: never a wide range, which would make all others wait.
            let adds = cohort.groups.keys().filter(|(range, _)| !wanted.contains_key(range));
            let fits = match adds.clone().count() {
                0 => true,
                more if keys_only && wanted.len() + more <= SHARED_KEYS_MAX => {
                    adds.clone().all(|(range, _)| is_key(range))
                }
                _ => false,
            };
            if *id == leader {
                continue;
            }
            if !fits || !self.stream(cohort.stream).queue.has_half() {
                misfits += 1;
                if misfits == MISFITS_MAX {
                    break;
                }
                continue;
            }
            wanted.extend(cohort.groups.keys().map(|(range, _)| (*range, ())));
            sharers.push(*id);
        }
        self.jobs_made += 1;
        let id = self.jobs_made;
        let mut previous = false;
        for sharer in &sharers {
            self.unlist_waiting(*sharer);
            let cohort = self.cohort_mut(*sharer);
            cohort.state = State::Reading(id);
            previous |= cohort.wants_previous();
        }
        self.reading = Some(Reading { id, sharers });
        ReadJob {
            id,
            from,
            to: self.current,
            ranges: wanted.keys().map(|range| self.ranges.get(*range).range.clone()).collect(),
            previous,
            // Half a queue is the room that was waited for; keys and values of a usual size are about half of what an event takes there.
            revisions_max: self.config.queue.items / 2,
            bytes_max: self.config.queue.bytes / 4,
        }
    }

    /// The slice, or the compact revision when the store no longer has its beginning.
    pub fn read_done(&mut self, job: u64, result: Result<Slice, Revision>) {
        let Some(reading) = self.reading.take_if(|reading| reading.id == job) else { return };
        let slice = match result {
            Ok(slice) => Some(Arc::new(slice)),
            Err(compacted) => {
                self.compact(compacted);
                None
            }
        };
        if let Some(slice) = &slice {
            self.slices.push(Arc::downgrade(slice));
        }
        for id in reading.sharers {
            let Some(cohort) = self.cohorts.get_mut(&id) else { continue };
            if cohort.state != State::Reading(job) {
                continue;
            }
            cohort.slice = slice.clone();
            cohort.state = State::Ready;
            self.ready.push_back(id);
        }
    }
}
