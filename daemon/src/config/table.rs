//! The one table of settings. Flags, `ETCD_*` variables, TOML keys, `--help`, docs/configuration.md and etc/cairnd.toml are all read
//! off it, so none of them can know a setting that another does not.

use super::{rows, suggest, value::Kind};
use crate::identity::host;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Member,
    Cluster,
    Requests,
    Storage,
    Compaction,
    Metrics,
    Logging,
    ClientSecurity,
    PeerSecurity,
    Security,
    Auth,
    Discovery,
    Features,
    Corruption,
    Tracing,
    Unsafe,
    Misc,
    Removed,
    Ignored,
}

impl Group {
    pub const ALL: [Group; 19] = [
        Group::Member,
        Group::Cluster,
        Group::Requests,
        Group::Storage,
        Group::Compaction,
        Group::Metrics,
        Group::Logging,
        Group::ClientSecurity,
        Group::PeerSecurity,
        Group::Security,
        Group::Auth,
        Group::Discovery,
        Group::Features,
        Group::Corruption,
        Group::Tracing,
        Group::Unsafe,
        Group::Misc,
        Group::Removed,
        Group::Ignored,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Group::Member => "This member",
            Group::Cluster => "The cluster at its first start",
            Group::Requests => "Requests and connections",
            Group::Storage => "Storage",
            Group::Compaction => "Compaction",
            Group::Metrics => "Metrics",
            Group::Logging => "Logs",
            Group::ClientSecurity => "TLS towards clients",
            Group::PeerSecurity => "TLS between members",
            Group::Security => "Security in general",
            Group::Auth => "Authentication",
            Group::Discovery => "Discovery",
            Group::Features => "Feature gates",
            Group::Corruption => "Corruption checks",
            Group::Tracing => "Distributed tracing",
            Group::Unsafe => "Unsafe",
            Group::Misc => "Other",
            Group::Removed => "Names of older etcd versions",
            Group::Ignored => "Names that etcd ignores",
        }
    }

    /// The TOML table of the group; None is the top level.
    pub fn toml_table(self) -> Option<&'static str> {
        match self {
            Group::ClientSecurity => Some("client-transport-security"),
            Group::PeerSecurity => Some("peer-transport-security"),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Does what it says.
    Active,
    /// Accepted; setting it to anything but the default is logged once with this reason.
    NoEffect(&'static str),
    /// An old name: the value goes to the setting of this name unless that one is set itself.
    Renamed(&'static str),
    /// An old boolean: it becomes this feature gate unless the gate is set itself.
    BecomesGate(&'static str),
    /// Refused unless the value is the default or one of `harmless`; `instead` completes "instead, ".
    Refused { harmless: &'static [&'static str], instead: &'static str },
}

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub kind: Kind,
    /// Text of the default, read by the same parser as any other text. May contain `{name}`.
    pub default: &'static str,
    pub group: Group,
    pub status: Status,
    pub meaning: &'static str,
    /// Key in the group's TOML table where it differs from the flag; "-" for settings that make no sense in a file.
    pub toml: &'static str,
    /// SIGHUP changes it in a running member.
    pub reloadable: bool,
}

impl Setting {
    pub fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Table and key in the file, or None where a file cannot set it.
    pub fn toml_place(&self) -> Option<(Option<&'static str>, &'static str)> {
        let key = match self.toml {
            "-" => return None,
            "" => self.name,
            key => key,
        };
        Some((self.group.toml_table(), key))
    }

    /// A value of it as logs and `config explain` may show it: without passwords.
    pub fn shown(&self, value: &str) -> String {
        const HIDDEN: &str = "(not shown)";
        match (self.name, value.split_once(':')) {
            ("discovery-password", _) if !value.is_empty() => HIDDEN.into(),
            ("discovery-user", Some((user, _))) => format!("{user}:{HIDDEN}"),
            ("discovery" | "discovery-proxy", _) => host::redacted(value),
            _ => value.into(),
        }
    }

    /// As written in messages: `key` or `[table] key`.
    pub fn toml_shown(&self) -> String {
        match self.toml_place() {
            None => "(not in the file)".into(),
            Some((None, key)) => key.into(),
            Some((Some(table), key)) => format!("[{table}] {key}"),
        }
    }
}

/// Every setting, in the order of the documentation.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    rows::ALL.iter().flat_map(|part| part.iter())
}

pub fn find(name: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.name == name)
}

