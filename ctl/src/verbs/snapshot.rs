//! snapshot save: a member's backup into a file, which gets its name only when it is whole, proven and on disk. snapshot status: what is
//! in such a file.
//!
//! A file of that name is replaced, as with etcdctl: jobs save to one name every night. The old one stays until the new one is good, so
//! nothing is lost by that. Until then the bytes are in a file beside it, which is locked while its save lives: a save that is stopped
//! removes it, and what a killed one left goes with the next save to the same name. Not here: how a database file is read (dbfile).

use super::show;
use crate::cli;
use crate::client::{Client, SNAPSHOT};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::progress::{Progress, Unit};
use crate::output::tell;
use crate::settings::{Format, Settings};
use api::etcdserverpb::{SnapshotRequest, SnapshotResponse};
use clap::ArgMatches;
use dbfile::{Look, LookError};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// The SHA-256 behind the database.
const DIGEST_BYTES: usize = 32;
/// A database is a whole number of pages, each a multiple of this.
const SECTOR_BYTES: u64 = 512;
/// One write call for this much of the file, and then the disk is told to begin with it. Left to the kernel, the whole file would reach the
/// disk at the end with one sync, and the log of a member on the same disk would wait behind it: puts with a p99 of 16 ms instead of 1.5.
const BUFFER_BYTES: usize = 256 * 1024;

pub async fn save(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let mut arguments = cli::arguments(matches);
    if arguments.len() != 1 {
        return Err(Failure::arguments("snapshot save expects one argument"));
    }
    let path = PathBuf::from(OsString::from_vec(arguments.remove(0)));
    if settings.endpoints.len() != 1 {
        let names: Vec<&str> = settings.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        return Err(Failure::new(
            Exit::Interrupted,
            format!(
                "snapshot must be requested to one selected node, not multiple [{}]\nGive one of them: --endpoints={}",
                names.join(" "),
                names[0]
            ),
        ));
    }
    let mut progress = Progress::begin("snapshot save", Unit::Bytes, cli::on(matches, "progress"));
    let mut client = Client::new(settings, true)?;
    // Before there is anything to remove.
    let stop = Stop::listen()?;
    for leftover in clear_leftovers(&path) {
        tell(format_args!("removed {}, which an earlier save left when it was killed", leftover.display()));
    }
    let mut part = Part::create(&path)?;
    let mut version = String::new();
    let streamed = client.stream(&SNAPSHOT, &SnapshotRequest {}, |piece: SnapshotResponse| {
        part.take(&piece.blob)?;
        progress.tell(part.bytes, Some(part.bytes + piece.remaining_bytes));
        if !piece.version.is_empty() {
            version = piece.version;
        }
        Ok(())
    });
    tokio::select! {
        biased;
        name = stop.told() => return Err(stopped(name, &path)),
        streamed = streamed => streamed.map_err(|failure| Failure {
            // As etcdctl: whatever ends a save early has this code, unless nobody could be reached.
            exit: if failure.exit == Exit::Error { Exit::Interrupted } else { failure.exit },
            ..failure
        })?,
    }
    let bytes = part.bytes;
    part.finish(&path)?;
    progress.finish(bytes);
    let mut out = b"Snapshot saved at ".to_vec();
    out.extend_from_slice(path.as_os_str().as_encoded_bytes());
    out.push(b'\n');
    if !version.is_empty() {
        out.extend_from_slice(format!("Server version {version}\n").as_bytes());
    }
    show(&out)
}

/// The signals that end a command.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Stop> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Which one came.
    async fn told(mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

fn stopped(signal: &str, target: &Path) -> Failure {
    let before = if target.exists() {
        "the file of that name is the one from before"
    } else {
        "no file of that name was made"
    };
    Failure::new(
        Exit::Interrupted,
        format!("the save was stopped by {signal}: nothing is left of it, and {before}"),
    )
}

/// The name of a save's bytes before they have their own.
fn part_name(target: &Path, pid: &str) -> OsString {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{pid}.part"));
    name
}

fn directory_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes what killed saves to this name left; answers what was removed. Whoever still saves holds its lock. What cannot be looked at or
/// removed is left: it is in nobody's way.
fn clear_leftovers(target: &Path) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(directory_of(target)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|text| {
            let pid =
                text.strip_suffix(".part").and_then(|text| text.rsplit_once('.')).map_or("", |(_, pid)| pid);
            pid.parse::<u32>().is_ok() && part_name(target, pid) == name
        });
        let path = entry.path();
        if ours
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && File::open(&path).is_ok_and(|file| file.try_lock().is_ok())
            && fs::remove_file(&path).is_ok()
        {
            removed.push(path);
        }
    }
    removed
}

