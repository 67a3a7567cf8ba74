//! Reads beside apply. A reader pins a revision, gathers what it needs in bounded holds of the index lock, and reads what is not in
//! memory from the store without any lock. What it answers is the state at the pinned revision, whatever is applied meanwhile.
//!
//! Compaction can overtake a pinned read. A read at an asked revision then answers "compacted"; one at the current revision starts
//! again, and after a few times reads in one hold.
//!
//! Not here: waiting until enough is applied (the caller's read gate), permissions.

use std::sync::Arc;

use api::error::EtcdError;
use api::etcdserverpb::{
    AlarmMember, AlarmType, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse, request_op::Request, response_op::Response,
};
use api::mvccpb::KeyValue;
use identity::Unique;
use parking_lot::RwLockReadGuard;
use types::{ConfState, LogIndex, LogPosition, MemberId, Revision};

use crate::apply::txn;
use crate::cluster::Downgrade;
use crate::identities::Identified;
use crate::index::IndexSize;
use crate::membership::{Member, Membership};
use crate::range::{Bounds, Harvest, Plan, count_walking};
use crate::state::{Options, Shared, State, fetch};
use crate::store::{Store, StoreSize};

/// One hold of the index lock: some tens of microseconds, which is what apply may wait for a reader.
const CHUNK: Bounds = Bounds { keys: 1024, bytes: 256 * 1024, visited: 4096 };
/// Key-values for which room is made at once: filters may leave less of a range than its count says.
const EXPECTED_MAX: usize = 256 * 1024;
/// Starts of a read at the current revision before it gives up reading beside apply.
const OVERTAKEN_MAX: usize = 3;

/// A cheap handle for reading; usable on any thread while apply runs.
#[derive(Debug)]
pub struct Reader<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Reader { shared: Arc::clone(&self.shared) }
    }
}

/// Compaction passed the pinned revision while it was being read.
#[derive(Debug)]
pub(crate) struct Overtaken;

