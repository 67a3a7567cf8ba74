//! The members as the cluster lists them, and what each says when it is asked at its client URLs. Read only.

use super::quorum;
use crate::client::{Client, MEMBER_LIST, STATUS};
use crate::failure::{Exit, Failure, Result};
use crate::output::text::one_line;
use crate::settings::Settings;
use crate::units::parse_u64_hex;
use crate::wire::endpoint::Endpoint;
use api::etcdserverpb::{self as pb, MemberListRequest, MemberListResponse, StatusRequest, StatusResponse};
use tokio::task::JoinSet;

/// A member, and how it is.
#[derive(Clone, Debug)]
pub struct Seen {
    pub member: pb::Member,
    /// Its own words, or why there are none.
    pub status: Result<StatusResponse, String>,
}

impl Seen {
    /// A member that has told its name was up once.
    pub fn is_started(&self) -> bool {
        !self.member.name.is_empty()
    }

    pub fn is_up(&self) -> bool {
        self.status.is_ok()
    }

    pub fn leads(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.leader == self.member.id)
    }

    pub fn condition(&self) -> String {
        match &self.status {
            Ok(_) if self.leads() => "up, leads".into(),
            Ok(_) => "up".into(),
            Err(_) if !self.is_started() => "not started".into(),
            Err(why) => format!("down: {why}"),
        }
    }

    /// A member that has not told its name has its id for one.
    pub fn label(&self) -> String {
        if self.is_started() {
            format!("{:x} ({})", self.member.id, one_line(&self.member.name))
        } else {
            format!("{:x}", self.member.id)
        }
    }
}

/// All members at one moment.
pub struct View {
    pub cluster: u64,
    pub members: Vec<Seen>,
}

impl View {
    /// Asks for the list, and then every member of it at the same time.
    pub async fn take(settings: &Settings, endpoints: Vec<Endpoint>) -> Result<View> {
        let list = |linearizable| MemberListRequest { linearizable };
        let mut client = Client::over(settings, endpoints.clone(), false)?;
        let answer: MemberListResponse = match client.call(&MEMBER_LIST, &list(true)).await {
            Ok(answer) => answer,
            Err(failure) if failure.exit == Exit::BadConnection => return Err(failure),
            // Without a quorum a member still knows whom it knew last; the arithmetic then says that there is none.
            Err(failure) => {
                let mut client = Client::over(settings, endpoints, false)?;
                client.call(&MEMBER_LIST, &list(false)).await.map_err(|_| failure)?
            }
        };
        let mut probes = JoinSet::new();
        for (at, member) in answer.members.into_iter().enumerate() {
            let settings = settings.clone();
            probes.spawn(async move {
                let status = ask(&settings, &member).await;
                (at, Seen { member, status })
            });
        }
        let mut members = Vec::new();
        while let Some(seen) = probes.join_next().await {
            members.push(seen.map_err(|error| Failure::new(Exit::Error, format!("ask a member: {error}")))?);
        }
        members.sort_by_key(|(at, _)| *at);
        let cluster = answer.header.map_or(0, |header| header.cluster_id);
        Ok(View { cluster, members: members.into_iter().map(|(_, seen)| seen).collect() })
    }

    /// What the arithmetic needs. The member `new`, when it is there already, goes by that name.
    pub fn numbers(&self, new: Option<u64>) -> Vec<quorum::Member> {
        let number = |seen: &Seen| quorum::Member {
            id: if Some(seen.member.id) == new { quorum::NEW } else { seen.member.id },
            is_learner: seen.member.is_learner,
            is_started: seen.is_started(),
            is_up: seen.is_up(),
        };
        self.members.iter().map(number).collect()
    }

    /// The member with this id in hexadecimal, or else with this name; `except` is not meant.
    pub fn find(&self, text: &str, except: Option<u64>) -> Result<Option<&Seen>> {
        let mut others = self.members.iter().filter(|seen| Some(seen.member.id) != except);
        let id = parse_u64_hex(text).ok();
        if let Some(seen) = others.clone().find(|seen| Some(seen.member.id) == id) {
            return Ok(Some(seen));
        }
        let found = others.find(|seen| seen.member.name == text);
        if others.any(|seen| seen.member.name == text) {
            let why = format!("several members are called {text:?}; name one by its id in hexadecimal");
            return Err(Failure::arguments(why));
        }
        Ok(found)
    }
}

async fn ask(settings: &Settings, member: &pb::Member) -> Result<StatusResponse, String> {
    let endpoints = client_endpoints(&member.client_ur_ls);
    if endpoints.is_empty() {
        return Err("it has no client URL".into());
    }
    let mut client = Client::over(settings, endpoints, false).map_err(|failure| failure.headline)?;
    let status: StatusResponse = client.call(&STATUS, &StatusRequest {}).await.map_err(|failure| {
        let evidence = failure.details.and_then(|details| details.evidence.into_iter().next());
        evidence.unwrap_or(failure.headline)
    })?;
    let who = status.header.unwrap_or_default().member_id;
    if who != member.id {
        return Err(format!("member {who:x} answers at its client URLs"));
    }
    if status.leader == 0 {
        return Err("it answers and has no leader".into());
    }
    Ok(status)
}

/// Where to ask: the client URLs that can be understood.
pub fn client_endpoints(urls: &[String]) -> Vec<Endpoint> {
    urls.iter().filter_map(|url| Endpoint::parse(url, false).ok()).collect()
}
