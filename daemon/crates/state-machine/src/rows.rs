//! The bytes of rows and of the `meta` table, exactly as etcd's database holds them: HashKV covers these bytes.

use std::ops::Range;

use api::mvccpb;
use bytes::Bytes;
use prost::Message;
use types::{ConfState, MemberId, Revision, RowId};

use crate::store::StoredRow;

/// Bytes of a coordinate: 8 big-endian, '_', 8 big-endian.
pub const ROW_KEY_BYTES: usize = 17;

/// Keys of the `meta` table.
pub mod meta {
    pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
    pub const TERM: &[u8] = b"term";
    pub const CONF_STATE: &[u8] = b"confState";
    pub const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
    pub const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
    pub const STORAGE_VERSION: &[u8] = b"storageVersion";
    /// Pairs that are cairn's own ([`crate::identities`]). etcd neither reads nor writes them.
    pub const OWN_PREFIX: &[u8] = b"cairn/";
}

/// The key of a row in etcd's `key` bucket; a tombstone's has a `t` at the end, which makes it 18 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    bytes: [u8; ROW_KEY_BYTES + 1],
    len: u8,
}

impl RowKey {
    pub fn new(id: RowId, tombstone: bool) -> RowKey {
        let mut bytes = [0; ROW_KEY_BYTES + 1];
        bytes[..ROW_KEY_BYTES].copy_from_slice(&coordinate(id));
        bytes[ROW_KEY_BYTES] = b't';
        RowKey { bytes, len: (ROW_KEY_BYTES + usize::from(tombstone)) as u8 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The coordinates and whether it is a tombstone; None for bytes that are no row key.
    pub fn parse(bytes: &[u8]) -> Option<(RowId, bool)> {
        let tombstone = match bytes.len() {
            ROW_KEY_BYTES => false,
            18 if bytes[ROW_KEY_BYTES] == b't' => true,
            _ => return None,
        };
        Some((parse_coordinate(&bytes[..ROW_KEY_BYTES])?, tombstone))
    }
}

/// A revision as `meta` stores the compaction marks.
pub fn coordinate(id: RowId) -> [u8; ROW_KEY_BYTES] {
    let mut bytes = [b'_'; ROW_KEY_BYTES];
    bytes[..8].copy_from_slice(&id.main.0.to_be_bytes());
    bytes[9..].copy_from_slice(&id.sub.to_be_bytes());
    bytes
}

pub fn parse_coordinate(bytes: &[u8]) -> Option<RowId> {
    if bytes.len() != ROW_KEY_BYTES || bytes[8] != b'_' {
        return None;
    }
    let number = |at: usize| Some(i64::from_be_bytes(bytes[at..at + 8].try_into().ok()?));
    Some(RowId { main: Revision(number(0)?), sub: number(9)? })
}

/// A row that holds a version.
pub fn put_row(kv: &mvccpb::KeyValue) -> StoredRow {
    StoredRow { tombstone: false, value: Bytes::from(kv.encode_to_vec()) }
}

/// A row that says the key is gone.
pub fn tombstone_row(key: &Bytes) -> StoredRow {
    let kv = mvccpb::KeyValue { key: key.clone(), ..Default::default() };
    StoredRow { tombstone: true, value: Bytes::from(kv.encode_to_vec()) }
}

/// Where the parts of an encoded KeyValue lie in its bytes; numbers are decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowParts {
    pub key: Range<usize>,
    pub value: Range<usize>,
    pub created: i64,
    pub modified: i64,
    pub version: i64,
    pub lease: i64,
}

/// Whether the index can take this version: what opening a state asks of every row.
pub fn is_row(id: RowId, bytes: &[u8]) -> bool {
    id.main.0 > 0 && (0..=crate::index::SUB_MAX).contains(&id.sub) && parse_row(bytes).is_some()
}

/// Finds the parts without copying: a start reads every row. None for bytes that are no KeyValue; unknown fields are skipped as the
/// general decoder does.
pub(crate) fn parse_row(bytes: &[u8]) -> Option<RowParts> {
    let mut parts = RowParts::default();
    let mut at = 0;
    while at < bytes.len() {
        let tag = varint(bytes, &mut at)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (field @ (2 | 3 | 4 | 6), 0) => {
                let number = varint(bytes, &mut at)? as i64;
                match field {
                    2 => parts.created = number,
                    3 => parts.modified = number,
                    4 => parts.version = number,
                    _ => parts.lease = number,
                }
            }
            (field @ (1 | 5), 2) => {
                let len = usize::try_from(varint(bytes, &mut at)?).ok()?;
                let end = at.checked_add(len).filter(|end| *end <= bytes.len())?;
                *(if field == 1 { &mut parts.key } else { &mut parts.value }) = at..end;
                at = end;
            }
            _ => return parse_row_slowly(bytes),
        }
    }
    Some(parts)
}

