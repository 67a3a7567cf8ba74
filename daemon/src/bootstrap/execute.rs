//! Carrying a plan out: the directory of a new member, built aside and named when whole; the log of a returning one, opened and held
//! against its identity.
//!
//! A crash at any step leaves either nothing that counts or an `unborn` directory, which the next start builds anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use storage::{
    data_dir::{DataDir, DataDirError, create_dir_private},
    wal::{Wal, WalContents, WalError, WalMetadata, WalOptions},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{ClusterId, MemberId};

use super::{
    facts::{MEMBER_BUILT_ASIDE, MEMBER_DIR, REPLACED, REPLACEMENT},
    plan::{self, Beginning, NewMember, NewOrigin},
};
use crate::{
    config::{Settings, urls},
    discovery::{Own, Registering, Way},
    identity::{self, Identity, Keeper, KnownMember, Origin, State, Unique, compare, host},
    refusal::{Id, Refusal},
};

/// In the data directory.
const LOCK: &str = "LOCK";

pub fn lock(settings: &Settings) -> Result<DataDir, Refusal> {
    let storage = &settings.storage;
    let locked = DataDir::lock(&storage.data_dir, storage.wal_dir.as_deref(), storage.lock_wait);
    let dir = locked.map_err(|error| match error {
        DataDirError::Busy { path, holder, waited } => {
            let dir = path.display().to_string();
            let refusal = Refusal::new(Id::DataDirBusy, format!("another process uses data directory {dir}"));
            let refusal = match holder {
                Some(holder) => refusal
                    .evidence("holder", holder.to_string())
                    .remedy(format!("if that process should not run: kill {}", holder.pid)),
                None => refusal.evidence("holder", format!("{dir}/LOCK does not say")),
            };
            refusal
                .evidence("waited", format!("{} ms (--data-dir-lock-wait)", waited.as_millis()))
                .remedy("or use another directory: --data-dir=<directory>")
                .never(format!("do not delete {dir}/LOCK: two processes on one directory destroy it"))
        }
        DataDirError::Io { action, path, source } => Refusal::io(action, &path, &source),
    })?;
    undo_replacement(&dir)
        .map_err(|error| Refusal::io("put the earlier attempt back in", dir.path(), &error))?;
    Ok(dir)
}

/// A start that was killed while it replaced an earlier attempt's directory with its own: the earlier one may hold what a discovery
/// service was told, and must be known again.
fn undo_replacement(dir: &DataDir) -> io::Result<()> {
    let (member, earlier) = (dir.path().join(MEMBER_DIR), dir.path().join(REPLACED));
    if member.exists() || !earlier.exists() {
        return Ok(());
    }
    fs::rename(earlier, member)?;
    identity::sync_dir(dir.path())
}

/// Builds a new member's directory: identity `unborn` and the log, with the first entries of a cluster that is founded.
pub fn found(dir: &DataDir, new: &NewMember, settings: &Settings) -> Result<Keeper, Refusal> {
    let (member, aside) = (dir.path().join(MEMBER_DIR), dir.path().join(MEMBER_BUILT_ASIDE));
    let refuse = |doing: &'static str| {
        let aside = aside.clone();
        move |error: io::Error| Refusal::io(doing, &aside, &error)
    };
    let identity = first_identity(dir.path(), new, settings).map_err(refuse("make an identity for"))?;
    remove_tree(&aside).map_err(refuse("clear"))?;
    remove_tree(&dir.path().join(REPLACED)).map_err(refuse("clear"))?;
    for part in [aside.clone(), aside.join("state"), aside.join("snap")] {
        create_dir_private(&part).map_err(refuse("create"))?;
    }
    let wal_dir = settings.storage.wal_dir.clone();
    let log_dir = match &wal_dir {
        None => aside.join("wal"),
        Some(dedicated) => {
            let refuse = |error: io::Error| Refusal::io("prepare", dedicated, &error);
            fs::create_dir_all(dedicated).map_err(refuse)?;
            identity::clear_unborn_wal_dir(dedicated).map_err(refuse)?;
            identity::write_into(dedicated, &identity).map_err(refuse)?;
            dedicated.clone()
        }
    };
    write_first_log(&log_dir, new, identity.dir_uuid)?;
    identity::write_into(&aside, &identity).map_err(refuse("write the identity into"))?;
    if member.exists() {
        // Nobody has seen an unborn member, so it may go. What is not even that is not ours to delete.
        let unborn = matches!(identity::read(&member), Ok(Some(earlier)) if matches!(earlier.state, State::Unborn | State::Registering));
        let name =
            if unborn { REPLACED.to_owned() } else { format!("member.unknown-{}", identity.boot_nonce) };
        fs::rename(&member, dir.path().join(name)).map_err(refuse("make room for"))?;
    }
    fs::rename(&aside, &member).map_err(refuse("name"))?;
    identity::sync_dir(dir.path()).map_err(refuse("sync"))?;
    remove_tree(&dir.path().join(REPLACED)).map_err(refuse("clear what was replaced by"))?;
    Ok(Keeper::new(member, wal_dir, identity))
}

