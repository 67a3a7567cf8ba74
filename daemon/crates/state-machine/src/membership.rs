//! Members of the cluster as the log decides them, and etcd's rules for their ids.

use types::MemberId;

/// One member as every member knows it. An empty name means it has not published itself yet ("unstarted").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}
