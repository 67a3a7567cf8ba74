//! What a leader sees of its voters, in a few numbers, for a line that people read.

use consensus::{Status, io::Role};
use types::MemberId;

use crate::handle::Handle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Voters of the configuration, the leader included.
    pub voters: usize,
    /// Of these, how many were heard of within an election timeout, the leader included. A look right after the leader began a new count
    /// sees fewer, so look more than once.
    pub heard: usize,
    /// The voter whose log is furthest behind, and by how many entries.
    pub slowest: Option<(MemberId, u64)>,
}

fn of(status: &Status) -> Option<Quorum> {
    if status.role != Role::Leader {
        return None;
    }
    let voters = || status.peers.iter().filter(|peer| !peer.learner);
    let others = || voters().filter(|peer| peer.id != status.id);
    let behind = others().map(|peer| (peer.id, status.last_index.0.saturating_sub(peer.matched.0)));
    Some(Quorum {
        voters: voters().count(),
        heard: 1 + others().filter(|peer| peer.recent_active).count(),
        slowest: behind.max_by_key(|(_, behind)| *behind),
    })
}

impl Handle {
    /// None where this member does not lead.
    pub fn quorum(&self) -> Option<Quorum> {
        of(&self.shared.raft_status.lock())
    }

    /// A peer has said something against this member that is being cleared up: it votes and acknowledges nothing meanwhile.
    pub fn is_quarantined(&self) -> bool {
        self.shared.sentinel.is_quarantined()
    }

    /// The leader has something else where this member has committed entries: it is silent for the rest of this start.
    pub fn is_contradicted(&self) -> bool {
        self.shared.sentinel.is_contradicted()
    }
}
