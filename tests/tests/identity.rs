//! Members that are formed, restarted, cloned, lost, restored and renamed wrongly: release binaries, each row ending in a refusal that names
//! cause, evidence and remedy, or in a correct member. The remedy that is printed is carried out as it stands.
//!
//! The rows are those of the table in `daemon/src/bootstrap/rows.rs`; what concerns one directory alone is tested in the daemon's own tests.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, Member, cairn_binary, free_ports, http_get, wait_for},
    refusals::{self, Refused, carry_out, copy, ended, insist, life, refused, refused_with_ports},
};
use nix::sys::signal::Signal;

/// Three members that know which life of their cluster this is: it is written down a moment after the first write may be taken.
fn three(extra: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::start_with(Kind::Cairn, 3, extra)?;
    cluster.members.iter().try_for_each(|member| life(member).map(drop))?;
    Ok(cluster)
}

/// Replaced as the refusal prints it, down to the start.
fn replace_as_printed(member: &mut Member, text: &Refused) -> Result<()> {
    carry_out(text.remedy(" member add "), member)?;
    member.spawn()?;
    member.wait_healthy()
}

/// At the first member that runs, and again while the cluster is not sure of itself.
fn ctl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let endpoint = cluster
        .members
        .iter()
        .find(|member| member.is_running())
        .context("somebody runs")?
        .client_url
        .clone();
    insist(&[&[&format!("--endpoints={endpoint}")[..]], args].concat())
}

fn stored(member: &Member) -> serde_json::Value {
    refusals::stored(member).unwrap()
}

/// Another one of those that run leads.
fn change_leader(cluster: &Cluster) -> Result<()> {
    let leader = cluster.wait_leader()?;
    let (at, other) =
        (&cluster.members[leader], (0..3).find(|at| *at != leader && cluster.members[*at].is_running()));
    let other = stored(&cluster.members[other.context("somebody else runs")?]);
    let id = other["member_id"].as_str().context("an id")?.to_owned();
    insist(&[&format!("--endpoints={}", at.client_url), "move-leader", &id])?;
    wait_for("the other leader", || (cluster.wait_leader().ok()? != leader).then_some(()))
}

/// A1, A8: whoever comes first waits, says for whom, serves nobody, and is stopped or killed without a trace that binds.
#[test]
fn founders_wait_for_each_other_and_say_for_whom() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    cluster.members[0].spawn()?;
    let line = cluster.members[0].wait_log("waiting for the first members")?;
    assert!(line.contains("m2 (") && line.contains("m3 ("), "{line}");
    assert!(http_get(&cluster.members[0].client_url, "/health").is_err(), "nobody is served");
    // Nobody has counted it: a stop leaves nothing.
    assert_eq!(cluster.members[0].terminate()?.code(), Some(0));
    assert!(!cluster.members[0].data_dir.exists());
    cluster.members[0].spawn()?;
    cluster.members[1].spawn()?;
    let line = cluster.members[0].wait_log("--initial-cluster-attendance=majority")?;
    assert!(line.contains("\"waited-s\":5") && line.contains("\"present\":[\"m2\"]"), "{line}");
    // Frozen is not gone (PZ).
    cluster.members[1].signal(Signal::SIGSTOP)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_log("waiting for the first members")?;
    cluster.members[1].signal(Signal::SIGCONT)?;
    cluster.wait_healthy()?;
    let lives = cluster.members.iter().map(life).collect::<Result<Vec<_>>>()?;
    assert!(lives.iter().all(|life| *life == lives[0]), "{lives:?}");
    assert!(cluster.members.iter().all(|member| stored(member)["state"] == "born"));
    Ok(())
}

