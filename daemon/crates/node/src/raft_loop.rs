//! The thread that owns the consensus core: gathers what arrived, feeds it, obeys what comes out. It holds no decision of raft's, only
//! what a driver has to: the clock, proposals parked while there is no leader, and who is told what.
//!
//! It never waits for the disk, so heartbeats and votes do not stand behind an fsync (regression RF07); only the loop of a cluster's sole
//! voter, who owes them to nobody, writes the log itself.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, raftpb};
use consensus::{
    CONTRADICTIONS, Core, HISTORY_KINDS,
    io::{DropReason, Input, Output, Persist, PersistSeq, Proposal, ProposalId, ReadTicket, Report, Role},
};
use tracing::info;
use transport::Transport;
use types::{Entry, EntryKind, LogIndex, LogPosition, MemberId};

use crate::{
    apply_worker::{SharedWorker, ToApply},
    lessor::Grants,
    log_writer::{self, SharedWal, ToLog},
    pulse::Work,
    records,
    reports::Reports,
    shared::{Leadership, PROPOSALS_QUEUED_MAX, Shared, ToRaft},
    snapshots,
};

/// How often waits are checked for expiry. A request's deadline is thus met within half a second.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// Confirmations of leadership that the lessor is told of in one election timeout, at most.
const CONFIRMATIONS_PER_ELECTION: u32 = 16;

/// With this many requests under way a group may wait for more of them; with fewer nobody waits for anybody.
const GATHER_WAITERS_MIN: usize = 16;

/// Longest such wait: about one sync of the disk, so that a group costs at most the latency that a longer queue for the disk would.
const GATHER: Duration = Duration::from_micros(100);

pub(crate) struct RaftLoop {
    shared: Arc<Shared>,
    core: Core,
    transport: Transport,
    wal: SharedWal,
    /// In the log and not applied.
    grants: Grants,
    /// Start of the newest round that confirmed this leader, as the lessor was told.
    confirmed: Option<Instant>,
    /// The newest persist that the log writer has not confirmed.
    handed: Option<PersistSeq>,
    worker: SharedWorker,
    /// The last entry given to the apply worker's thread, and up to where that thread has said to have applied.
    handed_to_apply: LogIndex,
    told_applied: LogIndex,
    /// Proposals that arrived while nobody led, or before the life of the cluster was written down. Nothing of them is in any log yet, so
    /// they can be fed later without doubt.
    parked: VecDeque<(Instant, Proposal)>,
    retry_reads: Vec<ReadTicket>,
    reports: Reports,
    leadership: Leadership,
    /// A leader's: once everything up to here is applied, `sole_leader` may be set. The first entry of its own term, or where the log
    /// ended when it became the only voter.
    leads_since: Option<LogIndex>,
    next_expiry: Instant,
    /// The newest persist that waits for the disk.
    syncing: Option<PersistSeq>,
    /// Proposals are let in from here on.
    gather_until: Option<Instant>,
    transferring: bool,
    /// When the present leader took office, until what was lost with the former one has been told.
    changed: Option<Instant>,
    /// Everything that clients had queued when the leader changed has been taken since.
    drained: bool,
    campaigned: bool,
    /// As of this turn: the sentinel has silenced this member.
    silent: bool,
    /// The life of the cluster is written down, or nobody begins one: writes are taken.
    life_is_begun: bool,
    stop: bool,
}

pub(crate) fn run(
    shared: Arc<Shared>,
    core: Core,
    transport: Transport,
    wal: SharedWal,
    worker: SharedWorker,
) {
    let now = Instant::now();
    let leadership = *shared.leadership.borrow();
    let mut raft_loop = RaftLoop {
        shared,
        core,
        transport,
        wal,
        grants: Grants::default(),
        confirmed: None,
        handed: None,
        worker,
        handed_to_apply: LogIndex(0),
        told_applied: LogIndex(0),
        parked: VecDeque::new(),
        retry_reads: Vec::new(),
        reports: Reports::default(),
        leadership,
        leads_since: None,
        next_expiry: now + EXPIRY_INTERVAL,
        syncing: None,
        gather_until: None,
        transferring: false,
        changed: None,
        drained: false,
        campaigned: false,
        silent: false,
        life_is_begun: false,
        stop: false,
    };
    raft_loop.run();
}

