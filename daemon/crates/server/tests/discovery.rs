//! The discovery service over HTTP: the answers of etcd, and what strangers may try.

mod support;

use std::{collections::BTreeMap, net::SocketAddr, sync::atomic::Ordering::SeqCst, time::Duration};

use api::etcdserverpb as pb;
use server::{DiscoveryConfig, ServerConfig};
use support::{PATIENCE, Up, config, kv, put, range, raw, until, up, up_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    fn index(&self) -> u64 {
        self.header("x-etcd-index").parse().expect("every answer has an index")
    }
}

fn service() -> Up {
    service_with(|_| {})
}

fn service_with(change: impl FnOnce(&mut DiscoveryConfig)) -> Up {
    let mut discovery = DiscoveryConfig::default();
    change(&mut discovery);
    up_with(ServerConfig { discovery: Some(discovery), ..config() })
}

async fn ask(address: SocketAddr, method: &str, target: &str, form: &str) -> Answer {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: discovery.example:2379\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    read(&raw::http1(address, &request).await)
}

fn read(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Answer { status, headers, body }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk has a size");
        let size = usize::from_str_radix(size, 16).expect("in hexadecimal");
        if size == 0 {
            return body;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

async fn get(up: &Up, target: &str) -> Answer {
    ask(up.address, "GET", target, "").await
}

async fn register(up: &Up, token: &str, id: &str, name: &str) -> Answer {
    let form = format!("value={name}%3Dhttp%3A%2F%2F{name}%3A2380");
    ask(up.address, "PUT", &format!("{token}/{id}?prevExist=false"), &form).await
}

/// A token of this size, as its path.
async fn token(up: &Up, size: u64) -> String {
    let made = ask(up.address, "PUT", &format!("/new?size={size}"), "").await;
    assert_eq!(made.status, 200, "{}", made.body);
    let token = made.body.strip_prefix("http://discovery.example:2379/").expect("where it was asked");
    assert!(token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    format!("/{token}")
}

#[tokio::test]
async fn nothing_is_served_unless_it_is_wanted() {
    let up = up();
    for target in ["/new?size=3", "/v2/keys/discovery/T", "/6c007a14875d53d9bf0ef5a6fc0257c8"] {
        assert_eq!((get(&up, target).await.status, target), (404, target));
        assert_eq!(ask(up.address, "PUT", target, "value=3").await.status, 404);
    }
}

#[tokio::test]
async fn a_cluster_of_two_finds_itself_under_every_name_of_its_token() {
    let up = service();
    let short = token(&up, 2).await;
    let (registry, keys) = (format!("/v2/keys/_etcd/registry{short}"), format!("/v2/keys/discovery{short}"));
    for prefix in [&short, &registry, &keys] {
        let size =
            get(&up, &format!("{prefix}/_config/size?quorum=false&recursive=false&sorted=false")).await;
        assert_eq!((size.status, size.header("content-type")), (200, "application/json"));
        assert!(size.body.contains("\"value\":\"2\"") && size.body.ends_with("}\n"), "{}", size.body);
        assert_eq!(size.header("x-etcd-cluster-id"), "def");
        assert!(size.headers.contains_key("x-raft-index") && size.headers.contains_key("x-raft-term"));
    }
    let first = register(&up, &short, "a1", "n1").await;
    assert_eq!(first.status, 201);
    let index = first.index();
    assert_eq!(
        first.body,
        format!(
            "{{\"action\":\"create\",\"node\":{{\"key\":\"/_etcd/registry{short}/a1\",\"value\":\"n1=http://n1:2380\",\"modifiedIndex\":{index},\"createdIndex\":{index}}}}}\n"
        )
    );
    let own = get(&up, &format!("{keys}/a1?recursive=false&wait=true&waitIndex={index}")).await;
    assert_eq!((own.status, own.header("transfer-encoding")), (200, "chunked"));
    assert!(own.body.contains(&format!("\"key\":\"/discovery{short}/a1\"")), "{}", own.body);
    let list = get(&up, &keys).await;
    assert_eq!(list.index(), index);

    // The head of a wait is there before anything happens; then the event and the end.
    let mut stream = TcpStream::connect(up.address).await.unwrap();
    let wait = format!(
        "GET {keys}?recursive=true&wait=true&waitIndex={} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        index + 1
    );
    stream.write_all(wait.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
    }
    assert!(text.starts_with(b"HTTP/1.1 200 OK\r\n"));
    until("the wait to reach the hub", || up.fake.inner.endless.watches() == 1).await;
    let second = register(&up, &registry, "a2", "n2").await;
    stream.read_to_end(&mut text).await.unwrap();
    let told = read(&String::from_utf8(text).unwrap());
    assert_eq!(told.index(), index, "as of the beginning of the wait");
    assert!(
        told.body
            .contains(&format!("/a2\",\"value\":\"n2=http://n2:2380\",\"modifiedIndex\":{}", second.index()))
    );

    let third = register(&up, &short, "a3", "n3").await;
    assert!(
        third.status == 403 && third.body.contains("2 of 2 members are registered (n1, n2)"),
        "{}",
        third.body
    );
    // Whoever comes late to wait is told what is there, without any history.
    let late = get(&up, &format!("{keys}?recursive=true&wait=true&waitIndex=1")).await;
    assert!(late.body.contains("/a1\""), "{}", late.body);
    let late = get(&up, &format!("{keys}?recursive=true&wait=true&waitIndex={}", index + 1)).await;
    assert!(late.body.contains("/a2\""), "{}", late.body);
    // In the layout of v3 clients.
    let mut kv = kv(up.address).await;
    let all = range(format!("/_etcd/registry{short}/members/"), format!("/_etcd/registry{short}/members0"));
    let all = kv.range(all).await.unwrap().into_inner();
    assert_eq!(all.kvs[1].key, format!("/_etcd/registry{short}/members/a2"));
    assert!(all.kvs.iter().all(|kv| kv.lease != 0), "they end with the token");
    until("all waits to be over", || up.fake.inner.endless.watches() == 0).await;
}

#[tokio::test]
async fn clients_of_v2_and_v3_share_a_token() {
    let up = service();
    let token = token(&up, 3).await;
    let mut kv = kv(up.address).await;
    register(&up, &token, "a1", "n1").await;
    let key = format!("/_etcd/registry{token}/members/b2");
    kv.put(put(key.clone(), "n2=http://n2:2380")).await.unwrap();
    let list = get(&up, &token).await;
    let before = list.index();
    assert!(list.body.contains("/b2\",\"value\":\"n2=http://n2:2380\""), "{}", list.body);
    // A v3 client that was restarted puts again: it keeps its place, and nobody is told of it.
    kv.put(put(key, "n2=http://n2:2380")).await.unwrap();
    let again = get(&up, &token).await;
    assert_eq!(again.body, list.body);
    assert_eq!(again.index(), before + 1);
    let twice = register(&up, &token, "a3", "n2").await;
    assert!(twice.status == 400 && twice.body.contains("registered already, by member b2"), "{}", twice.body);
    assert_eq!(register(&up, &token, "a3", "n3").await.status, 201);
    assert_eq!(register(&up, &token, "a4", "n4").await.status, 403);
}

#[tokio::test]
async fn registrations_of_many_at_once_never_overfill() {
    let up = service();
    let token = token(&up, 5).await;
    let mut coming = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (address, token) = (up.address, token.clone());
        coming.spawn(async move {
            let form = format!("value=n{number}%3Dhttp%3A%2F%2Fn{number}%3A2380");
            ask(address, "PUT", &format!("{token}/a{number:x}?prevExist=false"), &form).await.status
        });
    }
    let mut taken = coming.join_all().await;
    taken.sort_unstable();
    assert_eq!(taken[..5], [201; 5]);
    assert_eq!(taken[5..], [403; 15]);
}

#[tokio::test]
async fn strangers_are_bounded() {
    let up = service_with(|service| service.tokens_max = 3);
    let token = token(&up, 3).await;
    // Forms that are too long, broken off or never sent.
    let long = "x".repeat(9000);
    let answer = ask(up.address, "PUT", &format!("{token}/a1"), &format!("value={long}")).await;
    assert!(answer.status == 413 && answer.body.contains("at most 8192 bytes"), "{}", answer.body);
    let huge = "PUT /new HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(raw::http1(up.address, huge).await.starts_with("HTTP/1.1 200"), "no body is asked for");
    for (target, status) in [
        ("/new?size=0", 400),
        ("/new?size=-1", 400),
        ("/new?size=abc", 400),
        ("/new?size=32", 400),
        ("/new?size=%zz", 400),
        ("/v2/keys/discovery", 403),
        ("/v2/keys/_etcd/registry/", 403),
        ("/v2/keys/foo", 404),
        ("/v2/keys/discovery/unknown", 404),
        ("/v2/keys/discovery/unknown?wait=true", 404),
        ("/v2/keys/discovery/%ff", 404),
    ] {
        assert_eq!((get(&up, target).await.status, target), (status, target));
    }
    let foreign = ask(up.address, "PUT", "/v2/keys/foo", "value=1").await;
    assert!(foreign.status == 400 && foreign.body.contains("only those of discovery"), "{}", foreign.body);
    for host in ["", "host: a b\r\n", "host: evil/x\r\n", "host: <x>\r\n"] {
        let text =
            raw::http1(up.address, &format!("GET /new HTTP/1.1\r\n{host}connection: close\r\n\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 400"), "{host:?}: {text}");
    }
    let patch = ask(up.address, "PATCH", &token, "").await;
    assert_eq!((patch.status, patch.header("allow")), (405, "HEAD,GET,PUT,POST,DELETE"));
    assert_eq!(patch.body, "Method Not Allowed\n");
    // The third token is the last one.
    let named = ask(up.address, "PUT", "/v2/keys/discovery/mine/_config/size", "value=3").await;
    assert_eq!(named.status, 201, "{}", named.body);
    for (method, target) in [("GET", "/new"), ("PUT", "/v2/keys/discovery/other/_config/size")] {
        let full = ask(up.address, method, target, "value=3").await;
        assert!(full.status == 403 && full.body.contains("there are 3 tokens already"), "{}", full.body);
    }
    let ended = ask(up.address, "DELETE", "/v2/keys/discovery/mine?recursive=true&force=true", "").await;
    assert_eq!(ended.status, 200, "{}", ended.body);
    assert_eq!(get(&up, "/new").await.status, 200);
    // No room.
    up.fake.inner.full.store(true, SeqCst);
    let full = register(&up, &token, "a1", "n1").await;
    assert!(full.status == 400 && full.body.contains("NOSPACE"), "{}", full.body);
}

#[tokio::test]
async fn too_many_waits_are_turned_away_and_places_come_back() {
    let up = service();
    let token = token(&up, 3).await;
    let mut waiting = Vec::new();
    let head = format!("GET {token}?recursive=true&wait=true&waitIndex=99 HTTP/1.1\r\nhost: x\r\n\r\n");
    for _ in 0..256 {
        let mut stream = TcpStream::connect(up.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    until("all waits to be there", || up.fake.inner.endless.watches() == 256).await;
    let one_more = get(&up, &format!("{token}?wait=true&waitIndex=99")).await;
    assert!(one_more.status == 503 && one_more.body.contains("as many wait"), "{}", one_more.body);
    drop(waiting);
    until("their places", || up.fake.inner.endless.watches() == 0).await;
    let mut again = TcpStream::connect(up.address).await.unwrap();
    again.write_all(head.as_bytes()).await.unwrap();
    until("a place", || up.fake.inner.endless.watches() == 1).await;
    // A server that stops ends waits without an event; the client asks elsewhere.
    let drained = tokio::task::spawn_blocking(move || up.running.drain(PATIENCE)).await.unwrap();
    assert_eq!(drained.cut_count, 0);
    let mut text = String::new();
    again.read_to_string(&mut text).await.unwrap();
    assert_eq!(read(&text).body, "");
}

#[tokio::test]
async fn without_a_leader_reads_fail_and_registrations_are_held() {
    let up = service();
    let token = token(&up, 3).await;
    up.fake.inner.leaderless.store(true, SeqCst);
    let (address, path) = (up.address, token.clone());
    let held = tokio::spawn(async move {
        let form = "value=n1%3Dhttp%3A%2F%2Fn1%3A2380";
        ask(address, "PUT", &format!("{path}/a1?prevExist=false"), form).await
    });
    let barriers = up.fake.inner.barriers.load(SeqCst);
    until("attempts", || up.fake.inner.barriers.load(SeqCst) >= barriers + 3).await;
    assert!(!held.is_finished());
    up.fake.inner.leaderless.store(false, SeqCst);
    let held = held.await.unwrap();
    assert_eq!(held.status, 201, "{}", held.body);
    up.fake.inner.leaderless.store(true, SeqCst);
    let list = get(&up, &token).await;
    assert_eq!((list.status, list.header("retry-after")), (503, "1"));
    assert!(list.body.starts_with("{\"errorCode\":301,"), "{}", list.body);
}

#[tokio::test]
async fn a_registration_that_cannot_be_held_longer_goes_to_another_member() {
    let up = service();
    let token = token(&up, 3).await;
    let other = |id, urls: &[&str], is_learner| pb::Member {
        id,
        client_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
        is_learner,
        ..Default::default()
    };
    up.fake.inner.others.lock().extend([
        other(1, &["http://learner:2379"], true),
        other(2, &[], false),
        other(3, &["unix://x", "http://other:2379/"], false),
    ]);
    up.fake.inner.leaderless.store(true, SeqCst);
    let sent = register(&up, &token, "a1", "n1").await;
    assert_eq!(sent.status, 307, "{}", sent.body);
    let there = format!("http://other:2379{token}/a1?prevExist=false&tried=true");
    assert_eq!(sent.header("location"), there);
    // It was made after all before the leader went: the other member must not take it for a second one, complete or not.
    up.fake.inner.leaderless.store(false, SeqCst);
    for (id, name) in [("a1", "n1"), ("a2", "n2"), ("a3", "n3")] {
        assert_eq!(register(&up, &token, id, name).await.status, 201);
    }
    let form = "value=n1%3Dhttp%3A%2F%2Fn1%3A2380";
    let again = ask(up.address, "PUT", &format!("{token}/a1?prevExist=false&tried=true"), form).await;
    assert_eq!(again.status, 201, "{}", again.body);
}

#[tokio::test]
async fn a_killed_member_resumes_unless_that_is_switched_off() {
    for resume in [true, false] {
        let up = service_with(|service| service.resume = resume);
        let token = token(&up, 2).await;
        let first = register(&up, &token, "a1", "n1").await;
        let again = register(&up, &token, "a1", "n1").await;
        if resume {
            assert_eq!((again.status, &again.body), (201, &first.body));
        } else {
            assert_eq!(again.status, 412);
        }
        let other =
            ask(up.address, "PUT", &format!("{token}/a1?prevExist=false"), "value=n9%3Dhttp%3A%2F%2Fn9%3A1")
                .await;
        assert!(other.status == 412 && other.body.starts_with("{\"errorCode\":105,"), "{}", other.body);
        register(&up, &token, "a2", "n2").await;
        assert_eq!(register(&up, &token, "a1", "n1").await.status, 412, "it may have founded its cluster");
    }
}

#[tokio::test]
async fn what_outlives_its_token_is_swept() {
    let up = service_with(|service| service.sweep_every = Duration::from_millis(5));
    let token = token(&up, 3).await;
    let mut kv = kv(up.address).await;
    let member = |token: &str| format!("/_etcd/registry{token}/members/a1");
    kv.put(put(member(&token), "n1=http://n1:1")).await.unwrap();
    kv.put(put(member("/gone"), "n1=http://n1:1")).await.unwrap();
    kv.put(put("/_etcd/registry/gone/other", "x")).await.unwrap();
    let wait = async {
        loop {
            let left = kv.range(range("/_etcd/", "/_etcd0")).await.unwrap().into_inner();
            let keys: Vec<String> =
                left.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect();
            if !keys.contains(&member("/gone")) {
                return keys;
            }
        }
    };
    let keys = tokio::time::timeout(PATIENCE, wait).await.expect("it is swept");
    assert!(keys.contains(&member(&token)), "{keys:?}");
    assert!(keys.contains(&"/_etcd/registry/gone/other".to_owned()), "only registrations");
}
