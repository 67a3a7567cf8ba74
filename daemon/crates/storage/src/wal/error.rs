//! Why the log cannot be used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::{LogIndex, Term};

/// A reason not to go on with the log. Cloneable, because a failed write or sync is the answer to every later call as well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// The same, when the reason is a full disk or quota: the operator can help, and everything synced is intact.
    #[error("{action} {}: no space left on the device", path.display())]
    NoSpace {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("create write-ahead log {}: it already holds segments", dir.display())]
    Exists { dir: PathBuf },
    #[error("open write-ahead log {}: it holds no segment", dir.display())]
    Missing { dir: PathBuf },
    #[error("lock {}: another process is using this write-ahead log", path.display())]
    Locked { path: PathBuf },
    #[error(transparent)]
    Damaged(#[from] Box<Damage>),
}

impl WalError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> WalError {
        let (path, source) = (path.to_owned(), Arc::new(source));
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                WalError::NoSpace { action, path, source }
            }
            _ => WalError::Io { action, path, source },
        }
    }

    pub fn is_no_space(&self) -> bool {
        matches!(self, WalError::NoSpace { .. })
    }

    /// The damage found in the log, when that is the reason.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            WalError::Damaged(damage) => Some(damage),
            _ => None,
        }
    }
}

/// Where and how a log contradicts itself. Nothing on disk was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write-ahead log damaged: {} at offset {offset}, log index {index}: {kind}", file.display())]
pub struct Damage {
    pub file: PathBuf,
    /// Start of the frame in question, in bytes from the start of the file.
    pub offset: u64,
    /// The first log index that this log cannot vouch for.
    pub index: LogIndex,
    pub kind: DamageKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    #[error("checksum mismatch, computed {computed:08x}, recorded {recorded:08x}")]
    Checksum { computed: u32, recorded: u32 },
    #[error("frame of {bytes} bytes reaches beyond the end of the file")]
    BeyondFile { bytes: u64 },
    #[error("the file ends inside a frame")]
    Truncated,
    #[error("{what} does not decode")]
    Undecodable { what: &'static str },
    #[error("record of unknown type {number}")]
    UnknownRecord { number: i64 },
    #[error("data behind the end of the log")]
    DataBehindEnd,
    #[error(
        "{fault}; this is no torn write, since intact records that were written after a sync follow at offset {synced_at}"
    )]
    BelowSynced { fault: Box<DamageKind>, synced_at: u64 },
    #[error("entry {found} follows entry {last}")]
    Gap { last: LogIndex, found: LogIndex },
    #[error("term {found} follows term {before}")]
    TermRegress { before: Term, found: Term },
    #[error("entry {index} is replaced although everything up to {commit} was committed")]
    CommittedReplaced { index: LogIndex, commit: LogIndex },
    #[error("metadata differs from that of an earlier segment")]
    MetadataConflict,
    #[error("no metadata record")]
    MetadataMissing,
    #[error("segment {found} follows segment {last}")]
    SequenceGap { last: u64, found: u64 },
    #[error("no segment begins at or below index {snapshot}, where the newest snapshot record points")]
    SegmentMissing { snapshot: LogIndex },
    #[error("no snapshot record at or below the committed index {commit}")]
    SnapshotMissing { commit: LogIndex },
    #[error("snapshot records of different terms for index {snapshot}")]
    SnapshotMismatch { snapshot: LogIndex },
    #[error(
        "the snapshot record has no membership (written by etcd before 3.5: let etcd 3.5 take a snapshot first)"
    )]
    ConfStateMissing,
    #[error("index {commit} is committed but the log ends at {last}")]
    CommitBeyondLog { commit: LogIndex, last: LogIndex },
}
