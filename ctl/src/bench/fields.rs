//! Protobuf and gRPC frames read in place: the load generator looks at a few numbers of each message and must not build the rest.
//!
//! Not here: what the numbers mean.

/// The gRPC frame head: one byte for compression, four for the length.
const FRAME_HEAD_BYTES: usize = 5;
/// Longer messages are taken for garbage. etcd itself sends watch responses without a bound, but none near this.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// The value of a field. etcd's answers have only numbers and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

/// The next field and its number; `None`: this is not such a message.
pub fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(rest)?;
    let number = varint(rest)?;
    match key & 7 {
        0 => Some((key >> 3, Value::Number(number))),
        2 => {
            let len = usize::try_from(number).ok().filter(|len| *len <= rest.len())?;
            let (bytes, after) = rest.split_at(len);
            *rest = after;
            Some((key >> 3, Value::Bytes(bytes)))
        }
        _ => None,
    }
}

/// The revision in a response header.
pub fn header_revision(mut header: &[u8]) -> Option<i64> {
    let mut revision = 0;
    while !header.is_empty() {
        if let (3, Value::Number(number)) = field(&mut header)? {
            revision = number as i64;
        }
    }
    Some(revision)
}

/// The revision in the header of any answer.
pub fn answer_revision(mut answer: &[u8]) -> Option<i64> {
    while !answer.is_empty() {
        if let (1, Value::Bytes(header)) = field(&mut answer)? {
            return header_revision(header);
        }
    }
    Some(0)
}

/// Cuts what arrives on one stream into messages. Only a message that is spread over several arrivals is copied.
#[derive(Default)]
pub struct Messages {
    rest: Vec<u8>,
}

/// The stream does not consist of plain gRPC frames.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbled;

/// The length of the whole frame that begins here, once its head is complete.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Garbled> {
    let Some(head) = bytes.get(..FRAME_HEAD_BYTES) else { return Ok(None) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || len > MESSAGE_BYTES_MAX { Err(Garbled) } else { Ok(Some(FRAME_HEAD_BYTES + len)) }
}

impl Messages {
    /// Hands each message that is complete now to `each`.
    pub fn feed(&mut self, mut arrived: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Garbled> {
        while !self.rest.is_empty() {
            let wanted = frame_len(&self.rest)?.unwrap_or(FRAME_HEAD_BYTES);
            if self.rest.len() < wanted {
                let (now, later) = arrived.split_at(arrived.len().min(wanted - self.rest.len()));
                self.rest.extend_from_slice(now);
                arrived = later;
            }
            match frame_len(&self.rest)? {
                Some(len) if self.rest.len() == len => {
                    each(&self.rest[FRAME_HEAD_BYTES..]);
                    self.rest.clear();
                }
                _ if arrived.is_empty() => return Ok(()),
                _ => {}
            }
        }
        while let Some(len) = frame_len(arrived)? {
            let Some(frame) = arrived.get(..len) else { break };
            each(&frame[FRAME_HEAD_BYTES..]);
            arrived = &arrived[len..];
        }
        self.rest.extend_from_slice(arrived);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::{PutResponse, ResponseHeader};
    use prost::Message;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        messages.iter().flat_map(|m| [&[0][..], &(m.len() as u32).to_be_bytes(), m].concat()).collect()
    }

    #[test]
    fn messages_come_out_the_same_however_the_stream_is_cut() {
        let long = vec![7u8; 300];
        let sent: [&[u8]; 5] = [b"one", b"", &long, b"x", b""];
        let stream = framed(&sent);
        for first in 0..=stream.len() {
            for step in [1, 2, 5, 6, 64, 1000] {
                let (mut messages, mut seen) = (Messages::default(), Vec::new());
                let (head, tail) = stream.split_at(first);
                for piece in std::iter::once(head).chain(tail.chunks(step)) {
                    messages.feed(piece, |m| seen.push(m.to_vec())).unwrap();
                }
                assert_eq!(seen, sent, "cut at {first}, then every {step}");
                assert!(messages.rest.is_empty());
            }
        }
    }

    #[test]
    fn a_compressed_or_absurd_frame_is_garbled_and_no_panic() {
        assert_eq!(Messages::default().feed(&[1, 0, 0, 0, 0], |_| {}), Err(Garbled));
        assert_eq!(Messages::default().feed(&[0, 0xff, 0, 0, 0], |_| {}), Err(Garbled));
        let mut messages = Messages::default();
        assert_eq!(messages.feed(&[2], |_| {}), Ok(()));
        assert_eq!(messages.feed(&[0, 0, 0, 0], |_| {}), Err(Garbled));
    }

    #[test]
    fn the_revision_of_an_answer_is_found_and_garbage_is_none() {
        let header = ResponseHeader { cluster_id: u64::MAX, member_id: 3, revision: 77, raft_term: 2 };
        let answer = PutResponse { header: Some(header), prev_kv: None }.encode_to_vec();
        assert_eq!(answer_revision(&answer), Some(77));
        assert_eq!(answer_revision(&answer[..3]), None);
        assert_eq!(answer_revision(b""), Some(0));
        assert_eq!(field(&mut &[0xffu8; 20][..]), None);
        assert_eq!(field(&mut &[0x0a, 0x05, 1][..]), None, "a length beyond the end");
    }
}
