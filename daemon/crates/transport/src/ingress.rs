//! Which messages from the network raft may see. Pure; the same for streams, single messages and snapshots.
//!
//! raft trusts its input: several of these would end a process in etcd's raft and in ours. So they stop here, with a reason.

use api::raftpb::{EntryType, Message, MessageType};
use types::MemberId;

/// The way a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// A stream, or `POST /raft`.
    Ordinary,
    Snapshot,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("message is addressed to member {0}")]
    Target(MemberId),
    #[error("message has no sender")]
    Sender,
    #[error("message type {0} does not travel")]
    Kind(i32),
    #[error("snapshot outside of a snapshot upload")]
    SnapshotElsewhere,
    #[error("snapshot without a position")]
    SnapshotPosition,
    #[error("{kind:?} carries {count} entries")]
    EntryCount { kind: MessageType, count: usize },
    #[error("entries do not follow on index {after}: {found} at place {place}")]
    Gap { after: u64, found: u64, place: usize },
    #[error("entry {index} has type {kind}")]
    EntryKind { index: u64, kind: i32 },
    #[error("{kind:?} with term {term}")]
    Term { kind: MessageType, term: u64 },
}

/// Checks a message for `me` and blanks the fields that mean different things to different rafts.
pub(crate) fn admit(message: &mut Message, me: MemberId, channel: Channel) -> Result<(), Refusal> {
    use MessageType::*;

    let to = MemberId(message.to.unwrap_or(0));
    if to != me {
        return Err(Refusal::Target(to));
    }
    if message.from.unwrap_or(0) == 0 {
        return Err(Refusal::Sender);
    }
    let number = message.r#type.unwrap_or(0);
    let kind = MessageType::try_from(number).map_err(|_| Refusal::Kind(number))?;
    match kind {
        MsgProp if message.entries.is_empty() => return Err(Refusal::EntryCount { kind, count: 0 }),
        MsgReadIndex | MsgReadIndexResp if message.entries.len() != 1 => {
            return Err(Refusal::EntryCount { kind, count: message.entries.len() });
        }
        MsgSnap => check_snapshot(message, channel)?,
        MsgApp => check_entries(message)?,
        MsgProp | MsgAppResp | MsgVote | MsgVoteResp | MsgHeartbeat | MsgHeartbeatResp
        | MsgTransferLeader | MsgTimeoutNow | MsgReadIndex | MsgReadIndexResp | MsgPreVote
        | MsgPreVoteResp => {}
        _ => return Err(Refusal::Kind(number)),
    }
    let term = message.term.unwrap_or(0);
    // A forwarded request has no term of its own; everything else has.
    if matches!(kind, MsgProp | MsgReadIndex) != (term == 0) {
        return Err(Refusal::Term { kind, term });
    }
    message.vote = None;
    message.responses = Vec::new();
    Ok(())
}

fn check_snapshot(message: &Message, channel: Channel) -> Result<(), Refusal> {
    if channel != Channel::Snapshot {
        return Err(Refusal::SnapshotElsewhere);
    }
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    match metadata.and_then(|metadata| metadata.index) {
        None | Some(0) => Err(Refusal::SnapshotPosition),
        Some(_) => Ok(()),
    }
}

