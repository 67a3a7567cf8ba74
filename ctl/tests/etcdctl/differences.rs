//! Where cairnctl is meant to differ from etcdctl, each difference with its reason. And what only cairnctl has.

use crate::fake::{Answer, Fake};
use crate::tools::{Tool, real_etcd, run};
use api::etcdserverpb::{
    Member, MemberListResponse, PutResponse, RangeResponse, RangeStreamResponse, ResponseHeader,
};
use api::mvccpb::KeyValue;
use std::io::Write;
use std::net::TcpListener;

fn ours(endpoints: &str, line: &str) -> crate::tools::Run {
    run(Tool::Cairnctl, endpoints, &line.split(' ').collect::<Vec<_>>(), b"")
}

/// An address where nobody listens: the port was ours a moment ago.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").to_string()
}

/// etcdctl exits 1 for these, as for everything; a script that misspells a flag should not look like a server that refused.
#[test]
fn mistakes_on_the_command_line_exit_64_with_the_nearest_name() {
    for (line, error) in [
        ("get a --prefxi", "Error: unknown flag: --prefxi; did you mean --prefix?"),
        (
            "get a --limit=x",
            "Error: invalid argument \"x\" for \"--limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "get a --command-timeout=3",
            "Error: invalid argument \"3\" for \"--command-timeout\" flag: time: missing unit in duration \"3\"",
        ),
        ("gte a", "Error: unknown command \"gte\" for \"cairnctl\"; did you mean get?"),
        ("put a -z", "Error: unknown shorthand flag: -z (a value that begins with a dash goes after --)"),
    ] {
        let run = ours("127.0.0.1:1", line);
        assert_eq!((run.code, run.stderr.lines().next()), (64, Some(error)), "{line}");
    }
    if real_etcd("mistakes_on_the_command_line_exit_64_with_the_nearest_name (etcdctl's side)").is_some() {
        assert_eq!(
            run(Tool::Etcdctl, "127.0.0.1:1", &["get", "a", "--prefxi"], b"").code,
            1,
            "the reason for this difference is gone"
        );
    }
}

/// etcdctl waits for the whole command timeout and then says "context deadline exceeded" without saying why.
#[test]
fn unreachable_endpoints_are_each_named_with_their_reason_and_exit_2() {
    let (a, b) = (nobody(), nobody());
    let run = ours(&format!("{a},{b}"), "get k --dial-timeout=100ms");
    assert_eq!(run.code, 2, "{}", run.stderr);
    for part in [
        "Error: [UNREACHABLE]",
        "cause:    ",
        &format!("evidence: {a}: connect: "),
        &format!("          {b}: connect: "),
        "remedy:   1. ",
        "never:    ",
    ] {
        assert!(run.stderr.contains(part), "{part:?} is missing in {}", run.stderr);
    }
}

#[test]
fn the_next_endpoint_answers_when_one_is_down() {
    let fake = Fake::start([
        ("Range", Answer::one(&RangeResponse::default())),
        ("Put", Answer::one(&PutResponse::default())),
    ]);
    let endpoints = format!("{},{},{}", nobody(), nobody(), fake.endpoint);
    assert_eq!(ours(&endpoints, "get k").code, 0);
    assert_eq!(ours(&endpoints, "put k v").stdout, b"OK\n");
}

/// A port that accepts and then says nothing (a stopped process) must not use up the time of its neighbours.
#[test]
fn a_silent_endpoint_is_passed_over_within_the_dial_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let fake = Fake::start([("Put", Answer::one(&PutResponse::default()))]);
    let endpoints = format!("{},{}", silent.local_addr().expect("its address"), fake.endpoint);
    let run = ours(&endpoints, "put k v --dial-timeout=400ms --command-timeout=60s");
    assert_eq!((run.code, &run.stdout[..]), (0, &b"OK\n"[..]), "{}", run.stderr);
}

#[test]
fn a_read_is_repeated_elsewhere_and_a_write_never() {
    let broken = Fake::start([("Range", Answer::Hangup), ("Put", Answer::Hangup)]);
    let whole = Fake::start([
        ("Range", Answer::one(&RangeResponse::default())),
        ("Put", Answer::one(&PutResponse::default())),
    ]);
    let endpoints = format!("{},{}", broken.endpoint, whole.endpoint);
    assert_eq!(ours(&endpoints, "get k").code, 0);
    let put = ours(&endpoints, "put k v");
    assert_eq!(put.code, 1, "{}", put.stderr);
    assert!(
        put.stderr.contains("[ANSWER_LOST]") && put.stderr.contains("may or may not have been executed"),
        "{}",
        put.stderr
    );
    assert_eq!(*whole.seen.lock().expect("nobody panics with it"), ["Range"]);
}

