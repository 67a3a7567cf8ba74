//! Both ways to the same answer, whatever an estimate would choose.

use std::sync::Arc;

use api::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestHeader, RequestOp, TxnRequest,
    request_op::Request,
};
use prost::Message;
use types::{Entry, EntryKind, Term};

use super::*;
use crate::{Memory, Options, Outcome, Sink, StateMachine};

struct Deaf;

impl Sink for Deaf {
    fn outcome(&mut self, _: types::LogIndex, _: u64, outcome: Result<Outcome, api::error::EtcdError>) {
        outcome.expect("plain requests succeed");
    }
    fn wants_events(&self) -> bool {
        false
    }
    fn events(&mut self, _: Revision, _: Vec<Event>) {}
    fn conf_change(&mut self, _: types::LogIndex, _: Option<api::raftpb::ConfChangeV2>) {}
}

fn random(seed: &mut u64, bound: u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % bound
}

fn key(seed: &mut u64) -> Bytes {
    Bytes::from(format!("k{:02}", random(seed, 30)))
}

fn op(seed: &mut u64) -> RequestOp {
    let key = key(seed);
    let request = match random(seed, 3) {
        0 => Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end: if random(seed, 2) == 0 { Bytes::from_static(b"\0") } else { Bytes::new() },
            prev_kv: false,
        }),
        _ => Request::RequestPut(PutRequest {
            key,
            value: Bytes::from(vec![b'v'; random(seed, 20) as usize]),
            ..Default::default()
        }),
    };
    RequestOp { request: Some(request) }
}

/// Every request is a txn of up to four changes; the same key may be among them twice.
fn filled(seed: &mut u64) -> StateMachine<Memory> {
    let mut machine =
        StateMachine::open(Arc::new(Memory::new()), Options::default(), None).expect("an empty store opens");
    for _ in 0..300 {
        let success = (0..random(seed, 5)).map(|_| op(seed)).collect();
        let request = InternalRaftRequest {
            header: Some(RequestHeader { id: 1, ..Default::default() }),
            txn: Some(TxnRequest { success, ..Default::default() }),
            ..Default::default()
        };
        let entry = Entry {
            term: Term(1),
            index: machine.applied().index.next(),
            kind: EntryKind::Normal,
            data: Bytes::from(request.encode_to_vec()),
        };
        machine.apply(std::slice::from_ref(&entry), &mut Deaf);
    }
    machine
}

#[test]
fn both_ways_find_the_same() {
    for seed in 0..40 {
        let mut rng = seed;
        let machine = filled(&mut rng);
        let reader = machine.reader();
        let now = reader.revision().0;
        for _ in 0..60 {
            let ranges: Vec<KeyRange> = (0..random(&mut rng, 12))
                .map(|_| match random(&mut rng, 8) {
                    0 => KeyRange::From(key(&mut rng)),
                    1 | 2 => KeyRange::Span { start: key(&mut rng), end: key(&mut rng) },
                    _ => KeyRange::One(key(&mut rng)),
                })
                .collect();
            let targets = Targets::new(&ranges);
            let from = 1 + random(&mut rng, now as u64) as i64;
            let to = from + random(&mut rng, (now - from + 1) as u64) as i64;
            let some = |rng: &mut u64, most: u64| match random(rng, 3) {
                0 => 1,
                1 => usize::MAX,
                _ => 1 + random(rng, most) as usize,
            };
            let limits = Limits { revisions: some(&mut rng, 40), bytes: some(&mut rng, 500) };
            let no_limits = Limits { revisions: usize::MAX, bytes: usize::MAX };
            let all = reader.by_scan(&targets, from, to, no_limits).revisions;
            for way in ["index", "scan"] {
                let (mut next, mut chunks) = (from, Vec::new());
                while next <= to {
                    let found = match way {
                        "scan" => reader.by_scan(&targets, next, to, limits),
                        _ => reader.by_index(&targets, next, to, limits).ok().expect("30 keys are few"),
                    };
                    assert_eq!(found.missing, None);
                    assert!((next..=to).contains(&found.through), "{way}: {} from {next}", found.through);
                    assert!(found.revisions.len() <= limits.revisions, "{way}");
                    chunks.extend(found.revisions);
                    next = found.through + 1;
                    let so_far = all.iter().take_while(|(revision, _)| revision.0 < next);
                    assert!(
                        so_far.eq(&chunks),
                        "{way}, seed {seed}, {from} to {to} of {ranges:?}, at {next}"
                    );
                }
            }
        }
    }
}

/// A busy key among others: what is noted stays within twice the answer, however long its list is.
#[test]
fn notes_stay_small() {
    let mut rng = 5;
    let machine = filled(&mut rng);
    let state = machine.reader().shared.state.read().index.size();
    assert!(state.keys >= 20);
    let reader = machine.reader();
    let mut notes = Notes::new(1, i64::MAX, 3);
    let _ = reader.shared.state.read().index.walk(b"", None, |key, record| -> ControlFlow<()> {
        notes.note(key, record);
        assert!(notes.versions.len() <= 2 * 3 + NOTED_SLACK + 8);
        ControlFlow::Continue(())
    });
    notes.forget_what_does_not_fit();
    let revisions: std::collections::BTreeSet<Revision> =
        notes.versions.iter().map(|noted| noted.id.main).collect();
    assert_eq!(revisions.len(), 3);
}
