//! Clients that watch and remember everything: what they asked, what they were told and when. They follow their subscriptions from
//! member to member, resuming behind the last event or bookmark, as fast as they can, slowly, or not at all while the test says so.
//!
//! Not here: any judgement, that is `checker`'s.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use api::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use crate::{
    checker::{Entry, StreamLog, Subscription, What, history},
    harness::wait_for,
};

use super::Clock;

/// A stream that was opened and says nothing for so long is given up; on a live member progress is asked for far more often.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// A member that does not even open a stream.
const OPEN_MAX: Duration = Duration::from_secs(2);

/// Progress is asked for so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Before the next attempt, so that a dead member is not hammered.
const RETRY: Duration = Duration::from_millis(20);

/// Requests that wait in the client. A slow reader asks for nothing when they are used up.
const REQUESTS_MAX: usize = 256;

/// Larger than any unfragmented response of these tests.
const RESPONSE_BYTES_MAX: usize = 256 << 20;

/// One client with one stream at a time.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub name: String,
    /// Its subscriptions, all on the same stream.
    pub creates: Vec<WatchCreateRequest>,
    /// Endpoint it begins with.
    pub first: usize,
    /// Waits so long after each response.
    pub pause: Duration,
    /// Leaves a working stream after so long and goes to the next member.
    pub moves_every: Option<Duration>,
    /// Stays although nothing comes: a watch that starts in the future.
    pub patient: bool,
    /// Never asks for progress.
    pub never_asks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Go,
    /// Does not read from its stream, nor leave it.
    Hold,
    Stop,
}

/// Clients at work.
pub struct Watchers {
    shared: Arc<Shared>,
    orders: Vec<(String, watch::Sender<Order>)>,
    runtime: tokio::runtime::Runtime,
    tasks: JoinSet<()>,
    next_subscription: u32,
}

struct Shared {
    clock: Clock,
    endpoints: Vec<String>,
    streams: Mutex<Vec<StreamLog>>,
    positions: Mutex<BTreeMap<Subscription, (String, i64)>>,
    created: AtomicUsize,
}

impl Watchers {
    pub fn new(clock: Clock, endpoints: &[String]) -> Watchers {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Watchers {
            shared: Arc::new(Shared {
                clock,
                endpoints: endpoints.to_vec(),
                streams: Mutex::default(),
                positions: Mutex::default(),
                created: AtomicUsize::new(0),
            }),
            orders: Vec::new(),
            runtime: runtime.expect("a runtime for watchers"),
            tasks: JoinSet::new(),
            next_subscription: 0,
        }
    }

    pub fn start(&mut self, plan: Plan) {
        let (sender, receiver) = watch::channel(Order::Go);
        self.orders.push((plan.name.clone(), sender));
        let subscriptions: Vec<Followed> = plan
            .creates
            .iter()
            .map(|create| {
                self.next_subscription += 1;
                let number = Subscription(self.next_subscription);
                let mut positions = self.shared.positions.lock().expect("no watcher panicked");
                positions.insert(number, (plan.name.clone(), 0));
                Followed { number, create: create.clone(), position: None, partial: 0 }
            })
            .collect();
        let follower =
            Follower { shared: self.shared.clone(), at: plan.first, plan, subscriptions, orders: receiver };
        self.tasks.spawn_on(follower.follow(), self.runtime.handle());
    }

    fn order(&self, name: &str, order: Order) {
        let mut found = self.orders.iter().filter(|(plan, _)| plan == name).peekable();
        assert!(found.peek().is_some(), "there is no watcher {name}");
        found.for_each(|(_, sender)| {
            sender.send_replace(order);
        });
    }

    /// From now on it reads nothing.
    pub fn hold(&self, name: &str) {
        self.order(name, Order::Hold);
    }

    pub fn release(&self, name: &str) {
        self.order(name, Order::Go);
    }

    /// Lowest position of the subscriptions of this client.
    pub fn position(&self, name: &str) -> i64 {
        let positions = self.shared.positions.lock().expect("no watcher panicked");
        let of_it = positions.values().filter(|(plan, _)| plan == name);
        of_it.map(|(_, position)| *position).min().expect("it has a subscription")
    }

    pub fn wait_position(&self, name: &str, revision: i64) -> Result<()> {
        wait_for(&format!("{name} to reach {revision}"), || (self.position(name) >= revision).then_some(()))
    }

