//! Each checker is shown a lie and must say so: a checker that cannot fail proves nothing. The truth it is told beside it is the same
//! small store every time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::{
    etcdserverpb::{
        ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use bytes::Bytes;

use super::{
    Entry, Evidence, History, StreamLog, Subscription, Violation, What, completeness,
    history::State,
    lease::{Answer, Exchange, LeaseEvidence, lease_violations},
    sessions, watch_violations,
};

/// Revision 2 puts a, 3 puts b, 4 puts a and b and c in one transaction, 5 deletes a, 6 puts other, 7 puts a again.
fn truth() -> History {
    let mut history = History::default();
    let mut state = State::new();
    let put = |state: &mut State, key: &'static str, value: &'static str, revision: i64| {
        let before = state.get(key.as_bytes());
        let kv = KeyValue {
            key: key.into(),
            value: value.into(),
            mod_revision: revision,
            create_revision: before.map_or(revision, |kv| kv.create_revision),
            version: before.map_or(1, |kv| kv.version + 1),
            lease: 0,
        };
        state.insert(key.into(), kv);
    };
    put(&mut state, "a", "1", 2);
    history.learn(2, state.clone()).unwrap();
    put(&mut state, "b", "1", 3);
    history.learn(3, state.clone()).unwrap();
    for key in ["a", "b", "c"] {
        put(&mut state, key, "2", 4);
    }
    history.learn(4, state.clone()).unwrap();
    state.remove(b"a".as_slice());
    history.learn(5, state.clone()).unwrap();
    put(&mut state, "other", "x", 6);
    history.learn(6, state.clone()).unwrap();
    put(&mut state, "a", "3", 7);
    history.learn(7, state.clone()).unwrap();
    let written = [("c", "2"), ("b", "2"), ("a", "2")];
    let written = written.map(|(key, value)| (Bytes::from(key), Some(Bytes::from(value)))).to_vec();
    assert_eq!(history.acknowledged(4, &written), []);
    history
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

/// a up to d, from the beginning.
fn create() -> WatchCreateRequest {
    WatchCreateRequest { key: "a".into(), range_end: "d".into(), start_revision: 1, ..Default::default() }
}

fn created(id: i64) -> WatchResponse {
    WatchResponse { header: header(7), watch_id: id, created: true, ..Default::default() }
}

/// What a true watch of [`create`] delivers of these revisions, in one response.
fn events(history: &History, create: &WatchCreateRequest, revisions: &[i64]) -> WatchResponse {
    let all: Vec<Event> = revisions
        .iter()
        .flat_map(|revision| history.expected(create, *revision, *revision))
        .flat_map(|(_, events)| events.into_iter().cloned())
        .map(|event| Event { prev_kv: event.prev_kv.filter(|_| create.prev_kv), ..event })
        .collect();
    let header = header(*revisions.iter().max().expect("a revision"));
    WatchResponse { header, events: all, ..Default::default() }
}

fn bookmark(id: i64, revision: i64) -> WatchResponse {
    WatchResponse { header: header(revision), watch_id: id, ..Default::default() }
}

#[derive(Default)]
struct Story {
    log: StreamLog,
}

impl Story {
    fn of(create: WatchCreateRequest) -> Story {
        Story::default().asks(create).told(created(0))
    }

    fn entry(mut self, what: What) -> Story {
        let at = Duration::from_secs(self.log.entries.len() as u64);
        self.log.entries.push(Entry { at, what });
        self
    }

    fn asks(self, create: WatchCreateRequest) -> Story {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        self.entry(What::Sent(request, Some(Subscription(1))))
    }

    fn cancels(self, watch_id: i64) -> Story {
        let request = RequestUnion::CancelRequest(WatchCancelRequest { watch_id });
        self.entry(What::Sent(WatchRequest { request_union: Some(request) }, None))
    }

    fn told(self, response: WatchResponse) -> Story {
        self.entry(What::Received(response))
    }
}

fn judge(history: &History, stories: Vec<Story>) -> Vec<Violation> {
    let mut streams: Vec<StreamLog> = stories.into_iter().map(|story| story.log).collect();
    // One stream after the other.
    for (number, stream) in streams.iter_mut().enumerate() {
        for entry in &mut stream.entries {
            entry.at += Duration::from_secs(1000 * number as u64);
        }
    }
    watch_violations(&Evidence { streams: &streams, history })
}

/// Exactly these rules are broken.
#[track_caller]
fn breaks(rules: &[&str], history: &History, stories: Vec<Story>) {
    let violations = judge(history, stories);
    let found: BTreeSet<&str> = violations.iter().map(|violation| violation.rule).collect();
    assert_eq!(found, rules.iter().copied().collect(), "{violations:#?}");
}

#[test]
fn a_true_story_is_believed() {
    let history = truth();
    let create = WatchCreateRequest { prev_kv: true, ..create() };
    let first = Story::of(create.clone()).told(events(&history, &create, &[2, 3])).told(bookmark(0, 3));
    let resumed = WatchCreateRequest { start_revision: 4, ..create.clone() };
    let second = Story::of(resumed)
        .told(events(&history, &create, &[4, 5]))
        .told(bookmark(-1, 6))
        .told(events(&history, &create, &[7]))
        .cancels(0)
        .told(WatchResponse { canceled: true, ..bookmark(0, 7) });
    breaks(&[], &history, vec![first, second]);
}

#[test]
fn ordered_sees_a_revision_that_comes_late() {
    let history = truth();
    let story = Story::of(create())
        .told(events(&history, &create(), &[2, 4]))
        .told(WatchResponse { header: header(4), ..events(&history, &create(), &[3]) });
    breaks(&["ordered"], &history, vec![story]);
    let mut early_header = events(&history, &create(), &[2, 3]);
    early_header.header = header(2);
    breaks(&["ordered"], &history, vec![Story::of(create()).told(early_header)]);
}

#[test]
fn unique_sees_an_event_twice() {
    let history = truth();
    let mut response = events(&history, &create(), &[2]);
    response.events.push(response.events[0].clone());
    // The revision is not what it was, and over its reconnects the subscription sees it too.
    breaks(&["unique", "atomic", "resumable"], &history, vec![Story::of(create()).told(response)]);
}

#[test]
fn reliable_sees_a_gap_and_an_invention() {
    let history = truth();
    let gap = Story::of(create()).told(events(&history, &create(), &[2, 4]));
    breaks(&["reliable", "resumable"], &history, vec![gap]);
    let mut invented = events(&history, &create(), &[2]);
    invented.events[0].kv.as_mut().unwrap().value = "lie".into();
    breaks(&["reliable"], &history, vec![Story::of(create()).told(invented)]);
    let mut future = events(&history, &create(), &[2, 3, 4, 5, 7]);
    let mut later = future.events[0].clone();
    later.kv.as_mut().unwrap().mod_revision = 8;
    future.events.push(later);
    future.header = header(8);
    breaks(&["reliable"], &history, vec![Story::of(create()).told(future)]);
}

#[test]
fn atomic_sees_a_split_revision_a_missing_event_and_a_wrong_order() {
    let history = truth();
    let whole = events(&history, &create(), &[4]);
    let create = WatchCreateRequest { start_revision: 4, ..create() };
    let part = |events: &[Event]| WatchResponse { events: events.to_vec(), ..whole.clone() };
    let split = Story::of(create.clone()).told(part(&whole.events[..1])).told(part(&whole.events[1..]));
    breaks(&["atomic"], &history, vec![split]);
    let lost = Story::of(create.clone()).told(part(&whole.events[..2]));
    breaks(&["atomic", "resumable"], &history, vec![lost]);
    let mut other_order = whole.clone();
    other_order.events.reverse();
    breaks(&["atomic"], &history, vec![Story::of(create.clone()).told(other_order)]);

    // In fragments it is allowed, to whoever asked for them.
    let fragments = |create: WatchCreateRequest| {
        let first = WatchResponse { fragment: true, ..part(&whole.events[..1]) };
        Story::of(create).told(first).told(part(&whole.events[1..]))
    };
    breaks(&[], &history, vec![fragments(WatchCreateRequest { fragment: true, ..create.clone() })]);
    breaks(&["created"], &history, vec![fragments(create)]);
}

#[test]
fn agreed_sees_two_orders_of_one_revision() {
    // Without the acknowledgement nobody knows the order, but it must be the same for all.
    let mut history = History::default();
    let kv = |key: &'static str| KeyValue { key: key.into(), mod_revision: 2, ..Default::default() };
    history.learn(2, ["a", "b"].into_iter().map(|key| (key.into(), kv(key))).collect()).unwrap();
    let one = events(&history, &create(), &[2]);
    let mut other = one.clone();
    other.events.reverse();
    let story = Story::default()
        .asks(create())
        .told(created(0))
        .told(one)
        .entry(What::Sent(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create())) }, None))
        .told(created(1))
        .told(WatchResponse { watch_id: 1, ..other });
    breaks(&["agreed"], &history, vec![story]);
}