/// The general decoder decides about anything unusual; its key and value are copies of what lies somewhere in the bytes.
fn parse_row_slowly(bytes: &[u8]) -> Option<RowParts> {
    let shared = Bytes::copy_from_slice(bytes);
    let kv = mvccpb::KeyValue::decode(shared.clone()).ok()?;
    let range = |part: &Bytes| {
        let start = if part.is_empty() { 0 } else { part.as_ptr() as usize - shared.as_ptr() as usize };
        start..start + part.len()
    };
    Some(RowParts {
        key: range(&kv.key),
        value: range(&kv.value),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    })
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            // The tenth byte has room for one bit.
            return (shift < 63 || byte <= 1).then_some(number);
        }
    }
    None
}

/// `meta/confState` as etcd 3.5 and later write it.
pub fn conf_state_json(state: &ConfState) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Json {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        voters: Vec<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        learners: Vec<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        voters_outgoing: Vec<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        learners_next: Vec<u64>,
        auto_leave: bool,
    }
    let numbers = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect();
    let json = Json {
        voters: numbers(&state.voters),
        learners: numbers(&state.learners),
        voters_outgoing: numbers(&state.voters_outgoing),
        learners_next: numbers(&state.learners_next),
        auto_leave: state.auto_leave,
    };
    serde_json::to_vec(&json).expect("numbers have a JSON form")
}

pub fn parse_conf_state(json: &[u8]) -> Result<ConfState, serde_json::Error> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Json {
        voters: Option<Vec<u64>>,
        learners: Option<Vec<u64>>,
        voters_outgoing: Option<Vec<u64>>,
        learners_next: Option<Vec<u64>>,
        auto_leave: bool,
    }
    let json: Json = serde_json::from_slice(json)?;
    let ids = |numbers: Option<Vec<u64>>| numbers.unwrap_or_default().into_iter().map(MemberId).collect();
    Ok(ConfState {
        voters: ids(json.voters),
        learners: ids(json.learners),
        voters_outgoing: ids(json.voters_outgoing),
        learners_next: ids(json.learners_next),
        auto_leave: json.auto_leave,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_are_etcds_bytes() {
        let id = RowId { main: Revision(0x0102), sub: 3 };
        let key = RowKey::new(id, false);
        assert_eq!(key.as_bytes(), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        let dead = RowKey::new(id, true);
        assert_eq!(dead.as_bytes(), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
        assert_eq!(RowKey::parse(key.as_bytes()), Some((id, false)));
        assert_eq!(RowKey::parse(dead.as_bytes()), Some((id, true)));
        assert_eq!(RowKey::parse(b"\0\0\0\0\0\0\x01\x02-\0\0\0\0\0\0\0\x03"), None);
        assert_eq!(RowKey::parse(&dead.as_bytes()[..9]), None);
    }

    #[test]
    fn rows_are_parsed_as_the_general_decoder_does() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut good = 0;
        for _ in 0..20_000 {
            let kv = mvccpb::KeyValue {
                key: Bytes::from(vec![b'k'; random() as usize % 9]),
                create_revision: random() as i64 >> (random() % 64),
                mod_revision: random() as i64 >> (random() % 64),
                version: random() as i64 >> (random() % 64),
                value: Bytes::from(vec![b'v'; random() as usize % 9]),
                lease: random() as i64 >> (random() % 64),
            };
            let mut bytes = kv.encode_to_vec();
            if random() % 3 == 0 && !bytes.is_empty() {
                let at = random() as usize % bytes.len();
                match random() % 3 {
                    0 => bytes[at] = random() as u8,
                    1 => bytes.truncate(at),
                    _ => bytes.insert(at, random() as u8),
                }
            }
            let expected = mvccpb::KeyValue::decode(bytes.as_slice()).ok();
            let parts = parse_row(&bytes).map(|parts| mvccpb::KeyValue {
                key: Bytes::copy_from_slice(&bytes[parts.key]),
                create_revision: parts.created,
                mod_revision: parts.modified,
                version: parts.version,
                value: Bytes::copy_from_slice(&bytes[parts.value]),
                lease: parts.lease,
            });
            good += u64::from(parts.is_some());
            assert_eq!(parts, expected, "{bytes:?}");
        }
        assert!((13_000..19_500).contains(&good), "some rows are damaged, most are not: {good}");
    }

    #[test]
    fn conf_state_is_etcds_json() {
        let state = ConfState { voters: vec![MemberId(3), MemberId(u64::MAX)], ..Default::default() };
        let json = conf_state_json(&state);
        assert_eq!(
            String::from_utf8_lossy(&json),
            r#"{"voters":[3,18446744073709551615],"auto_leave":false}"#
        );
        assert_eq!(parse_conf_state(&json).unwrap(), state);
        assert_eq!(parse_conf_state(br#"{"voters":null}"#).unwrap(), ConfState::default());
        assert!(parse_conf_state(b"garbage").is_err());
    }
}
