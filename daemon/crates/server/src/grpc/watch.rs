//! The Watch service: requests are read and handed to the member in order, its answers go out as they come.
//!
//! The reading half is a task of its own, so that a client that reads slowly can still cancel; it ends with the stream. As in etcd a
//! client that is done asking keeps its watches, and a request that asks nothing is ignored. Not here: watches themselves.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context as Waking, Poll, ready},
};

use api::{
    error::EtcdError,
    etcdserverpb::{self as pb, watch_request::RequestUnion},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::Incoming;
use tokio::task::{AbortHandle, coop, yield_now};
use tonic::{Code, Status};

use super::{Context, inbound::Inbound, method::Method, wire};
use crate::{
    backend::{Backend, WatchClosed, WatchRequests, WatchResponses},
    body::Messages,
    edge::Edge,
    streams::{Ending, Entry},
};

/// Requests of one stream handed over before the other streams of the thread have their turn. More than a connection brings in one of
/// its turns, so that what is not read does not pile up: HTTP/2 takes thousands of small frames that nobody reads for an attack.
const TURN_REQUESTS: usize = 1024;

/// Where etcd's clients put their token: gRPC's, then the one of plain HTTP.
const TOKEN_HEADERS: [&str; 2] = ["token", "authorization"];

pub(super) fn open<B: Backend>(cx: &Context<'_, B>, body: Incoming) -> Box<dyn Messages> {
    let edge = cx.edge;
    let entry = edge.streams.enter(cx.demands_leader());
    let (requests, responses) = edge.backend.watch();
    let reader = Reader {
        edge: edge.clone(),
        inbound: Inbound::new(edge.receiving.clone(), cx.headers, body),
        token: token(cx.headers),
        requests,
    };
    let reading = tokio::spawn(reader.run(entry.ending().clone()));
    Box::new(Watch { responses, entry, reading: reading.abort_handle() })
}

pub(super) fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    TOKEN_HEADERS.iter().find_map(|name| headers.get(*name)).cloned()
}

struct Watch<R> {
    responses: R,
    entry: Entry,
    reading: AbortHandle,
}

impl<R> Drop for Watch<R> {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl<R: WatchResponses> Messages for Watch<R> {
    fn poll_next(&mut self, cx: &mut Waking<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Poll::Ready(status) = self.entry.poll_end(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        let chunk = ready!(self.responses.poll_next(cx));
        Poll::Ready(Some(chunk.ok_or_else(|| EtcdError::Stopped.into())))
    }
}

struct Reader<B: Backend> {
    edge: Arc<Edge<B>>,
    inbound: Inbound,
    token: Option<HeaderValue>,
    requests: B::WatchRequests,
}

impl<B: Backend> Reader<B> {
    /// Only what goes wrong ends the stream.
    async fn run(mut self, ending: Arc<Ending>) {
        let Err(status) = self.read().await else { return };
        if status.code() == Code::Cancelled {
            ending.end(EtcdError::WatchCanceled.into());
        } else {
            self.edge.metrics.receive_failed(Method::Watch);
            ending.end(status);
        }
    }

    /// Ends well when the client has no more requests or the member takes no more.
    async fn read(&mut self) -> Result<(), Status> {
        for number in 1.. {
            let Some(message) = poll_fn(|cx| self.inbound.poll_message(cx)).await else { break };
            let message = message?;
            self.edge.metrics.message_received(Method::Watch, message.len());
            let request: pb::WatchRequest = wire::decode(message)?;
            // Boxed, so that an idle stream does not carry its size, and not within tokio's budget, which knows nothing of what a
            // request costs: ours is below.
            if coop::unconstrained(Box::pin(self.hand(request))).await.is_err() {
                break;
            }
            if number % TURN_REQUESTS == 0 {
                yield_now().await;
            }
        }
        Ok(())
    }

    async fn hand(&self, request: pb::WatchRequest) -> Result<(), WatchClosed> {
        match request.request_union {
            None => Ok(()),
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(other) => self.requests.send(pb::WatchRequest { request_union: Some(other) }).await,
        }
    }

    async fn create(&self, mut create: pb::WatchCreateRequest) -> Result<(), WatchClosed> {
        // Copied, because they are kept as long as the watch and would hold the buffer they were received in.
        create.key = if create.key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            Bytes::copy_from_slice(&create.key)
        };
        create.range_end = Bytes::copy_from_slice(&create.range_end);
        let token = self.token.as_ref().map(HeaderValue::as_bytes);
        if let Err(error) = self.edge.backend.may_watch(token, &create.key, &create.range_end) {
            return self.requests.refuse(reason(error)).await;
        }
        let request_union = Some(RequestUnion::CreateRequest(create));
        self.requests.send(pb::WatchRequest { request_union }).await
    }
}

/// A refusal in the form of grpc-go's status errors, which is what etcd sends as the reason. Whatever is not about who asks reads as
/// a lack of permission there.
fn reason(error: EtcdError) -> String {
    let shown = match error {
        EtcdError::InvalidAuthToken | EtcdError::AuthOldRevision | EtcdError::UserEmpty => error,
        _ => EtcdError::PermissionDenied,
    };
    format!("rpc error: code = {:?} desc = {}", shown.code(), shown.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_the_words_of_etcd() {
        for (error, expected) in [
            (
                EtcdError::PermissionDenied,
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            ),
            (
                EtcdError::InvalidAuthToken,
                "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
            ),
            (
                EtcdError::AuthOldRevision,
                "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
            ),
            (EtcdError::UserEmpty, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"),
            (
                EtcdError::UserNotFound,
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            ),
        ] {
            assert_eq!(reason(error), expected);
        }
    }

    #[test]
    fn the_token_of_grpc_goes_first() {
        let mut headers = HeaderMap::new();
        assert_eq!(token(&headers), None);
        headers.insert("authorization", HeaderValue::from_static("http"));
        assert_eq!(token(&headers).unwrap(), "http");
        headers.insert("token", HeaderValue::from_static("grpc"));
        assert_eq!(token(&headers).unwrap(), "grpc");
    }
}
