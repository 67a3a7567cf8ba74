//! The numbers of a measurement of watches as text or JSON.

use super::Seen;
use super::catch_up::CaughtUp;
use super::options::{CatchUpOptions, Target, WatchOptions, Watchers};
use crate::bench::report::{Latency, Line, line, per_second, short, table_head, table_row, together};
use crate::bench::run::Outcome;
use crate::settings::Format;
use crate::units::format_duration;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Serialize)]
struct Puts {
    clients: usize,
    conns: usize,
    threads: usize,
    rate: Option<f64>,
    key_space: u64,
    key_size: usize,
    val_size: usize,
    elapsed_seconds: f64,
    unsent: u64,
    #[serde(flatten)]
    line: Line,
}

#[derive(Serialize)]
struct Events {
    expected: u64,
    delivered: u64,
    missing: u64,
    surplus: u64,
    disorder: u64,
    foreign: u64,
    watchers_flawless: usize,
    streams_broken: usize,
    /// Delivered after the warm-up, and what the puts of that time asked for.
    per_second: f64,
    expected_per_second: f64,
    latency_us: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_ack_us: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before_ack: Option<u64>,
    /// From the last put's answer to the last event.
    lag_ms: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    bench: &'a str,
    watchers: usize,
    streams: usize,
    watch_conns: usize,
    watch_threads: usize,
    on: &'static str,
    prev_kv: bool,
    open_seconds: f64,
    elapsed_seconds: f64,
    client_cpu_seconds: Option<f64>,
    client_cpu_us_per_event: Option<f64>,
    puts: Puts,
    events: Events,
    error_texts: &'a BTreeMap<String, u64>,
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1000.0
}

fn puts(options: &crate::bench::options::Options, outcome: &Outcome) -> Puts {
    Puts {
        clients: options.clients,
        conns: options.connections,
        threads: options.threads,
        rate: options.rate,
        key_space: options.key_space,
        key_size: options.key_bytes,
        val_size: options.value_bytes,
        elapsed_seconds: outcome.elapsed.as_secs_f64(),
        unsent: outcome.unsent,
        line: line(&together(outcome), outcome.elapsed),
    }
}

fn target(target: Target) -> &'static str {
    match target {
        Target::Prefix => "prefix",
        Target::Keys => "keys",
    }
}

/// How many events a put is.
fn fan_out(options: &WatchOptions) -> usize {
    if options.target == Target::Prefix { options.watchers.count } else { 1 }
}

pub fn render(options: &WatchOptions, seen: &Seen, format: Format) -> String {
    if format == Format::Json { json(options, seen) } else { text(options, seen) }
}

fn json(options: &WatchOptions, seen: &Seen) -> String {
    let puts = puts(&options.puts, &seen.puts);
    let watchers = &options.watchers;
    let cpu = seen.cpu.map(|cpu| cpu.as_secs_f64());
    let report = Report {
        bench: options.puts.kind,
        watchers: watchers.count,
        streams: watchers.streams,
        watch_conns: watchers.connections,
        watch_threads: watchers.threads,
        on: target(options.target),
        prev_kv: watchers.prev_kv,
        open_seconds: seen.opened_in.as_secs_f64(),
        elapsed_seconds: seen.elapsed.as_secs_f64(),
        client_cpu_seconds: cpu,
        client_cpu_us_per_event: cpu.map(|cpu| (cpu * 1e8 / seen.delivered.max(1) as f64).round() / 100.0),
        events: Events {
            expected: seen.expected,
            delivered: seen.delivered,
            missing: seen.verdict.missing,
            surplus: seen.verdict.surplus,
            disorder: seen.verdict.disorder,
            foreign: seen.times.foreign,
            watchers_flawless: seen.flawless,
            streams_broken: seen.broken,
            per_second: per_second(seen.times.from_put.count(), seen.elapsed),
            expected_per_second: (puts.line.per_second * fan_out(options) as f64).round(),
            latency_us: Latency::of(&seen.times.from_put),
            from_ack_us: options.acks.then(|| Latency::of(&seen.times.from_ack)),
            before_ack: options.acks.then_some(seen.times.before_ack),
            lag_ms: millis(seen.lag),
        },
        puts,
        error_texts: &seen.texts,
    };
    serde_json::to_string(&report).expect("a report is plain numbers and text") + "\n"
}

fn where_from(watchers: &Watchers) -> String {
    let Watchers { count, streams, connections, .. } = watchers;
    format!("{count} watchers on {streams} streams over {connections} connections")
}

