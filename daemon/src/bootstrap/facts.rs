//! What the disk says before anything is decided. Reads only: whatever is refused on these facts has changed nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

use api::walpb;
use prost::Message as _;
use types::{ClusterId, MemberId};

use crate::{
    config::{Settings, urls::Url},
    identity::{self, FileError, Identity, compare::LogOwner},
    refusal::Refusal,
};

/// Names below the data directory.
pub const MEMBER_DIR: &str = "member";
pub const MEMBER_BUILT_ASIDE: &str = "member.tmp";
/// An earlier attempt of a member that nobody has seen, on its way out.
pub const REPLACED: &str = "member.unborn";

#[derive(Clone, Debug)]
pub enum IdentityFact {
    None,
    Present(Box<Identity>),
    Damaged(String),
}

#[derive(Clone, Debug, Default)]
pub struct LogFact {
    pub dir: PathBuf,
    /// Log index in the name of the first segment, if there is a segment.
    pub first_index: Option<u64>,
    /// From the first segment; the error says what is wrong with it.
    pub owner: Option<Result<LogOwner, String>>,
}

#[derive(Clone, Debug)]
pub struct DiskFacts {
    pub data_dir: PathBuf,
    pub identity: IdentityFact,
    /// The copy in a dedicated wal-dir.
    pub wal_identity: IdentityFact,
    pub log: LogFact,
    /// The state store has files.
    pub state_present: bool,
    /// etcd's database: this is an etcd member's directory.
    pub etcd_database: bool,
    /// Entries of the data directory that are nobody's.
    pub strangers: Vec<String>,
}

/// Where the log of these settings is.
pub fn wal_dir(settings: &Settings) -> PathBuf {
    settings.storage.wal_dir.clone().unwrap_or_else(|| settings.storage.data_dir.join(MEMBER_DIR).join("wal"))
}

pub fn gather(settings: &Settings) -> Result<DiskFacts, Refusal> {
    let data_dir = settings.storage.data_dir.clone();
    let member = data_dir.join(MEMBER_DIR);
    let identity = read_identity(&member)?;
    let wal_identity = match &settings.storage.wal_dir {
        Some(dir) => read_identity(dir)?,
        None => IdentityFact::None,
    };
    let state = member.join("state");
    let known = [MEMBER_DIR, MEMBER_BUILT_ASIDE, REPLACED, "LOCK", "lost+found", ".snapshot", "fixtures"];
    let strangers = names(&data_dir)?.into_iter().filter(|name| !known.contains(&name.as_str()));
    Ok(DiskFacts {
        identity,
        wal_identity,
        log: log_fact(wal_dir(settings))?,
        state_present: !names(&state)?.is_empty(),
        etcd_database: member.join("snap").join("db").is_file(),
        strangers: strangers.collect(),
        data_dir,
    })
}

fn read_identity(dir: &Path) -> Result<IdentityFact, Refusal> {
    match identity::read(dir) {
        Ok(None) => Ok(IdentityFact::None),
        Ok(Some(identity)) => Ok(IdentityFact::Present(Box::new(identity))),
        Err(FileError::Damaged(why)) => Ok(IdentityFact::Damaged(why)),
        Err(FileError::Io(error)) => Err(Refusal::io("read", &dir.join(identity::IDENTITY_FILE), &error)),
    }
}

