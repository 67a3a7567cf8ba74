//! What really happened: every revision with its events, learned from whole states read revision by revision, which is independent of
//! any watch. Acknowledged writes are held against it and tell the order inside a revision.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::{
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
    mvccpb::{Event, KeyValue, event::EventType},
};
use bytes::Bytes;

use super::Violation;

/// The store at one revision.
pub type State = BTreeMap<Bytes, KeyValue>;

/// What a client asked for and was promised in one revision; `None` is a delete.
pub type Written = Vec<(Bytes, Option<Bytes>)>;

#[derive(Clone, Debug)]
pub struct History {
    /// Events with the true previous version, whether a watch asked for it or not.
    revisions: BTreeMap<i64, Vec<Event>>,
    /// Revisions whose events stand in the order of the transaction.
    in_order: BTreeSet<i64>,
    through: i64,
    state: State,
    compactions: Vec<(Duration, i64)>,
}

impl Default for History {
    fn default() -> History {
        History {
            revisions: BTreeMap::new(),
            in_order: BTreeSet::new(),
            // An empty store is at revision 1.
            through: 1,
            state: State::new(),
            compactions: Vec::new(),
        }
    }
}

impl History {
    /// The last revision that is known.
    pub fn through(&self) -> i64 {
        self.through
    }

    /// The state after the last known revision.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes the whole store at the next revision.
    pub fn learn(&mut self, revision: i64, state: State) -> Result<(), Violation> {
        assert_eq!(revision, self.through + 1, "states are learned one revision after the other");
        let mut events = Vec::new();
        for (key, kv) in &state {
            let before = self.state.get(key);
            if before != Some(kv) {
                if kv.mod_revision != revision {
                    let text = format!("{key:?} changed at {revision} and says it changed at {kv:?}");
                    return Err(Violation::new("history", text));
                }
                events.push(event(EventType::Put, kv.clone(), before.cloned()));
            }
        }
        for (key, before) in self.state.iter().filter(|(key, _)| !state.contains_key(*key)) {
            let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
            events.push(event(EventType::Delete, kv, Some(before.clone())));
        }
        if events.is_empty() {
            return Err(Violation::new("history", format!("revision {revision} changed nothing")));
        }
        events.sort_by(|a, b| key(a).cmp(key(b)));
        self.revisions.insert(revision, events);
        self.through = revision;
        self.state = state;
        Ok(())
    }

    /// A compaction was asked for, whatever came of it.
    pub fn compacted(&mut self, sent: Duration, revision: i64) {
        self.compactions.push((sent, revision));
    }

    /// True when somebody had asked for a compaction at exactly this revision by then.
    pub fn compaction_at(&self, revision: i64, by: Duration) -> bool {
        self.compactions.iter().any(|(sent, at)| *sent <= by && *at == revision)
    }

    /// The highest revision anybody had asked to compact at by then.
    pub fn compaction_by(&self, by: Duration) -> i64 {
        self.compactions.iter().filter(|(sent, _)| *sent <= by).map(|(_, at)| *at).max().unwrap_or(0)
    }

    /// An acknowledged write: it must be there, all of it and at its revision, and its order is the order of that revision.
    pub fn acknowledged(&mut self, revision: i64, written: &Written) -> Vec<Violation> {
        let lost = |text: String| vec![Violation::new("acknowledged", text)];
        if revision > self.through {
            return lost(format!(
                "revision {revision} was acknowledged, the history ends at {}",
                self.through
            ));
        }
        let Some(events) = self.revisions.get_mut(&revision) else {
            // The history began later.
            return Vec::new();
        };
        let mut ordered = Vec::new();
        for (written_key, value) in written {
            let found = events.iter().position(|event| key(event) == written_key);
            let right = found.is_some_and(|at| match value {
                Some(value) => {
                    is_put(&events[at]) && events[at].kv.as_ref().is_some_and(|kv| kv.value == *value)
                }
                None => !is_put(&events[at]),
            });
            match found {
                Some(at) if right => ordered.push(events[at].clone()),
                // A delete of what was not there is no event.
                None if value.is_none() => {}
                _ => {
                    return lost(format!(
                        "{written_key:?} = {value:?} was acknowledged at {revision}, there is {:?}",
                        found.map(|at| &events[at])
                    ));
                }
            }
        }
        if ordered.len() != events.len() {
            return lost(format!("{} events at {revision}, {} were written", events.len(), ordered.len()));
        }
        *events = ordered;
        self.in_order.insert(revision);
        Vec::new()
    }

    pub fn is_in_order(&self, revision: i64) -> bool {
        self.in_order.contains(&revision)
    }

    /// All events of one revision.
    pub fn events(&self, revision: i64) -> &[Event] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    pub fn revisions(&self) -> impl Iterator<Item = (i64, &[Event])> {
        self.revisions.iter().map(|(revision, events)| (*revision, events.as_slice()))
    }

    /// What this watch must be told between these revisions, both inclusive: revisions with at least one matching event.
    pub fn expected<'a>(
        &'a self,
        create: &'a WatchCreateRequest,
        from: i64,
        to: i64,
    ) -> impl Iterator<Item = (i64, Vec<&'a Event>)> {
        let range = if from <= to { Some(self.revisions.range(from..=to)) } else { None };
        range.into_iter().flatten().filter_map(|(revision, events)| {
            let events: Vec<&Event> = events.iter().filter(|event| wanted(create, event)).collect();
            (!events.is_empty()).then_some((*revision, events))
        })
    }
}

fn event(kind: EventType, kv: KeyValue, prev_kv: Option<KeyValue>) -> Event {
    Event { r#type: kind.into(), kv: Some(kv), prev_kv }
}

pub fn is_put(event: &Event) -> bool {
    event.r#type == EventType::Put as i32
}

pub fn key(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(&[], |kv| &kv.key)
}

pub fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// The key lies in the range that was asked for.
pub fn in_range(create: &WatchCreateRequest, key: &[u8]) -> bool {
    // etcd takes the empty key of a watch for the lowest one.
    let from: &[u8] = if create.key.is_empty() { &[0] } else { &create.key };
    match create.range_end.as_ref() {
        [] => key == from,
        [0] => key >= from,
        end => key >= from && key < end,
    }
}

/// Range and filters let it through.
pub fn wanted(create: &WatchCreateRequest, event: &Event) -> bool {
    let unwanted = if is_put(event) { FilterType::Noput } else { FilterType::Nodelete };
    in_range(create, key(event)) && !create.filters.contains(&(unwanted as i32))
}
