//! Changes by prefix while the call lasts. Nothing is counted as changes happen: the history between two revisions is read afterwards,
//! which has every change of the cluster, whoever took it in.

use std::{sync::Arc, time::Duration};

use api::{
    error::EtcdError,
    mvccpb::{Event, event::EventType},
    operator::{PrefixWrites, WritesRequest, WritesResponse},
};
use http::HeaderValue;
use tonic::Status;
use types::Revision;

use super::{ROWS_MAX, Rows, group::Grouping, slice};
use crate::{backend::Backend, edge::Edge};

const WINDOW_DEFAULT: Duration = Duration::from_secs(1);

/// Longer looks are several calls: what one of them has to read afterwards should stay a matter of seconds.
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// Changes that one call looks at: more than a second of a cluster at its limit. What is beyond is told as not seen.
const EVENTS_MAX: usize = 200_000;

pub(crate) async fn writes<B: Backend>(
    edge: &Arc<Edge<B>>,
    token: Option<HeaderValue>,
    request: WritesRequest,
) -> Result<WritesResponse, Status> {
    let WritesRequest { prefix, depth, separator, window_ms } = request;
    let token = token.as_ref().map(HeaderValue::as_bytes);
    let grouping = Grouping::new(&edge.backend, token, prefix, depth, separator)?;
    let window = match window_ms {
        0 => WINDOW_DEFAULT,
        window => Duration::from_millis(u64::from(window)).min(WINDOW_MAX),
    };
    let before = edge.backend.header(0).revision;
    tokio::time::sleep(window).await;
    let header = edge.backend.header(0);
    let _turn = edge.shared.operator_turn.acquire().await.map_err(|_| EtcdError::Stopped)?;
    let range = grouping.range();
    let mut count = Count { grouping, rows: Rows::new(ROWS_MAX), others: PrefixWrites::default(), events: 0 };
    let (mut from, mut seen) = (before + 1, 0);
    while from <= header.revision && count.events < EVENTS_MAX {
        let (backend, range, to) = (edge.backend.clone(), range.clone(), header.revision);
        let read = slice(move || backend.history(Revision(from), Revision(to), &range)).await?;
        let history = match read {
            Ok(history) => history,
            // Compaction has overtaken the window; what is left of it is looked at.
            Err(EtcdError::Compacted) => {
                let oldest = edge.backend.compact_revision();
                if oldest <= from {
                    return Err(EtcdError::Compacted.into());
                }
                from = oldest;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for event in history.revisions.iter().flat_map(|(_, events)| events) {
            count.event(event);
        }
        // It comes further with every slice, since `from` is not in the future.
        seen += history.through.0 + 1 - from;
        from = history.through.0 + 1;
    }
    let prefixes = count.rows.rows.into_iter().map(|(prefix, row)| PrefixWrites { prefix, ..row }).collect();
    Ok(WritesResponse {
        header: Some(header),
        prefixes,
        others: (count.others != PrefixWrites::default()).then_some(count.others),
        window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX),
        revisions: header.revision - before,
        revisions_seen: seen,
    })
}

struct Count {
    grouping: Grouping,
    rows: Rows<PrefixWrites>,
    others: PrefixWrites,
    events: usize,
}

impl Count {
    fn event(&mut self, event: &Event) {
        let Some(kv) = &event.kv else { return };
        self.events += 1;
        let row = self.rows.at(self.grouping.of(&kv.key)).unwrap_or(&mut self.others);
        match event.r#type() {
            EventType::Put => row.puts += 1,
            EventType::Delete => row.deletes += 1,
        }
        row.bytes += (kv.key.len() + kv.value.len()) as i64;
    }
}
