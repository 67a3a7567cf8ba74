//! Joining a running cluster: the cluster is played by peers that answer what they are told to. What is refused writes nothing; what is
//! accepted survives a kill at every step.

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use support::{Ended, PORTS, Running, command, edit_identity, files, identity, run};

const CLUSTER: u64 = 0xc1;
const OWN_URL: &str = "http://127.0.0.1:9";

/// What a peer says: the cluster's id and its members, or nothing at all.
#[derive(Clone)]
struct Script {
    cluster: u64,
    version: &'static str,
    members: Vec<Value>,
}

/// A running member as far as its peer port's two questions go.
struct Peer {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    asked: Arc<AtomicUsize>,
}

fn answer(mut stream: TcpStream, script: &Script) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&chunk[..n]),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let body = if head.starts_with("GET /members ") {
        json!(script.members).to_string()
    } else if head.starts_with("GET /version ") {
        json!({ "etcdserver": "3.7.1", "etcdcluster": script.version }).to_string()
    } else {
        // Raft's own conversation is not played here.
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let (cluster, length) = (script.cluster, body.len());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-ID: {cluster:x}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

impl Peer {
    /// Listed as the only started member, beside the place at [`OWN_URL`] that waits.
    fn ready() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let members = vec![
            json!({ "id": 10, "peerURLs": [format!("http://{address}")], "name": "n1", "clientURLs": ["http://h1:2379"] }),
            json!({ "id": 11, "peerURLs": [OWN_URL], "name": "" }),
        ];
        let script = Arc::new(Mutex::new(Script { cluster: CLUSTER, version: "3.5.0", members }));
        let asked = Arc::new(AtomicUsize::new(0));
        let (told, count) = (script.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let script = told.lock().unwrap().clone();
                let _ = answer(stream, &script);
            }
        });
        Peer { address, script, asked }
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    fn flags(&self) -> Vec<String> {
        let initial = format!("--initial-cluster=n1=http://{},n2={OWN_URL}", self.address);
        ["--name=n2", "--data-dir=data", "--initial-cluster-state=existing", "--join-timeout=1s", &initial]
            .map(str::to_owned)
            .to_vec()
    }
}

fn all<'a>(flags: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    PORTS.iter().copied().chain(flags.iter().map(String::as_str)).chain(more.iter().copied()).collect()
}

#[track_caller]
fn refused(dir: &Path, peer: &Peer, more: &[&str], id: &str, code: i32) -> Ended {
    let ended = run(dir, &all(&peer.flags(), more));
    ended.expect(id, code);
    assert!(files(dir).is_empty() && !dir.join("data").exists(), "{id}: something was written");
    ended
}

#[test]
fn who_has_no_place_is_told_the_command_that_makes_one_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::ready();
    peer.change(|script| drop(script.members.pop()));
    refused(dir.path(), &peer, &[], "NOT_A_MEMBER", 78)
        .says(&format!("cairnctl --endpoints=http://h1:2379 member add n2 --peer-urls={OWN_URL}"))
        .says("cluster c1");

    let peer = Peer::ready();
    peer.change(|script| script.members[1]["name"] = json!("n2"));
    refused(dir.path(), &peer, &[], "LOST_DATA", 79).says("member remove b, then");

    let peer = Peer::ready();
    peer.change(|script| script.version = "3.9.0");
    refused(dir.path(), &peer, &[], "VERSION_CONFLICT", 78).says("3.9.0");

    let (peer, other) = (Peer::ready(), Peer::ready());
    other.change(|script| script.cluster = 0xc2);
    let both =
        format!("--initial-cluster=n1=http://{},n3=http://{},n2={OWN_URL}", peer.address, other.address);
    refused(dir.path(), &peer, &[&both], "CLUSTERS_DIFFER", 78).says("cluster c1").says("cluster c2");
}

#[test]
fn a_cluster_that_does_not_answer_is_waited_for_and_then_named() {
    let dir = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("--initial-cluster=n1=http://{silent},n2={OWN_URL}");
    let peer = Peer::ready();
    refused(dir.path(), &peer, &[&nobody, "--join-timeout=300ms"], "CLUSTER_UNREACHABLE", 75)
        .says(&silent.to_string());
    // Something answers there, and it is no member.
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = format!("--initial-cluster=n1=http://{},n2={OWN_URL}", stranger.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in stranger.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nwelcome");
        }
    });
    refused(dir.path(), &peer, &[&wrong, "--join-timeout=300ms"], "CLUSTER_UNREACHABLE", 75)
        .says("is not a member's peer URL");
}

/// The addition is on its way to the member that is asked.
#[test]
fn a_place_that_comes_a_little_later_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::ready();
    let place = peer.script.lock().unwrap().members.pop().unwrap();
    let mut joiner = Running::spawn(command(dir.path(), &all(&peer.flags(), &["--join-timeout=60s"])));
    joiner.wait_for("starting cairnd");
    while peer.asked.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    peer.change(|script| script.members.push(place));
    joiner.wait_for("listening for client requests");
    assert_eq!(identity(&dir.path().join("data"))["member_id"], "b");
}

