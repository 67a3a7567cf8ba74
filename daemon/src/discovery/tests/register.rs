//! Every decision about a registration, as a script: what the service says, what the member does next.

use std::time::Duration;

use super::support::{self, MEMBERS, entry, own, registering, way};
use crate::{
    discovery::{
        Found, Registering,
        register::{Answer, Listed, Question, Register, Step},
        settings::Patience,
    },
    refusal::Id,
};

const SECOND: Duration = Duration::from_secs(1);

/// A register with a clock of its own.
struct Script {
    register: Register,
    now: Duration,
    lines: Vec<String>,
}

impl Script {
    fn new() -> Script {
        Script::with(None, Patience { service: 60 * SECOND, members: None })
    }

    fn again(registered: &Registering) -> Script {
        Script::with(Some(registered), Patience { service: 60 * SECOND, members: None })
    }

    fn with(registered: Option<&Registering>, patience: Patience) -> Script {
        let register = Register::new(&way(), &own(0), registering(0), registered, patience);
        Script { register, now: Duration::ZERO, lines: Vec::new() }
    }

    /// The next step that is not a pause; pauses pass.
    fn next(&mut self) -> Step {
        loop {
            let step = self.register.step(self.now);
            self.lines.extend(self.register.lines());
            match step {
                Step::Rest(pause) => self.now += pause,
                step => return step,
            }
        }
    }

    #[track_caller]
    fn asks(&mut self, question: Question) -> &mut Script {
        assert_eq!(self.next(), Step::Ask(question));
        self
    }

    #[track_caller]
    fn waits(&mut self) -> Duration {
        match self.next() {
            Step::Ask(Question::Wait { at_most, .. }) => at_most,
            step => panic!("not waiting but {step:?}"),
        }
    }

    fn told(&mut self, answer: Answer) -> &mut Script {
        self.register.answer(answer, self.now);
        self
    }

    #[track_caller]
    fn saves(&mut self) -> &mut Script {
        assert_eq!(self.next(), Step::Save);
        self.register.saved();
        self
    }

    #[track_caller]
    fn refused(&mut self, id: Id, words: &[&str]) -> &mut Script {
        let step = self.next();
        let Step::Refuse(refusal) = step else { panic!("not refused but {step:?}") };
        assert_eq!(refusal.id, id, "{}", refusal.text());
        for word in words {
            assert!(refusal.text().contains(word), "{word:?} is not in {}", refusal.text());
        }
        self
    }

    #[track_caller]
    fn found(&mut self) -> Found {
        match self.next() {
            Step::Found(found) => found,
            step => panic!("not found but {step:?}"),
        }
    }

    /// Up to the list, which says `there`.
    fn listed(&mut self, size: &str, there: &[usize]) -> &mut Script {
        self.asks(Question::Size).told(Answer::Size(Some(size.into())));
        self.asks(Question::List).told(list(there))
    }

    /// Registered, with the others of `there` in this order.
    fn registered(&mut self, size: &str, before: &[usize], after: &[usize]) -> &mut Script {
        self.listed(size, before).saves().asks(Question::Register).told(Answer::Registered);
        self.asks(Question::List).told(list(after))
    }
}

/// Members in the order of their registration.
fn list(members: &[usize]) -> Answer {
    let entries = members.iter().zip(10..).map(|(member, created)| entry(*member, created)).collect();
    Answer::Listed(Listed { entries, at: 20 })
}

fn lost() -> Answer {
    Answer::Lost("connection refused".into())
}

#[test]
fn the_third_of_three_finds_all() {
    let mut script = Script::new();
    let found = script.registered("3", &[1, 2], &[1, 2, 0]).found();
    assert_eq!(found.cluster.canonical(), "n0=http://h0:1,n1=http://h1:1,n2=http://h2:1");
    assert_eq!((found.own.as_str(), found.token.as_str()), ("n0", support::TOKEN));
    let own = registering(0).member;
    assert!(script.lines.contains(&format!("found self {own} in the cluster (n0)")), "{:?}", script.lines);
    assert!(script.register.seen());
}

#[test]
fn the_first_of_three_waits_and_tells_for_whom() {
    let mut script = Script::new();
    script.registered("3", &[], &[0]).waits();
    assert!(script.lines.contains(&"found 1 peer(s), waiting for 2 more".to_owned()), "{:?}", script.lines);
    script.now += 12 * SECOND;
    assert_eq!(script.register.waiting(script.now), "1 of 3 registered: n0; waiting for 2 more (12 s)");
    script.told(Answer::Event).asks(Question::List).told(list(&[0, 2]));
    assert_eq!(script.waits(), 30 * SECOND);
    assert_eq!(script.register.waiting(script.now), "2 of 3 registered: n0, n2; waiting for 1 more (12 s)");
    script.told(Answer::Event).asks(Question::List).told(list(&[0, 2, 1]));
    assert_eq!(script.found().cluster.members().len(), 3);
}

