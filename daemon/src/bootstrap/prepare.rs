//! From settings to a member whose local identity is sound: lock, facts, plan, execution, in this order. What a member that joins or comes
//! back must hear from others is asked here, before any socket opens; what founders ask each other comes after (`found`).

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use ::identity::{Boot, GenesisConfig, Hello, Life, LogEnd, Question, Unique, Verdict};
use api::raftpb;
use prost::Message as _;
use storage::{
    data_dir::DataDir,
    wal::{Wal, WalContents},
};
use tracing::{info, warn};
use types::{EntryKind, LogIndex, LogPosition, MemberId, Term};

use super::{
    again, ask,
    attend::{Heard, Reply},
    execute, facts, force,
    hello::{self, Target},
    join::{Joiner, Place},
    plan::{self, BootPlan, Discoverer, NewMember, Returning},
    verdict::{self, Me, Said},
};
use crate::{
    announce,
    config::{
        Note, Settings,
        cluster::InitialMember,
        urls::{self, Url},
    },
    identity::{self, Identity, Keeper, KnownMember, State, compare::Changes, host},
    logging,
    refusal::{Id, Refusal},
};

/// This build's version, as directories remember it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// In the JSON of a conf change, where etcd skips it: see `identity::Private`.
const PRIVATE_KEY: &str = "cairn";

/// Between two rounds of questions of a member that comes back.
const PAUSE: Duration = Duration::from_millis(300);

/// A member whose local identity is sound and whose log is open.
pub struct Opened {
    pub keeper: Keeper,
    pub wal: Wal,
    pub contents: WalContents,
    /// What the operator means to change about a member with data.
    pub changes: Changes,
    /// Of a member with data, until [`Prepared::count`].
    pub uncounted: Option<Uncounted>,
}

/// What is not on disk yet, because this start may still be refused.
pub enum Uncounted {
    Boot {
        nonce: Unique,
        /// Who may send the log now, for a joiner that has nothing of it.
        members: Option<Vec<KnownMember>>,
    },
    /// A new cluster of one, which is forced or was begun to be.
    Force,
}

/// A data directory whose lock is held, and what is still to be done before raft may start.
pub struct Prepared {
    pub dir: DataDir,
    pub stage: Stage,
    /// It goes again when nothing comes of this start.
    pub made: execute::Made,
}

#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Stage {
    Whole(Opened),
    /// The others must be there, or the running cluster must have given a place.
    New(Opened, NewMember),
    /// The others must be found first.
    Discovers(Discoverer),
}

/// What a start would do now as far as this machine can tell, without doing it and without asking anybody.
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
    let made = execute::Made::by_locking(&settings.storage.data_dir);
    let dir = execute::lock(settings)?;
    match stage(&dir, place, settings, &mut notes) {
        Ok(stage) => Ok(Prepared { dir, stage, made }),
        Err(refusal) => {
            execute::clear_away(dir, made);
            Err(refusal)
        }
    }
}

fn stage(
    dir: &DataDir,
    place: Option<Place>,
    settings: &Settings,
    notes: &mut Vec<Note>,
) -> Result<Stage, Refusal> {
    let plan = match look(settings, notes) {
        Err(refusal) if refusal.id == Id::PeerUrlMismatch && has_been_moved(dir.path(), settings) => {
            let mut settings = settings.clone();
            settings.membership.accept.peer_urls = true;
            look(&settings, notes)?
        }
        plan => plan?,
    };
    notes.drain(..).for_each(|note| note.log());
    if settings.membership.force_new_cluster && !matches!(plan, BootPlan::Restart(_)) {
        return Err(force::without_data(&dir.path().display().to_string()));
    }
    Ok(match plan {
        BootPlan::NewStatic(new) => Stage::New(open_new(dir, &new, settings)?, new),
        BootPlan::Discover(discoverer) => Stage::Discovers(discoverer),
        BootPlan::JoinExisting(joiner) => {
            let place = match place {
                Some(place) => place,
                None => ask_for_place(&joiner, settings, notes)?,
            };
            notes.drain(..).for_each(|note| note.log());
            let new = NewMember::joined(joiner, place, &settings.membership);
            Stage::New(open_new(dir, &new, settings)?, new)
        }
        BootPlan::Restart(returning) => Stage::Whole(come_back(dir, *returning, settings)?),
    })
}