/// The nearest flag name: current ones are preferred to the names of older versions.
pub fn nearest_flag(given: &str) -> Option<&'static str> {
    let current = settings().filter(|s| !matches!(s.group, Group::Removed | Group::Ignored)).map(|s| s.name);
    suggest::nearest(given, current).or_else(|| suggest::nearest(given, settings().map(|s| s.name)))
}

pub fn nearest_variable(given: &str) -> Option<String> {
    let bare = given.strip_prefix("ETCD_").unwrap_or(given).to_lowercase().replace('_', "-");
    nearest_flag(&bare).and_then(find).map(Setting::variable)
}

/// The setting at a place in the file.
pub fn find_toml(table: Option<&str>, key: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.toml_place().is_some_and(|(at, name)| at == table && name == key))
}

pub fn nearest_toml(table: Option<&str>, given: &str) -> Option<String> {
    if let Some(elsewhere) = find(given).filter(|setting| setting.toml_place().is_some()) {
        return Some(elsewhere.toml_shown());
    }
    let keys = settings()
        .filter_map(|setting| {
            setting.toml_place().filter(|(at, _)| *at == table).map(|(_, key)| (setting, key))
        })
        .filter(|(setting, _)| !matches!(setting.group, Group::Removed | Group::Ignored));
    suggest::nearest(given, keys.map(|(_, key)| key))
        .map(|key| match table {
            None => key.to_owned(),
            Some(table) => format!("[{table}] {key}"),
        })
        .or_else(|| nearest_flag(given).and_then(find).map(Setting::toml_shown))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::value;

    #[test]
    fn every_default_is_a_value_and_every_name_is_unique() {
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for setting in settings() {
            assert!(names.insert(setting.name), "{} is there twice", setting.name);
            if let Some(place) = setting.toml_place() {
                assert!(places.insert(place), "{place:?} is there twice");
            }
            let default = setting.default.replace("{name}", "default");
            if !default.is_empty() {
                value::check(setting.kind, &default).unwrap_or_else(|why| panic!("{}: {why}", setting.name));
            }
            assert!(setting.meaning.ends_with('.'), "{}: the meaning is a sentence", setting.name);
            match setting.status {
                Status::Renamed(new) => assert!(
                    matches!(
                        find(new).map(|s| s.status),
                        Some(Status::Active | Status::NoEffect(_) | Status::Refused { .. })
                    ),
                    "{new}"
                ),
                Status::BecomesGate(gate) => {
                    assert!(super::super::gates::GATES.iter().any(|known| known.name == gate), "{gate}");
                }
                _ => {}
            }
        }
    }

    /// The names of etcd's own flags from 3.4 to main, kept beside the tests: each is known here, whatever it does.
    #[test]
    fn every_flag_of_etcd_has_a_row() {
        let list = include_str!("../../tests/data/etcd-flags.txt");
        let names: Vec<&str> =
            list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert!(names.len() > 150, "the list is whole");
        for name in names {
            assert!(find(name).is_some(), "etcd's flag {name} has no row");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for (name, value, shown) in [
            ("discovery-password", "secret", "(not shown)"),
            ("discovery-user", "root:secret", "root:(not shown)"),
            ("discovery-user", "root", "root"),
            ("discovery", "https://u:secret@h:1/t", "https://…@h:1/t"),
            ("discovery-proxy", "http://u:secret@h:1", "http://…@h:1"),
            ("name", "a:b", "a:b"),
        ] {
            assert_eq!(find(name).unwrap().shown(value), shown);
        }
    }

    #[test]
    fn near_names_are_found_in_each_spelling() {
        assert_eq!(nearest_flag("listen-client-url"), Some("listen-client-urls"));
        assert_eq!(nearest_variable("ETCD_DATADIR").as_deref(), Some("ETCD_DATA_DIR"));
        assert_eq!(nearest_toml(None, "cert-file").as_deref(), Some("[client-transport-security] cert-file"));
        assert_eq!(
            nearest_toml(Some("peer-transport-security"), "keyfile").as_deref(),
            Some("[peer-transport-security] key-file")
        );
        assert_eq!(nearest_toml(None, "nmae").as_deref(), Some("name"));
    }
}
