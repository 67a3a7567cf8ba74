//! What the leader writes down about who the members are: which of it counts, on every member alike, and what it leaves alone.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::error::EtcdError;
use api::raftpb::{ConfChange, ConfChangeType};
use common::*;
use identity::{Boot, Home, Private, Record, Standing, Unique, Watermark};
use prost::Message;
use state_machine::membership::{LEARNERS_MAX_DEFAULT, Member};
use state_machine::store::{Store, Table, WriteBatch};
use state_machine::{Memory, Options, Outcome, StateMachine, identities};
use types::{EntryKind, LogIndex, LogPosition, MemberId, Term};

const ONE: MemberId = MemberId(0x1_0001);
const TWO: MemberId = MemberId(0x2_0002);

fn unique(number: u128) -> Unique {
    Unique::for_test(number)
}

fn url(id: MemberId) -> String {
    format!("http://m{}:2380", id.0 & 0xf)
}

fn change_by(id: u64, kind: ConfChangeType, member: MemberId, context: Vec<u8>) -> Vec<u8> {
    ConfChange {
        id: Some(id),
        r#type: Some(kind as i32),
        node_id: Some(member.0),
        context: Some(context.into()),
    }
    .encode_to_vec()
}

fn change(kind: ConfChangeType, member: MemberId, context: Vec<u8>) -> Vec<u8> {
    change_by(0, kind, member, context)
}

/// A cluster of two, both with a name.
fn two() -> Bench {
    let mut bench = Bench::new();
    for id in [ONE, TWO] {
        add(&mut bench, id);
    }
    bench
}

fn add(bench: &mut Bench, id: MemberId) {
    let member =
        Member { id, name: format!("m{}", id.0 & 0xf), peer_urls: vec![url(id)], ..Member::default() };
    let add = change(ConfChangeType::ConfChangeAddNode, id, member.add_context(LEARNERS_MAX_DEFAULT));
    bench.apply_bytes(EntryKind::ConfChange, add).expect("it is added");
}

fn remove(bench: &mut Bench, id: MemberId, request: u64) {
    let remove = change_by(request, ConfChangeType::ConfChangeRemoveNode, id, Vec::new());
    bench.apply_bytes(EntryKind::ConfChange, remove).expect("it is removed");
}

/// As the leader ONE writes it.
fn note(bench: &mut Bench, notes: Private) -> Result<Outcome, EtcdError> {
    let own = Member { id: ONE, peer_urls: vec![url(ONE)], ..Member::default() };
    let update = change(ConfChangeType::ConfChangeUpdateNode, ONE, own.note_context(notes));
    bench.apply_bytes(EntryKind::ConfChange, update)
}

fn life(uuid: u128) -> Private {
    Private { cluster_uuid: Some(unique(uuid)), ..Private::default() }
}

fn record(dir: u128, seq: u64, nonce: u128) -> Record {
    let boot = Boot { seq, nonce: unique(nonce), previous: None };
    Record {
        dir: unique(dir),
        boot,
        home: Home { host: "db<1>".into(), ..Home::default() },
        version: "0.1.0".into(),
    }
}

fn records(id: MemberId, record: Record) -> Private {
    Private { records: BTreeMap::from([(id.to_string(), record)]), ..Private::default() }
}

fn marks(id: MemberId, last_index: u64, term: u64) -> Private {
    let mark = Watermark { last_index, term };
    Private { watermarks: BTreeMap::from([(id.to_string(), mark)]), ..Private::default() }
}

#[test]
fn the_first_life_counts_and_only_a_forced_one_follows_it() {
    let mut bench = two();
    assert_eq!(bench.reader.cluster_uuid(), None);
    for (notes, expected, parent) in [
        (life(1), 1, None),
        (life(2), 1, None),
        (Private { parent_uuid: Some(unique(9)), ..life(3) }, 1, None),
        (Private { parent_uuid: Some(unique(1)), ..life(4) }, 4, Some(1)),
        (life(1), 4, Some(1)),
        (Private { parent_uuid: Some(unique(1)), ..life(5) }, 4, Some(1)),
    ] {
        note(&mut bench, notes).expect("a note is applied");
        assert_eq!(bench.reader.cluster_uuid(), Some(unique(expected)));
        assert_eq!(bench.reader.parent_uuid(), parent.map(unique));
    }
}

