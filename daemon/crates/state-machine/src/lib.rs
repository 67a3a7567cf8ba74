//! The replicated state machine: what a committed entry does to keys, leases, members and alarms, and how the result is read.
//!
//! [`StateMachine`] owns the state and applies entries; [`Reader`]s read beside it. Rows go to a [`store::Store`] with the applied
//! position in every batch; the index over them is in memory ([`index`]) and is rebuilt at start, from a checkpoint when there is
//! one. Everything is a function of the log: two members that applied the same entries hold the same rows, byte for byte as etcd's.
//!
//! Not here: clocks, files, threads, randomness, the network; durability, which the log has.

mod alarms;
mod apply;
mod checkpoint;
mod cluster;
mod compaction;
mod compaction_hash;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod hash;
mod history;
pub mod identities;
mod index;
mod leases;
mod machine;
pub mod membership;
pub mod memory;
mod range;
mod read;
mod rebuild;
mod recent;
pub mod rows;
mod state;
pub mod store;
mod stream;
pub mod validate;
mod warm;

pub use apply::gates::{lease_cost, put_cost, txn_cost};
pub use apply::{Outcome, Sink};
pub use checkpoint::CheckpointError;
pub use cluster::Downgrade;
pub use compaction::CompactProgress;
pub use compaction_hash::{COMPACTION_HASHES_KEPT, CompactionHashJob, is_of_this_store};
pub use hash::HashKv;
pub use history::{History, HistoryError, HistoryRequest};
pub use index::IndexSize;
pub use leases::{LEASE_TTL_MAX, LEASE_TTL_MIN, LeaseChange, LeaseFacts};
pub use machine::{OpenError, StateMachine, check};
pub use memory::Memory;
pub use read::{Reader, is_read_only, is_serializable};
pub use state::{
    INLINE_VALUE_BYTES_MAX_DEFAULT, NEVER_COMPACTED, Options, QUOTA_BACKEND_BYTES_DEFAULT, StoreFailure,
};
pub use stream::RangeStream;
