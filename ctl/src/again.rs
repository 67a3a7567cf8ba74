//! `--watch`: the same look again and again, drawn over the last one on a terminal and appended elsewhere, until a signal ends it.
//!
//! SIGINT is how a person ends it, so it exits with 0 once there was something to see, and with 130 before. A look that fails is told and
//! followed by the next: what is watched may be a cluster that is being restarted.

use crate::cli;
use crate::failure::{Exit, Failure, Result};
use crate::output::paint::can_redraw_stdout;
use crate::output::{Shape, complain};
use crate::settings::Settings;
use crate::units::parse_duration;
use crate::verbs::show;
use clap::{Arg, ArgMatches};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// When `--watch` has no number.
const EVERY: &str = "2";
/// More often than this nobody reads, and members have better things to do.
const EVERY_MIN: Duration = Duration::from_millis(100);
/// To the top left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The flag, for verbs that can be looked at again.
pub fn flag() -> Arg {
    cli::value("watch", "Look again every so many seconds (2 when not said), until a signal ends it")
        .value_name("seconds")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value(EVERY)
}

/// How often, when the flag is given. A bare number is seconds; `500ms` works as well.
fn every(matches: &ArgMatches) -> Result<Option<Duration>> {
    let text = match matches.get_one::<String>("watch") {
        None => return Ok(None),
        Some(text) => text,
    };
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let every = match seconds {
        Some(every) => every,
        None => parse_duration(text).map_err(|why| Failure::usage(format!("bad --watch: {why}")))?,
    };
    if every < EVERY_MIN {
        return Err(Failure::usage("bad --watch: at least 0.1 seconds"));
    }
    Ok(Some(every))
}

/// What a look saw: bytes for stdout, and how the command ends if this was the last one.
pub struct Look {
    pub bytes: Vec<u8>,
    pub verdict: Result<()>,
}

/// A look and what is to be said of it on stderr: before the bytes, or below them where they are drawn over the last ones.
pub struct Told {
    look: Look,
    complaints: Vec<String>,
}

impl From<Vec<u8>> for Told {
    fn from(bytes: Vec<u8>) -> Told {
        Look { bytes, verdict: Ok(()) }.into()
    }
}

impl From<Look> for Told {
    fn from(look: Look) -> Told {
        (look, Vec::new()).into()
    }
}

impl From<(Look, Vec<String>)> for Told {
    fn from((look, complaints): (Look, Vec<String>)) -> Told {
        Told { look, complaints }
    }
}

/// Looks once, or for as long as `--watch` wants.
pub async fn looking<L: Into<Told>>(
    settings: &Settings,
    matches: &ArgMatches,
    mut look: impl AsyncFnMut() -> Result<L>,
) -> Result<()> {
    let Some(every) = every(matches)? else {
        let Told { look, complaints } = look().await?.into();
        complaints.iter().for_each(|line| complain(&format!("{line}\n")));
        show(&look.bytes)?;
        return look.verdict;
    };
    let redraw = can_redraw_stdout();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = false;
    loop {
        let looked = tokio::select! {
            biased;
            _ = interrupt.recv() => return ended(seen),
            looked = async { ticks.tick().await; look().await } => looked,
        };
        let separator = match settings.shape {
            _ if redraw => CLEAR,
            _ if !seen => "",
            Some(Shape::Json | Shape::JsonLines | Shape::Raw) => "",
            Some(Shape::Yaml) => "---\n",
            _ => "\n",
        };
        match looked.map(Into::into) {
            Ok(Told { look: Look { bytes, verdict }, complaints }) => {
                show(&[separator.as_bytes(), &bytes].concat())?;
                complaints.iter().for_each(|line| complain(&format!("{line}\n")));
                if let Err(failure) = verdict {
                    complain(&failure.to_string());
                }
                seen = true;
            }
            // Wrong arguments stay wrong.
            Err(failure) if matches!(failure.exit, Exit::Usage | Exit::BadArguments | Exit::BadFeature) => {
                return Err(failure);
            }
            Err(failure) => {
                if redraw {
                    show(CLEAR.as_bytes())?;
                }
                complain(&failure.to_string());
            }
        }
    }
}

fn ended(seen: bool) -> Result<()> {
    if seen { Ok(()) } else { Err(Failure::silent(Exit::Stopped)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[test]
    fn the_flag_takes_seconds_or_a_duration_behind_an_equals_sign() {
        let parsed = |words: &[&str]| {
            let command = Command::new("x").arg(flag()).arg(Arg::new("rest").num_args(0..));
            every(&command.get_matches_from([&["x"], words].concat()))
        };
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&["--watch", "7"]), Ok(Some(Duration::from_secs(2))), "7 is an argument");
        assert_eq!(parsed(&["--watch=0.5"]), Ok(Some(Duration::from_millis(500))));
        assert_eq!(parsed(&["--watch=1m"]), Ok(Some(Duration::from_secs(60))));
        for wrong in ["--watch=0", "--watch=x", "--watch=-1", "--watch=nan"] {
            assert_eq!(parsed(&[wrong]).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
        assert_eq!(ended(false).unwrap_err().exit as u8, 130);
        assert_eq!(ended(true), Ok(()));
    }
}
