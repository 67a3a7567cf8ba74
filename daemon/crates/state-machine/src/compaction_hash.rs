//! The hashes of compactions: of each compaction what HashKV at its revision answered just before rows were removed, with the compaction
//! before it as the mark. Members compare these, since each of them has hashed every revision between the two.
//!
//! As in etcd the newest ones are kept, in memory only: a member that starts anew has none, and its answers carry another mark. etcd
//! also skips one whose predecessor was still being removed; ours does not depend on how far removal has come, so it is always there.
//!
//! Not here: the checksum itself (`hash`), removal, which waits for it (`compaction`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::hash::Keep;
use crate::read::Reader;
use crate::store::Store;

/// As many as etcd keeps.
pub const COMPACTION_HASHES_KEPT: usize = 10;

/// What one compaction moved the end of history over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The compaction before; -1 for none.
    pub after: i64,
    pub through: i64,
}

/// Notes a decided compaction. Those that would not be kept anyway are not hashed, nor one at revision 0, which in a question stands for the
/// current one (etcd answers it with the stored hash of nothing until ten compactions have passed).
pub(crate) fn note_decided(unhashed: &mut VecDeque<Span>, span: Span) {
    if span.through == 0 {
        return;
    }
    if unhashed.len() == COMPACTION_HASHES_KEPT {
        unhashed.pop_front();
    }
    unhashed.push_back(span);
}

/// The stored ones, oldest first.
#[derive(Debug, Default)]
pub(crate) struct CompactionHashes(VecDeque<(Span, u32)>);

impl CompactionHashes {
    pub fn find(&self, revision: i64) -> Option<(Span, u32)> {
        self.0.iter().find(|(span, _)| span.through == revision).copied()
    }

    fn keep(&mut self, span: Span, hash: u32) {
        if self.0.len() == COMPACTION_HASHES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back((span, hash));
    }
}

/// Hashes that are due, to be computed on a thread that may wait; removal waits for it. Dropping it undone gives them up.
#[derive(Debug)]
pub struct CompactionHashJob<S> {
    reader: Reader<S>,
    spans: Vec<Span>,
    ticket: Ticket,
}

impl<S: Store> CompactionHashJob<S> {
    pub(crate) fn new(reader: Reader<S>, spans: Vec<Span>, state: &Arc<Progress>) -> CompactionHashJob<S> {
        CompactionHashJob { reader, spans, ticket: Ticket(Arc::clone(state)) }
    }

    /// Computes and stores them. `pause` is called before each piece of some hundred rows, about a millisecond of work, and says whether
    /// it is still wanted.
    pub fn run(self, pause: &mut dyn FnMut() -> bool) {
        let mut wanted = true;
        let mut goes_on = || {
            wanted = wanted && !self.ticket.0.unwanted.load(Ordering::Acquire) && pause();
            wanted
        };
        let mut hashes = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            let Span { after, through } = *span;
            // etcd filters nothing when the compaction keeps nothing; then what counts is what the one before left. The deletions at
            // its own revision are kept by a compaction, unlike in a hash at any other time.
            let judged_at = if self.reader.keeps_anything(through, true) { through } else { after };
            let keep = Keep { target: through, compacted: after, judged_at };
            hashes.push((*span, self.reader.hash_up_to(keep, &mut goes_on)));
        }
        if goes_on() {
            let mut stored = self.reader.shared.hashes.lock();
            hashes.into_iter().for_each(|(span, hash)| stored.keep(span, hash));
        }
    }
}

/// What the state machine and a job know of each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The job is gone, done or not.
    pub ended: AtomicBool,
    /// The state machine is gone.
    pub unwanted: AtomicBool,
}

#[derive(Debug)]
struct Ticket(Arc<Progress>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}
