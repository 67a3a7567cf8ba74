//! What DNS says, and what is made of it.

use std::collections::BTreeSet;

use super::support::{PATIENCE, own_at};
use crate::{
    config::urls::Scheme,
    discovery::{
        Own,
        settings::{Schemes, SrvSettings},
        srv::{self, Facts, Record, Set, Verdict},
    },
    refusal::Id,
};

fn settings() -> SrvSettings {
    SrvSettings {
        domain: "example.com".into(),
        service_suffix: None,
        schemes: Schemes::TheOnlyOne,
        size: None,
        nameserver: None,
        token: "etcd-cluster".into(),
        patience: PATIENCE,
    }
}

fn records(scheme: Scheme, places: &[(&str, u16)]) -> Vec<Record> {
    places.iter().map(|(target, port)| Record { scheme, target: (*target).into(), port: *port }).collect()
}

/// Plain and TLS records; each target `infraN.…` has the address 10.0.0.N.
fn facts(plain: &[(&str, u16)], tls: &[(&str, u16)]) -> Facts {
    let names = srv::services(&settings());
    let sets = vec![
        Set { name: names[0].0.clone(), scheme: Scheme::Http, records: Ok(records(Scheme::Http, plain)) },
        Set { name: names[1].0.clone(), scheme: Scheme::Https, records: Ok(records(Scheme::Https, tls)) },
    ];
    let addresses = plain.iter().chain(tls).map(|(target, _)| {
        let last = target.chars().find_map(|c| c.to_digit(10)).unwrap_or(0);
        ((*target).to_owned(), Ok(BTreeSet::from([format!("10.0.0.{last}").parse().unwrap()])))
    });
    Facts { sets, addresses: addresses.collect() }
}

const THREE: [(&str, u16); 3] =
    [("infra0.example.com", 2380), ("infra1.example.com", 2380), ("infra2.example.com", 2380)];
const ALL: &str = "infra0=http://infra0.example.com:2380,infra1=http://infra1.example.com:2380,infra2=http://infra2.example.com:2380";

fn unnamed(url: &str) -> Own {
    Own { name_given: false, ..own_at("default", url) }
}

#[track_caller]
fn found(settings: &SrvSettings, own: &Own, facts: &Facts) -> (String, String) {
    match srv::decide(settings, own, facts) {
        Verdict::Found(found) => (found.cluster.canonical(), found.own.as_str().to_owned()),
        Verdict::Wait(refusal) | Verdict::Refuse(refusal) => panic!("{}", refusal.text()),
    }
}

#[track_caller]
fn waits(settings: &SrvSettings, own: &Own, facts: &Facts, words: &[&str]) {
    let Verdict::Wait(refusal) = srv::decide(settings, own, facts) else { panic!("no wait") };
    assert_eq!(refusal.id, Id::DiscoverySrvIncomplete);
    for word in words {
        assert!(refusal.text().contains(word), "{word:?} is not in {}", refusal.text());
    }
}

#[track_caller]
fn refused(settings: &SrvSettings, own: &Own, facts: &Facts, id: Id, words: &[&str]) {
    let Verdict::Refuse(refusal) = srv::decide(settings, own, facts) else { panic!("not refused") };
    assert_eq!(refusal.id, id, "{}", refusal.text());
    for word in words {
        assert!(refusal.text().contains(word), "{word:?} is not in {}", refusal.text());
    }
}

/// etcd's maps differ from node to node and only the ids agree; here all is equal.
#[test]
fn three_records_give_every_member_the_same_list() {
    for (own, name) in [
        (own_at("infra0", "http://10.0.0.0:2380"), "infra0"),
        (own_at("infra1", "http://infra1.example.com:2380"), "infra1"),
        (own_at("infra2", "http://INFRA2.example.com:2380"), "infra2"),
        (unnamed("http://10.0.0.2:2380"), "infra2"),
    ] {
        assert_eq!(found(&settings(), &own, &facts(&THREE, &[])), (ALL.to_owned(), name.to_owned()));
    }
}