impl RaftLoop {
    fn run(&mut self) {
        let shared = self.shared.clone();
        let tick = shared.config.heartbeat;
        let mut next_tick = Instant::now() + tick;
        let mut batch = VecDeque::new();
        let mut proposals = Vec::new();
        if shared.config.initial_election_tick_advance {
            // A fresh process has heard of no leader; the last two ticks give one time to be heard of.
            for _ in 2..shared.config.election_ticks {
                self.core.handle(Input::Tick);
            }
        }
        // What the disk already holds may need work before anything arrives.
        self.obey();
        loop {
            let deadline = self.gather_until.map_or(next_tick, |until| until.min(next_tick));
            let admit = self.admits_proposals() && self.gather_until.is_none();
            if self.stop || !shared.raft.take(&mut batch, Some(deadline), admit) {
                break;
            }
            shared.pulse.raft.beat();
            let now = Instant::now();
            self.keep_silence();
            if self.gather_until.is_some_and(|until| now >= until) {
                self.gather_until = None;
            }
            self.feed(&mut batch, &mut proposals, now);
            self.drained |= admit;
            if now >= next_tick {
                // A clock that stands still neither campaigns nor beats.
                if !self.silent {
                    self.core.handle(Input::Tick);
                }
                for ticket in self.retry_reads.drain(..) {
                    self.core.handle(Input::Read(ticket));
                }
                // After a stall the lost ticks stay lost: firing them at once would start an election that nobody needs.
                next_tick = (next_tick + tick).max(now);
            }
            if now >= self.next_expiry {
                self.expire(now);
                self.next_expiry = now + EXPIRY_INTERVAL;
            }
            self.obey();
            // What was obeyed may be what they waited for: a leader, or the life of the cluster.
            if !self.parked.is_empty() && self.is_taken() {
                self.unpark(Instant::now());
                self.obey();
            }
        }
        shared.sole_leader.store(false, Ordering::Release);
    }

    /// While a leader's own sync runs, proposals gather: they become one raft message, one write and one sync, and followers get
    /// them in one append. A lone client never waits for this.
    fn admits_proposals(&self) -> bool {
        self.syncing.is_none() || self.leadership.role != Role::Leader
    }

    /// When the disk is free but most of the clients' next requests are still on their way, a short wait makes one group of what would
    /// be several. On a busy machine the wait is not idle: it is spent on receiving those requests.
    fn gather(&mut self, now: Instant) {
        let under_way = self.shared.waiters.count();
        if under_way >= GATHER_WAITERS_MIN && self.shared.raft.patient_len() * 2 < under_way {
            self.gather_until = Some(now + GATHER);
        }
    }

