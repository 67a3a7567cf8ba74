//! The streams of one runtime that end only when someone ends them: watches and keep-alives. Here they are told that the server
//! stops, or that their client's wish for a leader no longer holds.
//!
//! Not here: what flows in them, and the end that the client brings about, which drops the stream and with it its place here.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use api::error::EtcdError;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

/// How often the streams that demand a leader are compared with what the member knows. The member counts the three election
/// timeouts itself; this is only how late the cut may be, a heartbeat with etcd's defaults.
const LEADER_CHECK_EVERY: Duration = Duration::from_millis(100);

/// All open streams. Locked when one opens, closes or all are told something, by its runtime alone.
#[derive(Default)]
pub(crate) struct Streams {
    table: Mutex<Table>,
    demanded: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Ending>>,
    /// Open streams that demand a leader.
    demanding: usize,
    closing: Option<EtcdError>,
}

impl Streams {
    /// A place for a new stream. Where all are being ended, this one is ended as well.
    pub fn enter(self: &Arc<Self>, demands_leader: bool) -> Entry {
        let ending = Arc::new(Ending { demands_leader, ..Ending::default() });
        let mut table = self.table.lock();
        if let Some(error) = table.closing {
            ending.end(error.into());
        }
        let id = table.next;
        table.next += 1;
        table.demanding += usize::from(demands_leader);
        table.open.insert(id, ending.clone());
        if demands_leader {
            self.demanded.notify_one();
        }
        Entry { streams: self.clone(), ending, id }
    }

    /// Ends every stream, and every one that comes later.
    pub fn close_all(&self, error: EtcdError) {
        let mut table = self.table.lock();
        table.closing = Some(error);
        for ending in table.open.values() {
            ending.end(error.into());
        }
    }

    /// Cuts the streams that demand a leader when there is none. Runs until it is dropped, idle while nobody demands one.
    pub async fn keep_to_leader(&self, has_leader: impl Fn() -> bool) {
        loop {
            while self.table.lock().demanding == 0 {
                self.demanded.notified().await;
            }
            if !has_leader() {
                self.cut_leaderless();
            }
            tokio::time::sleep(LEADER_CHECK_EVERY).await;
        }
    }

    fn cut_leaderless(&self) {
        for ending in self.table.lock().open.values().filter(|ending| ending.demands_leader) {
            ending.end(EtcdError::NoLeader.into());
        }
    }
}

/// Where one stream is told to end. Shared by its answering and its reading half.
#[derive(Default)]
pub(crate) struct Ending {
    demands_leader: bool,
    status: Mutex<Option<Status>>,
    waker: AtomicWaker,
}

impl Ending {
    /// The first one who ends a stream says why.
    pub fn end(&self, status: Status) {
        self.status.lock().get_or_insert(status);
        self.waker.wake();
    }
}

/// The place of one open stream; dropped when it is over.
pub(crate) struct Entry {
    streams: Arc<Streams>,
    ending: Arc<Ending>,
    id: u64,
}

impl Entry {
    pub fn ending(&self) -> &Arc<Ending> {
        &self.ending
    }

    /// Ready once, with the status to end with.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Status> {
        self.ending.waker.register(cx.waker());
        match self.ending.status.lock().take() {
            Some(status) => Poll::Ready(status),
            None => Poll::Pending,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.streams.table.lock();
        table.open.remove(&self.id);
        table.demanding -= usize::from(self.ending.demands_leader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(entry: &Entry) -> Option<String> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match entry.poll_end(&mut cx) {
            Poll::Ready(status) => Some(status.message().to_owned()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn only_who_demands_a_leader_is_cut_without_one() {
        let streams = Arc::new(Streams::default());
        let (demands, does_not) = (streams.enter(true), streams.enter(false));
        assert_eq!((end_of(&demands), end_of(&does_not)), (None, None));
        streams.cut_leaderless();
        let no_leader = Some(EtcdError::NoLeader.text().to_owned());
        assert_eq!((end_of(&demands), end_of(&does_not)), (no_leader, None));
        assert_eq!(streams.table.lock().demanding, 1);
        drop((demands, does_not));
        assert!(streams.table.lock().open.is_empty());
        assert_eq!(streams.table.lock().demanding, 0);
    }

    #[test]
    fn closing_ends_the_present_and_the_future() {
        let streams = Arc::new(Streams::default());
        let before = streams.enter(false);
        before.ending().end(Status::internal("its own end"));
        streams.close_all(EtcdError::Stopped);
        let after = streams.enter(false);
        assert_eq!(end_of(&before).as_deref(), Some("its own end"), "the first one who ends it says why");
        assert_eq!(end_of(&after).as_deref(), Some(EtcdError::Stopped.text()));
    }
}
