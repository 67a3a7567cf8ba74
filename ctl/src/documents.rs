//! The tables of docs/cairnctl.md that the grammar and the settings know better than anybody who writes them down: verbs and global settings.
//! A test compares; to write them anew: `UPDATE=1 cargo test -p cairnctl documents`. Not here: the text around them, and the manual pages.

use crate::cli;
use crate::settings::{GLOBALS, Global, Kind};
use clap::{Arg, Command};
use std::path::Path;

/// Flags that every verb has.
fn is_global(arg: &Arg) -> bool {
    GLOBALS.iter().any(|global| arg.get_id() == global.name) || arg.get_id() == "help"
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace(['<', '>'], "")
}

fn verbs() -> String {
    let mut command = cli::command();
    command.build();
    let mut out = String::from("| verb | arguments | flags | |\n|---|---|---|---|\n");
    rows(&command, "", &mut out);
    out
}

fn rows(command: &Command, path: &str, out: &mut String) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        let name = format!("{path}{}", verb.get_name());
        if verb.has_subcommands() {
            rows(verb, &format!("{name} "), out);
            continue;
        }
        let aliases: String = verb.get_visible_aliases().map(|alias| format!(" (`{alias}`)")).collect();
        let flags: Vec<String> = verb
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && !is_global(arg))
            .filter_map(|arg| Some(format!("`--{}`", arg.get_long()?)))
            .collect();
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let (arguments, flags) = match path.starts_with("bench") {
            true => (String::new(), "see below".to_owned()),
            false => (arguments(verb, &name), flags.join(" ")),
        };
        out.push_str(&format!("| `{name}`{aliases} | {arguments} | {flags} | {} |\n", escaped(&about)));
    }
}

/// What the usage line has between the verb and its flags.
fn arguments(verb: &Command, name: &str) -> String {
    let usage = verb.clone().render_usage().to_string();
    let line = usage.lines().next().unwrap_or_default();
    let rest = line.split_once(&format!("cairnctl {name}")).map_or("", |(_, rest)| rest);
    let rest = rest.replace("[flags]", "");
    // From the first flag on it is what the next column has; and what comes on stdin is no argument.
    let end = [" --", " < "]
        .iter()
        .filter_map(|mark| rest.find(mark))
        .filter(|at| !rest[*at..].starts_with(" -- "))
        .min();
    escaped(rest[..end.unwrap_or(rest.len())].trim())
}

fn settings() -> String {
    let mut out = String::from("| name | default | |\n|---|---|---|\n");
    for Global { name, short, kind, default, help, ours } in GLOBALS {
        let short = short.map(|short| format!(", `-{short}`")).unwrap_or_default();
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let switch = if *kind == Kind::Switch { " (switch)" } else { "" };
        let ours = if *ours { "; no `ETCDCTL_` variable" } else { "" };
        out.push_str(&format!("| `{name}`{short} | {default} | {}{switch}{ours} |\n", escaped(help)));
    }
    out
}

/// The text with what stands between the two marks of `name` replaced.
fn with(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- {name}: generated, see ctl/src/documents.rs -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no mark {begin:?}"));
    let (_, after) = rest.split_once("<!-- end -->\n").expect("a table has an end");
    format!("{before}{begin}{table}<!-- end -->\n{after}")
}

#[test]
fn the_tables_of_the_documentation_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cairnctl.md");
    let found = std::fs::read_to_string(&path).expect("docs/cairnctl.md");
    let text = with(&with(&found, "verbs", &verbs()), "settings", &settings());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).expect("write it");
        return;
    }
    assert!(
        found == text,
        "docs/cairnctl.md differs from the grammar: run UPDATE=1 cargo test -p cairnctl documents"
    );
}

/// The names that programs read and the exit codes are told where people look.
#[test]
fn every_exit_code_and_every_name_in_brackets_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path.join("../docs/cairnctl.md")).expect("docs/cairnctl.md");
    let failure = std::fs::read_to_string(path.join("src/failure.rs")).expect("failure.rs");
    let codes = failure.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "));
    for (name, code) in codes.filter(|(_, code)| code.parse::<u8>().is_ok()) {
        assert!(
            text.contains(&format!("\n| {code} | ")),
            "exit code {code} ({name}) is not in docs/cairnctl.md"
        );
    }
    for name in names(&path.join("src")) {
        assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/cairnctl.md");
    }
}

/// `[NAME]` at the beginning of a headline, anywhere in the sources.
fn names(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(directory).expect("the sources").map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            names.extend(self::names(&entry));
            continue;
        }
        let text = std::fs::read_to_string(&entry).expect("a source");
        let parts = text.split("\"[").skip(1).filter_map(|rest| Some(rest.split_once("] ")?.0));
        let is_name =
            |part: &&str| part.len() > 3 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        names.extend(parts.filter(is_name).map(str::to_owned));
    }
    names
}
