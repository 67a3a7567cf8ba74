//! SIGHUP: the settings are read again, and what can change while a member runs changes. A reading that cannot be used changes nothing.
//! The result is one sentence, for the log and for the service manager.

use node::{Handle, Tunable};
use tracing::{error, info, warn};

use crate::{
    announce,
    config::{
        self, Note, Settings, Surroundings,
        change::{self, Change},
        source::Values,
        tongue::Tongue,
    },
    logging, systemd,
};

/// Names of settings that a status line lists before it only counts them.
const NAMES_MAX: usize = 8;

/// Where the settings came from, and those that are in force.
pub struct Reload<'a> {
    surroundings: &'a Surroundings,
    values: Values,
}

impl<'a> Reload<'a> {
    pub fn new(surroundings: &'a Surroundings, values: Values) -> Reload<'a> {
        Reload { surroundings, values }
    }

    /// Answers the settings with which the member goes on, or None when nothing changes.
    pub fn run(&mut self, handle: &Handle) -> Option<Settings> {
        systemd::reloading();
        let (settings, resolved) = match config::load(self.surroundings) {
            Ok(loaded) => loaded,
            Err(refusal) => {
                let refusal = refusal.in_the_words_of(&Tongue::of(self.surroundings));
                let (cause, evidence) = (refusal.cause(), refusal.evidence_line());
                error!(code = refusal.id.name(), cause, evidence, "{}", announce::RELOAD_REFUSED);
                systemd::reloaded(&format!("reload failed, nothing changes: {cause} ({evidence})"));
                return None;
            }
        };
        resolved.notes.iter().for_each(Note::log);
        let changes = change::between(&self.values, &resolved.values);
        self.values = change::in_force(&self.values, &resolved.values);
        logging::set_level(settings.log.level);
        handle.tune(tunable(&settings));
        let told = told(&changes);
        if changes.iter().any(|change| !change.setting.reloadable) {
            warn!("{}: {told}", announce::RELOADED);
        } else {
            info!("{}: {told}", announce::RELOADED);
        }
        systemd::reloaded(&told);
        Some(settings)
    }
}

/// Asked while the member waits for others: nothing runs that could change.
pub fn too_early() {
    systemd::reloading();
    let told = "not reloaded: this member still waits for the others; restart it to change its settings";
    warn!("{told}");
    systemd::reloaded(told);
}

/// The settings that the node takes while it runs.
pub fn tunable(settings: &Settings) -> Tunable {
    let (storage, membership) = (&settings.storage, &settings.membership);
    Tunable {
        quota_backend_bytes: storage.quota_backend_bytes,
        snapshot_count: settings.raft.snapshot_count,
        snapshot_send_bytes_per_second: storage.snapshot_send_rate,
        snapshot_save_bytes_per_second: storage.snapshot_save_rate,
        compaction_batch: storage.compaction_batch_limit,
        compaction_sleep: storage.compaction_sleep_interval,
        auto_compaction: storage.auto_compaction,
        max_learners: membership.max_learners,
        strict_reconfig_check: membership.strict_reconfig_check,
        auto_promote_learner: membership.auto_promote_learner,
    }
}

fn told(changes: &[Change]) -> String {
    let (now, later): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|change| change.setting.reloadable);
    let or_empty = |text: &str| if text.is_empty() { "(empty)".to_owned() } else { text.to_owned() };
    let shown = |change: &&Change| {
        format!("{} {} -> {}", change.setting.name, or_empty(&change.before), or_empty(&change.after))
    };
    let mut text = match now.as_slice() {
        [] => "reloaded: nothing has changed".to_owned(),
        some => format!("reloaded: {}", some.iter().map(shown).collect::<Vec<_>>().join(", ")),
    };
    if !later.is_empty() {
        let names: Vec<&str> = later.iter().take(NAMES_MAX).map(|change| change.setting.name).collect();
        let more = if later.len() > NAMES_MAX { ", ..." } else { "" };
        let need = if later.len() == 1 { "setting needs" } else { "settings need" };
        text.push_str(&format!("; {} {need} a restart: {}{more}", later.len(), names.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::GivenFlag,
        config::{honoured::other_value, table},
    };

    fn loaded(flags: &[(&str, String)]) -> (Settings, Values) {
        let flag = |(name, text): &(&str, String)| GivenFlag {
            setting: table::find(name).unwrap(),
            text: text.clone(),
        };
        let flags = flags.iter().map(flag).collect();
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        let (settings, resolved) =
            config::load(&surroundings).unwrap_or_else(|refusal| panic!("{}", refusal.text()));
        (settings, resolved.values)
    }

    /// What the table calls reloadable takes effect here, and nothing else does.
    #[test]
    fn the_table_says_truly_what_a_hangup_changes() {
        let live = |settings: &Settings| {
            format!("{:?} {:?} {:?}", tunable(settings), settings.log.level, settings.shutdown_timeout)
        };
        for setting in table::settings() {
            // A mode alone changes nothing.
            let companion = match setting.name {
                "auto-compaction-mode" => vec![("auto-compaction-retention", "5".to_owned())],
                "listen-client-urls" => vec![("advertise-client-urls", "http://127.0.0.1:9".to_owned())],
                _ => vec![],
            };
            let Some(text) = other_value(setting) else { continue };
            let mut flags = companion.clone();
            flags.push((setting.name, text));
            let surroundings = |flags: &[(&str, String)]| Surroundings {
                flags: flags
                    .iter()
                    .map(|(name, text)| GivenFlag { setting: table::find(name).unwrap(), text: text.clone() })
                    .collect(),
                variables: vec![],
                default_file: "/nonexistent".into(),
            };
            let (Ok((before, _)), Ok((after, _))) =
                (config::load(&surroundings(&companion)), config::load(&surroundings(&flags)))
            else {
                continue;
            };
            let old_name = matches!(setting.group, table::Group::Removed | table::Group::Ignored);
            assert!(
                old_name || (live(&before) != live(&after)) == setting.reloadable,
                "{}: reloadable is {} in the table",
                setting.name,
                setting.reloadable
            );
        }
    }

    #[test]
    fn the_result_is_one_sentence() {
        let texts = |flags: &[(&str, &str)]| {
            let flags: Vec<(&str, String)> =
                flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
            loaded(&flags).1
        };
        let before = texts(&[]);
        let after = texts(&[("log-level", "debug"), ("max-wals", "9"), ("heartbeat-interval", "150")]);
        assert_eq!(
            told(&change::between(&before, &after)),
            "reloaded: log-level info -> debug; 2 settings need a restart: heartbeat-interval, max-wals"
        );
        let in_force = change::in_force(&before, &after);
        assert_eq!(
            told(&change::between(&in_force, &after)),
            "reloaded: nothing has changed; 2 settings need a restart: heartbeat-interval, max-wals",
            "what needs a restart is told until there was one"
        );
        assert_eq!(
            told(&change::between(&before, &texts(&[("log-level", "info")]))),
            "reloaded: nothing has changed"
        );
    }
}
