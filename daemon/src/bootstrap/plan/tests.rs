use std::{ffi::OsString, path::PathBuf};

use super::*;
use crate::{
    bootstrap::facts::LogFact,
    config::{self, Surroundings},
    identity::compare::LogOwner,
};

fn asked(flags: &[&str]) -> Membership {
    let flags = crate::cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
    let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
    config::load(&surroundings).unwrap().0.membership
}

fn nothing() -> DiskFacts {
    DiskFacts {
        data_dir: PathBuf::from("/d"),
        identity: IdentityFact::None,
        previous: None,
        wal_identity: IdentityFact::None,
        log: LogFact { dir: "/d/member/wal".into(), first_index: None, owner: None },
        state_present: false,
        etcd_database: false,
        strangers: vec![],
        neighbours: vec![],
        fleeting: None,
    }
}

fn stored(state: State) -> Identity {
    let mut identity = crate::identity::sample();
    identity.state = state;
    identity
}

fn whole(state: State) -> DiskFacts {
    let identity = stored(state);
    let owner = LogOwner { member: identity.member_id, cluster: identity.cluster_id, dir: None };
    DiskFacts {
        identity: IdentityFact::Present(Box::new(identity)),
        log: LogFact { dir: "/d/member/wal".into(), first_index: Some(0), owner: Some(Ok(owner)) },
        state_present: true,
        ..nothing()
    }
}

fn outcome(facts: &DiskFacts, flags: &[&str], addresses: &Addresses) -> &'static str {
    match plan(facts, &asked(flags), addresses, "0.1.0", &mut Vec::new()) {
        Ok(BootPlan::NewStatic(_)) => "new",
        Ok(BootPlan::Restart(_)) => "restart",
        Ok(BootPlan::JoinExisting(_)) => "join",
        Ok(BootPlan::Discover(_)) => "discover",
        Err(refusal) => refusal.id.name(),
    }
}

const THREE: &str = "--initial-cluster=n1=http://h1:1,n2=http://h2:1,n3=http://h3:1";

#[test]
fn every_case_of_a_start() {
    let addresses =
        Addresses::from([("h1".into(), vec!["10.0.0.1".parse().unwrap()]), ("h2".into(), vec![])]);
    let mut cases: Vec<(&str, DiskFacts, Vec<&str>, &str)> = vec![
        ("A1 a new member alone", nothing(), vec![], "new"),
        ("A1 a new member of three", nothing(), vec!["--name=n1", THREE], "new"),
        (
            "a new member whose URLs agree",
            nothing(),
            vec!["--name=n1", THREE, "--initial-advertise-peer-urls=http://h1:1"],
            "new",
        ),
        (
            "the same address spelled differently",
            nothing(),
            vec!["--name=n1", THREE, "--initial-advertise-peer-urls=http://10.0.0.1:1"],
            "new",
        ),
        ("A2 a name that is not listed", nothing(), vec!["--name=n4", THREE], "NOT_IN_INITIAL_CLUSTER"),
        (
            "A3 another URL than listed",
            nothing(),
            vec!["--name=n1", THREE, "--initial-advertise-peer-urls=http://h2:1"],
            "ADVERTISE_MISMATCH",
        ),
        (
            "A3 one URL of two",
            nothing(),
            vec![
                "--name=n1",
                "--initial-cluster=n1=http://h1:1,n1=http://h1:2",
                "--initial-advertise-peer-urls=http://h1:1",
            ],
            "ADVERTISE_MISMATCH",
        ),
        ("joining", nothing(), vec!["--name=n1", THREE, "--initial-cluster-state=existing"], "join"),
        ("A7 joining without anybody", nothing(), vec!["--initial-cluster-state=existing"], "NOBODY_TO_ASK"),
        (
            "A15 joining under another's name",
            nothing(),
            vec![
                "--name=n2",
                THREE,
                "--initial-cluster-state=existing",
                "--initial-advertise-peer-urls=http://h1:1",
            ],
            "ADVERTISE_MISMATCH",
        ),
        ("B1 all the same", whole(State::Born), vec!["--name=n1"], "restart"),
        ("formed but not born", whole(State::Formed), vec!["--name=n1"], "restart"),
        ("an unborn directory binds nothing", whole(State::Unborn), vec!["--name=other"], "new"),
        ("B2", whole(State::Born), vec!["--name=n2"], "NAME_MISMATCH"),
        (
            "B4",
            whole(State::Born),
            vec!["--name=n1", "--initial-advertise-peer-urls=http://h9:1"],
            "PEER_URL_MISMATCH",
        ),
        ("B6", whole(State::Born), vec!["--name=n1", "--initial-cluster-token=t"], "TOKEN_CONFLICT"),
        (
            "B7 the state flag is not used any more",
            whole(State::Born),
            vec!["--name=n1", "--initial-cluster-state=existing"],
            "restart",
        ),
        (
            "B8",
            whole(State::Born),
            vec!["--name=n2", "--initial-cluster=n1=http://127.0.0.1:1,n2=http://h2:1"],
            "WRONG_DIR",
        ),
        ("B18", whole(State::Removed { index: 1, term: 1, asked_through: None }), vec![], "REMOVED"),
    ];
    let with = |change: &dyn Fn(&mut DiskFacts)| {
        let mut facts = whole(State::Born);
        change(&mut facts);
        facts
    };
    cases.extend([
        (
            "B13 the log is gone",
            with(&|f| (f.log.first_index, f.log.owner) = (None, None)),
            vec![],
            "WAL_MISSING",
        ),
        ("B14 the state is gone, the log is whole", with(&|f| f.state_present = false), vec![], "restart"),
        (
            "B14 the state is gone, the log is cut",
            with(&|f| (f.state_present, f.log.first_index) = (false, Some(9))),
            vec![],
            "STATE_MISSING",
        ),
        ("the log's head is garbage", with(&|f| f.log.owner = Some(Err("x".into()))), vec![], "LOG_DAMAGED"),
        (
            "the log of another member",
            with(&|f| {
                f.log.owner =
                    Some(Ok(LogOwner { member: MemberId(1), cluster: types::ClusterId(2), dir: None }))
            }),
            vec![],
            "WRONG_DIR",
        ),
        (
            "the identity is garbage",
            with(&|f| f.identity = IdentityFact::Damaged("x".into())),
            vec![],
            "IDENTITY_DAMAGED",
        ),
        ("data without identity", with(&|f| f.identity = IdentityFact::None), vec![], "IDENTITY_MISSING"),
        (
            "an etcd member's directory",
            with(&|f| (f.identity, f.etcd_database) = (IdentityFact::None, true)),
            vec![],
            "FOREIGN_DIR",
        ),
        (
            "another directory's wal-dir",
            with(&|f| {
                let mut copy = stored(State::Born);
                copy.dir_uuid = Unique::for_test(99);
                f.wal_identity = IdentityFact::Present(Box::new(copy));
            }),
            vec![],
            "WRONG_DIR",
        ),
    ]);
    for (case, facts, flags, expected) in cases {
        assert_eq!(outcome(&facts, &flags, &addresses), expected, "{case}");
    }
}

