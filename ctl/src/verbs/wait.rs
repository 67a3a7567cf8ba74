//! wait: returns when the cluster is as far as a script needs it, or when the time has passed.

use super::show;
use super::survey::{self, patient, reason};
use crate::cli;
use crate::client::{Client, MEMBER_LIST};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, Value, complain};
use crate::settings::Settings;
use crate::units::{format_duration, parse_duration};
use crate::wire::endpoint::Endpoint;
use api::etcdserverpb::{MemberListRequest, MemberListResponse};
use clap::{ArgMatches, Command};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

const TIMEOUT: Duration = Duration::from_secs(60);
/// What is missing is said this often.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Between two looks: an election takes about ten of them.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one look may take, so that what is missing is told in time.
const LOOK_MAX: Duration = Duration::from_secs(3);

pub fn command() -> Command {
    cli::verb("wait", "Waits until the cluster is as far as it is needed", "cairnctl wait --for=<what> [flags]")
        .after_help(
            "leader: a member that is asked knows a leader. quorum: a linearizable read succeeds, so writes can be committed.\n\
             synced: each member that is asked has everything that was committed when it was asked (--cluster: every member).\n\
             Says every 5 seconds on stderr what is missing, and exits with 8 when the time has passed.",
        )
        .args([
            cli::value("for", "What to wait for").value_parser(["quorum", "leader", "synced"]),
            cli::value("timeout", "How long to wait; 60s when not given"),
            cli::switch("cluster", "synced: every member that the cluster lists, instead of --endpoints"),
        ])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Leader,
    Quorum,
    Synced,
}

pub async fn wait(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments(
            "wait command accepts no arguments; say --for=quorum, leader or synced",
        ));
    }
    let goal = match cli::text(matches, "for") {
        "leader" => Goal::Leader,
        "quorum" => Goal::Quorum,
        "synced" => Goal::Synced,
        _ => return Err(Failure::arguments("wait command needs --for=quorum, leader or synced")),
    };
    let limit = match cli::text(matches, "timeout") {
        "" => TIMEOUT,
        text => parse_duration(text).map_err(|why| Failure::usage(format!("bad --timeout: {why}")))?,
    };
    let printer = Printer::new(settings);
    printer.page(&Value::Null, |_, _| String::new())?;
    let settings = &patient(settings, LOOK_MAX);
    let (began, name) = (Instant::now(), cli::text(matches, "for"));
    let until = began + limit;
    let mut tell_at = began + TELL_EVERY;
    let mut missing = vec!["no answer yet".to_owned()];
    loop {
        // A look that does not end in time has found nothing new to say.
        if let Ok(found) = timeout_at(until, look(settings, goal, cli::on(matches, "cluster"))).await {
            missing = found;
        }
        if missing.is_empty() {
            let waited = began.elapsed();
            let data = Value::map([("for", name.into()), ("waited_seconds", waited.as_secs_f64().into())]);
            let waited = format_duration(Duration::from_millis(waited.as_millis() as u64));
            return show(
                &printer
                    .page(&data, |paint, _| format!("{}: {name} after {waited}\n", paint.good("ready")))?,
            );
        }
        if Instant::now() >= until {
            return Err(not_yet(name, limit, missing));
        }
        if Instant::now() >= tell_at {
            tell_at = Instant::now() + TELL_EVERY;
            complain(&format!("waiting for {name}: {}\n", missing.join("; ")));
        }
        sleep(PAUSE.min(until - Instant::now())).await;
    }
}

fn not_yet(name: &str, limit: Duration, missing: Vec<String>) -> Failure {
    let limit = format_duration(limit);
    Failure::new(Exit::NotYet, format!("[NOT_YET] no {name} within {limit}")).with(Details {
        cause: "the cluster is not as far; what was missing at the last look is below".into(),
        evidence: missing,
        remedy: vec!["see what is wrong: cairnctl status".into(), "give it longer: --timeout=5m".into()],
        never: "do not force a new cluster because this one takes long".into(),
    })
}

/// What is missing; nothing when the goal is reached.
async fn look(settings: &Settings, goal: Goal, cluster: bool) -> Vec<String> {
    match goal {
        Goal::Quorum => {
            let read = survey::read(settings, settings.endpoints.clone()).await;
            read.err().map(|why| format!("no linearizable read: {why}")).into_iter().collect()
        }
        Goal::Leader => leader(settings).await,
        Goal::Synced => synced(settings, cluster).await,
    }
}

async fn leader(settings: &Settings) -> Vec<String> {
    let mut missing = Vec::new();
    for endpoint in &settings.endpoints {
        missing.push(match survey::status(settings, vec![endpoint.clone()]).await {
            Ok(status) if status.leader != 0 => return Vec::new(),
            Ok(_) => format!("{} knows no leader", endpoint.name),
            Err(why) => why,
        });
    }
    missing
}

async fn synced(settings: &Settings, cluster: bool) -> Vec<String> {
    let mut endpoints: Vec<(String, Vec<Endpoint>)> =
        settings.endpoints.iter().map(|endpoint| (endpoint.name.clone(), vec![endpoint.clone()])).collect();
    if cluster {
        match listed(settings).await {
            Ok(listed) => endpoints = listed,
            Err(why) => return vec![why],
        }
    }
    let mut missing = Vec::new();
    for (name, endpoints) in endpoints {
        if endpoints.is_empty() {
            missing.push(format!("{name} has no client URL: it was never started"));
            continue;
        }
        let status = match survey::status(settings, endpoints.clone()).await {
            Ok(status) => status,
            Err(why) => {
                missing.push(format!("{name}: {why}"));
                continue;
            }
        };
        if !status.is_learner {
            // A linearizable read passes a member when it has applied what was committed when it was asked.
            let read = survey::read(settings, endpoints).await;
            missing.extend(read.err().map(|why| format!("{name}: {why}")));
            continue;
        }
        // A learner serves no such read. What it must have is what the others know to be committed.
        let target = match survey::status(settings, settings.endpoints.clone()).await {
            Ok(other) => other.raft_index,
            Err(why) => {
                missing.push(why);
                continue;
            }
        };
        let applied = survey::status(settings, endpoints).await.map(|status| status.raft_applied_index);
        match applied {
            Ok(applied) if applied >= target && status.leader != 0 => {}
            Ok(applied) => missing.push(format!("{name}, a learner, has applied {applied} of {target}")),
            Err(why) => missing.push(format!("{name}: {why}")),
        }
    }
    missing
}

async fn listed(settings: &Settings) -> Result<Vec<(String, Vec<Endpoint>)>, String> {
    let mut client = Client::new(settings, false).map_err(|failure| reason(&failure))?;
    let answer: Result<MemberListResponse> =
        client.call(&MEMBER_LIST, &MemberListRequest { linearizable: true }).await;
    let members = answer.map_err(|failure| reason(&failure))?.members;
    let named = |member: api::etcdserverpb::Member| {
        let name = if member.name.is_empty() { format!("{:x}", member.id) } else { member.name };
        (format!("member {name}"), super::member::view::client_endpoints(&member.client_ur_ls))
    };
    Ok(members.into_iter().map(named).collect())
}
