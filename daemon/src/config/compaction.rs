//! What the two settings of automatic compaction mean together. A retention that its mode cannot mean is refused: to misread it would
//! keep everything for ever, or forget what was to be kept.

use std::time::Duration;

use node::AutoCompaction;

use super::value::{self, Retention};
use crate::refusal::Id;

/// Why a retention cannot be used.
#[derive(Debug)]
pub struct Wrong {
    pub id: Id,
    pub what: String,
    pub remedy: &'static str,
}

/// None: off.
pub fn parse(mode: &str, retention: &str) -> Result<Option<AutoCompaction>, Wrong> {
    let bad = |remedy| move |why: value::BadValue| Wrong { id: Id::BadValue, what: why.0, remedy };
    let read = value::parse_retention(retention).map_err(bad("give a number, or a duration such as 30m"))?;
    match (read, mode) {
        (Retention::Number(0) | Retention::Duration(Duration::ZERO), _) => Ok(None),
        (Retention::Number(kept), "revision") => Ok(Some(AutoCompaction::Revisions(kept))),
        (Retention::Duration(_), "revision") => Err(Wrong {
            id: Id::SettingsConflict,
            what: format!(
                "auto-compaction-retention ({retention}) is a time, and auto-compaction-mode is revision"
            ),
            remedy: "give a number of revisions, or set auto-compaction-mode to periodic",
        }),
        // etcd's own reading of a number without a unit.
        (Retention::Number(hours), _) => value::parse_duration(&format!("{hours}h"))
            .map(|kept| Some(AutoCompaction::Periodic(kept)))
            .map_err(bad("a number means hours: give fewer, or a duration such as 30m")),
        (Retention::Duration(kept), _) => Ok(Some(AutoCompaction::Periodic(kept))),
    }
}

#[cfg(test)]
mod tests {
    use AutoCompaction::{Periodic, Revisions};

    use super::*;

    #[test]
    fn the_mode_says_what_a_retention_means() {
        let minutes = |minutes: u64| Some(Periodic(Duration::from_secs(60 * minutes)));
        for (mode, retention, expected) in [
            ("periodic", "0", None),
            ("periodic", "0h", None),
            ("revision", "0", None),
            ("revision", "0s", None),
            ("periodic", "1", minutes(60)),
            ("periodic", "24h", minutes(24 * 60)),
            ("periodic", "90m", minutes(90)),
            ("periodic", "2562047", minutes(2_562_047 * 60)),
            ("revision", "1000", Some(Revisions(1000))),
            ("revision", "18446744073709551615", Some(Revisions(u64::MAX))),
        ] {
            assert_eq!(parse(mode, retention).unwrap(), expected, "{mode} {retention}");
        }
        for (mode, retention, id) in [
            ("revision", "5h", Id::SettingsConflict),
            ("revision", "1ns", Id::SettingsConflict),
            ("periodic", "2562048", Id::BadValue),
            ("periodic", "-1", Id::BadValue),
            ("revision", "-1", Id::BadValue),
            ("revision", "18446744073709551616", Id::BadValue),
            ("periodic", "", Id::BadValue),
        ] {
            assert_eq!(parse(mode, retention).unwrap_err().id, id, "{mode} {retention}");
        }
    }
}
