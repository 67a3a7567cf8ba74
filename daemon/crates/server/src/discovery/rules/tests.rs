//! Every decision about a token, as tables.

use super::*;

const DIR: &str = "/discovery/T";

fn token() -> Token {
    Token::new("T").unwrap()
}

fn entry(id: &str, name: &str, index: i64) -> Entry {
    Entry { id: id.into(), value: format!("{name}=http://{name}:2380"), index, modified: index + 40 }
}

fn view(size: &str, entries: &[Entry]) -> View {
    let size = Size { text: size.into(), created: 4, modified: 4, lease: 77 };
    View { revision: 50, size: Some(size), entries: entries.to_vec() }
}

fn wish<'a>(token: &'a Token, value: &'a str, prev_exist: Option<bool>) -> Wish<'a> {
    Wish { token, dir: DIR, value, prev_exist, spelled: &[] }
}

/// Status and body, a write told at revision 51.
fn shown(decision: Result<Decision, Refusal>) -> (u16, String) {
    match decision {
        Ok(Decision::Done(status, body)) => (status.as_u16(), body),
        Ok(Decision::Write(_, told)) => {
            let (status, body) = told.at(51);
            (status.as_u16(), format!("written: {body}"))
        }
        Err(refusal) => (refusal.status.as_u16(), refusal.json(50)),
    }
}

fn put(view: &View, id: &str, value: &str, prev_exist: Option<bool>) -> (u16, String) {
    shown(wish(&token(), value, prev_exist).entry(view, id, true, false))
}

#[test]
fn a_registration_is_written_under_the_condition_that_nobody_else_came() {
    let token = token();
    let decision = wish(&token, "n2=http://n2:2380", Some(false))
        .entry(&view("3", &[entry("a1", "n1", 5)]), "a2", true, false)
        .unwrap();
    let Decision::Write(txn, told) = decision else { panic!("{decision:?}") };
    assert_eq!(txn.compare.len(), 2);
    assert_eq!(txn.compare[0].key, "/_etcd/registry/T/_config/size");
    assert_eq!(txn.compare[1].key, "/_etcd/registry/T/members/");
    assert_eq!(txn.compare[1].range_end, "/_etcd/registry/T/members0");
    let Some(pb::request_op::Request::RequestPut(put)) = &txn.success[0].request else { panic!("{txn:?}") };
    assert_eq!((&put.key[..], put.lease), (&b"/_etcd/registry/T/members/a2"[..], 77));
    assert!(txn.failure.is_empty());
    let (status, body) = told.at(51);
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(
        body,
        "{\"action\":\"create\",\"node\":{\"key\":\"/discovery/T/a2\",\"value\":\"n2=http://n2:2380\",\"modifiedIndex\":51,\"createdIndex\":51}}\n"
    );
}

#[test]
fn what_can_only_fail_later_is_refused_now_in_words() {
    let one = view("3", &[entry("a1", "n1", 5)]);
    for (value, cause) in [
        ("", "nothing is registered"),
        ("n2", "is not name=url"),
        ("=http://n2:2380", "has no name"),
        ("n2=n2:2380", "it has no scheme"),
        ("n2=ftp://n2:2380", "the scheme must be"),
        ("n2=http://n2", "it has no port"),
        ("n2=http://n2:http", "its port is no number"),
        ("n2=http://n2:99999", "its port is no number"),
        ("n2=http://n2:2380/", "it has a path"),
        ("n2=http://:2380", "its host is no name"),
        ("n2=http://n 2:2380", "its host is no name"),
        ("n2=http://n2:2380,n2=http://n2:2380", "is there twice"),
        ("n2=http://n2:2380,n3=http://n3:2380", "names two members"),
        (
            "n1=http://other:2380",
            "the name \\\"n1\\\" is registered already, by member a1 (n1=http://n1:2380)",
        ),
        (
            "n2=http://n2:1,n2=http://n1:2380",
            "the peer URL http://n1:2380 is registered already, by member a1",
        ),
    ] {
        for prev_exist in [Some(false), None] {
            let (status, body) = put(&one, "a2", value, prev_exist);
            assert!(status == 400 && body.contains(cause), "{value:?}: {status} {body}");
            assert!(body.starts_with("{\"errorCode\":210,"), "{body}");
        }
    }
    let long = format!("n2=http://{}:2380", "x".repeat(VALUE_BYTES_MAX));
    assert!(put(&one, "a2", &long, None).1.contains("at most"));
    for value in [
        "n2=http://n2:2380",
        "n2=https://[::1]:2380,n2=http://10.0.0.1:1",
        "n2=http://u:p@n2:1?x=1",
        "n2=unix://n2:1",
    ] {
        assert_eq!(put(&one, "a2", value, Some(false)).0, 201, "{value}");
    }
    for id in ["", "0", "0a", "A1", "xyz", "11112222333344445", "a1.b"] {
        let (status, body) = put(&one, id, "n2=http://n2:2380", None);
        assert!(status == 400 && body.contains("is no member id"), "{id:?}: {body}");
    }
    for size in ["0", "abc", ""] {
        assert!(put(&view(size, &[]), "a2", "n2=http://n2:2380", None).1.contains("which is no size"));
    }
}