    fn feed(&mut self, batch: &mut VecDeque<ToRaft>, proposals: &mut Vec<Proposal>, now: Instant) {
        let mut persisted: Option<PersistSeq> = None;
        let mut readers = false;
        self.propose_decided(batch);
        for item in batch.drain(..) {
            match item {
                ToRaft::Propose(proposal) => proposals.push(proposal),
                ToRaft::Decided(_) => unreachable!("what the lessor decided was taken out first"),
                ToRaft::ReadersWait => readers = true,
                ToRaft::Persisted(seq) => persisted = persisted.max(Some(seq)),
                ToRaft::Input(input) => {
                    if let Input::Applied { index, .. }
                    | Input::SnapshotInstalled { position: LogPosition { index, .. } } = *input
                    {
                        self.told_applied = self.told_applied.max(index);
                    }
                    if matches!(*input, Input::Message(_)) && self.shared.sentinel.is_quarantined() {
                        self.shared.metrics.messages_dropped.add(1);
                        continue;
                    }
                    self.core.handle(*input);
                }
                ToRaft::SnapshotReady(outgoing) => {
                    snapshots::stream(&self.shared, &mut self.core, &self.transport, outgoing);
                }
                // Looked at with what is parked.
                ToRaft::LifeIsKept => {}
                ToRaft::Stop => self.stop = true,
            }
        }
        if let Some(seq) = persisted {
            if self.syncing.is_some_and(|syncing| syncing <= seq) {
                self.syncing = None;
                self.gather(now);
            }
            if self.handed.is_some_and(|handed| handed <= seq) {
                self.handed = None;
            }
            self.core.handle(Input::Persisted(seq));
        }
        if !proposals.is_empty() {
            if !self.is_taken() {
                self.park(proposals, now);
            } else {
                if self.changed.is_some() {
                    for proposal in proposals.iter() {
                        self.shared.waiters.given_anew(proposal.id.0, now);
                    }
                }
                self.propose(std::mem::take(proposals));
            }
        }
        if readers && let Some(ticket) = self.shared.gate.seal(now) {
            self.core.handle(Input::Read(ticket));
        }
        if !self.parked.is_empty() && self.is_taken() {
            self.unpark(now);
        }
    }

    /// Whether what is proposed now comes into somebody's log, or somebody says that it does not. A member that has just been founded
    /// may hear its leader before its own log has named it: what is sent to nobody is lost, and its client waits in vain. And nothing is
    /// promised in a life of the cluster that has no name yet.
    fn is_taken(&mut self) -> bool {
        let leader = self.leadership.leader;
        let is_reached = leader == self.shared.config.member || self.transport.knows(leader);
        if leader.is_none() || self.transferring || !is_reached {
            return false;
        }
        self.life_is_begun = self.life_is_begun || records::is_begun(&self.shared);
        self.life_is_begun || !records::is_begun_by(&self.shared, leader)
    }

    fn park(&mut self, proposals: &mut Vec<Proposal>, now: Instant) {
        for proposal in proposals.drain(..) {
            if self.parked.len() < PROPOSALS_QUEUED_MAX {
                self.parked.push_back((now, proposal));
            } else {
                self.shared.release_proposals(proposal.data.len() as u64);
                self.shared.waiters.complete(proposal.id.0, Err(EtcdError::NoLeader));
            }
        }
    }

    fn propose(&mut self, proposals: Vec<Proposal>) {
        self.shared.release_proposals(proposals.iter().map(|proposal| proposal.data.len() as u64).sum());
        self.core.handle(Input::Propose(proposals));
    }

    /// What the lessor decided is worth something only in the term in which it did. It goes first in a turn: by then everything in the log
    /// was seen, and no message of this turn can have deposed this member, so that its proposals would travel to a successor.
    fn propose_decided(&mut self, batch: &mut VecDeque<ToRaft>) {
        if !batch.iter().any(|item| matches!(item, ToRaft::Decided(_))) {
            return;
        }
        let (decided, rest) = std::mem::take(batch)
            .into_iter()
            .partition::<VecDeque<_>, _>(|item| matches!(item, ToRaft::Decided(_)));
        *batch = rest;
        self.grants.applied(self.shared.applied());
        let status = self.core.status();
        let mut proposals = Vec::new();
        for item in decided {
            let ToRaft::Decided(decided) = item else { continue };
            if self.silent
                || status.role != Role::Leader
                || status.term != decided.term
                || status.lead_transferee.is_some()
            {
                self.shared.leases.refused(&decided);
                continue;
            }
            proposals.extend(self.shared.leases.admit(*decided, |id| self.grants.hold(id)));
        }
        if !proposals.is_empty() {
            self.core.handle(Input::Propose(proposals));
        }
    }

