//! What must never happen again, by the names in the list of regressions, and what clients rely on, one story each.

mod support;

use api::etcdserverpb::WatchCreateRequest;
use bytes::Bytes;
use support::*;
use types::Revision;
use watch::{Census, Request};

const NOPUT: i32 = 0;
const NODELETE: i32 = 1;

fn world() -> World {
    World::new(config(1, 1000, 64))
}

fn said(client: &mut Client) -> Vec<String> {
    briefs(&client.read_all())
}

/// WA01
#[test]
fn progress_after_its_events() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, on("a"));
    world.put("a", "1");
    // The store is a revision ahead of what the hub was told; the client may have read it already.
    let ahead = world.store.write(&[("a", Some("2"))]);
    world.ask(&client, Request::Progress);
    world.settle();
    assert_eq!(said(&mut client), ["created 0 at 1", "0 h2: a@2"], "not before the event of {ahead}");
    world.tell();
    world.settle();
    assert_eq!(said(&mut client), ["0 h3: a@3", "progress -1 at 3"]);
}

/// WA02
#[test]
fn progress_for_watch_without_events() {
    let mut world = world();
    for _ in 0..5 {
        world.put("b", "x");
    }
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { start_revision: 2, progress_notify: true, ..on("a") });
    world.ask(&client, Request::Progress);
    world.settle();
    assert_eq!(said(&mut client), ["created 0 at 6", "progress -1 at 6"]);
    world.put("b", "x");
    world.tick(1100);
    assert_eq!(said(&mut client), ["progress 0 at 7"]);
    world.tick(1100);
    assert_eq!(said(&mut client), ["progress 0 at 7"], "also when nothing happened");
}

#[test]
fn progress_is_not_said_to_who_just_got_events() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { progress_notify: true, ..on("a") });
    world.create(&client, WatchCreateRequest { progress_notify: true, ..on("b") });
    world.create(&client, on("c"));
    world.put("a", "x");
    said(&mut client);
    world.tick(1100);
    assert_eq!(said(&mut client), ["progress 1 at 2"]);
    world.tick(1100);
    assert_eq!(said(&mut client), ["progress 0 at 2", "progress 1 at 2"]);
}

#[test]
fn a_request_for_progress_without_watchers_is_dropped() {
    let mut world = world();
    let mut client = world.open();
    world.ask(&client, Request::Progress);
    world.settle();
    world.create(&client, on("a"));
    world.settle();
    assert_eq!(said(&mut client), ["created 0 at 1"]);
}

/// WA04
#[test]
fn no_loss_under_starvation() {
    let mut world = World::new(config(1, 4, 4));
    let mut client = world.open();
    world.create(&client, range("a", "b"));
    for _ in 0..50 {
        world.put("a", "x");
    }
    world.settle();
    // Nobody read. Everything it had not been given is compacted, and recent history is too short.
    world.compact(51);
    let got = client.read_chunk();
    let last = got.iter().flat_map(|response| &response.events).next_back().expect("some were queued");
    assert_eq!(last.kv.as_ref().expect("a key").mod_revision, 4, "what was queued is delivered");
    world.settle();
    world.put("a", "y");
    world.settle();
    assert_eq!(said(&mut client), ["compacted 0 at 51 header 0"], "told, not skipped");
    assert_eq!(world.gauges.watchers(), 0);
}

/// WA04, WA20: what is compacted in the store is still served if it is remembered.
#[test]
fn compaction_passes_a_watcher_that_recent_history_can_serve() {
    let mut world = World::new(config(1, 100, 4));
    let mut client = world.open();
    world.create(&client, range("a", "b"));
    for _ in 0..20 {
        world.put("a", "x");
    }
    world.compact(21);
    let mut revisions = Vec::new();
    loop {
        world.settle();
        let got = client.read_all();
        if got.is_empty() {
            break;
        }
        let events = got.iter().flat_map(|response| &response.events);
        revisions.extend(events.map(|event| event.kv.as_ref().expect("a key").mod_revision));
    }
    assert_eq!(revisions, (2..=21).collect::<Vec<i64>>());
}

