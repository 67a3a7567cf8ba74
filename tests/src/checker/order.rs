//! Order inside one watch: revisions ascend, nothing comes twice, a revision is never split; and all watches agree about the order
//! inside a revision.

use std::collections::{BTreeMap, BTreeSet};

use api::mvccpb::Event;

use super::{History, Violation, Watch, history};

/// Revisions ascend over responses and inside them, and a header is not older than what it heads.
pub fn ordered(_: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut last = 0;
    for delivery in watch.deliveries() {
        for event in &delivery.events {
            let revision = history::revision(event);
            if revision < last {
                violations.push(Violation::new(
                    "ordered",
                    format!("{}: revision {revision} after {last}", watch.name),
                ));
            }
            last = last.max(revision);
        }
        if delivery.header_revision < last {
            let text =
                format!("{}: header revision {} with events of {last}", watch.name, delivery.header_revision);
            violations.push(Violation::new("ordered", text));
        }
    }
    violations
}

/// No event comes twice.
pub fn unique(_: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    for event in watch.deliveries().flat_map(|delivery| &delivery.events) {
        let (revision, key) = (history::revision(event), history::key(event));
        if !seen.insert((revision, key)) {
            let key = String::from_utf8_lossy(key);
            violations.push(Violation::new("unique", format!("{}: {key:?} at {revision} twice", watch.name)));
        }
    }
    violations
}

/// All matching events of a revision come in one response, or in one sequence of fragments, in the order in which they were done.
pub fn atomic(history: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |text: String| {
        violations.push(Violation::new("atomic", format!("{}: {text}", watch.name)));
    };
    let mut done = BTreeSet::new();
    for delivery in watch.deliveries() {
        let mut revisions: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
        for event in &delivery.events {
            revisions.entry(history::revision(event)).or_default().push(event);
        }
        for (revision, events) in revisions {
            if !done.insert(revision) {
                broken(format!("revision {revision} is split over responses"));
            }
            let expected = history.expected(watch.create, revision, revision).next();
            // Unknown revisions are a matter of `reliable`.
            let Some((_, expected)) = expected else { continue };
            let keys = |events: &[&Event]| {
                let mut keys: Vec<Vec<u8>> =
                    events.iter().map(|event| history::key(event).to_vec()).collect();
                if !history.is_in_order(revision) {
                    keys.sort();
                }
                keys
            };
            if keys(&events) != keys(&expected) {
                broken(format!(
                    "revision {revision} came with {} of {} events or in another order",
                    events.len(),
                    expected.len()
                ));
            }
        }
    }
    violations
}

/// Two watches that see the same events of a revision see them in the same order.
pub fn agreed(_: &History, watches: &[Watch<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut places: BTreeMap<i64, BTreeMap<Vec<u8>, usize>> = BTreeMap::new();
    for watch in watches {
        for delivery in watch.deliveries() {
            let mut here: BTreeMap<i64, Vec<&[u8]>> = BTreeMap::new();
            for event in &delivery.events {
                here.entry(history::revision(event)).or_default().push(history::key(event));
            }
            for (revision, keys) in here.into_iter().filter(|(_, keys)| keys.len() > 1) {
                let known = places.entry(revision).or_default();
                let order: Vec<usize> = keys.iter().filter_map(|key| known.get(*key).copied()).collect();
                if !order.is_sorted() {
                    let text = format!("{}: order inside revision {revision} differs", watch.name);
                    violations.push(Violation::new("agreed", text));
                }
                if known.is_empty() {
                    known.extend(keys.iter().enumerate().map(|(place, key)| (key.to_vec(), place)));
                }
            }
        }
    }
    violations
}
