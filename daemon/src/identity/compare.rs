//! The stored identity against the settings and the log: pure, called before any socket opens.
//!
//! What was not asked for contradicts nothing: a restart with only `--data-dir` is the stored member. Where something was asked for and
//! differs, the directory is right and the start is refused, because ids and history belong to the directory.

use types::{ClusterId, MemberId};

use super::{Identity, State, Unique, host, remedy};
use crate::{
    config::{Membership, urls},
    refusal::{Id, Refusal},
};

/// What the log says about whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOwner {
    pub member: MemberId,
    pub cluster: ClusterId,
    /// The directory it was made with. None: by an earlier version.
    pub dir: Option<Unique>,
}

/// What differs and may: for the log, and what the operator means to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Setting, stored, given.
    pub free: Vec<(&'static str, String, String)>,
    pub changes: Changes,
}

/// Differences that the operator has confirmed. They go through the cluster's log first and into the identity file then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub name: Option<String>,
    /// Sorted.
    pub peer_urls: Option<Vec<String>>,
}

/// Refuses on contradiction; on agreement tells the free differences worth a line, old and new.
pub fn compare(
    identity: &Identity,
    asked: &Membership,
    log: LogOwner,
    version: &str,
    data_dir: &str,
) -> Result<Differences, Refusal> {
    usable_by(identity, version)?;
    match &identity.state {
        State::Removed { .. } => return Err(removed(identity, data_dir)),
        State::Quarantined { reason, evidence } => {
            return Err(quarantined(identity, reason, evidence, data_dir));
        }
        _ => {}
    }
    let other_dir = log.dir.filter(|dir| *dir != identity.dir_uuid);
    if let Some(dir) =
        other_dir.filter(|_| (log.member, log.cluster) == (identity.member_id, identity.cluster_id))
    {
        return Err(Refusal::new(
            Id::WrongDir,
            "the write-ahead log and the identity file are of two directories of this member",
        )
        .evidence("identity file", format!("directory {}", identity.dir_uuid))
        .evidence("log", format!("directory {dir}"))
        .remedy(
            "put the log and the data directory that belong together back: check --wal-dir and the mounts",
        )
        .never("do not delete either of them: one of the two is this member's memory"));
    }
    if (log.member, log.cluster) != (identity.member_id, identity.cluster_id) {
        return Err(Refusal::new(
            Id::WrongDir,
            "the write-ahead log and the identity file belong to different members",
        )
        .evidence(
            "identity file",
            format!("member {} of cluster {}", identity.member_id, identity.cluster_id),
        )
        .evidence("log", format!("member {} of cluster {}", log.member, log.cluster))
        .remedy(
            "put the log and the data directory of one member together again: check --wal-dir and the mounts",
        )
        .never("do not delete either of them: one of the two is this member's memory"));
    }
    let changes = same_member(identity, asked, data_dir)?;
    let given_cluster = asked.initial_cluster.value.canonical();
    let mut free = Vec::new();
    if asked.initial_cluster.given && given_cluster != identity.origin.initial_cluster {
        free.push(("initial-cluster", identity.origin.initial_cluster.clone(), given_cluster));
    }
    Ok(Differences { free, changes })
}

fn usable_by(identity: &Identity, version: &str) -> Result<(), Refusal> {
    match (numbers(&identity.min_version), numbers(version)) {
        (Some(least), Some(ours)) if ours >= least => Ok(()),
        _ => Err(Refusal::new(Id::BinaryTooOld, "this version of cairn may not use this data directory")
            .evidence("data directory", format!("needs at least {}", identity.min_version))
            .evidence("this binary", version)
            .remedy(format!("start cairn {} or newer", identity.min_version))),
    }
}

/// "1.2.3" as numbers; a suffix after a dash or plus is not compared.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let mut parts = plain.split('.').map(|part| part.parse().ok());
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

