//! Reads a log back. Nothing is changed here: a torn tail is reported with the place to cut, and `log` cuts.
//!
//! Two passes. The *survey* goes through segments from the newest backwards until it knows the committed index and the newest
//! snapshot record at or below it. The *load* then reads forward from the last segment that begins at or below that snapshot. So a
//! start costs what was written since the last snapshot, not what the directory holds, and no more than one frame and the entries
//! that are returned are in memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use types::{ConfState, Entry, HardState, LogIndex, LogPosition, Term};

use super::WalMetadata;
use super::codec::{self, RecordKind};
use super::error::{Damage, DamageKind, WalError};
use super::frames::{FrameReader, Next, Record};
use super::segment::{self, SegmentName};
use super::tail::{self, Verdict};

/// A segment that is open and locked.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
}

/// What a log says and where it ends.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) metadata: WalMetadata,
    /// As found, since all METADATA records of a log must be equal byte by byte.
    pub(super) metadata_bytes: Bytes,
    pub(super) snapshot: LogPosition,
    pub(super) conf_state: ConfState,
    pub(super) hard_state: HardState,
    pub(super) entries: Vec<Entry>,
    /// From the segment that holds the first entry to the newest.
    pub(super) segments: Vec<Segment>,
    /// End of the last good frame in the newest segment.
    pub(super) end: u64,
    pub(super) crc: u32,
    /// Bytes behind `end` that have to go.
    pub(super) torn_bytes: Option<u64>,
}

pub(super) fn recover(dir: &Path) -> Result<Recovered, WalError> {
    recover_with(dir, segment::open_locked)
}

/// The same for a reader who must keep nobody from the log. Only what rests can be judged: a log in use ends somewhere else by now.
pub(super) fn recover_unlocked(dir: &Path) -> Result<Recovered, WalError> {
    recover_with(dir, |path| File::open(path).map_err(|source| WalError::io("open", path, source)))
}

fn recover_with(dir: &Path, open: fn(&Path) -> Result<File, WalError>) -> Result<Recovered, WalError> {
    let names = segment::list(dir)?;
    if names.is_empty() {
        return Err(WalError::Missing { dir: dir.to_owned() });
    }
    let mut opened = Opened { dir, names: &names, segments: Vec::new(), open };

    let survey = survey(&mut opened)?;
    let start = survey.snapshot.position;
    let first = names.iter().rposition(|name| name.index <= start.index);
    let newest = names.len() - 1;
    let Some(first) = first else {
        let name = names[newest];
        let kind = DamageKind::SegmentMissing { snapshot: start.index };
        return Err(damaged(&name.path(dir), 0, start.index.next(), kind));
    };
    opened.reach_back_to(first)?;

    let mut segments = opened.segments;
    segments.reverse();
    // The survey may have gone back further than the load has to.
    segments.drain(..segments.len() - (newest - first + 1));

    let mut load = Load::new(&survey);
    let mut tail = Tail { crc: 0, ..survey.tail };
    for segment in &segments {
        let is_newest = segment.name == names[newest];
        // The survey has judged the newest segment: stop where it did.
        let end = if is_newest { Some(survey.tail.end) } else { None };
        tail = walk(segment, tail.crc, end, is_newest, &mut load)?;
    }
    let Some(metadata_bytes) = load.metadata else {
        return Err(damaged(&segments[0].path, 0, start.index.next(), DamageKind::MetadataMissing));
    };
    let Some(metadata) = codec::decode_metadata(&metadata_bytes) else {
        let kind = DamageKind::Undecodable { what: "the metadata" };
        return Err(damaged(&segments[0].path, 0, start.index.next(), kind));
    };
    if let Some(first) = load.entries.first().filter(|first| first.term < start.term) {
        let kind = DamageKind::TermRegress { before: start.term, found: first.term };
        return Err(damaged(&segments[0].path, 0, first.index, kind));
    }
    let last = load.entries.last().map_or(start.index, |entry| entry.index);
    if survey.hard_state.commit > last {
        let kind = DamageKind::CommitBeyondLog { commit: survey.hard_state.commit, last };
        return Err(damaged(&segments[segments.len() - 1].path, tail.end, last.next(), kind));
    }
    Ok(Recovered {
        metadata,
        metadata_bytes,
        snapshot: start,
        conf_state: survey.snapshot.conf_state,
        hard_state: survey.hard_state,
        entries: load.entries,
        segments,
        end: tail.end,
        crc: tail.crc,
        torn_bytes: survey.tail.torn_bytes,
    })
}

