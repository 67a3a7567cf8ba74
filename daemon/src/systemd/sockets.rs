//! Sockets that the service manager holds for this member and hands over at its start (`LISTEN_FDS`): connections of clients queue in them
//! while the member restarts.
//!
//! A socket stands for the listen URL that has its address; its name, where it is one of ours, says for which setting. A URL without a
//! socket is bound as ever. A socket without a URL is refused: whoever configured it believes that somebody answers there.

use std::net::{IpAddr, SocketAddr, TcpListener};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

use crate::refusal::{Id, Refusal};

/// `FileDescriptorName=` of a socket unit, and the setting that it belongs to. Any other name (the unit's own is the manager's default) is
/// told apart by its address alone.
const NAMES: [(&str, &str); 4] = [
    ("client", "listen-client-urls"),
    ("client-http", "listen-client-http-urls"),
    ("peer", "listen-peer-urls"),
    ("metrics", "listen-metrics-urls"),
];

#[derive(Debug)]
struct Handed {
    name: String,
    address: SocketAddr,
    /// Of [::]: takes connections over IPv4 too.
    takes_ipv4: bool,
    listener: TcpListener,
}

impl Handed {
    fn new(name: String, address: SocketAddr, listener: TcpListener) -> Handed {
        // Where the kernel does not say, what is asked for is bound beside it or is told to be taken.
        let takes_ipv4 = address.is_ipv6() && matches!(getsockopt(&listener, sockopt::Ipv6V6Only), Ok(false));
        Handed { name, address, takes_ipv4, listener }
    }

    /// `ListenStream=2379` listens on all addresses by way of IPv6, which covers those of IPv4 unless the unit says `BindIPv6Only=ipv6-only`.
    fn covers(&self, wanted: SocketAddr) -> bool {
        let all = |ip: IpAddr| ip.is_unspecified();
        self.address == wanted
            || (self.address.port() == wanted.port()
                && all(self.address.ip())
                && all(wanted.ip())
                && self.takes_ipv4
                && wanted.is_ipv4())
    }
}

/// What was handed over and nobody has claimed yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Handed>);

/// Once, early: it takes the variables away, so that no child believes that they are meant for it.
pub fn take() -> Result<Inherited, Refusal> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut found = ListenFd::from_env();
    let mut inherited = Vec::new();
    for at in 0..found.len() {
        let name = names.next().unwrap_or_default().to_owned();
        let refused = |why: String| {
            Refusal::new(Id::SettingsConflict, "a socket from the service manager cannot be used")
                .evidence(format!("socket {at} ({name})"), why)
                .remedy("give the socket unit a TCP address to listen on: ListenStream=127.0.0.1:2379")
                .remedy("or start without it: systemctl disable --now cairnd.socket")
        };
        let listener = found.take_tcp_listener(at).map_err(|error| refused(error.to_string()))?;
        let Some(listener) = listener else { continue };
        let address = listener.local_addr().map_err(|error| refused(error.to_string()))?;
        if !getsockopt(&listener, sockopt::AcceptConn).unwrap_or(false) {
            return Err(refused(format!(
                "{address} is no listening socket (Accept=yes is not for this daemon)"
            )));
        }
        inherited.push(Handed::new(name, address, listener));
    }
    Ok(Inherited(inherited))
}

impl Inherited {
    /// The same sockets once more: a start that is followed by another in the same process must not take them along.
    pub fn share(&self) -> Result<Inherited, Refusal> {
        let copied = |handed: &Handed| {
            let listener = handed.listener.try_clone().map_err(|error| {
                Refusal::new(Id::IoError, "a socket from the service manager cannot be kept")
                    .evidence(handed.address.to_string(), error.to_string())
            })?;
            Ok(Handed::new(handed.name.clone(), handed.address, listener))
        };
        self.0.iter().map(copied).collect::<Result<_, Refusal>>().map(Inherited)
    }

    /// The socket for this address of this setting.
    pub fn claim(&mut self, setting: &str, address: SocketAddr) -> Option<TcpListener> {
        let of_setting = |handed: &Handed| setting_of(&handed.name).is_none_or(|named| named == setting);
        // Two units may hold the port, one for each family.
        let exact = self.0.iter().position(|handed| of_setting(handed) && handed.address == address);
        let at = exact
            .or_else(|| self.0.iter().position(|handed| of_setting(handed) && handed.covers(address)))?;
        Some(self.0.swap_remove(at).listener)
    }

