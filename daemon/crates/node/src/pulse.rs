//! Signs of life of the loops without which a member is none: raft, apply, and the writer of the log. The first two count their turns, also
//! when they have nothing to do; each says when it begins something that may lawfully take long, so that whoever watches can tell a disk
//! that hangs from a loop that does.
//!
//! Not here: what follows from silence (the daemon, which feeds the service manager's watchdog).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::handle::Handle;

/// What a loop was in when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Work {
    /// Turning, or between two turns. The raft loop turns once a heartbeat at the least, the apply worker once a second.
    Turning = 0,
    /// In a write or a sync of the log, or in the state store, which waits for its disk when that does not keep up.
    Disk = 1,
    /// Putting a received state in place of its own: as long as the state is large.
    Install = 2,
    /// Waiting for something to do, for ever if nothing comes.
    Idle = 3,
}

/// One loop at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Turns and pieces of work since the start. It changes as long as the loop lives.
    pub count: u64,
    pub work: Work,
}

/// All loops at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    pub raft: Beat,
    pub apply: Beat,
    /// In the disk, or idle: it turns only when there is something to write.
    pub log: Beat,
}

#[derive(Default)]
pub(crate) struct Loop {
    count: AtomicU64,
    work: AtomicU8,
}

impl Loop {
    pub(crate) fn beat(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Says what the loop is in while `work` runs.
    pub(crate) fn within<T>(&self, kind: Work, work: impl FnOnce() -> T) -> T {
        let before = self.work.swap(kind as u8, Ordering::Relaxed);
        let result = work();
        self.work.store(before, Ordering::Relaxed);
        self.beat();
        result
    }

    fn look(&self) -> Beat {
        let work = match self.work.load(Ordering::Relaxed) {
            1 => Work::Disk,
            2 => Work::Install,
            3 => Work::Idle,
            _ => Work::Turning,
        };
        Beat { count: self.count.load(Ordering::Relaxed), work }
    }
}

#[derive(Default)]
pub(crate) struct Pulse {
    pub(crate) raft: Loop,
    pub(crate) apply: Loop,
    pub(crate) log: Loop,
}

impl Handle {
    /// Never waits: asked by whoever must notice that others do.
    pub fn beats(&self) -> Beats {
        let pulse = &self.shared.pulse;
        let log = match pulse.log.look() {
            Beat { count, work: Work::Turning } => Beat { count, work: Work::Idle },
            beat => beat,
        };
        Beats { raft: pulse.raft.look(), apply: pulse.apply.look(), log }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_says_what_it_is_in_and_that_it_came_out() {
        let turning = Loop::default();
        assert_eq!(turning.look(), Beat { count: 0, work: Work::Turning });
        turning.within(Work::Install, || {
            assert_eq!(turning.look().work, Work::Install);
            turning.within(Work::Disk, || assert_eq!(turning.look().work, Work::Disk));
            assert_eq!(turning.look(), Beat { count: 1, work: Work::Install });
        });
        turning.beat();
        assert_eq!(turning.look(), Beat { count: 3, work: Work::Turning });
    }
}
