//! The arguments of `cairnd snapshot ...`: the file, flags of its own in the style of all others, and the settings of the new member.

use std::{ffi::OsString, path::PathBuf};

use dbfile::Look;

use crate::{
    config::table,
    refusal::{Id, Refusal},
};

/// Added to the newest revision unless told otherwise, as etcd's guide to disaster recovery advises: more than any cluster writes between
/// two backups, and a thousand millionth of all revisions there are.
pub const BUMP_DEFAULT: u64 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Status { file: PathBuf, look: Look },
    Restore { file: PathBuf, how: How },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct How {
    pub skip_hash_check: bool,
    pub bump: Option<u64>,
    pub mark_compacted: bool,
}

const USAGE: &str = "cairnd snapshot status FILE [-w simple|json|fields|table], or cairnd snapshot restore FILE --data-dir=DIR --name=NAME \
    --initial-cluster=... --initial-cluster-token=... --initial-advertise-peer-urls=... [--wal-dir=DIR] [--skip-hash-check] \
    [--bump-revision=N] [--mark-compacted=false] [--no-bump]";

/// Reads what follows the word `snapshot`. The second half are flags for the ordinary table of settings.
pub fn parse(args: Vec<OsString>) -> Result<(Order, Vec<OsString>), Refusal> {
    let mut words = Vec::new();
    let mut settings = Vec::new();
    let mut look = Look::Simple;
    let (mut skip_hash_check, mut bump, mut mark_compacted, mut no_bump) = (false, None, None, false);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        let Some(bare) = text.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            words.push(arg);
            continue;
        };
        let bare = bare.strip_prefix('-').unwrap_or(bare);
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (bare.to_owned(), None),
        };
        let mut needed = |value: Option<String>| {
            value
                .or_else(|| args.next().and_then(|next| next.into_string().ok()))
                .ok_or_else(|| bad(&name, "", "it lacks its value"))
        };
        match name.as_str() {
            "skip-hash-check" => skip_hash_check = switch(&name, value)?,
            "mark-compacted" => mark_compacted = Some(switch(&name, value)?),
            "no-bump" => no_bump = switch(&name, value)?,
            "bump-revision" => {
                let text = needed(value)?;
                let by: u64 =
                    text.parse().map_err(|_| bad(&name, &text, "it is a whole number from 0 on"))?;
                bump = Some(by);
            }
            "w" | "write-out" => {
                let text = needed(value)?;
                look = match text.as_str() {
                    "simple" => Look::Simple,
                    "json" => Look::Json,
                    "fields" => Look::Fields,
                    "table" => Look::Table,
                    _ => return Err(bad(&name, &text, "it is simple, json, fields or table")),
                };
            }
            _ => {
                // A setting, or nothing that exists; the ordinary reader judges.
                let takes_next = value.is_none()
                    && table::find(&name).is_some_and(|setting| !setting.kind.is_bool_style());
                settings.push(arg);
                if takes_next {
                    settings.extend(args.next());
                }
            }
        }
    }
    let order = match words.as_slice() {
        [verb, file] if verb == "status" => Order::Status { file: file.into(), look },
        [verb, file] if verb == "restore" => {
            if no_bump && bump.is_some_and(|by| by > 0) {
                return Err(Refusal::new(
                    Id::SettingsConflict,
                    "--no-bump and --bump-revision contradict each other",
                )
                .remedy("give one of them"));
            }
            // As for etcdutl, 0 is none.
            let bump = if no_bump { None } else { Some(bump.unwrap_or(BUMP_DEFAULT)).filter(|by| *by > 0) };
            if bump.is_none() && mark_compacted == Some(true) {
                return Err(Refusal::new(Id::SettingsConflict, "--mark-compacted needs a --bump-revision")
                    .evidence(
                        "history",
                        "without a bump the end of history would be the newest revision itself",
                    )
                    .remedy("leave --mark-compacted out, or give --bump-revision"));
            }
            let mark_compacted = bump.is_some() && mark_compacted.unwrap_or(true);
            Order::Restore { file: file.into(), how: How { skip_hash_check, bump, mark_compacted } }
        }
        _ => {
            let given: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            return Err(Refusal::new(Id::UnknownVerb, "snapshot needs to know what to do, and the file")
                .evidence("given", format!("snapshot {}", given.join(" ")))
                .remedy(USAGE));
        }
    };
    Ok((order, settings))
}

fn switch(name: &str, value: Option<String>) -> Result<bool, Refusal> {
    match value.as_deref() {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(bad(name, other, "it is true or false")),
    }
}

fn bad(name: &str, given: &str, rule: &str) -> Refusal {
    Refusal::new(Id::BadValue, format!("--{name} cannot be used"))
        .evidence(format!("--{name}"), format!("{given:?}: {rule}"))
        .remedy(USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Order, Vec<OsString>), Refusal> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    fn how(line: &str) -> How {
        match parsed(line).unwrap().0 {
            Order::Restore { how, .. } => how,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn revisions_move_on_unless_told_otherwise() {
        let on = How { skip_hash_check: false, bump: Some(BUMP_DEFAULT), mark_compacted: true };
        assert_eq!(how("restore f"), on);
        assert_eq!(how("restore f --bump-revision 5"), How { bump: Some(5), ..on.clone() });
        assert_eq!(how("restore f --mark-compacted=false"), How { mark_compacted: false, ..on.clone() });
        let off = How { bump: None, mark_compacted: false, ..on };
        assert_eq!(how("restore f --no-bump"), off);
        assert_eq!(how("restore --bump-revision=0 f"), off);
        for contradiction in ["restore f --no-bump --bump-revision=5", "restore f --no-bump --mark-compacted"]
        {
            assert_eq!(parsed(contradiction).unwrap_err().id, Id::SettingsConflict);
        }
    }

    #[test]
    fn settings_of_the_member_are_handed_on_with_their_values() {
        let (_, rest) = parsed("restore --name n1 f --data-dir=d --skip-hash-check --nonsense").unwrap();
        assert_eq!(rest, ["--name", "n1", "--data-dir=d", "--nonsense"]);
        assert_eq!(
            parsed("status f -w json").unwrap().0,
            Order::Status { file: "f".into(), look: Look::Json }
        );
        for wrong in ["", "status", "restore", "save f", "status a b"] {
            assert_eq!(parsed(wrong).unwrap_err().id, Id::UnknownVerb, "{wrong}");
        }
        assert_eq!(parsed("status f -w yaml").unwrap_err().id, Id::BadValue);
        assert_eq!(parsed("restore f --bump-revision=-1").unwrap_err().id, Id::BadValue);
    }
}