#[test]
fn a_member_without_a_leader_is_passed_over_by_reads_only() {
    let lost = Fake::start([
        ("Range", Answer::Status(14, "etcdserver: no leader")),
        ("Put", Answer::Status(14, "etcdserver: no leader")),
    ]);
    let whole = Fake::start([("Range", Answer::one(&RangeResponse::default()))]);
    let endpoints = format!("{},{}", lost.endpoint, whole.endpoint);
    assert_eq!(ours(&endpoints, "get k").code, 0);
    assert_eq!(
        ours(&endpoints, "put k v").essence(),
        (String::new(), 1, Some("Error: etcdserver: no leader".into()))
    );
    assert_eq!(
        ours(&lost.endpoint, "get k").essence(),
        (String::new(), 1, Some("Error: etcdserver: no leader".into()))
    );
}

/// The first line is etcdctl's, which scripts look for; the lines after it are ours.
#[test]
fn no_answer_in_time_is_a_deadline_exceeded() {
    let fake = Fake::start([("Put", Answer::Silence)]);
    let run = ours(&fake.endpoint, "put k v --command-timeout=100ms");
    assert_eq!((run.code, run.stderr.lines().next()), (1, Some("Error: context deadline exceeded")));
    assert!(run.stderr.contains("may or may not have been executed"), "{}", run.stderr);
}

#[test]
fn a_server_that_notices_the_deadline_first_is_reported_alike() {
    let fake = Fake::start([("Put", Answer::Status(4, "context deadline exceeded"))]);
    let run = ours(&fake.endpoint, "put k v");
    assert_eq!((run.code, run.stderr.lines().next()), (1, Some("Error: context deadline exceeded")));
}

/// etcdctl refuses a setting that is given twice. The flag is what the person at the keyboard meant.
#[test]
fn a_flag_wins_over_a_variable() {
    let fake = Fake::start([("Range", Answer::one(&RangeResponse::default()))]);
    let run = run(Tool::Cairnctl, &nobody(), &["get", "k", "--endpoints", &fake.endpoint], b"");
    assert_eq!(run.code, 0, "{}", run.stderr);
}

/// etcdctl writes first and then finds that it cannot print the answer.
#[test]
fn a_format_that_the_verb_lacks_is_refused_before_anything_is_written() {
    let fake = Fake::start([("Put", Answer::one(&PutResponse::default()))]);
    let error = Some("Error: table not supported as output format".to_owned());
    for line in ["put k v -w table", "del k -w table", "txn -w table", "alarm disarm -w table"] {
        assert_eq!(ours(&fake.endpoint, line).essence(), (String::new(), 4, error.clone()), "{line}");
    }
    assert!(fake.seen.lock().expect("nobody panics with it").is_empty());
}

/// etcdctl's JSON with --hex leaves learners unmarked and prints the term in hexadecimal without quotes.
#[test]
fn hexadecimal_json_stays_json_and_marks_learners() {
    let members = vec![Member { id: 0xab, name: "x".into(), is_learner: true, ..Default::default() }];
    let header = Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 0, raft_term: 12 });
    let fake = Fake::start([("MemberList", Answer::one(&MemberListResponse { header, members }))]);
    let run = ours(&fake.endpoint, "member list -w json --hex");
    let text = String::from_utf8(run.stdout).expect("JSON is text");
    assert!(text.contains("\"raft_term\":12}") && text.contains("\"isLearner\":true"), "{text}");
    serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
}

/// etcdctl panics on these: a lease in a comparison, an operator it does not know.
#[test]
fn comparisons_that_etcdctl_panics_on_work_or_are_refused() {
    let fake = Fake::start([(
        "Txn",
        Answer::one(&api::etcdserverpb::TxnResponse { succeeded: true, ..Default::default() }),
    )]);
    let txn = |script: &str| run(Tool::Cairnctl, &fake.endpoint, &["txn"], script.as_bytes());
    assert_eq!(txn("lease(\"a\") = \"1f\"\n\n\n\n").stdout, b"SUCCESS\n");
    assert_eq!(txn("val(\"a\") >= \"x\"\n\n\n\n").code, 3);
    // etcdctl ignores what follows a comparison; half a guard is none.
    assert_eq!(txn("val(\"a\") = \"x\" and more\n\n\n\n").code, 3);
}

#[test]
fn a_streamed_range_prints_what_one_answer_would() {
    let kv = |key: &'static str| KeyValue { key: key.into(), value: "v".into(), ..Default::default() };
    let part = |kvs, header, count| RangeStreamResponse {
        range_response: Some(RangeResponse { header, kvs, more: count == 9, count }),
    };
    let header = Some(ResponseHeader { revision: 5, ..Default::default() });
    let parts = [part(vec![kv("a"), kv("b")], None, 0), part(vec![kv("c")], header, 9)];
    let whole = RangeResponse { header, kvs: vec![kv("a"), kv("b"), kv("c")], more: true, count: 9 };
    let parts = parts.iter().map(|part| prost::Message::encode_to_vec(part).into()).collect();
    let fake = Fake::start([("RangeStream", Answer::Messages(parts)), ("Range", Answer::one(&whole))]);
    for format in ["simple", "json", "fields", "protobuf"] {
        let (streamed, plain) = (
            ours(&fake.endpoint, &format!("get a z --stream -w {format}")),
            ours(&fake.endpoint, &format!("get a z -w {format}")),
        );
        assert_eq!(streamed, plain);
        assert!(!plain.stdout.is_empty());
    }
}

