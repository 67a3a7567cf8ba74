//! Members that join a running cluster of one: nobody there, no place, a list that is wrong, another's name.

use anyhow::{Context, Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, free_ports},
    refusals::{carry_out, last_start, logged, refused, stored},
};

use crate::{ctl, flags, start, stop};

/// A12, A13, A14, A15, A17.
#[test]
fn joiners_that_nobody_waits_for() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    let urls: Vec<String> = cluster.members.iter().map(|member| member.peer_url.clone()).collect();
    let first = format!("m1={}", urls[0]);
    cluster.members[0].add_flag(format!("--initial-cluster={first}"));

    // Nobody is there, yet: the same start works once somebody is.
    let second = &mut cluster.members[1];
    second.add_flag("--initial-cluster-state=existing");
    second.add_flag(format!("--initial-cluster={first},m2={}", urls[1]));
    let right = flags(second);
    second.add_flag("--join-timeout=1s");
    let text = refused(second, "CLUSTER_UNREACHABLE", 75);
    text.says(&[&format!("{}: ", urls[0]), "refused", &format!("reached from here: {first}")]);
    start(&mut cluster.members[0])?;

    // The settings of another host, with the address of this one.
    let second = &mut cluster.members[1];
    second.add_flag("--name=m1");
    let text = refused(second, "ADVERTISE_MISMATCH", 64);
    text.says(&[&urls[0], &urls[1], "stands there as m2"]);
    carry_out(text.remedy("if this is m2"), second)?;

    // No place in the list. The printed command makes one, and the same settings take it.
    let text = refused(second, "NOT_A_MEMBER", 78);
    text.says(&[&format!("no member at {}", urls[1]), &format!("--peer-urls={}", urls[1])]);
    carry_out(text.remedy(" member add m2 "), second)?;
    second.set_flags(|flags| flags.clone_from(&right));
    start(second)?;

    // Added under another name, with a list that is wrong about one member and right about one: that one is enough, and what is wrong is told.
    let place = format!("--peer-urls={}", urls[2]);
    ctl(&cluster, &["member", "add", "planned-name", &place])?;
    let gone = format!("http://127.0.0.1:{}", free_ports(1)?[0]);
    let third = &mut cluster.members[2];
    third.add_flag("--initial-cluster-state=existing");
    third.add_flag(format!("--initial-cluster=m1={},m2={gone},m3={}", urls[0], urls[2]));
    start(third)?;
    logged(third, &["is not the list of the running members", &format!("m2={gone}"), &urls[1]])?;
    let whole = format!("--initial-cluster=m1={},m2={},m3={}", urls[0], urls[1], urls[2]);
    logged(third, &["as it would be right", &whole])?;
    ensure!(stored(third)?["name"] == "m3");
    let listed = ctl(&cluster, &["member", "list"])?;
    ensure!(listed.lines().filter(|line| line.contains("started")).count() == 3, "{listed}");
    ensure!(listed.contains(" m3,") && !listed.contains("planned-name"), "{listed}");
    cluster.wait_healthy()?;

    // From now on its own directory says who they are.
    let third = &mut cluster.members[2];
    stop(third)?;
    start(third)?;
    let told = last_start(third);
    ensure!(told.contains("\"boot\":2") && !told.contains("is not the list"), "{told}");
    ensure!(stored(third)?["members"].as_array().context("members")?.len() == 3);
    Ok(())
}
