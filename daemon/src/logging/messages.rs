//! The messages that have a number: refusals, and the states of a member that somebody may wait for or want explained. In the journal a
//! record carries it as `MESSAGE_ID`; `journalctl -x` finds the explanation by it in packaging/catalog/cairn.catalog, which is written
//! from this table and from docs/operations.md (`UPDATE=1 cargo test -p cairnd generated`).

use sha2::{Digest as _, Sha256};

use crate::{announce, refusal::Id};

/// A line of the log that stands for a state.
pub struct State {
    pub name: &'static str,
    /// With these words the line begins.
    pub words: &'static str,
    /// For the catalog: what it means, and what to do.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the catalog is made of it"))]
    pub meaning: &'static str,
}

/// Said by the state store's guard in `node::peers`.
const NO_SPACE: &str = "the state store exceeds its quota";
/// Said by the log in `storage::wal`.
const SLOW_DISK: &str = "slow sync of the log";
/// Said by `node::sentinel`.
const QUARANTINED: &str = "a peer says";

pub const STATES: &[State] = &[
    State {
        name: "STARTING",
        words: announce::STARTING,
        meaning: "The process begins. Settings were read; the data directory comes next.",
    },
    State {
        name: "READY",
        words: announce::READY,
        meaning: "The cluster has a leader and knows this member: clients are served.",
    },
    State {
        name: "LEADS",
        words: announce::LEADS,
        meaning: "This member was elected. Nothing needs to be done.",
    },
    State {
        name: "LEADS_NO_MORE",
        words: announce::LEADS_NO_MORE,
        meaning: "Another member leads, or none. When this happens often without anybody asking for it, look at the disk (SLOW_DISK) and\n\
                  at the network of the member that led.",
    },
    State {
        name: "NO_LEADER",
        words: announce::NO_LEADER,
        meaning: "This member knows of no leader: writes and linearizable reads wait. It passes with an election, within seconds, where a\n\
                  majority of the voters is up and reaches each other: cairnctl endpoint status --cluster.",
    },
    State {
        name: "RELOADED",
        words: announce::RELOADED,
        meaning: "The settings were read again on SIGHUP. The line says which of them took effect and which wait for a restart.",
    },
    State {
        name: "SLOW_DISK",
        words: SLOW_DISK,
        meaning: "A sync of the write-ahead log took long. Every write waits for it. Look for other load on the disk, and whether it fails:\n\
                  the kernel log, smartctl, iostat. A log of its own disk (--wal-dir) helps where the load cannot move.",
    },
    State {
        name: "NOSPACE",
        words: NO_SPACE,
        meaning: "The state is larger than --quota-backend-bytes, and the cluster refuses writes that add to it until the alarm is disarmed.\n\
                  Compact the history (cairnctl compaction REVISION), delete what is not needed, or raise the quota on every member (it\n\
                  is reloadable); then cairnctl alarm disarm.",
    },
    State {
        name: "DOUBTED",
        words: QUARANTINED,
        meaning: "A peer knows something about this member that speaks against it. It votes and acknowledges nothing until that is cleared\n\
                  up, within seconds: it goes on, or ends with a refusal that has an explanation of its own.",
    },
    State {
        name: "NO_PROGRESS",
        words: announce::NO_PROGRESS,
        meaning: "A loop of this member has been silent for longer than its work explains, or the disk has hung for minutes. The watchdog\n\
                  of the service manager ends the process, and starts it again. Report it with the journal of the minutes before, unless\n\
                  the disk explains it.",
    },
    State {
        name: "REMOVED_FROM_CLUSTER",
        words: announce::REMOVED,
        meaning: "The cluster has removed this member. Its directory is of no more use; to come back it needs a new place: cairnctl member\n\
                  add, with an empty data directory.",
    },
    State {
        name: "EXPELLED",
        words: announce::EXPELLED,
        meaning: "The others have shown that this member does not belong to the cluster as it is. The refusal that follows says why.",
    },
    State {
        name: "STOPPING",
        words: announce::STOPPING,
        meaning: "The member was asked to stop: it hands leadership over, sends its clients away and makes its state durable.",
    },
    State { name: "STOPPED", words: announce::STOPPED, meaning: "The orderly stop is complete." },
];

