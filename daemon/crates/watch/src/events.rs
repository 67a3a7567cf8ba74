//! The events of one revision, encoded once. Every watcher on every stream that gets them shares these bytes; what differs between two
//! responses is a few bytes of header and the watch id, which the reading side adds.
//!
//! Encoding copies the values out of the log entries they came in: keeping an event for a slow client then keeps nothing else alive.

use std::sync::{Arc, OnceLock};

use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::BufMut;
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};
use types::Revision;

/// Field 11 of WatchResponse, length-delimited.
const EVENTS_TAG: u8 = 11 << 3 | 2;
/// Fields of Event: type as a varint, kv and prev_kv length-delimited.
const TYPE_TAG: u8 = 1 << 3;
const KV_TAG: u8 = 2 << 3 | 2;
const PREV_KV_TAG: u8 = 3 << 3 | 2;

/// Where the previous version of a key is read when a watcher asked for it.
pub trait Previous {
    /// The version of `key` that the write at `before` replaced; None for a creation, and when it is compacted by now.
    fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue>;
}

/// Nobody needs previous versions.
impl Previous for () {
    fn previous(&self, _key: &[u8], _before: Revision) -> Option<KeyValue> {
        None
    }
}

/// What is known of an event beside its bytes: where its key lies in them, where they end, and its kind.
#[derive(Debug)]
struct Mark {
    end: usize,
    key_from: usize,
    key_to: usize,
    is_delete: bool,
}

/// An event with its previous version, once somebody asked for it.
type OnDemand = OnceLock<Box<[u8]>>;

/// See the module text.
#[derive(Debug)]
pub struct RevisionEvents {
    pub(crate) revision: Revision,
    /// Fields of a WatchResponse, one after the other.
    plain: Vec<u8>,
    marks: Vec<Mark>,
    /// The same fields with previous versions, each made when the first watcher wants it: a watcher of one key does not pay for a
    /// revision that deleted a million.
    with_previous: OnceLock<Box<[OnDemand]>>,
}

impl RevisionEvents {
    /// `events` are all changes of the revision in their order, or of a history all that were asked for.
    pub fn new(revision: Revision, events: &[Event]) -> RevisionEvents {
        let sizes = events.iter().map(|event| event_len(event, None) + 11);
        let mut plain = Vec::with_capacity(sizes.sum());
        let mut marks = Vec::with_capacity(events.len());
        for event in events {
            let key_from = encode(&mut plain, event, None);
            let key_to = key_from + event.kv.as_ref().map_or(0, |kv| kv.key.len());
            let is_delete = event.r#type == EventType::Delete as i32;
            marks.push(Mark { end: plain.len(), key_from, key_to, is_delete });
        }
        RevisionEvents { revision, plain, marks, with_previous: OnceLock::new() }
    }

    /// Reads the previous versions of all events.
    pub fn fill_previous(&self, previous: &dyn Previous) {
        self.fill_picked(&Pick::All, previous);
    }

    /// Reads those that nobody has read yet; answers how many that were.
    pub(crate) fn fill_picked(&self, pick: &Pick, previous: &dyn Previous) -> usize {
        let mut reads = 0;
        let encoded = self.with_previous.get_or_init(|| (0..self.len()).map(|_| OnceLock::new()).collect());
        for at in pick.positions(self) {
            encoded[at].get_or_init(|| {
                reads += 1;
                let old = previous.previous(self.key(at), self.revision);
                let mut bytes = Vec::new();
                encode(&mut bytes, &self.decode(at), old.as_ref());
                bytes.into_boxed_slice()
            });
        }
        reads
    }

    /// Whether this needs more reads than the hub's thread may do for one revision.
    pub(crate) fn is_bulk(&self, reads_max: usize) -> bool {
        let missing = |encoded: &[OnDemand]| encoded.iter().filter(|event| event.get().is_none()).count();
        self.len() > reads_max && self.with_previous.get().map_or(self.len(), |all| missing(all)) > reads_max
    }

    fn decode(&self, at: usize) -> Event {
        let mut field = &self.event(at, false)[1..];
        Event::decode_length_delimited(&mut field).expect("what was encoded here decodes")
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(crate) fn key(&self, at: usize) -> &[u8] {
        let mark = &self.marks[at];
        &self.plain[mark.key_from..mark.key_to]
    }

    pub(crate) fn is_delete(&self, at: usize) -> bool {
        self.marks[at].is_delete
    }

    /// One event as a field of a WatchResponse. With its previous version only after that was filled in.
    pub(crate) fn event(&self, at: usize, previous: bool) -> &[u8] {
        if previous {
            let event = self.with_previous.get().and_then(|all| all[at].get());
            return event.expect("previous versions are read before an event is queued with them");
        }
        let from = if at == 0 { 0 } else { self.marks[at - 1].end };
        &self.plain[from..self.marks[at].end]
    }

    /// All events, where they lie in one piece.
    pub(crate) fn in_one_piece(&self, previous: bool) -> Option<&[u8]> {
        match (previous, self.len()) {
            (false, _) => Some(&self.plain),
            (true, 1) => Some(self.event(0, true)),
            (true, _) => None,
        }
    }

    /// Memory it holds without previous versions, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.plain.len() + EVENT_OVERHEAD_BYTES * self.marks.len()
    }
}

