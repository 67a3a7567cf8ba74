//! cairn's own part of the handshake: who speaks, in a header that etcd skips, and why somebody is not welcome, in the body of a 412.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use identity::{Hello, Home, Session, Verdict, Witness};
use serde::{Deserialize, Serialize};
use types::MemberId;

/// base64url of the JSON of a [`Hello`].
pub(crate) const HELLO: HeaderName = HeaderName::from_static("x-cairn-hello");

/// The name of the verdict in a 412, for whoever reads heads only.
pub(crate) const VERDICT: HeaderName = HeaderName::from_static("x-cairn-verdict");

/// The longest path that Linux knows, in JSON and base64, and the rest. Whole heads may have 64 KiB.
const HEADER_BYTES_MAX: usize = 12 << 10;

/// The body of a 412 that names a verdict. As much as a hello, since it tells of another one.
pub(crate) const REFUSED_BYTES_MAX: usize = 64 << 10;

/// What a member that is not welcome is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub verdict: Verdict,
    pub witness: Witness,
}

/// Somebody at the other end of a connection, to be judged.
#[derive(Clone, Debug)]
pub struct Met<'a> {
    /// By its address, or by its own word.
    pub peer: MemberId,
    /// `None`: it says nothing of itself, like a member of etcd.
    pub hello: Option<&'a Hello>,
    /// The start of this member that is heard now, which may be the one that was met.
    pub session: Option<Session>,
    pub via: Via,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// It asked for a stream, on which it will read.
    Stream,
    /// It brings a message or a snapshot.
    Message,
    /// We asked it for a stream, and it answered.
    Answer,
}

/// There is a hello and nobody can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unreadable {HELLO}")]
pub(crate) struct Unreadable;

pub(crate) fn put(headers: &mut HeaderMap, hello: Option<Hello>) {
    let Some(mut hello) = hello else { return };
    let mut value = encode(&hello);
    if value.len() > HEADER_BYTES_MAX {
        // Texts for people; what decides is short.
        hello.home = Home { pid: hello.home.pid, seat: hello.home.seat, ..Home::default() };
        hello.name = hello.name.chars().take(64).collect();
        hello.version = hello.version.chars().take(64).collect();
        value = encode(&hello);
    }
    headers.extend(HeaderValue::try_from(value).ok().map(|value| (HELLO, value)));
}

fn encode(hello: &Hello) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(hello).expect("plain data has a JSON form"))
}

pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Hello>, Unreadable> {
    let Some(value) = headers.get(HELLO) else { return Ok(None) };
    if value.len() > HEADER_BYTES_MAX {
        return Err(Unreadable);
    }
    let json = URL_SAFE_NO_PAD.decode(value.as_bytes()).map_err(|_| Unreadable)?;
    serde_json::from_slice(&json).map(Some).map_err(|_| Unreadable)
}

/// The refusal in a 412 whose head names a verdict.
pub(crate) fn refusal(headers: &HeaderMap, body: &[u8]) -> Option<Refused> {
    headers.get(VERDICT)?;
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::{Boot, Life, LogEnd, Unique};
    use types::ClusterId;

    fn hello(path: String) -> Hello {
        Hello {
            cluster_id: ClusterId(1),
            member: MemberId(2),
            name: "n1".into(),
            life: Life::Born(Unique::for_test(3)),
            dir: Unique::for_test(4),
            boot: Boot { seq: 5, nonce: Unique::for_test(6), previous: None },
            earlier: Vec::new(),
            log: LogEnd::default(),
            home: Home { host: "db1".into(), path, ..Home::default() },
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_hello_fits_into_a_header_whatever_its_home_is_called() {
        for path in ["/var/lib/cairn\n\u{1f600}".to_owned(), "/".repeat(4096), "\u{1}".repeat(1 << 20)] {
            let mut headers = HeaderMap::new();
            put(&mut headers, Some(hello(path.clone())));
            let read = read(&headers).expect("readable").expect("there");
            assert_eq!((read.member, read.dir), (MemberId(2), Unique::for_test(4)));
            assert_eq!(read.home.path == path, path.len() < 5000);
        }
        assert_eq!(read(&HeaderMap::new()), Ok(None), "a member of etcd");
    }

    #[test]
    fn an_unreadable_hello_is_not_an_absent_one() {
        let good = encode(&hello("/d".into()));
        let long = "A".repeat(HEADER_BYTES_MAX + 1);
        let no_hello = URL_SAFE_NO_PAD.encode("{}");
        for value in ["", "%", "====", &good[1..], &long, &no_hello] {
            let mut headers = HeaderMap::new();
            headers.insert(HELLO, HeaderValue::from_str(value).expect("letters"));
            assert_eq!(read(&headers), Err(Unreadable), "{value:.40}");
        }
    }
}
