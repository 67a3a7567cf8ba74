//! The settings every verb shares: where each may come from, which source wins, and what the text means.
//!
//! etcdctl refuses a setting that is given twice (flag and variable); here the flag wins, which is what the person at the keyboard meant.
//! A value that cannot be read is refused with its source. Not here: parsing the command line (`cli`) and opening certificates
//! (`wire::tls`).

pub mod contexts;
mod globals;
mod local;
mod sources;

pub use globals::{GLOBALS, Global, Kind};
pub use sources::{Rank, Sources, Variables, Weighed, weigh};

use crate::failure::{Failure, Result};
use crate::output::Shape;
use crate::units;
use crate::wire::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::time::Duration;

/// gRPC clients of etcd send at most 2 MiB by default; the server's own limit (1.5 MiB) is reached first and says so itself.
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The longest message gRPC's own clients accept.
const RECEIVE_BYTES_MAX: usize = i32::MAX as usize;

/// Members refuse clients that ping more often than every 5 s; gRPC's own clients never do it more often than this either.
const KEEPALIVE_MIN: Duration = Duration::from_secs(10);

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

impl Format {
    pub const ALL: [(&'static str, Format); 5] = [
        ("simple", Format::Simple),
        ("json", Format::Json),
        ("fields", Format::Fields),
        ("table", Format::Table),
        ("protobuf", Format::Protobuf),
    ];
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Nobody,
    Password { user: String, password: String },
    Token(String),
}

/// What TLS needs to know; used only for endpoints that speak it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    pub cacert: String,
    pub cert: String,
    pub key: String,
    pub skip_verify: bool,
}

/// The settings after all sources are weighed.
#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoints: Vec<Endpoint>,
    pub format: Format,
    /// `-o`; it wins over `format`, which is json beside `-o json` for verbs that know no shapes, else simple.
    pub shape: Option<Shape>,
    /// Whether the shape was asked of this very command: by flag, and not by a variable or file for all of them.
    pub shape_asked: bool,
    pub hex: bool,
    pub base64: bool,
    pub dial_timeout: Duration,
    pub command_timeout: Duration,
    /// Whether somebody asked for a command timeout; verbs that may take long only mind it then.
    pub command_timeout_given: bool,
    pub debug: bool,
    pub identity: Identity,
    pub tls: TlsSettings,
    pub request_bytes_max: usize,
    pub receive_bytes_max: usize,
    /// How often a long call asks whether the member is still there, and how long it waits for the answer.
    pub keepalive_time: Duration,
    pub keepalive_timeout: Duration,
    /// Why the endpoints are the default although a member is configured on this host.
    pub missed: Option<String>,
    /// Lines for stderr before the command runs: unknown variables, odd mixes.
    pub warnings: Vec<String>,
}

/// Values from flags: absent means not given. A list flag given twice has two values.
pub type Given = BTreeMap<&'static str, Vec<String>>;

/// Weighs all sources. `variables` are the process's, passed in so that tests need no process.
pub fn resolve(given: &Given, variables: &Variables) -> Result<Settings> {
    let sources = weigh(given, variables)?;
    understand(&sources)
}

