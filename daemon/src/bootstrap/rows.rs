//! One table for every row of the start: what the disk, the settings and the peers say, and what becomes of the start. The names of rows are
//! those of the design: A for first starts, B for starts with data, F, PZ, FN and SR for whole clusters that went wrong.

use std::{collections::BTreeMap, time::Duration};

use ::identity::{
    Answer, Boot, GenesisConfig, Hello, Home, Known, Life, LogEnd, Named, Question, Record, Restored,
    Session, Standing, Unique, Verdict, Watermark, Witness, judge::judge,
};
use types::{ClusterId, MemberId};

use super::{
    again,
    attend::{self, Founder, Heard, Host, Reply, Step},
    genesis::Genesis,
    verdict::Me,
};
use crate::{config::cluster, refusal::Refusal};

const TOKEN: &str = "etcd-cluster";
const THREE: &str = "n1=http://h1:1,n2=http://h2:1,n3=http://h3:1";
const LIFE: Unique = unique(1);
const OTHER_LIFE: Unique = unique(2);

const fn unique(number: u8) -> Unique {
    Unique::from_bytes([number; 16])
}

fn genesis(initial: &str, token: &str) -> Genesis {
    Genesis::new(&cluster::parse(initial).unwrap(), token).unwrap()
}

fn id(name: &str) -> MemberId {
    genesis(THREE, TOKEN).find(name).unwrap().id
}

fn home(name: &str) -> Home {
    Home {
        host: format!("host-{name}"),
        path: format!("/var/lib/{name}"),
        pid: 7,
        started: "2026-11-22T10:00:00Z".into(),
        seat: None,
    }
}

/// Member `name` of the three, with directory and boot made of `mark`.
fn hello(name: &str, life: Life, mark: u8) -> Hello {
    Hello {
        cluster_id: genesis(THREE, TOKEN).cluster,
        member: id(name),
        name: name.into(),
        life,
        dir: unique(mark),
        boot: Boot { seq: 3, nonce: unique(mark + 100), previous: Some(unique(mark + 99)) },
        earlier: Vec::new(),
        log: LogEnd { last_index: 70, last_term: 4, term: 5, commit: 70 },
        home: home(name),
        version: "0.1.0".into(),
    }
}

fn record(hello: &Hello) -> Record {
    Record { dir: hello.dir, boot: hello.boot, home: hello.home.clone(), version: hello.version.clone() }
}

fn members() -> Vec<Named> {
    let named = |first: &super::genesis::FirstMember| Named {
        id: first.id,
        name: first.name.clone(),
        peer_urls: first.peer_urls.clone(),
        client_urls: vec![format!("http://{}:2379", first.name)],
        is_learner: false,
    };
    genesis(THREE, TOKEN).members.iter().map(named).collect()
}

/// What a member of the running cluster knows of `of`: it was last admitted with directory 3 (for n3), boot 3, and holds 70 entries.
fn knows(by: &str, of: &Hello, leads: bool) -> Known {
    let admitted = hello(&of.name, Life::Born(LIFE), 3);
    Known {
        cluster_uuid: Some(LIFE),
        parent_uuid: None,
        restored: None,
        is_founding: false,
        standing: Standing::Member { is_learner: false, is_new: false },
        record: Some(record(&admitted)),
        attendee: None,
        watermark: Some(Watermark { last_index: 70, term: 5 }),
        session: None,
        witness: Witness { member: id(by), leads, term: 5, commit: 80 },
    }
}

/// The answer of running member `by` to `asker`, with what it knows changed.
fn runs(by: &str, asker: &Hello, leads: bool, change: &dyn Fn(&mut Known)) -> Answer {
    let mut known = knows(by, asker, leads);
    change(&mut known);
    let life = known.cluster_uuid.map_or(Life::Formed, Life::Born);
    let verdict = judge(asker, &known);
    let mark = if by == "n1" { 11 } else { 12 };
    Answer { hello: hello(by, life, mark), known, verdict, config: None, members: members() }
}

fn reply(name: &str, heard: Heard) -> Reply {
    Reply { member: id(name), name: name.into(), url: format!("http://{}:1", name.replace('n', "h")), heard }
}

fn answers(name: &str, answer: Answer) -> Reply {
    reply(name, Heard::Answer(Box::new(answer)))
}

fn silent(name: &str) -> Reply {
    reply(name, Heard::Silent("connection refused".into()))
}

// ---- First starts: n3 founds the cluster of three. ----

fn newcomer() -> Hello {
    Hello {
        log: LogEnd::default(),
        boot: Boot { seq: 1, nonce: unique(150), previous: None },
        ..hello("n3", Life::Unborn, 50)
    }
}

/// An unborn n1 or n2, started with these settings.
fn unborn(name: &str, initial: &str, token: &str) -> Answer {
    let genesis = genesis(initial, token);
    let mark = if name == "n1" { 11 } else { 12 };
    let mut own = hello(name, Life::Unborn, mark);
    own.cluster_id = genesis.cluster;
    if let Some(first) = genesis.find(name) {
        own.member = first.id;
    }
    let (config, met) = (genesis.config(token), BTreeMap::new());
    let host = Host { hello: &own, config: &config, members: &genesis.members, met: &met, parent: None };
    host.answer(&Question { hello: newcomer(), config: None })
}

fn agrees(name: &str) -> Reply {
    answers(name, unborn(name, THREE, TOKEN))
}

struct First {
    row: &'static str,
    replies: Vec<Reply>,
    everybody: bool,
    settled: bool,
    expected: &'static str,
    says: &'static [&'static str],
}

