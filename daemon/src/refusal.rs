//! Why the daemon does not start: one value for every such cause, one stable name, one exit code, one shape of message.
//!
//! Five parts on stderr, one per line, and one log record with the same facts. Each name has a section in docs/operations.md; a test
//! compares the two. Nothing here decides anything: the rules stand where the facts are.

use std::{
    fmt::{self, Write as _},
    io,
    path::Path,
};

use serde_json::{Map, Value, json};

use crate::{config::tongue::Tongue, owner};

/// Exit codes. Stable: units and scripts tell by them whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Stopped = 0,
    Usage = 64,
    Damaged = 65,
    Missing = 66,
    Busy = 69,
    Bug = 70,
    Io = 74,
    NotReady = 75,
    Permission = 77,
    Identity = 78,
    Replace = 79,
}

/// Ids below it are of services and of root, as on every distribution with systemd.
const PEOPLE_FROM: u32 = 1000;

/// The user whose rights count, as messages name them.
pub struct User {
    pub id: u32,
    /// The id where there is no name for it.
    pub name: String,
}

impl User {
    pub fn of_this_process() -> User {
        User::of(nix::unistd::geteuid())
    }

    pub fn of(id: nix::unistd::Uid) -> User {
        let known = nix::unistd::User::from_uid(id).ok().flatten();
        User { id: id.as_raw(), name: known.map_or_else(|| id.to_string(), |user| user.name) }
    }

    pub fn is_of_a_service(&self) -> bool {
        (1..PEOPLE_FROM).contains(&self.id)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} (id {})", self.name, self.id)
    }
}

macro_rules! ids {
    ($($variant:ident = $name:literal, $exit:ident;)*) => {
        /// The stable name of a cause.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Id { $($variant),* }

        impl Id {
            pub const ALL: &[Id] = &[$(Id::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Id::$variant => $name),* }
            }

            pub fn exit(self) -> Exit {
                match self { $(Id::$variant => Exit::$exit),* }
            }
        }
    };
}

ids! {
    UnknownSetting = "UNKNOWN_SETTING", Usage;
    BadValue = "BAD_VALUE", Usage;
    SettingsConflict = "SETTINGS_CONFLICT", Usage;
    NotSupported = "NOT_SUPPORTED", Usage;
    ConfigFile = "CONFIG_FILE", Usage;
    UnknownVerb = "UNKNOWN_VERB", Usage;
    DirNotEmpty = "DIR_NOT_EMPTY", Usage;
    NotInInitialCluster = "NOT_IN_INITIAL_CLUSTER", Usage;
    AdvertiseMismatch = "ADVERTISE_MISMATCH", Usage;
    NobodyToAsk = "NOBODY_TO_ASK", Usage;
    TooManyLearners = "TOO_MANY_LEARNERS", Usage;
    DiscoveryTokenUnknown = "DISCOVERY_TOKEN_UNKNOWN", Usage;
    DiscoverySizeBad = "DISCOVERY_SIZE_BAD", Usage;
    DiscoveryNotEtcd = "DISCOVERY_NOT_ETCD", Usage;
    DiscoveryDuplicate = "DISCOVERY_DUPLICATE", Usage;
    IdentityDamaged = "IDENTITY_DAMAGED", Damaged;
    LogDamaged = "LOG_DAMAGED", Damaged;
    StateDamaged = "STATE_DAMAGED", Damaged;
    SnapshotDamaged = "SNAPSHOT_DAMAGED", Damaged;
    SnapshotMissing = "SNAPSHOT_MISSING", Missing;
    WalMissing = "WAL_MISSING", Missing;
    StateMissing = "STATE_MISSING", Missing;
    IdentityMissing = "IDENTITY_MISSING", Missing;
    DataDirBusy = "DATA_DIR_BUSY", Busy;
    PortInUse = "PORT_IN_USE", Busy;
    InternalError = "INTERNAL_ERROR", Bug;
    IoError = "IO_ERROR", Io;
    ClusterUnreachable = "CLUSTER_UNREACHABLE", NotReady;
    MembersDisagree = "MEMBERS_DISAGREE", NotReady;
    DiscoveryUnreachable = "DISCOVERY_UNREACHABLE", NotReady;
    DiscoveryIncomplete = "DISCOVERY_INCOMPLETE", NotReady;
    DiscoverySrvIncomplete = "DISCOVERY_SRV_INCOMPLETE", NotReady;
    ReplaceUnfinished = "REPLACE_UNFINISHED", NotReady;
    PermissionDenied = "PERMISSION_DENIED", Permission;
    NameMismatch = "NAME_MISMATCH", Identity;
    PeerUrlMismatch = "PEER_URL_MISMATCH", Identity;
    TokenConflict = "TOKEN_CONFLICT", Identity;
    WrongDir = "WRONG_DIR", Identity;
    WrongUser = "WRONG_USER", Identity;
    BinaryTooOld = "BINARY_TOO_OLD", Identity;
    ForeignDir = "FOREIGN_DIR", Identity;
    NotAMember = "NOT_A_MEMBER", Identity;
    ClustersDiffer = "CLUSTERS_DIFFER", Identity;
    NameInUse = "NAME_IN_USE", Identity;
    VersionConflict = "VERSION_CONFLICT", Identity;
    DiscoveryFull = "DISCOVERY_FULL", Identity;
    DiscoveryTokenSpelling = "DISCOVERY_TOKEN_SPELLING", Identity;
    DiscoveryBadEntry = "DISCOVERY_BAD_ENTRY", Identity;
    DiscoveryRejected = "DISCOVERY_REJECTED", Identity;
    DiscoverySrvAmbiguous = "DISCOVERY_SRV_AMBIGUOUS", Identity;
    DiscoverySrvMismatch = "DISCOVERY_SRV_MISMATCH", Identity;
    DuplicateInstance = "DUPLICATE_INSTANCE", Identity;
    GenesisMismatch = "GENESIS_MISMATCH", Identity;
    ClusterRuns = "CLUSTER_RUNS", Identity;
    PendingMember = "PENDING_MEMBER", Identity;
    RestoredElsewhere = "RESTORED_ELSEWHERE", Identity;
    OtherCluster = "OTHER_CLUSTER", Identity;
    DataElsewhere = "DATA_ELSEWHERE", Identity;
    LostData = "LOST_DATA", Replace;
    Quarantined = "QUARANTINED", Replace;
    Removed = "REMOVED", Replace;
    RolledBack = "ROLLED_BACK", Replace;
    ReplaceBlocked = "REPLACE_BLOCKED", Replace;
    RolledBackLocally = "ROLLED_BACK_LOCALLY", Replace;
}