#[test]
fn the_same_registration_again_is_acknowledged_until_the_token_is_complete() {
    let token = token();
    let value = "n1=http://n1:2380";
    let again =
        |view: &View, resume, tried| shown(wish(&token, value, Some(false)).entry(view, "a1", resume, tried));
    let created = "{\"action\":\"create\",\"node\":{\"key\":\"/discovery/T/a1\",\"value\":\"n1=http://n1:2380\",\"modifiedIndex\":5,\"createdIndex\":5}}\n";
    let exists =
        "{\"errorCode\":105,\"message\":\"Key already exists\",\"cause\":\"/discovery/T/a1\",\"index\":50}\n";
    let open = view("3", &[entry("a1", "n1", 5)]);
    let complete = view("1", &[entry("a1", "n1", 5)]);
    assert_eq!(again(&open, true, false), (201, created.into()), "with its first indexes");
    assert_eq!(again(&open, false, false), (412, exists.into()));
    assert_eq!(again(&complete, true, false), (412, exists.into()), "it may have founded its cluster");
    assert_eq!(again(&complete, true, true), (201, created.into()), "this request made it");
    assert_eq!(put(&open, "a1", "n1=http://other:1", Some(false)), (412, exists.into()));
    let (status, body) = put(&open, "a1", "n1=http://other:1", None);
    assert!(status == 403 && body.contains("registered with another value"), "{body}");
    for prev_exist in [None, Some(true)] {
        let (status, body) = put(&complete, "a1", value, prev_exist);
        assert!(status == 200 && body.contains("\"prevNode\""), "{body}");
    }
    assert_eq!(put(&open, "a2", "n2=http://n2:1", Some(true)).0, 404);
}

#[test]
fn a_complete_token_takes_nobody_else() {
    let complete = view("2", &[entry("a1", "n1", 5), entry("a2", "n2", 6)]);
    let (status, body) = put(&complete, "a3", "n3=http://n3:2380", Some(false));
    assert_eq!(status, 403);
    assert!(body.contains("the token is complete: 2 of 2 members are registered (n1, n2)"), "{body}");
    // Written past the rules, by v3 clients that do not ask.
    let overfull = view("1", &[entry("a1", "n1", 5), entry("a2", "n2", 6)]);
    assert_eq!(put(&overfull, "a3", "n3=http://n3:2380", Some(false)).0, 403);
    let none = View { revision: 50, ..View::default() };
    assert_eq!(put(&none, "a1", "n1=http://n1:1", Some(false)).1, Refusal::not_found(DIR).json(50));
}

