//! gRPC calls: from path to method, through the checks every call passes, to the answer.
//!
//! The order of checks is etcd's: the message is read, learners refuse, the client's API version is counted, `hasleader` is
//! honoured, and only then the method looks at its request. A stream in both directions is checked before it is read, and its answer
//! begins at once.

mod cluster;
mod health;
mod inbound;
mod keep_alive;
mod kv;
mod lease;
mod maintenance;
pub(crate) mod method;
mod range_stream;
mod snapshot;
mod watch;
mod wide_range;
pub(crate) mod wire;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, ready},
    time::Instant,
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use prost::Message;
use tokio::{
    task::coop,
    time::{Sleep, sleep},
};
use tonic::{Code, Status};

use crate::{
    backend::Backend,
    body::{Body, Messages, add_status},
    edge::Edge,
    metrics::RpcMetrics,
    operator,
};
use method::{Kind, Method};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Answers one request whose content type is gRPC's. Never fails: whatever happens is a status.
pub(crate) async fn serve<B: Backend>(
    edge: Arc<Edge<B>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    if head.method != http::Method::POST {
        let status = Status::internal(format!("http2: received a {} request, gRPC is POST", head.method));
        let mut response = refusal(&status);
        *response.status_mut() = http::StatusCode::METHOD_NOT_ALLOWED;
        return Ok(response);
    }
    let path = head.uri.path();
    let Some(method) = Method::from_path(path) else {
        return Ok(refusal(&Status::unimplemented(method::unknown_path(path))));
    };
    let call = Call::begin(edge.metrics.clone(), method);
    let context = Context { edge: &edge, headers: &head.headers, method };
    let answer = pin!(dispatch(&context, body));
    let limit = wire::timeout(&head.headers);
    let answer = match limit {
        Ok(None) => answer.await,
        Ok(Some(limit)) => tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(too_late())),
        Err(ref status) => Err(status.clone()),
    };
    Ok(match answer {
        Ok(Answer::Message(frame)) => {
            call.sent(&frame);
            call.end(Code::Ok);
            respond(Body::Message(frame))
        }
        Ok(Answer::Parts { length, parts }) => {
            call.metrics.messages_sent(method, 1, length);
            call.end(Code::Ok);
            respond(Body::Parts(parts))
        }
        Ok(Answer::Messages(messages)) => {
            let left = limit.ok().flatten().map(|limit| limit.saturating_sub(call.since.elapsed()));
            let deadline = left.map(|left| Box::pin(sleep(left)));
            respond(Body::Messages(Box::new(Counted { messages, call, deadline })))
        }
        Err(status) => {
            call.end(status.code());
            refusal(&status)
        }
    })
}

fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

enum Answer {
    /// Framed already.
    Message(Bytes),
    /// One message in parts, framed already.
    Parts {
        length: usize,
        parts: VecDeque<Bytes>,
    },
    Messages(Box<dyn Messages>),
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// A call that ends without a message: its status travels in the head.
fn refusal(status: &Status) -> Response<Body> {
    let mut response = respond(Body::Done);
    add_status(status, response.headers_mut());
    response
}

/// What a method may look at besides its request.
pub(crate) struct Context<'a, B> {
    pub edge: &'a Arc<Edge<B>>,
    pub headers: &'a HeaderMap,
    pub method: Method,
}

/// Calls the method. The ones that carry the load stay unboxed; the others share one boxed future, so that a small call does not
/// pay for the size of a rare one.
async fn dispatch<B: Backend>(cx: &Context<'_, B>, body: Incoming) -> Result<Answer, Status> {
    match cx.method {
        Method::Range => kv::range(cx.edge, cx.request(body).await?).await,
        Method::Put => cx.unary(body, |request| kv::put(cx.edge, request)).await,
        Method::Txn => cx.unary(body, |request| kv::txn(cx.edge, request)).await,
        _ => {
            let rare: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(dispatch_rare(cx, body));
            rare.await
        }
    }
}

