//! lease grant, revoke, timetolive, list and keep-alive.

use super::confirm::{self, Blast};
use super::{begin, show};
use crate::cli;
use crate::client::{
    Client, LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_LEASES, LEASE_REVOKE, LEASE_TIME_TO_LIVE, server_failure,
};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::text::readable;
use crate::output::{Printer, Shape, lease_id, tell};
use crate::session::{Ended, Session};
use crate::settings::Settings;
use crate::units::{Radix, parse_i64};
use api::error::EtcdError;
use api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use clap::ArgMatches;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// A lease is renewed this many times in its time to live, so that one lost attempt costs nothing. etcd's clients do the same.
const RENEWALS_PER_TTL: u32 = 3;
/// The least time one renewal may take before another member is asked; the shortest leases would else leave none for a handshake.
const PATIENCE_MIN: Duration = Duration::from_millis(500);
/// `lease list` asks for the time to live of so many, one after another: a second's work at most cluster sizes.
const LIVES_MAX: usize = 1000;
/// Pause between attempts while no member renews: an election takes about ten of them.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Keys that are named before a lease is revoked: as many as one can take in.
const KEYS_SHOWN: usize = 10;

fn one_argument(matches: &ArgMatches, complaint: &str) -> Result<String> {
    match cli::arguments(matches).as_slice() {
        [argument] => Ok(String::from_utf8_lossy(argument).into_owned()),
        _ => Err(Failure::arguments(complaint)),
    }
}

fn id_argument(matches: &ArgMatches, complaint: &str) -> Result<i64> {
    parse_i64(&one_argument(matches, complaint)?, Radix::Hex)
        .map_err(|why| Failure::arguments(format!("bad lease ID arg ({why}), expecting ID in Hex")))
}

/// etcdctl's words around what the server said. What only this tool knows stays as it is.
fn wrapped(verb: &str, failure: Failure) -> Failure {
    if failure.details.is_some() || failure.exit != Exit::Error {
        return failure;
    }
    Failure { headline: format!("failed to {verb} lease ({})", failure.headline), ..failure }
}

/// etcdctl takes every refusal of the other verbs for a bad connection, and scripts know that code.
fn as_bad_connection(failure: Failure) -> Failure {
    if failure.details.is_some() { failure } else { Failure { exit: Exit::BadConnection, ..failure } }
}

pub async fn grant(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let ttl = one_argument(matches, "lease grant command needs TTL argument")?;
    let ttl =
        parse_i64(&ttl, Radix::Decimal).map_err(|why| Failure::arguments(format!("bad TTL ({why})")))?;
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_table_and_raw()?;
    let answer = client.call(&LEASE_GRANT, &LeaseGrantRequest { ttl, id: 0 }).await;
    let answer: LeaseGrantResponse = answer.map_err(|failure| wrapped("grant", failure))?;
    show(&printer.lease_grant(&answer)?)
}

/// The keys that end with a lease; a lease without any is not worth a question.
async fn revocation(settings: &Settings, id: i64) -> Result<Blast> {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let lease: LeaseTimeToLiveResponse =
        Client::new(settings, false)?.call(&LEASE_TIME_TO_LIVE, &request).await?;
    let keys = lease.keys.iter().take(KEYS_SHOWN).map(|key| format!("\"{}\"", readable(key)));
    let mut more: Vec<String> = keys.collect();
    if lease.keys.len() > KEYS_SHOWN {
        more.push(format!("and {}", confirm::count((lease.keys.len() - KEYS_SHOWN) as u64, "more key")));
    }
    let number = confirm::count(lease.keys.len() as u64, "attached key");
    let what = format!("revoke lease {} and delete {number}", lease_id(id));
    Ok(Blast { what, more, ask: !lease.keys.is_empty() })
}

pub async fn revoke(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = id_argument(matches, "lease revoke command needs 1 argument")?;
    Printer::new(settings).refuse_table_and_raw()?;
    if !confirm::gate(matches, async || revocation(settings, id).await).await? {
        return Ok(());
    }
    let (mut client, printer) = begin(settings, false)?;
    let answer = client.call(&LEASE_REVOKE, &LeaseRevokeRequest { id }).await;
    let answer: LeaseRevokeResponse = answer.map_err(|failure| wrapped("revoke", failure))?;
    show(&printer.lease_revoke(id, &answer)?)
}

pub async fn time_to_live(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = id_argument(matches, "lease timetolive command needs lease ID as argument")?;
    let keys = cli::on(matches, "keys");
    let (mut client, printer) = begin(settings, true)?;
    printer.refuse_table_and_raw()?;
    let answer = client.call(&LEASE_TIME_TO_LIVE, &LeaseTimeToLiveRequest { id, keys }).await;
    let answer: LeaseTimeToLiveResponse = answer.map_err(as_bad_connection)?;
    show(&printer.time_to_live(&answer, keys)?)
}

pub async fn list(settings: &Settings) -> Result<()> {
    let (mut client, printer) = begin(settings, true)?;
    printer.refuse_table()?;
    let answer = client.call(&LEASE_LEASES, &LeaseLeasesRequest {}).await;
    let answer: LeaseLeasesResponse = answer.map_err(as_bad_connection)?;
    let lives = match printer.shape {
        None | Some(Shape::Raw) => Vec::new(),
        Some(_) => lives(&mut client, &answer).await,
    };
    show(&printer.leases(&answer, &lives)?)
}

