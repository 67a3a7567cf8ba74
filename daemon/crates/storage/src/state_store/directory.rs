//! Which directory holds the state. Each whole state lives in a directory of its own and a pointer file names the one in use:
//!
//! ```text
//! state/CURRENT                     "gen-0000000000000002\n"
//! state/gen-0000000000000002/FORMAT the version of everything below
//! state/gen-0000000000000002/SNAPSHOT "term index" when it was installed from a snapshot: the position it began at
//! state/gen-0000000000000002/fjall/ the LSM tree
//! state/gen-0000000000000003.partial  a snapshot being installed, or what a crash left of one
//! ```
//!
//! A new state is built under a `.partial` name, synced, renamed, and only then does CURRENT change, by rename. A crash at any step
//! leaves the old state or the new one. Leftovers go at the next open, but never what this process is building or has open.
//!
//! Not here: what is in a state.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use types::{LogIndex, LogPosition, Term};

use super::error::OpenError;

const CURRENT: &str = "CURRENT";
const CURRENT_TEMP: &str = "CURRENT.tmp";
const PREFIX: &str = "gen-";
const PARTIAL: &str = ".partial";
const FORMAT_FILE: &str = "FORMAT";
const SNAPSHOT_FILE: &str = "SNAPSHOT";
/// Raised when a reader of the former version would misread the data.
pub const FORMAT: &str = "cairn state 1\n";
/// CURRENT and FORMAT hold one short line; what is longer is not ours.
const SMALL_FILE_BYTES_MAX: u64 = 256;

/// Files of so many bytes are removed one by one.
const TABLE_BYTES: u64 = 4 << 20;

/// Directories that this process builds or has open. Kept per process because an installation and an open, or two installations,
/// may meet in any order, and neither may clean up the other's directory.
static IN_USE: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

/// Held while a new state takes its name and CURRENT follows, and while it is decided by CURRENT what is a leftover. Between the two
/// writes the new state is complete, claimed by nobody and named by nothing: it looks like a leftover.
static POINTER: Mutex<()> = Mutex::new(());

/// Keeps a state directory from being cleaned up while it lives.
#[derive(Debug)]
pub struct InUse(PathBuf);

impl InUse {
    fn claim(path: &Path) -> Option<InUse> {
        let mut all = IN_USE.lock();
        all.get_or_insert_default().insert(path.to_owned()).then(|| InUse(path.to_owned()))
    }

    fn holds(path: &Path) -> bool {
        IN_USE.lock().as_ref().is_some_and(|all| all.contains(path))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(all) = IN_USE.lock().as_mut() {
            all.remove(&self.0);
        }
    }
}

/// A state directory that is known to be complete, and claimed.
#[derive(Debug)]
pub struct Generation {
    pub path: PathBuf,
    pub claim: InUse,
}

/// A state directory under construction. Dropped without [`Partial::publish`] it is removed, if it can be.
#[derive(Debug)]
pub struct Partial {
    root: PathBuf,
    number: u64,
    path: PathBuf,
    claim: Option<InUse>,
}

impl Partial {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the finished directory its name and points CURRENT at it. Everything below it must be synced and closed.
    pub fn publish(mut self) -> Result<PathBuf, OpenError> {
        fsync_dir(&self.path)?;
        let name = generation_name(self.number);
        let complete = self.root.join(&name);
        let _pointer = POINTER.lock();
        fs::rename(&self.path, &complete).map_err(OpenError::io("name the new state", &complete))?;
        fsync_dir(&self.root)?;
        // From here on the directory is not ours to remove: a failure below leaves it beside the old one, for the next open to judge.
        self.claim = None;
        write_current(&self.root, &name)?;
        Ok(complete)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.claim.is_some() && self.path.exists() {
            remove(&self.path);
        }
    }
}

