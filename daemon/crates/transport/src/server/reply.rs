//! Answers in the forms that Go's HTTP library gives them, since etcd's client compares texts.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use crate::{
    hello::{Refused, VERDICT},
    peer::StreamBody,
};

pub(crate) enum ReplyBody {
    Bytes(Bytes),
    Stream(Box<StreamBody>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            ReplyBody::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            ReplyBody::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ReplyBody::Stream(stream) => Pin::new(stream).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ReplyBody::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyBody::Stream(_) => SizeHint::default(),
        }
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Bytes(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A text and a line end, as all refusals of etcd.
pub(crate) fn text(status: StatusCode, text: impl std::fmt::Display) -> Response<ReplyBody> {
    let mut response = reply(status, "text/plain; charset=utf-8", format!("{text}\n"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn plain(body: String) -> Response<ReplyBody> {
    reply(StatusCode::OK, "text/plain; charset=utf-8", body)
}

/// JSON; `end` is a line end where etcd sends one.
pub(crate) fn json(value: &impl Serialize, end: &str) -> Response<ReplyBody> {
    match serde_json::to_string(value) {
        Ok(json) => reply(StatusCode::OK, "application/json", json + end),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

pub(super) fn protobuf(message: &impl prost::Message) -> Response<ReplyBody> {
    reply(StatusCode::OK, "application/protobuf", message.encode_to_vec())
}

pub(super) fn no_content() -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Bytes(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

pub(super) fn stream(body: StreamBody) -> Response<ReplyBody> {
    Response::new(ReplyBody::Stream(Box::new(body)))
}

/// Not welcome, and why.
pub(super) fn refused(refused: &Refused) -> Response<ReplyBody> {
    let mut response = json(refused, "\n");
    *response.status_mut() = StatusCode::PRECONDITION_FAILED;
    response.headers_mut().insert(VERDICT, HeaderValue::from_static(refused.verdict.name()));
    response
}

/// `None` if the method is the allowed one.
pub(crate) fn wrong_method(method: &Method, allowed: Method) -> Option<Response<ReplyBody>> {
    if *method == allowed {
        return None;
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    Some(response)
}

pub(super) fn not_found() -> Response<ReplyBody> {
    text(StatusCode::NOT_FOUND, "404 page not found")
}

pub(super) fn not_implemented() -> Response<ReplyBody> {
    text(StatusCode::NOT_IMPLEMENTED, "not implemented")
}

/// All that etcd says about a failure of its own.
pub(super) fn internal_error() -> Response<ReplyBody> {
    reply(StatusCode::INTERNAL_SERVER_ERROR, "application/json", "{\"message\":\"Internal Server Error\"}")
}

/// The refusal of a request whose body is not read: the connection cannot be used again.
pub(crate) fn closing(mut response: Response<ReplyBody>) -> Response<ReplyBody> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