/// What is left of each lease, which the list itself does not tell. One that cannot be asked for has none; the others are shown all the same.
async fn lives(client: &mut Client, leases: &LeaseLeasesResponse) -> Vec<Option<LeaseTimeToLiveResponse>> {
    let mut lives = Vec::new();
    for lease in leases.leases.iter().take(LIVES_MAX) {
        let request = LeaseTimeToLiveRequest { id: lease.id, keys: false };
        lives.push(client.call(&LEASE_TIME_TO_LIVE, &request).await.ok());
    }
    lives
}

pub async fn keep_alive(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = id_argument(matches, "lease keep-alive command needs lease ID as argument")?;
    let (mut client, printer) = begin(settings, true)?;
    printer.refuse_table_and_raw()?;
    if cli::on(matches, "once") {
        let answer = client.call(&LEASE_KEEP_ALIVE, &LeaseKeepAliveRequest { id }).await;
        let answer: LeaseKeepAliveResponse = answer.map_err(as_bad_connection)?;
        if answer.ttl <= 0 {
            return Err(Failure::new(Exit::BadConnection, EtcdError::LeaseNotFound.text()));
        }
        return show(&printer.keep_alive(&answer)?);
    }
    let mut keeper = Keeper::begin(client.without_deadline(), id, settings.command_timeout).await?;
    loop {
        let asked = Instant::now();
        let answer = keeper.renew().await?;
        if answer.ttl <= 0 {
            // etcdctl's end of this story: the text only in the simple format, and success.
            let gone = format!("lease {} expired or revoked.\n", lease_id(id));
            return if printer.is_simple() { show(gone.as_bytes()) } else { Ok(()) };
        }
        show(&printer.keep_alive(&answer)?)?;
        sleep_until(asked + keeper.ttl / RENEWALS_PER_TTL).await;
    }
}

/// Renews one lease wherever that is possible.
struct Keeper {
    client: Client,
    session: Option<Session>,
    id: i64,
    /// Of the last renewal; before the first one, what the command may take.
    ttl: Duration,
    /// Until when the lease certainly lives: counted from before the last successful request was sent.
    certain_until: Instant,
    /// Where and why renewing last went wrong; cleared by the next renewal.
    trouble: Vec<String>,
}

impl Keeper {
    async fn begin(mut client: Client, id: i64, ttl: Duration) -> Result<Keeper> {
        let session = Some(client.open(&LEASE_KEEP_ALIVE).await?);
        let certain_until = Instant::now() + ttl;
        Ok(Keeper { client, session, id, ttl, certain_until, trouble: Vec::new() })
    }

    /// The next renewal, or the news that there is no such lease. Goes from member to member while the lease may be alive.
    async fn renew(&mut self) -> Result<LeaseKeepAliveResponse> {
        loop {
            let asked = Instant::now();
            if asked >= self.certain_until {
                return Err(self.uncertain());
            }
            if self.session.is_none() {
                match timeout_at(self.certain_until, self.client.open(&LEASE_KEEP_ALIVE)).await {
                    Err(_) => return Err(self.uncertain()),
                    Ok(Ok(session)) => self.session = Some(session),
                    Ok(Err(failure)) => {
                        self.trouble = failure.details.map_or(vec![failure.headline], |d| d.evidence);
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                }
            }
            let session = self.session.as_mut().expect("just opened");
            let patience = (self.ttl / RENEWALS_PER_TTL).max(PATIENCE_MIN);
            let why = match timeout(patience, ask(session, self.id)).await {
                Ok(Ok(answer)) => {
                    self.ttl = Duration::from_secs(answer.ttl.max(0).unsigned_abs());
                    self.certain_until = asked + self.ttl;
                    self.trouble.clear();
                    return Ok(answer);
                }
                Ok(Err(Ended::Refused(status))) if self.client.renew_token(&status) => status.message,
                Ok(Err(Ended::Refused(status))) => return Err(as_bad_connection(server_failure(&status))),
                Ok(Err(Ended::Lost(why))) => why,
                Err(_) => format!("no answer within {patience:?}"),
            };
            let evidence = format!("{}: {why}", session.endpoint);
            if self.trouble.is_empty() {
                // Once per outage; the next renewal speaks for itself.
                tell(format_args!("lease keep-alive: lost {evidence}; asking the next endpoint"));
            }
            self.trouble = vec![evidence];
            self.session = None;
            self.client.leave();
            sleep(RETRY_PAUSE).await;
        }
    }

    fn uncertain(&self) -> Failure {
        let id = lease_id(self.id);
        let headline = format!("[LEASE_NOT_RENEWED] lease {id} could not be renewed within its time to live");
        Failure::new(Exit::BadConnection, headline).with(Details {
            cause: format!(
                "no member renewed it for {:?}; it may have expired, and its keys with it",
                self.ttl
            ),
            evidence: self.trouble.clone(),
            remedy: vec![
                "see whether the cluster has a leader: cairnctl endpoint status --cluster -w table".into(),
                format!("see whether the lease is alive: cairnctl lease timetolive {id}"),
            ],
            never: "do not go on as its owner before you know; somebody else may own the keys by now".into(),
        })
    }
}

async fn ask(session: &mut Session, id: i64) -> Result<LeaseKeepAliveResponse, Ended> {
    session.send(&LeaseKeepAliveRequest { id }).await?;
    session.next().await
}
