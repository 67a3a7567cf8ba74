//! gRPC over one HTTP/2 connection, as small as it can be: the verbs need a handful of calls, and the load generator must not
//! spend the processor time it is measuring. One connection carries any number of concurrent calls.
//!
//! Not here: choosing between endpoints and what a failure means for the user (`client`), and compression, which is never asked for.

pub mod endpoint;
pub mod http1;
mod requests;
pub mod tls;

pub use requests::Requests;

use bytes::{BufMut, Bytes, BytesMut};
use endpoint::{Address, Endpoint};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Bytes a server may have under way on one call before we take some. A list of 100k keys is about 30 MB; a window of this size
/// keeps the sender busy over any local network without holding such a list twice.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The same for all calls of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The gRPC frame head: one byte for compression, four for the length.
const FRAME_HEAD_BYTES: usize = 5;

/// Anything bytes flow over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A gRPC status other than OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: i32,
    pub message: String,
}

/// The status code of a member that cannot serve now.
pub const UNAVAILABLE: i32 = 14;
/// The status code of a server that ran out of the time it was given.
pub const DEADLINE_EXCEEDED: i32 = 4;
const INTERNAL: i32 = 13;

impl Status {
    /// The code's name in Go's spelling, for messages.
    pub fn name(&self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "Canceled",
            "Unknown",
            "InvalidArgument",
            "DeadlineExceeded",
            "NotFound",
            "AlreadyExists",
            "PermissionDenied",
            "ResourceExhausted",
            "FailedPrecondition",
            "Aborted",
            "OutOfRange",
            "Unimplemented",
            "Internal",
            "Unavailable",
            "DataLoss",
            "Unauthenticated",
        ];
        usize::try_from(self.code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("Unknown")
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The server answered with an error.
    Status(Status),
    /// The connection broke. `sent` says whether the request may have reached the server.
    Broken { why: String, sent: bool },
}

impl CallError {
    fn status(code: i32, message: impl Into<String>) -> Self {
        CallError::Status(Status { code, message: message.into() })
    }
}

/// How to open connections: the same for all endpoints of a command.
#[derive(Clone)]
pub struct Dialer {
    tls: Option<TlsConnector>,
    /// The same without HTTP/2, for `http1`.
    tls_http1: Option<TlsConnector>,
    receive_bytes_max: usize,
}

impl Dialer {
    /// `tls` is needed when any endpoint is secure.
    pub fn new(tls: Option<rustls::ClientConfig>, receive_bytes_max: usize) -> Self {
        let http1 = tls.clone().map(|mut config| {
            config.alpn_protocols = vec![http1::PROTOCOL.to_vec()];
            config
        });
        let connector = |config| TlsConnector::from(Arc::new(config));
        Dialer { tls: tls.map(connector), tls_http1: http1.map(connector), receive_bytes_max }
    }

    /// Connects and waits until the other side has answered a ping, so that a port somebody listens on without serving HTTP/2,
    /// or a stopped process, is found out here and not in the middle of a call. The caller bounds the wait.
    pub async fn open(&self, endpoint: &Endpoint) -> Result<Connection, String> {
        let io = self.reach(endpoint).await?;
        let io = if endpoint.secure { self.secure(endpoint, io, self.tls.as_ref()).await? } else { io };
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(|error| format!("HTTP/2 handshake: {error}"))?;
        let mut pings = connection.ping_pong().expect("a new connection has its ping handle");
        tokio::spawn(async move {
            // How it ended is told to every call that was waiting; there is nobody else to tell.
            let _ = connection.await;
        });
        pings.ping(h2::Ping::opaque()).await.map_err(|error| format!("HTTP/2 handshake: {error}"))?;
        let scheme = if endpoint.secure { "https" } else { "http" };
        Ok(Connection {
            sender,
            base: format!("{scheme}://{}", endpoint.authority()),
            pings: Arc::new(Mutex::new(Some(pings))),
            receive_bytes_max: self.receive_bytes_max,
        })
    }

    async fn reach(&self, endpoint: &Endpoint) -> Result<Box<dyn Io>, String> {
        Ok(match &endpoint.address {
            Address::Tcp(address) => {
                let stream =
                    TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
                stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                Box::new(UnixStream::connect(path).await.map_err(|error| format!("connect: {error}"))?)
            }
        })
    }

    async fn secure(
        &self,
        endpoint: &Endpoint,
        io: Box<dyn Io>,
        connector: Option<&TlsConnector>,
    ) -> Result<Box<dyn Io>, String> {
        let connector = connector.expect("a dialer for secure endpoints has its TLS settings");
        let name = rustls::pki_types::ServerName::try_from(endpoint.host().to_owned())
            .map_err(|error| format!("TLS: {error}"))?;
        let stream = connector.connect(name, io).await.map_err(|error| format!("TLS handshake: {error}"))?;
        Ok(Box::new(stream))
    }
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    base: String,
    /// Until somebody keeps an eye on the connection.
    pings: Arc<Mutex<Option<h2::PingPong>>>,
    receive_bytes_max: usize,
}

/// The head of a request, built once and cloned for each call.
#[derive(Clone)]
pub struct Head(Request<()>);

impl Head {
    /// The same with another piece of metadata.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Head {
        self.0.headers_mut().insert(name, HeaderValue::from_static(value));
        self
    }
}

