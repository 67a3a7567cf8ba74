//! The lessor's thread. It sleeps while this member does not lead or nobody has a lease.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ::lessor::{Now, Phase};
use api::etcdserverpb as pb;
use bytes::Bytes;
use consensus::io::{Proposal, ProposalId, Role};
use prost::Message;
use tracing::info;
use types::{EntryKind, LeaseId, Term};

use super::{Decided, LeaseDesk, ask_round};
use crate::shared::{PROPOSALS_QUEUED_MAX, Shared, ToRaft};

/// Longest pause between two looks while leases exist. With a turn of the wheel (128 ms) a lease is revoked within a quarter of a second
/// after its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// And the shortest, for the shortest election timeouts.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// While there is nothing to look at; whatever changes that wakes the thread.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Leases looked at, or loaded, under one hold of the lock: a tenth of a millisecond that a keep-alive may wait.
const LEASES_PER_HOLD: usize = 1024;

/// Revocations in one push to the raft loop. They are written and applied together; a client's put that comes behind them waits for so
/// many and no more.
const REVOKES_PER_PUSH: usize = 512;

/// Pause after apply has refused a revocation.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Leases in one checkpoint entry, as in etcd.
const CHECKPOINTS_PER_ENTRY: usize = 1000;

/// Entries that clear records, in one look: clients wait for them.
const CLEARINGS_PER_LOOK: usize = 8;

/// The lessor's thread.
pub(crate) fn run(shared: Arc<Shared>) {
    let mut worker = Worker::new(shared.clone());
    while !shared.stopping.load(Ordering::Acquire) {
        let pause = worker.look();
        shared.leases.sleep(pause);
    }
}

