//! The member's face to its peers: what the transport asks, who is connected to, and the member's own proposals to the cluster (its
//! name and client URLs, the cluster version, a NOSPACE alarm).

use std::{
    io,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use api::{error::EtcdError, etcdserverpb as pb, membershippb, raftpb};
use consensus::io::Input;
use identity::{Answer, Hello, Session};
use state_machine::{Reader, membership::Member};
use storage::state_store::FjallStore;
use tracing::{info, warn};
use transport::{
    Handler, LeaseRefusal, Met, PeerClient, PeerHash, PeerMember, Pending, PromoteRefusal, Refused,
    SnapshotSink, Transport,
};
use types::{LeaseId, MemberId, limits};
use url::Url;

use crate::{
    announce,
    handle::Handle,
    lessor::{self, Question, Refusal},
    members, sentinel,
    shared::{MESSAGES_QUEUED_MAX, Shared, ToRaft},
    snapshots,
};

/// How often waits are checked for expiry. A request's deadline is thus met within half a second.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a removed member is still reached: it must hear that its removal is committed, since it believes nothing but its own log.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// How often the leader compares the members' versions, as etcd.
const VERSION_INTERVAL: Duration = Duration::from_secs(4);

/// Pause before a publication that failed is tried again: an election is rarely longer.
const PUBLISH_RETRY: Duration = Duration::from_millis(250);

/// Patience for one question to one peer about its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(1);

/// Version that a cluster has until the members' own are known, as in etcd.
const CLUSTER_VERSION_MIN: &str = "3.0.0";

/// What the transport asks of the node. Weak, since the node owns the transport.
pub(crate) struct PeerFace(pub(crate) Weak<Shared>);

impl PeerFace {
    fn shared(&self) -> Option<Arc<Shared>> {
        self.0.upgrade()
    }
}

impl Handler for PeerFace {
    fn receive(&self, message: raftpb::Message) {
        let Some(shared) = self.shared() else { return };
        if shared.raft.try_push(ToRaft::input(Input::Message(message)), MESSAGES_QUEUED_MAX).is_err() {
            shared.metrics.messages_dropped.add(1);
        }
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.shared().is_some_and(|shared| shared.reader.read().is_removed(member))
    }

    fn members(&self) -> Vec<PeerMember> {
        let Some(shared) = self.shared() else { return Vec::new() };
        shared.reader().members().into_iter().map(peer_member).collect()
    }

    fn cluster_version(&self) -> Option<String> {
        self.shared()?.reader().cluster_version()
    }

    fn storage_version(&self) -> Option<String> {
        self.cluster_version()
    }

    fn hash_kv(&self, revision: i64) -> Result<PeerHash, EtcdError> {
        let shared = self.shared().ok_or(EtcdError::Stopped)?;
        let reader = shared.reader();
        let result = reader.hash_kv(revision)?;
        Ok(PeerHash {
            revision: reader.revision().0,
            hash: result.hash,
            compact_revision: result.compact_revision.0,
            hash_revision: result.hash_revision.0,
        })
    }

    fn renew_lease(&self, id: i64) -> Pending<Result<i64, LeaseRefusal>> {
        answer(self.shared(), lessor::Renew(LeaseId(id)))
    }

    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Pending<Result<pb::LeaseTimeToLiveResponse, LeaseRefusal>> {
        answer(self.shared(), lessor::TimeToLive(request))
    }

    fn promote(&self, member: MemberId) -> Pending<Result<Vec<PeerMember>, PromoteRefusal>> {
        Box::pin(members::promote_for_peer(self.shared(), member))
    }

    fn unreachable(&self, peer: MemberId) {
        let Some(shared) = self.shared() else { return };
        // Losing one of these costs raft a little speed, nothing else.
        let _ = shared.raft.try_push(ToRaft::input(Input::Unreachable(peer)), MESSAGES_QUEUED_MAX);
    }

    fn snapshot_status(&self, peer: MemberId, ok: bool) {
        let Some(shared) = self.shared() else { return };
        info!(peer = %peer, ok, "snapshot transfer ended");
        shared.raft.push(ToRaft::input(Input::SnapshotStatus { to: peer, ok }));
    }

    fn receive_snapshot(&self, message: raftpb::Message) -> io::Result<Box<dyn SnapshotSink>> {
        let shared = self.shared().ok_or_else(|| io::Error::other("this member is stopping"))?;
        snapshots::receive(&shared, message)
    }

    fn told_removed(&self, peer: MemberId, text: &str) {
        if let Some(shared) = self.shared() {
            members::told_removed(&shared, peer, text);
        }
    }

    fn accept_remote(&self, member: MemberId, _urls: &[Url]) -> bool {
        // Only somebody whom the log knows: a stranger that knows the cluster id proves nothing.
        self.shared().is_some_and(|shared| shared.reader().member(member).is_some())
    }

    fn hello(&self) -> Option<Hello> {
        self.shared().map(|shared| sentinel::hello(&shared))
    }

    fn meet(&self, met: &Met<'_>) -> Result<(), Box<Refused>> {
        self.shared().map_or(Ok(()), |shared| sentinel::meet(&shared, met))
    }

    fn may_speak(&self, peer: MemberId, hello: Option<&Hello>, urls: &[Url]) -> bool {
        self.shared().is_none_or(|shared| sentinel::may_speak(&shared, peer, hello, urls))
    }

    fn began(&self, peer: MemberId, hello: &Hello) {
        if let Some(shared) = self.shared() {
            sentinel::began(&shared, peer, hello);
        }
    }

    fn welcomed(&self, peer: MemberId) {
        if let Some(shared) = self.shared() {
            sentinel::welcomed(&shared, peer);
        }
    }

    fn refused(&self, peer: MemberId, refused: &Refused, theirs: Option<&Hello>) {
        if let Some(shared) = self.shared() {
            sentinel::refused(&shared, peer, refused, theirs);
        }
    }

    fn answer(&self, question: identity::Question, session: Option<Session>) -> Option<Answer> {
        self.shared().map(|shared| sentinel::answer(&shared, &question, session))
    }
}

/// As the leader, and nothing is passed on.
fn answer<Q: Question>(shared: Option<Arc<Shared>>, question: Q) -> Pending<Result<Q::Answer, LeaseRefusal>> {
    Box::pin(async move {
        let handle = Handle { shared: shared.ok_or(LeaseRefusal::NotPrimary)? };
        let limit = handle.shared.config.request_timeout();
        match tokio::time::timeout(limit, question.here(&handle)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Refusal::NotFound)) => Err(LeaseRefusal::NotFound),
            Ok(Err(Refusal::NotApplied)) => Err(LeaseRefusal::NotApplied),
            Ok(Err(Refusal::NotPrimary | Refusal::Error(_))) | Err(_) => Err(LeaseRefusal::NotPrimary),
        }
    })
}

