//! discovery new and show: tokens by which the members of a new cluster find each other. A token is a size key with a lease, in the layout
//! of etcd's v3 discovery, written over the ordinary KV API: cairn and etcd both keep it. Members of 3.4 and 3.5 need the discovery service
//! of cairn as well, and `new` looks whether it is there.
//!
//! Not here: registering, which members do.

use super::show as print;
use crate::cli;
use crate::client::{Client, LEASE_GRANT, LEASE_TIME_TO_LIVE, RANGE, TXN};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, json, lease_id, tell};
use crate::settings::{Format, Settings};
use crate::units::{format_duration, parse_duration};
use crate::wire::endpoint::{Address, Endpoint};
use api::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, compare, request_op,
};
use clap::ArgMatches;
use std::fmt::Write as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where etcd's v3 clients look.
const REGISTRY: &str = "/_etcd/registry/";
/// As the service allows: etcd advises against more than seven members, and anything far beyond is a mistake.
const SIZE_MAX: i64 = 31;
/// As the service gives its tokens, and as the public one did.
const LIFETIME: Duration = Duration::from_secs(168 * 3600);
/// A token that ends before anybody can be started is a mistake.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// Registrations that are shown; only clients that write without asking make more than the size.
const SHOWN_MAX: i64 = 256;
/// For the question whether an endpoint serves discovery.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// What is read of its answer.
const LOOK_BYTES_MAX: u64 = 16 * 1024;

pub async fn new(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("discovery new takes no arguments; the size is --size"));
    }
    let size = cli::integer(matches, "size");
    if !(1..=SIZE_MAX).contains(&size) {
        return Err(Failure::arguments(format!(
            "how many members are to find each other? --size is a number from 1 to {SIZE_MAX}"
        )));
    }
    let lifetime = match cli::text(matches, "lifetime") {
        "" => LIFETIME,
        text => parse_duration(text).map_err(|why| Failure::arguments(format!("bad --lifetime: {why}")))?,
    };
    if lifetime < LIFETIME_MIN {
        return Err(Failure::arguments("bad --lifetime: a token lives for a minute at least"));
    }
    refuse_format(settings)?;
    let mut client = Client::new(settings, false)?;
    let token = random()?;
    let ttl = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    let lease: LeaseGrantResponse = client.call(&LEASE_GRANT, &LeaseGrantRequest { ttl, id: 0 }).await?;
    let key = format!("{REGISTRY}{token}/_config/size");
    let put = PutRequest {
        key: key.clone().into(),
        value: size.to_string().into(),
        lease: lease.id,
        ..Default::default()
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            key: key.into(),
            result: compare::CompareResult::Equal as i32,
            target: compare::CompareTarget::Create as i32,
            target_union: Some(compare::TargetUnion::CreateRevision(0)),
            ..Default::default()
        }],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
        failure: Vec::new(),
    };
    let made: TxnResponse = client.call(&TXN, &txn).await?;
    if !made.succeeded {
        return Err(Failure::new(Exit::Error, "somebody has this token already; try again"));
    }
    if size % 2 == 0 {
        tell(format_args!(
            "warning: {size} members tolerate no more failures than {}; an odd size is better",
            size - 1
        ));
    }
    let urls: Vec<String> = settings.endpoints.iter().filter_map(url).collect();
    let mut served = Vec::new();
    for (endpoint, url) in settings.endpoints.iter().filter_map(|endpoint| Some((endpoint, url(endpoint)?))) {
        match serves(endpoint, &token).await {
            Some(false) => tell(format_args!(
                "warning: {url} does not serve v2 discovery, which members of 3.4 and 3.5 need: start it with --discovery-service"
            )),
            answer => served.extend(answer.map(|_| url)),
        }
    }
    // One of those that are known to serve, or else the first: every member must be given the same text.
    let v2 = served.first().or(urls.first()).map(|url| format!("{url}/{token}"));
    let new = New { token, size, lifetime, lease: lease.id, v2, v3: urls };
    let text = if settings.format == Format::Json { new.as_json() } else { new.as_text() };
    print(text.as_bytes())
}

struct New {
    token: String,
    size: i64,
    lifetime: Duration,
    lease: i64,
    v2: Option<String>,
    v3: Vec<String>,
}

impl New {
    fn as_text(&self) -> String {
        let mut text = format!(
            "token {} for {} members, which ends in {}\n",
            self.token,
            self.size,
            format_duration(self.lifetime)
        );
        if let Some(url) = &self.v2 {
            let _ = writeln!(text, "v2: --discovery={url}");
        }
        let endpoints = self.v3.join(",");
        let _ = writeln!(text, "v3: --discovery-token={} --discovery-endpoints={endpoints}", self.token);
        text
    }

