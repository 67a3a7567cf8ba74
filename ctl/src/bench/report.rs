//! The numbers of a measurement as text or JSON.

use super::histogram::Histogram;
use super::options::{Operation, Options, Until};
use super::run::{Outcome, Tally};
use crate::settings::Format;
use crate::units::format_duration;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Microseconds.
#[derive(Serialize)]
pub struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Latency {
    pub fn of(latency: &Histogram) -> Latency {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        Latency {
            mean: micros(latency.mean()),
            p50: micros(latency.at(500)),
            p90: micros(latency.at(900)),
            p99: micros(latency.at(990)),
            p99_9: micros(latency.at(999)),
            max: micros(latency.max()),
        }
    }
}

/// So many per second, with one decimal.
pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { (count as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

#[derive(Serialize)]
pub struct Line {
    pub requests: u64,
    pub errors: u64,
    pub per_second: f64,
    keys: u64,
    keys_per_second: f64,
    answer_bytes: u64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Report<'a> {
    bench: &'a str,
    clients: usize,
    conns: usize,
    threads: usize,
    rate: Option<f64>,
    key_space: u64,
    key_size: usize,
    val_size: usize,
    seed: u64,
    elapsed_seconds: f64,
    client_cpu_seconds: Option<f64>,
    unsent: u64,
    total: Line,
    operations: BTreeMap<&'static str, Line>,
    error_texts: &'a BTreeMap<String, u64>,
}

pub fn line(tally: &Tally, elapsed: Duration) -> Line {
    let latency = &tally.latency;
    Line {
        requests: latency.count(),
        errors: tally.errors,
        per_second: per_second(latency.count(), elapsed),
        keys: tally.keys,
        keys_per_second: per_second(tally.keys, elapsed),
        answer_bytes: tally.answer_bytes,
        latency_us: Latency::of(latency),
    }
}

pub fn together(outcome: &Outcome) -> Tally {
    let mut all = Tally::default();
    for tally in outcome.tallies.values() {
        all.latency.merge(&tally.latency);
        all.errors += tally.errors;
        all.keys += tally.keys;
        all.answer_bytes += tally.answer_bytes;
    }
    all
}

/// The report, with a line end after it.
pub fn render(options: &Options, outcome: &Outcome, format: Format) -> String {
    if format == Format::Json { json(options, outcome) } else { text(options, outcome) }
}

fn json(options: &Options, outcome: &Outcome) -> String {
    let report = Report {
        bench: options.kind,
        clients: options.clients,
        conns: options.connections,
        threads: options.threads,
        rate: options.rate,
        key_space: options.key_space,
        key_size: options.key_bytes,
        val_size: options.value_bytes,
        seed: options.seed,
        elapsed_seconds: outcome.elapsed.as_secs_f64(),
        client_cpu_seconds: outcome.cpu.map(|cpu| cpu.as_secs_f64()),
        unsent: outcome.unsent,
        total: line(&together(outcome), outcome.elapsed),
        operations: outcome
            .tallies
            .iter()
            .map(|(operation, tally)| (operation.name(), line(tally, outcome.elapsed)))
            .collect(),
        error_texts: &outcome.error_texts,
    };
    serde_json::to_string(&report).expect("a report is plain numbers and text") + "\n"
}

fn text(options: &Options, outcome: &Outcome) -> String {
    let mut out = String::new();
    let mut say = |line: std::fmt::Arguments<'_>| {
        out.write_fmt(line).expect("writing to a String succeeds");
        out.push('\n');
    };
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let pace =
        options.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate} per second"));
    let until = match options.until {
        Until::Total(total) => format!("{total} requests"),
        Until::Elapsed(time) => format_duration(time),
    };
    let (clients, connections, threads) = (
        plural(options.clients, "client"),
        plural(options.connections, "connection"),
        plural(options.threads, "thread"),
    );
    say(format_args!("bench {}: {clients}, {connections}, {threads}, {pace}, {until}", options.kind));
    if options.weights.iter().all(|(operation, _)| *operation == Operation::Grant) {
        say(format_args!("leases of {}s", options.ttl));
    } else {
        say(format_args!(
            "keys: {} of {} bytes, values of {} bytes",
            options.key_space, options.key_bytes, options.value_bytes
        ));
    }
    say(format_args!(""));
    say(format_args!("{}", table_head()));
    let mut row = |name: &str, tally: &Tally| {
        let numbers = line(tally, outcome.elapsed);
        let errors = numbers.errors;
        say(format_args!(
            "{}",
            table_row(name, numbers.requests, errors, numbers.per_second, &tally.latency)
        ));
    };
    for operation in Operation::ALL {
        if let Some(tally) = outcome.tallies.get(&operation) {
            row(operation.name(), tally);
        }
    }
    let all = together(outcome);
    if outcome.tallies.len() > 1 {
        row("total", &all);
    }
    say(format_args!(""));
    let numbers = line(&all, outcome.elapsed);
    if all.keys > 0 {
        say(format_args!("{} keys, {:.0} per second", numbers.keys, numbers.keys_per_second));
    }
    if outcome.unsent > 0 {
        say(format_args!(
            "{} requests were due and not sent before the time was up: the server does not keep up with this rate",
            outcome.unsent
        ));
    }
    let reads = outcome
        .tallies
        .keys()
        .any(|operation| matches!(operation, Operation::Get | Operation::List | Operation::Page));
    if reads && all.keys == 0 {
        say(format_args!(
            "no answer had a key; prepare some first: cairnctl bench fill --keys={} --key-size={} --key-prefix={}",
            options.key_space, options.key_bytes, options.prefix
        ));
    }
    for (text, count) in &outcome.error_texts {
        say(format_args!("{count} errors: {text}"));
    }
    let cpu = outcome
        .cpu
        .map(|cpu| format!(", {} of processor time in this client", format_duration(cpu)))
        .unwrap_or_default();
    say(format_args!(
        "took {}{cpu}",
        format_duration(Duration::from_millis(outcome.elapsed.as_millis() as u64))
    ));
    out
}

/// The head of a table of latencies.
pub fn table_head() -> String {
    format!(
        "{:<6} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "requests", "errors", "per second", "mean", "p50", "p90", "p99", "p99.9", "max"
    )
}

/// A line of that table.
pub fn table_row(name: &str, count: u64, errors: u64, per_second: f64, h: &Histogram) -> String {
    let times = [h.mean(), h.at(500), h.at(900), h.at(990), h.at(999), h.max()]
        .map(short)
        .map(|time| format!("{time:>10}"))
        .join(" ");
    format!("{name:<6} {count:>10} {errors:>8} {per_second:>10.0} {times}")
}

/// Nanoseconds with three figures.
pub fn short(nanos: u64) -> String {
    let digits = nanos.checked_ilog10().unwrap_or(0);
    let step = 10u64.pow(digits.saturating_sub(2));
    format_duration(Duration::from_nanos(nanos / step * step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_shown_with_three_figures() {
        for (nanos, text) in
            [(0, "0s"), (7, "7ns"), (1_234_567, "1.23ms"), (98_765, "98.7µs"), (12_345_678_901, "12.3s")]
        {
            assert_eq!(short(nanos), text);
        }
    }
}