fn first(
    row: &'static str,
    replies: Vec<Reply>,
    expected: &'static str,
    says: &'static [&'static str],
) -> First {
    First { row, replies, everybody: true, settled: false, expected, says }
}

fn outcome(step: Step) -> (&'static str, String) {
    match step {
        Step::Form(attendees) => ("form", format!("{} attend", attendees.len())),
        Step::Late(late) => ("late", late.cluster_uuid.to_string()),
        Step::Wait(waiting) => ("wait", waiting.missing.join("; ")),
        Step::AskAgain(refusal) => ("again", refusal.text()),
        Step::Refuse(refusal) => (refusal.id.name(), refusal.text()),
    }
}

fn founded(case: &First, contradicted: Option<&(Hello, GenesisConfig)>) -> (&'static str, String) {
    let own = newcomer();
    let genesis = genesis(THREE, TOKEN);
    let config = genesis.config(TOKEN);
    let others: Vec<_> = genesis.members.iter().filter(|member| member.id != own.member).cloned().collect();
    let me = Me {
        hello: &own,
        peer_urls: &["http://h3:1".to_owned()],
        method: "static",
        parent: None,
        restored: None,
        exists: &|path| path == "/var/lib/here",
    };
    let founder = Founder {
        me,
        config: &config,
        others: &others,
        everybody: case.everybody,
        contradicted,
        settled: case.settled,
    };
    outcome(attend::decide(&founder, &case.replies))
}

