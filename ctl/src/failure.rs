//! How a command ends when it does not end well: one value with the exit code and the text for stderr.
//!
//! Two shapes, on purpose. What a server refused, and what etcdctl itself refuses about arguments, is the single line
//! `Error: <text>` that scripts already match. What only cairnctl can know (nobody answered, an answer was lost) has four
//! more lines: cause, evidence, remedy and what never to do. Not here: printing, which is `main`'s.

use std::fmt;

/// Exit codes. 0 to 6 and 128 mean what they mean for etcdctl; 7 to 11, 64, 75 and 130 are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The server refused, or anything without a code of its own.
    Error = 1,
    /// No endpoint could be reached.
    BadConnection = 2,
    /// Input on stdin that cannot be understood, or that ends early.
    InvalidInput = 3,
    /// A value outside the known ones: output format, sort order, consistency.
    BadFeature = 4,
    /// The server ended a watch, or saving a backup went wrong.
    Interrupted = 5,
    /// Reading or writing a local file or stream went wrong.
    Io = 6,
    /// The server ended a watch because part of the history it was to show is gone.
    Compacted = 7,
    /// `wait`: the time passed and what was waited for is not so.
    NotYet = 8,
    /// `can-stop`: the cluster would lose its quorum.
    Unsafe = 9,
    /// `can-stop`: the quorum would be kept, but something is under way or amiss; later.
    Busy = 10,
    /// `status`, `doctor`: the cluster serves, and something needs a look.
    Degraded = 11,
    /// Unknown flag, command, variable value or configuration key.
    Usage = 64,
    /// `can-stop`: another member has reserved its stop.
    Reserved = 75,
    /// Wrong number or combination of arguments.
    BadArguments = 128,
    /// SIGINT before there was anything to see; the code that a shell shows for it.
    Stopped = 130,
}

/// The four lines under the first one. Evidence and remedies are lists so that each endpoint and each step has its own place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub cause: String,
    pub evidence: Vec<String>,
    pub remedy: Vec<String>,
    pub never: String,
}

/// Why a command failed. `headline` is printed after `Error: `; an empty headline prints nothing (it was said already).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub headline: String,
    pub details: Option<Box<Details>>,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(exit: Exit, headline: impl Into<String>) -> Self {
        Failure { exit, headline: headline.into(), details: None }
    }

    pub fn arguments(headline: impl Into<String>) -> Self {
        Self::new(Exit::BadArguments, headline)
    }

    pub fn feature(headline: impl Into<String>) -> Self {
        Self::new(Exit::BadFeature, headline)
    }

    pub fn input(headline: impl Into<String>) -> Self {
        Self::new(Exit::InvalidInput, headline)
    }

    pub fn usage(headline: impl Into<String>) -> Self {
        Self::new(Exit::Usage, headline)
    }

    /// Ends with `exit` without another word, because every part of the story is on stderr already.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    pub fn with(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(Exit::Io, error.to_string())
    }
}

impl fmt::Display for Details {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "cause:    {}", self.cause)?;
        for (i, line) in self.evidence.iter().enumerate() {
            writeln!(out, "{}{line}", if i == 0 { "evidence: " } else { "          " })?;
        }
        for (i, line) in self.remedy.iter().enumerate() {
            writeln!(out, "{}{}. {line}", if i == 0 { "remedy:   " } else { "          " }, i + 1)?;
        }
        if self.never.is_empty() { Ok(()) } else { writeln!(out, "never:    {}", self.never) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.headline.is_empty() {
            return Ok(());
        }
        writeln!(out, "Error: {}", self.headline)?;
        self.details.as_ref().map_or(Ok(()), |details| details.fmt(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_refusal_is_one_line_as_scripts_expect() {
        let failure = Failure::new(Exit::Error, "etcdserver: key is not provided");
        assert_eq!(failure.to_string(), "Error: etcdserver: key is not provided\n");
    }

    #[test]
    fn a_failure_of_our_own_has_all_five_parts_in_order() {
        let failure = Failure::new(Exit::BadConnection, "nobody").with(Details {
            cause: "c".into(),
            evidence: vec!["e1".into(), "e2".into()],
            remedy: vec!["r1".into(), "r2".into()],
            never: "n".into(),
        });
        let expected = "Error: nobody\ncause:    c\nevidence: e1\n          e2\nremedy:   1. r1\n          2. r2\nnever:    n\n";
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn a_silent_failure_prints_nothing() {
        assert_eq!(Failure::silent(Exit::Error).to_string(), "");
    }
}
