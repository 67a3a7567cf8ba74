//! The running process: sockets, member and client edge put together, waited for, and taken apart in order.

pub mod reload;
mod standing;
mod stopping;
mod telling;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    path::Path,
    process,
    time::{Duration, Instant},
};

use ::identity::Record;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use node::{
    Expelled, Fatal, Handle, Leadership, LoadError, Node, NodeConfig, OwnIdentity, Parts, Remote, Removal,
};
use serde_json::{Map, Value, json};
use server::{Bound, Running, Server, ServerConfig};
use storage::data_dir::DataDir;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};
use types::{MemberId, limits};

use crate::{
    announce,
    bootstrap::{
        found::Ready,
        hello,
        prepare::{Opened, VERSION, genesis_config},
    },
    config::{AutoReplace, LogLevel, Settings, urls, urls::Url},
    identity::{Identity, Keeper, KnownMember, State, Unique, remedy},
    logging, port_holder,
    refusal::{Exit, Id, Refusal},
    replace,
    signals::{Request, Signals},
    systemd::{self, line, sockets::Inherited},
};
use reload::Reload;
pub use stopping::{stop, stopped_early};
use telling::Teller;

/// How often a member that is not ready looks whether it is. The cluster's answer takes an election and two commits.
const READY_CHECK: Duration = Duration::from_millis(10);

/// How long a member whose cluster has no name for its life yet waits for one. The leader gives it with its first entries, unless it is an
/// etcd, which knows of none.
const LIFE_WAIT: Duration = Duration::from_secs(3);

/// How often the identity file is held against what the cluster knows. It is written only where they differ.
const MIRROR: Duration = Duration::from_secs(1);

/// How often a member that is not ready says what it waits for.
const WAITING_TOLD: Duration = Duration::from_secs(5);

/// How often the facts of the status line are looked at.
const TELLING: Duration = Duration::from_millis(250);

/// A panic anywhere ends the process: a member with a dead thread must not look alive.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place =
            panic.location().map_or("unknown".to_owned(), |at| format!("{}:{}", at.file(), at.line()));
        let payload = panic.payload();
        if let Some(failure) = payload.downcast_ref::<state_machine::StoreFailure>() {
            fatal(Fatal::Store(failure.to_string()));
        }
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        logging::to_stderr(&format!("panic in thread {thread} at {place}: {text}\n"));
        let mut fields = Map::new();
        for (key, value) in
            [("code", Id::InternalError.name()), ("cause", text), ("at", &place), ("thread", &thread)]
        {
            fields.insert(key.into(), json!(value));
        }
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            fields.insert("backtrace".into(), json!(trace.to_string()));
        }
        logging::last_words(
            LogLevel::Panic,
            "cairnd/lifecycle.rs",
            "internal error: the process ends",
            &fields,
        );
        process::exit(Exit::Bug as i32);
    }));
}

/// The disk failed: going on would mean guessing. A failed disk is met again, or not, by the next start.
fn fatal(fatal: Fatal) -> ! {
    let id = match &fatal {
        Fatal::Log(_) | Fatal::Store(_) => Id::IoError,
    };
    systemd::last_word(&format!("{}: {fatal}", id.name()));
    let mut fields = Map::new();
    fields.insert("code".into(), json!(id.name()));
    fields.insert("exit".into(), json!(id.exit() as u8));
    fields.insert("cause".into(), Value::String(fatal.to_string()));
    logging::last_words(LogLevel::Fatal, "cairnd/lifecycle.rs", "this member cannot go on", &fields);
    process::exit(id.exit() as i32);
}

/// As many descriptors as the hard limit allows: connections and log segments need them, and a soft limit of 1024 is for programs
/// that use select(2).
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%error, soft, hard, "the limit of open files could not be raised");
    }
}

/// Sockets of every listener. Clients are refused until the server starts; peers queue.
pub struct Sockets {
    peer: Vec<TcpListener>,
    peer_addresses: Vec<SocketAddr>,
    server: Bound,
}

impl Sockets {
    /// What founders ask each other arrives here before the member runs.
    pub fn peers(&self) -> &[TcpListener] {
        &self.peer
    }
}

