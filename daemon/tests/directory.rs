//! The data directory: founded, used again, refused. What is refused changes nothing on disk.

mod support;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::json;
use support::{PORTS, READY, Running, command, copy_tree, edit_identity, files, identity, run};

/// A member that has run and was stopped in order.
fn member(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    let flag = format!("--data-dir={}", data.display());
    let status = Running::ready(dir, &[&flag, "--name=n1"]).stop();
    assert_eq!(status.code(), Some(0));
    data
}

fn start(dir: &Path, data: &Path, args: &[&str]) -> support::Ended {
    let flag = format!("--data-dir={}", data.display());
    let mut all = PORTS.to_vec();
    all.push(&flag);
    all.extend(args);
    run(dir, &all)
}

/// Refused with this name and code, and every byte as before.
#[track_caller]
fn refused(dir: &Path, data: &Path, args: &[&str], id: &str, code: i32) -> support::Ended {
    let before = files(dir);
    let ended = start(dir, data, args);
    ended.expect(id, code);
    assert!(files(dir) == before, "{id}: something on disk was changed");
    ended
}

#[test]
fn a_restart_under_another_identity_is_refused_and_the_old_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = member(dir.path());
    let other_url = "--initial-advertise-peer-urls=http://127.0.0.1:9";
    refused(dir.path(), &data, &["--name=n2"], "NAME_MISMATCH", 78).says("--name=n1");
    refused(dir.path(), &data, &["--name=n1", other_url], "PEER_URL_MISMATCH", 78)
        .says("http://localhost:2380")
        .says("cairnctl --endpoints=<a member's client URL> member update");
    refused(dir.path(), &data, &["--name=n1", "--initial-cluster-token=t"], "TOKEN_CONFLICT", 78)
        .says("token t");
    refused(dir.path(), &data, &["--name=n2", other_url], "WRONG_DIR", 78).says("n2");

    let flag = format!("--data-dir={}", data.display());
    let again = Running::ready(dir.path(), &[&flag]);
    let now = identity(&data);
    assert_eq!(
        (&now["boot_seq"], &now["state"], &now["clean_stop"]),
        (&json!(2), &json!("born"), &json!(null))
    );
    assert!(
        again
            .seen
            .iter()
            .any(|line| line.contains("\"name\":\"n1\"") && line.contains("\"msg\":\"identity\""))
    );
    assert_eq!(again.stop().code(), Some(0));
    assert!(identity(&data)["clean_stop"]["last_index"].as_u64() > Some(1));
}

#[test]
fn damaged_and_missing_parts_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let whole = member(dir.path());
    let case = |name: &str, damage: &dyn Fn(&Path)| {
        let data = dir.path().join(name);
        copy_tree(&whole, &data);
        damage(&data);
        data
    };
    let identity_file = |data: &Path| data.join("member/identity.json");
    let segment = |data: &Path| data.join("member/wal/0000000000000000-0000000000000000.wal");

    let data = case("identity-damaged", &|data| {
        let text = fs::read_to_string(identity_file(data)).unwrap();
        fs::write(identity_file(data), text.replace("\"n1\"", "\"n9\"")).unwrap();
    });
    refused(dir.path(), &data, &[], "IDENTITY_DAMAGED", 65).says("checksum");
    let data = case("identity-missing", &|data| fs::remove_file(identity_file(data)).unwrap());
    refused(dir.path(), &data, &[], "IDENTITY_MISSING", 66);
    let data = case("log-missing", &|data| fs::remove_dir_all(data.join("member/wal")).unwrap());
    refused(dir.path(), &data, &[], "WAL_MISSING", 66).says("member/wal");
    let data = case("log-damaged", &|data| {
        let mut bytes = fs::read(segment(data)).unwrap();
        bytes[9..40].fill(0xff);
        fs::write(segment(data), bytes).unwrap();
    });
    refused(dir.path(), &data, &[], "LOG_DAMAGED", 65);
    let data = case("log-damaged-within", &|data| {
        let mut bytes = fs::read(segment(data)).unwrap();
        let at =
            bytes.windows(8).position(|bytes| bytes == b"peerURLs").expect("the first entry is in the log");
        bytes[at] ^= 1;
        fs::write(segment(data), bytes).unwrap();
    });
    refused(dir.path(), &data, &[], "LOG_DAMAGED", 65).says("offset");
    let data =
        case("state-damaged", &|data| fs::write(data.join("member/state/CURRENT"), b"nowhere\n").unwrap());
    refused(dir.path(), &data, &[], "STATE_DAMAGED", 65).says("nowhere");
    let data = case("state-missing", &|data| {
        fs::remove_dir_all(data.join("member/state")).unwrap();
        let later = data.join("member/wal/0000000000000001-0000000000000009.wal");
        fs::rename(segment(data), later).unwrap();
    });
    refused(dir.path(), &data, &[], "STATE_MISSING", 66).says("index 9");
    let data = case("etcd", &|data| {
        fs::remove_file(identity_file(data)).unwrap();
        fs::write(data.join("member/snap/db"), b"x").unwrap();
    });
    refused(dir.path(), &data, &[], "FOREIGN_DIR", 78);
}

