//! The command line: etcd's flags in Go's style, and the daemon's verbs. Text in, names and texts out; what a value means is the
//! business of `config`.
//!
//! `-x v`, `--x v`, `-x=v` and `--x=v` are the same; a boolean flag takes its value only after `=`; of a repeated flag the last counts.

use std::ffi::OsString;

use crate::{
    config::{
        suggest,
        table::{self, Setting},
    },
    refusal::{Id, Refusal},
    snapshot,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// No verb: be a member.
    Run,
    ConfigCheck,
    /// Of one setting, or of all that differ from their default.
    ConfigExplain(Option<String>),
    /// A file of etcd.
    ConfigConvert(String),
    IdentityShow,
    /// The verdict of a start, without starting.
    Doctor,
    Snapshot(snapshot::Order),
    Help,
    Version,
}

#[derive(Clone, Debug)]
pub struct GivenFlag {
    pub setting: &'static Setting,
    pub text: String,
}

#[derive(Clone, Debug)]
pub struct Command {
    pub verb: Verb,
    /// In the order given.
    pub flags: Vec<GivenFlag>,
    pub look: Look,
}

/// How a verb that only looks answers, and whom it asks beside the member's peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub json: bool,
    /// Only the exit code tells.
    pub quiet: bool,
    pub endpoints: Vec<String>,
}

const VERBS: &str = "config check, config explain [SETTING], config convert FILE, identity show, doctor, snapshot status FILE, snapshot restore FILE, help, version";

/// Verbs of etcd's server that are other programs than a member.
const OTHER_PROGRAMS: [&str; 2] = ["grpc-proxy", "gateway"];

/// Reads the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refusal> {
    let mut words: Vec<String> = Vec::new();
    let mut flags: Vec<GivenFlag> = Vec::new();
    let mut args = args.into_iter().peekable();
    let mut only_words = false;
    let mut looks: Vec<(&'static str, String)> = Vec::new();
    if let Some(proxy) =
        args.peek().and_then(|first| first.to_str()).filter(|first| OTHER_PROGRAMS.contains(first))
    {
        return Err(Refusal::new(Id::NotSupported, format!("{proxy} is not part of cairnd"))
            .evidence("given", proxy)
            .remedy("use any TCP or gRPC proxy: a member's client port needs nothing special from it"));
    }
    if args.next_if(|first| first == "snapshot").is_some() {
        let (order, settings) = snapshot::parse(args.collect())?;
        let command = parse(settings)?;
        let verb = if command.verb == Verb::Run { Verb::Snapshot(order) } else { command.verb };
        return Ok(Command { verb, ..command });
    }
    while let Some(arg) = args.next() {
        let arg = text(arg)?;
        let Some(bare) = arg.strip_prefix('-').filter(|rest| !rest.is_empty() && !only_words) else {
            words.push(arg);
            continue;
        };
        let bare = bare.strip_prefix('-').unwrap_or(bare);
        if bare.is_empty() {
            only_words = true;
            continue;
        }
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (bare, None),
        };
        let name = if name == "h" { "help" } else { name };
        if value.is_none() && QUIET.contains(&name) {
            looks.push((QUIET[1], String::new()));
            continue;
        }
        if let Some(name) = LOOK_FLAGS.iter().find(|(short, long)| [*short, *long].contains(&name)) {
            let value = match value {
                Some(value) => value,
                None => args.next().map_or(Ok(String::new()), text)?,
            };
            looks.push((name.1, value));
            continue;
        }
        let Some(setting) = table::find(name) else {
            return Err(unknown_flag(name));
        };
        let text = match value {
            Some(value) => value,
            None if setting.kind.is_bool_style() => "true".to_owned(),
            None => match args.next() {
                Some(value) => text(value)?,
                None => {
                    return Err(Refusal::new(Id::BadValue, format!("--{name} lacks its value"))
                        .evidence(
                            format!("--{name}"),
                            format!("{}: {}", setting.kind.describe(), setting.meaning),
                        )
                        .remedy(format!("give it one: --{name}=VALUE")));
                }
            },
        };
        flags.push(GivenFlag { setting, text });
    }
    let asked = |name: &str| {
        flags.iter().rfind(|flag| flag.setting.name == name).is_some_and(|flag| flag.text != "false")
    };
    let verb = if asked("help") {
        Verb::Help
    } else if asked("version") {
        Verb::Version
    } else {
        verb(&words)?
    };
    let look = look(&verb, looks)?;
    Ok(Command { verb, flags, look })
}

