//! From a running member to the facts of its status line.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use node::{Handle, Quorum};
use types::MemberId;

use crate::systemd::line::Facts;

/// A leader counts anew which voters it has heard once an election timeout. The best count of this time is shown, so that a look at the
/// beginning of a count does not read as a lost quorum.
const HEARD_WITHIN: Duration = Duration::from_millis(2500);

/// Fewer entries than this to catch up with from the own log are done before anybody reads that they are.
const REPLAY_TOLD: u64 = 1000;

pub struct Teller {
    name: String,
    replaces: Option<MemberId>,
    /// What the state had and what the log knew to be committed when the member started.
    began: u64,
    target: u64,
    heard: VecDeque<(Instant, usize)>,
}

impl Teller {
    pub fn new(handle: &Handle, name: String, replaces: Option<MemberId>) -> Teller {
        let status = handle.node_status();
        Teller { name, replaces, began: status.applied.0, target: status.committed.0, heard: VecDeque::new() }
    }

    /// The state is where the own log says that it was.
    pub fn is_recovered(&self, handle: &Handle) -> bool {
        handle.node_status().applied.0 >= self.target
    }

    pub fn look(&mut self, handle: &Handle, is_ready: bool) -> Facts {
        let status = handle.node_status();
        let members = handle.members();
        let name_of = |id: MemberId| {
            let named = members.iter().find(|member| member.id == id && !member.name.is_empty());
            named.map_or_else(|| id.to_string(), |member| member.name.clone())
        };
        let quorum = handle.quorum().map(|quorum| Quorum { heard: self.best(quorum.heard), ..quorum });
        if quorum.is_none() {
            self.heard.clear();
        }
        let total = self.target.saturating_sub(self.began);
        let done = status.applied.0.saturating_sub(self.began);
        let mut alarms: Vec<String> =
            handle.alarms().iter().map(|alarm| alarm.alarm().as_str_name().to_owned()).collect();
        alarms.dedup();
        Facts {
            name: self.name.clone(),
            id: status.member.to_string(),
            term: status.term.0,
            leader: (!status.leader.is_none()).then(|| name_of(status.leader)),
            is_leader: status.is_leader,
            is_learner: status.is_learner,
            replaces: self.replaces.map(|old| old.to_string()),
            is_joining: status.is_joining,
            is_quarantined: handle.is_quarantined(),
            is_contradicted: handle.is_contradicted(),
            slowest: quorum.and_then(|quorum| quorum.slowest).map_or_else(String::new, |(id, _)| name_of(id)),
            quorum,
            voters: members.iter().filter(|member| !member.is_learner).count(),
            behind: status.committed.0.saturating_sub(status.applied.0),
            replay: (done < total && total >= REPLAY_TOLD).then_some((done, total)),
            is_ready,
            alarms,
        }
    }

    fn best(&mut self, heard: usize) -> usize {
        let now = Instant::now();
        self.heard.push_back((now, heard));
        while self.heard.front().is_some_and(|(at, _)| now - *at > HEARD_WITHIN) {
            self.heard.pop_front();
        }
        self.heard.iter().map(|(_, heard)| *heard).max().unwrap_or(heard)
    }
}
