//! Clusters of release binaries under load and under fire: nothing acknowledged is lost, revisions never go back, members agree.

#[path = "e2e/operate.rs"]
mod operate;

use anyhow::{Context, Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, cairn_binary, http_get, wait_for},
    recorder::{Record, Writers, verify_equal},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|member| member.client_url.clone()).collect()
}

fn verify(cluster: &Cluster, record: &Record) -> Result<()> {
    assert!(record.acknowledged > 0, "the writers got nothing done; {} attempts failed", record.failed);
    block_on(async {
        for endpoint in endpoints(cluster) {
            record.verify(&endpoint).await?;
        }
        verify_equal(&endpoints(cluster)).await
    })
}

/// Waits until the writers have been promised this much more.
fn let_write(writers: &Writers, more: u64) -> Result<()> {
    let goal = writers.acknowledged() + more;
    wait_for("acknowledged writes", || (writers.acknowledged() >= goal).then_some(()))
}

#[test]
fn single_node_acks_only_what_survives_a_kill() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    let writers = Writers::start(endpoints(&cluster), 4);
    for _ in 0..5 {
        let_write(&writers, 200)?;
        cluster.members[0].kill()?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
    }
    let record = writers.finish();
    verify(&cluster, &record)
}

#[test]
fn killing_any_member_of_three_loses_nothing_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 6);
    for round in 0..6 {
        let_write(&writers, 200)?;
        // Leader and followers in turn.
        let victim = if round % 2 == 0 { cluster.wait_leader()? } else { round % 3 };
        cluster.members[victim].kill()?;
        let_write(&writers, 50)?;
        cluster.members[victim].spawn()?;
        cluster.wait_healthy()?;
    }
    let record = writers.finish();
    verify(&cluster, &record)
}

#[test]
fn killing_all_members_at_once_loses_nothing_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 6);
    for _ in 0..3 {
        let_write(&writers, 200)?;
        for member in &mut cluster.members {
            member.kill()?;
        }
        for member in &mut cluster.members {
            member.spawn()?;
        }
        cluster.wait_healthy()?;
    }
    let record = writers.finish();
    verify(&cluster, &record)
}

#[test]
fn a_paused_leader_is_replaced_and_serves_no_stale_reads_afterwards() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 4);
    let_write(&writers, 100)?;
    let leader = cluster.wait_leader()?;
    cluster.members[leader].signal(Signal::SIGSTOP)?;
    let_write(&writers, 100)?;
    cluster.members[leader].signal(Signal::SIGCONT)?;
    let_write(&writers, 100)?;
    let record = writers.finish();
    cluster.wait_healthy()?;
    verify(&cluster, &record)
}

#[test]
fn sigterm_hands_leadership_over_and_exits_zero() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 4);
    let_write(&writers, 100)?;
    let leader = cluster.wait_leader()?;
    let status = cluster.members[leader].terminate()?;
    assert!(status.success(), "a member that was asked to stop exits 0, not {status}");
    let_write(&writers, 100)?;
    cluster.members[leader].spawn()?;
    cluster.wait_healthy()?;
    let record = writers.finish();
    verify(&cluster, &record)
}

#[test]
fn five_members_go_on_without_two() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 5)?;
    let writers = Writers::start(endpoints(&cluster), 5);
    let_write(&writers, 100)?;
    let leader = cluster.wait_leader()?;
    let other = (leader + 1) % 5;
    cluster.members[leader].kill()?;
    cluster.members[other].kill()?;
    let_write(&writers, 100)?;
    cluster.members[leader].spawn()?;
    cluster.members[other].spawn()?;
    cluster.wait_healthy()?;
    let record = writers.finish();
    verify(&cluster, &record)
}

