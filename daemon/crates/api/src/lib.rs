//! The wire contract: messages of etcd's v3 API in Rust, the few of our own (`operator`), and the one table of errors.
//!
//! The `.proto` files under `proto/` are ours, wire-compatible with etcd; `src/generated` is committed and checked for drift by
//! `tests/generated.rs`. Message structs are always here; gRPC stubs come with the features `client` and `server`. All `bytes`
//! fields are [`bytes::Bytes`], so a value travels from socket to log to reply without being copied.
//!
//! Not here: any behaviour, any dependency on the rest of cairn.

pub mod error;

#[rustfmt::skip]
#[allow(clippy::all, reason = "generated code follows the generator's taste")]
mod generated {
    pub mod etcdserverpb { include!("generated/etcdserverpb.rs"); }
    pub mod mvccpb { include!("generated/mvccpb.rs"); }
    pub mod authpb { include!("generated/authpb.rs"); }
    pub mod raftpb { include!("generated/raftpb.rs"); }
    pub mod walpb { include!("generated/walpb.rs"); }
    pub mod snappb { include!("generated/snappb.rs"); }
    pub mod leasepb { include!("generated/leasepb.rs"); }
    pub mod membershippb { include!("generated/membershippb.rs"); }
    pub mod v3electionpb { include!("generated/v3electionpb.rs"); }
    pub mod v3lockpb { include!("generated/v3lockpb.rs"); }
    pub mod health { include!("generated/grpc.health.v1.rs"); }
    pub mod cairn { pub mod v1 { include!("generated/cairn.v1.rs"); } }
}

pub use generated::{cairn::v1 as operator, *};
