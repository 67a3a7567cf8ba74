//! Membership: every change beside etcdctl on clusters that are equal but for the ids of new members, which depend on the clock.

use crate::live::Live;
use crate::tools::{Run, Server, Tool, real_etcd, run};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The id of the member with these peer URLs.
fn id_at(server: &Server, url: &str) -> String {
    let list = run(Tool::Etcdctl, &server.endpoint, &["member", "list"], b"").essence().0;
    let line = list.lines().find(|line| line.contains(url)).unwrap_or_else(|| panic!("no {url} in {list}"));
    line.split(',').next().expect("an id").to_owned()
}

/// The same with `id` (in hexadecimal, decimal, or as a protobuf number) told from others no more.
fn without(id: &str, run: &Run) -> (Vec<u8>, i32, Option<String>) {
    let number = u64::from_str_radix(id, 16).expect("an id");
    let mut varint = Vec::new();
    let mut rest = number;
    while rest >= 0x80 {
        varint.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    varint.push(rest as u8);
    let mut out = run.stdout.clone();
    let padded = format!("{number:16x}");
    for form in [padded.as_bytes(), id.as_bytes(), number.to_string().as_bytes(), &varint] {
        while let Some(at) = out.windows(form.len()).position(|window| window == form) {
            out.splice(at..at + form.len(), b"ID".iter().copied());
        }
    }
    let error = run.stderr.lines().find(|line| line.starts_with("Error: ")).map(str::to_owned);
    (out, run.code, error)
}

struct Twins {
    theirs: Server,
    ours: Server,
}

impl Twins {
    /// Adds a member with both tools, does `verbs` with it, and compares all outputs.
    ///
    /// Nobody is at `port`, so the member never starts. Ids come from URLs and seconds, and are never used again, hence other ports
    /// for other members.
    fn life_of_a_member(&self, format: &str, port: u16) {
        let both = |line: &[&str]| {
            (
                run(Tool::Etcdctl, &self.theirs.endpoint, line, b""),
                run(Tool::Cairnctl, &self.ours.endpoint, line, b""),
            )
        };
        // New ids are smaller or larger than that of the first member by chance.
        let number = |id: &str| u64::from_str_radix(id, 16).expect("an id");
        let anchor = number(&id_at(&self.ours, "n1"));
        let peer_urls = format!("--peer-urls=http://127.0.0.1:{port},http://127.0.0.1:{}", port + 1);
        let (theirs, ours) = both(&["member", "add", "n\"2", &peer_urls, "--learner", "-w", format]);
        assert_eq!((theirs.code, ours.code), (0, 0), "{theirs:?} {ours:?}");
        let url = format!(":{port},");
        let ids = (id_at(&self.theirs, &url), id_at(&self.ours, &url));
        let same = |verb: &str, (theirs, ours): (Run, Run)| {
            let (theirs_bare, ours_bare) = (without(&ids.0, &theirs), without(&ids.1, &ours));
            if format == "protobuf" {
                // Members are sorted by id and ids have varying lengths: the parts are compared, not their order.
                let sorted = |mut bytes: Vec<u8>| {
                    bytes.retain(|byte| byte.is_ascii_graphic());
                    bytes.sort_unstable();
                    bytes
                };
                let lengths = (theirs.stdout.len(), ours.stdout.len());
                assert_eq!((theirs.code, theirs_bare.2), (ours.code, ours_bare.2), "{verb}");
                if ids.0.len() == ids.1.len() && lengths.0 == lengths.1 {
                    let letters = (sorted(theirs_bare.0), sorted(ours_bare.0));
                    assert_eq!(letters.0, letters.1, "{verb} {theirs:?} {ours:?}");
                }
                return;
            }
            let text = |run: &(Vec<u8>, i32, Option<String>)| String::from_utf8_lossy(&run.0).into_owned();
            let order = |text: String| {
                // The members come in the order of their ids, which differs.
                let mut parts: Vec<String> =
                    text.split(['{', '[', ',', '"', '\n', '}', ']']).map(str::to_owned).collect();
                parts.sort();
                parts
            };
            let before = |id: &str| number(id) < anchor;
            if before(&ids.0) == before(&ids.1) {
                assert_eq!(text(&theirs_bare), text(&ours_bare), "{verb} -w {format}");
            }
            assert_eq!(order(text(&theirs_bare)), order(text(&ours_bare)), "{verb} -w {format}");
            assert_eq!((theirs.code, &theirs_bare.2), (ours.code, &ours_bare.2), "{verb} -w {format}");
        };
        same("add", (theirs, ours));
        let each = |rest: &dyn Fn(&str) -> Vec<String>| {
            let line =
                |id: &str| rest(id).into_iter().chain(["-w".into(), format.into()]).collect::<Vec<_>>();
            let go = |tool, server: &Server, id: &str| {
                let line = line(id);
                run(tool, &server.endpoint, &line.iter().map(String::as_str).collect::<Vec<_>>(), b"")
            };
            (go(Tool::Etcdctl, &self.theirs, &ids.0), go(Tool::Cairnctl, &self.ours, &ids.1))
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        same("promote", each(&|id| words(&["member", "promote", id])));
        same("list", each(&|_| words(&["member", "list"])));
        same("remove", each(&|id| words(&["member", "remove", id])));
        same("remove twice", each(&|id| words(&["member", "remove", id])));
        same("update gone", each(&|id| words(&["member", "update", id, "--peer-urls=http://127.0.0.1:4"])));
        same("promote gone", each(&|id| words(&["member", "promote", id])));
    }
}

#[test]
fn every_change_of_members_prints_the_same_bytes() {
    if real_etcd("every_change_of_members_prints_the_same_bytes").is_none() {
        return;
    }
    let twins = Twins { theirs: Server::start(), ours: Server::start() };
    for (format, port) in [("simple", 2), ("json", 4), ("protobuf", 6)] {
        twins.life_of_a_member(format, port);
    }
}

#[test]
fn a_member_that_moved_and_one_that_is_promoted_print_the_same_bytes() {
    if real_etcd("a_member_that_moved_and_one_that_is_promoted_print_the_same_bytes").is_none() {
        return;
    }
    let server = Server::start();
    let me = id_at(&server, "n1");
    for format in ["simple", "json", "protobuf", "json --hex", "simple --hex"] {
        for verb in ["update", "promote"] {
            let mut line = vec!["member", verb, &me];
            if verb == "update" {
                line.push("--peer-urls=http://127.0.0.1:1");
            }
            line.push("-w");
            line.extend(format.split(' '));
            let theirs = run(Tool::Etcdctl, &server.endpoint, &line, b"");
            let ours = run(Tool::Cairnctl, &server.endpoint, &line, b"");
            assert_eq!((&theirs.stdout, theirs.essence()), (&ours.stdout, ours.essence()), "{line:?}");
        }
    }
}

#[test]
fn bad_input_is_refused_in_the_same_words_before_any_call() {
    if real_etcd("bad_input_is_refused_in_the_same_words_before_any_call").is_none() {
        return;
    }
    let server = Server::start();
    for line in [
        "member add",
        "member add a",
        "member add a --peer-urls=",
        "member add a b --peer-urls=http://127.0.0.1:2",
        "member add a http://127.0.0.1:2",
        "member add a https://127.0.0.1:2 --learner",
        "member add a --peer-urls=http://127.0.0.1:2,foo",
        "member add a --peer-urls=http://127.0.0.1",
        "member add a --peer-urls=http://127.0.0.1:2/",
        "member add a --peer-urls=http://127.0.0.1:x",
        "member add a --peer-urls=http://::1:1",
        "member add a --peer-urls=http://127.0.0.1:2,",
        "member remove",
        "member remove x",
        "member remove 0x1",
        "member remove 1 2",
        "member remove 10000000000000000",
        "member update",
        "member update 1",
        "member update 1 --peer-urls=",
        "member update x --peer-urls=http://127.0.0.1:2",
        "member update 1 2 --peer-urls=http://127.0.0.1:2",
        "member update 1 --peer-urls=127.0.0.1:2",
        "member promote",
        "member promote x",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let theirs = run(Tool::Etcdctl, &server.endpoint, &words, b"");
        // Where nobody answers: a call would show.
        let ours = run(Tool::Cairnctl, "127.0.0.1:1", &words, b"");
        assert_eq!(theirs.essence(), ours.essence(), "{line}");
    }
    for line in ["member add a --peer-urls=http://127.0.0.1:2 -w fields", "member remove 1 -w table"] {
        let words: Vec<&str> = line.split(' ').collect();
        let ours = run(Tool::Cairnctl, "127.0.0.1:1", &words, b"");
        assert_eq!(ours.code, 4, "{line}: {ours:?}");
    }
}

/// A process that ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Members of a cluster of the real etcd, or of the other server, each with its client and peer address.
struct Cluster {
    directory: tempfile::TempDir,
    members: Vec<(Process, String, String)>,
}

fn free() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").to_string()
}

impl Cluster {
    fn start(size: usize) -> Cluster {
        let directory = tempfile::tempdir().expect("make a directory");
        let mut cluster = Cluster { directory, members: Vec::new() };
        let addresses: Vec<(String, String)> = (0..size).map(|_| (free(), free())).collect();
        let named = addresses.iter().enumerate().map(|(i, (_, peer))| format!("n{i}=http://{peer}"));
        let initial = named.collect::<Vec<_>>().join(",");
        for (i, (client, peer)) in addresses.iter().enumerate() {
            let name = format!("n{i}");
            let variables = [
                ("ETCD_NAME", name.as_str()),
                ("ETCD_INITIAL_CLUSTER", &initial),
                ("ETCD_INITIAL_ADVERTISE_PEER_URLS", &format!("http://{peer}")),
                ("ETCD_INITIAL_CLUSTER_STATE", "new"),
            ];
            let process = cluster.member(client, peer, &variables);
            cluster.members.push((process, client.clone(), peer.clone()));
        }
        cluster.until(|run| run.code == 0, &["endpoint", "health"], size);
        cluster
    }

    fn member(&self, client: &str, peer: &str, variables: &[(&str, &str)]) -> Process {
        let binary = std::env::var_os("CAIRN_COMPAT_SERVER").map(PathBuf::from);
        let binary = binary.unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("CAIRN_REAL_ETCD").expect("checked before")).join("etcd")
        });
        let child = Command::new(binary)
            .env_clear()
            .envs(variables.iter().copied())
            .arg(format!("--data-dir={}", self.directory.path().join(client).display()))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Process(child.expect("start the server"))
    }

    /// The client addresses of the first `count` members.
    fn endpoints(&self, count: usize) -> String {
        self.members[..count].iter().map(|(_, client, _)| client.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Runs a line until it is as wanted; bounded, since every run waits for its own timeouts.
    fn until(&self, wanted: impl Fn(&Run) -> bool, line: &[&str], count: usize) -> Run {
        let started = std::time::Instant::now();
        loop {
            let run = run(Tool::Cairnctl, &self.endpoints(count), line, b"");
            if wanted(&run) {
                return run;
            }
            assert!(started.elapsed().as_secs() < 60, "{line:?} never came to it: {run:?}");
        }
    }
}

#[test]
fn a_member_is_replaced_by_a_command_that_is_killed_after_every_step() {
    if real_etcd("a_member_is_replaced_by_a_command_that_is_killed_after_every_step").is_none() {
        return;
    }
    let cluster = Cluster::start(3);
    let (client, peer) = (free(), free());
    let endpoints = cluster.endpoints(3);
    let urls = format!("--peer-urls=http://{peer}");
    let line = ["member", "replace", "n2", "--name=n3", &urls, "--timeout=60s"];
    let list = || run(Tool::Etcdctl, &endpoints, &["member", "list"], b"").essence().0;

    let mut twice = line;
    twice[3] = "--name=n1";
    let twice = run(Tool::Cairnctl, &endpoints, &twice, b"");
    assert!(twice.code == 128 && list().lines().count() == 3, "{twice:?}");

    // Killed once the learner is there: the next one goes on with the start of it.
    let first = Live::start(Tool::Cairnctl, &endpoints, &line, &[]);
    let printed = first.printed(|out| String::from_utf8_lossy(out).contains("CLUSTER_STATE"));
    drop(first);
    let again = Live::start(Tool::Cairnctl, &endpoints, &line, &[]);
    let repeated = again.printed(|out| String::from_utf8_lossy(out).contains("CLUSTER_STATE"));
    assert_eq!(printed, repeated, "the settings are told again, the same");
    again.complained("to be started");
    assert_eq!(list().lines().count(), 4, "one learner, not two: {}", list());
    drop(again);

    // A run that may not wait longer says so, and nothing is removed.
    let mut short = line;
    short[5] = "--timeout=1s";
    let short = run(Tool::Cairnctl, &endpoints, &short, b"");
    assert!(short.code == 1 && short.stderr.contains("[REPLACE_UNFINISHED]"), "{short:?}");
    assert_eq!(list().lines().filter(|line| line.contains(", n2, ")).count(), 1);

    // The old member leads, so that it has to hand over. (It may lead already, which is refused.)
    let all = list();
    let old = all.lines().find(|line| line.contains(", n2, ")).expect("it is there");
    let old = old.split(',').next().expect("an id");
    run(Tool::Cairnctl, &endpoints, &["move-leader", old], b"");
    let leads = |run: &Run| String::from_utf8_lossy(&run.stdout).contains("(n2), voter, up, leads");
    cluster.until(leads, &["member", "plan", "add", "--learner"], 3);

    // The new member is started with exactly what was printed.
    let settings = String::from_utf8(printed).expect("text");
    let variables: Vec<(&str, &str)> = settings
        .lines()
        .map(|line| line.split_once('=').expect("a setting"))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    let _new = cluster.member(&client, &peer, &variables);
    let end = Live::start(Tool::Cairnctl, &endpoints, &line, &[]).end();
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.stderr.contains("promoted") && end.stderr.contains("removed"), "{end:?}");
    let (after, named) = (list(), format!(", started, n3, http://{peer}, http://{client}, false"));
    assert!(after.contains(&named) && after.lines().count() == 3, "{after}");

    // Once more finds everything done.
    let done = run(Tool::Cairnctl, &endpoints, &line, b"");
    assert!(done.code == 0 && String::from_utf8_lossy(&done.stdout).contains(" replaced by "), "{done:?}");
    assert_eq!(list(), after);
}