/// A socket for each listen URL: one that the service manager holds already, or a new one.
pub fn bind(settings: &Settings, mut inherited: Inherited) -> Result<Sockets, Refusal> {
    let mut peer = Vec::new();
    let mut peer_addresses = Vec::new();
    for address in settings.listen.peer.iter().filter_map(Url::bind_address) {
        const SETTING: &str = "listen-peer-urls";
        let listener = match inherited.claim(SETTING, address) {
            Some(listener) => listener,
            None => TcpListener::bind(address).map_err(|error| bind_refusal(SETTING, address, &error))?,
        };
        peer_addresses.push(listener.local_addr().unwrap_or(address));
        peer.push(listener);
    }
    let server = Bound::bind_or_take(server_config(settings), |listen| {
        inherited.claim(listen.setting, listen.address)
    })
    .map_err(server_refusal)?;
    inherited.nothing_left()?;
    Ok(Sockets { peer, peer_addresses, server })
}

pub fn bind_refusal(setting: &str, address: SocketAddr, error: &io::Error) -> Refusal {
    let (id, what) = match error.kind() {
        io::ErrorKind::AddrInUse => (Id::PortInUse, "is in use by another process"),
        io::ErrorKind::AddrNotAvailable => (Id::PortInUse, "is no address of this host"),
        io::ErrorKind::PermissionDenied => (Id::PermissionDenied, "may not be bound by this user"),
        _ => (Id::IoError, "cannot be bound"),
    };
    let refusal = Refusal::new(id, format!("address {address} {what}"))
        .evidence(format!("--{setting}"), format!("http://{address}: {error}"));
    let holder = (error.kind() == io::ErrorKind::AddrInUse).then(|| port_holder::of(address)).flatten();
    let refusal = match holder {
        Some(port_holder::Holder { pid, command }) => refusal
            .evidence("holder", format!("pid {pid}: {command}"))
            .remedy(format!("if that process should not run: kill {pid}")),
        None if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let port = address.port();
            return refusal
                .remedy(format!("listen at an address of this host (ip -br address): --{setting}=http://<its address>:{port}"))
                .remedy("or, for an address that the network gives this host later: start again when it is there");
        }
        None => refusal.remedy(format!("stop what listens there: ss -ltnp 'sport = :{}'", address.port())),
    };
    refusal.remedy(format!("or change --{setting}"))
}

fn server_refusal(error: server::StartError) -> Refusal {
    match error {
        server::StartError::Bind { setting, address, source } => bind_refusal(setting, address, &source),
        server::StartError::Thread { name, source } | server::StartError::Runtime { name, source } => {
            Refusal::io("start client thread", Path::new(&name), &source)
        }
    }
}

fn server_config(settings: &Settings) -> ServerConfig {
    let listens = |setting: &'static str, urls: &[Url]| {
        let addresses = urls.iter().filter_map(Url::bind_address);
        addresses.map(|address| server::Listen { setting, address }).collect::<Vec<_>>()
    };
    let requests = &settings.requests;
    ServerConfig {
        client: listens("listen-client-urls", &settings.listen.client),
        client_http: listens("listen-client-http-urls", &settings.listen.client_http),
        metrics: listens("listen-metrics-urls", &settings.listen.metrics),
        runtimes: NonZeroUsize::new(requests.rpc_threads),
        request_bytes_max: requests.max_request_bytes,
        txn_ops_max: requests.max_txn_ops,
        streams_max: requests.max_concurrent_streams,
        keepalive_interval: requests.keepalive_interval,
        keepalive_timeout: requests.keepalive_timeout,
        health_timeout: Duration::from_secs(5) + 2 * settings.raft.election_timeout(),
        cors: requests.cors.clone(),
        host_whitelist: requests.host_whitelist.clone(),
        server_version: limits::ETCD_VERSION.to_owned(),
        metrics_extensive: requests.metrics_extensive,
        discovery: requests.discovery_service.as_ref().map(|service| server::DiscoveryConfig {
            lifetime: service.lifetime,
            tokens_max: service.tokens,
            resume: service.resume,
            ..server::DiscoveryConfig::default()
        }),
        ..ServerConfig::default()
    }
}

