//! HashKV and Hash: checksums that members, and etcd's own, compare. They cover the exact bytes of rows, so they are also the
//! sharpest test that ours are etcd's.
//!
//! Both read the store in pieces beside apply. At a revision that was compacted to, the answer may be one that was stored then:
//! `compaction_hash`.

use std::ops::ControlFlow;

use api::error::EtcdError;
use bytes::Bytes;
use types::{Revision, RowId};

use crate::index::Version;
use crate::range::after;
use crate::read::Reader;
use crate::rows::{RowKey, meta};
use crate::state::{State, decode_row, store_failed};
use crate::store::{Store, StoredRow, Table};

/// Rows read from the store and then judged under one hold of the index lock.
const ROWS_PER_HOLD: usize = 512;
/// Keys looked at under one hold of the index lock.
const KEYS_PER_HOLD: usize = 4096;
/// Starts before removals that keep coming in between are answered as a compaction.
const RESTARTS_MAX: usize = 8;
/// The bucket of rows; its name enters both checksums.
const ROWS_NAME: &[u8] = b"key";

/// An answer of HashKV. Equal members give equal hashes at equal `hash_revision` and `compact_revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// -1 when never compacted.
    pub compact_revision: Revision,
    /// The revision that was hashed.
    pub hash_revision: Revision,
    /// The store's revision when it began, for the header.
    pub current_revision: Revision,
}

impl<S: Store> Reader<S> {
    /// The checksum of the history up to `revision`, 0 for the current one. Of one of the last compactions it is the one that was
    /// stored with it. Below zero there is no history, and that has a checksum too, as in etcd.
    ///
    /// # Errors
    /// `Compacted` below the compact revision, `FutureRev` above the current one.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, EtcdError> {
        let stored = self.shared.hashes.lock().find(revision);
        if let Some((span, hash)) = stored {
            return Ok(HashKv {
                hash,
                compact_revision: Revision(span.after),
                hash_revision: Revision(span.through),
                current_revision: self.revision(),
            });
        }
        for _ in 0..RESTARTS_MAX {
            let (target, compacted, current) = {
                let state = self.shared.state.read();
                if revision > 0 && revision < state.compacted {
                    return Err(EtcdError::Compacted);
                }
                if revision > state.revision {
                    return Err(EtcdError::FutureRev);
                }
                let target = if revision == 0 { state.revision } else { revision };
                (target, state.compacted, state.revision)
            };
            // With nothing alive at the target etcd filters nothing, so that it hashes what the compaction left: the living newest
            // of each key at the compact revision.
            let hash = if target < 0 {
                crc32c::crc32c(ROWS_NAME)
            } else {
                let judged_at = if self.keeps_anything(target, false) { target } else { compacted };
                self.hash_up_to(Keep { target, compacted, judged_at }, &mut || true)
            };
            // What was only decided meanwhile took nothing away yet.
            if self.shared.state.read().removing <= compacted {
                return Ok(HashKv {
                    hash,
                    compact_revision: Revision(compacted),
                    hash_revision: Revision(target),
                    current_revision: Revision(current),
                });
            }
        }
        Err(EtcdError::Compacted)
    }

    /// The checksum of everything this member stores, local marks left out. For tests of equality between stores at rest: entries
    /// applied meanwhile make it a mixture.
    pub fn hash(&self) -> u32 {
        let mut hash = 0;
        for table in Table::ALL {
            if table == Table::Lease {
                hash = self.hash_rows(crc32c::crc32c_append(hash, ROWS_NAME), None, &mut || true);
            }
            hash = crc32c::crc32c_append(hash, table.name().as_bytes());
            for (key, value) in self.shared.store.table(table).unwrap_or_else(|error| store_failed(error)) {
                // Our own pairs are left out too: etcd, which has none, hashes the same log to the same number.
                let is_local = [meta::CONSISTENT_INDEX, meta::TERM, meta::STORAGE_VERSION]
                    .contains(&key.as_ref())
                    || key.starts_with(meta::OWN_PREFIX);
                if table != Table::Meta || !is_local {
                    hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &value);
                }
            }
        }
        hash
    }

    /// The checksum over rows. `goes_on` is asked before each piece; once it says no the answer means nothing.
    pub(crate) fn hash_up_to(&self, keep: Keep, goes_on: &mut dyn FnMut() -> bool) -> u32 {
        self.hash_rows(crc32c::crc32c(ROWS_NAME), Some(keep), goes_on)
    }

    /// Whether any key has a value at `at`, or, with `tombstones`, was deleted at it.
    pub(crate) fn keeps_anything(&self, at: i64, tombstones: bool) -> bool {
        let keeps = |version: Version| !version.is_dead() || tombstones && version.main() == at;
        let mut from = Vec::new();
        loop {
            let mut visited = 0;
            let stopped = self.shared.state.read().index.walk(&from, None, |key, record| {
                if record.at(at).is_some_and(keeps) {
                    return ControlFlow::Break(None);
                }
                visited += 1;
                if visited == KEYS_PER_HOLD {
                    ControlFlow::Break(Some(after(key)))
                } else {
                    ControlFlow::Continue(())
                }
            });
            match stopped {
                ControlFlow::Break(None) => return true,
                ControlFlow::Break(Some(next)) => from = next,
                ControlFlow::Continue(()) => return false,
            }
        }
    }

    fn hash_rows(&self, mut hash: u32, keep: Option<Keep>, goes_on: &mut dyn FnMut() -> bool) -> u32 {
        let last = keep.as_ref().map_or(i64::MAX, |keep| keep.target);
        let to = RowId { main: Revision(last), sub: i64::MAX };
        let mut from = RowId { main: Revision(i64::MIN), sub: i64::MIN };
        while goes_on() {
            let mut rows: Vec<(RowId, StoredRow)> = Vec::with_capacity(ROWS_PER_HOLD);
            self.shared
                .store
                .scan(from, to, &mut |id, row| {
                    rows.push((id, row));
                    if rows.len() == ROWS_PER_HOLD {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .unwrap_or_else(|error| store_failed(error));
            let Some((last, _)) = rows.last() else { return hash };
            from = RowId { main: last.main, sub: last.sub.saturating_add(1) };
            let is_end = rows.len() < ROWS_PER_HOLD;
            let taken = keep.as_ref().map(|keep| keep.judge(&rows, &self.shared.state.read()));
            for (at, (id, row)) in rows.iter().enumerate() {
                if taken.as_ref().is_none_or(|taken| taken[at]) {
                    hash = crc32c::crc32c_append(hash, RowKey::new(*id, row.tombstone).as_bytes());
                    hash = crc32c::crc32c_append(hash, &row.value);
                }
            }
            if is_end {
                break;
            }
        }
        hash
    }
}

/// Which rows enter HashKV: all above the compact revision; at and below it those that are the living newest of their key, so that
/// it does not matter how far removal has come.
pub(crate) struct Keep {
    pub target: i64,
    pub compacted: i64,
    /// The revision at which rows at and below the compact revision must be the newest.
    pub judged_at: i64,
}

impl Keep {
    fn judge(&self, rows: &[(RowId, StoredRow)], state: &State) -> Vec<bool> {
        let takes = |(id, row): &(RowId, StoredRow)| {
            if id.main.0 > self.compacted {
                return true;
            }
            if row.tombstone && id.main.0 == self.compacted {
                return false;
            }
            let key: Bytes = decode_row(*id, row).key;
            let newest = state.index.get(&key).and_then(|record| record.at(self.judged_at));
            newest.is_some_and(|newest| newest.id() == *id && !newest.is_dead())
        };
        rows.iter().map(takes).collect()
    }
}
