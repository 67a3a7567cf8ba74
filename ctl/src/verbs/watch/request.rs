//! What to watch: from the command line, from a line of the interactive mode, and from the two variables that may stand for the
//! arguments. Pure, except for reading those variables.

use crate::cli;
use crate::failure::{Failure, Result};
use crate::output::quote;
use crate::verbs::kv::prefix_end;
use api::etcdserverpb::WatchCreateRequest;
use bytes::Bytes;
use clap::ArgMatches;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

const BAD_NUMBER: &str = "bad number of arguments";

/// One watch as its user asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub create: WatchCreateRequest,
    /// Run for each change; empty: nothing is.
    pub command: Vec<OsString>,
    /// Whether a gap in the history is no reason to end.
    pub resume_after_compaction: bool,
}

/// Key and range end from the environment.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    key: Vec<u8>,
    range_end: Vec<u8>,
}

impl Defaults {
    pub fn of_environment() -> Result<Defaults> {
        let read = |name: &str| {
            ["CAIRNCTL_", "ETCDCTL_"]
                .iter()
                .filter_map(|prefix| std::env::var_os(format!("{prefix}{name}")))
                .find(|value| !value.is_empty())
                .map_or_else(Vec::new, OsString::into_vec)
        };
        Self::new(read("WATCH_KEY"), read("WATCH_RANGE_END"))
    }

    fn new(key: Vec<u8>, range_end: Vec<u8>) -> Result<Defaults> {
        if key.is_empty() && !range_end.is_empty() {
            let range_end = quote(&range_end);
            return Err(Failure::arguments(format!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={range_end}"
            )));
        }
        Ok(Defaults { key, range_end })
    }

    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    fn arguments(&self) -> Vec<Vec<u8>> {
        let end = (!self.range_end.is_empty()).then(|| self.range_end.clone());
        std::iter::once(self.key.clone()).chain(end).collect()
    }
}

impl Wanted {
    pub fn of(matches: &ArgMatches, defaults: &Defaults) -> Result<Wanted> {
        let mut arguments = cli::arguments(matches);
        if defaults.has_key() {
            if !arguments.is_empty() {
                return Err(Failure::arguments(format!("{BAD_NUMBER} (found conflicting environment key)")));
            }
            arguments = defaults.arguments();
        }
        let prefix = cli::on(matches, "prefix");
        let (key, range_end) = match <[Vec<u8>; 2]>::try_from(arguments) {
            Ok(_) if prefix => {
                return Err(Failure::arguments("`range_end` and `--prefix` are mutually exclusive"));
            }
            Ok([key, end]) => (Bytes::from(key), Bytes::from(end)),
            Err(other) => match <[Vec<u8>; 1]>::try_from(other) {
                Ok([key]) if prefix && key.is_empty() => {
                    (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
                }
                Ok([key]) if prefix => (key.clone().into(), prefix_end(&key)),
                Ok([key]) => (key.into(), Bytes::new()),
                Err(_) => return Err(Failure::arguments(BAD_NUMBER)),
            },
        };
        Ok(Wanted {
            create: WatchCreateRequest {
                key,
                range_end,
                start_revision: cli::integer(matches, "rev"),
                prev_kv: cli::on(matches, "prev-kv"),
                progress_notify: cli::on(matches, "progress-notify"),
                ..Default::default()
            },
            command: cli::command_words(matches),
            resume_after_compaction: cli::on(matches, "resume-after-compaction"),
        })
    }

    /// The same from the words of one line, the verb first.
    pub fn of_words(words: Vec<Vec<u8>>, defaults: &Defaults) -> Result<Wanted> {
        let words = words.into_iter().map(OsString::from_vec);
        let matches = cli::watch().args_override_self(true).disable_help_flag(true);
        let matches = matches.try_get_matches_from(words).map_err(|error| cli::usage_failure(&error))?;
        Self::of(&matches, defaults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(line: &str) -> Result<Wanted> {
        wanted_with(line, &Defaults::default())
    }

    fn wanted_with(line: &str, defaults: &Defaults) -> Result<Wanted> {
        Wanted::of_words(line.split(' ').map(|word| word.as_bytes().to_vec()).collect(), defaults)
    }

    #[test]
    fn lines_become_requests_with_every_option() {
        let line = "watch --rev 7 foo --prefix --prev-kv --progress-notify -- sh -c x --prefix";
        let expected = Wanted {
            create: WatchCreateRequest {
                key: "foo".into(),
                range_end: "fop".into(),
                start_revision: 7,
                prev_kv: true,
                progress_notify: true,
                ..Default::default()
            },
            command: ["sh", "-c", "x", "--prefix"].map(OsString::from).to_vec(),
            resume_after_compaction: false,
        };
        assert_eq!(wanted(line).unwrap(), expected);
        let range = wanted("watch a b --resume-after-compaction").unwrap();
        assert_eq!((&range.create.key[..], &range.create.range_end[..]), (&b"a"[..], &b"b"[..]));
        assert!(range.resume_after_compaction && range.command.is_empty());
    }

    #[test]
    fn an_empty_prefix_is_every_key() {
        let words = [b"watch".to_vec(), Vec::new(), b"--prefix".to_vec()].to_vec();
        let all = Wanted::of_words(words, &Defaults::default()).unwrap().create;
        assert_eq!((&all.key[..], &all.range_end[..]), (&b"\0"[..], &b"\0"[..]));
    }

    #[test]
    fn wrong_numbers_of_arguments_are_refused() {
        for (line, why) in [
            ("watch --prefix", "bad number of arguments"),
            ("watch -- echo", "bad number of arguments"),
            ("watch a b c", "bad number of arguments"),
            ("watch a b --prefix", "`range_end` and `--prefix` are mutually exclusive"),
        ] {
            assert_eq!(wanted(line).unwrap_err(), Failure::arguments(why), "{line}");
        }
    }

    #[test]
    fn variables_stand_for_the_arguments_and_tolerate_no_others() {
        let defaults = Defaults::new(b"k".to_vec(), b"z".to_vec()).unwrap();
        let range = wanted_with("watch --rev 3 -- echo", &defaults).unwrap();
        assert_eq!((&range.create.key[..], &range.create.range_end[..]), (&b"k"[..], &b"z"[..]));
        assert!(wanted_with("watch a", &defaults).unwrap_err().headline.contains("conflicting"));
        assert!(Defaults::new(Vec::new(), b"z".to_vec()).is_err());
    }
}
