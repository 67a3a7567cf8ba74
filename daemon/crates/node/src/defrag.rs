//! Defragment: gives the space of removed rows back at once. The store does so by itself in the background; this is for whoever wants it
//! now, and for scripts that call it every night.
//!
//! One merge of the whole tree at a time, on a thread of its own. Reads, writes and backups go on beside it, and whoever asks meanwhile
//! waits for the same one. The answer comes when it is done, or after a short while, when the rest happens in the background. Where there
//! is next to nothing to give back nothing is done. The merge has no brake of its own: it takes one thread and the disk's room for what
//! is alive once more.
//!
//! A snapshot that is installed meanwhile builds a store of its own beside; the merge ends with the old one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use state_machine::store::{Store, StoreSize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    handle::Handle,
    metrics::{Histogram, sample},
    shared::Shared,
    snapshots,
};

/// Longest wait for the merge: a store of some hundred megabytes is done by then, and etcdctl's own patience is five seconds.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A store below this is merged whatever it holds: it costs less than a second.
const SMALL_BYTES: u64 = 64 * 1024 * 1024;

/// Above, only when at least one part in so many is garbage.
const WORTH_PART: u64 = 16;

/// Why the space could not be given back. The store is as it was, and may be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DefragmentError(String);

#[derive(Clone, Debug, Default)]
struct Ended {
    runs: u64,
    failed: Option<DefragmentError>,
}

pub(crate) struct Defragmentation {
    runs: AtomicBool,
    ended: watch::Sender<Ended>,
    took: Histogram,
}

impl Defragmentation {
    pub(crate) fn new() -> Defragmentation {
        Defragmentation {
            runs: AtomicBool::new(false),
            ended: watch::Sender::default(),
            took: Histogram::new(Duration::from_millis(100), 13),
        }
    }

    /// Prometheus text, by etcd's names.
    pub(crate) fn print(&self, out: &mut String) {
        let name = "etcd_disk_backend_defrag_duration_seconds";
        self.took.print(out, name, "Time that giving back the space of removed rows took.");
        let runs = u8::from(self.runs.load(Ordering::Acquire));
        let help = "Whether the space of removed rows is being given back.";
        sample(out, "etcd_disk_defrag_inflight", "gauge", help, f64::from(runs));
    }
}

fn is_worth_it(size: StoreSize) -> bool {
    let garbage = size.total_bytes.saturating_sub(size.in_use_bytes);
    size.total_bytes < SMALL_BYTES || garbage >= size.total_bytes / WORTH_PART
}

impl Handle {
    /// See the module text. Local, also without a leader.
    ///
    /// # Errors
    /// When the merge failed while it was waited for.
    pub async fn defragment(&self) -> Result<(), DefragmentError> {
        let shared = &self.shared;
        // Listened to before it can end.
        let mut ended = shared.defragmentation.ended.subscribe();
        let before = ended.borrow_and_update().runs;
        if !begin(shared) {
            return Ok(());
        }
        match tokio::time::timeout(WAIT_MAX, ended.wait_for(|ended| ended.runs > before)).await {
            Ok(Ok(ended)) => ended.failed.clone().map_or(Ok(()), Err),
            // The sender lives as long as this handle.
            Ok(Err(_)) => Ok(()),
            Err(_) => {
                info!("the space of removed rows is being given back; it goes on in the background");
                Ok(())
            }
        }
    }
}

/// Whether something is under way now.
fn begin(shared: &Arc<Shared>) -> bool {
    let me = &shared.defragmentation;
    if shared.stopping.load(Ordering::Acquire) {
        return false;
    }
    if me.runs.swap(true, Ordering::AcqRel) {
        return true;
    }
    let size = shared.store().size();
    if !is_worth_it(size) {
        me.runs.store(false, Ordering::Release);
        info!(total_bytes = size.total_bytes, in_use_bytes = size.in_use_bytes, "nothing to defragment");
        return false;
    }
    let worker = shared.clone();
    let spawned = std::thread::Builder::new().name("defragment".to_owned()).spawn(move || run(&worker));
    if let Err(error) = spawned {
        end(shared, Some(format!("no thread: {error}")));
    }
    true
}

fn run(shared: &Shared) {
    let began = Instant::now();
    let store = shared.store();
    let before = store.size().total_bytes;
    let failed = store.reclaim().err().map(|error| error.to_string());
    let took = began.elapsed();
    shared.defragmentation.took.observe(took);
    let took_ms = took.as_millis() as u64;
    match &failed {
        None => info!(before, after = store.size().total_bytes, took_ms, "defragmented the state"),
        Some(error) => warn!(%error, took_ms, "the state could not be defragmented; it is as it was"),
    }
    // It may have been replaced meanwhile, and this was the last that held it.
    drop(store);
    snapshots::clean_up(&shared.config);
    end(shared, failed);
}

fn end(shared: &Shared, failed: Option<String>) {
    let me = &shared.defragmentation;
    me.runs.store(false, Ordering::Release);
    me.ended.send_modify(|ended| {
        ended.runs += 1;
        ended.failed = failed.map(DefragmentError);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_store_without_garbage_is_left_alone() {
        let size = |total_mib: u64, in_use_mib: u64| StoreSize {
            total_bytes: total_mib << 20,
            in_use_bytes: in_use_mib << 20,
        };
        for (total, in_use, expected) in [
            (10, 10, true),
            (1000, 990, false),
            // An estimate may be above what the disk says.
            (1000, 1100, false),
            (1000, 930, true),
            (4000, 100, true),
        ] {
            assert_eq!(is_worth_it(size(total, in_use)), expected, "{total} {in_use}");
        }
    }
}
