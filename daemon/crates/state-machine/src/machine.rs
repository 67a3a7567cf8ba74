//! The state machine as a whole: opened from a store, fed by apply, read through [`Reader`].

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use api::etcdserverpb::AlarmMember;
use bytes::{Buf, Bytes};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use types::{ConfState, LogIndex, LogPosition, MemberId, Revision, RowId, Term};

use crate::alarms::Alarms;
use crate::checkpoint::{self, CheckpointError};
use crate::cluster::ClusterFacts;
use crate::compaction::Compactor;
use crate::compaction_hash::Recorded;
use crate::identities::Identities;
use crate::index::{Facts, SUB_MAX};
use crate::leases::{self, Leases};
use crate::membership::{Member, Membership};
use crate::read::Reader;
use crate::rebuild::rebuild;
use crate::recent::RecentChanges;
use crate::rows::{meta, parse_conf_state, parse_coordinate, parse_row};
use crate::state::{NEVER_COMPACTED, Options, Shared, State};
use crate::store::{Store, StoreError, Table};

/// See the crate's text. One owner; readers are handed out with [`StateMachine::reader`].
#[derive(Debug)]
pub struct StateMachine<S> {
    pub(crate) shared: Arc<Shared<S>>,
    pub(crate) compactor: Compactor,
    checkpoint_ignored: Option<CheckpointError>,
    /// Where bringing values inline goes on; None when there is nothing left to bring.
    pub(crate) cold_from: Option<Vec<u8>>,
}

/// Why a store cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("read the state store: {0}")]
    Store(#[from] StoreError),
    #[error("row {id}: {reason}")]
    Row { id: RowId, reason: String },
    #[error("table {table}, key {key:?}: {reason}")]
    Table { table: &'static str, key: String, reason: String },
}

fn bad_pair(table: Table, key: &[u8], reason: impl ToString) -> OpenError {
    OpenError::Table {
        table: table.name(),
        key: String::from_utf8_lossy(key).into_owned(),
        reason: reason.to_string(),
    }
}

/// The `meta` table, understood.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub applied: LogPosition,
    pub conf_state: ConfState,
    /// The decided and the completed compaction; -1 for never.
    pub scheduled: i64,
    pub finished: i64,
}

impl Marks {
    fn load<S: Store>(store: &S) -> Result<Marks, OpenError> {
        let mut marks = Marks { scheduled: NEVER_COMPACTED, finished: NEVER_COMPACTED, ..Marks::default() };
        for (key, value) in store.table(Table::Meta)? {
            let bad = |reason: &str| bad_pair(Table::Meta, &key, reason);
            let number = || {
                let bytes: [u8; 8] = value.as_ref().try_into().map_err(|_| bad("is not eight bytes long"))?;
                Ok::<u64, OpenError>(u64::from_be_bytes(bytes))
            };
            let revision = || {
                Ok::<i64, OpenError>(parse_coordinate(&value).ok_or_else(|| bad("is no revision"))?.main.0)
            };
            match key.as_ref() {
                meta::CONSISTENT_INDEX => marks.applied.index = LogIndex(number()?),
                meta::TERM => marks.applied.term = Term(number()?),
                meta::SCHEDULED_COMPACT => marks.scheduled = revision()?,
                meta::FINISHED_COMPACT => marks.finished = revision()?,
                meta::CONF_STATE => {
                    marks.conf_state =
                        parse_conf_state(&value).map_err(|error| bad_pair(Table::Meta, &key, error))?;
                }
                _ => {}
            }
        }
        Ok(marks)
    }
}

fn load_membership<S: Store>(store: &S, conf_state: ConfState) -> Result<Membership, OpenError> {
    let mut members = Vec::new();
    for (key, value) in store.table(Table::Members)? {
        members.push(Member::from_row(&value).map_err(|error| bad_pair(Table::Members, &key, error))?);
    }
    let mut removed = Vec::new();
    for (key, _) in store.table(Table::MembersRemoved)? {
        let text = std::str::from_utf8(&key).map_err(|error| bad_pair(Table::MembersRemoved, &key, error))?;
        removed.push(text.parse::<MemberId>().map_err(|error| bad_pair(Table::MembersRemoved, &key, error))?);
    }
    Ok(Membership::new(members, removed, conf_state))
}

fn load_alarms<S: Store>(store: &S) -> Result<Alarms, OpenError> {
    let rows: Result<Vec<AlarmMember>, OpenError> = store
        .table(Table::Alarm)?
        .into_iter()
        .map(|(key, _)| AlarmMember::decode(key.clone()).map_err(|error| bad_pair(Table::Alarm, &key, error)))
        .collect();
    Ok(Alarms::load(rows?.into_iter()))
}

fn load_leases<S: Store>(store: &S) -> Result<Leases, OpenError> {
    let rows: Result<Vec<_>, OpenError> = store
        .table(Table::Lease)?
        .into_iter()
        .map(|(key, value)| {
            leases::parse_row(&key, value).map_err(|reason| bad_pair(Table::Lease, &key, reason))
        })
        .collect();
    Ok(Leases::from_rows(rows?.into_iter()))
}

/// A row, decoded and checked.
pub(crate) struct Version {
    pub id: RowId,
    /// None for a tombstone.
    pub facts: Option<Facts>,
    row: Bytes,
    key: Range<usize>,
    value: Range<usize>,
}

impl Version {
    pub fn key(&self) -> &[u8] {
        &self.row[self.key.clone()]
    }

    pub fn value(&self) -> &[u8] {
        &self.row[self.value.clone()]
    }

    /// The value, sharing the row's memory.
    pub fn into_value(self) -> Bytes {
        let Version { mut row, value, .. } = self;
        row.truncate(value.end);
        row.advance(value.start);
        row
    }
}

