//! What a leader writes down about who the members are, on whole members: threads, logs, stores and sockets on loopback.

mod support;

use std::net::TcpListener;

use api::etcdserverpb as pb;
use identity::{Boot, Home, Record, Unique};
use node::{Handle, OwnIdentity};
use state_machine::membership::Member;
use support::*;
use types::MemberId;

struct Group {
    directory: tempfile::TempDir,
    members: Vec<Member>,
    nodes: Vec<Option<Running>>,
    listeners: Vec<TcpListener>,
    who: fn(&mut OwnIdentity),
}

impl Group {
    fn start(count: usize) -> Group {
        let mut group = Group::planned(count, |_| ());
        (0..count).for_each(|at| group.boot(at));
        group
    }

    fn planned(count: usize, who: fn(&mut OwnIdentity)) -> Group {
        let directory = tempfile::tempdir().expect("a directory");
        let (members, listeners) = plan(count);
        Group { directory, members, nodes: (0..count).map(|_| None).collect(), listeners, who }
    }

    fn boot(&mut self, at: usize) {
        let listener = self.listeners[at].try_clone().expect("the same port once more");
        let member = &self.members[at];
        let path = self.directory.path().join(&member.name);
        self.nodes[at] = Some(boot_as(&path, member, &self.members, listener, |config, identity| {
            config.strict_reconfig_check = false;
            (self.who)(identity);
        }));
    }

    fn stop(&mut self, at: usize) {
        if let Some(running) = self.nodes[at].take() {
            // A member has a runtime of its own, which does not end inside another one.
            std::thread::spawn(move || running.node.stop()).join().expect("an orderly stop");
        }
    }

    fn handle(&self, at: usize) -> Handle {
        self.nodes[at].as_ref().expect("it runs").node.handle()
    }

    fn running(&self) -> Vec<Handle> {
        self.nodes.iter().flatten().map(|running| running.node.handle()).collect()
    }

    fn id(&self, at: usize) -> MemberId {
        self.members[at].id
    }

    async fn leader(&self) -> usize {
        let leads =
            |at: &usize| self.nodes[*at].as_ref().is_some_and(|it| it.node.handle().node_status().is_leader);
        let leader = || (0..self.nodes.len()).find(leads);
        wait("a leader", || leader().is_some()).await;
        leader().expect("it leads")
    }

    /// Until everybody that runs has this start of this member written down.
    async fn admitted(&self, at: usize, seq: u64) {
        let known =
            |handle: &Handle| handle.known(self.id(at)).record.is_some_and(|record| record.boot.seq == seq);
        wait("the start of a member on all", || self.running().iter().all(known)).await;
    }

    async fn marked(&self, at: usize, index: u64) {
        let known = |handle: &Handle| {
            handle.known(self.id(at)).watermark.is_some_and(|mark| mark.last_index >= index)
        };
        wait("a watermark on all", || self.running().iter().all(known)).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for running in self.nodes.drain(..).flatten() {
                scope.spawn(move || running.node.stop());
            }
        });
    }
}

#[test]
fn all_members_know_the_life_of_the_cluster_and_the_start_of_each() {
    let mut group = Group::start(3);
    block_on(async {
        for at in 0..3 {
            group.admitted(at, 1).await;
        }
        let lives: Vec<_> = group.running().iter().map(|handle| *handle.cluster_uuid().borrow()).collect();
        assert!(lives[0].is_some() && lives.iter().all(|life| *life == lives[0]), "one life: {lives:?}");
        let directory = |at| group.handle(0).known(group.id(at)).record.expect("written down").dir;
        let directories = [0, 1, 2].map(directory);
        assert!(directories[0] != directories[1] && directories[1] != directories[2]);

        let leader = group.leader().await;
        let other = (leader + 1) % 3;
        group.stop(other);
        group.boot(other);
        group.admitted(other, 2).await;
        assert_eq!(group.handle(0).known(group.id(other)).record.expect("still").dir, directories[other]);

        // Whoever leads goes on with it.
        let leader = group.leader().await;
        let (next, restarted) = ((leader + 1) % 3, (leader + 2) % 3);
        let seq = group.handle(0).known(group.id(leader)).record.expect("written down").boot.seq;
        group.stop(leader);
        wait("another leader", || {
            [next, restarted].iter().any(|at| group.handle(*at).node_status().is_leader)
        })
        .await;
        group.boot(leader);
        group.admitted(leader, seq + 1).await;
        let lives: Vec<_> = group.running().iter().map(|handle| *handle.cluster_uuid().borrow()).collect();
        assert!(
            lives[0].is_some() && lives.iter().all(|life| *life == lives[0]),
            "still the same: {lives:?}"
        );
    });
}

/// Until it is answered; a start may take longer than a request waits.
async fn put_at_last(handle: Handle, key: &'static str) {
    while put(&handle, key, "1").await.is_err() {}
}

