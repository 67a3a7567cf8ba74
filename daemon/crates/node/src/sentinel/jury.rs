//! What peers say of this member, and what follows from it. Pure: a clock's reading comes in with each question.
//!
//! A voice alone stops nobody who serves. One that says "you have less history than you promised" silences this member at once, which is
//! always safe. The leader, or a majority, ends the matter one way or the other; so does a voter that takes this member's side and has
//! applied at least as much as the accuser: what is known of a member is replicated, so one of the two is wrong, and it is not the state
//! that is further on.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use identity::{
    LogEnd, Unique, Verdict, Witness,
    believe::{Voice, believed, believed_at_start, is_behind},
};
use types::MemberId;

/// A voice is forgotten when its speaker has not said it again for so long: what is acted on must have been said at one time. Peers are
/// asked every second while anything is said against this member.
const VOICE_LIVES: Duration = Duration::from_secs(10);

/// A contradiction that nobody outweighs ends a member that serves nobody yet, after this.
const PATIENCE: Duration = Duration::from_secs(3);

/// Two of the verdicts may pass by themselves: a twin's connections take up to seven seconds to be known for dead, and a list of members
/// may be behind.
const PATIENCE_IF_MAY_PASS: Duration = Duration::from_secs(8);

/// Who spoke, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub witness: Witness,
    pub verdict: Verdict,
}

impl Heard {
    fn is_of_record(&self) -> bool {
        match &self.verdict {
            Verdict::LostData { boot_seq, .. }
            | Verdict::OlderBoot { boot_seq, .. }
            | Verdict::ShorterLog { boot_seq, .. } => *boot_seq > 0,
            _ => false,
        }
    }
}

/// Of two accusations the leader's, then the better informed one is answered.
fn weight(heard: &&Heard) -> (bool, u64, u64) {
    (heard.witness.leads, heard.witness.term, heard.witness.commit)
}

/// This member does not belong to the cluster any more: whoever runs it ends it and remembers why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expelled {
    pub verdict: Verdict,
    /// All that was said at the time, also in favour.
    pub voices: Vec<Heard>,
    /// It had been part of its cluster in this start.
    pub was_serving: bool,
}

/// What this member knows of itself when it listens.
#[derive(Clone, Debug)]
pub(super) struct Oneself {
    pub me: MemberId,
    /// Those of the newest configuration that is known here; of a joiner, the members that gave it its place.
    pub voters: Vec<MemberId>,
    /// Those of a newer one, as somebody of this life tells them who takes this member; empty if nobody does.
    pub newer: Vec<MemberId>,
    pub life: Option<Unique>,
    pub log: LogEnd,
    /// In the present term, as far as this member knows.
    pub leader: MemberId,
    pub is_confirmed: bool,
}

impl Oneself {
    /// Nobody else has a say.
    fn is_alone(&self) -> bool {
        self.voters == [self.me]
    }

    /// A mark that was set between a hello and its judgement: this log reaches it.
    fn reaches(&self, verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::ShorterLog { last_index, term, .. }
            if self.log.last_index >= *last_index && self.log.term >= *term)
    }
}

struct Spoken {
    heard: Heard,
    /// Of the speaker's cluster.
    life: Option<Unique>,
    at: Instant,
}

#[derive(Default)]
pub(super) struct Jury {
    /// The latest of each peer.
    voices: BTreeMap<MemberId, Spoken>,
    /// Since when there has been a voice against this member without a break.
    against_since: Option<Instant>,
    /// The newest voice for which this member is silent, be it repeated or not.
    quarantine: Option<Heard>,
    /// In this term somebody has taken this member's side with reason: who does not lead and knows no later term is not heard.
    cleared_in: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub quarantine: Option<Verdict>,
    pub expel: Option<Expelled>,
    /// Something stands against this member: everybody should be asked again.
    pub ask: bool,
}

