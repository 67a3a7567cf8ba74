//! Syncs what is being written, slice by slice, on a thread of its own: what the kernel holds back is otherwise written out in one go, and the
//! log's syncs stand behind all of it.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// A slice. A disk for servers writes it within a few milliseconds.
const SLICE_BYTES: u64 = 4 << 20;

/// See the module text.
pub struct SyncBehind {
    ask: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    unsynced: u64,
}

impl SyncBehind {
    /// `sync` makes durable what is written when it is called.
    pub fn new(mut sync: impl FnMut() -> io::Result<()> + Send + 'static) -> io::Result<SyncBehind> {
        // One slice is being synced, one waits, one is being written.
        let (ask, asked) = sync_channel(1);
        let work = move || asked.iter().try_for_each(|()| sync());
        let thread = std::thread::Builder::new().name("sync-behind".to_owned()).spawn(work)?;
        Ok(SyncBehind { ask: Some(ask), thread: Some(thread), unsynced: 0 })
    }

    /// So many bytes more. Waits while the disk is two slices behind.
    pub fn wrote(&mut self, bytes: u64) {
        self.unsynced += bytes;
        if self.unsynced < SLICE_BYTES {
            return;
        }
        self.unsynced = 0;
        if let Some(ask) = &self.ask {
            // It has ended with an error, which `finish` tells.
            let _ = ask.send(());
        }
    }

    /// Waits for what was asked for. What came after the last slice is not synced.
    ///
    /// # Errors
    /// The first one of `sync`.
    pub fn finish(mut self) -> io::Result<()> {
        self.ask = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(synced)) => synced,
            _ => Err(io::Error::other("the thread that syncs has ended")),
        }
    }
}

impl Drop for SyncBehind {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