/// What the texts mean.
pub fn understand(sources: &Sources) -> Result<Settings> {
    let values = &sources.values;
    let mut warnings = sources.warnings.clone();
    let text = |name: &str| values[name].text.clone();
    let switch = |name: &'static str| {
        units::parse_bool(&values[name].text).map_err(|why| bad_value(name, &values[name], &why))
    };
    let duration = |name: &'static str| {
        units::parse_duration(&values[name].text).map_err(|why| bad_value(name, &values[name], &why))
    };
    let bytes = |name: &'static str, zero: usize| match values[name].text.parse::<u32>() {
        Ok(0) => Ok(zero),
        Ok(n) => Ok(n as usize),
        Err(why) => Err(bad_value(name, &values[name], &why.to_string())),
    };

    let (format, shape) = output_of(sources)?;
    for name in ["discovery-srv", "discovery-srv-name"] {
        if !values[name].text.is_empty() {
            return Err(Failure::feature(format!(
                "--{name} is not supported: list the members with --endpoints=HOST:PORT,HOST:PORT"
            )));
        }
    }
    for name in ["cacert", "cert", "key"] {
        if values[name].rank > Rank::Default && values[name].text.is_empty() {
            return Err(Failure::arguments(format!("empty string is passed to --{name} option")));
        }
    }
    let tls = TlsSettings {
        cacert: text("cacert"),
        cert: text("cert"),
        key: text("key"),
        skip_verify: switch("insecure-skip-tls-verify")?,
    };
    if tls.cert.is_empty() != tls.key.is_empty() {
        return Err(Failure::arguments("--cert and --key belong together: give both or none"));
    }
    // etcdctl's rule: a bare host:port is plain text unless certificates say otherwise.
    let bare_is_secure = !switch("insecure-transport")? || !tls.cacert.is_empty() || !tls.cert.is_empty();
    let mut endpoints = Vec::new();
    for name in values["endpoints"].text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        endpoints.push(
            Endpoint::parse(name, bare_is_secure)
                .map_err(|why| bad_value("endpoints", &values["endpoints"], &why))?,
        );
    }
    if endpoints.is_empty() {
        let default = Endpoint::parse(GLOBALS[0].default, bare_is_secure);
        endpoints.push(default.expect("the default endpoint is well formed"));
    }
    switch("insecure-discovery")?;
    if values["debug"].text == "true" {
        warnings.extend(values.iter().map(|(name, value)| {
            format!("{}={}", globals::variable("CAIRNCTL_", name), shown(name, &value.text))
        }));
    }
    if switch("verbose")? {
        warnings.extend(sources.explain());
    }
    Ok(Settings {
        endpoints,
        format,
        shape,
        shape_asked: values["output"].rank == Rank::Flag,
        hex: switch("hex")?,
        base64: switch("base64")?,
        dial_timeout: duration("dial-timeout")?,
        command_timeout: duration("command-timeout")?,
        command_timeout_given: values["command-timeout"].rank > Rank::Default,
        debug: switch("debug")?,
        identity: identity(&text("user"), &text("password"), &text("auth-jwt-token"))?,
        tls,
        request_bytes_max: bytes("max-request-bytes", REQUEST_BYTES_MAX)?,
        receive_bytes_max: bytes("max-recv-bytes", RECEIVE_BYTES_MAX)?,
        keepalive_time: duration("keepalive-time")?.max(KEEPALIVE_MIN),
        keepalive_timeout: duration("keepalive-timeout")?,
        missed: sources.missed.clone(),
        warnings,
    })
}

/// The format of `-w` and the shape of `-o`: one of them, whichever is said more strongly.
pub fn output_of(sources: &Sources) -> Result<(Format, Option<Shape>)> {
    let (theirs, ours) = (&sources.values["write-out"], &sources.values["output"]);
    let format = Format::ALL.iter().find(|(name, _)| *name == theirs.text).map(|(_, format)| *format);
    let format = format.ok_or_else(|| Failure::feature("unsupported output format"))?;
    if ours.text.is_empty() || ours.rank < theirs.rank {
        return Ok((format, None));
    }
    if ours.rank == Rank::Flag && theirs.rank == Rank::Flag {
        return Err(Failure::arguments("--output and --write-out both choose the format: give one of them"));
    }
    let shape = Shape::ALL.iter().find(|(name, _)| *name == ours.text).map(|(_, shape)| *shape);
    let shape = shape.ok_or_else(|| {
        let names: Vec<&str> = Shape::ALL.iter().map(|(name, _)| *name).collect();
        let hint = if Format::ALL.iter().any(|(name, _)| *name == ours.text) {
            format!("; {} is a format of -w", ours.text)
        } else {
            String::new()
        };
        Failure::feature(format!(
            "unknown output {:?} from {}: known are {}{hint}",
            ours.text,
            ours.source,
            names.join(", ")
        ))
    })?;
    Ok((if shape == Shape::Json { Format::Json } else { Format::Simple }, Some(shape)))
}

