//! Joining a running cluster: what its members answered in, this member's place or a refusal out. Pure; `ask` puts the questions.
//!
//! The peer port answers from what each member has applied, so one that lags may not know yet what another has promised. What a lag can
//! explain is therefore asked again for a while; what it cannot is refused at once.

use std::collections::BTreeMap;

use transport::PeerMember;
use types::{ClusterId, MemberId};

use super::plan::{Addresses, same_places};
use crate::{
    config::{
        Note,
        cluster::InitialMember,
        urls::{self, Url},
    },
    identity::{Identity, KnownMember, Unique},
    refusal::{Id, Refusal},
};

/// The oldest cluster version whose log a member of this version can follow, as in etcd.
const CLUSTER_VERSION_MIN: (u64, u64) = (3, 0);

/// A member that asks for its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    pub own: InitialMember,
    /// The other entries of initial-cluster: whom to ask.
    pub others: Vec<InitialMember>,
    pub max_learners: usize,
    /// The mark of a directory that an earlier start made and nobody has seen.
    pub dir_uuid: Option<Unique>,
}

/// What one member says of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub cluster: ClusterId,
    pub members: Vec<PeerMember>,
    /// None before the cluster has decided on one.
    pub cluster_version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub url: String,
    pub said: Result<Said, String>,
}

/// The place that the running cluster has prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub is_learner: bool,
    /// Everybody, this member included.
    pub members: Vec<KnownMember>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Join(Place),
    /// Nobody can say yet. The refusal stands when the patience for joining is over.
    Wait(Refusal),
    /// What was said may be behind the times. The refusal stands when it is still said a little later.
    AskAgain(Refusal),
    /// The member in this place has been there before. Its peers may know more.
    Lost(Box<Place>, Refusal),
    Refuse(Refusal),
}

/// How texts of host names compare: none resolved at first, since equal texts need no name server.
pub struct Question<'a> {
    pub joiner: &'a Joiner,
    pub addresses: &'a Addresses,
    /// This build's API level.
    pub version: &'a str,
    /// The answers have had time to become equal.
    pub settled: bool,
}

pub fn decide(question: &Question, answers: &[Answer], notes: &mut Vec<Note>) -> Verdict {
    let joiner = question.joiner;
    let said: Vec<(&str, &Said)> =
        answers.iter().filter_map(|answer| Some((answer.url.as_str(), answer.said.as_ref().ok()?))).collect();
    let Some((_, first)) = said.first() else { return Verdict::Wait(unreachable(joiner, answers)) };
    if said.iter().any(|(_, other)| other.cluster != first.cluster) {
        return Verdict::Refuse(clusters_differ(&said));
    }
    let list = match believed(&said, question.settled) {
        Ok(list) => list,
        Err(refusal) => return Verdict::AskAgain(refusal),
    };
    let listed = Listed { members: &list.members, joiner, addresses: question.addresses };
    let Some(own) = listed.find(&urls::texts(&joiner.own.peer_urls)) else {
        return Verdict::AskAgain(not_a_member(&listed, first.cluster));
    };
    let place = Place {
        member: own.id,
        cluster: first.cluster,
        is_learner: own.is_learner,
        members: list.members.iter().map(|member| listed.known(member)).collect(),
    };
    if !own.name.is_empty() {
        // Who lags may still list the predecessor that was removed from this place.
        let refusal = lost_data(&listed, own);
        return if question.settled {
            Verdict::Lost(Box::new(place), refusal)
        } else {
            Verdict::AskAgain(refusal)
        };
    }
    listed.note_mismatch(notes);
    if let Err(refusal) = fits(question, &listed, &said) {
        return refusal;
    }
    listed.note_names(notes);
    Verdict::Join(place)
}

/// What becomes of a member that has its place, and nothing of the cluster's log yet, when it starts again.
#[derive(Debug, PartialEq, Eq)]
pub enum Again {
    /// Nobody can say: the members that were there the last time are waited for.
    AsBefore,
    /// The members may have changed meanwhile: who is there now may send the log.
    With(Vec<KnownMember>),
    /// The place is gone, unless who answers lags. The refusal stands when it is still said a little later.
    Gone(Refusal),
}

