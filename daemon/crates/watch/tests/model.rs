//! Random scripts against a store that remembers everything: writes, events told late or not at all, watches of every kind, readers that
//! stop, compaction, installed snapshots, history that arrives late. Each client checks what it receives as it receives it; in the end
//! everybody must have everything, and when all are gone nothing is left.
//!
//! A failure names its seed; `WATCH_SEED=n cargo test -p cairn-watch --test model` replays it. `WATCH_SEEDS=n` runs so many.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use api::{
    etcdserverpb::{WatchCreateRequest, WatchResponse},
    mvccpb::{Event, event::EventType},
};
use support::*;
use types::Revision;
use watch::Request;

const KEYS: [&str; 8] = ["a", "aa", "ab", "b", "ba", "c", "ca", "d"];
const RANGES: [(&str, &str); 10] = [
    ("a", ""),
    ("aa", ""),
    ("b", ""),
    ("zz", ""),
    ("a", "b"),
    ("a", "ac"),
    ("b", "\0"),
    ("", "\0"),
    ("c", "d"),
    ("aa", "ca"),
];

/// A watch as its client sees it.
struct Watch {
    create: WatchCreateRequest,
    start: i64,
    explicit: bool,
    /// Everything matching up to here was received.
    seen: i64,
    /// Events of a response that is not whole yet.
    part: Vec<Event>,
}

impl Watch {
    fn expected(&self, store: &Store, revision: i64) -> Vec<Event> {
        let range = key_range(&self.create);
        let passes = |event: &&Event| {
            let filter = i32::from(event.r#type == EventType::Delete as i32);
            range.contains(&event.kv.as_ref().expect("a key").key) && !self.create.filters.contains(&filter)
        };
        let mut events: Vec<Event> = store.at(revision).iter().filter(passes).cloned().collect();
        if !self.create.prev_kv {
            events.iter_mut().for_each(|event| event.prev_kv = None);
        }
        events
    }

    /// The events of the next revision that has any, up to `limit`.
    fn next(&self, store: &Store, limit: i64) -> Option<(i64, Vec<Event>)> {
        let from = self.seen.max(self.start - 1) + 1;
        (from..=limit)
            .map(|revision| (revision, self.expected(store, revision)))
            .find(|(_, events)| !events.is_empty())
    }
}

enum Awaited {
    Create(WatchCreateRequest, i64),
    /// A watch that exists, or existed, when asked.
    Cancel(i64),
}

struct Peer {
    client: Client,
    awaited: Vec<Awaited>,
    watches: BTreeMap<i64, Watch>,
    /// Cancelled by compaction; the id is taken.
    dead: BTreeSet<i64>,
    /// The store's revision at manual requests for progress. One answer may be for several, so the n-th answers the n-th or a later one.
    asked: Vec<i64>,
    answers: usize,
    /// The last one must be answered: there were watchers all the time since.
    must_answer: bool,
}

impl Peer {
    fn receive(&mut self, store: &Store, response: &WatchResponse) {
        let said = brief(response);
        let header = response.header.as_ref().expect("a header");
        assert_eq!((header.cluster_id, header.member_id, header.raft_term), (3, 5, TERM));
        assert!(header.revision <= store.revision(), "{said}: from the future");
        if response.created {
            let Awaited::Create(create, asked_at) = self.awaited.remove(0) else {
                panic!("{said}: not asked")
            };
            assert!(header.revision >= asked_at, "{said}: older than the store when asked ({asked_at})");
            self.created(response, create, header.revision, &said);
        } else if response.canceled && response.compact_revision != 0 {
            let watch = self.watches.remove(&response.watch_id).unwrap_or_else(|| panic!("{said}: unknown"));
            assert!(response.cancel_reason.is_empty() && header.revision == 0, "{said}");
            assert!(response.compact_revision <= store.compacted, "{said}");
            assert!(
                watch.seen.max(watch.start - 1) + 1 < response.compact_revision,
                "{said}: it had seen {} and nothing was lost",
                watch.seen
            );
            self.dead.insert(response.watch_id);
            self.must_answer &= !self.watches.is_empty();
        } else if response.canceled {
            let Awaited::Cancel(id) = self.awaited.remove(0) else { panic!("{said}: not asked") };
            assert_eq!(id, response.watch_id, "{said}");
            let known = self.watches.remove(&id).is_some() | self.dead.remove(&id);
            assert!(known, "{said}: there was no such watch");
            self.must_answer &= !self.watches.is_empty();
        } else if response.events.is_empty() {
            self.progress(store, response.watch_id, header.revision, &said);
        } else {
            self.events(store, response, header.revision, &said);
        }
    }

