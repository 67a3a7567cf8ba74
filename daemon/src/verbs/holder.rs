//! Who uses a data directory, told without taking its lock: a member that is being started must not find it taken by a tool.
//!
//! The kernel lists the locks that this process may see. Where it lists none, the LOCK file is believed if the process it names runs with
//! the arguments it names.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use storage::data_dir::Holder;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::config::table::{self, Setting};

#[derive(Debug, PartialEq, Eq)]
pub enum Lock {
    /// With who held it last, where that is told.
    Free(Option<Box<Holder>>),
    Held {
        pid: u32,
        holder: Option<Box<Holder>>,
    },
    /// What was tried.
    Unknown(String),
}

/// A LOCK file is a line; what is longer is not ours.
const LOCK_BYTES_MAX: u64 = 64 * 1024;

pub fn look(data_dir: &Path) -> Lock {
    let path = data_dir.join("LOCK");
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Lock::Free(None);
        }
        Err(error) => return Lock::Unknown(format!("{}: {error}", path.display())),
    };
    let text = if meta.len() <= LOCK_BYTES_MAX { fs::read(&path).unwrap_or_default() } else { Vec::new() };
    let holder: Option<Box<Holder>> = serde_json::from_slice(&text).ok().map(Box::new);
    let lock = judge(&meta, holder);
    match lock {
        Lock::Free(Some(holder)) => Lock::Free(Some(without_secrets(holder))),
        Lock::Held { pid, holder } => Lock::Held { pid, holder: holder.map(without_secrets) },
        other => other,
    }
}

fn judge(meta: &fs::Metadata, holder: Option<Box<Holder>>) -> Lock {
    match fs::read_to_string("/proc/locks") {
        Ok(locks) => {
            match held_by(&locks, meta.dev(), meta.ino(), holder.as_ref().map(|holder| holder.pid)) {
                Some(pid) => Lock::Held { pid, holder: holder.filter(|holder| holder.pid == pid) },
                None => Lock::Free(holder),
            }
        }
        Err(error) => match holder {
            Some(holder) if runs(&holder) => Lock::Held { pid: holder.pid, holder: Some(holder) },
            Some(holder) if is_of_this_boot(&holder) => Lock::Free(Some(holder)),
            holder => Lock::Unknown(format!(
                "/proc/locks: {error}; the LOCK file names {}",
                holder.map_or("nobody".to_owned(), |holder| without_secrets(holder).to_string())
            )),
        },
    }
}

/// Arguments are shown as settings are: without passwords.
fn without_secrets(mut holder: Box<Holder>) -> Box<Holder> {
    let mut awaited = None;
    for arg in &mut holder.argv {
        if let Some(setting) = awaited.take() {
            *arg = Setting::shown(setting, arg);
        } else if let Some((name, value)) = arg.split_once('=') {
            if let Some(setting) = table::find(name.trim_start_matches('-')) {
                *arg = format!("{name}={}", setting.shown(value));
            }
        } else if arg.starts_with('-') {
            awaited =
                table::find(arg.trim_start_matches('-')).filter(|setting| !setting.kind.is_bool_style());
        }
    }
    holder
}

/// The process with an exclusive lock on the whole file. File systems of layers may show another device than the kernel's list does;
/// there the process that the file names is enough.
fn held_by(locks: &str, device: u64, inode: u64, named: Option<u32>) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // Who waits for a lock has an arrow in front of the kind.
        let [_, "FLOCK", _, "WRITE", pid, place, ..] = fields.as_slice() else { return None };
        let pid: u32 = pid.parse().ok()?;
        let mut parts = place.split(':');
        let major = u64::from_str_radix(parts.next()?, 16).ok()?;
        let minor = u64::from_str_radix(parts.next()?, 16).ok()?;
        let same_inode = parts.next()?.parse() == Ok(inode);
        let same_device = (major, minor) == (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        (same_inode && (same_device || named == Some(pid))).then_some(pid)
    })
}

fn is_of_this_boot(holder: &Holder) -> bool {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").is_ok_and(|id| id.trim() == holder.boot_id)
}

/// A process id is soon somebody else's, but not with the same arguments.
fn runs(holder: &Holder) -> bool {
    let Ok(line) = fs::read(format!("/proc/{}/cmdline", holder.pid)) else { return false };
    let argv = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let argv: Vec<String> = argv.collect();
    is_of_this_boot(holder) && argv.len() > holder.argv.len() && argv[..holder.argv.len()] == holder.argv[..]
}

impl Lock {
    pub fn is_held(&self) -> bool {
        matches!(self, Lock::Held { .. })
    }

    /// As one line.
    pub fn told(&self) -> String {
        match self {
            Lock::Free(None) => "nobody uses this directory".into(),
            Lock::Free(Some(last)) => format!("nobody uses this directory; the last was {}", shown(last)),
            Lock::Held { pid, holder: None } => format!("held by pid {pid}"),
            Lock::Held { holder: Some(holder), .. } => format!("held by {}", shown(holder)),
            Lock::Unknown(why) => format!("cannot be told ({why})"),
        }
    }
}

/// Who, since when, and with which arguments.
fn shown(holder: &Holder) -> String {
    let since =
        i64::try_from(holder.started_at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let since = since.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default();
    let earlier =
        if is_of_this_boot(holder) { "" } else { ", before this machine was last booted or on another one" };
    format!("pid {} on {}, started {since}{earlier}: {}", holder.pid, holder.host, holder.argv.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::data_dir::DataDir;

    #[test]
    fn the_holder_of_a_directory_is_found_without_taking_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()), Lock::Free(None));
        let held = DataDir::lock(dir.path(), None, std::time::Duration::ZERO).unwrap();
        let pid = std::process::id();
        assert!(matches!(look(dir.path()), Lock::Held { pid: found, holder: Some(_) } if found == pid));
        drop(held);
        assert!(matches!(look(dir.path()), Lock::Free(Some(last)) if last.pid == pid));
    }

    #[test]
    fn no_password_of_the_command_line_is_shown() {
        let argv = [
            "cairnd",
            "--discovery-password=secret",
            "--discovery-password",
            "secret",
            "--name=a",
            "--pre-vote",
            "x",
        ];
        let argv = argv.map(str::to_owned).to_vec();
        let holder = Holder { pid: 1, host: String::new(), boot_id: String::new(), started_at: 0, argv };
        let shown = without_secrets(Box::new(holder)).to_string();
        assert!(!shown.contains("secret") && shown.contains("--name=a --pre-vote x"), "{shown}");
    }

    #[test]
    fn the_kernels_list_is_read_with_and_without_a_device_that_fits() {
        let list = "1: POSIX  ADVISORY  READ 9 fe:00:77 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 14 fe:00:78 0 EOF\n";
        let device = nix::sys::stat::makedev(0xfe, 0);
        assert_eq!(held_by(list, device, 77, None), Some(12));
        assert_eq!(held_by(list, device, 79, Some(12)), None);
        assert_eq!(held_by(list, 5, 77, None), None);
        assert_eq!(held_by(list, 5, 77, Some(12)), Some(12), "another device, but the process that it names");
        assert_eq!(held_by("", device, 77, Some(12)), None);
    }
}
