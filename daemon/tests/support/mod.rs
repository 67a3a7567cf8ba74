//! The built daemon as tests use it: run to its end, or started and waited for by the words it logs.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Far beyond what any step takes, so that a wait that ends here is a failure and not a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub const READY: &str = "ready to serve client requests";

pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairnd"));
    command.args(args).current_dir(dir).env_remove("NOTIFY_SOCKET");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command
}

/// A process that came to its end.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The five parts, as one text.
    pub fn refusal(&self) -> &str {
        let at = self.stderr.find("REFUSED ").unwrap_or_else(|| panic!("no refusal in {self:#?}"));
        &self.stderr[at..]
    }

    /// The log record of the refusal.
    pub fn record(&self) -> Value {
        let line =
            self.stderr.lines().rfind(|line| line.starts_with('{') && line.contains("refused to start"));
        serde_json::from_str(line.unwrap_or_else(|| panic!("no record in {self:#?}"))).unwrap()
    }

    /// Checks name, exit code and that text and record say the same.
    #[track_caller]
    pub fn expect(&self, id: &str, code: i32) -> &Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let parts: Vec<&str> = self.refusal().lines().collect();
        assert_eq!(parts[0], format!("REFUSED {id}"), "{self:#?}");
        for (part, lead) in parts[1..].iter().zip(["cause:    ", "evidence: ", "remedy:   "]) {
            assert!(part.starts_with(lead) && part.len() > lead.len(), "{lead} in {self:#?}");
        }
        let record = self.record();
        assert_eq!(record["code"], id);
        assert_eq!(record["exit"], code);
        assert_eq!(record["level"], "fatal");
        assert!(record["evidence"].is_object() && record["remedy"].is_array(), "{record}");
        self
    }

    #[track_caller]
    pub fn says(&self, words: &str) -> &Ended {
        assert!(self.refusal().contains(words), "{words:?} is not in {self:#?}");
        self
    }
}

/// Runs to the end; a daemon that starts where it should refuse is killed and fails the test.
#[track_caller]
pub fn run_with(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = command(dir, args);
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the daemon runs");
    let (stdout, stderr) = (gather(child.stdout.take().unwrap()), gather(child.stderr.take().unwrap()));
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{args:?} does not end: {}", stderr.join().unwrap());
            }
        }
    };
    Ended { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn gather(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

pub fn run(dir: &Path, args: &[&str]) -> Ended {
    run_with(dir, args, &[])
}

/// A running daemon; killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
}

impl Running {
    pub fn spawn(mut command: Command) -> Running {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the daemon starts");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (out, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if out.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines, seen: Vec::new() }
    }

    /// Started on free ports, and ready.
    pub fn ready(dir: &Path, args: &[&str]) -> Running {
        let mut all = PORTS.to_vec();
        all.extend(args);
        let mut running = Running::spawn(command(dir, &all));
        running.wait_for(READY);
        running
    }

    /// The next line with these words.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(_) => panic!("{words:?} was not logged: {:#?}", self.seen),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Asks to stop and waits for the end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.wait()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.seen.extend(self.lines.try_iter());
                return status;
            }
            assert!(Instant::now() < until, "the daemon does not end: {:#?}", self.seen);
            // Waits for an event that has no descriptor of its own here; the loop above bounds it.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Listeners on ports that the system chooses.
pub const PORTS: [&str; 3] = [
    "--listen-client-urls=http://127.0.0.1:0",
    "--advertise-client-urls=http://127.0.0.1:1",
    "--listen-peer-urls=http://127.0.0.1:0",
];

/// Every file below `dir` with its bytes, but for the lock, which names its last holder.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.file_name().is_some_and(|name| name != "LOCK") {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }
    found
}

pub fn identity(data_dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(data_dir.join("member/identity.json")).unwrap()).unwrap()
}

/// Changes a field of the identity file and gives the file the right checksum again.
pub fn edit_identity(data_dir: &Path, key: &str, value: &Value) {
    let path = data_dir.join("member/identity.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let lead = format!("  \"{key}\": ");
    let line =
        lines.iter_mut().find(|line| line.starts_with(&lead)).unwrap_or_else(|| panic!("no field {key}"));
    *line = format!("{lead}{value},");
    let body = lines[..lines.len() - 2].join("\n") + "\n";
    let checksum = crc32c::crc32c(body.as_bytes());
    fs::write(path, format!("{body}  \"crc32c\": \"{checksum:08x}\"\n}}\n")).unwrap();
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