    fn as_json(&self) -> String {
        let mut out = String::new();
        json::object(&mut out, |o| {
            o.text("token", &self.token);
            o.raw("size", self.size);
            o.raw("lifetime_seconds", self.lifetime.as_secs());
            o.text("lease", &lease_id(self.lease));
            o.optional_text("discovery", self.v2.as_deref().unwrap_or_default());
            o.texts("discovery_endpoints", &self.v3);
        });
        out.push('\n');
        out
    }
}

/// As members are to be given it. None: it is reached in a way that members cannot take.
fn url(endpoint: &Endpoint) -> Option<String> {
    let Address::Tcp(place) = &endpoint.address else { return None };
    let scheme = if endpoint.secure { "https" } else { "http" };
    Some(format!("{scheme}://{place}"))
}

/// Whether v2 clients find the token there. None: that cannot be asked, or nobody answers.
async fn serves(endpoint: &Endpoint, token: &str) -> Option<bool> {
    let Address::Tcp(place) = &endpoint.address else { return None };
    if endpoint.secure {
        return None;
    }
    let look = async {
        let mut stream = TcpStream::connect(place).await.ok()?;
        let head =
            format!("GET /{token}/_config/size HTTP/1.1\r\nhost: {place}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(LOOK_BYTES_MAX).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1)?;
        // It may be a moment behind, or without a leader: then it says so in the words of a service.
        Some(status == "200" || answer.contains("\"errorCode\":"))
    };
    tokio::time::timeout(LOOK_MAX, look).await.ok().flatten()
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Error, format!("random bytes: {error}")))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn refuse_format(settings: &Settings) -> Result<()> {
    if matches!(settings.format, Format::Simple | Format::Json) {
        return Ok(());
    }
    Printer::new(settings).refuse_all()
}

pub async fn show(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let token = match cli::arguments(matches).as_slice() {
        [token] => String::from_utf8_lossy(token).into_owned(),
        _ => return Err(Failure::arguments("discovery show needs one argument: the token, or its URL")),
    };
    // What members are given is as good.
    let token = if token.contains("://") {
        token.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    } else {
        token
    };
    if token.is_empty() {
        return Err(Failure::arguments("the token is empty"));
    }
    refuse_format(settings)?;
    let mut client = Client::new(settings, true)?;
    let all = RangeRequest {
        key: format!("{REGISTRY}{token}/").into(),
        range_end: format!("{REGISTRY}{token}0").into(),
        limit: SHOWN_MAX,
        ..Default::default()
    };
    let answer: RangeResponse = client.call(&RANGE, &all).await?;
    let Some(mut shown) = Shown::of(&token, &answer) else { return Err(unknown(&token)) };
    if shown.lease != 0 {
        let request = LeaseTimeToLiveRequest { id: shown.lease, keys: false };
        let left: LeaseTimeToLiveResponse = client.call(&LEASE_TIME_TO_LIVE, &request).await?;
        let seconds = |seconds: i64| u64::try_from(seconds).ok().map(Duration::from_secs);
        shown.left = seconds(left.ttl);
        shown.age = seconds(left.granted_ttl.saturating_sub(left.ttl)).filter(|_| left.ttl >= 0);
    }
    let text = if settings.format == Format::Json { shown.as_json() } else { shown.as_text() };
    print(text.as_bytes())
}

fn unknown(token: &str) -> Failure {
    Failure::new(Exit::Error, format!("[TOKEN_UNKNOWN] there is no token {token:?} here")).with(Details {
        cause: "it was mistyped, has ended, or was made at another service".into(),
        evidence: vec![format!("no key {REGISTRY}{token}/_config/size")],
        remedy: vec!["make a new one and give it to every member: cairnctl discovery new --size=3".into()],
        never: String::new(),
    })
}

/// A token and who came.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    token: String,
    /// As written.
    size: String,
    lease: i64,
    age: Option<Duration>,
    left: Option<Duration>,
    /// In order of registration: id and value.
    members: Vec<(String, String)>,
}

