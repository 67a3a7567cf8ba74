//! A real etcd as the other member of a cluster of two. It dials us, votes with us, leads us, and then follows us: if its bytes and ours
//! were not the same protocol, none of that would happen.
//!
//! Needs `CAIRN_REAL_ETCD`, a directory with `etcd` and `etcdctl`; without it the tests say that they were skipped.

mod support;

use std::{
    fs::File,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use api::raftpb::{Message, MessageType, MessageType::*};
use bytes::BytesMut;
use sha1::{Digest, Sha1};
use support::*;
use transport::{PeerClient, PeerMember};
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
        println!("SKIPPED: CAIRN_REAL_ETCD names no directory with a real etcd");
    }
    found
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

fn start_etcd(binaries: &Path, directory: &Path, peer: u16, client: u16, ours: u16) -> Etcd {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let log = directory.join("log");
    let out = File::create(&log).expect("a log file");
    let child = Command::new(binaries.join("etcd"))
        .args(["--name", "n1", "--data-dir"])
        .arg(directory.join("data"))
        .args(["--initial-cluster", &format!("n1={},n2={}", url(peer), url(ours))])
        .args(["--initial-cluster-token", TOKEN, "--initial-cluster-state", "new"])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--logger", "zap", "--log-level", "info"])
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a file"))
        .stderr(out)
        .spawn()
        .expect("etcd starts");
    Etcd { child, log }
}

/// A port that was free a moment ago: etcd binds its own.
fn free_port() -> u16 {
    listener().local_addr().expect("bound").port()
}

/// Answers etcd as an obedient follower would, without keeping a log.
fn follow(us: &Member, handled: &mut usize) {
    let messages = us.seen.messages();
    let me = us.id.0;
    let mut answers = Vec::new();
    for message in &messages[*handled..] {
        let (from, term) = (message.from.unwrap_or(0), message.term.unwrap_or(0));
        let answer = |kind: MessageType| support::message(kind, me, from, term);
        match transport::codec::kind(message) {
            Some(MsgPreVote) => answers.push(answer(MsgPreVoteResp)),
            Some(MsgVote) => answers.push(answer(MsgVoteResp)),
            Some(MsgHeartbeat) => {
                answers.push(Message { context: message.context.clone(), ..answer(MsgHeartbeatResp) });
            }
            Some(MsgApp) => {
                let last = message.entries.last().and_then(|entry| entry.index).or(message.index);
                answers.push(Message { index: last, ..answer(MsgAppResp) });
            }
            _ => {}
        }
    }
    *handled = messages.len();
    us.transport.send(answers);
}

