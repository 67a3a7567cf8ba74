//! check perf and check datascale: etcdctl's two verdicts, with its loads, limits and words, made with the load generator.
//!
//! One thing is stricter: a put counts from when it was due and not from when a client was free to send it, so that a server that stalls
//! for a second has no fast puts in that second. Not here: figures to compare servers by (`bench`).

use super::options::{Operation, Options, Until};
use super::{Base, run};
use crate::cli;
use crate::client::{COMPACT, Client, DEFRAGMENT, DELETE_RANGE, RANGE, dialer};
use crate::failure::{Exit, Failure, Result};
use crate::output::{Printer, paint, tell};
use crate::settings::Settings;
use crate::verbs::kv::prefix_end;
use crate::verbs::show;
use api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse, DeleteRangeRequest,
    DeleteRangeResponse, RangeRequest, RangeResponse,
};
use clap::{ArgMatches, Command};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a key, the prefix included; etcdctl's keys have 256 behind it.
const KEY_BYTES: usize = 256;
const VALUE_BYTES: usize = 1024;
/// Different keys of `check perf`; more than any load writes in its time.
const KEY_SPACE: u64 = 10_000_000;

/// A put may take so long, and the puts may scatter so much; etcdctl's limits.
const SLOWEST_MAX: Duration = Duration::from_millis(500);
const DEVIATION_MAX: Duration = Duration::from_millis(100);
/// The part of the asked throughput that is enough.
const ENOUGH: f64 = 0.9;

/// The most of a page of metrics that is read.
const METRICS_BYTES_MAX: u64 = 4 * 1024 * 1024;
const RESIDENT: &str = "process_resident_memory_bytes ";

/// One kind of cluster, by etcdctl's names.
struct Load {
    names: [&'static str; 2],
    clients: usize,
    /// `perf`: puts in a second.
    rate: u32,
    /// `datascale`: pairs in all.
    pairs: u64,
}

const LOADS: [Load; 4] = [
    Load { names: ["s", "small"], clients: 50, rate: 150, pairs: 10_000 },
    Load { names: ["m", "medium"], clients: 200, rate: 1000, pairs: 100_000 },
    Load { names: ["l", "large"], clients: 500, rate: 8000, pairs: 1_000_000 },
    Load { names: ["xl", "xLarge"], clients: 1000, rate: 15_000, pairs: 3_000_000 },
];

pub fn command() -> Command {
    let check = |name, about, usage, prefix: &'static str| {
        cli::verb(name, about, usage).args([
            cli::value("load", "How large: s, m, l or xl").default_value("s"),
            cli::value("prefix", "What the written keys begin with; there must be none")
                .default_value(prefix),
            cli::switch("auto-compact", "Compact the history afterwards"),
            cli::switch("auto-defrag", "Defragment the endpoints afterwards"),
        ])
    };
    cli::group("check", "Whether a cluster is good enough for a load").subcommands([
        check(
            "perf",
            "Whether puts are fast and even enough at a given rate",
            "cairnctl check perf [flags]",
            "/etcdctl-check-perf/",
        )
        .after_help(
            "s: 150 puts a second of 50 clients; m: 1000 of 200; l: 8000 of 500; xl: 15000 of 1000. 90 % of them have to be done, none in more\n\
             than 0.5 s, with a deviation of at most 0.1 s. The keys are deleted afterwards. Writes much: not for a busy cluster.",
        )
        .arg(cli::value("duration", "For how long").default_value("60s")),
        check(
            "datascale",
            "How much memory a member takes for more data",
            "cairnctl check datascale [flags]",
            "/etcdctl-check-datascale/",
        )
        .after_help(
            "Writes 10000 (s), 100000 (m), 1000000 (l) or 3000000 (xl) pairs of a kilobyte and compares process_resident_memory_bytes of the\n\
             first endpoint. The keys are deleted afterwards.",
        ),
    ])
}

