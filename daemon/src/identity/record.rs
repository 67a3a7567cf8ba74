//! The fields of the identity file and its text: one field per line, sorted by name, the checksum of everything before it last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{ClusterId, MemberId};

use super::Unique;

/// The newest form of the file that this version reads and the only one it writes.
pub const FORMAT: u32 = 1;

/// The method of an origin: the directory was made by `snapshot restore`.
pub const RESTORE: &str = "restore";

/// How far the member has come. `Registering` and `Joining` are written by bootstraps that ask others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has seen this member: everything but the directory's own mark is derived again from the settings.
    Unborn,
    Registering,
    /// The list of first members is settled and may not change any more.
    Formed,
    /// The cluster has answered: this member has seen its first leader commit.
    Born,
    Joining,
    /// Kept out of the cluster until an operator replaces it.
    Quarantined {
        reason: String,
        evidence: String,
    },
    Removed {
        index: u64,
        term: u64,
        /// The member through which it was asked, as far as the log told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_through: Option<String>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// static, srv, discovery-v2, discovery-v3, join, restore, force-new.
    pub method: String,
    pub initial_cluster: String,
    pub discovery_url: Option<String>,
    /// What its first state was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<::identity::Restored>,
    /// RFC 3339. Told to people; never compared.
    pub created_at: String,
    pub version: String,
}

/// Where the directory was last used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    /// SHA-256 of the machine id: comparable without publishing it.
    pub machine_id_sha256: Option<String>,
    pub path: String,
    pub device: u64,
    pub inode: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMember {
    #[serde(with = "hex_member")]
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    /// As it last published them: where messages point the control tool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
    pub dir_uuid: Option<Unique>,
    /// It has no vote.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
}

/// The member that this one took the place of, by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    #[serde(with = "hex_member")]
    pub member: MemberId,
    /// It was no learner: this one asks to be promoted.
    pub voted: bool,
    /// RFC 3339: when that was decided.
    pub at: String,
}

/// What the log held at an orderly stop. A log that ends before it was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanStop {
    pub last_index: u64,
    pub last_term: u64,
    pub hard_state_term: u64,
    pub commit: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub format: u32,
    pub state: State,
    /// One life of one cluster; null until the cluster has agreed on one.
    pub cluster_uuid: Option<Unique>,
    pub parent_uuid: Option<Unique>,
    #[serde(with = "hex_cluster")]
    pub cluster_id: ClusterId,
    #[serde(with = "hex_member")]
    pub member_id: MemberId,
    /// User information in a token that is a URL is left out; the hash is of the whole.
    pub token: String,
    pub token_sha256: String,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<String>,
    pub dir_uuid: Unique,
    pub wal_dir_uuid: Unique,
    /// Starts of this directory, the current one included.
    pub boot_seq: u64,
    pub boot_nonce: Unique,
    pub prev_boot_nonce: Option<Unique>,
    /// Those of `prev_boot_nonce` and the starts before it, newest first. Peers know by them that a directory which was started without
    /// meeting anybody is no older copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_boots: Vec<Unique>,
    pub origin: Origin,
    pub host: Host,
    pub members: Vec<KnownMember>,
    /// Set where this member took somebody's place by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Replaced>,
    pub clean_stop: Option<CleanStop>,
    /// The oldest version of cairn that may use this directory.
    pub min_version: String,
    /// Fields of a newer version of the same format are handed on, not dropped.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

const CHECKSUM_KEY: &str = "crc32c";

impl Identity {
    /// Restored, and never yet together with the others: what they were restored from must be compared before the first vote.
    pub fn awaits_the_restored(&self) -> bool {
        let is_met = |member: &KnownMember| member.id != self.member_id && member.dir_uuid.is_some();
        self.origin.method == RESTORE
            && self.state == State::Formed
            && self.cluster_uuid.is_none()
            && self.members.len() > 1
            && !self.members.iter().any(is_met)
    }
}

impl Identity {
    /// The nonces of the starts before the present one, newest first. A version that does not know the list hands it on as it was: it is
    /// no use then.
    pub fn boots_before(&self) -> Vec<Unique> {
        match self.earlier_boots.first() == self.prev_boot_nonce.as_ref() {
            true => self.earlier_boots.clone(),
            false => self.prev_boot_nonce.into_iter().collect(),
        }
    }
}

