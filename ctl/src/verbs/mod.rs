//! What each verb does: arguments in, one or a few calls, bytes for stdout.

pub mod can_stop;
pub mod cluster;
pub mod confirm;
mod context;
pub mod debug;
pub mod defrag;
pub mod discovery;
pub mod doctor;
pub mod endpoint;
mod judge;
pub mod kv;
pub mod lease;
pub mod member;
pub mod mirror;
mod reservation;
pub mod snapshot;
pub mod status;
mod survey;
pub mod top;
pub mod wait;
pub mod watch;

use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::output::{Printer, Shape};
use crate::settings::{Given, Settings, Variables};
use crate::{bench, cli, completion};
use clap::ArgMatches;
use std::io::Write;

/// The API level this tool speaks, as `version` prints it.
const API_VERSION: &str = "3.7";

/// Verbs that make their text and their JSON themselves and know no other shape of `-o`.
const UNSHAPED: &[&str] = &[
    "defrag",
    "member plan",
    "member replace",
    "snapshot save",
    "snapshot status",
    "discovery new",
    "discovery show",
    "make-mirror",
    "check perf",
    "check datascale",
];

/// Runs the verb that was parsed.
pub async fn run(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let (name, inner) = matches.subcommand().expect("the grammar requires a verb");
    let verb = inner.subcommand_name().map_or_else(|| name.to_owned(), |inner| format!("{name} {inner}"));
    let plain;
    let settings = match settings.shape.filter(|shape| *shape != Shape::Json) {
        Some(shape) if UNSHAPED.contains(&verb.as_str()) || name == "bench" => {
            if settings.shape_asked {
                return Err(Failure::feature(format!("{} not supported as output format", shape.name())));
            }
            // A wish for all commands keeps none from working.
            plain = Settings { shape: None, ..settings.clone() };
            &plain
        }
        _ => settings,
    };
    match (name, inner.subcommand()) {
        ("put", _) => kv::put(settings, inner).await,
        ("get", _) => kv::get(settings, inner).await,
        ("del", _) => kv::del(settings, inner).await,
        ("txn", _) => kv::txn(settings, inner).await,
        ("compaction", _) => kv::compaction(settings, inner).await,
        ("watch", _) => watch::watch(settings, inner).await,
        ("status", _) => status::status(settings, inner).await,
        ("doctor", _) => doctor::doctor(settings, inner).await,
        ("wait", _) => wait::wait(settings, inner).await,
        ("can-stop", _) => can_stop::can_stop(settings, inner).await,
        ("top", _) => top::top(settings, inner).await,
        ("debug", Some(("bundle", inner))) => debug::bundle(settings, inner).await,
        ("lease", Some(("grant", inner))) => lease::grant(settings, inner).await,
        ("lease", Some(("revoke", inner))) => lease::revoke(settings, inner).await,
        ("lease", Some(("timetolive", inner))) => lease::time_to_live(settings, inner).await,
        ("lease", Some(("list", _))) => lease::list(settings).await,
        ("lease", Some(("keep-alive", inner))) => lease::keep_alive(settings, inner).await,
        ("member", Some(("list", inner))) => cluster::member_list(settings, inner).await,
        ("member", Some(("add", inner))) => member::add(settings, inner).await,
        ("member", Some(("remove", inner))) => member::remove(settings, inner).await,
        ("member", Some(("update", inner))) => member::update(settings, inner).await,
        ("member", Some(("promote", inner))) => member::promote(settings, inner).await,
        ("member", Some(("replace", inner))) => member::replace::replace(settings, inner).await,
        ("member", Some(("plan", inner))) => {
            let (kind, inner) = inner.subcommand().expect("the grammar requires a verb");
            member::plan::plan(settings, kind, inner).await
        }
        ("move-leader", _) => cluster::move_leader(settings, inner).await,
        ("defrag", _) => defrag::defrag(settings, inner).await,
        ("alarm", Some(("list", inner))) => cluster::alarm_list(settings, inner).await,
        ("alarm", Some(("disarm", inner))) => cluster::alarm_disarm(settings, inner).await,
        ("snapshot", Some(("save", inner))) => snapshot::save(settings, inner).await,
        ("snapshot", Some(("status", inner))) => snapshot::status(settings, inner),
        ("discovery", Some(("new", inner))) => discovery::new(settings, inner).await,
        ("discovery", Some(("show", inner))) => discovery::show(settings, inner).await,
        ("endpoint", Some(("health", inner))) => endpoint::health(settings, inner).await,
        ("endpoint", Some(("status", inner))) => endpoint::status(settings, inner).await,
        ("endpoint", Some(("hashkv", inner))) => endpoint::hash_kv(settings, inner).await,
        ("make-mirror", _) => mirror::make_mirror(settings, inner).await,
        ("check", Some((kind, inner))) => bench::check::check(settings, kind, inner).await,
        ("bench", Some((kind, inner))) => bench::run(settings, kind, inner).await,
        (other, _) => unreachable!("the grammar knows a verb {other:?} that nothing runs"),
    }
}

/// Verbs that need no server, and no settings or only to know where they are. `None`: it is not one of them.
pub fn run_offline(matches: &ArgMatches, given: &Given, variables: &Variables) -> Option<Result<()>> {
    match matches.subcommand()? {
        ("version", _) => Some(show(
            format!("cairnctl version: {}\nAPI version: {API_VERSION}\n", env!("CARGO_PKG_VERSION"))
                .as_bytes(),
        )),
        ("completion", inner) => Some(completion_script(inner)),
        ("__complete", inner) => {
            completion::run(inner, variables);
            Some(Ok(()))
        }
        ("context", inner) => Some(context::run(inner, given, variables)),
        _ => None,
    }
}

fn completion_script(matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let [shell] = arguments.as_slice() else {
        return Err(Failure::arguments("completion command needs 1 argument: bash, zsh, fish or powershell"));
    };
    let shell = String::from_utf8_lossy(shell);
    let descriptions = !cli::on(matches, "no-descriptions");
    let script = completion::script(&shell, descriptions).ok_or_else(|| {
        Failure::arguments(format!("unknown shell {shell:?}; known are {}", completion::SHELLS.join(", ")))
    })?;
    show(&script)
}

/// Puts an answer on stdout in one piece.
pub fn show(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has seen enough (`| head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Io)),
        other => Ok(other?),
    }
}

/// A client and a printer for a verb that prints one answer; refuses formats before anything is changed.
fn begin(settings: &Settings, patient: bool) -> Result<(Client, Printer)> {
    Ok((Client::new(settings, patient)?, Printer::new(settings)))
}

/// Whether `--consistency` asks for the member's own state.
fn serializable(matches: &ArgMatches) -> Result<bool> {
    match cli::text(matches, "consistency") {
        "" | "l" => Ok(false),
        "s" => Ok(true),
        other => Err(Failure::feature(format!("unknown consistency flag {other:?}"))),
    }
}
