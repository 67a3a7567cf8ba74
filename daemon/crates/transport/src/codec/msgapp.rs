//! The `msgapp` stream in its second version. Both ends follow the position of the log that travelled last, so that an append which
//! continues it needs neither term nor index:
//!
//! ```text
//! 0x00                                                     the link is alive
//! 0x01 | BE64 n | n x (BE64 length | Entry) | BE64 commit   entries that continue the position
//! 0x02 | BE64 length | Message                              any append; sets the position
//! ```
//! Both ends start at term 0, index 0 with each connection.

use api::raftpb::{Entry, Message, MessageType};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use types::MemberId;

use super::{Decoded, FrameError, assemble::Assembler, decode_message, put_framed, scan};

const LINK_HEARTBEAT: u8 = 0;
const APP_ENTRIES: u8 = 1;
const APP: u8 = 2;

/// Where the stream is in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    term: u64,
    index: u64,
}

impl Position {
    fn after(message: &Message) -> Position {
        let last = message.entries.last().map(|entry| entry.index.unwrap_or(0));
        Position {
            term: message.term.unwrap_or(0),
            index: last.unwrap_or_else(|| message.index.unwrap_or(0)),
        }
    }

    fn is_continued_by(self, message: &Message) -> bool {
        let term = message.term.unwrap_or(0);
        message.index.unwrap_or(0) == self.index
            && message.log_term.unwrap_or(0) == self.term
            && term == self.term
    }
}

#[derive(Default)]
pub struct Encoder {
    position: Position,
}

impl Encoder {
    pub fn encode_heartbeat(out: &mut BytesMut) {
        out.put_u8(LINK_HEARTBEAT);
    }

    /// `message` must be a MsgApp.
    pub fn encode(&mut self, message: &Message, out: &mut BytesMut) {
        if !self.position.is_continued_by(message) {
            out.put_u8(APP);
            put_framed(message, out);
            self.position = Position::after(message);
            return;
        }
        out.put_u8(APP_ENTRIES);
        out.put_u64(message.entries.len() as u64);
        for entry in &message.entries {
            let length = entry.encoded_len();
            out.reserve(8 + length);
            out.put_u64(length as u64);
            entry.encode(out).expect("BytesMut grows");
        }
        out.put_u64(message.commit.unwrap_or(0));
        self.position.index += message.entries.len() as u64;
    }
}

enum Awaited {
    Type,
    Count,
    EntryLength { missing: u64 },
    Entry { missing: u64, length: usize },
    Commit,
    MessageLength,
    Message { length: usize },
}

/// Reads one `msgapp` stream, written by `from` for `to`.
pub struct Decoder {
    input: Assembler,
    from: MemberId,
    to: MemberId,
    limit: u64,
    position: Position,
    awaited: Awaited,
    /// The position before the entries now being gathered, and those that are here.
    start: Position,
    entries: Vec<Entry>,
    cost: u64,
}

impl Decoder {
    /// `limit`: bytes of one frame, and of what it decodes to.
    pub fn new(from: MemberId, to: MemberId, limit: u64) -> Self {
        Decoder {
            input: Assembler::default(),
            from,
            to,
            limit,
            position: Position::default(),
            awaited: Awaited::Type,
            start: Position::default(),
            entries: Vec::new(),
            cost: 0,
        }
    }

    pub fn feed(&mut self, chunk: Bytes) {
        self.input.feed(chunk);
    }