impl Jury {
    /// `life`: of the speaker's cluster, if it says so.
    pub(super) fn hear(&mut self, mut heard: Heard, life: Option<Unique>, own: &Oneself, now: Instant) {
        let leads_elsewhere = heard.witness.term == own.log.term && !own.leader.is_none();
        heard.witness.leads &= !leads_elsewhere || own.leader == heard.witness.member;
        let is_foreign = own.life.zip(life).is_some_and(|(ours, theirs)| ours != theirs);
        let other_life = matches!(heard.verdict, Verdict::OtherLife { .. });
        // Who leads another life of the cluster proves no quorum of this one.
        heard.witness.leads &= !is_foreign && !other_life;
        // What is marked for good takes the same life: who has not learned its own yet cannot tell whose leader it hears.
        heard.witness.leads &= own.life == life || !matches!(heard.verdict, Verdict::Removed { .. });
        let Heard { witness, verdict } = &heard;
        // Another life of the cluster knows nothing of this one; that there is one matters only to a member that is not in its own yet.
        if witness.member == own.me || own.is_alone() || (is_foreign || other_life) && own.is_confirmed {
            return;
        }
        if is_foreign && !other_life {
            return;
        }
        let outvoted = self.cleared_in.is_some_and(|term| witness.term <= term && !witness.leads);
        if own.reaches(verdict)
            || is_behind(verdict, witness, own.log.commit)
            || (outvoted && verdict.means_lost_history())
        {
            return;
        }
        self.voices.insert(witness.member, Spoken { heard, life, at: now });
    }

    /// The peer takes this member, as its behaviour shows. Who leads in which term it did not say.
    pub(super) fn welcomed(&mut self, peer: MemberId) {
        if self.voices.get(&peer).is_some_and(|spoken| !spoken.heard.verdict.is_welcome()) {
            self.voices.remove(&peer);
        }
    }

    pub(super) fn quarantine(&self) -> Option<&Verdict> {
        self.quarantine.as_ref().map(|heard| &heard.verdict)
    }

    pub(super) fn decide(&mut self, own: &Oneself, now: Instant) -> Decision {
        self.voices.retain(|_, spoken| now.saturating_duration_since(spoken.at) < VOICE_LIVES);
        let against =
            || self.voices.values().map(|spoken| &spoken.heard).filter(|heard| !heard.verdict.is_welcome());
        if against().next().is_none() {
            self.against_since = None;
        } else {
            self.against_since.get_or_insert(now);
        }
        if let Some(heard) = against().filter(|heard| heard.verdict.means_lost_history()).max_by_key(weight) {
            let is_newer = self.quarantine.as_ref().is_none_or(|known| weight(&known) <= weight(&heard));
            if is_newer {
                self.quarantine = Some(heard.clone());
            }
        }
        if let Some(term) = self.friendly_term(own) {
            if self.quarantine.take().is_some() {
                self.cleared_in = self.cleared_in.max(Some(term));
            }
            let ask = self.against_since.is_some();
            return Decision { quarantine: None, expel: None, ask };
        }
        let expel = self.guilty(own, now).map(|verdict| Expelled {
            verdict,
            voices: self.voices.values().map(|spoken| spoken.heard.clone()).collect(),
            was_serving: own.is_confirmed,
        });
        let ask = self.quarantine.is_some() || self.against_since.is_some();
        Decision { quarantine: self.quarantine().cloned(), expel, ask }
    }

    /// Somebody who is entitled to it takes this member's side, as of this term.
    fn friendly_term(&self, own: &Oneself) -> Option<u64> {
        let voices = || self.voices.values().map(|spoken| &spoken.heard);
        let against = || voices().filter(|heard| !heard.verdict.is_welcome()).chain(&self.quarantine);
        let newest_term = against().map(|heard| heard.witness.term).max().unwrap_or(0).max(own.log.term);
        let mut friends = voices().filter(|heard| heard.verdict.is_welcome());
        let leads = |friend: &Heard| friend.witness.leads && friend.witness.term >= newest_term;
        // Only against what is replicated: who attended the founding, and what a leader has seen in its term, is known to some alone.
        let accused = self.quarantine.as_ref().filter(|heard| !heard.witness.leads && heard.is_of_record());
        let knows_better = |friend: &Heard| {
            own.voters.contains(&friend.witness.member)
                && accused.is_some_and(|accused| friend.witness.commit >= accused.witness.commit)
                && !voices().any(|heard| heard.witness.leads && !heard.verdict.is_welcome())
        };
        friends.any(|friend| leads(friend) || knows_better(friend)).then_some(newest_term)
    }

