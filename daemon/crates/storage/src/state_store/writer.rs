//! The queue between apply and the LSM tree, and the one thread that empties it. The thread merges what is queued into one atomic
//! commit; only it touches fjall's write path, so fjall's journal lock, its fsyncs and its back-pressure are nobody else's wait.
//!
//! After a failed commit nothing is ever written again: every later call gets the reason, and the fatal hook is called once.
//!
//! Not here: reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, PersistMode, Slice};
use parking_lot::{Condvar, Mutex, RwLock};
use state_machine::store::{Change, StoredRow, WriteBatch};
use types::LogPosition;

use super::error::Failed;
use super::keys::{self, COUNTERS_KEY};
use super::overlay::{Overlay, Seq};
use state_machine::store::Table;

/// Largest merged commit. It bounds how long one commit holds fjall's journal lock (about 5 ms) and how long committed rows stay in
/// the overlay; beyond a few thousand rows merging gains nothing more.
const MERGE_BYTES_MAX: usize = 1024 * 1024;

/// How long the writer waits for more before it commits less than that. Nobody waits for a commit as such (whoever does, says so and
/// is not kept), and at a few ten thousand batches a second this turns a system call and a wakeup for each into one for a hundred.
const LINGER: Duration = Duration::from_millis(2);

/// `write` itself waits only beyond this multiple of the queue's bound. Apply waits in `wait_for_room`, without any lock; the hard
/// bound is for whoever does not.
const HARD_BOUND_FACTOR: usize = 2;

/// What one change costs in the queue beside its bytes: two copies of the change itself and its place in the overlay.
const CHANGE_OVERHEAD_BYTES: usize = 160;

/// A caller that waits for room looks this often whether a background thread of fjall has died, because the writer may then hang in
/// fjall's back-pressure for ever instead of getting an error.
const POISON_PROBE: Duration = Duration::from_secs(1);

/// Only whoever asked for a flush waits like this.
const FLUSH_POLL: Duration = Duration::from_millis(10);

/// A file system with less room than this may be too full for fjall: a flush writes a table of a whole memtable, a compaction several.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// Called once, with the reason, when the store cannot write any more. The daemon ends the process in it.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Live rows, and their bytes as an estimate: a delete takes away the average, since reading each row it removes would cost more
/// than the figure is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub rows: u64,
    pub bytes: u64,
}

impl Counters {
    pub fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.rows.to_be_bytes());
        out[8..].copy_from_slice(&self.bytes.to_be_bytes());
        out
    }

    /// Counters only inform; a record of another form counts as nothing known.
    pub fn decode(bytes: &[u8]) -> Counters {
        match bytes.try_into() {
            Ok(bytes) => {
                let both = u128::from_be_bytes(bytes);
                Counters { rows: (both >> 64) as u64, bytes: both as u64 }
            }
            Err(_) => Counters::default(),
        }
    }

    pub fn add_row(&mut self, value_bytes: usize) {
        self.rows += 1;
        self.bytes += (keys::ROW_KEY_BYTES + value_bytes) as u64;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::PutRow { row, .. } => self.add_row(row.value.len()),
            Change::DeleteRow { .. } => {
                self.bytes -= self.bytes.checked_div(self.rows).unwrap_or(0);
                self.rows = self.rows.saturating_sub(1);
            }
            Change::Put { .. } | Change::Delete { .. } => {}
        }
    }
}

struct Queued {
    seq: Seq,
    position: LogPosition,
    bytes: usize,
    changes: Vec<Change>,
    /// A new marker record, see `FjallStore::set_marker`.
    marker: Option<Vec<u8>>,
}

struct Queue {
    batches: VecDeque<Queued>,
    bytes: usize,
    last_seq: Seq,
    committed_seq: Seq,
    committed_position: LogPosition,
    /// The newest batch whose commit somebody waits for.
    wanted_seq: Seq,
    failed: Option<Failed>,
    closing: bool,
}

/// Shared by the handle and the writer thread.
pub struct Shared {
    pub db: Database,
    pub keyspace: Keyspace,
    pub overlay: RwLock<Overlay>,
    queue: Mutex<Queue>,
    /// Held over a whole `write`, so that queue order and overlay order are the same order.
    turn: Mutex<()>,
    /// The writer waits for work.
    work: Condvar,
    /// `write` waits for room.
    room: Condvar,
    /// `persist` and views wait for commits.
    committed: Condvar,
    queue_bytes_max: usize,
    on_fatal: Option<FatalHook>,
    /// Held by whoever found the failure until the hook knows of it.
    failing: Mutex<()>,
    pub total_bytes: AtomicU64,
    pub in_use_bytes: AtomicU64,
}

