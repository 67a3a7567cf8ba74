//! Durations, sizes and numbers as Go programs read and write them, because etcdctl's flags and output use that notation.
//!
//! Not here: sizes on input ("8GiB"), which no verb needs.

use std::time::Duration;

const NANOS_PER_MICRO: u128 = 1_000;
const NANOS_PER_MILLI: u128 = 1_000_000;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Reads `1h2m3.5s`, `250ms`, `0`. Negative durations are refused: no setting of this tool has a meaning for one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => NANOS_PER_MICRO,
            "ms" => NANOS_PER_MILLI,
            "s" => NANOS_PER_SECOND,
            "m" => 60 * NANOS_PER_SECOND,
            "h" => 3600 * NANOS_PER_SECOND,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // Nine digits reach a nanosecond of the largest unit that matters here; more cannot change the result visibly.
        let digits = &fraction[..fraction.len().min(9)];
        let part: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| invalid())? };
        let part = part * scale / 10u128.pow(digits.len() as u32);
        nanos = whole
            .checked_mul(scale)
            .and_then(|n| n.checked_add(part))
            .and_then(|n| n.checked_add(nanos))
            .ok_or_else(invalid)?;
        rest = tail;
    }
    // Go's durations end at i64 nanoseconds; so do ours, which also keeps every addition to "now" in range.
    let nanos = i64::try_from(nanos).map_err(|_| invalid())?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

/// Writes a duration as Go does: `2.058963ms`, `5.00228206s`, `1m2.5s`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |whole: u128, unit: u128| {
        let (int, frac) = (whole / unit, whole % unit);
        if frac == 0 {
            return int.to_string();
        }
        let width = unit.ilog10() as usize;
        format!("{int}.{}", format!("{frac:0width$}").trim_end_matches('0'))
    };
    match nanos {
        0 => "0s".into(),
        n if n < NANOS_PER_MICRO => format!("{n}ns"),
        n if n < NANOS_PER_MILLI => format!("{}µs", fraction(n, NANOS_PER_MICRO)),
        n if n < NANOS_PER_SECOND => format!("{}ms", fraction(n, NANOS_PER_MILLI)),
        n => {
            let minute = 60 * NANOS_PER_SECOND;
            let seconds = fraction(n % minute, NANOS_PER_SECOND);
            match (n / (60 * minute), n / minute % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Bytes in powers of 1000 with at most one decimal, as etcdctl shows database sizes: `20 kB`, `2.1 GB`.
pub fn format_size(bytes: u64) -> String {
    const NAMES: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let power = (bytes as f64).log(1000.0).floor() as usize;
    let value = (bytes as f64 / 1000f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    let name = NAMES[power.min(NAMES.len() - 1)];
    if value < 10.0 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

/// Which Go conversion words the complaint about a bad number.
#[derive(Clone, Copy)]
pub enum Radix {
    Decimal,
    Hex,
}

/// A signed number with Go's complaint when it is none.
pub fn parse_i64(text: &str, radix: Radix) -> Result<i64, String> {
    let base = match radix {
        Radix::Decimal => 10,
        Radix::Hex => 16,
    };
    i64::from_str_radix(text, base).map_err(|error| complaint("ParseInt", text, &error))
}

/// An unsigned number with Go's complaint when it is none. Go takes no sign here, Rust would take a plus.
pub fn parse_u64_hex(text: &str) -> Result<u64, String> {
    if text.starts_with('+') {
        return Err(format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
    }
    u64::from_str_radix(text, 16).map_err(|error| complaint("ParseUint", text, &error))
}

fn complaint(function: &str, text: &str, error: &std::num::ParseIntError) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let reason = if matches!(error.kind(), PosOverflow | NegOverflow) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    format!("strconv.{function}: parsing {text:?}: {reason}")
}

/// The spellings of true and false that Go's flag libraries take.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_like_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("250ms", 250_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("1ns", 1),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "3", "s", "1.2.3s", "5x", "-1s", "1s2", "99999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text} should be refused");
        }
        assert_eq!(parse_duration("3").unwrap_err(), "time: missing unit in duration \"3\"");
    }

    #[test]
    fn durations_are_written_like_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_058_963, "2.058963ms"),
            (5_002_282_060, "5.00228206s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn sizes_are_written_in_powers_of_a_thousand() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20480, "20 kB"),
            (2_147_483_648, "2.1 GB"),
            (82_854_982, "83 MB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn bad_numbers_get_the_complaint_scripts_may_match() {
        assert_eq!(
            parse_i64("zz", Radix::Hex).unwrap_err(),
            "strconv.ParseInt: parsing \"zz\": invalid syntax"
        );
        assert_eq!(
            parse_i64("99999999999999999999", Radix::Decimal).unwrap_err(),
            "strconv.ParseInt: parsing \"99999999999999999999\": value out of range"
        );
        assert_eq!(parse_u64_hex("+1").unwrap_err(), "strconv.ParseUint: parsing \"+1\": invalid syntax");
        assert_eq!(parse_u64_hex("ffffffffffffffff"), Ok(u64::MAX));
    }
}
