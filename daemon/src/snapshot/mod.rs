//! `cairnd snapshot status` and `cairnd snapshot restore`: what is in a backup, and a member's directory made out of one.
//!
//! Not here: taking a backup, which is asked of a running member (`cairnctl snapshot save`).

mod arguments;
mod restore;
mod status;

use std::{fs::File, io, path::Path};

use crate::{
    config::Surroundings,
    refusal::{Id, Refusal},
};

pub use arguments::{Order, parse};

/// Carries the order out; answers what is printed.
pub fn run(surroundings: &Surroundings, order: &Order) -> Result<String, Refusal> {
    match order {
        Order::Status { file, look } => status::status(file, *look),
        Order::Restore { file, how } => restore::restore(surroundings, file, how),
    }
}

fn open(path: &Path) -> Result<File, Refusal> {
    let refuse = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(Id::SnapshotMissing, "the snapshot file is not there")
            .evidence(path.display().to_string(), error.to_string())
            .remedy("name the file that cairnctl snapshot save (or etcdctl snapshot save) has written"),
        _ => Refusal::io("read", path, error),
    };
    // Before it is opened: opening a pipe waits for whoever writes into it.
    let kind = std::fs::metadata(path).map_err(|error| refuse(&error))?;
    if !kind.is_file() {
        return Err(Refusal::new(Id::SnapshotMissing, "the snapshot is not a regular file")
            .evidence(path.display().to_string(), "a directory, a device, a socket or a pipe")
            .remedy("name the file that cairnctl snapshot save (or etcdctl snapshot save) has written"));
    }
    File::open(path).map_err(|error| refuse(&error))
}

/// The file is there, but cannot be used.
fn damaged(path: &Path, why: impl Into<String>) -> Refusal {
    Refusal::new(Id::SnapshotDamaged, "the snapshot file cannot be used")
        .evidence(path.display().to_string(), why)
        .remedy("copy the file again from where it was saved, and compare its size")
        .remedy(
            "else take an older snapshot, or save a new one from a running member: cairnctl snapshot save",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = dir.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [dir.path(), &pipe, &socket, Path::new("/dev/null"), &dir.path().join("none")] {
            assert_eq!(open(path).unwrap_err().id, Id::SnapshotMissing, "{}", path.display());
        }
    }
}
