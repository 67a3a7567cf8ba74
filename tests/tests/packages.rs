//! The packages as an administrator gets them: what is in them, what their scripts do to a host, and that alerts, units and linters
//! agree with them. Built once by packaging/build, out of the binaries under test.
//!
//! Hosts are overlays over this one's root in a mount namespace, with a `systemctl` that only writes down what it is asked for. What a
//! running systemd makes of the units is another file's story (systemd.rs).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_tests::{
    harness::{Cluster, Kind, cairn_binary, http_get},
    namespace,
};

/// A version that sorts behind every release of the one in Cargo.toml, in both kinds of packages.
const NEXT: &str = "99.0~next";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the workspace")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a program printed, if it went well.
fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).current_dir(root()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} is not here: tests/tools/install"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}\n{}", output.status, text(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn build(into: &Path, version: Option<&str>) -> Result<()> {
    let binaries = cairn_binary("cairnd")?;
    let mut command = Command::new(root().join("packaging/build"));
    command.args(["--fast", "--no-dbgsym", "--out"]).arg(into).stdin(Stdio::null());
    command.env("CAIRN_BIN_DIR", binaries.parent().context("a directory of binaries")?);
    // Any time will do, as long as nobody commits meanwhile.
    command.env("SOURCE_DATE_EPOCH", "1767225600");
    if let Some(version) = version {
        command.env("CAIRN_PACKAGE_VERSION", version);
    }
    let output = command.output()?;
    ensure!(output.status.success(), "packaging/build: {}", text(&output));
    Ok(())
}

/// A directory with the packages of this version in `now` and those of a later one in `next`. Made once by the process that is not in a
/// namespace; the ones inside find it.
fn packages() -> Result<&'static Path> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let made = BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        if !namespace::inside() {
            let _ = fs::remove_dir_all(&directory);
            build(&directory.join("now"), None).map_err(|error| format!("{error:#}"))?;
            build(&directory.join("next"), Some(NEXT)).map_err(|error| format!("{error:#}"))?;
        }
        Ok(directory)
    });
    match made {
        Ok(directory) => Ok(directory),
        Err(error) => bail!("{error}"),
    }
}

/// The only file in `now` or `next` that begins and ends so.
fn package(age: &str, start: &str, end: &str) -> Result<String> {
    let directory = packages()?.join(age);
    let names = fs::read_dir(&directory)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names: Vec<String> =
        names.map(|name| Ok(name?.to_string_lossy().into_owned())).collect::<Result<_>>()?;
    let fits: Vec<&String> =
        names.iter().filter(|name| name.starts_with(start) && name.ends_with(end)).collect();
    ensure!(fits.len() == 1, "{start}*{end}: found {fits:?} in {names:?}");
    Ok(directory.join(fits[0]).to_string_lossy().into_owned())
}

/// Path, and mode with owner as `ls` shows them. Manual pages are left out: their number grows with the verbs.
fn deb_content(package: &str) -> Result<BTreeMap<String, String>> {
    let listing = run("dpkg-deb", &["-c", package])?;
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[5].trim_start_matches('.').to_owned(), format!("{} {}", fields[0], fields[1]))
    };
    Ok(listing.lines().map(entry).filter(|(path, _)| !path.contains("/man/")).collect())
}

fn rpm_content(package: &str) -> Result<BTreeMap<String, String>> {
    let format = "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]";
    let listing = run("rpm", &["-qp", "--qf", format, package])?;
    let entry = |line: &str| {
        let (path, rest) = line.split_once(' ').expect("a path and more");
        (path.to_owned(), rest.trim_end().to_owned())
    };
    Ok(listing.lines().map(entry).filter(|(path, _)| !path.contains("/man/")).collect())
}

/// Files only; directories are either shared with everybody or named in the expectation by themselves.
fn files(content: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    content.iter().filter(|(_, mode)| !mode.starts_with('d')).map(|(a, b)| (a.as_str(), b.as_str())).collect()
}

