//! Reads one stream of a peer: dials, checks who answers, hands on what arrives, and starts again when it ends.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use identity::{Hello, Verdict};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;
use url::Url;

use super::{Peer, SessionLink, StreamKind};
use crate::{
    codec::{Decoded, FrameError, message, msgapp},
    handler::Topic,
    headers::Mismatch,
    hello::{self, Met, REFUSED_BYTES_MAX, Refused, Unreadable, Via},
    ingress::{self, Channel},
    link::{HttpLink, LinkError},
    wire::Shared,
};

/// Text of a refusal that is read and shown.
pub(super) const REFUSAL_BYTES_MAX: usize = 1024;

/// How a stream ended, or why it never began.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no address")]
    NoAddress,
    #[error("{}", .0.story())]
    Link(#[from] LinkError),
    #[error("answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
    /// Told to the handler, which says it to people.
    #[error("not welcome to the peer: {}", .0.name())]
    NotWelcome(Box<Verdict>),
    #[error("the peer is not welcome: {}", .0.name())]
    Unwelcome(Box<Verdict>),
    #[error("answer: {0}")]
    Mismatch(#[from] Mismatch),
    #[error("answer: {0}")]
    Unreadable(#[from] Unreadable),
    #[error("another start of the peer has taken over")]
    SessionOver,
    #[error("stream closed by the peer")]
    Closed,
    #[error("nothing heard for {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Garbage(#[from] FrameError),
}

enum Decoder {
    MsgApp(msgapp::Decoder),
    Message(message::Decoder),
}

impl Decoder {
    fn new(shared: &Shared, peer: &Peer, kind: StreamKind) -> Self {
        let limit = shared.limits.frame_bytes_max;
        match kind {
            StreamKind::MsgApp => {
                Decoder::MsgApp(msgapp::Decoder::new(peer.id, shared.identity.member, limit))
            }
            StreamKind::Message => Decoder::Message(message::Decoder::new(limit)),
        }
    }

    fn feed(&mut self, chunk: Bytes) {
        match self {
            Decoder::MsgApp(decoder) => decoder.feed(chunk),
            Decoder::Message(decoder) => decoder.feed(chunk),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        match self {
            Decoder::MsgApp(decoder) => decoder.next_frame(),
            Decoder::Message(decoder) => decoder.next_frame(),
        }
    }
}

/// Keeps one stream from this peer open, for ever.
pub(super) async fn read(shared: Arc<Shared>, peer: Arc<Peer>, kind: StreamKind) {
    let mut pause = shared.timeouts.reconnect;
    loop {
        let started = Instant::now();
        let url = peer.urls.pick();
        let ended = match &url {
            Some(url) => follow(&shared, &peer, kind, url).await,
            None => Ended::NoAddress,
        };
        pause = match &ended {
            // Somebody refuses us, or talks nonsense, and will go on doing so: ask less and less often.
            Ended::Refused { .. } | Ended::Mismatch(_) | Ended::Unreadable(_) | Ended::Garbage(_) => {
                (pause * 2).min(shared.timeouts.reconnect_max)
            }
            // A judgement, which only an operator or the end of a twin changes.
            Ended::NotWelcome(_) | Ended::Unwelcome(_) => shared.timeouts.reconnect_max,
            _ => shared.timeouts.reconnect,
        };
        tell(&shared, &peer, kind, &ended);
        if let Some(url) = url {
            peer.urls.failed(&url);
        }
        sleep_until(started + pause).await;
    }
}

fn tell(shared: &Shared, peer: &Peer, kind: StreamKind, ended: &Ended) {
    let name = kind.name();
    match ended {
        Ended::Refused { status, text } if *status == StatusCode::GONE || is_removal(*status, text) => {
            shared.told_removed(peer, text);
        }
        Ended::Garbage(_) => {
            peer.counters.received_failures.fetch_add(1, Relaxed);
            shared.report(Some(peer), Topic::Garbage, format_args!("stream {name}: {ended}"));
        }
        Ended::NotWelcome(_) | Ended::Unwelcome(_) => {
            debug!(peer = %peer.id, stream = name, "{ended}");
        }
        Ended::Refused { .. } | Ended::Mismatch(_) | Ended::Unreadable(_) => {
            shared.report(Some(peer), Topic::RefusedByPeer, format_args!("stream {name}: {ended}"));
        }
        _ => shared.report(Some(peer), Topic::Connection, format_args!("stream {name}: {ended}")),
    }
}

/// Whether an answer claims that we were removed. etcd answers 403 to a misaddressed message too; only the text tells them apart.
pub(super) fn is_removal(status: StatusCode, text: &str) -> bool {
    status == StatusCode::FORBIDDEN && text.contains("removed")
}

async fn follow(shared: &Shared, peer: &Arc<Peer>, kind: StreamKind, url: &Url) -> Ended {
    match dial(shared, peer, kind, url).await {
        Ok((mut link, body, session)) => {
            let _up = peer.link_up();
            let receiving = receive(shared, peer, kind, &mut link, body, session.as_ref());
            let ended = match &session {
                Some(session) => session.over().run_until_cancelled(receiving).await,
                None => Some(receiving.await),
            };
            match ended {
                Some(Ok(never)) => match never {},
                Some(Err(ended)) => ended,
                None => Ended::SessionOver,
            }
        }
        Err(ended) => ended,
    }
}

type Link = HttpLink<Empty<Bytes>>;

type Open = (Link, Incoming, Option<SessionLink>);

async fn dial(shared: &Shared, peer: &Arc<Peer>, kind: StreamKind, url: &Url) -> Result<Open, Ended> {
    let times = &shared.timeouts;
    let mut link = Link::open(url, times.dial, times.write).await?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = format!("/raft/stream/{}/{}", kind.name(), shared.identity.member)
        .parse()
        .expect("hex and letters make a path");
    *request.headers_mut() = shared.request_headers(Some(peer.id));
    let answer =
        timeout(times.read, link.request(request)).await.map_err(|_| LinkError::Timeout(times.read))??;
    let status = answer.status();
    if status == StatusCode::OK {
        shared.identity.check_stream_response(answer.headers())?;
        let session = greet(shared, peer, hello::read(answer.headers())?)?;
        shared.handler.welcomed(peer.id);
        return Ok((link, answer.into_body(), session));
    }
    let (head, body) = answer.into_parts();
    let (text, _) = timeout(times.read, link.collect(body, REFUSED_BYTES_MAX))
        .await
        .map_err(|_| LinkError::Timeout(times.read))??;
    if let Some(refused) = hello::refusal(&head.headers, &text) {
        let theirs = hello::read(&head.headers)?;
        shared.handler.refused(peer.id, &refused, theirs.as_ref());
        return Err(Ended::NotWelcome(Box::new(refused.verdict)));
    }
    let shown = &text[..text.len().min(REFUSAL_BYTES_MAX)];
    Err(Ended::Refused { status, text: String::from_utf8_lossy(shown).trim().to_owned() })
}

/// Judges who has answered.
fn greet(shared: &Shared, peer: &Arc<Peer>, hello: Option<Hello>) -> Result<Option<SessionLink>, Ended> {
    let unwelcome = |refused: Box<Refused>| Ended::Unwelcome(Box::new(refused.verdict));
    let judged = |session| {
        let met = Met { peer: peer.id, hello: hello.as_ref(), session, via: Via::Answer };
        shared.handler.meet(&met).map_err(unwelcome)
    };
    judged(peer.sessions.current())?;
    let Some(hello) = &hello else { return Ok(None) };
    match SessionLink::begin(peer, hello) {
        Some((link, is_first)) => {
            link.heard();
            if is_first {
                shared.handler.began(peer.id, hello);
            }
            Ok(Some(link))
        }
        None => {
            // Another start of it came between. The handler says so; if it does not mind, this one has to wait all the same.
            judged(peer.sessions.current())?;
            Err(Ended::SessionOver)
        }
    }
}

async fn receive(
    shared: &Shared,
    peer: &Peer,
    kind: StreamKind,
    link: &mut Link,
    mut body: Incoming,
    session: Option<&SessionLink>,
) -> Result<std::convert::Infallible, Ended> {
    let mut decoder = Decoder::new(shared, peer, kind);
    let patience = shared.timeouts.read;
    loop {
        let frame = timeout(patience, link.drive(body.frame())).await.map_err(|_| Ended::Silent(patience))?;
        let frame = frame.ok_or(Ended::Closed)?.map_err(LinkError::Http)?;
        let Ok(chunk) = frame.into_data() else { continue };
        peer.counters.received_bytes.fetch_add(chunk.len() as u64, Relaxed);
        if let Some(session) = session {
            session.heard();
        }
        decoder.feed(chunk);
        while let Some(decoded) = decoder.next_frame()? {
            if let Decoded::Message(message) = decoded {
                deliver(shared, peer, message);
            }
        }
    }
}

fn deliver(shared: &Shared, peer: &Peer, mut message: api::raftpb::Message) {
    if let Err(refusal) = ingress::admit(&mut message, shared.identity.member, Channel::Ordinary) {
        peer.counters.received_failures.fetch_add(1, Relaxed);
        shared.report(Some(peer), Topic::Refused, refusal);
        return;
    }
    if shared.handler.is_removed(types::MemberId(message.from.unwrap_or(0))) {
        return;
    }
    shared.handler.receive(message);
}
