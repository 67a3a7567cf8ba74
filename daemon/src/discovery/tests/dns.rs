//! SRV discovery against dnsmasq, a real name server.

use std::{
    io::Write as _,
    net::{TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::support::{own_at, search, search_until};
use crate::{
    discovery::{
        Own,
        settings::{Patience, Schemes, SrvSettings, Way},
    },
    refusal::Id,
};

/// A name server that ends with its story.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that is free for UDP and TCP.
fn port() -> u16 {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address.port();
        }
    }
}

/// None, and a line that tells so, where dnsmasq is not installed.
fn serve(port: u16, records: &[&str]) -> Option<Server> {
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
    command.arg(format!("--port={port}")).args(records).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(process) => Some(Server { process, port }),
        Err(error) => {
            let line =
                format!("SKIPPED discovery through DNS: dnsmasq: {error} (install Debian's dnsmasq-base)\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            None
        }
    }
}

const PLAIN: [&str; 3] = [
    "--srv-host=_etcd-server._tcp.cluster.test,infra0.cluster.test,24011",
    "--srv-host=_etcd-server._tcp.cluster.test,infra1.cluster.test,24021",
    "--srv-host=_etcd-server._tcp.cluster.test,Infra2.cluster.test,24031",
];
const ADDRESSES: [&str; 3] = [
    "--host-record=infra0.cluster.test,127.0.0.1",
    "--host-record=infra1.cluster.test,127.0.0.1",
    "--host-record=infra2.cluster.test,127.0.0.1",
];
const ALL: &str = "infra0=http://infra0.cluster.test:24011,infra1=http://infra1.cluster.test:24021,infra2=http://infra2.cluster.test:24031";

fn way(port: u16, seconds: u64, size: Option<usize>) -> Way {
    Way::Srv(SrvSettings {
        domain: "cluster.test".into(),
        service_suffix: None,
        schemes: Schemes::TheOnlyOne,
        size,
        nameserver: Some(([127, 0, 0, 1], port).into()),
        token: "etcd-cluster".into(),
        patience: Patience { service: Duration::from_secs(seconds), members: None },
    })
}

#[test]
fn every_member_finds_the_same_list_by_address_and_by_name() {
    let Some(server) = serve(port(), &[PLAIN, ADDRESSES].concat()) else { return };
    let unnamed = Own { name_given: false, ..own_at("default", "http://127.0.0.1:24031") };
    for (own, name) in [
        (own_at("infra0", "http://127.0.0.1:24011"), "infra0"),
        (own_at("infra1", "http://infra1.cluster.test:24021"), "infra1"),
        (unnamed, "infra2"),
    ] {
        let searched = search(&way(server.port, 60, None), &own, None);
        assert_eq!(searched.canonical(), ALL);
        let found = searched.outcome.unwrap();
        assert_eq!((found.own.as_str(), found.token.as_str()), (name, "etcd-cluster"));
        assert!(searched.saved.is_none(), "DNS takes no registrations");
    }
}

#[test]
fn both_schemes_are_refused_and_none_is_waited_for() {
    let tls = "--srv-host=_etcd-server-ssl._tcp.cluster.test,infra0.cluster.test,24011";
    let Some(server) = serve(port(), &[&PLAIN[..], &ADDRESSES, &[tls]].concat()) else { return };
    let own = own_at("infra0", "http://127.0.0.1:24011");
    let refused = search(&way(server.port, 60, None), &own, None);
    assert_eq!(
        refused.refused().refusal.id,
        Id::DiscoverySrvAmbiguous,
        "{}",
        refused.refused().refusal.text()
    );
    let Some(empty) = serve(port(), &[]) else { return };
    let refused = search(&way(empty.port, 0, None), &own, None);
    assert_eq!(refused.refused().refusal.id, Id::DiscoverySrvIncomplete);
}

/// Records that are published while a member waits: each of the three faults goes away, and the list is never a smaller one.
#[test]
fn what_is_missing_is_waited_for_until_it_is_there() {
    let at = port();
    let own = own_at("infra0", "http://127.0.0.1:24011");
    let two = [&PLAIN[..2], &ADDRESSES].concat();
    let without_address = [&PLAIN[..], &ADDRESSES[..2]].concat();
    let whole = [PLAIN, ADDRESSES].concat();
    let (mut server, mut stage) = (None, 0);
    if serve(at, &whole).is_none() {
        return;
    }
    let searched = search_until(&way(at, 300, Some(3)), &own, None, &mut |line| {
        let next = match stage {
            0 if line.contains("do not answer") => &two,
            1 if line.contains("2 of 3 SRV records") => &without_address,
            2 if line.contains("1 of 3 SRV targets have no address") => &whole,
            _ => return,
        };
        stage += 1;
        drop(server.take());
        server = serve(at, next);
    });
    assert_eq!(searched.canonical(), ALL);
    assert_eq!(stage, 3, "{:?}", searched.lines);
}