    /// Those whose client was told or has gone are left out: a write must not happen after its caller was told "no leader".
    fn unpark(&mut self, now: Instant) {
        let shared = &self.shared;
        let parked = self.parked.drain(..).map(|(_, proposal)| proposal);
        let is_wanted = |proposal: &Proposal| {
            let wanted = shared.waiters.waits(proposal.id.0);
            if !wanted {
                shared.release_proposals(proposal.data.len() as u64);
            }
            wanted
        };
        let proposals: Vec<Proposal> = parked.filter(is_wanted).collect();
        for proposal in &proposals {
            shared.waiters.given_anew(proposal.id.0, now);
        }
        if !proposals.is_empty() {
            self.propose(proposals);
        }
    }

    fn expire(&mut self, now: Instant) {
        let shared = &self.shared;
        let limit = shared.config.request_timeout();
        let Some(deadline) = now.checked_sub(limit) else { return };
        // For these the answer is certain. The others are expired beside this loop, which a disk may hold up.
        while let Some((since, _)) = self.parked.front() {
            if *since >= deadline {
                break;
            }
            if let Some((_, proposal)) = self.parked.pop_front() {
                shared.release_proposals(proposal.data.len() as u64);
                shared.waiters.complete(proposal.id.0, Err(EtcdError::NoLeader));
                shared.metrics.proposals_failed.add(1);
            }
        }
    }

    fn persist(&mut self, persist: Persist) {
        if persist.entries.iter().any(|entry| entry.kind != EntryKind::Normal) {
            self.doubt_sole_leader();
        }
        self.grants.applied(self.shared.applied());
        self.grants.appended(&persist.entries);
        let seq = persist.seq;
        if self.handed.is_none() && self.core.is_sole_voter() {
            let (shared, wal) = (&self.shared, &self.wal);
            shared.pulse.raft.within(Work::Disk, || log_writer::write_now(shared, wal, persist));
            self.core.handle(Input::Persisted(seq));
            self.gather(Instant::now());
            return;
        }
        if persist.must_sync {
            self.syncing = Some(seq);
        }
        self.handed = Some(seq);
        self.shared.log.push(ToLog::Persist(persist));
    }

    /// On the worker's thread, unless nobody needs this loop meanwhile and the thread has nothing to do: then the entries are applied
    /// here, and a client's answer is a change of thread nearer.
    fn apply(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last() else { return };
        if self.told_applied >= self.handed_to_apply
            && self.core.is_sole_voter()
            && let Some(mut worker) = self.worker.try_lock()
        {
            let applied = self.shared.pulse.raft.within(Work::Disk, || worker.apply_now(&entries));
            drop(worker);
            self.core.handle(applied);
            return;
        }
        self.handed_to_apply = last.index;
        self.shared.apply.push(ToApply::Entries(entries));
    }

