//! `snapshot restore`: a new member's whole directory out of a backup. Its parts are built aside and read back; what makes them count is
//! one rename at the end. Whatever goes wrong before, and a kill at any moment, leaves nothing that a start would take for data.
//!
//! The directory is etcd's answer to the same command: ids from the new cluster's settings, a log of the first members, old members
//! forgotten, everything else as it was saved; on top of that revisions move on, see `arguments`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use state_machine::membership::Member;
use storage::{
    data_dir::DataDir,
    snapshot::{self, Restoration, RestoreError, Restored},
    state_store::{FjallStore, StoreOptions},
};
use types::LogPosition;

use super::{arguments::How, damaged, open};
use crate::{
    bootstrap::{
        execute,
        facts::{MEMBER_BUILT_ASIDE, MEMBER_DIR, REPLACED},
        genesis::Genesis,
        plan::{Beginning, BootPlan, NewMember},
        prepare,
    },
    config::{self, Settings, Surroundings},
    identity::{self, RESTORE, State},
    owner::Owner,
    refusal::{Id, Refusal, chain},
};

pub fn restore(surroundings: &Surroundings, file: &Path, how: &How) -> Result<String, Refusal> {
    let (mut settings, _) = config::load(surroundings)?;
    // The old directory beside the restored one is the normal case.
    settings.storage.allow_empty = true;
    let backup = open(file)?;
    free(&settings)?;
    // Where root restores into a service's directory, the service owns what comes of it.
    let owner = Owner::of(&settings);
    let acting = owner.as_ref().map(Owner::act).transpose();
    let _acting =
        acting.map_err(|error| Refusal::io("act as the owner of", &settings.storage.data_dir, &error))?;
    let mut traces = Traces::of(&settings);
    let dir = execute::lock(&settings)?;
    // Whoever held the lock until now may have finished.
    free(&settings)?;
    traces.arm();
    if let Some(dedicated) = &settings.storage.wal_dir {
        // Before what is aside, by which it is known, and before anybody takes it for a log.
        let refuse = |error: io::Error| Refusal::io("clear", dedicated, &error);
        identity::clear_unborn_wal_dir(dedicated).map_err(refuse)?;
    }
    let BootPlan::NewStatic(new) = prepare::look(&settings, &mut Vec::new())? else {
        return Err(Refusal::new(Id::SettingsConflict, "a restored cluster is a new one")
            .evidence("--initial-cluster-state", "existing")
            .remedy("leave --initial-cluster-state out, and restore every member of --initial-cluster from the same file"));
    };
    let Beginning::Founds(genesis) = &new.beginning else { unreachable!("a static plan founds a cluster") };
    let restored = build(&dir, file, &backup, how, &new, genesis, &settings)?;
    traces.disarm();
    let mut said = told(&settings, file, how, &new, genesis, &restored);
    if let Some(owner) = owner {
        said.push_str(&format!("owned by {}\n", owner.told()));
    }
    Ok(said)
}

/// Nothing is overwritten: the directories are not there, or hold nothing but what an earlier attempt left.
fn free(settings: &Settings) -> Result<(), Refusal> {
    let storage = &settings.storage;
    let aside = identity::read(&storage.data_dir.join(MEMBER_BUILT_ASIDE)).ok().flatten();
    // Killed just before it counted, an attempt leaves a log that says formed beside a directory that still is aside.
    let leftover = |dir: &Path| {
        matches!(identity::read(dir), Ok(Some(found)) if found.state == State::Unborn
            || aside.as_ref().is_some_and(|aside| aside.dir_uuid == found.dir_uuid))
    };
    let ours = [MEMBER_BUILT_ASIDE, REPLACED, "LOCK", "lost+found"];
    refuse_full(&storage.data_dir, "--data-dir", &|name| ours.contains(&name))?;
    match &storage.wal_dir {
        Some(dir) if !leftover(dir) => refuse_full(dir, "--wal-dir", &|name| name == "lost+found"),
        _ => Ok(()),
    }
}