impl Shared {
    pub fn new(
        db: Database,
        keyspace: Keyspace,
        position: LogPosition,
        queue_bytes_max: usize,
        on_fatal: Option<FatalHook>,
    ) -> Shared {
        Shared {
            db,
            keyspace,
            overlay: RwLock::new(Overlay::at(position)),
            queue: Mutex::new(Queue {
                batches: VecDeque::new(),
                bytes: 0,
                last_seq: 0,
                committed_seq: 0,
                committed_position: position,
                wanted_seq: 0,
                failed: None,
                closing: false,
            }),
            turn: Mutex::new(()),
            work: Condvar::new(),
            room: Condvar::new(),
            committed: Condvar::new(),
            queue_bytes_max,
            on_fatal,
            failing: Mutex::new(()),
            total_bytes: AtomicU64::new(0),
            in_use_bytes: AtomicU64::new(0),
        }
    }

    /// Makes the batch visible and queues it. Waits only while the queue is full.
    pub fn write(&self, batch: WriteBatch) -> Result<(), Failed> {
        let position = batch.position();
        let bytes = batch.changes.iter().map(change_bytes).sum::<usize>() + CHANGE_OVERHEAD_BYTES;
        self.enqueue(Some(position), bytes, batch.changes, None).map(|_| ())
    }

    /// Queues a marker record; it is committed when this returns.
    pub fn set_marker(&self, marker: Vec<u8>) -> Result<(), Failed> {
        let seq = self.enqueue(None, marker.len() + CHANGE_OVERHEAD_BYTES, Vec::new(), Some(marker))?;
        self.wait_committed(seq).map(|_| ())
    }

    /// Commits the position once more, with no change beside it.
    pub fn rewrite_position(&self) -> Result<(), Failed> {
        self.enqueue(None, CHANGE_OVERHEAD_BYTES, Vec::new(), None).map(|_| ())
    }

    fn enqueue(
        &self,
        position: Option<LogPosition>,
        bytes: usize,
        changes: Vec<Change>,
        marker: Option<Vec<u8>>,
    ) -> Result<Seq, Failed> {
        let _turn = self.turn.lock();
        let seq = {
            let mut queue = self.room(self.queue_bytes_max * HARD_BOUND_FACTOR)?;
            assert!(!queue.closing, "no write comes after the store was closed");
            queue.last_seq += 1;
            queue.last_seq
        };
        // Visible before queued: were it queued first, the writer could commit and release it before it is here, and it would stay
        // for ever.
        let position = {
            let mut overlay = self.overlay.write();
            let position = position.unwrap_or(overlay.position);
            overlay.insert(seq, position, &changes);
            position
        };
        let mut queue = self.queue.lock();
        let before = queue.bytes;
        queue.bytes += bytes;
        queue.batches.push_back(Queued { seq, position, bytes, changes, marker });
        // The writer sleeps until there is something, and then until there is enough; in between it needs no call.
        let first = queue.batches.len() == 1;
        let enough = before < MERGE_BYTES_MAX && queue.bytes >= MERGE_BYTES_MAX;
        drop(queue);
        if first || enough {
            self.work.notify_one();
        }
        Ok(seq)
    }

    /// Waits until the queue is below its bound.
    pub fn wait_for_room(&self) -> Result<(), Failed> {
        self.room(self.queue_bytes_max).map(drop)
    }

