//! SIGKILL before every step of the writes that found a cluster (`unborn`, `formed`, `born`) or register at a discovery service
//! (`registering`): the next start with the same settings goes on to a healthy member, with the mark that its directory had. A number is a
//! step; the shim says which one it was.

use std::{collections::BTreeSet, fs, os::unix::process::ExitStatusExt as _, sync::Mutex};

use anyhow::{Context, Result, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, Member, deadly_disk::DeadlyDisk, wait_for},
    refusals::{insist, life, stored},
};

use crate::start;

/// More than a first start has; only a count that never ends reaches it.
const STEPS_MAX: usize = 80;

/// Ran until it was killed, and what it was about to do; None if it was ready before that, and so had written all that it founds with.
fn died(member: &mut Member, deadly: &DeadlyDisk) -> Result<Option<String>> {
    let told = member.log().len();
    member.spawn()?;
    let step = wait_for("the end or a member that is ready", || match deadly.step() {
        Some(step) => Some(Some(step)),
        None => member.log()[told..].contains("ready to serve client requests").then_some(None),
    })?;
    if step.is_some() {
        let status = member.wait_exit()?;
        ensure!(status.signal() == Some(9), "{status}: {}", member.log_tail());
    }
    Ok(step)
}

/// What must hold of every directory that a kill left: no identity, or one that can be read, in a state of a first start.
fn mark(member: &Member) -> Result<Option<(String, String)>> {
    if !member.data_dir.join("member/identity.json").exists() {
        return Ok(None);
    }
    let now = stored(member)?;
    let state = now["state"].as_str().context("a state")?.to_owned();
    ensure!(["unborn", "registering", "formed", "born"].contains(&state.as_str()), "{now}");
    Ok(Some((now["dir_uuid"].as_str().context("a mark")?.to_owned(), state)))
}

/// Started again without the shim, it is whole: born, with its mark, and nothing half-made beside it.
fn resumes(member: &mut Member, step: &str, before: Option<(String, String)>) -> Result<()> {
    member.clear_env();
    start(member).with_context(|| format!("after a kill before {step}"))?;
    life(member)?;
    whole(member, step, before)
}

fn whole(member: &Member, step: &str, before: Option<(String, String)>) -> Result<()> {
    let now = stored(member)?;
    ensure!(now["state"] == "born", "after a kill before {step}: {now}");
    if let Some((mark, state)) = before {
        ensure!(
            now["dir_uuid"] == mark.as_str(),
            "after a kill before {step}: {state} as {mark}, then {now}"
        );
        let boots = if ["unborn", "registering"].contains(&state.as_str()) { 1 } else { 2 };
        ensure!(now["boot_seq"] == boots, "after a kill before {step}, {state}: {now}");
    }
    let left: BTreeSet<_> =
        fs::read_dir(&member.data_dir)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["LOCK", "member"].map(Into::into).into(), "after a kill before {step}: {left:?}");
    Ok(())
}

/// Members that die at a time: most of a start is waiting.
const LANES: usize = 3;

/// All steps of a member that founds alone or registers, each on a directory of its own; `prepare` gives a new token or nothing. In order.
fn each_step(prepare: impl Fn(&mut Member) -> Result<()> + Sync) -> Result<Vec<String>> {
    let lane = |first: usize| -> Result<Vec<(usize, String)>> {
        let mut cluster = Cluster::prepare(Kind::Cairn, 1, &[])?;
        let around = cluster.path().to_path_buf();
        let member = &mut cluster.members[0];
        let mut steps = Vec::new();
        for number in (first..STEPS_MAX).step_by(LANES) {
            prepare(member)?;
            let deadly = DeadlyDisk::kill_before(number, member, &around)?;
            let Some(step) = died(member, &deadly)? else { return Ok(steps) };
            let before = mark(member)?;
            resumes(member, &format!("{number}: {step}"), before)?;
            member.kill()?;
            fs::remove_dir_all(&member.data_dir)?;
            steps.push((number, step));
        }
        anyhow::bail!("more than {STEPS_MAX} steps: {steps:#?}")
    };
    let mut steps = in_lanes(lane)?;
    steps.sort();
    Ok(steps.into_iter().map(|(_, step)| step).collect())
}

fn in_lanes<T: Send>(lane: impl Fn(usize) -> Result<Vec<T>> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let lane = &lane;
        let lanes: Vec<_> = (1..=LANES).map(|first| scope.spawn(move || lane(first))).collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.join().expect("no test panics in a lane of its own")?);
        }
        Ok(all)
    })
}

