//! What stands before raft's `step`. raft-rs trusts its peers: a heartbeat with a commit beyond the log, an append with a gap or a
//! snapshot with a strange configuration makes it panic, and a panic that a peer can cause would let one broken member take down the
//! others. Everything here is a refusal with evidence; the message is dropped, which raft always survives.
//!
//! Some refusals are more than garbage: they mean that this member or the peer has lost history it had acknowledged
//! ([`HISTORY_KINDS`]). What follows from that is not decided here.

use api::raftpb::{self, MessageType};
use prost::Message as _;
use raft::{Raft, StateRole};
use types::{LogIndex, MemberId, Term};

use crate::codec;
use crate::config::{COORDINATE_MAX, check_conf_state};
use crate::log::Tail;

/// Longest context of a forwarded read; etcd's has 8 bytes, ours 24.
const READ_CONTEXT_BYTES_MAX: usize = 64;

/// How far a message's term may be ahead of ours. Terms grow by elections, of which two a second make this many in 68 years, so no
/// member ever is this far behind; but every member takes over a higher term for good, and one forged or damaged message near
/// [`COORDINATE_MAX`] would leave the cluster no term to elect in. A member that has no term yet has nothing to compare with.
const TERM_LEAD_MAX: u64 = 1 << 32;

/// Report kinds that mean lost or rolled-back history rather than a broken message.
pub const HISTORY_KINDS: [&str; 4] = [
    "commit_beyond_log",
    "append_conflicts_with_commit",
    "snapshot_conflicts_with_commit",
    "answer_beyond_log",
];

/// Those of them that prove it: what is committed here is not what the sender has at the same place. A majority elected a leader that says
/// so, and no election between members that keep their promises brings that about.
pub const CONTRADICTIONS: [&str; 2] = ["append_conflicts_with_commit", "snapshot_conflicts_with_commit"];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub kind: &'static str,
    pub text: String,
}

/// What the guard needs to know besides raft's own state.
#[derive(Clone, Copy)]
pub(crate) struct Situation {
    /// A snapshot was accepted and is not installed yet.
    pub installing: bool,
    /// Entries or a snapshot are on their way to the disk.
    pub log_in_flight: bool,
}

fn refuse<T>(kind: &'static str, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { kind, text: text.into() })
}

/// The message's type, when raft may have it.
pub(crate) fn check(
    raft: &Raft<Tail>,
    situation: Situation,
    message: &raftpb::Message,
) -> Result<MessageType, Refused> {
    let kind = match codec::wire_type(message) {
        Ok(kind) => kind,
        Err(error) => return refuse("message_type", error.to_string()),
    };
    check_envelope(raft, kind, message)?;
    let stale = message.term.unwrap_or_default() < raft.term;
    let same_term = message.term.unwrap_or_default() == raft.term;
    match kind {
        MessageType::MsgProp => check_proposal(raft, message)?,
        MessageType::MsgReadIndex => check_read(raft, message)?,
        MessageType::MsgReadIndexResp => {
            if message.entries.len() != 1 {
                return refuse("read_entries", format!("{} entries in a read answer", message.entries.len()));
            }
            if same_term && raft.leader_id != 0 && raft.leader_id != message.from.unwrap_or_default() {
                return refuse("not_the_leader", "a read answer from a member that does not lead");
            }
        }
        MessageType::MsgApp => {
            check_leader(raft, message)?;
            check_append(raft, message, stale)?;
        }
        MessageType::MsgHeartbeat => {
            check_leader(raft, message)?;
            let (commit, last) = (message.commit.unwrap_or_default(), raft.raft_log.last_index());
            if !stale && commit > last {
                return refuse(
                    "commit_beyond_log",
                    format!("heartbeat commits {commit}, the log ends at {last}"),
                );
            }
        }
        MessageType::MsgSnap => {
            check_leader(raft, message)?;
            check_snapshot(raft, situation, message, stale)?;
        }
        MessageType::MsgAppResp if same_term && raft.state == StateRole::Leader => {
            let last = raft.raft_log.last_index();
            let (index, hint) = (message.index.unwrap_or_default(), message.reject_hint.unwrap_or_default());
            if index > last || (message.reject.unwrap_or_default() && hint > last) {
                return refuse(
                    "answer_beyond_log",
                    format!("append answer at {index}, hint {hint}, the log ends at {last}"),
                );
            }
        }
        MessageType::MsgVoteResp => {
            // Votes are asked for only once everything before is on disk, so a vote that comes earlier was never asked for.
            let grant = !message.reject.unwrap_or_default();
            if same_term && grant && raft.state == StateRole::Candidate && situation.log_in_flight {
                return refuse("vote_not_asked_for", "a vote while the log is still on its way to the disk");
            }
        }
        MessageType::MsgTimeoutNow => {
            if situation.installing || situation.log_in_flight && raft.prs().is_singleton() {
                return refuse("cannot_campaign", "told to campaign while the log is not in place");
            }
            if same_term && raft.leader_id != 0 && raft.leader_id != message.from.unwrap_or_default() {
                return refuse("not_the_leader", "told to campaign by a member that does not lead");
            }
        }
        MessageType::MsgTransferLeader => {
            let known = raft.prs().get(message.from.unwrap_or_default()).is_some();
            if raft.state != StateRole::Leader || !known {
                return refuse("transfer_from_peer", "a leadership transfer that cannot be done here");
            }
        }
        _ => {}
    }
    Ok(kind)
}

