//! Watches in the simulated cluster: clients, fast and slow, the events that make members' hubs go, and the true history of events,
//! which is what members applied.

use std::collections::BTreeMap;
use std::time::Duration;

use api::mvccpb::Event as KvEvent;
use bytes::Bytes;
use consensus::io::{Input, Proposal, ProposalId};
use rand::Rng;
use rand::rngs::StdRng;
use types::{EntryKind, Revision};
use watch::{QueueLimits, ReadJob};

use super::client;
use super::hub_desk::{Asked, Batch, Sizes, read};
use super::member::Told;
use super::watch_client::WatchClient;
use super::world::{CLIENTS_END, Event, World};
use super::{TICK, Time};
use crate::checker::{self, Evidence, History, history};

const CLIENTS: usize = 4;
/// What is compacted lies at most so many revisions back.
const COMPACTED_BACK_MAX: i64 = 60;

pub struct Watching {
    pub sizes: Sizes,
    pub clients: Vec<WatchClient>,
    history: History,
    /// As members applied them, in the order of each revision.
    applied: BTreeMap<i64, Vec<KvEvent>>,
    next_stream: u64,
}

impl Watching {
    pub fn draw(rng: &mut StdRng) -> Watching {
        let queue = [
            QueueLimits::default(),
            QueueLimits { items: 16, bytes: 6000, all_bytes: 1 << 20 },
            QueueLimits { items: 40, bytes: 3000, all_bytes: 6000 },
        ][rng.random_range(0..3)];
        let sizes = Sizes {
            queue,
            ring_revisions: [1, 5, 1 << 16][rng.random_range(0..3)],
            fragment_bytes: [150, 2 << 20][rng.random_range(0..2)],
            progress_interval: rng.random_range(3 * TICK..50 * TICK),
        };
        let mut first = 0;
        let clients = (0..CLIENTS)
            .map(|name| {
                let client = WatchClient::draw(rng, name, first);
                first += client.following.len() as u32;
                client
            })
            .collect();
        Watching { sizes, clients, history: History::default(), applied: BTreeMap::new(), next_stream: 0 }
    }

    /// What a member applied is what all others applied, and part of the true history.
    fn learn(&mut self, member: u64, revision: Revision, events: &[KvEvent]) {
        if let Some(known) = self.applied.get(&revision.0) {
            assert_eq!(known, events, "{member} has at revision {revision} the events of all others");
            return;
        }
        let mut state = self.history.state().clone();
        let mut written = Vec::new();
        for event in events {
            let kv = event.kv.clone().expect("an event has a key");
            if history::is_put(event) {
                written.push((kv.key.clone(), Some(kv.value.clone())));
                state.insert(kv.key.clone(), kv);
            } else {
                written.push((kv.key.clone(), None));
                state.remove(&kv.key);
            }
        }
        self.history.learn(revision.0, state).unwrap_or_else(|violation| panic!("{violation}"));
        let broken = self.history.acknowledged(revision.0, &written);
        checker::assert_kept("what a member applied", &broken);
        self.applied.insert(revision.0, events.to_vec());
    }
}

impl World {
    pub(super) fn watch_client(&mut self, at: usize) {
        let now = self.now;
        let client = &self.watching.clients[at];
        let ending = now >= CLIENTS_END;
        let pause = self.rng.random_range(1..=if ending { TICK / 4 } else { client.pause_max });
        // In the end the slow ones hurry, so that all can be told everything.
        let pause = if ending { pause } else { pause.min(CLIENTS_END - now) };
        self.at(pause, Event::WatchClient(at));
        let place = self.watching.clients[at].session.as_ref().map(|session| (session.member, session.life));
        let Some((member, life)) = place else { return self.connect_watches(at) };
        let is_over = self.alive(member, life).is_none();
        if ending && !self.belongs(member) {
            // Nobody tells it anything any more; a client that requires a leader would leave.
            self.watching.clients[at].end("the member was removed", now);
            return;
        }
        let taken_max = if ending { usize::MAX } else { self.watching.clients[at].taken_max };
        let client = &mut self.watching.clients[at];
        if is_over {
            // Some of what the member had sent arrives yet.
            let rest = [0, 1, usize::MAX][self.rng.random_range(0..3)];
            client.read(rest, now);
            client.end("the member crashed", now);
            return;
        }
        let taken = client.read(taken_max, now);
        match self.rng.random_range(0..100) {
            0..10 => client.ask_progress(now),
            // In the end they only listen.
            _ if ending => {}
            10..13 => client.cancel_one(&mut self.rng, now),
            13..16 => client.end("the client left", now),
            _ => {}
        }
        if taken > 0 {
            let next: Vec<i64> =
                self.watching.clients[at].following.iter().map(|following| following.starts()).collect();
            self.note(|| {
                format!("watch client {at} took {taken} responses from {member}, waits for {next:?}")
            });
        }
        self.hub_soon(member);
    }

    fn connect_watches(&mut self, at: usize) {
        let Some(id) = self.pick_running() else { return };
        if self.now >= CLIENTS_END && !self.belongs(id) {
            return;
        }
        self.watching.next_stream += 1;
        let (stream, sizes, now) = (self.watching.next_stream, self.watching.sizes, self.now);
        let Some(member) = self.members.get(&id) else { return };
        let Some(running) = &member.running else { return };
        self.watching.clients[at].connect(id, member.life, stream, &running.hub, &sizes, now);
        self.note(|| format!("watch client {at} connects to {id}"));
        self.hub_soon(id);
    }

