use ::identity::{Boot, Hello, Known, LogEnd, Record, Watermark, Witness};
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-22 18:00:00 UTC);
const LIFE: Unique = Unique::from_bytes([1; 16]);

fn url(id: u64) -> String {
    format!("http://h{id}:1")
}

fn named(id: u64) -> Named {
    Named {
        id: MemberId(id),
        name: format!("n{id}"),
        peer_urls: vec![url(id)],
        client_urls: vec![format!("http://h{id}:2")],
        is_learner: false,
    }
}

/// Member 3's directory is empty.
fn lost() -> Lost {
    Lost {
        id: None,
        name: "n3".into(),
        peer_urls: vec![url(3)],
        cluster: Some(ClusterId(7)),
        life: None,
        founded: Some(MemberId(3)),
        home: Home { host: "host3".into(), path: "/d".into(), ..Home::default() },
    }
}

fn lost_verdict() -> Verdict {
    Verdict::LostData { dir: LIFE, boot_seq: 4, home: Home::default() }
}

/// What member `id` of `members` answers of member 3, which it knows well.
fn answer(id: u64, leads: bool, members: &[Named]) -> Answer {
    let nonce = Unique::from_bytes([9; 16]);
    let boot = Boot { seq: 4, nonce, previous: None };
    let home = Home {
        host: "host3".into(),
        path: "/d".into(),
        pid: 1,
        started: "2026-11-22T17:59:00Z".into(),
        seat: None,
    };
    Answer {
        hello: Hello {
            cluster_id: ClusterId(7),
            member: MemberId(id),
            name: format!("n{id}"),
            life: Life::Born(LIFE),
            dir: Unique::from_bytes([id as u8; 16]),
            boot,
            earlier: Vec::new(),
            log: LogEnd::default(),
            home: Home::default(),
            version: "0.1.0".into(),
        },
        known: Known {
            cluster_uuid: Some(LIFE),
            parent_uuid: None,
            restored: None,
            is_founding: false,
            standing: Standing::Member { is_learner: false, is_new: false },
            record: Some(Record { dir: LIFE, boot, home, version: "0.1.0".into() }),
            attendee: None,
            watermark: Some(Watermark { last_index: 9, term: 2 }),
            session: None,
            witness: Witness { member: MemberId(id), leads, term: 2, commit: 9 },
        },
        verdict: lost_verdict(),
        config: None,
        members: members.to_vec(),
    }
}

struct Case {
    lost: Lost,
    members: Vec<Named>,
    /// Who answers; the first one leads.
    up: Vec<u64>,
    max_learners: usize,
    old_directory_is_here: bool,
    said: fn(&mut Answer),
}

fn case(change: impl FnOnce(&mut Case)) -> Step<Agreed> {
    let mut case = Case {
        lost: lost(),
        members: (1..=3).map(named).collect(),
        up: vec![1, 2],
        max_learners: 1,
        old_directory_is_here: false,
        said: |_| (),
    };
    change(&mut case);
    let replies: Vec<Reply> = case
        .up
        .iter()
        .enumerate()
        .map(|(at, id)| {
            let mut answer = answer(*id, at == 0, &case.members);
            (case.said)(&mut answer);
            Reply {
                member: MemberId(*id),
                name: String::new(),
                url: url(*id),
                heard: Heard::Answer(Box::new(answer)),
            }
        })
        .collect();
    let id = match case.lost.id {
        Some(id) => id,
        None => match find(&case.lost, &replies) {
            Done(id) => id,
            Wait(why) => return Wait(why),
            Decline(why) => return Decline(why),
        },
    };
    let exists = |_: &str| case.old_directory_is_here;
    decide(&case.lost, id, &replies, case.max_learners, &exists, NOW)
}