    fn created(&mut self, response: &WatchResponse, create: WatchCreateRequest, header: i64, said: &str) {
        let taken = |id: &i64| self.watches.contains_key(id) || self.dead.contains(id);
        if response.canceled {
            let expected = if create.start_revision < 0 {
                "etcdserver: mvcc: required revision has been compacted"
            } else if create.range_end != "\0"
                && !create.range_end.is_empty()
                && create.range_end <= create.key
            {
                "mvcc: watcher range is empty"
            } else {
                assert!(taken(&create.watch_id), "{said}: the id was free");
                "mvcc: duplicate watch ID provided on the WatchStream"
            };
            assert_eq!((response.watch_id, response.cancel_reason.as_str()), (-1, expected));
            return;
        }
        let id = response.watch_id;
        assert!(!taken(&id), "{said}: the id is in use");
        assert!(create.watch_id == 0 || id == create.watch_id, "{said}: another id than asked for");
        let explicit = create.start_revision > 0;
        let start = if explicit { create.start_revision } else { header + 1 };
        self.watches.insert(id, Watch { create, start, explicit, seen: 0, part: Vec::new() });
    }

    fn progress(&mut self, store: &Store, id: i64, revision: i64, said: &str) {
        if id == -1 {
            let asked = *self.asked.get(self.answers).unwrap_or_else(|| panic!("{said}: not asked"));
            assert!(revision >= asked, "{said}: the store was at {asked} when asked");
            self.answers += 1;
            self.must_answer &= self.asked.last().is_some_and(|last| *last > revision);
        }
        for (watched, watch) in &mut self.watches {
            if id != -1 && id != *watched {
                continue;
            }
            assert!(id == -1 || watch.create.progress_notify, "{said}: {watched} did not ask for it");
            assert!(
                !watch.explicit || revision >= watch.start,
                "{said}: {watched} starts at {}",
                watch.start
            );
            assert!(watch.part.is_empty(), "{said}: amid a response");
            if let Some((missing, _)) = watch.next(store, revision) {
                panic!("{said}: {watched} was not given {missing}");
            }
            watch.seen = watch.seen.max(revision);
        }
    }

