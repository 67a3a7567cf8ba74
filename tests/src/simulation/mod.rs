//! A whole cluster in one thread, from one seed: cores and state machines are real, time, network, disks and crashes are drawn from the
//! seed. Nothing here knows what is right; that is the [`checks`], which only watch.
//!
//! Not here: the client edge, real sockets and files.

mod checks;
mod client;
mod desk;
mod disk;
mod faults;
mod hub_desk;
mod lease_checks;
mod leases;
mod member;
mod membership;
mod network;
// The very rules of the node, which know nothing of it.
#[path = "../../../daemon/crates/node/src/members/rules.rs"]
mod rules;
mod watch_client;
mod watches;
mod wires;
mod world;

pub use world::{Outcome, World};

/// Virtual time. A heartbeat interval is [`TICK`] of these.
pub type Time = u64;

/// Time units in one tick of a member's clock, before its skew.
pub const TICK: Time = 100;

/// Runs one seed to the end.
///
/// # Panics
/// When a check fails, with the last events of the history.
pub fn run(seed: u64) -> Outcome {
    World::new(seed).run()
}
