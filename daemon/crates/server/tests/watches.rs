//! Watch streams at the edge, over a member that remembers who watches what.

mod support;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use api::{
    error::EtcdError,
    etcdserverpb::{self as pb, watch_client::WatchClient, watch_request::RequestUnion},
};
use bytes::Bytes;
use prost::Message;
use server::{Drained, ServerConfig};
use support::{
    PATIENCE, Up, assert_refused, channel, config, endless::frame, kv, put, raw::Going, raw::http1, until,
    up, up_with,
};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

const PATH: &str = "/etcdserverpb.Watch/Watch";

fn asks(request: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(request) }
}

fn create(key: impl Into<Bytes>) -> pb::WatchRequest {
    asks(RequestUnion::CreateRequest(pb::WatchCreateRequest { key: key.into(), ..Default::default() }))
}

fn create_prefix(key: &'static str, range_end: &'static str) -> pb::WatchRequest {
    asks(RequestUnion::CreateRequest(pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    }))
}

fn cancel(watch_id: i64) -> pb::WatchRequest {
    asks(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }))
}

fn progress() -> pb::WatchRequest {
    asks(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
}

struct Watching {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn open(channel: Channel, metadata: &[(&'static str, &str)]) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let answers = WatchClient::new(channel).watch(request).await?.into_inner();
        Ok(Watching { requests, answers })
    }

    fn send(&self, request: pb::WatchRequest) {
        self.requests.send(request).unwrap();
    }

    async fn try_next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("an answer")
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.try_next().await.unwrap().expect("the stream goes on")
    }

    /// Creates a watch and waits until it stands.
    async fn watches(&mut self, key: impl Into<Bytes>) -> i64 {
        self.send(create(key));
        let created = self.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        created.watch_id
    }

    /// Keys of the next answer.
    async fn keys(&mut self) -> Vec<Bytes> {
        let answer = self.next().await;
        answer.events.into_iter().map(|event| event.kv.unwrap().key).collect()
    }
}

async fn watching(up: &Up) -> Watching {
    Watching::open(channel(up.address).await, &[]).await.unwrap()
}

#[tokio::test]
async fn created_then_events_then_cancelled() {
    let up = up();
    let mut kv = kv(up.address).await;
    let mut stream = watching(&up).await;
    assert_eq!(stream.watches("a").await, 0);
    stream.send(create_prefix("b", "c"));
    assert_eq!(stream.next().await.watch_id, 1);
    for key in ["a", "b1", "z", "b2"] {
        kv.put(put(key, "1")).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let answer = stream.next().await;
        let key = answer.events[0].kv.as_ref().unwrap().key.clone();
        seen.push((answer.watch_id, String::from_utf8(key.to_vec()).unwrap()));
    }
    assert_eq!(seen, [(0, "a".to_owned()), (1, "b1".to_owned()), (1, "b2".to_owned())]);
    stream.send(progress());
    assert_eq!(stream.next().await.watch_id, -1);
    stream.send(cancel(7));
    stream.send(cancel(1));
    let cancelled = stream.next().await;
    assert_eq!((cancelled.watch_id, cancelled.canceled), (1, true), "an unknown watch is not answered");
    kv.put(put("b3", "1")).await.unwrap();
    kv.put(put("a", "2")).await.unwrap();
    assert_eq!(stream.keys().await, ["a"]);
}

#[tokio::test]
async fn the_answer_begins_before_anything_is_asked() {
    let up = up();
    let mut stream = timeout(PATIENCE, Going::open(up.address, PATH, &[])).await.expect("a head");
    assert_eq!(stream.head["content-type"], "application/grpc");
    stream.send(frame(&create("a")));
    assert!(stream.piece().await.is_some());
}

#[tokio::test]
async fn a_client_that_is_done_asking_goes_on_listening() {
    let up = up();
    let mut stream = watching(&up).await;
    stream.watches("a").await;
    let Watching { requests, answers } = stream;
    drop(requests);
    // Its asking half is over at the member, too, before anything happens.
    until("one half is left", || up.fake.inner.endless.open_halves() == 1).await;
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    let mut stream = Watching { requests: mpsc::unbounded_channel().0, answers };
    assert_eq!(stream.keys().await, ["a"]);
}

#[tokio::test]
async fn cancel_frees_at_once() {
    let up = up();
    let channel = channel(up.address).await;
    let mut stream = Watching::open(channel.clone(), &[]).await.unwrap();
    stream.watches("a").await;
    let mut other = Watching::open(channel, &[]).await.unwrap();
    other.watches("a").await;
    assert_eq!(up.fake.inner.endless.open_streams(), 2);
    drop(stream);
    until("the stream is gone without an event", || up.fake.inner.endless.open_streams() == 1).await;
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    assert_eq!(other.keys().await, ["a"], "the other stream of the connection goes on");
}

#[tokio::test]
async fn stream_end_leaves_no_task() {
    let up = up();
    let endless = &up.fake.inner.endless;
    // The client leaves, with the hub busy and without.
    for busy in [false, true] {
        let mut stream = watching(&up).await;
        stream.watches("a").await;
        endless.hub_busy.store(busy, SeqCst);
        stream.send(create("b"));
        drop(stream);
        until("everything of the stream is gone", || endless.open_halves() == 0).await;
        endless.hub_busy.store(false, SeqCst);
    }
    // Its connection breaks.
    let stream = Going::open(up.address, PATH, &[]).await;
    stream.send(frame(&create("a")));
    drop(stream);
    until("everything of the stream is gone", || endless.open_halves() == 0).await;
    // It says something wrong.
    let stream = Going::open(up.address, PATH, &[]).await;
    stream.send(&[1, 0, 0, 0, 0][..]);
    stream.status().await;
    until("everything of the stream is gone", || endless.open_halves() == 0).await;
    // The member stops.
    let mut stream = watching(&up).await;
    stream.watches("a").await;
    endless.stop();
    assert_refused(stream.try_next().await, EtcdError::Stopped);
    until("everything of the stream is gone", || endless.open_halves() == 0).await;
}

#[tokio::test]
async fn requests_that_ask_nothing_are_ignored() {
    let up = up();
    let mut stream = watching(&up).await;
    stream.send(pb::WatchRequest { request_union: None });
    assert_eq!(stream.watches("a").await, 0);
}

#[tokio::test]
async fn an_empty_key_is_a_zero_byte() {
    let up = up();
    up.fake.inner.endless.forbidden.lock().insert("\0".into(), EtcdError::PermissionDenied);
    let mut stream = watching(&up).await;
    stream.send(create(""));
    assert!(stream.next().await.canceled, "permission is asked for the key that is watched");
}

#[tokio::test]
async fn a_refused_watch_leaves_the_stream_alive() {
    let up = up();
    let forbidden = [("denied", EtcdError::PermissionDenied), ("token", EtcdError::InvalidAuthToken)];
    up.fake.inner.endless.forbidden.lock().extend(forbidden.map(|(key, error)| (key.into(), error)));
    let mut stream =
        Watching::open(channel(up.address).await, &[("authorization", "http"), ("token", "grpc")])
            .await
            .unwrap();
    for key in ["a", "denied", "token", "b"] {
        stream.send(create(key));
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let answer = stream.next().await;
        assert!(answer.created);
        answers.push((answer.watch_id, answer.canceled, answer.cancel_reason));
    }
    assert_eq!(
        answers,
        [
            (0, false, String::new()),
            (-1, true, "rpc error: code = PermissionDenied desc = etcdserver: permission denied".into()),
            (-1, true, "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token".into()),
            (1, false, String::new()),
        ]
    );
    assert_eq!(*up.fake.inner.endless.tokens.lock(), vec![Some(b"grpc".to_vec()); 4]);
}

#[tokio::test]
async fn a_learner_has_no_streams() {
    let up = up();
    up.fake.inner.learner.store(true, SeqCst);
    let refused = Watching::open(channel(up.address).await, &[]).await;
    assert_refused(refused.map(|_| ()), EtcdError::NotSupportedForLearner);
}

#[tokio::test]
async fn streams_that_demand_a_leader_are_cut_without_one() {
    let up = up();
    let channel = channel(up.address).await;
    let demanding = [("hasleader", "true")];
    let mut demands = Watching::open(channel.clone(), &demanding).await.unwrap();
    let mut does_not = Watching::open(channel.clone(), &[]).await.unwrap();
    demands.watches("a").await;
    does_not.watches("a").await;
    up.fake.inner.leaderless.store(true, SeqCst);
    assert_refused(demands.try_next().await, EtcdError::NoLeader);
    let refused = Watching::open(channel.clone(), &demanding).await;
    assert_refused(refused.map(|_| ()), EtcdError::NoLeader);
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    assert_eq!(does_not.keys().await, ["a"]);
    // A leader is back: new streams stay.
    up.fake.inner.leaderless.store(false, SeqCst);
    let mut demands = Watching::open(channel, &demanding).await.unwrap();
    demands.watches("a").await;
}

#[tokio::test]
async fn a_drain_ends_streams_at_once() {
    let up = up();
    let channel = channel(up.address).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = Watching::open(channel.clone(), &[]).await.unwrap();
        stream.watches("a").await;
        streams.push(stream);
    }
    let endless = up.fake.inner.endless.clone();
    let drain = spawn_blocking(move || up.running.drain(PATIENCE));
    for mut stream in streams {
        assert_refused(stream.try_next().await, EtcdError::Stopped);
    }
    assert_eq!(timeout(PATIENCE, drain).await.unwrap().unwrap(), Drained { cut_count: 0 });
    assert_eq!(endless.open_halves(), 0);
}

#[tokio::test]
async fn messages_a_client_should_not_send() {
    let up = up();
    let good = frame(&create("a"));
    for (piece, code, text) in [
        (&[0, 0x10, 0, 0, 0][..], 8, "grpc: received message larger than max (268435456 vs. 2097152)"),
        (&[1, 0, 0, 0, 0], 13, "grpc: compressed flag set with identity or empty encoding"),
        (&[0, 0, 0, 0, 2, 0xff, 0xff], 13, "grpc: error unmarshalling request: "),
    ] {
        let mut stream = Going::open(up.address, PATH, &[]).await;
        stream.send(good.clone());
        assert!(stream.piece().await.is_some(), "a good request before it is answered");
        stream.send(piece);
        let (found, message) = timeout(PATIENCE, stream.status()).await.expect("an end");
        assert_eq!(found, code, "{message}");
        assert!(message.starts_with(text), "{message}");
    }
    let mut stream = Going::open(up.address, PATH, &[("grpc-encoding", "gzip")]).await;
    stream.send(&[1, 0, 0, 0, 0][..]);
    assert_eq!(stream.piece().await, None);
    assert_eq!(stream.status().await.0, 12, "a codec that nobody installed");
    // The request ends within a message.
    let mut stream = Going::open(up.address, PATH, &[]).await;
    stream.send(good.slice(..7));
    stream.pieces = mpsc::unbounded_channel().0;
    assert_eq!(
        timeout(PATIENCE, stream.status()).await.unwrap(),
        (13, "grpc: the request ended before its message was complete".into())
    );
    let text = http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    for line in [
        "etcd_network_server_stream_failures_total{API=\"watch\",Type=\"receive\"} 5",
        "etcd_network_server_stream_failures_total{API=\"lease-keepalive\",Type=\"receive\"} 0",
    ] {
        assert!(text.contains(line), "no line {line}");
    }
}

#[tokio::test]
async fn requests_in_any_pieces() {
    let up = up();
    let long = "k".repeat(3000);
    let keys = ["a", &long, "b", "", "c"];
    let bytes: Vec<u8> = keys.iter().flat_map(|key| frame(&create((*key).to_owned()))).collect();
    for size in [1, 2, 4, 5, 6, 9, 1000, 2999, bytes.len()] {
        let mut stream = Going::open(up.address, PATH, &[]).await;
        for piece in bytes.chunks(size) {
            stream.send(Bytes::copy_from_slice(piece));
        }
        stream.send(Bytes::new());
        let mut answers = Vec::new();
        let expected: Vec<u8> = (0..keys.len() as i64)
            .flat_map(|watch_id| frame(&pb::WatchResponse { watch_id, created: true, ..Default::default() }))
            .collect();
        while answers.len() < expected.len() {
            let piece = timeout(PATIENCE, stream.piece()).await.expect("an answer");
            answers.extend(piece.expect("the stream goes on"));
        }
        assert_eq!(answers, expected, "pieces of {size}");
    }
}

#[tokio::test]
async fn many_streams_on_one_connection() {
    let up = up();
    let channel = channel(up.address).await;
    let mut streams = Vec::new();
    for number in 0..1000 {
        let stream = Watching::open(channel.clone(), &[]).await.unwrap();
        stream.send(create(format!("k{number}")));
        streams.push(stream);
    }
    for stream in &mut streams {
        assert!(stream.next().await.created);
    }
    let mut kv = kv(up.address).await;
    for number in 0..1000 {
        kv.put(put(format!("k{number}"), "1")).await.unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.keys().await, [format!("k{number}")]);
    }
    assert_eq!(up.fake.inner.endless.open_streams(), 1000);
    drop(streams);
    until("all streams are gone", || up.fake.inner.endless.open_halves() == 0).await;
}

