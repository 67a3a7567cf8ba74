//! Which kind of word is being typed: read off the grammar, forgivingly, since the line is not finished. Nothing is asked of anybody here.

use super::{Flags, Offer};
use crate::settings::{GLOBALS, Kind};
use clap::{Arg, Command};

/// What only the cluster or the user's files know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveKind {
    Keys,
    /// Ids of members; their names are shown beside them.
    MemberIds,
    /// Ids or names.
    Members,
    Leases,
    Contexts,
    Endpoints,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Words(Vec<Offer>),
    Live(LiveKind),
    Files,
}

#[derive(Clone, Debug)]
pub struct Place {
    pub wanted: Wanted,
    /// What is there of the word, as far as it counts.
    pub typed: String,
    /// What stands before that in the same word (`--endpoints=`, `a:1,`).
    pub before: String,
    /// The global flags so far.
    pub given: Flags,
}

/// Where the last word stands.
pub fn place(root: &Command, words: &[String]) -> Place {
    let (last, complete) =
        words.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
    let mut command = root;
    let mut path = Vec::new();
    let mut arguments = 0;
    let mut literal = false;
    let mut given = Flags::new();
    let mut awaiting: Option<&Arg> = None;
    for word in complete {
        if let Some(flag) = awaiting.take() {
            keep(&mut given, flag, word);
        } else if literal {
            arguments += 1;
        } else if word == "--" {
            literal = true;
        } else if let Some((flag, value)) = flag_of(command, word) {
            match value {
                Some(value) => keep(&mut given, flag, &value),
                None if takes_next(flag) => awaiting = Some(flag),
                None => keep(&mut given, flag, "true"),
            }
        } else if word.starts_with('-') && word.len() > 1 {
            // A flag that there is not: nothing is known about what follows.
        } else if arguments == 0
            && let Some(inner) = subcommand(command, word)
        {
            command = inner;
            path.push(inner.get_name());
        } else {
            arguments += 1;
        }
    }
    let at = |wanted, before: &str, typed: &str| Place {
        wanted,
        typed: typed.to_owned(),
        before: before.to_owned(),
        given: given.clone(),
    };
    if let Some(flag) = awaiting {
        return of_value(flag, "", &last, at);
    }
    if !literal && last.starts_with('-') {
        if let Some((name, value)) = last.split_once('=')
            && let Some((flag, _)) = flag_of(command, name)
        {
            return of_value(flag, &format!("{name}="), value, at);
        }
        return at(Wanted::Words(flags(command)), "", &last);
    }
    if command.has_subcommands() && arguments == 0 && !literal {
        let shown = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        let words = shown.map(|inner| Offer::new(inner.get_name(), about(inner.get_about())));
        return at(Wanted::Words(words.collect()), "", &last);
    }
    at(argument(&path, arguments), "", &last)
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn keep(given: &mut Flags, flag: &Arg, value: &str) {
    if let Some(global) = GLOBALS.iter().find(|global| flag.get_id() == global.name) {
        given.entry(global.name).or_default().push(value.to_owned());
    }
}

/// Whether the next word is its value: switches and the like want an equals sign.
fn takes_next(flag: &Arg) -> bool {
    flag.get_action().takes_values() && !flag.is_require_equals_set()
}

/// The flag that a word is, and its value if the word has it.
fn flag_of<'a>(command: &'a Command, word: &str) -> Option<(&'a Arg, Option<String>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        return Some((command.get_arguments().find(|arg| arg.get_long() == Some(name))?, value));
    }
    let mut letters = word.strip_prefix('-')?.chars();
    let letter = letters.next()?;
    let flag = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
    let rest = letters.as_str();
    Some((flag, (!rest.is_empty()).then(|| rest.trim_start_matches('=').to_owned())))
}

/// A verb by its name, an alias, or its only beginning.
fn subcommand<'a>(command: &'a Command, word: &str) -> Option<&'a Command> {
    let named =
        |inner: &&Command| inner.get_name() == word || inner.get_all_aliases().any(|alias| alias == word);
    command.get_subcommands().find(named).or_else(|| {
        let mut begun = command.get_subcommands().filter(|inner| inner.get_name().starts_with(word));
        begun.next().filter(|_| begun.next().is_none() && !word.is_empty())
    })
}

fn flags(command: &Command) -> Vec<Offer> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let long =
        shown.filter_map(|arg| Some(Offer::new(format!("--{}", arg.get_long()?), about(arg.get_help()))));
    long.chain([Offer::new("--help", "How to use it")]).collect()
}

