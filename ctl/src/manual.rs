//! The manual pages of cairnctl, read off the grammar that also prints --help, the table of settings and the list of exit codes. The
//! pages stand in packaging/man; a test compares. To write them anew: `UPDATE=1 cargo test -p cairnctl manual`.
//!
//! One page for each verb; a group of verbs has one page with a section for each of them. Not here: what the verbs do.

use crate::cli;
use crate::settings::GLOBALS;
use clap::{Arg, ArgAction, Command};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Text as roff prints it: no escapes, no hyphens, and no line that roff takes for a request.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if line.starts_with(['.', '\'']) {
            out.push_str("\\&");
        }
        for c in line.chars() {
            match c {
                '\\' => out.push_str("\\e"),
                '-' => out.push_str("\\-"),
                '\'' => out.push_str("\\(aq"),
                '`' => out.push_str("\\(ga"),
                '~' => out.push_str("\\(ti"),
                '^' => out.push_str("\\(ha"),
                c => out.push(c),
            }
        }
    }
    out
}

/// Lines that stay lines.
fn lines(out: &mut String, text: &str) {
    let _ = writeln!(out, ".nf\n{}\n.fi", plain(text.trim_matches('\n')));
}

fn head(out: &mut String, page: &str, about: &str) {
    let _ = writeln!(
        out,
        ".\\\" Generated from the grammar of cairnctl: UPDATE=1 cargo test -p cairnctl manual\n\
         .TH {} 1 \"\" cairn \"cairn\"\n.SH NAME\n{} \\- {}",
        plain(&page.to_uppercase()),
        plain(page),
        plain(about),
    );
}