fn refuse_full(dir: &Path, flag: &str, known: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::io("read", dir, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Refusal::io("read", dir, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known(&name) {
            return Err(Refusal::new(Id::DirNotEmpty, "a snapshot is only restored into an empty directory")
                .evidence(flag, format!("{} holds {name}", dir.display()))
                .remedy(format!("name another directory: {flag}=<a new directory>"))
                .remedy(format!("or move this one away first: mv {0} {0}.old", dir.display()))
                .never("do not delete it before the restored cluster has proven itself"));
        }
    }
    Ok(())
}

/// What this attempt creates, to be removed unless it succeeds.
struct Traces {
    data_dir: PathBuf,
    /// It was not there before.
    created: bool,
    wal_dir: Option<PathBuf>,
    wal_created: bool,
    /// Not before the lock is ours: until then what is there is another attempt's.
    armed: bool,
}

impl Traces {
    fn of(settings: &Settings) -> Traces {
        let data_dir = settings.storage.data_dir.clone();
        Traces {
            created: !data_dir.exists(),
            data_dir,
            wal_created: settings.storage.wal_dir.as_ref().is_some_and(|dir| !dir.exists()),
            wal_dir: settings.storage.wal_dir.clone(),
            armed: false,
        }
    }

    fn arm(&mut self) {
        self.armed = true;
    }

    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // What cannot be removed is in the way of nobody: the next attempt clears it. The log first, which is known by what is aside.
        if let Some(dir) = &self.wal_dir {
            let _ = identity::clear_unborn_wal_dir(dir);
            if self.wal_created {
                let _ = fs::remove_dir(dir);
            }
        }
        let _ = fs::remove_dir_all(self.data_dir.join(MEMBER_BUILT_ASIDE));
        if self.created {
            let _ = fs::remove_file(self.data_dir.join("LOCK"));
            let _ = fs::remove_dir(&self.data_dir);
        }
    }
}

fn build(
    dir: &DataDir,
    file: &Path,
    backup: &fs::File,
    how: &How,
    new: &NewMember,
    genesis: &Genesis,
    settings: &Settings,
) -> Result<Restored, Refusal> {
    let aside = dir.path().join(MEMBER_BUILT_ASIDE);
    let refuse = |doing: &'static str| {
        let aside = aside.clone();
        move |error: io::Error| Refusal::io(doing, &aside, &error)
    };
    for leftover in [&aside, &dir.path().join(REPLACED)] {
        match fs::remove_dir_all(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refuse("clear")(error)),
            _ => {}
        }
    }
    let (state, snap) = (aside.join("state"), aside.join("snap"));
    for part in [&aside, &state, &snap] {
        storage::data_dir::create_dir_private(part).map_err(refuse("create"))?;
    }
    let restored = build_state(&state, file, backup, how, genesis)?;

    let mut identity =
        execute::first_identity(dir.path(), new, settings).map_err(refuse("make an identity for"))?;
    identity.origin.method = RESTORE.to_owned();
    identity.origin.restored.clone_from(&restored.mark);
    identity.parent_uuid = restored.parent;
    let wal_dir = settings.storage.wal_dir.clone();
    let log_dir = wal_dir.clone().unwrap_or_else(|| aside.join("wal"));
    if let Some(dedicated) = &wal_dir {
        let refuse = |error: io::Error| Refusal::io("prepare", dedicated, &error);
        fs::create_dir_all(dedicated).map_err(refuse)?;
        // Unborn until the state is there too, so that a start and the next attempt know it for a leftover.
        identity::clear_unborn_wal_dir(dedicated).map_err(refuse)?;
        identity::write_into(dedicated, &identity).map_err(refuse)?;
    }
    execute::write_first_log(&log_dir, new, identity.dir_uuid)?;
    identity.state = State::Formed;
    identity.members = execute::known_members(new, identity.dir_uuid);
    identity::write_into(&aside, &identity).map_err(refuse("write the identity into"))?;
    if let Some(dedicated) = &wal_dir {
        let refuse = |error: io::Error| Refusal::io("write the identity into", dedicated, &error);
        identity::write(dedicated, &identity).map_err(refuse)?;
    }
    // From here on it counts.
    fs::rename(&aside, dir.path().join(MEMBER_DIR)).map_err(refuse("name"))?;
    identity::sync_dir(dir.path()).map_err(refuse("sync"))?;
    Ok(restored)
}

