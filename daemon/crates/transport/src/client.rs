//! Questions to members before raft runs, and between members about their data: no state, a time limit for each.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, LOCATION},
    response::Parts,
};
use http_body_util::Full;
use identity::{Answer, Question};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use types::ClusterId;
use url::Url;

use crate::{
    handler::{PeerHash, PeerMember},
    headers::{CLUSTER_ID, cluster_of},
    link::{HttpLink, LinkError},
    server::hello,
};

/// Largest answer that is read; a cluster of many members with long URLs is far below.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Text of a wrong answer that is kept for the message to the operator.
const SHOWN_BYTES_MAX: usize = 512;

/// As in etcd, whose HTTP library counts so; more is a loop.
const REDIRECTS_MAX: usize = 10;

/// Characters of a redirect that is shown to the operator.
const REDIRECT_CHARS_SHOWN: usize = 200;

/// Asks single questions of members over their peer URLs.
#[derive(Clone, Debug)]
pub struct PeerClient {
    patience: Duration,
}

/// Answer to `GET /members`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersAnswer {
    pub cluster: ClusterId,
    pub members: Vec<PeerMember>,
}

/// Answer to `GET /version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerVersions {
    pub server: String,
    /// `None` before it is decided.
    pub cluster: Option<String>,
    pub storage: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerClientError {
    #[error("{url} cannot be reached: {cause}")]
    Unreachable { url: Url, cause: String },
    #[error("{url} did not answer within {patience:?}")]
    TimedOut { url: Url, patience: Duration },
    #[error("{url} is not a member's peer URL: {cause}")]
    NotEtcd { url: Url, cause: String },
    #[error("{url} is not cairn: it does not know the question")]
    NotCairn { url: Url },
    /// Where to, and why nobody was asked there or what came of it.
    #[error("{url} redirects {cause}")]
    Redirected { url: Url, cause: String },
    #[error("{url} answered {status}: {text}")]
    WrongStatus { url: Url, status: u16, text: String },
    #[error("{url} belongs to another cluster{}", .theirs.map(|id| format!(" ({id})")).unwrap_or_default())]
    OtherCluster { url: Url, theirs: Option<ClusterId> },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct VersionJson {
    pub(crate) etcdserver: String,
    pub(crate) etcdcluster: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) storage: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct HashKvJson {
    #[serde(default)]
    header: HashKvHeader,
    #[serde(default)]
    hash: u32,
    #[serde(default)]
    compact_revision: i64,
    #[serde(default)]
    hash_revision: i64,
}

#[derive(Default, Serialize, Deserialize)]
struct HashKvHeader {
    #[serde(default)]
    revision: i64,
}

impl From<PeerHash> for HashKvJson {
    fn from(hash: PeerHash) -> Self {
        HashKvJson {
            header: HashKvHeader { revision: hash.revision },
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }
    }
}

impl PeerClient {
    /// `patience` covers one whole question: resolution, connect and answer.
    pub fn new(patience: Duration) -> Self {
        PeerClient { patience }
    }

    /// Members as the one at `url` knows them. An answer without a cluster id is not etcd's. Redirects are followed here and in
    /// [`PeerClient::version`], which a proxy before the members may answer with; whoever asks who a member is, or what its data hash to,
    /// asks this one.
    pub async fn members(&self, url: &Url) -> Result<MembersAnswer, PeerClientError> {
        let (headers, body) = self.find(url, "/members").await?;
        let members = parse(url, &body)?;
        let not_etcd =
            || PeerClientError::NotEtcd { url: url.clone(), cause: "answer names no cluster".into() };
        Ok(MembersAnswer { cluster: cluster_of(&headers).ok_or_else(not_etcd)?, members })
    }

    pub async fn version(&self, url: &Url) -> Result<PeerVersions, PeerClientError> {
        let (_, body) = self.find(url, "/version").await?;
        let json: VersionJson = parse(url, &body)?;
        let cluster = Some(json.etcdcluster).filter(|version| version != "not_decided");
        Ok(PeerVersions {
            server: json.etcdserver,
            cluster,
            storage: json.storage.filter(|v| v != "unknown"),
        })
    }

    /// The member's hash at `revision`, 0 for its newest. A member of another cluster at a recycled address is an error of its own, never
    /// a hash to compare. Refusals of a revision are [`PeerClientError::WrongStatus`] with 400 and the store's text.
    pub async fn hash_kv(
        &self,
        url: &Url,
        cluster: ClusterId,
        revision: i64,
    ) -> Result<PeerHash, PeerClientError> {
        let question = Bytes::from(format!("{{\"revision\":{revision}}}"));
        let other = |theirs| PeerClientError::OtherCluster { url: url.clone(), theirs };
        let (headers, body) = self
            .ask(Method::GET, url, "/members/hashkv", Some(cluster), question)
            .await
            .map_err(|error| match error {
                PeerClientError::WrongStatus { status: 412, .. } => other(None),
                error => error,
            })?;
        if let Some(theirs) = cluster_of(&headers).filter(|theirs| *theirs != cluster) {
            return Err(other(Some(theirs)));
        }
        let json: HashKvJson = parse(url, &body)?;
        Ok(PeerHash {
            revision: json.header.revision,
            hash: json.hash,
            compact_revision: json.compact_revision,
            hash_revision: json.hash_revision,
        })
    }

    /// Who the member at `url` is, and what it makes of the asker. Anybody who is no member of cairn is [`PeerClientError::NotCairn`].
    pub async fn hello(&self, url: &Url, question: &Question) -> Result<Answer, PeerClientError> {
        let question = serde_json::to_vec(question).expect("plain data has a JSON form");
        let (_, body) = self.ask(Method::POST, url, hello::PATH, None, question.into()).await.map_err(
            |error| match error {
                PeerClientError::WrongStatus { url, status: 404, .. } => PeerClientError::NotCairn { url },
                error => error,
            },
        )?;
        parse(url, &body)
    }

    /// Asks wherever redirects lead, all within one patience.
    async fn find(&self, url: &Url, path: &'static str) -> Result<(HeaderMap, Vec<u8>), PeerClientError> {
        let following = async {
            let mut place = url.clone();
            place.set_path(path);
            let redirected = |cause: String| PeerClientError::Redirected { url: url.clone(), cause };
            for hop in 0..=REDIRECTS_MAX {
                let target = place[url::Position::BeforePath..url::Position::AfterQuery]
                    .parse::<Uri>()
                    .map_err(|error| redirected(format!("to {place}: {error}")))?;
                let request =
                    Request::builder().uri(target).body(Full::default()).expect("a path and nothing else");
                let (head, body, whole) = match self.exchange(&place, request).await {
                    Err(error) if hop > 0 => {
                        return Err(redirected(format!("to {place}: {}", error.story())));
                    }
                    other => other.map_err(|error| failure(url, self.patience, &error))?,
                };
                let next = head.headers.get(LOCATION).filter(|_| is_redirect(head.status));
                let Some(next) = next else {
                    return judged(if hop > 0 { &place } else { url }, head, body, whole);
                };
                let next = String::from_utf8_lossy(next.as_bytes());
                let shown = || next.chars().take(REDIRECT_CHARS_SHOWN).collect::<String>();
                place =
                    place.join(&next).map_err(|error| redirected(format!("to {:?}: {error}", shown())))?;
                if place.scheme() != "http" {
                    return Err(redirected(format!(
                        "to {:?}, and scheme {} is not supported",
                        shown(),
                        place.scheme()
                    )));
                }
            }
            Err(redirected(format!("more than {REDIRECTS_MAX} times, last to {place}")))
        };
        timeout(self.patience, following)
            .await
            .map_err(|_| PeerClientError::TimedOut { url: url.clone(), patience: self.patience })?
    }

    async fn ask(
        &self,
        method: Method,
        url: &Url,
        path: &'static str,
        cluster: Option<ClusterId>,
        question: Bytes,
    ) -> Result<(HeaderMap, Vec<u8>), PeerClientError> {
        let mut request = Request::new(Full::new(question.clone()));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(path);
        if !question.is_empty() {
            request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        }
        if let Some(cluster) = cluster.and_then(|cluster| cluster.to_string().parse().ok()) {
            request.headers_mut().insert(CLUSTER_ID, cluster);
        }
        let (head, body, whole) = timeout(self.patience, self.exchange(url, request))
            .await
            .map_err(|_| PeerClientError::TimedOut { url: url.clone(), patience: self.patience })?
            .map_err(|error| failure(url, self.patience, &error))?;
        if let Some(next) = head.headers.get(LOCATION).filter(|_| is_redirect(head.status)) {
            let next = String::from_utf8_lossy(next.as_bytes());
            let shown: String = next.chars().take(REDIRECT_CHARS_SHOWN).collect();
            let cause = format!("to {shown:?}; this is asked of the member at this address alone");
            return Err(PeerClientError::Redirected { url: url.clone(), cause });
        }
        judged(url, head, body, whole)
    }

    /// The answer, its body as far as it is read, and whether that is all of it.
    async fn exchange(
        &self,
        url: &Url,
        request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Vec<u8>, bool), LinkError> {
        let mut link = HttpLink::open(url, self.patience, self.patience).await?;
        let answer = link.request(request).await?;
        let (head, body) = answer.into_parts();
        let (body, whole) = link.collect(body, ANSWER_BYTES_MAX).await?;
        Ok((head, body, whole))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn judged(
    url: &Url,
    head: Parts,
    body: Vec<u8>,
    whole: bool,
) -> Result<(HeaderMap, Vec<u8>), PeerClientError> {
    if head.status != StatusCode::OK {
        let shown = &body[..body.len().min(SHOWN_BYTES_MAX)];
        let text = String::from_utf8_lossy(shown).trim().to_owned();
        return Err(PeerClientError::WrongStatus { url: url.clone(), status: head.status.as_u16(), text });
    }
    if !whole {
        let cause = format!("answer is longer than {ANSWER_BYTES_MAX} bytes");
        return Err(PeerClientError::NotEtcd { url: url.clone(), cause });
    }
    Ok((head.headers, body))
}

fn failure(url: &Url, patience: Duration, error: &LinkError) -> PeerClientError {
    let (url, cause) = (url.clone(), error.story());
    match error {
        LinkError::Http(http) if http.is_parse() => PeerClientError::NotEtcd { url, cause },
        LinkError::Connect(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            PeerClientError::TimedOut { url, patience }
        }
        _ => PeerClientError::Unreachable { url, cause },
    }
}

fn parse<T: DeserializeOwned>(url: &Url, body: &[u8]) -> Result<T, PeerClientError> {
    serde_json::from_slice(body)
        .map_err(|error| PeerClientError::NotEtcd { url: url.clone(), cause: error.to_string() })
}
