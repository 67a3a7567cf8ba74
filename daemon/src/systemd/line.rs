//! The status line of a member: pure, from facts to one line. `docs/operations.md` lists these texts.

use node::Quorum;

/// Fewer entries behind than this is normal between two heartbeats, and no news.
const BEHIND_TOLD: u64 = 100;

/// A member that runs, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub name: String,
    pub id: String,
    pub term: u64,
    /// Its name, or its id where it has none; None: nobody leads.
    pub leader: Option<String>,
    pub is_leader: bool,
    pub is_learner: bool,
    /// The member that this one took the place of by itself.
    pub replaces: Option<String>,
    pub is_joining: bool,
    pub is_quarantined: bool,
    pub is_contradicted: bool,
    /// On a leader. `heard` is the best of the last moments.
    pub quorum: Option<Quorum>,
    /// Name of the slowest voter.
    pub slowest: String,
    pub voters: usize,
    /// Committed and not applied here.
    pub behind: u64,
    /// Entries applied since the start, of those that the log held then; None once they all are.
    pub replay: Option<(u64, u64)>,
    pub is_ready: bool,
    pub alarms: Vec<String>,
}

pub fn reading(rows: u64) -> String {
    format!("starting: making the index, {rows} rows read")
}

pub fn replaying(done: u64, of: u64) -> String {
    format!("starting: replaying {done} of {of} entries")
}

pub fn of(facts: &Facts) -> String {
    let Facts { name, id, term, .. } = facts;
    let who = format!("{name} ({id})");
    let behind = match facts.behind {
        entries if entries < BEHIND_TOLD => "up to date".to_owned(),
        entries => format!("{entries} entries behind"),
    };
    let what = if facts.is_contradicted {
        "quarantined: the leader contradicts what is committed here; one side has lost acknowledged writes: see the journal, keep this directory"
            .to_owned()
    } else if facts.is_quarantined {
        "quarantined: a peer speaks against this member, which votes and acknowledges nothing until that is cleared up"
            .to_owned()
    } else if let Some((done, total)) = facts.replay {
        format!("replaying {done} of {total} entries")
    } else if facts.is_joining {
        "joining: waiting for the cluster's log or a snapshot".to_owned()
    } else {
        match (&facts.leader, &facts.quorum) {
            (None, _) => {
                format!("no leader in term {term}; waiting for a majority of {} voters", facts.voters)
            }
            (Some(_), Some(quorum)) if facts.is_leader => {
                let Quorum { voters, heard, slowest } = quorum;
                let lag = match slowest {
                    Some((_, entries)) if *entries >= BEHIND_TOLD => {
                        format!("{} is {entries} entries behind", facts.slowest)
                    }
                    _ => behind,
                };
                format!("leader in term {term}; {heard} of {voters} voters answer; {lag}")
            }
            (Some(leader), _) if facts.is_learner => match &facts.replaces {
                Some(old) => format!(
                    "learner of {leader} in term {term} in the place of {old}, asks to be promoted; {behind}"
                ),
                None => format!("learner of {leader} in term {term}; {behind}"),
            },
            (Some(leader), _) => format!("follower of {leader} in term {term}; {behind}"),
        }
    };
    let mut line = format!("{who}: {what}");
    if !facts.is_ready && facts.leader.is_some() && facts.replay.is_none() && !facts.is_joining {
        line.push_str("; waiting for the cluster to take this member's URLs");
    }
    for alarm in &facts.alarms {
        line.push_str("; alarm ");
        line.push_str(alarm);
    }
    line
}

#[cfg(test)]
mod tests {
    use types::MemberId;

    use super::*;

    /// Change one of these and somebody's dashboard or test waits for ever.
    #[test]
    fn every_state_has_its_line() {
        let running = Facts {
            name: "n1".into(),
            id: "8e9e05c52164694d".into(),
            term: 3,
            leader: Some("n2".into()),
            voters: 3,
            is_ready: true,
            ..Facts::default()
        };
        let quorum = |heard, behind| Some(Quorum { voters: 3, heard, slowest: Some((MemberId(3), behind)) });
        for (facts, line) in [
            (running.clone(), "follower of n2 in term 3; up to date"),
            (Facts { behind: 500, ..running.clone() }, "follower of n2 in term 3; 500 entries behind"),
            (
                Facts { is_learner: true, behind: 500, ..running.clone() },
                "learner of n2 in term 3; 500 entries behind",
            ),
            (
                Facts { is_learner: true, replaces: Some("ab".into()), ..running.clone() },
                "learner of n2 in term 3 in the place of ab, asks to be promoted; up to date",
            ),
            (
                Facts { is_leader: true, quorum: quorum(3, 5), ..running.clone() },
                "leader in term 3; 3 of 3 voters answer; up to date",
            ),
            (
                Facts { is_leader: true, quorum: quorum(2, 700), slowest: "n3".into(), ..running.clone() },
                "leader in term 3; 2 of 3 voters answer; n3 is 700 entries behind",
            ),
            (
                Facts { leader: None, ..running.clone() },
                "no leader in term 3; waiting for a majority of 3 voters",
            ),
            (Facts { replay: Some((7, 90)), leader: None, ..running.clone() }, "replaying 7 of 90 entries"),
            (
                Facts { is_joining: true, leader: None, is_ready: false, ..running.clone() },
                "joining: waiting for the cluster's log or a snapshot",
            ),
            (
                Facts { is_quarantined: true, ..running.clone() },
                "quarantined: a peer speaks against this member, which votes and acknowledges nothing until that is cleared up",
            ),
            (
                Facts { is_quarantined: true, is_contradicted: true, ..running.clone() },
                "quarantined: the leader contradicts what is committed here; one side has lost acknowledged writes: see the journal, keep this directory",
            ),
            (
                Facts { alarms: vec!["NOSPACE".into()], ..running.clone() },
                "follower of n2 in term 3; up to date; alarm NOSPACE",
            ),
            (
                Facts { is_ready: false, ..running.clone() },
                "follower of n2 in term 3; up to date; waiting for the cluster to take this member's URLs",
            ),
        ] {
            assert_eq!(of(&facts), format!("n1 (8e9e05c52164694d): {line}"));
        }
    }
}
