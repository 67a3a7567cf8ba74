//! The driver of v2 discovery against a server that answers what the script says, strange things above all.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::support::{own_at, search, v2};
use crate::{
    discovery::{
        self,
        settings::{Patience, V2Settings, Way},
    },
    refusal::Id,
};

struct Request {
    method: String,
    target: String,
    headers: String,
    body: String,
}

type Script = dyn FnMut(&Request) -> Option<String> + Send;

/// One request a connection. None hangs up without an answer.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

fn serve(mut script: impl FnMut(&Request) -> Option<String> + Send + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    // Ends with the test's process: nothing tells it that no more connections come.
    thread::spawn(move || {
        let script: &mut Script = &mut script;
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let Some(request) = read(&mut stream) else { continue };
            log.lock().unwrap().push(format!("{} {}", request.method, request.target));
            if let Some(answer) = script(&request) {
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    });
    Server { url, asked }
}

fn read(stream: &mut std::net::TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                let mut words = head.split_whitespace();
                let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
                return Some(Request { method, target, headers: head.to_lowercase(), body: body.to_owned() });
            }
        }
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    ))
}

fn json(status: &str, index: u64, body: &str) -> Option<String> {
    answer(status, &format!("Content-Type: application/json\r\nX-Etcd-Index: {index}\r\n"), body)
}

fn size(value: &str) -> Option<String> {
    json(
        "200 OK",
        4,
        &format!(
            r#"{{"action":"get","node":{{"key":"/T/_config/size","value":"{value}","modifiedIndex":4,"createdIndex":4}}}}"#
        ),
    )
}

