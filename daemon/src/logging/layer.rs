//! From `tracing` events to records.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::layer::{Context, Layer};

use super::{
    line::push_json_text,
    record::Record,
    writer::{Entry, Forms, Writer},
};
use crate::config::LogLevel;

/// Crates whose events are ours. The libraries below them speak one level more softly: their "info" is our "debug".
const OURS: [&str; 9] =
    ["cairnd", "node", "server", "transport", "storage", "consensus", "state_machine", "api", "types"];

pub struct LineLayer {
    writer: Writer,
    forms: Forms,
    level: Arc<AtomicU8>,
}

impl LineLayer {
    pub fn new(writer: Writer, forms: Forms, level: Arc<AtomicU8>) -> LineLayer {
        LineLayer { writer, forms, level }
    }

    fn least(&self) -> u8 {
        self.level.load(Ordering::Relaxed)
    }
}

fn level_of(level: &Level) -> LogLevel {
    match *level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG | Level::TRACE => LogLevel::Debug,
    }
}

fn is_ours(target: &str) -> bool {
    OURS.contains(&target.split("::").next().unwrap_or_default())
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let level = level_of(metadata.level());
        let softer = u8::from(!is_ours(metadata.target()) && level < LogLevel::Warn);
        metadata.is_event() && *metadata.level() != Level::TRACE && level as u8 >= self.least() + softer
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.least() {
            0 => LevelFilter::DEBUG,
            1 => LevelFilter::INFO,
            2 => LevelFilter::WARN,
            3 => LevelFilter::ERROR,
            _ => LevelFilter::OFF,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let caller = caller(metadata);
        let others = fields.others.into_iter().map(|(key, json)| (key.replace('_', "-"), json));
        let record = Record {
            level: level_of(metadata.level()),
            caller: &caller,
            message: &fields.message,
            fields: others.collect(),
        };
        self.writer.write(Entry::of(&record, None, self.forms));
    }
}

/// `node/raft_loop.rs:7`: the crate and the file within it.
fn caller(metadata: &Metadata<'_>) -> String {
    let unit = metadata.target().split("::").next().unwrap_or_default();
    let file = metadata.file().unwrap_or_default();
    let file = file.rsplit_once("src/").map_or(file, |(_, file)| file);
    format!("{unit}/{file}:{}", metadata.line().unwrap_or_default())
}

/// Field values as JSON texts.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn push(&mut self, field: &Field, json: String) {
        self.others.push((field.name(), json));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
            return;
        }
        let mut json = String::with_capacity(value.len() + 2);
        push_json_text(&mut json, value);
        self.push(field, json);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.to_string());
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.push(field, value.to_string());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.push(field, value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, if value.is_finite() { value.to_string() } else { "null".into() });
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        // A list of texts prints as JSON already and is kept as a list, as etcd logs its URLs.
        if text.starts_with('[') && serde_json::from_str::<serde_json::Value>(&text).is_ok() {
            self.push(field, text);
        } else {
            self.record_str(field, &text);
        }
    }
}
