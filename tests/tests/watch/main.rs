//! Watchers of all kinds on clusters of release binaries under fire. Everything they are told is recorded, and the checkers hold it
//! against the true history afterwards: ordered, unique, reliable, atomic, resumable, bookmarkable, and the rest of the list.
//!
//! `CAIRN_TESTS_KIND=3.5` runs the same stories against the real etcd; one of them always does, which shows that recorder and checkers
//! believe a server that is right. `FAULTS_SEED` draws other writes and moments; each test prints its command.

mod compaction;
mod faults;
mod slow;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use api::etcdserverpb::{
    PutRequest, WatchCreateRequest, kv_client::KvClient, watch_create_request::FilterType,
};
use cairn_tests::{
    checker::{self, Evidence, History, Weight},
    harness::{Cluster, Kind},
    proxy::Network,
    recorder::{
        Clock, channel, historian,
        traffic::{Shape, Traffic},
        verify_equal,
        watchers::{Plan, Watchers},
    },
};
use rand::{SeedableRng, rngs::StdRng};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Who is under test.
fn kind() -> Kind {
    std::env::var("CAIRN_TESTS_KIND").map_or(Kind::Cairn, Kind::Etcd)
}

fn seed(test: &str) -> u64 {
    let seed =
        std::env::var("FAULTS_SEED").ok().map_or(1, |text| text.parse().expect("FAULTS_SEED is a number"));
    println!("replay: FAULTS_SEED={seed} cargo test -p cairn-tests --test watch {test}");
    seed
}

/// Writers, watchers, and the members between them.
struct Scene {
    // Dropped in this order: clients before members before their network.
    traffic: Traffic,
    watchers: Watchers,
    history: History,
    clock: Clock,
    cluster: Cluster,
    network: Network,
    random: StdRng,
}

/// Flags by the names that this kind of server knows.
fn flags(kind: &Kind, flags: &[(&str, &str)]) -> Vec<String> {
    let old = ["watch-progress-notify-interval", "snapshot-catchup-entries"];
    let named = |name: &str| match kind {
        Kind::Etcd(_) if old.contains(&name) => format!("experimental-{name}"),
        _ => name.to_owned(),
    };
    flags.iter().map(|(name, value)| format!("--{}={value}", named(name))).collect()
}

/// Fewer events prove nothing; the smallest story has a few hundred.
const EVENTS_MIN: usize = 100;

/// So often progress is told to who asked to be notified; the least that is allowed.
const NOTIFY: (&str, &str) = ("watch-progress-notify-interval", "100ms");

impl Scene {
    fn open(kind: Kind, test: &str, extra: &[(&str, &str)], shape: Shape) -> Result<Scene> {
        let seed = seed(test);
        let mut given = vec![NOTIFY];
        given.extend(extra);
        let given = flags(&kind, &given);
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let mut cluster = Cluster::prepare(kind, 3, &given)?;
        let network = Network::between(&mut cluster)?;
        for member in &mut cluster.members {
            member.spawn()?;
        }
        cluster.wait_healthy()?;
        let clock = Clock::start();
        let endpoints: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
        Ok(Scene {
            traffic: Traffic::start(&endpoints, Shape { seed, ..shape }),
            watchers: Watchers::new(clock, &endpoints),
            history: History::default(),
            clock,
            cluster,
            network,
            random: StdRng::seed_from_u64(seed),
        })
    }

    /// Waits for so many more acknowledged writes.
    fn go_on(&mut self, more: usize) -> Result<()> {
        let waited = self.traffic.go_on(more);
        waited.with_context(|| {
            let tails = self.cluster.members.iter().map(|member| {
                let tail = member.log_tail();
                let from = tail.len().saturating_sub(800);
                format!("{} ends: {}", member.name, tail.get(from..).unwrap_or(&tail))
            });
            tails.collect::<Vec<_>>().join("\n")
        })
    }

    /// Every kind of watcher at every member.
    fn watch_everything(&mut self) {
        for member in 0..self.cluster.members.len() {
            for plan in plans(member) {
                self.watchers.start(plan);
            }
        }
    }

    /// The store's revision, by any member that answers.
    fn revision(&self) -> Result<i64> {
        cairn_tests::harness::wait_for("a linearizable read", || {
            let members = self.cluster.members.iter().filter(|member| member.is_running());
            members.map(|member| block_on(historian::current(&member.client_url))).find_map(Result::ok)
        })
    }

