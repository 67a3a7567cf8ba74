//! The messages of a request that goes on: read one by one, each decoded where it lies unless it came in pieces.
//!
//! The same limits hold as for a single message. What was not asked for yet stays in the connection's flow control window.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue};
use http_body::Body as _;
use hyper::body::Incoming;
use tonic::Status;

use super::wire::{self, FRAME_HEAD_BYTES, Gathered, Receiving};

/// See the module text.
pub(super) struct Inbound {
    body: Incoming,
    encoding: Option<HeaderValue>,
    /// Received and not looked at: a data frame may hold many messages.
    rest: Bytes,
    gathered: Gathered<Arc<Receiving>>,
    ended: bool,
}

impl Inbound {
    pub fn new(receiving: Arc<Receiving>, headers: &HeaderMap, body: Incoming) -> Self {
        let encoding = headers.get(wire::ENCODING).cloned();
        Inbound { body, encoding, rest: Bytes::new(), gathered: Gathered::new(receiving), ended: false }
    }

    /// The next message; None when the client has no more. After an error nothing more is read.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match self.cut() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Some(Err(self.fail(status)))),
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest = data;
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(wire::unreadable(&error))))),
                None if self.gathered.is_empty() => self.ended = true,
                None => return Poll::Ready(Some(Err(self.fail(wire::incomplete())))),
            }
        }
    }

    fn fail(&mut self, status: Status) -> Status {
        self.ended = true;
        self.rest = Bytes::new();
        let _ = self.gathered.take();
        status
    }

    /// A message of what was received, if one is complete; otherwise nothing is left in `rest`.
    fn cut(&mut self) -> Result<Option<Bytes>, Status> {
        while !self.rest.is_empty() {
            let held = self.gathered.len();
            if held == 0
                && let Some(length) = self.length(&self.rest)?
                && self.rest.len() >= FRAME_HEAD_BYTES + length
            {
                let mut message = self.rest.split_to(FRAME_HEAD_BYTES + length);
                message.advance(FRAME_HEAD_BYTES);
                return Ok(Some(message));
            }
            // Head first, then as much as it announces: what follows belongs to the next message.
            let goal = FRAME_HEAD_BYTES + self.length(self.gathered.bytes())?.unwrap_or(0);
            let piece = self.rest.split_to((goal - held).min(self.rest.len()));
            self.gathered.push(&piece)?;
            if let Some(length) = self.length(self.gathered.bytes())?
                && self.gathered.len() == FRAME_HEAD_BYTES + length
            {
                let mut message = self.gathered.take();
                message.advance(FRAME_HEAD_BYTES);
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Length of the message that begins here, once its head is complete.
    fn length(&self, frame: &[u8]) -> Result<Option<usize>, Status> {
        if frame.len() < FRAME_HEAD_BYTES {
            return Ok(None);
        }
        self.gathered.receiving().frame_length(self.encoding.as_ref(), frame).map(Some)
    }
}
