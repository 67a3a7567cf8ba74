//! Replicated facts about the cluster as a whole: its version and a downgrade in progress.

use bytes::Bytes;

/// Keys of the `cluster` table.
pub(crate) const VERSION_KEY: &[u8] = b"clusterVersion";
pub(crate) const DOWNGRADE_KEY: &[u8] = b"downgrade";

/// A downgrade as etcd stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Downgrade {
    /// Major.minor.patch; empty when none is enabled.
    #[serde(rename = "target-version", default)]
    pub target_version: String,
    #[serde(default)]
    pub enabled: bool,
}

/// See the module text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterFacts {
    pub version: Option<String>,
    pub downgrade: Downgrade,
}

impl ClusterFacts {
    pub fn load(rows: &[(Bytes, Bytes)]) -> ClusterFacts {
        let find = |key: &[u8]| rows.iter().find(|(name, _)| name.as_ref() == key).map(|(_, value)| value);
        let version = find(VERSION_KEY).map(|text| String::from_utf8_lossy(text).into_owned());
        let downgrade =
            find(DOWNGRADE_KEY).and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
        ClusterFacts { version, downgrade }
    }

    /// Members below 3.7 strip top-level ranges from a txn before they check it (the divergence that RD04 is about). While they are
    /// part of the cluster we must err as they do; without any version, or from 3.7 on, the whole txn is checked.
    pub fn checks_txn_ranges(&self) -> bool {
        self.is_at_least(3, 7)
    }

    /// Members below 3.6 do not store the remainder that a lease checkpoint records.
    pub fn stores_lease_checkpoints(&self) -> bool {
        self.is_at_least(3, 6)
    }

    /// A cluster without a version has no old members.
    fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let Some(version) = &self.version else { return true };
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}
