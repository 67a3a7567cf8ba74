//! The load generator must say when a server loses, repeats or invents events, and when leases end that must not. Servers that do
//! are made of prepared answers; that a sound server passes is shown with the real etcd.

use crate::fake::{Answer, Fake};
use crate::tools::{Run, Server, Tool, real_etcd, run};
use api::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutResponse, ResponseHeader,
    WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use api::mvccpb::{Event, KeyValue};
use bytes::Bytes;
use prost::Message;
use serde_json::Value;

fn bench(endpoint: &str, line: &str) -> (Run, Value) {
    let words: Vec<&str> = line.split(' ').chain(["-w", "json"]).collect();
    let run = run(Tool::Cairnctl, endpoint, &words, b"");
    let report = serde_json::from_slice(&run.stdout);
    let report = report.unwrap_or_else(|error| panic!("{line}: {error}: {}", run.stderr));
    (run, report)
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

/// The answers to a create request: created, then an event for each revision.
fn watched(request: &[u8], revisions: &[i64]) -> Vec<Bytes> {
    let request = WatchRequest::decode(request).expect("a request");
    let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
        panic!("only creates are sent")
    };
    let event = |revision: &i64| Event {
        kv: Some(KeyValue { key: create.key.clone(), mod_revision: *revision, ..Default::default() }),
        ..Default::default()
    };
    let created =
        WatchResponse { header: header(6), watch_id: create.watch_id, created: true, ..Default::default() };
    let events =
        WatchResponse { created: false, events: revisions.iter().map(event).collect(), ..created.clone() };
    vec![created.encode_to_vec().into(), events.encode_to_vec().into()]
}

/// One put at revision 7 against watchers that are sent `watch`.
fn with_watchers(watch: fn(&[u8]) -> Vec<Bytes>) -> (Run, Value) {
    let put = PutResponse { header: header(7), ..Default::default() };
    let fake = Fake::start([("Put", Answer::one(&put)), ("Watch", Answer::Each(watch))]);
    bench(&fake.endpoint, "bench watch --watchers 3 --streams 2 --total 1 --patience 200ms")
}

#[test]
fn a_watch_that_is_sent_everything_once_passes() {
    let (run, report) = with_watchers(|request| watched(request, &[7]));
    assert_eq!((run.code, &report["events"]["delivered"]), (0, &3.into()), "{}", run.stderr);
    assert_eq!(report["events"]["watchers_flawless"], 3);
}

#[test]
fn events_that_are_missing_are_counted_and_fail() {
    let (run, report) = with_watchers(|request| watched(request, &[]));
    assert_eq!((run.code, &report["events"]["missing"]), (1, &3.into()));
    assert!(run.stderr.contains("of 3 events 3 are missing"), "{}", run.stderr);
}

#[test]
fn events_that_come_twice_or_belong_to_no_put_fail() {
    let (run, report) = with_watchers(|request| watched(request, &[7, 7]));
    let events = &report["events"];
    assert_eq!(
        (run.code, &events["missing"], &events["surplus"], &events["disorder"]),
        (1, &0.into(), &3.into(), &3.into())
    );
    let (run, report) = with_watchers(|request| watched(request, &[8]));
    let events = &report["events"];
    assert_eq!((run.code, &events["missing"], &events["surplus"]), (1, &3.into(), &3.into()));
}

#[test]
fn a_watch_that_the_server_cancels_says_why() {
    let put = PutResponse { header: header(7), ..Default::default() };
    let cancelled = |request: &[u8]| {
        let mut answers = watched(request, &[7]);
        let over = WatchResponse { watch_id: 1, canceled: true, compact_revision: 9, ..Default::default() };
        answers[1] = over.encode_to_vec().into();
        answers
    };
    let fake = Fake::start([("Put", Answer::one(&put)), ("Watch", Answer::Each(cancelled))]);
    let line = ["bench", "watch", "--watchers", "2", "--total", "1", "--patience", "200ms"];
    let run = run(Tool::Cairnctl, &fake.endpoint, &line, b"");
    // It may come while the others are still opened, which ends the measurement, or after, which is in its report.
    let said = [String::from_utf8_lossy(&run.stdout).into_owned(), run.stderr].concat();
    assert_eq!(run.code, 1);
    assert!(said.contains("history before 9 was compacted"), "{said}");
}