fn node_config(settings: &Settings, dir: &DataDir, opened: &Opened) -> NodeConfig {
    let identity = opened.keeper.identity();
    let live = reload::tunable(settings);
    NodeConfig {
        member: identity.member_id,
        cluster: identity.cluster_id,
        // A new name reaches the cluster as the member publishes it, and the identity file from there.
        name: opened.changes.name.clone().unwrap_or_else(|| identity.name.clone()),
        advertise_client_urls: urls::texts(&settings.membership.advertise_client_urls),
        advertise_peer_urls: opened.changes.peer_urls.clone().unwrap_or_else(|| identity.peer_urls.clone()),
        heartbeat: settings.raft.heartbeat,
        election_ticks: settings.raft.election_ticks,
        pre_vote: settings.raft.pre_vote,
        max_request_bytes: settings.requests.max_request_bytes,
        max_txn_ops: settings.requests.max_txn_ops,
        quota_backend_bytes: live.quota_backend_bytes,
        snapshot_count: live.snapshot_count,
        snapshot_catchup_entries: settings.raft.snapshot_catchup_entries,
        snapshot_send_bytes_per_second: live.snapshot_send_bytes_per_second,
        snapshot_save_bytes_per_second: live.snapshot_save_bytes_per_second,
        inline_value_bytes_max: settings.storage.inline_value_bytes_max,
        compaction_batch: live.compaction_batch,
        compaction_sleep: live.compaction_sleep,
        auto_compaction: live.auto_compaction,
        max_learners: live.max_learners,
        strict_reconfig_check: live.strict_reconfig_check,
        auto_promote_learner: live.auto_promote_learner,
        watch_progress_interval: settings.requests.watch_progress_interval,
        lease_checkpoint_interval: settings.requests.lease_checkpoint_interval,
        initial_election_tick_advance: settings.raft.initial_election_tick_advance,
        state_dir: dir.state(),
        snap_dir: dir.snap(),
        progress: systemd::rows_read,
        replayed: systemd::entries_replayed,
        fatal,
    }
}

/// Everything that runs, and what must outlive it.
pub struct Member {
    id: MemberId,
    node: Node,
    server: Running,
    keeper: Keeper,
    /// Its lock is held until the process is done with it.
    dir: DataDir,
    /// Peer URLs that the operator means this member to have from now on.
    move_to: Option<Vec<String>>,
    shutdown_timeout: Duration,
    /// When its history is found to be lost, the process goes on as another member in the same place.
    replaces_itself: bool,
}

pub fn start(settings: &Settings, ready: Ready, sockets: Sockets) -> Result<Member, Refusal> {
    let Ready { dir, opened } = ready;
    let config = node_config(settings, &dir, &opened);
    systemd::status("starting: opening the state");
    let state_dir = config.state_dir.clone();
    let Opened { keeper, wal, contents, changes, .. } = opened;
    let Sockets { peer, peer_addresses, server } = sockets;
    let boot = keeper.identity().boot_nonce.low_u64();
    let (remotes, identity) = (remotes(keeper.identity()), own_identity(keeper.identity(), dir.path())?);
    let parts = Parts { wal, contents, peer_listeners: peer, boot, identity, remotes };
    let node = match Node::start(config, parts) {
        Ok(node) => node,
        Err(error) => {
            let is_unmet = error.comes_before_anybody_is_met();
            let refusal = node_refusal(error, &state_dir, keeper.identity(), dir.path());
            if is_unmet && let Err(error) = keeper.unboot() {
                warn!(%error, data_dir = %dir.path().display(), "the refused start could not be taken back: it counts");
            }
            return Err(refusal);
        }
    };
    announce::listening(announce::LISTENING_FOR_PEERS, &peer_addresses);
    let server = Server::start_bound(server, node.handle()).map_err(server_refusal)?;
    announce::listening(announce::LISTENING_FOR_CLIENTS, server.client_addresses());
    announce::listening(announce::LISTENING_FOR_CLIENTS, server.client_http_addresses());
    announce::listening(announce::LISTENING_FOR_METRICS, server.metrics_addresses());
    Ok(Member {
        id: keeper.identity().member_id,
        node,
        server,
        keeper,
        dir,
        move_to: changes.peer_urls,
        shutdown_timeout: settings.shutdown_timeout,
        replaces_itself: settings.membership.auto_replace == AutoReplace::Learner,
    })
}

