//! Keys of the state store. One LSM keyspace holds everything, told apart by the first byte:
//!
//! ```text
//! row      BE64 main | BE64 (sub * 2 + tombstone)         16 bytes, first byte < 0x80
//! private  0xff | 0x00 | name                             marker, counters: never part of etcd's tables
//! table    0xff | tag >= 0x10 | etcd's key
//! ```
//!
//! Rows come first so that appending stays at one end of the row range, and the tombstone mark is the lowest bit of the key: the
//! value is etcd's bytes without a prefix to strip, the order is that of the ids, and a scan needs no value to see the mark.
//! etcd's own 17 or 18 bytes (`_`, `t`) are made where they leave the process, in [`etcd_row_key`].
//!
//! Not here: what the values mean.

use state_machine::store::Table;
use types::{Revision, RowId};

/// bbolt's longest key. etcd cannot store a longer one in its tables either, and the LSM tree ends at 65,535.
pub const TABLE_KEY_BYTES_MAX: usize = 32 * 1024;

/// Largest `sub` whose key form does not overflow. etcd's requests are bounded by `max-txn-ops`, eighteen digits below.
pub const SUB_MAX: i64 = i64::MAX / 2;

const OUTSIDE_ROWS: u8 = 0xff;
const PRIVATE: u8 = 0x00;

pub const MARKER_KEY: &[u8] = b"\xff\x00marker";
pub const COUNTERS_KEY: &[u8] = b"\xff\x00counters";

pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub const TERM: &[u8] = b"term";

pub const ROW_KEY_BYTES: usize = 16;
const _: () =
    assert!(ROW_KEY_BYTES <= 20, "row keys must fit the LSM tree's inline keys, or each costs an allocation");

/// `None` when the id is outside what a key can hold (negative, or `sub` above [`SUB_MAX`]).
pub fn row_key(id: RowId, tombstone: bool) -> Option<[u8; ROW_KEY_BYTES]> {
    if id.main.0 < 0 || id.sub < 0 || id.sub > SUB_MAX {
        return None;
    }
    let mut key = [0; ROW_KEY_BYTES];
    key[..8].copy_from_slice(&id.main.0.to_be_bytes());
    key[8..].copy_from_slice(&(id.sub * 2 + i64::from(tombstone)).to_be_bytes());
    Some(key)
}

/// The smallest key at or after `id`; ids outside the range are moved to its nearest end.
pub fn row_key_from(id: RowId) -> [u8; ROW_KEY_BYTES] {
    let main = id.main.0.max(0);
    let sub = if id.main.0 < 0 { 0 } else { id.sub.clamp(0, SUB_MAX) };
    row_key(RowId { main: Revision(main), sub }, false).expect("clamped into the range of keys")
}

/// The largest key at or before `id`, for `id.main >= 0`.
pub fn row_key_to(id: RowId) -> [u8; ROW_KEY_BYTES] {
    row_key(RowId { main: Revision(id.main.0.max(0)), sub: id.sub.clamp(0, SUB_MAX) }, true)
        .expect("clamped into the range of keys")
}

pub fn parse_row_key(key: &[u8]) -> Option<(RowId, bool)> {
    let key: &[u8; ROW_KEY_BYTES] = key.try_into().ok()?;
    let main = i64::from_be_bytes(key[..8].try_into().ok()?);
    let sub = i64::from_be_bytes(key[8..].try_into().ok()?);
    (main >= 0 && sub >= 0).then_some((RowId { main: Revision(main), sub: sub >> 1 }, sub & 1 == 1))
}

/// Fixed for ever: part of the format. New tables get new numbers.
const fn tag(table: Table) -> u8 {
    match table {
        Table::Alarm => 0x10,
        Table::Auth => 0x11,
        Table::AuthRoles => 0x12,
        Table::AuthUsers => 0x13,
        Table::Cluster => 0x14,
        Table::Lease => 0x15,
        Table::Members => 0x16,
        Table::MembersRemoved => 0x17,
        Table::Meta => 0x18,
    }
}

const _: () = assert!(tag(Table::Alarm) > PRIVATE);

pub fn table_prefix(table: Table) -> [u8; 2] {
    [OUTSIDE_ROWS, tag(table)]
}

pub fn table_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + key.len());
    out.extend_from_slice(&table_prefix(table));
    out.extend_from_slice(key);
    out
}

/// etcd's row key: BE64 main, `_`, BE64 sub, and `t` on a tombstone. Negative ids do not exist in etcd either.
pub fn etcd_row_key(id: RowId, tombstone: bool) -> ([u8; 18], usize) {
    let mut key = [b't'; 18];
    key[..8].copy_from_slice(&id.main.0.to_be_bytes());
    key[8] = b'_';
    key[9..17].copy_from_slice(&id.sub.to_be_bytes());
    (key, if tombstone { 18 } else { 17 })
}

/// The reverse of [`etcd_row_key`]; `None` for anything etcd would not write.
pub fn parse_etcd_row_key(key: &[u8]) -> Option<(RowId, bool)> {
    let tombstone = match key.len() {
        17 => false,
        18 if key[17] == b't' => true,
        _ => return None,
    };
    if key[8] != b'_' {
        return None;
    }
    let main = i64::from_be_bytes(key[..8].try_into().ok()?);
    let sub = i64::from_be_bytes(key[9..17].try_into().ok()?);
    (main >= 0 && (0..=SUB_MAX).contains(&sub)).then_some((RowId { main: Revision(main), sub }, tombstone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(main: i64, sub: i64) -> RowId {
        RowId { main: Revision(main), sub }
    }

    #[test]
    fn keys_order_as_ids_do_and_come_back() {
        let ids = [id(0, 0), id(1, 0), id(1, 1), id(1, 255), id(1, 256), id(2, 0), id(i64::MAX, SUB_MAX)];
        for pair in ids.windows(2) {
            assert!(row_key(pair[0], true) < row_key(pair[1], false), "{} before {}", pair[0], pair[1]);
        }
        for one in ids {
            for tombstone in [false, true] {
                let key = row_key(one, tombstone).unwrap();
                assert_eq!(parse_row_key(&key), Some((one, tombstone)));
                assert!(key[0] < OUTSIDE_ROWS);
                let (etcd, len) = etcd_row_key(one, tombstone);
                assert_eq!(parse_etcd_row_key(&etcd[..len]), Some((one, tombstone)));
            }
        }
    }

    #[test]
    fn ids_that_no_log_entry_makes_have_no_key() {
        for odd in [id(-1, 0), id(0, -1), id(1, SUB_MAX + 1)] {
            assert_eq!(row_key(odd, false), None, "{odd}");
        }
        assert_eq!(parse_etcd_row_key(b"short"), None);
        assert_eq!(parse_etcd_row_key(&[b'x'; 18]), None);
    }
}
