//! What the cluster has written down about who its members are: which life of the cluster this is, which directory and start was last
//! admitted as each member, how far each has once been, and by which entry a member went. With it every member answers alike whether
//! somebody who says to be a member is one, whoever leads.
//!
//! The leader writes it, in the context of an update of itself that changes nothing else; etcd, reading the same log, takes it for that.
//! The rows are pairs of their own in etcd's `meta` bucket, so that snapshots and backups carry them.
//!
//! Not here: what follows from it (identity), when it is written (node).

use std::collections::BTreeMap;

use bytes::Bytes;
use identity::{Private, Record, Restored, Standing, Unique, Watermark};
use serde::de::DeserializeOwned;
use types::{LogIndex, LogPosition, MemberId};

use crate::membership::{Member, Membership};
use crate::rows::meta;
use crate::store::{Table, WriteBatch};

const CLUSTER_UUID: &[u8] = b"cairn/cluster_uuid";
const PARENT_UUID: &[u8] = b"cairn/parent_uuid";
const RESTORED: &[u8] = b"cairn/restored";
const RECORD: &str = "cairn/record/";
const WATERMARK: &str = "cairn/watermark/";
const REMOVED: &str = "cairn/removed/";

/// A note whose members' ids could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    cluster_uuid: Option<Unique>,
    parent_uuid: Option<Unique>,
    records: BTreeMap<MemberId, Record>,
    watermarks: BTreeMap<MemberId, Watermark>,
}

impl Notes {
    /// None when a key is no member id.
    pub(crate) fn read(private: Private) -> Option<Notes> {
        fn by_member<T>(map: BTreeMap<String, T>) -> Option<BTreeMap<MemberId, T>> {
            map.into_iter().map(|(id, value)| Some((id.parse().ok()?, value))).collect()
        }
        Some(Notes {
            cluster_uuid: private.cluster_uuid,
            parent_uuid: private.parent_uuid,
            records: by_member(private.records)?,
            watermarks: by_member(private.watermarks)?,
        })
    }
}

/// By which entry a member was removed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Removed {
    pub index: u64,
    pub term: u64,
    /// Name, or id, of the member that was asked, where the entry tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_through: Option<String>,
}

/// Everything that is written down about one member, and the life of the cluster at the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    pub cluster_uuid: Option<Unique>,
    pub parent_uuid: Option<Unique>,
    pub restored: Option<Restored>,
    pub standing: Standing,
    pub record: Option<Record>,
    pub watermark: Option<Watermark>,
    /// None also for members that went before such things were written down.
    pub removal: Option<Removed>,
}

/// See the module text. Records and watermarks are of members; removals are for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identities {
    pub cluster_uuid: Option<Unique>,
    pub parent_uuid: Option<Unique>,
    restored: Option<Restored>,
    pub records: BTreeMap<MemberId, Record>,
    pub watermarks: BTreeMap<MemberId, Watermark>,
    removals: BTreeMap<MemberId, Removed>,
    /// The newest entries without a gap that were notes, as far as this process has applied them itself. Only for a leader, which would
    /// otherwise take its own notes for progress and never rest.
    pub notes: Option<(LogIndex, LogIndex)>,
}

impl Identities {
    /// From the pairs of the table `meta`, of which it takes its own.
    ///
    /// # Errors
    /// The key that holds what apply would not have written, and why.
    pub fn load(rows: &[(Bytes, Bytes)]) -> Result<Identities, (Bytes, String)> {
        let mut all = Identities::default();
        for (key, value) in rows.iter().filter(|(key, _)| key.starts_with(meta::OWN_PREFIX)) {
            let bad = |reason: String| (key.clone(), reason);
            let name = String::from_utf8_lossy(key);
            if key == CLUSTER_UUID {
                all.cluster_uuid = Some(unique(value).map_err(bad)?);
            } else if key == PARENT_UUID {
                all.parent_uuid = Some(unique(value).map_err(bad)?);
            } else if key == RESTORED {
                all.restored = Some(json(value).map_err(bad)?);
            } else if let Some(id) = name.strip_prefix(RECORD) {
                all.records.insert(member(id).map_err(bad)?, json(value).map_err(bad)?);
            } else if let Some(id) = name.strip_prefix(WATERMARK) {
                all.watermarks.insert(member(id).map_err(bad)?, json(value).map_err(bad)?);
            } else if let Some(id) = name.strip_prefix(REMOVED) {
                all.removals.insert(member(id).map_err(bad)?, json(value).map_err(bad)?);
            }
            // Another one is of a later version, which this one need not know.
        }
        Ok(all)
    }

