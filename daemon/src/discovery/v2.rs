//! The v2 discovery protocol: which HTTP request a question is, and what an HTTP answer says. Pure; the table of strange answers below is
//! the part of this protocol that needs most care, because every failure used to look alike.

use serde::Deserialize;

use super::{
    Registering,
    register::{Answer, Entry, Listed, Question, shortened},
};

/// The part of an HTTP request that a question decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub put: bool,
    /// Behind the token's path, with the query.
    pub path: String,
    /// Form fields.
    pub body: String,
}

/// The part of an HTTP answer that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// `X-Etcd-Index`.
    pub index: Option<u64>,
    pub body: Vec<u8>,
}

const NOT_FOUND: i64 = 100;
const NOT_A_DIRECTORY: i64 = 104;
const EXISTS: i64 = 105;
const CLEARED: i64 = 401;

#[derive(Deserialize)]
struct Event {
    node: Node,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    dir: bool,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    created_index: u64,
    #[serde(default)]
    modified_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    error_code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
}

pub fn ask(question: &Question, own: &Registering) -> Ask {
    let get = |path: String| Ask { put: false, path, body: String::new() };
    match question {
        Question::Size => get("/_config/size?quorum=false&recursive=false&sorted=false".into()),
        Question::List => get("?quorum=false&recursive=false&sorted=false".into()),
        Question::Register => Ask {
            put: true,
            path: format!("/{}?prevExist=false", own.member),
            body: url::form_urlencoded::Serializer::new(String::new())
                .append_pair("value", &own.value)
                .finish(),
        },
        Question::OwnEntry => get(format!("/{}?quorum=true&recursive=false&sorted=false", own.member)),
        Question::Wait { after, .. } => {
            get(format!("?recursive=true&wait=true&waitIndex={}", after.saturating_add(1)))
        }
    }
}

/// What `reply` says to `question`.
pub fn read(question: &Question, reply: &Reply) -> Answer {
    let text = String::from_utf8_lossy(&reply.body);
    let text = text.trim();
    let shown = || format!("{}: {}", reply.status, shortened(text));
    // A proxy, a service without a leader, one that is asked too much: they come back.
    if reply.status >= 500 || matches!(reply.status, 408 | 425 | 429) {
        return Answer::Lost(format!("it answers {}", shown()));
    }
    let waiting = matches!(question, Question::Wait { .. });
    if text.is_empty() {
        return match reply.status {
            200 if waiting => Answer::Quiet,
            status => Answer::NotDiscovery(format!("{status} with an empty body")),
        };
    }
    if let Ok(failure) = serde_json::from_str::<Failure>(text) {
        return refused(question, &failure);
    }
    match (reply.status, serde_json::from_str::<Event>(text)) {
        (200 | 201, Ok(event)) => told(question, event.node, reply.index),
        // The public service says so of every key that is not there.
        (400, _) if text.contains("unable to GET token") => Answer::NoToken(shown()),
        _ => Answer::NotDiscovery(shown()),
    }
}

fn refused(question: &Question, failure: &Failure) -> Answer {
    let Failure { error_code, message, cause } = failure;
    let shown = format!("{error_code}: {message} ({cause})");
    match (error_code, question) {
        // The token is there, its size is not.
        (&NOT_FOUND, Question::Size) if cause.ends_with("/_config") || cause.ends_with("/_config/size") => {
            Answer::Size(None)
        }
        (&NOT_FOUND, Question::OwnEntry) => Answer::OwnEntry(None),
        (&NOT_FOUND, Question::Wait { .. }) | (&CLEARED, _) => Answer::Forgotten,
        (&NOT_FOUND | &NOT_A_DIRECTORY, _) => Answer::NoToken(shown),
        (&EXISTS, Question::Register) => Answer::Taken(None),
        _ => Answer::Rejected(shown),
    }
}

