//! Whether a member whose history is lost may replace itself: the refusal, its directory, and what the others say in; yes, patience or a
//! reason against it out. Pure.
//!
//! Nothing has moved when this is asked, and every doubt is a no: the refusal stands then, as it would without the setting.

use std::{collections::BTreeSet, time::Duration};

use ::identity::{Answer, Home, Life, Named, Standing, Unique, Verdict};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{ClusterId, MemberId};

use super::journal::Other;
use crate::{
    bootstrap::attend::{Heard, Reply},
    config::AutoReplace,
    refusal::Id,
};

/// A member that loses its history again so soon has a disk, a mount or a unit that loses it each time. Ten minutes are longer than any
/// restart takes, and far less than between two accidents.
pub const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Old directories that are kept beside the new one: more are a fault that somebody has to look at, and fill the disk.
pub const QUARANTINES_MAX: usize = 3;

/// What this machine knows of the member that was refused.
#[derive(Clone, Debug)]
pub struct Lost {
    /// None: its directory is empty, and the others know it by its URLs.
    pub id: Option<MemberId>,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
    /// As the directory says, or as the settings would found it.
    pub cluster: Option<ClusterId>,
    pub life: Option<Unique>,
    /// The id that the settings alone make: with an empty directory, any other one was given by a running cluster.
    pub founded: Option<MemberId>,
    /// Of this start.
    pub home: Home,
}

/// What speaks against it on this machine alone. `Err(None)`: it is not asked for, or this refusal is none that it answers.
pub fn may_begin(
    setting: AutoReplace,
    refused: Id,
    has_data: bool,
    earlier: &[OffsetDateTime],
    now: OffsetDateTime,
) -> Result<(), Option<String>> {
    let answers = match refused {
        Id::LostData | Id::RolledBack | Id::Quarantined => true,
        // An empty directory whose founder's id was replaced before: what is lost is what took its place.
        Id::Removed => !has_data,
        _ => false,
    };
    if setting == AutoReplace::Off || !answers {
        return Err(None);
    }
    if earlier.len() >= QUARANTINES_MAX {
        return Err(Some(format!(
            "no: {} directories of earlier replacements are kept here, and more than {QUARANTINES_MAX} would hide a fault: \
             move member.quarantine-* away",
            earlier.len()
        )));
    }
    match earlier.last() {
        Some(last) if is_recent(*last, now) => {
            Err(Some(too_soon("this member replaced itself", now - *last)))
        }
        _ => Ok(()),
    }
}

/// A clock that was set back makes the past the future: that is not long ago, either.
fn is_recent(then: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - then < AGAIN_AFTER
}

fn too_soon(what: &str, ago: time::Duration) -> String {
    format!(
        "no: {what} {} s ago, and does not again within {} s: find out what takes its data away",
        ago.whole_seconds(),
        AGAIN_AFTER.as_secs()
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    Done(T),
    /// It may pass. The reason stands when it is still so when the patience is over.
    Wait(String),
    Decline(String),
}

use Step::{Decline, Done, Wait};

/// What a yes rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub old: MemberId,
    /// It was no learner.
    pub voted: bool,
    pub cluster_id: ClusterId,
    pub cluster_uuid: Option<Unique>,
    /// Voters and learners.
    pub others: Vec<Other>,
}

/// Who of the cluster the lost member was, when only its URLs are known.
pub fn find(lost: &Lost, replies: &[Reply]) -> Step<MemberId> {
    let speaker = match speaker(lost, replies) {
        Done(speaker) => speaker,
        Wait(why) => return Wait(why),
        Decline(why) => return Decline(why),
    };
    match own(lost, &speaker.answer.members) {
        Some(named) => Done(named.id),
        None => speaker.against(format!("no: the cluster has no member at {}", lost.peer_urls.join(","))),
    }
}

fn own<'a>(lost: &Lost, members: &'a [Named]) -> Option<&'a Named> {
    members.iter().find(|named| match lost.id {
        Some(id) => named.id == id,
        None => sorted(&named.peer_urls) == lost.peer_urls,
    })
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort();
    urls
}

fn answers(replies: &[Reply]) -> impl Iterator<Item = &Answer> {
    replies.iter().filter_map(|reply| match &reply.heard {
        // Who is not born speaks for no cluster.
        Heard::Answer(answer) if matches!(answer.hello.life, Life::Born(_)) => Some(&**answer),
        _ => None,
    })
}

