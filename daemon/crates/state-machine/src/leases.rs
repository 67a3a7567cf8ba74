//! Leases as the log knows them: which exist, the time to live each was granted, the remainder that a checkpoint recorded, and the
//! keys attached to each.
//!
//! Attachment is a function of the keys: a lease holds exactly the keys that exist and name it. So it needs no rows of its own, and a
//! start finds it again by looking through the index. A key can name a lease that has no row only in foreign or damaged data; it is
//! remembered under that number all the same, so that a lease granted under it later has the same keys before and after a restart.
//!
//! Rows of the `lease` table are etcd's, byte for byte: the id in eight bytes, big-endian, and a `leasepb.Lease`.
//!
//! Not here: time. When a lease ends is decided by the leader's lessor, which asks for a revocation through the log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use api::error::EtcdError;
use api::leasepb;
use bytes::Bytes;
use prost::Message;
use types::LeaseId;

use crate::index::Index;
use crate::read::Reader;
use crate::store::Store;

/// The longest time to live, in seconds; etcd's, chosen there so that it fits a signed 64-bit count of nanoseconds.
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// The shortest time to live that apply grants, in seconds. etcd raises to a minimum that follows from a member's election timeout when
/// it applies; here the proposer has done that before the log, and apply, which must not decide by a setting of one member, only
/// sees to it that no lease is over before it begins.
pub const LEASE_TTL_MIN: i64 = 1;

/// Leases or keys copied under one hold of the lock: some tens of microseconds, which is what apply may wait for a reader.
const COPIED_PER_HOLD: usize = 1024;

/// What the state says of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseFacts {
    pub id: LeaseId,
    /// Seconds.
    pub granted_ttl: i64,
    /// Seconds that were left when it was last checkpointed; 0, or whatever else is not positive, means that none are recorded.
    pub remaining_ttl: i64,
}

/// What an entry did to the table of leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// `ttl` is what was granted, in seconds.
    Granted { id: LeaseId, ttl: i64 },
    /// Its keys, if it had any, are deleted by the same entry.
    Revoked { id: LeaseId },
    /// `remaining_ttl` as in [`LeaseFacts`].
    Checkpointed { id: LeaseId, remaining_ttl: i64 },
}

/// Attached keys. Most leases have none or one, and a million leases must be small; a large set must not cost its length per change.
#[derive(Debug, Default)]
enum Keys {
    #[default]
    None,
    One(Box<[u8]>),
    #[expect(clippy::box_collection, reason = "the many leases that do not have it pay 8 bytes less")]
    Many(Box<BTreeSet<Box<[u8]>>>),
}

impl Keys {
    fn insert(&mut self, key: &[u8]) {
        match self {
            Keys::None => *self = Keys::One(Box::from(key)),
            Keys::One(only) if **only == *key => {}
            Keys::One(only) => {
                let both = [std::mem::take(only), Box::from(key)];
                *self = Keys::Many(Box::new(BTreeSet::from(both)));
            }
            Keys::Many(keys) => {
                keys.insert(Box::from(key));
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        match self {
            Keys::One(only) if **only == *key => *self = Keys::None,
            Keys::None | Keys::One(_) => {}
            Keys::Many(keys) => {
                keys.remove(key);
                if keys.is_empty() {
                    *self = Keys::None;
                }
            }
        }
    }

    fn into_sorted(self) -> Vec<Bytes> {
        match self {
            Keys::None => Vec::new(),
            Keys::One(only) => vec![Bytes::from(only)],
            Keys::Many(keys) => keys.into_iter().map(Bytes::from).collect(),
        }
    }

    /// Up to `max` keys above `after`, ascending.
    fn copy(&self, after: Option<&[u8]>, max: usize, out: &mut Vec<Bytes>) {
        match self {
            Keys::None => {}
            Keys::One(only) => {
                if after.is_none_or(|after| **only > *after) {
                    out.push(Bytes::copy_from_slice(only));
                }
            }
            Keys::Many(keys) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let keys = keys.range::<[u8], _>((from, Bound::Unbounded)).take(max);
                out.extend(keys.map(|key| Bytes::copy_from_slice(key)));
            }
        }
    }
}

#[derive(Debug)]
struct Lease {
    ttl: i64,
    remaining_ttl: i64,
    keys: Keys,
}

impl Lease {
    fn facts(&self, id: i64) -> LeaseFacts {
        LeaseFacts { id: LeaseId(id), granted_ttl: self.ttl, remaining_ttl: self.remaining_ttl }
    }
}

// What a million leases cost; the example `apply_bench` measures it.
const _: () = assert!(size_of::<Lease>() == 40);

/// See the module text. Trees, not hash maps: they grow without a pause to move everything, and their order is the same everywhere.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: BTreeMap<i64, Lease>,
    /// Keys by a lease that is not granted.
    orphans: BTreeMap<i64, Keys>,
}

impl Leases {
    /// From rows, without keys. A time to live below the minimum counts as the minimum, as etcd reads its rows.
    pub fn from_rows(rows: impl Iterator<Item = leasepb::Lease>) -> Leases {
        let lease = |row: leasepb::Lease| {
            let (ttl, remaining_ttl) = (row.ttl.max(LEASE_TTL_MIN), row.remaining_ttl);
            (row.id, Lease { ttl, remaining_ttl, keys: Keys::None })
        };
        Leases { granted: rows.map(lease).collect(), orphans: BTreeMap::new() }
    }

