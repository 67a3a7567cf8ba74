//! Requests byte by byte, for what a well-behaved client would never send.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// One answer of a raw gRPC call.
pub struct Answer {
    pub http_status: u16,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
}

impl Answer {
    /// gRPC status code and text, from wherever they travelled.
    pub fn status(&self) -> (i32, String) {
        let from = if self.headers.contains_key("grpc-status") { &self.headers } else { &self.trailers };
        let text =
            |name: &str| from.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let message = text("grpc-message").replace("%20", " ").replace("%22", "\"");
        (text("grpc-status").parse().expect("every call has a status"), message)
    }
}

pub async fn grpc(address: SocketAddr, path: &str, headers: &[(&str, &str)], frame: &[u8]) -> Answer {
    grpc_pieces(address, path, headers, vec![frame.to_vec()]).await
}

/// A connection of its own and the head of a call.
async fn call<B>(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> (SendRequest<B>, JoinHandle<hyper::Result<()>>, http::request::Builder)
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request =
        Request::post(format!("http://{address}{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    (sender, connection, request)
}

pub async fn grpc_pieces(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    pieces: Vec<Vec<u8>>,
) -> Answer {
    let (mut sender, connection, request) = call(address, path, headers).await;
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from(piece))));
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    connection.abort();
    Answer { http_status: head.status.as_u16(), headers: head.headers, trailers }
}

/// A call whose request goes on.
pub struct Going {
    pub pieces: tokio::sync::mpsc::UnboundedSender<Bytes>,
    /// Pieces on their way, each a frame of its own.
    pub taken: Arc<AtomicUsize>,
    pub head: HeaderMap,
    body: hyper::body::Incoming,
    trailers: HeaderMap,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Going {
    /// Returns when the head of the answer is there.
    pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let (mut sender, connection, request) = call(address, path, headers).await;
        let (pieces, body) = tokio::sync::mpsc::unbounded_channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = taken.clone();
        let body = futures_util::stream::unfold((body, counter), |(mut body, counter)| async move {
            let piece = body.recv().await?;
            counter.fetch_add(1, SeqCst);
            Some((Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece)), (body, counter)))
        });
        let request = request.body(StreamBody::new(Box::pin(body))).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        Going { pieces, taken, head: head.headers, body, trailers: HeaderMap::new(), connection }
    }

    pub fn send(&self, piece: impl Into<Bytes>) {
        self.pieces.send(piece.into()).unwrap();
    }

    /// The next piece of the answer; None at its end, when `status` is there.
    pub async fn piece(&mut self) -> Option<Bytes> {
        loop {
            match self.body.frame().await?.unwrap().into_data() {
                Ok(piece) => return Some(piece),
                Err(frame) => self.trailers = frame.into_trailers().unwrap(),
            }
        }
    }

    /// Reads to the end.
    pub async fn status(mut self) -> (i32, String) {
        while self.piece().await.is_some() {}
        let answer = Answer { http_status: 200, headers: self.head.clone(), trailers: self.trailers.clone() };
        answer.status()
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Sends bytes and reads until the server closes.
pub async fn until_closed(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// One HTTP/1.1 request that asks to close; the whole answer as text.
pub async fn http1(address: SocketAddr, request: &str) -> String {
    String::from_utf8(until_closed(address, request.as_bytes()).await).unwrap()
}
