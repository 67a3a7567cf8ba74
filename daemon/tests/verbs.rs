//! The verbs that look: what they say of real directories and real members, that it is what a start says, and that they change nothing.

mod support;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use serde_json::Value;
use support::{Ended, READY, Running, command, copy_tree, files, run, run_with};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

/// Checks the exit code, the last line, and that the refusal on stdout is the one named.
#[track_caller]
fn verdict<'a>(ended: &'a Ended, code: i32, words: &str) -> &'a Ended {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    let last = ended.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("verdict: ") && last.ends_with(&format!("(exit {code})")), "{ended:#?}");
    assert!(last.contains(words), "{words:?} is not in {ended:#?}");
    ended
}

#[track_caller]
fn says(ended: &Ended, words: &str) {
    assert!(ended.stdout.contains(words), "{words:?} is not in {ended:#?}");
}

/// The five parts as doctor prints them, before its last line.
fn refusal_on_stdout(ended: &Ended) -> &str {
    let text = &ended.stdout[ended.stdout.find("REFUSED ").expect("a refusal")..];
    &text[..text.find("verdict: ").expect("a verdict")]
}

/// The five parts as a start prints them, without the log record that may follow.
fn refusal_on_stderr(ended: &Ended) -> String {
    let text = ended.refusal();
    let end = text.find("\nnever:").map_or(text.len(), |at| at + 1 + text[at + 1..].find('\n').unwrap() + 1);
    text[..end].to_owned()
}

/// Free when asked; nobody else on this machine is given them soon.
fn ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

#[test]
fn doctor_tells_what_a_first_start_would_come_to_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let all = ports(3);
    let own = format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", all[0]);
    let listen = format!("--listen-peer-urls=http://127.0.0.1:{}", all[0]);
    let client = format!("--listen-client-urls=http://127.0.0.1:{}", all[1]);
    let advertise = format!("--advertise-client-urls=http://127.0.0.1:{}", all[1]);
    let base = ["doctor", "--name=n1", "--data-dir=d", &own, &listen, &client, &advertise];
    let doctor = |more: &[&str]| {
        let args: Vec<&str> = base.iter().copied().chain(more.iter().copied()).collect();
        run_with(dir.path(), &args, &[("ETCD_DATADIR", "/x")])
    };

    let ended = doctor(&[]);
    verdict(&ended, 0, "verdict: would found cluster");
    for words in [
        "ok settings: can be used",
        "warn settings: unknown variable: variable=ETCD_DATADIR nearest=ETCD_DATA_DIR",
        "ok data-dir: d does not exist: a first start makes it",
        "ok lock: nobody uses this directory",
        "ok cluster: this member alone",
        &format!("ok ports: free: 127.0.0.1:{}, 127.0.0.1:{}", all[0], all[1]),
    ] {
        says(&ended, words);
    }
    assert!(ended.stderr.is_empty(), "{ended:#?}");

    let other = format!("--initial-cluster=n1=http://127.0.0.1:{},n2=http://127.0.0.1:{}", all[0], all[2]);
    let ended = doctor(&[&other]);
    verdict(&ended, 0, "it would wait for 1 other first members");
    says(&ended, "warn peer n2: ");

    // Several reasons: the first in the order of a start is the verdict.
    let taken = TcpListener::bind(("127.0.0.1", all[1])).unwrap();
    let ended = doctor(&[]);
    verdict(&ended, 69, "PORT_IN_USE");
    says(&ended, &format!("FAIL ports: address 127.0.0.1:{} is in use by another process", all[1]));
    let ended = doctor(&["--initial-cluster=n2=http://127.0.0.1:1"]);
    verdict(&ended, 64, "NOT_IN_INITIAL_CLUSTER");
    says(&ended, "FAIL ports: ");
    let ended = doctor(&["--heartbeat-interval=fast", "-o", "json"]);
    let value = json(&ended);
    assert_eq!(
        (ended.code, &value["exit"], &value["refusal"]["code"]),
        (Some(64), &64.into(), &"BAD_VALUE".into())
    );
    assert_eq!(value["checks"][0]["level"], "FAIL");
    drop(taken);
    fs::write(dir.path().join("d"), "a file").unwrap();
    verdict(&doctor(&[]), 74, "IO_ERROR");
    fs::remove_file(dir.path().join("d")).unwrap();
    assert!(files(dir.path()).is_empty(), "something was written");
}

