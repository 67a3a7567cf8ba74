//! Changes of membership on whole members: threads, logs, stores and sockets on loopback.

mod support;

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{error::EtcdError, etcdserverpb as pb};
use node::{Handle, Node, NodeConfig, Parts};
use state_machine::membership::{Member, cluster_id};
use storage::wal::{Wal, WalMetadata};
use support::*;
use types::MemberId;

/// Started members of one cluster, by name of their directory.
struct Group {
    directory: tempfile::TempDir,
    founders: Vec<Member>,
    nodes: Vec<(Running, TcpListener)>,
}

/// Connections count at once, since a test does not wait for them to be five seconds old.
fn at_once(config: &mut NodeConfig) {
    config.strict_reconfig_check = false;
}

impl Group {
    fn found(count: usize, adjust: impl Fn(&mut NodeConfig)) -> Group {
        let directory = tempfile::tempdir().expect("a directory");
        let (founders, listeners) = plan(count);
        let start = |(member, listener): (&Member, TcpListener)| {
            let again = listener.try_clone().expect("the same port once more");
            let path = directory.path().join(&member.name);
            (boot_with(&path, member, &founders, listener, &adjust), again)
        };
        let nodes = founders.iter().zip(listeners).map(start).collect();
        Group { directory, founders, nodes }
    }

    fn handle(&self, at: usize) -> Handle {
        self.nodes[at].0.node.handle()
    }

    fn id(&self, at: usize) -> MemberId {
        self.nodes[at].0.member.id
    }

    async fn leader(&self) -> usize {
        let leader = || (0..self.nodes.len()).find(|at| self.handle(*at).node_status().is_leader);
        wait("a leader", || leader().is_some()).await;
        leader().expect("it leads")
    }

    async fn all_named(&self) {
        for at in 0..self.nodes.len() {
            let handle = self.handle(at);
            let named = || handle.members().iter().filter(|member| !member.name.is_empty()).count();
            wait("all names", || named() == self.nodes.len()).await;
        }
    }

    /// Starts a member that the cluster has been told of: an empty log, and the others as peers that it may answer.
    fn join(&mut self, member: Member, name: &str, listener: TcpListener) -> usize {
        let again = listener.try_clone().expect("the same port once more");
        let member = Member { name: name.to_owned(), ..member };
        let node = start_joined(&self.directory.path().join(name), &member, &self.founders, listener);
        self.nodes.push((Running { member, node }, again));
        self.nodes.len() - 1
    }

    /// Stops it and starts it again from what is on disk.
    fn restart(&mut self, at: usize, adjust: impl Fn(&mut NodeConfig)) {
        self.restart_with(at, adjust, |_| ());
    }

    /// As [`Group::restart`], with something done to its directory between.
    fn restart_with(&mut self, at: usize, adjust: impl Fn(&mut NodeConfig), change: impl FnOnce(&Path)) {
        let (running, listener) = self.nodes.remove(at);
        let Running { member, node } = running;
        stop_apart(node);
        let again = listener.try_clone().expect("the same port once more");
        let path = self.directory.path().join(&member.name);
        change(&path);
        let running = boot_with(&path, &member, &self.founders, listener, adjust);
        self.nodes.insert(at, (running, again));
    }

    fn stop(&mut self, at: usize) -> Member {
        let (running, _) = self.nodes.remove(at);
        stop_apart(running.node);
        running.member
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for (running, _) in self.nodes.drain(..) {
                scope.spawn(move || running.node.stop());
            }
        });
    }
}

/// A member has a runtime of its own, which does not end inside another one.
fn stop_apart(node: Node) {
    std::thread::spawn(move || node.stop()).join().expect("an orderly stop");
}

