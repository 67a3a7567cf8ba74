//! The watches of one call: which answer belongs to which, and from where each goes on after the call is lost. Pure: answers in,
//! news and requests out.
//!
//! A watch goes on at the revision after the last change it showed, or after a progress notice of its own, which promises that
//! nothing older is to come. A notice for the whole call is not counted: servers before etcd 3.5.8 may send it ahead of changes.

use super::request::Wanted;
use api::etcdserverpb::watch_request::RequestUnion;
use api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;

/// The id in answers that concern no watch in particular.
const NO_WATCH: i64 = -1;

/// What an answer means for the user.
#[derive(Debug, PartialEq)]
pub enum News {
    Events {
        watcher: usize,
        response: WatchResponse,
    },
    /// `manual`: somebody asked for it.
    Progress {
        manual: bool,
        response: WatchResponse,
    },
    /// The server ended this watch.
    Canceled {
        watcher: usize,
        response: WatchResponse,
    },
}

struct Watcher {
    wanted: Wanted,
    /// The first revision that was not shown yet; 0 while nobody knows what "now" is.
    next: i64,
    open: bool,
}

/// All watches of a command, in the order they were asked for.
#[derive(Default)]
pub struct Watchers {
    all: Vec<Watcher>,
    /// Requests without an answer; servers answer them in order.
    asked: VecDeque<usize>,
    by_id: HashMap<i64, usize>,
}

impl Watchers {
    /// Takes a new watch; the request is to be sent before any other.
    pub fn add(&mut self, wanted: Wanted) -> WatchRequest {
        let next = wanted.create.start_revision;
        self.all.push(Watcher { wanted, next, open: true });
        self.ask(self.all.len() - 1)
    }