pub async fn check(settings: &Settings, kind: &str, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments(format!("check {kind} command does not accept arguments")));
    }
    if settings.shape_asked {
        Printer::new(settings).refuse_all()?;
    }
    let wanted = cli::text(matches, "load");
    let load = LOADS.iter().find(|load| load.names.contains(&wanted));
    let load = load.ok_or_else(|| Failure::feature(format!("unknown load option {wanted}")))?;
    let prefix = cli::text(matches, "prefix");
    let mut options = Options {
        kind: "check",
        clients: load.clients,
        connections: load.clients,
        threads: if load.clients > 200 { 2 } else { 1 },
        until: Until::Total(load.pairs),
        warmup: Duration::ZERO,
        rate: None,
        prefix: prefix.to_owned(),
        key_bytes: KEY_BYTES.max(prefix.len() + KEY_SPACE.to_string().len()),
        value_bytes: VALUE_BYTES,
        key_space: load.pairs,
        sequential: true,
        serializable: false,
        list: 0,
        page: 0,
        weights: vec![(Operation::Put, 1)],
        txn_ops: 1,
        ttl: 0,
        lease_base: None,
        seed: 1,
    };
    if prefix.is_empty() {
        return Err(Failure::arguments(
            "--prefix must not be empty: everything that begins so is deleted afterwards",
        ));
    }
    let verdict = match kind {
        "perf" => {
            let time = super::options::duration(matches, "duration")?.unwrap_or_default();
            if time.is_zero() {
                return Err(Failure::arguments("--duration must be more than 0"));
            }
            (options.rate, options.until) = (Some(f64::from(load.rate)), Until::Elapsed(time));
            options.key_space = KEY_SPACE;
            empty(settings, prefix).await?;
            if paint::can_redraw_stderr() {
                tell(format_args!(
                    "check perf: {} puts a second for {}",
                    load.rate,
                    cli::text(matches, "duration")
                ));
            }
            let result = measure(settings, options).await;
            clear(settings, prefix, matches).await?;
            perf(&result?, load, time)
        }
        _ => {
            empty(settings, prefix).await?;
            show(
                format!(
                    "Start data scale check for work load [{} key-value pairs, {VALUE_BYTES} bytes per key-value, {} concurrent clients].\n",
                    load.pairs, load.clients
                )
                .as_bytes(),
            )?;
            let before = resident(settings).await;
            let result = measure(settings, options).await;
            let after = resident(settings).await;
            clear(settings, prefix, matches).await?;
            datascale(&result?, &before, &after)
        }
    };
    show(verdict.0.as_bytes())?;
    if verdict.1 { Ok(()) } else { Err(Failure::silent(Exit::Error)) }
}

/// Refuses where there are keys, which would be deleted.
async fn empty(settings: &Settings, prefix: &str) -> Result<()> {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()),
        limit: 1,
        keys_only: true,
        ..Default::default()
    };
    let found: RangeResponse = Client::new(settings, false)?.call(&RANGE, &request).await?;
    if found.kvs.is_empty() {
        return Ok(());
    }
    Err(Failure::input(format!(
        "prefix {prefix:?} has keys. Delete with 'cairnctl del --prefix {prefix}' first"
    )))
}

async fn measure(settings: &Settings, options: Options) -> Result<run::Outcome> {
    let base = Base { settings, token: Client::new(settings, false)?.token().await? };
    run::measure(Arc::new(base.plan(options)?))
}

/// Deletes what was written and does what was asked for afterwards.
async fn clear(settings: &Settings, prefix: &str, matches: &ArgMatches) -> Result<()> {
    // A million keys take longer to delete than a command may take otherwise.
    let mut client = Client::new(settings, true)?.without_deadline();
    let (key, range_end) = (prefix.to_owned().into(), prefix_end(prefix.as_bytes()));
    let request = DeleteRangeRequest { key, range_end, prev_kv: false };
    let deleted: DeleteRangeResponse = client.call(&DELETE_RANGE, &request).await?;
    let revision = deleted.header.unwrap_or_default().revision;
    if cli::on(matches, "auto-compact") {
        show(format!("Compacting with revision {revision}\n").as_bytes())?;
        let _: CompactionResponse =
            client.call(&COMPACT, &CompactionRequest { revision, physical: true }).await?;
        show(format!("Compacted with revision {revision}\n").as_bytes())?;
    }
    if cli::on(matches, "auto-defrag") {
        for endpoint in &settings.endpoints {
            show(format!("Defragmenting {:?}\n", endpoint.name).as_bytes())?;
            let mut one = Client::over(settings, vec![endpoint.clone()], true)?.without_deadline();
            let _: DefragmentResponse = one.call(&DEFRAGMENT, &DefragmentRequest {}).await?;
            show(format!("Defragmented {:?}\n", endpoint.name).as_bytes())?;
        }
    }
    Ok(())
}

/// What was seen, and whether it is good enough.
type Verdict = (String, bool);

fn failures(result: &run::Outcome) -> String {
    result.error_texts.iter().map(|(text, count)| format!("FAIL: ERROR({text}) -> {count}\n")).collect()
}