/// `name` is the whole of what is typed: cairnctl member add.
fn usage(name: &str, verb: &Command) -> String {
    let text = verb.clone().bin_name(name.to_owned()).render_usage().to_string();
    let text = text.trim_start_matches("Usage:").trim();
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

fn flags(out: &mut String, verb: &Command) {
    for arg in verb.get_arguments().filter(|arg| shown(arg)) {
        let mut names = Vec::new();
        names.extend(arg.get_short().map(|short| format!("\\fB\\-{short}\\fR")));
        names.extend(arg.get_long().map(|long| format!("\\fB\\-\\-{}\\fR", plain(long))));
        let takes = arg.get_value_names().filter(|_| takes_value(arg)).and_then(|names| names.first());
        let value = takes.map_or(String::new(), |value| format!("=\\fI{}\\fR", plain(value)));
        let help =
            arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(out, ".TP\n{}{value}\n{}", names.join(", "), plain(&help));
    }
}

fn shown(arg: &Arg) -> bool {
    let own = arg.get_long().is_some() || arg.get_short().is_some();
    own && !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help"
}

/// Switches are written without their value.
fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

/// The verbs that run something, with what is typed for them.
fn leaves<'a>(name: &str, verb: &'a Command, out: &mut Vec<(String, &'a Command)>) {
    let mut inner = verb.get_subcommands().filter(|verb| listed(verb)).peekable();
    if inner.peek().is_none() {
        out.push((name.to_owned(), verb));
    }
    inner.for_each(|verb| leaves(&format!("{name} {}", verb.get_name()), verb, out));
}

fn listed(verb: &Command) -> bool {
    !verb.is_hide_set() && verb.get_name() != "help"
}

fn about(verb: &Command) -> String {
    let text = verb.get_about().map(ToString::to_string).unwrap_or_default();
    text.replace("docs/cairnctl.md", "/usr/share/doc/cairnctl/cairnctl.md")
}

fn more(out: &mut String, verb: &Command) {
    for text in [verb.get_long_about(), verb.get_after_long_help().or_else(|| verb.get_after_help())]
        .into_iter()
        .flatten()
    {
        let text = text.to_string();
        let _ = writeln!(out, ".PP");
        if text.lines().any(|line| line.starts_with(' ')) {
            lines(out, &text);
        } else {
            let _ = writeln!(out, "{}", plain(text.trim()).replace('\n', "\n.br\n"));
        }
    }
}

fn page_of(verb: &Command) -> String {
    let name = format!("cairnctl {}", verb.get_name());
    let mut all = Vec::new();
    leaves(&name, verb, &mut all);
    let mut out = String::new();
    head(&mut out, &name.replace(' ', "-"), &about(verb));
    let _ = writeln!(out, ".SH SYNOPSIS");
    let synopses: Vec<String> = all.iter().map(|(name, verb)| usage(name, verb)).collect();
    lines(&mut out, &synopses.join("\n"));
    let _ = writeln!(out, ".SH DESCRIPTION\n{}.", plain(&about(verb)));
    let alone = all.len() == 1 && all[0].1.get_name() == verb.get_name();
    let aliases: Vec<&str> = verb.get_visible_aliases().collect();
    if !aliases.is_empty() {
        let _ = writeln!(out, "It may also be called {}.", plain(&aliases.join(", ")));
    }
    more(&mut out, verb);
    if alone {
        if verb.get_arguments().any(shown) {
            let _ = writeln!(out, ".SH OPTIONS");
            flags(&mut out, verb);
        }
    } else {
        let _ = writeln!(out, ".SH COMMANDS");
        flags(&mut out, verb);
        for (name, verb) in &all {
            let _ = writeln!(out, ".SS {}", plain(name));
            lines(&mut out, &usage(name, verb));
            let _ = writeln!(out, ".PP\n{}.", plain(&about(verb)));
            more(&mut out, verb);
            flags(&mut out, verb);
        }
    }
    let _ = writeln!(
        out,
        ".PP\nThe global flags (endpoints, output, time limits, TLS) and the exit codes are in\n.BR cairnctl (1).\n\
         .SH SEE ALSO\n.BR cairnctl (1),\n.BR cairnd (8)"
    );
    out
}

fn overview(command: &Command) -> String {
    let mut out = String::new();
    head(&mut out, "cairnctl", "controls and measures a cairn or etcd cluster");
    let _ = writeln!(
        out,
        ".SH SYNOPSIS\n.B cairnctl\n[\\fIglobal flags\\fR] \\fIcommand\\fR [\\fIflags\\fR] [\\fIarguments\\fR]"
    );
    let _ = writeln!(out, ".SH DESCRIPTION\n{}.", plain(&about(command)));
    let _ = writeln!(
        out,
        "Flags may stand before or after the command and its arguments; \\-\\- ends them. A switch takes a value only after =.\n\
         Of a repeated flag the last counts. An unambiguous beginning of a command is enough.\n.SH COMMANDS"
    );
    for verb in command.get_subcommands().filter(|verb| listed(verb)) {
        let name = plain(verb.get_name());
        let _ = writeln!(out, ".TP\n.BR cairnctl\\-{name} (1)\n{}", plain(&about(verb)));
    }
    let _ = writeln!(out, ".SH GLOBAL FLAGS");
    for global in GLOBALS {
        let short = global.short.map(|short| format!("\\fB\\-{short}\\fR, ")).unwrap_or_default();
        let default =
            if global.default.is_empty() { String::new() } else { format!(" [{}]", plain(global.default)) };
        let _ = writeln!(
            out,
            ".TP\n{short}\\fB\\-\\-{}\\fR{default}\n{}",
            plain(global.name),
            plain(global.help)
        );
    }
    let _ = writeln!(
        out,
        ".SH ENVIRONMENT\nEvery global flag is also a variable: \\-\\-dial\\-timeout is CAIRNCTL_DIAL_TIMEOUT, and ETCDCTL_DIAL_TIMEOUT when that\n\
         is not set. A flag counts before the variables, those before the file, the file before the default.\n\
         .TP\n.B CAIRNCTL_CONFIG_FILE\nThe file to read instead of /etc/cairn/cairnctl.toml.\n\
         .TP\n.B NO_COLOR\nWhen set and not empty: no colours.\n\
         .SH FILES\n.TP\n.I /etc/cairn/cairnctl.toml\nDefaults for everybody on this host; keys are the names of the global flags."
    );
    let _ = writeln!(out, ".SH EXIT STATUS\n.TP\n.B 0\nIt was done.");
    for (code, meaning) in exit_codes() {
        let _ = writeln!(out, ".TP\n.B {code}\n{}", plain(&meaning));
    }
    let _ = writeln!(
        out,
        ".SH SEE ALSO\n.BR cairnd (8),\n.BR cairnd.toml (5)\n.br\n/usr/share/doc/cairnctl/cairnctl.md"
    );
    out
}

/// What failure.rs says of its codes: the comment above each variant.
fn exit_codes() -> Vec<(u8, String)> {
    let source = include_str!("failure.rs");
    let body =
        source.split("pub enum Exit {").nth(1).and_then(|rest| rest.split('}').next()).expect("the codes");
    let mut found = Vec::new();
    let mut meaning: Vec<&str> = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            meaning.push(text.trim());
        } else if let Some((_, code)) = line.trim_end_matches(',').split_once(" = ") {
            found.push((code.parse().expect("a number"), meaning.join(" ").replace('`', "")));
            meaning.clear();
        }
    }
    assert!(found.len() >= 9, "the codes are no longer found in failure.rs");
    found
}

/// Name of the file and text of every page.
fn pages() -> Vec<(String, String)> {
    let command = cli::command();
    let mut pages = vec![("cairnctl.1".to_owned(), overview(&command))];
    for verb in command.get_subcommands().filter(|verb| listed(verb)) {
        pages.push((format!("cairnctl-{}.1", verb.get_name()), page_of(verb)));
    }
    pages
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/man")
}

#[test]
fn manual_pages_are_current() {
    let pages = pages();
    let update = std::env::var_os("UPDATE").is_some();
    let known = |name: &str| pages.iter().any(|(known, _)| known == name);
    for entry in std::fs::read_dir(directory()).expect("packaging/man") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        let stale = name.starts_with("cairnctl") && !known(&name);
        if stale && update {
            std::fs::remove_file(directory().join(&name)).expect("remove it");
        }
        assert!(
            !stale || update,
            "{name} is of a verb that is gone: run UPDATE=1 cargo test -p cairnctl manual"
        );
    }
    for (name, text) in pages {
        let path = directory().join(&name);
        if update {
            std::fs::write(&path, &text).expect("write it");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{name} differs from the grammar: run UPDATE=1 cargo test -p cairnctl manual");
    }
}

#[test]
fn text_of_a_page_is_never_a_request() {
    assert_eq!(plain(".x -y 'z' \\"), "\\&.x \\-y \\(aqz\\(aq \\e");
    assert_eq!(plain("a\n'b"), "a\n\\&\\(aqb");
}
