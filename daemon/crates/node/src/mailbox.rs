//! A queue between threads that is emptied in one go. The sender takes a short lock and wakes the receiver only when it sleeps; the
//! receiver swaps the whole queue out, so a busy receiver pays one lock per batch and not per item.
//!
//! Bounds are the sender's: [`Mailbox::try_push`] refuses at the limit given; [`Mailbox::push`] is for items whose number is
//! bounded by something else, and each caller says by what.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    /// Items that can wait: they neither wake the receiver nor are taken while it does not admit them.
    patient: VecDeque<T>,
    admits: bool,
    sleeping: bool,
    closed: bool,
}

/// The receiver is gone or the queue is full; the item comes back.
#[derive(Debug)]
pub(crate) enum PushError<T> {
    Full(T),
    Closed(T),
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Mailbox {
            state: Mutex::new(State {
                items: VecDeque::new(),
                patient: VecDeque::new(),
                admits: true,
                sleeping: false,
                closed: false,
            }),
            wake: Condvar::new(),
        }
    }

    pub(crate) fn try_push(&self, item: T, limit: usize) -> Result<(), PushError<T>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed(item));
        }
        if state.items.len() >= limit {
            return Err(PushError::Full(item));
        }
        state.items.push_back(item);
        if state.sleeping {
            state.sleeping = false;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// For an item that waits while the receiver does not admit any. What gathers meanwhile is taken in one go.
    pub(crate) fn try_push_patient(&self, item: T, limit: usize) -> Result<(), PushError<T>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed(item));
        }
        if state.patient.len() >= limit {
            return Err(PushError::Full(item));
        }
        state.patient.push_back(item);
        if state.sleeping && state.admits {
            state.sleeping = false;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Without a limit. After [`Mailbox::close`] the item is dropped: the process is on its way out.
    pub(crate) fn push(&self, item: T) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.items.push_back(item);
        if state.sleeping {
            state.sleeping = false;
            self.wake.notify_one();
        }
    }

    /// As [`Mailbox::push`], but nobody is woken for it: it is taken with whatever comes next, or at the receiver's deadline.
    pub(crate) fn push_quietly(&self, item: T) {
        let mut state = self.state.lock();
        if !state.closed {
            state.items.push_back(item);
        }
    }

    /// Moves everything queued into `batch`, waiting until there is something, the deadline passes, or the mailbox is closed.
    /// False when it is closed and empty: nothing will ever come. `admit` says whether patient items are taken too.
    pub(crate) fn take(&self, batch: &mut VecDeque<T>, deadline: Option<Instant>, admit: bool) -> bool {
        let mut state = self.state.lock();
        state.admits = admit;
        while state.items.is_empty() && (state.patient.is_empty() || !admit) {
            if state.closed {
                return false;
            }
            state.sleeping = true;
            match deadline {
                None => self.wake.wait(&mut state),
                Some(deadline) => {
                    if self.wake.wait_until(&mut state, deadline).timed_out() {
                        state.sleeping = false;
                        break;
                    }
                }
            }
        }
        if batch.is_empty() {
            std::mem::swap(batch, &mut state.items);
        } else {
            batch.append(&mut state.items);
        }
        if admit {
            batch.append(&mut state.patient);
        }
        true
    }

    /// Patient items that wait to be admitted.
    pub(crate) fn patient_len(&self) -> usize {
        self.state.lock().patient.len()
    }

    /// What is queued is still delivered; nothing new is accepted.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.wake.notify_all();
    }
}

/// Waits for a condition that another thread brings about, checking it at each of `interval`; false when `limit` passed first.
pub(crate) fn wait_until(limit: Duration, interval: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_refuses_and_a_closed_one_still_delivers() {
        let mailbox = Mailbox::new();
        mailbox.try_push(1, 2).expect("room");
        mailbox.try_push(2, 2).expect("room");
        assert!(matches!(mailbox.try_push(3, 2), Err(PushError::Full(3))));
        mailbox.push(4);
        mailbox.close();
        assert!(matches!(mailbox.try_push(5, 2), Err(PushError::Closed(5))));
        let mut batch = VecDeque::new();
        assert!(mailbox.take(&mut batch, None, true));
        assert_eq!(batch, [1, 2, 4]);
        batch.clear();
        assert!(!mailbox.take(&mut batch, None, true), "closed and empty");
    }

    #[test]
    fn patient_items_wait_until_they_are_admitted() {
        let mailbox = Mailbox::new();
        mailbox.try_push_patient(1, 2).expect("room");
        mailbox.try_push_patient(2, 2).expect("room");
        assert!(matches!(mailbox.try_push_patient(3, 2), Err(PushError::Full(3))));
        mailbox.push(4);
        let mut batch = VecDeque::new();
        assert!(mailbox.take(&mut batch, None, false));
        assert_eq!(batch, [4]);
        batch.clear();
        assert!(mailbox.take(&mut batch, None, true));
        assert_eq!(batch, [1, 2]);
    }

    #[test]
    fn a_deadline_ends_the_wait_with_an_empty_batch() {
        let mailbox: Mailbox<u8> = Mailbox::new();
        let mut batch = VecDeque::new();
        assert!(mailbox.take(&mut batch, Some(Instant::now()), true));
        assert!(batch.is_empty());
    }
}
