//! The log in use: one owner appends and syncs.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use types::{ConfState, Entry, HardState, LogIndex, LogPosition};

use super::codec::{self, FrameWriter};
use super::error::WalError;
use super::keeper::{Keeper, WAKE_BYTES};
use super::recover::{self, Segment};
use super::segment::{self, SegmentName};
use super::tail;
use super::zeroed::ZeroedFile;
use super::{Repair, WalContents, WalMetadata, WalOptions};
use crate::data_dir;

/// Bytes gathered before they are handed to the system without being asked. Above what one raft message may carry, so that a group
/// is normally one write; it bounds the memory of a burst.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// A buffer that grew beyond this is given back after use.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// A sync slower than this is logged: elections are at stake, and it is the disk's doing. As in etcd.
const SYNC_SLOW: Duration = Duration::from_secs(1);

/// The write-ahead log of one member, open for appending.
///
/// [`append`](Wal::append) and [`append_snapshot`](Wal::append_snapshot) only collect; [`sync`](Wal::sync) writes what was collected
/// with one system call and makes it durable, [`flush`](Wal::flush) only writes it. Nothing may be acknowledged before `sync` has
/// returned. After the first failure every call returns that same failure: what a disk kept of a failed write or sync is unknown, so
/// the only way on is a restart.
#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    options: WalOptions,
    metadata_bytes: Bytes,
    /// Segments still in use, each locked by its open file; the last is written to.
    segments: VecDeque<Segment>,
    zeroed: Arc<ZeroedFile>,
    /// Where in the current segment the next write goes.
    offset: u64,
    /// End of the head of the current segment.
    head: u64,
    wake_at: u64,
    frames: FrameWriter,
    /// Written but not synced.
    dirty: bool,
    /// A sync has been completed since the last append, so the next group begins with a sync mark.
    mark_next: bool,
    hard_state: HardState,
    /// Index of the last entry or received snapshot.
    last: LogIndex,
    /// Snapshot records from the oldest that matters on. The first one is where a restart would begin.
    snapshots: VecDeque<LogIndex>,
    snapshots_synced: usize,
    commit_synced: LogIndex,
    failed: Option<WalError>,
    keeper: Keeper,
}

impl Wal {
    /// Whether `dir` holds a log. A directory without segments does not, also when a creation was interrupted there.
    pub fn exists(dir: &Path) -> Result<bool, WalError> {
        Ok(!segment::list(dir)?.is_empty())
    }

