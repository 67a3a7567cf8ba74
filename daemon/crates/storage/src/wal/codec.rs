//! Bytes of records and frames. Writing is explicit in the sense of proto2: a scalar is written even when it is zero, because
//! etcd's tools dereference what they expect. Reading accepts absent as zero.
//!
//! The checksum of a record covers its data but not its type. So reading is strict beyond that: fields in order, none unknown, and no
//! record that could be one of another type with a flipped bit.
//!
//! Frame: a little-endian 64-bit length field, the record, zero bytes up to a multiple of eight. The low 56 bits of the field are
//! the record's length; its top byte is 0x80 plus the number of padding bytes, or 0 without padding.

use api::{raftpb, walpb};
use bytes::Bytes;
use identity::Unique;
use prost::Message;
use types::{ClusterId, ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

use super::WalMetadata;

/// Width of the length field; frames are aligned to it.
pub(super) const ALIGN: u64 = 8;

const LENGTH_MASK: u64 = (1 << 56) - 1;

/// Record types by their numbers on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    Metadata = 1,
    Entry = 2,
    State = 3,
    Crc = 4,
    Snapshot = 5,
}

impl RecordKind {
    fn from_number(number: i64) -> Option<RecordKind> {
        Some(match number {
            1 => RecordKind::Metadata,
            2 => RecordKind::Entry,
            3 => RecordKind::State,
            4 => RecordKind::Crc,
            5 => RecordKind::Snapshot,
            _ => return None,
        })
    }
}

/// What the eight bytes before a record say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LengthField {
    /// Zero: nothing was written from here on.
    End,
    Body {
        record: u64,
        padding: u64,
    },
    /// Top byte and length contradict each other.
    Malformed,
}

impl LengthField {
    pub(super) fn decode(bytes: [u8; 8]) -> LengthField {
        let field = u64::from_le_bytes(bytes);
        if field == 0 {
            return LengthField::End;
        }
        let record = field & LENGTH_MASK;
        if record == 0 || field != length_field(record) {
            return LengthField::Malformed;
        }
        LengthField::Body { record, padding: padding(record) }
    }
}

fn padding(record: u64) -> u64 {
    (ALIGN - record % ALIGN) % ALIGN
}

fn length_field(record: u64) -> u64 {
    match padding(record) {
        0 => record,
        padding => record | (0x80 | padding) << 56,
    }
}

/// Collects frames in one buffer and keeps the running checksum.
#[derive(Debug, Default)]
pub(super) struct FrameWriter {
    pub(super) bytes: Vec<u8>,
    pub(super) crc: u32,
    scratch: Vec<u8>,
}

impl FrameWriter {
    /// For a log whose running checksum is `crc`.
    pub(super) fn continuing(crc: u32) -> FrameWriter {
        FrameWriter { crc, ..FrameWriter::default() }
    }

    pub(super) fn metadata(&mut self, encoded: &[u8]) {
        self.frame(RecordKind::Metadata, &[encoded]);
    }

    /// The head of an entry fits a small array; its data is copied once, straight into the buffer.
    pub(super) fn entry(&mut self, entry: &Entry) {
        let mut head = [0u8; ENTRY_HEAD_BYTES_MAX];
        let mut at = 0;
        for (tag, value) in [(0x08, entry.kind as u64), (0x10, entry.term.0), (0x18, entry.index.0)] {
            head[at] = tag;
            at += 1 + put_varint(&mut head[at + 1..], value);
        }
        if entry.data.is_empty() {
            self.frame(RecordKind::Entry, &[&head[..at]]);
        } else {
            head[at] = 0x22;
            at += 1 + put_varint(&mut head[at + 1..], entry.data.len() as u64);
            self.frame(RecordKind::Entry, &[&head[..at], &entry.data]);
        }
    }

    pub(super) fn state(&mut self, state: &HardState) {
        self.message(
            RecordKind::State,
            &raftpb::HardState {
                term: Some(state.term.0),
                vote: Some(state.vote.0),
                commit: Some(state.commit.0),
            },
        );
    }

    pub(super) fn snapshot(&mut self, position: LogPosition, conf_state: Option<&ConfState>) {
        self.message(
            RecordKind::Snapshot,
            &walpb::Snapshot {
                index: Some(position.index.0),
                term: Some(position.term.0),
                conf_state: conf_state.map(encode_conf_state),
            },
        );
    }

