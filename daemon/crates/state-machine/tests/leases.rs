//! Leases in the state machine: what must hold at one time or another went wrong elsewhere (tests with the names of the list of
//! historical bugs), what order readers and listeners see, and rows that are etcd's.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use api::error::EtcdError;
use api::etcdserverpb::*;
use api::mvccpb::event::EventType;
use common::*;
use state_machine::rows::RowKey;
use state_machine::store::{Store, StoredRow, Table, WriteBatch};
use state_machine::{LeaseChange, Memory, Options, Outcome, StateMachine, validate};
use types::{Entry, EntryKind, LeaseId, LogIndex, Revision, RowId};

fn attached(key: &str, lease: i64) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes("v"), lease, ..Default::default() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rows of the lease table in hexadecimal, key and value.
fn rows<S: Store>(store: &S) -> Vec<(String, String)> {
    store.table(Table::Lease).unwrap().iter().map(|(key, value)| (hex(key), hex(value))).collect()
}

/// LE03: of two revocations on their way at once the later one finds nothing, and a grant of the same number in between is not lost.
#[test]
fn concurrent_revoke_of_one_lease() {
    let mut bench = Bench::new();
    bench.grant(7, 60).unwrap();
    bench.put(attached("k", 7)).unwrap();
    let entries: Vec<Entry> = [revoke(7), revoke(7), grant(7, 9), revoke(7), revoke(7)]
        .iter()
        .zip(3u64..)
        .map(|(request, index)| Entry {
            index: LogIndex(index),
            ..bench.next_entry(EntryKind::Normal, encode(request))
        })
        .collect();
    bench.sink.told.clear();
    bench.machine.apply(&entries, &mut bench.sink);
    let outcomes: Vec<Result<i64, EtcdError>> = bench
        .sink
        .told
        .iter()
        .filter_map(|told| match told {
            Told::Outcome(_, _, Ok(Outcome::LeaseRevoke(answer))) => {
                Some(Ok(answer.header.as_ref().unwrap().revision))
            }
            Told::Outcome(_, _, Ok(Outcome::LeaseGrant(answer))) => Some(Ok(answer.ttl)),
            Told::Outcome(_, _, outcome) => Some(Err(outcome.clone().unwrap_err())),
            _ => None,
        })
        .collect();
    let unknown = Err(EtcdError::LeaseNotFound);
    assert_eq!(outcomes, [Ok(3), unknown, Ok(9), Ok(3), unknown]);
    let changes = bench.sink.told.iter().filter(|told| matches!(told, Told::Lease(_))).count();
    assert_eq!(changes, 3, "refused revocations change nothing");
    assert_eq!((bench.reader.lease_count(), rows(&**bench.machine.store()).len()), (0, 0));
}

/// LE09: a put that was proposed while its lease existed is refused when the lease is gone before it, on every member and after a
/// restart between the two.
#[test]
fn lease_existence_decided_at_apply() {
    for restarts in [false, true] {
        let mut bench = Bench::new();
        bench.grant(7, 60).unwrap();
        let entry = |bench: &Bench, request: &InternalRaftRequest, index: u64| Entry {
            index: LogIndex(index),
            ..bench.next_entry(EntryKind::Normal, encode(request))
        };
        let put = InternalRaftRequest { put: Some(attached("k", 7)), ..Default::default() };
        let in_txn = op(request_op::Request::RequestPut(attached("t", 7)));
        let txn = TxnRequest { success: vec![op_put("other", "1"), in_txn], ..Default::default() };
        let txn = InternalRaftRequest { txn: Some(txn), ..Default::default() };
        let entries = [
            entry(&bench, &revoke(7), 2),
            entry(&bench, &put, 3),
            entry(&bench, &txn, 4),
            entry(&bench, &grant(7, 60), 5),
            entry(&bench, &put, 6),
        ];
        if restarts {
            for entry in &entries {
                bench.machine.apply(std::slice::from_ref(entry), &mut bench.sink);
                bench.reopen(None);
            }
        } else {
            bench.machine.apply(&entries, &mut bench.sink);
        }
        let refused = |index: u64| {
            let told =
                bench.sink.told.iter().find(|told| matches!(told, Told::Outcome(at, ..) if *at == index));
            matches!(told, Some(Told::Outcome(_, _, Err(EtcdError::LeaseNotFound))))
        };
        assert_eq!([3, 4, 6].map(refused), [true, true, false]);
        assert_eq!(bench.keys("", "\0"), ["k"], "a refused txn puts nothing");
        assert_eq!(bench.lease_keys(7).unwrap(), ["k"]);
    }
}

