//! Members that lose their history and take their own place (`auto-replace=learner`), under load, killed before every write.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use api::etcdserverpb::{MemberListRequest, cluster_client::ClusterClient};
use cairn_tests::{
    harness::{Cluster, Kind, Member, deadly_disk::DeadlyDisk, wait_for},
    recorder::{Writers, channel, verify_equal},
};

use super::{block_on, identity};

const ON: &str = "--auto-replace=learner";

fn id(member: &Member) -> Result<u64> {
    let id = identity(member)?["member_id"].as_str().context("an id")?.to_owned();
    Ok(u64::from_str_radix(&id, 16)?)
}

/// All three vote and have said their names, and this id is gone.
fn replaced(cluster: &Cluster, at: usize, old: u64) -> Result<u64> {
    let asked = &cluster.members[(at + 1) % 3].client_url;
    wait_for("three voters", || {
        let request = MemberListRequest { linearizable: true };
        let members =
            block_on(async { ClusterClient::new(channel(asked).ok()?).member_list(request).await.ok() })?
                .into_inner()
                .members;
        let new = members.iter().find(|member| member.name == cluster.members[at].name)?.id;
        let whole = members.iter().all(|member| !member.is_learner && !member.name.is_empty());
        (whole && members.len() == 3 && new != old).then_some(new)
    })
    .with_context(|| format!("{} ends with:\n{}", cluster.members[at].name, cluster.members[at].log_tail()))
}

fn let_write(writers: &Writers, more: u64) -> Result<()> {
    let goal = writers.acknowledged() + more;
    wait_for("acknowledged writes", || (writers.acknowledged() >= goal).then_some(()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = (entry?, |name: &std::ffi::OsStr| to.join(name));
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target(&entry.file_name()))?,
            false => drop(fs::copy(entry.path(), target(&entry.file_name()))?),
        }
    }
    Ok(())
}

/// Puts what was set aside in the place of a directory.
fn roll_back(dir: &Path, aside: &Path) -> Result<()> {
    fs::remove_dir_all(dir)?;
    fs::rename(aside, dir)?;
    Ok(())
}

fn quarantines(parent: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What a start finds: how far the note is, which directories there are, and whose identity it is.
fn state(member: &Member) -> String {
    let json = |path: &str| -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(member.data_dir.join(path)).ok()?).ok()
    };
    let names = quarantines(&member.data_dir, "member").unwrap_or_default();
    let mut names: Vec<_> = names.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    names.sort_unstable();
    let (note, identity) = (json("replace.json"), json("member/identity.json"));
    let field =
        |value: &Option<serde_json::Value>, name: &str| value.as_ref().map(|value| value[name].to_string());
    format!(
        "note {:?}, {names:?}, {:?} {:?}",
        field(&note, "step"),
        field(&identity, "member_id"),
        field(&identity, "state")
    )
}

/// Killed before the first write of a start, then before the second, and so on, from the beginning again wherever a state of the disk is
/// reached that was not there yet; until the new member serves. Gives the states.
fn start_and_kill_before_every_write(member: &mut Member, around: &Path) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::from([state(member)]);
    let (mut number, mut starts) = (1, 0);
    loop {
        let deadly = DeadlyDisk::kill_before(number, member, around)?;
        let told = member.log().len();
        member.spawn()?;
        let killed = wait_for("a kill or the new member", || match deadly.step() {
            Some(_) => Some(true),
            None => member.log()[told..].contains("ready to serve client requests").then_some(false),
        });
        if !killed.with_context(|| format!("before write {number}; {}", member.log_tail()))? {
            break;
        }
        member.wait_exit()?;
        starts += 1;
        number = if seen.insert(state(member)) { 1 } else { number + 1 };
    }
    println!("{starts} starts were killed, in these states: {seen:#?}");
    member.kill()?;
    member.clear_env();
    Ok(seen)
}

