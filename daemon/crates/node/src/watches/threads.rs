//! Two threads. `watch-hub` owns the hub: takes what was applied and what clients ask, and never touches the disk except for previous
//! versions that are not in memory. `watch-history` reads slices of the store's history for watchers that are behind, one after the
//! other; it reads beside apply as any client does.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::mvccpb::KeyValue;
use crossbeam_channel::{Receiver, Sender};
use state_machine::{HistoryError, HistoryRequest, Reader};
use storage::state_store::FjallStore;
use types::Revision;
use watch::{Hub, HubConfig, Previous, ReadJob, Request, RevisionEvents, Slice, StoreNow};

use super::inbox::{Asked, Told};
use crate::shared::Shared;

/// Revisions fed from memory between two looks at the inbox: well under a millisecond for few watchers, and a few if a previous version is
/// read from the store for each.
const WORK_REVISIONS: usize = 256;

/// Revisions of a batch after which readers are woken although the batch goes on.
const WAKE_REVISIONS: usize = 64;

struct InStore(Reader<FjallStore>);

impl Previous for InStore {
    fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue> {
        self.0.previous(key, before)
    }
}

/// Ends when the inbox says stop. `reads` leads to the other thread and holds at most one job.
pub(crate) fn run_hub(shared: Arc<Shared>, reads: Sender<ReadJob>) {
    let desk = &shared.watch;
    let started = Instant::now();
    let reader = shared.reader();
    let interval = shared.config.watch_progress_interval;
    let config = HubConfig::new(desk.seed, u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
    let mut hub = Hub::new(config, desk.gauges.clone(), reader.revision(), reader.compact_revision());
    drop(reader);
    let (mut told, mut asked): (Vec<Told>, Vec<Asked>) = (Vec::new(), Vec::new());
    let mut has_work = false;
    loop {
        let until = hub.next_tick().map(|due| started + Duration::from_millis(due));
        let goes_on = desk.inbox.take(&mut told, &mut asked, until, !has_work);
        let store = InStore(shared.reader());
        for batch in told.drain(..) {
            publish(&mut hub, batch, &store);
        }
        let now_ms = started.elapsed().as_millis() as u64;
        answer(&shared, &mut hub, &mut asked, now_ms);
        hub.tick(now_ms);
        has_work = hub.work(WORK_REVISIONS, &store);
        if let Some(job) = hub.next_read() {
            // One job at a time: there is room. Without the other thread the process is ending.
            let _ = reads.send(job);
        }
        hub.settle();
        wake(&mut hub);
        if !goes_on {
            hub.stop();
            wake(&mut hub);
            return;
        }
    }
}

fn wake(hub: &mut Hub) {
    for waker in hub.take_wakers() {
        waker.wake();
    }
}

fn publish(hub: &mut Hub, batch: Told, store: &InStore) {
    for (at, (revision, events)) in batch.revisions.iter().enumerate() {
        hub.publish(*revision, events, store);
        if at % WAKE_REVISIONS == WAKE_REVISIONS - 1 {
            wake(hub);
        }
    }
    hub.advance(batch.newest);
    if let Some(compacted) = batch.compacted {
        hub.compact(compacted);
    }
    wake(hub);
}

fn answer(shared: &Shared, hub: &mut Hub, asked: &mut Vec<Asked>, now_ms: u64) {
    let desk = &shared.watch;
    let creates = |asked: &Asked| matches!(asked, Asked::Request { request: Request::Create(_), .. });
    if asked.iter().any(creates) && !desk.wants_events.swap(true, Ordering::SeqCst) {
        // Nothing was told since the last watcher went, and nothing need ever be written again: what is applied up to here is the store's
        // to tell. What is applied after the swap comes with events, or at least with its revision.
        hub.advance(shared.reader().revision());
    }
    // After the requests were taken: it is at least what the clients knew when they asked.
    let mut now = None;
    for asked in asked.drain(..) {
        match asked {
            Asked::Open(queue) => hub.open(queue),
            Asked::Request { stream, request, weight } => {
                let store = *now.get_or_insert_with(|| {
                    let reader = shared.reader();
                    let compacted = reader.compact_revision();
                    StoreNow { revision: reader.revision(), compacted }
                });
                hub.request(stream, request, weight, store, now_ms);
            }
            Asked::Drained(stream) => hub.drained(stream),
            Asked::Closed(stream) => hub.close(stream),
            Asked::Read { job, result } => hub.read_done(job, result),
            Asked::Census { from, told } => {
                // Whoever asked may be gone.
                let _ = told.send(hub.census(from));
            }
        }
    }
    desk.wants_events.store(hub.has_watchers(), Ordering::SeqCst);
}

/// Ends when the hub's thread is gone.
pub(crate) fn run_history(shared: Arc<Shared>, jobs: Receiver<ReadJob>) {
    while let Ok(job) = jobs.recv() {
        let result = read(InStore(shared.reader()), &job);
        shared.watch.inbox.ask(Asked::Read { job: job.id, result });
    }
}

/// Encodes here, so that the hub's thread only hands out.
fn read(store: InStore, job: &ReadJob) -> Result<Slice, Revision> {
    let request = HistoryRequest {
        from: job.from,
        to: job.to,
        ranges: &job.ranges,
        revisions_max: job.revisions_max,
        bytes_max: job.bytes_max,
    };
    let history = store.0.history(&request).map_err(|HistoryError::Compacted(revision)| revision)?;
    let encode = |(revision, events): (Revision, Vec<_>)| {
        let encoded = RevisionEvents::new(revision, &events);
        if job.previous {
            encoded.fill_previous(&store);
        }
        Arc::new(encoded)
    };
    Ok(Slice { revisions: history.revisions.into_iter().map(encode).collect(), through: history.through })
}
