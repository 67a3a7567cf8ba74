//! Measures the round trip to a peer and compares clocks, every few seconds.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Empty;
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Peer;
use crate::{handler::Topic, link::HttpLink, wire::Shared};

/// Clocks further apart than this are worth a line, as in etcd.
const DRIFT_MAX: Duration = Duration::from_secs(1);

const ANSWER_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Now")]
    now: String,
}

pub(super) async fn probe(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut pace = interval(shared.timeouts.probe);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = None;
    loop {
        pace.tick().await;
        // A failed probe says nothing that the streams do not say as well.
        kept = timeout(shared.timeouts.request, once(&shared, &peer, kept)).await.ok().flatten();
    }
}

type Link = HttpLink<Empty<Bytes>>;

/// One measurement; the connection is handed back if it can be used again.
async fn once(shared: &Shared, peer: &Peer, kept: Option<Link>) -> Option<Link> {
    let request = || {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = Uri::from_static("/raft/probing");
        *request.headers_mut() = shared.identity.request_headers(None);
        request
    };
    if let Some(mut link) = kept
        && measure(shared, peer, &mut link, request()).await.is_some()
    {
        return Some(link);
    }
    let times = &shared.timeouts;
    let mut link = Link::open(&peer.urls.pick()?, times.dial, times.write).await.ok()?;
    measure(shared, peer, &mut link, request()).await?;
    Some(link)
}

async fn measure(
    shared: &Shared,
    peer: &Peer,
    link: &mut Link,
    request: Request<Empty<Bytes>>,
) -> Option<()> {
    let asked = Instant::now();
    let ours = OffsetDateTime::now_utc();
    let answer = link.request(request).await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    let (body, _) = link.collect(answer.into_body(), ANSWER_BYTES_MAX).await.ok()?;
    let round_trip = asked.elapsed();
    peer.counters.rtt.observe(round_trip);
    let answer: Answer = serde_json::from_slice(&body).ok()?;
    let theirs = OffsetDateTime::parse(&answer.now, &Rfc3339).ok()?;
    let drift = theirs - (ours + round_trip / 2);
    if drift.abs() > DRIFT_MAX {
        let seconds = drift.as_seconds_f64();
        shared.report(Some(peer), Topic::ClockDrift, format_args!("its clock is {seconds:+.3} s from ours"));
    }
    Some(())
}