#[test]
fn resumable_sees_what_was_lost_or_repeated_between_two_watches() {
    let history = truth();
    let first = || Story::of(create()).told(events(&history, &create(), &[2, 3]));
    let resume = |start_revision, revisions: &[i64]| {
        let create = WatchCreateRequest { start_revision, ..create() };
        Story::of(create.clone()).told(events(&history, &create, revisions))
    };
    breaks(&[], &history, vec![first(), resume(4, &[4, 5, 7])]);
    breaks(&["resumable"], &history, vec![first(), resume(5, &[5, 7])]);
    breaks(&["resumable"], &history, vec![first(), resume(3, &[3, 4])]);

    // The same gap with an honest word about it.
    let mut compacted = history.clone();
    compacted.compacted(Duration::ZERO, 5);
    let told = WatchResponse { canceled: true, compact_revision: 5, ..Default::default() };
    breaks(&[], &compacted, vec![first().told(told), resume(5, &[5, 7])]);
}

#[test]
fn bookmarkable_sees_a_bookmark_before_its_events() {
    let history = truth();
    let early = || Story::of(create()).told(events(&history, &create(), &[2]));
    // All of it, were it not for the bookmark.
    let rest = events(&history, &create(), &[3, 4, 5, 7]);
    for id in [0, -1] {
        let story = early().told(bookmark(id, 3)).told(rest.clone());
        breaks(&["bookmarkable"], &history, vec![story]);
    }
    let back = early().told(bookmark(0, 2)).told(bookmark(0, 1));
    breaks(&["bookmarkable"], &history, vec![back]);
    let beyond = early().told(rest).told(bookmark(0, 99));
    breaks(&["bookmarkable"], &history, vec![beyond]);
}

