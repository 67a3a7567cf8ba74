//! Members from DNS: what a set of SRV records and addresses says, as a value. Pure: looking them up is the business of [`super::dns`].
//!
//! Every member must come to the same list, so nothing in it may depend on who asks: names come from the targets' names, and a record that
//! cannot be used yet means waiting, never a smaller cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Found, Own,
    register::unsupported,
    settings::{Schemes, SrvSettings},
};
use crate::{
    config::{
        cluster::{self, MemberName},
        suggest,
        urls::{self, Scheme, Url},
    },
    refusal::{Id, Refusal},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub scheme: Scheme,
    /// Without a final dot, in lower case.
    pub target: String,
    pub port: u16,
}

impl Record {
    /// Also what enters the ids of members.
    fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme.name(), self.target, self.port)
    }
}

/// Records of one service name: what there is, or why that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub scheme: Scheme,
    /// Empty when the name server says that there are none.
    pub records: Result<Vec<Record>, String>,
}

/// Everything one round of questions told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub sets: Vec<Set>,
    /// Of targets and of hosts of own URLs. The error says why there is none.
    pub addresses: BTreeMap<String, Result<BTreeSet<IpAddr>, String>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Found(Found),
    /// Ask again; the refusal is for when patience ends.
    Wait(Refusal),
    Refuse(Refusal),
}

/// The names to ask for, with the schemes of what they list.
pub fn services(settings: &SrvSettings) -> Vec<(String, Scheme)> {
    let suffix = settings.service_suffix.as_ref().map(|suffix| format!("-{suffix}")).unwrap_or_default();
    let plain = (format!("_etcd-server{suffix}._tcp.{}", settings.domain), Scheme::Http);
    let tls = (format!("_etcd-server-ssl{suffix}._tcp.{}", settings.domain), Scheme::Https);
    match settings.schemes {
        Schemes::Http => vec![plain],
        Schemes::Https => vec![tls],
        Schemes::TheOnlyOne | Schemes::Both => vec![plain, tls],
    }
}

pub fn decide(settings: &SrvSettings, own: &Own, facts: &Facts) -> Verdict {
    judge(settings, own, facts).unwrap_or_else(|verdict| verdict)
}

fn judge(settings: &SrvSettings, own: &Own, facts: &Facts) -> Result<Verdict, Verdict> {
    let incomplete = |cause: String| {
        let refusal = Refusal::new(Id::DiscoverySrvIncomplete, cause);
        facts.sets.iter().fold(refusal, |refusal, set| refusal.evidence(set.name.clone(), shown(set)))
    };
    let mut sets = Vec::new();
    for set in &facts.sets {
        match &set.records {
            Ok(records) if records.is_empty() => {}
            Ok(records) => sets.push((set, records)),
            // Without this answer nobody knows whether the other one is all.
            Err(_) => {
                let cause = format!("the name servers do not answer for {}", set.name);
                return Err(Verdict::Wait(reachable(incomplete(cause), settings)));
            }
        }
    }
    if let (Schemes::TheOnlyOne, [(plain, _), (tls, _), ..]) = (settings.schemes, sets.as_slice()) {
        let refusal =
            Refusal::new(Id::DiscoverySrvAmbiguous, "the domain lists members with and without TLS")
                .evidence(plain.name.clone(), shown(plain))
                .evidence(tls.name.clone(), shown(tls))
                .remedy("say which count, on every member alike: --discovery-srv-scheme=http, https or both")
                .remedy("or take one of the two sets of records away")
                .never("do not use both where they list the same members: every one would count twice");
        return Err(Verdict::Refuse(refusal));
    }
    let mut records: Vec<&Record> = sets.iter().flat_map(|(_, records)| records.iter()).collect();
    records.sort();
    records.dedup();
    if records.is_empty() {
        let refusal = incomplete(format!("there are no SRV records of members in {}", settings.domain));
        return Err(Verdict::Wait(
            refusal
                .remedy(format!("publish them: {} SRV 0 0 <port> <host>", services(settings)[0].0))
                .remedy("or correct --discovery-srv and --discovery-srv-name"),
        ));
    }
    if let Some(size) = settings.size {
        if records.len() < size {
            let refusal = incomplete(format!("{} of {size} SRV records are there", records.len()));
            return Err(Verdict::Wait(
                refusal.remedy("publish the missing records, or correct --discovery-srv-size"),
            ));
        }
        if records.len() > size {
            let refusal = mismatch(
                facts,
                format!("{} SRV records are there, and the cluster shall have {size}", records.len()),
            );
            return Err(Verdict::Refuse(
                refusal.remedy("take away the records that are too many, or correct --discovery-srv-size"),
            ));
        }
    }
    let silent: Vec<String> = records.iter().filter_map(|record| no_address(facts, &record.target)).collect();
    if !silent.is_empty() {
        let refusal =
            incomplete(format!("{} of {} SRV targets have no address", silent.len(), records.len()));
        let refusal = refusal.evidence("without address", silent.join("; "));
        return Err(Verdict::Wait(refusal.remedy("publish their addresses, or take their SRV records away")));
    }
    named(settings, own, facts, &records)
}

