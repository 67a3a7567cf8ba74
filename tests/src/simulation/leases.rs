//! Leases in the simulated cluster: clients that grant, renew, forget and revoke, and the events that make members' desks go.

use consensus::io::{Input, Proposal, ProposalId, Role};
use rand::Rng;
use types::{EntryKind, LogIndex, Term};

use super::client;
use super::desk::{Answer, Wish, desk_ticket};
use super::lease_checks::LeaseCall;
use super::member::{Running, Told};
use super::world::{CLIENTS_END, Event, REST_END, World};
use super::{TICK, Time};

/// Desks stop here, so that the end is a standstill.
const DESKS_END: Time = REST_END - 20 * TICK;
/// Leases that clients use at a time.
const LEASES_MAX: usize = 8;

/// A lease as its client sees it.
struct Held {
    lease: i64,
    ttl: i64,
    /// Renewed until then, and left alone after.
    renewed_until: Time,
    /// Where its client is connected, as long as that member decides.
    home: u64,
}

/// What clients do with leases.
#[derive(Default)]
pub struct LeaseCalls {
    held: Vec<Held>,
    next_lease: i64,
}

impl Running {
    fn desk_now(&self, time: Time) -> lessor::Now {
        self.desk.now(time, self.core.is_sole_voter())
    }
}

impl World {
    fn running(&mut self, id: u64) -> Option<&mut Running> {
        self.members.get_mut(&id).and_then(|member| member.running.as_mut())
    }

    /// Some puts carry a lease, not always one that exists.
    pub(super) fn draw_lease(&mut self) -> i64 {
        let held = self.lease_calls.held.len();
        if held == 0 || self.rng.random_bool(0.6) {
            return 0;
        }
        self.lease_calls.held[self.rng.random_range(0..held)].lease
    }

    pub(super) fn lease_client(&mut self) {
        let pause = self.rng.random_range(1..4 * TICK);
        if self.now + pause < CLIENTS_END {
            self.at(pause, Event::LeaseClient);
        }
        let Some(id) = self.pick_running() else { return };
        let held = self.lease_calls.held.len();
        match self.rng.random_range(0..10) {
            0..6 if held < LEASES_MAX => self.grant(id),
            6 | 7 if held > 0 => {
                let place = self.rng.random_range(0..held);
                let lease = self.lease_calls.held.swap_remove(place).lease;
                self.next_request += 1;
                let data = client::lease_revoke(self.next_request, lease);
                self.lease_call(id, LeaseCall::Revoke { lease }, data);
            }
            // Forgotten, not revoked.
            8 if held > 0 => {
                let place = self.rng.random_range(0..held);
                self.lease_calls.held.swap_remove(place);
            }
            _ => {}
        }
    }

    fn grant(&mut self, id: u64) {
        let lease = match self.leases.long_gone(self.now) {
            // Somebody had this id before.
            Some(lease) if self.rng.random_bool(0.4) => lease,
            _ => {
                self.lease_calls.next_lease += 1;
                self.lease_calls.next_lease
            }
        };
        if self.lease_calls.held.iter().any(|held| held.lease == lease) {
            return;
        }
        let ttl = self.rng.random_range(1..10);
        let renewed_until = self.now + self.rng.random_range(0..150 * TICK);
        self.lease_calls.held.push(Held { lease, ttl, renewed_until, home: id });
        self.next_request += 1;
        let data = client::lease_grant(self.next_request, lease, ttl);
        self.lease_call(id, LeaseCall::Grant { lease, ttl, sent: self.now }, data);
        self.at(ttl as u64 * TICK, Event::KeepAlive(lease));
    }

    fn lease_call(&mut self, id: u64, call: LeaseCall, data: bytes::Bytes) {
        let request = self.next_request;
        self.leases.asked(call);
        let Some(running) = self.running(id) else { return };
        running.lease_waiting.insert(request, call);
        let proposal = Proposal { id: ProposalId(request), kind: EntryKind::Normal, data };
        self.input(id, Input::Propose(vec![proposal]));
    }

    /// A client renews its lease at a member that thinks it decides, as a follower would find it out.
    pub(super) fn keep_alive(&mut self, lease: i64) {
        let Some(held) = self.lease_calls.held.iter().find(|held| held.lease == lease) else { return };
        if self.now > held.renewed_until.min(CLIENTS_END) {
            return;
        }
        let (home, ttl) = (held.home, held.ttl);
        let pause = ttl as u64 * self.rng.random_range(TICK..7 * TICK);
        self.at(pause, Event::KeepAlive(lease));
        let decides = |running: &Running| running.desk.is_primary();
        let ids: Vec<u64> = self
            .members
            .values()
            .filter(|member| member.running.as_ref().is_some_and(decides))
            .map(|member| member.id)
            .collect();
        if ids.is_empty() {
            return;
        }
        let any = ids[self.rng.random_range(0..ids.len())];
        let id = if ids.contains(&home) && self.rng.random_bool(0.9) { home } else { any };
        self.lease_calls.held.iter_mut().filter(|held| held.lease == lease).for_each(|held| held.home = id);
        self.next_request += 1;
        let ticket = desk_ticket(self.next_request);
        let time = self.now;
        let running = self.running(id).expect("it runs");
        let now = running.desk_now(time);
        let waiting = running.desk.calls.len();
        let answer = running.desk.keep_alive(lease, now, ticket);
        let must_read = running.desk.calls.len() > waiting;
        if let Some(answer) = answer {
            self.lease_answer(id, answer);
        } else if must_read {
            self.input(id, Input::Read(ticket));
        }
        self.answer_keep_alives(id);
    }

