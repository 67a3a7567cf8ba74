//! Many leases that end at once. Each is granted and has a key; a last renewal of all of them, sent in one go, sets their
//! deadlines close together; then a watch tells when each key is gone. Other leases are renewed meanwhile and must live.
//!
//! A lease must live until its last renewal was *sent* plus its time to live; it is late from the time that renewal's answer
//! *came* plus its time to live.

use super::keeper::{self, Renewed};
use super::options::ExpireOptions;
use super::{prepare, report};
use crate::bench::Base;
use crate::bench::histogram::Histogram;
use crate::bench::options::{Operation, Options};
use crate::bench::run::{Outcome, Plan, count_text};
use crate::bench::watch::Reply;
use crate::bench::watch::options::Watchers;
use crate::bench::watch::streams::{self, Receiver};
use crate::failure::{Exit, Failure, Result};
use crate::verbs::kv::prefix_end;
use crate::verbs::show;
use api::etcdserverpb::WatchCreateRequest;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The heartbeats of a lease that is kept alive come after this part of its time to live, as etcd's clients do it.
const HEARTBEATS_PER_TTL: u32 = 3;

/// What came out.
pub struct Expired {
    pub granted: Outcome,
    pub put: Outcome,
    /// From the first to the last deadline.
    pub spread: Duration,
    pub gone: u64,
    /// Keys that were gone before their lease's time.
    pub early: u64,
    /// Deletions of a key that was gone.
    pub twice: u64,
    /// How late each key was gone.
    pub late: Histogram,
    /// From the last deadline to the last deletion; `None` when keys are left.
    pub last_gone: Option<Duration>,
    /// How many revisions the deletions are: servers may put many leases into one.
    pub revisions: u64,
    pub heartbeats: Heartbeats,
}

/// The leases that were kept alive.
#[derive(Clone, Default)]
pub struct Heartbeats {
    pub latency: Histogram,
    pub lost: u64,
    /// Heartbeats without an answer, or on a stream that broke.
    pub unanswered: u64,
    pub texts: BTreeMap<String, u64>,
}

/// When a lease was renewed for the last time.
#[derive(Clone, Copy)]
struct Renewal {
    /// At the earliest.
    sent: Instant,
    answered: Instant,
}

/// When each key went.
struct Deletions {
    prefix_bytes: usize,
    gone: Vec<Option<Instant>>,
    twice: u64,
    last_revision: i64,
    revisions: u64,
}

impl Deletions {
    fn new(options: &Options) -> Deletions {
        Deletions {
            prefix_bytes: options.prefix.len(),
            gone: vec![None; options.key_space as usize],
            twice: 0,
            last_revision: 0,
            revisions: 0,
        }
    }
}

impl Receiver for Deletions {
    fn receive(&mut self, _: usize, reply: &Reply<'_>, now: Instant) -> Result<u64, String> {
        let mut seen = 0;
        let read = reply.events(|event| {
            if !event.delete {
                return;
            }
            let digits =
                event.key.get(self.prefix_bytes..).and_then(|digits| std::str::from_utf8(digits).ok());
            let number = digits.and_then(|digits| digits.parse::<usize>().ok());
            match number.and_then(|number| self.gone.get_mut(number)) {
                // Somebody else's key under the same prefix.
                None => return,
                Some(Some(_)) => self.twice += 1,
                Some(gone) => *gone = Some(now),
            }
            self.revisions += u64::from(event.revision != self.last_revision);
            self.last_revision = event.revision;
            seen += 1;
        });
        read.ok_or("a watch response cannot be read")?;
        Ok(seen)
    }
}

pub fn run(base: &Base<'_>, options: ExpireOptions) -> Result<()> {
    let leases = &options.leases;
    // The first leases must live until the last key is put; when --ttl is too short for that, the renewal below says so.
    let granted = prepare(base, leases, Operation::Grant)?;
    let put = prepare(base, leases, Operation::LeasedPut)?;
    let kept = Options {
        key_space: options.kept as u64,
        ttl: options.kept_ttl,
        lease_base: leases.lease_base.map(|first| first + leases.key_space as i64),
        ..leases.clone()
    };
    if options.kept > 0 {
        prepare(base, &kept, Operation::Grant)?;
    }
    let plan = Arc::new(base.plan(leases.clone())?);
    let kept = Arc::new(base.plan(kept)?);
    let watching = watch(&plan, &options)?;
    let keeping = Keeping::start(&kept, &options)?;
    // On a thread of its own: this one drives a runtime already.
    let renewals = {
        let (plan, streams) = (plan.clone(), options.streams);
        std::thread::spawn(move || renew_together(&plan, streams))
    };
    let renewals = renewals.join().expect("renewing does not panic")?;
    let ttl = Duration::from_secs(leases.ttl.unsigned_abs());
    let deadlines = || renewals.iter().map(|renewal| renewal.answered + ttl);
    let (first, last) = (deadlines().min(), deadlines().max());
    let (first, last) = first.zip(last).expect("there is at least one lease");
    let give_up = last + options.patience;
    let everything = leases.key_space;
    watching.wait(ttl + options.patience, |gone| gone >= everything || Instant::now() >= give_up);
    // What is renewed now must still be there after all the others are gone.
    let mut heartbeats = keeping.finish();
    let (received, texts) = watching.finish();
    for (text, count) in texts {
        count_text(&mut heartbeats.texts, text, count);
    }
    let deletions = received.into_iter().next().map(|(_, deletions)| deletions);
    let deletions = deletions.unwrap_or_else(|| Deletions::new(leases));
    let expired =
        Expired { granted, put, spread: last - first, heartbeats, ..judge(&deletions, &renewals, ttl) };
    show(report::expire(&options, &expired, base.settings.format).as_bytes())?;
    complaint(&options, &expired)
}

