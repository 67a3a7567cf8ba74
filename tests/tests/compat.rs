//! Stock clients see no difference: the same script runs through stock etcdctl 3.4 and 3.5 and through client libraries of two other
//! languages, against the real etcd and against cairn, one after the other on the same ports (so that even ids agree), and the
//! answers are compared field by field. What differs on purpose is listed here with its reason.
//!
//! Needs what `tests/tools/install` puts under `target/`; without it these tests fail and say so.

#[path = "compat/streams.rs"]
mod streams;
#[path = "compat/survive.rs"]
mod survive;
#[path = "compat/watching.rs"]
mod watching;

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use cairn_tests::harness::{Cluster, Kind, Member, free_ports, real_etcd};
use serde_json::Value;

/// One step of a script and what came of it.
type Transcript = Vec<(String, Value)>;

/// Runs the script on a fresh single member of each kind and compares.
fn compare(
    reference: &str,
    script: impl Fn(&Member) -> Result<Transcript>,
    expected: &[(&str, &str)],
) -> Result<()> {
    let ports = free_ports(2)?;
    let mut transcripts = Vec::new();
    for kind in [Kind::Etcd(reference.to_owned()), Kind::Cairn] {
        let mut cluster = Cluster::prepare_on(kind, &ports, &[])?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
        // Published name and agreed version are part of the answers; both come moments after the first healthy answer.
        let member = &cluster.members[0];
        cairn_tests::harness::wait_for("the member's name in the list", || {
            let listed = cluster.etcdctl("3.5", &["member", "list"]).ok()?;
            listed.contains(&member.client_url).then_some(())
        })?;
        transcripts.push(script(member)?);
    }
    let (etcd, cairn) = (&transcripts[0], &transcripts[1]);
    let mut differences = Vec::new();
    assert_eq!(etcd.len(), cairn.len(), "one of the scripts stopped early");
    assert!(etcd.len() > 5, "the script did hardly anything");
    for ((step, theirs), (also, ours)) in etcd.iter().zip(cairn) {
        assert_eq!(step, also, "the scripts went different ways");
        if theirs == ours {
            continue;
        }
        match expected.iter().find(|(name, _)| name == step) {
            Some((_, ours_expected)) if ours.to_string().contains(ours_expected) => {}
            _ => differences.push(format!("step {step}\n    etcd:  {theirs}\n    cairn: {ours}")),
        }
    }
    if !differences.is_empty() {
        bail!(
            "{} of {} answers differ from etcd {reference}:\n{}",
            differences.len(),
            etcd.len(),
            differences.join("\n")
        );
    }
    println!("{} answers equal to those of etcd {reference}", etcd.len());
    Ok(())
}

fn installed(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if !path.exists() {
        bail!("{} is missing: run tests/tools/install", path.display());
    }
    Ok(path.canonicalize()?)
}