    fn ask(&mut self, watcher: usize) -> WatchRequest {
        self.asked.push_back(watcher);
        let Watcher { wanted, next, .. } = &self.all[watcher];
        let create = WatchCreateRequest { start_revision: *next, ..wanted.create.clone() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }

    /// The requests that make a new call go on where the lost one was.
    pub fn resume(&mut self) -> Vec<WatchRequest> {
        self.asked.clear();
        self.by_id.clear();
        let open: Vec<usize> = (0..self.all.len()).filter(|i| self.all[*i].open).collect();
        open.into_iter().map(|watcher| self.ask(watcher)).collect()
    }

    /// A canceled watch again, with a gap before `revision`, if its user agreed to gaps.
    pub fn skip_to(&mut self, watcher: usize, revision: i64) -> Option<WatchRequest> {
        let of = &mut self.all[watcher];
        if !of.wanted.resume_after_compaction {
            return None;
        }
        of.next = revision.max(of.next);
        of.open = true;
        Some(self.ask(watcher))
    }

    pub fn command(&self, watcher: usize) -> &[OsString] {
        &self.all[watcher].wanted.command
    }

    /// The first revision this watch has not shown.
    pub fn next(&self, watcher: usize) -> i64 {
        self.all[watcher].next
    }

    /// " from revision 7", or how many watches go on.
    pub fn from(&self) -> String {
        let mut open = self.all.iter().filter(|watcher| watcher.open);
        match (open.next(), open.count()) {
            (Some(only), 0) if only.next > 0 => format!(" from revision {}", only.next),
            (Some(_), 0) | (None, _) => String::new(),
            (Some(_), others) => format!(" with {} watches", others + 1),
        }
    }

    pub fn take(&mut self, mut response: WatchResponse) -> Vec<News> {
        let revision = response.header.unwrap_or_default().revision;
        if response.created {
            let Some(watcher) = self.asked.pop_front() else { return Vec::new() };
            if response.canceled {
                self.all[watcher].open = false;
                // etcd's client hands out an answer of its own for a watch that never began.
                let response = WatchResponse {
                    canceled: true,
                    cancel_reason: response.cancel_reason,
                    ..Default::default()
                };
                return vec![News::Canceled { watcher, response }];
            }
            self.by_id.insert(response.watch_id, watcher);
            let next = &mut self.all[watcher].next;
            if *next == 0 {
                *next = revision + 1;
            }
            return Vec::new();
        }
        if response.watch_id == NO_WATCH && response.events.is_empty() && !response.canceled {
            // One notice for each watch, as etcd's client hands it out.
            let notice = || News::Progress { manual: true, response: response.clone() };
            return self.by_id.iter().map(|_| notice()).collect();
        }
        let Some(&watcher) = self.by_id.get(&response.watch_id) else { return Vec::new() };
        let of = &mut self.all[watcher];
        if response.canceled {
            of.open = false;
            self.by_id.remove(&response.watch_id);
            return vec![News::Canceled { watcher, response }];
        }
        if response.events.is_empty() {
            of.next = of.next.max(revision + 1);
            return vec![News::Progress { manual: false, response }];
        }
        let mod_revision =
            |event: &api::mvccpb::Event| event.kv.as_ref().map_or(i64::MAX, |kv| kv.mod_revision);
        response.events.retain(|event| mod_revision(event) >= of.next);
        match response.events.last() {
            None => Vec::new(),
            Some(last) => {
                of.next = mod_revision(last).saturating_add(1);
                vec![News::Events { watcher, response }]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::ResponseHeader;
    use api::mvccpb::{Event, KeyValue};

    fn wanted(rev: i64) -> Wanted {
        let create = WatchCreateRequest { key: "k".into(), start_revision: rev, ..Default::default() };
        Wanted { create, command: Vec::new(), resume_after_compaction: false }
    }

    fn response(watch_id: i64, revision: i64) -> WatchResponse {
        let header = Some(ResponseHeader { revision, ..Default::default() });
        WatchResponse { header, watch_id, ..Default::default() }
    }

    fn created(watch_id: i64, revision: i64) -> WatchResponse {
        WatchResponse { created: true, ..response(watch_id, revision) }
    }

    fn events(watch_id: i64, revisions: &[i64]) -> WatchResponse {
        let event = |revision: &i64| {
            let kv = KeyValue { mod_revision: *revision, ..Default::default() };
            Event { kv: Some(kv), ..Default::default() }
        };
        WatchResponse { events: revisions.iter().map(event).collect(), ..response(watch_id, 99) }
    }

    fn resumed_from(watchers: &mut Watchers) -> Vec<i64> {
        let from = |request: WatchRequest| match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => create.start_revision,
            other => panic!("not a create: {other:?}"),
        };
        watchers.resume().into_iter().map(from).collect()
    }

    fn shown(news: &[News]) -> Vec<i64> {
        let events = news.iter().flat_map(|news| match news {
            News::Events { response, .. } => response.events.clone(),
            _ => Vec::new(),
        });
        events.map(|event| event.kv.unwrap().mod_revision).collect()
    }

    #[test]
    fn a_watch_goes_on_after_the_last_change_it_showed() {
        let mut watchers = Watchers::default();
        watchers.add(wanted(0));
        watchers.add(wanted(5));
        assert_eq!(resumed_from(&mut watchers), [0, 5], "nobody has promised a revision yet");
        watchers.take(created(0, 20));
        watchers.take(created(1, 20));
        assert_eq!(resumed_from(&mut watchers), [21, 5], "now is the revision of the first answer");
        watchers.take(created(3, 30));
        watchers.take(created(2, 30));
        watchers.take(events(2, &[6, 7, 7]));
        assert_eq!(resumed_from(&mut watchers), [21, 8]);
    }

    #[test]
    fn what_a_new_call_repeats_is_not_shown_again() {
        let mut watchers = Watchers::default();
        watchers.add(wanted(5));
        watchers.take(created(0, 20));
        assert_eq!(shown(&watchers.take(events(0, &[5, 6]))), [5, 6]);
        watchers.resume();
        watchers.take(created(0, 20));
        assert_eq!(shown(&watchers.take(events(0, &[6, 7]))), [7]);
    }

    #[test]
    fn only_a_notice_of_its_own_moves_a_watch() {
        let mut watchers = Watchers::default();
        watchers.add(wanted(5));
        watchers.take(created(0, 20));
        assert!(matches!(watchers.take(response(-1, 40))[..], [News::Progress { manual: true, .. }]));
        assert_eq!(watchers.next(0), 5);
        assert!(matches!(watchers.take(response(0, 40))[..], [News::Progress { manual: false, .. }]));
        assert_eq!(resumed_from(&mut watchers), [41]);
    }

    #[test]
    fn refused_and_canceled_watches_are_not_resumed() {
        let mut watchers = Watchers::default();
        watchers.add(wanted(1));
        watchers.add(wanted(2));
        watchers.add(wanted(3));
        let refused = WatchResponse { canceled: true, ..created(-1, 9) };
        assert!(matches!(watchers.take(refused)[..], [News::Canceled { watcher: 0, .. }]));
        watchers.take(created(0, 9));
        watchers.take(created(1, 9));
        let gone = WatchResponse { canceled: true, compact_revision: 8, ..response(0, 0) };
        assert!(matches!(watchers.take(gone)[..], [News::Canceled { watcher: 1, .. }]));
        assert_eq!(watchers.skip_to(1, 8), None, "nobody agreed to a gap");
        assert_eq!(resumed_from(&mut watchers), [3]);
    }

    #[test]
    fn a_gap_is_left_only_for_those_who_asked() {
        let mut watchers = Watchers::default();
        watchers.add(Wanted { resume_after_compaction: true, ..wanted(3) });
        watchers.take(created(0, 9));
        watchers.take(WatchResponse { canceled: true, compact_revision: 8, ..response(0, 0) });
        assert!(watchers.skip_to(0, 8).is_some());
        watchers.take(created(1, 9));
        assert_eq!(shown(&watchers.take(events(1, &[8, 9]))), [8, 9]);
    }
}
