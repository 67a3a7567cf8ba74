//! Colours, where there is somebody to see them: on a terminal that is not dumb, unless `NO_COLOR` is set; `CLICOLOR_FORCE` asks for them
//! anywhere and `CLICOLOR=0` nowhere. A colour never says what the text does not say.

use std::ffi::OsString;
use std::io::IsTerminal;

/// What a piece of text means to its reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Works, and deserves a look.
    Warn,
    /// Broken.
    Bad,
    /// Beside the point.
    Faint,
    /// Headings.
    Strong,
}

/// Whether to colour. A value, so that what prints needs no terminal in its tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// Never any colour.
    pub const NONE: Paint = Paint(false);
    /// Always.
    #[cfg(test)]
    pub const ALL: Paint = Paint(true);

    pub fn for_stdout() -> Paint {
        Paint(decide(std::io::stdout().is_terminal(), |name| std::env::var_os(name)))
    }

    pub fn for_stderr() -> Paint {
        Paint(decide(std::io::stderr().is_terminal(), |name| std::env::var_os(name)))
    }

    /// The text in the colour of its tone.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Strong => "1",
            Tone::Plain => return text.to_owned(),
        };
        if !self.0 || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    pub fn good(self, text: &str) -> String {
        self.tone(Tone::Good, text)
    }

    pub fn warn(self, text: &str) -> String {
        self.tone(Tone::Warn, text)
    }

    pub fn bad(self, text: &str) -> String {
        self.tone(Tone::Bad, text)
    }

    pub fn faint(self, text: &str) -> String {
        self.tone(Tone::Faint, text)
    }
}

/// <https://no-color.org> and <https://bixense.com/clicolors>: a refusal wins over a wish, both win over the terminal.
fn decide(terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    terminal
        && set("TERM").is_some_and(|term| term != "dumb")
        && set("CLICOLOR").is_none_or(|value| value != "0")
}

/// Whether stderr is a terminal on which a line may be written over.
pub fn can_redraw_stderr() -> bool {
    std::io::stderr().is_terminal() && movable()
}

/// The same for stdout.
pub fn can_redraw_stdout() -> bool {
    std::io::stdout().is_terminal() && movable()
}

fn movable() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Whether a person can be asked: questions go to stderr, answers come from stdin, and both are terminals.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_and_variables_overrule() {
        let decided = |terminal, variables: &[(&str, &str)]| {
            decide(terminal, |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            })
        };
        let xterm = ("TERM", "xterm");
        assert!(decided(true, &[xterm]));
        for (terminal, variables) in [
            (false, &[xterm][..]),
            (true, &[]),
            (true, &[("TERM", "dumb")]),
            (true, &[xterm, ("NO_COLOR", "1")]),
            (true, &[xterm, ("CLICOLOR", "0")]),
            (false, &[xterm, ("CLICOLOR_FORCE", "0")]),
            (false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]),
        ] {
            assert!(!decided(terminal, variables), "{terminal} {variables:?}");
        }
        assert!(decided(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(decided(true, &[xterm, ("NO_COLOR", "")]), "an empty variable is none");
    }

    #[test]
    fn a_tone_is_put_around_the_text_or_left_out() {
        assert_eq!(Paint::ALL.good("ok"), "\x1b[32mok\x1b[0m");
        assert_eq!(Paint::NONE.bad("no"), "no");
        assert_eq!(Paint::ALL.warn(""), "");
    }
}
