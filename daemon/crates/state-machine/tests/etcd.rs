//! The same requests against a real etcd and against the state machine: answers, refusals and HashKV at every revision must agree.
//!
//! Needs `CAIRN_REAL_ETCD`, the directory with an `etcd` binary; says SKIPPED otherwise. `CAIRN_ETCD_SEED` and `CAIRN_ETCD_REQUESTS`
//! choose another story than the usual one.

mod common;
#[path = "common/json.rs"]
mod json;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use api::error::EtcdError;
use api::etcdserverpb::compare::TargetUnion;
use api::etcdserverpb::*;
use bytes::Bytes;
use common::*;
use serde_json::{Value, json};
use state_machine::{COMPACTION_HASHES_KEPT, is_read_only, validate};

const REQUESTS: u64 = 1500;
/// Leases that may be granted; 99 never is. The negative one is what etcd lets into its log and our edge does not.
const LEASES: [i64; 6] = [1, 2, 0x7000_0000_0000_0001, i64::MAX, -4, 99];
/// Nothing ends by itself while the test runs.
const TTL_MIN: i64 = 3600;

/// A real etcd with one member, ended when dropped.
struct Etcd {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    fn start() -> Option<Etcd> {
        let Ok(home) = std::env::var("CAIRN_REAL_ETCD") else {
            eprintln!("SKIPPED: CAIRN_REAL_ETCD names no directory with an etcd binary");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new(format!("{home}/etcd"))
            .args(["--data-dir", dir.path().to_str().unwrap(), "--log-level", "error"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let etcd = Etcd { child, port, _dir: dir };
        // Ready when it answers; it has its own limit for becoming leader.
        for _ in 0..600 {
            if etcd
                .post("kv/range", &json!({ "key": "AA==" }))
                .is_ok_and(|answer| answer.get("header").is_some())
            {
                return Some(etcd);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("etcd did not become ready");
    }

    fn post(&self, path: &str, body: &Value) -> std::io::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let body = body.to_string();
        // HTTP/1.0, so that the answer comes whole and ends with the connection.
        write!(stream, "POST /v3/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let start =
            answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        Ok(serde_json::from_slice(&answer[start..])?)
    }

    /// The answer without what names the member and the term; a refusal is its text.
    fn ask(&self, path: &str, body: &Value) -> Result<Value, String> {
        let mut answer =
            self.post(path, body).unwrap_or_else(|error| panic!("etcd answers {body}, not: {error}"));
        if let Some(error) = answer.get("message").or(answer.get("error")) {
            return Err(error.as_str().unwrap_or_default().to_owned());
        }
        if let Some(header) = answer.get_mut("header").and_then(Value::as_object_mut) {
            header.retain(|name, _| name == "revision");
        }
        Ok(answer)
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn key(&mut self) -> Bytes {
        match self.below(30) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            2 => Bytes::from_static(&[0xff, 0xff]),
            _ => Bytes::from(format!("k{}", self.below(12))),
        }
    }
    fn span(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let end = match self.below(6) {
            0..=2 => Bytes::new(),
            3 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        (key, end)
    }
    fn value(&mut self) -> Bytes {
        Bytes::from(format!("v{}", self.below(5)).repeat(self.below(3) as usize))
    }
    fn range(&mut self, current: i64) -> RangeRequest {
        let (key, range_end) = self.span();
        let revision = match self.below(8) {
            0 => current + 1 - self.below(2) as i64,
            1 => -(self.below(4) as i64),
            2..=4 => current - self.below(current.min(40) as u64) as i64,
            _ => 0,
        };
        let limit = if self.chance(40) { self.below(6) as i64 - 1 } else { 0 };
        let mut request = RangeRequest { key, range_end, revision, limit, ..Default::default() };
        if self.chance(30) {
            // Only orders without ties, since etcd's sort is not stable, and inside the enum, since the gateway reads others as none.
            request.sort_order = self.below(3) as i32;
        }
        (request.keys_only, request.count_only) = (self.chance(15), self.chance(10));
        if self.chance(15) {
            request.min_mod_revision = self.below(current as u64) as i64;
            request.max_create_revision = self.below(current as u64) as i64;
        }
        request
    }
    fn put(&mut self) -> PutRequest {
        let ignore_value = self.chance(12);
        let value = if ignore_value && self.chance(80) { Bytes::new() } else { self.value() };
        let lease = if self.chance(25) { self.lease() } else { 0 };
        let (prev_kv, ignore_lease) = (self.chance(30), self.chance(8));
        PutRequest { key: self.key(), value, lease, prev_kv, ignore_value, ignore_lease }
    }
    fn lease(&mut self) -> i64 {
        LEASES[self.below(LEASES.len() as u64) as usize]
    }
    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.span();
        DeleteRangeRequest { key, range_end, prev_kv: self.chance(40) }
    }
    fn compare(&mut self, current: i64) -> Compare {
        let (key, mut range_end) = self.span();
        if self.chance(60) {
            range_end = Bytes::new();
        }
        let number = self.below(current as u64 + 2) as i64;
        let target_union = match self.below(6) {
            0 => Some(TargetUnion::Version(number % 4)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease())),
            _ => None,
        };
        Compare { result: self.below(4) as i32, target: self.below(5) as i32, key, range_end, target_union }
    }
    fn txn(&mut self, current: i64, depth: u64, self_deletes: bool) -> TxnRequest {
        let ops = |rng: &mut Rng| -> Vec<RequestOp> {
            (0..rng.below(4))
                .map(|_| match rng.below(if depth < 2 { 9 } else { 7 }) {
                    0..=2 => op(request_op::Request::RequestPut(keep_alive(rng.put(), self_deletes))),
                    3 if self_deletes => op(request_op::Request::RequestDeleteRange(rng.delete())),
                    4 if rng.chance(5) => RequestOp { request: None },
                    4..=6 => op(request_op::Request::RequestRange(rng.range(current))),
                    _ => op_txn(rng.txn(current, depth + 1, self_deletes)),
                })
                .collect()
        };
        let compare = (0..self.below(3)).map(|_| self.compare(current)).collect();
        let (success, failure) = (ops(self), ops(self));
        TxnRequest { compare, success, failure }
    }
}

/// etcd stops for ever on a put that keeps a value which the same txn deleted (an open-ended delete passes its check for
/// duplicates), so a txn has deletes or such puts, not both.
fn keep_alive(mut put: PutRequest, deletes: bool) -> PutRequest {
    if deletes {
        (put.ignore_value, put.ignore_lease) = (false, false);
    }
    put
}

/// A key without its value names no lease since 3.7, and did before.
fn comparable(mut answer: Value) -> Value {
    match &mut answer {
        Value::Object(fields) => {
            if fields.contains_key("mod_revision") && !fields.contains_key("value") {
                fields.remove("lease");
            }
            fields.values_mut().for_each(|field| *field = comparable(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = comparable(item.take())),
        _ => {}
    }
    answer
}

/// A grant, a revocation, or a look at what is attached.
fn about_leases(etcd: &Etcd, bench: &mut Bench, rng: &mut Rng) {
    let number = |answer: &Value, name: &str| -> i64 {
        answer[name].as_str().map_or(0, |text| text.parse().expect("a number"))
    };
    let text = |error: EtcdError| error.text().to_owned();
    let (id, ttl) = (rng.lease(), TTL_MIN + rng.below(5) as i64);
    match rng.below(10) {
        0..=3 if id != 99 => {
            let ttl = if rng.chance(5) { state_machine::LEASE_TTL_MAX + 1 } else { ttl };
            let ours = bench.grant(id, ttl).map_err(text);
            let ours = ours.map(|answer| (answer.header.unwrap().revision, answer.id, answer.ttl));
            let body = json!({ "ID": id.to_string(), "TTL": ttl.to_string() });
            let theirs = etcd.ask("lease/grant", &body).map(|answer| {
                (number(&answer["header"], "revision"), number(&answer, "ID"), number(&answer, "TTL"))
            });
            assert_eq!(ours, theirs, "grant of {id}");
        }
        4..=5 => {
            let ours = bench.revoke(id).map(|answer| answer.header.unwrap().revision).map_err(text);
            let theirs = etcd.ask("lease/revoke", &json!({ "ID": id.to_string() }));
            let theirs = theirs.map(|answer| number(&answer["header"], "revision"));
            assert_eq!(ours, theirs, "revocation of {id}");
        }
        _ => {
            let lease = bench.reader.lease(types::LeaseId(id));
            let keys = bench.reader.lease_keys(types::LeaseId(id)).unwrap_or_default();
            let body = json!({ "ID": id.to_string(), "keys": true });
            let theirs = etcd.ask("lease/timetolive", &body).expect("asking for a lease is always answered");
            assert_eq!(lease.map_or(0, |lease| lease.granted_ttl), number(&theirs, "grantedTTL"));
            // etcd gives them in no order.
            let sorted = |mut keys: Vec<String>| {
                keys.sort_unstable();
                keys
            };
            let base = |key: &Value| key.as_str().expect("base64").to_owned();
            let ours = sorted(keys.iter().map(|key| base(&json::base(key))).collect());
            let attached = sorted(theirs["keys"].as_array().into_iter().flatten().map(base).collect());
            assert_eq!(ours, attached, "keys of {id}");
        }
    }
}

fn hashes(etcd: &Etcd, bench: &Bench, revision: i64) {
    let ours = bench.reader.hash_kv(revision).map_err(|error| error.text().to_owned());
    let theirs = etcd.ask("maintenance/hashkv", &json!({ "revision": revision.to_string() }));
    let theirs = theirs.map(|answer| {
        let compact = answer["compact_revision"].as_str().map_or(0, |text| text.parse().unwrap());
        (answer["hash"].as_u64().unwrap_or(0), compact)
    });
    assert_eq!(
        ours.map(|hash| (u64::from(hash.hash), hash.compact_revision.0)),
        theirs,
        "HashKV at {revision}"
    );
}

#[test]
fn answers_and_hashes_equal_etcds() {
    let Some(etcd) = Etcd::start() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("CAIRN_ETCD_SEED").unwrap_or(1);
    eprintln!("replay: CAIRN_ETCD_SEED={seed}");
    let mut rng = Rng(seed);
    let mut bench = Bench::new();
    let mut compactions = Vec::new();
    let text = |error: EtcdError| error.text().to_owned();
    hashes(&etcd, &bench, 0);
    for _ in 0..number("CAIRN_ETCD_REQUESTS").unwrap_or(REQUESTS) {
        let current = bench.reader.revision().0;
        match rng.below(22) {
            20..=21 => about_leases(&etcd, &mut bench, &mut rng),
            0..=8 => {
                let put = rng.put();
                let ours = validate::put(&put).and_then(|()| bench.put(put.clone()));
                let ours = ours.map(|answer| json::put_response(&answer)).map_err(text);
                assert_eq!(ours, etcd.ask("kv/put", &json::put(&put)), "{put:?}");
            }
            9 => {
                let delete = rng.delete();
                let ours = validate::delete_range(&delete).and_then(|()| bench.delete_range(delete.clone()));
                let ours = ours.map(|answer| json::delete_range_response(&answer)).map_err(text);
                assert_eq!(ours, etcd.ask("kv/deleterange", &json::delete_range(&delete)), "{delete:?}");
            }
            10..=13 => {
                let self_deletes = rng.chance(60);
                let txn = rng.txn(current, 0, self_deletes);
                let ours = validate::txn(&txn, 128).and_then(|()| {
                    if is_read_only(&txn) { bench.reader.txn_read_only(&txn) } else { bench.txn(txn.clone()) }
                });
                let ours = ours.map(|answer| comparable(json::txn_response(&answer))).map_err(text);
                assert_eq!(ours, etcd.ask("kv/txn", &json::txn(&txn)).map(comparable), "{txn:?}");
            }
            14 if rng.chance(12) => {
                let revision = current + 1 - rng.below(20) as i64;
                // etcd takes a compaction at revision 0, and then answers for the current one with the hash of nothing.
                if revision == 0 {
                    continue;
                }
                // A hash is stored before its rows go, and that is after the removal before has ended.
                bench.compact_physically(5);
                let ours =
                    bench.compact(revision).map(|answer| answer.header.unwrap().revision).map_err(text);
                let body = json!({ "revision": revision.to_string(), "physical": true });
                let theirs = etcd.ask("kv/compaction", &body);
                let theirs =
                    theirs.map(|answer| answer["header"]["revision"].as_str().unwrap().parse().unwrap());
                assert_eq!(ours, theirs, "compaction at {revision} of {current}");
                if ours.is_ok() {
                    compactions.push(revision);
                }
                // How far removal has come must not show, beside that the hash of the compaction is stored before.
                bench.machine.compact_step(1 + rng.below(5) as usize);
                if rng.chance(50) {
                    bench.compact_physically(5);
                }
                hashes(&etcd, &bench, 0);
                for revision in compactions.iter().rev().take(COMPACTION_HASHES_KEPT + 2) {
                    hashes(&etcd, &bench, *revision);
                }
            }
            15 => {
                hashes(&etcd, &bench, current + 1 - rng.below(30) as i64);
                if rng.chance(10) {
                    hashes(&etcd, &bench, -(rng.below(3) as i64));
                }
            }
            _ => {
                let range = rng.range(current);
                let ours = validate::range(&range).and_then(|()| bench.reader.range(&range));
                let ours = ours.map(|answer| comparable(json::range_response(&answer))).map_err(text);
                assert_eq!(ours, etcd.ask("kv/range", &json::range(&range)).map(comparable), "{range:?}");
            }
        }
    }
    // Past the last compaction, whose own revision is answered from storage.
    bench.set("last", "1");
    etcd.ask(
        "kv/put",
        &json::put(&PutRequest { key: bytes("last"), value: bytes("1"), ..Default::default() }),
    )
    .unwrap();
    bench.compact_physically(100);
    hashes(&etcd, &bench, 0);
    bench.reopen(None);
    hashes(&etcd, &bench, 0);
}
