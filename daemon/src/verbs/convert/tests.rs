use std::{collections::BTreeMap, path::Path};

use super::{write::MARK, *};
use crate::config::{Surroundings, file, resolve};

/// The output as our own reader takes it: no problem in it, whatever could not be carried over.
fn carried(out: &str) -> BTreeMap<&'static str, String> {
    let (given, problems) = file::parse(Path::new("c.toml"), out);
    assert_eq!(problems, [], "{out}");
    let dir = tempfile::tempdir().unwrap();
    let default_file = dir.path().join("cairnd.toml");
    std::fs::write(&default_file, out).unwrap();
    let resolved = resolve(&Surroundings { flags: vec![], variables: vec![], default_file });
    assert_eq!(resolved.problems, [], "{out}");
    given.into_iter().map(|one| (one.setting.name, one.text)).collect()
}

const YAML: &str = r#"
# This is the configuration file for the etcd server.
name: 'n1'
data-dir: /var/lib/etcd
wal-dir:
snapshot-count: 10000
heartbeat-interval: 150
election-timeout: 1500
quota-backend-bytes: 8589934592
listen-peer-urls: http://10.0.0.1:2380
listen-client-urls: http://10.0.0.1:2379,http://127.0.0.1:2379
max-wals: 7
cors:
initial-advertise-peer-urls: http://10.0.0.1:2380
advertise-client-urls: http://10.0.0.1:2379
discovery:
initial-cluster: n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380
initial-cluster-token: 'our "own" token'
initial-cluster-state: new
strict-reconfig-check: yes
enable-pprof: true
grpc-keepalive-interval: 7200000000000
grpc-keepalive-timeout: 1500000000
experimental-watch-progress-notify-interval: 5m
experimental-initial-corrupt-check: true
socket-options:
  reuse-port: true
client-transport-security:
  cert-file: /etc/etcd/server.crt
  client-cert-auth: false
  trusted-ca-fil: /etc/etcd/ca.crt
peer-transport-security:
  auto-tls: false
log-level: debug
log-outputs: [stderr, /var/log/etcd.log]
auto-compaction-mode: periodic
auto-compaction-retention: "1"
election-timeut: 5
"#;

#[test]
fn the_file_of_an_etcd_is_carried_over_and_nothing_is_dropped_in_silence() {
    let (out, verdict) = convert("etcd.conf.yml", YAML);
    let found = carried(&out);
    for (name, text) in [
        ("name", "n1"),
        ("data-dir", "/var/lib/etcd"),
        ("heartbeat-interval", "150"),
        ("quota-backend-bytes", "8589934592"),
        ("listen-client-urls", "http://10.0.0.1:2379,http://127.0.0.1:2379"),
        ("initial-cluster", "n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380"),
        ("initial-cluster-token", "our \"own\" token"),
        ("strict-reconfig-check", "true"),
        ("grpc-keepalive-interval", "2h"),
        ("grpc-keepalive-timeout", "1500ms"),
        ("watch-progress-notify-interval", "5m"),
        ("feature-gates", "InitialCorruptCheck=true"),
        ("log-outputs", "stderr,/var/log/etcd.log"),
        ("auto-compaction-retention", "1"),
    ] {
        assert_eq!(found.get(name).map(String::as_str), Some(text), "{name} in {out}");
    }
    let refusal = verdict.unwrap_err();
    assert_eq!(refusal.exit() as u8, 64);
    for words in [
        "etcd.conf.yml:29: client-transport-security.cert-file could not be carried over",
        "etcd.conf.yml:31: client-transport-security.trusted-ca-fil could not be carried over",
        "nearest name: trusted-ca-file",
        "etcd.conf.yml:38: election-timeut could not be carried over",
        "nearest name: election-timeout",
    ] {
        assert!(refusal.text().contains(words), "{words:?} is not in {}", refusal.text());
    }
    assert_eq!(out.matches(MARK).count(), 3 + 1, "each, and the line that counts them: {out}");
    for words in [
        "NOT CARRIED OVER (NOT_SUPPORTED): etcd.conf.yml:29: client-transport-security.cert-file = /etc/etcd/server.crt",
        "NOT CARRIED OVER (UNKNOWN_SETTING): etcd.conf.yml:38: election-timeut = 5",
        "etcd.conf.yml:21: enable-pprof = true\n# without effect here",
        "etcd.conf.yml:5: wal-dir = \n# empty",
        "does not read the files of etcd",
    ] {
        assert!(out.contains(words), "{words:?} is not in {out}");
    }
}

