//! What the members of a cluster know of one of them. Record and watermark are replicated: they are equal on all members that have applied
//! the same log, so a verdict does not depend on who leads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::MemberId;

use crate::{Boot, Hello, Home, Restored, Unique, hex};

/// The directory and the start that were last admitted as this member. Written through the log by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub dir: Unique,
    pub boot: Boot,
    pub home: Home,
    pub version: String,
}

impl Record {
    /// Whether this start may be written in the place of that one. The directory never changes, and an older start never comes after a
    /// newer one, in whatever order two leaders wrote them.
    pub fn may_follow(&self, written: &Record) -> bool {
        self.dir == written.dir
            && (self.boot.seq > written.boot.seq
                || (self.boot.seq == written.boot.seq && self.boot.nonce == written.boot.nonce))
    }
}

impl From<&Hello> for Record {
    fn from(hello: &Hello) -> Record {
        Record { dir: hello.dir, boot: hello.boot, home: hello.home.clone(), version: hello.version.clone() }
    }
}

/// What a member has once held at least: a log that ends before it, or a term below it, is an older copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    pub last_index: u64,
    pub term: u64,
}

impl Watermark {
    /// Never goes back.
    pub fn raise(&mut self, other: Watermark) {
        self.last_index = self.last_index.max(other.last_index);
        self.term = self.term.max(other.term);
    }
}

/// What the leader adds to a conf change of its own (an update of itself that changes nothing), in the JSON context, which etcd reads
/// without minding. Keys of the maps are member ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// This life of the cluster. The first to be applied counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uuid: Option<Unique>,
    /// The life that ends here: where it is the present one, `cluster_uuid` takes its place. Written when a new cluster is forced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_uuid: Option<Unique>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub records: BTreeMap<String, Record>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, Watermark>,
}

/// Whether the asker is in the answerer's *applied* list of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// `is_new`: it was added to the running cluster and has not said its name yet.
    Member {
        is_learner: bool,
        is_new: bool,
    },
    /// By which entry, and through which member it was asked.
    Removed {
        index: u64,
        term: u64,
        asked_through: Option<String>,
    },
    Stranger,
}

/// Another start of the asker's member that was heard from within the last seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub dir: Unique,
    pub boot: Boot,
    pub home: Home,
    /// Its streams are there, but nothing has come on them for longer than a start that runs is ever silent, or nothing ever does, since
    /// nobody can call it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_quiet: bool,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    #[serde(with = "hex::member")]
    pub member: MemberId,
    pub leads: bool,
    pub term: u64,
    /// Its commit index, for messages.
    pub commit: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// This life of the answerer's cluster, and the one it came from by restore or force.
    pub cluster_uuid: Option<Unique>,
    pub parent_uuid: Option<Unique>,
    /// What it was restored from, if it was: a member that is to begin with it must have begun with the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    pub standing: Standing,
    pub record: Option<Record>,
    /// The answerer has met those with whom it founds its cluster, waits for their first leader to begin its life, and has not been taken by
    /// this member, as whoever came late does: one of an earlier life does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_founding: bool,
    /// The directory that answered for this member when the cluster was formed, while there is no record.
    pub attendee: Option<Unique>,
    pub watermark: Option<Watermark>,
    pub session: Option<Session>,
    pub witness: Witness,
}