/// WA05, WA06
#[test]
fn delete_kept_for_watch_at_compact_revision() {
    let mut world = World::new(config(1, 1, 64));
    world.put("a", "x");
    world.delete("a");
    world.put("b", "x");
    world.compact(3);
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { start_revision: 3, ..on("a") });
    world.create(&client, WatchCreateRequest { start_revision: 2, ..on("a") });
    world.settle();
    let mut got = said(&mut client);
    got.sort();
    assert_eq!(got, ["0 h4: -a@3", "compacted 1 at 3 header 0", "created 0 at 4", "created 1 at 4"]);
}

/// WA08, and WA07
#[test]
fn future_watch_no_early_progress() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { start_revision: 4, progress_notify: true, ..on("a") });
    world.ask(&client, Request::Progress);
    world.put("a", "2");
    world.put("a", "3");
    world.tick(1100);
    world.settle();
    assert_eq!(said(&mut client), ["created 0 at 1"]);
    world.put("a", "4");
    world.settle();
    assert_eq!(said(&mut client), ["0 h4: a@4", "progress -1 at 4"]);
    // A member that learns of many revisions at once, by a snapshot, does not forget it either.
    world.create(&client, WatchCreateRequest { start_revision: 7, ..on("b") });
    for _ in 5..=8 {
        world.store.write(&[("b", Some("x"))]);
    }
    world.told = 8;
    world.hub.install(Revision(8), Revision(-1));
    world.settle();
    assert_eq!(said(&mut client), ["created 1 at 4", "1 h8: b@7 b@8"]);
}

/// WA09
#[test]
fn start_minus_one_refused() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { start_revision: -1, ..on("a") });
    world.create(&client, on("a"));
    let got = client.read_all();
    assert_eq!(
        briefs(&got),
        ["refused etcdserver: mvcc: required revision has been compacted", "created 0 at 1"],
        "and the stream goes on"
    );
    assert_eq!((got[0].watch_id, got[0].compact_revision), (-1, 0));
}

/// WA10
#[test]
fn start_zero_means_from_now() {
    let mut world = world();
    world.put("a", "1");
    // The store has more than the hub was told: now is where the store is.
    world.store.write(&[("a", Some("2"))]);
    let mut client = world.open();
    world.create(&client, on("a"));
    world.tell();
    world.put("a", "3");
    world.settle();
    assert_eq!(said(&mut client), ["created 0 at 3", "0 h4: a@4"]);
}

/// WA11
#[test]
fn no_duplicates() {
    let mut world = World::new(config(1, 3, 4));
    for _ in 0..30 {
        world.put("a", "x");
    }
    let mut client = world.open();
    for start in [1, 5, 5, 28, 0] {
        world.create(&client, WatchCreateRequest { start_revision: start, ..on("a") });
    }
    let mut seen: [Vec<i64>; 5] = Default::default();
    for round in 0..200 {
        if round % 10 == 0 {
            world.put("a", "y");
        }
        world.settle();
        for response in client.read_chunk() {
            let events = response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision);
            seen[response.watch_id as usize].extend(events);
        }
    }
    let newest = world.store.revision();
    for (seen, start) in seen.iter().zip([2, 5, 5, 28, 32]) {
        assert_eq!(*seen, (start..=newest).collect::<Vec<i64>>());
    }
}

/// WA14
#[test]
fn watch_id_zero_is_a_watch() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, on("a"));
    world.create(&client, on("b"));
    world.ask(&client, Request::Cancel(1));
    world.put("a", "x");
    world.ask(&client, Request::Cancel(0));
    world.put("a", "y");
    let got = said(&mut client);
    assert_eq!(got, ["created 0 at 1", "created 1 at 1", "canceled 1", "0 h2: a@2", "canceled 0"]);
}

