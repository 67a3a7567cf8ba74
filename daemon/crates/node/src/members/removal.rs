//! How a member learns that it was removed, and when it may go.
//!
//! It learns it from its own log; or, when it was down or cut off and the others do not talk to it any more, from a majority of its voters
//! or from one that leads and is confirmed by a quorum (identity design, rule R2). One peer that does not lead is never enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use api::{
    etcdserverpb as pb,
    raftpb::{ConfChange, ConfChangeType},
};
use parking_lot::Mutex;
use prost::Message;
use state_machine::{Reader, membership::Member};
use storage::state_store::FjallStore;
use tokio::sync::watch;
use tracing::{debug, warn};
use transport::{LeaseCallError, PeerClient};
use types::{Entry, EntryKind, LogIndex, LogPosition, MemberId, Term};

use crate::{handle::Handle, peers::parse_urls, shared::Shared};

/// Patience for one question to one peer: an election time-out of a slow cluster, in which a leader knows whether it is confirmed.
const QUESTION_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two rounds of questions: a few heartbeats, by which the others hear what is committed.
const QUESTION_PAUSE: Duration = Duration::from_millis(250);

/// A peer that said that this member was removed is asked so often whether it leads. It says it again every minute.
const LEADER_QUESTIONS: usize = 30;

/// How long the log comes first when others said it: it alone says who asked for the removal, and a member that runs hears it from those
/// who stay, who talk to it for a second more.
const LOG_COMES_FIRST: Duration = Duration::from_secs(3);

/// A lease that nobody has: the largest id, while ids that members make begin with a member's id and the time.
const NO_LEASE: i64 = i64::MAX;

/// What peers say of this member.
#[derive(Default)]
pub(crate) struct Rumour {
    /// Peers that said that it was removed, and whether one is being asked whether it leads.
    said_by: Mutex<BTreeMap<MemberId, bool>>,
}

/// The decision of the cluster that this member does not belong to it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The entry that did it; where only its effect is known (after a restart, by a snapshot, told by others), the position of the state then.
    pub position: LogPosition,
    /// Whether `position` is the entry itself.
    pub is_entry: bool,
    /// Through which member it was asked, as far as the entry tells and that member is known.
    pub asked_through: Option<Member>,
}

impl Handle {
    /// Tells when this member knows of its own removal, also of one in an earlier life. Whoever runs the member ends it then.
    pub fn removal(&self) -> watch::Receiver<Option<Removal>> {
        self.shared.removal.subscribe()
    }

    /// Returns when a quorum of those who stay shows that they know that this member was removed. Until then they may need its vote: who
    /// does not know yet counts it as a voter. What a member shows is durable there.
    pub async fn removal_is_known(&self) {
        let me = self.shared.config.member;
        let client = PeerClient::new(QUESTION_PATIENCE);
        loop {
            let reader = self.reader();
            let voters: Vec<MemberId> =
                reader.conf_state().voters.into_iter().filter(|voter| *voter != me).collect();
            let asked = voters.iter().filter_map(|voter| reader.member(*voter));
            let mut answers = tokio::task::JoinSet::new();
            for member in asked {
                let (client, cluster) = (client.clone(), self.shared.config.cluster);
                answers.spawn(async move {
                    for url in parse_urls(&member.peer_urls) {
                        if let Ok(answer) = client.members(&url).await {
                            let known = answer.members.iter().all(|member| member.id != me);
                            return answer.cluster == cluster && !answer.members.is_empty() && known;
                        }
                    }
                    false
                });
            }
            let mut knowing = 0;
            while let Some(answer) = answers.join_next().await {
                knowing += usize::from(answer.unwrap_or(false));
                if knowing > voters.len() / 2 {
                    return;
                }
            }
            tokio::time::sleep(QUESTION_PAUSE).await;
        }
    }
}

/// A peer refuses this member as removed. Returns at once.
pub(crate) fn told(shared: &Arc<Shared>, peer: MemberId, text: &str) {
    warn!(peer = %peer, text, "a peer says that this member was removed from the cluster");
    let voters = shared.reader().conf_state().voters;
    if !voters.contains(&peer) || peer == shared.config.member || shared.removal.borrow().is_some() {
        return;
    }
    let (asks, said_by) = {
        let mut said_by = shared.rumour.said_by.lock();
        let asked_already = said_by.insert(peer, true).unwrap_or(false);
        (!asked_already, said_by.keys().copied().collect::<BTreeSet<MemberId>>())
    };
    if is_majority(&said_by, &voters) {
        shared.runtime.spawn(believe(Arc::downgrade(shared), said_by, "a majority of the voters says so"));
    } else if asks {
        shared.runtime.spawn(ask_whether_it_leads(Arc::downgrade(shared), peer));
    }
}

fn is_majority(said_by: &BTreeSet<MemberId>, voters: &[MemberId]) -> bool {
    voters.iter().filter(|voter| said_by.contains(voter)).count() > voters.len() / 2
}

