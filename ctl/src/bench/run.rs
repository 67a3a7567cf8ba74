//! Clients, pace and counting: turns a plan into numbers.

use super::fields::answer_revision;
use super::histogram::Histogram;
use super::options::{Operation, Options, Until};
use super::requests::{Glance, Random, Requests, Walk, glance};
use super::watch::ledger::{Ledger, Stamp};
use crate::client::{PUT, RANGE, TXN};
use crate::failure::{Exit, Failure, Result};
use crate::wire::endpoint::Endpoint;
use crate::wire::{CallError, Connection, Dialer, Head};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::task::JoinSet;

/// The pacer sleeps at least so long: shorter sleeps cost more processor time than they make the pace more even.
const PACE_QUANTUM: Duration = Duration::from_micros(100);
/// How long opening a broken connection again may take before it is tried elsewhere: a member that starts accepts connections
/// before it serves them, and waiting for it is time not measured.
const REOPEN_MAX: Duration = Duration::from_millis(250);
/// Pause before a broken connection is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(20);
/// Different error texts that are kept apart; the rest is counted together.
const ERROR_TEXTS_MAX: usize = 16;

const LEASE_GRANT_PATH: &str = "/etcdserverpb.Lease/LeaseGrant";

/// Everything a measurement needs.
pub struct Plan {
    pub options: Options,
    pub requests: Requests,
    pub endpoints: Vec<Endpoint>,
    pub dialer: Dialer,
    pub dial_timeout: Duration,
    pub request_timeout: Duration,
    pub token: Option<String>,
    /// Where puts are noted for watchers; their values then begin with a stamp.
    pub ledger: Option<Arc<Ledger>>,
    /// Set by somebody else to end the measurement before its time.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Plan {
    /// Opens connection number `number`, on the endpoints in turn.
    pub async fn open(&self, number: usize, patience: Duration) -> Result<Connection, String> {
        let endpoint = &self.endpoints[number % self.endpoints.len()];
        let opened = tokio::time::timeout(patience, self.dialer.open(endpoint)).await;
        opened.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    /// The same, with the failure of a measurement that cannot start.
    pub async fn open_first(&self, number: usize) -> Result<Connection> {
        self.open(number, self.dial_timeout).await.map_err(|why| {
            let name = &self.endpoints[number % self.endpoints.len()].name;
            Failure::new(Exit::BadConnection, format!("connect to {name}: {why}"))
        })
    }

    /// Prepares calls of one method.
    pub fn head(&self, connection: &Connection, path: &str) -> Result<Head> {
        let head = connection.head(path, self.token.as_deref(), None);
        head.map_err(|error| Failure::new(Exit::Error, describe(&error)))
    }
}

/// A failed call in one line.
pub fn describe(error: &CallError) -> String {
    match error {
        CallError::Status(status) if status.message.is_empty() => status.name().to_owned(),
        CallError::Status(status) => status.message.clone(),
        CallError::Broken { why, .. } => format!("connection broke: {why}"),
    }
}

/// Latencies and errors of one kind of request.
#[derive(Clone, Default)]
pub struct Tally {
    pub latency: Histogram,
    pub errors: u64,
    /// Keys in answers (or puts in filling transactions).
    pub keys: u64,
    pub answer_bytes: u64,
}

/// What came out.
#[derive(Default)]
pub struct Outcome {
    pub tallies: BTreeMap<Operation, Tally>,
    pub error_texts: BTreeMap<String, u64>,
    /// From the end of the warm-up to the last answer, or to the end of a run of fixed length.
    pub elapsed: Duration,
    /// Requests of an open loop that were due and never sent, because the time was up first.
    pub unsent: u64,
    /// Processor time of this process while measuring; `None` where the system does not tell.
    pub cpu: Option<Duration>,
}

impl Outcome {
    pub fn nothing_succeeded(&self) -> bool {
        self.tallies.values().all(|tally| tally.latency.count() == 0)
    }

