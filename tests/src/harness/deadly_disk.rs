//! A process that is killed before a chosen step of the writes that make a member: a shim before the C library counts what is done to
//! identity files, to the note of a replacement and to the directory `member` under its names, and ends the process with SIGKILL instead of doing the step that was
//! asked for. So every state of the disk that a kill can leave between two system calls is met by number.
//!
//! Not here: what a power cut leaves (the model of the log and of the store), and writes of the log and the store themselves.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{Member, shim};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long steps;

static int counts(const char *path) {
    const char *under = getenv("CAIRN_TESTS_DEADLY_UNDER");
    if (!under || strncmp(path, under, strlen(under)) != 0) return 0;
    const char *rest = path + strlen(under);
    if (*rest == 0) return 1;
    if (strncmp(rest, "/replace.json", 13) == 0) return 1;
    if (*rest != '/' || strncmp(rest, "/member", 7) != 0) return 0;
    const char *base = strrchr(path, '/') + 1;
    return base == rest + 1 || strncmp(base, "identity.json", 13) == 0;
}

static void step(const char *what, const char *path) {
    if (!counts(path)) return;
    const char *at = getenv("CAIRN_TESTS_DEADLY_STEP");
    if (!at || atomic_fetch_add(&steps, 1) + 1 != atol(at)) return;
    const char *note = getenv("CAIRN_TESTS_DEADLY_NOTE");
    int fd = note ? (int)syscall(SYS_openat, AT_FDCWD, note, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    if (fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s", what, path + strlen(getenv("CAIRN_TESTS_DEADLY_UNDER")));
        syscall(SYS_write, fd, line, (size_t)length);
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void step_at(const char *what, int dir, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    if (path[0] == '/' || dir == AT_FDCWD) { step(what, path); return; }
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t length = readlink(link, whole, PATH_MAX);
    if (length < 0) return;
    snprintf(whole + length, PATH_MAX, "/%s", path);
    step(what, whole);
}

static void step_fd(const char *what, int fd) {
    char whole[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return;
    whole[length] = 0;
    step(what, whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list list; \
            va_start(list, flags); \
            mode = va_arg(list, mode_t); \
            va_end(list); \
        } \
        if (flags & O_CREAT) step("create", path); \
        return NEXT(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) { step("mkdir", path); return NEXT(mkdir)(path, mode); }
int rmdir(const char *path) { step("rmdir", path); return NEXT(rmdir)(path); }
int unlink(const char *path) { step("unlink", path); return NEXT(unlink)(path); }
int rename(const char *from, const char *to) { step("rename to", to); return NEXT(rename)(from, to); }
int link(const char *from, const char *to) { step("link", to); return NEXT(link)(from, to); }

int unlinkat(int dir, const char *path, int flags) {
    step_at("unlink", dir, path);
    return NEXT(unlinkat)(dir, path, flags);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    step_at("link", to_dir, to);
    return NEXT(linkat)(from_dir, from, to_dir, to, flags);
}

ssize_t write(int fd, const void *bytes, size_t length) { step_fd("write", fd); return NEXT(write)(fd, bytes, length); }
int fsync(int fd) { step_fd("sync", fd); return NEXT(fsync)(fd); }
"#;

/// One member's end.
pub struct DeadlyDisk {
    note: PathBuf,
}

impl DeadlyDisk {
    /// Before the member is spawned: it will be killed before step number `step`, counted from 1. Files are kept in `dir`.
    pub fn kill_before(step: usize, member: &mut Member, dir: &Path) -> Result<DeadlyDisk> {
        let shim = shim::build(dir, "deadly", SHIM)?;
        let note = dir.join(format!("{}.step", member.name));
        let _ = fs::remove_file(&note);
        member.clear_env();
        member.add_env("LD_PRELOAD", shim);
        member.add_env("CAIRN_TESTS_DEADLY_UNDER", member.data_dir.clone());
        member.add_env("CAIRN_TESTS_DEADLY_STEP", step.to_string());
        member.add_env("CAIRN_TESTS_DEADLY_NOTE", &note);
        Ok(DeadlyDisk { note })
    }

    /// What the process was about to do when it was killed, if it was.
    pub fn step(&self) -> Option<String> {
        fs::read_to_string(&self.note).ok()
    }
}