/// The interpreter of a virtual environment is a link that must not be resolved.
fn python() -> Result<PathBuf> {
    installed("target/clients/python/bin/python")?;
    Ok(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/clients/python/bin/python"))
}

/// Lines of `{"step": .., "result": ..}`.
fn json_lines(mut command: Command) -> Result<Transcript> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!("{command:?} failed after:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    text.lines()
        .map(|line| {
            let step: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            Ok((step["step"].as_str().context("a step has a name")?.to_owned(), step["result"].clone()))
        })
        .collect()
}

#[test]
fn python_client_sees_no_difference() -> Result<()> {
    let python = python()?;
    let script = installed("tests/compat/client.py")?;
    compare(
        "3.5",
        |member| {
            let port = member.client_url.rsplit(':').next().context("port")?;
            let mut command = Command::new(&python);
            command.arg(&script).args(["127.0.0.1", port]);
            json_lines(command)
        },
        // etcd refuses unknown sort orders since 3.6; cairn has 3.7's API level.
        &[("unknown sort", "invalid sort option")],
    )
}

#[test]
fn node_client_sees_no_difference() -> Result<()> {
    let modules = installed("target/clients/node/node_modules")?;
    let script = installed("tests/compat/client.js")?;
    compare(
        "3.5",
        |member| {
            let mut command = Command::new("node");
            command.env("NODE_PATH", &modules).arg(&script).arg(&member.client_url);
            json_lines(command)
        },
        &[],
    )
}

/// Commands as an operator types them; `stdin` follows a `<`.
const ETCDCTL_SCRIPT: &[&str] = &[
    "put a 1",
    "put a 2 --prev-kv",
    "put b with-json -w json",
    "put c 3",
    "put d 4",
    "put dir/x 1",
    "put dir/y 2",
    "get a",
    "get a -w json",
    "get a -w fields",
    "get a --rev=2",
    "get a --print-value-only",
    "get nothing",
    "get nothing -w json",
    "get --prefix dir/",
    "get --prefix dir/ -w json",
    "get --prefix dir/ --keys-only",
    "get --prefix dir/ --count-only -w json",
    "get --from-key c",
    "get a d",
    "get a d --limit=2 -w json",
    "get --prefix d --order=DESCEND",
    "get --prefix d --sort-by=MODIFY --order=ASCEND -w json",
    "get a --consistency=s",
    "get a --rev=99999",
    "del c",
    "del c",
    "del d --prev-kv",
    "del --prefix dir/ -w json",
    "txn <value(\"a\") = \"2\"\n\nput t yes\nget t\n\nput t no\n\n",
    "txn <version(\"a\") > \"7\"\n\nput t yes\n\nget t\nget a\n\n",
    "txn -w json <mod(\"a\") < \"100\"\n\ndel b\n\n\n",
    "get t",
    "put a 5 --ignore-value",
    "put a --ignore-value",
    "put nobody --ignore-value",
    "put a x --lease=4d2",
    "get  --prefix a --hex",
    "compaction 4",
    "compaction 4",
    "compaction 99999",
    "get a --rev=2",
    "compaction --physical 6",
    "member list",
    "member list -w json",
    "member list -w table",
    "endpoint health",
    "endpoint hashkv -w json",
    "move-leader 1234",
    "alarm list",
    "lease grant 600",
    "lease grant 0",
    "lease grant 1 -w json",
    "lease grant 9000000001",
    "lease grant x",
    "lease timetolive $LEASE",
    "put leased/1 v --lease=$LEASE",
    "lease timetolive $LEASE --keys",
    "lease timetolive $LEASE --keys -w json",
    "put leased/2 v --lease=$LEASE",
    "lease keep-alive --once $LEASE",
    "lease keep-alive --once $LEASE -w json",
    "lease keep-alive --once 4711",
    "lease timetolive 4711",
    "lease timetolive 4711 -w json",
    "get leased/1 -w json",
    "lease revoke $LEASE",
    "lease revoke $LEASE",
    "lease timetolive $LEASE --keys",
    "lease keep-alive --once $LEASE",
    "get --prefix leased/",
    "lease revoke 4711 -w json",
    "lease list",
    "get --prefix \"\" -w json",
];

#[test]
fn etcdctl_35_sees_no_difference() -> Result<()> {
    compare("3.5", |member| etcdctl_script("3.5", member), &[])
}

#[test]
fn etcdctl_34_sees_no_difference() -> Result<()> {
    compare("3.5", |member| etcdctl_script("3.4", member), &[])
}

fn etcdctl_script(version: &str, member: &Member) -> Result<Transcript> {
    let program = real_etcd(version)?.join("etcdctl");
    let mut transcript = Vec::new();
    let mut lease = String::new();
    for line in ETCDCTL_SCRIPT {
        let (command, stdin) =
            line.split_once('<').filter(|(head, _)| head.starts_with("txn")).unwrap_or((line, ""));
        let mut child = Command::new(&program)
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", member.client_url))
            .args(
                command
                    .replace("$LEASE", &lease)
                    .split_whitespace()
                    .map(|word| if word == "\"\"" { "" } else { word }),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin is piped")?.write_all(stdin.as_bytes())?;
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if *line == "lease grant 600" {
            lease = stdout.split(' ').nth(1).context("lease ID granted ..")?.to_owned();
        }
        // Elsewhere ids of sixteen digits are those of members, which are the same.
        let mask = |text: String| if line.contains("lease") { without_leases(&text) } else { text };
        let stdout = mask(stdout);
        let shown = match serde_json::from_str::<Value>(&stdout) {
            Ok(json) => json,
            Err(_) => Value::String(without_durations(&stdout)),
        };
        let answer = serde_json::json!({
            "exit": output.status.code(),
            "out": shown,
            "error": mask(last_line(&String::from_utf8_lossy(&output.stderr))),
        });
        transcript.push(((*line).to_owned(), answer));
    }
    Ok(transcript)
}

/// Ids that the server chose, and seconds that are left: both differ from run to run.
fn without_leases(text: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    let flush = |word: &mut String, masked: &mut String| {
        let digits = word.chars().all(|c| c.is_ascii_hexdigit());
        let id = digits && (16..=19).contains(&word.len());
        // 590 to 600, granted as 600 above.
        let left = word.len() == 3 && (word.starts_with("59") || word == "600");
        masked.push_str(if id {
            "ID"
        } else if left {
            "LEFT"
        } else {
            word
        });
        word.clear();
    };
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            word.push(c);
        } else {
            flush(&mut word, &mut masked);
            masked.push(c);
        }
    }
    flush(&mut word, &mut masked);
    masked
}

/// "took = 1.2ms" is a measurement.
fn without_durations(text: &str) -> String {
    text.lines()
        .map(|line| line.split(" took").next().unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The verdict; client-side retry chatter before it carries time stamps. "took" as above.
fn last_line(text: &str) -> String {
    without_durations(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default())
}
