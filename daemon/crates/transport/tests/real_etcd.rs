//! A real etcd as the other member of a cluster of two. It dials us, votes with us, leads us, and then follows us: if its bytes and ours
//! were not the same protocol, none of that would happen.
//!
//! Needs `CAIRN_REAL_ETCD`, a directory with `etcd` and `etcdctl`; without it the tests say that they were skipped.

mod support;

use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use api::{
    etcdserverpb::LeaseTimeToLiveRequest,
    raftpb::{Message, MessageType, MessageType::*},
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use sha1::{Digest, Sha1};
use support::*;
use tokio::runtime::Runtime;
use transport::{LeaseCallError, PeerClient, PeerClientError, PeerMember};
use types::{ClusterId, MemberId};

const TOKEN: &str = "etcd-cluster";

fn first_eight(digest: impl AsRef<[u8]>) -> u64 {
    digest.as_ref()[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn member_id(url: &str) -> MemberId {
    MemberId(first_eight(Sha1::digest([url, TOKEN].concat())))
}

fn cluster_id(mut members: Vec<MemberId>) -> ClusterId {
    members.sort_unstable();
    let bytes: Vec<u8> = members.iter().flat_map(|id| id.0.to_be_bytes()).collect();
    ClusterId(first_eight(Sha1::digest(bytes)))
}

fn binaries() -> Option<PathBuf> {
    let found = std::env::var_os("CAIRN_REAL_ETCD").map(PathBuf::from);
    if found.is_none() {
        skipped("CAIRN_REAL_ETCD names no directory with a real etcd");
    }
    found
}

/// Past the capture of the test harness: a test that did not run must not look like one that passed.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

struct Etcd {
    child: Child,
    log: PathBuf,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("etcd's last lines, newest first:\n{}", tail.join("\n"));
        }
    }
}

/// A real etcd and us, the two members of a new cluster.
struct Couple {
    us: Arc<Member>,
    them: MemberId,
    cluster: ClusterId,
    binaries: PathBuf,
    peer_url: String,
    client_url: String,
    _etcd: Etcd,
    _directory: tempfile::TempDir,
}

impl Couple {
    /// Returns when all four streams are attached.
    fn start(runtime: &Runtime, binaries: PathBuf, extra: &[&str]) -> Couple {
        let directory = tempfile::tempdir().expect("a directory");
        let ours = listener();
        let our_port = ours.local_addr().expect("bound").port();
        let (peer_port, client_port) = (free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (them, us) = (member_id(&url(peer_port)), member_id(&url(our_port)));
        let cluster = cluster_id(vec![them, us]);
        // The version that we claim by default, which is later than theirs.
        let settings =
            Settings { cluster, version: types::limits::ETCD_VERSION.into(), ..Settings::default() };
        let us = Arc::new(Member::start_with(runtime, us.0, ours, settings));
        // It says who it is, and etcd takes no notice.
        *us.seen.hello.lock() = Some(hello(us.id.0, 1));
        let member = |id, port| PeerMember {
            id,
            peer_urls: vec![url(port)],
            is_learner: false,
            name: String::new(),
            client_urls: vec![],
        };
        *us.seen.members.lock() = vec![member(them, peer_port), member(us.id, our_port)];
        us.transport.add_peer(them, vec![url(peer_port).parse().expect("a URL")]);

        let log = directory.path().join("log");
        let out = File::create(&log).expect("a log file");
        let child = Command::new(binaries.join("etcd"))
            .args(["--name", "n1", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--initial-cluster", &format!("n1={},n2={}", url(peer_port), url(our_port))])
            .args(["--initial-cluster-token", TOKEN, "--initial-cluster-state", "new"])
            .args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--listen-client-urls", &url(client_port), "--advertise-client-urls", &url(client_port)])
            .args(["--logger", "zap"])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a file"))
            .stderr(out)
            .spawn()
            .expect("etcd starts");
        let couple = Couple {
            us,
            them,
            cluster,
            binaries,
            peer_url: url(peer_port),
            client_url: url(client_port),
            _etcd: Etcd { child, log },
            _directory: directory,
        };
        couple.us.wait_attached(them);
        eventually("we hear etcd", || couple.us.transport.active_since(them).is_some());
        couple
    }

    fn etcdctl(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = Command::new(self.binaries.join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.client_url, "--dial-timeout", "30s", "--command-timeout", "30s"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        child.stdin.take().expect("piped").write_all(input).expect("etcdctl reads");
        let output = child.wait_with_output().expect("etcdctl ends");
        assert!(output.status.success(), "etcdctl {arguments:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A port that was free a moment ago: etcd binds its own.
fn free_port() -> u16 {
    listener().local_addr().expect("bound").port()
}

/// How our part of the couple answers raft; it keeps no log.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// As a follower that has everything.
    Obedient,
    /// As a follower that votes and has nothing.
    Empty,
    Silent,
}

/// Answers etcd's messages on a thread of its own until dropped.
struct Follower {
    mood: Arc<Mutex<Mood>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(us: Arc<Member>) -> Follower {
        let (mood, end) = (Arc::new(Mutex::new(Mood::Obedient)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (mood, end) = (mood.clone(), end.clone());
            move || {
                let mut handled = 0;
                while !end.load(Ordering::Relaxed) {
                    let messages = us.seen.messages();
                    let mood = *mood.lock();
                    let answers =
                        messages[handled..].iter().filter_map(|message| answer(us.id, mood, message));
                    us.transport.send(answers.collect());
                    handled = messages.len();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Follower { mood, end, thread: Some(thread) }
    }

    fn turns(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Keeps another member following us, until dropped.
struct Heartbeats {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeats {
    fn start(us: Arc<Member>, to: MemberId, term: u64) -> Heartbeats {
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let end = end.clone();
            move || {
                while !end.load(Ordering::Relaxed) {
                    us.transport.send(vec![support::message(MsgHeartbeat, us.id.0, to.0, term)]);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        });
        Heartbeats { end, thread: Some(thread) }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(me: MemberId, mood: Mood, message: &Message) -> Option<Message> {
    if mood == Mood::Silent {
        return None;
    }
    let with = |kind: MessageType| {
        support::message(kind, me.0, message.from.unwrap_or(0), message.term.unwrap_or(0))
    };
    match transport::codec::kind(message)? {
        MsgPreVote => Some(with(MsgPreVoteResp)),
        MsgVote => Some(with(MsgVoteResp)),
        MsgHeartbeat => Some(Message { context: message.context.clone(), ..with(MsgHeartbeatResp) }),
        MsgApp if mood == Mood::Empty => Some(Message {
            index: message.index,
            reject: Some(true),
            reject_hint: Some(0),
            ..with(MsgAppResp)
        }),
        MsgApp => {
            let last = message.entries.last().and_then(|entry| entry.index).or(message.index);
            Some(Message { index: last, ..with(MsgAppResp) })
        }
        _ => None,
    }
}

fn is_kind(event: &Event, kinds: &[MessageType]) -> bool {
    matches!(event, Event::Message(message) if kinds.iter().any(|kind| message.r#type == Some(*kind as i32)))
}

#[test]
fn a_real_etcd_votes_leads_and_follows() {
    let Some(binaries) = binaries() else { return };
    let runtime = runtime();
    let couple = Couple::start(&runtime, binaries, &[]);
    let (us, them) = (&couple.us, couple.them);

    // Its messages get an obedient follower's answers, until it is the leader of us two.
    let follower = Follower::start(us.clone());
    us.seen.wait_event("a pre-vote or a vote", |event| is_kind(event, &[MsgPreVote, MsgVote]));
    us.seen.wait_event("an append", |event| is_kind(event, &[MsgApp]));

    // Writes reach us as entries, small ones and one of a megabyte.
    for round in 0..20 {
        assert_eq!(couple.etcdctl(&["put", &format!("key-{round}"), "value"], &[]), "OK\n");
    }
    let large = vec![b'x'; 1 << 20];
    assert_eq!(couple.etcdctl(&["put", "large"], &large), "OK\n");
    assert!(
        couple.etcdctl(&["get", "key-7"], &[]).contains("value"),
        "a linearizable read goes round through us"
    );
    let contains = |data: &[u8], part: &[u8]| data.windows(part.len()).any(|window| window == part);
    us.seen.wait_event("the large value", |event| {
        let Event::Message(message) = event else { return false };
        message.entries.iter().any(|entry| entry.data.as_ref().is_some_and(|data| contains(data, &large)))
    });
    let strays =
        us.seen.count(|event| matches!(event, Event::Message(message) if message.from != Some(them.0)));
    assert_eq!(strays, 0, "everything is from etcd");

    // Its answers to questions.
    let client = PeerClient::new(PATIENCE);
    let peer_url = couple.peer_url.parse().expect("a URL");
    runtime.block_on(async {
        let members = client.members(&peer_url).await.expect("an answer");
        assert_eq!(members.cluster, couple.cluster);
        let mut ids: Vec<_> = members.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        let mut expected = vec![them, us.id];
        expected.sort_unstable();
        assert_eq!(ids, expected);
        assert!(members.members.iter().any(|member| member.name == "n1"));
        let question = identity::Question { hello: hello(us.id.0, 1), config: None };
        let error = client.hello(&peer_url, &question).await.expect_err("etcd knows no hello");
        assert!(matches!(error, PeerClientError::NotCairn { .. }), "{error}");
        let version = client.version(&peer_url).await.expect("an answer");
        assert!(version.server.starts_with("3."), "{version:?}");
        match client.hash_kv(&peer_url, couple.cluster, 0).await {
            Ok(hash) => assert_eq!(hash.revision, 22, "21 puts after revision 1"),
            // 3.4 answers only to a revision.
            Err(error) => assert!(version.server.starts_with("3.4"), "{error}"),
        }
    });

    // As the leader it answers what its followers ask about leases.
    let granted = couple.etcdctl(&["lease", "grant", "60"], &[]);
    let hex = granted.split(' ').nth(1).expect("lease <id> granted with TTL(60s)");
    let lease = i64::from_str_radix(hex, 16).expect("an id");
    assert_eq!(couple.etcdctl(&["put", "held", "value", &format!("--lease={hex}")], &[]), "OK\n");
    runtime.block_on(async {
        for _ in 0..3 {
            assert_eq!(us.transport.renew_lease(them, lease, PATIENCE).await, Ok(60));
        }
        let request = LeaseTimeToLiveRequest { id: lease, keys: true };
        let lives = us.transport.lease_time_to_live(them, request, PATIENCE).await.expect("an answer");
        assert_eq!(
            (lives.granted_ttl, lives.keys.as_slice()),
            (60, [Bytes::from_static(b"held")].as_slice())
        );
        assert!((1..=60).contains(&lives.ttl), "{lives:?}");
        let unknown = us.transport.renew_lease(them, 4711, PATIENCE).await;
        assert_eq!(unknown, Err(LeaseCallError::NotFound));
        let request = LeaseTimeToLiveRequest { id: 4711, keys: false };
        let unknown = us.transport.lease_time_to_live(them, request, PATIENCE).await;
        assert_eq!(unknown, Err(LeaseCallError::NotFound));
    });

    // Now we lead: a later term at the end of its log. It steps down, takes our entries and acknowledges them.
    drop(follower);
    let messages = us.seen.messages();
    let last = messages
        .iter()
        .flat_map(|message| &message.entries)
        .max_by_key(|entry| entry.index)
        .expect("entries");
    let (index, log_term) = (last.index.expect("set"), last.term.expect("set"));
    let term = log_term + 10;
    let lead = |after: u64, log_term: u64, entries| Message {
        log_term: Some(log_term),
        commit: Some(0),
        ..append(us.id.0, them.0, term, after, entries)
    };
    let blank = |index| api::raftpb::Entry { data: None, ..entry(term, index, "") };
    let acknowledged = |wanted: u64| {
        us.seen.wait_event(&format!("acknowledgement of {wanted}"), |event| {
            matches!(event, Event::Message(message) if message.r#type == Some(MsgAppResp as i32)
                && message.index == Some(wanted) && message.reject != Some(true) && message.term == Some(term))
        })
    };
    us.transport.send(vec![lead(index, log_term, vec![blank(index + 1)])]);
    acknowledged(index + 1);
    // This one continues, so it travels without term and index.
    us.transport.send(vec![lead(index + 1, term, vec![blank(index + 2), blank(index + 3)])]);
    acknowledged(index + 3);

    // What its clients ask about leases it passes on to us; lease 7 is the one that our member of these tests knows.
    let office = Heartbeats::start(us.clone(), them, term);
    assert_eq!(
        couple.etcdctl(&["lease", "keep-alive", "7", "--once"], &[]),
        "lease 0000000000000007 keepalived with TTL(42)\n"
    );
    let lives = couple.etcdctl(&["lease", "timetolive", "7", "--keys"], &[]);
    assert!(
        lives.starts_with("lease 0000000000000007 granted with TTL(42s), remaining(17s)")
            && lives.contains("held"),
        "{lives}"
    );
    assert_eq!(
        couple.etcdctl(&["lease", "timetolive", "9"], &[]),
        "lease 0000000000000009 already expired\n",
        "our 404 is understood"
    );
    drop(office);

    // Our transport would take the stream that is opened by hand.
    us.transport.remove_peer(them);
    link_heartbeats_are_ours(&couple);
}

#[test]
fn a_real_etcd_sends_us_its_snapshot() {
    let Some(binaries) = binaries() else { return };
    let version = Command::new(binaries.join("etcd")).arg("--version").output().expect("etcd runs").stdout;
    if !String::from_utf8_lossy(&version).contains("Version: 3.5") {
        skipped("only 3.5 has the setting that makes its log short under this name");
        return;
    }
    let runtime = runtime();
    let short_log = ["--snapshot-count", "5", "--experimental-snapshot-catchup-entries", "1"];
    let couple = Couple::start(&runtime, binaries, &short_log);
    let us = &couple.us;
    let follower = Follower::start(us.clone());
    for round in 0..20 {
        assert_eq!(couple.etcdctl(&["put", &format!("key-{round}"), "value"], &[]), "OK\n");
    }
    // A leader knows how far its follower is until it loses its office.
    let before = us.seen.messages().len();
    follower.turns(Mood::Silent);
    us.seen.wait("a campaign", |events| {
        let messages = events.iter().filter(|event| matches!(event, Event::Message(_))).skip(before);
        messages.into_iter().any(|event| is_kind(event, &[MsgPreVote])).then_some(())
    });
    follower.turns(Mood::Empty);
    let Event::Snapshot(message, bytes, _) =
        us.seen.wait_event("the snapshot", |event| matches!(event, Event::Snapshot(..)))
    else {
        unreachable!("that is what was waited for")
    };
    assert_eq!(message.from, Some(couple.them.0));
    let position = message.snapshot.and_then(|snapshot| snapshot.metadata).expect("checked on the way in");
    assert!(position.index > Some(20) && position.conf_state.is_some_and(|state| state.voters.len() == 2));
    assert!(bytes > 0 && bytes % 4096 == 0, "{bytes} bytes are no whole pages");
    let head = us.seen.snapshot_head.lock().clone();
    assert_eq!(head[16..20], 0xED0C_DAEDu32.to_le_bytes(), "a bbolt file begins so");

    // Our 204 has told the leader that we have it: it goes on with appends.
    follower.turns(Mood::Obedient);
    assert_eq!(couple.etcdctl(&["put", "after", "value"], &[]), "OK\n");
}

/// Opens a message stream by hand and looks for a frame like our own heartbeat.
fn link_heartbeats_are_ours(couple: &Couple) {
    let headers = with(headers(couple.us.id.0), "X-Etcd-Cluster-ID", &couple.cluster.to_string());
    let headers = with(headers, "X-Raft-To", &couple.them.to_string());
    let address = couple.peer_url.trim_start_matches("http://").parse().expect("an address");
    let mut ours = BytesMut::new();
    transport::codec::message::encode_heartbeat(&mut ours);
    let mut stream = open(address, "GET", &format!("/raft/stream/message/{}", couple.us.id), &headers, &[]);
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.windows(ours.len()).any(|window| window == ours) {
        stream.read_exact(&mut byte).expect("etcd goes on");
        heard.push(byte[0]);
        assert!(heard.len() < 20_000, "no heartbeat like ours {:?} in {heard:?}", &ours[..]);
    }
}
