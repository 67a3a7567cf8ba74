//! When a member may act on what peers say of it. One peer's word is never enough: a confused or foreign one must not be able to stop
//! a healthy member.

use types::MemberId;

use crate::{Answer, Verdict, Witness};

/// What one peer said.
#[derive(Clone, Copy, Debug)]
pub struct Voice<'a> {
    pub from: MemberId,
    pub leads: bool,
    pub term: u64,
    pub verdict: &'a Verdict,
}

impl<'a> From<&'a Answer> for Voice<'a> {
    fn from(answer: &'a Answer) -> Voice<'a> {
        let witness = &answer.known.witness;
        Voice { from: witness.member, leads: witness.leads, term: witness.term, verdict: &answer.verdict }
    }
}

/// The verdict to act on: of somebody who leads in a term that is not behind ours, or in which ⌊N/2⌋+1 of the voters that we know of
/// agree (of the same kind, whatever the details). Voices of who is no voter count only when they lead, which they then do by proof
/// of a quorum. `None` also when all is well.
pub fn believed<'a>(voters: &[MemberId], own_term: u64, voices: &[Voice<'a>]) -> Option<&'a Verdict> {
    let against = || voices.iter().filter(|voice| !voice.verdict.is_welcome());
    if let Some(leader) = against().find(|voice| voice.leads && voice.term >= own_term) {
        return Some(leader.verdict);
    }
    let majority = voters.len() / 2 + 1;
    against()
        .find(|voice| {
            let same = against()
                .filter(|other| voters.contains(&other.from) && other.verdict.name() == voice.verdict.name());
            same.count() >= majority
        })
        .map(|voice| voice.verdict)
}

/// Whether a verdict shows no more than that its speaker's list of members is behind: whoever has applied less than this member knows to
/// be committed cannot know whom the rest made a member. Were it believed, members that were added while others were down would stay
/// away after a cold start, and those others could wait for ever for the votes that let them catch up. Who was removed is told so.
pub fn is_behind(verdict: &Verdict, witness: &Witness, own_commit: u64) -> bool {
    *verdict == Verdict::Stranger && witness.commit < own_commit
}

/// For a member that serves nobody yet: also when, after some patience, somebody speaks against it and those who do not are, with
/// itself, no majority.
pub fn believed_at_start<'a>(
    voters: &[MemberId],
    own: MemberId,
    own_term: u64,
    voices: &[Voice<'a>],
    patience_is_over: bool,
) -> Option<&'a Verdict> {
    if let Some(verdict) = believed(voters, own_term, voices) {
        return Some(verdict);
    }
    let against = voices.iter().find(|voice| !voice.verdict.is_welcome())?;
    let agree = voters
        .iter()
        .filter(|voter| {
            **voter == own || voices.iter().any(|voice| voice.from == **voter && voice.verdict.is_welcome())
        })
        .count();
    (patience_is_over && agree < voters.len() / 2 + 1).then_some(against.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTERS: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

    fn voice(from: u64, leads: bool, term: u64, verdict: &Verdict) -> Voice<'_> {
        Voice { from: MemberId(from), leads, term, verdict }
    }

    #[test]
    fn one_voice_is_enough_only_from_the_leader() {
        let (bad, good) = (Verdict::Stranger, Verdict::Welcome);
        assert!(believed(&VOTERS, 5, &[voice(2, false, 9, &bad)]).is_none());
        assert!(believed(&VOTERS, 5, &[voice(2, true, 4, &bad)]).is_none(), "a leader of the past");
        assert!(believed(&VOTERS, 5, &[voice(2, true, 5, &bad), voice(3, false, 5, &good)]).is_some());
        assert!(believed(&VOTERS, 5, &[voice(2, true, 5, &good)]).is_none());
    }

    #[test]
    fn a_majority_of_the_voters_is_enough_if_it_says_the_same() {
        let bad = Verdict::Stranger;
        let other = Verdict::Pending;
        assert!(believed(&VOTERS, 5, &[voice(2, false, 1, &bad), voice(3, false, 1, &bad)]).is_some());
        assert!(believed(&VOTERS, 5, &[voice(2, false, 1, &bad), voice(3, false, 1, &other)]).is_none());
        assert!(believed(&VOTERS, 5, &[voice(8, false, 1, &bad), voice(9, false, 1, &bad)]).is_none());
        assert!(
            believed(&VOTERS[..2], 5, &[voice(2, false, 1, &bad)]).is_none(),
            "one of two is no majority"
        );
    }

    #[test]
    fn who_has_applied_less_does_not_know_who_was_added() {
        let witness = |commit| Witness { member: MemberId(2), leads: false, term: 1, commit };
        assert!(is_behind(&Verdict::Stranger, &witness(8), 9));
        assert!(!is_behind(&Verdict::Stranger, &witness(9), 9));
        assert!(
            !is_behind(&Verdict::Stranger, &witness(0), 0),
            "a joiner without a log knows nothing better"
        );
        assert!(!is_behind(&Verdict::Pending, &witness(8), 9));
    }

    #[test]
    fn at_the_start_a_contradiction_that_nobody_outweighs_counts_after_a_while() {
        let (bad, good) = (Verdict::Stranger, Verdict::Welcome);
        let one = [voice(2, false, 1, &bad)];
        assert!(believed_at_start(&VOTERS, MemberId(1), 5, &one, false).is_none());
        assert!(believed_at_start(&VOTERS, MemberId(1), 5, &one, true).is_some());
        let both = [voice(2, false, 1, &bad), voice(3, false, 1, &good)];
        assert!(believed_at_start(&VOTERS, MemberId(1), 5, &both, true).is_none(), "two of three agree");
        assert!(believed_at_start(&VOTERS, MemberId(1), 5, &[], true).is_none(), "a cold start asks nobody");
    }
}
