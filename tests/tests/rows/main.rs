//! Rows of the start on real processes: first starts (A), starts with data (B) and frozen peers (PZ), each provoked as an operator would, its
//! refusal read, and its printed remedy carried out until the member is healthy. A refused start has its ports held by the test and its
//! directory compared, so that it can open nothing and leave nothing. Which test shows which row stands in docs/testing.md.
//!
//! Also here: members killed before every step of the writes that found a cluster or register at a discovery service.

mod alone;
mod joining;
mod killed;
mod three;

use anyhow::{Context, Result};
use cairn_tests::{
    harness::{Cluster, Member},
    refusals::insist,
};

/// cairnctl at the first member that runs, until it succeeds.
fn ctl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let first = cluster.members.iter().find(|member| member.is_running()).context("somebody runs")?;
    insist(&[&[&format!("--endpoints={}", first.client_url)[..]], args].concat())
}

fn start(member: &mut Member) -> Result<()> {
    member.spawn()?;
    member.wait_healthy()
}

fn stop(member: &mut Member) -> Result<()> {
    let status = member.terminate()?;
    anyhow::ensure!(status.code() == Some(0), "{status}: {}", member.log_tail());
    Ok(())
}

/// The settings as they were before something wrong was added.
fn flags(member: &mut Member) -> Vec<String> {
    let mut flags = Vec::new();
    member.set_flags(|now| flags.clone_from(now));
    flags
}
