//! The life of the edge: bind, start the runtimes, serve, drain.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use api::error::EtcdError;
use tokio::{runtime, time::Instant};

use crate::{
    backend::Backend,
    bind::{Bound, StartError},
    config::ServerConfig,
    connection::{Acceptor, Open, Protocols, Seats},
    discovery::{self, Discovery},
    edge::{Edge, Shared, Surface},
    http::access::Access,
    metrics::{HttpMetrics, Registry, descriptor_limit},
    serving::{Phase, PhaseReceiver, PhaseSender, phases},
};

/// Descriptors kept for the log, the store, peers and files, as etcd keeps them.
const DESCRIPTORS_RESERVED: u64 = 150;

/// Connections when the system does not tell its limit; the usual soft limit less the reserve.
const CONNECTIONS_MAX_UNKNOWN: u64 = 1024 - DESCRIPTORS_RESERVED;

/// Connections on the metrics listeners: a few scrapers and probes. They come out of the reserve.
const METRICS_CONNECTIONS_MAX: usize = 64;

/// Time beyond the drain for a thread to notice that it is over; one that reads from a stuck disk is left behind.
const JOIN_GRACE: Duration = Duration::from_millis(500);

/// Starts edges.
pub struct Server;

impl Server {
    /// Binds and serves. The member is reported NOT_SERVING until [`Running::set_serving`].
    pub fn start<B: Backend>(config: ServerConfig, backend: B) -> Result<Running, StartError> {
        Self::start_bound(Bound::bind(config)?, backend)
    }

    /// Serves on sockets that were bound before, so that a port in use is known before anything else was touched.
    pub fn start_bound<B: Backend>(bound: Bound, backend: B) -> Result<Running, StartError> {
        let Bound { config, client, client_http, metrics } = bound;
        let runtimes = config.runtimes_count();
        let addresses = Addresses {
            client: client.iter().map(|group| group.address).collect(),
            client_http: client_http.iter().map(|group| group.address).collect(),
            metrics: metrics.iter().map(|group| group.address).collect(),
        };
        let (phase, observer) = phases();
        let seats = Seats::new(connections_max(&config));
        let metrics_seats = Seats::new(METRICS_CONNECTIONS_MAX);
        let shared = Arc::new(Shared {
            access: Access::new(&config.host_whitelist, &config.cors),
            http: HttpMetrics::default(),
            registry: Registry::default(),
            phase: observer,
            discovery: config.discovery.clone().map(|config| Arc::new(Discovery::new(config))),
            operator_turn: tokio::sync::Semaphore::new(1),
            config,
        });

        // Each runtime gets one socket of every group.
        let mut listeners: Vec<Vec<(Surface, TcpListener)>> = (0..runtimes).map(|_| Vec::new()).collect();
        let surface = if client_http.is_empty() { Surface::Client } else { Surface::ClientGrpc };
        let groups = client.into_iter().map(|group| (surface, group));
        for (surface, group) in
            groups.chain(client_http.into_iter().map(|group| (Surface::ClientHttp, group)))
        {
            for (place, listener) in listeners.iter_mut().zip(group.listen()?) {
                place.push((surface, listener));
            }
        }
        let mut watched = Vec::new();
        for group in metrics {
            watched.extend(group.listen()?.into_iter().map(|listener| (Surface::Metrics, listener)));
        }

        let mut running = Running { phase, addresses, workers: Vec::new() };
        for (number, listeners) in listeners.into_iter().enumerate() {
            let name = format!("rpc-{number}");
            running.workers.push(worker(name, &shared, backend.clone(), listeners, seats.clone())?);
        }
        if !watched.is_empty() {
            // A thread of its own: health and metrics answer when the others are busy.
            let name = "metrics".to_owned();
            running.workers.push(worker(name, &shared, backend, watched, metrics_seats)?);
        }
        Ok(running)
    }
}

fn connections_max(config: &ServerConfig) -> usize {
    config.connections_max.map(|max| max.get()).unwrap_or_else(|| {
        let allowed = descriptor_limit().map(|limit| limit.saturating_sub(DESCRIPTORS_RESERVED));
        usize::try_from(allowed.unwrap_or(CONNECTIONS_MAX_UNKNOWN).max(1)).unwrap_or(usize::MAX)
    })
}

struct Addresses {
    client: Vec<SocketAddr>,
    client_http: Vec<SocketAddr>,
    metrics: Vec<SocketAddr>,
}

