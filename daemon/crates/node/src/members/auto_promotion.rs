//! `auto-promote-learner`: while this member leads, it makes a learner a voter when that has been ready for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use consensus::PeerState;
use tracing::{info, warn};
use types::MemberId;

use super::rules;
use crate::{handle::Handle, shared::Shared};

/// How often the learners are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a learner must be ready without a break: long enough that a link which comes and goes does not make a voter, on whom the
/// quorum then waits.
const READY_FOR: Duration = Duration::from_secs(5);

pub(crate) async fn run(shared: Weak<Shared>) {
    let mut ready: HashMap<MemberId, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        let now = Instant::now();
        let ready_now = if shared.live().auto_promote_learner { learners_ready(&shared) } else { Vec::new() };
        ready.retain(|id, _| ready_now.contains(id));
        for id in ready_now {
            let since = *ready.entry(id).or_insert(now);
            if now.duration_since(since) < READY_FOR {
                continue;
            }
            ready.remove(&id);
            match (Handle { shared: shared.clone() }).promote_as_leader(id).await {
                Ok(_) => info!(member = %id, "a learner has caught up and is a voter now"),
                Err(error) => {
                    warn!(member = %id, %error, "a learner that has caught up could not be promoted")
                }
            }
        }
    }
}

/// Stricter than for a client who asks: it is heard, and takes entries as they come.
fn learners_ready(shared: &Arc<Shared>) -> Vec<MemberId> {
    let status = shared.raft_status.lock().clone();
    let membership = shared.reader().membership();
    let flows = status
        .peers
        .iter()
        .filter(|peer| peer.learner && peer.recent_active && peer.state == PeerState::Replicate);
    flows.map(|peer| peer.id).filter(|id| rules::is_ready(&membership, *id, &status).is_ok()).collect()
}
