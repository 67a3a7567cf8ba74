//! Behaviours as readable transcripts: `tests/testscripts/*` hold commands and, under `---`, what came of them. `UPDATE=1` rewrites
//! the outputs for review.
//!
//! ```text
//! put k v [prev] [lease=n] [ignore-value] [ignore-lease]      del k [end] [prev]
//! get k [end] [rev=n] [limit=n] [order=asc|desc] [by=version|create|mod|value] [keys] [count]
//!             [min-mod=n] [max-mod=n] [min-create=n] [max-create=n]
//! txn [if c, c ..] then op; op .. [else op ..]                read-txn likewise, beside apply
//!     c: ver|create|mod|value|lease(k[..end]) =|!=|<|> x      op: put, del, get as above
//! grant id ttl    revoke id    checkpoint id=remaining ..    leases
//! compact n    step rows    reopen    quota bytes    raw hex    rows    hashkv [n]    status
//! alarm get|raise|clear member NOSPACE|CORRUPT|NONE
//! member add|add-learner id url ..    member promote|remove id    member update id url ..
//! publish id name url ..    version x    members
//! ```
//! In keys and ends `\0` is the zero byte, and `''` is empty.

mod common;

use std::fmt::Write;
use std::path::Path;

use api::error::EtcdError;
use api::etcdserverpb::compare::TargetUnion;
use api::etcdserverpb::*;
use api::mvccpb::KeyValue;
use api::raftpb::{ConfChange, ConfChangeType};
use bytes::Bytes;
use common::*;
use prost::Message;
use state_machine::membership::{LEARNERS_MAX_DEFAULT, Member, promote_context};
use state_machine::rows::RowKey;
use state_machine::store::{Store, Table};
use state_machine::{LeaseFacts, Options, Outcome};
use types::{EntryKind, LeaseId, MemberId, Revision, RowId};

fn text(word: &str) -> Bytes {
    Bytes::from(if word == "''" { String::new() } else { word.replace("\\0", "\0") })
}

fn show(bytes: &[u8]) -> String {
    if bytes.is_empty() { "''".to_owned() } else { bytes.escape_ascii().to_string() }
}

/// Words of one command: those without `=` in order, the others by name.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn plain(&self, at: usize) -> Option<&'a str> {
        self.0.iter().filter(|word| !word.contains('=') && !FLAGS.contains(word)).nth(at).copied()
    }
    fn has(&self, flag: &str) -> bool {
        assert!(FLAGS.contains(&flag));
        self.0.contains(&flag)
    }
    fn named(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
    fn number(&self, name: &str) -> i64 {
        self.named(name).map_or(0, |number| number.parse().expect("a number"))
    }
}

const FLAGS: &[&str] = &["prev", "ignore-value", "ignore-lease", "keys", "count"];

fn put(words: &Words<'_>) -> PutRequest {
    PutRequest {
        key: text(words.plain(1).unwrap_or("''")),
        value: text(words.plain(2).unwrap_or("''")),
        lease: words.number("lease"),
        prev_kv: words.has("prev"),
        ignore_value: words.has("ignore-value"),
        ignore_lease: words.has("ignore-lease"),
    }
}

fn del(words: &Words<'_>) -> DeleteRangeRequest {
    let (key, range_end) = (text(words.plain(1).expect("a key")), text(words.plain(2).unwrap_or("''")));
    DeleteRangeRequest { key, range_end, prev_kv: words.has("prev") }
}

fn get(words: &Words<'_>) -> RangeRequest {
    let place = |names: &[&str], word: Option<&str>| {
        word.map_or(0, |word| names.iter().position(|name| *name == word).expect("a known name") as i32)
    };
    RangeRequest {
        key: text(words.plain(1).expect("a key")),
        range_end: text(words.plain(2).unwrap_or("''")),
        limit: words.number("limit"),
        revision: words.number("rev"),
        sort_order: place(&["none", "asc", "desc"], words.named("order")),
        sort_target: place(&["key", "version", "create", "mod", "value"], words.named("by")),
        serializable: false,
        keys_only: words.has("keys"),
        count_only: words.has("count"),
        min_mod_revision: words.number("min-mod"),
        max_mod_revision: words.number("max-mod"),
        min_create_revision: words.number("min-create"),
        max_create_revision: words.number("max-create"),
    }
}

