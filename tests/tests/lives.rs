//! What members write down about each other, beside etcd and beyond the end of a cluster: a real etcd follows a leader that writes notes,
//! starts from its log and from its backup; a cluster that is forced out of another leaves that one alone; and members that lose their
//! history take their own place. Release binaries.

#[path = "lives/replace.rs"]
mod replace;

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use api::etcdserverpb::{
    MemberAddRequest, MemberListRequest, PutRequest, RangeRequest, SnapshotRequest,
    cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use cairn_tests::{
    harness::{Cluster, Kind, Member, real_etcd, wait_for},
    recorder::{channel, verify_equal},
};
use dbfile::BoltFile;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Over elections: what is asked for comes to be, however often it has to be asked for.
fn put(url: &str, key: &str, value: &str) -> Result<()> {
    wait_for("a write", || {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        block_on(async { KvClient::new(channel(url).ok()?).put(request).await.ok() })
    })?;
    Ok(())
}

fn keys(url: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let request = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let answer = wait_for("a read", || {
        block_on(async { KvClient::new(channel(url).ok()?).range(request.clone()).await.ok() })
    })?;
    Ok(answer.into_inner().kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect())
}

/// Writes a backup of this member and answers the keys of its `meta` bucket that are cairn's own.
fn backup(url: &str, file: &Path) -> Result<Vec<String>> {
    let bytes = block_on(async {
        let mut client = MaintenanceClient::new(channel(url)?);
        let mut pieces = client.snapshot(SnapshotRequest {}).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            bytes.extend_from_slice(&piece.blob);
        }
        Ok::<_, anyhow::Error>(bytes)
    })?;
    fs::write(file, bytes)?;
    let mut own = Vec::new();
    BoltFile::open(fs::File::open(file)?)?.each(b"meta", &mut |key, _| {
        let key = String::from_utf8_lossy(key);
        if key.starts_with("cairn/") {
            own.push(key.into_owned());
        }
        ControlFlow::Continue(())
    })?;
    Ok(own)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// An etcd is a member of a cluster whose leader writes notes, comes back with a log that holds them, is started from such a backup, and
/// plays a cairn member from its very log. (Of etcd 3.4 only the backup: other entries of a log that cairn writes are unknown to it.)
#[test]
fn etcd_reads_a_log_and_a_backup_with_notes() -> Result<()> {
    let etcd = Kind::Etcd("3.5".to_owned());
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    for member in &mut cluster.members[..2] {
        member.add_flag("--initial-cluster-attendance=majority");
        member.spawn()?;
    }
    // Two of three, so that a cairn leads, and a cairn writes who they are.
    cluster.members[0].wait_healthy()?;
    cluster.members[1].wait_healthy()?;
    cluster.members[2].play(&etcd)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_healthy()?;
    let url = cluster.members[0].client_url.clone();
    let file = cluster.path().join("backup.db");
    let mut number = 0;
    wait_for("records and watermarks of both in a backup", || {
        number += 1;
        put(&url, &format!("key-{number}"), "v").ok()?;
        let own = backup(&url, &file).ok()?;
        let count = |kind: &str| own.iter().filter(|key| key.starts_with(kind)).count();
        (count("cairn/cluster_uuid") == 1 && count("cairn/record/") == 2 && count("cairn/watermark/") >= 2)
            .then_some(())
    })?;
    let urls: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    block_on(verify_equal(&urls))?;

    cluster.members[2].terminate()?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_healthy()?;
    put(&url, "after the restart", "v")?;
    wait_for("the etcd to follow", || block_on(verify_equal(&urls)).ok())?;

    let written = keys(&url)?;
    backup(&url, &file)?;
    for version in ["3.4", "3.5"] {
        let mut alone = Cluster::prepare(Kind::Etcd(version.to_owned()), 1, &[])?;
        restore(&alone.members[0], version, &file)?;
        alone.members[0].spawn()?;
        alone.members[0].wait_healthy()?;
        ensure!(keys(&alone.members[0].client_url)? == written, "etcd {version} has all of the backup");
    }

    // From the log of a cairn member: an etcd makes its own state of it.
    let dir = cluster.path().join("m1-as-etcd");
    let member = &mut cluster.members[0];
    ensure!(member.terminate()?.success());
    fs::create_dir_all(dir.join("member/snap"))?;
    fs::create_dir_all(dir.join("member/wal"))?;
    for entry in fs::read_dir(member.data_dir.join("member/wal"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            fs::copy(&path, dir.join("member/wal").join(path.file_name().context("a name")?))?;
        }
    }
    member.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--initial-cluster-attendance")));
    member.add_flag(format!("--data-dir={}", dir.display()));
    member.play(&etcd)?;
    cluster.members[1].kill()?;
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    let both = [urls[0].clone(), urls[2].clone()];
    wait_for("both etcds to agree", || block_on(verify_equal(&both)).ok())?;
    ensure!(keys(&url)? == written);
    Ok(())
}

fn restore(member: &Member, version: &str, file: &Path) -> Result<()> {
    let tools = real_etcd(version)?;
    // Since 3.6 only etcdutl restores, before 3.5 only etcdctl.
    let etcdutl = tools.join("etcdutl");
    let program = if etcdutl.exists() { etcdutl } else { tools.join("etcdctl") };
    run(Command::new(program)
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore"])
        .arg(file)
        .arg(format!("--name={}", member.name))
        .arg(format!("--data-dir={}", member.data_dir.display()))
        .arg(format!("--initial-cluster={}={}", member.name, member.peer_url))
        .arg("--initial-cluster-token=tests")
        .arg(format!("--initial-advertise-peer-urls={}", member.peer_url)))
}

fn identity(member: &Member) -> Result<serde_json::Value> {
    let text = fs::read_to_string(member.data_dir.join("member/identity.json"))?;
    Ok(serde_json::from_str(&text)?)
}

/// FN: a member is forced into a cluster of its own while the others live. It begins a new life with everything that was committed; the
/// others refuse it, go on, and take no harm.
#[test]
fn a_forced_member_begins_a_new_life_and_the_others_stay_up() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let urls: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    put(&urls[0], "before", "1")?;
    wait_for("all to have it", || {
        urls.iter().all(|url| keys(url).is_ok_and(|keys| keys.len() == 1)).then_some(())
    })?;
    let before = wait_for("the life in the identity file", || {
        identity(&cluster.members[0]).ok()?["cluster_uuid"].as_str().map(str::to_owned)
    })?;
    ensure!(cluster.members[0].terminate()?.success());
    put(&urls[1], "only the others have it", "2")?;

    cluster.members[0].add_flag("--force-new-cluster");
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    put(&urls[0], "only the forced one has it", "3")?;
    let list = block_on(async {
        let request = MemberListRequest { linearizable: true };
        Ok::<_, anyhow::Error>(
            ClusterClient::new(channel(&urls[0])?).member_list(request).await?.into_inner(),
        )
    })?;
    ensure!(list.members.len() == 1 && list.members[0].name == "m1", "{:?}", list.members);
    let names = |url: &str| -> Result<Vec<String>> {
        Ok(keys(url)?.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect())
    };
    ensure!(names(&urls[0])? == ["before", "only the forced one has it"]);
    let now = wait_for("the new life in the identity file", || {
        let now = identity(&cluster.members[0]).ok()?;
        (now["state"] == "born" && now["parent_uuid"] == before.as_str()).then_some(now)
    })?;
    ensure!(now["cluster_uuid"] != before.as_str() && now["origin"]["method"] == "force-new", "{now}");

    // The others go on trying to reach it, and are told that it is of another life.
    cluster.members[1].wait_log("never mix").or_else(|_| cluster.members[2].wait_log("never mix"))?;
    put(&urls[2], "still here", "4")?;
    for at in [1, 2] {
        cluster.members[at].wait_healthy()?;
        ensure!(names(&urls[at])? == ["before", "only the others have it", "still here"]);
    }

    // They go down and come up beside it. Whoever is first hears nobody but the forced one, which leads itself.
    for at in [1, 2] {
        cluster.members[at].kill()?;
    }
    for at in [1, 2] {
        cluster.members[at].spawn()?;
    }
    for at in [1, 2] {
        cluster.members[at].wait_healthy()?;
        ensure!(names(&urls[at])? == ["before", "only the others have it", "still here"]);
    }

    // Once more with the flag and once without it: it is one already, and stays of its life.
    for without in [false, true] {
        ensure!(cluster.members[0].terminate()?.success());
        if without {
            cluster.members[0].set_flags(|flags| flags.retain(|flag| flag != "--force-new-cluster"));
        }
        cluster.members[0].spawn()?;
        cluster.members[0].wait_healthy()?;
        ensure!(identity(&cluster.members[0])?["cluster_uuid"] == now["cluster_uuid"]);
    }
    ensure!(names(&urls[0])? == ["before", "only the forced one has it"]);

    // Nothing to continue: no empty cluster is made of a mistyped path.
    ensure!(cluster.members[0].terminate()?.success());
    let nowhere = cluster.path().join("nowhere");
    cluster.members[0].add_flag("--force-new-cluster");
    cluster.members[0].add_flag(format!("--data-dir={}", nowhere.display()));
    cluster.members[0].add_flag("--allow-empty-data-dir");
    cluster.members[0].spawn()?;
    ensure!(cluster.members[0].wait_exit()?.code() == Some(64), "{}", cluster.members[0].log_tail());
    ensure!(!nowhere.join("member").exists());
    Ok(())
}

