//! Listening sockets: one per address and runtime, all bound before anything is served, none listening until it is.
//!
//! Runtimes share an address through SO_REUSEPORT. That option alone would let a second process of the same user join in silence,
//! so the first socket of an address is bound without it: a port in use is refused as ever, and only then the option is set and
//! the sockets of the other runtimes follow.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::{Listen, ServerConfig};

/// Connections the kernel holds ready per socket until they are accepted. Go asks for the system's maximum, 4096 since Linux 5.4;
/// a smaller one turns a burst of reconnecting clients after a leader change into one-second SYN retries.
const BACKLOG: i32 = 4096;

/// Why the edge could not start. Nothing keeps running after one of these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listen on {address} ({setting}): {source}")]
    Bind { setting: &'static str, address: SocketAddr, source: io::Error },
    #[error("start thread {name}: {source}")]
    Thread { name: String, source: io::Error },
    #[error("start the runtime of thread {name}: {source}")]
    Runtime { name: String, source: io::Error },
}

/// Sockets that are bound and do not listen yet: clients are refused until [`crate::Server::start_bound`].
#[derive(Debug)]
pub struct Bound {
    pub(crate) config: ServerConfig,
    pub(crate) client: Vec<Group>,
    pub(crate) client_http: Vec<Group>,
    pub(crate) metrics: Vec<Group>,
}

impl Bound {
    /// Binds everything the settings name.
    pub fn bind(config: ServerConfig) -> Result<Bound, StartError> {
        Bound::bind_or_take(config, |_| None)
    }

    /// As [`Bound::bind`], but for the addresses for which somebody else has a socket already. Such a socket may be listening: its clients
    /// wait until the server starts.
    pub fn bind_or_take(
        config: ServerConfig,
        mut taken: impl FnMut(&Listen) -> Option<TcpListener>,
    ) -> Result<Bound, StartError> {
        let runtimes = config.runtimes_count();
        let mut group = |listen: &Listen, sockets| match taken(listen) {
            Some(listener) => Group::share(listen, listener, sockets),
            None => Group::bind(listen, sockets),
        };
        let mut groups = |listens: &[Listen], sockets| {
            listens.iter().map(|listen| group(listen, sockets)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Bound {
            client: groups(&config.client, runtimes)?,
            client_http: groups(&config.client_http, runtimes)?,
            metrics: groups(&config.metrics, 1)?,
            config,
        })
    }

    /// Addresses of `client` in their order, ports as they came out.
    pub fn client_addresses(&self) -> Vec<SocketAddr> {
        self.client.iter().map(|group| group.address).collect()
    }
}

/// The sockets of one address, one for each runtime.
#[derive(Debug)]
pub(crate) struct Group {
    pub setting: &'static str,
    pub address: SocketAddr,
    sockets: Vec<Socket>,
}

impl Group {
    fn bind(listen: &Listen, count: usize) -> Result<Group, StartError> {
        let named = |address| move |source| StartError::Bind { setting: listen.setting, address, source };
        let first = socket(listen.address).map_err(named(listen.address))?;
        let address = first.local_addr().and_then(as_inet).map_err(named(listen.address))?;
        let mut sockets = vec![first];
        if count > 1 {
            sockets[0].set_reuse_port(true).map_err(named(address))?;
            for _ in 1..count {
                sockets.push(sharing_socket(address).map_err(named(address))?);
            }
        }
        Ok(Group { setting: listen.setting, address, sockets })
    }

    /// One socket for all runtimes: which of them accepts a connection is the kernel's choice.
    fn share(listen: &Listen, listener: TcpListener, count: usize) -> Result<Group, StartError> {
        let named = |source| StartError::Bind { setting: listen.setting, address: listen.address, source };
        let address = listener.local_addr().map_err(named)?;
        let first = Socket::from(listener);
        let mut sockets = Vec::with_capacity(count);
        for _ in 1..count {
            sockets.push(first.try_clone().map_err(named)?);
        }
        sockets.push(first);
        Ok(Group { setting: listen.setting, address, sockets })
    }

    /// Starts listening on all sockets.
    pub fn listen(self) -> Result<Vec<TcpListener>, StartError> {
        let Group { setting, address, sockets } = self;
        sockets
            .into_iter()
            .map(|socket| {
                socket
                    .listen(BACKLOG)
                    .and_then(|()| socket.set_nonblocking(true))
                    .map(|()| TcpListener::from(socket))
                    .map_err(|source| StartError::Bind { setting, address, source })
            })
            .collect()
    }
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of its former life to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn sharing_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn as_inet(address: SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
}
