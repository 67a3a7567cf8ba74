//! Watches of a running member: the two ends of a client's stream, and the desk where apply leaves what happened. The decisions are the
//! `watch` crate's; here are its threads and queues.
//!
//! Apply tells the hub before anybody learns of the outcome, and reads of the applied position come later still: whoever learns a
//! revision may at once ask its watch for progress, and the answer waits until the hub is there.
//!
//! Not here: permissions (the edge refuses in order with [`WatchRequests::refuse`]), the wire's streams.

mod inbox;
mod threads;

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
};

use api::{error::EtcdError, etcdserverpb as pb, etcdserverpb::watch_request::RequestUnion, mvccpb::Event};
use bytes::Bytes;
use tokio::sync::oneshot;
use types::{Revision, limits};
use watch::{Door, Face, Gauges, QueueLimits, Request, Responses, StreamQueue};

use crate::{handle::Handle, shared::Shared};
use inbox::{Asked, Inbox, Told};

pub use watch::{Census, WatchClosed, WatchedRange};

/// Memory of an event beside its key and value, for the bound of what waits for the hub.
const EVENT_BYTES: usize = 200;

/// Where the hub is reached.
pub(crate) struct WatchDesk {
    inbox: Inbox,
    /// Somebody watches. Written by the hub's thread.
    wants_events: AtomicBool,
    pub(crate) gauges: Arc<Gauges>,
    streams_opened: AtomicU64,
    seed: u64,
}

impl WatchDesk {
    /// `seed` differs from start to start.
    pub(crate) fn new(seed: u64) -> WatchDesk {
        WatchDesk {
            inbox: Inbox::default(),
            wants_events: AtomicBool::new(false),
            gauges: Arc::default(),
            streams_opened: AtomicU64::new(0),
            seed,
        }
    }

    pub(crate) fn wants_events(&self) -> bool {
        self.wants_events.load(Ordering::SeqCst)
    }

    /// Apply: a batch is applied and nobody knows yet. Never waits.
    pub(crate) fn applied(&self, events: TellEvents, newest: Revision, compacted: Option<Revision>) {
        // Without watchers there is nothing to tell: the first one to come looks at the store itself, after `wants_events` is set.
        if events.revisions.is_empty() && !self.wants_events() {
            return;
        }
        self.inbox.tell(Told { revisions: events.revisions, bytes: events.bytes, newest, compacted });
    }

    /// Lets readers have what is queued and then ends their streams.
    pub(crate) fn stop(&self) {
        self.inbox.stop();
    }
}

/// Gathers the events of a batch while it is applied.
#[derive(Default)]
pub(crate) struct TellEvents {
    revisions: Vec<(Revision, Vec<Event>)>,
    bytes: usize,
}

impl TellEvents {
    pub(crate) fn add(&mut self, revision: Revision, events: Vec<Event>) {
        let kvs = events.iter().filter_map(|event| event.kv.as_ref());
        self.bytes += kvs.map(|kv| EVENT_BYTES + kv.key.len() + kv.value.len()).sum::<usize>();
        self.revisions.push((revision, events));
    }
}

/// Starts the two threads; both end after [`WatchDesk::stop`].
pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<[JoinHandle<()>; 2]> {
    let (jobs, to_read) = crossbeam_channel::bounded(1);
    let hub = crate::spawn("watch-hub", {
        let shared = shared.clone();
        move || threads::run_hub(shared, jobs)
    })?;
    let history = crate::spawn("watch-history", {
        let shared = shared.clone();
        move || threads::run_history(shared, to_read)
    })?;
    Ok([hub, history])
}

/// What a client asks on its stream. Dropping it changes nothing for the watches: a client may close its side and go on listening.
pub struct WatchRequests {
    shared: Arc<Shared>,
    queue: Arc<StreamQueue>,
}

/// What a client is told on its stream. Dropping it ends the stream and all its watches at once.
pub struct WatchResponses(Responses);

struct StreamDoor(Arc<Shared>);

impl Door for StreamDoor {
    fn drained(&self, stream: u64) {
        self.0.watch.inbox.ask(Asked::Drained(stream));
    }

    fn closed(&self, stream: u64) {
        self.0.watch.inbox.ask(Asked::Closed(stream));
    }

    fn raft_term(&self) -> u64 {
        self.0.term().0
    }
}

impl Handle {
    /// The two ends of one client stream.
    pub fn watch(&self) -> (WatchRequests, WatchResponses) {
        let shared = &self.shared;
        let desk = &shared.watch;
        let id = desk.streams_opened.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(StreamQueue::new(id, QueueLimits::default(), desk.gauges.clone()));
        desk.inbox.ask(Asked::Open(queue.clone()));
        let fragment_bytes = shared.config.max_request_bytes.saturating_add(limits::GRPC_OVERHEAD_BYTES);
        let face = Face {
            cluster: shared.config.cluster,
            member: shared.config.member,
            fragment_bytes: usize::try_from(fragment_bytes).unwrap_or(usize::MAX),
        };
        let responses = Responses::new(queue.clone(), Arc::new(StreamDoor(shared.clone())), face);
        (WatchRequests { shared: shared.clone(), queue }, WatchResponses(responses))
    }
}

impl Handle {
    /// What this member's clients watch, in slices: the first from 0, the others from where the one before says.
    ///
    /// # Errors
    /// When this member stops.
    pub async fn census(&self, from: usize) -> Result<Census, EtcdError> {
        let (told, slice) = oneshot::channel();
        self.shared.watch.inbox.ask(Asked::Census { from, told });
        slice.await.map_err(|_| EtcdError::Stopped)
    }
}

impl WatchRequests {
    /// Hands a request over. Waits while too many of this stream are not answered, or their answers not read.
    ///
    /// # Errors
    /// When the responses were dropped or this member stops.
    pub async fn send(&self, request: pb::WatchRequest) -> Result<(), WatchClosed> {
        // A message without content is of a later version; etcd ignores it.
        let Some(union) = request.request_union else { return Ok(()) };
        let (request, key_bytes) = match union {
            RequestUnion::CreateRequest(create) => {
                // What this member has kept may be another life's, or older than what it promised: it shows nothing before it is known
                // to belong.
                self.shared.sentinel.until_confirmed().await;
                let key_bytes = create.key.len() + create.range_end.len();
                (Request::Create(create), key_bytes)
            }
            RequestUnion::CancelRequest(cancel) => (Request::Cancel(cancel.watch_id), 0),
            RequestUnion::ProgressRequest(_) => (Request::Progress, 0),
        };
        self.ask(request, key_bytes).await
    }

    /// Answers a create request that must not be: created and canceled with this reason, in order with the other answers.
    ///
    /// # Errors
    /// As [`WatchRequests::send`].
    pub async fn refuse(&self, reason: String) -> Result<(), WatchClosed> {
        let bytes = reason.len();
        self.ask(Request::Refuse(reason), bytes).await
    }

    async fn ask(&self, request: Request, bytes: usize) -> Result<(), WatchClosed> {
        let weight = StreamQueue::weight(bytes);
        poll_fn(|cx| self.queue.poll_admit(cx, weight)).await?;
        self.shared.watch.inbox.ask(Asked::Request { stream: self.queue.id(), request, weight });
        Ok(())
    }
}

impl WatchResponses {
    /// A chunk of whole gRPC frames, about 32 KiB or one frame that is larger. None when this member stops.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_next(cx)
    }

    /// The next response, for users inside the process.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<pb::WatchResponse>> {
        self.0.poll_message(cx)
    }
}
