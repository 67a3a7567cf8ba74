//! Whole members in one process: real threads, real logs and stores in temporary directories, real sockets on loopback.

mod support;

use std::{net::TcpListener, path::Path, time::Duration};

use api::{error::EtcdError, etcdserverpb as pb};
use node::{AutoCompaction, Handle, Node, Parts, Tunable};
use storage::wal::{Wal, WalMetadata};
use support::*;
use types::{Entry, EntryKind, HardState, LogIndex, MemberId, Term};

#[test]
fn a_member_alone_serves_restarts_and_remembers() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let again = listener.try_clone().expect("the same port once more");
    let running = boot(directory.path(), &members[0], &members, listener);
    let handle = running.node.handle();
    block_on(async {
        assert_eq!(put(&handle, "a", "1").await, Ok(2));
        for i in 0..500 {
            put(&handle, &format!("k{i}"), "x").await.expect("a put");
        }
        assert_eq!(get(&handle, "a").await, Ok(Some("1".to_owned())));
        wait("the published name", || handle.members().iter().any(|member| member.name == "m1")).await;
    });
    drop(handle);
    running.node.stop();

    let running = boot(directory.path(), &members[0], &members, again);
    let handle = running.node.handle();
    block_on(async {
        assert_eq!(get(&handle, "a").await, Ok(Some("1".to_owned())));
        assert_eq!(put(&handle, "a", "2").await, Ok(503));
        assert_eq!(running.member.id, handle.node_status().leader);
    });
    drop(handle);
    running.node.stop();
}

#[test]
fn three_members_agree_and_a_follower_serves_linearizable_reads_and_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(3);
    let nodes: Vec<Running> = members
        .iter()
        .zip(listeners)
        .map(|(member, listener)| boot(&directory.path().join(&member.name), member, &members, listener))
        .collect();
    let handles: Vec<Handle> = nodes.iter().map(|running| running.node.handle()).collect();
    block_on(async {
        for round in 0..30 {
            let writer = &handles[round % 3];
            put(writer, "k", &round.to_string()).await.expect("a put through any member");
            for reader in &handles {
                let read = get(reader, "k").await.expect("a read through any member");
                assert_eq!(
                    read,
                    Some(round.to_string()),
                    "a linearizable read sees what was acknowledged before it"
                );
            }
        }
        wait("all names", || handles[2].members().iter().all(|member| !member.name.is_empty())).await;
        wait("the cluster version", || handles[1].cluster_version().as_deref() == Some("3.7.0")).await;
        let target = handles.iter().find(|handle| !handle.node_status().is_leader).expect("a follower");
        let leader = handles.iter().find(|handle| handle.node_status().is_leader).expect("a leader");
        let to = target.node_status().member;
        leader.move_leader(pb::MoveLeaderRequest { target_id: to.0 }).await.expect("a transfer");
        // It says so to the others first.
        wait("the new leader to know", || target.node_status().leader == to).await;
    });
    drop(handles);
    for running in nodes {
        running.node.stop();
    }
}

#[test]
fn a_follower_that_fell_behind_the_log_catches_up_by_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(3);
    let mut listeners = listeners.into_iter();
    let late_listener = listeners.next_back().expect("three listeners");
    let kept = late_listener.try_clone().expect("the same port once more");
    let start = |i: usize, listener: TcpListener| {
        boot(&directory.path().join(&members[i].name), &members[i], &members, listener)
    };
    let two: Vec<Running> = listeners.enumerate().map(|(i, listener)| start(i, listener)).collect();
    let late = start(2, late_listener);
    let handles: Vec<Handle> = two.iter().map(|running| running.node.handle()).collect();
    block_on(async {
        put(&handles[0], "before", "1").await.expect("a put");
        wait("the third member to have it", || late.node.handle().node_status().applied.0 >= 5).await;
    });
    late.node.stop();
    // Far more than is kept for slow followers (snapshot-count 100, catch-up entries 10); the log is cut in the background.
    block_on(async {
        for i in 0..1000 {
            put(&handles[0], &format!("k{}", i % 50), &i.to_string()).await.expect("a put");
        }
        put(&handles[0], "after", "2").await.expect("a put");
    });
    let late = start(2, kept);
    let handle = late.node.handle();
    block_on(async {
        let goal = handles[0].node_status().applied;
        wait("the third member to catch up", || handle.node_status().applied >= goal).await;
        assert_eq!(get(&handle, "before").await, Ok(Some("1".to_owned())));
        assert_eq!(get(&handle, "after").await, Ok(Some("2".to_owned())));
        let mut hashes = Vec::new();
        for handle in handles.iter().chain([&handle]) {
            hashes.push(handle.hash_kv(pb::HashKvRequest { revision: 1003 }).await.expect("a hash").hash);
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "members differ: {hashes:?}");
        put(&handle, "through the third", "3").await.expect("a put through the member that caught up");
    });
    assert!(
        handle.metrics_text().contains("cairn_snapshots_installed_total 1"),
        "the member caught up without a snapshot: the test shows nothing"
    );
    drop((handle, handles));
    late.node.stop();
    for running in two {
        running.node.stop();
    }
}

