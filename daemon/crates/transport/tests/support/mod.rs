//! What the transport's tests share: a handler that writes everything down, members on free ports, and raw requests.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use api::{
    error::EtcdError,
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata},
};
use bytes::Bytes;
use identity::{
    Boot, Hello, Home, Known, Life, LogEnd, Question, Session, Standing, Unique, Verdict, Witness,
    judge::judge,
};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Builder, Runtime};
use transport::{
    Handler, LeaseRefusal, Limits, Met, PeerHash, PeerMember, Pending, PromoteRefusal, Refused, Report,
    SnapshotSink, Timeouts, Topic, Transport, TransportConfig,
};
use types::{ClusterId, MemberId};
use url::Url;

/// A test that waits longer than this for something that must happen has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CLUSTER: ClusterId = ClusterId(0xc1);

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are messages")]
pub enum Event {
    Message(Message),
    Unreachable(MemberId),
    SnapshotStatus(MemberId, bool),
    /// A snapshot was finished with this many bytes, and this sum of them.
    Snapshot(Box<Message>, usize, u64),
    SnapshotDropped,
    ToldRemoved(MemberId, String),
    Report(Report),
    /// This start of a peer is heard.
    Began(MemberId, Unique),
    Welcomed(MemberId),
    /// A peer does not take us.
    NotWelcome(MemberId, Box<Refused>, bool),
}

#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
    happened: Condvar,
    pub removed: Mutex<HashSet<MemberId>>,
    pub members: Mutex<Vec<PeerMember>>,
    pub accept_remotes: AtomicBool,
    /// What is brought shall be brought again later.
    pub hears_nobody: AtomicBool,
    pub fail_snapshot_finish: AtomicBool,
    /// First bytes of the last snapshot.
    pub snapshot_head: Mutex<Vec<u8>>,
    /// Without it the member says nothing of itself, like one of etcd.
    pub hello: Mutex<Option<Hello>>,
    pub known: Mutex<HashMap<MemberId, Known>>,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().push(event);
        self.happened.notify_all();
    }

    /// Waits until `found` sees what it looks for among all events so far.
    pub fn wait<T>(&self, what: &str, mut found: impl FnMut(&[Event]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events.lock();
        loop {
            if let Some(value) = found(&events) {
                return value;
            }
            if self.happened.wait_until(&mut events, deadline).timed_out() {
                let tail: Vec<_> = events.iter().rev().take(20).collect();
                panic!("waited in vain for {what}; last events, newest first: {tail:#?}");
            }
        }
    }

    pub fn wait_event(&self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        self.wait(what, |events| events.iter().find(|event| is_it(event)).cloned())
    }

    pub fn messages(&self) -> Vec<Message> {
        self.wait_messages(0)
    }

    pub fn wait_messages(&self, count: usize) -> Vec<Message> {
        let mut seen = 0;
        self.wait(&format!("{count} messages"), |events| {
            seen = events.iter().filter(|event| matches!(event, Event::Message(_))).count();
            (seen >= count).then(|| {
                let message = |event: &Event| match event {
                    Event::Message(message) => Some(message.clone()),
                    _ => None,
                };
                events.iter().filter_map(message).collect()
            })
        })
    }

    pub fn count(&self, is_it: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().iter().filter(|event| is_it(event)).count()
    }

    pub fn reports(&self, topic: Topic) -> usize {
        self.count(|event| matches!(event, Event::Report(report) if report.topic == topic))
    }

    pub fn forget(&self) {
        self.events.lock().clear();
    }
}

pub struct Sink {
    recorder: Arc<Recorder>,
    message: Message,
    bytes: usize,
    sum: u64,
    finished: bool,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        if self.bytes == 0 {
            *self.recorder.snapshot_head.lock() = chunk[..chunk.len().min(64)].to_vec();
        }
        self.bytes += chunk.len();
        self.sum =
            chunk.iter().fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.finished = true;
        if self.recorder.fail_snapshot_finish.load(Ordering::Relaxed) {
            return Err(io::Error::other("raft said no"));
        }
        self.recorder.note(Event::Snapshot(Box::new(self.message.clone()), self.bytes, self.sum));
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            self.recorder.note(Event::SnapshotDropped);
        }
    }
}

