//! The owner of the identity file while the process runs: every change goes through here, is written at once and counts once written.

use std::{fs, io, path::PathBuf};

use types::LogPosition;

use super::{CleanStop, Identity, KnownMember, State, Unique, host};

#[derive(Debug)]
pub struct Keeper {
    /// `<data-dir>/member`.
    dir: PathBuf,
    /// A dedicated wal-dir keeps a copy, so that it can be told whose it is.
    wal_dir: Option<PathBuf>,
    identity: Identity,
}

impl Keeper {
    pub fn new(dir: PathBuf, wal_dir: Option<PathBuf>, identity: Identity) -> Keeper {
        Keeper { dir, wal_dir, identity }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A restart: the next boot of this directory. On disk before the first packet leaves, so that no two starts look alike.
    pub fn booted(&mut self, nonce: Unique) -> io::Result<()> {
        let here = host::here(self.dir.parent().unwrap_or(&self.dir));
        self.change(|identity| {
            identity.boot_seq += 1;
            identity.prev_boot_nonce = Some(identity.boot_nonce);
            identity.boot_nonce = nonce;
            identity.clean_stop = None;
            identity.host = here;
        })
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
            copy.state = state.clone();
            super::write(wal_dir, &copy)?;
        }
        self.change(|identity| {
            identity.state = state;
            identity.members = members;
        })
    }

    /// The cluster has answered.
    pub fn born(&mut self) -> io::Result<()> {
        if self.identity.state == State::Born {
            return Ok(());
        }
        self.change(|identity| identity.state = State::Born)
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
        keeper.born().unwrap();
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
