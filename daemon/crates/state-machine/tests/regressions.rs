//! One test per row of the list of historical bugs that apply and its readers could repeat. Names are the rows' names.

mod common;

use std::sync::Arc;

use api::error::EtcdError;
use api::etcdserverpb::*;
use common::*;
use state_machine::store::{Store, Table};
use state_machine::{CompactProgress, Memory, Options, Outcome, StateMachine};
use types::{Entry, EntryKind, LogIndex, Term};

/// AP01: data and position are one batch, so any prefix of batches that a crash leaves is a state the log continues from.
#[test]
fn applied_position_saved_with_its_entry() {
    let mut bench = Bench::new();
    for round in 0..5 {
        let before = (*bench.machine.store().as_ref()).clone();
        bench.set("k", &round.to_string());
        let applied_before = StateMachine::open(Arc::new(before), Options::default(), None).unwrap();
        let now = bench.machine.store().as_ref().clone();
        let applied_now = StateMachine::open(Arc::new(now), Options::default(), None).unwrap();
        assert_eq!(applied_before.applied().index.next(), applied_now.applied().index);
        assert_eq!(applied_now.reader().revision().0, applied_before.reader().revision().0 + 1);
    }
}

/// AP01: an entry that comes again after a restart is not applied again.
#[test]
fn entries_at_or_below_applied_have_no_effect() {
    let mut bench = Bench::new();
    let put = |value: &str| {
        let put = PutRequest { key: bytes("k"), value: bytes(value), ..Default::default() };
        encode(&InternalRaftRequest { put: Some(put), ..Default::default() })
    };
    let entries: Vec<Entry> = (1..=4)
        .map(|index| Entry {
            term: Term(2),
            index: LogIndex(index),
            kind: EntryKind::Normal,
            data: put(&index.to_string()).into(),
        })
        .collect();
    bench.machine.apply(&entries[..3], &mut bench.sink);
    bench.reopen(None);
    bench.sink.told.clear();
    bench.machine.apply(&entries[..3], &mut bench.sink);
    assert!(bench.sink.told.is_empty());
    bench.machine.apply(&entries, &mut bench.sink);
    assert_eq!(bench.range("k", "").kvs[0].version, 4);
}

/// AP07: neither a finished nor an interrupted compaction lets a restart come up below a revision that was handed out.
#[test]
fn crash_in_compaction_never_lowers_revision() {
    for steps in 0..12 {
        let mut bench = Bench::new();
        for number in 0..10 {
            bench.set(&format!("k{number}"), "v");
        }
        bench.delete("k", "l");
        let revision = bench.set("last", "v");
        bench.delete("last", "");
        let handed_out = revision + 1;
        bench.compact(handed_out).unwrap();
        for _ in 0..steps {
            bench.machine.compact_step(1);
        }
        bench.reopen(None);
        assert_eq!(bench.reader.revision().0, handed_out, "after {steps} steps");
        assert_eq!(bench.reader.compact_revision().0, handed_out);
        bench.compact_physically(3);
        bench.reopen(None);
        assert_eq!(bench.reader.revision().0, handed_out);
        assert_eq!(bench.machine.compact_step(10), CompactProgress::Idle);
        // Only the tombstone exactly at the compact revision stays.
        assert_eq!(bench.machine.store().row_count(), 1);
    }
}

/// AP08: entries that change nothing advance the stored position too.
#[test]
fn every_entry_kind_advances_applied() {
    let mut bench = Bench::new();
    let requests = [
        InternalRaftRequest::default(),
        InternalRaftRequest { auth_enable: Some(AuthEnableRequest {}), ..Default::default() },
        InternalRaftRequest { auth_user_add: Some(AuthUserAddRequest::default()), ..Default::default() },
        InternalRaftRequest { lease_grant: Some(LeaseGrantRequest { ttl: 5, id: 1 }), ..Default::default() },
        InternalRaftRequest { lease_revoke: Some(LeaseRevokeRequest { id: 1 }), ..Default::default() },
        InternalRaftRequest {
            lease_checkpoint: Some(LeaseCheckpointRequest::default()),
            ..Default::default()
        },
        InternalRaftRequest { alarm: Some(AlarmRequest::default()), ..Default::default() },
        InternalRaftRequest { range: Some(range("k", "")), ..Default::default() },
        InternalRaftRequest { delete_range: Some(DeleteRangeRequest::default()), ..Default::default() },
        InternalRaftRequest { txn: Some(TxnRequest::default()), ..Default::default() },
        InternalRaftRequest {
            compaction: Some(CompactionRequest { revision: 99, physical: false }),
            ..Default::default()
        },
        InternalRaftRequest {
            authenticate: Some(InternalAuthenticateRequest::default()),
            ..Default::default()
        },
    ];
    let mut expected = 0;
    let mut check = |bench: &Bench| {
        expected += 1;
        let again = StateMachine::open(Arc::clone(bench.machine.store()), Options::default(), None).unwrap();
        assert_eq!(again.applied().index, LogIndex(expected));
        assert_eq!(again.applied().term, Term(2));
    };
    for request in requests {
        let _ = bench.request(request);
        check(&bench);
    }
    for data in [vec![], vec![0], vec![0, 1, 2], vec![0xff; 9], b"not protobuf at all".to_vec()] {
        let _ = bench.apply_bytes(EntryKind::Normal, data);
        check(&bench);
    }
    for kind in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
        for data in [vec![], vec![0xff; 3]] {
            assert!(bench.apply_bytes(kind, data).is_err());
            check(&bench);
        }
    }
    assert_eq!(bench.reader.revision().0, 1, "and the revision of the store did not move");
}

