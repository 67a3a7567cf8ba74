//! Refused starts as tests look at them: the five parts on stderr, the log record that says the same, the directory before and after, the
//! ports that were not opened, and the printed remedy carried out word by word.
//!
//! Not here: which start is refused with what (the tests of rows and of identity).

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{Member, cairn_binary, wait_for};

/// A refusal as the operator reads it.
#[derive(Clone, Debug)]
pub struct Refused {
    pub id: String,
    /// All of it.
    pub text: String,
    pub cause: String,
    pub evidence: String,
    /// In their order, without numbers.
    pub remedies: Vec<String>,
    pub never: String,
    /// From the start of the process to its end.
    pub took: Duration,
}

impl Refused {
    /// The last one in this log.
    pub fn in_log(log: &str) -> Result<Refused> {
        let at = log.rfind("REFUSED ").context("no refusal in the log")?;
        let mut lines = log[at..].lines();
        let mut text = String::new();
        let mut part = |lead: &str| -> Result<String> {
            let line = lines.next().with_context(|| format!("the refusal ends before {lead:?}"))?;
            text.push_str(line);
            text.push('\n');
            Ok(line
                .strip_prefix(lead)
                .with_context(|| format!("{lead:?} does not begin {line:?}"))?
                .to_owned())
        };
        let id = part("REFUSED ")?;
        let cause = part("cause:    ")?;
        let evidence = part("evidence: ")?;
        let mut remedies = vec![part("remedy:   1. ")?];
        let never = loop {
            let line = part("")?;
            if let Some(never) = line.strip_prefix("never:    ") {
                break never.to_owned();
            }
            let lead = format!("          {}. ", remedies.len() + 1);
            let remedy =
                line.strip_prefix(&lead).with_context(|| format!("{lead:?} does not begin {line:?}"))?;
            remedies.push(remedy.to_owned());
        };
        Ok(Refused { id, text, cause, evidence, remedies, never, took: Duration::ZERO })
    }

    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Refused {
        for words in words {
            assert!(self.text.contains(words), "{words:?} is not in {}", self.text);
        }
        self
    }

    /// The remedy with these words.
    #[track_caller]
    pub fn remedy(&self, words: &str) -> &str {
        let found = self.remedies.iter().find(|remedy| remedy.contains(words));
        found.unwrap_or_else(|| panic!("no remedy with {words:?} in {}", self.text))
    }
}

/// What is at a path: enough to notice any change that a start could make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Directory {
        mode: u32,
    },
    /// The lock names its holder of the moment, so its bytes do not count.
    Lock,
    File {
        mode: u32,
        bytes: Vec<u8>,
    },
}

/// Everything below `dir`, and `dir` itself; empty where there is nothing.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let mode = meta.mode();
        let is = if meta.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            Found::Directory { mode }
        } else if path.ends_with("LOCK") {
            Found::Lock
        } else {
            Found::File { mode, bytes: fs::read(&path).unwrap_or_default() }
        };
        found.insert(path, is);
    }
    found
}

