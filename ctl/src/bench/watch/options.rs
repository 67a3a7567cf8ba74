//! What a measurement of watches is told, besides what the puts are told.

use crate::bench::options::{Options, at_least_one, count, duration, load};
use crate::bench::watch::ledger::STAMP_BYTES;
use crate::cli;
use crate::failure::{Failure, Result};
use clap::{ArgMatches, Command};
use std::time::Duration;

/// Connections of the watch streams when nobody says how many: one for each stream, as if each were a process of its own, up to
/// this number.
const CONNECTIONS_DEFAULT_MAX: usize = 16;

/// What watchers watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All of them the prefix that all keys have.
    Prefix,
    /// Each a key of its own.
    Keys,
}

/// Where watchers are.
#[derive(Clone, Debug)]
pub struct Watchers {
    pub count: usize,
    pub streams: usize,
    pub connections: usize,
    pub threads: usize,
    pub prev_kv: bool,
    /// Without an event for so long, what is not there is missing.
    pub patience: Duration,
}

#[derive(Clone, Debug)]
pub struct WatchOptions {
    pub puts: Options,
    pub watchers: Watchers,
    pub target: Target,
    /// Keep the time of each put's answer, for the latency from there.
    pub acks: bool,
    /// No puts: only keep the watchers open for so long.
    pub hold: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct CatchUpOptions {
    pub puts: Options,
    pub watchers: Watchers,
    /// The first revision to watch.
    pub from: i64,
    /// How long the puts run alone before.
    pub quiet: Duration,
}

fn watchers(command: Command, number: &'static str) -> Command {
    command.args([
        count("watchers", number, "Watchers altogether"),
        count("streams", if number == "1" { "1" } else { "10" }, "Streams the watchers share"),
        count("watch-conns", "", "Connections the streams share (default: one each, at most 16)"),
        count("watch-threads", "1", "Threads that receive events"),
        cli::switch("prev-kv", "Events bring the value before as well"),
        cli::value("patience", "Without an event for so long, what has not come is missing")
            .default_value("10s"),
    ])
}

/// The kinds of measurement.
pub fn commands() -> [Command; 3] {
    let on = || cli::value("on", "What watchers watch: prefix (all of them all keys) or keys (each its own)");
    let hold =
        || cli::value("hold", "No puts: keep the watchers open for so long and say on stderr from when on");
    [
        watchers(load("watch", "Watches: every event to every watcher, none lost, and how fast"), "100")
            .args([on().default_value("prefix"), hold()]),
        watchers(
            load("watch-latency", "Watches well below what the server could do: how late events are"),
            "100",
        )
        .arg(on().default_value("prefix"))
        .mut_arg("rate", |arg| arg.default_value("200"))
        .mut_arg("duration", |arg| arg.default_value("10s"))
        .mut_arg("clients", |arg| arg.default_value("16"))
        .mut_arg("total", |arg| arg.help("Stop after so many puts instead")),
        watchers(load("watch-catch-up", "Watchers that begin in the past while puts go on"), "1")
            .args([
                count("from", "1", "First revision to watch"),
                cli::value("quiet", "How long the puts run alone before").default_value("5s"),
            ])
            .mut_arg("clients", |arg| arg.default_value("20"))
            .mut_arg("total", |arg| arg.hide(true))
            .mut_arg("duration", |arg| arg.hide(true)),
    ]
}

impl Watchers {
    fn read(matches: &ArgMatches) -> Result<Watchers> {
        let count = at_least_one(matches, "watchers")?;
        let streams = at_least_one(matches, "streams")?.min(count);
        let connections = match matches.contains_id("watch-conns") {
            true => at_least_one(matches, "watch-conns")?.min(streams),
            false => streams.min(CONNECTIONS_DEFAULT_MAX),
        };
        Ok(Watchers {
            count,
            streams,
            connections,
            threads: at_least_one(matches, "watch-threads")?.min(connections),
            prev_kv: cli::on(matches, "prev-kv"),
            patience: duration(matches, "patience")?.unwrap_or_default(),
        })
    }
}

impl WatchOptions {
    pub fn read(kind: &'static str, matches: &ArgMatches) -> Result<WatchOptions> {
        let watchers = Watchers::read(matches)?;
        let target = match cli::text(matches, "on") {
            "prefix" => Target::Prefix,
            "keys" => Target::Keys,
            other => {
                return Err(Failure::usage(format!(
                    "invalid argument {other:?} for \"--on\" flag: expecting prefix or keys"
                )));
            }
        };
        // Every key has its watcher, so every put is one event.
        let keys = (target == Target::Keys).then_some(watchers.count as u64);
        let puts = Options::read_with(kind, matches, keys)?;
        if puts.value_bytes < STAMP_BYTES {
            return Err(Failure::arguments(format!(
                "--val-size must be at least {STAMP_BYTES}: values carry the time and number of their put"
            )));
        }
        let hold = matches.try_contains_id("hold").is_ok();
        Ok(WatchOptions {
            puts,
            watchers,
            target,
            acks: kind == "watch-latency",
            hold: if hold { duration(matches, "hold")? } else { None },
        })
    }
}

impl CatchUpOptions {
    pub fn read(matches: &ArgMatches) -> Result<CatchUpOptions> {
        if matches.contains_id("total") || matches.contains_id("duration") {
            return Err(Failure::arguments("watch-catch-up ends when the watchers have caught up"));
        }
        Ok(CatchUpOptions {
            puts: Options::read("watch-catch-up", matches)?,
            watchers: Watchers::read(matches)?,
            from: i64::try_from(at_least_one(matches, "from")?)
                .map_err(|_| Failure::arguments("--from is too large"))?,
            quiet: duration(matches, "quiet")?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::options::Until;

    fn matches(line: &str) -> (String, ArgMatches) {
        let matches = crate::cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let (kind, inner) = matches.subcommand().unwrap().1.subcommand().unwrap();
        (kind.to_owned(), inner.clone())
    }

    fn options(line: &str) -> Result<WatchOptions> {
        let (kind, inner) = matches(line);
        WatchOptions::read(if kind == "watch" { "watch" } else { "watch-latency" }, &inner)
    }

    #[test]
    fn each_watcher_of_single_keys_has_its_own_key() {
        let keys = options("cairnctl bench watch --watchers 7 --on keys --key-space 3").unwrap();
        assert_eq!((keys.target, keys.puts.key_space), (Target::Keys, 7));
        let prefix = options("cairnctl bench watch --watchers 7").unwrap();
        assert_eq!((prefix.target, prefix.puts.key_space), (Target::Prefix, 10_000));
    }

    #[test]
    fn there_are_no_more_streams_than_watchers_and_no_more_connections_than_streams() {
        let of = |line: &str| {
            let Watchers { count, streams, connections, threads, .. } = options(line).unwrap().watchers;
            (count, streams, connections, threads)
        };
        assert_eq!(of("cairnctl bench watch"), (100, 10, 10, 1));
        assert_eq!(of("cairnctl bench watch --watchers 3 --watch-conns 9 --watch-threads 9"), (3, 3, 3, 3));
        assert_eq!(of("cairnctl bench watch --watchers 1000 --streams 1000"), (1000, 1000, 16, 1));
    }

    #[test]
    fn latency_is_measured_at_a_rate_for_a_time_or_a_number_of_puts() {
        let plain = options("cairnctl bench watch-latency").unwrap();
        assert_eq!(
            (plain.puts.rate, plain.puts.until),
            (Some(200.0), Until::Elapsed(Duration::from_secs(10)))
        );
        assert!(plain.acks);
        let total = options("cairnctl bench watch-latency --total 5").unwrap();
        assert_eq!(total.puts.until, Until::Total(5));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for line in [
            "cairnctl bench watch --val-size 15",
            "cairnctl bench watch --on x",
            "cairnctl bench watch --watchers 0",
            "cairnctl bench watch --watch-conns 0",
            "cairnctl bench watch-latency --total 1 --duration 1s",
        ] {
            assert!(options(line).is_err(), "{line} should be refused");
        }
        assert!(CatchUpOptions::read(&matches("cairnctl bench watch-catch-up --total 1").1).is_err());
        let plain = CatchUpOptions::read(&matches("cairnctl bench watch-catch-up").1).unwrap();
        assert_eq!((plain.puts.clients, plain.watchers.count, plain.from), (20, 1, 1));
    }
}