impl Shown {
    fn of(token: &str, answer: &RangeResponse) -> Option<Shown> {
        let size_key = format!("{REGISTRY}{token}/_config/size");
        let prefix = format!("{REGISTRY}{token}/members/");
        let size = answer.kvs.iter().find(|kv| kv.key == size_key.as_bytes())?;
        let mut entries: Vec<_> =
            answer.kvs.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes())).collect();
        entries.sort_by_key(|kv| kv.create_revision);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Shown {
            token: token.to_owned(),
            size: text(&size.value),
            lease: size.lease,
            age: None,
            left: None,
            members: entries.iter().map(|kv| (text(&kv.key[prefix.len()..]), text(&kv.value))).collect(),
        })
    }

    fn wanted(&self) -> usize {
        self.size.parse().unwrap_or(0)
    }

    /// Name and URLs.
    fn parts(value: &str) -> (String, Vec<String>) {
        let name = value.split('=').next().unwrap_or_default().to_owned();
        let urls = value.split(',').filter_map(|item| Some(item.split_once('=')?.1.to_owned())).collect();
        (name, urls)
    }

    fn as_text(&self) -> String {
        let (came, wanted) = (self.members.len(), self.wanted());
        let missing = wanted.saturating_sub(came);
        let mut text = format!("token {}: {came} of {} registered, {missing} missing", self.token, self.size);
        if let Some(age) = self.age {
            let _ = write!(text, "; made {} ago", format_duration(age));
        }
        match self.left {
            Some(left) => {
                let _ = write!(text, ", ends in {}", format_duration(left));
            }
            None => text.push_str("; it does not end by itself"),
        }
        text.push('\n');
        for (at, (id, value)) in self.members.iter().enumerate() {
            let (name, urls) = Self::parts(value);
            let late = if at >= wanted { "  (one too many)" } else { "" };
            let _ = writeln!(text, "{:>3}  {id}  {name}  {}{late}", at + 1, urls.join(","));
        }
        text
    }

    fn as_json(&self) -> String {
        let mut out = String::new();
        json::object(&mut out, |o| {
            o.text("token", &self.token);
            o.text("size", &self.size);
            o.raw("registered", self.members.len());
            o.raw("missing", self.wanted().saturating_sub(self.members.len()));
            if let Some(age) = self.age {
                o.raw("age_seconds", age.as_secs());
            }
            if let Some(left) = self.left {
                o.raw("left_seconds", left.as_secs());
            }
            o.list("members", &self.members, |o, (id, value)| {
                let (name, urls) = Self::parts(value);
                o.text("id", id);
                o.text("name", &name);
                o.texts("peer_urls", &urls);
            });
        });
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::mvccpb::KeyValue;

    fn kv(key: &str, value: &str, created: i64) -> KeyValue {
        KeyValue {
            key: format!("{REGISTRY}{key}").into(),
            value: value.to_owned().into(),
            create_revision: created,
            lease: 7,
            ..Default::default()
        }
    }

    #[test]
    fn who_came_and_who_is_missing() {
        let answer = RangeResponse {
            kvs: vec![
                kv("T/_config/size", "3", 4),
                kv("T/members/a1", "n1=http://n1:1,n1=http://n1:2", 9),
                kv("T/members/b2", "n2=http://n2:1", 6),
            ],
            ..Default::default()
        };
        assert_eq!(Shown::of("U", &answer), None);
        let mut shown = Shown::of("T", &answer).unwrap();
        assert_eq!(
            shown.as_text(),
            "token T: 2 of 3 registered, 1 missing; it does not end by itself\n  1  b2  n2  http://n2:1\n  2  a1  n1  http://n1:1,http://n1:2\n"
        );
        shown.age = Some(Duration::from_secs(90));
        shown.left = Some(Duration::from_secs(3600));
        shown.size = "1".into();
        assert_eq!(
            shown.as_text(),
            "token T: 2 of 1 registered, 0 missing; made 1m30s ago, ends in 1h0m0s\n  1  b2  n2  http://n2:1\n  2  a1  n1  http://n1:1,http://n1:2  (one too many)\n"
        );
        assert_eq!(
            shown.as_json(),
            "{\"token\":\"T\",\"size\":\"1\",\"registered\":2,\"missing\":0,\"age_seconds\":90,\"left_seconds\":3600,\"members\":[{\"id\":\"b2\",\"name\":\"n2\",\"peer_urls\":[\"http://n2:1\"]},{\"id\":\"a1\",\"name\":\"n1\",\"peer_urls\":[\"http://n1:1\",\"http://n1:2\"]}]}\n"
        );
    }

    #[test]
    fn a_new_token_in_the_words_of_members() {
        let new = New {
            token: "4f".into(),
            size: 3,
            lifetime: LIFETIME,
            lease: 26,
            v2: Some("http://a:1/4f".into()),
            v3: vec!["http://a:1".into(), "http://b:1".into()],
        };
        assert_eq!(
            new.as_text(),
            "token 4f for 3 members, which ends in 168h0m0s\nv2: --discovery=http://a:1/4f\nv3: --discovery-token=4f --discovery-endpoints=http://a:1,http://b:1\n"
        );
        assert!(
            new.as_json().starts_with("{\"token\":\"4f\",\"size\":3,\"lifetime_seconds\":604800,\"lease\":")
        );
        assert_eq!(random().unwrap().len(), 32);
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