#[test]
fn debs_hold_what_belongs_into_them() -> Result<()> {
    let plain = "-rw-r--r-- root/root";
    let daemon = deb_content(&package("now", "cairnd_", ".deb")?)?;
    let mut expected: BTreeMap<&str, &str> = [
        "/etc/default/cairnd",
        "/etc/ufw/applications.d/cairn",
        "/lib/systemd/system-preset/90-cairn.preset",
        "/lib/systemd/system/cairnd.service",
        "/lib/systemd/system/cairnd.socket",
        "/lib/systemd/system/cairnd@.service",
        "/usr/lib/firewalld/services/cairn.xml",
        "/usr/lib/systemd/catalog/cairn.catalog",
        "/usr/lib/sysusers.d/cairn.conf",
        "/usr/lib/tmpfiles.d/cairn.conf",
        "/usr/share/cairn/grafana/cairn.json",
        "/usr/share/cairn/prometheus/cairn.rules.yml",
        "/usr/share/doc/cairnd/cairnd.toml.example",
        "/usr/share/doc/cairnd/changelog.gz",
        "/usr/share/doc/cairnd/compatibility.md",
        "/usr/share/doc/cairnd/configuration.md",
        "/usr/share/doc/cairnd/copyright",
        "/usr/share/doc/cairnd/migrating.md",
        "/usr/share/doc/cairnd/operations.md",
        "/usr/share/doc/cairnd/performance.md",
        "/usr/share/doc/cairnd/production.md",
        "/usr/share/doc/cairnd/quickstart.md",
        "/usr/share/doc/cairnd/third-party.txt",
    ]
    .map(|path| (path, plain))
    .into();
    expected.insert("/usr/bin/cairnd", "-rwxr-xr-x root/root");
    assert_eq!(files(&daemon), expected);
    assert!(daemon.contains_key("/etc/cairn/conf.d/"), "a place for parts of the configuration");

    let tool = deb_content(&package("now", "cairnctl_", ".deb")?)?;
    let mut expected: BTreeMap<&str, &str> = [
        "/etc/cairn/cairnctl.toml",
        "/usr/share/bash-completion/completions/cairnctl",
        "/usr/share/doc/cairnctl/cairnctl.md",
        "/usr/share/doc/cairnctl/changelog.gz",
        "/usr/share/doc/cairnctl/copyright",
        "/usr/share/doc/cairnctl/third-party.txt",
        "/usr/share/fish/vendor_completions.d/cairnctl.fish",
        "/usr/share/zsh/vendor-completions/_cairnctl",
    ]
    .map(|path| (path, plain))
    .into();
    expected.insert("/usr/bin/cairnctl", "-rwxr-xr-x root/root");
    assert_eq!(files(&tool), expected);
    Ok(())
}

#[test]
fn rpms_hold_the_same_where_their_distributions_have_it() -> Result<()> {
    for (name, of_deb_only) in [
        ("cairnd", &["/etc/ufw/applications.d/cairn", "changelog.gz", "copyright"][..]),
        ("cairnctl", &["changelog.gz", "copyright"]),
    ] {
        let deb = deb_content(&package("now", &format!("{name}_"), ".deb")?)?;
        let rpm = rpm_content(&package("now", &format!("{name}-"), ".rpm")?)?;
        let moved = |path: &str| {
            let path = path.replace("/zsh/vendor-completions/", "/zsh/site-functions/");
            let path = path.replace("/etc/default/", "/etc/sysconfig/");
            path.strip_prefix("/lib/").map_or(path.clone(), |rest| format!("/usr/lib/{rest}"))
        };
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        for (path, mode) in files(&deb) {
            if !of_deb_only.iter().any(|end| path.ends_with(end)) {
                let kind = if path.starts_with("/etc/") {
                    " cn"
                } else if path.contains("/doc/") {
                    " d"
                } else {
                    ""
                };
                expected.insert(moved(path), format!("{mode}{kind}"));
            }
        }
        expected.insert(format!("/usr/share/licenses/{name}/LICENSE"), "-rw-r--r-- root/root l".into());
        let expected = expected.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<BTreeMap<_, _>>();
        assert_eq!(files(&rpm), expected, "{name}");
        if name == "cairnd" {
            assert_eq!(rpm["/var/lib/cairn"], "drwx------ cairn/cairn");
            assert_eq!(rpm["/etc/cairn/conf.d"], "drwxr-x--- root/cairn");
        }
    }
    Ok(())
}

