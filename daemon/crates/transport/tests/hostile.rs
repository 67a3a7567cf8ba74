//! Neighbours that are broken, slow, foreign or malicious: each is refused in etcd's words or dropped, nothing else is disturbed.

mod support;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::raftpb::MessageType::*;
use prost::Message as _;
use support::*;
use transport::{Limits, Timeouts, Topic};
use types::MemberId;

fn heartbeat(from: u64, to: u64) -> Vec<u8> {
    message(MsgHeartbeat, from, to, 3).encode_to_vec()
}

/// Method, path, headers, body; status and text of the answer.
type Row = (&'static str, &'static str, Vec<(String, String)>, Vec<u8>, u16, &'static str);

#[test]
fn refusals_have_etcds_status_and_words() {
    let runtime = runtime();
    let a = Member::start(&runtime, 0xa);
    a.transport.add_peer(MemberId(0xb), vec![]);
    let known = with(headers(0xb), "X-Raft-To", "a");
    let rows: Vec<Row> = vec![
        ("GET", "/raft", known.clone(), vec![], 405, "Method Not Allowed\n"),
        ("POST", "/raft/stream/msgapp/b", known.clone(), vec![], 405, "Method Not Allowed\n"),
        ("GET", "/raft/snapshot", known.clone(), vec![], 405, "Method Not Allowed\n"),
        ("POST", "/members", vec![], vec![], 405, "Method Not Allowed\n"),
        ("POST", "/version", vec![], vec![], 405, "Method Not Allowed\n"),
        ("POST", "/raft", vec![], heartbeat(0xb, 0xa), 412, "incompatible version\n"),
        (
            "POST",
            "/raft",
            with(known.clone(), "X-Server-Version", "2.3.8"),
            heartbeat(0xb, 0xa),
            412,
            "incompatible version\n",
        ),
        (
            "POST",
            "/raft",
            with(known.clone(), "X-Min-Cluster-Version", "3.7.0"),
            heartbeat(0xb, 0xa),
            412,
            "incompatible version\n",
        ),
        (
            "POST",
            "/raft",
            with(known.clone(), "X-Server-Version", "banana"),
            heartbeat(0xb, 0xa),
            412,
            "incompatible version\n",
        ),
        (
            "POST",
            "/raft",
            with(known.clone(), "X-Etcd-Cluster-ID", "c2"),
            heartbeat(0xb, 0xa),
            412,
            "cluster ID mismatch\n",
        ),
        ("POST", "/raft", known.clone(), b"garbage".to_vec(), 400, "error unmarshalling raft message\n"),
        ("POST", "/raft", known.clone(), heartbeat(0xb, 0xd), 412, "to field mismatch\n"),
        (
            "POST",
            "/raft",
            known.clone(),
            message(MsgHup, 0xb, 0xa, 1).encode_to_vec(),
            400,
            "message type 0 does not travel\n",
        ),
        (
            "POST",
            "/raft/snapshot",
            with(known.clone(), "X-Etcd-Cluster-ID", "c2"),
            vec![],
            412,
            "cluster ID mismatch\n",
        ),
        (
            "POST",
            "/raft/snapshot",
            known.clone(),
            [&33u64.to_be_bytes()[..], &heartbeat(0xb, 0xa)].concat(),
            400,
            "failed to decode raft message (unexpected end of file)\n",
        ),
        (
            "POST",
            "/raft/snapshot",
            known.clone(),
            framed(&heartbeat(0xb, 0xa)),
            400,
            "wrong raft message type\n",
        ),
        (
            "POST",
            "/raft/snapshot",
            known.clone(),
            framed(&snapshot(0xb, 0xd, 1, 1).encode_to_vec()),
            412,
            "to field mismatch\n",
        ),
        ("GET", "/raft/stream/msgapp/b", vec![], vec![], 412, "incompatible version\n"),
        (
            "GET",
            "/raft/stream/msgapp/b",
            with(known.clone(), "X-Etcd-Cluster-ID", "c2"),
            vec![],
            412,
            "cluster ID mismatch\n",
        ),
        ("GET", "/raft/stream/gossip/b", known.clone(), vec![], 404, "invalid path\n"),
        ("GET", "/raft/stream/msgapp/bob", known.clone(), vec![], 404, "invalid from\n"),
        (
            "GET",
            "/raft/stream/msgapp/e",
            with(headers(0xe), "X-Raft-To", "a"),
            vec![],
            404,
            "error sender not found\n",
        ),
        (
            "GET",
            "/raft/stream/msgapp/b",
            with(headers(0xb), "X-Raft-To", "d"),
            vec![],
            412,
            "to field mismatch\n",
        ),
        ("GET", "/elsewhere", vec![], vec![], 404, "404 page not found\n"),
        ("GET", "/members/promote/12", vec![], vec![], 405, "Method Not Allowed\n"),
        ("POST", "/members/promote/zz", vec![], vec![], 404, "member zz not found in cluster\n"),
        ("POST", "/members/promote/", vec![], vec![], 404, "member  not found in cluster\n"),
        ("POST", "/members/promote/77", vec![], vec![], 404, "membership: ID not found\n"),
        (
            "POST",
            "/members/promote/1",
            vec![],
            vec![],
            412,
            "membership: can only promote a learner member\n",
        ),
        (
            "POST",
            "/members/promote/2",
            vec![],
            vec![],
            412,
            "etcdserver: can only promote a learner member which is in sync with leader\n",
        ),
        ("POST", "/members/promote/3", vec![], vec![], 500, "{\"message\":\"Internal Server Error\"}"),
        ("POST", "/members/promote/4", vec![], vec![], 500, "{\"message\":\"Internal Server Error\"}"),
        ("POST", "/downgrade/enabled", vec![], vec![], 501, "not implemented\n"),
        ("GET", "/leases", vec![], vec![], 405, "Method Not Allowed\n"),
        ("PUT", "/leases/internal", vec![], vec![8, 7], 405, "Method Not Allowed\n"),
        ("POST", "/leases", vec![], b"\xffgarbage".to_vec(), 400, "error unmarshalling request\n"),
        ("POST", "/leases/internal", vec![], b"\xffgarbage".to_vec(), 400, "error unmarshalling request\n"),
        ("POST", "/leases/internal", vec![], vec![], 400, "error unmarshalling request\n"),
        ("POST", "/leases", vec![], vec![0x12; (64 << 10) + 1], 413, "request body too large\n"),
        ("POST", "/leases/internal", vec![], vec![0x12; 1 << 20], 413, "request body too large\n"),
        (
            "POST",
            "/leases",
            with(headers(0xb), "X-Etcd-Cluster-ID", "c2"),
            vec![8, 7],
            412,
            "cluster ID mismatch\n",
        ),
        ("POST", "/leases", vec![], vec![8, 9], 404, "requested lease not found\n"),
        (
            "POST",
            "/leases",
            vec![],
            vec![8, 10],
            408,
            "waiting for node to catch up its applied index has timed out\n",
        ),
        ("POST", "/leases", vec![], vec![], 400, "not a primary lessor\n"),
        ("POST", "/leases", vec![], vec![8, 7], 200, "\u{10}\u{7}\u{18}*"),
        ("POST", "/leases/internal", vec![], vec![10, 2, 8, 9], 404, "requested lease not found\n"),
        // With an empty header: a member of etcd ends with a panic when there is none.
        ("POST", "/leases/internal", vec![], vec![10, 2, 8, 7], 200, "\n\u{8}\n\0\u{10}\u{7}\u{18}\u{11} *"),
        ("POST", "/leases/internal", vec![], vec![10, 0], 500, "not a primary lessor\n"),
        (
            "GET",
            "/members/hashkv",
            headers(0xb),
            b"nonsense".to_vec(),
            400,
            "error unmarshalling request: expected ident at line 1 column 2\n",
        ),
        (
            "GET",
            "/members/hashkv",
            with(headers(0xb), "X-Etcd-Cluster-ID", "c2"),
            b"{}".to_vec(),
            412,
            "cluster ID mismatch\n",
        ),
        (
            "GET",
            "/members/hashkv",
            vec![],
            b"{\"revision\":100}".to_vec(),
            400,
            "mvcc: required revision is a future revision\n",
        ),
    ];
    for (method, path, headers, body, status, text) in rows {
        let answer = ask(a.address, method, path, &headers, &body);
        assert_eq!((answer.status, answer.body.as_str()), (status, text), "{method} {path} {headers:?}");
        if path.starts_with("/raft/stream") && status != 405 {
            assert!(
                answer.head.contains("X-Server-Version: 3.6.1\r\n"),
                "etcd crashes without: {}",
                answer.head
            );
        }
    }
    assert_eq!(a.seen.messages(), [], "none of it reached raft");
    assert_eq!(a.transport.peers(), [MemberId(0xb)], "nor made a remote");
    assert_eq!(
        ask(a.address, "POST", "/raft", &known, &heartbeat(0xb, 0xa)).status,
        204,
        "and a good one does"
    );
    a.seen.wait_messages(1);
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u64).to_be_bytes()[..], message].concat()
}