impl<S: Store> Reader<S> {
    /// `quota-backend-bytes` from the next batch of entries on, written as in [`crate::Options`].
    pub fn set_quota(&self, quota_backend_bytes: i64) {
        self.shared.quota_backend_bytes.store(quota_backend_bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Answers a range at the current or the asked revision, locally. The header carries the revision at which it was read, nothing
    /// else. `serializable` is the caller's business.
    ///
    /// # Errors
    /// `Compacted`, `FutureRev`, and `InvalidSortOption` for numbers outside the enums.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        let plan = Plan::new(request)?;
        for _ in 0..OVERTAKEN_MAX {
            let state = self.shared.state.read();
            let at = readable(&state, request.revision)?;
            let header = state.revision;
            match self.range_at(&plan, at, header, state) {
                Ok(response) => return Ok(response),
                Err(Overtaken) if request.revision > 0 => return Err(EtcdError::Compacted),
                Err(Overtaken) => {}
            }
        }
        let state = self.shared.state.read();
        let at = readable(&state, request.revision)?;
        whole(&state, state.revision, &plan, at, |ids| fetch(&*self.shared.store, ids))
            .ok_or(EtcdError::Compacted)
    }

    /// Reads in bounded holds; the first one is already taken and belongs to the moment of pinning.
    fn range_at(
        &self,
        plan: &Plan,
        at: i64,
        header: i64,
        first: RwLockReadGuard<'_, State>,
    ) -> Result<RangeResponse, Overtaken> {
        if first.compacted > at {
            return Err(Overtaken);
        }
        let mut kvs = Vec::new();
        if plan.is_plain_get() {
            // By far the most frequent read: one descent answers both the key and the count.
            let harvest = Harvest::gather(&first.index, plan, &[], None, at, Bounds::NONE);
            drop(first);
            let count = harvest.len() as u64;
            harvest.resolve(plan, &mut kvs, |ids| fetch(&*self.shared.store, ids)).ok_or(Overtaken)?;
            return Ok(plan.finish(kvs, count, header));
        }
        let count = self.count_if_cheap(&first, plan, at);
        if plan.count_only {
            drop(first);
        } else {
            let from = skip(&first, first.revision, plan, at, count).unwrap_or_else(|| plan.bounds().0);
            let expected = usize::try_from(count.unwrap_or(0)).map_or(0, |count| count.min(plan.fetch));
            kvs = self.gather(plan, at, from, plan.fetch, expected, Some(first))?;
        }
        let count = match count {
            Some(count) => count,
            None => self.count_at(plan, at)?,
        };
        Ok(plan.finish(kvs, count, header))
    }

    /// Up to `keys` key-values of the plan's range at revision `at`, beginning at `from`, in bounded holds. `expected` of them, as far
    /// as that is known, spares moving them while the list grows.
    pub(crate) fn gather(
        &self,
        plan: &Plan,
        at: i64,
        mut from: Vec<u8>,
        keys: usize,
        expected: usize,
        mut hold: Option<RwLockReadGuard<'_, State>>,
    ) -> Result<Vec<KeyValue>, Overtaken> {
        let end = plan.bounds().1;
        let mut kvs = Vec::with_capacity(expected.min(EXPECTED_MAX));
        loop {
            let state = hold.take().unwrap_or_else(|| self.shared.state.read());
            if state.compacted > at {
                return Err(Overtaken);
            }
            let bounds = Bounds { keys: CHUNK.keys.min(keys - kvs.len()), ..CHUNK };
            let mut harvest = Harvest::gather(&state.index, plan, &from, end.as_deref(), at, bounds);
            drop(state);
            let resume = harvest.resume.take();
            let is_full = kvs.len() + harvest.len() >= keys;
            harvest.resolve(plan, &mut kvs, |ids| fetch(&*self.shared.store, ids)).ok_or(Overtaken)?;
            match resume {
                Some(next) if !is_full => from = next,
                _ => return Ok(kvs),
            }
        }
    }

    /// The count without a walk: at the current revision, or one of a moment ago.
    pub(crate) fn count_if_cheap(&self, state: &State, plan: &Plan, at: i64) -> Option<u64> {
        count_now(state, state.revision, plan, at)
    }

    /// Counts at a revision of the past, in bounded holds.
    pub(crate) fn count_at(&self, plan: &Plan, at: i64) -> Result<u64, Overtaken> {
        let (mut from, end) = plan.bounds();
        let mut total = 0;
        loop {
            let state = self.shared.state.read();
            if state.compacted > at {
                return Err(Overtaken);
            }
            let (count, resume) = count_walking(&state.index, &from, end.as_deref(), at, CHUNK.visited);
            total += count;
            match resume {
                Some(next) => from = next,
                None => return Ok(total),
            }
        }
    }

    /// Answers a txn that only reads, at one revision. Ops other than ranges and nested txns of ranges are not executed here: the
    /// caller sends such a txn through the log.
    ///
    /// # Errors
    /// As apply would refuse it: `Compacted` or `FutureRev` for a range on the chosen path.
    pub fn txn_read_only(&self, request: &TxnRequest) -> Result<TxnResponse, EtcdError> {
        assert!(is_read_only(request), "a txn that writes goes through the log");
        for _ in 0..OVERTAKEN_MAX {
            if let Ok(response) = self.try_txn(request)? {
                return Ok(response);
            }
        }
        let state = self.shared.state.read();
        let view = txn::View { index: &state.index, fetch: &|ids| fetch(&*self.shared.store, ids) };
        let path = txn::choose(&view, request);
        let ops = chosen(request, path[0]);
        let mut responses = Vec::with_capacity(ops.len());
        for range in check_ranges(&state, ops)? {
            let plan = Plan::new(range)?;
            let at = readable(&state, range.revision)?;
            let answer = whole(&state, state.revision, &plan, at, |ids| fetch(&*self.shared.store, ids));
            responses.push(answer.ok_or(EtcdError::Compacted)?);
        }
        Ok(txn_response(state.revision, path[0], responses))
    }

    fn try_txn(&self, request: &TxnRequest) -> Result<Result<TxnResponse, Overtaken>, EtcdError> {
        let state = self.shared.state.read();
        let view = txn::View { index: &state.index, fetch: &|ids| fetch(&*self.shared.store, ids) };
        let path = txn::choose(&view, request);
        let ops = chosen(request, path[0]);
        let header = state.revision;
        let ranges = check_ranges(&state, ops)?;
        drop(state);
        let mut responses = Vec::with_capacity(ranges.len());
        for range in ranges {
            let plan = Plan::new(range)?;
            let at = if range.revision > 0 { range.revision } else { header };
            match self.range_at(&plan, at, header, self.shared.state.read()) {
                Ok(response) => responses.push(response),
                Err(overtaken) => return Ok(Err(overtaken)),
            }
        }
        Ok(Ok(txn_response(header, path[0], responses)))
    }

    pub fn revision(&self) -> Revision {
        Revision(self.shared.state.read().revision)
    }

    /// -1 when never compacted.
    pub fn compact_revision(&self) -> Revision {
        Revision(self.shared.state.read().compacted)
    }

    pub fn applied(&self) -> LogPosition {
        self.shared.state.read().applied
    }

    /// Ascending by id.
    pub fn members(&self) -> Vec<Member> {
        self.shared.state.read().membership.members()
    }

    pub fn member(&self, id: MemberId) -> Option<Member> {
        self.shared.state.read().membership.member(id).cloned()
    }

    pub fn removed_members(&self) -> Vec<MemberId> {
        self.shared.state.read().membership.removed()
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.shared.state.read().membership.is_removed(id)
    }

    /// What is written down about a member, about one that was, or about nobody.
    pub fn identity_of(&self, id: MemberId) -> Identified {
        let state = self.shared.state.read();
        state.identities.of(id, &state.membership)
    }

    /// First and last of the newest entries without a gap that were notes, as far as this process has applied them.
    pub fn newest_notes(&self) -> Option<(LogIndex, LogIndex)> {
        self.shared.state.read().identities.notes
    }

    /// The life of the cluster that this state belongs to. None until the first leader has written it down.
    pub fn cluster_uuid(&self) -> Option<Unique> {
        self.shared.state.read().identities.cluster_uuid
    }

    /// The life that this one continues, after a restore or a forced new cluster.
    pub fn parent_uuid(&self) -> Option<Unique> {
        self.shared.state.read().identities.parent_uuid
    }

    /// The whole table, for judging a conf change before it is proposed.
    pub fn membership(&self) -> Membership {
        self.shared.state.read().membership.clone()
    }

    pub fn conf_state(&self) -> ConfState {
        self.shared.state.read().membership.conf_state().clone()
    }

    pub fn cluster_version(&self) -> Option<String> {
        self.shared.state.read().cluster.version.clone()
    }

    pub fn downgrade(&self) -> Downgrade {
        self.shared.state.read().cluster.downgrade.clone()
    }

    /// All raised alarms, ordered by member and kind.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.shared.state.read().alarms.list(AlarmType::None)
    }