#[test]
fn every_row_of_a_first_start() {
    let own = newcomer();
    let born = |by, change: &dyn Fn(&mut Known)| answers(by, runs(by, &own, by == "n1", change));
    let never_seen = |known: &mut Known| (known.record, known.watermark) = (None, None);
    let majority = |case: First| First { everybody: false, ..case };
    let changed = |by, change: &dyn Fn(&mut Answer)| {
        let mut answer = runs(by, &own, false, &|_| ());
        change(&mut answer);
        answers(by, answer)
    };
    let removed_and_then = |successor: &str| {
        let removed = Standing::Removed { index: 9, term: 2, asked_through: None };
        let mut answer = runs("n1", &own, true, &|known| known.standing = removed.clone());
        let place = answer.members.iter_mut().find(|named| named.name == "n3").unwrap();
        (place.id, place.name) = (MemberId(0xbf3a), successor.to_owned());
        answers("n1", answer)
    };
    let other_cluster = |change: &dyn Fn(&mut Answer)| {
        changed("n1", &|answer| {
            answer.hello.cluster_id = ClusterId(0xc0);
            change(answer);
        })
    };
    let formed = |by: &str, attendee: Option<Unique>| {
        let mut answer = runs(by, &own, false, &|known| {
            (known.record, known.watermark, known.cluster_uuid) = (None, None, None);
            known.attendee = attendee;
        });
        answer.config = Some(genesis(THREE, TOKEN).config(TOKEN));
        answers(by, answer)
    };
    let spelled = "n1=http://127.0.0.1:1,n2=http://h2:1,n3=http://h3:1";
    let cases = vec![
        first("A1 everybody is there and agrees", vec![agrees("n1"), agrees("n2")], "form", &["2 attend"]),
        first(
            "A1 one is missing",
            vec![agrees("n1"), silent("n2")],
            "wait",
            &["n2 (http://h2:1): connection refused"],
        ),
        majority(first(
            "A1 a majority, asked for as such",
            vec![agrees("n1"), silent("n2")],
            "form",
            &["1 attend"],
        )),
        majority(first("A1 no majority", vec![silent("n1"), silent("n2")], "wait", &["n1 (", "n2 ("])),
        first(
            "A1 one has gone ahead",
            vec![formed("n1", Some(own.dir)), agrees("n2")],
            "form",
            &["2 attend"],
        ),
        first(
            "A4 another member set",
            vec![
                answers("n1", unborn("n1", "n1=http://h1:1,n2=http://h2:1,n3=http://h3:9", TOKEN)),
                agrees("n2"),
            ],
            "GENESIS_MISMATCH",
            &["n3: n1 lists http://h3:9, you list http://h3:1", "--initial-cluster=n1=http://h1:1,"],
        ),
        first(
            "A4 a member more",
            vec![answers("n1", unborn("n1", &format!("{THREE},n4=http://h4:1"), TOKEN))],
            "GENESIS_MISMATCH",
            &["n4: n1 lists http://h4:1, you do not"],
        ),
        majority(first(
            "A4 also when a majority would agree",
            vec![agrees("n1"), answers("n2", unborn("n2", "n2=http://h2:1,n3=http://h3:1", TOKEN))],
            "GENESIS_MISMATCH",
            &["n1: n2 does not list it, you list http://h1:1"],
        )),
        first(
            "A5 one address, spelled differently",
            vec![answers("n2", unborn("n2", spelled, TOKEN))],
            "GENESIS_MISMATCH",
            &[
                "n2 lists http://127.0.0.1:1, you list http://h1:1 (the same address",
                "ids are made from the spelling",
            ],
        ),
        first(
            "A6 another token",
            vec![answers("n1", unborn("n1", THREE, "t2"))],
            "GENESIS_MISMATCH",
            &["token: n1 has t2, you have etcd-cluster", "--initial-cluster-token"],
        ),
        first(
            "A7 the cluster knows this member from another directory",
            vec![born("n1", &|_| ()), born("n2", &|_| ())],
            "LOST_DATA",
            &[
                "directory 03030303030303030303030303030303, boot #3 (/var/lib/n3 on host-n3)",
                "index >= 70 in term 5",
                "cairnctl --endpoints=http://n",
                "member remove eb7effb525eaf2d7",
                "member add n3 --peer-urls=http://h3:1",
                "--initial-cluster-state=existing --initial-cluster=n1=http://h1:1,n2=http://h2:1,n3=http://h3:1",
            ],
        ),
        first(
            "A7 and that directory is here",
            vec![born("n1", &|known| {
                let record = known.record.as_mut().unwrap();
                record.home.path = "/var/lib/here".into();
            })],
            "LOST_DATA",
            &["that directory is here: restart with --data-dir=/var/lib/here"],
        ),
        first(
            "A7 it attended the founding with another directory",
            vec![formed("n1", Some(unique(77)))],
            "LOST_DATA",
            &["directory 4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d"],
        ),
        first("A8 PZ the peers are frozen", vec![silent("n1"), silent("n2")], "wait", &["n1 (", "n2 ("]),
        majority(first("A8 E one of two that count is down", vec![silent("n1"), silent("n2")], "wait", &[])),
        first(
            "A9 the cluster runs, and the token is another",
            vec![other_cluster(&|_| ())],
            "CLUSTER_RUNS",
            &["cluster c0", "(n3) with http://h3:1", "the token and names it was founded with"],
        ),
        first(
            "A9 this member is no part of it at all",
            vec![other_cluster(&|answer| answer.members.retain(|named| named.name != "n3"))],
            "CLUSTER_RUNS",
            &["to join it: cairnctl", "member add n3 --peer-urls=http://h3:1"],
        ),
        first(
            "A9 another first member founded a cluster of itself alone",
            vec![other_cluster(&|answer| {
                let own = answer.hello.member;
                answer.members.retain(|named| named.name == "n1");
                answer.members[0].id = own;
            })],
            "CLUSTER_RUNS",
            &[
                "to join it: cairnctl",
                "if n1 was to be one of these first members and founded that cluster alone",
                "/var/tmp/n1.alone",
            ],
        ),
        first(
            "A16 added to the running cluster, started with new",
            vec![other_cluster(&|answer| {
                let own = answer.members.iter_mut().find(|named| named.name == "n3").unwrap();
                (own.id, own.name) = (MemberId(0xbf3a), String::new());
            })],
            "PENDING_MEMBER",
            &["(bf3a)", "--initial-cluster-state=existing --initial-cluster=n1=http://h1:1"],
        ),
        first(
            "A16 under the id that it would have had",
            vec![born("n1", &|known| {
                never_seen(known);
                known.standing = Standing::Member { is_learner: true, is_new: true };
            })],
            "PENDING_MEMBER",
            &["--initial-cluster-state=existing"],
        ),
        first(
            "A16 removed before",
            vec![born("n1", &|known| {
                known.standing =
                    Standing::Removed { index: 9, term: 2, asked_through: Some("n2 (ab)".into()) };
            })],
            "REMOVED",
            &["log entry 9 of term 2", "as asked of member n2 (ab)"],
        ),
        first(
            "A16 removed before, and added anew",
            vec![removed_and_then("")],
            "PENDING_MEMBER",
            &["(bf3a)", "--initial-cluster-state=existing --initial-cluster=n1=http://h1:1"],
        ),
        first(
            "A16 removed before, and replaced by another directory",
            vec![removed_and_then("n3")],
            "REMOVED",
            &[
                "member bf3a (n3)",
                "member remove bf3a, then",
                "1. if the directory of member bf3a still exists",
            ],
        ),
        first(
            "A19 two members of one name",
            vec![agrees("n1"), {
                let mut twin = unborn("n1", THREE, TOKEN);
                twin.hello.dir = unique(99);
                answers("n1", twin)
            }],
            "ADVERTISE_MISMATCH",
            &["different directories answer"],
        ),
        first(
            "a copied machine",
            vec![{
                let mut copy = unborn("n1", THREE, TOKEN);
                copy.hello.dir = own.dir;
                answers("n1", copy)
            }],
            "DUPLICATE_INSTANCE",
            &["a copy of that of n1"],
        ),
        first(
            "a URL that leads back here",
            vec![{
                let mut mirror = unborn("n1", THREE, TOKEN);
                mirror.hello = own.clone();
                answers("n1", mirror)
            }],
            "wait",
            &["leads back to this member itself"],
        ),
        first(
            "a URL that leads to another member",
            vec![answers("n1", unborn("n2", THREE, TOKEN)), agrees("n2")],
            "wait",
            &["answers as n2"],
        ),
        first(
            "etcd at a member's address",
            vec![reply("n1", Heard::Etcd("3.5.30".into())), agrees("n2")],
            "wait",
            &["is etcd 3.5.30, not cairn"],
        ),
        first(
            "late, and never part of it",
            vec![born("n1", &never_seen), born("n2", &never_seen)],
            "late",
            &["01010101"],
        ),
        first(
            "late, and one has lost track of time",
            vec![
                born("n1", &never_seen),
                born("n2", &|known| {
                    never_seen(known);
                    known.standing = Standing::Stranger;
                }),
            ],
            "again",
            &["NOT_A_MEMBER"],
        ),
        First {
            settled: true,
            ..first(
                "no member of a cluster of the same id",
                vec![born("n1", &|known| {
                    never_seen(known);
                    known.standing = Standing::Stranger;
                })],
                "NOT_A_MEMBER",
                &["member add n3 --peer-urls=http://h3:1"],
            )
        },
        first(
            "admitted with this very directory, which is empty now",
            vec![born("n1", &|known| {
                known.record.as_mut().unwrap().dir = newcomer().dir;
                known.record.as_mut().unwrap().boot = newcomer().boot;
                known.watermark = None;
            })],
            "LOST_DATA",
            &[],
        ),
        first(
            "F two wiped members, the third has the data",
            vec![agrees("n1"), born("n2", &|_| ())],
            "LOST_DATA",
            &["member remove"],
        ),
    ];
    for case in cases {
        let (got, text) = founded(&case, None);
        assert_eq!(got, case.expected, "{}: {text}", case.row);
        for words in case.says {
            assert!(text.contains(words), "{}: {words:?} is not in {text}", case.row);
        }
    }
}

