//! Watch streams and the threads that receive on them. A stream is a task; what a chunk of bytes brings is looked at in place, so
//! that an event costs a handful of additions.

use super::glance::Reply;
use super::options::Watchers;
use crate::bench::fields::Messages;
use crate::bench::run::{Plan, count_text, describe};
use crate::failure::{Exit, Failure, Result};
use crate::wire::{Answers, Connection, Head, Requests, frame};
use api::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

const WATCH_PATH: &str = "/etcdserverpb.Watch/Watch";
/// Create requests sent in one go; below the 64 KiB that a server takes on a new stream.
const CREATE_BATCH_BYTES: usize = 32 * 1024;
/// How long opening all watchers may take; 10,000 take etcd less than a second.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// What becomes of the events of one stream. The watchers of a stream are numbered from zero.
pub trait Receiver: Send + 'static {
    /// Looks at a response with events; returns how many there were, or what is wrong with it.
    fn receive(&mut self, watcher: usize, reply: &Reply<'_>, now: Instant) -> Result<u64, String>;
}

/// State that the threads and their owner share.
pub struct Shared {
    epoch: Instant,
    /// Events received so far.
    delivered: AtomicU64,
    /// When the last of them came, in nanoseconds since the epoch.
    last_event: AtomicU64,
    streams: usize,
    /// Streams that go on.
    alive: AtomicUsize,
    /// The highest revision that a `created` answer had.
    revision: AtomicU64,
    texts: Mutex<BTreeMap<String, u64>>,
    stop: watch::Sender<bool>,
}

/// Open watchers.
pub struct Watching<R> {
    pub shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<Vec<(usize, R)>>>,
    /// How long it took until all watchers were open.
    pub opened_in: Duration,
}

impl Shared {
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub fn last_event(&self) -> Option<Instant> {
        let nanos = self.last_event.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.epoch + Duration::from_nanos(nanos))
    }

    /// The store's revision when the last watcher was created.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Relaxed) as i64
    }

    /// Streams that the server or the connection ended.
    pub fn broken(&self) -> usize {
        self.streams - self.alive.load(Ordering::Relaxed)
    }

    pub fn all_over(&self) -> bool {
        self.alive.load(Ordering::Relaxed) == 0
    }

    fn failed(&self, text: String) {
        count_text(&mut self.texts.lock().expect("nobody panics with the lock"), text, 1);
    }
}

/// Which watcher of all is the watcher `index` of a stream.
pub fn watcher(stream: usize, index: usize, streams: usize) -> usize {
    index * streams + stream
}

/// How many watchers a stream has.
pub fn watchers_of(stream: usize, watchers: &Watchers) -> usize {
    (watchers.count - stream).div_ceil(watchers.streams)
}

/// Opens all watchers. `create` makes the request of one; its id is filled in here. `receiver` makes what receives the events of
/// a stream.
pub fn open<R: Receiver>(
    plan: &Arc<Plan>,
    watchers: &Watchers,
    create: impl Fn(usize) -> WatchCreateRequest + Send + Sync + 'static,
    receiver: impl Fn(usize) -> R + Send + Sync + 'static,
) -> Result<Watching<R>> {
    let begin = Instant::now();
    let shared = Arc::new(Shared {
        epoch: begin,
        delivered: AtomicU64::new(0),
        last_event: AtomicU64::new(0),
        streams: watchers.streams,
        alive: AtomicUsize::new(watchers.streams),
        revision: AtomicU64::new(0),
        texts: Mutex::default(),
        stop: watch::Sender::new(false),
    });
    let (create, receiver) = (Arc::new(create), Arc::new(receiver));
    let (tell, opened) = mpsc::channel();
    let threads: Vec<_> = (0..watchers.threads)
        .map(|thread| {
            let (plan, watchers, shared, tell) =
                (plan.clone(), watchers.clone(), shared.clone(), tell.clone());
            let (create, receiver) = (create.clone(), receiver.clone());
            std::thread::spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = tell.send(Err(Failure::new(Exit::Io, format!("start a runtime: {error}"))));
                        return Vec::new();
                    }
                };
                runtime.block_on(async {
                    let opened = tokio::time::timeout(
                        OPEN_MAX,
                        open_streams(&plan, &watchers, thread, &shared, &*create, &*receiver),
                    );
                    let opened = opened.await.unwrap_or_else(|_| {
                        let text = format!("{} watchers did not open within {OPEN_MAX:?}", watchers.count);
                        Err(Failure::new(Exit::Error, text))
                    });
                    match opened {
                        // The owner waits for every thread, so it is still there.
                        Err(failure) => {
                            let _ = tell.send(Err(failure));
                            Vec::new()
                        }
                        Ok(streams) => {
                            let _ = tell.send(Ok(()));
                            let running: JoinSet<_> =
                                streams.into_iter().map(|stream| stream.run(shared.clone())).collect();
                            running.join_all().await
                        }
                    }
                })
            })
        })
        .collect();
    drop(tell);
    let first_failure = opened.iter().take(threads.len()).find_map(Result::err);
    let watching = Watching { shared, threads, opened_in: begin.elapsed() };
    match first_failure {
        None => Ok(watching),
        Some(failure) => {
            watching.finish();
            Err(failure)
        }
    }
}