/// A member whose majority is gone can confirm no read; when it stops, whoever waits is told, and so is whoever comes later.
#[test]
fn no_reader_is_forgotten_when_the_member_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(3);
    let mut listeners = listeners.into_iter();
    let listener = listeners.next().expect("three listeners");
    let alone = boot(&directory.path().join("m1"), &members[0], &members, listener);
    let handle = alone.node.handle();
    block_on(async {
        let waiting = handle.clone();
        let reader = tokio::spawn(async move { get(&waiting, "k").await });
        // Polled once, so that it waits at the gate.
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(move || alone.node.stop()).await.expect("the member stops");
        let told = tokio::time::timeout(Duration::from_secs(60), reader).await;
        let told = told.expect("the reader is told within a minute").expect("the reader did not panic");
        assert!(told.is_err(), "{told:?}");
        assert_eq!(get(&handle, "k").await, Err(EtcdError::Stopped));
        assert_eq!(put(&handle, "k", "v").await, Err(EtcdError::Stopped));
    });
}

/// Ten thousand entries would be due before the log in memory may shrink, and they may be of a megabyte each.
#[test]
fn large_entries_do_not_pile_up_in_memory() {
    const ENTRY: usize = 1024 * 1024;
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let running = boot_with(directory.path(), &members[0], &members, listener, |config| {
        config.snapshot_count = 1_000_000;
        config.snapshot_catchup_entries = 5000;
    });
    let handle = running.node.handle();
    let value = "x".repeat(ENTRY);
    block_on(async {
        for i in 0..224 {
            // A slow disk makes one of them wait for longer than clients do; it is written all the same.
            match put(&handle, &format!("k{}", i % 4), &value).await {
                Ok(_) | Err(EtcdError::Timeout) => {}
                Err(error) => panic!("{error}"),
            }
        }
        // 128 MiB are kept for slow followers; 224 MiB were written.
        let in_memory = || {
            let text = handle.metrics_text();
            let line = text.lines().find_map(|line| line.strip_prefix("cairn_raft_log_memory_bytes "));
            line.and_then(|bytes| bytes.parse::<f64>().ok()).expect("the metric")
        };
        // Less than the half minute after which the store is made durable in any case.
        let shrunk = tokio::time::timeout(
            Duration::from_secs(20),
            wait("the log in memory to shrink", || in_memory() <= 160.0 * ENTRY as f64),
        );
        shrunk.await.expect("the log in memory shrinks when it is large");
    });
    drop(handle);
    running.node.stop();
}

/// While nobody leads, proposals wait; sixteen thousand of the largest would be more than a member has room for.
#[test]
fn proposals_without_a_leader_are_bounded_by_their_bytes() {
    const VALUE: usize = 1024 * 1024;
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(3);
    let listener = listeners.into_iter().next().expect("three listeners");
    let alone = boot(&directory.path().join("m1"), &members[0], &members, listener);
    let handle = alone.node.handle();
    let value = "x".repeat(VALUE);
    block_on(async {
        let mut puts = tokio::task::JoinSet::new();
        for i in 0..300 {
            let (handle, value) = (handle.clone(), value.clone());
            puts.spawn(async move { put(&handle, &format!("k{i}"), &value).await });
        }
        let first = puts.join_next().await.expect("a put").expect("no panic");
        assert_eq!(
            first,
            Err(EtcdError::RequestTooManyRequests),
            "256 MiB wait, the rest is refused at once"
        );
        // Whoever waited in vain makes room again.
        while let Some(put) = puts.join_next().await {
            assert!(put.expect("no panic").is_err());
        }
        let late = put(&handle, "late", &value).await;
        assert_eq!(late, Err(EtcdError::NoLeader), "it was queued and waited");
    });
    drop(handle);
    alone.node.stop();
}

