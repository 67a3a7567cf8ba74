//! What is inside a response: previous versions, only what was asked for, nothing before its time, and cancels that have a reason.

use std::time::Duration;

use super::{History, Seen, Violation, Watch, history};

/// `prev_kv` is the true previous version; it is absent for creations, when it was not asked for, and may be absent when somebody has
/// asked for a compaction above it by then.
pub fn previous(history: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for delivery in watch.deliveries() {
        for event in &delivery.events {
            let revision = history::revision(event);
            let mut all = history.events(revision).iter();
            let Some(truth) = all.find(|truth| history::key(truth) == history::key(event)) else { continue };
            let right = match (&event.prev_kv, watch.create.prev_kv) {
                (Some(_), false) => false,
                (None, false) => true,
                (None, true) => truth.prev_kv.is_none() || history.compaction_by(delivery.at) > revision - 1,
                (Some(_), true) => event.prev_kv == truth.prev_kv,
            };
            if !right {
                let text = format!(
                    "{}: at {revision} prev_kv is {:?}, asked for {}, truth {:?}",
                    watch.name, event.prev_kv, watch.create.prev_kv, truth.prev_kv
                );
                violations.push(Violation::new("prev_kv", text));
            }
        }
    }
    violations
}

/// Only keys of the range and only kinds that were not filtered out.
pub fn filtered(_: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let events = watch.deliveries().flat_map(|delivery| &delivery.events);
    events
        .filter(|event| !history::wanted(watch.create, event))
        .map(|event| Violation::new("filtered", format!("{}: nobody asked for {event:?}", watch.name)))
        .collect()
}

/// A watch with a start revision is silent about everything below it: no event, no bookmark. One without begins behind the revision
/// of its `created` reply.
pub fn not_before_its_start(_: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let Some(start) = watch.start() else { return violations };
    // "From now on" may be confirmed at the revision of now.
    let bookmark_min = if watch.create.start_revision == 0 { start - 1 } else { start };
    for seen in &watch.seen {
        let early = match seen {
            Seen::Events(delivery) => {
                let mut revisions = delivery.events.iter().map(|event| history::revision(event));
                revisions.find(|revision| *revision < start).map(|revision| format!("an event of {revision}"))
            }
            Seen::Bookmark { revision, .. } => {
                (*revision < bookmark_min).then(|| format!("a bookmark at {revision}"))
            }
            Seen::Canceled { .. } => None,
        };
        if let Some(what) = early {
            let text = format!("{}: {what}, it starts at {start}", watch.name);
            violations.push(Violation::new("not before its start", text));
        }
    }
    violations
}

/// A cancel was asked for, or names a compaction that took away what the watch still needed; a refusal has a reason in its request.
pub fn canceled_with_reason(history: &History, watch: &Watch<'_>) -> Vec<Violation> {
    let broken = |text: String| Violation::new("canceled with reason", format!("{}: {text}", watch.name));
    if let Some(refusal) = watch.created.filter(|reply| reply.canceled) {
        return match refusal.cancel_reason.is_empty() {
            true => vec![broken("refused without a reason".to_owned())],
            false => Vec::new(),
        };
    }
    let mut violations = Vec::new();
    for seen in &watch.seen {
        let Seen::Canceled { at, response } = seen else { continue };
        if response.compact_revision == 0 {
            if !asked(watch, *at) {
                violations.push(broken(format!("canceled, unasked: {:?}", response.cancel_reason)));
            }
            continue;
        }
        if !history.compaction_at(response.compact_revision, *at) {
            violations.push(broken(format!("nobody compacted at {}", response.compact_revision)));
        }
        let needed = watch.position().map_or(0, |position| position + 1);
        if needed >= response.compact_revision {
            violations.push(broken(format!(
                "canceled by the compaction at {}, it needs {needed} and up only",
                response.compact_revision
            )));
        }
    }
    violations
}

fn asked(watch: &Watch<'_>, by: Duration) -> bool {
    watch.cancel_requested_at.is_some_and(|at| at <= by)
}
