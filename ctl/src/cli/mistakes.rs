//! What is said about a command line that cannot be understood: one line in etcdctl's words, with the nearest name or what there is instead.

use super::command;
use crate::failure::Failure;
use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Verbs that are not here, of etcdctl, of its version 2 and of habit, and what there is instead.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("", "auth", NO_USERS),
    ("", "user", NO_USERS),
    ("", "role", NO_USERS),
    ("", "lock", THEIRS_WORKS),
    ("", "elect", THEIRS_WORKS),
    ("", "ls", "the verb is get: cairnctl get PREFIX --prefix --keys-only"),
    ("", "rm", "the verb is del: cairnctl del KEY"),
    ("", "set", "the verb is put: cairnctl put KEY VALUE"),
    ("", "mk", "the verb is put: cairnctl put KEY VALUE"),
    ("", "cluster-health", "cairnctl endpoint health --cluster, or cairnctl status"),
    ("", "leader", "cairnctl status names the leader; move-leader hands leadership on"),
    ("", "backup", "the verb is snapshot save: cairnctl snapshot save FILE"),
    ("", "restore", RESTORE),
    ("", "downgrade", "cairn has one version of its data; see Upgrade in docs/production.md"),
    ("snapshot", "restore", RESTORE),
];
const NO_USERS: &str = "not here yet, as cairn has no users yet; for etcd take etcdctl";
const THEIRS_WORKS: &str = "not here yet; etcdctl's works with cairn too";
const RESTORE: &str = "the daemon restores: cairnd snapshot restore (or etcdutl, for etcd)";

/// The verbs before the one that is unknown, as the usage of what was asked for names them.
fn group_of(error: &clap::Error) -> Vec<String> {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return Vec::new() };
    let usage = usage.to_string();
    let words = usage.split_whitespace().skip_while(|word| *word != "cairnctl").skip(1);
    words.take_while(|word| !word.starts_with(['[', '<', '-'])).map(str::to_owned).collect()
}

/// Within a group only its own verbs can be meant, and there are few enough to name them.
fn unknown_verb(group: &[String], name: &str) -> String {
    let all = command();
    let mut at = &all;
    for verb in group {
        at = at.find_subcommand(verb).unwrap_or(at);
    }
    let path: String = group.iter().map(|verb| format!(" {verb}")).collect();
    let elsewhere =
        ELSEWHERE.iter().find(|(of, verb, _)| *of == group.join(" ") && *verb == name).map(|(.., what)| what);
    if let Some(what) = elsewhere {
        return format!("unknown command {name:?} for \"cairnctl{path}\": {what}");
    }
    let below = |verb: &Command| -> Vec<String> {
        verb.get_subcommands().filter(|one| !one.is_hide_set()).map(|one| one.get_name().to_owned()).collect()
    };
    let own = below(at);
    let mut names = own.clone();
    // What stands in a group is named with it: `list` alone is no verb.
    let grouped: Vec<(String, String)> = at
        .get_subcommands()
        .filter(|_| group.is_empty())
        .flat_map(|verb| below(verb).into_iter().map(|inner| (inner, verb.get_name().to_owned())))
        .collect();
    names.extend(grouped.iter().map(|(inner, _)| inner.clone()));
    let hint = match crate::settings::nearest(name, names.iter().map(String::as_str)) {
        Some(near) if own.iter().any(|name| name == near) => format!("; did you mean {near}?"),
        Some(near) => {
            let all: Vec<String> = grouped
                .iter()
                .filter(|(inner, _)| inner == near)
                .map(|(inner, of)| format!("{of} {inner}"))
                .collect();
            format!("; did you mean {}?", one_of(all.iter().map(String::as_str)))
        }
        None if group.is_empty() => String::new(),
        None => format!("; it has {}", own.join(", ")),
    };
    format!("unknown command {name:?} for \"cairnctl{path}\"{hint}")
}

/// `a, b or c`.
fn one_of<'a>(known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    match known.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} or {last}", before.join(", ")),
        _ => known.join(""),
    }
}

/// One line in the words of etcdctl, with the nearest known name where there is one.
pub fn usage_failure(error: &clap::Error) -> Failure {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let hint = |name: Option<&str>| name.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    let headline = match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = text(ContextKind::InvalidArg).unwrap_or_default();
            let hint = hint(text(ContextKind::SuggestedArg));
            let literal = "a value that begins with a dash goes after --";
            if flag == "--version" {
                format!("unknown flag: {flag}; the verb is version: cairnctl version")
            } else if flag.starts_with("--") {
                format!("unknown flag: {flag}{hint}")
            } else {
                format!("unknown shorthand flag: {flag} ({literal})")
            }
        }
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            unknown_verb(&group_of(error), name)
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let flag = text(ContextKind::InvalidArg).unwrap_or_default();
            let flag = flag.split([' ', '=', '[']).next().unwrap_or(flag);
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let why = std::error::Error::source(error).map(|why| format!(": {why}")).unwrap_or_default();
            let why = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(known)) if why.is_empty() && !known.is_empty() => {
                    format!(": expecting {}", one_of(known.iter().map(String::as_str)))
                }
                _ => why,
            };
            if value.is_empty() {
                format!("flag needs an argument: {flag}")
            } else {
                format!("invalid argument {value:?} for {flag:?} flag{why}")
            }
        }
        _ => error
            .render()
            .to_string()
            .trim_start_matches("error: ")
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
    };
    Failure::usage(format!("{headline}\nRun 'cairnctl --help', or --help after the verb, for usage."))
}