fn check_entries(message: &Message) -> Result<(), Refusal> {
    let after = message.index.unwrap_or(0);
    for (place, entry) in message.entries.iter().enumerate() {
        let found = entry.index.unwrap_or(0);
        if after.checked_add(1 + place as u64) != Some(found) {
            return Err(Refusal::Gap { after, found, place });
        }
        let kind = entry.r#type.unwrap_or(0);
        if kind != EntryType::EntryNormal as i32 && kind != EntryType::EntryConfChange as i32 {
            return Err(Refusal::EntryKind { index: found, kind });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::raftpb::{Entry, Snapshot, SnapshotMetadata};

    use super::*;

    const ME: MemberId = MemberId(2);

    fn message(kind: MessageType, term: u64, entries: usize) -> Message {
        let entries = (0..entries)
            .map(|place| Entry { r#type: Some(0), term: Some(1), index: Some(8 + place as u64), data: None })
            .collect();
        Message {
            r#type: Some(kind as i32),
            to: Some(ME.0),
            from: Some(1),
            term: Some(term),
            index: Some(7),
            entries,
            ..Default::default()
        }
    }

    fn verdict(mut message: Message) -> Result<(), Refusal> {
        admit(&mut message, ME, Channel::Ordinary)
    }

    #[test]
    fn message_for_another_member_ignored() {
        let mut stray = message(MessageType::MsgHeartbeat, 3, 0);
        stray.to = Some(9);
        assert_eq!(verdict(stray), Err(Refusal::Target(MemberId(9))));
    }

    #[test]
    fn what_would_end_a_raft_stops_here() {
        use MessageType::*;
        let mut anonymous = message(MsgVote, 1, 0);
        anonymous.from = Some(0);
        assert_eq!(verdict(anonymous), Err(Refusal::Sender));
        for local in
            [MsgHup, MsgBeat, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum, MsgStorageApply, MsgForgetLeader]
        {
            assert_eq!(verdict(message(local, 1, 0)), Err(Refusal::Kind(local as i32)));
        }
        let mut unknown = message(MsgApp, 1, 0);
        unknown.r#type = Some(77);
        assert_eq!(verdict(unknown), Err(Refusal::Kind(77)), "an unknown number must not become MsgHup");
        assert_eq!(verdict(message(MsgProp, 0, 0)), Err(Refusal::EntryCount { kind: MsgProp, count: 0 }));
        assert_eq!(
            verdict(message(MsgReadIndex, 0, 2)),
            Err(Refusal::EntryCount { kind: MsgReadIndex, count: 2 })
        );
        assert_eq!(verdict(message(MsgProp, 4, 1)), Err(Refusal::Term { kind: MsgProp, term: 4 }));
        assert_eq!(verdict(message(MsgApp, 0, 1)), Err(Refusal::Term { kind: MsgApp, term: 0 }));
        assert_eq!(verdict(message(MsgSnap, 1, 0)), Err(Refusal::SnapshotElsewhere));
    }

    #[test]
    fn appended_entries_are_contiguous_and_of_known_types() {
        assert_eq!(verdict(message(MessageType::MsgApp, 1, 3)), Ok(()));
        let mut gap = message(MessageType::MsgApp, 1, 3);
        gap.entries.remove(1);
        assert_eq!(verdict(gap), Err(Refusal::Gap { after: 7, found: 10, place: 1 }));
        let mut wrapped = message(MessageType::MsgApp, 1, 1);
        wrapped.index = Some(u64::MAX);
        wrapped.entries[0].index = Some(0);
        assert!(matches!(verdict(wrapped), Err(Refusal::Gap { .. })));
        let mut joint = message(MessageType::MsgApp, 1, 1);
        joint.entries[0].r#type = Some(2);
        assert_eq!(verdict(joint), Err(Refusal::EntryKind { index: 8, kind: 2 }));
    }

    #[test]
    fn a_snapshot_needs_a_position() {
        let mut snapshot = message(MessageType::MsgSnap, 1, 0);
        assert_eq!(admit(&mut snapshot.clone(), ME, Channel::Snapshot), Err(Refusal::SnapshotPosition));
        let metadata = SnapshotMetadata { index: Some(5), ..Default::default() };
        snapshot.snapshot = Some(Snapshot { metadata: Some(metadata), data: None });
        assert_eq!(admit(&mut snapshot, ME, Channel::Snapshot), Ok(()));
    }

    #[test]
    fn fields_with_two_meanings_are_blanked() {
        let mut odd = message(MessageType::MsgAppResp, 1, 0);
        odd.vote = Some(3);
        odd.responses = vec![Message::default()];
        assert_eq!(admit(&mut odd, ME, Channel::Ordinary), Ok(()));
        assert_eq!((odd.vote, odd.responses.len()), (None, 0));
    }
}
