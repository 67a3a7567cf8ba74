//! A Range of many keys, read and encoded in pieces. A runtime is one thread: a list of a million keys in one go would hold up every
//! call beside it. Between two pieces the others get their turn, and the pieces go out as they are: protobuf joins the encodings of
//! parts into the whole, so nothing is copied into one large buffer, and the decoded keys of a piece are gone before the next.

use std::sync::Arc;

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use prost::Message;
use state_machine::validate;

use super::wire::Frames;
use crate::{backend::Backend, edge::Edge};

/// Ranges that cannot bring more keys than this are read at once: some 60 us with values of a few hundred bytes.
const KEYS_AT_ONCE: i64 = 1000;

/// Encoded size that pieces aim at. A piece is between half and twice of it, a fraction of a millisecond of this thread.
const PIECE_BYTES: usize = 256 * 1024;

/// A read at the current revision that compaction overtakes begins anew; after so many times it is read at once, which cannot be
/// overtaken.
const ATTEMPTS: usize = 3;

/// Whether a range may be long and can be read in pieces: in key order, without filters.
pub(super) fn is_wide(request: &pb::RangeRequest) -> bool {
    let many = request.limit <= 0 || request.limit > KEYS_AT_ONCE;
    many && !request.range_end.is_empty() && !request.count_only && validate::range_stream(request).is_ok()
}

/// The answer of Range, in frames.
pub(super) async fn range<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: pb::RangeRequest,
) -> Result<Frames, EtcdError> {
    if !request.serializable {
        edge.backend.read_barrier().await?;
    }
    for _ in 0..ATTEMPTS {
        match in_pieces(edge, &request).await {
            // Nobody asked for a revision, so nobody can be told that it is gone.
            Err(EtcdError::Compacted) if request.revision <= 0 => continue,
            answer => return answer,
        }
    }
    let whole = edge.backend.range_local(&request)?;
    Ok(Frames::one(whole.encode_to_vec().into()))
}

async fn in_pieces<B: Backend>(edge: &Arc<Edge<B>>, request: &pb::RangeRequest) -> Result<Frames, EtcdError> {
    let pieces = edge.backend.range_stream(request, PIECE_BYTES)?;
    let mut frames = Frames::default();
    for piece in pieces {
        let Some(mut response) = piece?.range_response else { continue };
        let is_last = response.header.is_some();
        if let Some(header) = &mut response.header {
            *header = edge.backend.header(header.revision);
        }
        frames.push(Bytes::from(response.encode_to_vec()));
        if is_last {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_pieces() {
        let all = pb::RangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
        assert!(is_wide(&all));
        assert!(is_wide(&pb::RangeRequest { limit: 1001, keys_only: true, revision: 5, ..all.clone() }));
        for (narrow, why) in [
            (pb::RangeRequest { limit: 1000, ..all.clone() }, "a page"),
            (pb::RangeRequest { range_end: Bytes::new(), ..all.clone() }, "one key"),
            (pb::RangeRequest { count_only: true, ..all.clone() }, "a number"),
            (pb::RangeRequest { sort_order: 2, ..all.clone() }, "needs all keys to sort"),
            (pb::RangeRequest { max_mod_revision: 3, ..all }, "filters come after the read"),
        ] {
            assert!(!is_wide(&narrow), "{why}");
        }
    }
}
