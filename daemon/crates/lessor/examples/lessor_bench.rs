//! How fast the pure lessor renews, and what a million leases cost: `cargo run --release -p cairn-lessor --example lessor_bench [leases]`.

use std::time::Instant;

use ::lessor::{Config, Lessor, Mono, Now, Renewal};
use types::{LeaseId, Term};

fn main() {
    let count: u64 = std::env::args().nth(1).map_or(1_000_000, |count| count.parse().expect("a number"));
    let config = Config {
        election_timeout: 1_000_000_000,
        checkpoint_interval_ms: Some(300_000),
        ttl_min: 2,
        seed: [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321],
    };
    let mut lessor = Lessor::new(config);
    let began = Instant::now();
    let now = || Now { at: Mono(began.elapsed().as_nanos() as u64), sole: true };
    let id = |n: u64| LeaseId((n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1) as i64);

    lessor.begin(Term(1), now());
    let started = Instant::now();
    for n in 0..count {
        lessor.load(id(n), 60, 0);
    }
    lessor.promoted();
    let took = started.elapsed();
    println!("load      {count} leases in {took:?}, {:.0} ns each", took.as_nanos() as f64 / count as f64);
    println!("memory    {:.1} bytes a lease", lessor.table().bytes() as f64 / count as f64);

    for (name, within) in [("of all", count), ("of 10,000", 10_000.min(count))] {
        let rounds = 10_000_000u64;
        let started = Instant::now();
        let mut n = 1u64;
        for _ in 0..rounds {
            n = n.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            assert!(matches!(lessor.renew(id((n >> 33) % within), now()), Renewal::Renewed(60)));
        }
        let took = started.elapsed();
        println!("renew     {:.2} million a second, {name}", rounds as f64 / took.as_secs_f64() / 1e6);
    }

    let mut at = began.elapsed().as_nanos() as u64;
    let (mut over, mut longest, mut total) = (Vec::new(), 0, 0);
    let started = Instant::now();
    while total < count {
        at += 100_000_000;
        let look = Now { at: Mono(at), sole: true };
        loop {
            let held = Instant::now();
            let more = lessor.turn(look, 1024);
            lessor.expire(look, 512, &mut over);
            longest = longest.max(held.elapsed().as_micros());
            let full = over.len() == 512;
            total += over.len() as u64;
            for id in over.drain(..) {
                lessor.revoked(id);
            }
            if !more && !full {
                break;
            }
        }
    }
    println!("expire    {count} leases in {:?}, longest hold {longest} us", started.elapsed());
}
