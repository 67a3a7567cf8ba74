//! When a member may act on what peers say of it. One peer's word is never enough: a confused or foreign one must not be able to stop
//! a healthy member.
//!
//! Who speaks for this member's own life of the cluster repeats what is replicated there, and is weighed against those who take its side.
//! Who belongs to another life, or to another cluster, knows nothing of this one: it only shows that the voter at its address is
//! elsewhere. That stops a start when so many voters are elsewhere that the rest are no majority. Voters that are silent count as not
//! there yet: when a whole cluster starts at once each of its members is silent to the others.

use types::MemberId;

use crate::{Answer, Unique, Verdict, Witness};

/// What one peer said.
#[derive(Clone, Copy, Debug)]
pub struct Voice<'a> {
    pub from: MemberId,
    pub leads: bool,
    pub term: u64,
    pub verdict: &'a Verdict,
    /// It is of another life of the cluster, or of another cluster, and stands at this voter's address.
    pub is_foreign: bool,
    /// The life that it is of: this member's own where that is known. Who has not learned its own cannot tell which are foreign.
    pub life: Option<Unique>,
}

impl Voice<'_> {
    fn is_against(&self) -> bool {
        !self.verdict.is_welcome()
    }

    /// Two who say the same of one history. What is marked for good takes one history: lives that were forced apart have each removed the
    /// rest, and are together no majority of any.
    fn agrees_with(&self, other: &Voice<'_>) -> bool {
        let is_for_good = matches!(self.verdict, Verdict::Removed { .. });
        self.verdict.name() == other.verdict.name() && (!is_for_good || self.life == other.life)
    }

    /// Whom a foreign one leads is no quorum of ours.
    fn leads_us(&self, own_term: u64) -> bool {
        self.leads && !self.is_foreign && self.term >= own_term
    }
}

impl<'a> From<&'a Answer> for Voice<'a> {
    fn from(answer: &'a Answer) -> Voice<'a> {
        let witness = &answer.known.witness;
        let is_foreign = matches!(answer.verdict, Verdict::OtherLife { .. });
        Voice {
            from: witness.member,
            leads: witness.leads,
            term: witness.term,
            verdict: &answer.verdict,
            is_foreign,
            life: answer.known.cluster_uuid,
        }
    }
}

