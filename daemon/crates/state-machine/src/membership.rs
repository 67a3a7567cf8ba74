//! Members of the cluster as the log decides them, and etcd's rules for their ids.
//!
//! Everything here is a function of committed entries, so it is equal on all members. Not here: the checks that only a proposer can
//! make (enough started members, a learner that has caught up), who is reachable.

use std::collections::{BTreeMap, BTreeSet};

use api::error::EtcdError;
use api::raftpb::ConfChangeType;
use identity::Private;
use sha1::{Digest, Sha1};
use types::{ClusterId, ConfState, MemberId};

use crate::identities::Notes;

/// Learners that may exist at a time when the entry that adds one does not say otherwise: etcd's default of `max-learners`. The setting
/// itself is the proposer's and travels in the entry, since two members with different settings would apply it differently.
pub const LEARNERS_MAX_DEFAULT: usize = 1;

/// One member as every member knows it. An empty name means it has not published itself yet ("unstarted").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// etcd's member id: the first eight bytes of SHA-1 over the sorted peer URLs without separator, the cluster token, and for members
/// added later the decimal Unix time in seconds (then with an empty token). Names are not part of it, and nothing is normalised.
pub fn member_id(peer_urls: &[String], token: &str, unix_seconds: Option<u64>) -> MemberId {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    urls.iter().for_each(|url| hash.update(url));
    hash.update(token);
    if let Some(seconds) = unix_seconds {
        hash.update(seconds.to_string());
    }
    MemberId(first_eight(hash))
}

/// etcd's cluster id, over the ids of the first members in any order. Later changes of membership do not alter it.
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut ids = members.to_vec();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    ids.iter().for_each(|id| hash.update(id.0.to_be_bytes()));
    ClusterId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("SHA-1 has twenty bytes"))
}

/// A member in the JSON of etcd's `members` bucket and of conf-change contexts.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct MemberJson {
    id: u64,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "is_none_or_empty")]
    client_urls: Option<Vec<String>>,
    #[serde(rename = "isPromote", default, skip_serializing_if = "Option::is_none")]
    is_promote: Option<bool>,
    /// cairn's own, unknown to etcd, which skips it: the proposer's `max-learners` where it is not the default.
    #[serde(rename = "maxLearners", default, skip_serializing_if = "Option::is_none")]
    learners_max: Option<u64>,
    /// cairn's own as well: what the leader writes down about the members ([`crate::identities`]).
    #[serde(rename = "cairn", default, skip_serializing_if = "Option::is_none")]
    notes: Option<Box<Private>>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_none_or_empty(urls: &Option<Vec<String>>) -> bool {
    urls.as_ref().is_none_or(Vec::is_empty)
}

impl Member {
    fn json(&self, is_promote: Option<bool>, learners_max: Option<u64>) -> Vec<u8> {
        let json = MemberJson {
            id: self.id.0,
            peer_urls: Some(self.peer_urls.clone()),
            is_learner: self.is_learner,
            name: self.name.clone(),
            client_urls: Some(self.client_urls.clone()),
            is_promote,
            learners_max,
            notes: None,
        };
        go_json(&serde_json::to_string(&json).expect("strings and numbers have a JSON form"))
    }

    /// The row of etcd's `members` bucket.
    pub fn to_row(&self) -> Vec<u8> {
        self.json(None, None)
    }

    pub fn from_row(json: &[u8]) -> Result<Member, serde_json::Error> {
        Ok(member_of(serde_json::from_slice(json)?))
    }

    /// The context of the conf change that adds this member, as a voter or, when `is_learner`, as a learner among at most
    /// `learners_max`. With the default limit the bytes are etcd's.
    pub fn add_context(&self, learners_max: usize) -> Vec<u8> {
        let limit = (self.is_learner && learners_max != LEARNERS_MAX_DEFAULT).then_some(learners_max as u64);
        self.json(Some(false), limit)
    }

    /// The context of a bootstrap entry, in which etcd leaves `isPromote` out.
    pub fn bootstrap_context(&self) -> Vec<u8> {
        self.json(None, None)
    }

    /// The context of an update of peer URLs.
    pub fn update_context(&self) -> Vec<u8> {
        self.json(None, None)
    }

    /// The context of an update that changes nothing of this member and carries notes of its leader. etcd reads it as an update to the
    /// URLs that the member has.
    pub fn note_context(&self, notes: Private) -> Vec<u8> {
        let json = MemberJson {
            id: self.id.0,
            peer_urls: Some(self.peer_urls.clone()),
            is_learner: self.is_learner,
            notes: Some(Box::new(notes)),
            ..MemberJson::default()
        };
        go_json(&serde_json::to_string(&json).expect("strings and numbers have a JSON form"))
    }
}

