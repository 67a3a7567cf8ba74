//! Numbers that `/metrics` shows, and the memory that waits in all queues together. Each is added to and taken from in one place.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Shared by the hub, the queues and whoever prints them.
#[derive(Debug, Default)]
pub struct Gauges {
    pub(crate) streams: AtomicI64,
    pub(crate) watchers: AtomicI64,
    pub(crate) slow_watchers: AtomicI64,
    queued_bytes: AtomicI64,
    pending_events: AtomicI64,
    events: AtomicU64,
}

impl Gauges {
    /// Open streams.
    pub fn streams(&self) -> i64 {
        self.streams.load(Ordering::Relaxed)
    }

    pub fn watchers(&self) -> i64 {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Watchers that do not follow live events: catching up, or their client does not read.
    pub fn slow_watchers(&self) -> i64 {
        self.slow_watchers.load(Ordering::Relaxed)
    }

    /// Bytes that wait in the queues of all streams; an event that waits in several counts in each.
    pub fn queued_bytes(&self) -> usize {
        usize::try_from(self.queued_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Events that wait in queues, once for each watcher.
    pub fn pending_events(&self) -> i64 {
        self.pending_events.load(Ordering::Relaxed)
    }

    /// Events handed to clients' connections, once for each watcher.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    pub(crate) fn queued(&self, bytes: i64, events: i64) {
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.pending_events.fetch_add(events, Ordering::Relaxed);
    }

    pub(crate) fn taken(&self, bytes: i64, events: i64) {
        self.dropped(bytes, events);
        self.events.fetch_add(events as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, bytes: i64, events: i64) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.pending_events.fetch_sub(events, Ordering::Relaxed);
    }

    pub(crate) fn add(gauge: &AtomicI64, by: i64) {
        gauge.fetch_add(by, Ordering::Relaxed);
    }
}