    /// Whether the cluster still counts this member in.
    fn belongs(&self, id: u64) -> bool {
        let ours = self.members.values().filter(|member| member.disk.lineage == 0);
        let readers = ours.filter_map(|member| member.running.as_ref());
        let newest = readers.map(|running| running.machine.reader()).max_by_key(|reader| reader.applied());
        newest.is_some_and(|reader| {
            let conf_state = reader.conf_state();
            conf_state.voters.iter().chain(&conf_state.learners).any(|member| member.0 == id)
        })
    }

    /// The hub's thread wakes up, at its own pace.
    pub(super) fn hub_soon(&mut self, id: u64) {
        let slow = self.slow_hub == Some(id);
        let pause = self.rng.random_range(1..if slow { 10 * TICK } else { 10 });
        let Some(member) = self.members.get_mut(&id) else { return };
        let life = member.life;
        let Some(running) = &mut member.running else { return };
        if !std::mem::replace(&mut running.hub.turn_due, true) {
            self.at(pause, Event::HubTurn(id, life));
        }
    }

    pub(super) fn hub_turn(&mut self, id: u64, life: u64) {
        let (now, budget) = (self.now, [1, 5, 256][self.rng.random_range(0..3)]);
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        running.hub.turn_due = false;
        let reader = running.machine.reader();
        let (job, has_work) = running.hub.turn(&reader, budget, now);
        if let Some(job) = job {
            let pause = self.rng.random_range(1..TICK / 4);
            self.at(pause, Event::HubRead(id, life, Box::new(job)));
        }
        if has_work {
            self.hub_soon(id);
        }
    }

    pub(super) fn hub_read(&mut self, id: u64, life: u64, job: &ReadJob) {
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        let result = read(&running.machine.reader(), job);
        running.hub.doorstep.ask(Asked::Read { job: job.id, result });
        self.hub_soon(id);
    }

    /// Hubs look at their timers now and then.
    pub(super) fn hub_tick(&mut self) {
        self.at(5 * TICK, Event::HubTick);
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.hub_soon(id);
        }
    }

    /// Apply told of events, or a snapshot was installed and there are none.
    pub(super) fn tell_hub(&mut self, id: u64, told: &mut Told) {
        for (revision, events) in &told.events {
            self.watching.learn(id, *revision, events);
        }
        let too_far_behind = self.rng.random_bool(0.03);
        let Some(running) = self.members.get_mut(&id).and_then(|member| member.running.as_mut()) else {
            return;
        };
        let reader = running.machine.reader();
        let mut batch =
            Batch { revisions: Vec::new(), newest: reader.revision(), compacted: reader.compact_revision() };
        // A hub that is too far behind is told the newest revision only.
        if running.hub.wants_events && !too_far_behind {
            batch.revisions = std::mem::take(&mut told.events);
        }
        running.hub.tell(batch);
        self.hub_soon(id);
    }

    pub(super) fn compact(&mut self, id: u64) {
        let Some(running) = self.members.get(&id).and_then(|member| member.running.as_ref()) else { return };
        let revision = running.machine.reader().revision().0 - self.rng.random_range(0..COMPACTED_BACK_MAX);
        if revision < 2 {
            return;
        }
        self.watching.history.compacted(Duration::from_millis(self.now), revision);
        self.next_request += 1;
        let request = self.next_request;
        let data: Bytes = client::compact(request, revision);
        self.note(|| format!("{id} is asked to compact at {revision}"));
        let proposal = Proposal { id: ProposalId(request), kind: EntryKind::Normal, data };
        self.input(id, Input::Propose(vec![proposal]));
    }

    /// Somebody is still owed something.
    pub(super) fn watches_are_behind(&self) -> bool {
        let ours = self.members.values().filter(|member| member.disk.lineage == 0);
        let readers = ours.filter_map(|member| Some(member.running.as_ref()?.machine.reader()));
        let last = readers.map(|reader| reader.revision()).max().unwrap_or_default();
        let watching = &self.watching;
        let mut following = watching.clients.iter().flat_map(|client| &client.following);
        following.any(|one| watching.history.expected(&one.create, one.starts(), last.0).next().is_some())
    }

    /// Everybody was told everything, in the end, and what they were told on the way was right.
    pub(super) fn end_watches(&mut self, last: Revision) {
        let now = self.now;
        for client in &mut self.watching.clients {
            client.end("the end", now);
        }
        let streams: Vec<_> = self.watching.clients.iter().flat_map(|client| client.logs.clone()).collect();
        let evidence = Evidence { streams: &streams, history: &self.watching.history };
        checker::assert_kept("watches", &checker::watch_violations(&evidence));
        for (at, client) in self.watching.clients.iter().enumerate() {
            for following in &client.following {
                let (next, who) = (following.starts(), following.subscription);
                // Not every watch learns that nothing is left: a progress notice is for all watches of a stream, and one that was
                // resumed behind the last revision is not there yet.
                let owed = self.watching.history.expected(&following.create, next, last.0).next();
                assert!(
                    owed.is_none(),
                    "watch client {at} waits at the end for {next} with {who:?}, and was not told of {:?}",
                    owed.map(|(revision, _)| revision)
                );
            }
        }
        let weight = checker::weight(&streams);
        self.outcome.watches = weight.watches as u64;
        self.outcome.watch_events = weight.events as u64;
        self.outcome.bookmarks = weight.bookmarks as u64;
        self.outcome.compacted_watches = weight.compacted as u64;
    }
}

/// A pause that no client takes twice at once.
pub fn first_look(client: usize) -> Time {
    TICK + client as Time
}
