//! The `message` stream: `BE64 length | raftpb.Message`, repeated. A heartbeat of the link is a message of type MsgHeartbeat from
//! nobody to nobody.

use api::raftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use bytes::{Bytes, BytesMut};

use super::{Decoded, FrameError, assemble::Assembler, decode_message, put_framed};

pub fn encode(message: &Message, out: &mut BytesMut) {
    put_framed(message, out);
}

pub fn encode_heartbeat(out: &mut BytesMut) {
    put_framed(&heartbeat(), out);
}

/// All fields are written out as etcd's encoder does, the empty snapshot included.
fn heartbeat() -> Message {
    Message {
        r#type: Some(MessageType::MsgHeartbeat as i32),
        to: Some(0),
        from: Some(0),
        term: Some(0),
        log_term: Some(0),
        index: Some(0),
        entries: Vec::new(),
        commit: Some(0),
        snapshot: Some(Snapshot {
            data: None,
            metadata: Some(SnapshotMetadata {
                conf_state: Some(api::raftpb::ConfState { auto_leave: Some(false), ..Default::default() }),
                index: Some(0),
                term: Some(0),
            }),
        }),
        reject: Some(false),
        reject_hint: Some(0),
        context: None,
        vote: None,
        responses: Vec::new(),
    }
}

fn is_heartbeat(message: &Message) -> bool {
    message.r#type == Some(MessageType::MsgHeartbeat as i32)
        && message.from.unwrap_or(0) == 0
        && message.to.unwrap_or(0) == 0
}

/// Reads one `message` stream.
pub struct Decoder {
    input: Assembler,
    limit: u64,
    /// Length of the frame whose body is awaited.
    body: Option<usize>,
}

impl Decoder {
    /// `limit`: bytes of one frame, and of what it decodes to.
    pub fn new(limit: u64) -> Self {
        Decoder { input: Assembler::default(), limit, body: None }
    }

    pub fn feed(&mut self, chunk: Bytes) {
        self.input.feed(chunk);
    }

    /// The next frame, or `None` until more bytes are fed. After an error the stream cannot go on.
    pub fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        let length = match self.body {
            Some(length) => length,
            None => {
                let Some(announced) = self.input.take_u64() else { return Ok(None) };
                if announced > self.limit {
                    return Err(FrameError::TooLarge { announced, limit: self.limit });
                }
                *self.body.insert(announced as usize)
            }
        };
        let Some(body) = self.input.take(length) else { return Ok(None) };
        self.body = None;
        let message = decode_message(body, self.limit)?;
        Ok(Some(if is_heartbeat(&message) { Decoded::Heartbeat } else { Decoded::Message(message) }))
    }
}
