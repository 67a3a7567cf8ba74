//! What the tests of stores and snapshots share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::ops::ControlFlow;

use bytes::Bytes;
use state_machine::store::{StoredRow, Table, WriteBatch};
use storage::snapshot::View;
use types::{LogIndex, LogPosition, Revision, RowId, Term};

pub fn at(index: u64) -> LogPosition {
    LogPosition { term: Term(1 + index / 1000), index: LogIndex(index) }
}

pub fn id(main: i64, sub: i64) -> RowId {
    RowId { main: Revision(main), sub }
}

pub fn put_row(value: impl Into<Bytes>) -> StoredRow {
    StoredRow { tombstone: false, value: value.into() }
}

/// xorshift64*: the tests need repeatable variety, not quality.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Everything {
    pub position: LogPosition,
    pub rows: Vec<(RowId, StoredRow)>,
    pub tables: Vec<(Table, Vec<(Bytes, Bytes)>)>,
}

pub fn everything(view: &impl View) -> Everything {
    let mut rows = Vec::new();
    view.scan(id(0, 0)..=id(i64::MAX, i64::MAX), &mut |id, row| {
        rows.push((id, row));
        ControlFlow::Continue(())
    })
    .unwrap();
    let tables = Table::ALL.into_iter().map(|table| (table, view.table(table).unwrap())).collect();
    Everything { position: view.position(), rows, tables }
}

/// An encoded `mvccpb.KeyValue` of a live version.
pub fn key_value(key: &[u8], revision: i64, version: i64, value: Vec<u8>) -> Bytes {
    use prost::Message as _;
    let kv = api::mvccpb::KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: revision - version + 1,
        mod_revision: revision,
        version,
        value: value.into(),
        lease: 0,
    };
    kv.encode_to_vec().into()
}

pub fn key_tombstone(key: &[u8]) -> Bytes {
    use prost::Message as _;
    api::mvccpb::KeyValue { key: Bytes::copy_from_slice(key), ..Default::default() }.encode_to_vec().into()
}

/// One batch of a plausible state: revision `main`, one or two keys out of `keys`, values of many sizes. `consistent_index` is `main`.
pub fn plausible_batch(random: &mut Random, main: i64, keys: u64) -> WriteBatch {
    let mut batch = WriteBatch::at(at(main as u64));
    let key = format!("/registry/pods/{:05}", random.below(keys));
    let size = match random.below(100) {
        0 => 20_000,
        1..5 => 4_100,
        5..10 => 0,
        _ => random.below(400) as usize,
    };
    if random.below(10) == 0 {
        let value = key_tombstone(key.as_bytes());
        batch.put_row(id(main, 0), StoredRow { tombstone: true, value });
    } else {
        batch.put_row(id(main, 0), put_row(key_value(key.as_bytes(), main, 1, vec![main as u8; size])));
        batch.put_row(id(main, 1), put_row(key_value(b"/second", main, 1, b"x".to_vec())));
    }
    if random.below(20) == 0 {
        batch.put(Table::Lease, main.to_be_bytes().to_vec(), &b"\x08\x01\x10\x3c"[..]);
    }
    batch
}