/// OP01: each piece is followed by its pause, also while there is plenty to remove and other work keeps the apply worker awake.
#[test]
fn compaction_pauses_after_each_batch() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let running = boot_with(directory.path(), &members[0], &members, listener, |config| {
        // The worker takes batch and pause in pieces: one row each, and minutes between them.
        config.compaction_batch = 1;
        config.compaction_sleep = Duration::from_secs(3600);
    });
    let handle = running.node.handle();
    block_on(async {
        let mut last = 0;
        for round in 0..3 {
            for i in 0..50 {
                last = put(&handle, &format!("k{i}"), &round.to_string()).await.expect("a put");
            }
        }
        handle.compact(pb::CompactionRequest { revision: last, physical: false }).await.expect("decided");
        let removed = || {
            let text = handle.metrics_text();
            let line =
                text.lines().find(|line| line.starts_with("etcd_debugging_mvcc_db_compaction_keys_total "));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).expect("a count")
        };
        wait("the first piece", || removed() > 0).await;
        for i in 0..50 {
            put(&handle, &format!("k{i}"), "later").await.expect("puts go on");
        }
        assert_eq!(removed(), 1, "a hundred rows are to go, and the pause is not over");
    });
    drop(handle);
    running.node.stop();
}

/// OP02, AP05: asked by several at once, a member gives space back once, and is what it was.
#[test]
fn a_defragmented_member_is_smaller_and_otherwise_what_it_was() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    const QUOTA: i64 = 1 << 30;
    let running = boot_with(directory.path(), &members[0], &members, listener, |config| {
        config.quota_backend_bytes = QUOTA;
    });
    let handle = running.node.handle();
    block_on(async {
        let value = "x".repeat(4000);
        let mut last = 0;
        for i in 0..1000 {
            last = put(&handle, &format!("k{}", i % 100), &value).await.expect("a put");
        }
        let compaction = pb::CompactionRequest { revision: last, physical: true };
        handle.compact(compaction).await.expect("compacted");
        let hash = async || {
            let answer = handle.hash_kv(pb::HashKvRequest { revision: last }).await.expect("a hash");
            (answer.hash, answer.compact_revision)
        };
        let (before, hashed) = (handle.status().await.expect("a status"), hash().await);
        let (a, b, c) = tokio::join!(handle.defragment(), handle.defragment(), async {
            handle
                .defragment()
                .await
                .and(put(&handle, "beside", "1").await.map_err(|error| panic!("{error}")))
        });
        a.and(b).and(c.map(drop)).expect("done, or going on");
        // The answer may have come before the end.
        wait("the space to come back", || {
            let size = handle.reader().store_size();
            size.total_bytes < before.db_size as u64 / 2
        })
        .await;
        let after = handle.status().await.expect("a status");
        assert_eq!((after.db_size_quota, before.db_size_quota), (QUOTA, QUOTA));
        assert!(after.db_size < before.db_size / 2, "{} of {}", after.db_size, before.db_size);
        assert_eq!(hash().await, hashed);
        assert!(handle.metrics_text().contains("etcd_disk_backend_defrag_duration_seconds_count "));
    });
    drop(handle);
    running.node.stop();
}

