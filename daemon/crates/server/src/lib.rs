//! The client edge: one port where clients speak gRPC, and where operators ask for health, metrics and version over HTTP.
//!
//! Connections are accepted by a few single-threaded runtimes, each with a listener of its own on the same address, so that no
//! request ever crosses a thread or takes a lock before it reaches the member. The first bytes of a connection decide its
//! protocol. A unary gRPC call is one pass: read the message, check it, ask the [`Backend`], write the message; watches and keep-alives
//! are read and answered on the runtime of their connection until one side ends them. The protocol pieces
//! (HTTP/2, status, metadata) are hyper's and tonic's; dispatch and framing are ours, because a unary call then costs no boxed
//! future, no boxed body and no buffer beyond the message itself.
//!
//! Not here: any decision about keys, members or consensus. This crate has never heard of raft; what it knows of the member is
//! the trait [`Backend`]. Also not here yet: TLS, authentication, the JSON gateway.

mod authority;
mod backend;
mod bind;
mod body;
mod config;
mod connection;
mod discovery;
mod edge;
mod grpc;
mod http;
mod member;
mod metrics;
mod operator;
mod pace;
mod running;
mod serving;
mod sniff;
mod streams;

pub use backend::{Backend, WatchClosed, WatchRequests, WatchResponses};
pub use bind::{Bound, StartError};
pub use config::{Listen, ServerConfig};
pub use discovery::DiscoveryConfig;
pub use running::{Drained, Running, Server};
