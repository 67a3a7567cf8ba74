//! The settings every verb shares: where each may come from, which source wins, and what the text means.
//!
//! Order of sources: flag, `CAIRNCTL_*` variable, `ETCDCTL_*` variable, cairnctl.toml, default. etcdctl refuses a setting that is
//! given twice (flag and variable); here the flag wins, which is what the person at the keyboard meant. A value that cannot be
//! read is refused with its source. Not here: parsing the command line (`cli`) and opening certificates (`wire::tls`).

use crate::failure::{Failure, Result};
use crate::units;
use crate::wire::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

/// What a global setting expects on the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Switch,
    /// Comma-separated; a repeated flag adds.
    List,
}

/// One global setting. `name` is the flag and the TOML key; the variables are `CAIRNCTL_` and `ETCDCTL_` with `NAME_IN_CAPITALS`.
pub struct Global {
    pub name: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
}

const fn global(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Global {
    Global { name, short: None, kind, default, help }
}

/// Every setting that each verb takes. etcdctl's names, meanings and defaults.
pub const GLOBALS: &[Global] = &[
    global(
        "endpoints",
        Kind::List,
        "127.0.0.1:2379",
        "Members to talk to, comma-separated: host:port, http://, https:// or unix://",
    ),
    Global {
        short: Some('w'),
        ..global("write-out", Kind::Text, "simple", "Output format: simple, json, fields, table or protobuf")
    },
    global(
        "hex",
        Kind::Switch,
        "false",
        "Print keys and values (simple) and member ids (json) in hexadecimal",
    ),
    global("dial-timeout", Kind::Text, "2s", "How long to look for an endpoint that accepts a connection"),
    global(
        "command-timeout",
        Kind::Text,
        "5s",
        "How long one command may take, dialling included (txn: only when given; watch: no limit)",
    ),
    global("debug", Kind::Switch, "false", "Print every setting and each call to stderr"),
    global("user", Kind::Text, "", "User name, or name:password"),
    global("password", Kind::Text, "", "Password; --user must then carry none"),
    global("auth-jwt-token", Kind::Text, "", "Token to send instead of user and password"),
    global(
        "cacert",
        Kind::Text,
        "",
        "Certificate authority (PEM) that must have signed the server's certificate",
    ),
    global("cert", Kind::Text, "", "Client certificate (PEM)"),
    global("key", Kind::Text, "", "Key of the client certificate (PEM)"),
    global(
        "insecure-transport",
        Kind::Switch,
        "true",
        "Plain text for endpoints without a scheme when no certificate is given",
    ),
    global("insecure-skip-tls-verify", Kind::Switch, "false", "Accept any server certificate (tests only)"),
    global("max-request-bytes", Kind::Text, "0", "Largest request to send, in bytes (0: 2 MiB)"),
    global("max-recv-bytes", Kind::Text, "0", "Largest answer to take, in bytes (0: 2 GiB)"),
    Global {
        short: Some('d'),
        ..global("discovery-srv", Kind::Text, "", "Not supported; list the members with --endpoints")
    },
    global("discovery-srv-name", Kind::Text, "", "Not supported; list the members with --endpoints"),
    global("insecure-discovery", Kind::Switch, "true", "Accepted for compatibility, without effect"),
    global(
        "keepalive-time",
        Kind::Text,
        "2s",
        "How often watch and lease keep-alive ask whether the member is still there (at least 10s)",
    ),
    global("keepalive-timeout", Kind::Text, "6s", "How long the member may take to answer that"),
];

/// Variables with the prefix of ours or etcdctl's that are no global setting and yet no mistake.
const OTHER_VARIABLES: &[&str] = &[
    "ETCDCTL_API",
    "ETCDCTL_WATCH_KEY",
    "ETCDCTL_WATCH_RANGE_END",
    "CAIRNCTL_WATCH_KEY",
    "CAIRNCTL_WATCH_RANGE_END",
    CONFIG_VARIABLE,
];

/// Names the configuration file; else [`DEFAULT_CONFIG`] when it exists.
const CONFIG_VARIABLE: &str = "CAIRNCTL_CONFIG_FILE";
const DEFAULT_CONFIG: &str = "/etc/cairn/cairnctl.toml";

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
    pub hex: bool,
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
    /// Lines for stderr before the command runs: unknown variables, odd mixes.
    pub warnings: Vec<String>,
}

/// Values from flags: absent means not given. A list flag given twice has two values.
pub type Given = BTreeMap<&'static str, Vec<String>>;