#[test]
fn the_service_name_has_a_suffix_and_a_scheme() {
    let names = |settings: &SrvSettings| {
        srv::services(settings).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let mut with = settings();
    assert_eq!(names(&with), ["_etcd-server._tcp.example.com", "_etcd-server-ssl._tcp.example.com"]);
    with.service_suffix = Some("blue".into());
    with.schemes = Schemes::Http;
    assert_eq!(names(&with), ["_etcd-server-blue._tcp.example.com"]);
}

/// Six members of which three are phantoms never have a quorum.
#[test]
fn both_schemes_are_refused_unless_one_is_chosen() {
    let both = facts(&THREE, &THREE);
    let own = own_at("infra0", "http://10.0.0.0:2380");
    refused(
        &settings(),
        &own,
        &both,
        Id::DiscoverySrvAmbiguous,
        &["_etcd-server-ssl", "infra0.example.com:2380", "--discovery-srv-scheme"],
    );
    let mut only = settings();
    only.schemes = Schemes::Http;
    let mut plain = both;
    plain.sets.truncate(1);
    assert_eq!(found(&only, &own, &plain).0, ALL);
}

#[test]
fn tls_members_cannot_be_dialled_yet() {
    refused(
        &settings(),
        &own_at("infra0", "https://10.0.0.0:2380"),
        &facts(&[], &THREE),
        Id::NotSupported,
        &["https://infra0"],
    );
}

/// A smaller list would be another cluster.
#[test]
fn a_target_without_address_is_waited_for() {
    let mut some = facts(&THREE, &[]);
    some.addresses.insert("infra2.example.com".into(), Err("no such name".into()));
    let own = own_at("infra0", "http://10.0.0.0:2380");
    waits(&settings(), &own, &some, &["1 of 3 SRV targets", "infra2.example.com (no such name)"]);
    some.addresses.remove("infra2.example.com");
    waits(&settings(), &own, &some, &["1 of 3 SRV targets"]);
}

#[test]
fn records_that_are_not_there_yet_are_waited_for() {
    let own = own_at("infra0", "http://10.0.0.0:2380");
    waits(&settings(), &own, &facts(&[], &[]), &["no SRV records", "_etcd-server._tcp.example.com SRV"]);
    let mut three = settings();
    three.size = Some(3);
    waits(&three, &own, &facts(&THREE[..2], &[]), &["2 of 3 SRV records"]);
    assert_eq!(found(&three, &own, &facts(&THREE, &[])).0, ALL);
    three.size = Some(2);
    refused(&three, &own, &facts(&THREE, &[]), Id::DiscoverySrvMismatch, &["3 SRV records", "shall have 2"]);
}

/// An absent set is an answer; a silent name server is none, and what it hides might be the other scheme.
#[test]
fn a_silent_name_server_is_waited_for() {
    let mut silent = facts(&THREE, &[]);
    silent.sets[1].records = Err("request timed out".into());
    let own = own_at("infra0", "http://10.0.0.0:2380");
    waits(&settings(), &own, &silent, &["request timed out", "/etc/resolv.conf"]);
    let mut named = settings();
    named.nameserver = Some("192.0.2.1:53".parse().unwrap());
    waits(&named, &own, &silent, &["192.0.2.1:53"]);
}

#[test]
fn a_member_without_a_record_waits_for_it_unless_the_records_are_complete() {
    let own = own_at("infra9", "http://10.0.0.9:2380");
    waits(
        &settings(),
        &own,
        &facts(&THREE, &[]),
        &["none of the SRV records is this member's", "http://10.0.0.9:2380", ALL],
    );
    let mut three = settings();
    three.size = Some(3);
    refused(&three, &own, &facts(&THREE, &[]), Id::DiscoverySrvMismatch, &["none of the SRV records"]);
    // The port and the scheme count too.
    let own = own_at("infra0", "http://10.0.0.0:2381");
    refused(
        &three,
        &own,
        &facts(&THREE, &[]),
        Id::DiscoverySrvMismatch,
        &["--initial-advertise-peer-urls=http://infra0.example.com:2380"],
    );
}

#[test]
fn a_name_that_dns_does_not_give_is_refused() {
    let own = own_at("db7", "http://10.0.0.1:2380");
    refused(
        &settings(),
        &own,
        &facts(&THREE, &[]),
        Id::DiscoverySrvMismatch,
        &["calls this member infra1", "--name says db7", "--name=infra1"],
    );
}

/// Numbers once collided with etcd's own numbering.
#[test]
fn numeric_names_are_names() {
    let numbers = [("0.example.com", 2380), ("1.example.com", 2380)];
    let own = own_at("1", "http://10.0.0.1:2380");
    assert_eq!(
        found(&settings(), &own, &facts(&numbers, &[])).0,
        "0=http://0.example.com:2380,1=http://1.example.com:2380"
    );
}

#[test]
fn first_labels_that_are_not_unique_make_longer_names() {
    let sites = [("db1.north.example", 2380), ("db1.south2.example", 2380)];
    let own = unnamed("http://db1.north.example:2380");
    // Told apart by the address of the second only.
    let mut both = facts(&sites, &[]);
    both.addresses.insert(sites[1].0.into(), Ok(BTreeSet::from(["10.0.0.2".parse().unwrap()])));
    assert_eq!(found(&settings(), &own, &both).1, "db1.north.example");
    let one_host = [("host1.example", 2380), ("host1.example", 2381)];
    let own = unnamed("http://10.0.0.1:2381");
    assert_eq!(found(&settings(), &own, &facts(&one_host, &[])).1, "host1.example-2381");
}

#[test]
fn two_records_of_one_member_are_refused() {
    let mut aliases = facts(&THREE, &[]);
    let same = aliases.addresses["infra1.example.com"].clone();
    aliases.addresses.insert("infra2.example.com".into(), same);
    let own = own_at("infra1", "http://10.0.0.1:2380");
    refused(
        &settings(),
        &own,
        &aliases,
        Id::DiscoverySrvMismatch,
        &["2 SRV records are this member's: infra1, infra2"],
    );
}

#[test]
fn a_record_that_is_there_twice_is_one() {
    let mut twice = THREE.to_vec();
    twice.push(THREE[1]);
    assert_eq!(found(&settings(), &own_at("infra1", "http://10.0.0.1:2380"), &facts(&twice, &[])).0, ALL);
}
