//! The transport's side of the conversation with the node.

use std::{future::Future, io, pin::Pin};

use api::{
    error::EtcdError,
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::Message,
};
use bytes::Bytes;
use identity::{Answer, Hello, Question, Session};
use serde::{Deserialize, Deserializer, Serialize};
use types::MemberId;
use url::Url;

use crate::hello::{Met, Refused};

/// What a member offers to its transport. Unless said otherwise a method is called on an I/O thread (some from inside
/// [`crate::Transport::send`], that is on the raft thread): it must return at once and must not wait for the raft thread.
pub trait Handler: Send + Sync + 'static {
    /// A message from a peer that passed the ingress checks: addressed to us, from somebody not removed, of a kind that may travel. Put
    /// it in a bounded queue; drop it when that is full, raft will ask again.
    fn receive(&self, message: Message);

    /// Whether the member is in the *applied* removed set. Asked for every message, so it must be cheap. A yes makes etcd members at
    /// the other end shut down.
    fn is_removed(&self, member: MemberId) -> bool;

    /// For `GET /members`.
    fn members(&self) -> Vec<PeerMember>;

    /// The decided cluster version as X.Y.Z; `None` before it is decided.
    fn cluster_version(&self) -> Option<String>;

    /// The storage version as X.Y.Z, if there is one.
    fn storage_version(&self) -> Option<String> {
        None
    }

    /// The hash of the key space at a revision, 0 for the newest. Called on a blocking thread, one at a time.
    fn hash_kv(&self, revision: i64) -> Result<PeerHash, EtcdError>;

    /// A follower passes on a keep-alive; answers the seconds that the lease has again. Only the leader answers, and nothing is
    /// passed on a second time. May wait, for seconds at most.
    fn renew_lease(&self, _id: i64) -> Pending<Result<i64, LeaseRefusal>> {
        Box::pin(std::future::ready(Err(LeaseRefusal::NotPrimary)))
    }

    /// A follower asks for the time that a lease has left, on the same terms. The header of the answer is not used.
    fn lease_time_to_live(
        &self,
        _request: LeaseTimeToLiveRequest,
    ) -> Pending<Result<LeaseTimeToLiveResponse, LeaseRefusal>> {
        Box::pin(std::future::ready(Err(LeaseRefusal::NotPrimary)))
    }

    /// A follower passes on the promotion of a learner; answers the members after it. Only the leader answers, and nothing is passed on a
    /// second time. May wait as long as a change of membership takes.
    fn promote(&self, _member: MemberId) -> Pending<Result<Vec<PeerMember>, PromoteRefusal>> {
        Box::pin(std::future::ready(Err(PromoteRefusal::Other)))
    }

    /// A message to this peer was lost: tell raft. May be called from inside `send`.
    fn unreachable(&self, peer: MemberId);

    /// How a snapshot given to [`crate::Transport::send_snapshot`] ended; exactly once for each.
    fn snapshot_status(&self, peer: MemberId, ok: bool);

    /// A snapshot begins to arrive: `message` is the MsgSnap, addressed to us and with a position. Called on a blocking thread, as is
    /// the sink. An error is told to the sender as 500.
    fn receive_snapshot(&self, message: Message) -> io::Result<Box<dyn SnapshotSink>>;

    /// A peer said that we were removed (403 or 410). A report and nothing more: the transport keeps trying. At most once a minute per
    /// peer.
    fn told_removed(&self, peer: MemberId, text: &str);

    /// Somebody whom we do not know has sent a raft request and named its own URLs. Yes makes it a *remote*, to which we can answer
    /// until the log tells us of it.
    fn accept_remote(&self, member: MemberId, urls: &[Url]) -> bool;

    /// What this member says of itself on every connection. `None`: nothing, like a member of etcd.
    fn hello(&self) -> Option<Hello> {
        None
    }

    /// Judges who is at the other end, before anything of it is taken or given. Asked for every connection.
    fn meet(&self, _met: &Met<'_>) -> Result<(), Box<Refused>> {
        Ok(())
    }

    /// Whether a message or a snapshot of somebody who was not refused is taken now. A no is answered with 503 and means nothing more: raft
    /// asks again. `urls`: where it says that it can be asked.
    fn may_speak(&self, _peer: MemberId, _hello: Option<&Hello>, _urls: &[Url]) -> bool {
        true
    }

    /// A welcome start of a peer is heard on a stream for the first time.
    fn began(&self, _peer: MemberId, _hello: &Hello) {}

    /// A peer takes us: it answered a request for a stream.
    fn welcomed(&self, _peer: MemberId) {}

    /// A peer refuses us, and says why; `theirs` is what it says of itself. The transport goes on asking, ever more slowly.
    fn refused(&self, _peer: MemberId, _refused: &Refused, _theirs: Option<&Hello>) {}

    /// The answer to somebody's question who it is to us; `session` is the start of that member that is heard now. `None`: 404, as from
    /// a member of etcd. Everybody may ask.
    fn answer(&self, _question: Question, _session: Option<Session>) -> Option<Answer> {
        None
    }

    /// Something odd, already logged; at most once a minute per peer and topic.
    fn report(&self, _report: &Report) {}
}

