//! What only a proposer can judge: whether the cluster stands a change well (`strict-reconfig-check`), and whether a learner has caught up.
//!
//! Decided before the log and never at apply: who is connected is no replicated fact. What replicated facts forbid is judged by
//! [`Membership::check`], before the log and again at apply.

use api::error::EtcdError;
use consensus::{Status, io::Role};
use state_machine::membership::{Member, Membership};
use types::{LogIndex, MemberId};

/// Whom this member hears, itself included.
pub(super) trait Heard {
    /// Without a break since a while, so that a flapping link does not count.
    fn steadily(&self, id: MemberId) -> bool;
    fn now(&self, id: MemberId) -> bool;
}

fn quorum_of(voters: usize) -> usize {
    voters / 2 + 1
}

fn voters(membership: &Membership) -> impl Iterator<Item = Member> {
    membership.members().into_iter().filter(|member| !member.is_learner)
}

/// A member that has not told its name was never up.
fn is_started(member: &Member) -> bool {
    !member.name.is_empty()
}

/// A new voter counts as not started, so the others must be a quorum of the larger cluster. From one voter to two that is impossible, and
/// allowed. Then a quorum of the present voters must be in steady connection, which lets a member be added while another is down (ME07).
pub(super) fn add(membership: &Membership, learner: bool, heard: &impl Heard) -> Result<(), EtcdError> {
    let voters: Vec<Member> = voters(membership).collect();
    let started = voters.iter().filter(|member| is_started(member)).count();
    let enough = started >= quorum_of(voters.len() + 1) || (voters.len() == 1 && started == 1);
    if !learner && !enough {
        return Err(EtcdError::MemberNotEnoughStarted);
    }
    let connected = voters.iter().filter(|member| heard.steadily(member.id)).count();
    if connected < quorum_of(voters.len()) { Err(EtcdError::Unhealthy) } else { Ok(()) }
}

/// The others must have a quorum of started members, and of members that are heard, unless who goes is not heard anyway.
pub(super) fn remove(membership: &Membership, id: MemberId, heard: &impl Heard) -> Result<(), EtcdError> {
    if membership.member(id).is_none_or(|member| member.is_learner) {
        return Ok(());
    }
    let others: Vec<Member> = voters(membership).filter(|member| member.id != id).collect();
    let quorum = quorum_of(others.len());
    if others.iter().filter(|member| is_started(member)).count() < quorum {
        return Err(EtcdError::MemberNotEnoughStarted);
    }
    if !heard.now(id) {
        return Ok(());
    }
    let active = others.iter().filter(|member| heard.now(member.id)).count();
    if active < quorum { Err(EtcdError::Unhealthy) } else { Ok(()) }
}

/// The learner itself counts as started, since it has caught up (ME05).
pub(super) fn promote(membership: &Membership) -> Result<(), EtcdError> {
    let voters: Vec<Member> = voters(membership).collect();
    let started = 1 + voters.iter().filter(|member| is_started(member)).count();
    if started < quorum_of(voters.len() + 1) { Err(EtcdError::MemberNotEnoughStarted) } else { Ok(()) }
}

/// As its leader sees it: a learner that has told its name (ME04) and holds nine tenths of the leader's log.
pub(super) fn is_ready(membership: &Membership, id: MemberId, status: &Status) -> Result<(), EtcdError> {
    if status.role != Role::Leader {
        return Err(EtcdError::NotLeader);
    }
    let member = membership.member(id).ok_or(EtcdError::MemberNotFound)?;
    if !member.is_learner {
        return Err(EtcdError::MemberNotLearner);
    }
    let matched = |id: MemberId| status.peers.iter().find(|peer| peer.id == id).map(|peer| peer.matched);
    let LogIndex(leaders) = matched(status.id).unwrap_or(status.last_index);
    let LogIndex(learners) = matched(id).ok_or(EtcdError::LearnerNotReady)?;
    let caught_up = u128::from(learners) * 10 >= u128::from(leaders) * 9;
    if caught_up && is_started(member) { Ok(()) } else { Err(EtcdError::LearnerNotReady) }
}

#[cfg(test)]
mod tests {
    use consensus::{Peer, PeerState};
    use types::{ConfState, Term};

    use super::*;

    /// Ids that are heard steadily, and others that are heard since a moment ago.
    struct Net(Vec<u64>, Vec<u64>);

    impl Heard for Net {
        fn steadily(&self, id: MemberId) -> bool {
            self.0.contains(&id.0)
        }
        fn now(&self, id: MemberId) -> bool {
            self.0.contains(&id.0) || self.1.contains(&id.0)
        }
    }

    /// Voters 1 to `voters`, of which the last `unstarted` have no name, and perhaps a learner 9.
    fn cluster(voters: u64, unstarted: u64, learner: Option<&str>) -> Membership {
        let mut members: Vec<Member> = (1..=voters)
            .map(|id| Member {
                id: MemberId(id),
                name: if id <= voters - unstarted { format!("m{id}") } else { String::new() },
                ..Member::default()
            })
            .collect();
        members.extend(learner.map(|name| Member {
            id: MemberId(9),
            name: name.to_owned(),
            is_learner: true,
            ..Member::default()
        }));
        Membership::new(members, vec![], ConfState::default())
    }

    fn all(voters: u64) -> Net {
        Net((1..=voters).collect(), vec![])
    }

