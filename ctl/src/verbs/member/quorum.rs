//! The arithmetic of a change: how many votes there are, how many are needed, how many are there, step by step. Pure.
//!
//! The rules of refusal are etcd's (`strict-reconfig-check`); that a learner has to have caught up is not foreseen here.

/// Stands for the member that does not have an id yet.
pub const NEW: u64 = 0;

/// What the arithmetic needs of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub is_learner: bool,
    /// It was up once.
    pub is_started: bool,
    /// It answers now, and has a leader.
    pub is_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AddVoter,
    AddLearner,
    /// Whoever runs the machines starts the new member.
    Start,
    Promote(u64),
    Remove(u64),
}

/// Votes at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub voters: usize,
    pub up: usize,
}

impl Count {
    pub fn of(members: &[Member]) -> Count {
        let voters = members.iter().filter(|member| !member.is_learner);
        Count { voters: voters.clone().count(), up: voters.filter(|member| member.is_up).count() }
    }

    pub fn quorum(self) -> usize {
        self.voters / 2 + 1
    }

    /// How many of all voters may be down.
    pub fn tolerated(self) -> usize {
        self.voters.saturating_sub(self.quorum())
    }

    /// How many of those that are up may go down; `None` when there is no quorum.
    pub fn spare(self) -> Option<usize> {
        self.up.checked_sub(self.quorum())
    }

    pub fn words(self) -> String {
        let Count { voters, up } = self;
        let voters_word = if voters == 1 { "voter" } else { "voters" };
        let consequence = match self.spare() {
            Some(spare) => format!("{up} - {} = {spare} more may fail", self.quorum()),
            None => format!("{} too few, NO QUORUM", self.quorum() - up),
        };
        format!(
            "{voters} {voters_word}, quorum {voters} / 2 + 1 = {}, tolerates {} down; {up} up: {consequence}",
            self.quorum(),
            self.tolerated()
        )
    }
}

/// Why a step must not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Nothing could be committed after it.
    QuorumLost,
    /// A voter is down, and after it no other may fail, while before one might.
    NoSpare,
    /// The cluster wants a quorum of voters that were up once.
    NotEnoughStarted,
    /// The cluster wants a quorum of connected voters.
    Unhealthy,
    NotLearner,
    LearnerNotUp,
    LastVoter,
}

impl Problem {
    pub fn id(self) -> &'static str {
        match self {
            Problem::QuorumLost => "QUORUM_LOST",
            Problem::NoSpare => "NO_SPARE",
            Problem::NotEnoughStarted
            | Problem::Unhealthy
            | Problem::NotLearner
            | Problem::LearnerNotUp
            | Problem::LastVoter => "CLUSTER_REFUSES",
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Problem::QuorumLost => {
                "fewer voters would be up than the quorum needs: no write, no linearizable read, no way back by a further change"
            }
            Problem::NoSpare => "a voter is down, and after this step no other one may fail",
            Problem::NotEnoughStarted => {
                "the cluster refuses it: re-configuration failed due to not enough started members"
            }
            Problem::Unhealthy => {
                "the cluster refuses it: unhealthy cluster, less than a quorum is connected"
            }
            Problem::NotLearner => "the cluster refuses it: can only promote a learner member",
            Problem::LearnerNotUp => {
                "the cluster refuses it: can only promote a learner member which is in sync with leader, and this one is down"
            }
            Problem::LastVoter => "the cluster refuses it: nobody would be left to vote",
        }
    }
}

/// A step, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub step: Step,
    pub after: Count,
    pub problem: Option<Problem>,
    /// What the numbers do not say.
    pub note: Option<&'static str>,
}

/// Goes through the steps. Steps after one with a problem are judged as if it had been done.
pub fn judge(members: &[Member], steps: &[Step]) -> Vec<Outcome> {
    let mut members = members.to_vec();
    let first = Count::of(&members);
    let mut outcomes = Vec::new();
    for &step in steps {
        // A change of members is an entry like any other: the quorum that commits it is the one before it.
        let is_stuck = step != Step::Start && Count::of(&members).spare().is_none();
        let refusal = refusal(&members, step).or(is_stuck.then_some(Problem::QuorumLost));
        let note = note(&members, step);
        apply(&mut members, step);
        let after = Count::of(&members);
        let is_one_down =
            members.iter().any(|member| !member.is_learner && member.is_started && !member.is_up);
        let problem = refusal.or_else(|| match after.spare() {
            None => Some(Problem::QuorumLost),
            // Worse than it was: a change that brings a cluster nearer to health begins with no spare member, too.
            Some(0) if is_one_down && first.spare() > Some(0) => Some(Problem::NoSpare),
            Some(_) => None,
        });
        outcomes.push(Outcome { step, after, problem, note });
    }
    outcomes
}

