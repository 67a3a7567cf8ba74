//! Consensus as a value: raft-rs behind [`Core`], inputs in, outputs out. No thread, clock, file, socket or log line here, so a whole
//! cluster runs in one test from one seed.
//!
//! # What the driver owes
//!
//! * Feed a batch of inputs with [`Core::handle`], then take outputs with [`Core::poll`] until there are none, and obey them in order.
//! * `Send` may leave at once; what must wait for the disk comes out only after it. So send before writing.
//! * `Persist` is written in the order of its numbers; `Persisted(n)` says that all up to `n` are durable (those without `must_sync` only
//!   need to be handed to the file). Writes may be merged, and one confirmation may cover many.
//! * `Apply` and `InstallSnapshot` go to one worker in the order they come. `Applied` lists every conf change of its range.
//! * `SendSnapshot{to}` is always answered by [`Input::SnapshotStatus`](io::Input::SnapshotStatus) in the end, also when nothing could be
//!   sent: until then it is not asked again.
//! * A `MsgSnap` is fed only once its bytes are here, checked and durable; it ends in `InstallSnapshot` or `SnapshotIgnored`.
//!   `InstallSnapshot` comes after the snapshot record is on disk, so a start that finds the record but an older state finishes the
//!   installation from those bytes.
//!
//! # What raft-rs 0.7 gets help with
//!
//! Its panics on odd messages and states ([`guard`], [`config`]), contexts of reads ([`reads`]), what waits for the disk ([`flight`]), a
//! leader that is removed (it would panic at its next commit), campaigns while a snapshot is being installed or while a single voter's
//! log is on its way to the disk (it would panic in both), next index below match.
//!
//! Not here: the disk (`storage`), the network (`transport`), what entries mean (`state-machine`).

pub mod codec;
mod config;
mod core;
mod flight;
mod guard;
pub mod io;
mod log;
mod reads;
mod status;

pub use config::{COORDINATE_MAX, Config, LoadError, Recovered};
pub use core::{Core, NoSnapshot};
pub use guard::{CONTRADICTIONS, HISTORY_KINDS};
pub use status::{Peer, PeerState, Status};