#[test]
fn a_log_whose_data_directory_is_gone_says_whose_it_is() {
    let mut copy = stored(State::Born);
    let known = |id, name: &str| KnownMember {
        id: MemberId(id),
        name: name.into(),
        peer_urls: vec![format!("http://{name}:1")],
        client_urls: Vec::new(),
        dir_uuid: None,
        is_learner: false,
    };
    copy.members = vec![known(copy.member_id.0, &copy.name), known(0xb, "n2")];
    let mut facts = nothing();
    facts.log = LogFact { dir: "/w".into(), first_index: Some(0), owner: None };
    facts.wal_identity = IdentityFact::Present(Box::new(copy.clone()));
    let refusal = plan(&facts, &asked(&["--name=n1"]), &Addresses::new(), "0.1.0", &mut vec![]).unwrap_err();
    assert_eq!(refusal.id, Id::IdentityMissing);
    let text = refusal.text();
    for words in [
        format!("of member {} ({})", copy.member_id, copy.name),
        format!("member remove {}, then mv /w /w.old, then ", copy.member_id),
    ] {
        assert!(text.contains(&words), "{words:?} is not in {text}");
    }
}

#[test]
fn an_unlisted_name_is_helped() {
    let refusal = plan(
        &nothing(),
        &asked(&["--name=nn", THREE, "--initial-advertise-peer-urls=http://h2:1"]),
        &Addresses::new(),
        "0.1.0",
        &mut vec![],
    )
    .unwrap_err();
    assert!(refusal.text().contains("--name=n2"), "{}", refusal.text());
}

#[test]
fn an_unborn_directory_keeps_its_mark_and_follows_the_flags() {
    let Ok(BootPlan::NewStatic(new)) =
        plan(&whole(State::Unborn), &asked(&["--name=other"]), &Addresses::new(), "0.1.0", &mut vec![])
    else {
        panic!("expected a new member");
    };
    assert_eq!((new.name.as_str(), new.dir_uuid), ("other", Some(Unique::for_test(1))));
}

/// Whom the version before speaks of is told with its own values; it is never started by.
#[test]
fn a_member_without_a_whole_identity_file_is_replaced_by_the_version_before() {
    let previous = stored(State::Born);
    let id = previous.member_id.to_string();
    for identity in [IdentityFact::Damaged("x".into()), IdentityFact::None] {
        let mut facts = DiskFacts { identity, ..whole(State::Born) };
        let text = |facts: &DiskFacts| match plan(facts, &asked(&[]), &Addresses::new(), "0.1.0", &mut vec![])
        {
            Err(refusal) => refusal.text(),
            Ok(found) => panic!("{found:?}"),
        };
        assert!(!text(&facts).contains(&id), "nothing tells");
        let mut known = previous.clone();
        known.members = vec![crate::identity::KnownMember {
            id: MemberId(0xb),
            name: "n2".into(),
            peer_urls: vec!["http://h2:1".into()],
            client_urls: vec!["http://h2:2".into()],
            dir_uuid: None,
            is_learner: false,
        }];
        facts.previous = Some(Box::new(known));
        let command = format!("cairnctl --endpoints=http://h2:2 member remove {id}, then mv /d /d.old, then");
        assert!(text(&facts).contains(&command), "{}", text(&facts));
    }
}

/// The operator of three hosts who forgot initial-cluster on one of them sees it before the first start, and in its log.
#[test]
fn a_member_that_others_reach_is_not_founded_alone_in_silence() {
    const ELSEWHERE: &str = "--initial-advertise-peer-urls=http://10.0.0.3:2380";
    for (flags, told) in [
        (vec!["--name=n3", ELSEWHERE], true),
        (vec!["--name=n3", ELSEWHERE, "--initial-cluster=n3=http://10.0.0.3:2380"], false),
        (vec!["--name=n3", "--initial-advertise-peer-urls=http://127.0.0.1:2380"], false),
        (vec!["--name=n3"], false),
    ] {
        let mut notes = vec![];
        plan(&nothing(), &asked(&flags), &Addresses::new(), "0.1.0", &mut notes).unwrap();
        let found = notes
            .iter()
            .any(|note| note.message.starts_with("initial-cluster is not set: this start founds"));
        assert_eq!(found, told, "{flags:?}: {notes:?}");
    }
}
