//! Clients of leases that remember every exchange with the times at which they sent and received.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, kv_client::KvClient,
    lease_client::LeaseClient,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    checker::{
        history::Written,
        lease::{Answer, Exchange},
    },
    harness::wait_for,
};

use super::{Clock, channel, traffic::Promises};

/// A keep-alive without an answer for so long is asked of the next member.
const ANSWER_MAX: Duration = Duration::from_millis(1500);

/// All lease clients of a test.
#[derive(Clone)]
pub struct Lessees {
    clock: Clock,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    written: Arc<Mutex<BTreeMap<i64, Written>>>,
}

/// One lease that is being kept alive, until this is dropped.
pub struct KeptAlive {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl KeptAlive {
    /// Waits until each of them was renewed so many times more; an error as soon as a client is told that its lease is gone.
    pub fn go_on(all: &[KeptAlive], more: u64) -> Result<()> {
        let answers = |lease: &KeptAlive| lease.answers.load(Ordering::Acquire);
        let gone = || all.iter().any(|lease| lease.gone.load(Ordering::Acquire));
        let goals: Vec<u64> = all.iter().map(|lease| answers(lease) + more).collect();
        let renewed = || all.iter().zip(&goals).all(|(lease, goal)| answers(lease) >= *goal);
        wait_for("renewals", || (renewed() || gone()).then_some(()))?;
        ensure!(!gone(), "a lease that is kept alive is gone");
        Ok(())
    }
}

impl Drop for KeptAlive {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a keep-alive client panicked");
        }
    }
}

impl Lessees {
    pub fn new(clock: Clock) -> Lessees {
        Lessees { clock, exchanges: Arc::default(), written: Arc::default() }
    }

    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().expect("no client panicked").clone()
    }

    /// The puts, as promised.
    pub fn promises(&self) -> Promises {
        let acknowledged = self.written.lock().expect("no client panicked").clone();
        Promises { acknowledged, unknown: 0 }
    }

    fn note(&self, sent: Duration, by: &str, what: Answer) {
        let exchange = Exchange { sent, received: self.clock.now(), by: by.to_owned(), what };
        self.exchanges.lock().expect("no client panicked").push(exchange);
    }

    pub async fn grant(&self, endpoint: &str, id: i64, ttl: i64) -> Result<i64> {
        let sent = self.clock.now();
        let mut client = LeaseClient::new(channel(endpoint)?);
        let answer = client.lease_grant(LeaseGrantRequest { ttl, id }).await?.into_inner();
        self.note(sent, endpoint, Answer::Granted { id: answer.id, ttl: answer.ttl });
        Ok(answer.id)
    }

    pub async fn put(&self, endpoint: &str, key: &str, lease: i64) -> Result<i64> {
        let value: bytes::Bytes = format!("{lease:x}").into();
        let request =
            PutRequest { key: key.to_owned().into(), value: value.clone(), lease, ..Default::default() };
        let answer = KvClient::new(channel(endpoint)?).put(request).await?.into_inner();
        let revision = answer.header.context("a header")?.revision;
        let written = vec![(key.to_owned().into(), Some(value))];
        self.written.lock().expect("no client panicked").insert(revision, written);
        Ok(revision)
    }

    /// The revision of the answer.
    pub async fn revoke(&self, endpoint: &str, id: i64) -> Result<i64> {
        let sent = self.clock.now();
        let mut client = LeaseClient::new(channel(endpoint)?);
        match client.lease_revoke(LeaseRevokeRequest { id }).await {
            Ok(answer) => {
                self.note(sent, endpoint, Answer::Revoked { id });
                Ok(answer.into_inner().header.context("a header")?.revision)
            }
            Err(status) => {
                let not_found = status.code() == Code::NotFound;
                let what =
                    if not_found { Answer::RevokeNotFound { id } } else { Answer::RevokeUnknown { id } };
                self.note(sent, endpoint, what);
                Err(status.into())
            }
        }
    }

    pub async fn time_to_live(&self, endpoint: &str, id: i64) -> Result<LeaseTimeToLiveResponse> {
        let sent = self.clock.now();
        let mut client = LeaseClient::new(channel(endpoint)?);
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = client.lease_time_to_live(request).await?.into_inner();
        let what = Answer::TimeToLive { id, ttl: answer.ttl, granted: answer.granted_ttl };
        self.note(sent, endpoint, what);
        Ok(answer)
    }

    /// One renewal on a stream of its own.
    pub async fn renew(&self, endpoint: &str, id: i64) -> Result<i64> {
        let mut stream = Renewals::open(endpoint)?;
        self.renewed(endpoint, &mut stream, id).await
    }

    async fn renewed(&self, endpoint: &str, stream: &mut Renewals, id: i64) -> Result<i64> {
        let sent = self.clock.now();
        let answer = timeout(ANSWER_MAX, stream.renew(id)).await.context("no answer to a keep-alive")??;
        self.note(sent, endpoint, Answer::KeptAlive { id: answer.id, ttl: answer.ttl });
        Ok(answer.ttl)
    }

    /// Renews each so often, on one stream as long as it works, then through the next member. Ends by itself when it is told that the
    /// lease is gone.
    pub fn keep_alive(&self, endpoints: &[String], id: i64, every: Duration) -> KeptAlive {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let gone = Arc::new(AtomicBool::new(false));
        let (me, stopped, answered, ended) = (self.clone(), stop.clone(), answers.clone(), gone.clone());
        let endpoints = endpoints.to_vec();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime for one client").block_on(async {
                let mut at = 0;
                while !stopped.load(Ordering::Acquire) {
                    let endpoint = &endpoints[at % endpoints.len()];
                    at += 1;
                    let Ok(mut stream) = Renewals::open(endpoint) else { continue };
                    while !stopped.load(Ordering::Acquire) {
                        match me.renewed(endpoint, &mut stream, id).await {
                            Ok(0) => return ended.store(true, Ordering::Release),
                            Ok(_) => answered.fetch_add(1, Ordering::AcqRel),
                            Err(_) => break,
                        };
                        sleep(every).await;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            });
        });
        KeptAlive { stop, answers, gone, thread: Some(thread) }
    }
}

/// A keep-alive stream; it is opened with the first request, because a server may open it with its first answer only.
struct Renewals {
    client: LeaseClient<Channel>,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    waiting: Option<mpsc::Receiver<LeaseKeepAliveRequest>>,
    answers: Option<Streaming<LeaseKeepAliveResponse>>,
}

impl Renewals {
    fn open(endpoint: &str) -> Result<Renewals> {
        let (requests, waiting) = mpsc::channel(1);
        // Not the channel of unary calls: its time limit would end the stream.
        let endpoint = tonic::transport::Endpoint::from_shared(endpoint.to_owned())?;
        let channel = endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy();
        Ok(Renewals { client: LeaseClient::new(channel), requests, waiting: Some(waiting), answers: None })
    }

    async fn renew(&mut self, id: i64) -> Result<LeaseKeepAliveResponse> {
        self.requests.send(LeaseKeepAliveRequest { id }).await?;
        if let Some(waiting) = self.waiting.take() {
            let opened = self.client.lease_keep_alive(ReceiverStream::new(waiting)).await?;
            self.answers = Some(opened.into_inner());
        }
        let answers = self.answers.as_mut().context("the stream broke before")?;
        answers.message().await?.context("the stream ended")
    }
}
