//! The promotion of a learner, asked of the leader: `POST /members/promote/<id>` on a connection of its own, since it is rare.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::time::timeout;
use types::MemberId;

use super::Peer;
use crate::{
    handler::{PeerMember, PromoteRefusal},
    headers::REFUSAL,
    link::{HttpLink, LinkError},
    wire::Shared,
};

/// A cluster of many members with long URLs is far below.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Text of a refusal that is kept.
const REFUSAL_BYTES_MAX: usize = 512;

/// Why a promotion that was passed on has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// The leader's last word.
    #[error(transparent)]
    Refused(PromoteRefusal),
    /// Unknown whether it happened. Ask again, or somebody else.
    #[error("{0}")]
    NoAnswer(String),
}

pub(crate) async fn promote(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    member: MemberId,
    patience: Duration,
) -> Result<Vec<PeerMember>, PromoteError> {
    let stop = peer.stop.clone();
    let runtime = shared.runtime.clone();
    let work = async move {
        let url = peer.urls.pick().ok_or_else(|| no_answer("the leader has no peer URL"))?;
        let exchange = async {
            let times = &shared.timeouts;
            let mut link = HttpLink::<Full<Bytes>>::open(&url, times.dial, times.write).await?;
            let mut request = Request::new(Full::default());
            *request.method_mut() = Method::POST;
            // Digits in a fixed path are always a URI.
            *request.uri_mut() = Uri::try_from(format!("/members/promote/{}", member.0)).unwrap_or_default();
            *request.headers_mut() = shared.identity.request_headers(None);
            let answer = link.request(request).await?;
            let (head, body) = answer.into_parts();
            let (body, whole) = link.collect(body, ANSWER_BYTES_MAX).await?;
            Ok::<_, LinkError>((head, body, whole))
        };
        let (head, body, whole) = exchange.await.map_err(|error| {
            peer.urls.failed(&url);
            no_answer(error.story())
        })?;
        if !whole || shared.identity.check_cluster(&head.headers).is_err() {
            return Err(no_answer("whoever answered is not the leader"));
        }
        judge(head.status, head.headers.contains_key(REFUSAL), &body)
    };
    // On the transport's own threads: the connection's timers belong to them.
    let bounded = async move { timeout(patience, stop.run_until_cancelled(work)).await };
    match runtime.spawn(bounded).await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Err(_)) => Err(no_answer(format_args!("no answer within {patience:?}"))),
        Ok(Ok(None)) | Err(_) => Err(no_answer("stopping")),
    }
}

/// etcd's two refusals share a status and differ in the text.
fn judge(status: StatusCode, too_few: bool, body: &[u8]) -> Result<Vec<PeerMember>, PromoteError> {
    let text = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
    let says = |refusal: PromoteRefusal| text.contains(&refusal.to_string());
    let refused = |refusal| Err(PromoteError::Refused(refusal));
    match status {
        StatusCode::OK => serde_json::from_slice(body).map_err(no_answer),
        StatusCode::NOT_FOUND => refused(PromoteRefusal::NotFound),
        StatusCode::PRECONDITION_FAILED if says(PromoteRefusal::NotReady) => {
            refused(PromoteRefusal::NotReady)
        }
        StatusCode::PRECONDITION_FAILED if says(PromoteRefusal::NotLearner) => {
            refused(PromoteRefusal::NotLearner)
        }
        StatusCode::INTERNAL_SERVER_ERROR if too_few => refused(PromoteRefusal::NotEnoughStarted),
        status => Err(no_answer(format_args!("{status}: {}", text.trim()))),
    }
}

fn no_answer(cause: impl std::fmt::Display) -> PromoteError {
    PromoteError::NoAnswer(cause.to_string())
}
