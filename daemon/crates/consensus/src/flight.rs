//! What is on its way to the disk, and the messages that wait for it. Three promises, three kinds of waiting:
//!
//! | message | waits for |
//! |---|---|
//! | append answers, votes, vote requests | every write before it: they say "I have this" or "I gave my vote" |
//! | heartbeats, their answers, appends, pre-votes, read answers, time-out-now | a change of term or vote only: they speak for a term |
//! | forwarded proposals and read requests | nothing |
//!
//! So a heartbeat is answered while a large append is still being synced (regression RF07), and a leader's appends leave before its own
//! disk has them. raft-rs by itself would hold back everything a follower says, and nothing a leader says: not even when a cluster of one
//! voter elects itself and its new term is not on disk, in which case a crash would let it write other entries at the same term and
//! index than its learners already have.

use std::collections::VecDeque;

use api::raftpb::{self, MessageType};
use types::{ConfState, LogPosition};

use crate::io::PersistSeq;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Nothing,
    Term,
    Everything,
}

pub(crate) fn waits(kind: MessageType) -> Waits {
    match kind {
        MessageType::MsgProp | MessageType::MsgReadIndex => Waits::Nothing,
        MessageType::MsgAppResp | MessageType::MsgVote | MessageType::MsgVoteResp => Waits::Everything,
        _ => Waits::Term,
    }
}

/// One Persist output that is not confirmed yet.
pub(crate) struct Flight {
    pub seq: PersistSeq,
    /// The last of raft's readies that this covers.
    pub ready: u64,
    /// Holds entries or a snapshot.
    pub log: bool,
    /// Holds a changed term or vote.
    pub term: bool,
    /// Must be synced; a commit alone need not.
    pub sync: bool,
    /// Of its entries.
    pub bytes: u64,
    pub install: Option<(LogPosition, ConfState)>,
    held: Vec<raftpb::Message>,
}

impl Flight {
    pub fn new(seq: PersistSeq, ready: u64) -> Flight {
        Flight { seq, ready, log: false, term: false, sync: false, bytes: 0, install: None, held: Vec::new() }
    }
}

#[derive(Default)]
pub(crate) struct Flights {
    queue: VecDeque<Flight>,
    bytes: u64,
}

/// What a confirmation set free.
#[derive(Default)]
pub(crate) struct Landed {
    /// The last ready that is now on disk; 0 when none is.
    pub ready: u64,
    pub messages: Vec<raftpb::Message>,
    pub installs: Vec<(LogPosition, ConfState)>,
}

impl Flights {
    pub fn push(&mut self, flight: Flight) {
        self.bytes += flight.bytes;
        self.queue.push_back(flight);
    }

    /// A ready that writes nothing is on disk when the writes before it are. Returns false when there are none.
    pub fn cover(&mut self, ready: u64) -> bool {
        match self.queue.back_mut() {
            Some(flight) => {
                flight.ready = ready;
                true
            }
            None => false,
        }
    }

    /// Bytes of entries that are on their way to the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn log_in_flight(&self) -> bool {
        self.queue.iter().any(|flight| flight.log)
    }

    /// Keeps the message with the write it waits for, or gives it back when it may leave.
    pub fn hold(&mut self, kind: MessageType, message: raftpb::Message) -> Option<raftpb::Message> {
        let holder = match waits(kind) {
            Waits::Nothing => None,
            Waits::Term => self.queue.iter_mut().rfind(|flight| flight.term),
            Waits::Everything => self.queue.iter_mut().rfind(|flight| flight.sync),
        };
        match holder {
            Some(flight) => {
                flight.held.push(message);
                None
            }
            None => Some(message),
        }
    }

    /// Everything up to `seq` is on disk.
    pub fn land(&mut self, seq: PersistSeq) -> Landed {
        let mut landed = Landed::default();
        while self.queue.front().is_some_and(|flight| flight.seq <= seq) {
            let Some(flight) = self.queue.pop_front() else { break };
            self.bytes -= flight.bytes;
            landed.ready = landed.ready.max(flight.ready);
            landed.messages.extend(flight.held);
            landed.installs.extend(flight.install);
        }
        landed
    }
}
