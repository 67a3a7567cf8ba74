//! The requests of a measurement, ready to send: each kind is encoded once, and a request is a copy with the digits of its key
//! written over. And a look at answers that costs next to nothing.

use super::fields::{Value, field, header_revision};
use super::options::{Operation, Options};
use super::watch::ledger::{STAMP_BYTES, Stamp};
use crate::verbs::kv::prefix_end;
use crate::wire::frame;
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::request_op::Request;
use api::etcdserverpb::{Compare, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use bytes::Bytes;

/// xorshift64*: good enough to choose keys, one multiplication.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Spreads neighbouring seeds; zero is the one state that would stay where it is.
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let x = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(x) * u128::from(bound)) >> 64) as u64
    }
}

/// An encoded request with the places of its key's digits.
struct Template {
    bytes: Vec<u8>,
    digits_at: Vec<usize>,
    /// Where the value begins; only a put has it at its end.
    value_at: Option<usize>,
}

/// Makes requests.
pub struct Requests {
    prefix: String,
    digits: usize,
    key_space: u64,
    value: Bytes,
    page: i64,
    serializable: bool,
    txn_ops: u64,
    chunks_per_version: u64,
    ttl: i64,
    lease_base: Option<i64>,
    templates: Vec<(Operation, Template)>,
}

impl Requests {
    pub fn new(options: &Options) -> Requests {
        let mut random = Random::new(options.seed);
        // Bytes above ASCII: they do not compress well and can never look like a key.
        let value: Bytes =
            (0..options.value_bytes).map(|_| 0x80 | random.below(128) as u8).collect::<Vec<u8>>().into();
        let mut requests = Requests {
            prefix: options.prefix.clone(),
            digits: options.key_bytes - options.prefix.len(),
            key_space: options.key_space,
            value,
            page: options.page,
            serializable: options.serializable,
            txn_ops: options.txn_ops,
            chunks_per_version: options.key_space.div_ceil(options.txn_ops),
            ttl: options.ttl,
            lease_base: options.lease_base,
            templates: Vec::new(),
        };
        for (operation, _) in &options.weights {
            let key = requests.key(0);
            let range =
                RangeRequest { key: key.clone(), serializable: options.serializable, ..Default::default() };
            let put = PutRequest { key: key.clone(), value: requests.value.clone(), ..Default::default() };
            let framed = match operation {
                Operation::Put => frame(&put),
                Operation::Get => frame(&range),
                Operation::List => frame(&RangeRequest {
                    range_end: prefix_end(options.prefix.as_bytes()),
                    limit: options.list,
                    ..range
                }),
                Operation::Txn => frame(&guarded(put, range)),
                Operation::Page | Operation::Fill | Operation::Grant | Operation::LeasedPut => continue,
            };
            let mut template = requests.template(&framed, &key);
            // Values too short for a stamp do not get one.
            template.value_at = (*operation == Operation::Put && options.value_bytes >= STAMP_BYTES)
                .then(|| framed.len() - options.value_bytes);
            requests.templates.push((*operation, template));
        }
        requests
    }

    /// The key with this number. All keys have the same length, so their order is that of the numbers.
    pub fn key(&self, number: u64) -> Bytes {
        format!("{}{number:0width$}", self.prefix, width = self.digits).into()
    }

    fn template(&self, framed: &Bytes, key: &Bytes) -> Template {
        let at = |(at, window): (usize, &[u8])| (window == &key[..]).then_some(at + self.prefix.len());
        Template {
            bytes: framed.to_vec(),
            digits_at: framed.windows(key.len()).enumerate().filter_map(at).collect(),
            value_at: None,
        }
    }

    /// The lease with this number; zero lets the server choose.
    pub fn lease(&self, number: u64) -> i64 {
        self.lease_base.map_or(0, |base| base + number as i64)
    }

