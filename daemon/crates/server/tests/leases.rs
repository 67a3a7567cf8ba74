//! Leases at the edge: the unary calls, and the stream that keeps leases alive.

mod support;

use std::sync::{Arc, atomic::Ordering::SeqCst};

use api::{
    error::EtcdError,
    etcdserverpb::{self as pb, lease_client::LeaseClient},
};
use bytes::Bytes;
use prost::Message;
use server::Drained;
use support::{PATIENCE, assert_refused, channel, endless::frame, raw::Going, raw::http1, until, up};
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

const PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

fn grant(id: i64, ttl: i64) -> pb::LeaseGrantRequest {
    pb::LeaseGrantRequest { id, ttl }
}

struct Keeping {
    requests: mpsc::UnboundedSender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Keeping {
    async fn open(channel: Channel, metadata: &[(&'static str, &'static str)]) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let answers = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
        Ok(Keeping { requests, answers })
    }

    fn ask(&self, id: i64) {
        self.requests.send(pb::LeaseKeepAliveRequest { id }).unwrap();
    }

    async fn try_next(&mut self) -> Result<Option<pb::LeaseKeepAliveResponse>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("an answer")
    }

    /// Lease and TTL of the next answer.
    async fn next(&mut self) -> (i64, i64) {
        let answer = self.try_next().await.unwrap().expect("the stream goes on");
        (answer.id, answer.ttl)
    }
}

async fn keeping(up: &support::Up) -> Keeping {
    Keeping::open(channel(up.address).await, &[]).await.unwrap()
}

#[tokio::test]
async fn leases_are_granted_asked_listed_and_revoked() {
    let up = up();
    let mut lease = LeaseClient::new(channel(up.address).await);
    for id in [7, 5] {
        let granted = lease.lease_grant(grant(id, 60)).await.unwrap().into_inner();
        assert_eq!((granted.id, granted.ttl), (id, 60));
    }
    assert_refused(lease.lease_grant(grant(5, 60)).await, EtcdError::LeaseExist);
    let ask = |id| pb::LeaseTimeToLiveRequest { id, keys: true };
    assert_eq!(lease.lease_time_to_live(ask(5)).await.unwrap().into_inner().granted_ttl, 60);
    assert_eq!(lease.lease_time_to_live(ask(6)).await.unwrap().into_inner().ttl, -1);
    let listed = lease.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [5, 7]);
    lease.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.unwrap();
    assert_refused(lease.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await, EtcdError::LeaseNotFound);
}

#[tokio::test]
async fn a_grant_needs_room_and_a_ttl_that_can_be() {
    let up = up();
    let mut lease = LeaseClient::new(channel(up.address).await);
    assert_refused(lease.lease_grant(grant(1, 9_000_000_001)).await, EtcdError::LeaseTtlTooLarge);
    lease.lease_grant(grant(-1, 10)).await.expect_err("a negative id is refused before the log");
    assert!(up.fake.inner.endless.leases.lock().is_empty());
    lease.lease_grant(grant(1, 9_000_000_000)).await.unwrap();
    up.fake.inner.full.store(true, SeqCst);
    // Room first, as in etcd.
    assert_refused(lease.lease_grant(grant(2, 9_000_000_001)).await, EtcdError::NoSpace);
    assert_eq!(up.fake.inner.raised.load(SeqCst), 1);
    // A full member still keeps and revokes.
    let mut stream = keeping(&up).await;
    stream.ask(1);
    assert_eq!(stream.next().await, (1, 9_000_000_000));
    lease.lease_revoke(pb::LeaseRevokeRequest { id: 1 }).await.unwrap();
}

#[tokio::test]
async fn a_learner_has_no_leases() {
    let up = up();
    up.fake.inner.learner.store(true, SeqCst);
    let channel = channel(up.address).await;
    let mut lease = LeaseClient::new(channel.clone());
    const REFUSED: EtcdError = EtcdError::NotSupportedForLearner;
    assert_refused(lease.lease_grant(grant(1, 10)).await, REFUSED);
    assert_refused(lease.lease_revoke(pb::LeaseRevokeRequest { id: 1 }).await, REFUSED);
    assert_refused(
        lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 1, keys: false }).await,
        REFUSED,
    );
    assert_refused(lease.lease_leases(pb::LeaseLeasesRequest {}).await, REFUSED);
    assert_refused(Keeping::open(channel, &[]).await.map(|_| ()), REFUSED);
}

#[tokio::test]
async fn an_unknown_lease_keeps_the_stream_open() {
    let up = up();
    up.fake.inner.endless.leases.lock().insert(1, 10);
    let mut stream = keeping(&up).await;
    for (id, ttl) in [(1, 10), (2, 0), (1, 10)] {
        stream.ask(id);
        assert_eq!(stream.next().await, (id, ttl));
    }
    drop(stream.requests);
    assert!(stream.answers.message().await.unwrap().is_none(), "the stream ends well with the requests");
}

