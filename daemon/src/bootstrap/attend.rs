//! Who is there when a cluster is founded: what the other first members answered in, birth, patience or a refusal out. Pure; `hello`
//! puts the questions.
//!
//! The first election of a static cluster waits for the others, because whoever is awaited always gets to say "I am born": a member
//! that lost its directory can therefore never pass for a new one. The wait ends with answers, never with time.
//!
//! The same rules hold for members that were restored from a backup and have never met: what they were restored from is part of the
//! settings that they compare. Whoever begins with nothing, or with another backup, founds no cluster with them and joins none late.

use std::collections::BTreeMap;

use ::identity::{
    Answer, GenesisConfig, Hello, Known, Life, Question, Session, Standing, Unique, Verdict, Witness,
    judge::judge,
};
use types::MemberId;

use super::{
    diff,
    genesis::FirstMember,
    verdict::{self, Me, Said},
};
use crate::refusal::{Id, Refusal};

/// What came back from one URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer(Box<Answer>),
    /// A member of etcd, which knows nothing of lives and directories; its version.
    Etcd(String),
    Silent(String),
}

/// One question and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whose URL it is, by the settings or the identity file.
    pub member: MemberId,
    pub name: String,
    pub url: String,
    pub heard: Heard,
}

/// A member that is about to found its cluster.
#[derive(Clone, Copy)]
pub struct Founder<'a> {
    pub me: Me<'a>,
    pub config: &'a GenesisConfig,
    /// The other first members.
    pub others: &'a [FirstMember],
    /// `initial-cluster-attendance`: everybody, or a majority.
    pub everybody: bool,
    /// Who asked *us* with other settings than ours.
    pub contradicted: Option<&'a (Hello, GenesisConfig)>,
    /// What a lag can explain has been heard for long enough.
    pub settled: bool,
}

/// The cluster is there already, and this member was never part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    pub cluster_uuid: Unique,
    pub parent_uuid: Option<Unique>,
    /// Who says so.
    pub url: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Names of who attends, this member left out.
    pub present: Vec<String>,
    /// Who does not, and why.
    pub missing: Vec<String>,
    /// A majority is there, so the other setting would end the wait.
    pub majority: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// With the directories of those who attend.
    Form(BTreeMap<MemberId, Unique>),
    Late(Late),
    Wait(Waiting),
    /// A lag may explain it. The refusal stands when it is still said a little later.
    AskAgain(Refusal),
    Refuse(Refusal),
}

pub fn decide(founder: &Founder, replies: &[Reply]) -> Step {
    if let Some((hello, config)) = founder.contradicted {
        return Step::Refuse(diff::mismatch(founder.config, &hello.name, "asked by", config));
    }
    let mut attendees = BTreeMap::new();
    let mut why: BTreeMap<MemberId, String> = BTreeMap::new();
    let mut late = None;
    let mut again = None;
    for reply in replies {
        let answer = match &reply.heard {
            Heard::Silent(cause) => {
                why.entry(reply.member).or_insert_with(|| cause.clone());
                continue;
            }
            Heard::Etcd(version) => {
                why.insert(reply.member, format!("is etcd {version}, not cairn"));
                continue;
            }
            Heard::Answer(answer) => answer,
        };
        match one(founder, reply, answer) {
            One::Attends if attendees.get(&reply.member).is_some_and(|dir| *dir != answer.hello.dir) => {
                return Step::Refuse(two_behind_one_name(reply));
            }
            One::Attends => {
                attendees.insert(reply.member, answer.hello.dir);
            }
            One::Late(found) => late = Some(found),
            One::Wait(text) => {
                why.insert(reply.member, text);
            }
            One::Refuse(refusal, true) if !founder.settled => again = Some(refusal),
            One::Refuse(refusal, _) => return Step::Refuse(refusal),
        }
    }
    if let Some(refusal) = again {
        return Step::AskAgain(refusal);
    }
    if let Some(late) = late {
        return Step::Late(late);
    }
    let size = founder.others.len() + 1;
    let majority = attendees.len() + 1 > size / 2;
    if attendees.len() + 1 == size || (majority && !founder.everybody) {
        return Step::Form(attendees);
    }
    let (present, missing): (Vec<&FirstMember>, Vec<&FirstMember>) =
        founder.others.iter().partition(|other| attendees.contains_key(&other.id));
    let missing = missing.iter().map(|other| {
        let why = why.get(&other.id).map_or("not asked yet", String::as_str);
        format!("{} ({}): {why}", other.name, other.peer_urls.join(","))
    });
    Step::Wait(Waiting {
        present: present.iter().map(|other| other.name.clone()).collect(),
        missing: missing.collect(),
        majority,
    })
}

enum One {
    Attends,
    Late(Late),
    Wait(String),
    /// Whether a lag may explain it.
    Refuse(Refusal, bool),
}

