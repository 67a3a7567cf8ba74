//! `POST /raft` and the two streams.
//!
//! 403 and 410 make an etcd member at the other end shut itself down, so they are said only about members in the applied removed set;
//! a message addressed to somebody else gets 412, where etcd itself would say 403.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use api::raftpb::Message;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use identity::Hello;
use tokio::time::timeout;
use types::MemberId;

use super::reply::{self, ReplyBody};
use crate::{
    codec,
    config::{BODIES_BYTES_MAX, REMOTES_MAX},
    handler::Topic,
    headers::{Caller, Mismatch},
    hello::{self, Met, Via},
    ingress::{self, Channel, Refusal},
    peer::{Peer, SessionLink, Standing, StreamKind},
    wire::Shared,
};

/// What a member in the removed set is told on streams.
const REMOVED: &str = "removed member";

/// What somebody is told whose messages may be good later.
const NOT_NOW: &str = "this member does not know yet whether you are of its cluster; try again later";

pub(super) fn stream(shared: &Arc<Shared>, request: &Request<Incoming>, path: &str) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::GET) {
        return refusal;
    }
    with_identity(shared, open_stream(shared, request.headers(), path))
}

fn open_stream(shared: &Arc<Shared>, headers: &HeaderMap, path: &str) -> Response<ReplyBody> {
    let caller = match check(shared, headers) {
        Ok(caller) => caller,
        Err(mismatch) => return reply::text(Mismatch::STATUS, mismatch),
    };
    let (name, from) = path.split_once('/').unwrap_or((path, ""));
    let Some(kind) = StreamKind::ALL.into_iter().find(|kind| kind.name() == name) else {
        return reply::text(StatusCode::NOT_FOUND, "invalid path");
    };
    let Ok(from) = from.parse::<MemberId>() else {
        return reply::text(StatusCode::NOT_FOUND, "invalid from");
    };
    let hello = match hello_of(shared, headers, Some(from)) {
        Ok(hello) => hello,
        Err(refusal) => return *refusal,
    };
    // etcd's members know no other word for it; ours are told by which entry.
    if hello.is_none() && shared.handler.is_removed(from) {
        return reply::text(StatusCode::GONE, REMOVED);
    }
    if let Err(refusal) = meet(shared, from, hello.as_ref(), Via::Stream) {
        return *refusal;
    }
    let Some(peer) = shared.peer(from).filter(|peer| peer.standing == Standing::Member) else {
        remember(shared, from, caller);
        return reply::text(StatusCode::NOT_FOUND, "error sender not found");
    };
    if let Err(mismatch) = shared.identity.check_target(headers) {
        return reply::text(Mismatch::STATUS, mismatch);
    }
    let session = match hello.map(|hello| begin(shared, &peer, &hello)).transpose() {
        Ok(session) => session,
        Err(refusal) => return *refusal,
    };
    match peer.attach(shared, kind, session) {
        Some(body) => reply::stream(body),
        None => reply::text(StatusCode::NOT_FOUND, "error sender not found"),
    }
}

/// Boxed: who is welcome carries it along for nothing.
type Refusing = Box<Response<ReplyBody>>;

/// What the caller says of itself. An unreadable hello is refused: whoever has one must not pass for a member of etcd, who has none.
fn hello_of(shared: &Shared, headers: &HeaderMap, from: Option<MemberId>) -> Result<Option<Hello>, Refusing> {
    let hello = hello::read(headers).map_err(|unreadable| {
        shared.report(None, Topic::Garbage, format_args!("request with an {unreadable}"));
        Box::new(reply::text(StatusCode::BAD_REQUEST, unreadable))
    })?;
    match &hello {
        Some(hello) if from.is_some_and(|from| from != hello.member) => {
            Err(Box::new(reply::text(StatusCode::BAD_REQUEST, "hello of another member")))
        }
        _ => Ok(hello),
    }
}

