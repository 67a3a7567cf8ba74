//! What comes in from peers and clients: messages, proposals, reads.

use api::raftpb::{self, MessageType};
use bytes::Bytes;
use prost::Message as _;
use raft::{GetEntriesContext, StateRole, eraftpb};
use types::{EntryKind, LogIndex, LogPosition, MemberId, Term};

use super::Core;
use crate::codec;
use crate::guard;
use crate::io::{DropReason, Output, Proposal, ProposalId};
use crate::reads::{Authority, Forwarded};

impl Core {
    pub(super) fn message(&mut self, message: raftpb::Message) {
        let from = MemberId(message.from.unwrap_or_default());
        let snapshot = snapshot_position(&message);
        let kind = match guard::check(&self.node.raft, self.situation(), &message) {
            Ok(kind) => kind,
            Err(refused) => {
                self.report(refused.kind, from, refused.text);
                if let Some(position) = snapshot {
                    self.ignore_snapshot(position);
                }
                return;
            }
        };
        if kind == MessageType::MsgReadIndex && self.node.raft.state == StateRole::Leader {
            let context = message.entries.into_iter().next().and_then(|entry| entry.data).unwrap_or_default();
            return self.serve_forwarded(Forwarded { from, context });
        }
        if kind == MessageType::MsgApp && !message.entries.is_empty() && self.disk_is_behind() {
            // As if it were lost: the leader sends it again.
            return self.report(
                "disk_behind",
                from,
                "entries are not taken while this member's disk does not keep up",
            );
        }
        let mut message = match codec::message_to_raft(message) {
            Ok(message) => message,
            Err(error) => return self.report("message", from, error.to_string()),
        };
        if kind == MessageType::MsgProp && self.node.raft.state == StateRole::Leader {
            let mut entries = message.take_entries().into_vec();
            let asked = entries.len();
            entries.retain(|entry| {
                entry.get_entry_type() == eraftpb::EntryType::EntryNormal
                    || !self.is_to_remove_itself(&entry.data)
            });
            let hands_over = entries.len() < asked;
            let entries = self.keep_conf_changes_apart(from, entries);
            if !entries.is_empty() && !self.append_as_leader(entries) {
                self.report("proposal_dropped", from, "a forwarded proposal cannot be taken now");
            }
            if hands_over {
                self.hand_over();
            }
            return;
        }
        if kind == MessageType::MsgAppResp && !guard::keep_next_above_match(&mut self.node.raft, &mut message)
        {
            return;
        }
        if kind == MessageType::MsgTimeoutNow && self.conf_change_unapplied() {
            // raft would drop it without a word, and the leader would wait for a successor in vain. Its term tells whether it still counts.
            self.takes_over_later = Some(message);
            return;
        }
        match self.node.step(message) {
            // An answer from a member that is no longer one, a proposal that came to the wrong place: the sender asks again.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
            Err(error) => self.report("message", from, error.to_string()),
        }
        if let Some(position) = snapshot {
            let accepted =
                self.node.raft.snap().is_some_and(|snap| codec::snapshot_position(snap) == position);
            if !accepted {
                self.ignore_snapshot(position);
            }
        }
    }

    /// A copy of the snapshot that is being installed is not told of: whoever threw "its" bytes away would take those in use (AP20).
    fn ignore_snapshot(&mut self, position: LogPosition) {
        let pending = self.node.raft.snap().map(codec::snapshot_position).or(self.installing);
        if pending != Some(position) {
            self.outputs.push_back(Output::SnapshotIgnored { position });
        }
    }

    pub(super) fn propose(&mut self, proposals: Vec<Proposal>) {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader;
        if !leads && (raft.state != StateRole::Follower || raft.leader_id == 0) {
            return self.drop_proposals(proposals.iter().map(|p| p.id).collect(), DropReason::NoLeader);
        }
        if leads && raft.lead_transferee.is_some() {
            return self.drop_proposals(proposals.iter().map(|p| p.id).collect(), DropReason::Transferring);
        }

        let mut conf_change_open = leads && raft.has_pending_conf();
        let mut hands_over = None;
        let mut batch = Batch::default();
        for proposal in proposals {
            match proposal.kind {
                EntryKind::Normal => {}
                EntryKind::ConfChange if raftpb::ConfChange::decode(proposal.data.clone()).is_err() => {
                    self.drop_proposals(vec![proposal.id], DropReason::Malformed);
                    continue;
                }
                EntryKind::ConfChange if conf_change_open => {
                    self.drop_proposals(vec![proposal.id], DropReason::ConfChangePending);
                    continue;
                }
                EntryKind::ConfChange if leads && self.is_to_remove_itself(&proposal.data) => {
                    conf_change_open = true;
                    hands_over = Some(proposal.id);
                    continue;
                }
                EntryKind::ConfChange => conf_change_open = true,
                EntryKind::ConfChangeV2 => {
                    self.drop_proposals(vec![proposal.id], DropReason::Malformed);
                    continue;
                }
            }
            // What travels to the leader must fit into a message; what is appended here is cut by raft when it is sent.
            let bytes = proposal.data.len() as u64;
            if !leads && !batch.entries.is_empty() && batch.bytes + bytes > self.config.append_bytes_max {
                self.step_batch(std::mem::take(&mut batch));
            }
            batch.bytes += bytes;
            batch.ids.push(proposal.id);
            batch.entries.push(codec::proposal_to_raft(proposal.kind, proposal.data));
        }
        self.step_batch(batch);
        if let Some(id) = hands_over {
            self.drop_proposals(vec![id], DropReason::HandsOver);
            self.hand_over();
        }
    }