#[test]
fn the_order_of_registration_decides_and_not_the_order_of_the_list() {
    let mut script = Script::new();
    let entries = vec![entry(3, 19), entry(0, 18), entry(1, 11)];
    script.listed("2", &[1]).saves().asks(Question::Register).told(Answer::Registered);
    script.asks(Question::List).told(Answer::Listed(Listed { entries, at: 20 }));
    assert_eq!(script.found().cluster.canonical(), "n0=http://h0:1,n1=http://h1:1");
}

#[test]
fn every_way_a_wait_can_end_leads_back_to_the_list_or_the_wait() {
    for (answer, then_waits) in [
        (Answer::Event, false),
        (Answer::Held, false),
        (Answer::Forgotten, false),
        (Answer::Quiet, true),
        (lost(), false),
    ] {
        let mut script = Script::new();
        script.registered("2", &[], &[0]).waits();
        script.told(answer.clone());
        match script.next() {
            Step::Ask(Question::Wait { after: 20, .. }) if then_waits => {}
            Step::Ask(Question::List) if !then_waits => {}
            step => panic!("after {answer:?}: {step:?}"),
        }
    }
}

#[test]
fn a_service_that_ends_every_wait_at_once_is_not_asked_in_a_tight_loop() {
    for answer in [Answer::Quiet, Answer::Forgotten] {
        let mut script = Script::new();
        script.registered("2", &[], &[0]).waits();
        let began = script.now;
        for _ in 0..10 {
            script.told(answer.clone());
            if script.next() == Step::Ask(Question::List) {
                script.told(list(&[0])).waits();
            }
        }
        assert!(script.now - began >= 10 * SECOND, "{answer:?}: ten waits in {:?}", script.now - began);
    }
}

/// The service keeps a thousand events: a busy one used to burn the token here.
#[test]
fn a_cleared_history_ends_nothing() {
    let mut script = Script::new();
    script.registered("2", &[], &[0]).waits();
    script.told(Answer::Forgotten).asks(Question::List).told(list(&[0, 1]));
    assert_eq!(script.found().cluster.members().len(), 2);
}

/// A deletion used to count as a member without a name.
#[test]
fn a_deleted_registration_of_another_is_waited_for_again() {
    let mut script = Script::new();
    script.registered("3", &[1], &[1, 0]).waits();
    script.told(Answer::Event).asks(Question::List).told(list(&[0])).waits();
    assert_eq!(script.register.waiting(script.now), "1 of 3 registered: n0; waiting for 2 more (0 s)");
}

#[test]
fn a_deleted_registration_of_ones_own_is_made_again() {
    let mut script = Script::new();
    script.registered("2", &[], &[0]).waits();
    script.told(Answer::Event).asks(Question::List).told(list(&[]));
    script.asks(Question::Register).told(Answer::Registered).asks(Question::List).told(list(&[0])).waits();
}

/// Killed while waiting, started again with its directory: the token is not burnt.
#[test]
fn a_member_that_was_killed_resumes() {
    let mut script = Script::again(&registering(0));
    script.listed("3", &[0, 1]).waits();
    assert!(
        script.lines.iter().any(|line| line.contains("registration is there already")),
        "{:?}",
        script.lines
    );
    // Killed between saving and registering.
    let mut script = Script::again(&registering(0));
    script
        .listed("2", &[1])
        .asks(Question::Register)
        .told(Answer::Registered)
        .asks(Question::List)
        .told(list(&[1, 0]));
    assert_eq!(script.found().cluster.members().len(), 2);
}

/// The service may have done what it never answered.
#[test]
fn a_registration_with_an_unknown_outcome_is_ones_own() {
    for told in [Answer::Taken(None), Answer::Taken(Some(registering(0).value))] {
        let mut script = Script::new();
        script.listed("2", &[]).saves().asks(Question::Register).told(lost()).asks(Question::Register);
        assert!(script.register.seen(), "the directory must be kept from now on");
        script.told(told.clone());
        if told == Answer::Taken(None) {
            script.asks(Question::OwnEntry).told(Answer::OwnEntry(Some(registering(0).value)));
        }
        script.asks(Question::List).told(list(&[0])).waits();
    }
}

