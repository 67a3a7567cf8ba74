//! HTTP towards a v2 discovery service: one connection per question, through a proxy if there is one, redirects followed. What an answer
//! means is decided in [`super::v2`].

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, PROXY_AUTHORIZATION},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{
    Registering,
    register::{Answer, Question},
    settings::{TlsFiles, V2Settings},
    tls,
    v2::{self, Ask, Reply},
};
use crate::refusal::Refusal;

/// For a question that the service answers at once; etcd's number.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// As etcd and browsers do; more is a loop.
const REDIRECTS_MAX: usize = 10;

/// Largest answer that is read; a list of ten thousand members is below.
const ANSWER_BYTES_MAX: usize = 4 << 20;

const INDEX: &str = "x-etcd-index";

pub struct Service {
    token: Url,
    proxy: Option<Url>,
    tls: TlsConnector,
    own: Registering,
}

impl Service {
    /// An https service must be vouched for by the system's authorities, as in etcd.
    pub fn new(settings: &V2Settings, own: &Registering) -> Result<Service, Refusal> {
        Service::trusting(settings, own, &TlsFiles::default())
    }

    pub fn trusting(
        settings: &V2Settings,
        own: &Registering,
        authorities: &TlsFiles,
    ) -> Result<Service, Refusal> {
        Ok(Service {
            token: settings.url.url.clone(),
            proxy: settings.proxy.clone(),
            tls: tls::connector(authorities, b"http/1.1")?,
            own: own.clone(),
        })
    }

    /// Sends the request to wherever redirects lead.
    async fn exchange(&self, ask: &Ask) -> Result<Reply, String> {
        let mut url = self.url(&ask.path)?;
        for _ in 0..=REDIRECTS_MAX {
            let (status, headers, body) = self.once(&url, ask).await?;
            let elsewhere = headers.get(LOCATION).filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
            let Some(elsewhere) = elsewhere else {
                let index = headers.get(INDEX).and_then(|value| value.to_str().ok()?.parse().ok());
                return Ok(Reply { status, index, body });
            };
            let elsewhere = String::from_utf8_lossy(elsewhere.as_bytes()).into_owned();
            let next = url.join(&elsewhere).map_err(|why| format!("redirected to {elsewhere:?}: {why}"))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(format!("redirected to {elsewhere:?}, which is not HTTP"));
            }
            url = next;
        }
        Err(format!("redirected more than {REDIRECTS_MAX} times, last to {}", shown(&url)))
    }

    fn url(&self, behind: &str) -> Result<Url, String> {
        let mut url = self.token.clone();
        let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
        url.set_path(&format!("{}{path}", self.token.path().trim_end_matches('/')));
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        url.set_fragment(None);
        Ok(url)
    }

    async fn once(&self, url: &Url, ask: &Ask) -> Result<(u16, HeaderMap, Vec<u8>), String> {
        let host = url.host_str().ok_or("the URL has no host")?;
        let port = url.port_or_known_default().ok_or("the URL has no port")?;
        let https = url.scheme() == "https";
        let mut request = Request::new(Full::new(Bytes::from(ask.body.clone())));
        *request.method_mut() = if ask.put { Method::PUT } else { Method::GET };
        let headers = request.headers_mut();
        let place = url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        headers.insert(HOST, header(&place)?);
        if ask.put {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        // A password is for the host that it was given for.
        if url.host() == self.token.host()
            && url.port_or_known_default() == self.token.port_or_known_default()
        {
            headers.extend(login(&self.token).map(|value| (AUTHORIZATION, value)));
        }
        let behind = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut target = behind.to_owned();
        let bare = host.trim_matches(['[', ']']);
        let stream = match &self.proxy {
            None => connect(bare, port).await?,
            Some(proxy) => {
                let proxy_host = proxy.host_str().unwrap_or_default().trim_matches(['[', ']']);
                let stream = connect(proxy_host, proxy.port_or_known_default().unwrap_or(80))
                    .await
                    .map_err(|why| format!("proxy {}: {why}", shown(proxy)))?;
                if https {
                    tunnel(stream, &format!("{host}:{port}"), proxy).await?
                } else {
                    target = format!("http://{place}{behind}");
                    headers.extend(login(proxy).map(|value| (PROXY_AUTHORIZATION, value)));
                    stream
                }
            }
        };
        *request.uri_mut() = target.parse::<Uri>().map_err(|why| format!("{target:?}: {why}"))?;
        if https {
            talk(tls::handshake(&self.tls, bare, stream).await?, request).await
        } else {
            talk(stream, request).await
        }
    }
}

impl super::Service for Service {
    async fn ask(&mut self, question: &Question) -> Answer {
        let (limit, waits) = match question {
            Question::Wait { at_most, .. } => (*at_most, true),
            _ => (REQUEST_LIMIT, false),
        };
        let ask = v2::ask(question, &self.own);
        match tokio::time::timeout(limit, self.exchange(&ask)).await {
            Ok(Ok(reply)) => v2::read(question, &reply),
            Ok(Err(why)) => Answer::Lost(why),
            Err(_) if waits => Answer::Held,
            Err(_) => Answer::Lost(format!("no answer within {} s", limit.as_secs())),
        }
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| format!("{host}:{port}: {error}"))
}

/// Without a password.
fn shown(url: &Url) -> String {
    crate::identity::host::redacted(url.as_str())
}

fn header(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|why| format!("{text:?}: {why}"))
}

/// Name and password out of a URL.
fn login(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| {
        url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
    };
    let pair = format!("{}:{}", plain(url.username())?, plain(url.password().unwrap_or_default())?);
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The connection ends with the exchange, whatever comes of it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn open<T>(stream: T) -> Result<(http1::SendRequest<Full<Bytes>>, Driver), String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    TokioIo<T>: rt::Read + rt::Write,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        // What goes wrong is told to whoever waits for the answer.
        let _ = connection.with_upgrades().await;
    });
    Ok((sender, Driver(driver)))
}

async fn talk<T>(stream: T, request: Request<Full<Bytes>>) -> Result<(u16, HeaderMap, Vec<u8>), String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, _driver) = open(stream).await?;
    let answer = sender.send_request(request).await.map_err(|error| format!("no HTTP answer: {error}"))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes().to_vec();
    Ok((head.status.as_u16(), head.headers, body))
}

/// Asks the proxy for a way to `place`.
async fn tunnel(stream: TcpStream, place: &str, proxy: &Url) -> Result<TcpStream, String> {
    let (mut sender, _driver) = open(stream).await?;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = place.parse::<Uri>().map_err(|why| format!("{place:?}: {why}"))?;
    request.headers_mut().insert(HOST, header(place)?);
    request.headers_mut().extend(login(proxy).map(|value| (PROXY_AUTHORIZATION, value)));
    let wrong = |why: String| format!("proxy {}: {why}", shown(proxy));
    let answer = sender.send_request(request).await.map_err(|error| wrong(error.to_string()))?;
    if !answer.status().is_success() {
        return Err(wrong(format!("it answers {} to CONNECT", answer.status())));
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(|error| wrong(error.to_string()))?;
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| wrong("the connection is of another kind".into()))?;
    Ok(parts.io.into_inner())
}
