//! From the log of a stream to watches: which reply belongs to which create request, what each watch was told and in which order.
//! Replies to create requests come in the order of the requests. What cannot be paired is a violation of the rule `created`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use api::{
    etcdserverpb::{WatchCreateRequest, WatchResponse, watch_request::RequestUnion},
    mvccpb::Event,
};

use super::{StreamLog, Subscription, Violation, What, history};

const RULE: &str = "created";

/// The id of replies that speak for a whole stream or for a refused create.
const NO_WATCH: i64 = -1;

/// Events that belong together: one response, or the fragments that make one.
#[derive(Clone, Debug, Default)]
pub struct Delivery<'a> {
    pub at: Duration,
    pub events: Vec<&'a Event>,
    pub header_revision: i64,
    /// 1 when it was not fragmented.
    pub parts: usize,
}

#[derive(Clone, Debug)]
pub enum Seen<'a> {
    Events(Delivery<'a>),
    /// A response without events: everything up to this revision was delivered.
    Bookmark {
        revision: i64,
        whole_stream: bool,
    },
    /// The last word of a watch.
    Canceled {
        at: Duration,
        response: &'a WatchResponse,
    },
}

/// One watch on one stream.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    /// For messages.
    pub name: String,
    pub subscription: Option<Subscription>,
    pub create: &'a WatchCreateRequest,
    pub requested_at: Duration,
    /// The reply to the create request; a refusal is created and canceled.
    pub created: Option<&'a WatchResponse>,
    /// When the client asked to cancel it, if it did.
    pub cancel_requested_at: Option<Duration>,
    /// Events of an unfinished sequence of fragments are not among them.
    pub seen: Vec<Seen<'a>>,
}

impl Watch<'_> {
    /// First revision it must deliver; None while nothing was promised.
    pub fn start(&self) -> Option<i64> {
        let created = self.created.filter(|reply| !reply.canceled)?;
        match self.create.start_revision {
            0 => Some(created.header.map_or(0, |header| header.revision) + 1),
            start => Some(start),
        }
    }

    pub fn deliveries(&self) -> impl Iterator<Item = &Delivery<'_>> {
        self.seen.iter().filter_map(|seen| match seen {
            Seen::Events(delivery) => Some(delivery),
            _ => None,
        })
    }

    pub fn last_event_revision(&self) -> Option<i64> {
        self.deliveries().flat_map(|delivery| &delivery.events).map(|event| history::revision(event)).max()
    }

    /// Everything up to here was delivered or promised to be; the next watch of the subscription begins behind it.
    pub fn position(&self) -> Option<i64> {
        let mut position = self.start()? - 1;
        for seen in &self.seen {
            let reached = match seen {
                Seen::Events(delivery) => {
                    delivery.events.iter().map(|event| history::revision(event)).max().unwrap_or(0)
                }
                Seen::Bookmark { revision, .. } => *revision,
                Seen::Canceled { .. } => 0,
            };
            position = position.max(reached);
        }
        Some(position)
    }

    /// The compact revision it was canceled with.
    pub fn compacted(&self) -> Option<i64> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Canceled { response, .. } if response.compact_revision > 0 => {
                Some(response.compact_revision)
            }
            _ => None,
        })
    }
}

struct Pairing<'a> {
    watches: Vec<Watch<'a>>,
    /// Index of watches without a reply.
    pending: VecDeque<usize>,
    /// Running watches by id.
    live: BTreeMap<i64, usize>,
    /// Canceled by compaction: a request to cancel that was on its way by then is answered all the same, since the id is still taken.
    compacted: BTreeMap<i64, usize>,
    /// Ids the server chose before.
    chosen: BTreeSet<i64>,
    /// Fragments so far, by id.
    partial: BTreeMap<i64, Delivery<'a>>,
    violations: Vec<Violation>,
}

/// The watches of a stream in the order of their requests, and what could not be understood.
pub fn sessions(stream: &StreamLog) -> (Vec<Watch<'_>>, Vec<Violation>) {
    let mut pairing = Pairing {
        watches: Vec::new(),
        pending: VecDeque::new(),
        live: BTreeMap::new(),
        compacted: BTreeMap::new(),
        chosen: BTreeSet::new(),
        partial: BTreeMap::new(),
        violations: Vec::new(),
    };
    for entry in &stream.entries {
        match &entry.what {
            What::Sent(request, subscription) => match &request.request_union {
                Some(RequestUnion::CreateRequest(create)) => {
                    pairing.pending.push_back(pairing.watches.len());
                    let key = String::from_utf8_lossy(&create.key);
                    pairing.watches.push(Watch {
                        name: format!("{}, watch {} of {key:?}", stream.name, pairing.watches.len()),
                        subscription: *subscription,
                        create,
                        requested_at: entry.at,
                        created: None,
                        cancel_requested_at: None,
                        seen: Vec::new(),
                    });
                }
                Some(RequestUnion::CancelRequest(cancel)) => pairing.cancel(cancel.watch_id, entry.at),
                Some(RequestUnion::ProgressRequest(_)) | None => {}
            },
            What::Received(response) if response.created => pairing.created(&stream.name, response),
            What::Received(response) => pairing.received(&stream.name, response, entry.at),
            What::Ended(_) => break,
        }
    }
    (pairing.watches, pairing.violations)
}