fn check_envelope(raft: &Raft<Tail>, kind: MessageType, message: &raftpb::Message) -> Result<(), Refused> {
    let (from, to) = (message.from.unwrap_or_default(), message.to.unwrap_or_default());
    if to != raft.id {
        return refuse("for_another_member", format!("{kind:?} for member {}", MemberId(to)));
    }
    // A proposal of ours may come back: passed to a former leader, who passed it on to us, who lead by now.
    let ours = from == raft.id;
    if ours && kind == MessageType::MsgReadIndex {
        return refuse(
            "own_read_returned",
            "a read request of ours, which was given up when the leader changed",
        );
    }
    if from == 0 || (ours && kind != MessageType::MsgProp) {
        return refuse("sender", format!("{kind:?} said to be from member {}", MemberId(from)));
    }
    let termless = matches!(kind, MessageType::MsgProp | MessageType::MsgReadIndex);
    let term = message.term.unwrap_or_default();
    if termless != (term == 0) {
        return refuse("term", format!("{kind:?} with term {term}"));
    }
    for (what, value) in [
        ("term", message.term),
        ("log term", message.log_term),
        ("index", message.index),
        ("commit", message.commit),
        ("reject hint", message.reject_hint),
    ] {
        let value = value.unwrap_or_default();
        if value > COORDINATE_MAX {
            return refuse("absurd", format!("{kind:?} with {what} {value}"));
        }
    }
    if raft.term > 0 && term.saturating_sub(raft.term) > TERM_LEAD_MAX {
        return refuse("absurd", format!("{kind:?} with term {term} while the term here is {}", raft.term));
    }
    Ok(())
}

/// Only the leader of a term appends, beats and sends snapshots in it.
fn check_leader(raft: &Raft<Tail>, message: &raftpb::Message) -> Result<(), Refused> {
    let from = message.from.unwrap_or_default();
    if message.term.unwrap_or_default() == raft.term && raft.leader_id != 0 && raft.leader_id != from {
        return refuse(
            "two_leaders",
            format!("{} leads term {} here already", MemberId(raft.leader_id), raft.term),
        );
    }
    Ok(())
}

fn check_proposal(raft: &Raft<Tail>, message: &raftpb::Message) -> Result<(), Refused> {
    if message.entries.is_empty() {
        return refuse("proposal_empty", "a proposal without entries");
    }
    if raft.prs().get(message.from.unwrap_or_default()).is_none() {
        return refuse("proposal_from_stranger", "a proposal from outside the configuration");
    }
    for entry in &message.entries {
        match entry.r#type.unwrap_or_default() {
            0 => {}
            1 => {
                if let Err(error) = raftpb::ConfChange::decode(entry.data.clone().unwrap_or_default()) {
                    return refuse("conf_change_garbage", format!("proposed conf change: {error}"));
                }
            }
            other => return refuse("entry_type", format!("proposed entry of type {other}")),
        }
    }
    Ok(())
}

fn check_read(raft: &Raft<Tail>, message: &raftpb::Message) -> Result<(), Refused> {
    let [entry] = message.entries.as_slice() else {
        return refuse("read_entries", format!("{} entries in a read request", message.entries.len()));
    };
    let length = entry.data.as_ref().map_or(0, |data| data.len());
    if length == 0 || length > READ_CONTEXT_BYTES_MAX {
        return refuse("read_context", format!("a read context of {length} bytes"));
    }
    if raft.prs().get(message.from.unwrap_or_default()).is_none() {
        return refuse("read_from_stranger", "a read request from outside the configuration");
    }
    Ok(())
}

