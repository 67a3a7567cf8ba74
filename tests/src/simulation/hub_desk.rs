//! What a member does for watches: the hub, which is real, and around it the simplest driver that keeps its contract. As in a member the
//! hub runs behind apply, at its own pace, and history is read by somebody else in between.

use std::sync::{Arc, Mutex};

use api::mvccpb::{Event, KeyValue};
use state_machine::{HistoryError, HistoryRequest, Memory, Reader};
use types::Revision;
use watch::{
    Door, Gauges, Hub, HubConfig, Previous, QueueLimits, ReadJob, Request, RevisionEvents, Slice, StoreNow,
    StreamQueue,
};

use super::Time;

/// Sizes of queues and of recent history; small ones make watchers fall behind.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub queue: QueueLimits,
    pub ring_revisions: usize,
    pub fragment_bytes: usize,
    pub progress_interval: Time,
}

/// What was applied in one go, as the hub is told of it.
#[derive(Debug, Default)]
pub struct Batch {
    pub revisions: Vec<(Revision, Vec<Event>)>,
    pub newest: Revision,
    pub compacted: Revision,
}

pub enum Asked {
    Open(Arc<StreamQueue>),
    Request { stream: u64, request: Request, weight: usize },
    Drained(u64),
    Closed(u64),
    Read { job: u64, result: Result<Slice, Revision> },
}

/// Where the readers of queues leave word.
#[derive(Default)]
pub struct Doorstep {
    asked: Mutex<Vec<Asked>>,
}

impl Doorstep {
    pub fn ask(&self, asked: Asked) {
        self.asked.lock().expect("nobody panics here").push(asked);
    }
}

impl Door for Doorstep {
    fn drained(&self, stream: u64) {
        self.ask(Asked::Drained(stream));
    }

    fn closed(&self, stream: u64) {
        self.ask(Asked::Closed(stream));
    }

    fn raft_term(&self) -> u64 {
        1
    }
}

pub struct InStore(pub Reader<Memory>);

impl Previous for InStore {
    fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue> {
        self.0.previous(key, before)
    }
}

pub struct HubDesk {
    hub: Hub,
    pub gauges: Arc<Gauges>,
    pub doorstep: Arc<Doorstep>,
    told: Vec<Batch>,
    /// Apply need not keep events otherwise.
    pub wants_events: bool,
    /// A turn of the hub is on its way.
    pub turn_due: bool,
}

impl HubDesk {
    pub fn new(seed: u64, sizes: &Sizes, reader: &Reader<Memory>) -> HubDesk {
        let gauges = Arc::new(Gauges::default());
        let config = HubConfig {
            ring_revisions_max: sizes.ring_revisions,
            queue: sizes.queue,
            ..HubConfig::new(seed, sizes.progress_interval)
        };
        let hub = Hub::new(config, gauges.clone(), reader.revision(), reader.compact_revision());
        HubDesk {
            hub,
            gauges,
            doorstep: Arc::default(),
            told: Vec::new(),
            wants_events: false,
            turn_due: false,
        }
    }

    /// Apply, or an installed snapshot, leaves word.
    pub fn tell(&mut self, batch: Batch) {
        if !batch.revisions.is_empty() || self.wants_events {
            self.told.push(batch);
        }
    }

    /// One round of the hub. Answers what is to be read, and whether there is more to do.
    pub fn turn(&mut self, reader: &Reader<Memory>, budget: usize, now: Time) -> (Option<ReadJob>, bool) {
        let store = InStore(reader.clone());
        let told = std::mem::take(&mut self.told);
        let asked = std::mem::take(&mut *self.doorstep.asked.lock().expect("nobody panics here"));
        for batch in told {
            for (revision, events) in &batch.revisions {
                self.hub.publish(*revision, events, &store);
            }
            self.hub.advance(batch.newest);
            self.hub.compact(batch.compacted);
        }
        let creates = |asked: &Asked| matches!(asked, Asked::Request { request: Request::Create(_), .. });
        if asked.iter().any(creates) && !std::mem::replace(&mut self.wants_events, true) {
            // What was applied while nobody watched was not told.
            self.hub.advance(reader.revision());
        }
        for asked in asked {
            match asked {
                Asked::Open(queue) => self.hub.open(queue),
                Asked::Request { stream, request, weight } => {
                    let now_in_store =
                        StoreNow { revision: reader.revision(), compacted: reader.compact_revision() };
                    self.hub.request(stream, request, weight, now_in_store, now);
                }
                Asked::Drained(stream) => self.hub.drained(stream),
                Asked::Closed(stream) => self.hub.close(stream),
                Asked::Read { job, result } => self.hub.read_done(job, result),
            }
        }
        self.wants_events = self.hub.has_watchers();
        self.hub.tick(now);
        let has_work = self.hub.work(budget, &store);
        let job = self.hub.next_read();
        self.hub.settle();
        drop(self.hub.take_wakers());
        (job, has_work)
    }
}

pub fn read(reader: &Reader<Memory>, job: &ReadJob) -> Result<Slice, Revision> {
    let store = InStore(reader.clone());
    let request = HistoryRequest {
        from: job.from,
        to: job.to,
        ranges: &job.ranges,
        revisions_max: job.revisions_max,
        bytes_max: job.bytes_max,
    };
    let history = reader.history(&request).map_err(|HistoryError::Compacted(revision)| revision)?;
    let encode = |(revision, events): (Revision, Vec<Event>)| {
        let encoded = RevisionEvents::new(revision, &events);
        if job.previous {
            encoded.fill_previous(&store);
        }
        Arc::new(encoded)
    };
    Ok(Slice { revisions: history.revisions.into_iter().map(encode).collect(), through: history.through })
}