/// All records can be used: names them and finds this member among them.
fn named(settings: &SrvSettings, own: &Own, facts: &Facts, records: &[&Record]) -> Result<Verdict, Verdict> {
    let names = names(records);
    let text: Vec<String> =
        names.iter().zip(records).map(|(name, record)| format!("{name}={}", record.url())).collect();
    let text = text.join(",");
    let refuse = |cause: String| mismatch(facts, cause).evidence("members", text.clone());
    let cluster = cluster::parse(&text).map_err(|why| {
        Verdict::Refuse(
            refuse(format!("the SRV records make no cluster: {why}")).remedy("correct the records"),
        )
    })?;
    if let Some(url) = records.iter().zip(&names).find(|(record, _)| record.scheme != Scheme::Http) {
        return Err(Verdict::Refuse(unsupported(url.1, &url.0.url())));
    }
    let mine: Vec<&String> = names
        .iter()
        .zip(records)
        .filter(|(_, record)| is_own(own, facts, record))
        .map(|(name, _)| name)
        .collect();
    let [mine] = mine[..] else {
        return Err(if mine.is_empty() {
            absent(settings, own, facts, &text)
        } else {
            twice(own, &refuse, &mine)
        });
    };
    let name = MemberName::parse(mine).map_err(|why| Verdict::Refuse(refuse(why.0)))?;
    if own.name_given && own.name != name {
        return Err(Verdict::Refuse(
            refuse(format!("DNS calls this member {name}, and --name says {}", own.name))
                .evidence("this member", urls::shown(&own.peer_urls))
                .remedy(format!("--name={name}"))
                .remedy("or leave --name out: the name is taken from the SRV target"),
        ));
    }
    Ok(Verdict::Found(Found { cluster, own: name, token: settings.token.clone() }))
}

/// First labels where they tell members apart, else whole targets, else targets with ports: the same for everybody who asks.
fn names(records: &[&Record]) -> Vec<String> {
    let first_label = |record: &&Record| record.target.split('.').next().unwrap_or_default().to_owned();
    let target = |record: &&Record| record.target.clone();
    let with_port = |record: &&Record| format!("{}-{}", record.target, record.port);
    let ways: [&dyn Fn(&&Record) -> String; 3] = [&first_label, &target, &with_port];
    let mut names = Vec::new();
    for way in ways {
        names = records.iter().map(way).collect();
        if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
            break;
        }
    }
    names
}

fn is_own(own: &Own, facts: &Facts, record: &Record) -> bool {
    let there = resolved(facts, &record.target);
    own.peer_urls.iter().any(|url| {
        let same_host = url.host.trim_end_matches('.').eq_ignore_ascii_case(&record.target);
        let here = addresses(facts, url);
        url.scheme == record.scheme && url.port == record.port && (same_host || !here.is_disjoint(&there))
    })
}

