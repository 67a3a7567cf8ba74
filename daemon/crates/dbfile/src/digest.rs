//! The SHA-256 that etcd's backup RPC sends after the database: 32 bytes at the end of the file, recognised by the length.
//!
//! Not here: the RPC.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

pub const DIGEST_BYTES: u64 = 32;
/// A database is a whole number of pages, and pages are multiples of this; 32 bytes more are a digest.
pub(crate) const SECTOR_BYTES: u64 = 512;
const CHUNK_BYTES: usize = 64 * 1024;

/// Passes bytes on and hashes them.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, hasher: Sha256::new() }
    }

    /// Digest of everything read through this.
    pub fn digest(self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.hasher.update(&out[..read]);
        Ok(read)
    }
}

/// Whether a file of this length ends in a digest.
pub fn has_digest(len: u64) -> bool {
    len % SECTOR_BYTES == DIGEST_BYTES
}

/// SHA-256 of the first `len` bytes.
pub fn sha256(file: &File, len: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let want = chunk.len().min(usize::try_from(len - at).unwrap_or(CHUNK_BYTES));
        file.read_exact_at(&mut chunk[..want], at)?;
        hasher.update(&chunk[..want]);
        at += want as u64;
    }
    Ok(hasher.finalize().into())
}

/// Appends the digest of the whole file, as `etcdctl snapshot save` stores it.
pub fn append_digest(file: &File) -> io::Result<[u8; 32]> {
    let len = file.metadata()?.len();
    let digest = sha256(file, len)?;
    file.write_all_at(&digest, len)?;
    Ok(digest)
}

/// `None`: the file carries no digest. `Some(false)`: it carries one that does not fit.
pub fn check_digest(file: &File) -> io::Result<Option<bool>> {
    let len = file.metadata()?.len();
    if !has_digest(len) {
        return Ok(None);
    }
    let mut stored = [0; DIGEST_BYTES as usize];
    file.read_exact_at(&mut stored, len - DIGEST_BYTES)?;
    Ok(Some(sha256(file, len - DIGEST_BYTES)? == stored))
}
