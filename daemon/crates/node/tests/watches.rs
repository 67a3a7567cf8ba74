//! Watches of whole members: the seam at which events begin to be built, many watchers under writers, a snapshot that is installed under
//! an open watch, and the end.

mod support;

use std::future::poll_fn;

use api::{etcdserverpb as pb, etcdserverpb::watch_request::RequestUnion};
use node::{Handle, WatchRequests, WatchResponses};
use support::*;

async fn ask(requests: &WatchRequests, union: RequestUnion) {
    requests.send(pb::WatchRequest { request_union: Some(union) }).await.expect("an open stream");
}

fn create(key: &str, end: &str, from: i64) -> RequestUnion {
    RequestUnion::CreateRequest(pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        start_revision: from,
        prev_kv: true,
        ..Default::default()
    })
}

async fn next(responses: &mut WatchResponses) -> pb::WatchResponse {
    poll_fn(|cx| responses.poll_message(cx)).await.expect("the member runs")
}

/// Revisions of events up to the one named, and the revision at which the watch was created.
async fn revisions_until(responses: &mut WatchResponses, last: i64) -> (i64, Vec<i64>) {
    let (mut created, mut seen) = (0, Vec::new());
    while seen.last().is_none_or(|newest| *newest < last) {
        let response = next(responses).await;
        assert!(!response.canceled, "{response:?}");
        if response.created {
            created = response.header.as_ref().expect("a header").revision;
        }
        seen.extend(response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision));
    }
    (created, seen)
}

async fn lone_member() -> (Cluster, Handle) {
    let cluster = Cluster::start(1);
    cluster.leader().await;
    let handle = cluster.handle(0);
    put(&handle, "first", "x").await.expect("a put");
    (cluster, handle)
}

/// Nobody watches, so no events are built; then somebody does, amid the writes. Nothing may be missing at that seam, wherever it falls.
#[test]
fn no_gap_where_events_begin_to_be_built() {
    block_on(async {
        let (_cluster, handle) = lone_member().await;
        let writer = tokio::spawn({
            let handle = handle.clone();
            async move {
                let mut newest = 0;
                for i in 0..2000 {
                    newest = put(&handle, &format!("k{}", i % 7), "v").await.expect("a put");
                }
                newest
            }
        });
        let mut streams = Vec::new();
        while !writer.is_finished() {
            let (requests, mut responses) = handle.watch();
            // From now on, and from a moment ago.
            ask(&requests, create("k", "l", 0)).await;
            let created = next(&mut responses).await;
            let now = created.header.expect("a header").revision;
            ask(&requests, create("k", "l", now)).await;
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            if streams.len() < 40 && streams.len() % 2 == 0 {
                streams.push((requests, responses, now));
            } else {
                // The last watcher goes and events are not built again.
                drop(responses);
                streams.clear();
            }
        }
        let newest = writer.await.expect("the writer ends");
        let (requests, mut responses) = handle.watch();
        ask(&requests, create("k", "l", 2)).await;
        let (_, all) = revisions_until(&mut responses, newest).await;
        assert_eq!(all.len(), 2000, "the whole history");
        for (_requests, mut responses, now) in streams {
            let mut live = Vec::new();
            let mut past = Vec::new();
            // One that was created after the last write has nothing to wait for.
            while (now < newest && live.last() != Some(&newest)) || past.last() != Some(&newest) {
                let response = next(&mut responses).await;
                let seen = if response.watch_id == 0 { &mut live } else { &mut past };
                seen.extend(
                    response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision),
                );
            }
            let after =
                |from: i64| all.iter().copied().filter(|revision| *revision >= from).collect::<Vec<i64>>();
            assert_eq!(live, after(now + 1), "from now on, created at {now}");
            assert_eq!(past, after(now), "from {now}");
        }
    });
}