fn addresses(facts: &Facts, url: &Url) -> BTreeSet<IpAddr> {
    url.ip().map_or_else(|| resolved(facts, &url.host), |ip| BTreeSet::from([ip]))
}

fn resolved(facts: &Facts, host: &str) -> BTreeSet<IpAddr> {
    facts.addresses.get(host).and_then(|found| found.as_ref().ok()).cloned().unwrap_or_default()
}

/// Why a target has no address, if it has none.
fn no_address(facts: &Facts, target: &str) -> Option<String> {
    match facts.addresses.get(target) {
        Some(Ok(found)) if !found.is_empty() => None,
        Some(Err(why)) => Some(format!("{target} ({why})")),
        _ => Some(target.to_owned()),
    }
}

/// This member's record may still be on its way, unless the records are known to be complete.
fn absent(settings: &SrvSettings, own: &Own, facts: &Facts, members: &str) -> Verdict {
    let complete = settings.size.is_some();
    let id = if complete { Id::DiscoverySrvMismatch } else { Id::DiscoverySrvIncomplete };
    let mut refusal = Refusal::new(id, "none of the SRV records is this member's")
        .evidence("members", members)
        .evidence("--initial-advertise-peer-urls", urls::shown(&own.peer_urls));
    for url in own.peer_urls.iter().filter(|url| url.ip().is_none()) {
        let list: Vec<String> = addresses(facts, url).iter().map(IpAddr::to_string).collect();
        refusal = refusal
            .evidence(url.host.clone(), if list.is_empty() { "no address".into() } else { list.join(", ") });
    }
    let listed = members.split(',').filter_map(|item| item.split_once('=')).map(|(_, url)| url);
    let nearest = own.peer_urls.first().and_then(|own| most_alike(own, facts, listed));
    let refusal = refusal
        .remedy(format!(
            "announce the URL of this member's record: --initial-advertise-peer-urls={}",
            nearest.unwrap_or("<one of them>")
        ))
        .remedy("or publish a record with this member's host and port");
    if complete { Verdict::Refuse(refusal) } else { Verdict::Wait(refusal) }
}

/// The listed URL with the own host, or else the nearest text.
fn most_alike<'a>(
    own: &Url,
    facts: &Facts,
    listed: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let here = addresses(facts, own);
    let mut same_host = listed
        .clone()
        .filter(|text| Url::parse(text).is_ok_and(|url| !here.is_disjoint(&addresses(facts, &url))));
    same_host.next().or_else(|| suggest::nearest(own.as_str(), listed))
}

fn twice(own: &Own, refuse: &dyn Fn(String) -> Refusal, mine: &[&String]) -> Verdict {
    let names: Vec<&str> = mine.iter().map(|name| name.as_str()).collect();
    Verdict::Refuse(
        refuse(format!("{} SRV records are this member's: {}", names.len(), names.join(", ")))
            .evidence("--initial-advertise-peer-urls", urls::shown(&own.peer_urls))
            .remedy("announce one URL, and let one record point to it"),
    )
}

fn mismatch(facts: &Facts, cause: String) -> Refusal {
    let refusal = Refusal::new(Id::DiscoverySrvMismatch, cause);
    facts.sets.iter().fold(refusal, |refusal, set| refusal.evidence(set.name.clone(), shown(set)))
}

fn reachable(refusal: Refusal, settings: &SrvSettings) -> Refusal {
    match settings.nameserver {
        Some(server) => refusal.remedy(format!("check that {server} (--discovery-srv-nameserver) answers")),
        None => refusal.remedy("check the name servers in /etc/resolv.conf"),
    }
}

fn shown(set: &Set) -> String {
    match &set.records {
        Ok(records) if records.is_empty() => "no records".into(),
        Ok(records) => records
            .iter()
            .map(|record| format!("{}:{}", record.target, record.port))
            .collect::<Vec<_>>()
            .join(", "),
        Err(why) => why.clone(),
    }
}