/// A8, A11, B12 and R3 with `auto-replace`: an empty directory, an older one with a log of its own, and one that is found out while it runs.
#[test]
fn a_member_without_its_history_takes_its_own_place_under_load() -> Result<()> {
    // The check makes members that have only just met wait for five seconds before each change.
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &["--strict-reconfig-check=false"])?;
    let wal_dir = cluster.path().join("m2-wal");
    cluster.members[1].add_flag(format!("--wal-dir={}", wal_dir.display()));
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    let urls: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    let lives = |member: &Member| identity(member).ok()?["cluster_uuid"].as_str().map(drop);
    for member in &cluster.members {
        wait_for("the life of the cluster", || lives(member))?;
    }
    let writers = Writers::start(urls.clone(), 2);
    let_write(&writers, 100)?;
    let ids = cluster.members.iter().map(id).collect::<Result<Vec<_>>>()?;

    // Off by default.
    cluster.members[2].kill()?;
    fs::remove_dir_all(&cluster.members[2].data_dir)?;
    cluster.members[2].spawn()?;
    ensure!(cluster.members[2].wait_exit()?.code() == Some(79), "{}", cluster.members[2].log_tail());
    ensure!(!cluster.members[2].data_dir.exists());

    cluster.members[2].add_flag(ON);
    cluster.members[2].spawn()?;
    let third = replaced(&cluster, 2, ids[2])?;
    cluster.members[2].wait_healthy()?;
    let now = identity(&cluster.members[2])?;
    ensure!(
        now["replaces"]["member"] == format!("{:x}", ids[2]).as_str() && id(&cluster.members[2])? == third,
        "{now}"
    );
    ensure!(!cluster.members[2].data_dir.join("replace.json").exists());
    let_write(&writers, 100)?;

    // Once more, at once: a disk that is empty at every start must not take members away for ever. Its flags would found the first id.
    cluster.members[2].kill()?;
    let aside = cluster.path().join("aside/m3");
    fs::create_dir(cluster.path().join("aside"))?;
    fs::rename(&cluster.members[2].data_dir, &aside)?;
    cluster.members[2].spawn()?;
    ensure!(cluster.members[2].wait_exit()?.code() == Some(79), "{}", cluster.members[2].log_tail());
    let text = cluster.members[2].log_tail();
    ensure!(
        text.contains(&format!("{third:x} joined with an empty directory")) && text.contains("within 600 s"),
        "{text}"
    );
    let _ = fs::remove_dir_all(&cluster.members[2].data_dir);
    fs::rename(&aside, &cluster.members[2].data_dir)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_healthy()?;

    // An older copy with a log directory of its own, killed before every write.
    let (data_dir, older) = (cluster.members[1].data_dir.clone(), cluster.path().join("older"));
    ensure!(cluster.members[1].terminate()?.success());
    copy(&data_dir, &older.join("data"))?;
    copy(&wal_dir, &older.join("wal"))?;
    cluster.members[1].spawn()?;
    cluster.members[1].wait_healthy()?;
    let_write(&writers, 50)?;
    cluster.members[1].kill()?;
    roll_back(&data_dir, &older.join("data"))?;
    roll_back(&wal_dir, &older.join("wal"))?;
    cluster.members[1].add_flag(ON);
    let around = cluster.path().to_path_buf();
    let states = start_and_kill_before_every_write(&mut cluster.members[1], &around)?;
    for step in ["decided", "aside", "removed", "added"] {
        ensure!(states.iter().any(|state| state.contains(step)), "{step}: {states:#?}");
    }
    // As an operator who has changed his mind: what was begun is finished.
    cluster.members[1].add_flag("--auto-replace=off");
    cluster.members[1].spawn()?;
    replaced(&cluster, 1, ids[1])?;
    cluster.members[1].wait_healthy()?;
    let kept = quarantines(&data_dir, "member.quarantine-")?;
    ensure!(kept.len() == 1, "{kept:?}");
    let old: serde_json::Value = serde_json::from_slice(&fs::read(kept[0].join("identity.json"))?)?;
    ensure!(old["member_id"] == format!("{:x}", ids[1]).as_str(), "{old}");
    ensure!(quarantines(cluster.path(), "m2-wal.quarantine-")?.len() == 1);
    let_write(&writers, 50)?;
    let record = writers.finish();

    // Found out while it runs: nobody is there when it starts.
    let data_dir = cluster.members[0].data_dir.clone();
    ensure!(cluster.members[0].terminate()?.success());
    copy(&data_dir, &older)?;
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    for member in &mut cluster.members {
        member.kill()?;
    }
    roll_back(&data_dir, &older)?;
    cluster.members[0].add_flag(ON);
    let before = cluster.members[0].log().len();
    cluster.members[0].spawn()?;
    let says = |member: &Member, words: &str| member.log()[before..].contains(words).then_some(());
    wait_for("it runs", || says(&cluster.members[0], "listening for client requests"))?;
    for at in [1, 2] {
        cluster.members[at].spawn()?;
    }
    replaced(&cluster, 0, ids[0])?;
    says(&cluster.members[0], "does not belong to the running cluster").context("it ran")?;
    cluster.wait_healthy()?;

    block_on(async {
        for url in &urls {
            record.verify(url).await?;
        }
        verify_equal(&urls).await
    })
}

