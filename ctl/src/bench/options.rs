//! What a measurement is told: flags, their defaults and the combinations that make no sense.

use crate::cli;
use crate::failure::{Failure, Result};
use crate::units::parse_duration;
use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::time::Duration;

/// Requests when neither `--total` nor `--duration` is given.
const DEFAULT_TOTAL: u64 = 10_000;
/// Operations that one transaction may hold on a server with default settings.
pub const TXN_OPS_MAX: u64 = 128;
/// Bytes of one filling transaction; well below the 1.5 MiB that servers take by default.
pub const TXN_BYTES_MAX: u64 = 1024 * 1024;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Put,
    Get,
    List,
    Page,
    Txn,
    Fill,
    Grant,
    /// A put of the key with the number of its lease.
    LeasedPut,
}

impl Operation {
    pub const ALL: [Operation; 8] = [
        Operation::Put,
        Operation::Get,
        Operation::List,
        Operation::Page,
        Operation::Txn,
        Operation::Fill,
        Operation::Grant,
        Operation::LeasedPut,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::List => "list",
            Operation::Page => "page",
            Operation::Txn => "txn",
            Operation::Fill => "fill",
            Operation::Grant => "grant",
            Operation::LeasedPut => "put",
        }
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Total(u64),
    Elapsed(Duration),
}

#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the measurement, for the report.
    pub kind: &'static str,
    pub clients: usize,
    pub connections: usize,
    pub threads: usize,
    pub until: Until,
    /// Results of so long after the start are not counted.
    pub warmup: Duration,
    /// Requests per second that are due whether or not earlier ones are answered; `None`: each client sends as answers come.
    pub rate: Option<f64>,
    pub prefix: String,
    pub key_bytes: usize,
    pub value_bytes: usize,
    pub key_space: u64,
    pub sequential: bool,
    pub serializable: bool,
    /// Keys of a `List`.
    pub list: i64,
    /// Keys of a `Page`.
    pub page: i64,
    /// Relative frequency of each operation.
    pub weights: Vec<(Operation, u64)>,
    /// `fill`: puts in one transaction.
    pub txn_ops: u64,
    /// Seconds that a granted lease lives.
    pub ttl: i64,
    /// The id of the first lease, others follow; `None`: the server chooses.
    pub lease_base: Option<i64>,
    pub seed: u64,
}

/// A flag with a count; an empty default means that there is none.
pub fn count(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| text.parse::<u64>().map_err(|why| why.to_string());
    let arg = cli::value(name, help).value_name("number").value_parser(ValueParser::new(parse));
    if default.is_empty() { arg } else { arg.default_value(default) }
}

/// A measurement with clients.
pub fn kind(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).args([
        count("clients", if name == "fill" { "8" } else { "1" }, "Requests under way at once"),
        count("conns", "1", "Connections the clients share"),
        count("threads", "1", "Threads of the generator"),
        count("seed", "1", "Seed of the random choices; the same seed makes the same requests"),
    ])
}

/// Which keys and values.
pub fn keyed(command: Command) -> Command {
    command.args([
        count("key-size", "24", "Bytes of a key"),
        count("val-size", "256", "Bytes of a value").alias("value-size"),
        cli::value("key-prefix", "What every key begins with").default_value("bench/"),
    ])
}

/// When to stop and how fast to go.
pub fn timed(command: Command) -> Command {
    command.args([
        count("total", "", "Stop after so many requests (default 10000 without --duration)"),
        cli::value("duration", "Stop after this time instead"),
        cli::value("warmup", "Do not count what starts in this time").default_value("0"),
    ])
}

/// Requests per second that are due, come what may.
pub fn paced(command: Command) -> Command {
    command.arg(cli::value(
        "rate",
        "Requests per second, due whether or not earlier ones are answered (open loop)",
    ))
}

/// A measurement of requests for single keys.
pub fn load(name: &'static str, about: &'static str) -> Command {
    paced(timed(keyed(kind(name, about)))).args([
        count("key-space", "10000", "How many different keys").alias("key-space-size"),
        cli::switch("sequential", "Keys one after another instead of at random").alias("sequential-keys"),
    ])
}

