//! Maintenance.Snapshot: a backup in pieces, each read when the client has room for it. The member makes them; here they are framed.
//!
//! Dropping the answer (the client went away, its time is over, the server stops) ends the backup at the member.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use api::etcdserverpb as pb;
use bytes::Bytes;
use node::Backup;
use tonic::Status;

use super::wire;
use crate::{backend::Backend, body::Messages, edge::Edge};

pub(super) async fn snapshot<B: Backend>(
    edge: Arc<Edge<B>>,
    _: pb::SnapshotRequest,
) -> Result<Box<dyn Messages>, Status> {
    Ok(Box::new(Pieces(edge.backend.snapshot()?)))
}

struct Pieces(Backup);

impl Messages for Pieces {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        self.0.poll_recv(cx).map(|piece| {
            piece.map(|piece| match piece {
                Ok(piece) => wire::encode(&piece),
                Err(error) => Err(Status::unavailable(format!("the backup ended early: {error}"))),
            })
        })
    }
}
