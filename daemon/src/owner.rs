//! Whose member a directory is, where root comes across it.
//!
//! A service runs as a user of its own, while root may read and write everything. A check made as root would find in order what the service may
//! not even read, and a start as root would leave files that the service cannot open. So root looks at somebody's member, and restores one, with that
//! user's rights, and does not run it. A directory that is root's, or that nobody's service has, is root's to use.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{
    Gid, Group, Uid, geteuid, getgid, getgrouplist, getgroups, setgroups, setresgid, setresuid,
};

use crate::{
    bootstrap::facts::MEMBER_DIR,
    config::Settings,
    refusal::{Id, Refusal, User},
};

/// What the kernel shows for an id that this file system or container cannot name: whose it really is cannot be told.
const NOBODY: u32 = 65534;

/// The user whose member it is, seen by root.
pub struct Owner {
    pub user: User,
    /// What belongs to that user: the member, or the nearest directory above the place where one is to be.
    pub seen: PathBuf,
    group: Gid,
}

impl Owner {
    /// None where this process is not root's, or the directory is.
    pub fn of(settings: &Settings) -> Option<Owner> {
        geteuid().is_root().then(|| Owner::at(&settings.storage.data_dir)).flatten()
    }

    fn at(data_dir: &Path) -> Option<Owner> {
        let member = data_dir.join(MEMBER_DIR);
        if let Ok(meta) = fs::metadata(&member) {
            return Owner::new(member, &meta);
        }
        // Nothing is there yet. A person's directory says nothing: root may be at work for them, or in a container of theirs.
        let nearest = data_dir.ancestors().find_map(|path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            Some((path.to_path_buf(), fs::metadata(path).ok()?))
        });
        nearest.and_then(|(path, meta)| Owner::new(path, &meta)).filter(|owner| owner.user.is_of_a_service())
    }

    fn new(seen: PathBuf, meta: &fs::Metadata) -> Option<Owner> {
        if [0, NOBODY].contains(&meta.uid()) {
            return None;
        }
        let known = nix::unistd::User::from_uid(Uid::from_raw(meta.uid())).ok().flatten();
        let group = known.map_or(Gid::from_raw(meta.gid()), |known| known.gid);
        Some(Owner { user: User::of(Uid::from_raw(meta.uid())), seen, group })
    }

    /// Who, and how that is known.
    pub fn told(&self) -> String {
        format!("{}, to whom {} belongs", self.user, self.seen.display())
    }

    /// The same as fields.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("user", self.user.name.clone()), ("owns", self.seen.display().to_string())]
    }

    /// From here on this process has this user's rights, and root's again when the answer is dropped.
    pub fn act(&self) -> io::Result<Acting> {
        let before = Acting { group: getgid(), groups: getgroups()? };
        let user = Uid::from_raw(self.user.id);
        let groups = match CString::new(self.user.name.as_str()) {
            Ok(name) => getgrouplist(&name, self.group).unwrap_or_else(|_| vec![self.group]),
            Err(_) => vec![self.group],
        };
        setgroups(&groups)?;
        // Dropped on the way out, it puts back what was done so far.
        setresgid(self.group, self.group, self.group)?;
        // The saved id is the way back; access(2) asks for the real one, files for the effective one.
        setresuid(user, user, Uid::from_raw(0))?;
        Ok(before)
    }
}

/// While it lives this process acts as somebody else.
pub struct Acting {
    group: Gid,
    groups: Vec<Gid>,
}

impl Drop for Acting {
    fn drop(&mut self) {
        let root = Uid::from_raw(0);
        // What fails leaves fewer rights, and whoever needs them is told by the kernel.
        let _ = setresuid(root, root, root);
        let _ = setresgid(self.group, self.group, self.group);
        let _ = setgroups(&self.groups);
    }
}

/// A member of somebody else is not run by root. Nothing was touched yet.
pub fn refuse_root(settings: &Settings) -> Result<(), Refusal> {
    match Owner::of(settings) {
        Some(owner) => Err(not_roots(&owner, &settings.storage.data_dir)),
        None => Ok(()),
    }
}

fn not_roots(owner: &Owner, data_dir: &Path) -> Refusal {
    let (name, dir) = (&owner.user.name, data_dir.display());
    let refusal = Refusal::new(
        Id::WrongUser,
        format!("{dir} is for a member of user {name}, who could not open what a start as root writes there"),
    )
    .evidence(owner.seen.display().to_string(), ownership(&owner.seen))
    .evidence("this start", User::of_this_process().to_string());
    let own: Vec<String> = std::env::args().map(|arg| quoted(&arg)).collect();
    let refusal =
        if name == "cairn" { refusal.remedy("start the service: systemctl start cairnd") } else { refusal };
    refusal
        .remedy(format!("as that user: runuser -u {name} -- {}", own.join(" ")))
        .remedy(format!("or, for a directory that shall be root's from now on: chown -R root: {dir}"))
        .never("do not run one member now as one user and now as another")
}

/// One word of a shell's command line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// What keeps this process from `path`: the first directory above it that it may not enter, else the path itself.
pub fn barrier(path: &Path) -> &Path {
    let mut above: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    above.reverse();
    let is_hidden = |part: &&[&Path]| {
        fs::symlink_metadata(part[1]).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    above.windows(2).find(is_hidden).map_or(path, |part| part[0])
}

/// Whose something is, and who may use it.
pub fn ownership(path: &Path) -> String {
    let Ok(meta) = fs::metadata(path) else { return "its owner cannot be told".to_owned() };
    let group = Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten();
    let group = group.map_or_else(|| meta.gid().to_string(), |group| group.name);
    format!("owner {}:{group}, mode {:04o}", User::of(Uid::from_raw(meta.uid())).name, meta.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn a_word_comes_through_a_shell_as_it_was() {
        for (word, shown) in [
            ("--initial-cluster=n1=http://[::1]:2380", "'--initial-cluster=n1=http://[::1]:2380'"),
            ("--name=n1", "--name=n1"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }

    /// The member decides where there is one; where one is to be, only a service's directory does.
    #[test]
    fn whose_a_member_is_is_told_by_what_is_nearest() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: whose_a_member_is_is_told_by_what_is_nearest: only root may give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, member) = (dir.path().join("above/data"), dir.path().join("above/data/member"));
        let own = |path: &Path, id: u32| chown(path, Some(id), Some(id)).unwrap();
        let seen = || Owner::at(&data).map(|owner| (owner.user.id, owner.seen));
        fs::create_dir(dir.path().join("above")).unwrap();
        assert_eq!(seen(), None, "all of it is root's");
        own(&dir.path().join("above"), 998);
        assert_eq!(seen(), Some((998, dir.path().join("above"))), "a service's, where the member is to be");
        own(&dir.path().join("above"), 1000);
        assert_eq!(seen(), None, "a person's");
        fs::create_dir_all(&member).unwrap();
        assert_eq!(seen(), None, "root's member in a person's directory");
        own(&data, 998);
        assert_eq!(seen(), None, "root's member in a service's directory");
        own(&member, 1000);
        assert_eq!(seen(), Some((1000, member.clone())), "a person's member");
        own(&member, NOBODY);
        assert_eq!(seen(), None, "whose it is cannot be told");
    }
}
