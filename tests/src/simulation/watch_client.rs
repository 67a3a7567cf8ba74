//! A client that watches: some subscriptions over one stream, resumed elsewhere whenever the stream ends. Everything it asks and is told
//! goes into a log, which the checkers judge.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use api::etcdserverpb::watch_request::RequestUnion;
use api::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use rand::Rng;
use rand::rngs::StdRng;
use types::{ClusterId, MemberId};
use watch::{Face, Request, Responses, StreamQueue};

use super::hub_desk::{Asked, Doorstep, HubDesk, Sizes};
use super::{TICK, Time};
use crate::checker::{Entry, StreamLog, Subscription, What};

/// What a client follows for its whole life.
pub struct Following {
    pub subscription: Subscription,
    pub create: WatchCreateRequest,
    /// The first revision that it was not given; None before anything was promised.
    pub next: Option<i64>,
}

/// A stream to one member, in one of that member's lives.
pub struct Session {
    pub member: u64,
    pub life: u64,
    responses: Responses,
    queue: Arc<StreamQueue>,
    doorstep: Arc<Doorstep>,
    log: StreamLog,
    /// Running watches.
    ids: BTreeMap<i64, usize>,
    /// Create requests without an answer.
    awaited: VecDeque<usize>,
}

pub struct WatchClient {
    name: usize,
    pub following: Vec<Following>,
    pub session: Option<Session>,
    /// Pause between two looks at the stream, at most.
    pub pause_max: Time,
    /// Responses taken in one look, at most.
    pub taken_max: usize,
    pub logs: Vec<StreamLog>,
}

impl WatchClient {
    /// `first` numbers its subscriptions.
    pub fn draw(rng: &mut StdRng, name: usize, first: u32) -> WatchClient {
        let (pause_max, taken_max) =
            [(TICK / 2, 1000), (3 * TICK, 1000), (30 * TICK, 3), (60 * TICK, 1000)][rng.random_range(0..4)];
        let following = (0..rng.random_range(1..5))
            .map(|number| Following {
                subscription: Subscription(first + number),
                create: draw_create(rng),
                next: None,
            })
            .collect();
        WatchClient { name, following, session: None, pause_max, taken_max, logs: Vec::new() }
    }

    pub fn connect(&mut self, member: u64, life: u64, stream: u64, desk: &HubDesk, sizes: &Sizes, now: Time) {
        let queue = Arc::new(StreamQueue::new(stream, sizes.queue, desk.gauges.clone()));
        let face =
            Face { cluster: ClusterId(1), member: MemberId(member), fragment_bytes: sizes.fragment_bytes };
        let doorstep = desk.doorstep.clone();
        doorstep.ask(Asked::Open(queue.clone()));
        let responses = Responses::new(queue.clone(), doorstep.clone(), face);
        let log =
            StreamLog { name: format!("client {}, stream {stream} to {member}", self.name), entries: vec![] };
        let (ids, awaited) = (BTreeMap::new(), VecDeque::new());
        self.session = Some(Session { member, life, responses, queue, doorstep, log, ids, awaited });
        for at in 0..self.following.len() {
            self.create(at, now);
        }
    }

    fn create(&mut self, at: usize, now: Time) {
        let (Some(session), following) = (&mut self.session, &self.following[at]) else { return };
        let mut create = following.create.clone();
        create.start_revision = following.next.unwrap_or(create.start_revision);
        if session.send(Request::Create(create), Some(following.subscription), now) {
            session.awaited.push_back(at);
        }
    }

    pub fn ask_progress(&mut self, now: Time) {
        if let Some(session) = &mut self.session {
            session.send(Request::Progress, None, now);
        }
    }

    /// Cancels one of its watches; when that is confirmed it is created anew.
    pub fn cancel_one(&mut self, rng: &mut StdRng, now: Time) {
        let Some(session) = &mut self.session else { return };
        if let Some(id) = session.ids.keys().nth(rng.random_range(0..4)).copied() {
            session.send(Request::Cancel(id), None, now);
        }
    }