/// B16, SR: members that were restored one by one meet before the first of them votes.
#[test]
fn restored_members_found_a_cluster_only_with_the_same_backup() {
    let backup =
        |sha256: &str, revision| Restored { sha256: sha256.repeat(32), revision, is_compacted: true };
    let (one, bumped, other) = (backup("ab", 91), backup("ab", 92), backup("cd", 91));
    let own = Hello { life: Life::Formed, ..newcomer() };
    let from = |name: &str, restored: Option<&Restored>| {
        let mut answer = unborn(name, THREE, TOKEN);
        answer.hello.life = if restored.is_some() { Life::Formed } else { Life::Unborn };
        answer.known.restored = restored.cloned();
        answer.config.as_mut().unwrap().restored = restored.cloned();
        answers(name, answer)
    };
    let reborn = |name: &str, restored: Option<&Restored>| {
        let mut answer = runs(name, &own, true, &|known| {
            (known.cluster_uuid, known.parent_uuid) = (Some(OTHER_LIFE), Some(LIFE));
            (known.record, known.watermark) = (None, None);
        });
        answer.known.restored = restored.cloned();
        answers(name, answer)
    };
    let old_life = |name: &str| answers(name, runs(name, &own, true, &|_| ()));
    let cases = [
        ("all from one", [from("n1", Some(&one)), from("n2", Some(&one))], "form", "2 attend"),
        ("one is missing", [from("n1", Some(&one)), silent("n2")], "wait", "n2 ("),
        (
            "another backup",
            [from("n1", Some(&one)), from("n2", Some(&other))],
            "GENESIS_MISMATCH",
            "n2 begins at revision 91, history before it compacted out of the backup with SHA-256 cdcdcdcdcdcdcdcd",
        ),
        ("other flags", [from("n1", Some(&bumped)), silent("n2")], "GENESIS_MISMATCH", "at revision 92"),
        ("one was only wiped", [from("n1", None), silent("n2")], "GENESIS_MISMATCH", "begins with nothing"),
        ("late, from the same", [reborn("n1", Some(&one)), silent("n2")], "late", "0202"),
        (
            "late, from another",
            [reborn("n1", Some(&other)), silent("n2")],
            "RESTORED_ELSEWHERE",
            "restore it from the same file",
        ),
        (
            "late to a cluster that was not restored",
            [reborn("n1", None), silent("n2")],
            "RESTORED_ELSEWHERE",
            "began with nothing",
        ),
        ("the old life runs", [old_life("n1"), silent("n2")], "RESTORED_ELSEWHERE", "made by restore"),
    ];
    let genesis = genesis(THREE, TOKEN);
    let config = GenesisConfig { restored: Some(one.clone()), ..genesis.config(TOKEN) };
    let others: Vec<_> = genesis.members.iter().filter(|member| member.id != own.member).cloned().collect();
    let me = Me {
        hello: &own,
        peer_urls: &["http://h3:1".to_owned()],
        method: "restore",
        parent: Some(LIFE),
        restored: Some(&one),
        exists: &|_| false,
    };
    let founder =
        Founder { me, config: &config, others: &others, everybody: true, contradicted: None, settled: false };
    for (row, replies, expected, says) in cases {
        let (got, text) = outcome(attend::decide(&founder, &replies));
        assert_eq!(got, expected, "{row}: {text}");
        assert!(text.contains(says), "{row}: {says:?} is not in {text}");
    }
    // Who begins with nothing finds a restored cluster, born or not.
    let wiped = first("", vec![reborn("n1", Some(&one)), silent("n2")], "", &[]);
    assert_eq!(founded(&wiped, None).0, "RESTORED_ELSEWHERE");
    let wiped = first("", vec![from("n1", Some(&one)), silent("n2")], "", &[]);
    assert_eq!(founded(&wiped, None).0, "GENESIS_MISMATCH");
    // What its lobby answers: a member of the life that was backed up is told that this one left it, and who begins otherwise is heard.
    let met = BTreeMap::new();
    let host =
        Host { hello: &own, config: &config, members: &genesis.members, met: &met, parent: Some(LIFE) };
    let old = Question { hello: hello("n1", Life::Born(LIFE), 11), config: None };
    assert!(matches!(
        host.answer(&old).verdict,
        Verdict::OtherLife { ours: None, came_from_yours: true, .. }
    ));
    let asks = |restored: &Restored| Question {
        hello: Hello { life: Life::Formed, ..hello("n1", Life::Formed, 11) },
        config: Some(GenesisConfig { restored: Some(restored.clone()), ..config.clone() }),
    };
    assert!(host.is_contradicted_by(&asks(&other)) && !host.is_contradicted_by(&asks(&one)));
    assert!(host.is_counted_by(&asks(&one)) && !host.is_counted_by(&asks(&other)));
    // Formed before the backup was restored, and never born: nothing but this tells it apart.
    let formed = Hello { life: Life::Formed, ..returning() };
    let case = |replies: Vec<Reply>| Back {
        row: "",
        own: formed.clone(),
        replies,
        waited: again::PATIENCE,
        method: "static",
        expected: "",
        says: &[],
    };
    let both = vec![reborn("n1", Some(&one)), reborn("n2", Some(&one))];
    assert_eq!(came_back(&case(both)).0, "RESTORED_ELSEWHERE");
}

