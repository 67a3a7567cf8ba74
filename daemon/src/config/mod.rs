//! From flags, `ETCD_*` variables, the TOML file and defaults to one [`Settings`] whose every value knows where it came from.
//!
//! Flag before variable before file before default, value by value. A value that is wrong anywhere is a refusal, even where another
//! source would have won: whoever wrote it believes it counts. All problems are collected, so that one start tells them all.
//!
//! Not here: whether the settings fit the data on disk (`identity`, `bootstrap`).

pub mod change;
pub mod cluster;
mod compaction;
pub mod file;
pub mod gates;
pub mod generate;
#[cfg(test)]
pub mod honoured;
#[cfg(test)]
mod manual;
mod rows;
mod settings;
pub mod source;
pub mod suggest;
pub mod table;
pub mod tongue;
pub mod urls;
pub mod value;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use file::Main;
pub use file::load_text;
pub use settings::{
    Asked, Attendance, AutoReplace, InitialState, Log, LogFormat, LogLevel, LogOutput, Membership, Settings,
};
use source::{Source, Value, Values};
use table::{Setting, Status};
use value::Kind;

use crate::{
    cli::GivenFlag,
    refusal::{Id, Refusal},
};

/// One value as it was written somewhere.
#[derive(Clone, Debug)]
pub struct Given {
    pub setting: &'static Setting,
    pub text: String,
    pub source: Source,
}

/// One thing wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub id: Id,
    /// Flag, variable, or file:line:column.
    pub place: String,
    pub what: String,
    pub remedy: String,
}

/// Something worth a line in the log once there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub message: &'static str,
    pub fields: Vec<(&'static str, String)>,
}

impl Note {
    pub fn log(&self) {
        let shown: Vec<String> = self.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        tracing::warn!(what = shown.join(" "), "{}", self.message);
    }
}

/// What the process was started with. Tests hand in what they like.
pub struct Surroundings {
    pub flags: Vec<GivenFlag>,
    pub variables: Vec<(String, String)>,
    /// Read when no file is named and this one exists.
    pub default_file: PathBuf,
}

impl Surroundings {
    pub fn of_process(flags: Vec<GivenFlag>) -> Surroundings {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        Surroundings { flags, variables: variables.collect(), default_file: file::DEFAULT_FILE.into() }
    }
}

/// Values of every setting, before they are looked at together.
#[derive(Debug)]
pub struct Resolved {
    pub values: Values,
    pub notes: Vec<Note>,
    pub problems: Vec<Problem>,
    /// Those that were read, the one that counts least first.
    pub files: Vec<PathBuf>,
}

/// Everything in one go, as a start needs it.
pub fn load(surroundings: &Surroundings) -> Result<(Settings, Resolved), Refusal> {
    let mut resolved = resolve(surroundings);
    if !resolved.problems.is_empty() {
        let mut problems = resolved.problems;
        also_together(&resolved.values, &mut problems);
        return Err(refuse(&problems));
    }
    match settings::build(&resolved.values, &mut resolved.notes) {
        Ok(settings) => Ok((settings, resolved)),
        Err(problems) => Err(refuse(&problems)),
    }
}

/// What is wrong with the settings together, beside what is wrong with single ones: those that cannot be read count as not given, and what
/// only they or their absence could explain is left out.
fn also_together(values: &Values, problems: &mut Vec<Problem>) {
    let mut values = values.clone();
    values.0.retain(|name, value| {
        table::find(name).is_some_and(|setting| value::check(setting.kind, &value.text).is_ok())
    });
    fill_defaults(&mut values.0);
    if let Err(found) = settings::build(&values, &mut Vec::new()) {
        for problem in found {
            let is_default = problem.place.ends_with("(default)");
            if !is_default && problems.iter().all(|known| known.place != problem.place) {
                problems.push(problem);
            }
        }
    }
}

/// One refusal for all problems; the first one names it.
pub fn refuse(problems: &[Problem]) -> Refusal {
    let cause = match problems {
        [only] => only.what.clone(),
        several => format!("{} settings cannot be used", several.len()),
    };
    let id = problems.first().map_or(Id::InternalError, |problem| problem.id);
    problems.iter().fold(Refusal::new(id, cause), |refusal, problem| {
        let fact = if problems.len() == 1 { "here".to_owned() } else { problem.what.clone() };
        refusal.evidence(problem.place.clone(), fact).remedy(problem.remedy.clone())
    })
}

