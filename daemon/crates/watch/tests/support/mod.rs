//! A store that remembers everything, a hub without threads, and streams that are read when the test says so.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use api::{
    etcdserverpb::{WatchCreateRequest, WatchResponse},
    mvccpb::{Event, KeyValue, event::EventType},
};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use types::{ClusterId, KeyRange, MemberId, Revision};
use watch::{
    Door, Face, Gauges, Hub, HubConfig, Previous, QueueLimits, ReadJob, Request, Responses, RevisionEvents,
    Slice, StoreNow, StreamQueue,
};

pub const FRAGMENT_BYTES: usize = 300;
pub const TERM: u64 = 7;

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Every revision from 2 on, with previous versions in the events.
#[derive(Default)]
pub struct Store {
    pub history: Vec<Vec<Event>>,
    live: BTreeMap<Bytes, KeyValue>,
    pub compacted: i64,
}

impl Store {
    pub fn revision(&self) -> i64 {
        self.history.len() as i64 + 1
    }

    pub fn at(&self, revision: i64) -> &[Event] {
        // Nothing happened at revision 1.
        usize::try_from(revision - 2).map_or(&[], |at| &self.history[at])
    }

    /// The changes of one revision: a value to put, or None to delete. A delete of a missing key is left out.
    pub fn write(&mut self, changes: &[(&str, Option<&str>)]) -> i64 {
        let revision = self.revision() + 1;
        let mut events = Vec::new();
        for (key, value) in changes {
            let key = Bytes::copy_from_slice(key.as_bytes());
            let before = self.live.get(&key).cloned();
            let event = match value {
                Some(value) => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: Bytes::copy_from_slice(value.as_bytes()),
                        mod_revision: revision,
                        create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
                        version: before.as_ref().map_or(0, |kv| kv.version) + 1,
                        lease: 0,
                    };
                    self.live.insert(key, kv.clone());
                    Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: before }
                }
                None if before.is_none() => continue,
                None => {
                    self.live.remove(&key);
                    let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
                    Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: before }
                }
            };
            events.push(event);
        }
        if !events.is_empty() {
            self.history.push(events);
        }
        self.revision()
    }

    /// As apply tells them: without previous versions.
    pub fn told(&self, revision: i64) -> Vec<Event> {
        self.at(revision).iter().map(|event| Event { prev_kv: None, ..event.clone() }).collect()
    }

    pub fn now(&self) -> StoreNow {
        StoreNow { revision: Revision(self.revision()), compacted: Revision(self.compacted) }
    }

    pub fn read(&self, job: &ReadJob) -> Result<Slice, Revision> {
        if job.from.0 < self.compacted {
            return Err(Revision(self.compacted));
        }
        let mut revisions = Vec::new();
        let mut through = job.to.0.min(self.revision());
        for revision in job.from.0..=through {
            let mut events = self.told(revision);
            events.retain(|event| {
                let key = &event.kv.as_ref().expect("a key").key;
                job.ranges.iter().any(|range| range.contains(key))
            });
            if !events.is_empty() {
                let encoded = RevisionEvents::new(Revision(revision), &events);
                if job.previous {
                    encoded.fill_previous(self);
                }
                revisions.push(Arc::new(encoded));
            }
            if revisions.len() == job.revisions_max {
                through = revision;
                break;
            }
        }
        Ok(Slice { revisions, through: Revision(through) })
    }
}

impl Previous for Store {
    fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue> {
        // Within one revision the newest before the event is not asked for: keys are written once in each.
        let event =
            self.at(before.0).iter().find(|event| event.kv.as_ref().is_some_and(|kv| kv.key == key))?;
        if before.0 - 1 < self.compacted { None } else { event.prev_kv.clone() }
    }
}

#[derive(Default)]
pub struct Doorbell(pub Mutex<Vec<Rung>>);

pub enum Rung {
    Drained(u64),
    Closed(u64),
}

impl Door for Doorbell {
    fn drained(&self, stream: u64) {
        self.0.lock().push(Rung::Drained(stream));
    }

    fn closed(&self, stream: u64) {
        self.0.lock().push(Rung::Closed(stream));
    }

    fn raft_term(&self) -> u64 {
        TERM
    }
}

/// One end of a stream; the hub has the other.
pub struct Client {
    pub id: u64,
    pub queue: Arc<StreamQueue>,
    pub responses: Responses,
}

impl Client {
    /// One chunk, if there is anything.
    pub fn read_chunk(&mut self) -> Vec<WatchResponse> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.responses.poll_next(&mut cx) {
            Poll::Ready(Some(chunk)) => frames(chunk),
            Poll::Ready(None) | Poll::Pending => Vec::new(),
        }
    }

    pub fn read_all(&mut self) -> Vec<WatchResponse> {
        let mut all = Vec::new();
        loop {
            let more = self.read_chunk();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }
}

/// Whole gRPC frames.
pub fn frames(mut chunk: Bytes) -> Vec<WatchResponse> {
    let mut all = Vec::new();
    while !chunk.is_empty() {
        let head = chunk.split_to(5);
        assert_eq!(head[0], 0, "not compressed");
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        all.push(WatchResponse::decode(chunk.split_to(len)).expect("a response"));
    }
    all
}

