//! The built daemon under a service manager that is made here: its notification socket, its journal, the sockets that it hands over.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
};

use crate::support::{command, run};

/// Far beyond what any step takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A socket on which the daemon says something, in lines `KEY=value` or, in the journal, with a length before a value that has lines.
struct Ear {
    said: Receiver<BTreeMap<String, String>>,
    heard: Vec<BTreeMap<String, String>>,
}

impl Ear {
    fn at(path: &Path) -> Ear {
        let socket = UnixDatagram::bind(path).unwrap();
        let (say, said) = channel();
        // Always listening: a datagram socket holds a few messages, and the daemon does not wait for long.
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(length) = socket.recv(&mut bytes) {
                // As the journal does: who waits for it sends some.
                if length == 0 {
                    continue;
                }
                if say.send(fields(&bytes[..length])).is_err() {
                    return;
                }
            }
        });
        Ear { said, heard: Vec::new() }
    }

    fn next(&mut self, wanted: &str) -> BTreeMap<String, String> {
        let Ok(fields) = self.said.recv_timeout(PATIENCE) else {
            panic!("{wanted} was not said: {:#?}", self.heard)
        };
        self.heard.push(fields.clone());
        fields
    }

    /// Said already, or the next time.
    #[track_caller]
    fn said(&mut self, key: &str, words: &str) -> BTreeMap<String, String> {
        let is_it =
            |fields: &&BTreeMap<String, String>| fields.get(key).is_some_and(|value| value.contains(words));
        match self.heard.iter().find(is_it) {
            Some(fields) => fields.clone(),
            None => self.wait_for(key, words),
        }
    }

    /// The next message in which this key has a value with these words.
    #[track_caller]
    fn wait_for(&mut self, key: &str, words: &str) -> BTreeMap<String, String> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let fields = self.next(&format!("{key}={words}"));
            if fields.get(key).is_some_and(|value| value.contains(words)) {
                return fields;
            }
        }
        panic!("{key}={words} was not said: {:#?}", self.heard)
    }
}

fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = BTreeMap::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let (key, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (text(&line[..at]), text(&line[at + 1..]), rest),
            None => {
                let (length, rest) = rest.split_at(8);
                let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
                (text(line), text(&rest[..length]), &rest[length + 1..])
            }
        };
        fields.insert(key, value);
        bytes = rest;
    }
    fields
}

/// Killed when dropped.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the daemon does not end");
            // Waits for an event that has no descriptor of its own here; the loop above bounds it.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As the manager starts it: stderr leads to the journal, and sockets are handed over under these names.
struct Manager {
    dir: tempfile::TempDir,
    stderr: PathBuf,
    journal: PathBuf,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let (stderr, journal) = (dir.path().join("stderr"), dir.path().join("journal"));
        Manager { dir, stderr, journal }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(
        &self,
        args: &[String],
        sockets: &[(&str, &TcpListener)],
        variables: &[(&str, &str)],
    ) -> Process {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let inner = command(self.dir.path(), &args);
        let mut script = String::new();
        for (at, (_, socket)) in sockets.iter().enumerate() {
            let descriptor = socket.as_raw_fd();
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
            script.push_str(&format!("exec {}<&{descriptor}\n", 3 + at));
        }
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        if !sockets.is_empty() {
            script.push_str(&format!(
                "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}\n",
                sockets.len(),
                names.join(":")
            ));
        }
        script.push_str("exec \"$@\"");
        let stderr = File::create(&self.stderr).unwrap();
        let meta = stderr.metadata().unwrap();
        let mut outer = Command::new("bash");
        outer.args(["-c", &script, "bash"]).arg(inner.get_program()).args(inner.get_args());
        outer.current_dir(self.dir.path());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer
            .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))
            .env("CAIRN_JOURNAL_SOCKET", &self.journal)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(stderr);
        Process(outer.spawn().unwrap())
    }
}

