//! `POST /cairn/hello`: a member says who it is, and is told what is known of it. Answered always, also to who is refused everything else:
//! how else should it learn why.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use identity::Question;
use tokio::time::timeout;

use super::reply::{self, ReplyBody};
use crate::wire::Shared;

pub(crate) const PATH: &str = "/cairn/hello";

/// A hello, and a list of first members with long URLs.
const QUESTION_BYTES_MAX: usize = 64 << 10;

pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let question = match question(request, shared.timeouts.read).await {
        Ok(question) => question,
        Err(refusal) => return refusal,
    };
    let session = shared.peer(question.hello.member).and_then(|peer| peer.sessions.current());
    match shared.handler.answer(question, session) {
        Some(answer) => reply::json(&answer, "\n"),
        None => reply::not_found(),
    }
}

/// `patience` is for the whole body, however it trickles.
pub(crate) async fn question(
    request: Request<Incoming>,
    patience: Duration,
) -> Result<Question, Response<ReplyBody>> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::POST) {
        return Err(reply::closing(refusal));
    }
    let body = Limited::new(request.into_body(), QUESTION_BYTES_MAX).collect();
    let body: Bytes = match timeout(patience, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let refusal = reply::text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
            return Err(reply::closing(refusal));
        }
        _ => return Err(reply::closing(reply::text(StatusCode::BAD_REQUEST, "error reading body"))),
    };
    serde_json::from_slice(&body).map_err(|error| {
        reply::text(StatusCode::BAD_REQUEST, format_args!("error unmarshalling request: {error}"))
    })
}