async fn dispatch_rare<B: Backend>(cx: &Context<'_, B>, body: Incoming) -> Result<Answer, Status> {
    let edge = cx.edge;
    match cx.method {
        Method::DeleteRange => cx.unary(body, |request| kv::delete_range(edge, request)).await,
        Method::Compact => cx.unary(body, |request| kv::compact(edge, request)).await,
        Method::RangeStream => {
            cx.server_stream(body, |request| range_stream::range_stream(edge.clone(), request)).await
        }
        Method::Watch => {
            cx.admit(false)?;
            Ok(Answer::Messages(watch::open(cx, body)))
        }
        Method::LeaseKeepAlive => {
            cx.admit(false)?;
            Ok(Answer::Messages(keep_alive::open(cx, body)))
        }
        Method::LeaseGrant => cx.unary(body, |request| lease::grant(edge, request)).await,
        Method::LeaseRevoke => cx.unary(body, |request| lease::revoke(edge, request)).await,
        Method::LeaseTimeToLive => cx.unary(body, |request| lease::time_to_live(edge, request)).await,
        Method::LeaseLeases => cx.unary(body, |request| lease::leases(edge, request)).await,
        Method::MemberList => cx.unary(body, |request| cluster::member_list(edge, request)).await,
        Method::MemberAdd => cx.unary(body, |request| cluster::member_add(edge, request)).await,
        Method::MemberRemove => cx.unary(body, |request| cluster::member_remove(edge, request)).await,
        Method::MemberUpdate => cx.unary(body, |request| cluster::member_update(edge, request)).await,
        Method::MemberPromote => cx.unary(body, |request| cluster::member_promote(edge, request)).await,
        Method::Alarm => cx.unary(body, |request| maintenance::alarm(edge, request)).await,
        Method::Status => cx.unary(body, |request| maintenance::status(edge, request)).await,
        Method::Hash => cx.unary(body, |request| maintenance::hash(edge, request)).await,
        Method::Defragment => cx.unary(body, |request| maintenance::defragment(edge, request)).await,
        Method::Snapshot => cx.server_stream(body, |request| snapshot::snapshot(edge.clone(), request)).await,
        Method::HashKv => cx.unary(body, |request| maintenance::hash_kv(edge, request)).await,
        Method::MoveLeader => cx.unary(body, |request| maintenance::move_leader(edge, request)).await,
        Method::AuthStatus => cx.unary(body, |request| maintenance::auth_status(edge, request)).await,
        Method::Authenticate => cx.unary(body, maintenance::authenticate).await,
        Method::OperatorPrefixes => {
            let token = watch::token(cx.headers);
            cx.unary(body, |request| operator::prefixes(edge, token, request)).await
        }
        Method::OperatorWrites => {
            let token = watch::token(cx.headers);
            cx.unary(body, |request| operator::writes(edge, token, request)).await
        }
        Method::OperatorWatchers => {
            let token = watch::token(cx.headers);
            cx.unary(body, |request| operator::watchers(edge, token, request)).await
        }
        Method::HealthCheck => cx.unary(body, |request| health::check(edge, request)).await,
        Method::HealthList => cx.unary(body, |request| health::list(edge, request)).await,
        Method::HealthWatch => cx.server_stream(body, |request| health::watch(edge, request)).await,
        // Methods that are promised by the API and come later. The body is not read: an answer must not wait for a client that
        // keeps its stream open.
        _ => Err(Status::unimplemented(format!(
            "cairn does not implement {} yet",
            cx.method.path().trim_start_matches('/')
        ))),
    }
}

impl<B: Backend> Context<'_, B> {
    async fn unary<Q, A, F>(
        &self,
        body: Incoming,
        answer: impl FnOnce(Q) -> F + Send,
    ) -> Result<Answer, Status>
    where
        Q: LearnerRule + Message + Default,
        A: Message,
        F: Future<Output = Result<A, Status>> + Send,
    {
        let request = self.request(body).await?;
        let answer = answer(request).await?;
        Ok(Answer::Message(wire::encode(&answer)?))
    }

    async fn server_stream<Q, F>(
        &self,
        body: Incoming,
        answer: impl FnOnce(Q) -> F + Send,
    ) -> Result<Answer, Status>
    where
        Q: LearnerRule + Message + Default,
        F: Future<Output = Result<Box<dyn Messages>, Status>> + Send,
    {
        let request = self.request(body).await?;
        Ok(Answer::Messages(answer(request).await?))
    }

    /// Reads the request and makes the checks that are the same for every method.
    async fn request<Q: LearnerRule + Message + Default>(&self, body: Incoming) -> Result<Q, Status> {
        let message = self.edge.receiving.message(self.headers, body).await?;
        self.edge.metrics.message_received(self.method, message.len());
        let request: Q = wire::decode(message)?;
        self.admit(request.on_learner(self.method))?;
        Ok(request)
    }

    /// The checks that look at the call and not at what it asks.
    fn admit(&self, on_learner: bool) -> Result<(), EtcdError> {
        let status = self.edge.backend.node_status();
        if status.is_joining && !self.method.tells_of_the_member() {
            return Err(EtcdError::Unhealthy);
        }
        if status.is_learner && !on_learner {
            return Err(EtcdError::NotSupportedForLearner);
        }
        self.edge.metrics.client_version(self.method.kind(), self.headers.get("client-api-version"))?;
        if self.demands_leader() && !self.edge.backend.has_leader() {
            return Err(EtcdError::NoLeader);
        }
        Ok(())
    }

    fn demands_leader(&self) -> bool {
        self.headers.get("hasleader").is_some_and(|value| value == "true")
    }
}