impl<'a> Pairing<'a> {
    fn broken(&mut self, stream: &str, text: String) {
        self.violations.push(Violation::new(RULE, format!("{stream}: {text}")));
    }

    fn cancel(&mut self, id: i64, at: Duration) {
        let waiting = || {
            let mut waiting = self.pending.iter().copied();
            waiting.find(|index| id != 0 && self.watches[*index].create.watch_id == id)
        };
        if let Some(index) = self.live.get(&id).copied().or_else(waiting) {
            self.watches[index].cancel_requested_at.get_or_insert(at);
        }
    }

    fn created(&mut self, stream: &str, response: &'a WatchResponse) {
        if !response.events.is_empty() {
            self.broken(stream, "a reply to a create request carries events".to_owned());
        }
        let Some(index) = self.pending.pop_front() else {
            return self.broken(stream, format!("created, and nobody asked: {response:?}"));
        };
        self.watches[index].created = Some(response);
        let create = self.watches[index].create;
        let id = response.watch_id;
        if response.canceled {
            if id != NO_WATCH {
                self.broken(stream, format!("a refused create has id {id}, not {NO_WATCH}"));
            }
            return;
        }
        if id < 0 && create.watch_id >= 0 {
            self.broken(stream, format!("id {id} is none for a watch"));
        }
        if create.watch_id != 0 && id != create.watch_id {
            self.broken(stream, format!("asked for id {}, got {id}", create.watch_id));
        }
        if create.watch_id == 0 && !self.chosen.insert(id) {
            self.broken(stream, format!("the server chose id {id} twice"));
        }
        if self.live.insert(id, index).is_some() {
            self.broken(stream, format!("id {id} was in use"));
        }
    }

    fn received(&mut self, stream: &str, response: &'a WatchResponse, at: Duration) {
        let id = response.watch_id;
        let header_revision = response.header.map_or(0, |header| header.revision);
        let index = self.live.get(&id).copied();
        if id == NO_WATCH && index.is_none() {
            if !response.events.is_empty() || response.canceled {
                return self.broken(stream, format!("for no watch, yet not mere progress: {response:?}"));
            }
            for index in self.live.values() {
                self.watches[*index]
                    .seen
                    .push(Seen::Bookmark { revision: header_revision, whole_stream: true });
            }
            return;
        }
        let Some(index) = index else {
            let late = self.compacted.get(&id).map(|index| &self.watches[*index]);
            let late = late.is_some_and(|watch| watch.cancel_requested_at.is_some_and(|asked| asked <= at));
            if late && response.canceled && response.compact_revision == 0 && response.events.is_empty() {
                self.compacted.remove(&id);
                return;
            }
            let text = format!(
                "id {id} is not a running watch: {} events at {header_revision}, canceled {}",
                response.events.len(),
                response.canceled
            );
            return self.broken(stream, text);
        };
        if response.canceled {
            self.live.remove(&id);
            self.partial.remove(&id);
            if response.compact_revision > 0 {
                self.compacted.insert(id, index);
            }
            self.watches[index].seen.push(Seen::Canceled { at, response });
            return;
        }
        if response.fragment && !self.watches[index].create.fragment {
            self.broken(stream, format!("watch {id} did not ask for fragments"));
        }
        if response.events.is_empty() {
            if self.partial.contains_key(&id) || response.fragment {
                self.broken(stream, format!("watch {id}: an empty response amid fragments"));
            }
            self.watches[index].seen.push(Seen::Bookmark { revision: header_revision, whole_stream: false });
            return;
        }
        let mut delivery = self.partial.remove(&id).unwrap_or_default();
        delivery.events.extend(&response.events);
        delivery.parts += 1;
        delivery.at = at;
        delivery.header_revision = header_revision;
        if response.fragment {
            self.partial.insert(id, delivery);
        } else {
            self.watches[index].seen.push(Seen::Events(delivery));
        }
    }
}