fn apply(members: &mut Vec<Member>, step: Step) {
    match step {
        Step::AddVoter | Step::AddLearner => {
            let is_learner = step == Step::AddLearner;
            members.push(Member { id: NEW, is_learner, is_started: false, is_up: false });
        }
        Step::Start => {
            for member in members.iter_mut().filter(|member| member.id == NEW) {
                (member.is_started, member.is_up) = (true, true);
            }
        }
        Step::Promote(id) => {
            members.iter_mut().filter(|member| member.id == id).for_each(|member| member.is_learner = false);
        }
        Step::Remove(id) => members.retain(|member| member.id != id),
    }
}

fn refusal(members: &[Member], step: Step) -> Option<Problem> {
    let voters: Vec<&Member> = members.iter().filter(|member| !member.is_learner).collect();
    let started = voters.iter().filter(|member| member.is_started).count();
    let quorum_of = |voters: usize| voters / 2 + 1;
    let count = Count::of(members);
    match step {
        Step::AddVoter if started < quorum_of(voters.len() + 1) && voters.len() > 1 => {
            Some(Problem::NotEnoughStarted)
        }
        Step::AddVoter | Step::AddLearner if count.spare().is_none() => Some(Problem::Unhealthy),
        Step::Promote(id) => match members.iter().find(|member| member.id == id) {
            Some(member) if !member.is_learner => Some(Problem::NotLearner),
            Some(member) if !member.is_up => Some(Problem::LearnerNotUp),
            _ if started + 1 < quorum_of(voters.len() + 1) => Some(Problem::NotEnoughStarted),
            _ => None,
        },
        Step::Remove(id) => {
            let member = voters.iter().find(|member| member.id == id)?;
            let others = voters.len() - 1;
            let started = started - usize::from(member.is_started);
            let up = count.up - usize::from(member.is_up);
            if others == 0 {
                Some(Problem::LastVoter)
            } else if started < quorum_of(others) {
                Some(Problem::NotEnoughStarted)
            } else if member.is_up && up < quorum_of(others) {
                Some(Problem::Unhealthy)
            } else {
                None
            }
        }
        _ => None,
    }
}