/// The number of a refusal.
pub fn of_refusal(id: Id) -> String {
    number(id.name())
}

/// The number of a line with these words, which other programs may wait for. The longest beginning counts: "stopped" is not "stop".
pub fn of_words(words: &str) -> Option<String> {
    let matching = STATES.iter().filter(|state| words.starts_with(state.words));
    matching.max_by_key(|state| state.words.len()).map(|state| number(state.name))
}

/// 128 bits that belong to a name for ever, as 32 hexadecimal digits.
pub fn number(name: &str) -> String {
    let digest = Sha256::digest(format!("cairn message {name}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _, path::Path};

    use super::*;

    /// Whoever filters by a number must find it again in every version.
    #[test]
    fn numbers_stay() {
        for (name, expected) in [("READY", READY), ("LEADS", LEADS), ("NAME_MISMATCH", NAME_MISMATCH)] {
            assert_eq!(number(name), expected, "{name}");
        }
    }

    const READY: &str = "1db8ec40e2bf5dfb0f95a3ddc7117691";
    const LEADS: &str = "a71a3d8464be6d7ab37713f0dc00c2cc";
    const NAME_MISMATCH: &str = "082bebb4f70b43bf102b13084244a1f7";

    #[test]
    fn names_are_unique_and_words_are_still_said() {
        let mut names = BTreeSet::new();
        for name in STATES.iter().map(|state| state.name).chain(Id::ALL.iter().map(|id| id.name())) {
            assert!(names.insert(name), "{name} is there twice");
        }
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
        for (file, words) in [
            ("node/src/peers.rs", NO_SPACE),
            ("storage/src/wal/log.rs", SLOW_DISK),
            ("node/src/sentinel/mod.rs", QUARANTINED),
        ] {
            let source = std::fs::read_to_string(crates.join(file)).unwrap();
            assert!(source.contains(&format!("\"{words}")), "{file} does not say {words:?} any more");
        }
        assert_eq!(of_words("stopped"), Some(number("STOPPED")));
        assert_eq!(of_words("settings were read again: reloaded"), Some(number("RELOADED")));
        assert_eq!(of_words("something else"), None);
    }

    /// The explanations of `journalctl -x`: one entry per refusal, from the operators' manual, and one per state.
    fn catalog() -> String {
        let manual = include_str!("../../../docs/operations.md");
        let mut out = String::from(
            "# Explanations for `journalctl -x`, by MESSAGE_ID. Written from docs/operations.md and daemon/src/logging/messages.rs:\n\
             # UPDATE=1 cargo test -p cairnd generated\n",
        );
        let mut entry = |name: &str, subject: &str, body: &str| {
            let _ = write!(
                out,
                "\n-- {}\nSubject: {subject}\nDefined-By: cairnd\nDocumentation: man:cairnd(8)\n\
                 Documentation: file:///usr/share/doc/cairnd/operations.md\n\n{}\n",
                number(name),
                body.trim()
            );
        };
        for id in Id::ALL {
            let section = manual.split(&format!("### {}\n", id.name())).nth(1).unwrap_or_default();
            let section = section.split("\n#").next().unwrap_or_default();
            let body = plain(section);
            entry(id.name(), &format!("{}: @CAIRN_CAUSE@", id.name()), &body);
        }
        for state in STATES {
            entry(state.name, &format!("{}: {}", state.name, state.words), state.meaning);
        }
        out
    }

    /// Without the marks of Markdown. An at sign would stand for a field of the record.
    fn plain(section: &str) -> String {
        let text = section.replace("*Cause.*", "Cause:").replace("*Evidence.*", "Evidence:");
        let text = text.replace("*Remedy.*", "Remedy:").replace("*Never.*", "Never:");
        text.replace('`', "").replace("**", "").replace('@', " at ")
    }

    #[test]
    fn generated_catalog_is_current() {
        let file = "packaging/catalog/cairn.catalog";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, catalog()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == catalog(), "{file} differs: run UPDATE=1 cargo test -p cairnd generated");
    }
}
