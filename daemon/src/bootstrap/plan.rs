//! What a start will do: facts and settings in, plan or refusal out. Pure, so that every case stands in one table below.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    facts::{DiskFacts, IdentityFact, Neighbour},
    genesis::Genesis,
    join::{Joiner, Place},
};
use crate::{
    config::{
        InitialState, Membership, Note,
        cluster::{InitialCluster, InitialMember},
        suggest,
        urls::{self, Url},
    },
    discovery::{self, Registering},
    identity::{Identity, KnownMember, State, Unique, compare, remedy},
    refusal::{Id, Refusal},
};
use types::{ClusterId, MemberId};

/// Addresses of host names, for comparing URLs that are spelled differently.
pub type Addresses = BTreeMap<String, Vec<IpAddr>>;

#[derive(Debug, PartialEq, Eq)]
pub enum BootPlan {
    /// Found the cluster: no data yet, or data that nobody has seen.
    NewStatic(NewMember),
    /// The stored member again.
    Restart(Box<Returning>),
    /// Ask a running cluster for the place that it has prepared.
    JoinExisting(Joiner),
    /// Find the first members through a service or DNS, then found the cluster with them.
    Discover(Discoverer),
}

/// A member with data, and what its operator means to change about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returning {
    pub identity: Identity,
    pub changes: compare::Changes,
}

/// A member that has to find those it founds its cluster with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discoverer {
    pub own: discovery::Own,
    pub dir_uuid: Option<Unique>,
    /// What an earlier start of this directory was about to register, or has.
    pub registered: Option<Registering>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    pub member: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub cluster: ClusterId,
    pub beginning: Beginning,
    /// The mark of a directory that an earlier start made and nobody has seen.
    pub dir_uuid: Option<Unique>,
    pub origin: NewOrigin,
}

/// How the settings of a new member came about, as its identity file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrigin {
    pub method: &'static str,
    /// Whole; it enters the ids.
    pub token: String,
    pub initial_cluster: String,
    pub discovery_url: Option<String>,
}

/// What a new member's log begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The cluster's first entries.
    Founds(Genesis),
    /// Nothing: the cluster sends everything. These are its members, who may send it.
    Joins(Vec<KnownMember>),
}

impl NewMember {
    /// The joiner in its place.
    pub fn joined(joiner: Joiner, place: Place, asked: &Membership) -> NewMember {
        NewMember {
            member: place.member,
            name: joiner.own.name.as_str().to_owned(),
            peer_urls: urls::texts(&joiner.own.peer_urls),
            cluster: place.cluster,
            beginning: Beginning::Joins(place.members),
            dir_uuid: joiner.dir_uuid,
            origin: NewOrigin {
                method: "join",
                token: asked.token.value.clone(),
                initial_cluster: asked.initial_cluster.value.canonical(),
                discovery_url: None,
            },
        }
    }

    /// One of the first members, `own`, of a cluster that was listed or found.
    pub fn founding(
        own: &str,
        initial: &InitialCluster,
        origin: NewOrigin,
        dir_uuid: Option<Unique>,
    ) -> Result<NewMember, Refusal> {
        let genesis = Genesis::new(initial, &origin.token).map_err(|(left, right)| {
            Refusal::new(Id::AdvertiseMismatch, "two members of initial-cluster have the same id")
                .evidence("--initial-cluster", format!("{left} and {right}"))
                .remedy("give them peer URLs that differ")
        })?;
        let first = genesis.find(own).expect("the own entry is one of the members");
        Ok(NewMember {
            member: first.id,
            name: first.name.clone(),
            peer_urls: first.peer_urls.clone(),
            cluster: genesis.cluster,
            dir_uuid,
            beginning: Beginning::Founds(genesis),
            origin,
        })
    }
}

