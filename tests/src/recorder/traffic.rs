//! Clients that write everything a watch can tell about: puts, deletes, deletes of ranges, and transactions over several keys, all on
//! the same few keys. What was acknowledged is remembered with its revision.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use api::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, kv_client::KvClient, request_op::Request,
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tonic::transport::Channel;

use crate::{checker::history::Written, harness::wait_for};

use super::channel;

/// How much of what.
#[derive(Clone, Debug)]
pub struct Shape {
    pub clients: usize,
    /// Distinct keys, `t/000` and up. Few: a state is read for each revision to learn the true history.
    pub keys: usize,
    pub value_bytes: usize,
    /// Between two writes of a client, so that the history stays short enough to be read back.
    pub pause: Duration,
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { clients: 4, keys: 24, value_bytes: 48, pause: Duration::from_millis(4), seed: 1 }
    }
}

/// What was promised.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// By revision.
    pub acknowledged: BTreeMap<i64, Written>,
    /// Attempts whose outcome nobody knows.
    pub unknown: u64,
}

pub struct Traffic {
    stop: Arc<AtomicBool>,
    promises: Arc<Mutex<Promises>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

pub fn key(number: usize) -> String {
    format!("t/{number:03}")
}

impl Traffic {
    pub fn start(endpoints: &[String], shape: Shape) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let promises = Arc::new(Mutex::new(Promises::default()));
        let threads = (0..shape.clients)
            .map(|me| {
                let (stop, promises) = (stop.clone(), promises.clone());
                let (shape, endpoints) = (shape.clone(), endpoints.to_vec());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime
                        .expect("a runtime for one writer")
                        .block_on(write(me, &endpoints, &shape, &stop, &promises));
                })
            })
            .collect();
        Traffic { stop, promises, threads }
    }

    pub fn acknowledged(&self) -> usize {
        self.promises.lock().expect("no writer panicked").acknowledged.len()
    }

    /// Waits until so many more writes were acknowledged.
    pub fn go_on(&self, more: usize) -> Result<()> {
        let goal = self.acknowledged() + more;
        wait_for("acknowledged writes", || (self.acknowledged() >= goal).then_some(()))
    }

    pub fn finish(self) -> Promises {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().expect("no writer panicked");
        }
        std::mem::take(&mut self.promises.lock().expect("no writer panicked"))
    }
}

async fn write(
    me: usize,
    endpoints: &[String],
    shape: &Shape,
    stop: &AtomicBool,
    promises: &Mutex<Promises>,
) {
    let channels: Vec<Channel> =
        endpoints.iter().map(|endpoint| channel(endpoint).expect("a valid endpoint")).collect();
    let mut random = StdRng::seed_from_u64(shape.seed.wrapping_mul(1000) + me as u64);
    let mut at = me;
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        number += 1;
        let mut client = KvClient::new(channels[at % channels.len()].clone());
        let answer = one(&mut client, &mut random, shape, &format!("{me}.{number}")).await;
        match answer {
            Ok(Some((revision, written))) => {
                let mut promises = promises.lock().expect("no writer panicked");
                let before = promises.acknowledged.insert(revision, written);
                assert!(before.is_none(), "revision {revision} was acknowledged twice");
            }
            Ok(None) => {}
            Err(_) => {
                promises.lock().expect("no writer panicked").unknown += 1;
                at += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        tokio::time::sleep(shape.pause).await;
    }
}

/// One write of any kind; None when it changed nothing.
async fn one(
    client: &mut KvClient<Channel>,
    random: &mut StdRng,
    shape: &Shape,
    name: &str,
) -> Result<Option<(i64, Written)>> {
    let value = |part: usize| -> Bytes { format!("{name}.{part} {:0w$}", 0, w = shape.value_bytes).into() };
    let number = random.random_range(0..shape.keys);
    match random.random_range(0..100) {
        0..60 => {
            let put = PutRequest { key: key(number).into(), value: value(0), ..Default::default() };
            let written = vec![(put.key.clone(), Some(put.value.clone()))];
            let answer = client.put(put).await?.into_inner();
            Ok(Some((answer.header.context("a header")?.revision, written)))
        }
        60..80 => {
            // One key, or a few.
            let range_end = if random.random_bool(0.5) { Bytes::new() } else { key(number + 3).into() };
            let request = DeleteRangeRequest { key: key(number).into(), range_end, prev_kv: true };
            let answer = client.delete_range(request).await?.into_inner();
            let written: Written = answer.prev_kvs.into_iter().map(|kv| (kv.key, None)).collect();
            let revision = answer.header.context("a header")?.revision;
            Ok((!written.is_empty()).then_some((revision, written)))
        }
        _ => {
            let mut numbers: Vec<usize> = (0..shape.keys).collect();
            numbers.shuffle(random);
            numbers.truncate(random.random_range(2..6));
            let mut written = Written::new();
            let ops = numbers.iter().enumerate().map(|(part, number)| {
                let key: Bytes = key(*number).into();
                // At least one put, so that there is a revision.
                if part > 0 && random.random_bool(0.3) {
                    written.push((key.clone(), None));
                    Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })
                } else {
                    written.push((key.clone(), Some(value(part))));
                    Request::RequestPut(PutRequest { key, value: value(part), ..Default::default() })
                }
            });
            let success = ops.map(|op| RequestOp { request: Some(op) }).collect();
            let answer = client.txn(TxnRequest { success, ..Default::default() }).await?.into_inner();
            Ok(Some((answer.header.context("a header")?.revision, written)))
        }
    }
}