/// Where stderr goes is no part of what a command does: a full disk behind `2>` and a reader that left change neither output nor code.
#[test]
fn words_that_cannot_be_said_on_stderr_change_nothing() {
    fn denied(_: &[u8]) -> Vec<bytes::Bytes> {
        let cancel_reason = "etcdserver: permission denied".into();
        let denied = api::etcdserverpb::WatchResponse {
            created: true,
            canceled: true,
            cancel_reason,
            ..Default::default()
        };
        vec![prost::Message::encode_to_vec(&denied).into()]
    }
    let fake = Fake::start([
        ("Range", Answer::one(&RangeResponse::default())),
        ("DeleteRange", Answer::one(&api::etcdserverpb::DeleteRangeResponse::default())),
        ("Watch", Answer::Each(denied)),
    ]);
    let (here, nobody) = (fake.endpoint.clone(), nobody());
    for (endpoints, line, stdin, code) in [
        (&here, "del a b", "", 0),
        (&here, "get k --debug --verbose", "", 0),
        (&here, "watch k", "", 5),
        (&here, "watch -i", "nonsense\nwatch\n\nwatch \"\nwatch --prefxi k\n", 3),
        (&here, "get a --prefxi", "", 64),
        (&here, "get", "", 128),
        (&nobody, "get k --dial-timeout=50ms", "", 2),
        (&nobody, "endpoint health --dial-timeout=50ms", "", 1),
        (&nobody, "endpoint hashkv --dial-timeout=50ms", "", 1),
        (&nobody, "defrag --dial-timeout=50ms", "", 1),
        (&nobody, "discovery new --size 3 --dial-timeout=50ms", "", 2),
        (&nobody, "wait --for leader --timeout=50ms", "", 8),
        (&nobody, "bench put --total 1 --dial-timeout=50ms", "", 2),
        (&nobody, "make-mirror a:1 --dial-timeout=50ms", "", 2),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let said = run(Tool::Cairnctl, endpoints, &words, stdin.as_bytes());
        assert_eq!(said.code, code, "{line}: {}", said.stderr);
        assert!(!said.stderr.is_empty(), "{line}: nothing to say, so nothing is shown by this");
        for full in [true, false] {
            let mut command = Tool::Cairnctl.command(endpoints, &words);
            if full {
                command.stderr(std::fs::File::options().write(true).open("/dev/full").expect("Linux has it"));
            }
            let mut child = command.spawn().expect("start the tool");
            drop(child.stderr.take());
            let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
            let unsaid = child.wait_with_output().expect("wait for the tool");
            assert_eq!(unsaid.status.code(), Some(code), "{line}, full: {full}");
            if !line.starts_with("endpoint") {
                assert_eq!(unsaid.stdout, said.stdout, "{line}, full: {full}");
            }
        }
    }
}

#[test]
fn version_and_completions_need_no_server() {
    assert!(ours(&nobody(), "version").stdout.starts_with(b"cairnctl version: "));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let run = ours(&nobody(), &format!("completion {shell}"));
        assert!(run.code == 0 && String::from_utf8_lossy(&run.stdout).contains("member"), "{shell}");
    }
    assert_eq!(ours(&nobody(), "completion tcsh").code, 128);
}

#[test]
fn a_bench_counts_errors_by_text_and_fails_when_nothing_succeeds() {
    let fake = Fake::start([("Put", Answer::Status(8, "etcdserver: mvcc: database space exceeded"))]);
    let run = ours(&fake.endpoint, "bench put --total 7 --clients 2 -w json");
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("a report");
    assert_eq!((run.code, &report["total"]["errors"]), (1, &7.into()));
    assert_eq!(report["error_texts"]["etcdserver: mvcc: database space exceeded"], 7);
}

#[test]
fn a_bench_sends_exactly_what_it_was_told() {
    let fake = Fake::start([
        ("Put", Answer::one(&PutResponse::default())),
        ("Range", Answer::one(&RangeResponse::default())),
        ("Txn", Answer::one(&api::etcdserverpb::TxnResponse::default())),
    ]);
    for (line, requests) in [
        ("bench put --total 50 --clients 5 --conns 2 --threads 2", 50),
        ("bench put --total 20 --clients 3 --rate 2000", 20),
        ("bench mixed --total 40 --clients 4", 40),
        ("bench fill --keys 300 --versions 2", 6),
        ("bench range --page-size 10 --total 9", 9),
    ] {
        fake.seen.lock().expect("nobody panics with it").clear();
        let run = ours(&fake.endpoint, &format!("{line} -w json"));
        let report: serde_json::Value = serde_json::from_slice(&run.stdout)
            .unwrap_or_else(|error| panic!("{line}: {error}: {}", run.stderr));
        assert_eq!(
            (&report["total"]["requests"], fake.seen.lock().expect("nobody panics with it").len()),
            (&requests.into(), requests),
            "{line}"
        );
    }
}
