//! The numbers of a measurement of leases as text or JSON.

use super::Kept;
use super::expire::Expired;
use super::options::ExpireOptions;
use crate::bench::options::Options;
use crate::bench::report::{Latency, Line, line, per_second, short, table_head, table_row, together};
use crate::bench::run::Outcome;
use crate::settings::Format;
use crate::units::format_duration;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Serialize)]
struct Renewals {
    requests: u64,
    errors: u64,
    lost: u64,
    per_second: f64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct KeepAlive<'a> {
    bench: &'a str,
    clients: usize,
    conns: usize,
    threads: usize,
    leases: u64,
    ttl_seconds: i64,
    elapsed_seconds: f64,
    client_cpu_seconds: Option<f64>,
    grants: Line,
    total: Renewals,
    error_texts: &'a BTreeMap<String, u64>,
}

fn row(name: &str, outcome: &Outcome) -> String {
    let (all, numbers) = (together(outcome), line(&together(outcome), outcome.elapsed));
    table_row(name, numbers.requests, numbers.errors, numbers.per_second, &all.latency)
}

pub fn keep_alive(options: &Options, granted: &Outcome, kept: &Kept, format: Format) -> String {
    let rate = per_second(kept.latency.count(), kept.elapsed);
    if format == Format::Json {
        let report = KeepAlive {
            bench: options.kind,
            clients: options.clients,
            conns: options.connections,
            threads: options.threads,
            leases: options.key_space,
            ttl_seconds: options.ttl,
            elapsed_seconds: kept.elapsed.as_secs_f64(),
            client_cpu_seconds: kept.cpu.map(|cpu| cpu.as_secs_f64()),
            grants: line(&together(granted), granted.elapsed),
            total: Renewals {
                requests: kept.latency.count(),
                errors: kept.errors,
                lost: kept.lost,
                per_second: rate,
                latency_us: Latency::of(&kept.latency),
            },
            error_texts: &kept.texts,
        };
        return serde_json::to_string(&report).expect("a report is plain numbers and text") + "\n";
    }
    let mut out = format!(
        "bench {}: {} leases of {}s, {} streams over {} connections\n\n{}\n{}\n{}\n\n",
        options.kind,
        options.key_space,
        options.ttl,
        options.clients,
        options.connections,
        table_head(),
        row("grant", granted),
        table_row("renew", kept.latency.count(), kept.errors, rate, &kept.latency),
    );
    if kept.lost > 0 {
        out += &format!("{} renewals found no lease\n", kept.lost);
    }
    for (text, count) in &kept.texts {
        out += &format!("{count} errors: {text}\n");
    }
    let cpu = kept.cpu.map(|cpu| format!(", {} of processor time in this client", format_duration(cpu)));
    out + &format!(
        "took {}{}\n",
        format_duration(Duration::from_millis(kept.elapsed.as_millis() as u64)),
        cpu.unwrap_or_default()
    )
}

#[derive(Serialize)]
struct Beats<'a> {
    leases: usize,
    ttl_seconds: i64,
    heartbeats: u64,
    lost: u64,
    unanswered: u64,
    latency_us: Latency,
    error_texts: &'a BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Expire<'a> {
    bench: &'a str,
    leases: u64,
    ttl_seconds: i64,
    grants: Line,
    puts: Line,
    deadline_spread_ms: f64,
    gone: u64,
    left: u64,
    early: u64,
    twice: u64,
    revisions: u64,
    last_gone_ms: Option<f64>,
    late_us: Latency,
    kept: Beats<'a>,
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1000.0
}

pub fn expire(options: &ExpireOptions, expired: &Expired, format: Format) -> String {
    let leases = &options.leases;
    let beats = &expired.heartbeats;
    if format == Format::Json {
        let report = Expire {
            bench: leases.kind,
            leases: leases.key_space,
            ttl_seconds: leases.ttl,
            grants: line(&together(&expired.granted), expired.granted.elapsed),
            puts: line(&together(&expired.put), expired.put.elapsed),
            deadline_spread_ms: millis(expired.spread),
            gone: expired.gone,
            left: leases.key_space - expired.gone,
            early: expired.early,
            twice: expired.twice,
            revisions: expired.revisions,
            last_gone_ms: expired.last_gone.map(millis),
            late_us: Latency::of(&expired.late),
            kept: Beats {
                leases: options.kept,
                ttl_seconds: options.kept_ttl,
                heartbeats: beats.latency.count(),
                lost: beats.lost,
                unanswered: beats.unanswered,
                latency_us: Latency::of(&beats.latency),
                error_texts: &beats.texts,
            },
        };
        return serde_json::to_string(&report).expect("a report is plain numbers and text") + "\n";
    }
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut out = format!(
        "bench {}: {} leases of {}s with a key each, {} others kept alive\n\n{}\n{}\n{}\n{}\n{}\n\n",
        leases.kind,
        leases.key_space,
        leases.ttl,
        options.kept,
        table_head(),
        row("grant", &expired.granted),
        row("put", &expired.put),
        table_row("late", expired.gone, expired.early, 0.0, &expired.late),
        table_row("beat", beats.latency.count(), beats.lost + beats.unanswered, 0.0, &beats.latency),
    );
    out += &format!("deadlines within {}, ", short(nanos(expired.spread)));
    out += &match expired.last_gone {
        Some(after) => {
            format!(
                "the last key gone {} after them, in {} revisions\n",
                short(nanos(after)),
                expired.revisions
            )
        }
        None => "keys are left\n".to_owned(),
    };
    out += &format!(
        "{} of {} keys are gone, {} before their time; {} heartbeats of the others, {} found no lease, {} not answered\n",
        expired.gone,
        leases.key_space,
        expired.early,
        beats.latency.count(),
        beats.lost,
        beats.unanswered,
    );
    for (text, count) in &beats.texts {
        out += &format!("{count} errors: {text}\n");
    }
    out
}