fn damaged(file: &Path, offset: u64, index: LogIndex, kind: DamageKind) -> WalError {
    Box::new(Damage { file: file.to_owned(), offset, index, kind }).into()
}

/// Segments as they are opened, the newest first. A process that still uses the log holds the lock of the newest, so it is noticed
/// before anything is read.
struct Opened<'a> {
    dir: &'a Path,
    names: &'a [SegmentName],
    segments: Vec<Segment>,
    open: fn(&Path) -> Result<File, WalError>,
}

impl Opened<'_> {
    /// The segment before the oldest one opened so far.
    fn older(&mut self) -> Result<Option<Segment>, WalError> {
        let opened = self.segments.len();
        let Some(at) = self.names.len().checked_sub(opened + 1) else { return Ok(None) };
        let name = self.names[at];
        let path = name.path(self.dir);
        if let Some(newer) = self.segments.last()
            && name.sequence.checked_add(1) != Some(newer.name.sequence)
        {
            let kind = DamageKind::SequenceGap { last: name.sequence, found: newer.name.sequence };
            return Err(damaged(&newer.path, 0, newer.name.index, kind));
        }
        let file = Arc::new((self.open)(&path)?);
        let segment = Segment { name, path, file };
        self.segments.push(segment.clone());
        Ok(Some(segment))
    }

    fn reach_back_to(&mut self, first: usize) -> Result<(), WalError> {
        while self.names.len() - self.segments.len() > first {
            self.older()?;
        }
        Ok(())
    }
}

/// How the walk through one segment ended.
#[derive(Clone, Copy, Debug)]
struct Tail {
    end: u64,
    crc: u32,
    torn_bytes: Option<u64>,
}