/// Flags that only verbs have: short and long.
const LOOK_FLAGS: [(&str, &str); 2] = [("o", "output"), ("endpoints", "endpoints")];

/// The one of them that takes no value: short and long.
const QUIET: [&str; 2] = ["q", "quiet"];

fn look(verb: &Verb, given: Vec<(&'static str, String)>) -> Result<Look, Refusal> {
    let mut look = Look::default();
    for (name, value) in given {
        let known = match verb {
            Verb::Help => true,
            Verb::Doctor => name != QUIET[1],
            Verb::ConfigCheck => name != "endpoints",
            Verb::ConfigExplain(_) | Verb::IdentityShow => name == "output",
            _ => false,
        };
        if !known {
            return Err(unknown_flag(name));
        }
        match (name, value.as_str()) {
            ("quiet", _) => look.quiet = true,
            ("output", "text") => look.json = false,
            ("output", "json") => look.json = true,
            ("output", _) => {
                return Err(Refusal::new(Id::BadValue, format!("{value:?} is no form of output"))
                    .evidence("-o", "text or json")
                    .remedy("-o json"));
            }
            _ => {
                let list = value.split(',').map(str::trim).filter(|one| !one.is_empty());
                look.endpoints.extend(list.map(str::to_owned));
            }
        }
    }
    Ok(look)
}

fn text(arg: OsString) -> Result<String, Refusal> {
    arg.into_string().map_err(|odd| {
        Refusal::new(Id::BadValue, "an argument is not UTF-8 text")
            .evidence("given", odd.to_string_lossy())
            .remedy("use names and paths in UTF-8")
    })
}

fn unknown_flag(name: &str) -> Refusal {
    let refusal = Refusal::new(Id::UnknownSetting, format!("there is no flag --{name}"));
    match table::nearest_flag(name) {
        Some(near) => refusal
            .evidence(format!("--{name}"), format!("nearest name: --{near}"))
            .remedy(format!("if you meant it: --{near}"))
            .remedy("see all of them: cairnd --help"),
        None => {
            refusal.evidence(format!("--{name}"), "no name is near").remedy("see all of them: cairnd --help")
        }
    }
}

fn verb(words: &[String]) -> Result<Verb, Refusal> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        [] => Verb::Run,
        ["config", "check"] => Verb::ConfigCheck,
        ["config", "explain"] => Verb::ConfigExplain(None),
        ["config", "explain", key] => Verb::ConfigExplain(Some((*key).to_owned())),
        ["config", "convert", file] => Verb::ConfigConvert((*file).to_owned()),
        ["config", "convert"] => {
            return Err(Refusal::new(Id::UnknownVerb, "config convert lacks the file to convert")
                .remedy("cairnd config convert /etc/etcd/etcd.conf.yml > cairnd.toml"));
        }
        ["identity", "show"] => Verb::IdentityShow,
        ["doctor"] => Verb::Doctor,
        ["help"] => Verb::Help,
        ["version"] => Verb::Version,
        ["config", "check", file] => {
            return Err(Refusal::new(
                Id::UnknownVerb,
                format!("config check takes its file by a flag, not {file:?}"),
            )
            .remedy(format!("cairnd config check --config-file={file}")));
        }
        [group @ ("config" | "identity")] => {
            let verbs = if *group == "config" {
                "config check, config explain or config convert"
            } else {
                "identity show"
            };
            return Err(Refusal::new(Id::UnknownVerb, format!("{group} needs to know what to do: {verbs}"))
                .evidence("verbs", VERBS)
                .remedy(format!(
                    "cairnd {}",
                    if *group == "config" { "config check" } else { "identity show" }
                )));
        }
        other => {
            let given = other.join(" ");
            let known = [
                "config check",
                "config explain",
                "config convert",
                "identity show",
                "doctor",
                "help",
                "version",
            ];
            let refusal = Refusal::new(Id::UnknownVerb, format!("{given:?} is neither a flag nor a verb"))
                .evidence("verbs", VERBS);
            return Err(match suggest::nearest(&given, known.into_iter()) {
                Some(near) => refusal.remedy(format!("if you meant it: cairnd {near}")),
                None => refusal.remedy("flags begin with a dash: cairnd --name=n1"),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, Refusal> {
        parse(args.iter().map(OsString::from))
    }

    fn flags(args: &[&str]) -> Vec<(&'static str, String)> {
        parsed(args).unwrap().flags.into_iter().map(|flag| (flag.setting.name, flag.text)).collect()
    }

    #[test]
    fn flags_are_read_in_gos_style() {
        for args in [&["-name", "n1"][..], &["--name", "n1"], &["-name=n1"], &["--name=n1"]] {
            assert_eq!(flags(args), [("name", "n1".to_owned())], "{args:?}");
        }
        assert_eq!(
            flags(&["--pre-vote", "--name", "x"]),
            [("pre-vote", "true".into()), ("name", "x".into())]
        );
        assert_eq!(flags(&["--pre-vote=false"]), [("pre-vote", "false".into())]);
        assert_eq!(
            flags(&["--name", "--pre-vote"]),
            [("name", "--pre-vote".into())],
            "a value may begin with a dash"
        );
        assert_eq!(flags(&["--initial-cluster-token="]), [("initial-cluster-token", String::new())]);
        assert_eq!(flags(&["--name=a=b"]), [("name", "a=b".into())], "only the first = divides");
    }

    #[test]
    fn a_boolean_leaves_the_next_word_alone() {
        let refusal = parsed(&["--pre-vote", "false"]).unwrap_err();
        assert_eq!(refusal.id, Id::UnknownVerb);
    }

    #[test]
    fn a_verb_that_is_not_whole_names_the_rest() {
        for (words, remedy) in [
            (&["config"][..], "cairnd config check"),
            (&["identity"], "cairnd identity show"),
            (&["config", "check", "db1.toml"], "cairnd config check --config-file=db1.toml"),
            (&["config", "chek"], "if you meant it: cairnd config check"),
        ] {
            let refusal = parsed(words).unwrap_err();
            assert_eq!(refusal.id, Id::UnknownVerb, "{words:?}");
            assert!(refusal.text().contains(&format!("remedy:   1. {remedy}\n")), "{}", refusal.text());
        }
    }

    #[test]
    fn an_unknown_flag_names_the_nearest() {
        let refusal = parsed(&["--listen-client-url=http://a:1"]).unwrap_err();
        assert_eq!(refusal.id, Id::UnknownSetting);
        assert!(refusal.text().contains("--listen-client-urls"), "{}", refusal.text());
    }

    #[test]
    fn verbs_may_stand_before_or_after_flags() {
        assert_eq!(parsed(&["config", "check", "--name=a"]).unwrap().verb, Verb::ConfigCheck);
        assert_eq!(
            parsed(&["--name=a", "config", "explain", "name"]).unwrap().verb,
            Verb::ConfigExplain(Some("name".into()))
        );
        let doctor =
            parsed(&["doctor", "--name=a", "--endpoints=http://a:1, http://b:1", "-o", "json"]).unwrap();
        assert_eq!(doctor.verb, Verb::Doctor);
        assert_eq!(
            doctor.look,
            Look { json: true, quiet: false, endpoints: vec!["http://a:1".into(), "http://b:1".into()] }
        );
        assert!(parsed(&["identity", "show", "-o=yaml"]).unwrap_err().text().contains("text or json"));
        assert!(parsed(&["config", "check", "-q", "--name=a"]).unwrap().look.quiet);
        for args in [
            &["-o", "json"][..],
            &["config", "check", "--endpoints=http://a:1"],
            &["--quiet"],
            &["doctor", "--quiet"],
        ] {
            assert_eq!(parsed(args).unwrap_err().id, Id::UnknownSetting, "{args:?}");
        }
        assert_eq!(parsed(&["-h"]).unwrap().verb, Verb::Help);
        assert_eq!(parsed(&["--version"]).unwrap().verb, Verb::Version);
        assert!(parsed(&["confg", "check"]).unwrap_err().text().contains("cairnd config check"));
        assert!(parsed(&["--name"]).unwrap_err().text().contains("lacks its value"));
        assert_eq!(parsed(&["grpc-proxy", "start", "--endpoints=x"]).unwrap_err().id, Id::NotSupported);
    }
}
