//! make-mirror: the keys under a prefix, copied to another cluster, and every change from then on. The copy is of one revision, page by page;
//! the watch goes on behind it, so that nothing is missed. Each revision of the source is one transaction at the destination.
//!
//! What is written twice after a lost answer is the same, so both sides are asked again for as long as it takes; a refusal ends it. Leases
//! and revisions are not copied, and keys that only the destination has stay. Not here: one mirror for each destination, which its user minds.

use super::show;
use super::watch::request::Wanted;
use super::watch::watchers::{News, Watchers};
use crate::cli;
use crate::client::{Client, Method, RANGE, STATUS, TXN, WATCH, server_failure};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::tell;
use crate::output::text::readable;
use crate::session::{Ended, Session};
use crate::settings::{Identity, Settings, TlsSettings, identity};
use crate::verbs::kv::prefix_end;
use crate::wire::Status;
use crate::wire::endpoint::Endpoint;
use api::error::{Code, EtcdError};
use api::etcdserverpb::request_op::Request;
use api::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use api::mvccpb::{Event, KeyValue, event::EventType};
use bytes::Bytes;
use clap::{ArgMatches, Command};
use prost::Message;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Keys of one page: with values of a kilobyte a message that no side notices.
const PAGE_KEYS: i64 = 500;
/// Changes of one transaction that servers take with default settings; etcdctl's default.
const TXN_OPS: usize = 128;
/// Bytes of one transaction, below the 1.5 MiB that servers take. A single change may be larger.
const TXN_BYTES: usize = 1024 * 1024;
/// How often the number of copied changes is printed; etcdctl's.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// Pauses between attempts to reach a side again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

const ZERO: &[u8] = b"\0";

pub fn command() -> Command {
    cli::verb(
        "make-mirror",
        "Copies keys to another cluster, and every change that follows",
        "cairnctl make-mirror [flags] <destination>",
    )
    .after_help(
        "Goes on until it is stopped, and prints every 30 seconds how many changes were copied. A side that is down is waited for.\n\
         Keys that only the destination has stay there. Leases are not copied: a key goes when it goes at the source.",
    )
    .args([
        cli::value("prefix", "Only keys that begin so"),
        cli::number("rev", "Only changes from this revision on, without the keys that are there"),
        cli::number("max-txn-ops", "At most so many changes in one transaction (0: 128)"),
        cli::value("dest-prefix", "What stands for the prefix at the destination"),
        cli::switch("no-dest-prefix", "Leave the prefix away at the destination"),
        cli::value("dest-cert", "Client certificate (PEM) for the destination"),
        cli::value("dest-key", "Key of that certificate (PEM)"),
        cli::value("dest-cacert", "Certificate authority (PEM) of the destination"),
        cli::switch("dest-insecure-transport", "Plain text for a destination without a scheme (default true)"),
        cli::value("dest-user", "User at the destination: name:password, or name"),
        cli::value("dest-password", "Password at the destination; --dest-user must then carry none"),
    ])
}

/// Which keys, and what they are called at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Renaming {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Renaming {
    fn key(&self, key: &[u8]) -> Result<Bytes> {
        let rest = key.strip_prefix(&self.from[..]).unwrap_or(key);
        if self.to.is_empty() && rest.is_empty() {
            return Err(Failure::new(
                Exit::Error,
                format!(
                    "key \"{}\" is the prefix itself and would have no name at the destination",
                    readable(key)
                ),
            ));
        }
        Ok([&self.to[..], rest].concat().into())
    }

    /// First key and end of the range.
    fn range(&self) -> (Bytes, Bytes) {
        if self.from.is_empty() {
            return (Bytes::from_static(ZERO), Bytes::from_static(ZERO));
        }
        (self.from.clone().into(), prefix_end(&self.from))
    }

    /// Whether what is written is among what is copied.
    fn feeds_itself(&self) -> bool {
        self.to.starts_with(&self.from)
    }

    fn put(&self, kv: &KeyValue) -> Result<RequestOp> {
        let put = PutRequest { key: self.key(&kv.key)?, value: kv.value.clone(), ..Default::default() };
        Ok(RequestOp { request: Some(Request::RequestPut(put)) })
    }

    fn change(&self, event: &Event) -> Result<RequestOp> {
        let kv = event.kv.clone().unwrap_or_default();
        if event.r#type == EventType::Put as i32 {
            return self.put(&kv);
        }
        let delete = DeleteRangeRequest { key: self.key(&kv.key)?, ..Default::default() };
        Ok(RequestOp { request: Some(Request::RequestDeleteRange(delete)) })
    }
}

