//! Facts about this host that the identity file records for people, and hashes.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use sha2::{Digest as _, Sha256};

use super::record::Host;

/// Where the directory is used now. What cannot be learned stays empty: nothing depends on it.
pub fn here(data_dir: &Path) -> Host {
    let meta = fs::metadata(data_dir).ok();
    let machine = fs::read_to_string("/etc/machine-id").ok().map(|id| id.trim().to_owned());
    Host {
        name: nix::unistd::gethostname()
            .ok()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        machine_id_sha256: machine.filter(|id| !id.is_empty()).map(|id| sha256_hex(&id)),
        path: fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf()).display().to_string(),
        device: meta.as_ref().map_or(0, |meta| meta.dev()),
        inode: meta.as_ref().map_or(0, |meta| meta.ino()),
    }
}

/// Names the lock of this directory: its file, on this kernel as long as it runs. None where that cannot be told.
pub fn seat(data_dir: &Path) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let lock = fs::metadata(data_dir.join("LOCK")).ok()?;
    Some(sha256_hex(&format!("{} {} {}", boot.trim(), lock.dev(), lock.ino())))
}

pub fn sha256_hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token may be a discovery URL with a password in it: the file and the log show it without.
pub fn redacted(token: &str) -> String {
    match (token.find("://"), token.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…{}", &token[..scheme + 3], &token[at..]),
        _ => token.to_owned(),
    }
}
