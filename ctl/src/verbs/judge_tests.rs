//! Clusters with one thing wrong, and what is found.

use super::*;
use crate::verbs::survey::Asked;
use crate::wire::http1::Page;
use api::etcdserverpb::{AlarmMember, Member, StatusResponse};

/// Three members in good health.
pub fn healthy() -> Survey {
    let seen = |id: u64| Seen {
        member: Member {
            id,
            name: format!("n{id}"),
            peer_ur_ls: vec![format!("http://10.0.0.{id}:2380")],
            client_ur_ls: vec![format!("http://10.0.0.{id}:2379")],
            is_learner: false,
        },
        status: Ok(StatusResponse {
            version: "3.7.0".into(),
            leader: 1,
            raft_term: 4,
            raft_index: 5000,
            raft_applied_index: 5000,
            db_size: 1000,
            db_size_in_use: 900,
            db_size_quota: 10_000,
            ..Default::default()
        }),
        metrics: Some(Ok(Page { status: 200, date: None, body: String::new() })),
        clock: Some((-1, 1)),
    };
    Survey {
        asked: vec![Asked { name: "a".into(), who: Ok((9, 1)) }],
        cluster: 9,
        members: (1..=3).map(seen).collect(),
        quorum: Ok(Duration::from_millis(1)),
        alarms: Ok(Vec::new()),
    }
}

fn status(survey: &mut Survey, at: usize) -> &mut StatusResponse {
    survey.members[at].status.as_mut().unwrap()
}

fn metrics(survey: &mut Survey, text: &str) {
    survey.members[0].metrics = Some(Ok(Page { status: 200, date: None, body: text.into() }));
}

