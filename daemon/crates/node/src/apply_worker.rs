//! The thread that owns the state machine. Takes committed entries, applies them in order, then tells in this order: the watch hub,
//! readers that wait for the index, clients that wait for their outcome, raft. Between batches it does a bounded piece of physical compaction.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb::response_op::Response, mvccpb::Event, raftpb};
use consensus::io::Input;
use parking_lot::Mutex;
use state_machine::{CompactProgress, CompactionHashJob, LeaseChange, Outcome, Sink, StateMachine};
use storage::state_store::FjallStore;
use tracing::{info, warn};
use transport::Transport;
use types::{ConfState, Entry, LogIndex, LogPosition, Revision, Term};

use crate::{
    lessor, members,
    metrics::Metrics,
    peers,
    pulse::Work,
    shared::{Shared, ToRaft},
    snapshots,
    watches::{TellEvents, WatchDesk},
};

pub(crate) enum ToApply {
    /// Bounded by the core's log tail, whose bytes these entries share.
    Entries(Vec<Entry>),
    /// A snapshot arrived; its file is in the snap directory.
    Install { position: LogPosition, conf_state: ConfState },
}

/// Entries applied in one go. A larger batch saves locks; a smaller one lets readers in sooner. At 2 us an entry this is 2 ms.
const ENTRIES_PER_BATCH: usize = 1024;

/// A batch of compaction and its pause are taken in so many slices: the rate stays what was asked for, and entries that arrive meanwhile
/// wait for a fraction of a millisecond instead of several.
const COMPACTION_SLICES: usize = 16;

/// Values brought back into memory between two looks at the queue after a start: a fraction of a millisecond.
const WARM_KEYS: usize = 64;

/// Pause between two such pieces: warming takes a part of one core, and what clients do goes first.
const WARM_INTERVAL: Duration = Duration::from_millis(1);

/// Between two looks at whether the hash of a compaction is there, before rows are removed.
const HASHING_INTERVAL: Duration = Duration::from_millis(10);

/// The thread that computes it pauses for as long as a piece took it, and at most this long.
const HASHING_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Without work the worker looks at the compaction this often. However long the pauses of a compaction are: whoever watches over this
/// member takes a worker that shows no sign of life for one that hangs.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct ApplyWorker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) machine: StateMachine<FjallStore>,
    pub(crate) transport: Transport,
    compaction_next: Instant,
    compacting: bool,
    /// Of the newest entry applied.
    term: Term,
    /// Newest values are still to be read from the store into memory.
    warming: bool,
}

/// The worker behind a lock: its thread holds it while it works, and the raft loop of an only voter applies with it while the thread has
/// nothing to do.
pub(crate) type SharedWorker = Arc<Mutex<ApplyWorker>>;

/// The worker's thread: ends when the queue is closed and empty.
pub(crate) fn run(shared: Arc<Shared>, worker: SharedWorker) {
    let mut batch = VecDeque::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut deadline = Instant::now();
    while shared.apply.take(&mut batch, Some(deadline), true) {
        deadline = shared.pulse.apply.within(Work::Disk, || {
            // Waiting for the lock is waiting for the raft loop, which applies with it.
            let mut worker = worker.lock();
            worker.work(&mut batch, &mut entries);
            worker.deadline(Instant::now())
        });
    }
}

impl ApplyWorker {
    pub(crate) fn new(shared: Arc<Shared>, machine: StateMachine<FjallStore>, transport: Transport) -> Self {
        let term = machine.applied().term;
        ApplyWorker {
            shared,
            machine,
            transport,
            term,
            compaction_next: Instant::now(),
            compacting: true,
            warming: true,
        }
    }

    /// When there is work even without entries.
    fn deadline(&self, now: Instant) -> Instant {
        next_look(now, self.compacting.then_some(self.compaction_next), self.warming)
    }

    fn work(&mut self, batch: &mut VecDeque<ToApply>, entries: &mut Vec<Entry>) {
        if batch.is_empty() && self.warming {
            self.warming = self.machine.warm_step(WARM_KEYS);
        }
        for item in batch.drain(..) {
            match item {
                ToApply::Entries(more) => entries.extend(more),
                ToApply::Install { position, conf_state } => {
                    self.apply(entries);
                    let shared = self.shared.clone();
                    shared.pulse.apply.within(Work::Install, || self.install(position, conf_state));
                }
            }
        }
        self.apply(entries);
        self.compact();
    }

    fn apply(&mut self, entries: &mut Vec<Entry>) {
        for batch in entries.chunks(ENTRIES_PER_BATCH) {
            let Applied { index, conf_changes, news } = self.apply_batch(batch);
            self.shared.pulse.apply.beat();
            // Raft waits only for the changes that are its own; the rest it may learn with its next turn, a tick from now at most.
            let applied = ToRaft::input(Input::Applied { index, conf_changes });
            if news {
                self.shared.raft.push(applied);
            } else {
                self.shared.raft.push_quietly(applied);
            }
        }
        entries.clear();
    }