#[test]
fn prev_kv_is_the_true_one_and_only_for_who_asked() {
    let mut history = truth();
    let create = WatchCreateRequest { prev_kv: true, ..create() };
    let right = events(&history, &create, &[2, 3, 4, 5, 7]);
    breaks(&[], &history, vec![Story::of(create.clone()).told(right.clone())]);
    let unasked = WatchCreateRequest { prev_kv: false, ..create.clone() };
    breaks(&["prev_kv"], &history, vec![Story::of(unasked).told(right.clone())]);
    let mut wrong = right.clone();
    wrong.events[2].prev_kv = wrong.events[3].prev_kv.clone();
    breaks(&["prev_kv"], &history, vec![Story::of(create.clone()).told(wrong)]);
    let mut absent = right;
    absent.events[2].prev_kv = None;
    absent.events[3].prev_kv = None;
    absent.events[4].prev_kv = None;
    breaks(&["prev_kv"], &history, vec![Story::of(create.clone()).told(absent.clone())]);
    history.compacted(Duration::ZERO, 4);
    breaks(&[], &history, vec![Story::of(create).told(absent)]);
}

#[test]
fn filtered_sees_what_nobody_asked_for() {
    let history = truth();
    for filter in [FilterType::Noput, FilterType::Nodelete] {
        let filters = vec![filter as i32];
        let create = WatchCreateRequest { filters, ..create() };
        let all = events(&history, &self::create(), &[2, 3, 4, 5, 7]);
        let told = Story::of(create.clone()).told(all);
        breaks(&["filtered"], &history, vec![told]);
        let right = events(&history, &create, &[2, 3, 4, 5, 7]);
        breaks(&[], &history, vec![Story::of(create).told(right)]);
    }
    let stranger = WatchCreateRequest { key: "other".into(), range_end: Bytes::new(), ..create() };
    let told = Story::of(stranger).told(events(&history, &create(), &[2]));
    breaks(&["filtered"], &history, vec![told]);
}

