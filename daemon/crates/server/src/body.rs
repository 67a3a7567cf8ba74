//! Response bodies: the few shapes an answer has, as one concrete type, so that an ordinary answer needs no box.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tonic::Status;

/// gRPC messages that come one after the other, framed already. Ending with None means status OK.
pub(crate) trait Messages: Send {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>>;
}

/// See the module text.
pub(crate) enum Body {
    /// Nothing (more) to send. A refused call is this, its status in the head.
    Done,
    /// A whole HTTP answer.
    Whole(Bytes),
    /// One framed gRPC message, then the trailers of status OK.
    Message(Bytes),
    /// One framed gRPC message in parts, then the trailers of status OK.
    Parts(VecDeque<Bytes>),
    /// The trailers of status OK.
    Trailers,
    /// A stream of framed gRPC messages, then trailers.
    Messages(Box<dyn Messages>),
    /// The head of a plain HTTP answer goes out at once, its content when it is there, in one piece.
    Later(Pin<Box<dyn Future<Output = Bytes> + Send>>),
}

impl Body {
    fn take_trailers(&mut self, status: Option<Status>) -> Option<Result<Frame<Bytes>, Infallible>> {
        *self = Body::Done;
        let mut trailers = HeaderMap::with_capacity(2);
        match status {
            None => {
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            }
            Some(status) => add_status(&status, &mut trailers),
        }
        Some(Ok(Frame::trailers(trailers)))
    }
}

/// Writes a status into a head or trailers; a text that cannot travel is left out, the code always arrives.
pub(crate) fn add_status(status: &Status, headers: &mut HeaderMap) {
    if status.add_header(headers).is_err() {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        Poll::Ready(match this {
            Body::Done => None,
            Body::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Done;
                Some(Ok(Frame::data(bytes)))
            }
            Body::Message(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Trailers;
                Some(Ok(Frame::data(bytes)))
            }
            Body::Parts(parts) => match parts.pop_front() {
                Some(part) => Some(Ok(Frame::data(part))),
                None => this.take_trailers(None),
            },
            Body::Trailers => this.take_trailers(None),
            Body::Later(later) => match later.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(whole) => {
                    *this = Body::Done;
                    (!whole.is_empty()).then(|| Ok(Frame::data(whole)))
                }
            },
            Body::Messages(messages) => match messages.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) => Some(Ok(Frame::data(bytes))),
                Poll::Ready(Some(Err(status))) => this.take_trailers(Some(status)),
                Poll::Ready(None) => this.take_trailers(None),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Done => true,
            Body::Whole(bytes) => bytes.is_empty(),
            _ => false,
        }
    }

    /// Exact only for plain HTTP: a gRPC answer must not carry a content length.
    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Done => SizeHint::with_exact(0),
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}
