//! What one runtime needs to serve: its own handle of the member, its own counters, and the settings that all share.

use std::sync::Arc;

use crate::{
    backend::Backend,
    config::ServerConfig,
    discovery::Discovery,
    grpc::wire::Receiving,
    http::access::Access,
    metrics::{HttpMetrics, Registry, RpcMetrics},
    serving::PhaseReceiver,
    streams::Streams,
};

/// What a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    /// gRPC and HTTP on one port.
    Client,
    /// gRPC only: HTTP has listeners of its own.
    ClientGrpc,
    /// HTTP only.
    ClientHttp,
    /// Metrics and health only.
    Metrics,
}

/// Settings and counters that all runtimes share; touched per connection, per health check and per scrape, never per call.
pub(crate) struct Shared {
    pub config: ServerConfig,
    pub access: Access,
    pub http: HttpMetrics,
    pub registry: Registry,
    pub phase: PhaseReceiver,
    /// When it is served.
    pub discovery: Option<Arc<Discovery>>,
    /// One scan for operators at a time, whatever the number of runtimes.
    pub operator_turn: tokio::sync::Semaphore,
}

/// One per runtime.
pub(crate) struct Edge<B> {
    pub backend: B,
    pub shared: Arc<Shared>,
    pub metrics: Arc<RpcMetrics>,
    pub receiving: Arc<Receiving>,
    pub streams: Arc<Streams>,
}

impl<B: Backend> Edge<B> {
    pub fn new(backend: B, shared: Arc<Shared>) -> Arc<Self> {
        let metrics = shared.registry.runtime();
        let receiving = Arc::new(Receiving::new(shared.config.message_bytes_max()));
        Arc::new(Edge { backend, shared, metrics, receiving, streams: Arc::default() })
    }
}