/// The handler proper: a sink needs to share the recorder.
pub struct Noting(pub Arc<Recorder>);

impl Handler for Noting {
    fn receive(&self, message: Message) {
        self.0.note(Event::Message(message));
    }
    fn is_removed(&self, member: MemberId) -> bool {
        self.0.removed.lock().contains(&member)
    }
    fn members(&self) -> Vec<PeerMember> {
        self.0.members.lock().clone()
    }
    fn cluster_version(&self) -> Option<String> {
        Some("3.5.0".into())
    }
    fn hash_kv(&self, revision: i64) -> Result<PeerHash, EtcdError> {
        match revision {
            ..=1 => Err(EtcdError::Compacted),
            100.. => Err(EtcdError::FutureRev),
            at => Ok(PeerHash { revision: 99, hash: 0xdead_beef, compact_revision: 1, hash_revision: at }),
        }
    }
    fn renew_lease(&self, id: i64) -> Pending<Result<i64, LeaseRefusal>> {
        if id == 13 {
            return Box::pin(std::future::pending());
        }
        Box::pin(std::future::ready(lease(id).map(|(ttl, _)| ttl)))
    }
    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Pending<Result<LeaseTimeToLiveResponse, LeaseRefusal>> {
        let answer = lease(request.id).map(|(granted_ttl, ttl)| LeaseTimeToLiveResponse {
            header: None,
            id: request.id,
            ttl,
            granted_ttl,
            keys: if request.keys { vec![Bytes::from_static(b"held")] } else { vec![] },
        });
        Box::pin(std::future::ready(answer))
    }
    /// Each id shows one way to be refused; 5 is promoted.
    fn promote(&self, member: MemberId) -> Pending<Result<Vec<PeerMember>, PromoteRefusal>> {
        let answer = match member.0 {
            1 => Err(PromoteRefusal::NotLearner),
            2 => Err(PromoteRefusal::NotReady),
            3 => Err(PromoteRefusal::NotEnoughStarted),
            4 => Err(PromoteRefusal::Other),
            5 => Ok(self.0.members.lock().clone()),
            _ => Err(PromoteRefusal::NotFound),
        };
        Box::pin(std::future::ready(answer))
    }
    fn unreachable(&self, peer: MemberId) {
        self.0.note(Event::Unreachable(peer));
    }
    fn snapshot_status(&self, peer: MemberId, ok: bool) {
        self.0.note(Event::SnapshotStatus(peer, ok));
    }
    fn receive_snapshot(&self, message: Message) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(Sink { recorder: self.0.clone(), message, bytes: 0, sum: 0, finished: false }))
    }
    fn told_removed(&self, peer: MemberId, text: &str) {
        self.0.note(Event::ToldRemoved(peer, text.to_owned()));
    }
    fn accept_remote(&self, _: MemberId, _: &[Url]) -> bool {
        self.0.accept_remotes.load(Ordering::Relaxed)
    }
    fn report(&self, report: &Report) {
        self.0.note(Event::Report(report.clone()));
    }
    fn hello(&self) -> Option<Hello> {
        self.0.hello.lock().clone()
    }
    /// As the node does it, in short.
    fn meet(&self, met: &Met<'_>) -> Result<(), Box<Refused>> {
        let Some(mut known) = self.0.known.lock().get(&met.peer).cloned() else { return Ok(()) };
        known.session = met.session.clone();
        let verdict = match (met.hello, &known.record) {
            (Some(hello), _) => judge(hello, &known),
            (None, None) => Verdict::Welcome,
            (None, Some(record)) => Verdict::LostData { dir: record.dir, boot_seq: 1, home: Home::default() },
        };
        if verdict.is_welcome() { Ok(()) } else { Err(Box::new(Refused { verdict, witness: known.witness })) }
    }
    fn may_speak(&self, _: MemberId, _: Option<&Hello>, _: &[Url]) -> bool {
        !self.0.hears_nobody.load(Ordering::Relaxed)
    }
    fn began(&self, peer: MemberId, hello: &Hello) {
        self.0.note(Event::Began(peer, hello.boot.nonce));
    }
    fn welcomed(&self, peer: MemberId) {
        self.0.note(Event::Welcomed(peer));
    }
    fn refused(&self, peer: MemberId, refused: &Refused, theirs: Option<&Hello>) {
        self.0.note(Event::NotWelcome(peer, Box::new(refused.clone()), theirs.is_some()));
    }
    fn answer(&self, question: Question, session: Option<Session>) -> Option<identity::Answer> {
        let hello = self.0.hello.lock().clone()?;
        let known = self.0.known.lock().get(&question.hello.member).cloned();
        let known = Known { session, ..known.unwrap_or_else(|| knows_nothing_against(hello.member)) };
        let verdict = judge(&question.hello, &known);
        Some(identity::Answer { hello, known, verdict, config: question.config, members: vec![] })
    }
}

