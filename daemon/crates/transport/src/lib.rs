//! How members talk: etcd's peer protocol over HTTP/1.1, byte for byte, as server and as client.
//!
//! Each pair of members keeps four long requests open. A member *dials* to *read*: it asks `GET /raft/stream/msgapp/<own id>` and
//! `GET /raft/stream/message/<own id>`, and the other answers with a body that never ends. Appends travel on `msgapp`, everything else
//! on `message`, so a heartbeat or a vote never waits behind megabytes of log. While a stream is not attached its messages go by
//! `POST /raft`, one each. Snapshots have a request of their own. A few GETs let members question each other before raft runs,
//! and followers pass on to the leader what clients ask them about leases.
//!
//! Members of cairn say who they are on each of these connections ([`hello`](Handler::hello)), judge each other, and refuse with a reason;
//! members of etcd see none of it. Which *start* of a peer is heard is known here (its session), so that a copy of it is not heard too.
//!
//! [`Transport::send`] only queues: it never waits and may be called from the raft thread. Every queue is bounded in messages and in
//! bytes; what does not fit is dropped and reported as unreachable once per burst, which is what raft expects of a network. Whatever
//! the network says reaches the rest of cairn through [`Handler`], after the checks of `ingress`.
//!
//! A peer is never believed to its own advantage: 403 and 410 from a peer are *reported* ([`Handler::told_removed`]) and change
//! nothing here; garbage closes its connection and is reported once a minute; nothing that arrives ends the process.
//!
//! Not here: raft itself, the decision whether a member was removed or who is welcome, the content of snapshots, TLS (see `link` for
//! where it goes).

mod client;
pub mod codec;
mod config;
mod handler;
pub mod headers;
mod hello;
mod ingress;
mod link;
mod lobby;
pub mod metrics;
mod peer;
mod server;
mod transport;
mod wire;

pub use client::{MembersAnswer, PeerClient, PeerClientError, PeerVersions};
pub use config::{Limits, StartError, Timeouts, TransportConfig, frame_bytes_max};
pub use handler::{
    Handler, LeaseRefusal, PeerHash, PeerMember, Pending, PromoteRefusal, Report, SnapshotSink,
    SnapshotSource, Topic,
};
pub use hello::{Met, Refused, Via};
pub use lobby::Lobby;
pub use peer::{lease::LeaseCallError, promote::PromoteError};
pub use transport::Transport;
