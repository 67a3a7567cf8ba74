//! What an event costs: in the hub, and in the reader that makes the frames. One thread; run with `--release`.
//!
//! `cargo run --release -p cairn-watch --example hub_bench`

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use api::{
    etcdserverpb::WatchCreateRequest,
    mvccpb::{Event, KeyValue},
};
use bytes::Bytes;
use types::{ClusterId, MemberId, Revision};
use watch::{Door, Face, Gauges, Hub, HubConfig, QueueLimits, Request, Responses, StoreNow, StreamQueue};

struct NoDoor;

impl Door for NoDoor {
    fn drained(&self, _stream: u64) {}
    fn closed(&self, _stream: u64) {}
    fn raft_term(&self) -> u64 {
        3
    }
}

struct Bench {
    hub: Hub,
    gauges: Arc<Gauges>,
    readers: Vec<Responses>,
    revision: i64,
}

impl Bench {
    fn new(streams: u64) -> Bench {
        let gauges = Arc::new(Gauges::default());
        let mut hub = Hub::new(HubConfig::new(1, 600_000), gauges.clone(), Revision(1), Revision(-1));
        let face = Face { cluster: ClusterId(1 << 60), member: MemberId(1 << 59), fragment_bytes: 2 << 20 };
        let open = |id| {
            let queue = Arc::new(StreamQueue::new(id, QueueLimits::default(), gauges.clone()));
            hub.open(queue.clone());
            Responses::new(queue, Arc::new(NoDoor), face)
        };
        let readers = (0..streams).map(open).collect();
        Bench { hub, gauges, readers, revision: 1 }
    }

    fn create(&mut self, stream: u64, key: String, end: &'static str) {
        let create =
            WatchCreateRequest { key: key.into(), range_end: end.as_bytes().into(), ..Default::default() };
        let store = StoreNow { revision: Revision(self.revision), compacted: Revision(-1) };
        self.hub.request(stream, Request::Create(create), 0, store, 0);
    }

    fn publish(&mut self, key: Bytes) {
        self.revision += 1;
        let kv = KeyValue {
            key,
            value: Bytes::from_static(&[7; 256]),
            mod_revision: self.revision,
            create_revision: 2,
            version: 9,
            lease: 0,
        };
        let events = [Event { kv: Some(kv), ..Default::default() }];
        self.hub.publish(Revision(self.revision), &events, &());
    }

    /// Bytes read.
    fn read(&mut self) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut bytes = 0;
        for reader in &mut self.readers {
            while let Poll::Ready(Some(chunk)) = reader.poll_next(&mut cx) {
                bytes += chunk.len();
            }
        }
        bytes
    }
}

fn per(took: Duration, count: usize) -> f64 {
    took.as_nanos() as f64 / count as f64
}

/// Memory of this process in KiB, where the system tells it.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `events` in rounds of `burst` with the readers after each round.
fn run(
    name: &str,
    streams: u64,
    watchers: u64,
    burst: usize,
    events: usize,
    key: impl Fn(u64) -> (String, &'static str),
) {
    let before = resident_kib();
    let mut bench = Bench::new(streams);
    for watcher in 0..watchers {
        let (key, end) = key(watcher);
        bench.create(watcher % streams, key, end);
    }
    bench.read();
    let memory = resident_kib().saturating_sub(before) * 1024 / watchers as usize;
    let keys: Vec<Bytes> = (0..events as u64)
        .map(|at| {
            let (key, end) = key(at % watchers);
            Bytes::from(if end.is_empty() { key } else { format!("{key}x{at}") })
        })
        .collect();
    let sent = bench.gauges.events();
    let (mut hub, mut reader, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for round in keys.chunks(burst) {
        let started = Instant::now();
        round.iter().for_each(|key| bench.publish(key.clone()));
        let told = Instant::now();
        bytes += bench.read();
        hub += told - started;
        reader += told.elapsed();
    }
    let sent = (bench.gauges.events() - sent) as usize;
    println!(
        "{name:46} {burst:3} a round: hub {:9.0} ns an event, reader {:6.1} ns an event sent ({:.2} GB/s), {memory} bytes a watcher",
        per(hub, events),
        per(reader, sent.max(1)),
        bytes as f64 / reader.as_nanos() as f64,
    );
}

fn main() {
    let prefix = |_: u64| ("/registry/pods/".to_owned(), "/registry/pods0");
    let exact = |at: u64| (format!("/registry/pods/namespace/{at:08}"), "");
    // The end is the same for all; only the beginnings differ, so every key lies in many.
    let distinct = |at: u64| (format!("/{:05}/", at % 10_000), "0");
    match std::env::args().nth(1).as_deref() {
        Some("memory-streams") => run("10,000 watchers, 10,000 streams", 10_000, 10_000, 32, 200, exact),
        Some("memory-keys") => run("10,000 watchers on keys, one stream", 1, 10_000, 32, 2000, exact),
        Some("memory-prefix") => run("10,000 watchers on a prefix, one stream", 1, 10_000, 32, 200, prefix),
        _ => {}
    }
    for burst in if std::env::args().len() > 1 { &[][..] } else { &[1, 32] } {
        let burst = *burst;
        run("1,000 watchers on a prefix, one stream", 1, 1000, burst, 2000, prefix);
        run("1,000 watchers on a prefix, 1,000 streams", 1000, 1000, burst, 2000, prefix);
        run("10,000 watchers on a prefix, 100 streams", 100, 10_000, burst, 500, prefix);
        run("10,000 watchers on a key each, 100 streams", 100, 10_000, burst, 200_000, exact);
        run("10,000 watchers on a key each, 10,000 streams", 10_000, 10_000, burst, 2000, exact);
    }
    // Whoever wants to know what a watcher takes in memory asks for that alone: what is freed is not given back.
    if std::env::args().nth(1).is_some() {
        return;
    }
    run("1,000 nested ranges, one stream", 1, 1000, 1, 500, distinct);
    let mut tree = Bench::new(1);
    for at in 0..10_000 {
        tree.create(0, format!("/{at:05}/"), "");
    }
    let spans: Vec<String> = (0..10_000).map(|at| format!("/{at:05}0")).collect();
    let mut bench = Bench::new(1);
    for (at, end) in spans.into_iter().enumerate() {
        let create = WatchCreateRequest {
            key: format!("/{at:05}/").into(),
            range_end: end.into(),
            ..Default::default()
        };
        let store = StoreNow { revision: Revision(1), compacted: Revision(-1) };
        bench.hub.request(0, Request::Create(create), 0, store, 0);
    }
    bench.read();
    let keys: Vec<Bytes> = (0..200_000).map(|at| Bytes::from(format!("/{:05}/key", at % 10_000))).collect();
    let started = Instant::now();
    for round in keys.chunks(32) {
        round.iter().for_each(|key| bench.publish(key.clone()));
        bench.read();
    }
    println!(
        "10,000 distinct prefixes, one stream: {:.0} ns an event, told and read",
        per(started.elapsed(), keys.len())
    );
}