struct Value {
    text: String,
    /// Where it came from, for complaints: `flag --hex`, `variable ETCDCTL_HEX`, `/etc/cairn/cairnctl.toml`, or nothing.
    source: Option<String>,
}

/// Weighs all sources. `variables` are the process's, passed in so that tests need no process.
pub fn resolve(given: &Given, variables: &BTreeMap<String, OsString>) -> Result<Settings> {
    let (file_name, file) = read_file(variables)?;
    let mut warnings = unknown_variables(variables);
    let mut values: BTreeMap<&'static str, Value> = BTreeMap::new();
    for global in GLOBALS {
        values.insert(global.name, value_of(global, given, variables, &file_name, &file)?);
    }
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

    let format =
        Format::ALL.iter().find(|(name, _)| *name == values["write-out"].text).map(|(_, format)| *format);
    let format = format.ok_or_else(|| Failure::feature("unsupported output format"))?;
    for name in ["discovery-srv", "discovery-srv-name"] {
        if !values[name].text.is_empty() {
            return Err(Failure::feature(format!(
                "--{name} is not supported: list the members with --endpoints=HOST:PORT,HOST:PORT"
            )));
        }
    }
    for name in ["cacert", "cert", "key"] {
        if values[name].source.is_some() && values[name].text.is_empty() {
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
        endpoints.push(
            Endpoint::parse(GLOBALS[0].default, bare_is_secure).expect("the default endpoint is well formed"),
        );
    }
    switch("insecure-discovery")?;
    if values["debug"].text == "true" {
        warnings.extend(values.iter().map(|(name, value)| {
            let shown = if *name == "password" || *name == "auth-jwt-token" || *name == "user" {
                redact(&value.text)
            } else {
                &value.text
            };
            format!("{}={shown}", variable("CAIRNCTL_", name))
        }));
    }
    Ok(Settings {
        endpoints,
        format,
        hex: switch("hex")?,
        dial_timeout: duration("dial-timeout")?,
        command_timeout: duration("command-timeout")?,
        command_timeout_given: values["command-timeout"].source.is_some(),
        debug: switch("debug")?,
        identity: identity(&text("user"), &text("password"), &text("auth-jwt-token"))?,
        tls,
        request_bytes_max: bytes("max-request-bytes", REQUEST_BYTES_MAX)?,
        receive_bytes_max: bytes("max-recv-bytes", RECEIVE_BYTES_MAX)?,
        keepalive_time: duration("keepalive-time")?.max(KEEPALIVE_MIN),
        keepalive_timeout: duration("keepalive-timeout")?,
        warnings,
    })
}

fn value_of(
    global: &Global,
    given: &Given,
    variables: &BTreeMap<String, OsString>,
    file_name: &str,
    file: &toml::Table,
) -> Result<Value> {
    if let Some(texts) = given.get(global.name) {
        let text = if global.kind == Kind::List {
            texts.join(",")
        } else {
            texts.last().cloned().unwrap_or_default()
        };
        return Ok(Value { text, source: Some(format!("flag --{}", global.name)) });
    }
    for prefix in ["CAIRNCTL_", "ETCDCTL_"] {
        let name = variable(prefix, global.name);
        // An empty variable is as good as none; shells export empty ones by accident.
        if let Some(value) = variables.get(&name).filter(|value| !value.is_empty()) {
            let text = value
                .to_str()
                .ok_or_else(|| Failure::usage(format!("variable {name} is not UTF-8 text")))?
                .to_owned();
            return Ok(Value { text, source: Some(format!("variable {name}")) });
        }
    }
    if let Some(value) = file.get(global.name) {
        let text = toml_text(global, value).ok_or_else(|| {
            Failure::usage(format!("{file_name}: {}: {value} is not a value for this key", global.name))
        })?;
        return Ok(Value { text, source: Some(file_name.to_owned()) });
    }
    Ok(Value { text: global.default.to_owned(), source: None })
}

fn toml_text(global: &Global, value: &toml::Value) -> Option<String> {
    match (global.kind, value) {
        (Kind::List, toml::Value::Array(items)) => {
            Some(items.iter().map(|item| item.as_str()).collect::<Option<Vec<_>>>()?.join(","))
        }
        (Kind::Switch, toml::Value::Boolean(on)) => Some(on.to_string()),
        (Kind::Text, toml::Value::Integer(number)) => Some(number.to_string()),
        (Kind::Text | Kind::List, toml::Value::String(text)) => Some(text.clone()),
        _ => None,
    }
}

fn read_file(variables: &BTreeMap<String, OsString>) -> Result<(String, toml::Table)> {
    let named = variables.get(CONFIG_VARIABLE).filter(|name| !name.is_empty());
    let path = named.map_or_else(|| DEFAULT_CONFIG.into(), std::path::PathBuf::from);
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((name, toml::Table::new()));
        }
        Err(error) => return Err(Failure::usage(format!("read {name}: {error}"))),
    };
    Ok((name.clone(), parse_file(&name, &text)?))
}

