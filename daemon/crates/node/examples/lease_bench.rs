//! Leases of one real member: grants, keep-alives from memory, many that end in the same second, and how long a start takes with them.
//! `cargo run --release -p cairn-node --example lease_bench [leases] [ending]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use api::etcdserverpb as pb;
use node::Handle;
use support::*;

const CLIENTS: u64 = 256;

async fn grant_many(handle: &Handle, from: i64, count: u64, ttl: i64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (handle, next) = (handle.clone(), next.clone());
        clients.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let request = pb::LeaseGrantRequest { id: from + n as i64, ttl };
                handle.lease_grant(request).await.expect("a grant");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no panic");
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn renew(handle: &Handle, count: u64) {
    let rounds = 5_000_000u64;
    let (mut n, mut answered) = (1u64, 0u64);
    let started = Instant::now();
    for _ in 0..rounds {
        n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        answered += u64::from(handle.lease_keep_alive_now(1 + ((n >> 33) % count) as i64).is_some());
    }
    let took = started.elapsed();
    assert_eq!(answered, rounds, "all of them are answered from memory");
    println!("keep-alive of {count}: {:.2} million a second", rounds as f64 / took.as_secs_f64() / 1e6);
}

/// Ends `count` leases at once and watches what that does to others.
async fn end_at_once(handle: &Handle, count: u64) {
    let first = 1 << 40;
    grant_many(handle, first, count, 20).await;
    for n in 0..count {
        assert!(handle.lease_keep_alive_now(first + n as i64).is_some());
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let before = handle.reader().lease_count();
    let done = Arc::new(AtomicBool::new(false));
    let keeper = std::thread::spawn({
        let (handle, done) = (handle.clone(), done.clone());
        move || {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert!(handle.lease_keep_alive_now(1).is_some());
                longest = longest.max(asked.elapsed());
                std::thread::sleep(Duration::from_micros(200));
            }
            longest
        }
    });
    tokio::time::sleep_until((deadline - Duration::from_millis(200)).into()).await;
    let (mut puts, mut longest_put) = (0u64, Duration::ZERO);
    let mut began = None;
    loop {
        let asked = Instant::now();
        put(handle, "beside", "v").await.expect("a put");
        longest_put = longest_put.max(asked.elapsed());
        puts += 1;
        let left = handle.reader().lease_count();
        if left < before {
            began.get_or_insert_with(Instant::now);
        }
        if left == before - count as usize {
            break;
        }
    }
    done.store(true, Ordering::Relaxed);
    let over = Instant::now();
    let keep_alive = keeper.join().expect("no panic");
    println!(
        "ending {count}: first {:?} after the deadline, all within {:?}; {puts} puts beside, the longest {longest_put:?}; longest keep-alive {keep_alive:?}",
        began.unwrap_or(over).saturating_duration_since(deadline),
        over.saturating_duration_since(deadline),
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse::<u64>().expect("a number"));
    let count = arguments.next().unwrap_or(1_000_000);
    let ending = arguments.next().unwrap_or(50_000);
    let directory = tempfile::tempdir().expect("a directory");
    let (members, listeners) = plan(1);
    let listener = listeners.into_iter().next().expect("one listener");
    let again = listener.try_clone().expect("the same port once more");
    let running = boot_with(directory.path(), &members[0], &members, listener, settings);
    let handle = running.node.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let resident = resident_mib();
    runtime.block_on(async {
        let started = Instant::now();
        grant_many(&handle, 1, count, 3600).await;
        let took = started.elapsed();
        println!("grant of {count}: {:.0} a second, {CLIENTS} clients", count as f64 / took.as_secs_f64());
    });
    println!("resident: {resident} MiB before, {} MiB with {count} leases", resident_mib());
    renew(&handle, count);
    renew(&handle, 10_000.min(count));
    runtime.block_on(end_at_once(&handle, ending));
    drop(handle);
    running.node.stop();

    let started = Instant::now();
    let running = boot_with(directory.path(), &members[0], &members, again, settings);
    println!("start with {count} leases: {:?}", started.elapsed());
    let handle = running.node.handle();
    runtime.block_on(async {
        let write = put(&handle, "first", "v").await;
        println!("first put: {:?} after the start, {}", started.elapsed(), write.is_ok());
        wait("the leases", || handle.lease_keep_alive_now(1).is_some()).await;
        println!("first keep-alive from memory: {:?} after the start", started.elapsed());
    });
    drop(handle);
    running.node.stop();
}

fn settings(config: &mut node::NodeConfig) {
    config.heartbeat = Duration::from_millis(100);
    config.snapshot_count = 10_000;
    config.snapshot_catchup_entries = 5000;
}