    /// A statement of the running checksum: the head of a segment, and the sync mark.
    pub(super) fn crc_mark(&mut self) {
        self.frame_with(RecordKind::Crc, &[], self.crc, 0);
    }

    fn message(&mut self, kind: RecordKind, message: &impl Message) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        message.encode_raw(&mut scratch);
        self.frame(kind, &[&scratch]);
        self.scratch = scratch;
    }

    fn frame(&mut self, kind: RecordKind, parts: &[&[u8]]) {
        let mut len = 0;
        for part in parts {
            self.crc = crc32c::crc32c_append(self.crc, part);
            len += part.len();
        }
        self.frame_with(kind, parts, self.crc, len);
    }

    fn frame_with(&mut self, kind: RecordKind, parts: &[&[u8]], crc: u32, data_len: usize) {
        let mut head = [0u8; RECORD_HEAD_BYTES_MAX];
        head[0] = 0x08;
        head[1] = kind as u8;
        head[2] = 0x10;
        let mut head_len = 3 + put_varint(&mut head[3..], u64::from(crc));
        if kind != RecordKind::Crc {
            head[head_len] = 0x1a;
            head_len += 1 + put_varint(&mut head[head_len + 1..], data_len as u64);
        }
        let record = (head_len + data_len) as u64;
        self.bytes.extend_from_slice(&length_field(record).to_le_bytes());
        self.bytes.extend_from_slice(&head[..head_len]);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let padding = padding(record) as usize;
        self.bytes.extend_from_slice(&[0; ALIGN as usize][..padding]);
    }
}

/// A varint has at most ten bytes; three of them with tags, then tag and length of the data.
const ENTRY_HEAD_BYTES_MAX: usize = 4 * 11;
/// Type, checksum and length of the data.
const RECORD_HEAD_BYTES_MAX: usize = 2 + 11 + 11;

/// An upper bound of what an entry takes in the log, frame included.
pub(super) fn entry_frame_bytes_max(entry: &Entry) -> u64 {
    (entry.data.len() + ENTRY_HEAD_BYTES_MAX + RECORD_HEAD_BYTES_MAX) as u64 + 2 * ALIGN
}

fn put_varint(out: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// The parts of a record, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordParts<'a> {
    pub(super) kind: RecordKind,
    pub(super) crc: u32,
    pub(super) data: &'a [u8],
}

/// Why a record has no parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordFault {
    Undecodable,
    UnknownType(i64),
}

pub(super) fn decode_record(bytes: &[u8]) -> Result<RecordParts<'_>, RecordFault> {
    let (mut number, mut crc, mut data) = (0, 0, &[][..]);
    let mut fields = Fields::of(bytes);
    while let Some(field) = fields.next().map_err(|()| RecordFault::Undecodable)? {
        match field {
            (1, Value::Number(value)) => number = value as i64,
            (2, Value::Number(value)) => crc = u32::try_from(value).map_err(|_| RecordFault::Undecodable)?,
            (3, Value::Bytes(value)) => data = value,
            _ => return Err(RecordFault::Undecodable),
        }
    }
    let kind = RecordKind::from_number(number).ok_or(RecordFault::UnknownType(number))?;
    Ok(RecordParts { kind, crc, data })
}

/// The lengths of head and data that a record claims at its start, if that much of it is sound.
pub(super) fn record_lengths(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut fields = Fields::of(bytes);
    let (Ok(Some((1, Value::Number(number)))), Ok(Some((2, Value::Number(_))))) =
        (fields.next(), fields.next())
    else {
        return None;
    };
    let kind = RecordKind::from_number(number as i64)?;
    let mut data = 0;
    if kind != RecordKind::Crc {
        if fields.varint() != Ok(0x1a) {
            return None;
        }
        data = fields.varint().ok()?;
    }
    Some(((bytes.len() - fields.rest.len()) as u64, data))
}

/// An entry whose data still lies in the read buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryParts<'a> {
    pub(super) kind: EntryKind,
    pub(super) position: LogPosition,
    pub(super) data: &'a [u8],
}

impl EntryParts<'_> {
    pub(super) fn to_entry(self) -> Entry {
        Entry {
            term: self.position.term,
            index: self.position.index,
            kind: self.kind,
            data: Bytes::copy_from_slice(self.data),
        }
    }
}