    /// After every URL has claimed its own.
    pub fn nothing_left(&self) -> Result<(), Refusal> {
        let Some(handed) = self.0.first() else { return Ok(()) };
        let address = handed.address;
        let named = setting_of(&handed.name);
        let setting = named.unwrap_or("listen-client-urls");
        Err(Refusal::new(
            Id::SettingsConflict,
            format!("the service manager listens on {address}, and no URL of {} has this address", named.unwrap_or("this member")),
        )
        .evidence(format!("socket {}", if handed.name.is_empty() { "without a name" } else { &handed.name }), address.to_string())
        .remedy(format!("listen there: --{setting}=http://{address}"))
        .remedy("or correct ListenStream= of the socket unit (FileDescriptorName= is client, client-http, peer or metrics)"))
    }
}

fn setting_of(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, setting)| *setting)
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddrV6, os::fd::AsRawFd as _};

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket,
    };

    use super::*;

    fn handed(name: &str) -> (Handed, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Handed::new(name.to_owned(), address, listener), address)
    }

    #[test]
    fn a_socket_goes_to_the_url_that_has_its_address_and_its_name() {
        let ((first, client), (second, peer), (third, odd)) =
            (handed("client"), handed("peer"), handed("cairnd.socket"));
        let mut inherited = Inherited(vec![first, second, third]);
        assert!(inherited.claim("listen-client-urls", peer).is_none(), "the name says another setting");
        assert!(inherited.claim("listen-peer-urls", peer).is_some());
        assert!(inherited.claim("listen-peer-urls", peer).is_none(), "once");
        assert!(
            inherited.claim("listen-metrics-urls", odd).is_some(),
            "any other name is told apart by address"
        );
        let refusal = inherited.nothing_left().unwrap_err();
        assert_eq!(refusal.id, Id::SettingsConflict);
        assert!(
            refusal.text().contains(&format!("--listen-client-urls=http://{client}")),
            "{}",
            refusal.text()
        );
        assert!(inherited.claim("listen-client-urls", client).is_some());
        assert_eq!(inherited.nothing_left(), Ok(()));
    }

    #[test]
    fn the_socket_of_the_very_address_comes_before_one_that_covers_it() {
        let at = |text: &str| {
            let address = text.parse::<SocketAddr>().unwrap();
            Handed { address, takes_ipv4: address.is_ipv6(), ..handed("client").0 }
        };
        let mut inherited = Inherited(vec![at("[::]:2379"), at("0.0.0.0:2379")]);
        let wanted = "0.0.0.0:2379".parse().unwrap();
        assert!(inherited.claim("listen-client-urls", wanted).is_some());
        assert!(inherited.0.len() == 1 && inherited.0[0].address.is_ipv6());
        assert!(inherited.claim("listen-client-urls", wanted).is_some(), "which covers it");
    }

    /// What the kernel says of a real socket decides whether the one family stands for the other.
    #[test]
    fn all_addresses_of_ipv6_cover_those_of_ipv4_unless_the_socket_is_for_ipv6_only() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let bound = |only: bool| {
            let kind = (AddressFamily::Inet6, SockType::Stream, SockFlag::empty());
            let socket = socket(kind.0, kind.1, kind.2, None).unwrap();
            setsockopt(&socket, sockopt::Ipv6V6Only, &only).unwrap();
            bind(socket.as_raw_fd(), &SockaddrIn6::from("[::]:0".parse::<SocketAddrV6>().unwrap())).unwrap();
            listen(&socket, Backlog::new(1).unwrap()).unwrap();
            let listener = TcpListener::from(socket);
            let address = listener.local_addr().unwrap();
            Handed::new("client".into(), address, listener)
        };
        for only in [false, true] {
            let handed = bound(only);
            let ipv4 = SocketAddr::new(at("0.0.0.0:1").ip(), handed.address.port());
            assert_eq!(handed.covers(ipv4), !only, "IPv6 only: {only}");
            assert!(handed.covers(handed.address));
        }
        for (text, takes_ipv4, wanted, same) in [
            ("[::]:2379", true, "0.0.0.0:2379", true),
            ("[::]:2379", false, "0.0.0.0:2379", false),
            ("0.0.0.0:2379", false, "[::]:2379", false),
            ("[::]:2379", true, "[::]:2379", true),
            ("[::]:2379", true, "0.0.0.0:2380", false),
            ("[::]:2379", true, "127.0.0.1:2379", false),
        ] {
            let handed = Handed { address: at(text), takes_ipv4, ..handed("client").0 };
            assert_eq!(handed.covers(at(wanted)), same, "{text} for {wanted}");
        }
    }
}
