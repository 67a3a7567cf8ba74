//! Counters of leases, under etcd's names.

use std::fmt::Write;

use state_machine::LeaseChange;

use crate::metrics::{Counter, sample};

/// Buckets of granted times to live: 1 s doubled so often, as in etcd.
const TTL_BUCKETS: usize = 24;

pub(crate) struct LeaseMetrics {
    granted: Counter,
    revoked: Counter,
    pub(crate) renewed: Counter,
    expired: Counter,
    ttl: [Counter; TTL_BUCKETS + 1],
    ttl_sum: Counter,
}

impl LeaseMetrics {
    pub(crate) fn new() -> LeaseMetrics {
        LeaseMetrics {
            granted: Counter::default(),
            revoked: Counter::default(),
            renewed: Counter::default(),
            expired: Counter::default(),
            ttl: std::array::from_fn(|_| Counter::default()),
            ttl_sum: Counter::default(),
        }
    }

    pub(crate) fn count(&self, changes: &[LeaseChange], expired: u64) {
        self.expired.add(expired);
        for change in changes {
            match *change {
                LeaseChange::Granted { ttl, .. } => {
                    let seconds = u64::try_from(ttl).unwrap_or(0);
                    let bucket = (0..TTL_BUCKETS).find(|bucket| seconds <= 1 << bucket);
                    self.ttl[bucket.unwrap_or(TTL_BUCKETS)].add(1);
                    self.ttl_sum.add(seconds);
                    self.granted.add(1);
                }
                LeaseChange::Revoked { .. } => self.revoked.add(1),
                LeaseChange::Checkpointed { .. } => {}
            }
        }
    }

    pub(crate) fn print(&self, out: &mut String) {
        let rows = [
            ("etcd_debugging_lease_granted_total", "Leases granted here.", &self.granted),
            ("etcd_debugging_lease_revoked_total", "Leases revoked here.", &self.revoked),
            ("etcd_debugging_lease_renewed_total", "Keep-alives answered as the leader.", &self.renewed),
            (
                "etcd_debugging_server_lease_expired_total",
                "Leases that ended because nobody kept them alive, as the leader saw it.",
                &self.expired,
            ),
        ];
        for (name, help, counter) in rows {
            sample(out, name, "counter", help, counter.get() as f64);
        }
        let name = "etcd_debugging_lease_ttl_total";
        let _ = writeln!(out, "# HELP {name} Times to live granted, in seconds.\n# TYPE {name} histogram");
        let mut total = 0;
        for (i, bucket) in self.ttl.iter().enumerate() {
            total += bucket.get();
            let _ = match i {
                TTL_BUCKETS => writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}"),
                i => writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", 1u64 << i),
            };
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", self.ttl_sum.get());
    }
}