/// Marks, ends and headers of allocations beside the encoded bytes of one event.
const EVENT_OVERHEAD_BYTES: usize = 160;

fn kv_field_len(kv: &KeyValue) -> usize {
    let len = kv.encoded_len();
    1 + encoded_len_varint(len as u64) + len
}

/// Length of the Event message.
fn event_len(event: &Event, previous: Option<&KeyValue>) -> usize {
    let kind = if event.r#type == 0 { 0 } else { 1 + encoded_len_varint(event.r#type as u64) };
    kind + event.kv.as_ref().map_or(0, kv_field_len) + previous.map_or(0, kv_field_len)
}

/// Appends the event as a field of the response; answers where its key begins. The key is the first field of a KeyValue.
fn encode(out: &mut Vec<u8>, event: &Event, previous: Option<&KeyValue>) -> usize {
    out.put_u8(EVENTS_TAG);
    encode_varint(event_len(event, previous) as u64, out);
    if event.r#type != 0 {
        out.put_u8(TYPE_TAG);
        encode_varint(event.r#type as u64, out);
    }
    let mut key_from = out.len();
    if let Some(kv) = &event.kv {
        out.put_u8(KV_TAG);
        encode_varint(kv.encoded_len() as u64, out);
        if !kv.key.is_empty() {
            key_from = out.len() + 1 + encoded_len_varint(kv.key.len() as u64);
        }
        kv.encode(out).expect("a vector has room");
    }
    if let Some(previous) = previous {
        out.put_u8(PREV_KV_TAG);
        encode_varint(previous.encoded_len() as u64, out);
        previous.encode(out).expect("a vector has room");
    }
    key_from
}

/// Which events of a revision a watcher gets.
#[derive(Clone, Debug)]
pub(crate) enum Pick {
    All,
    /// Ascending.
    Some(Arc<[u32]>),
}

impl Pick {
    pub(crate) fn len(&self, events: &RevisionEvents) -> usize {
        match self {
            Pick::All => events.len(),
            Pick::Some(picked) => picked.len(),
        }
    }

    /// The positions of the picked events.
    pub(crate) fn positions(&self, events: &RevisionEvents) -> impl Iterator<Item = usize> + use<> {
        let (all, some) = match self {
            Pick::All => (events.len(), None),
            Pick::Some(picked) => (0, Some(picked.clone())),
        };
        let picked = some.map(|picked| (0..picked.len()).map(move |at| picked[at] as usize));
        (0..all).chain(picked.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use api::etcdserverpb::WatchResponse;
    use bytes::Bytes;

    use super::*;

    fn put(key: &str, value: &str, revision: i64) -> Event {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision: revision,
            version: 3,
            ..Default::default()
        };
        Event { kv: Some(kv), ..Default::default() }
    }

    struct Old;

    impl Previous for Old {
        fn previous(&self, key: &[u8], before: Revision) -> Option<KeyValue> {
            (key != b"new").then(|| KeyValue { mod_revision: before.0 - 1, ..Default::default() })
        }
    }

    #[test]
    fn what_is_encoded_by_hand_is_what_the_message_says() {
        let mut events = vec![put("a", "1", 7), put("new", "", 7)];
        events.push(Event {
            r#type: EventType::Delete as i32,
            kv: Some(KeyValue { key: Bytes::from_static(b"gone"), mod_revision: 7, ..Default::default() }),
            prev_kv: None,
        });
        let encoded = RevisionEvents::new(Revision(7), &events);
        assert_eq!(encoded.key(0), b"a");
        assert_eq!(encoded.key(2), b"gone");
        assert!(encoded.is_delete(2) && !encoded.is_delete(1));
        let plain = WatchResponse::decode(encoded.in_one_piece(false).expect("one piece")).expect("decodes");
        assert_eq!(plain.events, events);
        assert!(encoded.is_bulk(2) && !encoded.is_bulk(3));
        encoded.fill_picked(&Pick::Some([1, 2].as_slice().into()), &Old);
        assert!(!encoded.is_bulk(2), "one is missing");
        encoded.fill_previous(&Old);
        for (at, event) in events.iter_mut().enumerate() {
            let kv = KeyValue { mod_revision: 6, ..Default::default() };
            event.prev_kv = (at != 1).then_some(kv);
        }
        for (at, event) in events.into_iter().enumerate() {
            let one = WatchResponse::decode(encoded.event(at, true)).expect("decodes");
            assert_eq!(one.events, [event]);
        }
    }
}