/// LE10, as far as it is the state machine's: whoever starts from a copy of the tables and rows has the leases, what is attached to
/// them and their remainders, and goes on alike.
#[test]
fn leases_in_snapshots() {
    let mut bench = Bench::new();
    bench.grant(7, 60).unwrap();
    bench.grant(8, 70).unwrap();
    bench.request(checkpoint(&[(8, 33)])).unwrap();
    for key in ["c", "a", "b"] {
        bench.put(attached(key, 7)).unwrap();
    }
    bench.put(attached("b", 8)).unwrap();
    let mut index = Vec::new();
    bench.reader.checkpoint(&mut index).expect("nothing compacts");
    // Above the checkpoint of the index: one key arrives, one moves, one goes.
    bench.put(attached("d", 7)).unwrap();
    bench.put(attached("c", 8)).unwrap();
    bench.delete("a", "");
    for index in [None, Some(index.as_slice())] {
        let copy = Arc::new((*bench.machine.store().as_ref()).clone());
        let mut machine = StateMachine::open(copy, Options::default(), index).unwrap();
        assert!(machine.checkpoint_ignored().is_none());
        let reader = machine.reader();
        assert_eq!(reader.leases(), bench.reader.leases());
        assert_eq!(reader.lease(LeaseId(8)).unwrap().remaining_ttl, 33);
        assert_eq!(reader.lease_keys(LeaseId(7)).unwrap(), ["d"]);
        assert_eq!(reader.lease_keys(LeaseId(8)).unwrap(), ["b", "c"]);
        assert_eq!(reader.hash(), bench.reader.hash());
        let entry = bench.next_entry(EntryKind::Normal, encode(&revoke(8)));
        let mut sink = Recorder::default();
        machine.apply(std::slice::from_ref(&entry), &mut sink);
        assert!(matches!(&sink.told[1], Told::Events(9, events) if events.len() == 2), "{:?}", sink.told);
    }
}

/// LE11: the edge refuses a negative id. Should one be in the log, then it is a lease like any other, for members that run on and for
/// members that start again.
#[test]
fn negative_lease_id() {
    let check = |id, ttl| validate::lease_grant(&LeaseGrantRequest { id, ttl });
    assert_eq!(check(-1, 60), Err(EtcdError::LeaseNotFound));
    assert_eq!(check(i64::MIN, i64::MAX), Err(EtcdError::LeaseNotFound));
    assert_eq!(check(1, 9_000_000_001), Err(EtcdError::LeaseTtlTooLarge));
    for (id, ttl) in [(0, 60), (1, 9_000_000_000), (i64::MAX, 0), (5, i64::MIN)] {
        assert_eq!(check(id, ttl), Ok(()), "{id} {ttl}");
    }
    let mut steady = Bench::new();
    let mut restarted = Bench::new();
    let put = |lease| InternalRaftRequest { put: Some(attached("k", lease)), ..Default::default() };
    let story = [
        put(-1),
        grant(-1, 60),
        put(-1),
        grant(i64::MIN, i64::MIN),
        grant(i64::MIN, i64::MAX),
        grant(i64::MAX, -1),
        put(i64::MIN),
        checkpoint(&[(-1, i64::MIN), (i64::MIN, i64::MAX), (0, 0)]),
        revoke(-1),
        put(-1),
        revoke(i64::MIN),
    ];
    for request in story {
        assert_eq!(steady.request(request.clone()), restarted.request(request));
        restarted.reopen(None);
        assert_eq!(steady.reader.leases(), restarted.reader.leases());
        assert_eq!(steady.reader.hash(), restarted.reader.hash());
    }
    assert_eq!(steady.value("k"), None, "revoked with its lease");
    assert_eq!(rows(&**steady.machine.store()).len(), 1);
}

