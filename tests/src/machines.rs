//! Machines with systemd as their first process, on a network of their own: what a package installs is tried where it is used.
//!
//! A machine is a container over a copy-on-write view of this host's root, with services of the host masked. Its changes live in memory,
//! its mounts and its network in namespaces, so nothing outlives the test, however that ends. Needs root, systemd-nspawn and iproute2
//! (tests/tools/install). Not here: what is installed and asked (the stories), and load on the cluster.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Nothing that is waited for here takes longer on a machine four times slower than ours.
pub const PATIENCE: Duration = Duration::from_secs(90);

const BRIDGE: &str = "lan";

/// What a machine may change of the host's root, in memory.
const CHANGES_MAX: &str = "3g";

/// True when machines can be made here; else that was said on stderr, past the capture of the test runner.
pub fn possible(test: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !["systemd-nspawn", "ip", "nsenter", "setpriv"].into_iter().all(|tool| {
        Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output()
            .is_ok_and(|out| out.status.success())
    }) {
        "systemd-container and iproute2"
    } else {
        return true;
    };
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: machines need {missing}");
    false
}

/// The packages in a directory of their own, as version `version`.
pub fn packages(out: &Path, version: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let binary = crate::harness::cairn_binary("cairnd")?;
    let out = out.join(version);
    let built = Command::new(root.join("packaging/build"))
        .args(["--fast", "--no-dbgsym", "--deb", "--out"])
        .arg(&out)
        .env("CAIRN_BIN_DIR", binary.parent().context("a directory of binaries")?)
        .env("CAIRN_PACKAGE_VERSION", version)
        .output()?;
    ensure!(built.status.success(), "packaging/build failed: {}", String::from_utf8_lossy(&built.stderr));
    Ok(out)
}

/// A network without a way out: 10.99.0.0/24, machine `n` at `.n`. It is a process that holds a namespace until its input ends.
pub struct Lan {
    holder: Child,
    machines: u8,
}

impl Lan {
    pub fn new() -> Result<Lan> {
        let script = format!(
            "ip link set lo up && ip link add {BRIDGE} type bridge && ip addr add 10.99.0.254/24 dev {BRIDGE} && \
             ip link set {BRIDGE} up && echo up && exec cat"
        );
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "-n", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("make a network namespace")?;
        let mut line = String::new();
        let out = holder.stdout.as_mut().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        let lan = Lan { holder, machines: 0 };
        ensure!(line == "up\n", "the bridge of the network could not be made");
        Ok(lan)
    }

