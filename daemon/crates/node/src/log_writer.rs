//! The thread that owns the write-ahead log. What queues up while one fsync runs is written and synced together.
//!
//! A write or sync that fails ends the process: the member no longer knows what it promised.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use consensus::io::Persist;
use storage::wal::Wal;
use types::{ConfState, LogPosition};

use crate::{
    config::Fatal,
    shared::{Shared, ToRaft},
};

pub(crate) enum ToLog {
    /// Bounded by the core: it holds what is not yet persisted in its own log tail, which is bounded.
    Persist(Persist),
    /// The state store is durable through here: note it, and let go of older segments.
    Release { through: LogPosition, conf_state: ConfState },
}

pub(crate) fn run(shared: Arc<Shared>, mut wal: Wal) {
    let mut batch = VecDeque::new();
    while shared.log.take(&mut batch, None, true) {
        if let Err(error) = write(&shared, &mut wal, &mut batch) {
            (shared.config.fatal)(Fatal::Log(error.to_string()));
        }
    }
    if let Err(error) = wal.sync() {
        (shared.config.fatal)(Fatal::Log(error.to_string()));
    }
}

fn write(shared: &Shared, wal: &mut Wal, batch: &mut VecDeque<ToLog>) -> Result<(), storage::wal::WalError> {
    let mut persisted = None;
    let mut must_sync = false;
    let started = Instant::now();
    for item in batch.drain(..) {
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
    if let Some(seq) = persisted {
        shared.raft.push(ToRaft::Persisted(seq));
    }
    Ok(())
}