fn start_joined(directory: &Path, member: &Member, founders: &[Member], listener: TcpListener) -> Node {
    let mut config = config(directory, member, founders);
    at_once(&mut config);
    let ids: Vec<MemberId> = founders.iter().map(|member| member.id).collect();
    assert_eq!(config.cluster, cluster_id(&ids));
    std::fs::create_dir_all(directory).expect("the member's directory");
    let wal_dir = directory.join("wal");
    let metadata = WalMetadata { member_id: member.id, cluster_id: config.cluster, dir_uuid: None };
    drop(Wal::create(&wal_dir, &metadata, wal_options()).expect("create the log"));
    let (wal, contents) = Wal::open(&wal_dir, wal_options()).expect("open the log");
    let remotes = founders
        .iter()
        .map(|member| node::Remote { id: member.id, peer_urls: member.peer_urls.clone() })
        .collect();
    let identity = own_identity(&wal_dir, founders);
    let boot = identity.record.boot.nonce.low_u64();
    let parts = Parts { wal, contents, peer_listeners: vec![listener], boot, identity, remotes };
    Node::start(config, parts).expect("start the member")
}

fn free_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

async fn add(handle: &Handle, url: &str, is_learner: bool) -> Result<Member, EtcdError> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    let response = handle.member_add(request).await?;
    let header = response.header.expect("a header");
    assert_eq!((header.revision, header.member_id), (0, handle.node_status().member.0), "as etcd's");
    let member = response.member.expect("the new member");
    assert!(response.members.contains(&member), "the list has it");
    Ok(Member {
        id: MemberId(member.id),
        peer_urls: member.peer_ur_ls,
        is_learner: member.is_learner,
        ..Member::default()
    })
}

async fn promote(handle: &Handle, id: MemberId) -> Result<Vec<pb::Member>, EtcdError> {
    let answer = handle.member_promote(pb::MemberPromoteRequest { id: id.0 }).await;
    answer.map(|response| response.members)
}

async fn remove(handle: &Handle, id: MemberId) -> Result<Vec<pb::Member>, EtcdError> {
    let answer = handle.member_remove(pb::MemberRemoveRequest { id: id.0 }).await;
    answer.map(|response| response.members)
}

async fn update(handle: &Handle, id: MemberId, url: &str) -> Result<Vec<pb::Member>, EtcdError> {
    let request = pb::MemberUpdateRequest { id: id.0, peer_ur_ls: vec![url.to_owned()] };
    handle.member_update(request).await.map(|response| response.members)
}

async fn promote_when_ready(handle: &Handle, id: MemberId) -> Vec<pb::Member> {
    loop {
        match promote(handle, id).await {
            Ok(members) => return members,
            Err(EtcdError::LearnerNotReady) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("the learner is promoted once it has caught up: {error}"),
        }
    }
}

/// A write of "x" during which a leader may go; it may be done twice.
async fn put_over_elections(handle: &Handle, key: &str) {
    use EtcdError::{NoLeader, Timeout, TimeoutDueToLeaderFail};
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match put(handle, key, "x").await {
            Ok(_) => return,
            Err(NoLeader | Timeout | TimeoutDueToLeaderFail) if tokio::time::Instant::now() < deadline => {}
            Err(error) => panic!("{key} is written once there is a leader: {error}"),
        }
    }
}

/// ME01 promotion_persisted_everywhere: the table, raft's configuration and the member itself agree, also after a restart of all.
#[test]
fn promotion_persisted_everywhere() {
    let mut group = Group::found(1, at_once);
    block_on(async {
        let first = group.handle(0);
        for i in 0..50 {
            put_over_elections(&first, &format!("k{i}")).await;
        }
        let (listener, url) = free_port();
        let learner = add(&first, &url, true).await.expect("a learner");
        assert_eq!(promote(&first, learner.id).await, Err(EtcdError::LearnerNotReady), "it never started");
        let id = learner.id;
        let at = group.join(learner, "joined", listener);
        let second = group.handle(at);
        wait("the learner to catch up", || second.node_status().applied >= first.node_status().applied).await;
        assert!(second.node_status().is_learner);
        assert_eq!(put(&second, "x", "1").await, Err(EtcdError::NotSupportedForLearner));
        assert_eq!(remove(&second, id).await, Err(EtcdError::NotSupportedForLearner));
        let members = promote_when_ready(&first, id).await;
        assert!(members.iter().all(|member| !member.is_learner));
        wait("the promotion there", || !second.node_status().is_learner).await;
        put_over_elections(&second, "x").await;
        assert_eq!(promote(&second, id).await, Err(EtcdError::MemberNotLearner), "asked of a follower");
        drop((first, second));
        group.restart(1, at_once);
        group.restart(0, at_once);
        for at in 0..2 {
            let handle = group.handle(at);
            let known = handle.members().into_iter().find(|member| member.id == id).expect("it is there");
            assert!(!known.is_learner && !known.name.is_empty(), "{known:?}");
            assert_eq!(handle.reader().conf_state().learners, []);
            assert!(handle.reader().conf_state().voters.contains(&id));
            // Both of them are needed for it.
            put_over_elections(&handle, "after").await;
        }
    });
}