/// Where each name is explained.
const DOC: &str = "docs/operations.md";

/// A refusal to start, with what an operator needs to judge and to repair it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub id: Id,
    cause: String,
    evidence: Vec<(String, String)>,
    remedy: Vec<String>,
    never: Option<String>,
}

impl Refusal {
    /// `cause` is one sentence without a full stop.
    pub fn new(id: Id, cause: impl Into<String>) -> Refusal {
        Refusal { id, cause: cause.into(), evidence: Vec::new(), remedy: Vec::new(), never: None }
    }

    /// One fact: where it was seen, and what.
    pub fn evidence(mut self, place: impl Into<String>, fact: impl Into<String>) -> Refusal {
        self.evidence.push((place.into(), fact.into()));
        self
    }

    /// One way out, ready to be carried out. The first is the best.
    pub fn remedy(mut self, step: impl Into<String>) -> Refusal {
        self.remedy.push(step.into());
        self
    }

    /// What would make it worse.
    pub fn never(mut self, what: impl Into<String>) -> Refusal {
        self.never = Some(what.into());
        self
    }

    /// An error of the file system at `path`, told apart by what helps.
    pub fn io(doing: &str, path: &Path, error: &io::Error) -> Refusal {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let user = User::of_this_process();
                let dir = path.parent().unwrap_or(path).display();
                let barrier = owner::barrier(path);
                let refusal = Refusal::new(Id::PermissionDenied, format!("may not {doing} {shown}"))
                    .evidence("here", format!("{error}, as {user}"))
                    .evidence(barrier.display().to_string(), owner::ownership(barrier));
                match user.is_of_a_service() {
                    true => refusal.remedy(format!(
                        "if it belongs to this member (a start as another user leaves such files): chown -R {}: {dir}",
                        user.name
                    )),
                    false => refusal.remedy(format!("do it as root, or as the user that owns it: ls -l {shown}")),
                }
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                let dir = path.parent().unwrap_or(path).display();
                Refusal::new(Id::PermissionDenied, format!("may not {doing} {shown}"))
                    .evidence("here", format!("{error}, as {}", User::of_this_process()))
                    .remedy(format!(
                        "if it is the service that may not: name a directory of its own below /var/lib/cairn, or permit this one: \
                         systemctl edit the unit, [Service] ReadWritePaths={dir}"
                    ))
                    .remedy(format!("else make the file system of {shown} writable again: findmnt -T {dir}"))
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Refusal::new(Id::IoError, format!("could not {doing} {shown}: no space"))
                    .evidence("here", error.to_string())
                    .remedy(format!("free space on the file system of {shown}, then start again"))
            }
            _ => Refusal::new(Id::IoError, format!("could not {doing} {shown}"))
                .evidence("here", error.to_string())
                .remedy("look at the kernel log for errors of this disk, then start again"),
        }
    }

    /// In the language of whoever wrote the settings.
    pub fn in_the_words_of(self, tongue: &Tongue) -> Refusal {
        Refusal {
            cause: tongue.mention(&self.cause),
            evidence: self.evidence.into_iter().map(|(place, fact)| (tongue.place(&place), fact)).collect(),
            remedy: self.remedy.iter().map(|step| tongue.say(step)).collect(),
            ..self
        }
    }

    /// The facts in one line.
    pub fn evidence_line(&self) -> String {
        let fact = |(place, fact): &(String, String)| format!("{}: {}", one_line(place), one_line(fact));
        self.evidence.iter().map(fact).collect::<Vec<_>>().join("  ·  ")
    }

    pub fn cause(&self) -> &str {
        &self.cause
    }

    pub fn exit(&self) -> Exit {
        self.id.exit()
    }

    /// The five parts, for people.
    pub fn text(&self) -> String {
        let mut out = format!("REFUSED {}\ncause:    {}\n", self.id.name(), one_line(&self.cause));
        let facts = self.evidence_line();
        let _ = writeln!(out, "evidence: {}", if facts.is_empty() { "-" } else { &facts });
        for (number, step) in self.remedy.iter().enumerate() {
            let lead = if number == 0 { "remedy:  " } else { "         " };
            let _ = writeln!(out, "{lead} {}. {}", number + 1, one_line(step));
        }
        if self.remedy.is_empty() {
            let _ = writeln!(out, "remedy:   see {DOC}#{}", self.anchor());
        }
        let _ = writeln!(out, "never:    {}", one_line(self.never.as_deref().unwrap_or("-")));
        out
    }

    /// The fields of the log record, for programs.
    pub fn fields(&self) -> Map<String, Value> {
        let mut evidence = Map::new();
        for (place, fact) in &self.evidence {
            // Two facts of one place: both are kept.
            match evidence.get_mut(place) {
                Some(Value::String(earlier)) => *earlier = format!("{earlier}  ·  {fact}"),
                _ => {
                    evidence.insert(place.clone(), json!(fact));
                }
            }
        }
        let mut fields = Map::new();
        fields.insert("code".into(), json!(self.id.name()));
        fields.insert("exit".into(), json!(self.exit() as u8));
        fields.insert("cause".into(), json!(self.cause));
        fields.insert("evidence".into(), Value::Object(evidence));
        fields.insert("remedy".into(), json!(self.remedy));
        if let Some(never) = &self.never {
            fields.insert("never".into(), json!(never));
        }
        fields.insert("doc".into(), json!(format!("{DOC}#{}", self.anchor())));
        fields
    }

    fn anchor(&self) -> String {
        self.id.name().to_lowercase()
    }
}

