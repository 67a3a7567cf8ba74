//! Reading and replacing the identity file. A reader sees the old file or the new one, never a mix; the old one stays beside it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use storage::data_dir::atomic_write;

use super::Identity;

pub const IDENTITY_FILE: &str = "identity.json";
pub const PREVIOUS_FILE: &str = "identity.json.prev";
const NEXT_FILE: &str = "identity.json.tmp";

/// Larger is not ours: an identity with a hundred members has 20 kB.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub enum FileError {
    Io(io::Error),
    /// The bytes are there but cannot be believed; says why.
    Damaged(String),
}

/// The identity in `dir`, or None where there is no such file.
pub fn read(dir: &Path) -> Result<Option<Identity>, FileError> {
    read_named(dir, IDENTITY_FILE)
}

/// The one before, for messages alone: it is behind what this member has promised since.
pub fn read_previous(dir: &Path) -> Option<Identity> {
    read_named(dir, PREVIOUS_FILE).ok().flatten()
}

fn read_named(dir: &Path, name: &str) -> Result<Option<Identity>, FileError> {
    let path = dir.join(name);
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            return Err(FileError::Damaged(format!("{} bytes long", meta.len())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::Io(error)),
    }
    let bytes = fs::read(&path).map_err(FileError::Io)?;
    Identity::decode(&bytes).map(Some).map_err(FileError::Damaged)
}

/// Writes a first identity into a directory that does not count yet; synced.
pub fn write_into(dir: &Path, identity: &Identity) -> io::Result<()> {
    let mut file = create(&dir.join(IDENTITY_FILE))?;
    file.write_all(&identity.encode())?;
    file.sync_all()?;
    sync_dir(dir)
}

/// Replaces the identity: new file aside and synced, old one kept as the previous, then the rename that counts, then the directory.
pub fn write(dir: &Path, identity: &Identity) -> io::Result<()> {
    let next = dir.join(NEXT_FILE);
    let current = dir.join(IDENTITY_FILE);
    let mut file = create(&next)?;
    file.write_all(&identity.encode())?;
    file.sync_all()?;
    drop(file);
    let previous = dir.join(PREVIOUS_FILE);
    match fs::remove_file(&previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A second name for the current file: at no moment is there none under its own name.
    match fs::hard_link(&current, &previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // File systems without hard links.
            fs::copy(&current, &previous).map_err(|_| error)?;
        }
        _ => {}
    }
    fs::rename(&next, &current)?;
    sync_dir(dir)
}

/// The identity and its previous version, as they are, so that they can be put back.
#[derive(Debug)]
pub struct Files {
    current: Vec<u8>,
    previous: Option<Vec<u8>>,
}

impl Files {
    pub fn read(dir: &Path) -> io::Result<Files> {
        let previous = match fs::read(dir.join(PREVIOUS_FILE)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Files { current: fs::read(dir.join(IDENTITY_FILE))?, previous })
    }

    pub fn put_back(&self, dir: &Path) -> io::Result<()> {
        atomic_write(&dir.join(IDENTITY_FILE), &self.current)?;
        match &self.previous {
            Some(bytes) => atomic_write(&dir.join(PREVIOUS_FILE), bytes),
            None => fs::remove_file(dir.join(PREVIOUS_FILE)).and_then(|()| sync_dir(dir)),
        }
    }
}

/// For its owner alone, like everything in a data directory.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::sample;

    #[test]
    fn replacing_keeps_the_previous_version() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = sample();
        assert!(matches!(read(dir.path()), Ok(None)));
        write_into(dir.path(), &identity).unwrap();
        for boot in 8..10 {
            identity.boot_seq = boot;
            write(dir.path(), &identity).unwrap();
        }
        assert_eq!(read(dir.path()).unwrap().unwrap().boot_seq, 9);
        assert_eq!(read_named(dir.path(), PREVIOUS_FILE).unwrap().unwrap().boot_seq, 8);
    }

    #[test]
    fn a_damaged_file_is_not_an_absent_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IDENTITY_FILE), b"{}").unwrap();
        assert!(matches!(read(dir.path()), Err(FileError::Damaged(_))));
    }
}