#[test]
fn who_is_asked_with_other_settings_refuses_as_who_asks() {
    let asker = unborn("n1", THREE, "t2");
    let case = first("", vec![silent("n1"), silent("n2")], "", &[]);
    let (got, text) = founded(&case, Some(&(asker.hello, asker.config.unwrap())));
    assert_eq!(got, "GENESIS_MISMATCH", "{text}");
    assert!(text.contains("asked by n1"), "{text}");
}

#[test]
fn the_lobby_knows_its_guests() {
    let genesis = genesis(THREE, TOKEN);
    let (own, config) = (newcomer(), genesis.config(TOKEN));
    let n1 = hello("n1", Life::Unborn, 11);
    let met = BTreeMap::from([(
        n1.member,
        Session { dir: n1.dir, boot: n1.boot, home: n1.home.clone(), is_quiet: false },
    )]);
    let host = Host { hello: &own, config: &config, members: &genesis.members, met: &met, parent: None };
    let asked = |hello: &Hello, config: &GenesisConfig| Question {
        hello: hello.clone(),
        config: Some(config.clone()),
    };
    let verdict = |hello: &Hello| host.answer(&asked(hello, &config)).verdict.name();
    assert_eq!(verdict(&n1), "welcome");
    assert_eq!(
        verdict(&hello("n1", Life::Unborn, 99)),
        "duplicate",
        "n1 answers elsewhere with another directory"
    );
    assert_eq!(
        verdict(&hello("n3", Life::Unborn, 99)),
        "duplicate",
        "somebody with this member's name and URLs"
    );
    assert_eq!(
        verdict(&hello("n2", Life::Born(LIFE), 12)),
        "welcome",
        "nothing is known against who has data"
    );
    let other = self::genesis(THREE, "t2").config("t2");
    let stranger = Hello { member: MemberId(1), name: "x".into(), ..n1.clone() };
    assert_eq!(verdict(&stranger), "stranger");
    assert!(host.is_contradicted_by(&asked(&n1, &other)));
    assert!(!host.is_contradicted_by(&asked(&n1, &config)));
    assert!(
        !host.is_contradicted_by(&asked(&stranger, &other)),
        "somebody else's settings are not ours to judge"
    );
    assert!(host.is_counted_by(&asked(&n1, &config)) && !host.is_counted_by(&asked(&n1, &other)));
}

// ---- Starts with data: n3 comes back. ----

fn returning() -> Hello {
    let mut own = hello("n3", Life::Born(LIFE), 3);
    own.boot = Boot { seq: 4, nonce: unique(200), previous: Some(unique(103)) };
    own
}

struct Back {
    row: &'static str,
    own: Hello,
    replies: Vec<Reply>,
    waited: Duration,
    method: &'static str,
    expected: &'static str,
    says: &'static [&'static str],
}

fn came_back(case: &Back) -> (&'static str, String) {
    came_back_among(&["n1", "n2", "n3"], case)
}

fn came_back_among(voters: &[&str], case: &Back) -> (&'static str, String) {
    let me = Me {
        hello: &case.own,
        peer_urls: &["http://h3:1".to_owned()],
        method: case.method,
        parent: (case.method == "restore").then_some(LIFE),
        restored: None,
        exists: &|_| false,
    };
    let voters: Vec<MemberId> = voters.iter().map(|name| id(name)).collect();
    match again::decide(&me, &voters, &case.replies, case.waited) {
        again::Step::Start(None) => ("start", String::new()),
        again::Step::Start(Some(doubted)) => ("start", Refusal::text(&doubted)),
        again::Step::StartAlone(stale) => ("alone", stale.join(" ")),
        again::Step::AskAgain(refusal) => ("again", refusal.text()),
        again::Step::Refuse(refusal, _) => (refusal.id.name(), refusal.text()),
    }
}

fn runs_elsewhere(is_quiet: bool) -> Session {
    Session { dir: unique(3), boot: hello("n3", Life::Unborn, 3).boot, home: home("n3"), is_quiet }
}