    /// The next frame, or `None` until more bytes are fed. After an error the stream cannot go on.
    pub fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        loop {
            match self.awaited {
                Awaited::Type => {
                    let Some(kind) = self.input.take_u8() else { return Ok(None) };
                    self.awaited = match kind {
                        LINK_HEARTBEAT => return Ok(Some(Decoded::Heartbeat)),
                        APP_ENTRIES => Awaited::Count,
                        APP => Awaited::MessageLength,
                        other => return Err(FrameError::UnknownType(other)),
                    };
                }
                Awaited::Count => {
                    let Some(count) = self.input.take_u64() else { return Ok(None) };
                    self.start = self.position;
                    self.cost = 0;
                    // Each entry costs at least its length field, so this also refuses counts that could never end.
                    self.charge(count.saturating_mul(8))?;
                    self.cost = 0;
                    self.awaited = self.after_entry(count);
                }
                Awaited::EntryLength { missing } => {
                    let Some(length) = self.input.take_u64() else { return Ok(None) };
                    self.charge(scan::cost_of_entry(length))?;
                    self.awaited = Awaited::Entry { missing, length: length as usize };
                }
                Awaited::Entry { missing, length } => {
                    let Some(bytes) = self.input.take(length) else { return Ok(None) };
                    let entry = Entry::decode(bytes)?;
                    self.position.index = entry.index.unwrap_or(0);
                    self.entries.push(entry);
                    self.awaited = self.after_entry(missing - 1);
                }
                Awaited::Commit => {
                    let Some(commit) = self.input.take_u64() else { return Ok(None) };
                    self.awaited = Awaited::Type;
                    return Ok(Some(Decoded::Message(self.append(commit))));
                }
                Awaited::MessageLength => {
                    let Some(announced) = self.input.take_u64() else { return Ok(None) };
                    if announced > self.limit {
                        return Err(FrameError::TooLarge { announced, limit: self.limit });
                    }
                    self.awaited = Awaited::Message { length: announced as usize };
                }
                Awaited::Message { length } => {
                    let Some(bytes) = self.input.take(length) else { return Ok(None) };
                    let message = decode_message(bytes, self.limit)?;
                    self.position = Position::after(&message);
                    self.awaited = Awaited::Type;
                    return Ok(Some(Decoded::Message(message)));
                }
            }
        }
    }

    fn after_entry(&self, missing: u64) -> Awaited {
        if missing == 0 { Awaited::Commit } else { Awaited::EntryLength { missing } }
    }

    fn charge(&mut self, cost: u64) -> Result<(), FrameError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            return Err(FrameError::TooLarge { announced: self.cost, limit: self.limit });
        }
        Ok(())
    }

    fn append(&mut self, commit: u64) -> Message {
        Message {
            r#type: Some(MessageType::MsgApp as i32),
            to: Some(self.to.0),
            from: Some(self.from.0),
            term: Some(self.start.term),
            log_term: Some(self.start.term),
            index: Some(self.start.index),
            entries: std::mem::take(&mut self.entries),
            commit: Some(commit),
            snapshot: None,
            reject: Some(false),
            reject_hint: Some(0),
            context: None,
            vote: None,
            responses: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64, data: &'static [u8]) -> Entry {
        Entry {
            r#type: Some(0),
            term: Some(term),
            index: Some(index),
            data: (!data.is_empty()).then(|| Bytes::from_static(data)),
        }
    }

    fn append(term: u64, log_term: u64, index: u64, entries: Vec<Entry>, commit: u64) -> Message {
        Message {
            r#type: Some(MessageType::MsgApp as i32),
            to: Some(2),
            from: Some(1),
            term: Some(term),
            log_term: Some(log_term),
            index: Some(index),
            entries,
            commit: Some(commit),
            snapshot: None,
            reject: Some(false),
            reject_hint: Some(0),
            context: None,
            vote: None,
            responses: Vec::new(),
        }
    }

    fn decoder(limit: u64) -> Decoder {
        Decoder::new(MemberId(1), MemberId(2), limit)
    }

    #[test]
    fn an_append_that_continues_needs_neither_term_nor_index() {
        let mut encoder = Encoder::default();
        let mut out = BytesMut::new();
        encoder.encode(&append(5, 4, 10, vec![entry(5, 11, b"a")], 9), &mut out);
        assert_eq!(out[0], APP, "the first append sets the position");
        let first = out.len();
        encoder.encode(&append(5, 5, 11, vec![entry(5, 12, b"b"), entry(5, 13, b"")], 11), &mut out);
        // Type, count, two entries with type, term, index (and data) written out, commit.
        assert_eq!(
            out[first..],
            [
                [1].as_slice(),
                &2u64.to_be_bytes(),
                &9u64.to_be_bytes(),
                &[8, 0, 16, 5, 24, 12, 34, 1, b'b'],
                &6u64.to_be_bytes(),
                &[8, 0, 16, 5, 24, 13],
                &11u64.to_be_bytes(),
            ]
            .concat()
        );
        let before = out.len();
        encoder.encode(&append(5, 5, 13, vec![], 13), &mut out);
        assert_eq!(
            out[before..][..9],
            [1, 0, 0, 0, 0, 0, 0, 0, 0],
            "a commit alone is entries of count zero"
        );
        encoder.encode(&append(6, 5, 13, vec![], 13), &mut out);

        let mut decoder = decoder(1 << 20);
        decoder.feed(out.freeze());
        let mut seen = Vec::new();
        while let Some(frame) = decoder.next_frame().expect("our own bytes") {
            let Decoded::Message(message) = frame else { panic!("no heartbeat was written") };
            seen.push(message);
        }
        assert_eq!(
            seen,
            [
                append(5, 4, 10, vec![entry(5, 11, b"a")], 9),
                append(5, 5, 11, vec![entry(5, 12, b"b"), entry(5, 13, b"")], 11),
                append(5, 5, 13, vec![], 13),
                append(6, 5, 13, vec![], 13),
            ]
        );
    }

    #[test]
    fn entry_data_is_a_slice_of_the_chunk() {
        let mut out = BytesMut::new();
        Encoder::default().encode(&append(1, 0, 0, vec![entry(1, 1, b"payload")], 0), &mut out);
        let chunk = out.freeze();
        let mut decoder = decoder(1 << 20);
        decoder.feed(chunk.clone());
        let Some(Decoded::Message(message)) = decoder.next_frame().expect("our own bytes") else { panic!() };
        let data = message.entries[0].data.clone().expect("set above");
        assert!(chunk.as_ptr_range().contains(&data.as_ptr()), "no copy was made");
    }

    #[test]
    fn a_count_that_could_never_end_is_refused_at_once() {
        let mut decoder = decoder(1 << 20);
        decoder.feed([[APP_ENTRIES].as_slice(), &u64::MAX.to_be_bytes()].concat().into());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut decoder = decoder(1 << 20);
        decoder.feed([[APP].as_slice(), &(1u64 << 21).to_be_bytes()].concat().into());
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge { announced: 1 << 21, limit: 1 << 20 }));
    }
}
