//! Answers in etcd's v2 form, byte for byte where etcd has one. Pure.

use std::fmt::Write as _;

use http::StatusCode;

use super::token::{Entry, Size};

/// A key, or a directory, as answers show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub key: String,
    /// None: a directory, or a key that is gone.
    pub value: Option<String>,
    pub dir: bool,
    pub nodes: Vec<Node>,
    pub modified: i64,
    pub created: i64,
}

impl Node {
    pub fn of_entry(dir: &str, entry: &Entry) -> Node {
        Node {
            key: format!("{dir}/{}", entry.id),
            value: Some(entry.value.clone()),
            modified: entry.index,
            created: entry.index,
            ..Node::default()
        }
    }

    pub fn of_size(dir: &str, size: &Size) -> Node {
        Node {
            key: format!("{dir}/_config/size"),
            value: Some(size.text.clone()),
            modified: size.modified,
            // A `set` creates a key anew in v2, and nobody changes a size in another way.
            created: size.modified,
            ..Node::default()
        }
    }

    fn write(&self, json: &mut String) {
        json.push('{');
        let _ = write!(json, "\"key\":{}", text(&self.key));
        if let Some(value) = &self.value {
            let _ = write!(json, ",\"value\":{}", text(value));
        }
        if self.dir {
            json.push_str(",\"dir\":true");
        }
        if !self.nodes.is_empty() {
            json.push_str(",\"nodes\":[");
            for (number, node) in self.nodes.iter().enumerate() {
                if number > 0 {
                    json.push(',');
                }
                node.write(json);
            }
            json.push(']');
        }
        let _ = write!(json, ",\"modifiedIndex\":{},\"createdIndex\":{}}}", self.modified, self.created);
    }
}

/// `{"action":…,"node":…,"prevNode":…}` and a newline.
pub(crate) fn event(action: &str, node: &Node, before: Option<&Node>) -> String {
    let mut json = format!("{{\"action\":\"{action}\",\"node\":");
    node.write(&mut json);
    if let Some(before) = before {
        json.push_str(",\"prevNode\":");
        before.write(&mut json);
    }
    json.push_str("}\n");
    json
}

/// A JSON string as Go writes one: what HTML would take for its own is escaped.
fn text(plain: &str) -> String {
    let mut json = serde_json::to_string(plain).expect("text has a JSON form");
    for (plain, escaped) in [
        ('&', "\\u0026"),
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if json.contains(plain) {
            json = json.replace(plain, escaped);
        }
    }
    json
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    code: u16,
    message: &'static str,
    pub cause: String,
    /// Found before any key was looked at: etcd shows index 0 then.
    pub is_of_form: bool,
}

impl Refusal {
    fn of_form(code: u16, message: &'static str, cause: String) -> Refusal {
        Refusal { status: StatusCode::BAD_REQUEST, code, message, cause, is_of_form: true }
    }

    pub fn previous(cause: String) -> Refusal {
        Refusal::of_form(201, "PrevValue is Required in POST form", cause)
    }

    pub fn ttl(cause: String) -> Refusal {
        Refusal::of_form(202, "The given TTL in POST form is not a number", cause)
    }

    pub fn index(cause: String) -> Refusal {
        Refusal::of_form(203, "The given index in POST form is not a number", cause)
    }

    pub fn field(cause: String) -> Refusal {
        Refusal::of_form(209, "Invalid field", cause)
    }

    pub fn form(cause: String) -> Refusal {
        Refusal::of_form(210, "Invalid POST form", cause)
    }

    fn of_keys(status: StatusCode, code: u16, message: &'static str, cause: String) -> Refusal {
        Refusal { status, code, message, cause, is_of_form: false }
    }

    /// What is asked for can never be registered; etcd would find out later, if at all. The member prints `cause`.
    pub fn invalid(cause: impl Into<String>) -> Refusal {
        Refusal::of_keys(StatusCode::BAD_REQUEST, 210, "Invalid POST form", cause.into())
    }

