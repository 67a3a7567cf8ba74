//! The grammar of the command line: etcdctl's. Flags may follow arguments, `--` ends them, a switch may say `=false`, a repeated
//! flag wins over the earlier one, an unambiguous beginning of a verb is enough.
//!
//! Counting arguments is left to the verbs, since scripts know etcdctl's words for that. Not here: what flags mean.

mod mistakes;

pub use mistakes::usage_failure;

use crate::failure::Result;
use crate::settings::{GLOBALS, Given, Global, Kind};
use crate::{units, verbs};
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The global flags that -h shows; --help shows all.
const COMMON: &[&str] = &["endpoints", "context", "output", "write-out", "user", "verbose"];

/// etcdctl's verbs, those included that this tool has not: a beginning that is enough for one of them there is enough here, whatever verbs
/// of ours begin so too.
const THEIRS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "alarm",
            "auth",
            "check",
            "compaction",
            "completion",
            "defrag",
            "del",
            "downgrade",
            "elect",
            "endpoint",
            "get",
            "help",
            "lease",
            "lock",
            "make-mirror",
            "member",
            "move-leader",
            "put",
            "role",
            "snapshot",
            "txn",
            "user",
            "version",
            "watch",
        ],
    ),
    ("member", &["add", "list", "promote", "remove", "update"]),
];

/// The id under which every verb keeps its arguments.
const ARGUMENTS: &str = "arguments";
/// The id of what follows `--` where that is a command.
const COMMAND: &str = "command";

/// A flag with a value. Values may begin with a dash: what follows such a flag is always its value.
pub fn value(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(name).help(help).action(ArgAction::Set).allow_hyphen_values(true)
}

/// A flag with a whole number as its value.
pub fn number(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| units::parse_i64(text, units::Radix::Decimal);
    value(name, help).value_name("number").value_parser(ValueParser::new(parse))
}

/// A switch; a value is only taken after `=`.
pub fn switch(name: &'static str, help: &'static str) -> Arg {
    let arg =
        Arg::new(name).long(name).help(help).action(ArgAction::Set).num_args(0..=1).require_equals(true);
    arg.default_missing_value("true")
        .value_parser(ValueParser::new(units::parse_bool))
        .hide_possible_values(true)
        .value_name("bool")
}

pub fn verb(name: &'static str, about: &'static str, usage: &'static str) -> Command {
    let arguments = Arg::new(ARGUMENTS).num_args(0..).value_parser(ValueParser::os_string()).hide(true);
    Command::new(name).about(about).override_usage(usage).arg(arguments)
}

pub fn group(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
}

pub fn put() -> Command {
    verb(
        "put",
        "Puts a value into a key; without a value, reads it from stdin",
        "cairnctl put [flags] <key> [value]",
    )
    .args([
        value("lease", "Lease to attach to the key (hexadecimal)"),
        switch("prev-kv", "Print the key and value that were there before"),
        switch("ignore-value", "Keep the value that is there"),
        switch("ignore-lease", "Keep the lease that is there"),
    ])
}

pub fn get() -> Command {
    verb("get", "Gets a key or a range of keys", "cairnctl get [flags] <key> [range_end]").args([
        value("consistency", "l: linearizable; s: serializable, from the asked member's own state"),
        value("order", "ASCEND or DESCEND"),
        value("sort-by", "CREATE, KEY, MODIFY, VALUE or VERSION"),
        number("limit", "At most so many keys (0: all)"),
        switch("prefix", "All keys that begin with the key"),
        switch("from-key", "All keys from the key on"),
        number("rev", "At this revision (0: now)"),
        switch("keys-only", "Without values"),
        switch("count-only", "Only how many there are (with -w fields)"),
        switch("print-value-only", "Print values without their keys (with -w simple)"),
        number("min-create-rev", "Only keys created at this revision or later"),
        number("max-create-rev", "Only keys created at this revision or earlier"),
        number("min-mod-rev", "Only keys changed at this revision or later"),
        number("max-mod-rev", "Only keys changed at this revision or earlier"),
        switch("stream", "Let the server send a large answer in parts (etcd 3.7 and cairn)"),
    ])
}

