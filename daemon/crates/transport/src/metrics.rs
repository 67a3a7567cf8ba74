//! Counters of the peer network, as plain numbers under etcd's names; the node prints them.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use types::MemberId;

/// Buckets of `etcd_network_peer_round_trip_time_seconds`: 0.1 ms doubled 16 times.
pub const RTT_BUCKETS: usize = 16;
/// Buckets of the snapshot durations: 0.1 s doubled ten times.
pub const SNAPSHOT_BUCKETS: usize = 10;

/// A histogram with exponential buckets.
pub(crate) struct Histogram<const N: usize> {
    first_seconds: f64,
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum_nanos: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(first_seconds: f64) -> Self {
        Histogram {
            first_seconds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum_nanos: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, taken: Duration) {
        let mut bound = self.first_seconds;
        let seconds = taken.as_secs_f64();
        let bucket = self.counts.iter().find(|_| {
            let fits = seconds <= bound;
            bound *= 2.0;
            fits
        });
        bucket.unwrap_or(&self.above).fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn snapshot(&self) -> HistogramSnapshot {
        let mut bound = self.first_seconds;
        let mut total = 0;
        let buckets = self
            .counts
            .iter()
            .map(|count| {
                total += count.load(Relaxed);
                let bucket = (bound, total);
                bound *= 2.0;
                bucket
            })
            .collect();
        HistogramSnapshot {
            buckets,
            count: total + self.above.load(Relaxed),
            sum_seconds: self.sum_nanos.load(Relaxed) as f64 / 1e9,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bound in seconds and the number of observations up to it (cumulative, as Prometheus wants).
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum_seconds: f64,
}

pub(crate) struct PeerCounters {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_failures: AtomicU64,
    pub(crate) received_failures: AtomicU64,
    pub(crate) disconnects: AtomicU64,
    pub(crate) rtt: Histogram<RTT_BUCKETS>,
    pub(crate) snapshot_send: Transfers,
    pub(crate) snapshot_receive: Transfers,
}

pub(crate) struct Transfers {
    pub(crate) inflight: AtomicI64,
    pub(crate) success: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) duration: Histogram<SNAPSHOT_BUCKETS>,
}

impl Transfers {
    fn new() -> Self {
        Transfers {
            inflight: AtomicI64::new(0),
            success: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            duration: Histogram::new(0.1),
        }
    }

    pub(crate) fn begin(&self) {
        self.inflight.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self, ok: bool, taken: Duration) {
        self.inflight.fetch_sub(1, Relaxed);
        if ok {
            self.success.fetch_add(1, Relaxed);
            self.duration.observe(taken);
        } else {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    fn snapshot(&self) -> TransferMetrics {
        TransferMetrics {
            inflight: self.inflight.load(Relaxed),
            success: self.success.load(Relaxed),
            failures: self.failures.load(Relaxed),
            duration: self.duration.snapshot(),
        }
    }
}

impl PeerCounters {
    pub(crate) fn new() -> Self {
        PeerCounters {
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_failures: AtomicU64::new(0),
            received_failures: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
            rtt: Histogram::new(0.0001),
            snapshot_send: Transfers::new(),
            snapshot_receive: Transfers::new(),
        }
    }

    pub(crate) fn snapshot(&self, id: MemberId, active: bool) -> PeerMetrics {
        PeerMetrics {
            id,
            active,
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_failures: self.sent_failures.load(Relaxed),
            received_failures: self.received_failures.load(Relaxed),
            disconnects: self.disconnects.load(Relaxed),
            rtt: self.rtt.snapshot(),
            snapshot_send: self.snapshot_send.snapshot(),
            snapshot_receive: self.snapshot_receive.snapshot(),
        }
    }
}

/// One peer's row in each of the `etcd_network_*` families.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerMetrics {
    pub id: MemberId,
    /// `etcd_network_active_peers`
    pub active: bool,
    /// `etcd_network_peer_sent_bytes_total`
    pub sent_bytes: u64,
    /// `etcd_network_peer_received_bytes_total`
    pub received_bytes: u64,
    /// `etcd_network_peer_sent_failures_total`
    pub sent_failures: u64,
    /// `etcd_network_peer_received_failures_total`
    pub received_failures: u64,
    /// `etcd_network_disconnected_peers_total`
    pub disconnects: u64,
    /// `etcd_network_peer_round_trip_time_seconds`
    pub rtt: HistogramSnapshot,
    /// `etcd_network_snapshot_send_*`
    pub snapshot_send: TransferMetrics,
    /// `etcd_network_snapshot_receive_*`
    pub snapshot_receive: TransferMetrics,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TransferMetrics {
    pub inflight: i64,
    pub success: u64,
    pub failures: u64,
    pub duration: HistogramSnapshot,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSnapshot {
    /// Members we exchange messages with, in ascending order; remotes too.
    pub peers: Vec<PeerMetrics>,
    /// Connections that others have open to the peer port now.
    pub open_connections: usize,
    /// Messages and connections on the peer port that were refused, whoever they came from.
    pub refused_requests: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_rest_counts_too() {
        let histogram = Histogram::<3>::new(0.1);
        for millis in [50, 100, 150, 500] {
            histogram.observe(Duration::from_millis(millis));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets, [(0.1, 2), (0.2, 3), (0.4, 3)]);
        assert_eq!(snapshot.count, 4);
        assert!((snapshot.sum_seconds - 0.8).abs() < 1e-9);
    }
}