    /// `cause`: the first part of the path that is not there.
    pub fn not_found(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::NOT_FOUND, 100, "Key not found", cause.into())
    }

    pub fn not_a_file(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::FORBIDDEN, 102, "Not a file", cause.into())
    }

    pub fn not_a_directory(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::BAD_REQUEST, 104, "Not a directory", cause.into())
    }

    pub fn exists(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::PRECONDITION_FAILED, 105, "Key already exists", cause.into())
    }

    /// The token's members are registered, or on their way. No code of etcd's means this; clients print text and cause.
    pub fn frozen(cause: String) -> Refusal {
        Refusal::of_keys(StatusCode::FORBIDDEN, 108, "The token is frozen", cause)
    }

    /// Not to be had from this service.
    pub fn kept_back(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::FORBIDDEN, 108, "Not served", cause.into())
    }

    pub fn too_large(cause: String) -> Refusal {
        Refusal::of_keys(StatusCode::PAYLOAD_TOO_LARGE, 210, "Invalid POST form", cause)
    }

    /// Clients come again after these.
    pub fn unavailable(cause: &str) -> Refusal {
        Refusal::of_keys(StatusCode::SERVICE_UNAVAILABLE, 301, "During Leader Election", cause.into())
    }

    pub fn busy(cause: String) -> Refusal {
        Refusal::of_keys(StatusCode::SERVICE_UNAVAILABLE, 300, "Raft Internal Error", cause)
    }

    pub fn json(&self, index: i64) -> String {
        let index = if self.is_of_form { 0 } else { index };
        let (code, message, cause) = (self.code, text(self.message), text(&self.cause));
        format!("{{\"errorCode\":{code},\"message\":{message},\"cause\":{cause},\"index\":{index}}}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_etcd() {
        let size = Size { text: "3".into(), created: 4, modified: 4, lease: 9 };
        let entry =
            Entry { id: "5fb6".into(), value: "n1=http://127.0.0.1:24011".into(), index: 5, modified: 8 };
        let dir = "/discovery/T";
        assert_eq!(
            event("get", &Node::of_size(dir, &size), None),
            "{\"action\":\"get\",\"node\":{\"key\":\"/discovery/T/_config/size\",\"value\":\"3\",\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        let mut list = Node { key: dir.into(), dir: true, modified: 4, created: 4, ..Node::default() };
        assert_eq!(
            event("get", &list, None),
            "{\"action\":\"get\",\"node\":{\"key\":\"/discovery/T\",\"dir\":true,\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        list.nodes.push(Node::of_entry(dir, &entry));
        assert_eq!(
            event("get", &list, None),
            "{\"action\":\"get\",\"node\":{\"key\":\"/discovery/T\",\"dir\":true,\"nodes\":[{\"key\":\"/discovery/T/5fb6\",\"value\":\"n1=http://127.0.0.1:24011\",\"modifiedIndex\":5,\"createdIndex\":5}],\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        let gone = Node { key: "/discovery/T/5fb6".into(), modified: 11, created: 5, ..Node::default() };
        assert_eq!(
            event("delete", &gone, Some(&Node::of_entry(dir, &entry))),
            "{\"action\":\"delete\",\"node\":{\"key\":\"/discovery/T/5fb6\",\"modifiedIndex\":11,\"createdIndex\":5},\"prevNode\":{\"key\":\"/discovery/T/5fb6\",\"value\":\"n1=http://127.0.0.1:24011\",\"modifiedIndex\":5,\"createdIndex\":5}}\n"
        );
        assert_eq!(
            Refusal::exists("/discovery/T/5fb6").json(29),
            "{\"errorCode\":105,\"message\":\"Key already exists\",\"cause\":\"/discovery/T/5fb6\",\"index\":29}\n"
        );
        assert_eq!(text("x&y<z>\"é\u{2028}"), "\"x\\u0026y\\u003cz\\u003e\\\"é\\u2028\"");
    }
}