#[test]
fn answers_to_questions_have_etcds_form() {
    let runtime = runtime();
    let a = Member::start(&runtime, 0xa);
    let version = ask(a.address, "GET", "/version", &[], &[]);
    assert_eq!(version.body, r#"{"etcdserver":"3.6.1","etcdcluster":"3.5.0"}"#);
    let members = ask(a.address, "GET", "/members", &[], &[]);
    assert_eq!(members.body, "[]\n");
    assert!(members.head.contains("X-Etcd-Cluster-Id: c1\r\n"), "{}", members.head);
    let probing = ask(a.address, "GET", "/raft/probing", &[], &[]);
    assert!(
        probing.body.starts_with(r#"{"OK":true,"Now":"2"#) && probing.body.ends_with("\"}\n"),
        "{}",
        probing.body
    );
    let hash = ask(a.address, "GET", "/members/hashkv", &headers(0xb), b"{\"revision\":7}");
    assert_eq!(
        hash.body,
        r#"{"header":{"revision":99},"hash":3735928559,"compact_revision":1,"hash_revision":7}"#
    );
}

#[test]
fn message_for_another_member_ignored() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    // b's address was given to a member 0xd before, and a still believes so.
    a.transport.add_peer(MemberId(0xd), vec![b.url()]);
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xd, 3), message(MsgVote, 0xa, 0xd, 3)]);
    a.seen.wait_event("the loss", |event| *event == Event::Unreachable(MemberId(0xd)));
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 3)]);
    let all = b.seen.wait_messages(1);
    assert!(all.iter().all(|message| message.to == Some(0xb)), "{all:?}");
    assert_eq!(
        a.seen.count(|event| matches!(event, Event::ToldRemoved(..))),
        0,
        "a mistake is not a removal"
    );
}

