//! Members that join a running cluster of release binaries under load: one by one, killed on the way, by entries and by snapshot.
//!
//! Moments are drawn from a seed; `JOINING_SEED=<n>` repeats them, and the test that draws prints its command.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, cluster_client::ClusterClient,
};
use cairn_tests::{
    harness::{Cluster, Kind, http_get, wait_for},
    recorder::{Record, Writers, channel, verify_equal},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Three members of whom the first runs, alone.
fn one_of_three(extra: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, extra)?;
    let first = &mut cluster.members[0];
    first.add_flag(format!("--initial-cluster={}={}", first.name, first.peer_url));
    first.spawn()?;
    first.wait_healthy()?;
    Ok(cluster)
}

/// Asks the first member for a place and gives the settings to take it. A cluster that is not sure of its quorum yet is asked again.
fn add(cluster: &mut Cluster, at: usize, learner: bool) -> Result<u64> {
    let request =
        MemberAddRequest { peer_ur_ls: vec![cluster.members[at].peer_url.clone()], is_learner: learner };
    let endpoint = cluster.members[0].client_url.clone();
    let mut last = None;
    let added = wait_for("a place in the cluster", || {
        let answer = block_on(async {
            ClusterClient::new(channel(&endpoint)?).member_add(request.clone()).await.context("add")
        });
        answer.inspect_err(|error| last = Some(format!("{error:#}"))).ok()
    });
    let added = added.with_context(|| format!("the last answer was {last:?}"))?.into_inner();
    let member = added.member.context("the added member")?;
    let listed: Vec<String> =
        cluster.members[..=at].iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
    let joiner = &mut cluster.members[at];
    joiner.add_flag(format!("--initial-cluster={}", listed.join(",")));
    joiner.add_flag("--initial-cluster-state=existing");
    Ok(member.id)
}

/// Until the leader finds the learner close enough.
fn promote(cluster: &Cluster, id: u64) -> Result<()> {
    let endpoint = &cluster.members[0].client_url;
    wait_for("the learner to be promoted", || {
        let request = MemberPromoteRequest { id };
        block_on(async { ClusterClient::new(channel(endpoint).ok()?).member_promote(request).await.ok() })
    })?;
    Ok(())
}

fn let_write(writers: &Writers, more: u64) -> Result<()> {
    let goal = writers.acknowledged() + more;
    wait_for("acknowledged writes", || (writers.acknowledged() >= goal).then_some(()))
}

/// All promises at every voter of the first `count` members, all of them equal, and all of them list the same started members.
fn verify(cluster: &Cluster, count: usize, record: &Record) -> Result<()> {
    assert!(record.acknowledged > 0, "the writers got nothing done; {} attempts failed", record.failed);
    let endpoints: Vec<String> =
        cluster.members[..count].iter().map(|member| member.client_url.clone()).collect();
    block_on(async {
        let mut lists = Vec::new();
        for endpoint in &endpoints {
            record.verify(endpoint).await?;
            let request = MemberListRequest { linearizable: true };
            lists.push(
                ClusterClient::new(channel(endpoint)?).member_list(request).await?.into_inner().members,
            );
        }
        assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "{lists:?}");
        let mut names: Vec<&str> = lists[0].iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        let expected: Vec<&str> =
            cluster.members[..count].iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, expected, "who has joined has told its name");
        verify_equal(&endpoints).await
    })
}

fn stored_member_id(cluster: &Cluster, at: usize) -> Result<String> {
    let text = std::fs::read(cluster.members[at].data_dir.join("member/identity.json"))?;
    let identity: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(identity["member_id"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn one_member_becomes_three_under_load_first_as_learners() -> Result<()> {
    let mut cluster = one_of_three(&[])?;
    let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 4);
    let_write(&writers, 500)?;
    for at in 1..3 {
        let id = add(&mut cluster, at, true)?;
        cluster.members[at].spawn()?;
        cluster.members[at].wait_healthy()?;
        let ready = http_get(&cluster.members[at].client_url, "/readyz")?;
        assert!(ready.status == 503 && ready.body.contains("non_learner"), "{ready:?}");
        let_write(&writers, 200)?;
        promote(&cluster, id)?;
        wait_for("the promoted member to be ready", || {
            http_get(&cluster.members[at].client_url, "/readyz").ok().filter(|answer| answer.status == 200)
        })?;
        assert_eq!(stored_member_id(&cluster, at)?, format!("{id:x}"));
        let_write(&writers, 200)?;
    }
    // The founder is not needed any more than the others.
    let record = writers.finish();
    verify(&cluster, 3, &record)?;
    cluster.members[0].kill()?;
    let others: Vec<String> = cluster.members[1..].iter().map(|member| member.client_url.clone()).collect();
    let writers = Writers::start(others, 2);
    let_write(&writers, 50)?;
    writers.finish();
    // Started again with the flags of the first start, which are ignored by now.
    for member in &mut cluster.members[1..] {
        member.kill()?;
    }
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    let endpoints: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    block_on(verify_equal(&endpoints))
}

/// The second voter of two: nothing is committed without it, so the cluster waits for it to come.
#[test]
fn a_voter_joins_a_cluster_of_one_by_the_log_alone() -> Result<()> {
    let mut cluster = one_of_three(&[])?;
    let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 4);
    let_write(&writers, 500)?;
    add(&mut cluster, 1, false)?;
    cluster.members[1].spawn()?;
    cluster.members[1].wait_log("ready to serve client requests")?;
    let_write(&writers, 200)?;
    let record = writers.finish();
    assert!(
        !cluster.members[1].log().contains("installed snapshot"),
        "the log reaches back to the beginning"
    );
    verify(&cluster, 2, &record)
}

/// The leader has forgotten the beginning of its log, so the first thing that the joiner hears is a snapshot.
#[test]
fn a_joiner_begins_with_a_snapshot_where_the_log_is_compacted() -> Result<()> {
    let mut cluster = one_of_three(&["--snapshot-count=100", "--snapshot-catchup-entries=10"])?;
    let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 4);
    let_write(&writers, 1000)?;
    let id = add(&mut cluster, 1, true)?;
    cluster.members[1].spawn()?;
    cluster.members[1].wait_log("installed snapshot")?;
    cluster.members[1].wait_healthy()?;
    promote(&cluster, id)?;
    let_write(&writers, 200)?;
    add(&mut cluster, 2, false)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_log("installed snapshot")?;
    cluster.members[2].wait_healthy()?;
    let record = writers.finish();
    verify(&cluster, 3, &record)
}

