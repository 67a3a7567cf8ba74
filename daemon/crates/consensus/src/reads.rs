//! Read rounds: many waiting reads, one question to the quorum. A round in flight is never joined, because its index may have been
//! taken before a read that comes now began. A context is never used twice: raft-rs keys pending rounds by it and takes any late
//! heartbeat answer that carries it (regression RD01). So it is made of member, start of the process, and a counter, and a repeated
//! question gets a new one. Answers to the older question still count: it was asked after the reads of the round began.
//!
//! The leader also gives its own contexts to rounds that followers forward, since an etcd follower may repeat its own.
//!
//! Not here: raft. The core starts rounds and brings the answers.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use types::{LogIndex, MemberId, Term};

use crate::io::{Output, ReadTicket, RetryReason};

/// Rounds a member has in flight: while one is being confirmed the next may start, so a read waits for one round trip and at most half
/// of another.
const ROUNDS_IN_FLIGHT_MAX: usize = 2;

/// Ticks after which an unanswered question is asked again, as in etcd (500 ms there).
const ROUND_REPEAT_TICKS: u64 = 5;

/// Questions for one round before its reads are given back: 7 s at etcd's tick, its own time limit for a read.
const ROUND_QUESTIONS_MAX: usize = 14;

/// Rounds of followers that the leader keeps, confirmed or waiting for its first commit. A follower has two in flight; this is for 100s
/// of members or for garbage.
const FORWARDED_MAX: usize = 1024;

struct Round {
    /// Counters of the contexts asked for this round.
    questions: Vec<u64>,
    asked_at: u64,
    tickets: Vec<ReadTicket>,
}

/// A follower's round.
pub(crate) struct Forwarded {
    pub from: MemberId,
    pub context: Bytes,
}

/// Whom a round would ask now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    /// This member leads and has committed in its term, or another one leads.
    Ready,
    NoLeader,
    NoCommitInTerm,
}

pub(crate) struct Reads {
    member: MemberId,
    boot: u64,
    counter: u64,
    tick: u64,
    /// Under whom the rounds in flight were asked.
    era: (Term, MemberId),
    waiting: Vec<ReadTicket>,
    waiting_since: u64,
    /// Ticks that reads wait for a leader before they are given back.
    patience: u64,
    in_flight: VecDeque<Round>,
    forwarded: BTreeMap<u64, Forwarded>,
    /// Followers' rounds that came before the first commit of the term.
    parked: Vec<Forwarded>,
}

impl Reads {
    pub fn new(member: MemberId, boot: u64, patience: u64) -> Reads {
        Reads {
            member,
            boot,
            counter: 0,
            tick: 0,
            era: (Term::default(), MemberId::NONE),
            waiting: Vec::new(),
            waiting_since: 0,
            patience,
            in_flight: VecDeque::new(),
            forwarded: BTreeMap::new(),
            parked: Vec::new(),
        }
    }

    pub fn add(&mut self, ticket: ReadTicket) {
        if self.waiting.is_empty() {
            self.waiting_since = self.tick;
        }
        self.waiting.push(ticket);
    }

    fn next_context(&mut self) -> (u64, Bytes) {
        self.counter += 1;
        let mut context = Vec::with_capacity(24);
        for part in [self.member.0, self.boot, self.counter] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        (self.counter, context.into())
    }

    /// The counter of a context of ours, of this life.
    fn counter_of(&self, context: &[u8]) -> Option<u64> {
        let part = |at: usize| Some(u64::from_be_bytes(context.get(at..at + 8)?.try_into().ok()?));
        let ours = context.len() == 24 && part(0)? == self.member.0 && part(8)? == self.boot;
        if ours { part(16) } else { None }
    }