pub fn plan(
    facts: &DiskFacts,
    asked: &Membership,
    addresses: &Addresses,
    version: &str,
    notes: &mut Vec<Note>,
) -> Result<BootPlan, Refusal> {
    let shown = facts.data_dir.display().to_string();
    if !facts.strangers.is_empty() {
        let fields = vec![("data-dir", shown.clone()), ("entries", facts.strangers.join(", "))];
        notes.push(Note { message: "unknown entries in the data directory are left alone", fields });
    }
    if let Some(kind) = facts.fleeting {
        let fields = vec![("data-dir", shown.clone()), ("file system", kind.to_owned())];
        notes.push(Note {
            message: "the data directory is on a file system that does not outlive this machine's or container's next start: \
                      a member that loses its data must be replaced",
            fields,
        });
    }
    match &facts.identity {
        IdentityFact::Damaged(why) => Err(identity_damaged(facts, why)),
        IdentityFact::None => {
            empty_of_data(facts)?;
            first_start(facts, asked, addresses, None, notes)
        }
        IdentityFact::Present(identity) if matches!(identity.state, State::Unborn | State::Registering) => {
            first_start(facts, asked, addresses, Some(identity), notes)
        }
        IdentityFact::Present(identity) => {
            let owner = whole_directory(facts, identity)?;
            let differences = compare::compare(identity, asked, owner, version, &shown)?;
            for (setting, old, new) in differences.free {
                let fields = vec![("setting", setting.to_owned()), ("stored", old), ("given", new)];
                notes.push(Note { message: "setting differs from the first start and is not used", fields });
            }
            let identity = (**identity).clone();
            Ok(BootPlan::Restart(Box::new(Returning { identity, changes: differences.changes })))
        }
    }
}

fn identity_damaged(facts: &DiskFacts, why: &str) -> Refusal {
    let file = facts.data_dir.join("member").join("identity.json");
    Refusal::new(Id::IdentityDamaged, "the identity file cannot be believed")
        .evidence(file.display().to_string(), why)
        .remedy(format!("restore {} from a backup of this very directory, if there is one", file.display()))
        .remedy(replace_by_previous(facts, "else replace this member: cairnctl member remove <its id>, then member add, with an empty data directory"))
        .never("do not copy an identity file from another member")
}

/// The version before still knows whom the member is and who the others are.
fn replace_by_previous(facts: &DiskFacts, unknown: &str) -> String {
    let dir = facts.data_dir.display().to_string();
    facts.previous.as_ref().map_or(unknown.to_owned(), |identity| remedy::replace(identity, &dir))
}

/// Without identity there must be nothing else that counts.
fn empty_of_data(facts: &DiskFacts) -> Result<(), Refusal> {
    let dir = facts.data_dir.display().to_string();
    if facts.etcd_database {
        return Err(Refusal::new(Id::ForeignDir, "this is the data directory of an etcd member")
            .evidence(dir.clone(), "has member/snap/db and no identity of cairn")
            .remedy("give cairn a directory of its own: --data-dir=<an empty directory>")
            .never("do not delete the directory before its data are safe elsewhere"));
    }
    // A log in a dedicated directory, made by a start that died before the member counted, has its own identity to say so.
    if matches!(&facts.wal_identity, IdentityFact::Present(identity) if identity.state == State::Unborn) {
        return Ok(());
    }
    let log = facts.log.first_index.is_some();
    if log || facts.state_present {
        let what = match (log, facts.state_present) {
            (true, true) => "a log and a state store",
            (true, false) => "a log",
            _ => "a state store",
        };
        let place = if facts.state_present { dir.clone() } else { facts.log.dir.display().to_string() };
        let mut refusal =
            Refusal::new(Id::IdentityMissing, "there are data, but no identity file says whose")
                .evidence(place.clone(), what)
                .remedy(format!("restore {dir}/member/identity.json from a backup of this very directory"));
        // A log with a directory of its own, whose data directory is gone.
        let replace = match &facts.wal_identity {
            IdentityFact::Present(identity) if !facts.state_present && !identity.members.is_empty() => {
                let whose = format!("of member {} ({})", identity.member_id, identity.name);
                refusal = refusal.evidence("the log is", whose);
                remedy::replace(identity, &place)
            }
            _ => replace_by_previous(
                facts,
                "or replace this member: move the directory aside and add the member anew",
            ),
        };
        return Err(refusal
            .remedy(replace)
            .never("do not start it as a new member over this log: its promises would be forgotten"));
    }
    Ok(())
}