/// A4, A5, A6: everybody who hears of it ends with the difference, and correcting the setting is all it takes.
#[test]
fn founders_with_different_settings_end_with_the_difference() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    let right: Vec<String> =
        cluster.members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
    let spelled = right.join(",").replace("m1=http://127.0.0.1", "m1=http://localhost");
    for (flag, mended, words) in [
        ("--initial-cluster-token=other", "--initial-cluster-token=tests", "--initial-cluster-token"),
        (
            &format!("--initial-cluster={spelled}")[..],
            &format!("--initial-cluster={}", right.join(","))[..],
            "spelled differently",
        ),
        (
            &format!("--initial-cluster={},m4=http://127.0.0.1:9", right.join(","))[..],
            &format!("--initial-cluster={}", right.join(","))[..],
            "m4: ",
        ),
    ] {
        cluster.members[2].add_flag(flag);
        for at in [0, 1] {
            let told = cluster.members[at].log().len();
            cluster.members[at].spawn()?;
            let member = &cluster.members[at];
            wait_for("it waits", || {
                member.log()[told..].contains("waiting for the first members").then_some(())
            })?;
        }
        cluster.members[2].spawn()?;
        for member in &mut cluster.members {
            let text = ended(member, "GENESIS_MISMATCH", 78);
            text.says(&[words, "nothing has been founded yet"]);
        }
        assert!(!cluster.members[2].data_dir.exists(), "nobody could count it");
        cluster.members[2].add_flag(mended);
    }
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()
}

/// A7, A9, A10, A11, D1, D2: a member without its directory, whatever it is told to do and whoever leads.
#[test]
fn a_wiped_member_is_refused_whoever_leads_and_is_replaced_as_printed() -> Result<()> {
    let mut cluster = three(&[])?;
    ctl(&cluster, &["put", "k", "v"])?;
    let id = stored(&cluster.members[2])["member_id"].as_str().unwrap_or_default().to_owned();
    cluster.members[2].kill()?;
    fs::remove_dir_all(&cluster.members[2].data_dir)?;
    let dir = cluster.members[2].data_dir.display().to_string();
    let words = [&id, &format!("member remove {id}"), "boot #1", &dir];
    cluster.members[2].add_flag("--initial-cluster-state=new");
    refused_with_ports(&mut cluster.members[2], "LOST_DATA", 79).says(&words);
    cluster.members[2].add_flag("--initial-cluster-state=existing");
    let text = refused(&mut cluster.members[2], "LOST_DATA", 79);
    text.says(&words);
    change_leader(&cluster)?;
    cluster.members[2].add_flag("--initial-cluster-state=new");
    refused_with_ports(&mut cluster.members[2], "LOST_DATA", 79).says(&[&id]);
    cluster.members[2].add_flag("--initial-cluster-token=third");
    refused_with_ports(&mut cluster.members[2], "CLUSTER_RUNS", 78).says(&[&id, "token"]);
    cluster.members[2].add_flag("--initial-cluster-token=tests");
    replace_as_printed(&mut cluster.members[2], &text)?;
    assert_ne!(
        stored(&cluster.members[2])["member_id"],
        id.as_str(),
        "an id with lost history is not used again"
    );
    assert_eq!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim(), "v");
    Ok(())
}