#[test]
fn every_row_of_a_start_with_data() {
    let at_once = Duration::ZERO;
    let (later, much_later, at_last) = (again::PATIENCE, again::TWIN_PATIENCE, again::QUIET_TWIN_PATIENCE);
    let back = |row, own: &Hello, by: &dyn Fn(&Hello) -> Vec<Reply>, waited, expected, says| Back {
        row,
        own: own.clone(),
        replies: by(own),
        waited,
        method: "static",
        expected,
        says,
    };
    let both = |change: &'static (dyn Fn(&mut Known) + 'static)| {
        move |own: &Hello| {
            vec![answers("n1", runs("n1", own, true, change)), answers("n2", runs("n2", own, false, change))]
        }
    };
    let leader = |change: &'static (dyn Fn(&mut Known) + 'static)| {
        move |own: &Hello| vec![answers("n1", runs("n1", own, true, change)), silent("n2")]
    };
    let follower = |change: &'static (dyn Fn(&mut Known) + 'static)| {
        move |own: &Hello| vec![silent("n1"), answers("n2", runs("n2", own, false, change))]
    };
    let as_it_is: &'static (dyn Fn(&mut Known) + 'static) = &|_| ();
    let whole = returning();
    let with = |change: &dyn Fn(&mut Hello)| {
        let mut own = returning();
        change(&mut own);
        own
    };
    let older = with(&|own| {
        own.boot = Boot { seq: 3, nonce: unique(200), previous: Some(unique(101)) };
        own.log.last_index = 44;
    });
    let shorter = with(&|own| own.log.last_index = 44);
    let other_dir = with(&|own| own.dir = unique(88));
    let removed: &'static (dyn Fn(&mut Known) + 'static) =
        &|known| known.standing = Standing::Removed { index: 12, term: 3, asked_through: None };
    let stranger: &'static (dyn Fn(&mut Known) + 'static) = &|known| known.standing = Standing::Stranger;
    let twin: &'static (dyn Fn(&mut Known) + 'static) = &|known| known.session = Some(runs_elsewhere(false));
    let quiet: &'static (dyn Fn(&mut Known) + 'static) = &|known| known.session = Some(runs_elsewhere(true));
    let reborn: &'static (dyn Fn(&mut Known) + 'static) = &|known| {
        known.cluster_uuid = Some(OTHER_LIFE);
        known.record = None;
    };
    let restored: &'static (dyn Fn(&mut Known) + 'static) = &|known| {
        known.cluster_uuid = Some(OTHER_LIFE);
        known.parent_uuid = Some(LIFE);
        known.record = None;
    };
    let restored_unled: &'static (dyn Fn(&mut Known) + 'static) = &|known| {
        known.cluster_uuid = None;
        known.parent_uuid = Some(LIFE);
        known.record = None;
    };
    let forced_and_healthy = |own: &Hello| {
        vec![answers("n1", runs("n1", own, true, restored)), answers("n2", runs("n2", own, false, as_it_is))]
    };
    let foreign = |own: &Hello| {
        ["n1", "n2"]
            .map(|by| {
                let mut answer = runs(by, own, by == "n1", stranger);
                answer.hello.cluster_id = ClusterId(0xc0);
                answers(by, answer)
            })
            .to_vec()
    };
    let one_foreign = |own: &Hello| vec![foreign(own).remove(0), silent("n2")];
    let foreign_by_settings = |own: &Hello| {
        let unknown = |reply: Reply| Reply { member: MemberId::NONE, ..reply };
        foreign(own).into_iter().map(unknown).chain([silent("n1"), silent("n2")]).collect()
    };
    let nobody = |_: &Hello| vec![silent("n1"), silent("n2")];
    let etcd = |own: &Hello| {
        vec![reply("n1", Heard::Etcd("3.5.30".into())), answers("n2", runs("n2", own, false, as_it_is))]
    };
    let mut cases = vec![
        back("B1 all is well", &whole, &both(as_it_is), at_once, "start", &[]),
        back("B1 the cold start of a whole cluster", &whole, &nobody, at_once, "start", &[]),
        back("B1 beside etcd members", &whole, &etcd, at_once, "start", &[]),
        back(
            "A10 another directory under this id, the leader says so",
            &other_dir,
            &leader(as_it_is),
            at_once,
            "LOST_DATA",
            &["directory 03030303030303030303030303030303", "member remove eb7effb525eaf2d7"],
        ),
        back("A11 the leader has changed", &other_dir, &both(as_it_is), at_once, "LOST_DATA", &[]),
        back("A11 a follower alone", &other_dir, &follower(as_it_is), at_once, "again", &["LOST_DATA"]),
        back("A11 a follower alone, for some time", &other_dir, &follower(as_it_is), later, "LOST_DATA", &[]),
        back("B9 the real one lives", &whole, &leader(twin), later, "again", &["DUPLICATE_INSTANCE"]),
        back(
            "B9 the real one goes on living",
            &whole,
            &leader(twin),
            much_later,
            "DUPLICATE_INSTANCE",
            &["pid 7", "host-n3", "started 2026-11-22T10:00:00Z", "kill 7"],
        ),
        back(
            "B9 it may be the corpse of a predecessor",
            &whole,
            &leader(quiet),
            much_later,
            "again",
            &["DUPLICATE_INSTANCE"],
        ),
        back("B9 which would be gone by now", &whole, &leader(quiet), at_last, "DUPLICATE_INSTANCE", &[]),
        back("B10 the directory of another cluster", &whole, &foreign, at_once, "again", &["OTHER_CLUSTER"]),
        back("B10 and it goes on being one", &whole, &foreign, later, "OTHER_CLUSTER", &["cluster c0"]),
        back(
            "B11 an older copy",
            &older,
            &leader(as_it_is),
            at_once,
            "ROLLED_BACK",
            &[
                "last index 44, term 5, boot #3",
                "boot #3 (/var/lib/n3 on host-n3)",
                "1. if the newer data still exist (a volume that is not mounted, a directory under another name): put them back \
                 at /var/lib/n3, and start again",
                "never:    do not start this directory with --force-new-cluster",
            ],
        ),
        back("B12 the leader has changed", &older, &both(as_it_is), at_once, "ROLLED_BACK", &[]),
        back(
            "B12 a shorter log of the right boot",
            &shorter,
            &leader(as_it_is),
            at_once,
            "ROLLED_BACK",
            &["index >= 70 in term 5 from boot #3", "last index 44"],
        ),
        back("B12 a follower alone", &shorter, &follower(as_it_is), later, "ROLLED_BACK", &[]),
        back(
            "B16 the others were restored",
            &whole,
            &both(restored),
            at_once,
            "RESTORED_ELSEWHERE",
            &["restored or forced into a new life", "member add n3"],
        ),
        back("B16 and have no leader yet", &whole, &both(restored_unled), at_once, "RESTORED_ELSEWHERE", &[]),
        back(
            "B17 FN one was forced, the others live",
            &whole,
            &forced_and_healthy,
            at_once,
            "again",
            &["RESTORED_ELSEWHERE"],
        ),
        back(
            "B17 FN and a majority stands",
            &whole,
            &forced_and_healthy,
            later,
            "start",
            &["RESTORED_ELSEWHERE"],
        ),
        back(
            "B19 removed while it was down",
            &whole,
            &leader(removed),
            at_once,
            "REMOVED",
            &["log entry 12 of term 3", "mv /var/lib/n3"],
        ),
        back("B19 one follower's word", &whole, &follower(removed), at_once, "again", &["REMOVED"]),
        back("B19 and nobody else's", &whole, &follower(removed), much_later, "start", &["REMOVED"]),
        back(
            "B20 removed, and added again under a new id",
            &whole,
            &both(stranger),
            at_once,
            "again",
            &["NOT_A_MEMBER"],
        ),
        back(
            "B20 and nobody changes its mind",
            &whole,
            &both(stranger),
            later,
            "NOT_A_MEMBER",
            &["move the directory aside", "member add n3"],
        ),
        back("F the others began a second life", &whole, &both(reborn), at_once, "OTHER_CLUSTER", &["0202"]),
        back("F one of them alone", &whole, &follower(reborn), at_once, "again", &["OTHER_CLUSTER"]),
        back(
            "F and the third may still come up",
            &whole,
            &follower(reborn),
            later,
            "start",
            &["OTHER_CLUSTER"],
        ),
        back(
            "B17 FN a cold start beside the forced one, which leads itself",
            &whole,
            &leader(restored),
            at_once,
            "again",
            &["RESTORED_ELSEWHERE"],
        ),
        back(
            "B17 FN and the other half of the majority is not up yet",
            &whole,
            &leader(restored),
            later,
            "start",
            &["RESTORED_ELSEWHERE"],
        ),
        back(
            "B16 one of the others was restored and has no leader yet",
            &whole,
            &leader(restored_unled),
            much_later,
            "start",
            &["RESTORED_ELSEWHERE"],
        ),
        back(
            "B10 one address leads to another cluster",
            &whole,
            &one_foreign,
            later,
            "start",
            &["OTHER_CLUSTER"],
        ),
        back(
            "B10 another cluster at addresses that only the settings name",
            &whole,
            &foreign_by_settings,
            later,
            "start",
            &["OTHER_CLUSTER"],
        ),
    ];
    let unled = with(&|own| own.life = Life::Formed);
    cases.push(back(
        "B19 told by one leader to a member that does not know its life yet: it may lead another",
        &unled,
        &leader(removed),
        much_later,
        "start",
        &["REMOVED"],
    ));
    cases.push(back("B19 and by all others", &unled, &both(removed), at_once, "REMOVED", &[]));
    let mut formed = whole.clone();
    (formed.life, formed.dir) = (Life::Formed, unique(60));
    cases.push(Back {
        method: "restore",
        ..back(
            "B16 SR this one was restored, the others were not",
            &formed,
            &both(as_it_is),
            at_once,
            "RESTORED_ELSEWHERE",
            &[
                "made by restore, out of cluster 0101",
                "restore every one of them",
                "member remove eb7effb525eaf2d7",
            ],
        )
    });
    for case in cases {
        let (got, text) = came_back(&case);
        assert_eq!(got, case.expected, "{}: {text}", case.row);
        for words in case.says {
            assert!(text.contains(words), "{}: {words:?} is not in {text}", case.row);
        }
    }
}

