//! Makes the first state of a new cluster out of a backup: the same rows and tables, but other members, the position that the new cluster's
//! log begins with, and on request revisions that are ahead of everything the old cluster can have given away.
//!
//! Not here: the new members' ids and logs, and the directory around the state (daemon).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use dbfile::{DIGEST_BYTES, check_digest, has_digest, sha256};
use identity::Unique;
use state_machine::identities;
use state_machine::membership::Member;
use state_machine::rows::{self, meta};
use state_machine::store::{StoreError, Table};
use types::{ConfState, LogPosition, MemberId, Revision, RowId};

use super::etcd_db::{DbFile, ReadError};
use super::install::{Content, content};
use crate::state_store::{self, FjallStore, OpenError, Piece, StoreOptions, TABLE_KEY_BYTES_MAX, Take};

/// Revisions that a restored cluster may at most begin with: half of all there are, so that a cluster can be restored many times.
const REVISION_MAX: i64 = i64::MAX / 2;

/// What becomes of the backup.
#[derive(Clone, Debug)]
pub struct Restoration {
    /// The end of the log that the new cluster begins with.
    pub position: LogPosition,
    /// All of them vote.
    pub members: Vec<Member>,
    /// Added to the newest revision.
    pub bump: Option<u64>,
    /// The end of history moves with it: watches and reads below are told "compacted".
    pub mark_compacted: bool,
    /// Takes a file without a digest, or with a wrong one.
    pub skip_hash_check: bool,
}

