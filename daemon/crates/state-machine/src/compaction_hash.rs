//! The hashes of compactions: of each compaction what HashKV at its revision answered just before rows were removed, with the compaction
//! before it as the mark. Members compare these, since each of them has hashed every revision between the two.
//!
//! As in etcd the newest ones are kept. etcd's are gone after a restart or a snapshot, and its answers then carry another mark, so that
//! nobody can compare them; ours are pairs of the state, written with the first rows that go. What is still to be hashed is noted with the
//! compaction itself, so that a restart in between hashes it before it removes anything. etcd also skips one whose predecessor was still
//! being removed; ours does not depend on how far removal has come, so it is always there.
//!
//! Not here: the checksum itself (`hash`), removal, which waits for it (`compaction`).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::hash::Keep;
use crate::read::Reader;
use crate::store::{Store, Table, WriteBatch};

/// As many as etcd keeps.
pub const COMPACTION_HASHES_KEPT: usize = 10;

/// What one compaction moved the end of history over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The compaction before; -1 for none.
    pub after: i64,
    pub through: i64,
}

/// Notes a decided compaction, in the batch that decides it. Those that would not be kept anyway are not hashed, nor one at revision 0,
/// which in a question stands for the current one (etcd answers it with the stored hash of nothing until ten compactions have passed).
pub(crate) fn note_decided(unhashed: &mut VecDeque<Span>, span: Span, batch: &mut WriteBatch) {
    if span.through == 0 {
        return;
    }
    if unhashed.len() == COMPACTION_HASHES_KEPT
        && let Some(oldest) = unhashed.pop_front()
    {
        batch.delete(Table::Meta, key(DUE, oldest.through));
    }
    batch.put(Table::Meta, key(DUE, span.through), span.after.to_be_bytes().to_vec());
    unhashed.push_back(span);
}

/// The revision that was compacted to, in hex, follows. The value: the compaction before, 8 bytes big-endian; the hash, 4 bytes.
const STORED: &str = "cairn/compaction_hash/";
/// As above, without the hash: rows of it are all there. True of this very store and of no copy.
const DUE: &str = "cairn/compaction_due/";

fn key(prefix: &str, through: i64) -> Vec<u8> {
    format!("{prefix}{through:016x}").into_bytes()
}

/// Whether a pair of `meta` says something of the store that holds it, so that it has no place in a copy: who installs a copy may be an
/// etcd, which removes rows and leaves the pair.
pub fn is_of_this_store(key: &[u8]) -> bool {
    key.starts_with(DUE.as_bytes())
}

/// What is on record in the store, to be told apart from what should be.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    stored: BTreeSet<i64>,
    /// To be taken away.
    settled: Vec<i64>,
}

impl Recorded {
    /// From the pairs of `meta`: the stored hashes, and the compactions that are due. Pairs that make no sense are left out: they may have
    /// come with a snapshot, and cost a comparison at most.
    pub fn load(rows: &[(Bytes, Bytes)], finished: i64) -> (Recorded, CompactionHashes, VecDeque<Span>) {
        let through = |key: &[u8], prefix: &str| {
            let hex = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
            i64::from_str_radix(hex, 16).ok().filter(|through| *through > 0)
        };
        let after = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_be_bytes);
        let (mut recorded, mut hashes, mut due) =
            (Recorded::default(), CompactionHashes::default(), VecDeque::new());
        // In order of revision, as the keys are.
        for (key, value) in rows {
            if let Some(through) = through(key, STORED) {
                recorded.stored.insert(through);
                let parts = value
                    .split_at_checked(8)
                    .and_then(|(span, hash)| Some((after(span)?, u32::from_be_bytes(hash.try_into().ok()?))));
                if let Some((after, hash)) = parts.filter(|(after, _)| *after < through) {
                    hashes.keep(Span { after, through }, hash);
                }
            } else if let Some(through) = through(key, DUE) {
                match after(value).filter(|after| *after < through && through > finished) {
                    Some(after) => due.push_back(Span { after, through }),
                    None => recorded.settled.push(through),
                }
            }
        }
        (recorded, hashes, due)
    }

    /// These were hashed, or given up.
    pub fn settle(&mut self, spans: &[Span]) {
        self.settled.extend(spans.iter().map(|span| span.through));
    }

    /// Brings the store's pairs up to date.
    pub fn write(&mut self, hashes: &CompactionHashes, batch: &mut WriteBatch) {
        for through in self.settled.drain(..) {
            batch.delete(Table::Meta, key(DUE, through));
        }
        let wanted: BTreeSet<i64> = hashes.0.iter().map(|(span, _)| span.through).collect();
        for (span, hash) in hashes.0.iter().filter(|(span, _)| !self.stored.contains(&span.through)) {
            let value = [&span.after.to_be_bytes()[..], &hash.to_be_bytes()[..]].concat();
            batch.put(Table::Meta, key(STORED, span.through), value);
        }
        for gone in self.stored.difference(&wanted) {
            batch.delete(Table::Meta, key(STORED, *gone));
        }
        self.stored = wanted;
    }
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
