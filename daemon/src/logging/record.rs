//! One thing to be logged, in each of its forms: a JSON line, a line for people, fields for the journal.

use parking_lot::Mutex;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{
    journal::{Fields, own_name},
    line::Line,
    messages,
};
use crate::{
    config::{LogFormat, LogLevel},
    refusal::Id,
};

/// The field of our records that names a refusal.
const CODE: &str = "code";

pub struct Record<'a> {
    pub level: LogLevel,
    /// `node/raft_loop.rs:7`
    pub caller: &'a str,
    pub message: &'a str,
    /// Names, and complete JSON values.
    pub fields: Vec<(String, String)>,
}

/// What every record of the journal carries once it is known.
static OWNER: Mutex<Owner> = Mutex::new(Owner { member: None, term: 0 });

struct Owner {
    /// Member id, cluster id, name.
    member: Option<(String, String, String)>,
    term: u64,
}

/// Who this process is, for the records from here on.
pub fn owner_is(member_id: String, cluster_id: String, name: String) {
    OWNER.lock().member = Some((member_id, cluster_id, name));
}

pub fn term_is(term: u64) {
    OWNER.lock().term = term;
}

impl<'a> Record<'a> {
    pub fn of_map(
        level: LogLevel,
        caller: &'a str,
        message: &'a str,
        fields: &Map<String, Value>,
    ) -> Record<'a> {
        let fields = fields.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        Record { level, caller, message, fields }
    }

    pub fn line(&self, format: LogFormat) -> String {
        let mut line = Line::new(format, self.level, OffsetDateTime::now_utc(), self.caller, self.message);
        for (key, json) in &self.fields {
            line.field(key, json);
        }
        line.finish()
    }

    /// `text` stands for the message where people should read more than its words.
    pub fn journal(&self, text: Option<&str>) -> Fields {
        let mut out = Fields::default();
        match text {
            Some(text) => out.put("MESSAGE", text.trim_end()),
            None => out.put("MESSAGE", &self.sentence()),
        }
        out.put("PRIORITY", priority(self.level));
        out.put("SYSLOG_IDENTIFIER", "cairnd");
        let (file, line) = self.caller.rsplit_once(':').unwrap_or((self.caller, ""));
        out.put("CODE_FILE", file);
        if !line.is_empty() {
            out.put("CODE_LINE", line);
        }
        let code = self.fields.iter().find(|(key, _)| key == CODE).map(|(_, json)| plain(json));
        let refusal = code.as_deref().and_then(|code| Id::ALL.iter().find(|id| id.name() == code));
        let number = messages::of_words(self.message).or_else(|| refusal.map(|id| messages::of_refusal(*id)));
        if let Some(number) = number {
            out.put("MESSAGE_ID", &number);
        }
        for (key, json) in &self.fields {
            match key.as_str() {
                CODE => out.put("REFUSAL_ID", &plain(json)),
                other => out.put(&own_name(other), &plain(json)),
            }
        }
        let owner = OWNER.lock();
        if let Some((member, cluster, name)) = &owner.member {
            out.put("MEMBER_ID", member);
            out.put("CLUSTER_ID", cluster);
            out.put("MEMBER_NAME", name);
        }
        if owner.term > 0 {
            out.put("TERM", &owner.term.to_string());
        }
        out
    }

    /// The message with its fields, as a line for people has them.
    fn sentence(&self) -> String {
        let mut text = self.message.to_owned();
        for (key, json) in &self.fields {
            text.push_str("  ");
            text.push_str(key);
            text.push('=');
            text.push_str(json);
        }
        text
    }
}

/// A JSON text without its quotes; anything else as it is.
fn plain(json: &str) -> String {
    match serde_json::from_str(json) {
        Ok(Value::String(text)) => text,
        _ => json.to_owned(),
    }
}

/// As syslog numbers them.
pub fn priority(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "7",
        LogLevel::Info => "6",
        LogLevel::Warn => "4",
        LogLevel::Error => "3",
        LogLevel::Panic | LogLevel::Fatal => "2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_the_same_in_every_form() {
        let fields = vec![
            ("code".to_owned(), "\"NAME_MISMATCH\"".to_owned()),
            ("took-ms".to_owned(), "12".to_owned()),
        ];
        let record = Record { level: LogLevel::Warn, caller: "node/x.rs:7", message: "it is late", fields };
        assert!(
            record
                .line(LogFormat::Json)
                .contains("\"msg\":\"it is late\",\"code\":\"NAME_MISMATCH\",\"took-ms\":12}")
        );
        let journal = String::from_utf8(record.journal(None).bytes().to_vec()).unwrap();
        for field in [
            "MESSAGE=it is late  code=\"NAME_MISMATCH\"  took-ms=12\n",
            "PRIORITY=4\n",
            "CODE_FILE=node/x.rs\nCODE_LINE=7\n",
            "REFUSAL_ID=NAME_MISMATCH\n",
            "CAIRN_TOOK_MS=12\n",
            &format!("MESSAGE_ID={}\n", messages::of_refusal(Id::NameMismatch)),
        ] {
            assert!(journal.contains(field), "{field:?} is not in {journal}");
        }
    }
}
