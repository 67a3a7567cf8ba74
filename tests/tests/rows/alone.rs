//! One member: what its settings, its directory and its ports alone decide.

use std::{fs, net::TcpListener, path::Path};

use anyhow::{Context, Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, Member, free_ports, wait_for, wrong_clock},
    refusals::{Refused, carry_out, copy, ended, last_start, logged, refused, refused_with_ports, stored},
};

use crate::{ctl, flags, start, stop};

fn port_of(url: &str) -> &str {
    url.rsplit(':').next().unwrap_or_default()
}

/// A2, A3, A19, A20: settings that name no member, or not this one. Nothing is made; the printed settings found the cluster.
#[test]
fn first_starts_that_contradict_themselves() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 2, &[])?;
    let other_url = cluster.members[1].peer_url.clone();
    let only = &mut cluster.members[0];
    let own_url = only.peer_url.clone();
    only.add_flag(format!("--initial-cluster=m1={own_url}"));
    let right = flags(only);
    let heals = |only: &mut Member, remedy: &str| -> Result<()> {
        carry_out(remedy, only)?;
        start(only)?;
        stop(only)?;
        fs::remove_dir_all(&only.data_dir)?;
        only.set_flags(|flags| flags.clone_from(&right));
        Ok(())
    };

    only.add_flag("--name=zz");
    let text = refused(only, "NOT_IN_INITIAL_CLUSTER", 64);
    text.says(&["--name: zz", "names m1", "stands there as m1"]);
    heals(only, text.remedy("if this is m1"))?;

    only.add_flag("--name=m2");
    only.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--initial-advertise")));
    let text = refused(only, "NOT_IN_INITIAL_CLUSTER", 64);
    heals(only, text.remedy("if you meant it"))?;

    let elsewhere = format!("http://localhost:{}", port_of(&own_url));
    only.add_flag(format!("--initial-advertise-peer-urls={elsewhere}"));
    let text = refused(only, "ADVERTISE_MISMATCH", 64);
    text.says(&[&format!("m1={own_url}"), &elsewhere]);
    heals(only, &text.remedies[0])?;

    // One name for two members, as two machines of one image would have it. Neither setting makes it one member.
    only.add_flag(format!("--initial-cluster=m1={own_url},m1={other_url}"));
    let text = refused(only, "ADVERTISE_MISMATCH", 64);
    text.says(&[&own_url, &other_url, "a name of its own"]);
    ensure!(!text.remedies[0].contains(&other_url), "this member is not at both: {}", text.text);
    only.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--initial-advertise")));
    let text = refused(only, "ADVERTISE_MISMATCH", 64);
    text.says(&[&own_url, &other_url, "a name of its own"]);
    only.set_flags(|flags| flags.clone_from(&right));

    only.add_flag("--initial-cluster-state=maybe");
    refused(only, "BAD_VALUE", 64).says(&["--initial-cluster-state", "maybe", "new", "existing"]);
    Ok(())
}

/// A22, B1, B3, B5, B6, B7, B10, B22, B23, B24, B25: the same directory again and again, with what may change and what may not.
#[test]
fn a_directory_comes_back_with_other_settings() -> Result<()> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 1, &[])?;
    let right = flags(&mut cluster.members[0]);
    let dir = cluster.members[0].data_dir.clone();
    for name in ["proxy", "lost+found", ".snapshot"] {
        fs::create_dir_all(dir.join(name))?;
    }
    start(&mut cluster.members[0])?;
    let only = &cluster.members[0];
    logged(only, &["unknown entries in the data directory", "entries=proxy\""])?;
    ensure!(dir.join("proxy").is_dir() && dir.join("member").is_dir());
    ctl(&cluster, &["put", "k", "v"])?;

    // A second process. The one that runs goes on; stopped as printed, the other takes over.
    let only = &mut cluster.members[0];
    let mut second = only.twin();
    second.add_flag("--data-dir-lock-wait=100ms");
    let id = stored(only)?["member_id"].as_str().context("an id")?.to_owned();
    let text = busy(&mut second, only)?;
    text.says(&["pid ", "--name=m1", "do not delete"]);
    only.wait_healthy()?;
    carry_out(text.remedy("kill "), &mut second)?;
    ensure!(only.wait_exit()?.code() == Some(0));
    start(&mut second)?;
    logged(&second, &["\"msg\":\"identity\"", &id, "\"boot\":2"])?;
    stop(&mut second)?;

    // A port that somebody else has, also for a start that would begin another life of the cluster.
    let only = &mut cluster.members[0];
    for (setting, more) in
        [("--listen-peer-urls", None), ("--listen-client-urls", Some("--force-new-cluster"))]
    {
        let holder = TcpListener::bind("127.0.0.1:0")?;
        let port = holder.local_addr()?.port();
        more.into_iter().for_each(|flag| only.add_flag(flag));
        only.add_flag(format!("{setting}=http://127.0.0.1:{port}"));
        let text = refused_with_ports(only, "PORT_IN_USE", 69);
        text.says(&[setting, &format!("127.0.0.1:{port}"), &format!("pid {}", std::process::id())]);
        only.set_flags(|flags| flags.clone_from(&right));
    }

    only.add_flag("--initial-cluster-token=another");
    let text = refused(only, "TOKEN_CONFLICT", 78);
    text.says(&["token tests", "token another"]);
    carry_out(text.remedy("keep the token"), only)?;

    // Where it listens and where clients find it may change; the latter is told to the cluster.
    let ports = free_ports(2)?;
    let (peer, client) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
    let before = only.client_url.clone();
    only.add_flag(format!("--listen-peer-urls={peer}"));
    only.add_flag(format!("--listen-client-urls={client}"));
    only.add_flag(format!("--advertise-client-urls={client}"));
    only.client_url = client.clone();
    start(only)?;
    wait_for("the new client URL in the log", || logged(only, &["client", &before, &client]).ok())?;
    let listed = wait_for("the new client URL in the list", || {
        ctl(&cluster, &["member", "list"]).ok().filter(|list| list.contains(&client))
    })?;
    ensure!(!listed.contains(&before), "{listed}");
    ensure!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim() == "v");
    let only = &mut cluster.members[0];
    stop(only)?;
    only.client_url = before;

    // Who else was to be there, and how it began, is history.
    only.set_flags(|flags| flags.clone_from(&right));
    only.add_flag(format!("--initial-cluster=m1={},m7=http://127.0.0.1:9", only.peer_url));
    only.add_flag("--initial-cluster-state=existing");
    start(only)?;
    logged(only, &["differs from the first start", "initial-cluster", "m7=http://127.0.0.1:9"])?;
    stop(only)?;
    only.set_flags(|flags| {
        flags.clone_from(&right);
        flags.retain(|flag| !flag.starts_with("--initial-cluster"));
        flags.push("--discovery=http://127.0.0.1:9/token".into());
    });
    start(only)?;
    stop(only)?;

    // B10: it was scaled down to this one, and the host that the setting still names was given to another cluster.
    let far = Cluster::start(Kind::Cairn, 1)?;
    only.set_flags(|flags| flags.clone_from(&right));
    only.add_flag(format!("--initial-cluster=m1={},m2={}", only.peer_url, far.members[0].peer_url));
    start(only)?;
    let correct = format!("--initial-cluster=m1={}", only.peer_url);
    logged(only, &["initial-cluster is out of date", &far.members[0].peer_url, &correct])?;
    stop(only)?;
    Ok(())
}

