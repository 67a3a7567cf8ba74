//! Reads etcd's database files, which are bbolt files, and the digest that a saved backup carries at its end: what both the daemon and
//! the control tool must know of them.
//!
//! Not here: what a file means to a member, writing one, restoring one (storage).

mod bolt_read;
mod digest;
pub mod page;
mod sequence;
mod status;

pub use bolt_read::{BoltError, BoltFile, EachPair};
pub use digest::{DIGEST_BYTES, HashingReader, append_digest, check_digest, has_digest, sha256};
pub use sequence::{OutOfOrder, Sequence};
pub use status::{KEY_BUCKET, Look, LookError, Status, look, status_of, write_size};
