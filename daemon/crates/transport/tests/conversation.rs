//! Two members that get on with each other: everything arrives, once, whole and in order.

mod support;

use std::{
    io::{self, Read},
    sync::atomic::Ordering,
    time::Duration,
};

use api::{
    etcdserverpb::LeaseTimeToLiveRequest,
    raftpb::{Message, MessageType, MessageType::*},
};
use bytes::Bytes;
use support::*;
use transport::{
    LeaseCallError, PeerClient, PeerClientError, PeerMember, PromoteError, PromoteRefusal, SnapshotSource,
    Timeouts, Topic,
};
use types::{ClusterId, MemberId, limits};

const KINDS: [MessageType; 13] = [
    MsgProp,
    MsgApp,
    MsgAppResp,
    MsgVote,
    MsgVoteResp,
    MsgHeartbeat,
    MsgHeartbeatResp,
    MsgTransferLeader,
    MsgTimeoutNow,
    MsgReadIndex,
    MsgReadIndexResp,
    MsgPreVote,
    MsgPreVoteResp,
];

/// One of each kind that may travel, with every field that kind uses.
fn one_of_each(from: u64, to: u64) -> Vec<Message> {
    KINDS
        .into_iter()
        .map(|kind| {
            let forwarded = matches!(kind, MsgProp | MsgReadIndex);
            let mut message = message(kind, from, to, if forwarded { 0 } else { 7 });
            if matches!(kind, MsgProp | MsgReadIndex | MsgReadIndexResp) {
                message.entries = vec![entry(0, 0, "request")];
            }
            if kind == MsgApp {
                message.index = Some(40);
                message.entries = vec![entry(6, 41, "first"), entry(7, 42, "")];
            }
            message.log_term = Some(6);
            message.commit = Some(39);
            message.reject = Some(true);
            message.reject_hint = Some(12);
            message.context = Some(Bytes::from_static(b"CampaignTransfer"));
            message
        })
        .collect()
}

fn sorted(mut messages: Vec<Message>) -> Vec<Message> {
    messages.sort_by_key(|message| message.r#type);
    messages
}

#[test]
fn every_kind_of_message_arrives_intact_by_stream() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    a.transport.send(one_of_each(0xa, 0xb));
    b.transport.send(one_of_each(0xb, 0xa));
    assert_eq!(sorted(b.seen.wait_messages(KINDS.len())), sorted(one_of_each(0xa, 0xb)));
    assert_eq!(sorted(a.seen.wait_messages(KINDS.len())), sorted(one_of_each(0xb, 0xa)));
    let metrics = a.transport.metrics();
    assert!(
        metrics.peers[0].active && metrics.peers[0].sent_bytes > 0 && metrics.peers[0].received_bytes > 0
    );
}

#[test]
fn every_kind_of_message_arrives_intact_one_by_one() {
    let runtime = runtime();
    let (a, b) = (Member::start(&runtime, 0xa), Member::start(&runtime, 0xb));
    // b does not know a as a member, so a's streams from b are refused and b never opens its own.
    a.knows(&b);
    a.transport.send(one_of_each(0xa, 0xb));
    assert_eq!(sorted(b.seen.wait_messages(KINDS.len())), sorted(one_of_each(0xa, 0xb)));
}

