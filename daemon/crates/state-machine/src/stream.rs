//! RangeStream: a range in pieces that a client can take without holding it whole, all read at one revision.

use api::error::EtcdError;
use api::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader};
use prost::Message;

use crate::range::{Plan, after};
use crate::read::{Overtaken, Reader, readable};
use crate::store::Store;

/// Keys of the first piece, as in etcd; later pieces adapt.
const FIRST_KEYS: usize = 10;
/// Keys of the largest piece, so that tiny values do not make one piece a long read.
const KEYS_MAX: usize = 1 << 20;

/// An iterator over the messages of one RangeStream. Blocking only in the sense of [`Reader::range`].
#[derive(Debug)]
pub struct RangeStream<S> {
    reader: Reader<S>,
    plan: Plan,
    from: Vec<u8>,
    at: i64,
    header: i64,
    count: u64,
    remaining: usize,
    piece_keys: usize,
    piece_bytes: usize,
    done: bool,
}

impl<S: Store> Reader<S> {
    /// Begins a stream. Its revision is pinned here. `piece_bytes` is max-request-bytes: the size pieces aim at.
    ///
    /// # Errors
    /// As [`crate::validate::range_stream`] and [`Reader::range`].
    pub fn range_stream(
        &self,
        request: &RangeRequest,
        piece_bytes: usize,
    ) -> Result<RangeStream<S>, EtcdError> {
        crate::validate::range_stream(request)?;
        let plan = Plan::new(request)?;
        let (at, header, counted) = {
            let state = self.shared.state.read();
            let at = readable(&state, request.revision)?;
            (at, state.revision, self.count_if_cheap(&state, &plan, at))
        };
        let count = match counted {
            Some(count) => count,
            None => self.count_at(&plan, at).map_err(|Overtaken| EtcdError::Compacted)?,
        };
        Ok(RangeStream {
            reader: self.clone(),
            from: plan.bounds().0,
            remaining: plan.limit(),
            plan,
            at,
            header,
            count,
            piece_keys: FIRST_KEYS,
            piece_bytes,
            done: false,
        })
    }
}

impl<S: Store> RangeStream<S> {
    /// Header, `more` and `count` are on the last message only.
    fn closing(&self, kvs: Vec<api::mvccpb::KeyValue>, more: bool) -> RangeResponse {
        let header = ResponseHeader { revision: self.header, ..Default::default() };
        RangeResponse { header: Some(header), kvs, more, count: self.count as i64 }
    }

    fn step(&mut self) -> Result<RangeResponse, EtcdError> {
        if self.plan.count_only {
            self.done = true;
            return Ok(self.closing(Vec::new(), false));
        }
        let keys = self.piece_keys.min(self.remaining);
        // One more than the piece tells whether it is the last.
        let read =
            self.reader.gather(&self.plan, self.at, self.from.clone(), keys.saturating_add(1), 0, None);
        let mut kvs = read.map_err(|Overtaken| EtcdError::Compacted)?;
        let more = kvs.len() > keys;
        kvs.truncate(keys);
        if let Some(last) = kvs.last() {
            self.from = after(&last.key);
        }
        self.remaining -= kvs.len();
        let kvs = self.plan.strip(kvs);
        if !more || self.remaining == 0 {
            self.done = true;
            return Ok(self.closing(kvs, more));
        }
        let piece = RangeResponse { kvs, ..Default::default() };
        let bytes = piece.encoded_len();
        if bytes < self.piece_bytes / 2 {
            self.piece_keys = (self.piece_keys * 2).min(KEYS_MAX);
        } else if bytes > self.piece_bytes.saturating_mul(2) {
            self.piece_keys = (self.piece_keys / 2).max(1);
        }
        Ok(piece)
    }
}

impl<S: Store> Iterator for RangeStream<S> {
    type Item = Result<RangeStreamResponse, EtcdError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step();
        self.done |= step.is_err();
        Some(step.map(|piece| RangeStreamResponse { range_response: Some(piece) }))
    }
}