    fn room(&self, bytes_max: usize) -> Result<parking_lot::MutexGuard<'_, Queue>, Failed> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(failed) = &queue.failed {
                return Err(failed.clone());
            }
            if queue.bytes < bytes_max {
                return Ok(queue);
            }
            if self.room.wait_for(&mut queue, POISON_PROBE).timed_out() {
                drop(queue);
                self.probe();
                queue = self.queue.lock();
            }
        }
    }

    /// Waits until everything queued before this call is committed to the tree; returns the position committed then.
    pub fn drain(&self) -> Result<LogPosition, Failed> {
        let seq = self.queue.lock().last_seq;
        self.wait_committed(seq)
    }

    fn wait_committed(&self, seq: Seq) -> Result<LogPosition, Failed> {
        let mut queue = self.queue.lock();
        if queue.committed_seq < seq {
            queue.wanted_seq = queue.wanted_seq.max(seq);
            self.work.notify_one();
        }
        loop {
            if let Some(failed) = &queue.failed {
                return Err(failed.clone());
            }
            if queue.committed_seq >= seq {
                return Ok(queue.committed_position);
            }
            if self.committed.wait_for(&mut queue, POISON_PROBE).timed_out() {
                drop(queue);
                self.probe();
                queue = self.queue.lock();
            }
        }
    }

    /// Seals the memtable and waits until it is in a table.
    pub fn flush(&self) -> Result<(), Failed> {
        if let Err(error) = self.keyspace.rotate_memtable() {
            return Err(self.fail(format!("flush: {}", self.explain(&error))));
        }
        // fjall tells nobody when a flush ends; and one that failed would be waited for for ever without the probe.
        while self.keyspace.sealed_memtable_count() > 0 {
            std::thread::sleep(FLUSH_POLL);
            self.probe();
            if let Some(failed) = &self.queue.lock().failed {
                return Err(failed.clone());
            }
        }
        Ok(())
    }

    /// Finds out whether fjall has given up behind the writer's back. A healthy database only flushes a small buffer here.
    fn probe(&self) {
        if let Err(error) = self.db.persist(PersistMode::Buffer) {
            self.fail(format!("commit: {}", self.explain(&error)));
        }
    }

    /// fjall gives up without saying why when one of its own threads failed first. A full disk is the cause that an operator can mend,
    /// so look for that.
    fn explain(&self, error: &fjall::Error) -> String {
        let place = self.keyspace.path().display();
        if !matches!(error, fjall::Error::Poisoned) {
            return format!("{place}: {error}");
        }
        let room = nix::sys::statvfs::statvfs(self.keyspace.path())
            .map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        match room {
            Ok(room) if room < ROOM_BYTES_MIN => format!(
                "{place}: a background write failed, most likely because there is no space left on the device: {} KiB are free",
                room >> 10
            ),
            _ => format!("{place}: a background write failed earlier ({error})"),
        }
    }

    /// The hook comes first: it ends the process with the reason, and a thread that saw the failure before that would end it with a
    /// worse one.
    pub fn fail(&self, reason: String) -> Failed {
        let _failing = self.failing.lock();
        if let Some(failed) = &self.queue.lock().failed {
            return failed.clone();
        }
        let failed = Failed { reason };
        tracing::error!(reason = failed.reason, "state store failed");
        if let Some(hook) = &self.on_fatal {
            hook(&failed.reason);
        }
        self.queue.lock().failed = Some(failed.clone());
        self.work.notify_all();
        self.room.notify_all();
        self.committed.notify_all();
        failed
    }

    /// The writer finishes what is queued and ends.
    pub fn close(&self) {
        self.queue.lock().closing = true;
        self.work.notify_all();
    }

    /// Body of the writer thread.
    pub fn run(&self, mut counters: Counters) {
        let _reason = FailOnPanic(self);
        self.publish_size(counters);
        while let Some(group) = self.next_group() {
            if let Err(error) = self.commit(&group, &mut counters) {
                self.fail(format!("commit: {}", self.explain(&error)));
                return;
            }
            self.release(group);
            self.publish_size(counters);
        }
    }

    fn next_group(&self) -> Option<Vec<Queued>> {
        let mut queue = self.queue.lock();
        while queue.batches.is_empty() {
            if queue.closing || queue.failed.is_some() {
                return None;
            }
            self.work.wait(&mut queue);
        }
        let until = Instant::now() + LINGER;
        while queue.bytes < MERGE_BYTES_MAX && queue.wanted_seq <= queue.committed_seq && !queue.closing {
            if self.work.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
        if queue.failed.is_some() {
            return None;
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.batches.front() {
            if !group.is_empty() && bytes + next.bytes > MERGE_BYTES_MAX {
                break;
            }
            bytes += next.bytes;
            group.extend(queue.batches.pop_front());
        }
        Some(group)
    }

    /// One atomic commit. Within it a later change of a key wins over an earlier one: all carry one sequence number, and the
    /// memtable replaces an entry of equal key and number, at first write as in replay.
    fn commit(&self, group: &[Queued], counters: &mut Counters) -> Result<(), fjall::Error> {
        let rows = group.iter().map(|queued| queued.changes.len()).sum::<usize>();
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), rows + 4)
            .durability(Some(PersistMode::Buffer));
        let tree = &self.keyspace;
        for queued in group {
            for change in &queued.changes {
                counters.apply(change);
                match change {
                    Change::PutRow { id, row } => {
                        batch.insert(tree, row_key(*id, row.tombstone), Slice::new(&row.value));
                    }
                    Change::DeleteRow { id, tombstone } => batch.remove(tree, row_key(*id, *tombstone)),
                    Change::Put { table, key, value } => {
                        batch.insert(tree, keys::table_key(*table, key), Slice::new(value));
                    }
                    Change::Delete { table, key } => batch.remove(tree, keys::table_key(*table, key)),
                }
            }
            if let Some(marker) = &queued.marker {
                batch.insert(tree, keys::MARKER_KEY, Slice::new(marker));
            }
        }
        let position = group.last().expect("a group is not empty").position;
        let meta = |name| keys::table_key(Table::Meta, name);
        batch.insert(tree, meta(keys::CONSISTENT_INDEX), position.index.0.to_be_bytes());
        batch.insert(tree, meta(keys::TERM), position.term.0.to_be_bytes());
        batch.insert(tree, COUNTERS_KEY, counters.encode());
        batch.commit()
    }

    fn release(&self, group: Vec<Queued>) {
        let (seq, position) = {
            let last = group.last().expect("a group is not empty");
            (last.seq, last.position)
        };
        // The deque first: while an id is in both, the entry outside the deque is the newer one and must outlive the other.
        let mut freed: Vec<StoredRow> = Vec::new();
        loop {
            let more = self.overlay.write().release_appended(seq, &mut freed);
            freed.clear();
            if !more {
                break;
            }
        }
        for queued in &group {
            if queued.changes.iter().any(|change| !matches!(change, Change::PutRow { .. }))
                || self.overlay.read().has_odd_rows()
            {
                self.overlay.write().release_others(queued.seq, &queued.changes);
            }
        }
        let bytes = group.iter().map(|queued| queued.bytes).sum::<usize>();
        {
            let mut queue = self.queue.lock();
            queue.bytes -= bytes;
            queue.committed_seq = seq;
            queue.committed_position = position;
        }
        self.room.notify_all();
        self.committed.notify_all();
    }

    fn publish_size(&self, counters: Counters) {
        let disk = self.keyspace.disk_space();
        self.total_bytes.store(disk + self.db.write_buffer_size(), Ordering::Relaxed);
        self.in_use_bytes.store(counters.bytes, Ordering::Relaxed);
    }
}