#[test]
fn thousands_of_messages_keep_their_order_on_each_stream() {
    const ROUNDS: u64 = 300;
    const PER_ROUND: u64 = 20;
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    for round in 0..ROUNDS {
        let first = round * PER_ROUND;
        let mut batch = Vec::new();
        for index in first..first + PER_ROUND {
            batch.push(append(0xa, 0xb, 3, index, vec![entry(3, index + 1, vec![index as u8; 100])]));
            batch.push(Message { index: Some(index), ..message(MsgAppResp, 0xa, 0xb, 3) });
        }
        a.transport.send(batch);
        // Raft has at most 512 appends in flight; so has this test.
        b.seen.wait_messages((2 * first) as usize);
    }
    let messages = b.seen.wait_messages((2 * ROUNDS * PER_ROUND) as usize);
    for kind in [MsgApp, MsgAppResp] {
        let indexes = messages.iter().filter(|message| message.r#type == Some(kind as i32)).map(|m| m.index);
        assert!(indexes.eq((0..ROUNDS * PER_ROUND).map(Some)), "{kind:?} out of order");
    }
    assert!(messages.iter().filter(|m| !m.entries.is_empty()).all(|m| {
        m.entries[0].index == m.index.map(|index| index + 1)
            && m.entries[0].data.as_deref() == Some(&vec![m.index.unwrap_or(0) as u8; 100][..])
    }));
}

#[test]
fn append_fits_the_peers_limit() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    // The largest request that is accepted with the default settings, alone in its append; and full appends around it.
    let large = vec![7; (limits::REQUEST_BYTES_MAX_DEFAULT + limits::GRPC_OVERHEAD_BYTES) as usize];
    let batch =
        |after: u64| (1..=16).map(|n| entry(2, after + n, vec![n as u8; 64 << 10])).collect::<Vec<_>>();
    let sent = vec![
        append(0xa, 0xb, 2, 10, vec![entry(2, 11, large)]),
        append(0xa, 0xb, 2, 11, batch(11)),
        append(0xa, 0xb, 2, 27, batch(27)),
        append(0xa, 0xb, 2, 43, vec![]),
    ];
    a.transport.send(sent.clone());
    assert_eq!(b.seen.wait_messages(4), sent);

    let c = Member::start(&runtime, 0xc);
    a.knows(&c);
    let one_by_one = append(0xa, 0xc, 2, 10, sent[0].entries.clone());
    a.transport.send(vec![one_by_one.clone()]);
    assert_eq!(c.seen.wait_messages(1), [one_by_one]);
}

#[test]
fn streams_come_back_after_a_restart_of_the_peer() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    assert!(a.transport.active_since(b.id).is_some());
    let address = b.address;
    b.transport.stop();
    runtime.block_on(b.transport.stopped());
    drop(b);
    eventually("the loss is seen", || a.transport.active_since(MemberId(0xb)).is_none());
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 1)]);
    a.seen.wait_event("an unreachable peer", |event| *event == Event::Unreachable(MemberId(0xb)));

    let listener = std::net::TcpListener::bind(address).expect("the port was given back");
    let b = Member::start_with(&runtime, 0xb, listener, Settings::default());
    b.knows(&a);
    a.wait_attached(b.id);
    // The position on the msgapp stream begins anew with the connection.
    a.transport.send(vec![append(0xa, 0xb, 4, 8, vec![entry(4, 9, "x")])]);
    let message = b.seen.wait("the append", |events| {
        events.iter().find_map(|event| match event {
            Event::Message(message) if message.r#type == Some(MsgApp as i32) => Some(message.clone()),
            _ => None,
        })
    });
    assert_eq!(message, append(0xa, 0xb, 4, 8, vec![entry(4, 9, "x")]));
}

#[test]
fn a_peer_that_moved_is_found_at_its_new_address() {
    let runtime = runtime();
    let (a, b) = (Member::start(&runtime, 0xa), Member::start(&runtime, 0xb));
    let nobody = url_of(listener().local_addr().expect("bound"));
    a.transport.add_peer(b.id, vec![nobody.clone()]);
    b.knows(&a);
    a.transport.update_peer(b.id, vec![nobody, b.url()]);
    eventually("a hears b at its second address", || a.transport.active_since(b.id).is_some());
}

#[test]
fn idle_streams_outlive_every_deadline() {
    let runtime = runtime();
    let short = Duration::from_secs(1);
    let timeouts = Timeouts { read: short, write: short, request: short, ..Settings::default().timeouts };
    let start =
        |id| Member::start_with(&runtime, id, listener(), Settings { timeouts, ..Settings::default() });
    let (a, b) = (start(0xa), start(0xb));
    a.knows(&b);
    b.knows(&a);
    a.wait_attached(b.id);
    b.wait_attached(a.id);
    eventually("a hears b", || a.transport.active_since(b.id).is_some());
    let since = a.transport.active_since(b.id);
    // A heartbeat has one byte on one stream and 38 on the other; three pairs make one deadline.
    let heard = || a.transport.metrics().peers[0].received_bytes;
    let before = heard();
    eventually("several deadlines have passed", || heard() > before + 9 * 39);
    assert_eq!((a.transport.active_since(b.id), a.transport.metrics().peers[0].disconnects), (since, 0));
    assert_eq!(a.seen.reports(Topic::Connection), 0);
}

