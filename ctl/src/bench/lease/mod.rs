//! Leases: grants are ordinary requests; keep-alives go over streams, each client with one renewal under way; `expire` lets many
//! leases end at once.
//!
//! Leases that a measurement granted are left to expire: revoking a million of them is a measurement of its own.

pub mod expire;
mod keeper;
pub mod options;
mod report;

use super::Base;
use super::histogram::Histogram;
use super::options::{Operation, Options, Until};
use super::run::{self, Outcome, Plan, count_text, cpu_time};
use crate::failure::{Exit, Failure, Result};
use crate::verbs::show;
use keeper::Renewed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What clients that renew saw.
#[derive(Clone, Default)]
pub struct Kept {
    pub latency: Histogram,
    /// Renewals of leases that were not there any more.
    pub lost: u64,
    pub errors: u64,
    pub texts: BTreeMap<String, u64>,
    pub elapsed: Duration,
    pub cpu: Option<Duration>,
}

impl Kept {
    fn merge(&mut self, other: Kept) {
        self.latency.merge(&other.latency);
        self.lost += other.lost;
        self.errors += other.errors;
        for (text, count) in other.texts {
            count_text(&mut self.texts, text, count);
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    fn failed(&mut self, text: String) {
        self.errors += 1;
        count_text(&mut self.texts, text, 1);
    }
}

pub fn keep_alive(base: &Base<'_>, options: Options) -> Result<()> {
    let granted = prepare(base, &options, Operation::Grant)?;
    let plan = Arc::new(base.plan(options)?);
    let cpu_before = cpu_time();
    let mut kept = renew_all(&plan)?;
    kept.cpu = cpu_before.and_then(|before| Some(cpu_time()?.saturating_sub(before)));
    show(report::keep_alive(&plan.options, &granted, &kept, base.settings.format).as_bytes())?;
    let text = match (kept.lost, kept.errors, kept.latency.count()) {
        (0, 0, 1..) => return Ok(()),
        (0, 0, 0) => "no renewal succeeded".to_owned(),
        (0, broken, _) => format!("{broken} keep-alive streams ended before the measurement"),
        (lost, ..) => format!(
            "{lost} renewals came too late: their leases are gone (raise --ttl, or the server loses leases)"
        ),
    };
    Err(Failure::new(Exit::Error, text))
}

/// Grants the leases, or puts their keys. Every one of them must be there.
fn prepare(base: &Base<'_>, options: &Options, operation: Operation) -> Result<Outcome> {
    let plan = Arc::new(base.plan(options::preparing(options, operation))?);
    let outcome = run::measure(plan.clone())?;
    let done: u64 = outcome.tallies.values().map(|tally| tally.latency.count()).sum();
    if done == options.key_space {
        return Ok(outcome);
    }
    let why = outcome.error_texts.keys().next().map(String::as_str).unwrap_or_default();
    let what = if operation == Operation::Grant { "leases were granted" } else { "keys were put" };
    Err(Failure::new(Exit::Error, format!("only {done} of {} {what}: {why}", options.key_space)))
}

/// All clients, on their threads, until the end of the measurement.
fn renew_all(plan: &Arc<Plan>) -> Result<Kept> {
    let options = &plan.options;
    let next = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..options.threads)
        .map(|thread| {
            let (plan, next) = (plan.clone(), next.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(renew_on(&plan, thread, &next))
            })
        })
        .collect();
    let mut all = Kept::default();
    for thread in threads {
        all.merge(thread.join().expect("a thread of clients ends by itself")?);
    }
    Ok(all)
}

async fn renew_on(plan: &Arc<Plan>, thread: usize, next: &Arc<AtomicU64>) -> Result<Kept> {
    let options = &plan.options;
    let mut streams = Vec::new();
    for connection in (thread..options.connections).step_by(options.threads) {
        let live = plan.open_first(connection).await?;
        for client in (connection..options.clients).step_by(options.connections) {
            let stream = keeper::open(plan, &live).await;
            let stream = stream
                .map_err(|why| Failure::new(Exit::Error, format!("open a keep-alive stream: {why}")))?;
            streams.push((client, stream));
        }
    }
    // Threads start within the time that opening connections takes; against seconds of measuring that is nothing.
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for (client, stream) in streams {
        clients.spawn(renew(plan.clone(), client, stream, next.clone(), start));
    }
    let mut all = Kept::default();
    clients.join_all().await.into_iter().for_each(|one| all.merge(one));
    Ok(all)
}

/// One client: its leases in turn.
async fn renew(
    plan: Arc<Plan>,
    client: usize,
    (mut renewals, mut heard): (keeper::Renewals, keeper::Heard),
    next: Arc<AtomicU64>,
    start: Instant,
) -> Kept {
    let options = &plan.options;
    let measure_from = start + options.warmup;
    let mut kept = Kept::default();
    let mut leases = (client as u64..options.key_space).step_by(options.clients).cycle();
    let mut last = None;
    loop {
        let over = match options.until {
            Until::Total(total) => next.fetch_add(1, Ordering::Relaxed) >= total,
            Until::Elapsed(time) => start.elapsed() >= time,
        };
        if over {
            break;
        }
        let id = plan.requests.lease(leases.next().expect("every client has a lease"));
        let begin = Instant::now();
        let round = async {
            renewals.send(std::iter::once(id)).await?;
            heard.next().await
        };
        let answer = tokio::time::timeout(plan.request_timeout, round).await;
        let now = Instant::now();
        let text = match answer {
            Ok(Ok(Renewed { id: renewed, ttl })) if renewed == id => {
                if begin >= measure_from {
                    kept.latency.record(u64::try_from((now - begin).as_nanos()).unwrap_or(u64::MAX));
                }
                // Lost is lost, also in the warm-up.
                kept.lost += u64::from(ttl <= 0);
                last = Some(now);
                continue;
            }
            Ok(Ok(_)) => "an answer was for another lease".to_owned(),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time (--command-timeout)".to_owned(),
        };
        // After any of these, answers on this stream cannot be told apart any more.
        kept.failed(text);
        break;
    }
    kept.elapsed = last.map_or(Duration::ZERO, |last: Instant| last.saturating_duration_since(measure_from));
    kept
}