/// The log of a forced cluster is kept whole: who joins applies the life that has ended before the one that it joins, and stops amid that.
#[test]
fn a_joiner_of_a_forced_cluster_goes_through_the_past_and_is_of_the_present() -> Result<()> {
    let mut cluster = one_of_three(&[])?;
    let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 8);
    let_write(&writers, 3000)?;
    let before = writers.finish();
    ensure!(cluster.members[0].terminate()?.success());
    cluster.members[0].add_flag("--force-new-cluster");
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    let id = add(&mut cluster, 1, true)?;
    for pause in [30, 60, 120, 240] {
        cluster.members[1].spawn()?;
        // Another moment of the start or of the catching up on every machine; any of them will do.
        std::thread::sleep(std::time::Duration::from_millis(pause));
        cluster.members[1].kill()?;
    }
    cluster.members[1].spawn()?;
    cluster.members[1].wait_healthy()?;
    promote(&cluster, id)?;
    verify(&cluster, 2, &before)
}

#[test]
fn a_joiner_killed_at_any_moment_joins_with_the_next_start() -> Result<()> {
    let seed =
        std::env::var("JOINING_SEED").ok().map_or(1, |text| text.parse().expect("JOINING_SEED is a number"));
    println!("replay: JOINING_SEED={seed} cargo test -p cairn-tests --test joining a_joiner_killed");
    let mut random = StdRng::seed_from_u64(seed);
    for extra in [&[][..], &["--snapshot-count=100", "--snapshot-catchup-entries=10"]] {
        let mut cluster = one_of_three(extra)?;
        let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 4);
        let_write(&writers, 1000)?;
        let id = add(&mut cluster, 1, true)?;
        // The shortest first: once the directory counts, a start does not build it again.
        let mut moments: Vec<u64> = (0..25).map(|_| random.random_range(0..300)).collect();
        moments.sort_unstable();
        let mut came_back = 0;
        for moment in moments {
            cluster.members[1].spawn()?;
            // A moment of a start that takes some two hundred milliseconds; not a wait for anything.
            std::thread::sleep(Duration::from_millis(moment));
            cluster.members[1].kill()?;
            let stored = stored_member_id(&cluster, 1);
            came_back += usize::from(stored.is_ok_and(|stored| stored == format!("{id:x}")));
        }
        println!("of 25 starts {came_back} left a directory of the member");
        cluster.members[1].spawn()?;
        cluster.members[1].wait_healthy()?;
        assert_eq!(stored_member_id(&cluster, 1)?, format!("{id:x}"));
        promote(&cluster, id)?;
        let_write(&writers, 100)?;
        let record = writers.finish();
        verify(&cluster, 2, &record)?;
    }
    Ok(())
}

/// Whoever has voted must not come back empty under its old id; replaced by a new one it may.
#[test]
fn a_member_that_lost_its_directory_is_refused_and_joins_under_a_new_id() -> Result<()> {
    let mut cluster = one_of_three(&[])?;
    let writers = Writers::start(vec![cluster.members[0].client_url.clone()], 2);
    let id = add(&mut cluster, 1, true)?;
    cluster.members[1].spawn()?;
    cluster.members[1].wait_log("ready to serve client requests")?;
    cluster.members[1].kill()?;
    std::fs::remove_dir_all(&cluster.members[1].data_dir)?;
    cluster.members[1].spawn()?;
    assert_eq!(cluster.members[1].wait_exit()?.code(), Some(79));
    let said = cluster.members[1].log();
    assert!(said.contains("REFUSED LOST_DATA") && said.contains(&format!("member remove {id:x}")), "{said}");
    assert!(!cluster.members[1].data_dir.exists());

    let endpoint = cluster.members[0].client_url.clone();
    block_on(async {
        let request = api::etcdserverpb::MemberRemoveRequest { id };
        ClusterClient::new(channel(&endpoint)?).member_remove(request).await.context("remove")
    })?;
    let second = add(&mut cluster, 1, true)?;
    assert_ne!(second, id);
    cluster.members[1].spawn()?;
    cluster.members[1].wait_healthy()?;
    promote(&cluster, second)?;
    let record = writers.finish();
    verify(&cluster, 2, &record)
}
