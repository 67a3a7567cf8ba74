//! Turns of a connection that has much to read. The tasks that take what was read must keep pace with it: a connection that reads on
//! and on piles up small frames until HTTP/2 takes them for an attack, and holds up everybody else on its thread.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures_util::task::AtomicWaker;
use tokio::task::yield_now;

/// Reads of one connection, of some 8 KiB each, before all other tasks of the thread have their turn: about 700 of the smallest
/// frames that carry a message.
const TURN_READS: usize = 2;

/// See the module text.
#[derive(Default)]
pub(crate) struct Pace {
    /// Reads in this turn.
    reads: usize,
    next: Option<Arc<Next>>,
    waiting: bool,
}

impl Pace {
    /// Ready when it is this connection's turn to read.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reads < TURN_READS {
            return Poll::Ready(());
        }
        let next = self.next.get_or_insert_default();
        next.task.register(cx.waker());
        if !self.waiting {
            self.waiting = true;
            // Asked with a waker of our own: the connection is woken for many reasons, most of them by the tasks that it is to wait for.
            let waker = Waker::from(next.clone());
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        }
        ready!(next.poll_due());
        (self.reads, self.waiting) = (0, false);
        Poll::Ready(())
    }

    /// Counts a read, or that there was nothing to read.
    pub fn read(&mut self, any: bool) {
        self.reads = if any { self.reads + 1 } else { 0 };
    }
}

/// Where the runtime tells that all others had their turn.
#[derive(Default)]
struct Next {
    due: AtomicBool,
    task: AtomicWaker,
}

impl Next {
    fn poll_due(&self) -> Poll<()> {
        if self.due.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Wake for Next {
    fn wake(self: Arc<Self>) {
        self.due.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    use super::*;

    #[tokio::test]
    async fn who_reads_on_does_not_lap_who_yields() {
        let local = tokio::task::LocalSet::new();
        let reads = Rc::new(Cell::new(0));
        let reader = reads.clone();
        local.spawn_local(async move {
            let mut pace = Pace::default();
            loop {
                // Woken by others all the time, as connections are.
                let turn = poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    pace.poll_turn(cx)
                });
                turn.await;
                pace.read(true);
                reader.set(reader.get() + 1);
            }
        });
        let turns = local.run_until(async {
            for turn in 1..=100 {
                yield_now().await;
                assert!(reads.get() <= turn * 2 * TURN_READS, "{} reads in {turn} turns", reads.get());
            }
            reads.get()
        });
        assert!(turns.await >= 100, "it reads in every turn");
    }
}
