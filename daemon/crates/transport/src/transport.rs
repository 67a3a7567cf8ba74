//! The handle that the node holds.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use api::{
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::{Message, MessageType},
};
use identity::{Hello, Unique};
use tracing::info;
use types::MemberId;
use url::Url;

use crate::{
    codec,
    config::{StartError, TransportConfig},
    handler::{Handler, PeerMember, SnapshotSource, Topic},
    headers::{Identity, Version},
    metrics::MetricsSnapshot,
    peer::{
        Peer, Sent, Standing, StreamKind,
        lease::{self, LeaseCallError},
        promote::{self, PromoteError},
        send_snapshot,
    },
    server,
    wire::Shared,
};

/// A running transport. Clones are handles to the same one; it runs until [`Transport::stop`].
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    addresses: Arc<[SocketAddr]>,
}

impl Transport {
    /// Serves the listeners at once; peers are added afterwards.
    pub fn start(config: TransportConfig, handler: Arc<dyn Handler>) -> Result<Transport, StartError> {
        let Some(version) = Version::strict(&config.server_version) else {
            return Err(StartError::Version(config.server_version));
        };
        let identity = Identity::new(config.member, config.cluster, version, &config.peer_urls);
        let shared =
            Arc::new(Shared::new(config.runtime.clone(), identity, config.limits, config.timeouts, handler));
        let _inside = config.runtime.enter();
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for listener in config.listeners {
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            listeners.push(tokio::net::TcpListener::from_std(listener)?);
        }
        for listener in listeners {
            shared.spawn(server::serve(shared.clone(), listener));
        }
        Ok(Transport { shared, addresses: addresses.into() })
    }

    /// Where the listeners are bound, in their order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Queues messages for their peers. Never waits; callable from any thread. What cannot be queued is dropped, and the handler is told
    /// once per burst and peer, from inside this call. Messages to nobody we know are dropped. A MsgSnap belongs to
    /// [`Transport::send_snapshot`]; here it counts as a snapshot that failed.
    pub fn send(&self, messages: Vec<Message>) {
        let mut lost: Vec<Arc<Peer>> = Vec::new();
        let mut misplaced: Vec<MemberId> = Vec::new();
        let mut wakers = Vec::new();
        {
            let peers = self.shared.peers.read();
            for message in messages {
                let to = MemberId(message.to.unwrap_or(0));
                let Some(peer) = peers.get(&to) else { continue };
                if codec::kind(&message) == Some(MessageType::MsgSnap) {
                    misplaced.push(to);
                    continue;
                }
                match peer.send(message) {
                    Sent::Queued(waker) => wakers.extend(waker),
                    Sent::Lost => lost.push(peer.clone()),
                    Sent::LostAgain => {}
                }
            }
        }
        // Only now, so that each stream finds all of its messages and writes them together.
        wakers.into_iter().for_each(std::task::Waker::wake);
        for peer in lost {
            self.shared.report(
                Some(&peer),
                Topic::Overflow,
                "it does not keep up; messages to it are dropped",
            );
            self.shared.handler.unreachable(peer.id);
        }
        misplaced.into_iter().for_each(|peer| self.shared.handler.snapshot_status(peer, false));
    }

    /// Asks a peer, the leader, to renew a lease; answers the seconds that it has again. `patience` covers all of it, the wait for one of
    /// the few connections included. Runs on the transport's threads; safe to drop and to repeat.
    pub async fn renew_lease(
        &self,
        leader: MemberId,
        id: i64,
        patience: Duration,
    ) -> Result<i64, LeaseCallError> {
        lease::renew(self.shared.clone(), self.peer(leader)?, id, patience).await
    }

    /// Asks a peer, the leader, how long a lease lives; on the same terms.
    pub async fn lease_time_to_live(
        &self,
        leader: MemberId,
        request: LeaseTimeToLiveRequest,
        patience: Duration,
    ) -> Result<LeaseTimeToLiveResponse, LeaseCallError> {
        lease::time_to_live(self.shared.clone(), self.peer(leader)?, request, patience).await
    }

    /// Asks a peer, the leader, to make a learner a voter; answers the members after that. `patience` covers all of it. Safe to drop;
    /// what became of the promotion is unknown then.
    pub async fn promote_member(
        &self,
        leader: MemberId,
        member: MemberId,
        patience: Duration,
    ) -> Result<Vec<PeerMember>, PromoteError> {
        match self.shared.peer(leader) {
            Some(peer) => promote::promote(self.shared.clone(), peer, member, patience).await,
            None => Err(PromoteError::NoAnswer("nobody knows the leader's address".into())),
        }
    }