/// ME02 no_zombies: an id that was removed is refused for ever, and nothing that is started again brings it back.
#[test]
fn no_zombies() {
    let mut group = Group::found(3, at_once);
    block_on(async {
        group.all_named().await;
        let leader = group.leader().await;
        let gone = (leader + 1) % 3;
        let (other, id) = (group.handle((leader + 2) % 3), group.id(gone));
        let removed = group.handle(gone);
        let mut told = removed.removal();
        let members = remove(&other, id).await.expect("removed, asked of a follower");
        assert_eq!(members.len(), 2);
        assert!(members.iter().all(|member| member.id != id.0));
        let removal = tokio::time::timeout(Duration::from_secs(30), told.wait_for(Option::is_some))
            .await
            .expect("the removed member hears of it")
            .expect("it runs")
            .clone()
            .expect("what was waited for");
        let through = removal.asked_through.expect("the entry says through whom");
        assert_eq!(through.id, other.node_status().member);
        assert_eq!(remove(&other, id).await, Err(EtcdError::MemberNotFound), "once");
        assert_eq!(update(&other, id, "http://127.0.0.1:9").await, Err(EtcdError::MemberNotFound));
        assert_eq!(promote(&other, id).await, Err(EtcdError::MemberNotFound));
        drop((removed, other, told));

        // Its own directory knows, whoever starts it; and the others do not take it back.
        group.restart(gone, at_once);
        let again = group.handle(gone).removal();
        assert!(again.borrow().is_some(), "known from the first moment");
        let member = group.stop(gone);
        assert_eq!(member.id, id);
        for at in 0..2 {
            group.restart(at, at_once);
        }
        for at in 0..2 {
            let handle = group.handle(at);
            put_over_elections(&handle, "k").await;
            assert!(handle.reader().is_removed(id) && handle.members().len() == 2);
        }
    });
}

/// ME04 unstarted_learner_not_promoted, and the other refusals, each with etcd's words.
#[test]
fn unstarted_learner_not_promoted() {
    let group = Group::found(1, |_| ());
    block_on(async {
        let handle = group.handle(0);
        group.all_named().await;
        let (_kept, url) = free_port();
        let learner = add(&handle, &url, true).await.expect("a learner");
        let mine = group.founders[0].peer_urls[0].clone();
        assert_eq!(promote(&handle, learner.id).await, Err(EtcdError::LearnerNotReady));
        assert_eq!(
            add(&handle, &mine, true).await,
            Err(EtcdError::PeerUrlExist),
            "before learners are counted"
        );
        assert_eq!(add(&handle, "http://127.0.0.1:9", true).await, Err(EtcdError::TooManyLearners));
        for bad in ["", "127.0.0.1:9", "http://127.0.0.1", "http://127.0.0.1:9/x", "ftp://127.0.0.1:9"] {
            assert_eq!(add(&handle, bad, true).await, Err(EtcdError::MemberBadUrls), "{bad}");
            assert_eq!(update(&handle, learner.id, bad).await, Err(EtcdError::MemberBadUrls), "{bad}");
        }
        let me = group.id(0);
        assert_eq!(update(&handle, learner.id, &mine).await, Err(EtcdError::PeerUrlExist));
        assert_eq!(promote(&handle, me).await, Err(EtcdError::MemberNotLearner));
        assert_eq!(promote(&handle, MemberId(77)).await, Err(EtcdError::MemberNotFound));
        assert_eq!(update(&handle, MemberId(77), "http://127.0.0.1:9").await, Err(EtcdError::MemberNotFound));
        assert_eq!(remove(&handle, me).await, Err(EtcdError::MemberNotEnoughStarted), "the only voter");
        assert_eq!(remove(&handle, learner.id).await.expect("a learner goes").len(), 1);
    });
}