#[test]
fn a_first_write_waits_until_the_life_of_the_cluster_is_where_it_lasts() {
    for count in [1, 3] {
        let mut group = Group::planned(count, |identity| identity.keeps_life = true);
        (0..count).for_each(|at| group.boot(at));
        block_on(async {
            let early: Vec<_> =
                group.running().into_iter().map(|it| tokio::spawn(put_at_last(it, "early"))).collect();
            wait("the life on all", || {
                group.running().iter().all(|handle| handle.cluster_uuid().borrow().is_some())
            })
            .await;
            for handle in group.running() {
                while get(&handle, "early").await.map(|found| assert_eq!(found, None)).is_err() {}
            }
            assert!(early.iter().all(|write| !write.is_finished()), "written down, and in no identity file");
            for (at, write) in early.into_iter().enumerate() {
                assert!(!write.is_finished(), "each member asks its own file");
                group.handle(at).life_is_kept();
                write.await.expect("answered");
            }
        });
    }
}

#[test]
fn who_is_answered_first_finds_the_life_written_down() {
    let mut group = Group::planned(3, |_| ());
    (0..3).for_each(|at| group.boot(at));
    block_on(async {
        let early = group.running().into_iter().map(|handle| {
            tokio::spawn(async move {
                put_at_last(handle.clone(), "early").await;
                assert!(handle.cluster_uuid().borrow().is_some());
            })
        });
        for write in early.collect::<Vec<_>>() {
            write.await.expect("answered, and not before");
        }
    });
}

/// Whose log was an etcd's, or whose founders are gone: nobody may begin a life while somebody is away who may know of one.
#[test]
fn where_nobody_begins_a_life_nobody_waits_for_one() {
    let mut group = Group::planned(3, |identity| identity.config = None);
    (0..2).for_each(|at| group.boot(at));
    block_on(async {
        for handle in group.running() {
            put_at_last(handle.clone(), "a").await;
            assert_eq!(*handle.cluster_uuid().borrow(), None);
        }
    });
}

#[test]
fn watermarks_follow_what_every_member_holds_and_a_hand_over_brings_them_up_to_date() {
    let group = Group::start(3);
    block_on(async {
        let leader = group.leader().await;
        put(&group.handle(leader), "a", "1").await.expect("a write");
        let written = group.handle(leader).node_status().applied.0;
        for at in 0..3 {
            group.marked(at, written).await;
        }
        let mark = group.handle(0).known(group.id(1)).watermark.expect("a mark");
        assert!(
            mark.last_index < group.handle(0).node_status().committed.0,
            "it is below the entry that tells it"
        );

        let leader = group.leader().await;
        put(&group.handle(leader), "a", "2").await.expect("a write");
        let written = group.handle(leader).node_status().applied.0;
        let target = group.id((leader + 1) % 3);
        let request = pb::MoveLeaderRequest { target_id: target.0 };
        // An election in between is nobody's fault.
        let _ = group.handle(leader).move_leader(request).await;
        for at in 0..3 {
            group.marked(at, written).await;
        }
    });
}

#[test]
fn a_change_of_membership_never_fails_because_something_is_being_written_down() {
    let group = Group::start(3);
    block_on(async {
        for at in 0..3 {
            group.admitted(at, 1).await;
        }
        let leader = group.leader().await;
        // A member that never runs, so that nobody minds what is written of it.
        let url = vec!["http://127.0.0.1:9".to_owned()];
        let added =
            group.handle(leader).member_add(pb::MemberAddRequest { peer_ur_ls: url, is_learner: true }).await;
        let idle = MemberId(added.expect("added").member.expect("the member").id);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let notes = async {
            let mut seq = 0;
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                seq += 1;
                let boot = Boot { seq, nonce: Unique::for_test(seq.into()), previous: None };
                let dir = Unique::for_test(1);
                let record = Record { dir, boot, home: Home::default(), version: String::new() };
                group.running().iter().for_each(|handle| handle.admitted(idle, record.clone()));
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let changes = async {
            for round in 0..12 {
                let handle = group.handle((leader + round) % 3);
                let urls = vec![format!("http://127.0.0.1:{}", 10 + round)];
                let update = pb::MemberUpdateRequest { id: idle.0, peer_ur_ls: urls };
                handle.member_update(update).await.expect("no client's change fails");
            }
            stop.store(true, std::sync::atomic::Ordering::Release);
        };
        tokio::join!(notes, changes);
        let urls = group.handle(leader).reader().member(idle).expect("it is there").peer_urls;
        assert_eq!(urls, ["http://127.0.0.1:21"]);
        let record = group.handle(leader).known(idle).record.expect("written down meanwhile");
        assert!(record.boot.seq > 1, "notes were written all the time: {}", record.boot.seq);
    });
}