/// What the others are told of this start.
fn own_identity(identity: &Identity, data_dir: &Path) -> Result<OwnIdentity, Refusal> {
    let attendees = remotes_of(identity).filter_map(|member| Some((member.id, member.dir_uuid?))).collect();
    let fresh_uuid = crate::identity::random().map_err(|error| {
        Refusal::new(Id::IoError, "no random numbers").evidence("system", error.to_string())
    })?;
    Ok(OwnIdentity {
        record: Record {
            dir: identity.dir_uuid,
            boot: hello::boot(identity),
            home: hello::home(data_dir),
            version: VERSION.to_owned(),
        },
        earlier: hello::earlier(identity, &hello::boot(identity)),
        cluster_uuid: identity.cluster_uuid,
        parent_uuid: identity.parent_uuid,
        attendees,
        config: genesis_config(identity),
        fresh_uuid,
        keeps_life: true,
    })
}

/// Who may send the first entries to a member that joins, and whom it may answer: the cluster as it was when it told this member's place.
fn remotes(identity: &Identity) -> Vec<Remote> {
    if identity.state != State::Joining {
        return Vec::new();
    }
    let others = remotes_of(identity);
    others.map(|member| Remote { id: member.id, peer_urls: member.peer_urls.clone() }).collect()
}

fn remotes_of(identity: &Identity) -> impl Iterator<Item = &KnownMember> {
    identity.members.iter().filter(|member| member.id != identity.member_id)
}

/// Of the state of this member, and of its log beside it: with the commands that replace it.
pub fn node_refusal(
    error: node::StartError,
    state_dir: &Path,
    identity: &Identity,
    data_dir: &Path,
) -> Refusal {
    use storage::state_store::OpenError;
    let dir = state_dir.display();
    let replace = || remedy::replace(identity, &data_dir.display().to_string());
    let damaged = |why: String| {
        Refusal::new(Id::StateDamaged, "the state of this member cannot be used")
            .evidence(dir.to_string(), why)
            .remedy(format!("mv {dir} {dir}.damaged, and start again: a log that still holds everything rebuilds it, any other start is refused"))
            .remedy(replace())
    };
    match error {
        error @ node::StartError::OtherLife { .. } => Refusal::new(
            Id::WrongDir,
            "the identity file and the state belong to different lives of the cluster",
        )
        .evidence(dir.to_string(), error.to_string())
        .remedy("put the state and the identity file of one member together again: check the mounts"),
        node::StartError::Store(OpenError::Io { operation, path, source }) => {
            Refusal::io(operation, &path, &source)
        }
        node::StartError::Store(OpenError::Locked { path }) => {
            Refusal::new(Id::DataDirBusy, "another process uses the state store")
                .evidence("state", path.display().to_string())
                .remedy("stop that process")
        }
        node::StartError::Store(error @ OpenError::UnknownFormat { .. }) => {
            Refusal::new(Id::BinaryTooOld, "this version of cairn may not use this state store")
                .evidence(dir.to_string(), error.to_string())
                .remedy("start the version that wrote it")
        }
        // Not damage, but an older copy. Moving the state aside would let the member come back with less than it promised.
        node::StartError::Load(LoadError::AppliedBeyondLog { applied, last }) => Refusal::new(
            Id::RolledBackLocally,
            "the write-ahead log is older than the state that was made from it",
        )
        .evidence("state", format!("applied through index {applied} ({dir})"))
        .evidence("log", format!("ends at index {last}"))
        .remedy("if a newer copy of the log exists, put it back and start again")
        .remedy(replace())
        .never("do not move the state aside: the member would come back with less than it promised"),
        node::StartError::Load(error) => {
            Refusal::new(Id::LogDamaged, "the write-ahead log cannot have been left behind by a member")
                .evidence("log and state", error.to_string())
                .remedy("restore log and state together from one backup of this very directory")
                .remedy(replace())
                .never("do not move the state aside: the log alone is not whole")
        }
        node::StartError::Thread(error) => Refusal::io("start a thread for", state_dir, &error),
        node::StartError::Snapshot(error) => Refusal::io(
            "install a received snapshot in",
            state_dir,
            &std::io::Error::other(error.to_string()),
        ),
        node::StartError::Transport(error) => {
            Refusal::io("start the peer transport of", state_dir, &std::io::Error::other(error.to_string()))
        }
        other => damaged(other.to_string()),
    }
}

