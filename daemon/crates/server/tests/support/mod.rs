//! A member in memory behind the edge: the real state machine without a log, with switches for what a test wants to see.

#![allow(dead_code, reason = "every test file uses its own part")]

pub mod endless;
pub mod raw;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use api::{error::EtcdError, etcdserverpb as pb};
use endless::Endless;
use node::NodeStatus;
use parking_lot::Mutex;
use prost::Message;
use server::{Backend, Listen, Running, Server, ServerConfig};
use state_machine::{Memory, Options, Outcome, Reader, Sink, StateMachine};
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint};
use types::{Entry, EntryKind, LogIndex, MemberId, Revision, Term};

pub const MEMBER: u64 = 0xabc;
pub const CLUSTER: u64 = 0xdef;

#[derive(Clone)]
pub struct Fake {
    pub inner: Arc<Inner>,
}

pub struct Inner {
    machine: Mutex<StateMachine<Memory>>,
    reader: Reader<Memory>,
    pub learner: AtomicBool,
    pub joining: AtomicBool,
    /// It has not found its cluster since it was started.
    pub unconfirmed: AtomicBool,
    pub leaderless: AtomicBool,
    pub full: AtomicBool,
    pub raised: AtomicUsize,
    pub barriers: AtomicUsize,
    /// Barriers do not come back.
    pub stuck: AtomicBool,
    pub extra_alarms: Mutex<Vec<pb::AlarmMember>>,
    /// Members beside this one.
    pub others: Mutex<Vec<pb::Member>>,
    pub endless: Arc<Endless>,
    /// What is watched, for those who ask.
    pub watched: Mutex<Vec<node::WatchedRange>>,
    /// So many streams find after their first piece that the store moved on and compacted what they read.
    pub overtake: AtomicUsize,
    /// While set, puts wait for a permit after they announced themselves.
    pub holding: AtomicBool,
    pub arrived: Semaphore,
    pub released: Semaphore,
}

impl Fake {
    pub fn new() -> Self {
        let machine = StateMachine::open(Arc::new(Memory::new()), Options::default(), None).unwrap();
        let reader = machine.reader();
        Fake {
            inner: Arc::new(Inner {
                machine: Mutex::new(machine),
                reader,
                learner: AtomicBool::new(false),
                joining: AtomicBool::new(false),
                unconfirmed: AtomicBool::new(false),
                leaderless: AtomicBool::new(false),
                full: AtomicBool::new(false),
                raised: AtomicUsize::new(0),
                barriers: AtomicUsize::new(0),
                stuck: AtomicBool::new(false),
                extra_alarms: Mutex::new(Vec::new()),
                others: Mutex::default(),
                endless: Arc::default(),
                watched: Mutex::default(),
                overtake: AtomicUsize::new(0),
                holding: AtomicBool::new(false),
                arrived: Semaphore::new(0),
                released: Semaphore::new(0),
            }),
        }
    }

    fn propose(&self, request: pb::InternalRaftRequest) -> Result<Outcome, EtcdError> {
        let mut machine = self.inner.machine.lock();
        let index = machine.applied().index.next();
        let request = pb::InternalRaftRequest {
            header: Some(pb::RequestHeader { id: index.0, ..Default::default() }),
            ..request
        };
        let entry =
            Entry { term: Term(1), index, kind: EntryKind::Normal, data: request.encode_to_vec().into() };
        let mut last = Last { endless: &self.inner.endless, outcome: None };
        machine.apply(&[entry], &mut last);
        last.outcome.expect("an applied entry has an outcome")
    }

    /// Every key the tests read changes, and the state before is compacted away.
    fn put_and_compact(&self) {
        let first = put("k00", "newer");
        let again = put("k00", "newest");
        for put in [first, again] {
            self.propose(pb::InternalRaftRequest { put: Some(put), ..Default::default() }).unwrap();
        }
        let compaction = Some(pb::CompactionRequest { revision: self.header(0).revision, physical: false });
        self.propose(pb::InternalRaftRequest { compaction, ..Default::default() }).unwrap();
    }

    fn stamp(&self, header: Option<pb::ResponseHeader>) -> Option<pb::ResponseHeader> {
        Some(self.header(header.map(|header| header.revision).unwrap_or_default()))
    }
}

struct Last<'a> {
    endless: &'a Endless,
    outcome: Option<Result<Outcome, EtcdError>>,
}