    /// Makes a new log that holds nothing but its metadata and the empty snapshot.
    ///
    /// It is built in `<dir>.tmp`, synced and renamed, so a crash leaves either no log or a complete one. Where `dir` exists already,
    /// as a mount point does, the segment is built under a temporary name in it.
    pub fn create(dir: &Path, metadata: &WalMetadata, options: WalOptions) -> Result<Wal, WalError> {
        if Wal::exists(dir)? {
            return Err(WalError::Exists { dir: dir.to_owned() });
        }
        let parent = data_dir::parent_of(dir);
        let in_place = dir.is_dir();
        let aside = if in_place { dir.to_owned() } else { with_suffix(dir, ".tmp") };
        if !in_place {
            match std::fs::remove_dir_all(&aside) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(WalError::io("remove", &aside, source));
                }
                _ => {}
            }
            data_dir::create_dir_private(&aside).map_err(|source| WalError::io("create", &aside, source))?;
        }
        remove_spares(&aside)?;

        let name = SegmentName { sequence: 0, index: LogIndex(0) };
        let metadata_bytes = codec::encode_metadata(metadata);
        let mut frames = FrameWriter::default();
        frames.crc_mark();
        frames.metadata(&metadata_bytes);
        frames.snapshot(LogPosition::default(), None);
        // The head is synced before the segment gets its name, so it ends with a sync mark.
        frames.crc_mark();
        let zeroed = begin_segment(&aside.join("new.tmp"), &frames.bytes, &options)?;
        let failed = |path| move |source| WalError::io("create", path, source);
        let disk = &options.disk;
        disk.rename(&aside.join("new.tmp"), &name.path(&aside)).map_err(failed(dir))?;
        sync_dir(&aside, &options)?;
        if !in_place {
            disk.rename(&aside, dir).map_err(failed(dir))?;
            sync_dir(&parent, &options)?;
        }

        let head = frames.bytes.len() as u64;
        frames.bytes.clear();
        let segment = Segment { name, path: name.path(dir), file: zeroed.file().clone() };
        Ok(Wal::assemble(Parts {
            dir: dir.to_owned(),
            options,
            metadata_bytes,
            segments: VecDeque::from([segment]),
            zeroed: Arc::new(zeroed),
            offset: head,
            head,
            frames,
            mark_next: false,
            hard_state: HardState::default(),
            last: LogIndex(0),
            snapshot: LogIndex(0),
        }))
    }

    /// What [`Wal::open`] would return, without lock or repair: for tools, on a log that nobody writes to.
    ///
    /// # Errors
    /// Those of [`Wal::open`], but never that the log is locked.
    pub fn look(dir: &Path) -> Result<WalContents, WalError> {
        let recovered = recover::recover_unlocked(dir)?;
        Ok(WalContents {
            metadata: recovered.metadata,
            snapshot: recovered.snapshot,
            conf_state: recovered.conf_state,
            hard_state: recovered.hard_state,
            entries: recovered.entries,
            repaired: None,
        })
    }

    /// Opens a log for appending and returns what it says. A torn tail is cut; damage is refused with nothing changed.
    ///
    /// Entries that are returned are durable: what a killed process had written but not synced is synced here.
    pub fn open(dir: &Path, options: WalOptions) -> Result<(Wal, WalContents), WalError> {
        let recovered = recover::recover(dir)?;
        let newest = &recovered.segments[recovered.segments.len() - 1];
        let last = recovered.entries.last().map_or(recovered.snapshot.index, |entry| entry.index);
        let repaired = match recovered.torn_bytes {
            None => None,
            Some(bytes) => {
                let repair = cut_tail(newest, recovered.end, bytes, last, &options)?;
                tracing::warn!("{repair}");
                Some(repair)
            }
        };
        remove_spares(dir)?;
        let written = make_room(newest, recovered.end, &options)?;
        // Not the newest alone: a process that ran without syncing has closed others, and a gap that a power loss tears into the middle
        // of the log would cost everything behind it. A file that is clean costs next to nothing.
        for segment in &recovered.segments {
            options.disk.sync(&segment.file).map_err(|source| WalError::io("sync", &segment.path, source))?;
        }
        // A segment or the whole directory may have been renamed right before the crash.
        sync_dir(dir, &options)?;
        sync_dir(&data_dir::parent_of(dir), &options)?;

        let zeroed = ZeroedFile::new(
            newest.file.clone(),
            recovered.end,
            written,
            options.segment_bytes.max(recovered.end),
        );
        let contents = WalContents {
            metadata: recovered.metadata,
            snapshot: recovered.snapshot,
            conf_state: recovered.conf_state,
            hard_state: recovered.hard_state,
            entries: recovered.entries,
            repaired,
        };
        let mark_next = !options.unsafe_no_fsync;
        let frames = FrameWriter::continuing(recovered.crc);
        let wal = Wal::assemble(Parts {
            dir: dir.to_owned(),
            options,
            metadata_bytes: recovered.metadata_bytes,
            segments: recovered.segments.into(),
            zeroed: Arc::new(zeroed),
            offset: recovered.end,
            head: 0,
            frames,
            mark_next,
            hard_state: recovered.hard_state,
            last,
            snapshot: recovered.snapshot.index,
        });
        Ok((wal, contents))
    }

    fn assemble(parts: Parts) -> Wal {
        let Parts {
            dir,
            options,
            metadata_bytes,
            segments,
            zeroed,
            offset,
            head,
            frames,
            mark_next,
            hard_state,
            last,
            snapshot,
        } = parts;
        let keeper = Keeper::start(
            dir.clone(),
            options.segment_bytes,
            options.segments_kept,
            options.zero_ahead,
            zeroed.clone(),
            offset,
        );
        Wal {
            dir,
            mark_next,
            options,
            metadata_bytes,
            segments,
            zeroed,
            offset,
            head,
            wake_at: offset + WAKE_BYTES,
            frames,
            dirty: false,
            hard_state,
            last,
            snapshots: VecDeque::from([snapshot]),
            snapshots_synced: 1,
            commit_synced: hard_state.commit,
            failed: None,
            keeper,
        }
    }

    /// Collects entries and then the hard state, when there is a new one.
    ///
    /// Entries may overwrite earlier ones from their first index on, as raft does with an uncommitted tail.
    ///
    /// # Panics
    /// When entries leave a gap or overwrite committed ones, or when the commit lies behind the log: such a log could not be opened
    /// again, so the mistake must not reach the disk.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), WalError> {
        self.check()?;
        if let Some(first) = entries.first() {
            let (index, last, commit) = (first.index, self.last, self.hard_state.commit);
            assert!(index <= last.next(), "entry {index} continues the log, which ends at {last}");
            assert!(index > commit, "entry {index} lies behind the commit {commit}");
        }
        let bytes = entries.iter().map(codec::entry_frame_bytes_max).sum();
        self.begin_group(bytes)?;
        let mut expected = entries.first().map_or(LogIndex(0), |first| first.index);
        for entry in entries {
            assert!(entry.index == expected, "entry {expected} is next, not {}", entry.index);
            expected = expected.next();
            self.frames.entry(entry);
            self.last = entry.index;
            if self.frames.bytes.len() >= BUFFER_BYTES_MAX {
                self.flush()?;
            }
        }
        if let Some(hard_state) = hard_state.filter(|state| **state != HardState::default()) {
            let (commit, last) = (hard_state.commit, self.last);
            assert!(commit <= last, "commit {commit} is in the log, which ends at {last}");
            self.frames.state(hard_state);
            self.hard_state = *hard_state;
        }
        Ok(())
    }

    /// Collects the statement that the log may be read from `position` on, where `conf_state` is the configuration.
    ///
    /// The caller has made the state at `position` durable before. A record counts at a restart once a hard state with a commit at or
    /// above it follows; so for a snapshot received from the leader, append that hard state in the same group.
    pub fn append_snapshot(&mut self, position: LogPosition, conf_state: &ConfState) -> Result<(), WalError> {
        self.check()?;
        self.begin_group(0)?;
        self.frames.snapshot(position, Some(conf_state));
        self.last = self.last.max(position.index);
        self.snapshots.push_back(position.index);
        Ok(())
    }

    /// Hands what was collected to the operating system, in one write. It then survives the process, but not a power loss.
    pub fn flush(&mut self) -> Result<(), WalError> {
        self.check()?;
        if self.frames.bytes.is_empty() {
            return Ok(());
        }
        let written = self.write_out();
        self.keep(written)
    }

    /// Writes what was collected and waits until everything is on disk.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.flush()?;
        if !self.dirty {
            return Ok(());
        }
        if !self.options.unsafe_no_fsync {
            let synced = self.sync_current();
            self.keep(synced)?;
            self.mark_next = true;
        }
        self.dirty = false;
        self.snapshots_synced = self.snapshots.len();
        self.commit_synced = self.hard_state.commit;
        Ok(())
    }

    /// Entries up to `index` are not needed any more. Segments that hold nothing else are unlocked and may be deleted.
    ///
    /// Whatever is asked, the log stays readable from the newest synced snapshot record that counts at a restart.
    pub fn release_to(&mut self, index: LogIndex) -> Result<(), WalError> {
        self.check()?;
        let counts =
            |at: usize, wal: &Wal| at < wal.snapshots_synced && wal.snapshots[at] <= wal.commit_synced;
        while counts(1, self) {
            self.snapshots.pop_front();
            self.snapshots_synced -= 1;
        }
        let restart = self.snapshots.front().copied().unwrap_or_default();
        let index = index.min(restart);
        // Reading begins in the last segment that begins at or below the index.
        let needed = self.segments.iter().rposition(|segment| segment.name.index <= index).unwrap_or(0);
        self.segments.drain(..needed);
        self.keeper.released(self.segments[0].name.sequence);
        Ok(())
    }

    /// Index of the last entry or received snapshot that was appended.
    pub fn last_index(&self) -> LogIndex {
        self.last
    }

    /// The hard state appended last.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn check(&self) -> Result<(), WalError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Remembers a failure for every later call.
    fn keep<T>(&mut self, result: Result<T, WalError>) -> Result<T, WalError> {
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Goes on to a new segment if `bytes` more would not fit, and sets the sync mark.
    fn begin_group(&mut self, bytes: u64) -> Result<(), WalError> {
        let used = self.offset + self.frames.bytes.len() as u64;
        // A group larger than a segment gets one to itself, which is then longer.
        if used + bytes > self.options.segment_bytes && used > self.head {
            self.flush()?;
            let cut = self.cut();
            self.keep(cut)?;
        }
        if std::mem::take(&mut self.mark_next) {
            self.frames.crc_mark();
        }
        Ok(())
    }

    fn current(&self) -> &Segment {
        self.segments.back().expect("the current segment is never released")
    }

    fn write_out(&mut self) -> Result<(), WalError> {
        let end = self.offset + self.frames.bytes.len() as u64;
        self.zeroed.take(end);
        let segment = self.current();
        self.options
            .disk
            .write_at(&segment.file, &self.frames.bytes, self.offset)
            .map_err(|source| WalError::io("write", &segment.path, source))?;
        self.frames.bytes.clear();
        self.frames.bytes.shrink_to(BUFFER_BYTES_KEPT);
        self.offset = end;
        self.dirty = true;
        if end >= self.wake_at {
            self.wake_at = end + WAKE_BYTES;
            self.keeper.grew(end);
        }
        Ok(())
    }

    fn sync_current(&self) -> Result<(), WalError> {
        let segment = self.current();
        let begun = Instant::now();
        self.options
            .disk
            .sync(&segment.file)
            .map_err(|source| WalError::io("sync", &segment.path, source))?;
        let took = begun.elapsed();
        if took > SYNC_SLOW {
            tracing::warn!(file = %segment.path.display(), ?took, "slow sync of the log: the disk is overloaded or failing");
        }
        Ok(())
    }

    /// Closes the current segment and begins the next. The old one is durable before the new one gets its name, and the new one
    /// repeats what a reader who begins there has to know.
    fn cut(&mut self) -> Result<(), WalError> {
        if self.dirty && !self.options.unsafe_no_fsync {
            self.sync_current()?;
        }
        self.zeroed.close();
        let old = self.current();
        // Not synced: a tail of zeros in a closed segment is harmless, and the checksum chain shows that nothing is missing.
        self.options
            .disk
            .set_len(&old.file, self.offset)
            .map_err(|source| WalError::io("truncate", &old.path, source))?;

        let name = SegmentName { sequence: old.name.sequence + 1, index: self.last.next() };
        self.frames.crc_mark();
        self.frames.metadata(&self.metadata_bytes);
        if self.hard_state != HardState::default() {
            self.frames.state(&self.hard_state);
        }
        self.frames.crc_mark();
        let (temporary, zeroed) = match self.keeper.take_spare() {
            Some(spare) => {
                spare.zeroed.take(self.frames.bytes.len() as u64);
                write_head(&spare.path, spare.zeroed.file(), &self.frames.bytes, &self.options)?;
                (spare.path, spare.zeroed)
            }
            None => {
                let temporary = self.dir.join("new.tmp");
                let zeroed = begin_segment(&temporary, &self.frames.bytes, &self.options)?;
                (temporary, zeroed)
            }
        };
        let path = name.path(&self.dir);
        self.options
            .disk
            .rename(&temporary, &path)
            .map_err(|source| WalError::io("name the segment", &path, source))?;
        sync_dir(&self.dir, &self.options)?;

        self.offset = self.frames.bytes.len() as u64;
        self.head = self.offset;
        self.wake_at = self.offset + WAKE_BYTES;
        self.frames.bytes.clear();
        self.segments.push_back(Segment { name, path, file: zeroed.file().clone() });
        self.zeroed = Arc::new(zeroed);
        self.keeper.switched(self.zeroed.clone(), self.offset);
        self.dirty = false;
        self.mark_next = false;
        self.snapshots_synced = self.snapshots.len();
        self.commit_synced = self.hard_state.commit;
        Ok(())
    }
}