#[test]
fn no_zombies() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    a.seen.removed.lock().insert(b.id);
    a.seen.accept_remotes.store(true, Ordering::Relaxed);
    a.transport.remove_peer(b.id);
    // By stream it is told 410, by message 403 with the word; it takes that as a report and goes on.
    b.seen.wait_event("word of the removal", |event| matches!(event, Event::ToldRemoved(MemberId(0xa), _)));
    let stream = ask(a.address, "GET", "/raft/stream/message/b", &with(headers(0xb), "X-Raft-To", "a"), &[]);
    assert_eq!((stream.status, stream.body.as_str()), (410, "removed member\n"));
    let caller = with(headers(0xb), "X-PeerURLs", "http://127.0.0.1:1");
    for (path, body) in [
        ("/raft", heartbeat(0xb, 0xa)),
        ("/raft/snapshot", framed(&snapshot(0xb, 0xa, 1, 1).encode_to_vec())),
    ] {
        let answer = ask(a.address, "POST", path, &caller, &body);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (403, r#"{"message":"cannot process message from removed member"}"#),
            "{path}"
        );
    }
    assert_eq!(a.transport.peers(), [], "a removed member is not remembered");
    assert_eq!(a.seen.messages(), []);

    // Should it have been a lie, or be taken back: no healthy member stopped because of it.
    a.seen.removed.lock().clear();
    a.knows(&b);
    b.wait_attached(a.id);
    b.transport.send(vec![message(MsgHeartbeat, 0xb, 0xa, 3)]);
    a.seen.wait_messages(1);
}

