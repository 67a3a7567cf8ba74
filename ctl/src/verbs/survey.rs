//! The whole cluster as it shows itself to this tool at one moment: who is listed, what each member says, whether a quorum answers, what
//! alarms are raised. Read only, everything is asked at the same time and with a bound. Not here: what to think of it (`judge`).

use super::member::quorum;
use super::member::view::client_endpoints;
use crate::client::{self, ALARM_GET, Client, MEMBER_LIST, RANGE, STATUS};
use crate::failure::{Exit, Failure, Result};
use crate::output::text::one_line;
use crate::settings::Settings;
use crate::wire::endpoint::Endpoint;
use crate::wire::http1::Page;
use api::error::EtcdError;
use api::etcdserverpb::{
    self as pb, AlarmMember, AlarmRequest, AlarmResponse, MemberListRequest, MemberListResponse,
    RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

/// The key that is read to see whether a quorum answers; etcdctl's, so that the same permission is enough.
const PROBE_KEY: &str = "health";

/// How long one question of a survey may take. A quorum that is not there costs this once, not once for each question; an election fits.
const PATIENCE_MAX: Duration = Duration::from_secs(3);

/// The most of a page of metrics that is read: etcd's has about 150 kB.
pub const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One of `--endpoints`, and who is there.
#[derive(Clone, Debug)]
pub struct Asked {
    pub name: String,
    /// Cluster and member, or why there is no answer.
    pub who: Result<(u64, u64), String>,
}

/// A member, and what it says.
#[derive(Clone, Debug)]
pub struct Seen {
    pub member: pb::Member,
    pub status: Result<StatusResponse, String>,
    /// `/metrics`, when it was asked for.
    pub metrics: Option<Result<Page, String>>,
    /// How far its clock is ahead of ours, in seconds: at least, and at most. The server tells whole seconds.
    pub clock: Option<(i64, i64)>,
}

impl Seen {
    /// A member that has told its name was up once.
    pub fn is_started(&self) -> bool {
        !self.member.name.is_empty()
    }

    /// It answers and knows a leader.
    pub fn is_up(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.leader != 0)
    }

    pub fn leads(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.leader == self.member.id)
    }

    pub fn label(&self) -> String {
        if self.is_started() {
            format!("{:x} ({})", self.member.id, one_line(&self.member.name))
        } else {
            format!("{:x}", self.member.id)
        }
    }

    /// Why it is not up, in a few words.
    pub fn trouble(&self) -> Option<String> {
        match &self.status {
            Ok(status) if status.leader == 0 => Some("it answers and knows no leader".into()),
            Ok(_) => None,
            Err(_) if !self.is_started() => Some("it was never started".into()),
            Err(why) => Some(why.clone()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Survey {
    pub asked: Vec<Asked>,
    pub cluster: u64,
    pub members: Vec<Seen>,
    /// How long a linearizable read took, or why there was none.
    pub quorum: Result<Duration, String>,
    pub alarms: Result<Vec<AlarmMember>, String>,
}

impl Survey {
    /// Asks everybody. `metrics`: their pages too.
    ///
    /// # Errors
    /// When none of the endpoints can be reached, or none of them lists the members.
    pub async fn take(settings: &Settings, metrics: bool) -> Result<Survey> {
        let settings = &patient(settings, PATIENCE_MAX);
        let (asked, quorum, alarms, list) = tokio::join!(
            who(settings),
            read(settings, settings.endpoints.clone()),
            alarms(settings),
            list(settings)
        );
        let list = list?;
        let mut probes = JoinSet::new();
        for (at, member) in list.members.into_iter().enumerate() {
            let settings = settings.clone();
            probes.spawn(async move { (at, look(&settings, member, metrics).await) });
        }
        let mut members = Vec::new();
        while let Some(seen) = probes.join_next().await {
            members.push(seen.map_err(|error| Failure::new(Exit::Error, format!("ask a member: {error}")))?);
        }
        members.sort_by_key(|(at, _)| *at);
        let members = members.into_iter().map(|(_, seen)| seen).collect();
        Ok(Survey {
            asked,
            cluster: list.header.map_or(0, |header| header.cluster_id),
            members,
            quorum,
            alarms,
        })
    }

    pub fn numbers(&self) -> Vec<quorum::Member> {
        let number = |seen: &Seen| quorum::Member {
            id: seen.member.id,
            is_learner: seen.member.is_learner,
            is_started: seen.is_started(),
            is_up: seen.is_up(),
        };
        self.members.iter().map(number).collect()
    }

    /// What members say, of those who say something.
    pub fn statuses(&self) -> impl Iterator<Item = (&Seen, &StatusResponse)> {
        self.members.iter().filter_map(|seen| Some((seen, seen.status.as_ref().ok()?)))
    }

    pub fn leader(&self) -> Option<&Seen> {
        self.members.iter().find(|seen| seen.leads())
    }

    /// The newest position that any member knows to be committed.
    pub fn committed(&self) -> u64 {
        self.statuses().map(|(_, status)| status.raft_index).max().unwrap_or(0)
    }

    /// How many entries a member has still to apply; `None` when it does not say.
    pub fn behind(&self, seen: &Seen) -> Option<u64> {
        let status = seen.status.as_ref().ok()?;
        // etcd before 3.4 does not tell what it has applied.
        let applied =
            if status.raft_applied_index == 0 { status.raft_index } else { status.raft_applied_index };
        Some(self.committed().saturating_sub(applied))
    }

    /// The member with this id in hexadecimal, or else with this name.
    pub fn find(&self, text: &str) -> Option<&Seen> {
        let id = crate::units::parse_u64_hex(text).ok();
        let by_id = self.members.iter().find(|seen| Some(seen.member.id) == id);
        // Two of one name are none: nobody knows which is meant.
        let mut named = self.members.iter().filter(|seen| seen.member.name == text);
        by_id.or_else(|| named.next().filter(|_| named.next().is_none()))
    }
}

/// The same settings with a command that takes at most so long.
pub fn patient(settings: &Settings, most: Duration) -> Settings {
    let mut settings = settings.clone();
    settings.command_timeout = settings.command_timeout.min(most);
    settings.dial_timeout = settings.dial_timeout.min(most);
    settings.command_timeout_given = true;
    settings
}

/// The reason of a failure on one line: what the server said, or what the connection met.
pub fn reason(failure: &Failure) -> String {
    let details = failure.details.as_ref().filter(|_| failure.exit == Exit::BadConnection);
    let text = details.and_then(|details| details.evidence.first()).unwrap_or(&failure.headline);
    one_line(&text.replace('\n', " "))
}

async fn who(settings: &Settings) -> Vec<Asked> {
    let mut probes = JoinSet::new();
    for (at, endpoint) in settings.endpoints.iter().cloned().enumerate() {
        let settings = settings.clone();
        probes.spawn(async move {
            let name = endpoint.name.clone();
            let who = status(&settings, vec![endpoint]).await.map(|status| {
                let header = status.header.unwrap_or_default();
                (header.cluster_id, header.member_id)
            });
            (at, Asked { name, who })
        });
    }
    let mut asked = probes.join_all().await;
    asked.sort_by_key(|(at, _)| *at);
    asked.into_iter().map(|(_, asked)| asked).collect()
}

/// What one member says.
pub async fn status(settings: &Settings, endpoints: Vec<Endpoint>) -> Result<StatusResponse, String> {
    let client = Client::over(settings, endpoints, false).map_err(|failure| reason(&failure))?;
    let mut client = client.asking_once();
    client.call(&STATUS, &StatusRequest {}).await.map_err(|failure| reason(&failure))
}

/// A linearizable read at these endpoints: how long it took. Who may not read has shown that a quorum answers.
pub async fn read(settings: &Settings, endpoints: Vec<Endpoint>) -> Result<Duration, String> {
    let began = Instant::now();
    let mut client = Client::over(settings, endpoints, false).map_err(|failure| reason(&failure))?;
    let request = RangeRequest { key: PROBE_KEY.into(), count_only: true, ..Default::default() };
    match client.call::<RangeResponse>(&RANGE, &request).await {
        Ok(_) => Ok(began.elapsed()),
        Err(failure) if failure.headline == EtcdError::PermissionDenied.text() => Ok(began.elapsed()),
        Err(failure) => Err(reason(&failure)),
    }
}

async fn alarms(settings: &Settings) -> Result<Vec<AlarmMember>, String> {
    let mut client = Client::new(settings, false).map_err(|failure| reason(&failure))?;
    let answer: AlarmResponse =
        client.call(&ALARM_GET, &AlarmRequest::default()).await.map_err(|failure| reason(&failure))?;
    Ok(answer.alarms)
}

/// The list as a quorum knows it, else as a member knew it last.
pub async fn list(settings: &Settings) -> Result<MemberListResponse> {
    let request = |linearizable| MemberListRequest { linearizable };
    match Client::new(settings, false)?.call(&MEMBER_LIST, &request(true)).await {
        Err(failure) if failure.exit != Exit::BadConnection => {
            Client::new(settings, false)?.call(&MEMBER_LIST, &request(false)).await.map_err(|_| failure)
        }
        answer => answer,
    }
}

async fn look(settings: &Settings, member: pb::Member, metrics: bool) -> Seen {
    let endpoints = client_endpoints(&member.client_ur_ls);
    if endpoints.is_empty() {
        let why = if member.name.is_empty() { "it was never started" } else { "it has no client URL" };
        return Seen { member, status: Err(why.into()), metrics: None, clock: None };
    }
    let (status, page) = tokio::join!(status(settings, endpoints.clone()), async {
        if metrics { Some(page(settings, &endpoints, "/metrics").await) } else { None }
    });
    let status = status.and_then(|status| match status.header.unwrap_or_default().member_id {
        id if id == member.id => Ok(status),
        other => Err(format!("member {other:x} answers at its client URLs")),
    });
    let clock = page.as_ref().and_then(|page| page.as_ref().ok()?.1);
    Seen { member, status, metrics: page.map(|page| page.map(|(page, _)| page)), clock }
}

/// A page of the first of these endpoints that has it, and what it says of the clock there.
async fn page(
    settings: &Settings,
    endpoints: &[Endpoint],
    path: &str,
) -> Result<(Page, Option<(i64, i64)>), String> {
    let dialer = client::dialer(settings, endpoints).map_err(|failure| reason(&failure))?;
    let mut trouble = String::new();
    for endpoint in endpoints {
        let before = now();
        let get = dialer.get(endpoint, path, PAGE_BYTES_MAX);
        let why = match tokio::time::timeout(settings.command_timeout, get).await {
            Ok(Ok(page)) if page.status == 200 => {
                // The truth lies in the second that was told, and between question and answer.
                let clock = page.date.map(|date| (date - now() - 1, date + 1 - before));
                return Ok((page, clock));
            }
            Ok(Ok(page)) => format!("HTTP status {}", page.status),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        trouble = format!("{}: {why}", endpoint.name);
    }
    Err(trouble)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
