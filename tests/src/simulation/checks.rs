//! What must hold in every history. Each check watches on its own and fails with the fact that broke it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use api::raftpb::{self, MessageType};
use consensus::io::Report;
use state_machine::membership::Membership;
use state_machine::rows::meta;
use state_machine::store::{Store, Table};
use state_machine::{Memory, Reader};
use types::{ConfState, Entry, LogIndex, LogPosition, MemberId, Term};

use super::disk::Disk;

/// At most one leader in a term.
#[derive(Default)]
pub struct OneLeader {
    leaders: BTreeMap<Term, u64>,
}

impl OneLeader {
    pub fn leads(&mut self, member: u64, term: Term) {
        let leader = *self.leaders.entry(term).or_insert(member);
        assert_eq!(leader, member, "term {term} has one leader");
    }

    pub fn count(&self) -> usize {
        self.leaders.len()
    }
}

/// What one member applied at an index, every member applies there, for ever. So nothing committed is lost or replaced.
#[derive(Default)]
pub struct Committed {
    entries: BTreeMap<LogIndex, Entry>,
    requests: BTreeMap<u64, LogIndex>,
}

impl Committed {
    pub fn applies(&mut self, member: u64, entry: &Entry, request: Option<u64>) {
        let known = self.entries.entry(entry.index).or_insert_with(|| entry.clone());
        assert_eq!(known, entry, "{member} applies at {} what others applied there", entry.index);
        if let Some(request) = request {
            let at = *self.requests.entry(request).or_insert(entry.index);
            assert_eq!(at, entry.index, "request {request} is in the log once");
        }
    }

    pub fn last(&self) -> LogIndex {
        self.entries.keys().next_back().copied().unwrap_or_default()
    }

    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.entries.get(&index).map(|entry| entry.term)
    }

    pub fn holds(&self, request: u64) -> Option<LogIndex> {
        self.requests.get(&request).copied()
    }
}

/// What must be equal on all members at one index: the readable history, and the tables apart from this member's own marks. How far
/// compaction has come with removing rows and with hashing them is each member's own.
pub fn content(reader: &Reader<Memory>) -> u32 {
    let own = [meta::CONSISTENT_INDEX, meta::TERM, meta::FINISHED_COMPACT];
    let mut hasher = DefaultHasher::new();
    reader.hash_kv(0).expect("the present is never compacted").hash.hash(&mut hasher);
    for table in Table::ALL {
        for (key, value) in reader.store().table(table).expect("memory does not fail") {
            let is_own = own.contains(&key.as_ref()) || key.starts_with(b"cairn/compaction_");
            if table != Table::Meta || !is_own {
                (table, key, value).hash(&mut hasher);
            }
        }
    }
    hasher.finish() as u32
}

/// At the same index all members hold the same bytes.
#[derive(Default)]
pub struct EqualStates {
    hashes: BTreeMap<LogPosition, u32>,
    pub compared: u64,
}

impl EqualStates {
    /// Looking costs a walk over the state, so it is done at some indexes only, the same for all members.
    pub fn looks_at(index: LogIndex) -> bool {
        index.0.is_multiple_of(4)
    }

    pub fn sees(&mut self, member: u64, position: LogPosition, hash: u32) {
        match self.hashes.insert(position, hash) {
            Some(other) => {
                self.compared += 1;
                assert_eq!(hash, other, "{member} holds the same state at {position} as the others");
            }
            None => {
                assert!(
                    self.hashes.keys().all(|other| other.index != position.index || *other == position),
                    "one term per index: {position}"
                );
            }
        }
    }
}

/// At the same index all members know the same members, the removed ones included.
#[derive(Default)]
pub struct EqualMembers {
    known: BTreeMap<LogIndex, Membership>,
}

impl EqualMembers {
    /// The newest configuration that anybody has applied.
    pub fn newest(&self) -> ConfState {
        self.known.values().next_back().map(|newest| newest.conf_state().clone()).unwrap_or_default()
    }

    /// True when this is the first to be left with one voter here.
    pub fn sees(&mut self, member: u64, index: LogIndex, membership: Membership) -> bool {
        let conf_state = membership.conf_state();
        assert!(!conf_state.voters.is_empty(), "{member} knows voters at {index}");
        let (learners, voters): (Vec<_>, Vec<_>) =
            membership.members().into_iter().partition(|member| member.is_learner);
        let ids = |members: Vec<state_machine::membership::Member>| -> Vec<MemberId> {
            members.into_iter().map(|member| member.id).collect()
        };
        assert_eq!((ids(voters), ids(learners)), (conf_state.voters.clone(), conf_state.learners.clone()));
        if let Some(known) = self.known.get(&index) {
            assert_eq!(*known, membership, "{member} knows the same members at {index} as the others");
            return false;
        }
        let before = self.known.range(..index).next_back();
        let fewer = before.is_some_and(|(_, before)| before.conf_state().voters.len() > 1);
        let alone = fewer && conf_state.voters.len() == 1;
        self.known.insert(index, membership);
        alone
    }
}

