//! make-mirror between two real servers: what is there, what changes, while either side is away, with either tool the same.

use crate::fake::{Answer, Fake};
use crate::live::{Line, Live};
use crate::tools::{Server, Tool, another_server, real_etcd, run};
use std::time::{Duration, Instant};

fn ok(endpoint: &str, arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
    let done = run(Tool::Cairnctl, endpoint, arguments, stdin);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
    done.stdout
}

/// Values that are no text are no text here either, on both sides alike.
fn pairs(endpoint: &str, prefix: &str) -> String {
    String::from_utf8_lossy(&ok(endpoint, &["get", prefix, "--prefix"], b"")).into_owned()
}

/// Waits until the destination has exactly these pairs under a prefix.
fn has(endpoint: &str, prefix: &str, expected: &str) {
    let started = Instant::now();
    loop {
        let pairs = pairs(endpoint, prefix);
        if pairs == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{:.500} and not {expected:.500}", pairs);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mirror_has_what_was_there_and_every_change_also_after_an_outage() {
    if real_etcd("a_mirror_has_what_was_there_and_every_change_also_after_an_outage").is_none() {
        return;
    }
    let (source, destination) = (Server::start(), Server::start());
    // More than a page, so that a second one is asked for.
    ok(&source.endpoint, &["bench", "fill", "--keys", "700", "--val-size", "8", "--key-prefix", "/n/"], b"");
    ok(&source.endpoint, &["put", "/a/1", "one"], b"");
    ok(&source.endpoint, &["put", "/a/2", "two"], b"");
    ok(&source.endpoint, &["put", "b", "not asked for"], b"");
    ok(&destination.endpoint, &["put", "/m/stays", "here"], b"");

    // Under another name, with etcdctl beside it, which calls it by a third one.
    let (there, back) = (Line::to(&source.endpoint), Line::to(&destination.endpoint));
    let sources = format!("{},{}", there.endpoint, source.endpoint);
    let destinations = format!("{},{}", back.endpoint, destination.endpoint);
    let flags = ["make-mirror", &destinations, "--prefix", "/a/", "--dest-prefix", "/m/"];
    let ours = Live::start(Tool::Cairnctl, &sources, &flags, &[]);
    let flags = ["make-mirror", &destination.endpoint, "--prefix", "/a/", "--dest-prefix", "/e/"];
    let _theirs = (!another_server()).then(|| Live::start(Tool::Etcdctl, &source.endpoint, &flags, &[]));
    let both = |pairs: &str| {
        has(&destination.endpoint, "/m/", &format!("{pairs}/m/stays\nhere\n"));
        if !another_server() {
            has(&destination.endpoint, "/e/", &pairs.replace("/m/", "/e/"));
        }
    };
    both("/m/1\none\n/m/2\ntwo\n");
    ok(&source.endpoint, &["txn"], b"\nput /a/1 \"1\"\nput /a/3 three\ndel /a/2\n\n\n");
    both("/m/1\n1\n/m/3\nthree\n");

    // Both connections break; what happened meanwhile is not missed, and nothing comes twice.
    there.cut();
    back.cut();
    ok(&source.endpoint, &["put", "/a/4", "four"], b"");
    ok(&source.endpoint, &["del", "/a/3"], b"");
    both("/m/1\n1\n/m/4\nfour\n");
    assert!(ours.complained("lost").contains("going on elsewhere"));
    drop(ours);

    // Everything, under its own name and from a revision on.
    let all = Live::start(Tool::Cairnctl, &source.endpoint, &["make-mirror", &destination.endpoint], &[]);
    assert!(all.complained("warning").contains("both clusters have the id"), "the twins have one name");
    let expected = pairs(&source.endpoint, "/n/");
    assert_eq!(expected.matches("/n/").count(), 700);
    has(&destination.endpoint, "/n/", &expected);
    drop(all);
    ok(&source.endpoint, &["compaction", "8"], b"");
    let from = ["make-mirror", &destination.endpoint, "--rev", "7", "--no-dest-prefix"];
    let gone = run(Tool::Cairnctl, &source.endpoint, &from, b"");
    assert!(
        gone.code == 7 && gone.stderr.contains("Error: [COMPACTED] changes from revision 7 on"),
        "{gone:?}"
    );
}

#[test]
fn a_mirror_that_cannot_be_is_refused_before_anything_is_written() {
    let status = Answer::one(&api::etcdserverpb::StatusResponse::default());
    let server = Fake::start([("Status", status)]);
    let here = server.endpoint.clone();
    for (arguments, code, said) in [
        (&["make-mirror"][..], 128, "make-mirror takes one destination argument"),
        (&["make-mirror", "a:1", "b:1"], 128, "make-mirror takes one destination argument"),
        (
            &["make-mirror", "a:1", "--dest-prefix=x", "--no-dest-prefix"],
            128,
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ),
        (&["make-mirror", &here, "--prefix=/a/"], 128, "the destination is the source"),
        (&["make-mirror", "ftp://a:1"], 64, "invalid destination"),
        (&["make-mirror", "a:1", "--dest-cert=c"], 128, "--dest-cert and --dest-key belong together"),
        (&["make-mirror", "a:1", "--dest-user=root"], 128, "no password: give --dest-user"),
        (&["make-mirror", "127.0.0.1:1", "--dial-timeout=50ms"], 2, "[UNREACHABLE]"),
    ] {
        let refused = run(Tool::Cairnctl, &here, arguments, b"");
        assert!(refused.code == code && refused.stderr.contains(said), "{arguments:?}: {refused:?}");
    }
    assert!(server.seen.lock().expect("nobody panics with it").iter().all(|method| method == "Status"));
}

#[test]
fn a_check_leaves_nothing_behind_and_touches_nothing_that_was_there() {
    if real_etcd("a_check_leaves_nothing_behind_and_touches_nothing_that_was_there").is_none() {
        return;
    }
    let server = Server::start();
    let patient = ["--dial-timeout=60s", "--command-timeout=60s"];
    let check =
        |arguments: &[&str]| run(Tool::Cairnctl, &server.endpoint, &[arguments, &patient].concat(), b"");
    // Whether a busy machine passes is not ours to say; what is printed is.
    let perf = check(&["check", "perf", "--duration", "500ms", "--auto-compact", "--auto-defrag"]);
    let text = String::from_utf8(perf.stdout.clone()).expect("text");
    let words: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(words[..4], ["Compacting", "Compacted", "Defragmenting", "Defragmented"], "{text}");
    assert_eq!(perf.code, i32::from(!text.ends_with("\nPASS\n")), "{text}");
    for (name, mark) in [("Throughput", "writes/s"), ("Slowest request", "s"), ("Stddev", "s")] {
        assert!(text.lines().any(|line| line.contains(name) && line.ends_with(mark)), "{name} in {text}");
    }
    let scale = check(&["check", "datascale"]);
    let text = String::from_utf8(scale.stdout.clone()).expect("text");
    let first = "Start data scale check for work load [10000 key-value pairs, 1024 bytes per key-value, 50 concurrent clients].\n";
    assert!(text.starts_with(first) && text.contains("PASS: Approximate system memory used : "), "{scale:?}");
    assert_eq!(ok(&server.endpoint, &["get", "", "--prefix", "--keys-only"], b""), b"");

    // In etcdctl's words, but for the tool's name.
    ok(&server.endpoint, &["put", "/etcdctl-check-perf/mine", "v"], b"");
    for (arguments, code) in [(&["check", "perf"][..], 3), (&["check", "perf", "--load", "q"], 4)] {
        let (ours, theirs) = (check(arguments), run(Tool::Etcdctl, &server.endpoint, arguments, b""));
        assert_eq!((ours.code, theirs.code), (code, code));
        let theirs = theirs.essence().2.expect("an error").replace("'etcdctl", "'cairnctl");
        assert_eq!(ours.essence().2.expect("an error"), theirs);
    }
    assert_eq!(
        ok(&server.endpoint, &["get", "", "--prefix", "--keys-only"], b""),
        b"/etcdctl-check-perf/mine\n\n"
    );
}
