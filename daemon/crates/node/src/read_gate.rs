//! Linearizable reads wait here. Readers gather while the raft loop is busy; when it turns to reads it seals the group and starts one
//! round for all of them, so that the group holds only readers that arrived before the round began. The confirmed index then has to
//! be applied here before they are let through.
//!
//! Not here: the round itself (consensus), retries (raft loop).

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use api::error::EtcdError;
use consensus::io::ReadTicket;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use types::LogIndex;

/// Readers that may wait at once. Each costs about 100 bytes; past this the answer is "too many requests".
const READERS_MAX: usize = 100_000;

pub(crate) type Passed = Result<(), EtcdError>;
type Readers = Vec<oneshot::Sender<Passed>>;

pub(crate) struct ReadGate {
    state: Mutex<State>,
    next_ticket: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Not yet part of a round.
    gathering: Vec<oneshot::Sender<Passed>>,
    /// A round is wanted by somebody who is not a reader.
    wanted: bool,
    /// The raft loop knows that somebody gathers.
    asked: bool,
    /// In a round, by its ticket.
    rounds: HashMap<ReadTicket, Group>,
    /// Confirmed, waiting for apply.
    confirmed: BTreeMap<LogIndex, Vec<Group>>,
    waiting: usize,
    /// Nobody is let through any more.
    closed: bool,
}

struct Group {
    since: Instant,
    readers: Readers,
}

pub(crate) enum Joined {
    /// The raft loop must be told, since nobody has done so.
    First(oneshot::Receiver<Passed>),
    Another(oneshot::Receiver<Passed>),
    Full,
    Closed,
}

impl ReadGate {
    pub(crate) fn new() -> ReadGate {
        ReadGate { state: Mutex::default(), next_ticket: AtomicU64::new(1) }
    }

    pub(crate) fn join(&self) -> Joined {
        let (tell, told) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            return Joined::Closed;
        }
        if state.waiting >= READERS_MAX {
            return Joined::Full;
        }
        state.waiting += 1;
        state.gathering.push(tell);
        if std::mem::replace(&mut state.asked, true) { Joined::Another(told) } else { Joined::First(told) }
    }

    /// Rounds begun since the start.
    pub(crate) fn rounds(&self) -> u64 {
        self.next_ticket.load(Ordering::Relaxed) - 1
    }

    /// Wants a round for what it says about leadership. True when the raft loop must be told.
    pub(crate) fn ask(&self) -> bool {
        let mut state = self.state.lock();
        state.wanted = true;
        !state.closed && !std::mem::replace(&mut state.asked, true)
    }

    /// Raft loop: closes the gathering group and names it. Whoever joins from here on needs the next round.
    pub(crate) fn seal(&self, now: Instant) -> Option<ReadTicket> {
        let mut state = self.state.lock();
        state.asked = false;
        if !std::mem::take(&mut state.wanted) && state.gathering.is_empty() {
            return None;
        }
        let readers = std::mem::take(&mut state.gathering);
        let ticket = ReadTicket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        state.rounds.insert(ticket, Group { since: now, readers });
        Some(ticket)
    }

    /// Raft loop: the state at `index` answers these groups. `applied` is read under the lock that [`ReadGate::advance`] takes after
    /// publishing it, so no group can fall between the two.
    /// Answers when the youngest of their rounds began at the earliest: what confirms a leader, whether or not apply is behind.
    pub(crate) fn confirm(
        &self,
        tickets: &[ReadTicket],
        index: LogIndex,
        applied: impl Fn() -> LogIndex,
    ) -> Option<Instant> {
        let mut began = None;
        let mut pass = Vec::new();
        let mut state = self.state.lock();
        for ticket in tickets {
            let Some(group) = state.rounds.remove(ticket) else { continue };
            began = began.max(Some(group.since));
            if applied() >= index || group.readers.is_empty() {
                state.waiting -= group.readers.len();
                pass.push(group.readers);
            } else {
                state.confirmed.entry(index).or_default().push(group);
            }
        }
        drop(state);
        tell(pass, Ok(()));
        began
    }

    /// Apply worker: everything up to `applied` is visible.
    pub(crate) fn advance(&self, applied: LogIndex) {
        let mut state = self.state.lock();
        let mut pass = Vec::new();
        while let Some(first) = state.confirmed.first_entry() {
            if *first.key() > applied {
                break;
            }
            pass.extend(first.remove().into_iter().map(|group| group.readers));
        }
        state.waiting -= pass.iter().map(Vec::len).sum::<usize>();
        drop(state);
        tell(pass, Ok(()));
    }

    /// Raft loop: these rounds failed. Groups younger than `deadline` are tried again (their tickets are returned), others end.
    pub(crate) fn retry(
        &self,
        tickets: Vec<ReadTicket>,
        deadline: Instant,
        error: EtcdError,
    ) -> Vec<ReadTicket> {
        let mut again = Vec::new();
        let mut over = Vec::new();
        let mut state = self.state.lock();
        for ticket in tickets {
            match state.rounds.get(&ticket) {
                Some(group) if group.since >= deadline => again.push(ticket),
                Some(_) => over.extend(state.rounds.remove(&ticket).map(|group| group.readers)),
                None => {}
            }
        }
        state.waiting -= over.iter().map(Vec::len).sum::<usize>();
        drop(state);
        tell(over, Err(error));
        again
    }

    /// Ends every round that began before `deadline`: its answer is lost for ever or comes too late. So does a confirmed group that
    /// apply has not reached by then: a member whose state store hangs must not keep its readers for ever.
    pub(crate) fn expire(&self, deadline: Instant, error: EtcdError) {
        let mut state = self.state.lock();
        let late: Vec<ReadTicket> = state
            .rounds
            .iter()
            .filter(|(_, group)| group.since < deadline)
            .map(|(ticket, _)| *ticket)
            .collect();
        let mut over: Vec<_> =
            late.iter().filter_map(|ticket| state.rounds.remove(ticket)).map(|group| group.readers).collect();
        state.confirmed.retain(|_, groups| {
            over.extend(groups.extract_if(.., |group| group.since < deadline).map(|group| group.readers));
            !groups.is_empty()
        });
        state.waiting -= over.iter().map(Vec::len).sum::<usize>();
        drop(state);
        tell(over, Err(error));
    }

    /// The member stops: whoever waits is told so, and nobody joins any more.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        let all = std::mem::replace(&mut *state, State { closed: true, ..State::default() });
        drop(state);
        let groups = all.rounds.into_values().chain(all.confirmed.into_values().flatten());
        let over = groups.map(|group| group.readers).chain([all.gathering]).collect();
        tell(over, Err(EtcdError::Stopped));
    }
}

