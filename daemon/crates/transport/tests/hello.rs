//! Who is at the other end: said both ways on every connection, judged, and refused with a reason. And the port before raft runs.

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use api::raftpb::MessageType::*;
use identity::{Hello, Question, Record, Standing, Unique, Verdict};
use prost::Message as _;
use support::*;
use tokio::runtime::Runtime;
use transport::{Lobby, PeerClient, PeerClientError, Timeouts, Topic};
use types::MemberId;

const HELLO: &str = "X-Cairn-Hello";

/// Waits are short where something is expected to end them.
fn impatient() -> Settings {
    let ordinary = Settings::default();
    let timeouts = Timeouts {
        read: Duration::from_millis(300),
        reconnect_max: Duration::from_millis(200),
        ..ordinary.timeouts
    };
    Settings { timeouts, ..ordinary }
}

fn member(runtime: &Runtime, id: u64, nonce: u128) -> Member {
    Member::start_as(runtime, hello(id, nonce), Settings::default())
}

fn judges(member: &Member, peer: &Member, change: impl FnOnce(&mut identity::Known)) {
    let mut known = knows_nothing_against(member.id);
    change(&mut known);
    member.seen.known.lock().insert(peer.id, known);
}

fn sessions(member: &Member) -> Vec<(MemberId, Unique)> {
    member.transport.sessions().iter().map(|hello| (hello.member, hello.boot.nonce)).collect()
}

fn encoded(hello: &Hello) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(hello).expect("JSON"))
}

fn ask_hello(runtime: &Runtime, at: &Member, question: Hello) -> Result<identity::Answer, PeerClientError> {
    let question = Question { hello: question, config: None };
    runtime.block_on(PeerClient::new(PATIENCE).hello(&at.url(), &question))
}

#[test]
fn members_say_who_they_are_both_ways() {
    let runtime = runtime();
    let (a, b) = (member(&runtime, 0xa, 1), member(&runtime, 0xb, 2));
    a.knows(&b);
    b.knows(&a);
    a.wait_attached(b.id);
    b.wait_attached(a.id);
    a.seen.wait_event("b is heard", |event| *event == Event::Began(MemberId(0xb), Unique::for_test(2)));
    b.seen.wait_event("a is heard", |event| *event == Event::Began(MemberId(0xa), Unique::for_test(1)));
    a.seen.wait_event("b takes a", |event| *event == Event::Welcomed(MemberId(0xb)));
    assert_eq!(sessions(&a), [(MemberId(0xb), Unique::for_test(2))]);
    let begun = a.seen.count(|event| matches!(event, Event::Began(..)));
    assert_eq!(begun, 1, "four streams make one session");
    a.transport.send(vec![message(MsgHeartbeat, 0xa, 0xb, 3)]);
    b.seen.wait_messages(1);

    b.transport.stop();
    eventually("its session ends with its streams", || sessions(&a).is_empty());
}

#[test]
fn who_says_nothing_is_taken_for_etcd_unless_it_is_known_for_cairn() {
    let runtime = runtime();
    let (a, etcd) = (member(&runtime, 0xa, 1), Member::start(&runtime, 0xe));
    judges(&a, &etcd, |_| ());
    a.knows(&etcd);
    etcd.knows(&a);
    a.wait_attached(etcd.id);
    etcd.wait_attached(a.id);
    etcd.transport.send(vec![message(MsgHeartbeat, 0xe, 0xa, 3)]);
    a.seen.wait_messages(1);
    assert!(sessions(&a).is_empty(), "which start of it this is nobody knows");

    let pretender = Member::start(&runtime, 0xc);
    judges(&a, &pretender, |known| known.record = Some(Record::from(&hello(0xc, 9))));
    a.knows(&pretender);
    pretender.knows(&a);
    pretender.seen.wait_event(
        "the refusal is told",
        |event| matches!(event, Event::NotWelcome(_, refused, _) if refused.verdict.name() == "lost_data"),
    );
    let answer =
        ask(a.address, "POST", "/raft", &headers(0xc), &message(MsgVote, 0xc, 0xa, 3).encode_to_vec());
    assert_eq!(answer.status, 412, "{}", answer.body);
    assert!(answer.head.to_ascii_lowercase().contains("x-cairn-verdict: lost_data"), "{}", answer.head);
    assert_eq!(a.seen.messages().len(), 1, "not one of its messages was taken");
}

