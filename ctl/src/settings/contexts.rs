//! Contexts: settings under a name, in a file of the user's own, so that nobody types endpoints and keys. The file may hold passwords: it is
//! only ever written with mode 0600, whole or not at all, and by one command at a time.
//!
//! Not here: which context counts (`sources`) and what people are told (`verbs::context`).

use super::nearest;
use super::sources::{Variables, is_file_key, named_path, parse_toml, unknown_key};
use crate::failure::{Exit, Failure, Result};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longer names are no names; the limit keeps tables readable.
const NAME_CHARS_MAX: usize = 64;
/// What a rewritten file begins with.
const HEAD: &str = "# Contexts of cairnctl. Written by cairnctl context add, use and remove, which keep the values and not the comments.\n\n";

/// `$XDG_CONFIG_HOME/cairn/contexts.toml`, or `~/.config/cairn/contexts.toml`. None: there is no home.
pub fn path(variables: &Variables) -> Option<PathBuf> {
    // The standard wants relative paths to be ignored.
    let configured = named_path(variables, "XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let directory = configured.or_else(|| Some(named_path(variables, "HOME")?.join(".config")))?;
    Some(directory.join("cairn/contexts.toml"))
}

/// The file as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    path: Option<PathBuf>,
    current: Option<String>,
    contexts: toml::Table,
}

impl File {
    /// No file is an empty one. One that cannot be read or understood is refused: going on without it could reach another cluster.
    pub fn read(path: Option<&Path>) -> Result<File> {
        let Some(path) = path else { return Ok(File::default()) };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                String::new()
            }
            Err(error) => return Err(Failure::usage(format!("read {}: {error}", path.display()))),
        };
        Ok(File { path: Some(path.to_owned()), ..Self::parse(&path.display().to_string(), &text)? })
    }

    fn parse(name: &str, text: &str) -> Result<File> {
        let refused = |why: String| Err(Failure::usage(format!("{name}: {why}")));
        let mut file = File::default();
        for (key, value) in parse_toml(name, text)? {
            match (key.as_str(), value) {
                ("current", toml::Value::String(current)) => file.current = Some(current),
                ("contexts", toml::Value::Table(contexts)) => file.contexts = contexts,
                ("current" | "contexts", value) => {
                    return refused(format!("{key}: {value} is not a value for this key"));
                }
                _ => return refused(format!("unknown key {key:?}; known are current and contexts")),
            }
        }
        for (context, settings) in &file.contexts {
            let Some(settings) = settings.as_table() else {
                return refused(format!("contexts.{context} is not a table of settings"));
            };
            if let Some(key) = settings.keys().find(|key| !is_file_key(key)) {
                return refused(format!("contexts.{context}: {}", unknown_key(key)));
            }
        }
        Ok(file)
    }

    /// For complaints.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "contexts".to_owned(), |path| path.display().to_string())
    }

    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contexts.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<&toml::Table> {
        self.contexts.get(name).and_then(toml::Value::as_table)
    }

    /// The settings of a context that `source` names.
    pub fn find(&self, name: &str, source: &str) -> Result<&toml::Table> {
        self.get(name).ok_or_else(|| {
            let near = nearest(name, self.names());
            let hint = match near {
                Some(near) => format!("did you mean {near:?}?"),
                None if self.contexts.is_empty() => {
                    "there are none; make one: cairnctl context add".to_owned()
                }
                None => format!("known are {}", self.names().collect::<Vec<_>>().join(", ")),
            };
            Failure::usage(format!("no context is called {name:?}, which {source} names; {hint}"))
        })
    }

    pub fn put(&mut self, name: &str, settings: toml::Table) {
        self.contexts.insert(name.to_owned(), toml::Value::Table(settings));
    }

    pub fn choose(&mut self, name: Option<&str>) {
        self.current = name.map(str::to_owned);
    }

    /// Forgets a context; the current one is none then, if it was this.
    pub fn remove(&mut self, name: &str) {
        self.contexts.remove(name);
        if self.current() == Some(name) {
            self.current = None;
        }
    }

    fn text(&self) -> String {
        let mut table = toml::Table::new();
        if let Some(current) = &self.current {
            table.insert("current".into(), toml::Value::String(current.clone()));
        }
        table.insert("contexts".into(), toml::Value::Table(self.contexts.clone()));
        format!("{HEAD}{table}")
    }
}

