//! The core itself: raft-rs's node, what is in flight, and the queue of outputs. Inputs only step; the outputs of a batch are made when
//! the driver polls, so that a batch of proposals leaves as one message and one write.

mod departure;
mod incoming;
mod ready;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::{RawNode, StateRole, eraftpb};
use types::{ConfState, Entry, HardState, LogIndex, LogPosition, MemberId, Term};

use crate::codec;
use crate::config::{self, Config, LoadError, Recovered};
use crate::flight::Flights;
use crate::guard::Situation;
use crate::io::{Input, Output, PersistSeq, Report, Role};
use crate::log::Tail;
use crate::reads::{Authority, Reads};
use crate::status::{Peer, PeerState, Status};

use snapshots::Fed;
pub use snapshots::NoSnapshot;

/// One member's part in consensus. See the [crate](crate) for what the driver owes it.
pub struct Core {
    config: Config,
    node: RawNode<Tail>,
    outputs: VecDeque<Output>,
    flights: Flights,
    reads: Reads,
    last_seq: PersistSeq,
    /// As of the last ready; written, or on its way, except for the commit while `commit_unwritten`.
    hard_state: HardState,
    /// A commit alone is not worth a write: it rides with the next entries, or goes out with the next tick.
    commit_unwritten: bool,
    /// What was last told by Output::Leadership.
    announced: (MemberId, Term, Role),
    /// The end of what was handed out to be applied.
    handed_out: LogIndex,
    /// Conf changes up to here are part of raft's configuration.
    conf_index: LogIndex,
    /// A snapshot that raft accepted and the driver has not installed yet.
    installing: Option<LogPosition>,
    /// What Compact allows to be forgotten.
    compactable: LogIndex,
    /// Conf changes that followers passed on while another one was not applied. Forgotten with leadership, like messages that were lost.
    conf_changes_waiting: VecDeque<eraftpb::Entry>,
    /// A leader's word to take over, which came while a committed conf change was not applied here.
    takes_over_later: Option<eraftpb::Message>,
    /// Peers with an unanswered SendSnapshot.
    snapshots_wanted: BTreeSet<MemberId>,
    /// Committed entries that are handed out once this write is on disk, oldest first.
    held_back: VecDeque<(PersistSeq, Vec<Entry>)>,
    /// To whom this member last meant to hand leadership before its own removal.
    successor: MemberId,
    /// Peers that are fed by snapshot, until they have caught up.
    fed: BTreeMap<MemberId, Fed>,
}

impl Core {
    /// Checks what was found on disk, then starts as a follower.
    ///
    /// # Errors
    ///
    /// A state that no correct member leaves behind; nothing was changed.
    pub fn new(config: Config, recovered: Recovered) -> Result<Core, LoadError> {
        let checked = config::check_recovered(&recovered)?;
        let raft_config = config.to_raft(checked.applied);
        raft_config.validate().map_err(|error| LoadError::Config(error.to_string()))?;

        let initial =
            raft::RaftState::new(checked.hard_state, codec::conf_state_to_raft(&recovered.conf_state));
        let entries = recovered.entries.into_iter().map(codec::entry_to_raft).collect();
        let tail = Tail::new(initial, recovered.snapshot, entries);
        assert_eq!(tail.last(), checked.last.index, "the tail ends where the recovered log ends");
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node =
            RawNode::new(&raft_config, tail, &logger).map_err(|error| LoadError::Raft(error.to_string()))?;

        let hard_state = HardState {
            term: Term(node.raft.term),
            vote: MemberId(node.raft.vote),
            commit: LogIndex(node.raft.raft_log.committed),
        };
        Ok(Core {
            reads: Reads::new(config.id, config.boot, config.election_ticks as u64),
            config,
            outputs: VecDeque::new(),
            flights: Flights::default(),
            last_seq: PersistSeq(0),
            hard_state,
            commit_unwritten: false,
            announced: (MemberId::NONE, hard_state.term, Role::Follower),
            handed_out: checked.applied,
            conf_index: checked.applied,
            installing: None,
            compactable: LogIndex(0),
            conf_changes_waiting: VecDeque::new(),
            takes_over_later: None,
            snapshots_wanted: BTreeSet::new(),
            held_back: VecDeque::new(),
            successor: MemberId::NONE,
            fed: BTreeMap::new(),
            node,
        })
    }