    /// For the raft loop of a cluster's only voter, when everything before these entries is applied.
    pub(crate) fn apply_now(&mut self, entries: &[Entry]) -> Input {
        let compacting = self.compacting;
        let Applied { index, conf_changes, .. } = self.apply_batch(entries);
        if self.compacting && !compacting {
            // The thread sleeps and has more to do now.
            self.shared.apply.push(ToApply::Entries(Vec::new()));
        }
        Input::Applied { index, conf_changes }
    }

    /// `entries` is not empty.
    fn apply_batch(&mut self, entries: &[Entry]) -> Applied {
        let started = Instant::now();
        let shared = &self.shared;
        let mut told = Told::new(&shared.watch);
        self.machine.apply(entries, &mut told);
        let last = entries.last().expect("a batch has an entry");
        let reader = self.machine.reader();
        let revision = reader.revision();
        // First of all: whoever learns a revision may at once ask its watches whether they have it.
        let compacted = told.compacted.then(|| reader.compact_revision());
        shared.watch.applied(std::mem::take(&mut told.events), revision, compacted);
        if !told.conf_changes.is_empty() {
            shared.note_conf_state(self.machine.conf_state());
            peers::follow_members(shared, &self.transport, &reader);
            shared.records.applied(&reader, shared.is_joining());
        }
        if !told.leases.is_empty() {
            shared.leases.applied(shared, &told.leases);
        }
        shared.revision.store(revision.0, Ordering::Release);
        shared.applied.store(last.index.0, Ordering::Release);
        shared.gate.advance(last.index);
        told.count(&shared.metrics);
        // A lease that a client revoked first is gone as well, and no reason to pause.
        let is_done =
            |outcome: &Result<Outcome, EtcdError>| matches!(outcome, Ok(_) | Err(EtcdError::LeaseNotFound));
        let ended = told.outcomes.iter().map(|(id, outcome)| (*id, is_done(outcome)));
        shared.leases.ended(ended, lessor::REFUSED_PAUSE);
        for (id, outcome) in told.outcomes {
            shared.waiters.complete(id, outcome);
        }
        if !told.conf_changes.is_empty() {
            // After the answers: the client may have asked this very member.
            members::note_removal(shared, &reader, entries);
        }
        let new_term = last.term > self.term;
        if new_term {
            self.term = last.term;
            // After the outcomes: the raft loop then says of the rest that they are lost.
            shared.applied_term.store(last.term.0, Ordering::Release);
            // A leader takes the table of leases now, and writes down what is not written yet.
            shared.leases.wake();
            shared.records.term_began();
        }
        let news = !told.conf_changes.is_empty() || new_term;
        if told.compacted {
            self.compacting = true;
            self.compaction_next = Instant::now();
        }
        if told.over_quota {
            peers::raise_no_space(shared);
        }
        shared.metrics.apply.observe(started.elapsed());
        Applied { index: last.index, conf_changes: told.conf_changes, news }
    }

    fn compact(&mut self) {
        // A hash that was given up for the sake of a stop is computed by the next start, while its rows are there.
        let stops = self.shared.stopping.load(Ordering::Acquire);
        if !self.compacting || stops || Instant::now() < self.compaction_next {
            return;
        }
        if let Some(job) = self.machine.compaction_hash_job() {
            hash_beside(&self.shared, job);
        }
        let live = self.shared.live();
        let rows = (live.compaction_batch / COMPACTION_SLICES).max(1);
        match self.machine.compact_step(rows) {
            CompactProgress::Working => {
                self.shared.metrics.compacted_rows.add(rows as u64);
                self.compaction_next = Instant::now() + live.compaction_sleep / COMPACTION_SLICES as u32;
            }
            CompactProgress::Hashing => self.compaction_next = Instant::now() + HASHING_INTERVAL,
            CompactProgress::Idle => self.compacting = false,
            // Another one may have been decided meanwhile: the next step tells.
            CompactProgress::Finished(revision) => {
                info!(revision = revision.0, "finished compaction");
                self.shared.compacted.send_replace(revision.0);
            }
        }
    }