fn meet(shared: &Shared, from: MemberId, hello: Option<&Hello>, via: Via) -> Result<(), Refusing> {
    let session = shared.peer(from).and_then(|peer| peer.sessions.current());
    shared
        .handler
        .meet(&Met { peer: from, hello, session, via })
        .map_err(|refused| Box::new(reply::refused(&refused)))
}

/// A welcome caller's stream begins.
fn begin(shared: &Shared, peer: &Arc<Peer>, hello: &Hello) -> Result<SessionLink, Refusing> {
    match SessionLink::begin(peer, hello) {
        Some((link, is_first)) => {
            if is_first {
                shared.handler.began(peer.id, hello);
            }
            Ok(link)
        }
        None => {
            // Another start of it came between, and is its twin now.
            meet(shared, peer.id, Some(hello), Via::Stream)?;
            let text = "another start of this member is heard";
            Err(Box::new(reply::text(StatusCode::SERVICE_UNAVAILABLE, text)))
        }
    }
}

/// The checks of whoever brings a message or a snapshot: version, cluster, who it is.
pub(super) fn bringer(shared: &Shared, headers: &HeaderMap) -> Result<Caller, Refusing> {
    let caller =
        check(shared, headers).map_err(|mismatch| Box::new(reply::text(Mismatch::STATUS, mismatch)))?;
    let hello = hello_of(shared, headers, caller.member)?;
    // A member of etcd that does not even say its id is judged by its message.
    let Some(from) = caller.member.or(hello.as_ref().map(|hello| hello.member)) else { return Ok(caller) };
    if hello.is_none() && shared.handler.is_removed(from) {
        return Err(Box::new(removed_sender()));
    }
    meet(shared, from, hello.as_ref(), Via::Message)?;
    if !shared.handler.may_speak(from, hello.as_ref(), &caller.urls) {
        return Err(Box::new(reply::text(StatusCode::SERVICE_UNAVAILABLE, NOT_NOW)));
    }
    if let (Some(hello), Some(peer)) = (hello, shared.peer(from)) {
        peer.sessions.heard(hello.boot.nonce, false);
    }
    Ok(caller)
}

pub(super) async fn message(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::POST) {
        return reply::closing(refusal);
    }
    let response = accept_message(shared, request).await;
    if !response.status().is_success() {
        shared.received_failure();
    }
    with_identity(shared, response)
}

async fn accept_message(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let caller = match bringer(shared, request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return reply::closing(*refusal),
    };
    let from = caller.member;
    if let Some(from) = from {
        remember(shared, from, caller);
    }
    let body = match read_body(shared, request.into_body()).await {
        Ok(body) => body,
        Err(refusal) => return reply::closing(refusal),
    };
    let peer = from.and_then(|from| shared.peer(from));
    if let Some(peer) = &peer {
        peer.counters.received_bytes.fetch_add(body.bytes.len() as u64, Relaxed);
    }
    let message = match codec::decode_message(body.bytes.clone(), shared.limits.frame_bytes_max) {
        Ok(message) => message,
        Err(error) => {
            shared.report(peer.as_deref(), Topic::Garbage, format_args!("POST /raft: {error}"));
            return reply::closing(reply::text(StatusCode::BAD_REQUEST, "error unmarshalling raft message"));
        }
    };
    match admit(shared, peer.as_deref(), message, Channel::Ordinary) {
        Ok(message) => {
            shared.handler.receive(message);
            reply::no_content()
        }
        Err(denied) => denied.answer(),
    }
}

/// Why a well-formed message was not taken.
pub(super) enum Denied {
    /// Its sender is in the applied removed set.
    Removed,
    Refused(Refusal),
}

impl Denied {
    pub(super) fn answer(self) -> Response<ReplyBody> {
        match self {
            Denied::Removed => removed_sender(),
            Denied::Refused(Refusal::Target(_)) => reply::text(Mismatch::STATUS, Mismatch::Target),
            Denied::Refused(refusal) => reply::text(StatusCode::BAD_REQUEST, refusal),
        }
    }
}