/// Who connects in the first moment is judged by all that this member had known.
#[test]
fn a_member_has_applied_what_its_log_had_committed_before_anybody_can_reach_it() {
    const PUTS: u64 = 20_000;
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(3);
    let listener = listeners.into_iter().next().expect("three listeners");
    let path = directory.path().join("m1");
    std::fs::create_dir_all(&path).expect("the member's directory");
    let cluster = config(&path, &members[0], &members).cluster;
    let metadata = WalMetadata { member_id: members[0].id, cluster_id: cluster, dir_uuid: None };
    let mut wal = Wal::create(&path.join("wal"), &metadata, wal_options()).expect("create the log");
    let (mut entries, _) = genesis(&members);
    let put = pb::PutRequest { key: "a".into(), ..Default::default() };
    let request = pb::InternalRaftRequest { put: Some(put), ..Default::default() };
    let data = bytes::Bytes::from(prost::Message::encode_to_vec(&request));
    let puts = (4..).take(PUTS as usize + 1).map(LogIndex);
    entries.extend(puts.map(|index| Entry {
        term: Term(2),
        index,
        kind: EntryKind::Normal,
        data: data.clone(),
    }));
    let commit = LogIndex(3 + PUTS);
    let hard_state = HardState { term: Term(2), vote: MemberId::NONE, commit };
    wal.append(&entries, Some(&hard_state)).expect("write the log");
    wal.sync().expect("sync the log");
    drop(wal);

    let alone = boot(&path, &members[0], &members, listener);
    let handle = alone.node.handle();
    assert_eq!(handle.node_status().applied, commit, "and nothing that may be taken back");
    assert_eq!(handle.reader().revision().0, 1 + PUTS as i64);
    drop(handle);
    alone.node.stop();
}

#[test]
fn a_log_of_another_history_is_refused_although_its_indexes_fit() {
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let again = listener.try_clone().expect("the same port once more");
    let running = boot(directory.path(), &members[0], &members, listener);
    let handle = running.node.handle();
    block_on(async { put(&handle, "a", "1").await.expect("a put") });
    let applied = handle.node_status().applied;
    drop(handle);
    running.node.stop();

    let wal_dir = directory.path().join("wal");
    let (wal, contents) = Wal::open(&wal_dir, wal_options()).expect("open the log");
    drop(wal);
    std::fs::remove_dir_all(&wal_dir).expect("put the log away");
    let mut wal = Wal::create(&wal_dir, &contents.metadata, wal_options()).expect("create another log");
    let later = |entry: &Entry| Entry { term: Term(entry.term.0 + 7), ..entry.clone() };
    let entries: Vec<Entry> = contents.entries.iter().map(later).collect();
    let last = entries.last().expect("the log has entries").clone();
    assert!(last.index >= applied, "the store was made durable on the way out");
    wal.append(&entries, Some(&HardState { term: last.term, vote: MemberId::NONE, commit: last.index }))
        .expect("write the other log");
    wal.sync().expect("sync the other log");
    drop(wal);

    let (wal, contents) = Wal::open(&wal_dir, wal_options()).expect("open the other log");
    let parts = Parts {
        wal,
        contents,
        peer_listeners: vec![again],
        boot: 1,
        identity: own_identity(&wal_dir, &members),
        remotes: vec![],
    };
    let refused = Node::start(config(directory.path(), &members[0], &members), parts).err();
    let refused = refused.expect("the start is refused").to_string();
    assert!(refused.contains("they belong to different members or times"), "{refused}");
}

/// What a reload changes takes effect without a restart: the quota, and whether history is forgotten by itself.
#[test]
fn settings_change_in_a_running_member() {
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        for value in ["a", "b", "c"] {
            put(&handle, "k", value).await.unwrap();
        }
        let tunable = config(Path::new("/"), cluster.member(0), &[]).tunable();
        assert!(handle.has_space_for(1) && handle.reader().compact_revision().0 <= 0);

        let retention = Duration::from_millis(500);
        let forgets = Tunable { auto_compaction: Some(AutoCompaction::Periodic(retention)), ..tunable };
        handle.tune(forgets);
        wait("history is forgotten", || handle.reader().compact_revision().0 > 1).await;

        handle.tune(Tunable { quota_backend_bytes: 1, ..tunable });
        assert!(!handle.has_space_for(1));
        let _ = put(&handle, "k", "d").await;
        wait("the quota counts where entries are applied", || !handle.alarms().is_empty()).await;
    });
}

/// Whoever feeds a watchdog sees both loops turn, also when nobody asks for anything.
#[test]
fn idle_loops_give_signs_of_life() {
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        cluster.leader().await;
        let before = handle.beats();
        wait("both loops turn", || {
            let now = handle.beats();
            now.raft.count > before.raft.count + 1 && now.apply.count > before.apply.count + 1
        })
        .await;
        assert_eq!(handle.quorum().map(|quorum| (quorum.voters, quorum.heard)), Some((1, 1)));
    });
}
