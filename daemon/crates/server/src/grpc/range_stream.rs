//! KV.RangeStream: one range in pieces, all read at one revision. The state machine cuts the pieces; here each is read when the
//! client has room for it, so a slow client costs one piece of memory, not the answer.
//!
//! Merged, the pieces equal the answer of Range. Header, `more` and `count` travel with the last one, as in etcd.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use state_machine::validate;
use tonic::Status;

use super::wire;
use crate::{backend::Backend, body::Messages, edge::Edge};

pub(super) async fn range_stream<B: Backend>(
    edge: Arc<Edge<B>>,
    request: pb::RangeRequest,
) -> Result<Box<dyn Messages>, Status> {
    validate::range_stream(&request)?;
    if !request.serializable {
        edge.backend.read_barrier().await?;
    }
    let piece_bytes = usize::try_from(edge.shared.config.request_bytes_max).unwrap_or(usize::MAX);
    let pieces = edge.backend.range_stream(&request, piece_bytes)?;
    let mut pieces = Pieces { edge, pieces, first: None };
    // The first piece is read before the answer begins, so that a refusal is a refusal and not a stream that breaks.
    pieces.first = pieces.read().transpose()?;
    Ok(Box::new(pieces))
}

struct Pieces<B, I> {
    edge: Arc<Edge<B>>,
    pieces: I,
    first: Option<Bytes>,
}

impl<B, I> Pieces<B, I>
where
    B: Backend,
    I: Iterator<Item = Result<pb::RangeStreamResponse, EtcdError>>,
{
    fn read(&mut self) -> Option<Result<Bytes, Status>> {
        let piece = self.pieces.next()?;
        Some(piece.map_err(Status::from).and_then(|mut piece| {
            let header = piece.range_response.as_mut().and_then(|response| response.header.as_mut());
            if let Some(header) = header {
                *header = self.edge.backend.header(header.revision);
            }
            wire::encode(&piece)
        }))
    }
}

impl<B, I> Messages for Pieces<B, I>
where
    B: Backend,
    I: Iterator<Item = Result<pb::RangeStreamResponse, EtcdError>> + Send,
{
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        Poll::Ready(match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => self.read(),
        })
    }
}