/// A promise leaves a member only when it would survive a crash at that moment.
pub fn promise_is_durable(member: u64, disk: &Disk, message: &raftpb::Message) {
    let kind = message.r#type();
    let term = Term(message.term());
    let free = matches!(
        kind,
        MessageType::MsgProp
            | MessageType::MsgReadIndex
            | MessageType::MsgPreVote
            | MessageType::MsgPreVoteResp
    );
    assert!(
        free || disk.hard_state.term >= term,
        "{member} speaks in term {term}, its disk has {}: {kind:?}",
        disk.hard_state.term
    );
    let (index, accepts) = (LogIndex(message.index()), !message.reject());
    match kind {
        MessageType::MsgAppResp if accepts => {
            // An answer of a former term may come out together with what replaced its entries: as if it had been long on its way.
            assert!(
                disk.hard_state.term > term || disk.last().index >= index,
                "{member} acknowledges {index} in term {term}, its disk has {}",
                disk.last()
            );
        }
        MessageType::MsgVoteResp if accepts => {
            let voted = disk.hard_state.term > term || disk.hard_state.vote.0 == message.to();
            assert!(
                voted,
                "{member} votes for {} in term {term}, its disk has {:?}",
                message.to(),
                disk.hard_state
            );
        }
        MessageType::MsgVote => {
            let voted = disk.hard_state.term > term || disk.hard_state.vote.0 == member;
            assert!(voted, "{member} campaigns in term {term}, its disk has {:?}", disk.hard_state);
            assert!(
                disk.hard_state.term > term || disk.last().index >= index,
                "{member} claims {index} in a vote"
            );
        }
        _ => {}
    }
}

/// Reads see everything that was acknowledged, and everything that was read, before they began.
#[derive(Default)]
pub struct Linearizable {
    /// The newest index that any client knows of.
    seen: LogIndex,
    /// The newest revision of each key that any client knows of.
    revisions: BTreeMap<Vec<u8>, i64>,
    pub reads: u64,
}

/// What was known when a read began.
#[derive(Clone, Debug)]
pub struct Floor {
    pub key: Vec<u8>,
    index: LogIndex,
    revision: i64,
}

impl Linearizable {
    pub fn acknowledged(&mut self, index: LogIndex, key: &[u8], revision: i64) {
        self.seen = self.seen.max(index);
        let known = self.revisions.entry(key.to_vec()).or_default();
        *known = revision.max(*known);
    }

    pub fn begins(&self, key: &[u8]) -> Floor {
        Floor { key: key.to_vec(), index: self.seen, revision: self.revisions.get(key).copied().unwrap_or(0) }
    }

    pub fn confirmed(&mut self, member: u64, floor: &Floor, index: LogIndex) {
        assert!(
            index >= floor.index,
            "a read at {member} is confirmed at {index}, it began after {}",
            floor.index
        );
        self.seen = self.seen.max(index);
    }

    pub fn ends(&mut self, member: u64, floor: &Floor, revision: i64) {
        assert!(
            revision >= floor.revision,
            "a read at {member} sees revision {revision} of its key, it began after {}",
            floor.revision
        );
        let known = self.revisions.entry(floor.key.clone()).or_default();
        *known = revision.max(*known);
        self.reads += 1;
    }
}

/// What was acknowledged is in the log at the end; what was given back as dropped never was.
#[derive(Default)]
pub struct Acknowledged {
    acknowledged: BTreeMap<u64, LogIndex>,
    dropped: BTreeSet<u64>,
    newest: Option<LogIndex>,
}

impl Acknowledged {
    pub fn acknowledged(&mut self, request: u64, index: LogIndex) {
        self.newest = self.newest.max(Some(index));
        self.acknowledged.insert(request, index);
    }

    pub fn dropped(&mut self, request: u64) {
        self.dropped.insert(request);
    }

    /// The newest index that a client was told of.
    pub fn newest(&self) -> Option<LogIndex> {
        self.newest
    }

    pub fn count(&self) -> usize {
        self.acknowledged.len()
    }

    pub fn ends(&self, committed: &Committed) {
        for (request, index) in &self.acknowledged {
            assert_eq!(committed.holds(*request), Some(*index), "request {request} was acknowledged");
        }
        for request in &self.dropped {
            assert_eq!(committed.holds(*request), None, "request {request} was given back as dropped");
        }
    }
}

/// Reports that a correct cluster may cause in bad weather and while members come and go. All others mean that a core said or was told
/// something wrong.
const REPORTS_EXPECTED: [&str; 9] = [
    "own_read_returned",
    "cannot_campaign",
    "snapshot_while_installing",
    "proposal_dropped",
    "proposal_from_stranger",
    "read_from_stranger",
    "snapshot_without_us",
    "transfer_refused",
    "reads_full",
];

pub fn report_is_expected(member: u64, report: &Report) {
    assert!(REPORTS_EXPECTED.contains(&report.kind), "{member} reports {report:?}");
}