pub fn write_first_log(log_dir: &Path, new: &NewMember, dir_uuid: Unique) -> Result<(), Refusal> {
    let metadata = WalMetadata { member_id: new.member, cluster_id: new.cluster, dir_uuid: Some(dir_uuid) };
    // Nothing is prepared ahead in a directory that is about to be renamed.
    let options = WalOptions { zero_ahead: false, ..WalOptions::default() };
    let refuse = |error: WalError| log_refusal(log_dir, &error);
    let mut wal = Wal::create(log_dir, &metadata, options).map_err(refuse)?;
    if let Beginning::Founds(genesis) = &new.beginning {
        wal.append(&genesis.entries(), Some(&genesis.hard_state())).map_err(refuse)?;
    }
    wal.sync().map_err(refuse)
}

pub fn first_identity(data_dir: &Path, new: &NewMember, settings: &Settings) -> io::Result<Identity> {
    let dir_uuid = match new.dir_uuid {
        Some(kept) => kept,
        None => identity::random()?,
    };
    let origin = &new.origin;
    Ok(Identity {
        format: identity::FORMAT,
        // A discovery service has seen a member that it has told of others.
        state: if origin.discovery_url.is_some() { State::Registering } else { State::Unborn },
        cluster_uuid: None,
        parent_uuid: None,
        cluster_id: new.cluster,
        member_id: new.member,
        token: host::redacted(&origin.token),
        token_sha256: host::sha256_hex(&origin.token),
        name: new.name.clone(),
        peer_urls: new.peer_urls.clone(),
        dir_uuid,
        wal_dir_uuid: if settings.storage.wal_dir.is_some() { identity::random()? } else { dir_uuid },
        boot_seq: 1,
        boot_nonce: identity::random()?,
        prev_boot_nonce: None,
        earlier_boots: Vec::new(),
        origin: Origin {
            method: origin.method.into(),
            initial_cluster: origin.initial_cluster.clone(),
            discovery_url: origin.discovery_url.clone(),
            restored: None,
            created_at: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        host: host::here(data_dir),
        members: Vec::new(),
        replaces: settings.membership.replaces.clone(),
        clean_stop: None,
        min_version: env!("CARGO_PKG_VERSION").into(),
        unknown: Default::default(),
    })
}

/// Writes down what a discovery service is about to be told, before it is: a start that is cut short resumes by it.
pub struct Registrar {
    data_dir: PathBuf,
    first: Identity,
}

impl Registrar {
    pub fn new(
        dir: &DataDir,
        dir_uuid: Unique,
        own: &Own,
        way: &Way,
        settings: &Settings,
    ) -> io::Result<Registrar> {
        let new = NewMember {
            member: MemberId::NONE,
            name: own.name.to_string(),
            peer_urls: urls::texts(&own.peer_urls),
            // What the service says decides.
            cluster: ClusterId(0),
            beginning: Beginning::Joins(Vec::new()),
            dir_uuid: Some(dir_uuid),
            origin: NewOrigin {
                method: way.method(),
                token: String::new(),
                initial_cluster: String::new(),
                discovery_url: Some(way.shown()),
            },
        };
        Ok(Registrar {
            data_dir: dir.path().to_path_buf(),
            first: first_identity(dir.path(), &new, settings)?,
        })
    }

    pub fn save(&self, registering: &Registering) -> io::Result<()> {
        let identity = Identity {
            member_id: registering.member,
            token: registering.token.clone(),
            token_sha256: registering.token_sha256.clone(),
            origin: Origin { initial_cluster: registering.value.clone(), ..self.first.origin.clone() },
            ..self.first.clone()
        };
        let (member, aside) = (self.data_dir.join(MEMBER_DIR), self.data_dir.join(MEMBER_BUILT_ASIDE));
        if member.exists() {
            // Of an earlier attempt: nothing but its identity counts.
            return identity::write(&member, &identity);
        }
        remove_tree(&aside)?;
        create_dir_private(&aside)?;
        identity::write_into(&aside, &identity)?;
        fs::rename(&aside, &member)?;
        identity::sync_dir(&self.data_dir)
    }
}

/// What taking the lock makes, which goes again when nothing comes of the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    lock: bool,
    /// The data directory and how many above it.
    dirs: usize,
}

