//! A whole cluster in one thread, from one seed: cores and state machines are real, time, network, disks and crashes are drawn from the
//! seed. Nothing here knows what is right; that is the [`checks`], which only watch.
//!
//! Not here: the client edge, real sockets and files.

mod checks;
mod client;
mod damage;
mod desk;
mod disk;
// What the node writes down about who its members are, and what it makes of what peers say of it.
#[path = "../../../daemon/crates/node/src/records/due.rs"]
#[expect(dead_code, reason = "the settings of a founder are not simulated")]
mod due;
mod faults;
mod hub_desk;
#[path = "../../../daemon/crates/node/src/sentinel/jury.rs"]
mod jury;
mod lease_checks;
mod leases;
mod lives;
mod member;
mod membership;
mod network;
// The very rules of the node, which know nothing of it.
#[path = "../../../daemon/crates/node/src/members/rules.rs"]
mod rules;
mod sentry;
mod watch_client;
mod watches;
mod wires;
mod world;

pub use world::{Outcome, World};

/// Virtual time. A heartbeat interval is [`TICK`] of these.
pub type Time = u64;

/// Time units in one tick of a member's clock, before its skew.
pub const TICK: Time = 100;

/// What a planted defect takes away, to show that the checks would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Every hello is welcome.
    TakesEverybody,
    /// As if starts had never been written down, nor who attended the founding.
    IgnoresRecords,
    /// A founder hears members of an earlier life that are on no list of its own.
    HearsEverybody,
    /// As if marks had never been written down.
    IgnoresMarks,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Directories are wiped, rolled back, swapped and run twice; members say who they are.
    pub damage: bool,
    /// Also where nobody could know better.
    pub window: bool,
    /// Members are forced into lives of their own, and wiped majorities found second ones beside the first.
    pub lives: bool,
    /// With several lives: only majorities of first members are wiped, and only while voters that joined later go on beside them.
    pub joined: bool,
    pub defect: Option<Defect>,
}

impl Setup {
    /// As they are given to the test that repeats a seed.
    fn variables(self) -> String {
        let damage = if self.damage { "SIM_DAMAGE=1 " } else { "" };
        let window = if self.window { "SIM_WINDOW=1 " } else { "" };
        let lives = if self.lives { "SIM_LIVES=1 " } else { "" };
        let joined = if self.joined { "SIM_JOINED=1 " } else { "" };
        format!("{damage}{window}{lives}{joined}")
    }
}

/// Runs one seed to the end.
///
/// # Panics
/// When a check fails, with the last events of the history.
pub fn run(seed: u64) -> Outcome {
    World::new(seed, Setup::default()).run()
}

/// As [`run`], with damage to directories.
///
/// # Panics
/// As [`run`]; not by what follows from a window that the setup opened.
pub fn run_damaged(seed: u64, setup: Setup) -> Outcome {
    World::new(seed, Setup { damage: true, ..setup }).run()
}