fn one(founder: &Founder, reply: &Reply, answer: &Answer) -> One {
    let me = &founder.me;
    let theirs = &answer.hello;
    let said = Said { url: &reply.url, answer };
    if theirs.dir == me.hello.dir && theirs.boot.nonce == me.hello.boot.nonce {
        return One::Wait("leads back to this member itself".to_owned());
    }
    if let Life::Born(uuid) = theirs.life {
        if theirs.cluster_id != me.hello.cluster_id {
            return One::Refuse(verdict::cluster_runs(me, &said), false);
        }
        return born(me, &said, uuid);
    }
    if let Some(config) = answer.config.as_ref().filter(|config| *config != founder.config) {
        return One::Refuse(diff::mismatch(founder.config, &theirs.name, &said_at(reply), config), false);
    }
    if answer.config.is_none() && theirs.cluster_id != me.hello.cluster_id {
        return One::Refuse(verdict::cluster_runs(me, &said), false);
    }
    if theirs.member != reply.member {
        return One::Wait(format!("answers as {} ({})", theirs.name, theirs.member));
    }
    if let Some(refusal) = verdict::refusal(me, &answer.verdict, &said) {
        return One::Refuse(refusal, answer.verdict.may_pass());
    }
    if theirs.dir == me.hello.dir {
        return One::Refuse(copied(me, reply), false);
    }
    match theirs.life {
        Life::Joining => One::Wait("joins a running cluster".to_owned()),
        _ => One::Attends,
    }
}

fn born(me: &Me, said: &Said, cluster_uuid: Unique) -> One {
    let known = &said.answer.known;
    if let Some(refusal) = verdict::refusal(me, &said.answer.verdict, said) {
        return One::Refuse(refusal, said.answer.verdict.may_pass());
    }
    // Its first state is the one that the cluster began with, or it would be another one's.
    if known.restored.as_ref() != me.restored {
        return One::Refuse(verdict::began_otherwise(me, said), false);
    }
    // Admitted with this very directory, which is unborn now: the directory has lost what came after.
    if let Some(record) = &known.record {
        let lost =
            Verdict::LostData { dir: record.dir, boot_seq: record.boot.seq, home: record.home.clone() };
        let refusal = verdict::refusal(me, &lost, said).expect("lost data are no welcome");
        return One::Refuse(refusal, false);
    }
    One::Late(Late { cluster_uuid, parent_uuid: known.parent_uuid, url: said.url.to_owned() })
}

fn said_at(reply: &Reply) -> String {
    format!("at {}", reply.url)
}

/// A name that two members share is one member with the URLs of both, as far as settings can tell.
fn two_behind_one_name(reply: &Reply) -> Refusal {
    Refusal::new(Id::AdvertiseMismatch, format!("two members of initial-cluster are called {}", reply.name))
        .evidence("--initial-cluster", format!("names {} with more than one URL", reply.name))
        .evidence("asked", "different directories answer at these URLs")
        .remedy(
            "give every member a name of its own, in --name and in --initial-cluster, on every member alike",
        )
}

/// An unborn directory keeps its mark, so a copied machine brings it along.
fn copied(me: &Me, reply: &Reply) -> Refusal {
    let dir = &me.hello.home.path;
    Refusal::new(Id::DuplicateInstance, format!("this data directory is a copy of that of {}", reply.name))
        .evidence("here", format!("directory {} in {dir}", me.hello.dir))
        .evidence(format!("at peer {} ({})", reply.name, reply.url), "the same directory mark")
        .remedy(format!("nothing has been written yet, so begin anew on one of the two: mv {dir} {dir}.copy"))
}

/// What an unborn member answers those who ask it.
pub struct Host<'a> {
    pub hello: &'a Hello,
    pub config: &'a GenesisConfig,
    /// The first members, this one included.
    pub members: &'a [FirstMember],
    /// The other first members as this one has reached them itself: who else claims to be one of them is its twin.
    pub met: &'a BTreeMap<MemberId, Session>,
    /// The life of the cluster that was backed up, where this one is restored.
    pub parent: Option<Unique>,
}

impl Host<'_> {
    pub fn answer(&self, question: &Question) -> Answer {
        let asker = &question.hello;
        let listed = self.members.iter().any(|member| member.id == asker.member);
        let own = Session {
            dir: self.hello.dir,
            boot: self.hello.boot,
            home: self.hello.home.clone(),
            is_quiet: false,
        };
        let session = match asker.member == self.hello.member {
            true => Some(own),
            false => self.met.get(&asker.member).filter(|met| met.dir != asker.dir).cloned(),
        };
        let known = Known {
            cluster_uuid: None,
            parent_uuid: self.parent,
            restored: self.config.restored.clone(),
            // It has met nobody for good, and runs no raft.
            is_founding: false,
            standing: match listed {
                true => Standing::Member { is_learner: false, is_new: false },
                false => Standing::Stranger,
            },
            record: None,
            attendee: None,
            watermark: None,
            session,
            witness: Witness { member: self.hello.member, leads: false, term: 0, commit: 0 },
        };
        let verdict = judge(asker, &known);
        let config = Some(self.config.clone());
        Answer { hello: self.hello.clone(), known, verdict, config, members: Vec::new() }
    }

    /// Somebody who says to be one of the first members has other settings. Who is nowhere on the list is somebody else's problem.
    pub fn is_contradicted_by(&self, question: &Question) -> bool {
        let asker = &question.hello;
        let listed = |member: &FirstMember| member.id == asker.member || member.name == asker.name;
        // Restored members are formed before they meet.
        matches!(asker.life, Life::Unborn | Life::Formed)
            && question.config.as_ref().is_some_and(|config| config != self.config)
            && self.members.iter().any(listed)
    }

    /// The asker may count this member among those who attend.
    pub fn is_counted_by(&self, question: &Question) -> bool {
        question.config.as_ref() == Some(self.config)
    }
}