impl Sink for Last<'_> {
    fn outcome(&mut self, _: LogIndex, _: u64, outcome: Result<Outcome, EtcdError>) {
        self.outcome = Some(outcome);
    }
    fn events(&mut self, revision: Revision, events: Vec<api::mvccpb::Event>) {
        self.endless.publish(revision.0, &events);
    }
    fn conf_change(&mut self, _: LogIndex, _: Option<api::raftpb::ConfChangeV2>) {}
}

macro_rules! proposed {
    ($self:ident, $field:ident, $request:ident, $outcome:ident) => {{
        let request = pb::InternalRaftRequest { $field: Some($request), ..Default::default() };
        match $self.propose(request)? {
            Outcome::$outcome(mut response) => {
                response.header = $self.stamp(response.header);
                Ok(response)
            }
            other => panic!("unexpected outcome {other:?}"),
        }
    }};
}

fn known(id: u64) -> Result<(), EtcdError> {
    if id == MEMBER { Ok(()) } else { Err(EtcdError::MemberNotFound) }
}

impl Backend for Fake {
    async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, EtcdError> {
        if self.inner.holding.load(SeqCst) {
            self.inner.arrived.add_permits(1);
            self.inner.released.acquire().await.unwrap().forget();
        }
        proposed!(self, put, request, Put)
    }
    async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, EtcdError> {
        proposed!(self, delete_range, request, DeleteRange)
    }
    async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
        proposed!(self, txn, request, Txn)
    }
    async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, EtcdError> {
        proposed!(self, compaction, request, Compaction)
    }
    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        if !request.serializable {
            self.read_barrier().await?;
        }
        self.range_local(&request)
    }
    async fn read_barrier(&self) -> Result<(), EtcdError> {
        self.inner.barriers.fetch_add(1, SeqCst);
        if self.inner.stuck.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.inner.leaderless.load(SeqCst) { Err(EtcdError::NoLeader) } else { Ok(()) }
    }
    fn range_local(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        if self.inner.unconfirmed.load(SeqCst) {
            return Err(EtcdError::NoLeader);
        }
        let mut response = self.inner.reader.range(request)?;
        response.header = self.stamp(response.header);
        Ok(response)
    }
    fn range_stream(
        &self,
        request: &pb::RangeRequest,
        piece_bytes: usize,
    ) -> Result<impl Iterator<Item = Result<pb::RangeStreamResponse, EtcdError>> + Send + 'static, EtcdError>
    {
        let pieces = self.inner.reader.range_stream(request, piece_bytes)?;
        let fake = self.clone();
        let mut number = 0;
        Ok(pieces.inspect(move |_| {
            number += 1;
            let overtaken = |left: usize| left.checked_sub(1);
            if number == 1 && fake.inner.overtake.fetch_update(SeqCst, SeqCst, overtaken).is_ok() {
                fake.put_and_compact();
            }
        }))
    }
    async fn member_list(&self, _: pb::MemberListRequest) -> Result<pb::MemberListResponse, EtcdError> {
        let member = pb::Member { id: MEMBER, name: "m1".into(), ..Default::default() };
        let members = std::iter::once(member).chain(self.inner.others.lock().clone()).collect();
        Ok(pb::MemberListResponse { header: Some(self.header(0)), members })
    }
    /// Any URL will do, and the only member there is can be changed in every way.
    async fn member_add(&self, request: pb::MemberAddRequest) -> Result<pb::MemberAddResponse, EtcdError> {
        if request.peer_ur_ls.is_empty() {
            return Err(EtcdError::MemberBadUrls);
        }
        let member = pb::Member {
            id: MEMBER + 1,
            peer_ur_ls: request.peer_ur_ls,
            is_learner: request.is_learner,
            ..Default::default()
        };
        let members = vec![member.clone()];
        Ok(pb::MemberAddResponse { header: Some(self.header(0)), member: Some(member), members })
    }
    async fn member_remove(
        &self,
        request: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, EtcdError> {
        known(request.id)?;
        Ok(pb::MemberRemoveResponse { header: Some(self.header(0)), members: vec![] })
    }
    async fn member_update(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, EtcdError> {
        known(request.id)?;
        let member = pb::Member { id: MEMBER, peer_ur_ls: request.peer_ur_ls, ..Default::default() };
        Ok(pb::MemberUpdateResponse { header: Some(self.header(0)), members: vec![member] })
    }
    async fn member_promote(
        &self,
        request: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, EtcdError> {
        known(request.id)?;
        Err(EtcdError::MemberNotLearner)
    }
    async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, EtcdError> {
        proposed!(self, alarm, request, Alarm)
    }
    async fn status(&self) -> Result<pb::StatusResponse, EtcdError> {
        Ok(pb::StatusResponse {
            header: Some(self.header(0)),
            version: types::limits::ETCD_VERSION.into(),
            leader: MEMBER,
            is_learner: self.inner.learner.load(SeqCst),
            ..Default::default()
        })
    }
    async fn hash(&self) -> Result<pb::HashResponse, EtcdError> {
        Ok(pb::HashResponse { header: Some(self.header(0)), hash: 7 })
    }
    async fn defragment(&self) -> Result<(), node::DefragmentError> {
        Ok(())
    }
    async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, EtcdError> {
        if request.revision > self.inner.reader.revision().0 {
            return Err(EtcdError::FutureRev);
        }
        Ok(pb::HashKvResponse { header: Some(self.header(0)), hash: 8, ..Default::default() })
    }
    /// Pieces as the test set them; without end when it says so.
    fn snapshot(&self) -> Result<node::Backup, EtcdError> {
        let (pieces, backup) = tokio::sync::mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move {
            for remaining_bytes in (0..3_u64).rev() {
                let blob = bytes::Bytes::from(vec![remaining_bytes as u8; 8]);
                let piece = pb::SnapshotResponse {
                    remaining_bytes,
                    blob,
                    version: "3.7.0".into(),
                    ..Default::default()
                };
                if pieces.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
            if fake.inner.stuck.load(SeqCst) {
                pieces.closed().await;
                fake.inner.barriers.fetch_add(1, SeqCst);
            }
        });
        Ok(backup)
    }
    async fn move_leader(&self, request: pb::MoveLeaderRequest) -> Result<pb::MoveLeaderResponse, EtcdError> {
        if request.target_id != MEMBER {
            return Err(EtcdError::BadLeaderTransferee);
        }
        Ok(pb::MoveLeaderResponse { header: None })
    }
    async fn lease_grant(&self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, EtcdError> {
        let mut leases = self.inner.endless.leases.lock();
        if leases.insert(request.id, request.ttl).is_some() {
            return Err(EtcdError::LeaseExist);
        }
        drop(leases);
        // The state machine knows it too, so that keys can hang on it; tests here give ids that it would not take as well.
        let _ = self.propose(pb::InternalRaftRequest { lease_grant: Some(request), ..Default::default() });
        let header = Some(self.header(0));
        Ok(pb::LeaseGrantResponse { header, id: request.id, ttl: request.ttl, error: String::new() })
    }
    async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, EtcdError> {
        self.inner.endless.leases.lock().remove(&request.id).ok_or(EtcdError::LeaseNotFound)?;
        Ok(pb::LeaseRevokeResponse { header: Some(self.header(0)) })
    }
    fn lease_keep_alive_now(&self, id: i64) -> Option<pb::LeaseKeepAliveResponse> {
        self.inner.endless.keep_alive_now(id)
    }
    async fn lease_keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, EtcdError> {
        self.inner.endless.keep_alive(id).await
    }
    async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, EtcdError> {
        let ttl = self.inner.endless.leases.lock().get(&request.id).copied();
        Ok(pb::LeaseTimeToLiveResponse {
            header: Some(self.header(0)),
            id: request.id,
            ttl: ttl.unwrap_or(-1),
            granted_ttl: ttl.unwrap_or_default(),
            keys: Vec::new(),
        })
    }
    async fn lease_leases(&self) -> Result<pb::LeaseLeasesResponse, EtcdError> {
        let leases = self.inner.endless.leases.lock();
        let leases = leases.keys().map(|&id| pb::LeaseStatus { id }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(self.header(0)), leases })
    }
    fn history(
        &self,
        from: Revision,
        to: Revision,
        range: &types::KeyRange,
    ) -> Result<state_machine::History, EtcdError> {
        let ranges = std::slice::from_ref(range);
        // Two revisions at a time, so that an answer needs several looks.
        let request = state_machine::HistoryRequest { from, to, ranges, revisions_max: 2, bytes_max: 1024 };
        self.inner.reader.history(&request).map_err(|_| EtcdError::Compacted)
    }
    fn compact_revision(&self) -> i64 {
        self.inner.reader.compact_revision().0
    }
    /// As the test set it, one range at a time.
    async fn census(&self, from: usize) -> Result<node::Census, EtcdError> {
        let watched = self.inner.watched.lock();
        let ranges = watched.get(from).cloned().into_iter().collect();
        Ok(node::Census { ranges, next: (from + 1 < watched.len()).then_some(from + 1) })
    }
    type WatchRequests = endless::Asking;
    type WatchResponses = endless::Answering;
    fn watch(&self) -> (endless::Asking, endless::Answering) {
        self.inner.endless.watch()
    }
    fn may_watch(&self, token: Option<&[u8]>, key: &[u8], _: &[u8]) -> Result<(), EtcdError> {
        if let Some(stall) = self.inner.endless.stall.lock().take() {
            let _ = stall.recv();
        }
        self.inner.endless.tokens.lock().push(token.map(<[u8]>::to_vec));
        self.inner.endless.forbidden.lock().get(key).map_or(Ok(()), |&error| Err(error))
    }
    fn header(&self, revision: i64) -> pb::ResponseHeader {
        let revision = if revision == 0 { self.inner.reader.revision().0 } else { revision };
        pb::ResponseHeader { cluster_id: CLUSTER, member_id: MEMBER, revision, raft_term: 1 }
    }
    fn node_status(&self) -> NodeStatus {
        let leaderless = self.inner.leaderless.load(SeqCst);
        NodeStatus {
            member: MemberId(MEMBER),
            is_leader: !leaderless,
            leader: if leaderless { MemberId::NONE } else { MemberId(MEMBER) },
            is_joining: self.inner.joining.load(SeqCst),
            is_learner: self.inner.learner.load(SeqCst),
            term: Term(1),
            ..NodeStatus::default()
        }
    }
    fn alarms(&self) -> Vec<pb::AlarmMember> {
        let mut alarms = self.inner.reader.alarms();
        alarms.extend(self.inner.extra_alarms.lock().iter().copied());
        alarms
    }
    fn cluster_version(&self) -> Option<String> {
        Some(types::limits::CLUSTER_VERSION.into())
    }
    fn storage_version(&self) -> String {
        String::new()
    }
    fn has_space_for(&self, _: u64) -> bool {
        !self.inner.full.load(SeqCst)
    }
    fn raise_no_space(&self) {
        self.inner.raised.fetch_add(1, SeqCst);
    }
    fn has_leader(&self) -> bool {
        !self.inner.leaderless.load(SeqCst)
    }
    fn metrics_text(&self) -> String {
        "# HELP etcd_server_has_leader x\n# TYPE etcd_server_has_leader gauge\netcd_server_has_leader 1\n"
            .into()
    }
}

pub fn any_port() -> Listen {
    Listen { setting: "listen-client-urls", address: SocketAddr::from(([127, 0, 0, 1], 0)) }
}

/// One client address, one runtime, and waits that a test can live with.
pub fn config() -> ServerConfig {
    ServerConfig {
        client: vec![any_port()],
        runtimes: std::num::NonZeroUsize::new(1),
        ..ServerConfig::default()
    }
}

pub struct Up {
    pub running: Running,
    pub fake: Fake,
    pub address: SocketAddr,
}

pub fn up() -> Up {
    up_with(config())
}

pub fn up_with(config: ServerConfig) -> Up {
    let fake = Fake::new();
    let running = Server::start(config, fake.clone()).unwrap();
    running.set_serving(true);
    let address = running.client_addresses()[0];
    Up { running, fake, address }
}

pub async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Bound of everything a test waits for; reached only when the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A KV client whose messages may be of any size.
pub async fn kv(address: SocketAddr) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel(address).await)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

pub fn put(key: impl Into<bytes::Bytes>, value: impl Into<bytes::Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

pub fn range(key: impl Into<bytes::Bytes>, end: impl Into<bytes::Bytes>) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

/// Expects this refusal, code and text.
pub fn assert_refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, error: EtcdError) {
    let status = answer.expect_err("a refusal");
    assert_eq!((status.code() as i32, status.message()), (error.code() as i32, error.text()));
}

/// Waits for a state that nobody announces.
pub async fn until(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