pub(crate) fn peer_member(member: Member) -> PeerMember {
    PeerMember {
        id: member.id,
        peer_urls: member.peer_urls,
        is_learner: member.is_learner,
        name: member.name,
        client_urls: member.client_urls,
    }
}

/// Connects to whom the log names, disconnects from whom it does not.
pub(crate) fn follow_members(shared: &Arc<Shared>, transport: &Transport, reader: &Reader<FjallStore>) {
    let members = reader.members();
    for member in members.iter().filter(|member| member.id != shared.config.member) {
        // Whoever is there already gets new addresses; a remote becomes a member.
        transport.add_peer(member.id, parse_urls(&member.peer_urls));
    }
    let removed: Vec<MemberId> =
        transport.peers().into_iter().filter(|peer| reader.is_removed(*peer)).collect();
    if removed.is_empty() {
        return;
    }
    let transport = transport.clone();
    shared.runtime.spawn(async move {
        tokio::time::sleep(REMOVED_GRACE).await;
        // An id that was removed never comes back, so there is nothing to look at again.
        removed.into_iter().for_each(|peer| transport.remove_peer(peer));
    });
}

/// URLs of the log were checked before they entered it; one that no longer parses is left out rather than fatal.
pub(crate) fn parse_urls(urls: &[String]) -> Vec<Url> {
    urls.iter().filter_map(|url| Url::parse(url).ok()).collect()
}

/// Proposes this member's NOSPACE alarm and does not wait. Raising it twice is harmless.
pub(crate) fn raise_no_space(shared: &Arc<Shared>) {
    let me = shared.config.member.0;
    let raised = shared
        .reader()
        .alarms()
        .iter()
        .any(|alarm| alarm.member_id == me && alarm.alarm == pb::AlarmType::Nospace as i32);
    if raised || shared.raising_alarm.swap(true, Ordering::AcqRel) {
        return;
    }
    warn!("the state store exceeds its quota: raising the NOSPACE alarm, writes are refused from here on");
    let handle = Handle { shared: shared.clone() };
    shared.runtime.spawn(async move {
        let alarm = pb::AlarmRequest {
            action: pb::alarm_request::AlarmAction::Activate as i32,
            member_id: me,
            alarm: pb::AlarmType::Nospace as i32,
        };
        let request = pb::InternalRaftRequest { alarm: Some(alarm), ..Default::default() };
        if let Err(error) = handle.propose(request).await {
            warn!(%error, "the NOSPACE alarm could not be raised; the next write over quota tries again");
        }
        handle.shared.raising_alarm.store(false, Ordering::Release);
    });
}

