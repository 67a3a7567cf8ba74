//! What a measurement of leases is told.

use crate::bench::options::{Options, at_least_one, count, duration, keyed, kind, paced, timed};
use crate::cli;
use crate::failure::{Failure, Result};
use clap::{ArgMatches, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clients that prepare leases and keys, when the measurement has fewer.
const PREPARING_CLIENTS_MIN: usize = 64;
const PREPARING_CONNECTIONS_MIN: usize = 4;

#[derive(Clone, Debug)]
pub struct ExpireOptions {
    /// Of the leases that expire, their keys and their number.
    pub leases: Options,
    /// Leases besides that must not expire.
    pub kept: usize,
    /// Time to live of those, in seconds.
    pub kept_ttl: i64,
    /// Streams that renew those.
    pub streams: usize,
    /// How long after the last deadline the keys may take to be gone.
    pub patience: Duration,
}

/// The kinds of measurement.
pub fn command() -> Command {
    let ttl =
        |default| count("ttl", default, "Seconds that a lease lives; servers raise less than their minimum");
    Command::new("lease")
        .about("Leases: granting, keeping alive, expiring")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            paced(timed(kind("grant", "Grants: one lease per request, with an id that the server chooses"))).arg(ttl("60")),
            timed(kind("keep-alive", "Keep-alives: each client a stream with one renewal under way, over leases granted before"))
                .args([ttl("60"), count("leases", "", "Leases that the clients renew in turn (default: one each)")])
                .mut_arg("clients", |arg| arg.default_value("64"))
                .mut_arg("conns", |arg| arg.default_value("8")),
            keyed(kind("expire", "Expiry: leases with a key each that all end in the same second, watched until the last key is gone"))
                .args([
                    ttl("10"),
                    count("leases", "10000", "Leases that expire"),
                    count("keep", "1000", "Other leases that are kept alive meanwhile and must not end"),
                    count("keep-ttl", "", "Seconds that those live; renewed at a third of it (default: --ttl)"),
                    cli::value("patience", "How long after their deadline the last keys are waited for").default_value("60s"),
                ])
                .mut_arg("clients", |arg| arg.default_value("16").help("Streams that renew leases"))
                .mut_arg("conns", |arg| arg.default_value("4")),
        ])
}

/// The first of many lease ids that nobody else has: the time in nanoseconds, so that runs a millisecond apart may each have a
/// million leases.
fn lease_base() -> i64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    (nanos as i64 & (i64::MAX >> 1)).max(1)
}

fn ttl(options: &Options) -> Result<()> {
    if options.ttl == 0 { Err(Failure::arguments("--ttl must be at least 1")) } else { Ok(()) }
}

pub fn grant(matches: &ArgMatches) -> Result<Options> {
    let options = Options::read("lease grant", matches)?;
    ttl(&options)?;
    Ok(Options { sequential: true, key_space: 1, ..options })
}

/// `key_space` is the number of leases.
pub fn keep_alive(matches: &ArgMatches) -> Result<Options> {
    let options = Options::read("lease keep-alive", matches)?;
    ttl(&options)?;
    let leases =
        if matches.contains_id("leases") { at_least_one(matches, "leases")? } else { options.clients };
    if leases < options.clients {
        return Err(Failure::arguments(format!(
            "--leases={leases} is too small: each of {} clients renews leases of its own",
            options.clients
        )));
    }
    Ok(Options { sequential: true, key_space: leases as u64, lease_base: Some(lease_base()), ..options })
}

/// The requests that prepare `leases` leases, or their keys.
pub fn preparing(options: &Options, operation: crate::bench::options::Operation) -> Options {
    Options {
        clients: options.clients.max(PREPARING_CLIENTS_MIN),
        connections: options.connections.max(PREPARING_CONNECTIONS_MIN),
        until: crate::bench::options::Until::Total(options.key_space),
        warmup: Duration::ZERO,
        rate: None,
        sequential: true,
        weights: vec![(operation, 1)],
        ..options.clone()
    }
}

impl ExpireOptions {
    pub fn read(matches: &ArgMatches) -> Result<ExpireOptions> {
        let leases = at_least_one(matches, "leases")?;
        let options = Options::read_with("lease expire", matches, Some(leases as u64))?;
        ttl(&options)?;
        let kept = matches.get_one::<u64>("keep").copied().unwrap_or(0);
        let kept_ttl = if matches.contains_id("keep-ttl") {
            at_least_one(matches, "keep-ttl")? as i64
        } else {
            options.ttl
        };
        Ok(ExpireOptions {
            kept: usize::try_from(kept).map_err(|_| Failure::arguments("--keep is too large"))?,
            kept_ttl,
            streams: options.clients,
            patience: duration(matches, "patience")?.unwrap_or_default(),
            leases: Options { sequential: true, lease_base: Some(lease_base()), ..options },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::options::{Operation, Until};

    fn matches(line: &str) -> ArgMatches {
        let mut matches = crate::cli::command().try_get_matches_from(line.split(' ')).unwrap();
        while let Some((_, inner)) = matches.remove_subcommand() {
            matches = inner;
        }
        matches
    }

    #[test]
    fn grants_let_the_server_choose_and_what_is_renewed_has_ids_of_ours() {
        let granted = grant(&matches("cairnctl bench lease grant --total 5 --rate 10")).unwrap();
        assert_eq!((granted.lease_base, granted.until, granted.rate), (None, Until::Total(5), Some(10.0)));
        let kept = keep_alive(&matches("cairnctl bench lease keep-alive --leases 100")).unwrap();
        assert_eq!((kept.clients, kept.connections, kept.key_space), (64, 8, 100));
        assert!(kept.lease_base.is_some_and(|base| base > 0 && base.checked_add(1 << 40).is_some()));
        let grants = preparing(&kept, Operation::Grant);
        assert_eq!(
            (grants.until, grants.lease_base, grants.clients),
            (Until::Total(100), kept.lease_base, 64)
        );
    }

    #[test]
    fn every_client_has_a_lease() {
        assert_eq!(keep_alive(&matches("cairnctl bench lease keep-alive --clients 3")).unwrap().key_space, 3);
        assert!(keep_alive(&matches("cairnctl bench lease keep-alive --clients 3 --leases 2")).is_err());
    }

    #[test]
    fn expiry_has_a_key_for_each_lease() {
        let expire =
            ExpireOptions::read(&matches("cairnctl bench lease expire --leases 50000 --ttl 7")).unwrap();
        assert_eq!(
            (expire.leases.key_space, expire.leases.ttl, expire.kept, expire.kept_ttl),
            (50_000, 7, 1000, 7)
        );
        for line in ["--ttl 0", "--leases 0", "--key-size 8", "--keep-ttl 0"] {
            let line = format!("cairnctl bench lease expire {line}");
            assert!(ExpireOptions::read(&matches(&line)).is_err(), "{line} should be refused");
        }
    }
}
