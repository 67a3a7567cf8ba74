//! Carries requests out: reads the token, asks [`super::rules`], writes, and holds on while there is no leader.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use api::{error::EtcdError, etcdserverpb as pb};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use state_machine::{lease_cost, txn_cost};
use tracing::{info, warn};

use super::{
    AGAIN, ATTEMPTS_MAX, Discovery, FORM_BYTES_MAX, FORM_PATIENCE, READ_PATIENCE, SIZE_DEFAULT,
    WRITE_PATIENCE, WRITE_PATIENCE_ALONE,
    answer::{Node, Refusal, event},
    form::{self, Asked},
    path::{At, Key, Part, Place},
    rules::{self, Decision, Told, Wish},
    token::{self, REGISTRY, Token, View},
    wait,
};
use crate::{backend::Backend, body::Body, edge::Edge, http::Peer};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const CLUSTER: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
const INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
const RAFT_INDEX: HeaderName = HeaderName::from_static("x-raft-index");
const RAFT_TERM: HeaderName = HeaderName::from_static("x-raft-term");

/// What a redirected registration carries: the member it comes from may have made it already.
const TRIED: &str = "tried";

/// Keys that are looked at when tokens are counted: those of many more tokens than there may be, with all their members.
const KEYS_COUNTED_MAX: i64 = 100_000;

/// Why there is no answer of the ordinary kind.
enum Stop {
    Refused(Refusal, i64),
    /// Not now, and not here: no leader, or a learner.
    NotHere(EtcdError),
}

type Outcome<T> = Result<T, Stop>;

struct Service<B> {
    edge: Arc<Edge<B>>,
    discovery: Arc<Discovery>,
    from: Option<SocketAddr>,
}

/// Answers one request for a place of the service.
pub(crate) async fn serve<B: Backend>(
    edge: Arc<Edge<B>>,
    discovery: Arc<Discovery>,
    place: Place,
    request: Request<Incoming>,
) -> Response<Body> {
    let from = request.extensions().get::<Peer>().map(|peer| peer.0);
    let service = Service { edge, discovery, from };
    match place {
        Place::New => service.new_token(&request.into_parts().0).await,
        Place::Key(key) => service.key(key, request).await,
    }
}

impl<B: Backend> Service<B> {
    async fn key(&self, key: Key, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let method = head.method.clone();
        let query = head.uri.query().unwrap_or_default();
        let is_read = matches!(method, Method::GET | Method::HEAD);
        if !is_read && !matches!(method, Method::PUT | Method::POST | Method::DELETE) {
            let mut response = crate::http::error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            let allowed = HeaderValue::from_static("HEAD,GET,PUT,POST,DELETE");
            response.headers_mut().insert(header::ALLOW, allowed);
            return response;
        }
        let has_form = matches!(method, Method::PUT | Method::POST);
        let form = match if has_form { collect(body).await } else { Ok(Bytes::new()) } {
            Ok(form) => form,
            Err(refusal) => return self.refused(&refusal, self.now()),
        };
        let asked = match form::read(&method, query, &form) {
            Ok(asked) => asked,
            Err(refusal) => return self.refused(&refusal, 0),
        };
        let outcome = match &key.at {
            At::Elsewhere if is_read => Err(Stop::Refused(Refusal::not_found(&key.shown), self.now())),
            At::Elsewhere => Err(Stop::Refused(
                Refusal::invalid(
                    "of etcd's v2 keys only those of discovery are served: /discovery/TOKEN and /_etcd/registry/TOKEN",
                ),
                self.now(),
            )),
            At::Registry => Err(Stop::Refused(
                Refusal::kept_back("tokens are not listed: whoever knows one may register"),
                self.now(),
            )),
            At::Token { token, dir, part } => {
                let spelled = spellings(host(&head), head.uri.path());
                let spot = Spot { token, dir: &key.shown[..*dir], shown: &key.shown, part, spelled };
                let mut tried = form::of_query(query, TRIED).ok().flatten().is_some();
                let until = Instant::now() + WRITE_PATIENCE_ALONE;
                loop {
                    let outcome = self.at_token(&method, &spot, &asked, tried).await;
                    let may_come_right = match &outcome {
                        Err(Stop::NotHere(error)) => !is_read && *error != EtcdError::NotSupportedForLearner,
                        _ => false,
                    };
                    if !may_come_right || Instant::now() >= until || self.other_member().await.is_some() {
                        break outcome;
                    }
                    tried = true;
                }
            }
        };
        match outcome {
            Ok(response) => response,
            Err(Stop::Refused(refusal, index)) => self.refused(&refusal, index),
            Err(Stop::NotHere(error)) => {
                let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
                self.elsewhere(error, target, is_read).await
            }
        }
    }