/// Bytes that differ everywhere, and then an end or an error.
struct Pattern {
    at: usize,
    length: usize,
    fails: bool,
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.length - self.at);
        if count == 0 && self.fails {
            return Err(io::Error::other("disk is gone"));
        }
        for (place, byte) in buffer[..count].iter_mut().enumerate() {
            *byte = ((self.at + place) * 7 + (self.at + place) / 251) as u8;
        }
        self.at += count;
        Ok(count)
    }
}

fn source(mut reader: impl Read + Send + 'static) -> SnapshotSource {
    SnapshotSource::new(move |out| io::copy(&mut reader, out).map(|_| ()))
}

fn pattern(length: usize) -> SnapshotSource {
    source(Pattern { at: 0, length, fails: false })
}

#[test]
fn a_snapshot_arrives_whole_and_both_ends_say_so() {
    const LENGTH: usize = (5 << 20) + 3;
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let sent = snapshot(0xa, 0xb, 5, 1234);
    a.transport.send_snapshot(b.id, sent.clone(), pattern(LENGTH));
    let mut all = Vec::new();
    Pattern { at: 0, length: LENGTH, fails: false }.read_to_end(&mut all).expect("no disk is involved");
    let sum = all.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    b.seen.wait_event("the snapshot", |event| *event == Event::Snapshot(Box::new(sent.clone()), LENGTH, sum));
    a.seen.wait_event("success", |event| *event == Event::SnapshotStatus(b.id, true));
    eventually("it is counted", || {
        let (a, b) = (&a.transport.metrics().peers[0], &b.transport.metrics().peers[0]);
        a.snapshot_send.success == 1 && b.snapshot_receive.success == 1 && b.snapshot_receive.inflight == 0
    });
}

#[test]
fn a_snapshot_that_fails_is_reported_once_and_never_looks_whole() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let failed = |count: usize| {
        a.seen.wait(&format!("{count} failures"), |events| {
            let is_failure = |event: &&Event| matches!(event, Event::SnapshotStatus(_, false));
            (events.iter().filter(is_failure).count() == count).then_some(())
        });
    };
    let broken = source(Pattern { at: 0, length: 1 << 20, fails: true });
    a.transport.send_snapshot(b.id, snapshot(0xa, 0xb, 5, 7), broken);
    failed(1);
    b.seen.wait_event("the torn upload", |event| *event == Event::SnapshotDropped);

    b.seen.fail_snapshot_finish.store(true, Ordering::Relaxed);
    a.transport.send_snapshot(b.id, snapshot(0xa, 0xb, 5, 7), pattern(1000));
    failed(2);

    // To nobody, and by the wrong door.
    a.transport.send_snapshot(MemberId(0xdd), snapshot(0xa, 0xdd, 5, 7), pattern(10));
    failed(3);
    a.transport.send(vec![snapshot(0xa, 0xb, 5, 7)]);
    failed(4);
    assert_eq!(b.seen.count(|event| matches!(event, Event::Snapshot(..))), 0);
}

#[test]
fn a_snapshot_under_way_fails_when_its_peer_is_removed() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    struct Waits(std::sync::mpsc::Receiver<()>);
    impl Read for Waits {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(0)
        }
    }
    a.transport.send_snapshot(b.id, snapshot(0xa, 0xb, 5, 7), source(Waits(blocked)));
    a.transport.send_snapshot(b.id, snapshot(0xa, 0xb, 5, 7), pattern(10));
    a.seen.wait_event("refusal of the second", |event| *event == Event::SnapshotStatus(b.id, false));
    a.seen.forget();
    a.transport.remove_peer(b.id);
    a.seen.wait_event("the end of the first", |event| *event == Event::SnapshotStatus(b.id, false));
    drop(unblock);
}

