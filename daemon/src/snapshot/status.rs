//! `snapshot status`: what etcdutl 3.5 says of a file, in its formats.

use std::path::Path;

use dbfile::{Look, LookError};

use super::{damaged, open};
use crate::refusal::{Refusal, chain};

pub fn status(path: &Path, look: Look) -> Result<String, Refusal> {
    match dbfile::look(open(path)?) {
        Ok(status) => Ok(status.text(look)),
        Err(LookError::Io(error)) => Err(Refusal::io("read", path, &error)),
        Err(error) => Err(damaged(path, chain(&error))),
    }
}