#[test]
fn who_is_refused_hears_why_and_goes_on_asking_slowly() {
    let runtime = runtime();
    let a = member(&runtime, 0xa, 1);
    let b = Member::start_as(&runtime, hello(0xb, 2), impatient());
    judges(&a, &b, |known| {
        known.standing = Standing::Removed { index: 7, term: 2, asked_through: Some("n1 (ab)".into()) };
    });
    a.knows(&b);
    let started = Instant::now();
    b.knows(&a);
    b.seen.wait("six refusals", |events| {
        let refused = |event: &&Event| matches!(event, Event::NotWelcome(..));
        (events.iter().filter(refused).count() >= 6).then_some(())
    });
    // Two streams, each at once and then after a pause.
    assert!(started.elapsed() >= 2 * impatient().timeouts.reconnect_max, "it asks in a hurry");
    let told = b.seen.wait_event("a refusal", |event| matches!(event, Event::NotWelcome(..)));
    let Event::NotWelcome(by, refused, says_who_it_is) = told else { unreachable!("asked for") };
    assert_eq!((by, says_who_it_is), (a.id, true));
    let expected = Verdict::Removed { index: 7, term: 2, asked_through: Some("n1 (ab)".into()) };
    assert_eq!((refused.verdict, refused.witness.member), (expected, a.id));
    assert_eq!(b.seen.count(|event| matches!(event, Event::ToldRemoved(..))), 0, "that is etcd's way");

    // Its messages are refused too, and so is what it answers to us.
    b.transport.send(vec![message(MsgVote, 0xb, 0xa, 9)]);
    b.seen.wait_event("the message is lost", |event| matches!(event, Event::Unreachable(_)));
    assert!(a.seen.messages().is_empty() && sessions(&a).is_empty());
    assert!(!b.transport.is_attached(a.id));

    a.seen.known.lock().clear();
    a.wait_attached(b.id);
    b.wait_attached(a.id);
}

/// Attached to each other, both with judgement.
fn two_that_judge(runtime: &Runtime) -> (Member, Member) {
    let (a, b) = (member(runtime, 0xa, 1), member(runtime, 0xb, 2));
    judges(&a, &b, |_| ());
    a.knows(&b);
    b.knows(&a);
    a.wait_attached(b.id);
    b.wait_attached(a.id);
    (a, b)
}

#[test]
fn who_has_to_wait_is_told_so_and_is_heard_later() {
    let runtime = runtime();
    let (a, b) = (member(&runtime, 0xa, 1), member(&runtime, 0xb, 2));
    a.seen.hears_nobody.store(true, std::sync::atomic::Ordering::Relaxed);
    // Only b knows the other one, so there are no streams: as between a founder and somebody who joined an earlier life.
    b.knows(&a);
    b.transport.send(vec![message(MsgHeartbeatResp, 0xb, 0xa, 3)]);
    b.seen.wait_event("it is lost", |event| *event == Event::Unreachable(MemberId(0xa)));
    let said = with(headers(0xb), HELLO, &encoded(&hello(0xb, 2)));
    for (path, body) in
        [("/raft", message(MsgApp, 0xb, 0xa, 3).encode_to_vec()), ("/raft/snapshot", Vec::new())]
    {
        let answer = ask(a.address, "POST", path, &said, &body);
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
    }
    assert_eq!(b.seen.count(|event| matches!(event, Event::NotWelcome(..))), 0, "nothing is held against it");
    assert!(a.seen.messages().is_empty(), "not one of its messages was taken");
    a.seen.hears_nobody.store(false, std::sync::atomic::Ordering::Relaxed);
    let answer = ask(a.address, "POST", "/raft", &said, &message(MsgApp, 0xb, 0xa, 3).encode_to_vec());
    assert_eq!(answer.status, 204, "{}", answer.body);
    a.seen.wait_messages(1);
}

#[test]
fn a_twin_is_refused_while_the_first_is_heard() {
    let runtime = runtime();
    let (a, b) = two_that_judge(&runtime);
    let twin = Member::start_as(&runtime, hello(0xb, 3), impatient());
    twin.knows(&a);
    let told = twin.seen.wait_event("it is told", |event| matches!(event, Event::NotWelcome(..)));
    let Event::NotWelcome(_, refused, _) = told else { unreachable!("asked for") };
    assert!(matches!(&refused.verdict, Verdict::Duplicate { home, .. } if home.host == "db1"), "{refused:?}");
    twin.transport.send(vec![message(MsgVote, 0xb, 0xa, 9)]);
    twin.seen.wait_event("its message is lost", |event| matches!(event, Event::Unreachable(_)));
    assert_eq!(sessions(&a), [(b.id, Unique::for_test(2))]);
    assert!(b.transport.is_attached(a.id) && a.seen.messages().is_empty(), "the first notices nothing");
    let answer = ask_hello(&runtime, &a, hello(0xb, 3)).expect("an answer");
    assert_eq!(answer.verdict.name(), "duplicate", "a question gets the same answer");
    let answer = ask_hello(&runtime, &a, hello(0xb, 2)).expect("an answer");
    assert_eq!(answer.verdict, Verdict::Welcome, "and the first is no twin of itself");

    // The first ends: the other is the member now, wherever it listens.
    b.transport.stop();
    a.transport.update_peer(b.id, vec![twin.url()]);
    eventually("the second is heard", || sessions(&a) == [(b.id, Unique::for_test(3))]);
}

