//! What clients do, drawn from the seed, and how it looks in the log.

use api::etcdserverpb::{
    CompactionRequest, InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, RequestHeader,
};
use api::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use api::raftpb::{self, ConfChangeType};
use bytes::Bytes;
use prost::Message as _;
use rand::Rng;
use rand::rngs::StdRng;
use state_machine::membership;
use types::{Entry, EntryKind, HardState, LeaseId, LogIndex, MemberId, Term};

/// Few keys, so that clients meet.
const KEYS: u32 = 8;

pub fn draw_key(rng: &mut StdRng) -> Vec<u8> {
    format!("key-{}", rng.random_range(0..KEYS)).into_bytes()
}

fn encode(request: u64, body: InternalRaftRequest) -> Bytes {
    let header = RequestHeader { id: request, ..RequestHeader::default() };
    InternalRaftRequest { header: Some(header), ..body }.encode_to_vec().into()
}

pub fn put(request: u64, key: &[u8], lease: i64) -> Bytes {
    let put = PutRequest {
        key: Bytes::copy_from_slice(key),
        value: format!("value of {request}").into_bytes().into(),
        lease,
        ..PutRequest::default()
    };
    encode(request, InternalRaftRequest { put: Some(put), ..InternalRaftRequest::default() })
}

pub fn lease_grant(request: u64, id: i64, ttl: i64) -> Bytes {
    let lease_grant = Some(LeaseGrantRequest { id, ttl });
    encode(request, InternalRaftRequest { lease_grant, ..InternalRaftRequest::default() })
}

pub fn lease_revoke(request: u64, id: i64) -> Bytes {
    let lease_revoke = Some(LeaseRevokeRequest { id });
    encode(request, InternalRaftRequest { lease_revoke, ..InternalRaftRequest::default() })
}

pub fn lease_checkpoint(request: u64, rests: &[(LeaseId, i64)]) -> Bytes {
    let checkpoint = |(id, rest): &(LeaseId, i64)| LeaseCheckpoint { id: id.0, remaining_ttl: *rest };
    let lease_checkpoint =
        Some(LeaseCheckpointRequest { checkpoints: rests.iter().map(checkpoint).collect() });
    encode(request, InternalRaftRequest { lease_checkpoint, ..InternalRaftRequest::default() })
}

pub fn compact(request: u64, revision: i64) -> Bytes {
    let compaction = Some(CompactionRequest { revision, physical: false });
    encode(request, InternalRaftRequest { compaction, ..InternalRaftRequest::default() })
}

/// The request in an entry, if it is one of ours.
pub fn request_of(entry: &Entry) -> Option<InternalRaftRequest> {
    if entry.kind != EntryKind::Normal || entry.data.is_empty() {
        return None;
    }
    InternalRaftRequest::decode(entry.data.clone()).ok().filter(|request| request.header.is_some())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Add {
        id: u64,
        is_learner: bool,
    },
    Promote(u64),
    Remove(u64),
    /// Other peer URLs, made of the number.
    Update(u64, u64),
}

impl Change {
    pub fn kind(self) -> ConfChangeType {
        match self {
            Change::Add { is_learner: true, .. } => ConfChangeType::ConfChangeAddLearnerNode,
            Change::Add { .. } | Change::Promote(_) => ConfChangeType::ConfChangeAddNode,
            Change::Remove(_) => ConfChangeType::ConfChangeRemoveNode,
            Change::Update(..) => ConfChangeType::ConfChangeUpdateNode,
        }
    }

    pub fn id(self) -> u64 {
        let (Change::Add { id, .. } | Change::Promote(id) | Change::Remove(id) | Change::Update(id, _)) =
            self;
        id
    }

    pub fn context(self) -> Vec<u8> {
        let member = |url: String, is_learner| membership::Member {
            id: MemberId(self.id()),
            peer_urls: vec![url],
            is_learner,
            ..Default::default()
        };
        match self {
            Change::Add { id, is_learner } => {
                member(format!("http://member-{id}:2380"), is_learner).add_context(1)
            }
            Change::Promote(id) => membership::promote_context(MemberId(id)),
            Change::Remove(_) => Vec::new(),
            Change::Update(id, number) => {
                member(format!("http://member-{id}-{number}:2380"), false).update_context()
            }
        }
    }
}

fn conf_change(kind: ConfChangeType, request: u64, id: u64, context: Vec<u8>) -> Bytes {
    let context = Some(Bytes::from(context)).filter(|context| !context.is_empty());
    raftpb::ConfChange { id: Some(request), r#type: Some(kind as i32), node_id: Some(id), context }
        .encode_to_vec()
        .into()
}

pub fn encode_change(change: Change, request: u64) -> Bytes {
    conf_change(change.kind(), request, change.id(), change.context())
}

/// What a member says of itself when it has started.
pub fn publish(request: u64, id: u64) -> Bytes {
    let attributes = Attributes { name: format!("member-{id}"), client_urls: Vec::new() };
    let set = ClusterMemberAttrSetRequest { member_id: id, member_attributes: Some(attributes) };
    encode(
        request,
        InternalRaftRequest { cluster_member_attr_set: Some(set), ..InternalRaftRequest::default() },
    )
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
                data: conf_change(ConfChangeType::ConfChangeAddNode, 0, id, context.into_bytes()),
            }
        })
        .collect();
    (HardState { term: Term(1), vote: MemberId::NONE, commit: LogIndex(members) }, entries)
}