#[test]
fn a_start_follows_earlier_ones_of_its_directory_and_marks_only_rise() {
    let mut bench = two();
    for (seq, nonce, dir, stays) in [
        (3, 3, 7, false),
        (3, 3, 7, false),
        (3, 4, 7, true),
        (2, 2, 7, true),
        (9, 9, 8, true),
        (5, 5, 7, false),
    ] {
        let before = bench.reader.identity_of(TWO).record;
        let asked = record(dir, seq, nonce);
        note(&mut bench, records(TWO, asked.clone())).expect("a note is applied");
        let expected = if stays { before } else { Some(asked) };
        assert_eq!(bench.reader.identity_of(TWO).record, expected, "boot {seq}/{nonce} of {dir}");
    }
    for ((last_index, term), expected) in
        [((10, 2), (10, 2)), ((5, 3), (10, 3)), ((12, 1), (12, 3)), ((0, 0), (12, 3))]
    {
        note(&mut bench, marks(TWO, last_index, term)).expect("a note is applied");
        let mark = bench.reader.identity_of(TWO).watermark.expect("a mark");
        assert_eq!((mark.last_index, mark.term), expected);
    }
}

#[test]
fn nothing_is_written_of_who_is_no_member_and_nothing_of_who_was_stays() {
    let mut bench = two();
    let stranger = MemberId(0x77);
    note(&mut bench, records(stranger, record(1, 1, 1))).expect("a note is applied");
    note(&mut bench, marks(stranger, 9, 9)).expect("a note is applied");
    let found = bench.reader.identity_of(stranger);
    assert_eq!((found.record, found.watermark, found.standing), (None, None, Standing::Stranger));

    note(&mut bench, records(TWO, record(1, 1, 1))).expect("a note is applied");
    note(&mut bench, marks(TWO, 9, 9)).expect("a note is applied");
    let standing = Standing::Member { is_learner: false, is_new: false };
    assert_eq!(bench.reader.identity_of(TWO).standing, standing);
    let at = bench.machine.applied().index.0 + 1;
    remove(&mut bench, TWO, (ONE.0 & 0xffff) << 48 | 5);
    note(&mut bench, records(TWO, record(1, 2, 2))).expect("a note is applied");
    bench.reopen(None);
    let found = bench.reader.identity_of(TWO);
    assert_eq!((found.record, found.watermark), (None, None));
    let removed = Standing::Removed { index: at, term: 2, asked_through: Some("m1".into()) };
    assert_eq!(found.standing, removed, "any member can say by which entry and through whom");
    let left = bench.machine.store().table(Table::Meta).expect("readable");
    let of_two = left.iter().filter(|(key, _)| String::from_utf8_lossy(key).ends_with(&TWO.to_string()));
    assert_eq!(of_two.count(), 1, "only the removal");
}

#[test]
fn a_note_leaves_the_member_alone_that_carries_it() {
    let mut bench = two();
    let moved = Member { id: ONE, peer_urls: vec!["http://moved:1".into()], ..Member::default() };
    let update = change(ConfChangeType::ConfChangeUpdateNode, ONE, moved.update_context());
    bench.apply_bytes(EntryKind::ConfChange, update).expect("an update");
    let before = bench.reader.members();
    // Written before the leader knew of the update, so with the old URLs.
    note(&mut bench, life(1)).expect("a note is applied");
    assert_eq!(bench.reader.members(), before);
    assert_eq!(bench.reader.member(ONE).expect("it is there").peer_urls, ["http://moved:1"]);
    match bench.sink.told.iter().rev().nth(1) {
        Some(Told::ConfChange(_, None)) => {}
        other => panic!("raft changes nothing for a note: {other:?}"),
    }
}