    /// The request of one operation for one key or lease. A put may carry a stamp.
    pub fn request(&self, operation: Operation, number: u64, stamp: Option<Stamp>) -> Bytes {
        match operation {
            Operation::Grant => return frame(&LeaseGrantRequest { ttl: self.ttl, id: self.lease(number) }),
            Operation::LeasedPut => {
                return frame(&PutRequest {
                    key: self.key(number),
                    value: self.value.clone(),
                    lease: self.lease(number),
                    ..Default::default()
                });
            }
            _ => {}
        }
        let template = &self
            .templates
            .iter()
            .find(|(known, _)| *known == operation)
            .expect("there is a template for each weighed operation")
            .1;
        let mut bytes = template.bytes.clone();
        for at in &template.digits_at {
            let mut rest = number;
            for digit in bytes[*at..at + self.digits].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        if let (Some(stamp), Some(at)) = (stamp, template.value_at) {
            stamp.write(&mut bytes[at..]);
        }
        bytes.into()
    }

    /// The next page of a walk.
    pub fn page(&self, walk: &Walk) -> Bytes {
        let key = if walk.after.is_empty() {
            Bytes::from(self.prefix.clone())
        } else {
            [&walk.after[..], b"\0"].concat().into()
        };
        let range_end = prefix_end(self.prefix.as_bytes());
        frame(&RangeRequest {
            key,
            range_end,
            limit: self.page,
            revision: walk.revision,
            serializable: self.serializable,
            ..Default::default()
        })
    }

    /// One of the transactions that fill the key space, version after version. Returns the puts in it too.
    pub fn fill(&self, chunk: u64) -> (Bytes, u64) {
        let first = chunk % self.chunks_per_version * self.txn_ops;
        let numbers = first..(first + self.txn_ops).min(self.key_space);
        let puts = numbers.end - numbers.start;
        let put =
            |number| PutRequest { key: self.key(number), value: self.value.clone(), ..Default::default() };
        let success =
            numbers.map(|number| RequestOp { request: Some(Request::RequestPut(put(number))) }).collect();
        (frame(&TxnRequest { success, ..Default::default() }), puts)
    }
}

/// A transaction whose guard holds: what an update with optimistic locking costs when nobody interferes.
fn guarded(put: PutRequest, range: RangeRequest) -> TxnRequest {
    let guard = Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Version as i32,
        key: put.key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::Version(-1)),
    };
    TxnRequest {
        compare: vec![guard],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(range)) }],
    }
}

/// How far a client has walked over the key space.
#[derive(Default)]
pub struct Walk {
    after: Bytes,
    revision: i64,
}

impl Walk {
    /// Goes on after a page, or starts anew after the last one.
    pub fn turn(&mut self, page: &Glance) {
        *self = if page.more {
            Walk { after: page.last_key.clone(), revision: page.revision }
        } else {
            Walk::default()
        };
    }
}

/// What matters of a range's answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Glance {
    pub keys: u64,
    pub last_key: Bytes,
    pub more: bool,
    pub revision: i64,
}