/// Beside an identity that counts there must be its log, and its state or a log that begins at the beginning.
fn whole_directory(facts: &DiskFacts, identity: &Identity) -> Result<compare::LogOwner, Refusal> {
    let dir = facts.data_dir.display().to_string();
    let log_dir = facts.log.dir.display().to_string();
    let member = format!("member {} ({}), boot #{}", identity.member_id, identity.name, identity.boot_seq);
    let Some(owner) = &facts.log.owner else {
        return Err(Refusal::new(Id::WalMissing, "the write-ahead log of this member is missing")
            .evidence("identity file", format!("{member} in {dir}"))
            .evidence("log", format!("no segment in {log_dir}"))
            .remedy(format!("if it is on another disk: mount it, or name it with --wal-dir (looked in {log_dir})"))
            .remedy(remedy::replace(identity, &dir))
            .never("do not delete the identity file to start anew: the cluster still counts on this member's promises"));
    };
    let owner = match owner {
        Ok(owner) => *owner,
        Err(why) => {
            return Err(Refusal::new(
                Id::LogDamaged,
                "the first segment of the write-ahead log cannot be read",
            )
            .evidence("log", why.clone())
            .remedy("restore the segment from a backup of this very directory")
            .remedy(remedy::replace(identity, &dir)));
        }
    };
    if !facts.state_present && facts.log.first_index != Some(0) {
        let begins = facts.log.first_index.unwrap_or_default();
        return Err(state_missing(identity, &dir, &log_dir, begins));
    }
    if let IdentityFact::Present(copy) = &facts.wal_identity
        && copy.dir_uuid != identity.dir_uuid
    {
        return Err(Refusal::new(Id::WrongDir, "wal-dir belongs to another data directory")
            .evidence("data directory", format!("{member}, directory {}", identity.dir_uuid))
            .evidence(
                log_dir,
                format!("member {} ({}), directory {}", copy.member_id, copy.name, copy.dir_uuid),
            )
            .remedy("put the two directories of one member together again: check --wal-dir and the mounts"));
    }
    Ok(owner)
}

/// The state store is gone, and the log does not say everything that it was made from.
pub fn state_missing(identity: &Identity, dir: &str, log_dir: &str, begins: u64) -> Refusal {
    Refusal::new(
        Id::StateMissing,
        "the state store is missing, and the log no longer reaches back to the first entry",
    )
    .evidence("state", format!("nothing in {dir}/member/state"))
    .evidence("log", format!("begins at index {begins} in {log_dir}"))
    .remedy(format!("if it is elsewhere, put it back at {dir}/member/state"))
    .remedy(remedy::replace(identity, dir))
}

fn first_start(
    facts: &DiskFacts,
    asked: &Membership,
    addresses: &Addresses,
    earlier: Option<&Identity>,
    notes: &mut Vec<Note>,
) -> Result<BootPlan, Refusal> {
    let dir_uuid = earlier.map(|identity| identity.dir_uuid);
    if let Some(way) = &asked.discovery {
        let own = discovery::Own {
            name: asked.name.value.clone(),
            name_given: asked.name.given,
            peer_urls: asked.advertise_peer_urls.value.clone(),
        };
        if let Some(registering) = discovery::registration(way, &own) {
            expected_data(
                facts,
                registering.member,
                asked.name.value.as_str(),
                &urls::texts(&own.peer_urls),
            )?;
        }
        let registered = earlier.filter(|identity| identity.state == State::Registering).map(registered);
        return Ok(BootPlan::Discover(Discoverer { own, dir_uuid, registered }));
    }
    let own = own_entry(asked, addresses, notes)?;
    if asked.initial_state == InitialState::Existing {
        return joiner(asked, own, dir_uuid).map(BootPlan::JoinExisting);
    }
    let initial = &asked.initial_cluster.value;
    let origin = NewOrigin {
        method: "static",
        token: asked.token.value.clone(),
        initial_cluster: initial.canonical(),
        discovery_url: None,
    };
    let new = NewMember::founding(own.name.as_str(), initial, origin, dir_uuid)?;
    expected_data(facts, new.member, &new.name, &new.peer_urls)?;
    let others_reach_it = asked.advertise_peer_urls.given
        && asked.advertise_peer_urls.value.iter().any(|url| !url.is_of_this_host_alone());
    if !asked.initial_cluster.given && others_reach_it {
        notes.push(Note {
            message: "initial-cluster is not set: this start founds a cluster of this member alone; \
                      one of several members needs it before its first start, equal on all of them",
            fields: vec![("initial-cluster", initial.canonical())],
        });
    }
    Ok(BootPlan::NewStatic(new))
}

/// What a start that was cut short had told, or was about to tell, the discovery service.
pub fn registered(identity: &Identity) -> Registering {
    Registering {
        token: identity.token.clone(),
        token_sha256: identity.token_sha256.clone(),
        member: identity.member_id,
        value: identity.origin.initial_cluster.clone(),
    }
}

