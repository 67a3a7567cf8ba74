//! Messages in the language of whoever wrote the settings: a remedy says `--name=n1`, and is read by somebody who has `name = "n1"` in a file,
//! or ETCD_NAME in the environment of a unit.
//!
//! Rules write flags, since a flag can be given anywhere and counts before everything else. Here a setting that somebody gave in another way is
//! put in that way, and one that nobody gave in the way of the others. Commands stay as they are: those are for a shell.

use std::{fmt::Write as _, path::PathBuf};

use super::{
    Surroundings,
    source::{Source, Values},
    table::{self, Setting},
    value::Kind,
};

/// Words that begin a command: what follows on them is meant for a shell.
const COMMANDS: [&str; 9] =
    ["cairnd", "cairnctl", "etcdctl", "systemctl", "journalctl", "runuser", "chown", "mv", "kill"];

/// Between the steps of a remedy.
const THEN: &str = ", then ";

/// What a data directory is called that a remedy moves out of the way.
const ASIDE: [&str; 3] = [".old", ".removed", ".copy"];

/// How somebody gives a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Flag,
    Variable,
    File(PathBuf),
}

#[derive(Debug)]
pub struct Tongue {
    values: Values,
    /// Of settings that nobody gave.
    usual: Way,
}

impl Tongue {
    pub fn of(surroundings: &Surroundings) -> Tongue {
        let resolved = super::resolve(surroundings);
        // Where the settings are is no setting: a unit names its file by a flag.
        let is_setting = |setting: &&Setting| setting.name != "config-file";
        let has_flags = surroundings.flags.iter().any(|flag| is_setting(&flag.setting));
        let has_variables = || {
            let given = |setting: &Setting| resolved.values.get(setting.name).source == Source::Env;
            table::settings().filter(is_setting).any(given)
        };
        let usual = match resolved.files.first() {
            _ if has_flags => Way::Flag,
            Some(file) => Way::File(file.clone()),
            None if has_variables() => Way::Variable,
            None => Way::Flag,
        };
        Tongue { values: resolved.values, usual }
    }

    fn way(&self, setting: &Setting) -> Way {
        let way = match &self.values.get(setting.name).source {
            Source::Flag => Way::Flag,
            Source::Env => Way::Variable,
            Source::File { path, .. } => Way::File(path.clone()),
            Source::Default => self.usual.clone(),
        };
        match (&way, setting.toml_place()) {
            (Way::File(_), None) => Way::Flag,
            _ => way,
        }
    }

    /// A remedy.
    pub fn say(&self, remedy: &str) -> String {
        let steps =
            remedy.split(THEN).flat_map(|step| [Some(self.translated(step, true)), self.aside_too(step)]);
        steps.flatten().collect::<Vec<_>>().join(THEN)
    }

    /// A member that begins anew leaves its log behind as well, and rules do not know of a directory that the log has for itself.
    fn aside_too(&self, step: &str) -> Option<String> {
        let (_, command) = step.split_once("mv ")?;
        let (from, to) = command.split_once(' ')?;
        let suffix = to.strip_prefix(from).filter(|suffix| ASIDE.contains(suffix))?;
        let wal_dir = self.values.is_given("wal-dir").then(|| self.values.text("wal-dir"))?;
        (!wal_dir.is_empty() && wal_dir != from).then(|| format!("mv {wal_dir} {wal_dir}{suffix}"))
    }

    /// A sentence that speaks of settings.
    pub fn mention(&self, sentence: &str) -> String {
        self.translated(sentence, false)
    }

    /// The place of a fact: a setting by its flag becomes the place where it was given.
    pub fn place(&self, place: &str) -> String {
        let Some(setting) = place.strip_prefix("--").and_then(table::find) else { return place.to_owned() };
        match self.way(setting) {
            Way::Flag => place.to_owned(),
            Way::Variable => setting.variable(),
            Way::File(_) if !self.values.is_given(setting.name) => setting.toml_shown(),
            Way::File(_) => format!("{} ({})", setting.toml_shown(), self.values.place(setting.name)),
        }
    }

    fn translated(&self, text: &str, with_place: bool) -> String {
        let mut out = String::with_capacity(text.len());
        let mut files: Vec<PathBuf> = Vec::new();
        // Where the last setting with a value ends, and whether it is a flag: a row of flags can be copied as it is.
        let mut last: Option<(usize, bool)> = None;
        let mut rest = text;
        while let Some((word, after)) = next_word(rest) {
            rest = after;
            if COMMANDS.contains(&word) {
                out.push_str(word);
                out.push_str(rest);
                return with_files(out, &files);
            }
            let Some((setting, value, tail)) = setting_in(word, &out) else {
                out.push_str(word);
                continue;
            };
            let way = self.way(setting);
            let is_flag = way == Way::Flag;
            let follows = last.is_some_and(|(end, was_flag)| out[end..] == *" " && !(was_flag && is_flag));
            if value.is_some() && follows {
                out.push_str("and ");
            }
            match is_flag {
                true => out.push_str(word.strip_suffix(tail).unwrap_or(word)),
                false => out.push_str(&given(setting, value.as_deref(), &way)),
            }
            last = (value.is_some() && tail.is_empty()).then_some((out.len(), is_flag));
            out.push_str(tail);
            if let (Way::File(path), true, true) = (way, value.is_some(), with_place)
                && !files.contains(&path)
            {
                files.push(path);
            }
        }
        with_files(out, &files)
    }
}

