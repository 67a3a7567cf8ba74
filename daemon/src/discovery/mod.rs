//! Discovery: the first members of a new cluster are found through a service or DNS instead of being listed by hand. Three ways, one end:
//! the same [`InitialCluster`] that `--initial-cluster` would have given, on every member alike, or a refusal that names the cause.
//!
//! v2 and v3 services are registers: every member writes down its name and URLs under a token, and waits until the number that the token
//! asks for is there. [`register`] holds every decision about them and knows neither HTTP nor gRPC: answers in, next step out. [`v2`] and
//! [`v3`] translate, over [`http`] and [`grpc`]. [`srv`] decides the same way about DNS records, which [`dns`] looks up.
//!
//! Not here: what happens with the members found (`bootstrap`), the service for others (the server crate), any state on disk: a caller
//! keeps what [`Registering`] says.

mod dns;
mod grpc;
mod http;
mod register;
pub mod settings;
mod srv;
mod tls;
mod v2;
mod v3;

#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io,
    time::{Duration, Instant},
};

use state_machine::membership;
use types::MemberId;

use crate::{
    config::{
        cluster::{InitialCluster, MemberName},
        urls::{self, Url},
    },
    identity::host,
    refusal::Refusal,
};
use register::{Answer, Question, Register, Step};
pub use settings::Way;

/// No start waits in silence for longer.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// The member that looks for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub name: MemberName,
    /// Somebody chose the name; DNS may not give another.
    pub name_given: bool,
    /// As announced: what is registered, and hashed into the member's id.
    pub peer_urls: Vec<Url>,
}

/// What a member leaves at a service, and must remember to know it again after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registering {
    /// Without passwords; the hash is of the whole.
    pub token: String,
    pub token_sha256: String,
    pub member: MemberId,
    /// `name=url`, once per URL, with commas between.
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub cluster: InitialCluster,
    /// This member's entry. DNS names a member after its record when nobody chose a name.
    pub own: MemberName,
    /// What enters the ids, whole.
    pub token: String,
}

/// Why nothing was found.
#[derive(Debug, PartialEq, Eq)]
pub struct NotFound {
    pub refusal: Refusal,
    /// The service may hold this member's registration. Then the directory that remembers it must be kept; otherwise it must go, or the
    /// next start would take what a stranger registered for its own.
    pub seen: bool,
}

impl From<Refusal> for NotFound {
    fn from(refusal: Refusal) -> NotFound {
        NotFound { refusal, seen: false }
    }
}

/// What this member would register, before anything is asked. DNS takes no registrations.
pub fn registration(way: &Way, own: &Own) -> Option<Registering> {
    if matches!(way, Way::Srv(_)) {
        return None;
    }
    let mut peer_urls = urls::texts(&own.peer_urls);
    peer_urls.sort();
    let token = way.token();
    Some(Registering {
        token: host::redacted(token),
        token_sha256: host::sha256_hex(token),
        member: membership::member_id(&peer_urls, token, None),
        value: InitialCluster::alone(own.name.clone(), own.peer_urls.clone()).canonical(),
    })
}

/// Finds the first members. Waits as long as the settings say, telling every five seconds at least through `progress` what for.
///
/// `registered` is what an earlier start handed to `save`. `save` is called before the service is told anything and must have made its
/// argument durable when it returns; an error of it ends the search. Blocks, on a runtime of its own.
pub fn discover(
    way: &Way,
    own: &Own,
    registered: Option<&Registering>,
    save: &mut dyn FnMut(&Registering) -> io::Result<()>,
    progress: &mut dyn FnMut(String),
) -> Result<Found, NotFound> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::io("start", "the runtime for discovery".as_ref(), &error))?;
    let found = runtime.block_on(async {
        match (way, registration(way, own)) {
            (Way::V2(settings), Some(registering)) => {
                let register = Register::new(way, own, registering, registered, settings.patience);
                let service = http::Service::new(settings, register.own())?;
                run(register, service, save, progress).await
            }
            (Way::V3(settings), Some(registering)) => {
                let register = Register::new(way, own, registering, registered, settings.patience);
                let service = grpc::Service::new(settings, register.own())?;
                run(register, service, save, progress).await
            }
            (Way::Srv(settings), _) => Ok(dns::find(settings, own, progress).await?),
            (_, None) => unreachable!("a service takes registrations"),
        }
    });
    // A name that is still being resolved must not hold up what comes next.
    runtime.shutdown_background();
    found
}

/// A discovery service, as far as [`Register`] wants to know it.
trait Service {
    /// One question, one answer; never longer than the question allows.
    fn ask(&mut self, question: &Question) -> impl Future<Output = Answer>;
}

/// Carries out what the register decides.
async fn run(
    mut register: Register,
    mut service: impl Service,
    save: &mut dyn FnMut(&Registering) -> io::Result<()>,
    progress: &mut dyn FnMut(String),
) -> Result<Found, NotFound> {
    let began = Instant::now();
    let mut told = began;
    loop {
        let step = register.step(began.elapsed());
        for line in register.lines() {
            told = Instant::now();
            progress(line);
        }
        match step {
            Step::Ask(question) => {
                let answer = {
                    let asked = service.ask(&question);
                    let mut asked = std::pin::pin!(asked);
                    loop {
                        let rest = TOLD_EVERY.saturating_sub(told.elapsed());
                        match tokio::time::timeout(rest, &mut asked).await {
                            Ok(answer) => break answer,
                            Err(_) => {
                                told = Instant::now();
                                progress(register.waiting(began.elapsed()));
                            }
                        }
                    }
                };
                register.answer(answer, began.elapsed());
            }
            Step::Save => {
                let saved = save(register.own());
                saved.map_err(|error| {
                    Refusal::io("write", "the registration that is to be made".as_ref(), &error)
                })?;
                register.saved();
            }
            Step::Rest(pause) => {
                tokio::time::sleep(pause.min(TOLD_EVERY.saturating_sub(told.elapsed()))).await;
                if told.elapsed() >= TOLD_EVERY {
                    told = Instant::now();
                    progress(register.waiting(began.elapsed()));
                }
            }
            Step::Found(found) => return Ok(found),
            Step::Refuse(refusal) => return Err(NotFound { refusal, seen: register.seen() }),
        }
    }
}
