//! Torn or damaged: the judgement over a place in the newest segment where the frames stop making sense.
//!
//! A torn write is the remainder of writes that no sync had completed: the file ends early, or some of its 512-byte sectors are
//! still the zeros that were there before. Two proofs speak against it: a fault that sectors cannot explain, and intact records
//! behind it which were only written after a sync.

use std::fs::File;
use std::io;

use nix::unistd::{Whence, lseek};

use super::codec::{self, ALIGN, LengthField, RecordKind, RecordParts};
use super::error::DamageKind;
use super::frames::{Fault, read_at};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// How far behind the last byte that is not zero a record may still reach: a value may end in zeros, and values are normally smaller
/// than `max-request-bytes`.
const VALUE_ZEROS_MAX: u64 = 2 << 20;

/// Bytes compared at a time when looking for the end of a zero tail.
const SCAN_BYTES: usize = 1 << 20;

/// What follows the last good frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing but zeros.
    Clean,
    /// Bytes of writes that were never synced.
    Torn {
        /// From the last good frame to the last byte that is not zero.
        bytes: u64,
    },
    Damaged(DamageKind),
}

/// Judges the bytes from `offset`, where the reader stopped with `fault`, or at a zero length field without one. `marked` says
/// whether this segment has sync marks, which etcd's own logs do not.
pub(super) fn judge(file: &File, offset: u64, fault: Option<Fault>, marked: bool) -> io::Result<Verdict> {
    let len = file.metadata()?.len();
    let last = last_nonzero(file, offset, len)?;
    let Some(last) = last else {
        return Ok(match fault {
            // A few zero bytes too few for a length field.
            None | Some(Fault { kind: DamageKind::Truncated, .. }) => Verdict::Clean,
            Some(fault) => Verdict::Damaged(fault.kind),
        });
    };
    let mut bytes = Vec::new();
    let wanted = len.min(last + 1 + VALUE_ZEROS_MAX) - offset;
    let wanted = usize::try_from(wanted).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    bytes.try_reserve_exact(wanted).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    bytes.resize(wanted, 0);
    let filled = read_at(file, &mut bytes, offset)?;
    bytes.truncate(filled);
    Ok(judge_bytes(&bytes, offset, last + 1 - offset, len, fault, marked))
}

/// The pure part: `bytes` begin at `offset` of the file, `used` of them lead up to the last one that is not zero, and behind those
/// the file has zeros up to `file_len`.
fn judge_bytes(
    bytes: &[u8],
    offset: u64,
    used: u64,
    file_len: u64,
    fault: Option<Fault>,
    marked: bool,
) -> Verdict {
    let zeros_behind = file_len - offset - used;
    let kind = match &fault {
        None => DamageKind::DataBehindEnd,
        Some(fault) => fault.kind.clone(),
    };
    let torn_looking = match (&kind, fault.and_then(|fault| fault.record_len)) {
        (DamageKind::DataBehindEnd | DamageKind::Truncated, _) => true,
        // A length field is never torn itself, as it does not straddle sectors. So the record really was that long, the space for
        // it was not reserved, and the file must end within its bytes and not in the zeros behind them.
        (DamageKind::BeyondFile { .. }, _) => zeros_behind < SECTOR_BYTES,
        (_, Some(record_len)) => {
            let record = &bytes[(ALIGN as usize).min(bytes.len())..];
            has_zero_sector(record, offset + ALIGN, record_len)
        }
        (_, None) => false,
    };
    if !torn_looking || length_lies(bytes, offset) {
        return Verdict::Damaged(kind);
    }
    match synced_after(bytes, marked) {
        Some(at) => {
            Verdict::Damaged(DamageKind::BelowSynced { fault: Box::new(kind), synced_at: offset + at as u64 })
        }
        None => Verdict::Torn { bytes: used },
    }
}

/// Whether the record at the start of `bytes` says itself that its frame has another length. Sectors cannot explain that, as long as
/// both statements are in one.
fn length_lies(bytes: &[u8], offset: u64) -> bool {
    let field = bytes.first_chunk().copied().map(LengthField::decode);
    let Some(LengthField::Body { record, .. }) = field else { return false };
    let Some((head, data)) = codec::record_lengths(&bytes[ALIGN as usize..]) else { return false };
    let one_sector = offset / SECTOR_BYTES == (offset + ALIGN + head - 1) / SECTOR_BYTES;
    one_sector && head.checked_add(data) != Some(record)
}

