//! What a member does with leases: the lessor, which is real, and around it the simplest driver that keeps its contract.

use std::collections::{BTreeMap, VecDeque};

use consensus::io::{ReadTicket, Role};
use consensus::{Config, Status};
use lessor::{Lessor, Mono, Now, Phase, Renewal};
use state_machine::{LeaseChange, LeaseFacts};
use types::{LeaseId, LogIndex, LogPosition, Term};

use super::{TICK, Time};

/// One unit of virtual time, when a tick is etcd's heartbeat of 100 ms.
const NS_PER_UNIT: u64 = 1_000_000;
/// Rounds that confirm leadership, in flight at a time.
const ROUNDS_MAX: usize = 2;
/// Leases loaded in one go after a promotion: few, so that changes come in between.
const LOADED_AT_ONCE: usize = 3;

/// A log in which something waits for so long is stuck.
const STUCK_AFTER: Time = 5 * TICK;

/// A keep-alive that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    pub lease: i64,
    pub sent: Time,
    pub waits: Waits,
}

#[derive(Clone, Copy, Debug)]
pub enum Waits {
    Confirmation,
    /// Renewed at that time for so many seconds; a record that is older than that must go first.
    Clearing(Time, i64),
    /// The lease is unknown so far: a grant may be on its way to this member.
    Read(ReadTicket),
    Applied(LogIndex),
}

/// What a client is told.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Alive { lease: i64, renewed_at: Time, ttl: i64 },
    Gone { lease: i64, sent: Time },
}

/// What the desk wants proposed in its term.
#[derive(Debug)]
pub enum Wish {
    Revoke(LeaseId),
    Checkpoint(Vec<(LeaseId, i64)>),
}

pub struct Desk {
    pub lessor: Lessor,
    /// The term in which this member leads, by the core's last word.
    pub leads: Option<Term>,
    pub promoted_at: Time,
    /// Since when what is proposed here is committed soon, as far as looks every tick can tell.
    flows: Option<Time>,
    flowed_at: Time,
    copied: Option<VecDeque<LeaseFacts>>,
    rounds: BTreeMap<ReadTicket, (Time, Term)>,
    pub calls: Vec<KeepAlive>,
    /// Leases in proposals that may yet be dropped.
    proposed: BTreeMap<u64, Vec<LeaseId>>,
}

pub fn mono(time: Time) -> Mono {
    Mono(time * NS_PER_UNIT)
}

impl Desk {
    pub fn new(config: &Config, checkpoint_interval_ms: Option<u64>) -> Desk {
        let config = lessor::Config {
            election_timeout: config.election_ticks as u64 * TICK * NS_PER_UNIT,
            checkpoint_interval_ms,
            ttl_min: 1,
            seed: [3, 5],
        };
        Desk {
            lessor: Lessor::new(config),
            leads: None,
            promoted_at: 0,
            flows: None,
            flowed_at: 0,
            copied: None,
            rounds: BTreeMap::new(),
            calls: Vec::new(),
            proposed: BTreeMap::new(),
        }
    }

    /// `time` for the lessor, which must know whether anybody could contest this member.
    pub fn now(&self, time: Time, sole_voter: bool) -> Now {
        Now { at: mono(time), sole: sole_voter && self.leads.is_some() }
    }

    pub fn is_primary(&self) -> bool {
        matches!(self.lessor.phase(), Phase::Primary(_))
    }

    pub fn leadership(&mut self, term: Term, role: Role, time: Time) {
        let leads = (role == Role::Leader).then_some(term);
        if leads == self.leads {
            return;
        }
        self.leads = leads;
        self.copied = None;
        self.calls.clear();
        self.rounds.clear();
        self.proposed.clear();
        if self.lessor.phase() != Phase::Idle {
            drop(self.lessor.demote(Now { at: mono(time), sole: false }));
        }
    }

    /// Since when this member decides and its proposals get through; None while either does not hold. A leader may be confirmed and
    /// yet commit nothing, while the only other voter waits for a snapshot.
    pub fn decides_since(&mut self, status: &Status, time: Time) -> Option<Time> {
        if !self.is_primary() || self.leads != Some(status.term) {
            self.flows = None;
            return None;
        }
        if status.committed == status.last_index {
            self.flowed_at = time;
            self.flows.get_or_insert(time);
        } else if time - self.flowed_at > STUCK_AFTER {
            self.flows = None;
        }
        self.flows.map(|since| since.max(self.promoted_at))
    }

