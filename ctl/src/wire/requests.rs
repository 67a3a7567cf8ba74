//! The sending side of a call with many requests. Not here: the answers, which are those of every call (`wire::Answers`).

use super::{CallError, broken};
use bytes::Bytes;
use h2::SendStream;
use std::future::poll_fn;

/// The requests of one call, in order. Dropped without [`Requests::finish`], it cancels the whole call: the server stops working
/// on it and the answers end with an error.
pub struct Requests {
    body: SendStream<Bytes>,
    /// What the last `send` could not yet hand over because its future was dropped half way: frames must stay whole.
    rest: Bytes,
    finished: bool,
}

impl Requests {
    pub(super) fn new(body: SendStream<Bytes>) -> Self {
        Requests { body, rest: Bytes::new(), finished: false }
    }

    /// Sends one framed request, or several in one buffer. Waits while the server takes no more, so at most one buffer is kept
    /// here. A future that is dropped before its end leaves the rest to the next `send`.
    pub async fn send(&mut self, framed: Bytes) -> Result<(), CallError> {
        self.flush().await?;
        self.rest = framed;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), CallError> {
        while !self.rest.is_empty() {
            self.body.reserve_capacity(self.rest.len());
            // Capacity that is there already is not announced again.
            let capacity = match self.body.capacity() {
                0 => poll_fn(|cx| self.body.poll_capacity(cx)).await.ok_or_else(closed)?.map_err(broken)?,
                capacity => capacity,
            };
            let part = self.rest.split_to(capacity.min(self.rest.len()));
            if !part.is_empty() {
                self.body.send_data(part, false).map_err(broken)?;
            }
        }
        Ok(())
    }

    /// No more requests; the answers go on until the server ends them.
    #[cfg_attr(not(test), allow(dead_code, reason = "every verb so far ends with its connection"))]
    pub fn finish(mut self) {
        self.finished = true;
        // A call that is over already needs no end.
        let _ = self.body.send_data(std::mem::take(&mut self.rest), true);
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if !self.finished {
            self.body.send_reset(h2::Reason::CANCEL);
        }
    }
}

fn closed() -> CallError {
    CallError::Broken { why: "the call is over".into(), sent: true }
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::Endpoint;
    use super::super::{Answers, Dialer, FRAME_HEAD_BYTES, Status};
    use super::*;
    use h2::server::SendResponse;
    use http::{HeaderMap, HeaderValue, Request, Response};
    use tokio::net::TcpListener;

    const WINDOW_BYTES: u32 = 100;

    /// Opens a call to a server that does `serve` with it. The server's window for one call is [`WINDOW_BYTES`].
    async fn call<F>(
        serve: impl FnOnce(Request<h2::RecvStream>, SendResponse<Bytes>) -> F,
    ) -> (Requests, Answers, tokio::task::JoinHandle<F::Output>)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&listener.local_addr().unwrap().to_string(), false).unwrap();
        let (tell, accepted) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (io, _) = listener.accept().await.unwrap();
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.initial_window_size(WINDOW_BYTES).handshake::<_, Bytes>(io).await.unwrap();
            let call = connection.accept().await.unwrap().unwrap();
            assert!(tell.send(call).is_ok(), "the test waits for the call");
            while connection.accept().await.is_some() {}
        });
        let connection = Dialer::new(None, 1 << 20).open(&endpoint).await.unwrap();
        let head = connection.head("/a/B", None, None).unwrap();
        let (requests, answers) = connection.bidi(&head).await.unwrap();
        let (request, reply) = accepted.await.unwrap();
        (requests, answers, tokio::spawn(serve(request, reply)))
    }

    fn framed(message: &[u8]) -> Bytes {
        let mut out = vec![0];
        out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        out.extend_from_slice(message);
        out.into()
    }

    async fn read(body: &mut h2::RecvStream, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let chunk = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            all.extend_from_slice(&chunk);
        }
        all
    }

    async fn ended(body: &mut h2::RecvStream) {
        while let Some(chunk) = body.data().await {
            assert_eq!(chunk.unwrap(), "", "only the end was left");
        }
    }

    #[tokio::test]
    async fn requests_are_sent_before_the_server_says_anything() {
        let (mut requests, mut answers, server) = call(|request, mut reply| async move {
            let mut body = request.into_body();
            let first = read(&mut body, FRAME_HEAD_BYTES + 3).await;
            let mut out = reply.send_response(Response::new(()), false).unwrap();
            out.send_data(first.into(), false).unwrap();
            let second = read(&mut body, FRAME_HEAD_BYTES + 3).await;
            out.send_data(second.into(), false).unwrap();
            ended(&mut body).await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            out.send_trailers(trailers).unwrap();
        })
        .await;
        requests.send(framed(b"one")).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap(), "one");
        requests.send(framed(b"two")).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap(), "two");
        requests.finish();
        assert_eq!(answers.next().await, Ok(None));
        assert_eq!(answers.next().await, Ok(None));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_takes_no_more_holds_the_sender_back() {
        let len = 10 * WINDOW_BYTES as usize;
        let (tell, full) = tokio::sync::oneshot::channel();
        let (go_on, told) = tokio::sync::oneshot::channel::<()>();
        let (mut requests, _answers, server) = call(move |request, _reply| async move {
            let mut body = request.into_body();
            let mut all = Vec::new();
            while all.len() < WINDOW_BYTES as usize {
                all.extend_from_slice(&body.data().await.unwrap().unwrap());
            }
            tell.send(()).unwrap();
            told.await.unwrap();
            body.flow_control().release_capacity(all.len()).unwrap();
            all.extend(read(&mut body, FRAME_HEAD_BYTES + len - all.len()).await);
            all
        })
        .await;
        let message = framed(&vec![7; len]);
        {
            let send = requests.send(message.clone());
            tokio::pin!(send);
            tokio::select! {
                biased;
                _ = &mut send => panic!("sent all although the server took a part"),
                told = full => told.unwrap(),
            }
            // The half-sent future goes; the message must become whole all the same.
        }
        go_on.send(()).unwrap();
        requests.send(Bytes::new()).await.unwrap();
        assert_eq!(server.await.unwrap(), message);
    }

    #[tokio::test]
    async fn requests_that_are_dropped_cancel_the_call() {
        let (requests, mut answers, server) = call(|request, _reply| async move {
            let mut body = request.into_body();
            body.data().await.unwrap().unwrap_err().reason()
        })
        .await;
        drop(requests);
        assert!(matches!(answers.next().await, Err(CallError::Broken { .. })));
        assert_eq!(server.await.unwrap(), Some(h2::Reason::CANCEL));
    }

    #[tokio::test]
    async fn answers_that_are_dropped_after_the_last_request_cancel_the_call() {
        let (requests, answers, server) =
            call(|_request, mut reply| async move { poll_fn(|cx| reply.poll_reset(cx)).await.unwrap() })
                .await;
        requests.finish();
        drop(answers);
        assert_eq!(server.await.unwrap(), h2::Reason::CANCEL);
    }

    #[tokio::test]
    async fn a_refusal_in_the_head_is_the_first_answer() {
        let (_requests, mut answers, server) = call(|_request, mut reply| async move {
            let head = Response::builder().header("grpc-status", 7).header("grpc-message", "no%21");
            reply.send_response(head.body(()).unwrap(), true).unwrap();
        })
        .await;
        let refused = CallError::Status(Status { code: 7, message: "no!".into() });
        assert_eq!(answers.next().await, Err(refused));
        server.await.unwrap();
    }
}
