//! Discovery through the real etcd: 3.4 with its v2 API, 3.5 as a v3 service with and without TLS and login. `CAIRN_REAL_ETCD` names the
//! directory of etcd and etcdctl 3.5; 3.4 lies beside it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::support::{PATIENCE, Searched, own_at, search, search_until, v2};
use crate::{
    bootstrap::genesis::Genesis,
    discovery::{
        Own, Registering, Service as _,
        http::Service,
        register::{Answer, Question},
        settings::{Endpoint, Login, Patience, TlsFiles, V3Settings, Way},
    },
    refusal::Id,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Directories of etcd 3.5 and 3.4; a line past the test's captured output tells when there are none.
fn binaries() -> Option<(PathBuf, PathBuf)> {
    let newer =
        std::env::var_os("CAIRN_REAL_ETCD").map(PathBuf::from).filter(|dir| dir.join("etcdctl").is_file());
    let beside = newer.as_ref().and_then(|dir| fs::read_dir(dir.parent()?).ok());
    let mut beside = beside.into_iter().flatten().flatten().map(|entry| entry.path());
    let older =
        beside.find(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("3.4.")));
    let found = newer.zip(older);
    if found.is_none() {
        let line =
            "SKIPPED discovery through etcd: CAIRN_REAL_ETCD does not name etcd 3.5 with 3.4 beside it\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

struct Etcd {
    process: Child,
    port: u16,
    tools: PathBuf,
    dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Etcd {
    fn start(tools: &Path, scheme: &str, flags: &[&str]) -> Etcd {
        let dir = tempfile::tempdir().unwrap();
        let (port, peer) = (port(), port());
        let client = format!("{scheme}://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let process = Command::new(tools.join("etcd"))
            .args(["--data-dir", dir.path().join("data").to_str().unwrap(), "--name=service"])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
            ])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("service={peer}")])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Etcd { process, port, tools: tools.to_owned(), dir }
    }

    fn ctl(&self, scheme: &str, args: &[&str]) -> bool {
        let mut command = Command::new(self.tools.join("etcdctl"));
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("{scheme}://127.0.0.1:{}", self.port));
        command.args(["--dial-timeout=1s", "--command-timeout=2s"]).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// A v2 call; the answer with its head.
    fn v2(&self, method: &str, path: &str, form: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{form}", form.len()).as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// A token for `size` members, and its URL.
    fn token(&self, name: &str, size: &str) -> String {
        let path = format!("/v2/keys/discovery/{name}");
        until("a token", || {
            let answer = self.v2("PUT", &format!("{path}/_config/size"), &format!("value={size}"))?;
            answer.starts_with("HTTP/1.1 201").then_some(())
        });
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// A search that is killed as soon as it waits for others: what it saved is all that is left.
fn killed(way: &Way, own: &Own) -> Registering {
    let mut saved = None;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut save = |registering: &Registering| {
            saved = Some(registering.clone());
            Ok(())
        };
        let mut progress = |line: String| {
            if line.contains("waiting for") && line.starts_with("found") {
                std::panic::resume_unwind(Box::new("killed"));
            }
        };
        crate::discovery::discover(way, own, None, &mut save, &mut progress)
    }));
    assert!(ended.is_err(), "killed before it found anything: {ended:?}");
    saved.expect("saved before it registered")
}

