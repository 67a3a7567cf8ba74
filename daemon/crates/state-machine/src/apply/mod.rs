//! What committed entries do. Apply is deterministic (no clock, no chance, no order of a hash map) and total: whatever an entry
//! holds, it gets an outcome, and the applied position moves past it.
//!
//! Entries are taken in batches. One batch is decoded without any lock, changes the state under one hold of the write lock, hands
//! its rows with its last position to the store as one atomic batch, and only after the lock is released are the listeners told, in
//! log order: events of a revision before the outcome of the entry that made it.
//!
//! Not here: who waits for an outcome, when anything is durable.

mod auth;
mod conf_change;
mod decode;
pub mod gates;
mod lease;
mod prefetch;
mod step;
pub(crate) mod txn;

use api::error::EtcdError;
use api::etcdserverpb::{
    AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeResponse, InternalRaftRequest,
    LeaseCheckpointResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse, PutRequest,
    PutResponse, RangeResponse, TxnResponse,
};
use api::mvccpb::Event;
use api::raftpb;
use types::{Entry, LogIndex, LogPosition, MemberId, Revision, RowId};

use crate::StateMachine;
use crate::cluster::{DOWNGRADE_KEY, Downgrade, VERSION_KEY};
use crate::compaction_hash::{Span, note_decided};
use crate::leases::LeaseChange;
use crate::membership::Member;
use crate::rows::{coordinate, meta};
use crate::state::store_failed;
use crate::store::{Store, Table, WriteBatch};
use decode::{Command, decode};
use gates::{Quota, lease_cost, put_cost, txn_cost};
use step::{Step, header};

/// Entries under one hold of the write lock: some hundred microseconds that a reader may wait.
const BATCH_ENTRIES_MAX: usize = 256;
/// Bytes of entries under one hold, for the same reason and to bound one store batch.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an entry came to. Responses carry a header with only the revision; the edge fills in the rest.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    /// A range from the log, which no current version proposes.
    Range(RangeResponse),
    /// The compaction is decided; rows go later, by `compact_step`.
    Compaction(CompactionResponse),
    Alarm(AlarmResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseCheckpoint(LeaseCheckpointResponse),
    /// The members after the change, ascending by id.
    ConfChange(Vec<Member>),
    /// Applied, and there is nothing to tell.
    Nothing,
}

/// Who is told while entries are applied, in log order.
pub trait Sink {
    /// Called once for every entry above the applied position. `request_id` is 0 when the entry names none.
    fn outcome(&mut self, index: LogIndex, request_id: u64, outcome: Result<Outcome, EtcdError>);

    /// False while nobody listens: then events are not even built. Asked once per batch.
    fn wants_events(&self) -> bool {
        true
    }

    /// The changes of one revision, before the outcome of their entry. Previous values are not filled in.
    fn events(&mut self, revision: Revision, events: Vec<Event>);

    /// A lease was granted, revoked or checkpointed: called before the events and the outcome of its entry.
    fn lease(&mut self, _change: LeaseChange) {}

    /// Called for every conf-change entry, before its outcome. None when raft must change nothing: the change was refused, or it
    /// concerns only peer URLs.
    fn conf_change(&mut self, index: LogIndex, change: Option<raftpb::ConfChangeV2>);

    /// This member's store is over its quota: raise the NOSPACE alarm. The outcome of the same entry follows.
    fn space_exceeded(&mut self, _index: LogIndex) {}
}

/// What the sink is told after the lock is released.
enum Notice {
    Events(Revision, Vec<Event>),
    Lease(LeaseChange),
    ConfChange(LogIndex, Option<raftpb::ConfChangeV2>),
    SpaceExceeded(LogIndex),
    Outcome(LogIndex, u64, Result<Outcome, EtcdError>),
}

