//! Where the programs under test come from.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the workspace")
}

/// `cairnd` or `cairnctl` from the release build, which is made once per test process unless `CAIRN_BIN_DIR` names a directory that
/// has them already.
pub fn cairn_binary(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let directory = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match directory {
        Ok(directory) => Ok(directory.join(name)),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("CAIRN_BIN_DIR") {
        return Ok(PathBuf::from(given));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", "cairnd", "-p", "cairnctl"])
        .current_dir(workspace())
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("the release build of cairnd and cairnctl failed");
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// The directory of the real etcd whose version begins with `version` ("3.5" finds 3.5.30). The error says how to get it.
pub fn real_etcd(version: &str) -> Result<PathBuf> {
    for (found, directory) in real_etcd_versions() {
        if found == version || found.starts_with(&format!("{version}.")) {
            return Ok(directory);
        }
    }
    bail!("no etcd {version} under target/real-etcd: run tests/tools/real-etcd")
}

/// Every version that was unpacked, oldest first.
pub fn real_etcd_versions() -> Vec<(String, PathBuf)> {
    let root = workspace().join("target/real-etcd");
    let Ok(entries) = std::fs::read_dir(&root) else { return Vec::new() };
    let mut versions: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.path().join("etcd").exists())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    versions.sort();
    versions
}