pub fn del() -> Command {
    verb("del", "Deletes a key or a range of keys [key, range_end)", "cairnctl del [flags] <key> [range_end]")
        .visible_alias("delete")
        .args([
            switch("prefix", "All keys that begin with the key"),
            switch("prev-kv", "Print the keys and values that were deleted"),
            switch("from-key", "All keys from the key on"),
            switch("range", "Two arguments are meant as a range"),
        ])
}

pub fn watch() -> Command {
    verb(
        "watch",
        "Shows changes of a key or a range of keys as they happen",
        "cairnctl watch [flags] <key> [range_end] [-- command [argument ...]]\n       cairnctl watch -i [flags]",
    )
    .after_help(
        "A command runs once for each change, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and \
         ETCD_WATCH_VALUE in its environment.\nLines of the interactive mode are watch with its flags and arguments, or progress. \
         The watch ends when a\nsignal ends it; a lost connection is replaced without a gap.",
    )
    .args([
        switch("interactive", "Read any number of watches from stdin").short('i'),
        switch("prefix", "All keys that begin with the key"),
        number("rev", "From this revision on (0: from now on)"),
        switch("prev-kv", "Show also what was there before"),
        switch("progress-notify", "Let the server say now and then how far the watch has come"),
        number("exit-after", "End after so many changes (0: never)"),
        switch("resume-after-compaction", "Go on at the oldest change that is left when older ones are gone"),
    ])
    .arg(
        Arg::new(COMMAND)
            .num_args(0..)
            .last(true)
            .allow_hyphen_values(true)
            .value_parser(ValueParser::os_string())
            .hide(true),
    )
}

fn lease() -> Command {
    group("lease", "Leases: keys that end with their owner").subcommands([
        verb("grant", "Creates a lease", "cairnctl lease grant <ttl in seconds>"),
        verb(
            "revoke",
            "Ends a lease and deletes its keys",
            "cairnctl lease revoke [flags] <lease id in hexadecimal>",
        )
        .args(verbs::confirm::flags()),
        verb(
            "timetolive",
            "What a lease was granted and what is left of it",
            "cairnctl lease timetolive [flags] <lease id in hexadecimal>",
        )
        .arg(switch("keys", "Show the keys that are attached to it")),
        verb("list", "Lists the leases", "cairnctl lease list"),
        verb(
            "keep-alive",
            "Keeps a lease alive until it is gone",
            "cairnctl lease keep-alive [flags] <lease id in hexadecimal>",
        )
        .arg(switch("once", "Renew it once and end")),
    ])
}

