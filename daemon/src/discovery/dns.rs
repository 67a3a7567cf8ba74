//! SRV records and addresses, asked of the system's name servers or of one that the settings name, in rounds until [`super::srv`] has a
//! verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{RData, RecordType},
};

use super::{
    Found, Own, TOLD_EVERY,
    settings::SrvSettings,
    srv::{self, Facts, Record, Set, Verdict},
};
use crate::{
    config::urls::Scheme,
    refusal::{Id, Refusal},
};

/// Between two rounds: records appear when somebody publishes them, not within milliseconds.
const PAUSE: Duration = Duration::from_secs(1);

/// For one question to one name server, and how often it is tried; etcd's resolver waits as long.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
const TRIES: usize = 2;

/// For one question with all its tries, whatever the resolver does in between.
const ROUND_LIMIT: Duration = Duration::from_secs(10);

pub async fn find(
    settings: &SrvSettings,
    own: &Own,
    progress: &mut dyn FnMut(String),
) -> Result<Found, Refusal> {
    let resolver = resolver(settings.nameserver)?;
    let began = Instant::now();
    let mut told: Option<(Instant, String)> = None;
    loop {
        // What was not there a second ago may be there now.
        resolver.clear_cache();
        let refusal = match srv::decide(settings, own, &ask(&resolver, settings, own).await) {
            Verdict::Found(found) => {
                progress(format!("found {} in DNS; this member is {}", found.cluster.canonical(), found.own));
                return Ok(found);
            }
            Verdict::Refuse(refusal) => return Err(refusal),
            Verdict::Wait(refusal) => refusal,
        };
        let left = settings.patience.service.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(refusal.remedy("to wait longer: --discovery-timeout=10m"));
        }
        if told.as_ref().is_none_or(|(at, cause)| at.elapsed() >= TOLD_EVERY || cause != refusal.cause()) {
            told = Some((Instant::now(), refusal.cause().to_owned()));
            progress(format!(
                "waiting for DNS: {} ({} s); trying for {} s more",
                refusal.cause(),
                began.elapsed().as_secs(),
                left.as_secs()
            ));
        }
        tokio::time::sleep(PAUSE.min(left)).await;
    }
}

fn resolver(nameserver: Option<SocketAddr>) -> Result<TokioResolver, Refusal> {
    let refuse = |error: &dyn std::fmt::Display| {
        Refusal::new(Id::DiscoverySrvIncomplete, "the name servers of this machine cannot be learned")
            .evidence("/etc/resolv.conf", error.to_string())
            .remedy("correct /etc/resolv.conf, or name a server: --discovery-srv-nameserver=192.0.2.1")
    };
    let mut builder = match nameserver {
        None => TokioResolver::builder_tokio().map_err(|error| refuse(&error))?,
        Some(server) => {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = server.port());
            let server = NameServerConfig::new(server.ip(), true, connections);
            let config = ResolverConfig::from_parts(None, vec![], vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.options_mut().timeout = QUESTION_LIMIT;
    builder.options_mut().attempts = TRIES;
    // An own URL may be written with either kind of address.
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build().map_err(|error| refuse(&error))
}

async fn ask(resolver: &TokioResolver, settings: &SrvSettings, own: &Own) -> Facts {
    let mut facts = Facts::default();
    for (name, scheme) in srv::services(settings) {
        let records = records(resolver, &name, scheme).await;
        facts.sets.push(Set { name, scheme, records });
    }
    let targets = facts.sets.iter().filter_map(|set| set.records.as_ref().ok()).flatten();
    let hosts: BTreeSet<String> = targets.map(|record| record.target.clone()).collect();
    let hosts = hosts
        .into_iter()
        .chain(own.peer_urls.iter().filter(|url| url.ip().is_none()).map(|url| url.host.clone()));
    let hosts: BTreeSet<String> = hosts.collect();
    let mut addresses = BTreeMap::new();
    for host in hosts {
        let found = of_host(resolver, &host).await;
        addresses.insert(host, found);
    }
    facts.addresses = addresses;
    facts
}

/// A name without records is an answer; silence is not.
async fn records(resolver: &TokioResolver, name: &str, scheme: Scheme) -> Result<Vec<Record>, String> {
    let lookup = tokio::time::timeout(ROUND_LIMIT, resolver.lookup(format!("{name}."), RecordType::SRV));
    let found = match lookup.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) if error.is_no_records_found() => return Ok(Vec::new()),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {} s", ROUND_LIMIT.as_secs())),
    };
    let records = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(Record {
            scheme,
            target: srv.target.to_utf8().trim_end_matches('.').to_lowercase(),
            port: srv.port,
        }),
        _ => None,
    });
    // A lone dot as target says that the service is not offered.
    Ok(records.filter(|record| !record.target.is_empty()).collect())
}

async fn of_host(resolver: &TokioResolver, host: &str) -> Result<BTreeSet<IpAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(BTreeSet::from([ip]));
    }
    // Targets are whole names; a search list would make them depend on the machine.
    let name = if host.contains('.') { format!("{}.", host.trim_end_matches('.')) } else { host.to_owned() };
    match tokio::time::timeout(ROUND_LIMIT, resolver.lookup_ip(name)).await {
        Ok(Ok(found)) => Ok(found.iter().collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ROUND_LIMIT.as_secs())),
    }
}