    /// Takes what is there, up to some responses. Answers how many.
    pub fn read(&mut self, max: usize, now: Time) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(session) = &mut self.session else { break };
            let mut context = Context::from_waker(Waker::noop());
            match session.responses.poll_message(&mut context) {
                Poll::Ready(Some(response)) => self.take(response, now),
                Poll::Ready(None) | Poll::Pending => break,
            }
            taken += 1;
        }
        taken
    }

    /// The stream is over; what was still on its way is lost.
    pub fn end(&mut self, why: &str, now: Time) {
        if let Some(mut session) = self.session.take() {
            session.note(What::Ended(why.to_owned()), now);
            self.logs.push(session.log);
        }
    }

    fn take(&mut self, response: WatchResponse, now: Time) {
        let Some(session) = &mut self.session else { return };
        session.note(What::Received(response.clone()), now);
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let id = response.watch_id;
        if response.created {
            let at = session.awaited.pop_front().expect("every created was asked for");
            assert!(!response.canceled, "nothing is refused that these clients ask: {response:?}");
            session.ids.insert(id, at);
            let following = &mut self.following[at];
            if following.create.start_revision == 0 {
                following.next.get_or_insert(revision + 1);
            }
        } else if response.canceled {
            let Some(at) = session.ids.remove(&id) else { return };
            if response.compact_revision > 0 {
                let following = &mut self.following[at];
                following.next = following.next.max(Some(response.compact_revision));
            }
            self.create(at, now);
        } else if response.fragment {
            // Only the whole of a revision counts.
        } else if let Some(last) = response.events.last() {
            let last = last.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if let Some(at) = session.ids.get(&id) {
                self.following[*at].moves_to(last);
            }
        } else {
            for (watch, at) in &session.ids {
                if id < 0 || *watch == id {
                    self.following[*at].moves_to(revision);
                }
            }
        }
    }
}

impl Following {
    fn moves_to(&mut self, revision: i64) {
        self.next = self.next.max(Some(revision + 1));
    }

    /// The first revision that it waits for, as far as it knows.
    pub fn starts(&self) -> i64 {
        self.next.unwrap_or(self.create.start_revision)
    }
}

impl Session {
    fn note(&mut self, what: What, now: Time) {
        self.log.entries.push(Entry { at: Duration::from_millis(now), what });
    }

    /// False when the member takes no more requests for now.
    fn send(&mut self, request: Request, subscription: Option<Subscription>, now: Time) -> bool {
        let (union, bytes) = match &request {
            Request::Create(create) => {
                let bytes = create.key.len() + create.range_end.len();
                (RequestUnion::CreateRequest(create.clone()), bytes)
            }
            Request::Cancel(id) => (RequestUnion::CancelRequest(WatchCancelRequest { watch_id: *id }), 0),
            Request::Progress | Request::Refuse(_) => {
                (RequestUnion::ProgressRequest(WatchProgressRequest {}), 0)
            }
        };
        let weight = StreamQueue::weight(bytes);
        let mut context = Context::from_waker(Waker::noop());
        if !matches!(self.queue.poll_admit(&mut context, weight), Poll::Ready(Ok(()))) {
            return false;
        }
        self.note(What::Sent(WatchRequest { request_union: Some(union) }, subscription), now);
        self.doorstep.ask(Asked::Request { stream: self.queue.id(), request, weight });
        true
    }
}

fn draw_create(rng: &mut StdRng) -> WatchCreateRequest {
    let key = super::client::draw_key(rng);
    let (key, range_end) = match rng.random_range(0..6) {
        0..3 => (key, Vec::new()),
        3 => (key, vec![0]),
        4 => (b"key-".to_vec(), b"key.".to_vec()),
        _ => (b"key-2".to_vec(), b"key-5".to_vec()),
    };
    let start_revision = match rng.random_range(0..6) {
        0..3 => 0,
        3 | 4 => rng.random_range(1..5),
        _ => rng.random_range(5..80),
    };
    let filters = if rng.random_bool(0.2) { vec![rng.random_range(0..2)] } else { Vec::new() };
    WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        progress_notify: rng.random_bool(0.5),
        filters,
        prev_kv: rng.random_bool(0.4),
        watch_id: 0,
        fragment: rng.random_bool(0.3),
    }
}
