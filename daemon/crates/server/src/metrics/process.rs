//! What the operating system says about this process, read when asked. Missing values are left out rather than guessed.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeValLike,
};

use super::text;

/// `/proc` counts start times in ticks of a hundredth of a second on every architecture Linux offers to programs (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Descriptors this process may open.
pub(crate) fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

pub(super) fn render(out: &mut String) {
    let open = open_descriptors();
    let limit = descriptor_limit();
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let seconds = micros as f64 / 1e6;
        text::single(out, "process_cpu_seconds_total", "counter", "CPU time used, in seconds.", seconds);
    }
    let gauges = [
        ("os_fd_limit", "Descriptors that may be open.", limit),
        ("os_fd_used", "Descriptors in use.", open),
        ("process_max_fds", "Descriptors that may be open.", limit),
        ("process_open_fds", "Open descriptors.", open),
        ("process_resident_memory_bytes", "Resident memory.", status_bytes("VmRSS:")),
        ("process_virtual_memory_bytes", "Virtual memory.", status_bytes("VmSize:")),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            text::single(out, name, "gauge", help, value);
        }
    }
    if let Some(start) = start_time() {
        let seconds = start.as_secs_f64();
        text::single(out, "process_start_time_seconds", "gauge", "Start of the process, unix time.", seconds);
    }
}

fn open_descriptors() -> Option<u64> {
    // One of them is the directory being read.
    fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1))
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Read once: it does not change, and the boot time of a container's host may be reported with jitter.
fn start_time() -> Option<Duration> {
    static START: OnceLock<Option<Duration>> = OnceLock::new();
    *START.get_or_init(|| {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program may contain anything; the fields begin behind its last parenthesis with number 3.
        let fields = &stat[stat.rfind(')')? + 1..];
        let ticks: f64 = fields.split_whitespace().nth(22 - 3)?.parse().ok()?;
        let age = Duration::try_from_secs_f64(uptime - ticks / TICKS_PER_SECOND).ok()?;
        SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(age)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_there_and_plausible() {
        let mut out = String::new();
        render(&mut out);
        let value = |name: &str| -> f64 {
            let prefix = format!("{name} ");
            out.lines().find_map(|line| line.strip_prefix(&prefix)).expect(name).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let start = value("process_start_time_seconds");
        assert!(start <= now + 1.0 && start > now - 7.0 * 86400.0, "started at {start}, now {now}");
    }
}