/// Whether a file that may hold passwords can be read by others than its owner.
pub fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

/// Refuses names that would need quoting in a shell or in the file.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(fits) {
        return Err(Failure::arguments(format!(
            "bad context name {name:?}: up to {NAME_CHARS_MAX} letters, digits, '-', '_' and '.'"
        )));
    }
    Ok(())
}

/// Changes the file: read, changed and written while no other command does.
pub fn change(path: &Path, change: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(Exit::Io, format!("{what} {}: {error}", path.display()))
    };
    let parent = path.parent().unwrap_or(Path::new("."));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.map_err(|error| failed("make the directory of", error))?;
    // A file that is a link (to where somebody keeps their settings) stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().unwrap_or(Path::new("."));
    let lock = fs::File::open(directory).map_err(|error| failed("open the directory of", error))?;
    // File systems without locks lose at most a change that somebody made in the same instant.
    let _ = lock.lock();
    let mut file = File::read(Some(path))?;
    change(&mut file)?;
    write_whole(&target, file.text().as_bytes()).map_err(|error| failed("write", error))?;
    lock.sync_all().map_err(|error| failed("write", error))
}

fn write_whole(target: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = target.with_file_name(name);
    // What a killed command left under this name is in the way and worth nothing.
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, target)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn settings(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn the_file_is_where_the_standard_says() {
        let variables = |pairs: &[(&str, &str)]| -> Variables {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
        };
        let home = ("HOME", "/home/u");
        for (given, expected) in [
            (&[home, ("XDG_CONFIG_HOME", "/x")][..], Some("/x/cairn/contexts.toml")),
            (&[home], Some("/home/u/.config/cairn/contexts.toml")),
            (&[home, ("XDG_CONFIG_HOME", "relative")], Some("/home/u/.config/cairn/contexts.toml")),
            (&[], None),
        ] {
            assert_eq!(path(&variables(given)), expected.map(PathBuf::from));
        }
    }

    #[test]
    fn what_is_written_is_read_again_with_mode_0600() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cairn/contexts.toml");
        change(&path, |file| {
            file.put("prod", settings("endpoints = [\"https://a:1\"]\nuser = \"root:x\""));
            file.put("a.b", settings("endpoints = \"b:2\""));
            file.choose(Some("prod"));
            Ok(())
        })
        .unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(!is_open_to_others(&path));
        let file = File::read(Some(&path)).unwrap();
        assert_eq!((file.current(), file.names().collect::<Vec<_>>()), (Some("prod"), vec!["a.b", "prod"]));
        assert_eq!(file.find("prod", "x").unwrap()["user"].as_str(), Some("root:x"));

        // A file that was readable by others is not any more, a link stays a link, and a refusal changes nothing.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let link = home.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        change(&link, |file| {
            file.remove("prod");
            Ok(())
        })
        .unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let file = File::read(Some(&path)).unwrap();
        assert_eq!((file.current(), file.names().count(), mode(&path)), (None, 1, 0o600));
        let before = fs::read(&path).unwrap();
        change(&path, |file| {
            file.remove("a.b");
            Err(Failure::usage("no"))
        })
        .unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_and_none_is_empty() {
        let nowhere = Path::new("/nonexistent/cairn/contexts.toml");
        assert_eq!(File::read(Some(nowhere)).unwrap().names().count(), 0);
        for (text, why) in [
            ("current = 1", "f: current: 1 is not a value for this key"),
            ("context = 'a'", "f: unknown key \"context\"; known are current and contexts"),
            (
                "[contexts.a]\nendpoint = 'x'",
                "f: contexts.a: unknown key \"endpoint\"; did you mean \"endpoints\"?",
            ),
            ("[contexts.a]\ncontext = 'x'", "f: contexts.a: unknown key \"context\""),
            ("[contexts]\na = 1", "f: contexts.a is not a table of settings"),
        ] {
            assert_eq!(File::parse("f", text).unwrap_err().headline, why);
        }
        assert!(File::parse("f", "\n[").unwrap_err().headline.starts_with("f:2: "));
        let file = File::parse("f", "[contexts.prod]\n[contexts.test]").unwrap();
        assert!(file.find("prd", "flag --context").unwrap_err().headline.ends_with("did you mean \"prod\"?"));
        assert!(file.find("zzzz", "flag --context").unwrap_err().headline.ends_with("known are prod, test"));
        for name in ["", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("prod-1.eu_a").unwrap();
    }
}
