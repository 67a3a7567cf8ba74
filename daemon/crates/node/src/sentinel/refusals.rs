//! Refusals, both ways: counted, and told once a minute each. A mismatch must not flood the log.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use identity::{Home, Verdict};
use parking_lot::Mutex;
use state_machine::Reader;
use storage::state_store::FjallStore;
use tracing::warn;
use types::MemberId;

/// Between two lines about one peer in one direction.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Peers and verdicts that are counted. Ids of strangers are counted as one, so only members make rows.
const ROWS_MAX: usize = 1024;

/// Counted beside the verdicts; it is none.
const HELD_OFF: &str = "held_off";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    ThisMember,
    Peer,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::ThisMember => "this_member",
            By::Peer => "peer",
        }
    }
}

#[derive(Default)]
pub(crate) struct Refusals(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counts: BTreeMap<(MemberId, &'static str, By), u64>,
    told: BTreeMap<(MemberId, By), Told>,
    unprotected: Vec<MemberId>,
}

struct Told {
    at: Instant,
    kept_back: u64,
}

impl Refusals {
    /// This member does not take a peer.
    pub(super) fn refused(&self, reader: &Reader<FjallStore>, peer: MemberId, verdict: &Verdict) {
        if let Some(kept_back) = self.count(reader, peer, verdict.name(), By::ThisMember) {
            warn!(peer = %peer, verdict = verdict.name(), kept_back, "refused a peer: {}", sentence(verdict));
        }
    }

    /// A peer does not take this member.
    pub(super) fn refused_by(&self, reader: &Reader<FjallStore>, peer: MemberId, verdict: &Verdict) {
        if let Some(kept_back) = self.count(reader, peer, verdict.name(), By::Peer) {
            warn!(peer = %peer, verdict = verdict.name(), kept_back, "refused by a peer: {}", sentence(verdict));
        }
    }

    /// This founder does not hear a peer before it knows the life of its own cluster.
    pub(super) fn held_off(&self, reader: &Reader<FjallStore>, peer: MemberId) {
        if let Some(kept_back) = self.count(reader, peer, HELD_OFF, By::ThisMember) {
            warn!(
                peer = %peer,
                kept_back,
                "not heard yet: it is none of those with whom this member founds its cluster, and may be of an earlier life of it. It is heard \
                 once one of those who attended says that it is of the same life, or that life has admitted this directory; if they are all \
                 gone, this member must be replaced"
            );
        }
    }

    /// A member of etcd says nothing of itself: it is taken as etcd takes it.
    pub(super) fn unprotected(&self, peer: MemberId) {
        let mut inner = self.0.lock();
        if inner.unprotected.contains(&peer) || inner.unprotected.len() >= ROWS_MAX {
            return;
        }
        inner.unprotected.push(peer);
        drop(inner);
        warn!(peer = %peer, "this peer does not say who it is, like a member of etcd: a copy of it, or one that has lost its data, would not be recognised");
    }

    /// Whether this peer has shown itself to be a member of etcd in this start.
    pub(crate) fn is_unprotected(&self, peer: MemberId) -> bool {
        self.0.lock().unprotected.contains(&peer)
    }

    /// Lines that were kept back since the last, when it is time for another.
    fn count(
        &self,
        reader: &Reader<FjallStore>,
        peer: MemberId,
        verdict: &'static str,
        by: By,
    ) -> Option<u64> {
        let is_known = reader.member(peer).is_some() || reader.is_removed(peer);
        let peer = if is_known { peer } else { MemberId::NONE };
        self.note(peer, verdict, by, Instant::now())
    }

    fn note(&self, peer: MemberId, verdict: &'static str, by: By, now: Instant) -> Option<u64> {
        let mut inner = self.0.lock();
        let Inner { counts, told, .. } = &mut *inner;
        if counts.len() < ROWS_MAX || counts.contains_key(&(peer, verdict, by)) {
            *counts.entry((peer, verdict, by)).or_default() += 1;
        }
        let is_full = told.len() >= ROWS_MAX;
        match told.get_mut(&(peer, by)) {
            Some(last) if now.saturating_duration_since(last.at) < TOLD_EVERY => {
                last.kept_back += 1;
                None
            }
            Some(last) => {
                last.at = now;
                Some(std::mem::take(&mut last.kept_back))
            }
            None if is_full => None,
            None => {
                told.insert((peer, by), Told { at: now, kept_back: 0 });
                Some(0)
            }
        }
    }

    /// Prometheus text. Strangers have no name.
    pub(crate) fn print(&self, out: &mut String) {
        const NAME: &str = "cairn_peer_refused_total";
        let _ = writeln!(
            out,
            "# HELP {NAME} Connections refused because of who one of the two members is.\n# TYPE {NAME} counter"
        );
        for ((peer, verdict, by), count) in &self.0.lock().counts {
            let peer = if peer.is_none() { "unknown".to_owned() } else { peer.to_string() };
            let by = by.name();
            let _ = writeln!(out, "{NAME}{{peer=\"{peer}\",verdict=\"{verdict}\",by=\"{by}\"}} {count}");
        }
    }
}

/// A verdict in words, about "its" speaker.
pub(super) fn sentence(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Welcome => "it is welcome".to_owned(),
        Verdict::OtherLife { yours, ours, came_from_yours } => {
            let ours = ours.map_or("without a name yet".to_owned(), |ours| ours.to_string());
            let relation = if *came_from_yours { ", which came out of it by restore or force," } else { "" };
            format!(
                "its directory is of life {yours} of the cluster; this one is life {ours}{relation} and they never mix"
            )
        }
        Verdict::Stranger => "the cluster has no such member".to_owned(),
        Verdict::Pending => {
            "its place was added to the running cluster, but it was started to found a new one".to_owned()
        }
        Verdict::Removed { index, term, .. } => {
            format!("it was removed from the cluster (log entry {index} of term {term})")
        }
        Verdict::LostData { boot_seq, home, .. } => {
            format!("another directory is this member{}", seen(*boot_seq, home))
        }
        Verdict::OlderBoot { boot_seq, home } => {
            format!("its directory is an older copy: a later start of it was seen{}", seen(*boot_seq, home))
        }
        Verdict::ShorterLog { last_index, term, boot_seq, home } => format!(
            "its log is shorter than what was seen of it: index {last_index}, term {term}{}",
            seen(*boot_seq, home)
        ),
        Verdict::Duplicate { boot_seq, home } => {
            format!("another start of it is running{}", seen(*boot_seq, home))
        }
    }
}

