//! One neighbour: its queues, its tasks, and the choice of the way a message takes to it.
//!
//! A *member* has streams in both directions, a pipeline and a prober. A *remote* is somebody we know only by its own word and can
//! merely answer: it has a pipeline.

pub(crate) mod lease;
mod outlet;
mod pipeline;
mod probe;
pub(crate) mod promote;
mod queue;
mod session;
mod snapshot;
mod stream_in;
mod stream_out;
mod urls;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Waker,
    time::Instant,
};

use api::raftpb::{Message, MessageType};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use types::MemberId;
use url::Url;

pub(crate) use session::SessionLink;
pub(crate) use snapshot::send as send_snapshot;
pub(crate) use stream_out::StreamBody;

use crate::{
    codec,
    config::PIPELINE_WORKERS,
    metrics::PeerCounters,
    wire::{Shared, Voice},
};
use lease::LeaseLinks;
use outlet::{Offered, Outlet};
use pipeline::Pipeline;
use queue::{Offer, QueueLimits};
use session::Sessions;
use urls::Urls;

/// The two streams of etcd, by what they carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    MsgApp,
    Message,
}

impl StreamKind {
    pub(crate) const ALL: [StreamKind; 2] = [StreamKind::MsgApp, StreamKind::Message];

    /// As in the path of the request.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StreamKind::MsgApp => "msgapp",
            StreamKind::Message => "message",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Member,
    Remote,
}

pub(crate) struct Peer {
    pub(crate) id: MemberId,
    pub(crate) standing: Standing,
    pub(crate) urls: Urls,
    pub(crate) counters: PeerCounters,
    pub(crate) voice: Voice,
    pub(crate) sessions: Sessions,
    outlets: [Outlet; 2],
    pipeline: Pipeline,
    leases: LeaseLinks,
    links: Mutex<Links>,
    stop: CancellationToken,
    sending_snapshot: AtomicBool,
}

/// Streams on which we hear the peer.
#[derive(Default)]
struct Links {
    up: usize,
    since: Option<Instant>,
}

/// What became of one message.
pub(crate) enum Sent {
    Queued(Option<Waker>),
    /// Dropped; to be reported.
    Lost,
    /// Dropped, and already reported in this burst.
    LostAgain,
}

impl Peer {
    /// Creates the peer and starts its tasks.
    pub(crate) fn start(shared: &Arc<Shared>, id: MemberId, standing: Standing, urls: Vec<Url>) -> Arc<Peer> {
        let limits = QueueLimits {
            messages: shared.limits.stream_queue_messages_max,
            bytes: shared.limits.stream_queue_bytes_max,
        };
        let peer = Arc::new(Peer {
            id,
            standing,
            urls: Urls::new(urls),
            counters: PeerCounters::new(),
            voice: Voice::default(),
            sessions: Sessions::default(),
            outlets: [Outlet::new(limits), Outlet::new(limits)],
            pipeline: Pipeline::new(),
            leases: LeaseLinks::new(),
            links: Mutex::default(),
            stop: shared.stop.child_token(),
            sending_snapshot: AtomicBool::new(false),
        });
        for _ in 0..PIPELINE_WORKERS {
            peer.spawn(shared, pipeline::work(shared.clone(), peer.clone()));
        }
        if standing == Standing::Member {
            for kind in StreamKind::ALL {
                peer.spawn(shared, stream_in::read(shared.clone(), peer.clone(), kind));
            }
            peer.spawn(shared, probe::probe(shared.clone(), peer.clone()));
            peer.spawn(shared, session::watch(peer.clone()));
        }
        peer
    }

    fn spawn(self: &Arc<Self>, shared: &Shared, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        shared.spawn(async move { stop.run_until_cancelled(work).await.unwrap_or(()) });
    }

    /// Ends all tasks and streams of this peer.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.outlets.iter().for_each(Outlet::close);
        self.pipeline.clear();
    }

    fn outlet(&self, kind: StreamKind) -> &Outlet {
        &self.outlets[kind as usize]
    }

    /// Puts a message on its way: appends on their stream; everything else, and appends without a stream, on the message stream, where
    /// what is urgent overtakes them; without streams one by one.
    pub(crate) fn send(&self, message: Message) -> Sent {
        let mut message = message;
        let append = codec::kind(&message) == Some(MessageType::MsgApp);
        let ways = if append { StreamKind::ALL.as_slice() } else { &[StreamKind::Message] };
        for way in ways {
            match self.outlet(*way).offer(message) {
                Offered::Taken(waker) => return Sent::Queued(waker),
                Offered::Dropped { first } => return self.lost(first),
                Offered::Detached(back) => message = back,
            }
        }
        match self.pipeline.offer(message) {
            Offer::Taken => Sent::Queued(None),
            Offer::Dropped { first } => self.lost(first),
        }
    }

    fn lost(&self, first: bool) -> Sent {
        self.counters.sent_failures.fetch_add(1, Relaxed);
        if first { Sent::Lost } else { Sent::LostAgain }
    }

    /// Answers the peer's request for a stream.
    pub(crate) fn attach(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        kind: StreamKind,
        session: Option<SessionLink>,
    ) -> Option<StreamBody> {
        StreamBody::attach(shared.clone(), self.clone(), kind, session)
    }

    pub(crate) fn has_stream_out(&self, kind: StreamKind) -> bool {
        self.outlet(kind).is_attached()
    }

    fn link_up(self: &Arc<Self>) -> LinkUp {
        let mut links = self.links.lock();
        links.up += 1;
        links.since.get_or_insert_with(Instant::now);
        LinkUp(self.clone())
    }

    /// Since when we have been hearing the peer without a break.
    pub(crate) fn active_since(&self) -> Option<Instant> {
        self.links.lock().since
    }
}

/// A stream on which the peer is heard, while it lasts.
struct LinkUp(Arc<Peer>);

impl Drop for LinkUp {
    fn drop(&mut self) {
        let mut links = self.0.links.lock();
        links.up -= 1;
        if links.up == 0 {
            links.since = None;
            self.0.counters.disconnects.fetch_add(1, Relaxed);
        }
    }
}