impl Connection {
    /// Prepares calls of one method. `token` is sent when there is one; `timeout` tells the server how long an answer is of use.
    pub fn head(
        &self,
        path: &str,
        token: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<Head, CallError> {
        let bad = |error: http::Error| CallError::status(INTERNAL, format!("build request: {error}"));
        let mut request = Request::post(format!("{}{path}", self.base))
            .header("content-type", HeaderValue::from_static("application/grpc"))
            .header("te", HeaderValue::from_static("trailers"))
            .header("user-agent", HeaderValue::from_static(concat!("cairnctl/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = token {
            request = request.header("token", token);
        }
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", grpc_timeout(timeout));
        }
        Ok(Head(request.body(()).map_err(bad)?))
    }

    /// One request, one answer, both already framed or still unparsed.
    pub async fn unary(&self, head: &Head, framed: Bytes) -> Result<Bytes, CallError> {
        let mut answers = self.send(head, framed).await?;
        let first = answers.next().await?;
        match first {
            None => Err(CallError::status(INTERNAL, "the answer has no message")),
            Some(message) => match answers.next().await? {
                None => Ok(message),
                Some(_) => Err(CallError::status(INTERNAL, "the answer has more than one message")),
            },
        }
    }

    /// One request, any number of answers.
    pub async fn send(&self, head: &Head, framed: Bytes) -> Result<Answers, CallError> {
        let unsent = |error: h2::Error| CallError::Broken { why: error.to_string(), sent: false };
        let mut sender = self.sender.clone().ready().await.map_err(unsent)?;
        let (response, mut body) = sender.send_request(head.0.clone(), false).map_err(unsent)?;
        // A failure to send the body shows as a failure of the response too, with the better reason.
        let _ = body.send_data(framed, true);
        let mut answers = self.answers(response);
        answers.body().await?;
        Ok(answers)
    }

    /// Any number of requests and answers. Does not wait for the server: many send nothing, not even the head of the response,
    /// before their first answer, so a refusal shows in the answers.
    pub async fn bidi(&self, head: &Head) -> Result<(Requests, Answers), CallError> {
        let unsent = |error: h2::Error| CallError::Broken { why: error.to_string(), sent: false };
        let mut sender = self.sender.clone().ready().await.map_err(unsent)?;
        let (response, body) = sender.send_request(head.0.clone(), false).map_err(unsent)?;
        Ok((Requests::new(body), self.answers(response)))
    }

    /// Ends with the reason when the other side is silent: it is pinged after every `period` and must answer within `patience`.
    /// Long calls need this, since a machine that is gone says nothing. Only the first such future of a connection ever ends.
    pub fn silence(
        &self,
        period: Duration,
        patience: Duration,
    ) -> impl Future<Output = String> + Send + use<> {
        let pings = self.pings.lock().expect("nobody panics with the pings").take();
        async move {
            let Some(mut pings) = pings else { return std::future::pending().await };
            loop {
                tokio::time::sleep(period).await;
                match tokio::time::timeout(patience, pings.ping(h2::Ping::opaque())).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return format!("no sign of life within {patience:?}"),
                }
            }
        }
    }

    fn answers(&self, response: ResponseFuture) -> Answers {
        Answers {
            body: Body::Awaited(response),
            buffer: BytesMut::new(),
            bytes_max: self.receive_bytes_max,
            finished: false,
        }
    }
}

fn broken(error: h2::Error) -> CallError {
    CallError::Broken { sent: error.reason() != Some(h2::Reason::REFUSED_STREAM), why: error.to_string() }
}

/// gRPC allows eight digits; whole milliseconds reach a day, longer deadlines are cut to that.
fn grpc_timeout(timeout: Duration) -> String {
    format!("{}m", timeout.as_millis().clamp(1, 99_999_999))
}

/// A status in headers (no body follows) or trailers. Absent means that the answer goes on.
fn check(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(code) = headers.get("grpc-status") else { return Ok(()) };
    let code = code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2);
    if code == 0 {
        return Ok(());
    }
    let message =
        headers.get("grpc-message").map_or_else(String::new, |message| percent_decode(message.as_bytes()));
    Err(CallError::Status(Status { code, message }))
}

