//! Both tools watch the same history of the same server and must show the same bytes. And what becomes of a watch when the
//! network or the history under it goes, where ours goes on and etcdctl's does not.

use crate::live::{Line, Live};
use crate::tools::{Server, Tool, another_server, real_etcd, run, skipped};

/// The value of the last change of a scripted history: whoever has shown it has shown everything.
const LAST: &str = "END";

/// What every format ends with when the last change was shown. The key of that change has neither a lease nor a predecessor.
fn is_whole(format: &str, hex: bool) -> impl Fn(&[u8]) -> bool + use<> {
    let (inside, end): (&[u8], &[u8]) = match (format, hex) {
        ("simple", false) => (b"END\n", b"\n"),
        ("simple", true) => (b"\\x45\\x4e\\x44\n", b"\n"),
        ("json", _) => (b"RU5E", b"}\n"),
        ("fields", _) => (b"\"END\"\n", b"\"Lease\" : 0\n"),
        _ => (b"END", b"END"),
    };
    move |bytes| bytes.windows(inside.len()).any(|part| part == inside) && bytes.ends_with(end)
}

fn etcdctl(server: &Server, line: &[&str], stdin: &str) -> String {
    let done = run(Tool::Etcdctl, &server.endpoint, line, stdin.as_bytes());
    assert_eq!(done.code, 0, "{line:?}: {}", done.stderr);
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Writes a value and says at which revision.
fn put(server: &Server, key: &str, value: &str) -> i64 {
    let answer = etcdctl(server, &["put", key, value, "-w", "json"], "");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("an answer");
    answer["header"]["revision"].as_i64().expect("a revision")
}

/// A history with everything in it: creation, change, delete, a transaction, a lease, odd bytes. Its first revision.
fn history(server: &Server) -> i64 {
    let first = put(server, "w/a", "1");
    put(server, "w/a", "2");
    put(server, "w/b", "x\ny \u{1}\"\\<&>\u{e9}\u{2028}");
    etcdctl(server, &["txn"], "\nput w/a 3\nput w/c \"\\xff\\x00\"\ndel w/b\n\n\n");
    put(server, "v", "outside");
    let lease = etcdctl(server, &["lease", "grant", "5000"], "");
    let lease = lease.split(' ').nth(1).expect("an id").to_owned();
    etcdctl(server, &["put", "w/d", "leased", "--lease", &lease], "");
    etcdctl(server, &["del", "w/", "--prefix"], "");
    put(server, "w/last", LAST);
    first
}

#[test]
fn a_history_is_shown_with_the_same_bytes_in_every_format() {
    if real_etcd("a_history_is_shown_with_the_same_bytes_in_every_format").is_none() {
        return;
    }
    let server = Server::start();
    let rev = history(&server).to_string();
    for format in ["simple", "json", "fields", "protobuf"] {
        for hex in [false, true] {
            for options in [&["--prev-kv"][..], &["--progress-notify"]] {
                let mut line = vec!["watch", "w/", "--prefix", "--rev", &rev, "-w", format];
                line.extend(options);
                line.extend(hex.then_some("--hex"));
                let show =
                    |tool| Live::start(tool, &server.endpoint, &line, &[]).printed(is_whole(format, hex));
                let (theirs, ours) = (show(Tool::Etcdctl), show(Tool::Cairnctl));
                assert!(
                    theirs == ours,
                    "{line:?}\n  etcdctl  {}\n  cairnctl {}",
                    theirs.escape_ascii(),
                    ours.escape_ascii()
                );
            }
        }
    }
}

#[test]
fn keys_ranges_and_variables_select_the_same_changes() {
    if real_etcd("keys_ranges_and_variables_select_the_same_changes").is_none() {
        return;
    }
    let server = Server::start();
    let rev = history(&server).to_string();
    let key = ("ETCDCTL_WATCH_KEY", "w/last");
    let end = ("ETCDCTL_WATCH_RANGE_END", "w/z");
    for (line, variables) in [
        (vec!["watch", "w/last"], vec![]),
        (vec!["watch", "w/c", "w/z"], vec![]),
        (vec!["watch", "", "--prefix"], vec![]),
        (vec!["watch"], vec![key]),
        (vec!["watch"], vec![("ETCDCTL_WATCH_KEY", "w/c"), end]),
        (vec!["watch", "--prefix"], vec![("ETCDCTL_WATCH_KEY", "w/")]),
    ] {
        let line = [line, vec!["--rev", &rev]].concat();
        let show = |tool| {
            let live = Live::start(tool, &server.endpoint, &line, &variables);
            String::from_utf8_lossy(&live.printed(is_whole("simple", false))).into_owned()
        };
        assert_eq!(show(Tool::Cairnctl), show(Tool::Etcdctl), "{line:?} {variables:?}");
    }
    for (line, variables) in [
        (vec!["watch"], vec![]),
        (vec!["watch", "--", "echo"], vec![]),
        (vec!["watch", "a", "b", "--prefix"], vec![]),
        (vec!["watch", "a"], vec![key]),
        (vec!["watch", "a"], vec![end]),
        (vec!["watch", "-i"], vec![end]),
        (vec!["watch", "q", "--rev=-1"], vec![]),
    ] {
        let end = |tool| Live::start(tool, &server.endpoint, &line, &variables).end();
        assert_eq!(end(Tool::Cairnctl), end(Tool::Etcdctl), "{line:?} {variables:?}");
    }
}

#[test]
fn changes_are_shown_while_they_happen() {
    if real_etcd("changes_are_shown_while_they_happen").is_none() {
        return;
    }
    let server = Server::start();
    let rev = (put(&server, "w/a", "0") + 1).to_string();
    let line = ["watch", "w/", "--prefix", "--prev-kv", "--rev", &rev];
    let live = [Tool::Etcdctl, Tool::Cairnctl].map(|tool| Live::start(tool, &server.endpoint, &line, &[]));
    for value in ["1", "2", LAST] {
        put(&server, "w/a", value);
        let shown = format!("w/a\n{value}\n");
        for live in &live {
            live.printed(|bytes| bytes.ends_with(shown.as_bytes()));
        }
    }
    let [theirs, ours] = live.each_ref().map(|live| live.printed(is_whole("simple", false)));
    assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&theirs));
}