/// Ids are checked by [`check`] before a batch is queued.
fn row_key(id: types::RowId, tombstone: bool) -> [u8; keys::ROW_KEY_BYTES] {
    keys::row_key(id, tombstone).expect("row ids were checked when the batch was given")
}

fn change_bytes(change: &Change) -> usize {
    CHANGE_OVERHEAD_BYTES
        + match change {
            Change::PutRow { row, .. } => row.value.len(),
            Change::DeleteRow { .. } => 0,
            Change::Put { key, value, .. } => key.len() + value.len(),
            Change::Delete { key, .. } => key.len(),
        }
}

/// A batch that no key can express would otherwise fail half-way through a commit.
pub fn check(batch: &WriteBatch) -> Result<(), String> {
    for change in &batch.changes {
        match change {
            Change::PutRow { id, .. } | Change::DeleteRow { id, .. } => {
                if keys::row_key(*id, false).is_none() {
                    return Err(format!("row {id} is outside the range of ids"));
                }
            }
            Change::Put { table, key, .. } | Change::Delete { table, key } => {
                if key.len() > keys::TABLE_KEY_BYTES_MAX {
                    return Err(format!("key of {} bytes in table {}", key.len(), table.name()));
                }
                if *table == Table::Meta && (key == keys::CONSISTENT_INDEX || key == keys::TERM) {
                    return Err("the applied position is the batch's own, not a change".to_owned());
                }
            }
        }
    }
    Ok(())
}

struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the writer thread panicked".to_owned());
        }
    }
}
