//! Copies, lost and rolled-back directories, other lives of a cluster, and peers that tell lies: none of them stops a healthy member, and
//! none comes back with less than it promised. In no case may anybody depend on who leads.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use api::{error::EtcdError, etcdserverpb as pb, raftpb};
use node::{Expelled, Handle};
use prost::Message as _;
use state_machine::membership::Member;
use support::*;
use types::{ClusterId, MemberId};

/// Three members with directories of their own, which a test may exchange between two starts.
struct Trio {
    root: tempfile::TempDir,
    members: Vec<Member>,
    running: Vec<Option<Running>>,
    /// Keep the ports of those who are down.
    ports: Vec<TcpListener>,
}

impl Trio {
    /// All three, once the life of the cluster and all starts are written down everywhere.
    async fn start() -> Trio {
        let mut trio = Trio::planned();
        (0..3).for_each(|at| trio.boot(at));
        trio.admitted(&[0, 1, 2]).await;
        trio
    }

    fn planned() -> Trio {
        let (members, ports) = plan(3);
        Trio {
            root: tempfile::tempdir().expect("a directory"),
            members,
            running: vec![None, None, None],
            ports,
        }
    }

    fn directory(&self, at: usize) -> PathBuf {
        self.root.path().join(&self.members[at].name)
    }

    fn boot(&mut self, at: usize) {
        let port = self.ports[at].try_clone().expect("the same port once more");
        // A port dies with its process, and this one has lived on: what waits in it came from starts that may be gone with their
        // directories, and would be taken for a hello of now.
        port.set_nonblocking(true).expect("a socket");
        while port.accept().is_ok() {}
        let running = boot(&self.directory(at), &self.members[at], &self.members, port);
        self.running[at] = Some(running);
    }

    fn stop(&mut self, at: usize) {
        stop(self.running[at].take().expect("it runs"));
    }

    fn handle(&self, at: usize) -> Handle {
        self.running[at].as_ref().expect("it runs").node.handle()
    }

    fn up(&self) -> Vec<usize> {
        (0..3).filter(|at| self.running[*at].is_some()).collect()
    }

    /// Each of these knows the life of the cluster, and the start of each of them that runs.
    async fn admitted(&self, these: &[usize]) {
        let handles: Vec<Handle> = these.iter().map(|at| self.handle(*at)).collect();
        let boots: Vec<_> =
            these.iter().map(|at| (self.members[*at].id, stored_boot(&self.directory(*at)))).collect();
        wait("all starts are written down", || {
            handles.iter().all(|handle| handle.cluster_uuid().borrow().is_some())
                && handles.iter().all(|handle| {
                    boots.iter().all(|(id, seq)| {
                        handle.known(*id).record.is_some_and(|record| record.boot.seq == *seq)
                    })
                })
        })
        .await;
    }

    async fn leader(&self) -> usize {
        let leader = || self.up().into_iter().find(|at| self.handle(*at).node_status().is_leader);
        wait("a leader", || leader().is_some()).await;
        leader().expect("it leads")
    }

    async fn put(&self, at: usize, key: &str) {
        let handle = self.handle(at);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while let Err(error) = put(&handle, key, "1").await {
            assert!(tokio::time::Instant::now() < deadline, "{key} is not written: {error}");
        }
    }

    /// Member `at` is running as somebody whom the others do not take: it is told so, having served nobody and voted for nobody since.
    async fn is_expelled(&self, at: usize, verdict: &str) -> Expelled {
        let handle = self.handle(at);
        let expelled = handle.expelled();
        wait(&format!("{verdict} is told"), || {
            assert!(!handle.node_status().is_leader, "a member that lost history leads");
            expelled.borrow().is_some()
        })
        .await;
        let expelled = expelled.borrow().clone().expect("it is told");
        assert_eq!(expelled.verdict.name(), verdict, "{expelled:?}");
        expelled
    }

