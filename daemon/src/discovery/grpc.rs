//! gRPC towards a v3 discovery service: one endpoint at a time, with or without TLS and a login. What a result means is decided in
//! [`super::v3`].

use std::{future::Future, time::Duration};

use api::etcdserverpb::{
    AuthenticateRequest, RangeRequest, RangeResponse, WatchRequest, auth_client::AuthClient,
    kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{self, Channel, Uri},
};
use tower::service_fn;

use super::{
    Registering,
    register::{Answer, Question},
    settings::{Endpoint, V3Settings},
    tls,
    v3::{self, Keys},
};
use crate::refusal::Refusal;

/// Metadata under which etcd looks for the token of a login.
const TOKEN: &str = "token";

pub struct Service {
    settings: V3Settings,
    tls: TlsConnector,
    keys: Keys,
    own: Registering,
    /// Of the endpoint that is asked now.
    at: usize,
    session: Option<Session>,
}

/// A connection, with the login's token if there is one.
#[derive(Clone)]
struct Session {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Service {
    pub fn new(settings: &V3Settings, own: &Registering) -> Result<Service, Refusal> {
        Ok(Service {
            tls: tls::connector(&settings.tls, b"h2")?,
            keys: Keys::of(&settings.token),
            settings: settings.clone(),
            own: own.clone(),
            at: 0,
            session: None,
        })
    }

    /// A connection to the first endpoint that takes one, beginning with the one that was used last.
    async fn session(&mut self) -> Result<Session, Answer> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let mut why = Vec::new();
        for _ in 0..self.settings.endpoints.len() {
            let endpoint = &self.settings.endpoints[self.at % self.settings.endpoints.len()];
            match self.open(endpoint).await {
                Ok(session) => return Ok(self.session.insert(session).clone()),
                Err(Answer::Lost(reason)) => why.push(format!("{endpoint}: {reason}")),
                Err(answer) => return Err(answer),
            }
            self.at += 1;
        }
        Err(Answer::Lost(why.join("; ")))
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<Session, Answer> {
        let limit = self.settings.dial_timeout;
        let channel = within(limit, self.dial(endpoint)).await.map_err(Answer::Lost)?;
        let Some(login) = &self.settings.login else { return Ok(Session { channel, token: None }) };
        let request = AuthenticateRequest { name: login.user.clone(), password: login.password.clone() };
        let mut client = AuthClient::new(channel.clone());
        match client.authenticate(self.limited(request)).await {
            Ok(answer) => {
                let token = answer.into_inner().token.parse::<MetadataValue<Ascii>>();
                let mut token =
                    token.map_err(|error| Answer::NotDiscovery(format!("the login's token: {error}")))?;
                token.set_sensitive(true);
                Ok(Session { channel, token: Some(token) })
            }
            // Whoever has no logins needs none.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(Session { channel, token: None }),
            Err(status) => {
                Err(v3::failed(status.code(), &format!("login of {}: {}", login.user, told(&status))))
            }
        }
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Channel, String> {
        let uri = |text: String| text.parse::<Uri>().map_err(|error| format!("{text}: {error}"));
        // The connector below speaks TLS, not the channel: the channel must not expect it of itself.
        let plain = Endpoint { tls: false, ..endpoint.clone() };
        let mut channel = transport::Endpoint::from(uri(plain.to_string())?)
            .origin(uri(endpoint.to_string())?)
            .keep_alive_timeout(self.settings.keepalive_timeout);
        if !self.settings.keepalive_time.is_zero() {
            channel = channel.http2_keep_alive_interval(self.settings.keepalive_time);
        }
        let (host, port, connector) = (endpoint.host.clone(), endpoint.port, self.tls.clone());
        let connected = if endpoint.tls {
            let connect = move |_| {
                let (host, connector) = (host.clone(), connector.clone());
                async move {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    let stream = tls::handshake(&connector, &host, stream).await;
                    stream.map(TokioIo::new).map_err(std::io::Error::other)
                }
            };
            channel.connect_with_connector(service_fn(connect)).await
        } else {
            let connect = move |_| {
                let host = host.clone();
                async move { TcpStream::connect((host.as_str(), port)).await.map(TokioIo::new) }
            };
            channel.connect_with_connector(service_fn(connect)).await
        };
        connected.map_err(|error| story(&error))
    }

    fn limited<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.request_timeout);
        request
    }