pub struct World {
    pub store: Store,
    pub hub: Hub,
    pub gauges: Arc<Gauges>,
    pub bell: Arc<Doorbell>,
    limits: QueueLimits,
    streams: u64,
    /// The hub was told up to here.
    pub told: i64,
    pub reads: u64,
    /// What was read last and not handed in.
    pub job: Option<ReadJob>,
    pub now_ms: u64,
}

pub fn config(seed: u64, ring: usize, items: usize) -> HubConfig {
    HubConfig {
        ring_revisions_max: ring,
        previous_reads_max: 2,
        queue: QueueLimits { items, ..QueueLimits::default() },
        ..HubConfig::new(seed, 1000)
    }
}

impl World {
    pub fn new(config: HubConfig) -> World {
        let gauges = Arc::new(Gauges::default());
        let limits = config.queue;
        let hub = Hub::new(config, gauges.clone(), Revision(1), Revision(-1));
        World {
            store: Store { compacted: -1, ..Store::default() },
            hub,
            gauges,
            bell: Arc::default(),
            limits,
            streams: 0,
            told: 1,
            reads: 0,
            job: None,
            now_ms: 0,
        }
    }

    pub fn open(&mut self) -> Client {
        let id = self.streams;
        self.streams += 1;
        let queue = Arc::new(StreamQueue::new(id, self.limits, self.gauges.clone()));
        self.hub.open(queue.clone());
        let face = Face { cluster: ClusterId(3), member: MemberId(5), fragment_bytes: FRAGMENT_BYTES };
        let responses = Responses::new(queue.clone(), self.bell.clone(), face);
        Client { id, queue, responses }
    }

    pub fn ask(&mut self, client: &Client, request: Request) {
        let weight = StreamQueue::weight(10);
        let mut cx = Context::from_waker(Waker::noop());
        let admitted = client.queue.poll_admit(&mut cx, weight);
        assert_eq!(admitted, Poll::Ready(Ok(())), "these tests ask little");
        self.hub.request(client.id, request, weight, self.store.now(), self.now_ms);
    }

    pub fn create(&mut self, client: &Client, create: WatchCreateRequest) {
        self.ask(client, Request::Create(create));
    }

    /// Writes and tells it.
    pub fn put(&mut self, key: &str, value: &str) -> i64 {
        let revision = self.store.write(&[(key, Some(value))]);
        self.tell();
        revision
    }

    pub fn delete(&mut self, key: &str) -> i64 {
        let revision = self.store.write(&[(key, None)]);
        self.tell();
        revision
    }

    /// Tells the hub whatever it was not told.
    pub fn tell(&mut self) {
        while self.told < self.store.revision() {
            self.tell_one();
        }
    }

    pub fn tell_one(&mut self) {
        self.told += 1;
        self.hub.publish(Revision(self.told), &self.store.told(self.told), &self.store);
    }

    pub fn compact(&mut self, revision: i64) {
        self.store.compacted = revision;
        self.hub.compact(Revision(revision));
    }

    pub fn ring_bells(&mut self) {
        let rung = std::mem::take(&mut *self.bell.0.lock());
        for rung in rung {
            match rung {
                Rung::Drained(stream) => self.hub.drained(stream),
                Rung::Closed(stream) => self.hub.close(stream),
            }
        }
    }

    /// One slice of history, read now. False when none is wanted.
    pub fn read_slice(&mut self) -> bool {
        let Some(job) = self.job.take().or_else(|| self.hub.next_read()) else { return false };
        self.reads += 1;
        let result = self.store.read(&job);
        self.hub.read_done(job.id, result);
        true
    }

    /// Everything that can be done without clients.
    pub fn settle(&mut self) {
        loop {
            self.ring_bells();
            let works = self.hub.work(1000, &self.store);
            if !self.read_slice() && !works {
                break;
            }
        }
        self.hub.settle();
        for waker in self.hub.take_wakers() {
            waker.wake();
        }
    }

    pub fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        self.hub.tick(self.now_ms);
    }
}

pub fn on(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() }
}

pub fn range(key: &'static str, end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { range_end: Bytes::from_static(end.as_bytes()), ..on(key) }
}

pub fn key_range(create: &WatchCreateRequest) -> KeyRange {
    let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
    KeyRange::from_request(&key, &create.range_end)
}

/// `watch id: key@revision ...`, or what else it says.
pub fn brief(response: &WatchResponse) -> String {
    let id = response.watch_id;
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let mut said = if response.created && response.canceled {
        format!("refused {}", response.cancel_reason)
    } else if response.created {
        format!("created {id} at {revision}")
    } else if response.canceled && response.compact_revision != 0 {
        format!("compacted {id} at {} header {revision}", response.compact_revision)
    } else if response.canceled {
        format!("canceled {id}")
    } else if response.events.is_empty() {
        format!("progress {id} at {revision}")
    } else {
        format!("{id} h{revision}:")
    };
    for event in &response.events {
        let kv = event.kv.as_ref().expect("a key");
        let sign = if event.r#type == EventType::Delete as i32 { "-" } else { "" };
        said += &format!(" {sign}{}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision);
        if let Some(previous) = &event.prev_kv {
            said += &format!("(was {})", String::from_utf8_lossy(&previous.value));
        }
    }
    if response.fragment {
        said += " ...";
    }
    said
}

pub fn briefs(responses: &[WatchResponse]) -> Vec<String> {
    responses.iter().map(brief).collect()
}