    fn guilty(&self, own: &Oneself, now: Instant) -> Option<Verdict> {
        let term = own.log.term;
        let voices = |counts: fn(&Verdict) -> bool| -> Vec<Voice<'_>> {
            let voices = self.voices.values().map(|spoken| (&spoken.heard, spoken.life));
            voices
                .filter(|(heard, _)| heard.verdict.is_welcome() || counts(&heard.verdict))
                .map(|(heard, life)| Voice {
                    from: heard.witness.member,
                    leads: heard.witness.leads,
                    term: heard.witness.term,
                    verdict: &heard.verdict,
                    // What else another life says is not taken down.
                    is_foreign: matches!(heard.verdict, Verdict::OtherLife { .. }),
                    life: own.life.or(life),
                })
                .collect()
        };
        if own.is_confirmed {
            // Only what the log itself may have decided. The rest is the speaker's affair.
            let voices =
                voices(|verdict| verdict.means_lost_history() || matches!(verdict, Verdict::Removed { .. }));
            return believed(&own.voters, term, &voices).cloned();
        }
        let waited = |patience| {
            self.against_since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
        };
        // It is marked in the directory and never taken back: patience alone is not enough for it.
        let removed = voices(|verdict| matches!(verdict, Verdict::Removed { .. }));
        if let Some(verdict) = believed(&own.voters, term, &removed) {
            return Some(verdict.clone());
        }
        let lasting = voices(|verdict| !verdict.may_pass() && !matches!(verdict, Verdict::Removed { .. }));
        let all = voices(|verdict| !matches!(verdict, Verdict::Removed { .. }));
        believed_at_start(&own.voters, &own.newer, own.me, term, &lasting, waited(PATIENCE))
            .or_else(|| {
                waited(PATIENCE_IF_MAY_PASS)
                    .then(|| believed_at_start(&own.voters, &own.newer, own.me, term, &all, true))
                    .flatten()
            })
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::Home;

    const ME: MemberId = MemberId(1);
    const LIFE: Option<Unique> = Some(Unique::from_bytes([7; 16]));
    const OTHER: Option<Unique> = Some(Unique::from_bytes([8; 16]));

    fn own(is_confirmed: bool) -> Oneself {
        Oneself {
            me: ME,
            voters: vec![ME, MemberId(2), MemberId(3)],
            newer: Vec::new(),
            life: LIFE,
            log: LogEnd { last_index: 44, last_term: 5, term: 5, commit: 44 },
            leader: MemberId::NONE,
            is_confirmed,
        }
    }

    fn heard(from: u64, leads: bool, term: u64, verdict: Verdict) -> Heard {
        // Who welcomes is a little behind, unless a test says otherwise.
        let commit = if verdict.is_welcome() { 8 } else { 9 };
        Heard { witness: Witness { member: MemberId(from), leads, term, commit }, verdict }
    }

    fn lost() -> Verdict {
        Verdict::LostData { dir: Unique::for_test(1), boot_seq: 3, home: Home::default() }
    }

    fn removed() -> Verdict {
        Verdict::Removed { index: 40, term: 5, asked_through: None }
    }

    fn duplicate() -> Verdict {
        Verdict::Duplicate { boot_seq: 3, home: Home::default() }
    }

    fn shorter(last_index: u64) -> Verdict {
        Verdict::ShorterLog { last_index, term: 5, boot_seq: 3, home: Home::default() }
    }

    fn other_life() -> Verdict {
        let (yours, ours) = (Unique::for_test(7), Some(Unique::for_test(8)));
        Verdict::OtherLife { yours, ours, came_from_yours: true }
    }

    /// Each voice as it comes, and the last decision.
    fn after(own: &Oneself, seconds: u64, voices: &[(Heard, Option<Unique>)]) -> (Decision, Jury) {
        let mut jury = Jury::default();
        let start = Instant::now();
        for (heard, life) in voices {
            jury.hear(heard.clone(), *life, own, start);
        }
        let mut decision = jury.decide(own, start);
        if seconds > 0 {
            let later = start + Duration::from_secs(seconds);
            for (heard, life) in voices {
                jury.hear(heard.clone(), *life, own, later);
            }
            decision = jury.decide(own, later);
        }
        (decision, jury)
    }