pub fn knows_nothing_against(me: MemberId) -> Known {
    Known {
        cluster_uuid: None,
        parent_uuid: None,
        restored: None,
        is_founding: false,
        standing: Standing::Member { is_learner: false, is_new: false },
        record: None,
        attendee: None,
        watermark: None,
        session: None,
        witness: Witness { member: me, leads: false, term: 1, commit: 1 },
    }
}

/// A start of a member, told from others by its number.
pub fn hello(member: u64, nonce: u128) -> Hello {
    Hello {
        cluster_id: CLUSTER,
        member: MemberId(member),
        name: format!("n{member:x}"),
        life: Life::Formed,
        dir: Unique::for_test(u128::from(member)),
        boot: Boot { seq: 1, nonce: Unique::for_test(nonce), previous: None },
        earlier: Vec::new(),
        log: LogEnd::default(),
        home: Home { host: "db1".into(), path: "/var/lib/cairn".into(), ..Home::default() },
        version: "0.1.0".into(),
    }
}

/// The lease that everybody has is 7: granted 42 s, 17 left. The others show how one refuses, and about 13 there is never an answer.
fn lease(id: i64) -> Result<(i64, i64), LeaseRefusal> {
    match id {
        7 => Ok((42, 17)),
        9 => Err(LeaseRefusal::NotFound),
        10 => Err(LeaseRefusal::NotApplied),
        _ => Err(LeaseRefusal::NotPrimary),
    }
}

pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

pub fn url_of(address: SocketAddr) -> Url {
    Url::parse(&format!("http://{address}")).expect("an address is a URL")
}

/// How a test wants its member to differ from the ordinary.
#[derive(Clone)]
pub struct Settings {
    pub cluster: ClusterId,
    pub version: String,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

impl Default for Settings {
    fn default() -> Self {
        let timeouts = Timeouts { reconnect: Duration::from_millis(10), ..Timeouts::default() };
        Settings { cluster: CLUSTER, version: "3.6.1".into(), limits: Limits::default(), timeouts }
    }
}

pub struct Member {
    pub id: MemberId,
    pub transport: Transport,
    pub seen: Arc<Recorder>,
    pub address: SocketAddr,
}

impl Member {
    pub fn start(runtime: &Runtime, id: u64) -> Member {
        Member::start_with(runtime, id, listener(), Settings::default())
    }

    /// A member of cairn: this start of it.
    pub fn start_as(runtime: &Runtime, hello: Hello, settings: Settings) -> Member {
        let id = hello.member.0;
        let seen = Recorder { hello: Mutex::new(Some(hello)), ..Recorder::default() };
        Member::start_seen(runtime, id, listener(), settings, Arc::new(seen))
    }

