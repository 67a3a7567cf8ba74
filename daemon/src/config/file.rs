//! The TOML files: keys equal to flag names, tables for the two TLS groups, a place for every complaint.
//!
//! Beside the file itself there may be drop-ins, which packages and tools add to or take away without touching what an operator wrote:
//! `*.toml` in `conf.d` beside a `cairnd.toml`, in `NAME.conf.d` beside a `NAME.toml`. They are read after it in the order of their names,
//! and a key that is given again counts as given there.

use std::{
    io,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Given, Note, Problem, source::Source, suggest, table};
use crate::{
    owner,
    refusal::{Id, User},
};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/cairn/cairnd.toml";

/// Larger is no configuration, but perhaps a log or a database that was named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// More drop-ins are no configuration, but a directory that was named by mistake.
const DROP_INS_MAX: usize = 256;

/// What a configuration is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Main {
    /// Somebody named it, so it has to be there.
    Named(PathBuf),
    /// Where it is looked for when nobody does.
    Usual(PathBuf),
}

/// What the files say together.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they were read.
    pub files: Vec<PathBuf>,
    pub given: Vec<Given>,
    pub problems: Vec<Problem>,
    pub notes: Vec<Note>,
}

/// The directory of drop-ins that belongs to a file.
pub fn drop_in_dir(main: &Path) -> PathBuf {
    let beside = main.parent().unwrap_or(Path::new(""));
    match main.file_stem().filter(|stem| *stem != "cairnd") {
        Some(stem) => {
            let mut name = stem.to_owned();
            name.push(".conf.d");
            beside.join(name)
        }
        None => beside.join("conf.d"),
    }
}

/// The file and its drop-ins. Each counts before those read earlier.
pub fn read_all(main: &Main) -> Found {
    let mut found = Found::default();
    let path = match main {
        Main::Named(path) => {
            found.files.push(path.clone());
            path
        }
        Main::Usual(path) => {
            found.files.extend(path.exists().then(|| path.clone()));
            path
        }
    };
    let dir = drop_in_dir(path);
    match drop_ins(&dir, &mut found.notes) {
        Ok(files) => found.files.extend(files),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let problem = Problem {
                id: Id::ConfigFile,
                place: dir.display().to_string(),
                what: format!("the directory of more configuration cannot be read: {error}"),
                remedy: "let this user read it, or take it away".into(),
            };
            found.problems.push(if_forbidden(problem, &dir, &error));
        }
    }
    for file in &found.files {
        let (given, problems) = read(file);
        found.given.extend(given);
        found.problems.extend(problems);
    }
    found
}

fn drop_ins(dir: &Path, notes: &mut Vec<Note>) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        } else {
            notes.push(Note {
                message: "a file beside the configuration is not read: its name does not end in .toml",
                fields: vec![("file", path.display().to_string())],
            });
        }
    }
    files.sort();
    notes.sort_by(|left, right| left.fields.cmp(&right.fields));
    if files.len() > DROP_INS_MAX {
        return Err(io::Error::other(format!("more than {DROP_INS_MAX} files")));
    }
    Ok(files)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    given: Vec<Given>,
    problems: Vec<Problem>,
}

/// Everything the file sets, and everything that is wrong with it.
pub fn read(path: &Path) -> (Vec<Given>, Vec<Problem>) {
    match load_text(path) {
        Ok(text) => parse(path, &text),
        Err(problem) => (Vec::new(), vec![problem]),
    }
}

/// The text of a configuration file, whatever it is written in.
pub fn load_text(path: &Path) -> Result<String, Problem> {
    let problem = |what: String| Problem {
        id: Id::ConfigFile,
        place: path.display().to_string(),
        what,
        remedy: "name a readable configuration file: --config-file, or ETCD_CONFIG_FILE".into(),
    };
    let unreadable = |error: io::Error| {
        if_forbidden(problem(format!("the configuration file cannot be read: {error}")), path, &error)
    };
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if meta.len() > FILE_BYTES_MAX || !meta.is_file() {
        return Err(problem(format!("not a file of at most {FILE_BYTES_MAX} bytes")));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|_| problem("not UTF-8 text".into()))
}

/// Who may not read it, what bars the way, and how it becomes readable.
fn if_forbidden(problem: Problem, path: &Path, error: &io::Error) -> Problem {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return problem;
    }
    let (user, barrier) = (User::of_this_process(), owner::barrier(path));
    Problem {
        place: format!("{} ({})", barrier.display(), owner::ownership(barrier)),
        what: format!("{}, as {user}", problem.what),
        remedy: let_read(barrier, &user),
        ..problem
    }
}

