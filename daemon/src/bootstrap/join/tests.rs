use super::*;
use crate::config::cluster;

const A: u64 = 0xa;
const B: u64 = 0xb;
const NEW: u64 = 0xc;

fn member(id: u64, url: &str, name: &str) -> PeerMember {
    PeerMember {
        id: MemberId(id),
        peer_urls: url.split(',').map(str::to_owned).collect(),
        is_learner: false,
        name: name.into(),
        client_urls: if name.is_empty() { vec![] } else { vec![format!("http://{name}:2379")] },
    }
}

/// Two members that run, and the place of the third.
fn ready() -> Vec<PeerMember> {
    vec![member(A, "http://h1:1", "n1"), member(B, "http://h2:1", "n2"), member(NEW, "http://h3:1", "")]
}

fn joiner(initial: &str) -> Joiner {
    let cluster = cluster::parse(initial).unwrap();
    Joiner {
        own: cluster.find("n3").unwrap().clone(),
        others: cluster.members().iter().filter(|member| member.name.as_str() != "n3").cloned().collect(),
        max_learners: 1,
        dir_uuid: None,
    }
}

const THREE: &str = "n1=http://h1:1,n2=http://h2:1,n3=http://h3:1";

fn from(url: &str, members: Vec<PeerMember>) -> Answer {
    says(url, 7, members, Some("3.5.0"))
}

fn says(url: &str, cluster: u64, members: Vec<PeerMember>, version: Option<&str>) -> Answer {
    let said = Said { cluster: ClusterId(cluster), members, cluster_version: version.map(str::to_owned) };
    Answer { url: url.into(), said: Ok(said) }
}

fn silent(url: &str) -> Answer {
    Answer { url: url.into(), said: Err("connection refused".into()) }
}

fn verdict(initial: &str, answers: &[Answer], settled: bool) -> Verdict {
    let addresses = Addresses::from([("alias".into(), vec!["10.0.0.3".parse().unwrap()])]);
    let joiner = joiner(initial);
    let question = Question { joiner: &joiner, addresses: &addresses, version: "3.7.1", settled };
    decide(&question, answers, &mut Vec::new())
}

fn outcome(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Join(place) if place.is_learner => ("join", "learner"),
        Verdict::Join(_) => ("join", "voter"),
        Verdict::Wait(refusal) => ("wait", refusal.id.name()),
        Verdict::AskAgain(refusal) => ("again", refusal.id.name()),
        Verdict::Lost(_, refusal) | Verdict::Refuse(refusal) => ("refuse", refusal.id.name()),
    }
}