impl Identity {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let value = serde_json::to_value(self).expect("plain fields serialize");
        let Value::Object(fields) = value else { unreachable!("a struct is an object") };
        let sorted: BTreeMap<String, Value> = fields.into_iter().collect();
        let mut text = String::from("{\n");
        for (key, value) in &sorted {
            text.push_str(&format!("  {}: {value},\n", Value::String(key.clone())));
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("  \"{CHECKSUM_KEY}\": \"{checksum:08x}\"\n}}\n"));
        text.into_bytes()
    }

    /// Verifies the checksum before anything is believed. The error says what is wrong, in words for an operator.
    pub fn decode(bytes: &[u8]) -> Result<Identity, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())?;
        let mark = format!("  \"{CHECKSUM_KEY}\": \"");
        let at = text.rfind(&mark).ok_or("no checksum: the file is cut short")?;
        let stored = text[at + mark.len()..].strip_suffix("\"\n}\n").ok_or("the end is cut short")?;
        let computed = format!("{:08x}", crc32c::crc32c(&text.as_bytes()[..at]));
        if stored != computed {
            return Err(format!("checksum {stored:?} is stored, {computed:?} is computed"));
        }
        let mut value: Value =
            serde_json::from_str(text).map_err(|error| format!("not the expected JSON: {error}"))?;
        if let Some(fields) = value.as_object_mut() {
            fields.remove(CHECKSUM_KEY);
        }
        // A newer form may have changed any field: look at its number first.
        match value.get("format").and_then(Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => {
                Err(format!("format {format} is newer than {FORMAT}"))
            }
            Some(_) => {
                serde_json::from_value(value).map_err(|error| format!("not the expected fields: {error}"))
            }
            None => Err("no format number".into()),
        }
    }
}

macro_rules! hex_module {
    ($module:ident, $id:ident) => {
        /// As etcd's tools print ids: hexadecimal without padding.
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};
            use types::$id;

            pub fn serialize<S: Serializer>(id: &$id, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(id)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$id, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_module!(hex_member, MemberId);
hex_module!(hex_cluster, ClusterId);

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn sample() -> Identity {
        Identity {
            format: FORMAT,
            state: State::Born,
            cluster_uuid: None,
            parent_uuid: None,
            cluster_id: ClusterId(0xb888e037f6cac75),
            member_id: MemberId(0x79e40cc2a78ef5),
            token: "etcd-cluster".into(),
            token_sha256: crate::identity::host::sha256_hex("etcd-cluster"),
            name: "n1".into(),
            peer_urls: vec!["http://127.0.0.1:1".into()],
            dir_uuid: Unique::for_test(1),
            wal_dir_uuid: Unique::for_test(2),
            boot_seq: 7,
            boot_nonce: Unique::for_test(3),
            prev_boot_nonce: None,
            earlier_boots: Vec::new(),
            origin: Origin { method: "static".into(), ..Origin::default() },
            host: Host::default(),
            members: vec![],
            replaces: None,
            clean_stop: None,
            min_version: "0.1.0".into(),
            unknown: BTreeMap::new(),
        }
    }

    #[test]
    fn the_file_has_one_field_per_line_sorted_with_the_checksum_last() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let keys: Vec<&str> =
            lines[1..lines.len() - 2].iter().filter_map(|line| line.split('"').nth(1)).collect();
        assert!(keys.is_sorted() && keys.len() == 20, "{keys:?}");
        assert!(lines[lines.len() - 2].starts_with("  \"crc32c\": \""));
        assert!(text.contains("\"member_id\": \"79e40cc2a78ef5\""));
    }

    #[test]
    fn what_was_written_is_read_also_fields_of_a_newer_writer() {
        let mut identity = sample();
        identity.unknown.insert("zone".into(), Value::from("b"));
        identity.state = State::Removed { index: 9, term: 2, asked_through: Some("n2 (ab)".into()) };
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let good = sample().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            assert!(Identity::decode(&bad).is_err(), "byte {at} may change unnoticed");
            assert!(Identity::decode(&good[..at]).is_err(), "the file may end at {at} unnoticed");
        }
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let mut newer = sample();
        newer.format = 2;
        assert!(Identity::decode(&newer.encode()).unwrap_err().contains("format 2 is newer"));
    }
}
