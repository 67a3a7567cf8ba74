//! A member with data comes back: what its peers say of its directory in, a start, patience or a refusal out. Pure; `hello` puts the
//! questions.
//!
//! With nobody there it starts: the cold start of a whole cluster needs nobody's leave. What is said against it is believed from a
//! leader or from a majority, or after some patience when those who take its side are, with this member, no majority. Members of another
//! life of the cluster, or of another cluster, at the addresses of its own stop it only when the remaining ones are no majority; those
//! that only its settings name have no say, unless it knows nobody else and they count its address to another cluster.

use std::time::Duration;

use ::identity::{Answer, Life, Verdict, believe};
use types::MemberId;

use super::{
    attend::{Heard, Reply},
    verdict::{self, Me, Said},
};
use crate::refusal::{Id, Refusal};

/// After this a contradiction that nobody outweighs counts.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A twin that is not quiet after so long is no predecessor: a session is quiet 2 s after the last sign of life at the latest, so this one
/// has shown one since this start began. The rest is for a peer that was held up. With a last round of questions it is told within 5 s.
pub const TWIN_PATIENCE: Duration = Duration::from_millis(3500);

/// A quiet one may be dead. Its session ends within 4 s of its last sign of life, and within 7 s where it was never heard, since nobody can
/// call it: a link that nobody answers on gets a heartbeat each 1.7 s and is given up 5 s after the first that was not acknowledged.
pub const QUIET_TWIN_PATIENCE: Duration = Duration::from_secs(8);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What was said against this member and not believed.
    Start(Option<Refusal>),
    /// It is its cluster's only voter, and at these URLs of its settings runs another cluster that does not know its address.
    StartAlone(Vec<String>),
    /// It stands when it is still said later.
    AskAgain(Refusal),
    /// With what is believed, which the identity file may have to remember.
    Refuse(Refusal, Option<Verdict>),
}

/// `voters`: the last known ones, this member included.
pub fn decide(me: &Me, voters: &[MemberId], replies: &[Reply], waited: Duration) -> Step {
    let answers: Vec<(&Reply, &Answer, Verdict)> = replies
        .iter()
        .filter_map(|reply| match &reply.heard {
            Heard::Answer(answer) if answer.hello.boot.nonce == me.hello.boot.nonce => None,
            Heard::Answer(answer) => Some((reply, &**answer, said_of(me, answer))),
            _ => None,
        })
        // Another cluster's commit compares with nothing.
        .filter(|(_, answer, verdict)| {
            is_another_cluster(me, answer)
                || !believe::is_behind(verdict, &answer.known.witness, me.hello.log.commit)
        })
        .collect();
    let voices: Vec<believe::Voice> = answers
        .iter()
        .map(|(reply, answer, verdict)| {
            let is_foreign = is_foreign(me, answer);
            let witness = &answer.known.witness;
            believe::Voice {
                // In its own life it may be another member than the one whose address it has.
                from: if is_foreign { reply.member } else { witness.member },
                leads: witness.leads && (is_same_life(me, answer) || !is_for_good(verdict)),
                term: witness.term,
                verdict,
                is_foreign,
                life: match me.hello.life {
                    Life::Born(ours) => Some(ours),
                    _ => answer.known.cluster_uuid,
                },
            }
        })
        .collect();
    let over = waited >= PATIENCE;
    let (own, term) = (me.hello.member, me.hello.log.term);
    let refusal_of = |wanted: &Verdict| {
        let (reply, answer, verdict) = answers.iter().find(|(_, _, verdict)| verdict == wanted)?;
        let said = Said { url: &reply.url, answer };
        Some(match () {
            () if is_another_cluster(me, answer) => another_cluster(me, &said),
            () if began_otherwise(me, answer) => verdict::began_otherwise(me, &said),
            () => verdict::refusal(me, verdict, &said)?,
        })
    };
    // What marks the directory for good is the leader's to say, or a majority's: no patience makes one voice enough.
    let (for_good, passing): (Vec<_>, Vec<_>) =
        voices.iter().copied().partition(|voice| is_for_good(voice.verdict));
    let newer = newer_voters(me, &answers);
    let believed = believe::believed(voters, term, &for_good)
        .or_else(|| believe::believed_at_start(voters, &newer, own, term, &passing, over));
    if let Some((verdict, refusal)) = believed.and_then(|verdict| Some((verdict, refusal_of(verdict)?))) {
        let limit = match verdict {
            Verdict::Duplicate { .. } => {
                let same = answers.iter().filter(|(_, _, said)| said == verdict);
                let mut sessions = same.filter_map(|(_, answer, _)| answer.known.session.as_ref());
                if sessions.any(|twin| !twin.is_quiet) { TWIN_PATIENCE } else { QUIET_TWIN_PATIENCE }
            }
            verdict if verdict.may_pass() => PATIENCE,
            _ => Duration::ZERO,
        };
        return match waited >= limit {
            true => Step::Refuse(refusal, Some(verdict.clone())),
            false => Step::AskAgain(refusal),
        };
    }
    // An only voter needs nobody: whatever its cluster has acknowledged is here. Its settings are older than that where others run at the
    // addresses of members that it had. But where those others count this very address to their own cluster, either this directory or the
    // settings are somebody else's, and clients would be served what they do not mean.
    let strangers_only = answers.iter().all(|(_, answer, _)| is_another_cluster(me, answer));
    if let (true, [alone], Some(voice)) = (strangers_only, voters, voices.first())
        && *alone == own
        && let Some(refusal) = refusal_of(voice.verdict)
    {
        return match answers.iter().find_map(|(reply, answer, _)| claim(me, reply, answer)) {
            _ if !over => Step::AskAgain(refusal),
            Some(claimed) => Step::Refuse(claimed, None),
            None => {
                let mut stale: Vec<String> = answers.iter().map(|(reply, ..)| reply.url.clone()).collect();
                stale.sort();
                Step::StartAlone(stale)
            }
        };
    }
    let against = voices.iter().find(|voice| !voice.verdict.is_welcome());
    match against.and_then(|voice| refusal_of(voice.verdict)) {
        Some(refusal) if !over => Step::AskAgain(refusal),
        doubted => Step::Start(doubted),
    }
}

