//! Texts of values: durations, sizes, booleans, counts, lists. One parser for flag, variable and file, so that a value means the same
//! wherever it was written. Each parser's error says what would have been accepted.

use std::{fmt, time::Duration};

/// What a setting's text must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Go's spellings of true and false; the flag alone means true.
    Bool,
    Text,
    Path,
    /// A whole number within these bounds, both included.
    Count {
        min: i128,
        max: i128,
    },
    /// etcd's milliseconds as a bare number, or a duration with units.
    Millis,
    Duration,
    /// Bytes, bare or with a unit; a negative number where `signed`.
    Bytes {
        signed: bool,
    },
    /// Comma separated URLs.
    Urls,
    /// Comma separated `name=url`.
    Members,
    /// Comma separated texts.
    List,
    Choice(&'static [&'static str]),
    /// `Name=bool` pairs of [`super::gates`].
    Gates,
    /// Retention of automatic compaction: a number, or a duration.
    Retention,
    /// Old etcd flags whose value nobody reads; taken like a boolean on the command line.
    Anything,
}

impl Kind {
    /// On the command line, whether the next argument is left alone (Go's boolean flags).
    pub fn is_bool_style(self) -> bool {
        matches!(self, Kind::Bool | Kind::Anything)
    }

    /// What a value looks like, with its unit and bounds.
    pub fn unit(self) -> String {
        match self {
            Kind::Count { min, max } if max == i128::from(u32::MAX) => {
                format!("a whole number of at least {min}")
            }
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Millis => "milliseconds, or a duration such as 250ms or 1m30s".into(),
            Kind::Duration => "a duration such as 250ms, 1m30s or 2h".into(),
            Kind::Bytes { .. } => "bytes, or a size such as 8GiB (1024) or 1500MB (1000)".into(),
            Kind::Urls => "URLs with commas between them".into(),
            Kind::Members => "name=URL pairs with commas between them".into(),
            Kind::List => "words with commas between them".into(),
            other => other.describe(),
        }
    }

    /// What the value is called in help and documentation.
    pub fn describe(self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Text => "text".into(),
            Kind::Path => "path".into(),
            Kind::Count { .. } => "number".into(),
            Kind::Millis => "milliseconds or duration".into(),
            Kind::Duration => "duration".into(),
            Kind::Bytes { .. } => "bytes".into(),
            Kind::Urls => "URLs".into(),
            Kind::Members => "name=URL list".into(),
            Kind::List => "list".into(),
            Kind::Choice(of) => {
                of.iter().filter(|one| !one.is_empty()).copied().collect::<Vec<_>>().join(" | ")
            }
            Kind::Gates => "Name=true list".into(),
            Kind::Retention => "number or duration".into(),
            Kind::Anything => "anything".into(),
        }
    }
}

/// Why a text is no value of its kind: one sentence that names what is accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct BadValue(pub String);

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn bad<T>(message: impl Into<String>) -> Result<T, BadValue> {
    Err(BadValue(message.into()))
}

/// Whether `text` is a value of this kind at all. URLs, members and gates have parsers of their own, called when settings are built.
pub fn check(kind: Kind, text: &str) -> Result<(), BadValue> {
    match kind {
        Kind::Bool => parse_bool(text).map(drop),
        Kind::Count { min, max } => parse_count(text, min, max).map(drop),
        Kind::Millis => parse_millis(text).map(drop),
        Kind::Duration => parse_duration(text).map(drop),
        Kind::Bytes { signed } => parse_bytes(text, signed).map(drop),
        Kind::Choice(of) => parse_choice(text, of).map(drop),
        Kind::Gates => super::gates::parse(text).map(drop),
        Kind::Retention => parse_retention(text).map(drop),
        Kind::Urls => super::urls::parse_list(text).map(drop),
        Kind::Members => super::cluster::parse(text).map(drop),
        Kind::Text | Kind::Path | Kind::List | Kind::Anything => {
            match text.chars().find(|c| c.is_control()) {
                Some(control) => bad(format!("control character {control:?} in the value")),
                None => Ok(()),
            }
        }
    }
}

pub fn parse_bool(text: &str) -> Result<bool, BadValue> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => bad(format!("{text:?} is neither true nor false")),
    }
}

pub fn parse_count(text: &str, min: i128, max: i128) -> Result<i128, BadValue> {
    match text.parse::<i128>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(number) if number < min => bad(format!("{number} is too small: at least {min}")),
        Ok(number) => bad(format!("{number} is too large: at most {max}")),
        Err(_) => bad(format!("{text:?} is not a whole number")),
    }
}

pub fn parse_choice(text: &str, of: &'static [&'static str]) -> Result<&'static str, BadValue> {
    match of.iter().find(|one| **one == text) {
        Some(one) => Ok(one),
        None => {
            let names: Vec<_> = of.iter().filter(|one| !one.is_empty()).copied().collect();
            let near = super::suggest::nearest(text, names.iter().copied());
            let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            bad(format!("{text:?} is not one of {}{hint}", names.join(", ")))
        }
    }
}

const NANOS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

const DURATION_FORM: &str = "a duration is a number with a unit, such as 250ms, 1m30s or 2h";

