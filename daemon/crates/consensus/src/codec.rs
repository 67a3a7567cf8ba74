//! Between etcd's raft messages (`api::raftpb`, proto2) and raft-rs's (`eraftpb`, proto3). The field numbers of the two agree up to 12;
//! above that the same numbers mean different things, so nothing above 12 is carried in either direction.
//!
//! Only values are converted here: bytes from the network were decoded by prost before, and nothing of `eraftpb` is ever encoded. Whether
//! a message may be given to raft at all is decided by the guard, before this.

use api::raftpb;
use bytes::Bytes;
use raft::eraftpb;
use types::{ConfState, Entry, EntryKind, LogIndex, LogPosition, MemberId, Term};

/// Why a value of etcd's has no counterpart in raft.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("message type {0:?} is not one that members exchange")]
    MessageType(Option<i32>),
    #[error("entry type {0} at index {1}")]
    EntryType(i32, u64),
    #[error("conf change type {0}")]
    ConfChangeType(i32),
    #[error("a conf change with {0} steps; etcd's have one")]
    ConfChangeSteps(usize),
}

/// The message types that members exchange. etcd's names; the numbers are the same in both libraries.
pub const WIRE_TYPES: [raftpb::MessageType; 14] = {
    use raftpb::MessageType::*;
    [
        MsgProp,
        MsgApp,
        MsgAppResp,
        MsgVote,
        MsgVoteResp,
        MsgSnap,
        MsgHeartbeat,
        MsgHeartbeatResp,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
        MsgPreVote,
        MsgPreVoteResp,
    ]
};

/// The type of a message from the network. A number outside the list is an error and never a default: the default is MsgHup, which
/// would start an election.
pub fn wire_type(message: &raftpb::Message) -> Result<raftpb::MessageType, CodecError> {
    let number = message.r#type;
    WIRE_TYPES.into_iter().find(|known| Some(*known as i32) == number).ok_or(CodecError::MessageType(number))
}

fn type_to_raft(kind: raftpb::MessageType) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as To;
    use raftpb::MessageType as From;
    Some(match kind {
        From::MsgProp => To::MsgPropose,
        From::MsgApp => To::MsgAppend,
        From::MsgAppResp => To::MsgAppendResponse,
        From::MsgVote => To::MsgRequestVote,
        From::MsgVoteResp => To::MsgRequestVoteResponse,
        From::MsgSnap => To::MsgSnapshot,
        From::MsgHeartbeat => To::MsgHeartbeat,
        From::MsgHeartbeatResp => To::MsgHeartbeatResponse,
        From::MsgTransferLeader => To::MsgTransferLeader,
        From::MsgTimeoutNow => To::MsgTimeoutNow,
        From::MsgReadIndex => To::MsgReadIndex,
        From::MsgReadIndexResp => To::MsgReadIndexResp,
        From::MsgPreVote => To::MsgRequestPreVote,
        From::MsgPreVoteResp => To::MsgRequestPreVoteResponse,
        _ => return None,
    })
}

/// Votes carry how far the log is committed: an index in `commit`, and its term in `reject_hint`. etcd leaves both empty in votes and
/// does not look at them; with an empty term they mean nothing here either. A member that has left the configuration and knows more than
/// the others can tell them by this alone.
fn is_vote(kind: raftpb::MessageType) -> bool {
    use raftpb::MessageType::{MsgPreVote, MsgPreVoteResp, MsgVote, MsgVoteResp};
    matches!(kind, MsgVote | MsgVoteResp | MsgPreVote | MsgPreVoteResp)
}

