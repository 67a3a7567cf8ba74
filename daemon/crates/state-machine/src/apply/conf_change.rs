//! Conf-change entries: judged against the replicated table on every member, so that a change which was good when proposed and is
//! bad by now is refused everywhere alike.

use api::error::EtcdError;
use api::raftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use types::{LogPosition, MemberId};

use super::Outcome;
use crate::membership::MemberChange;
use crate::rows::{conf_state_json, meta};
use crate::state::State;
use crate::store::{Table, WriteBatch};

/// The text of a row in etcd's `members_removed` bucket.
const REMOVED_ROW: &[u8] = b"removed";

/// Answers what raft must change and what the proposer is told.
pub(super) fn apply(
    state: &mut State,
    batch: &mut WriteBatch,
    at: LogPosition,
    change: &ConfChange,
) -> (Option<ConfChangeV2>, Result<Outcome, EtcdError>) {
    let id = MemberId(change.node_id.unwrap_or(0));
    let context = change.context.clone().unwrap_or_default();
    // An absent type is the first of the enum, as every proto2 reader takes it.
    let judged = match ConfChangeType::try_from(change.r#type.unwrap_or(0)) {
        Ok(kind) => state.membership.check(kind, id, &context),
        Err(_) => Err(EtcdError::UnknownMethod),
    };
    let good = match judged {
        Ok(good) => good,
        Err(refusal) => return (None, Err(refusal)),
    };
    if let MemberChange::Remove(_) = &good {
        let members = state.membership.members();
        state.identities.remove(id, at, change.id.unwrap_or(0), &members, batch);
    }
    state.membership.make(&good);
    let row_key = id.to_string().into_bytes();
    match &good {
        MemberChange::Remove(_) => {
            batch.delete(Table::Members, row_key.clone());
            batch.put(Table::MembersRemoved, row_key, REMOVED_ROW);
        }
        MemberChange::Note(notes) => state.identities.take(notes, at.index, &state.membership, batch),
        MemberChange::Add(_) | MemberChange::Promote(_) | MemberChange::UpdatePeerUrls(..) => {
            let member =
                state.membership.member(id).expect("a member that was added, promoted or updated is there");
            batch.put(Table::Members, row_key, member.to_row());
        }
    }
    let kind = match &good {
        MemberChange::Add(member) if member.is_learner => Some(ConfChangeType::ConfChangeAddLearnerNode),
        MemberChange::Add(_) | MemberChange::Promote(_) => Some(ConfChangeType::ConfChangeAddNode),
        MemberChange::Remove(_) => Some(ConfChangeType::ConfChangeRemoveNode),
        MemberChange::UpdatePeerUrls(..) | MemberChange::Note(_) => None,
    };
    let raft = kind.map(|kind| {
        batch.put(Table::Meta, meta::CONF_STATE, conf_state_json(state.membership.conf_state()));
        ConfChangeV2 {
            transition: Some(ConfChangeTransition::Auto as i32),
            changes: vec![ConfChangeSingle { r#type: Some(kind as i32), node_id: Some(id.0) }],
            context: Some(context),
        }
    });
    (raft, Ok(Outcome::ConfChange(state.membership.members())))
}
