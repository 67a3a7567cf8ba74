//! Nothing is missing: not between the first and the last event of a watch, not before a bookmark, not over the reconnects of a
//! subscription. Judged against the true history.

use std::collections::{BTreeMap, BTreeSet};

use api::mvccpb::Event;

use super::{History, Seen, Subscription, Violation, Watch, history};

/// Between the start of a watch and its last event nothing matching is missing, and what was delivered did happen.
pub fn reliable(history: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |text: String| {
        violations.push(Violation::new("reliable", format!("{}: {text}", watch.name)));
    };
    let delivered: Vec<&Event> =
        watch.deliveries().flat_map(|delivery| delivery.events.iter().copied()).collect();
    for event in &delivered {
        let revision = history::revision(event);
        if revision > history.through() {
            broken(format!("revision {revision} is beyond the history, which ends at {}", history.through()));
            continue;
        }
        let mut candidates = history.events(revision).iter();
        if !candidates.any(|true_event| true_event.r#type == event.r#type && true_event.kv == event.kv) {
            broken(format!("this never happened: {event:?}"));
        }
    }
    let (Some(start), Some(last)) = (watch.start(), watch.last_event_revision()) else { return violations };
    let seen: BTreeSet<i64> = delivered.iter().map(|event| history::revision(event)).collect();
    let missing: Vec<i64> = history
        .expected(watch.create, start, last)
        .map(|(revision, _)| revision)
        .filter(|revision| !seen.contains(revision))
        .collect();
    if let Some(first) = missing.first() {
        broken(format!("{} revisions are missing, the first is {first}; last event {last}", missing.len()));
    }
    violations
}

/// A bookmark at r: every matching event up to r came before it, and nothing up to r comes after it.
pub fn bookmarkable(history: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |text: String| {
        violations.push(Violation::new("bookmarkable", format!("{}: {text}", watch.name)));
    };
    let Some(start) = watch.start() else { return violations };
    let mut seen = BTreeSet::new();
    let mut bookmark = 0;
    // Everything below was compared already.
    let mut compared = start;
    for what in &watch.seen {
        match what {
            Seen::Events(delivery) => {
                for event in &delivery.events {
                    let revision = history::revision(event);
                    if revision <= bookmark {
                        broken(format!("an event of {revision} after a bookmark at {bookmark}"));
                    }
                    seen.insert(revision);
                }
            }
            Seen::Bookmark { revision, .. } => {
                if *revision < bookmark {
                    broken(format!("a bookmark at {revision} after one at {bookmark}"));
                }
                bookmark = bookmark.max(*revision);
                if *revision > history.through() {
                    broken(format!(
                        "a bookmark at {revision}, beyond the history, which ends at {}",
                        history.through()
                    ));
                }
                let missing = history
                    .expected(watch.create, compared, *revision)
                    .map(|(revision, _)| revision)
                    .find(|revision| !seen.contains(revision));
                if let Some(missing) = missing {
                    broken(format!("a bookmark at {revision} without the events of {missing} before it"));
                }
                compared = compared.max(revision + 1);
            }
            Seen::Canceled { .. } => {}
        }
    }
    violations
}

/// Over all watches of a subscription, in time: each event once, none missing between the first start and the last position. A gap is
/// excused only where a watch was told that the revisions are compacted.
pub fn resumable(history: &History, watches: &[Watch<'_>]) -> Vec<Violation> {
    let mut chains: BTreeMap<Subscription, Vec<&Watch<'_>>> = BTreeMap::new();
    for watch in watches {
        if let Some(subscription) = watch.subscription {
            chains.entry(subscription).or_default().push(watch);
        }
    }
    chains.values().flat_map(|chain| resumed(history, chain)).collect()
}

fn resumed(history: &History, chain: &[&Watch<'_>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |watch: &Watch<'_>, text: String| {
        violations.push(Violation::new("resumable", format!("{}: {text}", watch.name)));
    };
    let mut seen: BTreeSet<(i64, &[u8])> = BTreeSet::new();
    // First revision that is still owed to the subscription; none before the first watch was created.
    let mut owed: Option<i64> = None;
    for watch in chain {
        let Some(start) = watch.start() else { continue };
        let from = owed.unwrap_or(start);
        if start > from {
            let lost = history.expected(watch.create, from, start - 1).next();
            if let Some((lost, _)) = lost {
                broken(watch, format!("resumed at {start}, {lost} was never delivered"));
            }
        }
        for event in watch.deliveries().flat_map(|delivery| &delivery.events) {
            let revision = history::revision(event);
            if !seen.insert((revision, history::key(event))) {
                broken(watch, format!("an event of {revision} comes again after resuming at {start}"));
            }
        }
        let position = watch.position().unwrap_or(start - 1);
        let gap = history
            .expected(watch.create, from.max(start), position)
            .flat_map(|(revision, events)| events.into_iter().map(move |event| (revision, event)))
            .find(|(revision, event)| !seen.contains(&(*revision, history::key(event))));
        if let Some((gap, _)) = gap {
            broken(watch, format!("reached {position} without all events of {gap}"));
        }
        let next = watch.compacted().unwrap_or(0).max(position + 1);
        owed = Some(owed.unwrap_or(0).max(next));
    }
    violations
}

/// Subscriptions whose last watch did not reach this revision: they were promised everything and waited long enough.
pub fn behind(watches: &[Watch<'_>], revision: i64) -> Vec<Violation> {
    let mut reached: BTreeMap<Subscription, i64> = BTreeMap::new();
    for watch in watches {
        if let Some(subscription) = watch.subscription {
            let position = reached.entry(subscription).or_default();
            *position = (*position).max(watch.position().unwrap_or(0));
        }
    }
    reached
        .into_iter()
        .filter(|(_, position)| *position < revision)
        .map(|(subscription, position)| {
            Violation::new("behind", format!("{subscription:?} is at {position}, the store at {revision}"))
        })
        .collect()
}
