//! Keys and bytes by prefix, counted on a view of one revision.

use std::sync::Arc;

use api::{
    error::EtcdError,
    etcdserverpb as pb,
    operator::{PrefixUse, PrefixesRequest, PrefixesResponse},
};
use bytes::Bytes;
use http::HeaderValue;
use tonic::Status;

use super::{ROWS_MAX, Rows, group::Grouping, slice};
use crate::{backend::Backend, edge::Edge};

/// Keys that one call looks at before it says where to go on: some seconds.
const KEYS_PER_CALL: i64 = 1_000_000;

/// Bytes of keys and values that one slice reads: a few milliseconds.
const SLICE_BYTES: usize = 1024 * 1024;

pub(crate) async fn prefixes<B: Backend>(
    edge: &Arc<Edge<B>>,
    token: Option<HeaderValue>,
    request: PrefixesRequest,
) -> Result<PrefixesResponse, Status> {
    let PrefixesRequest { prefix, depth, separator, revision, resume_key } = request;
    let token = token.as_ref().map(HeaderValue::as_bytes);
    let grouping = Grouping::new(&edge.backend, token, prefix, depth, separator)?;
    let _turn = edge.shared.operator_turn.acquire().await.map_err(|_| EtcdError::Stopped)?;
    let (mut key, range_end) = grouping.request_range();
    if !resume_key.is_empty() {
        if !grouping.range().contains(&resume_key) {
            return Err(Status::invalid_argument("cairn: the resume key is outside of the prefix"));
        }
        key = resume_key;
    }
    // A number also for "now": the pieces of later calls have to come from the same view.
    let header = edge.backend.header(revision.max(0));
    let range = pb::RangeRequest {
        key,
        range_end,
        revision: header.revision,
        limit: KEYS_PER_CALL,
        serializable: true,
        ..Default::default()
    };
    let backend = edge.backend.clone();
    // Beside the other calls of this thread, since the keys of an old revision are counted first.
    let mut pieces = slice(move || {
        let pieces = backend.range_stream(&range, SLICE_BYTES)?;
        Ok::<_, EtcdError>(Box::new(pieces) as Box<dyn Iterator<Item = _> + Send>)
    })
    .await??;
    let mut count = Count { grouping, rows: Rows::new(ROWS_MAX), last: Bytes::new(), resume: None };
    loop {
        let (rest, piece, so_far) = slice(move || {
            let piece = pieces.next().transpose().map(|piece| count.piece(piece));
            (pieces, piece, count)
        })
        .await?;
        (pieces, count) = (rest, so_far);
        if piece? {
            break;
        }
    }
    let prefixes = count.rows.rows.into_iter().map(|(prefix, uses)| PrefixUse { prefix, ..uses }).collect();
    Ok(PrefixesResponse { header: Some(header), prefixes, resume_key: count.resume.unwrap_or_default() })
}

struct Count {
    grouping: Grouping,
    rows: Rows<PrefixUse>,
    last: Bytes,
    /// Where the next call has to begin.
    resume: Option<Bytes>,
}

impl Count {
    /// True when the call is over: nothing is left, or the answer is full.
    fn piece(&mut self, piece: Option<pb::RangeStreamResponse>) -> bool {
        let Some(piece) = piece.and_then(|piece| piece.range_response) else { return true };
        for kv in piece.kvs {
            let Some(row) = self.rows.at(self.grouping.of(&kv.key)) else {
                self.resume = Some(kv.key);
                return true;
            };
            row.keys += 1;
            row.key_bytes += kv.key.len() as i64;
            row.value_bytes += kv.value.len() as i64;
            self.last = kv.key;
        }
        if piece.more {
            self.resume = Some([&self.last[..], &[0]].concat().into());
        }
        // Only the last piece has a header.
        piece.header.is_some()
    }
}
