//! Plain HTTP on the client port: health, metrics, version, and a polite word for everything that is not here.
//!
//! Not here: the JSON gateway (`/v3/`), which answers 501 until it exists.

pub(crate) mod access;
mod debug;
mod health;

use std::{fmt::Display, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;

use crate::{
    backend::Backend,
    body::Body,
    discovery,
    edge::{Edge, Surface},
    metrics::{self, HealthKind},
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Who asks, as far as the connection tells. An extension of requests that are not gRPC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub SocketAddr);

/// Answers one request that is not gRPC. Its body, if any, is read by the discovery service alone.
pub(crate) async fn serve<B: Backend>(
    edge: Arc<Edge<B>>,
    surface: Surface,
    request: Request<Incoming>,
) -> Response<Body> {
    match surface {
        Surface::Metrics => watched(&edge, &request).await.unwrap_or_else(not_found),
        Surface::ClientGrpc => error(
            StatusCode::NOT_FOUND,
            "this address serves gRPC only; HTTP is served at --listen-client-http-urls",
        ),
        Surface::Client | Surface::ClientHttp => {
            let access = &edge.shared.access;
            if let Err(refusal) = access.check_host(&request) {
                return error(StatusCode::MISDIRECTED_REQUEST, refusal);
            }
            let allowed = access.allowed_origin(request.headers());
            let mut response = if request.method() == Method::OPTIONS {
                Response::new(Body::Done)
            } else {
                match discovered(&edge, request.uri().path()) {
                    Some((service, place)) => discovery::serve(edge.clone(), service, place, request).await,
                    None => client(&edge, &request).await,
                }
            };
            if let Some(origin) = allowed {
                access::add_cors(response.headers_mut(), origin);
            }
            response
        }
    }
}

/// Whether the discovery service is on and this path its own.
fn discovered<B>(edge: &Edge<B>, path: &str) -> Option<(Arc<discovery::Discovery>, discovery::Place)> {
    let service = edge.shared.discovery.as_ref()?;
    Some((service.clone(), discovery::claim(path)?))
}

async fn client<B: Backend>(edge: &Arc<Edge<B>>, request: &Request<Incoming>) -> Response<Body> {
    if let Some(response) = watched(edge, request).await {
        return response;
    }
    match request.uri().path() {
        "/version" => only_get(request, || version(edge)),
        "/debug/vars" => only_get(request, || debug::vars(edge)),
        path if path.starts_with("/v3/") || path.starts_with("/v3beta/") => json(
            StatusCode::NOT_IMPLEMENTED,
            &Refusal {
                code: tonic::Code::Unimplemented as i32,
                message: "cairn does not serve the JSON gateway yet; this port speaks gRPC",
            },
        ),
        _ => not_found(),
    }
}

/// What both the client and the metrics listeners serve.
async fn watched<B: Backend>(edge: &Arc<Edge<B>>, request: &Request<Incoming>) -> Option<Response<Body>> {
    let path = request.uri().path();
    let checks = match path {
        "/metrics" => return Some(metrics_text(edge)),
        "/health" if request.method() != Method::GET => return Some(not_allowed()),
        "/health" => return Some(health::health(edge, request.uri().query().unwrap_or_default()).await),
        "/livez" => health::Checks::All(HealthKind::Livez),
        "/readyz" => health::Checks::All(HealthKind::Readyz),
        _ => health::Checks::one(path)?,
    };
    if request.method() != Method::GET {
        return Some(not_allowed());
    }
    Some(health::checks(edge, checks, request.uri().query().unwrap_or_default()).await)
}

fn metrics_text<B: Backend>(edge: &Arc<Edge<B>>) -> Response<Body> {
    let text = metrics::render(&edge.shared, &edge.backend);
    let mut response = Response::new(Body::Whole(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, METRICS);
    response
}

#[derive(Serialize)]
struct Version<'a> {
    etcdserver: &'a str,
    etcdcluster: &'a str,
    storage: &'a str,
}

fn version<B: Backend>(edge: &Arc<Edge<B>>) -> Response<Body> {
    let cluster = edge.backend.cluster_version();
    let storage = edge.backend.storage_version();
    json(
        StatusCode::OK,
        &Version {
            etcdserver: &edge.shared.config.server_version,
            etcdcluster: cluster.as_deref().unwrap_or("not_decided"),
            storage: if storage.is_empty() { "unknown" } else { &storage },
        },
    )
}

#[derive(Serialize)]
struct Refusal<'a> {
    code: i32,
    message: &'a str,
}

fn not_allowed() -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

fn only_get(request: &Request<Incoming>, answer: impl FnOnce() -> Response<Body>) -> Response<Body> {
    if request.method() == Method::GET { answer() } else { not_allowed() }
}

fn not_found() -> Response<Body> {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// A refusal as Go's HTTP library words it: text, a newline, and no guessing of the type.
pub(crate) fn error(status: StatusCode, message: impl Display) -> Response<Body> {
    let mut response = text(format!("{message}\n").into());
    *response.status_mut() = status;
    response
}

fn text(body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body));
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).expect("plain structs of strings and numbers have a JSON form");
    let mut response = Response::new(Body::Whole(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}