#[test]
fn a_session_that_is_ended_takes_all_streams_with_it() {
    let runtime = runtime();
    let (a, b) = two_that_judge(&runtime);
    judges(&a, &b, |known| {
        known.record = Some(Record { dir: Unique::for_test(99), ..Record::from(&hello(0xb, 2)) })
    });
    a.transport.end_session(b.id, Unique::for_test(77));
    assert_eq!(sessions(&a).len(), 1, "of another start");
    a.transport.end_session(b.id, Unique::for_test(2));
    assert!(sessions(&a).is_empty());
    eventually("what it read is closed", || !a.transport.is_attached(b.id));
    eventually("what it wrote is closed", || !b.transport.is_attached(a.id));
    b.seen.wait_event("it hears why", |event| matches!(event, Event::NotWelcome(..)));
    judges(&a, &b, |_| ());
    a.wait_attached(b.id);
    b.wait_attached(a.id);
}

#[test]
fn unreadable_hellos_are_refused_and_do_no_harm() {
    let runtime = runtime();
    let a = Member::start_as(&runtime, hello(0xa, 1), impatient());
    a.transport.add_peer(MemberId(0xb), vec![]);
    let heartbeat = message(MsgHeartbeat, 0xb, 0xa, 3).encode_to_vec();
    let good = encoded(&hello(0xb, 2));
    let of_another = encoded(&hello(0xc, 2));
    let mut broken = good.clone();
    broken.truncate(good.len() / 2);
    let rows = [
        ("not base64", "%%%".to_owned(), 400),
        ("nothing", String::new(), 400),
        ("not JSON", "AAAA".to_owned(), 400),
        ("half of it", broken, 400),
        ("deep", encoded_text(&"[".repeat(4000)), 400),
        ("too long", "A".repeat(20_000), 400),
        ("of another member", of_another, 400),
        ("in order", good, 204),
    ];
    for (what, value, status) in rows {
        let said = with(headers(0xb), HELLO, &value);
        let answer = ask(a.address, "POST", "/raft", &said, &heartbeat);
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        if status == 400 {
            let stream =
                ask(a.address, "GET", "/raft/stream/message/b", &with(said.clone(), "X-Raft-To", "a"), b"");
            assert_eq!(stream.status, 400, "{what}: {}", stream.body);
            let snapshot = ask(a.address, "POST", "/raft/snapshot", &said, b"");
            assert_eq!(snapshot.status, 400, "{what}: {}", snapshot.body);
        }
    }
    // A head as a whole has a limit of its own.
    let huge = ask(a.address, "POST", "/raft", &with(headers(0xb), HELLO, &"A".repeat(200_000)), &heartbeat);
    assert!(huge.status != 204, "{}", huge.status);
    assert_eq!(a.seen.messages().len(), 1);
    assert_eq!(a.seen.reports(Topic::Garbage), 1, "said once a minute");
}

fn encoded_text(text: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(text)
}