/// The context of the conf change that promotes a learner.
pub fn promote_context(id: MemberId) -> Vec<u8> {
    let json = MemberJson { id: id.0, is_promote: Some(true), ..Default::default() };
    serde_json::to_vec(&json).expect("numbers have a JSON form")
}

fn member_of(json: MemberJson) -> Member {
    Member {
        id: MemberId(json.id),
        name: json.name,
        peer_urls: json.peer_urls.unwrap_or_default(),
        client_urls: json.client_urls.unwrap_or_default(),
        is_learner: json.is_learner,
    }
}

/// etcd's JSON writer escapes these for the sake of HTML; Maintenance.Hash covers the bytes.
fn go_json(json: &str) -> Vec<u8> {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            other => out.push(other),
        }
    }
    out.into_bytes()
}

/// A conf change that was found good against the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    Add(Member),
    Promote(MemberId),
    Remove(MemberId),
    UpdatePeerUrls(MemberId, Vec<String>),
    /// Nothing of the table: the member's leader has written something down.
    Note(Notes),
}

/// Who belongs to the cluster, and who never may again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    conf_state: ConfState,
}

impl Membership {
    pub fn new(members: Vec<Member>, removed: Vec<MemberId>, conf_state: ConfState) -> Membership {
        Membership {
            members: members.into_iter().map(|member| (member.id, member)).collect(),
            removed: removed.into_iter().collect(),
            conf_state,
        }
    }