/// A message for raft. Fields above 12 stay empty: etcd's 13 is a vote where raft-rs has a snapshot request, its 14 is a message list
/// where raft-rs has a number.
pub fn message_to_raft(message: raftpb::Message) -> Result<eraftpb::Message, CodecError> {
    let kind = wire_type(&message)?;
    let mut out = eraftpb::Message::default();
    out.set_msg_type(type_to_raft(kind).ok_or(CodecError::MessageType(message.r#type))?);
    out.to = message.to.unwrap_or_default();
    out.from = message.from.unwrap_or_default();
    out.term = message.term.unwrap_or_default();
    out.log_term = message.log_term.unwrap_or_default();
    out.index = message.index.unwrap_or_default();
    let entries = message.entries.into_iter().map(wire_entry_to_raft).collect::<Result<Vec<_>, _>>()?;
    out.set_entries(entries.into());
    out.commit = message.commit.unwrap_or_default();
    // etcd 3.5 writes an empty snapshot into every message; only a MsgSnap has one that means something.
    if kind == raftpb::MessageType::MsgSnap
        && let Some(metadata) = message.snapshot.and_then(|snapshot| snapshot.metadata)
    {
        out.set_snapshot(snapshot_to_raft(&metadata));
    }
    out.reject = message.reject.unwrap_or_default();
    let hint = message.reject_hint.unwrap_or_default();
    if is_vote(kind) {
        out.commit_term = hint;
    } else {
        out.reject_hint = hint;
    }
    out.context = message.context.unwrap_or_default();
    Ok(out)
}

/// A message for the network: every scalar is set, as etcd's readers expect. None for types that never leave a member.
pub fn message_to_wire(mut message: eraftpb::Message) -> Option<raftpb::Message> {
    let number = message.get_msg_type() as i32;
    let kind = WIRE_TYPES.into_iter().find(|known| *known as i32 == number)?;
    let snapshot = (kind == raftpb::MessageType::MsgSnap).then(|| {
        let metadata = message.take_snapshot().take_metadata();
        raftpb::Snapshot {
            data: None,
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(conf_state_to_wire(&conf_state_from_raft(metadata.get_conf_state()))),
                index: Some(metadata.index),
                term: Some(metadata.term),
            }),
        }
    });
    Some(raftpb::Message {
        r#type: Some(kind as i32),
        to: Some(message.to),
        from: Some(message.from),
        term: Some(message.term),
        log_term: Some(message.log_term),
        index: Some(message.index),
        entries: message.take_entries().into_iter().map(raft_entry_to_wire).collect(),
        commit: Some(message.commit),
        snapshot,
        reject: Some(message.reject),
        reject_hint: Some(if is_vote(kind) { message.commit_term } else { message.reject_hint }),
        context: Some(message.take_context()).filter(|context| !context.is_empty()),
        vote: None,
        responses: Vec::new(),
    })
}

fn kind_from_number(number: i32) -> Option<EntryKind> {
    [EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2]
        .into_iter()
        .find(|kind| *kind as i32 == number)
}

fn kind_to_raft(kind: EntryKind) -> eraftpb::EntryType {
    match kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    }
}

fn wire_entry_to_raft(entry: raftpb::Entry) -> Result<eraftpb::Entry, CodecError> {
    let number = entry.r#type.unwrap_or_default();
    let index = entry.index.unwrap_or_default();
    let kind = kind_from_number(number).ok_or(CodecError::EntryType(number, index))?;
    Ok(raft_entry(kind, entry.term.unwrap_or_default(), index, entry.data.unwrap_or_default()))
}

fn raft_entry(kind: EntryKind, term: u64, index: u64, data: Bytes) -> eraftpb::Entry {
    let mut out = eraftpb::Entry::default();
    out.set_entry_type(kind_to_raft(kind));
    out.term = term;
    out.index = index;
    out.data = data;
    out
}

fn raft_entry_to_wire(entry: eraftpb::Entry) -> raftpb::Entry {
    raftpb::Entry {
        r#type: Some(entry.get_entry_type() as i32),
        term: Some(entry.term),
        index: Some(entry.index),
        data: Some(entry.data).filter(|data| !data.is_empty()),
    }
}

pub(crate) fn entry_to_raft(entry: Entry) -> eraftpb::Entry {
    raft_entry(entry.kind, entry.term.0, entry.index.0, entry.data)
}

/// An entry still without a place in the log; the leader gives it term and index.
pub(crate) fn proposal_to_raft(kind: EntryKind, data: Bytes) -> eraftpb::Entry {
    raft_entry(kind, 0, 0, data)
}

pub(crate) fn entry_from_raft(entry: eraftpb::Entry) -> Entry {
    let kind = match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::Normal,
        eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
        eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
    };
    Entry { term: Term(entry.term), index: LogIndex(entry.index), kind, data: entry.data }
}

pub(crate) fn conf_state_to_raft(state: &ConfState) -> eraftpb::ConfState {
    let numbers = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect::<Vec<u64>>();
    let mut out = eraftpb::ConfState::default();
    out.set_voters(numbers(&state.voters));
    out.set_learners(numbers(&state.learners));
    out.set_voters_outgoing(numbers(&state.voters_outgoing));
    out.set_learners_next(numbers(&state.learners_next));
    out.auto_leave = state.auto_leave;
    out
}