impl<R> Watching<R> {
    /// Waits until `enough` says so of the number of events, or nothing came for `patience`, or every stream is over.
    pub fn wait(&self, patience: Duration, mut enough: impl FnMut(u64) -> bool) {
        let (mut seen, mut since) = (self.shared.delivered(), Instant::now());
        while !enough(seen) && since.elapsed() < patience && !self.shared.all_over() {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.shared.delivered();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    /// Closes all watchers. Returns what each stream received, and what went wrong.
    pub fn finish(self) -> (Vec<(usize, R)>, BTreeMap<String, u64>) {
        self.shared.stop.send_replace(true);
        let join =
            |thread: std::thread::JoinHandle<_>| thread.join().expect("a thread of streams ends by itself");
        let received = self.threads.into_iter().flat_map(join).collect();
        let texts = std::mem::take(&mut *self.shared.texts.lock().expect("nobody panics with the lock"));
        (received, texts)
    }
}

/// The streams of one thread.
async fn open_streams<R: Receiver>(
    plan: &Plan,
    watchers: &Watchers,
    thread: usize,
    shared: &Arc<Shared>,
    create: &impl Fn(usize) -> WatchCreateRequest,
    receiver: &impl Fn(usize) -> R,
) -> Result<Vec<Stream<R>>> {
    let mut opening = JoinSet::new();
    for connection in (thread..watchers.connections).step_by(watchers.threads) {
        let live = plan.open_first(connection).await?;
        let head = plan.head(&live, WATCH_PATH)?;
        for number in (connection..watchers.streams).step_by(watchers.connections) {
            let count = watchers_of(number, watchers);
            let creates = (0..count).map(|index| {
                let create = create(watcher(number, index, watchers.streams));
                // Ids of our choice, so that an id is a place in a list. Zero would let the server choose.
                let create = WatchCreateRequest { watch_id: index as i64 + 1, ..create };
                frame(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
            });
            let creates = batches(creates);
            opening.spawn(Stream::open(
                live.clone(),
                head.clone(),
                number,
                count,
                creates,
                receiver(number),
                shared.clone(),
            ));
        }
    }
    let mut streams = Vec::new();
    while let Some(opened) = opening.join_next().await {
        let opened = opened.expect("opening a stream does not panic");
        streams.push(opened.map_err(|why| Failure::new(Exit::Error, format!("open a watch: {why}")))?);
    }
    Ok(streams)
}

/// Frames put together for sending.
pub fn batches(frames: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let mut batches = vec![BytesMut::new()];
    for frame in frames {
        if batches.last().is_some_and(|last| last.len() + frame.len() > CREATE_BATCH_BYTES) {
            batches.push(BytesMut::new());
        }
        batches.last_mut().expect("there is one").extend_from_slice(&frame);
    }
    batches.into_iter().map(BytesMut::freeze).collect()
}

/// One watch stream.
struct Stream<R> {
    number: usize,
    watchers: usize,
    /// Dropping it would end the call.
    requests: Requests,
    answers: Answers,
    messages: Messages,
    receiver: R,
}

impl<R: Receiver> Stream<R> {
    async fn open(
        connection: Connection,
        head: Head,
        number: usize,
        watchers: usize,
        creates: Vec<Bytes>,
        receiver: R,
        shared: Arc<Shared>,
    ) -> Result<Stream<R>, String> {
        let (requests, answers) = connection.bidi(&head).await.map_err(|error| describe(&error))?;
        let mut stream =
            Stream { number, watchers, requests, answers, messages: Messages::default(), receiver };
        let mut created = 0;
        let Stream { requests, answers, messages, receiver, .. } = &mut stream;
        let send = async {
            for batch in creates {
                requests.send(batch).await.map_err(|error| describe(&error))?;
            }
            Ok(())
        };
        let receive = async {
            while created < watchers {
                let chunk = answers.chunk().await.map_err(|error| describe(&error))?;
                let chunk = chunk.ok_or("the server ended the stream")?;
                created += take(&chunk, messages, receiver, watchers, &shared)?;
            }
            Ok::<_, String>(())
        };
        tokio::try_join!(send, receive)?;
        Ok(stream)
    }

    async fn run(mut self, shared: Arc<Shared>) -> (usize, R) {
        let mut stop = shared.stop.subscribe();
        let mut stop = pin!(stop.wait_for(|stop| *stop));
        loop {
            // Stopping is looked at first, or a stream that always has something would never end.
            let chunk = tokio::select! {
                biased;
                _ = &mut stop => break,
                chunk = self.answers.chunk() => chunk,
            };
            let taken = match chunk {
                Ok(Some(chunk)) => {
                    take(&chunk, &mut self.messages, &mut self.receiver, self.watchers, &shared).map(|_| ())
                }
                Ok(None) => Err("the server ended a watch stream".into()),
                Err(error) => Err(describe(&error)),
            };
            if let Err(text) = taken {
                shared.failed(text);
                break;
            }
        }
        shared.alive.fetch_sub(1, Ordering::Relaxed);
        drop(self.requests);
        (self.number, self.receiver)
    }
}

/// Looks at what arrived; returns how many watchers it says are created. An error ends the stream.
fn take(
    chunk: &[u8],
    messages: &mut Messages,
    receiver: &mut impl Receiver,
    watchers: usize,
    shared: &Shared,
) -> Result<usize, String> {
    let now = Instant::now();
    let (mut created, mut events, mut wrong) = (0, 0, None);
    let fed = messages.feed(chunk, |message| {
        let Some(reply) = Reply::read(message) else {
            wrong = Some("a watch response cannot be read".to_owned());
            return;
        };
        if let Some(why) = reply.end() {
            wrong = Some(why);
        } else if reply.created {
            created += 1;
            shared.revision.fetch_max(reply.revision as u64, Ordering::Relaxed);
        } else {
            match usize::try_from(reply.watch_id - 1).ok().filter(|index| *index < watchers) {
                None => {
                    wrong = Some(format!("an answer for watch id {}, which does not exist", reply.watch_id))
                }
                Some(index) => match receiver.receive(index, &reply, now) {
                    Ok(count) => events += count,
                    Err(why) => wrong = Some(why),
                },
            }
        }
    });
    if events > 0 {
        let nanos = u64::try_from(now.duration_since(shared.epoch).as_nanos()).unwrap_or(u64::MAX);
        shared.last_event.fetch_max(nanos, Ordering::Relaxed);
        shared.delivered.fetch_add(events, Ordering::Relaxed);
    }
    match (fed, wrong) {
        (Err(_), _) => Err("a watch stream is not made of gRPC messages".into()),
        (Ok(()), Some(why)) => Err(why),
        (Ok(()), None) => Ok(created),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_watcher_is_on_exactly_one_stream() {
        for (count, streams) in [(1, 1), (10, 3), (1000, 1000), (7, 2)] {
            let watchers = Watchers {
                count,
                streams,
                connections: 1,
                threads: 1,
                prev_kv: false,
                patience: Duration::ZERO,
            };
            let mut all: Vec<usize> = (0..streams)
                .flat_map(|stream| {
                    (0..watchers_of(stream, &watchers)).map(move |index| watcher(stream, index, streams))
                })
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn batches_hold_every_frame_once_and_in_order() {
        let frames: Vec<Bytes> = (0..5000u32).map(|n| Bytes::from(n.to_be_bytes().repeat(5))).collect();
        let batches = batches(frames.iter().cloned());
        assert!(batches.len() > 1 && batches.iter().all(|batch| batch.len() <= CREATE_BATCH_BYTES));
        assert_eq!(batches.concat(), frames.concat());
    }
}
