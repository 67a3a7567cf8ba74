//! The physical part of compaction: rows that no readable revision needs leave the index and the store, a bounded piece at a time.
//!
//! The logical part is an entry of the log and took effect when it was applied. A run goes through the index in key order to its
//! target; a compaction decided meanwhile is the next run. The mark of completion is in the batch that removes the last rows, so a
//! restart before it goes through again, which removes nothing twice.
//!
//! Before rows go, the hashes of the compactions that take them are computed: `compaction_hash`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use types::{Revision, RowId};

use crate::StateMachine;
use crate::compaction_hash::{CompactionHashJob, Progress, Recorded, Span};
use crate::index::Version;
use crate::range::after;
use crate::rows::{coordinate, meta};
use crate::state::store_failed;
use crate::store::{Store, Table, WriteBatch};

/// Keys looked at per step for each row that may be removed: most keys have nothing to remove, and looking takes the read lock only.
const VISITED_PER_ROW: usize = 16;

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactProgress {
    /// Nothing to do.
    Idle,
    /// There is more to do.
    Working,
    /// A [`CompactionHashJob`] is under way and rows stay until it ends.
    Hashing,
    /// Everything up to this revision is done; a next step may begin another run.
    Finished(Revision),
}

#[derive(Debug)]
pub(crate) struct Compactor {
    finished: i64,
    run: Option<Run>,
    hashing: Option<(Arc<Progress>, Vec<Span>)>,
    recorded: Recorded,
}

impl Drop for Compactor {
    fn drop(&mut self) {
        if let Some((job, _)) = &self.hashing {
            job.unwanted.store(true, Ordering::Release);
        }
    }
}

#[derive(Debug)]
struct Run {
    target: i64,
    next_key: Vec<u8>,
}

impl Compactor {
    pub fn new(finished: i64, recorded: Recorded) -> Compactor {
        Compactor { finished, run: None, hashing: None, recorded }
    }
}

impl<S: Store> StateMachine<S> {
    /// The hashes that are due before the next rows go, for a thread that may take its time. Without anybody who asks,
    /// [`StateMachine::compact_step`] computes them itself, which reads every row up to the compact revision in one go.
    pub fn compaction_hash_job(&mut self) -> Option<CompactionHashJob<S>> {
        // Amid a run some of the rows are gone; what is decided meanwhile is hashed before the next.
        if self.compactor.run.is_some() {
            return None;
        }
        if self.shared.state.read().unhashed.is_empty() {
            return None;
        }
        let spans = Vec::from(std::mem::take(&mut self.shared.state.write().unhashed));
        // The run goes as far as is hashed, so that compactions that keep coming do not keep it from beginning.
        let target = spans.last().expect("one is due").through;
        self.compactor.run = Some(Run { target, next_key: Vec::new() });
        let progress = Arc::default();
        let job = CompactionHashJob::new(self.reader(), spans.clone(), &progress);
        self.compactor.hashing = Some((progress, spans));
        Some(job)
    }

    /// Removes about `rows_max` rows at most (one key's history is not divided). To be called between batches of apply, with pauses
    /// when [`CompactProgress::Working`].
    pub fn compact_step(&mut self, rows_max: usize) -> CompactProgress {
        if let Some(job) = self.compaction_hash_job() {
            job.run(&mut || true);
        }
        if let Some((job, spans)) = &self.compactor.hashing {
            if !job.ended.load(Ordering::Acquire) {
                return CompactProgress::Hashing;
            }
            self.compactor.recorded.settle(spans);
            self.compactor.hashing = None;
        }
        let shared = &*self.shared;
        let (compacted, applied) = {
            let state = shared.state.read();
            (state.compacted, state.applied)
        };
        if self.compactor.run.is_none() && compacted > self.compactor.finished {
            self.compactor.run = Some(Run { target: compacted, next_key: Vec::new() });
        }
        let Some(run) = &mut self.compactor.run else { return CompactProgress::Idle };
        let target = run.target;
        let mut gone: Vec<Version> = Vec::new();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut visited = 0;
        // Looking needs no exclusion: this is the only writer.
        let stopped = shared.state.read().index.walk(&run.next_key, None, |key, record| {
            let before = gone.len();
            record.superseded(target, &mut gone);
            if gone.len() > before {
                keys.push(key.to_vec());
            }
            visited += 1;
            if gone.len() >= rows_max || visited >= rows_max.saturating_mul(VISITED_PER_ROW) {
                return ControlFlow::Break(after(key));
            }
            ControlFlow::Continue(())
        });
        let mut batch = WriteBatch::at(applied);
        for version in gone {
            batch.delete_row(version.id(), version.is_dead());
        }
        let is_last = stopped.is_continue();
        if let ControlFlow::Break(next) = stopped {
            run.next_key = next;
        }
        if is_last {
            let mark = coordinate(RowId { main: Revision(target), sub: 0 });
            batch.put(Table::Meta, meta::FINISHED_COMPACT, mark.to_vec());
        }
        // With the first rows that go: were they gone and the hash not written, nobody could compute it any more.
        self.compactor.recorded.write(&shared.hashes.lock(), &mut batch);
        if !batch.changes.is_empty() {
            shared.store.wait_for_room().unwrap_or_else(|error| store_failed(error));
            // The index forgets first: a reader that still finds a version also finds its row, or learns that it was overtaken.
            {
                let mut state = shared.state.write();
                state.removing = target;
                for key in &keys {
                    state.index.forget_superseded(key, target);
                }
            }
            shared.store.write(batch).unwrap_or_else(|error| store_failed(error));
        }
        if is_last {
            self.compactor.finished = target;
            self.compactor.run = None;
            return CompactProgress::Finished(Revision(target));
        }
        CompactProgress::Working
    }
}