/// Regression LE05: what was true when the answer was ready need not be when its turn comes.
#[tokio::test]
async fn a_success_that_waited_for_its_turn_is_not_told_of_a_lease_that_is_gone() {
    let up = up();
    let endless = &up.fake.inner.endless;
    endless.leases.lock().extend([(1, 10), (2, 20), (3, 30), (4, 40)]);
    let gates: Vec<_> = (0..2).map(|_| Arc::new(Semaphore::new(0))).collect();
    endless.slow.lock().extend([(1, gates[0].clone()), (3, gates[1].clone())]);
    let mut stream = keeping(&up).await;
    // The second is known at once, the third is asked elsewhere and answered long before its turn.
    for id in [1, 2, 3, 4] {
        stream.ask(id);
    }
    gates[1].add_permits(1);
    until("both are asked, one is answered", || {
        *endless.asked.lock() == [1, 3] && endless.outstanding.load(SeqCst) == 1
    })
    .await;
    // Nothing is waited for here: the time itself makes an answer old.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    for id in [2, 3] {
        endless.leases.lock().remove(&id);
    }
    gates[1].add_permits(1);
    gates[0].add_permits(1);
    for expected in [(1, 10), (2, 0), (3, 0), (4, 40)] {
        assert_eq!(stream.next().await, expected);
    }
}

#[tokio::test]
async fn answers_keep_the_order_while_one_waits() {
    let up = up();
    let endless = &up.fake.inner.endless;
    endless.leases.lock().extend([(1, 10), (2, 20), (3, 30), (4, 40)]);
    let gates: Vec<_> = (0..2).map(|_| Arc::new(Semaphore::new(0))).collect();
    endless.slow.lock().extend([(2, gates[0].clone()), (4, gates[1].clone())]);
    let stream = keeping(&up).await;
    for id in [1, 2, 3, 4, 1] {
        stream.ask(id);
    }
    drop(stream.requests);
    let answers = stream.answers;
    let mut stream = Keeping { requests: mpsc::unbounded_channel().0, answers };
    assert_eq!(stream.next().await, (1, 10), "what came before is answered");
    until("the later one is asked too", || *endless.asked.lock() == [2, 4]).await;
    gates[1].add_permits(1);
    gates[0].add_permits(1);
    for expected in [(2, 20), (3, 30), (4, 40), (1, 10)] {
        assert_eq!(stream.next().await, expected);
    }
    assert!(stream.try_next().await.unwrap().is_none(), "the requests ended long ago, all are answered");
}

#[tokio::test]
async fn requests_that_wait_are_bounded() {
    const REQUESTS: i64 = 1000;
    let up = up();
    let endless = &up.fake.inner.endless;
    let gate = Arc::new(Semaphore::new(0));
    endless.slow.lock().insert(1, gate.clone());
    let mut stream = keeping(&up).await;
    for _ in 0..REQUESTS {
        stream.ask(1);
    }
    // Others are served meanwhile, on the same connection or not.
    let mut other = keeping(&up).await;
    other.ask(2);
    assert_eq!(other.next().await, (2, 0));
    until("as many wait as may", || endless.outstanding.load(SeqCst) == 64).await;
    gate.add_permits(REQUESTS as usize);
    for _ in 0..REQUESTS {
        assert_eq!(stream.next().await, (1, 0));
    }
    assert_eq!(endless.outstanding_max.load(SeqCst), 64);
    assert_eq!(endless.outstanding.load(SeqCst), 0);
}

#[tokio::test]
async fn a_refusal_ends_the_stream_in_its_turn() {
    let up = up();
    let endless = &up.fake.inner.endless;
    let gate = Arc::new(Semaphore::new(0));
    endless.slow.lock().insert(2, gate.clone());
    let mut stream = keeping(&up).await;
    stream.ask(1);
    assert_eq!(stream.next().await, (1, 0));
    stream.ask(2);
    until("it is asked", || endless.asked.lock().len() == 1).await;
    *endless.refusing.lock() = Some(EtcdError::TimeoutDueToLeaderFail);
    gate.add_permits(1);
    assert_refused(stream.try_next().await, EtcdError::TimeoutDueToLeaderFail);
}