#[tokio::test]
async fn at_most_so_many_streams_on_a_connection() {
    let up = up_with(ServerConfig { streams_max: 3, ..config() });
    let channel = channel(up.address).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = Watching::open(channel.clone(), &[]).await.unwrap();
        stream.watches("a").await;
        streams.push(stream);
    }
    let next = tokio::spawn({
        let channel = channel.clone();
        async move { Watching::open(channel, &[]).await }
    });
    // A second connection has its own three.
    let mut other = watching(&up).await;
    other.watches("a").await;
    assert!(!next.is_finished(), "the fourth waits for its turn");
    streams.pop();
    let mut fourth = timeout(PATIENCE, next).await.expect("a turn").unwrap().unwrap();
    fourth.watches("a").await;
    assert_eq!(up.fake.inner.endless.open_streams(), 4);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody() {
    let up = up();
    let channel = channel(up.address).await;
    let mut deaf = Watching::open(channel.clone(), &[]).await.unwrap();
    let mut other = Watching::open(channel, &[]).await.unwrap();
    deaf.watches("big").await;
    other.watches("small").await;
    let mut kv = kv(up.address).await;
    for number in 0..20 {
        // Far more than the window of the stream that is not read, less than that of the connection needs to hold.
        kv.put(put("big", vec![7; 100_000])).await.unwrap();
        kv.put(put("small", format!("{number}"))).await.unwrap();
        assert_eq!(other.keys().await, ["small"]);
    }
    // It can still ask while its answers wait.
    deaf.send(cancel(0));
    deaf.send(create("after"));
    let mut seen = 0;
    while seen < 20 {
        seen += deaf.next().await.events.len();
    }
    assert!(deaf.next().await.canceled);
    assert!(deaf.next().await.created);
}

