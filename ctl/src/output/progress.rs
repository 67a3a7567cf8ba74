//! How far a long command has come, on stderr: a bar that is drawn over itself on a terminal, and a line now and then elsewhere when
//! somebody asked for it. Nothing of it reaches stdout, and nothing fails because stderr is closed.

use super::paint::can_redraw_stderr;
use crate::units::format_size;
use std::io::Write;
use std::time::{Duration, Instant};

/// Between two drawings on a terminal: smooth enough, and nothing to pay for.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Between two lines elsewhere: a log is not flooded by an hour of it.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Cells of the bar; with its numbers it fits a line of 80.
const BAR_CELLS: usize = 24;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    /// Things with this name, in the plural.
    Things(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Bar,
}

/// Progress of one piece of work.
pub struct Progress {
    label: String,
    unit: Unit,
    mode: Mode,
    began: Instant,
    last: Option<Instant>,
    drawn: bool,
}

impl Progress {
    /// On a terminal a bar; else lines if `wanted` (`--progress`), or nothing.
    pub fn begin(label: impl Into<String>, unit: Unit, wanted: bool) -> Progress {
        let mode = match (can_redraw_stderr(), wanted) {
            (true, _) => Mode::Bar,
            (false, true) => Mode::Lines,
            (false, false) => Mode::Silent,
        };
        Progress { label: label.into(), unit, mode, began: Instant::now(), last: None, drawn: false }
    }

    /// `done` of `total`, or of an unknown amount. Cheap when there is nothing to draw yet.
    pub fn tell(&mut self, done: u64, total: Option<u64>) {
        let every = match self.mode {
            Mode::Silent => return,
            Mode::Lines => LINE_EVERY,
            Mode::Bar => DRAW_EVERY,
        };
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let text = line(&self.label, self.unit, done, total, self.began.elapsed(), self.mode == Mode::Bar);
        self.write(&text);
    }

    /// The end of it: one last line that stays.
    pub fn finish(mut self, done: u64) {
        if self.mode == Mode::Silent {
            return;
        }
        let elapsed = self.began.elapsed();
        let text = format!(
            "{}: {} in {:.1} s, {}",
            self.label,
            amount(self.unit, done),
            elapsed.as_secs_f64(),
            rate(self.unit, done, elapsed)
        );
        self.write(&text);
        if self.mode == Mode::Bar {
            let _ = writeln!(std::io::stderr());
        }
        self.drawn = false;
    }

    fn write(&mut self, text: &str) {
        // stderr may be closed; the work goes on without its progress.
        let _ = if self.mode == Mode::Bar {
            self.drawn = true;
            write!(std::io::stderr(), "\r\x1b[K{text}")
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }
}

impl Drop for Progress {
    /// What failed is not told behind half a bar.
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn amount(unit: Unit, count: u64) -> String {
    match unit {
        Unit::Bytes => format_size(count),
        Unit::Things(name) => format!("{count} {name}"),
    }
}

fn rate(unit: Unit, done: u64, elapsed: Duration) -> String {
    let per_second = (done as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    match unit {
        Unit::Bytes => format!("{}/s", format_size(per_second)),
        Unit::Things(_) => format!("{per_second}/s"),
    }
}

fn line(label: &str, unit: Unit, done: u64, total: Option<u64>, elapsed: Duration, bar: bool) -> String {
    let rate = rate(unit, done, elapsed);
    // A total that turns out too small must not make a bar longer than itself.
    let Some(total) = total.filter(|total| *total > 0).map(|total| total.max(done)) else {
        return format!("{label}: {}, {rate}", amount(unit, done));
    };
    let share = done as f64 / total as f64;
    let left = if done == 0 {
        String::new()
    } else {
        let seconds = elapsed.as_secs_f64() * (1.0 - share) / share;
        format!(", {} left", short(seconds))
    };
    let numbers = format!("{} of {}, {rate}{left}", plain(unit, done), amount(unit, total));
    if !bar {
        return format!("{label}: {:.0} %, {numbers}", share * 100.0);
    }
    let full = (share * BAR_CELLS as f64) as usize;
    format!(
        "{label} [{}{}] {:3.0} % {numbers}",
        "#".repeat(full),
        ".".repeat(BAR_CELLS - full),
        share * 100.0
    )
}

fn plain(unit: Unit, count: u64) -> String {
    if unit == Unit::Bytes { format_size(count) } else { count.to_string() }
}

fn short(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_share_rate_and_what_is_left() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line("save", Unit::Bytes, 2_500_000, Some(10_000_000), second, true),
            "save [######..................]  25 % 2.5 MB of 10 MB, 2.5 MB/s, 3 s left"
        );
        assert_eq!(line("save", Unit::Bytes, 2_500_000, None, second, true), "save: 2.5 MB, 2.5 MB/s");
        assert_eq!(
            line("del", Unit::Things("keys"), 50, Some(100), second * 100, false),
            "del: 50 %, 50 of 100 keys, 0/s, 1 min 40 s left"
        );
        assert_eq!(
            line("save", Unit::Bytes, 20, Some(10), second, true),
            "save [########################] 100 % 20 B of 20 B, 20 B/s, 0 s left"
        );
        assert_eq!(short(7261.0), "2 h 1 min");
    }
}
