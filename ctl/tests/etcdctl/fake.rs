//! A server that gives prepared answers, so that both tools can be shown what no healthy cluster says.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What one method answers.
#[derive(Clone)]
pub enum Answer {
    Messages(Vec<Bytes>),
    /// Each request of a stream has these answers, at once; the stream ends when the client ends it.
    Each(fn(&[u8]) -> Vec<Bytes>),
    Status(i32, &'static str),
    /// The connection breaks when the request arrives.
    Hangup,
    /// Nothing, ever.
    Silence,
}

impl Answer {
    pub fn one(message: &impl Message) -> Answer {
        Answer::Messages(vec![message.encode_to_vec().into()])
    }
}

/// A running server; it ends with the value.
pub struct Fake {
    pub endpoint: String,
    /// Method of each request, in order.
    pub seen: Arc<Mutex<Vec<String>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        // Connections may be in silence; there is nothing to wait for.
        self.runtime.take().expect("there until now").shutdown_background();
    }
}

impl Fake {
    /// `answers` by method name (`Range`, `Status`, ...). A method that is not there is unimplemented.
    pub fn start(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Fake {
        Self::start_with(None, answers)
    }

    /// The same behind TLS.
    pub fn start_secure(
        tls: tokio_rustls::rustls::ServerConfig,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
    ) -> Fake {
        Self::start_with(Some(TlsAcceptor::from(Arc::new(tls))), answers)
    }

    fn start_with(
        tls: Option<TlsAcceptor>,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
    ) -> Fake {
        let answers: Arc<HashMap<&'static str, Answer>> = Arc::new(answers.into_iter().collect());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let endpoint = listener.local_addr().expect("its address").to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, record, tls) = (answers.clone(), record.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &answers, &record).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &answers, &record).await;
                            }
                        }
                    }
                });
            }
        });
        Fake { endpoint, seen, runtime: Some(runtime) }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &HashMap<&'static str, Answer>,
    record: &Mutex<Vec<String>>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, reply))) = connection.accept().await {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        record.lock().expect("nobody panics with it").push(method.clone());
        let answer = answers.get(method.as_str()).cloned();
        match answer.unwrap_or(Answer::Status(12, "unknown method")) {
            Answer::Hangup => return,
            Answer::Each(each) => drop(tokio::spawn(converse(request.into_body(), reply, each))),
            answer => drop(tokio::spawn(respond(request.into_body(), reply, answer))),
        }
    }
}

/// A stream of requests.
async fn converse(
    mut body: h2::RecvStream,
    mut reply: h2::server::SendResponse<Bytes>,
    each: fn(&[u8]) -> Vec<Bytes>,
) {
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut stream) = reply.send_response(head.body(()).expect("a response"), false) else { return };
    let mut arrived = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        arrived.extend_from_slice(&chunk);
        while let Some(len) =
            arrived.get(1..5).map(|len| u32::from_be_bytes(len.try_into().expect("four bytes")))
        {
            if arrived.len() < 5 + len as usize {
                break;
            }
            let request = arrived.split_to(5 + len as usize);
            each(&request[5..]).iter().for_each(|message| drop(stream.send_data(framed(message), false)));
        }
    }
    let _ = stream.send_trailers(success());
}

fn framed(message: &Bytes) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.extend_from_slice(message);
    frame.freeze()
}

fn success() -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    trailers
}

async fn respond(mut body: h2::RecvStream, mut reply: h2::server::SendResponse<Bytes>, answer: Answer) {
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    let head = || http::Response::builder().header("content-type", "application/grpc");
    match answer {
        Answer::Hangup | Answer::Each(_) => unreachable!("handled before"),
        Answer::Silence => std::future::pending().await,
        Answer::Status(code, text) => {
            let response =
                head().header("grpc-status", code).header("grpc-message", text).body(()).expect("a response");
            let _ = reply.send_response(response, true);
        }
        Answer::Messages(messages) => {
            let Ok(mut stream) = reply.send_response(head().body(()).expect("a response"), false) else {
                return;
            };
            for message in messages {
                let _ = stream.send_data(framed(&message), false);
            }
            let _ = stream.send_trailers(success());
        }
    }
}