#[test]
fn a_founder_killed_at_any_step_is_born_with_the_next_start() -> Result<()> {
    let steps = each_step(|_| Ok(()))?;
    // The shim sees what it is for: the directory, and two changes of the identity file.
    ensure!(renames(&steps, "/member") == 1 && renames(&steps, "/member/identity.json") >= 2, "{steps:#?}");
    Ok(())
}

fn renames(steps: &[String], to: &str) -> usize {
    steps.iter().filter(|step| **step == format!("rename to {to}")).count()
}

#[test]
fn a_member_killed_at_any_step_of_its_registration_founds_with_the_next_start() -> Result<()> {
    let service = Cluster::start_with(Kind::Cairn, 1, &["--discovery-service=true"])?;
    let endpoints = format!("--endpoints={}", service.endpoints());
    let tokens = Mutex::new(Vec::new());
    let steps = each_step(|member| {
        let made = insist(&[&endpoints, "discovery", "new", "--size=1", "-w", "json"])?;
        let made: serde_json::Value = serde_json::from_str(made.lines().last().context("json")?)?;
        let token = made["token"].as_str().context("a token")?.to_owned();
        let mut tokens = tokens.lock().expect("no test panicked here");
        // Either protocol in turn.
        let way: Vec<String> = if tokens.len().is_multiple_of(2) {
            vec![format!("--discovery={}", made["discovery"].as_str().context("a URL")?)]
        } else {
            vec![
                format!("--discovery-token={token}"),
                format!("--discovery-endpoints={}", service.endpoints()),
            ]
        };
        tokens.push(token);
        member.set_flags(|flags| {
            flags.retain(|flag| !flag.starts_with("--initial-cluster") && !flag.starts_with("--discovery"));
            flags.extend(way);
        });
        Ok(())
    })?;
    ensure!(renames(&steps, "/member") == 2, "once to register, once to found: {steps:#?}");
    ensure!(renames(&steps, "/member/identity.json") >= 2, "{steps:#?}");
    // Nobody registered twice.
    for token in tokens.into_inner().expect("no test panicked here") {
        let prefix = format!("/_etcd/registry/{token}/members/");
        let listed = insist(&[&endpoints, "get", "--prefix", "--keys-only", &prefix])?;
        ensure!(listed.lines().filter(|line| !line.is_empty()).count() == 1, "{listed}");
    }
    Ok(())
}

/// Three founders: one is killed before a step, and every other time the rest in the same moment, wherever they are. Every second step:
/// what a single one leaves at each is shown above.
#[test]
fn founders_killed_together_form_one_cluster_with_the_next_start() -> Result<()> {
    let told = in_lanes(|lane| {
        let mut told = Vec::new();
        for number in (6 + 2 * lane..STEPS_MAX).step_by(2 * LANES) {
            let Some(step) = founders_killed(number)? else { break };
            told.push(step);
        }
        Ok(told)
    })?;
    ensure!(told.iter().any(|step| step.contains("rename to /member/identity.json")), "{told:#?}");
    Ok(())
}

/// Before this step, which is told; None if there is none of this number.
fn founders_killed(number: usize) -> Result<Option<String>> {
    let mut cluster = Cluster::prepare(Kind::Cairn, 3, &[])?;
    let around = cluster.path().to_path_buf();
    let deadly = DeadlyDisk::kill_before(number, &mut cluster.members[0], &around)?;
    for member in &mut cluster.members[1..] {
        member.spawn()?;
    }
    let Some(step) = died(&mut cluster.members[0], &deadly)? else { return Ok(None) };
    let step = format!("{number}: {step}");
    if number.is_multiple_of(4) {
        cluster.members[1].kill()?;
        cluster.members[2].kill()?;
    }
    let before = cluster.members.iter().map(mark).collect::<Result<Vec<_>>>()?;
    cluster.members[0].clear_env();
    for member in cluster.members.iter_mut().filter(|member| !member.is_running()) {
        member.spawn()?;
    }
    cluster.wait_healthy().with_context(|| format!("after a kill before {step}"))?;
    let lives = cluster.members.iter().map(life).collect::<Result<BTreeSet<_>>>()?;
    ensure!(lives.len() == 1, "after a kill before {step}: {lives:?}");
    whole(&cluster.members[0], &step, before[0].clone())?;
    Ok(Some(step))
}
