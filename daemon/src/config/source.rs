//! Where a value came from, and the values of all settings with that knowledge.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use super::{
    table::{self, Setting},
    urls::Url,
    value,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Env,
    /// Line and column count from 1, columns in characters.
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Default,
}

impl Source {
    /// As messages name it: the flag, the variable, or file:line:column.
    pub fn place(&self, setting: &Setting) -> String {
        match self {
            Source::Flag => setting.flag(),
            Source::Env => setting.variable(),
            Source::File { .. } => self.to_string(),
            Source::Default => format!("{} (default)", setting.flag()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Env => f.write_str("environment"),
            Source::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub text: String,
    pub source: Source,
    /// The old name under which it was given.
    pub via: Option<&'static str>,
}

/// One checked text per setting. The typed readers panic on a name or kind that the table does not have: that is our mistake, and any
/// start would find it.
#[derive(Clone, Debug, Default)]
pub struct Values(pub(super) BTreeMap<&'static str, Value>);

impl Values {
    pub fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or_else(|| panic!("{name} is a setting"))
    }

    pub fn text(&self, name: &str) -> &str {
        &self.get(name).text
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.get(name).source != Source::Default
    }

    /// Flag, variable or place in the file that set it.
    pub fn place(&self, name: &str) -> String {
        let value = self.get(name);
        let setting = table::find(value.via.unwrap_or(name)).unwrap_or_else(|| panic!("{name} is a setting"));
        value.source.place(setting)
    }

    pub fn bool(&self, name: &str) -> bool {
        value::parse_bool(self.text(name)).unwrap_or_else(|why| panic!("{name} was checked: {why}"))
    }

    pub fn count<N: TryFrom<i128>>(&self, name: &str) -> N {
        let number = value::parse_count(self.text(name), i128::MIN, i128::MAX);
        let number = number.unwrap_or_else(|why| panic!("{name} was checked: {why}"));
        N::try_from(number).unwrap_or_else(|_| panic!("the table bounds {name} for its type"))
    }

    pub fn millis(&self, name: &str) -> Duration {
        value::parse_millis(self.text(name)).unwrap_or_else(|why| panic!("{name} was checked: {why}"))
    }

    pub fn duration(&self, name: &str) -> Duration {
        value::parse_duration(self.text(name)).unwrap_or_else(|why| panic!("{name} was checked: {why}"))
    }

    pub fn bytes(&self, name: &str) -> i64 {
        value::parse_bytes(self.text(name), true).unwrap_or_else(|why| panic!("{name} was checked: {why}"))
    }

    pub fn urls(&self, name: &str) -> Vec<Url> {
        super::urls::parse_list(self.text(name)).unwrap_or_else(|why| panic!("{name} was checked: {why}"))
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        value::parse_list(self.text(name))
    }
}