#[test]
fn a_watch_that_is_refused_ends_the_measurement_with_the_servers_reason() {
    let fake = Fake::start([(
        "Watch",
        Answer::Each(|_| {
            let refused = WatchResponse {
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: "etcdserver: permission denied".into(),
                ..Default::default()
            };
            vec![refused.encode_to_vec().into()]
        }),
    )]);
    let run = run(Tool::Cairnctl, &fake.endpoint, &["bench", "watch", "--watchers", "2"], b"");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("permission denied"), "{}", run.stderr);
}

/// Keep-alives against a server that answers them so.
fn with_leases(each: fn(&[u8]) -> Vec<Bytes>) -> (Run, Value) {
    let granted = LeaseGrantResponse { ttl: 60, ..Default::default() };
    let fake = Fake::start([("LeaseGrant", Answer::one(&granted)), ("LeaseKeepAlive", Answer::Each(each))]);
    bench(&fake.endpoint, "bench lease keep-alive --clients 3 --conns 2 --leases 5 --total 20")
}

fn renewed(request: &[u8], ttl: i64) -> Vec<Bytes> {
    let id = LeaseKeepAliveRequest::decode(request).expect("a request").id;
    vec![LeaseKeepAliveResponse { header: header(1), id, ttl }.encode_to_vec().into()]
}

#[test]
fn a_lease_that_is_gone_when_it_is_renewed_fails() {
    let (run, report) = with_leases(|request| renewed(request, 60));
    assert_eq!(
        (run.code, &report["total"]["requests"], &report["total"]["lost"]),
        (0, &20.into(), &0.into())
    );
    let (run, report) = with_leases(|request| renewed(request, 0));
    assert_eq!((run.code, &report["total"]["lost"]), (1, &20.into()));
    assert!(run.stderr.contains("their leases are gone"), "{}", run.stderr);
}

#[test]
fn a_keep_alive_stream_that_ends_fails() {
    let granted = LeaseGrantResponse { ttl: 60, ..Default::default() };
    let fake = Fake::start([
        ("LeaseGrant", Answer::one(&granted)),
        ("LeaseKeepAlive", Answer::Status(14, "etcdserver: no leader")),
    ]);
    let line = "bench lease keep-alive --clients 2 --total 20 --command-timeout 1s";
    let (run, report) = bench(&fake.endpoint, line);
    assert_eq!((run.code, &report["total"]["errors"]), (1, &2.into()));
}

#[test]
fn a_sound_server_passes_every_measurement() {
    if real_etcd("a_sound_server_passes_every_measurement").is_none() {
        return;
    }
    let server = Server::start();
    for (line, path, count) in [
        ("bench watch --watchers 20 --streams 3 --total 200 --clients 4", "/events/delivered", 4000),
        ("bench watch --watchers 20 --on keys --total 200 --clients 4 --prev-kv", "/events/delivered", 200),
        ("bench watch-latency --watchers 10 --total 50", "/events/from_ack_us/p50", 0),
        ("bench watch-catch-up --watchers 2 --quiet 100ms --clients 4", "/watchers_there", 2),
        ("bench lease grant --total 100 --clients 4", "/total/requests", 100),
        ("bench lease keep-alive --leases 100 --total 500", "/total/requests", 500),
        ("bench lease expire --leases 200 --ttl 3 --keep 20", "/gone", 200),
    ] {
        let (run, report) = bench(&server.endpoint, line);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        let found =
            report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{line}: {report}"));
        assert!(count == 0 || found == f64::from(count), "{line}: {found} instead of {count}");
    }
}