struct Worker {
    shared: Arc<Shared>,
    look_interval: Duration,
    asked: Option<Instant>,
    swept: Instant,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Worker {
        let look_interval = (shared.config.election_timeout() / 4).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL);
        Worker { shared, look_interval, asked: None, swept: Instant::now() }
    }

    fn desk(&self) -> &LeaseDesk {
        &self.shared.leases
    }

    fn now(&self) -> Now {
        self.desk().now(&self.shared)
    }

    /// One look; answers how long to pause.
    fn look(&mut self) -> Duration {
        self.desk().former.lock().clear();
        if self.swept.elapsed() >= IDLE_INTERVAL {
            self.desk().sweep_waits();
            self.swept = Instant::now();
        }
        let leadership = *self.shared.leadership.borrow();
        if leadership.role != Role::Leader {
            self.asked = None;
            return IDLE_INTERVAL;
        }
        let phase = self.desk().lessor.lock().phase();
        let term = leadership.term;
        if phase != Phase::Primary(term) {
            if self.shared.reader().lease_count() > 0 {
                self.confirm();
            }
            // Its outcomes were told, so the table of leases holds everything that any former leader was told.
            if self.shared.applied_term.load(Ordering::Acquire) >= term.0 {
                self.promote(term);
                return Duration::ZERO;
            }
            return self.look_interval;
        }
        if self.desk().lessor.lock().is_empty() {
            return IDLE_INTERVAL;
        }
        self.confirm();
        if !self.is_held() {
            self.expire(term);
            self.checkpoint(term);
        }
        self.look_interval
    }

    /// Asks for a round when a third of the present confirmation is over, a few times within it.
    fn confirm(&mut self) {
        let now = self.now();
        if now.sole {
            return;
        }
        let election = self.shared.config.election_timeout();
        let until = self.desk().lessor.lock().confirmed_until();
        let left = Duration::from_nanos(until.since(now.at));
        let asked = self.asked.is_some_and(|asked| asked.elapsed() < election / 3);
        if left <= election * 2 / 3 && !asked {
            self.asked = Some(Instant::now());
            ask_round(&self.shared);
        }
    }

    /// Apply refuses revocations while a member is said to be corrupt. Until that is over every lease lives on, and may be renewed.
    fn is_held(&self) -> bool {
        let mut hold = self.desk().hold.lock();
        let Some(until) = *hold else { return false };
        if Instant::now() < until {
            return true;
        }
        let held = self.shared.reader().has_alarm(pb::AlarmType::Corrupt);
        *hold = held.then(|| Instant::now() + REFUSED_PAUSE);
        held
    }

    /// Takes the table, in pieces, while apply goes on telling of changes and everybody else waits for microseconds at most.
    fn promote(&self, term: Term) {
        let started = Instant::now();
        {
            let mut lessor = self.desk().lessor.lock();
            // Under the lock: whoever publishes another leadership demotes the lessor after that.
            let leadership = *self.shared.leadership.borrow();
            if leadership.role != Role::Leader || leadership.term != term {
                return;
            }
            lessor.begin(term, self.now());
        }
        let leases = self.shared.reader().leases();
        for piece in leases.chunks(LEASES_PER_HOLD) {
            let mut lessor = self.desk().lessor.lock();
            if lessor.phase() != Phase::Building(term) {
                return;
            }
            for lease in piece {
                lessor.load(lease.id, lease.granted_ttl, lease.remaining_ttl);
            }
        }
        {
            let mut lessor = self.desk().lessor.lock();
            if lessor.phase() != Phase::Building(term) {
                return;
            }
            lessor.promoted();
        }
        self.desk().news.send_replace(());
        if !leases.is_empty() {
            let took_ms = started.elapsed().as_millis() as u64;
            info!(term = term.0, leases = leases.len(), took_ms, "decides on leases from here on");
        }
    }

    fn expire(&self, term: Term) {
        let mut over = Vec::new();
        loop {
            let more = {
                let mut lessor = self.desk().lessor.lock();
                if lessor.phase() != Phase::Primary(term) {
                    return;
                }
                let now = self.now();
                let more = lessor.turn(now, LEASES_PER_HOLD);
                lessor.expire(now, REVOKES_PER_PUSH, &mut over);
                more
            };
            let full = over.len() == REVOKES_PER_PUSH;
            if !over.is_empty() {
                let revoke = |id: &LeaseId| pb::InternalRaftRequest {
                    lease_revoke: Some(pb::LeaseRevokeRequest { id: id.0 }),
                    ..Default::default()
                };
                let entries = over.drain(..).map(|id| (self.proposal(revoke(&id)), vec![id])).collect();
                if !self.propose(Decided { term, revokes: true, entries }) {
                    return;
                }
            }
            if !more && !full {
                return;
            }
        }
    }

    fn checkpoint(&self, term: Term) {
        let mut entries = Vec::new();
        {
            let mut lessor = self.desk().lessor.lock();
            if lessor.phase() != Phase::Primary(term) || !lessor.has_checkpoints() {
                return;
            }
            let now = self.now();
            // Rests before clearings: what was renewed after its rest was taken is cleared behind it.
            let rests = lessor.take_checkpoints(now, CHECKPOINTS_PER_ENTRY);
            if !rests.is_empty() {
                let ids = rests.iter().map(|(id, _)| *id).collect();
                entries.push((rests, ids));
            }
            for _ in 0..CLEARINGS_PER_LOOK {
                let ids = lessor.take_clearings(CHECKPOINTS_PER_ENTRY);
                if ids.is_empty() {
                    break;
                }
                entries.push((ids.iter().map(|id| (*id, 0)).collect(), ids));
            }
        }
        if entries.is_empty() {
            return;
        }
        let request = |entry: Vec<(LeaseId, i64)>| {
            let checkpoints = entry
                .iter()
                .map(|(id, rest)| pb::LeaseCheckpoint { id: id.0, remaining_ttl: *rest })
                .collect();
            pb::InternalRaftRequest {
                lease_checkpoint: Some(pb::LeaseCheckpointRequest { checkpoints }),
                ..Default::default()
            }
        };
        let entries =
            entries.into_iter().map(|(entry, leases)| (self.proposal(request(entry)), leases)).collect();
        self.propose(Decided { term, revokes: false, entries });
    }

    fn proposal(&self, mut request: pb::InternalRaftRequest) -> Proposal {
        let id = self.shared.waiters.next_id();
        request.header = Some(pb::RequestHeader { id, ..Default::default() });
        Proposal { id: ProposalId(id), kind: EntryKind::Normal, data: Bytes::from(request.encode_to_vec()) }
    }

    /// With the clients' proposals: what gathers while a sync runs is written in one go. False when their queue is full.
    fn propose(&self, decided: Decided) -> bool {
        let item = ToRaft::Decided(Box::new(decided));
        match self.shared.raft.try_push_patient(item, PROPOSALS_QUEUED_MAX) {
            Ok(()) => true,
            Err(refused) => {
                if let crate::mailbox::PushError::Full(ToRaft::Decided(decided)) = refused {
                    self.desk().refused(&decided);
                }
                false
            }
        }
    }
}