/// AP14: a read inside a batch of changes sees its puts and its deletes.
#[test]
fn deletes_visible_inside_the_batch() {
    let mut bench = Bench::new();
    bench.set("a", "1");
    bench.set("b", "1");
    let count = || op_range(RangeRequest { count_only: true, ..range("a", "z") });
    let txn = TxnRequest {
        success: vec![
            op_put("c", "1"),
            count(),
            op_delete("a", "b\0"),
            op_range(range("a", "z")),
            count(),
            op_put("d", "1"),
            op_delete("c", ""),
            op_range(range("a", "z")),
        ],
        ..Default::default()
    };
    let responses = bench.txn(txn).unwrap().responses;
    let ranges: Vec<&RangeResponse> = responses
        .iter()
        .filter_map(|op| match &op.response {
            Some(response_op::Response::ResponseRange(range)) => Some(range),
            _ => None,
        })
        .collect();
    assert_eq!(ranges[0].count, 3);
    assert_eq!(names(&ranges[1].kvs), ["c"]);
    assert_eq!(ranges[2].count, 1);
    assert_eq!(names(&ranges[3].kvs), ["d"]);
}

/// AP18: whatever bytes an entry holds, the member goes on. Mutations of real requests reach deeper than noise does.
#[test]
fn apply_is_total() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let nested = TxnRequest { success: vec![op_put("n", "1"), op_delete("", "\0")], ..Default::default() };
    let unset = RequestOp { request: None };
    let compare = Compare { result: 9, target: 9, key: bytes("k"), ..Default::default() };
    let odd_range = RangeRequest {
        sort_order: 17,
        sort_target: -4,
        limit: i64::MIN,
        revision: i64::MIN,
        ..range("", "\0")
    };
    let odd_put = PutRequest { ignore_value: true, ignore_lease: true, ..Default::default() };
    let seeds = [
        InternalRaftRequest { put: Some(odd_put.clone()), ..Default::default() },
        InternalRaftRequest {
            txn: Some(TxnRequest {
                compare: vec![compare, Compare::default()],
                success: vec![op_txn(nested), unset, op_range(odd_range), op_put("", "")],
                failure: vec![op(request_op::Request::RequestPut(odd_put))],
            }),
            ..Default::default()
        },
        InternalRaftRequest {
            delete_range: Some(DeleteRangeRequest { key: bytes(""), range_end: bytes("\0"), prev_kv: true }),
            ..Default::default()
        },
        grant(-7, i64::MIN),
        InternalRaftRequest {
            put: Some(PutRequest { key: bytes("k"), lease: -7, ..Default::default() }),
            ..Default::default()
        },
        checkpoint(&[(-7, i64::MIN), (i64::MAX, 1)]),
        revoke(-7),
        InternalRaftRequest {
            compaction: Some(CompactionRequest { revision: i64::MIN, physical: true }),
            ..Default::default()
        },
        InternalRaftRequest {
            alarm: Some(AlarmRequest { action: 77, member_id: u64::MAX, alarm: -1 }),
            ..Default::default()
        },
        InternalRaftRequest {
            cluster_member_attr_set: Some(api::membershippb::ClusterMemberAttrSetRequest {
                member_id: 5,
                member_attributes: None,
            }),
            ..Default::default()
        },
    ];
    let mut bench = Bench::new();
    for round in 0..4_000 {
        let mut data = encode(&seeds[random() as usize % seeds.len()]);
        for _ in 0..random() % 4 {
            let at = random() as usize % data.len();
            match random() % 3 {
                0 => data[at] = random() as u8,
                1 => data.truncate(at.max(1)),
                _ => data.insert(at, random() as u8),
            }
        }
        let kind = if round % 7 == 0 { EntryKind::ConfChange } else { EntryKind::Normal };
        let _ = bench.apply_bytes(kind, data);
    }
    bench.reopen(None);
    assert_eq!(bench.machine.applied().index, LogIndex(4_000));
}

