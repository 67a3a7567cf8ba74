//! What the disk says before anything is decided. Reads only: whatever is refused on these facts has changed nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

use api::walpb;
use prost::Message as _;
use types::{ClusterId, MemberId};

use crate::{
    config::{Settings, urls::Url},
    identity::{self, FileError, Identity, State, Unique, compare::LogOwner},
    refusal::Refusal,
};

/// Names below the data directory.
pub const MEMBER_DIR: &str = "member";
pub const MEMBER_BUILT_ASIDE: &str = "member.tmp";
/// An earlier attempt of a member that nobody has seen, on its way out.
pub const REPLACED: &str = "member.unborn";
/// Begins the name of a `member` that lost its history; the time in UTC follows.
pub const QUARANTINE: &str = "member.quarantine-";
/// How far a replacement has come.
pub const REPLACEMENT: &str = "replace.json";

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

impl LogFact {
    /// Commands that are made of somebody else's file would remove somebody else.
    fn may_be_of(&self, identity: &Identity) -> bool {
        let Some(Ok(owner)) = &self.owner else { return true };
        (owner.member, owner.cluster) == (identity.member_id, identity.cluster_id)
            && owner.dir.is_none_or(|dir| dir == identity.dir_uuid)
    }
}

#[derive(Clone, Debug)]
pub struct DiskFacts {
    pub data_dir: PathBuf,
    pub identity: IdentityFact,
    /// The version before, where there is no whole one: whom messages speak of.
    pub previous: Option<Box<Identity>>,
    /// The copy in a dedicated wal-dir.
    pub wal_identity: IdentityFact,
    pub log: LogFact,
    /// The state store has files.
    pub state_present: bool,
    /// etcd's database: this is an etcd member's directory.
    pub etcd_database: bool,
    /// Entries of the data directory that are nobody's.
    pub strangers: Vec<String>,
    /// Members next door. Only looked for where this directory has none, and unless an empty one is meant.
    pub neighbours: Vec<Neighbour>,
    /// The file system, when it forgets everything at the next boot of the machine or of the container.
    pub fleeting: Option<&'static str>,
}

/// Another data directory beside this one, or in the current directory.
#[derive(Clone, Debug)]
pub struct Neighbour {
    pub dir: PathBuf,
    pub identity: Identity,
}

/// Directories that are looked into for a neighbour. A directory of more is none where data directories are kept.
const NEIGHBOURS_MAX: usize = 1000;

/// Of statfs(2). Container layers are gone with the container.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
const OVERLAYFS: i64 = 0x794c_7630;

/// Where the log of these settings is.
pub fn wal_dir(settings: &Settings) -> PathBuf {
    settings.storage.wal_dir.clone().unwrap_or_else(|| settings.storage.data_dir.join(MEMBER_DIR).join("wal"))
}

pub fn gather(settings: &Settings) -> Result<DiskFacts, Refusal> {
    let data_dir = settings.storage.data_dir.clone();
    let mut member = data_dir.join(MEMBER_DIR);
    let earlier = data_dir.join(REPLACED);
    // As a start puts it back once it has the lock.
    if !member.exists() && earlier.exists() {
        member = earlier;
    }
    let identity = read_identity(&member)?;
    let wal_identity = match &settings.storage.wal_dir {
        Some(dir) => read_identity(dir)?,
        None => IdentityFact::None,
    };
    let log = log_fact(wal_dir(settings))?;
    let previous = match identity {
        IdentityFact::Present(_) => None,
        _ => identity::read_previous(&member).filter(|identity| log.may_be_of(identity)).map(Box::new),
    };
    let state = member.join("state");
    let known = [
        MEMBER_DIR,
        MEMBER_BUILT_ASIDE,
        REPLACED,
        REPLACEMENT,
        "LOCK",
        "lost+found",
        ".snapshot",
        "fixtures",
    ];
    let counts = matches!(&identity, IdentityFact::Present(found) if !matches!(found.state, State::Unborn | State::Registering));
    let neighbours = if counts || settings.storage.allow_empty { Vec::new() } else { neighbours(&data_dir) };
    let ours = |name: &str| known.contains(&name) || name.starts_with(QUARANTINE);
    let strangers = names(&data_dir)?.into_iter().filter(|name| !ours(name));
    Ok(DiskFacts {
        identity,
        previous,
        wal_identity,
        log,
        state_present: !names(&state)?.is_empty(),
        etcd_database: member.join("snap").join("db").is_file(),
        strangers: strangers.collect(),
        neighbours,
        fleeting: fleeting(&data_dir),
        data_dir,
    })
}