    fn install(&mut self, position: LogPosition, conf_state: ConfState) {
        match snapshots::install(&self.shared, &mut self.machine, position) {
            Ok(()) => {
                let shared = &self.shared;
                shared.note_conf_state(conf_state);
                let reader = self.machine.reader();
                reader.set_quota(shared.live().quota_backend_bytes);
                peers::follow_members(shared, &self.transport, &reader);
                members::note_removal(shared, &reader, &[]);
                shared.records.applied(&reader, shared.is_joining());
                let (revision, compacted) = (reader.revision(), reader.compact_revision());
                shared.watch.applied(TellEvents::default(), revision, Some(compacted));
                shared.revision.store(revision.0, Ordering::Release);
                shared.applied.store(position.index.0, Ordering::Release);
                shared.gate.advance(position.index);
                shared.raft.push(ToRaft::input(Input::SnapshotInstalled { position }));
                self.warming = true;
                // The state that came may be amid a compaction of its own, and a waiter may wait for one that it has done.
                self.compacting = true;
                self.compaction_next = Instant::now();
                shared.compacted.send_replace(compacted.0);
                shared.metrics.snapshots_installed.add(1);
                info!(index = position.index.0, "installed snapshot");
            }
            Err(error) => {
                warn!(index = position.index.0, %error, "snapshot could not be installed");
                (self.shared.config.fatal)(crate::config::Fatal::Store(error.to_string()));
            }
        }
    }
}

/// Computes the hashes of compactions on a thread of its own, for half of the time at most: reading every row is a second for each million,
/// and nobody waits for it but the removal of rows.
fn hash_beside(shared: &Arc<Shared>, job: CompactionHashJob<FjallStore>) {
    let shared = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name("compaction-hash".to_owned()).spawn(move || {
        let mut resumed = Instant::now();
        job.run(&mut || {
            std::thread::sleep(resumed.elapsed().min(HASHING_PAUSE_MAX));
            resumed = Instant::now();
            !shared.stopping.load(Ordering::Acquire)
        });
    });
    if let Err(error) = spawned {
        warn!(%error, "no thread for the hash of a compaction; it is left out");
    }
}

/// What raft learns of a batch.
struct Applied {
    index: LogIndex,
    conf_changes: Vec<(LogIndex, Option<raftpb::ConfChangeV2>)>,
    /// Raft waits for it.
    news: bool,
}

/// Gathers what the state machine says while it applies a batch.
struct Told<'a> {
    watch: &'a WatchDesk,
    events: TellEvents,
    outcomes: Vec<(u64, Result<Outcome, EtcdError>)>,
    conf_changes: Vec<(LogIndex, Option<raftpb::ConfChangeV2>)>,
    leases: Vec<LeaseChange>,
    compacted: bool,
    over_quota: bool,
}

impl Told<'_> {
    fn new(watch: &WatchDesk) -> Told<'_> {
        Told {
            watch,
            events: TellEvents::default(),
            outcomes: Vec::new(),
            conf_changes: Vec::new(),
            leases: Vec::new(),
            compacted: false,
            over_quota: false,
        }
    }

    /// By request; operations of a txn count for themselves too.
    fn count(&self, metrics: &Metrics) {
        for outcome in self.outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()) {
            match outcome {
                Outcome::Put(_) => metrics.puts.add(1),
                Outcome::DeleteRange(_) => metrics.deletes.add(1),
                Outcome::Txn(txn) => {
                    metrics.txns.add(1);
                    for response in txn.responses.iter().filter_map(|operation| operation.response.as_ref()) {
                        match response {
                            Response::ResponsePut(_) => metrics.puts.add(1),
                            Response::ResponseDeleteRange(_) => metrics.deletes.add(1),
                            Response::ResponseRange(_) | Response::ResponseTxn(_) => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

impl Sink for Told<'_> {
    fn outcome(&mut self, _index: LogIndex, request_id: u64, outcome: Result<Outcome, EtcdError>) {
        if matches!(outcome, Ok(Outcome::Compaction(_))) {
            self.compacted = true;
        }
        self.outcomes.push((request_id, outcome));
    }

    fn wants_events(&self) -> bool {
        self.watch.wants_events()
    }

    fn events(&mut self, revision: Revision, events: Vec<Event>) {
        self.events.add(revision, events);
    }

    fn lease(&mut self, change: LeaseChange) {
        self.leases.push(change);
    }

    fn space_exceeded(&mut self, _index: LogIndex) {
        self.over_quota = true;
    }

    fn conf_change(&mut self, index: LogIndex, change: Option<raftpb::ConfChangeV2>) {
        self.conf_changes.push((index, change));
    }
}

fn next_look(now: Instant, compaction: Option<Instant>, warming: bool) -> Instant {
    let idle = now + IDLE_INTERVAL;
    let deadline = compaction.map_or(idle, |next| next.min(idle));
    if warming { deadline.min(now + WARM_INTERVAL) } else { deadline }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_pauses_amid_a_compaction_shows_that_it_lives() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(next_look(now, Some(now + hour), false), now + IDLE_INTERVAL);
        assert_eq!(next_look(now, Some(now + HASHING_INTERVAL), false), now + HASHING_INTERVAL);
        assert_eq!(next_look(now, None, false), now + IDLE_INTERVAL);
        assert_eq!(next_look(now, Some(now + hour), true), now + WARM_INTERVAL);
    }
}