/// Builds the directory of a new member and opens it.
pub fn open_new(dir: &DataDir, new: &NewMember, settings: &Settings) -> Result<Opened, Refusal> {
    let keeper = execute::found(dir, new, settings)?;
    let (wal, contents) = execute::open_log(dir, keeper.identity(), settings)?;
    say_who(keeper.identity(), dir);
    Ok(Opened { keeper, wal, contents, changes: Changes::default(), uncounted: None })
}

pub fn ask_for_place(joiner: &Joiner, settings: &Settings, notes: &mut Vec<Note>) -> Result<Place, Refusal> {
    let place = ask::place_or_lost(joiner, settings.membership.join_timeout, notes).map_err(|missed| {
        let better = missed.place.and_then(|place| refused_as(joiner, &place, settings));
        better.unwrap_or(missed.refusal)
    })?;
    // A place that was taken before and lost again looks free until the member has said its name.
    if let Some(refusal) = refused_as(joiner, &place, settings) {
        return Err(refusal);
    }
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

/// What the running members hold against this directory as the member in this place, with all that they know of its predecessor.
fn refused_as(joiner: &Joiner, place: &Place, settings: &Settings) -> Option<Refusal> {
    let data_dir = &settings.storage.data_dir;
    let own = Hello {
        cluster_id: place.cluster,
        member: place.member,
        name: joiner.own.name.to_string(),
        life: Life::Joining,
        dir: joiner.dir_uuid.or_else(|| identity::random().ok())?,
        boot: Boot { seq: 1, nonce: identity::random().ok()?, previous: None },
        earlier: Vec::new(),
        log: LogEnd::default(),
        home: hello::home(data_dir),
        version: VERSION.to_owned(),
    };
    let target = |member: &InitialMember, url: &Url| Target {
        member: MemberId::NONE,
        name: member.name.to_string(),
        url: url.as_str().to_owned(),
    };
    let targets: Vec<Target> = joiner
        .others
        .iter()
        .flat_map(|member| member.peer_urls.iter().map(move |url| target(member, url)))
        .collect();
    let peer_urls = urls::texts(&joiner.own.peer_urls);
    let me = Me {
        hello: &own,
        peer_urls: &peer_urls,
        method: "join",
        parent: None,
        restored: None,
        exists: &holds_member,
    };
    let question = Question { hello: own.clone(), config: None };
    let replies = ask::runtime().ok()?.block_on(hello::round(&targets, &question));
    replies.iter().find_map(|reply| {
        let Heard::Answer(answer) = &reply.heard else { return None };
        if answer.hello.cluster_id != place.cluster || !answer.verdict.means_lost_history() {
            return None;
        }
        verdict::refusal(&me, &answer.verdict, &Said { url: &reply.url, answer })
    })
}

/// Whether a directory of a message is one on this machine, so that it may be named as a way out.
pub fn holds_member(path: &str) -> bool {
    Path::new(path).join(facts::MEMBER_DIR).is_dir()
}

fn come_back(dir: &DataDir, returning: Returning, settings: &Settings) -> Result<Opened, Refusal> {
    let Returning { mut identity, changes } = returning;
    logging::member(&identity);
    if force::is_wanted(&identity, settings) {
        return force::come_back(dir, identity, changes, settings);
    }
    let (wal, contents) = execute::open_log(dir, &identity, settings)?;
    // The life is in the log before anything is acknowledged in it, and in this file a moment later.
    if identity.cluster_uuid.is_none()
        && let Some(life) = life_in_log(&contents, identity.member_id)
    {
        (identity.cluster_uuid, identity.state) = (Some(life), State::Born);
    }
    say_if_moved(&identity, dir, settings);
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
    let nonce = identity::random().map_err(refuse)?;
    let boot = Boot { seq: identity.boot_seq + 1, nonce, previous: Some(identity.boot_nonce) };
    let hello = hello::of(&identity, boot, hello::log_end(&contents), dir.path());
    let heard = ask_peers(&identity, &hello, settings);
    let mut keeper = Keeper::new(member.clone(), settings.storage.wal_dir.clone(), identity);
    if let Err(found) = heard {
        let (refusal, verdict) = *found;
        if let Some(Verdict::Removed { index, term, asked_through }) = verdict {
            let at = LogPosition { term: Term(term), index: LogIndex(index) };
            keeper.removed(at, asked_through).map_err(refuse)?;
        }
        return Err(refusal);
    }
    Ok(Opened { keeper, wal, contents, changes, uncounted: Some(Uncounted::Boot { nonce, members }) })
}

/// The name that the committed part of the log gives to this life of the cluster, once it has taken this member in. What comes before is
/// the past, and may be that of a life that was ended by force.
fn life_in_log(contents: &WalContents, own: MemberId) -> Option<Unique> {
    let mut is_part = contents.snapshot.index.0 > 0;
    let mut life = None;
    let committed = contents.entries.iter().filter(|entry| entry.index <= contents.hard_state.commit);
    for entry in committed.filter(|entry| entry.kind == EntryKind::ConfChange) {
        let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) else { continue };
        is_part |= change.node_id() == own.0;
        life = told(&change).or(life);
    }
    life.filter(|_| is_part)
}

