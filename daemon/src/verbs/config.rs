//! `cairnd config check` and `cairnd config explain`: whether the settings can be used, and where each of them came from.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{directory, pretty};
use crate::{
    bootstrap::{plan::BootPlan, prepare},
    cli::Look,
    config::{
        self, Note, Resolved, Surroundings,
        source::Source,
        table::{self, Group, Setting, Status},
        tongue::Tongue,
    },
    owner::Owner,
    refusal::{Id, Refusal},
};

/// Settings that etcd does not have. The others have the names that etcd gives its flags.
const OWN: [&str; 22] = [
    "accept-identity-change",
    "allow-empty-data-dir",
    "allow-unknown-keys",
    "auto-promote-learner",
    "auto-replace",
    "data-dir-lock-wait",
    "discovery-service",
    "discovery-service-lifetime",
    "discovery-service-resume",
    "discovery-service-tokens",
    "discovery-srv-nameserver",
    "discovery-srv-scheme",
    "discovery-srv-size",
    "discovery-timeout",
    "help",
    "initial-cluster-attendance",
    "inline-value-bytes-max",
    "join-timeout",
    "rpc-threads",
    "shutdown-timeout",
    "snapshot-save-rate",
    "snapshot-send-rate",
];

/// The settings, and the data directory against them, as a start would look at them before it asks anybody.
pub fn check(surroundings: &Surroundings, look: &Look) -> (String, Result<(), Refusal>) {
    let mut notes = Vec::new();
    let outcome = judged(surroundings, &mut notes);
    if look.json {
        let outcome = outcome.map_err(|refusal| refusal.in_the_words_of(&Tongue::of(surroundings)));
        let notes: Vec<Value> = notes.iter().map(noted).collect();
        let (would, refusal) = match &outcome {
            Ok(would) => (json!(would), Value::Null),
            Err(refusal) => (Value::Null, Value::Object(refusal.fields())),
        };
        let value = json!({ "ok": outcome.is_ok(), "would": would, "notes": notes, "refusal": refusal });
        return (pretty(&value), outcome.map(|_| ()));
    }
    let mut out = String::new();
    for note in &notes {
        let _ = writeln!(out, "note: {}", told(note));
    }
    if let Ok(would) = &outcome {
        let _ = writeln!(out, "ok: would {would}");
    }
    (out, outcome.map(|_| ()))
}

/// With the rights of whoever the member is of, where root asks.
fn judged(surroundings: &Surroundings, notes: &mut Vec<Note>) -> Result<String, Refusal> {
    let (settings, _) = config::load(surroundings)?;
    let owner = Owner::of(&settings);
    let acting = owner.as_ref().map(Owner::act);
    let how = match &acting {
        Some(Ok(_)) => "looked at as the user whose member it is",
        _ => "could not look as the user whose member it is",
    };
    notes.extend(owner.map(|owner| Note { message: how, fields: owner.fields() }));
    let (settings, mut resolved) = config::load(surroundings)?;
    resolved.notes.extend(directory::unreadable(&resolved.values));
    let usable = directory::usable(&settings);
    let plan = usable.and_then(|_| prepare::look(&settings, &mut resolved.notes));
    notes.append(&mut resolved.notes);
    Ok(would(&plan?, &settings.storage.data_dir.display().to_string()))
}

/// A note as one line.
pub fn told(note: &Note) -> String {
    let fields: Vec<String> = note.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}: {}", note.message, fields.join(" "))
}

fn noted(note: &Note) -> Value {
    let fields = note.fields.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
    json!({ "message": note.message, "fields": Value::Object(fields.collect()) })
}

/// What a start comes to as far as this machine can tell, after "would".
pub fn would(plan: &BootPlan, dir: &str) -> String {
    match plan {
        BootPlan::NewStatic(new) => {
            format!("found cluster {} as member {} ({}) in {dir}", new.cluster, new.member, new.name)
        }
        BootPlan::JoinExisting(joiner) => {
            format!("ask the running cluster for the place of {} in {dir}", joiner.own.name)
        }
        BootPlan::Restart(returning) => {
            let identity = &returning.identity;
            format!(
                "start member {} ({}) of cluster {} again from {dir}",
                identity.member_id, identity.name, identity.cluster_id
            )
        }
        BootPlan::Discover(discoverer) => {
            format!("look for the first members of the cluster of {} in {dir}", discoverer.own.name)
        }
    }
}

/// Without a name every setting that somebody set, with one everything about it. The values are told also when they cannot be used,
/// beside the refusal that says why.
pub fn explain(surroundings: &Surroundings, key: Option<&str>, look: &Look) -> (String, Result<(), Refusal>) {
    let resolved = config::resolve(surroundings);
    let verdict = || match config::load(surroundings) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(refusal),
    };
    let Some(key) = key else {
        if look.json {
            let settings: Vec<Value> = table::settings()
                .filter(|setting| is_current(setting))
                .map(|one| described(one, &resolved))
                .collect();
            return (pretty(&json!({ "files": resolved.files, "settings": settings })), verdict());
        }
        let mut out = format!("files: {}\n", files(&resolved));
        for setting in table::settings().filter(|setting| resolved.values.is_given(setting.name)) {
            let text = setting.shown(resolved.values.text(setting.name));
            let _ = writeln!(out, "{} = {text}  ({})", setting.name, resolved.values.place(setting.name));
        }
        return (out, verdict());
    };
    let Some(setting) = find(key) else { return (String::new(), Err(unknown(key))) };
    if look.json {
        return (pretty(&described(setting, &resolved)), verdict());
    }
    (one(setting, &resolved), verdict())
}