/// What the deletions say about leases that were renewed so.
fn judge(deletions: &Deletions, renewals: &[Renewal], ttl: Duration) -> Expired {
    let (mut late, mut gone, mut early, mut last_gone) = (Histogram::default(), 0, 0, None);
    let mut last_deadline = None;
    for (deletion, renewal) in deletions.gone.iter().zip(renewals) {
        let deadline = renewal.answered + ttl;
        last_deadline = last_deadline.max(Some(deadline));
        let Some(at) = *deletion else { continue };
        gone += 1;
        early += u64::from(at < renewal.sent + ttl);
        last_gone = last_gone.max(Some(at));
        late.record(u64::try_from(at.saturating_duration_since(deadline).as_nanos()).unwrap_or(u64::MAX));
    }
    let all = gone == renewals.len() as u64;
    Expired {
        granted: Outcome::default(),
        put: Outcome::default(),
        spread: Duration::ZERO,
        gone,
        early,
        twice: deletions.twice,
        late,
        last_gone: last_gone
            .zip(last_deadline)
            .filter(|_| all)
            .map(|(gone, deadline)| gone.saturating_duration_since(deadline)),
        revisions: deletions.revisions,
        heartbeats: Heartbeats::default(),
    }
}

/// The failure that the numbers mean, if they mean one.
fn complaint(options: &ExpireOptions, expired: &Expired) -> Result<()> {
    let left = options.leases.key_space - expired.gone;
    let Heartbeats { lost, unanswered, .. } = &expired.heartbeats;
    if (left, expired.early, expired.twice, *lost, *unanswered) == (0, 0, 0, 0, 0) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Error,
        format!(
            "{left} keys are left, {} went before their time, {} went twice; of the leases kept alive {lost} heartbeats found none and {unanswered} were not answered",
            expired.early, expired.twice
        ),
    ))
}

fn watch(plan: &Arc<Plan>, options: &ExpireOptions) -> Result<streams::Watching<Deletions>> {
    let watchers = Watchers {
        count: 1,
        streams: 1,
        connections: 1,
        threads: 1,
        prev_kv: false,
        patience: options.patience,
    };
    let leases = options.leases.clone();
    let prefix = Bytes::from(leases.prefix.clone());
    let create = move |_| {
        // No prefix at all is every key, from the smallest one on.
        let key = if prefix.is_empty() { Bytes::from_static(b"\0") } else { prefix.clone() };
        WatchCreateRequest { key, range_end: prefix_end(&prefix), ..Default::default() }
    };
    streams::open(plan, &watchers, create, move |_| Deletions::new(&leases))
}

/// Renews all leases as fast as the server takes it.
fn renew_together(plan: &Arc<Plan>, streams: usize) -> Result<Vec<Renewal>> {
    let leases = plan.options.key_space as usize;
    let fail = |why: String| Failure::new(Exit::Error, format!("renew the leases that shall expire: {why}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut renewing = JoinSet::new();
        let streams = streams.min(leases);
        let mut connections = Vec::new();
        for number in 0..plan.options.connections.min(streams) {
            connections.push(plan.open_first(number).await?);
        }
        for stream in 0..streams {
            let (plan, connection) = (plan.clone(), connections[stream % connections.len()].clone());
            renewing.spawn(async move {
                let mine: Vec<usize> = (stream..leases).step_by(streams).collect();
                let (mut renewals, mut heard) = keeper::open(&plan, &connection).await?;
                let sent = Instant::now();
                let send = renewals.send(mine.iter().map(|lease| plan.requests.lease(*lease as u64)));
                let receive = async {
                    let mut answers = Vec::with_capacity(mine.len());
                    for lease in &mine {
                        let Renewed { id, ttl } = heard.next().await?;
                        if id != plan.requests.lease(*lease as u64) {
                            return Err("an answer was for another lease".to_owned());
                        }
                        if ttl != plan.options.ttl {
                            return Err(match ttl {
                                0 => "a lease ended while others were prepared; raise --ttl".to_owned(),
                                _ => format!("the server made the time to live {ttl}s; use that as --ttl"),
                            });
                        }
                        answers.push((*lease, Renewal { sent, answered: Instant::now() }));
                    }
                    Ok(answers)
                };
                let ((), answers) = tokio::try_join!(send, receive)?;
                Ok::<_, String>(answers)
            });
        }
        let mut all = vec![None; leases];
        while let Some(renewed) = renewing.join_next().await {
            for (lease, renewal) in renewed.expect("renewing does not panic").map_err(fail)? {
                all[lease] = Some(renewal);
            }
        }
        Ok(all.into_iter().map(|renewal| renewal.expect("every lease is on a stream")).collect())
    })
}