/// B9, B11, B12, M, M2: older copies and living copies of a directory.
#[test]
fn a_copied_directory_is_refused_and_the_real_one_goes_on() -> Result<()> {
    let mut cluster = three(&[])?;
    ctl(&cluster, &["put", "k", "1"])?;
    let aside = cluster.path().join("aside");
    assert_eq!(cluster.members[2].terminate()?.code(), Some(0));
    copy(&cluster.members[2].data_dir.clone(), &aside.join("older"))?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_healthy()?;

    // A clone comes up while the real one serves (K3). Its listeners are its own, its identity is not.
    let live = cluster.members[2].data_dir.clone();
    copy(&live, &aside.join("clone"))?;
    let ports = free_ports(2)?;
    let mut clone = cluster.members[2].twin();
    clone.data_dir = aside.join("clone");
    clone.add_flag(format!("--data-dir={}", clone.data_dir.display()));
    clone.add_flag(format!("--listen-peer-urls=http://127.0.0.1:{}", ports[0]));
    clone.add_flag(format!("--listen-client-urls=http://127.0.0.1:{}", ports[1]));
    clone.spawn()?;
    let text = ended(&mut clone, "DUPLICATE_INSTANCE", 78);
    text.says(&[
        &format!("kill {}", cluster.members[2].pid().context("it runs")?),
        &live.display().to_string(),
    ]);
    cluster.members[2].wait_healthy()?;

    for round in 0..20 {
        ctl(&cluster, &["put", "k", &format!("round {round}")])?;
    }
    cluster.members[2].kill()?;
    fs::rename(&live, aside.join("newer"))?;
    fs::rename(aside.join("older"), &live)?;
    for _ in 0..2 {
        let text = refused(&mut cluster.members[2], "ROLLED_BACK", 79);
        let put_back = format!("put them back at {}", live.display());
        text.says(&["boot #2", &put_back, "member remove", "--force-new-cluster"]);
        assert!(!text.text.contains("--data-dir="), "the newer one had this very path: {}", text.text);
    }
    change_leader(&cluster)?;
    let text = refused(&mut cluster.members[2], "ROLLED_BACK", 79);
    // Remedy 1: the newer directory still exists.
    fs::rename(&live, aside.join("older"))?;
    fs::rename(aside.join("newer"), &live)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_healthy()?;
    // Remedy 2, for when it does not.
    cluster.members[2].kill()?;
    fs::rename(&live, aside.join("newer"))?;
    fs::rename(aside.join("older"), &live)?;
    replace_as_printed(&mut cluster.members[2], &text)?;
    assert!(ctl(&cluster, &["get", "k", "--print-value-only"])?.contains("round 19"));
    Ok(())
}

/// B18, B19, B20: removed while it was down.
#[test]
fn a_removed_member_is_told_so_and_remembers() -> Result<()> {
    let mut cluster = three(&[])?;
    let id = stored(&cluster.members[2])["member_id"].as_str().unwrap_or_default().to_owned();
    cluster.members[2].kill()?;
    ctl(&cluster, &["member", "remove", &id])?;
    cluster.members[2].spawn()?;
    let text = ended(&mut cluster.members[2], "REMOVED", 79);
    text.says(&["removed by log entry", &id]);
    assert!(stored(&cluster.members[2])["state"]["removed"].is_object());
    refused(&mut cluster.members[2], "REMOVED", 79).says(&["removed by log entry"]);
    replace_as_printed(&mut cluster.members[2], &text)
}

/// A16: added to the running cluster, started as if it founded one. What the refused start leaves does not bind the right one.
#[test]
fn a_member_that_is_awaited_is_told_to_join() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 2, &[])?;
    let both =
        format!("--initial-cluster=m1={},m2={}", cluster.members[0].peer_url, cluster.members[1].peer_url);
    let alone = format!("--initial-cluster=m1={}", cluster.members[0].peer_url);
    cluster.members[0].add_flag(alone);
    cluster.members[0].spawn()?;
    cluster.members[0].wait_healthy()?;
    cluster.members[1].add_flag(both);
    let text = refused_with_ports(&mut cluster.members[1], "CLUSTER_RUNS", 78);
    text.says(&["to join it: cairnctl", "member add m2"]);
    let peer = format!("--peer-urls={}", cluster.members[1].peer_url);
    ctl(&cluster, &["member", "add", "m2", &peer])?;
    let text = refused_with_ports(&mut cluster.members[1], "PENDING_MEMBER", 78);
    carry_out(text.remedy("start with "), &mut cluster.members[1])?;
    cluster.members[1].spawn()?;
    cluster.wait_healthy()
}

