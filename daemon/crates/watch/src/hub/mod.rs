//! The owner of all watchers. Told what was applied, it queues events for the watchers that follow; the others are in `cohorts.rs`, what
//! clients ask in `requests.rs`, notices of progress in `progress.rs`.
//!
//! Every step is bounded: an event costs what it matches, [`Hub::work`] does as much as it is given. Wakers of readers are gathered and
//! taken by the driver, so that a batch of events wakes each reader once.

mod census;
mod cohorts;
mod progress;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
    sync::{Arc, Weak},
    task::Waker,
};

use api::mvccpb::Event;
use slab::Slab;
use types::Revision;

use crate::{
    events::{Pick, Previous, RevisionEvents},
    gauges::Gauges,
    queue::{Delivery, Full, QueueLimits, Reply, StreamQueue},
    ranges::{GroupId, RangeId, Ranges},
    ring::Ring,
};
use cohorts::{Cohort, CohortId, Reading, State};

pub use census::{Census, WatchedRange};
pub use cohorts::{ReadJob, Slice};
pub use requests::{Request, StoreNow};

/// Bytes of recent history, with what is kept beside each event: a second of full load on two cores. Previous versions can add as much.
pub const RING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Revisions of recent history: small ones would otherwise be a hundred thousand.
pub const RING_REVISIONS_MAX: usize = 64 * 1024;

/// Previous versions that are read for one revision where live events are handed out: a millisecond at most if they are in memory. Those of
/// a larger revision are read as history is, beside everything else.
pub const PREVIOUS_READS_MAX: usize = 256;

/// What does not change while a member runs.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// For the places in search trees and the jitter of progress notices. Chosen anew at each start; a test gives one.
    pub seed: u64,
    /// `watch-progress-notify-interval` in milliseconds.
    pub progress_interval_ms: u64,
    pub ring_bytes_max: usize,
    pub ring_revisions_max: usize,
    /// Previous versions that the owner's thread reads for one revision.
    pub previous_reads_max: usize,
    /// Of the queues that are opened here.
    pub queue: QueueLimits,
}

impl HubConfig {
    pub fn new(seed: u64, progress_interval_ms: u64) -> HubConfig {
        HubConfig {
            seed,
            progress_interval_ms,
            ring_bytes_max: RING_BYTES_MAX,
            ring_revisions_max: RING_REVISIONS_MAX,
            previous_reads_max: PREVIOUS_READS_MAX,
            queue: QueueLimits::default(),
        }
    }
}

type StreamId = u32;

/// What a watcher asked for besides its range. Watchers of one cohort with equal range and options share everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Options(u8);

impl Options {
    const NO_PUT: u8 = 1;
    const NO_DELETE: u8 = 2;
    const FILTERS: u8 = 3;
    const PREVIOUS: u8 = 4;
    const FRAGMENT: u8 = 8;
    const PROGRESS: u8 = 16;

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    fn filter(self) -> usize {
        usize::from(self.0 & Self::FILTERS)
    }

    fn lets_pass(self, is_delete: bool) -> bool {
        !self.has(if is_delete { Self::NO_DELETE } else { Self::NO_PUT })
    }
}

#[derive(Debug)]
struct Group {
    stream: StreamId,
    cohort: CohortId,
    range: RangeId,
    /// Among the groups of the range.
    place: u32,
    options: Options,
    /// Events were queued since the last progress notice was due.
    active: bool,
    ids: Vec<i64>,
    /// The ids, shared with what is queued; made again when they change.
    shared: Option<Arc<[i64]>>,
}

impl Group {
    fn shared_ids(&mut self) -> Arc<[i64]> {
        self.shared.get_or_insert_with(|| self.ids.as_slice().into()).clone()
    }

    fn delivery(&mut self, events: &Arc<RevisionEvents>, pick: Pick, header: Revision) -> Delivery {
        Delivery {
            events: events.clone(),
            pick,
            brings_ids: self.shared.is_none(),
            ids: self.shared_ids(),
            header,
            previous: self.options.has(Options::PREVIOUS),
            fragment: self.options.has(Options::FRAGMENT),
        }
    }
}

