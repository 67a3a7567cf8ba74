//! The member on this host: where its configuration says that clients find it. Read only, and never a reason to fail: a file that is not there,
//! or not for this user, leaves the default.
//!
//! Not here: checking that configuration (`cairnd config check`). What cairnd would refuse is passed over.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What the member listens on when nothing is said.
const DEFAULT: &str = "127.0.0.1:2379";
/// Larger is no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A configured member.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub endpoint: String,
    pub source: String,
    /// Files that do not count, and why.
    pub notes: Vec<String>,
}

/// What `path` and the files beside it say. `Ok(None)`: there is no such file. `Err`: why it cannot be used.
pub fn look(path: &Path) -> Result<Option<Found>, String> {
    let mut notes = Vec::new();
    let mut table = match read(path) {
        Ok(table) => table,
        Err(Unread::Missing) => return Ok(None),
        Err(Unread::Because(why)) => return Err(why),
    };
    let mut source = path.display().to_string();
    let parts = parts(path).unwrap_or_else(|why| {
        notes.push(why);
        Vec::new()
    });
    for part in parts {
        match read(&part) {
            Ok(more) => {
                if more.contains_key("listen-client-urls") || more.contains_key("advertise-client-urls") {
                    source = part.display().to_string();
                }
                table.extend(more);
            }
            Err(Unread::Missing) => {}
            Err(Unread::Because(why)) => notes.push(why),
        }
    }
    let endpoint = choose(&urls(&table, "listen-client-urls"), &urls(&table, "advertise-client-urls"));
    Ok(Some(Found { endpoint, source, notes }))
}

enum Unread {
    Missing,
    Because(String),
}

fn read(path: &Path) -> Result<toml::Table, Unread> {
    let because = |why: String| Unread::Because(format!("{} does not count: {why}", path.display()));
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Unread::Missing,
        _ => because(error.to_string()),
    })?;
    if meta.len() > FILE_BYTES_MAX {
        return Err(because("it is no configuration".into()));
    }
    let text = fs::read_to_string(path).map_err(|error| because(error.to_string()))?;
    text.parse().map_err(|error: toml::de::Error| because(format!("not TOML: {}", error.message())))
}

/// The files whose settings win over those of `path`, the later the stronger: `conf.d` beside cairnd.toml, `NAME.conf.d` beside NAME.toml.
fn parts(path: &Path) -> Result<Vec<PathBuf>, String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let directory = if stem == "cairnd" { "conf.d".to_owned() } else { format!("{stem}.conf.d") };
    let directory = path.with_file_name(directory);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(format!("{} does not count: {error}", directory.display())),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut parts: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    parts.sort();
    Ok(parts)
}

/// The URLs under a key, as a text with commas or as a list.
fn urls(table: &toml::Table, key: &str) -> Vec<String> {
    let texts: Vec<&str> = match table.get(key) {
        Some(toml::Value::String(text)) => text.split(',').collect(),
        Some(toml::Value::Array(items)) => items.iter().filter_map(toml::Value::as_str).collect(),
        _ => Vec::new(),
    };
    texts.into_iter().map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
}

/// The nearest way to the member: a socket, this host alone, any address it listens on. Where certificates are checked the advertised name is
/// the one they are made for.
fn choose(listen: &[String], advertised: &[String]) -> String {
    let near = |url: &&String| {
        let host = host_of(url);
        if url.starts_with("unix") {
            0
        } else if host == "localhost" || host.starts_with("127.") || host == "[::1]" {
            1
        } else if host == "0.0.0.0" || host == "[::]" {
            2
        } else {
            3
        }
    };
    let Some(url) = listen.iter().min_by_key(near) else {
        return advertised.first().cloned().unwrap_or_else(|| DEFAULT.to_owned());
    };
    if url.starts_with("https://")
        && let Some(advertised) = advertised.iter().find(|url| url.starts_with("https://"))
    {
        return advertised.clone();
    }
    url.replacen("://0.0.0.0", "://127.0.0.1", 1).replacen("://[::]", "://[::1]", 1)
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.split_once(']') {
        Some((host, _)) if host.starts_with('[') => &rest[..=host.len()],
        _ => rest.split([':', '/']).next().unwrap_or(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_listener_is_taken() {
        let list =
            |text: &str| text.split(' ').filter(|url| !url.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        for (listen, advertised, expected) in [
            ("", "", "127.0.0.1:2379"),
            ("", "http://db1:2379", "http://db1:2379"),
            ("http://10.0.0.1:2379 http://127.0.0.1:2390", "http://db1:2379", "http://127.0.0.1:2390"),
            ("http://0.0.0.0:2379", "http://db1:2379", "http://127.0.0.1:2379"),
            ("http://[::]:2379", "", "http://[::1]:2379"),
            ("http://10.0.0.1:2379", "", "http://10.0.0.1:2379"),
            ("http://0.0.0.0:2379 unix:///run/cairn.sock", "", "unix:///run/cairn.sock"),
            ("https://0.0.0.0:2379", "https://db1:2379", "https://db1:2379"),
            ("https://0.0.0.0:2379", "http://db1:2379", "https://127.0.0.1:2379"),
        ] {
            assert_eq!(choose(&list(listen), &list(advertised)), expected, "{listen}");
        }
    }

    #[test]
    fn a_member_is_found_by_its_file_and_the_files_beside_it() {
        let etc = tempfile::tempdir().unwrap();
        let path = etc.path().join("cairnd.toml");
        assert_eq!(look(&path), Ok(None));
        fs::write(&path, "name = 'n'\nlisten-client-urls = 'http://0.0.0.0:1,http://127.0.0.1:2'").unwrap();
        let found = look(&path).unwrap().unwrap();
        assert_eq!(
            (found.endpoint.as_str(), found.source),
            ("http://127.0.0.1:2", path.display().to_string())
        );

        let beside = etc.path().join("conf.d");
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("10-a.toml"), "listen-client-urls = ['http://127.0.0.1:3']").unwrap();
        fs::write(beside.join("20-b.toml"), "listen-client-urls = ['http://127.0.0.1:4']").unwrap();
        fs::write(beside.join("30-c.toml"), "= no").unwrap();
        fs::write(beside.join("40-d.toml~"), "listen-client-urls = ['http://127.0.0.1:5']").unwrap();
        let found = look(&path).unwrap().unwrap();
        assert_eq!(found.endpoint, "http://127.0.0.1:4");
        assert!(
            found.source.ends_with("20-b.toml")
                && found.notes[0].contains("30-c.toml does not count: not TOML")
        );

        let other = etc.path().join("blue.toml");
        fs::write(&other, "").unwrap();
        fs::create_dir(etc.path().join("blue.conf.d")).unwrap();
        fs::write(etc.path().join("blue.conf.d/1.toml"), "listen-client-urls = 'http://127.0.0.1:6'")
            .unwrap();
        assert_eq!(look(&other).unwrap().unwrap().endpoint, "http://127.0.0.1:6");
        fs::write(&path, "= no").unwrap();
        assert!(look(&path).unwrap_err().contains("cairnd.toml does not count: not TOML"));
        assert!(look(etc.path()).is_err(), "a directory is no file");
    }
}