fn percent_decode(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        let byte = (text[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(byte.unwrap_or(text[i]));
        i += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the messages come from: nowhere before the head of the response is here.
enum Body {
    Awaited(ResponseFuture),
    Open(RecvStream),
}

/// The messages of an answer, one after another.
pub struct Answers {
    body: Body,
    buffer: BytesMut,
    bytes_max: usize,
    finished: bool,
}

impl Answers {
    /// The body, once the head is here and is no refusal.
    async fn body(&mut self) -> Result<&mut RecvStream, CallError> {
        if let Body::Awaited(response) = &mut self.body {
            let response = response.await.map_err(broken)?;
            if response.status() != http::StatusCode::OK {
                let why = format!("the server answered HTTP status {}", response.status());
                return Err(CallError::Broken { why, sent: false });
            }
            let (parts, body) = response.into_parts();
            // Kept before the check: a response can be awaited only once.
            self.body = Body::Open(body);
            check(&parts.headers)?;
        }
        match &mut self.body {
            Body::Open(body) => Ok(body),
            Body::Awaited(_) => unreachable!("the response was just awaited"),
        }
    }

    /// The next message, or `None` after the last one when the server reported success. A future that is dropped before its end
    /// loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            if self.finished {
                return Ok(None);
            }
            let body = self.body().await?;
            match body.data().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(broken)?;
                    // Giving the window back cannot fail for bytes that were just received on this stream.
                    let _ = body.flow_control().release_capacity(chunk.len());
                    self.buffer = if self.buffer.is_empty() {
                        BytesMut::from(chunk)
                    } else {
                        joined(std::mem::take(&mut self.buffer), &chunk)
                    };
                }
                None => {
                    let trailers = body.trailers().await.map_err(broken)?;
                    self.finished = true;
                    check(&trailers.unwrap_or_default())?;
                    if !self.buffer.is_empty() {
                        return Err(CallError::Broken {
                            why: "the answer ends in the middle of a message".into(),
                            sent: true,
                        });
                    }
                }
            }
        }
    }

    /// What arrived next, wherever messages begin and end in it, or `None` after the last of it. For readers that cut messages
    /// themselves, because they look at very many; not to be mixed with `next`.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        let body = self.body().await?;
        if let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            let _ = body.flow_control().release_capacity(chunk.len());
            return Ok(Some(chunk));
        }
        check(&body.trailers().await.map_err(broken)?.unwrap_or_default())?;
        Ok(None)
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(head) = self.buffer.get(..FRAME_HEAD_BYTES) else { return Ok(None) };
        if head[0] != 0 {
            return Err(CallError::status(INTERNAL, "the answer is compressed, which was not asked for"));
        }
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > self.bytes_max {
            return Err(CallError::status(
                8,
                format!("grpc: received message larger than max ({len} vs. {})", self.bytes_max),
            ));
        }
        if self.buffer.len() < FRAME_HEAD_BYTES + len {
            // One allocation for the whole message instead of one per doubling.
            self.buffer.reserve(FRAME_HEAD_BYTES + len - self.buffer.len());
            return Ok(None);
        }
        let message = self.buffer.split_to(FRAME_HEAD_BYTES + len).freeze().slice(FRAME_HEAD_BYTES..);
        Ok(Some(message))
    }
}

fn joined(mut buffer: BytesMut, chunk: &[u8]) -> BytesMut {
    buffer.extend_from_slice(chunk);
    buffer
}

/// A message with its frame head.
pub fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(FRAME_HEAD_BYTES + len);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("requests are far below 4 GiB"));
    message.encode(&mut out).expect("a BytesMut grows as needed");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_texts_are_percent_decoded() {
        assert_eq!(percent_decode(b"a%20b%C3%A9%zz%"), "a b\u{e9}%zz%");
    }

    #[test]
    fn a_status_is_found_in_headers_and_zero_is_no_error() {
        let mut headers = HeaderMap::new();
        assert_eq!(check(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(check(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("no%20leader"));
        assert_eq!(check(&headers), Err(CallError::status(UNAVAILABLE, "no leader")));
    }

    #[test]
    fn timeouts_fit_the_eight_digits_that_grpc_allows() {
        assert_eq!(grpc_timeout(Duration::from_secs(5)), "5000m");
        assert_eq!(grpc_timeout(Duration::from_nanos(1)), "1m");
        assert_eq!(grpc_timeout(Duration::from_secs(u64::MAX / 2)), "99999999m");
    }

    /// An address that takes a connection and greets, and then never says another word.
    async fn mute() -> Endpoint {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&listener.local_addr().unwrap().to_string(), false).unwrap();
        tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(io).await.unwrap();
            // The ping of the opening is answered; after it nobody works on the connection any more.
            let mut pings = connection.ping_pong().unwrap();
            tokio::select! {
                _ = connection.accept() => panic!("no call is made"),
                answered = pings.ping(h2::Ping::opaque()) => drop(answered.unwrap()),
            }
            std::future::pending::<()>().await;
            drop(connection);
        });
        endpoint
    }

    #[tokio::test]
    async fn a_silent_member_is_noticed() {
        let connection = Dialer::new(None, 1 << 20).open(&mute().await).await.unwrap();
        let (period, patience) = (Duration::from_millis(1), Duration::from_millis(50));
        let why = connection.silence(period, patience).await;
        assert_eq!(why, "no sign of life within 50ms");
    }
}