/// An answer that takes a while; polled on an I/O thread.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a follower gets no answer about a lease. The texts are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    #[error("requested lease not found")]
    NotFound,
    /// This member does not lead, or cannot confirm that it does.
    #[error("not a primary lessor")]
    NotPrimary,
    #[error("waiting for node to catch up its applied index has timed out")]
    NotApplied,
}

/// Why a follower gets no promotion. The texts are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteRefusal {
    #[error("membership: ID not found")]
    NotFound,
    #[error("membership: can only promote a learner member")]
    NotLearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    NotReady,
    /// etcd's peers are not told this one.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// This member does not lead, or the outcome is unknown.
    #[error("not promoted")]
    Other,
}

/// Takes the bytes of an arriving snapshot. Dropped without [`SnapshotSink::finish`] when the upload breaks off.
pub trait SnapshotSink: Send {
    fn write(&mut self, chunk: Bytes) -> io::Result<()>;
    /// All bytes are here: make them durable and hand the message to raft. Our 204 follows.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// The bytes of a snapshot to be sent, written in order on a blocking thread. Writing waits while the peer is behind, and fails once nobody
/// wants the rest; what fails is never taken for the end.
pub struct SnapshotSource {
    pub(crate) write: Box<WriteAll>,
}

type WriteAll = dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send;

impl SnapshotSource {
    pub fn new(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static) -> Self {
        SnapshotSource { write: Box::new(write) }
    }
}

/// Answer to `GET /members/hashkv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHash {
    /// The member's revision when it answered.
    pub revision: i64,
    pub hash: u32,
    pub compact_revision: i64,
    /// The revision that was hashed; zero from members before 3.6.
    pub hash_revision: i64,
}

/// A member as `GET /members` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMember {
    /// A plain decimal number in JSON, beyond what a double holds.
    #[serde(serialize_with = "id_out", deserialize_with = "id_in")]
    pub id: MemberId,
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(
        rename = "clientURLs",
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub client_urls: Vec<String>,
}

fn id_out<S: serde::Serializer>(id: &MemberId, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_u64(id.0)
}

fn id_in<'de, D: Deserializer<'de>>(input: D) -> Result<MemberId, D::Error> {
    u64::deserialize(input).map(MemberId)
}

fn null_is_empty<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(input).map(Option::unwrap_or_default)
}

/// Something odd about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `None`: a stranger on our port.
    pub peer: Option<MemberId>,
    pub topic: Topic,
    pub text: String,
    /// Reports of the same kind that were not made since the last one.
    pub suppressed: u64,
}

/// Kinds of reports, each silenced on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Bytes that are not the protocol; the connection was closed.
    Garbage,
    /// A well-formed message that nobody may send us; it was dropped.
    Refused,
    /// The peer refused us.
    RefusedByPeer,
    /// A connection could not be made, or was lost.
    Connection,
    /// A queue was full.
    Overflow,
    Snapshot,
    /// The peer's clock and ours disagree.
    ClockDrift,
    ToldRemoved,
}

impl Topic {
    pub(crate) const COUNT: usize = Topic::ToldRemoved as usize + 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written_as_etcd_writes_them() {
        let member = PeerMember {
            id: MemberId(0xfedc_ba98_7654_3210),
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            is_learner: false,
            name: "n1".into(),
            client_urls: vec![],
        };
        let text = serde_json::to_string(&member).expect("plain data");
        assert_eq!(text, r#"{"id":18364758544493064720,"peerURLs":["http://127.0.0.1:2380"],"name":"n1"}"#);
        assert_eq!(serde_json::from_str::<PeerMember>(&text).expect("ours"), member);
        let bare = serde_json::from_str::<PeerMember>(
            r#"{"id":1,"peerURLs":null,"clientURLs":null,"isLearner":true}"#,
        );
        assert!(bare.expect("null is no URL").is_learner);
    }
}
