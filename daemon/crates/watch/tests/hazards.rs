//! What a client can do to a member: requests at the edges of their types, more questions than it reads answers to, lists of watchers
//! that change with every event, compaction right behind what it is still owed.

mod support;

use api::etcdserverpb::WatchCreateRequest;
use bytes::Bytes;
use support::*;
use watch::{Previous, QueueLimits, Request};

fn said(client: &mut Client) -> Vec<String> {
    briefs(&client.read_all())
}

#[test]
fn progress_without_end_is_not_queued_without_end() {
    let mut world = World::new(config(1, 1000, 64));
    let mut client = world.open();
    world.create(&client, on("a"));
    for _ in 0..10_000 {
        world.ask(&client, Request::Progress);
        world.settle();
    }
    let waiting = world.gauges.queued_bytes();
    assert!(waiting < 64 * 1024, "{waiting} bytes of notices wait");
    world.put("b", "x");
    let said = said(&mut client);
    assert_eq!(said[..2], ["created 0 at 1", "progress -1 at 1"]);
    world.ring_bells();
    world.settle();
    assert_eq!(
        briefs(&client.read_all()),
        ["progress -1 at 2"],
        "what was asked last is answered when there is room"
    );
    world.settle();
    assert_eq!(briefs(&client.read_all()), [""; 0], "once");
}

/// Ten thousand watchers are a list of 80 KB; made anew for each event that waits it would be more than the events by far.
#[test]
fn lists_of_watchers_that_change_all_the_time_are_counted() {
    let limits = QueueLimits { items: 4096, bytes: 1024 * 1024, ..QueueLimits::default() };
    let mut world = World::new(watch::HubConfig { queue: limits, ..config(1, 1000, 4096) });
    let mut client = world.open();
    for _ in 0..10_000 {
        world.create(&client, on("a"));
        client.read_all();
    }
    for id in 0..200 {
        world.ask(&client, Request::Cancel(id));
        world.put("a", "x");
    }
    assert!(world.gauges.slow_watchers() > 0, "the queue is full");
    let mut events = 0;
    loop {
        world.settle();
        let got = client.read_all();
        if got.is_empty() {
            break;
        }
        events +=
            got.iter().filter(|said| said.watch_id == 9_999).map(|said| said.events.len()).sum::<usize>();
    }
    assert_eq!(events, 200, "nothing is lost by it");
    assert_eq!((world.gauges.queued_bytes(), world.gauges.slow_watchers()), (0, 0));
}

/// Its many previous versions are read as history is; when compaction comes first, the events are still in memory.
#[test]
fn compaction_right_behind_a_large_revision_ends_no_watch() {
    for read_begun in [false, true] {
        let mut world = World::new(config(1, 1000, 64));
        let mut client = world.open();
        for key in ["a1", "a2", "a3", "a4"] {
            world.put(key, "x");
        }
        world.create(&client, WatchCreateRequest { prev_kv: true, ..range("a", "b") });
        said(&mut client);
        let keys = ["a1", "a2", "a3", "a4"].map(|key| (key, None));
        world.store.write(&keys);
        world.tell();
        world.put("b", "x");
        while world.hub.work(1000, &world.store) {}
        if read_begun {
            world.job = world.hub.next_read();
            assert!(world.job.is_some());
        }
        world.compact(7);
        world.settle();
        assert_eq!(said(&mut client), ["0 h6: -a1@6 -a2@6 -a3@6 -a4@6"], "read begun: {read_begun}");
        world.put("a1", "y");
        world.settle();
        assert_eq!(said(&mut client), ["0 h8: a1@8"]);
    }
}

