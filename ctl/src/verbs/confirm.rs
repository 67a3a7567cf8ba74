//! What a destructive verb would destroy, told before it does. Asked only where somebody can answer: without a terminal a verb of etcdctl
//! goes on as etcdctl does, with not one call more. `--yes` goes on unasked, `--dry-run` tells and changes nothing.

use super::show;
use crate::cli;
use crate::failure::{Exit, Failure, Result};
use crate::output::paint::can_ask;
use clap::{Arg, ArgMatches};
use std::io::Write;

/// The flags of a verb that asks.
pub fn flags() -> [Arg; 2] {
    [
        cli::switch("yes", "Do not ask first"),
        cli::switch("dry-run", "Tell what would happen, and change nothing"),
    ]
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blast {
    /// Goes on after "will": `delete 12,431 keys under "/a/"`.
    pub what: String,
    /// More lines for whoever decides.
    pub more: Vec<String>,
    /// Worth a question; a deletion that meets nothing is not.
    pub ask: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Go,
    Ask,
    Tell,
}

fn course(yes: bool, dry_run: bool, can_ask: bool) -> Course {
    match (dry_run, yes, can_ask) {
        (true, _, _) => Course::Tell,
        (_, true, _) | (_, _, false) => Course::Go,
        _ => Course::Ask,
    }
}

/// True: go on. `reckon` is asked only when there is somebody to tell.
pub async fn gate(matches: &ArgMatches, reckon: impl AsyncFnOnce() -> Result<Blast>) -> Result<bool> {
    match course(cli::on(matches, "yes"), cli::on(matches, "dry-run"), can_ask()) {
        Course::Go => Ok(true),
        Course::Tell => {
            let Blast { what, more, .. } = reckon().await?;
            let more: String = more.iter().map(|line| format!("  {line}\n")).collect();
            show(format!("dry run: would {what}; nothing was changed\n{more}").as_bytes())?;
            Ok(false)
        }
        Course::Ask => {
            let Blast { what, more, ask } = reckon().await?;
            if !ask {
                return Ok(true);
            }
            let more: String = more.iter().map(|line| format!("  {line}\n")).collect();
            let mut out = std::io::stderr().lock();
            write!(out, "will {what}\n{more}Go on? [y/N] ")?;
            out.flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
                return Ok(true);
            }
            Err(Failure::new(Exit::Error, "not confirmed; nothing was changed"))
        }
    }
}

/// `12,431 keys`, `1 key`.
pub fn count(number: u64, thing: &str) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_never_asked_and_a_dry_run_never_goes_on() {
        for (yes, dry_run, can_ask, expected) in [
            (false, false, false, Course::Go),
            (false, false, true, Course::Ask),
            (true, false, true, Course::Go),
            (true, false, false, Course::Go),
            (false, true, false, Course::Tell),
            (true, true, true, Course::Tell),
        ] {
            assert_eq!(course(yes, dry_run, can_ask), expected);
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [
            (0, "0 keys"),
            (1, "1 key"),
            (999, "999 keys"),
            (12_431, "12,431 keys"),
            (1_000_000, "1,000,000 keys"),
        ] {
            assert_eq!(count(number, "key"), text);
        }
    }
}