#[test]
fn every_case_of_joining() {
    let learner = || {
        let mut members = ready();
        members[2].is_learner = true;
        members
    };
    let changed = |change: &dyn Fn(&mut Vec<PeerMember>)| {
        let mut members = ready();
        change(&mut members);
        vec![from("http://h1:1", members)]
    };
    let one = |members| vec![from("http://h1:1", members)];
    type Case<'a> = (&'a str, &'a str, Vec<Answer>, (&'a str, &'a str));
    let cases: Vec<Case> = vec![
        (
            "everybody agrees",
            THREE,
            vec![from("http://h1:1", ready()), from("http://h2:1", ready())],
            ("join", "voter"),
        ),
        (
            "one member answers and one is down",
            THREE,
            vec![from("http://h1:1", ready()), silent("http://h2:1")],
            ("join", "voter"),
        ),
        ("a place for a learner", THREE, one(learner()), ("join", "learner")),
        (
            "A14 nobody answers",
            THREE,
            vec![silent("http://h1:1"), silent("http://h2:1")],
            ("wait", "CLUSTER_UNREACHABLE"),
        ),
        (
            "two clusters",
            THREE,
            vec![from("http://h1:1", ready()), says("http://h2:1", 8, ready(), Some("3.5.0"))],
            ("refuse", "CLUSTERS_DIFFER"),
        ),
        ("A12 nobody has added this member", THREE, changed(&|m| drop(m.pop())), ("again", "NOT_A_MEMBER")),
        (
            "added with another URL",
            THREE,
            changed(&|m| m[2].peer_urls = vec!["http://h9:1".into()]),
            ("again", "NOT_A_MEMBER"),
        ),
        (
            "added with one URL of two",
            THREE,
            changed(&|m| m[2].peer_urls.push("http://h3:2".into())),
            ("again", "NOT_A_MEMBER"),
        ),
        ("A13 a member is not given", "n1=http://h1:1,n3=http://h3:1", one(ready()), ("join", "voter")),
        (
            "A13 a member is given that is none",
            "n1=http://h1:1,n2=http://h2:1,n3=http://h3:1,n4=http://h4:1",
            one(ready()),
            ("join", "voter"),
        ),
        (
            "A13 a member's URL is wrong",
            "n1=http://h1:1,n2=http://h9:1,n3=http://h3:1",
            one(ready()),
            ("join", "voter"),
        ),
        (
            "names of others are not compared",
            "x=http://h1:1,y=http://h2:1,n3=http://h3:1",
            one(ready()),
            ("join", "voter"),
        ),
        ("somebody else waits for its start too", THREE, changed(&|m| m[1].name.clear()), ("join", "voter")),
        (
            "A19 the name is another's",
            "x=http://h1:1,y=http://h2:1,n3=http://h3:1",
            changed(&|m| m[1].name = "n3".into()),
            ("again", "NAME_IN_USE"),
        ),
        (
            "one address spelled as a name and as a number",
            "n1=http://h1:1,n2=http://h2:1,n3=http://alias:1",
            changed(&|m| m[2].peer_urls = vec!["http://10.0.0.3:1".into()]),
            ("join", "voter"),
        ),
        (
            "too many learners",
            THREE,
            changed(&|m| m.iter_mut().skip(1).for_each(|m| m.is_learner = true)),
            ("again", "TOO_MANY_LEARNERS"),
        ),
        (
            "no version yet",
            THREE,
            vec![says("http://h1:1", 7, ready(), None)],
            ("wait", "CLUSTER_UNREACHABLE"),
        ),
        (
            "a newer cluster",
            THREE,
            vec![says("http://h1:1", 7, ready(), Some("3.8.0"))],
            ("refuse", "VERSION_CONFLICT"),
        ),
        (
            "another generation",
            THREE,
            vec![says("http://h1:1", 7, ready(), Some("4.0.0"))],
            ("refuse", "VERSION_CONFLICT"),
        ),
        (
            "too old a cluster",
            THREE,
            vec![says("http://h1:1", 7, ready(), Some("2.3.0"))],
            ("refuse", "VERSION_CONFLICT"),
        ),
        (
            "a version that is none",
            THREE,
            vec![says("http://h1:1", 7, ready(), Some("x"))],
            ("refuse", "VERSION_CONFLICT"),
        ),
        ("the same version", THREE, vec![says("http://h1:1", 7, ready(), Some("3.7.0"))], ("join", "voter")),
        ("a cluster of nobody", THREE, one(vec![]), ("again", "NOT_A_MEMBER")),
    ];
    for (case, initial, answers, expected) in cases {
        for settled in [false, true] {
            assert_eq!(outcome(verdict(initial, &answers, settled)), expected, "{case}");
        }
    }
}

/// One that has not applied the addition yet answers beside one that has.
#[test]
fn members_that_disagree_are_asked_again_and_then_the_majority_counts() {
    let behind = || ready().into_iter().take(2).collect::<Vec<_>>();
    let two = [from("http://h1:1", ready()), from("http://h2:1", behind())];
    assert_eq!(outcome(verdict(THREE, &two, false)), ("again", "MEMBERS_DISAGREE"));
    assert_eq!(
        outcome(verdict(THREE, &two, true)),
        ("again", "MEMBERS_DISAGREE"),
        "one against one says nothing"
    );
    let three = [from("http://h1:1", ready()), from("http://h2:1", behind()), from("http://h2:2", ready())];
    assert_eq!(outcome(verdict(THREE, &three, false)), ("again", "MEMBERS_DISAGREE"));
    assert_eq!(outcome(verdict(THREE, &three, true)), ("join", "voter"));
    // A name that one knows and the other does not is no disagreement.
    let mut unnamed = ready();
    unnamed[1].name.clear();
    let names = [from("http://h1:1", ready()), from("http://h2:1", unnamed)];
    assert_eq!(outcome(verdict(THREE, &names, false)), ("join", "voter"));
}