/// The thread that keeps the other leases alive.
struct Keeping {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Heartbeats>,
}

impl Keeping {
    fn start(plan: &Arc<Plan>, options: &ExpireOptions) -> Result<Keeping> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, opened) = mpsc::channel();
        let thread = {
            let (plan, stop, streams) = (plan.clone(), stop.clone(), options.streams.min(options.kept));
            std::thread::spawn(move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Err(error) => {
                        let _ = tell.send(Err(Failure::from(error)));
                        Heartbeats::default()
                    }
                    Ok(runtime) => runtime.block_on(keep(&plan, streams, &stop, tell)),
                }
            })
        };
        opened.recv().expect("the thread says how opening went")?;
        Ok(Keeping { stop, thread })
    }

    fn finish(self) -> Heartbeats {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("keeping leases alive does not panic")
    }
}

async fn keep(
    plan: &Arc<Plan>,
    streams: usize,
    stop: &Arc<AtomicBool>,
    tell: mpsc::Sender<Result<()>>,
) -> Heartbeats {
    let mut open = Vec::new();
    for stream in 0..streams {
        let opened = match plan.open_first(stream).await {
            Ok(connection) => keeper::open(plan, &connection)
                .await
                .map_err(|why| Failure::new(Exit::Error, format!("open a keep-alive stream: {why}"))),
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(opened) => open.push((stream, opened)),
            Err(failure) => {
                let _ = tell.send(Err(failure));
                return Heartbeats::default();
            }
        }
    }
    let _ = tell.send(Ok(()));
    let mut keeping = JoinSet::new();
    for (stream, opened) in open {
        keeping.spawn(keep_some(plan.clone(), stream, streams, opened, stop.clone()));
    }
    let mut all = Heartbeats::default();
    for one in keeping.join_all().await {
        all.latency.merge(&one.latency);
        all.lost += one.lost;
        all.unanswered += one.unanswered;
        for (text, count) in one.texts {
            count_text(&mut all.texts, text, count);
        }
    }
    all
}

/// The leases of one stream: all of them at each heartbeat, and once more at the end.
async fn keep_some(
    plan: Arc<Plan>,
    stream: usize,
    streams: usize,
    (mut renewals, mut heard): (keeper::Renewals, keeper::Heard),
    stop: Arc<AtomicBool>,
) -> Heartbeats {
    let period = Duration::from_secs(plan.options.ttl.unsigned_abs()) / HEARTBEATS_PER_TTL;
    let ids =
        || (stream as u64..plan.options.key_space).step_by(streams).map(|lease| plan.requests.lease(lease));
    let mut beats = Heartbeats::default();
    let mut last = false;
    while !last {
        last = stop.load(Ordering::Relaxed);
        let sent = Instant::now();
        let mut answered = 0;
        let receive = async {
            for _ in ids() {
                let renewed = heard.next().await?;
                answered += 1;
                beats.latency.record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
                beats.lost += u64::from(renewed.ttl <= 0);
            }
            Ok(())
        };
        // An answer later than the next heartbeat is one missed.
        let round = tokio::time::timeout(period, async { tokio::try_join!(renewals.send(ids()), receive) });
        let text = match round.await {
            Ok(Ok(_)) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some("heartbeats were not answered before the next ones were due".into()),
        };
        if let Some(text) = text {
            beats.unanswered += ids().count() as u64 - answered;
            count_text(&mut beats.texts, text, 1);
            break;
        }
        while sent.elapsed() < period && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10).min(period)).await;
        }
    }
    beats
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three leases, renewed at 0 and answered 100 ms later, ttl 1 s, gone at these times.
    fn judged(gone_ms: [Option<u64>; 3]) -> Expired {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let renewals = [Renewal { sent: begin, answered: at(100) }; 3];
        let deletions = Deletions {
            prefix_bytes: 0,
            gone: gone_ms.map(|ms| ms.map(at)).to_vec(),
            twice: 0,
            last_revision: 0,
            revisions: 0,
        };
        judge(&deletions, &renewals, Duration::from_secs(1))
    }

    #[test]
    fn a_key_that_stays_is_left_and_one_that_goes_too_soon_is_early() {
        let fine = judged([Some(1000), Some(1099), Some(1600)]);
        assert_eq!((fine.gone, fine.early, fine.last_gone), (3, 0, Some(Duration::from_millis(500))));
        assert_eq!(fine.late.max(), 500_000_000);
        let left = judged([Some(1200), None, Some(1300)]);
        assert_eq!((left.gone, left.last_gone), (2, None));
        assert_eq!(judged([Some(999), Some(1200), Some(1200)]).early, 1);
    }
}
