//! The data directory: its layout, its lock, and how small files in it are replaced.
//!
//! ```text
//! <data-dir>/LOCK             held by the process that uses the directory; says who that is
//! <data-dir>/member/wal/      the log, unless it has a directory of its own
//! <data-dir>/member/state/    the state store
//! <data-dir>/member/snap/     snapshots on their way in or out
//! ```
//!
//! Not here: what the identity of a member is and whether it fits (daemon), the contents of the directories.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How long `data-dir-lock-wait` is by default: enough for a predecessor that is just exiting, short enough to be noticed.
pub const LOCK_WAIT_DEFAULT: Duration = Duration::from_secs(5);

/// Between two looks at a lock that is held. Locks cannot be waited for with a deadline.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Of a LOCK file, no more than this is read: a command line has a limit of about 2 MiB, but what helps the operator is at its start.
const HOLDER_BYTES_MAX: u64 = 64 * 1024;

/// Only the owner may look into a data directory.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A data directory that this process alone may use, for as long as the value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    wal: PathBuf,
    holder: Holder,
    _lock: File,
}

/// The process that uses a data directory, as it says itself in the LOCK file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub host: String,
    /// Of the kernel: with another one here, the holder ran before the last reboot, or on another machine.
    pub boot_id: String,
    /// Seconds since the epoch.
    pub started_at: u64,
    pub argv: Vec<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { pid, host, boot_id, started_at, argv } = self;
        write!(
            f,
            "pid {pid} on host {host} (boot {boot_id}, started at unix time {started_at}): {}",
            argv.join(" ")
        )
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {} is in use by {}", path.display(), holder_text(holder.as_deref()))]
    Busy {
        path: PathBuf,
        /// None when the LOCK file does not say.
        holder: Option<Box<Holder>>,
        waited: Duration,
    },
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn holder_text(holder: Option<&Holder>) -> String {
    holder.map_or("a process that its LOCK file does not name".to_owned(), |holder| holder.to_string())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    move |source| DataDirError::Io { action, path: path.to_owned(), source }
}

impl DataDir {
    /// Creates the directory and its layout where missing, and takes the lock, waiting for it at most `lock_wait`.
    ///
    /// The log's own directory is made by [`crate::wal::Wal::create`], so its absence says that the member has not been born.
    pub fn open_or_create(
        path: &Path,
        wal_dir: Option<&Path>,
        lock_wait: Duration,
    ) -> Result<DataDir, DataDirError> {
        let data_dir = DataDir::lock(path, wal_dir, lock_wait)?;
        for dir in [data_dir.member(), data_dir.state(), data_dir.snap(), parent_of(data_dir.wal())] {
            create_dirs_durably(&dir)?;
        }
        Ok(data_dir)
    }

    /// The same without the layout: a first start builds `member/` aside and gives it its name when it is whole.
    pub fn lock(path: &Path, wal_dir: Option<&Path>, lock_wait: Duration) -> Result<DataDir, DataDirError> {
        let (lock, holder) = loop {
            create_dirs_durably(path)?;
            if let Some(taken) = acquire(path, lock_wait)? {
                break taken;
            }
        };
        let wal = wal_dir.map_or_else(|| path.join("member/wal"), Path::to_owned);
        Ok(DataDir { path: path.to_owned(), wal, holder, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn member(&self) -> PathBuf {
        self.path.join("member")
    }

    pub fn wal(&self) -> &Path {
        &self.wal
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("member/state")
    }

    pub fn snap(&self) -> PathBuf {
        self.path.join("member/snap")
    }

    /// Ourselves, as others read it in the LOCK file.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }
}

/// Takes `<dir>/LOCK`. The lock belongs to the open file: it ends with the process, however that ends. `None`: the file has lost its name
/// meanwhile, since a start that was refused takes away the lock that it made; whoever comes next would make another one.
fn acquire(dir: &Path, wait: Duration) -> Result<Option<(File, Holder)>, DataDirError> {
    let path = dir.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(failed("open", &path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            Err(TryLockError::WouldBlock) => {
                let waited = begun.elapsed();
                if waited >= wait {
                    let holder = read_holder(&mut file).map(Box::new);
                    return Err(DataDirError::Busy { path: dir.to_owned(), holder, waited });
                }
                std::thread::sleep(LOCK_POLL.min(wait - waited));
            }
        }
    }
    if !is_named(&file, &path).map_err(failed("look at", &path))? {
        return Ok(None);
    }
    // A file, not a rename: the lock is on this very file. A reader who comes in between sees no holder, which it can live with.
    let holder = Holder::this_process();
    let text = serde_json::to_vec(&holder).map_err(|error| failed("write", &path)(error.into()))?;
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(&text))
        .map_err(failed("write", &path))?;
    Ok(Some((file, holder)))
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let of = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match std::fs::metadata(path) {
        Ok(named) => Ok(of(named) == of(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(HOLDER_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

impl Holder {
    fn this_process() -> Holder {
        let host =
            nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into());
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let argv = without_secrets(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()));
        Holder { pid: std::process::id(), host, boot_id: boot_id.trim().to_owned(), started_at, argv }
    }
}

/// Creates a directory that only its owner may enter; one that exists is left as it is.
pub fn create_dir_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other,
    }
}

/// Creates a directory and its missing ancestors, each of them durable in its parent.
fn create_dirs_durably(dir: &Path) -> Result<(), DataDirError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = parent_of(dir);
    create_dirs_durably(&parent)?;
    create_dir_private(dir).map_err(failed("create", dir))?;
    fsync_dir(&parent).map_err(failed("sync directory", &parent))
}

/// The directory that `path` is in; of a bare name, the current one.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

/// Makes creations, renames and deletions in `dir` durable.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces `path` with `bytes`: after a crash at any point it holds either all of the old or all of the new content.
///
/// One writer at a time: the temporary name is fixed, so that leftovers do not pile up.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().and_then(OsStr::to_str);
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a file needs a name"))?;
    let temporary = path.with_file_name(format!("{name}.tmp"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, path)) {
        // A half-written file helps nobody, and on a full disk its room does.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    fsync_dir(&parent_of(path))
}

/// The command line for people: values of flags that are secrets, and user information in URLs, are left out. The lock file is readable
/// by whoever may read the directory, and is copied into refusals.
fn without_secrets(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let is_secret = |flag: &str| ["password", "-user", "auth-token"].iter().any(|word| flag.contains(word));
    let mut hide_next = false;
    let shown = arguments.map(|argument| {
        if std::mem::take(&mut hide_next) {
            return "…".to_owned();
        }
        let flag = argument.split('=').next().unwrap_or_default();
        if flag.starts_with('-') && is_secret(flag) {
            hide_next = !argument.contains('=');
            return if hide_next { argument } else { format!("{flag}=…") };
        }
        let url = argument.find("://").zip(argument.rfind('@'));
        match url {
            Some((scheme, at)) if at > scheme => format!("{}…{}", &argument[..scheme + 3], &argument[at..]),
            _ => argument,
        }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_holder_of_the_lock_is_shown_without_its_secrets() {
        let given = [
            "cairnd",
            "--name=n1",
            "--discovery-password=hunter2",
            "--discovery-user",
            "root:hunter2",
            "--discovery=https://root:hunter2@h/t",
        ];
        let shown = super::without_secrets(given.into_iter().map(str::to_owned)).join(" ");
        assert_eq!(
            shown,
            "cairnd --name=n1 --discovery-password=… --discovery-user … --discovery=https://…@h/t"
        );
    }
}
