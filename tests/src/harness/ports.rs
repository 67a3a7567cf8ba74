//! Free loopback ports, from below the range that the kernel takes the near ends of connections from: a port that rests while its
//! member is killed and started again is not lost to some client's connection meanwhile.

use std::{collections::BTreeSet, fs, net::TcpListener, ops::Range, sync::Mutex};

use anyhow::{Result, bail};
use rand::Rng;

/// Below are ports of services.
const PORT_MIN: u16 = 10_240;

/// The kernel's own default, should it not tell.
const EPHEMERAL_MIN: u16 = 32_768;

/// Far more than it takes, unless nearly all are in use.
const ATTEMPTS_MAX: usize = 10_000;

/// Handed out by this process before, to tests that may not listen yet or any more.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Ports that nobody listens on just now, each handed out once by this process.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let candidates = candidates();
    let mut random = rand::rng();
    let mut taken = TAKEN.lock().expect("no test panicked here");
    let mut ports = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        if ports.len() == count {
            break;
        }
        let port = random.random_range(candidates.clone());
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            ports.push(port);
        }
    }
    if ports.len() < count {
        bail!("found {} of {count} free ports among {candidates:?}", ports.len());
    }
    Ok(ports)
}

fn candidates() -> Range<u16> {
    let told = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let first = told.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(EPHEMERAL_MIN);
    // A system that leaves nothing below gets what is above its own services all the same.
    if first > PORT_MIN + 1000 { PORT_MIN..first } else { PORT_MIN..u16::MAX }
}
