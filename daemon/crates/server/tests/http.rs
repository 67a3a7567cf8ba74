//! HTTP on the client and metrics listeners, byte by byte against what etcd answers.

mod support;

use std::{collections::BTreeMap, net::SocketAddr, sync::atomic::Ordering::SeqCst, time::Duration};

use api::etcdserverpb as pb;
use server::ServerConfig;
use support::{MEMBER, any_port, config, kv, put, raw, up, up_with};

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

async fn ask(address: SocketAddr, method: &str, target: &str, extra: &str) -> Answer {
    let host = if extra.to_lowercase().contains("host:") { "" } else { "host: localhost\r\n" };
    let request = format!("{method} {target} HTTP/1.1\r\n{host}connection: close\r\n{extra}\r\n");
    let text = raw::http1(address, &request).await;
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}

async fn get(address: SocketAddr, target: &str) -> Answer {
    ask(address, "GET", target, "").await
}

#[tokio::test]
async fn health_tells_the_first_reason() {
    let up = up();
    let answer = get(up.address, "/health").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"health":"true","reason":""}"#));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.header("access-control-allow-origin"), "*");

    up.fake.inner.leaderless.store(true, SeqCst);
    let answer = get(up.address, "/health").await;
    assert_eq!(answer.body, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n");
    assert_eq!((answer.status, answer.header("x-content-type-options")), (503, "nosniff"));
    assert_eq!(get(up.address, "/health?serializable=true").await.status, 200);

    let alarm = |alarm: i32| pb::AlarmMember { member_id: MEMBER, alarm };
    up.fake.inner.extra_alarms.lock().extend([alarm(1), alarm(2)]);
    assert!(get(up.address, "/health").await.body.contains(r#""reason":"ALARM NOSPACE""#));
    let answer = get(up.address, "/health?exclude=NOSPACE").await;
    assert!(answer.body.contains(r#""reason":"ALARM CORRUPT""#));
    let answer = get(up.address, "/health?exclude=NOSPACE&exclude=CORRUPT&serializable=true").await;
    assert_eq!(answer.status, 200);
    up.fake.inner.extra_alarms.lock().insert(0, alarm(77));
    assert!(get(up.address, "/health").await.body.contains(r#""reason":"ALARM UNKNOWN""#));

    let answer = ask(up.address, "POST", "/health", "content-length: 0\r\n").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET"));
    assert_eq!(answer.body, "Method Not Allowed\n");
    let text = get(up.address, "/metrics").await.body;
    assert!(text.contains("\netcd_server_health_success 3\n"), "{text}");
    assert!(text.contains("\netcd_server_health_failures 4\n"));
}

#[tokio::test]
async fn a_read_that_does_not_come_back_is_a_reason() {
    let up = up_with(ServerConfig { health_timeout: Duration::from_millis(50), ..config() });
    up.fake.inner.stuck.store(true, SeqCst);
    let answer = get(up.address, "/health").await;
    assert_eq!(
        answer.body,
        "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n"
    );
    assert_eq!(get(up.address, "/livez").await.status, 200);
    assert_eq!(get(up.address, "/readyz").await.status, 503);
}

#[tokio::test]
async fn livez_and_readyz() {
    let up = up();
    for (target, body) in [
        ("/livez", "ok\n"),
        ("/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("/livez/serializable_read", "ok\n"),
        ("/livez/serializable_read?verbose", "[+]serializable_read ok\nok\n"),
        ("/readyz", "ok\n"),
        (
            "/readyz?verbose",
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
        ),
        (
            "/readyz?verbose&exclude=linearizable_read&exclude=non_learner&exclude=nope",
            "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
        ),
        ("/readyz/non_learner?verbose", "[+]non_learner ok\nok\n"),
        ("/readyz/data_corruption", "ok\n"),
    ] {
        let answer = get(up.address, target).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{target}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    for target in ["/livez/", "/livez/non_learner", "/readyz/nope", "/health/", "/healthz", "/", "/foo"] {
        let answer = get(up.address, target).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, "404 page not found\n"), "{target}");
    }
    assert_eq!(ask(up.address, "DELETE", "/readyz", "").await.header("allow"), "GET");
}

#[tokio::test]
async fn a_member_that_joins_is_alive_and_not_healthy() {
    let up = up();
    up.fake.inner.joining.store(true, SeqCst);
    for target in ["/health", "/health?serializable=true", "/readyz", "/readyz/linearizable_read"] {
        let answer = get(up.address, target).await;
        assert!(answer.status == 503 && answer.body.contains("joining"), "{target}: {}", answer.body);
    }
    assert_eq!(get(up.address, "/livez").await.status, 200);
}

/// Whoever started it again because of the answer would keep it from ever finding its cluster.
#[tokio::test]
async fn a_member_that_has_not_found_its_cluster_is_alive_and_not_ready() {
    let up = up();
    up.fake.inner.unconfirmed.store(true, SeqCst);
    up.fake.inner.leaderless.store(true, SeqCst);
    for target in ["/livez", "/livez/serializable_read", "/health?serializable=true"] {
        assert_eq!(get(up.address, target).await.status, 200, "{target}");
    }
    for target in ["/readyz", "/health"] {
        assert_eq!(get(up.address, target).await.status, 503, "{target}");
    }
}

#[tokio::test]
async fn readyz_lists_what_failed() {
    let up = up();
    up.fake.inner.leaderless.store(true, SeqCst);
    up.fake.inner.learner.store(true, SeqCst);
    up.fake.inner.extra_alarms.lock().push(pb::AlarmMember { member_id: MEMBER, alarm: 2 });
    let answer = get(up.address, "/readyz").await;
    assert_eq!(answer.status, 503);
    // As in etcd there is an empty line at the end: a list of lines, and the newline of a refusal.
    assert_eq!(
        answer.body,
        "[-]data_corruption failed: alarm activated: CORRUPT\n\
         [+]serializable_read ok\n\
         [-]linearizable_read failed: etcdserver: no leader\n\
         [-]non_learner failed: not supported for learner\n\n"
    );
    assert_eq!(get(up.address, "/livez").await.status, 200);
    let single = get(up.address, "/readyz/linearizable_read").await;
    assert_eq!(single.body, "[-]linearizable_read failed: etcdserver: no leader\n\n");
    let text = get(up.address, "/metrics").await.body;
    for line in [
        "etcd_server_healthcheck{name=\"linearizable_read\",type=\"readyz\"} 0",
        "etcd_server_healthcheck{name=\"serializable_read\",type=\"livez\"} 1",
        "etcd_server_healthchecks_total{name=\"linearizable_read\",status=\"error\",type=\"readyz\"} 2",
        "etcd_server_healthchecks_total{name=\"serializable_read\",status=\"success\",type=\"readyz\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line}");
    }
}

#[tokio::test]
async fn version_metrics_and_variables() {
    let up = up();
    let answer = get(up.address, "/version").await;
    assert_eq!(answer.body, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"unknown"}"#);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(ask(up.address, "PUT", "/version", "").await.status, 405);
    let answer = get(up.address, "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    well_formed(&answer.body);
    let answer = get(up.address, "/debug/vars").await;
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    let vars: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(vars["raft.status"]["id"], "abc");
    assert_eq!(vars["cmdline"].as_array().unwrap().len(), 1, "arguments may hold secrets");
    assert!(vars["file_descriptor_limit"].as_u64().unwrap() > 0);
}

/// Every sample follows its family's type, every family comes once, every value is a number.
fn well_formed(text: &str) {
    let mut families = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            current = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let suffix =
                name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line} is not of {current}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line} in family {current}");
            value.parse::<f64>().unwrap_or_else(|_| panic!("no number: {line}"));
        }
    }
    assert!(families.len() > 15);
}

#[tokio::test]
async fn the_gateway_is_missed_politely() {
    let up = up();
    for target in ["/v3/kv/range", "/v3beta/kv/range"] {
        let answer = ask(up.address, "POST", target, "content-length: 2\r\n\r\n{}").await;
        assert_eq!(answer.status, 501);
        assert_eq!(
            answer.body,
            r#"{"code":12,"message":"cairn does not serve the JSON gateway yet; this port speaks gRPC"}"#
        );
    }
}

#[tokio::test]
async fn hosts_and_origins() {
    let up = up_with(ServerConfig {
        host_whitelist: vec!["127.0.0.1".into(), "good.example".into()],
        cors: vec!["http://a.example".into()],
        ..config()
    });
    let answer = ask(up.address, "GET", "/health", "host: evil.example\r\n").await;
    assert_eq!(answer.status, 421);
    assert!(answer.body.contains("--host-whitelist \"evil.example\""), "{}", answer.body);
    assert_eq!(ask(up.address, "OPTIONS", "/health", "host: evil.example\r\n").await.status, 421);
    for host in ["good.example", "good.example:2379", "127.0.0.1:1"] {
        let answer = ask(up.address, "GET", "/health", &format!("host: {host}\r\n")).await;
        assert_eq!(answer.status, 200, "{host}");
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    let allowed = "host: good.example\r\norigin: http://a.example\r\n";
    for (method, target) in [("GET", "/health"), ("OPTIONS", "/anything"), ("GET", "/nothing")] {
        let answer = ask(up.address, method, target, allowed).await;
        assert_eq!(answer.header("access-control-allow-origin"), "http://a.example");
        assert_eq!(answer.header("access-control-allow-methods"), "POST, GET, OPTIONS, PUT, DELETE");
        assert_eq!(answer.header("access-control-allow-headers"), "accept, content-type, authorization");
    }
    let answer = ask(up.address, "OPTIONS", "/anything", allowed).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let stranger = "host: good.example\r\norigin: http://b.example\r\n";
    let answer = ask(up.address, "GET", "/health", stranger).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""));
}

#[tokio::test]
async fn the_metrics_listener_serves_no_more_than_that() {
    let up = up_with(ServerConfig { metrics: vec![any_port()], ..config() });
    let address = up.running.metrics_addresses()[0];
    for (target, status) in [
        ("/metrics", 200),
        ("/health", 200),
        ("/livez", 200),
        ("/readyz/non_learner", 200),
        ("/version", 404),
        ("/debug/vars", 404),
        ("/v3/kv/range", 404),
    ] {
        let answer = get(address, target).await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{target}");
    }
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    let text = get(address, "/metrics").await.body;
    let line = "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1";
    assert!(text.contains(line), "the metrics listener sees calls of the client listener");
    // gRPC is not spoken here.
    let answer = raw::grpc(address, "/etcdserverpb.KV/Range", &[], &[0, 0, 0, 0, 0]).await;
    assert_eq!(answer.http_status, 404);
}

#[tokio::test]
async fn split_listeners_keep_to_their_own() {
    let up = up_with(ServerConfig { client_http: vec![any_port()], ..config() });
    let http = up.running.client_http_addresses()[0];
    assert_eq!(get(http, "/health").await.status, 200);
    let answer = get(up.address, "/health").await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("--listen-client-http-urls"));
    kv(up.address).await.put(put("a", "1")).await.unwrap();
    assert_eq!(raw::grpc(http, "/etcdserverpb.KV/Range", &[], &[0, 0, 0, 0, 0]).await.http_status, 404);
}

#[tokio::test]
async fn http_and_grpc_share_a_port() {
    let up = up();
    let mut kv = kv(up.address).await;
    for round in 0..5 {
        kv.put(put("a", format!("{round}"))).await.unwrap();
        assert_eq!(get(up.address, "/health").await.status, 200);
    }
    // A request without gRPC's content type is HTTP in HTTP/2 clothes.
    let stream = tokio::net::TcpStream::connect(up.address).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let target = format!("http://{}/version", up.address);
    let request = http::Request::get(target).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
}
