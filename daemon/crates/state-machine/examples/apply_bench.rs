//! What apply, reads, the index and a start cost, on one thread with the store in memory. Times are the thread's own on the
//! processor, so that figures hold on a machine that does other things too.
//!
//! `cargo run --release -p cairn-state-machine --example apply_bench [keys, default 1000000]`

use std::sync::Arc;

use api::error::EtcdError;
use api::etcdserverpb::{
    InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestHeader,
};
use api::mvccpb::Event;
use api::raftpb;
use bytes::Bytes;
use prost::Message;
use state_machine::store::{Store, StoreError, StoreSize, StoredRow, Table, WriteBatch};
use state_machine::{Memory, Options, Outcome, Reader, Sink, StateMachine};
use types::{Entry, EntryKind, LeaseId, LogIndex, Revision, RowId, Term};

// The daemon's allocator, so that the figures are the daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_BYTES: usize = 256;
/// Entries given to apply at a time, as a busy member would.
const BATCH: usize = 256;

/// Takes everything and keeps nothing: what is measured is apply and the index, not a map of rows.
struct Nowhere;

impl Store for Nowhere {
    fn row(&self, _: RowId) -> Result<Option<StoredRow>, StoreError> {
        Ok(None)
    }
    fn scan(
        &self,
        _: RowId,
        _: RowId,
        _: &mut dyn FnMut(RowId, StoredRow) -> std::ops::ControlFlow<()>,
    ) -> Result<(), StoreError> {
        Ok(())
    }
    fn table(&self, _: Table) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Ok(Vec::new())
    }
    fn write(&self, _: WriteBatch) -> Result<(), StoreError> {
        Ok(())
    }
    fn size(&self) -> StoreSize {
        StoreSize::default()
    }
}

/// Time of this thread on a processor.
struct Instant(f64);

fn on_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

impl Instant {
    fn now() -> Instant {
        Instant(on_cpu())
    }
    fn seconds(&self) -> f64 {
        on_cpu() - self.0
    }
}

struct Deaf(u64);

impl Sink for Deaf {
    fn outcome(&mut self, _: LogIndex, _: u64, outcome: Result<Outcome, EtcdError>) {
        self.0 += u64::from(outcome.is_ok());
    }
    fn wants_events(&self) -> bool {
        false
    }
    fn events(&mut self, _: Revision, _: Vec<Event>) {}
    fn conf_change(&mut self, _: LogIndex, _: Option<raftpb::ConfChangeV2>) {}
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/default/pod-{number:010}"))
}

/// A permutation of 0..2^20 and more: multiplication by an odd number.
fn shuffled(number: u64, keys: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16) % keys
}

fn put(number: u64, lease: i64) -> InternalRaftRequest {
    static VALUE: [u8; VALUE_BYTES] = [b'v'; VALUE_BYTES];
    let value = Bytes::from_static(&VALUE);
    let put = PutRequest { key: key(number), value, lease, ..Default::default() };
    InternalRaftRequest { put: Some(put), ..Default::default() }
}

fn grant(id: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_grant: Some(LeaseGrantRequest { id, ttl: 60 }), ..Default::default() }
}

fn revoke(id: i64) -> InternalRaftRequest {
    InternalRaftRequest { lease_revoke: Some(LeaseRevokeRequest { id }), ..Default::default() }
}

/// Scattered like the ids that members make: the member first, then the time, so that neighbours in time are neighbours here.
fn lease(number: u64) -> i64 {
    (((number % 3) << 56) + (number << 8) + 77) as i64
}

fn entries(first_index: u64, requests: impl Iterator<Item = InternalRaftRequest>) -> Vec<Entry> {
    requests
        .enumerate()
        .map(|(at, request)| {
            let index = LogIndex(first_index + at as u64);
            let header = Some(RequestHeader { id: index.0, ..Default::default() });
            let request = InternalRaftRequest { header, ..request };
            Entry { term: Term(1), index, kind: EntryKind::Normal, data: request.encode_to_vec().into() }
        })
        .collect()
}

fn apply<S: Store>(machine: &mut StateMachine<S>, name: &str, keys: impl Iterator<Item = u64>) {
    apply_all(machine, name, keys.map(|number| put(number, 0)));
}