/// Three members of one token, one of them killed while it waits and started again: all find the same.
fn three_with_one_killed(ways: &[Way; 3], owns: &[Own; 3]) -> Vec<Searched> {
    let registered = killed(&ways[0], &owns[0]);
    // Without its directory it is a stranger to its own registration.
    let stranger = search(&ways[0], &owns[0], None);
    assert_eq!(stranger.refused().refusal.id, Id::TokenConflict, "{}", stranger.refused().refusal.text());
    assert!(!stranger.refused().seen && stranger.saved.is_none());
    let (waits, waiting) = mpsc::channel();
    thread::scope(|scope| {
        let resumed = scope.spawn(move || {
            search_until(&ways[0], &owns[0], Some(&registered), &mut |line| {
                if line.contains("waiting for") {
                    let _ = waits.send(());
                }
            })
        });
        waiting.recv_timeout(LIMIT).expect("the member waits");
        let second = scope.spawn(|| search(&ways[1], &owns[1], None));
        let third = scope.spawn(|| search(&ways[2], &owns[2], None));
        [resumed, second, third].map(|thread| thread.join().unwrap()).into()
    })
}

const NAMES: [(&str, &str); 3] = [
    ("n1", "http://127.0.0.1:1"),
    ("n2", "http://127.0.0.1:2,http://127.0.0.1:22"),
    ("n3", "http://127.0.0.1:3"),
];
const ALL: &str = "n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n2=http://127.0.0.1:22,n3=http://127.0.0.1:3";

fn owns() -> [Own; 3] {
    NAMES.map(|(name, urls)| own_at(name, urls))
}

#[test]
fn three_members_find_each_other_through_etcd_3_4() {
    let Some((_, older)) = binaries() else { return };
    let service = Etcd::start(&older, "http", &["--enable-v2"]);
    let url = service.token("three", "3");
    let way = || Way::V2(v2(&url));
    let searched = three_with_one_killed(&[way(), way(), way()], &owns());
    for one in &searched {
        assert_eq!(one.canonical(), ALL);
        assert!(one.lines.iter().any(|line| line.starts_with("found self ")), "{:?}", one.lines);
    }
    let late = search(&way(), &own_at("n4", "http://127.0.0.1:4"), None);
    assert_eq!(late.refused().refusal.id, Id::DiscoveryFull);
    for name in ["n1=", "n2=", "n3="] {
        assert!(late.refused().refusal.text().contains(name), "{}", late.refused().refusal.text());
    }
    // The other mistakes, each on the real service.
    let unknown = search(&Way::V2(v2(&url.replace("three", "four"))), &owns()[0], None);
    assert_eq!(
        unknown.refused().refusal.id,
        Id::DiscoveryTokenUnknown,
        "{}",
        unknown.refused().refusal.text()
    );
    for size in ["0", "abc"] {
        let url = service.token(&format!("size-{size}"), size);
        assert_eq!(search(&Way::V2(v2(&url)), &owns()[0], None).refused().refusal.id, Id::DiscoverySizeBad);
    }
    let nameless = format!("http://127.0.0.1:{}/v2/keys/discovery/nosize", service.port);
    service.v2("PUT", "/v2/keys/discovery/nosize?dir=true", "").unwrap();
    assert_eq!(search(&Way::V2(v2(&nameless)), &owns()[0], None).refused().refusal.id, Id::DiscoverySizeBad);
    let other = format!("http://127.0.0.1:{}/metrics", service.port);
    assert_eq!(search(&Way::V2(v2(&other)), &owns()[0], None).refused().refusal.id, Id::DiscoveryNotEtcd);
}

/// All of them used to register and to found a cluster each.
#[test]
fn the_token_in_two_spellings_and_names_in_one_are_found_out() {
    let Some((_, older)) = binaries() else { return };
    let service = Etcd::start(&older, "http", &["--enable-v2"]);
    let url = service.token("spelled", "2");
    killed(&Way::V2(v2(&url)), &owns()[0]);
    for other in [url.replace("127.0.0.1", "localhost"), format!("{url}/")] {
        let searched = search(&Way::V2(v2(&other)), &owns()[2], None);
        let not_found = searched.refused();
        assert_eq!(not_found.refusal.id, Id::DiscoveryTokenSpelling, "{other}: {}", not_found.refusal.text());
        assert!(!not_found.seen, "no place was used up");
    }
    for clash in [own_at("n1", "http://127.0.0.1:9"), own_at("n9", "http://127.0.0.1:1,http://127.0.0.1:9")] {
        let searched = search(&Way::V2(v2(&url)), &clash, None);
        assert_eq!(
            searched.refused().refusal.id,
            Id::DiscoveryDuplicate,
            "{}",
            searched.refused().refusal.text()
        );
    }
    assert_eq!(
        search(&Way::V2(v2(&url)), &owns()[2], None).canonical(),
        "n1=http://127.0.0.1:1,n3=http://127.0.0.1:3"
    );
}

