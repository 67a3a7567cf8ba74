//! Messages on the wire: the five-byte frame of gRPC around protobuf, and the limits on what a client may send.
//!
//! A message that arrives in one HTTP/2 data frame, as nearly all do, is decoded where it lies; only larger ones are gathered.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use prost::Message;
use tonic::Status;

/// Compression flag and length, which precede each message.
pub(super) const FRAME_HEAD_BYTES: usize = 5;

/// How a client says that its messages are compressed.
pub(super) const ENCODING: &str = "grpc-encoding";

/// Bytes of half-received messages that one runtime holds. Each stream may hold one message of 2 MiB, and streams are unlimited by
/// default; this many large puts may arrive at the same time, more are refused.
const GATHERED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What requests may be, and what is being gathered now. One per runtime.
#[derive(Debug)]
pub(crate) struct Receiving {
    message_bytes_max: usize,
    gathered_bytes_max: usize,
    gathered_bytes: AtomicUsize,
}

impl Receiving {
    pub fn new(message_bytes_max: usize) -> Self {
        Receiving {
            message_bytes_max,
            gathered_bytes_max: GATHERED_BYTES_MAX,
            gathered_bytes: AtomicUsize::new(0),
        }
    }

    /// Reads the one message of a unary request, to the end of the stream.
    pub async fn message(&self, headers: &HeaderMap, mut body: Incoming) -> Result<Bytes, Status> {
        let mut gathered = Gathered::new(self);
        let encoding = || headers.get(ENCODING);
        let mut wanted = None;
        let message = loop {
            let Some(mut data) = next_data(&mut body).await? else {
                return Err(incomplete());
            };
            if gathered.bytes.is_empty() {
                if data.len() >= FRAME_HEAD_BYTES {
                    let length = self.frame_length(encoding(), &data)?;
                    if data.len() >= FRAME_HEAD_BYTES + length {
                        data.advance(FRAME_HEAD_BYTES);
                        break whole(data, length)?;
                    }
                    wanted = Some(length);
                } else if data.is_empty() {
                    continue;
                }
            }
            gathered.push(&data)?;
            let length = match wanted {
                Some(length) => length,
                None if gathered.bytes.len() < FRAME_HEAD_BYTES => continue,
                None => {
                    let length = self.frame_length(encoding(), &gathered.bytes)?;
                    wanted = Some(length);
                    length
                }
            };
            if gathered.bytes.len() >= FRAME_HEAD_BYTES + length {
                let mut data = gathered.take();
                data.advance(FRAME_HEAD_BYTES);
                break whole(data, length)?;
            }
        };
        while !body.is_end_stream() {
            match next_data(&mut body).await? {
                None => break,
                Some(data) if data.is_empty() => {}
                Some(_) => return Err(more_than_one()),
            }
        }
        Ok(message)
    }

    /// The announced length of the message whose frame begins here, refused before a byte of it is kept.
    pub(super) fn frame_length(&self, encoding: Option<&HeaderValue>, frame: &[u8]) -> Result<usize, Status> {
        let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
        if frame[0] != 0 {
            return Err(compressed(encoding));
        }
        if length > self.message_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({length} vs. {})",
                self.message_bytes_max
            )));
        }
        Ok(length)
    }
}

/// Part of a message, counted as long as it is held.
pub(super) struct Gathered<R: Deref<Target = Receiving>> {
    receiving: R,
    bytes: BytesMut,
}

impl<R: Deref<Target = Receiving>> Gathered<R> {
    pub fn new(receiving: R) -> Self {
        Gathered { receiving, bytes: BytesMut::new() }
    }

    pub fn receiving(&self) -> &Receiving {
        &self.receiving
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn push(&mut self, data: &[u8]) -> Result<(), Status> {
        let held = self.receiving.gathered_bytes.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        // First into the buffer, so that the drop below gives back exactly what was counted.
        self.bytes.extend_from_slice(data);
        if held > self.receiving.gathered_bytes_max {
            return Err(api::error::EtcdError::RequestTooManyRequests.into());
        }
        Ok(())
    }

    pub fn take(&mut self) -> Bytes {
        self.receiving.gathered_bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        std::mem::take(&mut self.bytes).freeze()
    }
}

impl<R: Deref<Target = Receiving>> Drop for Gathered<R> {
    fn drop(&mut self) {
        self.receiving.gathered_bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Status> {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Err(error) => return Err(unreadable(&error)),
        }
    }
    Ok(None)
}

/// The client or its connection went away.
pub(super) fn unreadable(error: &hyper::Error) -> Status {
    Status::cancelled(format!("grpc: read the request: {error}"))
}

pub(super) fn incomplete() -> Status {
    Status::internal("grpc: the request ended before its message was complete")
}

fn whole(data: Bytes, length: usize) -> Result<Bytes, Status> {
    if data.len() > length { Err(more_than_one()) } else { Ok(data) }
}

fn more_than_one() -> Status {
    Status::internal("grpc: this method takes one request message, more than one came")
}

/// No codec is installed, as in etcd; the flag alone decides, whatever the encoding header says.
fn compressed(encoding: Option<&HeaderValue>) -> Status {
    match encoding.map(HeaderValue::as_bytes) {
        None | Some(b"") | Some(b"identity") => {
            Status::internal("grpc: compressed flag set with identity or empty encoding")
        }
        Some(name) => Status::unimplemented(format!(
            "grpc: Decompressor is not installed for grpc-encoding {:?}",
            String::from_utf8_lossy(name)
        )),
    }
}

/// Decodes a request; wrong bytes are the client's, and said so.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| {
        Status::internal(format!("grpc: error unmarshalling request: {}", shortened(&error.to_string())))
    })
}

