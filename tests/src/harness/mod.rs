//! Clusters of real processes for tests: starts `cairnd` or the real etcd with the same flags on free loopback ports, kills, pauses and
//! restarts them, and runs stock tools against them. Waits for conditions, with a bound, and prints the members' logs when one fails.
//!
//! Not here: what is being tested.

mod binaries;
pub mod deadly_disk;
mod http;
mod ports;
mod shim;
pub mod slow_disk;
pub mod wrong_clock;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use binaries::{cairn_binary, real_etcd, real_etcd_versions};
pub use http::{HttpAnswer, http_get};
pub use ports::free_ports;

/// Longer than any start or election takes on a busy two-core machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which server plays a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Cairn,
    /// The real etcd of this version, as `tests/tools/real-etcd` unpacks it.
    Etcd(String),
}

/// One member: a name, its addresses and directory, and the process while it runs.
pub struct Member {
    pub name: String,
    pub client_url: String,
    pub peer_url: String,
    pub data_dir: PathBuf,
    log_path: PathBuf,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, PathBuf)>,
    child: Option<Child>,
}

/// Members that were started with one `initial-cluster`.
pub struct Cluster {
    pub kind: Kind,
    pub members: Vec<Member>,
    // Dropped last: the members' directories live in it.
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts `size` members and waits until every one reports itself healthy.
    pub fn start(kind: Kind, size: usize) -> Result<Cluster> {
        Cluster::start_with(kind, size, &[])
    }

    pub fn start_with(kind: Kind, size: usize, extra: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(kind, size, extra)?;
        for member in &mut cluster.members {
            member.spawn()?;
        }
        cluster.wait_healthy()?;
        Ok(cluster)
    }

    /// Everything but the processes.
    pub fn prepare(kind: Kind, size: usize, extra: &[&str]) -> Result<Cluster> {
        Cluster::prepare_on(kind, &free_ports(2 * size)?, extra)
    }

