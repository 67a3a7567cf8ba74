//! Settings as the built daemon takes or refuses them: names, values, places, precedence.

mod manager;
mod support;

use std::fs;

use support::{files, run, run_with};

#[test]
fn what_cannot_be_used_is_refused_by_name_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    for (args, id, words) in [
        (&["--listen-client-url=http://127.0.0.1:1"][..], "UNKNOWN_SETTING", "--listen-client-urls"),
        (&["--nmae", "x"], "UNKNOWN_SETTING", "--name"),
        (&["--name"], "BAD_VALUE", "lacks its value"),
        (&["--heartbeat-interval=fast"], "BAD_VALUE", "--heartbeat-interval"),
        (&["--quota-backend-bytes=8G"], "BAD_VALUE", "8GiB"),
        (&["--pre-vote=perhaps"], "BAD_VALUE", "neither true nor false"),
        (&["--log-level=infoo"], "BAD_VALUE", "did you mean"),
        (&["--listen-peer-urls=http://example.com:1"], "BAD_VALUE", "IP address"),
        (&["--initial-cluster=a"], "BAD_VALUE", "name=url"),
        (&["--feature-gates=CompactHashChek=true"], "BAD_VALUE", "CompactHashCheck"),
        (&["--election-timeout=300"], "SETTINGS_CONFLICT", "5 times"),
        (&["--listen-client-urls=http://127.0.0.1:1"], "SETTINGS_CONFLICT", "advertise-client-urls"),
        (&["--cert-file=/c"], "NOT_SUPPORTED", "TLS"),
        (&["--listen-peer-urls=https://127.0.0.1:1"], "NOT_SUPPORTED", "TLS"),
        (&["--auth-token=jwt"], "NOT_SUPPORTED", "authentication"),
        (&["--discovery=http://127.0.0.1:1"], "BAD_VALUE", "names no token"),
        (
            &["--discovery-srv=example.com", "--discovery=http://127.0.0.1:1/x"],
            "SETTINGS_CONFLICT",
            "two ways",
        ),
        (&["--enable-v2"], "NOT_SUPPORTED", "v3 API"),
        (&["--proxy=on"], "NOT_SUPPORTED", "proxy"),
        (&["--accept-identity-change=member-id"], "BAD_VALUE", "is not one of name, peer-urls, host"),
        (
            &["--auto-compaction-mode=revision", "--auto-compaction-retention=5h"],
            "SETTINGS_CONFLICT",
            "revisions",
        ),
        (&["--auto-compaction-retention=2562048"], "BAD_VALUE", "292 years"),
        (&["--auto-compaction-retention=-1"], "BAD_VALUE", "--auto-compaction-retention"),
        (&["--force-new-cluster"], "BAD_VALUE", "holds no member"),
        (&["--initial-cluster-state=existing", "--name=a"], "NOBODY_TO_ASK", "<a running member>"),
        (&["--config-file=/no/such/file.toml"], "CONFIG_FILE", "/no/such/file.toml"),
        (&["--pre-vote", "false"], "UNKNOWN_VERB", "neither a flag nor a verb"),
        (&["config", "chek"], "UNKNOWN_VERB", "cairnd config check"),
        (
            &["--name=b", "--initial-cluster=a=http://h:1,c=http://h:2"],
            "NOT_IN_INITIAL_CLUSTER",
            "names a, c",
        ),
        (
            &[
                "--name=a",
                "--initial-cluster=a=http://127.0.0.1:1",
                "--initial-advertise-peer-urls=http://localhost:1",
            ],
            "ADVERTISE_MISMATCH",
            "--initial-advertise-peer-urls=http://127.0.0.1:1",
        ),
    ] {
        run(dir.path(), args).expect(id, 64).says(words);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "{args:?} left something behind");
    }
}