    /// In ascending order of id, as etcd lists them.
    pub fn members(&self) -> Vec<Member> {
        self.members.values().cloned().collect()
    }

    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    pub fn removed(&self) -> Vec<MemberId> {
        self.removed.iter().copied().collect()
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// Judges a conf change by replicated facts only, in etcd's order. Used when applying, and by a proposer to refuse early.
    pub fn check(
        &self,
        kind: ConfChangeType,
        id: MemberId,
        context: &[u8],
    ) -> Result<MemberChange, EtcdError> {
        if id.is_none() || self.removed.contains(&id) {
            return Err(EtcdError::MemberNotFound);
        }
        let parsed = || -> Result<MemberJson, EtcdError> {
            // etcd stops the process on a context it cannot read; a refusal is as deterministic (AP18).
            let json: MemberJson = serde_json::from_slice(context).map_err(|_| EtcdError::MemberBadUrls)?;
            if json.id == id.0 { Ok(json) } else { Err(EtcdError::MemberBadUrls) }
        };
        match kind {
            ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode => {
                let json = parsed()?;
                if json.is_promote == Some(true) {
                    let known = self.members.get(&id).ok_or(EtcdError::MemberNotFound)?;
                    return if known.is_learner {
                        Ok(MemberChange::Promote(id))
                    } else {
                        Err(EtcdError::MemberNotLearner)
                    };
                }
                if self.members.contains_key(&id) {
                    return Err(EtcdError::MemberExist);
                }
                let learners_max = json.learners_max.unwrap_or(LEARNERS_MAX_DEFAULT as u64);
                let mut member = member_of(json);
                // The kind decides what raft does, so the table follows it and not the flag inside the context.
                member.is_learner = kind == ConfChangeType::ConfChangeAddLearnerNode;
                self.check_urls(id, &member.peer_urls)?;
                let learners = self.members.values().filter(|member| member.is_learner).count();
                if member.is_learner && learners as u64 >= learners_max {
                    return Err(EtcdError::TooManyLearners);
                }
                Ok(MemberChange::Add(member))
            }
            ConfChangeType::ConfChangeRemoveNode => {
                let known = self.members.get(&id).ok_or(EtcdError::MemberNotFound)?;
                let voters = self.members.values().filter(|member| !member.is_learner).count();
                if !known.is_learner && voters == 1 {
                    // No raft group survives without a voter; etcd would stop on such an entry.
                    return Err(EtcdError::MemberNotEnoughStarted);
                }
                Ok(MemberChange::Remove(id))
            }
            ConfChangeType::ConfChangeUpdateNode => {
                if !self.members.contains_key(&id) {
                    return Err(EtcdError::MemberNotFound);
                }
                let json = parsed()?;
                if let Some(notes) = json.notes {
                    // The URLs are for etcd. An update that was decided meanwhile is not undone by them.
                    return Notes::read(*notes).map(MemberChange::Note).ok_or(EtcdError::MemberBadUrls);
                }
                let urls = json.peer_urls.unwrap_or_default();
                self.check_urls(id, &urls)?;
                Ok(MemberChange::UpdatePeerUrls(id, urls))
            }
        }
    }

    fn check_urls(&self, id: MemberId, urls: &[String]) -> Result<(), EtcdError> {
        let taken =
            self.members.values().filter(|member| member.id != id).flat_map(|member| &member.peer_urls);
        if taken.into_iter().any(|url| urls.contains(url)) { Err(EtcdError::PeerUrlExist) } else { Ok(()) }
    }

    /// Makes a change that [`Membership::check`] found good.
    pub(crate) fn make(&mut self, change: &MemberChange) {
        let ids = &mut self.conf_state;
        let leave = |ids: &mut Vec<MemberId>, id: MemberId| ids.retain(|other| *other != id);
        let join = |ids: &mut Vec<MemberId>, id: MemberId| {
            if let Err(at) = ids.binary_search(&id) {
                ids.insert(at, id);
            }
        };
        match change {
            MemberChange::Add(member) => {
                join(if member.is_learner { &mut ids.learners } else { &mut ids.voters }, member.id);
                self.members.insert(member.id, member.clone());
            }
            MemberChange::Promote(id) => {
                leave(&mut ids.learners, *id);
                join(&mut ids.voters, *id);
                if let Some(member) = self.members.get_mut(id) {
                    member.is_learner = false;
                }
            }
            MemberChange::Remove(id) => {
                leave(&mut ids.learners, *id);
                leave(&mut ids.voters, *id);
                self.members.remove(id);
                self.removed.insert(*id);
            }
            // The learner flag stays: an update of URLs is not a promotion (ME06).
            MemberChange::UpdatePeerUrls(id, urls) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.peer_urls.clone_from(urls);
                }
            }
            MemberChange::Note(_) => {}
        }
    }

    /// What a member says of itself after its start. Unknown members are ignored: a removed one may still be talking.
    pub(crate) fn publish(&mut self, id: MemberId, name: &str, client_urls: &[String]) -> Option<&Member> {
        let member = self.members.get_mut(&id)?;
        name.clone_into(&mut member.name);
        member.client_urls = client_urls.to_vec();
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_equal_etcds_vectors() {
        let urls =
            |ports: &[&str]| ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect::<Vec<_>>();
        let one = |url: &str| member_id(&[url.to_owned()], "etcd-cluster", None);
        let cases = [
            (one("http://localhost:2380"), 0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32),
            (one("http://127.0.0.1:24011"), 0x4dc2_c157_4eeb_8792, 0xfa76_9220_14ce_3538),
            (
                member_id(&urls(&["24012", "24011"]), "etcd-cluster", None),
                0x42a1_68b9_7cd9_99e3,
                0xaf9f_7dd4_87f4_3d52,
            ),
            (one("http://[::1]:24011"), 0x1655_59c0_b905_4209, 0xfc5a_b52b_03db_a992),
            (one("http://LOCALHOST:24011"), 0xe73c_273e_9f49_2357, 0xc583_943b_7fbf_02eb),
            (one("http://u:p@127.0.0.1:24011?x=1"), 0x8d6b_13fe_6492_f52d, 0x0b88_8e03_7f6c_ac75),
        ];
        for (id, member, cluster) in cases {
            assert_eq!((id, cluster_id(&[id])), (MemberId(member), ClusterId(cluster)));
        }
        for (token, cluster, ids) in [
            (
                "etcd-cluster",
                0xf246_d736_c576_26c8,
                [0x4dc2_c157_4eeb_8792, 0x1d99_cc49_5b4a_f2c4, 0xd978_77e0_56f8_670b],
            ),
            (
                "http://127.0.0.1:24510/v2/keys/discovery/6c007a14875d53d9bf0ef5a6fc0257c8",
                0xc386_f324_ad82_fcc6,
                [0x05fb_6535_ad6c_ff2a, 0xc1c5_e77f_0d54_8f49, 0x0079_e40c_c2a7_8ef5],
            ),
        ] {
            let members = ["24011", "24021", "24031"].map(|port| member_id(&urls(&[port]), token, None));
            assert_eq!(members, ids.map(MemberId));
            assert_eq!(cluster_id(&members), ClusterId(cluster));
        }
    }

    #[test]
    fn json_is_etcds() {
        let member = Member {
            id: MemberId(7),
            name: "m&m".into(),
            peer_urls: vec!["http://a:1".into()],
            client_urls: vec![],
            is_learner: true,
        };
        let row = String::from_utf8(member.to_row()).unwrap();
        assert_eq!(row, r#"{"id":7,"peerURLs":["http://a:1"],"isLearner":true,"name":"m\u0026m"}"#);
        assert_eq!(Member::from_row(row.as_bytes()).unwrap(), member);
        assert_eq!(promote_context(MemberId(7)), br#"{"id":7,"peerURLs":null,"isPromote":true}"#);
        assert!(String::from_utf8(member.add_context(1)).unwrap().ends_with(r#","isPromote":false}"#));
        assert!(String::from_utf8(member.add_context(3)).unwrap().ends_with(r#","maxLearners":3}"#));
        let large = Member::from_row(br#"{"id":18446744073709551615,"peerURLs":null}"#).unwrap();
        assert_eq!(large.id, MemberId(u64::MAX), "ids are never read through a float");
    }
}