/// Sorted, since raft-rs keeps its members in hash sets and two members must say the same thing in the same way.
pub(crate) fn conf_state_from_raft(state: &eraftpb::ConfState) -> ConfState {
    let ids = |numbers: &[u64]| {
        let mut ids: Vec<MemberId> = numbers.iter().copied().map(MemberId).collect();
        ids.sort_unstable();
        ids
    };
    ConfState {
        voters: ids(state.get_voters()),
        learners: ids(state.get_learners()),
        voters_outgoing: ids(state.get_voters_outgoing()),
        learners_next: ids(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

/// As it stands in a snapshot's metadata on etcd's wire.
pub fn conf_state_to_wire(state: &ConfState) -> raftpb::ConfState {
    let numbers = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect::<Vec<u64>>();
    raftpb::ConfState {
        voters: numbers(&state.voters),
        learners: numbers(&state.learners),
        voters_outgoing: numbers(&state.voters_outgoing),
        learners_next: numbers(&state.learners_next),
        auto_leave: Some(state.auto_leave),
    }
}

pub fn conf_state_from_wire(state: &raftpb::ConfState) -> ConfState {
    let ids = |numbers: &[u64]| numbers.iter().copied().map(MemberId).collect::<Vec<MemberId>>();
    ConfState {
        voters: ids(&state.voters),
        learners: ids(&state.learners),
        voters_outgoing: ids(&state.voters_outgoing),
        learners_next: ids(&state.learners_next),
        auto_leave: state.auto_leave.unwrap_or_default(),
    }
}

fn snapshot_to_raft(metadata: &raftpb::SnapshotMetadata) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot::default();
    let to = out.mut_metadata();
    to.index = metadata.index.unwrap_or_default();
    to.term = metadata.term.unwrap_or_default();
    let state = metadata.conf_state.as_ref().map(conf_state_from_wire).unwrap_or_default();
    to.set_conf_state(conf_state_to_raft(&state));
    out
}

pub(crate) fn snapshot_position(snapshot: &eraftpb::Snapshot) -> LogPosition {
    let metadata = snapshot.get_metadata();
    LogPosition { term: Term(metadata.term), index: LogIndex(metadata.index) }
}

/// The change that raft makes for one of etcd's, or None when it makes none (UpdateNode changes addresses only; node 0 is etcd's mark
/// of a refused change). The numbers differ: etcd's 3 is a learner, which raft-rs numbers 2, and etcd's 2 is an update.
pub fn conf_change_to_raft(
    change: &raftpb::ConfChangeV2,
) -> Result<Option<eraftpb::ConfChangeV2>, CodecError> {
    let single = match change.changes.as_slice() {
        [] => return Ok(None),
        [single] => single,
        many => return Err(CodecError::ConfChangeSteps(many.len())),
    };
    let number = single.r#type.unwrap_or_default();
    let kind = match raftpb::ConfChangeType::try_from(number) {
        Ok(raftpb::ConfChangeType::ConfChangeAddNode) => eraftpb::ConfChangeType::AddNode,
        Ok(raftpb::ConfChangeType::ConfChangeRemoveNode) => eraftpb::ConfChangeType::RemoveNode,
        Ok(raftpb::ConfChangeType::ConfChangeAddLearnerNode) => eraftpb::ConfChangeType::AddLearnerNode,
        Ok(raftpb::ConfChangeType::ConfChangeUpdateNode) => return Ok(None),
        Err(_) => return Err(CodecError::ConfChangeType(number)),
    };
    let node_id = single.node_id.unwrap_or_default();
    if node_id == 0 {
        return Ok(None);
    }
    let mut step = eraftpb::ConfChangeSingle::default();
    step.set_change_type(kind);
    step.node_id = node_id;
    let mut out = eraftpb::ConfChangeV2::default();
    out.set_changes(vec![step].into());
    Ok(Some(out))
}

/// etcd's one-step conf change, as it stands in a log entry, in the form that [`Input::Applied`](crate::io::Input::Applied) takes.
pub fn conf_change_v2(change: &raftpb::ConfChange) -> raftpb::ConfChangeV2 {
    raftpb::ConfChangeV2 {
        // Automatic: a single step needs no joint configuration.
        transition: Some(0),
        changes: vec![raftpb::ConfChangeSingle { r#type: change.r#type, node_id: change.node_id }],
        context: change.context.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(kind: raftpb::MessageType) -> raftpb::Message {
        raftpb::Message {
            r#type: Some(kind as i32),
            to: Some(1),
            from: Some(2),
            term: Some(3),
            log_term: Some(4),
            index: Some(5),
            entries: vec![
                raftpb::Entry {
                    r#type: Some(0),
                    term: Some(3),
                    index: Some(6),
                    data: Some(Bytes::from_static(b"x")),
                },
                raftpb::Entry { r#type: Some(1), term: Some(3), index: Some(7), data: None },
            ],
            commit: Some(0),
            snapshot: None,
            reject: Some(true),
            reject_hint: Some(8),
            context: Some(Bytes::from_static(b"ctx")),
            vote: None,
            responses: Vec::new(),
        }
    }

    fn with_snapshot(mut message: raftpb::Message) -> raftpb::Message {
        message.snapshot = Some(raftpb::Snapshot {
            data: None,
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(raftpb::ConfState {
                    voters: vec![1, 2],
                    learners: vec![3],
                    auto_leave: Some(false),
                    ..Default::default()
                }),
                index: Some(9),
                term: Some(2),
            }),
        });
        message
    }

    #[test]
    fn every_wire_type_survives_the_round_trip() {
        for kind in WIRE_TYPES {
            let mut message = full(kind);
            if kind == raftpb::MessageType::MsgSnap {
                message = with_snapshot(message);
            }
            let raft = message_to_raft(message.clone()).unwrap();
            assert_eq!(raft.get_msg_type() as i32, kind as i32, "the numbers of the two libraries agree");
            assert_eq!(message_to_wire(raft), Some(message), "{kind:?}");
        }
    }

    #[test]
    fn votes_say_how_far_the_log_is_committed() {
        for kind in WIRE_TYPES {
            let message = raftpb::Message { commit: Some(77), reject_hint: Some(5), ..full(kind) };
            let raft = message_to_raft(message).unwrap();
            let expected = if is_vote(kind) { (77, 5, 0) } else { (77, 0, 5) };
            assert_eq!((raft.commit, raft.commit_term, raft.reject_hint), expected, "{kind:?}");
            let back = message_to_wire(raft).unwrap();
            assert_eq!((back.commit, back.reject_hint), (Some(77), Some(5)), "{kind:?}");
        }
    }

    #[test]
    fn types_that_never_travel_are_refused_and_never_become_a_default() {
        for number in [0, 1, 10, 11, 12, 19, 20, 21, 22, 23, 24, -1, i32::MAX] {
            let message = raftpb::Message { r#type: Some(number), ..full(raftpb::MessageType::MsgHeartbeat) };
            assert_eq!(message_to_raft(message).unwrap_err(), CodecError::MessageType(Some(number)));
        }
        let message = raftpb::Message { r#type: None, ..full(raftpb::MessageType::MsgHeartbeat) };
        assert_eq!(message_to_raft(message).unwrap_err(), CodecError::MessageType(None));
    }

    #[test]
    fn etcds_vote_and_responses_do_not_become_a_snapshot_request_or_a_priority() {
        let message = raftpb::Message {
            vote: Some(9),
            responses: vec![full(raftpb::MessageType::MsgApp)],
            ..full(raftpb::MessageType::MsgAppResp)
        };
        let raft = message_to_raft(message).unwrap();
        assert_eq!(
            (raft.request_snapshot, raft.deprecated_priority, raft.priority, raft.commit_term),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn an_empty_snapshot_in_other_messages_is_no_snapshot() {
        let message = with_snapshot(full(raftpb::MessageType::MsgHeartbeat));
        let raft = message_to_raft(message).unwrap();
        assert!(raft.snapshot.is_none());
    }

    #[test]
    fn an_unknown_entry_type_is_refused() {
        let mut message = full(raftpb::MessageType::MsgApp);
        message.entries[1].r#type = Some(3);
        assert_eq!(message_to_raft(message).unwrap_err(), CodecError::EntryType(3, 7));
    }

    #[test]
    fn conf_change_numbers_are_translated() {
        let change = |number, node_id| raftpb::ConfChangeV2 {
            transition: Some(0),
            changes: vec![raftpb::ConfChangeSingle { r#type: Some(number), node_id: Some(node_id) }],
            context: None,
        };
        let translated = |number| {
            conf_change_to_raft(&change(number, 7)).unwrap().map(|out| out.get_changes()[0].get_change_type())
        };
        assert_eq!(translated(0), Some(eraftpb::ConfChangeType::AddNode));
        assert_eq!(translated(1), Some(eraftpb::ConfChangeType::RemoveNode));
        assert_eq!(translated(2), None, "an update of addresses is no change for raft");
        assert_eq!(translated(3), Some(eraftpb::ConfChangeType::AddLearnerNode));
        assert_eq!(conf_change_to_raft(&change(4, 7)), Err(CodecError::ConfChangeType(4)));
        assert_eq!(conf_change_to_raft(&change(0, 0)), Ok(None), "node 0 marks a refused change");
    }
}
