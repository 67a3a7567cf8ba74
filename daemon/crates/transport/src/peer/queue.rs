//! A bounded queue of messages with two lanes. What is small and urgent (heartbeats, votes, acknowledgements) overtakes what is bulky
//! (appends, forwarded proposals); within a lane order is kept. Pure.

use std::collections::VecDeque;

use api::raftpb::{Message, MessageType};

use crate::codec;

#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Taken,
    /// It did not fit. `first`: nothing was dropped since the queue was last half empty.
    Dropped {
        first: bool,
    },
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<(usize, Message)>,
    bytes: usize,
}

pub(crate) struct Queue {
    lanes: [Lane; 2],
    limits: QueueLimits,
    overflowing: bool,
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Queue { lanes: Default::default(), limits, overflowing: false }
    }

    /// Each lane has the limits for itself, so that bulk never keeps urgent messages out. A message larger than the limit fits into an
    /// empty lane: otherwise it could never be sent.
    pub(crate) fn offer(&mut self, message: Message) -> Offer {
        let weight = codec::weight(&message);
        let lane = &mut self.lanes[usize::from(is_bulk(&message))];
        let fits = lane.queue.len() < self.limits.messages
            && (lane.queue.is_empty() || lane.bytes.saturating_add(weight) <= self.limits.bytes);
        if !fits {
            return Offer::Dropped { first: !std::mem::replace(&mut self.overflowing, true) };
        }
        lane.bytes += weight;
        lane.queue.push_back((weight, message));
        Offer::Taken
    }

    /// The next message and its weight.
    pub(crate) fn take(&mut self) -> Option<(usize, Message)> {
        let lane = self.lanes.iter_mut().find(|lane| !lane.queue.is_empty())?;
        let (weight, message) = lane.queue.pop_front()?;
        lane.bytes -= weight;
        if self.overflowing && self.is_half_empty() {
            self.overflowing = false;
        }
        Some((weight, message))
    }

    /// Drops everything; the number of messages dropped.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.lanes.iter().map(|lane| lane.queue.len()).sum();
        self.lanes = Default::default();
        self.overflowing = false;
        dropped
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.queue.is_empty())
    }

    fn is_half_empty(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.queue.len() <= self.limits.messages / 2 && lane.bytes <= self.limits.bytes / 2)
    }
}

fn is_bulk(message: &Message) -> bool {
    matches!(codec::kind(message), Some(MessageType::MsgApp | MessageType::MsgProp))
}

#[cfg(test)]
mod tests {
    use api::raftpb::Entry;
    use bytes::Bytes;

    use super::*;

    fn message(kind: MessageType, index: u64, bytes: usize) -> Message {
        let data = Some(Bytes::from(vec![0; bytes]));
        let entries = if bytes == 0 { vec![] } else { vec![Entry { data, ..Default::default() }] };
        Message { r#type: Some(kind as i32), index: Some(index), entries, ..Default::default() }
    }

    fn indexes(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.take()).filter_map(|(_, message)| message.index).collect()
    }

    #[test]
    fn a_heartbeat_overtakes_bulk_and_bulk_keeps_its_order() {
        let mut queue = Queue::new(QueueLimits { messages: 10, bytes: 1 << 20 });
        queue.offer(message(MessageType::MsgApp, 1, 1000));
        queue.offer(message(MessageType::MsgProp, 2, 1000));
        queue.offer(message(MessageType::MsgHeartbeat, 3, 0));
        queue.offer(message(MessageType::MsgVote, 4, 0));
        assert_eq!(indexes(&mut queue), [3, 4, 1, 2]);
    }

    #[test]
    fn bulk_that_fills_its_lane_keeps_no_vote_out() {
        let mut queue = Queue::new(QueueLimits { messages: 2, bytes: 3000 });
        assert_eq!(queue.offer(message(MessageType::MsgApp, 1, 2000)), Offer::Taken);
        assert_eq!(queue.offer(message(MessageType::MsgApp, 2, 2000)), Offer::Dropped { first: true });
        assert_eq!(queue.offer(message(MessageType::MsgApp, 3, 2000)), Offer::Dropped { first: false });
        assert_eq!(queue.offer(message(MessageType::MsgVote, 4, 0)), Offer::Taken);
        assert_eq!(indexes(&mut queue), [4, 1]);
        assert_eq!(queue.offer(message(MessageType::MsgApp, 5, 2000)), Offer::Taken);
        assert_eq!(
            queue.offer(message(MessageType::MsgApp, 6, 2000)),
            Offer::Dropped { first: true },
            "a new burst"
        );
    }

    #[test]
    fn one_message_larger_than_the_limit_fits_an_empty_queue() {
        let mut queue = Queue::new(QueueLimits { messages: 2, bytes: 100 });
        assert_eq!(queue.offer(message(MessageType::MsgApp, 1, 5000)), Offer::Taken);
        assert_eq!(indexes(&mut queue), [1]);
    }
}
