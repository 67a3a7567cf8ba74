//! The first entries of a new cluster's log, equal on every member: one conf-change per member at term 1, in the order of their ids,
//! all committed. They are etcd's bytes, so that etcd's log readers and a later mixed cluster agree with them.

use ::identity::GenesisConfig;
use api::raftpb;
use prost::Message as _;
use serde::Serialize;
use state_machine::membership;
use types::{ClusterId, Entry, EntryKind, HardState, LogIndex, MemberId, Term};

use crate::{
    config::{cluster::InitialCluster, urls},
    identity::host,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstMember {
    pub id: MemberId,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
}

/// A cluster before its first election. Members ascend by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    pub cluster: ClusterId,
    pub members: Vec<FirstMember>,
}

impl Genesis {
    /// Two members with one id cannot be told apart: URL lists that are equal when written without separator.
    pub fn new(initial: &InitialCluster, token: &str) -> Result<Genesis, (String, String)> {
        let mut members: Vec<FirstMember> = Vec::new();
        for member in initial.members() {
            let peer_urls = urls::texts(&member.peer_urls);
            let id = membership::member_id(&peer_urls, token, None);
            members.push(FirstMember { id, name: member.name.as_str().to_owned(), peer_urls });
        }
        members.sort_by_key(|member| member.id);
        if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err((pair[0].name.clone(), pair[1].name.clone()));
        }
        let ids: Vec<MemberId> = members.iter().map(|member| member.id).collect();
        Ok(Genesis { cluster: membership::cluster_id(&ids), members })
    }

    pub fn find(&self, name: &str) -> Option<&FirstMember> {
        self.members.iter().find(|member| member.name == name)
    }

    /// What the first members compare among each other, by name.
    pub fn config(&self, token: &str) -> GenesisConfig {
        let mut members: Vec<::identity::FirstMember> = self
            .members
            .iter()
            .map(|member| ::identity::FirstMember {
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
            })
            .collect();
        members.sort();
        GenesisConfig {
            members,
            token: host::redacted(token),
            token_sha256: host::sha256_hex(token),
            restored: None,
        }
    }

    pub fn entries(&self) -> Vec<Entry> {
        let change = |member: &FirstMember| raftpb::ConfChange {
            id: Some(0),
            r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
            node_id: Some(member.id.0),
            context: Some(context(member).into()),
        };
        let numbered = self.members.iter().zip(1..);
        let entry = |(member, index): (&FirstMember, u64)| Entry {
            term: Term(1),
            index: LogIndex(index),
            kind: EntryKind::ConfChange,
            data: change(member).encode_to_vec().into(),
        };
        numbered.map(entry).collect()
    }

    pub fn hard_state(&self) -> HardState {
        HardState { term: Term(1), vote: MemberId::NONE, commit: LogIndex(self.members.len() as u64) }
    }
}

#[derive(Serialize)]
struct Context<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    name: &'a str,
}

/// The member as etcd's JSON encoder writes it, which spells the three characters that mean something to HTML as escapes.
fn context(member: &FirstMember) -> String {
    let plain = Context { id: member.id.0, peer_urls: &member.peer_urls, name: &member.name };
    let json = serde_json::to_string(&plain).expect("texts and numbers serialize");
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster;

    fn genesis(initial: &str, token: &str) -> Genesis {
        Genesis::new(&cluster::parse(initial).unwrap(), token).unwrap()
    }

    /// Ids that etcd gave to these settings.
    #[test]
    fn ids_are_etcds() {
        for (initial, member, cluster) in [
            ("a=http://localhost:2380", "8e9e05c52164694d", "cdf818194e3a8c32"),
            ("a=http://127.0.0.1:24011", "4dc2c1574eeb8792", "fa76922014ce3538"),
            ("a=http://127.0.0.1:24012,a=http://127.0.0.1:24011", "42a168b97cd999e3", "af9f7dd487f43d52"),
            ("a=http://[::1]:24011", "165559c0b9054209", "fc5ab52b03dba992"),
            ("a=http://LOCALHOST:24011", "e73c273e9f492357", "c583943b7fbf02eb"),
            ("a=http://u:p@127.0.0.1:24011?x=1", "8d6b13fe6492f52d", "b888e037f6cac75"),
        ] {
            let genesis = genesis(initial, "etcd-cluster");
            assert_eq!(genesis.members[0].id.to_string(), member, "{initial}");
            assert_eq!(genesis.cluster.to_string(), cluster, "{initial}");
        }
        let three = "n1=http://127.0.0.1:24011,n2=http://127.0.0.1:24021,n3=http://127.0.0.1:24031";
        let born = genesis(three, "etcd-cluster");
        assert_eq!(born.cluster.to_string(), "f246d736c57626c8");
        let ids: Vec<String> = born.members.iter().map(|member| member.id.to_string()).collect();
        assert_eq!(ids, ["1d99cc495b4af2c4", "4dc2c1574eeb8792", "d97877e056f8670b"], "ascending");
        let token = "http://127.0.0.1:24510/v2/keys/discovery/6c007a14875d53d9bf0ef5a6fc0257c8";
        assert_eq!(genesis(three, token).cluster.to_string(), "c386f324ad82fcc6");
    }

    #[test]
    fn the_first_entries_are_etcds_bytes() {
        let genesis = genesis("b=http://localhost:2380?x=1&y=2", "t");
        let entries = genesis.entries();
        let change = raftpb::ConfChange::decode(entries[0].data.clone()).unwrap();
        let id = genesis.members[0].id.0;
        let expected =
            format!("{{\"id\":{id},\"peerURLs\":[\"http://localhost:2380?x=1\\u0026y=2\"],\"name\":\"b\"}}");
        assert_eq!(change.context.unwrap(), expected.as_bytes());
        // Number 0 and type 0 are written out, as every field of this message always is.
        assert_eq!(entries[0].data[..4], [0x08, 0, 0x10, 0]);
        assert_eq!((entries[0].term, entries[0].index), (Term(1), LogIndex(1)));
        assert_eq!(genesis.hard_state().commit, LogIndex(1));
    }

    #[test]
    fn urls_that_run_together_to_one_text_are_no_two_members() {
        let initial = cluster::parse("a=http://h:1?,a=http://x:1,b=http://h:1?http://x:1").unwrap();
        assert_eq!(Genesis::new(&initial, ""), Err(("a".into(), "b".into())));
    }
}