/// Reads the TOML text; an unknown key is refused with its line and the nearest known one.
fn parse_file(name: &str, text: &str) -> Result<toml::Table> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        Failure::usage(format!("{name}:{line}: {}", error.message()))
    })?;
    if let Some(key) = table.keys().find(|key| GLOBALS.iter().all(|global| global.name != key.as_str())) {
        let line = text
            .lines()
            .position(|line| line.trim_start().trim_start_matches(['[', '"']).starts_with(key.as_str()))
            .map_or(1, |at| at + 1);
        let hint = nearest(key, GLOBALS.iter().map(|global| global.name))
            .map(|near| format!("; did you mean {near:?}?"))
            .unwrap_or_default();
        return Err(Failure::usage(format!("{name}:{line}: unknown key {key:?}{hint}")));
    }
    Ok(table)
}

fn unknown_variables(variables: &BTreeMap<String, OsString>) -> Vec<String> {
    let mut warnings = Vec::new();
    for prefix in ["CAIRNCTL_", "ETCDCTL_"] {
        let known: Vec<String> = GLOBALS.iter().map(|global| variable(prefix, global.name)).collect();
        for name in variables.keys().filter(|name| name.starts_with(prefix)) {
            if known.contains(name) || OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let hint = nearest(name, known.iter().map(String::as_str))
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            warnings.push(format!("warning: unknown variable {name} has no effect{hint}"));
        }
    }
    if variables.get("ETCDCTL_API").is_some_and(|version| version == "2") {
        warnings.push("warning: ETCDCTL_API=2 has no effect; cairnctl speaks version 3 of the API".into());
    }
    warnings
}

fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.to_uppercase().replace('-', "_"))
}

fn bad_value(name: &str, value: &Value, why: &str) -> Failure {
    match &value.source {
        Some(source) if source.starts_with("flag ") => {
            Failure::usage(format!("invalid argument {:?} for \"--{name}\" flag: {why}", value.text))
        }
        Some(source) => {
            Failure::usage(format!("invalid value {:?} for {name} from {source}: {why}", value.text))
        }
        None => Failure::usage(format!("invalid default {:?} for {name}: {why}", value.text)),
    }
}

fn identity(user: &str, password: &str, token: &str) -> Result<Identity> {
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

fn redact(text: &str) -> &str {
    if text.is_empty() { "" } else { "(hidden)" }
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
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        // Never the file of the machine the test happens to run on.
        let mut map: BTreeMap<String, OsString> =
            [(CONFIG_VARIABLE.to_owned(), OsString::from("/dev/null"))].into();
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

    #[test]
    fn the_file_is_read_and_its_mistakes_have_a_line() {
        let table = parse_file("f", "endpoints = [\"a:1\", \"b:2\"]\nhex = true\n").unwrap();
        let hex = GLOBALS.iter().find(|g| g.name == "hex").unwrap();
        assert_eq!(
            value_of(&GLOBALS[0], &Given::new(), &variables(&[]), "f", &table).unwrap().text,
            "a:1,b:2"
        );
        assert_eq!(value_of(hex, &Given::new(), &variables(&[]), "f", &table).unwrap().text, "true");
        assert_eq!(
            parse_file("f", "\nendpoint = \"a\"").unwrap_err().headline,
            "f:2: unknown key \"endpoint\"; did you mean \"endpoints\"?"
        );
        assert!(parse_file("f", "hex = true\nhex = =").unwrap_err().headline.starts_with("f:2: "));
    }

    #[test]
    fn the_shipped_sample_is_valid_and_changes_nothing() {
        let sample = include_str!("../../etc/cairnctl.toml");
        assert!(parse_file("sample", sample).unwrap().is_empty(), "every line of the sample is a comment");
        let uncommented: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix("#"))
            .filter(|line| !line.starts_with([' ', '#']) && line.contains(" = "))
            .fold(String::new(), |all, line| all + line + "\n");
        assert!(!uncommented.is_empty());
        let table = parse_file("sample", &uncommented).unwrap();
        for global in GLOBALS.iter().filter(|global| table.contains_key(global.name)) {
            value_of(global, &Given::new(), &variables(&[]), "sample", &table).unwrap();
        }
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
