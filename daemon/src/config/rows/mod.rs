//! The rows of the table of settings, by what they are about.

mod discovery;
mod member;
mod older;
mod outside;

use super::{
    table::{Group, Setting, Status},
    value::Kind,
};

pub static ALL: [&[Setting]; 4] = [member::ROWS, discovery::ROWS, outside::ROWS, older::ROWS];

const fn row(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    group: Group,
    status: Status,
    meaning: &'static str,
) -> Setting {
    Setting { name, kind, default, group, status, meaning, toml: "", reloadable: false }
}

impl Setting {
    /// SIGHUP changes it: `lifecycle::reload` says how, and a test compares.
    const fn live(mut self) -> Setting {
        self.reloadable = true;
        self
    }

    const fn toml(mut self, key: &'static str) -> Setting {
        self.toml = key;
        self
    }
}

/// A whole number from `min` to what 32 unsigned bits hold.
const fn count(min: i128) -> Kind {
    Kind::Count { min, max: u32::MAX as i128 }
}