/// The text travels in a header, and an error within messages within messages names them all: its ends say enough.
fn shortened(text: &str) -> String {
    const END_CHARS: usize = 120;
    let count = text.chars().count();
    if count <= 2 * END_CHARS {
        return text.to_owned();
    }
    let head: String = text.chars().take(END_CHARS).collect();
    let tail: String = text.chars().skip(count - END_CHARS).collect();
    format!("{head} … {tail}")
}

/// Largest message sent, as in etcd: what clients of every language can hold.
const SENT_BYTES_MAX: usize = i32::MAX as usize;

fn frame_head(length: usize) -> Result<[u8; FRAME_HEAD_BYTES], Status> {
    if length > SENT_BYTES_MAX {
        let text = format!("trying to send message larger than max ({length} vs. {SENT_BYTES_MAX})");
        return Err(Status::resource_exhausted(text));
    }
    let [a, b, c, d] = (length as u32).to_be_bytes();
    Ok([0, a, b, c, d])
}

/// One framed message, in one allocation of the right size.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Bytes, Status> {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.encoded_len());
    encode_into(&mut frame, message)?;
    Ok(frame.freeze())
}

/// One more framed message behind what is there.
pub(super) fn encode_into<M: Message>(frames: &mut BytesMut, message: &M) -> Result<(), Status> {
    let length = message.encoded_len();
    frames.reserve(FRAME_HEAD_BYTES + length);
    frames.put_slice(&frame_head(length)?);
    message.encode(frames).expect("the buffer has room for the encoded length");
    Ok(())
}

/// One message in several parts, whose encodings follow each other.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    parts: VecDeque<Bytes>,
    length: usize,
}

impl Frames {
    pub fn one(part: Bytes) -> Self {
        let mut frames = Frames::default();
        frames.push(part);
        frames
    }

    pub fn push(&mut self, part: Bytes) {
        self.length += part.len();
        self.parts.push_back(part);
    }

    /// Length of the message.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The bytes to send, in order.
    pub fn framed(mut self) -> Result<VecDeque<Bytes>, Status> {
        self.parts.push_front(Bytes::copy_from_slice(&frame_head(self.length)?));
        Ok(self.parts)
    }
}

/// How many messages a chunk of whole frames holds, and their length without the frames.
pub(crate) fn measure(mut chunk: &[u8]) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    while !chunk.is_empty() {
        let length = match chunk {
            [_, a, b, c, d, rest @ ..] => {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                chunk = rest;
                length
            }
            _ => chunk.len() + 1,
        };
        assert!(length <= chunk.len(), "what is sent in one piece is whole frames");
        chunk = &chunk[length..];
        count += 1;
        bytes += length;
    }
    (count, bytes)
}

/// The time a client gives its call: `grpc-timeout`, at most eight digits and a unit.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let malformed = || Status::internal(format!("malformed grpc-timeout: {value:?}"));
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(malformed());
    }
    let count: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(malformed()),
    }))
}

/// Whether a request is for gRPC: its content type says so, with or without a format behind it.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+') | Some(b';')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_every_unit() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        let cases = [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("99999999n", 99_999_999),
        ];
        for (text, nanos) in cases {
            assert_eq!(parse(text).unwrap(), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "1x", "-1S", "123456789S", "1 S", "99999999999999999999S"] {
            assert!(parse(text).is_err(), "{text} was taken for a timeout");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn half_received_messages_share_a_budget() {
        let receiving = Receiving { gathered_bytes_max: 100, ..Receiving::new(1000) };
        let held = || receiving.gathered_bytes.load(Ordering::Relaxed);
        let gather = || Gathered::new(&receiving);
        let (mut first, mut second) = (gather(), gather());
        first.push(&[0; 60]).unwrap();
        second.push(&[0; 40]).unwrap();
        let refusal = second.push(&[0; 1]).unwrap_err();
        assert_eq!(refusal.message(), api::error::EtcdError::RequestTooManyRequests.text());
        drop(second);
        assert_eq!(held(), 60, "a refused message gives back all it held");
        assert_eq!(first.take().len(), 60);
        drop(first);
        assert_eq!(held(), 0, "a complete message is no longer half-received");
    }

    #[test]
    fn parts_of_a_message_are_framed_as_one() {
        let mut frames = Frames::one(Bytes::from_static(b"ab"));
        frames.push(Bytes::from_static(b"cde"));
        assert_eq!(frames.length(), 5);
        let bytes: Vec<u8> = frames.framed().unwrap().into_iter().flatten().collect();
        assert_eq!(bytes, b"\0\0\0\0\x05abcde");
    }

    #[test]
    fn messages_of_a_chunk_are_measured() {
        let mut chunk = BytesMut::new();
        for value in ["", "a", "abc"] {
            encode_into(&mut chunk, &value.to_owned()).unwrap();
        }
        assert_eq!(
            measure(&chunk),
            (3, 3 + 5),
            "an empty text has no bytes, a short one a tag, a length and itself"
        );
        assert_eq!(measure(&[]), (0, 0));
    }

    #[test]
    #[should_panic(expected = "whole frames")]
    fn half_a_frame_is_our_mistake() {
        measure(&[0, 0, 0, 0, 2, 1]);
    }

    #[test]
    fn a_message_no_client_can_hold_is_refused() {
        assert_eq!(frame_head(i32::MAX as usize).unwrap(), [0, 0x7f, 0xff, 0xff, 0xff]);
        let refusal = frame_head(i32::MAX as usize + 1).unwrap_err();
        assert_eq!(refusal.message(), "trying to send message larger than max (2147483648 vs. 2147483647)");
    }

    #[test]
    fn content_types_of_grpc() {
        for (text, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            assert_eq!(is_grpc(&headers), expected, "{text}");
        }
    }
}