fn seen(boot_seq: u64, home: &Home) -> String {
    let place =
        if home.path.is_empty() { String::new() } else { format!(", {} on {}", home.path, home.host) };
    format!(" (start {boot_seq}{place})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_told_once_a_minute_and_counted_always() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let note = |peer, verdict: &Verdict, seconds| {
            refusals.note(MemberId(peer), verdict.name(), By::Peer, start + Duration::from_secs(seconds))
        };
        assert_eq!(note(1, &Verdict::Stranger, 0), Some(0));
        assert_eq!(note(1, &Verdict::Stranger, 1), None);
        assert_eq!(note(1, &Verdict::Pending, 59), None, "one line per peer, whatever it says");
        assert_eq!(note(2, &Verdict::Stranger, 1), Some(0));
        assert_eq!(note(1, &Verdict::Stranger, 60), Some(2));
        let mut text = String::new();
        refusals.print(&mut text);
        assert!(
            text.contains("cairn_peer_refused_total{peer=\"1\",verdict=\"stranger\",by=\"peer\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("{peer=\"1\",verdict=\"pending\",by=\"peer\"} 1\n"), "{text}");
    }

    #[test]
    fn strangers_fill_neither_memory_nor_log() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for peer in 1..=5000 {
            refusals.note(MemberId(peer), Verdict::Stranger.name(), By::ThisMember, now);
            refusals.unprotected(MemberId(peer));
        }
        let inner = refusals.0.lock();
        assert_eq!(
            (inner.counts.len(), inner.told.len(), inner.unprotected.len()),
            (ROWS_MAX, ROWS_MAX, ROWS_MAX)
        );
    }
}
