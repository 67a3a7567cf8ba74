//! `etcdctl watch` with its options and its interactive mode, against the real etcd and against cairn on the same ports: the same lines.
//! A watch does not end by itself, so etcd is read until it is quiet and cairn for as many lines.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result};
use cairn_tests::harness::{Cluster, Kind, free_ports, real_etcd};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// After so long without a line etcd has said all; it catches up each 100 ms.
const QUIET: Duration = Duration::from_millis(400);

/// A line that etcd printed is awaited for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is in the store first.
const BEFORE: &[&str] = &[
    "put a 1",
    "put a 2",
    "put dir/x 1",
    "del a",
    "put dir/y 2",
    "put a 3",
    "del --prefix dir/",
    "put z last",
];

/// Arguments, and what is typed.
const WATCHES: &[(&str, &str)] = &[
    ("watch a --rev=1", ""),
    ("watch a --rev=1 --prev-kv", ""),
    ("watch --prefix dir/ --rev=2", ""),
    ("watch --prefix dir/ --rev=2 --prev-kv -w json", ""),
    ("watch a z --rev=4", ""),
    ("watch a --rev=3 -w fields", ""),
    ("watch --prefix  --rev=6 --hex", ""),
    ("watch z --rev=1 --progress-notify", ""),
    ("watch a --rev=7 -- echo seen", ""),
    ("watch z a --rev=1", ""),
    ("watch a --rev=-1", ""),
    ("watch -i", "watch a --rev=1\n"),
    ("watch -i", "watch --prefix dir/ --rev=1 --prev-kv\ncancel\n"),
    ("watch", ""),
];

/// After revision 5 was compacted.
const COMPACTED: &[(&str, &str)] =
    &[("watch a --rev=2", ""), ("watch a --rev=5", ""), ("watch -i", "watch a --rev=2\n")];

struct Heard {
    /// By pipe, since there is no order between the two.
    lines: Vec<(i32, String)>,
    ended: bool,
}

/// Lines of one watch: as many as expected, or until it is quiet or over.
fn watch(
    version: &str,
    url: &str,
    (arguments, typed): (&str, &str),
    expected: Option<usize>,
) -> Result<Heard> {
    let mut child = Command::new(real_etcd(version)?.join("etcdctl"))
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={url}"))
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // The tool may have ended before it reads.
    let _ = stdin.write_all(typed.as_bytes());
    let (sender, receiver) = mpsc::channel();
    let pipes: [Box<dyn std::io::Read + Send>; 2] = [
        Box::new(child.stdout.take().context("stdout is piped")?),
        Box::new(child.stderr.take().context("stderr is piped")?),
    ];
    let mut number = 0;
    let readers = pipes.map(|pipe| {
        let sender = sender.clone();
        number += 1;
        let pipe_number = number;
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = sender.send((pipe_number, line));
            }
        })
    });
    drop(sender);
    let mut heard = Heard { lines: Vec::new(), ended: false };
    loop {
        let wait = match expected {
            None => QUIET,
            Some(expected) if heard.lines.len() < expected => PATIENCE,
            Some(_) => QUIET / 4,
        };
        match receiver.recv_timeout(wait) {
            Ok((pipe, line)) => heard.lines.push((pipe, masked(&line))),
            Err(mpsc::RecvTimeoutError::Timeout) => break,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                heard.ended = true;
                break;
            }
        }
    }
    heard.lines.sort_by_key(|(pipe, _)| *pipe);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
    child.wait()?;
    for reader in readers {
        let _ = reader.join();
    }
    Ok(heard)
}

/// Time stamps of the tool's own log lines, and the raft term in JSON.
fn masked(line: &str) -> String {
    let text = match serde_json::from_str::<serde_json::Value>(line) {
        Ok(mut json) if json.is_object() => {
            if let Some(header) = json.get_mut("Header") {
                header["raft_term"] = 0.into();
            }
            if json.get("ts").is_some() {
                json["ts"] = "now".into();
            }
            json.to_string()
        }
        _ => line.to_owned(),
    };
    let term = text.starts_with("\"RaftTerm\"");
    if term { "RaftTerm".to_owned() } else { text }
}

fn equal(version: &str) -> Result<()> {
    let ports = free_ports(2)?;
    let mut reference: Vec<Heard> = Vec::new();
    let mut differences = Vec::new();
    for kind in [Kind::Etcd("3.5".to_owned()), Kind::Cairn] {
        let is_reference = kind != Kind::Cairn;
        let mut cluster = Cluster::prepare_on(kind, &ports, &[])?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
        let url = cluster.members[0].client_url.clone();
        for line in BEFORE {
            cluster.etcdctl("3.5", &line.split(' ').collect::<Vec<_>>())?;
        }
        let mut next = 0;
        for (number, what) in WATCHES.iter().chain(COMPACTED).enumerate() {
            if number == WATCHES.len() {
                cluster.etcdctl("3.5", &["compaction", "5"])?;
            }
            let heard = watch(version, &url, *what, reference.get(next).map(|heard| heard.lines.len()))?;
            if is_reference {
                reference.push(heard);
                continue;
            }
            let theirs = &reference[next];
            if (&theirs.lines, theirs.ended) != (&heard.lines, heard.ended) {
                differences.push(format!(
                    "{what:?}\n    etcd (ended {}): {:#?}\n    cairn (ended {}): {:#?}",
                    theirs.ended, theirs.lines, heard.ended, heard.lines
                ));
            }
            next += 1;
        }
    }
    let lines: usize = reference.iter().map(|heard| heard.lines.len()).sum();
    println!("{lines} lines of {} watches compared", reference.len());
    assert!(lines > reference.len(), "etcd hardly said anything");
    assert!(differences.is_empty(), "{} watches differ:\n{}", differences.len(), differences.join("\n"));
    Ok(())
}

#[test]
fn etcdctl_35_watches_the_same() -> Result<()> {
    equal("3.5")
}

#[test]
fn etcdctl_34_watches_the_same() -> Result<()> {
    equal("3.4")
}