#[tokio::test]
async fn a_busy_member_holds_one_stream() {
    let up = up();
    let endless = &up.fake.inner.endless;
    let mut other = watching(&up).await;
    other.watches("a").await;
    endless.hub_busy.store(true, SeqCst);
    let mut stream = watching(&up).await;
    for number in 0..500 {
        stream.send(create(format!("{number}")));
    }
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    assert_eq!(other.keys().await, ["a"]);
    endless.hub_permits.0.add_permits(500);
    for number in 0..500 {
        assert_eq!(stream.next().await.watch_id, number);
    }
}

/// Each request in a frame of its own, and the server comes to read them when most are there.
#[tokio::test]
async fn many_creates_in_one_breath() {
    const WATCHES: usize = 50_000;
    let up = up();
    let (stall, stalled) = std::sync::mpsc::channel();
    *up.fake.inner.endless.stall.lock() = Some(stalled);
    let mut stream = Going::open(up.address, PATH, &[]).await;
    for _ in 0..WATCHES {
        stream.send(frame(&create("k")));
    }
    until("all are on their way", || stream.taken.load(SeqCst) == WATCHES).await;
    drop(stall);
    let mut answers = 0;
    while answers < WATCHES {
        let mut piece =
            timeout(PATIENCE, stream.piece()).await.expect("an answer").expect("the stream goes on");
        while !piece.is_empty() {
            let length = u32::from_be_bytes(piece[1..5].try_into().unwrap()) as usize;
            let message = piece.split_to(5 + length).slice(5..);
            let answer = pb::WatchResponse::decode(message).expect("pieces are whole frames");
            assert_eq!((answer.watch_id, answer.created), (answers as i64, true));
            answers += 1;
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_a_stream() {
    let up = up();
    let stream = Going::open(up.address, PATH, &[("grpc-timeout", "20m")]).await;
    stream.send(frame(&create("a")));
    assert_eq!(
        timeout(PATIENCE, stream.status()).await.unwrap(),
        (4, "context deadline exceeded".to_owned())
    );
    until("its watch is gone", || up.fake.inner.endless.open_halves() == 0).await;
    // One that lies far away is none.
    let mut stream = Going::open(up.address, PATH, &[("grpc-timeout", "99999999H")]).await;
    stream.send(frame(&create("a")));
    assert!(stream.piece().await.is_some());
}

#[tokio::test]
async fn streams_are_counted() {
    let up = up();
    let mut kv = kv(up.address).await;
    let mut stream =
        Watching::open(channel(up.address).await, &[("client-api-version", "3.6")]).await.unwrap();
    stream.watches("a").await;
    stream.send(create("a"));
    stream.send(create("a"));
    for _ in 0..2 {
        stream.next().await;
    }
    kv.put(put("a", "1")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stream.keys().await, ["a"]);
    }
    let lines = async |expected: [String; 5]| {
        let text = http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        expected.into_iter().find(|line| !text.lines().any(|found| found.trim_end() == line))
    };
    let labels = "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
    let expected = |ended: u32| {
        [
            format!("grpc_server_started_total{{{labels}}} 1"),
            format!("grpc_server_msg_received_total{{{labels}}} 3"),
            format!("grpc_server_msg_sent_total{{{labels}}} 6"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} {ended}"),
            "etcd_server_client_requests_total{client_api_version=\"3.6\",type=\"stream\"} 1".to_owned(),
        ]
    };
    assert_eq!(lines(expected(0)).await, None);
    drop(stream);
    until("the stream is gone", || up.fake.inner.endless.open_halves() == 0).await;
    let ended = async { while lines(expected(1)).await.is_some() {} };
    timeout(PATIENCE, ended).await.expect("a stream that the client left is counted as cancelled");
}

#[tokio::test]
async fn dropping_the_edge_ends_streams() {
    let up = up();
    let mut stream = watching(&up).await;
    stream.watches("a").await;
    let Up { running, fake, .. } = up;
    spawn_blocking(move || running.drain(Duration::ZERO)).await.unwrap();
    stream.try_next().await.unwrap_err();
    assert_eq!(fake.inner.endless.open_halves(), 0);
}