/// Outside the lock: waking a reader may cost a system call.
fn tell(groups: Vec<Readers>, outcome: Passed) {
    for reader in groups.into_iter().flatten() {
        let _ = reader.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_passes_only_when_its_index_is_applied() {
        let gate = ReadGate::new();
        let Joined::First(mut early) = gate.join() else { panic!("the first reader asks for a round") };
        let ticket = gate.seal(Instant::now()).expect("one reader gathered");
        let Joined::First(mut late) = gate.join() else { panic!("after the seal a new round is needed") };
        gate.confirm(&[ticket], LogIndex(7), || LogIndex(6));
        assert!(early.try_recv().is_err(), "6 is applied, 7 was confirmed");
        gate.advance(LogIndex(7));
        assert_eq!(early.try_recv(), Ok(Ok(())));
        assert!(late.try_recv().is_err(), "a round in flight is never joined");
    }

    #[test]
    fn a_round_for_the_sake_of_leadership_needs_no_reader_and_no_apply() {
        let gate = ReadGate::new();
        assert!(gate.seal(Instant::now()).is_none(), "nobody wants one");
        assert!(gate.ask() && !gate.ask(), "the raft loop is told once");
        let earlier = Instant::now();
        let first = gate.seal(earlier).expect("a round");
        let Joined::First(_reader) = gate.join() else { panic!("after the seal a new round is needed") };
        let later = earlier + std::time::Duration::from_millis(3);
        let second = gate.seal(later).expect("a round");
        let began = gate.confirm(&[first, second], LogIndex(9), || LogIndex(1));
        assert_eq!(began, Some(later), "known although apply is behind");
        assert_eq!(gate.confirm(&[first], LogIndex(9), || LogIndex(9)), None, "a round confirms once");
        let state = gate.state.lock();
        assert_eq!((state.waiting, state.confirmed.len()), (1, 1), "the reader alone waits for apply");
    }

    #[test]
    fn a_confirmed_reader_that_apply_does_not_reach_is_told_in_the_end() {
        let gate = ReadGate::new();
        let Joined::First(mut stuck) = gate.join() else { panic!("the first reader asks for a round") };
        let began = Instant::now();
        let ticket = gate.seal(began).expect("one reader gathered");
        gate.confirm(&[ticket], LogIndex(7), || LogIndex(6));
        gate.expire(began, EtcdError::Timeout);
        assert!(stuck.try_recv().is_err(), "it has waited for no time yet");
        gate.expire(began + std::time::Duration::from_secs(1), EtcdError::Timeout);
        assert_eq!(stuck.try_recv(), Ok(Err(EtcdError::Timeout)));
        gate.advance(LogIndex(7));
        assert_eq!(gate.state.lock().waiting, 0);
    }

    #[test]
    fn every_reader_is_told_when_the_member_stops_and_none_joins_after_it() {
        let gate = ReadGate::new();
        let join_and_seal = |confirmed: Option<LogIndex>| {
            let Joined::First(told) = gate.join() else { panic!("a new round is needed") };
            let ticket = gate.seal(Instant::now()).expect("one reader gathered");
            if let Some(index) = confirmed {
                gate.confirm(&[ticket], index, || LogIndex(0));
            }
            told
        };
        let mut readers = vec![join_and_seal(None), join_and_seal(Some(LogIndex(3)))];
        let Joined::First(gathering) = gate.join() else { panic!("a new round is needed") };
        readers.push(gathering);
        gate.close();
        for mut reader in readers {
            assert_eq!(reader.try_recv(), Ok(Err(EtcdError::Stopped)));
        }
        assert!(matches!(gate.join(), Joined::Closed));
    }
}
