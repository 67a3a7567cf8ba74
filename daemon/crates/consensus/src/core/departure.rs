//! How a leader leaves the configuration: it hands leadership over first, and its successor removes it.
//!
//! A leader that applied its own removal could not lead any more, and nobody but it might know that the removal is committed: entries
//! behind the removal would make its log longer than those of all who may still be elected. So the usual removal of a leader is that of a
//! follower. A removal that a former leader left in the log is applied all the same; then this member steps down, and its votes tell the
//! others how far the log is committed.

use api::raftpb::{self, ConfChangeType};
use prost::Message as _;
use raft::StateRole;
use types::MemberId;

use super::Core;

impl Core {
    /// Whether a proposed conf change takes this member's vote while others have one.
    pub(super) fn is_to_remove_itself(&self, data: &[u8]) -> bool {
        let raft = &self.node.raft;
        let others_vote = raft.promotable() && !raft.prs().is_singleton();
        others_vote
            && raftpb::ConfChange::decode(data).is_ok_and(|change| {
                change.node_id == Some(raft.id)
                    && change.r#type == Some(ConfChangeType::ConfChangeRemoveNode as i32)
            })
    }

    /// Leadership goes to the voter that has most of the log and was heard lately; after an attempt in vain another one is tried, if there
    /// is one. raft gives each attempt an election time-out.
    pub(super) fn hand_over(&mut self) {
        if self.node.raft.lead_transferee.is_some() {
            return;
        }
        let other = self.best_voter(self.successor);
        if let Some(to) = other.or_else(|| self.best_voter(MemberId::NONE)) {
            self.successor = to;
            self.node.transfer_leader(to.0);
        }
    }

    /// This member no longer votes. raft-rs would leave it leader, and panic when it next counts itself for a commit. The best of the
    /// others is told to campaign at once, so that nobody waits for an election time-out.
    pub(super) fn step_down(&mut self) {
        let best = self.best_voter(MemberId::NONE);
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader
            && let Some(best) = best
        {
            raft.send_timeout_now(best.0);
        }
        let term = raft.term;
        raft.become_follower(term, 0);
    }

    fn best_voter(&self, except: MemberId) -> Option<MemberId> {
        let raft = &self.node.raft;
        let voters = raft.prs().conf().voters();
        let heard = raft.prs().iter().filter(|(id, progress)| {
            voters.contains(**id) && **id != raft.id && **id != except.0 && progress.recent_active
        });
        let best = heard.max_by_key(|(id, progress)| (progress.matched, **id));
        best.map(|(id, _)| MemberId(*id))
    }
}