/// Three members on ports of their own.
struct Three {
    client: Vec<u16>,
    peer: Vec<u16>,
    initial: String,
}

impl Three {
    fn new() -> Three {
        let all = ports(6);
        let (client, peer) = (all[..3].to_vec(), all[3..].to_vec());
        let pairs: Vec<String> = peer
            .iter()
            .enumerate()
            .map(|(at, port)| format!("n{}=http://127.0.0.1:{port}", at + 1))
            .collect();
        Three { client, peer, initial: format!("--initial-cluster={}", pairs.join(",")) }
    }

    fn flags(&self, at: usize) -> Vec<String> {
        let (client, peer) = (self.client[at], self.peer[at]);
        vec![
            format!("--name=n{}", at + 1),
            format!("--data-dir=n{}", at + 1),
            format!("--listen-client-urls=http://127.0.0.1:{client}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            self.initial.clone(),
        ]
    }

    fn start(&self, dir: &Path, at: usize) -> Running {
        let flags = self.flags(at);
        Running::spawn(command(dir, &flags.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// A verb about one member; a flag that is given again counts last.
    fn verb(&self, dir: &Path, at: usize, verb: &[&str], more: &[&str]) -> Ended {
        let flags = self.flags(at);
        let args: Vec<&str> = verb
            .iter()
            .copied()
            .chain(flags.iter().map(String::as_str))
            .chain(more.iter().copied())
            .collect();
        run(dir, &args)
    }
}

#[test]
fn doctor_says_of_each_member_what_its_start_would_say_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let three = Three::new();

    // Two wait for the third. Whoever only looks at the third's start, even with wrong settings, stops neither of them.
    let mut running: Vec<Running> = (0..2).map(|at| three.start(path, at)).collect();
    for member in &mut running {
        member.wait_for("waiting for the first members");
    }
    let doctor = |more: &[&str]| three.verb(path, 2, &["doctor"], more);
    let ended = doctor(&["--initial-cluster-token=other"]);
    verdict(&ended, 78, "GENESIS_MISMATCH");
    let ended = doctor(&[]);
    verdict(&ended, 0, "verdict: would found cluster");
    says(&ended, "ok cluster: 2 of 2 other first members are there");
    assert!(!path.join("n3").exists());
    running.push(three.start(path, 2));
    for member in &mut running {
        member.wait_for(READY);
    }

    // It runs: judged as it runs, by itself, its peers and the client API.
    let pid = running[2].pid();
    let endpoints = format!("--endpoints=http://127.0.0.1:{}", three.client[0]);
    let ended = doctor(&[&endpoints]);
    verdict(&ended, 0, &format!("runs here as pid {pid}"));
    for words in [
        &format!("ok lock: held by pid {pid} "),
        "ok member: answers at http://127.0.0.1:",
        "ok peer n1: ",
        "last admitted as boot #1",
        "ok cluster: no peer speaks against this member",
        "ok endpoint: http://127.0.0.1:",
        "3 members",
        "(n3) is in the list as voter",
        "ok clock: ",
    ] {
        says(&ended, words);
    }
    // Its next start would be refused.
    let ended = doctor(&["--name=n9"]);
    verdict(
        &ended,
        78,
        &format!("pid {pid} runs here; its next start with these settings would be refused: WRONG_DIR"),
    );
    says(&ended, "ok cluster: no peer speaks against this member");
    let ended = three.verb(path, 2, &["identity", "show", "-o=json"], &[]);
    let value = json(&ended);
    assert_eq!((ended.code, &value["lock"]["pid"]), (Some(0), &pid.into()), "{ended:#?}");
    assert_eq!(
        (&value["log"]["agrees"], &value["state"]["agrees"]),
        (&true.into(), &true.into()),
        "{ended:#?}"
    );
    assert_eq!(value["identity"], support::identity(&path.join("n3")));

    // Stopped in order: it would come back.
    running.pop().unwrap().stop();
    let before = files(path);
    let ended = doctor(&[]);
    verdict(&ended, 0, "verdict: would start member");
    says(&ended, "ok log: of member ");
    says(&ended, "ok cluster: no peer speaks against this member");
    let shown = three.verb(path, 2, &["identity", "show"], &[]);
    for words in [
        "state          born",
        "boot           #1",
        "last stop      orderly",
        "log            agrees",
        "(n1)",
    ] {
        says(&shown, words);
    }
    assert_eq!(
        before
            .keys()
            .filter(|file| file.starts_with(path.join("n3")))
            .map(|file| &before[file])
            .collect::<Vec<_>>(),
        files(&path.join("n3")).values().collect::<Vec<_>>(),
        "something was written"
    );

    // An older copy, and a wiped directory: the same words as a start.
    copy_tree(&path.join("n3"), &path.join("far/away/older"));
    let mut again = three.start(path, 2);
    again.wait_for(READY);
    again.stop();
    fs::create_dir_all(path.join("far/off")).unwrap();
    fs::rename(path.join("n3"), path.join("far/off/n3")).unwrap();
    three_refusals(&three, path);
    drop(running);
}

fn three_refusals(three: &Three, path: &Path) {
    let start = three.verb(path, 2, &["doctor"], &[]);
    verdict(&start, 79, "LOST_DATA");
    assert!(!path.join("n3").exists(), "doctor made the directory");
    three.refused_at_rest(path, "LOST_DATA", 79);
    copy_tree(&path.join("far/away/older"), &path.join("n3"));
    three.refused_at_rest(path, "ROLLED_BACK", 79);
    // A log that was cut short by hand, and one that is gone.
    let wal = path.join("n3/member/wal");
    fs::rename(&wal, path.join("far/wal")).unwrap();
    three.refused_at_rest(path, "WAL_MISSING", 66);
}

impl Three {
    fn refused_at_rest(&self, dir: &Path, id: &str, code: i32) {
        // The directories of the members that run move all the time.
        let doctor = self.verb(dir, 2, &["doctor"], &[]);
        verdict(&doctor, code, id);
        let start = self.verb(dir, 2, &[], &[]);
        start.expect(id, code);
        assert_eq!(refusal_on_stdout(&doctor), refusal_on_stderr(&start));
    }
}

/// A first start with `existing`: the place that is there, is not there yet, or was somebody's.
#[test]
fn doctor_tells_a_joiner_whether_its_place_is_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let three = Three::new();
    let one = three.initial.split(',').next().unwrap().to_owned();
    let flags = three.flags(0);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.push(&one);
    let mut first = Running::spawn(command(path, &flags));
    first.wait_for(READY);
    let two: Vec<&str> = three.initial.split(',').take(2).collect();
    let initial = two.join(",");
    let doctor = || three.verb(path, 1, &["doctor"], &[&initial, "--initial-cluster-state=existing"]);
    verdict(&doctor(), 78, "NOT_A_MEMBER");
    // Nobody to join.
    let ended = three.verb(
        path,
        1,
        &["doctor"],
        &["--initial-cluster-state=existing", "--initial-cluster=n2=http://127.0.0.1:1"],
    );
    verdict(&ended, 64, "");
    // The same start without `existing` would found a cluster where one runs.
    let ended = three.verb(path, 1, &["doctor"], &[&initial]);
    verdict(&ended, 78, "CLUSTER_RUNS");
    assert!(!path.join("n2").exists());
    first.stop();
    let ended = doctor();
    verdict(&ended, 75, "CLUSTER_UNREACHABLE");
    assert!(!path.join("n2").exists());
}

#[test]
fn config_explain_tells_everything_about_one_setting_and_check_every_mistake() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("c.toml"), "election-timeout = \"7s\"\ndiscovery-password = \"secret\"\n")
        .unwrap();
    let flag = format!("--config-file={}", dir.path().join("c.toml").display());
    let explain = |more: &[&str]| run(dir.path(), &[&["config", "explain", &flag], more].concat());
    let ended = explain(&["election-timeout"]);
    for words in [
        "election-timeout = 7s  (",
        "c.toml:1:20)",
        "milliseconds, or a duration",
        "flag --election-timeout, variable ETCD_ELECTION_TIMEOUT, file election-timeout",
        "takes effect at the next start",
        "etcd     --election-timeout",
    ] {
        says(&ended, words);
    }
    let value = json(&explain(&["ETCD_LOG_LEVEL", "-o", "json"]));
    assert_eq!(
        (&value["name"], &value["reloadable"], &value["source"]),
        (&"log-level".into(), &true.into(), &"default".into())
    );
    let value = json(&explain(&["-o=json"]));
    let all = value["settings"].as_array().unwrap();
    assert!(all.len() > 80 && !value.to_string().contains("secret"), "{value}");
    assert!(all.iter().any(|one| one["name"] == "join-timeout" && one["etcd"].is_null()));