    pub fn start_with(runtime: &Runtime, id: u64, listener: TcpListener, settings: Settings) -> Member {
        Member::start_seen(runtime, id, listener, settings, Arc::new(Recorder::default()))
    }

    fn start_seen(
        runtime: &Runtime,
        id: u64,
        listener: TcpListener,
        settings: Settings,
        seen: Arc<Recorder>,
    ) -> Member {
        let address = listener.local_addr().expect("bound");
        let config = TransportConfig {
            runtime: runtime.handle().clone(),
            listeners: vec![listener],
            member: MemberId(id),
            cluster: settings.cluster,
            server_version: settings.version,
            peer_urls: vec![format!("http://{address}")],
            limits: settings.limits,
            timeouts: settings.timeouts,
        };
        let transport =
            Transport::start(config, Arc::new(Noting(seen.clone()))).expect("a good configuration");
        Member { id: MemberId(id), transport, seen, address }
    }

    pub fn url(&self) -> Url {
        url_of(self.address)
    }

    pub fn knows(&self, other: &Member) {
        self.transport.add_peer(other.id, vec![other.url()]);
    }

    pub fn wait_attached(&self, peer: MemberId) {
        eventually("streams are attached", || self.transport.is_attached(peer));
    }
}

/// Two members that know each other, with all streams up.
pub fn pair(runtime: &Runtime) -> (Member, Member) {
    let (a, b) = (Member::start(runtime, 0xa), Member::start(runtime, 0xb));
    a.knows(&b);
    b.knows(&a);
    a.wait_attached(b.id);
    b.wait_attached(a.id);
    (a, b)
}

/// Waits for a condition that nobody announces.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn entry(term: u64, index: u64, data: impl Into<Bytes>) -> Entry {
    Entry { r#type: Some(0), term: Some(term), index: Some(index), data: Some(data.into()) }
}

/// A message with every field written out, as ours always are.
pub fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    Message {
        r#type: Some(kind as i32),
        to: Some(to),
        from: Some(from),
        term: Some(term),
        log_term: Some(0),
        index: Some(0),
        entries: vec![],
        commit: Some(0),
        snapshot: None,
        reject: Some(false),
        reject_hint: Some(0),
        context: None,
        vote: None,
        responses: vec![],
    }
}

pub fn append(from: u64, to: u64, term: u64, after: u64, entries: Vec<Entry>) -> Message {
    Message {
        log_term: Some(term),
        index: Some(after),
        entries,
        commit: Some(after),
        ..message(MessageType::MsgApp, from, to, term)
    }
}

pub fn snapshot(from: u64, to: u64, term: u64, index: u64) -> Message {
    let metadata = SnapshotMetadata {
        conf_state: Some(api::raftpb::ConfState {
            voters: vec![from, to],
            auto_leave: Some(false),
            ..Default::default()
        }),
        index: Some(index),
        term: Some(term),
    };
    let snapshot = Snapshot { data: Some(Bytes::from_static(b"{}")), metadata: Some(metadata) };
    Message { snapshot: Some(snapshot), ..message(MessageType::MsgSnap, from, to, term) }
}

/// Headers of a caller who is in order.
pub fn headers(from: u64) -> Vec<(String, String)> {
    [
        ("X-Server-From", format!("{from:x}")),
        ("X-Server-Version", "3.5.30".into()),
        ("X-Min-Cluster-Version", "3.0.0".into()),
        ("X-Etcd-Cluster-ID", CLUSTER.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

pub fn with(mut headers: Vec<(String, String)>, name: &str, value: &str) -> Vec<(String, String)> {
    headers.retain(|(known, _)| known != name);
    headers.push((name.into(), value.into()));
    headers
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own, by hand: what arrives is compared as bytes.
pub fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Answer {
    let mut stream = open(address, method, path, headers, body);
    let mut bytes = Vec::new();
    // The end may be a reset when the body was refused unread.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Sends a request and leaves the answer unread.
pub fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" || !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    // A refusal may come before the body is taken.
    let _ = stream.write_all(&bytes);
    stream
}