#[test]
fn a_joiner_is_who_the_cluster_says_and_comes_back_as_that_without_asking() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let peer = Peer::ready();
    let mut joiner = Running::spawn(command(dir.path(), &all(&peer.flags(), &[])));
    joiner.wait_for("the running cluster has a place for this member");
    let line = joiner.wait_for("listening for client requests");
    let now = identity(&data);
    assert_eq!(
        (&now["state"], &now["member_id"], &now["cluster_id"], &now["origin"]["method"]),
        (&json!("joining"), &json!("b"), &json!("c1"), &json!("join"))
    );
    let names: Vec<&Value> =
        now["members"].as_array().unwrap().iter().map(|member| &member["name"]).collect();
    assert_eq!(names, ["n1", "n2"]);

    // Alive, and nothing to serve yet.
    let line: Value = serde_json::from_str(&line).unwrap();
    let address = line["address"].as_str().unwrap();
    assert!(get(address, "/livez").starts_with("HTTP/1.1 200"));
    for path in ["/health", "/readyz", "/health?serializable=true"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("joining"), "{path}: {answer}");
    }

    joiner.kill();
    peer.change(|script| script.members[0]["name"] = json!("renamed"));
    for (boot, flags) in [(2, &peer.flags()[..]), (3, &["--data-dir=data".to_owned()][..])] {
        let mut again = Running::spawn(command(dir.path(), &all(flags, &[])));
        again.wait_for("listening for client requests");
        let now = identity(&data);
        assert_eq!(
            (&now["state"], &now["member_id"], &now["boot_seq"]),
            (&json!("joining"), &json!("b"), &json!(boot))
        );
        assert_eq!(again.stop().code(), Some(0), "a member that has nothing yet stops in order");
    }
}

/// The cluster goes on while a joiner is down: its members change, and its place may be given up.
#[test]
fn a_joiner_that_has_nothing_yet_asks_again_who_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let peer = Peer::ready();
    let start = |flags: &[String]| {
        let mut joiner = Running::spawn(command(dir.path(), &all(flags, &[])));
        joiner.wait_for("listening for client requests");
        joiner.kill();
        let members = identity(&data)["members"].as_array().unwrap().clone();
        members.iter().map(|member| member["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(start(&peer.flags()), ["a", "b"]);
    peer.change(|script| {
        script.members.push(json!({ "id": 12, "peerURLs": ["http://127.0.0.1:2"], "name": "n3" }))
    });
    assert_eq!(start(&peer.flags()), ["a", "b", "c"]);
    assert_eq!(
        start(&["--data-dir=data".to_owned()]),
        ["a", "b", "c"],
        "the members of the last time are asked"
    );

    peer.change(|script| drop(script.members.remove(1)));
    let before = files(dir.path());
    run(dir.path(), &all(&peer.flags(), &[]))
        .expect("NOT_A_MEMBER", 78)
        .says("mv data data.removed")
        .says(&format!("member add n2 --peer-urls={OWN_URL}"));
    assert!(files(dir.path()) == before, "something on disk was changed");
}

/// A kill before the listeners are up leaves an unborn directory or half of one. Nobody has seen it, so the cluster is asked anew.
#[test]
fn a_kill_while_joining_is_followed_by_the_same_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let peer = Peer::ready();
    let start = || {
        let mut joiner = Running::spawn(command(dir.path(), &all(&peer.flags(), &[])));
        joiner.wait_for("listening for client requests");
        joiner.kill();
        identity(&data)
    };
    let first = start();
    // Killed after the directory got its name and before it counted; removed and added again meanwhile.
    edit_identity(&data, "state", &json!("unborn"));
    peer.change(|script| script.members[1]["id"] = json!(77));
    let second = start();
    assert_eq!((&second["member_id"], &second["dir_uuid"]), (&json!("4d"), &first["dir_uuid"]));
    // Killed while the directory was built aside.
    fs::rename(data.join("member"), data.join("member.tmp")).unwrap();
    fs::remove_dir_all(data.join("member.tmp/wal")).unwrap();
    let third = start();
    assert_eq!((&third["state"], &third["member_id"]), (&json!("joining"), &json!("4d")));
    assert!(!data.join("member.tmp").exists());
}

#[test]
fn a_refusal_after_the_place_was_found_leaves_no_member_behind() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::ready();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = format!("--listen-client-urls=http://{}", taken.local_addr().unwrap());
    run(dir.path(), &all(&peer.flags(), &[&busy])).expect("PORT_IN_USE", 69);
    assert!(!dir.path().join("data/member").exists());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