#[test]
fn a_future_watch_is_silent_until_its_time() {
    let history = truth();
    let create = WatchCreateRequest { start_revision: 5, ..create() };
    let early = Story::of(create.clone()).told(events(&history, &create, &[4, 5]));
    breaks(&["not before its start"], &history, vec![early]);
    let bookmark = Story::of(create.clone()).told(bookmark(-1, 4)).told(events(&history, &create, &[5]));
    breaks(&["not before its start"], &history, vec![bookmark]);
    // From now on, and now is 5.
    let now = WatchCreateRequest { start_revision: 0, ..create };
    let reply = WatchResponse { header: header(5), ..created(0) };
    let story = Story::default().asks(now.clone()).told(reply).told(events(&history, &now, &[5, 7]));
    breaks(&["not before its start"], &history, vec![story]);
}

#[test]
fn a_cancel_needs_a_reason() {
    let history = truth();
    let canceled = |compact_revision| WatchResponse { canceled: true, compact_revision, ..bookmark(0, 0) };
    let story = || Story::of(create()).told(events(&history, &create(), &[2, 3]));
    breaks(&["canceled with reason"], &history, vec![story().told(canceled(0))]);
    breaks(&[], &history, vec![story().cancels(0).told(canceled(0))]);
    breaks(&["canceled with reason"], &history, vec![story().told(canceled(6))]);
    let mut compacted = history.clone();
    compacted.compacted(Duration::ZERO, 6);
    compacted.compacted(Duration::ZERO, 4);
    breaks(&[], &compacted, vec![story().told(canceled(6))]);
    // It had everything below 4.
    breaks(&["canceled with reason"], &compacted, vec![story().told(canceled(4))]);
    let refused = WatchResponse { canceled: true, ..created(-1) };
    breaks(&["canceled with reason"], &history, vec![Story::default().asks(create()).told(refused.clone())]);
    let reason = WatchResponse { cancel_reason: "mvcc: watcher range is empty".into(), ..refused };
    breaks(&[], &history, vec![Story::default().asks(create()).told(reason)]);
}

#[test]
fn created_comes_first_and_ids_are_kept() {
    let history = truth();
    let some = || events(&history, &create(), &[2]);
    let rules = &["created"];
    breaks(rules, &history, vec![Story::default().asks(create()).told(some()).told(created(0))]);
    breaks(rules, &history, vec![Story::of(create()).told(created(1))]);
    breaks(rules, &history, vec![Story::of(create()).asks(create()).told(created(0))]);
    let explicit = WatchCreateRequest { watch_id: 7, ..create() };
    breaks(rules, &history, vec![Story::default().asks(explicit.clone()).told(created(6))]);
    breaks(&[], &history, vec![Story::default().asks(explicit).told(created(7))]);
    let gone = WatchResponse { canceled: true, ..bookmark(0, 7) };
    breaks(rules, &history, vec![Story::of(create()).cancels(0).told(gone).told(some())]);
    let with_events = WatchResponse { created: true, ..some() };
    breaks(rules, &history, vec![Story::default().asks(create()).told(with_events)]);
}

#[test]
fn who_is_behind_is_named() {
    let history = truth();
    let story = Story::of(create()).told(events(&history, &create(), &[2, 3]));
    let (watches, _) = sessions(&story.log);
    assert_eq!(completeness::behind(&watches, 3), []);
    assert_eq!(completeness::behind(&watches, 4).len(), 1);
}

#[test]
fn a_lost_or_altered_acknowledgement_is_seen() {
    let written = |key: &'static str, value: Option<&'static str>| vec![(key.into(), value.map(Into::into))];
    assert_eq!(truth().acknowledged(2, &written("a", Some("1"))), []);
    assert_eq!(truth().acknowledged(2, &written("a", Some("2"))).len(), 1);
    assert_eq!(truth().acknowledged(2, &written("b", Some("1"))).len(), 1);
    assert_eq!(truth().acknowledged(4, &written("a", Some("2"))).len(), 1, "part of a transaction");
    assert_eq!(truth().acknowledged(5, &written("a", None)), []);
    assert_eq!(truth().acknowledged(8, &written("a", Some("4"))).len(), 1);
}

/// Keys x and y of lease 7 are put at 2 and 3 and deleted at 4; z stays.
fn leased(at_once: bool) -> History {
    let mut history = History::default();
    let kv = |key: &'static str, mod_revision, lease| KeyValue {
        key: key.into(),
        mod_revision,
        lease,
        ..Default::default()
    };
    let x = kv("x", 2, 7);
    let y = kv("y", 3, 7);
    let state =
        |kvs: &[&KeyValue]| -> State { kvs.iter().map(|kv| (kv.key.clone(), (*kv).clone())).collect() };
    history.learn(2, state(&[&x])).unwrap();
    history.learn(3, state(&[&x, &y])).unwrap();
    let left = if at_once { State::new() } else { state(&[&y]) };
    history.learn(4, left).unwrap();
    history
}