fn told(question: &Question, node: Node, index: Option<u64>) -> Answer {
    match question {
        Question::Size if node.dir => Answer::Size(None),
        Question::Size => Answer::Size(Some(node.value)),
        Question::List if !node.dir => Answer::NoToken(format!("{} is a key, not a token", node.key)),
        Question::List => {
            // Without the header, what was listed says how far the list goes: later registrations have later indexes.
            let newest =
                node.nodes.iter().map(|child| child.modified_index).max().unwrap_or(node.modified_index);
            let entries = node.nodes.into_iter().filter_map(|child| {
                let key = child.key.rsplit('/').next().unwrap_or_default().to_owned();
                let counts = !child.dir && !key.starts_with('_');
                counts.then_some(Entry { key, value: child.value, created: child.created_index })
            });
            Answer::Listed(Listed { entries: entries.collect(), at: index.unwrap_or(newest) })
        }
        Question::Register => Answer::Registered,
        Question::OwnEntry => Answer::OwnEntry(Some(node.value)),
        Question::Wait { .. } => Answer::Event,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use types::MemberId;

    use super::*;

    const WAIT: Question = Question::Wait { after: 5, at_most: Duration::from_secs(1) };

    fn reply(status: u16, index: Option<u64>, body: &str) -> Reply {
        Reply { status, index, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn questions_are_etcds_requests() {
        let own = Registering {
            token: "t".into(),
            token_sha256: String::new(),
            member: MemberId(0x5fb6535ad6cff2a),
            value: "n1=http://127.0.0.1:24011".into(),
        };
        assert_eq!(
            ask(&Question::Size, &own).path,
            "/_config/size?quorum=false&recursive=false&sorted=false"
        );
        assert_eq!(ask(&WAIT, &own).path, "?recursive=true&wait=true&waitIndex=6");
        let put = ask(&Question::Register, &own);
        assert_eq!((put.put, put.path.as_str()), (true, "/5fb6535ad6cff2a?prevExist=false"));
        assert_eq!(put.body, "value=n1%3Dhttp%3A%2F%2F127.0.0.1%3A24011");
    }

    #[test]
    fn every_answer_has_one_meaning() {
        let missing = |cause: &str| {
            format!("{{\"errorCode\":100,\"message\":\"Key not found\",\"cause\":\"{cause}\",\"index\":3}}\n")
        };
        let html = "<html>welcome</html>";
        let size = r#"{"action":"get","node":{"key":"/d/T/_config/size","value":"3","modifiedIndex":4,"createdIndex":4}}"#;
        let exists = r#"{"errorCode":105,"message":"Key already exists","cause":"/d/T/5fb6","index":29}"#;
        let cleared = r#"{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"x","index":2900}"#;
        let denied = r#"{"errorCode":110,"message":"The request requires user authentication","cause":"Insufficient credentials","index":0}"#;
        let invalid = r#"{"errorCode":210,"message":"Invalid","cause":"n1 is registered already","index":0}"#;
        let forbidden = Answer::Rejected(
            "110: The request requires user authentication (Insufficient credentials)".into(),
        );
        let lost = |answer: &Answer| matches!(answer, Answer::Lost(_));
        let other = |answer: &Answer| matches!(answer, Answer::NotDiscovery(_));
        let unknown = |answer: &Answer| matches!(answer, Answer::NoToken(_));
        assert_eq!(read(&Question::Size, &reply(200, Some(9), size)), Answer::Size(Some("3".into())));
        assert_eq!(read(&Question::Size, &reply(404, Some(9), &missing("/d/T/_config"))), Answer::Size(None));
        assert_eq!(
            read(&Question::Size, &reply(404, Some(9), &missing("/d/T/_config/size"))),
            Answer::Size(None)
        );
        assert!(unknown(&read(&Question::Size, &reply(404, Some(9), &missing("/d")))));
        assert!(unknown(&read(&Question::List, &reply(404, Some(9), &missing("/d/T")))));
        assert!(unknown(&read(&Question::List, &reply(200, Some(9), size))), "a key is no token");
        assert!(unknown(&read(&Question::Size, &reply(400, None, "unable to GET token\n"))));
        assert_eq!(read(&Question::Register, &reply(412, Some(9), exists)), Answer::Taken(None));
        assert_eq!(read(&Question::Register, &reply(201, Some(9), size)), Answer::Registered);
        assert_eq!(
            read(&Question::Register, &reply(200, Some(9), size)),
            Answer::Registered,
            "the public service's 200"
        );
        assert!(
            matches!(read(&Question::Register, &reply(400, None, invalid)), Answer::Rejected(why) if why.contains("n1 is registered already"))
        );
        assert_eq!(read(&Question::Register, &reply(401, None, denied)), forbidden);
        assert!(lost(&read(&Question::Register, &reply(503, None, "no leader"))));
        assert_eq!(
            read(&Question::OwnEntry, &reply(404, Some(9), &missing("/d/T/5fb6"))),
            Answer::OwnEntry(None)
        );
        assert_eq!(read(&WAIT, &reply(200, Some(9), size)), Answer::Event);
        assert_eq!(read(&WAIT, &reply(200, Some(9), "")), Answer::Quiet);
        assert_eq!(read(&WAIT, &reply(400, Some(9), cleared)), Answer::Forgotten);
        assert_eq!(read(&WAIT, &reply(404, Some(9), &missing("/d/T"))), Answer::Forgotten, "the list tells");
        for question in [Question::Size, Question::List, Question::Register, Question::OwnEntry, WAIT] {
            assert!(other(&read(&question, &reply(200, None, html))), "{question:?}");
            assert!(other(&read(&question, &reply(404, None, "404 page not found\n"))), "{question:?}");
            assert!(other(&read(&question, &reply(200, None, "{\"a\":1}"))), "{question:?}");
            assert!(lost(&read(&question, &reply(502, None, html))), "{question:?}");
            assert!(lost(&read(
                &question,
                &reply(500, None, "{\"errorCode\":300,\"message\":\"Raft Internal Error\"}")
            )));
            assert!(lost(&read(&question, &reply(429, None, "slow down"))), "{question:?}");
            if question != WAIT {
                assert!(other(&read(&question, &reply(200, None, ""))), "{question:?}");
            }
        }
    }

    #[test]
    fn a_list_leaves_out_what_is_hidden_and_knows_how_far_it_goes() {
        let body = r#"{"action":"get","node":{"key":"/d/T","dir":true,"nodes":[
            {"key":"/d/T/_config","dir":true,"modifiedIndex":4,"createdIndex":4},
            {"key":"/d/T/b","value":"n2=http://b:1","modifiedIndex":8,"createdIndex":8},
            {"key":"/d/T/a","value":"n1=http://a:1","modifiedIndex":6,"createdIndex":6}],"modifiedIndex":4,"createdIndex":4}}"#;
        let Answer::Listed(listed) = read(&Question::List, &reply(200, Some(20), body)) else { panic!() };
        let keys: Vec<&str> = listed.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!((keys, listed.at), (vec!["b", "a"], 20));
        let Answer::Listed(listed) = read(&Question::List, &reply(200, None, body)) else { panic!() };
        assert_eq!(listed.at, 8, "without the header");
        let empty = r#"{"action":"get","node":{"key":"/d/T","dir":true,"modifiedIndex":4,"createdIndex":4}}"#;
        let Answer::Listed(listed) = read(&Question::List, &reply(200, None, empty)) else { panic!() };
        assert_eq!((listed.entries.len(), listed.at), (0, 4));
    }
}
