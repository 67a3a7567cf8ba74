//! The load generator: the same requests against cairn or etcd, so that one tool measures both.
//!
//! A client is a task that has one request under way. Clients share connections, connections share threads; one thread is the
//! default, because the generator must leave the processors to the server it measures. In a closed loop a client sends when its
//! last answer came. In an open loop requests are due at fixed times, and the latency counts from then, also when every client
//! was still busy: a server that stalls cannot hide its queue.
//!
//! Not here: what is measured on the server's side (memory, processor time).

mod histogram;
pub mod options;
mod report;
mod requests;
mod run;

use crate::client::{Client, dialer};
use crate::failure::{Exit, Failure, Result};
use crate::settings::{Format, Settings};
use crate::verbs::show;
use clap::ArgMatches;
use options::Options;
use std::sync::Arc;

/// Runs one measurement and prints its report, as text or with `-w json`.
pub async fn run(settings: &Settings, kind: &str, matches: &ArgMatches) -> Result<()> {
    if !matches!(settings.format, Format::Simple | Format::Json) {
        return Err(Failure::feature("bench reports with -w simple or -w json"));
    }
    let options = Options::read(kind, matches)?;
    // Every request carries the same token, fetched once.
    let token = Client::new(settings, false)?.token().await?;
    let plan = Arc::new(run::Plan {
        requests: requests::Requests::new(&options),
        endpoints: settings.endpoints.clone(),
        dialer: dialer(settings, &settings.endpoints)?,
        dial_timeout: settings.dial_timeout,
        request_timeout: settings.command_timeout,
        token,
        options,
    });
    // The threads of the generator have runtimes of their own; nothing else happens on this one meanwhile.
    let result = run::measure(plan.clone())?;
    show(report::render(&plan.options, &result, settings.format).as_bytes())?;
    if result.nothing_succeeded() { Err(Failure::new(Exit::Error, "no request succeeded")) } else { Ok(()) }
}