pub fn again(identity: &Identity, answers: &[Answer], data_dir: &str) -> Again {
    let lists = answers.iter().filter_map(|answer| answer.said.as_ref().ok());
    let lists: Vec<&Said> = lists.filter(|said| said.cluster == identity.cluster_id).collect();
    let Some(first) = lists.first() else { return Again::AsBefore };
    let with_me = lists.iter().find(|said| said.members.iter().any(|member| member.id == identity.member_id));
    let Some(with_me) = with_me else {
        let control = control(&first.members);
        return Again::Gone(
            Refusal::new(
                Id::NotAMember,
                format!("the running cluster has no member {} any more", identity.member_id),
            )
            .evidence(
                "identity file",
                format!("member {} of cluster {} ({data_dir})", identity.member_id, identity.cluster_id),
            )
            .evidence("running", shown(&first.members))
            .remedy(format!("move the directory aside: mv {data_dir} {data_dir}.removed"))
            .remedy(format!(
                "then add the member anew: {control} member add {} --peer-urls={}",
                identity.name,
                identity.peer_urls.join(",")
            )),
        );
    };
    let known = |member: &PeerMember| {
        let before = identity.members.iter().find(|before| before.id == member.id);
        let mut peer_urls = member.peer_urls.clone();
        peer_urls.sort();
        KnownMember {
            id: member.id,
            name: match before {
                Some(before) if member.name.is_empty() => before.name.clone(),
                _ => member.name.clone(),
            },
            peer_urls,
            client_urls: member.client_urls.clone(),
            dir_uuid: before.and_then(|before| before.dir_uuid),
            is_learner: member.is_learner,
        }
    };
    Again::With(with_me.members.iter().map(known).collect())
}

/// The list that everybody gives or, when time has not made them equal, that most give: one member may be cut off from the others.
fn believed<'a>(said: &[(&str, &'a Said)], settled: bool) -> Result<&'a Said, Refusal> {
    let mut lists: BTreeMap<Vec<Essence>, Vec<(&str, &'a Said)>> = BTreeMap::new();
    for (url, said) in said {
        lists.entry(essence(said)).or_default().push((url, said));
    }
    let most = lists.values().map(Vec::len).max().unwrap_or_default();
    let mut winners = lists.values().filter(|givers| givers.len() == most);
    let winner = winners.next().expect("somebody answered")[0].1;
    if lists.len() == 1 || (settled && winners.next().is_none()) {
        return Ok(winner);
    }
    let mut refusal = Refusal::new(Id::MembersDisagree, "the members of the cluster name different members");
    for givers in lists.values() {
        let places: Vec<&str> = givers.iter().map(|(url, _)| *url).collect();
        refusal = refusal.evidence(format!("at {}", places.join(", ")), shown(&givers[0].1.members));
    }
    Err(refusal.remedy("wait until a change of members that is under way is done, then start again").remedy(
        format!(
            "if they stay different, ask the cluster who is cut off: {} endpoint status --cluster",
            control(&winner.members)
        ),
    ))
}

/// What must be equal in two answers: id, peer URLs, and whether it learns. Names and client URLs come later in any case.
type Essence = (MemberId, Vec<String>, bool);

fn essence(said: &Said) -> Vec<Essence> {
    let mut list: Vec<Essence> = said
        .members
        .iter()
        .map(|member| {
            let mut urls = member.peer_urls.clone();
            urls.sort();
            (member.id, urls, member.is_learner)
        })
        .collect();
    list.sort();
    list
}

/// The running cluster's members, beside what the settings say of them.
struct Listed<'a> {
    members: &'a [PeerMember],
    joiner: &'a Joiner,
    addresses: &'a Addresses,
}