/// The `bench` verb and its kinds.
pub fn command() -> Command {
    let reads = |command: Command| {
        command.arg(cli::switch("serializable", "Read each member's own state (default: linearizable)"))
    };
    Command::new("bench")
        .about("Measures puts, ranges, mixes, watches and leases against any etcd endpoint")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            load("put", "Puts: one key per request"),
            reads(load("range", "Ranges: single keys, or lists, or pages over the whole key space")).args([
                count("list", "", "Each request lists so many keys from a random one on"),
                count(
                    "page-size",
                    "",
                    "Each client walks over all keys in pages of so many, at one revision per walk",
                ),
            ]),
            reads(load("mixed", "Gets, transactions, lists and puts in the given proportions")).args([
                count("get", "60", "Weight of single-key gets"),
                count("txn", "30", "Weight of transactions: one comparison, one put"),
                count("list", "10", "Weight of lists"),
                count("put", "0", "Weight of puts"),
                count("list-size", "100", "Keys of a list"),
            ]),
            keyed(kind("fill", "Prepares data fast: every key, in transactions of many puts")).args([
                count("keys", "10000", "How many keys"),
                count("versions", "1", "How often each key is written"),
                count("txn-ops", "", "Puts in one transaction (default: as many as fit, at most 128)"),
            ]),
        ])
        .subcommands(super::watch::options::commands())
        .subcommand(super::lease::options::command())
}

/// The value of a flag that is a duration.
pub fn duration(matches: &ArgMatches, name: &'static str) -> Result<Option<Duration>> {
    let text = matches.try_get_one::<String>(name).ok().flatten();
    let invalid =
        |text: &str, why| Failure::usage(format!("invalid argument {text:?} for \"--{name}\" flag: {why}"));
    text.map(|text| parse_duration(text).map_err(|why| invalid(text, why))).transpose()
}

/// The value of a flag that counts something of which there must be one.
pub fn at_least_one(matches: &ArgMatches, name: &'static str) -> Result<usize> {
    let value = matches.get_one::<u64>(name).copied().unwrap_or(1);
    match usize::try_from(value) {
        Ok(0) => Err(Failure::arguments(format!("--{name} must be at least 1"))),
        Ok(value) => Ok(value),
        Err(_) => Err(Failure::arguments(format!("--{name} is too large"))),
    }
}

impl Options {
    pub fn read(kind: &'static str, matches: &ArgMatches) -> Result<Options> {
        Self::read_with(kind, matches, None)
    }

    /// `keys` overrules the flags' number of different keys.
    pub fn read_with(kind: &'static str, matches: &ArgMatches, keys: Option<u64>) -> Result<Options> {
        let has = |name: &str| matches.try_contains_id(name).is_ok();
        let number = |name: &str| if has(name) { matches.get_one::<u64>(name).copied() } else { None };
        let text = |name: &str| if has(name) { matches.get_one::<String>(name).cloned() } else { None };
        let at_least_one = |name: &'static str, value: u64| {
            if value == 0 {
                Err(Failure::arguments(format!("--{name} must be at least 1")))
            } else {
                Ok(value)
            }
        };
        let switch = |name: &str| has(name) && cli::on(matches, name);

