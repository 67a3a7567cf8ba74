//! context add, use, list, show and remove: settings under a name. They ask no server, and work also while the settings as a whole do not.
//!
//! Not here: the file (`settings::contexts`) and which context counts (`settings::sources`).

use super::show as print;
use crate::cli;
use crate::failure::{Failure, Result};
use crate::output::paint::Tone;
use crate::output::{Cell, Column, Printer, Sheet, tell};
use crate::settings::contexts::{self, File};
use crate::settings::{self, GLOBALS, Given, Kind, Rank, Sources, Variables, shown, weigh};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// Settings of one call, and of no cluster.
const NOT_KEPT: &[&str] = &["context", "verbose", "debug", "output", "write-out", "hex", "base64"];
/// Settings that are paths: they are kept so that they mean the same from every directory.
const PATHS: &[&str] = &["cacert", "cert", "key"];

pub fn run(matches: &ArgMatches, given: &Given, variables: &Variables) -> Result<()> {
    let (kind, inner) = matches.subcommand().expect("the grammar requires a verb");
    match kind {
        "add" => add(inner, given, variables),
        "use" => choose(inner, variables),
        "list" => list(inner, given, variables),
        "show" => show(inner, given, variables),
        "remove" => remove(inner, variables),
        other => unreachable!("the grammar knows a verb {other:?} that nothing runs"),
    }
}

fn place(variables: &Variables) -> Result<PathBuf> {
    contexts::path(variables).ok_or_else(|| {
        Failure::usage("there is no place for contexts: neither HOME nor an absolute XDG_CONFIG_HOME is set")
    })
}

fn one_name(matches: &ArgMatches) -> Result<String> {
    match cli::arguments(matches).as_slice() {
        [name] => Ok(String::from_utf8_lossy(name).into_owned()),
        _ => Err(Failure::arguments("one argument is needed: the name of a context")),
    }
}

/// Keeps the global flags of this very command, and nothing that variables or files say.
fn add(matches: &ArgMatches, given: &Given, variables: &Variables) -> Result<()> {
    let name = one_name(matches)?;
    contexts::check_name(&name)?;
    let directory = std::env::current_dir()?;
    let table = kept(given, &directory)?;
    if !table.contains_key("endpoints") {
        return Err(Failure::arguments("a context is settings for a cluster: give at least --endpoints"));
    }
    // What cannot be used is refused now, and not by the first command that needs it.
    let alone: Given =
        given.iter().filter(|(name, _)| !NOT_KEPT.contains(name)).map(|(k, v)| (*k, v.clone())).collect();
    settings::resolve(&alone, &Variables::new())?;
    let path = place(variables)?;
    contexts::change(&path, |file| {
        if file.get(&name).is_some() && !cli::on(matches, "replace") {
            return Err(Failure::arguments(format!(
                "there is a context {name:?} already; --replace replaces it"
            )));
        }
        file.put(&name, table);
        if cli::on(matches, "use") {
            file.choose(Some(&name));
        }
        Ok(())
    })?;
    let next = if cli::on(matches, "use") {
        "it is the current one now".to_owned()
    } else {
        format!("cairnctl context use {name} makes it the current one")
    };
    print(format!("context {name} is in {}; {next}\n", path.display()).as_bytes())
}

/// The given flags as they are kept.
fn kept(given: &Given, directory: &Path) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    for global in GLOBALS.iter().filter(|global| !NOT_KEPT.contains(&global.name)) {
        let Some(texts) = given.get(global.name) else { continue };
        let last = texts.last().cloned().unwrap_or_default();
        let value = match global.kind {
            Kind::List => {
                let items = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
                let items = items.filter(|item| !item.is_empty()).map(|item| item.to_owned().into());
                toml::Value::Array(items.collect())
            }
            Kind::Switch => crate::units::parse_bool(&last).map_err(Failure::usage)?.into(),
            Kind::Text if PATHS.contains(&global.name) && !last.is_empty() => {
                let path = directory.join(&last);
                let text =
                    path.to_str().ok_or_else(|| Failure::usage(format!("{last:?} is not UTF-8 text")))?;
                text.to_owned().into()
            }
            Kind::Text => last.into(),
        };
        table.insert(global.name.to_owned(), value);
    }
    Ok(table)
}

fn choose(matches: &ArgMatches, variables: &Variables) -> Result<()> {
    let path = place(variables)?;
    if cli::on(matches, "none") {
        if !cli::arguments(matches).is_empty() {
            return Err(Failure::arguments("--none takes no name"));
        }
        contexts::change(&path, |file| {
            file.choose(None);
            Ok(())
        })?;
        return print(b"there is no current context now\n");
    }
    let name = one_name(matches)?;
    contexts::change(&path, |file| {
        file.find(&name, "the command line")?;
        file.choose(Some(&name));
        Ok(())
    })?;
    print(format!("context {name} is the current one\n").as_bytes())
}

fn remove(matches: &ArgMatches, variables: &Variables) -> Result<()> {
    let name = one_name(matches)?;
    let mut was_current = false;
    contexts::change(&place(variables)?, |file| {
        file.find(&name, "the command line")?;
        was_current = file.current() == Some(name.as_str());
        file.remove(&name);
        Ok(())
    })?;
    let note = if was_current { "; it was the current one, and there is none now" } else { "" };
    print(format!("context {name} is removed{note}\n").as_bytes())
}

/// How to print, as far as flags and variables say: a file that is broken must not keep anybody from looking at it.
fn printer(given: &Given, variables: &Variables) -> Result<Printer> {
    let mut alone = given.clone();
    alone.insert("context", vec![String::new()]);
    let (format, shape) = settings::output_of(&weigh(&alone, variables)?)?;
    Ok(Printer::bare(format, shape))
}

