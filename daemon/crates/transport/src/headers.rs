//! etcd's headers, by which members recognise each other, built and checked. cairn's own are in `hello`.

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderValue, StatusCode};
use types::{ClusterId, MemberId};
use url::Url;

pub const SERVER_FROM: &str = "x-server-from";
pub const SERVER_VERSION: &str = "x-server-version";
pub const MIN_CLUSTER_VERSION: &str = "x-min-cluster-version";
pub const CLUSTER_ID: &str = "x-etcd-cluster-id";
pub const PEER_URLS: &str = "x-peerurls";
pub const RAFT_TO: &str = "x-raft-to";
/// cairn's own: why a request was refused, where etcd's status and text do not tell.
pub const REFUSAL: http::HeaderName = http::HeaderName::from_static("x-cairn-refusal");

/// The least cluster version we can live in, as etcd claims it.
const MIN_CLUSTER: Version = Version { major: 3, minor: 0, patch: 0 };

/// What etcd takes a missing version header for.
const VERSION_WHEN_MISSING: Version = Version { major: 2, minor: 0, patch: 0 };

/// URLs accepted from one `X-PeerURLs`.
const PEER_URLS_MAX: usize = 16;

/// X.Y.Z; parsing others' accepts a pre-release or build suffix and ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u64,
    pub minor: u64,
    pub patch: u64,
}

impl Version {
    /// Exactly X.Y.Z, as we must send it.
    pub fn strict(text: &str) -> Option<Version> {
        let mut parts = text.split('.').map(|part| {
            let canonical = !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_digit())
                && !(part.len() > 1 && part.starts_with('0'));
            canonical.then(|| part.parse().ok()).flatten()
        });
        let version = Version { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    fn is_older_minor_than(self, other: Version) -> bool {
        (self.major, self.minor) < (other.major, other.minor)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        Version::strict(core).ok_or(())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Why a request or an answer was not accepted. Status and text are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("incompatible version")]
    Version,
    #[error("cluster ID mismatch")]
    Cluster,
    #[error("to field mismatch")]
    Target,
}

impl Mismatch {
    pub const STATUS: StatusCode = StatusCode::PRECONDITION_FAILED;
}

/// Who is calling, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    pub member: Option<MemberId>,
    pub urls: Vec<Url>,
}

/// Who we are on the wire.
#[derive(Clone, Debug)]
pub struct Identity {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub version: Version,
    peer_urls: String,
}

impl Identity {
    pub fn new(member: MemberId, cluster: ClusterId, version: Version, peer_urls: &[String]) -> Self {
        Identity { member, cluster, version, peer_urls: peer_urls.join(",") }
    }

    /// Headers of every raft request that we make; `to` only on streams.
    pub fn request_headers(&self, to: Option<MemberId>) -> HeaderMap {
        let mut headers = self.response_headers();
        put(&mut headers, SERVER_FROM, self.member);
        put(&mut headers, MIN_CLUSTER_VERSION, MIN_CLUSTER);
        if !self.peer_urls.is_empty() {
            put(&mut headers, PEER_URLS, &self.peer_urls);
        }
        if let Some(to) = to {
            put(&mut headers, RAFT_TO, to);
        }
        headers
    }

