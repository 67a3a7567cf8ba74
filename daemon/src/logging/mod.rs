//! The log: one line per event, etcd-shaped JSON for programs or readable text for a terminal.
//!
//! Code anywhere uses `tracing`'s macros; [`layer`] turns an event into a line and [`writer`] takes it off the caller's hands. A line
//! that finds the writer's queue full is dropped and counted, and the count is told: no request ever waits for a slow disk or pipe
//! behind stderr.
//!
//! Not here: which lines other programs wait for (`announce`, `node`).

mod layer;
mod line;
mod writer;

use std::{
    io::IsTerminal as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::{Map, Value};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{
    config::{Log, LogFormat, LogLevel, LogOutput},
    refusal::Refusal,
};

pub use writer::Writer;

/// The one log of the process. Global because a panic hook and a failing disk have nothing else to reach it by.
static LOG: OnceLock<Logging> = OnceLock::new();

pub struct Logging {
    writer: Writer,
    format: LogFormat,
    level: Arc<AtomicU8>,
}

/// Starts logging for the rest of the process. A second call is ignored.
pub fn init(settings: &Log) -> Result<(), Refusal> {
    let format = settings.format.unwrap_or_else(|| usual_format(&settings.outputs));
    let level = Arc::new(AtomicU8::new(settings.level as u8));
    let writer = Writer::start(&settings.outputs, format)?;
    let layer = layer::LineLayer::new(writer.clone(), format, level.clone());
    let subscriber = tracing_subscriber::registry().with(layer);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = LOG.set(Logging { writer, format, level });
    }
    Ok(())
}

fn usual_format(outputs: &[LogOutput]) -> LogFormat {
    let terminal = match outputs {
        [LogOutput::Stderr] => std::io::stderr().is_terminal(),
        [LogOutput::Stdout] => std::io::stdout().is_terminal(),
        _ => false,
    };
    if terminal { LogFormat::Console } else { LogFormat::Json }
}

/// Changes what is written from now on.
pub fn set_level(level: LogLevel) {
    if let Some(log) = LOG.get() {
        log.level.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Writes a line that must not be lost, and waits (a bounded time) until it and all before it are out. For the last words of the
/// process; before [`init`] they go to stderr.
pub fn last_words(level: LogLevel, caller: &str, message: &str, fields: &Map<String, Value>) {
    let format = LOG.get().map_or_else(|| usual_format(&[LogOutput::Stderr]), |log| log.format);
    let text = line::from_fields(format, level, caller, message, fields);
    match LOG.get() {
        Some(log) => log.writer.write_and_flush(text),
        None => eprint!("{text}"),
    }
}

/// Waits, a bounded time, until everything logged so far is out.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.writer.flush();
    }
}

/// The refusal in its two forms: five parts for people on stderr, one record in the log. On a terminal the record would only repeat the
/// parts, so it is left out.
pub fn refuse(refusal: &Refusal) {
    flush();
    eprint!("{}", refusal.text());
    let console = match LOG.get() {
        Some(log) => log.format == LogFormat::Console,
        None => std::io::stderr().is_terminal(),
    };
    if !console {
        last_words(LogLevel::Fatal, "cairnd/refusal.rs", "refused to start", &refusal.fields());
    }
}