#[test]
fn ids_are_given_from_zero_and_taken_as_asked() {
    let mut world = world();
    let mut client = world.open();
    let with_id = |id| WatchCreateRequest { watch_id: id, ..on("a") };
    for id in [1, 0, 0, 1, 7] {
        world.create(&client, with_id(id));
    }
    world.ask(&client, Request::Cancel(1));
    world.ask(&client, Request::Cancel(99));
    world.ask(&client, Request::Cancel(0));
    for id in [0, 1, 0] {
        world.create(&client, with_id(id));
    }
    let duplicate = "refused mvcc: duplicate watch ID provided on the WatchStream";
    let got = said(&mut client);
    assert_eq!(
        got,
        [
            "created 1 at 1",
            "created 0 at 1",
            "created 2 at 1",
            duplicate,
            "created 7 at 1",
            "canceled 1",
            "canceled 0",
            "created 3 at 1",
            "created 1 at 1",
            "created 4 at 1",
        ]
    );
}

/// As etcd: the client has to cancel it, or to leave.
#[test]
fn an_id_cancelled_by_compaction_stays_taken() {
    let mut world = World::new(config(1, 1, 64));
    for _ in 0..5 {
        world.put("a", "x");
    }
    world.compact(5);
    let mut client = world.open();
    world.create(&client, WatchCreateRequest { start_revision: 2, watch_id: 3, ..on("a") });
    world.create(&client, WatchCreateRequest { watch_id: 3, ..on("a") });
    world.ask(&client, Request::Cancel(3));
    world.create(&client, WatchCreateRequest { watch_id: 3, ..on("a") });
    assert_eq!(
        said(&mut client),
        [
            "created 3 at 6",
            "compacted 3 at 5 header 0",
            "refused mvcc: duplicate watch ID provided on the WatchStream",
            "canceled 3",
            "created 3 at 6",
        ]
    );
    assert_eq!(world.gauges.watchers(), 1);
}

#[test]
fn ranges_are_those_of_a_range_request() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, range("b", "b"));
    world.create(&client, range("b", "a"));
    world.create(&client, on(""));
    world.create(&client, range("", "\0"));
    world.create(&client, range("b", "\0"));
    world.put("\0", "x");
    world.put("z", "x");
    let empty = "refused mvcc: watcher range is empty";
    let mut got = said(&mut client);
    got.sort();
    let events = ["0 h2: \0@2", "1 h3: \0@2 z@3", "2 h3: z@3"];
    assert_eq!(got[..3], events);
    assert_eq!(got[3..], ["created 0 at 1", "created 1 at 1", "created 2 at 1", empty, empty]);
}

#[test]
fn what_the_edge_refuses_is_answered_in_order() {
    let mut world = world();
    let mut client = world.open();
    world.create(&client, on("a"));
    world.ask(&client, Request::Refuse("rpc error: code = PermissionDenied".to_owned()));
    world.create(&client, on("a"));
    assert_eq!(
        said(&mut client),
        ["created 0 at 1", "refused rpc error: code = PermissionDenied", "created 1 at 1"]
    );
}

#[test]
fn filters_and_previous_versions_within_one_revision() {
    let mut world = world();
    let mut client = world.open();
    let filtered = |filters: &[i32]| WatchCreateRequest { filters: filters.to_vec(), ..range("a", "d") };
    world.create(&client, filtered(&[NOPUT]));
    world.create(&client, filtered(&[NODELETE]));
    world.create(&client, filtered(&[NOPUT, NODELETE, 9]));
    world.create(&client, WatchCreateRequest { prev_kv: true, ..range("a", "d") });
    world.store.write(&[("a", Some("1")), ("b", Some("2"))]);
    world.tell();
    said(&mut client);
    world.store.write(&[("a", None), ("c", Some("3")), ("b", Some("4")), ("x", Some("5"))]);
    world.tell();
    world.settle();
    let mut got = said(&mut client);
    got.sort();
    assert_eq!(got, ["0 h3: -a@3", "1 h3: c@3 b@3", "3 h3: -a@3(was 1) c@3 b@3(was 2)"]);
}

