//! The text of one line. JSON has etcd's shape: level, ts, caller, msg, then the fields in the order given.

use std::fmt::Write as _;

use time::OffsetDateTime;

use crate::config::{LogFormat, LogLevel};

pub fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
        LogLevel::Panic => "panic",
        LogLevel::Fatal => "fatal",
    }
}

/// A line in the making. Fields are added as JSON texts.
pub struct Line {
    format: LogFormat,
    text: String,
    tail: String,
}

impl Line {
    pub fn new(format: LogFormat, level: LogLevel, now: OffsetDateTime, caller: &str, message: &str) -> Line {
        let mut text = String::with_capacity(256);
        match format {
            LogFormat::Json => {
                text.push_str("{\"level\":\"");
                text.push_str(level_name(level));
                text.push_str("\",\"ts\":\"");
                push_time(&mut text, now);
                text.push_str("\",\"caller\":");
                push_json_text(&mut text, caller);
                text.push_str(",\"msg\":");
                push_json_text(&mut text, message);
            }
            LogFormat::Console => {
                push_time(&mut text, now);
                let _ = write!(text, " {:<5} ", level_name(level).to_uppercase());
                push_plain(&mut text, message);
            }
        }
        let tail = match format {
            LogFormat::Json => String::new(),
            LogFormat::Console => format!("  ({caller})"),
        };
        Line { format, text, tail }
    }

    /// `json` is a complete JSON value.
    pub fn field(&mut self, key: &str, json: &str) {
        match self.format {
            LogFormat::Json => {
                self.text.push(',');
                push_json_text(&mut self.text, key);
                self.text.push(':');
                self.text.push_str(json);
            }
            LogFormat::Console => {
                self.text.push_str("  ");
                push_plain(&mut self.text, key);
                self.text.push('=');
                self.text.push_str(json);
            }
        }
    }

    pub fn finish(mut self) -> String {
        if self.format == LogFormat::Json {
            self.text.push('}');
        }
        self.text.push_str(&self.tail);
        self.text.push('\n');
        self.text
    }
}

pub fn push_json_text(out: &mut String, text: &str) {
    // A text always serializes.
    out.push_str(&serde_json::to_string(text).unwrap_or_else(|_| "\"\"".into()));
}

/// One event stays one line, whatever is in it.
fn push_plain(out: &mut String, text: &str) {
    out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
}

/// RFC 3339 in UTC with microseconds, as etcd writes it.
fn push_time(out: &mut String, now: OffsetDateTime) {
    let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
    let (hour, minute, second, micro) = (now.hour(), now.minute(), now.second(), now.microsecond());
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat) -> String {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_767_323_045_000_042_000).unwrap();
        let mut line = Line::new(format, LogLevel::Warn, now, "node/raft_loop.rs:7", "it is \"late\"\n");
        line.field("took-ms", "12");
        line.finish()
    }

    #[test]
    fn json_has_etcds_shape() {
        assert_eq!(
            line(LogFormat::Json),
            "{\"level\":\"warn\",\"ts\":\"2026-01-02T03:04:05.000042Z\",\"caller\":\"node/raft_loop.rs:7\",\"msg\":\"it is \\\"late\\\"\\n\",\"took-ms\":12}\n"
        );
    }

    #[test]
    fn a_line_for_people_is_one_line() {
        assert_eq!(
            line(LogFormat::Console),
            "2026-01-02T03:04:05.000042Z WARN  it is \"late\"   took-ms=12  (node/raft_loop.rs:7)\n"
        );
    }
}
