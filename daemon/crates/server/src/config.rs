//! Settings of the client edge, with etcd's defaults. Values are checked by whoever read them; here they only take effect.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use types::limits;

use crate::discovery::DiscoveryConfig;

/// An address to listen on and the setting it came from, so that a refusal can name what to change.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The name of the setting, for example `listen-client-urls`.
    pub setting: &'static str,
    /// Port 0 lets the system choose; [`crate::Running::client_addresses`] tells the outcome.
    pub address: SocketAddr,
}

/// See the module text. `ServerConfig::default()` listens nowhere.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// gRPC, and HTTP too unless `client_http` names addresses of its own.
    pub client: Vec<Listen>,
    /// HTTP alone (`listen-client-http-urls`).
    pub client_http: Vec<Listen>,
    /// `/metrics` and health alone, served by a thread of its own (`listen-metrics-urls`).
    pub metrics: Vec<Listen>,
    /// Single-threaded runtimes that serve clients; None takes half of the cores, at least one: the other half belongs to
    /// consensus, log and apply.
    pub runtimes: Option<NonZeroUsize>,
    /// Largest request in its replicated form (`max-request-bytes`). The message limit is this plus
    /// [`limits::GRPC_OVERHEAD_BYTES`].
    pub request_bytes_max: u64,
    /// `max-txn-ops`.
    pub txn_ops_max: usize,
    /// `max-concurrent-streams` of one HTTP/2 connection.
    pub streams_max: u32,
    /// Idle time after which an HTTP/2 connection is pinged (`grpc-keepalive-interval`); zero: never.
    pub keepalive_interval: Duration,
    /// Time for the answer to that ping (`grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// Open connections over all client listeners; None: what the descriptor limit allows less a reserve.
    pub connections_max: Option<NonZeroUsize>,
    /// Time for the first bytes of a connection, which decide its protocol.
    pub first_bytes_timeout: Duration,
    /// Time for the head of one HTTP/1.1 request, also the idle time between two.
    pub header_read_timeout: Duration,
    /// Bound of the reads behind `/health`, `/livez` and `/readyz`; etcd: 5 s and two election timeouts.
    pub health_timeout: Duration,
    /// Origins allowed by `cors`; `*` allows all.
    pub cors: Vec<String>,
    /// Hosts allowed by `host-whitelist`, on plain HTTP; `*` allows all.
    pub host_whitelist: Vec<String>,
    /// What `/version` calls `etcdserver`, strictly X.Y.Z.
    pub server_version: String,
    /// `metrics=extensive`: latency histograms of every method.
    pub metrics_extensive: bool,
    /// `discovery-service`: serve discovery on the client listeners that speak HTTP.
    pub discovery: Option<DiscoveryConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            client: Vec::new(),
            client_http: Vec::new(),
            metrics: Vec::new(),
            runtimes: None,
            request_bytes_max: limits::REQUEST_BYTES_MAX_DEFAULT,
            txn_ops_max: limits::TXN_OPS_MAX_DEFAULT,
            streams_max: u32::MAX,
            keepalive_interval: Duration::from_secs(2 * 3600),
            keepalive_timeout: Duration::from_secs(20),
            connections_max: None,
            first_bytes_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(5 * 60),
            health_timeout: Duration::from_secs(7),
            cors: vec!["*".to_owned()],
            host_whitelist: vec!["*".to_owned()],
            server_version: limits::ETCD_VERSION.to_owned(),
            metrics_extensive: false,
            discovery: None,
        }
    }
}

impl ServerConfig {
    /// Runtimes that will serve clients.
    pub fn runtimes_count(&self) -> usize {
        self.runtimes.map(NonZeroUsize::get).unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map(NonZeroUsize::get).unwrap_or(1);
            (cores / 2).max(1)
        })
    }

    /// Largest gRPC message accepted, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        usize::try_from(self.request_bytes_max.saturating_add(limits::GRPC_OVERHEAD_BYTES))
            .unwrap_or(usize::MAX)
    }
}