#[test]
fn what_the_programs_need_is_computed_and_old_enough() -> Result<()> {
    for name in ["cairnd", "cairnctl"] {
        let deb = package("now", &format!("{name}_"), ".deb")?;
        let needs = run("dpkg-deb", &["-f", &deb, "Depends"])?;
        let libc =
            needs.split(", ").find_map(|need| need.strip_prefix("libc6 (>= ")).context(needs.clone())?;
        let libc = libc.trim().trim_end_matches(')');
        // Debian 12 has 2.36.
        assert!(
            run("dpkg", &["--compare-versions", libc, "le", "2.36"]).is_ok(),
            "{name} needs libc6 {libc}: built on something newer than Debian 12"
        );
        assert!(needs.contains("libgcc-s1"), "{needs}");
        let rpm = run("rpm", &["-qp", "--requires", &package("now", &format!("{name}-"), ".rpm")?])?;
        assert!(rpm.contains("libc.so.6(GLIBC_"), "{rpm}");
        assert!(!rpm.contains("python") && !rpm.contains("perl"), "{rpm}");
    }
    Ok(())
}

#[test]
fn equal_binaries_give_equal_packages() -> Result<()> {
    let first = packages()?.join("now");
    let again = tempfile::tempdir()?;
    build(again.path(), None)?;
    let mut compared = 0;
    for entry in fs::read_dir(&first)? {
        let name = entry?.file_name();
        assert!(fs::read(first.join(&name))? == fs::read(again.path().join(&name))?, "{name:?} differs");
        compared += 1;
    }
    assert_eq!(compared, 4, "two debs and two rpms");
    Ok(())
}

#[test]
fn lintian_and_rpmlint_have_nothing_to_say() -> Result<()> {
    let debs = [package("now", "cairnd_", ".deb")?, package("now", "cairnctl_", ".deb")?];
    let said = run("lintian", &["--allow-root", "--fail-on", "error,warning", &debs[0], &debs[1]])?;
    assert_eq!(said.trim(), "");
    let rpms = [package("now", "cairnd-", ".rpm")?, package("now", "cairnctl-", ".rpm")?];
    let said = run("rpmlint", &["-c", "packaging/rpm/rpmlint.toml", &rpms[0], &rpms[1]])?;
    assert!(said.contains("0 errors, 0 warnings"), "{said}");
    Ok(())
}

#[test]
fn units_give_up_what_a_member_does_not_need() -> Result<()> {
    let units = root().join("packaging/systemd");
    let main = fs::read_to_string(units.join("cairnd.service"))?;
    let instance = fs::read_to_string(units.join("cairnd@.service"))?;
    let made = run("sed", &["-f", "packaging/systemd/instance.sed", "packaging/systemd/cairnd.service"])?;
    assert!(
        instance == made,
        "cairnd@.service is made of cairnd.service: sed -f packaging/systemd/instance.sed packaging/systemd/cairnd.service"
    );
    for (name, text) in [("cairnd.service", &main), ("cairnd@.service", &instance)] {
        let unit = units.join(name).to_string_lossy().into_owned();
        // Exposure in tenths; exit status 1 beyond it.
        run("systemd-analyze", &["security", "--offline=yes", "--threshold=20", "--no-pager", &unit])?;
        for line in [
            "RestartPreventExitStatus=64 65 66 77 78 79",
            "WatchdogSec=30",
            "OOMScoreAdjust=-900",
            "LimitNOFILE=1048576",
        ] {
            assert!(text.lines().any(|found| found == line), "{name} lacks {line}");
        }
        // Once for one refusal: by the member, whose exit code counts.
        let check = text.lines().find(|line| line.starts_with("ExecStartPre=")).context("a check")?;
        assert!(check.starts_with("ExecStartPre=-/usr/bin/cairnd config check --quiet "), "{check}");
        // A member that ends at once, again and again, is never given up by what systemd counts: one start in every RestartSec.
        let number = |key: &str| -> Result<u32> {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            Ok(value.with_context(|| format!("{name} lacks {key}"))?.parse()?)
        };
        let (within, starts, pause) =
            (number("StartLimitIntervalSec")?, number("StartLimitBurst")?, number("RestartSec")?);
        assert!(
            pause > 0 && starts > within / pause + 1,
            "{name}: {starts} starts in {within} s, one in {pause} s"
        );
    }
    Ok(())
}

