//! Calls to whichever endpoint answers. Owns the rule of failing over: a request that did not reach anybody goes to the next
//! endpoint; one that may have been executed is repeated only when repeating is harmless.
//!
//! Not here: bytes and frames (`wire`), and what a verb does with an answer.

use crate::failure::{Details, Exit, Failure, Result};
use crate::output::tell;
use crate::session::Session;
use crate::settings::{Identity, Settings};
use crate::units::format_duration;
use crate::wire::endpoint::Endpoint;
use crate::wire::{
    self, Answers, CallError, Connection, DEADLINE_EXCEEDED, Dialer, Status, UNAVAILABLE, tls,
};
use api::error::EtcdError;
use api::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use bytes::Bytes;
use prost::Message;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Pause between rounds over endpoints that all refused: long enough to cost nothing, short enough to catch a restart.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// How the TLS library calls an answer in plain text.
const NOT_TLS: &str = "InvalidContentType";

/// The usual port of members among themselves, as evidence shows it.
const PEER_PORT: &str = ":2380: ";

/// One RPC. `repeatable` says that executing it twice equals executing it once.
pub struct Method {
    path: &'static str,
    repeatable: bool,
}

const fn method(path: &'static str, repeatable: bool) -> Method {
    Method { path, repeatable }
}

pub const RANGE: Method = method("/etcdserverpb.KV/Range", true);
pub const RANGE_STREAM: Method = method("/etcdserverpb.KV/RangeStream", true);
pub const PUT: Method = method("/etcdserverpb.KV/Put", false);
pub const DELETE_RANGE: Method = method("/etcdserverpb.KV/DeleteRange", false);
pub const TXN: Method = method("/etcdserverpb.KV/Txn", false);
pub const COMPACT: Method = method("/etcdserverpb.KV/Compact", false);
pub const MEMBER_LIST: Method = method("/etcdserverpb.Cluster/MemberList", true);
pub const MEMBER_ADD: Method = method("/etcdserverpb.Cluster/MemberAdd", false);
pub const MEMBER_REMOVE: Method = method("/etcdserverpb.Cluster/MemberRemove", false);
pub const MEMBER_UPDATE: Method = method("/etcdserverpb.Cluster/MemberUpdate", false);
pub const MEMBER_PROMOTE: Method = method("/etcdserverpb.Cluster/MemberPromote", false);
pub const ALARM_GET: Method = method("/etcdserverpb.Maintenance/Alarm", true);
pub const ALARM_CHANGE: Method = method("/etcdserverpb.Maintenance/Alarm", false);
pub const STATUS: Method = method("/etcdserverpb.Maintenance/Status", true);
pub const HASH_KV: Method = method("/etcdserverpb.Maintenance/HashKV", true);
pub const SNAPSHOT: Method = method("/etcdserverpb.Maintenance/Snapshot", true);
pub const DEFRAGMENT: Method = method("/etcdserverpb.Maintenance/Defragment", true);
pub const MOVE_LEADER: Method = method("/etcdserverpb.Maintenance/MoveLeader", false);
pub const WATCH: Method = method("/etcdserverpb.Watch/Watch", true);
pub const LEASE_GRANT: Method = method("/etcdserverpb.Lease/LeaseGrant", false);
pub const LEASE_REVOKE: Method = method("/etcdserverpb.Lease/LeaseRevoke", false);
pub const LEASE_KEEP_ALIVE: Method = method("/etcdserverpb.Lease/LeaseKeepAlive", true);
pub const LEASE_TIME_TO_LIVE: Method = method("/etcdserverpb.Lease/LeaseTimeToLive", true);
pub const LEASE_LEASES: Method = method("/etcdserverpb.Lease/LeaseLeases", true);
/// Of cairn alone.
pub const OPERATOR_PREFIXES: Method = method("/cairn.v1.Operator/Prefixes", true);
pub const OPERATOR_WRITES: Method = method("/cairn.v1.Operator/Writes", true);
pub const OPERATOR_WATCHERS: Method = method("/cairn.v1.Operator/Watchers", true);
const AUTHENTICATE: Method = method("/etcdserverpb.Auth/Authenticate", true);

impl Method {
    pub fn path(&self) -> &'static str {
        self.path
    }

    fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