/// The voters as somebody tells them who is of this member's life, takes it, and has applied more than it has.
fn newer_voters(me: &Me, answers: &[(&Reply, &Answer, Verdict)]) -> Vec<MemberId> {
    let knows_more = |(_, answer, verdict): &&(&Reply, &Answer, Verdict)| {
        verdict.is_welcome()
            && !is_foreign(me, answer)
            && is_same_life(me, answer)
            && answer.known.witness.commit > me.hello.log.commit
    };
    let newest = answers.iter().filter(knows_more).max_by_key(|(_, answer, _)| answer.known.witness.commit);
    newest.map(|(_, answer, _)| answer.voters()).unwrap_or_default()
}

/// Another cluster that has a member at this one's address, or is being founded with one.
fn claim(me: &Me, reply: &Reply, answer: &Answer) -> Option<Refusal> {
    let is_here = |urls: &[String]| urls.iter().any(|url| me.peer_urls.contains(url));
    let listed = answer.members.iter().find(|member| is_here(&member.peer_urls)).map(|member| &member.name);
    let mut first = answer.config.iter().flat_map(|config| &config.members);
    let name =
        listed.or_else(|| first.find(|member| is_here(&member.peer_urls)).map(|member| &member.name))?;
    let refusal = another_cluster(me, &Said { url: &reply.url, answer });
    Some(refusal.evidence("there", format!("member {name} is the one at {}", me.peer_urls.join(","))))
}

/// Two clusters that differ in their ids share nothing, whatever the other one makes of a stranger.
fn said_of(me: &Me, answer: &Answer) -> Verdict {
    let is_strange = is_another_cluster(me, answer) || began_otherwise(me, answer);
    if is_strange { Verdict::Stranger } else { answer.verdict.clone() }
}

/// Two members without a life yet, or one of them, that were not restored from the same backup: nothing else tells them apart.
fn began_otherwise(me: &Me, answer: &Answer) -> bool {
    me.hello.life == Life::Formed
        && answer.known.restored.is_some()
        && answer.known.restored.as_ref() != me.restored
}

fn is_for_good(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Removed { .. })
}

/// To a member that has not learned its life yet another one's leader looks like its own.
fn is_same_life(me: &Me, answer: &Answer) -> bool {
    match (me.hello.life, answer.known.cluster_uuid) {
        (Life::Born(ours), Some(theirs)) => ours == theirs,
        (Life::Born(_), None) => false,
        (_, theirs) => theirs.is_none(),
    }
}

fn is_another_cluster(me: &Me, answer: &Answer) -> bool {
    answer.hello.cluster_id != me.hello.cluster_id
}

fn is_foreign(me: &Me, answer: &Answer) -> bool {
    let theirs = answer.known.cluster_uuid;
    let other_life = match (me.hello.life, theirs) {
        (Life::Born(ours), Some(theirs)) => ours != theirs,
        // Restored, and not yet born: it comes out of that life and belongs to it no more.
        (_, Some(theirs)) => me.parent == Some(theirs),
        _ => false,
    };
    other_life
        || matches!(answer.verdict, Verdict::OtherLife { .. })
        || began_otherwise(me, answer)
        || is_another_cluster(me, answer)
}

fn another_cluster(me: &Me, said: &Said) -> Refusal {
    let theirs = &said.answer.hello;
    Refusal::new(
        Id::OtherCluster,
        "this data directory belongs to another cluster than the members that it calls its own",
    )
    .evidence("here", format!("cluster {} ({})", me.hello.cluster_id, me.hello.home.path))
    .evidence(
        format!("at peer {} ({})", theirs.name, said.url),
        format!("cluster {} of {} members", theirs.cluster_id, said.answer.members.len()),
    )
    .remedy("start with the data directory of the cluster that these members are: --data-dir=<that directory>")
    .remedy("or, if this directory is right: its own members are elsewhere; correct --initial-cluster and start them")
    .never("do not delete either cluster's directories before it is clear which one is wanted")
}
