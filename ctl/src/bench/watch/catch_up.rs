//! Watchers of all keys that begin in the past, while puts go on: how fast they catch up and what the puts notice of it.
//!
//! Every revision of the store has an event for a watcher of all keys, so a revision that is not there is missing. Caught up is
//! who has reached the revision at which the store was when the watchers were created.

use super::ledger::Unbroken;
use super::options::CatchUpOptions;
use super::streams::{self, Receiver};
use super::{Reply, report};
use crate::bench::options::Until;
use crate::bench::run::{self, Outcome, cpu_time};
use crate::bench::{Base, succeeded};
use crate::failure::{Exit, Failure, Result};
use crate::verbs::show;
use api::etcdserverpb::WatchCreateRequest;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the puts have run when the watchers begin.
const SETTLE: Duration = Duration::from_millis(500);
/// The longest that catching up may take, as long as events come.
const CATCH_UP_MAX: Duration = Duration::from_secs(3600);

/// What came out.
pub struct CaughtUp {
    pub before: Outcome,
    pub during: Outcome,
    pub target: i64,
    /// Events until the last watcher was there.
    pub events: u64,
    pub elapsed: Duration,
    pub missing: u64,
    pub disorder: u64,
    /// Watchers that reached the target.
    pub there: usize,
    pub cpu: Option<Duration>,
    pub texts: BTreeMap<String, u64>,
}

/// What the streams tell their owner while they receive.
#[derive(Default)]
struct Progress {
    /// Where the watchers must get to; `i64::MAX` until that is known.
    target: AtomicI64,
    there: AtomicUsize,
}

struct Followers {
    followers: Vec<(Unbroken, bool)>,
    progress: Arc<Progress>,
}

impl Receiver for Followers {
    fn receive(&mut self, watcher: usize, reply: &Reply<'_>, _: Instant) -> Result<u64, String> {
        let (unbroken, there) = &mut self.followers[watcher];
        let before = unbroken.events;
        let mut opens = true;
        let read = reply.events(|event| {
            unbroken.see(event.revision, opens);
            opens = false;
        });
        read.ok_or("a watch response cannot be read")?;
        if !*there && unbroken.last >= self.progress.target.load(Ordering::Relaxed) {
            *there = true;
            self.progress.there.fetch_add(1, Ordering::Relaxed);
        }
        Ok(unbroken.events - before)
    }
}

pub fn run(base: &Base<'_>, options: CatchUpOptions) -> Result<()> {
    let mut quiet = options.puts.clone();
    quiet.until = Until::Elapsed(options.quiet);
    let before = run::measure(Arc::new(base.plan(quiet)?))?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut puts = options.puts.clone();
    puts.until = Until::Elapsed(CATCH_UP_MAX);
    let mut plan = base.plan(puts)?;
    plan.stop = Some(stop.clone());
    let plan = Arc::new(plan);
    let during = {
        let plan = plan.clone();
        std::thread::spawn(move || run::measure(plan))
    };
    std::thread::sleep(SETTLE);
    let caught_up = follow(&options, &plan);
    stop.store(true, Ordering::Relaxed);
    let during = during.join().expect("a measurement does not panic")?;
    let seen = CaughtUp { before, during, ..caught_up? };
    show(report::render_catch_up(&options, &seen, base.settings.format).as_bytes())?;
    succeeded(&seen.during)?;
    if seen.missing == 0 && seen.disorder == 0 && seen.there == options.watchers.count {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Error,
        format!(
            "{} revisions are missing, {} events are out of order, {} of {} watchers caught up",
            seen.missing, seen.disorder, seen.there, options.watchers.count
        ),
    ))
}

/// The watchers, until they are there or nothing comes any more.
fn follow(options: &CatchUpOptions, plan: &Arc<run::Plan>) -> Result<CaughtUp> {
    let (watchers, from, prev_kv) = (options.watchers.clone(), options.from, options.watchers.prev_kv);
    let progress = Arc::new(Progress { target: AtomicI64::new(i64::MAX), there: AtomicUsize::new(0) });
    let create = move |_| WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: from,
        prev_kv,
        ..Default::default()
    };
    let receiver = {
        let (watchers, progress) = (watchers.clone(), progress.clone());
        // The store begins at revision 1, and nothing happened there: the first event is at 2.
        let follower = move || (Unbroken::from(from.max(2)), false);
        move |stream| Followers {
            followers: (0..streams::watchers_of(stream, &watchers)).map(|_| follower()).collect(),
            progress: progress.clone(),
        }
    };
    let (begin, cpu_before) = (Instant::now(), cpu_time());
    let watching = streams::open(plan, &watchers, create, receiver)?;
    let target = watching.shared.revision();
    progress.target.store(target, Ordering::Relaxed);
    let mut events = 0;
    watching.wait(watchers.patience, |delivered| {
        events = delivered;
        progress.there.load(Ordering::Relaxed) == watchers.count || begin.elapsed() > CATCH_UP_MAX
    });
    let elapsed = begin.elapsed();
    let cpu = cpu_before.and_then(|before| Some(cpu_time()?.saturating_sub(before)));
    let (received, texts) = watching.finish();
    let followers = || received.iter().flat_map(|(_, followers)| &followers.followers);
    Ok(CaughtUp {
        before: Outcome::default(),
        during: Outcome::default(),
        target,
        events,
        elapsed,
        missing: followers().map(|(unbroken, _)| unbroken.missing).sum(),
        disorder: followers().map(|(unbroken, _)| unbroken.disorder).sum(),
        there: followers().filter(|(_, there)| *there).count(),
        cpu,
        texts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::WatchResponse;
    use api::mvccpb::{Event, KeyValue};
    use prost::Message;

    #[test]
    fn a_follower_is_there_when_it_has_reached_the_target_and_a_hole_on_the_way_is_seen() {
        let progress = Arc::new(Progress { target: AtomicI64::new(6), there: AtomicUsize::new(0) });
        let mut followers =
            Followers { followers: vec![(Unbroken::from(2), false)], progress: progress.clone() };
        let mut feed = |revisions: &[i64]| {
            let event = |revision: &i64| Event {
                kv: Some(KeyValue { mod_revision: *revision, ..Default::default() }),
                ..Default::default()
            };
            let response = WatchResponse {
                watch_id: 1,
                events: revisions.iter().map(event).collect(),
                ..Default::default()
            };
            followers.receive(0, &Reply::read(&response.encode_to_vec()).unwrap(), Instant::now()).unwrap();
            progress.there.load(Ordering::Relaxed)
        };
        assert_eq!(feed(&[2, 3, 3]), 0);
        assert_eq!(feed(&[5]), 0, "4 is not there");
        assert_eq!(feed(&[6]), 1);
        assert_eq!(feed(&[7]), 1, "it arrives once");
        assert_eq!((followers.followers[0].0.missing, followers.followers[0].0.disorder), (1, 0));
    }
}
