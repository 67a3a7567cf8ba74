//! Reads the true history: the whole store at every revision, by ranges, which know nothing of watches.

use anyhow::{Context, Result, bail};
use api::etcdserverpb::{CompactionRequest, RangeRequest, kv_client::KvClient};
use tokio::task::JoinSet;

use crate::checker::{History, Violation, history::State};

use super::{Clock, channel, traffic::Promises};

/// Reads under way at a time.
const READS: i64 = 32;

/// Larger than any store of these tests.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Learns every revision up to this one, from this member.
pub async fn learn(history: &mut History, endpoint: &str, through: i64) -> Result<()> {
    let channel = channel(endpoint)?;
    while history.through() < through {
        let first = history.through() + 1;
        let last = through.min(first + READS - 1);
        let mut reads = JoinSet::new();
        for revision in first..=last {
            let client = KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
            reads.spawn(state_at(client, revision));
        }
        let mut states = Vec::new();
        while let Some(read) = reads.join_next().await {
            states.push(read??);
        }
        states.sort_by_key(|(revision, _)| *revision);
        for (revision, state) in states {
            if let Err(violation) = history.learn(revision, state) {
                bail!("{endpoint}: {violation}");
            }
        }
    }
    Ok(())
}

async fn state_at(mut client: KvClient<tonic::transport::Channel>, revision: i64) -> Result<(i64, State)> {
    let request =
        RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    let answer = client.range(request).await.with_context(|| format!("read revision {revision}"))?;
    let kvs = answer.into_inner().kvs;
    Ok((revision, kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect()))
}

/// The revision of a linearizable read.
pub async fn current(endpoint: &str) -> Result<i64> {
    let request = RangeRequest { key: "x".into(), count_only: true, ..Default::default() };
    let answer = KvClient::new(channel(endpoint)?).range(request).await?.into_inner();
    Ok(answer.header.context("a header")?.revision)
}

/// Learns what the compaction takes away, then compacts, and remembers when that was asked for.
pub async fn compact(history: &mut History, clock: Clock, endpoint: &str, revision: i64) -> Result<()> {
    learn(history, endpoint, revision).await?;
    history.compacted(clock.now(), revision);
    let request = CompactionRequest { revision, physical: false };
    KvClient::new(channel(endpoint)?).compact(request).await.context("compact")?;
    Ok(())
}

/// Holds what was promised to writers against the history.
pub fn verify(history: &mut History, promises: &Promises) -> Vec<Violation> {
    promises
        .acknowledged
        .iter()
        .flat_map(|(revision, written)| history.acknowledged(*revision, written))
        .collect()
}
