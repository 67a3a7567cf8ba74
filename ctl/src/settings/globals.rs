//! The table of settings that every verb takes, and the names of the variables that are read.

use super::nearest;
use std::collections::BTreeMap;
use std::ffi::OsString;

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
    /// Not one of etcdctl's: it has no `ETCDCTL_` variable.
    pub ours: bool,
}

const fn global(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Global {
    Global { name, short: None, kind, default, help, ours: false }
}

const fn ours(name: &'static str, kind: Kind, help: &'static str) -> Global {
    let default = if matches!(kind, Kind::Switch) { "false" } else { "" };
    Global { ours: true, ..global(name, kind, default, help) }
}

/// Every setting that each verb takes. etcdctl's names, meanings and defaults; at the end those that are ours.
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
    Global {
        short: Some('o'),
        ..ours(
            "output",
            Kind::Text,
            "Output format for people and programs, instead of -w: table, wide, json, jsonl, yaml or raw",
        )
    },
    ours("base64", Kind::Switch, "With -o: print keys and values in base64"),
    ours("context", Kind::Text, "Settings under this name (see context list); an empty name uses none"),
    Global {
        short: Some('v'),
        ..ours("verbose", Kind::Switch, "Say on stderr where the settings come from")
    },
];

/// Variables with the prefix of ours or etcdctl's that are no global setting and yet no mistake.
const OTHER_VARIABLES: &[&str] = &[
    "ETCDCTL_API",
    "ETCDCTL_WATCH_KEY",
    "ETCDCTL_WATCH_RANGE_END",
    "CAIRNCTL_WATCH_KEY",
    "CAIRNCTL_WATCH_RANGE_END",
    CONFIG_VARIABLE,
    LOCAL_VARIABLE,
];

/// Names the configuration file; else [`DEFAULT_CONFIG`] when it exists.
pub const CONFIG_VARIABLE: &str = "CAIRNCTL_CONFIG_FILE";
pub const DEFAULT_CONFIG: &str = "/etc/cairn/cairnctl.toml";

/// Names the configuration of the member on this host; else [`DEFAULT_LOCAL`].
pub const LOCAL_VARIABLE: &str = "CAIRNCTL_LOCAL_CONFIG";
pub const DEFAULT_LOCAL: &str = "/etc/cairn/cairnd.toml";

/// The variables of a setting, the stronger one first.
pub fn variables_of(global: &Global) -> Vec<String> {
    let prefixes: &[&str] = if global.ours { &["CAIRNCTL_"] } else { &["CAIRNCTL_", "ETCDCTL_"] };
    prefixes.iter().map(|prefix| variable(prefix, global.name)).collect()
}

pub fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.to_uppercase().replace('-', "_"))
}

/// A warning for each variable that looks like one of ours and is none.
pub fn unknown_variables(variables: &BTreeMap<String, OsString>) -> Vec<String> {
    let mut warnings = Vec::new();
    for prefix in ["CAIRNCTL_", "ETCDCTL_"] {
        let known: Vec<String> =
            GLOBALS.iter().flat_map(variables_of).filter(|name| name.starts_with(prefix)).collect();
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
