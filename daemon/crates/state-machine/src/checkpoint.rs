//! The index as bytes, so that a start need not scan every row.
//!
//! ```text
//! "CAIRNIDX"  version u32  term u64  index u64  revision i64  newest row: main i64, sub i64, crc32c u32
//! per key, ascending:  shared varint  suffix-length varint  suffix
//!                      older-count varint  { main-delta varint, sub*2+dead varint } per older version and the newest
//!                      if the newest lives: created, version, lease, value length (varints); a zero version: see the patches
//! patches:             { key-ordinal-delta, created, version, lease, value length } varints
//! trailer:             patches-offset u64  patch-count u64  key-count u64  crc32c u32 of all before
//! ```
//! Numbers of fixed width are little-endian. Values are not part of it: after a start they come inline again step by step
//! ([`crate::StateMachine::warm_step`]).
//!
//! Writing goes on beside apply. It pins a revision and leaves out what is newer; a key that was changed meanwhile gets the facts of
//! its pinned version from the store, as a patch. A checkpoint is trusted only if checksum, position, compaction and the newest row
//! fit the store it is loaded beside; anything else means a full scan, never a guess.

use std::ops::ControlFlow;

use types::{LogIndex, LogPosition, Revision, RowId, Term};

use crate::index::{Facts, Index, Record, RecordBuilder, Version};
use crate::machine::Marks;
use crate::range::after;
use crate::read::Reader;
use crate::state::{decode_row, fetch, store_failed};
use crate::store::{Store, StoredRow};

const MAGIC: &[u8; 8] = b"CAIRNIDX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 8 + 8 + 4;
const TRAILER_BYTES: usize = 8 + 8 + 8 + 4;
/// Keys written under one hold of the index lock: about a hundred microseconds.
const KEYS_PER_HOLD: usize = 1024;

/// Why a checkpoint was not used. The index was rebuilt from all rows instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("is no index checkpoint")]
    NotACheckpoint,
    #[error("has format version {0}, this program reads version {VERSION}")]
    UnknownVersion(u32),
    #[error("fails its checksum")]
    Checksum,
    #[error("is malformed at byte {0}")]
    Malformed(usize),
    #[error("is at {checkpoint}, beyond the state store's {store}")]
    BeyondStore { checkpoint: LogPosition, store: LogPosition },
    #[error("is at revision {revision}, below compaction {compaction}")]
    BelowCompaction { revision: Revision, compaction: Revision },
    #[error("was made beside another state store: its newest row {0} is not in this one")]
    OtherStore(RowId),
}

impl<S: Store> Reader<S> {
    /// Appends the index to `out` and answers the position it stands for. Runs beside apply. None when a compaction overtook it:
    /// `out` is then worthless, and asking again later is enough.
    ///
    /// Keep the bytes only together with a state store that is durable up to the answered position or later, and drop them when
    /// that store is replaced.
    pub fn checkpoint(&self, out: &mut Vec<u8>) -> Option<LogPosition> {
        let (position, at) = {
            let state = self.shared.state.read();
            (state.applied, state.revision)
        };
        let begin = out.len();
        let newest = newest_row(&*self.shared.store, at);
        put_header(out, position, at, newest.as_ref());
        let mut writer = Writer { out, begin, last_key: Vec::new(), keys: 0 };
        let mut patches: Vec<(u64, Facts, u64)> = Vec::new();
        let mut next = Some(Vec::new());
        while let Some(from) = next.take() {
            let mut stale: Vec<(u64, RowId)> = Vec::new();
            let mut count = 0;
            let stopped = self.shared.state.read().index.walk(&from, None, |key, record| {
                if let Some(id) = writer.key(key, record, at) {
                    stale.push((writer.keys - 1, id));
                }
                count += 1;
                if count == KEYS_PER_HOLD {
                    ControlFlow::Break(after(key))
                } else {
                    ControlFlow::Continue(())
                }
            });
            if let ControlFlow::Break(key) = stopped {
                next = Some(key);
            }
            let ids: Vec<RowId> = stale.iter().map(|(_, id)| *id).collect();
            for ((ordinal, id), row) in stale.into_iter().zip(fetch(&*self.shared.store, &ids)) {
                let kv = decode_row(id, &row?);
                let facts = Facts { created: kv.create_revision, version: kv.version, lease: kv.lease };
                patches.push((ordinal, facts, kv.value.len() as u64));
            }
        }
        writer.finish(&patches);
        (self.shared.state.read().compacted <= at).then_some(position)
    }
}