    /// On these ports, a peer and a client port for each member. Ids follow from them, so two clusters that run one after the other on
    /// the same ports have the same ids and their answers can be compared whole.
    pub fn prepare_on(kind: Kind, ports: &[u16], extra: &[&str]) -> Result<Cluster> {
        let size = ports.len() / 2;
        let directory = tempfile::Builder::new().prefix("cairn-cluster-").tempdir()?;
        let program = program(&kind)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let initial: Vec<String> = (0..size).map(|i| format!("m{}={}", i + 1, url(ports[2 * i]))).collect();
        let members = (0..size)
            .map(|i| {
                let name = format!("m{}", i + 1);
                let (peer_url, client_url) = (url(ports[2 * i]), url(ports[2 * i + 1]));
                let data_dir = directory.path().join(&name);
                let mut args = vec![
                    format!("--name={name}"),
                    format!("--data-dir={}", data_dir.display()),
                    format!("--listen-peer-urls={peer_url}"),
                    format!("--initial-advertise-peer-urls={peer_url}"),
                    format!("--listen-client-urls={client_url}"),
                    format!("--advertise-client-urls={client_url}"),
                    format!("--initial-cluster={}", initial.join(",")),
                    "--initial-cluster-token=tests".to_owned(),
                    "--initial-cluster-state=new".to_owned(),
                ];
                args.extend(extra.iter().map(|arg| (*arg).to_owned()));
                Member {
                    log_path: directory.path().join(format!("{name}.log")),
                    name,
                    client_url,
                    peer_url,
                    data_dir,
                    program: program.clone(),
                    args,
                    env: Vec::new(),
                    child: None,
                }
            })
            .collect();
        Ok(Cluster { kind, members, directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Comma separated, as tools take them.
    pub fn endpoints(&self) -> String {
        self.members.iter().map(|member| member.client_url.as_str()).collect::<Vec<_>>().join(",")
    }

    pub fn wait_healthy(&mut self) -> Result<()> {
        for i in 0..self.members.len() {
            self.members[i].wait_healthy()?;
        }
        Ok(())
    }

    /// Runs stock etcdctl of this version against all members and fails unless it succeeds.
    pub fn etcdctl(&self, version: &str, args: &[&str]) -> Result<String> {
        let output = self.try_etcdctl(version, args)?;
        if !output.status.success() {
            bail!(
                "etcdctl {} failed: {}{}",
                args.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn try_etcdctl(&self, version: &str, args: &[&str]) -> Result<Output> {
        etcdctl(version, &self.endpoints(), args)
    }

    /// The member that leads, by its Status, once the members that run agree on it.
    pub fn wait_leader(&self) -> Result<usize> {
        wait_for("a leader", || {
            let mut leads = None;
            for (i, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_running()) {
                let answer = http_get(&member.client_url, "/metrics").ok()?;
                if answer.body.lines().any(|line| line == "etcd_server_is_leader 1") {
                    leads = Some(i);
                }
                if !answer.body.lines().any(|line| line == "etcd_server_has_leader 1") {
                    return None;
                }
            }
            leads
        })
    }
}

impl Member {
    /// Adds or overrides a flag for the next start: the last one given wins.
    pub fn add_flag(&mut self, flag: impl Into<String>) {
        self.args.push(flag.into());
    }

    /// The value that counts of a flag that is given with its value, as `--name=`.
    pub fn flag(&self, lead: &str) -> Option<&str> {
        self.args.iter().rev().find_map(|arg| arg.strip_prefix(lead))
    }

    /// From the next start another server plays this member: clusters of both kinds.
    pub fn play(&mut self, kind: &Kind) -> Result<()> {
        self.program = program(kind)?;
        Ok(())
    }

    /// The same settings for another process; its log is its own.
    pub fn twin(&self) -> Member {
        Member {
            name: self.name.clone(),
            client_url: self.client_url.clone(),
            peer_url: self.peer_url.clone(),
            data_dir: self.data_dir.clone(),
            log_path: self.log_path.with_extension("twin.log"),
            program: self.program.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            child: None,
        }
    }

    /// For the next start.
    pub fn add_env(&mut self, name: &'static str, value: impl Into<PathBuf>) {
        self.env.push((name, value.into()));
    }

    pub fn clear_env(&mut self) {
        self.env.clear();
    }

    pub fn set_flags(&mut self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut self.args);
    }

    pub fn spawn(&mut self) -> Result<()> {
        assert!(self.child.is_none(), "{} already runs", self.name);
        let log = File::options().create(true).append(true).open(&self.log_path)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .env_remove("CAIRN_BIN_DIR")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    pub fn wait_healthy(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("{} ended with {status}; its log:\n{}", self.name, self.log_tail());
            }
            if http_get(&self.client_url, "/health").is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is not healthy after {PATIENCE:?}; its log:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id() as i32)
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> Result<u64> {
        let pid = self.pid().context("it runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }

    /// SIGKILL: no goodbye, as a power cut for the process.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        kill(Pid::from_raw(pid), signal)?;
        Ok(())
    }

    /// SIGTERM, and the exit status once it is gone.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit()
    }

    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{} did not end within {PATIENCE:?}; its log:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// The last 8 KiB of the log, for failure messages.
    pub fn log_tail(&self) -> String {
        let Ok(mut file) = File::open(&self.log_path) else { return String::new() };
        let length = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(8192)));
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a line of the log holds this text.
    pub fn wait_log(&self, text: &str) -> Result<String> {
        wait_for(&format!("{text:?} in the log of {}", self.name), || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .with_context(|| format!("the log ends:\n{}", self.log_tail()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ends:\n{}", self.name, self.log_tail());
        }
    }
}

fn program(kind: &Kind) -> Result<PathBuf> {
    match kind {
        Kind::Cairn => cairn_binary("cairnd"),
        Kind::Etcd(version) => Ok(real_etcd(version).context("real etcd")?.join("etcd")),
    }
}

/// Stock etcdctl of this version, API v3.
pub fn etcdctl(version: &str, endpoints: &str, args: &[&str]) -> Result<Output> {
    let program = real_etcd(version)?.join("etcdctl");
    Command::new(program)
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoints}"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("run etcdctl")
}

/// Polls until `probe` gives a value; an error naming `what` after a minute.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