/// Begins a new state directory with the next free number. The FORMAT file is in place.
pub fn begin(root: &Path) -> Result<Partial, OpenError> {
    let root = create_root(root)?;
    let mut number = 1 + list(&root)?.into_iter().map(|found| found.number).max().unwrap_or(0);
    loop {
        let path = root.join(generation_name(number) + PARTIAL);
        // Claimed before it exists, so that no cleanup can see it unclaimed.
        if let Some(claim) = InUse::claim(&path) {
            match fs::create_dir(&path) {
                Ok(()) => {
                    let partial = Partial { root, number, path, claim: Some(claim) };
                    write_format(&partial.path)?;
                    return Ok(partial);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(OpenError::io("create directory", &path)(error)),
            }
        }
        number += 1;
    }
}

/// The state that CURRENT names, or `None` in a directory that has none yet. Leftovers are removed.
pub fn current(root: &Path) -> Result<Option<Generation>, OpenError> {
    let root = &create_root(root)?;
    let pointer = root.join(CURRENT);
    let _pointer = POINTER.lock();
    let name = match read_small(&pointer)? {
        Some(text) => text,
        None => match only_generation(root)? {
            Some(name) => {
                write_current(root, &name)?;
                name
            }
            None => {
                clean(root, None)?;
                return Ok(None);
            }
        },
    };
    let name = name.trim_end_matches('\n');
    let path = named(root, name)?;
    let claim = InUse::claim(&path).ok_or_else(|| OpenError::Locked { path: path.clone() })?;
    clean(root, Some(name))?;
    Ok(Some(Generation { path, claim }))
}

/// The directory that CURRENT names, if it is one of ours and of a form that this version reads.
fn named(root: &Path, name: &str) -> Result<PathBuf, OpenError> {
    let refuse = |problem| OpenError::Pointer { path: root.join(CURRENT), named: name.to_owned(), problem };
    if parse_name(name).is_none_or(|found| found.partial) {
        return Err(refuse("is not the name of a state directory"));
    }
    let path = root.join(name);
    if !path.is_dir() {
        return Err(refuse("does not exist"));
    }
    check_format(&path)?;
    Ok(path)
}

/// The directory that [`current`] would give, without making, claiming or removing anything: for tools. Only the names and the format
/// are looked at, not what the state says.
pub fn look(root: &Path) -> Result<Option<PathBuf>, OpenError> {
    let pointer = root.join(CURRENT);
    let name = match read_small(&pointer)? {
        Some(text) => text,
        None if !root.is_dir() => return Ok(None),
        None => match only_generation(root)? {
            Some(name) => name,
            None => return Ok(None),
        },
    };
    named(root, name.trim_end_matches('\n')).map(Some)
}

/// Removes states that are not in use any more: a former one stays as long as anybody reads it, which nobody announces. Nothing happens
/// where CURRENT names none.
pub fn clean_unused(root: &Path) -> Result<(), OpenError> {
    let root = &create_root(root)?;
    let _pointer = POINTER.lock();
    match read_small(&root.join(CURRENT))? {
        Some(name) => clean(root, Some(name.trim_end_matches('\n'))),
        None => Ok(()),
    }
}

/// Notes in an unpublished state from which snapshot it was made.
pub fn record_installed(dir: &Path, position: LogPosition) -> Result<(), OpenError> {
    write_synced(&dir.join(SNAPSHOT_FILE), format!("{} {}\n", position.term, position.index).as_bytes())
}

/// The snapshot that the current state began with, if it began with one. The state may be far beyond it.
pub fn installed_from(root: &Path) -> Result<Option<LogPosition>, OpenError> {
    let root = &create_root(root)?;
    let Some(name) = read_small(&root.join(CURRENT))? else { return Ok(None) };
    let name = name.trim_end_matches('\n');
    if parse_name(name).is_none_or(|found| found.partial) {
        return Ok(None);
    }
    let noted = read_small(&root.join(name).join(SNAPSHOT_FILE))?.unwrap_or_default();
    let mut numbers = noted.split_ascii_whitespace().map(str::parse);
    Ok(match (numbers.next(), numbers.next()) {
        (Some(Ok(term)), Some(Ok(index))) => Some(LogPosition { term: Term(term), index: LogIndex(index) }),
        _ => None,
    })
}

/// The first state is renamed before CURRENT is written. A crash between the two leaves exactly one complete directory, without data;
/// with more of them something else has happened, and guessing could lose the good one.
fn only_generation(root: &Path) -> Result<Option<String>, OpenError> {
    let complete: Vec<_> = list(root)?.into_iter().filter(|found| !found.partial).collect();
    match complete.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(generation_name(one.number))),
        many => Err(OpenError::PointerLost { path: root.join(CURRENT), count: many.len() }),
    }
}