    #[test]
    fn adding_needs_a_started_quorum_of_the_larger_cluster() {
        use EtcdError::MemberNotEnoughStarted as Few;
        let rows = [
            (1, 0, Ok(())),
            (1, 1, Err(Few)),
            (2, 0, Ok(())),
            (2, 1, Err(Few)),
            (3, 0, Ok(())),
            (3, 1, Err(Few)),
            (4, 1, Ok(())),
            (5, 1, Ok(())),
            (5, 2, Err(Few)),
        ];
        for (voters, unstarted, expected) in rows {
            let before = cluster(voters, unstarted, None);
            assert_eq!(add(&before, false, &all(voters)), expected, "{voters} voters, {unstarted} unstarted");
            assert_eq!(add(&before, true, &all(voters)), Ok(()), "a learner counts for nothing");
        }
    }

    /// ME07 add_with_one_down, the rule.
    #[test]
    fn adding_needs_a_quorum_in_steady_connection() {
        for (voters, heard, fresh, expected) in [
            (3, vec![1, 2], vec![], Ok(())),
            (3, vec![1], vec![2, 3], Err(EtcdError::Unhealthy)),
            (3, vec![1], vec![], Err(EtcdError::Unhealthy)),
            (4, vec![1, 2], vec![], Err(EtcdError::Unhealthy)),
            (5, vec![1, 2, 3], vec![], Ok(())),
            (1, vec![1], vec![], Ok(())),
        ] {
            for learner in [false, true] {
                let net = Net(heard.clone(), fresh.clone());
                assert_eq!(add(&cluster(voters, 0, None), learner, &net), expected, "{voters} {heard:?}");
            }
        }
    }

    #[test]
    fn removing_leaves_a_started_and_heard_quorum() {
        use EtcdError::{MemberNotEnoughStarted as Few, Unhealthy};
        for (voters, unstarted, heard, id, expected) in [
            (1, 0, vec![1], 1, Err(Few)),
            (2, 0, vec![1, 2], 2, Ok(())),
            (2, 1, vec![1], 1, Err(Few)),
            (2, 1, vec![1], 2, Ok(())),
            (3, 0, vec![1, 2], 2, Err(Unhealthy)),
            (3, 0, vec![1, 2], 3, Ok(())),
            (3, 1, vec![1, 2], 1, Err(Few)),
            (3, 0, vec![1, 2, 3], 2, Ok(())),
            (5, 0, vec![1, 2, 3], 2, Err(Unhealthy)),
            (5, 0, vec![1, 2, 3], 4, Ok(())),
        ] {
            let before = cluster(voters, unstarted, Some(""));
            let net = Net(vec![], heard.clone());
            assert_eq!(remove(&before, MemberId(id), &net), expected, "{voters} {unstarted} {heard:?} {id}");
            assert_eq!(remove(&before, MemberId(9), &Net(vec![], vec![])), Ok(()), "a learner");
        }
    }

    /// ME05.
    #[test]
    fn promotion_respects_quorum() {
        use EtcdError::MemberNotEnoughStarted as Few;
        let rows = [
            (1, 0, Ok(())),
            (2, 1, Ok(())),
            (3, 1, Ok(())),
            (3, 2, Err(Few)),
            (4, 2, Ok(())),
            (5, 3, Err(Few)),
        ];
        for (voters, unstarted, expected) in rows {
            let before = cluster(voters, unstarted, Some("l"));
            assert_eq!(promote(&before), expected, "{voters} voters, {unstarted} unstarted");
        }
    }

    /// ME04, and the other reasons why a learner is not ready.
    #[test]
    fn unstarted_learner_not_promoted() {
        let status = |role: Role, learner: Option<u64>| {
            let peer = |id: u64, matched: u64| Peer {
                id: MemberId(id),
                learner: id == 9,
                matched: LogIndex(matched),
                next: LogIndex(matched + 1),
                state: PeerState::Replicate,
                recent_active: true,
            };
            Status {
                id: MemberId(1),
                role,
                term: Term(2),
                leader: MemberId(1),
                voter: true,
                committed: LogIndex(100),
                persisted: LogIndex(100),
                applied: LogIndex(100),
                first_index: LogIndex(1),
                last_index: LogIndex(100),
                log_tail_bytes: 0,
                lead_transferee: None,
                peers: [Some(peer(1, 100)), learner.map(|matched| peer(9, matched))]
                    .into_iter()
                    .flatten()
                    .collect(),
            }
        };
        let leads = |learner: Option<u64>| status(Role::Leader, learner);
        let known = |name: &str| cluster(1, 0, Some(name));
        let ask =
            |membership: &Membership, id: u64, status: &Status| is_ready(membership, MemberId(id), status);
        assert_eq!(ask(&known(""), 9, &leads(Some(100))), Err(EtcdError::LearnerNotReady), "never started");
        assert_eq!(ask(&known("l"), 9, &leads(Some(89))), Err(EtcdError::LearnerNotReady), "behind");
        assert_eq!(ask(&known("l"), 9, &leads(None)), Err(EtcdError::LearnerNotReady), "not in raft yet");
        assert_eq!(ask(&known("l"), 9, &leads(Some(90))), Ok(()));
        assert_eq!(ask(&known("l"), 1, &leads(Some(90))), Err(EtcdError::MemberNotLearner));
        assert_eq!(ask(&known("l"), 7, &leads(Some(90))), Err(EtcdError::MemberNotFound));
        assert_eq!(ask(&known("l"), 9, &status(Role::Follower, Some(90))), Err(EtcdError::NotLeader));
    }
}
