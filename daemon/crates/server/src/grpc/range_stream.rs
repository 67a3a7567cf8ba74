//! KV.RangeStream: one range in chunks, all read at one revision. A chunk is read when the client has room for it, so a slow
//! client costs one chunk of memory, not the answer.
//!
//! Merged, the chunks equal the answer of Range. Header, `more` and `count` travel with the last one, as in etcd.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::validate;
use api::{error::EtcdError, etcdserverpb as pb};
use bytes::{BufMut, Bytes, BytesMut};
use tonic::Status;

use super::wire;
use crate::{backend::Backend, body::Messages, edge::Edge};

/// Keys in the first chunk, as in etcd: a client sees something early, and the second chunk knows how large the values are.
const FIRST_CHUNK_KEYS: i64 = 10;

/// Keys in the largest chunk. Tiny values would double the chunk for ever; this many keys already amount to the byte bound with
/// values of a dozen bytes, and bound the time a runtime spends on one chunk.
const CHUNK_KEYS_MAX: i64 = 16 * 1024;

pub(super) async fn range_stream<B: Backend>(
    edge: Arc<Edge<B>>,
    request: pb::RangeRequest,
) -> Result<Box<dyn Messages>, Status> {
    validate::range(&request)?;
    check_streamable(&request)?;
    if !request.serializable {
        edge.backend.read_barrier().await?;
    }
    let mut chunks = Chunks::new(request, edge.shared.config.request_bytes_max);
    // The first chunk is read before the answer begins, so that a refusal is a refusal and not a stream that breaks.
    let first = chunks.next(&edge.backend)?;
    Ok(Box::new(RangeMessages { edge, chunks, first }))
}

/// Sorting and filtering need the whole range at once. Sorting by key upwards is how a range is read anyway.
fn check_streamable(request: &pb::RangeRequest) -> Result<(), EtcdError> {
    use pb::range_request::{SortOrder, SortTarget};
    let order = SortOrder::try_from(request.sort_order).unwrap_or_default();
    let target = SortTarget::try_from(request.sort_target).unwrap_or_default();
    let as_read = target == SortTarget::Key && order != SortOrder::Descend;
    if !as_read {
        return Err(EtcdError::RangeStreamSort);
    }
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if bounds.iter().any(|&bound| bound != 0) { Err(EtcdError::RangeStreamFilters) } else { Ok(()) }
}

struct RangeMessages<B> {
    edge: Arc<Edge<B>>,
    chunks: Chunks,
    first: Option<Bytes>,
}

impl<B: Backend> Messages for RangeMessages<B> {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        Poll::Ready(self.chunks.next(&self.edge.backend).map_err(Status::from).transpose())
    }
}

/// Where the stream stands. Pure but for the read itself.
struct Chunks {
    request: pb::RangeRequest,
    /// What the client asked for; zero is no limit.
    limit: i64,
    sent: i64,
    chunk_keys: i64,
    chunk_bytes: usize,
    /// Count of the whole range and revision of the store, both as the first chunk found them.
    first: Option<(i64, i64)>,
    finished: bool,
}

impl Chunks {
    fn new(request: pb::RangeRequest, request_bytes_max: u64) -> Self {
        Chunks {
            limit: request.limit.max(0),
            sent: 0,
            chunk_keys: FIRST_CHUNK_KEYS,
            chunk_bytes: usize::try_from(request_bytes_max).unwrap_or(usize::MAX),
            first: None,
            finished: false,
            request,
        }
    }

    fn next<B: Backend>(&mut self, backend: &B) -> Result<Option<Bytes>, EtcdError> {
        if self.finished {
            return Ok(None);
        }
        let left = if self.limit == 0 { i64::MAX } else { self.limit - self.sent };
        self.request.limit = self.chunk_keys.min(left);
        let mut response = backend.range_local(&self.request)?;
        let read_at = response.header.as_ref().map(|header| header.revision).unwrap_or_default();
        if self.request.revision <= 0 {
            self.request.revision = read_at;
        }
        let (count, revision) = *self.first.get_or_insert((response.count, read_at));
        self.sent += response.kvs.len() as i64;
        let last_key = response.kvs.last().map(|pair| pair.key.clone());
        self.finished = self.request.count_only
            || !response.more
            || last_key.is_none()
            || (self.limit != 0 && self.sent >= self.limit);
        if self.finished {
            response.header = Some(backend.header(revision));
            response.count = count;
        } else {
            response.header = None;
            response.count = 0;
            response.more = false;
        }
        let message = wire::encode(&pb::RangeStreamResponse { range_response: Some(response) });
        self.adapt(message.len());
        if let Some(key) = last_key {
            self.request.key = key_after(&key);
        }
        Ok(Some(message))
    }

    fn adapt(&mut self, encoded_bytes: usize) {
        if encoded_bytes < self.chunk_bytes / 2 {
            self.chunk_keys = (self.chunk_keys * 2).min(CHUNK_KEYS_MAX);
        } else if encoded_bytes > self.chunk_bytes.saturating_mul(2) {
            self.chunk_keys = (self.chunk_keys / 2).max(1);
        }
    }
}

/// The smallest key above this one.
fn key_after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}