impl<S: Store> StateMachine<S> {
    /// Applies committed entries in order. Entries at or below the applied position have no effect and no outcome.
    ///
    /// # Panics
    /// When entries leave a gap, and when the store fails: neither is an answer to anybody.
    pub fn apply(&mut self, entries: &[Entry], sink: &mut dyn Sink) {
        let applied = self.applied().index;
        let mut rest = &entries[entries.partition_point(|entry| entry.index <= applied)..];
        while let Some(first) = rest.first() {
            assert_eq!(first.index, self.applied().index.next(), "entries are applied without a gap");
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                bytes += entry.data.len();
                bytes <= BATCH_BYTES_MAX
            };
            let count = rest.iter().take(BATCH_ENTRIES_MAX).take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            self.apply_batch(batch, sink);
            rest = later;
        }
    }

    fn apply_batch(&mut self, entries: &[Entry], sink: &mut dyn Sink) {
        let commands: Vec<Command> = entries.iter().map(decode).collect();
        let shared = &*self.shared;
        let quota = Quota { used: shared.store.size().total_bytes, max: shared.quota() };
        let last = entries.last().expect("a batch has an entry").position();
        shared.store.wait_for_room().unwrap_or_else(|error| store_failed(error));
        let prefetched = prefetch::prefetch(shared, &commands);
        let mut notices = Vec::with_capacity(entries.len() * 2);
        {
            let mut state = shared.state.write();
            let step =
                Step::new(&mut state, &*shared.store, WriteBatch::at(last), prefetched, sink.wants_events());
            let mut run = Run { step, quota, notices: &mut notices };
            let mut position = run.step.state.applied;
            for (entry, command) in entries.iter().zip(commands) {
                assert_eq!(entry.index, position.index.next(), "entries are applied without a gap");
                position = entry.position();
                run.entry(position, command);
            }
            let batch = run.step.batch;
            shared.store.write(batch).unwrap_or_else(|error| store_failed(error));
            state.applied = last;
        }
        for notice in notices {
            match notice {
                Notice::Events(revision, events) => sink.events(revision, events),
                Notice::Lease(change) => sink.lease(change),
                Notice::ConfChange(index, change) => sink.conf_change(index, change),
                Notice::SpaceExceeded(index) => sink.space_exceeded(index),
                Notice::Outcome(index, id, outcome) => sink.outcome(index, id, outcome),
            }
        }
    }
}

struct Run<'a, 'b, S> {
    step: Step<'a, S>,
    quota: Quota,
    notices: &'b mut Vec<Notice>,
}

impl<S: Store> Run<'_, '_, S> {
    fn entry(&mut self, at: LogPosition, command: Command) {
        let index = at.index;
        self.step.begin();
        let (id, outcome) = match command {
            Command::Empty | Command::Own => (0, Ok(Outcome::Nothing)),
            Command::Garbage => (0, Err(EtcdError::UnknownMethod)),
            Command::Put { id, request } => (id, self.put(index, &request)),
            Command::Request { id, request } => (id, self.request(index, &request)),
            Command::OldAttributes { id, member, name, client_urls } => {
                self.publish(member, &name, &client_urls);
                (id, Ok(Outcome::Nothing))
            }
            Command::OldVersion { id, version } => {
                self.set_version(version);
                (id, Ok(Outcome::Nothing))
            }
            Command::ConfChange(change) => {
                let (told, outcome) = conf_change::apply(self.step.state, &mut self.step.batch, at, &change);
                self.notices.push(Notice::ConfChange(index, told));
                (change.id.unwrap_or(0), outcome)
            }
        };
        if let Some((revision, events)) = self.step.end() {
            self.notices.push(Notice::Events(revision, events));
        }
        self.notices.push(Notice::Outcome(index, id, outcome));
    }