impl Drop for Wal {
    /// Writes out what was collected: it was never promised to anybody, but there is no reason to lose it.
    fn drop(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.flush()
        {
            tracing::warn!(%error, "close the log");
        }
    }
}

/// What creating and opening have in common.
struct Parts {
    dir: PathBuf,
    options: WalOptions,
    metadata_bytes: Bytes,
    segments: VecDeque<Segment>,
    zeroed: Arc<ZeroedFile>,
    offset: u64,
    head: u64,
    frames: FrameWriter,
    mark_next: bool,
    hard_state: HardState,
    last: LogIndex,
    snapshot: LogIndex,
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_dir(dir: &Path, options: &WalOptions) -> Result<(), WalError> {
    if options.unsafe_no_fsync {
        return Ok(());
    }
    options.disk.sync_dir(dir).map_err(|source| WalError::io("sync directory", dir, source))
}

/// A new locked file at `path` with space reserved and `head` in it, synced.
fn begin_segment(path: &Path, head: &[u8], options: &WalOptions) -> Result<ZeroedFile, WalError> {
    let file: Arc<File> = Arc::new(segment::create_file(path)?);
    segment::lock(&file, path)?;
    options
        .disk
        .reserve(&file, options.segment_bytes)
        .map_err(|source| WalError::io("reserve space for", path, source))?;
    write_head(path, &file, head, options)?;
    Ok(ZeroedFile::new(file, head.len() as u64, 0, options.segment_bytes))
}

fn write_head(path: &Path, file: &File, head: &[u8], options: &WalOptions) -> Result<(), WalError> {
    options.disk.write_at(file, head, 0).map_err(|source| WalError::io("write", path, source))?;
    if !options.unsafe_no_fsync {
        options.disk.sync(file).map_err(|source| WalError::io("sync", path, source))?;
    }
    Ok(())
}

/// Keeps the segment as it was found and cuts it behind the last good frame.
fn cut_tail(
    segment: &Segment,
    end: u64,
    discarded_bytes: u64,
    last_index: LogIndex,
    options: &WalOptions,
) -> Result<Repair, WalError> {
    let copy = with_suffix(&segment.path, ".broken");
    let copied = std::fs::copy(&segment.path, &copy).and_then(|_| File::open(&copy)?.sync_all());
    let copy = match copied {
        Ok(()) => Some(copy),
        Err(source) => {
            let error = WalError::io("copy the segment to", &copy, source);
            if !error.is_no_space() {
                return Err(error);
            }
            // The tail was never promised to anybody; a full disk must not keep the member from what was.
            let _ = std::fs::remove_file(&copy);
            None
        }
    };
    options
        .disk
        .set_len(&segment.file, end)
        .map_err(|source| WalError::io("truncate", &segment.path, source))?;
    options.disk.sync(&segment.file).map_err(|source| WalError::io("sync", &segment.path, source))?;
    Ok(Repair { file: segment.path.clone(), offset: end, discarded_bytes, last_index, copy })
}

/// Extends the newest segment to its full size if it is shorter. Returns up to where its space was written before.
///
/// A full disk is not a reason to refuse: what is there can be read and served, and the next write says so.
fn make_room(segment: &Segment, end: u64, options: &WalOptions) -> Result<u64, WalError> {
    let failed = |source| WalError::io("reserve space for", &segment.path, source);
    let len = segment.file.metadata().map_err(failed)?.len();
    let written = tail::written_up_to(&segment.file, end, len);
    if len < options.segment_bytes {
        match options.disk.reserve(&segment.file, options.segment_bytes).map_err(failed) {
            Err(error) if error.is_no_space() => {
                tracing::warn!(%error, "the log goes on without reserved space")
            }
            other => other?,
        }
    }
    Ok(written)
}

/// Spares of a former process: their content is unknown, so they are made anew.
fn remove_spares(dir: &Path) -> Result<(), WalError> {
    for name in ["0.tmp", "1.tmp", "new.tmp"] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(WalError::io("remove", &path, source));
            }
            _ => {}
        }
    }
    Ok(())
}
