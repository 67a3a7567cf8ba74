//! The reading side of a stream: makes frames for the wire out of queued items, on the thread of whoever reads. A frame is put together
//! from parts that are encoded already; per watcher only header and id are new, so a response costs little more than its bytes.
//!
//! When several revisions for the same watchers wait, they become one response for each of them, as etcd's catch-up does: a client that
//! falls behind gets fewer and larger messages. Nothing waits for that to happen.
//!
//! The wire: one byte 0 (not compressed), the length as four bytes big-endian, a WatchResponse.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use api::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};
use types::{ClusterId, MemberId, Revision};

use crate::{
    events::Pick,
    queue::{CAPACITY_KEPT, Delivery, Door, Item, Reply, StreamQueue},
};

/// A chunk is ended when it has this much: two frames of HTTP/2. With what the last response adds it stays below 64 KiB, beyond which the
/// allocator gives every block memory of its own.
const CHUNK_BYTES: usize = 32 * 1024;

/// Events of several revisions that are put into one response together.
const MERGED_BYTES_MAX: usize = 16 * 1024;
/// etcd's bound for one batch of catch-up.
const MERGED_REVISIONS_MAX: usize = 1000;

/// A gRPC message cannot be longer for most clients, whatever limit they set. One response of that size is fragmented even unasked;
/// etcd's send fails then.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// Of a gRPC frame.
const FRAME_HEAD: usize = 5;

const HEADER_TAG: u8 = 1 << 3 | 2;
const CLUSTER_TAG: u8 = 1 << 3;
const MEMBER_TAG: u8 = 2 << 3;
const REVISION_TAG: u8 = 3 << 3;
const TERM_TAG: u8 = 4 << 3;
const WATCH_ID_TAG: u8 = 2 << 3;
/// The field `fragment`, set.
const FRAGMENT: [u8; 2] = [7 << 3, 1];

/// What is the same in every response of this member.
#[derive(Clone, Copy, Debug)]
pub struct Face {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// A response with `fragment` asked for is cut when its message is this long: etcd's `max-request-bytes` and 512 KiB.
    pub fragment_bytes: usize,
}

/// What a client stream receives. Dropping it ends the stream and all its watches at once.
pub struct Responses {
    queue: Arc<StreamQueue>,
    door: Arc<dyn Door>,
    face: Face,
    /// Taken from the queue and not yet written.
    items: VecDeque<Item>,
    run: Option<Run>,
}

/// Deliveries for the same watchers that are being written.
struct Run {
    ids: Arc<[i64]>,
    /// The next one to write for.
    at: usize,
    /// Encoded, the same for each.
    header: Vec<u8>,
    body: Body,
}

enum Body {
    /// All events of one revision, in one piece.
    One(Delivery),
    /// Put together once, written for each watcher.
    Merged(Bytes),
    /// Too large for one message: each inner list is the positions of the events of one fragment.
    Fragments { delivery: Delivery, parts: Vec<Vec<usize>>, part: usize },
}

fn put_events(out: &mut impl BufMut, delivery: &Delivery, positions: impl Iterator<Item = usize>) {
    for at in positions {
        out.put_slice(delivery.events.event(at, delivery.previous));
    }
}

fn id_len(id: i64) -> usize {
    if id == 0 { 0 } else { 1 + encoded_len_varint(id as u64) }
}

fn put_field(out: &mut Vec<u8>, tag: u8, value: u64) {
    if value != 0 {
        out.put_u8(tag);
        encode_varint(value, out);
    }
}

impl Responses {
    pub fn new(queue: Arc<StreamQueue>, door: Arc<dyn Door>, face: Face) -> Responses {
        Responses { queue, door, face, items: VecDeque::new(), run: None }
    }