/// Every key that etcd's file can have leads somewhere: none is unknown here.
#[test]
fn every_key_of_etcds_file_is_known() {
    let grouped = |setting: &Setting| match setting.group.toml_table() {
        Some(table) => {
            setting.toml_place().map_or(String::new(), |(_, key)| format!("{table}:\n  {key}: x\n"))
        }
        None => format!("{}: x\n", setting.name),
    };
    let list = include_str!("../../../tests/data/etcd-flags.txt");
    for name in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let text = grouped(find(name));
        let items = yaml::items("f", &text).unwrap();
        assert_eq!(items.len(), 1, "{text}");
        assert_eq!(items[0].target, Target::Setting(find(name).name), "{text}");
    }
    let nested = "discovery-config:\n  token: t\n  client:\n    endpoints: [a, b]\n    secure:\n      cert: c\n    auth:\n      username: u\nsocket-options:\n  reuse-address: true\n";
    let found: Vec<String> = yaml::items("f", nested)
        .unwrap()
        .iter()
        .map(|item| format!("{:?}={}", item.target, item.text))
        .collect();
    assert_eq!(
        found,
        [
            "Setting(\"discovery-token\")=t",
            "Setting(\"discovery-endpoints\")=a,b",
            "Setting(\"discovery-cert\")=c",
            "Setting(\"discovery-user\")=u",
            "Setting(\"socket-reuse-address\")=true",
        ]
    );
}

#[test]
fn the_environment_file_of_debian_is_carried_over() {
    let text = "## etcd(1) daemon options\n#ETCD_NAME=\"no\"\nETCD_NAME=\"n1\"\nETCD_LISTEN_PEER_URLS=http://10.0.0.1:2380 # ours\n\
                export ETCD_INITIAL_CLUSTER='n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380'\nETCD_HEARTBEAT_INTERVAL=100\n\
                ETCD_DATADIR=/x\nETCDCTL_API=3\nGOMAXPROCS=2\n\
                DAEMON_ARGS=\"--heartbeat-interval 150 --pre-vote=false \\\n  -max-wals=9 --cert-file=/c --nmae x\"\n";
    let (out, verdict) = convert("/etc/default/etcd", text);
    let found = carried(&out);
    for (name, value) in [
        ("name", "n1"),
        ("listen-peer-urls", "http://10.0.0.1:2380"),
        ("initial-cluster", "n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380"),
        ("heartbeat-interval", "150"),
        ("pre-vote", "false"),
        ("max-wals", "9"),
    ] {
        assert_eq!(found.get(name).map(String::as_str), Some(value), "{name} in {out}");
    }
    assert_eq!(found.len(), 6, "{out}");
    let refusal = verdict.unwrap_err();
    for words in ["ETCD_DATADIR", "DAEMON_ARGS: --cert-file", "--nmae", "/etc/default/etcd:7"] {
        assert!(refusal.text().contains(words), "{words:?} is not in {}", refusal.text());
    }
    for words in ["ETCDCTL_API = 3\n# for etcdctl", "GOMAXPROCS = 2\n# no setting of etcd", "given again"] {
        assert!(out.contains(words), "{words:?} is not in {out}");
    }
}

#[test]
fn an_environment_that_names_a_file_says_nothing_else() {
    let (_, verdict) = convert("f", "ETCD_CONFIG_FILE=/etc/etcd/etcd.conf.yml\nETCD_NAME=x\n");
    assert!(verdict.unwrap_err().text().contains("convert it instead"));
}

#[test]
fn what_is_neither_is_refused_with_its_line() {
    for (text, words) in [
        ("name: [n1\n", "f:"),
        ("- a\n- b\n", "no list of keys"),
        ("a: 1\na: 2\n", "f:2: here"),
        ("a: &x 1\nb: *x\n", "alias"),
        ("a: 1\n---\nb: 1\n", "more than one document"),
    ] {
        let (out, verdict) = convert("f", text);
        let refusal = verdict.unwrap_err();
        assert_eq!((out.as_str(), refusal.id), ("", Id::ConfigFile), "{text:?}");
        assert!(refusal.text().contains(words), "{text:?}: {}", refusal.text());
    }
    for nothing in ["", "# comments alone\n"] {
        let (out, verdict) = convert("f", nothing);
        assert_eq!(verdict, Ok(()));
        assert!(carried(&out).is_empty());
    }
}
