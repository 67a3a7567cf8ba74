//! What strangers and forgers send to the peer port.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result};
use api::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use cairn_tests::{
    harness::{Cluster, Kind},
    recorder::Writers,
};
use prost::Message as _;
use rand::{Rng, RngCore};

use crate::{endpoints, let_write, random, status, verify};

/// Ids of the cluster and what one member is told by another.
struct Forger {
    cluster: u64,
    from: u64,
    to: u64,
    address: String,
}

impl Forger {
    fn post(&self, path: &str, cluster: u64, body: &[u8]) -> String {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: peer\r\nConnection: close\r\nContent-Type: application/protobuf\r\n\
             X-Server-From: {:x}\r\nX-Server-Version: 3.5.0\r\nX-Min-Cluster-Version: 3.0.0\r\n\
             X-Etcd-Cluster-ID: {cluster:x}\r\nX-Raft-To: {:x}\r\nContent-Length: {}\r\n\r\n",
            self.from,
            self.to,
            body.len()
        );
        exchange(&self.address, &[head.as_bytes(), body].concat())
    }

    /// The status line of the answer.
    fn raft(&self, message: &Message) -> String {
        self.post("/raft", self.cluster, &message.encode_to_vec())
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    fn message(&self, kind: MessageType, term: u64) -> Message {
        Message {
            r#type: Some(kind as i32),
            from: Some(self.from),
            to: Some(self.to),
            term: Some(term),
            log_term: Some(0),
            index: Some(0),
            commit: Some(0),
            reject: Some(false),
            reject_hint: Some(0),
            ..Default::default()
        }
    }
}

fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn entry(term: u64, index: u64, kind: i32, data: &[u8]) -> Entry {
    Entry {
        r#type: Some(kind),
        term: Some(term),
        index: Some(index),
        data: Some(bytes::Bytes::copy_from_slice(data)),
    }
}