    fn request<T>(&self, session: &Session, message: T) -> Request<T> {
        signed(session, self.limited(message))
    }

    async fn range(&self, session: &Session, request: RangeRequest) -> Result<RangeResponse, Status> {
        let mut client = KvClient::new(session.channel.clone());
        client.range(self.request(session, request)).await.map(tonic::Response::into_inner)
    }

    async fn once(&self, session: &Session, question: &Question) -> Result<Answer, Status> {
        let keys = &self.keys;
        Ok(match question {
            Question::Size => keys.read_size(&self.range(session, keys.size()).await?),
            Question::List => keys.read_list(&self.range(session, keys.list()).await?),
            Question::OwnEntry => keys.read_own(&self.range(session, keys.own_entry(&self.own)).await?),
            Question::Register => {
                let mut client = KvClient::new(session.channel.clone());
                let request = self.request(session, keys.register(&self.own));
                keys.read_register(client.txn(request).await?.get_ref())
            }
            Question::Wait { after, at_most } => {
                let watched = tokio::time::timeout(*at_most, self.watch(session, *after));
                watched.await.unwrap_or(Ok(Answer::Held))?
            }
        })
    }

    async fn watch(&self, session: &Session, after: u64) -> Result<Answer, Status> {
        let create =
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(self.keys.watch(after))) };
        // The watch lives as long as the stream of requests.
        let requests = tokio_stream::once(create).chain(tokio_stream::pending());
        let mut client = WatchClient::new(session.channel.clone());
        let mut responses = client.watch(signed(session, Request::new(requests))).await?.into_inner();
        while let Some(response) = responses.message().await? {
            if let Some(answer) = self.keys.read_watch(&response) {
                return Ok(answer);
            }
        }
        Ok(Answer::Lost("the service ended the watch".into()))
    }
}

impl super::Service for Service {
    async fn ask(&mut self, question: &Question) -> Answer {
        let limit = match question {
            Question::Wait { at_most, .. } => at_most.saturating_add(self.settings.request_timeout),
            _ => self.settings.request_timeout,
        };
        let mut renewed = false;
        loop {
            let session = match self.session().await {
                Ok(session) => session,
                Err(answer) => return answer,
            };
            let asked = tokio::time::timeout(limit, self.once(&session, question)).await;
            let answer = match asked {
                Ok(Ok(answer)) => answer,
                // The token of a login ends; the login does not.
                Ok(Err(status))
                    if status.code() == Code::Unauthenticated && session.token.is_some() && !renewed =>
                {
                    renewed = true;
                    self.session = None;
                    continue;
                }
                Ok(Err(status)) => v3::failed(status.code(), &told(&status)),
                Err(_) => Answer::Lost(format!("no answer within {} s", limit.as_secs_f32())),
            };
            let Answer::Lost(why) = answer else { return answer };
            let endpoint = &self.settings.endpoints[self.at % self.settings.endpoints.len()];
            let why = format!("{endpoint}: {why}");
            // Not tried at the next one at once: whether this one did what was asked is for the register to know.
            self.session = None;
            self.at += 1;
            return Answer::Lost(why);
        }
    }
}

fn signed<T>(session: &Session, mut request: Request<T>) -> Request<T> {
    if let Some(token) = &session.token {
        request.metadata_mut().insert(TOKEN, token.clone());
    }
    request
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(format!("no connection within {} s", limit.as_secs_f32())))
}

/// The status' words, and what lies behind them when it was made here.
fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), story(source)),
        None => status.message().to_owned(),
    }
}

/// An error with its causes, each once.
fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
