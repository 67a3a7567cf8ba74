//! Kills at random moments of what a member does besides serving: its first start, a restart, compaction.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use api::etcdserverpb::{RangeRequest, kv_client::KvClient};
use cairn_tests::{
    harness::{Cluster, Kind},
    recorder::{Writers, channel, verify_equal},
};
use rand::Rng;

use crate::{block_on, compact, endpoints, let_write, random, range, revision, snapshot::fill, verify};

#[test]
fn crash_in_compaction_never_lowers_revision() -> Result<()> {
    let mut random = random("crash_in_compaction_never_lowers_revision");
    // Small steps: the physical part of each compaction is long enough to be hit.
    let flags = ["--compaction-batch-limit=50", "--compaction-sleep-interval=2ms", "--snapshot-count=500"];
    let mut cluster = Cluster::start_with(Kind::Cairn, 1, &flags)?;
    let url = cluster.members[0].client_url.clone();
    fill(&url, 6000, 16)?;
    let writers = Writers::start(endpoints(&cluster), 2);
    let mut compacted = 0;
    for round in 1..=7_i64 {
        let_write(&writers, 20)?;
        let seen = revision(&cluster.members[0])?;
        // Everything that is there, up to the newest, in the last round.
        let at = if round == 7 { seen } else { seen * round / 7 };
        compact(&cluster.members[0], at)?;
        compacted = compacted.max(at);
        std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
        cluster.members[0].kill()?;
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
        let now = revision(&cluster.members[0])?;
        assert!(now >= seen, "revision {now} after {seen} was handed out");
        let old = RangeRequest { key: "fill/0".into(), revision: compacted - 1, ..Default::default() };
        let error =
            block_on(async { KvClient::new(channel(&url)?).range(old).await.context("an old revision") })
                .err()
                .context("a compacted revision stays compacted")?;
        assert!(format!("{error:#}").contains("has been compacted"), "{error:#}");
        let at = RangeRequest { key: "fill/0".into(), revision: compacted, ..Default::default() };
        assert_eq!(block_on(range(&url, at))?.kvs.len(), 1, "what was live at the compaction is kept");
    }
    let record = writers.finish();
    verify(&cluster, &record)?;
    let request = RangeRequest { key: "fill/".into(), range_end: "fill0".into(), ..Default::default() };
    assert_eq!(block_on(range(&url, request))?.kvs.len(), 16);
    Ok(())
}

#[test]
fn killed_in_its_first_start_a_member_comes_up_or_says_why_not() -> Result<()> {
    let mut random = random("killed_in_its_first_start_a_member_comes_up_or_says_why_not");
    let mut cluster = Cluster::prepare(Kind::Cairn, 1, &[])?;
    let (mut up, mut refused) = (0, 0);
    // A first start takes some 50 ms here, so this goes through all of it and beyond.
    for step in 0..24 {
        let member = &mut cluster.members[0];
        let _ = fs::remove_dir_all(&member.data_dir);
        let told = member.log().len();
        member.spawn()?;
        let moment = Duration::from_micros(step * 3000 + random.random_range(0..3000));
        std::thread::sleep(moment);
        member.kill()?;
        member.spawn()?;
        match member.wait_healthy() {
            Ok(()) => {
                up += 1;
                crate::put(std::slice::from_ref(&member.client_url), "a", step.to_string())?;
                member.kill()?;
            }
            Err(_) => {
                refused += 1;
                let log = member.log();
                assert!(log[told..].contains("REFUSED"), "killed after {moment:?}: {}", &log[told..]);
            }
        }
    }
    println!("{up} came up, {refused} were refused");
    assert_eq!(refused, 0, "nothing was promised yet, so there is no reason to refuse");
    Ok(())
}

#[test]
fn members_killed_while_a_cluster_is_born_do_not_keep_it_from_being_born() -> Result<()> {
    let mut random = random("members_killed_while_a_cluster_is_born_do_not_keep_it_from_being_born");
    for _ in 0..4 {
        let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
        for member in &mut cluster.members {
            member.spawn()?;
        }
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..100)));
            let member = &mut cluster.members[random.random_range(0..3)];
            member.kill()?;
            member.spawn()?;
        }
        cluster.wait_healthy()?;
        crate::put(&endpoints(&cluster), "a", "1")?;
        block_on(verify_equal(&endpoints(&cluster)))?;
    }
    Ok(())
}

#[test]
fn killed_while_it_restarts_a_member_loses_nothing() -> Result<()> {
    let mut random = random("killed_while_it_restarts_a_member_loses_nothing");
    let mut cluster = Cluster::start_with(Kind::Cairn, 1, &["--snapshot-count=100"])?;
    let writers = Writers::start(endpoints(&cluster), 4);
    for _ in 0..6 {
        let_write(&writers, 100)?;
        for _ in 0..4 {
            cluster.members[0].kill()?;
            cluster.members[0].spawn()?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..80)));
        }
        cluster.wait_healthy()?;
    }
    verify(&cluster, &writers.finish())
}