    /// A command of this host, with this network instead of the host's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.holder.id().to_string()).arg("-n").arg(program.as_ref());
        command.stdin(Stdio::null());
        command
    }

    /// Takes a machine's cable out, or puts it back.
    pub fn cut(&self, machine: &Machine, cut: bool) -> Result<()> {
        let to = if cut { "down" } else { "up" };
        // As systemd-nspawn names the host's end.
        done(self.command("ip").args(["link", "set", &format!("vb-{}", machine.name), to]))
    }

    /// Boots one more machine and waits until systemd says that it runs.
    pub fn boot(&mut self, name: &str) -> Result<Machine> {
        self.machines += 1;
        let address = format!("10.99.0.{}", self.machines);
        let scratch = tempfile::Builder::new().prefix("cairn-machine-").tempdir()?;
        let seed = scratch.path().join("seed");
        seed_of(&seed, name, &address)?;
        let work = scratch.path().join("work");
        std::fs::create_dir(&work)?;
        let script = format!(
            "set -e; mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd
             mount -t tmpfs -o size={CHANGES_MAX},mode=755 tmpfs \"$2\"; cd \"$2\"; mkdir up work root; cp -a \"$1/.\" up/
             mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
             # A machine that is restarted ends with 133, for whoever started it to start it again.
             boots=133; while [ $boots = 133 ]; do boots=0; systemd-nspawn --quiet --directory=root --boot --machine={name} --network-bridge={BRIDGE} \
               --register=no --keep-unit --console=pipe || boots=$?; done"
        );
        let log = std::fs::File::create(scratch.path().join("console"))?;
        let nspawn = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", "-t", &self.holder.id().to_string(), "-n"])
            .args([
                "unshare",
                "-m",
                "--propagation",
                "private",
                "-p",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["sh", "-c", &script, "sh"])
            .args([&seed, &work])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start systemd-nspawn")?;
        let machine = Machine { name: name.to_owned(), address, nspawn, scratch };
        machine.wait_until_booted("")?;
        // The index of all manual pages would be made anew with every package.
        machine.sh("rm -f /var/lib/man-db/auto-update")?;
        Ok(machine)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What stands on the machine's disk before its first boot.
fn seed_of(seed: &Path, name: &str, address: &str) -> Result<()> {
    let units = seed.join("etc/systemd/system");
    let network = seed.join("etc/systemd/network");
    for directory in [
        &units.join("multi-user.target.wants"),
        &units.join("network-online.target.wants"),
        &network,
        &seed.join("etc/systemd/journald.conf.d"),
        &seed.join("etc/systemd/system.conf.d"),
        &seed.join("usr/sbin"),
        &seed.join("var/log/journal"),
    ] {
        std::fs::create_dir_all(directory)?;
    }
    // As in an image that nobody booted yet.
    std::fs::write(seed.join("etc/machine-id"), "")?;
    std::fs::write(seed.join("etc/fstab"), "")?;
    std::fs::write(seed.join("etc/hostname"), format!("{name}\n"))?;
    std::fs::write(seed.join("etc/hosts"), format!("127.0.0.1 localhost\n{address} {name}\n"))?;
    std::fs::write(
        network.join("10-lan.network"),
        format!(
            "[Match]\nName=host0\n[Network]\nAddress={address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
    )?;
    std::fs::write(seed.join("etc/systemd/journald.conf.d/tests.conf"), "[Journal]\nStorage=persistent\n")?;
    // What is left of the tests' own commands would hold a restart up for long.
    std::fs::write(
        seed.join("etc/systemd/system.conf.d/tests.conf"),
        "[Manager]\nDefaultTimeoutStopSec=3s\n",
    )?;
    // Hosts that are containers themselves forbid packages to start services. A machine does not.
    std::fs::write(seed.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 0\n")?;
    std::fs::set_permissions(seed.join("usr/sbin/policy-rc.d"), std::fs::Permissions::from_mode(0o755))?;
    // What the host runs is no business of the machine.
    for wants in std::fs::read_dir("/etc/systemd/system")?.flatten() {
        if !wants.file_name().to_string_lossy().ends_with(".wants") {
            continue;
        }
        for unit in std::fs::read_dir(wants.path())?.flatten() {
            let name = unit.file_name().into_string().unwrap_or_default();
            let at = units.join(&name);
            if [".service", ".socket", ".timer"].iter().any(|kind| name.ends_with(kind)) && !at.is_symlink() {
                std::os::unix::fs::symlink("/dev/null", at)?;
            }
        }
    }
    for (wants, unit) in [
        ("multi-user.target.wants", "systemd-networkd.service"),
        ("network-online.target.wants", "systemd-networkd-wait-online.service"),
    ] {
        let at = units.join(wants).join(unit);
        std::os::unix::fs::symlink(format!("/lib/systemd/system/{unit}"), at)?;
        let masked = units.join(unit);
        if masked.is_symlink() {
            std::fs::remove_file(masked)?;
        }
    }
    Ok(())
}

/// One machine. It is switched off without a warning when dropped.
pub struct Machine {
    pub name: String,
    pub address: String,
    nspawn: Child,
    scratch: tempfile::TempDir,
}

impl Machine {
    /// The first process of the machine as this host numbers it: below unshare, the shell that starts it, and systemd-nspawn.
    fn leader(&self) -> Result<String> {
        let mut process = self.nspawn.id().to_string();
        for _ in 0..3 {
            let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
            let children = children.with_context(|| self.console())?;
            let last = children.split_whitespace().last().map(str::to_owned);
            process = last.with_context(|| format!("{} is off: {}", self.name, self.console()))?;
        }
        let name = std::fs::read_to_string(format!("/proc/{process}/comm"))?;
        ensure!(name == "systemd\n", "{} has begun no boot yet: {name}", self.name);
        Ok(process)
    }

    /// What systemd-nspawn and the boot said.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("console")).unwrap_or_default()
    }

    /// A command inside, as root. Only the program itself is in there: a machine that goes down stops all its processes before it kills them,
    /// and nsenter, where it waits for one that is stopped, stops itself for ever. timeout does not, and counts outside.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.leader()?, "-a", "--no-fork", "timeout", "120", program]);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C.UTF-8").env("HOME", "/root").stdin(Stdio::null());
        Ok(command)
    }

    /// What a shell in there makes of it: standard output and error together, and whether it succeeded.
    pub fn try_sh(&self, script: &str) -> Result<(bool, String)> {
        let output: Output = self.command("sh")?.args(["-c", &format!("exec 2>&1; {script}")]).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// As [`Machine::try_sh`] for what must succeed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let (good, said) = self.try_sh(script)?;
        ensure!(good, "{}: `{script}` failed: {said}", self.name);
        Ok(said)
    }

    /// The machine's file of this absolute path, as this host reaches it.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.leader()?)))
    }

    pub fn write(&self, path: &str, content: &str, mode: u32) -> Result<()> {
        let at = self.path(path)?;
        std::fs::write(&at, content).with_context(|| format!("write {path} on {}", self.name))?;
        Ok(std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode))?)
    }

    /// Copies a file of this host to a path in there.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        std::fs::copy(from, self.path(to)?)
            .with_context(|| format!("copy {} to {}", from.display(), self.name))?;
        Ok(())
    }

    /// One property of a unit, as `systemctl show` prints it.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        Ok(self.sh(&format!("systemctl show --value -p {property} {unit}"))?.trim_end().to_owned())
    }

    /// Asks until the answer is yes; the error says what was asked and what systemd knows of the unit.
    pub fn wait(&self, what: &str, mut ask: impl FnMut(&Machine) -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !ask(self).unwrap_or(false) {
            if began.elapsed() > PATIENCE {
                let last = ask(self);
                let (_, unit) = self.try_sh(
                    "systemctl status --no-pager -l 'cairnd*'; journalctl --no-pager -n 40 -u 'cairnd*'",
                )?;
                bail!("{}: never came true: {what} (last: {last:?})\n{unit}", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The number that the machine's boot has; another one after the next.
    pub fn boot_id(&self) -> Result<String> {
        self.sh("cat /proc/sys/kernel/random/boot_id")
    }

    fn wait_until_booted(&self, before: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let state = self.boot_id().ok().filter(|boot| boot != before).and_then(|_| {
                let (_, state) = self.try_sh("systemctl is-system-running").ok()?;
                Some(state)
            });
            match state.as_deref().map(str::trim_end) {
                Some("running" | "degraded") => return Ok(()),
                _ if began.elapsed() > PATIENCE => {
                    bail!(
                        "{} did not boot, systemd says {state:?}; its console: {}",
                        self.name,
                        self.console()
                    )
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// An orderly restart of the whole machine; returns when systemd runs again.
    pub fn reboot(&self) -> Result<()> {
        let before = self.boot_id()?;
        // The answer may not come any more.
        let _ = self.try_sh("systemctl reboot");
        self.wait_until_booted(&before)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With unshare goes the first process of its namespace, and with that all others, on all levels.
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