    // What single settings and settings together have wrong is told at once.
    let args = ["config", "check", "--max-wals=x", "--election-timeout=300", "--heartbeat-interval=200"];
    let ended = run(dir.path(), &args);
    ended.expect("BAD_VALUE", 64).says("2 settings cannot be used").says("--max-wals").says("5 times");
    let ended = run(dir.path(), &["config", "check", "-o", "json", "--name=n1", "--data-dir=d"]);
    let value = json(&ended);
    assert_eq!((ended.code, &value["ok"], &value["refusal"]), (Some(0), &true.into(), &Value::Null));
    let ended = run(dir.path(), &["config", "check", "-o", "json", "--name="]);
    assert_eq!((ended.code, &json(&ended)["refusal"]["code"]), (Some(64), &"BAD_VALUE".into()));
}

/// A user of a service that no machine has.
const SERVICE: u32 = 973;

/// Root may read everything, and asks for somebody who may not: what bars the way is named with its owner, and the printed commands mend it.
#[test]
fn root_sees_a_services_member_with_the_services_eyes_and_does_not_run_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: root_sees_a_services_member_with_the_services_eyes_and_does_not_run_it: needs root"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mode =
        |name: &str, mode: u32| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("", 0o755);
    fs::create_dir(at("lib")).unwrap();
    fs::create_dir(at("etc")).unwrap();
    fs::write(at("etc/c.toml"), format!("name = \"n1\"\ndata-dir = \"{}\"\n", at("lib/data").display()))
        .unwrap();
    mode("lib", 0o700);
    mode("etc", 0o700);
    mode("etc/c.toml", 0o600);
    chown(at("lib"), Some(SERVICE), Some(SERVICE)).unwrap();
    let file = format!("--config-file={}", at("etc/c.toml").display());
    let check = |more: &[&str]| run(dir.path(), &[&["config", "check", &file], more].concat());
    let carry_out = |ended: &Ended| {
        let refusal = refusal_on_stderr(ended);
        let step =
            refusal.lines().find_map(|line| line.split_once("1. let 973 read it: ")).expect(&refusal).1;
        assert!(std::process::Command::new("sh").args(["-c", step]).status().unwrap().success(), "{step}");
    };

    for (barred, permissions) in [("etc", "mode 0700"), ("etc/c.toml", "mode 0600")] {
        let ended = check(&[]);
        ended.expect("CONFIG_FILE", 64).says("as user 973 (id 973)");
        ended.says(&format!("{} (owner root:root, {permissions})", at(barred).display()));
        carry_out(&ended);
    }
    let ended = check(&[]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    says(
        &ended,
        &format!("note: looked at as the user whose member it is: user=973 owns={}", at("lib").display()),
    );
    says(&ended, "ok: would found cluster");

    // A file that is read only when it is needed is told of beforehand.
    fs::write(at("etc/key.pem"), "key").unwrap();
    mode("etc/key.pem", 0o600);
    let noted = check(&[&format!("--discovery-key={}", at("etc/key.pem").display())]);
    assert_eq!(noted.code, Some(0), "{noted:#?}");
    says(&noted, "note: a file of the settings cannot be read by this user: discovery-key=");
    says(&noted, "key.pem (owner root:root, mode 0600) remedy=let 973 read it: chown root:973 ");

    // What a start as root would leave could not be read by the service: there is none.
    let ended = run(dir.path(), &[&file]);
    ended.expect("WRONG_USER", 78).says("owner 973:973, mode 0700").says("user root (id 0)");
    ended.says(&format!("runuser -u 973 -- {} {file}", env!("CARGO_BIN_EXE_cairnd")));
    assert!(!at("lib/data").exists());

    // A member that was run as root before is told as what bars the service's way.
    for name in ["lib/data", "lib/data/member", "lib/data/member/wal"] {
        fs::create_dir(at(name)).unwrap();
        mode(name, 0o700);
        chown(at(name), Some(SERVICE), Some(SERVICE)).unwrap();
    }
    fs::write(at("lib/data/member/wal/stray"), b"").unwrap();
    mode("lib/data/member/wal/stray", 0o600);
    let stray = format!("{}: owner root:root, mode 0600", at("lib/data/member/wal/stray").display());
    check(&[]).expect("PERMISSION_DENIED", 77).says(&stray).says("chown -R 973: ");
    let doctor = run(dir.path(), &["doctor", &file]);
    verdict(&doctor, 77, "PERMISSION_DENIED");
    says(&doctor, &stray);
    says(&doctor, "ok user: looked at as user 973 (id 973)");

    let quiet = check(&["--quiet"]);
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (Some(77), "", ""));

    // Root's own is root's to use.
    chown(at("lib"), Some(0), Some(0)).unwrap();
    fs::remove_dir_all(at("lib/data")).unwrap();
    let ended = check(&[]);
    assert!(ended.code == Some(0) && !ended.stdout.contains("looked at as"), "{ended:#?}");
}

