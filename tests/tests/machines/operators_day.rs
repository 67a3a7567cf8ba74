//! An operator's day: three machines with systemd, the packages installed, a cluster formed, and everything that happens to it afterwards,
//! while somebody writes. What a unit is, what `systemctl status` says and what the journal knows is asserted on the way; in the end
//! every write that was acknowledged is read.
//!
//! `CAIRN_SYSTEMD_DAYS=n` repeats the day (docs/testing.md).

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use cairn_tests::{
    harness,
    machines::{self, Lan, Machine},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const UNIT: &str = "cairnd.service";

fn install(machine: &Machine, packages: &Path) -> Result<String> {
    machine.sh("mkdir -p /srv/debs && rm -f /srv/debs/*")?;
    for package in
        std::fs::read_dir(packages)?.flatten().filter(|file| file.path().extension() == Some("deb".as_ref()))
    {
        machine.copy_in(&package.path(), &format!("/srv/debs/{}", package.file_name().to_string_lossy()))?;
    }
    machine.sh("DEBIAN_FRONTEND=noninteractive dpkg -i /srv/debs/*.deb")
}

fn settings(machine: &Machine, more: &str) -> String {
    let (name, address) = (&machine.name, &machine.address);
    let all: Vec<String> =
        (1..=3).zip(NAMES).map(|(n, name)| format!("{name}=http://10.99.0.{n}:2380")).collect();
    format!(
        "name = \"{name}\"\ndata-dir = \"/var/lib/cairn/data\"\n\
         listen-peer-urls = \"http://{address}:2380\"\ninitial-advertise-peer-urls = \"http://{address}:2380\"\n\
         listen-client-urls = \"http://{address}:2379,http://127.0.0.1:2379\"\nadvertise-client-urls = \"http://{address}:2379\"\n\
         initial-cluster = \"{}\"\n{more}",
        all.join(",")
    )
}

fn configure(machine: &Machine, more: &str) -> Result<()> {
    machine.write("/etc/cairn/cairnd.toml", &settings(machine, more), 0o640)?;
    machine.sh("chown root:cairn /etc/cairn/cairnd.toml").map(drop)
}

fn status_text(machine: &Machine) -> Result<String> {
    machine.property(UNIT, "StatusText")
}

fn is_active(machine: &Machine) -> Result<bool> {
    Ok(machine.property(UNIT, "ActiveState")? == "active")
}

/// Every member knows a leader and says so to systemd.
fn wait_until_whole(machines: &[&Machine]) -> Result<()> {
    for machine in machines {
        machine.wait("its status names a leader", |machine| {
            let status = status_text(machine)?;
            Ok(is_active(machine)? && (status.contains(": leader in") || status.contains(": follower of")))
        })?;
        machine.sh("cairnctl wait --for quorum --timeout 60s")?;
    }
    Ok(())
}

/// The newest journal line of the unit that has this field.
fn journal(machine: &Machine, filter: &str) -> Result<serde_json::Value> {
    let lines = machine.sh(&format!("journalctl -u {UNIT} -o json --no-pager -n 1 {filter}"))?;
    serde_json::from_str(lines.lines().next_back().unwrap_or_default())
        .with_context(|| format!("no line of the journal for {filter}"))
}

/// Puts numbered keys with stock etcdctl from outside and remembers which were acknowledged.
struct Writer {
    over: Arc<AtomicBool>,
    acked: Arc<Mutex<Vec<u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(lan: &Lan) -> Result<Writer> {
        let etcdctl = harness::real_etcd("3.5")?.join("etcdctl");
        let (over, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut puts: Vec<Command> = (1..=3)
            .map(|n| {
                let mut command = lan.command(&etcdctl);
                command.args([
                    &format!("--endpoints=http://10.99.0.{n}:2379"),
                    "--command-timeout=3s",
                    "put",
                ]);
                command
            })
            .collect();
        let thread = std::thread::spawn({
            let (over, acked) = (over.clone(), acked.clone());
            move || {
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let program = &mut puts[number as usize % 3];
                    let mut put = Command::new(program.get_program());
                    put.args(program.get_args()).arg(format!("day/{number:06}")).arg(number.to_string());
                    if put.output().is_ok_and(|output| output.status.success()) {
                        acked.lock().expect("nobody panics with it").push(number);
                    }
                }
            }
        });
        Ok(Writer { over, acked, thread: Some(thread) })
    }

    fn acknowledged(&self) -> usize {
        self.acked.lock().expect("nobody panics with it").len()
    }

    /// The cluster takes writes: some more were acknowledged since now.
    fn goes_on(&self) -> Result<()> {
        let (before, began) = (self.acknowledged(), Instant::now());
        while self.acknowledged() < before + 5 {
            ensure!(began.elapsed() < machines::PATIENCE, "no write is acknowledged any more");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(mut self) -> Vec<u64> {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().expect("it is stopped once").join();
        std::mem::take(&mut *self.acked.lock().expect("nobody panics with it"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn three_machines_live_through_a_day() -> Result<()> {
    if !machines::possible("three_machines_live_through_a_day") {
        return Ok(());
    }
    let days = std::env::var("CAIRN_SYSTEMD_DAYS").ok().and_then(|days| days.parse().ok()).unwrap_or(1);
    let scratch = tempfile::tempdir()?;
    let (old, new) =
        (machines::packages(scratch.path(), "0.1.0")?, machines::packages(scratch.path(), "0.1.1")?);
    let mut lan = Lan::new()?;
    let all = [lan.boot("a")?, lan.boot("b")?, lan.boot("c")?];
    let [a, b, c] = &all;

    for machine in &all {
        act("installing_starts_nothing", || installing_starts_nothing(machine, &old))?;
    }
    act("founding", || founding(&all))?;
    let writer = Writer::start(&lan)?;
    writer.goes_on()?;
    act("fields_of_the_journal", || fields_of_the_journal(a))?;
    for day in 0..days {
        act("reloading", || reloading(b))?;
        if day == 0 {
            act("upgrading", || upgrading(&all, &new))?;
        }
        writer.goes_on()?;
        act("killing", || killing(c))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        act("cutting_off", || cutting_off(&lan, b))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        act("rebooting", || rebooting(a))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        act("a_wrong_restart", || a_wrong_restart(b))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        act("filling_the_disk", || filling_the_disk(c))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        if days > 1 && day == 0 {
            act("waiting_for_a_port", || waiting_for_a_port(c))?;
        }
        act("replacing", || replacing(a, b))?;
        act("wait_until_whole", || wait_until_whole(&[a, b, c]))?;
        writer.goes_on()?;
    }
    let acked = writer.stop();
    act("everything_is_there", || everything_is_there(a, &acked))?;
    act("purging", || purging(c))?;
    Ok(())
}

/// Says what is done and how long it took, for whoever looks for a slow test.
fn act(what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    act().with_context(|| what.to_owned())?;
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn installing_starts_nothing(machine: &Machine, packages: &Path) -> Result<()> {
    install(machine, packages)?;
    let (_, enabled) = machine.try_sh("systemctl is-enabled cairnd")?;
    ensure!(enabled.trim() == "disabled", "installing enabled the unit: {enabled}");
    ensure!(machine.property(UNIT, "ActiveState")? == "inactive", "installing started a member");
    machine.sh("test ! -e /etc/cairn/cairnd.toml || ! grep -q '^[a-z]' /etc/cairn/cairnd.toml")?;
    // Without settings nothing is founded, and that is no failure.
    machine.sh("systemctl start cairnd")?;
    ensure!(machine.property(UNIT, "ActiveState")? == "inactive", "a member without settings was started");
    ensure!(
        machine.sh("ls -A /var/lib/cairn 2>/dev/null || true")?.is_empty(),
        "a directory without a member has files"
    );
    Ok(())
}

fn founding(all: &[Machine; 3]) -> Result<()> {
    for machine in all {
        configure(machine, "")?;
        // Returns although the others are not there yet: local state and listeners are what READY means.
        machine.sh("systemctl enable --now cairnd")?;
        ensure!(is_active(machine)?, "{} is not active", machine.name);
    }
    wait_until_whole(&all.each_ref())?;
    let (user, mode) = (all[0].property(UNIT, "User")?, all[0].sh("stat -c '%a %U' /var/lib/cairn")?);
    ensure!(user == "cairn" && mode == "700 cairn\n", "the member runs as {user}, its directory is {mode}");
    let score = all[0].sh("systemd-analyze security --no-pager cairnd.service | tail -n 1")?;
    println!("{score}");
    Ok(())
}

fn fields_of_the_journal(machine: &Machine) -> Result<()> {
    let line = journal(machine, "MEMBER_NAME=a")?;
    for field in ["MEMBER_ID", "CLUSTER_ID", "PRIORITY", "MESSAGE"] {
        ensure!(line.get(field).is_some(), "the journal has no {field}: {line}");
    }
    Ok(())
}

fn reloading(machine: &Machine) -> Result<()> {
    let pid = machine.property(UNIT, "MainPID")?;
    configure(machine, "log-level = \"debug\"\n")?;
    machine.sh("systemctl reload cairnd")?;
    machine.wait("its status tells what was reloaded", |machine| {
        Ok(status_text(machine)?.contains("log-level"))
    })?;
    // What cannot be used fails, and changes nothing.
    configure(machine, "log-level = \"loud\"\n")?;
    let (good, said) = machine.try_sh("systemctl reload cairnd")?;
    ensure!(!good, "a reload with wrong settings succeeded: {said}");
    ensure!(is_active(machine)?, "a failed reload stopped the member");
    configure(machine, "")?;
    machine.sh("systemctl reload cairnd")?;
    ensure!(machine.property(UNIT, "MainPID")? == pid, "a reload started another process");
    Ok(())
}

fn upgrading(all: &[Machine; 3], packages: &Path) -> Result<()> {
    for machine in all {
        let pid = machine.property(UNIT, "MainPID")?;
        let said = install(machine, packages)?;
        ensure!(said.contains("systemctl restart cairnd"), "the upgrade does not say how to go on: {said}");
        ensure!(machine.property(UNIT, "MainPID")? == pid, "the upgrade restarted a member");
    }
    for machine in all {
        // As a reboot manager would: only when the others can do without it.
        machine.wait("it may be stopped", |machine| Ok(machine.try_sh("cairnctl can-stop")?.0))?;
        machine.sh("systemctl restart cairnd")?;
        wait_until_whole(&[machine])?;
    }
    Ok(())
}

fn killing(machine: &Machine) -> Result<()> {
    let (pid, before) = (machine.property(UNIT, "MainPID")?, machine.property(UNIT, "NRestarts")?);
    machine.sh(&format!("kill -9 {pid}"))?;
    machine.wait("systemd started it again", |machine| {
        Ok(machine.property(UNIT, "NRestarts")? != before
            && is_active(machine)?
            && machine.property(UNIT, "MainPID")? != pid)
    })
}

fn cutting_off(lan: &Lan, machine: &Machine) -> Result<()> {
    lan.cut(machine, true)?;
    machine.wait("its status says that the others are out of reach", |machine| {
        let status = status_text(machine)?;
        Ok(status.contains("no leader"))
    })?;
    ensure!(is_active(machine)?, "a member that is cut off stopped");
    lan.cut(machine, false)
}

fn rebooting(machine: &Machine) -> Result<()> {
    machine.reboot()?;
    machine.wait("the member came up with its machine", is_active)
}

fn a_wrong_restart(machine: &Machine) -> Result<()> {
    let wrong = settings(machine, "").replace("name = \"b\"", "name = \"bb\"").replace("b=http", "bb=http");
    let before = machine.property(UNIT, "NRestarts")?;
    let since = machine.sh("date +%s.%N")?;
    machine.write("/etc/cairn/cairnd.toml", &wrong, 0o640)?;
    let _ = machine.try_sh("systemctl restart cairnd")?;
    machine.wait("the unit has failed", |machine| Ok(machine.property(UNIT, "ActiveState")? == "failed"))?;
    ensure!(machine.property(UNIT, "ExecMainStatus")? == "78", "another exit code");
    ensure!(machine.property(UNIT, "NRestarts")? == before, "systemd starts again what refuses");
    let line = journal(machine, &format!("--since=@{} REFUSAL_ID=NAME_MISMATCH", since.trim_end()))?;
    ensure!(line.get("MESSAGE_ID").is_some(), "the refusal has no entry in the catalog: {line}");
    // Once: the check before the start says nothing of its own. With the remedy, for somebody who has a file.
    let explained =
        machine.sh(&format!("journalctl -x --no-pager -u cairnd --since=@{}", since.trim_end()))?;
    let refusals = explained.matches("REFUSED NAME_MISMATCH").count();
    ensure!(refusals == 1, "{refusals} entries for one refusal: {explained}");
    ensure!(
        explained.contains("accept-identity-change = \"name\" (in /etc/cairn/cairnd.toml)")
            && explained.contains("Subject: NAME_MISMATCH"),
        "the journal does not print the remedy: {explained}"
    );
    // By hand, as root, it is no other.
    let (good, said) = machine.try_sh("cairnd --config-file=/etc/cairn/cairnd.toml")?;
    ensure!(!good && said.contains("REFUSED WRONG_USER"), "root runs the service's member: {said}");
    configure(machine, "")?;
    machine.sh("systemctl reset-failed cairnd; systemctl start cairnd").map(drop)
}

fn filling_the_disk(machine: &Machine) -> Result<()> {
    // A file system of its own, small enough to be filled.
    machine.sh(
        "systemctl stop cairnd && mv /var/lib/cairn /var/lib/cairn.old && mkdir -m 700 /var/lib/cairn && \
         mount -t tmpfs -o size=700m,mode=700,uid=$(id -u cairn),gid=$(id -g cairn) tmpfs /var/lib/cairn && \
         cp -a /var/lib/cairn.old/. /var/lib/cairn/ && systemctl start cairnd",
    )?;
    wait_until_whole(&[machine])?;
    let _ = machine.try_sh("dd if=/dev/zero of=/var/lib/cairn/ballast bs=1M status=none");
    // Something needs room: a start does. It says so, and systemd tries again, since room may come back.
    let _ = machine.try_sh("systemctl restart cairnd");
    // It is tried again and again, so both are to be seen between two tries.
    machine.wait("the full disk is named, with exit code 74", |machine| {
        let status = status_text(machine)?;
        Ok(status.contains("IO_ERROR")
            && status.contains("/var/lib/cairn")
            && machine.property(UNIT, "ExecMainStatus")? == "74")
    })?;
    machine.sh("rm /var/lib/cairn/ballast; systemctl reset-failed cairnd; systemctl restart cairnd")?;
    wait_until_whole(&[machine])?;
    machine.sh(
        "systemctl stop cairnd && cp -a /var/lib/cairn/. /var/lib/cairn.old/ && umount /var/lib/cairn && rmdir /var/lib/cairn && \
         mv /var/lib/cairn.old /var/lib/cairn && systemctl start cairnd",
    )
    .map(drop)
}

/// What passes by itself is waited for, however often that takes: only in the long form, since that is longer than a test should.
fn waiting_for_a_port(machine: &Machine) -> Result<()> {
    machine.sh(
        "systemctl stop cairnd && systemd-run --quiet --unit=squatter /usr/bin/systemd-socket-activate -l 127.0.0.1:2379 /bin/cat && \
         systemctl reset-failed cairnd; ! systemctl start cairnd",
    )?;
    machine.wait("it was started more often than the limit of starts", |machine| {
        Ok(machine.property(UNIT, "NRestarts")?.parse::<u32>()? > 11)
    })?;
    machine.sh("systemctl stop squatter")?;
    wait_until_whole(&[machine])
}

/// The machine has lost its disk: its member is refused, and what the journal prints brings a new one.
fn replacing(machine: &Machine, other: &Machine) -> Result<()> {
    let since = machine.sh("date +%s.%N")?;
    machine.sh("systemctl stop cairnd && rm -rf /var/lib/cairn/data")?;
    let _ = machine.try_sh("systemctl start cairnd")?;
    machine.wait("the unit has failed", |machine| Ok(machine.property(UNIT, "ActiveState")? == "failed"))?;
    ensure!(machine.property(UNIT, "ExecMainStatus")? == "79", "another exit code");
    let line = journal(machine, &format!("--since=@{} REFUSAL_ID=LOST_DATA", since.trim_end()))?;
    let message = line["MESSAGE"].as_str().context("a message")?;
    // "cairnctl … member remove ID, then cairnctl … member add …, then start with an empty data directory and …"
    let replace =
        message.lines().find(|line| line.contains("member remove")).with_context(|| message.to_owned())?;
    let mut commands = 0;
    for step in replace.split(", then ") {
        if let Some(at) = step.find("cairnctl ") {
            // Adding is refused until every voter was seen for some seconds, as with etcd: the operator tries again.
            other.wait(step, |other| Ok(other.try_sh(&step[at..])?.0))?;
            commands += 1;
        }
    }
    ensure!(
        commands == 2 && replace.contains("initial-cluster-state = \"existing\""),
        "other steps: {replace}"
    );
    machine.sh("rm -rf /var/lib/cairn/data")?;
    configure(machine, "initial-cluster-state = \"existing\"\n")?;
    machine.sh("systemctl reset-failed cairnd && systemctl start cairnd").map(drop)
}

fn everything_is_there(machine: &Machine, acked: &[u64]) -> Result<()> {
    let there = machine.sh("cairnctl get day/ --prefix --keys-only")?;
    let there: std::collections::BTreeSet<&str> = there.lines().collect();
    let lost: Vec<_> =
        acked.iter().filter(|number| !there.contains(format!("day/{number:06}").as_str())).collect();
    println!("{} writes were acknowledged", acked.len());
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    Ok(())
}

fn purging(machine: &Machine) -> Result<()> {
    let removed = machine.sh("DEBIAN_FRONTEND=noninteractive dpkg -r cairnd")?;
    ensure!(machine.property(UNIT, "ActiveState")? != "active", "a removed package runs on: {removed}");
    let said = machine.sh("DEBIAN_FRONTEND=noninteractive dpkg -P cairnd")?;
    ensure!(said.contains("/var/lib/cairn"), "purging does not say where the data are: {said}");
    machine.sh("test -d /var/lib/cairn/data/member").map(drop)
}
