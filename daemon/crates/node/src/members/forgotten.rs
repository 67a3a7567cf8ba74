//! A member that comes back to a cluster which has gone on without it: removed, and everybody it knew replaced since. None of those it
//! would believe for being voters is there any more, so it would ask for ever.
//!
//! While nobody leads, it therefore asks at all addresses that it knows, whoever may have them now, and at those that the answers name.
//! Who answers counts only if it proves the same life of the cluster; and only the word of its leader, in a term that is not behind
//! ours, which names the entry that removed this member, ends it (identity design, rule R2). Everything less is told once a minute,
//! together with what an operator can do: where nobody answers there is no proof, and a cluster that is cold looks just like that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use identity::{Answer, Question, Unique, Verdict};
use tokio::task::JoinSet;
use tracing::{info, warn};
use transport::PeerClient;
use types::{ClusterId, MemberId};
use url::Url;

use super::removal::told_of;
use crate::{peers::parse_urls, sentinel, shared::Shared};

/// Election timeouts without a leader before anybody is asked: ordinary elections are over by then.
const QUIET_ELECTIONS: u32 = 5;

/// Between two rounds of questions; doubled up to the longest, since a cluster that is down may stay so for a night.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// For one answer. A member that answers at all does so in milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Members asked beside those that the log names: as many as a large cluster has. They are forgotten once somebody leads.
const NAMED_MAX: usize = 16;

/// Between two lines about it.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What this member knows of itself when it listens.
struct Oneself {
    me: MemberId,
    cluster: ClusterId,
    life: Option<Unique>,
    term: u64,
}

/// What an answer amounts to.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Of the same life of the cluster, by its leader.
    Removed {
        index: u64,
        term: u64,
        asked_through: Option<String>,
    },
    /// Of the same life, and not entitled to end this member.
    Kin {
        says_removed: bool,
    },
    Nothing,
}

fn weigh(own: &Oneself, answer: &Answer) -> Said {
    let witness = &answer.known.witness;
    let is_kin = own.life.is_some()
        && answer.known.cluster_uuid == own.life
        && answer.hello.cluster_id == own.cluster
        && answer.hello.member == witness.member
        && witness.member != own.me;
    match &answer.verdict {
        _ if !is_kin => Said::Nothing,
        Verdict::Removed { index, term, asked_through } => {
            let names_the_entry = *index > 0;
            if witness.leads && witness.term >= own.term && names_the_entry {
                Said::Removed { index: *index, term: *term, asked_through: asked_through.clone() }
            } else {
                Said::Kin { says_removed: true }
            }
        }
        _ => Said::Kin { says_removed: false },
    }
}

/// Until the member stops.
pub(crate) async fn run(shared: Weak<Shared>) {
    let client = PeerClient::new(PATIENCE);
    let mut pause = PAUSE_MIN;
    let mut named: BTreeMap<MemberId, Vec<Url>> = BTreeMap::new();
    let mut told: Option<Instant> = None;
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        let quiet = QUIET_ELECTIONS * shared.config.election_timeout();
        let is_led = shared.leader.load(Ordering::Acquire) != MemberId::NONE.0;
        if is_led || shared.removal.borrow().is_some() || shared.last_leader_change.lock().elapsed() < quiet {
            (pause, told) = (PAUSE_MIN, None);
            named.clear();
            continue;
        }
        let round = ask(&shared, &client, &mut named).await;
        if let Some(Said::Removed { index, term, asked_through }) = round.removed {
            told_of(&shared, index, term, asked_through.as_deref());
            return;
        }
        pause = (2 * pause).min(PAUSE_MAX);
        // The first minute is the daemon's, which says whom it waits for.
        if told.get_or_insert_with(Instant::now).elapsed() >= TOLD_EVERY {
            told = Some(Instant::now());
            round.tell(&shared);
        }
    }
}

#[derive(Default)]
struct Round {
    removed: Option<Said>,
    /// Of the same life.
    kin: usize,
    says_removed: usize,
}