    /// What of a note counts: the first life (or the next, where the note names the present one as its parent), starts that may follow
    /// those written, and watermarks that rise; all of it for members only.
    pub fn take(&mut self, notes: &Notes, at: LogIndex, membership: &Membership, batch: &mut WriteBatch) {
        self.notes = match self.notes {
            Some((first, last)) if last.next() == at => Some((first, at)),
            _ => Some((at, at)),
        };
        if let Some(life) = notes.cluster_uuid
            && (self.cluster_uuid.is_none() || self.cluster_uuid == notes.parent_uuid)
        {
            self.cluster_uuid = Some(life);
            batch.put(Table::Meta, CLUSTER_UUID, life.to_string());
            if let Some(parent) = notes.parent_uuid {
                self.parent_uuid = Some(parent);
                batch.put(Table::Meta, PARENT_UUID, parent.to_string());
            }
        }
        let is_member = |id: &MemberId| membership.member(*id).is_some();
        for (id, record) in notes.records.iter().filter(|(id, _)| is_member(id)) {
            if self.records.get(id).is_none_or(|written| record.may_follow(written)) {
                batch.put(Table::Meta, row(RECORD, *id), text(record));
                self.records.insert(*id, record.clone());
            }
        }
        for (id, mark) in notes.watermarks.iter().filter(|(id, _)| is_member(id)) {
            let raised = self.watermarks.entry(*id).or_default();
            let before = *raised;
            raised.raise(*mark);
            if *raised != before {
                batch.put(Table::Meta, row(WATERMARK, *id), text(raised));
            }
        }
    }

    /// A member went. `members` as they were before.
    pub fn remove(
        &mut self,
        id: MemberId,
        at: LogPosition,
        request_id: u64,
        members: &[Member],
        batch: &mut WriteBatch,
    ) {
        if self.records.remove(&id).is_some() {
            batch.delete(Table::Meta, row(RECORD, id));
        }
        if self.watermarks.remove(&id).is_some() {
            batch.delete(Table::Meta, row(WATERMARK, id));
        }
        let removed =
            Removed { index: at.index.0, term: at.term.0, asked_through: asked_through(request_id, members) };
        batch.put(Table::Meta, row(REMOVED, id), text(&removed));
        self.removals.insert(id, removed);
    }

    pub fn of(&self, id: MemberId, membership: &Membership) -> Identified {
        Identified {
            cluster_uuid: self.cluster_uuid,
            parent_uuid: self.parent_uuid,
            restored: self.restored.clone(),
            standing: self.standing(id, membership),
            record: self.records.get(&id).cloned(),
            watermark: self.watermarks.get(&id).copied(),
            removal: self.removals.get(&id).cloned(),
        }
    }

    fn standing(&self, id: MemberId, membership: &Membership) -> Standing {
        if let Some(member) = membership.member(id) {
            return Standing::Member { is_learner: member.is_learner, is_new: member.name.is_empty() };
        }
        match self.removals.get(&id) {
            Some(Removed { index, term, asked_through }) => {
                Standing::Removed { index: *index, term: *term, asked_through: asked_through.clone() }
            }
            // By an etcd, or before this was written down: that it is gone is certain, by which entry is not.
            None if membership.is_removed(id) => Standing::Removed { index: 0, term: 0, asked_through: None },
            None => Standing::Stranger,
        }
    }
}

/// Request ids begin with the low 16 bits of the member that made them, in etcd too. None where two members share these.
fn asked_through(request_id: u64, members: &[Member]) -> Option<String> {
    let mut makers = members.iter().filter(|member| member.id.0 & 0xffff == request_id >> 48);
    match (makers.next(), makers.next()) {
        (Some(one), None) if one.name.is_empty() => Some(one.id.to_string()),
        (Some(one), None) => Some(one.name.clone()),
        _ => None,
    }
}

fn row(kind: &str, id: MemberId) -> Vec<u8> {
    format!("{kind}{id}").into_bytes()
}

fn text(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers have a JSON form")
}

fn unique(value: &[u8]) -> Result<Unique, String> {
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: &str| error.to_owned())
}

fn member(id: &str) -> Result<MemberId, String> {
    id.parse().map_err(|error| format!("{error}"))
}

fn json<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

/// The life that the pairs of `meta` name, for who has no state machine.
///
/// # Errors
/// Why the pair cannot be read.
pub fn life(rows: &[(Bytes, Bytes)]) -> Result<Option<Unique>, String> {
    rows.iter().find(|(key, _)| key == CLUSTER_UUID).map(|(_, value)| unique(value)).transpose()
}

/// The life that the one of these pairs came from.
///
/// # Errors
/// Why the pair cannot be read.
pub fn parent(rows: &[(Bytes, Bytes)]) -> Result<Option<Unique>, String> {
    rows.iter().find(|(key, _)| key == PARENT_UUID).map(|(_, value)| unique(value)).transpose()
}

/// The pair of `meta` that says so, for the first state of a restored cluster.
pub fn restored(from: &Restored) -> (Bytes, Bytes) {
    (Bytes::from_static(RESTORED), text(from).into())
}

/// For the first state of a cluster that continues another: nobody of the old one is known, and its life is the parent of the one that
/// the first leader begins. Takes the pairs of `meta` as they are and gives them as they become.
pub fn reborn(rows: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    let parent = rows.iter().find(|(key, _)| key == CLUSTER_UUID).map(|(_, life)| life.clone());
    let mut rows: Vec<_> = rows.into_iter().filter(|(key, _)| !key.starts_with(meta::OWN_PREFIX)).collect();
    rows.extend(parent.map(|life| (Bytes::from_static(PARENT_UUID), life)));
    rows
}
