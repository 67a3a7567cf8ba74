//! A net between members that can be cut: each member is reached through a port of ours, and who calls is told by etcd's own header.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use state_machine::membership::{Member, member_id};
use types::MemberId;

#[derive(Default)]
struct State {
    cut: HashSet<MemberId>,
    /// Both ends of each connection, with who called whom.
    connections: Vec<([MemberId; 2], TcpStream, TcpStream)>,
}

#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    /// Gives every member a peer URL of the net's, and the id that goes with it.
    pub fn between(members: &mut [Member]) -> Net {
        let net = Net::default();
        for member in members {
            let url = member.peer_urls[0].clone();
            let to: SocketAddr = url.trim_start_matches("http://").parse().expect("a loopback address");
            let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let url = format!("http://{}", port.local_addr().expect("an address"));
            member.id = member_id(std::slice::from_ref(&url), "test", None);
            member.peer_urls = vec![url];
            let (net, id) = (net.clone(), member.id);
            // It ends with the process; a test has a few of them.
            std::thread::spawn(move || {
                for stream in port.incoming().flatten() {
                    let net = net.clone();
                    std::thread::spawn(move || net.pass(stream, id, to));
                }
            });
        }
        net
    }

    pub fn cut_off(&self, member: MemberId) {
        let mut state = self.0.lock().expect("no panic");
        state.cut.insert(member);
        state.connections.retain(|(ends, one, other)| {
            let stays = !ends.contains(&member);
            if !stays {
                let _ = (one.shutdown(Shutdown::Both), other.shutdown(Shutdown::Both));
            }
            stays
        });
    }

    pub fn connect(&self, member: MemberId) {
        self.0.lock().expect("no panic").cut.remove(&member);
    }

    fn pass(&self, mut caller: TcpStream, to: MemberId, address: SocketAddr) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 64 * 1024 {
            if !matches!(caller.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let from = String::from_utf8_lossy(&head)
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("x-server-from: ")?.trim().parse().ok());
        let Ok(mut called) = TcpStream::connect(address) else { return };
        let ends = [from.unwrap_or(MemberId::NONE), to];
        {
            let mut state = self.0.lock().expect("no panic");
            if ends.iter().any(|end| state.cut.contains(end)) {
                return;
            }
            let (Ok(one), Ok(other)) = (caller.try_clone(), called.try_clone()) else { return };
            state.connections.push((ends, one, other));
        }
        for stream in [&caller, &called] {
            let _ = stream.set_nodelay(true);
        }
        if called.write_all(&head).is_err() {
            return;
        }
        let (Ok(mut answers), Ok(mut back)) = (called.try_clone(), caller.try_clone()) else { return };
        let returning = std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut back);
            let _ = back.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut caller, &mut called);
        let _ = called.shutdown(Shutdown::Write);
        let _ = returning.join();
    }
}