/// Whether one of the sectors that a record of `record_len` bytes at `offset` touches holds only zeros of it. `record` may be
/// shorter: what is missing is zero.
fn has_zero_sector(record: &[u8], offset: u64, record_len: u64) -> bool {
    let mut at = 0;
    while at < record_len {
        let next = record_len.min(at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES);
        let (from, to) = ((at as usize).min(record.len()), (next as usize).min(record.len()));
        if record[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = next;
    }
    false
}

/// Looks behind a fault at the start of `bytes` for an intact stretch of log that proves a sync in between, and returns where.
///
/// Two frames in a row whose checksums chain are no accident. With sync marks the proof is a mark within such a stretch. Without
/// them it is an entry behind a state: etcd writes entries and then the state of one save, and syncs before the next save.
fn synced_after(bytes: &[u8], marked: bool) -> Option<usize> {
    let mut at = ALIGN as usize;
    while at < bytes.len() {
        let Some((mut previous, mut next)) = frame_at(bytes, at) else {
            at += ALIGN as usize;
            continue;
        };
        let (mut saw_mark, mut saw_state, mut chained) = (None, false, false);
        let mut start = at;
        loop {
            match previous.kind {
                RecordKind::Crc => saw_mark = saw_mark.or(Some(start)),
                RecordKind::State => saw_state = true,
                RecordKind::Entry if saw_state && chained && !marked => return Some(start),
                _ => {}
            }
            if let Some(mark) = saw_mark.filter(|_| chained) {
                return Some(mark);
            }
            start = next;
            let Some((following, end)) = frame_at(bytes, next) else { break };
            let expected = match following.kind {
                RecordKind::Crc => previous.crc,
                _ => crc32c::crc32c_append(previous.crc, following.data),
            };
            if expected != following.crc {
                break;
            }
            (previous, next, chained) = (following, end, true);
        }
        // A stretch that chained is real, so the search goes on behind it; anything else may be the inside of a value.
        at = if chained { next } else { at + ALIGN as usize };
    }
    None
}

/// The record and the end of a frame that may begin at `at`.
fn frame_at(bytes: &[u8], at: usize) -> Option<(RecordParts<'_>, usize)> {
    let field = bytes.get(at..at + ALIGN as usize)?.try_into().ok()?;
    let LengthField::Body { record, padding } = LengthField::decode(field) else { return None };
    let start = at + ALIGN as usize;
    let record = usize::try_from(record).ok()?;
    let parts = codec::decode_record(bytes.get(start..start.checked_add(record)?)?).ok()?;
    Some((parts, start + record + padding as usize))
}

/// The offset of the last byte from `from` that is not zero. Holes and reserved space that was never written are not read.
fn last_nonzero(file: &File, from: u64, len: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; SCAN_BYTES.min(len.saturating_sub(from) as usize)];
    let mut last = None;
    let mut at = from;
    while let Some(data) = next_data(file, at, len) {
        at = data;
        let filled = read_at(file, &mut chunk, at)?;
        if filled == 0 {
            break;
        }
        if let Some(position) = chunk[..filled].iter().rposition(|byte| *byte != 0) {
            last = Some(at + position as u64);
        }
        at += filled as u64;
    }
    Ok(last)
}

/// Where data begins at or after `at`. File systems that cannot tell say "here".
fn next_data(file: &File, at: u64, len: u64) -> Option<u64> {
    if at >= len {
        return None;
    }
    match lseek(file, i64::try_from(at).ok()?, Whence::SeekData) {
        Ok(found) => Some((found as u64).max(at)),
        Err(nix::errno::Errno::ENXIO) => None,
        Err(_) => Some(at),
    }
}

/// Up to where space from `at` on was really written, so that writing there again needs no metadata.
pub(super) fn written_up_to(file: &File, at: u64, len: u64) -> u64 {
    match i64::try_from(at).map(|at| lseek(file, at, Whence::SeekHole)) {
        Ok(Ok(hole)) => (hole as u64).clamp(at, len.max(at)),
        _ => at,
    }
}