/// Nothing was ever told to the hub, and nothing is written any more: history and progress must not wait for that.
#[test]
fn an_idle_member_serves_history_and_progress_at_once() {
    block_on(async {
        let (_cluster, handle) = lone_member().await;
        put(&handle, "a", "1").await.expect("a put");
        let newest = put(&handle, "a", "2").await.expect("a put");
        for from in [1, newest - 1, newest] {
            let (requests, mut responses) = handle.watch();
            ask(&requests, create("a", "", from)).await;
            let (created, seen) = revisions_until(&mut responses, newest).await;
            assert!(created >= newest);
            assert_eq!(seen, (newest.min(from.max(newest - 1))..=newest).collect::<Vec<i64>>());
        }
        for from in [0, 1] {
            let (requests, mut responses) = handle.watch();
            ask(&requests, create("nothing here", "", from)).await;
            assert!(next(&mut responses).await.created);
            ask(&requests, RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
            let progress = next(&mut responses).await;
            assert_eq!((progress.watch_id, progress.header.expect("a header").revision), (-1, newest));
        }
    });
}

#[test]
fn previous_versions_progress_and_metrics_of_a_running_member() {
    block_on(async {
        let (_cluster, handle) = lone_member().await;
        let (requests, mut responses) = handle.watch();
        ask(&requests, create("a", "", 0)).await;
        assert!(next(&mut responses).await.created);
        put(&handle, "a", "1").await.expect("a put");
        let newest = put(&handle, "a", "2").await.expect("a put");
        let mut events = Vec::new();
        while events.len() < 2 {
            events.extend(next(&mut responses).await.events);
        }
        assert_eq!(events[0].prev_kv, None);
        assert_eq!(events[1].prev_kv.as_ref().map(|kv| &kv.value[..]), Some(&b"1"[..]));
        let elsewhere = put(&handle, "b", "x").await.expect("a put");
        assert!(elsewhere > newest);
        ask(&requests, RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        let progress = next(&mut responses).await;
        assert_eq!((progress.watch_id, progress.events.len()), (-1, 0));
        assert!(progress.header.expect("a header").revision >= elsewhere, "it had been acknowledged before");
        let text = handle.metrics_text();
        for line in [
            "etcd_debugging_mvcc_watcher_total 1",
            "etcd_debugging_mvcc_watch_stream_total 1",
            "etcd_debugging_mvcc_slow_watcher_total 0",
            "etcd_debugging_mvcc_events_total 2",
            "etcd_debugging_mvcc_pending_events_total 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
        drop(responses);
        let gone = || handle.metrics_text().contains("etcd_debugging_mvcc_watcher_total 0");
        wait("the watcher to go", gone).await;
        let refused = requests.refuse("no".to_owned()).await;
        assert!(refused.is_err(), "the stream is closed");
    });
}

/// WA13. Clients come, cancel and go from several threads at once while writes, history reads and compactions touch the same watchers.
/// Whoever stays misses nothing, and when all are gone nothing is left.
#[test]
fn watcher_sets_under_one_owner() {
    block_on(async {
        let (_cluster, handle) = lone_member().await;
        let (stayed, mut staying) = handle.watch();
        ask(&stayed, create("k", "l", 0)).await;
        let created = next(&mut staying).await.header.expect("a header").revision;
        let clients = (0u64..4).map(|client| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                block_on(async {
                    for round in 0..200u64 {
                        let (requests, mut responses) = handle.watch();
                        let now = handle.header(0).revision;
                        for id in 0..(client + round) % 5 + 1 {
                            let from = [0, now, now + 3, (now - 20).max(1)][((id + round) % 4) as usize];
                            ask(&requests, create(&format!("k{}", id % 3), "", from)).await;
                        }
                        if round % 3 == 0 {
                            let cancel = pb::WatchCancelRequest { watch_id: (round % 4) as i64 };
                            ask(&requests, RequestUnion::CancelRequest(cancel)).await;
                        }
                        if round % 2 == 0 {
                            assert!(next(&mut responses).await.created);
                        }
                    }
                });
            })
        });
        let clients: Vec<_> = clients.collect();
        let mut newest = 0;
        while clients.iter().any(|client| !client.is_finished()) || newest < created + 200 {
            newest = put(&handle, &format!("k{}", newest % 7), "v").await.expect("a put");
            if newest % 50 == 0 {
                let compact = pb::CompactionRequest { revision: newest - 10, physical: false };
                handle.compact(compact).await.expect("a compaction");
            }
        }
        for client in clients {
            client.join().expect("no client failed");
        }
        let (_, seen) = revisions_until(&mut staying, newest).await;
        assert_eq!(seen, (created + 1..=newest).collect::<Vec<i64>>(), "every revision once, in order");
        drop(staying);
        for gauge in
            ["watcher_total 0", "watch_stream_total 0", "slow_watcher_total 0", "pending_events_total 0"]
        {
            let line = format!("etcd_debugging_mvcc_{gauge}\n");
            wait(gauge, || handle.metrics_text().contains(&line)).await;
        }
    });
}

/// WA03. The watch is open on a member that is cut off and comes back so late that it gets a whole state.
#[test]
fn no_time_travel_after_snapshot() {
    block_on(async {
        let cluster = Cluster::start(3);
        let leader = cluster.leader().await;
        let (late, writer) = ((leader + 1) % 3, cluster.handle(leader));
        let reader = cluster.handle(late);
        put(&writer, "k0", "x").await.expect("a put");
        let start = put(&writer, "k0", "x").await.expect("a put");
        wait("the first writes", || reader.header(0).revision >= start).await;
        let (requests, mut responses) = reader.watch();
        ask(&requests, create("k", "l", 0)).await;
        // The watch begins behind what the member has when it is created: a write before that is not its to tell.
        let created = next(&mut responses).await;
        assert!(created.created, "{created:?}");
        let created = created.header.as_ref().expect("a header").revision;
        let first = put(&writer, "k0", "x").await.expect("a put");
        let (_, mut seen) = revisions_until(&mut responses, first).await;
        cluster.cut_off(late);
        let mut newest = 0;
        for i in 0..1500 {
            newest = put(&writer, &format!("k{}", i % 50), &i.to_string()).await.expect("a put");
        }
        cluster.connect(late);
        let installed = || reader.metrics_text().contains("cairn_snapshots_installed_total 1");
        wait("the snapshot", installed).await;
        newest = put(&writer, "k0", "after").await.expect("a put").max(newest);
        let (_, more) = revisions_until(&mut responses, newest).await;
        seen.extend(more);
        let expected: Vec<i64> = (created + 1..=newest).collect();
        assert_eq!(seen, expected, "every revision once, in order");
    });
}

#[test]
fn streams_end_when_the_member_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let running = boot(directory.path(), &members[0], &members, listener);
    let handle = running.node.handle();
    let (requests, mut responses) = handle.watch();
    block_on(async {
        wait("a leader", || handle.node_status().is_leader).await;
        ask(&requests, create("a", "", 0)).await;
        assert!(next(&mut responses).await.created);
    });
    let reading = std::thread::spawn(move || block_on(poll_fn(|cx| responses.poll_message(cx))));
    running.node.stop();
    assert_eq!(reading.join().expect("no panic"), None);
    assert!(block_on(requests.refuse(String::new())).is_err());
    // Whoever comes too late is told at once.
    let (_requests, mut responses) = handle.watch();
    assert_eq!(block_on(poll_fn(|cx| responses.poll_message(cx))), None);
}
