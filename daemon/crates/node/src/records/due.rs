//! What a leader should write down now: pure, from what it has seen and what is written.

use std::collections::BTreeMap;

use consensus::Status;
use identity::{Private, Record, Watermark};
use state_machine::Reader;
use storage::state_store::FjallStore;
use types::{LogIndex, MemberId};

use super::OwnIdentity;

/// Records in one note. A record is a few hundred bytes, at most some KiB with a very long path; a note stays far below any request.
const RECORDS_MAX: usize = 8;

/// The life of the cluster and the starts that are not written yet. None when all are.
pub(super) fn records(
    me: MemberId,
    own: &OwnIdentity,
    admitted: &BTreeMap<MemberId, Record>,
    reader: &Reader<FjallStore>,
) -> Option<Private> {
    let is_due = |id: MemberId, record: &Record| {
        reader.member(id).is_some()
            && match reader.identity_of(id).record {
                None => true,
                Some(written) => written != *record && record.may_follow(&written),
            }
    };
    let others = admitted.iter().filter(|(id, _)| **id != me);
    let all = std::iter::once((&me, &own.record)).chain(others);
    let due = all.filter(|(id, record)| is_due(**id, record)).take(RECORDS_MAX);
    let records: BTreeMap<String, Record> =
        due.map(|(id, record)| (id.to_string(), record.clone())).collect();
    let written = reader.cluster_uuid();
    if records.is_empty() && written.is_some() {
        return None;
    }
    // Said again with every record: a state that came from an etcd has lost it.
    let life = written.or(own.cluster_uuid).unwrap_or(own.fresh_uuid);
    Some(Private { cluster_uuid: Some(life), records, ..Private::default() })
}

/// How far every member has been, where that is more than is written; empty while nothing has happened but notes.
pub(super) fn marks(status: &Status, reader: &Reader<FjallStore>) -> BTreeMap<String, Watermark> {
    let notes = reader.newest_notes();
    let mut moved = false;
    let mut raised = BTreeMap::new();
    // A member that has acknowledged nothing to this leader may not even be in its term.
    for peer in status.peers.iter().filter(|peer| peer.matched.0 > 0) {
        let written = reader.identity_of(peer.id).watermark.unwrap_or_default();
        let now = Watermark { last_index: peer.matched.0, term: status.term.0 };
        let mut mark = written;
        mark.raise(now);
        if mark != written {
            moved |= now.term > written.term || !only_notes(notes, written.last_index, now.last_index);
            raised.insert(peer.id.to_string(), mark);
        }
    }
    if moved { raised } else { BTreeMap::new() }
}

/// Whether everything after `before` and up to `now` are notes.
fn only_notes(notes: Option<(LogIndex, LogIndex)>, before: u64, now: u64) -> bool {
    notes.is_some_and(|(first, last)| before + 1 >= first.0 && now <= last.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_desks_own_notes_are_no_progress() {
        let notes = Some((LogIndex(11), LogIndex(13)));
        assert!(only_notes(notes, 10, 13));
        assert!(only_notes(notes, 12, 12));
        assert!(!only_notes(notes, 9, 13), "entry 10 is a client's");
        assert!(!only_notes(notes, 10, 14), "and so is entry 14");
        assert!(!only_notes(None, 0, 1));
    }
}