/// The files that were read, in their order.
pub fn files(resolved: &Resolved) -> String {
    let files: Vec<String> = resolved.files.iter().map(|file| file.display().to_string()).collect();
    if files.is_empty() { "none".to_owned() } else { files.join(", ") }
}

/// By flag, variable, or key of the file with or without its table.
fn find(key: &str) -> Option<&'static Setting> {
    let bare = key.trim_start_matches('-');
    let by_place = |setting: &&Setting| setting.variable() == key || setting.toml_shown() == key;
    table::find(bare).or_else(|| table::settings().find(by_place))
}

fn unknown(key: &str) -> Refusal {
    let bare = key.trim_start_matches('-');
    let refusal = Refusal::new(Id::UnknownSetting, format!("there is no setting {bare}"));
    let near = match bare.starts_with("ETCD_") {
        true => table::nearest_variable(bare),
        false => table::nearest_flag(bare).map(str::to_owned),
    };
    match near {
        Some(near) => {
            refusal.evidence("nearest name", near.clone()).remedy(format!("cairnd config explain {near}"))
        }
        None => refusal.remedy("see all of them: cairnd --help"),
    }
}

fn one(setting: &Setting, resolved: &Resolved) -> String {
    let value = resolved.values.get(setting.name);
    let from = match &value.source {
        Source::Default => "default".to_owned(),
        _ => resolved.values.place(setting.name),
    };
    let mut out = format!("{} = {}  ({from})\n", setting.name, setting.shown(&value.text));
    let default = if setting.default.is_empty() { "empty" } else { setting.default };
    let lines = [
        ("meaning", setting.meaning.to_owned()),
        ("value", format!("{}; default: {default}", setting.kind.unit())),
        (
            "set by",
            format!(
                "flag {}, variable {}, file {}",
                setting.flag(),
                setting.variable(),
                setting.toml_shown()
            ),
        ),
        ("here", here(setting)),
        ("change", change(setting).to_owned()),
        ("etcd", etcd_name(setting).map_or("has no such setting".to_owned(), |name| format!("--{name}"))),
    ];
    for (name, text) in lines {
        let _ = writeln!(out, "  {name:8} {text}");
    }
    let old = old_names(setting);
    if !old.is_empty() {
        let _ = writeln!(out, "  {:8} {}", "formerly", old.join(", "));
    }
    for problem in resolved.problems.iter().filter(|problem| problem.what.contains(setting.name)) {
        let _ = writeln!(out, "  {:8} {}: {}", "problem", problem.place, problem.what);
    }
    out
}

fn described(setting: &Setting, resolved: &Resolved) -> Value {
    let value = resolved.values.get(setting.name);
    let (source, place) = match &value.source {
        Source::Default => ("default", None),
        Source::Flag => ("flag", Some(resolved.values.place(setting.name))),
        Source::Env => ("variable", Some(resolved.values.place(setting.name))),
        Source::File { .. } => ("file", Some(resolved.values.place(setting.name))),
    };
    json!({
        "name": setting.name,
        "value": setting.shown(&value.text),
        "source": source,
        "place": place,
        "meaning": setting.meaning,
        "unit": setting.kind.unit(),
        "default": setting.default,
        "flag": setting.flag(),
        "variable": setting.variable(),
        "file_key": setting.toml_place().map(|_| setting.toml_shown()),
        "here": here(setting),
        "reloadable": setting.reloadable,
        "etcd": etcd_name(setting),
        "former_names": old_names(setting),
    })
}

fn is_current(setting: &Setting) -> bool {
    !matches!(setting.group, Group::Removed | Group::Ignored) && !matches!(setting.name, "help" | "version")
}

fn here(setting: &Setting) -> String {
    match setting.status {
        Status::Active => "does what it says".into(),
        Status::NoEffect(why) => format!("accepted without effect: {why}"),
        Status::Renamed(new) => format!("an old name: sets {new}"),
        Status::BecomesGate(gate) => format!("an old name: sets feature-gates={gate}"),
        Status::Refused { instead, .. } => format!("refused unless default; instead: {instead}"),
    }
}

fn change(setting: &Setting) -> &'static str {
    if setting.reloadable {
        "while running: in the file, then SIGHUP"
    } else {
        match setting.name {
            "name" | "initial-advertise-peer-urls" => {
                "of a member with data only as meant: see accept-identity-change"
            }
            "initial-cluster" | "initial-cluster-state" | "initial-cluster-token" => {
                "matters at the first start alone"
            }
            _ => "takes effect at the next start",
        }
    }
}

fn etcd_name(setting: &Setting) -> Option<&'static str> {
    (!OWN.contains(&setting.name)).then_some(setting.name)
}

fn old_names(setting: &Setting) -> Vec<&'static str> {
    let renamed = |old: &&Setting| matches!(old.status, Status::Renamed(new) if new == setting.name);
    table::settings().filter(renamed).map(|old| old.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_settings_are_those_that_etcd_does_not_have() {
        let list = include_str!("../../tests/data/etcd-flags.txt");
        let etcd: Vec<&str> =
            list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        for setting in table::settings() {
            assert_eq!(
                etcd.contains(&setting.name),
                etcd_name(setting).is_some(),
                "{}: is it a setting of etcd?",
                setting.name
            );
        }
    }

    #[test]
    fn a_setting_is_found_by_each_of_its_names() {
        for name in ["cert-file", "--cert-file", "ETCD_CERT_FILE", "[client-transport-security] cert-file"] {
            assert_eq!(find(name).map(|setting| setting.name), Some("cert-file"), "{name}");
        }
        assert!(unknown("ETCD_NMAE").text().contains("ETCD_NAME"));
    }
}
