//! What strangers and broken clients send to the client port.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::Result;
use api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    kv_client::KvClient, request_op::Request,
};
use cairn_tests::{
    harness::{Cluster, Kind},
    recorder::{Writers, channel},
};
use rand::{Rng, RngCore};
use tonic::Status;

use crate::{block_on, compact, endpoints, let_write, put, random, revision, verify};

/// Longer than any answer takes; a request that has none by then hangs.
const ANSWER: Duration = Duration::from_secs(20);

/// Deep structures are built, encoded and dropped by recursion.
const STACK_BYTES: usize = 256 << 20;

fn put_op(key: String) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: key.into(),
            value: "v".into(),
            ..Default::default()
        })),
    }
}

fn nested(levels: usize) -> TxnRequest {
    let mut txn = TxnRequest { success: vec![put_op(format!("deep/{levels}"))], ..Default::default() };
    for _ in 1..levels {
        let op = RequestOp { request: Some(Request::RequestTxn(txn)) };
        txn = TxnRequest { success: vec![op], ..Default::default() };
    }
    txn
}

async fn answer<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(ANSWER, call).await.unwrap_or_else(|_| panic!("no answer within {ANSWER:?}"))
}

/// One connection; whatever comes back is read until the other side closes or pauses.
fn send(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn garbage(address: &str, random: &mut impl RngCore) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for length in [1, 24, 300, 70_000] {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        send(address, &bytes);
        send(address, &[PREFACE, &bytes].concat());
        let settings = [PREFACE, &h2_frame(4, 0, 0, &[])].concat();
        // Frames of every type with random content, on stream 0 and on a stream of a client.
        for kind in 0..12_u8 {
            let frame = h2_frame(kind, random.random(), u32::from(kind % 2), &bytes[..length.min(9000)]);
            send(address, &[&settings, &frame[..]].concat());
        }
    }
    // Heads that never end and heads that are too large.
    send(address, &[b"GET /health HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 1 << 20]].concat());
    let many: String = (0..20_000).map(|i| format!("x-{i}: y\r\n")).collect();
    send(address, format!("GET /metrics HTTP/1.1\r\n{many}\r\n").as_bytes());
    send(address, b"GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n");
    send(
        address,
        b"POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    );
    // A literal header of 2 MiB in CONTINUATION frames that never end.
    let mut endless =
        [PREFACE, &h2_frame(4, 0, 0, &[]), &h2_frame(1, 0, 1, b"\x00\x03abc\x7f\xff\xff\x7f")].concat();
    (0..256).for_each(|_| endless.extend(h2_frame(9, 0, 1, &[b'a'; 8192])));
    send(address, &endless);
}

#[test]
fn strangers_on_the_client_port_disturb_nobody() -> Result<()> {
    let mut random = random("strangers_on_the_client_port_disturb_nobody");
    let cluster = Cluster::start(Kind::Cairn, 3)?;
    let pids: Vec<_> = cluster.members.iter().map(|member| member.pid()).collect();
    let writers = Writers::start(endpoints(&cluster), 3);
    let_write(&writers, 50)?;
    let mut half_open = Vec::new();
    for member in &cluster.members {
        let address = member.client_url.trim_start_matches("http://");
        for begin in [b"".as_slice(), b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /hea"] {
            for _ in 0..50 {
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(begin)?;
                half_open.push(stream);
            }
        }
        garbage(address, &mut random);
    }
    let_write(&writers, 50)?;
    verify(&cluster, &writers.finish())?;
    let now: Vec<_> = cluster.members.iter().map(|member| member.pid()).collect();
    assert_eq!(pids, now);
    drop(half_open);
    Ok(())
}

#[test]
fn requests_that_cannot_be_served_have_an_answer() -> Result<()> {
    let cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 2);
    let all = endpoints(&cluster);
    for _ in 0..5 {
        put(&all, "a", "1")?;
    }
    compact(&cluster.members[0], 4)?;
    let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
    let asked = all.clone();
    let asker = worker.spawn(move || {
        for endpoint in &asked {
            block_on(ask(endpoint)).expect("a channel");
        }
    })?;
    asker.join().expect("every request has the answer that was expected");
    let_write(&writers, 50)?;
    verify(&cluster, &writers.finish())?;
    let before = revision(&cluster.members[0])?;
    assert_eq!(revision(&cluster.members[2])?, before);
    assert!(cluster.members.iter().all(|member| !member.log().contains("panic")), "nobody panicked");
    Ok(())
}

async fn ask(endpoint: &str) -> Result<()> {
    let mut kv = KvClient::new(channel(endpoint)?.clone()).max_encoding_message_size(usize::MAX);
    let refused = |what: &str, got: Result<(), Status>, text: &str| {
        let status = got.expect_err(what);
        assert!(status.message().contains(text), "{what}: {status:?} where {text:?} belongs");
    };

    let empty = kv.put(PutRequest { value: "v".into(), ..Default::default() });
    refused("empty key", answer(empty).await.map(drop), "key is not provided");
    let empty = kv.delete_range(DeleteRangeRequest::default());
    refused("delete of no key", answer(empty).await.map(drop), "key is not provided");
    let empty = kv.range(RangeRequest::default());
    refused("range of no key", answer(empty).await.map(drop), "key is not provided");
    let future = kv.range(RangeRequest { key: "a".into(), revision: i64::MAX, ..Default::default() });
    refused("future", answer(future).await.map(drop), "required revision is a future revision");
    let old = kv.range(RangeRequest { key: "a".into(), revision: 2, ..Default::default() });
    refused("compacted", answer(old).await.map(drop), "required revision has been compacted");
    let old = kv.compact(CompactionRequest { revision: 2, physical: false });
    refused("compact again", answer(old).await.map(drop), "required revision has been compacted");
    let future = kv.compact(CompactionRequest { revision: i64::MAX, physical: true });
    refused("compact the future", answer(future).await.map(drop), "required revision is a future revision");
    for (order, target) in [(77, 0), (0, 77), (-1, -1)] {
        let odd = kv.range(RangeRequest {
            key: "a".into(),
            sort_order: order,
            sort_target: target,
            ..Default::default()
        });
        refused("unknown sort", answer(odd).await.map(drop), "invalid sort option");
    }
    let negative =
        kv.range(RangeRequest { key: "a".into(), revision: i64::MIN, limit: i64::MIN, ..Default::default() });
    // etcd takes everything below one as "none".
    answer(negative).await.expect("negative numbers mean none");

    let ops = (0..129).map(|i| put_op(format!("many/{i}"))).collect();
    let many = kv.txn(TxnRequest { success: ops, ..Default::default() });
    refused("129 operations", answer(many).await.map(drop), "too many operations in txn request");
    let twice =
        kv.txn(TxnRequest { success: vec![put_op("k".into()), put_op("k".into())], ..Default::default() });
    refused("twice", answer(twice).await.map(drop), "duplicate key given in txn request");
    let odd = Compare { result: 99, target: 99, key: "a".into(), ..Default::default() };
    let odd =
        kv.txn(TxnRequest { compare: vec![odd], success: vec![put_op("odd".into())], ..Default::default() });
    // etcd compares nothing in an unknown target and has no opinion on an unknown result: any answer, but one.
    let _ = answer(odd).await;
    let none = kv.txn(TxnRequest { success: vec![RequestOp { request: None }], ..Default::default() });
    let _ = answer(none).await;

    let large = bytes::Bytes::from(vec![0; 1_600_000]);
    let oversize = kv.put(PutRequest { key: "large".into(), value: large, ..Default::default() });
    refused("oversize", answer(oversize).await.map(drop), "request is too large");
    let huge = bytes::Bytes::from(vec![0; 20 << 20]);
    let oversize =
        answer(kv.put(PutRequest { key: "large".into(), value: huge, ..Default::default() })).await;
    assert!(oversize.is_err(), "20 MiB were taken");

    // Every depth around the bound of the decoder, which the replicated form must not meet before the request does.
    let mut deepest = 0;
    for levels in [1, 10, 40].into_iter().chain(46..54).chain([100, 2000]) {
        match answer(kv.txn(nested(levels))).await {
            Ok(done) => {
                assert!(done.into_inner().succeeded);
                deepest = deepest.max(levels);
            }
            Err(status) => {
                assert!(levels > 40, "{levels} levels: {status:?}");
                assert_ne!(status.code(), tonic::Code::DeadlineExceeded, "{levels} levels: {status:?}");
                assert_ne!(status.code(), tonic::Code::Cancelled, "{levels} levels: {status:?}");
                assert!(!status.message().contains("timed out"), "{levels} levels: {status:?}");
                assert!(status.message().len() < 1000, "an answer of {} bytes", status.message().len());
                println!("{levels} levels: {:?} {}", status.code(), status.message());
            }
        }
    }
    println!("deepest txn taken: {deepest} levels");
    Ok(())
}