/// Members of etcd 3.4 and 3.5 and of cairn behind one token come to the same ids.
#[test]
fn members_of_etcd_find_us_and_the_same_cluster_id() {
    let Some((newer, older)) = binaries() else { return };
    let service = Etcd::start(&older, "http", &["--enable-v2"]);
    let url = service.token("mixed", "3");
    let dir = tempfile::tempdir().unwrap();
    let members = [("e4", &older), ("e5", &newer)].map(|(name, tools)| {
        let log = dir.path().join(format!("{name}.log"));
        let urls = [port(), port()].map(|port| format!("http://127.0.0.1:{port}"));
        let process = Command::new(tools.join("etcd"))
            .args([
                "--name",
                name,
                "--data-dir",
                dir.path().join(name).to_str().unwrap(),
                "--discovery",
                &url,
            ])
            .args([
                "--discovery-fallback=exit",
                "--logger=zap",
                "--log-outputs=stderr",
                "--listen-peer-urls",
                &urls[0],
            ])
            .args(["--initial-advertise-peer-urls", &urls[0], "--listen-client-urls", &urls[1]])
            .args(["--advertise-client-urls", &urls[1]])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        (Etcd { process, port: 0, tools: tools.clone(), dir: tempfile::tempdir().unwrap() }, log)
    });
    let searched = search(&Way::V2(v2(&url)), &owns()[0], None);
    let found = searched.outcome.as_ref().unwrap_or_else(|not_found| panic!("{}", not_found.refusal.text()));
    assert_eq!(found.cluster.members().len(), 3);
    let ours = Genesis::new(&found.cluster, &found.token).unwrap().cluster.to_string();
    for (_, log) in &members {
        until("etcd's cluster id", || {
            let text = fs::read_to_string(log).unwrap_or_default();
            let line = text.lines().find(|line| line.contains("\"cluster-id\""))?;
            assert!(line.contains(&format!("\"cluster-id\":\"{ours}\"")), "{ours} is not in {line}");
            Some(())
        });
    }
}

fn v3(port: u16, token: &str) -> V3Settings {
    V3Settings {
        // Nobody is at the first.
        endpoints: [self::port(), port]
            .map(|port| Endpoint { tls: false, host: "127.0.0.1".into(), port })
            .into(),
        token: token.into(),
        dial_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(10),
        keepalive_time: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(20),
        tls: TlsFiles::default(),
        login: None,
        patience: PATIENCE,
    }
}