    async fn at_token(
        &self,
        method: &Method,
        spot: &Spot<'_>,
        asked: &Asked,
        tried: bool,
    ) -> Outcome<Response<Body>> {
        match *method {
            Method::PUT => self.put(spot, asked, tried).await,
            Method::DELETE => self.delete(spot, asked).await,
            Method::POST => Err(Stop::Refused(
                Refusal::invalid("keys in order (POST) are not served; members register with PUT"),
                self.now(),
            )),
            _ => self.get(spot, asked).await,
        }
    }

    async fn get(&self, spot: &Spot<'_>, asked: &Asked) -> Outcome<Response<Body>> {
        let view = self.view(spot.token, READ_PATIENCE).await?;
        let at = view.revision;
        let refuse = |refusal: Refusal| Err(Stop::Refused(refusal, at));
        let Some(size) = &view.size else { return refuse(Refusal::not_found(spot.dir)) };
        let dir = |key: &str, nodes: Vec<Node>| Node {
            key: key.to_owned(),
            dir: true,
            nodes,
            modified: size.created,
            created: size.created,
            ..Node::default()
        };
        if asked.wait {
            return self.wait(spot, &view, asked);
        }
        let node = match spot.part {
            Part::Directory => {
                let mut nodes: Vec<Node> =
                    view.entries.iter().map(|entry| Node::of_entry(spot.dir, entry)).collect();
                if asked.sorted {
                    nodes.sort_by(|a, b| a.key.cmp(&b.key));
                }
                dir(spot.dir, nodes)
            }
            Part::Config => dir(spot.shown, vec![Node::of_size(spot.dir, size)]),
            Part::Size => Node::of_size(spot.dir, size),
            Part::Entry(id) => match view.entry(id) {
                Some(entry) => Node::of_entry(spot.dir, entry),
                None => return refuse(Refusal::not_found(spot.shown)),
            },
            Part::Below { entry, end } => {
                let shown = &spot.shown[..*end];
                let is_there = view.entry(entry).is_some();
                return refuse(if is_there {
                    Refusal::not_a_directory(shown)
                } else {
                    Refusal::not_found(shown)
                });
            }
            Part::Nothing => return refuse(Refusal::not_found(spot.shown)),
        };
        Ok(self.answer(StatusCode::OK, at, event("get", &node, None)))
    }

    /// The head goes out at once, the event when there is one.
    fn wait(&self, spot: &Spot<'_>, view: &View, asked: &Asked) -> Outcome<Response<Body>> {
        let entry = match spot.part {
            Part::Directory => None,
            Part::Entry(id) => Some(id.as_str()),
            _ => {
                let why = "a token and its members can be waited for, nothing else";
                return Err(Stop::Refused(Refusal::kept_back(why), view.revision));
            }
        };
        let from = match i64::try_from(asked.wait_index) {
            Ok(0) => view.revision.saturating_add(1),
            Ok(index) => index,
            Err(_) => i64::MAX,
        };
        let waited = wait::Waited { token: spot.token.clone(), dir: spot.dir.to_owned(), from };
        let is_meant = |id: &str| entry.is_none_or(|entry| entry == id);
        let here = view.entries.iter().find(|it| it.index >= from && is_meant(&it.id));
        let body = match here {
            Some(entry) => {
                let whole = Bytes::from(waited.told(entry));
                Body::Later(Box::pin(std::future::ready(whole)))
            }
            None => {
                let Some(seat) = self.discovery.waiters.take(spot.token.as_str()) else {
                    let why = "as many wait here, or for this token, as may".to_owned();
                    return Err(Stop::Refused(Refusal::busy(why), view.revision));
                };
                let later = wait::event(self.edge.clone(), waited, entry, view.revision, seat);
                Body::Later(later)
            }
        };
        let mut response = Response::new(body);
        self.add_headers(response.headers_mut(), view.revision, true);
        Ok(response)
    }

