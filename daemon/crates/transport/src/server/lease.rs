//! `POST /leases` and `POST /leases/internal`: what followers ask the leader about leases, in etcd's messages. Statuses and texts are
//! etcd's, since an etcd follower tells "not found" from everything else by them.

use std::sync::Arc;

use api::{
    etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse},
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use prost::Message;
use tokio::time::timeout;

use super::reply::{self, ReplyBody};
use crate::{handler::LeaseRefusal, headers::Mismatch, wire::Shared};

/// As in etcd; both messages are some tens of bytes.
const QUESTION_BYTES_MAX: usize = 64 << 10;

pub(super) async fn keep_alive(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let question: LeaseKeepAliveRequest = match question(shared, request).await {
        Ok(question) => question,
        Err(refusal) => return refusal,
    };
    match shared.handler.renew_lease(question.id).await {
        Ok(ttl) => reply::protobuf(&LeaseKeepAliveResponse { header: None, id: question.id, ttl }),
        Err(refusal) => refused(&refusal, StatusCode::BAD_REQUEST),
    }
}

pub(super) async fn internal(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let question: LeaseInternalRequest = match question(shared, request).await {
        Ok(question) => question,
        Err(refusal) => return refusal,
    };
    let Some(question) = question.lease_time_to_live_request else { return unmarshalling() };
    match shared.handler.lease_time_to_live(question).await {
        Ok(mut answer) => {
            // A member of etcd ends with a panic when there is no header to fill in.
            answer.header.get_or_insert_default();
            reply::protobuf(&LeaseInternalResponse { lease_time_to_live_response: Some(answer) })
        }
        Err(refusal) => refused(&refusal, StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn refused(refusal: &LeaseRefusal, not_primary: StatusCode) -> Response<ReplyBody> {
    let status = match refusal {
        LeaseRefusal::NotFound => StatusCode::NOT_FOUND,
        LeaseRefusal::NotApplied => StatusCode::REQUEST_TIMEOUT,
        LeaseRefusal::NotPrimary => not_primary,
    };
    reply::text(status, refusal)
}

async fn question<M: Message + Default>(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<M, Response<ReplyBody>> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::POST) {
        return Err(reply::closing(refusal));
    }
    // Somebody of another cluster at a recycled address. Members of etcd do not say who they are here.
    if let Err(mismatch) = shared.identity.check_cluster(request.headers()) {
        return Err(reply::closing(reply::text(Mismatch::STATUS, mismatch)));
    }
    let body = Limited::new(request.into_body(), QUESTION_BYTES_MAX).collect();
    let body: Bytes = match timeout(shared.timeouts.read, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let refusal = reply::text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
            return Err(reply::closing(refusal));
        }
        _ => return Err(reply::closing(reply::text(StatusCode::BAD_REQUEST, "error reading body"))),
    };
    M::decode(body).map_err(|_| unmarshalling())
}

fn unmarshalling() -> Response<ReplyBody> {
    reply::text(StatusCode::BAD_REQUEST, "error unmarshalling request")
}