/// A session with one or several endpoints.
pub struct Client {
    endpoints: Vec<Endpoint>,
    dialer: Dialer,
    dial_timeout: Duration,
    /// An endpoint that refuses is not asked again.
    one_round: bool,
    /// When the command must be over; `None` waits as long as it takes.
    deadline: Option<Instant>,
    command_timeout: Duration,
    keepalive_time: Duration,
    keepalive_timeout: Duration,
    request_bytes_max: usize,
    debug: bool,
    identity: Identity,
    token: Option<String>,
    /// Why these endpoints may not be those of the member on this host.
    missed: Option<String>,
    /// The endpoint that answered last, and the connection to it.
    current: usize,
    connection: Option<Connection>,
}

/// What went wrong on one endpoint, and whether going on with the next is right.
enum Attempt {
    Next(String, Option<Status>),
    Stop(Failure),
}

impl Client {
    /// A client over the endpoints of `settings`. The command's time starts now unless `patient` (a verb that may take long) and
    /// nobody gave a timeout.
    pub fn new(settings: &Settings, patient: bool) -> Result<Client> {
        Self::over(settings, settings.endpoints.clone(), patient)
    }

    /// The same for other endpoints than those of the settings.
    pub fn over(settings: &Settings, endpoints: Vec<Endpoint>, patient: bool) -> Result<Client> {
        assert!(!endpoints.is_empty(), "a client needs an endpoint");
        let bounded = settings.command_timeout_given || !patient;
        let token = if let Identity::Token(token) = &settings.identity { Some(token.clone()) } else { None };
        Ok(Client {
            dialer: dialer(settings, &endpoints)?,
            endpoints,
            dial_timeout: settings.dial_timeout,
            one_round: false,
            deadline: bounded.then(|| Instant::now() + settings.command_timeout),
            command_timeout: settings.command_timeout,
            keepalive_time: settings.keepalive_time,
            keepalive_timeout: settings.keepalive_timeout,
            request_bytes_max: settings.request_bytes_max,
            debug: settings.debug,
            identity: settings.identity.clone(),
            token,
            missed: settings.missed.clone(),
            current: 0,
            connection: None,
        })
    }

    /// The same without an end of its time, for calls that last as long as their user wants.
    pub fn without_deadline(self) -> Client {
        Client { deadline: None, ..self }
    }

    /// The same for who wants to know how an endpoint is now: a refused connection is the answer, and not waited out.
    pub fn asking_once(self) -> Client {
        Client { one_round: true, ..self }
    }

    /// The token that calls carry, fetched first when only a password is known.
    pub async fn token(&mut self) -> Result<Option<String>> {
        self.authenticate().await?;
        Ok(self.token.clone())
    }

    /// One request, one answer.
    pub async fn call<A: Message + Default>(&mut self, method: &Method, request: &impl Message) -> Result<A> {
        self.authenticate().await?;
        self.call_plain(method, request).await
    }

    /// One request, many answers; `each` sees them in order. No failing over once the first answer arrived.
    pub async fn stream<A: Message + Default>(
        &mut self,
        method: &Method,
        request: &impl Message,
        mut each: impl FnMut(A) -> Result<()>,
    ) -> Result<()> {
        self.authenticate().await?;
        let framed = self.framed(request)?;
        let mut answers = self.answers(method, framed).await?;
        loop {
            let Some(next) = within(self.deadline, answers.next()).await else {
                return Err(self.too_late(method));
            };
            match next.map_err(|error| self.failure(method, error))? {
                Some(message) => each(decode(message)?)?,
                None => return Ok(()),
            }
        }
    }

