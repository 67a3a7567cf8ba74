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

/// Events as fields of a WatchResponse, one after the other.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// Where each event ends.
    ends: Vec<usize>,
}

impl Encoded {
    pub(crate) fn event(&self, at: usize) -> &[u8] {
        let from = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[from..self.ends[at]]
    }
}

/// What matching needs of an event: its key, as a part of the plain encoding, and its kind.
#[derive(Debug)]
struct Mark {
    key_from: usize,
    key_to: usize,
    is_delete: bool,
}

/// See the module text.
#[derive(Debug)]
pub struct RevisionEvents {
    pub(crate) revision: Revision,
    plain: Encoded,
    marks: Vec<Mark>,
    with_previous: OnceLock<Encoded>,
}

impl RevisionEvents {
    /// `events` are all changes of the revision in their order, or of a history all that were asked for. A previous version in an event
    /// is taken as such; otherwise it is read when the first watcher wants it.
    pub fn new(revision: Revision, events: &[Event]) -> RevisionEvents {
        let sizes = events.iter().map(|event| event_len(event, None) + 11);
        let mut bytes = Vec::with_capacity(sizes.sum());
        let mut ends = Vec::with_capacity(events.len());
        let mut marks = Vec::with_capacity(events.len());
        for event in events {
            let key_from = encode(&mut bytes, event, None);
            let key_to = key_from + event.kv.as_ref().map_or(0, |kv| kv.key.len());
            marks.push(Mark { key_from, key_to, is_delete: event.r#type == EventType::Delete as i32 });
            ends.push(bytes.len());
        }
        let with_previous = OnceLock::new();
        let encoded = RevisionEvents { revision, plain: Encoded { bytes, ends }, marks, with_previous };
        if events.iter().any(|event| event.prev_kv.is_some()) {
            encoded.fill_previous_from(events, |event| event.prev_kv.clone());
        }
        encoded
    }

    /// Reads the previous versions if nobody did yet.
    pub fn fill_previous(&self, previous: &dyn Previous) {
        if self.with_previous.get().is_some() {
            return;
        }
        let events: Vec<Event> = (0..self.len()).map(|at| self.decode(at)).collect();
        self.fill_previous_from(&events, |event| {
            let kv = event.kv.as_ref().expect("every event has a key");
            previous.previous(&kv.key, self.revision)
        });
    }

    fn fill_previous_from(&self, events: &[Event], previous: impl Fn(&Event) -> Option<KeyValue>) {
        let mut bytes = Vec::with_capacity(self.plain.bytes.len() * 2);
        let mut ends = Vec::with_capacity(events.len());
        for event in events {
            encode(&mut bytes, event, previous(event).as_ref());
            ends.push(bytes.len());
        }
        // Two threads that read the same previous versions found the same.
        let _ = self.with_previous.set(Encoded { bytes, ends });
    }

    fn decode(&self, at: usize) -> Event {
        let mut field = &self.plain.event(at)[1..];
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
        &self.plain.bytes[mark.key_from..mark.key_to]
    }

    pub(crate) fn is_delete(&self, at: usize) -> bool {
        self.marks[at].is_delete
    }

    /// With previous versions only after [`RevisionEvents::fill_previous`].
    pub(crate) fn encoded(&self, previous: bool) -> &Encoded {
        if previous {
            self.with_previous.get().expect("previous versions are read before an event is queued with them")
        } else {
            &self.plain
        }
    }

    /// Memory it holds, about, without or with previous versions. Does not change, so that what is added can be taken off again.
    pub(crate) fn memory_bytes(&self, previous: bool) -> usize {
        let previous = if previous { self.encoded(true).bytes.len() } else { 0 };
        self.plain.bytes.len() + previous + EVENT_OVERHEAD_BYTES * self.marks.len()
    }
}

/// Marks, ends and headers of allocations beside the encoded bytes of one event.
const EVENT_OVERHEAD_BYTES: usize = 192;

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
        let plain = WatchResponse::decode(&*encoded.encoded(false).bytes).expect("decodes");
        assert_eq!(plain.events, events);
        encoded.fill_previous(&Old);
        for (at, event) in events.iter_mut().enumerate() {
            let kv = KeyValue { mod_revision: 6, ..Default::default() };
            event.prev_kv = (at != 1).then_some(kv);
        }
        let full = WatchResponse::decode(&*encoded.encoded(true).bytes).expect("decodes");
        assert_eq!(full.events, events);
        let one = WatchResponse::decode(encoded.encoded(true).event(1)).expect("decodes");
        assert_eq!(one.events, events[1..2]);
    }
}
