//! A token and what is registered under it, as the key space holds it. Pure.

use api::{
    etcdserverpb::{self as pb, compare},
    mvccpb::KeyValue,
};
use bytes::Bytes;

use super::{ENTRIES_MAX, SIZE_MAX};

/// Above all tokens. etcd's v3 clients have it built in.
pub(crate) const REGISTRY: &str = "/_etcd/registry/";

const SIZE: &str = "/_config/size";
const MEMBERS: &str = "/members/";

/// A token that this service takes: what can stand in a URL as it is, and no hidden name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    pub fn new(text: &str) -> Option<Token> {
        let can_stand = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        let is_one =
            (1..=128).contains(&text.len()) && text.bytes().all(can_stand) && !text.starts_with(['_', '.']);
        is_one.then(|| Token(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn dir(&self) -> String {
        format!("{REGISTRY}{}/", self.0)
    }

    pub fn size_key(&self) -> Bytes {
        format!("{REGISTRY}{}{SIZE}", self.0).into()
    }

    pub fn members(&self) -> String {
        format!("{REGISTRY}{}{MEMBERS}", self.0)
    }

    pub fn entry_key(&self, id: &str) -> Bytes {
        format!("{}{id}", self.members()).into()
    }

    /// Reads everything of this token.
    pub fn read(&self) -> pb::RangeRequest {
        let (key, range_end) = prefix(&self.dir());
        pb::RangeRequest { key, range_end, limit: 1 + ENTRIES_MAX as i64, ..Default::default() }
    }
}

/// The range of all keys that begin with `prefix`, which ends with a slash.
pub(crate) fn prefix(prefix: &str) -> (Bytes, Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    (Bytes::copy_from_slice(prefix.as_bytes()), end.into())
}

/// The token that a key belongs to, and whether it is the token's size.
pub(crate) fn belongs(key: &[u8]) -> Option<(&str, bool)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
    match rest.strip_suffix(SIZE) {
        Some(token) => Some((token, true)),
        None => rest.rsplit_once(MEMBERS).map(|(token, _)| (token, false)),
    }
}

/// One token at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub revision: i64,
    pub size: Option<Size>,
    /// In the order of their registration.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// As written.
    pub text: String,
    pub created: i64,
    pub modified: i64,
    pub lease: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub id: String,
    pub value: String,
    /// The revision that created the key. It is shown for the index of its last change too: a v3 client that registers again does not
    /// move behind others, or a waiting member would go past them.
    pub index: i64,
    pub modified: i64,
}

impl Size {
    /// None when it is no number of members.
    pub fn count(&self) -> Option<usize> {
        number(&self.text)
    }
}

/// A number of members, as etcd reads one.
pub(crate) fn number(text: &str) -> Option<usize> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = text.parse::<u64>().ok().filter(|count| is_plain && (1..=SIZE_MAX).contains(count))?;
    usize::try_from(count).ok()
}

impl Entry {
    pub fn of(token: &Token, kv: &KeyValue) -> Option<Entry> {
        let id = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&token.members())?;
        Some(Entry {
            id: id.to_owned(),
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            index: kv.create_revision,
            modified: kv.mod_revision,
        })
    }
}

impl View {
    pub fn of(token: &Token, response: &pb::RangeResponse) -> View {
        let size_key = token.size_key();
        let size = response.kvs.iter().find(|kv| kv.key == size_key).map(|kv| Size {
            text: String::from_utf8_lossy(&kv.value).into_owned(),
            created: kv.create_revision,
            modified: kv.mod_revision,
            lease: kv.lease,
        });
        let mut entries: Vec<Entry> = response.kvs.iter().filter_map(|kv| Entry::of(token, kv)).collect();
        entries.sort_by_key(|entry| entry.index);
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        View { revision, size, entries }
    }

    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// The condition under which what was decided from this view may be written: size and registrations are what they were. Fewer
    /// registrations would do no harm and are not noticed.
    pub fn unchanged(&self, token: &Token) -> Vec<pb::Compare> {
        let (key, range_end) = prefix(&token.members());
        let members = pb::Compare {
            key,
            range_end,
            result: compare::CompareResult::Less as i32,
            target: compare::CompareTarget::Mod as i32,
            target_union: Some(compare::TargetUnion::ModRevision(self.revision.saturating_add(1))),
        };
        let modified = self.size.as_ref().map_or(0, |size| size.modified);
        vec![modified_at(token.size_key(), modified), members]
    }
}

/// Whether a key was last changed then; zero: is not there.
pub(crate) fn modified_at(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        key,
        result: compare::CompareResult::Equal as i32,
        target: compare::CompareTarget::Mod as i32,
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

pub(crate) fn put(key: Bytes, value: &str, lease: i64) -> pb::RequestOp {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let put = pb::PutRequest { key, value, lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

pub(crate) fn delete((key, range_end): (Bytes, Bytes)) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_their_token() {
        for (key, expected) in [
            ("/_etcd/registry/T/_config/size", Some(("T", true))),
            ("/_etcd/registry/a/b/_config/size", Some(("a/b", true))),
            ("/_etcd/registry/T/members/ab", Some(("T", false))),
            ("/_etcd/registry/T/other", None),
            ("/other/T/_config/size", None),
        ] {
            assert_eq!(belongs(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(belongs(b"/_etcd/registry/\xff/members/1"), None);
        assert_eq!(prefix("/a/"), ("/a/".into(), "/a0".into()));
    }

    #[test]
    fn sizes_are_small_numbers() {
        for (text, expected) in
            [("1", Some(1)), ("31", Some(31)), ("003", Some(3)), ("0", None), ("32", None), ("+3", None)]
        {
            assert_eq!(number(text), expected, "{text}");
        }
        for text in ["", " 1", "-1", "abc", "1.0", "99999999999999999999"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}
