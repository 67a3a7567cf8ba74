//! The peer port before raft runs: only `POST /cairn/hello` is answered, so that members can find each other, and everything else is told
//! to come back later.

use std::{
    convert::Infallible,
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::{Answer, Question};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    config::HEAD_BYTES_MAX,
    link,
    server::{
        hello,
        reply::{self, ReplyBody},
    },
};

/// Connections at one time. Members ask once in a while, one connection each; the streams of members that run already are refused at once.
const CONNECTIONS_MAX: usize = 128;

/// For one whole connection, from its first byte to the end of the answer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(5);

/// Answers that are being written when the lobby closes get so long.
const CLOSING_GRACE: Duration = Duration::from_millis(200);

/// Pause after a failed accept: the usual cause is a full table of descriptors, which takes a moment to empty.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answerer = Arc<dyn Fn(Question) -> Answer + Send + Sync>;

/// A running lobby. Dropped, it closes as with [`Lobby::stop`].
pub struct Lobby {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Lobby {
    /// `listeners` are bound, and clones of the caller's own: the port stays taken when the lobby closes. `answer` is called on the
    /// lobby's one thread and should not wait.
    pub fn start(listeners: Vec<TcpListener>, answer: Answerer) -> io::Result<Lobby> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut accepting = Vec::new();
        {
            let _inside = runtime.enter();
            for listener in listeners {
                listener.set_nonblocking(true)?;
                accepting.push(tokio::net::TcpListener::from_std(listener)?);
            }
        }
        let desk =
            Desk { answer, answered: answered.clone(), places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("lobby".to_owned()).spawn(move || {
            runtime.block_on(async {
                for listener in accepting {
                    tokio::spawn(
                        stopped.child_token().run_until_cancelled_owned(serve(listener, desk.clone())),
                    );
                }
                stopped.cancelled().await;
                let all_done = desk.places.acquire_many(CONNECTIONS_MAX as u32);
                let _ = timeout(CLOSING_GRACE, all_done).await;
            });
        })?;
        Ok(Lobby { stop, answered, thread: Some(thread) })
    }

    /// Questions that were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Answers nobody any more; who connects from now on waits for the next to accept on the port. How many questions were answered in all.
    pub fn stop(mut self) -> u64 {
        self.close();
        self.answered()
    }

    fn close(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process, or the test.
            let _ = thread.join();
        }
    }
}

impl Drop for Lobby {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Clone)]
struct Desk {
    answer: Answerer,
    answered: Arc<AtomicU64>,
    places: Arc<Semaphore>,
}

async fn serve(listener: tokio::net::TcpListener, desk: Desk) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "accept on the peer port");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Past the limit the connection is closed again: better a quick no than a queue.
        let Ok(place) = desk.places.clone().try_acquire_owned() else { continue };
        let desk = desk.clone();
        tokio::spawn(async move {
            let _ = timeout(CONNECTION_TIME_MAX, connection(stream, &desk)).await;
            drop(place);
        });
    }
}

async fn connection(stream: tokio::net::TcpStream, desk: &Desk) {
    let Ok(io) = link::accepted(stream, CONNECTION_TIME_MAX) else { return };
    let service = service_fn(|request| async move { Ok::<_, Infallible>(desk.route(request).await) });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME_MAX)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "connection to the lobby ended");
    }
}

impl Desk {
    async fn route(&self, request: Request<Incoming>) -> Response<ReplyBody> {
        if request.uri().path() != hello::PATH {
            let refusal = reply::text(StatusCode::SERVICE_UNAVAILABLE, "this member is not started yet");
            return reply::closing(refusal);
        }
        match hello::question(request, CONNECTION_TIME_MAX).await {
            Ok(question) => {
                // Counted first: who was answered must never be forgotten.
                self.answered.fetch_add(1, Ordering::AcqRel);
                reply::json(&(self.answer)(question), "\n")
            }
            Err(refusal) => refusal,
        }
    }
}
