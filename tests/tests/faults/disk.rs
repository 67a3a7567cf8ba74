//! Disks that are full, damaged or half empty.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use api::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use cairn_tests::{
    harness::{Cluster, Kind, Member, wait_for},
    namespace,
    recorder::{Writers, channel, verify_equal},
};
use rand::Rng;

use crate::{block_on, endpoints, let_write, random, range, snapshot::fill, verify};

/// Every file below and its bytes, apart from the lock, which names its last holder.
fn files(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_none_or(|name| name != "LOCK") {
                found.insert(path.clone(), fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// A start ends with this code and name, says all this, and leaves every byte on disk as it was.
pub fn expect_refused(member: &mut Member, code: i32, name: &str, says: &[&str]) -> Result<()> {
    let before = files(&member.data_dir)?;
    let told = member.log().len();
    member.spawn()?;
    let status = member.wait_exit()?;
    let log = member.log();
    let said = &log[told..];
    assert_eq!(status.code(), Some(code), "{name}: {said}");
    for text in [format!("REFUSED {name}").as_str(), "remedy:", "never:"].iter().chain(says) {
        assert!(said.contains(text), "{text:?} is missing in: {said}");
    }
    let after = files(&member.data_dir)?;
    let changed: Vec<_> = after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).collect();
    assert!(
        changed.is_empty(),
        "{name}: changed {:?}",
        changed.iter().map(|(path, _)| path).collect::<Vec<_>>()
    );
    assert_eq!(before.len(), after.len(), "{name}: a file is gone");
    Ok(())
}

/// The newest segment of the log.
fn segment(member: &Member) -> Result<PathBuf> {
    let mut segments: Vec<PathBuf> = fs::read_dir(member.data_dir.join("member/wal"))?
        .map(|entry| Ok(entry?.path()))
        .filter(|path: &Result<PathBuf>| {
            path.as_ref().is_ok_and(|path| path.extension().is_some_and(|e| e == "wal"))
        })
        .collect::<Result<_>>()?;
    segments.sort();
    segments.pop().context("a segment")
}

/// A member with some history, killed, and what it promised.
fn killed_member() -> Result<(Cluster, cairn_tests::recorder::Record)> {
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    let writers = Writers::start(endpoints(&cluster), 4);
    let_write(&writers, 500)?;
    cluster.members[0].kill()?;
    Ok((cluster, writers.finish()))
}

#[test]
fn damage_below_the_commit_is_refused_and_nothing_is_changed() -> Result<()> {
    let mut random = random("damage_below_the_commit_is_refused_and_nothing_is_changed");
    let (mut cluster, record) = killed_member()?;
    let path = segment(&cluster.members[0])?;
    let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
    let whole = fs::read(&path)?;
    let places: Vec<usize> = (0..whole.len() - 8).filter(|at| whole[*at..].starts_with(b"writer/")).collect();
    assert!(places.len() > 400, "every put is in the log");
    for _ in 0..4 {
        // Well below the end, so that later syncs prove that this was no torn write.
        let at = places[random.random_range(0..places.len() / 2)];
        let mut damaged = whole.clone();
        damaged[at + 2] ^= 0x20;
        fs::write(&path, &damaged)?;
        let told = ["offset", "index", &name, "do not cut the log by hand"];
        expect_refused(&mut cluster.members[0], 65, "LOG_DAMAGED", &told)?;
    }
    fs::write(&path, &whole)?;
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    verify(&cluster, &record)
}

#[test]
fn a_torn_last_record_is_cut_and_everything_promised_is_there() -> Result<()> {
    let (mut cluster, record) = killed_member()?;
    let path = segment(&cluster.members[0])?;
    let bytes = fs::read(&path)?;
    let last = bytes.iter().rposition(|byte| *byte != 0).context("a log that is not empty")?;
    // What a power cut leaves of one more write: a record of 6000 bytes of which the first sectors arrived.
    let end = (last + 1).next_multiple_of(8) as u64;
    let torn: Vec<u8> = 6000_u64.to_le_bytes().into_iter().chain([0xa5; 1500]).collect();
    fs::OpenOptions::new().write(true).open(&path)?.write_all_at(&torn, end)?;
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    verify(&cluster, &record)?;
    let copies = fs::read_dir(path.parent().context("a directory")?)?.flatten();
    let kept = copies.filter(|entry| entry.path().extension().is_some_and(|end| end == "broken")).count();
    assert_eq!(kept, 1, "the segment is kept as it was found");
    Ok(())
}

#[test]
fn a_missing_log_is_refused() -> Result<()> {
    let (mut cluster, record) = killed_member()?;
    let wal = cluster.members[0].data_dir.join("member/wal");
    let aside = cluster.path().join("wal-aside");
    fs::rename(&wal, &aside)?;
    let told = [wal.to_string_lossy().into_owned()];
    expect_refused(&mut cluster.members[0], 66, "WAL_MISSING", &[&told[0]])?;
    fs::rename(&aside, &wal)?;
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    verify(&cluster, &record)
}

/// Puts of new keys until nothing is taken any more: those acknowledged, and the last refusal.
fn fill_disk(member: &Member, round: u32) -> Result<(BTreeMap<String, i64>, String)> {
    const CLIENTS: usize = 4;
    /// A member that took so much has more room than it was given.
    const PUTS_MAX: usize = 2000;
    let endpoint = member.client_url.clone();
    block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            let mut kv = KvClient::new(channel(&endpoint)?);
            tasks.spawn(async move {
                let value = bytes::Bytes::from(vec![b'0' + client as u8; 200 << 10]);
                let mut promised = Vec::new();
                for number in 0..PUTS_MAX {
                    let key = format!("fill/{round}/{client}/{number}");
                    let request =
                        PutRequest { key: key.clone().into(), value: value.clone(), ..Default::default() };
                    match kv.put(request).await {
                        Ok(answer) => promised
                            .push((key, answer.into_inner().header.map_or(0, |header| header.revision))),
                        Err(status) => return (promised, status.message().to_owned()),
                    }
                }
                (promised, String::new())
            });
        }
        let (mut promised, mut refusal) = (BTreeMap::new(), String::new());
        while let Some(ended) = tasks.join_next().await {
            let (keys, text) = ended?;
            promised.extend(keys);
            refusal = text;
        }
        Ok((promised, refusal))
    })
}

