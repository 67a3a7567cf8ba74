//! One range request as a plan, and how its answer is made from the index: what is fetched, filtered, sorted and cut, in etcd's
//! order with etcd's quirks. Pure with respect to locks: the caller says how much may be gathered in one go.

use std::ops::ControlFlow;

use api::error::EtcdError;
use api::etcdserverpb::range_request::{SortOrder, SortTarget};
use api::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use api::mvccpb::KeyValue;
use bytes::Bytes;
use types::{KeyRange, RowId};

use crate::index::{Facts, Index, Record};
use crate::state::decode_row;
use crate::store::StoredRow;

/// A range request, understood.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub range: KeyRange,
    /// Keys in the answer; `usize::MAX` when unlimited.
    limit: usize,
    /// Keys to read: one more than the limit, or all when order or filters need all.
    pub fetch: usize,
    sort: Option<(SortTarget, bool)>,
    filters: Option<Filters>,
    keys_only: bool,
    pub count_only: bool,
}

#[derive(Clone, Copy, Debug)]
struct Filters {
    modified: (i64, i64),
    created: (i64, i64),
}

impl Filters {
    fn of(request: &RangeRequest) -> Option<Filters> {
        let bounds = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        // Zero is "off" for each of them.
        let low = |bound: i64| if bound == 0 { i64::MIN } else { bound };
        let high = |bound: i64| if bound == 0 { i64::MAX } else { bound };
        bounds.iter().any(|bound| *bound != 0).then(|| Filters {
            modified: (low(bounds[0]), high(bounds[1])),
            created: (low(bounds[2]), high(bounds[3])),
        })
    }

    fn pass(&self, modified: i64, created: i64) -> bool {
        (self.modified.0..=self.modified.1).contains(&modified)
            && (self.created.0..=self.created.1).contains(&created)
    }
}

impl Plan {
    pub fn new(request: &RangeRequest) -> Result<Plan, EtcdError> {
        let order = SortOrder::try_from(request.sort_order).map_err(|_| EtcdError::InvalidSortOption)?;
        let target = SortTarget::try_from(request.sort_target).map_err(|_| EtcdError::InvalidSortOption)?;
        // Ascending by key is how keys are read anyway. No order with another target sorts ascending, but only what the limit let in:
        // etcd's quirk.
        let (sort, sorts_all) = match (order, target) {
            (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => (None, false),
            (SortOrder::None, target) => (Some((target, false)), false),
            (SortOrder::Ascend, target) => (Some((target, false)), true),
            (SortOrder::Descend, target) => (Some((target, true)), true),
        };
        let filters = Filters::of(request);
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let fetch = if sorts_all || filters.is_some() { usize::MAX } else { limit.saturating_add(1) };
        Ok(Plan {
            range: KeyRange::from_request(&request.key, &request.range_end),
            limit,
            fetch,
            sort,
            filters,
            keys_only: request.keys_only,
            count_only: request.count_only,
        })
    }

    /// Keys in the answer; `usize::MAX` when unlimited.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Without the values that were not asked for.
    pub fn strip(&self, mut kvs: Vec<KeyValue>) -> Vec<KeyValue> {
        if self.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        kvs
    }

    /// True for one key without filters, whose count is what is found.
    pub fn is_plain_get(&self) -> bool {
        matches!(self.range, KeyRange::One(_)) && self.filters.is_none() && !self.count_only
    }

    /// True when values must be read.
    fn needs_values(&self) -> bool {
        !self.keys_only || matches!(self.sort, Some((SortTarget::Value, _)))
    }

    /// For "the last `limit` keys by name" only those need be read: how many live keys to skip, given how many there are.
    pub fn skips(&self, count: u64) -> u64 {
        let by_key_from_the_end =
            matches!(self.sort, Some((SortTarget::Key, true))) && self.filters.is_none();
        if by_key_from_the_end { count.saturating_sub((self.limit as u64).saturating_add(1)) } else { 0 }
    }

    /// Where reading starts and ends.
    pub fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        bounds(&self.range)
    }

    /// The answer from everything that was fetched.
    pub fn finish(&self, mut kvs: Vec<KeyValue>, count: u64, header_revision: i64) -> RangeResponse {
        if let Some(filters) = &self.filters {
            kvs.retain(|kv| filters.pass(kv.mod_revision, kv.create_revision));
        }
        if let Some((target, descending)) = self.sort {
            // Stable, so that members agree on ties; etcd promises nothing about them.
            match target {
                SortTarget::Key => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
                SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
                SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
                SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
                SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
            }
            if descending {
                kvs.reverse();
            }
        }
        let more = kvs.len() > self.limit;
        kvs.truncate(self.limit);
        let kvs = self.strip(kvs);
        let header = ResponseHeader { revision: header_revision, ..Default::default() };
        RangeResponse { header: Some(header), kvs, more, count: count as i64 }
    }
}

pub(crate) fn bounds(range: &KeyRange) -> (Vec<u8>, Option<Vec<u8>>) {
    let start = range.start().to_vec();
    let end = match range {
        KeyRange::One(key) => Some(after(key)),
        KeyRange::Span { end, .. } => Some(end.to_vec()),
        KeyRange::From(_) => None,
    };
    (start, end)
}

