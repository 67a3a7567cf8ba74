//! From raft's ready to outputs, and back from the disk and from apply.

use api::raftpb::{self, MessageType};
use raft::{
    StateRole,
    eraftpb::{self, EntryType},
};
use types::{HardState, LogIndex, MemberId, Term};

use super::Core;
use crate::codec;
use crate::flight::Flight;
use crate::io::{Output, Persist, PersistSeq};

impl Core {
    /// Takes what raft has to say. The order of the outputs matters: confirmed reads first, then messages (so that peers write while we
    /// do), then our own write, then what can be applied.
    pub(super) fn take_ready(&mut self) {
        let mut ready = self.node.ready();
        let number = ready.number();

        for state in ready.take_read_states() {
            let confirmed = self.reads.confirmed(&state.request_ctx, LogIndex(state.index));
            self.outputs.extend(confirmed);
        }

        let must_sync = ready.must_sync();
        let term_changed = match ready.hs() {
            Some(hard_state) => self.take_hard_state(hard_state),
            None => false,
        };
        let snapshot = (!ready.snapshot().is_empty()).then(|| {
            let metadata = ready.snapshot().get_metadata();
            (
                codec::snapshot_position(ready.snapshot()),
                codec::conf_state_from_raft(metadata.get_conf_state()),
            )
        });
        if let Some((position, _)) = &snapshot {
            self.node.mut_store().restore(*position);
            self.installing = Some(*position);
            self.conf_index = position.index;
            self.handed_out = position.index;
        }
        let entries = ready.take_entries();
        self.node.mut_store().append(&entries);

        // Whoever acts on a change of membership relies on it: a member that leaves because of it does not come back to vote in the
        // configuration before. So nobody is shown it by this member before this member's disk knows that it is committed.
        let committed = ready.take_committed_entries();
        let changes_conf = committed.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal);

        let mut write = None;
        if must_sync || changes_conf {
            let hard_state =
                (term_changed || changes_conf || self.commit_unwritten).then_some(self.hard_state);
            self.commit_unwritten = false;
            let mut flight = Flight::new(self.next_seq(), number);
            flight.sync = true;
            flight.term = term_changed;
            flight.log = snapshot.is_some() || !entries.is_empty();
            flight.bytes = entries.iter().map(crate::log::cost).sum();
            flight.install = snapshot.clone();
            write = Some(Persist {
                seq: flight.seq,
                snapshot,
                entries: entries.into_iter().map(codec::entry_from_raft).collect(),
                hard_state,
                must_sync: true,
            });
            self.flights.push(flight);
        }
        let covered = self.flights.cover(number);

        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        self.node.advance_append_async(ready);
        if !covered {
            self.node.on_persist_ready(number);
        }