fn health(client: &TcpListener) -> String {
    let mut stream = TcpStream::connect(client.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// From its first word to its last: start, readiness, watchdog, two reloads of which one fails, and the stop. A client that came before the
/// member did is served.
#[test]
fn a_service_manager_hears_of_the_whole_life() {
    let manager = Manager::new();
    let (mut told, mut journal) = (Ear::at(&manager.path("notify")), Ear::at(&manager.journal));
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, peer, metrics) = (socket(), socket(), socket());
    let url = |socket: &TcpListener| format!("http://{}", socket.local_addr().unwrap());
    fs::write(manager.path("c.toml"), "name = \"n1\"\nmax-wals = 3\n").unwrap();
    fs::create_dir(manager.path("c.conf.d")).unwrap();
    let drop_in = manager.path("c.conf.d/10-local.toml");
    fs::write(&drop_in, "max-wals = 4\n").unwrap();
    let args: Vec<String> = [
        "--config-file=c.toml".to_owned(),
        "--data-dir=d".to_owned(),
        format!("--listen-client-urls={}", url(&client)),
        format!("--advertise-client-urls={}", url(&client)),
        format!("--listen-peer-urls={}", url(&peer)),
        format!("--listen-metrics-urls={}", url(&metrics)),
    ]
    .into();
    let notify = manager.path("notify");
    let variables = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("WATCHDOG_USEC", "4000000")];
    // It has asked before anybody was there to answer.
    let early = TcpStream::connect(client.local_addr().unwrap()).unwrap();
    let sockets = [("client", &client), ("peer", &peer), ("cairnd.socket", &metrics)];
    let mut running = manager.start(&args, &sockets, &variables);

    told.wait_for("READY", "1");
    let line = told.wait_for("STATUS", "leader in term")["STATUS"].clone();
    assert!(line.starts_with("n1 (") && line.contains("1 of 1 voters answer; up to date"), "{line}");
    told.wait_for("WATCHDOG", "1");
    told.wait_for("WATCHDOG", "1");
    let before_ready = told.heard.iter().take_while(|said| !said.contains_key("READY"));
    assert!(before_ready.clone().any(|said| said.contains_key("EXTEND_TIMEOUT_USEC")), "{:#?}", told.heard);

    let ready = journal.wait_for("MESSAGE", "ready to serve client requests");
    for (key, value) in [("PRIORITY", "6"), ("MEMBER_NAME", "n1"), ("SYSLOG_IDENTIFIER", "cairnd")] {
        assert_eq!(ready.get(key).map(String::as_str), Some(value), "{ready:#?}");
    }
    for key in ["MEMBER_ID", "CLUSTER_ID", "TERM", "MESSAGE_ID", "CODE_FILE", "CODE_LINE"] {
        assert!(ready.contains_key(key), "{key} in {ready:#?}");
    }
    let catalog = include_str!("../../../packaging/catalog/cairn.catalog");
    assert!(catalog.contains(&format!("-- {}\nSubject: READY", ready["MESSAGE_ID"])), "{ready:#?}");
    let leads = journal.said("MESSAGE", "this member leads");
    assert!(catalog.contains(&format!("-- {}\nSubject: LEADS", leads["MESSAGE_ID"])), "{leads:#?}");
    assert_eq!(fs::read_to_string(&manager.stderr).unwrap(), "", "the journal has it all");

    drop(early);
    assert!(health(&client).contains("\"health\":\"true\""));
    assert!(health(&metrics).contains("\"health\":\"true\""));

    fs::write(&drop_in, "log-level = \"debug\"\nquota-backend-bytes = \"1GiB\"\nmax-wals = 9\n").unwrap();
    running.signal(Signal::SIGHUP);
    let begun = told.wait_for("RELOADING", "1");
    assert!(begun["MONOTONIC_USEC"].parse::<u64>().is_ok(), "{begun:#?}");
    let done = told.wait_for("READY", "1");
    let result = "reloaded: quota-backend-bytes 0 -> 1GiB, log-level info -> debug; 1 setting needs a restart: max-wals";
    assert!(done["STATUS"].ends_with(result), "{done:#?}");
    journal.wait_for("MESSAGE", result);

    fs::write(&drop_in, "log-levl = \"debug\"\n").unwrap();
    running.signal(Signal::SIGHUP);
    told.wait_for("RELOADING", "1");
    let failed = told.wait_for("READY", "1")["STATUS"].clone();
    let place = format!("{}:1:1", "c.conf.d/10-local.toml");
    assert!(failed.contains("reload failed, nothing changes") && failed.contains(&place), "{failed}");
    let record = journal.wait_for("REFUSAL_ID", "UNKNOWN_SETTING");
    assert_eq!(record["PRIORITY"], "3");

    running.signal(Signal::SIGTERM);
    let stopping = told.wait_for("STOPPING", "1");
    assert_eq!(
        stopping["STATUS"].split("; ").next(),
        Some("stopping: handing leadership over"),
        "{stopping:#?}"
    );
    assert_eq!(stopping["EXTEND_TIMEOUT_USEC"], "40000000", "shutdown-timeout, and some more");
    assert_eq!(running.wait().code(), Some(0));
    journal.wait_for("MESSAGE", "stopped");
}

