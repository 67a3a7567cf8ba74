//! The settings as types, checked against each other. Whoever holds a [`Settings`] need not check anything again.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use node::AutoCompaction;

use super::{
    Note, Problem,
    cluster::{self, InitialCluster, MemberName},
    compaction, gates,
    source::Values,
    urls::{self, Scheme, Url},
    value,
};
use crate::{
    bootstrap::facts::{MEMBER_BUILT_ASIDE, MEMBER_DIR},
    discovery::{self, Way},
    identity::Replaced,
    refusal::Id,
};

/// Shorter periods of progress notifications are raised to this, as in etcd.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How often a leader writes the remaining time of leases into the log: etcd's period, which it has no flag for either.
const LEASE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);

/// A value and whether somebody asked for it: what was not given contradicts nothing on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<T> {
    pub value: T,
    pub given: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    New,
    Existing,
}

/// How many first members must be there before a cluster is founded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attendance {
    All,
    Majority,
}

/// What becomes of a member whose history is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoReplace {
    /// An operator replaces it.
    Off,
    /// It takes its own place as a learner under a new id.
    Learner,
}

/// Which differences between directory and settings the operator means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptChange {
    pub name: bool,
    pub peer_urls: bool,
    pub host: bool,
}

/// Who this member is and which cluster it founds.
#[derive(Clone, Debug)]
pub struct Membership {
    pub name: Asked<MemberName>,
    pub advertise_peer_urls: Asked<Vec<Url>>,
    pub advertise_client_urls: Vec<Url>,
    /// Empty where `discovery` says how to find the members.
    pub initial_cluster: Asked<InitialCluster>,
    pub discovery: Option<Way>,
    pub initial_state: InitialState,
    pub attendance: Attendance,
    pub accept: AcceptChange,
    pub join_timeout: Duration,
    pub token: Asked<String>,
    pub max_learners: usize,
    pub strict_reconfig_check: bool,
    pub auto_promote_learner: bool,
    pub auto_replace: AutoReplace,
    /// No setting: the member in whose place this start joins. See `replace`.
    pub replaces: Option<Replaced>,
    /// This member's data, as a cluster of one.
    pub force_new_cluster: bool,
}

/// Where to listen. Hosts are addresses or `localhost`, schemes are http; see [`Url::bind_address`].
#[derive(Clone, Debug)]
pub struct Listen {
    pub peer: Vec<Url>,
    pub client: Vec<Url>,
    /// When not empty, `client` serves only gRPC.
    pub client_http: Vec<Url>,
    pub metrics: Vec<Url>,
}

#[derive(Clone, Debug)]
pub struct Raft {
    pub heartbeat: Duration,
    /// Whole heartbeats, rounded down as in etcd; at least 5.
    pub election_ticks: usize,
    pub initial_election_tick_advance: bool,
    pub pre_vote: bool,
    pub snapshot_count: u64,
    pub snapshot_catchup_entries: u64,
}

#[derive(Clone, Debug)]
pub struct Storage {
    pub data_dir: PathBuf,
    /// None: `<data-dir>/member/wal`.
    pub wal_dir: Option<PathBuf>,
    pub lock_wait: Duration,
    /// An empty directory is meant, whatever lies beside it.
    pub allow_empty: bool,
    /// 0: all are kept.
    pub max_wals: u32,
    /// As given: 0 is the default of 2 GiB, negative is no quota.
    pub quota_backend_bytes: i64,
    pub inline_value_bytes_max: u64,
    /// Bytes a second of a snapshot for a peer; None: no limit.
    pub snapshot_send_rate: Option<NonZeroU64>,
    /// Bytes a second of a backup; None: no limit.
    pub snapshot_save_rate: Option<NonZeroU64>,
    pub compaction_batch_limit: usize,
    pub compaction_sleep_interval: Duration,
    /// None: off.
    pub auto_compaction: Option<AutoCompaction>,
    pub unsafe_no_fsync: bool,
}

