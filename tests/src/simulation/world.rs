//! The loop of events: virtual time, faults, and the wires between members, network and checks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::time::Instant;

use consensus::Config;
use consensus::io::{Input, Output, Proposal, ProposalId, ReadTicket, Role};
use identity::Unique;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use state_machine::Memory;
use types::{EntryKind, LogPosition, MemberId, Term};

use super::checks::{self, Acknowledged, Committed, EqualMembers, EqualStates, Linearizable, OneLeader};
use super::client;
use super::disk::Disk;
use super::due::OwnIdentity;
use super::jury::Heard;
use super::lease_checks::{self, LeaseChecks};
use super::leases::LeaseCalls;
use super::lives::Truth;
use super::member::{Member, Told};
use super::network::{Network, Weather};
use super::sentry::{Origin, Sentry};
use super::watches::{self, Watching};
use super::wires::Parcel;
use super::{Setup, TICK, Time};
use watch::ReadJob;

/// Bad weather lasts this long: about twenty election time-outs.
const CHAOS_END: Time = 200 * TICK;
/// After it everything must come to rest within this: without pre-vote, a member with a short log and a fast clock can frustrate some
/// elections in a row.
pub(super) const REST_END: Time = CHAOS_END + 350 * TICK;
/// A watch far behind is told a few revisions at a time, by a hub that may have many of them: it may be late, but it gets there.
const WATCHES_END: Time = REST_END + 100 * TICK;
/// Clients stop here, so that the end is a standstill.
pub(super) const CLIENTS_END: Time = CHAOS_END + 250 * TICK;
/// Members that may ever exist, those that join later included.
pub(super) const MEMBERS_MAX: u64 = 12;
/// Lines of history shown with a failure.
const HISTORY_SHOWN: usize = 400;

pub(super) enum Event {
    Tick(u64, u64),
    Arrive(Box<Parcel>),
    Written(u64, u64),
    Worked(u64, u64),
    Flush(u64, u64),
    Client,
    Fault,
    PersistState,
    LeaseTick(u64, u64),
    LoadLeases(u64, u64, Term),
    LeaseClient,
    KeepAlive(i64),
    WatchClient(usize),
    HubTurn(u64, u64),
    HubRead(u64, u64, Box<ReadJob>),
    HubTick,
    CutOff(u64),
    /// A member shall go; asked again so often.
    Remove(u64, u32),
    SendSnapshot(u64, u64, u64),
    Start(u64),
    /// It has asked since then, and asks again.
    StartAgain(u64, Time),
    Look(u64, u64),
    Voice(u64, u64, Box<(Heard, Option<Unique>)>),
    Damage,
    Restore(u64),
    SwapBack(u64, u64),
    Heal,
}

/// What happened, in numbers, and a digest of the whole history: equal for equal seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub digest: u64,
    pub acknowledged: usize,
    pub reads: u64,
    pub terms: usize,
    pub crashes: u64,
    pub snapshots: u64,
    pub changes: u64,
    /// Members that led when they were asked to go, and are gone.
    pub leaders_removed: u64,
    /// Applied removals that left one voter.
    pub left_alone: u64,
    pub states_compared: u64,
    pub renewals: u64,
    pub expiries: u64,
    pub checkpoints: u64,
    pub watches: u64,
    pub watch_events: u64,
    pub bookmarks: u64,
    /// Watches that were cancelled by compaction.
    pub compacted_watches: u64,
    /// Directories wiped or rolled back, run twice, swapped, and found again.
    pub damaged: u64,
    pub twins: u64,
    pub swaps: u64,
    pub restored: u64,
    /// Callers turned away, members silenced, starts ended.
    pub refused: u64,
    /// Messages that a founder did not take yet.
    pub held_off: u64,
    pub quarantines: u64,
    pub expelled: u64,
    pub notes: u64,
    /// Members forced into lives of their own, majorities wiped, and second lives that had a leader.
    pub forced: u64,
    pub wiped: u64,
    pub led: u64,
    /// The window was opened; and something went wrong after that.
    pub window_opened: u64,
    pub window_hurt: u64,
}