pub fn resolve(surroundings: &Surroundings) -> Resolved {
    let mut notes = Vec::new();
    let mut problems = Vec::new();
    let flags = surroundings.flags.iter().map(|flag| Given {
        setting: flag.setting,
        text: flag.text.clone(),
        source: Source::Flag,
    });
    let flags: Vec<Given> = flags.collect();
    let variables = from_environment(&surroundings.variables, &mut notes);
    let main = config_file(&flags, &variables, &surroundings.default_file);
    let found = main.as_ref().map(file::read_all).unwrap_or_default();
    let file::Found { files, given: from_file, problems: file_problems, notes: file_notes } = found;
    notes.extend(file_notes);
    let lenient = flags.iter().chain(&variables).any(|given| {
        given.setting.name == "allow-unknown-keys" && value::parse_bool(&given.text) == Ok(true)
    });
    for problem in file_problems {
        if lenient && problem.id == Id::UnknownSetting {
            notes.push(Note {
                message: "unknown key in the configuration file is not used",
                fields: vec![("place", problem.place), ("what", problem.what)],
            });
        } else {
            problems.push(problem);
        }
    }

    let mut chosen: BTreeMap<&'static str, Value> = BTreeMap::new();
    for given in from_file.iter().chain(&variables).chain(&flags) {
        if let Err(why) = value::check(given.setting.kind, &given.text) {
            let place = given.source.place(given.setting);
            problems.push(Problem {
                id: Id::BadValue,
                what: format!("bad value for {}: {why}", given.setting.name),
                place,
                remedy: format!("{}: {}", given.setting.name, given.setting.meaning),
            });
        }
        let value = Value { text: given.text.clone(), source: given.source.clone(), via: None };
        // Sources come weakest first, so a later one replaces an earlier one.
        let replaced = chosen.insert(given.setting.name, value);
        if let Some(earlier) = replaced
            && (&earlier.source, &given.source) == (&Source::Env, &Source::Flag)
            && earlier.text != given.text
        {
            notes.push(Note {
                message: "flag and variable differ: the flag counts",
                fields: vec![
                    ("setting", given.setting.name.into()),
                    ("flag", given.setting.shown(&given.text)),
                    ("variable", given.setting.shown(&earlier.text)),
                ],
            });
        }
    }
    carry_over_old_names(&mut chosen, &mut notes, &mut problems);
    judge(&chosen, &mut notes, &mut problems);
    fill_defaults(&mut chosen);
    Resolved { values: Values(chosen), notes, problems, files }
}

/// Variables of etcd that are no settings: read by its tests and tools, or by the service manager.
const OTHER_VARIABLES: [&str; 4] =
    ["ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY", "ETCD_CLIENT_DEBUG", "ETCD_VERSION"];

fn from_environment(variables: &[(String, String)], notes: &mut Vec<Note>) -> Vec<Given> {
    let mut given = Vec::new();
    for (name, text) in variables {
        if !name.starts_with("ETCD_") {
            continue;
        }
        let setting = table::settings()
            .find(|setting| setting.variable() == *name && !matches!(setting.name, "version" | "help"));
        match setting {
            // An empty variable is one that is not set, as in etcd.
            Some(_) if text.is_empty() => {}
            Some(setting) => given.push(Given { setting, text: text.clone(), source: Source::Env }),
            None if OTHER_VARIABLES.contains(&name.as_str()) => {
                notes.push(Note {
                    message: "variable has no effect",
                    fields: vec![("variable", name.clone())],
                });
            }
            None => {
                let mut fields = vec![("variable", name.clone())];
                fields.extend(table::nearest_variable(name).map(|near| ("nearest", near)));
                notes.push(Note { message: "unknown variable", fields });
            }
        }
    }
    given.sort_by_key(|one| one.setting.name);
    given
}

fn config_file(flags: &[Given], variables: &[Given], default_file: &Path) -> Option<Main> {
    let named = |given: &[Given]| {
        given.iter().rfind(|one| one.setting.name == "config-file").map(|one| one.text.clone())
    };
    match named(flags).or_else(|| named(variables)) {
        Some(path) if path.is_empty() => None,
        Some(path) => Some(Main::Named(path.into())),
        None => Some(Main::Usual(default_file.to_path_buf())),
    }
}

