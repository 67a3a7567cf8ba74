//! `POST /raft/snapshot`: an envelope with the MsgSnap, then the database file to the end of the body. The file goes to a sink of the
//! handler, on a blocking thread, a few chunks behind the network.

use std::{io, sync::Arc};

use api::raftpb::{Message, MessageType};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use types::MemberId;

use super::{
    raft,
    reply::{self, ReplyBody},
};
use crate::{
    codec,
    config::SNAPSHOT_ENVELOPE_BYTES_MAX,
    handler::{Handler, Topic},
    ingress::Channel,
    peer::Peer,
    wire::Shared,
};

/// Chunks (of up to one read buffer each) between network and disk.
const CHUNKS_QUEUED: usize = 8;

type Answer = Response<ReplyBody>;

pub(super) async fn receive(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::POST) {
        return reply::closing(refusal);
    }
    let caller = match raft::bringer(shared, request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return raft::with_identity(shared, reply::closing(*refusal)),
    };
    let peer = caller.member.and_then(|from| shared.peer(from));
    let started = Instant::now();
    if let Some(peer) = &peer {
        peer.counters.snapshot_receive.begin();
    }
    let mut guard = Counted { peer, started, ok: false };
    let answer = match accept(shared, caller.member, guard.peer.as_deref(), request.into_body()).await {
        Ok(()) => {
            guard.ok = true;
            reply::no_content()
        }
        Err(refusal) => {
            shared.report(
                guard.peer.as_deref(),
                Topic::Snapshot,
                format_args!("incoming snapshot was not taken: {}", refusal.status()),
            );
            reply::closing(refusal)
        }
    };
    raft::with_identity(shared, answer)
}

/// Counts the end of a transfer, also when its connection breaks and the future is dropped.
struct Counted {
    peer: Option<Arc<Peer>>,
    started: Instant,
    ok: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            peer.counters.snapshot_receive.end(self.ok, self.started.elapsed());
        }
    }
}

async fn accept(
    shared: &Arc<Shared>,
    from: Option<MemberId>,
    peer: Option<&Peer>,
    body: Incoming,
) -> Result<(), Answer> {
    if from.is_some_and(|from| shared.handler.is_removed(from)) {
        return Err(raft::removed_sender());
    }
    let Ok(_place) = shared.snapshot_receives.clone().try_acquire_owned() else {
        return Err(reply::text(StatusCode::SERVICE_UNAVAILABLE, "too many snapshots at once"));
    };
    let mut body = Upload { shared, body, rest: Bytes::new() };
    let message = body.envelope().await.map_err(|error| {
        reply::text(StatusCode::BAD_REQUEST, format_args!("failed to decode raft message ({error})"))
    })?;
    if codec::kind(&message) != Some(MessageType::MsgSnap) {
        return Err(reply::text(StatusCode::BAD_REQUEST, "wrong raft message type"));
    }
    let message = raft::admit(shared, peer, message, Channel::Snapshot).map_err(raft::Denied::answer)?;

    let (chunks, arriving) = mpsc::channel(CHUNKS_QUEUED);
    let handler = shared.handler.clone();
    let written = shared.runtime.spawn_blocking(move || write(handler, message, arriving));
    let broken = loop {
        match body.chunk().await {
            Ok(Some(chunk)) => {
                if chunks.send(Arriving::Chunk(chunk)).await.is_err() {
                    // Writing has failed, and `written` knows why.
                    break None;
                }
            }
            Ok(None) => {
                let _ = chunks.send(Arriving::End).await;
                break None;
            }
            Err(error) => break Some(error),
        }
    };
    drop(chunks);
    let written = written.await.unwrap_or_else(|_| Err(Failed::Save(io::Error::other("writer ended early"))));
    if let Some(error) = broken {
        return Err(internal(format_args!("failed to save KV snapshot ({error})")));
    }
    written.map_err(|failed| match failed {
        Failed::Save(error) => internal(format_args!("failed to save KV snapshot ({error})")),
        Failed::Process(error) => internal(format_args!("failed to process raft message ({error})")),
    })
}

fn internal(text: impl std::fmt::Display) -> Answer {
    reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

enum Arriving {
    Chunk(Bytes),
    /// The body is complete. Without it the upload has broken off, whatever came before.
    End,
}

enum Failed {
    Save(io::Error),
    Process(io::Error),
}

/// The blocking half. A sink that is dropped here without `finish` throws its bytes away.
fn write(
    handler: Arc<dyn Handler>,
    message: Message,
    mut arriving: mpsc::Receiver<Arriving>,
) -> Result<(), Failed> {
    let mut sink = handler.receive_snapshot(message).map_err(Failed::Save)?;
    loop {
        match arriving.blocking_recv() {
            Some(Arriving::Chunk(chunk)) => sink.write(chunk).map_err(Failed::Save)?,
            Some(Arriving::End) => return sink.finish().map_err(Failed::Process),
            None => return Err(Failed::Save(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// The body of the request, with what was read beyond the envelope.
struct Upload<'a> {
    shared: &'a Shared,
    body: Incoming,
    rest: Bytes,
}

impl Upload<'_> {
    /// Next bytes, `None` at the end.
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        loop {
            let patience = self.shared.timeouts.snapshot_stall;
            let frame = timeout(patience, self.body.frame())
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            match frame {
                None => return Ok(None),
                Some(frame) => match frame.map_err(io::Error::other)?.into_data() {
                    Ok(chunk) if !chunk.is_empty() => return Ok(Some(chunk)),
                    _ => {}
                },
            }
        }
    }

    async fn envelope(&mut self) -> io::Result<Message> {
        let length = self.exactly(8).await?.get_u64();
        if length > SNAPSHOT_ENVELOPE_BYTES_MAX {
            let text =
                format!("envelope of {length} bytes, at most {SNAPSHOT_ENVELOPE_BYTES_MAX} are accepted");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let bytes = self.exactly(length as usize).await?;
        codec::decode_message(bytes, SNAPSHOT_ENVELOPE_BYTES_MAX)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Memory follows the bytes that arrive, not the length that was announced.
    async fn exactly(&mut self, length: usize) -> io::Result<Bytes> {
        let mut bytes = BytesMut::new();
        while bytes.len() < length {
            let mut chunk = self.chunk().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let part = chunk.split_to(chunk.len().min(length - bytes.len()));
            bytes.extend_from_slice(&part);
            self.rest = chunk;
        }
        Ok(bytes.freeze())
    }
}
