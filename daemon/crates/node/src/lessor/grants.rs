//! Grants that are in the log and not applied. A client may revoke a lease and grant it anew in one breath; while neither is applied the
//! lessor knows the former one alone, finds it to be over perhaps, and what it proposes would stand behind the grant and end the new one.

use std::collections::{HashMap, VecDeque};

use api::etcdserverpb::InternalRaftRequest;
use prost::Message;
use types::{Entry, EntryKind, LeaseId, LogIndex};

/// First bytes of a request that may be a grant: its field, or the request's old id before it. All others are not looked into.
const FIRST_BYTES: [u8; 2] = [0x42, 0x08];

#[derive(Default)]
pub(crate) struct Grants {
    /// Ascending; as long as the part of the log that apply has not seen.
    order: VecDeque<(LogIndex, LeaseId)>,
    count: HashMap<LeaseId, usize>,
}

impl Grants {
    /// These came into this member's log.
    pub(crate) fn appended(&mut self, entries: &[Entry]) {
        for entry in entries {
            let may_grant = entry.data.first().is_some_and(|first| FIRST_BYTES.contains(first));
            if entry.kind != EntryKind::Normal || !may_grant {
                continue;
            }
            let request = InternalRaftRequest::decode(entry.data.clone()).ok();
            if let Some(grant) = request.and_then(|request| request.lease_grant) {
                self.order.push_back((entry.index, LeaseId(grant.id)));
                *self.count.entry(LeaseId(grant.id)).or_default() += 1;
            }
        }
    }

    /// Everything up to there is applied, and the lessor knows of it.
    pub(crate) fn applied(&mut self, through: LogIndex) {
        // An overwritten entry may stand behind a later one; it stays until its index is applied, which only delays.
        while let Some((index, id)) = self.order.front().copied()
            && index <= through
        {
            self.order.pop_front();
            if let Some(count) = self.count.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(&id);
                }
            }
        }
    }

    pub(crate) fn hold(&self, id: LeaseId) -> bool {
        self.count.contains_key(&id)
    }
}

#[cfg(test)]
mod tests {
    use api::etcdserverpb as pb;
    use types::Term;

    use super::*;

    fn entry(index: u64, request: pb::InternalRaftRequest) -> Entry {
        let data = request.encode_to_vec().into();
        Entry { term: Term(1), index: LogIndex(index), kind: EntryKind::Normal, data }
    }

    #[test]
    fn a_grant_is_known_from_when_it_is_in_the_log_until_it_is_applied() {
        let grant = |id, old_id| pb::InternalRaftRequest {
            id: old_id,
            header: Some(pb::RequestHeader { id: 5, ..Default::default() }),
            lease_grant: Some(pb::LeaseGrantRequest { id, ttl: 9 }),
            ..Default::default()
        };
        let put = pb::InternalRaftRequest { put: Some(pb::PutRequest::default()), ..Default::default() };
        let mut grants = Grants::default();
        grants.appended(&[
            entry(1, grant(7, 0)),
            entry(2, put),
            entry(3, grant(8, 4)),
            entry(4, grant(7, 0)),
        ]);
        assert!(grants.hold(LeaseId(7)) && grants.hold(LeaseId(8)) && !grants.hold(LeaseId(9)));
        grants.applied(LogIndex(3));
        assert!(grants.hold(LeaseId(7)) && !grants.hold(LeaseId(8)));
        grants.applied(LogIndex(4));
        assert!(!grants.hold(LeaseId(7)) && grants.order.is_empty());
    }
}