    /// A chunk of whole frames, about 32 KiB or one that is larger. None when this member stops.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !ready!(self.poll_items(cx)) {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::with_capacity(self.expected_bytes());
        while out.len() < CHUNK_BYTES && self.write_one(&mut out) {}
        if self.items.is_empty() && self.items.capacity() > CAPACITY_KEPT {
            self.items = VecDeque::new();
        }
        Poll::Ready(Some(out.freeze()))
    }

    /// One response at a time, for users inside the process.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<pb::WatchResponse>> {
        if !ready!(self.poll_items(cx)) {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::new();
        self.write_one(&mut out);
        let message = pb::WatchResponse::decode(out.freeze().slice(FRAME_HEAD..));
        Poll::Ready(Some(message.expect("a frame written here decodes")))
    }

    /// False at the end of the stream.
    fn poll_items(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.run.is_some() || !self.items.is_empty() {
            return Poll::Ready(true);
        }
        self.queue.poll_take(cx, &mut self.items, &*self.door)
    }

    /// Room for the chunk, so that a stream with little to say gets a small one.
    fn expected_bytes(&self) -> usize {
        const ENVELOPE: usize = 64;
        let mut bytes = match &self.run {
            None => 0,
            Some(run) => {
                let body = match &run.body {
                    Body::One(delivery) => delivery.len(),
                    Body::Merged(body) => body.len(),
                    Body::Fragments { .. } => self.face.fragment_bytes,
                };
                (run.ids.len() - run.at) * (body + ENVELOPE)
            }
        };
        for item in &self.items {
            if bytes > CHUNK_BYTES {
                break;
            }
            bytes += match item {
                Item::Delivery(delivery) => delivery.ids.len() * (delivery.len() + ENVELOPE),
                Item::Reply(..) => 2 * ENVELOPE,
            };
        }
        // The last response goes beyond the bound by less than this when responses are small.
        bytes.min(CHUNK_BYTES + MERGED_BYTES_MAX)
    }

    /// Writes one response. False when there is nothing to write.
    fn write_one(&mut self, out: &mut BytesMut) -> bool {
        if self.run.is_none() {
            match self.items.pop_front() {
                None => return false,
                Some(Item::Reply(reply, _)) => match *reply {
                    Reply::Progress { ids, header } => {
                        let body = Body::Merged(Bytes::new());
                        self.run = Some(Run { ids, at: 0, header: self.header(header), body });
                    }
                    reply => {
                        self.write_reply(out, reply);
                        return true;
                    }
                },
                Some(Item::Delivery(delivery)) => self.run = Some(self.begin(delivery)),
            }
        }
        let run = self.run.as_mut().expect("a run was begun");
        let id = run.ids[run.at];
        let mut is_whole = true;
        match &mut run.body {
            Body::One(delivery) => {
                let events = delivery.events.in_one_piece(delivery.previous).expect("it was when this began");
                put_head(out, &run.header, id, false, events.len());
                out.put_slice(events);
            }
            Body::Merged(body) => {
                put_head(out, &run.header, id, false, body.len());
                out.put_slice(body);
            }
            Body::Fragments { delivery, parts, part } => {
                let positions = &parts[*part];
                let len =
                    positions.iter().map(|at| delivery.events.event(*at, delivery.previous).len()).sum();
                *part += 1;
                is_whole = *part == parts.len();
                put_head(out, &run.header, id, !is_whole, len);
                put_events(out, delivery, positions.iter().copied());
                if is_whole {
                    *part = 0;
                }
            }
        }
        if is_whole {
            run.at += 1;
        }
        if run.at == run.ids.len() {
            self.run = None;
        }
        true
    }

    /// Takes the items that follow with it if they go to the same watchers.
    fn begin(&mut self, first: Delivery) -> Run {
        let mut header = first.header;
        let ids = first.ids.clone();
        let first_len = first.len();
        let body = if self.is_too_large(&first, first_len) {
            let parts = self.fragments(&first);
            Body::Fragments { delivery: first, parts, part: 0 }
        } else {
            let (mut count, mut len) = (0, first_len);
            for item in &self.items {
                let Item::Delivery(next) = item else { break };
                // The list belongs to one group of watchers, so the options are the same too.
                let same = Arc::ptr_eq(&next.ids, &ids);
                len += if same { next.len() } else { 0 };
                if !same
                    || len > MERGED_BYTES_MAX.min(self.face.fragment_bytes / 2)
                    || count + 1 >= MERGED_REVISIONS_MAX
                {
                    break;
                }
                header = header.max(next.header);
                count += 1;
            }
            let in_one_piece = first.events.in_one_piece(first.previous).is_some();
            if count == 0 && in_one_piece && matches!(first.pick, Pick::All) {
                Body::One(first)
            } else {
                let mut merged = BytesMut::with_capacity(len);
                put_events(&mut merged, &first, first.pick.positions(&first.events));
                for item in self.items.drain(..count) {
                    let Item::Delivery(next) = item else { unreachable!("only deliveries were counted") };
                    put_events(&mut merged, &next, next.pick.positions(&next.events));
                }
                Body::Merged(merged.freeze())
            }
        };
        Run { ids, at: 0, header: self.header(header), body }
    }

    fn is_too_large(&self, delivery: &Delivery, events_len: usize) -> bool {
        let limit = if delivery.fragment { self.face.fragment_bytes } else { MESSAGE_BYTES_MAX };
        // Only near the limit is the exact length of header and id worth computing.
        let near = events_len.saturating_add(128) >= limit;
        let longest = delivery.ids.iter().map(|id| id_len(*id)).max().unwrap_or(0);
        near && delivery.pick.len(&delivery.events) > 1
            && self.header(delivery.header).len() + longest + events_len >= limit
    }

    /// As many events in each as stay below the limit, and at least one, as etcd cuts them.
    fn fragments(&self, delivery: &Delivery) -> Vec<Vec<usize>> {
        let limit = if delivery.fragment { self.face.fragment_bytes } else { MESSAGE_BYTES_MAX };
        let longest = delivery.ids.iter().map(|id| id_len(*id)).max().unwrap_or(0);
        let envelope = self.header(delivery.header).len() + longest + FRAGMENT.len();
        let mut parts: Vec<Vec<usize>> = vec![Vec::new()];
        let mut len = envelope;
        for at in delivery.pick.positions(&delivery.events) {
            let event = delivery.events.event(at, delivery.previous).len();
            let part = parts.last_mut().expect("there is always one");
            if !part.is_empty() && len + event >= limit {
                parts.push(vec![at]);
                len = envelope + event;
            } else {
                part.push(at);
                len += event;
            }
        }
        parts
    }

    /// The header as a field of the response.
    fn header(&self, revision: Revision) -> Vec<u8> {
        let mut fields = Vec::with_capacity(48);
        put_field(&mut fields, CLUSTER_TAG, self.face.cluster.0);
        put_field(&mut fields, MEMBER_TAG, self.face.member.0);
        put_field(&mut fields, REVISION_TAG, revision.0 as u64);
        put_field(&mut fields, TERM_TAG, self.door.raft_term());
        let mut header = Vec::with_capacity(fields.len() + 2);
        header.put_u8(HEADER_TAG);
        encode_varint(fields.len() as u64, &mut header);
        header.put_slice(&fields);
        header
    }

    fn write_reply(&self, out: &mut BytesMut, reply: Reply) {
        let none = pb::WatchResponse::default();
        match reply {
            Reply::Created { id, header } => {
                self.write_message(out, header, pb::WatchResponse { watch_id: id, created: true, ..none });
            }
            Reply::Refused { reason: cancel_reason, header } => {
                let refused = pb::WatchResponse {
                    watch_id: INVALID_WATCH_ID,
                    created: true,
                    canceled: true,
                    cancel_reason,
                    ..none
                };
                self.write_message(out, header, refused);
            }
            Reply::Canceled { id, header } => {
                self.write_message(out, header, pb::WatchResponse { watch_id: id, canceled: true, ..none });
            }
            Reply::Compacted { id, compacted } => {
                let compact_revision = compacted.0;
                let canceled = pb::WatchResponse { watch_id: id, canceled: true, compact_revision, ..none };
                self.write_message(out, Revision(0), canceled);
            }
            Reply::Progress { .. } => unreachable!("written for one watcher after the other"),
        }
    }

    fn write_message(&self, out: &mut BytesMut, revision: Revision, message: pb::WatchResponse) {
        let header = self.header(revision);
        let len = header.len() + message.encoded_len();
        out.reserve(FRAME_HEAD + len);
        out.put_u8(0);
        out.put_u32(len as u32);
        out.put_slice(&header);
        message.encode(out).expect("there is room");
    }
}

/// The id of answers that belong to no watch.
pub(crate) const INVALID_WATCH_ID: i64 = -1;

/// Everything of a frame before the events.
fn put_head(out: &mut BytesMut, header: &[u8], id: i64, fragment: bool, events_len: usize) {
    let fragment: &[u8] = if fragment { &FRAGMENT } else { &[] };
    let len = header.len() + id_len(id) + fragment.len() + events_len;
    out.reserve(FRAME_HEAD + len);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a response is cut long before it is 4 GiB"));
    out.put_slice(header);
    if id != 0 {
        out.put_u8(WATCH_ID_TAG);
        encode_varint(id as u64, out);
    }
    out.put_slice(fragment);
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.queue.close();
        self.door.closed(self.queue.id());
    }
}