/// Words that begin like a metric of ours or etcd's.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let prefixes = ["cairn_", "etcd_", "grpc_", "process_", "os_fd_", "promhttp_"];
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| !word.ends_with('_') && prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[test]
fn alerts_and_dashboard_know_only_metrics_that_there_are() -> Result<()> {
    let cluster = Cluster::start(Kind::Cairn, 1)?;
    let exposed = http_get(&cluster.members[0].client_url, "/metrics")?.body;
    let mut known = BTreeSet::new();
    for line in exposed.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            known.insert(name.to_owned());
            if kind == "histogram" {
                known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
            }
        } else if let Some((_, labels)) = line.split_once('{') {
            known.extend(labels.split(['=', ',']).map(str::to_owned));
        }
    }
    assert!(known.contains("etcd_server_has_leader") && known.contains("grpc_code"), "{known:?}");

    let rules = fs::read_to_string(root().join("packaging/prometheus/cairn.rules.yml"))?;
    let dashboard = fs::read_to_string(root().join("packaging/prometheus/cairn.dashboard.json"))?;
    let board: serde_json::Value = serde_json::from_str(&dashboard)?;
    assert!(board["panels"].as_array().is_some_and(|panels| panels.len() > 20));
    for (file, text) in [("cairn.rules.yml", &rules), ("cairn.dashboard.json", &dashboard)] {
        let used = metrics_in(text);
        assert!(used.len() > 10, "{file}: {used:?}");
        let unknown: Vec<&&str> = used.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty(), "{file} names metrics that cairnd does not expose: {unknown:?}");
    }
    Ok(())
}

/// A host of its own: an overlay over this one's root.
struct Host {
    at: PathBuf,
}

impl Host {
    /// Only in a namespace of the test's own.
    fn new(directory: &Path) -> Result<Host> {
        namespace::mount(directory, 512)?;
        let at = directory.join("root");
        for part in ["root", "changes", "work"] {
            fs::create_dir(directory.join(part))?;
        }
        let layers = format!(
            "lowerdir=/,upperdir={0}/changes,workdir={0}/work",
            directory.to_str().context("a path in UTF-8")?
        );
        let place = at.to_str().context("a path in UTF-8")?;
        run("mount", &["-t", "overlay", "overlay", "-o", &layers, place])?;
        run("mount", &["-t", "proc", "proc", &format!("{place}/proc")])?;
        run("mount", &["-t", "tmpfs", "tmpfs", &format!("{place}/run")])?;
        let host = Host { at };
        host.install("/usr/bin/systemctl", SYSTEMCTL)?;
        // Images for containers forbid their packages to touch services, and bring no devices.
        host.sh("rm -f /usr/sbin/policy-rc.d; [ -e /dev/null ] || mknod -m 0666 /dev/null c 1 3")?;
        host.sh("mkdir -p /run/systemd/system /pk; : >/run/calls; : >/run/active")?;
        // Neither the index of all manual pages nor syncing to a disk that is memory is of interest.
        host.sh("rm -f /var/lib/man-db/auto-update; echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/fast")?;
        for age in ["now", "next"] {
            for entry in fs::read_dir(packages()?.join(age))? {
                let entry = entry?;
                fs::copy(entry.path(), host.at.join("pk").join(entry.file_name()))?;
            }
        }
        Ok(host)
    }

    fn install(&self, path: &str, script: &str) -> Result<()> {
        let path = self.at.join(&path[1..]);
        let _ = fs::remove_file(&path);
        fs::write(&path, script)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// What a command in it says, on either stream.
    fn sh(&self, command: &str) -> Result<String> {
        let script = format!("exec 2>&1; umask 022; cd /; {command}");
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.at).args(["sh", "-ec", &script]).stdin(Stdio::null());
        let output = chroot.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").output()?;
        let said = text(&output);
        ensure!(output.status.success(), "{command}: {}\n{said}", output.status);
        Ok(said)
    }