fn compare(condition: &str) -> Compare {
    let (target, rest) = condition.split_once('(').expect("target(key)");
    let (keys, rest) = rest.split_once(')').expect("target(key)");
    let (key, end) = keys.split_once("..").unwrap_or((keys, "''"));
    let mut rest = rest.split_whitespace();
    let (operator, operand) = (rest.next().expect("an operator"), rest.next().expect("an operand"));
    let number = || operand.parse().expect("a number");
    let (target, union) = match target {
        "ver" => (0, TargetUnion::Version(number())),
        "create" => (1, TargetUnion::CreateRevision(number())),
        "mod" => (2, TargetUnion::ModRevision(number())),
        "value" => (3, TargetUnion::Value(text(operand))),
        "lease" => (4, TargetUnion::Lease(number())),
        other => panic!("no target {other}"),
    };
    let result =
        ["=", ">", "<", "!="].iter().position(|known| *known == operator).expect("an operator") as i32;
    Compare { result, target, key: text(key), range_end: text(end), target_union: Some(union) }
}

fn ops(list: &str) -> Vec<RequestOp> {
    let op_of = |command: &str| {
        let words = Words(command.split_whitespace().collect());
        op(match words.0[0] {
            "put" => request_op::Request::RequestPut(put(&words)),
            "del" => request_op::Request::RequestDeleteRange(del(&words)),
            "get" => request_op::Request::RequestRange(get(&words)),
            other => panic!("no op {other}"),
        })
    };
    list.split(';').map(str::trim).filter(|command| !command.is_empty()).map(op_of).collect()
}

fn txn(line: &str) -> TxnRequest {
    let (conditions, branches) = line.split_once("then").expect("then");
    let (success, failure) = branches.split_once("else").unwrap_or((branches, ""));
    let conditions = conditions.trim().strip_prefix("if ").unwrap_or("");
    let compare = conditions.split(',').map(str::trim).filter(|c| !c.is_empty()).map(compare).collect();
    TxnRequest { compare, success: ops(success), failure: ops(failure) }
}

fn kv(out: &mut String, kv: &KeyValue) {
    let (key, value) = (show(&kv.key), show(&kv.value));
    write!(
        out,
        "\n  {key} = {value}  create={} mod={} ver={}",
        kv.create_revision, kv.mod_revision, kv.version
    )
    .unwrap();
    if kv.lease != 0 {
        write!(out, " lease={}", kv.lease).unwrap();
    }
}

