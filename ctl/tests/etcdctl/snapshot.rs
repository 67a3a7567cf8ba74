//! snapshot save: the same file, output and codes as etcdctl's. snapshot status: the same as etcdctl's and etcdutl's.

use crate::fake::{Answer, Fake};
use crate::live::Live;
use crate::tools::{Server, Tool, real_etcd, run};
use api::etcdserverpb::SnapshotResponse;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn both_save_the_same_file_and_say_the_same() {
    if real_etcd("both_save_the_same_file_and_say_the_same").is_none() {
        return;
    }
    let server = Server::start();
    for n in 0..20 {
        let line = ["put", &format!("k{}", n % 7), &format!("v{n}")];
        assert_eq!(run(Tool::Cairnctl, &server.endpoint, &line, b"").code, 0);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let line = ["snapshot", "save", path.to_str().unwrap()];
    // An old file of that name is replaced by either.
    fs::write(&path, b"old").unwrap();
    let theirs = run(Tool::Etcdctl, &server.endpoint, &line, b"");
    let their_bytes = fs::read(&path).unwrap();
    fs::write(&path, b"old").unwrap();
    let ours = run(Tool::Cairnctl, &server.endpoint, &line, b"");
    let our_bytes = fs::read(&path).unwrap();
    assert_eq!(ours.essence(), theirs.essence());
    assert_eq!(ours.stderr, "", "no progress where nobody looks");
    assert_eq!((ours.code, our_bytes.len()), (0, their_bytes.len()));
    // Nothing was written between the two: the databases may differ in their headers alone, and ours in none.
    assert_eq!(our_bytes.len() % 512, 32);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["s.db"]);

    let progress = run(Tool::Cairnctl, &server.endpoint, &[&line[..], &["--progress"]].concat(), b"");
    assert!(progress.code == 0 && progress.stderr.contains("/s"), "{}", progress.stderr);

    let two = format!("{},127.0.0.1:1", server.endpoint);
    let nowhere = dir.path().join("none/s.db");
    for (endpoints, line) in [
        (&server.endpoint, &["snapshot", "save"][..]),
        (&server.endpoint, &["snapshot", "save", "a", "b"]),
        (&two, &["snapshot", "save", "x.db"]),
    ] {
        let theirs = run(Tool::Etcdctl, endpoints, line, b"");
        let ours = run(Tool::Cairnctl, endpoints, line, b"");
        assert_eq!(ours.essence(), theirs.essence(), "{line:?}");
    }
    let line = ["snapshot", "save", nowhere.to_str().unwrap()];
    let theirs = run(Tool::Etcdctl, &server.endpoint, &line, b"");
    let ours = run(Tool::Cairnctl, &server.endpoint, &line, b"");
    assert_eq!((ours.code, theirs.code), (5, 5), "{} {}", ours.stderr, theirs.stderr);
}

#[test]
fn both_tell_the_same_of_a_file() {
    let Some(home) = real_etcd("both_tell_the_same_of_a_file") else { return };
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // Empty, with pages of one level, with several and with values longer than a page.
    let sizes: &[(&str, usize, usize)] =
        &[("empty", 0, 0), ("small", 20, 10), ("deep", 600, 400), ("long", 8, 20_000)];
    for (name, keys, bytes) in sizes {
        for n in 0..*keys {
            let line = ["put", &format!("{name}{n}"), &"v".repeat(*bytes)];
            assert_eq!(run(Tool::Cairnctl, &server.endpoint, &line, b"").code, 0);
        }
        let saved = run(Tool::Cairnctl, &server.endpoint, &["snapshot", "save", &path(name)], b"");
        assert_eq!(saved.code, 0, "{}", saved.stderr);
    }
    fs::write(path("noise"), [7; 4096]).unwrap();
    fs::write(path("nothing"), b"").unwrap();
    let nowhere = "127.0.0.1:1";
    let formats = ["simple", "json", "fields", "table", "protobuf", "yaml"];
    for (name, ..) in sizes {
        for format in formats {
            let line = ["snapshot", "status", &path(name), "-w", format];
            let ours = run(Tool::Cairnctl, nowhere, &line, b"");
            let theirs = run(Tool::Etcdctl, nowhere, &line, b"");
            assert_eq!(ours.essence(), theirs.essence(), "{name} as {format}");
            let theirs = Command::new(home.join("etcdutl")).args(line).output().unwrap();
            assert_eq!(
                (ours.stdout, Some(ours.code)),
                (theirs.stdout, theirs.status.code()),
                "{name} as {format}"
            );
        }
    }
    for line in
        [&["snapshot", "status"][..], &["snapshot", "status", "a", "b"], &["snapshot", "status", "nofile"]]
    {
        let ours = run(Tool::Cairnctl, nowhere, line, b"");
        let theirs = run(Tool::Etcdctl, nowhere, line, b"");
        assert_eq!(ours.essence(), theirs.essence(), "{line:?}");
    }
    for bad in ["noise", "nothing"] {
        let line = ["snapshot", "status", &path(bad)];
        let ours = run(Tool::Cairnctl, nowhere, &line, b"");
        assert_eq!((ours.code, ours.stdout), (1, Vec::new()), "{}", ours.stderr);
        assert!(ours.stderr.contains("[SNAPSHOT_DAMAGED]"), "{}", ours.stderr);
    }
}

