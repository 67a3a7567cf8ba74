//! Checks of client requests that need no state: exact errors in etcd's order. The edge runs them before a request is proposed or
//! read; apply never relies on them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use api::error::EtcdError;
use api::etcdserverpb::range_request::{SortOrder, SortTarget};
use api::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    request_op::Request,
};

use crate::leases::LEASE_TTL_MAX;

/// Range, alone or in a txn.
pub fn range(request: &RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// RangeStream: as Range, and in key order without filters, since it is answered piece by piece.
pub fn range_stream(request: &RangeRequest) -> Result<(), EtcdError> {
    range(request)?;
    let by_key = request.sort_target == SortTarget::Key as i32;
    if !by_key || request.sort_order == SortOrder::Descend as i32 {
        return Err(EtcdError::RangeStreamSort);
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|bound| *bound != 0) { Err(EtcdError::RangeStreamFilters) } else { Ok(()) }
}

pub fn put(request: &PutRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        Err(EtcdError::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(EtcdError::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(EtcdError::LeaseProvided)
    } else {
        Ok(())
    }
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() { Err(EtcdError::EmptyKey) } else { Ok(()) }
}

/// A grant; id 0 asks for an id to be chosen. etcd lets negative ids into the log, and members of older versions forgot such a lease
/// when they were restarted (LE11). Here they are refused, with the words that etcd has for an id that no lease can have.
pub fn lease_grant(request: &LeaseGrantRequest) -> Result<(), EtcdError> {
    if request.id < 0 {
        Err(EtcdError::LeaseNotFound)
    } else if request.ttl > LEASE_TTL_MAX {
        Err(EtcdError::LeaseTtlTooLarge)
    } else {
        Ok(())
    }
}

/// Txns within txns, the outermost included. A decoder of protobuf stops at 100 messages within each other; a level is two of them (the
/// txn and its operation), and the form in the log adds one around all. A txn that clients could send and members could not read from
/// the log would never be answered. With etcd's budget of operations, which every level takes at least one of, the limit is 128.
pub const TXN_LEVELS_MAX: usize = 48;

/// A txn with everything nested in it: sizes and fields first, then keys that one branch changes twice.
pub fn txn(request: &TxnRequest, max_txn_ops: usize) -> Result<(), EtcdError> {
    txn_fields(request, max_txn_ops, TXN_LEVELS_MAX)?;
    branch_changes(&request.success)?;
    branch_changes(&request.failure)?;
    Ok(())
}

fn txn_fields(request: &TxnRequest, budget: usize, levels: usize) -> Result<(), EtcdError> {
    let levels = levels.checked_sub(1).ok_or(EtcdError::TooManyOps)?;
    let widest = request.compare.len().max(request.success.len()).max(request.failure.len());
    // What is nested gets the rest of the budget.
    let rest = budget.checked_sub(widest).ok_or(EtcdError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_fields(request, rest, levels)?,
            // Surprising, but this is what clients of etcd get.
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys covered by deletes: disjoint intervals, start to exclusive end.
#[derive(Debug, Default)]
struct Intervals {
    ends: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Intervals {
    /// An interval that ends before it starts covers nothing. So does a delete "from this key on", whose end is one zero byte: etcd
    /// enters it as such an inverted interval, and clients have come to rely on it.
    fn insert(&mut self, mut start: Vec<u8>, mut end: Vec<u8>) {
        if end <= start {
            return;
        }
        while let Some((near_start, near_end)) = self.ends.range(..=end.clone()).next_back() {
            if *near_end < start {
                break;
            }
            let near_start = near_start.clone();
            end = end.max(near_end.clone());
            start = start.min(near_start.clone());
            self.ends.remove(&near_start);
        }
        self.ends.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.ends
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .is_some_and(|(_, end)| key < end.as_slice())
    }
}

type Puts<'a> = BTreeSet<&'a [u8]>;

/// What a branch changes, or the refusal when it changes a key twice. As in etcd the deletes of a nested txn count against what
/// follows it, not against puts of nested txns before it.
fn branch_changes(ops: &[RequestOp]) -> Result<(Puts<'_>, Intervals), EtcdError> {
    let mut deletes = Intervals::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            let end = match delete.range_end.as_ref() {
                [] => crate::range::after(&delete.key),
                end => end.to_vec(),
            };
            deletes.insert(delete.key.to_vec(), end);
        }
    }
    let mut puts = Puts::new();
    for op in ops {
        let Some(Request::RequestTxn(nested)) = &op.request else { continue };
        let (then_puts, then_deletes) = branch_changes(&nested.success)?;
        let (else_puts, else_deletes) = branch_changes(&nested.failure)?;
        // Only one of the two branches runs, so they may share keys with each other, but with nothing else.
        for key in then_puts.union(&else_puts) {
            if deletes.contains(key) || !puts.insert(key) {
                return Err(EtcdError::DuplicateKey);
            }
        }
        for (start, end) in then_deletes.ends.into_iter().chain(else_deletes.ends) {
            deletes.insert(start, end);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (deletes.contains(&put.key) || !puts.insert(&put.key))
        {
            return Err(EtcdError::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

#[cfg(test)]
mod tests {
    use api::etcdserverpb::Compare;
    use bytes::Bytes;

    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }
    fn p(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: Bytes::from(key), ..Default::default() }))
    }
    fn d(key: &'static str, end: &'static str) -> RequestOp {
        let (key, range_end) = (Bytes::from(key), Bytes::from(end));
        op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }))
    }
    fn t(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { compare: vec![], success, failure }))
    }
    fn check(success: Vec<RequestOp>) -> Result<(), EtcdError> {
        txn(&TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_branch_changes_a_key_once() {
        let duplicate = Err(EtcdError::DuplicateKey);
        assert_eq!(check(vec![p("a"), p("b"), p("a")]), duplicate);
        assert_eq!(check(vec![p("a"), d("a", "")]), duplicate);
        assert_eq!(check(vec![d("a", "c"), p("b")]), duplicate);
        assert_eq!(check(vec![d("a", "c"), p("c")]), Ok(()), "the end is exclusive");
        assert_eq!(check(vec![d("a", "c"), d("b", "d"), d("a", "")]), Ok(()), "deletes may overlap");
        assert_eq!(check(vec![d("a", "c"), d("b", "d"), p("c")]), duplicate);
        assert_eq!(check(vec![d("a", "\0"), p("b")]), Ok(()), "the inverted interval of an open end");
        assert_eq!(check(vec![d("c", "a"), p("b"), p("c")]), Ok(()));
        assert_eq!(check(vec![d("a", ""), p("a\0")]), Ok(()));
        assert_eq!(check(vec![t(vec![p("a")], vec![p("a")])]), Ok(()), "then and else exclude each other");
        assert_eq!(check(vec![t(vec![p("a")], vec![]), p("a")]), duplicate);
        assert_eq!(check(vec![t(vec![p("a")], vec![]), t(vec![], vec![p("a")])]), duplicate);
        assert_eq!(check(vec![t(vec![d("a", "")], vec![]), p("a")]), duplicate);
        assert_eq!(check(vec![t(vec![d("a", "")], vec![p("a")])]), Ok(()));
        assert_eq!(check(vec![d("a", ""), t(vec![p("a")], vec![])]), duplicate);
        assert_eq!(check(vec![t(vec![d("a", "")], vec![]), t(vec![p("a")], vec![])]), duplicate);
        assert_eq!(
            check(vec![t(vec![p("a")], vec![]), t(vec![d("a", "")], vec![])]),
            Ok(()),
            "etcd's order quirk"
        );
        let both = TxnRequest { compare: vec![], success: vec![p("a")], failure: vec![p("a"), p("a")] };
        assert_eq!(txn(&both, 128), duplicate, "the failure branch is checked too");
    }

    #[test]
    fn intervals_agree_with_a_plain_list() {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut number = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % 60) as u8
        };
        for _ in 0..300 {
            let (mut tree, mut list) = (Intervals::default(), Vec::new());
            for _ in 0..12 {
                let (start, end) = (vec![number()], vec![number() / 2 + number() / 2]);
                tree.insert(start.clone(), end.clone());
                list.push((start, end));
                for key in 0..60u8 {
                    let expected = list.iter().any(|(start, end)| *start <= vec![key] && vec![key] < *end);
                    assert_eq!(tree.contains(&[key]), expected, "{key} in {list:?}");
                }
            }
        }
    }

    /// Whatever is let in can be read from the log again.
    #[test]
    fn the_deepest_txn_survives_its_form_in_the_log() {
        use api::etcdserverpb::InternalRaftRequest;
        use prost::Message as _;

        let leaf = || op(Request::RequestRange(RangeRequest { key: Bytes::from("k"), ..Default::default() }));
        let nested = |levels: usize| {
            (1..levels).fold(TxnRequest { success: vec![leaf()], ..Default::default() }, |inner, _| {
                TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() }
            })
        };
        let deepest = nested(TXN_LEVELS_MAX);
        assert_eq!(txn(&deepest, 128), Ok(()));
        let logged = InternalRaftRequest { txn: Some(deepest), ..Default::default() };
        let read = InternalRaftRequest::decode(logged.encode_to_vec().as_slice());
        assert_eq!(read.as_ref(), Ok(&logged));
        assert_eq!(txn(&nested(TXN_LEVELS_MAX + 1), 128), Err(EtcdError::TooManyOps));
    }

    #[test]
    fn fields_are_refused_in_order() {
        let unset = || RequestOp { request: None };
        let wide = |count| (0..count).map(|_| d("x", "")).collect::<Vec<_>>();
        assert_eq!(check(wide(128)), Ok(()));
        assert_eq!(check(wide(129)), Err(EtcdError::TooManyOps));
        assert_eq!(check(vec![t(wide(127), vec![])]), Ok(()));
        assert_eq!(
            check(vec![t(wide(128), vec![])]),
            Err(EtcdError::TooManyOps),
            "nested gets the remainder"
        );
        assert_eq!(check(vec![unset()]), Err(EtcdError::KeyNotFound));
        assert_eq!(check(vec![p("a"), p("a"), p("")]), Err(EtcdError::EmptyKey), "fields before duplicates");
        let compare = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
        assert_eq!(txn(&compare, 128), Err(EtcdError::EmptyKey));
        assert_eq!(txn(&compare, 0), Err(EtcdError::TooManyOps));
        let with = |change: fn(&mut PutRequest)| {
            let mut request = PutRequest { key: Bytes::from("k"), ..Default::default() };
            change(&mut request);
            put(&request)
        };
        assert_eq!(with(|put| put.key = Bytes::new()), Err(EtcdError::EmptyKey));
        assert_eq!(
            with(|put| (put.ignore_value, put.value) = (true, "v".into())),
            Err(EtcdError::ValueProvided)
        );
        assert_eq!(with(|put| (put.ignore_lease, put.lease) = (true, 7)), Err(EtcdError::LeaseProvided));
        assert_eq!(with(|put| (put.ignore_lease, put.ignore_value) = (true, true)), Ok(()));
        let with = |change: fn(&mut RangeRequest)| {
            let mut request = RangeRequest { key: Bytes::from("k"), ..Default::default() };
            change(&mut request);
            (range(&request), range_stream(&request))
        };
        let both = |error| (Err(error), Err(error));
        assert_eq!(with(|range| range.key = Bytes::new()), both(EtcdError::EmptyKey));
        assert_eq!(with(|range| range.sort_order = 3), both(EtcdError::InvalidSortOption));
        assert_eq!(with(|range| range.sort_target = 5), both(EtcdError::InvalidSortOption));
        assert_eq!(with(|range| range.sort_target = 4), (Ok(()), Err(EtcdError::RangeStreamSort)));
        assert_eq!(with(|range| range.max_mod_revision = 4), (Ok(()), Err(EtcdError::RangeStreamFilters)));
        assert_eq!(with(|range| range.sort_order = 1), (Ok(()), Ok(())));
    }
}