impl Sources {
    /// Where everything that is not a default comes from, a line each.
    fn explain(&self) -> Vec<String> {
        let chosen =
            self.values.iter().filter(|(name, value)| value.rank > Rank::Default || **name == "endpoints");
        let lines = chosen.map(|(name, value)| {
            format!("settings: {name} = {} ({})", shown(name, &value.text), value.source)
        });
        lines.chain(self.notes.iter().map(|note| format!("settings: {note}"))).collect()
    }
}

fn bad_value(name: &str, value: &Weighed, why: &str) -> Failure {
    match value.rank {
        Rank::Flag => {
            Failure::usage(format!("invalid argument {:?} for \"--{name}\" flag: {why}", value.text))
        }
        Rank::Default => Failure::usage(format!("invalid default {:?} for {name}: {why}", value.text)),
        _ => {
            Failure::usage(format!("invalid value {:?} for {name} from {}: {why}", value.text, value.source))
        }
    }
}

/// Who asks, as `user`, `password` and `token` say it; each may be empty.
pub fn identity(user: &str, password: &str, token: &str) -> Result<Identity> {
    if !token.is_empty() {
        if !user.is_empty() || !password.is_empty() {
            return Err(Failure::arguments(
                "--auth-jwt-token replaces --user and --password: give one or the other",
            ));
        }
        return Ok(Identity::Token(token.to_owned()));
    }
    match (user, password) {
        ("", "") => Ok(Identity::Nobody),
        ("", _) => Err(Failure::arguments("--password needs --user")),
        (user, "") => match user.split_once(':') {
            Some((user, password)) => Ok(Identity::Password { user: user.into(), password: password.into() }),
            None => Err(Failure::arguments(
                "no password: give --user NAME:PASSWORD, or --password (or CAIRNCTL_PASSWORD)",
            )),
        },
        (user, password) => Ok(Identity::Password { user: user.into(), password: password.into() }),
    }
}

/// A setting as it may be shown: who and with what is nobody's business.
pub fn shown<'a>(name: &str, text: &'a str) -> &'a str {
    let secret = matches!(name, "user" | "password" | "auth-jwt-token");
    if secret && !text.is_empty() { "(hidden)" } else { text }
}