/// What is in the file of a backup, in the words of etcdutl 3.5.
pub fn status(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let mut arguments = cli::arguments(matches);
    if arguments.len() != 1 {
        return Err(Failure::arguments("snapshot status requires exactly one argument"));
    }
    let look = match settings.format {
        Format::Simple => Look::Simple,
        Format::Json => Look::Json,
        Format::Fields => Look::Fields,
        Format::Table => Look::Table,
        Format::Protobuf => return Err(Failure::feature("protobuf not supported as output format")),
    };
    let path = PathBuf::from(OsString::from_vec(arguments.remove(0)));
    let unreadable =
        |error: &std::io::Error| Failure::new(Exit::Error, format!("read {}: {error}", path.display()));
    let kind = fs::metadata(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(Exit::Error, format!("stat {}: no such file or directory", path.display()))
        }
        _ => unreadable(&error),
    })?;
    if !kind.is_file() {
        return Err(Failure::new(Exit::Error, format!("{} is not a regular file", path.display())));
    }
    let status = dbfile::look(File::open(&path).map_err(|error| unreadable(&error))?);
    let status = status.map_err(|error| match error {
        LookError::Io(error) => unreadable(&error),
        damage => {
            Failure::new(Exit::Error, "[SNAPSHOT_DAMAGED] the snapshot file cannot be used").with(Details {
                cause: damage.to_string(),
                evidence: vec![format!("{}, {} bytes", path.display(), kind.len())],
                remedy: vec![
                    "copy the file again from where it was saved, and compare its size".into(),
                    "else take an older snapshot, or save a new one: cairnctl snapshot save".into(),
                ],
                never: "do not restore from it with --skip-hash-check".into(),
            })
        }
    })?;
    show(status.text(look).as_bytes())
}

/// The file while it has no name of its own. Removed when dropped unfinished.
struct Part {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    hash: Sha256,
    /// The last bytes so far, which may be the digest: they are not hashed until others follow.
    tail: Vec<u8>,
    bytes: u64,
    /// So much of it the disk was told to begin with.
    begun: u64,
}