#[test]
fn a_foreign_cluster_at_the_address_of_a_peer_is_not_listened_to() {
    let runtime = runtime();
    let foreign = Settings { cluster: types::ClusterId(0xf0), ..Settings::default() };
    let (a, b) = (Member::start(&runtime, 0xa), Member::start_with(&runtime, 0xb, listener(), foreign));
    a.knows(&b);
    b.knows(&a);
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 3)]);
    a.seen.wait_event("unreachable", |event| *event == Event::Unreachable(MemberId(0xb)));
    eventually("both say why", || {
        a.seen.reports(Topic::RefusedByPeer) == 1 && b.seen.reports(Topic::RefusedByPeer) == 1
    });
    assert_eq!(b.seen.messages(), []);
    assert!(a.transport.active_since(b.id).is_none());
}

/// Reads until the other end closes; the time it takes is the test's patience.
fn closes(mut stream: TcpStream) -> bool {
    let mut sink = Vec::new();
    !matches!(stream.read_to_end(&mut sink), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn garbage_half_open_connections_and_huge_heads_do_not_last() {
    let runtime = runtime();
    let timeouts = Timeouts { read: Duration::from_millis(300), ..Settings::default().timeouts };
    let a = Member::start_with(&runtime, 0xa, listener(), Settings { timeouts, ..Settings::default() });
    let say = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(a.address).expect("the port is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let _ = stream.write_all(bytes);
        stream
    };
    let mut said: Vec<TcpStream> = vec![say(b""), say(b"GET /version HTT"), say(&[0xff; 5000])];
    // A TLS hello, an HTTP/2 preface, a head without end, a body that never comes.
    said.push(say(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]));
    said.push(say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    said.push(say(format!("GET /version HTTP/1.1\r\nX-Big: {}", "x".repeat(1 << 20)).as_bytes()));
    said.push(say(format!("GET /version HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(2000)).as_bytes()));
    let head: String = headers(0xb).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    said.push(say(format!("POST /raft HTTP/1.1\r\n{head}Content-Length: 999999999\r\n\r\nabc").as_bytes()));
    said.push(say(
        format!("POST /raft HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n").as_bytes()
    ));
    for (place, stream) in said.into_iter().enumerate() {
        assert!(closes(stream), "connection {place} was left open");
    }
    assert_eq!(a.seen.messages(), []);
    assert_eq!(ask(a.address, "GET", "/version", &[], &[]).status, 200);
    assert!(a.seen.reports(Topic::Garbage) <= 1, "one line a minute");
}

/// Answers every stream request with the same head and bytes, then does as told.
fn impostor(body: &'static [u8], head: &'static str) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(body);
                let _ = stream.read(&mut request);
            });
        }
    });
    (address, calls)
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nX-Server-Version: 3.5.30\r\nX-Etcd-Cluster-ID: c1\r\n\r\n";

