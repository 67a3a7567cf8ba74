//! Where each setting may come from, and which source wins: flag, `CAIRNCTL_*` variable, `ETCDCTL_*` variable, context, cairnctl.toml, the
//! configuration of the member on this host (endpoints alone), default. Not here: what the texts mean (`settings`).
//!
//! Whoever names endpoints by flag or variable means exactly those, as with etcdctl: the current context is set aside then, so that its user
//! and keys never reach members it does not belong to. A context that is named itself counts beside such endpoints.

use super::globals::{
    CONFIG_VARIABLE, DEFAULT_CONFIG, DEFAULT_LOCAL, GLOBALS, Global, Kind, LOCAL_VARIABLE, variables_of,
};
use super::{Given, contexts, local, nearest};
use crate::failure::{Failure, Result};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The process's variables that are text names.
pub type Variables = BTreeMap<String, OsString>;

/// How strong a source is; the greater wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Default,
    LocalMember,
    File,
    Context,
    TheirVariable,
    OurVariable,
    Flag,
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Weighed {
    pub text: String,
    pub rank: Rank,
    /// For complaints: `flag --hex`, `variable ETCDCTL_HEX`, `context prod`, `/etc/cairn/cairnctl.toml`, `default`.
    pub source: String,
}

/// Every setting, and what there is to say about the choice.
pub struct Sources {
    pub values: BTreeMap<&'static str, Weighed>,
    /// The context that counts, and who says so.
    pub context: Option<(String, String)>,
    /// For those who ask (`-v`, `context show`): sources that were passed over, and why.
    pub notes: Vec<String>,
    /// For everybody.
    pub warnings: Vec<String>,
    /// Why the member on this host was not found although it may be there: for those who then reach nobody.
    pub missed: Option<String>,
}

/// The names by which a peer is sure of us. When one of a group is given above the context, the context's others do not count.
const GROUPS: [&[&str]; 2] = [&["user", "password", "auth-jwt-token"], &["cert", "key"]];

pub fn weigh(given: &Given, variables: &Variables) -> Result<Sources> {
    let mut values = BTreeMap::new();
    for global in GLOBALS {
        if let Some(value) = above(global, given, variables)? {
            values.insert(global.name, value);
        }
    }
    let mut sources = Sources {
        values,
        context: None,
        notes: Vec::new(),
        missed: None,
        warnings: super::globals::unknown_variables(variables),
    };
    if let Some((name, table)) = sources.chosen_context(variables)? {
        sources.take_context(&name, &table)?;
    }
    let (file_name, file) = read_file(variables)?;
    for global in GLOBALS {
        if let (Some(value), false) = (file.get(global.name), sources.values.contains_key(global.name)) {
            let value = Weighed {
                text: of_toml(&file_name, global, value)?,
                rank: Rank::File,
                source: file_name.clone(),
            };
            sources.values.insert(global.name, value);
        }
    }
    if !sources.values.contains_key("endpoints") {
        sources.look_for_local_member(variables);
    }
    for global in GLOBALS {
        let default =
            || Weighed { text: global.default.to_owned(), rank: Rank::Default, source: "default".to_owned() };
        sources.values.entry(global.name).or_insert_with(default);
    }
    Ok(sources)
}

impl Sources {
    /// The context that counts, with its settings.
    fn chosen_context(&mut self, variables: &Variables) -> Result<Option<(String, toml::Table)>> {
        let path = contexts::path(variables);
        if let Some(named) = self.values.get("context") {
            let (name, source) = (named.text.clone(), named.source.clone());
            if name.is_empty() {
                self.notes.push(format!("no context, as {source} says"));
                return Ok(None);
            }
            let file = contexts::File::read(path.as_deref())?;
            let table = file.find(&name, &source)?.clone();
            self.context = Some((name.clone(), source.clone()));
            if let Some(endpoints) = self.values.get("endpoints").filter(|value| value.rank < named.rank) {
                self.warnings.push(format!(
                    "warning: the endpoints of {} win over those of context {name:?}, which {source} names",
                    endpoints.source
                ));
            }
            return Ok(Some((name, table)));
        }
        if let Some(endpoints) = self.values.get("endpoints") {
            // Not even read: whoever names endpoints depends on nothing else.
            self.notes.push(format!(
                "no current context is looked for: endpoints are given by {}",
                endpoints.source
            ));
            return Ok(None);
        }
        let file = contexts::File::read(path.as_deref())?;
        let Some(name) = file.current().map(str::to_owned) else {
            let place = path.map_or("no home directory".to_owned(), |path| path.display().to_string());
            self.notes.push(format!("no current context ({place})"));
            return Ok(None);
        };
        let table = file.find(&name, &file.name())?.clone();
        self.context = Some((name.clone(), file.name()));
        Ok(Some((name, table)))
    }