/// A10, A11: it has been a member before. The documented replacement removes a member and adds another at the same URL: one that lags knows only the old one.
#[test]
fn a_lag_alone_refuses_nobody() {
    let mut before = ready();
    (before[2].id, before[2].name) = (MemberId(0xd), "n3".into());
    let lags = [from("http://h1:1", before), silent("http://h2:1")];
    assert_eq!(outcome(verdict(THREE, &lags, false)), ("again", "LOST_DATA"));
    assert_eq!(outcome(verdict(THREE, &lags, true)), ("refuse", "LOST_DATA"));
}

#[test]
fn a_place_is_the_running_clusters_word() {
    let Verdict::Join(place) = verdict(THREE, &[from("http://h1:1", ready())], false) else {
        panic!("expected a place");
    };
    assert_eq!((place.member, place.cluster), (MemberId(NEW), ClusterId(7)));
    let names: Vec<&str> = place.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"], "the name of who has not started is from the settings");
}

/// Whatever is refused names the command that mends it, with the user's own values.
#[test]
fn refusals_of_joining_name_the_command_that_mends_them() {
    let text = |answers: &[Answer], initial: &str| match verdict(initial, answers, true) {
        Verdict::Join(_) => panic!("expected a refusal"),
        Verdict::Wait(refusal)
        | Verdict::AskAgain(refusal)
        | Verdict::Lost(_, refusal)
        | Verdict::Refuse(refusal) => refusal.text(),
    };
    let none = vec![from("http://h1:1", ready().into_iter().take(2).collect())];
    let said = text(&none, THREE);
    let add = "cairnctl --endpoints=http://n1:2379,http://n2:2379 member add n3 --peer-urls=http://h3:1";
    assert!(said.contains(add), "{said}");
    let mut before = ready();
    before[2].name = "n3".into();
    let said = text(&[from("http://h1:1", before)], THREE);
    assert!(said.contains("member remove c, then ") && said.contains("member add n3"), "{said}");
    let said = text(&[from("http://h1:1", ready()), says("http://h2:1", 8, ready(), None)], THREE);
    assert!(
        said.contains("at http://h1:1: cluster 7") && said.contains("at http://h2:1: cluster 8"),
        "{said}"
    );
    let mut notes = Vec::new();
    let (joiner, addresses) = (joiner("n1=http://h1:1,n3=http://h3:1"), Addresses::new());
    let question = Question { joiner: &joiner, addresses: &addresses, version: "3.7.1", settled: true };
    let verdict = decide(&question, &[from("http://h1:1", ready())], &mut notes);
    assert!(matches!(verdict, Verdict::Join(_)) && notes.len() == 1, "A13 is a warning: {verdict:?}");
    assert!(
        notes[0].fields.iter().any(|(_, text)| text == &format!("--initial-cluster={THREE}")),
        "{notes:?}"
    );
}

/// Joining was cut short before anything arrived. Meanwhile the cluster may have changed, or given the place up.
#[test]
fn a_joiner_that_starts_again_follows_a_cluster_that_has_changed() {
    let mut identity = crate::identity::sample();
    (identity.member_id, identity.cluster_id) = (MemberId(NEW), ClusterId(7));
    let outcome = |answers: &[Answer]| match again(&identity, answers, "/d") {
        Again::AsBefore => "as before".to_owned(),
        Again::With(members) => members.iter().map(|m| m.id.to_string()).collect::<Vec<_>>().join(","),
        Again::Gone(refusal) => refusal.id.name().to_owned(),
    };
    let foreign = says("http://h1:1", 8, vec![], Some("3.5.0"));
    assert_eq!(outcome(&[]), "as before");
    assert_eq!(outcome(&[silent("http://h1:1"), foreign.clone()]), "as before");
    let moved = vec![member(B, "http://h2:1", "n2"), member(NEW, "http://h3:1", "")];
    assert_eq!(outcome(&[silent("http://h1:1"), from("http://h2:1", moved.clone())]), "b,c");
    let without = vec![member(B, "http://h2:1", "n2")];
    assert_eq!(outcome(&[from("http://h1:1", without.clone()), foreign]), "NOT_A_MEMBER");
    assert_eq!(
        outcome(&[from("http://h1:1", without), from("http://h2:1", moved)]),
        "b,c",
        "one of them lags"
    );
}
