//! The way back of a member whose directory is of no more use, as messages print it: with the members and URLs that the identity file
//! remembers, since nobody was asked. Pure.

use super::{Identity, KnownMember};

/// An id with lost history is never used again: the member goes and comes under a new one.
pub fn replace(identity: &Identity, data_dir: &str) -> String {
    if others(identity).next().is_none() {
        return format!("else this cluster had no other member: {}", restore(identity));
    }
    format!(
        "else replace it: {} member remove {}, then mv {data_dir} {data_dir}.old, then {}",
        control(identity),
        identity.member_id,
        add(identity)
    )
}

/// The member comes back under a new id.
pub fn add(identity: &Identity) -> String {
    format!(
        "{} member add {} --peer-urls={}, then start with an empty data directory and {}",
        control(identity),
        identity.name,
        identity.peer_urls.join(","),
        join_flags(identity)
    )
}

/// Nobody else has the data.
pub fn restore(identity: &Identity) -> String {
    format!(
        "cairnd snapshot restore <a backup> --data-dir=<a new directory> --name={} \
         --initial-cluster={} --initial-advertise-peer-urls={}",
        identity.name,
        listed(&identity.name, &identity.peer_urls).join(","),
        identity.peer_urls.join(",")
    )
}

fn others(identity: &Identity) -> impl Iterator<Item = &KnownMember> {
    identity.members.iter().filter(|member| member.id != identity.member_id)
}

/// The control tool, pointed at the others as they were last known.
pub fn control(identity: &Identity) -> String {
    let endpoints: Vec<&str> =
        others(identity).filter_map(|member| member.client_urls.first()).map(String::as_str).collect();
    match endpoints.is_empty() {
        true => "cairnctl --endpoints=<a member's client URL>".to_owned(),
        false => format!("cairnctl --endpoints={}", endpoints.join(",")),
    }
}

fn join_flags(identity: &Identity) -> String {
    let mut pairs: Vec<String> = others(identity)
        .flat_map(|member| match member.name.is_empty() {
            true => listed(&format!("member-{}", member.id), &member.peer_urls),
            false => listed(&member.name, &member.peer_urls),
        })
        .chain(listed(&identity.name, &identity.peer_urls))
        .collect();
    pairs.sort();
    format!("--initial-cluster-state=existing --initial-cluster={}", pairs.join(","))
}

fn listed(name: &str, urls: &[String]) -> Vec<String> {
    urls.iter().map(|url| format!("{name}={url}")).collect()
}

#[cfg(test)]
mod tests {
    use types::MemberId;

    use super::*;
    use crate::identity::sample;

    #[test]
    fn the_commands_are_whole_where_the_others_are_known() {
        let mut identity = sample();
        let known = |id, name: &str, client: &[&str]| KnownMember {
            id: MemberId(id),
            name: name.into(),
            peer_urls: vec![format!("http://h{id}:1")],
            client_urls: client.iter().map(|url| (*url).to_owned()).collect(),
            dir_uuid: None,
            is_learner: false,
        };
        assert!(replace(&identity, "/d").contains("cairnd snapshot restore"), "nobody else has the data");
        identity.members = vec![known(0xa, "", &[]), known(identity.member_id.0, "n1", &["http://own:2"])];
        assert!(replace(&identity, "/d").contains("--endpoints=<a member's client URL> member remove"));
        identity.members.push(known(0xb, "n2", &["http://h11:2", "http://x:2"]));
        let (id, urls) = (identity.member_id, identity.peer_urls.join(","));
        assert_eq!(
            replace(&identity, "/d"),
            format!(
                "else replace it: cairnctl --endpoints=http://h11:2 member remove {id}, then mv /d /d.old, then cairnctl \
                 --endpoints=http://h11:2 member add n1 --peer-urls={urls}, then start with an empty data directory and \
                 --initial-cluster-state=existing --initial-cluster=member-a=http://h10:1,n1={urls},n2=http://h11:1"
            )
        );
    }
}