/// WA16, and WA15, WA17
#[test]
fn gauge_counted_down_once() {
    let mut world = World::new(config(1, 2, 4));
    let client = world.open();
    let stopped = world.open();
    for _ in 0..10 {
        world.put("a", "x");
    }
    // Following, catching up, in the future, and on a stream that nobody reads.
    for start in [0, 2, 99] {
        world.create(&client, WatchCreateRequest { start_revision: start, ..on("a") });
    }
    for _ in 0..3 {
        world.create(&stopped, on("a"));
    }
    for _ in 0..10 {
        world.put("a", "x");
    }
    assert_eq!(world.gauges.watchers(), 6);
    assert!(world.gauges.slow_watchers() > 0 && world.gauges.queued_bytes() > 0);
    let slow = u64::try_from(world.gauges.slow_watchers()).unwrap();
    let census = world.hub.census(0);
    let [all] = &census.ranges[..] else { panic!("one range is watched: {census:?}") };
    assert_eq!((all.watchers, all.slow, census.next), (6, slow, None));
    assert_eq!(all.range, key_range(&on("a")));
    for id in [0, 0, 1, 2] {
        world.ask(&client, Request::Cancel(id));
    }
    assert_eq!(world.gauges.watchers(), 3);
    assert!(world.hub.has_watchers());
    drop((client, stopped));
    assert_eq!(
        (world.gauges.queued_bytes(), world.gauges.pending_events()),
        (0, 0),
        "before the hub hears of it"
    );
    world.ring_bells();
    assert_eq!((world.gauges.watchers(), world.gauges.slow_watchers(), world.gauges.streams()), (0, 0, 0));
    assert!(!world.hub.has_watchers());
    assert_eq!(world.hub.census(0), Census::default());
}

/// WA18, in slices instead of time: one watcher reads a long history; others that begin later are done after two slices of their own.
#[test]
fn streams_do_not_starve_each_other() {
    let mut world = World::new(config(1, 1, 64));
    for i in 0..5000 {
        world.put(if i % 1000 == 999 { "b" } else { "a" }, "x");
    }
    let mut long = world.open();
    world.create(&long, WatchCreateRequest { start_revision: 2, ..range("a", "z") });
    world.hub.work(100, &world.store);
    for _ in 0..3 {
        assert!(world.read_slice());
        world.hub.work(100, &world.store);
        said(&mut long);
        world.ring_bells();
        world.hub.work(100, &world.store);
    }
    let mut short = world.open();
    world.create(&short, WatchCreateRequest { start_revision: 2, ..on("b") });
    let before = world.reads;
    let mut got = Vec::new();
    while got.len() < 5 {
        world.hub.work(100, &world.store);
        world.read_slice();
        world.hub.work(100, &world.store);
        said(&mut long);
        world.ring_bells();
        got.extend(short.read_all().into_iter().flat_map(|response| response.events));
        assert!(world.reads - before <= 4, "it waits behind a long history");
    }
    // And live events do not wait for either.
    world.create(&short, on("live"));
    world.put("live", "x");
    let live = said(&mut short);
    assert!(live.iter().any(|line| line.contains("live@5002")), "{live:?}");
}

/// WA19
#[test]
fn fragments_with_prev_kv() {
    let mut world = world();
    let mut client = world.open();
    let options = |fragment| WatchCreateRequest { prev_kv: true, fragment, ..range("a", "c") };
    world.create(&client, options(true));
    world.create(&client, options(false));
    let long = "0123456789".repeat(7);
    for value in [long.as_str(), "short"] {
        let keys = ["a1", "a2", "a3", "b1", "b2"];
        world.store.write(&keys.map(|key| (key, Some(value))));
        world.tell();
        world.settle();
        let got = client.read_all();
        let (parts, whole): (Vec<_>, Vec<_>) =
            got.into_iter().filter(|response| !response.created).partition(|response| response.watch_id == 0);
        assert_eq!(whole.len(), 1, "not asked for");
        assert!(parts.len() > 1);
        let marks: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        assert!(marks.iter().rev().skip(1).all(|mark| *mark) && !marks[marks.len() - 1], "{marks:?}");
        assert!(parts.iter().all(|part| prost::Message::encoded_len(part) < FRAGMENT_BYTES));
        let events: Vec<_> = parts.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(events, whole[0].events);
    }
}