/// The value of a flag.
fn of_value(flag: &Arg, before: &str, typed: &str, at: impl Fn(Wanted, &str, &str) -> Place) -> Place {
    let words = |words: &[&str]| Wanted::Words(words.iter().map(|word| Offer::new(*word, "")).collect());
    let list = GLOBALS.iter().any(|global| flag.get_id() == global.name && global.kind == Kind::List);
    if list {
        // The last of a list; the others stay.
        let (done, typed) = typed.rsplit_once(',').map_or(("", typed), |(done, typed)| (done, typed));
        let comma = if done.is_empty() { "" } else { "," };
        return at(Wanted::Live(LiveKind::Endpoints), &format!("{before}{done}{comma}"), typed);
    }
    let possible: Vec<String> =
        flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let wanted = match flag.get_id().as_str() {
        "context" => Wanted::Live(LiveKind::Contexts),
        "write-out" => words(&["simple", "json", "fields", "table", "protobuf"]),
        "output" => words(&["table", "wide", "json", "jsonl", "yaml", "raw"]),
        "consistency" => words(&["l", "s"]),
        "order" => words(&["ASCEND", "DESCEND"]),
        "sort-by" => words(&["CREATE", "KEY", "MODIFY", "VALUE", "VERSION"]),
        "load" => words(&["s", "m", "l", "xl"]),
        "lease" => Wanted::Live(LiveKind::Leases),
        "cacert" | "cert" | "key" | "file" | "directory" | "dest-cacert" | "dest-cert" | "dest-key" => {
            Wanted::Files
        }
        "watch" => words(&["1", "2", "5", "10"]),
        _ if flag.is_require_equals_set() && possible.is_empty() => words(&["true", "false"]),
        _ => Wanted::Words(possible.into_iter().map(|name| Offer::new(name, "")).collect()),
    };
    at(wanted, before, typed)
}

/// An argument of a verb; `before` of them are there.
fn argument(path: &[&str], before: usize) -> Wanted {
    let none = || Wanted::Words(Vec::new());
    match (path, before) {
        (["get" | "del" | "watch"], 0 | 1) | (["put"], 0) => Wanted::Live(LiveKind::Keys),
        (["top"], 0) => Wanted::Live(LiveKind::Keys),
        (["member", "remove" | "update" | "promote"] | ["move-leader"], 0) => {
            Wanted::Live(LiveKind::MemberIds)
        }
        (["member", "replace"] | ["member", "plan", "remove" | "promote" | "replace"] | ["can-stop"], 0) => {
            Wanted::Live(LiveKind::Members)
        }
        (["lease", "revoke" | "timetolive" | "keep-alive"], 0) => Wanted::Live(LiveKind::Leases),
        (["context", "use" | "show" | "remove"], 0) => Wanted::Live(LiveKind::Contexts),
        (["snapshot", "save" | "status"] | ["debug", "bundle"], 0) => Wanted::Files,
        (["completion"], 0) => {
            Wanted::Words(super::SHELLS.iter().map(|shell| Offer::new(*shell, "")).collect())
        }
        _ => none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(line: &str) -> Place {
        let mut command = crate::cli::command();
        command.build();
        place(&command, &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn words(line: &str) -> Vec<String> {
        match placed(line).wanted {
            Wanted::Words(offers) => offers.into_iter().map(|offer| offer.word).collect(),
            other => panic!("{line:?} wants {other:?}"),
        }
    }

    #[test]
    fn every_place_of_a_line_wants_its_kind_of_word() {
        let live = |kind| Wanted::Live(kind);
        for (line, wanted) in [
            ("get ", live(LiveKind::Keys)),
            ("get a", live(LiveKind::Keys)),
            ("get --limit 3 -w json ", live(LiveKind::Keys)),
            ("get --prefix ", live(LiveKind::Keys)),
            ("get -- -", live(LiveKind::Keys)),
            ("put k ", Wanted::Words(Vec::new())),
            ("put k v --lease ", live(LiveKind::Leases)),
            ("mem rem ", live(LiveKind::MemberIds)),
            ("member plan replace ", live(LiveKind::Members)),
            ("move-leader ", live(LiveKind::MemberIds)),
            ("lease revoke 1", live(LiveKind::Leases)),
            ("--context prod context use ", live(LiveKind::Contexts)),
            ("get k --context ", live(LiveKind::Contexts)),
            ("get k --context=", live(LiveKind::Contexts)),
            ("snapshot save ", Wanted::Files),
            ("--cacert ", Wanted::Files),
            ("get k --endpoints=a:1,", live(LiveKind::Endpoints)),
        ] {
            assert_eq!(placed(line).wanted, wanted, "{line:?}");
        }
    }

    #[test]
    fn verbs_flags_and_values_come_from_the_grammar() {
        assert!(words("").contains(&"member".to_owned()) && !words("").contains(&"__complete".to_owned()));
        assert!(words("member ").contains(&"plan".to_owned()));
        let flags = words("get --pre");
        assert!(
            ["--prefix", "--endpoints", "--output", "--help"]
                .iter()
                .all(|flag| flags.contains(&(*flag).to_owned()))
        );
        assert_eq!(words("get k -w "), ["simple", "json", "fields", "table", "protobuf"]);
        assert_eq!(words("get k --prefix="), ["true", "false"]);
        assert_eq!(words("completion "), super::super::SHELLS);
    }

    #[test]
    fn what_stands_before_in_the_same_word_is_kept_and_globals_are_remembered() {
        let place = placed("--endpoints a:1 get k --endpoints=b:2,c");
        assert_eq!((place.before.as_str(), place.typed.as_str()), ("--endpoints=b:2,", "c"));
        assert_eq!(place.given["endpoints"], ["a:1"]);
        let place = placed("-wjson --hex get ");
        assert_eq!((place.given["write-out"][0].as_str(), place.given["hex"][0].as_str()), ("json", "true"));
    }
}
