//! The questions of a member that joins: asked of everybody at once, in rounds, until the answers make a place or a refusal.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tracing::{info, warn};
use transport::{PeerClient, PeerClientError};

use super::{
    facts,
    join::{self, Again, Answer, Joiner, Place, Question, Said, Verdict, decide},
    plan::Addresses,
};
use crate::{
    config::{Note, cluster::InitialCluster, urls::Url},
    identity::{Identity, KnownMember},
    refusal::Refusal,
    systemd,
};

/// For one question to one URL. A member that answers at all does so within milliseconds; this bounds a round.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(250);

/// What a member that lags may say is asked again for so long: a member that is not cut off has applied a change by then, and a refusal
/// comes within five seconds.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// No start waits in silence for longer.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// No place. Where the member has been in the cluster before: which it had.
pub struct Missed {
    pub refusal: Refusal,
    pub place: Option<Box<Place>>,
}

impl From<Refusal> for Missed {
    fn from(refusal: Refusal) -> Missed {
        Missed { refusal, place: None }
    }
}

/// Asks until there is a place, a refusal, or `limit` is over.
pub fn place_or_lost(joiner: &Joiner, limit: Duration, notes: &mut Vec<Note>) -> Result<Place, Missed> {
    runtime()?.block_on(ask(joiner, limit, notes))
}

async fn ask(joiner: &Joiner, limit: Duration, notes: &mut Vec<Note>) -> Result<Place, Missed> {
    let client = PeerClient::new(PATIENCE.min(limit.max(PAUSE)));
    let urls: Vec<&Url> = joiner.others.iter().flat_map(|member| &member.peer_urls).collect();
    let began = Instant::now();
    let mut told = began;
    let mut doubted: Option<Instant> = None;
    loop {
        let answers = round(&client, &urls).await;
        let settled = doubted.is_some_and(|since| since.elapsed() >= SETTLES_WITHIN.min(limit));
        let (waiting, refusal) = match judge(joiner, &answers, settled, notes) {
            Verdict::Join(place) => return Ok(place),
            Verdict::Lost(place, refusal) => return Err(Missed { refusal, place: Some(place) }),
            Verdict::Refuse(refusal) => return Err(refusal.into()),
            Verdict::AskAgain(refusal) if settled => return Err(refusal.into()),
            Verdict::AskAgain(refusal) => {
                doubted.get_or_insert_with(Instant::now);
                (refusal.cause().to_owned(), refusal)
            }
            Verdict::Wait(refusal) => {
                doubted = None;
                (refusal.cause().to_owned(), refusal)
            }
        };
        // Somebody who answers, but behind the times, is given the time to catch up even when the patience is shorter.
        if began.elapsed() >= limit && doubted.is_none() {
            return Err(refusal.into());
        }
        systemd::status(&format!("joining: asking the running cluster for a place: {waiting}"));
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            let silent: Vec<String> = answers
                .iter()
                .filter_map(|answer| Some(format!("{}: {}", answer.url, answer.said.as_ref().err()?)))
                .collect();
            info!(
                waited_s = began.elapsed().as_secs(),
                limit_s = limit.as_secs(),
                why = waiting,
                ?silent,
                "waiting for the cluster to join"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// For a member that was stopped before anything of the cluster's log had reached it: who may send the log now. Nobody has to answer.
pub fn again(
    identity: &Identity,
    given: &InitialCluster,
    data_dir: &str,
) -> Result<Option<Vec<KnownMember>>, Refusal> {
    let stored = identity.members.iter().filter(|member| member.id != identity.member_id);
    let stored = stored.flat_map(|member| &member.peer_urls).filter_map(|text| Url::parse(text).ok());
    let given = given.members().iter().filter(|member| member.name.as_str() != identity.name);
    let urls: BTreeSet<Url> =
        stored.chain(given.flat_map(|member| member.peer_urls.iter().cloned())).collect();
    let urls: Vec<&Url> = urls.iter().collect();
    let client = PeerClient::new(PATIENCE);
    runtime()?.block_on(async {
        let began = Instant::now();
        loop {
            match join::again(identity, &round(&client, &urls).await, data_dir) {
                Again::AsBefore => return Ok(None),
                Again::With(members) => return Ok(Some(members)),
                Again::Gone(refusal) if began.elapsed() >= SETTLES_WITHIN => return Err(refusal),
                Again::Gone(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    })
}

pub fn runtime() -> Result<tokio::runtime::Runtime, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Refusal::io("start", "the runtime for questions".as_ref(), &error))
}

/// Host names are resolved only when the texts alone do not make a place.
fn judge(joiner: &Joiner, answers: &[Answer], settled: bool, notes: &mut Vec<Note>) -> Verdict {
    let version = types::limits::ETCD_VERSION;
    let unresolved = Addresses::new();
    let mut question = Question { joiner, addresses: &unresolved, version, settled };
    let verdict = decide(&question, answers, notes);
    if matches!(verdict, Verdict::Join(_)) {
        return verdict;
    }
    let listed: Vec<Url> = answers
        .iter()
        .filter_map(|answer| answer.said.as_ref().ok())
        .flat_map(|said| &said.members)
        .flat_map(|member| &member.peer_urls)
        .filter_map(|text| Url::parse(text).ok())
        .collect();
    if listed.is_empty() {
        return verdict;
    }
    let given = joiner.others.iter().chain([&joiner.own]).flat_map(|member| &member.peer_urls);
    // Once each, whoever names them.
    let all: BTreeSet<&Url> = listed.iter().chain(given).collect();
    let addresses = facts::addresses(all.into_iter());
    if addresses.is_empty() {
        return verdict;
    }
    question.addresses = &addresses;
    decide(&question, answers, notes)
}

/// Everybody at once, so that one that hangs costs a round no more than its patience. In the order of the URLs.
async fn round(client: &PeerClient, urls: &[&Url]) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    for (at, url) in urls.iter().enumerate() {
        let (client, url) = (client.clone(), (*url).clone());
        asked.spawn(async move {
            let said = match url::Url::parse(url.as_str()) {
                Ok(dialled) => one(&client, &dialled).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            // As shown to people: a password in it is left out.
            (at, Answer { url: url.to_string(), said })
        });
    }
    let mut answers = Vec::new();
    while let Some(done) = asked.join_next().await {
        match done {
            Ok(answer) => answers.push(answer),
            Err(error) => warn!(%error, "a question to a member ended early"),
        }
    }
    answers.sort_by_key(|(at, _)| *at);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn one(client: &PeerClient, url: &url::Url) -> Result<Said, PeerClientError> {
    let answer = client.members(url).await?;
    let versions = client.version(url).await?;
    Ok(Said { cluster: answer.cluster, members: answer.members, cluster_version: versions.cluster })
}