    fn expelled(decision: &Decision) -> Option<&'static str> {
        decision.expel.as_ref().map(|expelled| expelled.verdict.name())
    }

    #[test]
    fn one_voice_never_stops_a_member_that_serves() {
        for verdict in [removed(), Verdict::Stranger, Verdict::Pending, duplicate(), other_life()] {
            let (decision, _) = after(&own(true), 9, &[(heard(2, false, 9, verdict.clone()), LIFE)]);
            assert_eq!((expelled(&decision), &decision.quarantine), (None, &None), "{verdict:?}");
        }
        let (decision, _) = after(&own(true), 9, &[(heard(2, false, 9, lost()), LIFE)]);
        assert_eq!(expelled(&decision), None);
        assert_eq!(decision.quarantine, Some(lost()), "but it promises nothing meanwhile");
        assert!(decision.ask);
    }

    #[test]
    fn one_voice_never_removes_a_member_that_was_down() {
        let (decision, _) = after(&own(false), 60, &[(heard(2, false, 9, removed()), LIFE)]);
        assert_eq!(expelled(&decision), None);
        let both = [(heard(2, false, 9, removed()), LIFE), (heard(3, false, 9, removed()), LIFE)];
        assert_eq!(expelled(&after(&own(false), 0, &both).0), Some(removed().name()));
        let leader = [(heard(2, true, 9, removed()), LIFE)];
        assert_eq!(expelled(&after(&own(false), 0, &leader).0), Some(removed().name()));
    }

    #[test]
    fn a_leader_removes_only_whom_it_shares_a_life_with() {
        let unled = Oneself { life: None, ..own(false) };
        let leader = [(heard(2, true, 9, removed()), OTHER)];
        assert_eq!(expelled(&after(&unled, 60, &leader).0), None, "it may lead another life");
        let both = [leader[0].clone(), (heard(3, false, 9, removed()), OTHER)];
        assert_eq!(expelled(&after(&unled, 0, &both).0), Some("removed"));
        let apart = [leader[0].clone(), (heard(3, true, 9, removed()), Some(Unique::from_bytes([9; 16])))];
        assert_eq!(
            expelled(&after(&unled, 60, &apart).0),
            None,
            "each has been forced into a life of its own"
        );
        let nameless = [(heard(2, true, 9, removed()), None)];
        assert_eq!(
            expelled(&after(&unled, 0, &nameless).0),
            Some("removed"),
            "a cluster whose log is an etcd's"
        );
    }

    #[test]
    fn the_leader_or_a_majority_ends_it() {
        for verdict in [removed(), lost(), shorter(70)] {
            let (decision, _) = after(&own(true), 0, &[(heard(2, true, 5, verdict.clone()), LIFE)]);
            assert_eq!(expelled(&decision), Some(verdict.name()));
            let (decision, _) = after(&own(true), 0, &[(heard(2, true, 4, verdict.clone()), LIFE)]);
            assert_eq!(expelled(&decision), None, "a leader of the past: {verdict:?}");
            let both =
                [(heard(2, false, 4, verdict.clone()), LIFE), (heard(3, false, 4, verdict.clone()), None)];
            let (decision, _) = after(&own(true), 0, &both);
            assert_eq!(expelled(&decision), Some(verdict.name()));
            assert!(
                decision.expel.is_some_and(|expelled| expelled.was_serving && expelled.voices.len() == 2)
            );
        }
        for verdict in [Verdict::Stranger, duplicate(), Verdict::Pending] {
            let both = [(heard(2, true, 5, verdict.clone()), LIFE), (heard(3, false, 5, verdict), LIFE)];
            let (decision, _) = after(&own(true), 9, &both);
            assert_eq!(expelled(&decision), None, "the log decides none of these about a member that serves");
        }
    }

    #[test]
    fn a_leaders_welcome_lifts_the_quarantine_and_the_accuser_is_not_heard_again() {
        let own = own(true);
        let (decision, mut jury) = after(&own, 0, &[(heard(2, false, 5, lost()), LIFE)]);
        assert!(decision.quarantine.is_some());
        let now = Instant::now();
        jury.hear(heard(3, true, 4, Verdict::Welcome), LIFE, &own, now);
        assert!(jury.decide(&own, now).quarantine.is_some(), "it led in the past");
        jury.hear(heard(3, true, 6, Verdict::Welcome), LIFE, &own, now);
        assert_eq!(jury.decide(&own, now).quarantine, None);
        jury.welcomed(MemberId(2));
        jury.hear(heard(2, false, 6, lost()), LIFE, &own, now);
        assert_eq!(jury.decide(&own, now).quarantine, None, "outvoted");
        jury.hear(heard(2, true, 7, lost()), LIFE, &own, now);
        assert_eq!(expelled(&jury.decide(&own, now)), Some("lost_data"), "a later leader knows better");
    }

    #[test]
    fn a_welcome_of_who_may_know_less_than_the_accuser_lifts_nothing() {
        let own = own(true);
        let voices = [(heard(2, false, 7, lost()), LIFE), (heard(3, true, 6, Verdict::Welcome), LIFE)];
        assert!(after(&own, 0, &voices).0.quarantine.is_some(), "deposed, perhaps, and it does not know");
        let voices = [(heard(2, false, 7, lost()), LIFE), (heard(3, false, 7, Verdict::Welcome), LIFE)];
        let (decision, _) = after(&own, 9, &voices);
        assert!(
            decision.quarantine.is_some() && decision.expel.is_none(),
            "one against one: wait for a leader"
        );
    }

    #[test]
    fn a_mark_that_this_log_reaches_is_no_accusation() {
        let (decision, _) = after(&own(true), 0, &[(heard(2, true, 5, shorter(44)), LIFE)]);
        assert_eq!((decision.quarantine, decision.expel, decision.ask), (None, None, false));
        let (decision, _) = after(&own(true), 0, &[(heard(2, true, 5, shorter(45)), LIFE)]);
        assert_eq!(expelled(&decision), Some("shorter_log"));
    }

    #[test]
    fn another_life_and_a_sole_voter_are_not_concerned() {
        let (decision, _) = after(&own(true), 9, &[(heard(2, true, 9, lost()), OTHER)]);
        assert_eq!((decision.quarantine, decision.expel), (None, None));
        let alone = Oneself { voters: vec![ME], ..own(true) };
        let (decision, _) = after(&alone, 9, &[(heard(2, true, 9, lost()), LIFE)]);
        assert_eq!((decision.quarantine, decision.expel), (None, None));
    }

    #[test]
    fn before_it_serves_a_contradiction_counts_after_a_while() {
        let start = own(false);
        let one = [(heard(2, false, 5, Verdict::Pending), LIFE)];
        assert_eq!(expelled(&after(&start, 0, &one).0), None);
        assert_eq!(expelled(&after(&start, 4, &one).0), Some("pending"));
        let outweighed = [one[0].clone(), (heard(3, false, 5, Verdict::Welcome), LIFE)];
        assert_eq!(expelled(&after(&start, 9, &outweighed).0), None, "two of three agree");
        let forced = [(heard(2, true, 9, other_life()), OTHER), outweighed[1].clone()];
        assert_eq!(expelled(&after(&start, 9, &forced).0), None, "it leads nobody of this life");
        let twin = [(heard(2, true, 5, duplicate()), LIFE)];
        assert_eq!(expelled(&after(&start, 4, &twin).0), None, "its connections may be dying");
        assert_eq!(expelled(&after(&start, 9, &twin).0), Some("duplicate"));
        let foreign = [(heard(2, true, 9, Verdict::Stranger), OTHER)];
        assert_eq!(expelled(&after(&start, 9, &foreign).0), None, "who it is, only its own life can say");
    }

    #[test]
    fn another_life_at_one_address_stops_no_start_and_at_most_of_them_does() {
        let start = own(false);
        let one = [(heard(2, true, 9, other_life()), OTHER)];
        assert_eq!(expelled(&after(&start, 60, &one).0), None, "the third may still come up");
        let unnamed = Verdict::OtherLife { yours: Unique::for_test(7), ours: None, came_from_yours: true };
        let restored = [(heard(2, true, 9, unnamed), None)];
        assert_eq!(expelled(&after(&start, 60, &restored).0), None);
        let both = [one[0].clone(), (heard(3, false, 5, other_life()), OTHER)];
        assert_eq!(expelled(&after(&start, 0, &both).0), Some("other_life"));
        let moved = Oneself { newer: vec![ME, MemberId(4), MemberId(5)], ..own(false) };
        assert_eq!(expelled(&after(&moved, 60, &both).0), None, "its cluster is not where it was");
        let two = Oneself { voters: vec![ME, MemberId(2)], ..own(false) };
        assert_eq!(expelled(&after(&two, 0, &one).0), None);
        assert_eq!(expelled(&after(&two, 4, &one).0), Some("other_life"), "no majority without it");
    }

    #[test]
    fn what_was_said_long_ago_is_forgotten() {
        let own = own(true);
        let (_, mut jury) = after(&own, 0, &[(heard(2, false, 5, removed()), LIFE)]);
        let later = Instant::now() + Duration::from_secs(11);
        jury.hear(heard(3, false, 5, removed()), LIFE, &own, later);
        assert_eq!(expelled(&jury.decide(&own, later)), None);
    }
}