/// A list of entries in the order of their indexes.
fn listing(entries: &[(String, String)]) -> String {
    let nodes: Vec<String> = entries
        .iter()
        .zip(5..)
        .map(|((key, value), at)| {
            format!(r#"{{"key":"/T/{key}","value":"{value}","modifiedIndex":{at},"createdIndex":{at}}}"#)
        })
        .collect();
    format!(
        r#"{{"action":"get","node":{{"key":"/T","dir":true,"nodes":[{}],"modifiedIndex":4,"createdIndex":4}}}}"#,
        nodes.join(",")
    )
}

fn v2_of(url: &str) -> V2Settings {
    V2Settings { patience: Patience { service: Duration::from_secs(30), members: None }, ..v2(url) }
}

fn the_entry(url: &str, name: &str, peer: &str) -> (String, String) {
    let registering = discovery::registration(&Way::V2(v2(url)), &own_at(name, peer)).unwrap();
    (registering.member.to_string(), registering.value)
}

/// What `meddle` says to have a registration made and answered with an error.
const CARRIED_OUT: &str = "carried out";

/// A register for two: `n2` comes as soon as `n1` waits. Keeps what is put, and lets `meddle` answer in its place.
fn register(
    path: &'static str,
    mut meddle: impl FnMut(&Request, usize) -> Option<Option<String>> + Send + 'static,
) -> (Server, String) {
    let url: Arc<Mutex<String>> = Arc::default();
    let mine = url.clone();
    let (mut entries, mut count): (Vec<(String, String)>, usize) = (Vec::new(), 0);
    let server = serve(move |request| {
        count += 1;
        let meddled = meddle(request, count);
        let carried_out = meddled.as_ref().is_some_and(|answer| answer.as_deref() == Some(CARRIED_OUT));
        if let (Some(answer), false) = (meddled, carried_out) {
            return answer;
        }
        let (path_of, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        if path_of.ends_with("/_config/size") {
            return size("2");
        }
        if request.method == "PUT" {
            let value = url::form_urlencoded::parse(request.body.as_bytes()).next().unwrap().1.into_owned();
            let key = path_of.rsplit('/').next().unwrap().to_owned();
            if entries.iter().any(|(there, _)| *there == key) {
                return json(
                    "412 Precondition Failed",
                    9,
                    r#"{"errorCode":105,"message":"Key already exists","cause":"x","index":9}"#,
                );
            }
            entries.push((key.clone(), value));
            if carried_out {
                return answer("503 Service Unavailable", "", "no leader");
            }
            return json(
                "201 Created",
                5,
                &format!(
                    r#"{{"action":"create","node":{{"key":"/T/{key}","modifiedIndex":5,"createdIndex":5}}}}"#
                ),
            );
        }
        if query.contains("wait=true") {
            let url = mine.lock().unwrap().clone();
            entries.push(the_entry(&url, "n2", "http://127.0.0.1:2"));
            return json(
                "200 OK",
                5,
                r#"{"action":"create","node":{"key":"/T/x","modifiedIndex":6,"createdIndex":6}}"#,
            );
        }
        match entries.iter().find(|(key, _)| path_of.ends_with(&format!("/{key}"))) {
            Some((key, value)) => json(
                "200 OK",
                9,
                &format!(
                    r#"{{"action":"get","node":{{"key":"/T/{key}","value":"{value}","modifiedIndex":5,"createdIndex":5}}}}"#
                ),
            ),
            None => json("200 OK", 4 + entries.len() as u64, &listing(&entries)),
        }
    });
    let token = format!("{}{path}", server.url);
    *url.lock().unwrap() = token.clone();
    (server, token)
}

const BOTH: &str = "n1=http://127.0.0.1:1,n2=http://127.0.0.1:2";

fn n1() -> discovery::Own {
    own_at("n1", "http://127.0.0.1:1")
}

#[test]
fn a_plain_register_is_enough() {
    let (server, token) = register("/T", |_, _| None);
    let searched = search(&Way::V2(v2_of(&token)), &n1(), None);
    assert_eq!(searched.canonical(), BOTH);
    assert_eq!(searched.saved, discovery::registration(&Way::V2(v2_of(&token)), &n1()));
    let own = searched.saved.as_ref().unwrap().member;
    let asked = server.asked.lock().unwrap().clone();
    let list = "GET /T?quorum=false&recursive=false&sorted=false".to_owned();
    let expected = [
        "GET /T/_config/size?quorum=false&recursive=false&sorted=false".to_owned(),
        list.clone(),
        format!("PUT /T/{own}?prevExist=false"),
        list.clone(),
        "GET /T?recursive=true&wait=true&waitIndex=6".to_owned(),
        list,
    ];
    assert_eq!(asked, expected);
    for line in
        [format!("found self {own} in the cluster (n1)"), "found 1 peer(s), waiting for 1 more".into()]
    {
        assert!(searched.lines.contains(&line), "{:?}", searched.lines);
    }
}

/// A slash at the end of the token is part of the ids, and no part of the keys.
#[test]
fn a_token_with_a_final_slash_finds_the_same_keys() {
    let (server, token) = register("/v2/keys/T/", |_, _| None);
    assert_eq!(search(&Way::V2(v2_of(&token)), &n1(), None).canonical(), BOTH);
    assert!(server.asked.lock().unwrap()[0].starts_with("GET /v2/keys/T/_config/size?"));
}

#[test]
fn redirects_are_followed_with_method_and_body() {
    let (target, _) = register("/T", |_, _| None);
    let there = target.url.clone();
    let server = serve(move |request| {
        let headers = format!("Location: {there}{}\r\n", request.target);
        answer("307 Temporary Redirect", &headers, "")
    });
    // Ids are made from the token as given, so the entry of n2 must be too: it is the register's business to know.
    let searched = search(&Way::V2(v2_of(&format!("{}/T", server.url))), &n1(), None);
    let not_found = searched.refused();
    assert_eq!(
        not_found.refusal.id,
        Id::DiscoveryTokenSpelling,
        "n2 was made for the other text: {}",
        not_found.refusal.text()
    );
    assert!(not_found.seen);
    assert!(target.asked.lock().unwrap().iter().any(|line| line.starts_with("PUT ")));
    let mut at = 0;
    let endless = serve(move |_| {
        at += 1;
        answer("302 Found", &format!("Location: /{at}\r\n"), "")
    });
    let settings = V2Settings {
        patience: Patience { service: Duration::ZERO, members: None },
        ..v2(&format!("{}/T", endless.url))
    };
    let searched = search(&Way::V2(settings), &n1(), None);
    assert_eq!(searched.refused().refusal.id, Id::DiscoveryUnreachable);
    assert!(
        searched.refused().refusal.text().contains("more than 10 times"),
        "{}",
        searched.refused().refusal.text()
    );
}

/// A 5xx on the PUT used to kill the member, and the next start to call it a duplicate.
#[test]
fn a_put_that_was_carried_out_and_answered_with_an_error_is_resumed() {
    let mut lost = false;
    let (_server, token) = register("/T", move |request, _| {
        let now = request.method == "PUT" && !std::mem::replace(&mut lost, request.method == "PUT");
        now.then(|| Some(CARRIED_OUT.to_owned()))
    });
    let searched = search(&Way::V2(v2_of(&token)), &n1(), None);
    assert_eq!(searched.canonical(), BOTH);
    assert!(
        searched.lines.iter().any(|line| line.contains("registration is there already")),
        "{:?}",
        searched.lines
    );
    assert!(
        searched.lines.iter().any(|line| line.contains("503: no leader; trying again")),
        "{:?}",
        searched.lines
    );
}

#[test]
fn what_a_service_may_do_while_one_waits_ends_nothing() {
    let cleared = r#"{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"x","index":2900}"#;
    let mut waits = 0;
    let (_server, token) = register("/T", move |request, _| {
        if !request.target.contains("wait=true") {
            return None;
        }
        waits += 1;
        match waits {
            1 => Some(json("400 Bad Request", 2900, cleared)),
            2 => Some(json("200 OK", 2900, "")),
            3 => Some(None),
            _ => None,
        }
    });
    assert_eq!(search(&Way::V2(v2_of(&token)), &n1(), None).canonical(), BOTH);
}

/// Without the header etcd's client waits for "from now on" and can miss a member.
#[test]
fn a_missing_index_is_made_good() {
    let mut entries = Vec::new();
    let url: Arc<Mutex<String>> = Arc::default();
    let mine = url.clone();
    let server = serve(move |request| {
        let token = mine.lock().unwrap().clone();
        if request.target.contains("_config") {
            return size("2");
        }
        if request.method == "PUT" {
            entries.push(the_entry(&token, "n1", "http://127.0.0.1:1"));
            return answer("201 Created", "", r#"{"node":{"key":"/T/x"}}"#);
        }
        if request.target.contains("wait=true") {
            assert!(request.target.ends_with("waitIndex=6"), "{}", request.target);
            entries.push(the_entry(&token, "n2", "http://127.0.0.1:2"));
            return answer("200 OK", "", r#"{"node":{"key":"/T/y"}}"#);
        }
        answer("200 OK", "", &listing(&entries))
    });
    let token = format!("{}/T", server.url);
    *url.lock().unwrap() = token.clone();
    assert_eq!(search(&Way::V2(v2_of(&token)), &n1(), None).canonical(), BOTH);
}

#[test]
fn every_strange_answer_has_its_own_name() {
    let missing = |cause: &str| {
        format!("{{\"errorCode\":100,\"message\":\"Key not found\",\"cause\":\"{cause}\",\"index\":3}}")
    };
    for (answer, id, words) in [
        (
            answer("200 OK", "Content-Type: text/html\r\n", "<html>It works!</html>"),
            Id::DiscoveryNotEtcd,
            "It works!",
        ),
        (answer("404 Not Found", "", "404 page not found"), Id::DiscoveryNotEtcd, "404 page not found"),
        (answer("200 OK", "", ""), Id::DiscoveryNotEtcd, "empty body"),
        (json("404 Not Found", 3, &missing("/T")), Id::DiscoveryTokenUnknown, "Key not found (/T)"),
        (json("404 Not Found", 3, &missing("/T/_config")), Id::DiscoverySizeBad, "is not there"),
        (
            answer("400 Bad Request", "", "unable to GET token"),
            Id::DiscoveryTokenUnknown,
            "unable to GET token",
        ),
        (size("0"), Id::DiscoverySizeBad, "at least one"),
        (size("abc"), Id::DiscoverySizeBad, "abc"),
        (
            json(
                "401 Unauthorized",
                0,
                r#"{"errorCode":110,"message":"The request requires user authentication","cause":"x"}"#,
            ),
            Id::DiscoveryRejected,
            "requires user authentication",
        ),
        (answer("500 Internal Server Error", "", "oops"), Id::DiscoveryUnreachable, "500: oops"),
        (None, Id::DiscoveryUnreachable, "no HTTP answer"),
        (Some("SSH-2.0-OpenSSH_9.2\r\n".into()), Id::DiscoveryUnreachable, "no HTTP answer"),
    ] {
        let shown = format!("{answer:?}");
        let server = serve(move |_| answer.clone());
        let settings = V2Settings {
            patience: Patience { service: Duration::ZERO, members: None },
            ..v2(&format!("{}/T", server.url))
        };
        let searched = search(&Way::V2(settings), &n1(), None);
        let not_found = searched.refused();
        assert_eq!(not_found.refusal.id, id, "{shown}: {}", not_found.refusal.text());
        assert!(not_found.refusal.text().contains(words), "{words:?} is not in {}", not_found.refusal.text());
        assert!(!not_found.seen && searched.saved.is_none(), "nothing was registered");
    }
}

#[test]
fn a_rejected_registration_is_told_with_the_services_words() {
    let (_server, token) = register("/T", |request, _| {
        let cause = r#"{"errorCode":210,"message":"Invalid registration","cause":"the name n1 is registered already","index":9}"#;
        (request.method == "PUT").then(|| json("400 Bad Request", 9, cause))
    });
    let searched = search(&Way::V2(v2_of(&token)), &n1(), None);
    assert_eq!(searched.refused().refusal.id, Id::DiscoveryRejected);
    assert!(searched.refused().refusal.text().contains("the name n1 is registered already"));
    assert!(!searched.refused().seen);
}

#[test]
fn a_port_where_nobody_listens_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/T", listener.local_addr().unwrap());
    drop(listener);
    let settings = V2Settings { patience: Patience { service: Duration::ZERO, members: None }, ..v2(&url) };
    let searched = search(&Way::V2(settings), &n1(), None);
    assert_eq!(searched.refused().refusal.id, Id::DiscoveryUnreachable);
    assert!(searched.refused().refusal.text().contains("refused"), "{}", searched.refused().refusal.text());
}

/// The proxy is asked for whole URLs; passwords go where they belong.
#[test]
fn a_proxy_carries_the_questions() {
    let (target, token) = register("/T", |_, _| None);
    let (place, headers) = (target.url.clone(), Arc::new(Mutex::new(String::new())));
    let heard = headers.clone();
    let proxy = serve(move |request| {
        assert!(request.target.starts_with(&place), "{}", request.target);
        *heard.lock().unwrap() = request.headers.clone();
        let mut stream = std::net::TcpStream::connect(place.trim_start_matches("http://")).unwrap();
        let path = &request.target[place.len()..];
        let length = request.body.len();
        let text = format!(
            "{} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{}",
            request.method, request.body
        );
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Some(answer)
    });
    let through = ::url::Url::parse(&proxy.url.replace("http://", "http://u:p%2B@")).unwrap();
    let settings = V2Settings { proxy: Some(through), ..v2_of(&token) };
    assert_eq!(search(&Way::V2(settings), &n1(), None).canonical(), BOTH);
    assert!(!proxy.asked.lock().unwrap().is_empty());
    assert!(
        headers.lock().unwrap().contains("proxy-authorization: basic dtpwkw=="),
        "{}",
        headers.lock().unwrap()
    );
}

#[test]
fn a_password_in_the_token_is_sent_to_its_host_and_shown_to_nobody() {
    let headers = Arc::new(Mutex::new(String::new()));
    let heard = headers.clone();
    let server = serve(move |request| {
        *heard.lock().unwrap() = request.headers.clone();
        answer("404 Not Found", "", "nothing")
    });
    let url = server.url.replace("http://", "http://user:secret@");
    let searched = search(&Way::V2(v2_of(&format!("{url}/T"))), &n1(), None);
    assert!(
        headers.lock().unwrap().contains("authorization: basic dxnlcjpzzwnyzxq="),
        "{}",
        headers.lock().unwrap()
    );
    let told = format!("{}{:?}", searched.refused().refusal.text(), searched.lines);
    assert!(!told.contains("secret"), "{told}");
}
