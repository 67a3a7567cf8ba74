//! From settings to a member that may open its sockets: lock, facts, plan, execution, in this order.

use storage::{
    data_dir::DataDir,
    wal::{Wal, WalContents},
};
use tracing::{info, warn};

use super::{
    ask, execute, facts,
    join::{Joiner, Place},
    plan::{self, Beginning, BootPlan, NewMember},
};
use crate::{
    announce,
    config::{Note, Settings},
    identity::{self, Identity, Keeper, State, host},
    refusal::Refusal,
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
    let mut notes = Vec::new();
    let mut place = None;
    // Where there is no directory yet, none is made for a start that is refused.
    if !settings.storage.data_dir.exists()
        && let BootPlan::JoinExisting(joiner) = look(settings, &mut Vec::new())?
    {
        place = Some(ask_for_place(&joiner, settings, &mut notes)?);
    }
    let dir = execute::lock(settings)?;
    let plan = look(settings, &mut notes)?;
    notes.drain(..).for_each(|note| note.log());
    let prepared = match plan {
        BootPlan::NewStatic(new) => found(dir, new, settings)?,
        BootPlan::JoinExisting(joiner) => {
            let place = match place {
                Some(place) => place,
                None => ask_for_place(&joiner, settings, &mut notes)?,
            };
            notes.drain(..).for_each(|note| note.log());
            found(dir, NewMember::joined(joiner, place), settings)?
        }
        BootPlan::Restart(identity) => {
            let (wal, contents) = execute::open_log(&dir, &identity, settings)?;
            say_if_moved(&identity, &dir);
            // Joining was cut short before anything of the log arrived: the cluster may have changed since it was asked.
            let has_nothing = contents.entries.is_empty() && contents.snapshot.index.0 == 0;
            let members = if identity.state == State::Joining && has_nothing {
                let data_dir = dir.path().display().to_string();
                ask::again(&identity, &settings.membership.initial_cluster.value, &data_dir)?
            } else {
                None
            };
            let member = dir.member();
            let refuse = |error: std::io::Error| Refusal::io("write the identity into", &member, &error);
            let mut keeper = Keeper::new(member.clone(), settings.storage.wal_dir.clone(), *identity);
            keeper.booted(identity::random().map_err(refuse)?).map_err(refuse)?;
            if let Some(members) = members {
                keeper.joining(members).map_err(refuse)?;
            }
            Prepared { dir, keeper, wal, contents, founding: None }
        }
    };
    say_who(prepared.keeper.identity(), &prepared.dir);
    Ok(prepared)
}

fn found(dir: DataDir, new: NewMember, settings: &Settings) -> Result<Prepared, Refusal> {
    let keeper = execute::found(&dir, &new, settings)?;
    let (wal, contents) = execute::open_log(&dir, keeper.identity(), settings)?;
    Ok(Prepared { dir, keeper, wal, contents, founding: Some(new) })
}

fn ask_for_place(joiner: &Joiner, settings: &Settings, notes: &mut Vec<Note>) -> Result<Place, Refusal> {
    let place = ask::place(joiner, settings.membership.join_timeout, notes)?;
    info!(
        member_id = %place.member,
        cluster_id = %place.cluster,
        learner = place.is_learner,
        members = place.members.len(),
        "{}",
        announce::JOINING
    );
    Ok(place)
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
        let settled = match &new.beginning {
            Beginning::Founds(_) => self.keeper.formed(members),
            Beginning::Joins(_) => self.keeper.joining(members),
        };
        settled.map_err(|error| Refusal::io("write the identity into", &self.dir.member(), &error))
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
