//! What is counted for each call.

use std::{
    fmt::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::http::HeaderValue;
use api::error::EtcdError;
use parking_lot::Mutex;
use tonic::Code;

use super::text;
use crate::grpc::method::{Kind, Method};

const METHODS: usize = Method::ALL.len();

/// gRPC's codes are 0 to 16.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Buckets of `etcd_server_request_duration_seconds`: 1 ms doubled, 14 of them.
const REQUEST_BOUNDS: [&str; 14] = [
    "0.001", "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512", "1.024",
    "2.048", "4.096", "8.192",
];

/// Buckets of `grpc_server_handling_seconds`: the default ones of Prometheus' libraries.
const HANDLING_BOUNDS: [&str; 11] =
    ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10"];
const HANDLING_BOUNDS_NANOS: [u64; 11] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Different `client-api-version` values one runtime tells apart. Clients send the versions of their library, a handful in any
/// cluster; whatever comes beyond is counted as "other", so that nobody can grow our memory or a scrape by inventing names.
const CLIENT_VERSIONS_MAX: usize = 16;

/// The requests whose time etcd's `etcd_server_request_duration_seconds` shows, by its label.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestType {
    Range,
    ReadonlyTxn,
    Put,
    DeleteRange,
    Txn,
    Compaction,
}

const REQUEST_TYPES: [&str; 6] = ["Range", "ReadonlyTxn", "Put", "DeleteRange", "Txn", "Compaction"];

/// The streams whose failures are counted, with etcd's names for them.
const STREAM_APIS: [(Method, &str); 2] =
    [(Method::Watch, "watch"), (Method::LeaseKeepAlive, "lease-keepalive")];

#[derive(Default)]
struct RpcCounts {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    handling: [AtomicU64; HANDLING_BOUNDS.len() + 1],
    handling_nanos: AtomicU64,
}

