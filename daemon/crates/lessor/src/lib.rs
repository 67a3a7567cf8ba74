//! When leases end, decided purely: the leader's deadlines, renewals and checkpoints on a clock that is handed in.
//!
//! Which leases exist is replicated (state-machine); until when each of them lives is known to the leader alone, in memory, because a
//! keep-alive must cost neither a log entry nor a round. [`Lessor`] is the one owner of that knowledge:
//!
//! - On promotion it takes the table from the state, a piece at a time, while apply goes on telling it of changes ([`Lessor::begin`],
//!   [`Lessor::load`], [`Lessor::promoted`]). Every lease gets its full time, or what a checkpoint left of it, and an election timeout.
//! - Deadlines stand on a *lease clock* ([`clock`]) that runs only while this member's leadership is confirmed and while the process
//!   itself runs. A leader that was paused, cut off or stalled therefore expires nobody for the time in which nobody could renew.
//! - [`Lessor::renew`] is O(1): it writes a deadline and leaves the timing wheel alone; the wheel finds out when it comes by.
//! - [`Lessor::expire`] decides which leases are over. A decided lease is renewed no more; before that it is, however late it is.
//! - Long leases that nobody renews are checkpointed, so that a change of leader does not begin their time anew; the first renewal
//!   after that has the record cleared, and is answered when it is (etcd's rule: what a client was told survives the leader).
//!
//! Nothing here is replicated and nothing here decides alone: an expiry is a proposal of this term, and raft has the last word.
//!
//! Not here: which leases exist and what they hold (state-machine), threads, real clocks, proposals, peers (node).

pub mod clock;
mod index;
mod lessor;
mod table;
mod wheel;

pub use clock::{Mono, Now};
pub use lessor::{Config, Lease, Lessor, Phase, REVOKES_IN_FLIGHT_MAX, Renewal, Revoked};
pub use table::Table;
