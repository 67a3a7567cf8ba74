//! `cairnd doctor`: the verdict that a start with exactly these settings would come to, with everything that it rests on. Nothing is
//! written, no port is opened, no lock is taken; peers are asked the one question that changes nothing at them.
//!
//! The rules are those of the start, called in its order: settings, directory, lock, identity, log, state, peers, ports. A member that runs
//! here is judged as it runs, and its settings as the next start would.
//!
//! Not here: discovery, since asking it registers.

mod endpoints;
mod local;
mod peers;

use super::{
    config::{told, would},
    directory,
    holder::{self, Lock},
    report::Report,
};
use crate::{
    bootstrap::{ask, facts, force, plan::BootPlan, prepare},
    cli::Look,
    config::{self, Settings, Surroundings, tongue::Tongue},
    identity::Identity,
    owner::Owner,
    refusal::{Exit, Id},
    replace,
};

pub fn run(surroundings: &Surroundings, look: &Look) -> (String, Exit) {
    let mut report = Report::new(Tongue::of(surroundings));
    let well = examine(surroundings, &look.endpoints, &mut report);
    report.told(&well, look.json)
}

/// What the verdict is if nothing was refused.
fn examine(surroundings: &Surroundings, asked: &[String], report: &mut Report) -> String {
    let mut refused = |refusal| {
        report.fail("settings", refusal);
        String::new()
    };
    let (settings, _) = match config::load(surroundings) {
        Ok(loaded) => loaded,
        Err(refusal) => return refused(refusal),
    };
    // The files of this machine are looked at with the rights of whoever the member is of; ports and their holders with root's.
    let owner = Owner::of(&settings);
    let acting = owner.as_ref().map(Owner::act);
    let (settings, resolved) = match config::load(surroundings) {
        Ok(loaded) => loaded,
        Err(refusal) => return refused(refusal),
    };
    match (&owner, &acting) {
        (Some(owner), Some(Ok(_))) => report.ok("user", format!("looked at as {}", owner.told())),
        (Some(owner), Some(Err(error))) => {
            report.warn("user", format!("could not look as {}: {error}", owner.told()));
        }
        _ => {}
    }
    report.ok("settings", format!("can be used ({})", super::config::files(&resolved)));
    let unreadable = directory::unreadable(&resolved.values);
    resolved.notes.iter().chain(&unreadable).for_each(|note| report.warn("settings", told(note)));
    let runtime = match ask::runtime() {
        Ok(runtime) => runtime,
        Err(refusal) => {
            report.fail("runtime", refusal);
            return String::new();
        }
    };

    let lock = holder::look(&settings.storage.data_dir);
    local::directory(&settings, report);
    match &lock {
        Lock::Held { pid, .. } => {
            report.runs_as(*pid);
            report.ok("lock", format!("{}: judged as it runs", lock.told()));
        }
        Lock::Free(_) => report.ok("lock", lock.told()),
        Lock::Unknown(_) => report.warn("lock", lock.told()),
    }
    let mut notes = Vec::new();
    let plan = prepare::look(&settings, &mut notes);
    let plan = match plan {
        // Moved while it was down, as the start finds out.
        Err(refusal)
            if refusal.id == Id::PeerUrlMismatch
                && prepare::has_been_moved(&settings.storage.data_dir, &settings) =>
        {
            let mut settings = settings.clone();
            settings.membership.accept.peer_urls = true;
            notes.clear();
            prepare::look(&settings, &mut notes)
        }
        plan => plan,
    };
    notes.iter().for_each(|note| report.warn("identity", told(note)));
    let dir = settings.storage.data_dir.display().to_string();
    let plan = match plan {
        Ok(plan) if settings.membership.force_new_cluster && !matches!(plan, BootPlan::Restart(_)) => {
            report.fail("identity", force::without_data(&dir));
            None
        }
        Ok(plan) => {
            report.ok("identity", format!("would {}", would(&plan, &dir)));
            Some(plan)
        }
        Err(refusal) => {
            report.fail("identity", refusal);
            None
        }
    };
    let contents = match &plan {
        Some(BootPlan::Restart(returning)) => local::data(&settings, &returning.identity, &lock, report),
        _ => None,
    };
    drop(acting);
    local::disks(&settings, report);
    local::names(&settings, report);
    let own = match &plan {
        Some(BootPlan::Restart(returning)) => Some(&returning.identity),
        _ => None,
    };
    let state = match &plan {
        // What its next start thinks of the settings changes nothing about the one that runs.
        None if lock.is_held() => peers::of_the_running(&settings, &runtime, report),
        None => String::new(),
        Some(plan) => peers::examine(plan, &settings, contents.as_ref(), lock.is_held(), &runtime, report),
    };
    if lock.is_held() {
        report.ok("ports", "not looked at: they are this member's own");
    } else {
        local::ports(&settings, &runtime, report);
    }
    if !asked.is_empty() {
        runtime.block_on(endpoints::examine(asked, &settings, own, report));
    }
    match replace::outlook(&settings, report.refused()) {
        Ok(None) => {}
        Ok(Some(words)) => report.warn("replace", words),
        Err(refusal) => report.fail("replace", refusal),
    }
    well(&lock, plan.as_ref(), &dir, &state)
}

fn well(lock: &Lock, plan: Option<&BootPlan>, dir: &str, state: &str) -> String {
    let rest = if state.is_empty() { String::new() } else { format!("; {state}") };
    match (lock, plan) {
        (Lock::Held { pid, .. }, _) => {
            format!("runs here as pid {pid}, and may be started again with these settings{rest}")
        }
        (_, Some(plan)) => format!("would {}{rest}", would(plan, dir)),
        (_, None) => String::new(),
    }
}

/// Where the log of these settings is.
fn wal_dir(settings: &Settings) -> std::path::PathBuf {
    facts::wal_dir(settings)
}

/// The member that has data here, in messages.
fn member(identity: &Identity) -> String {
    format!("member {} ({})", identity.member_id, identity.name)
}
