//! Verbs that look and do not start anything: nothing is written, no port is opened, no lock is taken. What they refuse is refused as a
//! start would.

pub mod config;
pub mod convert;
mod directory;
pub mod doctor;
mod holder;
pub mod identity;
mod report;

/// `--version`: cairn's own version first, then the API level that tools look for.
pub fn version() -> String {
    format!("cairnd {}\netcd Version: {}\n", env!("CARGO_PKG_VERSION"), types::limits::ETCD_VERSION)
}

/// For programs: with a line end, since it ends a program's output.
fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string()) + "\n"
}