    /// Attaches what the index says.
    pub fn attach_all(&mut self, index: &Index) {
        let _ = index.walk(&[], None, |key, record| -> std::ops::ControlFlow<()> {
            if record.is_live() {
                self.attach(record.facts().lease, key);
            }
            std::ops::ControlFlow::Continue(())
        });
    }

    pub fn exists(&self, id: i64) -> bool {
        self.granted.contains_key(&id)
    }

    /// Answers the row. As etcd's lessor judges, in its order; id 0 means "no lease" and cannot be granted, any other number can.
    ///
    /// # Errors
    /// `LeaseNotFound` for id 0, `LeaseTtlTooLarge`, `LeaseExist`.
    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<leasepb::Lease, EtcdError> {
        if id == LeaseId::NONE.0 {
            return Err(EtcdError::LeaseNotFound);
        }
        if ttl > LEASE_TTL_MAX {
            return Err(EtcdError::LeaseTtlTooLarge);
        }
        if self.exists(id) {
            return Err(EtcdError::LeaseExist);
        }
        let ttl = ttl.max(LEASE_TTL_MIN);
        let keys = self.orphans.remove(&id).unwrap_or_default();
        self.granted.insert(id, Lease { ttl, remaining_ttl: 0, keys });
        Ok(leasepb::Lease { id, ttl, remaining_ttl: 0 })
    }

    /// Takes the lease away and answers its keys, ascending, which the caller deletes.
    pub fn revoke(&mut self, id: i64) -> Option<Vec<Bytes>> {
        self.granted.remove(&id).map(|lease| lease.keys.into_sorted())
    }

    /// Answers the row; None when there is no such lease.
    pub fn checkpoint(&mut self, id: i64, remaining_ttl: i64) -> Option<leasepb::Lease> {
        let lease = self.granted.get_mut(&id)?;
        lease.remaining_ttl = remaining_ttl;
        Some(leasepb::Lease { id, ttl: lease.ttl, remaining_ttl })
    }

    /// The key named `from` so far and names `to` now; 0 is none.
    pub fn reattach(&mut self, key: &[u8], from: i64, to: i64) {
        if from != to {
            self.detach(from, key);
            self.attach(to, key);
        }
    }

    fn attach(&mut self, id: i64, key: &[u8]) {
        if id == LeaseId::NONE.0 {
            return;
        }
        match self.granted.get_mut(&id) {
            Some(lease) => lease.keys.insert(key),
            None => self.orphans.entry(id).or_default().insert(key),
        }
    }

    fn detach(&mut self, id: i64, key: &[u8]) {
        if id == LeaseId::NONE.0 {
            return;
        }
        if let Some(lease) = self.granted.get_mut(&id) {
            lease.keys.remove(key);
        } else if let Some(keys) = self.orphans.get_mut(&id) {
            keys.remove(key);
            if matches!(keys, Keys::None) {
                self.orphans.remove(&id);
            }
        }
    }
}

/// The key of a lease's row.
pub(crate) fn row_key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// A row of the `lease` table, if it is one.
pub(crate) fn parse_row(key: &[u8], value: Bytes) -> Result<leasepb::Lease, String> {
    let row = leasepb::Lease::decode(value).map_err(|error| error.to_string())?;
    if key != row.id.to_be_bytes() {
        return Err(format!("is the row of lease {}", LeaseId(row.id)));
    }
    Ok(row)
}

impl<S: Store> Reader<S> {
    pub fn lease(&self, id: LeaseId) -> Option<LeaseFacts> {
        self.shared.state.read().leases.granted.get(&id.0).map(|lease| lease.facts(id.0))
    }

    /// Attached keys, ascending; None when there is no such lease. About a thousand keys are copied under one hold of the lock: of a
    /// larger lease the answer can show a change of keys in part when it is applied meanwhile.
    pub fn lease_keys(&self, id: LeaseId) -> Option<Vec<Bytes>> {
        let mut keys = Vec::new();
        loop {
            let before = keys.len();
            let after: Option<Bytes> = keys.last().cloned();
            let state = self.shared.state.read();
            state.leases.granted.get(&id.0)?.keys.copy(after.as_deref(), COPIED_PER_HOLD, &mut keys);
            drop(state);
            if keys.len() - before < COPIED_PER_HOLD {
                return Some(keys);
            }
        }
    }

    /// All leases, ascending by id. About a thousand are copied under one hold of the lock, so one that is granted or revoked meanwhile
    /// may be in the answer or not; on the thread that applies, the answer is exact.
    pub fn leases(&self) -> Vec<LeaseFacts> {
        let mut leases: Vec<LeaseFacts> = Vec::with_capacity(self.lease_count());
        loop {
            let before = leases.len();
            let from = leases.last().map_or(Bound::Unbounded, |last| Bound::Excluded(last.id.0));
            let state = self.shared.state.read();
            let copied = state.leases.granted.range((from, Bound::Unbounded)).take(COPIED_PER_HOLD);
            leases.extend(copied.map(|(id, lease)| lease.facts(*id)));
            drop(state);
            if leases.len() - before < COPIED_PER_HOLD {
                return leases;
            }
        }
    }

    pub fn lease_count(&self) -> usize {
        self.shared.state.read().leases.granted.len()
    }
}
