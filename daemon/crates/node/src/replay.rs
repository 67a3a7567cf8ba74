//! What the log knew to be committed when the member stopped is applied before anybody is met: who is admitted and who is refused is
//! decided by the state, and a state that lags behind its own log would do both wrongly.
//!
//! Not here: what is committed since then; that the cluster has to tell.

use std::time::{Duration, Instant};

use api::{error::EtcdError, mvccpb::Event, raftpb};
use state_machine::{Outcome, Sink, StateMachine, store::Store};
use tracing::info;
use types::{Entry, EntryKind, LogIndex, Revision};

/// Entries applied in one go; at 2 us each this is 2 ms.
const ENTRIES_PER_BATCH: usize = 1024;

/// No start waits in silence.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Applies the entries up to `through` that are not part of the state yet, and answers the changes of membership among them.
pub(crate) fn replay<S: Store>(
    machine: &mut StateMachine<S>,
    entries: &[Entry],
    through: LogIndex,
    tell: fn(u64, u64),
) -> Vec<Entry> {
    let first = entries.partition_point(|entry| entry.index <= machine.applied().index);
    let end = entries.partition_point(|entry| entry.index <= through);
    // The state may know of more than the log had noted.
    let due = entries.get(first..end).unwrap_or_default();
    let started = Instant::now();
    let mut told = started;
    let mut done = 0;
    for batch in due.chunks(ENTRIES_PER_BATCH) {
        machine.apply(batch, &mut Deaf);
        done += batch.len();
        tell(done as u64, due.len() as u64);
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            info!(done, of = due.len(), "applying what the log had committed");
        }
    }
    if done > 0 {
        let took_ms = started.elapsed().as_millis() as u64;
        info!(entries = done, through = through.0, took_ms, "applied what the log had committed");
    }
    due.iter().filter(|entry| entry.kind == EntryKind::ConfChange).cloned().collect()
}

/// Nobody waits for outcomes and nobody watches yet; raft begins with the configuration that comes out of it.
struct Deaf;

impl Sink for Deaf {
    fn outcome(&mut self, _: LogIndex, _: u64, _: Result<Outcome, EtcdError>) {}

    fn wants_events(&self) -> bool {
        false
    }

    fn events(&mut self, _: Revision, _: Vec<Event>) {}

    fn conf_change(&mut self, _: LogIndex, _: Option<raftpb::ConfChangeV2>) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{
        etcdserverpb as pb,
        raftpb::{ConfChange, ConfChangeType},
    };
    use bytes::Bytes;
    use prost::Message;
    use state_machine::{Memory, Options, membership::Member};
    use types::{MemberId, Term};

    use super::*;

    fn put(index: u64) -> Entry {
        let put = pb::PutRequest { key: format!("k{index}").into(), ..Default::default() };
        let request = pb::InternalRaftRequest { put: Some(put), ..Default::default() };
        entry(index, EntryKind::Normal, request.encode_to_vec())
    }

    fn change(index: u64, kind: ConfChangeType, id: u64) -> Entry {
        let urls = vec![format!("http://m{id}:1")];
        let member = Member { id: MemberId(id), peer_urls: urls, ..Member::default() };
        let change = ConfChange {
            id: Some(0),
            r#type: Some(kind as i32),
            node_id: Some(id),
            context: Some(Bytes::from(member.bootstrap_context())),
        };
        entry(index, EntryKind::ConfChange, change.encode_to_vec())
    }

    fn entry(index: u64, kind: EntryKind, data: Vec<u8>) -> Entry {
        Entry { term: Term(2), index: LogIndex(index), kind, data: data.into() }
    }

    #[test]
    fn a_start_knows_what_its_log_had_committed_and_nothing_beyond() {
        let add = ConfChangeType::ConfChangeAddNode;
        let log = [change(1, add, 1), change(2, add, 2), put(3), put(4), change(5, add, 3), put(6), put(7)];
        let open = |store: &Arc<Memory>| {
            StateMachine::open(store.clone(), Options::default(), None).expect("the state opens")
        };
        let store = Arc::new(Memory::new());
        let mut machine = open(&store);
        machine.apply(&log[..3], &mut Deaf);
        drop(machine);

        let mut machine = open(&store);
        let changes = replay(&mut machine, &log, LogIndex(6), |_, _| ());
        assert_eq!(machine.applied().index, LogIndex(6));
        assert_eq!(machine.conf_state().voters.len(), 3, "raft begins with it");
        assert_eq!(changes, [log[4].clone()]);
        assert!(machine.reader().member(MemberId(3)).is_some());

        // The commit is noted lazily: the state may be further on.
        assert_eq!(replay(&mut machine, &log, LogIndex(4), |_, _| ()), []);
        assert_eq!(replay(&mut machine, &[], LogIndex(0), |_, _| ()), []);
        // What is in memory begins later than the state.
        assert_eq!(replay(&mut machine, &log[5..], LogIndex(7), |_, _| ()), []);
        assert_eq!(machine.applied().index, LogIndex(7));
    }
}
