//! What is read off the table: help, docs/configuration.md and etc/cairnd.toml. Tests compare the files with these texts; to write
//! them anew: `UPDATE=1 cargo test -p cairnd generated`.

use std::fmt::Write as _;

use super::table::{Group, Setting, Status, settings};
#[cfg(test)]
use super::{gates::GATES, value::Kind};

pub(super) const USAGE: &str = "\
cairnd: a member of a replicated key-value cluster that speaks etcd's v3 API.

Usage:
  cairnd [FLAGS]                     be a member
  cairnd doctor [FLAGS] [--endpoints URL,...] [-o text|json]
                                     what a start with these flags would come to, and what the cluster knows of this member
  cairnd config check [FLAGS] [-o text|json | --quiet]
                                     refuse unusable settings as a start would, without starting
  cairnd config explain [SETTING] [FLAGS] [-o text|json]
                                     where each value comes from, or everything about one setting
  cairnd config convert FILE         etcd's YAML file, or the environment file of its package, as a TOML file of ours
  cairnd identity show [FLAGS] [-o text|json]
                                     who the data directory says this member is, and whether log, state and lock agree
  cairnd snapshot status FILE        what is in a backup
  cairnd snapshot restore FILE [FLAGS]
                                     a member's directory made out of a backup
  cairnd --version | --help

The verbs take the flags of a start, look, and change nothing (but for restore). They exit with the code that a start would.

A flag is written -name value, --name value or --name=value; a boolean flag takes its value only after =. Each is also a variable
(--data-dir is ETCD_DATA_DIR) and a key of the TOML file (data-dir). A flag counts before the variable, the variable before the file.
";

/// `--help`.
pub fn help() -> String {
    let mut out = USAGE.to_owned();
    for group in Group::ALL.iter().filter(|group| !matches!(group, Group::Removed | Group::Ignored)) {
        let _ = writeln!(out, "\n{}:", group.title());
        for setting in settings().filter(|setting| setting.group == *group) {
            let default =
                if setting.default.is_empty() { String::new() } else { format!(" [{}]", setting.default) };
            let _ = writeln!(out, "  --{}{default}", setting.name);
            let _ = writeln!(out, "      {}{}", setting.meaning, effect_suffix(setting));
        }
    }
    out.push_str("\nNames of older etcd versions are listed in docs/configuration.md.\n");
    out
}

pub(super) fn effect_suffix(setting: &Setting) -> String {
    match setting.status {
        Status::Active => String::new(),
        _ => format!(" {}", effect(setting)),
    }
}

fn effect(setting: &Setting) -> String {
    match setting.status {
        Status::Active => "as described".into(),
        Status::NoEffect(why) => format!("Accepted without effect: {why}."),
        Status::Renamed(new) => format!("Sets {new}."),
        Status::BecomesGate(gate) => format!("Sets feature gate {gate}."),
        Status::Refused { instead, .. } => format!("Refused unless default; instead: {instead}."),
    }
}

/// docs/configuration.md.
#[cfg(test)]
pub fn manual() -> String {
    let mut out = String::from(MANUAL_HEAD);
    for group in Group::ALL {
        let _ = write!(out, "\n## {}\n\n", group.title());
        let _ = writeln!(
            out,
            "| flag | TOML key | value | default | meaning | here | reloadable |\n|---|---|---|---|---|---|---|"
        );
        for setting in settings().filter(|setting| setting.group == group) {
            let default =
                if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
            let key =
                setting.toml_place().map_or("–".to_owned(), |_| format!("`{}`", setting.toml_shown()));
            let _ = writeln!(
                out,
                "| `--{}` | {key} | {} | {default} | {} | {} | {} |",
                setting.name,
                setting.kind.describe().replace('|', "\\|"),
                setting.meaning,
                effect(setting),
                if setting.reloadable { "yes" } else { "" },
            );
        }
    }
    out.push_str("\n## Gates\n\n| gate | default | here |\n|---|---|---|\n");
    for gate in &GATES {
        let _ = writeln!(out, "| `{}` | {} | {} |", gate.name, gate.default, gate.here);
    }
    out
}

#[cfg(test)]
const MANUAL_HEAD: &str = "\
# Configuration

<!-- Generated from the table of settings: UPDATE=1 cargo test -p cairnd generated -->

Every setting is a flag, a variable and a key of the TOML file. The variable is the flag in capitals with underscores and `ETCD_` in
front: `--data-dir` is `ETCD_DATA_DIR`. A flag counts before the variable, the variable before the file, the file before the default, for
each setting by itself; `cairnd config explain` shows which one counted.