pub struct World {
    pub(super) seed: u64,
    pub(super) rng: StdRng,
    pub(super) now: Time,
    pub(super) events: BinaryHeap<Reverse<(Time, u64)>>,
    pub(super) payloads: BTreeMap<u64, Event>,
    pub(super) next_event: u64,
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) network: Network,
    pub(super) config: Config,
    pub(super) calm: bool,
    pub(super) acknowledged_before: usize,
    pub(super) next_request: u64,
    /// Snapshots on the network, by sender, receiver and position.
    pub(super) snapshots: BTreeMap<(u64, u64, LogPosition), Memory>,
    /// Disks that are slow for a while.
    pub(super) slow_disk: Option<u64>,
    pub(super) slow_apply: Option<u64>,
    pub(super) leaders: OneLeader,
    pub(super) committed: Committed,
    pub(super) states: EqualStates,
    pub(super) memberships: EqualMembers,
    /// Asked to go while they led.
    pub(super) leaders_asked: BTreeSet<u64>,
    pub(super) linearizable: Linearizable,
    pub(super) acknowledged: Acknowledged,
    /// When the weather became fine.
    pub(super) calm_since: Time,
    pub(super) leases: LeaseChecks,
    pub(super) lease_calls: LeaseCalls,
    /// How long leases go without a checkpoint; none for some seeds, as with the gate off.
    pub(super) checkpoint_interval_ms: Option<u64>,
    pub(super) watching: Watching,
    pub(super) slow_hub: Option<u64>,
    pub(super) outcome: Outcome,
    pub(super) history: Vec<String>,
    pub(super) trace: bool,
    pub(super) setup: Setup,
    pub(super) epoch: Instant,
    /// How many began.
    pub(super) first_members: u64,
    pub(super) next_unique: u128,
    /// Older copies of directories; good ones that a bad one has replaced.
    pub(super) copies: Vec<Disk>,
    pub(super) shelves: BTreeMap<u64, Disk>,
    pub(super) asked_to_go: BTreeSet<u64>,
    pub(super) asked_to_vote: BTreeSet<u64>,
    /// What holds in every life of the cluster but the first, which clients use.
    pub(super) truths: BTreeMap<u32, Truth>,
    pub(super) last_lineage: u32,
    /// When somebody had its directory of the first life again.
    pub(super) came_back: BTreeMap<u64, Time>,
    /// A majority of the first life was wiped: it may not go on.
    pub(super) is_doomed: bool,
    pub(super) window_is_open: bool,
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        // With fewer than three no directory may be lost.
        let sizes = if setup.damage { [3, 3, 3, 3, 4, 5] } else { [1, 2, 3, 3, 3, 5] };
        let size = sizes[rng.random_range(0..6)];
        let mut config = Config::new(MemberId(0), 0);
        config.log_tail_entries_keep = rng.random_range(0..30);
        config.log_tail_bytes_max = [2_000, 20_000, 1 << 30][rng.random_range(0..3)];
        config.log_feed_bytes_max = [config.log_tail_bytes_max, 1 << 30][rng.random_range(0..2)];
        config.append_bytes_max = [200, 1000, 1 << 20][rng.random_range(0..3)];
        config.uncommitted_bytes_max =
            [3_000, 1 << 30][rng.random_range(0..2)].max(config.append_bytes_max + 1);
        config.inflight_messages_max = [1, 4, 512][rng.random_range(0..3)];
        config.pre_vote = rng.random_bool(0.9);
        let watching = Watching::draw(&mut rng);
        let mut world = World {
            seed,
            network: Network { weather: Weather::draw(&mut rng), cut: Default::default() },
            rng,
            now: 0,
            events: BinaryHeap::new(),
            payloads: BTreeMap::new(),
            next_event: 0,
            members: BTreeMap::new(),
            config,
            calm: false,
            acknowledged_before: 0,
            next_request: 0,
            snapshots: BTreeMap::new(),
            slow_disk: None,
            slow_apply: None,
            leaders: OneLeader::default(),
            committed: Committed::default(),
            states: EqualStates::default(),
            memberships: EqualMembers::default(),
            leaders_asked: BTreeSet::new(),
            linearizable: Linearizable::default(),
            acknowledged: Acknowledged::default(),
            calm_since: 0,
            leases: LeaseChecks::default(),
            lease_calls: LeaseCalls::default(),
            checkpoint_interval_ms: None,
            watching,
            slow_hub: None,
            outcome: Outcome::default(),
            history: Vec::new(),
            trace: std::env::var_os("SIM_TRACE").is_some(),
            setup,
            epoch: Instant::now(),
            first_members: size,
            next_unique: 1 << 32,
            copies: Vec::new(),
            shelves: BTreeMap::new(),
            asked_to_go: BTreeSet::new(),
            asked_to_vote: BTreeSet::new(),
            truths: BTreeMap::new(),
            last_lineage: 0,
            came_back: BTreeMap::new(),
            is_doomed: false,
            window_is_open: false,
        };
        world.checkpoint_interval_ms = [None, Some(500), Some(1500)][world.rng.random_range(0..3)];
        let (hard_state, log) = client::first_log(size);
        for id in 1..=size {
            let mut member = world.fresh(id);
            member.disk.hard_state = hard_state;
            member.disk.entries = log.clone();
            if setup.damage {
                let first = (1..=size).map(MemberId).collect();
                member.disk.papers = world.fresh_papers(id, Origin::Formed, first);
            }
            world.members.insert(id, member);
            world.at(0, Event::Start(id));
        }
        if setup.damage {
            let dir = |(id, member): (&u64, &Member)| (MemberId(*id), member.disk.papers.dir);
            let attendees: BTreeMap<MemberId, Unique> = world.members.iter().map(dir).collect();
            for member in world.members.values_mut() {
                member.disk.papers.attendees = attendees.clone();
            }
            world.at(10 * TICK, Event::Damage);
        }
        world.at(TICK, Event::Client);
        world.at(2 * TICK, Event::LeaseClient);
        for client in 0..world.watching.clients.len() {
            world.at(watches::first_look(client), Event::WatchClient(client));
        }
        world.at(5 * TICK, Event::HubTick);
        world.at(10 * TICK, Event::Fault);
        world.at(15 * TICK, Event::PersistState);
        world.at(CHAOS_END, Event::Heal);
        world
    }

    pub(super) fn fresh(&mut self, id: u64) -> Member {
        let skew = self.rng.random_range(0..TICK / 10);
        Member::new(id, TICK - TICK / 20 + skew)
    }

    pub(super) fn at(&mut self, delay: Time, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + delay, self.next_event)));
        self.payloads.insert(self.next_event, event);
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        let mut text = format!("{:>6} ", self.now);
        let _ = write!(text, "{}", line());
        for byte in text.bytes() {
            self.outcome.digest = (self.outcome.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.trace {
            eprintln!("{text}");
        } else {
            self.history.push(text);
            if self.history.len() >= 2 * HISTORY_SHOWN {
                self.history.drain(..HISTORY_SHOWN);
            }
        }
    }

    /// Runs to the end, or panics with the last of the history.
    pub fn run(mut self) -> Outcome {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run_to_end()));
        self.outcome.window_opened = u64::from(self.window_is_open);
        if ran.is_err() && self.window_is_open {
            self.outcome.window_hurt = 1;
            return self.outcome;
        }
        if let Err(cause) = ran {
            let from = self.history.len().saturating_sub(HISTORY_SHOWN);
            eprintln!("{}", self.history[from..].join("\n"));
            eprintln!(
                "seed {0} failed at {1}. Again, with its whole history:\n\
                 SIM_TRACE=1 {2}SIM_SEED={0} cargo test -p cairn-tests --test simulation one_seed -- --nocapture",
                self.seed,
                self.now,
                self.setup.variables()
            );
            std::panic::resume_unwind(cause);
        }
        self.outcome
    }

    fn run_to_end(&mut self) {
        while let Some(Reverse((time, number))) = self.events.pop() {
            if time > REST_END && (time > WATCHES_END || !self.watches_are_behind()) {
                break;
            }
            self.now = time;
            let event = self.payloads.remove(&number).expect("every event has its payload");
            self.event(event);
        }
        self.end();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Tick(id, life) => {
                let Some(tick) = self.alive(id, life).map(|member| member.tick) else { return };
                self.input(id, Input::Tick);
                self.at(tick, Event::Tick(id, life));
            }
            Event::Arrive(message) => self.arrive(*message),
            Event::Written(id, life) => {
                if let Some(member) = self.alive(id, life) {
                    let Member { running: Some(running), disk, .. } = member else { return };
                    running.end_write(disk);
                    self.flush(id);
                    self.begin_write(id, life);
                }
            }
            Event::Worked(id, life) => self.worked(id, life),
            Event::Flush(id, life) => {
                if self.alive(id, life).is_some() {
                    self.flush(id);
                }
            }
            Event::Client => {
                self.client();
                let pause = self.rng.random_range(1..TICK);
                if self.now + pause < CLIENTS_END {
                    self.at(pause, Event::Client);
                }
            }
            Event::Fault => {
                if !self.calm {
                    self.fault();
                    let pause = self.rng.random_range(TICK..20 * TICK);
                    self.at(pause, Event::Fault);
                }
            }
            Event::PersistState => {
                if let Some(id) = self.pick_running() {
                    let member = self.members.get_mut(&id).expect("picked");
                    let Member { running: Some(running), disk, .. } = member else { return };
                    let through = running.persist_state(disk);
                    self.note(|| format!("{id} made its state durable at {through}"));
                    self.flush(id);
                }
                self.majority_holds();
                let pause = self.rng.random_range(TICK..12 * TICK);
                self.at(pause, Event::PersistState);
            }
            Event::LeaseTick(id, ..)
            | Event::LoadLeases(id, ..)
            | Event::HubTurn(id, _)
            | Event::HubRead(id, ..)
                if self.lineage(id) != 0 => {}
            Event::LeaseTick(id, life) => self.lease_tick(id, life),
            Event::LoadLeases(id, life, term) => self.load_leases(id, life, term),
            Event::LeaseClient => self.lease_client(),
            Event::KeepAlive(lease) => self.keep_alive(lease),
            Event::WatchClient(at) => self.watch_client(at),
            Event::HubTurn(id, life) => self.hub_turn(id, life),
            Event::HubRead(id, life, job) => self.hub_read(id, life, &job),
            Event::HubTick => self.hub_tick(),
            Event::CutOff(id) => self.cut_off(id),
            Event::Remove(id, tries) => self.ask_to_remove(id, tries),
            Event::SendSnapshot(id, life, to) => self.send_snapshot(id, life, to),
            Event::Start(id) if self.setup.damage => self.try_start(id, self.now),
            Event::Start(id) => self.start(id, None),
            Event::StartAgain(id, since) => self.try_start(id, since),
            Event::Look(id, life) => self.look(id, life),
            Event::Voice(id, life, said) => {
                let (heard, uuid) = *said;
                if self.alive(id, life).is_some() {
                    self.hear(id, heard, uuid);
                }
            }
            Event::Damage => self.damage(),
            Event::Restore(id) => self.restore(id),
            Event::SwapBack(one, other) => self.swap_back(one, other),
            Event::Heal => self.heal(),
        }
    }

    pub(super) fn alive(&mut self, id: u64, life: u64) -> Option<&mut Member> {
        self.members.get_mut(&id).filter(|member| member.life == life && member.running.is_some())
    }

    pub(super) fn pick_running(&mut self) -> Option<u64> {
        // Who is not sure of its cluster serves nobody.
        let serves = |member: &Member| {
            let sentry = member.running.as_ref().map(|running| running.sentry.as_ref());
            sentry.is_some_and(|sentry| sentry.is_none_or(|sentry| sentry.is_confirmed && !sentry.is_silent))
        };
        let serving = self.members.iter().filter(|(_, member)| member.disk.lineage == 0 && serves(member));
        let ids: Vec<u64> = serving.map(|(place, _)| *place).collect();
        (!ids.is_empty()).then(|| ids[self.rng.random_range(0..ids.len())])
    }

    pub(super) fn start(&mut self, id: u64, own: Option<OwnIdentity>) {
        let member = self.members.get_mut(&id).expect("a member that starts exists");
        if member.running.is_some() || member.removed {
            return;
        }
        member.start(self.config.clone(), self.checkpoint_interval_ms, &self.watching.sizes);
        let (tick, life) = (member.tick, member.life);
        if let Some((own, running)) = own.zip(member.running.as_mut()) {
            running.sentry = Some(Box::new(Sentry::new(own)));
            self.at(1, Event::Look(id, life));
        }
        self.note(|| format!("{id} starts"));
        self.at(tick, Event::Tick(id, life));
        self.at(tick, Event::LeaseTick(id, life));
        self.flush(id);
    }

    /// Mostly at once; sometimes with what comes next, as a busy driver would.
    pub(super) fn input(&mut self, id: u64, input: Input) {
        let late = self.rng.random_bool(0.2);
        let pause = self.rng.random_range(1..20);
        let Some(member) = self.members.get_mut(&id) else { return };
        let life = member.life;
        let Some(running) = &mut member.running else { return };
        running.inbox.push(input);
        if late {
            self.at(pause, Event::Flush(id, life));
        } else {
            self.flush(id);
        }
    }

    pub(super) fn flush(&mut self, id: u64) {
        let election = self.config.election_ticks as u64;
        let Some(member) = self.members.get_mut(&id) else { return };
        // A function of seed, member and what it went through, so that it does not matter how often raft draws its own.
        let mixed = [id, member.life, member.elections].iter().fold(self.seed, |mixed, part| {
            (mixed ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .wrapping_mul(0xff51_afd7_ed55_8ccd)
                .rotate_left(31)
        });
        let timeout = (election + (mixed >> 33) % election) as usize;
        let Some(running) = &mut member.running else { return };
        for output in running.run(timeout) {
            self.obey(id, output);
        }
    }

    fn obey(&mut self, id: u64, output: Output) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let (life, now) = (member.life, self.now);
        let Some(running) = &mut member.running else { return };
        match output {
            Output::Send(_) if running.sentry.as_ref().is_some_and(|sentry| sentry.is_silent) => {}
            Output::Send(messages) => {
                for message in messages {
                    self.send(id, message);
                }
            }
            Output::Persist(persist) => {
                running.writes.push_back(persist);
                self.begin_write(id, life);
            }
            Output::Apply(_) | Output::InstallSnapshot { .. } => {
                running.work.push_back(output);
                self.begin_work(id, life);
            }
            Output::ReadReady { tickets, index } => {
                if let Some(sentry) = &mut running.sentry {
                    sentry.read_is_answered();
                }
                for ticket in tickets {
                    if running.desk.read_ready(ticket, index, now) {
                        continue;
                    }
                    let floor = running.reads.remove(&ticket).expect("a read is answered once");
                    self.linearizable.confirmed(id, &floor, index);
                    running.confirmed.push((index, floor));
                }
                self.finish_reads(id);
                self.answer_keep_alives(id);
            }
            Output::ReadRetry { tickets, reason } => {
                for ticket in &tickets {
                    if !running.desk.read_failed(*ticket) {
                        running.reads.remove(ticket).expect("a read is answered once");
                    }
                }
                self.note(|| format!("{id} gives back {} reads: {reason:?}", tickets.len()));
            }
            Output::ProposalDropped { ids, reason } => {
                for ProposalId(request) in &ids {
                    running.waiting.remove(request);
                    running.lease_waiting.remove(request);
                    running.desk.dropped(*request);
                    if let Some(sentry) = &mut running.sentry {
                        sentry.dropped(*request);
                    }
                    self.acknowledged.dropped(*request);
                }
                self.note(|| format!("{id} drops {ids:?}: {reason:?}"));
            }
            Output::Leadership { leader, term, role } => {
                if role == Role::Leader {
                    match member.disk.lineage {
                        0 => self.leaders.leads(id, term),
                        lineage => self.truths.entry(lineage).or_default().leaders.leads(id, term),
                    }
                }
                running.desk.leadership(term, role, now);
                if let Some(sentry) = &mut running.sentry {
                    sentry.leader_is(leader, member.id);
                }
                member.elections += 1;
                self.note(|| format!("{id} is {role:?} in term {term}, leader {leader}"));
            }
            Output::SendSnapshot { to } => {
                let pause = self.rng.random_range(1..5 * TICK);
                self.at(pause, Event::SendSnapshot(id, life, to.0));
            }
            Output::SnapshotIgnored { position } => {
                member.disk.received.remove(&position);
            }
            Output::Report(report) => {
                let is_history = consensus::HISTORY_KINDS.contains(&report.kind);
                match &mut running.sentry {
                    Some(sentry) if is_history => sentry.doubt(),
                    _ => checks::report_is_expected(id, &report),
                }
                self.note(|| format!("{id} reports {report:?}"));
            }
        }
    }

    fn begin_write(&mut self, id: u64, life: u64) {
        let slow = self.slow_disk == Some(id);
        let delay = if slow { self.rng.random_range(1..8 * TICK) } else { self.rng.random_range(1..15) };
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        if running.begin_write() {
            self.at(delay, Event::Written(id, life));
        }
    }

    fn begin_work(&mut self, id: u64, life: u64) {
        let slow = self.slow_apply == Some(id);
        let delay = if slow { self.rng.random_range(1..8 * TICK) } else { self.rng.random_range(1..10) };
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        if !running.working && !running.work.is_empty() {
            running.working = true;
            self.at(delay, Event::Worked(id, life));
        }
    }

    fn worked(&mut self, id: u64, life: u64) {
        let Some(member) = self.alive(id, life) else { return };
        let Member { running: Some(running), disk, .. } = member else { return };
        running.working = false;
        let mut told = Told::default();
        let lineage = disk.lineage;
        match running.work.pop_front() {
            Some(Output::Apply(entries)) if lineage != 0 => {
                running.machine.apply(&entries, &mut told);
                let (position, reader) = (running.machine.applied(), running.machine.reader());
                let truth = self.truths.entry(lineage).or_default();
                truth.applied(id, &entries, position, &reader, !told.conf_changes.is_empty());
                self.note(|| format!("{id} applied through {position} of life {lineage}"));
            }
            Some(Output::Apply(entries)) => {
                let applied = running.machine.applied().index;
                assert_eq!(entries[0].index, applied.next(), "{id} is given entries without a gap");
                running.machine.apply(&entries, &mut told);
                let position = running.machine.applied();
                let reader = running.machine.reader();
                let hash = EqualStates::looks_at(position.index).then(|| checks::content(&reader));
                let first = self.committed.last();
                for entry in &entries {
                    let request = client::request_of(entry);
                    if entry.index > first {
                        self.leases.commits(entry, request.as_ref(), self.now);
                    }
                    let request = request.and_then(|request| request.header).map(|header| header.id);
                    self.committed.applies(id, entry, request);
                }
                if let Some(hash) = hash {
                    self.states.sees(id, position, hash);
                }
                lease_checks::keys_go_with_their_lease(id, &reader, &told.leases);
                if !told.conf_changes.is_empty() {
                    let alone = self.memberships.sees(id, position.index, reader.membership());
                    self.outcome.left_alone += u64::from(alone);
                }
                self.note(|| format!("{id} applied through {position}"));
            }
            Some(Output::InstallSnapshot { position, .. }) => {
                running.install(disk, position);
                self.outcome.snapshots += 1;
                self.note(|| format!("{id} installed the snapshot at {position}"));
                self.heal_directory(id);
            }
            _ => return,
        }
        self.tell_sentry(id, &told);
        self.tell(id, told);
        self.finish_reads(id);
        self.remove_compacted(id);
        self.flush(id);
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.leave_if_removed(id);
        }
        // The disk and the worker go on with what waits.
        self.begin_work(id, life);
        self.begin_write(id, life);
    }

    /// Compaction takes rows away a few at a time, at each member at its own pace.
    fn remove_compacted(&mut self, id: u64) {
        let rows_max = self.rng.random_range(0..12);
        let running = self.members.get_mut(&id).and_then(|member| member.running.as_mut());
        if let Some(running) = running.filter(|_| rows_max > 0) {
            running.machine.compact_step(rows_max);
        }
    }

    /// Tells the clients, and the core what became of conf changes.
    fn tell(&mut self, id: u64, mut told: Told) {
        // Nobody uses another life.
        if self.lineage(id) == 0 {
            self.tell_desk(id, &told);
            self.tell_hub(id, &mut told);
        }
        let Some(running) = self.members.get_mut(&id).and_then(|member| member.running.as_mut()) else {
            return;
        };
        for (index, request, ok, revision) in told.outcomes {
            if let Some(call) = running.lease_waiting.remove(&request) {
                self.leases.answered(call, ok, self.now);
            }
            if let Some(key) = running.waiting.remove(&request).filter(|_| ok) {
                self.acknowledged.acknowledged(request, index);
                self.linearizable.acknowledged(index, &key, revision);
            }
        }
        self.outcome.changes +=
            told.conf_changes.iter().filter(|(_, change)| change.is_some()).count() as u64;
        let index = running.machine.applied().index;
        if !told.conf_changes.is_empty() || index.0 > running.core.status().applied.0 {
            running.inbox.push(Input::Applied { index, conf_changes: told.conf_changes });
        }
    }

    /// Reads whose index is applied look at the state.
    fn finish_reads(&mut self, id: u64) {
        let Some(running) = self.members.get_mut(&id).and_then(|member| member.running.as_mut()) else {
            return;
        };
        let applied = running.machine.applied().index;
        let reader = running.machine.reader();
        for (index, floor) in std::mem::take(&mut running.confirmed) {
            if index > applied {
                running.confirmed.push((index, floor));
                continue;
            }
            let request =
                api::etcdserverpb::RangeRequest { key: floor.key.clone().into(), ..Default::default() };
            let response = reader.range(&request).expect("a plain read is answered");
            // A key that is gone went with its lease, at some revision up to the one that was read.
            let read_at = response.header.as_ref().map_or(0, |header| header.revision);
            let revision = response.kvs.first().map_or(read_at, |kv| kv.mod_revision);
            self.linearizable.ends(id, &floor, revision);
        }
    }

    fn client(&mut self) {
        let Some(id) = self.pick_running() else { return };
        let choice = self.rng.random_range(0..100);
        match choice {
            0..55 => self.propose(id),
            55..92 => {
                let key = client::draw_key(&mut self.rng);
                self.next_request += 1;
                let ticket = ReadTicket(self.next_request);
                let floor = self.linearizable.begins(&key);
                let running =
                    self.members.get_mut(&id).and_then(|member| member.running.as_mut()).expect("picked");
                running.reads.insert(ticket, floor);
                self.input(id, Input::Read(ticket));
            }
            92..97 if !self.calm => self.change_members(id),
            97 => {
                if let Some(to) = self.pick_running() {
                    self.input(id, Input::TransferLeader(MemberId(to)));
                }
            }
            98 if !self.calm => {
                self.input(id, Input::Campaign);
            }
            99 => self.compact(id),
            _ => {}
        }
    }

    fn propose(&mut self, id: u64) {
        let count = [1, 1, 1, 3, 10][self.rng.random_range(0..5)];
        let mut proposals = Vec::new();
        for _ in 0..count {
            let key = client::draw_key(&mut self.rng);
            self.next_request += 1;
            let request = self.next_request;
            let lease = self.draw_lease();
            let data = client::put(request, &key, lease);
            let running =
                self.members.get_mut(&id).and_then(|member| member.running.as_mut()).expect("picked");
            running.waiting.insert(request, key);
            proposals.push(Proposal { id: ProposalId(request), kind: EntryKind::Normal, data });
        }
        self.input(id, Input::Propose(proposals));
    }

    /// Progress after healing: those who belong to the cluster have all of the log, equal, and it went on.
    fn end(&mut self) {
        self.outcome.led = self.truths.values().filter(|truth| truth.leaders.count() > 0).count() as u64;
        if self.is_doomed {
            self.majority_holds();
            return self.end_damage();
        }
        let last = self.committed.last();
        let reader = self
            .members
            .values()
            .filter(|member| !member.disk.is_damaged)
            .filter_map(|member| member.running.as_ref())
            .map(|running| running.machine.reader())
            .max_by_key(|reader| reader.applied())
            .expect("somebody runs");
        let conf_state = reader.conf_state();
        for id in conf_state.voters.iter().chain(&conf_state.learners) {
            let member = &self.members[&id.0];
            if member.disk.is_damaged {
                continue;
            }
            let running = member.running.as_ref().unwrap_or_else(|| panic!("{id} runs after healing"));
            let status = running.core.status();
            assert_eq!(
                running.core.conf_state(),
                conf_state,
                "raft's configuration at {id} is that of the state"
            );
            let is_silent = running.sentry.as_ref().is_some_and(|sentry| sentry.is_silent);
            assert!(
                !status.leader.is_none(),
                "{id} knows a leader: {status:?}, silent {is_silent}, {conf_state:?}"
            );
            assert_eq!(running.machine.applied().index, last, "{id} has everything: {status:?}");
            assert!(
                running.writes.is_empty() && running.reads.is_empty(),
                "nothing waits at {id} when all is quiet: {} writes, {} reads",
                running.writes.len(),
                running.reads.len()
            );
        }
        assert!(
            self.acknowledged.count() > self.acknowledged_before,
            "writes are acknowledged again in fine weather"
        );
        self.acknowledged.ends(&self.committed);
        self.majority_holds();
        self.end_damage();
        self.end_watches(reader.revision());
        self.outcome.leaders_removed =
            self.leaders_asked.iter().filter(|id| reader.is_removed(MemberId(**id))).count() as u64;
        self.outcome.acknowledged = self.acknowledged.count();
        self.outcome.reads = self.linearizable.reads;
        self.outcome.terms = self.leaders.count();
        self.outcome.states_compared = self.states.compared;
        self.outcome.renewals = self.leases.renewals;
        self.outcome.expiries = self.leases.expiries;
        self.outcome.checkpoints = self.leases.checkpoints;
    }
}
