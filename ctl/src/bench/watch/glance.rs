//! A look at a WatchResponse that builds nothing: which watcher it is for, and of each event its revision, key and value.

use crate::bench::fields::{Value, field, header_revision};

/// One response. The events are read when they are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The store's revision, or that of the events.
    pub revision: i64,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub reason: &'a [u8],
    message: &'a [u8],
}

/// One event of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    pub delete: bool,
    pub revision: i64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<'a> Reply<'a> {
    /// `None`: not a WatchResponse.
    pub fn read(message: &'a [u8]) -> Option<Reply<'a>> {
        let mut reply = Reply { message, ..Reply::default() };
        let mut rest = message;
        while !rest.is_empty() {
            match field(&mut rest)? {
                (1, Value::Bytes(header)) => reply.revision = header_revision(header)?,
                (2, Value::Number(id)) => reply.watch_id = id as i64,
                (3, Value::Number(set)) => reply.created = set != 0,
                (4, Value::Number(set)) => reply.canceled = set != 0,
                (5, Value::Number(revision)) => reply.compact_revision = revision as i64,
                (6, Value::Bytes(reason)) => reply.reason = reason,
                // Everything before the events has been read: both servers write fields in ascending order, and so does any
                // encoder that is not made to do otherwise.
                (11, _) => break,
                _ => {}
            }
        }
        Some(reply)
    }

    /// Hands each event to `each`. `None`: the rest is no sequence of events.
    pub fn events(&self, mut each: impl FnMut(Event<'a>)) -> Option<()> {
        let mut rest = self.message;
        while !rest.is_empty() {
            if let (11, Value::Bytes(bytes)) = field(&mut rest)? {
                each(event(bytes)?);
            }
        }
        Some(())
    }

    /// Why the watch was not created, or is over; `None` while it goes on.
    pub fn end(&self) -> Option<String> {
        if !self.canceled {
            return None;
        }
        let reason = String::from_utf8_lossy(self.reason);
        Some(match (self.compact_revision, reason.is_empty()) {
            (0, true) => "the server cancelled a watch without a reason".into(),
            (0, false) => format!("the server cancelled a watch: {reason}"),
            (revision, _) => format!("the server cancelled a watch: history before {revision} was compacted"),
        })
    }
}

fn event(mut bytes: &[u8]) -> Option<Event<'_>> {
    let mut event = Event::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Number(kind)) => event.delete = kind == 1,
            (2, Value::Bytes(mut kv)) => {
                while !kv.is_empty() {
                    match field(&mut kv)? {
                        (1, Value::Bytes(key)) => event.key = key,
                        (3, Value::Number(revision)) => event.revision = revision as i64,
                        (5, Value::Bytes(value)) => event.value = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::{ResponseHeader, WatchResponse};
    use api::mvccpb::{self, KeyValue, event::EventType};
    use prost::Message;

    fn response() -> WatchResponse {
        let kv = |key: &'static str, revision, value: &'static str| KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: revision,
            version: 9,
            lease: 4,
        };
        WatchResponse {
            header: Some(ResponseHeader { revision: 99, ..Default::default() }),
            watch_id: 17,
            fragment: true,
            events: vec![
                mvccpb::Event {
                    r#type: EventType::Put as i32,
                    kv: Some(kv("a", 5, "v")),
                    prev_kv: Some(kv("a", 3, "old")),
                },
                mvccpb::Event { r#type: EventType::Delete as i32, kv: Some(kv("b", 6, "")), prev_kv: None },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_glance_sees_what_decoding_sees() {
        let bytes = response().encode_to_vec();
        let reply = Reply::read(&bytes).unwrap();
        let mut seen = Vec::new();
        reply
            .events(|event| {
                seen.push((event.delete, event.revision, event.key.to_vec(), event.value.to_vec()))
            })
            .unwrap();
        assert_eq!((reply.revision, reply.watch_id, reply.created, reply.end()), (99, 17, false, None));
        assert_eq!(seen, [(false, 5, b"a".to_vec(), b"v".to_vec()), (true, 6, b"b".to_vec(), vec![])]);
    }

    #[test]
    fn an_end_says_why() {
        let end = |response: WatchResponse| Reply::read(&response.encode_to_vec()).unwrap().end();
        let over = |compact_revision, reason: &str| WatchResponse {
            watch_id: -1,
            created: true,
            canceled: true,
            compact_revision,
            cancel_reason: reason.into(),
            ..Default::default()
        };
        assert!(end(over(0, "permission denied")).unwrap().ends_with(": permission denied"));
        assert!(end(over(44, "")).unwrap().contains("before 44"));
        assert!(end(over(0, "")).unwrap().contains("without a reason"));
        let bytes = over(0, "x").encode_to_vec();
        assert_eq!(Reply::read(&bytes).map(|reply| (reply.watch_id, reply.created)), Some((-1, true)));
    }

    #[test]
    fn no_beginning_of_a_response_makes_it_panic() {
        let bytes = response().encode_to_vec();
        for len in 0..bytes.len() {
            if let Some(reply) = Reply::read(&bytes[..len]) {
                let _ = reply.events(|_| {});
            }
        }
    }
}