    fn obey(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Persist(persist) => self.persist(persist),
                Output::Send(messages) => self.send(messages),
                Output::Apply(entries) => self.apply(entries),
                Output::ReadReady { tickets, index } => {
                    // A leader has taken this member's question.
                    self.shared.sentinel.confirm();
                    let began = self.shared.gate.confirm(&tickets, index, || self.shared.applied());
                    self.confirm(began);
                }
                Output::ReadRetry { tickets, reason } => self.retry_reads(tickets, reason),
                Output::ProposalDropped { ids, reason } => self.dropped(ids, reason),
                // While this member is silent this can only be the end of what it had begun.
                Output::Leadership { .. } if self.silent => {}
                Output::Leadership { leader, term, role } => {
                    self.leadership_changed(Leadership { leader, term, role });
                }
                Output::SendSnapshot { to } => snapshots::begin(&self.shared, to),
                Output::SnapshotIgnored { position } => snapshots::discard(&self.shared, position),
                Output::InstallSnapshot { position, conf_state } => {
                    self.shared.apply.push(ToApply::Install { position, conf_state });
                }
                Output::Report(report) => self.report(report),
            }
        }
        self.publish();
    }

    /// Whoever is told to take over may lead as soon as it hears of it: until then nobody may be promised anything from memory.
    fn send(&mut self, messages: Vec<raftpb::Message>) {
        let hands_over = |message: &raftpb::Message| message.r#type() == raftpb::MessageType::MsgTimeoutNow;
        if messages.iter().any(hands_over) {
            self.doubt_leadership();
        }
        // Whoever may have forgotten a promise makes no other: neither votes nor acknowledgements leave.
        if !self.shared.sentinel.is_quarantined() {
            self.transport.send(messages);
        }
    }

    /// Begins or ends what the sentinel has decided. To clients it looks as if nobody led.
    fn keep_silence(&mut self) {
        let silent = self.shared.sentinel.is_quarantined();
        if silent == self.silent {
            return;
        }
        self.silent = silent;
        let status = self.core.status();
        let now = match silent {
            true => Leadership { leader: MemberId::NONE, term: status.term, role: Role::Follower },
            false => Leadership { leader: status.leader, term: status.term, role: status.role },
        };
        self.doubt_leadership();
        self.leadership_changed(now);
    }

    fn doubt_leadership(&mut self) {
        self.confirmed = None;
        self.shared.leases.doubted(&self.shared);
    }

    fn retry_reads(&mut self, tickets: Vec<ReadTicket>, _reason: consensus::io::RetryReason) {
        self.shared.metrics.read_rounds_failed.add(1);
        let limit = self.shared.config.request_timeout();
        let deadline = Instant::now().checked_sub(limit);
        let error = if self.leadership.leader.is_none() { EtcdError::NoLeader } else { EtcdError::Timeout };
        let again = match deadline {
            Some(deadline) => self.shared.gate.retry(tickets, deadline, error),
            None => tickets,
        };
        // On the next tick: whatever made the round fail is not over yet.
        self.retry_reads.extend(again);
    }

    /// A quorum has answered a round. Many reads make many rounds, of which the lessor needs a few.
    fn confirm(&mut self, began: Option<Instant>) {
        let Some(began) = began.filter(|_| self.leadership.role == Role::Leader && !self.transferring) else {
            return;
        };
        let step = self.shared.config.election_timeout() / CONFIRMATIONS_PER_ELECTION;
        if self.confirmed.is_none_or(|last| began.saturating_duration_since(last) >= step) {
            self.confirmed = Some(began);
            self.shared.leases.confirmed(&self.shared, began);
        }
    }

    fn dropped(&mut self, ids: Vec<ProposalId>, reason: DropReason) {
        let error = match reason {
            DropReason::NoLeader | DropReason::Transferring => EtcdError::NoLeader,
            DropReason::TooMuchUncommitted => EtcdError::RequestTooManyRequests,
            DropReason::ConfChangePending | DropReason::HandsOver | DropReason::Malformed => {
                EtcdError::ProposalDropped
            }
        };
        self.shared.metrics.proposals_failed.add(ids.len() as u64);
        let failed = ids.iter().map(|id| (id.0, false));
        self.shared.leases.ended(failed, Duration::ZERO);
        for id in ids {
            self.shared.waiters.complete(id.0, Err(error));
        }
    }

    fn leadership_changed(&mut self, now: Leadership) {
        let before = std::mem::replace(&mut self.leadership, now);
        self.shared.term.store(now.term.0, Ordering::Release);
        self.leads_since = None;
        self.shared.sole_leader.store(false, Ordering::Release);
        if before.leader != now.leader {
            *self.shared.last_leader_change.lock() = Instant::now();
            if !now.leader.is_none() {
                self.shared.metrics.leader_changes.add(1);
            }
            info!(
                member = %self.shared.config.member,
                term = now.term.0,
                before = %before.leader,
                leader = %now.leader,
                "leader changed"
            );
        }
        if !now.leader.is_none() && (before.leader, before.term) != (now.leader, now.term) {
            self.changed = Some(Instant::now());
            self.drained = false;
        }
        if now.role == Role::Leader {
            // The first entry of the term is the no-op that raft appends on taking office.
            self.leads_since = Some(self.core.status().last_index);
        }
        self.shared.leader.store(now.leader.0, Ordering::Release);
        self.shared.is_leader.store(now.role == Role::Leader, Ordering::Release);
        self.shared.leadership.send_replace(now);
        self.shared.sentinel.leader_is(&self.shared, now.leader);
        self.confirmed = None;
        self.shared.leases.leadership_changed(&self.shared);
    }

    /// What a former leader was given and put into the log stands before the first entry of the present term. Once that is applied, and
    /// what waited here has been given to the present leader, whoever is not answered is lost, or will hear of it from nobody in time.
    /// Saying so beats seconds of silence. It means unknown.
    fn tell_lost(&mut self) {
        let Some(changed) = self.changed else { return };
        let shared = &self.shared;
        let applied = shared.applied_term.load(Ordering::Acquire);
        if self.drained && self.parked.is_empty() && applied >= self.leadership.term.0 {
            let lost = shared.waiters.expire_given_before(changed, EtcdError::TimeoutDueToLeaderFail);
            shared.metrics.proposals_failed.add(lost as u64);
            self.changed = None;
        }
    }

    fn publish(&mut self) {
        self.tell_lost();
        let status = self.core.status();
        if status.lead_transferee.is_some() && !self.transferring {
            self.doubt_leadership();
        }
        self.transferring = status.lead_transferee.is_some();
        self.shared.committed.store(status.committed.0, Ordering::Release);
        self.shared.term.store(status.term.0, Ordering::Release);
        let is_sole_voter = self.core.is_sole_voter();
        if status.role == Role::Leader && !is_sole_voter {
            // Whoever was a voter may have acknowledged what it learnt to be committed, up to the moment when it is none any more.
            self.leads_since = Some(status.last_index);
            self.shared.sole_leader.store(false, Ordering::Release);
        }
        // A conf change is part of the state first and of raft's configuration later: both must say so. The state is asked after the
        // applied index, which it is never behind.
        if let Some(since) = self.leads_since
            && is_sole_voter
            && !self.shared.sole_leader.load(Ordering::Relaxed)
            && self.shared.applied() >= since
            && self.shared.conf_state.lock().voters == [self.shared.config.member]
        {
            self.shared.sole_leader.store(true, Ordering::Release);
        }
        // Nobody else can lead a cluster of one, so there is nothing to wait for.
        let alone =
            !self.silent && !self.campaigned && status.voter && status.leader.is_none() && is_sole_voter;
        self.shared.sentinel.has_on_disk(status.persisted);
        *self.shared.raft_status.lock() = status;
        if alone {
            self.campaigned = true;
            self.core.handle(Input::Campaign);
            self.obey();
        }
    }

    /// A conf change goes into the log. A member that it makes a voter may learn that it is committed, take a write and acknowledge it
    /// before this member has applied either. So reads need rounds from now on, before the change can leave for anyone as committed, and
    /// until it is applied here and this member is still the only voter.
    fn doubt_sole_leader(&mut self) {
        self.shared.sole_leader.store(false, Ordering::Release);
        if self.leads_since.is_some() {
            self.leads_since = Some(self.core.status().last_index);
        }
    }

    fn report(&mut self, report: Report) {
        if HISTORY_KINDS.contains(&report.kind) {
            self.shared.sentinel.doubt();
        }
        // Somebody who is not followed may say what he likes.
        if CONTRADICTIONS.contains(&report.kind) && report.from == self.core.status().leader {
            self.shared.sentinel.contradicted(report.from, &report.text);
        }
        self.reports.tell(&report, Instant::now());
    }
}