/// AP18: a put that keeps a value which the same txn deleted comes past the edge only by the open-ended delete; etcd stops on it.
#[test]
fn keeping_a_value_deleted_in_the_same_txn_is_answered() {
    let mut bench = Bench::new();
    bench.set("k", "1");
    let keep = PutRequest { key: bytes("k"), ignore_value: true, ..Default::default() };
    let txn = TxnRequest {
        success: vec![op_delete("a", "\0"), op(request_op::Request::RequestPut(keep))],
        ..Default::default()
    };
    assert_eq!(bench.txn(txn).unwrap().responses.len(), 2);
    assert_eq!(bench.value("k"), None);
}

/// RD04: a txn with a range at a bad revision is refused as a whole, whoever proposed it.
#[test]
fn txn_range_at_revision_same_everywhere() {
    let mut bench = Bench::new();
    for number in 0..5 {
        bench.set("k", &number.to_string());
    }
    bench.compact(4).unwrap();
    let at = |revision: i64| TxnRequest {
        success: vec![op_range(RangeRequest { revision, ..range("k", "") }), op_put("x", "1")],
        ..Default::default()
    };
    assert_eq!(bench.txn(at(3)), Err(EtcdError::Compacted));
    assert_eq!(bench.txn(at(7)), Err(EtcdError::FutureRev));
    assert_eq!(bench.txn(at(-5)), Err(EtcdError::Compacted), "negative counts as compacted inside a txn");
    assert_eq!(bench.value("x"), None);
    let response = bench.txn(at(4)).unwrap();
    let Some(response_op::Response::ResponseRange(read)) = &response.responses[0].response else { panic!() };
    assert_eq!(read.kvs[0].value, "2");
    assert_eq!(bench.value("x").as_deref(), Some("1"));

    // Beside members below 3.7, which strip top-level ranges before they check, we err as they do; nested ranges they do check.
    let ver = "3.6.0".to_owned();
    let set = api::membershippb::ClusterVersionSetRequest { ver };
    bench.request(InternalRaftRequest { cluster_version_set: Some(set), ..Default::default() }).unwrap();
    assert!(bench.txn(at(3)).is_ok());
    let nested = TxnRequest { success: vec![op_txn(at(3))], ..Default::default() };
    assert_eq!(bench.txn(nested), Err(EtcdError::Compacted));
}

/// RD05: the header names the revision the data was read at, while puts go on.
#[test]
fn header_revision_is_the_read_revision() {
    // Every put changes all keys' common round number, so a list that mixes revisions shows two rounds.
    const KEYS: usize = 3_000;
    const ROUNDS: u64 = 60;
    let mut bench = Bench::new();
    let round = |number: u64| TxnRequest {
        success: (0..KEYS).map(|key| op_put(&format!("k{key:05}"), &number.to_string())).collect(),
        ..Default::default()
    };
    bench.txn(round(0)).unwrap();
    let first = bench.reader.revision().0;
    let reader = bench.reader.clone();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut lists = 0;
            loop {
                let list = reader.range(&range("k", "l")).unwrap();
                let number: i64 = std::str::from_utf8(&list.kvs[0].value).unwrap().parse().unwrap();
                assert_eq!(list.header.unwrap().revision, first + number);
                assert_eq!((list.kvs.len(), list.count), (KEYS, KEYS as i64));
                assert!(list.kvs.iter().all(|kv| kv.value == list.kvs[0].value), "a list mixes revisions");
                lists += 1;
                if number == ROUNDS as i64 {
                    return lists;
                }
            }
        });
        for number in 1..=ROUNDS {
            bench.txn(round(number)).unwrap();
        }
        assert!(reading.join().unwrap() > 0);
    });
}

/// RD07: a range after a put in the same txn sees it.
#[test]
fn range_in_txn_sees_own_writes() {
    let mut bench = Bench::new();
    let txn =
        TxnRequest { success: vec![op_put("k", "own"), op_range(range("k", ""))], ..Default::default() };
    let response = bench.txn(txn).unwrap();
    let Some(response_op::Response::ResponseRange(read)) = &response.responses[1].response else { panic!() };
    assert_eq!((read.kvs[0].value.as_ref(), read.count), (b"own".as_slice(), 1));
    assert_eq!(read.header.as_ref().unwrap().revision, 2);
    assert_eq!(response.header.unwrap().revision, 2);
}