    /// A call of many requests and answers at the endpoint that takes it first. How it goes on is the caller's affair.
    pub async fn open(&mut self, method: &Method) -> Result<Session> {
        self.authenticate().await?;
        let started = Instant::now();
        let dial_until = self.dial_until(started);
        loop {
            let mut evidence = Vec::new();
            for _ in 0..self.endpoints.len() {
                match self.open_here(method, dial_until).await {
                    Ok(session) => return Ok(session),
                    Err(why) => {
                        evidence.push(format!("{}: {why}", self.endpoints[self.current].name));
                        self.leave();
                    }
                }
            }
            if Instant::now() + ROUND_PAUSE >= dial_until {
                return Err(self.unreachable(evidence, started.elapsed()));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn open_here(&mut self, method: &Method, dial_until: Instant) -> Result<Session, String> {
        let connection = self.connect(dial_until).await?;
        let why = |error: CallError| match error {
            CallError::Status(status) => status.message,
            CallError::Broken { why, .. } => why,
        };
        // A member that lost its leader ends the call instead of leaving it without news.
        let head = connection.head(method.path, self.token.as_deref(), None).map_err(why)?;
        let call = connection.bidi(&head.with("hasleader", "true")).await.map_err(why)?;
        let endpoint = &self.endpoints[self.current].name;
        if self.debug {
            tell(format_args!("debug: {} at {endpoint}: opened", method.name()));
        }
        let silence = connection.silence(self.keepalive_time, self.keepalive_timeout);
        Ok(Session::new(call, silence, endpoint.clone()))
    }

    /// The next call goes to the next endpoint, over a new connection.
    pub fn leave(&mut self) {
        self.connection = None;
        self.current = (self.current + 1) % self.endpoints.len();
    }

    /// Whether another try can help against a refusal of the token: it is fetched again then.
    pub fn renew_token(&mut self, status: &Status) -> bool {
        let renewable = matches!(self.identity, Identity::Password { .. })
            && [EtcdError::InvalidAuthToken.text(), EtcdError::AuthOldRevision.text()]
                .contains(&status.message.as_str());
        if renewable {
            self.token = None;
        }
        renewable
    }

    /// Gets a token when a password is known. Servers without authentication say so, which is not an error.
    async fn authenticate(&mut self) -> Result<()> {
        let Identity::Password { user, password } = self.identity.clone() else { return Ok(()) };
        if self.token.is_some() {
            return Ok(());
        }
        match self
            .call_plain::<AuthenticateResponse>(&AUTHENTICATE, &AuthenticateRequest { name: user, password })
            .await
        {
            Ok(answer) => self.token = Some(answer.token),
            Err(failure) if failure.headline == EtcdError::AuthNotEnabled.text() => {
                self.identity = Identity::Nobody
            }
            // etcdctl logs in while it connects, so scripts know a refused login as a bad connection.
            Err(failure) => return Err(Failure { exit: Exit::BadConnection, ..failure }),
        }
        Ok(())
    }

    async fn call_plain<A: Message + Default>(
        &mut self,
        method: &Method,
        request: &impl Message,
    ) -> Result<A> {
        let framed = self.framed(request)?;
        let mut answers = self.answers(method, framed).await?;
        // The first message is there already; what is left is the status after it.
        let Some(first) = within(self.deadline, answers.next()).await else {
            return Err(self.too_late(method));
        };
        let message = first.map_err(|error| self.failure(method, error))?;
        decode(message.ok_or_else(|| {
            Failure::new(Exit::Error, format!("{}: the answer has no message", method.name()))
        })?)
    }

    fn framed(&self, request: &impl Message) -> Result<Bytes> {
        let len = request.encoded_len();
        if len > self.request_bytes_max {
            let max = self.request_bytes_max;
            return Err(Failure::new(
                Exit::Error,
                format!(
                    "rpc error: code = ResourceExhausted desc = trying to send message larger than max ({len} vs. {max})"
                ),
            ));
        }
        Ok(wire::frame(request))
    }

    /// Sends to the current endpoint and, as long as nothing was executed, to the others; rounds go on for the dial timeout.
    async fn answers(&mut self, method: &Method, framed: Bytes) -> Result<Answers> {
        let started = Instant::now();
        let dial_until = self.dial_until(started);
        loop {
            let mut evidence = Vec::new();
            let mut refused = None;
            for _ in 0..self.endpoints.len() {
                match self.attempt(method, framed.clone(), dial_until).await {
                    Ok(answers) => return Ok(answers),
                    Err(Attempt::Stop(failure)) => return Err(failure),
                    Err(Attempt::Next(why, status)) => {
                        evidence.push(format!("{}: {why}", self.endpoints[self.current].name));
                        refused = refused.or(status);
                        self.leave();
                    }
                }
            }
            if let Some(status) = refused {
                return Err(server_failure(&status));
            }
            if self.one_round || Instant::now() + ROUND_PAUSE >= dial_until {
                return Err(self.unreachable(evidence, started.elapsed()));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    fn dial_until(&self, started: Instant) -> Instant {
        self.deadline
            .map_or(started + self.dial_timeout, |deadline| deadline.min(started + self.dial_timeout))
    }

    /// The connection to the current endpoint, opened when there is none.
    async fn connect(&mut self, dial_until: Instant) -> Result<Connection, String> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        // Each endpoint of a round has its share of the time, so that a silent one does not use up that of its neighbours.
        let now = Instant::now();
        let share = dial_until.saturating_duration_since(now) / self.endpoints.len() as u32;
        let open = self.dialer.open(&self.endpoints[self.current]);
        let opened = within(Some(now + share.max(Duration::from_millis(1))), open).await;
        let connection =
            opened.unwrap_or_else(|| Err(format!("no answer within {}", format_duration(share))))?;
        self.connection = Some(connection.clone());
        Ok(connection)
    }

    async fn attempt(
        &mut self,
        method: &Method,
        framed: Bytes,
        dial_until: Instant,
    ) -> Result<Answers, Attempt> {
        let connection = self.connect(dial_until).await.map_err(|why| Attempt::Next(why, None))?;
        let endpoint = &self.endpoints[self.current];
        let remaining = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let head = connection
            .head(method.path, self.token.as_deref(), remaining)
            .map_err(|error| Attempt::Stop(self.failure(method, error)))?;
        let started = Instant::now();
        let outcome = within(self.deadline, connection.send(&head, framed)).await;
        if self.debug {
            let result = match &outcome {
                None => "no answer in time".to_owned(),
                Some(Ok(_)) => "answered".to_owned(),
                Some(Err(error)) => format!("{error:?}"),
            };
            tell(format_args!(
                "debug: {} at {}: {result} after {}",
                method.name(),
                endpoint.name,
                format_duration(started.elapsed())
            ));
        }
        match outcome {
            None => Err(Attempt::Stop(self.too_late(method))),
            Some(Ok(answers)) => Ok(answers),
            Some(Err(CallError::Broken { why, sent })) if !sent || method.repeatable => {
                Err(Attempt::Next(why, None))
            }
            Some(Err(CallError::Status(status)))
                if status.code == UNAVAILABLE && method.repeatable && self.endpoints.len() > 1 =>
            {
                Err(Attempt::Next(status.message.clone(), Some(status)))
            }
            Some(Err(error)) => Err(Attempt::Stop(self.failure(method, error))),
        }
    }

    fn failure(&self, method: &Method, error: CallError) -> Failure {
        match error {
            // The server was told our deadline and may notice first that it has passed.
            CallError::Status(status) if status.code == DEADLINE_EXCEEDED && !is_etcds(&status) => {
                self.too_late(method)
            }
            CallError::Status(status) => server_failure(&status),
            CallError::Broken { why, .. } => self.lost(method, why),
        }
    }

    fn unreachable(&self, evidence: Vec<String>, waited: Duration) -> Failure {
        let names: Vec<&str> = self.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        let headline =
            if names.len() == 1 { "the endpoint does not answer" } else { "none of the endpoints answers" };
        let waited = format_duration(Duration::from_millis(waited.as_millis() as u64));
        let evidence: Vec<String> = evidence.into_iter().chain(self.missed.clone()).collect();
        let remedy = ways_to_reach(&evidence);
        Failure::new(Exit::BadConnection, format!("[UNREACHABLE] {headline}")).with(Details {
            cause: format!("no connection could be made within {waited} (--dial-timeout)"),
            evidence,
            remedy,
            never: "do not bootstrap a new cluster because this one is silent; its data is with its members"
                .into(),
        })
    }

    fn lost(&self, method: &Method, why: String) -> Failure {
        let endpoint = &self.endpoints[self.current].name;
        let (cause, remedy) = if method.repeatable {
            (
                "the connection broke before the answer was complete".to_owned(),
                "repeat the command".to_owned(),
            )
        } else {
            (
                format!(
                    "the connection broke after {} was sent: it may or may not have been executed",
                    method.name()
                ),
                "read the keys first, then decide whether to repeat".to_owned(),
            )
        };
        Failure::new(Exit::Error, "[ANSWER_LOST] the answer did not arrive").with(Details {
            cause,
            evidence: vec![format!("{endpoint}: {why}")],
            remedy: vec![remedy],
            never: if method.repeatable { String::new() } else { "do not assume that it failed".into() },
        })
    }

    fn too_late(&self, method: &Method) -> Failure {
        let endpoint = &self.endpoints[self.current].name;
        let uncertain = if method.repeatable { "" } else { "; it may or may not have been executed" };
        // The first line is etcdctl's, since scripts look for it.
        Failure::new(Exit::Error, "context deadline exceeded").with(Details {
            cause: format!("{} had no answer within {} (--command-timeout){uncertain}", method.name(), format_duration(self.command_timeout)),
            evidence: vec![format!("{endpoint}: connected, no answer")],
            remedy: vec![format!("see whether the cluster has a leader: cairnctl --endpoints={endpoint} endpoint status --cluster -w table"), "give it longer: --command-timeout=30s".into()],
            never: String::new(),
        })
    }
}

/// What connections to `endpoints` need.
pub fn dialer(settings: &Settings, endpoints: &[Endpoint]) -> Result<Dialer> {
    let secure = endpoints.iter().any(|endpoint| endpoint.secure);
    let tls =
        if secure { Some(tls::client_config(&settings.tls).map_err(Failure::arguments)?) } else { None };
    Ok(Dialer::new(tls, settings.receive_bytes_max))
}

/// What may help when nobody could be reached, as the evidence of each endpoint tells.
fn ways_to_reach(evidence: &[String]) -> Vec<String> {
    let seen = |text: &str| evidence.iter().any(|line| line.contains(text));
    let (handshake, plain) = (seen("TLS handshake"), seen(NOT_TLS));
    let mut ways = Vec::new();
    if plain {
        ways.push("what answers there speaks no TLS: write http:// instead of https://");
    }
    if handshake && !plain {
        ways.push("check what proves who is who: --cacert must have signed the server's certificate, --cert and --key are the client's");
    }
    if seen("HTTP/2") {
        if seen(PEER_PORT) {
            ways.push("port 2380 is where members talk to each other; clients are served at another one, usually 2379");
        }
        ways.push("if the member serves TLS, write https:// and give --cacert, and --cert and --key when it asks clients for them");
    }
    if seen(": connect") {
        ways.push("if the addresses are right, start the member there: systemctl status cairnd");
    }
    ways.push(
        "if the addresses are wrong, name the members: --endpoints=HOST:2379,HOST:2379 (or CAIRNCTL_ENDPOINTS)",
    );
    ways.into_iter().map(str::to_owned).collect()
}

/// `None` when the time is up first.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

fn decode<A: Message + Default>(message: Bytes) -> Result<A> {
    A::decode(message)
        .map_err(|error| Failure::new(Exit::Error, format!("the answer cannot be read: {error}")))
}

/// A server's refusal in etcdctl's words: known texts as they are, others with their gRPC code.
pub fn server_failure(status: &Status) -> Failure {
    if is_etcds(status) {
        return Failure::new(Exit::Error, status.message.clone());
    }
    Failure::new(Exit::Error, format!("rpc error: code = {} desc = {}", status.name(), status.message))
}

/// Whether the text is one of the API's own, which clients print without their gRPC code.
fn is_etcds(status: &Status) -> bool {
    EtcdError::ALL.iter().any(|known| known.text() == status.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_took_the_wrong_port_or_scheme_is_told_which_is_right() {
        for (evidence, first) in [
            ("db1:2380: HTTP/2 handshake: broken pipe", "port 2380 is where members talk to each other"),
            ("db1:2379: HTTP/2 handshake: broken pipe", "if the member serves TLS, write https://"),
            (
                "https://db1:2379: TLS handshake: received corrupt message of type InvalidContentType",
                "what answers there speaks no TLS: write http://",
            ),
            ("https://db1:2379: TLS handshake: invalid peer certificate: UnknownIssuer", "check what proves"),
            ("db1:2379: connect: Connection refused (os error 111)", "if the addresses are right, start"),
        ] {
            let ways = ways_to_reach(&[evidence.to_owned()]);
            assert!(ways[0].starts_with(first), "{evidence}: {ways:?}");
        }
    }
}