/// Whose list of members counts: the leader's or, while nobody leads, that of the one who knows most.
struct Speaker<'a> {
    answer: &'a Answer,
    leads: bool,
}

/// Everybody who answers is of one life of one cluster, the lost member's as far as it is known.
fn speaker<'a>(lost: &Lost, replies: &'a [Reply]) -> Step<Speaker<'a>> {
    let mut all = answers(replies);
    let Some(first) = all.next() else {
        return Wait("no: no member of the cluster answers".to_owned());
    };
    let life = |answer: &Answer| (answer.hello.cluster_id, answer.known.cluster_uuid);
    if all.any(|answer| life(answer) != life(first)) {
        return Decline("no: members of different clusters, or of different lives of one, answer".to_owned());
    }
    let other_cluster = lost.cluster.is_some_and(|own| own != first.hello.cluster_id);
    let other_life = lost.life.is_some() && lost.life != first.known.cluster_uuid;
    if other_cluster || other_life {
        return Decline("no: those who answer are of another cluster, or of another life of it".to_owned());
    }
    let rank = |answer: &&Answer| {
        let witness = &answer.known.witness;
        (witness.leads, witness.term, witness.commit)
    };
    let answer = answers(replies).max_by_key(rank).expect("somebody answers");
    Done(Speaker { answer, leads: answer.known.witness.leads })
}

impl Speaker<'_> {
    /// Against it for good from a leader; who does not lead may be behind.
    fn against<T>(&self, why: String) -> Step<T> {
        if self.leads { Decline(why) } else { Wait(why) }
    }
}

/// The whole question, once the others were asked as the member `id`.
pub fn decide(
    lost: &Lost,
    id: MemberId,
    replies: &[Reply],
    max_learners: usize,
    exists: &dyn Fn(&str) -> bool,
    now: OffsetDateTime,
) -> Step<Agreed> {
    let speaker = match speaker(lost, replies) {
        Done(speaker) => speaker,
        Wait(why) => return Wait(why),
        Decline(why) => return Decline(why),
    };
    let leader = speaker.answer;
    let members = &leader.members;
    let Some(own) = own(&Lost { id: Some(id), ..lost.clone() }, members) else {
        return speaker.against(format!("no: the cluster has no member {id} any more"));
    };
    if let Some(why) = too_few_others(members, id) {
        return Decline(why);
    }
    if !speaker.leads {
        return Wait("no: none of the members that answer leads".to_owned());
    }
    if lost.id.is_none() && !own.name.is_empty() && own.name != lost.name {
        return Decline(format!(
            "no: member {id} at this member's URLs is called {}, not {}",
            own.name, lost.name
        ));
    }
    if let Some(step) = spoken_against(lost, id, leader, replies) {
        return step;
    }
    let known: Vec<&::identity::Known> = answers(replies).map(|answer| &answer.known).collect();
    let admitted = known
        .iter()
        .any(|known| known.record.is_some() || known.attendee.is_some() || known.watermark.is_some());
    if !admitted && own.client_urls.is_empty() {
        return Decline(format!("no: member {id} was never admitted, so nothing of it is lost"));
    }
    if let Some(record) = known.iter().find_map(|known| known.record.as_ref()) {
        let home = &record.home;
        if home.host == lost.home.host && home.path != lost.home.path && exists(&home.path) {
            return Decline(format!("no: the directory that the cluster knows is here: {}", home.path));
        }
        // What is here may be the older copy of a directory that was moved, and whose member is only down at this moment.
        if lost.id.is_some() && home.host != lost.home.host {
            return Decline(format!(
                "no: the directory that the cluster knows was last used on another host: {} on {}",
                home.path, home.host
            ));
        }
        // An empty directory does not remember when it was replaced; the cluster remembers when its predecessor began.
        let began = OffsetDateTime::parse(&home.started, &Rfc3339).ok();
        if let Some(began) = began.filter(|began| is_recent(*began, now))
            && lost.id.is_none()
            && lost.founded != Some(id)
            && record.boot.seq == 1
        {
            return Decline(too_soon(&format!("member {id} joined with an empty directory"), now - began));
        }
    }
    let others: Vec<&Named> = members.iter().filter(|named| named.id != id).collect();
    if let Some(why) = no_room(lost, &others, max_learners) {
        return Decline(why);
    }
    if let Some(step) = no_quorum(members, id, replies) {
        return step;
    }
    if others.iter().all(|named| named.is_learner || named.client_urls.is_empty()) {
        return Decline("no: no other voter says where it serves clients".to_owned());
    }
    Done(Agreed {
        old: id,
        voted: !own.is_learner,
        cluster_id: leader.hello.cluster_id,
        cluster_uuid: leader.known.cluster_uuid,
        others: others.into_iter().map(other).collect(),
    })
}