    /// Waits until so many create requests were answered.
    pub fn wait_created(&self, goal: usize) -> Result<()> {
        let created = || self.shared.created.load(Ordering::Acquire);
        wait_for("created watches", || (created() >= goal).then_some(()))
    }

    /// Waits until every subscription was told everything up to this revision.
    pub fn wait_all(&self, revision: i64) -> Result<()> {
        let behind = || {
            let positions = self.shared.positions.lock().expect("no watcher panicked");
            let behind = positions.values().filter(|(_, position)| *position < revision);
            behind.map(|(name, position)| format!("{name} at {position}")).collect::<Vec<_>>()
        };
        let waited = wait_for("watchers", || behind().is_empty().then_some(()));
        if waited.is_err() {
            let behind = behind();
            let streams = self.shared.streams.lock().expect("no watcher panicked");
            let last = streams.iter().rev().find(|stream| {
                let mut names = behind.iter().filter_map(|text| text.split_once(" at "));
                names.any(|(name, _)| stream.name.starts_with(name))
            });
            bail!(
                "these did not reach revision {revision}: {}; a stream of theirs that ended: {}",
                behind.join(", "),
                last.map(ending).unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Ends all and hands out what was seen.
    pub fn finish(mut self) -> Vec<StreamLog> {
        for (_, sender) in &self.orders {
            let _ = sender.send(Order::Stop);
        }
        self.runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("no watcher panicked");
            }
        });
        std::mem::take(&mut self.shared.streams.lock().expect("no watcher panicked"))
    }
}

/// The last entries of a stream, for messages.
fn ending(stream: &StreamLog) -> String {
    const SHOWN: usize = 12;
    let from = stream.entries.len().saturating_sub(SHOWN);
    let shown = stream.entries[from..].iter().map(|entry| {
        let what = match &entry.what {
            What::Sent(request, _) => format!("sent {:?}", request.request_union),
            What::Received(response) => format!(
                "received for {} at {}: {} events, created {}, canceled {}",
                response.watch_id,
                response.header.map_or(0, |header| header.revision),
                response.events.len(),
                response.created,
                response.canceled
            ),
            What::Ended(why) => format!("ended: {why}"),
        };
        format!("{:?} {what}", entry.at)
    });
    format!("{}\n  {}", stream.name, shown.collect::<Vec<_>>().join("\n  "))
}

struct Followed {
    number: Subscription,
    create: WatchCreateRequest,
    /// Everything up to here was delivered.
    position: Option<i64>,
    /// Highest revision in an unfinished sequence of fragments.
    partial: i64,
}

impl Followed {
    fn reached(&mut self, revision: i64) {
        self.position = Some(self.position.unwrap_or(0).max(revision));
    }
}

struct Follower {
    shared: Arc<Shared>,
    plan: Plan,
    at: usize,
    subscriptions: Vec<Followed>,
    orders: watch::Receiver<Order>,
}

/// The one stream of the moment.
struct Stream {
    log: StreamLog,
    clock: Clock,
    requests: mpsc::Sender<WatchRequest>,
    /// Subscriptions whose create was not answered yet.
    pending: VecDeque<usize>,
    ids: BTreeMap<i64, usize>,
}

impl Stream {
    fn note(&mut self, what: What) {
        self.log.entries.push(Entry { at: self.clock.now(), what });
    }

    /// False when the client has too many requests waiting already.
    fn ask(&mut self, request: RequestUnion, subscription: Option<Subscription>) -> bool {
        let request = WatchRequest { request_union: Some(request) };
        let at = self.clock.now();
        let sent = self.requests.try_send(request.clone()).is_ok();
        if sent {
            self.log.entries.push(Entry { at, what: What::Sent(request, subscription) });
        }
        sent
    }
}