#[derive(Default)]
struct Durations {
    counts: [AtomicU64; REQUEST_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

#[derive(Default)]
struct ClientVersion {
    name: OnceLock<HeaderValue>,
    /// Unary, stream.
    counts: [AtomicU64; 2],
}

/// The counters of one runtime. Only that runtime writes, so no cache line moves until a scrape.
pub(crate) struct RpcMetrics {
    rpc: Box<[RpcCounts]>,
    requests: [[Durations; 2]; REQUEST_TYPES.len()],
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    versions: [ClientVersion; CLIENT_VERSIONS_MAX],
    versions_unknown: [AtomicU64; 2],
    versions_other: [AtomicU64; 2],
    receive_failures: [AtomicU64; STREAM_APIS.len()],
}

impl RpcMetrics {
    fn new() -> Self {
        RpcMetrics {
            rpc: (0..METHODS).map(|_| RpcCounts::default()).collect(),
            requests: Default::default(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            versions: Default::default(),
            versions_unknown: Default::default(),
            versions_other: Default::default(),
            receive_failures: Default::default(),
        }
    }

    pub fn started(&self, method: Method) {
        self.rpc[method as usize].started.fetch_add(1, Relaxed);
    }

    pub fn message_received(&self, method: Method, bytes: usize) {
        self.rpc[method as usize].received.fetch_add(1, Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A client's message on a stream could not be taken.
    pub fn receive_failed(&self, method: Method) {
        let place = STREAM_APIS.iter().position(|(of, _)| *of == method);
        let place = place.expect("only streams in both directions are counted here");
        self.receive_failures[place].fetch_add(1, Relaxed);
    }

    pub fn messages_sent(&self, method: Method, count: usize, bytes: usize) {
        self.rpc[method as usize].sent.fetch_add(count as u64, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub fn handled(&self, method: Method, code: Code, took: Duration) {
        let counts = &self.rpc[method as usize];
        counts.handled[code as usize].fetch_add(1, Relaxed);
        let nanos = nanos(took);
        let bucket = HANDLING_BOUNDS_NANOS.iter().position(|&bound| nanos <= bound);
        counts.handling[bucket.unwrap_or(HANDLING_BOUNDS.len())].fetch_add(1, Relaxed);
        counts.handling_nanos.fetch_add(nanos, Relaxed);
    }

    pub fn request(&self, kind: RequestType, success: bool, took: Duration) {
        let durations = &self.requests[kind as usize][usize::from(success)];
        let nanos = nanos(took);
        durations.counts[request_bucket(nanos)].fetch_add(1, Relaxed);
        durations.nanos.fetch_add(nanos, Relaxed);
    }

    /// Counts a call by the version its client announces.
    pub fn client_version(&self, kind: Kind, version: Option<&HeaderValue>) -> Result<(), EtcdError> {
        let place = usize::from(kind.is_stream());
        let Some(version) = version else {
            self.versions_unknown[place].fetch_add(1, Relaxed);
            return Ok(());
        };
        if std::str::from_utf8(version.as_bytes()).is_err() {
            return Err(EtcdError::InvalidClientApiVersion);
        }
        for known in &self.versions {
            if known.name.get_or_init(|| version.clone()) == version {
                known.counts[place].fetch_add(1, Relaxed);
                return Ok(());
            }
        }
        self.versions_other[place].fetch_add(1, Relaxed);
        Ok(())
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// The first bucket of [`REQUEST_BOUNDS`] that holds this: bounds are 1 ms doubled, so it is a logarithm.
fn request_bucket(nanos: u64) -> usize {
    let whole_millis_below = nanos.saturating_sub(1) / 1_000_000;
    let bucket = (u64::BITS - whole_millis_below.leading_zeros()) as usize;
    bucket.min(REQUEST_BOUNDS.len())
}

/// The counters of all runtimes.
#[derive(Default)]
pub(crate) struct Registry {
    runtimes: Mutex<Vec<Arc<RpcMetrics>>>,
}

impl Registry {
    /// A new set for one runtime.
    pub fn runtime(&self) -> Arc<RpcMetrics> {
        let metrics = Arc::new(RpcMetrics::new());
        self.runtimes.lock().push(metrics.clone());
        metrics
    }

    pub fn render(&self, out: &mut String, extensive: bool) {
        let runtimes = self.runtimes.lock().clone();
        let sum = |of: &dyn Fn(&RpcMetrics) -> u64| runtimes.iter().map(|metrics| of(metrics)).sum::<u64>();
        render_bytes(out, &sum);
        render_versions(out, &runtimes);
        render_stream_failures(out, &sum);
        render_requests(out, &sum);
        render_methods(out, &sum);
        if extensive {
            render_handling(out, &sum);
        }
    }
}

type Sum<'a> = dyn Fn(&dyn Fn(&RpcMetrics) -> u64) -> u64 + 'a;

fn render_bytes(out: &mut String, sum: &Sum<'_>) {
    text::single(
        out,
        "etcd_network_client_grpc_received_bytes_total",
        "counter",
        "Bytes of gRPC messages received from clients.",
        sum(&|metrics| metrics.received_bytes.load(Relaxed)),
    );
    text::single(
        out,
        "etcd_network_client_grpc_sent_bytes_total",
        "counter",
        "Bytes of gRPC messages sent to clients.",
        sum(&|metrics| metrics.sent_bytes.load(Relaxed)),
    );
}

fn render_versions(out: &mut String, runtimes: &[Arc<RpcMetrics>]) {
    const NAME: &str = "etcd_server_client_requests_total";
    let mut versions = std::collections::BTreeMap::<String, [u64; 2]>::new();
    for metrics in runtimes {
        let named = metrics.versions.iter().filter_map(|version| {
            let name = std::str::from_utf8(version.name.get()?.as_bytes()).ok()?;
            Some((name, &version.counts))
        });
        let rest = [("unknown", &metrics.versions_unknown), ("other", &metrics.versions_other)];
        for (name, counts) in named.chain(rest) {
            let total = versions.entry(name.to_owned()).or_default();
            for (total, count) in total.iter_mut().zip(counts) {
                *total += count.load(Relaxed);
            }
        }
    }
    text::family(out, NAME, "counter", "Client requests by the API version the client announces.");
    for (version, totals) in versions {
        let version = text::escape(&version);
        for (kind, total) in ["unary", "stream"].iter().zip(totals).filter(|(_, total)| *total > 0) {
            let _ = writeln!(out, "{NAME}{{client_api_version=\"{version}\",type=\"{kind}\"}} {total}");
        }
    }
}

/// Failures to send are none of ours to see: the connection ends, and its streams with it.
fn render_stream_failures(out: &mut String, sum: &Sum<'_>) {
    const NAME: &str = "etcd_network_server_stream_failures_total";
    text::family(out, NAME, "counter", "Messages on client streams that could not be received.");
    for (place, (_, name)) in STREAM_APIS.iter().enumerate() {
        let value = sum(&|metrics| metrics.receive_failures[place].load(Relaxed));
        let _ = writeln!(out, "{NAME}{{API=\"{name}\",Type=\"receive\"}} {value}");
    }
}

fn render_requests(out: &mut String, sum: &Sum<'_>) {
    const NAME: &str = "etcd_server_request_duration_seconds";
    text::family(
        out,
        NAME,
        "histogram",
        "Time from request to answer inside the server, by kind of request.",
    );
    for (index, kind) in REQUEST_TYPES.iter().enumerate() {
        for (success, label) in ["false", "true"].iter().enumerate() {
            let of = |metrics: &RpcMetrics, bucket: usize| {
                metrics.requests[index][success].counts[bucket].load(Relaxed)
            };
            let counts: Vec<u64> =
                (0..=REQUEST_BOUNDS.len()).map(|bucket| sum(&|metrics| of(metrics, bucket))).collect();
            let nanos = sum(&|metrics| metrics.requests[index][success].nanos.load(Relaxed));
            let labels = format!("success=\"{label}\",type=\"{kind}\"");
            text::histogram(out, NAME, &labels, &REQUEST_BOUNDS, &counts, seconds(nanos));
        }
    }
}

fn render_methods(out: &mut String, sum: &Sum<'_>) {
    text::family(out, "grpc_server_started_total", "counter", "Calls begun on the server.");
    each_method(|index, labels| {
        let value = sum(&|metrics| metrics.rpc[index].started.load(Relaxed));
        let _ = writeln!(out, "grpc_server_started_total{{{labels}}} {value}");
    });
    text::family(
        out,
        "grpc_server_handled_total",
        "counter",
        "Calls ended on the server, whatever the outcome.",
    );
    each_method(|index, labels| {
        for (code, name) in CODES.iter().enumerate() {
            let value = sum(&|metrics| metrics.rpc[index].handled[code].load(Relaxed));
            let _ = writeln!(out, "grpc_server_handled_total{{grpc_code=\"{name}\",{labels}}} {value}");
        }
    });
    text::family(out, "grpc_server_msg_received_total", "counter", "Messages received by the server.");
    each_method(|index, labels| {
        let value = sum(&|metrics| metrics.rpc[index].received.load(Relaxed));
        let _ = writeln!(out, "grpc_server_msg_received_total{{{labels}}} {value}");
    });
    text::family(out, "grpc_server_msg_sent_total", "counter", "Messages sent by the server.");
    each_method(|index, labels| {
        let value = sum(&|metrics| metrics.rpc[index].sent.load(Relaxed));
        let _ = writeln!(out, "grpc_server_msg_sent_total{{{labels}}} {value}");
    });
}

fn render_handling(out: &mut String, sum: &Sum<'_>) {
    const NAME: &str = "grpc_server_handling_seconds";
    text::family(out, NAME, "histogram", "Time from the start to the end of a call on the server.");
    each_method(|index, labels| {
        let counts: Vec<u64> = (0..=HANDLING_BOUNDS.len())
            .map(|bucket| sum(&|metrics| metrics.rpc[index].handling[bucket].load(Relaxed)))
            .collect();
        let nanos = sum(&|metrics| metrics.rpc[index].handling_nanos.load(Relaxed));
        text::histogram(out, NAME, labels, &HANDLING_BOUNDS, &counts, seconds(nanos));
    });
}

fn each_method(mut write: impl FnMut(usize, &str)) {
    for (index, method) in Method::ALL.iter().enumerate() {
        let (name, service, kind) = (method.name(), method.service(), method.kind().label());
        write(index, &format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{kind}\""));
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_falls_into_the_first_bucket_that_holds_it() {
        let millis = |bound: u64| bound * 1_000_000;
        assert_eq!(request_bucket(0), 0);
        for (bucket, shown) in REQUEST_BOUNDS.iter().enumerate() {
            let bound = millis(1 << bucket);
            assert_eq!(request_bucket(bound), bucket, "at the bound of bucket {bucket}");
            assert_eq!(request_bucket(bound + 1), bucket + 1, "just above bucket {bucket}");
            let shown: f64 = shown.parse().unwrap();
            assert_eq!((shown * 1e9).round() as u64, bound);
        }
        assert_eq!(request_bucket(u64::MAX), REQUEST_BOUNDS.len());
    }

    #[test]
    fn client_versions_are_bounded() {
        let registry = Registry::default();
        let metrics = registry.runtime();
        for number in 0..CLIENT_VERSIONS_MAX + 3 {
            let version = HeaderValue::try_from(format!("3.{number}")).unwrap();
            metrics.client_version(Kind::Unary, Some(&version)).unwrap();
        }
        metrics.client_version(Kind::BidiStream, None).unwrap();
        let bad = HeaderValue::from_bytes(b"\xff").unwrap();
        assert_eq!(metrics.client_version(Kind::Unary, Some(&bad)), Err(EtcdError::InvalidClientApiVersion));
        let mut out = String::new();
        registry.render(&mut out, false);
        let line = |labels: &str| format!("etcd_server_client_requests_total{{{labels}}}");
        assert!(out.contains(&(line("client_api_version=\"other\",type=\"unary\"") + " 3\n")));
        assert!(out.contains(&(line("client_api_version=\"unknown\",type=\"stream\"") + " 1\n")));
        assert!(out.contains(&(line("client_api_version=\"3.0\",type=\"unary\"") + " 1\n")));
    }

    #[test]
    fn runtimes_are_added_up() {
        let registry = Registry::default();
        for _ in 0..3 {
            let metrics = registry.runtime();
            metrics.started(Method::Put);
            metrics.handled(Method::Put, Code::NotFound, Duration::from_millis(7));
        }
        let mut out = String::new();
        registry.render(&mut out, true);
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        assert!(out.contains(&format!("grpc_server_started_total{{{labels}}} 3\n")));
        assert!(out.contains(&format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{labels}}} 3\n")));
        assert!(out.contains(&format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.005\"}} 0\n")));
        assert!(out.contains(&format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.01\"}} 3\n")));
    }
}
