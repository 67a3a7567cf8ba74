//! What waits for one stream, between the hub that fills it and the edge's task that empties it. The bound is in items and in bytes: past
//! it the hub stops feeding the stream's watchers, remembers where they are, and goes on from there when half of it is read. So a client
//! that stopped costs this much memory and nothing else.
//!
//! An event for a thousand watchers of the stream is one item. Replies to requests are not refused for lack of room; instead their number
//! is limited where requests come in: a request's share is given back when its reply is read ([`StreamQueue::poll_admit`]).

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use types::Revision;

use crate::{
    events::{Pick, RevisionEvents},
    gauges::Gauges,
};

/// Items that may wait. etcd's channel has 128 responses, one for each watcher; ours hold a revision for all of a stream's watchers alike,
/// and half of these is what the state store reads of its history in one step.
pub const QUEUE_ITEMS_MAX: usize = 4096;

/// Bytes of events that may wait for one stream, with what is kept beside them: several round trips of a fast connection. One event that is
/// larger is still queued when nothing else is.
pub const QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Bytes of events that may wait for all streams together. Past it a stream gets events only while its queue is empty: a thousand clients
/// that stopped at different moments hold no more than this and one event each.
pub const ALL_QUEUES_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How much may wait. Tests take less, to get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    pub items: usize,
    pub bytes: usize,
    pub all_bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        QueueLimits { items: QUEUE_ITEMS_MAX, bytes: QUEUE_BYTES_MAX, all_bytes: ALL_QUEUES_BYTES_MAX }
    }
}

/// Requests of one stream that are not answered, by weight: about 500 small ones. The stream is not read further past it, so a client that
/// creates watches and reads no replies stops itself.
const ADMITTED_MAX: usize = 128 * 1024;

/// What a request weighs besides its keys.
const REQUEST_WEIGHT: usize = 256;

/// Memory of an item apart from its events.
const ITEM_BYTES: usize = 96;

/// A queue that was longer gives its memory back when it is empty: most streams are idle most of the time.
pub(crate) const CAPACITY_KEPT: usize = 4;

/// Taken out at once by the reader; what one chunk is made of, and a bit more.
const TAKE_BYTES: usize = 64 * 1024;
const TAKE_ITEMS: usize = 256;

/// The client went away, or this member stops: nothing more is taken from or sent to this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch stream is closed")]
pub struct WatchClosed;

/// What the readers of queues tell the hub. Called from any thread; must not block.
pub trait Door: Send + Sync {
    /// A queue that had been full is half empty.
    fn drained(&self, stream: u64);
    /// The client is gone; its queue is emptied already.
    fn closed(&self, stream: u64);
    /// For headers of responses.
    fn raft_term(&self) -> u64;
}

/// Events of one revision for some watchers of the stream.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) events: Arc<RevisionEvents>,
    pub(crate) pick: Pick,
    pub(crate) ids: Arc<[i64]>,
    /// The list was made for this delivery; later ones share it.
    pub(crate) brings_ids: bool,
    /// Of the response's header.
    pub(crate) header: Revision,
    pub(crate) previous: bool,
    pub(crate) fragment: bool,
}

impl Delivery {
    /// The same whenever it is asked: what is added to a sum is taken off again.
    fn memory_bytes(&self) -> usize {
        let previous = if self.previous { self.len() } else { 0 };
        let ids = if self.brings_ids { size_of_val(&*self.ids) } else { 0 };
        ITEM_BYTES + self.events.memory_bytes() + previous + ids
    }

    /// Bytes of its events in a response.
    pub(crate) fn len(&self) -> usize {
        match (&self.pick, self.events.in_one_piece(self.previous)) {
            (Pick::All, Some(events)) => events.len(),
            _ => self.pick.positions(&self.events).map(|at| self.events.event(at, self.previous).len()).sum(),
        }
    }
}

/// An answer or a notice without events.
#[derive(Debug)]
pub(crate) enum Reply {
    Created {
        id: i64,
        header: Revision,
    },
    /// Created and canceled at once, under the id -1.
    Refused {
        reason: String,
        header: Revision,
    },
    Canceled {
        id: i64,
        header: Revision,
    },
    Compacted {
        id: i64,
        compacted: Revision,
    },
    /// To these watchers; manual progress goes to -1.
    Progress {
        ids: Arc<[i64]>,
        header: Revision,
    },
}