fn perf(result: &run::Outcome, load: &Load, time: Duration) -> Verdict {
    let latency = result.tallies.get(&Operation::Put).map(|tally| tally.latency.clone()).unwrap_or_default();
    let errors = failures(result);
    let mut out = String::new();
    if !errors.is_empty() {
        out.push_str("FAIL: too many errors\n");
        out.push_str(&errors);
    }
    // Whoever is late has not kept the pace.
    let rate = latency.count() as f64 / time.max(result.elapsed).as_secs_f64();
    let (slowest, deviation) =
        (Duration::from_nanos(latency.max()), Duration::from_nanos(latency.deviation()));
    let fast = rate > ENOUGH * f64::from(load.rate);
    let prompt = slowest <= SLOWEST_MAX;
    let even = deviation <= DEVIATION_MAX;
    let mut line = |good: bool, pass: String, fail: String| {
        out += &if good { format!("PASS: {pass}\n") } else { format!("FAIL: {fail}\n") };
    };
    line(
        fast,
        format!("Throughput is {rate:.0} writes/s"),
        format!("Throughput too low: {rate:.0} writes/s"),
    );
    let (slowest, deviation) = (slowest.as_secs_f64(), deviation.as_secs_f64());
    line(
        prompt,
        format!("Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    );
    line(even, format!("Stddev is {deviation:.6}s"), format!("Stddev too high: {deviation:.6}s"));
    let good = errors.is_empty() && fast && prompt && even;
    out.push_str(if good { "PASS\n" } else { "FAIL\n" });
    (out, good)
}

fn datascale(result: &run::Outcome, before: &Result<u64, String>, after: &Result<u64, String>) -> Verdict {
    let errors = failures(result);
    if !errors.is_empty() {
        return (errors, false);
    }
    match (before, after) {
        (Ok(before), Ok(after)) => {
            let megabytes = after.saturating_sub(*before) as f64 / f64::from(1 << 20);
            (format!("PASS: Approximate system memory used : {megabytes:.2} MB.\n"), true)
        }
        (Err(why), _) | (_, Err(why)) => {
            (format!("FAIL: Could not read process_resident_memory_bytes: {why}\n"), false)
        }
    }
}

/// Memory of the first endpoint, in bytes.
async fn resident(settings: &Settings) -> Result<u64, String> {
    let first = &settings.endpoints[..1];
    let dialer = dialer(settings, first).map_err(|failure| failure.headline)?;
    let page = dialer.get(&first[0], "/metrics", METRICS_BYTES_MAX);
    let page =
        tokio::time::timeout(settings.command_timeout, page).await.map_err(|_| "no answer in time")??;
    parse(&page.body).ok_or_else(|| format!("{}/metrics has no such line", first[0].name))
}

fn parse(metrics: &str) -> Option<u64> {
    let value: f64 = metrics.lines().find_map(|line| line.strip_prefix(RESIDENT))?.trim().parse().ok()?;
    (value > 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts that took so many milliseconds, in a second.
    fn outcome(millis: &[u64]) -> run::Outcome {
        let mut outcome = run::Outcome { elapsed: Duration::from_secs(1), ..Default::default() };
        let tally = outcome.tallies.entry(Operation::Put).or_default();
        millis.iter().for_each(|millis| tally.latency.record(millis * 1_000_000));
        outcome
    }

    #[test]
    fn each_limit_fails_by_itself() {
        let judged = |result: &run::Outcome| perf(result, &LOADS[0], Duration::from_secs(1));
        let (text, good) = judged(&outcome(&[10; 150]));
        let expected = "PASS: Throughput is 150 writes/s\nPASS: Slowest request took 0.010000s\nPASS: Stddev is 0.000000s\nPASS\n";
        assert_eq!((text.as_str(), good), (expected, true));
        let (text, good) = judged(&outcome(&[10; 135]));
        assert!(!good && text.starts_with("FAIL: Throughput too low: 135 writes/s\n"), "{text}");
        let mut one_slow = [10; 150];
        one_slow[7] = 600;
        let (text, good) = judged(&outcome(&one_slow));
        assert!(
            !good && text.contains("\nFAIL: Slowest request took too long: 0.600000s\nPASS: Stddev"),
            "{text}"
        );
        let uneven: Vec<u64> = (0..150).map(|i| if i % 2 == 0 { 10 } else { 400 }).collect();
        let (text, good) = judged(&outcome(&uneven));
        assert!(
            !good && text.contains("PASS: Slowest") && text.contains("FAIL: Stddev too high: 0.19"),
            "{text}"
        );
        let mut failed = outcome(&[10; 150]);
        failed.error_texts.insert("etcdserver: no leader".into(), 3);
        let (text, good) = judged(&failed);
        assert!(
            !good && text.starts_with("FAIL: too many errors\nFAIL: ERROR(etcdserver: no leader) -> 3\n"),
            "{text}"
        );
    }

    #[test]
    fn memory_is_read_from_the_metrics() {
        let page =
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 3.8719488e+07\n";
        assert_eq!((parse(page), parse("# none\n")), (Some(38_719_488), None));
        let (text, good) = datascale(&outcome(&[1]), &Ok(1 << 20), &Ok((5 << 20) + (1 << 19)));
        assert_eq!((text.as_str(), good), ("PASS: Approximate system memory used : 4.50 MB.\n", true));
        assert!(!datascale(&outcome(&[1]), &Ok(1), &Err("no".into())).1);
    }
}
