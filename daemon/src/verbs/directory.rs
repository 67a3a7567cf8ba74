//! Whether this process may use the data directory as a start would: there or to be made, and everything in it to be read and written. And
//! whether it may read the files that settings name.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use crate::{
    bootstrap::facts,
    config::{
        Note, Settings, file,
        source::Values,
        table::{self, Setting, Status},
        value::Kind,
    },
    owner,
    refusal::{Refusal, User},
};

/// Of this many entries each is looked at. A state store has some hundred.
const ENTRIES_MAX: usize = 10_000;

pub enum Usable {
    /// A first start makes it.
    ToBeMade,
    /// With these permissions.
    There { mode: u32 },
}

pub fn usable(settings: &Settings) -> Result<Usable, Refusal> {
    let dir = &settings.storage.data_dir;
    let refused = |doing: &str, path: &Path, error: Errno| Refusal::io(doing, path, &io::Error::from(error));
    let meta = match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (missing, above) = first_missing(dir);
            return match access(&above, AccessFlags::W_OK | AccessFlags::X_OK) {
                Ok(()) => Ok(Usable::ToBeMade),
                Err(error) => Err(refused("create", &missing, error)),
            };
        }
        Err(error) => return Err(Refusal::io("read", dir, &error)),
        Ok(meta) if !meta.is_dir() => return Err(refused("create", dir, Errno::EEXIST)),
        Ok(meta) => meta,
    };
    let all = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    let file = AccessFlags::R_OK | AccessFlags::W_OK;
    let parts = [
        ("open", dir.clone(), all),
        ("open", dir.join("LOCK"), file),
        ("write the identity into", dir.join(facts::MEMBER_DIR), all),
        ("open", facts::wal_dir(settings), all),
    ];
    for (doing, path, wanted) in parts {
        match access(&path, wanted) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(refused(doing, &path, error)),
        }
    }
    // A start as another user leaves files behind that this one may not open.
    let mut left = vec![dir.join(facts::MEMBER_DIR), facts::wal_dir(settings)];
    let mut looked = 0;
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            looked += 1;
            if looked > ENTRIES_MAX {
                return Ok(Usable::There { mode: meta.permissions().mode() & 0o777 });
            }
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match access(&entry.path(), if is_dir { all } else { file }) {
                Err(error) if error != Errno::ENOENT => return Err(refused("open", &entry.path(), error)),
                _ if is_dir => left.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(Usable::There { mode: meta.permissions().mode() & 0o777 })
}

/// The files that settings name and this user may not read. A note each and no refusal: a start reads them when it needs them.
pub fn unreadable(values: &Values) -> Vec<Note> {
    let names_a_file = |setting: &&Setting| {
        setting.kind == Kind::Path
            && setting.status == Status::Active
            && !["config-file", "data-dir", "wal-dir"].contains(&setting.name)
    };
    let look = |setting: &Setting| {
        let path = Path::new(values.text(setting.name));
        let error = fs::File::open(path).err()?;
        (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
            let barrier = owner::barrier(path);
            Note {
                message: "a file of the settings cannot be read by this user",
                fields: vec![
                    (setting.name, path.display().to_string()),
                    ("what bars the way", format!("{} ({})", barrier.display(), owner::ownership(barrier))),
                    ("remedy", file::let_read(barrier, &User::of_this_process())),
                ],
            }
        })
    };
    table::settings().filter(names_a_file).filter_map(look).collect()
}

/// The first part of the path that has to be made, and what it is made in.
pub fn first_missing(dir: &Path) -> (PathBuf, PathBuf) {
    let mut missing = dir.to_owned();
    loop {
        let above = match missing.parent() {
            Some(above) if above.as_os_str().is_empty() => PathBuf::from("."),
            Some(above) => above.to_owned(),
            None => return (missing.clone(), missing),
        };
        if above.exists() {
            return (missing, above);
        }
        missing = above;
    }
}