#[track_caller]
fn declines(words: &str, change: impl FnOnce(&mut Case)) {
    match case(change) {
        Decline(why) => assert!(why.contains(words), "{words:?} is not in {why:?}"),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[track_caller]
fn waits(words: &str, change: impl FnOnce(&mut Case)) {
    match case(change) {
        Wait(why) => assert!(why.contains(words), "{words:?} is not in {why:?}"),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[track_caller]
fn acts(change: impl FnOnce(&mut Case)) -> Agreed {
    match case(change) {
        Done(agreed) => agreed,
        other => panic!("{other:?}"),
    }
}

fn with_directory(case: &mut Case) {
    (case.lost.id, case.lost.life) = (Some(MemberId(3)), Some(LIFE));
}

/// A8, A10, A11 and B12, B20: whose directory is gone or older, and whom the others still have.
#[test]
fn a_lost_member_is_replaced_where_a_quorum_of_the_others_works() {
    let agreed = acts(|_| ());
    assert_eq!((agreed.old, agreed.cluster_id, agreed.cluster_uuid), (MemberId(3), ClusterId(7), Some(LIFE)));
    let others: Vec<u64> = agreed.others.iter().map(|other| other.id.0).collect();
    assert_eq!(others, [1, 2]);
    assert!(agreed.voted);
    assert_eq!(agreed.others[0].client_urls, ["http://h1:2"]);
    acts(with_directory);
    // 4 voters: all three others; 5 voters: three of four; a lost learner costs no vote.
    acts(|case| (case.members, case.up) = ((1..=4).map(named).collect(), vec![1, 2, 4]));
    acts(|case| (case.members, case.up) = ((1..=5).map(named).collect(), vec![1, 2, 5]));
    let learner = acts(|case| {
        (case.members, case.up) = ((1..=3).map(named).collect(), vec![1, 2]);
        case.members[2].is_learner = true;
    });
    assert!(!learner.voted, "it stays one until somebody else promotes it");
}

#[test]
fn without_a_quorum_of_the_others_the_count_is_told() {
    declines("2 of 2 voters are a quorum, and without this member there is 1", |case| {
        (case.members, case.up) = (vec![named(1), named(3)], vec![1]);
        // It cannot lead alone.
        case.said = |answer| answer.known.witness.leads = false;
    });
    declines("1 of 1 voter is a quorum, and without this member there is none", |case| {
        case.members = vec![named(3)];
    });
    waits("2 of 3 voters are a quorum, and only 1 of the 2 others answer", |case| case.up = vec![1]);
    waits("3 of 5 voters are a quorum, and only 2 of the 4 others answer", |case| {
        case.members = (1..=5).map(named).collect();
    });
    waits("2 of 3 voters are a quorum, and only 1 of the 2 others answer", |case| {
        // A learner that answers has no vote.
        case.members.push(Named { is_learner: true, ..named(4) });
        (case.up, case.max_learners) = (vec![1, 4], 2);
    });
    waits("no member of the cluster answers", |case| case.up = vec![]);
    waits("no member 3 any more", |case| {
        // Who does not lead may be behind.
        case.said = |answer| answer.known.witness.leads = false;
        case.lost.id = case.members.pop().map(|named| named.id);
    });
    waits("none of the members that answer leads", |case| {
        case.said = |answer| answer.known.witness.leads = false
    });
}

#[test]
fn what_is_not_a_loss_is_left_alone() {
    let said = |case: &mut Case, said: fn(&mut Answer)| case.said = said;
    waits("runs, or ran a moment ago", |case| {
        said(case, |answer| answer.verdict = Verdict::Duplicate { boot_seq: 5, home: Home::default() });
    });
    declines("another life", |case| {
        with_directory(case);
        said(case, |answer| {
            answer.verdict = Verdict::OtherLife { yours: LIFE, ours: None, came_from_yours: false };
        });
    });
    declines("another life", |case| {
        with_directory(case);
        case.lost.life = Some(Unique::from_bytes([5; 16]));
    });
    declines("another cluster", |case| case.lost.cluster = Some(ClusterId(8)));
    declines("removed on purpose", |case| {
        with_directory(case);
        said(case, |answer| {
            answer.known.standing = Standing::Removed { index: 5, term: 2, asked_through: None };
        });
    });
    declines("has no member 3 any more", |case| {
        with_directory(case);
        case.members.pop();
    });
    declines("no member at http://h3:1", |case| drop(case.members.pop()));
    declines("is called other, not n3", |case| case.members[2].name = "other".into());
    declines("has never run", |case| {
        (case.members[2].name, case.members[2].client_urls) = (String::new(), vec![]);
        said(case, |answer| {
            (answer.known.record, answer.known.watermark) = (None, None);
            answer.known.standing = Standing::Member { is_learner: true, is_new: true };
        });
    });
    declines("never admitted", |case| {
        case.members[2].client_urls.clear();
        said(case, |answer| (answer.known.record, answer.known.watermark) = (None, None));
    });
    declines("different clusters", |case| {
        said(case, |answer| answer.hello.cluster_id = ClusterId(answer.hello.member.0));
    });
    declines("is here: /newer", |case| {
        case.old_directory_is_here = true;
        said(case, |answer| answer.known.record.as_mut().unwrap().home.path = "/newer".into());
    });
    let elsewhere =
        |answer: &mut Answer| answer.known.record.as_mut().unwrap().home.host = "host4".to_owned();
    declines("last used on another host: /d on host4", |case| {
        with_directory(case);
        said(case, elsewhere);
    });
    // A new machine in the place of one that is gone has nothing to be an older copy of.
    acts(|case| said(case, elsewhere));
}

#[test]
fn what_the_cluster_would_refuse_is_not_begun() {
    let learner = |case: &mut Case| case.members.push(Named { is_learner: true, ..named(4) });
    declines("1 learners besides this member, and --max-learners=1", learner);
    acts(|case| {
        learner(case);
        case.max_learners = 2;
    });
    declines("has this member's name or one of its URLs", |case| {
        with_directory(case);
        case.members[0].name = "n3".into();
    });
    declines("serves clients", |case| {
        case.members[..2].iter_mut().for_each(|named| named.client_urls.clear());
    });
}

/// Nothing on this machine remembers a replacement when the directory is lost each time.
#[test]
fn a_member_that_loses_its_directory_again_and_again_is_stopped() {
    let joined = |case: &mut Case| {
        case.lost.founded = None;
        case.said = |answer| answer.known.record.as_mut().unwrap().boot.seq = 1;
    };
    declines("joined with an empty directory 60 s ago, and does not again within 600 s", joined);
    acts(|case| {
        joined(case);
        case.lost.founded = Some(MemberId(3));
    });
    acts(|case| {
        joined(case);
        case.said = |answer| {
            let record = answer.known.record.as_mut().unwrap();
            (record.boot.seq, record.home.started) = (1, "2026-11-22T17:50:00Z".into());
        };
    });
}

#[test]
fn only_a_loss_begins_a_replacement_and_not_for_ever() {
    let at = |minutes: i64| NOW - time::Duration::minutes(minutes);
    let may = |id, has_data, earlier: &[OffsetDateTime]| {
        may_begin(AutoReplace::Learner, id, has_data, earlier, NOW)
    };
    for id in Id::ALL {
        let expected = match id {
            Id::LostData | Id::RolledBack | Id::Quarantined => [Ok(()), Ok(())],
            Id::Removed => [Ok(()), Err(None)],
            _ => [Err(None), Err(None)],
        };
        assert_eq!([may(*id, false, &[]), may(*id, true, &[])], expected, "{id:?}");
        assert_eq!(may_begin(AutoReplace::Off, *id, false, &[], NOW), Err(None));
    }
    assert_eq!(may(Id::LostData, true, &[at(11)]), Ok(()));
    for (earlier, words) in [
        (&[at(60), at(9)][..], "540 s ago"),
        (&[at(-60)], "not again within 600 s"),
        (&[at(90), at(80), at(70)], "3 directories of earlier replacements"),
    ] {
        let why = may(Id::RolledBack, true, earlier).unwrap_err().expect("it is told");
        assert!(why.contains(words), "{why}");
    }
}