        self.send(messages);
        // After the answers to forwarded reads were taken out: a new leader or term forgets them.
        self.notice_leader();
        let waits_for = write.as_ref().map(|write| write.seq).filter(|_| changes_conf);
        self.outputs.extend(write.map(Output::Persist));
        self.hand_out(committed, waits_for);
        self.trim();
    }

    /// Remembers the hard state; true when its term or vote changed.
    fn take_hard_state(&mut self, hard_state: &eraftpb::HardState) -> bool {
        let now = HardState {
            term: Term(hard_state.term),
            vote: MemberId(hard_state.vote),
            commit: LogIndex(hard_state.commit),
        };
        let before = std::mem::replace(&mut self.hard_state, now);
        self.commit_unwritten |= before.commit != now.commit;
        (before.term, before.vote) != (now.term, now.vote)
    }

    fn next_seq(&mut self) -> PersistSeq {
        self.last_seq = PersistSeq(self.last_seq.0 + 1);
        self.last_seq
    }

    /// The commit alone, in case nothing else is written for a while.
    pub(super) fn write_commit(&mut self) {
        self.commit_unwritten = false;
        let seq = self.next_seq();
        // Zero: it covers no ready of its own, those before it are covered by the write before it, if there is one.
        self.flights.push(Flight::new(seq, 0));
        self.outputs.push_back(Output::Persist(Persist {
            seq,
            snapshot: None,
            entries: Vec::new(),
            hard_state: Some(self.hard_state),
            must_sync: false,
        }));
    }

    fn send(&mut self, messages: Vec<eraftpb::Message>) {
        let mut free = Vec::with_capacity(messages.len());
        for message in messages {
            let Some((kind, message)) = self.leaving(message) else { continue };
            free.extend(self.flights.hold(kind, message));
        }
        if !free.is_empty() {
            self.outputs.push_back(Output::Send(free));
        }
    }

    fn leaving(&mut self, message: eraftpb::Message) -> Option<(MessageType, raftpb::Message)> {
        let mut message = codec::message_to_wire(message)?;
        let kind = codec::wire_type(&message).ok()?;
        if kind == MessageType::MsgReadIndexResp {
            let data = &mut message.entries.first_mut()?.data;
            let answer = self.reads.answer(data.as_ref()?)?;
            *data = Some(answer);
        }
        Some((kind, message))
    }

    /// At once, unless they or entries before them wait for the disk.
    fn hand_out(&mut self, committed: Vec<eraftpb::Entry>, waits_for: Option<PersistSeq>) {
        let (Some(first), Some(last)) = (committed.first(), committed.last()) else { return };
        assert_eq!(first.index, self.handed_out.0 + 1, "entries are handed out without gaps");
        self.handed_out = LogIndex(last.index);
        let entries = committed.into_iter().map(codec::entry_from_raft).collect();
        match waits_for.or_else(|| self.held_back.back().map(|(seq, _)| *seq)) {
            Some(seq) => self.held_back.push_back((seq, entries)),
            None => self.outputs.push_back(Output::Apply(entries)),
        }
    }

    pub(super) fn persisted(&mut self, seq: PersistSeq) {
        assert!(seq <= self.last_seq, "persisted {seq:?} was issued, the last is {:?}", self.last_seq);
        let landed = self.flights.land(seq);
        self.node.on_persist_ready(landed.ready);
        if !landed.messages.is_empty() {
            self.outputs.push_back(Output::Send(landed.messages));
        }
        while self.held_back.front().is_some_and(|(waits_for, _)| *waits_for <= seq) {
            let Some((_, entries)) = self.held_back.pop_front() else { break };
            self.outputs.push_back(Output::Apply(entries));
        }
        for (position, conf_state) in landed.installs {
            self.outputs.push_back(Output::InstallSnapshot { position, conf_state });
        }
    }

    pub(super) fn applied(
        &mut self,
        index: LogIndex,
        conf_changes: Vec<(LogIndex, Option<raftpb::ConfChangeV2>)>,
    ) {
        assert!(
            index <= self.handed_out,
            "applied {index} was handed out, which ends at {}",
            self.handed_out
        );
        // Of a snapshot that came in this very turn raft has the configuration already, and the core has not looked at it yet.
        let restored = self.node.raft.raft_log.unstable_snapshot().as_ref();
        let restored = restored.map_or(0, |snapshot| snapshot.get_metadata().index);
        self.conf_index = self.conf_index.max(LogIndex(restored));
        for (at, change) in conf_changes {
            assert!(at <= index, "the conf change at {at} is within what was applied, up to {index}");
            // A snapshot that came in the meantime already holds it.
            if at <= self.conf_index {
                continue;
            }
            self.conf_index = at;
            if let Some(change) = change {
                self.change_conf(at, &change);
            }
        }
        if index.0 > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index.0);
            self.trim();
            self.append_waiting_conf_change();
            self.take_over_now();
        }
    }

    fn change_conf(&mut self, at: LogIndex, change: &raftpb::ConfChangeV2) {
        let change = match codec::conf_change_to_raft(change) {
            Ok(Some(change)) => change,
            Ok(None) => return,
            Err(error) => return self.report("conf_change", self.config.id, format!("at {at}: {error}")),
        };
        // Every member refuses the same change, since all have the same configuration here.
        if let Err(error) = self.node.apply_conf_change(&change) {
            return self.report("conf_change", self.config.id, format!("at {at}: {error}"));
        }
        if !self.node.raft.promotable() && self.node.raft.state != StateRole::Follower {
            self.step_down();
        }
    }
}