fn text(options: &WatchOptions, seen: &Seen) -> String {
    let all = together(&seen.puts);
    let put = line(&all, seen.puts.elapsed);
    let rate = options
        .puts
        .rate
        .map_or("as fast as they are answered".to_owned(), |rate| format!("{rate} per second"));
    let arrived = per_second(seen.times.from_put.count(), seen.elapsed);
    let wrong = seen.verdict.missing + seen.verdict.disorder;
    let mut out = format!(
        "bench {}: {}, each on {}; puts {rate} from {} clients\n\n{}\n{}\n{}\n",
        options.puts.kind,
        where_from(&options.watchers),
        if options.target == Target::Prefix { "the prefix" } else { "its own key" },
        options.puts.clients,
        table_head(),
        table_row("put", put.requests, put.errors, put.per_second, &all.latency),
        table_row("event", seen.times.from_put.count(), wrong, arrived, &seen.times.from_put),
    );
    if options.acks {
        let ack = &seen.times.from_ack;
        out += &format!("{}\n", table_row("(ack)", ack.count(), 0, arrived, ack));
    }
    out += "\nevents count from when their put was due";
    if options.acks {
        out += &format!(", in the last line from its answer ({} were here before it)", seen.times.before_ack);
    }
    out += &format!(
        "\n{} of {} events, {:.0} per second of {:.0}; the last one came {} after the last put was answered\n",
        seen.delivered,
        seen.expected,
        arrived,
        put.per_second * fan_out(options) as f64,
        short(u64::try_from(seen.lag.as_nanos()).unwrap_or(u64::MAX)),
    );
    out += &format!(
        "{} of {} watchers got every event once and in order\n",
        seen.flawless, options.watchers.count
    );
    if seen.puts.unsent > 0 {
        out += &format!("{} puts were due and not sent before the time was up\n", seen.puts.unsent);
    }
    if seen.times.foreign > 0 {
        out += &format!("{} events are of puts that are not ours\n", seen.times.foreign);
    }
    for (text, count) in &seen.texts {
        out += &format!("{count} errors: {text}\n");
    }
    let cpu = seen.cpu.map(|cpu| format!(", {} of processor time in this client", format_duration(cpu)));
    out + &format!(
        "took {}{}\n",
        format_duration(Duration::from_millis(seen.elapsed.as_millis() as u64)),
        cpu.unwrap_or_default()
    )
}

#[derive(Serialize)]
struct CatchUpReport<'a> {
    bench: &'a str,
    watchers: usize,
    streams: usize,
    from_revision: i64,
    to_revision: i64,
    seconds: f64,
    events: u64,
    events_per_second: f64,
    missing: u64,
    disorder: u64,
    watchers_there: usize,
    client_cpu_seconds: Option<f64>,
    puts_before: Puts,
    puts_during: Puts,
    error_texts: &'a BTreeMap<String, u64>,
}

pub fn render_catch_up(options: &CatchUpOptions, seen: &CaughtUp, format: Format) -> String {
    if format == Format::Json {
        let report = CatchUpReport {
            bench: options.puts.kind,
            watchers: options.watchers.count,
            streams: options.watchers.streams,
            from_revision: options.from,
            to_revision: seen.target,
            seconds: seen.elapsed.as_secs_f64(),
            events: seen.events,
            events_per_second: per_second(seen.events, seen.elapsed),
            missing: seen.missing,
            disorder: seen.disorder,
            watchers_there: seen.there,
            client_cpu_seconds: seen.cpu.map(|cpu| cpu.as_secs_f64()),
            puts_before: puts(&options.puts, &seen.before),
            puts_during: puts(&options.puts, &seen.during),
            error_texts: &seen.texts,
        };
        return serde_json::to_string(&report).expect("a report is plain numbers and text") + "\n";
    }
    let row = |name: &str, outcome: &Outcome| {
        let (all, put) = (together(outcome), line(&together(outcome), outcome.elapsed));
        table_row(name, put.requests, put.errors, put.per_second, &all.latency)
    };
    let mut out = format!(
        "bench {}: {} from revision {} on, {} put clients\n\n{}\n{}\n{}\n\n",
        options.puts.kind,
        where_from(&options.watchers),
        options.from,
        options.puts.clients,
        table_head(),
        row("before", &seen.before),
        row("during", &seen.during),
    );
    out += &format!(
        "{} events in {}, {:.0} per second; {} of {} watchers reached revision {}, where the store was when they began\n",
        seen.events,
        short(u64::try_from(seen.elapsed.as_nanos()).unwrap_or(u64::MAX)),
        per_second(seen.events, seen.elapsed),
        seen.there,
        options.watchers.count,
        seen.target,
    );
    out += &format!("{} revisions are missing, {} events out of order\n", seen.missing, seen.disorder);
    for (text, count) in &seen.texts {
        out += &format!("{count} errors: {text}\n");
    }
    out
}
