//! Small libraries in C that stand between a process and its system calls (LD_PRELOAD). Not here: what they do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// The library `name` of this source, built once per directory.
pub fn build(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let (source, shim) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.so")));
    if !shim.exists() {
        fs::write(&source, text)?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&shim, &source])
            .arg("-ldl")
            .output()?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(shim)
}