/// The verdict to act on: of somebody who leads in a term that is not behind ours, or in which ⌊N/2⌋+1 of the voters that we know of
/// agree (of the same kind, whatever the details). Voices of who is no voter count only when they lead, which they then do by proof
/// of a quorum. `None` also when all is well.
pub fn believed<'a>(voters: &[MemberId], own_term: u64, voices: &[Voice<'a>]) -> Option<&'a Verdict> {
    let against = || voices.iter().filter(|voice| voice.is_against());
    if let Some(leader) = against().find(|voice| voice.leads_us(own_term)) {
        return Some(leader.verdict);
    }
    let majority = voters.len() / 2 + 1;
    against()
        .find(|voice| {
            let same = against().filter(|other| voters.contains(&other.from) && other.agrees_with(voice));
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

/// For a member that serves nobody yet: also when, after some patience, somebody of its own life speaks against it and those who take its
/// side are, with itself, no majority; or when so many voters are elsewhere that a majority cannot come up any more.
///
/// It may have been away while its cluster moved, and others run where its members were. So whoever is elsewhere has no say once somebody
/// leads this life and takes this member, or where the rest are a majority of the voters as of `newer`: as somebody of this life tells them
/// who takes this member and has applied more than it has; empty where nobody does. That only ever speaks for a start.
pub fn believed_at_start<'a>(
    voters: &[MemberId],
    newer: &[MemberId],
    own: MemberId,
    own_term: u64,
    voices: &[Voice<'a>],
    patience_is_over: bool,
) -> Option<&'a Verdict> {
    let is_led = voices.iter().any(|voice| !voice.is_against() && voice.leads_us(own_term));
    let is_elsewhere = |voter: &&MemberId| {
        voices.iter().any(|voice| voice.from == **voter && voice.is_against() && voice.is_foreign)
    };
    let lost = newer.iter().filter(|voter| **voter != own).filter(is_elsewhere).count();
    let may_come_up = !newer.is_empty() && newer.len() - lost > newer.len() / 2;
    let is_heard = |voice: &&Voice<'a>| !(voice.is_foreign && (is_led || may_come_up));
    let voices: Vec<Voice<'a>> = voices.iter().filter(is_heard).copied().collect();
    if let Some(verdict) = believed(voters, own_term, &voices) {
        return Some(verdict);
    }
    if !patience_is_over || is_led {
        return None;
    }
    let majority = voters.len() / 2 + 1;
    let count = |wanted: &dyn Fn(&Voice<'_>) -> bool| {
        let says = |voter: &&MemberId| voices.iter().any(|voice| voice.from == **voter && wanted(voice));
        voters.iter().filter(|voter| **voter != own).filter(says).count()
    };
    let ours = voices.iter().find(|voice| voice.is_against() && !voice.is_foreign);
    if let Some(against) = ours {
        let own_vote = usize::from(voters.contains(&own));
        let agree = own_vote + count(&|voice| !voice.is_against() && !voice.is_foreign);
        if agree < majority {
            return Some(against.verdict);
        }
    }
    let foreign =
        voices.iter().find(|voice| voice.is_against() && voice.is_foreign && voters.contains(&voice.from))?;
    let elsewhere = count(&|voice| voice.is_against() && voice.is_foreign);
    (voters.len() - elsewhere < majority).then_some(foreign.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTERS: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

    fn voice(from: u64, leads: bool, term: u64, verdict: &Verdict) -> Voice<'_> {
        Voice { from: MemberId(from), leads, term, verdict, is_foreign: false, life: None }
    }

    fn foreign(from: u64, verdict: &Verdict) -> Voice<'_> {
        Voice { is_foreign: true, ..voice(from, true, 99, verdict) }
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

    /// A founder that was away before it learned its life, and whose peers have all been forced apart meanwhile.
    #[test]
    fn lives_that_were_forced_apart_remove_nobody_together() {
        let removed = Verdict::Removed { index: 9, term: 3, asked_through: None };
        let of = |from, life| Voice { life: Some(Unique::for_test(life)), ..voice(from, false, 3, &removed) };
        assert!(believed(&VOTERS, 1, &[of(2, 7), of(3, 8)]).is_none());
        assert!(believed_at_start(&VOTERS, &[], MemberId(1), 1, &[of(2, 7), of(3, 8)], false).is_none());
        assert!(believed(&VOTERS, 1, &[of(2, 7), of(3, 7)]).is_some());
        assert!(
            believed(&VOTERS, 1, &[of(2, 7), voice(3, false, 3, &removed)]).is_none(),
            "it may be of none"
        );
        let other = Verdict::OtherLife { yours: Unique::for_test(1), ours: None, came_from_yours: false };
        let elsewhere = |from, life| Voice { verdict: &other, is_foreign: true, ..of(from, life) };
        assert!(believed(&VOTERS, 1, &[elsewhere(2, 7), elsewhere(3, 8)]).is_some(), "wherever they are");
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
        assert!(believed_at_start(&VOTERS, &[], MemberId(1), 5, &one, false).is_none());
        assert!(believed_at_start(&VOTERS, &[], MemberId(1), 5, &one, true).is_some());
        let both = [voice(2, false, 1, &bad), voice(3, false, 1, &good)];
        assert!(believed_at_start(&VOTERS, &[], MemberId(1), 5, &both, true).is_none(), "two of three agree");
        assert!(
            believed_at_start(&VOTERS, &[], MemberId(1), 5, &[], true).is_none(),
            "a cold start asks nobody"
        );
    }

    /// A whole cluster starts beside members of another life: who of it starts first hears only them.
    #[test]
    fn foreign_voices_count_when_the_rest_are_no_majority() {
        let (other, good) = (Verdict::Stranger, Verdict::Welcome);
        let stops = |size: u64, foreigners: u64| {
            let voters: Vec<MemberId> = (1..=size).map(MemberId).collect();
            let voices: Vec<Voice<'_>> = (2..2 + foreigners).map(|from| foreign(from, &other)).collect();
            believed_at_start(&voters, &[], MemberId(1), 5, &voices, true).is_some()
        };
        for (size, first_that_stops) in [(2, 1), (3, 2), (4, 2), (5, 3), (7, 4)] {
            for foreigners in 0..size {
                assert_eq!(
                    stops(size, foreigners),
                    foreigners >= first_that_stops,
                    "{foreigners} of {size} are elsewhere"
                );
            }
        }
        assert!(
            believed(&VOTERS, 5, &[foreign(2, &other)]).is_none(),
            "leading another life proves no quorum of this one"
        );
        assert!(believed(&VOTERS, 5, &[foreign(2, &other), foreign(3, &other)]).is_some());
        let strangers = [foreign(8, &other), foreign(9, &other), foreign(0, &other)];
        assert!(
            believed_at_start(&VOTERS, &[], MemberId(1), 5, &strangers, true).is_none(),
            "addresses that this directory does not know for voters"
        );
        assert!(
            believed_at_start(&[MemberId(1)], &[], MemberId(1), 5, &strangers, true).is_none(),
            "an only voter needs nobody"
        );
        let bad = Verdict::Pending;
        let mixed = [foreign(2, &good), voice(3, false, 1, &bad)];
        assert!(
            believed_at_start(&VOTERS, &[], MemberId(1), 5, &mixed, true).is_some(),
            "a foreign welcome outweighs nobody"
        );
    }

    /// The cluster was 1, 2, 3 when member 1 went down, and has moved to 1, 4 and 5 since; another one runs where 2 and 3 were.
    #[test]
    fn who_runs_where_the_others_were_does_not_outweigh_where_they_are_now() {
        let (other, bad, good) = (Verdict::Stranger, Verdict::Pending, Verdict::Welcome);
        let reused = [foreign(2, &other), foreign(3, &other)];
        let stops = |newer: &[MemberId], more: &[Voice<'static>]| {
            let voices: Vec<Voice<'_>> = reused.iter().chain(more).copied().collect();
            believed_at_start(&VOTERS, newer, MemberId(1), 5, &voices, true).is_some()
        };
        let moved = [MemberId(1), MemberId(4), MemberId(5)];
        assert!(stops(&[], &[]));
        assert!(stops(&[], &[voice(4, false, 5, &Verdict::Welcome)]), "it may know no more than this one");
        assert!(!stops(&moved, &[voice(4, false, 5, &Verdict::Welcome)]));
        assert!(stops(&VOTERS, &[voice(4, false, 5, &Verdict::Welcome)]), "nobody has moved");
        assert!(!stops(&[], &[voice(4, true, 5, &Verdict::Welcome)]), "it leads a quorum of this life");
        assert!(stops(&[], &[voice(4, true, 4, &Verdict::Welcome)]), "it led in the past");
        assert!(stops(&[], &[foreign(4, &Verdict::Welcome)]), "it leads something else");
        let five: Vec<MemberId> = (1..=5).map(MemberId).collect();
        let outvoted = [voice(2, false, 5, &bad), voice(3, true, 5, &good)];
        assert!(
            believed_at_start(&five, &[], MemberId(1), 5, &outvoted, true).is_none(),
            "who leads has a quorum, whoever else is up"
        );
    }
}