/// A value under an old name goes to the setting that took its place, unless that one was given too.
fn carry_over_old_names(
    chosen: &mut BTreeMap<&'static str, Value>,
    notes: &mut Vec<Note>,
    problems: &mut Vec<Problem>,
) {
    for old in table::settings() {
        let Some(value) = chosen.get(old.name).cloned() else { continue };
        let place = value.source.place(old);
        match old.status {
            Status::Renamed(new) => {
                notes.push(Note {
                    message: "setting has a new name",
                    fields: vec![("old", place), ("new", new.into())],
                });
                chosen.entry(new).or_insert(Value { via: Some(old.name), ..value });
            }
            Status::BecomesGate(gate) => {
                notes.push(Note {
                    message: "setting became a feature gate",
                    fields: vec![
                        ("old", place.clone()),
                        ("new", format!("feature-gates={gate}={}", value.text)),
                    ],
                });
                let gates = chosen.entry("feature-gates").or_insert(Value {
                    text: String::new(),
                    source: value.source.clone(),
                    via: None,
                });
                let named = gates::parse(&gates.text).unwrap_or_default();
                match (named.iter().find(|(known, _)| known.name == gate), value::parse_bool(&value.text)) {
                    (Some((_, set)), Ok(asked)) if *set != asked => problems.push(Problem {
                        id: Id::SettingsConflict,
                        place,
                        what: format!("{} and feature gate {gate} contradict each other", old.name),
                        remedy: format!("keep only feature-gates={gate}={set}"),
                    }),
                    (None, Ok(asked)) => {
                        let comma = if gates.text.is_empty() { "" } else { "," };
                        gates.text = format!("{}{comma}{gate}={asked}", gates.text);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// Settings that do nothing here or that this version does not serve.
fn judge(chosen: &BTreeMap<&'static str, Value>, notes: &mut Vec<Note>, problems: &mut Vec<Problem>) {
    for setting in table::settings() {
        let Some(value) = chosen.get(setting.name) else { continue };
        if same_value(setting.kind, &value.text, setting.default) {
            continue;
        }
        let named = value.via.and_then(table::find).unwrap_or(setting);
        match setting.status {
            Status::NoEffect(why) => notes.push(Note {
                message: "setting has no effect",
                fields: vec![("setting", value.source.place(named)), ("reason", why.into())],
            }),
            Status::Refused { harmless, instead }
                if !harmless.iter().any(|text| same_value(setting.kind, &value.text, text)) =>
            {
                problems.push(Problem {
                    id: Id::NotSupported,
                    place: value.source.place(named),
                    what: format!("{} is not supported", named.name),
                    remedy: instead.into(),
                });
            }
            _ => {}
        }
    }
    if let Some(value) = chosen.get("feature-gates") {
        for (gate, set) in gates::parse(&value.text).unwrap_or_default() {
            if set != gate.default {
                let fields = vec![("gate", format!("{}={set}", gate.name)), ("here", gate.here.into())];
                notes.push(Note { message: "feature gate is accepted", fields });
            }
        }
    }
}

/// Whether two texts mean the same, so that `0s` is the default `0`.
pub fn same_value(kind: Kind, left: &str, right: &str) -> bool {
    left == right
        || match kind {
            Kind::Bool => {
                matches!((value::parse_bool(left), value::parse_bool(right)), (Ok(l), Ok(r)) if l == r)
            }
            Kind::Duration => {
                matches!((value::parse_duration(left), value::parse_duration(right)), (Ok(l), Ok(r)) if l == r)
            }
            Kind::Millis => {
                matches!((value::parse_millis(left), value::parse_millis(right)), (Ok(l), Ok(r)) if l == r)
            }
            Kind::Bytes { .. } => {
                matches!((value::parse_bytes(left, true), value::parse_bytes(right, true)), (Ok(l), Ok(r)) if l == r)
            }
            _ => false,
        }
}

fn fill_defaults(chosen: &mut BTreeMap<&'static str, Value>) {
    let name = chosen.get("name").map_or("default".to_owned(), |value| value.text.trim().to_owned());
    for setting in table::settings() {
        chosen.entry(setting.name).or_insert_with(|| Value {
            text: setting.default.replace("{name}", &name),
            source: Source::Default,
            via: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli;

    fn surroundings(
        flags: &[&str],
        variables: &[(&str, &str)],
        file: Option<&str>,
    ) -> (Surroundings, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cairnd.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let flags = cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        (Surroundings { flags, variables, default_file: path }, dir)
    }

    fn resolved(flags: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> Resolved {
        resolve(&surroundings(flags, variables, file).0)
    }

    #[test]
    fn flag_before_variable_before_file_before_default_value_by_value() {
        let got = resolved(
            &["--name=flag"],
            &[("ETCD_NAME", "env"), ("ETCD_DATA_DIR", "/env")],
            Some("name = \"file\"\ndata-dir = \"/file\"\nmax-wals = 7\n"),
        );
        assert_eq!(got.problems, []);
        assert_eq!((got.values.text("name"), got.values.place("name").as_str()), ("flag", "--name"));
        assert_eq!(
            (got.values.text("data-dir"), got.values.place("data-dir").as_str()),
            ("/env", "ETCD_DATA_DIR")
        );
        assert_eq!(got.values.text("max-wals"), "7");
        assert!(got.values.place("max-wals").ends_with("cairnd.toml:3:12"));
        assert_eq!(
            (got.values.text("snapshot-count"), &got.values.get("snapshot-count").source),
            ("10000", &Source::Default)
        );
        assert_eq!(got.notes.len(), 1, "flag and variable differ: {:?}", got.notes);
        assert_eq!(got.notes[0].fields[1..], [("flag", "flag".to_owned()), ("variable", "env".to_owned())]);
    }

    #[test]
    fn of_a_repeated_flag_the_last_counts() {
        assert_eq!(resolved(&["--name=a", "--name=b"], &[], None).values.text("name"), "b");
    }

    #[test]
    fn equal_flag_and_variable_are_no_contradiction_and_an_empty_variable_is_none() {
        let got = resolved(&["--name=a"], &[("ETCD_NAME", "a"), ("ETCD_DATA_DIR", "")], None);
        assert_eq!((got.notes, got.values.text("data-dir")), (vec![], "a.etcd"));
    }

    #[test]
    fn a_bad_value_is_told_even_where_another_source_wins() {
        let got = resolved(
            &["--election-timeout=1000"],
            &[("ETCD_ELECTION_TIMEOUT", "soon")],
            Some("max-wals = -1"),
        );
        let places: Vec<&str> = got.problems.iter().map(|problem| problem.place.as_str()).collect();
        assert_eq!(places.len(), 2, "{:?}", got.problems);
        assert!(
            places.contains(&"ETCD_ELECTION_TIMEOUT") && places.iter().any(|place| place.ends_with(":1:12"))
        );
    }

    #[test]
    fn an_unknown_variable_warns_with_the_nearest_name() {
        let got =
            resolved(&[], &[("ETCD_DATADIR", "/x"), ("ETCDCTL_API", "3"), ("ETCD_VERSION", "3.5")], None);
        assert_eq!(got.problems, []);
        assert_eq!(got.notes.len(), 2);
        assert!(
            got.notes.iter().any(|note| note.fields.contains(&("nearest", "ETCD_DATA_DIR".into()))),
            "{:?}",
            got.notes
        );
    }

    #[test]
    fn an_old_name_sets_the_new_setting_unless_that_is_given() {
        let got = resolved(&["--experimental-warning-apply-duration=1s"], &[], None);
        assert_eq!(got.values.text("warning-apply-duration"), "1s");
        assert_eq!(got.values.place("warning-apply-duration"), "--experimental-warning-apply-duration");
        let got =
            resolved(&["--experimental-warning-apply-duration=1s", "--warning-apply-duration=2s"], &[], None);
        assert_eq!(got.values.text("warning-apply-duration"), "2s");
        let got = resolved(&["--experimental-initial-corrupt-check=true"], &[], None);
        assert_eq!(got.values.text("feature-gates"), "InitialCorruptCheck=true");
        let got = resolved(
            &["--experimental-initial-corrupt-check", "--feature-gates=InitialCorruptCheck=false"],
            &[],
            None,
        );
        assert_eq!(got.problems.len(), 1);
    }

    #[test]
    fn what_is_not_served_is_refused_and_what_does_nothing_is_logged() {
        let got = resolved(
            &["--cert-file=/c", "--enable-v2", "--proxy=on", "--backend-batch-limit=5", "--v"],
            &[],
            None,
        );
        assert_eq!(
            got.problems.iter().filter(|problem| problem.id == Id::NotSupported).count(),
            3,
            "{:?}",
            got.problems
        );
        let idle = got.notes.iter().filter(|note| note.message == "setting has no effect").count();
        assert_eq!(idle, 2, "{:?}", got.notes);
        let got = resolved(
            &[
                "--enable-v2=False",
                "--auto-compaction-retention=0h",
                "--corrupt-check-time=0s",
                "--client-cert-auth=false",
            ],
            &[],
            None,
        );
        assert_eq!((got.problems, got.notes), (vec![], vec![]), "defaults written out are neither");
    }

    #[test]
    fn the_file_can_be_named_or_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("named.toml");
        std::fs::write(&named, "name = \"named\"\n").unwrap();
        let flag = format!("--config-file={}", named.display());
        assert_eq!(resolved(&[&flag], &[], Some("name = \"default\"")).values.text("name"), "named");
        let got = resolved(&[], &[("ETCD_CONFIG_FILE", named.to_str().unwrap())], None);
        assert_eq!(got.values.text("name"), "named");
        let got = resolved(&["--config-file=/no/such/file.toml"], &[], None);
        assert_eq!(got.problems[0].id, Id::ConfigFile);
    }

    #[test]
    fn unknown_keys_are_let_pass_only_on_request() {
        assert_eq!(resolved(&[], &[], Some("nmae = \"x\"")).problems.len(), 1);
        let got = resolved(&["--allow-unknown-keys"], &[], Some("nmae = \"x\""));
        assert_eq!((got.problems.len(), got.notes.len()), (0, 1));
    }
}
