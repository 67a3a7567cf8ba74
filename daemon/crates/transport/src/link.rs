//! One connection: how it is made, tuned and bounded in time, and one HTTP/1.1 exchange on it. TLS will be added in [`connect`] and
//! [`accepted`] and nowhere else.

use std::{
    error::Error,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header::HOST};
use http_body::Body;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout},
};
use url::{Host, Url};

/// As in etcd; the streams' own heartbeats find a dead peer much earlier.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Bytes the kernel may hold unsent on a stream before it stops asking for more: what waits there cannot be overtaken.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Read buffer of a connection that we dialled. Large appends arrive in few reads, and entry data are slices of it.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// A TCP connection whose writes fail when the other end takes nothing for `write_deadline`.
pub(crate) struct Io {
    stream: TcpStream,
    write_deadline: Duration,
    /// Runs while a write is pending.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Io {
    fn new(stream: TcpStream, write_deadline: Duration) -> io::Result<Io> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // These make a dead link known earlier; without them everything still works.
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
        #[cfg(target_os = "linux")]
        {
            let _ = socket.set_tcp_user_timeout(Some(write_deadline));
            let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
        }
        Ok(Io { stream, write_deadline, stalled: None })
    }

    /// Turns a write that has been pending too long into an error.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let deadline = self.write_deadline;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + deadline)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "peer takes no bytes")))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection that somebody made to us.
pub(crate) fn accepted(stream: TcpStream, write_deadline: Duration) -> io::Result<Io> {
    Io::new(stream, write_deadline)
}

/// Connects to a peer URL; resolution and connect together take at most `dial`.
pub(crate) async fn connect(url: &Url, dial: Duration, write_deadline: Duration) -> io::Result<Io> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    if url.scheme() != "http" {
        return Err(invalid(format!("scheme {} is not supported", url.scheme())));
    }
    let port = url.port_or_known_default().ok_or_else(|| invalid("no port".into()))?;
    let attempt = async {
        match url.host() {
            Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await,
            Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await,
            Some(Host::Domain(name)) => TcpStream::connect((name, port)).await,
            None => Err(invalid("no host".into())),
        }
    };
    let stream = timeout(dial, attempt)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connect timed out"))??;
    Io::new(stream, write_deadline)
}

/// What a client connection may fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl LinkError {
    /// With its causes: hyper's errors keep the interesting part in the source.
    pub(crate) fn story(&self) -> String {
        let mut text = self.to_string();
        let mut source = match self {
            LinkError::Http(error) => error.source(),
            _ => None,
        };
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

/// A connection to a peer with the machinery of HTTP, driven by whoever waits on it: no task of its own, nothing to leak.
pub(crate) struct HttpLink<B> {
    sender: http1::SendRequest<B>,
    machine: Machine,
    host: String,
}

impl<B> HttpLink<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) async fn open(url: &Url, dial: Duration, write_deadline: Duration) -> Result<Self, LinkError> {
        let io = connect(url, dial, write_deadline).await.map_err(LinkError::Connect)?;
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(READ_BUFFER_BYTES)
            .handshake(TokioIo::new(io))
            .await?;
        let machine = Machine {
            connection: Some(Box::pin(async move {
                // Its error also reaches whoever waits for the answer.
                let _ = connection.await;
            })),
        };
        Ok(HttpLink { sender, machine, host: host_of(url) })
    }

    /// One exchange, up to the head of the answer.
    pub(crate) async fn request(&mut self, mut request: Request<B>) -> Result<Response<Incoming>, LinkError> {
        if let Ok(host) = self.host.parse() {
            request.headers_mut().insert(HOST, host);
        }
        let HttpLink { sender, machine, .. } = self;
        machine
            .drive(async {
                sender.ready().await?;
                sender.send_request(request).await
            })
            .await
            .map_err(LinkError::Http)
    }

    /// Waits for anything of this connection (a body, say) while moving its bytes.
    pub(crate) async fn drive<F: Future>(&mut self, work: F) -> F::Output {
        self.machine.drive(work).await
    }

    /// The body of an answer, up to `limit` bytes; the rest is not read.
    pub(crate) async fn collect(
        &mut self,
        mut body: Incoming,
        limit: usize,
    ) -> Result<(Vec<u8>, bool), LinkError> {
        use http_body_util::BodyExt;
        let mut bytes = Vec::new();
        while let Some(frame) = self.machine.drive(body.frame()).await {
            if let Ok(data) = frame?.into_data() {
                let room = limit - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    return Ok((bytes, false));
                }
            }
        }
        Ok((bytes, true))
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

struct Machine {
    connection: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Machine {
    async fn drive<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            if let Some(connection) = &mut self.connection
                && connection.as_mut().poll(cx).is_ready()
            {
                self.connection = None;
            }
            // What the connection did just now may be what the work waits for.
            work.as_mut().poll(cx)
        })
        .await
    }
}