pub(super) fn decode_entry(bytes: &[u8]) -> Option<EntryParts<'_>> {
    let (mut kind, mut term, mut index, mut data) = (0, 0, 0, &[][..]);
    let mut fields = Fields::of(bytes);
    while let Some(field) = fields.next().ok()? {
        match field {
            (1, Value::Number(value)) => kind = value,
            (2, Value::Number(value)) => term = value,
            (3, Value::Number(value)) => index = value,
            (4, Value::Bytes(value)) => data = value,
            _ => return None,
        }
    }
    let kind = match kind {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        2 => EntryKind::ConfChangeV2,
        _ => return None,
    };
    // The largest index has no successor, and the log counts on there being one.
    if index == 0 || index == u64::MAX {
        return None;
    }
    // A change without content exists nowhere; a hard state of term 1 or 2 taken for an entry would look like one.
    if kind != EntryKind::Normal && data.is_empty() {
        return None;
    }
    Some(EntryParts { kind, position: LogPosition { term: Term(term), index: LogIndex(index) }, data })
}

pub(super) fn decode_state(bytes: &[u8]) -> Option<HardState> {
    let mut numbers = [0; 3];
    let mut fields = Fields::of(bytes);
    while let Some(field) = fields.next().ok()? {
        match field {
            (field @ 1..=3, Value::Number(value)) => numbers[field as usize - 1] = value,
            _ => return None,
        }
    }
    let [term, vote, commit] = numbers;
    // Nobody votes or commits in term 0; an empty entry taken for a state would look like that.
    if term == 0 && (vote, commit) != (0, 0) {
        return None;
    }
    Some(HardState { term: Term(term), vote: MemberId(vote), commit: LogIndex(commit) })
}

/// The conf state is absent at index 0, and in logs of etcd before 3.5.
pub(super) fn decode_snapshot(bytes: &[u8]) -> Option<(LogPosition, Option<ConfState>)> {
    let snapshot = walpb::Snapshot::decode(bytes).ok()?;
    let (term, index) = (Term(snapshot.term.unwrap_or(0)), LogIndex(snapshot.index.unwrap_or(0)));
    if index.0 == u64::MAX {
        return None;
    }
    Some((LogPosition { term, index }, snapshot.conf_state.map(decode_conf_state)))
}

/// etcd's `etcdserverpb.Metadata`, and one field that etcd does not know and skips.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(uint64, optional, tag = "1")]
    node_id: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    cluster_id: Option<u64>,
    /// 16 bytes. Far from the numbers that etcd may give away.
    #[prost(bytes = "bytes", optional, tag = "1000")]
    dir_uuid: Option<Bytes>,
}

pub(super) fn encode_metadata(metadata: &WalMetadata) -> Bytes {
    let dir_uuid = metadata.dir_uuid.map(|uuid| Bytes::copy_from_slice(&uuid.to_bytes()));
    Metadata { node_id: Some(metadata.member_id.0), cluster_id: Some(metadata.cluster_id.0), dir_uuid }
        .encode_to_vec()
        .into()
}

pub(super) fn decode_metadata(bytes: &[u8]) -> Option<WalMetadata> {
    let metadata = Metadata::decode(bytes).ok()?;
    let dir_uuid = match metadata.dir_uuid {
        Some(bytes) => Some(Unique::from_bytes(bytes.as_ref().try_into().ok()?)),
        None => None,
    };
    Some(WalMetadata {
        member_id: MemberId(metadata.node_id.unwrap_or(0)),
        cluster_id: ClusterId(metadata.cluster_id.unwrap_or(0)),
        dir_uuid,
    })
}

fn encode_conf_state(conf: &ConfState) -> raftpb::ConfState {
    let ids = |members: &[MemberId]| members.iter().map(|member| member.0).collect();
    raftpb::ConfState {
        voters: ids(&conf.voters),
        learners: ids(&conf.learners),
        voters_outgoing: ids(&conf.voters_outgoing),
        learners_next: ids(&conf.learners_next),
        auto_leave: Some(conf.auto_leave),
    }
}