fn check_append(raft: &Raft<Tail>, message: &raftpb::Message, stale: bool) -> Result<(), Refused> {
    let term = message.term.unwrap_or_default();
    let previous = message.index.unwrap_or_default();
    let mut index = previous;
    let mut before = message.log_term.unwrap_or_default();
    if (previous == 0) != (before == 0) {
        return refuse("append_position", format!("append after term {before} index {previous}"));
    }
    for entry in &message.entries {
        index += 1;
        let (kind, found) = (entry.r#type.unwrap_or_default(), entry.index.unwrap_or_default());
        let entry_term = entry.term.unwrap_or_default();
        if found != index {
            return refuse("append_gap", format!("append holds index {found} where {index} belongs"));
        }
        if entry_term < before || entry_term == 0 || entry_term > term {
            return refuse(
                "append_term",
                format!(
                    "entry {index} of term {entry_term}, after term {before}, from a leader of term {term}"
                ),
            );
        }
        if !(0..=1).contains(&kind) {
            return refuse("entry_type", format!("appended entry {index} of type {kind}"));
        }
        before = entry_term;
    }
    if before > term {
        return refuse("append_term", format!("append after term {before} from a leader of term {term}"));
    }
    if stale {
        // A former leader's tail may well differ from what was committed since; raft only tells it of the new term.
        return Ok(());
    }
    let committed = raft.raft_log.committed;
    let positions = std::iter::once((previous, message.log_term.unwrap_or_default())).chain(
        message.entries.iter().map(|entry| (entry.index.unwrap_or_default(), entry.term.unwrap_or_default())),
    );
    for (index, term) in positions.take_while(|(index, _)| *index <= committed) {
        if let Some(ours) = known_term(raft, index)
            && ours != term
        {
            return refuse(
                "append_conflicts_with_commit",
                format!("entry {index} has term {ours} here and is committed, the leader's has term {term}"),
            );
        }
    }
    Ok(())
}

/// The term of an entry that raft still has, looking through a snapshot that is not written yet.
fn known_term(raft: &Raft<Tail>, index: u64) -> Option<u64> {
    let log = &raft.raft_log;
    if index + 1 < log.first_index() || index > log.last_index() {
        return None;
    }
    log.term(index).ok()
}

fn check_snapshot(
    raft: &Raft<Tail>,
    situation: Situation,
    message: &raftpb::Message,
    stale: bool,
) -> Result<(), Refused> {
    let Some(metadata) = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()) else {
        return refuse("snapshot_metadata", "a snapshot without metadata");
    };
    let index = LogIndex(metadata.index.unwrap_or_default());
    let term = Term(metadata.term.unwrap_or_default());
    if index.0 == 0 || index.0 > COORDINATE_MAX || term.0 == 0 || term.0 > message.term.unwrap_or_default() {
        return refuse("snapshot_metadata", format!("a snapshot at term {term} index {index}"));
    }
    let conf_state = metadata.conf_state.as_ref().map(codec::conf_state_from_wire).unwrap_or_default();
    if let Err(reason) = check_conf_state(&conf_state) {
        return refuse("snapshot_conf_state", reason);
    }
    let me = MemberId(raft.id);
    if !conf_state.voters.contains(&me) && !conf_state.learners.contains(&me) {
        return refuse(
            "snapshot_without_us",
            format!("a snapshot at {index} whose members do not include {me}"),
        );
    }
    if stale {
        return Ok(());
    }
    if situation.installing {
        return refuse(
            "snapshot_while_installing",
            format!("a snapshot at {index} while another is being installed"),
        );
    }
    if index.0 <= raft.raft_log.committed
        && let Some(ours) = known_term(raft, index.0)
        && ours != term.0
    {
        return refuse(
            "snapshot_conflicts_with_commit",
            format!("entry {index} has term {ours} here and is committed, the snapshot's has term {term}"),
        );
    }
    Ok(())
}

/// raft-rs 0.7 lets a late rejection move a peer's next index below what the peer has acknowledged (raft-rs#557), and would then probe
/// there. Returns whether raft should see the answer at all; a hint that points too low is raised.
pub(crate) fn keep_next_above_match(raft: &mut Raft<Tail>, message: &mut raft::eraftpb::Message) -> bool {
    if !message.reject || raft.state != StateRole::Leader || message.term != raft.term {
        return true;
    }
    let hint = if message.log_term > 0 {
        raft.raft_log.find_conflict_by_term(message.reject_hint, message.log_term).0
    } else {
        message.reject_hint
    };
    let Some(progress) = raft.mut_prs().get_mut(message.from) else { return true };
    if message.index <= progress.matched {
        progress.recent_active = true;
        return false;
    }
    if hint < progress.matched {
        message.reject_hint = progress.matched;
        message.log_term = 0;
    }
    true
}
