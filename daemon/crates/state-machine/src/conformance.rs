//! What every [`Store`] must do, as one suite that runs on any of them. A durable store gives a `reopen` that closes and opens it
//! again, so that each step is also checked across a restart; a store that forgets gives one that hands back what it was given.

use std::ops::ControlFlow;

use bytes::Bytes;
use types::{LogIndex, LogPosition, Revision, RowId, Term};

use crate::rows::meta;
use crate::store::{Store, StoredRow, Table, WriteBatch};

fn id(main: i64, sub: i64) -> RowId {
    RowId { main: Revision(main), sub }
}

fn row(text: &str) -> StoredRow {
    StoredRow { tombstone: false, value: Bytes::copy_from_slice(text.as_bytes()) }
}

fn position(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term(term), index: LogIndex(index) }
}

fn scan<S: Store>(store: &S, from: RowId, to: RowId, max: usize) -> Vec<(RowId, StoredRow)> {
    let mut rows = Vec::new();
    let each = &mut |id, row| {
        rows.push((id, row));
        if rows.len() >= max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    store.scan(from, to, each).expect("scan");
    rows
}

fn all<S: Store>(store: &S) -> Vec<(RowId, StoredRow)> {
    scan(store, id(i64::MIN, i64::MIN), id(i64::MAX, i64::MAX), usize::MAX)
}

/// Runs the whole suite; panics with the expectation that failed.
pub fn store_conformance<S: Store>(make: impl Fn() -> S, reopen: impl Fn(S) -> S) {
    empty_store_is_empty(reopen(make()));
    rows_come_back(make(), &reopen);
    scans_are_ordered_bounded_and_stoppable(make(), &reopen);
    batches_take_effect_in_order(make(), &reopen);
    tables_are_apart_and_sorted(make(), &reopen);
    position_is_part_of_every_batch(make(), &reopen);
    large_rows_and_odd_bytes(make(), &reopen);
    many_rows(make(), &reopen);
}

fn empty_store_is_empty<S: Store>(store: S) {
    assert_eq!(store.row(id(1, 0)).expect("row"), None, "an empty store has no row");
    assert!(all(&store).is_empty(), "an empty store scans nothing");
    for table in Table::ALL {
        let pairs = store.table(table).expect("table");
        assert!(pairs.is_empty() || table == Table::Meta, "an empty store has no pair in {}", table.name());
    }
    store.wait_for_room().expect("an idle store has room");
}

fn rows_come_back<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    let mut batch = WriteBatch::at(position(1, 1));
    batch.put_row(id(2, 0), row("a"));
    batch.put_row(id(2, 1), StoredRow { tombstone: true, value: Bytes::from_static(b"gone") });
    batch.put_row(id(3, 0), row(""));
    store.write(batch).expect("write");
    let check = |store: &S| {
        assert_eq!(store.row(id(2, 0)).expect("row"), Some(row("a")));
        let dead = store.row(id(2, 1)).expect("row").expect("a tombstone is a row");
        assert!(dead.tombstone, "a tombstone stays one");
        assert_eq!(store.row(id(3, 0)).expect("row"), Some(row("")), "a row may be empty");
        assert_eq!(store.row(id(4, 0)).expect("row"), None);
        let asked = [id(3, 0), id(9, 9), id(2, 1), id(2, 0), id(2, 0)];
        let rows = store.rows(&asked).expect("rows");
        let found: Vec<bool> = rows.iter().map(Option::is_some).collect();
        assert_eq!(found, [true, false, true, true, true], "rows answer in the order asked, repetitions too");
        assert_eq!(rows[3], Some(row("a")));
        assert!(store.rows(&[]).expect("rows").is_empty());
    };
    check(&store);
    check(&reopen(store));
}

fn scans_are_ordered_bounded_and_stoppable<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    // Numbers whose byte order differs from their order in text or little endian.
    let ids = [
        id(1, 0),
        id(2, 0),
        id(2, 1),
        id(2, 255),
        id(2, 256),
        id(10, 0),
        id(255, 3),
        id(256, 0),
        id(1 << 40, 1),
    ];
    for (at, row_id) in ids.iter().rev().enumerate() {
        let mut batch = WriteBatch::at(position(1, at as u64 + 1));
        batch.put_row(
            *row_id,
            StoredRow { tombstone: row_id.sub == 1, value: Bytes::from(row_id.to_string()) },
        );
        store.write(batch).expect("write");
    }
    let check = |store: &S| {
        let found: Vec<RowId> = all(store).iter().map(|(id, _)| *id).collect();
        assert_eq!(found, ids, "a scan is in order of revision and sub");
        assert!(all(store).iter().all(|(id, row)| row.tombstone == (id.sub == 1)));
        assert_eq!(scan(store, id(2, 1), id(10, 0), 99).len(), 4, "both ends are inclusive");
        assert_eq!(scan(store, id(2, 2), id(2, 254), 99).len(), 0);
        assert_eq!(scan(store, id(10, 0), id(2, 0), 99).len(), 0, "a reversed scan is empty");
        assert_eq!(scan(store, id(0, 0), id(i64::MAX, 0), 3).len(), 3, "a scan stops when told");
    };
    check(&store);
    check(&reopen(store));
}