    /// No more writes; everybody gets what is owed; then all that was seen is judged.
    fn judge(self) -> Result<Weight> {
        let Scene { traffic, watchers, mut history, mut cluster, network, .. } = self;
        let promises = traffic.finish();
        network.heal();
        cluster.wait_healthy()?;
        let url = cluster.members[0].client_url.clone();
        let owed = block_on(historian::current(&url))?;
        let ticking = Ticking::start(&url);
        watchers.wait_all(owed)?;
        drop(ticking);
        let streams = watchers.finish();
        block_on(async {
            // A write of unknown outcome may have come late.
            let last = historian::current(&url).await?;
            historian::learn(&mut history, &url, last).await
        })?;
        let mut violations = historian::verify(&mut history, &promises);
        violations.extend(checker::watch_violations(&Evidence { streams: &streams, history: &history }));
        let weight = checker::weight(&streams);
        println!(
            "{} revisions, {} acknowledged, {} of unknown outcome; {weight:?}",
            history.through(),
            promises.acknowledged.len(),
            promises.unknown
        );
        checker::assert_kept("watches", &violations);
        let all: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
        block_on(verify_equal(&all))?;
        assert!(weight.events > EVENTS_MIN, "hardly anything was watched: {weight:?}");
        assert!(weight.bookmarks > 0, "no progress was ever told: {weight:?}");
        Ok(weight)
    }
}

/// Writes now and then what nobody watches. A watch that resumes behind the last revision starts in the future, and while it waits
/// its stream is told no progress, so that on a store at rest its neighbours would never learn that they have everything.
struct Ticking {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticking {
    fn start(url: &str) -> Ticking {
        const EVERY: Duration = Duration::from_millis(100);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (stop.clone(), url.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let put = PutRequest { key: "~".into(), ..Default::default() };
                let _ =
                    block_on(async { Ok::<_, anyhow::Error>(KvClient::new(channel(&url)?).put(put).await?) });
                std::thread::sleep(EVERY);
            }
        });
        Ticking { stop, thread: Some(thread) }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "the ticking panicked");
    }
}

/// All keys of the writers.
fn everything() -> WatchCreateRequest {
    WatchCreateRequest { key: "t/".into(), range_end: "t0".into(), ..Default::default() }
}

/// The kinds of watchers that are at each member.
fn plans(member: usize) -> Vec<Plan> {
    let plan = |name: &str, creates: Vec<WatchCreateRequest>| Plan {
        name: format!("{name} {member}"),
        creates,
        first: member,
        ..Plan::default()
    };
    let one = |key: &'static str| WatchCreateRequest { key: key.into(), ..Default::default() };
    let range = |from: &'static str, to: &'static str| WatchCreateRequest {
        key: from.into(),
        range_end: to.into(),
        ..Default::default()
    };
    let from_start = WatchCreateRequest { start_revision: 1, prev_kv: true, ..everything() };
    vec![
        plan("all from the first", vec![from_start.clone()]),
        plan(
            "a few on one stream",
            vec![
                one("t/000"),
                one("t/001"),
                WatchCreateRequest { prev_kv: true, ..one("t/000") },
                WatchCreateRequest { watch_id: 77, start_revision: 1, ..range("t/004", "t/009") },
                WatchCreateRequest { filters: vec![FilterType::Noput as i32], ..everything() },
                WatchCreateRequest { filters: vec![FilterType::Nodelete as i32], ..range("t/002", "\0") },
                // Nothing of it ever changes.
                WatchCreateRequest { start_revision: 1, ..one("nothing") },
            ],
        ),
        Plan {
            moves_every: Some(Duration::from_millis(900 + 200 * member as u64)),
            ..plan("wanderer", vec![from_start.clone(), range("t/010", "t/015")])
        },
        Plan { pause: Duration::from_millis(15), ..plan("slow", vec![from_start]) },
        Plan {
            never_asks: true,
            ..plan(
                "notified",
                vec![
                    WatchCreateRequest { progress_notify: true, fragment: true, ..everything() },
                    WatchCreateRequest { progress_notify: true, ..one("t/003") },
                ],
            )
        },
        Plan {
            patient: true,
            ..plan("future", vec![WatchCreateRequest { start_revision: 250, ..everything() }])
        },
    ]
}
