//! Names for numbers. Each coordinate of the system has its own type, so that a log index cannot be handed to something that wants
//! a revision, and the entry and hard state that consensus, WAL and apply pass to each other are defined once.
//!
//! Not here: wire messages (`api`), behaviour of any kind.

mod ids;
pub mod limits;
mod raft;
mod range;

pub use ids::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId, Revision, RowId, Term};
pub use raft::{ConfState, Entry, EntryKind, HardState};
pub use range::KeyRange;