#[test]
fn a_joiner_is_answered_as_a_remote_once_the_handler_agrees() {
    let runtime = runtime();
    let (a, joiner) = (Member::start(&runtime, 0xa), Member::start(&runtime, 0xf));
    joiner.knows(&a);
    joiner.transport.send(vec![message(MsgAppResp, 0xf, 0xa, 2)]);
    a.seen.wait_messages(1);
    assert_eq!(a.transport.peers(), [], "nobody agreed");

    a.seen.accept_remotes.store(true, Ordering::Relaxed);
    eventually("a remembers the joiner", || a.transport.peers() == [MemberId(0xf)]);
    a.transport.send(vec![append(0xa, 0xf, 2, 0, vec![])]);
    joiner.seen.wait_messages(1);
    // When the log says that it is a member, it gets streams.
    a.knows(&joiner);
    a.wait_attached(joiner.id);
    joiner.wait_attached(a.id);
}

#[test]
fn members_question_each_other() {
    let runtime = runtime();
    let a = Member::start(&runtime, 0xa);
    let known = PeerMember {
        id: MemberId(0xfedc_ba98_7654_3210),
        peer_urls: vec!["http://h:2380".into()],
        is_learner: true,
        name: "n1".into(),
        client_urls: vec!["http://h:2379".into()],
    };
    *a.seen.members.lock() = vec![known.clone()];
    let client = PeerClient::new(PATIENCE);
    runtime.block_on(async {
        let members = client.members(&a.url()).await.expect("an answer");
        assert_eq!((members.cluster, members.members), (CLUSTER, vec![known]));
        let version = client.version(&a.url()).await.expect("an answer");
        assert_eq!((version.server.as_str(), version.cluster.as_deref()), ("3.6.1", Some("3.5.0")));
        let hash = client.hash_kv(&a.url(), CLUSTER, 50).await.expect("an answer");
        assert_eq!((hash.revision, hash.hash, hash.hash_revision), (99, 0xdead_beef, 50));
        let compacted = client.hash_kv(&a.url(), CLUSTER, 1).await;
        assert!(
            matches!(&compacted, Err(PeerClientError::WrongStatus { status: 400, text, .. })
                if text == "mvcc: required revision has been compacted"),
            "{compacted:?}"
        );
    });
}

#[test]
fn corruption_check_compares_cluster_id() {
    let runtime = runtime();
    let foreign = Settings { cluster: ClusterId(0xf0), ..Settings::default() };
    let stranger = Member::start_with(&runtime, 0xa, listener(), foreign);
    let client = PeerClient::new(PATIENCE);
    let answer = runtime.block_on(client.hash_kv(&stranger.url(), CLUSTER, 50));
    assert!(matches!(answer, Err(PeerClientError::OtherCluster { .. })), "{answer:?}");
}

#[test]
fn a_question_to_nobody_and_to_something_else_fail_differently() {
    let runtime = runtime();
    let client = PeerClient::new(Duration::from_millis(500));
    let port = listener();
    let url = url_of(port.local_addr().expect("bound"));
    runtime.block_on(async {
        // Bound but never accepting: the connection stands, the answer does not come.
        assert!(matches!(client.members(&url).await, Err(PeerClientError::TimedOut { .. })));
        drop(port);
        assert!(matches!(client.members(&url).await, Err(PeerClientError::Unreachable { .. })));
    });
    let talker = listener();
    let url = url_of(talker.local_addr().expect("bound"));
    let talking = std::thread::spawn(move || {
        use std::io::Write;
        for text in [
            "220 mail.example ESMTP\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        ] {
            let (mut stream, _) = talker.accept().expect("a caller");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(text.as_bytes());
        }
    });
    let client = PeerClient::new(PATIENCE);
    runtime.block_on(async {
        for _ in 0..2 {
            let answer = client.members(&url).await;
            assert!(matches!(answer, Err(PeerClientError::NotEtcd { .. })), "{answer:?}");
        }
        let answer = client.members(&url).await;
        assert!(matches!(&answer, Err(PeerClientError::WrongStatus { status: 403, .. })), "{answer:?}");
    });
    talking.join().expect("the talker had three callers");
}