#[tokio::test]
async fn many_requests_in_one_frame() {
    const REQUESTS: i64 = 5000;
    let up = up();
    up.fake.inner.endless.leases.lock().extend((1..=REQUESTS).map(|id| (id, id + 1)));
    let mut stream = Going::open(up.address, PATH, &[]).await;
    let requests: Vec<u8> = (1..=REQUESTS).flat_map(|id| frame(&pb::LeaseKeepAliveRequest { id })).collect();
    stream.send(requests);
    let mut answers = Vec::new();
    let mut id = 0;
    let mut pieces = 0;
    while id < REQUESTS {
        answers.extend(timeout(PATIENCE, stream.piece()).await.expect("an answer").expect("more of them"));
        pieces += 1;
        let mut rest = Bytes::from(std::mem::take(&mut answers));
        while rest.len() >= 5 {
            let end = 5 + u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            if rest.len() < end {
                break;
            }
            let message = rest.split_to(end).slice(5..);
            let answer = pb::LeaseKeepAliveResponse::decode(message).unwrap();
            id += 1;
            assert_eq!((answer.id, answer.ttl), (id, id + 1));
        }
        answers.extend(rest);
    }
    assert!(pieces < REQUESTS / 10, "{pieces} pieces for {REQUESTS} answers that were there at once");
    let text = http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let labels =
        "grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"";
    for line in [
        format!("grpc_server_msg_received_total{{{labels}}} {REQUESTS}"),
        format!("grpc_server_msg_sent_total{{{labels}}} {REQUESTS}"),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line}");
    }
}

/// A client with many leases renews them at once, each request in a frame of its own, while the first of them waits.
#[tokio::test]
async fn a_burst_of_renewals_is_no_attack() {
    const REQUESTS: i64 = 30_000;
    /// What is read while an answer waits: under way, and held.
    const READ: i64 = 64 + 16 * 1024;
    let up = up();
    let endless = &up.fake.inner.endless;
    let gate = Arc::new(Semaphore::new(0));
    endless.slow.lock().insert(1, gate.clone());
    let mut stream = Going::open(up.address, PATH, &[]).await;
    for id in 1..=REQUESTS {
        stream.send(frame(&pb::LeaseKeepAliveRequest { id }));
    }
    let line = format!(
        "grpc_server_msg_received_total{{grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"}} {READ}\n"
    );
    let all_read = async {
        while !http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .contains(&line)
        {}
    };
    timeout(PATIENCE, all_read).await.expect("as many are read as may be");
    until("all are on their way", || stream.taken.load(SeqCst) == REQUESTS as usize).await;
    gate.add_permits(1);
    let mut id = 0;
    while id < REQUESTS {
        let mut piece =
            timeout(PATIENCE, stream.piece()).await.expect("an answer").expect("the stream goes on");
        while !piece.is_empty() {
            let length = u32::from_be_bytes(piece[1..5].try_into().unwrap()) as usize;
            let message = piece.split_to(5 + length).slice(5..);
            id += 1;
            assert_eq!(pb::LeaseKeepAliveResponse::decode(message).unwrap().id, id);
        }
    }
}

#[tokio::test]
async fn a_wrong_message_is_answered_after_what_came_before() {
    let up = up();
    let endless = &up.fake.inner.endless;
    let gate = Arc::new(Semaphore::new(0));
    endless.slow.lock().insert(1, gate.clone());
    let mut stream = Going::open(up.address, PATH, &[]).await;
    stream.send(frame(&pb::LeaseKeepAliveRequest { id: 1 }));
    stream.send(&[0, 0, 0, 0, 2, 0xff, 0xff][..]);
    until("it is asked", || endless.asked.lock().len() == 1).await;
    gate.add_permits(1);
    assert!(timeout(PATIENCE, stream.piece()).await.unwrap().is_some());
    let (code, text) = timeout(PATIENCE, stream.status()).await.unwrap();
    assert_eq!(code, 13);
    assert!(text.starts_with("grpc: error unmarshalling request: "), "{text}");
    let text = http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let line = "etcd_network_server_stream_failures_total{API=\"lease-keepalive\",Type=\"receive\"} 1";
    assert!(text.contains(line), "no line {line}");
}

#[tokio::test]
async fn streams_end_with_leader_and_server() {
    let up = up();
    let channel = channel(up.address).await;
    let gate = Arc::new(Semaphore::new(0));
    up.fake.inner.endless.slow.lock().insert(1, gate.clone());
    let mut demands = Keeping::open(channel.clone(), &[("hasleader", "true")]).await.unwrap();
    let mut waits = Keeping::open(channel.clone(), &[]).await.unwrap();
    let mut idle = Keeping::open(channel, &[]).await.unwrap();
    demands.ask(2);
    demands.next().await;
    waits.ask(1);
    until("it is asked", || up.fake.inner.endless.asked.lock().len() == 1).await;
    up.fake.inner.leaderless.store(true, SeqCst);
    assert_refused(demands.try_next().await, EtcdError::NoLeader);
    idle.ask(2);
    assert_eq!(idle.next().await, (2, 0));
    let drain = spawn_blocking(move || up.running.drain(PATIENCE));
    assert_refused(waits.try_next().await, EtcdError::Stopped);
    assert_refused(idle.try_next().await, EtcdError::Stopped);
    assert_eq!(timeout(PATIENCE, drain).await.unwrap().unwrap(), Drained { cut_count: 0 });
    assert_eq!(Arc::strong_count(&gate), 2, "nobody waits any more");
}
