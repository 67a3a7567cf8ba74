//! Housekeeping of one member on a thread of its own: makes the state store durable now and then, and lets log and memory go below
//! what is durable. Nothing waits for it; when it is slow the log is longer, nothing else.
//!
//! Order matters: store durable through A, then a snapshot record at A in the log, then segments below A may go. A crash between
//! any two leaves more than is needed, never less.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use consensus::io::Input;
use state_machine::{Reader, store::Store};
use storage::{snapshot::View, state_store::FjallStore};
use tracing::warn;
use types::LogIndex;

use crate::{
    config::{Fatal, NodeConfig},
    log_writer::ToLog,
    shared::{Shared, ToRaft},
    snapshots,
};

/// How often the keeper looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The store is made durable at least this often while anything changes, so that a restart has little log to replay.
const PERSIST_INTERVAL: Duration = Duration::from_secs(30);

/// Growth of the log in memory past which the store is made durable however few the entries: what is not durable elsewhere cannot be
/// forgotten, and ten thousand entries of a megabyte are more than a member has room for.
const LOG_TAIL_GROWTH_BYTES: u64 = 48 * 1024 * 1024;

/// What the core keeps of it in any case, so that growth counts from here. More while a peer is fed by snapshot.
const LOG_TAIL_BYTES_KEPT: u64 = 64 * 1024 * 1024;

/// The index is checkpointed again when the store has grown by this much, or by a fifth if that is more. Reading 64 MiB of rows at a
/// start takes a third of a second; a fifth bounds what checkpoints write to a small part of what the store writes.
const CHECKPOINT_GROWTH_BYTES: u64 = 64 * 1024 * 1024;

/// Below this a start reads all rows about as fast as a checkpoint.
const CHECKPOINT_STORE_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// What the last checkpoint saw. A start ignores one that is older than a compaction.
struct Checkpointed {
    bytes: u64,
    compacted: i64,
}

impl Checkpointed {
    fn is_due(&self, shared: &Shared) -> bool {
        let bytes = shared.store().size().total_bytes;
        let compacted = shared.reader().compact_revision().0;
        // While rows are still being dropped a checkpoint would be overtaken; it comes when that is over.
        let at_rest = *shared.compacted.borrow() >= compacted;
        let grown = bytes.saturating_sub(self.bytes) >= CHECKPOINT_GROWTH_BYTES.max(bytes / 5);
        bytes >= CHECKPOINT_STORE_BYTES_MIN && at_rest && (grown || compacted > self.compacted)
    }
}

pub(crate) fn run(shared: Arc<Shared>) {
    let mut noted = shared.store().durable().index;
    // Whether a checkpoint was found at this start is not asked: one too many costs a second of this thread.
    let mut checkpointed = Checkpointed { bytes: 0, compacted: shared.reader().compact_revision().0 };
    let mut last = Instant::now();
    // The least that the log in memory had since the store was last made durable.
    let mut tail_kept = LOG_TAIL_BYTES_KEPT;
    while !shared.stopping.load(Ordering::Acquire) {
        std::thread::park_timeout(LOOK_INTERVAL);
        let applied = shared.applied();
        let entries = applied.0.saturating_sub(noted.0);
        let tail = shared.raft_status.lock().log_tail_bytes;
        tail_kept = tail_kept.min(tail.max(LOG_TAIL_BYTES_KEPT));
        let due = entries >= shared.live().snapshot_count
            || (entries > 0 && last.elapsed() >= PERSIST_INTERVAL)
            || (entries > 0 && tail >= tail_kept + LOG_TAIL_GROWTH_BYTES);
        if due {
            let seen = Checkpointed {
                bytes: shared.store().size().total_bytes,
                compacted: shared.reader().compact_revision().0,
            };
            let checkpoint =
                checkpointed.is_due(&shared).then(|| take_checkpoint(&shared.reader())).flatten();
            noted = persist(&shared, noted);
            last = Instant::now();
            tail_kept = tail;
            if let Some(bytes) = checkpoint {
                save_checkpoint(&shared.config, &bytes);
                checkpointed = seen;
            }
        }
    }
}

/// Before the store is made durable, so that the store is never behind it.
pub(crate) fn take_checkpoint(reader: &Reader<FjallStore>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // None: compaction was changing the index meanwhile; the next time will do.
    reader.checkpoint(&mut bytes)?;
    Some(bytes)
}

/// Failing costs the next start some time and nothing else.
pub(crate) fn save_checkpoint(config: &NodeConfig, bytes: &[u8]) {
    if let Err(error) = storage::checkpoint::save(&config.snap_dir, |out| out.write_all(bytes)) {
        warn!(%error, "the index checkpoint could not be saved");
    }
}

/// Position and configuration are read from one view: the configuration that other threads know of may be older or newer by then.
fn persist(shared: &Shared, noted: LogIndex) -> LogIndex {
    let store = shared.store();
    let seen = store.view().and_then(|view| Ok((view.position(), snapshots::conf_state(&view)?)));
    let (through, conf_state) = match seen.and_then(|seen| store.persist().map(|_| seen)) {
        Ok(seen) => seen,
        Err(error) => (shared.config.fatal)(Fatal::Store(error.to_string())),
    };
    // A snapshot record without its conf state could not be started from; the next round has it.
    if through.index <= noted || conf_state.voters.is_empty() {
        return noted;
    }
    shared.log.push(ToLog::Release { through, conf_state: conf_state.clone() });
    shared.raft.push(ToRaft::input(Input::Compact { through, conf_state }));
    through.index
}