    async fn put(&self, spot: &Spot<'_>, asked: &Asked, tried: bool) -> Outcome<Response<Body>> {
        let refuse = |refusal: Refusal| Err(Stop::Refused(refusal, self.now()));
        if let Some(unserved) = asked.unserved {
            return refuse(Refusal::invalid(format!("the discovery service does not take {unserved:?}")));
        }
        let wish = Wish {
            token: spot.token,
            dir: spot.dir,
            value: &asked.value,
            prev_exist: asked.prev_exist,
            spelled: &spot.spelled,
        };
        match spot.part {
            Part::Entry(id) => {
                let resume = self.discovery.config.resume;
                let written =
                    self.write(spot.token, tried, |view, tried| wish.entry(view, id, resume, tried)).await?;
                let (name, from) = (asked.value.as_str(), self.shown_from());
                match written.is_new {
                    true => info!(
                        token = short(spot.token),
                        member = id,
                        registers = name,
                        from,
                        "discovery: a member registered"
                    ),
                    false => info!(
                        token = short(spot.token),
                        member = id,
                        registers = name,
                        from,
                        "discovery: a member registered again"
                    ),
                }
                Ok(self.answer(written.status, written.revision, written.body))
            }
            Part::Size => {
                let written = self.write_size(&wish).await?;
                Ok(self.answer(written.status, written.revision, written.body))
            }
            Part::Directory | Part::Config => refuse(Refusal::not_a_file(spot.shown)),
            Part::Below { end, .. } => refuse(Refusal::not_a_directory(&spot.shown[..*end])),
            Part::Nothing => refuse(Refusal::invalid("a token has no other settings than its size")),
        }
    }

    async fn delete(&self, spot: &Spot<'_>, asked: &Asked) -> Outcome<Response<Body>> {
        let (token, dir) = (spot.token, spot.dir);
        let written = match spot.part {
            Part::Entry(id) => {
                self.write(token, false, |view, _| rules::take_back(token, dir, view, id, asked.force))
                    .await?
            }
            Part::Directory => {
                let mut lease = 0;
                let ended = self
                    .write(token, false, |view, _| {
                        lease = view.size.as_ref().map_or(0, |size| size.lease);
                        rules::end(token, dir, view, asked.recursive, asked.force)
                    })
                    .await?;
                self.let_go(lease).await;
                ended
            }
            Part::Below { end, .. } => {
                return Err(Stop::Refused(Refusal::not_a_directory(&spot.shown[..*end]), self.now()));
            }
            Part::Config | Part::Size | Part::Nothing => {
                let why = "a token keeps its size; DELETE the token itself with ?recursive=true&force=true"
                    .to_owned();
                return Err(Stop::Refused(Refusal::frozen(why), self.now()));
            }
        };
        info!(
            token = short(token),
            deleted = spot.shown.strip_prefix(dir),
            from = self.shown_from(),
            "discovery: deleted"
        );
        Ok(self.answer(written.status, written.revision, written.body))
    }