impl Listed<'_> {
    fn find(&self, urls: &[String]) -> Option<&PeerMember> {
        self.members.iter().find(|member| self.same(&member.peer_urls, urls))
    }

    fn same(&self, left: &[String], right: &[String]) -> bool {
        let (mut left, mut right) = (left.to_vec(), right.to_vec());
        left.sort();
        right.sort();
        let parse =
            |texts: &[String]| texts.iter().map(|text| Url::parse(text).ok()).collect::<Option<Vec<_>>>();
        match (left == right, parse(&left), parse(&right)) {
            (true, _, _) => true,
            (false, Some(left), Some(right)) => same_places(&left, &right, self.addresses),
            _ => false,
        }
    }

    /// The entry of initial-cluster at these URLs.
    fn given(&self, member: &PeerMember) -> Option<&InitialMember> {
        let mut all = self.joiner.others.iter().chain([&self.joiner.own]);
        all.find(|given| self.same(&urls::texts(&given.peer_urls), &member.peer_urls))
    }

    /// Who is there is for the cluster to say: a list that is behind, or ahead, only names whom to ask.
    fn note_mismatch(&self, notes: &mut Vec<Note>) {
        let unknown: Vec<String> = self
            .joiner
            .others
            .iter()
            .filter(|given| self.find(&urls::texts(&given.peer_urls)).is_none())
            .map(|given| format!("{}={}", given.name, urls::shown(&given.peer_urls)))
            .collect();
        let missing: Vec<&PeerMember> =
            self.members.iter().filter(|member| self.given(member).is_none()).collect();
        if unknown.is_empty() && missing.is_empty() {
            return;
        }
        let none_or = |list: Vec<String>| if list.is_empty() { "none".into() } else { list.join("; ") };
        let missing = missing.iter().map(|member| one_shown(member)).collect();
        notes.push(Note {
            message: "initial-cluster is not the list of the running members: theirs counts",
            fields: vec![
                ("given but not running", none_or(unknown)),
                ("running but not given", none_or(missing)),
                ("as it would be right", format!("--initial-cluster={}", self.corrected())),
            ],
        });
    }

    /// The text for initial-cluster that would be right. Who has no name yet keeps the given one.
    fn corrected(&self) -> String {
        let mut pairs = Vec::new();
        for member in self.members {
            let name = match (member.name.is_empty(), self.given(member)) {
                (false, _) => member.name.clone(),
                (true, Some(given)) => given.name.to_string(),
                (true, None) => format!("member-{}", member.id),
            };
            pairs.extend(member.peer_urls.iter().map(|url| format!("{name}={url}")));
        }
        pairs.sort();
        pairs.join(",")
    }

    fn known(&self, member: &PeerMember) -> KnownMember {
        let name = if member.name.is_empty() {
            self.given(member).map(|given| given.name.to_string()).unwrap_or_default()
        } else {
            member.name.clone()
        };
        let mut peer_urls = member.peer_urls.clone();
        peer_urls.sort();
        KnownMember {
            id: member.id,
            name,
            peer_urls,
            client_urls: member.client_urls.clone(),
            dir_uuid: None,
            is_learner: member.is_learner,
        }
    }

    /// Names are told, never compared: a member may be called otherwise than somebody's list says.
    fn note_names(&self, notes: &mut Vec<Note>) {
        for member in self.members.iter().filter(|member| !member.name.is_empty()) {
            let Some(given) = self.given(member).filter(|given| given.name.as_str() != member.name) else {
                continue;
            };
            notes.push(Note {
                message: "a running member is called otherwise than in initial-cluster: its own name counts",
                fields: vec![("running", member.name.clone()), ("initial-cluster", given.name.to_string())],
            });
        }
    }
}