    /// Everybody else is in good standing and takes writes.
    async fn others_serve(&self, at: usize) {
        for other in self.up().into_iter().filter(|other| *other != at) {
            self.put(other, "still there").await;
            let handle = self.handle(other);
            assert_eq!((handle.expelled().borrow().clone(), handle.quarantined()), (None, None));
            assert!(handle.removal().borrow().is_none());
            // Looked at a few times a second; a put asks for no such thing.
            wait("it counts as part of the cluster", || handle.is_confirmed()).await;
        }
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for running in self.running.drain(..).flatten() {
                scope.spawn(move || running.node.stop());
            }
        });
    }
}

/// Apart from the test's own runtime, inside of which none may end.
fn stop(running: Running) {
    std::thread::scope(|scope| scope.spawn(move || running.node.stop()).join().expect("it stops"));
}

fn stored_boot(directory: &Path) -> u64 {
    let text = fs::read(directory.join("wal").with_extension("identity")).expect("an identity");
    let (_, boot): (identity::Unique, Option<identity::Boot>) = serde_json::from_slice(&text).expect("JSON");
    boot.expect("it was started").seq
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}

fn serializable(handle: &Handle) -> Result<pb::RangeResponse, EtcdError> {
    let request = pb::RangeRequest { key: "a".into(), serializable: true, ..Default::default() };
    handle.range_local(&request)
}

#[test]
fn a_copy_started_beside_its_original_is_refused_and_the_original_never_stops() {
    block_on(async {
        let mut trio = Trio::start().await;
        trio.put(0, "a").await;
        let at = (trio.leader().await + 1) % 3;
        trio.stop(at);
        let aside = trio.root.path().join("copy");
        copy(&trio.directory(at), &aside);
        trio.boot(at);
        trio.admitted(&[0, 1, 2]).await;

        // The same member, on another port: nobody dials it, but it dials everybody.
        let twin =
            boot(&aside, &trio.members[at], &trio.members, TcpListener::bind("127.0.0.1:0").expect("a port"));
        let handle = twin.node.handle();
        let expelled = handle.expelled();
        wait("the copy is told", || {
            assert!(!handle.node_status().is_leader && !handle.is_confirmed());
            expelled.borrow().is_some()
        })
        .await;
        let expelled = expelled.borrow().clone().expect("it is told");
        assert_eq!((expelled.verdict.name(), expelled.was_serving), ("duplicate", false));
        assert_eq!(serializable(&handle), Err(EtcdError::NoLeader), "it has served nobody");
        trio.others_serve(3).await;
        stop(twin);
        trio.others_serve(3).await;
    });
}

#[test]
fn a_wiped_member_is_recognised_whoever_leads() {
    block_on(async {
        let mut trio = Trio::start().await;
        trio.put(0, "a").await;
        let (at, leader) = {
            let leader = trio.leader().await;
            ((leader + 1) % 3, leader)
        };
        let third = 3 - at - leader;
        trio.stop(at);
        fs::remove_dir_all(trio.directory(at)).expect("lose the data");

        // The leader is the same.
        trio.boot(at);
        trio.is_expelled(at, "lost_data").await;
        trio.others_serve(at).await;
        trio.stop(at);
        fs::remove_dir_all(trio.directory(at)).expect("lose the data again");

        // Another leads.
        let to = pb::MoveLeaderRequest { target_id: trio.members[third].id.0 };
        trio.handle(leader).move_leader(to).await.expect("leadership moves");
        trio.boot(at);
        let expelled = trio.is_expelled(at, "lost_data").await;
        assert!(expelled.voices.iter().any(|heard| heard.witness.member == trio.members[third].id));
        trio.others_serve(at).await;
        trio.stop(at);
        fs::remove_dir_all(trio.directory(at)).expect("and again");

        // Nobody leads: one that remembers and one that does not are no majority, and must never become one.
        trio.stop(third);
        let survivor = trio.handle(leader);
        wait("the survivor knows that it is alone", || survivor.node_status().leader.is_none()).await;
        trio.boot(at);
        trio.is_expelled(at, "lost_data").await;
        assert!(survivor.node_status().leader.is_none(), "elected by who has forgotten everything");
        trio.stop(at);
        trio.boot(third);
        trio.others_serve(at).await;
    });
}

