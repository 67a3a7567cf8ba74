//! `cairnd snapshot restore` as an operator runs it: damaged files, kills at any moment, directories that are in the way.

use std::{
    fs::{self, File},
    io::Read as _,
    ops::ControlFlow,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    error::EtcdError,
    etcdserverpb::{AlarmMember, AlarmType, RangeRequest},
};
use bytes::Bytes;
use prost::Message as _;
use state_machine::{
    Options, StateMachine,
    memory::Memory,
    rows,
    store::{Store as _, Table, WriteBatch},
};
use storage::{
    data_dir::DataDir,
    snapshot::{self, DbFile, Quiet},
    state_store::{FjallStore, StoreOptions},
};
use types::{LogIndex, LogPosition, Revision, RowId, Term};

const BUMP: i64 = 1_000_000_000;

/// A backup of so many revisions after the first, with its SHA-256.
fn backup(dir: &Path, revisions: i64) -> PathBuf {
    backup_with(dir, revisions, &[])
}

/// The bytes of a lease's row.
fn etcd_lease(id: i64, ttl: i64) -> Vec<u8> {
    api::leasepb::Lease { id, ttl, remaining_ttl: 0 }.encode_to_vec()
}

/// With these pairs too.
fn backup_with(dir: &Path, revisions: i64, more: &[(Table, &[u8], &[u8])]) -> PathBuf {
    let store = Memory::new();
    let at = |index| LogPosition { term: Term(3), index: LogIndex(index) };
    let mut batch = WriteBatch::at(at(1));
    batch.put(Table::Cluster, "clusterVersion", "3.5.0");
    batch.put(Table::Members, "1", r#"{"id":1,"peerURLs":["http://gone:2380"],"name":"gone"}"#);
    batch.put(Table::MembersRemoved, "2", "removed");
    batch.put(Table::Meta, "confState", r#"{"voters":[1],"auto_leave":false}"#);
    batch.put(Table::Auth, "authEnabled", &b"\0"[..]);
    batch.put(Table::Auth, "authRevision", 1_u64.to_be_bytes().to_vec());
    for (table, key, value) in more {
        batch.put(*table, key.to_vec(), value.to_vec());
    }
    store.write(batch).unwrap();
    for main in 2..2 + revisions {
        let mut batch = WriteBatch::at(at(main as u64));
        let kv = api::mvccpb::KeyValue {
            key: format!("key{}", main % 500).into(),
            create_revision: main,
            mod_revision: main,
            version: 1,
            value: vec![main as u8; 200].into(),
            lease: 0,
        };
        batch.put_row(RowId { main: Revision(main), sub: 0 }, rows::put_row(&kv));
        store.write(batch).unwrap();
    }
    let mut made = snapshot::write(&Quiet::new(&store).unwrap(), dir).unwrap();
    let path = dir.join("backup.db");
    std::io::copy(&mut made.file, &mut File::create(&path).unwrap()).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    snapshot::append_digest(&file).unwrap();
    path
}

fn command(file: &Path, data_dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairnd"));
    command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(data_dir);
    command.args(["--name", "m", "--initial-cluster", "m=http://127.0.0.1:2380,n=http://127.0.0.1:2480"]);
    command.args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"]).args(more);
    command
}

fn restore(file: &Path, data_dir: &Path, more: &[&str]) -> Output {
    command(file, data_dir, more).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a start would find.
fn revision(data_dir: &Path) -> i64 {
    let store = FjallStore::open(&data_dir.join("member/state"), StoreOptions::default()).unwrap();
    assert_eq!(
        store.position(),
        LogPosition { term: Term(1), index: LogIndex(2) },
        "the end of the first log"
    );
    let machine = StateMachine::open(Arc::new(store), Options::default(), None).unwrap();
    assert_eq!(machine.conf_state().voters.len(), 2);
    assert_eq!(machine.reader().members().len(), 2);
    machine.reader().revision().0
}

struct Random(u64);

impl Random {
    fn new(test: &str) -> Random {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x5eed);
        println!("replay: SEED={seed} cargo test -p cairnd --test restore {test}");
        Random(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn a_restored_directory_has_the_new_members_and_the_old_data() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 300);
    let plain = dir.path().join("plain");
    let output = restore(&file, &plain, &["--no-bump"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(revision(&plain), 301);
    let bumped = dir.path().join("bumped");
    let output = restore(&file, &bumped, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("revision 1000000301"));
    assert_eq!(revision(&bumped), 301 + BUMP);
    // Neither the old members nor those that left are known any more.
    let store = FjallStore::open(&bumped.join("member/state"), StoreOptions::default()).unwrap();
    assert_eq!(store.table(Table::MembersRemoved).unwrap(), []);
    assert_eq!(store.table(Table::Members).unwrap().len(), 2);
    assert_eq!(store.table(Table::Cluster).unwrap().len(), 1);
    // The file is as it was.
    assert_eq!(snapshot::check_digest(&File::open(&file).unwrap()).unwrap(), Some(true));
}

/// OP06: whatever a client saw of the old cluster is behind the new one, and it is told so.
#[test]
fn restore_never_lowers_revision() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 30);
    let opened = |name: &str, more: &[&str]| {
        let data = dir.path().join(name);
        let output = restore(&file, &data, more);
        assert!(output.status.success(), "{}", stderr(&output));
        let store = FjallStore::open(&data.join("member/state"), StoreOptions::default()).unwrap();
        StateMachine::open(Arc::new(store), Options::default(), None).unwrap()
    };
    let machine = opened("bumped", &[]);
    let reader = machine.reader();
    assert_eq!(reader.revision(), Revision(31 + BUMP));
    assert_eq!(reader.compact_revision(), Revision(31 + BUMP));
    // What was handed out after the backup was taken is refused, not answered with other data.
    let late = RangeRequest { key: "key3".into(), revision: 40, ..Default::default() };
    assert_eq!(reader.range(&late), Err(EtcdError::Compacted));
    let now = RangeRequest { key: "key".into(), range_end: "kez".into(), ..Default::default() };
    let now = reader.range(&now).unwrap();
    assert_eq!((now.count, now.header.unwrap().revision), (30, 31 + BUMP));
    let machine = opened("open", &["--mark-compacted=false", "--bump-revision=7"]);
    assert_eq!(machine.reader().revision(), Revision(38));
    assert_eq!(machine.reader().compact_revision(), Revision(-1), "history can be read");
    let past = RangeRequest { key: "key3".into(), revision: 3, ..Default::default() };
    assert_eq!(machine.reader().range(&past).unwrap().count, 1);
}

/// OP08: every table comes along, not only the rows.
#[test]
fn import_reads_all_buckets() {
    let dir = tempfile::tempdir().unwrap();
    let lease = etcd_lease(77, 5000);
    let alarm = AlarmMember { member_id: 5, alarm: AlarmType::Nospace as i32 }.encode_to_vec();
    let more = [
        (Table::Lease, &77_i64.to_be_bytes()[..], &lease[..]),
        (Table::Alarm, &alarm[..], &[]),
        (Table::AuthUsers, b"root", b"user"),
        (Table::AuthRoles, b"root", b"role"),
    ];
    let file = backup_with(dir.path(), 30, &more);
    let data = dir.path().join("data");
    let output = restore(&file, &data, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 alarm(s)"));
    let store = FjallStore::open(&data.join("member/state"), StoreOptions::default()).unwrap();
    for (table, key, value) in more {
        let expected = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        assert_eq!(store.table(table).unwrap(), [expected], "{}", table.name());
    }
    assert_eq!(store.table(Table::Auth).unwrap().len(), 2);
    assert_eq!(store.table(Table::Cluster).unwrap().len(), 1);
    // Row by row, the mark of the bump behind them.
    let (mut saved, mut restored) = (Vec::new(), Vec::new());
    let db = DbFile::open(File::open(&file).unwrap()).unwrap();
    db.each_row(&mut |id, _, value| {
        saved.push((id, value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    let all = RowId { main: Revision(i64::MAX), sub: i64::MAX };
    store
        .scan(RowId::default(), all, &mut |id, row| {
            restored.push((id, row.value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    saved.push((RowId { main: Revision(31 + BUMP), sub: 0 }, Vec::new()));
    assert!(saved == restored);
}

#[test]
fn what_is_there_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 5);
    let data = dir.path().join("data");
    assert!(restore(&file, &data, &["--no-bump"]).status.success());
    for more in [&[][..], &["--no-bump"]] {
        let output = restore(&file, &data, more);
        assert_eq!(output.status.code(), Some(64));
        assert!(stderr(&output).starts_with("REFUSED DIR_NOT_EMPTY\n"), "{}", stderr(&output));
        assert_eq!(revision(&data), 6);
    }
    let (other, wal) = (dir.path().join("other"), dir.path().join("wal"));
    fs::create_dir(&wal).unwrap();
    fs::write(wal.join("precious"), "x").unwrap();
    let output = restore(&file, &other, &["--wal-dir", wal.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(!other.exists() && wal.join("precious").exists());
}

/// Whatever the bytes: restored, or refused with the reason and nothing left.
/// Root has the backup, a service the directory: the service can start with what comes of it.
#[test]
fn what_root_restores_for_a_service_is_the_services() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: what_root_restores_for_a_service_is_the_services: needs root");
        return;
    }
    const SERVICE: u32 = 973;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (private, lib) = (dir.path().join("private"), dir.path().join("lib"));
    for made in [&private, &lib] {
        fs::create_dir(made).unwrap();
        fs::set_permissions(made, fs::Permissions::from_mode(0o700)).unwrap();
    }
    chown(&lib, Some(SERVICE), Some(SERVICE)).unwrap();
    let file = backup(&private, 10);
    let restored = restore(&file, &lib.join("data"), &[]);
    assert!(restored.status.success(), "{}", stderr(&restored));
    let said = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(said.contains("owned by user 973 (id 973)"), "{said}");
    let mut left = vec![lib.join("data")];
    let mut seen = 0;
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (SERVICE, SERVICE), "{}", path.display());
        seen += 1;
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 5, "a whole member");
    // Without a service above it is root's, as ever.
    let restored = restore(&file, &private.join("data"), &[]);
    assert!(restored.status.success(), "{}", stderr(&restored));
    assert_eq!(fs::metadata(private.join("data/member")).unwrap().uid(), 0);
}

#[test]
fn damaged_files_are_refused_and_leave_nothing() {
    let mut random = Random::new("damaged_files_are_refused_and_leave_nothing");
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 400);
    let good = fs::read(&file).unwrap();
    let pages = good.len() as u64 / 4096;
    let (mut refused, data, wal) = (0, dir.path().join("data"), dir.path().join("wal"));
    for round in 0..80 {
        let dedicated = ["--wal-dir", wal.to_str().unwrap()];
        let more = if round % 2 == 0 { &dedicated[..] } else { &[] };
        let mut bad = good.clone();
        for _ in 0..1 + random.below(4) {
            let within = if random.below(3) == 0 { 4096 } else { 200 };
            let at = (random.below(pages) * 4096 + random.below(within)) as usize;
            bad[at] = random.below(256) as u8;
        }
        if random.below(8) == 0 {
            bad.truncate(random.below(good.len() as u64) as usize);
        }
        let path = dir.path().join("bad.db");
        fs::write(&path, &bad).unwrap();
        let output = restore(&path, &data, &[more, &["--skip-hash-check"]].concat());
        if output.status.success() {
            revision(&data);
            fs::remove_dir_all(&data).unwrap();
            let _ = fs::remove_dir_all(&wal);
        } else {
            refused += 1;
            assert_eq!(output.status.code(), Some(65), "round {round}: {}", stderr(&output));
            assert!(stderr(&output).starts_with("REFUSED SNAPSHOT_DAMAGED\n"), "{}", stderr(&output));
            assert!(!data.exists() && !wal.exists(), "round {round}: a half directory");
        }
        // With the check any change at all is refused.
        if bad != good {
            let output = restore(&path, &data, more);
            assert_eq!(output.status.code(), Some(65), "round {round}: {}", stderr(&output));
            assert!(!data.exists() && !wal.exists());
        }
    }
    assert!(refused > 20, "most damage is noticed: {refused}");
}

/// A kill at a random moment leaves a whole member or nothing that counts, and the next attempt succeeds. In every other round the log has a
/// directory of its own.
#[test]
fn killed_while_restoring() {
    let mut random = Random::new("killed_while_restoring");
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 4000);
    let (data, wal) = (dir.path().join("data"), dir.path().join("wal"));
    let dedicated = ["--wal-dir", wal.to_str().unwrap()];
    let clear = || {
        fs::remove_dir_all(&data).unwrap();
        let _ = fs::remove_dir_all(&wal);
    };
    // The quickest of some, so that most of the moments below lie within.
    let whole = (0..3).map(|_| {
        let started = Instant::now();
        assert!(restore(&file, &data, &dedicated).status.success());
        let whole = started.elapsed();
        clear();
        whole
    });
    let whole = whole.min().unwrap();
    let (mut killed, mut finished) = (0, 0);
    for round in 0..40 {
        let more = if round % 2 == 0 { &dedicated[..] } else { &[] };
        let mut child =
            command(&file, &data, more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let micros = random.below(whole.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(micros));
        let _ = child.kill();
        let status = child.wait().unwrap();
        killed += u64::from(status.signal().is_some());
        if data.join("member").exists() {
            finished += 1;
        } else {
            assert!(!status.success(), "round {round}: success without a member");
            let output = restore(&file, &data, more);
            assert!(output.status.success(), "round {round}: {}", stderr(&output));
        }
        assert_eq!(revision(&data), 4001 + BUMP, "round {round}: a member that counts is whole");
        let log = if more.is_empty() { data.join("member/wal") } else { wal.clone() };
        assert_eq!(segments(&log), 1, "round {round}: one log of one life");
        clear();
    }
    println!("{killed} killed, {finished} had finished");
    assert!(killed > 0, "some rounds are killed on the way");
}

fn segments(log: &Path) -> usize {
    let names = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).count()
}

/// The last moment before it counts: the log in its own directory says formed already, the member is still aside.
#[test]
fn killed_between_the_log_and_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 20);
    let (data, wal) = (dir.path().join("data"), dir.path().join("wal"));
    let dedicated = ["--wal-dir", wal.to_str().unwrap()];
    assert!(restore(&file, &data, &dedicated).status.success());
    fs::rename(data.join("member"), data.join("member.tmp")).unwrap();
    // Of another attempt's log nothing is known here, and it is left alone.
    let (other, stray) = (dir.path().join("other"), ["--wal-dir", wal.to_str().unwrap()]);
    let output = restore(&file, &other, &stray);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert_eq!((segments(&wal), other.exists()), (1, false));
    let output = restore(&file, &data, &dedicated);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((revision(&data), segments(&wal)), (21 + BUMP, 1));
}

/// Of two attempts at once the second is refused, and what the first has made so far stays.
#[test]
fn a_second_attempt_leaves_the_first_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 5);
    let (data, wal) = (dir.path().join("data"), dir.path().join("wal"));
    let lock = DataDir::lock(&data, None, Duration::ZERO).unwrap();
    fs::create_dir(data.join("member.tmp")).unwrap();
    fs::write(data.join("member.tmp/so-far"), "x").unwrap();
    let dedicated = ["--wal-dir", wal.to_str().unwrap()];
    let output = restore(&file, &data, &[&dedicated[..], &["--data-dir-lock-wait", "0s"]].concat());
    assert!(!output.status.success());
    assert!(stderr(&output).starts_with("REFUSED DATA_DIR_BUSY\n"), "{}", stderr(&output));
    assert!(data.join("member.tmp/so-far").exists());
    // A third one waits, and finds that the first has finished.
    let waiting = command(&file, &data, &[&dedicated[..], &["--data-dir-lock-wait", "60s"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    fs::create_dir(&wal).unwrap();
    fs::write(wal.join("0000000000000000-0000000000000000.wal"), "the first one's").unwrap();
    fs::rename(data.join("member.tmp"), data.join("member")).unwrap();
    drop(lock);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(data.join("member/so-far").exists());
    assert_eq!(segments(&wal), 1);
}

#[test]
fn status_tells_what_is_in_a_file_and_refuses_what_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = backup(dir.path(), 30);
    let status = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairnd"));
        command.args(["snapshot", "status"]).arg(file).args(["-w", "json"]).output().unwrap()
    };
    let output = status(&file);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let db = DbFile::open(File::open(&file).unwrap()).unwrap();
    let mut rows = 0;
    db.each_row(&mut |_, _, _| {
        rows += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((told["revision"].as_u64(), rows), (Some(31), 30));
    assert_eq!(told["totalSize"].as_u64(), Some(db.used_bytes()));
    let mut bytes = Vec::new();
    File::open(&file).unwrap().read_to_end(&mut bytes).unwrap();
    bytes[9000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert_eq!(status(&file).status.code(), Some(65));
    assert_eq!(status(&dir.path().join("none")).status.code(), Some(66));
    assert_eq!(status(dir.path()).status.code(), Some(66));
}