/// Name, number of learners and version must fit, wherever this member's place is.
fn fits(question: &Question, listed: &Listed, said: &[(&str, &Said)]) -> Result<(), Verdict> {
    let joiner = question.joiner;
    let name = joiner.own.name.as_str();
    if let Some(holder) = listed.members.iter().find(|member| member.name == name) {
        return Err(Verdict::AskAgain(
            Refusal::new(Id::NameInUse, format!("another member of the cluster is called {name}"))
                .evidence("running", one_shown(holder))
                .evidence("--name", name)
                .remedy("give this member a name of its own, in --name and in --initial-cluster"),
        ));
    }
    let learners = listed.members.iter().filter(|member| member.is_learner).count();
    if learners > joiner.max_learners {
        return Err(Verdict::AskAgain(
            Refusal::new(
                Id::TooManyLearners,
                "the cluster has more learners than this member's max-learners",
            )
            .evidence("running", format!("{learners} learners"))
            .evidence("--max-learners", joiner.max_learners.to_string())
            .remedy(format!("as on every other member: --max-learners={learners}")),
        ));
    }
    // Undecided only until the first leader has asked everybody.
    let Some((url, version)) =
        said.iter().find_map(|(url, said)| Some((url, said.cluster_version.as_ref()?)))
    else {
        return Err(Verdict::Wait(
            Refusal::new(Id::ClusterUnreachable, "the cluster has not decided on its version yet")
                .evidence("members", said.iter().map(|(url, _)| *url).collect::<Vec<_>>().join(", "))
                .remedy("see that a majority of its members runs, then start again"),
        ));
    };
    match (major_minor(version), major_minor(question.version)) {
        (Some(theirs), Some(ours)) if theirs >= CLUSTER_VERSION_MIN && theirs <= ours => Ok(()),
        _ => Err(Verdict::Refuse(
            Refusal::new(Id::VersionConflict, "this version of cairn cannot join this cluster")
                .evidence(format!("cluster version at {url}"), version)
                .evidence("this binary", format!("can follow 3.0 to {}", question.version))
                .remedy("install the version that the other members run"),
        )),
    }
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn unreachable(joiner: &Joiner, answers: &[Answer]) -> Refusal {
    let mut refusal = Refusal::new(Id::ClusterUnreachable, "no member of the running cluster answers");
    for answer in answers {
        let why = answer.said.as_ref().err().map_or("", String::as_str);
        refusal = refusal.evidence(answer.url.clone(), why);
    }
    let cluster: Vec<String> = joiner
        .others
        .iter()
        .flat_map(|member| member.peer_urls.iter().map(move |url| format!("{}={url}", member.name)))
        .collect();
    refusal
        .remedy(format!("see that these members run and can be reached from here: {}", cluster.join(", ")))
        .remedy("or correct --initial-cluster; if there is no running cluster: --initial-cluster-state=new")
}

fn clusters_differ(said: &[(&str, &Said)]) -> Refusal {
    let mut refusal =
        Refusal::new(Id::ClustersDiffer, "the members of initial-cluster belong to different clusters");
    for (url, said) in said {
        refusal = refusal.evidence(
            format!("at {url}"),
            format!("cluster {} of {} members", said.cluster, said.members.len()),
        );
    }
    refusal
        .remedy("leave the members of the other cluster out of --initial-cluster")
        .never("do not join either cluster before it is clear why there are two")
}

fn not_a_member(listed: &Listed, cluster: ClusterId) -> Refusal {
    let own = &listed.joiner.own;
    let announced = urls::texts(&own.peer_urls);
    let mut refusal = Refusal::new(
        Id::NotAMember,
        format!("the running cluster has no member at {}", urls::shown(&own.peer_urls)),
    )
    .evidence(format!("cluster {cluster}"), shown(listed.members));
    let control = control(listed.members);
    let partly =
        listed.members.iter().find(|member| member.peer_urls.iter().any(|url| announced.contains(url)));
    if let Some(partly) = partly {
        refusal = refusal.evidence("nearest", one_shown(partly)).remedy(format!(
            "{control} member update {} --peer-urls={}",
            partly.id,
            announced.join(",")
        ));
    }
    refusal
        .remedy(format!("{control} member add {} --peer-urls={}", own.name, announced.join(",")))
        .remedy("then start again with the same settings")
        .remedy("if it is another cluster that should be joined: correct --initial-cluster")
}

fn lost_data(listed: &Listed, own: &PeerMember) -> Refusal {
    let name = listed.joiner.own.name.as_str();
    let control = control(listed.members);
    Refusal::new(
        Id::LostData,
        format!("member {} has been in this cluster before, but this data directory is empty", own.id),
    )
    .evidence("running", one_shown(own))
    .evidence("data directory", "holds no member")
    .remedy("if its directory still exists: --data-dir=<that directory>")
    .remedy(format!(
        "else replace it: {control} member remove {}, then {control} member add {name} --peer-urls={}",
        own.id,
        own.peer_urls.join(",")
    ))
    .remedy("if the cluster is being founded and this member has never run: --initial-cluster-state=new")
    .never("do not let an empty member vote under an id that has voted before: what it acknowledged would be lost")
}

/// One member for a message: id, name, URLs.
fn one_shown(member: &PeerMember) -> String {
    let name = if member.name.is_empty() { "not started" } else { &member.name };
    let learner = if member.is_learner { ", learner" } else { "" };
    format!("{} ({name}{learner}) {}", member.id, member.peer_urls.join(","))
}

fn shown(members: &[PeerMember]) -> String {
    let mut list: Vec<String> = members.iter().map(one_shown).collect();
    list.sort();
    list.join("; ")
}

/// The control tool, pointed at whoever serves clients.
fn control(members: &[PeerMember]) -> String {
    let endpoints: Vec<&str> =
        members.iter().filter_map(|member| member.client_urls.first()).map(String::as_str).collect();
    if endpoints.is_empty() {
        "cairnctl --endpoints=<a member's client URL>".to_owned()
    } else {
        format!("cairnctl --endpoints={}", endpoints.join(","))
    }
}

#[cfg(test)]
mod tests;