    /// Whether a new round should be started; the caller then calls [`start`](Self::start).
    pub fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight.len() < ROUNDS_IN_FLIGHT_MAX
    }

    /// All waiting reads become a round; ask the quorum with this context.
    pub fn start(&mut self) -> Bytes {
        let (counter, context) = self.next_context();
        let tickets = std::mem::take(&mut self.waiting);
        self.in_flight.push_back(Round { questions: vec![counter], asked_at: self.tick, tickets });
        context
    }

    /// raft took no notice of the question: the reads of the newest round go back to the driver.
    pub fn dropped(&mut self) -> Option<Output> {
        let round = self.in_flight.pop_back()?;
        Some(Output::ReadRetry { tickets: round.tickets, reason: RetryReason::Dropped })
    }

    /// A round was confirmed.
    pub fn confirmed(&mut self, context: &[u8], index: LogIndex) -> Option<Output> {
        let counter = self.counter_of(context)?;
        let at = self.in_flight.iter().position(|round| round.questions.contains(&counter))?;
        let round = self.in_flight.remove(at)?;
        Some(Output::ReadReady { tickets: round.tickets, index })
    }

    /// Called with whoever leads now: rounds asked under another leader or term are given back, and what followers forwarded is
    /// forgotten, since raft forgot it too.
    pub fn see_leader(&mut self, term: Term, leader: MemberId, out: &mut impl FnMut(Output)) {
        if self.era == (term, leader) {
            return;
        }
        self.era = (term, leader);
        self.waiting_since = self.tick;
        for round in self.in_flight.drain(..) {
            out(Output::ReadRetry { tickets: round.tickets, reason: RetryReason::LeaderChanged });
        }
        self.forwarded.clear();
        self.parked.clear();
    }

    /// One tick. Returns contexts to ask again with; `repeat` is false on a leader, whose heartbeats repeat the question anyway.
    pub fn tick(&mut self, authority: Authority, repeat: bool, out: &mut impl FnMut(Output)) -> Vec<Bytes> {
        self.tick += 1;
        if authority != Authority::Ready
            && !self.waiting.is_empty()
            && self.tick - self.waiting_since >= self.patience
        {
            let reason = match authority {
                Authority::NoCommitInTerm => RetryReason::NoCommitInTerm,
                _ => RetryReason::NoLeader,
            };
            out(Output::ReadRetry { tickets: std::mem::take(&mut self.waiting), reason });
        }
        let mut questions = Vec::new();
        for at in (0..self.in_flight.len()).rev() {
            let round = &self.in_flight[at];
            let age = self.tick - round.asked_at;
            if age >= ROUND_REPEAT_TICKS * ROUND_QUESTIONS_MAX as u64 {
                if let Some(round) = self.in_flight.remove(at) {
                    out(Output::ReadRetry { tickets: round.tickets, reason: RetryReason::Dropped });
                }
            } else if repeat && age.is_multiple_of(ROUND_REPEAT_TICKS) {
                let (counter, context) = self.next_context();
                self.in_flight[at].questions.push(counter);
                questions.push(context);
            }
        }
        questions
    }

    /// The leader takes a follower's round under a context of its own. None when it has too many.
    pub fn forward(&mut self, forwarded: Forwarded) -> Option<Bytes> {
        if self.forwarded.len() >= FORWARDED_MAX {
            return None;
        }
        let (counter, context) = self.next_context();
        self.forwarded.insert(counter, forwarded);
        Some(context)
    }

    /// The follower's own context for an answer to it.
    pub fn answer(&mut self, context: &[u8]) -> Option<Bytes> {
        let counter = self.counter_of(context)?;
        self.forwarded.remove(&counter).map(|forwarded| forwarded.context)
    }

    /// Keeps a follower's round until the first commit of the term. False when there are too many.
    pub fn park(&mut self, forwarded: Forwarded) -> bool {
        let room = self.parked.len() < FORWARDED_MAX;
        if room {
            self.parked.push(forwarded);
        }
        room
    }

    pub fn take_parked(&mut self) -> Vec<Forwarded> {
        std::mem::take(&mut self.parked)
    }

    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> Reads {
        Reads::new(MemberId(1), 1, 10)
    }

    fn tick(reads: &mut Reads) -> (Vec<Output>, usize) {
        let mut outputs = Vec::new();
        let questions = reads.tick(Authority::Ready, true, &mut |output| outputs.push(output));
        (outputs, questions.len())
    }

    #[test]
    fn a_round_that_nobody_answers_is_given_back_after_all_its_questions() {
        let mut reads = reads();
        reads.add(ReadTicket(7));
        reads.start();
        let (mut questions, mut ticks) = (1, 0);
        loop {
            ticks += 1;
            let (outputs, asked) = tick(&mut reads);
            questions += asked;
            if let [Output::ReadRetry { tickets, reason }] = outputs.as_slice() {
                assert_eq!((tickets.as_slice(), *reason), ([ReadTicket(7)].as_slice(), RetryReason::Dropped));
                break;
            }
            assert!(ticks < 1000, "the round ends");
        }
        assert_eq!(
            (questions, ticks),
            (ROUND_QUESTIONS_MAX, ROUND_REPEAT_TICKS * ROUND_QUESTIONS_MAX as u64)
        );
    }

    #[test]
    fn no_context_is_used_twice_and_answers_to_former_lives_confirm_nothing() {
        let mut reads = reads();
        let mut contexts = Vec::new();
        for ticket in 0..3 {
            reads.add(ReadTicket(ticket));
            let context = reads.start();
            contexts.push(context.clone());
            assert!(reads.confirmed(&context, LogIndex(1)).is_some());
            assert!(reads.confirmed(&context, LogIndex(1)).is_none(), "an answer counts once");
        }
        contexts.dedup();
        assert_eq!(contexts.len(), 3);

        let mut next_life = Reads::new(MemberId(1), 2, 10);
        next_life.add(ReadTicket(9));
        next_life.start();
        assert!(next_life.confirmed(&contexts[0], LogIndex(1)).is_none());
    }

    #[test]
    fn what_followers_forward_is_bounded() {
        let mut reads = reads();
        let forwarded = || Forwarded { from: MemberId(2), context: Bytes::from_static(b"theirs") };
        let contexts: Vec<Bytes> = (0..FORWARDED_MAX).map_while(|_| reads.forward(forwarded())).collect();
        assert_eq!(contexts.len(), FORWARDED_MAX);
        assert!(reads.forward(forwarded()).is_none());
        assert_eq!(reads.answer(&contexts[0]), Some(Bytes::from_static(b"theirs")));
        assert!(reads.forward(forwarded()).is_some(), "an answer makes room");
    }
}