impl Made {
    /// To be asked before the lock is taken.
    pub fn by_locking(data_dir: &Path) -> Made {
        let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        Made {
            lock: !data_dir.join(LOCK).exists(),
            dirs: data_dir.ancestors().take_while(is_missing).count(),
        }
    }
}

/// Where no member is after all, not even the lock of this start stays, nor a directory that it has made. What else is there is left as it
/// is.
pub fn clear_away(dir: DataDir, made: Made) {
    let path = dir.path().to_path_buf();
    let is_used =
        [MEMBER_DIR, MEMBER_BUILT_ASIDE, REPLACED, REPLACEMENT].iter().any(|name| path.join(name).exists());
    if !made.lock || is_used {
        return;
    }
    let _ = fs::remove_file(path.join(LOCK));
    for made in path.ancestors().take(made.dirs) {
        if fs::remove_dir(made).is_err() {
            return;
        }
    }
}

/// The service does not know this member: the next start begins anew.
pub fn forget_registration(dir: &DataDir) {
    let member = dir.path().join(MEMBER_DIR);
    let early = matches!(identity::read(&member), Ok(Some(found)) if matches!(found.state, State::Unborn | State::Registering));
    if !early {
        return;
    }
    if let Err(error) = remove_tree(&member) {
        tracing::warn!(%error, data_dir = %dir.path().display(), "the directory of the refused start could not be removed");
    }
}

/// The members of the genesis, or of the cluster that is joined, as the identity file lists them once they are settled.
pub fn known_members(new: &NewMember, own_dir: Unique) -> Vec<KnownMember> {
    let mut members = match &new.beginning {
        Beginning::Joins(members) => members.clone(),
        Beginning::Founds(genesis) => genesis.members.iter().map(known).collect(),
    };
    for own in members.iter_mut().filter(|member| member.id == new.member) {
        own.dir_uuid = Some(own_dir);
    }
    members
}

fn known(member: &super::genesis::FirstMember) -> KnownMember {
    KnownMember {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: Vec::new(),
        dir_uuid: None,
        is_learner: false,
    }
}

