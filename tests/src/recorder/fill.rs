//! Puts by the number, for tests that need much history and nothing of it recorded.

use anyhow::{Context, Result};
use api::etcdserverpb::{PutRequest, kv_client::KvClient};
use tokio::task::JoinSet;

use super::channel;

/// `count` puts of `bytes` each, `clients` at a time, over as many keys: history grows, the newest values do not.
pub async fn fill(endpoint: &str, clients: usize, count: usize, bytes: usize) -> Result<()> {
    let value = bytes::Bytes::from(vec![b'v'; bytes]);
    let channel = channel(endpoint)?;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (mut kv, value) = (KvClient::new(channel.clone()), value.clone());
        tasks.spawn(async move {
            for _ in (client..count).step_by(clients) {
                let key = format!("fill/{client}").into();
                kv.put(PutRequest { key, value: value.clone(), ..Default::default() }).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.context("fill")?;
    }
    Ok(())
}