/// B10: a member that is its cluster's only voter needs nobody. Who runs at the addresses of members that it had, and that its settings still
/// name, stops it only where they count its own address to their cluster.
#[test]
fn an_only_voter_is_stopped_by_those_who_count_its_address_to_another_cluster() {
    let own = returning();
    let named = |by: &'static str, cluster_id, claims: bool| {
        let mut answer = runs(by, &own, by == "n1", &|known| known.standing = Standing::Stranger);
        answer.hello.cluster_id = cluster_id;
        answer.members.retain(|member| claims || member.name != "n3");
        Reply { member: MemberId::NONE, ..answers(by, answer) }
    };
    let founding = || {
        let mut answer = runs("n1", &own, false, &|known| known.standing = Standing::Stranger);
        (answer.hello.cluster_id, answer.members) = (ClusterId(0xc0), Vec::new());
        answer.config = Some(self::genesis(THREE, "t1").config("t1"));
        vec![Reply { member: MemberId::NONE, ..answers("n1", answer) }]
    };
    let strange = |claims| vec![named("n1", ClusterId(0xc0), claims), named("n2", ClusterId(0xc0), claims)];
    let mixed = || vec![named("n1", ClusterId(0xc0), true), named("n2", own.cluster_id, true)];
    let nobody = || vec![silent("n1"), silent("n2")];
    let one_answers = || vec![named("n1", ClusterId(0xc0), true), silent("n2")];
    let (later, alone, of_two): (_, &[&str], &[&str]) = (again::PATIENCE, &["n3"], &["n2", "n3"]);
    for (row, voters, replies, waited, expected) in [
        ("at first", alone, strange(true), Duration::ZERO, "again"),
        ("and they go on being strange", alone, strange(true), later, "OTHER_CLUSTER"),
        ("and one is down", alone, one_answers(), later, "OTHER_CLUSTER"),
        ("and wait for a founder at this address", alone, founding(), later, "OTHER_CLUSTER"),
        (
            "hosts that were given away: one may still know better",
            alone,
            strange(false),
            Duration::ZERO,
            "again",
        ),
        ("hosts that were given away", alone, strange(false), later, "alone"),
        ("one is of the same cluster, whatever its life", alone, mixed(), later, "start"),
        ("nobody answers", alone, nobody(), later, "start"),
        ("it knows others than these", of_two, strange(true), later, "start"),
    ] {
        let case = Back { row, own: own.clone(), replies, waited, method: "static", expected, says: &[] };
        let (got, text) = came_back_among(voters, &case);
        assert_eq!(got, case.expected, "B10 {}: {text}", case.row);
        let says: &[&str] = match got {
            "OTHER_CLUSTER" => {
                &["cluster c0", "n3 is the one at http://h3:1", "do not delete either cluster's"]
            }
            "alone" => &["http://h1:1 http://h2:1"],
            _ => &[],
        };
        assert!(says.iter().all(|words| text.contains(words)), "{text}");
    }
}

