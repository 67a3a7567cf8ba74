//! Lease.LeaseKeepAlive: each request is answered, in order, and everything that can be answered at once goes out in one piece.
//!
//! The leader answers from memory. What must wait, for the leader elsewhere or for an expired lease to be revoked, waits beside what
//! came after it; only the answers keep the order. A client counts the time to live from when it gets the answer, so a success that
//! had to wait for its turn is old news: its lease may be over by then, and is asked about again. As in etcd the stream ends when the client has no more requests and all are
//! answered, a lease that does not exist is an answer (TTL 0), and any other refusal ends the stream.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Waking, Poll},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream::FuturesOrdered};
use hyper::body::Incoming;
use tonic::{Code, Status};

use super::{Context, inbound::Inbound, method::Method, wire};
use crate::{backend::Backend, body::Messages, edge::Edge, streams::Entry};

/// Requests of one stream that wait for their answers. A follower sends each to the leader, so this is what one client may have under
/// way there; etcd has one.
const WAITING_MAX: usize = 64;

/// Requests of one stream that were read and wait to be asked; 128 KiB. A client with many leases renews them in one burst, and HTTP/2
/// takes thousands of small frames that nobody reads for an attack on the whole connection.
const HELD_MAX: usize = 16 * 1024;

/// Answers in one piece; about 4 KiB. More would keep the first ones waiting for the last.
const BATCH_MAX: usize = 64;

/// Room for a piece of one answer, which is the usual one: a client renews each lease every third of its time.
const PIECE_BYTES: usize = 64;

/// A success that waited longer for its turn is not told. A client has its leases renewed three times in their time, which is seconds.
const ANSWER_AGE_MAX: Duration = Duration::from_millis(250);

type Answer = Result<pb::LeaseKeepAliveResponse, EtcdError>;

pub(super) fn open<B: Backend>(cx: &Context<'_, B>, body: Incoming) -> Box<dyn Messages> {
    let edge = cx.edge.clone();
    Box::new(KeepAlive {
        entry: edge.streams.enter(cx.demands_leader()),
        inbound: Some(Inbound::new(edge.receiving.clone(), cx.headers, body)),
        held: VecDeque::new(),
        waiting: FuturesOrdered::new(),
        end: None,
        edge,
    })
}

struct KeepAlive<B> {
    edge: Arc<Edge<B>>,
    entry: Entry,
    /// None: nothing more is read.
    inbound: Option<Inbound>,
    held: VecDeque<i64>,
    waiting: FuturesOrdered<Waiting>,
    /// How the stream ends once everything that came before is answered, if not well.
    end: Option<Status>,
}

/// An answer that has its place but is not there, or not its turn, yet.
enum Waiting {
    Known(Instant, Option<pb::LeaseKeepAliveResponse>),
    Asked(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl Future for Waiting {
    /// Since when it is known, and what it is.
    type Output = (Instant, Answer);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Waking<'_>) -> Poll<(Instant, Answer)> {
        match &mut *self {
            Waiting::Known(since, answer) => {
                Poll::Ready((*since, Ok(answer.take().expect("a future is asked until it is ready"))))
            }
            Waiting::Asked(answer) => answer.as_mut().poll(cx).map(|answer| (Instant::now(), answer)),
        }
    }
}

/// A piece that grows.
struct Batch {
    frames: BytesMut,
    count: usize,
}

impl Batch {
    fn has_room(&self) -> bool {
        self.count < BATCH_MAX
    }

    fn push(&mut self, answer: &pb::LeaseKeepAliveResponse) -> Result<(), Status> {
        if self.count == 0 {
            self.frames.reserve(PIECE_BYTES);
        }
        self.count += 1;
        wire::encode_into(&mut self.frames, answer)
    }
}

impl<B: Backend> KeepAlive<B> {
    /// Reads and asks until there is nothing to read or no room.
    fn read(&mut self, cx: &mut Waking<'_>, batch: &mut Batch) -> Result<(), Status> {
        loop {
            while self.waiting.len() < WAITING_MAX
                && batch.has_room()
                && let Some(id) = self.held.pop_front()
            {
                self.ask(id, batch)?;
            }
            if self.held.len() >= HELD_MAX {
                return Ok(());
            }
            let Some(inbound) = &mut self.inbound else { return Ok(()) };
            let Poll::Ready(message) = inbound.poll_message(cx) else { return Ok(()) };
            let id = match message {
                None => {
                    self.inbound = None;
                    continue;
                }
                Some(Ok(message)) => {
                    self.edge.metrics.message_received(Method::LeaseKeepAlive, message.len());
                    wire::decode::<pb::LeaseKeepAliveRequest>(message).map(|request| request.id)
                }
                Some(Err(status)) => Err(status),
            };
            match id {
                Ok(id) => self.held.push_back(id),
                Err(status) => {
                    if status.code() != Code::Cancelled {
                        self.edge.metrics.receive_failed(Method::LeaseKeepAlive);
                    }
                    self.inbound = None;
                    self.end = Some(status);
                }
            }
        }
    }

    fn ask(&mut self, id: i64, batch: &mut Batch) -> Result<(), Status> {
        match self.edge.backend.lease_keep_alive_now(id) {
            Some(answer) if self.waiting.is_empty() => batch.push(&answer)?,
            Some(answer) => self.waiting.push_back(Waiting::Known(Instant::now(), Some(answer))),
            None => self.waiting.push_back(self.asked(id)),
        }
        Ok(())
    }

    fn asked(&self, id: i64) -> Waiting {
        let backend = self.edge.backend.clone();
        Waiting::Asked(Box::pin(async move { backend.lease_keep_alive(id).await }))
    }

    /// Takes the answers whose turn it is; true if there was one.
    fn collect(&mut self, cx: &mut Waking<'_>, batch: &mut Batch) -> Result<bool, Status> {
        let mut any = false;
        while batch.has_room()
            && let Poll::Ready(Some((since, answer))) = Pin::new(&mut self.waiting).poll_next(cx)
        {
            any = true;
            let answer = answer?;
            if answer.ttl > 0 && since.elapsed() > ANSWER_AGE_MAX {
                match self.edge.backend.lease_keep_alive_now(answer.id) {
                    Some(answer) => batch.push(&answer)?,
                    None => self.waiting.push_front(self.asked(answer.id)),
                }
                continue;
            }
            batch.push(&answer)?;
        }
        Ok(any)
    }
}

impl<B: Backend> Messages for KeepAlive<B> {
    fn poll_next(&mut self, cx: &mut Waking<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Poll::Ready(status) = self.entry.poll_end(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        let mut batch = Batch { frames: BytesMut::new(), count: 0 };
        loop {
            let outcome = self.read(cx, &mut batch).and_then(|()| self.collect(cx, &mut batch));
            match outcome {
                // There may be room to ask again.
                Ok(true) if batch.has_room() => {}
                Ok(_) => break,
                Err(status) => {
                    self.inbound = None;
                    self.held = VecDeque::new();
                    self.waiting = FuturesOrdered::new();
                    self.end = Some(status);
                    break;
                }
            }
        }
        if self.held.is_empty() && self.held.capacity() > BATCH_MAX {
            // What a burst took is given back.
            self.held = VecDeque::new();
        }
        if batch.count > 0 {
            return Poll::Ready(Some(Ok(batch.frames.freeze())));
        }
        if self.inbound.is_none() && self.held.is_empty() && self.waiting.is_empty() {
            return Poll::Ready(self.end.take().map(Err));
        }
        Poll::Pending
    }
}