/// Ends waits whose time is over, twice a second.
pub(crate) async fn expire_waits(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.expire_waits(Instant::now());
    }
}

/// Tells the cluster this member's name and client URLs, until it took.
pub(crate) async fn publish(shared: Weak<Shared>) {
    let mut told = false;
    loop {
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        let config = &shared.config;
        let listed = shared.reader().member(config.member).filter(|member| !member.name.is_empty());
        let known = listed.as_ref().is_some_and(|member| {
            member.name == config.name && member.client_urls == config.advertise_client_urls
        });
        if known {
            info!(member = %config.member, name = config.name, client_urls = ?config.advertise_client_urls, "{}", announce::PUBLISHED);
            return;
        }
        if let Some(before) = listed.filter(|_| !std::mem::replace(&mut told, true)) {
            info!(
                name = config.name,
                name_before = before.name,
                client_urls = ?config.advertise_client_urls,
                client_urls_before = ?before.client_urls,
                "{}",
                announce::PUBLISHES_ANEW
            );
        }
        let attributes = membershippb::Attributes {
            name: config.name.clone(),
            client_urls: config.advertise_client_urls.clone(),
        };
        let set = membershippb::ClusterMemberAttrSetRequest {
            member_id: config.member.0,
            member_attributes: Some(attributes),
        };
        let request = pb::InternalRaftRequest { cluster_member_attr_set: Some(set), ..Default::default() };
        let handle = Handle { shared: shared.clone() };
        drop(shared);
        if handle.propose(request).await.is_err() {
            drop(handle);
            tokio::time::sleep(PUBLISH_RETRY).await;
        }
    }
}

/// While this member leads: agrees on the cluster version with the others, as the lowest that all of them speak.
pub(crate) async fn watch_versions(shared: Weak<Shared>) {
    let client = PeerClient::new(VERSION_PATIENCE);
    let Some(mut leadership) = shared.upgrade().map(|shared| shared.leadership.subscribe()) else { return };
    // An only voter may have taken office already.
    leadership.mark_changed();
    loop {
        // At once on taking office, later at the interval.
        let _ = tokio::time::timeout(VERSION_INTERVAL, leadership.changed()).await;
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        if leadership.borrow_and_update().leader != shared.config.member {
            continue;
        }
        let handle = Handle { shared };
        agree_on_version(&handle, &client).await;
    }
}

async fn agree_on_version(handle: &Handle, client: &PeerClient) {
    let current = handle.cluster_version();
    let mut lowest = Some(major_minor(limits::ETCD_VERSION));
    let me = handle.shared.config.member;
    for member in handle.members().into_iter().filter(|member| member.id != me) {
        let mut version = None;
        for url in parse_urls(&member.peer_urls) {
            if let Ok(found) = client.version(&url).await {
                version = Some(major_minor(&found.server));
                break;
            }
        }
        lowest = lowest.zip(version).map(|(lowest, version)| lowest.min(version));
    }
    let wanted = match (lowest, &current) {
        (Some((major, minor)), _) => format!("{major}.{minor}.0"),
        (None, None) => CLUSTER_VERSION_MIN.to_owned(),
        (None, Some(_)) => return,
    };
    if current.as_deref().is_some_and(|current| major_minor(current) >= major_minor(&wanted)) {
        return;
    }
    if current.is_none() {
        info!(version = wanted, "{}", announce::CLUSTER_VERSION_SETTING);
    }
    let set = membershippb::ClusterVersionSetRequest { ver: wanted.clone() };
    let request = pb::InternalRaftRequest { cluster_version_set: Some(set), ..Default::default() };
    match handle.propose(request).await {
        Ok(_) if current.is_none() => info!(version = wanted, "{}", announce::CLUSTER_VERSION_SET),
        Ok(_) => info!(version = wanted, "{}", announce::CLUSTER_VERSION_RAISED),
        // The next interval tries again.
        Err(error) => warn!(%error, version = wanted, "the cluster version could not be set"),
    }
}

/// 0.0 for what is no version: then nothing is ever raised because of it.
fn major_minor(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