    /// See [`Input::Note`](crate::io::Input::Note). raft allows one unapplied conf change because two could make quorums that do not
    /// meet; one that touches no quorum need not count.
    pub(super) fn note(&mut self, proposal: Proposal) {
        let raft = &self.node.raft;
        let update = raftpb::ConfChangeType::ConfChangeUpdateNode as i32;
        let is_update = raftpb::ConfChange::decode(proposal.data.clone())
            .is_ok_and(|change| change.r#type == Some(update) && proposal.kind == EntryKind::ConfChange);
        let refused = if !is_update {
            Some(DropReason::Malformed)
        } else if raft.state != StateRole::Leader {
            Some(DropReason::NoLeader)
        } else if raft.lead_transferee.is_some() {
            Some(DropReason::Transferring)
        } else if raft.has_pending_conf() {
            Some(DropReason::ConfChangePending)
        } else {
            let pending = raft.pending_conf_index;
            let taken = self.append_as_leader(vec![codec::proposal_to_raft(proposal.kind, proposal.data)]);
            self.node.raft.pending_conf_index = pending;
            (!taken).then_some(DropReason::TooMuchUncommitted)
        };
        if let Some(reason) = refused {
            self.drop_proposals(vec![proposal.id], reason);
        }
    }

    fn step_batch(&mut self, batch: Batch) {
        if batch.entries.is_empty() {
            return;
        }
        if self.node.raft.state == StateRole::Leader {
            if !self.append_as_leader(batch.entries) {
                self.drop_proposals(batch.ids, DropReason::TooMuchUncommitted);
            }
            return;
        }
        let mut message = eraftpb::Message { from: self.config.id.0, ..eraftpb::Message::default() };
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.set_entries(batch.entries.into());
        if self.node.step(message).is_err() {
            self.drop_proposals(batch.ids, DropReason::NoLeader);
        }
    }

    /// Forwarded conf changes wait here until the one before is applied. raft would make empty entries of them, and who forwarded them would
    /// never learn of it: not even a client that makes one change after the other through two followers is safe from that, since a follower
    /// may have applied the first one before this leader has. Answers what can be appended now.
    fn keep_conf_changes_apart(
        &mut self,
        from: MemberId,
        entries: Vec<eraftpb::Entry>,
    ) -> Vec<eraftpb::Entry> {
        let mut open = self.node.raft.has_pending_conf() || !self.conf_changes_waiting.is_empty();
        let mut now = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.get_entry_type() == eraftpb::EntryType::EntryNormal {
                now.push(entry);
            } else if !open {
                open = true;
                now.push(entry);
            } else if self.conf_changes_waiting.len() < CONF_CHANGES_WAITING_MAX
                && entry.data.len() <= CONF_CHANGE_WAITING_BYTES_MAX
            {
                self.conf_changes_waiting.push_back(entry);
            } else {
                self.report("proposal_dropped", from, "too many forwarded changes of members wait");
            }
        }
        now
    }

    /// After something was applied: the next conf change that waits. One that cannot be appended is lost, as a message may be.
    pub(super) fn append_waiting_conf_change(&mut self) {
        if self.conf_changes_waiting.is_empty()
            || self.node.raft.state != StateRole::Leader
            || self.node.raft.has_pending_conf()
        {
            return;
        }
        if let Some(entry) = self.conf_changes_waiting.pop_front()
            && !self.append_as_leader(vec![entry])
        {
            self.report(
                "proposal_dropped",
                self.config.id,
                "a forwarded change of members cannot be taken now",
            );
        }
    }

    /// Whether raft would refuse to campaign: something committed and not applied here may be a change of the voters.
    fn conf_change_unapplied(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let (from, to) = (log.applied + 1, log.committed + 1);
        let entries = if from < to {
            log.slice(from, to, None, GetEntriesContext::empty(false))
        } else {
            Ok(Vec::new())
        };
        let is_conf = |entry: &eraftpb::Entry| entry.get_entry_type() != eraftpb::EntryType::EntryNormal;
        entries.is_ok_and(|entries| entries.iter().any(is_conf))
    }