/// B10: the cluster was moved while this member was down, and others run where its members were.
#[test]
fn a_member_that_was_away_while_its_cluster_moved_is_not_stopped_by_who_runs_there_now() {
    let own = returning();
    let stranger = |at| {
        let mut answer = runs(at, &own, true, &|known| known.standing = Standing::Stranger);
        answer.hello.cluster_id = ClusterId(0xc0);
        answers(at, answer)
    };
    let moved = |leads, commit| {
        let new = MemberId(4);
        let mut answer = runs("n1", &own, leads, &|_| ());
        (answer.hello.member, answer.known.witness.member) = (new, new);
        answer.known.witness.commit = commit;
        answer.members.retain(|member| member.name != "n2");
        answer.members[0].id = new;
        vec![stranger("n1"), stranger("n2"), Reply { member: new, ..answers("n1", answer) }]
    };
    let newer = own.log.commit + 1;
    for (row, replies, expected) in [
        ("nobody of its own is there", vec![stranger("n1"), stranger("n2")], "OTHER_CLUSTER"),
        ("one is, and knows no more", moved(false, own.log.commit), "OTHER_CLUSTER"),
        ("one is, and knows the new members", moved(false, newer), "start"),
        ("one is, and leads", moved(true, own.log.commit), "start"),
    ] {
        let case = Back {
            row,
            own: own.clone(),
            replies,
            waited: again::PATIENCE,
            method: "static",
            expected,
            says: &[],
        };
        let (got, text) = came_back(&case);
        assert_eq!(got, case.expected, "B10 {}: {text}", case.row);
    }
}

/// A leader change may not turn one answer into another: who leads is drawn through all members, for everything that peers can find.
#[test]
fn verdicts_do_not_depend_on_who_leads() {
    let changes: [&dyn Fn(&mut Hello); 3] =
        [&|own| own.dir = unique(88), &|own| own.log.last_index = 44, &|own| {
            own.boot = Boot { seq: 3, nonce: unique(201), previous: None }
        }];
    for change in changes {
        let mut own = returning();
        change(&mut own);
        let ended = |leaders: [bool; 2]| {
            let replies = vec![
                answers("n1", runs("n1", &own, leaders[0], &|_| ())),
                answers("n2", runs("n2", &own, leaders[1], &|_| ())),
            ];
            let case = Back {
                row: "",
                own: own.clone(),
                replies,
                waited: Duration::ZERO,
                method: "static",
                expected: "",
                says: &[],
            };
            came_back(&case).0
        };
        assert_eq!(ended([true, false]), ended([false, true]));
        assert_eq!(ended([true, false]), ended([false, false]), "nobody leads just now");
    }
}

/// What is believed here must be a verdict that names itself.
#[test]
fn every_verdict_but_welcome_is_a_refusal() {
    let (own, answer) = (returning(), runs("n1", &returning(), true, &|_| ()));
    let me = Me {
        hello: &own,
        peer_urls: &[],
        method: "static",
        parent: None,
        restored: None,
        exists: &|_| false,
    };
    let said = super::verdict::Said { url: "http://h1:1", answer: &answer };
    let refusal =
        |verdict: Verdict| super::verdict::refusal(&me, &verdict, &said).map(|refusal| refusal.exit() as u8);
    let home = Home::default;
    assert_eq!(refusal(Verdict::Welcome), None);
    for (verdict, exit) in [
        (Verdict::Stranger, 78),
        (Verdict::Pending, 78),
        (Verdict::Removed { index: 1, term: 1, asked_through: None }, 79),
        (Verdict::LostData { dir: LIFE, boot_seq: 0, home: home() }, 79),
        (Verdict::OlderBoot { boot_seq: 1, home: home() }, 79),
        (Verdict::ShorterLog { last_index: 1, term: 1, boot_seq: 1, home: home() }, 79),
        (Verdict::Duplicate { boot_seq: 1, home: home() }, 78),
        (Verdict::OtherLife { yours: LIFE, ours: None, came_from_yours: true }, 78),
        (Verdict::OtherLife { yours: LIFE, ours: Some(OTHER_LIFE), came_from_yours: false }, 78),
    ] {
        let name = verdict.name();
        assert_eq!(refusal(verdict), Some(exit), "{name}");
    }
}