/// What is in the new state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// What it was made of, as members compare it. The state says so too.
    pub mark: Option<identity::Restored>,
    /// The life of the cluster that was backed up.
    pub parent: Option<Unique>,
    pub rows: u64,
    /// The newest one of the backup.
    pub revision_before: Revision,
    /// The one that the new cluster begins with.
    pub revision: Revision,
    pub alarms: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("read the backup")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Bad(#[from] ReadError),
    #[error("the SHA-256 at its end does not match the database before it")]
    Digest,
    #[error("it has no SHA-256 at its end: a copy of a database, not a saved backup, or its end is missing")]
    NoDigest,
    #[error("{0}")]
    Content(String),
    #[error("revision {newest} and {by} more are too many")]
    Bump { newest: i64, by: u64 },
    #[error("the new state is not what the backup holds: {0}")]
    Verify(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Builds the state below `root`, which holds none yet. Whatever goes wrong, the caller removes `root`.
pub fn restore(
    root: &Path,
    backup: &File,
    how: &Restoration,
    options: &StoreOptions,
) -> Result<Restored, RestoreError> {
    match check_digest(backup).map_err(RestoreError::Io)? {
        Some(true) => {}
        _ if how.skip_hash_check => {}
        Some(false) => return Err(RestoreError::Digest),
        None => return Err(RestoreError::NoDigest),
    }
    let source = DbFile::open(backup.try_clone().map_err(RestoreError::Io)?)?;
    let partial = state_store::begin_generation(root)?;
    // A full disk here is an answer to the operator.
    let options = StoreOptions { on_fatal: None, ..options.clone() };
    let open = || FjallStore::open_dir(partial.path(), &options, None);
    let mut expected = Content::default();
    let mut restored = Restored::default();
    let digest = database_digest(backup).map_err(RestoreError::Io)?;
    open()?.import(how.position, |take| feed(&source, how, &digest, &mut expected, &mut restored, take))?;
    // Opened anew, so that what is compared is what the first start will find.
    let store = open()?;
    let view = store.view()?;
    if super::View::position(&view) != how.position {
        return Err(RestoreError::Verify("another position"));
    }
    if content(&view)? != expected {
        return Err(RestoreError::Verify("other rows or tables"));
    }
    drop((view, store));
    restored.rows = expected.rows;
    partial.publish()?;
    Ok(restored)
}

/// In hexadecimal, and equal for a saved backup and for the bare database that it was made of.
fn database_digest(backup: &File) -> io::Result<String> {
    let len = backup.metadata()?.len();
    let len = if has_digest(len) { len - DIGEST_BYTES } else { len };
    Ok(sha256(backup, len)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn feed(
    source: &DbFile,
    how: &Restoration,
    digest: &str,
    content: &mut Content,
    restored: &mut Restored,
    take: &mut Take<'_>,
) -> Result<(), RestoreError> {
    let mut fault: Option<RestoreError> = None;
    let mut newest = 0;
    source.each_row(&mut |id, tombstone, value| {
        if !rows::is_row(id, value) {
            fault = Some(RestoreError::Content(format!("row {id} is no key-value")));
            return ControlFlow::Break(());
        }
        newest = id.main.0;
        content.row(id, tombstone, value);
        if let Err(error) = take(Piece::Row { id, tombstone, value }) {
            fault = Some(error.into());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    if let Some(fault) = fault {
        return Err(fault);
    }
    newest = newest.max(compacted(source)?);
    restored.revision_before = Revision(newest.max(1));
    restored.revision = restored.revision_before;
    let mut mark = None;
    if let Some(by) = how.bump {
        let reached = i64::try_from(by).ok().and_then(|by| newest.checked_add(by));
        let main = reached.filter(|main| *main <= REVISION_MAX).ok_or(RestoreError::Bump { newest, by })?;
        // etcd's form of it: a row without a key, which only says that the revision was used.
        let id = RowId { main: Revision(main), sub: 0 };
        content.row(id, false, &[]);
        take(Piece::Row { id, tombstone: false, value: &[] })?;
        restored.revision = Revision(main);
        mark = how.mark_compacted.then_some(id);
    }
    let made_of = identity::Restored {
        sha256: digest.to_owned(),
        revision: restored.revision.0,
        is_compacted: mark.is_some(),
    };
    for table in Table::ALL {
        let pairs = edited(source, table, how, mark, &made_of)?;
        if table == Table::Meta {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            restored.parent = identities::parent(&pairs).map_err(RestoreError::Content)?;
        }
        for (key, value) in pairs {
            if key.len() > TABLE_KEY_BYTES_MAX {
                let (name, bytes) = (table.name(), key.len());
                return Err(RestoreError::Content(format!("bucket {name}: a key of {bytes} bytes")));
            }
            restored.alarms += u64::from(table == Table::Alarm);
            content.pair(table, &key, &value);
            take(Piece::Pair { table, key: &key, value: &value })?;
        }
    }
    restored.mark = Some(made_of);
    Ok(())
}

/// The highest revision that a compaction went to. The row of that revision may be gone, and the revision was given out all the same.
fn compacted(source: &DbFile) -> Result<i64, ReadError> {
    let mut newest = 0;
    source.each_pair(Table::Meta, &mut |key, value| {
        if [meta::SCHEDULED_COMPACT, meta::FINISHED_COMPACT].contains(&key)
            && let Some(id) = rows::parse_coordinate(value)
        {
            newest = newest.max(id.main.0);
        }
        ControlFlow::Continue(())
    })?;
    Ok(newest)
}

/// The pairs of a table as the new cluster has them.
fn edited(
    source: &DbFile,
    table: Table,
    how: &Restoration,
    mark: Option<RowId>,
    made_of: &identity::Restored,
) -> Result<BTreeMap<Bytes, Bytes>, RestoreError> {
    let mut pairs: BTreeMap<Bytes, Bytes> = match table {
        // Members of the old cluster are strangers to the new one, those that left it too.
        Table::Members | Table::MembersRemoved => BTreeMap::new(),
        Table::Meta => identities::reborn(source.table(table)?).into_iter().collect(),
        _ => source.table(table)?.into_iter().collect(),
    };
    match table {
        Table::Members => {
            let row = |member: &Member| (member.id.to_string().into(), member.to_row().into());
            pairs.extend(how.members.iter().map(row));
        }
        Table::Meta => {
            for position in [meta::CONSISTENT_INDEX, meta::TERM] {
                pairs.remove(position);
            }
            let voters: Vec<MemberId> = how.members.iter().map(|member| member.id).collect();
            let conf_state = rows::conf_state_json(&ConfState { voters, ..ConfState::default() });
            pairs.insert(Bytes::from_static(meta::CONF_STATE), conf_state.into());
            pairs.extend([identities::restored(made_of)]);
            if let Some(mark) = mark {
                let mark = Bytes::copy_from_slice(&rows::coordinate(mark));
                pairs.insert(Bytes::from_static(meta::SCHEDULED_COMPACT), mark);
            }
        }
        _ => {}
    }
    Ok(pairs)
}
