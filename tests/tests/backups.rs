//! A backup's whole way between release binaries: saved from a member that runs, restored into three new ones, which then serve.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use api::etcdserverpb::{
    CompactionRequest, HashKvRequest, HashKvResponse, RangeRequest, RangeResponse, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use cairn_tests::{
    harness::{Cluster, Kind, cairn_binary},
    recorder::{self, channel, verify_equal},
};

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|member| member.client_url.clone()).collect()
}

async fn everything(endpoint: &str) -> Result<RangeResponse> {
    let request = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    Ok(KvClient::new(channel(endpoint)?).range(request).await?.into_inner())
}

async fn hash(endpoint: &str, revision: i64) -> Result<HashKvResponse> {
    Ok(MaintenanceClient::new(channel(endpoint)?).hash_kv(HashKvRequest { revision }).await?.into_inner())
}

fn succeeded(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

/// OP07, and OP06 on whole clusters. The members of the old cluster agree on the hash of their compaction, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_snapshot_restores() -> Result<()> {
    let old = Cluster::start(Kind::Cairn, 3)?;
    let urls = endpoints(&old);
    recorder::fill(&urls[0], 8, 300, 100).await?;
    let revision = everything(&urls[0]).await?.header.context("a header")?.revision;
    let before = hash(&urls[0], revision - 50).await?;
    ensure!(before.compact_revision == -1);
    for url in &urls {
        // The second and the third find it compacted.
        let request = CompactionRequest { revision: revision - 50, physical: true };
        let _ = KvClient::new(channel(url)?).compact(request).await;
    }
    for url in &urls {
        let stored =
            || async { Ok::<_, anyhow::Error>(hash(url, revision - 50).await?.compact_revision == -1) };
        let mut waited = 0;
        // Removal is each member's own affair.
        while !stored().await? {
            waited += 1;
            ensure!(waited < 1200, "the hash of the compaction is not stored at {url}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        ensure!(hash(url, revision - 50).await?.hash == before.hash, "of {url}");
    }
    let (saved, saved_hash) = (everything(&urls[1]).await?, hash(&urls[1], 0).await?);

    let file = old.path().join("backup.db");
    let ctl = || Command::new(cairn_binary("cairnctl").expect("it is built"));
    let told = succeeded(ctl().arg("--endpoints").arg(&urls[1]).args(["snapshot", "save"]).arg(&file))?;
    ensure!(told.starts_with("Snapshot saved at "), "{told}");
    let told = succeeded(ctl().args(["snapshot", "status"]).arg(&file))?;
    ensure!(told.contains(&format!(", {revision}, ")), "{told}");

    for (more, bump) in [(&["--no-bump"][..], 0), (&[], 1_000_000_000)] {
        let mut new = Cluster::prepare(Kind::Cairn, 3, &[])?;
        let wal = new.path().join("wal-of-its-own");
        new.members[2].add_flag(format!("--wal-dir={}", wal.display()));
        for member in &mut new.members {
            let mut args = Vec::new();
            member.set_flags(|flags| args.clone_from(flags));
            let mut restore = Command::new(cairn_binary("cairnd")?);
            succeeded(restore.args(["snapshot", "restore"]).arg(&file).args(args).args(more))?;
        }
        for member in &mut new.members {
            member.spawn()?;
        }
        new.wait_healthy()?;
        let urls = endpoints(&new);
        for url in &urls {
            let restored = everything(url).await?;
            ensure!(restored.kvs == saved.kvs, "{url} has other keys");
            ensure!(restored.header.context("a header")?.revision == revision + bump);
            if bump == 0 {
                // Its history is the same; what else it stored at the compaction no backup carries.
                let answer = hash(url, 0).await?;
                ensure!(
                    answer.hash == saved_hash.hash && answer.compact_revision == saved_hash.compact_revision
                );
            }
        }
        recorder::fill(&urls[2], 2, 20, 100).await?;
        verify_equal(&urls).await?;
        let members = succeeded(ctl().arg("--endpoints").arg(&urls[0]).args(["member", "list"]))?;
        ensure!(members.lines().count() == 3, "{members}");
    }
    Ok(())
}
