//! One member: core and state machine, its disk, and the driver between them, which is the simplest one that obeys the core.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use api::error::EtcdError;
use api::mvccpb::Event;
use api::raftpb;
use consensus::io::{Input, Output, Persist, PersistSeq, ReadTicket};
use consensus::{Config, Core, Recovered};
use state_machine::{LeaseChange, Memory, Options, Sink, StateMachine};
use types::{LogIndex, LogPosition, MemberId, Revision};

use super::checks::Floor;
use super::desk::Desk;
use super::disk::Disk;
use super::hub_desk::{HubDesk, Sizes};
use super::lease_checks::LeaseCall;
use super::sentry::Sentry;

pub struct Member {
    pub id: u64,
    /// Counts lives; what belongs to an earlier one is void.
    pub life: u64,
    /// Counts changes of role, term or leader; a new election time-out is drawn at each.
    pub elections: u64,
    pub disk: Disk,
    pub running: Option<Running>,
    /// It waits for others to found a cluster with.
    pub attends: bool,
    /// Its own removal was applied; it never comes back.
    pub removed: bool,
    /// Time units per tick of this member's clock.
    pub tick: super::Time,
}

/// What a crash takes away.
pub struct Running {
    pub core: Core,
    pub machine: StateMachine<Memory>,
    pub inbox: Vec<Input>,
    /// Not written yet, and being written.
    pub writes: VecDeque<Persist>,
    pub writing: Vec<Persist>,
    pub work: VecDeque<Output>,
    pub working: bool,
    /// Requests that a client waits for here, with their keys.
    pub waiting: BTreeMap<u64, Vec<u8>>,
    pub reads: BTreeMap<ReadTicket, Floor>,
    /// Confirmed reads that wait for apply.
    pub confirmed: Vec<(LogIndex, Floor)>,
    pub desk: Desk,
    /// Grants and revocations that a client waits for here.
    pub lease_waiting: BTreeMap<u64, LeaseCall>,
    pub hub: HubDesk,
    /// Where disks are damaged.
    pub sentry: Option<Box<Sentry>>,
}

/// What apply told.
#[derive(Default)]
pub struct Told {
    pub outcomes: Vec<(LogIndex, u64, bool, i64)>,
    pub conf_changes: Vec<(LogIndex, Option<raftpb::ConfChangeV2>)>,
    pub leases: Vec<LeaseChange>,
    pub events: Vec<(Revision, Vec<Event>)>,
}

impl Sink for Told {
    // Whether a hub listens or not: they are the true history.
    fn wants_events(&self) -> bool {
        true
    }

    fn outcome(&mut self, index: LogIndex, request: u64, outcome: Result<state_machine::Outcome, EtcdError>) {
        let revision = match &outcome {
            Ok(state_machine::Outcome::Put(response)) => {
                response.header.as_ref().map_or(0, |header| header.revision)
            }
            _ => 0,
        };
        self.outcomes.push((index, request, outcome.is_ok(), revision));
    }

    fn lease(&mut self, change: LeaseChange) {
        self.leases.push(change);
    }

    fn events(&mut self, revision: Revision, events: Vec<Event>) {
        self.events.push((revision, events));
    }

    fn conf_change(&mut self, index: LogIndex, change: Option<raftpb::ConfChangeV2>) {
        self.conf_changes.push((index, change));
    }
}

pub(super) fn open(state: Memory) -> StateMachine<Memory> {
    StateMachine::open(Arc::new(state), Options::default(), None).expect("the state opens")
}

impl Member {
    pub fn new(id: u64, tick: super::Time) -> Member {
        Member {
            id,
            life: 0,
            elections: 0,
            disk: Disk::default(),
            running: None,
            attends: false,
            removed: false,
            tick,
        }
    }

    /// Starts from what the disk has. A snapshot that was recorded but not installed is installed now.
    pub fn start(&mut self, config: Config, checkpoint_interval_ms: Option<u64>, sizes: &Sizes) {
        assert!(self.running.is_none(), "{} does not run yet", self.id);
        self.life += 1;
        self.attends = false;
        let mut machine = open(self.disk.state.clone());
        if machine.applied().index < self.disk.snapshot.index {
            let state = self.disk.received.get(&self.disk.snapshot).expect("the recorded snapshot is here");
            self.disk.state = state.clone();
            machine = open(state.clone());
            assert_eq!(machine.applied(), self.disk.snapshot, "a snapshot holds the state of its index");
        }
        let recovered = Recovered {
            hard_state: self.disk.hard_state,
            conf_state: machine.conf_state(),
            snapshot: self.disk.snapshot,
            entries: self.disk.entries.clone(),
            applied: machine.applied().index,
        };
        let desk_config = config.clone();
        let hub = HubDesk::new(self.id * 1000 + self.life, sizes, &machine.reader());
        let boot = self.life.max(self.disk.papers.boot.nonce.low_u64());
        let core = Core::new(Config { id: MemberId(self.id), boot, ..config }, recovered)
            .unwrap_or_else(|error| panic!("{} starts again: {error}", self.id));
        self.running = Some(Running {
            core,
            machine,
            inbox: Vec::new(),
            writes: VecDeque::new(),
            writing: Vec::new(),
            work: VecDeque::new(),
            working: false,
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            confirmed: Vec::new(),
            desk: Desk::new(&desk_config, checkpoint_interval_ms),
            lease_waiting: BTreeMap::new(),
            hub,
            sentry: None,
        });
    }

    /// Loses everything that is not on disk. Of the writes on their way, the first `survive` are.
    pub fn crash(&mut self, survive: usize, unsynced_survives: bool) {
        let Some(running) = self.running.take() else { return };
        for persist in running.writing.iter().chain(&running.writes).take(survive) {
            self.disk.write(persist);
        }
        self.disk.crash(unsynced_survives);
    }
}

impl Running {
    /// Gives the core what came in, and takes what it says.
    pub fn run(&mut self, election_ticks: usize) -> Vec<Output> {
        for input in self.inbox.drain(..) {
            self.core.handle(input);
        }
        let mut outputs = Vec::new();
        while let Some(output) = self.core.poll() {
            outputs.push(output);
        }
        self.core.set_randomized_election_timeout(election_ticks);
        if let Some(sentry) = &mut self.sentry {
            sentry.longest = sentry.longest.max(self.core.status().persisted.0);
        }
        outputs
    }

    /// Everything that waits goes into one write.
    pub fn begin_write(&mut self) -> bool {
        if !self.writing.is_empty() || self.writes.is_empty() {
            return false;
        }
        self.writing.extend(self.writes.drain(..));
        true
    }

    pub fn end_write(&mut self, disk: &mut Disk) {
        let mut last = PersistSeq(0);
        for persist in self.writing.drain(..) {
            disk.write(&persist);
            last = persist.seq;
        }
        self.inbox.push(Input::Persisted(last));
    }

    /// Makes the state durable and lets the log forget; answers through where.
    pub fn persist_state(&mut self, disk: &mut Disk) -> LogPosition {
        disk.state = (**self.machine.store()).clone();
        let through = self.machine.applied();
        disk.received.retain(|position, _| position.index > through.index);
        disk.release(through);
        self.inbox.push(Input::Compact { through, conf_state: self.machine.conf_state() });
        through
    }

    pub fn install(&mut self, disk: &mut Disk, position: LogPosition) {
        let state = disk.received.get(&position).expect("the snapshot's bytes are here").clone();
        disk.state = state.clone();
        self.machine = open(state);
        assert_eq!(self.machine.applied(), position, "a snapshot holds the state of its index");
        self.inbox.push(Input::SnapshotInstalled { position });
    }
}
