//! Everything that touches the disk: the data directory and its lock, the write-ahead log, the state store and its checkpoint,
//! snapshots in etcd's database format.
//!
//! Not here: what an entry means (state-machine), when to write (node).

pub mod checkpoint;
pub mod data_dir;
pub mod snapshot;
pub mod state_store;
pub mod wal;