#[test]
fn three_members_find_each_other_through_etcd_3_5() {
    let Some((newer, _)) = binaries() else { return };
    let service = Etcd::start(&newer, "http", &[]);
    let size = |token: &str, size: &str| {
        let key = format!("/_etcd/registry/{token}/_config/size");
        until("a token", || service.ctl("http", &["put", &key, size]).then_some(()));
    };
    size("three", "3");
    let way = || Way::V3(v3(service.port, "three"));
    for one in three_with_one_killed(&[way(), way(), way()], &owns()) {
        assert_eq!(one.canonical(), ALL);
        assert_eq!(one.outcome.unwrap().token, "three");
    }
    let late = search(&way(), &own_at("n4", "http://127.0.0.1:4"), None);
    assert_eq!(late.refused().refusal.id, Id::DiscoveryFull, "{}", late.refused().refusal.text());
    let unknown = search(&Way::V3(v3(service.port, "four")), &owns()[0], None);
    assert_eq!(unknown.refused().refusal.id, Id::DiscoveryTokenUnknown);
    size("zero", "0");
    let zero = search(&Way::V3(v3(service.port, "zero")), &owns()[0], None);
    assert_eq!(zero.refused().refusal.id, Id::DiscoverySizeBad);
    // etcd itself never looked at names here: every node founded a cluster of its own.
    size("names", "2");
    killed(&Way::V3(v3(service.port, "names")), &owns()[0]);
    let twin = search(&Way::V3(v3(service.port, "names")), &own_at("n1", "http://127.0.0.1:9"), None);
    assert_eq!(twin.refused().refusal.id, Id::DiscoveryDuplicate);
    // Members that do not come, and a service that is not there.
    let limits = |port| V3Settings {
        patience: Patience { service: Duration::ZERO, members: Some(Duration::from_secs(1)) },
        ..v3(port, "names")
    };
    let alone = search(&Way::V3(limits(service.port)), &owns()[2], None);
    assert_eq!(alone.canonical(), "n1=http://127.0.0.1:1,n3=http://127.0.0.1:3");
    size("empty", "2");
    let alone =
        search(&Way::V3(V3Settings { token: "empty".into(), ..limits(service.port) }), &owns()[2], None);
    assert_eq!(alone.refused().refusal.id, Id::DiscoveryIncomplete);
    assert!(alone.refused().seen);
    let nobody = search(&Way::V3(limits(port())), &owns()[0], None);
    assert_eq!(nobody.refused().refusal.id, Id::DiscoveryUnreachable, "{}", nobody.refused().refusal.text());
}

/// An authority, and files of what it signed for 127.0.0.1.
fn certificates(dir: &Path) -> TlsFiles {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let write = |name: &str, text: String| {
        fs::write(dir.join(name), text).unwrap();
        Some(dir.join(name))
    };
    TlsFiles {
        cacert: write("ca.pem", authority.pem()),
        cert: write("cert.pem", certificate.pem()),
        key: write("key.pem", key.serialize_pem()),
        skip_verify: false,
    }
}

#[test]
fn a_service_with_tls_and_logins_knows_its_members() {
    let Some((newer, _)) = binaries() else { return };
    let (dir, strange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tls, stranger) = (certificates(dir.path()), certificates(strange.path()));
    let path = |file: &Option<PathBuf>| file.as_ref().unwrap().to_str().unwrap().to_owned();
    let (ca, cert, key) = (path(&tls.cacert), path(&tls.cert), path(&tls.key));
    let flags = ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &ca];
    let service = Etcd::start(&newer, "https", &flags);
    let with = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    let ctl =
        |args: &[&str]| until(args[0], || service.ctl("https", &[&with[..], args].concat()).then_some(()));
    ctl(&["put", "/_etcd/registry/safe/_config/size", "1"]);
    ctl(&["user", "add", "root:secret"]);
    ctl(&["user", "grant-role", "root", "root"]);
    ctl(&["user", "add", "member:word"]);
    ctl(&["role", "add", "discovery"]);
    ctl(&["role", "grant-permission", "discovery", "readwrite", "/_etcd/registry/", "--prefix"]);
    ctl(&["user", "grant-role", "member", "discovery"]);
    ctl(&["auth", "enable"]);
    assert!(service.dir.path().exists());
    let way = |tls: &TlsFiles, login: Option<(&str, &str)>| {
        let login = login.map(|(user, password)| Login { user: user.into(), password: password.into() });
        let endpoints = vec![Endpoint { tls: true, host: "127.0.0.1".into(), port: service.port }];
        let patience = Patience { service: Duration::ZERO, members: None };
        Way::V3(V3Settings { endpoints, tls: tls.clone(), login, patience, ..v3(service.port, "safe") })
    };
    let member = Some(("member", "word"));
    for (tls, login, id, words) in [
        (
            &TlsFiles { cacert: stranger.cacert.clone(), ..tls.clone() },
            member,
            Id::DiscoveryUnreachable,
            "TLS: invalid peer certificate",
        ),
        (
            &TlsFiles { cacert: None, ..tls.clone() },
            member,
            Id::DiscoveryUnreachable,
            "TLS: invalid peer certificate",
        ),
        (&TlsFiles { cert: None, key: None, ..tls.clone() }, member, Id::DiscoveryUnreachable, ""),
        (
            &TlsFiles { key: Some("/no/such.key".into()), ..tls.clone() },
            member,
            Id::BadValue,
            "--discovery-key",
        ),
        (&tls, Some(("member", "wrong")), Id::DiscoveryRejected, "login of member"),
        (&tls, None, Id::DiscoveryRejected, "permission denied"),
    ] {
        let searched = search(&way(tls, login), &owns()[0], None);
        let not_found = searched.refused();
        assert_eq!(not_found.refusal.id, id, "{}", not_found.refusal.text());
        assert!(not_found.refusal.text().contains(words), "{words:?} is not in {}", not_found.refusal.text());
        assert!(!not_found.seen);
    }
    let trusting = TlsFiles { cacert: None, skip_verify: true, ..tls.clone() };
    assert_eq!(search(&way(&trusting, member), &owns()[0], None).canonical(), "n1=http://127.0.0.1:1");
    let full = search(&way(&tls, member), &owns()[2], None);
    assert_eq!(full.refused().refusal.id, Id::DiscoveryFull, "{}", full.refused().refusal.text());
}

