//! What a member says of itself, and what it is answered.

use serde::{Deserialize, Serialize};
use types::{ClusterId, MemberId};

use crate::{Known, Session, Unique, Verdict, hex};

/// So many starts before the last one can be told by a directory. Who was started more often without meeting anybody has been watched
/// by nobody for long, and marks speak against it by then; each is some 50 bytes of every handshake.
pub const EARLIER_MAX: usize = 16;

/// Who speaks: the directory, the start that runs on it, and how far its log goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    #[serde(with = "hex::cluster")]
    pub cluster_id: ClusterId,
    #[serde(with = "hex::member")]
    pub member: MemberId,
    pub name: String,
    pub life: Life,
    pub dir: Unique,
    pub boot: Boot,
    /// The nonces of the starts before `boot.previous`, newest first, as far as the directory remembers them: see [`EARLIER_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Unique>,
    pub log: LogEnd,
    pub home: Home,
    /// cairn's version.
    pub version: String,
}

impl Hello {
    /// Whether this start holds the lock that the other one held, which has not been heard lately: it is dead, and its connections do not
    /// know it yet. Who is heard is no corpse whatever it holds: a machine that was copied while it ran has two of everything.
    pub fn succeeds(&self, session: &Session) -> bool {
        session.is_quiet
            && self.dir == session.dir
            && self.boot.seq > session.boot.seq
            && self.home.seat.is_some()
            && self.home.seat == session.home.seat
    }
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It has promised nothing to anybody.
    Unborn,
    /// The list of first members is settled; it may have voted. Nothing is acknowledged yet.
    Formed,
    /// It asks a running cluster for its place, or has one and no log yet.
    Joining,
    /// It belongs to this life of its cluster.
    Born(Unique),
}

/// One start of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Counts the starts of a directory, from 1.
    pub seq: u64,
    /// New with every start: two copies of a directory that are both started have one `seq` and two of these.
    pub nonce: Unique,
    pub previous: Option<Unique>,
}

/// What of a log is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    pub last_index: u64,
    pub last_term: u64,
    /// The hard state's term: the newest that it may have voted in.
    pub term: u64,
    pub commit: u64,
}

/// Where a member lives, for messages; nothing is decided by it but by the seat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    pub host: String,
    /// Of the data directory.
    pub path: String,
    pub pid: u32,
    /// When the process started: RFC 3339, by that host's clock.
    pub started: String,
    /// Names the lock that the process holds as long as it lives: a file of a running kernel, so that no copy has the same. Of two starts with
    /// one seat the earlier is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<String>,
}

/// What the first state of a restored cluster was made of. Each member of it is restored by itself, so this is all that shows whether two
/// of them began with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Of the database in the backup, in hexadecimal; without the digest at its end, which a file may lack.
    pub sha256: String,
    /// The revision that the state begins with.
    pub revision: i64,
    /// The history before that counts as compacted.
    pub is_compacted: bool,
}

/// The settings that all first members must share. Compared as a whole, shown as a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisConfig {
    /// By name; names are unique.
    pub members: Vec<FirstMember>,
    /// User information in a token that is a URL is left out; the hash is of the whole.
    pub token: String,
    pub token_sha256: String,
    /// None where a cluster begins with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FirstMember {
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
}

/// A member of the answering cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    #[serde(with = "hex::member")]
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    #[serde(default)]
    pub client_urls: Vec<String>,
    #[serde(default)]
    pub is_learner: bool,
}

/// What a member asks another before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub hello: Hello,
    /// The first members by the asker's settings, while it is not born.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<GenesisConfig>,
}

/// The answer to a hello: who answers, what it knows of the asker, and what it makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub hello: Hello,
    pub known: Known,
    pub verdict: Verdict,
    /// The first members by the answerer's settings, while it is not born.
    pub config: Option<GenesisConfig>,
    /// The members of the cluster, once it is born.
    pub members: Vec<Named>,
}

impl Answer {
    /// As the answerer has applied them.
    pub fn voters(&self) -> Vec<MemberId> {
        self.members.iter().filter(|member| !member.is_learner).map(|member| member.id).collect()
    }
}