    pub fn has_alarm(&self, kind: AlarmType) -> bool {
        self.shared.state.read().alarms.has(kind)
    }

    /// Keys that exist now.
    pub fn key_count(&self) -> u64 {
        self.shared.state.read().index.live()
    }

    /// Walks the whole index under the lock: for tests and measurements only.
    pub fn index_size(&self) -> IndexSize {
        self.shared.state.read().index.size()
    }

    pub fn store_size(&self) -> StoreSize {
        self.shared.store.size()
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    pub fn store(&self) -> &Arc<S> {
        &self.shared.store
    }
}

/// The revision to read at, if it can be read.
pub(crate) fn readable(state: &State, asked: i64) -> Result<i64, EtcdError> {
    if asked <= 0 {
        Ok(state.revision)
    } else if asked > state.revision {
        Err(EtcdError::FutureRev)
    } else if asked < state.compacted {
        Err(EtcdError::Compacted)
    } else {
        Ok(asked)
    }
}

fn count_now(state: &State, newest: i64, plan: &Plan, at: i64) -> Option<u64> {
    let now = state.index.count(&plan.range);
    if at == newest { Some(now) } else { state.recent.count_at(at, &plan.range, now) }
}

/// Where reading may start because everything before would be cut off.
fn skip(state: &State, newest: i64, plan: &Plan, at: i64, count: Option<u64>) -> Option<Vec<u8>> {
    let skipped = plan.skips(count?);
    if at != newest || skipped == 0 {
        return None;
    }
    state.index.select(state.index.rank(plan.range.start()) + skipped)
}

/// A range in one hold of the lock. `newest` is the revision of what the index shows as newest, which inside a txn that has written
/// is one above the state's; it becomes the header's revision. None when a row is gone.
pub(crate) fn whole(
    state: &State,
    newest: i64,
    plan: &Plan,
    at: i64,
    fetch: impl FnOnce(&[types::RowId]) -> Vec<Option<crate::store::StoredRow>>,
) -> Option<RangeResponse> {
    let (mut from, end) = plan.bounds();
    let count = count_now(state, newest, plan, at)
        .unwrap_or_else(|| count_walking(&state.index, &from, end.as_deref(), at, usize::MAX).0);
    let mut kvs = Vec::new();
    if !plan.count_only {
        if let Some(skipped) = skip(state, newest, plan, at, Some(count)) {
            from = skipped;
        }
        let bounds = Bounds { keys: plan.fetch, ..Bounds::NONE };
        Harvest::gather(&state.index, plan, &from, end.as_deref(), at, bounds)
            .resolve(plan, &mut kvs, fetch)?;
    }
    Some(plan.finish(kvs, count, newest))
}

/// True when a txn can be answered without the log: no op of either branch writes. A nested txn counts as writing, as in etcd.
pub fn is_read_only(request: &TxnRequest) -> bool {
    let reads = |op: &RequestOp| matches!(&op.request, Some(Request::RequestRange(_)));
    request.success.iter().chain(&request.failure).all(reads)
}

/// True when a read-only txn may be answered without a read round: every range in it is serializable, or it has none.
pub fn is_serializable(request: &TxnRequest) -> bool {
    let ops = request.success.iter().chain(&request.failure);
    ops.into_iter().all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn chosen(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn check_ranges<'a>(state: &State, ops: &'a [RequestOp]) -> Result<Vec<&'a RangeRequest>, EtcdError> {
    let mut ranges = Vec::with_capacity(ops.len());
    for op in ops {
        if let Some(Request::RequestRange(range)) = &op.request {
            txn::check_range(state, range)?;
            ranges.push(range);
        }
    }
    Ok(ranges)
}

fn txn_response(header: i64, succeeded: bool, ranges: Vec<RangeResponse>) -> TxnResponse {
    let responses = ranges
        .into_iter()
        .map(|range| ResponseOp { response: Some(Response::ResponseRange(range)) })
        .collect();
    let header = ResponseHeader { revision: header, ..Default::default() };
    TxnResponse { header: Some(header), succeeded, responses }
}