    /// In etcd's order of kinds. An envelope with none of them stops etcd; here it is refused.
    fn request(&mut self, index: LogIndex, request: &InternalRaftRequest) -> Result<Outcome, EtcdError> {
        if let Some(set) = &request.cluster_version_set {
            self.set_version(set.ver.clone());
            Ok(Outcome::Nothing)
        } else if let Some(set) = &request.cluster_member_attr_set {
            let attributes = set.member_attributes.clone().unwrap_or_default();
            self.publish(MemberId(set.member_id), &attributes.name, &attributes.client_urls);
            Ok(Outcome::Nothing)
        } else if let Some(set) = &request.downgrade_info_set {
            let target_version = if set.enabled { set.ver.clone() } else { String::new() };
            self.set_downgrade(Downgrade { target_version, enabled: set.enabled });
            Ok(Outcome::Nothing)
        } else if let Some(range) = &request.range {
            self.not_corrupt()?;
            self.step.range(range).map(Outcome::Range)
        } else if let Some(put) = &request.put {
            self.put(index, put)
        } else if let Some(delete) = &request.delete_range {
            self.not_corrupt()?;
            Ok(Outcome::DeleteRange(self.step.delete_range(delete)))
        } else if let Some(txn) = &request.txn {
            self.not_corrupt()?;
            let cost = txn_cost(txn);
            gates::has_space(&self.step.state.alarms, cost)?;
            let response = self.step.txn(txn)?;
            self.within_quota(index, cost)?;
            Ok(Outcome::Txn(response))
        } else if let Some(compaction) = &request.compaction {
            self.not_corrupt()?;
            self.compact(compaction).map(Outcome::Compaction)
        } else if let Some(grant) = &request.lease_grant {
            self.lease_grant(index, grant).map(Outcome::LeaseGrant)
        } else if let Some(revoke) = &request.lease_revoke {
            self.not_corrupt()?;
            let (response, change) = self.step.lease_revoke(revoke)?;
            self.notices.push(Notice::Lease(change));
            Ok(Outcome::LeaseRevoke(response))
        } else if let Some(checkpoint) = &request.lease_checkpoint {
            let (response, changes) = self.step.lease_checkpoint(checkpoint);
            self.notices.extend(changes.into_iter().map(Notice::Lease));
            Ok(Outcome::LeaseCheckpoint(response))
        } else if let Some(alarm) = &request.alarm {
            let alarms = self.step.state.alarms.apply(alarm, &mut self.step.batch);
            Ok(Outcome::Alarm(AlarmResponse { header: header(self.step.state.revision), alarms }))
        } else {
            Err(auth::refuse(request).unwrap_or(EtcdError::UnknownMethod))
        }
    }

    fn not_corrupt(&self) -> Result<(), EtcdError> {
        gates::not_corrupt(&self.step.state.alarms)
    }

    fn put(&mut self, index: LogIndex, request: &PutRequest) -> Result<Outcome, EtcdError> {
        self.not_corrupt()?;
        let cost = put_cost(request);
        gates::has_space(&self.step.state.alarms, cost)?;
        let response = self.step.put(request)?;
        self.within_quota(index, cost)?;
        Ok(Outcome::Put(response))
    }

    fn lease_grant(
        &mut self,
        index: LogIndex,
        request: &LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, EtcdError> {
        self.not_corrupt()?;
        let cost = lease_cost(request);
        gates::has_space(&self.step.state.alarms, cost)?;
        let (response, change) = self.step.lease_grant(request)?;
        self.notices.push(Notice::Lease(change));
        self.within_quota(index, cost)?;
        Ok(response)
    }

    /// The request is applied all the same: refusing here would make members differ, since the quota is local.
    fn within_quota(&mut self, index: LogIndex, cost: u64) -> Result<(), EtcdError> {
        if self.quota.exceeded_by(cost) {
            self.notices.push(Notice::SpaceExceeded(index));
            return Err(EtcdError::NoSpace);
        }
        Ok(())
    }

    /// Reads below the revision fail from here on; the mark is in the same batch, so that a restart goes on with the work.
    fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, EtcdError> {
        let state = &mut *self.step.state;
        if request.revision <= state.compacted {
            return Err(EtcdError::Compacted);
        }
        if request.revision > state.revision {
            return Err(EtcdError::FutureRev);
        }
        let span = Span { after: state.compacted, through: request.revision };
        note_decided(&mut state.unhashed, span, &mut self.step.batch);
        state.compacted = request.revision;
        let mark = coordinate(RowId { main: Revision(request.revision), sub: 0 });
        self.step.batch.put(Table::Meta, meta::SCHEDULED_COMPACT, mark.to_vec());
        Ok(CompactionResponse { header: header(state.revision) })
    }

    fn set_version(&mut self, version: String) {
        self.step.batch.put(Table::Cluster, VERSION_KEY, version.clone().into_bytes());
        self.step.state.cluster.version = Some(version);
    }

    fn set_downgrade(&mut self, downgrade: Downgrade) {
        let json = serde_json::to_vec(&downgrade).expect("a string and a flag have a JSON form");
        self.step.batch.put(Table::Cluster, DOWNGRADE_KEY, json);
        self.step.state.cluster.downgrade = downgrade;
    }

    fn publish(&mut self, id: MemberId, name: &str, client_urls: &[String]) {
        if let Some(member) = self.step.state.membership.publish(id, name, client_urls) {
            self.step.batch.put(Table::Members, id.to_string().into_bytes(), member.to_row());
        }
    }
}
