//! etcd itself as the judge: its log opens here, ours opens there, and each goes on writing the other's.
//!
//! Runs when `CAIRN_REAL_ETCD` names a directory with the programs `etcd` and `etcdctl` (3.5).

mod wal_support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use api::etcdserverpb::InternalRaftRequest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use storage::wal::{Wal, WalContents, WalError, WalOptions};
use types::EntryKind;
use wal_support::*;

/// Tries to reach a starting etcd; each one waits up to a second itself.
const HEALTH_TRIES: usize = 60;

struct Etcd {
    process: Child,
    programs: PathBuf,
    client: String,
}

impl Etcd {
    fn start(programs: &Path, data_dir: &Path, ports: (u16, u16)) -> Etcd {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports.0), format!("http://127.0.0.1:{}", ports.1));
        let log = std::fs::File::create(data_dir.with_extension("log")).unwrap();
        let process = Command::new(programs.join("etcd"))
            .args(["--name", "n1", "--data-dir", data_dir.to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("n1={peer}")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let etcd = Etcd { process, programs: programs.to_owned(), client };
        let healthy = (0..HEALTH_TRIES).any(|_| etcd.ctl(&["endpoint", "health"]).is_ok());
        let log = std::fs::read_to_string(data_dir.with_extension("log")).unwrap();
        assert!(healthy, "etcd serves; its log:\n{log}");
        etcd
    }

    fn ctl(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(self.programs.join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.client, "--dial-timeout", "1s", "--command-timeout", "1s"])
            .args(args)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]).unwrap();
    }

    fn get(&self, key: &str) -> String {
        self.ctl(&["get", key, "--print-value-only"]).unwrap().trim_end().to_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

fn programs() -> Option<PathBuf> {
    let programs = std::env::var_os("CAIRN_REAL_ETCD").map(PathBuf::from);
    if programs.is_none() {
        eprintln!("SKIPPED: set CAIRN_REAL_ETCD to a directory with etcd and etcdctl 3.5");
    }
    programs
}

fn free_ports() -> (u16, u16) {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    (port(&listeners[0]), port(&listeners[1]))
}

/// Keys and values of all puts in a log. etcd 3.5 also writes requests of its second API there, which do not decode.
fn puts(contents: &WalContents) -> Vec<(String, String)> {
    let normal =
        contents.entries.iter().filter(|entry| entry.kind == EntryKind::Normal && !entry.data.is_empty());
    normal
        .filter_map(|entry| InternalRaftRequest::decode(entry.data.clone()).ok()?.put)
        .map(|put| (String::from_utf8_lossy(&put.key).into(), String::from_utf8_lossy(&put.value).into()))
        .collect()
}

#[test]
fn etcd_and_cairn_read_each_others_logs() {
    let Some(programs) = programs() else { return };
    let root = tempfile::tempdir().unwrap();
    let ports = free_ports();

    // A member directory written by etcd.
    let theirs = root.path().join("theirs");
    let mut expected = Vec::new();
    {
        let etcd = Etcd::start(&programs, &theirs, ports);
        for number in 0..20 {
            let (key, value) = (format!("key{number}"), "v".repeat(number * 100));
            etcd.put(&key, &value);
            expected.push((key, value));
        }
        let in_use = Wal::open(&theirs.join("member/wal"), WalOptions::default());
        assert!(matches!(in_use, Err(WalError::Locked { .. })), "etcd is still running: {in_use:?}");
    }
    let (_, contents) = Wal::open(&theirs.join("member/wal"), WalOptions::default()).unwrap();
    assert_eq!((contents.snapshot, contents.repaired.clone()), (at(0, 0), None));
    assert_eq!(puts(&contents), expected);
    assert_eq!(contents.entries[0].kind, EntryKind::ConfChange);
    assert!(
        contents.hard_state.commit >= contents.entries[20].index && !contents.metadata.member_id.is_none()
    );

    // The same history written by us, over several segments and many syncs; etcd builds its database from it.
    let ours = root.path().join("ours");
    std::fs::create_dir_all(ours.join("member")).unwrap();
    let wal_dir = ours.join("member/wal");
    let mut wal = Wal::create(&wal_dir, &contents.metadata, small_segments()).unwrap();
    for entry in &contents.entries {
        let mut state = contents.hard_state;
        state.commit = entry.index;
        wal.append(std::slice::from_ref(entry), Some(&state)).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    assert!(segments(&wal_dir).len() > 1);
    {
        let etcd = Etcd::start(&programs, &ours, ports);
        for (key, value) in &expected {
            assert_eq!(&etcd.get(key), value, "{key}");
        }
        etcd.put("from etcd", "again");
        expected.push(("from etcd".into(), "again".into()));
    }

    // etcd has gone on in our segment; now we go on in what it left, and it in that.
    let (mut wal, contents) = Wal::open(&wal_dir, small_segments()).unwrap();
    assert_eq!(puts(&contents), expected);
    let mut last = contents.entries.last().unwrap().clone();
    let mut request = InternalRaftRequest::decode(
        contents.entries.iter().rfind(|entry| entry.data.len() > 20).unwrap().data.clone(),
    )
    .unwrap();
    request.put = Some(api::etcdserverpb::PutRequest {
        key: "from cairn".into(),
        value: "at last".into(),
        ..Default::default()
    });
    last.index = last.index.next();
    (last.kind, last.data) = (EntryKind::Normal, request.encode_to_vec().into());
    let mut state = contents.hard_state;
    state.commit = last.index;
    wal.append(std::slice::from_ref(&last), Some(&state)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let etcd = Etcd::start(&programs, &ours, ports);
    assert_eq!(etcd.get("from cairn"), "at last");
    assert_eq!(etcd.get("from etcd"), "again");
}
