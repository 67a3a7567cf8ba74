//! What doctor has found: one line per check, the first refusal that a start would end with, and the verdict.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::pretty;
use crate::{
    config::tongue::Tongue,
    refusal::{Exit, Id, Refusal},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        }
    }
}

#[derive(Debug)]
struct Check {
    level: Level,
    name: String,
    says: String,
}

#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
    refusal: Option<Refusal>,
    /// It runs here, so a refusal is that of its next start.
    runs: Option<u32>,
    /// Of whoever wrote the settings.
    tongue: Option<Tongue>,
}

impl Report {
    pub fn new(tongue: Tongue) -> Report {
        Report { tongue: Some(tongue), ..Report::default() }
    }

    pub fn runs_as(&mut self, pid: u32) {
        self.runs = Some(pid);
    }

    fn add(&mut self, level: Level, name: &str, says: impl Into<String>) {
        let says: String = says.into();
        let says = says.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.checks.push(Check { level, name: name.to_owned(), says });
    }

    pub fn ok(&mut self, name: &str, says: impl Into<String>) {
        self.add(Level::Ok, name, says);
    }

    pub fn warn(&mut self, name: &str, says: impl Into<String>) {
        self.add(Level::Warn, name, says);
    }

    /// A start would be refused with it, unless it was refused before. Checks come in the order of a start.
    pub fn fail(&mut self, name: &str, refusal: Refusal) {
        let refusal = match &self.tongue {
            Some(tongue) => refusal.in_the_words_of(tongue),
            None => refusal,
        };
        self.add(Level::Fail, name, refusal.cause());
        self.refusal.get_or_insert(refusal);
    }

    /// What a start would end with, as far as was looked.
    pub fn refused(&self) -> Option<Id> {
        self.refusal.as_ref().map(|refusal| refusal.id)
    }

    /// `well` is the verdict of a start that is not refused.
    pub fn told(&self, well: &str, as_json: bool) -> (String, Exit) {
        let exit = self.refusal.as_ref().map_or(Exit::Stopped, Refusal::exit);
        let verdict = match &self.refusal {
            None => format!("{well} (exit 0)"),
            Some(refusal) => {
                let start = self.runs.map_or("a start".to_owned(), |pid| {
                    format!("pid {pid} runs here; its next start with these settings")
                });
                format!("{start} would be refused: {} (exit {})", refusal.id.name(), exit as u8)
            }
        };
        if as_json {
            let checks: Vec<Value> = self
                .checks
                .iter()
                .map(|check| json!({ "level": check.level.name(), "check": check.name, "says": check.says }))
                .collect();
            let refusal = self.refusal.as_ref().map(Refusal::fields);
            let value =
                json!({ "checks": checks, "refusal": refusal, "verdict": verdict, "exit": exit as u8 });
            return (pretty(&value), exit);
        }
        let mut out = String::new();
        for Check { level, name, says } in &self.checks {
            let _ = writeln!(out, "{} {name}: {says}", level.name());
        }
        if let Some(refusal) = &self.refusal {
            out.push_str(&refusal.text());
        }
        let _ = writeln!(out, "verdict: {verdict}");
        (out, exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_is_the_verdict_and_the_last_line_says_it() {
        let mut report = Report::default();
        report.ok("settings", "can be\nused");
        report.fail("identity", Refusal::new(Id::NameMismatch, "another name"));
        report.fail("ports", Refusal::new(Id::PortInUse, "taken"));
        let (text, exit) = report.told("fine", false);
        assert_eq!(exit, Exit::Identity);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["ok settings: can be used", "FAIL identity: another name", "FAIL ports: taken"]
        );
        assert_eq!(lines[3], "REFUSED NAME_MISMATCH");
        assert_eq!(lines.last(), Some(&"verdict: a start would be refused: NAME_MISMATCH (exit 78)"));
        let (text, _) = report.told("fine", true);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["exit"], &value["refusal"]["code"]), (&json!(78), &json!("NAME_MISMATCH")));
        assert_eq!(Report::default().told("fine", false), ("verdict: fine (exit 0)\n".into(), Exit::Stopped));
    }
}