    /// Takes what apply did; true when the table must be taken now.
    pub fn applied(&mut self, changes: &[LeaseChange], position: LogPosition, now: Now) -> bool {
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => self.lessor.granted(id, ttl, now),
                LeaseChange::Revoked { id } => {
                    self.lessor.revoked(id);
                    // The id may be granted anew; who waits here waits for the lease that was.
                    self.calls
                        .retain(|call| call.lease != id.0 || !matches!(call.waits, Waits::Clearing(..)));
                }
                LeaseChange::Checkpointed { id, remaining_ttl } => {
                    self.lessor.checkpointed(id, remaining_ttl);
                }
            }
        }
        self.lessor.check();
        if self.lessor.phase() == Phase::Idle && self.leads == Some(position.term) {
            self.lessor.begin(position.term, now);
            return true;
        }
        false
    }

    /// One piece of the table, copied when the first is asked for; true when there is more.
    pub fn load(&mut self, time: Time, copy: impl FnOnce() -> Vec<LeaseFacts>) -> bool {
        let copied = self.copied.get_or_insert_with(|| copy().into());
        for facts in copied.drain(..LOADED_AT_ONCE.min(copied.len())) {
            self.lessor.load(facts.id, facts.granted_ttl, facts.remaining_ttl);
        }
        if !copied.is_empty() {
            return true;
        }
        self.copied = None;
        self.lessor.promoted();
        self.promoted_at = time;
        false
    }

    /// True when a round should be asked to confirm leadership.
    pub fn wants_round(&self, now: Now) -> bool {
        let left = self.lessor.confirmed_until().since(now.at);
        let late = left < 5 * TICK * NS_PER_UNIT;
        self.leads.is_some() && late && !now.sole && self.rounds.len() < ROUNDS_MAX
    }

    pub fn asks(&mut self, ticket: ReadTicket, time: Time) {
        if let Some(term) = self.leads {
            self.rounds.insert(ticket, (time, term));
        }
    }

    /// True when the ticket was the desk's.
    pub fn read_ready(&mut self, ticket: ReadTicket, index: LogIndex, time: Time) -> bool {
        let mut ours = false;
        for call in &mut self.calls {
            if matches!(call.waits, Waits::Read(waits) if waits == ticket) {
                call.waits = Waits::Applied(index);
            }
        }
        if let Some((start, term)) = self.rounds.remove(&ticket) {
            ours = true;
            if self.leads == Some(term) {
                self.lessor.confirm(mono(start), Now { at: mono(time), sole: false });
            }
        }
        ours || is_desks(ticket)
    }

    pub fn read_failed(&mut self, ticket: ReadTicket) -> bool {
        self.rounds.remove(&ticket);
        self.calls.retain(|call| !matches!(call.waits, Waits::Read(waits) if waits == ticket));
        is_desks(ticket)
    }

    /// What is to be proposed now.
    pub fn wishes(&mut self, now: Now, budget: usize) -> Vec<Wish> {
        self.lessor.turn(now, budget);
        let mut over = Vec::new();
        self.lessor.expire(now, budget, &mut over);
        let mut wishes: Vec<Wish> = over.into_iter().map(Wish::Revoke).collect();
        let mut rests = self.lessor.take_checkpoints(now, budget);
        rests.extend(self.lessor.take_clearings(budget).into_iter().map(|id| (id, 0)));
        if !rests.is_empty() {
            wishes.push(Wish::Checkpoint(rests));
        }
        wishes
    }

    pub fn proposed(&mut self, request: u64, wish: &Wish) {
        self.proposed.insert(request, wish.ids());
    }

    pub fn refused(&mut self, wish: &Wish) {
        self.lessor.refused(&wish.ids());
    }

    pub fn dropped(&mut self, request: u64) {
        if let Some(ids) = self.proposed.remove(&request) {
            self.lessor.refused(&ids);
        }
    }

    /// A keep-alive comes in. `None`: it waits, or nobody will answer it. One that must read uses the ticket.
    pub fn keep_alive(&mut self, lease: i64, now: Now, ticket: ReadTicket) -> Option<Answer> {
        let call = KeepAlive { lease, sent: now.at.0 / NS_PER_UNIT, waits: Waits::Read(ticket) };
        self.renew(call, now)
    }

    fn renew(&mut self, call: KeepAlive, now: Now) -> Option<Answer> {
        let KeepAlive { lease, sent, waits } = call;
        let time = now.at.0 / NS_PER_UNIT;
        let waits = match self.lessor.renew(LeaseId(lease), now) {
            Renewal::Renewed(ttl) => return Some(Answer::Alive { lease, renewed_at: time, ttl }),
            Renewal::Stale(ttl) => Waits::Clearing(time, ttl),
            Renewal::Unconfirmed => Waits::Confirmation,
            Renewal::Unknown => match waits {
                Waits::Read(_) => waits,
                Waits::Applied(_) => return Some(Answer::Gone { lease, sent }),
                // It would have to read now; this client tries again.
                _ => return None,
            },
            Renewal::Over | Renewal::NotPrimary => return None,
        };
        self.calls.push(KeepAlive { waits, ..call });
        None
    }

    /// Looks at the calls that wait.
    pub fn answers(&mut self, now: Now, applied: LogIndex) -> Vec<Answer> {
        let mut answers = Vec::new();
        for call in std::mem::take(&mut self.calls) {
            match call.waits {
                Waits::Confirmation if self.lessor.is_confirmed(now) => answers.extend(self.renew(call, now)),
                Waits::Clearing(renewed_at, ttl) if !self.lessor.is_stale(LeaseId(call.lease)) => {
                    if self.lessor.lease(LeaseId(call.lease), now).is_some() {
                        answers.push(Answer::Alive { lease: call.lease, renewed_at, ttl });
                    }
                }
                Waits::Applied(index) if applied >= index => answers.extend(self.renew(call, now)),
                _ => self.calls.push(call),
            }
        }
        answers
    }
}

impl Wish {
    fn ids(&self) -> Vec<LeaseId> {
        match self {
            Wish::Revoke(id) => vec![*id],
            // Checkpoints that are lost come again with the next turn; only clearings are asked for until they are there.
            Wish::Checkpoint(rests) => {
                rests.iter().filter(|(_, rest)| *rest == 0).map(|(id, _)| *id).collect()
            }
        }
    }
}

/// Tickets of the desk are told from those of clients by this bit, so that late answers find their way.
const DESK_BIT: u64 = 1 << 62;

pub fn desk_ticket(number: u64) -> ReadTicket {
    ReadTicket(number | DESK_BIT)
}

fn is_desks(ticket: ReadTicket) -> bool {
    ticket.0 & DESK_BIT != 0
}
