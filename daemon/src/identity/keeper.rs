//! The owner of the identity file while the process runs: every change goes through here, is written at once and counts once written.

use std::{fs, io, path::PathBuf};

use ::identity::EARLIER_MAX;
use types::LogPosition;

use super::{CleanStop, Identity, KnownMember, State, Unique, file::Files, host};

#[derive(Debug)]
pub struct Keeper {
    /// `<data-dir>/member`.
    dir: PathBuf,
    /// A dedicated wal-dir keeps a copy, so that it can be told whose it is.
    wal_dir: Option<PathBuf>,
    identity: Identity,
    /// The files as they were before the present boot was counted.
    before_boot: Option<Files>,
}

impl Keeper {
    pub fn new(dir: PathBuf, wal_dir: Option<PathBuf>, identity: Identity) -> Keeper {
        Keeper { dir, wal_dir, identity, before_boot: None }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A restart: the next boot of this directory. On disk before the first packet leaves, so that no two starts look alike.
    pub fn booted(&mut self, nonce: Unique) -> io::Result<()> {
        let here = host::here(self.dir.parent().unwrap_or(&self.dir));
        self.change(|identity| {
            identity.boot_seq += 1;
            identity.earlier_boots = identity.boots_before();
            identity.earlier_boots.insert(0, identity.boot_nonce);
            identity.earlier_boots.truncate(EARLIER_MAX + 1);
            identity.prev_boot_nonce = Some(identity.boot_nonce);
            identity.boot_nonce = nonce;
            identity.clean_stop = None;
            identity.host = here;
        })
    }

    /// As [`Keeper::booted`], for a start that may still be refused before it meets anybody: [`Keeper::unboot`] takes it back.
    pub fn booted_for_now(&mut self, nonce: Unique) -> io::Result<()> {
        let before = Files::read(&self.dir)?;
        self.booted(nonce)?;
        self.before_boot = Some(before);
        Ok(())
    }

    /// The start is refused, and nobody has heard of it: its files are as they were.
    pub fn unboot(self) -> io::Result<()> {
        self.before_boot.map_or(Ok(()), |before| before.put_back(&self.dir))
    }

    /// The first members are settled: from now on the settings must agree with this file.
    pub fn formed(&mut self, members: Vec<KnownMember>) -> io::Result<()> {
        self.settled(State::Formed, members)
    }

    /// The running cluster has told this member's place. What these members send is taken until the log says who the members are.
    pub fn joining(&mut self, members: Vec<KnownMember>) -> io::Result<()> {
        self.settled(State::Joining, members)
    }

    fn settled(&mut self, state: State, members: Vec<KnownMember>) -> io::Result<()> {
        // The copy first: a wal-dir that says "unborn" beside a member that counts would be free to be cleared.
        if let Some(wal_dir) = &self.wal_dir {
            let mut copy = self.identity.clone();
            (copy.state, copy.members) = (state.clone(), members.clone());
            super::write(wal_dir, &copy)?;
        }
        self.change(|identity| {
            identity.state = state;
            identity.members = members;
        })
    }

    /// The running cluster was founded without this member, which was on the list and has never been part of it.
    pub fn formed_late(
        &mut self,
        members: Vec<KnownMember>,
        cluster_uuid: Unique,
        parent_uuid: Option<Unique>,
    ) -> io::Result<()> {
        self.identity.cluster_uuid = Some(cluster_uuid);
        self.identity.parent_uuid = parent_uuid;
        self.settled(State::Formed, members)
    }

    /// The cluster has answered, and has a life of its own unless its leader is an etcd that knows of none.
    pub fn born(&mut self, cluster_uuid: Option<Unique>, parent_uuid: Option<Unique>) -> io::Result<()> {
        let same_life = cluster_uuid.is_none() || cluster_uuid == self.identity.cluster_uuid;
        if self.identity.state == State::Born && same_life {
            return Ok(());
        }
        self.change(|identity| {
            identity.state = State::Born;
            if cluster_uuid.is_some() {
                identity.cluster_uuid = cluster_uuid;
                identity.parent_uuid = parent_uuid;
            }
        })
    }

    /// A new life of the cluster begins with this member alone; it counts once the log says so too, then [`Keeper::born`].
    pub fn forced(&mut self, method: &str, life: Unique, parent: Option<Unique>) -> io::Result<()> {
        method.clone_into(&mut self.identity.origin.method);
        self.identity.cluster_uuid = Some(life);
        self.identity.parent_uuid = parent;
        let own = self.identity.member_id;
        let members = self.identity.members.iter().filter(|member| member.id == own).cloned().collect();
        self.settled(State::Formed, members)
    }

    /// The members as the log has them now, and this member's own name and URLs among them.
    pub fn members_are(&mut self, members: Vec<KnownMember>) -> io::Result<()> {
        let own = members.iter().find(|member| member.id == self.identity.member_id).cloned();
        let mut next = self.identity.clone();
        next.members = members;
        if let Some(own) = own {
            // Before it has said its name, a member that joins stands in the list without one.
            if !own.name.is_empty() {
                next.name = own.name;
            }
            next.peer_urls = own.peer_urls;
        }
        if next == self.identity {
            return Ok(());
        }
        self.change(|identity| *identity = next)
    }

    /// Peers have shown that this directory has less than the member once promised.
    pub fn quarantined(&mut self, reason: String, evidence: String) -> io::Result<()> {
        self.change(|identity| identity.state = State::Quarantined { reason, evidence })
    }

    /// The log says that this member was removed, here or (seen in the state only) before.
    pub fn removed(&mut self, at: LogPosition, asked_through: Option<String>) -> io::Result<()> {
        let state = State::Removed { index: at.index.0, term: at.term.0, asked_through };
        self.change(|identity| identity.state = state)
    }

    pub fn stopped(&mut self, stop: CleanStop) -> io::Result<()> {
        self.change(|identity| identity.clean_stop = Some(stop))
    }

    /// A first start that failed before anybody saw the member: nothing of it shall bind the next one.
    pub fn abandon(self) -> io::Result<()> {
        if self.identity.state != State::Unborn {
            return Ok(());
        }
        fs::remove_dir_all(&self.dir)?;
        if let Some(wal_dir) = &self.wal_dir {
            clear_unborn_wal_dir(wal_dir)?;
        }
        super::sync_dir(self.dir.parent().unwrap_or(&self.dir))
    }

    fn change(&mut self, edit: impl FnOnce(&mut Identity)) -> io::Result<()> {
        let mut next = self.identity.clone();
        edit(&mut next);
        super::write(&self.dir, &next)?;
        self.identity = next;
        Ok(())
    }
}

/// Removes what a first start made in a dedicated wal-dir: segments and identity, nothing else.
pub fn clear_unborn_wal_dir(dir: &std::path::Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // The identity goes last: without it leftover segments would look like somebody's log.
    for entry in entries {
        let path = entry?.path();
        let ours = path.extension().is_some_and(|extension| extension == "wal" || extension == "tmp");
        if ours && path.is_file() {
            fs::remove_file(&path)?;
        }
    }
    for name in [super::PREVIOUS_FILE, super::IDENTITY_FILE] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    super::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_goes_from_unborn_to_born_and_every_step_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let member = dir.path().join("member");
        fs::create_dir(&member).unwrap();
        let mut identity = super::super::sample();
        identity.state = State::Unborn;
        super::super::write_into(&member, &identity).unwrap();
        let mut keeper = Keeper::new(member.clone(), None, identity);
        let stored = || super::super::read(&member).unwrap().unwrap();
        keeper.formed(vec![]).unwrap();
        assert_eq!(stored().state, State::Formed);
        keeper.born(Some(Unique::for_test(5)), None).unwrap();
        assert_eq!(stored().cluster_uuid, Some(Unique::for_test(5)));
        assert_eq!(stored().state, State::Born);
        keeper.stopped(CleanStop { last_index: 5, last_term: 1, hard_state_term: 1, commit: 5 }).unwrap();
        assert!(stored().clean_stop.is_some());
        keeper.booted(Unique::for_test(77)).unwrap();
        let now = stored();
        assert_eq!(
            (now.boot_seq, now.boot_nonce, now.prev_boot_nonce),
            (8, Unique::for_test(77), Some(Unique::for_test(3)))
        );
        assert_eq!(now.clean_stop, None, "a start forgets the last orderly stop");
        assert_eq!(now.boots_before(), [Unique::for_test(3)]);
        for nonce in 78..=100 {
            keeper.booted(Unique::for_test(nonce)).unwrap();
        }
        let before: Vec<Unique> = (83..=99).rev().map(Unique::for_test).collect();
        assert_eq!(stored().boots_before(), before, "the last seventeen");
        let mut by_an_older_version = stored();
        by_an_older_version.prev_boot_nonce = Some(Unique::for_test(5));
        assert_eq!(by_an_older_version.boots_before(), [Unique::for_test(5)], "the list was handed on");
        let at = LogPosition { term: types::Term(3), index: types::LogIndex(9) };
        keeper.removed(at, Some("n2 (ab)".into())).unwrap();
        let refusal = super::super::compare::removed(&stored(), "/d");
        assert_eq!(refusal.exit() as u8, 79);
        assert!(refusal.cause().ends_with("was removed from its cluster, as asked of member n2 (ab)"));
        assert!(refusal.text().contains("log entry 9 of term 3"), "{}", refusal.text());
        keeper.abandon().unwrap();
        assert!(member.exists(), "a member that counts is never cleared");
    }