#[test]
fn everybody_may_ask_who_is_there_in_the_right_way() {
    let runtime = runtime();
    let a = Member::start_as(&runtime, hello(0xa, 1), impatient());
    let stranger = Hello { cluster_id: types::ClusterId(9), ..hello(0xdead, 7) };
    let answer = ask_hello(&runtime, &a, stranger.clone()).expect("strangers too");
    assert_eq!((answer.hello.member, answer.known.witness.member), (a.id, a.id));
    let json = serde_json::to_vec(&Question { hello: stranger, config: None }).expect("JSON");
    let rows: [(&str, Vec<u8>, u16); 7] = [
        ("GET", vec![], 405),
        ("POST", vec![], 400),
        ("POST", b"{}".to_vec(), 400),
        ("POST", json[..json.len() - 1].to_vec(), 400),
        ("POST", vec![b'['; 60_000], 400),
        ("POST", vec![b' '; 70_000], 413),
        ("POST", json, 200),
    ];
    for (method, body, status) in rows {
        let answer = ask(a.address, method, "/cairn/hello", &[], &body);
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    let etcd = Member::start(&runtime, 0xe);
    let error = ask_hello(&runtime, &etcd, hello(0xa, 1)).expect_err("it says nothing of itself");
    assert!(matches!(error, PeerClientError::NotCairn { .. }), "{error}");
    drop(etcd);
    let nobody = Member { address: listener().local_addr().expect("it was free"), ..a };
    let error = ask_hello(&runtime, &nobody, hello(0xa, 1)).expect_err("nobody listens");
    assert!(matches!(error, PeerClientError::Unreachable { .. }), "{error}");
}

/// Sends a body byte by byte for as long as anybody takes it; what was answered.
fn drip(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let head = "POST /cairn/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("a head is taken");
    let mut dripping = stream.try_clone().expect("a socket");
    let drops = std::thread::spawn(move || {
        while dripping.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let _ = stream.shutdown(Shutdown::Both);
    drops.join().expect("no panic");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_question_that_trickles_is_given_up() {
    let runtime = runtime();
    let a = Member::start_as(&runtime, hello(0xa, 1), impatient());
    let answer = drip(a.address);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    assert!(ask_hello(&runtime, &a, hello(0xb, 2)).is_ok());
}

fn lobby(listener: &TcpListener) -> Lobby {
    let answer = |question: Question| {
        let known = knows_nothing_against(MemberId(0xa));
        let verdict = identity::judge::judge(&question.hello, &known);
        identity::Answer { hello: hello(0xa, 1), known, verdict, config: question.config, members: vec![] }
    };
    let clone = listener.try_clone().expect("the same port once more");
    Lobby::start(vec![clone], Arc::new(answer)).expect("a lobby")
}

#[test]
fn the_lobby_answers_hellos_and_nothing_else_and_gives_the_port_back() {
    let runtime = runtime();
    let listener = listener();
    let address = listener.local_addr().expect("bound");
    let first = lobby(&listener);
    let client = PeerClient::new(PATIENCE);
    let question = Question { hello: hello(0xb, 2), config: None };
    let answer = runtime.block_on(client.hello(&url_of(address), &question)).expect("an answer");
    assert_eq!((answer.hello.member, &answer.verdict), (MemberId(0xa), &Verdict::Welcome));
    assert_eq!(first.answered(), 1);
    for (method, path, status) in [
        ("GET", "/members", 503),
        ("GET", "/version", 503),
        ("GET", "/raft/stream/message/b", 503),
        ("POST", "/raft", 503),
        ("POST", "/raft/snapshot", 503),
        ("GET", "/", 503),
        ("GET", "/cairn/hello", 405),
        ("POST", "/cairn/hello", 400),
    ] {
        let answer = ask(address, method, path, &headers(0xb), b"");
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
    }
    assert_eq!(first.stop(), 1, "only good questions were answered");

    // Nobody answers, and nobody else can have the port.
    assert!(TcpListener::bind(address).is_err());
    let second = lobby(&listener);
    assert!(runtime.block_on(client.hello(&url_of(address), &question)).is_ok());
    drop(second);
    let a = Member::start_with(&runtime, 0xa, listener, Settings::default());
    assert_eq!(ask(a.address, "GET", "/members", &[], b"").status, 200);
}

#[test]
fn a_lobby_full_of_silent_callers_closes_at_once_and_still_answers_the_others() {
    let runtime = runtime();
    let listener = listener();
    let address = listener.local_addr().expect("bound");
    let lobby = lobby(&listener);
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(address).expect("the port is open")).collect();
    let mut half = TcpStream::connect(address).expect("the port is open");
    half.write_all(b"POST /cairn/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
        .expect("a socket");
    let question = Question { hello: hello(0xb, 2), config: None };
    let answer = runtime.block_on(PeerClient::new(PATIENCE).hello(&url_of(address), &question));
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(lobby.stop(), 1);
    drop((silent, half));
}

#[test]
fn members_of_cairn_and_of_etcd_live_side_by_side() {
    let runtime = runtime();
    let (a, b, etcd) = (member(&runtime, 0xa, 1), member(&runtime, 0xb, 2), Member::start(&runtime, 0xe));
    let all = [&a, &b, &etcd];
    for one in all {
        for other in all.iter().filter(|other| other.id != one.id) {
            one.knows(other);
        }
    }
    for one in all {
        all.iter().filter(|other| other.id != one.id).for_each(|other| one.wait_attached(other.id));
    }
    assert_eq!(sessions(&a), [(b.id, Unique::for_test(2))]);
    assert!(sessions(&etcd).len() == 2, "our own transport hears what a real etcd does not");
    assert_eq!(etcd.seen.count(|event| matches!(event, Event::NotWelcome(..))), 0);
}