#[derive(Debug)]
pub(crate) enum Item {
    Delivery(Delivery),
    /// With the weight of the request that it answers.
    Reply(Box<Reply>, usize),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Item::Delivery(delivery) => delivery.memory_bytes(),
            Item::Reply(..) => ITEM_BYTES,
        }
    }

    fn event_count(&self) -> i64 {
        match self {
            Item::Delivery(delivery) => (delivery.pick.len(&delivery.events) * delivery.ids.len()) as i64,
            Item::Reply(..) => 0,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// The reader found nothing and waits.
    reader: Option<Waker>,
    /// The hub waits for room.
    blocked: bool,
    /// Weight of requests that are not answered.
    admitted: usize,
    /// Who waits to be admitted; usually one.
    senders: Vec<Waker>,
    /// The reader is gone.
    closed: bool,
    /// The member stops.
    ended: bool,
}

/// See the module text.
#[derive(Debug)]
pub struct StreamQueue {
    id: u64,
    limits: QueueLimits,
    gauges: Arc<Gauges>,
    state: Mutex<State>,
}

/// No room; the door will tell when there is.
pub(crate) struct Full;

impl StreamQueue {
    pub fn new(id: u64, limits: QueueLimits, gauges: Arc<Gauges>) -> StreamQueue {
        StreamQueue { id, limits, gauges, state: Mutex::new(State::default()) }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// What a request with so many bytes of keys weighs.
    pub fn weight(key_bytes: usize) -> usize {
        REQUEST_WEIGHT + key_bytes
    }

    /// Waits until the stream has few enough unanswered requests, and counts one more.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn poll_admit(&self, cx: &mut Context<'_>, weight: usize) -> Poll<Result<(), WatchClosed>> {
        let mut state = self.state.lock();
        if state.closed || state.ended {
            return Poll::Ready(Err(WatchClosed));
        }
        if state.admitted > 0 && state.admitted + weight > ADMITTED_MAX {
            if !state.senders.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.senders.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        state.admitted += weight;
        Poll::Ready(Ok(()))
    }

    /// A request needed no reply.
    pub(crate) fn release(&self, weight: usize) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.admitted -= weight.min(state.admitted);
        mem::take(&mut state.senders)
    }

    fn is_full(&self, state: &State) -> bool {
        if state.items.is_empty() {
            return false;
        }
        state.items.len() >= self.limits.items
            || state.bytes >= self.limits.bytes
            || self.gauges.queued_bytes() >= self.limits.all_bytes
    }

    fn push(&self, state: &mut State, item: Item) -> Option<Waker> {
        if state.closed {
            return None;
        }
        let bytes = item.bytes();
        state.bytes += bytes;
        self.gauges.queued(bytes as i64, item.event_count());
        state.items.push_back(item);
        state.reader.take()
    }

    /// Queues a reply, whatever waits already.
    pub(crate) fn reply(&self, reply: Reply, weight: usize) -> Option<Waker> {
        self.push(&mut self.state.lock(), Item::Reply(Box::new(reply), weight))
    }

    /// Queues a reply that has no share of what was admitted, if there is room.
    pub(crate) fn notice(&self, reply: Reply) -> Result<Option<Waker>, Full> {
        let mut state = self.state.lock();
        if self.is_full(&state) {
            state.blocked = true;
            return Err(Full);
        }
        Ok(self.push(&mut state, Item::Reply(Box::new(reply), 0)))
    }

    /// Queues a delivery if there is room. `forced`: another delivery of the same revision is queued already, and a revision is queued
    /// whole or not at all.
    pub(crate) fn offer(&self, delivery: Delivery, forced: bool) -> Result<Option<Waker>, Full> {
        let mut state = self.state.lock();
        if !forced && self.is_full(&state) {
            state.blocked = true;
            return Err(Full);
        }
        Ok(self.push(&mut state, Item::Delivery(delivery)))
    }

    /// Whether half of the queue is free; if not, the door will tell when it is.
    pub(crate) fn has_half(&self) -> bool {
        let mut state = self.state.lock();
        let is_half_empty = self.is_half_empty(&state);
        state.blocked |= !is_half_empty;
        is_half_empty
    }

    fn is_half_empty(&self, state: &State) -> bool {
        state.items.len() <= self.limits.items / 2 && state.bytes <= self.limits.bytes / 2
    }

    /// For the reader: moves about a chunk's worth of items out, or waits. False at the end.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Item>,
        door: &dyn Door,
    ) -> Poll<bool> {
        let mut state = self.state.lock();
        if state.items.is_empty() {
            if state.ended {
                return Poll::Ready(false);
            }
            if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let (mut bytes, mut events, mut answered) = (0, 0, 0);
        while let Some(item) = state.items.pop_front() {
            bytes += item.bytes();
            events += item.event_count();
            if let Item::Reply(_, weight) = &item {
                answered += weight;
            }
            out.push_back(item);
            if bytes >= TAKE_BYTES || out.len() >= TAKE_ITEMS {
                break;
            }
        }
        if state.items.is_empty() && state.items.capacity() > CAPACITY_KEPT {
            state.items = VecDeque::new();
        }
        state.bytes -= bytes;
        state.admitted -= answered.min(state.admitted);
        let senders = if answered > 0 { mem::take(&mut state.senders) } else { Vec::new() };
        let drained = state.blocked && self.is_half_empty(&state);
        if drained {
            state.blocked = false;
        }
        drop(state);
        self.gauges.taken(bytes as i64, events);
        if drained {
            door.drained(self.id);
        }
        senders.into_iter().for_each(Waker::wake);
        Poll::Ready(true)
    }

    /// The reader is gone: everything is freed now.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.reader = None;
        let items = mem::take(&mut state.items);
        let bytes = mem::take(&mut state.bytes);
        let senders = mem::take(&mut state.senders);
        drop(state);
        let events: i64 = items.iter().map(Item::event_count).sum();
        self.gauges.dropped(bytes as i64, events);
        senders.into_iter().for_each(Waker::wake);
    }

    /// As if the hub had stopped: for a stream that it will never hear of.
    pub fn end_now(&self) {
        self.end().into_iter().for_each(Waker::wake);
    }

    /// The member stops: what is queued may still be read, then comes the end.
    pub(crate) fn end(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.ended = true;
        let mut waiting = mem::take(&mut state.senders);
        waiting.extend(state.reader.take());
        waiting
    }
}