/// The checks that every message passes.
pub(super) fn admit(
    shared: &Shared,
    peer: Option<&Peer>,
    mut message: Message,
    channel: Channel,
) -> Result<Message, Denied> {
    match ingress::admit(&mut message, shared.identity.member, channel) {
        Ok(()) if shared.handler.is_removed(MemberId(message.from.unwrap_or(0))) => Err(Denied::Removed),
        Ok(()) => Ok(message),
        Err(refusal) => {
            if let Some(peer) = peer {
                peer.counters.received_failures.fetch_add(1, Relaxed);
            }
            shared.report(peer, Topic::Refused, &refusal);
            Err(Denied::Refused(refusal))
        }
    }
}

/// Version, then cluster.
pub(super) fn check(shared: &Shared, headers: &HeaderMap) -> Result<Caller, Mismatch> {
    shared.identity.check_request(headers).inspect_err(|mismatch| {
        let from =
            headers.get(crate::headers::SERVER_FROM).and_then(|from| from.to_str().ok()).unwrap_or("nobody");
        shared.report(None, Topic::Refused, format_args!("request from {from}: {mismatch}"));
    })
}

pub(super) fn removed_sender() -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Bytes(Bytes::from_static(
        b"{\"message\":\"cannot process message from removed member\"}",
    )));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn with_identity(shared: &Shared, mut response: Response<ReplyBody>) -> Response<ReplyBody> {
    response.headers_mut().extend(shared.response_headers());
    response
}

/// Keeps the addresses of somebody unknown, if the handler agrees, so that it can be answered.
fn remember(shared: &Arc<Shared>, from: MemberId, caller: Caller) {
    if from == shared.identity.member
        || caller.member != Some(from)
        || caller.urls.is_empty()
        || shared.peer(from).is_some()
        || !shared.handler.accept_remote(from, &caller.urls)
    {
        return;
    }
    let mut peers = shared.peers.write();
    let remotes = peers.values().filter(|peer| peer.standing == Standing::Remote).count();
    if remotes < REMOTES_MAX && !shared.stop.is_cancelled() {
        peers.entry(from).or_insert_with(|| Peer::start(shared, from, Standing::Remote, caller.urls));
    }
}

/// A received body and its share of the memory that all bodies may take.
struct Received<'a> {
    bytes: Bytes,
    _share: Share<'a>,
}

struct Share<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Share<'_> {
    fn grow(&mut self, by: u64) -> bool {
        self.bytes += by;
        self.shared.bodies.fetch_add(by, Relaxed) + by <= BODIES_BYTES_MAX
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shared.bodies.fetch_sub(self.bytes, Relaxed);
    }
}

async fn read_body(shared: &Shared, mut body: Incoming) -> Result<Received<'_>, Response<ReplyBody>> {
    let unreadable = || reply::text(StatusCode::BAD_REQUEST, "error reading raft message");
    let mut share = Share { shared, bytes: 0 };
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        let frame = timeout(shared.timeouts.read, body.frame()).await.map_err(|_| unreadable())?;
        let Some(frame) = frame else { break };
        let Ok(chunk) = frame.map_err(|_| unreadable())?.into_data() else { continue };
        if share.bytes + chunk.len() as u64 > shared.limits.frame_bytes_max {
            return Err(reply::text(StatusCode::BAD_REQUEST, "error reading raft message"));
        }
        if !share.grow(chunk.len() as u64) {
            return Err(reply::text(StatusCode::SERVICE_UNAVAILABLE, "too many messages at once"));
        }
        // Most messages are one chunk and need no copy.
        if share.bytes == chunk.len() as u64 {
            first = chunk;
            continue;
        }
        gathered.extend_from_slice(&std::mem::take(&mut first));
        gathered.extend_from_slice(&chunk);
    }
    let bytes = if gathered.is_empty() { first } else { gathered.freeze() };
    Ok(Received { bytes, _share: share })
}