    /// Some answers are lost on the way to the client.
    fn lease_answer(&mut self, id: u64, answer: Answer) {
        let heard = self.rng.random_bool(0.8);
        match answer {
            Answer::Alive { lease, renewed_at, ttl } => {
                self.leases.touched(lease, renewed_at);
                if heard {
                    self.leases.renewed(lease, renewed_at, ttl);
                }
            }
            Answer::Gone { lease, sent } => {
                self.leases.not_found(lease, sent, self.now);
                self.note(|| format!("{id} knows no lease {lease}"));
                self.lease_calls.held.retain(|held| held.lease != lease);
            }
        }
    }

    pub(super) fn answer_keep_alives(&mut self, id: u64) {
        let time = self.now;
        let Some(running) = self.running(id) else { return };
        if running.desk.calls.is_empty() {
            return;
        }
        let now = running.desk_now(time);
        let applied: LogIndex = running.machine.applied().index;
        for answer in running.desk.answers(now, applied) {
            self.lease_answer(id, answer);
        }
    }

    /// Apply told of changes; a member that leads takes the table once it applied something of its term.
    pub(super) fn tell_desk(&mut self, id: u64, told: &Told) {
        let time = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let life = member.life;
        let Some(running) = &mut member.running else { return };
        let now = running.desk_now(time);
        let position = running.machine.applied();
        let takes = running.desk.applied(&told.leases, position, now);
        for change in &told.leases {
            if let state_machine::LeaseChange::Granted { id, .. } = change {
                self.leases.touched(id.0, time);
            }
        }
        if takes {
            let pause = self.rng.random_range(1..TICK);
            self.at(pause, Event::LoadLeases(id, life, position.term));
        }
        self.answer_keep_alives(id);
    }

    pub(super) fn load_leases(&mut self, id: u64, life: u64, term: Term) {
        let time = self.now;
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        if running.desk.lessor.phase() != lessor::Phase::Building(term) {
            return;
        }
        let reader = running.machine.reader();
        if running.desk.load(time, || reader.leases()) {
            let pause = self.rng.random_range(1..TICK / 2);
            self.at(pause, Event::LoadLeases(id, life, term));
        } else {
            let count = running.desk.lessor.len();
            self.note(|| format!("{id} decides about {count} leases in term {term}"));
        }
    }

    pub(super) fn lease_tick(&mut self, id: u64, life: u64) {
        if self.alive(id, life).is_none() || self.now >= DESKS_END {
            return;
        }
        let pause = self.rng.random_range(TICK / 2..TICK);
        self.at(pause, Event::LeaseTick(id, life));
        // What the core was told so far decides whether this member still leads.
        self.flush(id);
        let (time, budget) = (self.now, self.rng.random_range(1..20));
        let next = self.next_request + 1;
        let Some(running) = self.running(id) else { return };
        let now = running.desk_now(time);
        if running.desk.wants_round(now) {
            let ticket = desk_ticket(next);
            running.desk.asks(ticket, time);
            self.next_request = next;
            self.input(id, Input::Read(ticket));
        }
        self.decide(id, budget);
        let Some(running) = self.running(id) else { return };
        let (status, reader) = (running.core.status(), running.machine.reader());
        if let Some(since) = running.desk.decides_since(&status, time)
            && self.calm
        {
            self.leases.not_overdue(&reader, since.max(self.calm_since), time);
        }
    }

    /// The desk's wishes become proposals of its term, or are refused.
    fn decide(&mut self, id: u64, budget: usize) {
        let time = self.now;
        let Some(running) = self.running(id) else { return };
        let now = running.desk_now(time);
        let wishes = running.desk.wishes(now, budget);
        if wishes.is_empty() {
            return;
        }
        let status = running.core.status();
        let leads = (status.role == Role::Leader).then_some(status.term);
        if leads.is_none() || leads != running.desk.leads {
            wishes.iter().for_each(|wish| running.desk.refused(wish));
            return;
        }
        let term = status.term;
        let mut proposals = Vec::new();
        for wish in wishes {
            self.next_request += 1;
            let request = self.next_request;
            let data = match &wish {
                Wish::Revoke(lease) => {
                    self.leases.decided(request, lease.0, term, time);
                    self.note(|| format!("{id} lets lease {} expire", lease.0));
                    client::lease_revoke(request, lease.0)
                }
                Wish::Checkpoint(rests) => client::lease_checkpoint(request, rests),
            };
            self.running(id).expect("it runs").desk.proposed(request, &wish);
            proposals.push(Proposal { id: ProposalId(request), kind: EntryKind::Normal, data });
        }
        // Within the same step of the driver, so that no other term can have come in between.
        self.running(id).expect("it runs").inbox.push(Input::Propose(proposals));
        self.flush(id);
    }
}