#[test]
fn commands_run_for_each_change_and_end_the_watch_when_they_fail() {
    if real_etcd("commands_run_for_each_change_and_end_the_watch_when_they_fail").is_none() {
        return;
    }
    let server = Server::start();
    let rev = put(&server, "w \"a\"", "1\n").to_string();
    put(&server, "w \"a\"", "2");
    let last = put(&server, "w \"a\"", LAST);
    // Not echo, which takes escapes in some shells.
    let all =
        "printf '%s\\n' \"$ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE\"";
    let until_last = format!("{all}; test \"$ETCD_WATCH_VALUE\" != '\"{LAST}\"'");
    for command in [
        vec!["sh", "-c", &until_last],
        vec!["sh", "-c", "exit 3"],
        vec!["sh", "-c", "kill -9 $$"],
        vec!["/no/such"],
        vec!["no-such-command"],
        vec!["/etc/passwd"],
    ] {
        let line = [vec!["watch", "w \"a\"", "--rev", &rev, "--"], command].concat();
        let end = |tool| Live::start(tool, &server.endpoint, &line, &[]).end();
        let (theirs, ours) = (end(Tool::Etcdctl), end(Tool::Cairnctl));
        assert_eq!(ours, theirs, "{line:?}");
        assert_eq!(ours.code, 1);
    }
    let line = ["watch", "w \"a\"", "--rev", &rev, "--", "sh", "-c", &until_last];
    let ours = Live::start(Tool::Cairnctl, &server.endpoint, &line, &[]).end();
    let shown = format!("{last} \"PUT\" \"w \\\"a\\\"\" \"1\\n\"\n");
    assert!(String::from_utf8_lossy(&ours.stdout).contains(&shown), "{ours:?}");
}

#[test]
fn interactive_sessions_take_the_same_lines() {
    if real_etcd("interactive_sessions_take_the_same_lines").is_none() {
        return;
    }
    let server = Server::start();
    let rev = history(&server);
    let ends = [Tool::Etcdctl, Tool::Cairnctl].map(|tool| {
        let mut live = Live::start(tool, &server.endpoint, &["watch", "-i"], &[]);
        live.say("watch\n\n  \nfrob x\nwatch a b --prefix\nprogress\n");
        live.say(&format!("watch --rev {rev} \"w/\" --prefix -- sh -c \"echo ran $ETCD_WATCH_KEY\"\n"));
        live.printed(|bytes| bytes.ends_with(b"ran \"w/last\"\n"));
        // Nothing was asked for before the first watch; now there is one whose progress can be told.
        live.say("progress\n");
        live.printed(|bytes| {
            bytes.windows(15).any(|part| part == b"progress notify") && bytes.ends_with(b"\n")
        });
        live.say("watch q --rev -1\n");
        live.complained("watch was canceled");
        live.say("a line that never ends");
        live.close_stdin();
        live.end()
    });
    let [theirs, ours] = ends;
    assert_eq!(ours.stdout.escape_ascii().to_string(), theirs.stdout.escape_ascii().to_string());
    assert_eq!((ours.code, ours.stderr), (theirs.code, theirs.stderr));
}

/// Revisions that a watch has shown, from its JSON.
fn revisions(json: &[u8]) -> Vec<i64> {
    let lines = serde_json::Deserializer::from_slice(json).into_iter::<serde_json::Value>();
    let answers = lines.map_while(Result::ok);
    let events = answers.flat_map(|answer| answer["Events"].as_array().cloned().unwrap_or_default());
    events.map(|event| event["kv"]["mod_revision"].as_i64().expect("a revision")).collect()
}