#[test]
fn a_plan_tells_the_arithmetic_and_refuses_what_would_lose_the_quorum() {
    if real_etcd("a_plan_tells_the_arithmetic_and_refuses_what_would_lose_the_quorum").is_none() {
        return;
    }
    let mut cluster = Cluster::start(3);
    let plan = |cluster: &Cluster, words: &str| {
        let line: Vec<&str> = ["member", "plan"].into_iter().chain(words.split(' ')).collect();
        run(Tool::Cairnctl, &cluster.endpoints(2), &line, b"")
    };
    let before = run(Tool::Etcdctl, &cluster.endpoints(2), &["member", "list"], b"");
    let healthy = plan(&cluster, "replace n2");
    let text = String::from_utf8_lossy(&healthy.stdout).into_owned();
    assert_eq!(healthy.code, 0, "{healthy:?}");
    for part in [
        "now:    3 voters, quorum 3 / 2 + 1 = 2, tolerates 1 down; 3 up: 3 - 2 = 1 more may fail",
        "        4 voters, quorum 4 / 2 + 1 = 3, tolerates 1 down; 4 up: 4 - 3 = 1 more may fail",
        "verdict: the quorum is kept at every step",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // The third member dies.
    drop(cluster.members.pop());
    cluster.until(
        |run| String::from_utf8_lossy(&run.stdout).contains("; 2 up"),
        &["member", "plan", "remove", "n2"],
        2,
    );
    for (words, code, id) in [
        ("add", 1, "[QUORUM_LOST]"),
        ("add --learner", 0, ""),
        ("remove n2", 0, ""),
        ("remove n1", 1, "[CLUSTER_REFUSES]"),
        ("replace n2", 0, ""),
        ("promote n1", 1, "[CLUSTER_REFUSES]"),
        ("remove nobody", 1, "[MEMBER_UNKNOWN]"),
    ] {
        let run = plan(&cluster, words);
        assert!(run.code == code && run.stderr.contains(id), "{words}: {run:?}");
    }
    let json = plan(&cluster, "add -w json");
    let text = String::from_utf8_lossy(&json.stdout).into_owned();
    assert!(text.contains(r#""safe":false,"problem":"QUORUM_LOST"}"#) && json.code == 1, "{text}");
    let after = run(Tool::Etcdctl, &cluster.endpoints(2), &["member", "list"], b"");
    assert_eq!(before.stdout, after.stdout, "a plan changes nothing");
}