/// An empty directory where the member's data may be next door: a data-dir that was forgotten, or that followed a new name.
fn expected_data(
    facts: &DiskFacts,
    member: MemberId,
    name: &str,
    peer_urls: &[String],
) -> Result<(), Refusal> {
    let same = |neighbour: &&Neighbour| {
        let identity = &neighbour.identity;
        identity.member_id == member
            || identity.name == name
            || identity.peer_urls.iter().any(|url| peer_urls.contains(url))
    };
    let Some(neighbour) = facts.neighbours.iter().find(same) else { return Ok(()) };
    let (dir, identity) = (neighbour.dir.display(), &neighbour.identity);
    Err(Refusal::new(
        Id::DataElsewhere,
        format!(
            "this start would found a new cluster, but the data of member {} are in {dir}",
            identity.name
        ),
    )
    .evidence(
        dir.to_string(),
        format!(
            "member {} ({}) of cluster {}, {}, boot #{}",
            identity.member_id,
            identity.name,
            identity.cluster_id,
            identity.peer_urls.join(","),
            identity.boot_seq
        ),
    )
    .evidence(facts.data_dir.display().to_string(), "holds no member")
    .evidence("to be founded", format!("member {member} ({name}), {}", peer_urls.join(",")))
    .remedy(format!("if that is this member: --data-dir={dir} --name={}", identity.name))
    .remedy("if a new, empty cluster is meant: --allow-empty-data-dir")
    .never("do not delete the other directory to get past this message: it may be all there is of the data"))
}

/// Ids and everything else come from the cluster, so there must be somebody to ask.
fn joiner(asked: &Membership, own: &InitialMember, dir_uuid: Option<Unique>) -> Result<Joiner, Refusal> {
    let cluster = &asked.initial_cluster.value;
    let others: Vec<InitialMember> =
        cluster.members().iter().filter(|member| member.name != own.name).cloned().collect();
    if others.is_empty() {
        let example = format!("<a running member>=<its peer URL>,{}", cluster.canonical());
        return Err(Refusal::new(
            Id::NobodyToAsk,
            "a member that joins must know somebody who is in the cluster already",
        )
        .evidence("--initial-cluster-state", "existing")
        .evidence("--initial-cluster", cluster.canonical())
        .remedy(format!("--initial-cluster={example}"))
        .remedy(format!("if {} has been a member before: --data-dir=<its directory>", own.name))
        .remedy("or, to found a cluster: --initial-cluster-state=new"));
    }
    Ok(Joiner { own: own.clone(), others, max_learners: asked.max_learners, dir_uuid })
}

