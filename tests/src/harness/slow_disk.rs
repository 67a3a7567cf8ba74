//! A disk whose syncs hang as long as a test wants: a shim before the C library, built with the compiler that links our own programs,
//! holds every fsync and fdatasync of a member while a file stands at its gate. Writes go through, as they do to a real page cache.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{Member, shim};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_at_gate(void) {
    const char *gate = getenv("CAIRN_TESTS_GATE");
    while (gate && access(gate, F_OK) == 0) usleep(5000);
}

int fsync(int fd) {
    wait_at_gate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    wait_at_gate();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"#;

/// The gate of one member.
pub struct SlowDisk {
    gate: PathBuf,
}

impl SlowDisk {
    /// Before the member is spawned. Files are kept in `dir`.
    pub fn of(member: &mut Member, dir: &Path) -> Result<SlowDisk> {
        let shim = shim::build(dir, "gate", SHIM)?;
        let gate = dir.join(format!("{}.gate", member.name));
        member.add_env("LD_PRELOAD", &shim);
        member.add_env("CAIRN_TESTS_GATE", &gate);
        Ok(SlowDisk { gate })
    }

    /// From now on no sync ends.
    pub fn hang(&self) -> Result<()> {
        Ok(fs::write(&self.gate, [])?)
    }

    pub fn go_on(&self) -> Result<()> {
        Ok(fs::remove_file(&self.gate)?)
    }
}

impl Drop for SlowDisk {
    /// A member that waits at its gate could not be stopped in order.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.gate);
    }
}
