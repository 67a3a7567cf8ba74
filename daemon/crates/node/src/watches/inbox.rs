//! What waits for the hub's thread. Apply hands a batch over with one push and never waits; if the hub falls too far behind, the events
//! themselves are dropped and only the newest revision is kept, and watchers read what they missed from the store. What clients ask is
//! bounded where it comes in, by each stream's queue.

use std::{mem, sync::Arc, time::Instant};

use api::mvccpb::Event;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use types::Revision;
use watch::{Census, Request, Slice, StreamQueue};

/// Bytes of events that may wait for the hub. At full load it is a second's worth; the hub is many times faster than that unless the
/// machine has no time for it.
const TOLD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was applied in one go.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Ascending; empty when nobody watched, or the hub was too far behind.
    pub(crate) revisions: Vec<(Revision, Vec<Event>)>,
    /// Of `revisions`, about.
    pub(crate) bytes: usize,
    /// The store's revision afterwards.
    pub(crate) newest: Revision,
    /// The compact revision, if it changed.
    pub(crate) compacted: Option<Revision>,
}

/// From the streams, and from the thread that reads history.
pub(crate) enum Asked {
    Open(Arc<StreamQueue>),
    Request {
        stream: u64,
        request: Request,
        weight: usize,
    },
    Drained(u64),
    Closed(u64),
    Read {
        job: u64,
        result: Result<Slice, Revision>,
    },
    /// What is watched, from a place on. Whoever asks has one of these under way at a time.
    Census {
        from: usize,
        told: oneshot::Sender<Census>,
    },
}

#[derive(Default)]
struct State {
    told: Vec<Told>,
    /// Waiting, and taken but not yet worked off.
    told_bytes: usize,
    taken_bytes: usize,
    asked: Vec<Asked>,
    sleeping: bool,
    stopping: bool,
}

#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

impl Inbox {
    pub(crate) fn tell(&self, mut told: Told) {
        let mut state = self.state.lock();
        if state.told_bytes + told.bytes > TOLD_BYTES_MAX {
            told.revisions = Vec::new();
            told.bytes = 0;
        }
        state.told_bytes += told.bytes;
        match state.told.last_mut() {
            // Without events the newest revision is all there is to know.
            Some(last) if last.revisions.is_empty() && told.revisions.is_empty() => {
                last.newest = told.newest;
                last.compacted = told.compacted.or(last.compacted);
            }
            _ => state.told.push(told),
        }
        self.rouse(state);
    }

    pub(crate) fn ask(&self, asked: Asked) {
        let mut state = self.state.lock();
        if state.stopping {
            if let Asked::Open(queue) = asked {
                drop(state);
                queue.end_now();
            }
            return;
        }
        state.asked.push(asked);
        self.rouse(state);
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.rouse(state);
    }

    fn rouse(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if mem::take(&mut state.sleeping) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Moves everything out, waiting until there is something or `until` has come. Whatever was taken before counts as worked off. False
    /// when the member stops.
    pub(crate) fn take(
        &self,
        told: &mut Vec<Told>,
        asked: &mut Vec<Asked>,
        until: Option<Instant>,
        may_wait: bool,
    ) -> bool {
        let mut state = self.state.lock();
        state.told_bytes -= mem::take(&mut state.taken_bytes);
        while may_wait && state.told.is_empty() && state.asked.is_empty() && !state.stopping {
            state.sleeping = true;
            let timed_out = match until {
                None => {
                    self.wake.wait(&mut state);
                    false
                }
                Some(until) => self.wake.wait_until(&mut state, until).timed_out(),
            };
            if timed_out {
                state.sleeping = false;
                break;
            }
        }
        mem::swap(told, &mut state.told);
        mem::swap(asked, &mut state.asked);
        state.taken_bytes = told.iter().map(|told| told.bytes).sum();
        !state.stopping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(revision: i64, bytes: usize) -> Told {
        let events = vec![(Revision(revision), vec![Event::default()])];
        Told { revisions: events, bytes, newest: Revision(revision), compacted: None }
    }

    #[test]
    fn a_hub_too_far_behind_is_told_only_the_newest_revision() {
        let inbox = Inbox::default();
        let (mut told, mut asked) = (Vec::new(), Vec::new());
        inbox.tell(batch(2, TOLD_BYTES_MAX - 1));
        for revision in 3..100 {
            inbox.tell(batch(revision, 2));
        }
        inbox.tell(Told { newest: Revision(100), compacted: Some(Revision(50)), ..Told::default() });
        inbox.tell(batch(101, 2));
        assert!(inbox.take(&mut told, &mut asked, None, false));
        assert_eq!(told.len(), 2, "what has no events is one");
        assert_eq!((told[1].newest, told[1].compacted), (Revision(101), Some(Revision(50))));
        // What is taken counts until it is worked off.
        inbox.tell(batch(102, 2));
        told.clear();
        assert!(inbox.take(&mut told, &mut asked, None, false));
        assert!(told[0].revisions.is_empty());
        told.clear();
        inbox.tell(batch(103, 2));
        assert!(inbox.take(&mut told, &mut asked, None, false));
        assert_eq!(told[0].revisions.len(), 1, "worked off, and events are kept again");
    }
}