fn same_member(identity: &Identity, asked: &Membership, data_dir: &str) -> Result<Changes, Refusal> {
    let name = asked.name.value.as_str();
    let other_name = asked.name.given && name != identity.name;
    let mut wanted = urls::texts(&asked.advertise_peer_urls.value);
    let mut stored = identity.peer_urls.clone();
    wanted.sort();
    stored.sort();
    let other_urls = asked.advertise_peer_urls.given && wanted != stored;
    let other_token = asked.token.given && host::sha256_hex(&asked.token.value) != identity.token_sha256;
    // The stored member stands in the list as somebody else: this is a neighbour's directory, not a renamed one.
    let neighbour = other_name
        && asked.initial_cluster.given
        && asked.initial_cluster.value.find(&identity.name).is_some();

    let shown_urls = stored.join(",");
    let keep =
        format!("--name={} --initial-advertise-peer-urls={shown_urls} --data-dir={data_dir}", identity.name);
    let accept = asked.accept;
    let both_meant = accept.name && accept.peer_urls;
    if (neighbour && !accept.name) || (other_name && other_urls && !both_meant) {
        return Err(Refusal::new(
            Id::WrongDir,
            format!("this data directory belongs to member {}, not to {name}", identity.name),
        )
        .evidence(
            "stored",
            format!("name {}, peer URLs {shown_urls}, member {}", identity.name, identity.member_id),
        )
        .evidence("given", format!("name {name}, peer URLs {}", asked.own_urls_shown()))
        .remedy(format!("start with the directory of {name}: --data-dir=<its directory>"))
        .remedy(format!("or be the stored member: {keep}"))
        .never("do not start a second copy of a member that runs elsewhere"));
    }
    let held = identity.members.iter().find(|other| other.id != identity.member_id && other.name == name);
    if let (true, Some(other)) = (other_name && accept.name, held) {
        return Err(name_in_use(
            name,
            &format!("{} {}", other.id, other.peer_urls.join(",")),
            "identity file",
        )
        .remedy(format!("keep the name: --name={}", identity.name)));
    }
    if other_name && !accept.name {
        return Err(Refusal::new(
            Id::NameMismatch,
            format!("this data directory belongs to {}, but --name is {name}", identity.name),
        )
        .evidence("stored", format!("name {} ({data_dir})", identity.name))
        .evidence("given", format!("name {name}"))
        .remedy(format!("keep the name: --name={}", identity.name))
        .remedy(format!("or, if {name} is another member: --data-dir=<the directory of {name}>"))
        .remedy(format!("or, to call this member {name} from now on: --accept-identity-change=name")));
    }
    if other_urls && !accept.peer_urls {
        return Err(Refusal::new(
            Id::PeerUrlMismatch,
            "this member's peer URLs are others than the cluster knows",
        )
        .evidence("stored", shown_urls.clone())
        .evidence("given", asked.own_urls_shown())
        .remedy(format!("keep the URLs: --initial-advertise-peer-urls={shown_urls}"))
        .remedy(format!(
            "or move the member: {} member update {} --peer-urls={}",
            remedy::control(identity),
            identity.member_id,
            wanted.join(",")
        ))
        .remedy("or have it moved once it is up: --accept-identity-change=peer-urls"));
    }
    if other_token {
        return Err(Refusal::new(
            Id::TokenConflict,
            "this data directory belongs to a cluster with another token",
        )
        .evidence("stored", format!("token {}", identity.token))
        .evidence("given", format!("token {}", host::redacted(&asked.token.value)))
        .remedy(format!("keep the token, or leave it out: --initial-cluster-token={}", identity.token))
        .remedy("or, for a new cluster: --data-dir=<an empty directory>")
        .never("do not delete this directory to get past this message: it is a member's memory"));
    }
    Ok(Changes { name: other_name.then(|| name.to_owned()), peer_urls: other_urls.then_some(wanted) })
}

/// Two members of one name cannot be told apart in any list.
pub fn name_in_use(name: &str, holder: &str, place: &str) -> Refusal {
    Refusal::new(Id::NameInUse, format!("another member of the cluster is called {name}"))
        .evidence(place, holder)
        .evidence("--name", name)
}

