//! The client edge: one port where clients speak gRPC, and where operators ask for health, metrics and version over HTTP.
//!
//! Connections are accepted by a few single-threaded runtimes, each with a listener of its own on the same address, so that no
//! request ever crosses a thread or takes a lock before it reaches the member. The first bytes of a connection decide its
//! protocol. A gRPC call is one pass: read the message, check it, ask the [`Backend`], write the message. The protocol pieces
//! (HTTP/2, status, metadata) are hyper's and tonic's; dispatch and framing are ours, because a unary call then costs no boxed
//! future, no boxed body and no buffer beyond the message itself.
//!
//! Not here: any decision about keys, members or consensus. This crate has never heard of raft; what it knows of the member is
//! the trait [`Backend`]. Also not here yet: TLS, authentication, the JSON gateway, watch and lease streams.

mod authority;
mod backend;
mod bind;
mod body;
mod config;
mod connection;
mod edge;
mod grpc;
mod http;
mod metrics;
mod running;
mod serving;
mod sniff;

pub use backend::Backend;
pub use bind::{Bound, StartError};
pub use config::{Listen, ServerConfig};
pub use running::{Drained, Running, Server};
