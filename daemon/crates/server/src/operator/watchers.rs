//! Watchers of this member by the prefix of what they watch.

use std::sync::Arc;

use api::operator::{PrefixWatchers, WatchersRequest, WatchersResponse};
use http::HeaderValue;
use tonic::Status;

use super::{ROWS_MAX, Rows, group::Grouping};
use crate::{backend::Backend, edge::Edge};

pub(crate) async fn watchers<B: Backend>(
    edge: &Arc<Edge<B>>,
    token: Option<HeaderValue>,
    request: WatchersRequest,
) -> Result<WatchersResponse, Status> {
    let WatchersRequest { prefix, depth, separator } = request;
    let token = token.as_ref().map(HeaderValue::as_bytes);
    let grouping = Grouping::new(&edge.backend, token, prefix, depth, separator)?;
    let mut rows: Rows<PrefixWatchers> = Rows::new(ROWS_MAX);
    let mut others = PrefixWatchers::default();
    let mut from = Some(0);
    while let Some(place) = from {
        let census = edge.backend.census(place).await?;
        for watched in census.ranges.iter().filter(|watched| grouping.concerns(&watched.range)) {
            let row = rows.at(grouping.of(watched.range.start())).unwrap_or(&mut others);
            row.watchers += watched.watchers as i64;
            row.slow += watched.slow as i64;
        }
        from = census.next;
    }
    Ok(WatchersResponse {
        header: Some(edge.backend.header(0)),
        prefixes: rows.rows.into_iter().map(|(prefix, row)| PrefixWatchers { prefix, ..row }).collect(),
        others: (others.watchers > 0).then_some(others),
    })
}