/// Messages that no sane member sends, in the term of the cluster, below it and far above what exists.
fn forgeries(forger: &Forger, term: u64, random: &mut impl Rng) -> Vec<Message> {
    use MessageType::*;
    let far = 1 << 40;
    let absurd = [far, u64::MAX, u64::MAX - 1, (1 << 62) + 1, i64::MAX as u64];
    let mut all = Vec::new();
    for number in absurd {
        for kind in [MsgHeartbeat, MsgApp] {
            all.push(Message { commit: Some(number), ..forger.message(kind, term) });
            all.push(Message { index: Some(number), log_term: Some(term), ..forger.message(kind, term) });
            all.push(Message { log_term: Some(number), index: Some(1), ..forger.message(kind, term) });
        }
        for kind in [MsgAppResp, MsgHeartbeatResp] {
            all.push(Message { index: Some(number), ..forger.message(kind, term) });
            let hint =
                Message { reject: Some(true), reject_hint: Some(number), ..forger.message(kind, term) };
            all.push(Message { index: Some(number), log_term: Some(number), ..hint });
        }
        let gap = vec![entry(term, number.wrapping_add(1), 0, b"x")];
        all.push(Message {
            index: Some(number),
            log_term: Some(1),
            entries: gap,
            ..forger.message(MsgApp, term)
        });
        // Old terms and terms beyond all counting; those between would only be an election.
        for kind in [MsgHeartbeat, MsgApp, MsgVote, MsgPreVote, MsgVoteResp, MsgTimeoutNow, MsgAppResp] {
            all.push(forger.message(kind, 1));
            all.push(forger.message(kind, number.max(1 << 62) | 1 << 63));
        }
    }
    for kind in [-1, 77, i32::MAX] {
        all.push(Message { r#type: Some(kind), ..forger.message(MsgApp, term) });
    }
    for kind in [MsgHup, MsgBeat, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum, MsgSnap, MsgTransferLeader] {
        all.push(forger.message(kind, term));
        all.push(forger.message(kind, 0));
    }
    for entry_kind in [2, 3, -7] {
        let entries = vec![entry(1, 1, entry_kind, b"garbage")];
        all.push(Message { entries: entries.clone(), ..forger.message(MsgApp, term) });
        all.push(Message { entries, ..forger.message(MsgProp, 0) });
    }
    // Proposals of garbage are committed; applying them is total.
    for kind in [0, 1] {
        let mut data = vec![0; random.random_range(1..200)];
        random.fill_bytes(&mut data);
        all.push(Message { entries: vec![entry(0, 0, kind, &data)], ..forger.message(MsgProp, 0) });
        all.push(Message { entries: vec![entry(0, 0, kind, b"")], ..forger.message(MsgProp, 0) });
    }
    for context in [0, 8, 63, 65, 4096] {
        let read = vec![entry(0, 0, 0, &vec![7; context])];
        all.push(Message { entries: read.clone(), ..forger.message(MsgReadIndex, 0) });
        all.push(Message { entries: read, index: Some(far), ..forger.message(MsgReadIndexResp, term) });
    }
    all
}

fn snapshots(forger: &Forger, term: u64, random: &mut impl Rng) -> Vec<Vec<u8>> {
    let mut db = vec![0; 20_000];
    random.fill_bytes(&mut db);
    let mut all = Vec::new();
    for (voters, index) in [(vec![], 1 << 30), (vec![forger.to, forger.from], 1 << 30), (vec![9], u64::MAX)] {
        let conf_state = Some(ConfState { voters, auto_leave: Some(false), ..Default::default() });
        let metadata = Some(SnapshotMetadata { conf_state, index: Some(index), term: Some(term) });
        let snapshot = Some(Snapshot { data: None, metadata });
        let message = Message { snapshot, ..forger.message(MessageType::MsgSnap, term) }.encode_to_vec();
        let framed = [&(message.len() as u64).to_be_bytes()[..], &message].concat();
        all.push([framed.clone(), db.clone()].concat());
        all.push(framed);
    }
    all.push(u64::MAX.to_be_bytes().to_vec());
    all.push(db);
    all
}

#[test]
fn forgers_on_the_peer_port_stop_no_member() -> Result<()> {
    let mut random = random("forgers_on_the_peer_port_stop_no_member");
    let cluster = Cluster::start(Kind::Cairn, 3)?;
    let pids: Vec<_> = cluster.members.iter().map(|member| member.pid()).collect();
    let writers = Writers::start(endpoints(&cluster), 3);
    let_write(&writers, 50)?;
    let statuses: Vec<_> = cluster.members.iter().map(status).collect::<Result<_>>()?;
    let ids: Vec<(u64, u64)> = statuses
        .iter()
        .map(|status| status.header.as_ref().map(|header| (header.cluster_id, header.member_id)))
        .collect::<Option<_>>()
        .context("headers")?;
    let term = statuses[0].raft_term;
    for to in 0..3 {
        for from in [ids[(to + 1) % 3].1, ids[(to + 2) % 3].1, 0xdead] {
            let address = cluster.members[to].peer_url.trim_start_matches("http://").to_owned();
            let forger = Forger { cluster: ids[to].0, from, to: ids[to].1, address };
            for message in forgeries(&forger, term, &mut random) {
                forger.raft(&message);
            }
            for body in snapshots(&forger, term, &mut random) {
                let answer = forger.post("/raft/snapshot", forger.cluster, &body);
                assert!(!answer.starts_with("HTTP/1.1 2"), "a snapshot of garbage was taken: {answer}");
            }
            // Refused before raft hears of it, whoever says it.
            let heartbeat = forger.message(MessageType::MsgHeartbeat, term);
            let foreign = forger.post("/raft", forger.cluster ^ 1, &heartbeat.encode_to_vec());
            assert!(foreign.starts_with("HTTP/1.1 412"), "{foreign}");
            let misled = forger.raft(&Message { to: Some(0xbad), ..heartbeat });
            assert!(misled.starts_with("HTTP/1.1 412"), "{misled}");
            for length in [0, 1, 500, 100_000] {
                let mut bytes = vec![0; length];
                random.fill_bytes(&mut bytes);
                exchange(&forger.address, &bytes);
                forger.post("/raft", forger.cluster, &bytes);
            }
        }
        let_write(&writers, 30)?;
    }
    verify(&cluster, &writers.finish())?;
    let now: Vec<_> = cluster.members.iter().map(|member| member.pid()).collect();
    assert_eq!(pids, now);
    for member in &cluster.members {
        assert!(http_alive(member), "{} ended: {}", member.name, member.log_tail());
        assert!(!member.log().contains("panic"), "{}", member.log_tail());
    }
    Ok(())
}

/// Raft takes over a higher term from any member for good, so a forged one may cost an election. It must not cost more, however high it
/// is: beyond the highest term that messages may have nobody could be elected any more. Towards members that are known to be cairn it
/// costs nothing, since who does not say which start it is is not heard.
#[test]
fn forged_terms_cost_elections_and_no_more() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let writers = Writers::start(endpoints(&cluster), 3);
    let_write(&writers, 50)?;
    let headers: Vec<_> =
        cluster.members.iter().map(|member| Ok(status(member)?.header)).collect::<Result<_>>()?;
    let ids: Vec<_> = headers.into_iter().collect::<Option<_>>().context("headers")?;
    for (round, ahead) in [1, 1000, 1 << 40, 1 << 61, (1 << 62) - 1, (1 << 62) - 20].into_iter().enumerate() {
        let (to, from) = (round % 3, (round + 1) % 3);
        let address = cluster.members[to].peer_url.trim_start_matches("http://").to_owned();
        let forger =
            Forger { cluster: ids[to].cluster_id, from: ids[from].member_id, to: ids[to].member_id, address };
        let term = status(&cluster.members[to])?.raft_term + ahead;
        for kind in [MessageType::MsgAppResp, MessageType::MsgHeartbeat, MessageType::MsgVoteResp] {
            forger.raft(&forger.message(kind, term));
        }
        let_write(&writers, 30).with_context(|| format!("after a message of term {term}"))?;
    }
    let leader = cluster.wait_leader()?;
    cluster.members[leader].kill()?;
    let_write(&writers, 30).context("the next election")?;
    cluster.members[leader].spawn()?;
    cluster.wait_healthy()?;
    let term = status(&cluster.members[leader])?.raft_term;
    assert!(term < 1 << 33, "a term of {term}");
    verify(&cluster, &writers.finish())
}

fn http_alive(member: &cairn_tests::harness::Member) -> bool {
    cairn_tests::harness::http_get(&member.client_url, "/health").is_ok_and(|answer| answer.status == 200)
}
