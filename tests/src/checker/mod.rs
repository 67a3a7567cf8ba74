//! Checkers over recorded observations: what clients asked, what they were told and when, beside the true history of the store. Each
//! guarantee is one function from evidence to violations. They observe and never steer, know no sockets and no clock of their own, so
//! that the same ones judge real processes, the simulation and planted lies.
//!
//! Watch guarantees: [`order::ordered`], [`order::unique`], [`order::atomic`], [`completeness::reliable`], [`completeness::resumable`],
//! [`completeness::bookmarkable`], [`content::previous`], [`content::filtered`], [`content::not_before_its_start`],
//! [`content::canceled_with_reason`] and, while pairing requests with replies, [`sessions::sessions`] (created first, ids). Lease
//! guarantees are in [`lease`].
//!
//! Not here: how observations are made (`recorder`), what is done to the members meanwhile (the tests).

pub mod completeness;
pub mod content;
pub mod history;
pub mod lease;
pub mod order;
pub mod sessions;

#[cfg(test)]
mod planted;

use std::{fmt, time::Duration};

use api::etcdserverpb::{WatchRequest, WatchResponse};

pub use history::History;
pub use sessions::{Seen, Watch, sessions};

/// One broken promise, in words that name the stream, the watch and the revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub text: String,
}

impl Violation {
    pub fn new(rule: &'static str, text: impl Into<String>) -> Violation {
        Violation { rule, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

/// A subscription is what a client wants to follow; it lives on over many watches, each resumed where the former ended. Numbers are
/// unique in one body of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subscription(pub u32);

/// One thing that happened on a stream, by the client's monotonic clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub at: Duration,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Handed to the transport. A create request tells for whom it is.
    Sent(WatchRequest, Option<Subscription>),
    Received(WatchResponse),
    /// The stream is over, by whomever; nothing follows.
    Ended(String),
}

/// All of one stream, in the order in which the client did and saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamLog {
    /// For messages: client and member.
    pub name: String,
    pub entries: Vec<Entry>,
}

/// What is judged.
pub struct Evidence<'a> {
    pub streams: &'a [StreamLog],
    pub history: &'a History,
}

/// Every watch guarantee over all streams.
pub fn watch_violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut watches = Vec::new();
    for stream in evidence.streams {
        let (found, broken) = sessions(stream);
        watches.extend(found);
        violations.extend(broken);
    }
    // In the order of time, which the chains of subscriptions need.
    watches.sort_by_key(|watch| watch.requested_at);
    let history = evidence.history;
    let per_watch: [fn(&History, &Watch<'_>) -> Vec<Violation>; 8] = [
        order::ordered,
        order::unique,
        order::atomic,
        completeness::reliable,
        completeness::bookmarkable,
        content::previous,
        content::filtered,
        content::not_before_its_start,
    ];
    for watch in &watches {
        violations.extend(per_watch.iter().flat_map(|check| check(history, watch)));
        violations.extend(content::canceled_with_reason(history, watch));
    }
    violations.extend(order::agreed(history, &watches));
    violations.extend(completeness::resumable(history, &watches));
    violations
}

/// What was judged, in numbers: evidence of nothing proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub streams: usize,
    pub watches: usize,
    pub events: usize,
    pub bookmarks: usize,
    pub fragments: usize,
    pub compacted: usize,
}

pub fn weight(streams: &[StreamLog]) -> Weight {
    let mut weight = Weight { streams: streams.len(), ..Weight::default() };
    for watch in streams.iter().flat_map(|stream| sessions(stream).0) {
        weight.watches += 1;
        for seen in &watch.seen {
            match seen {
                Seen::Events(delivery) => {
                    weight.events += delivery.events.len();
                    weight.fragments += delivery.parts - 1;
                }
                Seen::Bookmark { .. } => weight.bookmarks += 1,
                Seen::Canceled { response, .. } => {
                    weight.compacted += usize::from(response.compact_revision > 0);
                }
            }
        }
    }
    weight
}

/// Panics with the first violations, all of them counted.
#[track_caller]
pub fn assert_kept(what: &str, violations: &[Violation]) {
    /// More would bury the first.
    const SHOWN_MAX: usize = 20;
    if violations.is_empty() {
        return;
    }
    let shown: Vec<String> = violations.iter().take(SHOWN_MAX).map(Violation::to_string).collect();
    panic!("{what}: {} broken promises:\n{}", violations.len(), shown.join("\n"));
}
