//! Sends a snapshot: the MsgSnap in an envelope, then the bytes of the database file, produced on a blocking thread and passed on in
//! bounded chunks, no faster than the peer takes them.

use std::{
    io::{self, Write},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use api::raftpb::Message;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tracing::info;

use super::{
    Peer,
    stream_in::{REFUSAL_BYTES_MAX, is_removal},
};
use crate::{
    config::{SNAPSHOT_ENVELOPE_BYTES_MAX, SNAPSHOT_SETTLE_BYTES_PER_SECOND},
    handler::{SnapshotSource, Topic},
    link::{HttpLink, LinkError},
    wire::Shared,
};

/// What is handed to the network at a time. Large enough that the change of thread does not count, small enough to come at a steady pace
/// from a source that keeps one.
const CHUNK_BYTES: usize = 128 << 10;

/// Chunks produced ahead of the network.
const CHUNKS_AHEAD: usize = 4;

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("another snapshot is on its way")]
    Busy,
    #[error("no address")]
    NoAddress,
    #[error("envelope of {0} bytes is more than receivers accept")]
    Envelope(usize),
    #[error("{}", .0.story())]
    Link(#[from] LinkError),
    #[error("no answer within {0:?} after the upload")]
    NoAnswer(Duration),
    #[error("answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
}

/// Reports the end of a transfer once, also when its task is cancelled.
struct Outcome {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    started: Instant,
    /// This transfer occupies the peer's place for one.
    holds_place: bool,
    ok: bool,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if self.holds_place {
            self.peer.sending_snapshot.store(false, Ordering::Release);
        }
        self.peer.counters.snapshot_send.end(self.ok, self.started.elapsed());
        self.shared.handler.snapshot_status(self.peer.id, self.ok);
    }
}

/// Starts a transfer; its end is told by `Handler::snapshot_status`.
pub(crate) fn send(shared: &Arc<Shared>, peer: &Arc<Peer>, message: Message, source: SnapshotSource) {
    let holds_place = !peer.sending_snapshot.swap(true, Ordering::AcqRel);
    peer.counters.snapshot_send.begin();
    let mut outcome = Outcome {
        shared: shared.clone(),
        peer: peer.clone(),
        started: Instant::now(),
        holds_place,
        ok: false,
    };
    peer.clone().spawn(shared, async move {
        let sent = if outcome.holds_place {
            upload(&outcome.shared, &outcome.peer, message, source).await
        } else {
            Err(SendError::Busy)
        };
        match sent {
            Ok(()) => {
                outcome.ok = true;
                info!(peer = %outcome.peer.id, seconds = outcome.started.elapsed().as_secs_f64(), "sent snapshot");
            }
            Err(SendError::Refused { status, text }) if status == StatusCode::GONE || is_removal(status, &text) => {
                outcome.shared.told_removed(&outcome.peer, &text);
            }
            Err(error) => outcome.shared.report(Some(&outcome.peer), Topic::Snapshot, format_args!("send: {error}")),
        }
    });
}

async fn upload(
    shared: &Arc<Shared>,
    peer: &Peer,
    message: Message,
    source: SnapshotSource,
) -> Result<(), SendError> {
    let length = message.encoded_len();
    if length as u64 > SNAPSHOT_ENVELOPE_BYTES_MAX {
        return Err(SendError::Envelope(length));
    }
    let mut envelope = BytesMut::with_capacity(8 + length);
    envelope.put_u64(length as u64);
    message.encode(&mut envelope).expect("BytesMut grows");

    let (chunks_in, chunks) = mpsc::channel(CHUNKS_AHEAD);
    shared.runtime.spawn_blocking(move || produce(source, chunks_in));
    let (done_in, mut done) = watch::channel(None);
    let body = Upload { envelope: Some(envelope.freeze()), chunks, sent: 0, done: done_in };
    let url = peer.urls.pick().ok_or(SendError::NoAddress)?;
    let times = &shared.timeouts;
    let mut link =
        HttpLink::<Upload>::open(&url, times.dial, times.snapshot_stall).await.inspect_err(|_| {
            peer.urls.failed(&url);
        })?;
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/raft/snapshot");
    *request.headers_mut() = shared.request_headers(None);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));

    let too_late = async {
        // Either the upload was completed or its body was dropped: both begin the wait for the answer.
        let bytes = done.wait_for(Option::is_some).await.map_or(0, |bytes| bytes.unwrap_or_default());
        let patience = times.snapshot_answer + Duration::from_secs(bytes / SNAPSHOT_SETTLE_BYTES_PER_SECOND);
        tokio::time::sleep(patience).await;
        patience
    };
    let answer = tokio::select! {
        answer = link.request(request) => answer?,
        patience = too_late => return Err(SendError::NoAnswer(patience)),
    };
    let status = answer.status();
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let text = timeout(times.request, link.collect(answer.into_body(), REFUSAL_BYTES_MAX)).await;
    let text = match text {
        Ok(Ok((text, _))) => String::from_utf8_lossy(&text).trim().to_owned(),
        _ => String::new(),
    };
    Err(SendError::Refused { status, text })
}

fn produce(source: SnapshotSource, chunks: mpsc::Sender<io::Result<Bytes>>) {
    let mut gathering = Gathering { chunk: BytesMut::with_capacity(CHUNK_BYTES), chunks };
    let end = match (source.write)(&mut gathering).and_then(|()| gathering.flush()) {
        // An empty chunk ends the file. A channel that merely closes does not: a snapshot must not look whole when it is not.
        Ok(()) => Ok(Bytes::new()),
        Err(error) => Err(error),
    };
    // A closed channel means that nobody wants the rest.
    let _ = gathering.chunks.blocking_send(end);
}

/// Makes chunks of what is written.
struct Gathering {
    chunk: BytesMut,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Gathering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    /// Waits while the network is behind.
    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK_BYTES));
        self.chunks
            .blocking_send(Ok(chunk.freeze()))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants it any more"))
    }
}

struct Upload {
    envelope: Option<Bytes>,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    sent: u64,
    /// The length of the file, once all of it is on its way.
    done: watch::Sender<Option<u64>>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(envelope) = self.envelope.take() {
            return Poll::Ready(Some(Ok(Frame::data(envelope))));
        }
        let chunk = match ready!(self.chunks.poll_recv(cx)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
        };
        if chunk.is_empty() {
            self.done.send_replace(Some(self.sent));
            return Poll::Ready(None);
        }
        self.sent += chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}