/// F, F1: two of three lose their disks and are started again with the flags of the first start.
#[test]
fn two_wiped_members_never_begin_a_second_life() -> Result<()> {
    let mut cluster = three(&[])?;
    ctl(&cluster, &["put", "k", "old life"])?;
    for member in &mut cluster.members {
        member.kill()?;
    }
    for at in [0, 1] {
        fs::remove_dir_all(&cluster.members[at].data_dir)?;
        cluster.members[at].spawn()?;
    }
    cluster.members[0].wait_log("\"present\":[\"m2\"]")?;
    cluster.members[2].spawn()?;
    for at in [0, 1] {
        ended(&mut cluster.members[at], "LOST_DATA", 79).says(&["at peer m3"]);
    }
    assert!(cluster.members[2].is_running());
    cluster.members[2].kill()?;

    // With a majority they do, and the third is told.
    for at in [0, 1] {
        let _ = fs::remove_dir_all(&cluster.members[at].data_dir);
        cluster.members[at].add_flag("--initial-cluster-attendance=majority");
        cluster.members[at].spawn()?;
    }
    for at in [0, 1] {
        cluster.members[at].wait_healthy()?;
    }
    let text = refused(&mut cluster.members[2], "OTHER_CLUSTER", 78);
    text.says(&["member add m3", "two lives of a cluster must not be mixed"]);
    for at in [0, 1] {
        cluster.members[at].wait_healthy()?;
    }
    replace_third_by_hand(&mut cluster)
}

/// The late comer of a majority's cluster takes its place once its old life is gone.
fn replace_third_by_hand(cluster: &mut Cluster) -> Result<()> {
    fs::remove_dir_all(&cluster.members[2].data_dir)?;
    cluster.members[2].spawn()?;
    cluster.members[2].wait_log("the cluster was founded without this member")?;
    cluster.members[2].wait_healthy()?;
    assert_eq!(life(&cluster.members[2])?, life(&cluster.members[0])?);
    Ok(())
}

/// B16, SR: one member is restored from a backup, the others are not; then all are.
#[test]
fn a_restored_member_does_not_mix_with_the_others() -> Result<()> {
    let mut cluster = three(&[])?;
    ctl(&cluster, &["put", "k", "v"])?;
    let file = cluster.path().join("backup.db");
    ctl(&cluster, &["snapshot", "save", &file.display().to_string()])?;
    ctl(&cluster, &["put", "k", "later"])?;
    let later = cluster.path().join("later.db");
    ctl(&cluster, &["snapshot", "save", &later.display().to_string()])?;
    cluster.members[2].kill()?;
    fs::remove_dir_all(&cluster.members[2].data_dir)?;
    restore(&cluster, 2, &file)?;
    let text = refused(&mut cluster.members[2], "RESTORED_ELSEWHERE", 78);
    text.says(&["made by restore", "restore every one of them"]);
    for at in [0, 1] {
        cluster.members[at].wait_healthy()?;
    }
    // Remedy 1: all of them. One of the old life that comes first is told instead.
    cluster.members[0].kill()?;
    cluster.members[1].kill()?;
    fs::remove_dir_all(&cluster.members[0].data_dir)?;
    restore(&cluster, 0, &file)?;
    let told = cluster.members[0].log().len();
    cluster.members[0].spawn()?;
    cluster.members[2].spawn()?;
    let first = &cluster.members[0];
    wait_for("the restored to wait for each other", || {
        first.log()[told..].contains("waiting for the first members").then_some(())
    })?;
    let text = refused(&mut cluster.members[1], "RESTORED_ELSEWHERE", 78);
    text.says(&["belongs to the old one"]);
    // Wiped instead of restored, or restored from another file: nobody votes.
    fs::remove_dir_all(&cluster.members[1].data_dir)?;
    cluster.members[1].spawn()?;
    for at in [0, 1, 2] {
        let text = ended(&mut cluster.members[at], "GENESIS_MISMATCH", 78);
        text.says(&["first state: ", "with nothing", "restore every member from the same file"]);
    }
    for at in [0, 2] {
        cluster.members[at].add_flag("--initial-cluster-attendance=majority");
        cluster.members[at].spawn()?;
    }
    for at in [0, 2] {
        cluster.members[at].wait_healthy()?;
    }
    let text = refused_with_ports(&mut cluster.members[1], "RESTORED_ELSEWHERE", 78);
    text.says(&["begins with nothing", "began at revision"]);
    restore(&cluster, 1, &later)?;
    let text = refused_with_ports(&mut cluster.members[1], "RESTORED_ELSEWHERE", 78);
    text.says(&["did not begin with the same backup", "restore it from the same file"]);
    fs::remove_dir_all(&cluster.members[1].data_dir)?;
    restore(&cluster, 1, &file)?;
    cluster.members[1].spawn()?;
    cluster.wait_healthy()?;
    assert_eq!(life(&cluster.members[1])?, life(&cluster.members[0])?);
    assert_eq!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim(), "v");
    Ok(())
}