/// How `path` becomes readable: for the user of a service by its group, for anybody else by asking as root.
pub fn let_read(path: &Path, user: &User) -> String {
    let mode = if path.is_dir() { "0750" } else { "0640" };
    let (path, name) = (path.display(), &user.name);
    match user.is_of_a_service() {
        true => format!("let {name} read it: chown root:{name} {path} && chmod {mode} {path}"),
        false => {
            format!("{user} may not read {path}: ask as root, or as the user of the service")
        }
    }
}

pub fn parse(path: &Path, text: &str) -> (Vec<Given>, Vec<Problem>) {
    let mut reader = Reader { path, text, given: Vec::new(), problems: Vec::new() };
    match DeTable::parse(text) {
        Ok(table) => reader.table(None, table.get_ref()),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            let what = format!("not TOML: {}", error.message().lines().next().unwrap_or("syntax error"));
            let yaml = text.lines().any(|line| line.trim_end().ends_with(':') || line.contains(": "));
            let remedy = if yaml && !text.contains('=') {
                "this looks like YAML; if it is etcd's: cairnd config convert FILE > cairnd.toml"
            } else {
                "correct the line; see docs/configuration.md"
            };
            reader.problem(Id::ConfigFile, at, what, remedy.into());
        }
    }
    (reader.given, reader.problems)
}

impl Reader<'_> {
    fn table(&mut self, within: Option<&str>, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            let name: &str = key.get_ref();
            let at = key.span().start;
            match value.get_ref() {
                DeValue::Table(inner) if within.is_none() && is_table(name) => self.table(Some(name), inner),
                other => self.key(within, name, at, value, other),
            }
        }
    }

    fn key(
        &mut self,
        within: Option<&str>,
        key: &str,
        at: usize,
        spanned: &Spanned<DeValue<'_>>,
        value: &DeValue<'_>,
    ) {
        let Some(setting) = table::find_toml(within, key) else {
            let shown = within.map_or_else(|| key.to_owned(), |table| format!("[{table}] {key}"));
            let near = match value {
                DeValue::Table(_) => {
                    suggest::nearest(key, TABLES.into_iter()).map(|table| format!("[{table}]"))
                }
                _ => table::nearest_toml(within, key),
            };
            let (hint, remedy) = match near {
                Some(near) => (format!("; nearest name: {near}"), format!("if you meant it: {near}")),
                None => (String::new(), "remove it; all keys are in docs/configuration.md".into()),
            };
            self.problem(Id::UnknownSetting, at, format!("there is no key {shown}{hint}"), remedy);
            return;
        };
        let value_at = spanned.span().start;
        match text_of(value) {
            Ok(text) => {
                let (line, column) = position(self.text, value_at);
                let source = Source::File { path: self.path.to_path_buf(), line, column };
                self.given.push(Given { setting, text, source });
            }
            Err(kind) => {
                let what =
                    format!("{} is {kind}; expected {}", setting.toml_shown(), setting.kind.describe());
                self.problem(
                    Id::BadValue,
                    value_at,
                    what,
                    format!("{}: {}", setting.toml_shown(), setting.meaning),
                );
            }
        }
    }

    fn problem(&mut self, id: Id, at: usize, what: String, remedy: String) {
        let (line, column) = position(self.text, at);
        let place = Source::File { path: PathBuf::from(self.path), line, column }.to_string();
        self.problems.push(Problem { id, place, what, remedy });
    }
}

const TABLES: [&str; 2] = ["client-transport-security", "peer-transport-security"];

fn is_table(name: &str) -> bool {
    TABLES.contains(&name)
}

/// TOML's own types become the text a flag would carry; a list becomes its items with commas between.
fn text_of(value: &DeValue<'_>) -> Result<String, &'static str> {
    Ok(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => return Err("a number beyond all bounds"),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Array(items) => {
            let mut texts = Vec::new();
            for item in items.iter() {
                match item.get_ref() {
                    DeValue::String(text) => texts.push(text.to_string()),
                    _ => return Err("a list of something other than texts"),
                }
            }
            texts.join(",")
        }
        DeValue::Datetime(_) => return Err("a date"),
        DeValue::Table(_) => return Err("a table"),
    })
}