#[test]
fn a_peer_that_streams_garbage_is_dropped_reported_once_and_asked_again() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    for garbage in [
        [0xff; 64].as_slice(),
        // An entry count, and a frame, larger than anything.
        &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 0, 0, 0xff, 0, 0, 0, 0, 1, 2, 3],
    ] {
        let (address, calls) = impostor(garbage, STREAM_HEAD);
        let id = MemberId(0xbad);
        a.transport.add_peer(id, vec![url_of(address)]);
        eventually("it is asked again and again", || calls.load(Ordering::Relaxed) > 8);
        a.seen.wait_event("a report", |event| {
            matches!(event, Event::Report(report) if report.topic == Topic::Garbage && report.peer == Some(id))
        });
        a.transport.remove_peer(id);
        assert_eq!(a.seen.reports(Topic::Garbage), 1, "once a minute");
        a.seen.forget();
    }
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 3)]);
    b.seen.wait_messages(1);
}

#[test]
fn a_version_that_is_none_and_a_false_removal_leave_us_running() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let (odd, odd_calls) =
        impostor(b"", "HTTP/1.1 200 OK\r\nX-Server-Version: banana\r\nX-Etcd-Cluster-ID: c1\r\n\r\n");
    let (liar, liar_calls) = impostor(
        b"removed member\n",
        "HTTP/1.1 410 Gone\r\nContent-Length: 15\r\nX-Server-Version: 3.5.30\r\n\r\n",
    );
    a.transport.add_peer(MemberId(1), vec![url_of(odd)]);
    a.transport.add_peer(MemberId(2), vec![url_of(liar)]);
    a.seen
        .wait_event("the claim", |event| *event == Event::ToldRemoved(MemberId(2), "removed member".into()));
    eventually("both are asked again", || {
        odd_calls.load(Ordering::Relaxed) > 4 && liar_calls.load(Ordering::Relaxed) > 4
    });
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 3)]);
    b.seen.wait_messages(1);
    assert_eq!(a.seen.count(|event| matches!(event, Event::ToldRemoved(..))), 1, "once a minute");
}

/// A member that opens a stream and never reads it.
fn deaf_reader(a: &Member, id: u64, kind: &str) -> TcpStream {
    a.transport.add_peer(MemberId(id), vec![]);
    let headers = with(headers(id), "X-Raft-To", &a.id.to_string());
    let stream = open(a.address, "GET", &format!("/raft/stream/{kind}/{id:x}"), &headers, &[]);
    let mut first = [0];
    stream.peek(&mut first).expect("the head of the answer");
    stream
}

#[test]
fn a_peer_that_never_reads_delays_nobody_and_fills_nothing() {
    const MIB: usize = 1 << 20;
    let runtime = runtime();
    let limits = Limits { stream_queue_bytes_max: 8 * MIB, ..Limits::default() };
    // It must be the queue that protects us here, so the deadline is out of reach.
    let timeouts = Timeouts { write: PATIENCE * 2, ..Settings::default().timeouts };
    let a =
        Member::start_with(&runtime, 0xa, listener(), Settings { limits, timeouts, ..Settings::default() });
    let b = Member::start(&runtime, 0xb);
    a.knows(&b);
    b.knows(&a);
    a.wait_attached(b.id);
    let _deaf = deaf_reader(&a, 0xdeaf, "msgapp");

    let data = bytes::Bytes::from(vec![1; MIB]);
    for index in 0..200 {
        a.transport.send(vec![
            append(0xa, 0xdeaf, 2, index, vec![entry(2, index + 1, data.clone())]),
            append(0xa, 0xb, 2, index, vec![entry(2, index + 1, vec![2; 1000])]),
        ]);
        b.seen.wait_messages(index as usize + 1);
    }
    let row =
        a.transport.metrics().peers.into_iter().find(|peer| peer.id == MemberId(0xdeaf)).expect("a peer");
    // 200 MiB were offered; queue, writer and kernel (at most a few MiB each) took what they may.
    assert!(row.sent_failures > 150, "only {} were dropped", row.sent_failures);
    assert!(row.sent_bytes < 40 * MIB as u64, "{} bytes were written to nobody", row.sent_bytes);
    let reported = a.seen.count(|event| *event == Event::Unreachable(MemberId(0xdeaf)));
    assert!((1..5).contains(&reported), "reported {reported} times for one burst");
}