fn batches_take_effect_in_order<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    let mut batch = WriteBatch::at(position(1, 1));
    batch.put_row(id(2, 0), row("first"));
    batch.put_row(id(2, 0), row("second"));
    batch.put(Table::Cluster, "version", "1");
    batch.put(Table::Cluster, "version", "2");
    batch.put(Table::Alarm, "short-lived", "");
    batch.delete(Table::Alarm, "short-lived");
    batch.put_row(id(3, 0), row("x"));
    batch.put_row(id(3, 1), StoredRow { tombstone: true, value: Bytes::from_static(b"y") });
    store.write(batch).expect("write");
    assert_eq!(store.row(id(2, 0)).expect("row"), Some(row("second")), "the last change of a batch wins");
    let mut batch = WriteBatch::at(position(1, 2));
    batch.delete_row(id(3, 0), false);
    batch.delete_row(id(3, 1), true);
    batch.delete_row(id(77, 0), false);
    batch.delete(Table::Lease, "unknown");
    store.write(batch).expect("deleting what is not there is no error");
    let check = |store: &S| {
        assert_eq!(all(store), [(id(2, 0), row("second"))]);
        assert_eq!(store.rows(&[id(3, 0), id(3, 1)]).expect("rows"), [None, None]);
        assert_eq!(store.table(Table::Cluster).expect("table"), [(Bytes::from("version"), Bytes::from("2"))]);
        assert!(store.table(Table::Alarm).expect("table").is_empty());
    };
    check(&store);
    check(&reopen(store));
}

fn tables_are_apart_and_sorted<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    let keys = ["", "a", "a\0", "ab", "b", "\u{ff}"];
    let mut batch = WriteBatch::at(position(3, 9));
    for table in Table::ALL {
        for key in keys.iter().rev().filter(|key| !key.is_empty()) {
            batch.put(table, *key, format!("{}/{key}", table.name()));
        }
    }
    store.write(batch).expect("write");
    let check = |store: &S| {
        for table in Table::ALL {
            let pairs: Vec<(Bytes, Bytes)> = store.table(table).expect("table");
            let ours =
                pairs.iter().filter(|(key, _)| keys.contains(&std::str::from_utf8(key).expect("text")));
            let expected = keys[1..]
                .iter()
                .map(|key| (Bytes::from(*key), Bytes::from(format!("{}/{key}", table.name()))));
            assert!(ours.cloned().eq(expected), "table {} holds its own pairs", table.name());
            assert!(pairs.windows(2).all(|pair| pair[0].0 < pair[1].0), "pairs are in key order");
        }
    };
    check(&store);
    check(&reopen(store));
}

fn position_is_part_of_every_batch<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    let check = |store: &S, term: u64, index: u64| {
        let pairs = store.table(Table::Meta).expect("table");
        let find =
            |name: &[u8]| pairs.iter().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.to_vec());
        assert_eq!(
            find(meta::CONSISTENT_INDEX),
            Some(index.to_be_bytes().to_vec()),
            "the applied index is in meta"
        );
        assert_eq!(find(meta::TERM), Some(term.to_be_bytes().to_vec()), "and its term");
    };
    store.write(WriteBatch::at(position(2, 7))).expect("a batch without changes moves the position");
    check(&store, 2, 7);
    let mut batch = WriteBatch::at(position(5, 300));
    batch.put_row(id(2, 0), row("a"));
    store.write(batch).expect("write");
    check(&store, 5, 300);
    let store = reopen(store);
    check(&store, 5, 300);
    assert_eq!(all(&store).len(), 1);
}

fn large_rows_and_odd_bytes<S: Store>(store: S, reopen: &impl Fn(S) -> S) {
    const LARGE_BYTES: usize = 2 * 1024 * 1024;
    let large = StoredRow { tombstone: false, value: Bytes::from(vec![0xa5; LARGE_BYTES]) };
    let odd: Vec<u8> = (0..=255).collect();
    let mut batch = WriteBatch::at(position(1, 1));
    batch.put_row(id(2, 0), large.clone());
    batch.put(Table::Members, odd.clone(), odd.clone());
    store.write(batch).expect("write");
    let check = |store: &S| {
        assert_eq!(store.row(id(2, 0)).expect("row").as_ref(), Some(&large));
        let odd = Bytes::from(odd.clone());
        assert_eq!(store.table(Table::Members).expect("table"), [(odd.clone(), odd)]);
        assert!(store.size().total_bytes >= store.size().in_use_bytes, "in use is part of total");
    };
    check(&store);
    check(&reopen(store));
}

fn many_rows<S: Store>(mut store: S, reopen: &impl Fn(S) -> S) {
    const BATCHES: i64 = 40;
    const ROWS: i64 = 100;
    for number in 0..BATCHES {
        let mut batch = WriteBatch::at(position(1, number as u64 + 1));
        for sub in 0..ROWS {
            batch.put_row(id(number + 2, sub), row(&format!("{number}/{sub}")));
        }
        if number > 0 {
            (0..ROWS).filter(|sub| sub % 2 == 0).for_each(|sub| batch.delete_row(id(number + 1, sub), false));
        }
        store.write(batch).expect("write");
        assert_eq!(
            store.row(id(number + 2, 7)).expect("row"),
            Some(row(&format!("{number}/7"))),
            "at once visible"
        );
        assert_eq!(store.row(id(number + 1, 8)).expect("row"), None, "a deletion is at once visible");
        if number == BATCHES / 2 {
            store = reopen(store);
        }
    }
    let check = |store: &S| {
        let rows = all(store);
        assert_eq!(rows.len() as i64, (BATCHES - 1) * ROWS / 2 + ROWS);
        assert!(rows.iter().all(|(id, row)| row.value == format!("{}/{}", id.main.0 - 2, id.sub)));
        assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0));
    };
    check(&store);
    check(&reopen(store));
}