/// ME05 promotion_respects_quorum: with a voter that never came, one more that might not come is refused.
#[test]
fn adding_beside_a_voter_that_never_came_is_refused() {
    let group = Group::found(1, |_| ());
    block_on(async {
        let handle = group.handle(0);
        group.all_named().await;
        let (_kept, url) = free_port();
        // From one voter to two: allowed, and from then on the only started member has no quorum.
        let absent = add(&handle, &url, false).await.expect("from one to two");
        let next = add(&handle, "http://127.0.0.1:9", false).await;
        assert_eq!(next, Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(remove(&handle, group.id(0)).await, Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(handle.reader().conf_state().voters.len(), 2);
        assert!(handle.reader().conf_state().voters.contains(&absent.id));
    });
}

/// ME06.
#[test]
fn member_update_keeps_learner() {
    let group = Group::found(1, at_once);
    block_on(async {
        let handle = group.handle(0);
        let (_kept, url) = free_port();
        let learner = add(&handle, &url, true).await.expect("a learner");
        let members = update(&handle, learner.id, "http://127.0.0.1:9").await.expect("other URLs");
        let now = members.iter().find(|member| member.id == learner.id.0).expect("it is there");
        assert!(now.is_learner, "{now:?}");
        assert_eq!(now.peer_ur_ls, ["http://127.0.0.1:9"]);
        assert_eq!(handle.reader().conf_state().learners, [learner.id]);
    });
}

/// ME07, and a dead member is replaced: removed while it is down, and another one added.
#[test]
fn add_with_one_down() {
    let mut group = Group::found(3, |_| ());
    block_on(async {
        group.all_named().await;
        let leader = group.leader().await;
        let dead = group.stop((leader + 1) % 3);
        let handle = group.handle(0);
        let (listener, url) = free_port();
        // Refused until the connections of the others are old enough.
        let learner = loop {
            match add(&handle, &url, true).await {
                Ok(member) => break member,
                Err(EtcdError::Unhealthy | EtcdError::MemberNotEnoughStarted) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("a member is added while one of three is down: {error}"),
            }
        };
        let id = learner.id;
        let at = group.join(learner, "joined", listener);
        promote_when_ready(&handle, id).await;
        assert_eq!(remove(&handle, dead.id).await.expect("the dead one goes").len(), 3);
        put_over_elections(&group.handle(at), "k").await;
    });
}

/// The leader is asked, itself or through a follower, to go: another one leads before it goes, and nothing acknowledged is lost.
#[test]
fn a_leader_that_is_removed_hands_over() {
    let mut group = Group::found(3, at_once);
    block_on(async {
        group.all_named().await;
        for left in [3, 2] {
            let leader = group.leader().await;
            let handle = group.handle(leader);
            put_over_elections(&handle, "before").await;
            let led = handle.node_status().term;
            let asked = if left == 3 { leader } else { (leader + 1) % left };
            // Entries behind its removal would be known to nobody but the one that goes.
            let written = Arc::new(Mutex::new(BTreeSet::new()));
            let writers: Vec<_> =
                (0..left).map(|at| tokio::spawn(write_on(group.handle(at), written.clone()))).collect();
            let members = remove(&group.handle(asked), group.id(leader)).await.expect("removed");
            assert_eq!(members.len(), left - 1);
            wait("it to know", || handle.removal().borrow().is_some()).await;
            let removal = handle.removal().borrow().clone().expect("it knows");
            assert!(removal.position.term > led, "its successor removed it: {removal:?}, it led in {led}");
            drop(handle);
            group.stop(leader);
            let acknowledged = || written.lock().expect("no writer panicked").len();
            let before = acknowledged();
            wait("writes behind the removal", || acknowledged() > before + 10).await;
            writers.iter().for_each(tokio::task::JoinHandle::abort);
            let written = written.lock().expect("no writer panicked").clone();
            for at in 0..group.nodes.len() {
                assert_eq!(get(&group.handle(at), "before").await, Ok(Some("x".to_owned())));
                for key in &written {
                    assert_eq!(get(&group.handle(at), key).await, Ok(Some("x".to_owned())), "{key}");
                }
            }
        }
        put_over_elections(&group.handle(0), "alone").await;
    });
}

/// Writes one key after the other, and remembers those that were acknowledged.
async fn write_on(handle: Handle, written: Arc<Mutex<BTreeSet<String>>>) {
    let me = handle.node_status().member;
    for number in 0.. {
        let key = format!("from {me} {number}");
        match put(&handle, &key, "x").await {
            Ok(_) => drop(written.lock().expect("no writer panicked").insert(key)),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Whom nobody talks to any more: told by a majority of its voters, or by the only one.
#[test]
fn a_member_that_was_removed_while_it_was_down_learns_it() {
    let mut group = Group::found(3, at_once);
    block_on(async {
        group.all_named().await;
        let leader = group.leader().await;
        let gone = (leader + 1) % 3;
        let member = group.nodes[gone].0.member.clone();
        let (running, listener) = group.nodes.remove(gone);
        stop_apart(running.node);
        let handle = group.handle(0);
        assert_eq!(remove(&handle, member.id).await.expect("the dead one goes").len(), 2);
        for at in 0..2 {
            let handle = group.handle(at);
            wait("the others to know", || handle.reader().is_removed(member.id)).await;
        }
        drop(handle);
        // Who was started since has no line to it: as a rule the peers tell it and not its log, but either will do.
        group.restart(0, at_once);
        group.restart(1, at_once);
        let path = group.directory.path().join(&member.name);
        let back = boot_with(&path, &member, &group.founders, listener, at_once);
        let removal = back.node.handle().removal();
        wait("it to be told", || removal.borrow().is_some()).await;
        tokio::time::timeout(Duration::from_secs(60), back.node.handle().removal_is_known())
            .await
            .expect("those who stay show that they know");
        stop_apart(back.node);
    });
}

/// Nobody whom it knew is there any more. Who has the address of one of them now, leads, and is of the same life, is believed.
#[test]
fn a_member_that_was_removed_before_all_others_were_replaced_learns_it() {
    let mut group = Group::found(3, at_once);
    block_on(async {
        group.all_named().await;
        let all: Vec<Handle> = (0..3).map(|at| group.handle(at)).collect();
        wait("the life on all", || all.iter().all(|handle| handle.cluster_uuid().borrow().is_some())).await;
        drop(all);
        let (_, gone_port) = &group.nodes[2];
        let gone_port = gone_port.try_clone().expect("the same port once more");
        let gone = group.stop(2);
        let first = group.handle(0);
        remove(&first, gone.id).await.expect("it is down and removed");
        let (leaves, port) = (group.id(1), group.nodes[1].1.try_clone().expect("the same port once more"));
        remove(&first, leaves).await.expect("the second goes too");
        group.stop(1);
        let url = group.founders[1].peer_urls[0].clone();
        let member = add(&first, &url, true).await.expect("another at its address");
        let id = member.id;
        let at = group.join(member, "new", port);
        promote_when_ready(&first, id).await;
        let new = group.handle(at);
        // The last one that the removed member knew; it leads, and hands over.
        let last = group.id(0);
        while remove(&new, last).await.is_err() && new.reader().member(last).is_some() {}
        wait("the new one to lead alone", || {
            new.node_status().is_leader && new.reader().conf_state().voters == [id]
        })
        .await;
        drop((first, new));
        group.stop(0);

        let path = group.directory.path().join(&gone.name);
        let back = boot_with(&path, &gone, &group.founders, gone_port, at_once);
        let removal = back.node.handle().removal();
        wait("it to be told", || removal.borrow().is_some()).await;
        assert!(removal.borrow().clone().expect("it is told").is_entry);
        stop_apart(back.node);
    });
}

/// ME01 and ME02 once more: a store that lost what was not durable is fed by the log, and promotion and removal are there again.
#[test]
fn promotion_and_removal_are_not_undone_by_an_old_state() {
    let mut group = Group::found(1, at_once);
    block_on(async {
        let first = group.handle(0);
        group.all_named().await;
        put_over_elections(&first, "k").await;
        let (listener, url) = free_port();
        let learner = add(&first, &url, true).await.expect("a learner");
        let id = learner.id;
        let at = group.join(learner, "joined", listener);
        let second = group.handle(at);
        wait("the learner to catch up", || second.node_status().applied >= first.node_status().applied).await;
        drop(second);
        let old = group.directory.path().join("old state");
        group.restart_with(at, at_once, |path| copy(&path.join("state"), &old));
        promote_when_ready(&first, id).await;
        let gone = add(&first, "http://127.0.0.1:9", true).await.expect("a second learner").id;
        remove(&first, gone).await.expect("which goes again");
        let second = group.handle(at);
        wait("it to be applied there", || second.reader().is_removed(gone)).await;
        drop(second);
        group.restart_with(at, at_once, |path| {
            std::fs::remove_dir_all(path.join("state")).expect("the newer state is lost");
            copy(&old, &path.join("state"));
        });
        let second = group.handle(at);
        wait("the promotion to be there again", || !second.node_status().is_learner).await;
        wait("the removal to be there again", || second.reader().is_removed(gone)).await;
        let reader = second.reader();
        assert_eq!(reader.conf_state(), first.reader().conf_state());
        assert_eq!(reader.members(), first.reader().members());
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// A learner answers reads that ask for no more than what it has, and nothing else.
#[test]
fn a_learner_serves_only_what_it_has() {
    let mut group = Group::found(1, at_once);
    block_on(async {
        let first = group.handle(0);
        group.all_named().await;
        put_over_elections(&first, "k").await;
        let (listener, url) = free_port();
        let member = add(&first, &url, true).await.expect("a learner");
        let at = group.join(member, "joined", listener);
        let learner = group.handle(at);
        wait("the learner to catch up", || learner.node_status().applied >= first.node_status().applied)
            .await;
        wait("it to know that it learns", || learner.node_status().is_learner).await;
        let refused = Err(EtcdError::NotSupportedForLearner);
        let range = |serializable| pb::RangeRequest { key: "k".into(), serializable, ..Default::default() };
        // Until its peers have greeted it, it answers nobody.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let read = loop {
            match learner.range(range(true)).await {
                Err(EtcdError::NoLeader) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => break other,
            }
        };
        assert_eq!(read.expect("a serializable read").count, 1);
        assert_eq!(learner.range(range(false)).await.map(drop), refused);
        assert_eq!(put(&learner, "k", "w").await.map(drop), refused);
        assert_eq!(learner.delete_range(pb::DeleteRangeRequest::default()).await.map(drop), refused);
        assert_eq!(learner.txn(pb::TxnRequest::default()).await.map(drop), refused);
        assert_eq!(learner.compact(pb::CompactionRequest::default()).await.map(drop), refused);
        assert_eq!(learner.lease_grant(pb::LeaseGrantRequest::default()).await.map(drop), refused);
        assert_eq!(learner.lease_leases().await.map(drop), refused);
        assert_eq!(learner.alarm(pb::AlarmRequest::default()).await.map(drop), refused);
        assert_eq!(add(&learner, "http://127.0.0.1:9", true).await.map(drop), refused);
        assert_eq!(promote(&learner, group.id(0)).await.map(drop), refused);
        assert_eq!(update(&learner, group.id(0), "http://127.0.0.1:9").await.map(drop), refused);
        let list = |linearizable| pb::MemberListRequest { linearizable };
        assert_eq!(learner.member_list(list(true)).await.map(drop), refused);
        let own = learner.member_list(list(false)).await.expect("what it knows").members;
        assert_eq!(own.len(), 2);
        assert!(learner.status().await.expect("a status").is_learner);
    });
}

/// A member that is cut off lists what it knows, or, asked for what is true, nothing until it hears the others again.
#[test]
fn members_are_listed_as_they_are_or_as_they_are_known_here() {
    let cluster = Cluster::start_with(3, at_once);
    block_on(async {
        let leader = cluster.leader().await;
        let away = (leader + 1) % 3;
        let (far, near) = (cluster.handle(away), cluster.handle((leader + 2) % 3));
        for handle in [&far, &near] {
            let named = || handle.members().iter().all(|member| !member.name.is_empty());
            wait("all names", named).await;
        }
        cluster.cut_off(away);
        let (_kept, url) = free_port();
        let added = add(&near, &url, true).await.expect("two of three are enough").id;
        let list = |linearizable| pb::MemberListRequest { linearizable };
        let known = far.member_list(list(false)).await.expect("what it knows").members;
        assert!(known.len() == 3 && known.iter().all(|member| member.id != added.0), "{known:?}");
        assert!(far.member_list(list(true)).await.is_err(), "it cannot know");
        cluster.connect(away);
        let members = loop {
            // An election may be under way.
            match far.member_list(list(true)).await {
                Ok(answer) => break answer.members,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert!(members.len() == 4 && members.iter().any(|member| member.id == added.0), "{members:?}");
    });
}

/// One change at a time: all that were asked for at once happen, one after another, or are refused for a reason of their own.
#[test]
fn changes_asked_for_at_once_happen_one_after_another() {
    let group = Group::found(1, |config| {
        at_once(config);
        config.max_learners = 8;
    });
    block_on(async {
        let handle = group.handle(0);
        let mut asked = tokio::task::JoinSet::new();
        for port in 1..=8 {
            let handle = handle.clone();
            asked.spawn(async move { add(&handle, &format!("http://127.0.0.1:{port}"), true).await });
        }
        while let Some(added) = asked.join_next().await {
            added.expect("no panic").expect("each is added");
        }
        assert_eq!(handle.reader().conf_state().learners.len(), 8);
        let ninth = add(&handle, "http://127.0.0.1:9", true).await;
        assert_eq!(ninth, Err(EtcdError::TooManyLearners));
    });
}

#[test]
fn a_learner_that_keeps_up_is_promoted_by_itself_when_that_is_wanted() {
    let mut group = Group::found(1, |config| {
        at_once(config);
        config.auto_promote_learner = true;
    });
    block_on(async {
        let handle = group.handle(0);
        let (listener, url) = free_port();
        let learner = add(&handle, &url, true).await.expect("a learner");
        let id = learner.id;
        let at = group.join(learner, "joined", listener);
        let second = group.handle(at);
        wait("the promotion", || second.reader().conf_state().voters.contains(&id)).await;
        put_over_elections(&second, "k").await;
    });
}

/// A follower may have applied a change before the leader has; the next one, passed on by another follower, then meets one that is pending.
#[test]
fn changes_that_followers_pass_on_at_once_are_all_made() {
    block_on(async {
        let cluster = Cluster::start_with(3, at_once);
        let leader = cluster.leader().await;
        let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
        let (one, two) = (cluster.handle(first), cluster.handle(second));
        put_over_elections(&one, "k").await;
        put_over_elections(&two, "k").await;
        let ask = |at: usize| pb::MemberUpdateRequest {
            id: cluster.member(at).id.0,
            peer_ur_ls: cluster.member(at).peer_urls.clone(),
        };
        for round in 0..20 {
            let both = async { tokio::join!(one.member_update(ask(first)), two.member_update(ask(second))) };
            let ended = tokio::time::timeout(Duration::from_secs(50), both).await;
            let (a, b) = ended.unwrap_or_else(|_| panic!("round {round}: one of two was lost at the leader"));
            a.expect("made");
            b.expect("made");
        }
    });
}

/// What one member acknowledged no other one denies, however far it is behind.
#[test]
fn a_member_that_lags_denies_no_change_that_was_acknowledged() {
    block_on(async {
        let cluster = Cluster::start_with(3, at_once);
        let leader = cluster.leader().await;
        let behind = (leader + 1) % 3;
        let (ahead, lagging) = (cluster.handle(leader), cluster.handle(behind));
        put_over_elections(&lagging, "k").await;
        cluster.cut_off(behind);
        let added = add(&ahead, "http://127.0.0.1:1", true).await.expect("two of three agree");
        assert!(lagging.reader().member(added.id).is_none(), "it cannot know");
        // Asked while it is cut off, answered when it is not any more.
        let ask = async {
            loop {
                match lagging.member_remove(pb::MemberRemoveRequest { id: added.id.0 }).await {
                    Err(EtcdError::NoLeader | EtcdError::Timeout | EtcdError::TimeoutDueToLeaderFail) => {}
                    answer => return answer,
                }
            }
        };
        let connect = async { cluster.connect(behind) };
        let (answer, ()) = tokio::join!(biased; ask, connect);
        answer.expect("the member that was added is removed");
        let unknown = ahead.member_remove(pb::MemberRemoveRequest { id: added.id.0 }).await;
        assert_eq!(unknown.expect_err("once"), EtcdError::MemberNotFound);
    });
}
