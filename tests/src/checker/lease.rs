//! Lease guarantees, by the clocks of clients: a lease lives at least as long as it was promised, its keys go together, and who was told
//! that a lease is gone is never told otherwise.
//!
//! Times are taken in the direction that blames nobody wrongly: a promise counts from when its request was sent, an observation from
//! when it arrived.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

use super::{History, Violation, history};

/// One call and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    pub sent: Duration,
    pub received: Duration,
    /// For messages: client and member.
    pub by: String,
    pub what: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted {
        id: i64,
        ttl: i64,
    },
    /// A TTL of 0: not found.
    KeptAlive {
        id: i64,
        ttl: i64,
    },
    Revoked {
        id: i64,
    },
    /// No answer, or none that says what was done.
    RevokeUnknown {
        id: i64,
    },
    RevokeNotFound {
        id: i64,
    },
    /// A TTL of -1: not found.
    TimeToLive {
        id: i64,
        ttl: i64,
        granted: i64,
    },
}

impl Answer {
    fn id(&self) -> i64 {
        match self {
            Answer::Granted { id, .. }
            | Answer::KeptAlive { id, .. }
            | Answer::Revoked { id }
            | Answer::RevokeUnknown { id }
            | Answer::RevokeNotFound { id }
            | Answer::TimeToLive { id, .. } => *id,
        }
    }
}

/// What is known of leases.
pub struct LeaseEvidence<'a> {
    /// In any order.
    pub exchanges: &'a [Exchange],
    pub history: &'a History,
    /// When any client first saw the events of a revision.
    pub revision_seen: &'a BTreeMap<i64, Duration>,
    /// Revisions that clients wrote, acknowledged: a delete there is no expiry.
    pub written: &'a BTreeSet<i64>,
}