#[test]
fn whatever_a_note_holds_it_gets_an_outcome_and_changes_nothing_unless_it_is_one() {
    let mut bench = two();
    note(&mut bench, life(1)).expect("a note is applied");
    let state = |bench: &Bench| bench.machine.store().table(Table::Meta).expect("readable");
    let own_rows = |bench: &Bench| {
        state(bench).into_iter().filter(|(key, _)| key.starts_with(b"cairn/")).collect::<Vec<_>>()
    };
    let before = (own_rows(&bench), bench.reader.members());
    let id = ONE.0;
    for garbage in [
        format!(r#"{{"id":{id},"peerURLs":["http://m1:2380"],"cairn":7}}"#),
        format!(r#"{{"id":{id},"peerURLs":["http://m1:2380"],"cairn":{{"cluster_uuid":"short"}}}}"#),
        format!(r#"{{"id":{id},"peerURLs":["http://m1:2380"],"cairn":{{"records":{{"zz":{{}}}}}}}}"#),
        format!(
            r#"{{"id":{id},"peerURLs":[],"cairn":{{"watermarks":{{"no id":{{"last_index":1,"term":1}}}}}}}}"#
        ),
        format!(r#"{{"id":{id},"cairn":{{"watermarks":{{"2":{{"last_index":-1,"term":1}}}}}}}}"#),
        format!(r#"{{"id":{id},"cairn":{}}}"#, "[".repeat(300)),
        r#"{"id":12,"cairn":{}}"#.to_owned(),
        "\u{0}".to_owned(),
    ] {
        let update = change(ConfChangeType::ConfChangeUpdateNode, ONE, garbage.clone().into_bytes());
        let outcome = bench.apply_bytes(EntryKind::ConfChange, update);
        assert_eq!(outcome, Err(EtcdError::MemberBadUrls), "{garbage}");
        assert_eq!((own_rows(&bench), bench.reader.members()), before, "{garbage}");
    }
    // What a later version may add is skipped.
    let later = format!(
        r#"{{"id":{id},"cairn":{{"what":1,"watermarks":{{"{TWO}":{{"last_index":4,"term":1,"x":0}}}}}}}}"#
    );
    let update = change(ConfChangeType::ConfChangeUpdateNode, ONE, later.into_bytes());
    bench.apply_bytes(EntryKind::ConfChange, update).expect("a note of a later version");
    assert_eq!(bench.reader.identity_of(TWO).watermark.expect("a mark").last_index, 4);
}

#[test]
fn members_that_apply_the_same_log_know_the_same_whenever_they_were_started() {
    let mut all_at_once = two();
    let mut restarted = two();
    let mut random = 7u64;
    for round in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = (random >> 33) % 7;
        let (a, b) = ((random >> 40) % 9 + 1, (random >> 50) % 5 + 1);
        for bench in [&mut all_at_once, &mut restarted] {
            match pick {
                0 => drop(note(bench, life(a.into()))),
                1 => drop(note(bench, Private { parent_uuid: Some(unique(b.into())), ..life(a.into()) })),
                2 | 3 => drop(note(bench, records(TWO, record(u128::from(b) % 2, a, b.into())))),
                4 | 5 => drop(note(bench, marks(if b > 2 { ONE } else { TWO }, a, b))),
                _ if bench.reader.member(TWO).is_some() && round > 200 => remove(bench, TWO, random),
                _ => drop(bench.set("k", &round.to_string())),
            }
        }
        if a == 1 {
            restarted.reopen(None);
        }
    }
    let own = |bench: &Bench| bench.machine.store().table(Table::Meta).expect("readable");
    assert_eq!(own(&all_at_once), own(&restarted));
    for id in [ONE, TWO] {
        assert_eq!(all_at_once.reader.identity_of(id), restarted.reader.identity_of(id));
    }
    assert!(all_at_once.reader.cluster_uuid().is_some(), "the seed reached it");
}

#[test]
fn hashes_are_those_of_a_member_that_knows_no_notes() {
    let (mut with, mut without) = (two(), two());
    for round in 0..3 {
        with.set("k", &round.to_string());
        without.set("k", &round.to_string());
        note(&mut with, Private { records: records(ONE, record(1, round + 1, 1)).records, ..life(1) })
            .expect("a note");
        note(&mut with, marks(TWO, round, 1)).expect("a note");
    }
    assert_eq!(with.reader.hash_kv(0), without.reader.hash_kv(0));
    assert_eq!(with.reader.hash(), without.reader.hash());
}

#[test]
fn rows_that_nobody_wrote_are_refused_and_those_of_a_later_version_are_not() {
    for (key, value, opens) in [
        ("cairn/cluster_uuid", "short", false),
        ("cairn/record/1", "{}", false),
        ("cairn/record/none", "{}", false),
        ("cairn/watermark/1", r#"{"last_index":1,"term":1}"#, true),
        ("cairn/later/1", "anything", true),
    ] {
        let store = Arc::new(Memory::new());
        let mut batch = WriteBatch::at(LogPosition { term: Term(1), index: LogIndex(1) });
        batch.put(Table::Meta, key.as_bytes().to_vec(), value.as_bytes().to_vec());
        store.write(batch).expect("written");
        let opened = StateMachine::open(store, Options::default(), None);
        assert_eq!(opened.is_ok(), opens, "{key}: {:?}", opened.err());
    }
}

#[test]
fn a_reborn_state_keeps_nothing_but_the_life_it_came_from() {
    let mut bench = two();
    note(&mut bench, Private { records: records(ONE, record(1, 1, 1)).records, ..life(1) }).expect("a note");
    note(&mut bench, marks(ONE, 5, 2)).expect("a note");
    let rows = bench.machine.store().table(Table::Meta).expect("readable");
    let kept: Vec<String> = identities::reborn(rows)
        .into_iter()
        .map(|(key, value)| format!("{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value)))
        .filter(|row| row.starts_with("cairn/"))
        .collect();
    assert_eq!(kept, [format!("cairn/parent_uuid={}", unique(1))]);
}