fn told(change: &raftpb::ConfChange) -> Option<Unique> {
    let context: serde_json::Value = serde_json::from_slice(change.context.as_ref()?).ok()?;
    context.get(PRIVATE_KEY)?.get("cluster_uuid")?.as_str()?.parse().ok()
}

/// The peers that a member with data knows, and those that its settings name.
pub fn peers(identity: &Identity, settings: &Settings) -> Vec<Target> {
    let mut seen = BTreeSet::new();
    let mut targets = Vec::new();
    let stored = identity.members.iter().filter(|member| member.id != identity.member_id);
    for member in stored {
        for url in member.peer_urls.iter().filter(|url| seen.insert((*url).clone())) {
            targets.push(Target { member: member.id, name: member.name.clone(), url: url.clone() });
        }
    }
    let given = settings.membership.initial_cluster.value.members().iter();
    for member in given.filter(|member| member.name.as_str() != identity.name) {
        for url in member.peer_urls.iter().map(|url| url.as_str().to_owned()) {
            if !identity.peer_urls.contains(&url) && seen.insert(url.clone()) {
                targets.push(Target { member: MemberId::NONE, name: member.name.to_string(), url });
            }
        }
    }
    targets
}

/// The last known voters, this member included.
pub fn voters(identity: &Identity) -> Vec<MemberId> {
    let mut voters: Vec<MemberId> =
        identity.members.iter().filter(|member| !member.is_learner).map(|member| member.id).collect();
    if !identity.members.iter().any(|member| member.id == identity.member_id) {
        voters.push(identity.member_id);
    }
    voters
}

/// Whether the cluster lists this member at the given URLs already, where the directory remembers others: it was moved while it was down.
/// Only members of the same life are asked.
pub fn has_been_moved(data_dir: &Path, settings: &Settings) -> bool {
    let Ok(Some(identity)) = identity::read(&data_dir.join(facts::MEMBER_DIR)) else { return false };
    let mut given = urls::texts(&settings.membership.advertise_peer_urls.value);
    given.sort();
    let own = hello::of(&identity, hello::boot(&identity), LogEnd::default(), data_dir);
    let question = Question { hello: own, config: None };
    let Ok(runtime) = ask::runtime() else { return false };
    let replies = runtime.block_on(hello::round(&peers(&identity, settings), &question));
    replies.iter().any(|reply| {
        let Heard::Answer(answer) = &reply.heard else { return false };
        let same_life =
            answer.known.cluster_uuid.is_some() && answer.known.cluster_uuid == identity.cluster_uuid;
        same_life
            && answer.members.iter().any(|named| {
                let mut listed = named.peer_urls.clone();
                listed.sort();
                named.id == identity.member_id && listed == given
            })
    })
}

/// As messages about a member with data name it.
pub fn me<'a>(identity: &'a Identity, hello: &'a Hello) -> Me<'a> {
    Me {
        hello,
        peer_urls: &identity.peer_urls,
        method: &identity.origin.method,
        parent: identity.parent_uuid,
        restored: identity.origin.restored.as_ref(),
        exists: &holds_member,
    }
}