/// Only a leader that a quorum confirms answers for leases. Which lease does not matter.
async fn ask_whether_it_leads(shared: Weak<Shared>, peer: MemberId) {
    for _ in 0..LEADER_QUESTIONS {
        let Some(shared) = shared
            .upgrade()
            .filter(|shared| !shared.stopping.load(Ordering::Acquire) && shared.removal.borrow().is_none())
        else {
            return;
        };
        let Some(transport) = shared.transport.get().cloned() else { return };
        let request = pb::LeaseTimeToLiveRequest { id: NO_LEASE, keys: false };
        match transport.lease_time_to_live(peer, request, QUESTION_PATIENCE).await {
            Ok(_) | Err(LeaseCallError::NotFound) => {
                let shared = Arc::downgrade(&shared);
                return believe(shared, BTreeSet::from([peer]), "the leader says so").await;
            }
            Err(LeaseCallError::NoAnswer(why)) => {
                debug!(peer = %peer, why, "it says that this member was removed, and does not lead");
            }
        }
        drop(shared);
        tokio::time::sleep(4 * QUESTION_PAUSE).await;
    }
    if let Some(shared) = shared.upgrade() {
        shared.rumour.said_by.lock().insert(peer, false);
    }
}

async fn believe(shared: Weak<Shared>, said_by: BTreeSet<MemberId>, why: &'static str) {
    tokio::time::sleep(LOG_COMES_FIRST).await;
    let Some(shared) = shared.upgrade() else { return };
    let said_by: Vec<String> = said_by.iter().map(MemberId::to_string).collect();
    let position = shared.reader().applied();
    let told = shared.removal.send_if_modified(|removal| {
        let is_news = removal.is_none();
        removal.get_or_insert(Removal { position, is_entry: false, asked_through: None });
        is_news
    });
    if told {
        warn!(member = %shared.config.member, said_by = said_by.join(","), why, "the cluster has removed this member");
    }
}

/// The leader, or a majority, has named the entry. Members are named in words: by their name, or by their id while they have none.
pub(crate) fn told_of(shared: &Shared, index: u64, term: u64, asked_through: Option<&str>) {
    let asked_through = asked_through.and_then(|words| {
        let is_meant = |member: &Member| member.name == words || member.id.to_string() == words;
        shared.reader().members().into_iter().find(is_meant)
    });
    let position = LogPosition { term: Term(term), index: LogIndex(index) };
    let told = shared.removal.send_if_modified(|removal| {
        let is_news = removal.is_none();
        removal.get_or_insert(Removal { position, is_entry: index > 0, asked_through });
        is_news
    });
    if told {
        warn!(member = %shared.config.member, index, term, "the cluster has removed this member");
    }
}

/// After entries or a snapshot that changed the membership were applied.
pub(crate) fn note(shared: &Arc<Shared>, reader: &Reader<FjallStore>, entries: &[Entry]) {
    let me = shared.config.member;
    if !reader.is_removed(me) || shared.removal.borrow().is_some() {
        return;
    }
    let removal = find(me, &reader.members(), entries).unwrap_or_else(|| Removal {
        position: reader.applied(),
        is_entry: false,
        asked_through: None,
    });
    warn!(
        member = %me,
        index = removal.position.index.0,
        term = removal.position.term.0,
        asked_through = removal.asked_through.as_ref().map(|member| member.id.to_string()),
        "the cluster has removed this member"
    );
    shared.removal.send_replace(Some(removal));
}

/// Request ids begin with the low 16 bits of the member that made them, in etcd too.
fn find(me: MemberId, members: &[Member], entries: &[Entry]) -> Option<Removal> {
    entries.iter().filter(|entry| entry.kind == EntryKind::ConfChange).find_map(|entry| {
        let change = ConfChange::decode(entry.data.clone()).ok()?;
        let removes = change.r#type == Some(ConfChangeType::ConfChangeRemoveNode as i32);
        if !removes || change.node_id != Some(me.0) {
            return None;
        }
        let maker = change.id.unwrap_or(0) >> 48;
        let mut makers = members.iter().filter(|member| member.id.0 & 0xffff == maker);
        let asked_through = match (makers.next(), makers.next()) {
            _ if me.0 & 0xffff == maker => Some(Member { id: me, ..Member::default() }),
            (Some(one), None) => Some(one.clone()),
            _ => None,
        };
        let position = LogPosition { term: entry.term, index: entry.index };
        Some(Removal { position, is_entry: true, asked_through })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_voter_is_no_majority() {
        let ids = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<Vec<_>>();
        for (voters, said_by, expected) in [
            (&[1, 2, 3][..], &[2][..], false),
            (&[1, 2, 3], &[2, 3], true),
            (&[1, 2], &[2], false),
            (&[1, 2, 3, 4], &[2, 3], false),
            (&[1, 2, 3, 4], &[2, 3, 4], true),
            // Who never was a voter here counts for nothing.
            (&[1, 2, 3], &[2, 8, 9], false),
        ] {
            let said_by: BTreeSet<MemberId> = ids(said_by).into_iter().collect();
            assert_eq!(is_majority(&said_by, &ids(voters)), expected, "{voters:?} {said_by:?}");
        }
    }
}