/// The directory moves while its holder runs, so only what the refused process says is looked at.
fn busy(second: &mut Member, first: &Member) -> Result<Refused> {
    second.spawn()?;
    let text = ended(second, "DATA_DIR_BUSY", 69);
    text.says(&[&format!("pid {}", first.pid().context("it runs")?)]);
    Ok(text)
}

/// B25: neither a clock that falls back by years nor one that leaps ahead makes another member of it.
#[test]
fn a_clock_that_jumps_changes_no_identity() -> Result<()> {
    const YEARS: i64 = 10 * 365 * 24 * 3600;
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    ctl(&cluster, &["put", "k", "v"])?;
    let around = cluster.path().to_path_buf();
    stop(&mut cluster.members[0])?;
    let before = stored(&cluster.members[0])?;
    let year = |member: &Member| {
        let told = last_start(member);
        told.split_once("\"ts\":\"").map(|(_, rest)| rest[..4].to_owned()).unwrap_or_default()
    };
    let mut years = vec![year(&cluster.members[0])];
    for wrong_by in [-YEARS, YEARS] {
        wrong_clock::set(&mut cluster.members[0], &around, wrong_by)?;
        start(&mut cluster.members[0])?;
        ensure!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim() == "v");
        ctl(&cluster, &["put", "k", "v"])?;
        years.push(year(&cluster.members[0]));
        stop(&mut cluster.members[0])?;
    }
    ensure!(years[1] < years[0] && years[0] < years[2], "the clock was wrong: {years:?}");
    let now = stored(&cluster.members[0])?;
    for field in ["member_id", "cluster_id", "cluster_uuid", "dir_uuid", "name", "peer_urls"] {
        ensure!(now[field] == before[field], "{field}: {} was {}", now[field], before[field]);
    }
    ensure!(now["boot_seq"] == 3 && now["state"] == "born", "{now}");
    Ok(())
}

/// B14, B15: parts of the directory are lost or damaged.
#[test]
fn a_directory_with_lost_and_damaged_parts() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 1)?;
    ctl(&cluster, &["put", "k", "v"])?;
    let only = &mut cluster.members[0];
    let dir = only.data_dir.clone();
    stop(only)?;
    // The log still says everything: the state is made again.
    fs::remove_dir_all(dir.join("member/state"))?;
    start(only)?;
    ensure!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim() == "v");
    let only = &mut cluster.members[0];
    stop(only)?;

    let whole = cluster.path().join("aside/whole");
    copy(&dir, &whole)?;
    let only = &mut cluster.members[0];
    let segment = first_segment(&dir.join("member/wal"))?;
    flip_a_bit(&segment, b"peerURLs")?;
    let text = refused(only, "LOG_DAMAGED", 65);
    text.says(&[&segment.display().to_string(), "offset ", "from index "]);
    text.remedy("restore that file from a backup of this very directory");
    fs::copy(whole.join(segment.strip_prefix(&dir)?), &segment)?;
    start(only)?;
    ensure!(!last_start(only).contains("REFUSED"));
    ensure!(ctl(&cluster, &["get", "k", "--print-value-only"])?.trim() == "v");
    Ok(())
}

fn first_segment(wal: &Path) -> Result<std::path::PathBuf> {
    let mut segments: Vec<_> = fs::read_dir(wal)?.flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    segments.sort();
    segments.into_iter().next().context("a segment")
}

fn flip_a_bit(file: &Path, at: &[u8]) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let at = bytes.windows(at.len()).position(|window| window == at).context("a place in an entry")?;
    bytes[at] ^= 1;
    Ok(fs::write(file, bytes)?)
}