/// What a pass does with the records of a segment.
trait Visitor {
    fn record(&mut self, record: Record<'_>) -> Result<(), DamageKind>;

    /// The first index not vouched for by what was visited.
    fn next_index(&self) -> Option<LogIndex>;
}

/// Goes through a segment, up to `known_end` when that is given. Only in the newest segment may the tail be torn.
fn walk(
    segment: &Segment,
    crc: u32,
    known_end: Option<u64>,
    is_newest: bool,
    visitor: &mut dyn Visitor,
) -> Result<Tail, WalError> {
    let failed = |source| WalError::io("read", &segment.path, source);
    let len = segment.file.metadata().map_err(failed)?.len();
    let mut reader = FrameReader::new(&segment.file, known_end.unwrap_or(len), crc);
    let mut marked = false;
    let fault = loop {
        match reader.next().map_err(failed)? {
            Next::Record(record) => {
                marked |= record.kind == RecordKind::Crc && record.offset > 0;
                let offset = record.offset;
                if let Err(kind) = visitor.record(record) {
                    let index = visitor.next_index().unwrap_or(segment.name.index.max(LogIndex(1)));
                    return Err(damaged(&segment.path, offset, index, kind));
                }
            }
            Next::End => break None,
            Next::Fault(fault) => break Some(fault),
        }
    };
    let (end, crc) = (reader.offset(), reader.crc());
    if known_end == Some(end) {
        return Ok(Tail { end, crc, torn_bytes: None });
    }
    let refused = |kind| {
        let index = visitor.next_index().unwrap_or(segment.name.index.max(LogIndex(1)));
        Err(damaged(&segment.path, end, index, kind))
    };
    match tail::judge(&segment.file, end, fault.clone(), marked).map_err(failed)? {
        Verdict::Clean => Ok(Tail { end, crc, torn_bytes: None }),
        Verdict::Torn { bytes } if is_newest => Ok(Tail { end, crc, torn_bytes: Some(bytes) }),
        // A segment was complete and synced when the next one began.
        Verdict::Torn { .. } => refused(fault.map_or(DamageKind::DataBehindEnd, |fault| fault.kind)),
        Verdict::Damaged(kind) => refused(kind),
    }
}

/// A SNAPSHOT record.
#[derive(Clone, Debug)]
struct SnapshotRecord {
    position: LogPosition,
    conf_state: ConfState,
}

struct Survey {
    snapshot: SnapshotRecord,
    hard_state: HardState,
    tail: Tail,
}

fn survey(opened: &mut Opened<'_>) -> Result<Survey, WalError> {
    let mut newest_tail = None;
    let mut state: Option<HardState> = None;
    // Newest first, as far as the commit is not known yet.
    let mut snapshots: Vec<(LogPosition, Option<ConfState>)> = Vec::new();
    loop {
        let Some(segment) = opened.older()? else { break };
        let mut visitor = SurveyVisitor::default();
        let tail = walk(&segment, 0, None, newest_tail.is_none(), &mut visitor)?;
        newest_tail = newest_tail.or(Some(tail));
        state = state.or(visitor.state);
        snapshots.extend(visitor.snapshots.into_iter().rev());
        if let Some(state) = state {
            snapshots.retain(|(position, _)| position.index <= state.commit);
            if !snapshots.is_empty() {
                break;
            }
        }
    }
    let hard_state = state.unwrap_or_default();
    snapshots.retain(|(position, _)| position.index <= hard_state.commit);
    let oldest = &opened.segments[opened.segments.len() - 1];
    let tail = newest_tail.expect("a log has at least one segment, and its walk has ended well");
    // Records rise with the log; of equal ones the newest counts.
    let newest =
        snapshots.into_iter().reduce(|best, other| if other.0.index > best.0.index { other } else { best });
    let Some((position, conf_state)) = newest else {
        let kind = DamageKind::SnapshotMissing { commit: hard_state.commit };
        return Err(damaged(&oldest.path, 0, oldest.name.index, kind));
    };
    let conf_state = match conf_state {
        Some(conf_state) => conf_state,
        None if position.index == LogIndex(0) => ConfState::default(),
        None => return Err(damaged(&oldest.path, 0, position.index, DamageKind::ConfStateMissing)),
    };
    Ok(Survey { snapshot: SnapshotRecord { position, conf_state }, hard_state, tail })
}

#[derive(Default)]
struct SurveyVisitor {
    state: Option<HardState>,
    snapshots: Vec<(LogPosition, Option<ConfState>)>,
    last: Option<LogIndex>,
}

impl Visitor for SurveyVisitor {
    fn record(&mut self, record: Record<'_>) -> Result<(), DamageKind> {
        match record.kind {
            RecordKind::Entry => self.last = Some(entry_of(record.data)?.position.index),
            RecordKind::State => self.state = Some(state_of(record.data)?),
            RecordKind::Snapshot => self.snapshots.push(snapshot_of(record.data)?),
            RecordKind::Metadata | RecordKind::Crc => {}
        }
        Ok(())
    }

    fn next_index(&self) -> Option<LogIndex> {
        self.last.map(LogIndex::next)
    }
}

fn entry_of(data: &[u8]) -> Result<codec::EntryParts<'_>, DamageKind> {
    codec::decode_entry(data).ok_or(DamageKind::Undecodable { what: "an entry" })
}

fn state_of(data: &[u8]) -> Result<HardState, DamageKind> {
    codec::decode_state(data).ok_or(DamageKind::Undecodable { what: "a hard state" })
}