/// WA20
#[test]
fn lagging_watch_never_skips() {
    let mut world = World::new(config(1, 2, 4));
    let mut client = world.open();
    world.create(&client, on("a"));
    for _ in 0..40 {
        world.put("a", "x");
    }
    // Apply overwhelmed the hub: it is told only where the store is.
    for _ in 0..10 {
        world.store.write(&[("a", Some("y"))]);
    }
    world.told = world.store.revision();
    world.hub.advance(Revision(world.told));
    let mut revisions = Vec::new();
    for _ in 0..100 {
        world.settle();
        let got = client.read_chunk();
        let events = got.iter().flat_map(|response| &response.events);
        revisions.extend(events.map(|event| event.kv.as_ref().expect("a key").mod_revision));
    }
    assert_eq!(revisions, (2..=51).collect::<Vec<i64>>());
    assert_eq!(world.gauges.slow_watchers(), 0);
}

/// A client that does not read costs what its queue may hold, following or catching up.
#[test]
fn a_stopped_client_costs_bounded_memory() {
    let mut world = World::new(config(1, 10, 16));
    let following = world.open();
    world.create(&following, on("a"));
    for _ in 0..1000 {
        world.put("a", "x");
    }
    let behind = world.open();
    for start in 2..10 {
        world.create(&behind, WatchCreateRequest { start_revision: start, ..on("a") });
    }
    for _ in 0..10 {
        world.put("a", "x");
        world.settle();
    }
    let waiting = world.gauges.pending_events();
    assert!((16..=2 * 16 + 9 * 8).contains(&waiting), "{waiting} events wait");
    assert!(world.gauges.queued_bytes() < 60_000, "{} bytes wait", world.gauges.queued_bytes());
    assert_eq!(world.gauges.slow_watchers(), 9);
}

/// A revision with many changes is read with previous versions where history is, not where live events are handed out.
#[test]
fn many_previous_versions_of_one_revision_are_read_as_history() {
    let mut world = world();
    let mut client = world.open();
    let mut other = world.open();
    world.create(&client, WatchCreateRequest { prev_kv: true, ..range("a", "b") });
    world.create(&other, range("a", "b"));
    let keys = ["a1", "a2", "a3", "a4"];
    world.store.write(&keys.map(|key| (key, Some("1"))));
    world.store.write(&keys.map(|key| (key, None)));
    world.tell();
    world.put("a1", "x");
    assert_eq!(other.read_all().len(), 2, "who wants none does not wait");
    assert_eq!(said(&mut client), ["created 0 at 1"]);
    world.settle();
    assert!(world.reads > 0);
    assert_eq!(
        said(&mut client),
        ["0 h4: a1@2 a2@2 a3@2 a4@2", "0 h4: -a1@3(was 1) -a2@3(was 1) -a3@3(was 1) -a4@3(was 1) a1@4"]
    );
}

/// One revision for a thousand watchers of a stream waits once, and each gets the same bytes.
#[test]
fn many_watchers_of_a_stream_share_what_waits() {
    let mut world = world();
    let mut client = world.open();
    for _ in 0..300 {
        world.create(&client, range("a", "b"));
    }
    said(&mut client);
    // The first brings the list of the watchers, which later ones share.
    world.put("a", "x");
    said(&mut client);
    world.put("a", "x");
    let waiting = world.gauges.queued_bytes();
    assert!(waiting < 1000, "{waiting} bytes wait");
    assert_eq!(world.gauges.pending_events(), 300);
    let got = client.read_all();
    assert_eq!(got.len(), 300);
    assert!(got.iter().all(|response| response.events == got[0].events));
    // Several revisions that wait become one response for each watcher.
    for _ in 0..5 {
        world.put("a", "x");
    }
    let got = client.read_all();
    assert_eq!((got.len(), got[299].events.len()), (300, 5));
    assert_eq!(brief(&got[0]), "0 h8: a@4 a@5 a@6 a@7 a@8");
}