#[test]
fn each_trouble_has_its_finding_and_health_has_none() {
    assert_eq!(judge(&healthy()), []);
    assert_eq!(exit(&[]), None);
    let down = |survey: &mut Survey| survey.members[2].status = Err("connect: refused".into());
    /// What is wrong, how it comes to be, what is found, and the code.
    type Row<'a> = (&'a str, &'a dyn Fn(&mut Survey), &'a [&'a str], Option<Exit>);
    let table: &[Row<'_>] = &[
        ("a member is down", &down, &["NO_SPARE", "MEMBER_DOWN"], Some(Exit::Degraded)),
        (
            "two are",
            &|s| {
                down(s);
                s.members[1].status = Err("x".into());
                s.quorum = Err("context deadline exceeded".into());
                s.alarms = Err("the same".into());
            },
            &["NO_QUORUM", "MEMBER_DOWN", "MEMBER_DOWN"],
            Some(Exit::Error),
        ),
        (
            "one was never started",
            &|s| {
                s.members[2].member.name.clear();
                s.members[2].status = Err("it was never started".into());
            },
            &["NO_SPARE", "MEMBER_UNSTARTED"],
            Some(Exit::Degraded),
        ),
        (
            "one knows no leader",
            &|s| status(s, 1).leader = 0,
            &["NO_SPARE", "MEMBER_LEADERLESS"],
            Some(Exit::Degraded),
        ),
        (
            "one is behind",
            &|s| status(s, 1).raft_applied_index = 10,
            &["MEMBER_BEHIND"],
            Some(Exit::Degraded),
        ),
        (
            "two leaders",
            &|s| (status(s, 1).leader, status(s, 1).raft_term) = (2, 5),
            &["LEADERS_DIFFER"],
            Some(Exit::Degraded),
        ),
        ("versions", &|s| status(s, 1).version = "3.6.1".into(), &["VERSIONS_DIFFER"], Some(Exit::Degraded)),
        ("quota", &|s| status(s, 1).db_size = 8000, &["QUOTA_NEAR"], Some(Exit::Degraded)),
        (
            "alarms",
            &|s| s.alarms = Ok((1..=3).map(|alarm| AlarmMember { member_id: 2, alarm }).collect()),
            &["ALARM_NOSPACE", "ALARM_CORRUPT", "ALARM_UNKNOWN"],
            Some(Exit::Error),
        ),
        (
            "no answer about alarms",
            &|s| s.alarms = Err("x".into()),
            &["ALARMS_UNKNOWN"],
            Some(Exit::Degraded),
        ),
        ("an even number", &|s| s.members.truncate(2), &["EVEN_MEMBERS"], Some(Exit::Degraded)),
        (
            "a learner that could vote",
            &|s| {
                let mut learner = s.members[2].clone();
                (learner.member.id, learner.member.is_learner) = (4, true);
                learner.status.as_mut().unwrap().is_learner = true;
                s.members.push(learner);
            },
            &["LEARNER_WAITS"],
            None,
        ),
        (
            "a learner that cannot",
            &|s| {
                let mut learner = s.members[2].clone();
                (learner.member.id, learner.member.is_learner) = (4, true);
                let status = learner.status.as_mut().unwrap();
                (status.is_learner, status.raft_applied_index) = (true, 1);
                s.members.push(learner);
            },
            &["LEARNER_BEHIND"],
            Some(Exit::Degraded),
        ),
        (
            "localhost",
            &|s| {
                s.members[1].member.client_ur_ls =
                    vec!["http://127.0.0.1:2379".into(), "http://[::1]:2379".into()]
            },
            &["LOCALHOST_ADVERTISED"],
            Some(Exit::Degraded),
        ),
        (
            "all on one machine",
            &|s| {
                for seen in &mut s.members {
                    seen.member.client_ur_ls = vec!["http://localhost:2379".into()];
                    seen.member.peer_ur_ls = vec!["http://127.0.0.1:2380".into()];
                }
            },
            &[],
            None,
        ),
        (
            "endpoints of two clusters",
            &|s| s.asked.push(Asked { name: "b".into(), who: Ok((8, 1)) }),
            &["CLUSTER_IDS_DIFFER"],
            Some(Exit::Error),
        ),
        (
            "endpoints that are none",
            &|s| {
                s.asked.push(Asked { name: "b".into(), who: Err("connect: refused".into()) });
                s.asked.push(Asked { name: "c".into(), who: Ok((9, 77)) });
            },
            &["ENDPOINT_NO_MEMBER", "ENDPOINT_SILENT"],
            Some(Exit::Error),
        ),
        ("clocks", &|s| s.members[1].clock = Some((4, 6)), &["CLOCKS_DIFFER"], Some(Exit::Degraded)),
        ("clocks that may be equal", &|s| s.members[1].clock = Some((2, 4)), &[], None),
        (
            "no metrics",
            &|s| s.members[1].metrics = Some(Err("HTTP status 404".into())),
            &["METRICS_UNREAD"],
            None,
        ),
        (
            "leader changes",
            &|s| metrics(s, "etcd_server_leader_changes_seen_total 1e6\nprocess_start_time_seconds 1.7e9\n"),
            &["LEADER_CHANGES"],
            Some(Exit::Degraded),
        ),
        (
            "few of them",
            &|s| metrics(s, "etcd_server_leader_changes_seen_total 3\nprocess_start_time_seconds 1.7e9\n"),
            &[],
            None,
        ),
        ("fsync", &|s| metrics(s, &fsync(90, 100)), &["FSYNC_SLOW"], Some(Exit::Degraded)),
        ("a good disk", &|s| metrics(s, &fsync(99, 100)), &[], None),
        ("a disk of which little is known", &|s| metrics(s, &fsync(9, 10)), &[], None),
    ];
    for (what, spoil, expected, code) in table {
        let mut survey = healthy();
        spoil(&mut survey);
        let found = judge(&survey);
        let ids: Vec<&str> = found.iter().map(|finding| finding.id).collect();
        assert_eq!(&ids, expected, "{what}");
        assert_eq!(exit(&found), *code, "{what}");
        for Finding { id, details, .. } in &found {
            assert!(!details.cause.is_empty() && !details.remedy.is_empty(), "{id} says why and what to do");
        }
    }
}

/// A histogram with so many syncs within 16 ms and so many in all, the others within 32 ms.
fn fsync(quick: u64, all: u64) -> String {
    let name = "etcd_disk_wal_fsync_duration_seconds";
    [("0.008", 0), ("0.016", quick), ("0.032", all), ("+Inf", all)]
        .iter()
        .fold(String::new(), |text, (bound, count)| {
            text + &format!("{name}_bucket{{le=\"{bound}\"}} {count}\n")
        })
}

#[test]
fn a_finding_has_the_five_parts_of_a_message() {
    let mut survey = healthy();
    survey.members[2].status = Err("connect: refused".into());
    let found = judge(&survey);
    let down = found.iter().find(|finding| finding.id == "MEMBER_DOWN").unwrap();
    assert_eq!(down.line(), "[MEMBER_DOWN] warning: member 3 (n3) does not answer");
    let text = down.details.to_string();
    for part in ["cause:    ", "evidence: connect: refused", "remedy:   1. ", "2. if its host is lost"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn metrics_are_read_by_their_whole_name() {
    let page = "# TYPE x gauge\nx_total 3\nx 4\nx{a=\"b\"} 5\n";
    assert_eq!((sample(page, "x"), sample(page, "x_total"), sample(page, "y")), (Some(4.0), Some(3.0), None));
}

#[test]
fn a_name_moves_no_cursor_and_two_of_one_name_are_nobody() {
    let mut survey = healthy();
    survey.members[0].member.name = "a\u{1b}[2J\nb".into();
    assert!(survey.members[0].label().ends_with("(a\\x1b[2J\\nb)"), "{}", survey.members[0].label());
    let name = survey.members[2].member.name.clone();
    assert_eq!(survey.find(&name).map(|seen| seen.member.id), Some(survey.members[2].member.id));
    survey.members[1].member.name = name.clone();
    assert!(survey.find(&name).is_none());
}
