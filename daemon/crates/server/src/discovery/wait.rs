//! Members that wait for others. A wait holds one watch at the member's hub, from the revision of its head on, so nothing is missed; it
//! ends with an event, with nothing after [`WAIT_MAX`], or with the server.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
};

use api::{
    etcdserverpb::{self as pb, watch_request::RequestUnion},
    mvccpb,
};
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use prost::Message;

use super::{
    WAIT_MAX, WAITERS_MAX, WAITERS_PER_TOKEN_MAX,
    answer::{Node, event as told},
    token::{Entry, Token, prefix},
};
use crate::{
    backend::{Backend, WatchRequests, WatchResponses},
    edge::Edge,
};

/// Who waits where, as numbers.
#[derive(Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<Seats>>);

#[derive(Default)]
struct Seats {
    taken: usize,
    by_token: HashMap<String, usize>,
}

/// The place of one wait; dropped when it is over.
pub(crate) struct Seat {
    waiters: Waiters,
    token: String,
}

impl Waiters {
    pub fn take(&self, token: &str) -> Option<Seat> {
        let mut seats = self.0.lock();
        let here = seats.by_token.get(token).copied().unwrap_or_default();
        if seats.taken >= WAITERS_MAX || here >= WAITERS_PER_TOKEN_MAX {
            return None;
        }
        seats.taken += 1;
        seats.by_token.insert(token.to_owned(), here + 1);
        Some(Seat { waiters: self.clone(), token: token.to_owned() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.waiters.0.lock();
        seats.taken -= 1;
        if let Some(here) = seats.by_token.get_mut(&self.token) {
            *here -= 1;
            if *here == 0 {
                seats.by_token.remove(&self.token);
            }
        }
    }
}

/// What is waited for.
pub(crate) struct Waited {
    pub token: Token,
    /// As answers name the token's directory.
    pub dir: String,
    /// The first index that counts.
    pub from: i64,
}

impl Waited {
    pub fn told(&self, entry: &Entry) -> String {
        told("create", &Node::of_entry(&self.dir, entry), None)
    }

    /// Only what registers somebody: members that go, or register again, are no news.
    fn news(&self, event: &mvccpb::Event) -> Option<String> {
        let kv = event.kv.as_ref().filter(|_| event.r#type == mvccpb::event::EventType::Put as i32)?;
        let is_new = kv.create_revision == kv.mod_revision && kv.create_revision >= self.from;
        let entry = Entry::of(&self.token, kv).filter(|_| is_new)?;
        Some(self.told(&entry))
    }
}

/// The rest of the answer: one event, or nothing.
pub(crate) fn event<B: Backend>(
    edge: Arc<Edge<B>>,
    waited: Waited,
    entry: Option<&str>,
    seen: i64,
    seat: Seat,
) -> Pin<Box<dyn Future<Output = Bytes> + Send>> {
    let (key, range_end) = match entry {
        Some(id) => (waited.token.entry_key(id), Bytes::new()),
        None => prefix(&waited.token.members()),
    };
    let place = edge.streams.enter(false);
    Box::pin(async move {
        let _seat = seat;
        let (requests, mut responses) = edge.backend.watch();
        let found = async {
            let create = pb::WatchCreateRequest {
                key,
                range_end,
                // Everything older was looked at; everything newer comes, as long as it is not compacted, and then the client asks anew.
                start_revision: seen.saturating_add(1),
                filters: vec![pb::watch_create_request::FilterType::Nodelete as i32],
                ..Default::default()
            };
            let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            requests.send(request).await.ok()?;
            loop {
                let mut frames = poll_fn(|cx| responses.poll_next(cx)).await?;
                while let Some(response) = unframe(&mut frames) {
                    if response.canceled {
                        return None;
                    }
                    if let Some(news) = response.events.iter().find_map(|event| waited.news(event)) {
                        return Some(Bytes::from(news));
                    }
                }
            }
        };
        let stopped = poll_fn(|cx| place.poll_end(cx).map(|_| ()));
        tokio::select! {
            biased;
            found = found => found.unwrap_or_default(),
            () = stopped => Bytes::new(),
            () = tokio::time::sleep(WAIT_MAX) => Bytes::new(),
        }
    })
}

/// The next gRPC message of the hub.
fn unframe(frames: &mut Bytes) -> Option<pb::WatchResponse> {
    if frames.len() < 5 {
        return None;
    }
    frames.advance(1);
    let length = frames.get_u32() as usize;
    let message = frames.split_to(length.min(frames.len()));
    pb::WatchResponse::decode(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiters = Waiters::default();
        let seats: Vec<Seat> =
            (0..WAITERS_PER_TOKEN_MAX).map(|_| waiters.take("T").expect("a place")).collect();
        assert!(waiters.take("T").is_none(), "one token does not take the places of others");
        let mut others = Vec::new();
        for token in 0.. {
            match waiters.take(&token.to_string()) {
                Some(seat) => others.push(seat),
                None => break,
            }
        }
        assert_eq!(seats.len() + others.len(), WAITERS_MAX);
        drop((seats, others));
        assert!(waiters.0.lock().by_token.is_empty());
        assert_eq!(waiters.0.lock().taken, 0);
    }

    #[test]
    fn only_new_members_are_news() {
        let token = Token::new("T").unwrap();
        let waited = Waited { token: token.clone(), dir: "/discovery/T".into(), from: 6 };
        let event = |kind: i32, created: i64, modified: i64| mvccpb::Event {
            r#type: kind,
            kv: Some(mvccpb::KeyValue {
                key: token.entry_key("a1"),
                value: "n1=http://n1:1".into(),
                create_revision: created,
                mod_revision: modified,
                ..Default::default()
            }),
            prev_kv: None,
        };
        assert_eq!(waited.news(&event(0, 5, 5)), None, "older than what is asked for");
        assert_eq!(waited.news(&event(0, 5, 9)), None, "a v3 client that registers again");
        assert_eq!(waited.news(&event(1, 7, 7)), None, "a deletion");
        assert_eq!(
            waited.news(&event(0, 7, 7)).unwrap(),
            "{\"action\":\"create\",\"node\":{\"key\":\"/discovery/T/a1\",\"value\":\"n1=http://n1:1\",\"modifiedIndex\":7,\"createdIndex\":7}}\n"
        );
    }

    #[test]
    fn frames_of_the_hub() {
        let mut frames = Vec::new();
        for watch_id in [1, 2] {
            let message = pb::WatchResponse { watch_id, ..Default::default() }.encode_to_vec();
            frames.push(0);
            frames.extend((message.len() as u32).to_be_bytes());
            frames.extend(message);
        }
        let mut frames = Bytes::from(frames);
        assert_eq!(unframe(&mut frames).unwrap().watch_id, 1);
        assert_eq!(unframe(&mut frames).unwrap().watch_id, 2);
        assert_eq!(unframe(&mut frames), None);
    }
}