impl Part {
    /// Its number is this process's, or the next that nobody has: in containers every process is number 1, and another host may save into
    /// the same directory. What is there already is somebody else's, and is not touched.
    fn create(target: &Path) -> Result<Part> {
        let mut number = std::process::id();
        let (path, file) = loop {
            let path = directory_of(target).join(part_name(target, &number.to_string()));
            let refused = |error: std::io::Error| {
                Failure::new(Exit::Interrupted, format!("could not open {} ({error})", path.display()))
            };
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    number = number.wrapping_add(1);
                    continue;
                }
                file => file.map_err(refused)?,
            };
            // File systems without locks have leftovers that stay; the save itself does not depend on it.
            let _ = file.lock();
            // Before it was locked another save may have taken it for a leftover.
            let here = file.metadata().map_err(refused)?.ino();
            if fs::metadata(&path).is_ok_and(|named| named.ino() == here) {
                break (path, file);
            }
        };
        let out = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Part { path, out, hash: Sha256::new(), tail: Vec::new(), bytes: 0, begun: 0 })
    }

    fn take(&mut self, blob: &[u8]) -> Result<()> {
        let out = self.out.as_mut().expect("a part is written before it is finished");
        let failed = |error: std::io::Error| write_failed(&self.path, &error);
        out.write_all(blob).map_err(failed)?;
        self.bytes += blob.len() as u64;
        if self.bytes - self.begun >= BUFFER_BYTES as u64 {
            out.flush().map_err(failed)?;
            let range = (self.begun as i64, (self.bytes - self.begun) as i64);
            // Advice: where it is not taken, the sync at the end does all of it.
            let _ = posix_fadvise(out.get_ref(), range.0, range.1, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            self.begun = self.bytes;
        }
        self.tail.extend_from_slice(blob);
        let hashed = self.tail.len().saturating_sub(DIGEST_BYTES);
        self.hash.update(&self.tail[..hashed]);
        self.tail.drain(..hashed);
        Ok(())
    }

    /// Proves the content, makes it durable, and gives it its name.
    fn finish(mut self, target: &Path) -> Result<()> {
        let digest: [u8; DIGEST_BYTES] = self.hash.finalize_reset().into();
        let whole = self.bytes > DIGEST_BYTES as u64 && self.bytes % SECTOR_BYTES == DIGEST_BYTES as u64;
        if !whole || self.tail != digest {
            let why =
                if whole { "its SHA-256 is not the one that came with it" } else { "its end is missing" };
            return Err(Failure::new(
                Exit::Interrupted,
                "[SNAPSHOT_DAMAGED] the snapshot that arrived is not whole",
            )
            .with(Details {
                cause: why.into(),
                evidence: vec![format!("{} bytes arrived", self.bytes)],
                remedy: vec!["repeat the command; if it fails again, ask another member".into()],
                never: "do not keep the bytes as a backup: nothing was left in the file system".into(),
            }));
        }
        let out = self.out.take().expect("a part is finished once");
        let failed = |error: std::io::Error| write_failed(&self.path, &error);
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&self.path, target).map_err(failed)?;
        // From here on there is nothing to remove.
        self.path = PathBuf::new();
        let parent = directory_of(target);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| write_failed(parent, &error))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Half a backup helps nobody; one that cannot be removed is named by what failed before.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Interrupted, format!("could not write {} ({error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_save_left_goes_with_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("s.db");
        let path = |name: &str| dir.path().join(name);
        for name in
            ["s.db.4194999.part", "s.db.7.part", "other.db.7.part", "s.db.x.part", "s.db.part", "s.db"]
        {
            fs::write(path(name), "x").unwrap();
        }
        // One of them lives.
        let living = File::open(path("s.db.7.part")).unwrap();
        living.lock().unwrap();
        assert_eq!(clear_leftovers(&target), [path("s.db.4194999.part")]);
        drop(living);
        assert_eq!(clear_leftovers(&target), [path("s.db.7.part")]);
        assert_eq!(clear_leftovers(&target), Vec::<PathBuf>::new());
        for name in ["other.db.7.part", "s.db.x.part", "s.db.part", "s.db"] {
            assert!(path(name).exists(), "{name} is another's");
        }
        let part = Part::create(&target).unwrap();
        assert_eq!(clear_leftovers(&target), Vec::<PathBuf>::new(), "a save that lives keeps its bytes");
        drop(part);
    }

    /// Two containers save to one volume, and both are process 1.
    #[test]
    fn saves_of_one_process_number_do_not_share_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("s.db");
        let database = vec![7_u8; 1024];
        let digest: [u8; 32] = Sha256::digest(&database).into();
        let mut first = Part::create(&target).unwrap();
        first.take(&database[..600]).unwrap();
        first.out.as_mut().unwrap().flush().unwrap();
        let mut second = Part::create(&target).unwrap();
        assert_ne!(first.path, second.path);
        second.take(b"of the other").unwrap();
        first.take(&database[600..]).unwrap();
        first.take(&digest).unwrap();
        first.finish(&target).unwrap();
        assert!(fs::read(&target).unwrap() == [&database[..], &digest].concat());
        drop(second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn save(dir: &Path, blobs: &[&[u8]]) -> Result<()> {
        let target = dir.join("s.db");
        let mut part = Part::create(&target)?;
        for blob in blobs {
            part.take(blob)?;
        }
        part.finish(&target)
    }

    /// OP05.
    #[test]
    fn snapshot_saved_with_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            || fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
        let database = vec![7_u8; 1024];
        let digest: [u8; 32] = Sha256::digest(&database).into();
        for bad in
            [&[&database[..]][..], &[], &[&digest], &[&database, &digest[..31]], &[&database, &[0; 32]]]
        {
            assert_eq!(save(dir.path(), bad).unwrap_err().exit, Exit::Interrupted);
            assert_eq!(names(), Vec::<OsString>::new(), "nothing is left of a bad one");
        }
        // The digest may come with bytes of the database, or in parts.
        let joined = [&database[..], &digest].concat();
        for good in [&[&joined[..]][..], &[&joined[..1040], &joined[1040..]], &[&database, &digest]] {
            save(dir.path(), good).unwrap();
            assert_eq!(fs::read(dir.path().join("s.db")).unwrap(), joined);
            assert_eq!(names(), ["s.db"]);
        }
        save(dir.path(), &[b"x"]).unwrap_err();
        assert_eq!(
            fs::read(dir.path().join("s.db")).unwrap(),
            joined,
            "the old one stays when the new one is bad"
        );
    }
}