#[test]
fn sizes_change_only_while_nobody_counts_on_them() {
    let token = token();
    let resize = |view: &View, value: &str, prev_exist| {
        shown(wish(&token, value, prev_exist).size(view, view.size.as_ref().unwrap()))
    };
    let key = "\"key\":\"/discovery/T/_config/size\"";
    let empty = view("3", &[]);
    assert_eq!(
        resize(&empty, "5", None),
        (
            200,
            format!(
                "written: {{\"action\":\"set\",\"node\":{{{key},\"value\":\"5\",\"modifiedIndex\":51,\"createdIndex\":51}},\"prevNode\":{{{key},\"value\":\"3\",\"modifiedIndex\":4,\"createdIndex\":4}}}}\n"
            )
        )
    );
    assert!(resize(&empty, "5", Some(true)).1.contains("\"modifiedIndex\":51,\"createdIndex\":4}"));
    assert_eq!(resize(&empty, "5", Some(false)).0, 412);
    for size in ["0", "-1", " 1", "abc", "", "32"] {
        let (status, body) = resize(&empty, size, None);
        assert!(status == 400 && body.contains("a whole number from 1 to 31"), "{size:?}: {body}");
        assert!(wish(&token, size, None).token(1).is_err(), "{size:?}");
    }
    let begun = view("3", &[entry("a1", "n1", 5)]);
    assert_eq!(resize(&begun, "3", None).0, 200);
    assert_eq!(resize(&begun, "5", None).0, 403);

    let (txn, told) = wish(&token, "3", None).token(9).unwrap();
    assert_eq!((txn.compare.len(), txn.success.len()), (1, 2));
    assert_eq!(
        told.at(4).1,
        format!(
            "{{\"action\":\"set\",\"node\":{{{key},\"value\":\"3\",\"modifiedIndex\":4,\"createdIndex\":4}}}}\n"
        )
    );
    assert_eq!(wish(&token, "3", Some(true)).token(9).unwrap_err().status, StatusCode::NOT_FOUND);
}

#[test]
fn nothing_is_deleted_without_force() {
    let token = token();
    let one = view("3", &[entry("a1", "n1", 5)]);
    assert_eq!(shown(take_back(&token, DIR, &one, "a1", false)).0, 403);
    let (status, body) = shown(take_back(&token, DIR, &one, "a1", true));
    assert!(status == 200 && body.contains("\"modifiedIndex\":51,\"createdIndex\":5}"), "{body}");
    assert_eq!(shown(take_back(&token, DIR, &one, "a2", true)).0, 404);
    assert_eq!(shown(end(&token, DIR, &one, false, true)).1, Refusal::not_a_file(DIR).json(50));
    assert_eq!(shown(end(&token, DIR, &one, true, false)).0, 403);
    let (status, body) = shown(end(&token, DIR, &one, true, true));
    assert_eq!(status, 200);
    assert_eq!(
        body,
        "written: {\"action\":\"delete\",\"node\":{\"key\":\"/discovery/T\",\"dir\":true,\"modifiedIndex\":51,\"createdIndex\":4},\"prevNode\":{\"key\":\"/discovery/T\",\"dir\":true,\"modifiedIndex\":4,\"createdIndex\":4}}\n"
    );
}

#[test]
fn members_that_were_given_different_urls_are_told_before_they_found_two_clusters() {
    let token = token();
    let id = |name: &str, text: &str| {
        format!("{:x}", membership::member_id(&[format!("http://{name}:2380")], text, None).0)
    };
    let (here, there) = ("http://cairn:2379/T".to_owned(), "http://10.0.0.1:2379/T".to_owned());
    let second = |first: &str, spelled: &[String]| {
        let view = view("3", &[entry(&id("n1", first), "n1", 5)]);
        let wish =
            Wish { token: &token, dir: DIR, value: "n2=http://n2:2380", prev_exist: Some(false), spelled };
        shown(wish.entry(&view, &id("n2", &here), true, false))
    };
    let known = [there.clone(), here.clone()];
    assert_eq!(second(&here, &known).0, 201);
    let (status, body) = second(&there, &known);
    assert!(status == 400 && body.contains("with another spelling of the discovery URL"), "{body}");
    let (status, body) = second("T", &known);
    assert!(status == 400 && body.contains("registered through v3 discovery"), "{body}");
    // Behind a proxy nobody can tell.
    assert_eq!(second(&there, &[]).0, 201);
    assert_eq!(second(&there, std::slice::from_ref(&there)).0, 201);
}