/// The last row at or below `at`, if the revision has one: it tells stores apart.
fn newest_row<S: Store>(store: &S, at: i64) -> Option<(RowId, StoredRow)> {
    let from = RowId { main: Revision(at), sub: 0 };
    let to = RowId { main: Revision(at), sub: i64::MAX };
    let mut newest = None;
    let each = &mut |id, row| {
        newest = Some((id, row));
        ControlFlow::Continue(())
    };
    store.scan(from, to, each).unwrap_or_else(|error| store_failed(error));
    newest
}

fn put_header(out: &mut Vec<u8>, position: LogPosition, at: i64, newest: Option<&(RowId, StoredRow)>) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&position.term.0.to_le_bytes());
    out.extend_from_slice(&position.index.0.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    let (id, crc) = newest.map_or_else(Default::default, |(id, row)| (*id, crc32c::crc32c(&row.value)));
    out.extend_from_slice(&id.main.0.to_le_bytes());
    out.extend_from_slice(&id.sub.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    begin: usize,
    last_key: Vec<u8>,
    keys: u64,
}

impl Writer<'_> {
    /// Writes the key as of revision `at`. Answers the version whose facts must be patched in, because the index no longer has them.
    fn key(&mut self, key: &[u8], record: &Record, at: i64) -> Option<RowId> {
        let newest = record.at(at)?;
        let is_current = newest.id() == record.id();
        let older = record.older();
        let older =
            if is_current { older } else { &older[..older.partition_point(|past| past.id() < newest.id())] };
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        self.varint(shared as u64);
        self.varint((key.len() - shared) as u64);
        self.out.extend_from_slice(&key[shared..]);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.keys += 1;
        self.varint(older.len() as u64);
        let mut main = 0;
        for version in older.iter().chain([&newest]) {
            self.varint((version.main() - main) as u64);
            self.varint((version.id().sub as u64) << 1 | u64::from(version.is_dead()));
            main = version.main();
        }
        if newest.is_dead() {
            return None;
        }
        if is_current && record.facts().version != 0 {
            self.facts(record.facts(), u64::from(record.value_len()));
            return None;
        }
        self.facts(Facts::default(), 0);
        Some(newest.id())
    }

    fn facts(&mut self, facts: Facts, value_len: u64) {
        self.varint(facts.created as u64);
        self.varint(facts.version as u64);
        self.varint(facts.lease as u64);
        self.varint(value_len);
    }

    fn finish(mut self, patches: &[(u64, Facts, u64)]) {
        let offset = (self.out.len() - self.begin) as u64;
        let mut last = 0;
        for (ordinal, facts, value_len) in patches {
            self.varint(ordinal - last);
            self.facts(*facts, *value_len);
            last = *ordinal;
        }
        for number in [offset, patches.len() as u64, self.keys] {
            self.out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&self.out[self.begin..]);
        self.out.extend_from_slice(&crc.to_le_bytes());
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.out.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn malformed(&self) -> CheckpointError {
        CheckpointError::Malformed(self.at)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CheckpointError> {
        let end =
            self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or(self.malformed())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn varint(&mut self) -> Result<u64, CheckpointError> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else { break };
            self.at += 1;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.malformed())
    }

    fn count(&mut self) -> Result<usize, CheckpointError> {
        let number = self.varint()?;
        usize::try_from(number).map_err(|_| self.malformed())
    }

    fn version(&mut self, main: i64) -> Result<Version, CheckpointError> {
        let delta = i64::try_from(self.varint()?).map_err(|_| self.malformed())?;
        let main = main.checked_add(delta).ok_or(self.malformed())?;
        let sub_dead = u32::try_from(self.varint()?).map_err(|_| self.malformed())?;
        let id = RowId { main: Revision(main), sub: i64::from(sub_dead >> 1) };
        Ok(Version::new(id, sub_dead & 1 == 1))
    }

    fn facts(&mut self) -> Result<(Facts, usize), CheckpointError> {
        let (created, version, lease) = (self.varint()? as i64, self.varint()? as i64, self.varint()? as i64);
        Ok((Facts { created, version, lease }, self.count()?))
    }
}

/// The index that `bytes` hold and the revision it is at, if they may be trusted beside this store.
pub(crate) fn load<S: Store>(
    bytes: &[u8],
    store: &S,
    marks: &Marks,
    inline_bytes_max: u64,
) -> Result<(Index, i64), CheckpointError> {
    if bytes.len() < HEADER_BYTES + TRAILER_BYTES || !bytes.starts_with(MAGIC) {
        return Err(CheckpointError::NotACheckpoint);
    }
    let mut header = Input { bytes, at: MAGIC.len() };
    let version = header.u32()?;
    if version != VERSION {
        return Err(CheckpointError::UnknownVersion(version));
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if crc32c::crc32c(body) != u32::from_le_bytes(crc.try_into().expect("four bytes")) {
        return Err(CheckpointError::Checksum);
    }
    let checkpoint = LogPosition { term: Term(header.u64()?), index: LogIndex(header.u64()?) };
    let revision = header.u64()? as i64;
    if checkpoint > marks.applied || checkpoint.index > marks.applied.index {
        return Err(CheckpointError::BeyondStore { checkpoint, store: marks.applied });
    }
    // Removal may have taken tombstones that this checkpoint has not seen; their keys would come back to life.
    if revision < marks.scheduled {
        let (revision, compaction) = (Revision(revision), Revision(marks.scheduled));
        return Err(CheckpointError::BelowCompaction { revision, compaction });
    }
    let newest = RowId { main: Revision(header.u64()? as i64), sub: header.u64()? as i64 };
    let newest_crc = header.u32()?;
    if newest != RowId::default() {
        let row = fetch(store, &[newest]).pop().flatten();
        if row.is_none_or(|row| crc32c::crc32c(&row.value) != newest_crc) {
            return Err(CheckpointError::OtherStore(newest));
        }
    }
    let mut trailer = Input { bytes, at: bytes.len() - TRAILER_BYTES };
    let patches_at = usize::try_from(trailer.u64()?).map_err(|_| trailer.malformed())?;
    let (patch_count, key_count) = (trailer.u64()?, trailer.u64()?);
    if !(HEADER_BYTES..=bytes.len() - TRAILER_BYTES).contains(&patches_at) {
        return Err(trailer.malformed());
    }
    let patches = Patches {
        input: Input { bytes: &bytes[..bytes.len() - TRAILER_BYTES], at: patches_at },
        left: patch_count,
        ordinal: 0,
    };
    let mut keys = Keys {
        input: Input { bytes: &bytes[..patches_at], at: HEADER_BYTES },
        patches,
        key: Vec::new(),
        ordinal: 0,
        error: None,
    };
    let index = Index::from_sorted(inline_bytes_max, &mut keys);
    match keys.error {
        Some(error) => Err(error),
        None if keys.ordinal != key_count || keys.input.at != patches_at => Err(keys.input.malformed()),
        None => Ok((index, revision)),
    }
}

struct Patches<'a> {
    input: Input<'a>,
    left: u64,
    ordinal: u64,
}

/// An iterator over the records, which ends at the first error.
struct Keys<'a> {
    input: Input<'a>,
    patches: Patches<'a>,
    key: Vec<u8>,
    ordinal: u64,
    error: Option<CheckpointError>,
}

