//! What a protobuf message would cost in memory, counted without decoding it. A repeated message field of two bytes on the wire is a
//! struct of 72 bytes in memory, so a length limit alone would let a hostile neighbour multiply.

use api::raftpb::Entry;

use super::FrameError;

/// Vectors double, so an element may be paid for twice.
const VEC_GROWTH: u64 = 2;

/// A packed member id is one byte at least on the wire and eight in memory.
const MEMBER_ID_FACTOR: u64 = 8 * VEC_GROWTH;

const ENTRIES: u64 = 7;
const SNAPSHOT: u64 = 9;
const RESPONSES: u64 = 14;
const SNAPSHOT_METADATA: u64 = 2;

/// Upper estimate of the memory that one decoded entry takes, given its encoded length.
pub(super) fn cost_of_entry(encoded: u64) -> u64 {
    encoded.saturating_add(VEC_GROWTH * size_of::<Entry>() as u64)
}

/// Upper estimate of the memory that the decoded form of this `raftpb.Message` takes.
pub(super) fn cost_of_message(bytes: &[u8]) -> Result<u64, FrameError> {
    let mut cost = bytes.len() as u64;
    let mut fields = Fields(bytes);
    while let Some((number, body)) = fields.next()? {
        match number {
            ENTRIES => cost = cost.saturating_add(cost_of_entry(0)),
            SNAPSHOT => {
                let mut inner = Fields(body);
                while let Some((number, body)) = inner.next()? {
                    if number == SNAPSHOT_METADATA {
                        cost = cost.saturating_add(MEMBER_ID_FACTOR * body.len() as u64);
                    }
                }
            }
            // etcd fills it only between its own threads; raft-rs has a number there.
            RESPONSES => return Err(FrameError::Malformed("nested messages do not travel".into())),
            _ => {}
        }
    }
    Ok(cost)
}

/// Fields of a message; the body of anything but a length-delimited field is empty.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, &'a [u8])>, FrameError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let body: &[u8] = match key & 7 {
            0 => {
                self.varint()?;
                &[]
            }
            1 => {
                self.split(8)?;
                &[]
            }
            2 => {
                let length = self.varint()?;
                self.split(length)?
            }
            5 => {
                self.split(4)?;
                &[]
            }
            other => return Err(FrameError::Malformed(format!("wire type {other}"))),
        };
        Ok(Some((key >> 3, body)))
    }

    fn varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0u64;
        for (position, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                self.0 = &self.0[position + 1..];
                return Ok(value);
            }
        }
        Err(FrameError::Malformed("number without end".into()))
    }

    fn split(&mut self, length: u64) -> Result<&'a [u8], FrameError> {
        if length > self.0.len() as u64 {
            return Err(FrameError::Malformed("field is longer than its message".into()));
        }
        let (body, rest) = self.0.split_at(length as usize);
        self.0 = rest;
        Ok(body)
    }
}
