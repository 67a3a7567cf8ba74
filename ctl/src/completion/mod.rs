//! What the TAB key offers: verbs and flags from the grammar, and keys, members, leases and contexts as they are now. The scripts of the shells
//! only ask `cairnctl __complete`, so they never grow old.
//!
//! Nothing here fails, prints a complaint or takes long: whoever presses TAB gets what came within a second, or nothing.

mod grammar;
mod live;
mod scripts;

use crate::cli;
use crate::output::text::one_line;
use crate::settings::{Given, Variables};
use clap::ArgMatches;
use grammar::Wanted;
pub use scripts::{SHELLS, script};
use std::io::Write;

/// More nobody reads, and a shell takes long to show.
const OFFERED_MAX: usize = 200;

/// One thing that may be typed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offer {
    pub word: String,
    /// For shells that show it.
    pub about: String,
}

impl Offer {
    pub fn new(word: impl Into<String>, about: impl Into<String>) -> Offer {
        Offer { word: word.into(), about: about.into() }
    }
}

/// What there is to offer for the word under the cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    pub offers: Vec<Offer>,
    /// The word is a path: the shell knows better.
    pub files: bool,
}

/// `__complete SHELL WORD...`: the words after `cairnctl` up to the cursor, the last of them incomplete, and for bash what it takes for the last
/// word. Prints a line for each offer behind one that says what kind they are.
pub fn run(matches: &ArgMatches, variables: &Variables) {
    let words = cli::arguments(matches);
    let mut words = words.iter().map(|word| String::from_utf8_lossy(word).into_owned());
    let Some(shell) = words.next() else { return };
    let (words, bash_word) = match shell.as_str() {
        // bash cuts words at every `:` and `=`, so it hands over the line.
        "bash" => {
            let (line, word) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            (scripts::split(&line), Some(word))
        }
        _ => (words.collect::<Vec<_>>(), None),
    };
    let mut offers = offers(&words, variables);
    if shell == scripts::WORDS_ALONE {
        offers.offers.iter_mut().for_each(|offer| offer.about.clear());
    }
    let text = match bash_word {
        Some(word) => scripts::for_bash(&offers, words.last().map_or("", String::as_str), &word),
        None => scripts::for_others(&offers),
    };
    // A shell that left needs no answer.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// The offers for the last of `words`; the others are complete.
pub fn offers(words: &[String], variables: &Variables) -> Offers {
    let mut command = cli::command();
    command.build();
    let place = grammar::place(&command, words);
    let (typed, before) = (place.typed.as_str(), place.before.as_str());
    let mut offers = match &place.wanted {
        Wanted::Files => return Offers { offers: Vec::new(), files: true },
        Wanted::Words(offers) => offers.clone(),
        Wanted::Live(kind) => live::ask(*kind, typed, &place.given, variables),
    };
    // Names and keys are the cluster's: one that is more than a line of text would be more than one offer, or move the cursor.
    offers.retain(|offer| offer.word.starts_with(typed) && one_line(&offer.word) == offer.word);
    offers.sort();
    offers.dedup();
    offers.truncate(OFFERED_MAX);
    for offer in &mut offers {
        offer.word.insert_str(0, before);
        offer.about = one_line(&offer.about);
    }
    Offers { offers, files: false }
}

/// What the words so far say about where to ask.
type Flags = Given;