pub fn lease_violations(evidence: &LeaseEvidence<'_>) -> Vec<Violation> {
    let checks: [fn(&LeaseEvidence<'_>) -> Vec<Violation>; 4] =
        [not_too_early, no_life_after_death, whole_at_one_revision, honest_remaining];
    checks.iter().flat_map(|check| check(evidence)).collect()
}

/// When and how a client learned that a lease is gone, with nobody having asked to revoke it by then.
fn deaths(evidence: &LeaseEvidence<'_>) -> BTreeMap<i64, (Duration, String)> {
    let mut deaths: BTreeMap<i64, (Duration, String)> = BTreeMap::new();
    let mut note = |id: i64, at: Duration, how: String| match deaths.get(&id) {
        Some((known, _)) if *known <= at => {}
        _ => {
            deaths.insert(id, (at, how));
        }
    };
    for exchange in evidence.exchanges {
        match exchange.what {
            Answer::KeptAlive { id, ttl: 0 } | Answer::TimeToLive { id, ttl: -1, .. } => {
                note(id, exchange.received, format!("{} was told so", exchange.by));
            }
            _ => {}
        }
    }
    for (revision, leases, _) in detached(evidence) {
        if let Some(at) = evidence.revision_seen.get(&revision) {
            for id in leases {
                note(id, *at, format!("its keys were deleted at revision {revision}"));
            }
        }
    }
    deaths
}

/// Revisions that no client wrote and that deleted keys with leases: the leases, and the keys deleted.
fn detached(evidence: &LeaseEvidence<'_>) -> Vec<(i64, BTreeSet<i64>, BTreeSet<Bytes>)> {
    let mut found = Vec::new();
    for (revision, events) in evidence.history.revisions() {
        if evidence.written.contains(&revision) {
            continue;
        }
        let mut leases = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for event in events.iter().filter(|event| !history::is_put(event)) {
            let lease = event.prev_kv.as_ref().map_or(0, |kv| kv.lease);
            if lease != 0 {
                leases.insert(lease);
                keys.insert(Bytes::copy_from_slice(history::key(event)));
            }
        }
        if !leases.is_empty() {
            found.push((revision, leases, keys));
        }
    }
    found
}

/// No lease is seen to be gone before its TTL has passed since the last acknowledged renewal was sent.
pub fn not_too_early(evidence: &LeaseEvidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (id, (at, how)) in deaths(evidence) {
        let of_it = || evidence.exchanges.iter().filter(move |exchange| exchange.what.id() == id);
        let asked = of_it().any(|exchange| {
            matches!(exchange.what, Answer::Revoked { .. } | Answer::RevokeUnknown { .. })
                && exchange.sent <= at
        });
        if asked {
            continue;
        }
        for renewal in of_it().filter(|exchange| exchange.received <= at) {
            let (Answer::Granted { ttl, .. } | Answer::KeptAlive { ttl, .. }) = renewal.what else {
                continue;
            };
            let promised = renewal.sent + Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
            if ttl > 0 && at < promised {
                let text = format!(
                    "lease {id:x} gone at {at:?} ({how}), {} was promised {ttl} s from {:?}",
                    renewal.by, renewal.sent
                );
                violations.push(Violation::new("lease not too early", text));
            }
        }
    }
    violations
}

/// Once a client was told that a lease is revoked or gone, no request sent afterwards is answered as if it lived, unless it was granted
/// anew.
pub fn no_life_after_death(evidence: &LeaseEvidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut gone: BTreeMap<i64, Duration> =
        deaths(evidence).into_iter().map(|(id, (at, _))| (id, at)).collect();
    for exchange in evidence.exchanges {
        if let Answer::Revoked { id } = exchange.what {
            let at = gone.entry(id).or_insert(exchange.received);
            *at = (*at).min(exchange.received);
        }
    }
    for exchange in evidence.exchanges {
        let (id, lives) = match exchange.what {
            Answer::KeptAlive { id, ttl } => (id, ttl > 0),
            Answer::TimeToLive { id, ttl, .. } => (id, ttl >= 0),
            _ => continue,
        };
        let Some(gone) = gone.get(&id).filter(|gone| lives && exchange.sent > **gone) else { continue };
        let again = evidence.exchanges.iter().any(|grant| {
            matches!(grant.what, Answer::Granted { id: granted, .. } if granted == id)
                && grant.received > *gone
        });
        if !again {
            let text = format!(
                "{} sent at {:?} and was told {:?}, known to be gone since {gone:?}",
                exchange.by, exchange.sent, exchange.what
            );
            violations.push(Violation::new("lease no life after death", text));
        }
    }
    violations
}

/// A lease's keys are deleted all at one revision, and no key carries the lease afterwards.
pub fn whole_at_one_revision(evidence: &LeaseEvidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let deletions: BTreeMap<i64, BTreeSet<i64>> =
        detached(evidence).into_iter().map(|(revision, leases, _)| (revision, leases)).collect();
    let mut keys: BTreeMap<i64, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut gone: BTreeMap<i64, i64> = BTreeMap::new();
    for (revision, events) in evidence.history.revisions() {
        for event in events {
            let key = history::key(event).to_vec();
            if let Some(before) = event.prev_kv.as_ref().filter(|kv| kv.lease != 0) {
                keys.entry(before.lease).or_default().remove(&key);
            }
            let Some(kv) = event.kv.as_ref().filter(|kv| history::is_put(event) && kv.lease != 0) else {
                continue;
            };
            keys.entry(kv.lease).or_default().insert(key);
            if let Some(at) = gone.get(&kv.lease) {
                let text = format!(
                    "{:?} is attached to lease {:x} at {revision}, which ended at {at}",
                    kv.key, kv.lease
                );
                violations.push(Violation::new("lease whole at one revision", text));
            }
        }
        for lease in deletions.get(&revision).into_iter().flatten() {
            gone.insert(*lease, revision);
            let left = keys.get(lease).map_or(0, BTreeSet::len);
            if left > 0 {
                let text = format!("lease {lease:x} ended at {revision}, {left} of its keys are left");
                violations.push(Violation::new("lease whole at one revision", text));
            }
        }
    }
    violations
}

/// Whole seconds a remaining time may be above the granted one: a new leader adds an election timeout, which is at most 50 s and 1 s by
/// default. What tests set is far below.
const EXTENSION_MAX_S: i64 = 3;

/// A remaining time is what was granted at most (and an extension after a change of leaders), and at least what is left of the last
/// acknowledged renewal when the answer arrives.
pub fn honest_remaining(evidence: &LeaseEvidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for exchange in evidence.exchanges {
        let Answer::TimeToLive { id, ttl, granted } = exchange.what else { continue };
        if ttl < 0 {
            continue;
        }
        let mut broken = |text: String| {
            let text = format!("{}: lease {id:x} has {ttl} of {granted} s left; {text}", exchange.by);
            violations.push(Violation::new("lease honest remaining", text));
        };
        if ttl > granted + EXTENSION_MAX_S {
            broken("that is more than was granted".to_owned());
        }
        for renewal in evidence.exchanges {
            let promised = match renewal.what {
                Answer::Granted { id: renewed, ttl } | Answer::KeptAlive { id: renewed, ttl }
                    if renewed == id && renewal.received <= exchange.sent =>
                {
                    ttl
                }
                _ => continue,
            };
            if promised > 0 && promised != granted {
                broken(format!("a renewal was answered with {promised}"));
            }
            let passed = exchange.received.saturating_sub(renewal.sent).as_secs_f64();
            if (ttl as f64) + 1.0 < promised as f64 - passed {
                broken(format!("{} was promised {promised} s, {passed:.1} s before", renewal.by));
            }
        }
    }
    violations
}
