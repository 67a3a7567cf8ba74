//! What can go wrong with the state store, outside of single operations (those are [`StoreError`]).

use std::path::{Path, PathBuf};

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
            source => OpenError::Damaged { path, source },
        }
    }
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
