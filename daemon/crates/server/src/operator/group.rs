//! Which prefix a key counts for. Pure.

use api::error::EtcdError;
use bytes::Bytes;
use tonic::Status;
use types::KeyRange;

use crate::backend::Backend;

/// Separators a group may span. Deeper than any tree that people lay out in keys.
const DEPTH_MAX: u32 = 32;

/// Bytes of a separator: one is usual, and a text that is searched in every key should not be a page.
const SEPARATOR_BYTES_MAX: usize = 16;

pub(super) struct Grouping {
    prefix: Bytes,
    depth: u32,
    separator: Bytes,
}

impl Grouping {
    /// # Errors
    /// When the separator is too long, or the bearer of the token may not read what begins with the prefix.
    pub fn new<B: Backend>(
        backend: &B,
        token: Option<&[u8]>,
        prefix: Bytes,
        depth: u32,
        separator: Bytes,
    ) -> Result<Grouping, Status> {
        if separator.len() > SEPARATOR_BYTES_MAX {
            let text = format!("cairn: a separator has at most {SEPARATOR_BYTES_MAX} bytes");
            return Err(Status::invalid_argument(text));
        }
        let separator = if separator.is_empty() { Bytes::from_static(b"/") } else { separator };
        let grouping = Grouping { prefix, depth: depth.min(DEPTH_MAX), separator };
        let (key, range_end) = grouping.request_range();
        backend.may_watch(token, &key, &range_end).map_err(|error: EtcdError| Status::from(error))?;
        Ok(grouping)
    }

    /// Everything that begins with the prefix, as requests say it.
    pub fn request_range(&self) -> (Bytes, Bytes) {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        let Some(last) = self.prefix.iter().rposition(|byte| *byte != u8::MAX) else {
            return (if self.prefix.is_empty() { ZERO } else { self.prefix.clone() }, ZERO);
        };
        let mut end = self.prefix[..=last].to_vec();
        end[last] += 1;
        (self.prefix.clone(), end.into())
    }

    pub fn range(&self) -> KeyRange {
        let (key, range_end) = self.request_range();
        KeyRange::from_request(&key, &range_end)
    }

    /// The prefix that a key counts for: up to and including the `depth`-th separator behind the asked prefix. A separator at the very
    /// beginning of a key separates nothing and counts with what follows. A key outside of the asked prefix counts from its beginning.
    pub fn of<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        let mut end = if key.starts_with(&self.prefix) { self.prefix.len() } else { 0 };
        if self.depth == 0 {
            return &key[..end];
        }
        if end == 0 && key.starts_with(&self.separator) {
            end = self.separator.len();
        }
        for _ in 0..self.depth {
            let rest = &key[end..];
            let found = rest.windows(self.separator.len()).position(|window| window == self.separator);
            let Some(at) = found else { break };
            end += at + self.separator.len();
        }
        &key[..end]
    }

    /// Whether watchers of this range see anything that begins with the prefix.
    pub fn concerns(&self, range: &KeyRange) -> bool {
        range.start().starts_with(&self.prefix) || range.contains(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouping(prefix: &'static str, depth: u32, separator: &'static str) -> Grouping {
        Grouping { prefix: prefix.into(), depth, separator: separator.into() }
    }

    #[test]
    fn keys_count_for_the_prefix_of_the_asked_depth() {
        for (prefix, depth, key, group) in [
            ("", 1, "/registry/pods/ns/a", "/registry/"),
            ("", 2, "/registry/pods/ns/a", "/registry/pods/"),
            ("", 9, "/registry/pods/ns/a", "/registry/pods/ns/"),
            ("", 0, "/registry/pods", ""),
            ("", 1, "app/config", "app/"),
            ("", 1, "plain", ""),
            ("", 1, "/plain", "/"),
            ("", 1, "", ""),
            ("/registry/", 1, "/registry/pods/ns/a", "/registry/pods/"),
            ("/registry/", 1, "/registry/pods", "/registry/"),
            ("/reg", 1, "/registry/pods", "/registry/"),
            ("/registry/", 0, "/registry/pods/a", "/registry/"),
            ("/registry/", 1, "/other/a", "/other/"),
            ("", 2, "//a/b", "//a/"),
        ] {
            assert_eq!(
                grouping(prefix, depth, "/").of(key.as_bytes()),
                group.as_bytes(),
                "{prefix} {depth} {key}"
            );
        }
        assert_eq!(grouping("", 1, "::").of(b"a:b::c::d"), b"a:b::");
        assert_eq!(grouping("", 2, "/").of(b"\xff/\x00/\xfe"), b"\xff/\x00/");
    }

    #[test]
    fn a_watcher_of_a_wider_range_sees_the_prefix_too() {
        let group = grouping("/a/", 1, "/");
        let span =
            |start: &'static str, end: &'static str| KeyRange::Span { start: start.into(), end: end.into() };
        assert!(group.concerns(&KeyRange::One("/a/x".into())) && group.concerns(&span("/a/", "/a0")));
        assert!(group.concerns(&span("/", "0")) && group.concerns(&KeyRange::From(Bytes::from_static(&[0]))));
        assert!(!group.concerns(&KeyRange::One("/b/x".into())) && !group.concerns(&span("/b", "/c")));
    }

    #[test]
    fn the_range_of_a_prefix_is_etcds() {
        let range = |prefix: &'static [u8]| {
            Grouping { prefix: Bytes::from_static(prefix), depth: 1, separator: "/".into() }.request_range()
        };
        for (prefix, key, end) in [
            (&b"a"[..], &b"a"[..], &b"b"[..]),
            (b"", b"\0", b"\0"),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff", b"\xff", b"\0"),
        ] {
            assert_eq!(range(prefix), (Bytes::from_static(key), Bytes::from_static(end)));
        }
    }
}