#[test]
fn an_older_copy_of_a_directory_is_recognised() {
    block_on(async {
        let mut trio = Trio::start().await;
        trio.put(0, "a").await;
        let at = (trio.leader().await + 1) % 3;
        trio.stop(at);
        let aside = trio.root.path().join("older");
        copy(&trio.directory(at), &aside);
        trio.boot(at);
        trio.admitted(&[0, 1, 2]).await;
        for i in 0..20 {
            trio.put(at, &format!("k{i}")).await;
        }
        trio.stop(at);

        // All of it: its next start is one that another has been.
        let newest = trio.root.path().join("newest");
        fs::rename(trio.directory(at), &newest).expect("put it aside");
        copy(&aside, &trio.directory(at));
        trio.boot(at);
        trio.is_expelled(at, "older_boot").await;
        trio.others_serve(at).await;
        trio.stop(at);

        // With the identity of `from`, which goes on to count the starts.
        let identity = PathBuf::from("wal").with_extension("identity");
        let put_back = |trio: &Trio, what: &Path, from: &Path| {
            let counting = fs::read(from.join(&identity)).expect("an identity");
            fs::remove_dir_all(trio.directory(at)).expect("away with what is there");
            copy(what, &trio.directory(at));
            fs::write(trio.directory(at).join(&identity), counting).expect("the identity");
        };
        // The log and the state alone, under the newest identity. Who leads since then has seen more, be it written down or not.
        put_back(&trio, &aside, &newest);
        trio.boot(at);
        trio.is_expelled(at, "shorter_log").await;
        trio.others_serve(at).await;
        trio.stop(at);

        // The same under another leader, who has seen nothing itself: the hand-over writes down how far everybody was.
        let leader = trio.leader().await;
        let to = pb::MoveLeaderRequest { target_id: trio.members[3 - at - leader].id.0 };
        trio.handle(leader).move_leader(to).await.expect("leadership moves");
        put_back(&trio, &aside, &trio.directory(at));
        trio.boot(at);
        trio.is_expelled(at, "shorter_log").await;
        trio.others_serve(at).await;
        trio.stop(at);

        // What it really is comes back as if nothing had been.
        put_back(&trio, &newest, &trio.directory(at));
        trio.boot(at);
        trio.admitted(&[0, 1, 2]).await;
        trio.others_serve(3).await;
        trio.stop(at);

        // And as the very start that was admitted: a machine that runs is put back to an earlier moment.
        put_back(&trio, &aside, &trio.directory(at));
        fs::write(trio.directory(at).join("wal").with_extension("reverted"), b"").expect("a mark");
        trio.boot(at);
        trio.is_expelled(at, "shorter_log").await;
        trio.others_serve(at).await;
    });
}

#[test]
fn a_member_of_another_life_is_refused_and_the_healthy_stay_up() {
    block_on(async {
        let mut trio = Trio::start().await;
        let other_life = trio.handle(0).cluster_uuid().borrow().expect("it is written");
        let at = 2;
        (0..3).for_each(|at| trio.stop(at));
        let aside = trio.root.path().join("other life");
        copy(&trio.directory(at), &aside);
        (0..3).for_each(|at| fs::remove_dir_all(trio.directory(at)).expect("all is lost"));

        // The same members by name, address and id, and another life.
        (0..3).for_each(|at| trio.boot(at));
        trio.admitted(&[0, 1, 2]).await;
        assert_ne!(trio.handle(0).cluster_uuid().borrow().expect("it is written"), other_life);
        trio.put(0, "a").await;
        trio.stop(at);
        fs::remove_dir_all(trio.directory(at)).expect("away with the member of this life");
        fs::rename(&aside, trio.directory(at)).expect("and in with the other");
        trio.boot(at);
        let expelled = trio.is_expelled(at, "other_life").await;
        assert!(!expelled.was_serving);
        trio.others_serve(at).await;
        let text = trio.handle(0).metrics_text();
        let row = format!(
            "cairn_peer_refused_total{{peer=\"{}\",verdict=\"other_life\",by=\"this_member\"}}",
            trio.members[at].id
        );
        assert!(text.contains(&row), "{text}");
    });
}