/// Regression ME03: whoever else was a member, a learner too, also when the log begins after a snapshot.
#[test]
fn force_new_cluster_drops_everyone_else() -> Result<()> {
    const WRITES: usize = 300;
    let flags = ["--snapshot-count=50", "--snapshot-catchup-entries=10"];
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &flags)?;
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    let url = cluster.members[0].client_url.clone();
    let learner = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: true };
    // Members that have only just met are not yet a healthy cluster, as in etcd.
    wait_for("the learner to be added", || {
        block_on(async { ClusterClient::new(channel(&url).ok()?).member_add(learner.clone()).await.ok() })
    })?;
    for at in 0..WRITES {
        put(&url, &format!("k{at:03}"), "1")?;
    }
    for member in &mut cluster.members {
        member.kill()?;
    }
    cluster.members[0].add_flag("--force-new-cluster");
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    put(&url, "after", "1")?;
    ensure!(keys(&url)?.len() == WRITES + 1);
    let list = block_on(async {
        let request = MemberListRequest { linearizable: true };
        Ok::<_, anyhow::Error>(ClusterClient::new(channel(&url)?).member_list(request).await?.into_inner())
    })?;
    ensure!(list.members.len() == 1 && list.members[0].name == "m1", "{:?}", list.members);
    Ok(())
}
