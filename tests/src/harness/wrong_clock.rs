//! A member whose wall clock is wrong by as much as a test wants: a shim before the C library, built with the compiler that links our own
//! programs. The monotonic clock goes as it does.

use std::path::Path;

use anyhow::Result;

use super::{Member, shim};

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
    let shim = shim::build(dir, "clock", SHIM)?;
    member.clear_env();
    member.add_env("LD_PRELOAD", shim);
    member.add_env("CAIRN_TESTS_CLOCK_WRONG_BY", wrong_by_seconds.to_string());
    Ok(())
}