/// Cut so that each part fits into a transaction. `together`: whether a change belongs to the same revision as the one before.
fn parts<T>(
    changes: Vec<(T, RequestOp)>,
    ops_max: usize,
    together: impl Fn(&T, &T) -> bool,
) -> Vec<Vec<RequestOp>> {
    let mut parts: Vec<Vec<RequestOp>> = Vec::new();
    let (mut bytes, mut last) = (0, None);
    for (of, op) in changes {
        let len = op.encoded_len();
        let fits = last.as_ref().is_some_and(|last| together(last, &of));
        match parts.last_mut().filter(|part| fits && part.len() < ops_max && bytes + len <= TXN_BYTES) {
            Some(part) => {
                part.push(op);
                bytes += len;
            }
            None => {
                parts.push(vec![op]);
                bytes = len;
            }
        }
        last = Some(of);
    }
    parts
}

/// One of the two clusters, asked until it answers.
struct Side {
    client: Client,
    name: &'static str,
    patience: Duration,
}

impl Side {
    fn new(settings: &Settings, name: &'static str) -> Result<Side> {
        let client = Client::new(settings, true)?.without_deadline();
        Ok(Side { client, name, patience: settings.command_timeout })
    }

    async fn once<A: Message + Default>(&mut self, method: &Method, request: &impl Message) -> Result<A> {
        let late = || Failure::new(Exit::Error, "context deadline exceeded");
        timeout(self.patience, self.client.call(method, request)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Until there is an answer or a refusal.
    async fn insist<A: Message + Default>(&mut self, method: &Method, request: &impl Message) -> Result<A> {
        let mut pause = Duration::ZERO;
        loop {
            let failure = match self.once(method, request).await {
                Ok(answer) => {
                    if !pause.is_zero() {
                        tell(format_args!("make-mirror: the {} answers again", self.name));
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let status = Status { code: 0, message: failure.headline.clone() };
            if !passes(&failure) && !self.client.renew_token(&status) {
                return Err(Failure {
                    headline: format!("the {}: {}", self.name, failure.headline),
                    ..failure
                });
            }
            if pause.is_zero() {
                tell(format_args!(
                    "make-mirror: the {} does not answer ({}); going on when it does",
                    self.name, failure.headline
                ));
            }
            self.client.leave();
            pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            sleep(pause).await;
        }
    }
}

/// Whether it may be otherwise in a while.
fn passes(failure: &Failure) -> bool {
    let text = failure.headline.as_str();
    ["[UNREACHABLE]", "[ANSWER_LOST]", "context deadline exceeded", "rpc error: code = Unavailable"]
        .iter()
        .any(|start| text.starts_with(start))
        || EtcdError::from_text(text).is_some_and(|error| {
            error.code() == Code::Unavailable || error == EtcdError::RequestTooManyRequests
        })
}

/// How many changes were copied, told now and then.
struct Tally {
    total: u64,
    due: Instant,
}

impl Tally {
    fn add(&mut self, changes: usize) -> Result<()> {
        self.total += changes as u64;
        if Instant::now() >= self.due { self.tell() } else { Ok(()) }
    }

    fn tell(&mut self) -> Result<()> {
        self.due = Instant::now() + TOLD_EVERY;
        show(format!("{}\n", self.total).as_bytes())
    }
}

struct Mirror {
    source: Side,
    destination: Side,
    renaming: Renaming,
    ops_max: usize,
    tally: Tally,
}

pub async fn make_mirror(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let [destination] = arguments.as_slice() else {
        return Err(Failure::arguments("make-mirror takes one destination argument"));
    };
    let renaming = renaming(matches)?;
    let there = there(settings, matches, &String::from_utf8_lossy(destination))?;
    let same =
        there.endpoints.iter().any(|one| settings.endpoints.iter().any(|other| one.address == other.address));
    if same && renaming.feeds_itself() {
        return Err(Failure::arguments(
            "the destination is the source: every copy would be a change to copy; give --dest-prefix, or another destination",
        ));
    }
    let ops_max = match cli::integer(matches, "max-txn-ops") {
        0 => TXN_OPS,
        ops => usize::try_from(ops).map_err(|_| Failure::arguments("--max-txn-ops must not be negative"))?,
    };
    let mut mirror = Mirror {
        source: Side::new(settings, "source")?,
        destination: Side::new(&there, "destination")?,
        renaming,
        ops_max,
        tally: Tally { total: 0, due: Instant::now() + TOLD_EVERY },
    };
    // A wrong address is told at once and not waited for.
    let ours: StatusResponse = mirror.source.once(&STATUS, &StatusRequest {}).await?;
    let theirs: StatusResponse = mirror.destination.once(&STATUS, &StatusRequest {}).await?;
    let id = |status: &StatusResponse| status.header.unwrap_or_default().cluster_id;
    if id(&ours) == id(&theirs) && mirror.renaming.feeds_itself() {
        tell(format_args!(
            "warning: both clusters have the id {:x}; if they are one, every copy is a change to copy, without an end",
            id(&ours)
        ));
    }
    let from = match cli::integer(matches, "rev") {
        0 => mirror.base().await? + 1,
        revision => revision,
    };
    mirror.follow(from).await
}

fn renaming(matches: &ArgMatches) -> Result<Renaming> {
    let (from, to) = (cli::text(matches, "prefix"), cli::text(matches, "dest-prefix"));
    let none = cli::on(matches, "no-dest-prefix");
    if none && !to.is_empty() {
        return Err(Failure::arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ));
    }
    let to = if to.is_empty() && !none { from } else { to };
    Ok(Renaming { from: from.into(), to: to.into() })
}

/// The settings for the destination: nothing that proves who we are at the source is sent there.
fn there(settings: &Settings, matches: &ArgMatches, destination: &str) -> Result<Settings> {
    let text = |name: &str| cli::text(matches, name).to_owned();
    let tls = TlsSettings {
        cacert: text("dest-cacert"),
        cert: text("dest-cert"),
        key: text("dest-key"),
        skip_verify: settings.tls.skip_verify,
    };
    if tls.cert.is_empty() != tls.key.is_empty() {
        return Err(Failure::arguments("--dest-cert and --dest-key belong together: give both or none"));
    }
    let plain = matches.get_one::<bool>("dest-insecure-transport").copied().unwrap_or(true);
    let bare_is_secure = !plain || !tls.cacert.is_empty() || !tls.cert.is_empty();
    let names = destination.split(',').map(str::trim).filter(|name| !name.is_empty());
    let endpoints: Vec<Endpoint> = names
        .map(|name| {
            Endpoint::parse(name, bare_is_secure)
                .map_err(|why| Failure::usage(format!("invalid destination {destination:?}: {why}")))
        })
        .collect::<Result<_>>()?;
    if endpoints.is_empty() {
        return Err(Failure::arguments("make-mirror takes one destination argument"));
    }
    let identity = match (text("dest-user"), text("dest-password")) {
        (user, password) if user.is_empty() && password.is_empty() => Identity::Nobody,
        (user, password) => identity(&user, &password, "").map_err(|failure| Failure {
            headline: failure
                .headline
                .replace("--user", "--dest-user")
                .replace("--password", "--dest-password"),
            ..failure
        })?,
    };
    Ok(Settings { endpoints, tls, identity, missed: None, ..settings.clone() })
}

impl Mirror {
    async fn write(&mut self, parts: Vec<Vec<RequestOp>>) -> Result<()> {
        for part in parts {
            let changes = part.len();
            let request = TxnRequest { success: part, ..Default::default() };
            let _: TxnResponse = self.destination.insist(&TXN, &request).await?;
            self.tally.add(changes)?;
        }
        Ok(())
    }

    /// Copies everything as it is at one revision, which is returned.
    async fn base(&mut self) -> Result<i64> {
        let (mut key, range_end) = self.renaming.range();
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE_KEYS,
                revision,
                ..Default::default()
            };
            let page: RangeResponse = match self.source.insist(&RANGE, &request).await {
                Err(failure) if failure.headline.ends_with(EtcdError::Compacted.text()) => {
                    return Err(compacted(
                        revision,
                        "the copy of what is there took longer than the history is kept",
                    ));
                }
                other => other?,
            };
            if revision == 0 {
                revision = page.header.unwrap_or_default().revision;
            }
            let Some(last) = page.kvs.last() else { return Ok(revision) };
            key = [&last.key[..], ZERO].concat().into();
            let puts = page.kvs.iter().map(|kv| Ok(((), self.renaming.put(kv)?))).collect::<Result<_>>()?;
            self.write(parts(puts, self.ops_max, |(), ()| true)).await?;
            if !page.more {
                return Ok(revision);
            }
        }
    }

    /// Copies every change from this revision on.
    async fn follow(&mut self, from: i64) -> Result<()> {
        let (key, range_end) = self.renaming.range();
        // Notices of progress: where nothing changes, what was compacted meanwhile is nothing that was missed.
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: from,
            progress_notify: true,
            ..Default::default()
        };
        let mut watchers = Watchers::default();
        let first = watchers.add(Wanted { create, command: Vec::new(), resume_after_compaction: false });
        let mut session = self.open().await?;
        let mut sent = session.send(&first).await;
        loop {
            let answer = match sent {
                Ok(()) => tokio::select! {
                    answer = session.next::<WatchResponse>() => answer,
                    () = sleep_until(self.tally.due) => {
                        self.tally.tell()?;
                        continue;
                    }
                },
                Err(ended) => Err(ended),
            };
            sent = Ok(());
            match answer {
                Ok(response) => {
                    for news in watchers.take(response) {
                        self.take(news, watchers.next(0)).await?;
                    }
                }
                Err(Ended::Refused(status)) if !self.source.client.renew_token(&status) => {
                    return Err(server_failure(&status));
                }
                Err(ended) => {
                    let why = match ended {
                        Ended::Lost(why) => why,
                        Ended::Refused(status) => status.message,
                    };
                    tell(format_args!("make-mirror: lost {} ({why}); going on elsewhere", session.endpoint));
                    self.source.client.leave();
                    session = self.open().await?;
                    for request in watchers.resume() {
                        sent = session.send(&request).await;
                    }
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Session> {
        let mut pause = Duration::ZERO;
        loop {
            match self.source.client.open(&WATCH).await {
                Ok(session) => return Ok(session),
                Err(failure) if !passes(&failure) => return Err(failure),
                Err(_) => {}
            }
            pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            sleep(pause).await;
        }
    }

    async fn take(&mut self, news: News, next: i64) -> Result<()> {
        match news {
            News::Events { response, .. } => {
                let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                let changes = response
                    .events
                    .iter()
                    .map(|event| Ok((revision(event), self.renaming.change(event)?)))
                    .collect::<Result<_>>()?;
                self.write(parts(changes, self.ops_max, |one, other| one == other)).await
            }
            News::Progress { .. } => Ok(()),
            News::Canceled { response, .. } if response.compact_revision > 0 => {
                Err(compacted(next, &format!("history begins at revision {}", response.compact_revision)))
            }
            News::Canceled { response, .. } => {
                let why = response.cancel_reason;
                Err(Failure::new(Exit::Interrupted, format!("the watch is canceled by the source: {why}")))
            }
        }
    }
}

fn compacted(from: i64, why: &str) -> Failure {
    Failure::new(
        Exit::Compacted,
        format!("[COMPACTED] changes from revision {from} on are gone at the source"),
    )
    .with(Details {
        cause: why.into(),
        evidence: Vec::new(),
        remedy: vec![
            "begin anew without --rev: all keys are copied as they are now".into(),
            "delete first what the destination has of it, since deletes are among the changes that are gone"
                .into(),
        ],
        never: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renaming_of(line: &str) -> Result<Renaming> {
        let matches = cli::command().try_get_matches_from(line.split(' ')).unwrap();
        renaming(matches.subcommand().unwrap().1)
    }

    #[test]
    fn keys_get_the_name_that_the_flags_say() {
        for (flags, key, expected) in [
            ("", "a", Some("a")),
            (" --prefix /a/", "/a/k", Some("/a/k")),
            (" --prefix /a/ --dest-prefix /b/", "/a/k", Some("/b/k")),
            (" --prefix /a/ --dest-prefix /b/", "/a/a/k", Some("/b/a/k")),
            (" --prefix /a/ --no-dest-prefix", "/a/k", Some("k")),
            (" --prefix /a/ --no-dest-prefix", "/a/", None),
            (" --dest-prefix /b/", "k", Some("/b/k")),
        ] {
            let renaming = renaming_of(&format!("cairnctl make-mirror d:1{flags}")).unwrap();
            assert_eq!(renaming.key(key.as_bytes()).ok(), expected.map(Bytes::from), "{flags} {key}");
        }
        assert!(renaming_of("cairnctl make-mirror d:1 --dest-prefix x --no-dest-prefix").is_err());
        assert!(renaming_of("cairnctl make-mirror d:1").unwrap().feeds_itself());
        assert!(renaming_of("cairnctl make-mirror d:1 --prefix a --dest-prefix ab").unwrap().feeds_itself());
        assert!(!renaming_of("cairnctl make-mirror d:1 --prefix a --dest-prefix b").unwrap().feeds_itself());
    }

    #[test]
    fn a_transaction_is_one_revision_and_within_the_limits() {
        let renaming = Renaming { from: Vec::new(), to: Vec::new() };
        let change = |revision: i64, bytes: usize| {
            let kv = KeyValue { key: "k".into(), value: vec![b'v'; bytes].into(), ..Default::default() };
            (revision, renaming.put(&kv).unwrap())
        };
        let sizes = |changes: &[(i64, usize)], ops_max| -> Vec<usize> {
            let changes = changes.iter().map(|(revision, bytes)| change(*revision, *bytes)).collect();
            parts(changes, ops_max, |one, other| one == other).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[(1, 1), (1, 1), (2, 1), (3, 1), (3, 1)], 128), [2, 1, 2]);
        assert_eq!(sizes(&[(1, 1), (1, 1), (1, 1)], 2), [2, 1]);
        assert_eq!(sizes(&[(1, TXN_BYTES / 2), (1, TXN_BYTES / 2), (1, 1)], 128), [1, 2]);
        assert_eq!(
            sizes(&[(1, 2 * TXN_BYTES), (1, 1)], 128),
            [1, 1],
            "what is too large alone is sent alone"
        );
        assert_eq!(sizes(&[], 128), [0; 0]);
    }

    #[test]
    fn what_passes_is_waited_for_and_a_refusal_is_not() {
        let passing = |text: &str| passes(&Failure::new(Exit::Error, text));
        for text in [
            "[UNREACHABLE] the endpoint does not answer",
            "etcdserver: no leader",
            "etcdserver: too many requests",
        ] {
            assert!(passing(text), "{text}");
        }
        for text in [
            "etcdserver: permission denied",
            "etcdserver: mvcc: database space exceeded",
            "etcdserver: key is not provided",
        ] {
            assert!(!passing(text), "{text}");
        }
    }
}