/// The smallest key above `key`.
pub(crate) fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// How much one hold of the lock may gather.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Keys taken.
    pub keys: usize,
    /// Bytes copied.
    pub bytes: usize,
    /// Keys looked at, since absent ones are not taken.
    pub visited: usize,
}

impl Bounds {
    pub const NONE: Bounds = Bounds { keys: usize::MAX, bytes: usize::MAX, visited: usize::MAX };
}

struct Item {
    /// Key and then value lie in the arena from here.
    start: usize,
    key_len: usize,
    value_len: usize,
    id: RowId,
    facts: Facts,
    /// The rest must be read from the store.
    missing: bool,
}

/// What was gathered from the index under the lock: keys and inline values in one piece of memory, and the coordinates of the rest.
pub(crate) struct Harvest {
    items: Vec<Item>,
    arena: Vec<u8>,
    /// Where to go on; None when the range is exhausted.
    pub resume: Option<Vec<u8>>,
}

impl Harvest {
    /// Gathers the keys that live at revision `at`, from `from` to below `end`.
    pub fn gather(
        index: &Index,
        plan: &Plan,
        from: &[u8],
        end: Option<&[u8]>,
        at: i64,
        bounds: Bounds,
    ) -> Harvest {
        let mut harvest = Harvest { items: Vec::new(), arena: Vec::new(), resume: None };
        if let KeyRange::One(key) = &plan.range {
            if let Some(record) = index.get(key) {
                harvest.take(plan, key, record, at);
            }
            return harvest;
        }
        let mut visited = 0;
        let stopped = index.walk(from, end, |key, record| {
            if harvest.items.len() >= bounds.keys
                || harvest.arena.len() >= bounds.bytes
                || visited >= bounds.visited
            {
                return ControlFlow::Break(key.to_vec());
            }
            visited += 1;
            harvest.take(plan, key, record, at);
            ControlFlow::Continue(())
        });
        if let ControlFlow::Break(next) = stopped {
            harvest.resume = Some(next);
        }
        harvest
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    fn take(&mut self, plan: &Plan, key: &[u8], record: &Record, at: i64) {
        let Some(version) = record.at(at) else { return };
        if version.is_dead() {
            return;
        }
        let newest = record.modified() <= at;
        let facts = if newest { record.facts() } else { Facts::default() };
        if newest && plan.filters.is_some_and(|filters| !filters.pass(record.modified(), facts.created)) {
            return;
        }
        let value = if newest && plan.needs_values() { record.value() } else { None };
        let missing = !newest || (plan.needs_values() && value.is_none());
        let start = self.arena.len();
        let value_len = value.map_or(0, <[u8]>::len);
        if self.items.is_empty() && matches!(plan.range, KeyRange::One(_)) {
            self.arena.reserve_exact(key.len() + value_len);
            self.items.reserve_exact(1);
        }
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value.unwrap_or_default());
        self.items.push(Item { start, key_len: key.len(), value_len, id: version.id(), facts, missing });
    }

    /// Completes the key-values with rows that `fetch` reads. None when a row is gone, which only compaction can cause.
    pub fn resolve(
        self,
        plan: &Plan,
        out: &mut Vec<KeyValue>,
        fetch: impl FnOnce(&[RowId]) -> Vec<Option<StoredRow>>,
    ) -> Option<()> {
        let missing: Vec<RowId> = self.items.iter().filter(|item| item.missing).map(|item| item.id).collect();
        let mut rows = if missing.is_empty() { Vec::new() } else { fetch(&missing) }.into_iter();
        let arena = Bytes::from(self.arena);
        out.reserve(self.items.len());
        for item in self.items {
            let value_start = item.start + item.key_len;
            if item.missing {
                let row = rows.next().expect("one row for each that was asked")?;
                let mut kv = decode_row(item.id, &row);
                kv.key = arena.slice(item.start..value_start);
                if !plan.needs_values() {
                    (kv.value, kv.lease) = (Bytes::new(), 0);
                }
                out.push(kv);
                continue;
            }
            out.push(KeyValue {
                key: arena.slice(item.start..value_start),
                value: arena.slice(value_start..value_start + item.value_len),
                create_revision: item.facts.created,
                mod_revision: item.id.main.0,
                version: item.facts.version,
                // Without values the answer comes from the index alone and names no lease, since 3.7.
                lease: if plan.needs_values() { item.facts.lease } else { 0 },
            });
        }
        Some(())
    }
}

/// Live keys at revision `at` from `from` on, counting at most `visited_max` keys; also where to go on.
pub(crate) fn count_walking(
    index: &Index,
    from: &[u8],
    end: Option<&[u8]>,
    at: i64,
    visited_max: usize,
) -> (u64, Option<Vec<u8>>) {
    let (mut count, mut visited) = (0, 0);
    let stopped = index.walk(from, end, |key, record| {
        if visited == visited_max {
            return ControlFlow::Break(key.to_vec());
        }
        visited += 1;
        count += u64::from(record.at(at).is_some_and(|version| !version.is_dead()));
        ControlFlow::Continue(())
    });
    match stopped {
        ControlFlow::Break(next) => (count, Some(next)),
        ControlFlow::Continue(()) => (count, None),
    }
}