    /// Takes one input. Outputs come from [`poll`](Self::poll), best after a whole batch.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Message(message) => self.message(message),
            Input::Propose(proposals) => self.propose(proposals),
            Input::Note(proposal) => self.note(proposal),
            Input::Read(ticket) => self.reads.add(ticket),
            Input::Persisted(seq) => self.persisted(seq),
            Input::Applied { index, conf_changes } => self.applied(index, conf_changes),
            Input::Unreachable(peer) => self.node.report_unreachable(peer.0),
            Input::SnapshotStatus { to, ok } => self.snapshot_status(to, ok),
            Input::TransferLeader(to) => self.transfer_leader(to),
            Input::Campaign => self.campaign(),
            Input::Compact { through, conf_state: _ } => self.compact(through),
            Input::SnapshotInstalled { position } => self.snapshot_installed(position),
        }
    }

    /// The next thing to do, or None when everything is said.
    pub fn poll(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if self.node.has_ready() {
                self.take_ready();
                continue;
            }
            self.start_rounds();
            self.notice_wishes();
            if self.outputs.is_empty() && !self.node.has_ready() {
                return None;
            }
        }
    }

    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let mut peers = Vec::new();
        if raft.state == StateRole::Leader {
            peers.extend(raft.prs().iter().map(|(id, progress)| Peer {
                id: MemberId(*id),
                learner: raft.prs().conf().learners().contains(id),
                matched: LogIndex(progress.matched),
                next: LogIndex(progress.next_idx),
                state: match progress.state {
                    raft::ProgressState::Probe => PeerState::Probe,
                    raft::ProgressState::Replicate => PeerState::Replicate,
                    raft::ProgressState::Snapshot => PeerState::Snapshot,
                },
                recent_active: progress.recent_active || *id == raft.id,
            }));
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        Status {
            id: MemberId(raft.id),
            role: role(raft.state),
            term: Term(raft.term),
            leader: MemberId(raft.leader_id),
            voter: raft.promotable(),
            committed: LogIndex(log.committed),
            persisted: LogIndex(log.persisted),
            applied: LogIndex(log.applied),
            first_index: LogIndex(log.first_index()),
            last_index: LogIndex(log.last_index()),
            log_tail_bytes: raft.store().bytes(),
            lead_transferee: raft.lead_transferee.map(MemberId),
            peers,
        }
    }

    /// raft's configuration now, that is, with every conf change that was reported as applied.
    pub fn conf_state(&self) -> ConfState {
        codec::conf_state_from_raft(&self.node.raft.prs().conf().to_conf_state())
    }

    /// By raft's configuration now, this member votes and nobody else does.
    pub fn is_sole_voter(&self) -> bool {
        let raft = &self.node.raft;
        raft.promotable() && raft.prs().is_singleton()
    }

    /// For simulators: raft draws its election time-out from the thread's random numbers at each change of role or term; this replaces
    /// the current one. Brought into the range that raft itself draws from.
    pub fn set_randomized_election_timeout(&mut self, ticks: usize) {
        let from = self.config.election_ticks;
        self.node.raft.set_randomized_election_timeout(ticks.clamp(from, 2 * from - 1));
    }

    fn tick(&mut self) {
        if self.commit_unwritten {
            self.write_commit();
        }
        let raft = &self.node.raft;
        // While a snapshot is being installed the log between applied and its start is gone, and raft would look through it before a
        // campaign. A single voter elects itself on the spot, which raft allows only with its whole log on disk. Both wait.
        let must_wait = self.installing() || (raft.prs().is_singleton() && self.log_in_flight());
        if raft.state == StateRole::Leader || !must_wait {
            self.node.tick();
        }
        self.tick_fed();
        let authority = self.authority();
        let repeat = self.node.raft.state != StateRole::Leader && authority == Authority::Ready;
        let outputs = &mut self.outputs;
        let questions = self.reads.tick(authority, repeat, &mut |output| outputs.push_back(output));
        for context in questions {
            self.node.read_index(context.to_vec());
        }
    }

    fn campaign(&mut self) {
        let raft = &self.node.raft;
        if !raft.promotable() || self.installing() || (raft.prs().is_singleton() && self.log_in_flight()) {
            return self.report("cannot_campaign", self.config.id, "asked to campaign, but cannot now");
        }
        if let Err(error) = self.node.campaign() {
            self.report("cannot_campaign", self.config.id, error.to_string());
        }
    }

    fn transfer_leader(&mut self, to: MemberId) {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return self.report("transfer_refused", to, "asked to hand over leadership without having it");
        }
        if !raft.prs().conf().voters().contains(to.0) {
            return self.report(
                "transfer_refused",
                to,
                "asked to hand leadership to a member that does not vote",
            );
        }
        self.node.transfer_leader(to.0);
    }

    fn installing(&self) -> bool {
        self.installing.is_some() || self.node.raft.snap().is_some()
    }

    fn log_in_flight(&self) -> bool {
        self.flights.log_in_flight()
            || !self.node.raft.raft_log.unstable_entries().is_empty()
            || self.node.snap().is_some()
    }

    fn situation(&self) -> Situation {
        Situation { installing: self.installing(), log_in_flight: self.log_in_flight() }
    }

    fn report(&mut self, kind: &'static str, from: MemberId, text: impl Into<String>) {
        self.outputs.push_back(Output::Report(Report { kind, from, text: text.into() }));
    }

    /// Tells of a change, and gives back what hung on the old leader.
    fn notice_leader(&mut self) {
        let raft = &self.node.raft;
        let (leader, term, role) = (MemberId(raft.leader_id), Term(raft.term), role(raft.state));
        if self.announced == (leader, term, role) {
            return;
        }
        self.announced = (leader, term, role);
        self.outputs.push_back(Output::Leadership { leader, term, role });
        self.snapshots_wanted.clear();
        self.fed.clear();
        self.conf_changes_waiting.clear();
        let outputs = &mut self.outputs;
        self.reads.see_leader(term, leader, &mut |output| outputs.push_back(output));
    }
}

fn role(state: StateRole) -> Role {
    match state {
        StateRole::Follower => Role::Follower,
        StateRole::PreCandidate => Role::PreCandidate,
        StateRole::Candidate => Role::Candidate,
        StateRole::Leader => Role::Leader,
    }
}
