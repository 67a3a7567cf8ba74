//! The two tools, and servers to run them against.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers; generous, since the machine may be busy with other tests.
const START_MAX: Duration = Duration::from_secs(60);

/// The directory of the real etcd, or a visible note that the test did not run.
pub fn real_etcd(test: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("CAIRN_REAL_ETCD").map(PathBuf::from);
    if directory.is_none() {
        skipped(test, "set CAIRN_REAL_ETCD to the directory of etcd and etcdctl");
    }
    directory
}

/// Says so where it is seen: not with eprintln, which the test harness would hide.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Whether both tools run against another server than the real etcd.
pub fn another_server() -> bool {
    std::env::var_os("CAIRN_COMPAT_SERVER").is_some()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Etcdctl,
    Cairnctl,
}

/// What a tool did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub code: i32,
}

impl Run {
    /// What a script can rely on: the output, the code and the line with the error.
    pub fn essence(&self) -> (String, i32, Option<String>) {
        let error = self.stderr.lines().find(|line| line.starts_with("Error: ")).map(str::to_owned);
        (String::from_utf8_lossy(&self.stdout).into_owned(), self.code, error)
    }
}

impl Tool {
    /// The tool with no settings from outside but `endpoints`, and with pipes.
    pub fn command(self, endpoints: &str, arguments: &[&str]) -> Command {
        let mut command = match self {
            Tool::Cairnctl => Command::new(env!("CARGO_BIN_EXE_cairnctl")),
            Tool::Etcdctl => Command::new(
                PathBuf::from(std::env::var_os("CAIRN_REAL_ETCD").expect("checked before")).join("etcdctl"),
            ),
        };
        command.env_clear().env("CAIRNCTL_CONFIG_FILE", "/dev/null").env("ETCDCTL_ENDPOINTS", endpoints);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Runs a tool with no settings from outside but `endpoints`.
pub fn run(tool: Tool, endpoints: &str, arguments: &[&str], stdin: &[u8]) -> Run {
    let mut command = tool.command(endpoints, arguments);
    let mut child = command.spawn().expect("start the tool");
    // A tool that refuses its arguments does not read its input; a broken pipe is fine then.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("wait for the tool");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Run { stdout, stderr, code: status.code().expect("the tool ends by itself") }
}

/// A single-member server on free ports that believes in fixed addresses, so that two of them have the same ids.
pub struct Server {
    child: Child,
    pub endpoint: String,
    _directory: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Server {
        let directory = tempfile::tempdir().expect("make a directory");
        let free = || {
            TcpListener::bind("127.0.0.1:0")
                .expect("a free port")
                .local_addr()
                .expect("its address")
                .to_string()
        };
        let (client, peer) = (free(), free());
        let binary = std::env::var_os("CAIRN_COMPAT_SERVER").map(PathBuf::from);
        let binary = binary.unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("CAIRN_REAL_ETCD").expect("checked before")).join("etcd")
        });
        let log = std::fs::File::create(directory.path().join("log")).expect("make the log");
        let advertised = "http://127.0.0.1:1";
        let child = Command::new(binary)
            .env_clear()
            .args(["--name=n1", "--initial-cluster-token=twins", "--initial-cluster-state=new"])
            .arg(format!("--data-dir={}", directory.path().join("data").display()))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--advertise-client-urls={advertised}"))
            .arg(format!("--initial-advertise-peer-urls={advertised}"))
            .arg(format!("--initial-cluster=n1={advertised}"))
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start the server");
        let mut server = Server { child, endpoint: client, _directory: directory };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let started = Instant::now();
        loop {
            let health =
                run(Tool::Cairnctl, &self.endpoint, &["endpoint", "health", "--dial-timeout=1s"], b"");
            if health.code == 0 {
                return;
            }
            assert!(
                self.child.try_wait().expect("ask for its end").is_none(),
                "the server ended: {}",
                self.log()
            );
            assert!(started.elapsed() < START_MAX, "the server does not answer: {health:?} {}", self.log());
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self._directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