#[test]
fn a_real_etcd_votes_leads_and_follows() {
    let Some(binaries) = binaries() else { return };
    let runtime = runtime();
    let directory = tempfile::tempdir().expect("a directory");
    let ours = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let our_port = ours.local_addr().expect("bound").port();
    let (peer_port, client_port) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (them, us) = (member_id(&url(peer_port)), member_id(&url(our_port)));
    let cluster = cluster_id(vec![them, us]);
    let settings = Settings { cluster, version: "3.5.30".into(), ..Settings::default() };
    let us = Member::start_with(&runtime, us.0, ours, settings);
    let member = |id, port| PeerMember {
        id,
        peer_urls: vec![url(port)],
        is_learner: false,
        name: String::new(),
        client_urls: vec![],
    };
    *us.seen.members.lock() = vec![member(them, peer_port), member(us.id, our_port)];
    us.transport.add_peer(them, vec![url(peer_port).parse().expect("a URL")]);

    let etcd = start_etcd(&binaries, directory.path(), peer_port, client_port, our_port);
    us.wait_attached(them);
    eventually("we hear etcd", || us.transport.active_since(them).is_some());

    // Its questions to raft get an obedient follower's answers, until it is the leader of us two.
    let us = Arc::new(us);
    let obey = Arc::new(AtomicBool::new(true));
    let follower = std::thread::spawn({
        let (us, obey) = (us.clone(), obey.clone());
        move || {
            let mut handled = 0;
            while obey.load(Ordering::Relaxed) {
                us.seen.wait_messages(handled);
                follow(&us, &mut handled);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    us.seen.wait_event("a pre-vote or a vote", |event| {
        matches!(event, Event::Message(message)
            if [Some(MsgPreVote as i32), Some(MsgVote as i32)].contains(&message.r#type)
                && message.from == Some(them.0) && message.to == Some(us.id.0))
    });
    us.seen.wait_event(
        "an append",
        |event| matches!(event, Event::Message(message) if message.r#type == Some(MsgApp as i32)),
    );

    // Writes reach us as entries, small ones and one of a megabyte.
    let etcdctl = |arguments: &[&str], input: &[u8]| {
        use std::io::Write;
        let mut child = Command::new(binaries.join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &url(client_port), "--dial-timeout", "30s", "--command-timeout", "30s"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        child.stdin.take().expect("piped").write_all(input).expect("etcdctl reads");
        let output = child.wait_with_output().expect("etcdctl ends");
        assert!(output.status.success(), "etcdctl {arguments:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for round in 0..20 {
        assert_eq!(etcdctl(&["put", &format!("key-{round}"), "value"], &[]), "OK\n");
    }
    let large = vec![b'x'; 1 << 20];
    assert_eq!(etcdctl(&["put", "large"], &large), "OK\n");
    assert!(etcdctl(&["get", "key-7"], &[]).contains("value"), "a linearizable read goes round through us");
    let contains = |data: &[u8], part: &[u8]| data.windows(part.len()).any(|window| window == part);
    us.seen.wait_event("the large value", |event| {
        let Event::Message(message) = event else { return false };
        message.entries.iter().any(|entry| entry.data.as_ref().is_some_and(|data| contains(data, &large)))
    });

    // Its answers to questions.
    let client = PeerClient::new(PATIENCE);
    let peer_url = url(peer_port).parse().expect("a URL");
    runtime.block_on(async {
        let members = client.members(&peer_url).await.expect("an answer");
        assert_eq!(members.cluster, cluster);
        let mut ids: Vec<_> = members.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        let mut expected = vec![them, us.id];
        expected.sort_unstable();
        assert_eq!(ids, expected);
        assert!(members.members.iter().any(|member| member.name == "n1"));
        let version = client.version(&peer_url).await.expect("an answer");
        assert!(version.server.starts_with("3."), "{version:?}");
        match client.hash_kv(&peer_url, cluster, 0).await {
            Ok(hash) => assert_eq!(hash.revision, 22, "21 puts after revision 1"),
            // 3.4 answers only to a revision.
            Err(error) => assert!(version.server.starts_with("3.4"), "{error}"),
        }
    });

    // Now we lead: a later term at the end of its log. It steps down, takes our entries and acknowledges them.
    obey.store(false, Ordering::Relaxed);
    us.transport.send(vec![]);
    follower.join().expect("the follower ends");
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

    // Our transport would take the stream that is opened by hand.
    us.transport.remove_peer(them);
    link_heartbeats_are_ours(&us, them, cluster, &url(peer_port));
    drop(etcd);
}

/// Opens a message stream by hand and compares the first frame with our own.
fn link_heartbeats_are_ours(us: &Member, them: MemberId, cluster: ClusterId, url: &str) {
    let headers = with(headers(us.id.0), "X-Etcd-Cluster-ID", &cluster.to_string());
    let headers = with(headers, "X-Raft-To", &them.to_string());
    let address = url.trim_start_matches("http://").parse().expect("an address");
    let mut ours = BytesMut::new();
    transport::codec::message::encode_heartbeat(&mut ours);
    let mut stream = open(address, "GET", &format!("/raft/stream/message/{}", us.id), &headers, &[]);
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.windows(ours.len()).any(|window| window == ours) {
        stream.read_exact(&mut byte).expect("etcd goes on");
        heard.push(byte[0]);
        assert!(
            heard.len() < 20_000,
            "no heartbeat like ours {:?} in {:?}",
            &ours[..],
            String::from_utf8_lossy(&heard)
        );
    }
}
