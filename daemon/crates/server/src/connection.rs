//! One connection from accept to close, and the loop that accepts them.
//!
//! Everything a stranger can hold open is bounded: the number of connections, the time until the first bytes and each HTTP/1.1
//! head arrive, the size of heads, the data in flight. What a peer gets wrong closes its connection and nothing else.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use ::http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
};
use tracing::{debug, warn};

use crate::{
    backend::Backend,
    body::Body,
    config::ServerConfig,
    edge::{Edge, Surface},
    grpc::{self, wire},
    http,
    sniff::{PREFACE, Protocol, sniff},
};

/// Data one stream may send before it is read: a whole request of the default size limit minus what is small change, so that a
/// large put takes one round trip, not one for every 64 KiB of the protocol's default.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Data all streams of a connection may send before it is read. A client multiplexes hundreds of calls; eight large ones may be in
/// flight without waiting for each other. HTTP/2 closes a connection when small frames that nobody read take up half of this at 256
/// bytes each, some 18,000 of them: a client that creates ten thousand watches in one breath is none to lose its connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// HTTP/2 frame size we take. 16 KiB is the protocol's default; twice that saves frames on large values without letting one
/// stream block the others for long.
const FRAME_BYTES_MAX: u32 = 32 * 1024;

/// Head of one request, HTTP/2 or HTTP/1.1. The largest honest content is a token of a few KiB.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Answer bytes of one stream that wait for the network. Hyper's default; an answer larger than this is sent as the client reads.
const SEND_BUFFER_BYTES: usize = 400 * 1024;

/// Streams that a client opened and reset before we looked, on one connection. Hyper's 20 guards against rapid resets, but a client
/// that cancels a few hundred calls at once, as a controller does on shutdown, is no attack and must not lose its connection.
const RESET_UNSEEN_MAX: usize = 1024;

/// Kernel probes find peers that vanished without a word while nothing is being sent. HTTP/2 has its own, two hours by default:
/// this is for HTTP/1.1 and for freeing descriptors sooner. Go's listeners use 15 s.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Pause after accept failed for want of descriptors or memory: trying at once again would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A state that repeats with each connection is logged once in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How hyper is to speak; one per runtime.
pub(crate) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    first_bytes_timeout: Duration,
}

impl Protocols {
    pub fn new(config: &ServerConfig) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_read_timeout)
            .max_header_size(HEAD_BYTES_MAX as usize)
            .max_buf_size(HEAD_BYTES_MAX as usize);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
            .max_concurrent_streams(config.streams_max)
            .keep_alive_interval((!config.keepalive_interval.is_zero()).then_some(config.keepalive_interval))
            .keep_alive_timeout(config.keepalive_timeout)
            .auto_date_header(false);
        Protocols { http1, http2, first_bytes_timeout: config.first_bytes_timeout }
    }
}

/// Connections that are open over all runtimes, and how many may be.
pub(crate) struct Seats {
    taken: AtomicUsize,
    max: usize,
}

impl Seats {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Seats { taken: AtomicUsize::new(0), max })
    }

    fn take(self: &Arc<Self>) -> Option<Seat> {
        let took = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < self.max).then_some(taken + 1)
        });
        took.ok().map(|_| Seat { seats: self.clone() })
    }
}

struct Seat {
    seats: Arc<Seats>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one runtime, so that all can be asked to finish. Locked when one opens or closes, by that runtime alone.
#[derive(Default)]
pub(crate) struct Open {
    table: Mutex<Table>,
    emptied: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    closers: HashMap<u64, oneshot::Sender<()>>,
    closing: bool,
}

impl Open {
    fn enter(self: &Arc<Self>) -> (Entry, oneshot::Receiver<()>) {
        let (closer, close) = oneshot::channel();
        let mut table = self.table.lock();
        let id = table.next;
        table.next += 1;
        if table.closing {
            // Accepted in the last moment: it is told at once.
            drop(closer);
            table.closers.insert(id, oneshot::channel().0);
        } else {
            table.closers.insert(id, closer);
        }
        (Entry { open: self.clone(), id }, close)
    }

    /// Asks every connection to finish what it is doing and close.
    pub fn close_all(&self) {
        let mut table = self.table.lock();
        table.closing = true;
        for closer in table.closers.values_mut() {
            // Dropping the sender is the signal; the entry stays until the connection is gone.
            *closer = oneshot::channel().0;
        }
    }

    pub fn count(&self) -> usize {
        self.table.lock().closers.len()
    }