/// The same words when the member ends and whenever its directory is started again.
pub fn removed(identity: &Identity, data_dir: &str) -> Refusal {
    let (entry, through) = match &identity.state {
        State::Removed { index, term, asked_through } => {
            (format!("removed by log entry {index} of term {term}"), asked_through.as_deref())
        }
        _ => ("not recorded".to_owned(), None),
    };
    let through = through.map(|member| format!(", as asked of member {member}")).unwrap_or_default();
    Refusal::new(Id::Removed, format!("member {} was removed from its cluster{through}", identity.member_id))
        .evidence("stored", entry)
        .remedy(format!("move the directory aside: mv {data_dir} {data_dir}.removed"))
        .remedy(format!("then add the member anew: {}", remedy::add(identity)))
        .never("do not start this directory with another token or name: its cluster has decided")
}

fn quarantined(identity: &Identity, reason: &str, evidence: &str, data_dir: &str) -> Refusal {
    Refusal::new(Id::Quarantined, format!("member {} is quarantined: {reason}", identity.member_id))
        .evidence("stored", evidence)
        .remedy(remedy::replace(identity, data_dir))
        .never("do not edit the identity file: the member has forgotten promises it made")
}

/// After the log is read: it must reach what had been applied at an orderly stop. Only the index is compared: what is applied is
/// committed, and what is committed is never cut from a log.
pub fn check_clean_stop(
    identity: &Identity,
    last_index: u64,
    log_dir: &str,
    data_dir: &str,
) -> Result<(), Refusal> {
    let Some(stop) = identity.clean_stop.as_ref().filter(|stop| last_index < stop.last_index) else {
        return Ok(());
    };
    Err(Refusal::new(
        Id::RolledBackLocally,
        "the write-ahead log ends before the point of the last orderly stop",
    )
    .evidence(
        "identity file",
        format!("stopped with index {} applied, in term {}", stop.last_index, stop.last_term),
    )
    .evidence("log", format!("ends at index {last_index} ({log_dir})"))
    .remedy("if a newer copy of the log exists, put it back and start again")
    .remedy(remedy::replace(identity, data_dir))
    .never(
        "do not start this directory with an edited identity file: it would break promises the member made",
    ))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        config::{self, Surroundings},
        identity::record::tests::sample,
    };

    fn asked(flags: &[&str]) -> Membership {
        let flags = crate::cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        config::load(&surroundings).unwrap().0.membership
    }

    fn outcome(identity: &Identity, flags: &[&str]) -> Result<usize, Id> {
        let log = LogOwner { member: identity.member_id, cluster: identity.cluster_id, dir: None };
        compare(identity, &asked(flags), log, "0.1.0", "/d")
            .map(|differences| differences.free.len())
            .map_err(|refusal| refusal.id)
    }

    const URL: &str = "--initial-advertise-peer-urls=http://127.0.0.1:1";
    const OTHER_URL: &str = "--initial-advertise-peer-urls=http://127.0.0.1:2";

    #[test]
    fn a_restart_is_compared_with_what_was_asked_for_and_nothing_else() {
        let identity = sample();
        for (flags, expected) in [
            (&["--data-dir=/d"][..], Ok(0)),
            (&["--name=n1", URL], Ok(0)),
            (
                &["--name=n1", "--listen-peer-urls=http://127.0.0.1:9", "--initial-cluster-state=existing"],
                Ok(0),
            ),
            (&["--name=n1", "--initial-cluster-token=etcd-cluster"], Ok(0)),
            (&["--name=n1", "--initial-cluster=n1=http://127.0.0.1:1,n4=http://h:1"], Ok(1)),
            (&["--name=n2"], Err(Id::NameMismatch)),
            (&["--name=n1", OTHER_URL], Err(Id::PeerUrlMismatch)),
            (&["--name=n1", "--initial-cluster-token=other"], Err(Id::TokenConflict)),
            (&["--name=n2", OTHER_URL], Err(Id::WrongDir)),
            (&["--name=n2", "--initial-cluster=n1=http://127.0.0.1:1,n2=http://h:1"], Err(Id::WrongDir)),
        ] {
            assert_eq!(outcome(&identity, flags), expected, "{flags:?}");
        }
    }

    #[test]
    fn a_log_of_another_member_is_refused() {
        let identity = sample();
        let refused = |log| compare(&identity, &asked(&[]), log, "0.1.0", "/d").unwrap_err().id;
        let own = LogOwner { member: identity.member_id, cluster: identity.cluster_id, dir: None };
        assert_eq!(refused(LogOwner { member: MemberId(1), ..own }), Id::WrongDir);
        assert_eq!(refused(LogOwner { dir: Some(Unique::for_test(99)), ..own }), Id::WrongDir);
    }

    #[test]
    fn what_the_operator_means_to_change_may_change() {
        let mut identity = sample();
        let own = LogOwner {
            member: identity.member_id,
            cluster: identity.cluster_id,
            dir: Some(identity.dir_uuid),
        };
        identity.members = vec![super::super::KnownMember {
            id: MemberId(2),
            name: "n2".into(),
            peer_urls: vec!["http://h:1".into()],
            client_urls: vec![],
            dir_uuid: None,
            is_learner: false,
        }];
        let changes = |flags: &[&str]| {
            compare(&identity, &asked(flags), own, "0.1.0", "/d")
                .map(|differences| differences.changes)
                .map_err(|refusal| refusal.id)
        };
        let (name, urls) = ("--accept-identity-change=name", "--accept-identity-change=peer-urls");
        let renamed = Changes { name: Some("n9".into()), peer_urls: None };
        let moved = Changes { name: None, peer_urls: Some(vec!["http://127.0.0.1:2".into()]) };
        assert_eq!(changes(&["--name=n9", name]), Ok(renamed));
        assert_eq!(changes(&["--name=n1", OTHER_URL, urls]), Ok(moved));
        assert_eq!(changes(&["--name=n9", urls]), Err(Id::NameMismatch), "another change was meant");
        assert_eq!(changes(&["--name=n9", OTHER_URL, name]), Err(Id::WrongDir), "only half of it was meant");
        assert_eq!(changes(&["--name=n2", name]), Err(Id::NameInUse));
        assert_eq!(
            changes(&["--name=n1", name, "--accept-identity-change=name,peer-urls"]),
            Ok(Changes::default())
        );
    }

    #[test]
    fn a_member_that_may_not_come_back_does_not() {
        let mut identity = sample();
        identity.state = State::Removed { index: 9, term: 2, asked_through: None };
        assert_eq!(outcome(&identity, &[]), Err(Id::Removed));
        identity.state = State::Quarantined { reason: "r".into(), evidence: "e".into() };
        assert_eq!(outcome(&identity, &[]), Err(Id::Quarantined));
        identity.state = State::Born;
        identity.min_version = "99.0.0".into();
        assert_eq!(outcome(&identity, &[]), Err(Id::BinaryTooOld));
        identity.min_version = "rubbish".into();
        assert_eq!(outcome(&identity, &[]), Err(Id::BinaryTooOld), "what cannot be read is not agreed to");
    }

    #[test]
    fn a_log_that_ends_before_the_orderly_stop_was_rolled_back() {
        let mut identity = sample();
        assert!(check_clean_stop(&identity, 0, "/d/wal", "/d").is_ok(), "a crash records nothing");
        identity.clean_stop =
            Some(super::super::CleanStop { last_index: 10, last_term: 3, hard_state_term: 3, commit: 10 });
        assert!(check_clean_stop(&identity, 10, "/d/wal", "/d").is_ok());
        assert_eq!(check_clean_stop(&identity, 9, "/d/wal", "/d").unwrap_err().id, Id::RolledBackLocally);
    }
}
