//! `cairnd config convert FILE`: the settings of an etcd as a commented file of ours. Reads etcd's YAML file and the environment file of a
//! distribution's package; writes TOML to stdout and changes nothing.
//!
//! Nothing is dropped in silence: what cannot be carried over stands in the output as a comment with its reason, and is refused by id on
//! stderr, so that a script notices. Not here: etcd's data, which a snapshot carries over (docs/operations.md).

mod environment;
mod write;
mod yaml;

use std::path::Path;

use crate::{
    config::{
        self, Problem, suggest,
        table::{self, Group, Setting, Status},
        value::{self, Kind},
    },
    refusal::{Id, Refusal},
};

/// A value as the source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    /// file:line
    place: String,
    /// As it is written there.
    name: String,
    text: String,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Setting(&'static str),
    /// Not a setting at all, with what to do about it.
    Unknown(String),
    /// Meant for somebody else, so it is only mentioned.
    Foreign(&'static str),
}

/// What becomes of an item.
#[derive(Clone, Debug)]
enum Fate {
    /// Written as this setting.
    Carried { setting: &'static Setting, text: String, remark: Option<String> },
    /// A comment, since it does nothing here or says what is the case anyway.
    Mentioned { why: String },
    /// A comment and a problem.
    Left { id: Id, why: String },
}

/// The file and the refusal of what could not be carried over.
pub fn run(path: &str) -> (String, Result<(), Refusal>) {
    match read(Path::new(path)) {
        Ok(text) => convert(path, &text),
        Err(refusal) => (String::new(), Err(refusal)),
    }
}

fn read(path: &Path) -> Result<String, Refusal> {
    config::load_text(path).map_err(|problem| config::refuse(&[problem]))
}

fn convert(path: &str, text: &str) -> (String, Result<(), Refusal>) {
    let items =
        if environment::is_one(text) { Ok(environment::items(path, text)) } else { yaml::items(path, text) };
    let items = match items {
        Ok(items) => items,
        Err(problem) => return (String::new(), Err(config::refuse(&[problem]))),
    };
    let fates = decide(&items);
    let out = write::file(path, &items, &fates);
    let problems: Vec<Problem> = items
        .iter()
        .zip(&fates)
        .filter_map(|(item, fate)| match fate {
            Fate::Left { id, why } => Some(Problem {
                id: *id,
                place: item.place.clone(),
                what: format!("{} could not be carried over", item.name),
                remedy: format!("{}: {why}", item.name),
            }),
            _ => None,
        })
        .collect();
    if problems.is_empty() { (out, Ok(())) } else { (out, Err(config::refuse(&problems))) }
}

fn decide(items: &[Item]) -> Vec<Fate> {
    let named = |name: &str| items.iter().any(|item| item.target == Target::Setting(find(name).name));
    let mut fates: Vec<Fate> = items.iter().map(|item| fate(item, &named)).collect();
    // Of two values for one setting the last counts, as on a command line; gates are gathered.
    for at in 0..fates.len() {
        let Fate::Carried { setting, .. } = &fates[at] else { continue };
        let name = setting.name;
        let later = fates
            .iter()
            .skip(at + 1)
            .position(|fate| matches!(fate, Fate::Carried { setting, .. } if setting.name == name));
        let Some(later) = later.map(|found| at + 1 + found) else { continue };
        if name == "feature-gates" {
            let Fate::Carried { text: earlier, .. } = fates[at].clone() else { continue };
            if let Fate::Carried { text, .. } = &mut fates[later] {
                *text = format!("{earlier},{text}");
            }
            fates[at] = Fate::Mentioned { why: "part of feature-gates below".into() };
        } else {
            fates[at] = Fate::Mentioned { why: format!("given again: {}", items[later].place) };
        }
    }
    fates
}

fn find(name: &str) -> &'static Setting {
    table::find(name).unwrap_or_else(|| panic!("{name} is a setting"))
}

fn fate(item: &Item, named: &dyn Fn(&str) -> bool) -> Fate {
    let name = match &item.target {
        Target::Setting(name) => name,
        Target::Unknown(why) => return Fate::Left { id: Id::UnknownSetting, why: why.clone() },
        Target::Foreign(why) => return Fate::Mentioned { why: (*why).to_owned() },
    };
    let setting = find(name);
    let text = item.text.trim().to_owned();
    if text.is_empty() {
        return Fate::Mentioned { why: "empty, which is as if it were not there".into() };
    }
    if let Err(why) = value::check(setting.kind, &text) {
        return Fate::Left { id: Id::BadValue, why: why.0 };
    }
    let is_default = config::same_value(setting.kind, &text, setting.default);
    match setting.status {
        Status::Active => {}
        Status::NoEffect(why) => return Fate::Mentioned { why: format!("without effect here: {why}") },
        Status::Refused { harmless, instead } => {
            let is_harmless =
                is_default || harmless.iter().any(|text| config::same_value(setting.kind, &item.text, text));
            return if is_harmless {
                Fate::Mentioned { why: "the default, and all that is supported".into() }
            } else {
                Fate::Left { id: Id::NotSupported, why: instead.to_owned() }
            };
        }
        Status::Renamed(new) if named(new) => {
            return Fate::Mentioned { why: format!("an old name; {new} is given too, and counts") };
        }
        Status::Renamed(new) => {
            let renamed = Item { target: Target::Setting(new), ..item.clone() };
            return match fate(&renamed, named) {
                Fate::Carried { setting, text, .. } => {
                    Fate::Carried { setting, text, remark: Some("under an old name".into()) }
                }
                other => other,
            };
        }
        Status::BecomesGate(gate) => {
            let text = format!("{gate}={}", value::parse_bool(&text).unwrap_or_default());
            return Fate::Carried {
                setting: find("feature-gates"),
                text,
                remark: Some("it became a feature gate".into()),
            };
        }
    }
    if setting.name == "config-file" {
        let why = "etcd reads that file alone and none of these: convert it instead".to_owned();
        return Fate::Left { id: Id::SettingsConflict, why };
    }
    if setting.toml_place().is_none() || matches!(setting.group, Group::Ignored) {
        return Fate::Left {
            id: Id::NotSupported,
            why: format!("a file cannot say it: it is the flag {}", setting.flag()),
        };
    }
    let remark = match setting.name {
        "data-dir" | "wal-dir" => Some(
            "cairnd does not read the files of etcd: name a new directory, such as /var/lib/cairn, and restore a snapshot into it"
                .to_owned(),
        ),
        _ => None,
    };
    Fate::Carried { setting, text, remark }
}

/// By the name that it has in etcd's own tables of names.
fn target_of(flag: Option<&'static str>, given: &str) -> Target {
    match flag {
        Some(name) => Target::Setting(name),
        None => {
            let bare = given.rsplit('.').next().unwrap_or(given);
            let names = table::settings().map(|setting| setting.name);
            Target::Unknown(match suggest::nearest(bare, names) {
                Some(near) => format!("etcd knows no such setting; nearest name: {near}"),
                None => "etcd knows no such setting".to_owned(),
            })
        }
    }
}

/// A YAML file has durations in nanoseconds where it has bare numbers.
fn duration_of_nanoseconds(nanoseconds: u64) -> String {
    for (unit, length) in [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
    ] {
        if nanoseconds >= length && nanoseconds.is_multiple_of(length) {
            return format!("{}{unit}", nanoseconds / length);
        }
    }
    format!("{nanoseconds}ns")
}

/// Go's YAML has more words for true and false than its flags.
fn bool_of_yaml(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "on" | "true" => Some(true),
        "n" | "no" | "off" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