/// Why [`serve`] returned.
pub enum Ended {
    /// By this signal.
    Asked(&'static str),
    /// The log says that this member does not belong to the cluster any more.
    Removed(Removal),
    /// The others have shown that this directory, this start or this life is not what they know.
    Expelled(Box<Expelled>),
}

/// Waits for the cluster, says when clients are welcome, and goes on until somebody asks to stop.
pub async fn serve(member: &mut Member, signals: &mut Signals, reload: &mut Reload<'_>) -> Ended {
    let handle = member.node.handle();
    let mut leadership = handle.leadership();
    let mut removal = handle.removal();
    let mut expelled = handle.expelled();
    let mut life = handle.cluster_uuid();
    // A founder's first write waits until its identity file names the life of the cluster.
    let mut founds = genesis_config(member.keeper.identity()).is_some();
    life.mark_changed();
    let mut published: Option<Instant> = None;
    let mut mirror = interval(MIRROR);
    mirror.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready = false;
    let since = Instant::now();
    let mut check = interval(READY_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = interval(WAITING_TOLD);
    let identity = member.keeper.identity();
    let replaces =
        identity.replaces.as_ref().filter(|replaced| replaced.voted).map(|replaced| replaced.member);
    let mut teller = Teller::new(&handle, identity.name.clone(), replaces);
    let mut telling = interval(TELLING);
    telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leads = false;
    systemd::watch(handle.clone());
    leadership.mark_changed();
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop(signal) => return Ended::Asked(signal),
                Request::Reload => if let Some(settings) = reload.run(&handle) {
                    member.shutdown_timeout = settings.shutdown_timeout;
                },
            },
            Ok(removed) = removal.wait_for(Option::is_some) => {
                if let Some(removal) = removed.clone() {
                    return Ended::Removed(removal);
                }
            }
            Ok(found) = expelled.wait_for(Option::is_some) => {
                if let Some(expelled) = found.clone() {
                    return Ended::Expelled(Box::new(expelled));
                }
            }
            Ok(()) = life.changed(), if founds => {
                let found = *life.borrow_and_update();
                if found.is_some() {
                    begin_life(member, &handle, found);
                    founds = false;
                }
            }
            _ = mirror.tick(), if ready => remember(member, &handle, *life.borrow()),
            changed = leadership.changed() => {
                if changed.is_err() {
                    // The raft thread is gone; its panic is ending the process.
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                let now = *leadership.borrow_and_update();
                logging::term(now.term.0);
                say_who_leads(now, std::mem::replace(&mut leads, now.leader == member.id));
            }
            _ = check.tick(), if !ready => {
                if !handle.node_status().leader.is_none() && handle.is_confirmed() && is_published(&handle, member.id) {
                    let since = *published.get_or_insert_with(Instant::now);
                    let uuid = *life.borrow();
                    ready = uuid.is_some() || since.elapsed() >= LIFE_WAIT;
                    if ready {
                        become_ready(member, &handle, uuid);
                    }
                }
            }
            _ = waiting.tick(), if !ready && since.elapsed() >= WAITING_TOLD => {
                say_what_is_awaited(member, &handle, since.elapsed());
            }
            _ = telling.tick() => {
                systemd::turned();
                systemd::status(&line::of(&teller.look(&handle, ready)));
                if teller.is_recovered(&handle) {
                    systemd::ready();
                }
            }
        }
    }
}

fn say_who_leads(now: Leadership, led: bool) {
    let (term, leads) = (now.term.0, now.is_leader());
    if leads && !led {
        info!(term, "{}", announce::LEADS);
    } else if led && !leads {
        info!(term, leader = %now.leader, "{}", announce::LEADS_NO_MORE);
    } else if now.leader.is_none() && now.term.0 > 0 {
        info!(term, "{}", announce::NO_LEADER);
    }
}

/// No start waits in silence: others may have to be started first.
fn say_what_is_awaited(member: &Member, handle: &node::Handle, waited: Duration) {
    let status = handle.node_status();
    let shown = |name: &str, id: MemberId, urls: &[String]| format!("{name} ({id}, {})", urls.join(","));
    let others: Vec<String> = if status.is_joining {
        let others = remotes_of(member.keeper.identity());
        others.map(|other| shown(&other.name, other.id, &other.peer_urls)).collect()
    } else {
        let others = handle.members().into_iter().filter(|other| other.id != member.id);
        others.map(|other| shown(&other.name, other.id, &other.peer_urls)).collect()
    };
    let what = if status.is_joining {
        "the cluster's leader to send its log or a snapshot to this member"
    } else if status.leader.is_none() {
        "a leader: a majority must be up"
    } else {
        "the cluster to take this member's URLs"
    };
    info!(waited_s = waited.as_secs(), for_what = what, others = ?others, "waiting for the cluster");
}