    /// What systemctl was asked for meanwhile, without questions and rereading of units.
    fn asked(&self) -> Result<Vec<String>> {
        let calls = self.sh("cat /run/calls; : >/run/calls")?;
        let harmless = ["daemon-reload", "list-units", "is-enabled", "is-active"];
        Ok(calls
            .lines()
            .filter(|call| !harmless.iter().any(|one| call.contains(one)))
            .map(str::to_owned)
            .collect())
    }

    fn is_fresh(&self) -> Result<()> {
        let seen = self.sh(
            "stat -c '%n %a %U:%G' /var/lib/cairn /etc/cairn/conf.d; find /etc/systemd -name '*cairn*'; \
             find /etc/cairn -name cairnd.toml; getent passwd cairn | cut -d: -f6,7",
        )?;
        assert_eq!(
            seen,
            "/var/lib/cairn 700 cairn:cairn\n/etc/cairn/conf.d 750 root:cairn\n/var/lib/cairn:/usr/sbin/nologin\n",
            "nothing enabled, no member configured"
        );
        Ok(())
    }

    /// Member's data and an administrator's changes, which every package must leave alone.
    fn live_in(&self, environment: &str) -> Result<()> {
        self.sh(&format!(
            "echo 'name = \"n1\"' >/etc/cairn/cairnd.toml; mkdir -p /var/lib/cairn/n1; echo kept >/var/lib/cairn/n1/data; \
             echo '# mine' >>{environment}; echo cairnd.service >/run/active"
        ))
        .map(drop)
    }

    fn is_lived_in(&self) -> Result<()> {
        assert_eq!(
            self.sh("cat /var/lib/cairn/n1/data; cat /etc/cairn/cairnd.toml")?,
            "kept\nname = \"n1\"\n"
        );
        Ok(())
    }

    fn forget_user(&self) -> Result<()> {
        self.sh("userdel cairn; rm -rf /var/lib/cairn /etc/cairn/cairnd.toml; : >/run/active; : >/run/calls")
            .map(drop)
    }
}

/// Stands in for the real one, which has nobody to talk to in a chroot.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >>/run/calls\ncase \"$*\" in *list-units*) sed 's/$/ loaded active running x/' /run/active ;; esac\n";

