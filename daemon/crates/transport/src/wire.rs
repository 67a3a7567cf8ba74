//! Small shared pieces: silencing of repeated reports, the state that all tasks share.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::HeaderMap;
use parking_lot::{Mutex, RwLock};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use types::MemberId;

use crate::{
    config::{Limits, SNAPSHOT_RECEIVES_MAX, Timeouts},
    handler::{Handler, Report, Topic},
    headers::Identity,
    hello,
    peer::Peer,
};

/// Between two reports of one kind about one peer.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Lets one report of each topic through per interval and counts the others.
#[derive(Default)]
pub(crate) struct Voice {
    topics: Mutex<[Spoken; Topic::COUNT]>,
}

#[derive(Clone, Copy, Default)]
struct Spoken {
    last: Option<Instant>,
    suppressed: u64,
}

impl Voice {
    /// `Some(number of reports suppressed since)` if it is time to speak.
    fn may_speak(&self, topic: Topic, now: Instant) -> Option<u64> {
        let spoken = &mut self.topics.lock()[topic as usize];
        if spoken.last.is_some_and(|last| now.duration_since(last) < REPORT_INTERVAL) {
            spoken.suppressed += 1;
            return None;
        }
        spoken.last = Some(now);
        Some(std::mem::take(&mut spoken.suppressed))
    }
}

/// What all tasks of one transport share.
pub(crate) struct Shared {
    pub(crate) runtime: Handle,
    pub(crate) identity: Identity,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) handler: Arc<dyn Handler>,
    /// Members and remotes. Held for lookups only.
    pub(crate) peers: RwLock<HashMap<MemberId, Arc<Peer>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Reports about callers that are not peers.
    pub(crate) strangers: Voice,
    pub(crate) connections: AtomicUsize,
    /// Bytes of `POST /raft` bodies now in memory.
    pub(crate) bodies: AtomicU64,
    pub(crate) snapshot_receives: Arc<Semaphore>,
    pub(crate) hashing: Semaphore,
    pub(crate) received_failures: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        runtime: Handle,
        identity: Identity,
        limits: Limits,
        timeouts: Timeouts,
        handler: Arc<dyn Handler>,
    ) -> Self {
        Shared {
            runtime,
            identity,
            limits,
            timeouts,
            handler,
            peers: RwLock::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            strangers: Voice::default(),
            connections: AtomicUsize::new(0),
            bodies: AtomicU64::new(0),
            snapshot_receives: Arc::new(Semaphore::new(SNAPSHOT_RECEIVES_MAX)),
            hashing: Semaphore::new(1),
            received_failures: AtomicU64::new(0),
        }
    }

    pub(crate) fn peer(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.peers.read().get(&id).cloned()
    }

    /// Headers of every raft request that we make; `to` only on streams.
    pub(crate) fn request_headers(&self, to: Option<MemberId>) -> HeaderMap {
        let mut headers = self.identity.request_headers(to);
        hello::put(&mut headers, self.handler.hello());
        headers
    }

    /// Headers of every answer that we give to a raft request.
    pub(crate) fn response_headers(&self) -> HeaderMap {
        let mut headers = self.identity.response_headers();
        hello::put(&mut headers, self.handler.hello());
        headers
    }

    /// Runs until it ends or the transport stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn_on(async move { stop.run_until_cancelled(work).await.unwrap_or(()) }, &self.runtime);
    }

    /// Logs something odd and tells the handler, at most once a minute per peer and topic.
    pub(crate) fn report(&self, peer: Option<&Peer>, topic: Topic, text: impl fmt::Display) {
        let voice = peer.map_or(&self.strangers, |peer| &peer.voice);
        let Some(suppressed) = voice.may_speak(topic, Instant::now()) else { return };
        let report =
            Report { peer: peer.map(|peer| peer.id), topic, text: printable(text.to_string()), suppressed };
        let member = report.peer.map(|id| id.to_string()).unwrap_or_else(|| "unknown".to_owned());
        match topic {
            Topic::Connection => info!(peer = member, suppressed, "peer connection: {}", report.text),
            _ => warn!(peer = member, suppressed, "peer: {}", report.text),
        }
        self.handler.report(&report);
    }

    /// Passes on that a peer called us removed, at most once a minute. Nothing else follows from it here: no healthy member stops
    /// because of what one peer says.
    pub(crate) fn told_removed(&self, peer: &Peer, text: &str) {
        let Some(suppressed) = peer.voice.may_speak(Topic::ToldRemoved, Instant::now()) else { return };
        let text = &printable(text.to_owned());
        warn!(peer = %peer.id, suppressed, "peer says that this member was removed: {text}");
        self.handler.told_removed(peer.id, text);
    }

    pub(crate) fn received_failure(&self) {
        self.received_failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Texts of others are shown to operators: nothing in them may forge a line or move a cursor.
fn printable(text: String) -> String {
    if text.chars().any(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_stay_on_their_line() {
        assert_eq!(printable("no\nFATAL\u{1b}[2J".into()), "no\u{fffd}FATAL\u{fffd}[2J");
    }

    #[test]
    fn a_report_is_made_once_a_minute_and_counts_the_others() {
        let voice = Voice::default();
        let start = Instant::now();
        assert_eq!(voice.may_speak(Topic::Garbage, start), Some(0));
        assert_eq!(voice.may_speak(Topic::Garbage, start + Duration::from_secs(1)), None);
        assert_eq!(voice.may_speak(Topic::Garbage, start + Duration::from_secs(59)), None);
        assert_eq!(voice.may_speak(Topic::Overflow, start), Some(0), "topics are silenced apart");
        assert_eq!(voice.may_speak(Topic::Garbage, start + Duration::from_secs(60)), Some(2));
    }
}