    /// Headers of every answer that we give to a raft request.
    pub fn response_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        put(&mut headers, SERVER_VERSION, self.version);
        put(&mut headers, CLUSTER_ID, self.cluster);
        headers
    }

    /// Checks a raft request: version first, then cluster, as etcd does.
    pub fn check_request(&self, headers: &HeaderMap) -> Result<Caller, Mismatch> {
        let version = version(headers, SERVER_VERSION).ok_or(Mismatch::Version)?;
        let minimum = self::version(headers, MIN_CLUSTER_VERSION).ok_or(Mismatch::Version)?;
        if version.is_older_minor_than(MIN_CLUSTER) || self.version.is_older_minor_than(minimum) {
            return Err(Mismatch::Version);
        }
        match text(headers, CLUSTER_ID).and_then(|id| id.parse::<ClusterId>().ok()) {
            Some(cluster) if cluster == self.cluster => {}
            _ => return Err(Mismatch::Cluster),
        }
        let member =
            text(headers, SERVER_FROM).and_then(|id| id.parse().ok()).filter(|id: &MemberId| !id.is_none());
        let urls = text(headers, PEER_URLS).unwrap_or_default();
        let urls = urls.split(',').take(PEER_URLS_MAX).filter_map(|url| Url::parse(url).ok()).collect();
        Ok(Caller { member, urls })
    }

    /// Checks the `X-Raft-To` of a stream request.
    pub fn check_target(&self, headers: &HeaderMap) -> Result<(), Mismatch> {
        match text(headers, RAFT_TO).and_then(|id| id.parse::<MemberId>().ok()) {
            Some(to) if to == self.member => Ok(()),
            _ => Err(Mismatch::Target),
        }
    }

    /// Checks who answered our stream request. Answers of etcd carry no minimum version.
    pub fn check_stream_response(&self, headers: &HeaderMap) -> Result<(), Mismatch> {
        match version(headers, SERVER_VERSION) {
            Some(version) if !version.is_older_minor_than(MIN_CLUSTER) => self.check_cluster(headers),
            _ => Err(Mismatch::Version),
        }
    }

    /// Checks the cluster of any answer, if it names one: whoever answers at a recycled address is not our peer.
    pub fn check_cluster(&self, headers: &HeaderMap) -> Result<(), Mismatch> {
        match cluster_of(headers) {
            Some(cluster) if cluster != self.cluster => Err(Mismatch::Cluster),
            _ => Ok(()),
        }
    }
}

/// The cluster that an answer names.
pub(crate) fn cluster_of(headers: &HeaderMap) -> Option<ClusterId> {
    text(headers, CLUSTER_ID)?.parse().ok()
}

fn put(headers: &mut HeaderMap, name: &'static str, value: impl fmt::Display) {
    // Ids and versions are always legal; URLs were legal in the configuration, but a header is not worth a panic.
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(name, value);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn version(headers: &HeaderMap, name: &str) -> Option<Version> {
    match headers.get(name) {
        None => Some(VERSION_WHEN_MISSING),
        Some(value) => value.to_str().ok()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(version: &str) -> Identity {
        let version = Version::strict(version).expect("a version");
        Identity::new(MemberId(0xa), ClusterId(0x0abc), version, &["http://127.0.0.1:1".into()])
    }

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = identity("3.6.1").request_headers(Some(MemberId(0xa)));
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn only_xyz_is_a_version_of_ours() {
        assert!(Version::strict("3.7.1").is_some());
        for text in ["3.7", "3.7.1-rc.0", "v3.7.1", "3.7.1.0", "3..1", "03.7.1", "3.7.+1", ""] {
            assert_eq!(Version::strict(text), None, "{text:?}");
        }
        assert_eq!("3.8.0-alpha.0".parse(), Ok(Version { major: 3, minor: 8, patch: 0 }));
    }

    #[test]
    fn versions_are_compared_by_minor_and_before_clusters() {
        let us = identity("3.6.1");
        assert!(us.check_request(&with(SERVER_VERSION, "3.5.30")).is_ok());
        assert!(us.check_request(&with(MIN_CLUSTER_VERSION, "3.6.9")).is_ok());
        assert!(us.check_request(&with(CLUSTER_ID, "0000abc")).is_ok(), "padding does not matter");
        for (name, value, expected) in [
            (SERVER_VERSION, "2.3.8", Mismatch::Version),
            (SERVER_VERSION, "three", Mismatch::Version),
            (MIN_CLUSTER_VERSION, "3.7.0", Mismatch::Version),
            (CLUSTER_ID, "abd", Mismatch::Cluster),
            (CLUSTER_ID, "-", Mismatch::Cluster),
        ] {
            assert_eq!(us.check_request(&with(name, value)), Err(expected), "{name}: {value}");
        }
        let mut both = with(CLUSTER_ID, "1");
        both.remove(MIN_CLUSTER_VERSION);
        both.remove(SERVER_VERSION);
        assert_eq!(us.check_request(&both), Err(Mismatch::Version), "missing headers are of version 2");
    }

    #[test]
    fn a_list_of_urls_that_cannot_be_parsed_is_no_list() {
        let caller = identity("3.6.1").check_request(&with(PEER_URLS, "::,http://h:1"));
        assert!(caller.expect("the rest is fine").urls.len() <= 1);
        assert_eq!(identity("3.6.1").check_target(&with(RAFT_TO, "b")), Err(Mismatch::Target));
    }
}