/// Grows the ballast until about this much is free; the member may be using up some of it meanwhile.
fn leave_room(disk: &Path, ballast: &Path, room: u64) -> Result<()> {
    let free = || -> Result<u64> {
        let now = nix::sys::statvfs::statvfs(disk)?;
        Ok(now.blocks_available() * now.fragment_size())
    };
    let mut file = fs::File::create(ballast)?;
    while free()? > room {
        let step = (free()?.saturating_sub(room)).min(1 << 20) as usize;
        if file.write_all(&vec![b'b'; step]).is_err() {
            break;
        }
    }
    Ok(())
}

#[test]
fn full_disk_then_restart() -> Result<()> {
    if !namespace::entered("disk::full_disk_then_restart")? {
        return Ok(());
    }
    let mut random = random("full_disk_then_restart");
    let mut cluster = Cluster::prepare(Kind::Cairn, 1, &["--snapshot-count=200"])?;
    let disk = cluster.path().join("disk");
    const DISK_MIB: u64 = 400;
    namespace::mount(&disk, DISK_MIB)?;
    let member = &mut cluster.members[0];
    member.data_dir = disk.join("data");
    let flag = format!("--data-dir={}", member.data_dir.display());
    member.add_flag(flag);
    let ballast = disk.join("ballast");
    let mut promised = BTreeMap::new();
    for round in 0..4 {
        cluster.members[0].spawn()?;
        cluster.wait_healthy()?;
        // The room that is left decides what meets the end: the log, its next segment, or the state.
        let room = random.random_range(4..24_u64) << 20;
        leave_room(&disk, &ballast, room)?;
        println!("round {round}: {} MiB of room", room >> 20);
        let member = &mut cluster.members[0];
        let told = member.log().len();
        let (taken, refusal) = fill_disk(member, round)?;
        println!("{} puts taken, then {refusal:?}", taken.len());
        promised.extend(taken);
        let status = member.wait_exit()?;
        let log = member.log();
        assert_eq!(status.code(), Some(74), "a full disk ends the member: {}", &log[told..]);
        let last = log[told..].lines().rfind(|line| line.contains("cannot go on")).context("last words")?;
        assert!(last.contains("no space left") || last.contains("No space left"), "what is wrong: {last}");
        assert!(last.contains(&*disk.to_string_lossy()), "where: {last}");

        // While the disk is still full it serves what it has, or says why not.
        let told = log.len();
        member.spawn()?;
        let up = member.wait_healthy().is_ok();
        println!("with the disk still full: {}", if up { "it starts" } else { "it does not start" });
        if up {
            member.kill()?;
        } else {
            let log = member.log();
            let said = log[told..].to_ascii_lowercase();
            assert!(said.contains("io_error") && said.contains("no space left"), "{said}");
        }
        fs::remove_file(&ballast)?;
    }
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    assert!(!promised.is_empty(), "something was written");
    let request = RangeRequest {
        key: "fill/".into(),
        range_end: "fill0".into(),
        keys_only: true,
        ..Default::default()
    };
    let answer = block_on(range(&cluster.members[0].client_url, request))?;
    let found: BTreeMap<String, i64> = answer
        .kvs
        .into_iter()
        .map(|kv| Ok((String::from_utf8(kv.key.to_vec())?, kv.mod_revision)))
        .collect::<Result<_>>()?;
    for (key, revision) in &promised {
        assert_eq!(found.get(key), Some(revision), "{key} was acknowledged");
    }
    wait_for("a new write", || crate::put(&endpoints(&cluster), "after", "1").ok())?;
    Ok(())
}

