//! How a member learns from its own log that it was removed. A peer's word for it is never enough (identity design, rule R2).

use std::sync::Arc;

use api::raftpb::{ConfChange, ConfChangeType};
use prost::Message;
use state_machine::{Reader, membership::Member};
use storage::state_store::FjallStore;
use tokio::sync::watch;
use tracing::warn;
use types::{Entry, EntryKind, LogPosition, MemberId};

use crate::{handle::Handle, shared::Shared};

/// The decision of the cluster that this member does not belong to it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The entry that did it; where only its effect is known (after a restart or by a snapshot), the position of the state that shows it.
    pub position: LogPosition,
    /// Whether `position` is the entry itself.
    pub is_entry: bool,
    /// Through which member it was asked, as far as the entry tells and that member is known.
    pub asked_through: Option<Member>,
}

impl Handle {
    /// Tells when this member has applied its own removal, also one of an earlier life. Whoever runs the member ends it then.
    pub fn removal(&self) -> watch::Receiver<Option<Removal>> {
        self.shared.removal.subscribe()
    }
}

/// After entries or a snapshot that changed the membership were applied.
pub(crate) fn note(shared: &Arc<Shared>, reader: &Reader<FjallStore>, entries: &[Entry]) {
    let me = shared.config.member;
    if !reader.is_removed(me) || shared.removal.borrow().is_some() {
        return;
    }
    let removal = find(me, &reader.members(), entries).unwrap_or_else(|| Removal {
        position: reader.applied(),
        is_entry: false,
        asked_through: None,
    });
    warn!(
        member = %me,
        index = removal.position.index.0,
        term = removal.position.term.0,
        asked_through = removal.asked_through.as_ref().map(|member| member.id.to_string()),
        "the cluster has removed this member"
    );
    shared.removal.send_replace(Some(removal));
}

/// Request ids begin with the low 16 bits of the member that made them, in etcd too.
fn find(me: MemberId, members: &[Member], entries: &[Entry]) -> Option<Removal> {
    entries.iter().filter(|entry| entry.kind == EntryKind::ConfChange).find_map(|entry| {
        let change = ConfChange::decode(entry.data.clone()).ok()?;
        let removes = change.r#type == Some(ConfChangeType::ConfChangeRemoveNode as i32);
        if !removes || change.node_id != Some(me.0) {
            return None;
        }
        let maker = change.id.unwrap_or(0) >> 48;
        let mut makers = members.iter().filter(|member| member.id.0 & 0xffff == maker);
        let asked_through = match (makers.next(), makers.next()) {
            _ if me.0 & 0xffff == maker => Some(Member { id: me, ..Member::default() }),
            (Some(one), None) => Some(one.clone()),
            _ => None,
        };
        let position = LogPosition { term: entry.term, index: entry.index };
        Some(Removal { position, is_entry: true, asked_through })
    })
}
