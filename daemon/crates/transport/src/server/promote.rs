//! `POST /members/promote/<id>`: a follower passes the promotion of a learner on to its leader. Statuses and texts are etcd's, since an
//! etcd follower tells the refusals apart by them.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use types::MemberId;

use super::{
    info::with_cluster,
    reply::{self, ReplyBody},
};
use crate::{
    handler::PromoteRefusal,
    headers::{Mismatch, REFUSAL},
    wire::Shared,
};

/// `id` is decimal, as it stands in the path. The body is not read.
pub(super) async fn promote(
    shared: &Arc<Shared>,
    request: &Request<Incoming>,
    id: &str,
) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::POST) {
        return reply::closing(refusal);
    }
    // Somebody of another cluster at a recycled address. Members of etcd do not say who they are here.
    if let Err(mismatch) = shared.identity.check_cluster(request.headers()) {
        return reply::closing(reply::text(Mismatch::STATUS, mismatch));
    }
    let Ok(member) = id.parse::<u64>() else {
        let text = format_args!("member {id} not found in cluster");
        return with_cluster(shared, reply::text(StatusCode::NOT_FOUND, text));
    };
    let answer = match shared.handler.promote(MemberId(member)).await {
        Ok(members) => reply::json(&members, "\n"),
        Err(refusal) => refused(refusal),
    };
    with_cluster(shared, answer)
}

fn refused(refusal: PromoteRefusal) -> Response<ReplyBody> {
    match refusal {
        PromoteRefusal::NotFound => reply::text(StatusCode::NOT_FOUND, refusal),
        PromoteRefusal::NotLearner | PromoteRefusal::NotReady => {
            reply::text(StatusCode::PRECONDITION_FAILED, refusal)
        }
        // etcd says no more than this; a member of cairn reads the header.
        PromoteRefusal::NotEnoughStarted => {
            let mut answer = reply::internal_error();
            let text = refusal.to_string();
            answer.headers_mut().extend(HeaderValue::try_from(text).ok().map(|text| (REFUSAL, text)));
            answer
        }
        PromoteRefusal::Other => reply::internal_error(),
    }
}