/// Where a watcher is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Group {
        group: GroupId,
        at: u32,
    },
    Future(FutureKey),
    /// Cancelled by compaction. Its id stays taken until the client cancels it, as in etcd.
    Dead,
}

/// In the order in which they come to be: first by the revision that is the watcher's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FutureKey {
    next: Revision,
    /// Asked for by number: until the store is there, nothing is said of progress. A watcher from now on is behind the revision before.
    explicit: bool,
    stream: StreamId,
    id: i64,
}

#[derive(Debug)]
struct Future {
    range: RangeId,
    options: Options,
}

#[derive(Debug)]
struct Stream {
    queue: Arc<StreamQueue>,
    watchers: HashMap<i64, Place>,
    /// The next id that the server gives.
    next_id: i64,
    /// There may be one for each watcher, when all begin at different revisions.
    cohorts: BTreeSet<CohortId>,
    /// The one that follows live events.
    synced: Option<CohortId>,
    /// Cohorts that wait for the store, by their next revision.
    waiting: BTreeMap<Revision, CohortId>,
    /// In the line of those that want to read.
    in_line: bool,
    futures: u32,
    /// A revision that was queued in part: the rest of it is queued even without room.
    touched: Revision,
    /// A manual request for progress that could not be answered yet, and the revision the answer must reach.
    progress: Option<Revision>,
    progress_watchers: u32,
    timer: Option<u64>,
}

/// See the module text.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    gauges: Arc<Gauges>,
    /// Everything up to it was told.
    current: Revision,
    compacted: Revision,
    ring: Ring,
    ranges: Ranges,
    groups: Slab<Group>,
    streams: Slab<Stream>,
    stream_ids: HashMap<u64, StreamId>,
    cohorts: HashMap<CohortId, Cohort>,
    cohorts_made: u64,
    futures: BTreeMap<FutureKey, Future>,
    /// Cohorts that can be fed without reading.
    ready: VecDeque<CohortId>,
    wants_read: BTreeSet<(Revision, CohortId)>,
    /// Streams that want to read, each once, served in turn.
    line: VecDeque<StreamId>,
    reading: Option<Reading>,
    jobs_made: u64,
    /// What was read and is not yet handed out.
    slices: Vec<Weak<Slice>>,
    progress_asked: Vec<StreamId>,
    timers: BTreeSet<(u64, StreamId)>,
    random: u64,
    wakers: Vec<Waker>,
    hits: Vec<(RangeId, u32)>,
}

impl Hub {
    /// `current` and `compacted` are those of the store at this moment.
    pub fn new(config: HubConfig, gauges: Arc<Gauges>, current: Revision, compacted: Revision) -> Hub {
        let mut random = config.seed;
        let ranges = Ranges::new(crate::tree::next_random(&mut random));
        let ring = Ring::new(config.ring_revisions_max, config.ring_bytes_max);
        Hub {
            config,
            gauges,
            current,
            compacted,
            ring,
            ranges,
            groups: Slab::new(),
            streams: Slab::new(),
            stream_ids: HashMap::new(),
            cohorts: HashMap::new(),
            cohorts_made: 0,
            futures: BTreeMap::new(),
            ready: VecDeque::new(),
            wants_read: BTreeSet::new(),
            line: VecDeque::new(),
            reading: None,
            jobs_made: 0,
            slices: Vec::new(),
            progress_asked: Vec::new(),
            timers: BTreeSet::new(),
            random,
            wakers: Vec::new(),
            hits: Vec::new(),
        }
    }

    /// Everything up to it was told.
    pub fn current(&self) -> Revision {
        self.current
    }