/// RD08: a delete is answered as a delete, inside a txn too.
#[test]
fn delete_answered_as_delete() {
    let mut bench = Bench::new();
    bench.set("k", "1");
    let delete = DeleteRangeRequest { key: bytes("k"), range_end: bytes(""), prev_kv: true };
    let response = bench.delete_range(delete).unwrap();
    assert_eq!((response.deleted, response.prev_kvs.len()), (1, 1));
    bench.set("k", "2");
    let txn = TxnRequest { success: vec![op_delete("k", "")], ..Default::default() };
    let responses = bench.txn(txn).unwrap().responses;
    assert!(matches!(
        &responses[0].response,
        Some(response_op::Response::ResponseDeleteRange(response)) if response.deleted == 1
    ));
}

/// TR01: nested txns count towards the cost that quota and the NOSPACE gate look at.
#[test]
fn nested_txn_costs_quota() {
    let nested = TxnRequest { success: vec![op_put("key", "value")], ..Default::default() };
    let outer = TxnRequest { failure: vec![op_txn(nested)], ..Default::default() };
    assert_eq!(state_machine::txn_cost(&outer), 256 + 8);
    let mut bench = Bench::new();
    let raise = AlarmRequest { action: 1, member_id: 1, alarm: AlarmType::Nospace as i32 };
    bench.request(InternalRaftRequest { alarm: Some(raise), ..Default::default() }).unwrap();
    assert_eq!(bench.txn(outer), Err(EtcdError::NoSpace));
}

/// WA05/WA06: a tombstone exactly at the compact revision outlives the compaction, so that a watch from there gets its event.
#[test]
fn delete_kept_when_compacting_on_it() {
    let mut bench = Bench::new();
    bench.set("k", "1");
    let deleted_at = bench.delete("k", "").header.unwrap().revision;
    bench.compact(deleted_at).unwrap();
    bench.compact_physically(1000);
    assert_eq!(bench.machine.store().row_count(), 1);
    bench.set("other", "1");
    bench.compact(deleted_at + 1).unwrap();
    bench.compact_physically(1000);
    assert_eq!(bench.machine.store().row_count(), 1, "the next compaction takes it");
}