/// Who wrote a file reads what to write into it, and where; in the record as in the text.
#[test]
fn a_remedy_speaks_of_what_the_reader_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, "name = \"n1\"\ndata-dir = \"d\"\ninitial-cluster = \"n2=http://127.0.0.1:2380\"\n")
        .unwrap();
    let file = format!("--config-file={}", path.display());
    let by_file = run(dir.path(), &[&file]);
    by_file.expect("NOT_IN_INITIAL_CLUSTER", 64);
    by_file.says(&format!("evidence: name ({}:1:8): n1", path.display()));
    let said = format!("1. if you meant it: name = \"n2\" (in {})", path.display());
    by_file.says(&said);
    assert_eq!(by_file.record()["remedy"][0], said[3..], "{by_file:#?}");
    let value = json(&run(dir.path(), &["config", "check", "-o", "json", &file]));
    assert_eq!(value["refusal"]["remedy"][0], said[3..], "{value}");
    let doctor = run(dir.path(), &["doctor", &file]);
    verdict(&doctor, 64, "NOT_IN_INITIAL_CLUSTER");
    says(&doctor, &said);

    let by_variable = run_with(dir.path(), &[&file], &[("ETCD_NAME", "n3")]);
    by_variable.expect("NOT_IN_INITIAL_CLUSTER", 64).says("evidence: ETCD_NAME: n3").says("ETCD_NAME=n2");
    let by_flag = run(dir.path(), &[&file, "--name=n4"]);
    by_flag
        .expect("NOT_IN_INITIAL_CLUSTER", 64)
        .says("evidence: --name: n4")
        .says("if you meant it: --name=n2");
}
