//! The thread that writes the write-ahead log. What queues up while one fsync runs is written and synced together.
//!
//! A member that is its cluster's only voter writes from the raft loop itself ([`write_now`]): nobody waits for its heartbeats or votes,
//! and two changes of thread for each group are a good part of what a lone client waits for. The log is behind a lock for that; it is
//! held by one of the two at a time, and the loop takes it only while nothing is queued here.
//!
//! A write or sync that fails ends the process: the member no longer knows what it promised.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use consensus::io::{Persist, PersistSeq};
use parking_lot::Mutex;
use storage::wal::{Wal, WalError};
use types::{ConfState, LogPosition};

use crate::{
    config::Fatal,
    pulse::Work,
    shared::{Shared, ToRaft},
};

pub(crate) enum ToLog {
    /// Bounded by the core: it holds what is not yet persisted in its own log tail, which is bounded.
    Persist(Persist),
    /// The state store is durable through here: note it, and let go of older segments.
    Release { through: LogPosition, conf_state: ConfState },
}

pub(crate) type SharedWal = Arc<Mutex<Wal>>;

pub(crate) fn run(shared: Arc<Shared>, wal: SharedWal) {
    let mut batch = VecDeque::new();
    while shared.log.take(&mut batch, None, true) {
        let written =
            shared.pulse.log.within(Work::Disk, || write(&shared, &mut wal.lock(), batch.drain(..)));
        match written {
            Ok(Some(seq)) => shared.raft.push(ToRaft::Persisted(seq)),
            Ok(None) => {}
            Err(error) => (shared.config.fatal)(Fatal::Log(error.to_string())),
        }
    }
    if let Err(error) = wal.lock().sync() {
        (shared.config.fatal)(Fatal::Log(error.to_string()));
    }
}

/// For the raft loop of an only voter, while nothing that it handed to the thread is outstanding. On disk when this returns.
pub(crate) fn write_now(shared: &Shared, wal: &Mutex<Wal>, persist: Persist) {
    if let Err(error) = write(shared, &mut wal.lock(), [ToLog::Persist(persist)]) {
        (shared.config.fatal)(Fatal::Log(error.to_string()));
    }
}

/// Answers the newest of the persists among them.
fn write(
    shared: &Shared,
    wal: &mut Wal,
    batch: impl IntoIterator<Item = ToLog>,
) -> Result<Option<PersistSeq>, WalError> {
    let mut persisted = None;
    let mut must_sync = false;
    let started = Instant::now();
    for item in batch {
        match item {
            ToLog::Persist(persist) => {
                if let Some((position, conf_state)) = &persist.snapshot {
                    wal.append_snapshot(*position, conf_state)?;
                }
                wal.append(&persist.entries, persist.hard_state.as_ref())?;
                must_sync |= persist.must_sync;
                persisted = Some(persist.seq);
            }
            ToLog::Release { through, conf_state } => {
                wal.append_snapshot(through, &conf_state)?;
                wal.sync()?;
                wal.release_to(through.index)?;
            }
        }
    }
    let written = Instant::now();
    shared.metrics.wal_write.observe(written - started);
    if must_sync {
        wal.sync()?;
        shared.metrics.wal_fsync.observe(written.elapsed());
    }
    Ok(persisted)
}
