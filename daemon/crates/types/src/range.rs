//! Key ranges by etcd's convention.

use bytes::Bytes;

/// The keys that a request addresses. Built from the `key` and `range_end` of a request by [`KeyRange::from_request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    One(Bytes),
    /// `start <= key < end`; empty when `end <= start`.
    Span { start: Bytes, end: Bytes },
    /// `start <= key`, to the end of the key space.
    From(Bytes),
}

impl KeyRange {
    /// An empty `range_end` is one key; a single zero byte is "from `key` on"; anything else is an exclusive end.
    pub fn from_request(key: &Bytes, range_end: &Bytes) -> KeyRange {
        match range_end.as_ref() {
            [] => KeyRange::One(key.clone()),
            [0] => KeyRange::From(key.clone()),
            _ => KeyRange::Span { start: key.clone(), end: range_end.clone() },
        }
    }

    pub fn start(&self) -> &[u8] {
        match self {
            KeyRange::One(key) => key,
            KeyRange::Span { start, .. } | KeyRange::From(start) => start,
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(only) => key == only.as_ref(),
            KeyRange::Span { start, end } => start.as_ref() <= key && key < end.as_ref(),
            KeyRange::From(start) => start.as_ref() <= key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_follows_etcds_three_conventions() {
        let range = |key: &'static str, end: &'static [u8]| {
            KeyRange::from_request(&Bytes::from_static(key.as_bytes()), &Bytes::from_static(end))
        };
        assert_eq!(range("a", b""), KeyRange::One(Bytes::from_static(b"a")));
        assert_eq!(range("a", b"\0"), KeyRange::From(Bytes::from_static(b"a")));
        assert!(range("a", b"c").contains(b"b") && !range("a", b"c").contains(b"c"));
        assert!(!range("c", b"a").contains(b"b"), "a reversed range is empty, not an error");
    }
}