    pub fn merge(&mut self, other: Outcome) {
        for (operation, theirs) in other.tallies {
            let mine = self.tallies.entry(operation).or_default();
            mine.latency.merge(&theirs.latency);
            mine.errors += theirs.errors;
            mine.keys += theirs.keys;
            mine.answer_bytes += theirs.answer_bytes;
        }
        for (text, count) in other.error_texts {
            count_text(&mut self.error_texts, text, count);
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

pub fn count_text(texts: &mut BTreeMap<String, u64>, text: String, count: u64) {
    let text =
        if texts.len() < ERROR_TEXTS_MAX || texts.contains_key(&text) { text } else { "(others)".into() };
    *texts.entry(text).or_default() += count;
}

/// What all clients share while measuring.
struct Shared {
    plan: Arc<Plan>,
    /// Numbers requests; the number is also the place in the sequence and in the schedule.
    next: AtomicU64,
    started: OnceLock<Instant>,
    /// Permits are requests that are due; only in an open loop.
    due: Semaphore,
    over: AtomicBool,
    results: Mutex<Outcome>,
    /// Why the measurement cannot start.
    failure: Mutex<Option<Failure>>,
    barrier: Barrier,
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().expect("nobody panics with the lock")
    }

    fn results(&self) -> MutexGuard<'_, Outcome> {
        self.results.lock().expect("nobody panics with the lock")
    }

    fn start(&self) -> Instant {
        *self.started.get().expect("clients run after the start")
    }

    /// How many requests there are altogether, when that is known beforehand.
    fn limit(&self) -> Option<u64> {
        match (self.plan.options.until, self.plan.options.rate) {
            (Until::Total(total), _) => Some(total),
            (Until::Elapsed(time), Some(rate)) => Some((time.as_secs_f64() * rate) as u64),
            (Until::Elapsed(_), None) => None,
        }
    }

    fn end(&self) -> Option<Instant> {
        match self.plan.options.until {
            Until::Total(_) => None,
            Until::Elapsed(time) => Some(self.start() + time),
        }
    }

    /// The number of the next request and the time it counts from; `None`: no more.
    async fn next(&self) -> Option<(u64, Instant)> {
        if self.plan.options.rate.is_some() {
            // The semaphore is never closed: the pacer hands out a permit for each request and one for each client to leave with.
            self.due.acquire().await.expect("the semaphore stays open").forget();
        }
        let stopped = self.plan.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
        if stopped || self.end().is_some_and(|end| Instant::now() >= end) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.limit().is_some_and(|limit| number >= limit) {
            return None;
        }
        let at =
            self.plan.options.rate.map_or_else(Instant::now, |rate| {
                self.start() + Duration::from_secs_f64(number as f64 / rate)
            });
        Some((number, at))
    }

    /// Hands out permits when requests are due. Runs on a thread of its own, since timers of the runtime are too coarse.
    fn pace(&self, rate: f64) {
        let limit = self.limit().expect("an open loop knows how many requests there are");
        let mut issued = 0;
        while issued < limit && !self.over.load(Ordering::Relaxed) {
            let elapsed = self.start().elapsed();
            let due = ((elapsed.as_secs_f64() * rate) as u64 + 1).min(limit);
            if due > issued {
                self.due.add_permits((due - issued) as usize);
                issued = due;
            }
            let next = Duration::from_secs_f64(issued as f64 / rate);
            std::thread::sleep(next.saturating_sub(self.start().elapsed()).max(PACE_QUANTUM));
        }
        self.due.add_permits(self.plan.options.clients);
    }
}

/// Runs the measurement to its end. Fails only when it cannot start.
pub fn measure(plan: Arc<Plan>) -> Result<Outcome> {
    let options = &plan.options;
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        next: AtomicU64::new(0),
        started: OnceLock::new(),
        due: Semaphore::new(0),
        over: AtomicBool::new(false),
        results: Mutex::new(Outcome::default()),
        failure: Mutex::new(None),
        // Threads meet twice: when all connections are open (or one is not), and when the clock has been started.
        barrier: Barrier::new(options.threads + 1),
    });
    let threads: Vec<_> = (0..options.threads)
        .map(|thread| {
            let shared = shared.clone();
            std::thread::spawn(move || run_thread(&shared, thread))
        })
        .collect();
    shared.barrier.wait();
    let cpu_before = cpu_time();
    let now = Instant::now();
    shared.started.set(now).expect("the clock starts once");
    if let Some(ledger) = &plan.ledger {
        ledger.count_from(now + options.warmup);
    }
    shared.barrier.wait();
    let go = shared.failure().is_none();
    let pacer = options.rate.filter(|_| go).map(|rate| {
        let shared = shared.clone();
        std::thread::spawn(move || shared.pace(rate))
    });
    for thread in threads {
        thread.join().expect("a thread of clients ends by itself");
    }
    // The clients may have left early, because the time was up.
    shared.over.store(true, Ordering::Relaxed);
    if let Some(pacer) = pacer {
        pacer.join().expect("the pacer ends by itself");
    }
    if let Some(failure) = shared.failure().take() {
        return Err(failure);
    }
    let cpu = cpu_before.and_then(|before| Some(cpu_time()?.saturating_sub(before)));
    let stopped = plan.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
    let limit = shared.limit().filter(|_| options.rate.is_some() && !stopped);
    let unsent = limit.map_or(0, |limit| limit.saturating_sub(shared.next.load(Ordering::Relaxed)));
    let results = std::mem::take(&mut *shared.results());
    Ok(Outcome { cpu, unsent, ..results })
}