fn member() -> Command {
    let peer_urls =
        || value("peer-urls", "Where the others reach the member, separated by commas: http://HOST:2380");
    group("member", "The members of the cluster").subcommands([
        verb("add", "Adds a member", "cairnctl member add <name> --peer-urls=<urls> [flags]")
            .after_help(
                "A new voter raises the quorum before it has started, so nothing may fail until it has caught up; a learner does not.\n\
                 member plan add tells what it would mean; member replace exchanges one member for another.",
            )
            .args([switch("learner", "As a learner: it gets everything and has no vote"), peer_urls()]),
        verb(
            "remove",
            "Removes a member",
            "cairnctl member remove <id or name>",
        )
        .after_help("The member ends by itself and never comes back under this id. member plan remove tells what it would mean.")
        .args(verbs::confirm::flags()),
        verb(
            "update",
            "Tells the cluster that a member moved",
            "cairnctl member update <id or name> --peer-urls=<urls>",
        )
        .arg(peer_urls()),
        verb(
            "promote",
            "Gives a learner its vote",
            "cairnctl member promote <id or name>",
        )
        .after_help("Refused until the learner has caught up."),
        verb(
            "replace",
            "Exchanges one member for another, without less than a quorum at any moment",
            "cairnctl member replace <id or name of the old one> --name=<name> --peer-urls=<urls> [flags]",
        )
        .after_help(
            "Adds a learner, says how to start it, waits until it has caught up, promotes it, and removes the old member once the new \
             one votes.\nMay be stopped at any time: the same command goes on where it was.",
        )
        .args([
            value("name", "Name of the new member"),
            peer_urls(),
            value("timeout", "Stop waiting after this time; 30m when not given"),
        ]),
        group("plan", "Tells what a change would mean for the quorum, and changes nothing").subcommands([
            verb("add", "What adding a member would mean", "cairnctl member plan add [name] [flags]")
                .args([switch("learner", "As a learner"), peer_urls().hide(true)]),
            verb("remove", "What removing a member would mean", "cairnctl member plan remove <id or name>"),
            verb("promote", "What a learner's vote would mean", "cairnctl member plan promote <id or name>"),
            verb("replace", "What replacing a member would mean", "cairnctl member plan replace <id or name>")
                .args([value("name", "Name of the new member").hide(true), peer_urls().hide(true)]),
        ]),
        verb("list", "Lists the members", "cairnctl member list [flags]").args([
            value("consistency", "l: linearizable; s: serializable, from the asked member's own state"),
            crate::again::flag(),
        ]),
    ])
}

fn endpoint() -> Command {
    let cluster = || switch("cluster", "Ask every member that the cluster knows instead of --endpoints");
    group("endpoint", "What single members say about themselves").subcommands([
        verb("health", "Whether each endpoint can commit a proposal", "cairnctl endpoint health [flags]")
            .arg(cluster()),
        verb(
            "status",
            "Version, size, leader and raft position of each endpoint",
            "cairnctl endpoint status [flags]",
        )
        .args([cluster(), crate::again::flag()]),
        verb("hashkv", "Hash of each endpoint's key-value history", "cairnctl endpoint hashkv [flags]")
            .args([cluster(), number("rev", "Hash the history up to this revision (0: all)")]),
    ])
}

fn context() -> Command {
    group("context", "Settings under a name, so that endpoints and keys are typed once").subcommands([
        verb("add", "Keeps the flags of this command under a name", "cairnctl context add <name> --endpoints=<endpoints> [flags]")
            .after_help(
                "What is kept: endpoints, certificates, user and the other settings of a cluster that are given as flags here; not variables.\n\
                 They are in ~/.config/cairn/contexts.toml (or below XDG_CONFIG_HOME), which only its owner can read.",
            )
            .args([
                switch("replace", "Replace the context of this name"),
                switch("use", "Make it the current one as well"),
            ]),
        verb("use", "Makes a context the current one", "cairnctl context use <name>\n       cairnctl context use --none")
            .arg(switch("none", "No current context any more")),
        verb("list", "Lists the contexts", "cairnctl context list"),
        verb("show", "Every setting that counts, and where it comes from", "cairnctl context show [name]")
            .after_help("Order: flag, CAIRNCTL_ variable, ETCDCTL_ variable, context, cairnctl.toml, the member on this host, default."),
        verb("remove", "Forgets a context", "cairnctl context remove <name>"),
    ])
}

fn discovery() -> Command {
    group("discovery", "Tokens by which the members of a new cluster find each other").subcommands([
        verb("new", "Makes a token for a cluster of this size", "cairnctl discovery new --size=<number> [flags]")
            .after_help(
                "Prints what every member is to be started with: --discovery for etcd 3.4 and 3.5, which need a cairn with --discovery-service, or\n\
                 --discovery-token and --discovery-endpoints for later ones. cairn takes either. A token serves both, and one cluster.",
            )
            .args([
                number("size", "How many members find each other"),
                value("lifetime", "When the token ends, complete or not; 168h when not given"),
            ]),
        verb("show", "Who has registered for a token, and how many are missing", "cairnctl discovery show <token or its URL>"),
    ])
}

