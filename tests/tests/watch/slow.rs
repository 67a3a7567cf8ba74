//! Clients that do not read, and what they cost others.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use api::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use cairn_tests::{
    checker,
    harness::Cluster,
    recorder::{
        Clock, channel, fill, historian,
        watchers::{Plan, Watchers},
    },
};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::{block_on, kind};

const MIB: u64 = 1 << 20;

/// Clients that fill at a time.
const CLIENTS: usize = 8;

/// What stopped watchers may cost together: their queues, the recent history that is kept anyway, and what the state store's own
/// buffers and the allocator add by chance.
const STOPPED_BYTES_MAX: u64 = 192 * MIB;

#[test]
fn stopped_clients_cost_bounded_memory_and_lose_nothing() -> Result<()> {
    const VALUE_BYTES: usize = 64 << 10;
    const STOPPED: usize = 12;
    const PUTS: usize = 2500;
    let cluster = Cluster::start(kind(), 1)?;
    let url = cluster.members[0].client_url.clone();
    // The state store takes its share of memory with the first.
    block_on(fill(&url, CLIENTS, 1500, VALUE_BYTES))?;
    let before = cluster.members[0].memory()?;
    let mut watchers = Watchers::new(Clock::start(), std::slice::from_ref(&url));
    let create = WatchCreateRequest { key: "fill/".into(), range_end: "fill0".into(), ..Default::default() };
    let names: Vec<String> = (0..STOPPED).map(|number| format!("stopped {number}")).collect();
    for name in &names {
        watchers.start(Plan {
            name: name.clone(),
            creates: vec![create.clone()],
            // All catch up at once afterwards, which may leave one without a word for a while.
            patient: true,
            ..Plan::default()
        });
    }
    let first = block_on(historian::current(&url))?;
    watchers.wait_all(first)?;
    for name in &names {
        watchers.hold(name);
    }
    block_on(fill(&url, CLIENTS, PUTS, VALUE_BYTES))?;
    let after = cluster.members[0].memory()?;
    println!(
        "{} MiB before, {} MiB with {STOPPED} stopped clients after {PUTS} writes of 64 KiB",
        before / MIB,
        after / MIB
    );
    for name in &names {
        watchers.release(name);
    }
    let last = block_on(historian::current(&url))?;
    assert_eq!(last - first, PUTS as i64, "each put is a revision");
    watchers.wait_all(last)?;
    let streams = watchers.finish();
    for stream in &streams {
        let (watches, broken) = checker::sessions(stream);
        checker::assert_kept("streams", &broken);
        assert_eq!(watches.len(), 1, "{}: it never left its stream", stream.name);
        let events = watches[0].deliveries().flat_map(|delivery| &delivery.events);
        let revisions: Vec<i64> = events.map(|event| checker::history::revision(event)).collect();
        let expected: Vec<i64> = (first + 1..=last).collect();
        let wrong = revisions.iter().zip(&expected).find(|(revision, expected)| revision != expected);
        assert!(
            wrong.is_none() && revisions.len() == expected.len(),
            "{}: {} events of {}, the first wrong one is {wrong:?}",
            stream.name,
            revisions.len(),
            expected.len()
        );
    }
    assert_eq!(streams.len(), names.len());
    assert!(
        after < before + STOPPED_BYTES_MAX,
        "stopped clients cost {} MiB",
        (after.saturating_sub(before)) / MIB
    );
    Ok(())
}

/// Large reads without a pause and a watch, all on one connection: the watch goes on. The reads end only after it has told all.
#[test]
fn streams_do_not_starve_each_other() -> Result<()> {
    const EVENTS: i64 = 200;
    const READERS: usize = 8;
    let cluster = Cluster::start(kind(), 1)?;
    let url = cluster.members[0].client_url.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        fill(&url, CLIENTS, 64, 128 << 10).await?;
        let endpoint = tonic::transport::Endpoint::from_shared(url.clone())?;
        let shared = endpoint.connect().await?;
        let (requests, receiver) = tokio::sync::mpsc::channel(4);
        let create = WatchCreateRequest { key: "quiet".into(), ..Default::default() };
        let request = RequestUnion::CreateRequest(create);
        requests.send(WatchRequest { request_union: Some(request) }).await?;
        let mut watch =
            WatchClient::new(shared.clone()).watch(ReceiverStream::new(receiver)).await?.into_inner();
        let created = watch.message().await?.context("a reply")?;
        assert!(created.created);

        let done = std::sync::Arc::new(AtomicBool::new(false));
        let reads = std::sync::Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let (done, reads, shared) = (done.clone(), reads.clone(), shared.clone());
            readers.spawn(async move {
                let mut kv = KvClient::new(shared).max_decoding_message_size(64 << 20);
                while !done.load(Ordering::Acquire) {
                    let key = "fill/".into();
                    let request = RangeRequest { key, range_end: "fill0".into(), ..Default::default() };
                    kv.range(request).await?;
                    reads.fetch_add(1, Ordering::AcqRel);
                }
                Ok::<_, tonic::Status>(())
            });
        }
        let writer = tokio::spawn({
            let mut kv = KvClient::new(channel(&url)?);
            async move {
                for number in 0..EVENTS {
                    let value = number.to_string().into();
                    kv.put(PutRequest { key: "quiet".into(), value, ..Default::default() }).await?;
                }
                Ok::<_, tonic::Status>(())
            }
        });
        let mut seen = 0;
        while seen < EVENTS {
            let message = tokio::time::timeout(Duration::from_secs(60), watch.message()).await;
            let message = message.with_context(|| format!("starved after {seen} of {EVENTS} events"))??;
            seen += message.context("the stream goes on")?.events.len() as i64;
        }
        done.store(true, Ordering::Release);
        writer.await??;
        while let Some(ended) = readers.join_next().await {
            ended??;
        }
        println!("{} reads beside {seen} events", reads.load(Ordering::Acquire));
        assert!(reads.load(Ordering::Acquire) > 0);
        Ok(())
    })
}