#[test]
fn a_member_that_was_thrown_out_or_is_too_new_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = member(dir.path());
    edit_identity(&data, "min_version", &json!("99.0.0"));
    refused(dir.path(), &data, &[], "BINARY_TOO_OLD", 78).says("99.0.0");
    edit_identity(&data, "min_version", &json!("0.1.0"));
    edit_identity(&data, "state", &json!({"removed": {"index": 40, "term": 3}}));
    refused(dir.path(), &data, &[], "REMOVED", 79).says("log entry 40 of term 3");
    edit_identity(&data, "state", &json!({"quarantined": {"reason": "r", "evidence": "saw it"}}));
    refused(dir.path(), &data, &[], "QUARANTINED", 79).says("saw it");
    edit_identity(&data, "state", &json!("born"));
    edit_identity(&data, "member_id", &json!("1"));
    refused(dir.path(), &data, &[], "WRONG_DIR", 78).says("member 1 ");
}

#[test]
fn an_older_copy_of_the_log_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let data = member(dir.path());
    copy_tree(&data.join("member/wal"), &dir.path().join("older"));
    let flag = format!("--data-dir={}", data.display());
    assert_eq!(Running::ready(dir.path(), &[&flag]).stop().code(), Some(0));
    fs::remove_dir_all(data.join("member/wal")).unwrap();
    copy_tree(&dir.path().join("older"), &data.join("member/wal"));
    start(dir.path(), &data, &[]).expect("ROLLED_BACK_LOCALLY", 79);
    assert_eq!(identity(&data)["boot_seq"], 2, "the refused start is no boot");
}

#[test]
fn a_kill_at_any_time_is_followed_by_the_next_boot() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let flag = format!("--data-dir={}", data.display());
    for boot in 1..=3 {
        Running::ready(dir.path(), &[&flag]).kill();
        let now = identity(&data);
        assert_eq!((&now["boot_seq"], &now["state"]), (&json!(boot), &json!("born")));
    }
}

#[test]
fn a_directory_that_nobody_has_seen_follows_the_flags_and_half_made_ones_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let data = member(dir.path());
    let first = identity(&data);
    edit_identity(&data, "state", &json!("unborn"));
    fs::create_dir_all(data.join("member.tmp/wal")).unwrap();
    fs::write(data.join("member.tmp/identity.json"), b"half").unwrap();
    let flag = format!("--data-dir={}", data.display());
    let url = "--initial-advertise-peer-urls=http://127.0.0.1:9";
    let running = Running::ready(dir.path(), &[&flag, "--name=other", url]);
    let now = identity(&data);
    assert_eq!((&now["name"], &now["boot_seq"]), (&json!("other"), &json!(1)));
    assert_eq!(now["dir_uuid"], first["dir_uuid"]);
    assert_ne!(now["member_id"], first["member_id"]);
    assert_eq!(running.stop().code(), Some(0));
    let left: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "LOCK and member alone: {left:?}");
}