/// One thread: its connections, its clients, and the wait for both.
fn run_thread(shared: &Arc<Shared>, thread: usize) {
    let options = &shared.plan.options;
    let mine = (0..options.connections).filter(|connection| connection % options.threads == thread);
    let opened = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let opened = opened
        .map_err(|error| Failure::new(Exit::Io, format!("start a runtime: {error}")))
        .and_then(|runtime| {
            let slots = runtime.block_on(async {
                let mut slots = Vec::new();
                for connection in mine {
                    slots.push(Slot::open(&shared.plan, connection).await?);
                }
                Ok::<_, Failure>(slots)
            })?;
            Ok((runtime, slots))
        });
    let opened = opened.map_err(|failure| *shared.failure() = Some(failure));
    shared.barrier.wait();
    shared.barrier.wait();
    let go = shared.failure().is_none();
    if let (true, Ok((runtime, slots))) = (go, opened) {
        runtime.block_on(async {
            let mut clients = JoinSet::new();
            for slot in &slots {
                for number in (slot.number..options.clients).step_by(options.connections) {
                    clients.spawn(Client::new(shared.clone(), slot.clone(), number).run());
                }
            }
            clients.join_all().await;
        });
    }
}

/// A connection that its clients share, opened anew by whoever first finds it broken.
struct Slot {
    current: AsyncMutex<(u64, Live)>,
    number: usize,
}

/// An open connection with the heads of the requests that go over it.
#[derive(Clone)]
struct Live {
    connection: Connection,
    range: Head,
    put: Head,
    txn: Head,
    grant: Head,
}

impl Slot {
    async fn open(plan: &Plan, number: usize) -> Result<Arc<Slot>> {
        let live = Live::over(plan, plan.open_first(number).await?)?;
        Ok(Arc::new(Slot { current: AsyncMutex::new((0, live)), number }))
    }

    /// The connection after the one of generation `broken`.
    async fn after(&self, plan: &Plan, broken: u64) -> (u64, Live) {
        let mut current = self.current.lock().await;
        if current.0 == broken {
            tokio::time::sleep(REOPEN_PAUSE).await;
            // Another endpoint each time: the one that broke is the least likely to be there.
            let number = self.number + current.0 as usize + 1;
            let opened = plan.open(number, plan.dial_timeout.min(REOPEN_MAX)).await.ok();
            let live = opened.and_then(|connection| Live::over(plan, connection).ok());
            current.0 += 1;
            if let Some(live) = live {
                current.1 = live;
            }
        }
        current.clone()
    }
}

impl Live {
    fn over(plan: &Plan, connection: Connection) -> Result<Live> {
        let head = |path| plan.head(&connection, path);
        Ok(Live {
            range: head(RANGE.path())?,
            put: head(PUT.path())?,
            txn: head(TXN.path())?,
            grant: head(LEASE_GRANT_PATH)?,
            connection,
        })
    }
}

/// A request, ready to send.
struct Made {
    operation: Operation,
    /// The number of its key.
    key: u64,
    /// Puts of a filling transaction.
    puts: u64,
    request: Bytes,
}

/// One client: a request at a time.
struct Client {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    generation: u64,
    random: Random,
    walk: Walk,
    weight_total: u64,
    result: Outcome,
    last_answer: Option<Instant>,
}

impl Client {
    fn new(shared: Arc<Shared>, slot: Arc<Slot>, number: usize) -> Self {
        let options = &shared.plan.options;
        Client {
            random: Random::new(options.seed.wrapping_mul(1_000_003).wrapping_add(number as u64)),
            weight_total: options.weights.iter().map(|(_, weight)| weight).sum(),
            shared,
            slot,
            generation: 0,
            walk: Walk::default(),
            result: Outcome::default(),
            last_answer: None,
        }
    }

