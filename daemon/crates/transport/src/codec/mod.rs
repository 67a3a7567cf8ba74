//! The bytes of etcd's peer streams, both directions, without any I/O: feed chunks in, take messages out; give messages, get bytes.
//!
//! Every decoder here is total. Arbitrary bytes yield messages or a [`FrameError`], never a panic, and never more memory than the
//! limit it was built with: buffers grow as bytes arrive, not as lengths are announced, and the cost of what a frame would decode to
//! is counted before it is decoded. Entry data is a slice of the received chunk whenever the frame lay whole within it.
//!
//! Not here: whether a message makes sense to raft (`ingress`), which stream a message belongs on (`peer`).

mod assemble;
pub mod message;
pub mod msgapp;
mod scan;

use api::raftpb::{Message, MessageType};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

/// Why a stream of bytes stopped being one. The connection it came from is closed: there is no way to find the next frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame announces {announced} bytes, at most {limit} are accepted")]
    TooLarge { announced: u64, limit: u64 },
    #[error("frame decodes to more than the {limit} bytes accepted")]
    TooCostly { limit: u64 },
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    #[error("frame is not a raft message: {0}")]
    Malformed(String),
}

impl From<prost::DecodeError> for FrameError {
    fn from(error: prost::DecodeError) -> Self {
        FrameError::Malformed(error.to_string())
    }
}

/// What a decoder found next.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "lives for one call on the stack")]
pub enum Decoded {
    /// The link is alive; carries nothing for raft.
    Heartbeat,
    Message(Message),
}

/// Decodes one bare raft message, as in the body of `POST /raft`; `limit` bounds both its bytes and what it decodes to.
pub fn decode_message(bytes: Bytes, limit: u64) -> Result<Message, FrameError> {
    if bytes.len() as u64 > limit {
        return Err(FrameError::TooLarge { announced: bytes.len() as u64, limit });
    }
    if scan::cost_of_message(&bytes)? > limit {
        return Err(FrameError::TooCostly { limit });
    }
    Ok(Message::decode(bytes)?)
}

/// Writes the 8-byte length and the message.
pub fn put_framed(message: &Message, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(8 + length);
    out.put_u64(length as u64);
    message.encode(out).expect("BytesMut grows");
}

/// Bytes a message occupies in a queue, near enough: exact lengths would cost a walk over every varint on the raft thread.
pub fn weight(message: &Message) -> usize {
    const MESSAGE: usize = 128;
    const ENTRY: usize = 32;
    let entries: usize =
        message.entries.iter().map(|entry| ENTRY + entry.data.as_ref().map_or(0, Bytes::len)).sum();
    let snapshot =
        message.snapshot.as_ref().and_then(|snapshot| snapshot.data.as_ref()).map_or(0, Bytes::len);
    MESSAGE + entries + snapshot + message.context.as_ref().map_or(0, Bytes::len)
}

/// The raft type of a message; `None` for numbers this version of the protocol does not have.
pub fn kind(message: &Message) -> Option<MessageType> {
    MessageType::try_from(message.r#type.unwrap_or(0)).ok()
}
