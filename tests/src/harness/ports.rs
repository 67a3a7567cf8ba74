//! Free loopback ports.

use std::net::TcpListener;

use anyhow::Result;

/// Ports that nobody listens on just now, distinct. They are held together while being chosen, then let go for the member to bind;
/// the kernel hands out others meanwhile, so a clash needs an unlucky stranger.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