    async fn run(mut self) {
        let measure_from = self.shared.start() + self.shared.plan.options.warmup;
        let mut live = self.slot.current.lock().await.1.clone();
        while let Some((number, at)) = self.shared.next().await {
            let Made { operation, key, puts, request } = self.request(number, at);
            let head = match operation {
                Operation::Put | Operation::LeasedPut => &live.put,
                Operation::Grant => &live.grant,
                Operation::Txn | Operation::Fill => &live.txn,
                Operation::Get | Operation::List | Operation::Page => &live.range,
            };
            let answer =
                tokio::time::timeout(self.shared.plan.request_timeout, live.connection.unary(head, request))
                    .await;
            let now = Instant::now();
            let counted = at >= measure_from;
            if let Some(ledger) = &self.shared.plan.ledger {
                match answer.as_ref().ok().and_then(|answer| answer_revision(answer.as_ref().ok()?)) {
                    Some(revision) => ledger.acked(key, number, revision, now),
                    None => ledger.unknown(key),
                }
            }
            match answer {
                Ok(Ok(answer)) => self.succeeded(operation, answer, puts, counted.then(|| now - at)),
                Ok(Err(CallError::Status(status))) => self.failed(operation, status.message, counted),
                Ok(Err(CallError::Broken { why, .. })) => {
                    self.failed(operation, format!("connection broke: {why}"), counted);
                    (self.generation, live) = self.slot.after(&self.shared.plan, self.generation).await;
                }
                Err(_) => self.failed(operation, "no answer in time (--command-timeout)".into(), counted),
            }
            self.last_answer = Some(now);
        }
        // A run of fixed length lasted that long, also when the end of it had no answers.
        let last = if self.shared.end().is_some() { Some(Instant::now()) } else { self.last_answer };
        self.result.elapsed =
            last.map_or(Duration::ZERO, |last| last.saturating_duration_since(measure_from));
        self.shared.results().merge(self.result);
    }

    /// What to send as request `number`, which is due since `at`.
    fn request(&mut self, number: u64, at: Instant) -> Made {
        let options = &self.shared.plan.options;
        let requests = &self.shared.plan.requests;
        let mut rest = if options.weights.len() == 1 { 0 } else { self.random.below(self.weight_total) };
        let chosen = options.weights.iter().find(|(_, weight)| {
            let hit = rest < *weight;
            rest = rest.saturating_sub(*weight);
            hit
        });
        let operation = chosen.expect("a number below the total weight falls on an operation").0;
        match operation {
            Operation::Page => Made { operation, key: 0, puts: 0, request: requests.page(&self.walk) },
            Operation::Fill => {
                let (request, puts) = requests.fill(number);
                Made { operation, key: 0, puts, request }
            }
            _ => {
                // Lists start where all their keys exist.
                let spare =
                    if operation == Operation::List { options.list.max(1).unsigned_abs() - 1 } else { 0 };
                let starts = options.key_space.saturating_sub(spare).max(1);
                let key = if options.sequential { number % starts } else { self.random.below(starts) };
                let ledger = self.shared.plan.ledger.as_ref();
                let stamp = ledger.map(|ledger| Stamp { sent: ledger.nanos(at), number });
                Made { operation, key, puts: 0, request: requests.request(operation, key, stamp) }
            }
        }
    }

    fn succeeded(&mut self, operation: Operation, answer: Bytes, puts: u64, latency: Option<Duration>) {
        let bytes = answer.len() as u64;
        let seen = match operation {
            Operation::Put | Operation::LeasedPut | Operation::Grant | Operation::Txn | Operation::Fill => {
                Some(Glance { keys: puts, ..Glance::default() })
            }
            Operation::Get | Operation::List | Operation::Page => glance(&answer),
        };
        let Some(seen) = seen else {
            return self.failed(operation, "the answer cannot be read".into(), latency.is_some());
        };
        if operation == Operation::Page {
            self.walk.turn(&seen);
        }
        if let Some(latency) = latency {
            let tally = self.result.tallies.entry(operation).or_default();
            tally.latency.record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
            tally.keys += seen.keys;
            tally.answer_bytes += bytes;
        }
    }

    fn failed(&mut self, operation: Operation, text: String, counted: bool) {
        // A walk whose revision was compacted away, or that lost its page, begins again.
        self.walk = Walk::default();
        if counted {
            self.result.tallies.entry(operation).or_default().errors += 1;
            count_text(&mut self.result.error_texts, text, 1);
        }
    }
}

/// Processor time of this process so far, from the kernel's accounting (hundredths of a second).
pub fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in parentheses and may contain anything; the numbers start after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}