    /// Decides and writes until the decision holds, through elections.
    async fn write(
        &self,
        token: &Token,
        mut tried: bool,
        mut decide: impl FnMut(&View, bool) -> Result<Decision, Refusal>,
    ) -> Outcome<Written> {
        let until = Instant::now() + WRITE_PATIENCE;
        for _ in 0..ATTEMPTS_MAX {
            let view = self.view(token, until.saturating_duration_since(Instant::now())).await?;
            let decision = decide(&view, tried).map_err(|refusal| Stop::Refused(refusal, view.revision))?;
            let (txn, told) = match decision {
                Decision::Done(status, body) => {
                    return Ok(Written { status, body, revision: view.revision, is_new: false });
                }
                Decision::Write(txn, told) => (txn, told),
            };
            match self.propose(txn, until).await {
                Ok(response) if response.succeeded => return Ok(Written::told(*told, &response)),
                // Somebody else was first.
                Ok(_) | Err(EtcdError::LeaseNotFound) => {}
                Err(error) if is_passing(error) => {
                    tried = true;
                    if Instant::now() >= until {
                        return Err(Stop::NotHere(error));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(self.failed(error, view.revision)),
            }
        }
        let why = "others register all the time".to_owned();
        Err(Stop::Refused(Refusal::busy(why), self.now()))
    }

    /// A new size, or a new token.
    async fn write_size(&self, wish: &Wish<'_>) -> Outcome<Written> {
        let view = self.view(wish.token, WRITE_PATIENCE).await?;
        if view.size.is_some() {
            // Gone since: the same as if it had never been.
            return self
                .write(wish.token, false, |view, _| match &view.size {
                    Some(size) => wish.size(view, size),
                    None => Err(Refusal::not_found(wish.dir)),
                })
                .await;
        }
        self.make(wish, view.revision).await
    }

    /// A token that was not there a moment ago, with a lease of its own.
    async fn make(&self, wish: &Wish<'_>, at: i64) -> Outcome<Written> {
        let refuse = |refusal: Refusal| Stop::Refused(refusal, at);
        let lease = random_lease().map_err(|why| refuse(Refusal::busy(why)))?;
        let (txn, told) = wish.token(lease).map_err(refuse)?;
        let until = Instant::now() + WRITE_PATIENCE;
        let turn = tokio::time::timeout_at(until.into(), self.discovery.making.lock()).await;
        let _turn = turn.map_err(|_| Stop::NotHere(EtcdError::Timeout))?;
        let max = self.discovery.config.tokens_max;
        if self.tokens_count().map_err(|error| self.failed(error, at))? >= max {
            let why = format!(
                "there are {max} tokens already, as many as discovery-service-tokens allows; they end by themselves"
            );
            return Err(refuse(Refusal::kept_back(&why)));
        }
        let ttl = i64::try_from(self.discovery.config.lifetime.as_secs()).unwrap_or(i64::MAX).max(1);
        let grant = pb::LeaseGrantRequest { id: lease, ttl };
        self.check_space(lease_cost(&grant)).map_err(|error| self.failed(error, at))?;
        let granted = tokio::time::timeout_at(until.into(), self.edge.backend.lease_grant(grant)).await;
        granted.unwrap_or(Err(EtcdError::Timeout)).map_err(|error| self.failed(error, at))?;
        match self.propose(txn, until).await {
            Ok(response) if response.succeeded => {
                let size = wish.value;
                if size.parse::<u64>().is_ok_and(|size| size.is_multiple_of(2)) {
                    warn!(
                        token = short(wish.token),
                        size,
                        "discovery: a cluster of an even size tolerates no more failures than one that is smaller by one"
                    );
                }
                info!(
                    token = short(wish.token),
                    size,
                    ttl,
                    from = self.shown_from(),
                    "discovery: a token was made"
                );
                Ok(Written::told(told, &response))
            }
            Ok(_) => {
                self.let_go(lease).await;
                let why = format!("somebody else made {} at the same time", wish.token.as_str());
                Err(refuse(Refusal::frozen(why)))
            }
            // Whether the token is there is not known; its lease ends with it or for itself.
            Err(error) => Err(self.failed(error, at)),
        }
    }

    /// `/new?size=N`.
    async fn new_token(&self, head: &request::Parts) -> Response<Body> {
        if !matches!(head.method, Method::GET | Method::PUT | Method::POST) {
            let mut response = crate::http::error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,PUT,POST"));
            return response;
        }
        let bad = |why: &str| crate::http::error(StatusCode::BAD_REQUEST, why);
        let size = match form::of_query(head.uri.query().unwrap_or_default(), "size") {
            Ok(size) => size.unwrap_or_else(|| SIZE_DEFAULT.to_string()),
            Err(why) => return bad(&why),
        };
        if let Err(refusal) = rules::check_size(&size) {
            return bad(&refusal.cause);
        }
        let Some(host) = host(head) else {
            return bad("which host this is was not said: the Host header");
        };
        let mut bytes = [0; 16];
        if let Err(error) = getrandom::fill(&mut bytes) {
            return crate::http::error(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("unable to generate token: {error}"),
            );
        }
        let text = format!("{:032x}", u128::from_be_bytes(bytes));
        let token = Token::new(&text).expect("digits make a token");
        let wish = Wish { token: &token, dir: "", value: &size, prev_exist: Some(false), spelled: &[] };
        match self.make(&wish, self.now()).await {
            Ok(_) => {
                let mut response = Response::new(Body::Whole(format!("http://{host}/{text}").into()));
                response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
                response
            }
            Err(Stop::Refused(refusal, _)) => {
                crate::http::error(refusal.status, format!("unable to generate token: {}", refusal.cause))
            }
            Err(Stop::NotHere(error)) => {
                let target = head.uri.path_and_query().map_or("/new", |target| target.as_str());
                match self.other_member().await {
                    Some(other) => redirect(&format!("{other}{target}")),
                    None => crate::http::error(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("unable to generate token: {}", error.text()),
                    ),
                }
            }
        }
    }

    /// The token now, as a quorum knows it.
    async fn view(&self, token: &Token, patience: std::time::Duration) -> Outcome<View> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let read = tokio::time::timeout_at(until, self.edge.backend.range(token.read())).await;
            match read.unwrap_or(Err(EtcdError::Timeout)) {
                Ok(response) => return Ok(View::of(token, &response)),
                Err(error) if !is_passing(error) => return Err(self.failed(error, self.now())),
                Err(error) if tokio::time::Instant::now() + AGAIN >= until => {
                    return Err(Stop::NotHere(error));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn propose(&self, txn: pb::TxnRequest, until: Instant) -> Result<pb::TxnResponse, EtcdError> {
        self.check_space(txn_cost(&txn))?;
        tokio::time::timeout_at(until.into(), self.edge.backend.txn(txn))
            .await
            .unwrap_or(Err(EtcdError::Timeout))
    }

    fn check_space(&self, cost_bytes: u64) -> Result<(), EtcdError> {
        if self.edge.backend.has_space_for(cost_bytes) {
            return Ok(());
        }
        self.edge.backend.raise_no_space();
        Err(EtcdError::NoSpace)
    }

    fn tokens_count(&self) -> Result<usize, EtcdError> {
        let (key, range_end) = token::prefix(REGISTRY);
        let all = pb::RangeRequest {
            key,
            range_end,
            keys_only: true,
            limit: KEYS_COUNTED_MAX,
            ..Default::default()
        };
        let keys = self.edge.backend.range_local(&all)?.kvs;
        Ok(keys.iter().filter(|kv| token::belongs(&kv.key).is_some_and(|(_, is_size)| is_size)).count())
    }

    /// A lease that holds nothing; it would end by itself, but a long time from now.
    async fn let_go(&self, lease: i64) {
        if lease != 0 {
            let _ = self.edge.backend.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await;
        }
    }

    fn failed(&self, error: EtcdError, at: i64) -> Stop {
        match error {
            EtcdError::NotSupportedForLearner => Stop::NotHere(error),
            EtcdError::NoSpace => Stop::Refused(
                Refusal::invalid(
                    "the store of the discovery service is full (NOSPACE); its operator has to make room",
                ),
                at,
            ),
            error if is_passing(error) => Stop::NotHere(error),
            error => Stop::Refused(Refusal::busy(error.text().to_owned()), at),
        }
    }

    /// Reads fail and are repeated by clients; anything else is sent to another member.
    async fn elsewhere(&self, error: EtcdError, target: &str, is_read: bool) -> Response<Body> {
        if (!is_read || error == EtcdError::NotSupportedForLearner)
            && let Some(other) = self.other_member().await
        {
            let joint = if target.contains('?') { '&' } else { '?' };
            return redirect(&format!("{other}{target}{joint}{TRIED}=true"));
        }
        let mut response = self.refused(&Refusal::unavailable(error.text()), self.now());
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    /// Where another member serves clients: the leader when it is known.
    async fn other_member(&self) -> Option<String> {
        let status = self.edge.backend.node_status();
        let members =
            self.edge.backend.member_list(pb::MemberListRequest { linearizable: false }).await.ok()?;
        let others =
            || members.members.iter().filter(|member| member.id != status.member.0 && !member.is_learner);
        let leader = others().find(|member| member.id == status.leader.0);
        let url = |member: &pb::Member| {
            let is_http = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
            member.client_ur_ls.iter().find(is_http).map(|url| url.trim_end_matches('/').to_owned())
        };
        leader.into_iter().chain(others()).find_map(url)
    }

    fn answer(&self, status: StatusCode, index: i64, json: String) -> Response<Body> {
        let mut response = Response::new(Body::Whole(json.into()));
        *response.status_mut() = status;
        self.add_headers(response.headers_mut(), index, true);
        response
    }

    fn refused(&self, refusal: &Refusal, index: i64) -> Response<Body> {
        let mut response = Response::new(Body::Whole(refusal.json(index).into()));
        *response.status_mut() = refusal.status;
        self.add_headers(response.headers_mut(), if refusal.is_of_form { 0 } else { index }, false);
        response
    }

    fn add_headers(&self, headers: &mut HeaderMap, index: i64, is_success: bool) {
        let cluster = self.edge.backend.header(1).cluster_id;
        let cluster = HeaderValue::from_str(&format!("{cluster:x}")).expect("digits make a header");
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(CLUSTER, cluster);
        headers.insert(INDEX, HeaderValue::from(index));
        if is_success {
            let status = self.edge.backend.node_status();
            headers.insert(RAFT_INDEX, HeaderValue::from(status.committed.0));
            headers.insert(RAFT_TERM, HeaderValue::from(status.term.0));
        }
    }

    /// The store's revision here.
    fn now(&self) -> i64 {
        self.edge.backend.header(0).revision
    }

    fn shown_from(&self) -> String {
        self.from.map(|from| from.to_string()).unwrap_or_default()
    }
}

/// A key of a token in the words of one request.
struct Spot<'a> {
    token: &'a Token,
    dir: &'a str,
    shown: &'a str,
    part: &'a Part,
    /// See [`Wish::spelled`].
    spelled: Vec<String>,
}

struct Written {
    status: StatusCode,
    body: String,
    revision: i64,
    is_new: bool,
}

impl Written {
    fn told(told: Told, response: &pb::TxnResponse) -> Written {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let (status, body) = told.at(revision);
        Written { status, body, revision, is_new: true }
    }
}

/// Reads a form, as long as it is no larger and no slower than a member's.
async fn collect(body: Incoming) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, FORM_BYTES_MAX).collect();
    match tokio::time::timeout(FORM_PATIENCE, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::too_large(format!("a form has at most {FORM_BYTES_MAX} bytes here")))
        }
        Ok(Err(error)) => Err(Refusal::form(format!("the form broke off: {error}"))),
        Err(_) => Err(Refusal::form("the form did not arrive".into())),
    }
}

