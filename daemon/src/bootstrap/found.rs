//! The founding of a cluster, carried out: the others are found, then awaited, and the list of first members is made durable. The
//! listeners are open meanwhile, and answer nothing but who this member is. A restored cluster is founded in the same way, by members that
//! have their first state already, each from a file of its own: here it is seen that it was the same.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ::identity::{Answer, GenesisConfig, Hello, Question, Session, Unique};
use parking_lot::Mutex;
use storage::data_dir::DataDir;
use tracing::{info, warn};
use transport::Lobby;
use types::MemberId;

use super::{
    attend::{self, Founder, Heard, Host, Late, Reply, Step, Waiting},
    execute,
    genesis::{FirstMember, Genesis},
    hello::{self, Target},
    plan::{Beginning, Discoverer, NewMember, NewOrigin},
    prepare::{self, Opened, Prepared, Stage},
    verdict::Me,
};
use crate::{
    announce,
    config::{Attendance, Settings},
    discovery::{self, NotFound},
    identity::{Identity, KnownMember},
    lifecycle::reload,
    refusal::{Id, Refusal},
    signals::{Request, Signals},
    systemd,
};

/// Between two rounds of questions: soon at first, since the others are usually being started too.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_LATER: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(5);

/// What a lag or a predecessor's session can explain is asked again for so long; a session ends within 4 s of its last sign of life.
const SETTLES_WITHIN: Duration = Duration::from_millis(4500);

/// How long a founder that knows of settings that differ stays to tell the others that are being started in the same moment.
const LINGER: Duration = Duration::from_secs(1);

/// No start waits in silence for longer.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A member that may run.
pub struct Ready {
    pub dir: DataDir,
    pub opened: Opened,
}

pub enum Settled {
    Ready(Box<Ready>),
    /// Asked to stop while it waited for others, by this signal.
    Stopped(&'static str),
}

/// The listeners are up. From the end of this on the first members are settled, and raft may start.
pub async fn settle(
    prepared: Prepared,
    listeners: &[TcpListener],
    settings: &Settings,
    signals: &mut Signals,
) -> Result<Settled, Refusal> {
    let Prepared { dir, stage, made } = prepared;
    let (mut opened, new) = match stage {
        Stage::Whole(opened) if opened.keeper.identity().awaits_the_restored() => {
            return settle_restored(dir, opened, listeners, settings, signals).await;
        }
        Stage::Whole(opened) => return Ok(Settled::Ready(Box::new(Ready { dir, opened }))),
        Stage::New(opened, new) => (opened, new),
        Stage::Discovers(discoverer) => match discover(&dir, discoverer, settings, signals).await {
            Ok(Ok(new)) => (prepare::open_new(&dir, &new, settings)?, new),
            Ok(Err(signal)) => return Ok(Settled::Stopped(signal)),
            Err(refusal) => {
                execute::clear_away(dir, made);
                return Err(refusal);
            }
        },
    };
    let own_dir = opened.keeper.identity().dir_uuid;
    let members = execute::known_members(&new, own_dir);
    let refuse = |error: io::Error| Refusal::io("write the identity into", &dir.member(), &error);
    let genesis = match &new.beginning {
        Beginning::Joins(_) => {
            opened.keeper.joining(members).map_err(refuse)?;
            crate::replace::joined(dir.path());
            return Ok(Settled::Ready(Box::new(Ready { dir, opened })));
        }
        Beginning::Founds(genesis) => genesis,
    };
    let founding = Founding::new(&new, genesis);
    let outcome = attendance(&dir, &opened, &founding, listeners, settings, signals).await;
    concluded(dir, opened, members, made, outcome)
}

/// The members that were restored meet for the first time.
async fn settle_restored(
    dir: DataDir,
    opened: Opened,
    listeners: &[TcpListener],
    settings: &Settings,
    signals: &mut Signals,
) -> Result<Settled, Refusal> {
    let members = opened.keeper.identity().members.clone();
    let Some(founding) = Founding::restored(opened.keeper.identity()) else {
        unreachable!("a restored member that awaits the others has no life yet")
    };
    let outcome = attendance(&dir, &opened, &founding, listeners, settings, signals).await;
    concluded(dir, opened, members, execute::Made::default(), outcome)
}

/// What came of the wait, on disk. A refused start of a restored member leaves its directory as it is.
fn concluded(
    dir: DataDir,
    mut opened: Opened,
    mut members: Vec<KnownMember>,
    made: execute::Made,
    outcome: Outcome,
) -> Result<Settled, Refusal> {
    let refuse = |error: io::Error| Refusal::io("write the identity into", &dir.member(), &error);
    match outcome {
        Outcome::Form(attendees) => {
            for member in members.iter_mut().filter(|member| member.dir_uuid.is_none()) {
                member.dir_uuid = attendees.get(&member.id).copied();
            }
            opened.keeper.formed(members).map_err(refuse)?;
        }
        Outcome::Late(late) => {
            info!(cluster_uuid = %late.cluster_uuid, told_by = late.url, "{}", announce::LATE);
            opened.keeper.formed_late(members, late.cluster_uuid, late.parent_uuid).map_err(refuse)?;
        }
        Outcome::Stopped { signal, seen } => {
            leave(dir, opened, seen, made);
            return Ok(Settled::Stopped(signal));
        }
        Outcome::Refused { refusal, seen } => {
            leave(dir, opened, seen, made);
            return Err(refusal);
        }
    }
    Ok(Settled::Ready(Box::new(Ready { dir, opened })))
}

/// The cluster that is founded, and this member of it.
struct Founding {
    member: MemberId,
    peer_urls: Vec<String>,
    method: String,
    parent: Option<Unique>,
    /// This member too.
    members: Vec<FirstMember>,
    config: GenesisConfig,
}

impl Founding {
    fn new(new: &NewMember, genesis: &Genesis) -> Founding {
        Founding {
            member: new.member,
            peer_urls: new.peer_urls.clone(),
            method: new.origin.method.to_owned(),
            parent: None,
            members: genesis.members.clone(),
            config: genesis.config(&new.origin.token),
        }
    }

