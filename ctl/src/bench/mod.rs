//! The load generator: the same requests against cairn or etcd, so that one tool measures both.
//!
//! A client is a task that has one request under way. Clients share connections, connections share threads; one thread is the
//! default, because the generator must leave the processors to the server it measures. In a closed loop a client sends when its
//! last answer came. In an open loop requests are due at fixed times, and the latency counts from then, also when every client
//! was still busy: a server that stalls cannot hide its queue.
//!
//! Not here: what is measured on the server's side (memory, processor time).

pub mod check;
mod fields;
mod histogram;
mod lease;
pub mod options;
mod report;
mod requests;
mod run;
mod watch;

use crate::client::{Client, dialer};
use crate::failure::{Exit, Failure, Result};
use crate::settings::{Format, Settings};
use crate::verbs::show;
use clap::ArgMatches;
use options::Options;
use std::sync::Arc;

/// The kinds of measurement that are a mix of requests.
const KINDS: [&str; 4] = ["put", "range", "mixed", "fill"];

fn known(kind: &str) -> &'static str {
    KINDS.into_iter().find(|known| *known == kind).expect("the grammar knows no other kinds")
}

/// What all parts of a measurement have in common.
pub struct Base<'a> {
    settings: &'a Settings,
    /// Every request carries the same token, fetched once.
    token: Option<String>,
}

impl Base<'_> {
    fn plan(&self, options: Options) -> Result<run::Plan> {
        let settings = self.settings;
        Ok(run::Plan {
            requests: requests::Requests::new(&options),
            endpoints: settings.endpoints.clone(),
            dialer: dialer(settings, &settings.endpoints)?,
            dial_timeout: settings.dial_timeout,
            request_timeout: settings.command_timeout,
            token: self.token.clone(),
            ledger: None,
            stop: None,
            options,
        })
    }
}

/// Runs one measurement and prints its report, as text or with `-w json`.
pub async fn run(settings: &Settings, kind: &str, matches: &ArgMatches) -> Result<()> {
    if !matches!(settings.format, Format::Simple | Format::Json) {
        return Err(Failure::feature("bench reports with -w simple or -w json"));
    }
    // Whatever is wrong with the flags is said before anybody is asked for a token.
    let chosen = Chosen::read(kind, matches)?;
    let base = Base { settings, token: Client::new(settings, false)?.token().await? };
    // The threads of the generator have runtimes of their own; nothing else happens on this one meanwhile.
    match chosen {
        Chosen::Requests(options) => {
            let plan = Arc::new(base.plan(options)?);
            let result = run::measure(plan.clone())?;
            show(report::render(&plan.options, &result, settings.format).as_bytes())?;
            succeeded(&result)
        }
        Chosen::Watch(options) => watch::run(&base, options),
        Chosen::CatchUp(options) => watch::catch_up::run(&base, options),
        Chosen::KeepAlive(options) => lease::keep_alive(&base, options),
        Chosen::Expire(options) => lease::expire::run(&base, options),
    }
}

/// What is measured.
enum Chosen {
    Requests(Options),
    Watch(watch::options::WatchOptions),
    CatchUp(watch::options::CatchUpOptions),
    KeepAlive(Options),
    Expire(lease::options::ExpireOptions),
}

impl Chosen {
    fn read(kind: &str, matches: &ArgMatches) -> Result<Chosen> {
        Ok(match (kind, matches.subcommand()) {
            ("watch", _) => Chosen::Watch(watch::options::WatchOptions::read("watch", matches)?),
            ("watch-latency", _) => {
                Chosen::Watch(watch::options::WatchOptions::read("watch-latency", matches)?)
            }
            ("watch-catch-up", _) => Chosen::CatchUp(watch::options::CatchUpOptions::read(matches)?),
            ("lease", Some(("grant", inner))) => Chosen::Requests(lease::options::grant(inner)?),
            ("lease", Some(("keep-alive", inner))) => Chosen::KeepAlive(lease::options::keep_alive(inner)?),
            ("lease", Some(("expire", inner))) => Chosen::Expire(lease::options::ExpireOptions::read(inner)?),
            (kind, _) => Chosen::Requests(Options::read(known(kind), matches)?),
        })
    }
}

fn succeeded(result: &run::Outcome) -> Result<()> {
    if result.nothing_succeeded() { Err(Failure::new(Exit::Error, "no request succeeded")) } else { Ok(()) }
}