/// What came, went or changed between two looks.
pub fn changed(before: &BTreeMap<PathBuf, Found>, after: &BTreeMap<PathBuf, Found>) -> Vec<PathBuf> {
    let paths = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    paths.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

pub fn copy(from: &Path, to: &Path) -> Result<()> {
    for (path, is) in tree(from) {
        let target = to.join(path.strip_prefix(from)?);
        match is {
            Found::Directory { .. } => fs::create_dir_all(target)?,
            Found::Lock => fs::write(target, [])?,
            Found::File { bytes, .. } => fs::write(target, bytes)?,
        }
    }
    Ok(())
}

/// The ports of a member, held by the test: a start that opened one before it refuses would say PORT_IN_USE instead.
fn hold_ports(member: &Member) -> Vec<TcpListener> {
    let urls =
        ["--listen-peer-urls=", "--listen-client-urls="].into_iter().filter_map(|flag| member.flag(flag));
    let places = urls.filter_map(|url| url.strip_prefix("http://").map(str::to_owned));
    // A port that another process has is as good as held.
    places.filter_map(|place| TcpListener::bind(place).ok()).collect()
}

/// Starts, and ends as told: nothing on disk changed, nothing new beside the data directory, no port opened.
#[track_caller]
pub fn refused(member: &mut Member, id: &str, code: i32) -> Refused {
    let held = hold_ports(member);
    let refused = refused_with_ports(member, id, code);
    drop(held);
    refused
}

/// The same of a start that is refused by other founders, for whom its ports have to be open.
#[track_caller]
pub fn refused_with_ports(member: &mut Member, id: &str, code: i32) -> Refused {
    let beside = |member: &Member| {
        let parent = member.data_dir.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut names: Vec<PathBuf> =
            fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        names.retain(|path| path.extension().is_none_or(|extension| extension != "log"));
        names.sort();
        names
    };
    let (before, names) = (tree(&member.data_dir), beside(member));
    let began = Instant::now();
    member.spawn().unwrap();
    let mut refused = ended(member, id, code);
    refused.took = began.elapsed();
    let changes = changed(&before, &tree(&member.data_dir));
    assert!(changes.is_empty(), "{id}: changed on disk: {changes:?}");
    assert_eq!(beside(member), names, "{id}: something came or went beside the data directory");
    println!("refused {id} ({code}) after {} ms", refused.took.as_millis());
    refused
}

/// The member ends by itself with this refusal, whole on stderr and the same in the log record.
#[track_caller]
pub fn ended(member: &mut Member, id: &str, code: i32) -> Refused {
    let status = member.wait_exit().unwrap();
    let refused =
        Refused::in_log(&member.log()).unwrap_or_else(|error| panic!("{error:#}\n{}", member.log_tail()));
    assert_eq!((refused.id.as_str(), status.code()), (id, Some(code)), "{}: {}", member.name, refused.text);
    assert!(refused.evidence.len() > 1, "no evidence: {}", refused.text);
    let log = member.log();
    let record = log.lines().rfind(|line| line.starts_with('{') && line.contains("\"code\":"));
    let record: Value = serde_json::from_str(record.expect("a log record of the refusal")).expect("JSON");
    assert_eq!((&record["code"], &record["exit"]), (&id.into(), &code.into()), "{record}");
    assert_eq!(record["remedy"], serde_json::json!(refused.remedies), "{record}");
    let doc = record["doc"].as_str().unwrap_or_default();
    assert!(doc.ends_with(&id.to_lowercase()), "{record}");
    refused
}

/// Carries out a printed remedy that is a command or a setting, as it stands, step by step. What it says about the start is done to the
/// member's flags; the start itself is the caller's, but for a remedy that says "start with".
pub fn carry_out(remedy: &str, member: &mut Member) -> Result<()> {
    ensure!(!remedy.contains('<'), "no command: {remedy:?} leaves something to be filled in");
    let mut done = 0;
    for step in remedy.split(", then ") {
        let at = ["cairnctl ", "mv ", "kill ", "--"].into_iter().filter_map(|lead| step.find(lead)).min();
        let Some(at) = at else { continue };
        let words: Vec<&str> = step[at..].split_whitespace().collect();
        done += 1;
        match words[..] {
            ["cairnctl", ref args @ ..] => drop(insist(args)?),
            ["mv", from, to] => fs::rename(from, to).with_context(|| format!("mv {from} {to}"))?,
            ["kill", pid] => kill(Pid::from_raw(pid.parse()?), Signal::SIGTERM)?,
            _ => {
                if step.contains("an empty data directory") && member.data_dir.exists() {
                    fs::rename(&member.data_dir, member.data_dir.with_extension("old"))?;
                }
                for flag in words.iter().filter(|word| word.starts_with("--")) {
                    member.add_flag(*flag);
                }
            }
        }
    }
    ensure!(done > 0, "nothing to carry out in {remedy:?}");
    Ok(())
}

/// Until it succeeds: a cluster that has just changed refuses the next change for some seconds.
pub fn insist(args: &[&str]) -> Result<String> {
    let mut last = String::new();
    let done = wait_for("cairnctl", || {
        let output =
            Command::new(cairn_binary("cairnctl").ok()?).args(args).stdin(Stdio::null()).output().ok()?;
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    done.with_context(|| format!("cairnctl {args:?}: {last}"))
}

/// The identity file.
pub fn stored(member: &Member) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(member.data_dir.join("member/identity.json"))?)?)
}

/// The member's id once it is written down.
pub fn stored_id(member: &Member) -> Result<String> {
    Ok(stored(member)?["member_id"].as_str().context("an id")?.to_owned())
}

/// Once the identity file says which life of the cluster it is.
pub fn life(member: &Member) -> Result<String> {
    wait_for("the life of the cluster in the identity file", || {
        stored(member).ok()?["cluster_uuid"].as_str().map(str::to_owned)
    })
}

/// The lines of a log from the last start on.
pub fn last_start(member: &Member) -> String {
    let log = member.log();
    let at = log.rfind("\"msg\":\"starting cairnd\"").unwrap_or_default();
    let at = log[..at].rfind('\n').map_or(0, |at| at + 1);
    log[at..].to_owned()
}

/// Fails with the line that is missing.
pub fn logged(member: &Member, words: &[&str]) -> Result<()> {
    let log = last_start(member);
    let found = log.lines().any(|line| words.iter().all(|words| line.contains(words)));
    if !found {
        bail!("no line with {words:?} in the log of {}:\n{log}", member.name);
    }
    Ok(())
}
