//! Notices of progress: "everything up to this revision was sent to you". A notice goes through the same queue as events and only when
//! everything up to its revision is in there, so it cannot come too early.
//!
//! A manual request that cannot be answered now, because a watcher is behind or begins in the future, is remembered and answered when it
//! can; etcd drops it and leaves it to the client to ask again. The answer reaches at least the store's revision at the time of asking,
//! so that a client which just read something learns when its watches have it.

use types::Revision;

use super::{Hub, Options, StreamId};
use crate::{queue::Reply, responses::INVALID_WATCH_ID, tree::next_random};

/// Added to the interval of a stream's notices, so that streams which began together do not stay together. etcd's share.
const JITTER_PERCENT: u64 = 10;

impl Hub {
    pub(super) fn ask_progress(&mut self, stream: StreamId, at_least: Revision) {
        let entry = self.stream_mut(stream);
        if entry.cohorts.is_empty() && entry.futures == 0 {
            return;
        }
        if entry.progress.is_none() {
            entry.progress = Some(at_least);
            self.progress_asked.push(stream);
        } else {
            entry.progress = entry.progress.max(Some(at_least));
        }
    }

    /// Answers the requests for progress that can be answered. To be called after each round of other calls.
    pub fn settle(&mut self) {
        let mut asked = std::mem::take(&mut self.progress_asked);
        asked.retain(|stream| !self.answer_progress(*stream));
        self.progress_asked = asked;
    }

    /// False when it must be asked again later.
    fn answer_progress(&mut self, stream: StreamId) -> bool {
        let entry = self.stream_mut(stream);
        let Some(at_least) = entry.progress else { return true };
        if entry.cohorts.is_empty() && entry.futures == 0 {
            // The watchers are gone, and there is nothing to make progress with.
            entry.progress = None;
            return true;
        }
        let all_follow = entry.cohorts.iter().all(|cohort| entry.synced == Some(*cohort));
        if !all_follow || entry.futures > 0 || at_least > self.current {
            return false;
        }
        let ids = [INVALID_WATCH_ID].as_slice().into();
        // Only into a queue with room: a client may ask without end and read nothing.
        let notice = Reply::Progress { ids, header: self.current };
        let Ok(waker) = self.stream(stream).queue.notice(notice) else { return false };
        self.wakers.extend(waker);
        self.stream_mut(stream).progress = None;
        true
    }

    /// When [`Hub::tick`] has something to do, in milliseconds of the driver's clock.
    pub fn next_tick(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
    }

    fn next_due(&mut self, now_ms: u64) -> u64 {
        // Never zero: a notice that is due again at once would never end.
        let interval = self.config.progress_interval_ms.max(1);
        let jitter = next_random(&mut self.random) % (interval * JITTER_PERCENT / 100 + 1);
        now_ms.saturating_add(interval + jitter)
    }

    /// Sends the notices that are due.
    pub fn tick(&mut self, now_ms: u64) {
        while let Some((due, stream)) = self.timers.first().copied() {
            if due > now_ms {
                break;
            }
            self.timers.pop_first();
            self.stream_mut(stream).timer = None;
            self.notify(stream);
            self.set_timer(stream, now_ms);
        }
    }

    /// A stream without watchers that want notices needs none.
    pub(super) fn set_timer(&mut self, stream: StreamId, now_ms: u64) {
        let entry = self.stream(stream);
        if entry.progress_watchers > 0 && entry.timer.is_none() {
            let due = self.next_due(now_ms);
            self.stream_mut(stream).timer = Some(due);
            self.timers.insert((due, stream));
        }
    }

    /// To watchers that follow, asked for notices, and were sent nothing since the last one was due.
    fn notify(&mut self, stream: StreamId) {
        let Some(cohort) = self.stream(stream).synced else { return };
        for group in self.cohorts[&cohort].groups.values() {
            let group = &mut self.groups[*group as usize];
            if !group.options.has(Options::PROGRESS) || std::mem::take(&mut group.active) {
                continue;
            }
            let notice = Reply::Progress { ids: group.shared_ids(), header: self.current };
            // Without room there is none this time.
            if let Ok(waker) = self.streams[stream as usize].queue.notice(notice) {
                self.wakers.extend(waker);
            }
        }
    }
}