/// A proxy that opens tunnels and nothing else.
fn tunnels() -> url::Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test's process: nothing tells it that no more connections come.
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let mut near = near;
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && near.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut words = head.split_whitespace();
            assert_eq!(words.next(), Some("CONNECT"), "{head}");
            let mut far = TcpStream::connect(words.next().unwrap()).unwrap();
            near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
            thread::spawn(move || std::io::copy(&mut near, &mut far));
        }
    });
    url.parse().unwrap()
}

#[test]
fn a_v2_service_with_tls_is_asked_directly_and_through_a_proxy() {
    let Some((_, older)) = binaries() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tls = certificates(dir.path());
    let path = |file: &Option<PathBuf>| file.as_ref().unwrap().to_str().unwrap().to_owned();
    let (ca, cert, key) = (path(&tls.cacert), path(&tls.cert), path(&tls.key));
    let flags = ["--enable-v2", "--cert-file", &cert, "--key-file", &key];
    let service = Etcd::start(&older, "https", &flags);
    let place = format!("https://127.0.0.1:{}", service.port);
    until("a token", || {
        let mut command = Command::new(service.tools.join("etcdctl"));
        command.env("ETCDCTL_API", "2").args(["--endpoints", &place, "--ca-file", &ca]);
        command.args(["set", "/discovery/T/_config/size", "3"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success().then_some(())
    });
    let direct = v2(&format!("{place}/v2/keys/discovery/T"));
    let through = crate::discovery::settings::V2Settings { proxy: Some(tunnels()), ..direct.clone() };
    let own = crate::discovery::registration(&Way::V2(direct.clone()), &owns()[0]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for settings in [direct, through] {
        let asked = |authorities: &TlsFiles| {
            let mut asked = Service::trusting(&settings, &own, authorities).unwrap();
            runtime.block_on(asked.ask(&Question::Size))
        };
        let trusted = TlsFiles { cacert: tls.cacert.clone(), ..TlsFiles::default() };
        assert_eq!(asked(&trusted), Answer::Size(Some("3".into())), "through {:?}", settings.proxy);
        let refused = asked(&TlsFiles::default());
        assert!(
            matches!(&refused, Answer::Lost(why) if why.contains("invalid peer certificate")),
            "{refused:?}"
        );
    }
}