fn header(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

fn range_text(response: &RangeResponse) -> String {
    let more = if response.more { ", more" } else { "" };
    let mut out = format!("@{} count {}{more}", header(&response.header), response.count);
    response.kvs.iter().for_each(|item| kv(&mut out, item));
    out
}

fn put_text(response: &PutResponse) -> String {
    let mut out = format!("@{} put", header(&response.header));
    response.prev_kv.iter().for_each(|item| kv(&mut out, item));
    out
}

fn delete_text(response: &DeleteRangeResponse) -> String {
    let mut out = format!("@{} deleted {}", header(&response.header), response.deleted);
    response.prev_kvs.iter().for_each(|item| kv(&mut out, item));
    out
}

fn txn_text(response: &TxnResponse) -> String {
    let branch = if response.succeeded { "then" } else { "else" };
    let mut out = format!("@{} {branch}", header(&response.header));
    for op in &response.responses {
        let part = match &op.response {
            Some(response_op::Response::ResponseRange(range)) => range_text(range),
            Some(response_op::Response::ResponsePut(put)) => put_text(put),
            Some(response_op::Response::ResponseDeleteRange(delete)) => delete_text(delete),
            other => format!("{other:?}"),
        };
        write!(out, "\n{}", part.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
            .unwrap();
    }
    out
}

fn outcome_text(outcome: Result<Outcome, EtcdError>) -> String {
    match outcome {
        Err(error) => format!("refused: {error}"),
        Ok(Outcome::Put(response)) => put_text(&response),
        Ok(Outcome::DeleteRange(response)) => delete_text(&response),
        Ok(Outcome::Txn(response)) => txn_text(&response),
        Ok(Outcome::Range(response)) => range_text(&response),
        Ok(Outcome::Compaction(response)) => format!("@{} compacted", header(&response.header)),
        Ok(Outcome::Alarm(response)) => {
            let name = |alarm: &AlarmMember| {
                format!("{:x} {}", alarm.member_id, AlarmType::try_from(alarm.alarm).unwrap().as_str_name())
            };
            format!("alarms: [{}]", response.alarms.iter().map(name).collect::<Vec<_>>().join(", "))
        }
        Ok(Outcome::ConfChange(members)) => members_text(&members),
        Ok(Outcome::LeaseGrant(response)) => {
            format!("@{} granted {} for {} s", header(&response.header), LeaseId(response.id), response.ttl)
        }
        Ok(Outcome::LeaseRevoke(response)) => format!("@{} revoked", header(&response.header)),
        Ok(Outcome::LeaseCheckpoint(response)) => format!("@{} checkpointed", header(&response.header)),
        Ok(Outcome::Nothing) => "applied".to_owned(),
    }
}

fn members_text(members: &[Member]) -> String {
    let line = |member: &Member| {
        let learner = if member.is_learner { " learner" } else { "" };
        let (name, peers, clients) = (&member.name, member.peer_urls.join(","), member.client_urls.join(","));
        format!("{} name={name:?} peers={peers} clients={clients}{learner}", member.id)
    };
    members.iter().map(line).collect::<Vec<_>>().join("\n")
}

struct Stage {
    bench: Bench,
}

impl Stage {
    fn run(&mut self, line: &str) -> String {
        let words = Words(line.split_whitespace().collect());
        let told = self.bench.sink.told.len();
        let mut out = self.command(line, &words);
        for notice in &self.bench.sink.told[told..] {
            match notice {
                Told::Outcome(..) => {}
                Told::SpaceExceeded(_) => out.push_str("\n  told: over quota"),
                Told::Lease(change) => write!(out, "\n  told: {change:?}").unwrap(),
                Told::ConfChange(_, change) => {
                    let changes = change.as_ref().map(|change| {
                        let kind = |kind: i32| ConfChangeType::try_from(kind).unwrap().as_str_name();
                        let single = |single: &api::raftpb::ConfChangeSingle| {
                            format!("{} {:x}", kind(single.r#type.unwrap()), single.node_id.unwrap())
                        };
                        change.changes.iter().map(single).collect::<Vec<_>>().join(", ")
                    });
                    write!(out, "\n  raft: {}", changes.as_deref().unwrap_or("nothing")).unwrap();
                }
                Told::Events(revision, events) => {
                    for event in events {
                        let item = event.kv.as_ref().unwrap();
                        let kind = event.r#type().as_str_name();
                        write!(
                            out,
                            "\n  event @{revision}: {kind} {} = {}",
                            show(&item.key),
                            show(&item.value)
                        )
                        .unwrap();
                    }
                }
            }
        }
        out
    }

    fn command(&mut self, line: &str, words: &Words<'_>) -> String {
        let bench = &mut self.bench;
        let request = match words.0[0] {
            "put" => InternalRaftRequest { put: Some(put(words)), ..Default::default() },
            "del" => InternalRaftRequest { delete_range: Some(del(words)), ..Default::default() },
            "txn" => InternalRaftRequest { txn: Some(txn(&line["txn".len()..])), ..Default::default() },
            "compact" => {
                let revision = words.plain(1).unwrap().parse().unwrap();
                let compaction = CompactionRequest { revision, physical: false };
                InternalRaftRequest { compaction: Some(compaction), ..Default::default() }
            }
            "grant" => {
                let number = |at: usize| words.0[at].parse().expect("a number");
                grant(number(1), number(2))
            }
            "revoke" => revoke(words.0[1].parse().expect("a number")),
            "checkpoint" => {
                let remainder = |word: &&str| {
                    let (id, remaining) = word.split_once('=').expect("id=remaining");
                    (id.parse().expect("a number"), remaining.parse().expect("a number"))
                };
                checkpoint(&words.0[1..].iter().map(remainder).collect::<Vec<_>>())
            }
            "leases" => return self.leases(),
            "alarm" => {
                let action =
                    ["get", "raise", "clear"].iter().position(|name| *name == words.0[1]).unwrap() as i32;
                let member_id = words.plain(2).map_or(0, |id| id.parse::<MemberId>().unwrap().0);
                let alarm = words.plain(3).map_or(0, |name| AlarmType::from_str_name(name).unwrap() as i32);
                InternalRaftRequest {
                    alarm: Some(AlarmRequest { action, member_id, alarm }),
                    ..Default::default()
                }
            }
            "version" => InternalRaftRequest {
                cluster_version_set: Some(api::membershippb::ClusterVersionSetRequest {
                    ver: words.0[1].to_owned(),
                }),
                ..Default::default()
            },
            "publish" => {
                let attributes = api::membershippb::Attributes {
                    name: words.0[2].to_owned(),
                    client_urls: words.0[3..].iter().map(|url| (*url).to_owned()).collect(),
                };
                let set = api::membershippb::ClusterMemberAttrSetRequest {
                    member_id: words.0[1].parse::<MemberId>().unwrap().0,
                    member_attributes: Some(attributes),
                };
                InternalRaftRequest { cluster_member_attr_set: Some(set), ..Default::default() }
            }
            "raw" => {
                let hex = words.plain(1).unwrap_or("");
                let data: Vec<u8> = (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect();
                return outcome_text(bench.apply_bytes(EntryKind::Normal, data));
            }
            "get" => {
                return match bench.reader.range(&get(words)) {
                    Ok(response) => range_text(&response),
                    Err(error) => format!("refused: {error}"),
                };
            }
            "read-txn" => {
                return match bench.reader.txn_read_only(&txn(&line["read-txn".len()..])) {
                    Ok(response) => txn_text(&response),
                    Err(error) => format!("refused: {error}"),
                };
            }
            "step" => return format!("{:?}", bench.machine.compact_step(words.0[1].parse().unwrap())),
            "reopen" => {
                bench.reopen(None);
                return self.status();
            }
            "quota" => {
                let quota_backend_bytes = words.0[1].parse().unwrap();
                bench.options = Options { quota_backend_bytes, ..Options::default() };
                bench.reopen(None);
                return format!("quota {quota_backend_bytes}");
            }
            "rows" => return self.rows(),
            "hashkv" => {
                let revision = words.plain(1).map_or(0, |number| number.parse().unwrap());
                return match bench.reader.hash_kv(revision) {
                    Ok(hash) => format!(
                        "{:08x} at {} compacted {}",
                        hash.hash, hash.hash_revision, hash.compact_revision
                    ),
                    Err(error) => format!("refused: {error}"),
                };
            }
            "status" => return self.status(),
            "member" => return self.member(words),
            "members" => return members_text(&bench.reader.members()),
            other => panic!("no command {other}"),
        };
        outcome_text(bench.request(request))
    }

    fn status(&self) -> String {
        let reader = &self.bench.reader;
        let (revision, compacted, applied) =
            (reader.revision(), reader.compact_revision(), reader.applied().index);
        let state = reader.conf_state();
        let ids = |ids: &[MemberId]| ids.iter().map(MemberId::to_string).collect::<Vec<_>>().join(",");
        let (voters, learners) = (ids(&state.voters), ids(&state.learners));
        let removed = ids(&reader.removed_members());
        format!(
            "revision {revision} compacted {compacted} applied {applied} voters [{voters}] learners [{learners}] removed [{removed}]"
        )
    }

    /// Every lease as readers see it, and the bytes of its row.
    fn leases(&self) -> String {
        let rows = self.bench.machine.store().table(Table::Lease).unwrap();
        let line = |lease: LeaseFacts| {
            let row = rows.iter().find(|(key, _)| key.as_ref() == lease.id.0.to_be_bytes());
            let row: String = row.unwrap().1.iter().map(|byte| format!("{byte:02x}")).collect();
            let keys = self.bench.lease_keys(lease.id.0).unwrap().join(",");
            let (ttl, remaining) = (lease.granted_ttl, lease.remaining_ttl);
            format!("{} ttl {ttl} remaining {remaining} keys [{keys}] row {row}", lease.id)
        };
        let leases = self.bench.reader.leases();
        assert_eq!((leases.len(), self.bench.reader.lease_count()), (rows.len(), rows.len()));
        leases.into_iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn rows(&self) -> String {
        let mut out = Vec::new();
        let (from, to) = (RowId::default(), RowId { main: Revision(i64::MAX), sub: 0 });
        let each = &mut |id: RowId, row: state_machine::store::StoredRow| {
            let key = RowKey::new(id, row.tombstone);
            let parsed = KeyValue::decode(row.value).unwrap();
            let name = if row.tombstone { "tombstone" } else { "version" };
            out.push(format!("{id} {name} of {} ({} bytes of key)", show(&parsed.key), key.as_bytes().len()));
            std::ops::ControlFlow::Continue(())
        };
        self.bench.machine.store().scan(from, to, each).unwrap();
        out.join("\n")
    }

    fn member(&mut self, words: &Words<'_>) -> String {
        let id: MemberId = words.0[2].parse().unwrap();
        let peer_urls: Vec<String> = words.0[3..].iter().map(|url| (*url).to_owned()).collect();
        let is_learner = words.0[1] == "add-learner";
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        let (kind, context) = match words.0[1] {
            "add" => (ConfChangeType::ConfChangeAddNode, member.add_context(LEARNERS_MAX_DEFAULT)),
            "add-learner" => {
                (ConfChangeType::ConfChangeAddLearnerNode, member.add_context(LEARNERS_MAX_DEFAULT))
            }
            "promote" => (ConfChangeType::ConfChangeAddNode, promote_context(id)),
            "remove" => (ConfChangeType::ConfChangeRemoveNode, Vec::new()),
            "update" => (ConfChangeType::ConfChangeUpdateNode, member.update_context()),
            other => panic!("no member command {other}"),
        };
        let change = ConfChange {
            id: Some(5),
            r#type: Some(kind as i32),
            node_id: Some(id.0),
            context: Some(context.into()),
        };
        outcome_text(self.bench.apply_bytes(EntryKind::ConfChange, change.encode_to_vec()))
    }
}

/// Commands stand before `---`, their output after it up to an empty line; lines that begin with `#` are kept.
fn play(script: &str) -> String {
    let mut stage = Stage { bench: Bench::new() };
    let mut out = String::new();
    for block in script.trim_end().split("\n\n") {
        let (commands, _) = block.split_once("\n---").unwrap_or((block, ""));
        let mut output = Vec::new();
        let lines: Vec<&str> =
            commands.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        for line in &lines {
            output.push(stage.run(line));
        }
        out.push_str(commands);
        if !lines.is_empty() {
            out.push_str("\n---\n");
            out.push_str(&output.join("\n"));
        }
        out.push_str("\n\n");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

#[test]
fn scripts_end_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testscripts");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in paths {
        let script = std::fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if played == script {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, played).unwrap();
        } else {
            eprintln!("{}\n--- is ---\n{played}", path.display());
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "outputs differ (UPDATE=1 rewrites them for review): {wrong:?}");
}
