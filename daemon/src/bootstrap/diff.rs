//! Settings of first members that differ: shown member by member, so that the wrong one is seen at a glance. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ::identity::{FirstMember, GenesisConfig};

use super::verdict::from_backup;
use crate::{
    config::urls::Url,
    refusal::{Id, Refusal},
};

/// The refusal of a founding, while nothing is born: correcting a setting suffices. `place` says where `theirs` was learned.
pub fn mismatch(own: &GenesisConfig, peer: &str, place: &str, theirs: &GenesisConfig) -> Refusal {
    let mut refusal = Refusal::new(
        Id::GenesisMismatch,
        format!("this member and {peer} were started with different settings for the new cluster"),
    )
    .evidence("seen", format!("{place} {peer}"));
    let (ours, others) = (by_name(own), by_name(theirs));
    let mut names: Vec<&str> = ours.keys().chain(others.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let mut spelled = false;
    for name in names {
        let fact = match (ours.get(name), others.get(name)) {
            (Some(here), Some(there)) if here.peer_urls == there.peer_urls => continue,
            (Some(here), Some(there)) => {
                let one_place = same_place(&here.peer_urls, &there.peer_urls);
                spelled |= one_place;
                let hint = if one_place { " (the same address, spelled differently)" } else { "" };
                format!(
                    "{peer} lists {}, you list {}{hint}",
                    there.peer_urls.join(","),
                    here.peer_urls.join(",")
                )
            }
            (Some(here), None) => format!("{peer} does not list it, you list {}", here.peer_urls.join(",")),
            (None, Some(there)) => format!("{peer} lists {}, you do not", there.peer_urls.join(",")),
            (None, None) => continue,
        };
        refusal = refusal.evidence(name, fact);
    }
    if own.restored != theirs.restored {
        let of =
            |config: &GenesisConfig| config.restored.as_ref().map_or("with nothing".to_owned(), from_backup);
        refusal = refusal
            .evidence("first state", format!("{peer} begins {}, you begin {}", of(theirs), of(own)))
            .remedy(
                "restore every member from the same file, with the same flags, each into an empty directory",
            );
    }
    if own.token_sha256 != theirs.token_sha256 {
        let hidden =
            if own.token == theirs.token { " (they differ in a part that is not shown)" } else { "" };
        refusal = refusal
            .evidence("token", format!("{peer} has {}, you have {}{hidden}", theirs.token, own.token))
            .remedy("give every member the same --initial-cluster-token");
    }
    if own.members != theirs.members {
        let pairs = |config: &GenesisConfig| {
            let pairs = config.members.iter().flat_map(|member| {
                member.peer_urls.iter().map(|url| format!("{}={url}", member.name)).collect::<Vec<_>>()
            });
            pairs.collect::<Vec<_>>().join(",")
        };
        if spelled {
            refusal = refusal.evidence("why it matters", "ids are made from the spelling");
        }
        refusal = refusal.remedy(format!(
            "give every member the same --initial-cluster; if yours is right: --initial-cluster={} on {peer}; if theirs is: --initial-cluster={}",
            pairs(own),
            pairs(theirs)
        ));
    }
    refusal.remedy("then start the members again: nothing has been founded yet")
}

fn by_name(config: &GenesisConfig) -> BTreeMap<&str, &FirstMember> {
    config.members.iter().map(|member| (member.name.as_str(), member)).collect()
}

/// As far as texts alone can tell: `localhost` is the loopback. What a name server would add is not needed for a hint.
fn same_place(left: &[String], right: &[String]) -> bool {
    let place = |text: &String| {
        let url = Url::parse(text).ok()?;
        let ip = url.ip().map(|ip| if ip.is_loopback() { IpAddr::from([127, 0, 0, 1]) } else { ip });
        let host = match url.host.eq_ignore_ascii_case("localhost") {
            true => "127.0.0.1".to_owned(),
            false => ip.map_or_else(|| url.host.to_ascii_lowercase(), |ip| ip.to_string()),
        };
        Some((url.scheme, host, url.port))
    };
    let sorted = |texts: &[String]| {
        let mut places: Vec<_> = texts.iter().filter_map(place).collect();
        places.sort();
        places
    };
    // A name on one side and an address on the other, at the same ports, is the commonest case of all.
    let name_and_address = || {
        let pair =
            (left.first().and_then(|t| Url::parse(t).ok()), right.first().and_then(|t| Url::parse(t).ok()));
        matches!(pair, (Some(l), Some(r)) if left.len() == 1 && right.len() == 1 && l.port == r.port && l.ip().is_some() != r.ip().is_some())
    };
    sorted(left) == sorted(right) || name_and_address()
}
