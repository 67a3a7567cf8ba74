//! The index checkpoint file: bytes that the state machine made and alone understands, saved so that a crash leaves the old file or
//! the new one. It only saves time at start, so a file that is missing or bad is a reason to rebuild the index, never to refuse.
//!
//! ```text
//! "cairnckp" | BE32 version 1 | payload | BE64 payload length | BE32 CRC-32C of the payload
//! ```
//!
//! The length and checksum come last because the payload is streamed and its size is known only at its end.
//!
//! Not here: whether the checkpoint fits the store (its position is inside the payload).

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "checkpoint";
const TEMP: &str = "checkpoint.tmp";
const MAGIC: &[u8; 8] = b"cairnckp";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
const TRAILER_BYTES: usize = 12;
/// One write call for this much of a stream of small pieces.
const BUFFER_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct CheckpointError {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// What was found. `Bad` is worth a line in the log; the next save replaces the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    Missing,
    Bad { path: PathBuf, why: String },
    Payload(Vec<u8>),
}

impl Loaded {
    /// The payload if there is one. Reports a bad file in the log.
    pub fn payload(self) -> Option<Vec<u8>> {
        match self {
            Loaded::Payload(payload) => Some(payload),
            Loaded::Missing => None,
            Loaded::Bad { path, why } => {
                tracing::warn!(path = %path.display(), why, "index checkpoint ignored, the index is rebuilt from the store");
                None
            }
        }
    }
}

/// Saves what `produce` writes as `<dir>/checkpoint`. On any error the old file is as it was.
pub fn save(
    dir: &Path,
    produce: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let temp = dir.join(TEMP);
    let path = dir.join(FILE);
    let at = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError { operation, path, source }
    };
    let written = write_all(&temp, produce).map_err(at("write", &temp));
    if let Err(error) = written {
        // What is left of it would only take space, perhaps the space whose lack was the error.
        fs::remove_file(&temp).ok();
        return Err(error);
    }
    fs::rename(&temp, &path).map_err(at("replace", &path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync directory", dir))
}

fn write_all(temp: &Path, produce: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(temp)?);
    file.write_all(MAGIC)?;
    file.write_all(&VERSION.to_be_bytes())?;
    let mut payload = Summed { inner: &mut file, bytes: 0, crc: 0 };
    produce(&mut payload)?;
    let (bytes, crc) = (payload.bytes, payload.crc);
    file.write_all(&bytes.to_be_bytes())?;
    file.write_all(&crc.to_be_bytes())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Reads `<dir>/checkpoint`. Errors are those of the disk; a file that is not a whole checkpoint is [`Loaded::Bad`].
pub fn load(dir: &Path) -> Result<Loaded, CheckpointError> {
    let path = dir.join(FILE);
    let at = |source| CheckpointError { operation: "read", path: path.clone(), source };
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(at)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Loaded::Missing),
        Err(error) => return Err(at(error)),
    };
    Ok(match payload_len(&bytes) {
        Ok(len) => {
            // In place: the payload may be hundreds of megabytes.
            bytes.truncate(HEADER_BYTES + len);
            bytes.drain(..HEADER_BYTES);
            Loaded::Payload(bytes)
        }
        Err(why) => Loaded::Bad { path, why },
    })
}

/// Removes the checkpoint, for a store whose content was replaced. Missing is fine.
pub fn remove(dir: &Path) -> Result<(), CheckpointError> {
    let path = dir.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(CheckpointError { operation: "remove", path, source: error })
        }
        _ => Ok(()),
    }
}

fn payload_len(bytes: &[u8]) -> Result<usize, String> {
    if bytes.len() < HEADER_BYTES + TRAILER_BYTES {
        return Err(format!("{} bytes are too few", bytes.len()));
    }
    if &bytes[..8] != MAGIC {
        return Err("not a checkpoint".to_owned());
    }
    let version = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(format!("version {version}, known is {VERSION}"));
    }
    let (body, trailer) = bytes.split_at(bytes.len() - TRAILER_BYTES);
    let payload = &body[HEADER_BYTES..];
    let len = u64::from_be_bytes(trailer[..8].try_into().expect("eight bytes"));
    if len != payload.len() as u64 {
        return Err(format!("{} bytes of payload where {len} were written", payload.len()));
    }
    let crc = u32::from_be_bytes(trailer[8..].try_into().expect("four bytes"));
    if crc != crc32c::crc32c(payload) {
        return Err("checksum mismatch".to_owned());
    }
    Ok(payload.len())
}

struct Summed<'a, W> {
    inner: &'a mut W,
    bytes: u64,
    crc: u32,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(dir: &Path, payload: &[u8]) {
        save(dir, |out| payload.chunks(3).try_for_each(|piece| out.write_all(piece))).unwrap();
    }

    #[test]
    fn what_was_saved_is_loaded_and_the_last_save_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), Loaded::Missing);
        for payload in [&b"first"[..], b"", b"and a longer third one"] {
            saved(dir.path(), payload);
            assert_eq!(load(dir.path()).unwrap(), Loaded::Payload(payload.to_vec()));
        }
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Loaded::Missing);
    }

    #[test]
    fn a_failed_save_keeps_the_old_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path(), b"old");
        let failed = save(dir.path(), |out| {
            out.write_all(b"half of the n")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        });
        assert!(failed.is_err());
        assert!(!dir.path().join(TEMP).exists(), "the space is given back");
        assert_eq!(load(dir.path()).unwrap(), Loaded::Payload(b"old".to_vec()));
    }

    /// A corrupt checkpoint costs a rebuild, not the start: every single-byte change and every cut is noticed and none is fatal.
    #[test]
    fn any_change_or_cut_is_reported_and_ignored() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path(), b"payload of the index");
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(load(dir.path()).unwrap(), Loaded::Bad { .. }), "byte {at} changed");
            fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(load(dir.path()).unwrap(), Loaded::Bad { .. }), "cut at {at}");
        }
        assert_eq!(load(dir.path()).unwrap().payload(), None);
        saved(dir.path(), b"next");
        assert_eq!(load(dir.path()).unwrap().payload().unwrap(), b"next");
    }
}