fn note(members: &[Member], step: Step) -> Option<&'static str> {
    let count = Count::of(members);
    match step {
        Step::AddLearner if members.iter().any(|member| member.is_learner) => {
            Some("there is a learner already; refused unless max-learners allows more")
        }
        Step::AddVoter | Step::AddLearner if count.up < count.voters => {
            Some("etcd before 3.6.11 refuses it (unhealthy cluster) while any voter is down")
        }
        Step::AddVoter => Some("until the new voter has started and caught up it counts as down"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters 1 to `voters`, the last `down` of them down, and perhaps a learner 9.
    fn cluster(voters: u64, down: u64, learner: bool) -> Vec<Member> {
        let voter = |id| Member { id, is_learner: false, is_started: true, is_up: id <= voters - down };
        let mut members: Vec<Member> = (1..=voters).map(voter).collect();
        if learner {
            members.push(Member { id: 9, is_learner: true, is_started: true, is_up: true });
        }
        members
    }

    fn problems(members: &[Member], steps: &[Step]) -> Vec<Option<Problem>> {
        judge(members, steps).into_iter().map(|outcome| outcome.problem).collect()
    }

    const REPLACE_LAST: [Step; 4] = [Step::AddLearner, Step::Start, Step::Promote(NEW), Step::Remove(3)];

    #[test]
    fn the_numbers_are_those_of_the_textbook() {
        for (voters, quorum, tolerated) in
            [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (6, 4, 2), (7, 4, 3)]
        {
            let count = Count { voters, up: voters };
            assert_eq!((count.quorum(), count.tolerated()), (quorum, tolerated), "{voters}");
            assert_eq!(count.spare(), Some(tolerated));
        }
        assert_eq!(Count { voters: 3, up: 1 }.spare(), None);
    }

    #[test]
    fn the_arithmetic_is_told_in_words_and_numbers() {
        assert_eq!(
            Count { voters: 3, up: 3 }.words(),
            "3 voters, quorum 3 / 2 + 1 = 2, tolerates 1 down; 3 up: 3 - 2 = 1 more may fail"
        );
        assert_eq!(
            Count { voters: 4, up: 2 }.words(),
            "4 voters, quorum 4 / 2 + 1 = 3, tolerates 1 down; 2 up: 1 too few, NO QUORUM"
        );
    }

    #[test]
    fn a_voter_added_while_one_is_down_loses_the_quorum() {
        let steps = [Step::AddVoter, Step::Start];
        assert_eq!(problems(&cluster(3, 0, false), &steps), [None, None]);
        // 4 voters need 3 and 2 are up, until the new one is.
        assert_eq!(problems(&cluster(3, 1, false), &steps)[0], Some(Problem::QuorumLost));
        assert_eq!(problems(&cluster(1, 0, false), &steps)[0], Some(Problem::QuorumLost));
        assert_eq!(problems(&cluster(3, 2, false), &steps)[0], Some(Problem::Unhealthy));
        let mut fresh = cluster(2, 0, false);
        fresh[1].is_started = false;
        assert_eq!(problems(&fresh, &steps)[0], Some(Problem::NotEnoughStarted));
    }

    #[test]
    fn a_learner_costs_nothing() {
        for (voters, down) in [(1, 0), (2, 0), (3, 0), (3, 1), (5, 2)] {
            assert_eq!(
                problems(&cluster(voters, down, false), &[Step::AddLearner]),
                [None],
                "{voters} {down}"
            );
        }
    }

    #[test]
    fn removing_looks_at_who_is_left() {
        assert_eq!(problems(&cluster(3, 0, false), &[Step::Remove(1)]), [None]);
        assert_eq!(
            problems(&cluster(3, 1, false), &[Step::Remove(3)]),
            [None],
            "the one that is down may go"
        );
        assert_eq!(problems(&cluster(3, 1, false), &[Step::Remove(1)]), [Some(Problem::Unhealthy)]);
        assert_eq!(problems(&cluster(3, 2, false), &[Step::Remove(3)]), [Some(Problem::QuorumLost)]);
        // One voter would be left, and is up; but two of two are needed to agree to that.
        assert_eq!(problems(&cluster(2, 1, false), &[Step::Remove(2)]), [Some(Problem::QuorumLost)]);
        assert_eq!(problems(&cluster(4, 2, false), &[Step::Remove(4)]), [Some(Problem::QuorumLost)]);
        assert_eq!(problems(&cluster(1, 0, false), &[Step::Remove(1)]), [Some(Problem::LastVoter)]);
        assert_eq!(problems(&cluster(3, 0, true), &[Step::Remove(9)]), [None], "a learner has no vote");
        // 5 voters, one down: one more may fail. 4 voters, the same one down: none.
        assert_eq!(problems(&cluster(5, 1, false), &[Step::Remove(1)]), [Some(Problem::NoSpare)]);
        assert_eq!(problems(&cluster(5, 1, false), &[Step::Remove(5)]), [None]);
    }

    #[test]
    fn promoting_needs_a_learner_that_is_up() {
        assert_eq!(problems(&cluster(3, 0, true), &[Step::Promote(9)]), [None]);
        assert_eq!(problems(&cluster(3, 0, true), &[Step::Promote(1)]), [Some(Problem::NotLearner)]);
        let mut members = cluster(3, 0, true);
        members[3].is_up = false;
        assert_eq!(problems(&members, &[Step::Promote(9)]), [Some(Problem::LearnerNotUp)]);
    }

    #[test]
    fn a_member_is_replaced_while_it_is_up_and_while_it_is_down() {
        for down in [0, 1] {
            assert_eq!(problems(&cluster(3, down, false), &REPLACE_LAST), [None; 4], "{down} down");
        }
        assert_eq!(problems(&cluster(3, 2, false), &REPLACE_LAST)[0], Some(Problem::Unhealthy));
        let outcomes = judge(&cluster(3, 1, false), &REPLACE_LAST);
        assert_eq!(outcomes[2].after, Count { voters: 4, up: 3 });
        assert_eq!(outcomes[3].after, Count { voters: 3, up: 3 });
    }
}
