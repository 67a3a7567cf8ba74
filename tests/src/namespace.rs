//! File systems of a size, for tests of full disks. A test that needs one runs itself again in a mount namespace of its own, so that
//! nothing it mounts is seen by others or outlives it.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Set for the second run, which is inside.
const INSIDE: &str = "CAIRN_TESTS_IN_NAMESPACE";

/// True: go on, this process may mount. False: the test was run in a process of its own and passed there, or it cannot be run here,
/// which was said on stderr. `test` is its full name, as `--exact` takes it.
pub fn entered(test: &str) -> Result<bool> {
    if inside() {
        return Ok(true);
    }
    // Root needs no user namespace, and some systems forbid them to others.
    let Some(flags) = ["-m", "-Urm"].into_iter().find(|flags| can_mount(flags)) else {
        // Past the capture of the test runner: nobody shall take this for a pass.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: neither `unshare -m` nor `unshare -Urm` may mount a tmpfs here"
        );
        return Ok(false);
    };
    let output = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .context("run unshare")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}{err}");
    if !output.status.success() || !out.contains("1 passed") {
        bail!("{test} failed in its namespace: {}", output.status);
    }
    Ok(false)
}

/// Whether this process is the second run.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn can_mount(flags: &str) -> bool {
    let mount = Command::new("unshare")
        .args([flags, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /tmp"])
        .stdin(Stdio::null())
        .output();
    mount.is_ok_and(|output| output.status.success())
}

/// An empty file system of this size on a new directory. Only after [`entered`] said so.
pub fn mount(at: &Path, size_mib: u64) -> Result<()> {
    assert!(inside(), "mounts are made in a namespace of the test's own");
    std::fs::create_dir_all(at)?;
    let size = format!("size={size_mib}m");
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output()?;
    if !output.status.success() {
        bail!("mount a tmpfs on {}: {}", at.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