#[test]
fn a_restart_after_a_clean_stop_keeps_everything() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    cluster.etcdctl("3.5", &["put", "a", "1"])?;
    cluster.etcdctl("3.5", &["put", "a", "2"])?;
    cluster.etcdctl("3.5", &["put", "b", "3"])?;
    cluster.etcdctl("3.5", &["compaction", "3"])?;
    cluster.etcdctl("3.5", &["del", "b"])?;
    let before = cluster.etcdctl("3.5", &["get", "", "--prefix", "-w", "json"])?;
    assert!(cluster.members[0].terminate()?.success());
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    let after = cluster.etcdctl("3.5", &["get", "", "--prefix", "-w", "json"])?;
    let strip = |text: &str| -> Result<serde_json::Value> {
        let mut json: serde_json::Value = serde_json::from_str(text)?;
        // The restart was an election.
        json["header"]["raft_term"] = 0.into();
        Ok(json)
    };
    assert_eq!(strip(&before)?, strip(&after)?);
    let compacted = cluster.try_etcdctl("3.5", &["get", "a", "--rev=2"])?;
    assert!(String::from_utf8_lossy(&compacted.stderr).contains("required revision has been compacted"));
    Ok(())
}

#[test]
fn without_a_quorum_reads_and_writes_end_in_an_error_and_health_says_so() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    cluster.etcdctl("3.5", &["put", "a", "1"])?;
    cluster.members[1].kill()?;
    cluster.members[2].kill()?;
    let survivor = cluster.members[0].client_url.clone();
    wait_for("an unhealthy survivor", || {
        http_get(&survivor, "/health").ok().filter(|answer| answer.status == 503)
    })?;
    let run = |args: &[&str]| cairn_tests::harness::etcdctl("3.5", &survivor, args);
    let local = run(&["get", "a", "--consistency=s", "--print-value-only"])?;
    assert_eq!(String::from_utf8_lossy(&local.stdout), "1\n", "a serializable read needs no quorum");
    let write = run(&["put", "a", "2", "--command-timeout=2s"])?;
    assert!(!write.status.success(), "a write without a quorum cannot succeed");
    cluster.members[1].spawn()?;
    cluster.members[1].wait_healthy()?;
    wait_for("a healthy survivor", || {
        http_get(&survivor, "/health").ok().filter(|answer| answer.status == 200)
    })?;
    let value = String::from_utf8(run(&["get", "a", "--print-value-only"])?.stdout)?;
    assert!(
        value == "1\n" || value == "2\n",
        "the failed write may or may not be there, nothing else: {value:?}"
    );
    Ok(())
}

#[test]
fn automatic_compaction_forgets_old_revisions() -> Result<()> {
    let flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];
    let cluster = Cluster::start_with(Kind::Cairn, 1, &flags)?;
    for value in ["1", "2", "3"] {
        cluster.etcdctl("3.5", &["put", "a", value])?;
    }
    let mut answers = Vec::new();
    wait_for("revision 2 to be forgotten", || {
        let answer = cluster.try_etcdctl("3.5", &["get", "a", "--rev=2", "--print-value-only"]).ok()?;
        let said =
            String::from_utf8_lossy(if answer.status.success() { &answer.stdout } else { &answer.stderr });
        answers.push(said.trim().to_owned());
        said.contains("required revision has been compacted").then_some(())
    })?;
    answers.pop();
    assert!(answers.iter().all(|answer| answer == "1"), "until then it is answered: {answers:?}");
    assert_eq!(cluster.etcdctl("3.5", &["get", "a", "--print-value-only"])?, "3\n");
    cluster.members[0].wait_log("automatic compaction")?;
    Ok(())
}

#[test]
fn without_fsync_a_killed_process_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start_with(Kind::Cairn, 1, &["--unsafe-no-fsync"])?;
    cluster.members[0].wait_log("the log is not synced")?;
    let writers = Writers::start(endpoints(&cluster), 4);
    for _ in 0..3 {
        let_write(&writers, 500)?;
        cluster.members[0].kill()?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
    }
    let record = writers.finish();
    verify(&cluster, &record)
}

/// cairnctl as somebody has it who has just logged in on the host of a member: no flags, no variables but these.
fn cairnctl(home: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(cairn_binary("cairnctl")?);
    let settings =
        [("CAIRNCTL_CONFIG_FILE", "/dev/null".into()), ("CAIRNCTL_LOCAL_CONFIG", home.join("cairnd.toml"))];
    command.env_clear().env("HOME", home).envs(settings).args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// What it prints when all is well, with nothing on stderr.
fn printed(home: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let Output { status, stdout, stderr } = cairnctl(home, arguments)?.output()?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success() && stderr.is_empty(), "{arguments:?}: {status}: {stderr}");
    Ok(stdout)
}

fn lines(home: &Path, arguments: &[&str]) -> Result<Vec<String>> {
    Ok(String::from_utf8(printed(home, arguments)?)?.lines().map(str::to_owned).collect())
}

