//! A member whose wall clock is wrong by as much as a test wants: a shim before the C library, built with the compiler that links our own
//! programs. The monotonic clock goes as it does.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use super::Member;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(clock, now);
    const char *wrong = getenv("CAIRN_TESTS_CLOCK_WRONG_BY");
    if (done == 0 && clock == CLOCK_REALTIME && wrong) now->tv_sec += atol(wrong);
    return done;
}
"#;

/// From the next start. Files are kept in `dir`.
pub fn set(member: &mut Member, dir: &Path, wrong_by_seconds: i64) -> Result<()> {
    let (source, shim) = (dir.join("clock.c"), dir.join("clock.so"));
    if !shim.exists() {
        fs::write(&source, SHIM)?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&shim, &source])
            .arg("-ldl")
            .output()?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    }
    member.clear_env();
    member.add_env("LD_PRELOAD", shim);
    member.add_env("CAIRN_TESTS_CLOCK_WRONG_BY", wrong_by_seconds.to_string());
    Ok(())
}