/// Names in a directory, sorted; none when it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, Refusal> {
    let refuse = |error: io::Error| Refusal::io("read", dir, &error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refuse(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(refuse)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn log_fact(dir: PathBuf) -> Result<LogFact, Refusal> {
    let segments = names(&dir)?.into_iter().filter_map(|name| {
        let (_, index) = name.strip_suffix(".wal")?.split_once('-')?;
        Some((u64::from_str_radix(index, 16).ok()?, name))
    });
    // Names begin with the sequence number in fixed width, so they are in order.
    let Some((first_index, name)) = segments.into_iter().next() else {
        return Ok(LogFact { dir, first_index: None, owner: None });
    };
    let path = dir.join(name);
    let owner = read_owner(&path).map_err(|error| Refusal::io("read", &path, &error))?;
    Ok(LogFact {
        first_index: Some(first_index),
        owner: Some(owner.map_err(|why| format!("{}: {why}", path.display()))),
        dir,
    })
}

/// Each segment begins with a checksum record and the metadata record, both far smaller than this.
const HEAD_BYTES: usize = 4096;
const METADATA_RECORD: i64 = 1;
const CRC_RECORD: i64 = 4;

/// The member and cluster in a segment's metadata record. Only these are read here; the log's own reader verifies everything.
fn read_owner(path: &Path) -> io::Result<Result<LogOwner, String>> {
    use io::Read as _;
    let mut head = Vec::new();
    fs::File::open(path)?.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(parse_owner(&head))
}

fn parse_owner(head: &[u8]) -> Result<LogOwner, String> {
    let mut rest = head;
    for expected in [CRC_RECORD, METADATA_RECORD] {
        let (length, tail) = rest.split_first_chunk::<8>().ok_or("the segment ends in its first records")?;
        // The upper byte tells the padding that follows the record; the lower seven the record's length.
        let word = u64::from_le_bytes(*length);
        let padding = if word >> 63 == 1 { ((word >> 56) & 0x7) as usize } else { 0 };
        let length = usize::try_from(word & 0x00ff_ffff_ffff_ffff).unwrap_or(usize::MAX);
        let bytes = tail.get(..length).ok_or("a first record is longer than any can be")?;
        let record = walpb::Record::decode(bytes)
            .map_err(|error| format!("a first record cannot be read: {error}"))?;
        if record.r#type() != expected {
            return Err(format!("record of type {} where {expected} was expected", record.r#type()));
        }
        if expected == METADATA_RECORD {
            let data = record.data.unwrap_or_default();
            let metadata =
                Metadata::decode(data).map_err(|error| format!("the metadata cannot be read: {error}"))?;
            let (Some(member), Some(cluster)) = (metadata.node_id, metadata.cluster_id) else {
                return Err("the metadata names no member".into());
            };
            return Ok(LogOwner { member: MemberId(member), cluster: ClusterId(cluster) });
        }
        rest = tail.get(length + padding..).unwrap_or_default();
    }
    unreachable!("the metadata record is the last one looked at")
}

/// etcd's metadata of a log.
#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(uint64, optional, tag = "1")]
    node_id: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    cluster_id: Option<u64>,
}

/// Addresses of the host names in these URLs. A name that does not resolve has none.
pub fn addresses<'a>(urls: impl Iterator<Item = &'a Url>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found = BTreeMap::new();
    // `localhost` is left as it is, as in etcd: every host has its own.
    for url in urls.filter(|url| url.ip().is_none() && url.host != "localhost" && !url.scheme.is_unix()) {
        let resolved = (url.host.as_str(), url.port).to_socket_addrs();
        let list = resolved.map(|list| list.map(|address| address.ip()).collect()).unwrap_or_default();
        found.insert(url.host.clone(), list);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: i64, data: &[u8]) -> Vec<u8> {
        let record = walpb::Record { r#type: Some(kind), crc: Some(0), data: Some(data.to_vec().into()) };
        let mut bytes = record.encode_to_vec();
        let padding = (8 - bytes.len() % 8) % 8;
        let mut word = bytes.len() as u64;
        if padding > 0 {
            word |= (0x80 | padding as u64) << 56;
        }
        bytes.extend(std::iter::repeat_n(0, padding));
        [word.to_le_bytes().to_vec(), bytes].concat()
    }

    #[test]
    fn the_owner_of_a_log_is_read_and_garbage_is_described() {
        let metadata = Metadata { node_id: Some(0x8e9e05c52164694d), cluster_id: Some(7) }.encode_to_vec();
        let head = [record(CRC_RECORD, &[]), record(METADATA_RECORD, &metadata)].concat();
        assert_eq!(
            parse_owner(&head),
            Ok(LogOwner { member: MemberId(0x8e9e05c52164694d), cluster: ClusterId(7) })
        );
        for end in 0..head.len() - 8 {
            assert!(parse_owner(&head[..end]).is_err(), "cut at {end}");
        }
        assert!(parse_owner(&[0xff; 64]).is_err());
        assert!(parse_owner(&[0; 64]).is_err());
    }
}