#[test]
fn a_mistake_in_the_file_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let flag = format!("--config-file={}", path.display());
    for (text, id, line_column, words) in [
        ("name = \"a\"\nnmae = \"b\"\n", "UNKNOWN_SETTING", "2:1", "nearest name: name"),
        (
            "\n[peer-transport-security]\n  keyfile = \"k\"\n",
            "UNKNOWN_SETTING",
            "3:3",
            "[peer-transport-security] key-file",
        ),
        ("max-wals = -1\n", "BAD_VALUE", "1:12", "too small"),
        ("name = \"a\"\nelection-timeout = \"soon\"\n", "BAD_VALUE", "2:20", "duration"),
        ("name = \"a\"\n\nheartbeat-interval\n", "CONFIG_FILE", "3:", "not TOML"),
        ("name: a\ndata-dir: /x\n", "CONFIG_FILE", "1:", "YAML"),
    ] {
        fs::write(&path, text).unwrap();
        let place = format!("{}:{line_column}", path.display());
        run(dir.path(), &[&flag]).expect(id, 64).says(&place).says(words);
    }
}

#[test]
fn several_mistakes_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run_with(dir.path(), &["--max-wals=x", "--cert-file=/c"], &[("ETCD_PRE_VOTE", "perhaps")]);
    assert_eq!(ended.code, Some(64));
    for words in ["3 settings", "--max-wals", "--cert-file", "ETCD_PRE_VOTE"] {
        ended.says(words);
    }
}

#[test]
fn flag_before_variable_before_file_and_each_tells_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, "name = \"file\"\nmax-wals = 9\n").unwrap();
    let flag = format!("--config-file={}", path.display());
    let explain = |key: &str, args: &[&str], variables: &[(&str, &str)]| {
        let mut all = vec!["config", "explain", key, &flag];
        all.extend(args);
        let ended = run_with(dir.path(), &all, variables);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        ended.stdout.lines().next().unwrap().to_owned()
    };
    assert_eq!(explain("name", &["-name", "flag"], &[("ETCD_NAME", "env")]), "name = flag  (--name)");
    assert_eq!(explain("name", &[], &[("ETCD_NAME", "env")]), "name = env  (ETCD_NAME)");
    assert_eq!(explain("name", &[], &[]), format!("name = file  ({}:1:8)", path.display()));
    assert_eq!(explain("max-wals", &[], &[]), format!("max-wals = 9  ({}:2:12)", path.display()));
    assert_eq!(explain("data-dir", &[], &[]), "data-dir = file.etcd  (default)");
    let ended = run(dir.path(), &["config", "explain", "nmae"]);
    ended.expect("UNKNOWN_SETTING", 64).says("config explain name");
}

#[test]
fn config_check_tells_what_a_start_would_do_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run_with(
        dir.path(),
        &["config", "check", "--name=n1", "--data-dir=d", "--backend-batch-limit=7"],
        &[("ETCD_DATADIR", "/x"), ("ETCD_NAME", "other")],
    );
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for words in [
        "ok: would found cluster cdf818194e3a8c32 as member 8e9e05c52164694d (n1) in d",
        "unknown variable: variable=ETCD_DATADIR nearest=ETCD_DATA_DIR",
        "flag and variable differ: the flag counts: setting=name flag=n1 variable=other",
        "setting has no effect: setting=--backend-batch-limit",
    ] {
        assert!(ended.stdout.contains(words), "{words:?} is not in {ended:#?}");
    }
    assert!(files(dir.path()).is_empty());
    run(dir.path(), &["config", "check", "--name=n2", "--initial-cluster=n1=http://h:1"])
        .expect("NOT_IN_INITIAL_CLUSTER", 64);
}

#[test]
fn version_and_help_are_answers() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(dir.path(), &["--version"]);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!((ended.code, lines[1]), (Some(0), "etcd Version: 3.7.1"));
    assert_eq!(lines[0], format!("cairnd {}", env!("CARGO_PKG_VERSION")));
    let help = run(dir.path(), &["-help"]);
    assert!(help.code == Some(0) && help.stdout.contains("--initial-cluster-token"), "{help:#?}");
}

/// A full disk behind stderr changes no exit status, and one behind stdout is told: half a configuration is none.
#[test]
fn outputs_that_cannot_be_written_are_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let code = |args: &[&str], stdout: bool| {
        let mut command = support::command(dir.path(), args);
        if stdout {
            command.stdout(full())
        } else {
            command.stderr(full())
        };
        command.output().unwrap().status.code()
    };
    assert_eq!(code(&["--nmae=x"], false), Some(64));
    assert_eq!(code(&["config", "convert", "/no/such"], false), Some(64));
    assert_eq!(code(&["config", "explain"], true), Some(74));
}
