//! Three members: wiped beside frozen peers, with a directory of somebody else, without a log.

use std::fs;

use anyhow::{Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind},
    refusals::{carry_out, changed, ended, life, refused, stored_id, tree},
};
use nix::sys::signal::Signal;

use crate::{ctl, flags, start, stop};

/// With one key, and sure of its life.
fn three() -> Result<Cluster> {
    let cluster = Cluster::start(Kind::Cairn, 3)?;
    cluster.members.iter().try_for_each(|member| life(member).map(drop))?;
    ctl(&cluster, &["put", "k", "v"])?;
    Ok(cluster)
}

/// A8, E, PZ, B8.
#[test]
fn a_member_with_nothing_or_with_a_neighbours_directory() -> Result<()> {
    let mut cluster = three()?;
    let id = stored_id(&cluster.members[2])?;
    let aside = cluster.path().join("far/aside");
    fs::create_dir_all(&aside)?;
    let right = flags(&mut cluster.members[2]);
    let dir = cluster.members[2].data_dir.clone();

    // Without its directory, while one peer is frozen and the other is down: no time makes that a yes, and nobody is served.
    cluster.members[2].kill()?;
    fs::rename(&dir, aside.join("m3"))?;
    cluster.members[0].kill()?;
    cluster.members[1].signal(Signal::SIGSTOP)?;
    cluster.members[2].spawn()?;
    let line = cluster.members[2].wait_log("\"waited-s\":")?;
    ensure!(line.contains("m1 (") && line.contains("m2 ("), "{line}");
    ensure!(cairn_tests::harness::http_get(&cluster.members[2].client_url, "/health").is_err());
    cluster.members[1].signal(Signal::SIGCONT)?;
    // One that says so is enough for a member that has nothing.
    let text = ended(&mut cluster.members[2], "LOST_DATA", 79);
    text.says(&[&id, "boot #1", "at peer m2", &format!("member remove {id}")]);
    ensure!(!dir.exists(), "the refused start left its directory");
    start(&mut cluster.members[0])?;

    // The directory of another member, which is down.
    stop(&mut cluster.members[1])?;
    let theirs = cluster.members[1].data_dir.clone();
    let before = tree(&theirs);
    let third = &mut cluster.members[2];
    third.data_dir = theirs.clone();
    third.add_flag(format!("--data-dir={}", theirs.display()));
    let text = refused(third, "WRONG_DIR", 78);
    text.says(&[
        "belongs to member m2, not to m3",
        "name m2",
        "name m3",
        &format!("--data-dir={}", theirs.display()),
    ]);
    // Also when the settings are those of the other but for its URL.
    third.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--initial-cluster=")));
    third.add_flag("--name=m2");
    let text = refused(third, "PEER_URL_MISMATCH", 78);
    text.says(&[&third.peer_url]);
    ensure!(changed(&before, &tree(&theirs)).is_empty());
    third.data_dir = dir.clone();
    third.set_flags(|flags| flags.clone_from(&right));
    fs::rename(aside.join("m3"), &dir)?;
    start(&mut cluster.members[1])?;
    start(&mut cluster.members[2])
}

/// B10, B13.
#[test]
fn a_member_with_a_foreign_directory_or_without_a_log() -> Result<()> {
    let mut cluster = three()?;
    let id = stored_id(&cluster.members[2])?;
    let aside = cluster.path().join("far/aside");
    fs::create_dir_all(&aside)?;
    let right = flags(&mut cluster.members[2]);
    let dir = cluster.members[2].data_dir.clone();

    // A directory of another cluster that was founded with this member's name, URL and token.
    stop(&mut cluster.members[2])?;
    fs::rename(&dir, aside.join("m3"))?;
    let third = &mut cluster.members[2];
    third.add_flag(format!("--initial-cluster=m3={}", third.peer_url));
    start(third)?;
    life(third)?;
    stop(third)?;
    third.set_flags(|flags| flags.clone_from(&right));
    let text = refused(third, "OTHER_CLUSTER", 78);
    text.says(&["at peer m", "cluster ", "--data-dir=", "do not delete"]);
    fs::rename(&dir, aside.join("foreign"))?;
    fs::rename(aside.join("m3"), &dir)?;
    start(third)?;

    // Its log is lost, and with it what it promised: replaced as printed.
    stop(third)?;
    fs::rename(dir.join("member/wal"), aside.join("wal"))?;
    let text = refused(third, "WAL_MISSING", 66);
    text.says(&[&id, &dir.join("member/wal").display().to_string(), "--wal-dir"]);
    carry_out(text.remedy("else replace it"), third)?;
    start(third)?;
    ensure!(stored_id(third)? != id, "an id with lost history is not used again");
    cluster.wait_healthy()?;
    ensure!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim() == "v");
    Ok(())
}
