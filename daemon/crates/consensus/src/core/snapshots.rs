//! Snapshots out and in, and forgetting old log.
//!
//! raft asks for a snapshot through its storage, gets "not now", and the wish is noted. The driver is asked once, makes a snapshot of its
//! state at some applied position, and calls [`Core::snapshot_message`] with it: that is the moment when raft's progress for the peer
//! enters the snapshot state, at the position that is really sent. So raft never holds a snapshot, and there is none to go stale.

use api::raftpb;
use raft::{ProgressState, SnapshotStatus, StateRole};
use types::{ConfState, LogIndex, LogPosition, MemberId};

use super::Core;
use crate::codec;
use crate::io::Output;

/// Why no snapshot goes to a peer. None of these is an error: things changed while it was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSnapshot {
    #[error("this member does not lead")]
    NotLeader,
    #[error("member {0} is not in the configuration")]
    UnknownPeer(MemberId),
    #[error("member {peer} already has everything up to {matched}")]
    PeerIsAhead { peer: MemberId, matched: LogIndex },
    #[error("a snapshot at {position} is not one of this log, which is committed up to {committed}")]
    NotOfThisLog { position: LogPosition, committed: LogIndex },
    #[error("a snapshot at {position} is too old: the log begins at {first}")]
    TooOld { position: LogPosition, first: LogIndex },
}

/// A peer that is fed by snapshot. From the moment at which the snapshot begins to be made until the peer has caught up, what comes after
/// it is not forgotten: making and sending one takes minutes, and a peer that needs another one at the end of it never arrives.
pub(super) struct Fed {
    /// The snapshot will be at least here.
    from: LogIndex,
    /// Ticks since the peer was last heard of.
    silent: usize,
}

impl Core {
    /// The MsgSnap to stream, with `data` left empty: a snapshot of the state at `position`, where the configuration was `conf_state`. From
    /// now on raft sends nothing else to the peer, until [`Input::SnapshotStatus`](crate::io::Input::SnapshotStatus).
    ///
    /// # Errors
    ///
    /// When the peer no longer needs it, or this is none to give. The driver still owes a SnapshotStatus.
    pub fn snapshot_message(
        &mut self,
        to: MemberId,
        position: LogPosition,
        conf_state: &ConfState,
    ) -> Result<raftpb::Message, NoSnapshot> {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader {
            return Err(NoSnapshot::NotLeader);
        }
        let committed = LogIndex(raft.raft_log.committed);
        let first = raft.store().first();
        if position.index.next() < first {
            return Err(NoSnapshot::TooOld { position, first });
        }
        if position.index > committed || raft.store().term_at(position.index) != Some(position.term) {
            return Err(NoSnapshot::NotOfThisLog { position, committed });
        }
        let (id, term) = (raft.id, raft.term);
        let Some(progress) = raft.mut_prs().get_mut(to.0).filter(|_| to.0 != id) else {
            return Err(NoSnapshot::UnknownPeer(to));
        };
        if progress.matched >= position.index.0 {
            return Err(NoSnapshot::PeerIsAhead { peer: to, matched: LogIndex(progress.matched) });
        }
        progress.become_snapshot(position.index.0);
        Ok(raftpb::Message {
            r#type: Some(raftpb::MessageType::MsgSnap as i32),
            to: Some(to.0),
            from: Some(id),
            term: Some(term),
            log_term: Some(0),
            index: Some(0),
            entries: Vec::new(),
            commit: Some(0),
            snapshot: Some(raftpb::Snapshot {
                data: None,
                metadata: Some(raftpb::SnapshotMetadata {
                    conf_state: Some(codec::conf_state_to_wire(conf_state)),
                    index: Some(position.index.0),
                    term: Some(position.term.0),
                }),
            }),
            reject: Some(false),
            reject_hint: Some(0),
            context: None,
            vote: None,
            responses: Vec::new(),
        })
    }

    /// Passes on, once per peer, that raft wants a snapshot sent.
    pub(super) fn notice_wishes(&mut self) {
        for to in self.node.mut_store().take_wishes() {
            if self.node.raft.state == StateRole::Leader && self.snapshots_wanted.insert(to) {
                let from = LogIndex(self.node.raft.raft_log.applied);
                self.fed.insert(to, Fed { from, silent: 0 });
                self.outputs.push_back(Output::SendSnapshot { to });
            }
        }
    }

    pub(super) fn snapshot_status(&mut self, to: MemberId, ok: bool) {
        self.snapshots_wanted.remove(&to);
        if !ok {
            self.fed.remove(&to);
        }
        self.node.report_snapshot(to.0, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    pub(super) fn snapshot_installed(&mut self, position: LogPosition) {
        if self.installing != Some(position) {
            return self.report(
                "install",
                self.config.id,
                format!("installed {position}, which was not asked for"),
            );
        }
        self.installing = None;
        self.node.advance_apply_to(position.index.0);
    }

    pub(super) fn compact(&mut self, through: LogPosition) {
        self.compactable = self.compactable.max(through.index);
        self.trim();
    }

    /// Forgets what may be forgotten. Called whenever the log grew or more of it became superfluous.
    pub(super) fn trim(&mut self) {
        let raft = &mut self.node.raft;
        let through = LogIndex(self.compactable.0.min(raft.raft_log.applied));
        let wanted = LogIndex(through.0.saturating_sub(self.config.log_tail_entries_keep));
        // Has caught up: from here on the usual tail is enough for it.
        let prs = raft.prs();
        let needs = |id: &MemberId, fed: &Fed| {
            let progress = prs.get(id.0)?;
            let matched = LogIndex(progress.matched);
            let arrived = progress.state == ProgressState::Replicate && matched >= through;
            let sent = match progress.state {
                ProgressState::Snapshot => LogIndex(progress.pending_snapshot),
                _ => fed.from,
            };
            (!arrived).then(|| sent.max(matched))
        };
        let snapshots_wanted = &self.snapshots_wanted;
        self.fed.retain(|id, fed| snapshots_wanted.contains(id) || needs(id, fed).is_some());
        if raft.raft_log.store.bytes() > self.config.log_feed_bytes_max {
            self.fed.clear();
        }
        let lowest = self.fed.iter().filter_map(|(id, fed)| needs(id, fed)).min();
        let (wanted, bytes_max) = match lowest {
            // Below what is kept for the peer nothing is held back: forgetting goes on in order.
            Some(lowest) => (wanted.min(lowest), self.config.log_feed_bytes_max),
            None => (wanted, self.config.log_tail_bytes_max),
        };
        raft.mut_store().forget(wanted, through, bytes_max);
    }

    /// A peer that is gone is not waited for: it gets another snapshot when it comes back. Raft forgets once in an election timeout whom it
    /// heard of, and an answer to a heartbeat follows soon.
    pub(super) fn tick_fed(&mut self) {
        let prs = self.node.raft.prs();
        let silent_max = self.config.election_ticks;
        self.fed.retain(|id, fed| {
            let heard = prs.get(id.0).is_some_and(|progress| progress.recent_active);
            fed.silent = if heard { 0 } else { fed.silent + 1 };
            fed.silent <= silent_max
        });
    }
}