/// A refusal is the last word in the status line, and one record in the journal with its number, whatever of the two is there.
#[test]
fn a_refusal_reaches_the_manager_and_the_journal() {
    let manager = Manager::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let catalog = include_str!("../../../packaging/catalog/cairn.catalog");
    let notify = manager.path("notify");
    let mut told = Ear::at(&notify);
    let args = ["--data-dir=d".to_owned()];
    let variables = [("NOTIFY_SOCKET", notify.to_str().unwrap())];

    // Nobody listens on the journal's socket: stderr leads there too, by another way.
    let mut refused = manager.start(&args, &[("client", &socket)], &variables);
    assert_eq!(refused.wait().code(), Some(64));
    let text = fs::read_to_string(&manager.stderr).unwrap();
    assert!(text.contains("<2>") && text.contains("SETTINGS_CONFLICT"), "{text}");
    assert!(!manager.path("d").exists());

    let mut journal = Ear::at(&manager.journal);
    let mut refused = manager.start(&args, &[("client", &socket)], &variables);
    assert_eq!(refused.wait().code(), Some(64));
    told.wait_for("STATUS", "refused: SETTINGS_CONFLICT: the service manager listens on");
    let record = journal.wait_for("REFUSAL_ID", "SETTINGS_CONFLICT");
    assert_eq!(record["PRIORITY"], "2");
    let parts: Vec<&str> = record["MESSAGE"].lines().collect();
    assert_eq!(parts[0], "REFUSED SETTINGS_CONFLICT");
    assert!(parts.len() >= 5 && parts[4..].iter().any(|part| part.starts_with("never:")), "{parts:?}");
    assert!(catalog.contains(&format!("-- {}\nSubject: SETTINGS_CONFLICT", record["MESSAGE_ID"])));
    assert_eq!(fs::read_to_string(&manager.stderr).unwrap(), "", "once is enough");

    // Before there is a log.
    let mut refused = manager.start(&["--nmae=x".to_owned()], &[], &variables);
    assert_eq!(refused.wait().code(), Some(64));
    let record = journal.wait_for("REFUSAL_ID", "UNKNOWN_SETTING");
    assert!(record["MESSAGE"].contains("--name"), "{record:#?}");
}

#[test]
fn the_file_of_an_etcd_becomes_one_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("etcd.conf.yml"), "name: n1\ndata-dir: d\nheartbeat-interval: 150\n").unwrap();
    let ended = run(dir.path(), &["config", "convert", "etcd.conf.yml"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    fs::write(dir.path().join("cairnd.toml"), &ended.stdout).unwrap();
    let checked = run(dir.path(), &["config", "check", "--config-file=cairnd.toml"]);
    assert!(checked.code == Some(0) && checked.stdout.contains("(n1) in d"), "{checked:#?}");

    fs::write(dir.path().join("etcd"), "ETCD_NAME=\"n1\"\nETCD_CERT_FILE=/c\n").unwrap();
    let ended = run(dir.path(), &["config", "convert", "etcd"]);
    ended.expect("NOT_SUPPORTED", 64).says("ETCD_CERT_FILE could not be carried over").says("etcd:2: here");
    assert!(ended.stdout.contains("name = \"n1\""), "{ended:#?}");
    run(dir.path(), &["config", "convert", "/no/such"]).expect("CONFIG_FILE", 64);
    run(dir.path(), &["config", "convert"]).expect("UNKNOWN_VERB", 64);
}
