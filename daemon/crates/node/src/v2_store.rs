//! The membership as etcd 3.4 to 3.6 want it in a snapshot message: the JSON of their old store, in which 3.5 keeps the members and the
//! cluster version it goes by, and without which all of them end with a panic. 3.7 and cairn read the database file alone.
//!
//! It describes the members exactly as of the snapshot, from the same view as the file: entries behind it are applied to it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use state_machine::{
    membership::Member,
    store::{StoreError, Table},
};
use storage::snapshot::View;

/// A table row under which the cluster version stands.
const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// The JSON for this view, all of whose rows were checked when they entered the state.
pub(crate) fn json(view: &impl View) -> Result<Vec<u8>, StoreError> {
    let bad = |error: serde_json::Error| StoreError { operation: "read a member", source: error.into() };
    let mut members = BTreeMap::new();
    for (id, row) in view.table(Table::Members)? {
        let member = Member::from_row(&row).map_err(bad)?;
        members.insert(text(&id), member);
    }
    let removed = view.table(Table::MembersRemoved)?.into_iter().map(|(id, _)| text(&id)).collect();
    let cluster = view.table(Table::Cluster)?;
    let version = cluster.iter().find(|(key, _)| key == CLUSTER_VERSION).map(|(_, value)| text(value));
    Ok(render(view.position().index.0, members, removed, version).to_string().into_bytes())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Not in alphabetic order of their paths, which etcd does not ask for.
fn render(
    index: u64,
    members: BTreeMap<String, Member>,
    removed: Vec<String>,
    version: Option<String>,
) -> Value {
    let nodes = Nodes { index };
    let members = members.into_iter().map(|(id, member)| {
        let path = format!("/0/members/{id}");
        let mut raft = Map::new();
        raft.insert("peerURLs".into(), member.peer_urls.into());
        if member.is_learner {
            raft.insert("isLearner".into(), true.into());
        }
        let mut parts = Map::new();
        let raft = nodes.leaf(format!("{path}/raftAttributes"), Value::from(raft).to_string());
        parts.insert("raftAttributes".into(), raft);
        // Absent until a member has told its name: etcd takes it for unstarted.
        if !member.name.is_empty() || !member.client_urls.is_empty() {
            let attributes = json!({ "name": member.name, "clientURLs": member.client_urls });
            let attributes = nodes.leaf(format!("{path}/attributes"), attributes.to_string());
            parts.insert("attributes".into(), attributes);
        }
        (id, nodes.directory(path, parts))
    });
    let members = nodes.directory("/0/members".to_owned(), members.collect());
    let removed = removed.into_iter().map(|id| {
        let leaf = nodes.leaf(format!("/0/removed_members/{id}"), "removed".to_owned());
        (id, leaf)
    });
    let removed = nodes.directory("/0/removed_members".to_owned(), removed.collect());
    let mut cluster = Map::new();
    cluster.insert("members".into(), members);
    cluster.insert("removed_members".into(), removed);
    if let Some(version) = version {
        cluster.insert("version".into(), nodes.leaf("/0/version".to_owned(), version));
    }
    let mut root = Map::new();
    root.insert("0".into(), nodes.directory("/0".to_owned(), cluster));
    // The clients' half, which nothing was ever written to.
    root.insert("1".into(), nodes.directory("/1".to_owned(), Map::new()));
    json!({ "Root": nodes.directory("/".to_owned(), root), "CurrentIndex": index, "CurrentVersion": 2 })
}

/// What all nodes of the old store have in common.
struct Nodes {
    index: u64,
}

impl Nodes {
    fn leaf(&self, path: String, value: String) -> Value {
        self.node(path, value, Value::Null)
    }

    fn directory(&self, path: String, children: Map<String, Value>) -> Value {
        self.node(path, String::new(), children.into())
    }

    fn node(&self, path: String, value: String, children: Value) -> Value {
        json!({
            "Path": path,
            "CreatedIndex": self.index,
            "ModifiedIndex": self.index,
            "ExpireTime": "0001-01-01T00:00:00Z",
            "Value": value,
            "Children": children,
        })
    }
}

#[cfg(test)]
mod tests {
    use types::MemberId;

    use super::*;

    fn member(name: &str, is_learner: bool) -> Member {
        let urls = |port: u16| vec![format!("http://127.0.0.1:{port}")];
        let client_urls = if name.is_empty() { vec![] } else { urls(2) };
        Member { id: MemberId(u64::MAX), name: name.to_owned(), peer_urls: urls(1), client_urls, is_learner }
    }

    /// The text that a leaf of the tree holds.
    fn value<'a>(tree: &'a Value, path: &str) -> Option<&'a str> {
        let steps = path.split('/').map(|step| format!("/Children/{step}")).collect::<String>();
        tree.pointer(&format!("/Root{steps}/Value")).and_then(Value::as_str)
    }

    #[test]
    fn members_and_version_stand_where_etcd_looks_for_them() {
        let members = [("a", member("m\"1", false)), ("b", member("", true))];
        let members = members.map(|(id, member)| (id.to_owned(), member)).into();
        let tree = render(7, members, vec!["c".to_owned()], Some("3.5.0".to_owned()));
        let read = |path| value(&tree, path);
        assert_eq!(read("0/members/a/raftAttributes"), Some(r#"{"peerURLs":["http://127.0.0.1:1"]}"#));
        let attributes: Value =
            serde_json::from_str(read("0/members/a/attributes").expect("it was published")).unwrap();
        assert_eq!(attributes, json!({ "name": "m\"1", "clientURLs": ["http://127.0.0.1:2"] }));
        let learner: Value = serde_json::from_str(read("0/members/b/raftAttributes").unwrap()).unwrap();
        assert_eq!(learner, json!({ "peerURLs": ["http://127.0.0.1:1"], "isLearner": true }));
        assert_eq!(read("0/members/b/attributes"), None, "unstarted members have none");
        assert_eq!(read("0/removed_members/c"), Some("removed"));
        assert_eq!(read("0/version"), Some("3.5.0"));
        assert_eq!(tree.pointer("/Root/Children/1/Children"), Some(&json!({})), "a directory, not a leaf");
        assert_eq!(tree.pointer("/CurrentIndex"), Some(&json!(7)));
    }
}
