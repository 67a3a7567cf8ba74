//! A member that took its own place asks to vote again. It votes once the leader finds that it has caught up.

use std::time::{Duration, Instant};

use node::Handle;
use state_machine::membership::Member;
use tracing::info;
use types::MemberId;

use super::{journal::Other, outside::Clients};

/// Between two requests: the leader looks at what it knows already.
const EVERY: Duration = Duration::from_secs(5);

/// The same answer is not told more often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Ends when this member votes, whoever promoted it: a leader may do so by itself (`auto-promote-learner`).
pub async fn until_voter(handle: Handle, own: MemberId, old: MemberId) {
    let mut told: Option<(String, Instant)> = None;
    loop {
        let members = handle.members();
        let Some(me) = members.iter().find(|member| member.id == own) else {
            tokio::time::sleep(EVERY).await;
            continue;
        };
        if !me.is_learner {
            info!(old_member_id = %old, member_id = %own, "replacement: this member votes, in the place of the old one");
            return;
        }
        let others = members.iter().filter(|member| member.id != own && !member.is_learner);
        let others: Vec<Other> = others.map(other).collect();
        let why = match Clients::new(&others, old, &me.peer_urls).promote(own).await {
            // Seen above once it has arrived here.
            Ok(()) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(why) => why,
        };
        if told.as_ref().is_none_or(|(last, at)| *last != why || at.elapsed() >= TOLD_EVERY) {
            info!(old_member_id = %old, member_id = %own, answer = why, "replacement: this learner asks every 5 s to be promoted");
            told = Some((why, Instant::now()));
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn other(member: &Member) -> Other {
    Other {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
    }
}
