//! What the guard in front of raft found odd, told now and then: neither memory nor log is for whoever makes it up to fill.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use consensus::io::Report;
use tracing::warn;
use types::MemberId;

/// Reports of one kind about one peer are logged at most once in this time, with a count of those kept back.
const INTERVAL: Duration = Duration::from_secs(60);

/// Kinds and peers remembered for that. A cluster has some tens of such pairs; more are made up by whoever invents senders.
const KEPT_MAX: usize = 1024;

#[derive(Default)]
pub(crate) struct Reports(HashMap<(&'static str, MemberId), (Instant, u64)>);

impl Reports {
    pub(crate) fn tell(&mut self, report: &Report, now: Instant) {
        if let Some(kept_back) = self.note(report.kind, report.from, now) {
            warn!(kind = report.kind, peer = %report.from, kept_back, "{}", report.text);
        }
    }

    /// Lines that were kept back since the last, when it is time for another.
    fn note(&mut self, kind: &'static str, from: MemberId, now: Instant) -> Option<u64> {
        if self.0.len() >= KEPT_MAX {
            self.0.retain(|_, (last, _)| now.saturating_duration_since(*last) < INTERVAL);
            if self.0.len() >= KEPT_MAX && !self.0.contains_key(&(kind, from)) {
                return None;
            }
        }
        let Some((last, kept_back)) = self.0.get_mut(&(kind, from)) else {
            self.0.insert((kind, from), (now, 0));
            return Some(0);
        };
        if now.saturating_duration_since(*last) < INTERVAL {
            *kept_back += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_for_each_kind_and_peer_and_no_more_of_them_than_are_kept() {
        let mut reports = Reports::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(reports.note("odd", MemberId(1), at(0)), Some(0));
        assert_eq!(reports.note("odd", MemberId(1), at(59)), None);
        assert_eq!(reports.note("other", MemberId(1), at(59)), Some(0));
        assert_eq!(reports.note("odd", MemberId(1), at(60)), Some(1));
        let told = (0..5000).filter(|peer| reports.note("made up", MemberId(*peer), at(60)).is_some());
        assert_eq!(told.count(), KEPT_MAX - 2);
        assert_eq!(reports.note("other", MemberId(1), at(119)), Some(0), "who is known is still heard");
        assert!(reports.0.len() <= KEPT_MAX);
    }
}