* The file is the one named by `--config-file` or `ETCD_CONFIG_FILE`, else `/etc/cairn/cairnd.toml` when it exists. After it come its
  drop-ins in the order of their names, and a key that is given again counts as given there: `conf.d/*.toml` beside a `cairnd.toml`,
  `NAME.conf.d/*.toml` beside a `NAME.toml`. Unknown keys are refused with file, line and column. `cairnd config check` tells whether
  all of it can be used, and changes nothing; `cairnd config convert FILE` makes such a file of etcd's.
* A flag is written `-name value`, `--name value`, `-name=value` or `--name=value`. A boolean flag alone means true and takes another value
  only after `=`. Of a repeated flag the last counts.
* Durations are written `250ms`, `1m30s`, `2h`; `heartbeat-interval` and `election-timeout` also take bare milliseconds, as in etcd.
* Sizes are bytes, or numbers with `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000).
* Lists have commas between their items; in the file they may be TOML arrays.
* `reloadable`: SIGHUP (`systemctl reload cairnd`) reads file and drop-ins again and changes these settings in the running member. The
  others take effect at the next start; the result of the reload names those that wait for it.
* A setting that is accepted without effect is logged once when it is set to something other than its default. A setting that is refused
  stops the start with exit code 64 and says what to do instead.
";

/// etc/cairnd.toml: every key with its default, as a comment.
#[cfg(test)]
pub fn sample() -> String {
    let mut out = String::from(
        "# Settings of cairnd. Every line that is commented out shows the default. Keys are the names of the flags; docs/configuration.md\n\
         # explains them all. Uncomment what you change; `cairnd config check --config-file=FILE` tells whether it can be used. Files\n\
         # named conf.d/*.toml beside this one are read after it. Give data-dir whole: a relative one is below the working directory, which\n\
         # is /var/lib/cairn under systemd and another one in your shell. `systemctl reload cairnd` changes what is marked Reloadable.\n",
    );
    let in_sample = |setting: &&Setting| setting.toml_place().is_some() && setting.group != Group::Removed;
    let (top, tables): (Vec<Group>, Vec<Group>) =
        Group::ALL.iter().partition(|group| group.toml_table().is_none());
    for group in top.into_iter().chain(tables) {
        let rows: Vec<&Setting> =
            settings().filter(|setting| setting.group == group).filter(in_sample).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(out, "\n# --- {}\n", group.title());
        if let Some(table) = group.toml_table() {
            let _ = writeln!(out, "[{table}]");
        }
        for setting in rows {
            let key = setting.toml_place().map_or("", |(_, key)| key);
            let _ = writeln!(out, "\n# {}{}", setting.meaning, effect_suffix(setting));
            let reload = if setting.reloadable { " Reloadable." } else { "" };
            let _ = writeln!(out, "# Value: {}.{reload}", setting.kind.unit());
            let _ = writeln!(out, "#{key} = {}", toml_value(setting));
        }
    }
    out
}

#[cfg(test)]
fn toml_value(setting: &Setting) -> String {
    let text = setting.default.replace("{name}", "default");
    match setting.kind {
        Kind::Bool | Kind::Count { .. } if !text.is_empty() => text,
        Kind::Millis => text,
        Kind::Bytes { .. } if text.bytes().all(|b| b.is_ascii_digit()) => text,
        _ if text.contains('"') => format!("'{text}'"),
        _ => format!("\"{text}\""),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Surroundings, resolve};

    fn generated(file: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{file} differs from the table: run UPDATE=1 cargo test -p cairnd generated");
    }

    #[test]
    fn generated_manual_is_current() {
        generated("docs/configuration.md", &manual());
    }

    #[test]
    fn generated_sample_is_current_and_every_line_of_it_can_be_used() {
        generated("etc/cairnd.toml", &sample());
        let uncommented: String = sample()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        for text in [sample(), uncommented] {
            let dir = tempfile::tempdir().unwrap();
            let default_file = dir.path().join("cairnd.toml");
            std::fs::write(&default_file, &text).unwrap();
            let resolved = resolve(&Surroundings { flags: vec![], variables: vec![], default_file });
            assert_eq!(resolved.problems, [], "{text}");
            assert_eq!(resolved.notes, [], "defaults written out are no news");
        }
    }

    #[test]
    fn help_names_every_current_flag() {
        let help = help();
        for setting in settings().filter(|setting| !matches!(setting.group, Group::Removed | Group::Ignored))
        {
            assert!(help.contains(&format!("  --{}", setting.name)), "{} is not in the help", setting.name);
        }
    }
}
