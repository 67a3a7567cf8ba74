//! `POST /raft`: one message per request, by a few workers, while there is no stream.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use api::raftpb::Message;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use identity::Hello;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    Peer,
    queue::{Offer, Queue, QueueLimits},
    stream_in::{REFUSAL_BYTES_MAX, is_removal},
};
use crate::{
    config::{PIPELINE_QUEUE_BYTES_MAX, PIPELINE_QUEUE_MESSAGES_MAX},
    handler::Topic,
    hello::{self, REFUSED_BYTES_MAX, Refused},
    link::{HttpLink, LinkError},
    wire::Shared,
};

/// etcd closes connections that are idle for 5 s; ours are left before that.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(4);

pub(super) struct Pipeline {
    queue: Mutex<Queue>,
    /// Holds at most one permit, so a worker that takes a message wakes the next while there are more.
    filled: Notify,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        let limits = QueueLimits { messages: PIPELINE_QUEUE_MESSAGES_MAX, bytes: PIPELINE_QUEUE_BYTES_MAX };
        Pipeline { queue: Mutex::new(Queue::new(limits)), filled: Notify::new() }
    }

    pub(super) fn offer(&self, message: Message) -> Offer {
        let offer = self.queue.lock().offer(message);
        if offer == Offer::Taken {
            self.filled.notify_one();
        }
        offer
    }

    pub(super) fn clear(&self) {
        self.queue.lock().clear();
    }

    async fn next(&self) -> Message {
        loop {
            let taken = {
                let mut queue = self.queue.lock();
                queue.take().map(|(_, message)| (message, queue.is_empty()))
            };
            if let Some((message, last)) = taken {
                if !last {
                    self.filled.notify_one();
                }
                return message;
            }
            self.filled.notified().await;
        }
    }
}

type Link = HttpLink<Full<Bytes>>;

/// A kept connection, good for a while.
struct Kept {
    link: Link,
    url: Url,
    used: Instant,
}

/// One worker; a peer has several.
pub(super) async fn work(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut kept: Option<Kept> = None;
    loop {
        let message = peer.pipeline.next().await;
        let Some(url) = peer.urls.pick() else { continue };
        let body = Bytes::from(message.encode_to_vec());
        drop(message);
        match post(&shared, &mut kept, &url, body.clone()).await {
            Ok(Answer { refused: Some((refused, theirs)), .. }) => {
                shared.handler.refused(peer.id, &refused, theirs.as_ref());
                lost(&shared, &peer);
            }
            Ok(Answer { status, text, .. }) => conclude(&shared, &peer, body.len(), status, &text),
            Err(error) => {
                peer.urls.failed(&url);
                shared.report(Some(&peer), Topic::Connection, format_args!("POST /raft: {}", error.story()));
                lost(&shared, &peer);
            }
        }
    }
}

struct Answer {
    status: StatusCode,
    text: String,
    /// Why we are not welcome, by whom.
    refused: Option<(Refused, Option<Hello>)>,
}

fn conclude(shared: &Shared, peer: &Peer, length: usize, status: StatusCode, text: &str) {
    if status == StatusCode::NO_CONTENT {
        peer.counters.sent_bytes.fetch_add(length as u64, Relaxed);
        return;
    }
    if status == StatusCode::GONE || is_removal(status, text) {
        shared.told_removed(peer, text);
    } else {
        shared.report(Some(peer), Topic::RefusedByPeer, format_args!("POST /raft answered {status}: {text}"));
    }
    lost(shared, peer);
}

fn lost(shared: &Shared, peer: &Peer) {
    peer.counters.sent_failures.fetch_add(1, Relaxed);
    shared.handler.unreachable(peer.id);
}

async fn post(shared: &Shared, kept: &mut Option<Kept>, url: &Url, body: Bytes) -> Result<Answer, LinkError> {
    let times = &shared.timeouts;
    let reusable = kept.take().filter(|kept| kept.url == *url && kept.used.elapsed() < IDLE_MAX);
    if let Some(Kept { mut link, .. }) = reusable
        && let Ok(answer) = exchange(shared, &mut link, body.clone()).await
    {
        *kept = Some(Kept { link, url: url.clone(), used: Instant::now() });
        return Ok(answer);
        // Otherwise the peer may have closed it between two messages; raft messages may be sent twice.
    }
    let mut link = Link::open(url, times.dial, times.write).await?;
    let answer = exchange(shared, &mut link, body).await?;
    *kept = Some(Kept { link, url: url.clone(), used: Instant::now() });
    Ok(answer)
}

async fn exchange(shared: &Shared, link: &mut Link, body: Bytes) -> Result<Answer, LinkError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/raft");
    *request.headers_mut() = shared.request_headers(None);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/protobuf"));
    let patience = shared.timeouts.request;
    let whole = async {
        let (head, body) = link.request(request).await?.into_parts();
        let (text, _) = link.collect(body, REFUSED_BYTES_MAX).await?;
        let refused = hello::refusal(&head.headers, &text)
            .map(|refused| (refused, hello::read(&head.headers).ok().flatten()));
        let shown = &text[..text.len().min(REFUSAL_BYTES_MAX)];
        Ok(Answer { status: head.status, text: String::from_utf8_lossy(shown).trim().to_owned(), refused })
    };
    timeout(patience, whole).await.map_err(|_| LinkError::Timeout(patience))?
}