impl Keys<'_> {
    fn record(&mut self) -> Result<(Vec<u8>, Record), CheckpointError> {
        let shared = self.input.count()?;
        if shared > self.key.len() {
            return Err(self.input.malformed());
        }
        let suffix_len = self.input.count()?;
        let suffix = self.input.take(suffix_len)?;
        if self.ordinal > 0 && self.key[shared..] >= *suffix {
            return Err(self.input.malformed());
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(suffix);
        let older_count = self.input.count()?;
        if older_count > self.input.bytes.len() {
            return Err(self.input.malformed());
        }
        let mut older = Vec::with_capacity(older_count);
        let mut main = 0;
        for _ in 0..older_count {
            let version = self.input.version(main)?;
            main = version.main();
            older.push(version);
        }
        let newest = self.input.version(main)?;
        let facts = if newest.is_dead() { None } else { Some(self.input.facts()?) };
        let facts = match facts {
            Some((facts, _)) if facts.version == 0 => Some(self.patch()?),
            facts => facts,
        };
        self.ordinal += 1;
        let value_len = facts.map_or(0, |(_, value_len)| value_len);
        let record =
            RecordBuilder::with_older(older).newest(newest.id(), facts.map(|(facts, _)| facts), value_len);
        Ok((self.key.clone(), record))
    }

    fn patch(&mut self) -> Result<(Facts, usize), CheckpointError> {
        let patches = &mut self.patches;
        patches.left = patches.left.checked_sub(1).ok_or(patches.input.malformed())?;
        patches.ordinal += patches.input.varint()?;
        if patches.ordinal != self.ordinal {
            return Err(patches.input.malformed());
        }
        patches.input.facts()
    }
}

impl Iterator for &mut Keys<'_> {
    type Item = (Vec<u8>, Record);

    fn next(&mut self) -> Option<Self::Item> {
        if self.error.is_some() || self.input.at == self.input.bytes.len() {
            return None;
        }
        match self.record() {
            Ok(record) => Some(record),
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }
}
