//! The log: one line per event, etcd-shaped JSON for programs or readable text for a terminal; fields for the journal where stderr leads
//! to it.
//!
//! Code anywhere uses `tracing`'s macros; [`layer`] turns an event into a record and [`writer`] takes it off the caller's hands. A record
//! that finds the writer's queue full is dropped and counted, and the count is told: no request ever waits for a slow disk or pipe
//! behind stderr.
//!
//! Not here: which lines other programs wait for (`announce`, `node`), and which of them have a number ([`messages`]).

mod journal;
mod layer;
mod line;
mod messages;
mod record;
mod writer;

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::{Map, Value};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{
    config::{Log, LogFormat, LogLevel, LogOutput},
    identity::Identity,
    refusal::Refusal,
};

use journal::{Journal, SETTLE_WAIT};
use record::Record;
use writer::{Entry, Forms, Writer};

/// The one log of the process. Global because a panic hook and a failing disk have nothing else to reach it by.
static LOG: OnceLock<Logging> = OnceLock::new();

pub struct Logging {
    writer: Writer,
    forms: Forms,
    level: Arc<AtomicU8>,
}

/// Starts logging for the rest of the process. A second call is ignored.
pub fn init(settings: &Log) -> Result<(), Refusal> {
    // Who asks for a form gets it, also in the journal.
    let journal = match settings.format {
        None if settings.outputs.contains(&LogOutput::Stderr) => Journal::behind_stderr(),
        _ => None,
    };
    let forms = Forms {
        line: settings.format.unwrap_or_else(|| usual_format(&settings.outputs)),
        has_journal: journal.is_some(),
    };
    let level = Arc::new(AtomicU8::new(settings.level as u8));
    let writer = Writer::start(&settings.outputs, forms, journal)?;
    let layer = layer::LineLayer::new(writer.clone(), forms, level.clone());
    let subscriber = tracing_subscriber::registry().with(layer);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = LOG.set(Logging { writer, forms, level });
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

/// Whose records these are from now on.
pub fn member(identity: &Identity) {
    record::owner_is(identity.member_id.to_string(), identity.cluster_id.to_string(), identity.name.clone());
}

/// The term that this member is in.
pub fn term(term: u64) {
    record::term_is(term);
}

/// Writes a record that must not be lost, and waits (a bounded time) until it and all before it are out. For the last words of the
/// process; before [`init`] they go to stderr.
pub fn last_words(level: LogLevel, caller: &str, message: &str, fields: &Map<String, Value>) {
    last_record(&Record::of_map(level, caller, message, fields), None);
}

fn last_record(record: &Record<'_>, text: Option<&str>) {
    match LOG.get() {
        Some(log) => log.writer.write_and_flush(Entry::of(record, text, log.forms)),
        None => {
            let sent = Journal::behind_stderr().is_some_and(|journal| {
                let sent = journal.send(record.journal(text).bytes()).is_ok();
                let _ = journal.settle(SETTLE_WAIT);
                sent
            });
            if !sent {
                to_stderr(&record.line(usual_format(&[LogOutput::Stderr])));
            }
        }
    }
}

/// For last words: where nobody can read them the process ends all the same, and with the exit status that it would have had.
pub fn to_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Waits, a bounded time, until everything logged so far is out.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.writer.flush();
    }
}

/// The refusal in its two forms: five parts for people on stderr, one record in the log. On a terminal the record would only repeat the
/// parts, so it is left out. The journal gets both in one: the parts are the message of the record.
pub fn refuse(refusal: &Refusal) {
    flush();
    let fields = refusal.fields();
    let record = Record::of_map(LogLevel::Fatal, "cairnd/refusal.rs", "refused to start", &fields);
    let has_journal = match LOG.get() {
        Some(log) => log.forms.has_journal,
        None => journal::has_stderr(),
    };
    if has_journal {
        last_record(&record, Some(&refusal.text()));
        return;
    }
    to_stderr(&refusal.text());
    let console = match LOG.get() {
        Some(log) => log.forms.line == LogFormat::Console,
        None => std::io::stderr().is_terminal(),
    };
    if !console {
        last_record(&record, None);
    }
}
