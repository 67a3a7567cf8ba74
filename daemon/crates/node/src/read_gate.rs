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
    /// The raft loop knows that somebody gathers.
    asked: bool,
    /// In a round, by its ticket.
    rounds: HashMap<ReadTicket, Group>,
    /// Confirmed, waiting for apply.
    confirmed: BTreeMap<LogIndex, Vec<Readers>>,
    waiting: usize,
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
}

impl ReadGate {
    pub(crate) fn new() -> ReadGate {
        ReadGate { state: Mutex::default(), next_ticket: AtomicU64::new(1) }
    }

    pub(crate) fn join(&self) -> Joined {
        let (tell, told) = oneshot::channel();
        let mut state = self.state.lock();
        if state.waiting >= READERS_MAX {
            return Joined::Full;
        }
        state.waiting += 1;
        state.gathering.push(tell);
        if std::mem::replace(&mut state.asked, true) { Joined::Another(told) } else { Joined::First(told) }
    }

    /// Raft loop: closes the gathering group and names it. Whoever joins from here on needs the next round.
    pub(crate) fn seal(&self, now: Instant) -> Option<ReadTicket> {
        let mut state = self.state.lock();
        state.asked = false;
        if state.gathering.is_empty() {
            return None;
        }
        let readers = std::mem::take(&mut state.gathering);
        let ticket = ReadTicket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        state.rounds.insert(ticket, Group { since: now, readers });
        Some(ticket)
    }

    /// Raft loop: the state at `index` answers these groups. `applied` is read under the lock that [`ReadGate::advance`] takes after
    /// publishing it, so no group can fall between the two.
    pub(crate) fn confirm(&self, tickets: &[ReadTicket], index: LogIndex, applied: impl Fn() -> LogIndex) {
        let mut pass = Vec::new();
        let mut state = self.state.lock();
        for ticket in tickets {
            let Some(group) = state.rounds.remove(ticket) else { continue };
            if applied() >= index {
                state.waiting -= group.readers.len();
                pass.push(group.readers);
            } else {
                state.confirmed.entry(index).or_default().push(group.readers);
            }
        }
        drop(state);
        tell(pass, Ok(()));
    }

    /// Apply worker: everything up to `applied` is visible.
    pub(crate) fn advance(&self, applied: LogIndex) {
        let mut state = self.state.lock();
        let mut pass = Vec::new();
        while let Some(first) = state.confirmed.first_entry() {
            if *first.key() > applied {
                break;
            }
            pass.extend(first.remove());
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

    /// Ends every round that began before `deadline`: its answer is lost for ever or comes too late.
    pub(crate) fn expire(&self, deadline: Instant, error: EtcdError) {
        let mut state = self.state.lock();
        let late: Vec<ReadTicket> = state
            .rounds
            .iter()
            .filter(|(_, group)| group.since < deadline)
            .map(|(ticket, _)| *ticket)
            .collect();
        let over: Vec<_> =
            late.iter().filter_map(|ticket| state.rounds.remove(ticket)).map(|group| group.readers).collect();
        state.waiting -= over.iter().map(Vec::len).sum::<usize>();
        drop(state);
        tell(over, Err(error));
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
}