    fn events(&mut self, store: &Store, response: &WatchResponse, header: i64, said: &str) {
        let watch =
            self.watches.get_mut(&response.watch_id).unwrap_or_else(|| panic!("{said}: unknown watch"));
        assert!(watch.create.fragment || !response.fragment, "{said}: fragments were not asked for");
        let len = prost::Message::encoded_len(response);
        if watch.create.fragment && response.events.len() > 1 {
            assert!(len < FRAGMENT_BYTES, "{said}: {len} bytes");
        }
        watch.part.extend(response.events.iter().cloned());
        if response.fragment {
            return;
        }
        let mut got = std::mem::take(&mut watch.part).into_iter().peekable();
        while got.peek().is_some() {
            let (revision, expected) =
                watch.next(store, store.revision()).unwrap_or_else(|| panic!("{said}: nothing happened"));
            assert!(header >= revision, "{said}: the header is behind the events");
            for expected in expected {
                let mut event =
                    got.next().unwrap_or_else(|| panic!("{said}: revision {revision} is not whole"));
                if event.prev_kv.is_none() && revision - 1 < store.compacted {
                    event.prev_kv = expected.prev_kv.clone();
                }
                assert_eq!(event, expected, "{said}: expected revision {revision} next");
            }
            watch.seen = revision;
        }
    }
}

struct Run {
    world: World,
    random: Random,
    peers: Vec<Peer>,
    progress_answered: usize,
    compacted: usize,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed);
        let (ring, items) = (1 + random.below(30) as usize, 2 + random.below(30) as usize);
        let world = World::new(config(seed, ring, items));
        Run { world, random, peers: Vec::new(), progress_answered: 0, compacted: 0 }
    }

    fn any_peer(&mut self) -> Option<usize> {
        let count = self.peers.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.write(),
            30..50 => {
                if self.world.told < self.world.store.revision() {
                    self.world.tell_one();
                }
            }
            50..52 => self.skip(),
            52..60 => self.create(),
            60..62 => self.cancel(),
            62..66 => self.ask_progress(),
            66..80 => {
                if let Some(at) = self.any_peer() {
                    self.read(at);
                }
            }
            80..82 => self.compact(),
            82..84 => {
                let ms = self.random.below(1500);
                self.world.tick(ms);
            }
            84..86 if self.peers.len() < 4 => {
                let client = self.world.open();
                self.peers.push(Peer {
                    client,
                    awaited: Vec::new(),
                    watches: BTreeMap::new(),
                    dead: BTreeSet::new(),
                    asked: Vec::new(),
                    answers: 0,
                    must_answer: false,
                });
            }
            86 => {
                if let Some(at) = self.any_peer().filter(|_| self.random.one_in(3)) {
                    self.peers.swap_remove(at);
                }
            }
            87..90 => self.world.ring_bells(),
            90..93 => {
                // A slice that takes its time: asked for now, read later.
                if self.world.job.is_none() {
                    self.world.job = self.world.hub.next_read();
                }
            }
            93..96 => {
                self.world.read_slice();
            }
            _ => {
                let units = 1 + self.random.below(20) as usize;
                self.world.hub.work(units, &self.world.store);
                self.world.hub.settle();
            }
        }
    }

    fn write(&mut self) {
        let mut changes: Vec<(&str, Option<&str>)> = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let key = KEYS[self.random.below(8) as usize];
            if changes.iter().any(|(other, _)| *other == key) {
                continue;
            }
            let long = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
            let value = if self.random.one_in(3) { long } else { "v" };
            changes.push((key, (!self.random.one_in(4)).then_some(value)));
        }
        self.world.store.write(&changes);
    }

    /// The hub is told that something happened and not what; also what installing a snapshot tells.
    fn skip(&mut self) {
        let world = &mut self.world;
        world.told = world.store.revision();
        if self.random.one_in(3) {
            // The next revision that is told shows the gap.
            return;
        }
        if self.random.one_in(2) {
            world.hub.advance(Revision(world.told));
        } else {
            if self.random.one_in(2) {
                world.store.compacted = world.store.compacted.max(world.told - 1);
            }
            world.hub.install(Revision(world.told), Revision(world.store.compacted));
        }
    }

    fn compact(&mut self) {
        let store = &mut self.world.store;
        let at = 1 + self.random.below(store.revision() as u64) as i64;
        if at > store.compacted {
            store.compacted = at;
            // At times the hub learns of it only from what it reads.
            if self.random.one_in(2) && at <= self.world.told {
                self.world.hub.compact(Revision(at));
            }
        }
    }

    fn create(&mut self) {
        let Some(at) = self.any_peer() else { return };
        let now = self.world.store.revision();
        let random = &mut self.random;
        let (key, end) = RANGES[random.below(10) as usize];
        let start_revision = match random.below(10) {
            0..3 => 0,
            3..7 => 1 + random.below(now as u64) as i64,
            7 => now + 1,
            8 => now + 1 + random.below(10) as i64,
            _ if random.one_in(4) => -1,
            _ => self.world.told + 1,
        };
        let mut filters = Vec::new();
        for filter in [0, 1] {
            if random.one_in(5) {
                filters.push(filter);
            }
        }
        let empty_range = random.one_in(30);
        let create = WatchCreateRequest {
            range_end: if empty_range { "A".into() } else { end.into() },
            start_revision,
            filters,
            prev_kv: random.one_in(3),
            progress_notify: random.one_in(3),
            fragment: random.one_in(3),
            watch_id: if random.one_in(4) { 1 + random.below(6) as i64 } else { 0 },
            ..on(key)
        };
        let peer = &mut self.peers[at];
        peer.awaited.push(Awaited::Create(create.clone(), now));
        self.world.create(&peer.client, create);
    }

    fn cancel(&mut self) {
        let Some(at) = self.any_peer() else { return };
        let id = self.random.below(6) as i64;
        let peer = &mut self.peers[at];
        // The client must know of it to expect an answer.
        let known = peer.watches.contains_key(&id) || peer.dead.contains(&id);
        if known && peer.awaited.is_empty() {
            peer.awaited.push(Awaited::Cancel(id));
            self.world.ask(&peer.client, Request::Cancel(id));
        }
    }

    fn ask_progress(&mut self) {
        let Some(at) = self.any_peer() else { return };
        let peer = &mut self.peers[at];
        peer.asked.push(self.world.store.revision());
        peer.must_answer |= !peer.watches.is_empty();
        self.world.ask(&peer.client, Request::Progress);
    }

    fn read(&mut self, at: usize) -> bool {
        let peer = &mut self.peers[at];
        let responses = peer.client.read_chunk();
        for response in &responses {
            self.progress_answered += usize::from(response.watch_id == -1 && response.events.is_empty());
            self.compacted += usize::from(response.compact_revision != 0);
            peer.receive(&self.world.store, response);
        }
        !responses.is_empty()
    }

    /// Everybody reads, everything is told and read.
    fn drain(&mut self) {
        self.world.tell();
        self.world.hub.advance(Revision(self.world.told));
        loop {
            self.world.settle();
            let mut read_any = false;
            for at in 0..self.peers.len() {
                read_any |= self.read(at);
            }
            if !read_any {
                break;
            }
        }
        let newest = self.world.store.revision();
        let mut live = 0;
        for peer in &self.peers {
            assert!(peer.awaited.is_empty(), "every create and cancel is answered");
            for (id, watch) in &peer.watches {
                live += 1;
                if let Some((missing, _)) = watch.next(&self.world.store, newest) {
                    panic!("watch {id} from {} has seen {} and not {missing}", watch.start, watch.seen);
                }
            }
            let future = peer.watches.values().any(|watch| watch.explicit && watch.start > newest);
            let answerable = !peer.watches.is_empty() && !future;
            assert!(!answerable || !peer.must_answer, "a request for progress is answered when all follow");
        }
        assert_eq!(self.world.gauges.watchers(), live);
        assert_eq!(self.world.gauges.slow_watchers(), 0);
        assert_eq!((self.world.gauges.queued_bytes(), self.world.gauges.pending_events()), (0, 0));
    }

    fn end(mut self) -> (usize, usize) {
        self.drain();
        // With a queue that is not empty, too.
        self.world.store.write(&[("a", Some("x")), ("b", None)]);
        self.world.tell();
        self.peers.clear();
        self.world.ring_bells();
        let gauges = &self.world.gauges;
        assert_eq!((gauges.watchers(), gauges.streams(), gauges.slow_watchers()), (0, 0, 0));
        assert_eq!((gauges.queued_bytes(), gauges.pending_events()), (0, 0));
        assert!(!self.world.hub.has_watchers() && self.world.hub.next_tick().is_none());
        (self.progress_answered, self.compacted)
    }
}

#[test]
fn every_watcher_gets_everything_once_and_in_order() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("WATCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WATCH_SEEDS").unwrap_or(1500),
    };
    let many = seeds.end - seeds.start > 100;
    let (mut progress, mut compacted) = (0, 0);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            for step in 0..400 {
                run.step();
                if step % 150 == 149 {
                    run.drain();
                }
            }
            run.end()
        });
        let Ok((answered, cancelled)) = result else {
            panic!("replay with: WATCH_SEED={seed} cargo test -p cairn-watch --test model");
        };
        progress += answered;
        compacted += cancelled;
    }
    assert!(
        !many || (progress > 100 && compacted > 100),
        "the scripts reach {progress} notices, {compacted} cancels"
    );
}