/// Deletions of a revocation come in key order under one revision, after the change of the lease and before the outcome, whatever the
/// order in which the keys were attached and however many they are.
#[test]
fn revocation_deletes_in_key_order_under_one_revision() {
    // More than one hold of the lock copies.
    const KEYS: usize = 5_000;
    let mut bench = Bench::new();
    bench.grant(7, 60).unwrap();
    let name = |number: usize| format!("k{:05}", number * 7919 % KEYS);
    for number in 0..KEYS {
        bench.put(attached(&name(number), 7)).unwrap();
    }
    let mut sorted: Vec<String> = (0..KEYS).map(name).collect();
    sorted.sort();
    assert_eq!(bench.lease_keys(7).unwrap(), sorted);
    bench.sink.told.clear();
    let before = bench.reader.revision().0;
    let answer = bench.revoke(7).unwrap();
    assert_eq!((answer.header.unwrap().revision, bench.reader.revision().0), (before + 1, before + 1));
    let [Told::Lease(change), Told::Events(revision, events), Told::Outcome(..)] = &bench.sink.told[..]
    else {
        panic!("{} notices", bench.sink.told.len());
    };
    assert_eq!((*change, *revision), (LeaseChange::Revoked { id: LeaseId(7) }, before + 1));
    let deleted: Vec<String> = events
        .iter()
        .map(|event| {
            let kv = event.kv.as_ref().unwrap();
            assert_eq!((event.r#type(), kv.mod_revision, kv.lease), (EventType::Delete, before + 1, 0));
            String::from_utf8(kv.key.to_vec()).unwrap()
        })
        .collect();
    assert_eq!(deleted, sorted);
    assert_eq!((bench.reader.key_count(), bench.reader.lease_count()), (0, 0));
}

/// The lists of leases and keys are whole when they take several holds of the lock, also at its borders.
#[test]
fn long_lists_are_whole() {
    for count in [1023, 1024, 1025, 2048, 3000] {
        let mut bench = Bench::new();
        for id in 1..=count {
            bench.grant(id, 60).unwrap();
            bench.put(attached(&format!("{id:05}"), 1)).unwrap();
        }
        let ids: Vec<i64> = bench.reader.leases().iter().map(|lease| lease.id.0).collect();
        assert_eq!(ids, (1..=count).collect::<Vec<_>>());
        let keys: Vec<String> = (1..=count).map(|id| format!("{id:05}")).collect();
        assert_eq!(bench.lease_keys(1).unwrap(), keys);
    }
}

/// Out of space only grants are refused, corrupt also revocations; checkpoints always pass. As in etcd.
#[test]
fn alarms_refuse_what_they_must() {
    let mut bench = Bench::new();
    bench.grant(7, 60).unwrap();
    let alarm = |action: i32, alarm: AlarmType| InternalRaftRequest {
        alarm: Some(AlarmRequest { action, member_id: 1, alarm: alarm as i32 }),
        ..Default::default()
    };
    bench.request(alarm(1, AlarmType::Nospace)).unwrap();
    assert_eq!(bench.grant(8, 60), Err(EtcdError::NoSpace));
    assert_eq!(bench.grant(7, 60), Err(EtcdError::NoSpace), "asked before the lease is looked for");
    assert!(bench.request(checkpoint(&[(7, 5)])).is_ok());
    bench.revoke(7).unwrap();
    bench.request(alarm(1, AlarmType::Corrupt)).unwrap();
    assert_eq!(bench.grant(8, 60), Err(EtcdError::Corrupt));
    assert_eq!(bench.revoke(8), Err(EtcdError::Corrupt));
    assert!(bench.request(checkpoint(&[(8, 5)])).is_ok());
}

/// Over quota a lease is granted all the same, and whoever keeps the deadlines is told; only the answer differs.
#[test]
fn over_quota_a_grant_is_applied_and_told() {
    let mut bench = Bench::with(Options { quota_backend_bytes: 64, ..Options::default() });
    assert_eq!(state_machine::lease_cost(&LeaseGrantRequest::default()), 64);
    assert_eq!(bench.grant(7, 60), Err(EtcdError::NoSpace));
    let granted = Told::Lease(LeaseChange::Granted { id: LeaseId(7), ttl: 60 });
    assert_eq!(bench.sink.told[..2], [granted, Told::SpaceExceeded(1)]);
    assert_eq!(bench.reader.lease_count(), 1);
    assert_eq!(bench.grant(7, 60), Err(EtcdError::LeaseExist), "its own refusal comes first");
    bench.revoke(7).unwrap();
}

/// Foreign or damaged data: a key names a lease that has no row. It is a key without a lease until one is granted under the number,
/// and a restart before or after that changes nothing.
#[test]
fn a_key_may_name_a_lease_without_a_row() {
    let foreign = || {
        let mut bench = Bench::new();
        bench.grant(7, 60).unwrap();
        bench.grant(9, 60).unwrap();
        for key in ["a", "b", "c"] {
            bench.put(attached(key, 7)).unwrap();
        }
        let mut batch = WriteBatch::at(bench.machine.applied());
        batch.delete(Table::Lease, 7i64.to_be_bytes().to_vec());
        bench.machine.store().write(batch).unwrap();
        bench.reopen(None);
        bench
    };
    let (mut steady, mut restarted) = (foreign(), foreign());
    assert_eq!((steady.reader.lease(LeaseId(7)), steady.lease_keys(7)), (None, None));
    let keep = PutRequest { key: bytes("a"), value: bytes("w"), ignore_lease: true, ..Default::default() };
    let story = [
        revoke(7),
        InternalRaftRequest { put: Some(keep), ..Default::default() },
        InternalRaftRequest { put: Some(attached("b", 9)), ..Default::default() },
        InternalRaftRequest { put: Some(attached("d", 7)), ..Default::default() },
        grant(7, 60),
        InternalRaftRequest { put: Some(attached("d", 7)), ..Default::default() },
        revoke(7),
        revoke(9),
    ];
    for (step, request) in story.into_iter().enumerate() {
        assert_eq!(steady.request(request.clone()), restarted.request(request), "step {step}");
        restarted.reopen(None);
        if step == 5 {
            assert_eq!(steady.lease_keys(7).unwrap(), ["a", "c", "d"]);
        }
        assert_eq!(steady.lease_keys(7), restarted.lease_keys(7), "step {step}");
        assert_eq!(steady.reader.hash(), restarted.reader.hash(), "step {step}");
    }
    assert_eq!(steady.reader.key_count(), 0);
}

/// What the database of etcd 3.5.30 held after the same requests, through its gateway, the member stopped and its file read: the buckets
/// `lease` and `key`.
#[test]
fn rows_are_etcds() {
    let mut bench = Bench::new();
    let ids = [
        (10, 1000),
        (-5, 9_000_000_000),
        (i64::MAX, 2000),
        (i64::MIN, 200),
        (12, 5000),
        (8_070_450_532_247_928_835, 60),
    ];
    for (id, ttl) in ids {
        bench.grant(id, ttl).unwrap();
    }
    for (key, lease) in [("b", 12), ("a", 12), ("c", 10)] {
        bench.put(attached(key, lease)).unwrap();
    }
    bench.revoke(12).unwrap();
    let pairs = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let leases = [
        ("000000000000000a", "080a10e807"),
        ("7000000000000003", "08838080808080808070103c"),
        ("7fffffffffffffff", "08ffffffffffffffff7f10d00f"),
        ("8000000000000000", "088080808080808080800110c801"),
        ("fffffffffffffffb", "08fbffffffffffffffff011080b4c4c321"),
    ];
    assert_eq!(rows(&**bench.machine.store()), pairs(&leases));
    let keys = [
        ("00000000000000025f0000000000000000", "0a01621002180220012a0176300c"),
        ("00000000000000035f0000000000000000", "0a01611003180320012a0176300c"),
        ("00000000000000045f0000000000000000", "0a01631004180420012a0176300a"),
        ("00000000000000055f000000000000000074", "0a0161"),
        ("00000000000000055f000000000000000174", "0a0162"),
    ];
    let mut stored = Vec::new();
    let last = RowId { main: Revision(i64::MAX), sub: 0 };
    let each = &mut |id: RowId, row: StoredRow| {
        stored.push((hex(RowKey::new(id, row.tombstone).as_bytes()), hex(&row.value)));
        ControlFlow::Continue(())
    };
    bench.machine.store().scan(RowId::default(), last, each).unwrap();
    assert_eq!(stored, pairs(&keys));

    // The same etcd, started with the gates of checkpoints and their persistence, after its first checkpoint at five minutes.
    let mut bench = Bench::new();
    for (id, ttl) in [(10, 1000), (-5, 9_000_000_000), (i64::MAX, 2000)] {
        bench.grant(id, ttl).unwrap();
    }
    bench.request(checkpoint(&[(10, 700), (-5, 8_999_999_700), (i64::MAX, 1700)])).unwrap();
    let leases = [
        ("000000000000000a", "080a10e80718bc05"),
        ("7fffffffffffffff", "08ffffffffffffffff7f10d00f18a40d"),
        ("fffffffffffffffb", "08fbffffffffffffffff011080b4c4c32118d4b1c4c321"),
    ];
    assert_eq!(rows(&**bench.machine.store()), pairs(&leases));
}

/// A damaged row of the lease table is named, and the member does not start.
#[test]
fn a_damaged_lease_row_is_named() {
    for (key, value, reason) in [
        (&7i64.to_be_bytes()[..], &b"\x08"[..], "failed to decode"),
        (&8i64.to_be_bytes()[..], &b"\x08\x07\x10\x3c"[..], "is the row of lease 0000000000000007"),
        (&b"seven"[..], &b"\x08\x07\x10\x3c"[..], "is the row of lease 0000000000000007"),
    ] {
        let store = Memory::new();
        let mut batch = WriteBatch::at(Default::default());
        batch.put(Table::Lease, key.to_vec(), value.to_vec());
        store.write(batch).unwrap();
        let error = StateMachine::open(Arc::new(store), Options::default(), None).unwrap_err().to_string();
        assert!(error.starts_with("table lease, key ") && error.contains(reason), "{error}");
    }
}