    #[test]
    fn a_boot_that_met_nobody_is_taken_back_byte_by_byte() {
        let dir = tempfile::tempdir().unwrap();
        super::super::write_into(dir.path(), &super::super::sample()).unwrap();
        let files = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut all: Vec<_> = names.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
            all.sort();
            all
        };
        for boot in [50, 51] {
            let before = files();
            let identity = super::super::read(dir.path()).unwrap().unwrap();
            let mut keeper = Keeper::new(dir.path().to_owned(), None, identity.clone());
            keeper.booted_for_now(Unique::for_test(boot)).unwrap();
            assert_ne!(files(), before);
            keeper.unboot().unwrap();
            assert_eq!(files(), before);
            // With a previous version, the second time.
            Keeper::new(dir.path().to_owned(), None, identity).booted(Unique::for_test(boot)).unwrap();
        }
        let identity = super::super::read(dir.path()).unwrap().unwrap();
        let before = files();
        Keeper::new(dir.path().to_owned(), None, identity).unboot().unwrap();
        assert_eq!(files(), before, "there was no boot to take back");
    }

    #[test]
    fn an_unborn_member_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (member, wal) = (dir.path().join("member"), dir.path().join("wal"));
        fs::create_dir(&member).unwrap();
        fs::create_dir(&wal).unwrap();
        let mut identity = super::super::sample();
        identity.state = State::Unborn;
        super::super::write_into(&member, &identity).unwrap();
        super::super::write_into(&wal, &identity).unwrap();
        fs::write(wal.join("0-0.wal"), b"x").unwrap();
        fs::write(wal.join("notes.txt"), b"x").unwrap();
        Keeper::new(member.clone(), Some(wal.clone()), identity).abandon().unwrap();
        assert!(!member.exists());
        let left: Vec<_> = fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"], "only what is ours goes");
    }
}
