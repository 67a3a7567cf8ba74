//! The language of the test scripts: commands, then `---`, then what they printed, then an empty line.
//!
//! | command | |
//! |---|---|
//! | `bootstrap members=3` | as etcd begins: a log of one conf change per member; their apply is stalled |
//! | `join N` | a member that knows nobody |
//! | `cluster members=3 [learners=4] [keep=N] [tail=BYTES] [uncommitted=BYTES] [append=BYTES]` | fresh members that know each other |
//! | `log N T/I..` | rewrites the disk of a member that is down: entries of term T at index I, hard state to match |
//! | `campaign N`, `tick N [count]`, `transfer N to`, `unreachable N peer`, `compact N` | one input |
//! | `propose N data..` | one batch |
//! | `conf N add\|remove\|update\|learner id` | a conf change in etcd's form |
//! | `note N update id` | a leader's note, which nobody's conf change waits for |
//! | `read N` | one read |
//! | `settle` | delivers until nothing moves, silently |
//! | `deliver [from=N] [to=N] [type=App]` | delivers what is in the network now and matches, telling each |
//! | `drop ..`, `save NAME ..`, `inject NAME` | loses, keeps aside, brings back |
//! | `cut N M`, `heal` | both ways |
//! | `disk N stall\|resume`, `apply N stall\|resume` | |
//! | `turn N hold\|end` | its loop takes what comes as one turn; what its worker has done comes last |
//! | `crash N`, `start N` | what was not confirmed is lost |
//! | `snapshot N to`, `snapshot_status N to ok\|failed` | the driver's part |
//! | `step N type=App from=.. ..` | a message made by hand |
//! | `status [N]`, `messages`, `data`, `verbose on\|off` | |

use std::fmt::Write as _;
use std::path::Path;

use api::raftpb::{self, MessageType};
use consensus::io::Input;
use consensus::{Config, codec};
use prost::Message as _;
use types::{ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

use super::cluster::{Cluster, Disk, describe};

/// Runs a script; with UPDATE=1 writes down what it printed.
pub fn run_file(path: &Path) {
    let text = std::fs::read_to_string(path).expect("the script is readable");
    let mut out = String::new();
    let mut cluster = Cluster::default();
    let mut commands: Vec<&str> = Vec::new();
    let mut expected = false;
    for line in text.lines().chain([""]) {
        if expected {
            if line.is_empty() {
                expected = false;
                out.push('\n');
            }
            continue;
        }
        if line == "---" {
            out.push_str("---\n");
            let mut printed = String::new();
            for command in commands.drain(..).flat_map(|line| line.split(';')) {
                run_command(&mut cluster, command.trim(), &mut printed)
                    .unwrap_or_else(|error| panic!("{}: {command:?}: {error}", path.display()));
                printed.push_str(&std::mem::take(&mut cluster.events));
            }
            out.push_str(if printed.is_empty() { "ok\n" } else { &printed });
            expected = true;
            continue;
        }
        if !line.is_empty() && !line.starts_with('#') {
            commands.push(line);
        }
        let _ = writeln!(out, "{line}");
    }
    assert!(commands.is_empty(), "{}: commands without `---` after them", path.display());
    let out = format!("{}\n", out.trim_end());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, out).expect("the script is writable");
        return;
    }
    if out != text {
        let line = out.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
        panic!(
            "{} differs from line {} on.\n--- now\n{out}\nUPDATE=1 writes it down.",
            path.display(),
            line + 1
        );
    }
}

type Done = Result<(), String>;

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

