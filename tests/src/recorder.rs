//! Clients that write and remember what they were promised, while somebody kills the members under them. Each client owns its keys and
//! counts up, so what must be found afterwards is plain: for every key at least the last acknowledged number, and never less.
//!
//! The submodules are clients for the checkers: [`traffic`] writes all kinds of changes, [`historian`] reads back what really happened,
//! [`watchers`] and [`lessees`] watch and hold leases.

mod fill;
pub mod historian;
pub mod lessees;
pub mod traffic;
pub mod watchers;

mod clock;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use api::etcdserverpb::{
    HashKvRequest, PutRequest, PutResponse, RangeRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use tonic::transport::{Channel, Endpoint};

pub use clock::Clock;
pub use fill::fill;

/// What one key was promised.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promise {
    /// Highest number acknowledged.
    pub acknowledged: u64,
    /// Highest number ever sent; those above `acknowledged` may or may not be there.
    pub attempted: u64,
    /// Revision of the last acknowledgement.
    pub revision: i64,
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    pub promises: BTreeMap<String, Promise>,
    /// Writes whose outcome nobody knows. They may be applied late, also after ones that were acknowledged since.
    pub unknown: BTreeSet<(String, u64)>,
    pub acknowledged: u64,
    pub failed: u64,
}

pub struct Writers {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

pub fn channel(endpoint: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(3))
        .connect_lazy())
}

impl Writers {
    /// `count` clients, spread over the endpoints, each moving on to the next endpoint after a failure.
    pub fn start(endpoints: Vec<String>, count: usize) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let record = Arc::new(Mutex::new(Record::default()));
        let threads = (0..count)
            .map(|i| {
                let (stop, record, endpoints) = (stop.clone(), record.clone(), endpoints.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("a runtime for one writer");
                    runtime.block_on(write(i, &endpoints, &stop, &record));
                })
            })
            .collect();
        Writers { stop, record, threads }
    }

    pub fn acknowledged(&self) -> u64 {
        self.record.lock().expect("no writer panicked").acknowledged
    }

    pub fn finish(self) -> Record {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().expect("no writer panicked");
        }
        Arc::try_unwrap(self.record).expect("all writers ended").into_inner().expect("no writer panicked")
    }
}

async fn write(me: usize, endpoints: &[String], stop: &AtomicBool, record: &Mutex<Record>) {
    let channels: Vec<Channel> =
        endpoints.iter().map(|endpoint| channel(endpoint).expect("a valid endpoint")).collect();
    let mut at = me;
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        number += 1;
        let key = format!("writer/{me}/{}", number % 7);
        record.lock().expect("no writer panicked").promises.entry(key.clone()).or_default().attempted =
            number;
        let request =
            PutRequest { key: key.clone().into(), value: number.to_string().into(), ..Default::default() };
        let answer = KvClient::new(channels[at % channels.len()].clone()).put(request).await;
        if !note(record, key, number, answer.ok().map(|answer| answer.into_inner())) {
            at += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Remembers what came of one put; false when nothing was promised.
fn note(record: &Mutex<Record>, key: String, number: u64, answer: Option<PutResponse>) -> bool {
    let mut record = record.lock().expect("no writer panicked");
    let Some(answer) = answer else {
        record.failed += 1;
        return false;
    };
    let revision = answer.header.map_or(0, |header| header.revision);
    record.acknowledged += 1;
    let promise = record.promises.entry(key).or_default();
    promise.acknowledged = number;
    assert!(revision > promise.revision, "revision went back: {} after {}", revision, promise.revision);
    promise.revision = revision;
    true
}

impl Record {
    /// Every promise is kept at this endpoint, by linearizable reads.
    pub async fn verify(&self, endpoint: &str) -> Result<()> {
        let mut client = KvClient::new(channel(endpoint)?);
        for (key, promise) in &self.promises {
            let answer = client
                .range(RangeRequest { key: key.clone().into(), ..Default::default() })
                .await
                .with_context(|| format!("read {key} from {endpoint}"))?
                .into_inner();
            let Some(kv) = answer.kvs.first() else {
                if promise.acknowledged == 0 {
                    continue;
                }
                bail!(
                    "{key}: {} was acknowledged at revision {}, nothing is there",
                    promise.acknowledged,
                    promise.revision
                );
            };
            let found: u64 = std::str::from_utf8(&kv.value)?.parse()?;
            let late = self.unknown.contains(&(key.clone(), found)) && kv.mod_revision > promise.revision;
            if found < promise.acknowledged && !late || found > promise.attempted {
                bail!(
                    "{key}: found {found}, acknowledged {}, attempted {}",
                    promise.acknowledged,
                    promise.attempted
                );
            }
            if kv.mod_revision < promise.revision {
                bail!("{key}: revision {} is below the acknowledged {}", kv.mod_revision, promise.revision);
            }
        }
        Ok(())
    }
}

/// HashKV of the same revision at every endpoint, which must agree; waits until all have reached it.
pub async fn verify_equal(endpoints: &[String]) -> Result<()> {
    let mut revision = 0;
    for endpoint in endpoints {
        let answer = KvClient::new(channel(endpoint)?)
            .range(RangeRequest { key: "x".into(), ..Default::default() })
            .await?
            .into_inner();
        revision = revision.max(answer.header.map_or(0, |header| header.revision));
    }
    let mut hashes = Vec::new();
    for endpoint in endpoints {
        let mut client = MaintenanceClient::new(channel(endpoint)?);
        // Of a revision that was compacted to, a member may answer what it stored then, and one that started since has stored nothing: the
        // current one is asked for, as long as it is the same everywhere.
        let mut answer = client.hash_kv(HashKvRequest { revision: 0 }).await?.into_inner();
        if answer.hash_revision != revision {
            answer = client.hash_kv(HashKvRequest { revision }).await?.into_inner();
        }
        hashes.push((answer.hash, answer.compact_revision));
    }
    if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
        bail!("members differ at revision {revision}: {hashes:?}");
    }
    Ok(())
}