/// etcdctl hangs or goes on without a word; ours says where it was and where it is.
#[test]
fn a_watch_goes_on_elsewhere_without_gap_or_repetition() {
    if real_etcd("a_watch_goes_on_elsewhere_without_gap_or_repetition").is_none() {
        return;
    }
    const CUTS: usize = 6;
    let server = Server::start();
    let first = put(&server, "w/a", "0");
    let lines: Vec<Line> = (0..=CUTS).map(|_| Line::to(&server.endpoint)).collect();
    let endpoints: Vec<&str> = lines.iter().map(|line| line.endpoint.as_str()).collect();
    let rev = first.to_string();
    let watch = ["watch", "w/", "--prefix", "--rev", &rev, "-w", "json"];
    let live = Live::start(Tool::Cairnctl, &endpoints.join(","), &watch, &[]);
    let mut last = first;
    for line in &lines[..CUTS] {
        // One change that was certainly shown, then some around the cut.
        live.printed(|bytes| revisions(bytes).last() == Some(&last));
        put(&server, "w/a", "before");
        line.cut();
        put(&server, "w/b", "while it is away");
        last = put(&server, "w/a", "after");
        live.complained(&format!("watch: lost {}", line.endpoint));
    }
    let shown = revisions(&live.printed(|bytes| revisions(bytes).last() == Some(&last)));
    assert_eq!(shown, (first..=last).collect::<Vec<_>>());
    live.complained(&format!("watch: resumed at {}", endpoints[CUTS]));
}

#[test]
fn a_compacted_history_is_told_with_a_code_of_its_own_or_skipped_on_request() {
    if real_etcd("a_compacted_history_is_told_with_a_code_of_its_own_or_skipped_on_request").is_none() {
        return;
    }
    let server = Server::start();
    let first = put(&server, "w/a", "1");
    for value in ["2", "3", "4"] {
        put(&server, "w/a", value);
    }
    let (from, kept) = (first.to_string(), first + 2);
    etcdctl(&server, &["compaction", &kept.to_string()], "");
    for format in ["simple", "json", "fields", "protobuf"] {
        let line = ["watch", "w/a", "--rev", &from, "-w", format];
        let end = |tool| Live::start(tool, &server.endpoint, &line, &[]).end();
        let (theirs, ours) = (end(Tool::Etcdctl), end(Tool::Cairnctl));
        assert_eq!(ours.stdout, theirs.stdout, "{format}");
        assert_eq!((theirs.code, ours.code), (5, 7), "{}", ours.stderr);
        assert_eq!(ours.stderr.lines().next(), theirs.stderr.lines().next());
        for part in [
            &format!("Error: [COMPACTED] the changes from revision {from} to {} are gone", kept - 1)[..],
            "cause:    ",
            &format!("compact_revision={kept}"),
            "--resume-after-compaction",
            "never:    ",
        ] {
            assert!(ours.stderr.contains(part), "{part:?} is missing in {}", ours.stderr);
        }
    }
    let line = ["watch", "w/a", "--rev", &from, "--resume-after-compaction", "--exit-after", "2"];
    let skipped = Live::start(Tool::Cairnctl, &server.endpoint, &line, &[]).end();
    assert_eq!((skipped.code, &skipped.stdout[..]), (0, &b"PUT\nw/a\n3\nPUT\nw/a\n4\n"[..]));
    assert!(skipped.stderr.contains(&format!("going on at revision {kept}")), "{}", skipped.stderr);
}

#[test]
fn exit_after_counts_changes_and_not_answers() {
    if real_etcd("exit_after_counts_changes_and_not_answers").is_none() {
        return;
    }
    let server = Server::start();
    let rev = history(&server).to_string();
    let line = ["watch", "w/", "--prefix", "--rev", &rev, "--exit-after", "4"];
    let ended = Live::start(Tool::Cairnctl, &server.endpoint, &line, &[]).end();
    let types = String::from_utf8_lossy(&ended.stdout).lines().filter(|line| *line == "PUT").count();
    assert_eq!((ended.code, types), (0, 4), "{ended:?}");
}

#[test]
fn a_watch_that_is_not_allowed_ends_alike() {
    let name = "a_watch_that_is_not_allowed_ends_alike";
    if real_etcd(name).is_none() {
        return;
    }
    if another_server() {
        return skipped(name, "CAIRN_COMPAT_SERVER is not known to have users");
    }
    let server = Server::start();
    for line in
        ["user add root:pw", "role add root", "user grant-role root root", "user add u:pw", "auth enable"]
    {
        etcdctl(&server, &line.split(' ').collect::<Vec<_>>(), "");
    }
    for user in [&[][..], &["--user", "u:pw"], &["--user", "u:wrong"]] {
        for format in ["simple", "json", "fields", "protobuf"] {
            let line = [&["watch", "secret", "-w", format], user].concat();
            let end = |tool| Live::start(tool, &server.endpoint, &line, &[]).end();
            assert_eq!(end(Tool::Cairnctl), end(Tool::Etcdctl), "{line:?}");
        }
    }
}

/// Only a server that nobody can reach from the start is a reason to give up.
#[test]
fn a_watch_that_finds_no_server_says_so() {
    let run = run(Tool::Cairnctl, "127.0.0.1:1", &["watch", "a", "--dial-timeout=100ms"], b"");
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.starts_with("Error: [UNREACHABLE]"), "{}", run.stderr);
}
