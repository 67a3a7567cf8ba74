//! Measures the state store alone: sustained writes, what one `write` costs its caller, reads, scan, reopening, compaction.
//!
//! `cargo run --release -p cairn-storage --example store_bench [rows] [value bytes] [rows per batch] [directory]`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use state_machine::store::{Store, StoredRow, WriteBatch};
use storage::state_store::{FjallStore, StoreOptions};
use types::{LogIndex, LogPosition, Revision, RowId, Term};

fn main() {
    let argument = |at: usize| std::env::args().nth(at);
    let number = |at, default| argument(at).map_or(default, |text| text.parse().expect("a number"));
    let rows: i64 = number(1, 4_000_000);
    let value_bytes = number(2, 100) as usize;
    let per_batch: i64 = number(3, 1);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let root = argument(4).map_or_else(|| temp.path().to_owned(), PathBuf::from);
    println!("{rows} rows of {value_bytes} bytes, {per_batch} in a batch");

    let id = |main| RowId { main: Revision(main), sub: 0 };
    let at = |index: i64| LogPosition { term: Term(1), index: LogIndex(index as u64) };
    let store = Arc::new(FjallStore::open(&root, StoreOptions::default()).expect("open"));
    let stop = Arc::new(AtomicBool::new(false));
    let persister = std::thread::spawn({
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        move || {
            let mut longest = Duration::ZERO;
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                store.persist().expect("persist");
                longest = longest.max(began.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
            (count, longest)
        }
    });

    let cpu = process_cpu();
    let began = Instant::now();
    let mut waits = Vec::with_capacity((rows / per_batch) as usize);
    let mut seed = 0x5eed_u64;
    for first in (1..=rows).step_by(per_batch as usize) {
        let mut batch = WriteBatch::at(at(first));
        for main in first..(first + per_batch).min(rows + 1) {
            let mut value = vec![0; value_bytes];
            for piece in value.chunks_mut(8) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                piece.copy_from_slice(&seed.to_le_bytes()[..piece.len()]);
            }
            batch.put_row(id(main), StoredRow { tombstone: false, value: value.into() });
        }
        let one = Instant::now();
        store.write(batch).expect("write");
        waits.push(one.elapsed());
    }
    let given = began.elapsed();
    store.persist().expect("persist");
    let durable = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (persists, longest) = persister.join().expect("the persister");
    waits.sort_unstable();
    let quantile = |q: f64| waits[((waits.len() - 1) as f64 * q) as usize];
    println!(
        "write: {:.0} rows/s given, {:.0} rows/s until durable, {:.2} us of CPU a row",
        rows as f64 / given.as_secs_f64(),
        rows as f64 / durable.as_secs_f64(),
        (process_cpu() - cpu).as_secs_f64() * 1e6 / rows as f64,
    );
    println!(
        "one write: p50 {:?} p99 {:?} p99.9 {:?} p99.99 {:?} max {:?}; {persists} persists beside it, longest {longest:?}",
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        quantile(0.9999),
        quantile(1.0),
    );
    report("after writing", &store, &root);

    // Writes at a pace far below the limit: what apply normally feels.
    let mut waits = Vec::new();
    let paced = Instant::now();
    for index in 1..=200_000_i64 {
        let mut batch = WriteBatch::at(at(rows + index));
        let value = Bytes::from(vec![1; value_bytes]);
        batch.put_row(id(rows + index), StoredRow { tombstone: false, value });
        let one = Instant::now();
        store.write(batch).expect("write");
        waits.push(one.elapsed());
        while paced.elapsed() < Duration::from_micros(20) * index as u32 {
            std::hint::spin_loop();
        }
    }
    waits.sort_unstable();
    println!(
        "one write at 50k/s: p50 {:?} p99 {:?} p99.9 {:?} max {:?}",
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() * 999 / 1000],
        waits[waits.len() - 1],
    );

    let began = Instant::now();
    let reads = 200_000;
    for _ in 0..reads {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let asked = id(1 + ((seed >> 33) as i64 % rows));
        assert!(store.row(asked).expect("read").is_some(), "row {asked}");
    }
    println!("random reads: {:.2} us each", began.elapsed().as_secs_f64() * 1e6 / f64::from(reads));
    drop(store);

    let began = Instant::now();
    let store = FjallStore::open(&root, StoreOptions::default()).expect("reopen");
    println!("reopen: {:?}", began.elapsed());
    let began = Instant::now();
    let mut seen = 0_u64;
    let all = (RowId::default(), id(i64::MAX));
    store
        .scan(all.0, all.1, &mut |_, _| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .expect("scan");
    println!("scan of {seen} rows: {:.0} rows/s", seen as f64 / began.elapsed().as_secs_f64());
    report("after the scan", &store, &root);

    let began = Instant::now();
    let through = rows * 9 / 10;
    for first in (1..=through).step_by(1000) {
        let mut batch = WriteBatch::at(store.position());
        for main in first..(first + 1000).min(through + 1) {
            batch.delete_row(id(main), false);
        }
        store.write(batch).expect("write");
    }
    store.persist().expect("persist");
    println!("deleting 90 % of the rows: {:.0} rows/s", through as f64 / began.elapsed().as_secs_f64());
    report("after deleting", &store, &root);
    let began = Instant::now();
    store.reclaim().expect("reclaim");
    println!("reclaim: {:?}", began.elapsed());
    report("after reclaiming", &store, &root);
}

fn report(when: &str, store: &FjallStore, root: &Path) {
    let size = store.size();
    println!(
        "{when}: total {} MiB, in use {} MiB, on disk {} MiB, {} journals, resident {} MiB (peak {} MiB)",
        size.total_bytes >> 20,
        size.in_use_bytes >> 20,
        disk_bytes(root) >> 20,
        store.journal_count(),
        status_kib("VmRSS:") >> 10,
        status_kib("VmHWM:") >> 10,
    );
}

/// Blocks really allocated: journals are sparse.
fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += disk_bytes(&entry.path()),
            Ok(meta) => bytes += meta.blocks() * 512,
            Err(_) => {}
        }
    }
    bytes
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn process_cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("usage");
    let of =
        |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
    of(usage.user_time()) + of(usage.system_time())
}
