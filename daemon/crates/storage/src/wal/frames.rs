//! Reads the frames of one segment, from its start, through a window of bounded size.
//!
//! Not here: what to do about a fault (recover, tail).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::codec::{self, ALIGN, LengthField, RecordFault, RecordKind};
use super::error::DamageKind;

/// Bytes read at a time. A single larger frame widens the window for as long as the reader lives.
const WINDOW_BYTES: usize = 1 << 20;

pub(super) struct FrameReader<'f> {
    file: &'f File,
    /// Length of the file, or less to stop earlier.
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    offset: u64,
    crc: u32,
}

/// A record whose place in the chain of checksums was verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) kind: RecordKind,
    pub(super) data: &'a [u8],
    /// Start of its frame.
    pub(super) offset: u64,
}

pub(super) enum Next<'a> {
    Record(Record<'a>),
    /// A zero length field, or the file ends where a frame would begin.
    End,
    /// The frame at the reader's offset cannot be used.
    Fault(Fault),
}

/// What is wrong with a frame, and where its record lies, if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: DamageKind,
    /// Length of the record, when it lies within the file; a torn write may then have left sectors of it zero.
    pub(super) record_len: Option<u64>,
}

impl<'f> FrameReader<'f> {
    /// `crc` is the running checksum at the end of the segment before, or 0 when this is the first one read.
    pub(super) fn new(file: &'f File, end: u64, crc: u32) -> FrameReader<'f> {
        FrameReader { file, end, window: Vec::new(), window_at: 0, offset: 0, crc }
    }

    /// Where the next frame begins; after a fault, where the faulty one does.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn crc(&self) -> u32 {
        self.crc
    }

    pub(super) fn next(&mut self) -> io::Result<Next<'_>> {
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Next::End);
        }
        let fault = |kind, record_len| Ok(Next::Fault(Fault { kind, record_len }));
        if left < ALIGN || !self.load(self.offset, ALIGN)? {
            return fault(DamageKind::Truncated, None);
        }
        let at = (self.offset - self.window_at) as usize;
        let mut field = [0; 8];
        field.copy_from_slice(&self.window[at..at + 8]);
        let (record_len, padding) = match LengthField::decode(field) {
            LengthField::End => return Ok(Next::End),
            LengthField::Malformed => {
                return fault(DamageKind::Undecodable { what: "the length of a frame" }, None);
            }
            LengthField::Body { record, padding } => (record, padding),
        };
        let body = record_len + padding;
        if body > left - ALIGN || !self.load(self.offset, ALIGN + body)? {
            return fault(DamageKind::BeyondFile { bytes: ALIGN + body }, None);
        }

        let at = (self.offset + ALIGN - self.window_at) as usize;
        let record = match codec::decode_record(&self.window[at..at + record_len as usize]) {
            Ok(record) => record,
            Err(RecordFault::Undecodable) => {
                return fault(DamageKind::Undecodable { what: "a record" }, Some(record_len));
            }
            Err(RecordFault::UnknownType(number)) => {
                return fault(DamageKind::UnknownRecord { number }, Some(record_len));
            }
        };
        let computed = match record.kind {
            // A reader that begins at a later segment has nothing to compare with yet.
            RecordKind::Crc if self.crc == 0 => record.crc,
            RecordKind::Crc => self.crc,
            _ => crc32c::crc32c_append(self.crc, record.data),
        };
        if computed != record.crc {
            return fault(DamageKind::Checksum { computed, recorded: record.crc }, Some(record_len));
        }
        let offset = self.offset;
        self.crc = computed;
        self.offset += ALIGN + body;
        Ok(Next::Record(Record { kind: record.kind, data: record.data, offset }))
    }

    /// Makes the window hold `len` bytes from `at`; false when the file has fewer, since it may shrink under a reader.
    fn load(&mut self, at: u64, len: u64) -> io::Result<bool> {
        if at >= self.window_at && at + len <= self.window_at + self.window.len() as u64 {
            return Ok(true);
        }
        let wanted = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let wanted = wanted.max(WINDOW_BYTES.min((self.end - at) as usize));
        self.window.clear();
        // The length may be nonsense up to the size of the file: an allocation that fails is an error, not an abort.
        self.window.try_reserve_exact(wanted).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.window.resize(wanted, 0);
        self.window_at = at;
        let filled = read_at(self.file, &mut self.window, at)?;
        self.window.truncate(filled);
        Ok(filled as u64 >= len)
    }
}

/// Fills as much of `out` as the file has.
pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read_at(&mut out[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