#[test]
fn packages_come_and_go_and_leave_members_and_data_alone() -> Result<()> {
    packages()?;
    if !namespace::entered("packages_come_and_go_and_leave_members_and_data_alone")? {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let host = Host::new(directory.path())?;
    debs(&host)?;
    debs_without_systemds_tools(&host)?;
    rpms(&host)?;
    run("umount", &["-R", "-l", directory.path().to_str().context("a path in UTF-8")?]).map(drop)
}

fn debs(host: &Host) -> Result<()> {
    let said = host.sh("dpkg -i /pk/cairnd_[!9]*.deb /pk/cairnctl_[!9]*.deb")?;
    assert!(said.contains("neither enabled nor started"), "{said}");
    assert_eq!(host.asked()?, [""; 0], "installing starts and enables nothing");
    host.is_fresh()?;
    host.sh("/usr/bin/cairnd --version; /usr/bin/cairnctl version")?;
    host.sh("cd /tmp; /usr/bin/cairnd config check --config-file=/usr/share/doc/cairnd/cairnd.toml.example")?;
    host.sh("bash -n /usr/share/bash-completion/completions/cairnctl")?;
    host.sh("grep -q cairnctl /usr/share/zsh/vendor-completions/_cairnctl")?;
    // systemd reads the units as we mean them: no unknown name, no missing program.
    let verified = host.sh(
        "cd /lib/systemd/system; \
         systemd-analyze verify --man=no --recursive-errors=no ./cairnd.service ./cairnd@.service ./cairnd.socket",
    )?;
    assert!(!verified.contains("cairnd"), "{verified}");
    host.sh(
        "/var/lib/dpkg/info/cairnd.postinst configure ''; /var/lib/dpkg/info/cairnd.postinst configure ''",
    )?;
    host.is_fresh()?;

    host.live_in("/etc/default/cairnd")?;
    host.asked()?;
    let said = host.sh(&format!("dpkg -i /pk/cairnd_{NEXT}*.deb /pk/cairnctl_{NEXT}*.deb"))?;
    assert_eq!(host.asked()?, [""; 0], "upgrading neither stops nor restarts");
    let line = said.lines().find(|line| line.contains("still runs the old version")).context(said.clone())?;
    assert!(line.ends_with("systemctl restart cairnd.service"), "{line}");
    assert_eq!(host.sh("tail -n 1 /etc/default/cairnd")?, "# mine\n");
    host.is_lived_in()?;

    let said = host.sh("dpkg -r cairnd")?;
    assert_eq!(host.asked()?, ["stop cairnd.socket cairnd@*.service cairnd.service"]);
    assert!(said.contains("/var/lib/cairn is kept"), "{said}");
    assert_eq!(host.sh("tail -n 1 /etc/default/cairnd")?, "# mine\n");
    host.is_lived_in()?;

    let said = host.sh("dpkg -P cairnd cairnctl")?;
    assert!(said.contains("/var/lib/cairn is kept"), "{said}");
    // Only the directory that holds the administrator's file may be left behind.
    let warned: Vec<&str> = said.lines().filter(|line| line.contains("warning")).collect();
    assert!(warned.iter().all(|line| line.contains("'/etc/cairn' not empty")), "{warned:?}");
    host.is_lived_in()?;
    let left = host.sh(
        "getent passwd cairn >/dev/null; ls /etc/default/cairnd /etc/cairn/cairnctl.toml /usr/bin/cairnd 2>/dev/null || true",
    )?;
    assert_eq!(left, "", "the user stays with the data, the rest is gone");
    host.forget_user()
}

fn debs_without_systemds_tools(host: &Host) -> Result<()> {
    host.sh("mkdir /aside; mv /usr/bin/systemd-sysusers /usr/bin/systemd-tmpfiles /aside/")?;
    host.sh("dpkg -i /pk/cairnd_[!9]*.deb")?;
    host.is_fresh()?;
    host.sh("dpkg -P cairnd; mv /aside/* /usr/bin/")?;
    let left = host.sh("ls -d /var/lib/cairn /etc/cairn 2>/dev/null || true")?;
    assert_eq!(left, "", "a purge leaves no empty directories");
    host.forget_user()
}

fn rpms(host: &Host) -> Result<()> {
    // There is no database of rpms on this host, hence no dependencies to look at.
    let said = host.sh("rpm --force-debian --nodeps -i /pk/cairnd-[!9]*.rpm /pk/cairnctl-[!9]*.rpm")?;
    assert!(said.contains("neither enabled nor started"), "{said}");
    assert_eq!(host.asked()?, ["--no-reload preset cairnd.socket cairnd.service"], "and ours says: disabled");
    host.is_fresh()?;
    assert_eq!(
        host.sh("grep -h ^EnvironmentFile /usr/lib/systemd/system/cairnd*.service")?,
        "EnvironmentFile=-/etc/sysconfig/cairnd\nEnvironmentFile=-/etc/sysconfig/cairnd@%i\n"
    );

    host.live_in("/etc/sysconfig/cairnd")?;
    let said =
        host.sh(&format!("rpm --force-debian --nodeps -U /pk/cairnd-{NEXT}*.rpm /pk/cairnctl-{NEXT}*.rpm"))?;
    assert_eq!(host.asked()?, [""; 0], "upgrading neither stops nor restarts");
    assert!(said.contains("systemctl restart cairnd.service"), "{said}");
    assert_eq!(host.sh("tail -n 1 /etc/sysconfig/cairnd")?, "# mine\n");
    host.is_lived_in()?;

    let said = host.sh("rpm --force-debian --nodeps -e cairnd cairnctl")?;
    assert_eq!(
        host.asked()?,
        ["--no-reload disable --now cairnd.socket cairnd.service", "stop cairnd@*.service"]
    );
    assert!(said.contains("/var/lib/cairn is kept"), "{said}");
    host.is_lived_in()
}
