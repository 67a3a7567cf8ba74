//! Watches: many watchers, puts of the ordinary load generator, and a count at the end. Receiving has threads of its own, so that
//! puts are not slower for the events that come back.
//!
//! Every value carries the time of its put, so each event tells its own latency. Whether a watcher got every event once and in
//! order is the ledger's to say. Not here: starting a watch again where a broken one ended; a stream that breaks is a failure.

pub mod catch_up;
mod glance;
pub mod ledger;
pub mod options;
mod report;
pub mod streams;

pub use glance::Reply;

use super::Base;
use super::histogram::Histogram;
use super::run::{self, Outcome, Plan, cpu_time};
use crate::failure::{Exit, Failure, Result};
use crate::output::tell;
use crate::verbs::kv::prefix_end;
use crate::verbs::show;
use api::etcdserverpb::WatchCreateRequest;
use ledger::{Ledger, Sight, Stamp, Verdict};
use options::{Target, WatchOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{Receiver, Watching};

/// After the last expected event, how long a surplus one is waited for.
const SURPLUS_WAIT: Duration = Duration::from_millis(100);
/// Puts whose answer's time is kept; eight bytes each.
const ACKS_MAX: usize = 10_000_000;

/// Times of events, of one stream or all together.
#[derive(Clone, Default)]
pub struct Times {
    pub from_put: Histogram,
    /// Zero when the event was here before the answer to its put.
    pub from_ack: Histogram,
    pub before_ack: u64,
    /// Events whose value has no stamp: somebody else's.
    pub foreign: u64,
}

/// What came out.
pub struct Seen {
    pub puts: Outcome,
    pub expected: u64,
    pub delivered: u64,
    pub verdict: Verdict,
    /// Watchers that got every event once and in order.
    pub flawless: usize,
    /// Streams that ended before the measurement did.
    pub broken: usize,
    pub times: Times,
    pub opened_in: Duration,
    /// From the end of the warm-up to the last event.
    pub elapsed: Duration,
    /// From the last answer to a put to the last event.
    pub lag: Duration,
    pub cpu: Option<Duration>,
    pub texts: BTreeMap<String, u64>,
}

/// The watchers of one stream.
struct Sights {
    sights: Vec<Sight>,
    /// Of this stream alone: 60 KB a histogram, and no lock where every event passes.
    times: Times,
    ledger: Arc<Ledger>,
    acks: bool,
}

impl Receiver for Sights {
    fn receive(&mut self, watcher: usize, reply: &Reply<'_>, now: Instant) -> Result<u64, String> {
        let (now, counted_from) = (self.ledger.nanos(now), self.ledger.counted_from());
        let sight = &mut self.sights[watcher];
        let before = sight.events;
        let read = reply.events(|event| {
            sight.see(event.revision);
            let Some(stamp) = Stamp::read(event.value) else {
                self.times.foreign += 1;
                return;
            };
            if stamp.sent < counted_from {
                return;
            }
            self.times.from_put.record(now.saturating_sub(stamp.sent));
            if self.acks {
                match self.ledger.acked_at(stamp.number).filter(|acked| *acked <= now) {
                    Some(acked) => self.times.from_ack.record(now - acked),
                    None => {
                        self.times.from_ack.record(0);
                        self.times.before_ack += 1;
                    }
                }
            }
        });
        read.ok_or("a watch response cannot be read")?;
        Ok(sight.events - before)
    }
}

pub fn run(base: &Base<'_>, options: WatchOptions) -> Result<()> {
    let keys = if options.target == Target::Keys { options.watchers.count } else { 1 };
    let acks = if !options.acks {
        0
    } else {
        match (options.puts.until, options.puts.rate) {
            (super::options::Until::Total(total), _) => (total as usize).min(ACKS_MAX),
            (super::options::Until::Elapsed(time), Some(rate)) => {
                ((time.as_secs_f64() * rate) as usize + 1).min(ACKS_MAX)
            }
            _ => ACKS_MAX,
        }
    };
    let ledger = Arc::new(Ledger::new(keys, acks));
    let mut plan = base.plan(options.puts.clone())?;
    plan.ledger = Some(ledger.clone());
    let plan = Arc::new(plan);
    let watching = open(&plan, &options, &ledger)?;
    if let Some(time) = options.hold {
        return hold(&options, watching, time);
    }
    let cpu_before = cpu_time();
    let puts = run::measure(plan);
    let puts = match puts {
        Ok(puts) => puts,
        Err(failure) => {
            watching.finish();
            return Err(failure);
        }
    };
    let seen = settle(&options, &ledger, puts, watching, cpu_before);
    show(report::render(&options, &seen, base.settings.format).as_bytes())?;
    super::succeeded(&seen.puts)?;
    complaint(&seen)
}

fn open(plan: &Arc<Plan>, options: &WatchOptions, ledger: &Arc<Ledger>) -> Result<Watching<Sights>> {
    let create = {
        let (plan, target, prev_kv) = (plan.clone(), options.target, options.watchers.prev_kv);
        let prefix = bytes::Bytes::from(options.puts.prefix.clone());
        let end = prefix_end(&prefix);
        move |watcher: usize| match target {
            Target::Keys => {
                let key = plan.requests.key(watcher as u64);
                WatchCreateRequest { key, prev_kv, ..Default::default() }
            }
            Target::Prefix => {
                // No prefix at all is every key, from the smallest one on.
                let key = if prefix.is_empty() { bytes::Bytes::from_static(b"\0") } else { prefix.clone() };
                WatchCreateRequest { key, range_end: end.clone(), prev_kv, ..Default::default() }
            }
        }
    };
    let receiver = {
        let (watchers, ledger, acks) = (options.watchers.clone(), ledger.clone(), options.acks);
        move |stream| Sights {
            sights: vec![Sight::default(); streams::watchers_of(stream, &watchers)],
            times: Times::default(),
            ledger: ledger.clone(),
            acks,
        }
    };
    streams::open(plan, &options.watchers, create, receiver)
}

/// Watchers without puts, for somebody who looks at the server meanwhile.
fn hold(options: &WatchOptions, watching: Watching<Sights>, time: Duration) -> Result<()> {
    let watchers = &options.watchers;
    tell(format_args!(
        "{} watchers on {} streams over {} connections are open after {:.3}s",
        watchers.count,
        watchers.streams,
        watchers.connections,
        watching.opened_in.as_secs_f64()
    ));
    std::thread::sleep(time);
    let (_, texts) = watching.finish();
    match texts.into_iter().next() {
        None => Ok(()),
        Some((text, count)) => Err(Failure::new(Exit::Error, format!("{count} streams ended: {text}"))),
    }
}

/// Waits for the events that are still to come and adds everything up.
fn settle(
    options: &WatchOptions,
    ledger: &Ledger,
    puts: Outcome,
    watching: Watching<Sights>,
    cpu_before: Option<Duration>,
) -> Seen {
    let watchers = &options.watchers;
    let expected = ledger.expected(watchers.count);
    watching.wait(watchers.patience, |delivered| delivered >= expected);
    let cpu = cpu_before.and_then(|before| Some(cpu_time()?.saturating_sub(before)));
    std::thread::sleep(SURPLUS_WAIT);
    let last_event =
        watching.shared.last_event().map_or(Duration::ZERO, |at| Duration::from_nanos(ledger.nanos(at)));
    let (opened_in, broken) = (watching.opened_in, watching.shared.broken());
    let (received, mut texts) = watching.finish();
    let (mut times, mut verdict, mut delivered, mut flawless) = (Times::default(), Verdict::default(), 0, 0);
    for (stream, sights) in received {
        times.from_put.merge(&sights.times.from_put);
        times.from_ack.merge(&sights.times.from_ack);
        times.before_ack += sights.times.before_ack;
        times.foreign += sights.times.foreign;
        for (index, sight) in sights.sights.iter().enumerate() {
            let one = ledger.verdict(streams::watcher(stream, index, watchers.streams), sight);
            verdict.add(one);
            flawless += usize::from(one.flawless());
            delivered += sight.events;
        }
    }
    for (text, count) in &puts.error_texts {
        run::count_text(&mut texts, text.clone(), *count);
    }
    let counted_from = Duration::from_nanos(ledger.counted_from());
    Seen {
        puts,
        expected,
        delivered,
        verdict,
        flawless,
        broken,
        times,
        opened_in,
        elapsed: last_event.saturating_sub(counted_from),
        lag: last_event.saturating_sub(ledger.last_ack()),
        cpu,
        texts,
    }
}

/// The failure that the numbers mean, if they mean one.
fn complaint(seen: &Seen) -> Result<()> {
    let Verdict { missing, surplus, disorder } = seen.verdict;
    if seen.verdict.flawless() && seen.broken == 0 {
        return Ok(());
    }
    if seen.verdict.flawless() {
        return Err(Failure::new(
            Exit::Error,
            format!("{} watch streams ended before the measurement", seen.broken),
        ));
    }
    let text = format!(
        "of {} events {missing} are missing, {surplus} are too many, {disorder} are out of order or there twice",
        seen.expected
    );
    Err(Failure::new(Exit::Error, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::WatchResponse;
    use api::mvccpb::{Event, KeyValue};
    use prost::Message;

    /// What a watcher is sent: the events of `revisions`, each put stamped with its revision as number.
    fn response(ledger: &Ledger, revisions: &[i64]) -> Vec<u8> {
        let event = |revision: &i64| {
            let mut value = vec![0; 32];
            Stamp { sent: ledger.nanos(Instant::now()), number: *revision as u64 }.write(&mut value);
            let kv = KeyValue {
                key: "k".into(),
                mod_revision: *revision,
                value: value.into(),
                ..Default::default()
            };
            Event { kv: Some(kv), ..Default::default() }
        };
        WatchResponse { watch_id: 1, events: revisions.iter().map(event).collect(), ..Default::default() }
            .encode_to_vec()
    }

    fn received(batches: &[&[i64]]) -> (Verdict, Times) {
        let ledger = Arc::new(Ledger::new(1, 100));
        ledger.count_from(Instant::now());
        (2..=9).for_each(|revision| ledger.acked(0, revision as u64, revision, Instant::now()));
        let mut sights = Sights {
            sights: vec![Sight::default()],
            times: Times::default(),
            ledger: ledger.clone(),
            acks: true,
        };
        for batch in batches {
            let message = response(&ledger, batch);
            let events = sights.receive(0, &Reply::read(&message).unwrap(), Instant::now()).unwrap();
            assert_eq!(events, batch.len() as u64);
        }
        (ledger.verdict(0, &sights.sights[0]), sights.times)
    }

    #[test]
    fn responses_are_checked_event_by_event_and_timed() {
        let (verdict, times) = received(&[&[2, 3], &[4], &[5, 6, 7, 8, 9]]);
        assert!(verdict.flawless());
        assert_eq!(
            (times.from_put.count(), times.from_ack.count(), times.before_ack, times.foreign),
            (8, 8, 0, 0)
        );
    }

    #[test]
    fn a_response_with_a_hole_is_reported() {
        let (verdict, _) = received(&[&[2, 3], &[5, 6, 7, 8, 9]]);
        assert_eq!(verdict.missing, 1);
        let (verdict, _) = received(&[&[2, 3], &[3, 4], &[5, 6, 7, 8, 9]]);
        assert_eq!((verdict.missing, verdict.surplus, verdict.disorder), (0, 1, 1));
    }

    #[test]
    fn an_event_that_comes_before_its_puts_answer_has_waited_for_nothing() {
        let (verdict, times) = received(&[&[2, 3, 4, 5, 6, 7, 8, 9, 10]]);
        assert_eq!((verdict.surplus, times.before_ack, times.from_ack.at(1)), (1, 1, 0));
    }
}