    /// While there is none, nobody needs events.
    pub fn has_watchers(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Readers to be woken for what was queued since this was last called.
    pub fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers)
    }

    /// All changes of one revision, in their order. Revisions between the former and this one that were not told are read from the store
    /// by those who watch.
    pub fn publish(&mut self, revision: Revision, events: &[Event], previous: &dyn Previous) {
        if revision <= self.current {
            return;
        }
        if revision > self.current.next() {
            self.advance(Revision(revision.0 - 1));
        }
        self.begin_futures(FutureKey { next: revision.next(), explicit: false, stream: 0, id: i64::MIN });
        if self.has_watchers() {
            let events = Arc::new(RevisionEvents::new(revision, events));
            self.deliver(&events, previous);
            self.ring.push(events);
        } else {
            self.ring.clear();
        }
        self.current = revision;
        self.begin_futures(FutureKey { next: revision.next(), explicit: true, stream: 0, id: i64::MIN });
    }

    /// The store is at this revision and the events up to it are not told: whoever followed reads them from the store.
    pub fn advance(&mut self, revision: Revision) {
        if revision <= self.current {
            return;
        }
        self.ring.clear();
        let next = self.current.next();
        self.current = revision;
        if self.has_watchers() {
            let followers: Vec<CohortId> =
                self.streams.iter().filter_map(|(_, stream)| stream.synced).collect();
            for cohort in followers {
                self.fall_behind(cohort, next);
                self.ready.push_back(cohort);
            }
            while let Some(key) = self.futures.first_key_value().map(|(key, _)| *key) {
                if key.next > revision {
                    break;
                }
                self.begin_late(key);
            }
            let bound = FutureKey { next: revision.next(), explicit: true, stream: 0, id: i64::MIN };
            self.begin_futures(bound);
        }
    }

    /// Revisions below this one can no longer be read from the store. Who needs one is served from recent history or cancelled.
    pub fn compact(&mut self, revision: Revision) {
        if revision <= self.compacted {
            return;
        }
        self.compacted = revision;
        while let Some((next, cohort)) = self.wants_read.first().copied() {
            if next >= revision {
                break;
            }
            if self.ring.get(next).is_some() {
                self.read_no_more(cohort);
            } else {
                self.cancel_compacted(cohort);
            }
        }
    }

    /// This member replaced its state by that of another: the same history, further on.
    pub fn install(&mut self, revision: Revision, compacted: Revision) {
        self.advance(revision);
        self.compact(compacted);
    }

    /// A client's stream; its queue has the id by which it is called from now on.
    pub fn open(&mut self, queue: Arc<StreamQueue>) {
        let id = queue.id();
        let stream = self.streams.insert(Stream {
            queue,
            watchers: HashMap::new(),
            next_id: 0,
            cohorts: BTreeSet::new(),
            synced: None,
            waiting: BTreeMap::new(),
            in_line: false,
            futures: 0,
            touched: Revision(0),
            progress: None,
            progress_watchers: 0,
            timer: None,
        });
        self.stream_ids.insert(id, stream as StreamId);
        Gauges::add(&self.gauges.streams, 1);
    }

    /// The client is gone: its watchers are freed now, not when the next event would find nobody there.
    pub fn close(&mut self, stream: u64) {
        let Some(id) = self.stream_ids.remove(&stream) else { return };
        let mut watchers: Vec<i64> = self.streams[id as usize].watchers.keys().copied().collect();
        // Which place in the tables is free next follows from the order, and must follow from what happened alone.
        watchers.sort_unstable();
        for watcher in watchers {
            self.remove_watcher(id, watcher);
        }
        let stream = self.streams.remove(id as usize);
        assert!(stream.cohorts.is_empty(), "a cohort without watchers is gone");
        if let Some(due) = stream.timer {
            self.timers.remove(&(due, id));
        }
        self.progress_asked.retain(|asked| *asked != id);
        if stream.in_line {
            self.line.retain(|waiting| *waiting != id);
        }
        Gauges::add(&self.gauges.streams, -1);
        if self.streams.is_empty() {
            self.forget();
        }
    }

    /// Gives the memory of former watchers back.
    fn forget(&mut self) {
        self.ring.clear();
        self.streams.shrink_to_fit();
        self.groups.shrink_to_fit();
        self.stream_ids.shrink_to_fit();
        self.cohorts.shrink_to_fit();
        self.ready.shrink_to_fit();
        self.line.shrink_to_fit();
    }

    /// The member stops: readers get what is queued and then the end.
    pub fn stop(&mut self) {
        for (_, stream) in &self.streams {
            self.wakers.extend(stream.queue.end());
        }
    }

    /// To everybody who follows and whom it concerns.
    fn deliver(&mut self, events: &Arc<RevisionEvents>, previous: &dyn Previous) {
        let mut hits = mem::take(&mut self.hits);
        self.ranges.hits(events, &mut hits);
        for hits in hits.chunk_by(|a, b| a.0 == b.0) {
            let mut picks = Picks::new(events, hits);
            let range = hits[0].0;
            for at in 0..self.ranges.get(range).groups.len() {
                let group = self.ranges.get(range).groups[at];
                self.deliver_to(group, events, &mut picks, previous);
            }
        }
        self.hits = hits;
    }

    fn deliver_to(
        &mut self,
        group: GroupId,
        events: &Arc<RevisionEvents>,
        picks: &mut Picks<'_>,
        previous: &dyn Previous,
    ) {
        let group = &mut self.groups[group as usize];
        let stream = &mut self.streams[group.stream as usize];
        if stream.synced != Some(group.cohort) {
            return;
        }
        let Some(pick) = picks.get(group.options) else { return };
        let revision = events.revision;
        // A revision is handed out to all watchers of a cohort or to none of them, so this is asked before the first.
        if stream.touched != revision
            && events.is_bulk(self.config.previous_reads_max)
            && self.cohorts[&group.cohort].wants_previous()
        {
            let cohort = group.cohort;
            self.fall_behind(cohort, revision);
            self.ready.push_back(cohort);
            return;
        }
        if group.options.has(Options::PREVIOUS) {
            events.fill_picked(&pick, previous);
        }
        let delivery = group.delivery(events, pick, revision);
        match stream.queue.offer(delivery, stream.touched == revision) {
            Ok(waker) => {
                stream.touched = revision;
                group.active = true;
                self.wakers.extend(waker);
            }
            Err(Full) => {
                let cohort = group.cohort;
                self.fall_behind(cohort, revision);
                self.cohort_mut(cohort).state = State::NoRoom;
            }
        }
    }

    fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id as usize]
    }

    fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        &mut self.streams[id as usize]
    }

    fn reply(&mut self, stream: StreamId, reply: Reply, weight: usize) {
        let waker = self.stream(stream).queue.reply(reply, weight);
        self.wakers.extend(waker);
    }
}

/// Which of the events that lie in a range pass each filter; found out when first asked.
struct Picks<'a> {
    events: &'a RevisionEvents,
    /// The range, and the position of the event.
    hits: &'a [(RangeId, u32)],
    found: [Option<Option<Pick>>; 4],
}

impl<'a> Picks<'a> {
    fn new(events: &'a RevisionEvents, hits: &'a [(RangeId, u32)]) -> Picks<'a> {
        Picks { events, hits, found: [const { None }; 4] }
    }

    /// None when every event is filtered out.
    fn get(&mut self, options: Options) -> Option<Pick> {
        let (events, hits) = (self.events, self.hits);
        self.found[options.filter()]
            .get_or_insert_with(|| {
                let passed = hits.iter().map(|(_, at)| *at);
                pick(events, passed.filter(|at| options.lets_pass(events.is_delete(*at as usize))))
            })
            .clone()
    }
}

fn pick(events: &RevisionEvents, passed: impl Iterator<Item = u32> + Clone) -> Option<Pick> {
    match passed.clone().count() {
        0 => None,
        all if all == events.len() => Some(Pick::All),
        _ => Some(Pick::Some(passed.collect())),
    }
}