#[test]
fn a_place_that_is_taken_is_a_conflict_with_both_values() {
    let mine = registering(0).value;
    // Listed before anything was written here, by the very same value: this directory did not register it.
    let mut script = Script::new();
    script.listed("3", &[0, 1]).refused(Id::TokenConflict, &["did not make", &mine]);
    assert!(!script.register.seen(), "a stranger's registration must not become one's own");
    // Between the list and the registration.
    let mut script = Script::new();
    script.listed("3", &[]).saves().asks(Question::Register).told(Answer::Taken(None));
    script.asks(Question::OwnEntry).told(Answer::OwnEntry(Some("other=http://h0:1".into())));
    script.refused(Id::TokenConflict, &["other=http://h0:1", &mine, "--data-dir"]);
    assert!(!script.register.seen());
    let mut script = Script::new();
    script.listed("3", &[]).saves().asks(Question::Register).told(Answer::Taken(Some(mine.clone())));
    script.refused(Id::TokenConflict, &["did not make"]);
    // Resumed, and somebody has overwritten it meanwhile.
    let mut script = Script::again(&registering(0));
    let mut entries = vec![entry(0, 10)];
    entries[0].value = "other=http://h0:1".into();
    script.asks(Question::Size).told(Answer::Size(Some("3".into())));
    script.asks(Question::List).told(Answer::Listed(Listed { entries, at: 20 }));
    script.refused(Id::TokenConflict, &["other=http://h0:1", &mine]);
    assert!(script.register.seen());
}

#[test]
fn a_place_that_is_free_again_is_taken() {
    let mut script = Script::new();
    script.listed("2", &[]).saves().asks(Question::Register).told(Answer::Taken(None));
    script.asks(Question::OwnEntry).told(Answer::OwnEntry(None));
    script.asks(Question::Register).told(Answer::Registered);
}

#[test]
fn a_directory_that_registered_as_somebody_else_is_refused_before_anything_is_asked() {
    let mut earlier = registering(0);
    earlier.value = "old=http://h0:1".into();
    Script::again(&earlier).refused(Id::TokenConflict, &["old=http://h0:1", "n0=http://h0:1"]);
    let mut earlier = registering(0);
    earlier.token_sha256 = "another".into();
    let mut script = Script::again(&earlier);
    script.refused(Id::TokenConflict, &["with token"]);
    assert!(script.register.seen());
}

#[test]
fn a_full_token_names_its_members() {
    let mut script = Script::new();
    script
        .listed("2", &[1, 2])
        .refused(Id::DiscoveryFull, &["n1=http://h1:1; n2=http://h2:1", "cairnctl member add n0"]);
    assert!(!script.register.seen());
    // Others were faster.
    let mut script = Script::new();
    script
        .registered("2", &[1], &[1, 2, 0])
        .refused(Id::DiscoveryFull, &["n2=http://h2:1", "this member: n0"]);
    assert!(script.register.seen());
}

#[test]
fn what_is_wrong_with_a_size_is_told() {
    for (size, words) in [
        (None, "is not there"),
        (Some("0"), "at least one"),
        (Some("abc"), "\"abc\", not a number"),
        (Some("-1"), "not a number"),
        (Some(" 1"), "not a number"),
        (Some(""), "not a number"),
        (Some("99999999999999999999"), "not a number"),
        (Some("1000000"), "more than any cluster"),
    ] {
        let mut script = Script::new();
        script.asks(Question::Size).told(Answer::Size(size.map(str::to_owned)));
        script.refused(Id::DiscoverySizeBad, &[words]);
    }
}

#[test]
fn names_and_urls_are_unique_before_a_place_is_used_up() {
    let clash = |value: &str, id: usize| {
        let mut entry = entry(1, 10);
        entry.value = value.into();
        entry.key = support::id_of(value).to_string();
        let mut script = Script::new();
        script.asks(Question::Size).told(Answer::Size(Some("3".into())));
        script.asks(Question::List).told(Answer::Listed(Listed { entries: vec![entry], at: 20 }));
        assert_eq!(id, 0);
        script
    };
    let mut script = clash("n0=http://h9:1", 0);
    script.refused(Id::DiscoveryDuplicate, &["the name n0", "n0=http://h9:1", "--name"]);
    assert!(!script.register.seen());
    clash("n9=http://h0:1,n9=http://h9:1", 0).refused(Id::DiscoveryDuplicate, &["the peer URL http://h0:1"]);
}

#[test]
fn a_token_that_is_spelled_otherwise_is_recognised() {
    let mut other = entry(1, 10);
    other.key = "5fb6535ad6cff2a".into();
    let mut script = Script::new();
    script.asks(Question::Size).told(Answer::Size(Some("3".into())));
    script.asks(Question::List).told(Answer::Listed(Listed { entries: vec![other], at: 20 }));
    script.refused(Id::DiscoveryTokenSpelling, &["n1=http://h1:1 as 5fb6535ad6cff2a", "letter by letter"]);
    assert!(!script.register.seen());
}