#[test]
fn a_dedicated_wal_dir_belongs_to_its_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for place in [&one, &two] {
        let data = format!("--data-dir={}/data", place.display());
        let wal = format!("--wal-dir={}/wal", place.display());
        assert_eq!(Running::ready(dir.path(), &[&data, &wal]).stop().code(), Some(0));
        assert!(!place.join("data/member/wal").exists());
    }
    let wrong = format!("--wal-dir={}/wal", two.display());
    refused(dir.path(), &one.join("data"), &[&wrong], "WRONG_DIR", 78);
    refused(dir.path(), &one.join("data"), &[], "WAL_MISSING", 66).says("--wal-dir");
    let none = format!("--wal-dir={}/none", two.display());
    refused(dir.path(), &one.join("data"), &[&none], "WAL_MISSING", 66);
    let right = format!("--wal-dir={}/wal", one.display());
    let data = format!("--data-dir={}/data", one.display());
    assert_eq!(Running::ready(dir.path(), &[&data, &right]).stop().code(), Some(0));
}

#[test]
fn the_holder_of_a_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let flag = format!("--data-dir={}", data.display());
    let running = Running::ready(dir.path(), &[&flag, "--name=holder"]);
    let ended = start(dir.path(), &data, &["--name=holder", "--data-dir-lock-wait=50ms"]);
    ended.expect("DATA_DIR_BUSY", 69).says(&format!("pid {} on host", running.pid())).says("--name=holder");
    assert_eq!(running.stop().code(), Some(0));
}

#[test]
fn a_port_in_use_names_the_setting_and_leaves_no_member_behind() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", taken.local_addr().unwrap());
    for setting in ["listen-peer-urls", "listen-client-urls", "listen-metrics-urls"] {
        let data = dir.path().join(setting);
        let listen = format!("--{setting}={url}");
        start(dir.path(), &data, &[&listen]).expect("PORT_IN_USE", 69).says(&format!("--{setting}"));
        assert!(files(&data).is_empty(), "{setting}: {:?}", files(&data).keys());
    }
    let data = dir.path().join("other-host");
    start(dir.path(), &data, &["--listen-peer-urls=http://192.0.2.1:1"])
        .expect("PORT_IN_USE", 69)
        .says("no address of this host")
        .says("ip -br address");
}

#[test]
fn what_the_system_forbids_and_what_it_cannot_do_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    start(dir.path(), Path::new("/sys/cairnd-test"), &[]).expect("PERMISSION_DENIED", 77).says("/sys");
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    start(dir.path(), &file.join("data"), &[]).expect("IO_ERROR", 74);
    let log = format!("--log-outputs={}/no/such.log", dir.path().display());
    start(dir.path(), &dir.path().join("d"), &[&log]).expect("IO_ERROR", 74);
}

#[test]
fn the_start_is_told_in_the_words_that_others_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::ready(dir.path(), &["--data-dir=d"]);
    running.signal(Signal::SIGTERM);
    running.wait_for("\"msg\":\"stopped\"");
    for words in [
        "listening for peers",
        "listening for client requests",
        "setting up initial cluster version",
        "set initial cluster version",
        "published name and client URLs to the cluster",
        READY,
    ] {
        let line = running.seen.iter().find(|line| line.contains(&format!("\"msg\":\"{words}\"")));
        let record: serde_json::Value = serde_json::from_str(
            line.unwrap_or_else(|| panic!("{words:?} is not told: {:#?}", running.seen)),
        )
        .unwrap();
        for key in ["level", "ts", "caller", "msg"] {
            assert!(record[key].is_string(), "{key} in {record}");
        }
    }
    assert_eq!(running.wait().code(), Some(0));
}