/// Any byte that is changed, and any that is missing, is noticed.
#[test]
fn a_damaged_file_has_no_status() {
    let Some(_) = real_etcd("a_damaged_file_has_no_status") else { return };
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let name = path.to_str().unwrap();
    assert_eq!(run(Tool::Cairnctl, &server.endpoint, &["put", "k", "v"], b"").code, 0);
    assert_eq!(run(Tool::Cairnctl, &server.endpoint, &["snapshot", "save", name], b"").code, 0);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: String| {
        fs::write(&path, bytes).unwrap();
        let ours = run(Tool::Cairnctl, "127.0.0.1:1", &["snapshot", "status", name], b"");
        assert_eq!((ours.code, ours.stdout), (1, Vec::new()), "{what}: {}", ours.stderr);
        assert!(ours.stderr.contains("[SNAPSHOT_DAMAGED]"), "{what}: {}", ours.stderr);
    };
    for at in (0..whole.len()).step_by(977).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        refused(&bytes, format!("byte {at} is another"));
    }
    for length in [whole.len() - 1, whole.len() - 33, whole.len() / 2, 100] {
        refused(&whole[..length], format!("{length} bytes are left"));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until a save has begun its file.
fn begun(dir: &Path) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !names(dir).iter().any(|name| name.ends_with(".part")) {
        assert!(std::time::Instant::now() < until, "no save began in a minute: {:?}", names(dir));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_stopped_save_leaves_nothing_and_a_killed_one_nothing_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let line = ["snapshot", "save", path.to_str().unwrap()];
    // A server that never answers: the save has its file, and waits.
    let silent = Fake::start([("Snapshot", Answer::Silence)]);
    fs::write(&path, "old").unwrap();
    for signal in ["INT", "TERM", "HUP"] {
        let save = Live::start(Tool::Cairnctl, &silent.endpoint, &line, &[]);
        begun(dir.path());
        let sent =
            Command::new("kill").arg(format!("-{signal}")).arg(save.pid().to_string()).status().unwrap();
        assert!(sent.success());
        let ended = save.end();
        assert_eq!(ended.code, 5, "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("stopped by SIG{signal}")), "{}", ended.stderr);
        assert_eq!(names(dir.path()), ["s.db"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
    let killed = Live::start(Tool::Cairnctl, &silent.endpoint, &line, &[]);
    begun(dir.path());
    // Killed as by a machine that runs out of memory.
    drop(killed);
    let left = names(dir.path());
    assert!(left.len() > 1, "{left:?}");
    // The next one clears it, whatever becomes of itself.
    let half = SnapshotResponse { remaining_bytes: 7, blob: vec![1; 512].into(), ..Default::default() };
    let server = Fake::start([("Snapshot", Answer::one(&half))]);
    let next = run(Tool::Cairnctl, &server.endpoint, &line, b"");
    assert_eq!(next.code, 5, "{}", next.stderr);
    assert!(next.stderr.contains("which an earlier save left when it was killed"), "{}", next.stderr);
    assert_eq!(names(dir.path()), ["s.db"]);
    assert_eq!(fs::read(&path).unwrap(), b"old", "a half backup replaces nothing");
}