#[test]
fn heartbeats_pass_stalled_appends() {
    let runtime = runtime();
    let timeouts = Timeouts { write: PATIENCE * 2, ..Settings::default().timeouts };
    let a = Member::start_with(&runtime, 0xa, listener(), Settings { timeouts, ..Settings::default() });
    let _deaf = deaf_reader(&a, 0xb, "msgapp");
    let mut listening = deaf_reader(&a, 0xb, "message");
    let data = bytes::Bytes::from(vec![1; 1 << 20]);
    let appends = (0..50).map(|index| append(0xa, 0xb, 2, index, vec![entry(2, index + 1, data.clone())]));
    a.transport.send(appends.collect());
    a.transport.send(vec![message(MsgVote, 0xa, 0xb, 77)]);
    let wanted = message(MsgVote, 0xa, 0xb, 77).encode_to_vec();
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.windows(wanted.len()).any(|window| window == wanted) {
        let read = listening.read(&mut buffer).expect("a vote within the patience of the test");
        assert!(read > 0, "the stream ended");
        heard.extend_from_slice(&buffer[..read]);
    }
}

#[test]
fn a_stalled_stream_is_given_up_after_the_write_deadline() {
    let runtime = runtime();
    let timeouts = Timeouts { write: Duration::from_millis(300), ..Settings::default().timeouts };
    let a = Member::start_with(&runtime, 0xa, listener(), Settings { timeouts, ..Settings::default() });
    let _deaf = deaf_reader(&a, 0xb, "msgapp");
    let _deaf_too = deaf_reader(&a, 0xb, "message");
    assert!(a.transport.is_attached(MemberId(0xb)));
    let data = bytes::Bytes::from(vec![1; 1 << 20]);
    a.transport.send(
        (0..30).map(|index| append(0xa, 0xb, 2, index, vec![entry(2, index + 1, data.clone())])).collect(),
    );
    eventually("the stream is given up", || !a.transport.is_attached(MemberId(0xb)));
    a.seen.wait_event("unreachable", |event| *event == Event::Unreachable(MemberId(0xb)));
}

#[test]
fn a_newer_stream_replaces_the_older() {
    let runtime = runtime();
    let a = Member::start(&runtime, 0xa);
    let old = deaf_reader(&a, 0xb, "message");
    let mut new = deaf_reader(&a, 0xb, "message");
    assert!(closes(old), "the old one was left open");
    a.transport.send(vec![message(MsgVote, 0xa, 0xb, 9)]);
    let mut byte = [0];
    new.read_exact(&mut byte).expect("the new one is alive");
}

#[test]
fn a_silent_peer_is_noticed_by_the_read_deadline() {
    let runtime = runtime();
    let timeouts = Timeouts { read: Duration::from_millis(200), ..Settings::default().timeouts };
    let a = Member::start_with(&runtime, 0xa, listener(), Settings { timeouts, ..Settings::default() });
    let (address, calls) = impostor(b"", STREAM_HEAD);
    a.transport.add_peer(MemberId(0xb), vec![url_of(address)]);
    a.seen.wait_event("word of the silence", |event| {
        matches!(event, Event::Report(report)
            if report.topic == Topic::Connection && report.text.contains("nothing heard for"))
    });
    // Two streams and a probe; anything beyond is a second attempt.
    eventually("it is dialled again", || calls.load(Ordering::Relaxed) > 4);
}

#[test]
fn one_address_cannot_take_all_connections() {
    let runtime = runtime();
    let a = Member::start(&runtime, 0xa);
    let idle: Vec<_> = (0..400).filter_map(|_| TcpStream::connect(a.address).ok()).collect();
    a.seen.wait_event(
        "the refusal",
        |event| matches!(event, Event::Report(report) if report.topic == Topic::Overflow),
    );
    drop(idle);
    eventually("places are given back", || ask(a.address, "GET", "/version", &[], &[]).status == 200);
}