fn restore(cluster: &Cluster, at: usize, file: &Path) -> Result<()> {
    let member = &cluster.members[at];
    let initial: Vec<String> =
        cluster.members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
    let output = Command::new(cairn_binary("cairnd")?)
        .args(["snapshot", "restore"])
        .arg(file)
        .arg(format!("--name={}", member.name))
        .arg(format!("--data-dir={}", member.data_dir.display()))
        .arg(format!("--initial-cluster={}", initial.join(",")))
        .arg(format!("--initial-advertise-peer-urls={}", member.peer_url))
        .arg("--initial-cluster-token=tests")
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// B2, B4: a new name and new peer URLs, meant, and moved in the cluster while the member is down.
#[test]
fn a_name_and_peer_urls_change_when_they_are_meant_to() -> Result<()> {
    let mut cluster = three(&[])?;
    let third = &mut cluster.members[2];
    third.terminate()?;
    third.add_flag("--name=renamed");
    // The stored member stands in this list as somebody else would.
    third.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--initial-cluster=")));
    refused(third, "NAME_MISMATCH", 78).says(&["--name=m3", "--accept-identity-change=name"]);
    third.add_flag("--accept-identity-change=name");
    third.add_flag("--name=m1");
    refused(third, "NAME_IN_USE", 78).says(&["called m1"]);
    third.add_flag("--name=renamed");
    third.spawn()?;
    third.wait_healthy()?;
    wait_for("the new name in the identity file", || (stored(third)["name"] == "renamed").then_some(()))?;
    assert!(ctl(&cluster, &["member", "list"])?.contains("renamed"));

    let third = &mut cluster.members[2];
    third.terminate()?;
    third.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--accept")));
    let moved = format!("http://127.0.0.1:{}", free_ports(1)?[0]);
    third.add_flag(format!("--listen-peer-urls={moved}"));
    third.add_flag(format!("--initial-advertise-peer-urls={moved}"));
    refused(third, "PEER_URL_MISMATCH", 78).says(&["member update", "--accept-identity-change=peer-urls"]);
    third.add_flag("--accept-identity-change=peer-urls");
    third.spawn()?;
    wait_for("the new URL in the identity file", || {
        (stored(third)["peer_urls"][0] == moved.as_str()).then_some(())
    })?;
    third.wait_healthy()?;

    // Moved by somebody else while it was down: the cluster's word is enough.
    let id = stored(third)["member_id"].as_str().unwrap_or_default().to_owned();
    third.terminate()?;
    third.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--accept")));
    let again = format!("http://127.0.0.1:{}", free_ports(1)?[0]);
    ctl(&cluster, &["member", "update", &id, &format!("--peer-urls={again}")])?;
    let third = &mut cluster.members[2];
    third.add_flag(format!("--listen-peer-urls={again}"));
    third.add_flag(format!("--initial-advertise-peer-urls={again}"));
    third.spawn()?;
    third.wait_healthy()
}

/// A21: an empty directory where the data are next door; and the row B8, of another member's directory.
#[test]
fn an_empty_directory_beside_the_data_is_noticed() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    cluster.members[0].terminate()?;
    let (dir, elsewhere) = (cluster.members[0].data_dir.clone(), cluster.path().join("forgotten"));
    let only = &mut cluster.members[0];
    only.data_dir = elsewhere.clone();
    only.add_flag(format!("--data-dir={}", elsewhere.display()));
    let text = refused(only, "DATA_ELSEWHERE", 78);
    text.says(&[&format!("--data-dir={}", dir.display()), "--allow-empty-data-dir"]);
    only.add_flag("--allow-empty-data-dir");
    only.spawn()?;
    only.wait_healthy()?;
    only.terminate()?;
    only.data_dir = dir.clone();
    only.add_flag(format!("--data-dir={}", dir.display()));
    only.spawn()?;
    only.wait_healthy()
}