/// What the peers know of this directory. Nobody has to be there.
fn ask_peers(
    identity: &Identity,
    hello: &Hello,
    settings: &Settings,
) -> Result<(), Box<(Refusal, Option<Verdict>)>> {
    let targets = peers(identity, settings);
    if targets.is_empty() {
        return Ok(());
    }
    let (me, voters) = (me(identity, hello), voters(identity));
    let question = Question { hello: hello.clone(), config: None };
    let runtime = ask::runtime().map_err(|refusal| Box::new((refusal, None)))?;
    runtime.block_on(async {
        let began = Instant::now();
        loop {
            let replies = hello::round(&targets, &question).await;
            match again::decide(&me, &voters, &replies, began.elapsed()) {
                again::Step::Start(doubted) => {
                    say_heard(&replies, doubted.as_ref());
                    return Ok(());
                }
                again::Step::StartAlone(stale) => {
                    warn!("{}", alone(identity, &stale));
                    return Ok(());
                }
                again::Step::Refuse(refusal, verdict) => return Err(Box::new((refusal, verdict))),
                again::Step::AskAgain(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    })
}

/// What an operator should know of settings that name others than the cluster has.
pub fn alone(identity: &Identity, stale: &[String]) -> String {
    let own: Vec<String> = identity.peer_urls.iter().map(|url| format!("{}={url}", identity.name)).collect();
    format!(
        "initial-cluster is out of date: another cluster runs at {}, and this member is the only voter of its own; starting alone. Set \
         --initial-cluster={} to say so",
        stale.join(", "),
        own.join(",")
    )
}

fn say_heard(replies: &[Reply], doubted: Option<&Refusal>) {
    for reply in replies {
        if let Heard::Etcd(version) = &reply.heard {
            warn!(
                peer = reply.name,
                url = reply.url,
                version,
                "this peer is etcd: it does not protect the cluster against lost, older or copied data directories"
            );
        }
    }
    if let Some(refusal) = doubted {
        warn!(
            code = refusal.id.name(),
            cause = refusal.cause(),
            "a peer speaks against this member, and a majority does not: starting"
        );
    }
}

/// The settings of a cluster that is not born yet, as they were settled.
pub fn genesis_config(identity: &Identity) -> Option<GenesisConfig> {
    if identity.cluster_uuid.is_some() || identity.state != State::Formed {
        return None;
    }
    let members = identity.members.iter();
    let mut members: Vec<::identity::FirstMember> = members
        .map(|member| ::identity::FirstMember {
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
        })
        .collect();
    members.sort();
    Some(GenesisConfig {
        members,
        token: identity.token.clone(),
        token_sha256: identity.token_sha256.clone(),
        restored: identity.origin.restored.clone(),
    })
}

/// A directory may be moved, but whoever did not move it should know that it was.
fn say_if_moved(identity: &Identity, dir: &DataDir, settings: &Settings) {
    let (before, now) = (&identity.host, host::here(dir.path()));
    if before.machine_id_sha256.is_some() && before.machine_id_sha256 != now.machine_id_sha256 {
        if settings.membership.accept.host {
            info!(
                before = before.name,
                now = now.name,
                "this data directory has moved to this machine, as it was meant to"
            );
            return;
        }
        warn!(
            before = before.name,
            now = now.name,
            path_before = before.path,
            "this data directory was last used on another machine (if that is meant: --accept-identity-change=host)"
        );
    } else if before.path != now.path {
        info!(before = before.path, now = now.path, "this data directory has moved");
    }
}

fn say_who(identity: &Identity, dir: &DataDir) {
    logging::member(identity);
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
    /// Nothing stands against this start any more: the boot of a member with data is counted on disk, before the first packet leaves. Not
    /// earlier: an older copy that is refused must not climb over its successor by being tried again, and a refusal changes nothing.
    pub fn count(self, settings: &Settings) -> Result<Prepared, Refusal> {
        let Prepared { dir, stage, made } = self;
        let stage = match stage {
            Stage::Whole(opened) => Stage::Whole(opened.count(&dir, settings)?),
            stage => stage,
        };
        Ok(Prepared { dir, stage, made })
    }

    /// The start is refused: a member that nobody has seen leaves nothing behind.
    pub fn abandon(self) {
        let Prepared { dir, stage, made } = self;
        if let Stage::Whole(opened) | Stage::New(opened, _) = stage {
            opened.abandon(&dir);
        }
        execute::clear_away(dir, made);
    }
}

impl Opened {
    fn count(mut self, dir: &DataDir, settings: &Settings) -> Result<Opened, Refusal> {
        let opened = match self.uncounted.take() {
            None => return Ok(self),
            Some(Uncounted::Force) => force::carry_out(dir, self, settings)?,
            Some(Uncounted::Boot { nonce, members }) => {
                let member = dir.member();
                let refuse = |error: std::io::Error| Refusal::io("write the identity into", &member, &error);
                self.keeper.booted_for_now(nonce).map_err(refuse)?;
                if let Some(members) = members {
                    self.keeper.joining(members).map_err(refuse)?;
                }
                self
            }
        };
        say_who(opened.keeper.identity(), dir);
        Ok(opened)
    }

    pub fn abandon(self, dir: &DataDir) {
        let Opened { keeper, wal, contents, .. } = self;
        drop((wal, contents));
        if let Err(error) = keeper.abandon() {
            warn!(%error, data_dir = %dir.path().display(), "the directory of the refused start could not be removed");
        }
    }
}