fn clean(root: &Path, keep: Option<&str>) -> Result<(), OpenError> {
    for found in list(root)? {
        let path = root.join(&found.name);
        if keep != Some(found.name.as_str()) && !InUse::holds(&path) {
            tracing::info!(path = %path.display(), "removing a state directory that is not in use");
            remove(&path);
        }
    }
    Ok(())
}

/// Between two tables that are removed: the file system writes down at once what it frees at once, and the log's syncs stand behind that.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

fn remove_tables(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tables(&entry.path())?;
        } else if entry.metadata()?.len() >= TABLE_BYTES {
            fs::remove_file(entry.path())?;
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
    Ok(())
}

/// A leftover that cannot be removed costs space, nothing else; the next open tries again.
fn remove(path: &Path) {
    if let Err(error) = remove_tables(path).and_then(|()| fs::remove_dir_all(path)) {
        tracing::warn!(path = %path.display(), %error, "leftover state directory stays");
    }
}

struct Found {
    name: String,
    number: u64,
    partial: bool,
}

fn generation_name(number: u64) -> String {
    format!("{PREFIX}{number:016}")
}

fn parse_name(name: &str) -> Option<Found> {
    let (stem, partial) = match name.strip_suffix(PARTIAL) {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let digits = stem.strip_prefix(PREFIX).filter(|digits| digits.len() == 16)?;
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some(Found { name: name.to_owned(), number, partial })
}

/// Only names of ours; whatever else is in the directory is not touched.
fn list(root: &Path) -> Result<Vec<Found>, OpenError> {
    let io = || OpenError::io("list directory", root);
    let mut out = Vec::new();
    for entry in fs::read_dir(root).map_err(io())? {
        let entry = entry.map_err(io())?;
        if let Some(found) = entry.file_name().to_str().and_then(parse_name) {
            out.push(found);
        }
    }
    Ok(out)
}

/// The root in the one spelling under which its directories are claimed. Created when missing.
fn create_root(root: &Path) -> Result<PathBuf, OpenError> {
    if !root.is_dir() {
        fs::create_dir_all(root).map_err(OpenError::io("create directory", root))?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fsync_dir(parent)?;
        }
    }
    fs::canonicalize(root).map_err(OpenError::io("find", root))
}

fn write_current(root: &Path, name: &str) -> Result<(), OpenError> {
    let temp = root.join(CURRENT_TEMP);
    write_synced(&temp, format!("{name}\n").as_bytes())?;
    let pointer = root.join(CURRENT);
    fs::rename(&temp, &pointer).map_err(OpenError::io("replace", &pointer))?;
    fsync_dir(root)
}

fn write_format(dir: &Path) -> Result<(), OpenError> {
    write_synced(&dir.join(FORMAT_FILE), FORMAT.as_bytes())?;
    fsync_dir(dir)
}

fn check_format(dir: &Path) -> Result<(), OpenError> {
    let found = read_small(&dir.join(FORMAT_FILE))?.unwrap_or_default();
    if found == FORMAT {
        Ok(())
    } else {
        let found = found.trim_end().to_owned();
        Err(OpenError::UnknownFormat { path: dir.to_owned(), found, known: FORMAT.trim_end() })
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    let mut file = File::create(path).map_err(OpenError::io("create", path))?;
    file.write_all(bytes).map_err(OpenError::io("write", path))?;
    file.sync_all().map_err(OpenError::io("sync", path))
}

fn read_small(path: &Path) -> Result<Option<String>, OpenError> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(OpenError::io("read", path))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn fsync_dir(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(OpenError::io("sync directory", path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A snapshot is installed while a defragmentation ends, which cleans up: the new state is there and is the one that is named.
    #[test]
    fn a_cleanup_beside_an_installation_takes_no_state_that_is_being_named() {
        const INSTALLATIONS: usize = 12;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path();
        begin(root).and_then(Partial::publish).expect("the first state");
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let cleaner = threads.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    // What the other thread removes or renames meanwhile may be missed: that is not what is asked here.
                    let _ = clean_unused(root);
                }
            });
            for round in 0..INSTALLATIONS {
                let published = begin(root).and_then(Partial::publish);
                let found = published.and_then(|_| current(root));
                let is_whole = matches!(&found, Ok(Some(_)));
                if !is_whole || round + 1 == INSTALLATIONS {
                    over.store(true, Ordering::Release);
                }
                assert!(is_whole, "installation {round}: {found:?}");
            }
            cleaner.join().expect("the cleaner ends");
        });
    }
}