fn run_command(cluster: &mut Cluster, command: &str, out: &mut String) -> Done {
    let words: Vec<&str> = command.split_whitespace().collect();
    let Some((name, words)) = words.split_first() else { return Ok(()) };
    let setting = |key: &str| {
        words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(str::to_string)
    };
    let at =
        |position: usize| words.get(position).copied().ok_or(format!("word {} is missing", position + 1));
    let id = |position: usize| number(at(position)?);
    match *name {
        "cluster" => {
            let members: u64 = setting("members").map_or(Ok(3), |word| number(&word))?;
            let learners: u64 = setting("learners").map_or(Ok(0), |word| number(&word))?;
            let conf_state = ConfState {
                voters: (1..=members).map(MemberId).collect(),
                learners: (members + 1..=members + learners).map(MemberId).collect(),
                ..ConfState::default()
            };
            *cluster = Cluster::default();
            for member in 1..=members + learners {
                let mut config = Config::new(MemberId(member), 0);
                config.log_tail_entries_keep = setting("keep").map_or(Ok(5000), |word| number(&word))?;
                config.log_tail_bytes_max = setting("tail").map_or(Ok(u64::MAX), |word| number(&word))?;
                config.log_feed_bytes_max = setting("feed").map_or(Ok(u64::MAX), |word| number(&word))?;
                config.uncommitted_bytes_max =
                    setting("uncommitted").map_or(Ok(1 << 30), |word| number(&word))?;
                if let Some(word) = setting("unpersisted") {
                    config.unpersisted_bytes_max = number(&word)?;
                }
                if let Some(word) = setting("append") {
                    config.append_bytes_max = number(&word)?;
                }
                cluster.add(config, Disk { conf_state: conf_state.clone(), ..Disk::default() });
            }
        }
        "bootstrap" => {
            let members: u64 = setting("members").map_or(Ok(1), |word| number(&word))?;
            let entries: Vec<Entry> = (1..=members)
                .map(|member| {
                    let change = raftpb::ConfChange {
                        id: Some(0),
                        r#type: Some(0),
                        node_id: Some(member),
                        context: Some("{}".into()),
                    };
                    Entry {
                        term: Term(1),
                        index: LogIndex(member),
                        kind: EntryKind::ConfChange,
                        data: change.encode_to_vec().into(),
                    }
                })
                .collect();
            *cluster = Cluster::default();
            for member in 1..=members {
                let hard_state = HardState { term: Term(1), vote: MemberId::NONE, commit: LogIndex(members) };
                let disk = Disk { hard_state, entries: entries.clone(), ..Disk::default() };
                cluster.add_stalled(Config::new(MemberId(member), 0), disk);
            }
        }
        "join" => cluster.add(Config::new(MemberId(id(0)?), 0), Disk::default()),
        "log" => {
            let node = cluster.nodes.get_mut(&id(0)?).ok_or("no such member")?;
            let entries: Result<Vec<Entry>, String> = words[1..]
                .iter()
                .filter(|word| word.contains('/'))
                .map(|word| {
                    let (term, index) = word.split_once('/').ok_or("T/I")?;
                    Ok(Entry {
                        term: Term(number(term)?),
                        index: LogIndex(number(index)?),
                        kind: EntryKind::Normal,
                        data: word.as_bytes().to_vec().into(),
                    })
                })
                .collect();
            node.disk.entries = entries?;
            let last = node.disk.entries.last().map(Entry::position).unwrap_or_default();
            let commit = setting("commit").map_or(Ok(0), |word| number(&word))?;
            let term = setting("term").map_or(Ok(last.term.0), |word| number(&word))?;
            node.disk.hard_state =
                HardState { term: Term(term), vote: MemberId::NONE, commit: LogIndex(commit) };
            node.disk.applied = LogPosition::default();
        }
        "campaign" => cluster.input(id(0)?, Input::Campaign),
        "tick" => {
            for _ in 0..words.get(1).map_or(Ok(1), |word| number(word))? {
                cluster.input(id(0)?, Input::Tick);
            }
        }
        "transfer" => cluster.input(id(0)?, Input::TransferLeader(MemberId(id(1)?))),
        "unreachable" => cluster.input(id(0)?, Input::Unreachable(MemberId(id(1)?))),
        "compact" => {
            let node = &cluster.nodes[&id(0)?];
            let (through, conf_state) = (node.disk.applied, node.disk.conf_state.clone());
            cluster.input(id(0)?, Input::Compact { through, conf_state });
        }
        "propose" => {
            let data = words[1..].iter().map(|word| word.as_bytes().to_vec()).collect();
            cluster.propose(id(0)?, EntryKind::Normal, data);
        }
        word @ ("conf" | "note") => {
            let kind = match at(1)? {
                "add" => 0,
                "remove" => 1,
                "update" => 2,
                "learner" => 3,
                other => return Err(format!("{other:?} is no conf change")),
            };
            let change = raftpb::ConfChange {
                id: Some(7),
                r#type: Some(kind),
                node_id: Some(id(2)?),
                context: Some("{}".into()),
            };
            if word == "note" {
                cluster.note(id(0)?, change.encode_to_vec());
            } else {
                cluster.propose(id(0)?, EntryKind::ConfChange, vec![change.encode_to_vec()]);
            }
        }
        "read" => cluster.read(id(0)?),
        "settle" => {
            for _ in 0..10_000 {
                if cluster.network.is_empty() {
                    return Ok(());
                }
                cluster.deliver(0);
            }
            return Err("the network does not come to rest".into());
        }
        "deliver" | "drop" | "save" => {
            let matches = |message: &raftpb::Message| {
                let kind = message.r#type.and_then(|number| MessageType::try_from(number).ok());
                setting("from").is_none_or(|word| word == message.from().to_string())
                    && setting("to").is_none_or(|word| word == message.to().to_string())
                    && setting("type").is_none_or(|word| {
                        kind.is_some_and(|kind| format!("{kind:?}") == format!("Msg{word}"))
                    })
            };
            let (chosen, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut cluster.network).into_iter().partition(matches);
            match *name {
                "drop" => cluster.network = rest,
                "save" => {
                    cluster.network = rest;
                    let message = chosen.into_iter().next_back().ok_or("nothing matches")?;
                    let _ = writeln!(out, "saved {}", describe(&message));
                    cluster.saved.insert(at(0)?.to_string(), message);
                }
                _ => {
                    let count = chosen.len();
                    cluster.network = chosen.into_iter().chain(rest).collect();
                    let was = std::mem::replace(&mut cluster.verbose, true);
                    for _ in 0..count {
                        cluster.deliver(0);
                    }
                    cluster.verbose = was;
                }
            }
        }
        "inject" => {
            let message = cluster.saved.get(at(0)?).cloned().ok_or("nothing was saved under this name")?;
            let _ = writeln!(out, "{}", describe(&message));
            cluster.input(message.to(), Input::Message(message));
        }
        "cut" => {
            let (a, b) = (id(0)?, id(1)?);
            cluster.cut.extend([(a, b), (b, a)]);
        }
        "heal" => cluster.cut.clear(),
        "disk" | "apply" => {
            let stalled = match at(1)? {
                "stall" => true,
                "resume" => false,
                other => return Err(format!("stall or resume, not {other:?}")),
            };
            let node = cluster.nodes.get_mut(&id(0)?).ok_or("no such member")?;
            if *name == "disk" {
                node.disk_stalled = stalled
            } else {
                node.apply_stalled = stalled
            }
            cluster.run(id(0)?);
        }
        "turn" => match at(1)? {
            "hold" => cluster.nodes.get_mut(&id(0)?).ok_or("no such member")?.turn_held = true,
            "end" => cluster.end_turn(id(0)?),
            other => return Err(format!("hold or end, not {other:?}")),
        },
        "crash" => cluster.crash(id(0)?),
        "start" => {
            if let Err(error) = cluster.start(id(0)?) {
                let _ = writeln!(out, "{} does not start: {error}", id(0)?);
            }
        }
        "snapshot" => {
            if let Err(error) = cluster.send_snapshot(id(0)?, id(1)?) {
                let _ = writeln!(out, "{} sends none: {error}", id(0)?);
            }
        }
        "snapshot_status" => {
            let ok = at(2)? == "ok";
            cluster.input(id(0)?, Input::SnapshotStatus { to: MemberId(id(1)?), ok });
        }
        "step" => {
            let field = |key: &str| setting(key).map(|word| number(&word)).transpose();
            let kind = setting("type").ok_or("type=")?;
            let kind = number(&kind).map(|number| number as i32).or_else(|_| {
                MessageType::from_str_name(&format!("Msg{kind}"))
                    .map(|kind| kind as i32)
                    .ok_or("no such type")
            })?;
            let entries = setting("entries").unwrap_or_default();
            let entries: Result<Vec<raftpb::Entry>, String> = entries
                .split(',')
                .filter(|word| !word.is_empty())
                .map(|word| {
                    let (term, index) = word.split_once('/').ok_or("T/I")?;
                    let kind = field("kind")?.unwrap_or(0) as i32;
                    Ok(raftpb::Entry {
                        r#type: Some(kind),
                        term: Some(number(term)?),
                        index: Some(number(index)?),
                        data: Some("by hand".into()),
                    })
                })
                .collect();
            let voters = setting("voters").unwrap_or("1,2,3".into());
            let voters: Result<Vec<u64>, String> = voters.split(',').map(number).collect();
            let snapshot = field("snap")?.map(|index| raftpb::Snapshot {
                data: None,
                metadata: Some(raftpb::SnapshotMetadata {
                    conf_state: Some(codec::conf_state_to_wire(&ConfState {
                        voters: voters.unwrap_or_default().into_iter().map(MemberId).collect(),
                        ..ConfState::default()
                    })),
                    index: Some(index),
                    term: field("snap_term").ok().flatten(),
                }),
            });
            let message = raftpb::Message {
                r#type: Some(kind),
                to: Some(field("to")?.unwrap_or(id(0)?)),
                from: field("from")?,
                term: field("term")?,
                log_term: field("log_term")?,
                index: field("index")?,
                entries: entries?,
                commit: field("commit")?,
                snapshot,
                reject: Some(words.contains(&"reject")),
                reject_hint: field("hint")?,
                context: setting("ctx").map(Into::into),
                vote: field("vote")?,
                responses: Vec::new(),
            };
            cluster.input(id(0)?, Input::Message(message));
        }
        "status" => {
            let ids: Vec<u64> =
                if words.is_empty() { cluster.nodes.keys().copied().collect() } else { vec![id(0)?] };
            for id in ids {
                if cluster.nodes[&id].core.is_none() {
                    let _ = writeln!(out, "{id} down");
                    continue;
                }
                let status = cluster.core(id).status();
                let _ = write!(
                    out,
                    "{id} {:?} term {} leader {} log {}..={} committed {} persisted {} applied {}",
                    status.role,
                    status.term,
                    status.leader,
                    status.first_index,
                    status.last_index,
                    status.committed,
                    status.persisted,
                    status.applied
                );
                for peer in &status.peers {
                    let _ = write!(
                        out,
                        "\n  {} {:?} match {} next {}",
                        peer.id, peer.state, peer.matched, peer.next
                    );
                    out.push_str(if peer.learner { " learner" } else { "" });
                }
                out.push('\n');
            }
        }
        "messages" => {
            for message in &cluster.network {
                let _ = writeln!(out, "{}", describe(message));
            }
        }
        "data" => {
            for (id, node) in &cluster.nodes {
                let _ = writeln!(out, "{id} {}", node.disk.data.join(" "));
            }
        }
        "conf_state" => {
            for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
                let state = cluster.core(id).conf_state();
                let ids =
                    |ids: &[MemberId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",");
                let _ = writeln!(out, "{id} voters {} learners {}", ids(&state.voters), ids(&state.learners));
            }
        }
        "verbose" => cluster.verbose = at(0)? == "on",
        other => return Err(format!("no command {other:?}")),
    }
    Ok(())
}
