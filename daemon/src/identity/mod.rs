//! Who this data directory says the member is: the identity file, and its comparison with the settings before any socket opens.
//!
//! In etcd identity is a function of the flags. Here the directory remembers it, and a contradiction is a refusal that changes nothing
//! on disk.

pub mod compare;
mod file;
pub mod host;
mod keeper;
mod record;
pub mod remedy;

pub use ::identity::Unique;
pub use file::{FileError, IDENTITY_FILE, PREVIOUS_FILE, read, read_previous, sync_dir, write, write_into};
pub use keeper::{Keeper, clear_unborn_wal_dir};
pub use record::RESTORE;
pub use record::{CleanStop, FORMAT, Identity, KnownMember, Origin, Replaced, State};

#[cfg(test)]
pub use record::tests::sample;

/// From the kernel's randomness; its absence is an I/O error. Never derived from the host: copies of a machine would share it.
pub fn random() -> std::io::Result<Unique> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(Unique::from_bytes(bytes))
}