/// The most similar of `known`, when it is similar enough to be a slip of the fingers: at most a third of the letters differ.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (distance(wrong, name), name))
        .min()
        .filter(|(steps, name)| *steps * 3 <= name.len().max(3))
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap neighbours) between two short names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(table[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::globals::{CONFIG_VARIABLE, LOCAL_VARIABLE};
    use super::sources::parse_file;
    use super::*;
    use std::ffi::OsString;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        // Never the files of the machine the test happens to run on.
        let mut map: Variables = [CONFIG_VARIABLE, LOCAL_VARIABLE]
            .map(|name| (name.to_owned(), OsString::from("/dev/null")))
            .into();
        map.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
        map
    }

    fn flags(pairs: &[(&'static str, &str)]) -> Given {
        let mut given = Given::new();
        for (name, value) in pairs {
            given.entry(name).or_default().push((*value).to_owned());
        }
        given
    }

    #[test]
    fn a_flag_beats_our_variable_which_beats_etcdctls() {
        let env = variables(&[
            ("ETCDCTL_DIAL_TIMEOUT", "7s"),
            ("CAIRNCTL_DIAL_TIMEOUT", "8s"),
            ("ETCDCTL_COMMAND_TIMEOUT", "9s"),
        ]);
        let settings = resolve(&flags(&[("command-timeout", "1s")]), &env).unwrap();
        assert_eq!(
            (settings.dial_timeout, settings.command_timeout),
            (Duration::from_secs(8), Duration::from_secs(1))
        );
        assert!(settings.command_timeout_given);
    }

    #[test]
    fn repeated_endpoint_flags_add_up_and_empty_ones_mean_the_default() {
        let settings =
            resolve(&flags(&[("endpoints", "a:1,b:2"), ("endpoints", "c:3")]), &variables(&[])).unwrap();
        assert_eq!(
            settings.endpoints.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
            ["a:1", "b:2", "c:3"]
        );
        let settings = resolve(&flags(&[("endpoints", ",")]), &variables(&[])).unwrap();
        assert_eq!(settings.endpoints[0].name, "127.0.0.1:2379");
    }

    #[test]
    fn an_unknown_variable_is_named_with_its_nearest_neighbour() {
        let settings =
            resolve(&Given::new(), &variables(&[("ETCDCTL_ENDPOINT", "a:1"), ("ETCDCTL_WATCH_KEY", "k")]))
                .unwrap();
        assert_eq!(
            settings.warnings,
            ["warning: unknown variable ETCDCTL_ENDPOINT has no effect; did you mean ETCDCTL_ENDPOINTS?"]
        );
    }

    #[test]
    fn a_bad_value_is_refused_with_its_source() {
        let failure = resolve(&Given::new(), &variables(&[("ETCDCTL_COMMAND_TIMEOUT", "3")])).unwrap_err();
        assert!(
            failure.headline.contains("from variable ETCDCTL_COMMAND_TIMEOUT: time: missing unit"),
            "{}",
            failure.headline
        );
        assert_eq!(failure.exit, crate::failure::Exit::Usage);
    }

    /// Files for one test, and the variables that name them.
    struct Host {
        home: tempfile::TempDir,
    }

    impl Host {
        fn with(files: &[(&str, &str)]) -> Host {
            let home = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = home.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Host { home }
        }

        fn variables(&self, pairs: &[(&str, &str)]) -> Variables {
            let mut map = variables(&[]);
            let home = self.home.path();
            map.insert("XDG_CONFIG_HOME".into(), home.into());
            for (name, file) in [(CONFIG_VARIABLE, "cairnctl.toml"), (LOCAL_VARIABLE, "cairnd.toml")] {
                if home.join(file).exists() {
                    map.insert(name.into(), home.join(file).into());
                }
            }
            map.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
            map
        }

        /// The endpoints that count, and where they come from without the directory of this test.
        fn endpoints(&self, given: &[(&'static str, &str)], pairs: &[(&str, &str)]) -> (String, String) {
            let sources = weigh(&flags(given), &self.variables(pairs)).unwrap();
            let endpoints = &sources.values["endpoints"];
            let home = format!("{}/", self.home.path().display());
            (endpoints.text.clone(), endpoints.source.replace(&home, ""))
        }
    }

    const CONTEXTS: &str = "current = 'prod'\n[contexts.prod]\nendpoints = ['p:1', 'p:2']\nuser = 'root:secret'\ncert = 'c'\nkey = 'k'\n[contexts.test]\nendpoints = 't:1'\n";

    #[test]
    fn each_source_of_endpoints_wins_over_the_next() {
        let local = ("cairnd.toml", "listen-client-urls = 'http://127.0.0.1:4'");
        let file = ("cairnctl.toml", "endpoints = ['f:1']");
        let contexts = ("cairn/contexts.toml", CONTEXTS);
        let all = Host::with(&[local, file, contexts]);
        let theirs = ("ETCDCTL_ENDPOINTS", "e:1");
        let ours = ("CAIRNCTL_ENDPOINTS", "c:1");
        let say = |text: &str, source: &str| (text.to_owned(), source.to_owned());
        for (host, given, pairs, expected) in [
            (&all, &[("endpoints", "x:1")][..], &[ours, theirs][..], say("x:1", "flag --endpoints")),
            (&all, &[], &[ours, theirs], say("c:1", "variable CAIRNCTL_ENDPOINTS")),
            (&all, &[], &[theirs], say("e:1", "variable ETCDCTL_ENDPOINTS")),
            (&all, &[], &[], say("p:1,p:2", "context prod")),
            (&all, &[("context", "test")], &[], say("t:1", "context test")),
            (&all, &[("context", "prod")], &[("CAIRNCTL_CONTEXT", "test")], say("p:1,p:2", "context prod")),
            (&all, &[], &[("CAIRNCTL_CONTEXT", "test")], say("t:1", "context test")),
            (&all, &[("context", "")], &[], say("f:1", "cairnctl.toml")),
            (&Host::with(&[local, file]), &[], &[], say("f:1", "cairnctl.toml")),
            (&Host::with(&[local]), &[], &[], say("http://127.0.0.1:4", "cairnd.toml")),
            (&Host::with(&[]), &[], &[], say("127.0.0.1:2379", "/dev/null")),
        ] {
            assert_eq!(host.endpoints(given, pairs), expected, "{given:?} {pairs:?}");
        }
    }

    #[test]
    fn who_names_endpoints_sends_no_password_of_the_current_context() {
        let host = Host::with(&[("cairn/contexts.toml", CONTEXTS)]);
        let named = resolve(&flags(&[("endpoints", "x:1")]), &host.variables(&[])).unwrap();
        assert_eq!((named.identity, named.tls.cert.as_str()), (Identity::Nobody, ""));
        let both = [("endpoints", "x:1"), ("context", "prod")];
        let named = resolve(&flags(&both), &host.variables(&[])).unwrap();
        assert_eq!(named.identity, Identity::Password { user: "root".into(), password: "secret".into() });
        assert!(named.warnings.is_empty(), "both were said for this command");
        let variable = host.variables(&[("ETCDCTL_ENDPOINTS", "x:1")]);
        let named = resolve(&flags(&[("context", "prod")]), &variable).unwrap();
        assert!(named.warnings[0].contains("variable ETCDCTL_ENDPOINTS win over"), "{:?}", named.warnings);
        // A broken file is nobody's business then either, and everybody's otherwise.
        let broken = Host::with(&[("cairn/contexts.toml", "[")]);
        assert!(resolve(&flags(&[("endpoints", "x:1")]), &broken.variables(&[])).is_ok());
        assert_eq!(
            resolve(&Given::new(), &broken.variables(&[])).unwrap_err().exit,
            crate::failure::Exit::Usage
        );
    }

    #[test]
    fn another_user_or_certificate_does_not_mix_with_that_of_the_context() {
        let host = Host::with(&[("cairn/contexts.toml", CONTEXTS)]);
        let identity =
            |given: &[(&'static str, &str)]| resolve(&flags(given), &host.variables(&[])).unwrap().identity;
        assert_eq!(identity(&[("auth-jwt-token", "t")]), Identity::Token("t".into()));
        let bob = Identity::Password { user: "bob".into(), password: "b".into() };
        assert_eq!(identity(&[("user", "bob:b")]), bob);
        let failure = resolve(&flags(&[("cert", "mine")]), &host.variables(&[])).unwrap_err();
        assert!(failure.headline.contains("belong together"), "{}", failure.headline);
    }

    #[test]
    fn verbose_says_where_settings_come_from_and_what_was_passed_over() {
        let host = Host::with(&[("cairn/contexts.toml", CONTEXTS), ("cairnd.toml", "= no")]);
        let said =
            |given: &[(&'static str, &str)]| resolve(&flags(given), &host.variables(&[])).unwrap().warnings;
        let lines = said(&[("verbose", "true")]);
        assert!(lines.contains(&"settings: endpoints = p:1,p:2 (context prod)".to_owned()), "{lines:?}");
        assert!(lines.contains(&"settings: user = (hidden) (context prod)".to_owned()), "{lines:?}");
        let lines = said(&[("verbose", "true"), ("context", "")]);
        assert!(lines.iter().any(|line| line.contains("cairnd.toml does not count: not TOML")), "{lines:?}");
        assert!(lines.contains(&"settings: endpoints = 127.0.0.1:2379 (default)".to_owned()), "{lines:?}");
        let missed = resolve(&flags(&[("context", "")]), &host.variables(&[])).unwrap().missed;
        assert!(missed.is_some_and(|why| why.contains("does not count")), "whoever reaches nobody is told");
        assert_eq!(said(&[]), Vec::<String>::new());
    }

    #[test]
    fn one_of_both_formats_counts_and_two_flags_are_refused() {
        let chosen = |given: &[(&'static str, &str)], pairs: &[(&str, &str)]| {
            resolve(&flags(given), &variables(pairs)).map(|settings| (settings.format, settings.shape))
        };
        let etcd = ("ETCDCTL_WRITE_OUT", "json");
        assert_eq!(chosen(&[], &[etcd]).unwrap(), (Format::Json, None));
        assert_eq!(chosen(&[("output", "yaml")], &[etcd]).unwrap(), (Format::Simple, Some(Shape::Yaml)));
        assert_eq!(
            chosen(&[("write-out", "table")], &[("CAIRNCTL_OUTPUT", "yaml")]).unwrap(),
            (Format::Table, None)
        );
        assert_eq!(chosen(&[("output", "json")], &[]).unwrap(), (Format::Json, Some(Shape::Json)));
        let both = chosen(&[("output", "json"), ("write-out", "json")], &[]).unwrap_err();
        assert_eq!(both.exit, crate::failure::Exit::BadArguments);
        let unknown = chosen(&[("output", "fields")], &[]).unwrap_err();
        assert!(unknown.headline.ends_with("fields is a format of -w"), "{}", unknown.headline);
        // etcdctl has no such variable, so it is no setting.
        let warned = resolve(&Given::new(), &variables(&[("ETCDCTL_OUTPUT", "yaml")])).unwrap();
        assert!(warned.shape.is_none() && warned.warnings[0].contains("ETCDCTL_OUTPUT has no effect"));
    }

    #[test]
    fn the_file_is_read_and_its_mistakes_have_a_line() {
        let host = Host::with(&[("cairnctl.toml", "endpoints = [\"a:1\", \"b:2\"]\nhex = true\n")]);
        let settings = resolve(&Given::new(), &host.variables(&[])).unwrap();
        assert_eq!((settings.endpoints.len(), settings.hex), (2, true));
        assert_eq!(
            parse_file("f", "\nendpoint = \"a\"").unwrap_err().headline,
            "f:2: unknown key \"endpoint\"; did you mean \"endpoints\"?"
        );
        assert!(parse_file("f", "hex = true\nhex = =").unwrap_err().headline.starts_with("f:2: "));
    }

    #[test]
    fn the_shipped_sample_is_valid_and_changes_nothing() {
        let sample = include_str!("../../../etc/cairnctl.toml");
        assert!(parse_file("sample", sample).unwrap().is_empty(), "every line of the sample is a comment");
        let uncommented: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix("#"))
            .filter(|line| !line.starts_with([' ', '#']) && line.contains(" = "))
            .fold(String::new(), |all, line| all + line + "\n");
        assert!(!uncommented.is_empty());
        let host = Host::with(&[("cairnctl.toml", &uncommented)]);
        resolve(&Given::new(), &host.variables(&[])).unwrap();
    }

    #[test]
    fn passwords_and_tokens_do_not_reach_the_debug_lines() {
        let settings =
            resolve(&flags(&[("debug", "true"), ("user", "root:secret")]), &variables(&[])).unwrap();
        assert!(settings.warnings.iter().all(|line| !line.contains("secret")), "{:?}", settings.warnings);
        assert_eq!(settings.identity, Identity::Password { user: "root".into(), password: "secret".into() });
    }

    #[test]
    fn nearest_names_are_slips_and_not_guesses() {
        assert_eq!(nearest("endpoint", ["endpoints", "hex"].into_iter()), Some("endpoints"));
        assert_eq!(nearest("zzzz", ["endpoints", "hex"].into_iter()), None);
    }
}
