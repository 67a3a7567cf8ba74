//! Watches and leases of the fake member: just enough of each to see what the edge makes of them.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use api::{
    error::EtcdError,
    etcdserverpb::{self as pb, watch_request::RequestUnion},
    mvccpb,
};
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use server::{WatchClosed, WatchRequests, WatchResponses};
use tokio::sync::{Semaphore, mpsc};
use types::KeyRange;

/// What streams and their halves share.
#[derive(Default)]
pub struct Endless {
    hub: Mutex<Hub>,
    /// One more for each half of a watch stream that exists.
    halves: Arc<()>,
    /// Requests wait for a permit of `hub_permits`.
    pub hub_busy: AtomicBool,
    pub hub_permits: Permits,
    /// Watches on these keys are refused, with the token that came.
    pub forbidden: Mutex<HashMap<Bytes, EtcdError>>,
    /// The next watch that is created holds the thread of its connection until this is dropped.
    pub stall: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    pub tokens: Mutex<Vec<Option<Vec<u8>>>>,
    /// Lease and TTL.
    pub leases: Mutex<BTreeMap<i64, i64>>,
    /// Leases whose renewals wait for a permit.
    pub slow: Mutex<HashMap<i64, Arc<Semaphore>>>,
    /// Renewals are refused.
    pub refusing: Mutex<Option<EtcdError>>,
    /// Leases that were asked for where an answer waits, in order.
    pub asked: Mutex<Vec<i64>>,
    pub outstanding: AtomicUsize,
    pub outstanding_max: AtomicUsize,
}

/// None at first.
pub struct Permits(pub Semaphore);

impl Default for Permits {
    fn default() -> Self {
        Permits(Semaphore::new(0))
    }
}

#[derive(Default)]
struct Hub {
    next_stream: u64,
    streams: HashMap<u64, Stream>,
    stopped: bool,
}

struct Stream {
    answers: mpsc::UnboundedSender<Bytes>,
    watches: BTreeMap<i64, KeyRange>,
}

impl Stream {
    fn say(&self, answer: pb::WatchResponse) {
        let _ = self.answers.send(frame(&answer));
    }
}

pub fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

impl Endless {
    pub fn watch(self: &Arc<Self>) -> (Asking, Answering) {
        let (answers, frames) = mpsc::unbounded_channel();
        let mut hub = self.hub.lock();
        let id = hub.next_stream;
        hub.next_stream += 1;
        hub.streams.insert(id, Stream { answers, watches: BTreeMap::new() });
        let half = || self.halves.clone();
        (
            Asking { endless: self.clone(), id, _half: half() },
            Answering { endless: self.clone(), id, frames, _half: half() },
        )
    }

    /// Watches that were created on streams that the edge has not dropped.
    pub fn watches(&self) -> usize {
        self.hub.lock().streams.values().map(|stream| stream.watches.len()).sum()
    }

    /// Streams that the edge has not dropped.
    pub fn open_streams(&self) -> usize {
        self.hub.lock().streams.len()
    }

    /// Halves of streams that the edge has not dropped.
    pub fn open_halves(&self) -> usize {
        Arc::strong_count(&self.halves) - 1
    }

    /// The member stops: streams have no more answers.
    pub fn stop(&self) {
        let mut hub = self.hub.lock();
        hub.stopped = true;
        hub.streams.clear();
    }

    pub fn publish(&self, revision: i64, events: &[mvccpb::Event]) {
        for stream in self.hub.lock().streams.values() {
            for (&watch_id, range) in &stream.watches {
                let of = |event: &&mvccpb::Event| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key));
                let events: Vec<_> = events.iter().filter(of).cloned().collect();
                if !events.is_empty() {
                    let header = Some(pb::ResponseHeader { revision, ..Default::default() });
                    stream.say(pb::WatchResponse { header, watch_id, events, ..Default::default() });
                }
            }
        }
    }

    pub fn keep_alive_now(&self, id: i64) -> Option<pb::LeaseKeepAliveResponse> {
        if self.refusing.lock().is_some() || self.slow.lock().contains_key(&id) {
            return None;
        }
        Some(self.renewed(id))
    }

    fn renewed(&self, id: i64) -> pb::LeaseKeepAliveResponse {
        let ttl = self.leases.lock().get(&id).copied().unwrap_or_default();
        pb::LeaseKeepAliveResponse { header: Some(pb::ResponseHeader::default()), id, ttl }
    }

    pub async fn keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, EtcdError> {
        self.asked.lock().push(id);
        let outstanding = self.outstanding.fetch_add(1, SeqCst) + 1;
        self.outstanding_max.fetch_max(outstanding, SeqCst);
        let slow = self.slow.lock().get(&id).cloned();
        if let Some(slow) = slow {
            slow.acquire().await.unwrap().forget();
        }
        self.outstanding.fetch_sub(1, SeqCst);
        match *self.refusing.lock() {
            Some(error) => Err(error),
            None => Ok(self.renewed(id)),
        }
    }
}

pub struct Asking {
    endless: Arc<Endless>,
    id: u64,
    _half: Arc<()>,
}

impl Asking {
    fn stream<T>(&self, act: impl FnOnce(&mut Stream) -> T) -> Result<T, WatchClosed> {
        self.endless.hub.lock().streams.get_mut(&self.id).map(act).ok_or(WatchClosed)
    }
}

impl WatchRequests for Asking {
    async fn send(&self, request: pb::WatchRequest) -> Result<(), WatchClosed> {
        if self.endless.hub_busy.load(SeqCst) {
            self.endless.hub_permits.0.acquire().await.unwrap().forget();
        }
        let answer = |watch_id| pb::WatchResponse { watch_id, ..Default::default() };
        self.stream(|stream| {
            match request.request_union.expect("the edge ignores requests that ask nothing") {
                RequestUnion::CreateRequest(create) => {
                    let watch_id = stream.watches.last_key_value().map_or(0, |(id, _)| id + 1);
                    stream.watches.insert(watch_id, KeyRange::from_request(&create.key, &create.range_end));
                    stream.say(pb::WatchResponse { created: true, ..answer(watch_id) });
                }
                RequestUnion::CancelRequest(cancel) => {
                    if stream.watches.remove(&cancel.watch_id).is_some() {
                        stream.say(pb::WatchResponse { canceled: true, ..answer(cancel.watch_id) });
                    }
                }
                RequestUnion::ProgressRequest(_) => stream.say(answer(-1)),
            }
        })
    }

    fn refuse(&self, cancel_reason: String) -> impl Future<Output = Result<(), WatchClosed>> + Send {
        std::future::ready(self.stream(|stream| {
            stream.say(pb::WatchResponse {
                created: true,
                canceled: true,
                watch_id: -1,
                cancel_reason,
                ..Default::default()
            })
        }))
    }
}

pub struct Answering {
    endless: Arc<Endless>,
    id: u64,
    frames: mpsc::UnboundedReceiver<Bytes>,
    _half: Arc<()>,
}

impl WatchResponses for Answering {
    /// Everything there is in one piece.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut chunk = BytesMut::new();
        loop {
            match self.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => chunk.extend_from_slice(&frame),
                _ if !chunk.is_empty() => return Poll::Ready(Some(chunk.freeze())),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.endless.hub.lock().streams.remove(&self.id);
    }
}