    /// After something was applied: a leader's word to take over that had to wait for it.
    pub(super) fn take_over_now(&mut self) {
        // A snapshot came in between: raft would look for what it replaced. As for a word that comes now, the leader tries again.
        let singleton = self.node.raft.prs().is_singleton();
        if self.installing() || (singleton && self.log_in_flight()) {
            self.takes_over_later = None;
        }
        if self.takes_over_later.is_some()
            && !self.conf_change_unapplied()
            && let Some(message) = self.takes_over_later.take()
            && let Err(error) = self.node.step(message)
        {
            self.report("message", self.config.id, error.to_string());
        }
    }

    /// What raft does with a MsgPropose on the leader, except that it never looks into a conf change: raft-rs would parse etcd's bytes by
    /// its own schema, where a learner (3) does not exist, and drop it. As in raft, a conf change while another may be unapplied becomes an
    /// empty entry; nobody comes here with one, since ours are refused and forwarded ones wait. False when nothing was appended.
    fn append_as_leader(&mut self, mut entries: Vec<eraftpb::Entry>) -> bool {
        let behind = self.disk_is_behind();
        let raft = &mut self.node.raft;
        if raft.lead_transferee.is_some() || raft.prs().get(raft.id).is_none() || behind {
            return false;
        }
        let mut pending = raft.pending_conf_index;
        for (index, entry) in (raft.raft_log.last_index() + 1..).zip(&mut entries) {
            if entry.get_entry_type() == eraftpb::EntryType::EntryNormal {
                continue;
            }
            if pending > raft.raft_log.applied {
                *entry = codec::proposal_to_raft(EntryKind::Normal, Bytes::new());
            } else {
                pending = index;
            }
        }
        if !raft.append_entry(&mut entries) {
            return false;
        }
        raft.pending_conf_index = pending;
        raft.bcast_append();
        true
    }

    fn disk_is_behind(&self) -> bool {
        self.flights.bytes() >= self.config.unpersisted_bytes_max
    }

    fn drop_proposals(&mut self, ids: Vec<ProposalId>, reason: DropReason) {
        if !ids.is_empty() {
            self.outputs.push_back(Output::ProposalDropped { ids, reason });
        }
    }

    pub(super) fn authority(&self) -> Authority {
        let raft = &self.node.raft;
        if raft.leader_id == 0 {
            Authority::NoLeader
        } else if raft.state == StateRole::Leader && !raft.commit_to_current_term() {
            Authority::NoCommitInTerm
        } else {
            Authority::Ready
        }
    }

    /// Starts what reads can be started: a fresh leader confirms none before the first commit of its term (regression RD03).
    pub(super) fn start_rounds(&mut self) {
        if self.authority() != Authority::Ready {
            return;
        }
        if self.reads.has_parked() {
            for forwarded in self.reads.take_parked() {
                self.serve_forwarded(forwarded);
            }
        }
        while self.reads.wants_round() {
            let context = self.reads.start();
            if !self.step_read(MemberId::NONE, context)
                && let Some(output) = self.reads.dropped()
            {
                self.outputs.push_back(output);
            }
        }
    }

    /// A follower's round, asked of the quorum under a context of ours.
    fn serve_forwarded(&mut self, forwarded: Forwarded) {
        let from = forwarded.from;
        if self.authority() == Authority::NoCommitInTerm {
            if !self.reads.park(forwarded) {
                self.report(
                    "reads_full",
                    from,
                    "too many forwarded reads wait for the first commit of the term",
                );
            }
            return;
        }
        let Some(context) = self.reads.forward(forwarded) else {
            return self.report("reads_full", from, "too many forwarded reads wait for the quorum");
        };
        if !self.step_read(from, context.clone()) {
            self.reads.answer(&context);
        }
    }

    /// raft drops a read without a word; only its counters tell. False when it did.
    fn step_read(&mut self, from: MemberId, context: Bytes) -> bool {
        let mut message = eraftpb::Message { from: from.0, ..eraftpb::Message::default() };
        message.set_msg_type(eraftpb::MessageType::MsgReadIndex);
        message.set_entries(vec![codec::proposal_to_raft(EntryKind::Normal, context)].into());
        let raft = &mut self.node.raft;
        let before = (raft.pending_read_count(), raft.ready_read_count(), raft.msgs.len());
        let stepped = raft.step(message).is_ok();
        stepped && before != (raft.pending_read_count(), raft.ready_read_count(), raft.msgs.len())
    }
}

/// Forwarded conf changes that wait for their turn: far more than anybody changes members at a time.
const CONF_CHANGES_WAITING_MAX: usize = 64;

/// One of them, at most: a few URLs are some hundred bytes, so that all of them are at most 4 MiB.
const CONF_CHANGE_WAITING_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Batch {
    bytes: u64,
    ids: Vec<ProposalId>,
    entries: Vec<eraftpb::Entry>,
}

/// What a MsgSnap says it holds.
fn snapshot_position(message: &raftpb::Message) -> Option<LogPosition> {
    if message.r#type != Some(MessageType::MsgSnap as i32) {
        return None;
    }
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    Some(LogPosition {
        term: Term(metadata.and_then(|metadata| metadata.term).unwrap_or_default()),
        index: LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or_default()),
    })
}