/// Whether a learner answers a request. Learners hold data that may be old and take no part in decisions.
trait LearnerRule {
    fn on_learner(&self, _method: Method) -> bool {
        false
    }
}

impl LearnerRule for pb::RangeRequest {
    fn on_learner(&self, method: Method) -> bool {
        self.serializable && method == Method::Range
    }
}
impl LearnerRule for pb::StatusRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
impl LearnerRule for pb::SnapshotRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
// Health is about this process, learner or not; etcd refuses Check on a learner, which takes it out of every load balancer.
impl LearnerRule for api::health::HealthCheckRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
impl LearnerRule for api::health::HealthListRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
// What a member has and whom it serves is asked of that member, whether it votes or not.
impl LearnerRule for api::operator::PrefixesRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
impl LearnerRule for api::operator::WritesRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
impl LearnerRule for api::operator::WatchersRequest {
    fn on_learner(&self, _method: Method) -> bool {
        true
    }
}
impl LearnerRule for pb::PutRequest {}
impl LearnerRule for pb::TxnRequest {}
impl LearnerRule for pb::DeleteRangeRequest {}
impl LearnerRule for pb::CompactionRequest {}
impl LearnerRule for pb::LeaseGrantRequest {}
impl LearnerRule for pb::LeaseRevokeRequest {}
impl LearnerRule for pb::LeaseTimeToLiveRequest {}
impl LearnerRule for pb::LeaseLeasesRequest {}
impl LearnerRule for pb::MemberListRequest {}
impl LearnerRule for pb::MemberAddRequest {}
impl LearnerRule for pb::MemberRemoveRequest {}
impl LearnerRule for pb::MemberUpdateRequest {}
impl LearnerRule for pb::MemberPromoteRequest {}
impl LearnerRule for pb::AlarmRequest {}
impl LearnerRule for pb::DefragmentRequest {}
impl LearnerRule for pb::HashRequest {}
impl LearnerRule for pb::HashKvRequest {}
impl LearnerRule for pb::MoveLeaderRequest {}
impl LearnerRule for pb::AuthStatusRequest {}
impl LearnerRule for pb::AuthenticateRequest {}

/// One call in the counters: begun once, ended once, also when the client goes away in between.
struct Call {
    metrics: Arc<RpcMetrics>,
    method: Method,
    since: Instant,
    ended: bool,
}

impl Call {
    fn begin(metrics: Arc<RpcMetrics>, method: Method) -> Self {
        metrics.started(method);
        Call { metrics, method, since: Instant::now(), ended: false }
    }

    fn sent(&self, frames: &Bytes) {
        let (count, bytes) = wire::measure(frames);
        self.metrics.messages_sent(self.method, count, bytes);
    }

    fn end(mut self, code: Code) {
        self.count(code);
    }

    fn count(&mut self, code: Code) {
        if !self.ended {
            self.ended = true;
            self.metrics.handled(self.method, code, self.since.elapsed());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

/// A stream of answers with its call, which ends when the stream does or when the client's time is over.
struct Counted {
    messages: Box<dyn Messages>,
    call: Call,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Messages for Counted {
    fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        // A stream that always has something to say lets the others of its thread speak in between.
        let turn = ready!(coop::poll_proceed(cx));
        let late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        let next = if late { Some(Err(too_late())) } else { ready!(self.messages.poll_next(cx)) };
        turn.made_progress();
        match &next {
            Some(Ok(frames)) => self.call.sent(frames),
            Some(Err(status)) => self.call.count(status.code()),
            None => self.call.count(Code::Ok),
        }
        Poll::Ready(next)
    }
}

impl Kind {
    /// etcd tells only these two apart when it counts client versions.
    pub fn is_stream(self) -> bool {
        self != Kind::Unary
    }
}