/// Reads the top level of a RangeResponse without building it. `None`: not one.
pub fn glance(answer: &Bytes) -> Option<Glance> {
    let mut found = Glance::default();
    let (mut rest, mut last) = (&answer[..], &[][..]);
    while !rest.is_empty() {
        match field(&mut rest)? {
            (1, Value::Bytes(header)) => found.revision = header_revision(header)?,
            (2, Value::Bytes(kv)) => {
                found.keys += 1;
                last = kv;
            }
            (3, Value::Number(more)) => found.more = more != 0,
            _ => {}
        }
    }
    while !last.is_empty() {
        if let (1, Value::Bytes(key)) = field(&mut last)? {
            found.last_key = answer.slice_ref(key);
            break;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::options::Until;
    use api::etcdserverpb::{RangeResponse, ResponseHeader};
    use api::mvccpb::KeyValue;
    use prost::Message;
    use std::time::Duration;

    fn options(weights: Vec<(Operation, u64)>) -> Options {
        Options {
            kind: "mixed",
            clients: 1,
            connections: 1,
            threads: 1,
            until: Until::Total(1),
            warmup: Duration::ZERO,
            rate: None,
            prefix: "p/".into(),
            key_bytes: 8,
            value_bytes: 40,
            key_space: 1000,
            sequential: false,
            serializable: true,
            list: 7,
            page: 5,
            weights,
            txn_ops: 128,
            ttl: 60,
            lease_base: Some(1000),
            seed: 1,
        }
    }

    #[test]
    fn a_request_is_its_template_with_the_key_of_its_number() {
        let requests = Requests::new(&options(vec![
            (Operation::Put, 1),
            (Operation::Get, 1),
            (Operation::List, 1),
            (Operation::Txn, 1),
        ]));
        let body = |operation| requests.request(operation, 123, None).slice(5..);
        let put = PutRequest::decode(body(Operation::Put)).unwrap();
        assert_eq!((&put.key[..], put.value.len()), (&b"p/000123"[..], 40));
        let list = RangeRequest::decode(body(Operation::List)).unwrap();
        assert_eq!(
            (&list.key[..], &list.range_end[..], list.limit, list.serializable),
            (&b"p/000123"[..], &b"p0"[..], 7, true)
        );
        assert_eq!(&RangeRequest::decode(body(Operation::Get)).unwrap().key[..], b"p/000123");
        let txn = TxnRequest::decode(body(Operation::Txn)).unwrap();
        let Some(Request::RequestPut(put)) = &txn.success[0].request else { panic!("a guarded put") };
        let Some(Request::RequestRange(get)) = &txn.failure[0].request else { panic!("a get otherwise") };
        assert_eq!(
            (&txn.compare[0].key, &put.key, &get.key),
            (&requests.key(123), &requests.key(123), &requests.key(123))
        );
    }

    #[test]
    fn a_stamp_goes_to_the_beginning_of_the_value_and_nowhere_else() {
        let requests = Requests::new(&options(vec![(Operation::Put, 1)]));
        let put =
            |stamp| PutRequest::decode(requests.request(Operation::Put, 5, stamp).slice(5..)).expect("a put");
        let stamp = Stamp { sent: 3, number: 4 };
        let (with, without) = (put(Some(stamp)), put(None));
        assert_eq!((Stamp::read(&with.value), &with.key), (Some(stamp), &without.key));
        assert_eq!(with.value[STAMP_BYTES..], without.value[STAMP_BYTES..]);
        let short = Options { value_bytes: STAMP_BYTES - 1, ..options(vec![(Operation::Put, 1)]) };
        let framed = Requests::new(&short).request(Operation::Put, 5, Some(stamp));
        assert_eq!(PutRequest::decode(framed.slice(5..)).expect("a put").value.len(), STAMP_BYTES - 1);
    }

    #[test]
    fn leases_and_their_keys_have_the_same_numbers() {
        let requests = Requests::new(&options(vec![(Operation::Grant, 1)]));
        let grant =
            LeaseGrantRequest::decode(requests.request(Operation::Grant, 7, None).slice(5..)).unwrap();
        let put = PutRequest::decode(requests.request(Operation::LeasedPut, 7, None).slice(5..)).unwrap();
        assert_eq!((grant.id, grant.ttl, put.lease, put.key), (1007, 60, 1007, requests.key(7)));
        let chosen = Requests::new(&Options { lease_base: None, ..options(vec![(Operation::Grant, 1)]) });
        let grant = LeaseGrantRequest::decode(chosen.request(Operation::Grant, 7, None).slice(5..)).unwrap();
        assert_eq!(grant.id, 0, "the server chooses");
    }

    #[test]
    fn filling_writes_every_key_once_per_version() {
        let requests = Requests::new(&options(vec![(Operation::Fill, 1)]));
        let mut written = std::collections::BTreeMap::new();
        let mut puts_total = 0;
        for chunk in 0..2 * 8 {
            let (framed, puts) = requests.fill(chunk);
            puts_total += puts;
            for op in TxnRequest::decode(framed.slice(5..)).unwrap().success {
                let Some(Request::RequestPut(put)) = op.request else { panic!("filling puts") };
                *written.entry(put.key).or_insert(0) += 1;
            }
        }
        assert_eq!((written.len(), puts_total), (1000, 2000));
        assert!(written.values().all(|times| *times == 2));
    }

    #[test]
    fn a_glance_sees_what_decoding_sees_and_garbage_is_no_answer() {
        let kvs = ["a", "bc"]
            .map(|key| KeyValue { key: key.into(), value: "v".into(), mod_revision: 4, ..Default::default() })
            .to_vec();
        let answer = RangeResponse {
            header: Some(ResponseHeader { cluster_id: u64::MAX, revision: 9, ..Default::default() }),
            kvs,
            more: true,
            count: 12,
        };
        let expected = Glance { keys: 2, last_key: "bc".into(), more: true, revision: 9 };
        assert_eq!(glance(&answer.encode_to_vec().into()), Some(expected));
        assert_eq!(glance(&Bytes::from_static(b"\x12\xff\x01x")), None);
        assert_eq!(glance(&Bytes::new()), Some(Glance::default()));
    }

    #[test]
    fn a_walk_goes_on_after_its_last_key_at_the_first_revision() {
        let requests = Requests::new(&options(vec![(Operation::Page, 1)]));
        let mut walk = Walk::default();
        let first = RangeRequest::decode(requests.page(&walk).slice(5..)).unwrap();
        assert_eq!((&first.key[..], first.revision, first.limit), (&b"p/"[..], 0, 5));
        walk.turn(&Glance { keys: 5, last_key: requests.key(4), more: true, revision: 9 });
        let second = RangeRequest::decode(requests.page(&walk).slice(5..)).unwrap();
        assert_eq!((&second.key[..], second.revision), (&b"p/000004\0"[..], 9));
        walk.turn(&Glance { keys: 1, last_key: requests.key(9), more: false, revision: 9 });
        assert_eq!(RangeRequest::decode(requests.page(&walk).slice(5..)).unwrap(), first);
    }

    #[test]
    fn random_numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(0);
        let mut seen = [false; 10];
        (0..1000).for_each(|_| seen[random.below(10) as usize] = true);
        assert_eq!(seen, [true; 10]);
    }
}
