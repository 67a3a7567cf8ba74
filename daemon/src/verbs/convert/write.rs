//! The TOML that comes out, in the order of our own sample file, with a comment for where each value came from.

use std::fmt::Write as _;

use super::{Fate, Item};
use crate::config::{
    table::{Group, Setting},
    value::{self, Kind},
};

/// Marks what a reader has to look at.
pub const MARK: &str = "NOT CARRIED OVER";

pub fn file(path: &str, items: &[Item], fates: &[Fate]) -> String {
    let left = fates.iter().filter(|fate| matches!(fate, Fate::Left { .. })).count();
    let mut out = format!("# Settings of cairnd, made of {} by `cairnd config convert`.\n", plain(path));
    out.push_str("# Look it through, then: cairnd config check --config-file=FILE\n");
    if left > 0 {
        let _ = writeln!(out, "# {left} of the settings could not be carried over: look for {MARK}.");
    }
    for (item, fate) in items.iter().zip(fates) {
        let (place, name) = (plain(&item.place), plain(&item.name));
        match fate {
            Fate::Carried { .. } => {}
            Fate::Mentioned { why } => {
                let _ = writeln!(out, "\n# {place}: {name} = {}\n# {}", plain(&item.text), plain(why));
            }
            Fate::Left { id, why } => {
                let _ = writeln!(
                    out,
                    "\n# {MARK} ({}): {place}: {name} = {}\n# {}",
                    id.name(),
                    plain(&item.text),
                    plain(why)
                );
            }
        }
    }
    let (top, tables): (Vec<Group>, Vec<Group>) =
        Group::ALL.iter().partition(|group| group.toml_table().is_none());
    for group in top.into_iter().chain(tables) {
        let mut rows = items.iter().zip(fates).filter_map(|(item, fate)| match fate {
            Fate::Carried { setting, text, remark } if setting.group == group => {
                Some((item, *setting, text, remark))
            }
            _ => None,
        });
        let Some(first) = rows.next() else { continue };
        let _ = write!(out, "\n# --- {}\n", group.title());
        if let Some(table) = group.toml_table() {
            let _ = writeln!(out, "[{table}]");
        }
        for (item, setting, text, remark) in std::iter::once(first).chain(rows) {
            let _ = writeln!(
                out,
                "\n# {}\n# from {}: {}",
                setting.meaning,
                plain(&item.place),
                plain(&item.name)
            );
            if let Some(remark) = remark {
                let _ = writeln!(out, "# {remark}");
            }
            let key = setting.toml_place().map_or("", |(_, key)| key);
            let _ = writeln!(out, "{key} = {}", toml_value(setting, text));
        }
    }
    out
}

fn toml_value(setting: &Setting, text: &str) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let is_number =
        || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i64>().is_ok();
    match setting.kind {
        Kind::Bool => value::parse_bool(text).unwrap_or_default().to_string(),
        Kind::Count { .. } | Kind::Millis | Kind::Bytes { .. } if is_number() => {
            text.parse::<i64>().unwrap_or_default().to_string()
        }
        Kind::Urls | Kind::Members | Kind::List if text.contains(',') => {
            let parts: Vec<String> = value::parse_list(text).iter().map(|part| quoted(part)).collect();
            format!("[{}]", parts.join(", "))
        }
        _ => quoted(text),
    }
}

/// A comment is one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
