//! The endless body of a stream that a peer has opened: what is queued, gathered into as few writes as possible, and a sign of life
//! when there is nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use api::raftpb::Message;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{Peer, SessionLink, StreamKind, outlet::Drained};
use crate::{
    codec::{message, msgapp},
    config::STREAM_BATCH_BYTES,
    wire::Shared,
};

enum Encoder {
    MsgApp(msgapp::Encoder),
    Message,
}

/// Ends when a newer stream of its kind is attached, the reader's session is over or the peer is removed. Dropped by the connection when that fails.
pub(crate) struct StreamBody {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    kind: StreamKind,
    generation: u64,
    encoder: Encoder,
    batch: Vec<Message>,
    buffer: BytesMut,
    heartbeat: Interval,
    session: Option<Reader>,
}

/// The start of the peer that reads this.
struct Reader {
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// While this is here the session has this stream.
    _link: SessionLink,
}

impl StreamBody {
    pub(super) fn attach(
        shared: Arc<Shared>,
        peer: Arc<Peer>,
        kind: StreamKind,
        session: Option<SessionLink>,
    ) -> Option<Self> {
        let generation = peer.outlet(kind).attach()?;
        let period = shared.timeouts.heartbeat();
        let mut heartbeat = interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let encoder = match kind {
            StreamKind::MsgApp => Encoder::MsgApp(msgapp::Encoder::default()),
            StreamKind::Message => Encoder::Message,
        };
        let (batch, buffer) = (Vec::new(), BytesMut::new());
        let session =
            session.map(|link| Reader { over: Box::pin(link.over().clone().cancelled_owned()), _link: link });
        Some(StreamBody { shared, peer, kind, generation, encoder, batch, buffer, heartbeat, session })
    }

    fn encode_batch(&mut self) {
        for message in self.batch.drain(..) {
            match &mut self.encoder {
                Encoder::MsgApp(encoder) => encoder.encode(&message, &mut self.buffer),
                Encoder::Message => message::encode(&message, &mut self.buffer),
            }
        }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.session.as_mut().is_some_and(|reader| reader.over.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(None);
        }
        // Encoding happens outside of the outlet's lock: the raft thread must not wait for it.
        match this.peer.outlet(this.kind).drain(this.generation, STREAM_BATCH_BYTES, &mut this.batch, cx) {
            Drained::Replaced => return Poll::Ready(None),
            Drained::Messages => this.encode_batch(),
            Drained::Empty => {
                if this.heartbeat.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                match &this.encoder {
                    Encoder::MsgApp(_) => msgapp::Encoder::encode_heartbeat(&mut this.buffer),
                    Encoder::Message => message::encode_heartbeat(&mut this.buffer),
                }
            }
        }
        let bytes = this.buffer.split().freeze();
        this.peer.counters.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(unsent) = self.peer.outlet(self.kind).detach(self.generation)
            && unsent > 0
        {
            self.peer.counters.sent_failures.fetch_add(unsent as u64, Relaxed);
            self.shared.handler.unreachable(self.peer.id);
        }
    }
}
