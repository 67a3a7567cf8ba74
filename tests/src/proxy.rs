//! A network between members that can be cut: every member advertises the address of a proxy and listens elsewhere, and what passes
//! from one member to another is decided here, direction by direction.
//!
//! A connection belongs to the member that names itself in the head of its first request (`X-Server-From`) and to the member whose
//! address was dialled; bytes travel on it both ways, so each direction of each connection asks for itself. Callers that are no
//! members pass. Not here: what is done to the network and what must hold meanwhile.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use state_machine::membership::member_id;

use crate::harness::{Cluster, free_ports};

/// The `initial-cluster-token` of the harness, which ids are made from.
const TOKEN: &str = "tests";

/// Longest head of a first request; the members' own are below one KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes a pump carries at a time; what is held back of one direction is this plus the sockets' buffers.
const CHUNK_BYTES: usize = 64 << 10;

/// What happens to bytes from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// Every chunk waits this long.
    Delayed(Duration),
    /// Bytes wait until the flow is opened again and then arrive, late: the sender sees a connection that takes nothing.
    Held,
    /// Bytes vanish: the sender sees a connection that works. Such a connection is reset when the flow is opened again.
    Lost,
    /// Connections are reset and new ones too.
    Cut,
}

/// The network of one cluster; everything is open at first. Connections end when it is dropped.
pub struct Network {
    shared: Arc<Shared>,
    addresses: Vec<String>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// By sender and receiver.
    flows: Vec<Vec<Flow>>,
    connections: Vec<Connection>,
    next: u64,
    stopped: bool,
}

struct Connection {
    number: u64,
    caller: usize,
    target: usize,
    /// Some of its bytes were lost.
    maimed: bool,
    ends: [TcpStream; 2],
}

enum Passage {
    Pass,
    Lose,
    End,
}

