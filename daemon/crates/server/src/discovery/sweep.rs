//! Registrations that outlived their token. What v2 clients register hangs on the token's lease and ends with it; v3 clients write plain
//! keys. The leader looks now and then for members without a size and removes them, if that is still so when it happens.

use std::collections::BTreeMap;

use api::etcdserverpb as pb;
use bytes::Bytes;
use tracing::{debug, info};

use super::{
    DiscoveryConfig,
    token::{REGISTRY, belongs, delete, modified_at, prefix},
};
use crate::backend::Backend;

/// Keys that are read at a time.
const PAGE_KEYS: i64 = 1000;

/// Removed in one round; the rest waits for the next.
const TOKENS_PER_ROUND: usize = 256;

/// Runs until it is dropped.
pub(crate) async fn sweep<B: Backend>(backend: B, config: DiscoveryConfig) {
    loop {
        tokio::time::sleep(config.sweep_every).await;
        if backend.node_status().is_leader {
            round(&backend).await;
        }
    }
}

async fn round<B: Backend>(backend: &B) {
    for token in orphans(backend).into_iter().take(TOKENS_PER_ROUND) {
        let size = Bytes::from(format!("{REGISTRY}{token}/_config/size"));
        let txn = pb::TxnRequest {
            compare: vec![modified_at(size, 0)],
            success: vec![delete(prefix(&format!("{REGISTRY}{token}/members/")))],
            failure: Vec::new(),
        };
        match backend.txn(txn).await {
            Ok(response) if response.succeeded => {
                let token: String = token.chars().take(8).collect();
                info!(token, "discovery: removed what was registered for a token that ended");
            }
            Ok(_) => {}
            // The next round is not far.
            Err(error) => {
                debug!(error = error.text(), "discovery: sweep");
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Tokens with members and without a size, as this member knows them.
fn orphans<B: Backend>(backend: &B) -> Vec<String> {
    let mut tokens: BTreeMap<String, bool> = BTreeMap::new();
    let (mut key, range_end) = prefix(REGISTRY);
    loop {
        let page = pb::RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            keys_only: true,
            limit: PAGE_KEYS,
            ..Default::default()
        };
        let Ok(page) = backend.range_local(&page) else { return Vec::new() };
        for kv in &page.kvs {
            if let Some((token, is_size)) = belongs(&kv.key) {
                *tokens.entry(token.to_owned()).or_default() |= is_size;
            }
        }
        match page.kvs.last().filter(|_| page.more) {
            // The least key behind the last one.
            Some(last) => key = [&last.key[..], b"\0"].concat().into(),
            None => break,
        }
    }
    tokens.into_iter().filter(|(_, has_size)| !has_size).map(|(token, _)| token).collect()
}