/// The whole grammar.
pub fn command() -> Command {
    let mut command = Command::new("cairnctl")
        .about("Controls and measures a cairn or etcd cluster. Verbs, flags and output are etcdctl's; see docs/cairnctl.md")
        .after_help(
            "Without --endpoints it talks to the cluster of the current context (cairnctl context), else to the member on this host.\n\
             For people: cairnctl status, cairnctl get KEY --prefix -o table, cairnctl member list --watch.",
        )
        .disable_version_flag(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .infer_subcommands(true)
        .args_override_self(true);
    for Global { name, short, kind, help, .. } in GLOBALS {
        let arg = match kind {
            // The settings read all switches alike, whichever source they come from.
            Kind::Switch => switch(name, help).value_parser(ValueParser::string()),
            Kind::Text => value(name, help),
            Kind::List => value(name, help).action(ArgAction::Append),
        };
        let arg = if let Some(short) = short { arg.short(*short) } else { arg };
        let rare = !COMMON.contains(name);
        command = command.arg(arg.global(true).help_heading("Global flags").hide_short_help(rare));
    }
    command.subcommands([
        put(),
        get(),
        del().args(verbs::confirm::flags()),
        verb("txn", "Runs a transaction read from stdin", "cairnctl txn [flags] < script")
            .arg(switch("interactive", "Say what is expected next").short('i')),
        verb("compaction", "Discards history before a revision", "cairnctl compaction [flags] <revision>")
            .visible_alias("compact")
            .arg(switch("physical", "Wait until the space is given back"))
            .args(verbs::confirm::flags()),
        watch(),
        verbs::status::command(),
        verbs::doctor::command(),
        verbs::wait::command(),
        verbs::can_stop::command(),
        verbs::top::command(),
        verbs::debug::command(),
        lease(),
        member(),
        endpoint(),
        context(),
        discovery(),
        verb(
            "move-leader",
            "Hands leadership to another member",
            "cairnctl move-leader <id or name>",
        ),
        verbs::defrag::command(),
        group("snapshot", "Backups of a member's state").subcommands([
            verb(
            "save",
            "Saves the state of one member into a file",
            "cairnctl snapshot save [flags] <file>",
        )
        .after_help(
            "The file gets its name only when it is whole, its SHA-256 fits and it is on disk; one of that name is replaced then.\n\
             Look at it with snapshot status, or etcdutl; restore it with cairnd snapshot restore.",
        )
        .arg(switch("progress", "Tell the progress on stderr also when it is no terminal")),
            verb("status", "Tells what is in a saved file", "cairnctl snapshot status [flags] <file>").after_help(
                "Hash, revision, pairs of all buckets and size, as etcdutl 3.5 tells them; a file whose SHA-256 does not fit, or that was cut,\n\
                 is refused. Nothing is asked of a server.",
            ),
        ]),
        group("alarm", "Alarms that members have raised").subcommands([
            verb("list", "Lists the alarms", "cairnctl alarm list"),
            verb("disarm", "Takes back all alarms", "cairnctl alarm disarm"),
        ]),
        verbs::mirror::command(),
        crate::bench::options::command(),
        crate::bench::check::command(),
        verb("version", "Prints the version of this tool and of the API it speaks", "cairnctl version"),
        verb(
            "completion",
            "Prints the completion script of a shell",
            "cairnctl completion bash|zsh|fish|powershell",
        )
        .after_help(
            "bash: source <(cairnctl completion bash); zsh: put it into a file _cairnctl in a directory of fpath; fish: cairnctl completion fish | source.\n\
             Keys, members, leases and contexts are completed as they are now; the packages install the scripts.",
        )
        .arg(switch("no-descriptions", "Words without what they mean")),
        verb("__complete", "Answers the completion scripts", "cairnctl __complete -- <shell> <word>...").hide(true),
    ])
}

/// Reads the command line. `Ok(None)`: help was asked for and is on stdout.
pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Option<ArgMatches>> {
    let words: Vec<OsString> = words.collect();
    let mut parsed = command().try_get_matches_from(&words);
    if let Err(error) = &parsed
        && let Some(whole) = completed(&words, error)
    {
        parsed = command().try_get_matches_from(whole);
    }
    match parsed {
        Ok(matches) => Ok(Some(matches)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                // As etcdctl: a group without its verb shows what there is and succeeds. A closed stdout is nobody's problem.
                use std::io::Write;
                let _ = write!(std::io::stdout(), "{}", error.render());
                Ok(None)
            }
            _ => Err(usage_failure(&error)),
        },
    }
}

