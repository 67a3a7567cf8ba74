//! snapshot save: the same file, output and codes as etcdctl's.

use crate::tools::{Server, Tool, real_etcd, run};
use std::fs;

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