    /// Waits until none is open.
    pub async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

struct Entry {
    open: Arc<Open>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.open.table.lock();
        table.closers.remove(&self.id);
        if table.closers.is_empty() {
            self.open.emptied.notify_one();
        }
    }
}

/// What every connection of a listener gets.
pub(crate) struct Acceptor<B> {
    pub edge: Arc<Edge<B>>,
    pub surface: Surface,
    pub protocols: Arc<Protocols>,
    pub seats: Arc<Seats>,
    pub open: Arc<Open>,
}

impl<B: Backend> Acceptor<B> {
    /// Accepts until it is dropped.
    pub async fn run(self, listener: TcpListener) {
        let mut full = Every::new(WARN_EVERY);
        let mut failed = Every::new(WARN_EVERY);
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The peer was gone before we came; others wait.
                Err(error) if is_about_the_peer(&error) => continue,
                Err(error) => {
                    if failed.now() {
                        warn!(%error, "accept a client connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(seat) = self.seats.take() else {
                if full.now() {
                    warn!(max = self.seats.max, %peer, "client connection refused: as many are open as the descriptor limit allows");
                }
                refuse(&stream);
                continue;
            };
            // Answers are written whole; waiting for more to send only adds latency.
            let _ = stream.set_nodelay(true);
            let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE));
            let (entry, close) = self.open.enter();
            let connection =
                serve(stream, peer, self.edge.clone(), self.surface, self.protocols.clone(), close);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!(%peer, error, "client connection ended");
                }
                drop((entry, seat));
            });
        }
    }
}

fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve<B: Backend>(
    stream: TcpStream,
    peer: SocketAddr,
    edge: Arc<Edge<B>>,
    surface: Surface,
    protocols: Arc<Protocols>,
    mut close: oneshot::Receiver<()>,
) -> Result<(), Failure> {
    let sniffed = tokio::select! {
        biased;
        sniffed = tokio::time::timeout(protocols.first_bytes_timeout, sniff(stream)) => sniffed?,
        // Nothing was asked yet, so nothing is cut off.
        _ = &mut close => return Ok(()),
    };
    let Some((protocol, io)) = sniffed? else { return Ok(()) };
    let service = service_fn(move |request: Request<Incoming>| answer(edge.clone(), surface, peer, request));
    match protocol {
        Protocol::Http2 => {
            let connection = protocols.http2.serve_connection(io, service);
            until_closed(pin!(connection), close, |connection| connection.graceful_shutdown()).await?;
        }
        Protocol::Http1 => {
            let connection = protocols.http1.serve_connection(io, service);
            until_closed(pin!(connection), close, |connection| connection.graceful_shutdown()).await?;
        }
    }
    Ok(())
}

/// Drives a connection to its end, and once, when told to close, tells it to finish.
async fn until_closed<C: Future>(
    mut connection: Pin<&mut C>,
    close: oneshot::Receiver<()>,
    finish: impl Fn(Pin<&mut C>),
) -> C::Output {
    let mut close = Some(close);
    poll_fn(|cx| {
        if let Poll::Ready(output) = connection.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        if let Some(signal) = &mut close
            && Pin::new(signal).poll(cx).is_ready()
        {
            close = None;
            finish(connection.as_mut());
            return connection.as_mut().poll(cx);
        }
        Poll::Pending
    })
    .await
}

/// Boxed, because its place in the stream's task stays taken as long as the stream: a watch would carry the size of the largest call
/// through its whole life, and a small task costs a call no more than the box.
struct Answer(Pin<Box<dyn Future<Output = Answered> + Send>>);

type Answered = Result<::http::Response<Body>, Infallible>;

impl Future for Answer {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        self.0.as_mut().poll(cx)
    }
}

fn answer<B: Backend>(
    edge: Arc<Edge<B>>,
    surface: Surface,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Answer {
    let offers_grpc = matches!(surface, Surface::Client | Surface::ClientGrpc);
    if offers_grpc && request.version() == ::http::Version::HTTP_2 && wire::is_grpc(request.headers()) {
        Answer(Box::pin(grpc::serve(edge, request)))
    } else {
        request.extensions_mut().insert(http::Peer(peer));
        Answer(Box::pin(async move { Ok(http::serve(edge, surface, request).await) }))
    }
}

/// Tells a client why it is turned away, in its own protocol if its first bytes are here already, without waiting for it.
fn refuse(stream: &TcpStream) {
    const HTTP1: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\nretry-after: 1\r\nconnection: close\r\n\r\ntoo many connections\n";
    /// An empty SETTINGS frame, then GOAWAY: last stream 0, ENHANCE_YOUR_CALM.
    const HTTP2: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
    let mut first = [0; PREFACE.len()];
    let read = stream.try_read(&mut first).unwrap_or(0);
    let is_http1 = read > 0 && first[..read] != PREFACE[..read];
    let _ = stream.try_write(if is_http1 { HTTP1 } else { HTTP2 });
}

/// True at most once in a period.
struct Every {
    period: Duration,
    last: Option<Instant>,
}

impl Every {
    fn new(period: Duration) -> Self {
        Every { period, last: None }
    }

    fn now(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= self.period);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}
