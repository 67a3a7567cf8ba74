//! What is counted for health checks and scrapes.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::text;

/// The two families of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthKind {
    Livez,
    Readyz,
}

impl HealthKind {
    pub fn label(self) -> &'static str {
        match self {
            HealthKind::Livez => "livez",
            HealthKind::Readyz => "readyz",
        }
    }
}

/// Every check of every family.
const CHECKS: [(HealthKind, &str); 5] = [
    (HealthKind::Livez, "serializable_read"),
    (HealthKind::Readyz, "data_corruption"),
    (HealthKind::Readyz, "serializable_read"),
    (HealthKind::Readyz, "linearizable_read"),
    (HealthKind::Readyz, "non_learner"),
];

#[derive(Default)]
struct Check {
    ok: AtomicU64,
    failed: AtomicU64,
    /// 1 when the last run passed.
    last: AtomicU64,
}

/// Shared by all runtimes: nothing here is counted more than a few times a second.
#[derive(Default)]
pub(crate) struct HttpMetrics {
    health_ok: AtomicU64,
    health_failed: AtomicU64,
    checks: [Check; CHECKS.len()],
    scrapes: AtomicU64,
}

impl HttpMetrics {
    pub fn health(&self, healthy: bool) {
        if healthy { &self.health_ok } else { &self.health_failed }.fetch_add(1, Relaxed);
    }

    pub fn check(&self, kind: HealthKind, name: &str, passed: bool) {
        let known = CHECKS.iter().position(|&check| check == (kind, name));
        let check = &self.checks[known.expect("every check has a place in the table")];
        if passed { &check.ok } else { &check.failed }.fetch_add(1, Relaxed);
        check.last.store(u64::from(passed), Relaxed);
    }

    pub fn scraped(&self) {
        self.scrapes.fetch_add(1, Relaxed);
    }

    pub(super) fn render(&self, out: &mut String) {
        text::single(
            out,
            "etcd_server_health_failures",
            "counter",
            "Answers of /health that were not healthy.",
            self.health_failed.load(Relaxed),
        );
        text::single(
            out,
            "etcd_server_health_success",
            "counter",
            "Answers of /health that were healthy.",
            self.health_ok.load(Relaxed),
        );
        text::family(
            out,
            "etcd_server_healthcheck",
            "gauge",
            "Last result of each livez and readyz check: 1 passed, 0 failed.",
        );
        for ((kind, name), check) in CHECKS.iter().zip(&self.checks) {
            let (kind, last) = (kind.label(), check.last.load(Relaxed));
            let _ = writeln!(out, "etcd_server_healthcheck{{name=\"{name}\",type=\"{kind}\"}} {last}");
        }
        text::family(
            out,
            "etcd_server_healthchecks_total",
            "counter",
            "Runs of each livez and readyz check, by result.",
        );
        for ((kind, name), check) in CHECKS.iter().zip(&self.checks) {
            let kind = kind.label();
            for (status, count) in [("error", &check.failed), ("success", &check.ok)] {
                let count = count.load(Relaxed);
                let _ = writeln!(
                    out,
                    "etcd_server_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{kind}\"}} {count}"
                );
            }
        }
        text::family(out, "promhttp_metric_handler_requests_total", "counter", "Scrapes answered.");
        text::sample(out, "promhttp_metric_handler_requests_total{code=\"200\"}", self.scrapes.load(Relaxed));
    }
}