    fn peer(&self, id: MemberId) -> Result<Arc<Peer>, LeaseCallError> {
        self.shared
            .peer(id)
            .ok_or_else(|| LeaseCallError::NoAnswer("nobody knows the leader's address".into()))
    }

    /// Sends a MsgSnap and the database file that goes with it, as fast as the source gives it. Does not wait; [`Handler::snapshot_status`] follows exactly once. One
    /// snapshot per peer at a time: another one fails at once.
    pub fn send_snapshot(&self, to: MemberId, message: Message, source: SnapshotSource) {
        match self.shared.peer(to) {
            Some(peer) => send_snapshot(&self.shared, &peer, message, source),
            None => self.shared.handler.snapshot_status(to, false),
        }
    }

    /// Starts to exchange messages with a member. Adding one that is there changes its URLs; a remote becomes a member.
    pub fn add_peer(&self, id: MemberId, urls: Vec<Url>) {
        self.add(id, Standing::Member, urls);
    }

    /// Makes somebody reachable who is not (yet) a member to us; nothing changes if it is known already.
    pub fn add_remote(&self, id: MemberId, urls: Vec<Url>) {
        self.add(id, Standing::Remote, urls);
    }

    fn add(&self, id: MemberId, standing: Standing, urls: Vec<Url>) {
        if id == self.shared.identity.member || id.is_none() || self.shared.stop.is_cancelled() {
            return;
        }
        let mut peers = self.shared.peers.write();
        match peers.get(&id) {
            Some(known) if known.standing == standing || standing == Standing::Remote => {
                if standing == Standing::Member {
                    known.urls.replace(urls);
                }
            }
            known => {
                if let Some(remote) = known {
                    remote.stop();
                }
                info!(peer = %id, ?standing, urls = urls.iter().map(Url::as_str).collect::<Vec<_>>().join(","), "started peer");
                peers.insert(id, Peer::start(&self.shared, id, standing, urls));
            }
        }
    }

    /// New addresses; connections that work stay.
    pub fn update_peer(&self, id: MemberId, urls: Vec<Url>) {
        if let Some(peer) = self.shared.peer(id) {
            peer.urls.replace(urls);
        }
    }

    /// Ends everything with this peer; messages to it are dropped from now on.
    pub fn remove_peer(&self, id: MemberId) {
        let removed = self.shared.peers.write().remove(&id);
        if let Some(peer) = removed {
            info!(peer = %id, "stopped peer");
            peer.stop();
        }
    }

    /// Members and remotes, in ascending order.
    pub fn peers(&self) -> Vec<MemberId> {
        let mut ids: Vec<_> = self.shared.peers.read().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Whether messages to this member go anywhere.
    pub fn knows(&self, id: MemberId) -> bool {
        self.shared.peers.read().contains_key(&id)
    }

    /// Since when the peer has been heard without a break; `None` while it is not.
    pub fn active_since(&self, id: MemberId) -> Option<Instant> {
        self.shared.peer(id)?.active_since()
    }

    /// Whether both streams towards the peer are attached, so that nothing goes by single requests.
    pub fn is_attached(&self, id: MemberId) -> bool {
        self.shared.peer(id).is_some_and(|peer| StreamKind::ALL.iter().all(|kind| peer.has_stream_out(*kind)))
    }

    /// The starts of peers that are heard now.
    pub fn sessions(&self) -> Vec<Hello> {
        self.shared.peers.read().values().filter_map(|peer| peer.sessions.hello()).collect()
    }

    /// Closes the streams of a peer's start that is not welcome any more. It may ask again, and is judged again.
    pub fn end_session(&self, id: MemberId, nonce: Unique) {
        if let Some(peer) = self.shared.peer(id) {
            peer.sessions.end(nonce);
        }
    }

    pub fn metrics(&self) -> MetricsSnapshot {
        let peers: HashMap<_, _> = self.shared.peers.read().clone();
        let mut rows: Vec<_> = peers
            .values()
            .map(|peer| peer.counters.snapshot(peer.id, peer.active_since().is_some()))
            .collect();
        rows.sort_unstable_by_key(|row| row.id);
        MetricsSnapshot {
            peers: rows,
            open_connections: self.shared.connections.load(Relaxed),
            refused_requests: self.shared.received_failures.load(Relaxed),
        }
    }

    /// Ends all connections and closes the listeners. Snapshots on their way fail and are reported. Returns at once; see
    /// [`Transport::stopped`].
    pub fn stop(&self) {
        self.shared.stop.cancel();
        let peers = std::mem::take(&mut *self.shared.peers.write());
        peers.values().for_each(|peer| peer.stop());
        self.shared.tasks.close();
    }

    /// Waits until everything has ended after [`Transport::stop`].
    pub async fn stopped(&self) {
        self.shared.tasks.wait().await;
    }
}
