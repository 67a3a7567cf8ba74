//! Questions about leases that a follower passes on to its leader: `POST /leases` and `/leases/internal`, one exchange each on one of a
//! few kept connections. Both may be asked twice, so a kept connection that turns out to be closed costs nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    etcdserverpb::{
        LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    },
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use parking_lot::Mutex;
use prost::Message;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{Peer, pipeline::IDLE_MAX};
use crate::{
    link::{HttpLink, LinkError},
    wire::Shared,
};

/// Connections for such questions to one peer, and so questions under way. The leader answers from memory in tens of microseconds; those
/// that wait there (for a revocation, for apply) must leave room for the others.
const CONNECTIONS_MAX: usize = 32;

/// The keys of one lease may be many; past this the answer is not read.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// Text of a refusal that is kept.
const REFUSAL_BYTES_MAX: usize = 512;

/// Why a question about a lease has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseCallError {
    /// The leader's last word.
    #[error("requested lease not found")]
    NotFound,
    /// Ask again, or somebody else.
    #[error("{0}")]
    NoAnswer(String),
}

pub(super) struct LeaseLinks {
    places: Semaphore,
    /// Used last at the end, so that those not needed grow old.
    kept: Mutex<Vec<Kept>>,
}

impl LeaseLinks {
    pub(super) fn new() -> LeaseLinks {
        LeaseLinks { places: Semaphore::new(CONNECTIONS_MAX), kept: Mutex::default() }
    }

    fn take(&self, url: &Url) -> Option<Link> {
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.url == *url && kept.used.elapsed() < IDLE_MAX);
        kept.pop().map(|kept| kept.link)
    }

    fn keep(&self, link: Link, url: Url) {
        self.kept.lock().push(Kept { link, url, used: Instant::now() });
    }
}

type Link = HttpLink<Full<Bytes>>;

struct Kept {
    link: Link,
    url: Url,
    used: Instant,
}

pub(crate) async fn renew(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    id: i64,
    patience: Duration,
) -> Result<i64, LeaseCallError> {
    let question = LeaseKeepAliveRequest { id }.encode_to_vec();
    let answer = ask(shared, peer, "/leases", question.into(), patience).await?;
    let answer = LeaseKeepAliveResponse::decode(answer.as_slice()).map_err(no_answer)?;
    if answer.id != id {
        return Err(no_answer("the answer is about another lease"));
    }
    Ok(answer.ttl)
}

pub(crate) async fn time_to_live(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    request: LeaseTimeToLiveRequest,
    patience: Duration,
) -> Result<LeaseTimeToLiveResponse, LeaseCallError> {
    let id = request.id;
    let question = LeaseInternalRequest { lease_time_to_live_request: Some(request) }.encode_to_vec();
    let answer = ask(shared, peer, "/leases/internal", question.into(), patience).await?;
    let answer = LeaseInternalResponse::decode(Bytes::from(answer)).map_err(no_answer)?;
    answer
        .lease_time_to_live_response
        .filter(|answer| answer.id == id)
        .ok_or_else(|| no_answer("the answer is about another lease"))
}

fn no_answer(cause: impl std::fmt::Display) -> LeaseCallError {
    LeaseCallError::NoAnswer(cause.to_string())
}

async fn ask(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    path: &'static str,
    question: Bytes,
    patience: Duration,
) -> Result<Vec<u8>, LeaseCallError> {
    let stop = peer.stop.clone();
    // On the transport's own threads: a kept connection belongs to no caller's runtime.
    let runtime = shared.runtime.clone();
    let work = async move {
        let Ok(_place) = peer.leases.places.acquire().await else { return Err(no_answer("stopping")) };
        let url = peer.urls.pick().ok_or_else(|| no_answer("the leader has no peer URL"))?;
        let (status, body) = post(&shared, &peer, &url, path, question).await.map_err(|error| {
            peer.urls.failed(&url);
            no_answer(error.story())
        })?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::NOT_FOUND => Err(LeaseCallError::NotFound),
            status => {
                let text = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
                Err(no_answer(format_args!("{status}: {}", text.trim())))
            }
        }
    };
    let bounded = async move { timeout(patience, stop.run_until_cancelled(work)).await };
    // Given up with its asker: those who left would keep the connections from those who wait.
    match AbortOnDropHandle::new(runtime.spawn(bounded)).await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Err(_)) => Err(no_answer(format_args!("no answer within {patience:?}"))),
        Ok(Ok(None)) | Err(_) => Err(no_answer("stopping")),
    }
}

async fn post(
    shared: &Shared,
    peer: &Peer,
    url: &Url,
    path: &'static str,
    question: Bytes,
) -> Result<(StatusCode, Vec<u8>), LinkError> {
    if let Some(mut link) = peer.leases.take(url)
        && let Ok(answer) = exchange(shared, &mut link, path, question.clone()).await
    {
        peer.leases.keep(link, url.clone());
        return Ok(answer);
    }
    let times = &shared.timeouts;
    let mut link = Link::open(url, times.dial, times.write).await?;
    let answer = exchange(shared, &mut link, path, question).await?;
    peer.leases.keep(link, url.clone());
    Ok(answer)
}

async fn exchange(
    shared: &Shared,
    link: &mut Link,
    path: &'static str,
    question: Bytes,
) -> Result<(StatusCode, Vec<u8>), LinkError> {
    let mut request = Request::new(Full::new(question));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    *request.headers_mut() = shared.identity.request_headers(None);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/protobuf"));
    let answer = link.request(request).await?;
    let status = match shared.identity.check_cluster(answer.headers()) {
        Ok(()) => answer.status(),
        // Whoever answers at a recycled address knows nothing of our leases.
        Err(_) => StatusCode::PRECONDITION_FAILED,
    };
    let (body, whole) = link.collect(answer.into_body(), ANSWER_BYTES_MAX).await?;
    Ok((if whole { status } else { StatusCode::PAYLOAD_TOO_LARGE }, body))
}
