//! Members of release binaries that find each other: through a real etcd 3.4 (v2), through a real etcd 3.5 (v3), and through DNS. One is
//! killed half-way each time and started again, because that is where tokens used to be burnt.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use cairn_tests::harness::{Cluster, Kind, free_ports, wait_for};

/// A real etcd that others register at.
fn service(version: &str, extra: &[&str]) -> Result<Cluster> {
    Cluster::start_with(Kind::Etcd(version.into()), 1, extra)
}

/// Members that list nobody, and look for each other in this way instead.
fn seekers(size: usize, way: &[String]) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(Kind::Cairn, size, &[])?;
    for member in &mut cluster.members {
        member.set_flags(|flags| {
            flags.retain(|flag| !flag.starts_with("--initial-cluster"));
            flags.extend(way.iter().cloned());
        });
    }
    Ok(cluster)
}

/// The first waits and is killed; then all three find each other, the killed one with what it registered.
fn find_each_other(cluster: &mut Cluster, half_way: &str, resumed: Option<&str>) -> Result<()> {
    cluster.members[0].spawn()?;
    cluster.members[0].wait_log(half_way)?;
    cluster.members[0].kill()?;
    for at in [1, 0, 2] {
        cluster.members[at].spawn()?;
    }
    cluster.wait_healthy()?;
    if let Some(words) = resumed {
        cluster.members[0].wait_log(words)?;
    }
    one_cluster(cluster)
}

/// What one member is given, every other one has; and all three are listed.
fn one_cluster(cluster: &Cluster) -> Result<()> {
    cluster.etcdctl("3.5", &["put", "found", "each other"])?;
    for member in &cluster.members {
        let read = cairn_tests::harness::etcdctl(
            "3.5",
            &member.client_url,
            &["get", "found", "--print-value-only"],
        )?;
        ensure!(String::from_utf8_lossy(&read.stdout).trim() == "each other", "{}: {read:?}", member.name);
    }
    let listed = cluster.etcdctl("3.5", &["member", "list"])?;
    ensure!(listed.lines().filter(|line| line.contains("started")).count() == 3, "{listed}");
    Ok(())
}

/// A refusal of this name with this exit code, which leaves no directory where there was none.
fn refused(cluster: &mut Cluster, at: usize, id: &str, code: i32) -> Result<()> {
    let member = &mut cluster.members[at];
    let there = member.data_dir.exists();
    member.spawn()?;
    let status = member.wait_exit()?;
    ensure!(status.code() == Some(code), "{status}: {}", member.log_tail());
    ensure!(member.log().contains(&format!("REFUSED {id}\n")), "{id} in {}", member.log_tail());
    ensure!(member.data_dir.exists() == there, "the refused start left {}", member.data_dir.display());
    Ok(())
}

fn put_v2(service: &Cluster, path: &str, value: &str) -> Result<()> {
    let place = service.members[0].client_url.trim_start_matches("http://");
    let body = format!("value={value}");
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(place)?;
    write!(stream, "{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Ok(())
}

#[test]
fn three_members_through_a_v2_service() -> Result<()> {
    let mut service = service("3.4", &["--enable-v2"])?;
    put_v2(&service, "/v2/keys/discovery/T/_config/size", "3")?;
    let url = format!("{}/v2/keys/discovery/T", service.members[0].client_url);
    // The fourth is one too many.
    let mut cluster = seekers(4, &[format!("--discovery={url}")])?;
    let mut late = cluster.members.pop().context("the fourth")?;
    find_each_other(
        &mut cluster,
        "found 1 peer(s), waiting for 2 more",
        Some("registration is there already"),
    )?;
    for member in &cluster.members {
        ensure!(member.log().contains("found self "), "{}", member.log_tail());
    }
    std::mem::swap(&mut cluster.members[2], &mut late);
    refused(&mut cluster, 2, "DISCOVERY_FULL", 78)?;
    std::mem::swap(&mut cluster.members[2], &mut late);
    cluster.members[0].kill()?;
    // Not beside it, where the start would find it and say so.
    let there = cluster.members[0].data_dir.clone();
    let aside = cluster.path().join("far/away");
    std::fs::create_dir(cluster.path().join("far"))?;
    std::fs::rename(&there, &aside)?;
    refused(&mut cluster, 0, "TOKEN_CONFLICT", 78)?;
    // With its directory it needs no service, whatever the flag says.
    std::fs::rename(&aside, &there)?;
    service.members[0].kill()?;
    cluster.members[0].spawn()?;
    cluster.wait_healthy()?;
    one_cluster(&cluster)
}

#[test]
fn three_members_through_a_v3_service() -> Result<()> {
    let service = service("3.5", &[])?;
    service.etcdctl("3.5", &["put", "/_etcd/registry/T/_config/size", "3"])?;
    let endpoints = format!("--discovery-endpoints={}", service.endpoints());
    let mut cluster = seekers(3, &[endpoints, "--discovery-token=T".into()])?;
    find_each_other(
        &mut cluster,
        "1 of 3 registered: m1; waiting for 2 more",
        Some("registration is there already"),
    )
}

/// dnsmasq, which ends with its story.
struct NameServer(Child);

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl NameServer {
    fn start(port: u16, members: &[u16]) -> Result<NameServer> {
        let mut command = Command::new("dnsmasq");
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ]);
        command.args([
            "--listen-address=127.0.0.1",
            "--pid-file=",
            "--user=",
            "--local=/test/",
            "--log-facility=/dev/null",
        ]);
        command.arg(format!("--port={port}"));
        command.args(
            members
                .iter()
                .map(|member| format!("--srv-host=_etcd-server-blue._tcp.cluster.test,localhost,{member}")),
        );
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(NameServer(child.context("dnsmasq, of Debian's dnsmasq-base: tests/tools/install")?))
    }
}

/// All on one host, so that ports make the names. The third record comes late: nobody founds a cluster of two.
#[test]
fn three_members_through_dns() -> Result<()> {
    let dns = free_ports(1)?[0];
    let way = [
        "--discovery-srv=cluster.test",
        "--discovery-srv-name=blue",
        "--discovery-srv-size=3",
        "--discovery-timeout=10m",
    ];
    let mut way: Vec<String> = way.map(str::to_owned).into();
    way.push(format!("--discovery-srv-nameserver=127.0.0.1:{dns}"));
    let mut cluster = seekers(3, &way)?;
    let mut ports = Vec::new();
    for member in &mut cluster.members {
        let port = member.peer_url.rsplit(':').next().context("a port")?.parse::<u16>()?;
        ports.push(port);
        // DNS names the members.
        member.set_flags(|flags| flags.retain(|flag| !flag.starts_with("--name=")));
        member.add_flag(format!("--initial-advertise-peer-urls=http://localhost:{port}"));
    }
    let server = NameServer::start(dns, &ports[..2])?;
    cluster.members[0].spawn()?;
    cluster.members[0].wait_log("2 of 3 SRV records are there")?;
    drop(server);
    let _server = wait_for("the name server again", || NameServer::start(dns, &ports).ok())?;
    find_each_other_from_dns(&mut cluster)?;
    let listed = cluster.etcdctl("3.5", &["member", "list"])?;
    for port in ports {
        ensure!(listed.contains(&format!("localhost-{port}")), "{listed}");
    }
    Ok(())
}

/// The first runs already; it is killed as soon as it knows the others, before they are there.
fn find_each_other_from_dns(cluster: &mut Cluster) -> Result<()> {
    cluster.members[0].wait_log("in DNS; this member is localhost-")?;
    cluster.members[0].kill()?;
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    one_cluster(cluster)
}