/// They are read from the store where everybody's events are handed out.
#[test]
fn previous_versions_of_recent_events_are_read_a_few_at_a_time() {
    struct Counting<'a>(&'a Store, std::cell::Cell<usize>);
    impl Previous for Counting<'_> {
        fn previous(&self, key: &[u8], before: types::Revision) -> Option<api::mvccpb::KeyValue> {
            self.1.set(self.1.get() + 1);
            self.0.previous(key, before)
        }
    }
    let mut world = World::new(watch::HubConfig { previous_reads_max: 16, ..config(1, 1000, 4096) });
    let mut client = world.open();
    world.create(&client, on("z"));
    let keys = ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"].map(|key| (key, Some("x")));
    for _ in 0..50 {
        world.store.write(&keys);
        world.tell();
    }
    world.create(&client, WatchCreateRequest { prev_kv: true, start_revision: 3, ..range("a", "b") });
    let mut works = true;
    while works {
        let previous = Counting(&world.store, Default::default());
        works = world.hub.work(20, &previous);
        // The revision that reaches the bound is read whole.
        assert!(previous.1.get() < 20 + keys.len(), "{} reads in one step", previous.1.get());
    }
    let got = client.read_all();
    assert_eq!(got.iter().map(|said| said.events.len()).sum::<usize>(), 49 * keys.len());
}

#[test]
fn requests_at_the_edges_of_their_types() {
    const EDGES: [i64; 9] = [i64::MIN, i64::MIN + 1, -1, 0, 1, 2, 7, i64::MAX - 1, i64::MAX];
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut world = World::new(config(seed, 8, 16));
        let mut clients: Vec<Client> = (0..3).map(|_| world.open()).collect();
        for _ in 0..400 {
            let at = random.below(clients.len() as u64) as usize;
            let edge = |random: &mut Random| EDGES[random.below(EDGES.len() as u64) as usize];
            let key = |random: &mut Random| match random.below(6) {
                0 => Bytes::new(),
                1 => Bytes::from_static(&[0]),
                2 => Bytes::from_static(&[0xff; 3]),
                _ => Bytes::copy_from_slice(&[b'a' + random.below(3) as u8]),
            };
            let request = match random.below(12) {
                0..5 => Some(Request::Create(WatchCreateRequest {
                    key: key(&mut random),
                    range_end: key(&mut random),
                    start_revision: edge(&mut random),
                    watch_id: edge(&mut random),
                    progress_notify: random.one_in(2),
                    prev_kv: random.one_in(2),
                    fragment: random.one_in(2),
                    filters: (0..random.below(3)).map(|_| edge(&mut random) as i32).collect(),
                })),
                5..8 => Some(Request::Cancel(edge(&mut random))),
                8 => Some(Request::Progress),
                _ => None,
            };
            if let Some(request) = request {
                world.ask(&clients[at], request);
            }
            match random.below(24) {
                0..6 => drop(world.put(["a", "b", "c"][random.below(3) as usize], "x")),
                6..8 => {
                    let keys = ["a", "b", "c", "aa"].map(|key| (key, random.one_in(2).then_some("x")));
                    world.store.write(&keys);
                    world.tell();
                }
                8 => {
                    let compacted = world.store.revision() - random.below(4) as i64;
                    if compacted > world.store.compacted {
                        world.compact(compacted);
                    }
                }
                9 => {
                    world.store.write(&[("a", Some("untold"))]);
                    world.told = world.store.revision();
                    world.hub.advance(types::Revision(world.told));
                }
                10 => world.tick(1100),
                11 => {
                    clients[at] = world.open();
                }
                12 => world.hub.install(types::Revision(world.told), types::Revision(world.store.compacted)),
                13..18 => world.settle(),
                _ => {}
            }
            if random.one_in(2) {
                clients[at].read_chunk();
            }
            // Requests are bounded by what is admitted.
            if random.one_in(20) {
                clients.iter_mut().for_each(|client| drop(client.read_all()));
            }
        }
        drop(clients);
        world.settle();
        assert_eq!(world.gauges.streams(), 0, "seed {seed}");
        assert_eq!((world.gauges.watchers(), world.gauges.slow_watchers()), (0, 0), "seed {seed}");
        assert_eq!((world.gauges.queued_bytes(), world.gauges.pending_events()), (0, 0), "seed {seed}");
        assert!(!world.hub.has_watchers(), "seed {seed}");
    }
}