/// A running member that is found out remembers it. Allowed to act later, it replaces itself from what its directory says.
#[test]
fn a_quarantined_directory_is_replaced_once_that_is_allowed() -> Result<()> {
    let mut cluster = Cluster::start_with(Kind::Cairn, 3, &["--strict-reconfig-check=false"])?;
    for member in &cluster.members {
        wait_for("the life of the cluster", || identity(member).ok()?["cluster_uuid"].as_str().map(drop))?;
    }
    let old = id(&cluster.members[0])?;
    let (data_dir, older) = (cluster.members[0].data_dir.clone(), cluster.path().join("older"));
    ensure!(cluster.members[0].terminate()?.success());
    copy(&data_dir, &older)?;
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    for member in &mut cluster.members {
        member.kill()?;
    }
    roll_back(&data_dir, &older)?;

    let before = cluster.members[0].log().len();
    cluster.members[0].spawn()?;
    let says = |member: &Member, words: &str| member.log()[before..].contains(words).then_some(());
    wait_for("it runs", || says(&cluster.members[0], "listening for client requests"))?;
    for at in [1, 2] {
        cluster.members[at].spawn()?;
    }
    ensure!(cluster.members[0].wait_exit()?.code() == Some(79), "{}", cluster.members[0].log_tail());
    let state = identity(&cluster.members[0])?["state"].clone();
    ensure!(state["quarantined"].is_object(), "{state}");
    cluster.members[0].spawn()?;
    ensure!(cluster.members[0].wait_exit()?.code() == Some(79), "{}", cluster.members[0].log_tail());
    says(&cluster.members[0], "REFUSED QUARANTINED").context("it is remembered")?;

    cluster.members[0].add_flag(ON);
    cluster.members[0].spawn()?;
    replaced(&cluster, 0, old)?;
    ensure!(quarantines(&data_dir, "member.quarantine-")?.len() == 1, "the old directory is kept");
    cluster.wait_healthy()
}

/// One of two is no quorum, so its id must stay: the other could not agree to anything.
#[test]
fn one_of_two_does_not_replace_itself_and_gives_the_count() -> Result<()> {
    let mut cluster = Cluster::start_with(Kind::Cairn, 2, &[ON])?;
    for member in &cluster.members {
        wait_for("the life of the cluster", || identity(member).ok()?["cluster_uuid"].as_str().map(drop))?;
    }
    cluster.members[1].kill()?;
    fs::remove_dir_all(&cluster.members[1].data_dir)?;
    cluster.members[1].spawn()?;
    ensure!(cluster.members[1].wait_exit()?.code() == Some(79));
    let text = cluster.members[1].log_tail();
    ensure!(
        text.contains("REFUSED LOST_DATA")
            && text.contains("2 of 2 voters are a quorum, and without this member there is 1"),
        "{text}"
    );
    ensure!(!cluster.members[1].data_dir.exists());
    Ok(())
}