fn with_files(mut text: String, files: &[PathBuf]) -> String {
    if !files.is_empty() {
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        let _ = write!(text, " (in {})", files.join(" and "));
    }
    text
}

/// The next piece of the text: blanks, or what stands between blanks. What is to be filled in, `<its directory>`, is not divided.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let first = text.chars().next()?;
    let mut depth = 0_usize;
    let end = text.char_indices().find(|(_, c)| {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && c.is_whitespace() != first.is_whitespace()
    });
    Some(text.split_at(end.map_or(text.len(), |(at, _)| at)))
}

/// `--setting` or `--setting=value` in a word, and the punctuation behind it. A boolean that stands alone behind a colon is meant to be given.
fn setting_in<'a>(word: &'a str, before: &str) -> Option<(&'static Setting, Option<String>, &'a str)> {
    let bare = word.strip_prefix("--")?;
    let bare = bare.trim_end_matches([',', ';', ':', '.', ')']);
    let tail = &word[2 + bare.len()..];
    if let Some((name, value)) = bare.split_once('=') {
        return Some((table::find(name)?, Some(value.to_owned()), tail));
    }
    let setting = table::find(bare)?;
    let is_given = setting.kind == Kind::Bool && before.trim_end().ends_with(':');
    Some((setting, is_given.then(|| "true".to_owned()), tail))
}

fn given(setting: &Setting, value: Option<&str>, way: &Way) -> String {
    match (way, value) {
        (Way::Flag, None) => setting.flag(),
        (Way::Flag, Some(value)) => format!("{}={value}", setting.flag()),
        (Way::Variable, None) => setting.variable(),
        (Way::Variable, Some(value)) => format!("{}={value}", setting.variable()),
        (Way::File(_), None) => setting.toml_shown(),
        (Way::File(_), Some(value)) => {
            format!("{} = {}", setting.toml_shown(), toml_text(setting.kind, value))
        }
    }
}