/// Line and column of a byte, both from 1; columns count characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<(&'static str, String, String)>, Vec<Problem>) {
        let (given, problems) = parse(Path::new("c.toml"), text);
        let given =
            given.into_iter().map(|one| (one.setting.name, one.text, one.source.to_string())).collect();
        (given, problems)
    }

    #[test]
    fn keys_are_flag_names_and_values_know_their_place() {
        let (given, problems) = read(
            "name = \"n1\"\nheartbeat-interval = 1_00\nlisten-client-urls = [\"http://a:1\", \"http://b:1\"]\n\n[peer-transport-security]\n auto-tls = true\n",
        );
        assert_eq!(problems, []);
        assert_eq!(given.len(), 4);
        assert!(given.contains(&("name", "n1".into(), "c.toml:1:8".into())));
        assert!(given.contains(&("heartbeat-interval", "100".into(), "c.toml:2:22".into())));
        assert!(given.contains(&(
            "listen-client-urls",
            "http://a:1,http://b:1".into(),
            "c.toml:3:22".into()
        )));
        assert!(given.contains(&("peer-auto-tls", "true".into(), "c.toml:6:13".into())));
    }

    #[test]
    fn a_wrong_key_or_type_is_told_with_line_and_column() {
        for (text, place, words) in [
            ("x = 1\nnmae = \"n1\"", "c.toml:2:1", "nearest name: name"),
            ("[client-transport-securty]\na = 1", "c.toml:1:2", "[client-transport-security]"),
            (
                "[client-transport-security]\ncertfile = \"x\"",
                "c.toml:2:1",
                "[client-transport-security] cert-file",
            ),
            ("cert-file = \"x\"", "c.toml:1:1", "[client-transport-security] cert-file"),
            ("  name = 2020-01-01", "c.toml:1:10", "is a date"),
            ("name = [1]", "c.toml:1:8", "a list of something"),
            ("name = \"n1\"\nx", "c.toml:2:2", "not TOML"),
        ] {
            let (_, problems) = read(text);
            let found = problems.iter().any(|problem| problem.place == place && problem.what.contains(words));
            assert!(found, "{text:?}: {problems:?}");
        }
    }

    #[test]
    fn drop_ins_are_read_in_the_order_of_their_names_after_the_file() {
        for (main, dir) in [
            ("/etc/cairn/cairnd.toml", "/etc/cairn/conf.d"),
            ("/etc/cairn/blue.toml", "/etc/cairn/blue.conf.d"),
            ("cairnd.toml", "conf.d"),
        ] {
            assert_eq!(drop_in_dir(Path::new(main)), Path::new(dir), "{main}");
        }
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("blue.toml");
        let more = dir.path().join("blue.conf.d");
        std::fs::create_dir(&more).unwrap();
        for (name, text) in [
            ("20-b.toml", "name = \"b\"\n"),
            ("10-a.toml", "name = \"a\"\nmax-wals = 7\n"),
            ("30-c.toml.bak", "name = \"bak\"\n"),
            (".hidden.toml", "name = \"hidden\"\n"),
        ] {
            std::fs::write(more.join(name), text).unwrap();
        }
        let found = read_all(&Main::Usual(main.clone()));
        assert_eq!(
            found.files,
            [more.join("10-a.toml"), more.join("20-b.toml")],
            "also without the file itself"
        );
        std::fs::write(&main, "name = \"main\"\nnmae = \"x\"\n").unwrap();
        let found = read_all(&Main::Named(main.clone()));
        let names: Vec<&str> = found
            .given
            .iter()
            .filter(|one| one.setting.name == "name")
            .map(|one| one.text.as_str())
            .collect();
        assert_eq!(names, ["main", "a", "b"], "the last one counts");
        assert!(found.notes.len() == 1 && found.notes[0].fields[0].1.ends_with("30-c.toml.bak"));
        assert_eq!(found.problems.len(), 1);
        assert!(found.problems[0].place.ends_with("blue.toml:2:1"), "{:?}", found.problems);

        std::fs::write(more.join("20-b.toml"), "\nlog-levl = 1\n").unwrap();
        let found = read_all(&Main::Named(main));
        let problem = &found.problems[1];
        assert!(
            problem.place.ends_with("20-b.toml:2:1") && problem.what.contains("log-level"),
            "{problem:?}"
        );
        let missing = read_all(&Main::Named(dir.path().join("none.toml")));
        assert_eq!(missing.problems[0].id, Id::ConfigFile);
        let usual = read_all(&Main::Usual(dir.path().join("none.toml")));
        assert!(usual.problems.is_empty() && usual.files.is_empty());
    }

    #[test]
    fn who_may_not_read_the_file_is_told_what_lets_them() {
        let path = Path::new("/etc/cairn/cairnd.toml");
        let service = User { id: 995, name: "cairn".into() };
        assert_eq!(
            let_read(path, &service),
            "let cairn read it: chown root:cairn /etc/cairn/cairnd.toml && chmod 0640 /etc/cairn/cairnd.toml"
        );
        let person = User { id: 1001, name: "ann".into() };
        assert!(
            let_read(path, &person)
                .starts_with("user ann (id 1001) may not read /etc/cairn/cairnd.toml: ask as root")
        );
    }

    #[test]
    fn yaml_is_recognised() {
        let (_, problems) = read("name: n1\ndata-dir: /x\n");
        assert!(problems[0].remedy.contains("YAML"), "{problems:?}");
    }
}