fn snapshot_of(data: &[u8]) -> Result<(LogPosition, Option<ConfState>), DamageKind> {
    codec::decode_snapshot(data).ok_or(DamageKind::Undecodable { what: "a snapshot record" })
}

/// The second pass: entries behind the snapshot, later records overwriting earlier ones.
struct Load {
    start: LogPosition,
    entries: Vec<Entry>,
    metadata: Option<Bytes>,
    /// The term of the log's entry at `start`, as far as it has been read.
    term_at_start: Option<Term>,
    /// The last hard state read.
    state: HardState,
}

impl Load {
    fn new(survey: &Survey) -> Load {
        Load {
            start: survey.snapshot.position,
            entries: Vec::new(),
            metadata: None,
            term_at_start: None,
            state: HardState::default(),
        }
    }

    fn last(&self) -> LogIndex {
        self.entries.last().map_or(self.start.index, |entry| entry.index)
    }

    fn entry(&mut self, data: &[u8]) -> Result<(), DamageKind> {
        let entry = entry_of(data)?;
        let index = entry.position.index;
        if index <= self.start.index {
            // Whatever stood behind it was replaced with it. Every committed entry is at or below the start or comes again.
            self.entries.clear();
            self.term_at_start = (index == self.start.index).then_some(entry.position.term);
            return Ok(());
        }
        let slot = usize::try_from(index.0 - self.start.index.0 - 1).unwrap_or(usize::MAX);
        if slot > self.entries.len() {
            return Err(DamageKind::Gap { last: self.last(), found: index });
        }
        let (commit, term) = (self.state.commit, entry.position.term);
        if index <= commit && self.entries.get(slot).is_some_and(|committed| committed.term != term) {
            return Err(DamageKind::CommittedReplaced { index, commit });
        }
        if let Some(before) = slot.checked_sub(1).map(|before| self.entries[before].term)
            && term < before
        {
            return Err(DamageKind::TermRegress { before, found: term });
        }
        self.entries.truncate(slot);
        self.entries.push(entry.to_entry());
        Ok(())
    }

    fn state(&mut self, data: &[u8]) -> Result<(), DamageKind> {
        let state = state_of(data)?;
        let before = self.state.term.max(self.entries.last().map_or(Term(0), |entry| entry.term));
        if state.term < before {
            return Err(DamageKind::TermRegress { before, found: state.term });
        }
        self.state = state;
        Ok(())
    }

    fn snapshot(&mut self, data: &[u8]) -> Result<(), DamageKind> {
        let (position, _) = snapshot_of(data)?;
        if position.index != self.start.index {
            return Ok(());
        }
        if position.term != self.start.term {
            return Err(DamageKind::SnapshotMismatch { snapshot: position.index });
        }
        // A snapshot received from the leader replaced a log that did not have this position: raft dropped whatever was behind it,
        // and so does this. etcd keeps those entries, and with them a last term that is too low for its votes.
        if position.index > LogIndex(0) && self.term_at_start != Some(position.term) {
            self.entries.clear();
            self.term_at_start = Some(position.term);
        }
        Ok(())
    }
}

impl Visitor for Load {
    fn record(&mut self, record: Record<'_>) -> Result<(), DamageKind> {
        match record.kind {
            RecordKind::Entry => self.entry(record.data),
            RecordKind::Snapshot => self.snapshot(record.data),
            RecordKind::Metadata => match &self.metadata {
                Some(first) if first != record.data => Err(DamageKind::MetadataConflict),
                Some(_) => Ok(()),
                None => {
                    self.metadata = Some(Bytes::copy_from_slice(record.data));
                    Ok(())
                }
            },
            RecordKind::State => self.state(record.data),
            RecordKind::Crc => Ok(()),
        }
    }

    fn next_index(&self) -> Option<LogIndex> {
        Some(self.last().next())
    }
}