/// The cluster has settled its version and knows this member's client URLs: it has committed in a term with a leader, and this member
/// has applied it. A name alone says nothing, since the first entries of the log carry it.
fn is_published(handle: &node::Handle, id: MemberId) -> bool {
    handle.cluster_version().is_some()
        && handle.members().iter().any(|member| member.id == id && !member.client_urls.is_empty())
}

fn become_ready(member: &mut Member, handle: &Handle, life: Option<Unique>) {
    remember(member, handle, life);
    if let Some(peer_urls) = member.move_to.take() {
        tokio::spawn(standing::move_to(handle.clone(), member.id, peer_urls));
    }
    if let Some(replaced) = member.keeper.identity().replaces.as_ref().filter(|replaced| replaced.voted) {
        tokio::spawn(replace::until_voter(handle.clone(), member.id, replaced.member));
    }
    member.server.set_serving(true);
    // Whoever reads the record may not have to know which of the two was heard of first.
    logging::term(handle.node_status().term.0);
    info!("{}", announce::READY);
    info!("{}", announce::INSECURE);
}

/// On the disk when this returns, and the node knows.
fn begin_life(member: &mut Member, handle: &Handle, life: Option<Unique>) {
    if let Err(error) = member.keeper.born(life, handle.parent_uuid()) {
        fatal(Fatal::Store(format!("write the identity file: {error}")));
    }
    handle.life_is_kept();
}

/// The identity file follows what the cluster has settled, before anybody is told that it has.
fn remember(member: &mut Member, handle: &Handle, life: Option<Unique>) {
    let born = member.keeper.born(life, handle.parent_uuid());
    if let Err(error) = born.and_then(|()| standing::mirror(&mut member.keeper, handle)) {
        fatal(Fatal::Store(format!("write the identity file: {error}")));
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use node::{LoadError, StartError};
    use storage::state_store::OpenError;
    use types::MemberId;

    use crate::identity::KnownMember;

    /// Set in the copy of this test that panics.
    const VICTIM: &str = "CAIRND_TEST_PANIC";

    /// Nobody has to be asked for the commands: the directory knows the others.
    #[test]
    fn a_member_whose_state_is_of_no_use_is_told_how_it_comes_back() {
        let mut identity = crate::identity::sample();
        identity.members = vec![KnownMember {
            id: MemberId(0xb),
            name: "n2".into(),
            peer_urls: vec!["http://h2:1".into()],
            client_urls: vec!["http://h2:2".into()],
            dir_uuid: None,
            is_learner: false,
        }];
        let command = format!(
            "cairnctl --endpoints=http://h2:2 member remove {}, then mv /d /d.old, then cairnctl",
            identity.member_id
        );
        let beyond = LoadError::AppliedBeyondLog { applied: types::LogIndex(9), last: types::LogIndex(3) };
        let no_such_thing = OpenError::Inconsistent { path: "/d/member/state".into(), what: "rows".into() };
        for (error, id) in [
            (StartError::Load(beyond), "ROLLED_BACK_LOCALLY"),
            (StartError::Store(no_such_thing), "STATE_DAMAGED"),
        ] {
            let refusal =
                super::node_refusal(error, Path::new("/d/member/state"), &identity, Path::new("/d"));
            assert_eq!(refusal.id.name(), id);
            assert!(refusal.text().contains(&command), "{}", refusal.text());
        }
    }

    #[test]
    fn a_panic_in_any_thread_ends_the_process_with_70_and_says_where() {
        if std::env::var_os(VICTIM).is_some() {
            super::install_panic_hook();
            let _ = std::thread::Builder::new()
                .name("apply".into())
                .spawn(|| panic!("expected {}", 1 + 1))
                .unwrap()
                .join();
            unreachable!("the hook has ended the process");
        }
        let name = "lifecycle::tests::a_panic_in_any_thread_ends_the_process_with_70_and_says_where";
        let mut victim = Command::new(std::env::current_exe().unwrap());
        let output = victim.args(["--exact", name, "--nocapture"]).env(VICTIM, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{said}");
        assert!(said.contains("panic in thread apply at") && said.contains("expected 2"), "{said}");
        assert!(said.contains("\"code\":\"INTERNAL_ERROR\""), "{said}");
    }
}