/// What passes by itself, most of it with the next leader.
fn is_passing(error: EtcdError) -> bool {
    matches!(
        error,
        EtcdError::NoLeader
            | EtcdError::LeaderChanged
            | EtcdError::Timeout
            | EtcdError::TimeoutDueToLeaderFail
            | EtcdError::TimeoutDueToConnectionLost
            | EtcdError::TimeoutWaitAppliedIndex
            | EtcdError::Unhealthy
            | EtcdError::Stopped
            | EtcdError::RequestTooManyRequests
    )
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::Done);
    match HeaderValue::from_str(to) {
        Ok(to) => {
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert(header::LOCATION, to);
        }
        Err(_) => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
    }
    response
}

/// As the client reached this member.
fn host(head: &request::Parts) -> Option<&str> {
    let said = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = said.or_else(|| head.uri.authority().map(|authority| authority.as_str()))?;
    let can_stand = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let is_host = !host.is_empty() && host.bytes().all(can_stand);
    is_host.then_some(host)
}

/// The URLs that lead to the directory of what is at this path: what a member that asks for it may have been given.
fn spellings(host: Option<&str>, path: &str) -> Vec<String> {
    let Some(host) = host else { return Vec::new() };
    let dir = path.rsplit_once('/').map_or(path, |(dir, _)| dir);
    ["http", "https"]
        .into_iter()
        .flat_map(|scheme| ["", "/"].map(|end| format!("{scheme}://{host}{dir}{end}")))
        .collect()
}

/// Positive, as etcd's clients want them.
fn random_lease() -> Result<i64, String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok((i64::from_be_bytes(bytes) & i64::MAX).max(1))
}

/// Enough to find it by, too little to register with.
fn short(token: &Token) -> &str {
    let text = token.as_str();
    &text[..text.len().min(8)]
}