impl Network {
    /// Takes over the peer addresses of members that were not started yet; each listens on another port from now on.
    pub fn between(cluster: &mut Cluster) -> Result<Network> {
        let size = cluster.members.len();
        let ids: Vec<u64> = cluster
            .members
            .iter()
            .map(|member| member_id(std::slice::from_ref(&member.peer_url), TOKEN, None).0)
            .collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                flows: vec![vec![Flow::Open; size]; size],
                connections: Vec::new(),
                next: 0,
                stopped: false,
            }),
            changed: Condvar::new(),
        });
        let mut network = Network { shared, addresses: Vec::new(), threads: Vec::new() };
        let ports = free_ports(size)?;
        for (target, port) in ports.into_iter().enumerate() {
            let member = &mut cluster.members[target];
            let address = member.peer_url.trim_start_matches("http://").to_owned();
            let listener = TcpListener::bind(&address).with_context(|| format!("bind {address}"))?;
            member.add_flag(format!("--listen-peer-urls=http://127.0.0.1:{port}"));
            let (shared, ids) = (network.shared.clone(), ids.clone());
            network.addresses.push(address);
            network.threads.push(std::thread::spawn(move || accept(&shared, &listener, target, port, &ids)));
        }
        Ok(network)
    }

    /// One direction between two members.
    pub fn set(&self, from: usize, to: usize, flow: Flow) {
        let mut state = self.shared.lock();
        let before = std::mem::replace(&mut state.flows[from][to], flow);
        let State { connections, .. } = &mut *state;
        for connection in connections.iter().filter(|connection| connection.joins(from, to)) {
            let torn = connection.maimed && before == Flow::Lost && flow != Flow::Lost;
            if flow == Flow::Cut || torn {
                connection.reset();
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Both directions between this member and all others.
    pub fn isolate(&self, member: usize, flow: Flow) {
        for other in (0..self.addresses.len()).filter(|other| *other != member) {
            self.set(member, other, flow);
            self.set(other, member, flow);
        }
    }

    pub fn heal(&self) {
        let size = self.addresses.len();
        for (from, to) in (0..size).flat_map(|from| (0..size).map(move |to| (from, to))) {
            self.set(from, to, Flow::Open);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        state.connections.iter().for_each(Connection::reset);
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the threads that wait for connections.
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Connection {
    fn joins(&self, from: usize, to: usize) -> bool {
        (self.caller, self.target) == (from, to) || (self.caller, self.target) == (to, from)
    }

    fn reset(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the network panicked")
    }

    /// None: connections between the two are cut, or the network is gone.
    fn register(&self, caller: usize, target: usize, ends: [TcpStream; 2]) -> Option<u64> {
        let mut state = self.lock();
        let cut = [(caller, target), (target, caller)].iter().any(|(a, b)| state.flows[*a][*b] == Flow::Cut);
        if cut || state.stopped {
            return None;
        }
        state.next += 1;
        let number = state.next;
        state.connections.push(Connection { number, caller, target, maimed: false, ends });
        Some(number)
    }

    /// Waits until a chunk may go on.
    fn passage(&self, number: u64, from: usize, to: usize) -> Passage {
        let mut state = self.lock();
        loop {
            if state.stopped || !state.connections.iter().any(|connection| connection.number == number) {
                return Passage::End;
            }
            match state.flows[from][to] {
                Flow::Open => return Passage::Pass,
                Flow::Cut => return Passage::End,
                Flow::Delayed(time) => {
                    drop(state);
                    std::thread::sleep(time);
                    return Passage::Pass;
                }
                Flow::Lost => {
                    let connection =
                        state.connections.iter_mut().find(|connection| connection.number == number);
                    connection.expect("it was there under this lock").maimed = true;
                    return Passage::Lose;
                }
                Flow::Held => {
                    state = self.changed.wait(state).expect("no thread of the network panicked");
                }
            }
        }
    }

    /// One direction of a connection ended; with an error there is nothing left for the other either.
    fn forget(&self, number: u64) {
        let mut state = self.lock();
        if let Some(at) = state.connections.iter().position(|connection| connection.number == number) {
            state.connections.swap_remove(at).reset();
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, target: usize, port: u16, ids: &[u64]) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.lock().stopped {
            return;
        }
        let (shared, ids) = (shared.clone(), ids.to_vec());
        // Ends with its connection, which ends with the network.
        std::thread::spawn(move || {
            let _ = serve(&shared, stream, target, port, &ids);
        });
    }
}

fn serve(
    shared: &Arc<Shared>,
    mut near: TcpStream,
    target: usize,
    port: u16,
    ids: &[u64],
) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    near.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head = read_head(&mut near)?;
    near.set_read_timeout(None)?;
    let caller = caller(&head).and_then(|id| ids.iter().position(|known| *known == id));
    let far = TcpStream::connect(("127.0.0.1", port))?;
    far.set_nodelay(true)?;
    // A stranger is on the target's own side of every cut.
    let caller = caller.unwrap_or(target);
    let Some(number) = shared.register(caller, target, [near.try_clone()?, far.try_clone()?]) else {
        let _ = near.shutdown(Shutdown::Both);
        return Ok(());
    };
    let back = (shared.clone(), far.try_clone()?, near.try_clone()?);
    std::thread::spawn(move || pump(&back.0, number, (target, caller), back.1, back.2, Vec::new()));
    pump(shared, number, (caller, target), near, far, head);
    Ok(())
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        match stream.read(&mut chunk)? {
            0 => break,
            read => head.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(head)
}

fn caller(head: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(head);
    let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with("x-server-from:"))?;
    u64::from_str_radix(line.split_once(':')?.1.trim(), 16).ok()
}

fn pump(
    shared: &Shared,
    number: u64,
    (from, to): (usize, usize),
    mut source: TcpStream,
    mut sink: TcpStream,
    first: Vec<u8>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = first;
    loop {
        if !bytes.is_empty() {
            match shared.passage(number, from, to) {
                Passage::Pass if sink.write_all(&bytes).is_ok() => {}
                Passage::Lose => {}
                Passage::Pass | Passage::End => return shared.forget(number),
            }
        }
        match source.read(&mut chunk) {
            Ok(0) | Err(_) => return shared.forget(number),
            Ok(read) => bytes = chunk[..read].to_vec(),
        }
    }
}