/// Answers every request on a member's port with the same refusal, as somebody might who is that member and out of its mind.
struct Liar {
    stop: Arc<AtomicBool>,
    told: Arc<AtomicUsize>,
    address: SocketAddr,
}

impl Liar {
    fn start(port: TcpListener, head: String, body: String) -> Liar {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = port.local_addr().expect("bound");
        let liar = Liar { stop: stop.clone(), told: told.clone(), address };
        port.set_nonblocking(false).expect("a socket");
        std::thread::spawn(move || {
            for stream in port.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (head, body, told) = (head.clone(), body.clone(), told.clone());
                std::thread::spawn(move || lie(stream, &head, &body, &told));
            }
        });
        liar
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
    }
}

fn lie(mut stream: TcpStream, head: &str, body: &str, told: &AtomicUsize) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        request.push(byte[0]);
    }
    let answer =
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes());
    told.fetch_add(1, Ordering::AcqRel);
}

#[test]
fn what_one_peer_says_that_does_not_lead_stops_nobody() {
    block_on(async {
        let mut trio = Trio::planned();
        let liar: MemberId = trio.members[2].id;
        (0..2).for_each(|at| trio.boot(at));
        trio.admitted(&[0, 1]).await;
        trio.put(0, "a").await;
        let refused = |verdict: &str, leads: bool| {
            let head = "412 Precondition Failed\r\nX-Cairn-Verdict: it".to_owned();
            // A term that everybody has left behind, and next to nothing applied.
            let witness = format!(r#"{{"member":"{liar}","leads":{leads},"term":1,"commit":3}}"#);
            (head, format!(r#"{{"verdict":{verdict},"witness":{witness}}}"#))
        };
        let removed = r#"{"removed":{"index":4,"term":1,"asked_through":null}}"#;
        let lost = r#"{"lost_data":{"dir":"00000000000000000000000000000001","boot_seq":7,
            "home":{"host":"h","path":"/p","pid":1,"started":""}}}"#;
        for (head, body) in [
            ("410 Gone".to_owned(), "removed member".to_owned()),
            ("403 Forbidden".to_owned(), "cannot process message from removed member".to_owned()),
            refused(removed, false),
            refused(removed, true),
            refused(r#""stranger""#, false),
            refused(lost, false),
        ] {
            let port = trio.ports[2].try_clone().expect("the same port once more");
            let liar = Liar::start(port, head, body.clone());
            let told = liar.told.clone();
            wait("both have heard it a few times", || told.load(Ordering::Acquire) >= 12).await;
            // Silent for a moment, perhaps, until one has vouched for the other.
            wait("nobody is silent", || {
                (0..2).all(|at| {
                    trio.handle(at).quarantined().is_none()
                        && trio.handle(at).node_status().leader != MemberId::NONE
                })
            })
            .await;
            trio.others_serve(2).await;
        }
    });
}

#[test]
fn nobody_is_served_before_the_cluster_has_answered() {
    block_on(async {
        let mut trio = Trio::start().await;
        trio.put(0, "a").await;
        (0..3).for_each(|at| trio.stop(at));
        trio.boot(1);
        let handle = trio.handle(1);
        assert_eq!(serializable(&handle), Err(EtcdError::NoLeader));
        let all = pb::RangeRequest {
            key: "a".into(),
            range_end: "z".into(),
            serializable: true,
            ..Default::default()
        };
        assert!(matches!(handle.range_stream(&all, 1 << 20).map(|_| ()), Err(EtcdError::NoLeader)));
        let watch = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: "a".into(),
                start_revision: 1,
                ..Default::default()
            })),
        };
        let (requests, mut responses) = handle.watch();
        let mut asking = Box::pin(requests.send(watch));
        assert!(futures_now(&mut asking).is_none(), "a watch waits with everybody else");
        trio.boot(0);
        asking.await.expect("the member runs");
        let first = std::future::poll_fn(|cx| responses.poll_message(cx)).await.expect("a response");
        assert!(first.created);
        assert!(handle.is_confirmed() && serializable(&handle).is_ok());
        // Once it has belonged it may be asked for what it has, also without a leader.
        trio.stop(0);
        wait("the leader is missed", || handle.node_status().leader.is_none()).await;
        assert!(serializable(&handle).is_ok());
    });
}

fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// What a member of etcd would bring: nobody can be asked for its directory.
fn post_message(to: &Member, cluster: ClusterId, message: &raftpb::Message) -> String {
    let address = to.peer_urls[0].strip_prefix("http://").expect("a plain URL");
    let body = message.encode_to_vec();
    let head = format!(
        "POST /raft HTTP/1.1\r\nHost: {address}\r\nX-Etcd-Cluster-ID: {cluster}\r\nX-Server-From: {from:x}\r\nX-Server-Version: 3.5.0\r\n\
         X-Min-Cluster-Version: 3.0.0\r\nX-Raft-To: {to}\r\nContent-Type: application/protobuf\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        from = message.from.unwrap_or_default(),
        to = to.id,
        length = body.len(),
    );
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(&[head.as_bytes(), &body].concat()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer.lines().next().unwrap_or_default().to_owned()
}

/// A leader that a majority has elected has other entries where this member has committed ones: one side has lost history.
#[test]
fn a_member_that_its_leader_contradicts_serves_nobody() {
    block_on(async {
        let mut trio = Trio::planned();
        (0..2).for_each(|at| trio.boot(at));
        trio.admitted(&[0, 1]).await;
        trio.put(0, "a").await;
        let (handle, third) = (trio.handle(0), trio.members[2].id);
        let answer = handle.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await;
        let cluster = ClusterId(answer.expect("it serves").header.expect("a header").cluster_id);
        let tell = |kind: raftpb::MessageType, term: u64, index: u64, log_term: u64| {
            let message = raftpb::Message {
                r#type: Some(kind.into()),
                from: Some(third.0),
                to: Some(trio.members[0].id.0),
                term: Some(term),
                index: Some(index),
                log_term: Some(log_term),
                commit: Some(1),
                ..Default::default()
            };
            assert_eq!(post_message(&trio.members[0], cluster, &message), "HTTP/1.1 204 No Content");
        };
        let contradict = |term: u64| {
            tell(raftpb::MessageType::MsgApp, term, handle.node_status().committed.0, term - 1);
        };
        // Whoever says so without being followed is not believed.
        contradict(handle.node_status().term.0 + 1000);
        trio.put(0, "behind it").await;
        assert!(!handle.is_contradicted());
        wait("its leader contradicts it", || {
            // It may have begun an election meanwhile.
            let term = handle.node_status().term.0 + 1000;
            tell(raftpb::MessageType::MsgHeartbeat, term, 0, 0);
            contradict(term);
            handle.is_contradicted()
        })
        .await;
        assert!(handle.is_quarantined());
        let local = pb::RangeRequest { key: "a".into(), serializable: true, ..Default::default() };
        assert_eq!(handle.range(local).await.expect_err("it may be wrong"), EtcdError::NoLeader);
        // Nobody can clear it up but a new start.
        drop(handle);
        trio.stop(0);
        trio.boot(0);
        trio.put(0, "b").await;
        assert!(!trio.handle(0).is_contradicted());
    });
}