#[derive(Clone, Debug)]
pub struct Requests {
    pub max_request_bytes: u64,
    pub max_txn_ops: usize,
    pub max_concurrent_streams: u32,
    pub watch_progress_interval: Duration,
    /// None: remaining times of leases do not enter the log.
    pub lease_checkpoint_interval: Option<Duration>,
    /// Zero: no pings.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// `*` allows every origin.
    pub cors: Vec<String>,
    /// `*` allows every host name.
    pub host_whitelist: Vec<String>,
    pub metrics_extensive: bool,
    /// 0: decided by the number of processors.
    pub rpc_threads: usize,
    /// Discovery for members of other clusters.
    pub discovery_service: Option<DiscoveryService>,
}

#[derive(Clone, Debug)]
pub struct DiscoveryService {
    pub lifetime: Duration,
    pub tokens: usize,
    pub resume: bool,
}

/// As etcd orders and names them; dpanic writes panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    Debug = 0,
    Info = 1,
    Warn = 2,
    Error = 3,
    Panic = 4,
    Fatal = 5,
}

impl LogLevel {
    pub fn parse(text: &str) -> Option<LogLevel> {
        Some(match text {
            "debug" => LogLevel::Debug,
            "info" => LogLevel::Info,
            "warn" => LogLevel::Warn,
            "error" => LogLevel::Error,
            "dpanic" | "panic" => LogLevel::Panic,
            "fatal" => LogLevel::Fatal,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Console,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Log {
    pub level: LogLevel,
    /// None: json, or console on a terminal.
    pub format: Option<LogFormat>,
    pub outputs: Vec<LogOutput>,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub membership: Membership,
    pub listen: Listen,
    pub raft: Raft,
    pub storage: Storage,
    pub requests: Requests,
    pub log: Log,
    pub shutdown_timeout: Duration,
}

/// etcd's default of `snapshot-count`, also for 0.
const SNAPSHOT_COUNT: u64 = 10_000;
/// etcd's default of `snapshot-catchup-entries`, also for 0.
const CATCHUP_ENTRIES: u64 = 5_000;
/// etcd's defaults of background compaction, also for 0.
const COMPACTION_BATCH: usize = 1_000;
const COMPACTION_SLEEP: Duration = Duration::from_millis(10);
/// As in etcd: a follower must miss several heartbeats before it may suspect the leader.
const ELECTION_PER_HEARTBEAT_MIN: u32 = 5;
/// As in etcd: a cluster that notices a dead leader later than this is not worth running.
const ELECTION_MAX: Duration = Duration::from_secs(50);
/// etcd warns above 10 MiB: one such request holds up every other one.
const REQUEST_BYTES_USUAL_MAX: i64 = 10 << 20;
/// A message is framed with 32 bits and held in memory several times on its way; larger ones could not travel.
const REQUEST_BYTES_MAX: i64 = 1 << 30;
/// Time to start members in; less is a mistake.
const TOKEN_LIFETIME_MIN: Duration = Duration::from_secs(60);
/// A token that nobody needs any more must end some day.
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// etcd's suggested largest quota.
const QUOTA_USUAL_MAX: i64 = 8 << 30;

struct Builder<'a> {
    values: &'a Values,
    problems: Vec<Problem>,
    notes: &'a mut Vec<Note>,
}

pub fn build(values: &Values, notes: &mut Vec<Note>) -> Result<Settings, Vec<Problem>> {
    let mut builder = Builder { values, problems: Vec::new(), notes };
    let membership = builder.membership();
    let listen = builder.listen();
    let raft = builder.raft();
    let storage = builder.storage();
    let requests = builder.requests();
    let log = builder.log();
    let problems = builder.problems;
    match (membership, log) {
        (Some(membership), Some(log)) if problems.is_empty() => {
            let shutdown_timeout = values.duration("shutdown-timeout");
            Ok(Settings { membership, listen, raft, storage, requests, log, shutdown_timeout })
        }
        _ => Err(problems),
    }
}

impl Builder<'_> {
    fn problem(&mut self, id: Id, setting: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let place = self.values.place(setting);
        self.problems.push(Problem { id, place, what: what.into(), remedy: remedy.into() });
    }

    fn asked<T>(&self, setting: &str, value: T) -> Asked<T> {
        Asked { value, given: self.values.is_given(setting) }
    }

    fn membership(&mut self) -> Option<Membership> {
        let values = self.values;
        let name = match MemberName::parse(values.text("name")) {
            Ok(name) => name,
            Err(why) => {
                self.problem(Id::BadValue, "name", why.0, "give a name such as --name=n1");
                return None;
            }
        };
        let peer_urls = self.advertised("initial-advertise-peer-urls");
        let client_urls = self.advertised("advertise-client-urls");
        for url in &peer_urls {
            self.plain_only("initial-advertise-peer-urls", url);
        }
        if values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
            self.problem(
                Id::SettingsConflict,
                "listen-client-urls",
                "advertise-client-urls is required when listen-client-urls is set",
                format!(
                    "say how clients reach this member: --advertise-client-urls={}",
                    values.text("listen-client-urls")
                ),
            );
        }
        let discovery = discovery::settings::read(values, self.notes).unwrap_or_else(|problems| {
            self.problems.extend(problems);
            None
        });
        let cluster = match cluster::parse(values.text("initial-cluster")) {
            _ if discovery.is_some() => InitialCluster::default(),
            Ok(cluster) if values.is_given("initial-cluster") && !cluster.members().is_empty() => cluster,
            _ => InitialCluster::alone(name.clone(), peer_urls.clone()),
        };
        for url in cluster.members().iter().flat_map(|member| &member.peer_urls) {
            if values.is_given("initial-cluster") {
                self.plain_only("initial-cluster", url);
            }
        }
        let initial_state = match values.text("initial-cluster-state") {
            "existing" => InitialState::Existing,
            _ => InitialState::New,
        };
        Some(Membership {
            name: self.asked("name", name),
            advertise_peer_urls: self.asked("initial-advertise-peer-urls", peer_urls),
            advertise_client_urls: client_urls,
            initial_cluster: self.asked("initial-cluster", cluster),
            initial_state,
            attendance: match values.text("initial-cluster-attendance") {
                "majority" => Attendance::Majority,
                _ => Attendance::All,
            },
            accept: self.accept_change(),
            join_timeout: values.duration("join-timeout"),
            token: match &discovery {
                // Not asked for as initial-cluster-token, so that it contradicts nothing on disk.
                Some(way @ (Way::V2(_) | Way::V3(_))) => {
                    Asked { value: way.token().to_owned(), given: false }
                }
                _ => self.asked("initial-cluster-token", values.text("initial-cluster-token").to_owned()),
            },
            discovery,
            max_learners: values.count("max-learners"),
            strict_reconfig_check: values.bool("strict-reconfig-check"),
            auto_promote_learner: values.bool("auto-promote-learner"),
            auto_replace: match values.text("auto-replace") {
                "learner" => AutoReplace::Learner,
                _ => AutoReplace::Off,
            },
            replaces: None,
            force_new_cluster: values.bool("force-new-cluster"),
        })
    }

    fn accept_change(&mut self) -> AcceptChange {
        let mut accept = AcceptChange::default();
        for what in self.values.list("accept-identity-change") {
            match what.as_str() {
                "name" => accept.name = true,
                "peer-urls" => accept.peer_urls = true,
                "host" => accept.host = true,
                _ => self.problem(
                    Id::BadValue,
                    "accept-identity-change",
                    format!("{what:?} is not one of name, peer-urls, host"),
                    "a member's id, its cluster and its directory never change: replace the member instead",
                ),
            }
        }
        accept
    }

    fn advertised(&mut self, setting: &'static str) -> Vec<Url> {
        let urls = self.some_urls(setting);
        for url in &urls {
            if let Err(why) = url.check_advertise() {
                self.problem(
                    Id::BadValue,
                    setting,
                    why.0,
                    "name the host under which others reach this member",
                );
            }
            if url.is_unspecified() {
                self.notes.push(Note {
                    message: "nobody can dial an advertised URL",
                    fields: vec![("setting", self.values.place(setting)), ("url", url.to_string())],
                });
            }
        }
        urls
    }

    fn some_urls(&mut self, setting: &'static str) -> Vec<Url> {
        let urls = self.values.urls(setting);
        if urls.is_empty() {
            self.problem(Id::BadValue, setting, format!("{setting} is empty"), "give at least one URL");
        }
        urls
    }

    /// This version speaks plain TCP: anything else is refused where it is first seen.
    fn plain_only(&mut self, setting: &'static str, url: &Url) {
        let what = match url.scheme {
            Scheme::Http => return,
            scheme if scheme.is_tls() => "TLS is not supported by this version",
            _ => "unix sockets are not supported by this version",
        };
        self.problem(Id::NotSupported, setting, format!("{url}: {what}"), "use an http:// URL");
    }

    fn listen(&mut self) -> Listen {
        let listen = Listen {
            peer: self.some_urls("listen-peer-urls"),
            client: self.some_urls("listen-client-urls"),
            client_http: self.values.urls("listen-client-http-urls"),
            metrics: self.values.urls("listen-metrics-urls"),
        };
        let lists = [
            ("listen-peer-urls", &listen.peer),
            ("listen-client-urls", &listen.client),
            ("listen-client-http-urls", &listen.client_http),
            ("listen-metrics-urls", &listen.metrics),
        ];
        let mut seen: Vec<(std::net::SocketAddr, &'static str)> = Vec::new();
        for (setting, urls) in lists {
            for url in urls {
                self.plain_only(setting, url);
                if let Err(why) = url.check_listen() {
                    self.problem(
                        Id::BadValue,
                        setting,
                        why.0,
                        format!("name the address to bind: http://0.0.0.0:{}", url.port),
                    );
                    continue;
                }
                let Some(address) = url.bind_address() else { continue };
                if address.port() == 0 {
                    continue;
                }
                if let Some((_, other)) = seen.iter().find(|(taken, _)| *taken == address) {
                    let what = format!("{address} is in {setting} and in {other}");
                    let to_change = if self.values.is_given(setting) { setting } else { *other };
                    let remedy = "give each listener an address of its own";
                    self.problem(Id::SettingsConflict, to_change, what, remedy);
                }
                seen.push((address, setting));
            }
        }
        if !self.values.is_given("initial-advertise-peer-urls") && listen.peer.iter().any(Url::is_unspecified)
        {
            self.notes.push(Note {
                message: "listening for peers on all addresses, but announcing localhost",
                fields: vec![("set", "initial-advertise-peer-urls".into())],
            });
        }
        listen
    }

    fn raft(&mut self) -> Raft {
        let values = self.values;
        let heartbeat = values.millis("heartbeat-interval");
        let election = values.millis("election-timeout");
        let at_least = heartbeat.saturating_mul(ELECTION_PER_HEARTBEAT_MIN);
        if heartbeat.is_zero() {
            self.problem(
                Id::BadValue,
                "heartbeat-interval",
                "heartbeat-interval must be more than 0",
                "the default is 100 (ms)",
            );
        }
        if election > ELECTION_MAX {
            self.problem(
                Id::BadValue,
                "election-timeout",
                "election-timeout is more than 50 s",
                "give at most 50000 (ms)",
            );
        } else if election < at_least || election.is_zero() {
            self.problem(
                Id::SettingsConflict,
                "election-timeout",
                format!(
                    "election-timeout ({} ms) is less than 5 times heartbeat-interval ({} ms)",
                    election.as_millis(),
                    heartbeat.as_millis()
                ),
                format!(
                    "raise election-timeout to at least {} ms, or lower heartbeat-interval",
                    at_least.as_millis().max(1)
                ),
            );
        }
        let ticks = election.as_nanos().checked_div(heartbeat.as_nanos()).unwrap_or(0);
        let or_default = |number: u64, default: u64| if number == 0 { default } else { number };
        Raft {
            heartbeat,
            election_ticks: usize::try_from(ticks).unwrap_or(usize::MAX),
            initial_election_tick_advance: values.bool("initial-election-tick-advance"),
            pre_vote: values.bool("pre-vote"),
            snapshot_count: or_default(values.count("snapshot-count"), SNAPSHOT_COUNT),
            snapshot_catchup_entries: or_default(values.count("snapshot-catchup-entries"), CATCHUP_ENTRIES),
        }
    }

    fn storage(&mut self) -> Storage {
        let values = self.values;
        let data_dir = PathBuf::from(values.text("data-dir"));
        if data_dir.as_os_str().is_empty() {
            self.problem(
                Id::BadValue,
                "data-dir",
                "data-dir is empty",
                "name a directory: --data-dir=/var/lib/cairn",
            );
        }
        if !values.is_given("data-dir") {
            let fields = vec![("data-dir", data_dir.display().to_string())];
            self.notes.push(Note {
                message: "data-dir is not set: using a directory named after the member",
                fields,
            });
        }
        let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let member = whole(&data_dir).join(MEMBER_DIR);
        // The place where the log is in any case is no directory of its own: the member is built elsewhere and takes its log along.
        let wal_dir = Some(values.text("wal-dir")).filter(|text| !text.is_empty()).map(PathBuf::from);
        let wal_dir = wal_dir.filter(|dir| whole(dir) != member.join("wal"));
        if let Some(wal_dir) = &wal_dir {
            let dir = whole(wal_dir);
            let built_aside = whole(&data_dir).join(MEMBER_BUILT_ASIDE);
            if dir == whole(&data_dir) || dir.starts_with(&member) || dir.starts_with(built_aside) {
                let what = format!("wal-dir {} is a directory of the member's own", wal_dir.display());
                self.problem(
                    Id::SettingsConflict,
                    "wal-dir",
                    what,
                    "leave wal-dir out, or name a directory on another disk",
                );
            }
        }
        let quota = values.bytes("quota-backend-bytes");
        if quota > QUOTA_USUAL_MAX {
            let fields = vec![("quota-backend-bytes", quota.to_string())];
            self.notes.push(Note { message: "the quota is above the usual maximum of 8 GiB", fields });
        }
        let unsafe_no_fsync = values.bool("unsafe-no-fsync");
        if unsafe_no_fsync {
            self.notes.push(Note {
                message: "the log is not synced: writes that were acknowledged are lost when this machine crashes or loses power, and \
                          the member may then refuse to start",
                fields: vec![("setting", values.place("unsafe-no-fsync"))],
            });
        }
        let batch: usize = values.count("compaction-batch-limit");
        let sleep = values.duration("compaction-sleep-interval");
        Storage {
            data_dir,
            wal_dir,
            lock_wait: values.duration("data-dir-lock-wait"),
            allow_empty: values.bool("allow-empty-data-dir"),
            max_wals: values.count("max-wals"),
            quota_backend_bytes: quota,
            inline_value_bytes_max: values.bytes("inline-value-bytes-max").unsigned_abs(),
            snapshot_send_rate: NonZeroU64::new(values.bytes("snapshot-send-rate").unsigned_abs()),
            snapshot_save_rate: NonZeroU64::new(values.bytes("snapshot-save-rate").unsigned_abs()),
            compaction_batch_limit: if batch == 0 { COMPACTION_BATCH } else { batch },
            compaction_sleep_interval: if sleep.is_zero() { COMPACTION_SLEEP } else { sleep },
            auto_compaction: self.auto_compaction(),
            unsafe_no_fsync,
        }
    }

    fn auto_compaction(&mut self) -> Option<AutoCompaction> {
        let (mode, retention) =
            (self.values.text("auto-compaction-mode"), self.values.text("auto-compaction-retention"));
        match compaction::parse(mode, retention) {
            Ok(None) if mode == "revision" => {
                self.notes.push(Note {
                    message: "automatic compaction is off: no retention is set",
                    fields: vec![("set", "auto-compaction-retention".into())],
                });
                None
            }
            Ok(policy) => policy,
            Err(wrong) => {
                self.problem(wrong.id, "auto-compaction-retention", wrong.what, wrong.remedy);
                None
            }
        }
    }

    fn requests(&mut self) -> Requests {
        let values = self.values;
        let bytes = values.bytes("max-request-bytes");
        if bytes == 0 || bytes > REQUEST_BYTES_MAX {
            let what = format!("max-request-bytes ({bytes}) is not between 1 and {REQUEST_BYTES_MAX}");
            self.problem(Id::BadValue, "max-request-bytes", what, "the default is 1.5MiB");
        } else if bytes > REQUEST_BYTES_USUAL_MAX {
            let fields = vec![("max-request-bytes", bytes.to_string())];
            self.notes.push(Note { message: "requests above 10 MiB hold up every other one", fields });
        }
        Requests {
            max_request_bytes: bytes.unsigned_abs(),
            max_txn_ops: values.count("max-txn-ops"),
            max_concurrent_streams: values.count("max-concurrent-streams"),
            watch_progress_interval: values
                .duration("watch-progress-notify-interval")
                .max(WATCH_PROGRESS_INTERVAL_MIN),
            lease_checkpoint_interval: gates::is_on(values.text("feature-gates"), gates::LEASE_CHECKPOINT)
                .then_some(LEASE_CHECKPOINT_INTERVAL),
            keepalive_interval: values.duration("grpc-keepalive-interval"),
            keepalive_timeout: values.duration("grpc-keepalive-timeout"),
            cors: any_or(values.list("cors")),
            host_whitelist: any_or(values.list("host-whitelist")),
            metrics_extensive: values.text("metrics") == "extensive",
            rpc_threads: values.count("rpc-threads"),
            discovery_service: self.discovery_service(),
        }
    }

    fn discovery_service(&mut self) -> Option<DiscoveryService> {
        let values = self.values;
        let lifetime = values.duration("discovery-service-lifetime");
        if !(TOKEN_LIFETIME_MIN..=TOKEN_LIFETIME_MAX).contains(&lifetime) {
            let what =
                format!("discovery-service-lifetime ({lifetime:?}) is not between a minute and a year");
            self.problem(Id::BadValue, "discovery-service-lifetime", what, "the default is 168h");
        }
        if !values.bool("discovery-service") {
            let parts =
                ["discovery-service-lifetime", "discovery-service-tokens", "discovery-service-resume"];
            for setting in parts.into_iter().filter_map(super::table::find) {
                if !super::same_value(setting.kind, values.text(setting.name), setting.default) {
                    let fields = vec![
                        ("setting", values.place(setting.name)),
                        ("reason", "discovery-service is off".to_owned()),
                    ];
                    self.notes.push(Note { message: "setting has no effect", fields });
                }
            }
        }
        values.bool("discovery-service").then(|| DiscoveryService {
            lifetime,
            tokens: values.count("discovery-service-tokens"),
            resume: values.bool("discovery-service-resume"),
        })
    }

    fn log(&mut self) -> Option<Log> {
        let level = LogLevel::parse(self.values.text("log-level"))?;
        let format = match self.values.text("log-format") {
            _ if !self.values.is_given("log-format") => None,
            "console" => Some(LogFormat::Console),
            _ => Some(LogFormat::Json),
        };
        let names = value::parse_list(self.values.text("log-outputs"));
        if names.len() > 1 && names.iter().any(|name| name == "default") {
            self.problem(
                Id::SettingsConflict,
                "log-outputs",
                "\"default\" stands beside other outputs",
                "name stderr instead of default",
            );
        }
        let mut outputs = Vec::new();
        for name in names {
            let output = match name.as_str() {
                "default" | "stderr" | "systemd/journal" => LogOutput::Stderr,
                "stdout" => LogOutput::Stdout,
                path => LogOutput::File(PathBuf::from(path)),
            };
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
        if outputs.is_empty() {
            self.problem(Id::BadValue, "log-outputs", "log-outputs is empty", "name at least stderr");
        }
        Some(Log { level, format, outputs })
    }
}

/// An empty list of what is allowed allows everything, as in etcd.
fn any_or(list: Vec<String>) -> Vec<String> {
    if list.is_empty() { vec!["*".into()] } else { list }
}

impl Raft {
    pub fn election_timeout(&self) -> Duration {
        self.heartbeat * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }
}

impl Membership {
    /// For messages.
    pub fn own_urls_shown(&self) -> String {
        urls::shown(&self.advertise_peer_urls.value)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::{
        config::{self, Settings, Surroundings},
        refusal::{Id, Refusal},
    };

    fn load(flags: &[&str]) -> Result<Settings, Refusal> {
        let flags = crate::cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        config::load(&surroundings).map(|(settings, _)| settings)
    }

    #[test]
    fn defaults_are_one_member_alone() {
        let settings = load(&[]).unwrap();
        assert_eq!(settings.membership.initial_cluster.value.canonical(), "default=http://localhost:2380");
        assert_eq!(settings.storage.data_dir.to_str(), Some("default.etcd"));
        assert_eq!(settings.raft.election_ticks, 10);
        let named = load(&["--name=a", "--initial-advertise-peer-urls=http://h:1"]).unwrap();
        assert_eq!(named.membership.initial_cluster.value.canonical(), "a=http://h:1");
        assert_eq!(named.storage.data_dir.to_str(), Some("a.etcd"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for (flags, id, words) in [
            (&["--election-timeout=400"][..], Id::SettingsConflict, "5 times"),
            (&["--election-timeout=60s"], Id::BadValue, "50 s"),
            (&["--heartbeat-interval=0"], Id::BadValue, "more than 0"),
            (&["--listen-client-urls=http://127.0.0.1:1"], Id::SettingsConflict, "advertise-client-urls"),
            (&["--listen-peer-urls=http://example.com:1"], Id::BadValue, "IP address"),
            (&["--listen-peer-urls=https://127.0.0.1:1"], Id::NotSupported, "TLS"),
            (&["--listen-peer-urls=unix://x:1"], Id::NotSupported, "unix"),
            (&["--listen-peer-urls=http://127.0.0.1:2379"], Id::SettingsConflict, "listen-client-urls"),
            (&["--listen-peer-urls="], Id::BadValue, "empty"),
            (&["--initial-cluster=a=https://h:1"], Id::NotSupported, "TLS"),
            (&["--initial-cluster=a=http://h:1,b=http://h:1"], Id::BadValue, "given twice"),
            (&["--name=a b"], Id::BadValue, "white space"),
            (&["--initial-advertise-peer-urls=http://:1"], Id::BadValue, "no host"),
            (&["--log-outputs=default,stdout"], Id::SettingsConflict, "default"),
            (&["--wal-dir=x", "--data-dir=x"], Id::SettingsConflict, "wal-dir"),
            (&["--wal-dir=x/member", "--data-dir=x"], Id::SettingsConflict, "wal-dir"),
            (&["--wal-dir=x/member/log", "--data-dir=x"], Id::SettingsConflict, "wal-dir"),
            (&["--wal-dir=x/member.tmp", "--data-dir=x"], Id::SettingsConflict, "wal-dir"),
            (&["--max-request-bytes=0"], Id::BadValue, "max-request-bytes"),
            (&["--accept-identity-change=member-id"], Id::BadValue, "is not one of name, peer-urls, host"),
            (&["--initial-cluster-state=maybe"], Id::BadValue, "is not one of new, existing"),
        ] {
            let refusal = load(flags).expect_err(&format!("{flags:?} was accepted"));
            assert_eq!(refusal.id, id, "{}", refusal.text());
            assert!(refusal.text().contains(words), "{flags:?}: {}", refusal.text());
            assert!(
                refusal.text().contains(flags[0].split('=').next().unwrap()),
                "the flag is named: {}",
                refusal.text()
            );
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let refusal = load(&["--election-timeout=1", "--log-outputs=", "--max-request-bytes=0"]).unwrap_err();
        assert!(refusal.text().contains("3 settings"), "{}", refusal.text());
    }

    /// A first start with it moved its own log away with what it had built, and found none ever after.
    #[test]
    fn a_wal_dir_that_is_where_the_log_is_anyway_is_none() {
        let here = std::env::current_dir().unwrap();
        for dir in ["x/member/wal", "./x/member/wal/", here.join("x/member/wal").to_str().unwrap()] {
            let settings = load(&["--data-dir=x", &format!("--wal-dir={dir}")]).unwrap();
            assert_eq!(settings.storage.wal_dir, None, "{dir}");
        }
        let settings = load(&["--data-dir=x", "--wal-dir=x/wal"]).unwrap();
        assert_eq!(settings.storage.wal_dir, Some(std::path::PathBuf::from("x/wal")));
    }

    #[test]
    fn a_client_url_may_be_anything_a_proxy_serves() {
        assert!(load(&["--advertise-client-urls=https://kv.example.com:443"]).is_ok());
    }
}