/// The words with the beginning of a verb of etcdctl's completed, if that is what could not be understood.
fn completed(words: &[OsString], error: &clap::Error) -> Option<Vec<OsString>> {
    let Some(ContextValue::String(begun)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let at = words.iter().skip(1).position(|word| word == begun.as_str())? + 1;
    let mut verbs_before = words[1..at].iter().filter_map(|word| word.to_str());
    let group = verbs_before.rfind(|word| !word.is_empty() && !word.starts_with('-')).unwrap_or_default();
    let (_, theirs) = THEIRS
        .iter()
        .rfind(|(known, _)| known.starts_with(group) && (group.len() > 1 || known.is_empty()))?;
    let mut fitting = theirs.iter().filter(|verb| verb.starts_with(begun.as_str()));
    let only = fitting.next().filter(|_| fitting.next().is_none())?;
    // Not one that is missing here: its name would only be another riddle.
    let mut words = words.to_vec();
    words[at] = (*only).into();
    Some(words)
}

/// The global flags that were given. clap hands globals down, so the innermost verb knows them all.
pub fn given(matches: &ArgMatches) -> Given {
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    let values = |global: &Global| {
        innermost.get_many::<String>(global.name).map(|values| (global.name, values.cloned().collect()))
    };
    GLOBALS.iter().filter_map(values).collect()
}

/// The arguments of a verb, as bytes: keys need not be text.
pub fn arguments(matches: &ArgMatches) -> Vec<Vec<u8>> {
    matches
        .get_many::<OsString>(ARGUMENTS)
        .into_iter()
        .flatten()
        .map(|word| word.clone().into_vec())
        .collect()
}

/// The command after `--`; empty when there is none.
pub fn command_words(matches: &ArgMatches) -> Vec<OsString> {
    matches.get_many::<OsString>(COMMAND).into_iter().flatten().cloned().collect()
}

/// Whether a switch is on.
pub fn on(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

/// The text of a flag; empty when absent.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

/// The number of a flag; zero when absent, which every flag of that kind takes for "not set".
pub fn integer(matches: &ArgMatches, name: &str) -> i64 {
    matches.get_one::<i64>(name).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn parsed(line: &str) -> Result<ArgMatches> {
        let words = std::iter::once("cairnctl").chain(line.split(' ')).map(OsString::from);
        parse(words).map(|matches| matches.expect("no help was asked for"))
    }

    fn inner(line: &str) -> ArgMatches {
        parsed(line).unwrap().subcommand().unwrap().1.clone()
    }

    #[test]
    fn the_grammar_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_may_stand_anywhere_and_the_last_one_wins() {
        let get = inner("-w fields get a --prefix b --limit 1 --limit=2 -wjson --hex");
        assert_eq!(arguments(&get), [b"a".to_vec(), b"b".to_vec()]);
        assert!(on(&get, "prefix"));
        assert_eq!(integer(&get, "limit"), 2);
        let given = given(&parsed("get a -w fields -w=json --hex").unwrap());
        assert_eq!((given["write-out"].last().unwrap().as_str(), given["hex"][0].as_str()), ("json", "true"));
    }

    #[test]
    fn two_dashes_end_the_flags_and_a_value_may_begin_with_one() {
        assert_eq!(arguments(&inner("put a -- -v")), [b"a".to_vec(), b"-v".to_vec()]);
        assert_eq!(integer(&inner("get a --rev -5"), "rev"), -5);
        assert!(parsed("put a -z").unwrap_err().headline.starts_with("unknown shorthand flag: -z"));
    }

    #[test]
    fn switches_take_a_value_only_after_the_equals_sign() {
        assert!(!on(&inner("get a --prefix=false"), "prefix"));
        let get = inner("get a --prefix true");
        assert!(on(&get, "prefix") && arguments(&get).len() == 2);
        assert!(
            parsed("get a --prefix=xx")
                .unwrap_err()
                .headline
                .contains("strconv.ParseBool: parsing \"xx\": invalid syntax")
        );
    }

    #[test]
    fn verbs_may_be_shortened_while_they_stay_unambiguous() {
        assert_eq!(parsed("ver").unwrap().subcommand_name(), Some("version"));
        assert_eq!(parsed("end heal").unwrap().subcommand().unwrap().1.subcommand_name(), Some("health"));
        assert_eq!(parsed("compact 3").unwrap().subcommand_name(), Some("compaction"));
        assert!(parsed("mem li").is_ok());
        // Where only we have a second verb that begins so, etcdctl's is meant.
        for (line, verb) in [("w k", "watch"), ("s save f", "snapshot"), ("t", "txn"), ("--hex w k", "watch")]
        {
            assert_eq!(parsed(line).unwrap().subcommand_name(), Some(verb), "{line}");
        }
        for (line, verb) in [("member rem 1", "remove"), ("mem p 1", "promote"), ("member up 1", "update")] {
            assert_eq!(parsed(line).unwrap().subcommand().unwrap().1.subcommand_name(), Some(verb), "{line}");
        }
        assert!(parsed("co 3").is_err(), "compaction and completion both begin so");
    }

    #[test]
    fn mistakes_name_the_nearest_known_name_and_exit_64() {
        for (line, start) in [
            ("get a --prefxi", "unknown flag: --prefxi; did you mean --prefix?"),
            (
                "get a --limit x",
                "invalid argument \"x\" for \"--limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            ("gte a", "unknown command \"gte\" for \"cairnctl\"; did you mean get?"),
            ("get a --limit", "flag needs an argument: --limit"),
            (
                "wait --for foo",
                "invalid argument \"foo\" for \"--for\" flag: expecting quorum, leader or synced",
            ),
            (
                "context set prod",
                "unknown command \"set\" for \"cairnctl context\"; it has add, use, list, show, remove",
            ),
            (
                "list",
                "unknown command \"list\" for \"cairnctl\"; did you mean lease list, member list, context list or alarm list?",
            ),
            ("health", "unknown command \"health\" for \"cairnctl\"; did you mean endpoint health?"),
            ("members", "unknown command \"members\" for \"cairnctl\"; did you mean member?"),
            ("ls /a", "unknown command \"ls\" for \"cairnctl\": the verb is get"),
            ("user add x", "unknown command \"user\" for \"cairnctl\": not here yet"),
            (
                "snapshot restore f",
                "unknown command \"restore\" for \"cairnctl snapshot\": the daemon restores",
            ),
            ("--version", "unknown flag: --version; the verb is version: cairnctl version"),
            ("member lst", "unknown command \"lst\" for \"cairnctl member\"; did you mean list?"),
        ] {
            let failure = parsed(line).unwrap_err();
            assert!(failure.headline.starts_with(start), "{line}: {}", failure.headline);
            assert_eq!(failure.exit, Exit::Usage);
        }
    }
}