/// Opens the log for writing. A torn end is repaired; damage and a log that ends too early are refused with nothing changed.
pub fn open_log(
    dir: &DataDir,
    identity: &Identity,
    settings: &Settings,
) -> Result<(Wal, WalContents), Refusal> {
    let options = WalOptions {
        segments_kept: settings.storage.max_wals as usize,
        unsafe_no_fsync: settings.storage.unsafe_no_fsync,
        ..WalOptions::default()
    };
    let log_dir = dir.wal().display().to_string();
    let data_dir = dir.path().display().to_string();
    let (wal, contents) = Wal::open(dir.wal(), options)
        .map_err(|error| own_log_refusal(identity, &data_dir, dir.wal(), &error))?;
    // Entries up to a snapshot record are never read again, whether their segment is still there or not: the state stands for them.
    if contents.snapshot.index.0 > 0 && is_empty(&dir.state()) {
        let begins = contents.snapshot.index.0 + 1;
        return Err(plan::state_missing(identity, &data_dir, &log_dir, begins));
    }
    let last = contents.entries.last().map_or(contents.snapshot.index, |entry| entry.index);
    compare::check_clean_stop(identity, last.0, &log_dir, &data_dir)?;
    Ok((wal, contents))
}

/// Of the log of this member: with the commands that replace it.
pub fn own_log_refusal(identity: &Identity, data_dir: &str, dir: &Path, error: &WalError) -> Refusal {
    let refusal = log_refusal(dir, error);
    match error {
        WalError::Damaged(_) => refusal.remedy(identity::remedy::replace(identity, data_dir)),
        _ => refusal,
    }
}

pub fn log_refusal(dir: &Path, error: &WalError) -> Refusal {
    match error {
        WalError::Io { action, path, source } | WalError::NoSpace { action, path, source } => {
            Refusal::io(action, path, source)
        }
        WalError::Damaged(damage) => {
            Refusal::new(Id::LogDamaged, "the write-ahead log is damaged before its end")
                .evidence(
                    damage.file.display().to_string(),
                    format!("offset {}, from index {}: {}", damage.offset, damage.index, damage.kind),
                )
                .remedy("restore that file from a backup of this very directory")
                .never("do not cut the log by hand: what is lost may be what this member promised")
        }
        WalError::Locked { path } => {
            Refusal::new(Id::DataDirBusy, "another process uses the write-ahead log")
                .evidence("log", path.display().to_string())
                .remedy("stop that process, or name another --wal-dir")
        }
        WalError::Missing { .. } => {
            Refusal::new(Id::WalMissing, "the write-ahead log of this member is missing")
                .evidence("log", format!("no segment in {}", dir.display()))
                .remedy("mount or name the directory it is in: --wal-dir=<directory>")
        }
        WalError::Exists { .. } => {
            Refusal::new(Id::IdentityMissing, "there is a log already where a new one should be")
                .evidence("log", dir.display().to_string())
                .remedy("name an empty --wal-dir")
                .never("do not delete a log before it is clear whose it is")
        }
    }
}

/// Missing counts as empty; what cannot be listed does not.
fn is_empty(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cleared(data_dir: &Path) {
        let made = Made::by_locking(data_dir);
        clear_away(DataDir::lock(data_dir, None, Duration::ZERO).unwrap(), made);
    }

    #[test]
    fn a_refused_start_takes_away_what_it_made_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        cleared(&root.path().join("a/b/c"));
        assert!(!root.path().join("a").exists(), "the directories above it were made too");
        let prepared = root.path().join("prepared");
        fs::create_dir_all(prepared.join("lost+found")).unwrap();
        cleared(&prepared);
        assert!(prepared.join("lost+found").exists() && !prepared.join(LOCK).exists());
        fs::remove_dir(prepared.join("lost+found")).unwrap();
        cleared(&prepared);
        assert!(prepared.exists(), "somebody else has made it");
        fs::write(prepared.join(LOCK), "").unwrap();
        cleared(&prepared);
        assert!(prepared.join(LOCK).exists(), "of an earlier start");
        fs::remove_file(prepared.join(LOCK)).unwrap();
        fs::create_dir(prepared.join(MEMBER_DIR)).unwrap();
        cleared(&prepared);
        assert!(prepared.join(LOCK).exists(), "a member is here");
    }
}