/// OP10: an alarm carries the member that it names, and raising or clearing it twice is harmless.
#[test]
fn alarm_names_its_member() {
    let mut bench = Bench::new();
    let mut alarm = |action: i32, member_id: u64, alarm: AlarmType| {
        let alarm = AlarmRequest { action, member_id, alarm: alarm as i32 };
        match bench.request(InternalRaftRequest { alarm: Some(alarm), ..Default::default() }) {
            Ok(Outcome::Alarm(response)) => {
                response.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(alarm(1, 9, AlarmType::Nospace), [(9, 1)]);
    assert_eq!(alarm(1, 9, AlarmType::Nospace), [(9, 1)]);
    assert_eq!(alarm(1, 3, AlarmType::Corrupt), [(3, 2)]);
    assert_eq!(alarm(1, 3, AlarmType::None), []);
    assert_eq!(alarm(0, 0, AlarmType::None), [(3, 2), (9, 1)]);
    assert_eq!(alarm(0, 0, AlarmType::Nospace), [(9, 1)]);
    assert_eq!(alarm(2, 0, AlarmType::Nospace), [], "member zero does not mean all");
    assert_eq!(alarm(2, 3, AlarmType::Corrupt), [(3, 2)]);
    assert_eq!(alarm(2, 3, AlarmType::Corrupt), []);
    bench.reopen(None);
    assert!(bench.reader.has_alarm(AlarmType::Nospace) && !bench.reader.has_alarm(AlarmType::Corrupt));
}

/// Over quota a request is applied all the same, since the quota is local; only the answer differs and an alarm is asked for.
#[test]
fn over_quota_is_applied_and_told() {
    let mut bench = Bench::with(Options { quota_backend_bytes: 300, ..Options::default() });
    bench.set("k", "1");
    let put = PutRequest { key: bytes("k"), value: bytes("2"), ..Default::default() };
    assert_eq!(bench.put(put), Err(EtcdError::NoSpace));
    assert_eq!(bench.value("k").as_deref(), Some("2"));
    assert!(bench.sink.told.contains(&Told::SpaceExceeded(2)));
    assert_eq!(bench.delete("k", "").deleted, 1, "deleting is always allowed");
}

/// The same log gives the same bytes and the same answers, however it is cut into batches, however much memory there is, and whether
/// or not somebody listens and restarts happen.
#[test]
fn apply_is_a_function_of_the_log() {
    let mut seed = 0x0123_4567_89ab_cdefu64;
    let mut below = move |bound: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % bound
    };
    let mut entries: Vec<Entry> = Vec::new();
    for index in 1..=3_000u64 {
        let key = format!("k{}", below(60));
        let end = format!("k{}", below(60));
        let put = PutRequest {
            key: bytes(&key),
            value: bytes(&end.repeat(3)),
            prev_kv: true,
            lease: if below(3) == 0 { below(5) as i64 } else { 0 },
            ..Default::default()
        };
        let request = match below(15) {
            0 => InternalRaftRequest {
                delete_range: Some(DeleteRangeRequest {
                    key: bytes(&key),
                    range_end: bytes(&end),
                    prev_kv: true,
                }),
                ..Default::default()
            },
            1 | 2 => InternalRaftRequest {
                txn: Some(TxnRequest {
                    compare: vec![Compare { key: bytes(&end), target: 3, result: 1, ..Default::default() }],
                    success: vec![op_delete(&end, ""), op_put(&key, &end), op_range(range("k", "l"))],
                    failure: vec![op_range(range(&key, "")), op_put(&end, &key)],
                }),
                ..Default::default()
            },
            3 if below(9) == 0 => InternalRaftRequest {
                compaction: Some(CompactionRequest { revision: index as i64 * 2 / 3, physical: false }),
                ..Default::default()
            },
            4 if below(9) == 0 => InternalRaftRequest {
                alarm: Some(AlarmRequest {
                    action: below(3) as i32,
                    member_id: below(2),
                    alarm: below(2) as i32,
                }),
                ..Default::default()
            },
            12 => grant(below(5) as i64, below(9) as i64),
            13 if below(3) == 0 => revoke(below(5) as i64),
            14 => checkpoint(&[(below(5) as i64, below(5) as i64), (below(5) as i64, 1)]),
            _ => InternalRaftRequest { put: Some(put), ..Default::default() },
        };
        let data = encode(&request).into();
        entries.push(Entry {
            term: Term(1 + index / 900),
            index: LogIndex(index),
            kind: EntryKind::Normal,
            data,
        });
    }
    let outcomes = |told: &[Told]| {
        told.iter().filter(|told| matches!(told, Told::Outcome(..))).cloned().collect::<Vec<Told>>()
    };
    let mut first: Option<(Vec<Told>, u32, u32)> = None;
    for (batch, inline_value_bytes_max, deaf, restarts) in
        [(1, u64::MAX, false, false), (3_000, 0, true, false), (7, 500, false, true), (100, 5, true, true)]
    {
        let mut bench = Bench::with(Options { inline_value_bytes_max, ..Options::default() });
        bench.sink.deaf = deaf;
        for (number, portion) in entries.chunks(batch).enumerate() {
            bench.machine.apply(portion, &mut bench.sink);
            if restarts && number % 20 == 0 {
                bench.reopen(None);
            }
            if number % 5 == batch % 5 {
                bench.machine.compact_step(batch % 13 + 1);
            }
        }
        assert_eq!(bench.sink.told.iter().any(|told| matches!(told, Told::Events(..))), !deaf);
        let hash_kv = bench.reader.hash_kv(0).unwrap().hash;
        bench.compact_physically(50);
        let this = (outcomes(&bench.sink.told), bench.reader.hash(), hash_kv);
        let first = first.get_or_insert_with(|| this.clone());
        assert_eq!(first.0.len(), this.0.len());
        assert!(*first == this, "batches of {batch} with {inline_value_bytes_max} bytes inline differ");
    }
}

/// A member that finds a damaged row says which, and does not start.
#[test]
fn a_damaged_row_is_named() {
    let store = Memory::new();
    let mut batch = state_machine::store::WriteBatch::at(Default::default());
    let id = types::RowId { main: types::Revision(5), sub: 0 };
    batch.put_row(id, state_machine::store::StoredRow { tombstone: false, value: bytes("\u{7f}\u{7f}") });
    store.write(batch).unwrap();
    let error = StateMachine::open(Arc::new(store), Options::default(), None).unwrap_err().to_string();
    assert!(error.starts_with("row 5.0: "), "{error}");
    let store = Memory::new();
    let mut batch = state_machine::store::WriteBatch::at(Default::default());
    batch.put(Table::Meta, "confState", "{");
    store.write(batch).unwrap();
    let error = StateMachine::open(Arc::new(store), Options::default(), None).unwrap_err().to_string();
    assert!(error.starts_with("table meta, key \"confState\": "), "{error}");
}