/// Room for each step of a first start in turn is missing.
#[test]
fn a_first_start_on_a_full_disk_says_so_and_the_next_one_succeeds() -> Result<()> {
    if !namespace::entered("disk::a_first_start_on_a_full_disk_says_so_and_the_next_one_succeeds")? {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(Kind::Cairn, 1, &[])?;
    let disk = cluster.path().join("disk");
    namespace::mount(&disk, 200)?;
    let member = &mut cluster.members[0];
    member.data_dir = disk.join("data");
    let flag = format!("--data-dir={}", member.data_dir.display());
    member.add_flag(flag);
    let ballast = disk.join("ballast");
    for room in [0, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 60 << 20, 62 << 20, 70 << 20] {
        let _ = fs::remove_dir_all(&member.data_dir);
        leave_room(&disk, &ballast, room)?;
        let told = member.log().len();
        member.spawn()?;
        let up = member.wait_healthy().is_ok();
        println!("{} KiB: {}", room >> 10, if up { "it starts" } else { "it does not start" });
        if up {
            member.kill()?;
        } else {
            let log = member.log();
            let said = log[told..].to_ascii_lowercase();
            assert!(said.contains("io_error") && said.contains("no space left"), "{room}: {said}");
        }
        fs::remove_file(&ballast)?;
        member.spawn()?;
        member.wait_healthy()?;
        crate::put(std::slice::from_ref(&member.client_url), "a", "1")?;
        member.kill()?;
    }
    Ok(())
}

#[test]
fn a_follower_without_room_for_a_snapshot_catches_up_once_it_has_some() -> Result<()> {
    if !namespace::entered("disk::a_follower_without_room_for_a_snapshot_catches_up_once_it_has_some")? {
        return Ok(());
    }
    let mut cluster =
        Cluster::prepare(Kind::Cairn, 3, &["--snapshot-count=100", "--snapshot-catchup-entries=50"])?;
    let disk = cluster.path().join("disk");
    namespace::mount(&disk, 400)?;
    let follower = 2;
    let member = &mut cluster.members[follower];
    member.data_dir = disk.join("data");
    let flag = format!("--data-dir={}", member.data_dir.display());
    member.add_flag(flag);
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    cluster.members[follower].kill()?;
    let leader = crate::wait_leader_among(&cluster, &[0, 1])?;
    fill(&cluster.members[leader].client_url, 600, 100 << 10)?;
    let ballast = disk.join("ballast");
    leave_room(&disk, &ballast, 12 << 20)?;
    let told = cluster.members[follower].log().len();
    cluster.members[follower].spawn()?;
    let said = wait_for("a snapshot that does not fit", || {
        let log: String = cluster.members.iter().map(|member| member.log()).collect();
        let follower = cluster.members[follower].log()[told..].to_owned();
        (follower + &log)
            .lines()
            .find(|line| line.contains("o room for it beside the log and the state"))
            .map(str::to_owned)
    })?;
    println!("{said}");
    fs::remove_file(&ballast)?;
    let member = &mut cluster.members[follower];
    if member.wait_healthy().is_err() {
        assert!(
            member.log()[told..].contains("\"exit\":74"),
            "a full disk ends a member with 74: {}",
            member.log_tail()
        );
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    wait_for("equal members", || block_on(verify_equal(&endpoints(&cluster))).ok())?;
    Ok(())
}