/// Watchers at the same revision share one read, whatever streams they belong to; a wide range does not burden a narrow one.
#[test]
fn readers_of_the_same_history_share_it() {
    let mut world = World::new(config(1, 1, 64));
    for _ in 0..20 {
        world.put("a", "x");
        world.put("b", "x");
    }
    let mut clients: Vec<Client> = (0..10).map(|_| world.open()).collect();
    for client in &clients {
        for start in [2, 3, 4] {
            world.create(client, WatchCreateRequest { start_revision: start, ..range("a", "b") });
        }
    }
    world.settle();
    assert_eq!(world.reads, 1, "thirty watchers");
    for client in &mut clients {
        assert_eq!(
            client.read_all().iter().map(|response| response.events.len()).sum::<usize>(),
            20 + 19 + 19
        );
    }
    world.create(&clients[0], WatchCreateRequest { start_revision: 2, ..range("a", "z") });
    world.create(&clients[1], WatchCreateRequest { start_revision: 2, ..on("b") });
    world.settle();
    assert_eq!(world.reads, 3, "the narrow one reads alone");
    let got = clients[1].read_all();
    assert_eq!(got.iter().map(|response| response.events.len()).sum::<usize>(), 20);
}

/// A client that asks and does not read stops itself.
#[test]
fn requests_wait_while_their_answers_are_not_read() {
    use std::task::{Context, Poll, Waker};
    let mut world = world();
    let mut client = world.open();
    let mut cx = Context::from_waker(Waker::noop());
    let mut created = 0;
    while client.queue.poll_admit(&mut cx, 1000).is_ready() {
        created += 1;
        assert!(created < 10_000, "nothing stops it");
        world.hub.request(client.id, Request::Create(on("a")), 1000, world.store.now(), 0);
    }
    let got = client.read_all();
    assert_eq!(got.len(), created);
    assert_eq!(client.queue.poll_admit(&mut cx, 1000), Poll::Ready(Ok(())));
    drop(client.responses);
    assert!(matches!(client.queue.poll_admit(&mut cx, 1000), Poll::Ready(Err(_))));
}

/// A key longer than everything that may wait still comes through, alone.
#[test]
fn a_large_event_is_not_stuck() {
    let mut config = config(1, 10, 64);
    config.queue.bytes = 1000;
    let mut world = World::new(config);
    let mut client = world.open();
    world.create(&client, on("a"));
    said(&mut client);
    let large = "x".repeat(5000);
    for _ in 0..5 {
        world.put("a", &large);
    }
    let mut got = 0;
    for _ in 0..10 {
        world.settle();
        got += client.read_all().len();
    }
    assert_eq!(got, 5);
}

/// The first frame of a stream, byte by byte as it goes onto the wire.
#[test]
fn a_frame_is_a_grpc_message() {
    use std::task::{Context, Poll, Waker};
    let mut world = world();
    let mut client = world.open();
    world.create(&client, on("a"));
    let Poll::Ready(Some(chunk)) = client.responses.poll_next(&mut Context::from_waker(Waker::noop())) else {
        panic!("something waits");
    };
    // Header: cluster 3, member 5, revision 1, term 7; created.
    let body = [0x0a, 8, 0x08, 3, 0x10, 5, 0x18, 1, 0x20, 7, 0x18, 1];
    let mut expected = vec![0, 0, 0, 0, body.len() as u8];
    expected.extend(body);
    assert_eq!(chunk, Bytes::from(expected));
}
