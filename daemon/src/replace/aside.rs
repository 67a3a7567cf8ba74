//! The directories of a member that lost its history get other names beside the old ones. Nothing is deleted. May be cut short and done
//! again.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use time::OffsetDateTime;
use tracing::info;
use types::MemberId;

use super::journal::{Journal, time_of};
use crate::{
    bootstrap::facts::{MEMBER_DIR, QUARANTINE},
    identity::{self, Identity, State},
    refusal::Refusal,
};

/// When directories were moved aside before, oldest first. What cannot be listed was not.
pub fn earlier(data_dir: &Path) -> Vec<OffsetDateTime> {
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut times: Vec<_> = names.filter_map(|name| time_of(name.strip_prefix(QUARANTINE)?)).collect();
    times.sort();
    times
}

/// Where `member` goes.
pub fn target(data_dir: &Path, journal: &Journal) -> PathBuf {
    data_dir.join(format!("{QUARANTINE}{}", journal.mark))
}

/// The identity of a member whose promises count.
pub fn counting(dir: &Path) -> Option<Identity> {
    let identity = identity::read(dir).ok().flatten()?;
    (!matches!(identity.state, State::Unborn | State::Registering)).then_some(identity)
}

pub fn move_aside(data_dir: &Path, wal_dir: Option<&Path>, journal: &Journal) -> Result<(), Refusal> {
    // The identity first: as long as it is in its place, nothing has happened yet.
    let member = data_dir.join(MEMBER_DIR);
    let to = target(data_dir, journal);
    if !to.exists() && is_of(&member, journal.old) {
        rename(&member, &to).map_err(|error| Refusal::io("move aside", &member, &error))?;
        info!(old_member_id = %journal.old, from = %member.display(), to = %to.display(), "replacement: the old directory is kept");
    }
    if let Some(wal_dir) = wal_dir.filter(|dir| is_of(dir, journal.old)) {
        let mut name = wal_dir.file_name().map_or_else(|| OsString::from("wal"), OsString::from);
        name.push(format!(".quarantine-{}", journal.mark));
        let beside = wal_dir.with_file_name(name);
        let moved = match rename(wal_dir, &beside) {
            // A mount point, or a directory that somebody else owns: what is in it moves instead.
            Err(error) if is_pinned(&error) => {
                let inside = wal_dir.join(format!("quarantine-{}", journal.mark));
                move_content(wal_dir, &inside).map(|()| inside)
            }
            renamed => renamed.map(|()| beside),
        };
        let to = moved.map_err(|error| Refusal::io("move aside", wal_dir, &error))?;
        info!(old_member_id = %journal.old, from = %wal_dir.display(), to = %to.display(), "replacement: the old log is kept");
    }
    Ok(())
}

fn is_of(dir: &Path, old: MemberId) -> bool {
    counting(dir).is_some_and(|identity| identity.member_id == old)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    identity::sync_dir(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn is_pinned(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ResourceBusy | CrossesDevices | PermissionDenied | ReadOnlyFilesystem)
}

/// The identity goes last: as long as it is there, the directory is the old member's and the move is done again.
fn move_content(dir: &Path, inside: &Path) -> io::Result<()> {
    storage::data_dir::create_dir_private(inside)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let is_quarantine = name.to_str().is_some_and(|name| name.starts_with("quarantine-"));
        if !is_quarantine && name != "lost+found" {
            names.push(name);
        }
    }
    names.sort_by_key(|name| name == identity::IDENTITY_FILE);
    for name in names {
        if name == identity::IDENTITY_FILE {
            identity::sync_dir(inside)?;
        }
        fs::rename(dir.join(&name), inside.join(&name))?;
    }
    identity::sync_dir(inside)?;
    identity::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Id;

    fn journal(old: MemberId) -> Journal {
        Journal::new(Id::RolledBack, old, time_of("20261122T174512Z").unwrap())
    }

    fn directory(dir: &Path, state: State) -> MemberId {
        fs::create_dir_all(dir).unwrap();
        let identity = Identity { state, ..identity::sample() };
        identity::write_into(dir, &identity).unwrap();
        fs::write(dir.join("0-0.wal"), b"promises").unwrap();
        identity.member_id
    }

    #[test]
    fn member_and_log_are_renamed_once_and_stay_whole() {
        let root = tempfile::tempdir().unwrap();
        let (data, wal) = (root.path().join("data"), root.path().join("wal"));
        let old = directory(&data.join("member"), State::Born);
        directory(&wal, State::Born);
        for _ in 0..2 {
            move_aside(&data, Some(&wal), &journal(old)).unwrap();
            let aside = data.join("member.quarantine-20261122T174512Z");
            assert_eq!(fs::read(aside.join("0-0.wal")).unwrap(), b"promises");
            assert!(!data.join("member").exists() && !wal.exists());
            assert!(root.path().join("wal.quarantine-20261122T174512Z/0-0.wal").exists());
        }
        assert_eq!(earlier(&data), [time_of("20261122T174512Z").unwrap()]);
        assert!(earlier(root.path()).is_empty(), "a log aside is no second replacement");
    }

    /// Cut short between log and directory, and when the new member is there already.
    #[test]
    fn only_what_is_the_old_members_moves() {
        let root = tempfile::tempdir().unwrap();
        let (data, wal) = (root.path().join("data"), root.path().join("wal"));
        let id = directory(&data.join("member"), State::Unborn);
        directory(&wal, State::Born);
        let other = MemberId(id.0 + 1);
        move_aside(&data, Some(&wal), &journal(other)).unwrap();
        assert!(data.join("member").exists() && wal.exists(), "another member's");
        move_aside(&data, Some(&wal), &journal(id)).unwrap();
        assert!(data.join("member").exists(), "nobody has seen it: the next start builds it anew");
        assert!(!wal.exists());
        let joined = Identity { member_id: other, state: State::Joining, ..identity::sample() };
        identity::write_into(&data.join("member"), &joined).unwrap();
        move_aside(&data, Some(&wal), &journal(id)).unwrap();
        assert!(data.join("member").exists(), "the new member's");
    }

    #[test]
    fn a_log_directory_that_cannot_be_renamed_is_emptied_into_itself() {
        let root = tempfile::tempdir().unwrap();
        let old = directory(root.path(), State::Born);
        let inside = root.path().join("quarantine-20261122T174512Z");
        fs::create_dir(&inside).unwrap();
        fs::rename(root.path().join("0-0.wal"), inside.join("0-0.wal")).unwrap();
        assert!(is_of(root.path(), old), "cut short: it is done again");
        move_content(root.path(), &inside).unwrap();
        assert!(inside.join("0-0.wal").exists() && inside.join(identity::IDENTITY_FILE).exists());
        assert!(!is_of(root.path(), old));
    }
}
