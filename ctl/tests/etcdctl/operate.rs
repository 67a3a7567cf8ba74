//! The verbs for operators, shown what no healthy cluster says; on real ones they are in the tests of whole clusters.

use crate::fake::{Answer, Fake};
use crate::tools::{Run, Tool, run};
use api::etcdserverpb as pb;
use api::mvccpb::KeyValue;
use std::io::Write;

fn ctl(server: &Fake, arguments: &[&str]) -> Run {
    run(Tool::Cairnctl, &server.endpoint, arguments, b"")
}

fn header() -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { cluster_id: 7, member_id: 1, revision: 9, raft_term: 2 })
}

fn range(kvs: &[(&'static str, &'static str)], more: bool) -> pb::RangeResponse {
    let kv = |(key, value): &(&'static str, &'static str)| KeyValue {
        key: (*key).into(),
        value: (*value).into(),
        ..Default::default()
    };
    pb::RangeResponse { header: header(), kvs: kvs.iter().map(kv).collect(), more, count: 2 }
}

#[test]
fn a_script_is_not_asked_and_makes_the_one_call_of_etcdctl() {
    let answer = Answer::one(&pb::DeleteRangeResponse { header: header(), deleted: 2, prev_kvs: vec![] });
    let server = Fake::start([("DeleteRange", answer), ("Range", Answer::one(&range(&[], false)))]);
    for arguments in [&["del", "a", "--prefix"][..], &["del", "a", "--prefix", "--yes"]] {
        let deleted = ctl(&server, arguments);
        assert_eq!((&deleted.stdout[..], deleted.code, &deleted.stderr[..]), (&b"2\n"[..], 0, ""));
    }
    let told = ctl(&server, &["del", "a", "--prefix", "--dry-run"]);
    let text = "dry run: would delete 2 keys under \"a\"; nothing was changed\n";
    assert_eq!((String::from_utf8(told.stdout).unwrap().as_str(), told.code), (text, 0));
    assert_eq!(*server.seen.lock().unwrap(), ["DeleteRange", "DeleteRange", "Range"], "a dry run only reads");
    // A line of a transaction knows no such flags: it cannot be asked for, nor told.
    let refused = run(Tool::Cairnctl, &server.endpoint, &["txn"], b"\ndel a --yes\n\n\n");
    assert_eq!(refused.code, 3, "{refused:?}");
}

#[test]
fn a_server_that_does_not_count_by_prefix_is_counted_here() {
    let server =
        Fake::start([("Range", Answer::one(&range(&[("/a/1", "xx"), ("/a/2", "y"), ("b", "")], false)))]);
    let counted = ctl(&server, &["top"]);
    let expected = "\
PREFIX        KEYS   BYTES   WRITES/S   WATCHERS
/a/              2    11 B          -          -
(no prefix)      1     1 B          -          -
";
    assert_eq!((String::from_utf8(counted.stdout).unwrap().as_str(), counted.code), (expected, 0));
    assert!(counted.stderr.contains("it is no cairn"), "{}", counted.stderr);
}

#[test]
fn waiting_ends_with_a_code_of_its_own_and_says_what_is_missing() {
    let status = |leader| Answer::one(&pb::StatusResponse { header: header(), leader, ..Default::default() });
    let server = Fake::start([("Status", status(0)), ("Range", Answer::Status(14, "etcdserver: no leader"))]);
    for (goal, missing) in [("leader", "knows no leader"), ("quorum", "no leader"), ("synced", "no leader")] {
        let waited = ctl(&server, &["wait", "--for", goal, "--timeout", "50ms"]);
        assert_eq!(waited.code, 8, "{waited:?}");
        assert!(
            waited.stderr.starts_with(&format!("Error: [NOT_YET] no {goal} within 50ms\n")),
            "{waited:?}"
        );
        assert!(waited.stderr.contains(missing), "{waited:?}");
    }
    let server = Fake::start([("Status", status(1)), ("Range", Answer::one(&range(&[], false)))]);
    for goal in ["leader", "quorum", "synced"] {
        let waited = ctl(&server, &["wait", "--for", goal]);
        assert_eq!(waited.code, 0, "{waited:?}");
    }
    assert_eq!(ctl(&server, &["wait"]).code, 128);
    assert_eq!(ctl(&server, &["wait", "--for", "nothing"]).code, 64);
}

#[test]
fn a_bundle_is_made_when_nobody_answers_and_replaces_no_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("b.tar.gz");
    let name = file.to_str().expect("text");
    let made = run(Tool::Cairnctl, "http://root:pw@127.0.0.1:1", &["debug", "bundle", "-f", name], b"");
    // A user in a URL is refused as an endpoint, so that it never comes to be in one.
    assert_eq!(made.code, 64, "{made:?}");
    let made = run(
        Tool::Cairnctl,
        "127.0.0.1:1",
        &["debug", "bundle", "-f", name, "--dial-timeout=100ms", "--user=root:hunter2"],
        b"",
    );
    assert_eq!(made.code, 0, "{made:?}");
    assert!(
        String::from_utf8_lossy(&made.stdout).contains("without everything about the cluster"),
        "{made:?}"
    );
    let packed = std::fs::read(&file).expect("the bundle");
    let mut tar = Vec::new();
    flate2::write::GzDecoder::new(&mut tar).write_all(&packed).expect("gzip");
    let text = String::from_utf8_lossy(&tar);
    assert!(text.contains("/MANIFEST.txt") && text.contains("No keys and no values are in it"), "{text}");
    assert!(!text.contains("hunter2"));
    let again = run(Tool::Cairnctl, "127.0.0.1:1", &["debug", "bundle", "-f", name], b"");
    assert!(again.code == 6 && again.stderr.starts_with("Error: [FILE_EXISTS]"), "{again:?}");
    assert_eq!(std::fs::read(&file).expect("the bundle"), packed);
}
