//! Where messages wait for the stream that the peer has opened to read them. Filled from any thread, emptied by the body of that
//! stream; a newer stream of the same kind replaces the older.

use std::task::{Context, Waker};

use api::raftpb::Message;
use parking_lot::Mutex;

use super::queue::{Offer, Queue, QueueLimits};

pub(crate) struct Outlet {
    state: Mutex<State>,
}

struct State {
    /// Counts attached streams; the present one is the last.
    generation: u64,
    attached: bool,
    /// No stream will be attached any more.
    closed: bool,
    queue: Queue,
    waker: Option<Waker>,
}

#[expect(clippy::large_enum_variant, reason = "lives for one call on the stack")]
pub(crate) enum Offered {
    /// Queued; the waker must be woken when the caller has queued all it has.
    Taken(Option<Waker>),
    Dropped {
        first: bool,
    },
    Detached(Message),
}

pub(crate) enum Drained {
    Messages,
    Empty,
    /// Another stream has taken over, or the peer is gone.
    Replaced,
}

impl Outlet {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        let queue = Queue::new(limits);
        Outlet {
            state: Mutex::new(State { generation: 0, attached: false, closed: false, queue, waker: None }),
        }
    }

    pub(crate) fn offer(&self, message: Message) -> Offered {
        let mut state = self.state.lock();
        if !state.attached {
            return Offered::Detached(message);
        }
        match state.queue.offer(message) {
            Offer::Taken => Offered::Taken(state.waker.take()),
            Offer::Dropped { first } => Offered::Dropped { first },
        }
    }

    /// A new stream; the number identifies it. `None` if the peer is gone.
    pub(crate) fn attach(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.generation += 1;
        state.attached = true;
        // What waited for the old stream may be lost in it half way; raft sends it again.
        state.queue.clear();
        let (generation, old) = (state.generation, state.waker.take());
        drop(state);
        if let Some(old) = old {
            old.wake();
        }
        Some(generation)
    }

    /// The stream has ended; the number of messages that it leaves unsent, if it was the present one.
    pub(crate) fn detach(&self, generation: u64) -> Option<usize> {
        let mut state = self.state.lock();
        if state.generation != generation || !state.attached {
            return None;
        }
        state.attached = false;
        state.waker = None;
        Some(state.queue.clear())
    }

    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.attached = false;
            state.queue.clear();
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.state.lock().attached
    }

    /// Moves queued messages into `batch` until they weigh `bytes`, or registers to be woken when there are some.
    pub(crate) fn drain(
        &self,
        generation: u64,
        bytes: usize,
        batch: &mut Vec<Message>,
        cx: &mut Context<'_>,
    ) -> Drained {
        let mut state = self.state.lock();
        if state.generation != generation || !state.attached {
            return Drained::Replaced;
        }
        let mut gathered = 0;
        while gathered < bytes
            && let Some((weight, message)) = state.queue.take()
        {
            gathered += weight;
            batch.push(message);
        }
        if batch.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Drained::Empty;
        }
        Drained::Messages
    }
}