fn list(matches: &ArgMatches, given: &Given, variables: &Variables) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("context list takes no arguments"));
    }
    let path = contexts::path(variables);
    let file = File::read(path.as_deref())?;
    if let Some(path) = path.filter(|path| contexts::is_open_to_others(path)) {
        tell(format_args!("warning: others can read {}; chmod 600 closes it", path.display()));
    }
    print(&printer(given, variables)?.sheet(&listed(&file))?)
}

fn listed(file: &File) -> Sheet {
    let columns = [
        Column::new("name", "NAME"),
        Column::new("current", "CURRENT"),
        Column::new("endpoints", "ENDPOINTS"),
        Column::new("user", "USER"),
        Column::new("tls", "TLS").only_wide(),
    ];
    let mut sheet = Sheet::new("contexts", &columns)
        .when_empty("no contexts; make one: cairnctl context add NAME --endpoints=...");
    for name in file.names() {
        let table = file.get(name).expect("names have tables");
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str).unwrap_or_default();
        let endpoints: Vec<String> = match table.get("endpoints") {
            Some(toml::Value::Array(items)) => {
                items.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
            }
            _ => text("endpoints").split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect(),
        };
        let current = file.current() == Some(name);
        let or_nothing = |text: &str| if text.is_empty() { Cell::nothing() } else { Cell::text(text) };
        // The name alone: what follows a colon is the password.
        let user = text("user").split(':').next().unwrap_or_default();
        sheet.row(vec![
            Cell::text(name).tone(if current { Tone::Strong } else { Tone::Plain }),
            Cell::shown(current, if current { "*" } else { "" }),
            Cell::texts(&endpoints),
            or_nothing(user),
            or_nothing(if text("cacert").is_empty() { text("cert") } else { text("cacert") }),
        ]);
    }
    sheet
}

/// What counts, and where each value comes from: for this command line, or for a context.
fn show(matches: &ArgMatches, given: &Given, variables: &Variables) -> Result<()> {
    let mut given = given.clone();
    match cli::arguments(matches).as_slice() {
        [] => {}
        [name] => {
            // As with --context, and said as it was said.
            given.insert("context", vec![String::from_utf8_lossy(name).into_owned()]);
        }
        _ => return Err(Failure::arguments("context show takes the name of a context, or nothing")),
    }
    let sources = weigh(&given, variables)?;
    let printer = printer(&given, variables)?;
    print(&printer.sheet(&shown_sources(&sources))?)?;
    for line in sources
        .warnings
        .iter()
        .chain(&sources.notes.iter().map(|note| format!("note: {note}")).collect::<Vec<_>>())
    {
        tell(format_args!("{line}"));
    }
    Ok(())
}

fn shown_sources(sources: &Sources) -> Sheet {
    let columns =
        [Column::new("setting", "SETTING"), Column::new("value", "VALUE"), Column::new("from", "FROM")];
    let mut sheet = Sheet::new("settings", &columns);
    sheet.whole("context", sources.context.as_ref().map(|(name, _)| name.as_str()));
    for global in GLOBALS {
        if let ("context", Some((name, from))) = (global.name, &sources.context) {
            sheet.row(vec![Cell::text("context"), Cell::text(name.as_str()), Cell::text(from.as_str())]);
            continue;
        }
        let weighed = &sources.values[global.name];
        let tone = if weighed.rank == Rank::Default { Tone::Faint } else { Tone::Plain };
        let text = shown(global.name, &weighed.text);
        sheet.row(vec![
            Cell::text(global.name).tone(tone),
            if text.is_empty() { Cell::nothing() } else { Cell::text(text).tone(tone) },
            Cell::text(weighed.source.as_str()).tone(tone),
        ]);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Shape;
    use crate::output::paint::Paint;

    #[test]
    fn a_context_keeps_the_flags_of_a_cluster_with_whole_paths() {
        let given: Given = [
            ("endpoints", vec!["a:1, b:2".to_owned(), "c:3".to_owned()]),
            ("cacert", vec!["tls/ca.pem".to_owned()]),
            ("key", vec!["/k".to_owned()]),
            ("insecure-skip-tls-verify", vec!["true".to_owned()]),
            ("user", vec!["root".to_owned()]),
            ("output", vec!["json".to_owned()]),
            ("verbose", vec!["true".to_owned()]),
        ]
        .into();
        let table = kept(&given, Path::new("/home/u")).unwrap();
        let expected: toml::Table = "endpoints = ['a:1', 'b:2', 'c:3']\ncacert = '/home/u/tls/ca.pem'\nkey = '/k'\ninsecure-skip-tls-verify = true\nuser = 'root'"
            .parse()
            .unwrap();
        assert_eq!(table, expected);
    }

    #[test]
    fn the_list_shows_no_password() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("contexts.toml");
        contexts::change(&path, |file| {
            file.put(
                "prod",
                "endpoints = ['a:1', 'b:2']\nuser = 'root:secret'\ncacert = '/ca'".parse().unwrap(),
            );
            file.put("dev", "endpoints = 'c:3'".parse().unwrap());
            file.choose(Some("prod"));
            Ok(())
        })
        .unwrap();
        let sheet = listed(&File::read(Some(&path)).unwrap());
        let text = |shape| String::from_utf8(sheet.render(shape, Paint::NONE)).unwrap();
        assert_eq!(
            text(Shape::Table),
            "NAME   CURRENT   ENDPOINTS   USER\ndev    -         c:3         -\nprod   *         a:1,b:2     root\n"
        );
        assert_eq!(text(Shape::Raw), "dev\nprod\n");
        assert!(!text(Shape::Json).contains("secret"));
    }
}