impl Follower {
    async fn follow(mut self) {
        while *self.orders.borrow() != Order::Stop {
            let endpoint = self.shared.endpoints[self.at % self.shared.endpoints.len()].clone();
            let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
            let mut stream = Stream {
                log: StreamLog { name: format!("{} at {endpoint}", self.plan.name), entries: Vec::new() },
                clock: self.shared.clock,
                requests: sender,
                pending: VecDeque::new(),
                ids: BTreeMap::new(),
            };
            let why = match self.stream(&endpoint, &mut stream, receiver).await {
                Ok(why) => why.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            stream.note(What::Ended(why));
            self.shared.streams.lock().expect("no watcher panicked").push(stream.log);
            self.at += 1;
            sleep(RETRY).await;
        }
    }

    async fn stream(
        &mut self,
        endpoint: &str,
        stream: &mut Stream,
        requests: mpsc::Receiver<WatchRequest>,
    ) -> Result<&'static str> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(OPEN_MAX);
        let mut client =
            WatchClient::new(endpoint.connect().await?).max_decoding_message_size(RESPONSE_BYTES_MAX);
        for (index, followed) in self.subscriptions.iter_mut().enumerate() {
            let mut create = followed.create.clone();
            if let Some(position) = followed.position {
                create.start_revision = position + 1;
            }
            followed.partial = 0;
            stream.pending.push_back(index);
            assert!(
                stream.ask(RequestUnion::CreateRequest(create), Some(followed.number)),
                "a client has at most {REQUESTS_MAX} subscriptions"
            );
        }
        let opened = timeout(OPEN_MAX, client.watch(ReceiverStream::new(requests))).await;
        let Ok(opened) = opened else { return Ok("was not opened") };
        let responses = opened?.into_inner();
        self.listen(stream, responses).await
    }

    async fn listen(
        &mut self,
        stream: &mut Stream,
        mut responses: Streaming<WatchResponse>,
    ) -> Result<&'static str> {
        let opened = Instant::now();
        let mut heard = opened;
        let mut ask = opened + PROGRESS_EVERY;
        loop {
            let order = *self.orders.borrow_and_update();
            match order {
                Order::Stop => return Ok("stopped"),
                Order::Hold => {
                    let _ = self.orders.changed().await;
                    heard = Instant::now();
                    continue;
                }
                Order::Go => {}
            }
            let leave = self.plan.moves_every.map(|time| opened + time);
            if leave.is_some_and(|leave| leave <= Instant::now()) {
                return Ok("moves on");
            }
            let far = heard + SILENCE_MAX;
            let silent = if self.plan.patient { far + 100 * SILENCE_MAX } else { far };
            let response = tokio::select! {
                response = responses.message() => response?,
                _ = self.orders.changed() => continue,
                () = sleep_until(ask) => {
                    if !self.plan.never_asks {
                        stream.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}), None);
                    }
                    ask = Instant::now() + PROGRESS_EVERY;
                    continue;
                }
                () = sleep_until(leave.unwrap_or(silent).min(silent)) => {
                    if leave.is_some_and(|leave| leave <= Instant::now()) {
                        return Ok("moves on");
                    }
                    return Ok("says nothing");
                }
            };
            let Some(response) = response else { return Ok("was ended by the member") };
            heard = Instant::now();
            stream.note(What::Received(response.clone()));
            if let Some(why) = self.heard(stream, &response) {
                return Ok(why);
            }
            if !self.plan.pause.is_zero() {
                sleep(self.plan.pause).await;
            }
        }
    }

    /// Keeps the positions; a reason to leave the stream, if there is one.
    fn heard(&mut self, stream: &mut Stream, response: &WatchResponse) -> Option<&'static str> {
        let revision = response.header.map_or(0, |header| header.revision);
        if response.created {
            let index = stream.pending.pop_front()?;
            if response.canceled {
                return Some("refused");
            }
            stream.ids.insert(response.watch_id, index);
            self.shared.created.fetch_add(1, Ordering::AcqRel);
            let followed = &mut self.subscriptions[index];
            if followed.position.is_none() && followed.create.start_revision == 0 {
                followed.position = Some(revision);
            }
            return None;
        }
        if response.canceled {
            let index = *stream.ids.get(&response.watch_id)?;
            if response.compact_revision > 0 {
                self.subscriptions[index].reached(response.compact_revision - 1);
            }
            // The next stream goes on behind the compaction.
            return Some("canceled");
        }
        let told: Vec<usize> = match stream.ids.get(&response.watch_id) {
            Some(index) => vec![*index],
            None => stream.ids.values().copied().collect(),
        };
        let highest = response.events.iter().map(history::revision).max();
        for index in told {
            let followed = &mut self.subscriptions[index];
            match highest {
                Some(highest) if response.fragment => followed.partial = followed.partial.max(highest),
                Some(highest) => {
                    let highest = highest.max(std::mem::take(&mut followed.partial));
                    followed.reached(highest);
                }
                None => followed.reached(revision),
            }
            if let Some(position) = followed.position {
                let mut positions = self.shared.positions.lock().expect("no watcher panicked");
                positions.get_mut(&followed.number).expect("it was put there").1 = position;
            }
        }
        None
    }
}
