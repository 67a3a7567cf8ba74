//! What can go wrong with the state store, outside of single operations (those are [`StoreError`]).

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use state_machine::store::StoreError;

/// Why a state store could not be opened. Nothing was changed on disk except where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "state store {path} has format {found:?}, this version knows {known:?}: it was written by another version"
    )]
    UnknownFormat { path: PathBuf, found: String, known: &'static str },
    #[error("state store {path} is in use by another process")]
    Locked { path: PathBuf },
    #[error("{path} says that the state is in {named:?}, which {problem}")]
    Pointer { path: PathBuf, named: String, problem: &'static str },
    #[error(
        "{path} is missing while {count} state directories exist: restore it, with the name of the one to use"
    )]
    PointerLost { path: PathBuf, count: usize },
    #[error("state store {path} is damaged: {source}")]
    Damaged { path: PathBuf, source: fjall::Error },
    #[error("state store {path} is damaged: {what}")]
    Inconsistent { path: PathBuf, what: String },
}

impl OpenError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Io { operation, path, source }
    }

    pub(crate) fn fjall(path: &Path) -> impl FnOnce(fjall::Error) -> OpenError {
        let path = path.to_owned();
        move |source| match source {
            fjall::Error::Locked => OpenError::Locked { path },
            source => match refused_by_the_system(&source) {
                Some(source) => OpenError::Io { operation: "open", path, source },
                None => OpenError::Damaged { path, source },
            },
        }
    }
}

/// What says nothing of the bytes: who may not read them, or cannot, has no damaged state. What is missing or ends early is damage.
fn refused_by_the_system(error: &fjall::Error) -> Option<std::io::Error> {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let found = match error {
        fjall::Error::Io(found) | fjall::Error::Storage(fjall::LsmError::Io(found)) => found,
        _ => return None,
    };
    let says_nothing =
        matches!(found.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
            || matches!(
                found.raw_os_error().map(Errno::from_raw),
                Some(Errno::EIO | Errno::EMFILE | Errno::ENFILE)
            );
    says_nothing.then(|| std::io::Error::new(found.kind(), found.to_string()))
}

impl From<OpenError> for StoreError {
    fn from(source: OpenError) -> StoreError {
        StoreError { operation: "open state store", source: Box::new(source) }
    }
}

/// The writer stopped; every later call gets the same reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the state store has failed: {reason}")]
pub struct Failed {
    pub reason: String,
}

pub(crate) fn store_error<E>(operation: &'static str) -> impl FnOnce(E) -> StoreError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| StoreError { operation, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_read_the_state_has_no_damaged_one() {
        let open =
            |error: std::io::Error| OpenError::fjall(Path::new("/d"))(fjall::LsmError::Io(error).into());
        let by = |errno: Errno| open(errno.into());
        for errno in [Errno::EACCES, Errno::EROFS, Errno::ENOSPC, Errno::EIO, Errno::EMFILE] {
            let found = by(errno);
            assert!(
                matches!(&found, OpenError::Io { source, .. } if source.kind() == std::io::Error::from(errno).kind()),
                "{found:?}"
            );
        }
        for errno in [Errno::ENOENT, Errno::EINVAL, Errno::EISDIR] {
            assert!(matches!(by(errno), OpenError::Damaged { .. }), "{errno}");
        }
        let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        assert!(matches!(open(cut), OpenError::Damaged { .. }));
    }
}
