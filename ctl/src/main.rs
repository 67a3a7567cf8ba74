//! cairnctl: the control tool of cairn, with etcdctl's verbs, flags, output and settings, and a load generator.
//!
//! This file is the life of one command: parse, weigh the settings, run the verb, say how it ended.

// They panic where they cannot write (a full disk behind `2>`, a closed pipe): `output::tell` and `verbs::show` do not.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod again;
mod bench;
mod cli;
mod client;
mod completion;
#[cfg(test)]
mod documents;
mod failure;
#[cfg(test)]
mod manual;
mod output;
mod session;
mod settings;
mod txn_script;
mod units;
mod verbs;
mod wire;

use failure::{Exit, Failure, Result};
use output::paint::{Paint, Tone};
use std::collections::BTreeMap;
use std::process::ExitCode;

fn main() -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            let word = Paint::for_stderr().bad("Error:");
            output::complain(&text.strip_prefix("Error:").map_or(text.clone(), |rest| word + rest));
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn command() -> Result<()> {
    let Some(matches) = cli::parse(std::env::args_os())? else { return Ok(()) };
    let text_variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let (given, variables) = (cli::given(&matches), text_variables.collect::<BTreeMap<_, _>>());
    if let Some(done) = verbs::run_offline(&matches, &given, &variables) {
        return done;
    }
    let settings = settings::resolve(&given, &variables)?;
    let paint = Paint::for_stderr();
    for warning in &settings.warnings {
        let tone = if warning.starts_with("warning:") { Tone::Warn } else { Tone::Faint };
        output::complain(&format!("{}\n", paint.tone(tone, warning)));
    }
    // One thread is enough to wait for a server; the load generator starts more of its own when asked to.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Io, format!("start the runtime: {error}")))?;
    runtime.block_on(verbs::run(&settings, &matches))
}
