//! The same watch and lease requests to the real etcd and to cairn, one after the other on the same ports: every field of every answer
//! is compared, ids and revisions included. Only what differs by nature is masked: the raft term, ids that the server chose, and
//! seconds that passed.
//!
//! Nor is it compared between which revisions the responses to one catching-up watch are cut.
//!
//! Which answers belong to a step is learned from etcd, by waiting until it has nothing more to say; cairn must give as many, and
//! nothing more follows.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use api::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
        LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RequestOp, ResponseHeader, TxnRequest,
        WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
        kv_client::KvClient, lease_client::LeaseClient, request_op::Request, watch_client::WatchClient,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use cairn_tests::{
    harness::{Cluster, Kind, Member, free_ports},
    recorder::channel,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// etcd catches watchers up each 100 ms; after so long without a word a step is over.
const QUIET: Duration = Duration::from_millis(180);

/// Nothing more is expected; this long it could still come.
const AFTERWARDS: Duration = Duration::from_millis(80);

/// An answer that etcd gave is awaited for so long.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, &'static str, i64),
    Delete(&'static str, &'static str),
    /// Puts and deletes (no value) in one transaction.
    Txn(Vec<(&'static str, Option<&'static str>)>),
    TxnWithLease(&'static str, i64),
    Compact(i64),
    /// On the stream of this name, which is opened with its first request.
    Watch(&'static str, RequestUnion),
    Close(&'static str),
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(i64, bool),
    Leases,
    /// This many large values of so many bytes each, in one transaction.
    Large(usize, usize),
    /// Must be answered differently, for this reason.
    Differs(&'static str, Box<Step>),
}

impl Step {
    /// Watches may have something to say about it.
    fn is_told(&self) -> bool {
        !matches!(self, Step::Grant { .. } | Step::KeepAlive(_) | Step::TimeToLive(..) | Step::Leases)
    }
}

struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    waiting: Option<mpsc::Receiver<WatchRequest>>,
    responses: Option<Streaming<WatchResponse>>,
}

struct Client {
    kv: KvClient<tonic::transport::Channel>,
    lease: LeaseClient<tonic::transport::Channel>,
    watch: WatchClient<tonic::transport::Channel>,
    streams: BTreeMap<&'static str, Stream>,
}

/// What one step brought: the answer to the call, and responses by stream and watch id.
type Outcome = Vec<String>;

fn header(header: Option<ResponseHeader>) -> String {
    header.map_or_else(
        || "no header".to_owned(),
        |header| {
            format!(
                "cluster {:x} member {:x} revision {}",
                header.cluster_id, header.member_id, header.revision
            )
        },
    )
}

fn event(event: &Event) -> String {
    let shorter = |kv: &api::mvccpb::KeyValue| {
        let value = match kv.value.len() {
            0..64 => format!("{:?}", kv.value),
            length => format!("{length} bytes"),
        };
        format!(
            "{:?}={value} c{} m{} v{} l{}",
            kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.lease
        )
    };
    format!(
        "{} {} before: {}",
        event.r#type().as_str_name(),
        event.kv.as_ref().map_or_else(|| "none".to_owned(), shorter),
        event.prev_kv.as_ref().map_or_else(|| "none".to_owned(), shorter)
    )
}

fn response(stream: &str, told: &WatchResponse) -> String {
    let events: Vec<String> = told.events.iter().map(event).collect();
    format!(
        "{stream}/{} {}: created {} canceled {} compact {} reason {:?} fragment {} {events:?}",
        told.watch_id,
        header(told.header),
        told.created,
        told.canceled,
        told.compact_revision,
        told.cancel_reason,
        told.fragment
    )
}

/// Responses of one watch that follow each other and hold whole revisions count as one. Where a member that catches a watcher up cuts
/// between revisions is nobody's promise and depends on when the reader comes; what is told, in which order, and fragments do not.
fn joined(outcome: &[String]) -> Outcome {
    let mut joined: Outcome = Vec::new();
    for told in outcome {
        let whole = |text: &str| text.split_once(" fragment false [").map(|(head, _)| head.to_owned());
        let events = told.split_once(" fragment false [").map_or("", |(_, events)| events);
        match joined.last_mut() {
            Some(before)
                if events.len() > 1
                    && !before.ends_with('[')
                    && !before.ends_with("[]")
                    && whole(before) == whole(told) =>
            {
                before.truncate(before.len() - 1);
                before.push_str(", ");
                before.push_str(events);
            }
            _ => joined.push(told.clone()),
        }
    }
    joined
}

fn refused(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn answered<T>(answer: Result<tonic::Response<T>, Status>, show: impl FnOnce(T) -> String) -> String {
    answer.map_or_else(|status| refused(&status), |answer| show(answer.into_inner()))
}

impl Client {
    async fn connect(member: &Member) -> Result<Client> {
        let endpoint = tonic::transport::Endpoint::from_shared(member.client_url.clone())?;
        let unbounded = endpoint.connect().await?;
        Ok(Client {
            kv: KvClient::new(channel(&member.client_url)?),
            lease: LeaseClient::new(unbounded.clone()),
            watch: WatchClient::new(unbounded).max_decoding_message_size(64 << 20),
            streams: BTreeMap::new(),
        })
    }

    async fn put(&mut self, key: &str, value: &str, lease: i64) -> String {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let request = PutRequest { key, value, lease, ..Default::default() };
        answered(self.kv.put(request).await, |answer| header(answer.header))
    }

    async fn txn(&mut self, ops: Vec<Request>) -> String {
        let success = ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        let request = TxnRequest { success, ..Default::default() };
        answered(self.kv.txn(request).await, |answer| header(answer.header))
    }

    /// The call of the step; watch requests are only sent.
    async fn act(&mut self, step: &Step) -> Result<String> {
        let step = match step {
            Step::Differs(_, step) => step,
            step => step,
        };
        Ok(match step.clone() {
            Step::Differs(..) => unreachable!("a difference is of a plain step"),
            Step::Put(key, value, lease) => self.put(key, value, lease).await,
            Step::Delete(key, range_end) => {
                let request =
                    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
                answered(self.kv.delete_range(request).await, |answer| {
                    format!("{} deleted {}", header(answer.header), answer.deleted)
                })
            }
            Step::Txn(ops) => {
                let op = |(key, value): (&'static str, Option<&'static str>)| match value {
                    Some(value) => Request::RequestPut(PutRequest {
                        key: key.into(),
                        value: value.into(),
                        ..Default::default()
                    }),
                    None => Request::RequestDeleteRange(DeleteRangeRequest {
                        key: key.into(),
                        ..Default::default()
                    }),
                };
                self.txn(ops.into_iter().map(op).collect()).await
            }
            Step::TxnWithLease(key, lease) => {
                let put = PutRequest { key: key.into(), lease, ..Default::default() };
                self.txn(vec![Request::RequestPut(put)]).await
            }
            Step::Large(count, bytes) => {
                let put = |number: usize| {
                    Request::RequestPut(PutRequest {
                        key: format!("large/{number}").into(),
                        value: vec![b'x'; bytes].into(),
                        ..Default::default()
                    })
                };
                self.txn((0..count).map(put).collect()).await
            }
            Step::Compact(revision) => {
                let request = CompactionRequest { revision, physical: true };
                answered(self.kv.compact(request).await, |answer| header(answer.header))
            }
            Step::Watch(name, union) => {
                let stream = self.streams.entry(name).or_insert_with(|| {
                    let (requests, waiting) = mpsc::channel(64);
                    Stream { requests, waiting: Some(waiting), responses: None }
                });
                stream.requests.send(WatchRequest { request_union: Some(union) }).await?;
                if let Some(waiting) = stream.waiting.take() {
                    let opened = timeout(PATIENCE, self.watch.watch(ReceiverStream::new(waiting))).await;
                    stream.responses = Some(opened.context("the stream was not opened")??.into_inner());
                }
                String::new()
            }
            Step::Close(name) => {
                self.streams.remove(name);
                String::new()
            }
            Step::Grant { id, ttl } => {
                answered(self.lease.lease_grant(LeaseGrantRequest { ttl, id }).await, |answer| {
                    let chosen = id == 0 && answer.id > 0;
                    let id = if chosen { "chosen".to_owned() } else { answer.id.to_string() };
                    format!("{} id {id} ttl {} error {:?}", header(answer.header), answer.ttl, answer.error)
                })
            }
            Step::Revoke(id) => {
                answered(self.lease.lease_revoke(LeaseRevokeRequest { id }).await, |answer| {
                    header(answer.header)
                })
            }
            Step::KeepAlive(id) => {
                let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
                let opened = self.lease.lease_keep_alive(requests).await;
                match opened {
                    Err(status) => refused(&status),
                    Ok(opened) => match timeout(PATIENCE, opened.into_inner().message()).await? {
                        Ok(Some(told)) => format!("{} id {} ttl {}", header(told.header), told.id, told.ttl),
                        Ok(None) => "the stream ended".to_owned(),
                        Err(status) => refused(&status),
                    },
                }
            }
            Step::TimeToLive(id, keys) => {
                let request = LeaseTimeToLiveRequest { id, keys };
                answered(self.lease.lease_time_to_live(request).await, |mut told| {
                    // etcd hands them out of a hash map.
                    told.keys.sort();
                    // Moments have passed since it was granted, on a busy machine seconds.
                    let left = match told.granted_ttl {
                        granted if granted > 0 && (granted - 10..=granted).contains(&told.ttl) => {
                            "nearly all".to_owned()
                        }
                        _ => told.ttl.to_string(),
                    };
                    format!(
                        "{} id {} left {left} granted {} keys {:?}",
                        header(told.header),
                        told.id,
                        told.granted_ttl,
                        told.keys
                    )
                })
            }
            Step::Leases => answered(self.lease.lease_leases(LeaseLeasesRequest {}).await, |answer| {
                let mut known: Vec<i64> = answer.leases.iter().map(|lease| lease.id).collect();
                known.sort_unstable();
                let small = known.iter().filter(|id| **id < 1 << 40);
                format!(
                    "{} {} leases, {small:?}",
                    header(answer.header),
                    known.len(),
                    small = small.collect::<Vec<_>>()
                )
            }),
        })
    }

    /// What the streams say: exactly so many responses and whatever follows at once, or all until they are quiet.
    async fn listen(&mut self, expected: Option<usize>) -> Vec<String> {
        let mut told: Vec<(String, i64, String)> = Vec::new();
        loop {
            let wait = match expected {
                None => QUIET,
                Some(expected) if told.len() < expected => PATIENCE,
                Some(_) => AFTERWARDS,
            };
            let any = std::future::poll_fn(|cx| {
                for (name, stream) in &mut self.streams {
                    let Some(responses) = &mut stream.responses else { continue };
                    if let std::task::Poll::Ready(next) =
                        tokio_stream::Stream::poll_next(std::pin::Pin::new(responses), cx)
                    {
                        if !matches!(next, Some(Ok(_))) {
                            stream.responses = None;
                        }
                        return std::task::Poll::Ready((*name, next));
                    }
                }
                std::task::Poll::Pending
            });
            match timeout(wait, any).await {
                Err(_) => break,
                Ok((name, Some(Ok(next)))) => {
                    told.push((name.to_owned(), next.watch_id, response(name, &next)))
                }
                Ok((name, Some(Err(status)))) => told.push((name.to_owned(), i64::MAX, refused(&status))),
                Ok((name, None)) => told.push((name.to_owned(), i64::MAX, "ended".to_owned())),
            }
        }
        // Between watches there is no order; the sort keeps that inside one.
        told.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        told.into_iter().map(|(_, _, text)| text).collect()
    }
}

/// Runs the steps against both and returns the steps that went differently.
fn compare(steps: &[Step]) -> Result<Vec<String>> {
    let ports = free_ports(2)?;
    let mut reference: Vec<Outcome> = Vec::new();
    let mut differences = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let flags = ["--max-request-bytes=2000000"];
    for kind in [Kind::Etcd("3.5".to_owned()), Kind::Cairn] {
        let is_reference = kind != Kind::Cairn;
        let mut cluster = Cluster::prepare_on(kind, &ports, &flags)?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
        runtime.block_on(async {
            let mut client = Client::connect(&cluster.members[0]).await?;
            for (number, step) in steps.iter().enumerate() {
                let call = client.act(step).await.with_context(|| format!("step {number}: {step:?}"))?;
                let expected = reference.get(number).map(|outcome| outcome.len() - 1);
                let expected = if step.is_told() { expected } else { Some(0) };
                let mut outcome = vec![call];
                outcome.extend(client.listen(expected).await);
                if is_reference {
                    reference.push(outcome);
                } else if let (Step::Differs(why, _), true) = (step, outcome != reference[number]) {
                    println!("step {number} differs: {why}");
                } else if joined(&outcome) != joined(&reference[number]) || matches!(step, Step::Differs(..))
                {
                    let (theirs, ours) = (reference[number].join("\n      "), outcome.join("\n      "));
                    differences.push(format!("{number} {step:?}\n    etcd: {theirs}\n    cairn: {ours}"));
                }
            }
            Ok::<_, anyhow::Error>(())
        })?;
    }
    let answers: usize = reference.iter().map(Vec::len).sum();
    println!("{} steps, {answers} answers compared", steps.len());
    assert!(answers > steps.len(), "etcd hardly said anything");
    Ok(differences)
}

#[test]
fn only_where_whole_revisions_are_cut_is_nobodys_promise() {
    let told = |stream: &str, id: i64, fragment: bool, revisions: std::ops::Range<i64>| {
        let event = |mod_revision| Event {
            kv: Some(api::mvccpb::KeyValue { mod_revision, ..Default::default() }),
            ..Default::default()
        };
        let events = revisions.map(event).collect();
        response(stream, &WatchResponse { watch_id: id, fragment, events, ..Default::default() })
    };
    let same = |ours: &[String], theirs: &[String]| joined(ours) == joined(theirs);
    let all = [told("a", 1, false, 1..1), told("a", 1, false, 1..4), told("a", 2, false, 3..4)];
    let cut = [&[all[0].clone(), told("a", 1, false, 1..2), told("a", 1, false, 2..4)], &all[2..]].concat();
    assert!(same(&all, &cut));
    for other in [
        vec![told("a", 1, false, 1..1), told("a", 1, false, 1..3), all[2].clone()],
        vec![told("a", 1, false, 1..1), told("a", 1, false, 2..4), told("a", 1, false, 1..2), all[2].clone()],
        vec![told("a", 1, false, 1..2), told("a", 1, false, 2..4), all[2].clone()],
        vec![told("a", 1, false, 1..1), told("a", 1, true, 1..2), told("a", 1, false, 2..4), all[2].clone()],
        vec![told("a", 1, false, 1..1), told("b", 1, false, 1..2), told("a", 1, false, 2..4), all[2].clone()],
        vec![all[1].clone(), all[2].clone()],
    ] {
        assert!(!same(&all, &other), "{other:#?}");
    }
}

#[track_caller]
fn expect_equal(steps: &[Step]) {
    let differences = compare(steps).expect("the steps run");
    assert!(differences.is_empty(), "{} steps differ:\n{}", differences.len(), differences.join("\n"));
}

fn differs(reason: &'static str, step: Step) -> Step {
    Step::Differs(reason, Box::new(step))
}

fn create(stream: &'static str, create: WatchCreateRequest) -> Step {
    Step::Watch(stream, RequestUnion::CreateRequest(create))
}

fn cancel(stream: &'static str, watch_id: i64) -> Step {
    Step::Watch(stream, RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
}

fn progress(stream: &'static str) -> Step {
    Step::Watch(stream, RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

fn one(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

fn range(key: &'static str, range_end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

/// Changes of every kind, once.
fn changes() -> Vec<Step> {
    vec![
        Step::Put("a", "1", 0),
        Step::Put("a", "2", 0),
        Step::Put("b", "1", 0),
        Step::Delete("a", ""),
        Step::Delete("a", ""),
        Step::Txn(vec![("c", Some("1")), ("a", Some("3")), ("b", None), ("nobody", None)]),
        Step::Put("b", "2", 0),
        Step::Delete("a", "d"),
        Step::Txn(vec![("e", Some("1")), ("a", Some("4"))]),
    ]
}

#[test]
fn every_combination_of_watch_options_is_answered_alike() {
    let mut steps = Vec::new();
    let (noput, nodelete) = (FilterType::Noput as i32, FilterType::Nodelete as i32);
    for filters in [vec![], vec![noput], vec![nodelete], vec![noput, nodelete], vec![nodelete, nodelete]] {
        for (prev_kv, fragment, progress_notify) in
            [(false, false, false), (true, false, true), (true, true, false), (false, true, true)]
        {
            let options = WatchCreateRequest {
                filters: filters.clone(),
                prev_kv,
                fragment,
                progress_notify,
                ..range("a", "d")
            };
            steps.push(create("options", options));
        }
    }
    steps.extend(changes());
    steps.push(progress("options"));
    expect_equal(&steps);
}

#[test]
fn watch_starts_and_ranges_are_answered_alike() {
    let from = |start_revision, create: WatchCreateRequest| WatchCreateRequest { start_revision, ..create };
    let mut steps = changes();
    steps.extend([
        create("past", from(1, range("a", "d"))),
        create("past", from(2, one("a"))),
        create("past", WatchCreateRequest { prev_kv: true, ..from(4, range("a", "z")) }),
        create("past", from(5, one("c"))),
        progress("past"),
        create("now", one("a")),
        create("now", from(9, one("a"))),
        progress("now"),
        create("future", from(12, one("a"))),
        progress("future"),
        Step::Put("a", "5", 0),
        progress("future"),
        Step::Put("a", "6", 0),
        differs(
            "asked too early, progress is told when its time has come; etcd forgets it",
            Step::Put("a", "7", 0),
        ),
        Step::Put("a", "8", 0),
        progress("future"),
        create("ranges", range("a", "\0")),
        create("ranges", range("", "\0")),
        create("ranges", range("", "")),
        create("ranges", range("\0", "\0")),
        create("ranges", range("b", "a")),
        create("ranges", range("b", "b")),
        create("ranges", from(-1, one("a"))),
        create("ranges", from(i64::MIN, one("a"))),
        create("ranges", from(i64::MAX, one("a"))),
        Step::Put("z", "1", 0),
        Step::Put("\0", "1", 0),
    ]);
    expect_equal(&steps);
}

#[test]
fn watch_ids_cancels_and_progress_are_answered_alike() {
    let with_id = |watch_id, key| WatchCreateRequest { watch_id, ..one(key) };
    let mut steps = vec![
        create("ids", with_id(0, "a")),
        create("ids", with_id(5, "a")),
        create("ids", with_id(5, "b")),
        create("ids", with_id(1, "a")),
        create("ids", with_id(0, "a")),
        create("ids", with_id(0, "b")),
        create("ids", with_id(-3, "b")),
        create("ids", with_id(i64::MAX, "b")),
        progress("ids"),
        Step::Put("a", "1", 0),
        cancel("ids", 5),
        cancel("ids", 5),
        cancel("ids", 99),
        cancel("ids", -1),
        create("ids", with_id(5, "a")),
        Step::Put("a", "2", 0),
        cancel("ids", 0),
        create("ids", with_id(0, "a")),
        Step::Put("a", "3", 0),
        progress("ids"),
        create("other", with_id(5, "a")),
        Step::Close("ids"),
        Step::Put("a", "4", 0),
        progress("other"),
        // Nothing is asked.
        Step::Put("c", "1", 0),
        progress("other"),
    ];
    steps.push(cancel("other", 5));
    steps.push(progress("other"));
    expect_equal(&steps);
}

const SILENCED: &str = "a watch that was canceled by compaction silences progress of its stream in etcd";

#[test]
fn compacted_watches_are_answered_alike() {
    let from = |start_revision, create: WatchCreateRequest| WatchCreateRequest { start_revision, ..create };
    let mut steps = changes();
    // Revision 5 deletes a.
    steps.extend([
        Step::Compact(5),
        create("compacted", from(1, one("a"))),
        create("compacted", from(4, one("a"))),
        create("compacted", from(5, one("a"))),
        create("compacted", WatchCreateRequest { prev_kv: true, ..from(5, range("a", "z")) }),
        create("compacted", from(6, one("a"))),
        create("compacted", WatchCreateRequest { watch_id: 40, ..from(2, one("a")) }),
        // The id of a watch that was canceled so.
        create("compacted", WatchCreateRequest { watch_id: 40, ..one("a") }),
        cancel("compacted", 40),
        create("compacted", WatchCreateRequest { watch_id: 40, ..one("a") }),
        differs(SILENCED, progress("compacted")),
        Step::Put("a", "5", 0),
        Step::Compact(8),
        create("later", from(7, range("a", "z"))),
        create("later", from(8, range("a", "z"))),
        differs(SILENCED, progress("later")),
    ]);
    expect_equal(&steps);
}

#[test]
fn large_watch_responses_are_answered_alike() {
    let large = || WatchCreateRequest { start_revision: 1, ..range("large/", "large0") };
    expect_equal(&[
        create("large", large()),
        create("large", WatchCreateRequest { fragment: true, ..large() }),
        Step::Large(4, 450_000),
        create("late", large()),
        create("late", WatchCreateRequest { fragment: true, prev_kv: true, ..large() }),
        Step::Close("large"),
        Step::Large(4, 450_000),
        differs(
            "etcd makes one sequence of fragments of all revisions it caught up; each revision is one here",
            create("twice", WatchCreateRequest { fragment: true, prev_kv: true, ..large() }),
        ),
        Step::Close("late"),
        Step::Large(3, 300_000),
        progress("twice"),
    ]);
}

#[test]
fn leases_are_answered_alike() {
    let mut steps = Vec::new();
    for ttl in [0, -1, 1, 2, 3, 60, 9_000_000_000, 9_000_000_001, i64::MAX, i64::MIN] {
        steps.push(Step::Grant { id: 0, ttl });
    }
    for (id, ttl) in [(5, 100), (5, 100), (6, 1), (i64::MAX, 60), (7, 0), (8, 9_000_000_001), (9, -5)] {
        steps.push(Step::Grant { id, ttl });
    }
    steps.extend([
        create("leased", WatchCreateRequest { prev_kv: true, ..range("l", "m") }),
        Step::Put("l/1", "1", 5),
        Step::Put("l/2", "2", 5),
        Step::TxnWithLease("l/3", 5),
        Step::Put("l/9", "x", 4711),
        Step::Put("l/9", "x", -1),
        Step::TxnWithLease("l/9", 4711),
        Step::TimeToLive(5, true),
        Step::TimeToLive(5, false),
        Step::TimeToLive(4711, true),
        Step::TimeToLive(0, true),
        Step::TimeToLive(-1, false),
        Step::TimeToLive(i64::MAX, true),
        // Detached, and to another lease.
        Step::Put("l/1", "3", 0),
        Step::Put("l/2", "4", i64::MAX),
        Step::TimeToLive(5, true),
        Step::TimeToLive(i64::MAX, true),
        Step::KeepAlive(5),
        Step::KeepAlive(i64::MAX),
        Step::KeepAlive(4711),
        Step::KeepAlive(0),
        Step::KeepAlive(-1),
        Step::Delete("l/3", ""),
        Step::TimeToLive(5, true),
        Step::TxnWithLease("l/4", 5),
        Step::TxnWithLease("l/5", 5),
        Step::Revoke(5),
        Step::Revoke(5),
        Step::Revoke(4711),
        Step::Revoke(0),
        Step::Revoke(-1),
        Step::KeepAlive(5),
        Step::TimeToLive(5, true),
        Step::Revoke(i64::MAX),
        Step::Put("l/6", "x", 5),
        Step::Grant { id: 5, ttl: 50 },
        Step::TimeToLive(5, true),
        Step::Revoke(5),
        // Nothing is attached: no revision.
        Step::Put("l/7", "1", 0),
    ]);
    expect_equal(&steps);
}

#[test]
fn lists_of_leases_are_answered_alike() {
    expect_equal(&[
        Step::Leases,
        Step::Grant { id: 3, ttl: 300 },
        Step::Grant { id: 1, ttl: 200 },
        Step::Grant { id: 2, ttl: 100 },
        Step::Leases,
        Step::Revoke(1),
        Step::Leases,
        create("any", one("a")),
    ]);
}