#[test]
fn people_find_read_complete_and_watch_their_cluster_without_flags() -> Result<()> {
    let cluster = Cluster::start(Kind::Cairn, 1)?;
    let url = &cluster.members[0].client_url;
    let home = tempfile::tempdir()?;
    let home = home.path();

    // The member on this host is found by its configuration, and its keys are read as text.
    std::fs::write(home.join("cairnd.toml"), format!("listen-client-urls = '{url}'\n"))?;
    printed(home, &["put", "größe/1", "two\nlines"])?;
    printed(home, &["put", "größe/2", "v"])?;
    ensure!(printed(home, &["get", "größe/1", "-o", "raw"])? == b"two\nlines", "the bytes and nothing else");
    let table = lines(home, &["get", "gr", "--prefix", "-o", "table"])?;
    ensure!(table == ["KEY       VALUE", "größe/1   two\\nlines", "größe/2   v"], "{table:?}");
    let record = printed(home, &["get", "größe/1", "-o", "jsonl"])?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    ensure!(
        record["key"] == "größe/1" && record["value"] == "two\nlines" && record["version"] == 1,
        "{record}"
    );
    let document: serde_json::Value =
        serde_json::from_slice(&printed(home, &["endpoint", "status", "-o", "json"])?)?;
    ensure!(document["endpoints"][0]["role"] == "leader", "{document}");
    let ids = lines(home, &["member", "list", "-o", "raw"])?;

    // A context does the same where there is no such file.
    std::fs::remove_file(home.join("cairnd.toml"))?;
    printed(home, &["context", "add", "here", "--endpoints", url, "--use"])?;
    ensure!(lines(home, &["get", "größe/2", "--print-value-only"])? == ["v"], "the current context counts");
    let shown = cairnctl(home, &["context", "show", "-o", "jsonl"])?.output()?.stdout;
    let shown = String::from_utf8(shown)?;
    let expected = format!("{{\"setting\":\"endpoints\",\"value\":\"{url}\",\"from\":\"context here\"}}");
    ensure!(shown.lines().any(|line| line == expected), "{shown}");

    // TAB offers what is there, in the form that a shell wants, and nothing at all when nobody answers.
    ensure!(lines(home, &["__complete", "--", "fish", "get", "gr"])? == ["words", "größe/1", "größe/2"]);
    ensure!(
        lines(home, &["__complete", "--", "zsh", "member", "remove", ""])?[1] == format!("{}\tm1", ids[0])
    );
    ensure!(lines(home, &["__complete", "--", "fish", "--endpoints=127.0.0.1:1", "get", ""])? == ["words"]);
    let program = cairn_binary("cairnctl")?;
    let line = format!("{} get grö", program.display());
    let script = r#"source <("$1" completion bash); COMP_WORDS=("$1" get grö); COMP_CWORD=2; COMP_LINE=$2; COMP_POINT=${#2}; _cairnctl; printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.env_clear().env("HOME", home).env("CAIRNCTL_CONFIG_FILE", "/dev/null").env("LC_ALL", "C.UTF-8");
    let offered = bash.args(["-c", script, "bash"]).arg(&program).arg(&line).output()?;
    let offered = String::from_utf8(offered.stdout)?;
    ensure!(offered == "größe/1\ngröße/2\n", "{offered:?}");

    // A watch ends with 0 by the key that people press, and with the shell's code when there was nothing to see.
    for (arguments, channel, code) in [
        (&["member", "list", "--watch=0.1", "-o", "jsonl"][..], 1, 0),
        (&["member", "list", "--watch=0.1", "--endpoints=127.0.0.1:1", "--dial-timeout=100ms"], 2, 130),
    ] {
        let mut child = cairnctl(home, arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("piped")?).lines();
        let mut stderr = BufReader::new(child.stderr.take().context("piped")?).lines();
        let seen: Vec<String> = if channel == 1 {
            stdout.by_ref().take(2).collect::<Result<_, _>>()?
        } else {
            stderr.by_ref().take(2).collect::<Result<_, _>>()?
        };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        let status = child.wait()?;
        ensure!(seen.len() == 2 && status.code() == Some(code), "{arguments:?}: {status}: {seen:?}");
    }
    Ok(())
}