/// What cannot be read is nobody: this is a look around, not a proof.
fn neighbours(data_dir: &Path) -> Vec<Neighbour> {
    let own = fs::canonicalize(data_dir).ok();
    let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for around in [Some(Path::new(".")), parent].into_iter().flatten() {
        let Ok(entries) = fs::read_dir(around) else { continue };
        for dir in entries.take(NEIGHBOURS_MAX).flatten().map(|entry| entry.path()) {
            let Ok(dir) = fs::canonicalize(&dir) else { continue };
            if Some(&dir) == own.as_ref() || !seen.insert(dir.clone()) {
                continue;
            }
            // Who left its cluster for good is no data that anybody waits for, and who was never seen holds none.
            let over = |state: &State| {
                matches!(
                    state,
                    State::Unborn | State::Registering | State::Removed { .. } | State::Quarantined { .. }
                )
            };
            match identity::read(&dir.join(MEMBER_DIR)) {
                Ok(Some(identity)) if !over(&identity.state) => found.push(Neighbour { dir, identity }),
                _ => {}
            }
        }
    }
    found
}

/// Of the directory, or of the nearest one above it that exists.
fn fleeting(data_dir: &Path) -> Option<&'static str> {
    let existing = data_dir.ancestors().find_map(|dir| {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        nix::sys::statfs::statfs(dir).ok()
    })?;
    match existing.filesystem_type().0 {
        TMPFS => Some("tmpfs"),
        RAMFS => Some("ramfs"),
        OVERLAYFS => Some("overlayfs"),
        _ => None,
    }
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
            let dir =
                metadata.dir_uuid.and_then(|uuid| Some(Unique::from_bytes(uuid.as_slice().try_into().ok()?)));
            return Ok(LogOwner { member: MemberId(member), cluster: ClusterId(cluster), dir });
        }
        rest = tail.get(length + padding..).unwrap_or_default();
    }
    unreachable!("the metadata record is the last one looked at")
}

/// etcd's metadata of a log, and the directory that it was made with.
#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(uint64, optional, tag = "1")]
    node_id: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    cluster_id: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "1000")]
    dir_uuid: Option<Vec<u8>>,
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
    fn the_previous_identity_of_another_directory_is_not_this_ones() {
        let identity = identity::sample();
        let log = |member, dir| LogFact {
            owner: Some(Ok(LogOwner { member, cluster: identity.cluster_id, dir })),
            ..LogFact::default()
        };
        assert!(log(identity.member_id, Some(identity.dir_uuid)).may_be_of(&identity));
        assert!(log(identity.member_id, None).may_be_of(&identity), "a log of an earlier version");
        assert!(!log(MemberId(77), None).may_be_of(&identity));
        assert!(!log(identity.member_id, Some(Unique::for_test(77))).may_be_of(&identity));
        assert!(LogFact::default().may_be_of(&identity), "nothing contradicts it");
    }

    #[test]
    fn the_owner_of_a_log_is_read_and_garbage_is_described() {
        let dir = Unique::for_test(5);
        let dir_uuid = Some(dir.to_bytes().to_vec());
        let metadata =
            Metadata { node_id: Some(0x8e9e05c52164694d), cluster_id: Some(7), dir_uuid }.encode_to_vec();
        let head = [record(CRC_RECORD, &[]), record(METADATA_RECORD, &metadata)].concat();
        assert_eq!(
            parse_owner(&head),
            Ok(LogOwner { member: MemberId(0x8e9e05c52164694d), cluster: ClusterId(7), dir: Some(dir) })
        );
        for end in 0..head.len() - 8 {
            assert!(parse_owner(&head[..end]).is_err(), "cut at {end}");
        }
        assert!(parse_owner(&[0xff; 64]).is_err());
        assert!(parse_owner(&[0; 64]).is_err());
    }
}