    fn take_context(&mut self, name: &str, table: &toml::Table) -> Result<()> {
        let source = format!("context {name}");
        let given: Vec<&str> = self.values.keys().copied().collect();
        for global in GLOBALS {
            let Some(value) = table.get(global.name) else { continue };
            let group = GROUPS.iter().find(|group| group.contains(&global.name));
            let shadowing = group.into_iter().copied().flatten().find(|other| {
                // A password given from outside belongs to the user of the context.
                given.contains(other) && !(global.name == "user" && **other == "password")
            });
            if let Some(other) = shadowing.or_else(|| given.iter().find(|other| **other == global.name)) {
                self.notes.push(format!("{} of {source} does not count: {other} is given", global.name));
                continue;
            }
            let text = of_toml(&source, global, value)?;
            let value = Weighed { text, rank: Rank::Context, source: source.clone() };
            self.values.insert(global.name, value);
        }
        Ok(())
    }

    fn look_for_local_member(&mut self, variables: &Variables) {
        let path = named_path(variables, LOCAL_VARIABLE).unwrap_or_else(|| DEFAULT_LOCAL.into());
        match local::look(&path) {
            Ok(Some(found)) => {
                self.notes.extend(found.notes);
                let value = Weighed { text: found.endpoint, rank: Rank::LocalMember, source: found.source };
                self.values.insert("endpoints", value);
            }
            Ok(None) => self.notes.push(format!("no member is configured on this host ({})", path.display())),
            Err(why) => {
                self.missed = Some(why.clone());
                self.notes.push(why);
            }
        }
    }
}

/// A value that was given for this very command: by flag or variable.
fn above(global: &Global, given: &Given, variables: &Variables) -> Result<Option<Weighed>> {
    if let Some(texts) = given.get(global.name) {
        let text = if global.kind == Kind::List {
            texts.join(",")
        } else {
            texts.last().cloned().unwrap_or_default()
        };
        return Ok(Some(Weighed { text, rank: Rank::Flag, source: format!("flag --{}", global.name) }));
    }
    for (name, rank) in variables_of(global).into_iter().zip([Rank::OurVariable, Rank::TheirVariable]) {
        // An empty variable is as good as none; shells export empty ones by accident.
        if let Some(value) = variables.get(&name).filter(|value| !value.is_empty()) {
            let text = value
                .to_str()
                .ok_or_else(|| Failure::usage(format!("variable {name} is not UTF-8 text")))?
                .to_owned();
            return Ok(Some(Weighed { text, rank, source: format!("variable {name}") }));
        }
    }
    Ok(None)
}

fn of_toml(place: &str, global: &Global, value: &toml::Value) -> Result<String> {
    let text = match (global.kind, value) {
        (Kind::List, toml::Value::Array(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            items.map(|items| items.join(","))
        }
        (Kind::Switch, toml::Value::Boolean(on)) => Some(on.to_string()),
        (Kind::Text, toml::Value::Integer(number)) => Some(number.to_string()),
        (Kind::Text | Kind::List, toml::Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    text.ok_or_else(|| {
        Failure::usage(format!("{place}: {}: {value} is not a value for this key", global.name))
    })
}

/// The path that a variable names, if it names one.
pub fn named_path(variables: &Variables, name: &str) -> Option<PathBuf> {
    variables.get(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read_file(variables: &Variables) -> Result<(String, toml::Table)> {
    let named = named_path(variables, CONFIG_VARIABLE);
    let path = named.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((name, toml::Table::new()));
        }
        Err(error) => return Err(Failure::usage(format!("read {name}: {error}"))),
    };
    Ok((name.clone(), parse_file(&name, &text)?))
}

/// Reads the TOML text; an unknown key is refused with its line and the nearest known one.
pub fn parse_file(name: &str, text: &str) -> Result<toml::Table> {
    let table = parse_toml(name, text)?;
    if let Some(key) = table.keys().find(|key| !is_file_key(key)) {
        let line = text
            .lines()
            .position(|line| line.trim_start().trim_start_matches(['[', '"']).starts_with(key.as_str()))
            .map_or(1, |at| at + 1);
        return Err(Failure::usage(format!("{name}:{line}: {}", unknown_key(key))));
    }
    Ok(table)
}

pub fn parse_toml(name: &str, text: &str) -> Result<toml::Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        Failure::usage(format!("{name}:{line}: {}", error.message()))
    })
}

/// Whether a file or a context may set it: a context that names another one would have no end.
pub fn is_file_key(key: &str) -> bool {
    key != "context" && GLOBALS.iter().any(|global| global.name == key)
}

pub fn unknown_key(key: &str) -> String {
    let known = GLOBALS.iter().map(|global| global.name).filter(|name| is_file_key(name));
    let hint = nearest(key, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    format!("unknown key {key:?}{hint}")
}