/// The entry of initial-cluster that is this member, its URLs equal to the announced ones.
fn own_entry<'a>(
    asked: &'a Membership,
    addresses: &Addresses,
    notes: &mut Vec<Note>,
) -> Result<&'a InitialMember, Refusal> {
    let cluster = &asked.initial_cluster.value;
    let name = asked.name.value.as_str();
    let announced = &asked.advertise_peer_urls.value;
    let Some(own) = cluster.find(name) else {
        let names: Vec<&str> = cluster.members().iter().map(|member| member.name.as_str()).collect();
        let mine = cluster
            .members()
            .iter()
            .find(|member| announced.iter().any(|url| member.peer_urls.contains(url)));
        let mut refusal =
            Refusal::new(Id::NotInInitialCluster, format!("initial-cluster has no member called {name}"))
                .evidence("--name", name)
                .evidence("--initial-cluster", format!("names {}", names.join(", ")));
        if let Some(mine) = mine {
            refusal = refusal
                .evidence("this member's URL", format!("stands there as {}", mine.name))
                .remedy(format!("if this is {}: --name={}", mine.name, mine.name));
        } else if let Some(near) = suggest::nearest(name, names.into_iter()) {
            refusal = refusal.remedy(format!("if you meant it: --name={near}"));
        }
        return Err(refusal.remedy(format!(
            "or add it: --initial-cluster={},{name}={}",
            cluster.canonical(),
            urls::shown(announced)
        )));
    };
    // Not announced explicitly: the entry says where this member is, if it can only be one member.
    if !asked.advertise_peer_urls.given {
        return if own.peer_urls.len() == 1 { Ok(own) } else { Err(several_places(own)) };
    }
    let mut announced = announced.clone();
    announced.sort();
    if announced == own.peer_urls {
        return Ok(own);
    }
    let same_place = same_places(&announced, &own.peer_urls, addresses);
    if same_place {
        notes.push(Note {
            message: "initial-cluster and initial-advertise-peer-urls spell one address differently: ids hash the spelling of initial-cluster",
            fields: vec![("initial-cluster", urls::shown(&own.peer_urls)), ("initial-advertise-peer-urls", urls::shown(&announced))],
        });
        return Ok(own);
    }
    let mut refusal = Refusal::new(
        Id::AdvertiseMismatch,
        format!("initial-cluster and initial-advertise-peer-urls disagree about {name}'s peer URLs"),
    )
    .evidence("--initial-cluster", format!("{name}={}", urls::shown(&own.peer_urls)))
    .evidence("--initial-advertise-peer-urls", urls::shown(&announced));
    for (host, list) in addresses {
        let list: Vec<String> = list.iter().map(IpAddr::to_string).collect();
        refusal = refusal.evidence(
            host.clone(),
            if list.is_empty() { "does not resolve".into() } else { list.join(", ") },
        );
    }
    // The settings of another member, with the address of this one.
    let mine = cluster.members().iter().find(|other| other.name != own.name && other.peer_urls == announced);
    if let Some(mine) = mine {
        refusal = refusal
            .evidence("this member's URL", format!("stands there as {}", mine.name))
            .remedy(format!("if this is {}: --name={}", mine.name, mine.name));
    } else if announced.iter().all(|url| own.peer_urls.contains(url)) {
        // Whoever took all of them would be two members at once.
        return Err(refusal
            .evidence("perhaps", format!("two members of initial-cluster are called {name}"))
            .remedy(own_name(name))
            .remedy(at_all_of_them(own)));
    }
    Err(refusal
        .remedy(format!("--initial-advertise-peer-urls={}", urls::texts(&own.peer_urls).join(",")))
        .remedy("or correct this member's entry in --initial-cluster, on every member alike"))
}

/// One member at several places, or several of one name: the list does not tell, and each of several would found a cluster of its own.
fn several_places(own: &InitialMember) -> Refusal {
    let (name, given) = (&own.name, urls::texts(&own.peer_urls).join(","));
    Refusal::new(Id::AdvertiseMismatch, format!("initial-cluster has several peer URLs for {name}"))
        .evidence("--initial-cluster", format!("{name} at {given}"))
        .evidence("--initial-advertise-peer-urls", "not given")
        .remedy(own_name(name.as_str()))
        .remedy(at_all_of_them(own))
}

fn at_all_of_them(own: &InitialMember) -> String {
    let given = urls::texts(&own.peer_urls).join(",");
    format!("if this one member is at all of them: --initial-advertise-peer-urls={given}")
}

fn own_name(name: &str) -> String {
    format!(
        "if these are several members: give every member a name of its own instead of {name}, in --name and in --initial-cluster, on \
         every member alike"
    )
}

/// Whether both lists name the same schemes, addresses and ports. A name that does not resolve equals only itself.
pub fn same_places(left: &[Url], right: &[Url], addresses: &Addresses) -> bool {
    let place = |url: &Url| {
        let ip = url.ip().or_else(|| addresses.get(&url.host).and_then(|list| list.iter().min().copied()));
        (url.scheme, ip.map_or_else(|| url.host.clone(), |ip| ip.to_string()), url.port)
    };
    let sorted = |urls: &[Url]| {
        let mut places: Vec<_> = urls.iter().map(place).collect();
        places.sort();
        places
    };
    sorted(left) == sorted(right)
}

/// URLs whose hosts must be resolved before [`plan`] can compare them: only when texts differ on a first start.
pub fn to_resolve(asked: &Membership) -> Vec<&Url> {
    let Some(own) = asked.initial_cluster.value.find(asked.name.value.as_str()) else { return Vec::new() };
    let announced = &asked.advertise_peer_urls.value;
    let equal =
        announced.len() == own.peer_urls.len() && announced.iter().all(|url| own.peer_urls.contains(url));
    if equal || !asked.advertise_peer_urls.given {
        Vec::new()
    } else {
        own.peer_urls.iter().chain(announced).collect()
    }
}

#[cfg(test)]
mod tests;