fn apply_all<S: Store>(
    machine: &mut StateMachine<S>,
    name: &str,
    requests: impl Iterator<Item = InternalRaftRequest>,
) {
    let mut sink = Deaf(0);
    let (mut spent, mut count) = (0.0, 0u64);
    let mut requests = requests.peekable();
    while requests.peek().is_some() {
        // Entries are made outside the measured time, in portions so that they do not fill the memory.
        let portion = entries(machine.applied().index.0 + 1, requests.by_ref().take(BATCH * 64));
        let start = Instant::now();
        portion.chunks(BATCH).for_each(|batch| machine.apply(batch, &mut sink));
        spent += start.seconds();
        count += portion.len() as u64;
    }
    assert_eq!(sink.0, count);
    println!("{name:<44} {:>8.3} us each  {:>10.0} per s", spent * 1e6 / count as f64, count as f64 / spent);
}

fn time(name: &str, rounds: u32, mut run: impl FnMut()) {
    let start = Instant::now();
    (0..rounds).for_each(|_| run());
    println!("{name:<44} {:>8.1} us each", start.seconds() * 1e6 / f64::from(rounds));
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn reads<S: Store>(reader: &Reader<S>, keys: u64) {
    let range = |from: u64, limit: i64| RangeRequest {
        key: key(from),
        range_end: Bytes::from_static(b"/registry/pods0"),
        limit,
        ..Default::default()
    };
    let mut at = 0;
    time("get one key, random", 300_000, || {
        at += 1;
        let request = RangeRequest { key: key(shuffled(at, keys)), ..Default::default() };
        assert_eq!(reader.range(&request).unwrap().count, 1);
    });
    let mut at = 0;
    time("page of 1000 with count and more", 1000, || {
        at = (at + 1000) % (keys - 1000);
        assert!(reader.range(&range(at, 1000)).unwrap().kvs.len() == 1000);
    });
    time("list of 100,000 keys", 5, || {
        assert_eq!(
            reader.range(&range(0, 100_000.min(keys as i64))).unwrap().kvs.len() as u64,
            keys.min(100_000)
        );
    });
    time("count over all", 100_000, || {
        let request = RangeRequest { count_only: true, ..range(0, 0) };
        assert_eq!(reader.range(&request).unwrap().count as u64, keys);
    });
    time("last 10 by key, of all", 10_000, || {
        let request = RangeRequest { sort_order: 2, ..range(0, 10) };
        assert_eq!(reader.range(&request).unwrap().kvs.len(), 10);
    });
}

/// A million leases, alone and with a key each; many that end at once; one with many keys.
fn leases(options: &Options) {
    const LEASES: u64 = 1_000_000;
    const ENDING: u64 = 50_000;
    const KEYS_OF_ONE: u64 = 100_000;
    let all = || (0..LEASES).map(lease);
    let per_lease = |bytes: u64| bytes as f64 / LEASES as f64;

    let mut machine = StateMachine::open(Arc::new(Nowhere), options.clone(), None).expect("opens");
    let before = resident_bytes();
    apply_all(&mut machine, "lease granted", all().map(grant));
    println!("resident per lease without keys: {:.1} bytes", per_lease(resident_bytes() - before));
    let reader = machine.reader();
    time("list of a million leases", 5, || assert_eq!(reader.leases().len() as u64, LEASES));
    apply(&mut machine, "put without lease, new keys", 0..LEASES);
    // The first overwriting makes room for the history of each key, which is not to be counted below.
    apply(&mut machine, "put without lease, existing keys", 0..LEASES);
    let before = resident_bytes();
    let attached = |number| put(number, lease(number));
    apply_all(&mut machine, "put that attaches an existing key", (0..LEASES).map(attached));
    let key_bytes = key(0).len() as f64;
    let beyond = per_lease(resident_bytes().saturating_sub(before)) - key_bytes;
    println!("resident per attached key beyond its {key_bytes} bytes: {beyond:.1} bytes");
    apply_all(&mut machine, "put on the same lease", (0..LEASES).map(attached));
    let moved = (0..LEASES).map(|number| put(number, lease((number + 1) % LEASES)));
    apply_all(&mut machine, "put on another lease", moved);
    apply(&mut machine, "put that detaches", 0..LEASES);
    drop((reader, machine));

    let mut machine = StateMachine::open(Arc::new(Nowhere), options.clone(), None).expect("opens");
    apply_all(&mut machine, "lease granted", (0..ENDING).map(lease).map(grant));
    let key_of = |number| put(shuffled(number, ENDING * 16), lease(number));
    apply_all(&mut machine, "put with lease, new keys random", (0..ENDING).map(key_of));
    apply_all(&mut machine, "lease with one key revoked", (0..ENDING).map(lease).map(revoke));
    assert_eq!((machine.reader().lease_count(), machine.reader().key_count()), (0, 0));

    apply_all(&mut machine, "lease granted", std::iter::once(grant(1)));
    let keys = (0..KEYS_OF_ONE).map(|number| put(shuffled(number, KEYS_OF_ONE * 16), 1));
    apply_all(&mut machine, "put on one lease, new keys random", keys);
    time("list of the keys of one lease", 5, || {
        let count = machine.reader().lease_keys(LeaseId(1)).map_or(0, |keys| keys.len() as u64);
        assert_eq!(count, machine.reader().key_count());
    });
    apply_all(&mut machine, "lease with 100,000 keys revoked", std::iter::once(revoke(1)));
    assert_eq!(machine.reader().key_count(), 0);
}

fn main() {
    let keys: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().expect("a number of keys"));
    println!("{keys} keys of {} bytes, values of {VALUE_BYTES} bytes", key(0).len());
    let options = Options { inline_value_bytes_max: u64::MAX, quota_backend_bytes: -1, ..Options::default() };
    leases(&options);
    if keys == 0 {
        return;
    }

    let before = resident_bytes();
    let mut machine = StateMachine::open(Arc::new(Nowhere), options.clone(), None).expect("opens");
    apply(&mut machine, "put, new keys ascending", 0..keys);
    let size = machine.reader().index_size();
    let payload = size.inline_bytes + keys * key(0).len() as u64;
    println!(
        "index: {:.1} bytes per key asked, {:.1} beyond key and value; resident {:.1} beyond",
        size.heap_bytes as f64 / keys as f64,
        (size.heap_bytes as f64 - payload as f64) / keys as f64,
        ((resident_bytes() - before) as f64 - payload as f64) / keys as f64,
    );
    reads(&machine.reader(), keys);
    apply(&mut machine, "put, existing keys random", (0..keys).map(|at| shuffled(at, keys)));
    apply(&mut machine, "put, one key", (0..keys).map(|_| 7));
    drop(machine);

    let mut machine = StateMachine::open(Arc::new(Nowhere), options.clone(), None).expect("opens");
    apply(&mut machine, "put, new keys random", (0..keys).map(|at| shuffled(at, keys * 16)));
    let size = machine.reader().index_size();
    let payload = size.inline_bytes as f64 + (size.live * key(0).len() as u64) as f64;
    let beyond = (size.heap_bytes as f64 - payload) / size.live as f64;
    println!("index after random insertion: {beyond:.1} bytes per key beyond key and value");
    drop(machine);

    let store = Arc::new(Memory::new());
    let mut machine = StateMachine::open(Arc::clone(&store), options.clone(), None).expect("opens");
    let versions = keys * 4;
    apply(
        &mut machine,
        "put into rows in memory, 4 versions a key",
        (0..versions).map(|at| shuffled(at, keys)),
    );
    let mut checkpoint = Vec::new();
    let start = Instant::now();
    machine.reader().checkpoint(&mut checkpoint).expect("nothing compacts");
    println!("checkpoint written: {:.3} s, {} bytes", start.seconds(), checkpoint.len());
    drop(machine);
    let start = Instant::now();
    let (first, last) = (RowId::default(), RowId { main: Revision(i64::MAX), sub: 0 });
    let mut bytes = 0;
    let each = &mut |_, row: StoredRow| {
        bytes += row.value.len();
        std::ops::ControlFlow::Continue(())
    };
    store.scan(first, last, each).expect("scans");
    println!("bare scan of all rows: {:.3} s, {bytes} bytes", start.seconds());
    for (name, bytes) in [("from the checkpoint", Some(&checkpoint[..])), ("from all rows", None)] {
        let start = Instant::now();
        let mut machine = StateMachine::open(Arc::clone(&store), options.clone(), bytes).expect("opens");
        let seconds = start.seconds();
        assert!(machine.checkpoint_ignored().is_none());
        println!("open {name}: {seconds:.3} s, {:.2} M versions/s", versions as f64 / 1e6 / seconds);
        let start = Instant::now();
        while machine.warm_step(1000) {}
        println!("values brought inline: {:.3} s", start.seconds());
    }
    let start = Instant::now();
    let machine = StateMachine::open(Arc::clone(&store), options, Some(&checkpoint)).expect("opens");
    let hash = machine.reader().hash_kv(0).expect("hashes");
    println!("open and HashKV {:x}: {:.3} s", hash.hash, start.seconds());
}