/// The state, and the proof that a member can start with it.
fn build_state(
    state: &Path,
    file: &Path,
    backup: &fs::File,
    how: &How,
    genesis: &Genesis,
) -> Result<Restored, Refusal> {
    let member = |first: &crate::bootstrap::genesis::FirstMember| Member {
        id: first.id,
        name: first.name.clone(),
        peer_urls: first.peer_urls.clone(),
        ..Member::default()
    };
    let hard_state = genesis.hard_state();
    let restoration = Restoration {
        position: LogPosition { term: hard_state.term, index: hard_state.commit },
        members: genesis.members.iter().map(member).collect(),
        bump: how.bump,
        mark_compacted: how.mark_compacted,
        skip_hash_check: how.skip_hash_check,
    };
    let options = StoreOptions::default();
    let restored = snapshot::restore(state, backup, &restoration, &options)
        .map_err(|error| refusal(file, state, &error))?;
    let store = FjallStore::open(state, options).map_err(|error| {
        Refusal::new(Id::IoError, "the restored state cannot be opened").evidence("here", chain(&error))
    })?;
    state_machine::check(&store).map_err(|error| damaged(file, chain(&error)))?;
    Ok(restored)
}

fn refusal(file: &Path, state: &Path, error: &RestoreError) -> Refusal {
    match error {
        RestoreError::NoDigest => damaged(file, error.to_string())
            .remedy("if it is the db file of a stopped member and whole: --skip-hash-check"),
        RestoreError::Io(source) => Refusal::io("read", file, source),
        RestoreError::Bump { .. } => Refusal::new(Id::BadValue, "--bump-revision cannot be used")
            .evidence("--bump-revision", error.to_string())
            .remedy("give a smaller one"),
        RestoreError::Store(_) | RestoreError::Open(_) | RestoreError::Verify(_) => {
            Refusal::new(Id::IoError, "the restored state could not be written")
                .evidence(state.display().to_string(), chain(error))
                .remedy("see that the file system of --data-dir has room and no errors, then repeat")
        }
        RestoreError::Bad(_) | RestoreError::Digest | RestoreError::Content(_) => damaged(file, chain(error)),
    }
}

fn told(
    settings: &Settings,
    file: &Path,
    how: &How,
    new: &NewMember,
    genesis: &Genesis,
    restored: &Restored,
) -> String {
    let dir = settings.storage.data_dir.display();
    let mut out = format!(
        "restored {} into {dir}\nmember {} ({}) of the new cluster {} with {} member(s); {} rows\n",
        file.display(),
        new.member,
        new.name,
        new.cluster,
        genesis.members.len(),
        restored.rows,
    );
    let (before, now) = (restored.revision_before, restored.revision);
    out += &match how.bump {
        None => format!(
            "revision {before}, as saved: clients that saw later revisions of the old cluster (watches, caches, controllers) will miss changes\n\
             without noticing; restart them all, or restore without --no-bump\n"
        ),
        Some(by) => {
            let history = if how.mark_compacted {
                "history before it counts as compacted, so that watches of the old cluster are told to read anew\n"
            } else {
                "history before it can be read; watches that resume below it are not told that the cluster is another\n"
            };
            format!(
                "revision {now}: {by} more than the saved {before}, so that none is given out twice;\n{history}"
            )
        }
    };
    if restored.alarms > 0 {
        out += &format!(
            "{} alarm(s) were saved too: see cairnctl alarm list, and disarm them\n",
            restored.alarms
        );
    }
    if genesis.members.len() > 1 {
        out += "restore every member of --initial-cluster from the same file, then start them with the same settings; the first leader is elected\n\
            when all of them are there (or a majority, with --initial-cluster-attendance=majority)\n";
    }
    out
}