    fn restored(identity: &Identity) -> Option<Founding> {
        let first = |member: &KnownMember| FirstMember {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
        };
        Some(Founding {
            member: identity.member_id,
            peer_urls: identity.peer_urls.clone(),
            method: identity.origin.method.clone(),
            parent: identity.parent_uuid,
            members: identity.members.iter().map(first).collect(),
            config: prepare::genesis_config(identity)?,
        })
    }
}

/// Who was counted by somebody must be known again by its directory; who was not leaves nothing.
fn leave(dir: DataDir, opened: Opened, seen: bool, made: execute::Made) {
    if seen {
        info!(data_dir = %dir.path().display(), "nothing was founded; the directory is kept, for another member has seen it, and the next start may change every setting");
    } else {
        opened.abandon(&dir);
        execute::clear_away(dir, made);
    }
}

enum Outcome {
    Form(BTreeMap<MemberId, Unique>),
    Late(Late),
    Stopped { signal: &'static str, seen: bool },
    Refused { refusal: Refusal, seen: bool },
}

/// What the lobby's thread and the asker share.
#[derive(Default)]
struct Guests {
    met: BTreeMap<MemberId, Session>,
    contradicted: Option<(Hello, GenesisConfig)>,
    /// Somebody may count this member among those who attend.
    seen: bool,
}

async fn attendance(
    dir: &DataDir,
    opened: &Opened,
    founding: &Founding,
    listeners: &[TcpListener],
    settings: &Settings,
    signals: &mut Signals,
) -> Outcome {
    let Founding { config, members, .. } = founding;
    let others: Vec<FirstMember> =
        members.iter().filter(|member| member.id != founding.member).cloned().collect();
    if others.is_empty() {
        return Outcome::Form(BTreeMap::new());
    }
    let identity = opened.keeper.identity();
    let own = hello::of(identity, hello::boot(identity), hello::log_end(&opened.contents), dir.path());
    let guests = Arc::new(Mutex::new(Guests::default()));
    let lobby = match open_lobby(listeners, &own, founding, &guests) {
        Ok(lobby) => lobby,
        Err(error) => {
            let refusal = Refusal::io("answer at the peer port for", dir.path(), &error);
            return Outcome::Refused { refusal, seen: false };
        }
    };
    // All that is this member's own is there; the wait that follows is for the others.
    systemd::status("founding a cluster: looking for the other first members");
    systemd::ready();
    let targets = Target::of_founders(&others);
    let question = Question { hello: own.clone(), config: Some(config.clone()) };
    let everybody = settings.membership.attendance == Attendance::All;
    let me = Me {
        hello: &own,
        peer_urls: &founding.peer_urls,
        method: &founding.method,
        parent: founding.parent,
        restored: config.restored.as_ref(),
        exists: &prepare::holds_member,
    };
    let began = Instant::now();
    let mut told = began;
    let mut awaited: Option<Waiting> = None;
    let mut doubted: Option<Instant> = None;
    let mut differs: Option<(Refusal, Instant)> = None;
    let stopped = loop {
        let replies = {
            // A peer that hangs makes a round long, and nobody shall wonder meanwhile.
            let round = hello::round(&targets, &question);
            tokio::pin!(round);
            loop {
                tokio::select! {
                    replies = &mut round => break replies,
                    () = tokio::time::sleep_until((told + TOLD_EVERY).into()), if awaited.is_some() => {
                        told = Instant::now();
                        awaited.iter().for_each(|waiting| say_who_is_awaited(waiting, everybody, began.elapsed(), false));
                    }
                }
            }
        };
        let contradicted = {
            let mut guests = guests.lock();
            remember(&mut guests.met, &replies);
            guests.contradicted.clone()
        };
        let settled = doubted.is_some_and(|since| since.elapsed() >= SETTLES_WITHIN);
        let founder =
            Founder { me, config, others: &others, everybody, contradicted: contradicted.as_ref(), settled };
        match attend::decide(&founder, &replies) {
            Step::Form(_) | Step::Late(_) if differs.is_some() => {}
            Step::Form(attendees) => break Outcome::Form(attendees),
            Step::Late(late) => break Outcome::Late(late),
            Step::Refuse(refusal) if refusal.id == Id::GenesisMismatch => {
                differs.get_or_insert((refusal, Instant::now()));
            }
            Step::Refuse(refusal) => break Outcome::Refused { refusal, seen: false },
            Step::AskAgain(_) => {
                doubted.get_or_insert_with(Instant::now);
            }
            Step::Wait(waiting) => {
                doubted = None;
                let first = awaited.is_none();
                if first || told.elapsed() >= TOLD_EVERY {
                    told = Instant::now();
                    say_who_is_awaited(&waiting, everybody, began.elapsed(), first);
                }
                awaited = Some(waiting);
            }
        }
        if let Some((refusal, since)) = &differs
            && since.elapsed() >= LINGER
        {
            break Outcome::Refused { refusal: refusal.clone(), seen: false };
        }
        let pause = if began.elapsed() < SOON { PAUSE } else { PAUSE_LATER };
        let pause = pause.min((told + TOLD_EVERY).saturating_duration_since(Instant::now()).max(PAUSE));
        tokio::select! {
            () = tokio::time::sleep(pause) => systemd::turned(),
            request = signals.next() => match request {
                Request::Stop(signal) => break Outcome::Stopped { signal, seen: false },
                Request::Reload => reload::too_early(),
            }
        }
    };
    lobby.stop();
    let was_seen = guests.lock().seen;
    match stopped {
        Outcome::Stopped { signal, .. } => Outcome::Stopped { signal, seen: was_seen },
        Outcome::Refused { refusal, .. } => Outcome::Refused { refusal, seen: was_seen },
        settled => settled,
    }
}

fn open_lobby(
    listeners: &[TcpListener],
    own: &Hello,
    founding: &Founding,
    guests: &Arc<Mutex<Guests>>,
) -> io::Result<Lobby> {
    let listeners = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    let (own, config, members) = (own.clone(), founding.config.clone(), founding.members.clone());
    let (parent, guests) = (founding.parent, guests.clone());
    let answer = move |question: Question| -> Answer {
        let mut guests = guests.lock();
        let host = Host { hello: &own, config: &config, members: &members, met: &guests.met, parent };
        let answer = host.answer(&question);
        let (contradicted, counted) = (host.is_contradicted_by(&question), host.is_counted_by(&question));
        guests.seen |= counted;
        if let (true, Some(config)) = (contradicted, question.config) {
            guests.contradicted.get_or_insert((question.hello, config));
        }
        answer
    };
    Lobby::start(listeners, Arc::new(answer))
}

/// Only who was reached at its own URL is known to be that member.
fn remember(met: &mut BTreeMap<MemberId, Session>, replies: &[Reply]) {
    for reply in replies {
        match &reply.heard {
            Heard::Answer(answer) if answer.hello.member == reply.member => {
                let hello = &answer.hello;
                met.insert(
                    reply.member,
                    Session { dir: hello.dir, boot: hello.boot, home: hello.home.clone(), is_quiet: false },
                );
            }
            // It may come back with another directory: nothing has been promised yet.
            _ => drop(met.remove(&reply.member)),
        }
    }
}

fn say_who_is_awaited(waiting: &Waiting, everybody: bool, waited: Duration, first: bool) {
    let Waiting { present, missing, majority } = waiting;
    let shown = missing.join("; ");
    systemd::status(&format!("founding a cluster: waiting for {shown}"));
    // The others are usually being started in these very moments.
    if first {
        info!(present = ?present, missing = ?missing, "{}", announce::ATTENDANCE);
        return;
    }
    let hint = match (majority, everybody) {
        (true, true) => {
            "a majority is there: --initial-cluster-attendance=majority founds the cluster without the others"
        }
        (false, true) => "all first members must be there once",
        _ => "a majority of the first members must be there",
    };
    warn!(waited_s = waited.as_secs(), present = ?present, missing = ?missing, hint, "{}", announce::ATTENDANCE);
}

/// Finds the first members, or hears a signal. The search blocks, so it has a thread of its own.
async fn discover(
    dir: &DataDir,
    discoverer: Discoverer,
    settings: &Settings,
    signals: &mut Signals,
) -> Result<Result<NewMember, &'static str>, Refusal> {
    let Some(way) = settings.membership.discovery.clone() else {
        unreachable!("the plan discovers only when the settings say how")
    };
    let Discoverer { own, dir_uuid, registered } = discoverer;
    let member_dir = dir.member();
    let dir_uuid = match dir_uuid {
        Some(kept) => kept,
        None => crate::identity::random()
            .map_err(|error| Refusal::io("make an identity for", &member_dir, &error))?,
    };
    let origin = {
        let (method, shown) = (way.method(), way.shown());
        move |token: String, initial_cluster: String, seen: bool| NewOrigin {
            method,
            token,
            initial_cluster,
            discovery_url: seen.then_some(shown),
        }
    };
    let registration = discovery::registration(&way, &own);
    let keep = execute::Registrar::new(dir, dir_uuid, &own, &way, settings)
        .map_err(|error| Refusal::io("make an identity for", &member_dir, &error))?;
    let (lines, progress) = mpsc::channel();
    let (done, mut found) = tokio::sync::oneshot::channel();
    let search = move || {
        let mut save = |registering: &discovery::Registering| keep.save(registering);
        let mut tell = |line: String| drop(lines.send(line));
        let found = discovery::discover(&way, &own, registered.as_ref(), &mut save, &mut tell);
        drop(done.send(found));
    };
    let spawned = std::thread::Builder::new().name("discovery".into()).spawn(search);
    spawned.map_err(|error| Refusal::io("start a thread for", dir.path(), &error))?;
    systemd::status("discovery: looking for the other first members");
    systemd::ready();
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let say = || {
        for line in progress.try_iter() {
            systemd::status(&format!("discovery: {line}"));
            info!("discovery: {line}");
        }
    };
    let found = loop {
        tokio::select! {
            found = &mut found => break found,
            _ = look.tick() => {
                systemd::turned();
                say();
            }
            request = signals.next() => match request {
                Request::Stop(signal) => return Ok(Err(signal)),
                Request::Reload => reload::too_early(),
            }
        }
    };
    say();
    match found {
        Ok(Ok(found)) => {
            // Until the member counts, its file says what was registered, so that it is known again.
            let seen = registration.is_some();
            let told =
                registration.map_or_else(|| found.cluster.canonical(), |registering| registering.value);
            let new = NewMember::founding(
                found.own.as_str(),
                &found.cluster,
                origin(found.token, told, seen),
                Some(dir_uuid),
            );
            new.map(Ok)
        }
        Ok(Err(NotFound { refusal, seen })) => {
            if !seen {
                execute::forget_registration(dir);
            }
            Err(refusal)
        }
        Err(_) => unreachable!("a panic in the search ends the process"),
    }
}