/// Rows between two words of [`Options::progress`]: some tens of milliseconds of reading.
const PROGRESS_ROWS: u64 = 65_536;

/// Reads every row above `above` in order of revision.
pub(crate) fn scan_rows<S: Store>(
    store: &S,
    above: i64,
    progress: fn(u64),
    each: &mut dyn FnMut(Version),
) -> Result<(), OpenError> {
    let from = RowId { main: Revision(above.saturating_add(1)), sub: i64::MIN };
    let to = RowId { main: Revision(i64::MAX), sub: i64::MAX };
    let mut failed = None;
    let mut read: u64 = 0;
    store.scan(from, to, &mut |id, row| {
        read += 1;
        if read.is_multiple_of(PROGRESS_ROWS) {
            progress(read);
        }
        let reason = if id.main.0 <= 0 || !(0..=SUB_MAX).contains(&id.sub) {
            "is outside the numbers a revision can have"
        } else if let Some(parts) = parse_row(&row.value) {
            let facts = Facts { created: parts.created, version: parts.version, lease: parts.lease };
            let facts = (!row.tombstone).then_some(facts);
            each(Version { id, facts, row: row.value, key: parts.key, value: parts.value });
            return ControlFlow::Continue(());
        } else {
            "is no key-value"
        };
        failed = Some(OpenError::Row { id, reason: reason.to_owned() });
        ControlFlow::Break(())
    })?;
    failed.map_or(Ok(()), Err)
}

/// Whether [`StateMachine::open`] would take the store: reads all of it once and keeps nothing, so that it takes the memory of no state.
///
/// # Errors
/// As `open`.
pub fn check<S: Store>(store: &S) -> Result<(), OpenError> {
    let marks = Marks::load(store)?;
    load_membership(store, marks.conf_state)?;
    load_alarms(store)?;
    load_leases(store)?;
    ClusterFacts::load(&store.table(Table::Cluster)?);
    scan_rows(store, 0, |_| {}, &mut |_| {})
}

impl<S: Store> StateMachine<S> {
    /// Rebuilds the index from the store. With `checkpoint`, the bytes of a former [`Reader::checkpoint`], only rows above it are
    /// scanned; a checkpoint that does not fit is reported by [`StateMachine::checkpoint_ignored`] and the whole store is scanned.
    ///
    /// # Errors
    /// When the store cannot be read or holds what apply would never have written.
    pub fn open(
        store: Arc<S>,
        options: Options,
        checkpoint: Option<&[u8]>,
    ) -> Result<StateMachine<S>, OpenError> {
        let marks = Marks::load(&*store)?;
        let membership = load_membership(&*store, marks.conf_state.clone())?;
        let pairs = store.table(Table::Meta)?;
        let (recorded, hashes, unhashed) = Recorded::load(&pairs, marks.finished);
        let identities =
            Identities::load(&pairs).map_err(|(key, reason)| bad_pair(Table::Meta, &key, reason))?;
        let alarms = load_alarms(&*store)?;
        let mut leases = load_leases(&*store)?;
        let cluster = ClusterFacts::load(&store.table(Table::Cluster)?);
        let inline_bytes_max = options.inline_value_bytes_max;
        let mut checkpoint_ignored = None;
        let loaded = checkpoint.and_then(|bytes| {
            let loaded = checkpoint::load(bytes, &*store, &marks, inline_bytes_max);
            loaded.map_err(|error| checkpoint_ignored = Some(error)).ok()
        });
        let is_warm = loaded.is_none();
        let (index, newest) = match loaded {
            Some((mut index, mut newest)) => {
                scan_rows(&*store, newest, options.progress, &mut |row| {
                    newest = row.id.main.0;
                    index.restore(row.key(), row.id, row.facts, row.value());
                })?;
                (index, newest)
            }
            None => rebuild(&*store, inline_bytes_max, options.progress)?,
        };
        leases.attach_all(&index);
        // Compaction never lowers the revision, not even when it removed the newest row and the process died in it (AP07).
        let revision = newest.max(marks.scheduled).max(marks.finished).max(1);
        let state = State {
            index,
            leases,
            recent: RecentChanges::starting_at(revision),
            revision,
            compacted: marks.scheduled.max(marks.finished),
            removing: marks.scheduled.max(marks.finished),
            unhashed,
            applied: marks.applied,
            membership,
            identities,
            alarms,
            cluster,
        };
        let shared = Arc::new(Shared {
            store,
            quota_backend_bytes: AtomicI64::new(options.quota_backend_bytes),
            options,
            state: RwLock::new(state),
            hashes: Mutex::new(hashes),
        });
        let compactor = Compactor::new(marks.finished, recorded);
        let cold_from = if is_warm { None } else { Some(Vec::new()) };
        Ok(StateMachine { shared, compactor, checkpoint_ignored, cold_from })
    }

    /// Why the checkpoint given to [`StateMachine::open`] was not used, if it was not.
    pub fn checkpoint_ignored(&self) -> Option<&CheckpointError> {
        self.checkpoint_ignored.as_ref()
    }

    /// The position of the last entry that is part of the state.
    pub fn applied(&self) -> LogPosition {
        self.shared.state.read().applied
    }

    /// The members of the raft group as of [`StateMachine::applied`].
    pub fn conf_state(&self) -> ConfState {
        self.shared.state.read().membership.conf_state().clone()
    }

    pub fn reader(&self) -> Reader<S> {
        Reader { shared: Arc::clone(&self.shared) }
    }

    pub fn store(&self) -> &Arc<S> {
        &self.shared.store
    }
}
