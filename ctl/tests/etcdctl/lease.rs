//! Leases: the same verbs on the same server, and keep-alive through a network that breaks.

use crate::live::{Line, Live};
use crate::tools::{Run, Server, Tool, real_etcd, run};

fn both(server: &Server, line: &[&str]) -> (Run, Run) {
    (run(Tool::Etcdctl, &server.endpoint, line, b""), run(Tool::Cairnctl, &server.endpoint, line, b""))
}

fn grant(server: &Server, ttl: &str) -> String {
    let answer = run(Tool::Cairnctl, &server.endpoint, &["lease", "grant", ttl], b"");
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let text = String::from_utf8(answer.stdout).expect("text");
    text.split(' ').nth(1).expect("an id").to_owned()
}

/// Digits right after any of `marks` become `N`: what is left of a lease and the ids of new ones differ between two runs.
fn without_numbers(text: &str, marks: &[&str]) -> String {
    let mut out = text.to_owned();
    for mark in marks {
        let Some((before, after)) = out.split_once(mark) else { continue };
        let after = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        out = format!("{before}{mark}N{after}");
    }
    out
}

const FORMATS: [&str; 4] = ["simple", "json", "fields", "table"];

#[test]
fn every_lease_verb_prints_the_same_bytes() {
    if real_etcd("every_lease_verb_prints_the_same_bytes").is_none() {
        return;
    }
    let server = Server::start();
    let mut differences = Vec::new();
    let mut compare = |line: &[&str], marks: &[&str]| {
        for format in FORMATS {
            // Ours refuses a table before it does anything, etcdctl after; on what fails, that differs.
            let changes = ["grant", "revoke"].contains(&line[1]) || line.contains(&"7");
            if format == "table" && changes {
                continue;
            }
            for hex in [&[][..], &["--hex"]] {
                let line = [line, &["-w", format], hex].concat();
                let (theirs, ours) = both(&server, &line);
                let essence = |run: &Run| {
                    let (out, code, error) = run.essence();
                    (without_numbers(&out, marks), code, error)
                };
                if essence(&theirs) != essence(&ours) {
                    let both = (essence(&theirs), essence(&ours));
                    differences.push(format!("{line:?}\n  etcdctl  {:?}\n  cairnctl {:?}", both.0, both.1));
                }
            }
        }
    };
    compare(&["lease", "list"], &[]);
    let id = grant(&server, "5000");
    let attach = ["put", "k\"<1>", "v", "--lease", &id];
    assert_eq!(run(Tool::Cairnctl, &server.endpoint, &attach, b"").code, 0);
    let remaining = ["remaining(", "\"ttl\":", "\"TTL\" : "];
    let granted = ["lease ", "\"ID\":", "\"ID\" : "];
    compare(&["lease", "list"], &[]);
    compare(&["lease", "timetolive", &id], &remaining);
    compare(&["lease", "timetolive", &id, "--keys"], &remaining);
    compare(&["lease", "timetolive", "7", "--keys"], &[]);
    compare(&["lease", "keep-alive", &id, "--once"], &[]);
    compare(&["lease", "keep-alive", "7", "--once"], &[]);
    compare(&["lease", "keep-alive", "7"], &[]);
    compare(&["lease", "revoke", "7"], &[]);
    compare(&["lease", "grant", "100"], &granted);
    for line in [
        "lease grant",
        "lease grant x",
        "lease grant 1 2",
        "lease grant 99999999999",
        "lease revoke",
        "lease revoke zz",
        "lease revoke 1 2",
        "lease revoke -- -1",
        "lease timetolive",
        "lease timetolive zz",
        "lease timetolive -- -1",
        "lease keep-alive",
        "lease keep-alive zz",
        "lease keep-alive 1 2",
    ] {
        compare(&line.split(' ').collect::<Vec<_>>(), &[]);
    }
    let line = |format| {
        let id = [grant(&server, "100"), grant(&server, "100")];
        let revoke =
            |tool, id: &str| run(tool, &server.endpoint, &["lease", "revoke", id, "-w", format], b"");
        let (theirs, ours) = (revoke(Tool::Etcdctl, &id[0]), revoke(Tool::Cairnctl, &id[1]));
        (theirs.essence().0.replace(&id[0], "ID"), ours.essence().0.replace(&id[1], "ID"))
    };
    for format in ["simple", "json", "fields"] {
        let (theirs, ours) = line(format);
        // Every revoke is a raft entry and no revision, so the headers agree.
        assert_eq!(ours, theirs, "{format}");
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_lease_is_kept_alive_until_it_is_revoked() {
    if real_etcd("a_lease_is_kept_alive_until_it_is_revoked").is_none() {
        return;
    }
    let server = Server::start();
    for format in ["simple", "json", "fields"] {
        let ends = [Tool::Etcdctl, Tool::Cairnctl].map(|tool| {
            let id = grant(&server, "3");
            let line = ["lease", "keep-alive", &id, "-w", format];
            let live = Live::start(tool, &server.endpoint, &line, &[]);
            live.printed(|bytes| bytes.ends_with(b"\n"));
            let revoked = run(Tool::Cairnctl, &server.endpoint, &["lease", "revoke", &id], b"");
            assert_eq!(revoked.code, 0, "{}", revoked.stderr);
            let number = i64::from_str_radix(&id, 16).expect("an id").to_string();
            let end = live.end();
            let text = String::from_utf8(end.stdout).expect("text");
            // A renewal may or may not have come between the first one and the revocation.
            let mut lines: Vec<String> =
                text.lines().map(|line| line.replace(&id, "ID").replace(&number, "ID")).collect();
            lines.dedup();
            (lines, end.stderr, end.code)
        });
        let [theirs, ours] = ends;
        assert_eq!((&ours.1, ours.2), (&theirs.1, theirs.2), "{format}");
        let distinct = |lines: &[String]| lines.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(distinct(&ours.0), distinct(&theirs.0), "{format}");
    }
}

fn renewals(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).matches("keepalived").count()
}

#[test]
fn keep_alive_goes_on_elsewhere() {
    if real_etcd("keep_alive_goes_on_elsewhere").is_none() {
        return;
    }
    let server = Server::start();
    let id = grant(&server, "6");
    let lines = [Line::to(&server.endpoint), Line::to(&server.endpoint)];
    let endpoints = format!("{},{}", lines[0].endpoint, lines[1].endpoint);
    let live = Live::start(Tool::Cairnctl, &endpoints, &["lease", "keep-alive", &id], &[]);
    live.printed(|bytes| renewals(bytes) == 1);
    lines[0].cut();
    live.printed(|bytes| renewals(bytes) == 2);
    live.complained(&format!("lease keep-alive: lost {}", lines[0].endpoint));
}

/// etcdctl calls such a lease expired, which it may not be.
#[test]
fn a_lease_that_nobody_renews_is_uncertain_and_said_to_be() {
    if real_etcd("a_lease_that_nobody_renews_is_uncertain_and_said_to_be").is_none() {
        return;
    }
    let server = Server::start();
    let id = grant(&server, "2");
    let line = Line::to(&server.endpoint);
    let live = Live::start(Tool::Cairnctl, &line.endpoint, &["lease", "keep-alive", &id], &[]);
    live.printed(|bytes| renewals(bytes) == 1);
    line.cut();
    let end = live.end();
    assert_eq!(end.code, 2, "{}", end.stderr);
    for part in ["Error: [LEASE_NOT_RENEWED] lease ", "cause:    ", &line.endpoint, "never:    "] {
        assert!(end.stderr.contains(part), "{part:?} is missing in {}", end.stderr);
    }
}

/// etcdctl prints only the header of the answer, and refuses to print a revocation after it revoked.
#[test]
fn protobuf_is_the_whole_answer() {
    use prost::Message;
    if real_etcd("protobuf_is_the_whole_answer").is_none() {
        return;
    }
    let server = Server::start();
    let protobuf = |line: &[&str]| {
        let answer = run(Tool::Cairnctl, &server.endpoint, &[line, &["-w", "protobuf"]].concat(), b"");
        assert_eq!(answer.code, 0, "{line:?}: {}", answer.stderr);
        answer.stdout
    };
    let granted = api::etcdserverpb::LeaseGrantResponse::decode(&protobuf(&["lease", "grant", "60"])[..]);
    let granted = granted.expect("a LeaseGrantResponse");
    assert_eq!(granted.ttl, 60);
    let list = api::etcdserverpb::LeaseLeasesResponse::decode(&protobuf(&["lease", "list"])[..]);
    assert_eq!(list.expect("a LeaseLeasesResponse").leases[0].id, granted.id);
    let id = format!("{:x}", granted.id);
    let revoked = api::etcdserverpb::LeaseRevokeResponse::decode(&protobuf(&["lease", "revoke", &id])[..]);
    assert!(revoked.expect("a LeaseRevokeResponse").header.is_some());
}
