//! Proof over the whole table that a setting does something: tests only.

use super::{
    Surroundings,
    table::{self, Setting},
    value::Kind,
};
use crate::cli::GivenFlag;

/// A value of the setting's kind other than its default; None where there is no other.
pub fn other_value(setting: &Setting) -> Option<String> {
    Some(match setting.kind {
        Kind::Bool => (setting.default != "true").to_string(),
        Kind::Count { min, max } => {
            let default: i128 = setting.default.parse().unwrap();
            let other = if default < max { default + 1 } else { default - 1 };
            assert!((min..=max).contains(&other));
            other.to_string()
        }
        Kind::Millis => if setting.default == "100" { "150" } else { "2500" }.into(),
        Kind::Duration => "7s".into(),
        Kind::Bytes { .. } => "123456".into(),
        Kind::Urls => "http://127.0.0.9:9".into(),
        Kind::Members => "default=http://h:9".into(),
        Kind::Choice(of) => (*of.iter().find(|one| **one != setting.default && !one.is_empty())?).into(),
        Kind::Gates => "AllAlpha=true".into(),
        Kind::Retention => "5".into(),
        Kind::Text | Kind::Path | Kind::List | Kind::Anything => "x".into(),
    })
}

/// Refused, reported, or visible in what the rest of the daemon is given.
fn outcome(flags: Vec<GivenFlag>) -> String {
    outcome_with(flags, vec![])
}

fn outcome_with(flags: Vec<GivenFlag>, variables: Vec<(String, String)>) -> String {
    let surroundings = Surroundings { flags, variables, default_file: "/nonexistent".into() };
    match super::load(&surroundings) {
        Ok((settings, resolved)) => format!("{settings:?} {:?}", resolved.notes),
        Err(refusal) => refusal.text(),
    }
}

fn flag(name: &str, text: &str) -> GivenFlag {
    GivenFlag { setting: table::find(name).unwrap(), text: text.into() }
}

/// Regression OP14.
#[test]
fn no_flag_silently_ignored() {
    // Looked at before settings are: by the command line and by the reader of the file.
    let elsewhere = ["config-file", "allow-unknown-keys", "version", "help"];
    for setting in table::settings().filter(|setting| !elsewhere.contains(&setting.name)) {
        let Some(text) = other_value(setting) else { continue };
        // A companion without which this one would be refused for another reason.
        let companion = || match setting.name {
            "listen-client-urls" => vec![flag("advertise-client-urls", "http://127.0.0.1:9")],
            _ => vec![],
        };
        let without = outcome(companion());
        let mut flags = companion();
        flags.push(flag(setting.name, &text));
        assert_ne!(outcome(flags), without, "--{}={text} changes nothing and nobody is told", setting.name);
    }
}

/// Regression OP13: what a variable sets is honoured, refused or reported like what a flag sets; none is dropped on the way.
#[test]
fn environment_honoured() {
    // No settings: what they do ends before any is read.
    let elsewhere = ["allow-unknown-keys", "version", "help"];
    for setting in table::settings().filter(|setting| !elsewhere.contains(&setting.name)) {
        let Some(text) = other_value(setting) else { continue };
        let companion = || match setting.name {
            "listen-client-urls" => vec![flag("advertise-client-urls", "http://127.0.0.1:9")],
            _ => vec![],
        };
        let variable = (setting.variable(), text.clone());
        let with = outcome_with(companion(), vec![variable]);
        assert_ne!(with, outcome(companion()), "{}={text} changes nothing", setting.variable());
        assert!(!with.contains("unknown variable"), "{with}");
    }
}

/// Regression OP12.
#[test]
fn boolean_flag_false() {
    for (text, expected) in [("false", false), ("F", false), ("0", false), ("true", true)] {
        let args = [format!("--pre-vote={text}"), format!("-initial-election-tick-advance={text}")];
        let flags = crate::cli::parse(args.map(Into::into)).unwrap().flags;
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        let raft = super::load(&surroundings).unwrap().0.raft;
        assert_eq!((raft.pre_vote, raft.initial_election_tick_advance), (expected, expected), "{text}");
    }
}