/// Regression OP11. A member that waits for others says for whom, and ends when asked. Whom nobody has counted leaves nothing.
#[test]
fn stop_while_bootstrapping() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = PORTS.to_vec();
    let cluster = "--initial-cluster=n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n3=http://127.0.0.1:3";
    args.extend(["--name=n1", "--data-dir=d", cluster]);
    for attendance in ["all", "majority"] {
        let flag = format!("--initial-cluster-attendance={attendance}");
        let mut args = args.clone();
        args.push(&flag);
        let mut running = Running::spawn(command(dir.path(), &args));
        let line = running.wait_for("waiting for the first members");
        assert!(line.contains("n2 (") && line.contains("n3 ("), "{line}");
        assert_eq!(identity(&dir.path().join("d"))["state"], "unborn");
        assert_eq!(running.stop().code(), Some(0));
        assert!(!dir.path().join("d").exists(), "{attendance}");
    }

    // Settled, and the others are gone.
    let flag = "--data-dir=e";
    assert_eq!(Running::ready(dir.path(), &["--name=n1", flag]).stop().code(), Some(0));
    let data = dir.path().join("e");
    let others = json!([{ "id": "2", "name": "n2", "peer_urls": ["http://127.0.0.1:2"], "dir_uuid": null }]);
    edit_identity(&data, "members", &others);
    assert_eq!(Running::ready(dir.path(), &[flag]).stop().code(), Some(0), "nobody has to be there");
}

/// Regression AP11. What a crash can leave at each step of a first start and of a change of the identity file is resumed.
#[test]
fn killed_right_after_log_creation() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let whole = place("whole");
    let (data, wal) =
        (format!("--data-dir={}/data", whole.display()), format!("--wal-dir={}/wal", whole.display()));
    assert_eq!(Running::ready(dir.path(), &[&data, &wal]).stop().code(), Some(0));
    edit_identity(&whole.join("data"), "state", &json!("unborn"));
    fs::copy(whole.join("data/member/identity.json"), whole.join("wal/identity.json")).unwrap();

    type Crash<'a> = &'a dyn Fn(&Path);
    let steps: [(&str, Crash); 5] = [
        ("the log of its own directory is made, the member is not", &|at| {
            fs::remove_dir_all(at.join("data/member")).unwrap()
        }),
        ("the member is built and has no name yet", &|at| {
            fs::rename(at.join("data/member"), at.join("data/member.tmp")).unwrap();
        }),
        ("the replaced one is aside and the new one has no name yet", &|at| {
            copy_tree(&at.join("data/member"), &at.join("data/member.unborn"));
            fs::rename(at.join("data/member"), at.join("data/member.tmp")).unwrap();
        }),
        ("the replaced one is not cleared yet", &|at| {
            copy_tree(&at.join("data/member"), &at.join("data/member.unborn"));
        }),
        ("a new identity file is written beside the old one", &|at| {
            fs::write(at.join("data/member/identity.json.tmp"), b"{ half").unwrap();
        }),
    ];
    for (number, (step, crash)) in steps.into_iter().enumerate() {
        let at = place(&format!("step-{number}"));
        copy_tree(&whole, &at);
        crash(&at);
        let (data, wal) =
            (format!("--data-dir={}/data", at.display()), format!("--wal-dir={}/wal", at.display()));
        let status = Running::ready(dir.path(), &[&data, &wal]).stop();
        assert_eq!(status.code(), Some(0), "{step}");
        let now = identity(&at.join("data"));
        assert_eq!((&now["state"], &now["boot_seq"]), (&json!("born"), &json!(1)), "{step}");
        let mut left: Vec<_> =
            fs::read_dir(at.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["LOCK", "member"], "{step}");
    }
}