        let clients = at_least_one("clients", number("clients").unwrap_or(1))?;
        let connections = at_least_one("conns", number("conns").unwrap_or(1))?.min(clients);
        let threads = at_least_one("threads", number("threads").unwrap_or(1))?.min(connections);
        let versions = at_least_one("versions", number("versions").unwrap_or(1))?;
        let key_space = keys.or(number("keys")).or(number("key-space")).unwrap_or(1);
        let key_space = at_least_one("key-space", key_space)?;
        let (key_bytes, value_bytes) = (number("key-size").unwrap_or(24), number("val-size").unwrap_or(256));
        let prefix = text("key-prefix").unwrap_or_default();
        let digits = (key_space - 1).checked_ilog10().map_or(1, |log| log as u64 + 1);
        if key_bytes < prefix.len() as u64 + digits {
            return Err(Failure::arguments(format!(
                "--key-size={key_bytes} is too small: the prefix {prefix:?} and a number below {key_space} need {} bytes",
                prefix.len() as u64 + digits
            )));
        }
        let rate = match text("rate") {
            None => None,
            Some(text) => match text.parse::<f64>() {
                Ok(rate) if rate.is_finite() && rate > 0.0 => Some(rate),
                _ => {
                    return Err(Failure::usage(format!(
                        "invalid argument {text:?} for \"--rate\" flag: expecting requests per second, above 0"
                    )));
                }
            },
        };
        let fit = (TXN_BYTES_MAX / (key_bytes + value_bytes + 32)).clamp(1, TXN_OPS_MAX);
        let txn_ops = at_least_one("txn-ops", number("txn-ops").unwrap_or(fit))?;
        // A duration that is only a default gives way to a total.
        let defaulted = || matches.value_source("duration") == Some(ValueSource::DefaultValue);
        let lasting = if number("total").is_some() && has("duration") && defaulted() {
            None
        } else {
            duration(matches, "duration")?
        };
        let until = match (kind, number("total"), lasting) {
            ("fill", ..) => Until::Total(versions.saturating_mul(key_space.div_ceil(txn_ops))),
            (_, Some(_), Some(_)) => {
                return Err(Failure::arguments(
                    "--total and --duration cannot be set at the same time, choose one",
                ));
            }
            (_, _, Some(time)) => Until::Elapsed(time),
            (_, total, None) => Until::Total(total.unwrap_or(DEFAULT_TOTAL)),
        };
        let list = if kind == "mixed" { number("list-size") } else { number("list") }.unwrap_or(0);
        let page = number("page-size").unwrap_or(0);
        let weights = match kind {
            "lease grant" | "lease keep-alive" | "lease expire" => vec![(Operation::Grant, 1)],
            "fill" => vec![(Operation::Fill, 1)],
            "range" if list > 0 && page > 0 => {
                return Err(Failure::arguments(
                    "--list and --page-size cannot be set at the same time, choose one",
                ));
            }
            "range" if list > 0 => vec![(Operation::List, 1)],
            "range" if page > 0 => vec![(Operation::Page, 1)],
            "range" => vec![(Operation::Get, 1)],
            "mixed" => {
                let all = [
                    (Operation::Get, "get"),
                    (Operation::Txn, "txn"),
                    (Operation::List, "list"),
                    (Operation::Put, "put"),
                ];
                all.iter()
                    .map(|(operation, name)| (*operation, number(name).unwrap_or(0)))
                    .filter(|(_, weight)| *weight > 0)
                    .collect()
            }
            _ => vec![(Operation::Put, 1)],
        };
        if weights.is_empty() {
            return Err(Failure::arguments("every weight is 0: nothing to do"));
        }
        let whole = |name: &'static str, value: u64| {
            usize::try_from(value).map_err(|_| Failure::arguments(format!("--{name} is too large")))
        };
        let limit = |name: &'static str, value: u64| {
            i64::try_from(value).map_err(|_| Failure::arguments(format!("--{name} is too large")))
        };
        Ok(Options {
            kind,
            clients: whole("clients", clients)?,
            connections: whole("conns", connections)?,
            threads: whole("threads", threads)?,
            until,
            warmup: duration(matches, "warmup")?.unwrap_or_default(),
            rate,
            prefix,
            key_bytes: whole("key-size", key_bytes)?,
            value_bytes: whole("val-size", value_bytes)?,
            key_space,
            sequential: switch("sequential"),
            serializable: switch("serializable"),
            list: limit("list", list)?,
            page: limit("page-size", page)?,
            weights,
            txn_ops,
            ttl: limit("ttl", number("ttl").unwrap_or(0))?,
            lease_base: None,
            seed: number("seed").unwrap_or(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options> {
        let matches = crate::cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let (kind, inner) = matches.subcommand().unwrap().1.subcommand().unwrap();
        Options::read(crate::bench::known(kind), inner)
    }

    #[test]
    fn filling_takes_as_many_puts_per_transaction_as_fit() {
        let fill = options("cairnctl bench fill --keys 1000 --versions 3").unwrap();
        assert_eq!((fill.txn_ops, fill.until), (128, Until::Total(3 * 8)));
        let big = options("cairnctl bench fill --keys 1000 --val-size 100000").unwrap();
        assert!(big.txn_ops * 100_000 < TXN_BYTES_MAX + 100_000 && big.txn_ops > 1, "{}", big.txn_ops);
    }

    #[test]
    fn a_mix_leaves_out_what_weighs_nothing() {
        let mixed = options("cairnctl bench mixed --get 3 --txn 0 --list 1").unwrap();
        assert_eq!(mixed.weights, [(Operation::Get, 3), (Operation::List, 1)]);
        assert!(options("cairnctl bench mixed --get 0 --txn 0 --list 0").is_err());
    }

    #[test]
    fn senseless_combinations_are_refused() {
        for line in [
            "cairnctl bench put --total 1 --duration 1s",
            "cairnctl bench put --clients 0",
            "cairnctl bench put --key-size 8 --key-space 1000",
            "cairnctl bench put --rate 0",
            "cairnctl bench put --rate nan",
            "cairnctl bench put --duration 5",
            "cairnctl bench range --list 1 --page-size 1",
        ] {
            assert!(options(line).is_err(), "{line} should be refused");
        }
    }

    #[test]
    fn a_range_is_single_keys_unless_it_lists_or_pages() {
        assert_eq!(options("cairnctl bench range").unwrap().weights, [(Operation::Get, 1)]);
        assert_eq!(options("cairnctl bench range --list 5").unwrap().weights, [(Operation::List, 1)]);
        assert_eq!(options("cairnctl bench range --page-size 5").unwrap().weights, [(Operation::Page, 1)]);
    }
}
