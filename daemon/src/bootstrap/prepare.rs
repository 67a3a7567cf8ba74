//! From settings to a member that may open its sockets: lock, facts, plan, execution, in this order.

use storage::{
    data_dir::DataDir,
    wal::{Wal, WalContents},
};
use tracing::{info, warn};

use super::{
    execute, facts,
    plan::{self, BootPlan, NewMember},
};
use crate::{
    announce,
    config::{Note, Settings},
    identity::{Identity, Keeper, Unique, host},
    refusal::{Id, Refusal},
};

/// This build's version, as directories remember it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A member whose local identity is sound and whose log is open.
pub struct Prepared {
    /// Holds the lock of the data directory.
    pub dir: DataDir,
    pub keeper: Keeper,
    pub wal: Wal,
    pub contents: WalContents,
    /// On the first start, until [`Prepared::settle`].
    founding: Option<NewMember>,
}

/// What a start would do now, without doing it.
pub fn look(settings: &Settings, notes: &mut Vec<Note>) -> Result<BootPlan, Refusal> {
    let facts = facts::gather(settings)?;
    let addresses = facts::addresses(plan::to_resolve(&settings.membership).into_iter());
    plan::plan(&facts, &settings.membership, &addresses, VERSION, notes)
}

pub fn prepare(settings: &Settings) -> Result<Prepared, Refusal> {
    // Where there is no directory yet, none is made for a start that is refused.
    if !settings.storage.data_dir.exists() {
        supported(look(settings, &mut Vec::new())?)?;
    }
    let dir = execute::lock(settings)?;
    let mut notes = Vec::new();
    let plan = supported(look(settings, &mut notes)?)?;
    notes.iter().for_each(Note::log);
    let prepared = match plan {
        BootPlan::NewStatic(new) => {
            let keeper = execute::found(&dir, &new, settings)?;
            let (wal, contents) = execute::open_log(&dir, keeper.identity(), settings)?;
            Prepared { dir, keeper, wal, contents, founding: Some(new) }
        }
        BootPlan::Restart(identity) => {
            let (wal, contents) = execute::open_log(&dir, &identity, settings)?;
            say_if_moved(&identity, &dir);
            let member = dir.member();
            let refuse = |error: std::io::Error| Refusal::io("write the identity into", &member, &error);
            let mut keeper = Keeper::new(member.clone(), settings.storage.wal_dir.clone(), *identity);
            keeper.booted(Unique::random().map_err(refuse)?).map_err(refuse)?;
            Prepared { dir, keeper, wal, contents, founding: None }
        }
        BootPlan::JoinExisting(_) => unreachable!("refused by `supported`"),
    };
    say_who(prepared.keeper.identity(), &prepared.dir);
    Ok(prepared)
}

/// A directory may be moved, but whoever did not move it should know that it was.
fn say_if_moved(identity: &Identity, dir: &DataDir) {
    let (before, now) = (&identity.host, host::here(dir.path()));
    if before.machine_id_sha256.is_some() && before.machine_id_sha256 != now.machine_id_sha256 {
        warn!(
            before = before.name,
            now = now.name,
            path_before = before.path,
            "this data directory was last used on another machine"
        );
    } else if before.path != now.path {
        info!(before = before.path, now = now.path, "this data directory has moved");
    }
}

/// Joining needs the peers' member list and their word for this member; neither is asked for by this version.
fn supported(plan: BootPlan) -> Result<BootPlan, Refusal> {
    match plan {
        BootPlan::JoinExisting(new) => {
            Err(Refusal::new(Id::NotSupported, "joining a running cluster is not supported by this version")
                .evidence("--initial-cluster-state", "existing")
                .evidence("data directory", "holds no member yet")
                .remedy(format!("if {} has been a member before: --data-dir=<its directory>", new.name))
                .remedy("else list every member from the start, on all of them: --initial-cluster-state=new"))
        }
        plan => Ok(plan),
    }
}

fn say_who(identity: &Identity, dir: &DataDir) {
    info!(
        member_id = %identity.member_id,
        cluster_id = %identity.cluster_id,
        name = identity.name,
        peer_urls = ?identity.peer_urls,
        data_dir = %dir.path().display(),
        dir_uuid = %identity.dir_uuid,
        boot = identity.boot_seq,
        "{}",
        announce::IDENTITY
    );
}

impl Prepared {
    /// The listeners are up: from here on the first members are settled, and raft may start.
    pub fn settle(&mut self) -> Result<(), Refusal> {
        let Some(new) = self.founding.take() else { return Ok(()) };
        let members = execute::known_members(&new, self.keeper.identity().dir_uuid);
        self.keeper
            .formed(members)
            .map_err(|error| Refusal::io("write the identity into", &self.dir.member(), &error))
    }

    /// The start is refused: a member that nobody has seen leaves nothing behind.
    pub fn abandon(self) {
        let Prepared { dir, keeper, wal, contents, founding: _ } = self;
        drop((wal, contents));
        if let Err(error) = keeper.abandon() {
            tracing::warn!(%error, data_dir = %dir.path().display(), "the directory of the refused start could not be removed");
        }
    }
}