fn decode_conf_state(conf: raftpb::ConfState) -> ConfState {
    let members = |ids: Vec<u64>| ids.into_iter().map(MemberId).collect();
    ConfState {
        voters: members(conf.voters),
        learners: members(conf.learners),
        voters_outgoing: members(conf.voters_outgoing),
        learners_next: members(conf.learners_next),
        auto_leave: conf.auto_leave.unwrap_or(false),
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, one after the other. Their numbers must rise.
struct Fields<'a> {
    rest: &'a [u8],
    number: u64,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message, number: 0 }
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, ()> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            _ => return Err(()),
        };
        let before = std::mem::replace(&mut self.number, tag >> 3);
        if self.number <= before { Err(()) } else { Ok(Some((self.number, value))) }
    }

    fn varint(&mut self) -> Result<u64, ()> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32).ok_or(())?;
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(())
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ()> {
        let len = usize::try_from(len).map_err(|_| ())?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(())?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_log_begins_with_the_bytes_that_etcd_writes() {
        let mut frames = FrameWriter::default();
        frames.crc_mark();
        assert_eq!(frames.bytes, [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn zero_scalars_are_written_and_absent_ones_read_as_zero() {
        let mut frames = FrameWriter::default();
        frames.entry(&Entry { term: Term(1), index: LogIndex(2), ..Entry::default() });
        let data: &[u8] = &[8, 0, 16, 1, 24, 2];
        let record = decode_record(&frames.bytes[8..8 + 16]).unwrap();
        assert_eq!((record.kind, record.data), (RecordKind::Entry, data));
        assert_eq!(record.crc, crc32c::crc32c(data));

        let entry = decode_entry(&[16, 1, 24, 2]).unwrap();
        assert_eq!((entry.kind, entry.data.len()), (EntryKind::Normal, 0));
        assert_eq!(entry.position, LogPosition { term: Term(1), index: LogIndex(2) });
    }

    #[test]
    fn a_record_read_as_another_type_is_noticed() {
        let state = |term, vote, commit| {
            let mut frames = FrameWriter::default();
            frames.state(&HardState { term: Term(term), vote: MemberId(vote), commit: LogIndex(commit) });
            let record = frames.bytes.len() - 8;
            let padding = (frames.bytes[7] & 7) as usize;
            decode_record(&frames.bytes[8..8 + record - padding]).unwrap().data.to_vec()
        };
        for term in 0..5 {
            let state = state(term, 7 * term.min(1), 9 * term.min(1));
            assert!(decode_state(&state).is_some());
            assert!(decode_entry(&state).is_none(), "a state of term {term} is not an entry");
        }
        assert!(decode_state(&[8, 0, 16, 1, 24, 2]).is_none(), "an empty entry is not a state");
        assert!(decode_state(&[8, 1, 16, 1, 24, 2, 34, 1, 0]).is_none(), "an entry with data is not a state");
        assert!(decode_record(&[8, 4, 16, 0, 8, 4]).is_err(), "no field comes twice");
    }

    #[test]
    fn an_entry_is_written_as_prost_would_write_it() {
        for data in [&b""[..], b"x", &[7; 300]] {
            let entry = Entry {
                term: Term(u64::MAX),
                index: LogIndex(300),
                kind: if data.is_empty() { EntryKind::Normal } else { EntryKind::ConfChange },
                data: Bytes::copy_from_slice(data),
            };
            let message = raftpb::Entry {
                r#type: Some(entry.kind as i32),
                term: Some(u64::MAX),
                index: Some(300),
                data: (!data.is_empty()).then(|| entry.data.clone()),
            };
            let mut frames = FrameWriter::default();
            frames.entry(&entry);
            assert!(frames.bytes.len() as u64 <= entry_frame_bytes_max(&entry));
            let LengthField::Body { record, .. } = LengthField::decode(frames.bytes[..8].try_into().unwrap())
            else {
                panic!("a frame has a length")
            };
            let record = decode_record(&frames.bytes[8..8 + record as usize]).unwrap();
            assert_eq!(record.data, message.encode_to_vec());
            assert_eq!(decode_entry(record.data).unwrap().to_entry(), entry);
        }
    }

    #[test]
    fn length_fields_that_contradict_themselves_are_malformed() {
        assert_eq!(LengthField::decode([0; 8]), LengthField::End);
        assert_eq!(
            LengthField::decode([16, 0, 0, 0, 0, 0, 0, 0]),
            LengthField::Body { record: 16, padding: 0 }
        );
        assert_eq!(
            LengthField::decode([15, 0, 0, 0, 0, 0, 0, 0x81]),
            LengthField::Body { record: 15, padding: 1 }
        );
        for field in [[15, 0, 0, 0, 0, 0, 0, 0], [15, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0x80]] {
            assert_eq!(LengthField::decode(field), LengthField::Malformed);
        }
    }
}