async fn ask(shared: &Arc<Shared>, client: &PeerClient, named: &mut BTreeMap<MemberId, Vec<Url>>) -> Round {
    let reader = shared.reader();
    let own = Oneself {
        me: shared.config.member,
        cluster: shared.config.cluster,
        life: shared.records.own.cluster_uuid.or_else(|| reader.cluster_uuid()),
        term: shared.term().0,
    };
    let known: BTreeMap<MemberId, Vec<Url>> = reader
        .members()
        .into_iter()
        .filter(|member| member.id != own.me)
        .map(|member| (member.id, parse_urls(&member.peer_urls)))
        .collect();
    let question = Arc::new(Question { hello: sentinel::hello(shared), config: None });
    let mut asking = JoinSet::new();
    for urls in known.values().chain(named.values()).cloned() {
        let (client, question) = (client.clone(), question.clone());
        asking.spawn(async move {
            for url in urls {
                if let Ok(answer) = client.hello(&url, &question).await {
                    return Some(answer);
                }
            }
            None
        });
    }
    let mut round = Round::default();
    while let Some(answer) = asking.join_next().await {
        let Ok(Some(answer)) = answer else { continue };
        match weigh(&own, &answer) {
            Said::Nothing => continue,
            Said::Kin { says_removed } => round.says_removed += usize::from(says_removed),
            removed @ Said::Removed { .. } => round.removed = Some(removed),
        }
        round.kin += 1;
        for member in answer.members.iter().filter(|it| it.id != own.me && !known.contains_key(&it.id)) {
            if named.len() < NAMED_MAX || named.contains_key(&member.id) {
                named.insert(member.id, parse_urls(&member.peer_urls));
            }
        }
    }
    round
}

impl Round {
    fn tell(&self, shared: &Shared) {
        let member = shared.config.member;
        if self.says_removed > 0 {
            warn!(
                %member,
                said_by = self.says_removed,
                "members of this cluster say that this one was removed, and their leader cannot be asked; it waits. If that is right: \
                 stop it, move its data directory away and add it anew (cairnctl member add, with the URL of one of the members)"
            );
        } else if self.kin == 0 {
            warn!(
                %member,
                "nobody answers at the addresses of the members that this directory knows. If they are down: start them. If the cluster \
                 goes on with other members: cairnctl --endpoints=<one of them> member list; if this member is not on the list it was \
                 removed, and comes back with an empty data directory after cairnctl member add"
            );
        } else {
            info!(%member, answers = self.kin, "members of this cluster answer, and none of them leads");
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::{Boot, Hello, Home, Known, Life, LogEnd, Standing, Witness};

    use super::*;

    fn answer(leads: bool, term: u64, verdict: Verdict) -> Answer {
        let hello = Hello {
            cluster_id: ClusterId(9),
            member: MemberId(4),
            name: "new".into(),
            life: Life::Born(Unique::for_test(7)),
            dir: Unique::for_test(1),
            boot: Boot { seq: 1, nonce: Unique::for_test(2), previous: None },
            earlier: Vec::new(),
            log: LogEnd { last_index: 9, last_term: term, term, commit: 9 },
            home: Home::default(),
            version: String::new(),
        };
        let known = Known {
            cluster_uuid: Some(Unique::for_test(7)),
            parent_uuid: None,
            restored: None,
            is_founding: false,
            standing: Standing::Stranger,
            record: None,
            attendee: None,
            watermark: None,
            session: None,
            witness: Witness { member: MemberId(4), leads, term, commit: 9 },
        };
        Answer { hello, known, verdict, config: None, members: Vec::new() }
    }

    #[test]
    fn only_the_leader_of_the_same_life_that_names_the_entry_ends_a_member() {
        let own =
            || Oneself { me: MemberId(3), cluster: ClusterId(9), life: Some(Unique::for_test(7)), term: 5 };
        let removed = |index| Verdict::Removed { index, term: 4, asked_through: None };
        let ends = Said::Removed { index: 8, term: 4, asked_through: None };
        assert_eq!(weigh(&own(), &answer(true, 5, removed(8))), ends);
        for (leads, term, verdict) in [(false, 5, removed(8)), (true, 4, removed(8)), (true, 5, removed(0))] {
            assert_eq!(weigh(&own(), &answer(leads, term, verdict)), Said::Kin { says_removed: true });
        }
        for verdict in [Verdict::Stranger, Verdict::Welcome] {
            assert_eq!(weigh(&own(), &answer(true, 5, verdict)), Said::Kin { says_removed: false });
        }
        let good = answer(true, 9, removed(8));
        let mut other_life = good.clone();
        other_life.known.cluster_uuid = Some(Unique::for_test(8));
        let mut no_life = good.clone();
        no_life.known.cluster_uuid = None;
        let mut other_cluster = good.clone();
        other_cluster.hello.cluster_id = ClusterId(8);
        let mut in_anothers_name = good.clone();
        in_anothers_name.known.witness.member = MemberId(5);
        for foreign in [other_life, no_life, other_cluster, in_anothers_name] {
            assert_eq!(weigh(&own(), &foreign), Said::Nothing);
        }
        assert_eq!(weigh(&Oneself { life: None, ..own() }, &good), Said::Nothing, "it cannot tell");
    }
}
