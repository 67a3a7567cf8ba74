//! Counters of this member, printed under etcd's names. Hot paths touch one atomic each; the text is made when it is asked for.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A histogram with etcd's exponential buckets: `start * 2^i`.
pub(crate) struct Histogram {
    start_us: u64,
    buckets: Vec<AtomicU64>,
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(start: Duration, count: usize) -> Histogram {
        Histogram {
            start_us: start.as_micros() as u64,
            buckets: (0..=count).map(|_| AtomicU64::new(0)).collect(),
            sum_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let mut bound = self.start_us;
        let mut bucket = 0;
        while bucket + 1 < self.buckets.len() && us > bound {
            bound *= 2;
            bucket += 1;
        }
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn print(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        let mut bound_us = self.start_us;
        for (i, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            if i + 1 == self.buckets.len() {
                let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
            } else {
                let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", bound_us as f64 / 1e6);
                bound_us *= 2;
            }
        }
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
    }
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Metrics {
    pub(crate) wal_write: Histogram,
    pub(crate) wal_fsync: Histogram,
    pub(crate) apply: Histogram,
    pub(crate) leader_changes: Counter,
    pub(crate) proposals_failed: Counter,
    pub(crate) read_rounds_failed: Counter,
    pub(crate) messages_dropped: Counter,
    pub(crate) puts: Counter,
    pub(crate) deletes: Counter,
    pub(crate) txns: Counter,
    pub(crate) ranges: Counter,
    pub(crate) compacted_rows: Counter,
    pub(crate) snapshots_installed: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let ms = Duration::from_millis(1);
        Metrics {
            wal_write: Histogram::new(ms, 14),
            wal_fsync: Histogram::new(ms, 14),
            apply: Histogram::new(Duration::from_micros(100), 20),
            leader_changes: Counter::default(),
            proposals_failed: Counter::default(),
            read_rounds_failed: Counter::default(),
            messages_dropped: Counter::default(),
            puts: Counter::default(),
            deletes: Counter::default(),
            txns: Counter::default(),
            ranges: Counter::default(),
            compacted_rows: Counter::default(),
            snapshots_installed: Counter::default(),
        }
    }
}

/// One sample of a gauge or counter with its preamble.
pub(crate) fn sample(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_named_in_seconds() {
        let histogram = Histogram::new(Duration::from_millis(1), 3);
        histogram.observe(Duration::from_micros(1000));
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(9));
        let mut text = String::new();
        histogram.print(&mut text, "x_seconds", "help");
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "x_seconds_bucket{le=\"0.001\"} 1",
                "x_seconds_bucket{le=\"0.002\"} 1",
                "x_seconds_bucket{le=\"0.004\"} 2",
                "x_seconds_bucket{le=\"+Inf\"} 3",
                "x_seconds_sum 9.004",
                "x_seconds_count 3",
            ]
        );
    }
}
