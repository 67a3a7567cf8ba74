//! The data directory belongs to one process at a time, and says to which.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use storage::data_dir::{DataDir, DataDirError, atomic_write};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn the_layout_is_made_for_the_owner_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a/b/cairn");
    let dir = DataDir::open_or_create(&path, None, Duration::ZERO).unwrap();
    for made in [dir.path().to_owned(), dir.member(), dir.state(), dir.snap()] {
        assert_eq!(mode(&made), 0o700, "{}", made.display());
    }
    assert_eq!(mode(&path.join("LOCK")), 0o600);
    assert_eq!(dir.wal(), path.join("member/wal"));
    assert!(!dir.wal().exists(), "the log is made when the member is born");
    drop(dir);

    let elsewhere = root.path().join("fast/disk/wal");
    let dir = DataDir::open_or_create(&path, Some(&elsewhere), Duration::ZERO).unwrap();
    assert_eq!(dir.wal(), elsewhere);
    assert!(elsewhere.parent().unwrap().is_dir() && !elsewhere.exists());
}

#[test]
fn a_directory_in_use_names_who_uses_it() {
    let root = tempfile::tempdir().unwrap();
    let held = DataDir::open_or_create(root.path(), None, Duration::ZERO).unwrap();
    let wait = Duration::from_millis(20);
    let refused = DataDir::open_or_create(root.path(), None, wait).unwrap_err();
    let text = refused.to_string();
    let DataDirError::Busy { path, holder, waited } = refused else { panic!("{text}") };
    let holder = holder.unwrap();
    assert_eq!((path.as_path(), &*holder), (root.path(), held.holder()));
    assert!(waited >= wait);
    assert_eq!(holder.pid, std::process::id());
    assert!(!holder.host.is_empty() && holder.boot_id.len() == 36 && holder.started_at > 1_700_000_000);
    assert_eq!(holder.argv, std::env::args().collect::<Vec<_>>());
    assert!(text.contains(&format!("pid {}", holder.pid)) && text.contains(&holder.host), "{text}");

    drop(held);
    DataDir::open_or_create(root.path(), None, Duration::ZERO).unwrap();
}

#[test]
fn a_predecessor_that_is_just_leaving_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let held = DataDir::open_or_create(root.path(), None, Duration::ZERO).unwrap();
    let path = root.path().to_owned();
    let waiting =
        std::thread::spawn(move || DataDir::open_or_create(&path, None, Duration::from_secs(60)).map(drop));
    drop(held);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_lock_that_its_holder_took_away_is_nobodys() {
    let root = tempfile::tempdir().unwrap();
    let lock = root.path().join("LOCK");
    let held = DataDir::lock(root.path(), None, Duration::ZERO).unwrap();
    let path = root.path().to_owned();
    let waiting = std::thread::spawn(move || DataDir::lock(&path, None, Duration::from_secs(60)));
    let opened = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to == lock)).count()
    };
    while opened() < 2 {
        std::thread::yield_now();
    }
    std::fs::remove_file(&lock).unwrap();
    drop(held);
    let taken = waiting.join().unwrap().unwrap();
    let third = DataDir::lock(root.path(), None, Duration::ZERO).unwrap_err();
    assert!(matches!(third, DataDirError::Busy { holder: Some(_), .. }), "{third}");
    drop(taken);
}

#[test]
fn rubbish_in_the_lock_file_is_no_obstacle() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("LOCK"), b"{\"pid\": \xff").unwrap();
    let held = DataDir::open_or_create(root.path(), None, Duration::ZERO).unwrap();
    std::fs::write(root.path().join("LOCK"), b"").unwrap();
    let refused = DataDir::open_or_create(root.path(), None, Duration::ZERO).unwrap_err();
    assert!(matches!(refused, DataDirError::Busy { holder: None, .. }), "{refused}");
    drop(held);
}

#[test]
fn a_file_is_replaced_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("identity.json");
    atomic_write(&path, b"a long first version").unwrap();
    atomic_write(&path, b"second").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    assert_eq!(mode(&path), 0o600);

    // The old content stays when the new one cannot be put in place.
    let occupied = root.path().join("dir");
    std::fs::create_dir_all(occupied.join("child")).unwrap();
    atomic_write(&occupied, b"never").unwrap_err();
    let left: Vec<_> =
        std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
}
