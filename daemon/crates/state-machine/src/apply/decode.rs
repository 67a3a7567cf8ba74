//! From the bytes of a log entry to a command. Total: whatever the bytes are, the answer is a command that apply can answer.

use api::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use api::raftpb;
use bytes::{Buf, Bytes};
use prost::Message;
use types::{Entry, EntryKind, MemberId};

/// What one entry asks for.
#[derive(Debug)]
pub(super) enum Command {
    /// A new leader's first entry, and what refused conf changes turn into.
    Empty,
    /// cairn's own, recognised by the zero byte that no protobuf message begins with.
    Own,
    /// By far the most frequent request, decoded without the large envelope.
    Put {
        id: u64,
        request: PutRequest,
    },
    Request {
        id: u64,
        request: Box<InternalRaftRequest>,
    },
    /// A member's attributes as etcd 3.5 and older publish them.
    OldAttributes {
        id: u64,
        member: MemberId,
        name: String,
        client_urls: Vec<String>,
    },
    /// The cluster version as etcd 3.5 and older set it.
    OldVersion {
        id: u64,
        version: String,
    },
    ConfChange(raftpb::ConfChange),
    /// Cannot be understood.
    Garbage,
}

pub(super) fn decode(entry: &Entry) -> Command {
    match entry.kind {
        EntryKind::ConfChange => {
            raftpb::ConfChange::decode(entry.data.clone()).map_or(Command::Garbage, Command::ConfChange)
        }
        // Nobody proposes these; etcd stops on one.
        EntryKind::ConfChangeV2 => Command::Garbage,
        EntryKind::Normal if entry.data.is_empty() => Command::Empty,
        EntryKind::Normal if entry.data[0] == 0 => Command::Own,
        EntryKind::Normal => {
            put(&entry.data).or_else(|| old_request(&entry.data)).unwrap_or_else(|| request(&entry.data))
        }
    }
}

fn request(data: &Bytes) -> Command {
    let Ok(request) = InternalRaftRequest::decode(data.clone()) else { return Command::Garbage };
    let header_id = request.header.as_ref().map_or(0, |header| header.id);
    let id = if request.id != 0 { request.id } else { header_id };
    Command::Request { id, request: Box::new(request) }
}

/// One field at the top level of a message.
enum Field {
    Varint(u64),
    Bytes(Bytes),
    Other,
}

/// The fields of a message in order; None at the first byte that is no protobuf.
struct Fields {
    rest: Bytes,
}

impl Fields {
    fn next(&mut self) -> Option<Result<(u32, Field), ()>> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.parse().ok_or(()))
    }

    fn parse(&mut self) -> Option<(u32, Field)> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
        let field = match tag & 7 {
            0 => Field::Varint(varint(&mut self.rest)?),
            1 | 5 => {
                let width = if tag & 7 == 1 { 8 } else { 4 };
                (self.rest.len() >= width).then(|| self.rest.advance(width))?;
                Field::Other
            }
            2 => {
                let len = usize::try_from(varint(&mut self.rest)?).ok()?;
                (self.rest.len() >= len).then(|| Field::Bytes(self.rest.split_to(len)))?
            }
            _ => return None,
        };
        Some((number, field))
    }
}

fn varint(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte & 0x80 == 0 {
            bytes.advance(at + 1);
            return Some(value);
        }
    }
    None
}

/// A put and nothing else beside its header. Anything unusual is left to the full decoder.
fn put(data: &Bytes) -> Option<Command> {
    const ID: u32 = 1;
    const PUT: u32 = 4;
    const HEADER: u32 = 100;
    let (mut id, mut header_id, mut put) = (0, 0, None);
    let mut fields = Fields { rest: data.clone() };
    while let Some(field) = fields.next() {
        match field.ok()? {
            (ID, Field::Varint(number)) => id = number,
            (PUT, Field::Bytes(bytes)) if put.is_none() => put = Some(PutRequest::decode(bytes).ok()?),
            (HEADER, Field::Bytes(bytes)) => header_id = RequestHeader::decode(bytes).ok()?.id,
            _ => return None,
        }
    }
    Some(Command::Put { id: if id != 0 { id } else { header_id }, request: put? })
}

/// A bare v2 request: field 2 is one of five words and field 3 a path. Recognised by these, not by another decoder's failure.
fn old_request(data: &Bytes) -> Option<Command> {
    let (mut id, mut method, mut path, mut value) = (0, Bytes::new(), Bytes::new(), Bytes::new());
    let mut fields = Fields { rest: data.clone() };
    while let Some(field) = fields.next() {
        match field.ok()? {
            (1, Field::Varint(number)) => id = number,
            (2, Field::Bytes(bytes)) => method = bytes,
            (3, Field::Bytes(bytes)) => path = bytes,
            (4, Field::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    if !matches!(method.as_ref(), b"PUT" | b"POST" | b"DELETE" | b"QGET" | b"SYNC") {
        return None;
    }
    let path = std::str::from_utf8(&path).ok()?;
    if method.as_ref() != b"PUT" {
        // The old key space is not ours; a SYNC only expires its keys.
        return Some(Command::Garbage);
    }
    if path == "/0/version" {
        let version = String::from_utf8(value.to_vec()).ok()?;
        return Some(Command::OldVersion { id, version });
    }
    let member = path.strip_prefix("/0/members/").and_then(|rest| rest.strip_suffix("/attributes"));
    let Some(member) = member.and_then(|hex| hex.parse::<MemberId>().ok()) else {
        return Some(Command::Garbage);
    };

    #[derive(serde::Deserialize)]
    struct Attributes {
        #[serde(default)]
        name: String,
        #[serde(rename = "clientURLs", default)]
        client_urls: Option<Vec<String>>,
    }
    let Ok(attributes) = serde_json::from_slice::<Attributes>(&value) else { return Some(Command::Garbage) };
    let client_urls = attributes.client_urls.unwrap_or_default();
    Some(Command::OldAttributes { id, member, name: attributes.name, client_urls })
}
