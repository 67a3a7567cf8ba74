//! Whether this member lives: pure, from what its loops say of themselves.
//!
//! The watchdog exists for a process that is there and does nothing. It is fed while the raft loop, the apply worker and the main loop all
//! turn; they do so also when nobody asks for anything. The writer of the log does not, but comes out of each write. How long one may be silent depends on what it said it was doing:
//!
//! * Between two turns: half of the manager's limit, and three times the longest turn of an idle loop.
//! * In a disk: [`DISK_PATIENCE`], however short the manager's limit is. A member that is killed because its disk hangs for a minute meets
//!   the same disk at its next start, has to read there what it had in memory, and its cluster has lost a voter that would have come back
//!   by itself. Its heartbeats and votes do not wait for the disk meanwhile. A disk that hangs for longer is as good as dead, and so is its
//!   member: then it shall end, which gives a leader's place to others. What fails instead of hanging ends the process at once by itself.
//! * Installing a received state: [`INSTALL_PATIENCE`], since that takes as long as the state is large.

use std::time::{Duration, Instant};

use node::{Beats, Work};

/// Longest silence in a write or a sync.
pub const DISK_PATIENCE: Duration = Duration::from_secs(300);

/// Longest installation of a received state: 100 GiB at the 64 MiB a second that a slow disk does.
const INSTALL_PATIENCE: Duration = Duration::from_secs(1800);

/// An idle loop turns at least this often: raft once a heartbeat, which is at most 10 s, the others every second.
const TURN_MAX: Duration = Duration::from_secs(10);

const WHO: [&str; 4] = ["the raft loop", "the apply worker", "the log writer", "the main loop"];

/// The loops at one moment.
pub struct Watched([(u64, Work); 4]);

impl Watched {
    pub fn new(beats: Beats, turns: u64) -> Watched {
        Watched([
            (beats.raft.count, beats.raft.work),
            (beats.apply.count, beats.apply.work),
            (beats.log.count, beats.log.work),
            // It writes the identity file now and then, and does not say so.
            (turns, Work::Disk),
        ])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Lives,
    Silent { who: &'static str, for_s: u64 },
}

pub struct Patience {
    turning: Duration,
    /// Per loop: its last count and since when it is that.
    last: [Option<(u64, Instant)>; 4],
}

impl Patience {
    /// `limit`: after so long without a word the manager ends the process.
    pub fn new(limit: Duration) -> Patience {
        Patience { turning: (limit / 2).max(3 * TURN_MAX), last: [None; 4] }
    }

    pub fn judge(&mut self, now: Instant, watched: &Watched) -> Verdict {
        let mut verdict = Verdict::Lives;
        for ((who, last), (count, work)) in WHO.iter().zip(&mut self.last).zip(&watched.0) {
            let since = match last {
                Some((counted, since)) if counted == count && *work != Work::Idle => *since,
                _ => {
                    *last = Some((*count, now));
                    now
                }
            };
            let allowed = match work {
                Work::Turning | Work::Idle => self.turning,
                Work::Disk => DISK_PATIENCE,
                Work::Install => INSTALL_PATIENCE,
            };
            let silent = now - since;
            if silent > allowed {
                verdict = Verdict::Silent { who, for_s: silent.as_secs() };
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(raft: (u64, Work), apply: (u64, Work), main: u64) -> Watched {
        Watched([raft, apply, (1, Work::Idle), (main, Work::Disk)])
    }

    /// A loop that turns lives, one that does not is silent; a disk is given its time, and not for ever.
    #[test]
    fn silence_is_judged_by_what_a_loop_was_doing() {
        use Work::{Disk, Install, Turning};
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for (raft, apply, silent_s, who) in [
            (Turning, Turning, 31, Some("the apply worker")),
            (Turning, Turning, 30, None),
            (Turning, Disk, 300, None),
            (Turning, Disk, 301, Some("the apply worker")),
            (Turning, Install, 301, None),
            (Turning, Install, 1801, Some("the apply worker")),
        ] {
            let mut patience = Patience::new(Duration::from_secs(30));
            assert_eq!(patience.judge(at(0), &watched((1, raft), (1, apply), 1)), Verdict::Lives);
            // Raft and the main loop turn on, the worker does not.
            let verdict = patience.judge(at(silent_s), &watched((2, raft), (1, apply), 2));
            let expected = who.map_or(Verdict::Lives, |who| Verdict::Silent { who, for_s: silent_s });
            assert_eq!(verdict, expected, "{apply:?} for {silent_s} s");
            assert_eq!(patience.judge(at(silent_s + 1), &watched((3, raft), (2, apply), 3)), Verdict::Lives);
        }
    }

    #[test]
    fn each_of_the_loops_can_be_the_silent_one() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        for (at, who) in WHO.iter().enumerate() {
            let mut patience = Patience::new(Duration::from_secs(600));
            patience.judge(start, &watched((1, Work::Turning), (1, Work::Turning), 1));
            let mut counts = [2; WHO.len()];
            counts[at] = 1;
            let works = [Work::Turning, Work::Turning, Work::Disk, Work::Disk];
            let now = Watched(std::array::from_fn(|at| (counts[at], works[at])));
            assert_eq!(patience.judge(later, &now), Verdict::Silent { who, for_s: 3600 });
        }
    }

    /// The writer of the log has nothing to say while nobody writes; from the moment that it is in the disk it is waited for.
    #[test]
    fn who_waits_for_work_is_not_silent() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(30));
        let mut turns = 0;
        let mut judged = |seconds: u64, log: Work| {
            turns += 1;
            let turning = (turns, Work::Turning);
            let now = Watched([turning, turning, (1, log), turning]);
            patience.judge(start + Duration::from_secs(seconds), &now)
        };
        for (seconds, log, expected) in [
            (0, Work::Idle, Verdict::Lives),
            (86_400, Work::Idle, Verdict::Lives),
            (86_401, Work::Disk, Verdict::Lives),
            (86_700, Work::Disk, Verdict::Lives),
            (86_701, Work::Disk, Verdict::Silent { who: "the log writer", for_s: 301 }),
            (86_702, Work::Idle, Verdict::Lives),
        ] {
            assert_eq!(judged(seconds, log), expected, "{seconds}");
        }
    }
}
