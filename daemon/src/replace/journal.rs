//! `<data-dir>/replace.json`: how far a replacement has come. It is written before anything moves and goes when the new identity counts,
//! so a start finds it exactly when there is something to be finished.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use ::identity::{Unique, hex};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};
use types::{ClusterId, MemberId};

use crate::{
    bootstrap::facts::REPLACEMENT,
    identity::sync_dir,
    refusal::{Id, Refusal},
};

/// The only form of the file so far.
const FORMAT: u32 = 1;

const NEXT_FILE: &str = "replace.json.tmp";

/// Larger is not ours: a hundred members take 20 kB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is done. Each step is written down after it, so what comes next may have been done already: doing it again changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Nothing has moved yet.
    Decided,
    /// The old directories have their new names.
    Aside,
    /// The cluster has the old id no more.
    Removed,
    /// The cluster has a place for the new member.
    Added,
}

/// Another member, as it answered when the replacement was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    #[serde(with = "hex::member")]
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    pub step: Step,
    /// The refusal that the start would have ended with.
    pub cause: String,
    /// Never used again.
    #[serde(with = "hex::member")]
    pub old: MemberId,
    /// The old member was no learner, so the new one asks to vote.
    pub voted: bool,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
    #[serde(with = "hex::cluster")]
    pub cluster_id: ClusterId,
    pub cluster_uuid: Option<Unique>,
    /// UTC, as in the names of the directories that are moved aside.
    pub mark: String,
    pub others: Vec<Other>,
}

impl Journal {
    pub fn new(cause: Id, old: MemberId, now: OffsetDateTime) -> Journal {
        Journal {
            format: FORMAT,
            step: Step::Decided,
            cause: cause.name().to_owned(),
            old,
            voted: true,
            name: String::new(),
            peer_urls: Vec::new(),
            cluster_id: ClusterId(0),
            cluster_uuid: None,
            mark: mark(now),
            others: Vec::new(),
        }
    }

    /// None: there is nothing to be finished.
    pub fn read(data_dir: &Path) -> Result<Option<Journal>, Refusal> {
        let path = data_dir.join(REPLACEMENT);
        let refuse = |error: io::Error| Refusal::io("read", &path, &error);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(error)),
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                return Err(damaged(&path, &format!("{} bytes long", meta.len())));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(refuse)?;
        let journal: Journal =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error.to_string()))?;
        if journal.format != FORMAT || time_of(&journal.mark).is_none() {
            return Err(damaged(&path, &format!("format {}, mark {:?}", journal.format, journal.mark)));
        }
        Ok(Some(journal))
    }

    /// Whole and synced under its name, or as it was.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let next = data_dir.join(NEXT_FILE);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        let mut text = serde_json::to_vec_pretty(self).expect("plain fields serialize");
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&next, data_dir.join(REPLACEMENT))?;
        sync_dir(data_dir)
    }

    pub fn remove(data_dir: &Path) -> io::Result<()> {
        match fs::remove_file(data_dir.join(REPLACEMENT)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_dir(data_dir),
        }
    }
}

/// "20261122T174512Z".
pub fn mark(now: OffsetDateTime) -> String {
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    now.to_offset(time::UtcOffset::UTC).format(form).expect("a time has these parts")
}

pub fn time_of(mark: &str) -> Option<OffsetDateTime> {
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    PrimitiveDateTime::parse(mark, form).ok().map(PrimitiveDateTime::assume_utc)
}

fn damaged(path: &Path, why: &str) -> Refusal {
    Refusal::new(Id::IdentityDamaged, "the note of a replacement that is under way cannot be believed")
        .evidence(path.display().to_string(), why)
        .remedy("see in the cluster how far it came: cairnctl member list")
        .remedy(format!(
            "then move the file aside (mv {0} {0}.damaged) and start again, or replace the member by hand",
            path.display()
        ))
        .never("do not move a directory back whose name says quarantine: its member has forgotten promises")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_as_it_was_written_and_garbage_is_not_an_absent_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Journal::read(dir.path()).unwrap(), None);
        let now = time_of("20261122T174512Z").unwrap();
        let mut journal = Journal::new(Id::LostData, MemberId(0x8e9e05c52164694d), now);
        journal.step = Step::Removed;
        journal.others = vec![Other {
            id: MemberId(2),
            name: "n2".into(),
            peer_urls: vec!["http://b:1".into()],
            client_urls: vec!["http://b:2".into()],
        }];
        journal.write(dir.path()).unwrap();
        assert_eq!(Journal::read(dir.path()).unwrap(), Some(journal.clone()));
        assert_eq!(journal.mark, "20261122T174512Z");
        fs::write(dir.path().join(REPLACEMENT), "{}").unwrap();
        assert_eq!(Journal::read(dir.path()).unwrap_err().id, Id::IdentityDamaged);
        Journal::remove(dir.path()).unwrap();
        Journal::remove(dir.path()).unwrap();
        assert_eq!(Journal::read(dir.path()).unwrap(), None);
    }
}
