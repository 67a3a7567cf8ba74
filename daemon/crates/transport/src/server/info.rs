//! The questions that members ask each other outside of raft: who is there, which version, is my data like yours, are you alive.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;

use super::reply::{self, ReplyBody};
use crate::{
    client::{HashKvJson, VersionJson},
    headers::{CLUSTER_ID, Mismatch},
    wire::Shared,
};

/// `{"revision":n}` and some room.
const QUESTION_BYTES_MAX: usize = 64 << 10;

const NOT_DECIDED: &str = "not_decided";

#[derive(Serialize)]
struct Probing {
    #[serde(rename = "OK")]
    ok: bool,
    #[serde(rename = "Now")]
    now: String,
}

pub(super) fn probing() -> Response<ReplyBody> {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let json = serde_json::to_string(&Probing { ok: true, now }).unwrap_or_default();
    reply::plain(json + "\n")
}

pub(super) fn members(shared: &Shared, request: &Request<Incoming>) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::GET) {
        return refusal;
    }
    with_cluster(shared, reply::json(&shared.handler.members(), "\n"))
}

pub(super) fn version(shared: &Shared, request: &Request<Incoming>) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::GET) {
        return refusal;
    }
    let version = VersionJson {
        etcdserver: shared.identity.version.to_string(),
        etcdcluster: shared.handler.cluster_version().unwrap_or_else(|| NOT_DECIDED.to_owned()),
        storage: shared.handler.storage_version(),
    };
    with_cluster(shared, reply::json(&version, ""))
}

#[derive(Deserialize)]
struct HashQuestion {
    #[serde(default)]
    revision: i64,
}

pub(super) async fn hash_kv(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    if let Some(refusal) = reply::wrong_method(request.method(), Method::GET) {
        return refusal;
    }
    // Somebody of another cluster at a recycled address must not be taken for a corrupt member of this one.
    if let Err(mismatch) = shared.identity.check_cluster(request.headers()) {
        return with_cluster(shared, reply::closing(reply::text(Mismatch::STATUS, mismatch)));
    }
    let body =
        timeout(shared.timeouts.read, Limited::new(request.into_body(), QUESTION_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else {
        return reply::closing(reply::text(StatusCode::BAD_REQUEST, "error reading body"));
    };
    let question: HashQuestion = match serde_json::from_slice(&body.to_bytes()) {
        Ok(question) => question,
        Err(error) => {
            return reply::text(
                StatusCode::BAD_REQUEST,
                format_args!("error unmarshalling request: {error}"),
            );
        }
    };
    with_cluster(shared, hash_at(shared, question.revision).await)
}

async fn hash_at(shared: &Arc<Shared>, revision: i64) -> Response<ReplyBody> {
    use api::error::EtcdError;

    let Ok(_one_at_a_time) = shared.hashing.acquire().await else {
        return reply::text(StatusCode::INTERNAL_SERVER_ERROR, "stopping");
    };
    let handler = shared.handler.clone();
    match shared.runtime.spawn_blocking(move || handler.hash_kv(revision)).await {
        Ok(Ok(hash)) => reply::json(&HashKvJson::from(hash), ""),
        Ok(Err(error)) => {
            // etcd answers with the text of its store, which lacks the prefix that clients see.
            let text = error.text().trim_start_matches("etcdserver: ");
            let status = match error {
                EtcdError::Compacted | EtcdError::FutureRev => StatusCode::BAD_REQUEST,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            reply::text(status, text)
        }
        Err(_) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, "hash was not computed"),
    }
}

pub(super) fn with_cluster(shared: &Shared, mut response: Response<ReplyBody>) -> Response<ReplyBody> {
    if let Some(cluster) = shared.identity.response_headers().remove(CLUSTER_ID) {
        response.headers_mut().insert(CLUSTER_ID, cluster);
    }
    response
}
