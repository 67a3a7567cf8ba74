//! The write-ahead log: the raft log of one member on disk, in etcd's framing, so that etcd's own tools read it and a log written
//! by etcd is opened here.
//!
//! A directory holds *segments*, files of [`SEGMENT_BYTES`] named by a sequence number and the first log index that may be new in
//! them. A segment is a sequence of frames, each one record: METADATA (who we are), ENTRY, STATE (term, vote, commit), SNAPSHOT (the
//! log may be read from here) and CRC. The checksum is a running CRC-32C over all data of the log, so no frame can be lost or
//! exchanged unseen. Space is written with zeros ahead of use by a background thread (`keeper`), which makes a later fdatasync free
//! of metadata updates.
//!
//! The log is write-only while the member runs; it is read once, by [`Wal::open`]. What may be cut from its end there and what is
//! damage is decided in `recover` and `tail`:
//!
//! * **A torn tail** is what power loss leaves of writes that were never synced: missing bytes at the end, or 512-byte sectors that
//!   are still zero. It is copied aside, cut and reported as a [`Repair`].
//! * **Damage** is everything else, and every torn-looking place behind which synced data follows. It is refused with file, offset
//!   and log index ([`Damage`]); nothing is changed on disk.
//!
//! To tell the two apart, each group of records that follows a completed sync begins with a CRC record, a *sync mark*: whatever
//! stands before an intact mark was on disk. etcd's readers take a CRC record at any place as a check of the chain.
//!
//! Not here: what entries mean, when to sync (node), the state store's own position (state_store).

mod codec;
mod disk;
mod error;
mod frames;
mod inspect;
mod keeper;
mod log;
mod recover;
mod segment;
mod tail;
mod zeroed;

use std::path::PathBuf;
use std::sync::Arc;

use identity::Unique;
use types::{ClusterId, ConfState, Entry, HardState, LogIndex, LogPosition, MemberId};

pub use disk::{Disk, SystemDisk};
pub use error::{Damage, DamageKind, WalError};
pub use inspect::{Inspected, InspectedRecord, inspect};
pub use log::Wal;

/// Size of a segment as in etcd (64 million, not 64 MiB).
pub const SEGMENT_BYTES: u64 = 64_000_000;

/// Segments kept before released ones are deleted, as etcd's `max-wals`.
pub const SEGMENTS_KEPT_DEFAULT: usize = 5;

/// Whose log this is: the METADATA record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalMetadata {
    pub member_id: MemberId,
    pub cluster_id: ClusterId,
    /// The data directory it was made with. None in a log that an etcd began, and for ever: the record is the same in every segment.
    pub dir_uuid: Option<Unique>,
}

/// How to keep the log.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Bytes after which a new segment begins. Smaller values are for tests.
    pub segment_bytes: u64,
    /// Released segments are deleted while more than this many exist; 0 keeps all.
    pub segments_kept: usize,
    /// Writes without syncing: fast, and a power loss may take acknowledged data along. Data is still handed to the system.
    pub unsafe_no_fsync: bool,
    /// Write zeros ahead of use in the background. Off: space is only reserved, and every sync costs a metadata update.
    pub zero_ahead: bool,
    /// The disk operations of the write path.
    pub disk: Arc<dyn Disk>,
}

impl Default for WalOptions {
    fn default() -> Self {
        WalOptions {
            segment_bytes: SEGMENT_BYTES,
            segments_kept: SEGMENTS_KEPT_DEFAULT,
            unsafe_no_fsync: false,
            zero_ahead: true,
            disk: Arc::new(SystemDisk),
        }
    }
}

/// What a log says when it is opened.
#[derive(Clone, Debug)]
pub struct WalContents {
    pub metadata: WalMetadata,
    /// The newest snapshot record at or below the commit; entries begin after it. Term 0 index 0 in a log without one.
    pub snapshot: LogPosition,
    /// The configuration at `snapshot`; empty at index 0.
    pub conf_state: ConfState,
    pub hard_state: HardState,
    /// Contiguous from `snapshot.index + 1`. All of it is synced.
    pub entries: Vec<Entry>,
    /// Set when a torn tail was cut.
    pub repaired: Option<Repair>,
}

/// A torn tail that was cut from the newest segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub file: PathBuf,
    /// Where the intact log ends.
    pub offset: u64,
    /// Bytes from there to the last one that was not zero.
    pub discarded_bytes: u64,
    /// The last index that the log still holds.
    pub last_index: LogIndex,
    /// The segment as it was found; none when the disk had no room for it.
    pub copy: Option<PathBuf>,
}

impl std::fmt::Display for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cut a torn tail of {} bytes from {} at offset {}; the log ends at index {}",
            self.discarded_bytes,
            self.file.display(),
            self.offset,
            self.last_index
        )?;
        match &self.copy {
            Some(copy) => write!(f, "; the segment as found is {}", copy.display()),
            None => write!(f, "; no copy was kept, the disk is full"),
        }
    }
}