/// Go's durations: numbers with units, one after the other ("1m30s"), fractions allowed, and a bare 0. Negative ones have no meaning
/// in any setting and are refused.
pub fn parse_duration(text: &str) -> Result<Duration, BadValue> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return bad(format!("{text:?} is negative; {DURATION_FORM}"));
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return bad(format!("empty; {DURATION_FORM}"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if tail.is_empty() && !number.is_empty() {
            return bad(format!("{text:?} lacks a unit; {DURATION_FORM}"));
        }
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let Some((_, scale)) = NANOS.iter().find(|(name, _)| *name == unit) else {
            return bad(format!("{text:?} has no unit {unit:?}; {DURATION_FORM}"));
        };
        let Some(part) = decimal_times(number, u128::from(*scale)) else {
            return bad(format!("{number:?} in {text:?} is not a number; {DURATION_FORM}"));
        };
        nanos = nanos.saturating_add(part);
        rest = tail;
    }
    // Go's own bound: 63 bits of nanoseconds, 292 years.
    match u64::try_from(nanos) {
        Ok(nanos) if nanos <= i64::MAX as u64 => Ok(Duration::from_nanos(nanos)),
        _ => bad(format!("{text:?} is longer than 292 years")),
    }
}

/// `number` (decimal, fraction allowed) times `scale`, rounded down.
fn decimal_times(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Past 18 digits a fraction of any unit here is below a nanosecond or a byte.
    let fraction = &fraction[..fraction.len().min(18)];
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()?.into() };
    let places = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(whole.saturating_mul(scale) + part.saturating_mul(scale) / places)
}

/// etcd's plain milliseconds, or a duration.
pub fn parse_millis(text: &str) -> Result<Duration, BadValue> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(millis) => Ok(Duration::from_millis(millis)),
            Err(_) => bad(format!("{text:?} milliseconds is too long")),
        };
    }
    parse_duration(text)
}

const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Bytes: bare, or with a unit of 1024 (KiB, MiB, GiB, TiB) or 1000 (kB, MB, GB, TB).
pub fn parse_bytes(text: &str, signed: bool) -> Result<i64, BadValue> {
    let form = "a size is a number of bytes or a number with a unit, such as 8GiB or 1500MB";
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) if signed => (true, rest),
        Some(_) => return bad(format!("{text:?} is negative; {form}")),
        None => (false, text),
    };
    let digits = magnitude.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(magnitude.len());
    let (number, unit) = magnitude.split_at(digits);
    let unit = unit.trim();
    let scale = if unit.is_empty() {
        if number.contains('.') {
            return bad(format!("{text:?} is not a whole number of bytes; {form}"));
        }
        1
    } else {
        match SIZES.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None => return bad(format!("{text:?} has no unit {unit:?}; {form}")),
        }
    };
    let Some(bytes) = decimal_times(number, scale.into()) else {
        return bad(format!("{text:?} is not a number; {form}"));
    };
    match i64::try_from(bytes) {
        Ok(bytes) => Ok(if negative { -bytes } else { bytes }),
        Err(_) => bad(format!("{text:?} is more than 8 EiB")),
    }
}

/// Comma separated; items are trimmed and empty ones dropped.
pub fn parse_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// How `auto-compaction-retention` was written; what a bare number means depends on the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    Number(u64),
    Duration(Duration),
}

pub fn parse_retention(text: &str) -> Result<Retention, BadValue> {
    match text.parse() {
        Ok(number) => Ok(Retention::Number(number)),
        Err(_) => parse_duration(text).map(Retention::Duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let millis = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(millis("250ms"), Ok(250));
        assert_eq!(millis("1m30s"), Ok(90_000));
        assert_eq!(millis("1.5h"), Ok(5_400_000));
        assert_eq!(millis(".5s"), Ok(500));
        assert_eq!(millis("0"), Ok(0));
        assert_eq!(millis("2h45m0s"), Ok(9_900_000));
        for wrong in ["", "5", "-1s", "s", "1x", "1.s.", "99999999h", "1ms2", "9".repeat(60).as_str()] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was taken");
        }
        assert!(parse_duration("5").unwrap_err().0.contains("lacks a unit"));
    }

    #[test]
    fn heartbeat_and_election_take_bare_milliseconds_and_durations() {
        assert_eq!(parse_millis("100"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_millis("1s"), Ok(Duration::from_secs(1)));
        assert!(parse_millis("1e3").is_err());
    }

    #[test]
    fn sizes_are_exact() {
        assert_eq!(parse_bytes("8GiB", false), Ok(8 << 30));
        assert_eq!(parse_bytes("8GB", false), Ok(8_000_000_000));
        assert_eq!(parse_bytes("1.5 MiB", false), Ok(1_572_864));
        assert_eq!(parse_bytes("2147483648", true), Ok(2_147_483_648));
        assert_eq!(parse_bytes("-1", true), Ok(-1));
        for wrong in ["", "-1", "8G", "1.5", "GiB", "9999999TiB", "1..2KiB"] {
            assert!(parse_bytes(wrong, false).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn booleans_and_choices_name_what_is_accepted() {
        assert_eq!(parse_bool("T"), Ok(true));
        assert!(parse_bool("yes").is_err());
        let message = parse_choice("infoo", &["debug", "info"]).unwrap_err().0;
        assert!(message.contains("did you mean \"info\"?"), "{message}");
    }
}