fn exchange(sent: u64, received: u64, what: Answer) -> Exchange {
    let seconds = Duration::from_secs;
    Exchange { sent: seconds(sent), received: seconds(received), by: "a client".into(), what }
}

#[track_caller]
fn lease_breaks(rule: Option<&str>, history: &History, deleted: Option<u64>, exchanges: &[Exchange]) {
    let revision_seen =
        deleted.map(|at| (4, Duration::from_secs(at))).into_iter().collect::<BTreeMap<_, _>>();
    let evidence =
        LeaseEvidence { exchanges, history, revision_seen: &revision_seen, written: &BTreeSet::from([2, 3]) };
    let violations = lease_violations(&evidence);
    let found: BTreeSet<&str> = violations.iter().map(|violation| violation.rule).collect();
    assert_eq!(found, rule.into_iter().collect(), "{violations:#?}");
}

#[test]
fn a_lease_that_ends_too_early_is_seen() {
    let history = leased(true);
    let granted = || exchange(1, 2, Answer::Granted { id: 7, ttl: 10 });
    let kept = || exchange(8, 9, Answer::KeptAlive { id: 7, ttl: 10 });
    let rule = Some("lease not too early");
    lease_breaks(None, &history, Some(11), &[granted()]);
    lease_breaks(rule, &history, Some(10), &[granted()]);
    lease_breaks(None, &history, Some(18), &[granted(), kept()]);
    lease_breaks(rule, &history, Some(17), &[granted(), kept()]);
    let not_found = exchange(10, 17, Answer::KeptAlive { id: 7, ttl: 0 });
    lease_breaks(rule, &history, None, &[granted(), kept(), not_found]);
    let gone = exchange(10, 17, Answer::TimeToLive { id: 7, ttl: -1, granted: 0 });
    lease_breaks(rule, &history, None, &[granted(), kept(), gone.clone()]);
    // Somebody asked for it.
    let revoked = exchange(5, 20, Answer::RevokeUnknown { id: 7 });
    lease_breaks(None, &history, Some(6), &[granted(), revoked]);
}

#[test]
fn a_revoked_lease_that_answers_is_seen() {
    let history = leased(true);
    let granted = exchange(1, 2, Answer::Granted { id: 7, ttl: 10 });
    let revoked = exchange(3, 4, Answer::Revoked { id: 7 });
    let rule = Some("lease no life after death");
    for (sent, rule) in [(3, None), (5, rule)] {
        let kept = exchange(sent, 6, Answer::KeptAlive { id: 7, ttl: 10 });
        lease_breaks(rule, &history, Some(4), &[granted.clone(), revoked.clone(), kept]);
        let alive = exchange(sent, 6, Answer::TimeToLive { id: 7, ttl: 9, granted: 10 });
        lease_breaks(rule, &history, Some(4), &[granted.clone(), revoked.clone(), alive]);
    }
    let kept = exchange(9, 10, Answer::KeptAlive { id: 7, ttl: 10 });
    let again = exchange(7, 8, Answer::Granted { id: 7, ttl: 10 });
    lease_breaks(None, &history, Some(4), &[granted, revoked, again, kept]);
}

#[test]
fn a_lease_that_ends_by_halves_is_seen() {
    let granted = [exchange(1, 2, Answer::Granted { id: 7, ttl: 10 })];
    lease_breaks(None, &leased(true), Some(30), &granted);
    lease_breaks(Some("lease whole at one revision"), &leased(false), Some(30), &granted);
}

#[test]
fn a_remaining_time_that_cannot_be_is_seen() {
    let history = leased(true);
    let granted = || exchange(1, 2, Answer::Granted { id: 7, ttl: 10 });
    let left = |ttl, granted| exchange(5, 6, Answer::TimeToLive { id: 7, ttl, granted });
    let rule = Some("lease honest remaining");
    lease_breaks(None, &history, None, &[granted(), left(5, 10)]);
    lease_breaks(None, &history, None, &[granted(), left(4, 10)]);
    lease_breaks(rule, &history, None, &[granted(), left(3, 10)]);
    lease_breaks(rule, &history, None, &[granted(), left(14, 10)]);
    lease_breaks(rule, &history, None, &[granted(), left(9, 11)]);
}
