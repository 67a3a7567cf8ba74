//! What apply changes and readers see, under one lock, and how both meet the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::mvccpb::KeyValue;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use types::{LogPosition, RowId};

use crate::alarms::Alarms;
use crate::cluster::ClusterFacts;
use crate::compaction_hash::{CompactionHashes, Span};
use crate::identities::Identities;
use crate::index::Index;
use crate::leases::Leases;
use crate::membership::Membership;
use crate::recent::RecentChanges;
use crate::store::{Store, StoreError, StoredRow};

/// The compact revision of a store that was never compacted, as etcd reports it.
pub const NEVER_COMPACTED: i64 = -1;

/// Newest values kept in memory by default: most stores fit whole, a large one spills to disk before memory gets scarce.
pub const INLINE_VALUE_BYTES_MAX_DEFAULT: u64 = 512 * 1024 * 1024;

/// etcd's quota when none is set.
pub const QUOTA_BACKEND_BYTES_DEFAULT: i64 = 2 * 1024 * 1024 * 1024;

/// Settings of the state machine. Local: none of them decides what an entry does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations of one txn, nested ones included; for `validate`, not for apply.
    pub max_txn_ops: usize,
    /// Newest values stay in memory while all of them together take at most this much.
    pub inline_value_bytes_max: u64,
    /// As the flag: 0 is the default of 2 GiB, negative is none. Local: only answers depend on it, never the state.
    pub quota_backend_bytes: i64,
    /// Told how many rows were read so far while the index is made from them, now and then: a large state takes its time to open.
    pub progress: fn(u64),
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_txn_ops: types::limits::TXN_OPS_MAX_DEFAULT,
            inline_value_bytes_max: INLINE_VALUE_BYTES_MAX_DEFAULT,
            quota_backend_bytes: 0,
            progress: |_| {},
        }
    }
}

impl<S> Shared<S> {
    /// The quota in bytes; None when there is none.
    pub(crate) fn quota(&self) -> Option<u64> {
        match self.quota_backend_bytes.load(Ordering::Relaxed) {
            0 => Some(QUOTA_BACKEND_BYTES_DEFAULT as u64),
            bytes => u64::try_from(bytes).ok(),
        }
    }
}

/// Replicated state. One write lock covers all of it, so a reader never sees data apart from the position it belongs to.
#[derive(Debug)]
pub(crate) struct State {
    pub index: Index,
    pub leases: Leases,
    pub recent: RecentChanges,
    pub revision: i64,
    pub compacted: i64,
    /// How far rows are being removed, or are gone; at most `compacted`.
    pub removing: i64,
    /// Compactions whose rows are still all there, oldest first; their hashes are due before anything is removed.
    pub unhashed: VecDeque<Span>,
    pub applied: LogPosition,
    pub membership: Membership,
    pub identities: Identities,
    pub alarms: Alarms,
    pub cluster: ClusterFacts,
}

#[derive(Debug)]
pub(crate) struct Shared<S> {
    pub store: Arc<S>,
    pub options: Options,
    /// As in `options` at first; it may change while the machine runs.
    pub quota_backend_bytes: AtomicI64,
    pub state: RwLock<State>,
    /// Taken for a moment only, never together with another lock.
    pub hashes: Mutex<CompactionHashes>,
}

/// What [`store_failed`] panics with, so that the process can tell a disk that failed from a mistake of ours.
#[derive(Debug, thiserror::Error)]
#[error("state store: {0}")]
pub struct StoreFailure(StoreError);

/// A disk that fails is not an answer to anybody: the member ends here rather than guess.
pub(crate) fn store_failed(error: StoreError) -> ! {
    std::panic::panic_any(StoreFailure(error))
}

pub(crate) fn fetch<S: Store>(store: &S, ids: &[RowId]) -> Vec<Option<StoredRow>> {
    if ids.is_empty() {
        return Vec::new();
    }
    let rows = store.rows(ids).unwrap_or_else(|error| store_failed(error));
    assert_eq!(rows.len(), ids.len(), "the store answers every row it is asked for");
    rows
}

pub(crate) fn decode_row(id: RowId, row: &StoredRow) -> KeyValue {
    // Rows were written by this crate or checked when they were imported; one that does not decode is a damaged disk.
    KeyValue::decode(row.value.clone()).unwrap_or_else(|error| panic!("row {id} is no key-value: {error}"))
}