#[test]
fn an_entry_that_is_no_member_is_shown() {
    for (value, words) in [
        ("", "one member"),
        ("garbage", "not name=url"),
        ("n1=ftp://h1:1", "must be http"),
        ("n1=http://h1:1,n2=http://h2:1", "one member"),
        ("n1=https://h1:1", ""),
    ] {
        let mut wrong = entry(1, 10);
        wrong.value = value.into();
        if value.starts_with("n1=https") {
            wrong.key = support::id_of(value).to_string();
        }
        let mut script = Script::new();
        script.asks(Question::Size).told(Answer::Size(Some("3".into())));
        script.asks(Question::List).told(Answer::Listed(Listed { entries: vec![wrong], at: 20 }));
        let id = if words.is_empty() { Id::NotSupported } else { Id::DiscoveryBadEntry };
        script.refused(id, &[words]);
    }
}

#[test]
fn final_answers_end_the_search_with_their_own_name() {
    for (answer, id) in [
        (Answer::NoToken("404".into()), Id::DiscoveryTokenUnknown),
        (Answer::NotDiscovery("<html>".into()), Id::DiscoveryNotEtcd),
        (Answer::Rejected("110".into()), Id::DiscoveryRejected),
        (Answer::Event, Id::DiscoveryNotEtcd),
    ] {
        let mut script = Script::new();
        script.asks(Question::Size).told(answer.clone()).refused(id, &[support::TOKEN]);
        assert_ne!(id, Id::DiscoveryUnreachable, "{answer:?}");
    }
}

#[test]
fn a_silent_service_is_asked_ever_less_often_and_given_up_after_a_minute() {
    let mut script = Script::new();
    let mut asked_at = Vec::new();
    loop {
        match script.next() {
            Step::Ask(Question::Size) => {
                asked_at.push(script.now.as_secs());
                script.told(lost());
            }
            Step::Refuse(refusal) => {
                assert_eq!(refusal.id, Id::DiscoveryUnreachable);
                assert!(refusal.text().contains("connection refused"), "{}", refusal.text());
                break;
            }
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(asked_at, [0, 2, 6, 14, 30, 60]);
    assert!(
        script.lines[0].contains("connection refused; trying again in 2 s, for 60 s more"),
        "{:?}",
        script.lines
    );
    assert!(!script.register.seen());
}

#[test]
fn the_pause_grows_to_256_seconds_and_an_answer_makes_it_short_again() {
    let mut script = Script::with(None, Patience { service: 3600 * SECOND, members: None });
    let mut pauses = Vec::new();
    for _ in 0..10 {
        script.asks(Question::Size).told(lost());
        let Step::Rest(pause) = script.register.step(script.now) else { panic!() };
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
    script.asks(Question::Size).told(Answer::Size(Some("3".into())));
    script.asks(Question::List).told(lost());
    assert_eq!(script.register.step(script.now), Step::Rest(2 * SECOND));
}

/// A wait of an hour is no silence of an hour.
#[test]
fn patience_with_the_service_counts_from_its_last_answer() {
    let mut script = Script::new();
    script.registered("2", &[], &[0]);
    for _ in 0..200 {
        let held = script.waits();
        script.now += held;
        script.told(Answer::Held).asks(Question::List).told(list(&[0]));
    }
    script.waits();
    script.told(lost()).asks(Question::List).told(list(&[0, 1]));
    assert_eq!(script.found().cluster.members().len(), 2);
}

#[test]
fn members_are_waited_for_without_end_unless_a_limit_is_set() {
    let mut script = Script::with(None, Patience { service: 40 * SECOND, members: Some(40 * SECOND) });
    script.registered("2", &[], &[0]);
    assert_eq!(script.waits(), 30 * SECOND);
    script.now += 30 * SECOND;
    script.told(Answer::Held).asks(Question::List).told(list(&[0]));
    assert_eq!(script.waits(), 10 * SECOND);
    script.now += 10 * SECOND;
    script.told(Answer::Held).asks(Question::List).told(list(&[0]));
    script
        .refused(Id::DiscoveryIncomplete, &["1 of 2 members did not register within 40 s", "n0=http://h0:1"]);
    assert!(script.register.seen());
}

/// A list that never ends is no cluster.
#[test]
fn a_list_beyond_all_bounds_is_refused() {
    let entries = (0..10_001).map(|at| entry(at % MEMBERS, at as u64)).collect();
    let mut script = Script::new();
    script.asks(Question::Size).told(Answer::Size(Some("3".into())));
    script.asks(Question::List).told(Answer::Listed(Listed { entries, at: 20 }));
    script.refused(Id::DiscoveryNotEtcd, &["10001 entries"]);
}