/// What one port answers, one line of head for each question; `None` answers nothing.
fn answering(answers: impl IntoIterator<Item = Option<String>> + Send + 'static) -> (url::Url, Answering) {
    let port = listener();
    let url = url_of(port.local_addr().expect("bound"));
    let answering = std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Write};
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = port.accept().expect("a caller");
            let reader = BufReader::new(stream.try_clone().expect("share a connection"));
            let head: Vec<String> =
                reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            heads.push(head.first().cloned().unwrap_or_default());
            match answer {
                Some(answer) => {
                    let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                }
                // Until the caller has enough.
                None => drop(stream.read(&mut [0])),
            }
        }
        heads
    });
    (url, answering)
}

type Answering = std::thread::JoinHandle<Vec<String>>;

#[test]
fn redirects_in_peer_check() {
    let runtime = runtime();
    let member = Member::start(&runtime, 0xa);
    let client = PeerClient::new(PATIENCE);
    let answered = |answers: Vec<String>| answering(answers.into_iter().map(Some));
    let moved = |status: &str, to: &str| format!("{status}\r\nLocation: {to}");
    let whole = |path: &str| format!("{}{path}", member.url());

    // Every kind that there is, to a whole URL and to a path; the questions that find a cluster reach the member behind them.
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
        let (url, proxy) = answered(vec![
            moved(status, "/elsewhere?x=1"),
            moved(status, &whole("members")),
            moved(status, &whole("version")),
        ]);
        let (members, version) =
            runtime.block_on(async { (client.members(&url).await, client.version(&url).await) });
        assert_eq!(members.expect("the member's answer").cluster, CLUSTER, "{status}");
        assert!(!version.expect("the member's answer").server.is_empty(), "{status}");
        let heads = proxy.join().expect("three callers");
        assert_eq!(
            heads,
            ["GET /members HTTP/1.1", "GET /elsewhere?x=1 HTTP/1.1", "GET /version HTTP/1.1"],
            "{status}"
        );
    }

    // In circles: ten times and no more. To what cannot be asked: a reason, and nobody is asked.
    let (url, circle) = answered(vec![moved("301 Moved", "/members"); 11]);
    let error = runtime.block_on(client.members(&url)).expect_err("a circle has no members").to_string();
    assert!(error.contains("redirects more than 10 times, last to"), "{error}");
    assert_eq!(circle.join().expect("eleven callers").len(), 11);
    let gone = url_of(listener().local_addr().expect("bound"));
    for (to, said) in [
        ("https://db1:2380/members", "scheme https is not supported"),
        ("ftp://db1/members", "scheme ftp is not supported"),
        ("http://[::1/members", "invalid IPv6 address"),
        (gone.as_str(), "refused"),
    ] {
        let (url, proxy) = answered(vec![moved("302 Found", to)]);
        let error = runtime.block_on(client.members(&url)).expect_err(to);
        let text = error.to_string();
        assert!(matches!(error, PeerClientError::Redirected { .. }) && text.contains(said), "{to}: {text}");
        proxy.join().expect("one caller");
    }
    // One that redirects to nowhere has only a status.
    let (url, proxy) = answered(vec!["302 Found".into()]);
    let error = runtime.block_on(client.members(&url)).expect_err("nowhere");
    assert!(matches!(error, PeerClientError::WrongStatus { status: 302, .. }), "{error}");
    proxy.join().expect("one caller");

    // The patience is for all of it together.
    let impatient = PeerClient::new(Duration::from_millis(300));
    let (url, proxy) = answering([Some(moved("307 Temporary", "/members")), None]);
    let error = runtime.block_on(impatient.members(&url)).expect_err("silence");
    assert!(matches!(error, PeerClientError::TimedOut { .. }), "{error}");
    proxy.join().expect("two callers");

    // What is asked of one member is not asked of whoever it names.
    let (url, proxy) = answered(vec![moved("307 Temporary", &whole("members/hashkv"))]);
    let error = runtime.block_on(client.hash_kv(&url, CLUSTER, 0)).expect_err("not the one that was asked");
    assert!(matches!(error, PeerClientError::Redirected { .. }), "{error}");
    proxy.join().expect("one caller");
}

