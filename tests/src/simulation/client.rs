//! What clients do, drawn from the seed, and how it looks in the log.

use api::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use api::raftpb;
use bytes::Bytes;
use prost::Message as _;
use rand::Rng;
use rand::rngs::StdRng;
use types::{Entry, EntryKind, HardState, LogIndex, MemberId, Term};

/// Few keys, so that clients meet.
const KEYS: u32 = 8;

pub fn draw_key(rng: &mut StdRng) -> Vec<u8> {
    format!("key-{}", rng.random_range(0..KEYS)).into_bytes()
}

pub fn put(request: u64, key: &[u8]) -> Bytes {
    let header = RequestHeader { id: request, ..RequestHeader::default() };
    let put = PutRequest {
        key: Bytes::copy_from_slice(key),
        value: format!("value of {request}").into_bytes().into(),
        ..PutRequest::default()
    };
    InternalRaftRequest { header: Some(header), put: Some(put), ..InternalRaftRequest::default() }
        .encode_to_vec()
        .into()
}

/// The request in an entry, if it is one of ours.
pub fn request_of(entry: &Entry) -> Option<(u64, Vec<u8>)> {
    if entry.kind != EntryKind::Normal || entry.data.is_empty() {
        return None;
    }
    let request = InternalRaftRequest::decode(entry.data.clone()).ok()?;
    Some((request.header?.id, request.put?.key.to_vec()))
}

#[derive(Clone, Copy, Debug)]
pub enum Change {
    AddLearner(u64),
    Promote(u64),
    Remove(u64),
}

fn conf_change(kind: raftpb::ConfChangeType, request: u64, id: u64, context: String) -> Bytes {
    let context = Some(Bytes::from(context)).filter(|context| !context.is_empty());
    raftpb::ConfChange { id: Some(request), r#type: Some(kind as i32), node_id: Some(id), context }
        .encode_to_vec()
        .into()
}

pub fn encode_change(change: Change, request: u64) -> Bytes {
    use raftpb::ConfChangeType::{ConfChangeAddLearnerNode, ConfChangeAddNode, ConfChangeRemoveNode};
    match change {
        Change::AddLearner(id) => {
            let context = format!(r#"{{"id":{id},"peerURLs":["http://member-{id}:2380"],"isLearner":true}}"#);
            conf_change(ConfChangeAddLearnerNode, request, id, context)
        }
        Change::Promote(id) => {
            let context = format!(r#"{{"id":{id},"peerURLs":null,"isPromote":true}}"#);
            conf_change(ConfChangeAddNode, request, id, context)
        }
        Change::Remove(id) => conf_change(ConfChangeRemoveNode, request, id, String::new()),
    }
}

/// The log that a new cluster begins with, as etcd writes it: one conf change per member, committed in term 1.
pub fn first_log(members: u64) -> (HardState, Vec<Entry>) {
    let entries = (1..=members)
        .map(|id| {
            let context =
                format!(r#"{{"id":{id},"peerURLs":["http://member-{id}:2380"],"name":"member-{id}"}}"#);
            Entry {
                term: Term(1),
                index: LogIndex(id),
                kind: EntryKind::ConfChange,
                data: conf_change(raftpb::ConfChangeType::ConfChangeAddNode, 0, id, context),
            }
        })
        .collect();
    (HardState { term: Term(1), vote: MemberId::NONE, commit: LogIndex(members) }, entries)
}
