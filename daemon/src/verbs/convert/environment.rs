//! The environment file of a distribution's package: `ETCD_*` assignments as a shell or systemd reads them, and flags in `DAEMON_ARGS`.

use std::ffi::OsString;

use super::{Item, Target, target_of};
use crate::{cli, config::table};

/// Variables with flags for the daemon: Debian's, and what others have made of it.
const ARGUMENTS: [&str; 4] = ["DAEMON_ARGS", "DAEMON_OPTS", "ETCD_OPTS", "ETCD_ARGS"];

/// Whether the file is made of assignments. YAML has none.
pub fn is_one(text: &str) -> bool {
    let mut lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    lines.next().is_some_and(|line| assignment(line).is_some())
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (name, value) = line.split_once('=')?;
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    is_name.then_some((name, value))
}

pub fn items(path: &str, text: &str) -> Vec<Item> {
    let mut variables = Vec::new();
    let mut flags = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, first)) = lines.next() {
        let place = format!("{path}:{}", number + 1);
        let mut line = first.to_owned();
        while line.ends_with('\\') {
            line.pop();
            let Some((_, more)) = lines.next() else { break };
            line.push_str(more);
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let Some((name, value)) = assignment(line) else {
            variables.push(Item {
                place,
                name: line.to_owned(),
                text: String::new(),
                target: Target::Unknown("no assignment NAME=value".into()),
            });
            continue;
        };
        let text = words(value).join(" ");
        if ARGUMENTS.contains(&name) {
            flags.extend(arguments(&place, name, &text));
        } else {
            variables.push(variable(place, name, text));
        }
    }
    // A flag counts before a variable, so it comes after it.
    variables.extend(flags);
    variables
}

fn variable(place: String, name: &str, text: String) -> Item {
    let setting = table::settings().find(|setting| setting.variable() == name);
    let target = match setting {
        Some(setting) => Target::Setting(setting.name),
        None if name.starts_with("ETCDCTL_") => Target::Foreign("for etcdctl; cairnctl understands it too"),
        None if !name.starts_with("ETCD_") => {
            Target::Foreign("no setting of etcd: keep it in the environment file of cairnd if it is meant")
        }
        None => target_of(None, &name.to_lowercase().replace('_', "-")),
    };
    Item { place, name: name.to_owned(), text, target }
}

/// Each flag by itself, so that one that is wrong does not hide the others.
fn arguments(place: &str, variable: &str, text: &str) -> Vec<Item> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    for word in words(text) {
        match groups.last_mut() {
            Some(group) if !word.starts_with('-') || needs_value(group) => group.push(word),
            _ => groups.push(vec![word]),
        }
    }
    let mut items = Vec::new();
    for group in groups {
        let shown = group.join(" ");
        match cli::parse(group.iter().map(OsString::from)) {
            Ok(command) if !command.flags.is_empty() => {
                items.extend(command.flags.into_iter().map(|flag| Item {
                    place: place.to_owned(),
                    name: format!("{variable}: {}", flag.setting.flag()),
                    text: flag.text,
                    target: Target::Setting(flag.setting.name),
                }));
            }
            parsed => items.push(Item {
                place: place.to_owned(),
                name: format!("{variable}: {shown}"),
                text: String::new(),
                target: Target::Unknown(match parsed {
                    Err(refusal) => refusal.cause().to_owned(),
                    Ok(_) => "neither a flag nor a verb".to_owned(),
                }),
            }),
        }
    }
    items
}

/// The last word is a flag that takes the next one, whatever that looks like.
fn needs_value(group: &[String]) -> bool {
    let [flag] = group else { return false };
    let name = flag.trim_start_matches('-');
    flag.starts_with('-')
        && !name.contains('=')
        && table::find(name).is_some_and(|setting| !setting.kind.is_bool_style())
}

/// As a shell splits them, without expansions.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => {
                if let Some(next) = chars.next() {
                    let is_kept = quote.is_some() && !['"', '\\', '$', '`'].contains(&next);
                    let word = word.get_or_insert_default();
                    if is_kept {
                        word.push('\\');
                    }
                    word.push(next);
                }
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            // A comment begins a word of its own.
            (None, '#') if word.is_none() => break,
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_shells() {
        for (text, expected) in [
            ("a b", &["a", "b"][..]),
            (r#""a b" 'c "d"' e\ f"#, &["a b", "c \"d\"", "e f"]),
            (r#""a\"b\n""#, &["a\"b\\n"]),
            ("x # y", &["x"]),
            ("x#y", &["x#y"]),
            ("\"\"", &[""]),
            ("", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }
}