#[test]
fn round_trips_are_measured() {
    let runtime = runtime();
    let (a, _b) = pair(&runtime);
    eventually("a probe has come back", || a.transport.metrics().peers[0].rtt.count > 0);
    assert_eq!(a.seen.reports(Topic::ClockDrift), 0, "both have the same clock");
}

#[test]
fn questions_about_leases_share_a_few_kept_connections() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let before = b.transport.metrics().open_connections;
    runtime.block_on(async {
        let mut asked = tokio::task::JoinSet::new();
        for round in 0..500 {
            let (transport, to) = (a.transport.clone(), b.id);
            asked.spawn(async move {
                if round % 5 == 0 {
                    let request = LeaseTimeToLiveRequest { id: 7, keys: true };
                    let answer =
                        transport.lease_time_to_live(to, request, PATIENCE).await.expect("an answer");
                    assert_eq!((answer.ttl, answer.granted_ttl, answer.keys.len()), (17, 42, 1));
                } else {
                    assert_eq!(transport.renew_lease(to, 7, PATIENCE).await, Ok(42));
                }
            });
        }
        while let Some(done) = asked.join_next().await {
            done.expect("no panic");
        }
        assert_eq!(a.transport.renew_lease(b.id, 9, PATIENCE).await, Err(LeaseCallError::NotFound));
        let refused = a.transport.renew_lease(b.id, 11, PATIENCE).await;
        assert!(
            matches!(&refused, Err(LeaseCallError::NoAnswer(text)) if text.contains("not a primary lessor"))
        );
        let stranger = a.transport.renew_lease(MemberId(0xdead), 7, PATIENCE).await;
        assert!(matches!(stranger, Err(LeaseCallError::NoAnswer(_))));
    });
    // A probe or a message without its stream may have one of its own.
    let opened = b.transport.metrics().open_connections.saturating_sub(before);
    assert!((1..=40).contains(&opened), "{opened} connections for 500 questions at once");
}

/// Clients that come, ask and go again must not use up what those who stay need.
#[test]
fn a_question_whose_asker_has_gone_is_given_up() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let before = b.transport.metrics().open_connections;
    runtime.block_on(async {
        let mut gone = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (transport, to) = (a.transport.clone(), b.id);
            gone.spawn(async move { transport.renew_lease(to, 13, 100 * PATIENCE).await });
        }
        let asked_at = std::time::Instant::now();
        while b.transport.metrics().open_connections < before + 32 {
            assert!(asked_at.elapsed() < PATIENCE, "all connections are in use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gone.shutdown().await;
        assert_eq!(a.transport.renew_lease(b.id, 7, PATIENCE).await, Ok(42));
    });
}

#[test]
fn a_promotion_is_passed_on_and_every_refusal_is_told_apart() {
    let runtime = runtime();
    let (a, b) = pair(&runtime);
    let ask = |to: MemberId, member: u64| {
        runtime.block_on(a.transport.promote_member(to, MemberId(member), PATIENCE))
    };
    let refused = |refusal| Err(PromoteError::Refused(refusal));
    assert_eq!(ask(b.id, 1), refused(PromoteRefusal::NotLearner));
    assert_eq!(ask(b.id, 2), refused(PromoteRefusal::NotReady));
    assert_eq!(ask(b.id, 3), refused(PromoteRefusal::NotEnoughStarted));
    assert_eq!(ask(b.id, 77), refused(PromoteRefusal::NotFound));
    assert_eq!(ask(b.id, 5), Ok(b.seen.members.lock().clone()));
    assert!(matches!(ask(b.id, 4), Err(PromoteError::NoAnswer(text)) if text.contains("500")));
    assert!(matches!(ask(MemberId(0xdead), 5), Err(PromoteError::NoAnswer(_))));
}