/// An error with everything that led to it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// A part of the message is a line: what came from outside may hold line ends.
fn one_line(text: &str) -> String {
    if !text.contains(|c: char| c.is_control()) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_five_parts_whatever_is_in_them() {
        let refusal = Refusal::new(Id::NameMismatch, "the directory belongs to n1\nand not to n2")
            .evidence("stored", "n1")
            .evidence("given", "n2")
            .remedy("start with --name=n1")
            .remedy("or use another directory");
        assert_eq!(
            refusal.text(),
            "REFUSED NAME_MISMATCH\ncause:    the directory belongs to n1 and not to n2\nevidence: stored: n1  ·  given: n2\n\
             remedy:   1. start with --name=n1\n          2. or use another directory\nnever:    -\n"
        );
        let fields = refusal.fields();
        assert_eq!(fields["exit"], 78);
        assert_eq!(fields["evidence"]["given"], "n2");
    }

    /// One section per name in the operators' manual, with its exit code, and no section for a name that is gone.
    #[test]
    fn every_name_is_explained_in_the_manual() {
        let manual = include_str!("../../docs/operations.md");
        let sections: Vec<&str> = manual.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        for id in Id::ALL {
            assert!(sections.contains(&id.name()), "{} has no section in docs/operations.md", id.name());
            let section = manual.split(&format!("### {}\n", id.name())).nth(1).unwrap_or_default();
            let section = section.split("\n#").next().unwrap_or_default();
            for part in ["Cause", "Evidence", "Remedy", "Never"] {
                assert!(section.contains(&format!("*{part}.*")), "{}: {part} is missing", id.name());
            }
            let exit = id.exit() as u8;
            assert!(section.contains(&format!("Exit {exit}.")), "{}: exit {exit} is not named", id.name());
        }
        for section in sections {
            assert!(Id::ALL.iter().any(|id| id.name() == section), "{section} is explained but unknown");
        }
    }
}