fn other(named: &Named) -> Other {
    Other {
        id: named.id,
        name: named.name.clone(),
        peer_urls: named.peer_urls.clone(),
        client_urls: named.client_urls.clone(),
    }
}

/// The loss itself was believed before; what is said now must not be something else.
fn spoken_against(lost: &Lost, id: MemberId, leader: &Answer, replies: &[Reply]) -> Option<Step<Agreed>> {
    for answer in answers(replies) {
        match &answer.verdict {
            Verdict::Duplicate { home, .. } => {
                return Some(Wait(format!(
                    "no: member {id} runs, or ran a moment ago, in {} on {} (pid {})",
                    home.path, home.host, home.pid
                )));
            }
            Verdict::OtherLife { .. } => {
                return Some(Decline("no: this directory is of another life of the cluster".to_owned()));
            }
            _ => {}
        }
    }
    match (&leader.known.standing, &leader.verdict) {
        (Standing::Removed { .. }, _) | (_, Verdict::Removed { .. }) => {
            Some(Decline(format!("no: member {id} was removed on purpose")))
        }
        (Standing::Stranger, _) => Some(Decline(format!("no: the cluster has no member {id}"))),
        (Standing::Member { is_new: true, .. }, _) if leader.known.record.is_none() => Some(Decline(
            format!("no: member {id} has never run, so nothing of it is lost: start as {}", lost.name),
        )),
        _ => None,
    }
}

fn no_room(lost: &Lost, others: &[&Named], max_learners: usize) -> Option<String> {
    let learners = others.iter().filter(|named| named.is_learner).count();
    if learners >= max_learners {
        return Some(format!(
            "no: the cluster has {learners} learners besides this member, and --max-learners={max_learners}: promote or remove one"
        ));
    }
    let taken = others.iter().find(|named| {
        named.name == lost.name || named.peer_urls.iter().any(|url| lost.peer_urls.contains(url))
    })?;
    Some(format!("no: member {} ({}) has this member's name or one of its URLs", taken.id, taken.name))
}

/// The members that remain must be able to decide, counted with the lost one's vote, which they have not got.
fn too_few_others(members: &[Named], id: MemberId) -> Option<String> {
    let (voters, need, others) = votes(members, id);
    (others.len() < need).then(|| {
        let voters_word = if voters == 1 { "voter is" } else { "voters are" };
        let others_word = if others.len() == 1 { "there is 1" } else { "there is none" };
        format!("no: {need} of {voters} {voters_word} a quorum, and without this member {others_word}")
    })
}

fn no_quorum(members: &[Named], id: MemberId, replies: &[Reply]) -> Option<Step<Agreed>> {
    let (voters, need, others) = votes(members, id);
    let up: BTreeSet<MemberId> = answers(replies)
        .map(|answer| answer.known.witness.member)
        .filter(|member| others.contains(member))
        .collect();
    let (up, others) = (up.len(), others.len());
    (up < need).then(|| {
        Wait(format!(
            "no: {need} of {voters} voters are a quorum, and only {up} of the {others} others answer"
        ))
    })
}

/// Voters, how many of them are a quorum, and who they are without the lost one.
fn votes(members: &[Named], id: MemberId) -> (usize, usize, BTreeSet<MemberId>) {
    let voters = members.iter().filter(|named| !named.is_learner).map(|named| named.id);
    let all: BTreeSet<MemberId> = voters.collect();
    let others = all.iter().copied().filter(|voter| *voter != id).collect();
    (all.len(), all.len() / 2 + 1, others)
}

#[cfg(test)]
mod tests;
