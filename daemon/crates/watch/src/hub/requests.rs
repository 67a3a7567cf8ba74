//! What a client asks on its stream: create, cancel, progress. Each is answered on the same stream, whatever goes wrong; the stream goes
//! on. The texts of refusals are etcd's.

use api::{
    error::EtcdError,
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
};
use bytes::Bytes;
use types::{KeyRange, Revision};

use super::{Future, FutureKey, Hub, Options, Place, Stream, StreamId};
use crate::{gauges::Gauges, hub::cohorts::State, queue::Reply};

/// etcd's texts for a watch that cannot be created.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// One message of the client, or what the edge found wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Create(WatchCreateRequest),
    /// A create that must not be (permission); refused in order with the others.
    Refuse(String),
    Cancel(i64),
    Progress,
}

/// The store after the request came in. It may be ahead of what the hub was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreNow {
    pub revision: Revision,
    pub compacted: Revision,
}

impl Hub {
    /// `weight` was admitted by the stream's queue and is given back with the reply.
    pub fn request(&mut self, stream: u64, request: Request, weight: usize, store: StoreNow, now_ms: u64) {
        let Some(&stream) = self.stream_ids.get(&stream) else { return };
        let now = store.revision.max(self.current);
        match request {
            Request::Create(create) => {
                let reply = match self.check(stream, &create) {
                    Err(reason) => Reply::Refused { reason, header: now },
                    Ok((range, id)) => {
                        // The reply goes first: nothing may come before it.
                        self.reply(stream, Reply::Created { id, header: now }, weight);
                        self.create(stream, range, id, &create, StoreNow { revision: now, ..store });
                        self.set_timer(stream, now_ms);
                        return;
                    }
                };
                self.reply(stream, reply, weight);
            }
            Request::Refuse(reason) => self.reply(stream, Reply::Refused { reason, header: now }, weight),
            Request::Cancel(id) => {
                if self.remove_watcher(stream, id) {
                    self.reply(stream, Reply::Canceled { id, header: now }, weight);
                } else {
                    self.release(stream, weight);
                }
            }
            Request::Progress => {
                self.release(stream, weight);
                self.ask_progress(stream, now);
            }
        }
    }

    fn release(&mut self, stream: StreamId, weight: usize) {
        let waker = self.stream(stream).queue.release(weight);
        self.wakers.extend(waker);
    }

    /// Answers what is watched and under which id.
    fn check(&mut self, stream: StreamId, create: &WatchCreateRequest) -> Result<(KeyRange, i64), String> {
        if create.start_revision < 0 {
            return Err(EtcdError::Compacted.text().to_owned());
        }
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
        let range = KeyRange::from_request(&key, &create.range_end);
        if matches!(&range, KeyRange::Span { start, end } if end <= start) {
            return Err(EMPTY_RANGE.to_owned());
        }
        let id = self.stream_mut(stream).take_id(create.watch_id).ok_or(DUPLICATE_ID)?;
        Ok((range, id))
    }

    fn create(
        &mut self,
        stream: StreamId,
        range: KeyRange,
        id: i64,
        create: &WatchCreateRequest,
        store: StoreNow,
    ) {
        Gauges::add(&self.gauges.watchers, 1);
        let options = options(create);
        if options.has(Options::PROGRESS) {
            self.stream_mut(stream).progress_watchers += 1;
        }
        let range = self.ranges.hold(range);
        let explicit = create.start_revision > 0;
        let next = if explicit { Revision(create.start_revision) } else { store.revision.next() };
        if next > self.current && (explicit || next > self.current.next()) {
            let key = FutureKey { next, explicit, stream, id };
            self.futures.insert(key, Future { range, options });
            let stream = self.stream_mut(stream);
            stream.watchers.insert(id, Place::Future(key));
            stream.futures += 1;
            return;
        }
        if next > self.current {
            self.follow(stream, id, range, options);
        } else {
            // Before it is put with others, who may be served without the store.
            self.compact(store.compacted);
            let cohort = match self.stream(stream).waiting.get(&next) {
                Some(cohort) => *cohort,
                None => {
                    let cohort = self.add_cohort(stream, next, State::Ready);
                    self.ready.push_back(cohort);
                    cohort
                }
            };
            self.add_watcher(cohort, id, range, options);
            // Recent history may still have it, but a client is told the same by every member.
            if next < self.compacted {
                self.cancel_compacted(cohort);
            }
        }
        self.ranges.release(range);
    }

    /// False when there is no such watch.
    pub(super) fn remove_watcher(&mut self, stream: StreamId, id: i64) -> bool {
        let Some(place) = self.stream_mut(stream).watchers.remove(&id) else { return false };
        let options = match place {
            Place::Dead => return true,
            Place::Future(key) => {
                let future = self.futures.remove(&key).expect("a watcher waits where it says");
                self.ranges.release(future.range);
                self.stream_mut(stream).futures -= 1;
                future.options
            }
            Place::Group { group, at } => {
                let options = self.groups[group as usize].options;
                self.leave_group(group, at);
                options
            }
        };
        self.uncount(stream, options);
        true
    }

    /// One watcher less, wherever it was.
    pub(super) fn uncount(&mut self, stream: StreamId, options: Options) {
        Gauges::add(&self.gauges.watchers, -1);
        if options.has(Options::PROGRESS) {
            self.stream_mut(stream).progress_watchers -= 1;
        }
    }
}

impl Stream {
    /// Zero: the server gives the next free one, and never the same twice. None when the id is in use.
    fn take_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.watchers.contains_key(&wanted)).then_some(wanted);
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }
}

fn options(create: &WatchCreateRequest) -> Options {
    let mut bits = 0;
    for filter in &create.filters {
        bits |= match FilterType::try_from(*filter) {
            Ok(FilterType::Noput) => Options::NO_PUT,
            Ok(FilterType::Nodelete) => Options::NO_DELETE,
            // Of a later version: etcd ignores it.
            Err(_) => 0,
        };
    }
    for (asked, bit) in [
        (create.prev_kv, Options::PREVIOUS),
        (create.fragment, Options::FRAGMENT),
        (create.progress_notify, Options::PROGRESS),
    ] {
        bits |= if asked { bit } else { 0 };
    }
    Options(bits)
}