/// As people write it: booleans and numbers bare, everything else in quotes.
fn toml_text(kind: Kind, value: &str) -> String {
    let is_bare = match kind {
        Kind::Bool => ["true", "false"].contains(&value),
        Kind::Count { .. } | Kind::Millis | Kind::Bytes { .. } => value.parse::<i64>().is_ok(),
        _ => false,
    };
    match is_bare {
        true => value.to_owned(),
        false => toml::Value::from(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        cli,
        config::file,
        identity::{self, remedy},
        refusal::{Id, Refusal},
    };

    fn tongue(flags: &[&str], variables: &[(&str, &str)], text: Option<&str>) -> (Tongue, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cairnd.toml");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let flags = cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let surroundings = Surroundings { flags, variables, default_file: path.clone() };
        (Tongue::of(&surroundings), path.display().to_string())
    }

    #[test]
    fn a_remedy_is_told_in_the_way_that_its_setting_was_given() {
        let (tongue, path) = tongue(
            &["--data-dir=/flag"],
            &[("ETCD_INITIAL_CLUSTER_TOKEN", "t")],
            Some("name = \"n1\"\nheartbeat-interval = 100\n"),
        );
        for (remedy, said) in [
            ("keep the name: --name=n2", format!("keep the name: name = \"n2\" (in {path})")),
            ("or correct --name, on every member", "or correct name, on every member".into()),
            ("--heartbeat-interval=250", format!("heartbeat-interval = 250 (in {path})")),
            ("elsewhere: --data-dir=<its directory>", "elsewhere: --data-dir=<its directory>".into()),
            ("--initial-cluster-token=u", "ETCD_INITIAL_CLUSTER_TOKEN=u".into()),
            ("correct --initial-cluster-token", "correct ETCD_INITIAL_CLUSTER_TOKEN".into()),
            ("no setting: --skip-hash-check", "no setting: --skip-hash-check".into()),
            (
                "be it: --data-dir=/d --name=n2 --initial-cluster=n2=http://h:1 --max-wals=2",
                format!(
                    "be it: --data-dir=/d and name = \"n2\" and --initial-cluster=n2=http://h:1 --max-wals=2 (in {path})"
                ),
            ),
            ("nobody gave it: --max-learners=2", "nobody gave it: --max-learners=2".into()),
        ] {
            assert_eq!(tongue.say(remedy), said, "{remedy}");
        }
        assert_eq!(tongue.place("--name"), format!("name ({path}:1:8)"));
        assert_eq!(tongue.place("--data-dir"), "--data-dir");
        assert_eq!(tongue.place("--initial-cluster-token"), "ETCD_INITIAL_CLUSTER_TOKEN");
        assert_eq!(tongue.place("stored"), "stored");
        assert_eq!(tongue.mention("belongs to a, but --name is b"), "belongs to a, but name is b");
    }

    /// What is written down in a file is mended in that file, a drop-in where it was one; commands stay commands.
    #[test]
    fn who_has_a_file_is_told_what_to_write_into_it() {
        let (tongue, path) = tongue(&[], &[], Some("name = \"n1\"\n"));
        for (remedy, said) in [
            (
                "elsewhere: --data-dir=<its directory>",
                format!("elsewhere: data-dir = \"<its directory>\" (in {path})"),
            ),
            (
                "if a new one is meant: --allow-empty-data-dir",
                format!("if a new one is meant: allow-empty-data-dir = true (in {path})"),
            ),
            ("leave --force-new-cluster out", "leave force-new-cluster out".into()),
            (
                "say: --discovery-srv-scheme=http, https or both",
                format!("say: discovery-srv-scheme = \"http\", https or both (in {path})"),
            ),
            (
                "name: --initial-cluster=<name>=<URL>,… instead",
                format!("name: initial-cluster = \"<name>=<URL>,…\" instead (in {path})"),
            ),
            (
                "TLS: --peer-cert-file=/c",
                format!("TLS: [peer-transport-security] cert-file = \"/c\" (in {path})"),
            ),
            (
                "to look: cairnd identity show --data-dir=<directory>",
                "to look: cairnd identity show --data-dir=<directory>".into(),
            ),
            ("name a file: --config-file", "name a file: --config-file".into()),
        ] {
            assert_eq!(tongue.say(remedy), said, "{remedy}");
        }
        let mut identity = identity::sample();
        identity.members = vec![identity::KnownMember {
            id: types::MemberId(0xb),
            name: "n2".into(),
            peer_urls: vec!["http://h2:1".into()],
            client_urls: vec!["http://h2:2".into()],
            dir_uuid: None,
            is_learner: false,
        }];
        let replace = tongue.say(&remedy::replace(&identity, "/d"));
        assert!(replace.contains(&format!("member add {} --peer-urls=", identity.name)), "{replace}");
        let start = replace.split(THEN).last().unwrap();
        assert!(
            start.starts_with("start with an empty data directory and initial-cluster-state = \"existing\" and initial-cluster = \"")
                && start.ends_with(&format!("\" (in {path})")),
            "{start}"
        );
    }

    #[test]
    fn a_log_with_a_directory_of_its_own_goes_aside_with_its_member() {
        let (with, _) = tongue(&["--data-dir=/d", "--wal-dir=/w"], &[], None);
        let (without, _) = tongue(&["--data-dir=/d"], &[], None);
        let replace = remedy::replace(&identity::sample(), "/d");
        assert_eq!(without.say(&replace), replace);
        for (remedy, said) in [
            ("move it aside: mv /d /d.old", "move it aside: mv /d /d.old, then mv /w /w.old"),
            ("a, then mv /d /d.removed, then b", "a, then mv /d /d.removed, then mv /w /w.removed, then b"),
            ("mv /w /w.old", "mv /w /w.old"),
            ("mv /d/member/state /d/member/state.damaged", "mv /d/member/state /d/member/state.damaged"),
        ] {
            assert_eq!(with.say(remedy), said);
            assert_eq!(without.say(remedy), remedy);
        }
    }

    /// What a remedy says to write into the file can be written there.
    #[test]
    fn what_is_said_is_a_line_of_the_file() {
        for (flag, value) in [
            ("name", "a \"quoted\" \\ name"),
            ("initial-cluster", "n1=http://h:1,n2=http://h:2"),
            ("force-new-cluster", "true"),
            ("max-learners", "3"),
            ("election-timeout", "1s"),
            ("quota-backend-bytes", "8GiB"),
        ] {
            let setting = table::find(flag).unwrap();
            let line = given(setting, Some(value), &Way::File("c.toml".into()));
            let (read, problems) = file::parse("c.toml".as_ref(), &line);
            assert_eq!(problems, [], "{line}");
            assert_eq!((read[0].setting.name, read[0].text.as_str()), (flag, value), "{line}");
        }
    }

    #[test]
    fn who_has_only_variables_is_told_variables_and_who_has_nothing_flags() {
        let refusal = || Refusal::new(Id::DataElsewhere, "x").evidence("--name", "n1").remedy("--name=n2");
        let (variables, _) = tongue(&[], &[("ETCD_DATA_DIR", "/d")], None);
        let said = refusal().in_the_words_of(&variables).text();
        assert!(said.contains("evidence: ETCD_NAME: n1") && said.contains("1. ETCD_NAME=n2"), "{said}");
        let (nothing, _) = tongue(&[], &[], None);
        assert_eq!(refusal().in_the_words_of(&nothing), refusal());
    }
}