/// An edge that serves. Dropping it stops at once and waits a moment for its threads; [`Running::drain`] stops with manners.
pub struct Running {
    phase: PhaseSender,
    addresses: Addresses,
    workers: Vec<Worker>,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline and were cut.
    pub cut_count: usize,
}

impl Running {
    /// Addresses of `client`, in order, ports as they came out.
    pub fn client_addresses(&self) -> &[SocketAddr] {
        &self.addresses.client
    }

    /// Addresses of `client_http`, in order.
    pub fn client_http_addresses(&self) -> &[SocketAddr] {
        &self.addresses.client_http
    }

    /// Addresses of `metrics`, in order.
    pub fn metrics_addresses(&self) -> &[SocketAddr] {
        &self.addresses.metrics
    }

    /// What grpc.health.v1 reports from now on. Without effect once draining.
    pub fn set_serving(&self, serving: bool) {
        self.phase.send_if_modified(|phase| {
            let next = if serving { Phase::Serving } else { Phase::NotReady };
            let changes = !phase.is_draining() && *phase != next;
            if changes {
                *phase = next;
            }
            changes
        });
    }

    /// Stops accepting, reports NOT_SERVING, ends watches and keep-alives, lets other calls finish, and cuts what is left after
    /// `timeout`. Blocks until the threads are gone, so it must not run on an async runtime.
    pub fn drain(mut self, timeout: Duration) -> Drained {
        self.stop(timeout)
    }

    fn stop(&mut self, timeout: Duration) -> Drained {
        let until = Instant::now() + timeout;
        self.phase.send_replace(Phase::Draining { until });
        let mut drained = Drained::default();
        for worker in self.workers.drain(..) {
            let left = until.saturating_duration_since(Instant::now());
            match worker.finished.recv_timeout(left + JOIN_GRACE) {
                Ok(cut_count) => {
                    drained.cut_count += cut_count;
                    let _ = worker.thread.join();
                }
                Err(_) => tracing::warn!(
                    thread = worker.name,
                    "a client thread did not end in time and is left behind"
                ),
            }
        }
        drained
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

struct Worker {
    name: String,
    thread: thread::JoinHandle<()>,
    /// Connections that were cut.
    finished: mpsc::Receiver<usize>,
}

fn worker<B: Backend>(
    name: String,
    shared: &Arc<Shared>,
    backend: B,
    listeners: Vec<(Surface, TcpListener)>,
    seats: Arc<Seats>,
) -> Result<Worker, StartError> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::Runtime { name: name.clone(), source })?;
    let edge = Edge::new(backend, shared.clone());
    let phase = shared.phase.clone();
    let (done, finished) = mpsc::channel();
    let thread = thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let cut_count = runtime.block_on(serve(edge, listeners, seats, phase));
            // Cuts what is left, before anyone is told that it is over.
            drop(runtime);
            let _ = done.send(cut_count);
        })
        .map_err(|source| StartError::Thread { name: name.clone(), source })?;
    Ok(Worker { name, thread, finished })
}

async fn serve<B: Backend>(
    edge: Arc<Edge<B>>,
    listeners: Vec<(Surface, TcpListener)>,
    seats: Arc<Seats>,
    mut phase: PhaseReceiver,
) -> usize {
    let protocols = Arc::new(Protocols::new(&edge.shared.config));
    let open = Arc::new(Open::default());
    let mut accepting = tokio::task::JoinSet::new();
    for (surface, listener) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)
            .expect("a listening non-blocking socket fits into the runtime");
        let acceptor = Acceptor {
            edge: edge.clone(),
            surface,
            protocols: protocols.clone(),
            seats: seats.clone(),
            open: open.clone(),
        };
        accepting.spawn(acceptor.run(listener));
    }
    let keeper = edge.clone();
    accepting.spawn(async move { keeper.streams.keep_to_leader(|| keeper.backend.has_leader()).await });
    if let Some(service) = edge.shared.discovery.as_ref().filter(|service| service.take_sweep()) {
        accepting.spawn(discovery::sweep(edge.backend.clone(), service.config.clone()));
    }
    let until = match phase.wait_for(|phase| phase.is_draining()).await.map(|phase| *phase) {
        Ok(Phase::Draining { until }) => until,
        _ => Instant::now(),
    };
    accepting.shutdown().await;
    // First the connections, so that a client whose stream ends already knows to come back elsewhere.
    open.close_all();
    edge.streams.close_all(EtcdError::Stopped);
    match tokio::time::timeout_at(until, open.empty()).await {
        Ok(()) => 0,
        Err(_) => open.count(),
    }
}
