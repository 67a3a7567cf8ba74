//! What the cluster behind `--endpoints` says over the client API: who is in it, who leads, how far each has come, and whose clock differs.

use std::time::{Duration, SystemTime};

use api::etcdserverpb::{
    Member, MemberListRequest, StatusRequest, cluster_client::ClusterClient,
    maintenance_client::MaintenanceClient,
};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use super::{Report, member};
use crate::{
    config::{Settings, urls},
    identity::Identity,
    refusal::chain,
};

/// For one question to one endpoint.
const PATIENCE: Duration = Duration::from_secs(3);

/// HTTP tells whole seconds, and the question takes a moment.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// An answer to `GET /version` with its headers.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub async fn examine(asked: &[String], settings: &Settings, own: Option<&Identity>, report: &mut Report) {
    let mut listed: Option<Vec<Member>> = None;
    for endpoint in asked {
        let text = if endpoint.contains("://") { endpoint.clone() } else { format!("http://{endpoint}") };
        if text.starts_with("https://") {
            report.warn("endpoint", format!("{text}: TLS is not supported by this version"));
            continue;
        }
        match one(&text).await {
            Ok((says, members)) => {
                report.ok("endpoint", format!("{text}: {says}"));
                listed.get_or_insert(members);
            }
            Err(why) => {
                report.warn("endpoint", format!("{text}: {why}"));
                continue;
            }
        }
        match clock(&text).await {
            Some(apart) if apart > CLOCK_SLACK => {
                report.warn("clock", format!("{} s apart from that of {text}", apart.as_secs()));
            }
            Some(_) => report.ok("clock", format!("as that of {text}, to the second or two")),
            None => {}
        }
    }
    match listed {
        Some(members) => membership(&members, settings, own, report),
        None => report.warn("membership", "none of the endpoints answers"),
    }
}

async fn one(text: &str) -> Result<(String, Vec<Member>), String> {
    let endpoint = Endpoint::from_shared(text.to_owned()).map_err(|error| error.to_string())?;
    let channel: Channel = timeout(PATIENCE, endpoint.connect())
        .await
        .map_err(|_| format!("no connection within {} s", PATIENCE.as_secs()))?
        .map_err(|error| chain(&error))?;
    let told = |status: tonic::Status| status.message().to_owned();
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    let status = MaintenanceClient::new(channel.clone());
    let status = timeout(PATIENCE, async move { { status }.status(StatusRequest {}).await });
    let status = status.await.map_err(late)?.map_err(told)?.into_inner();
    let list = ClusterClient::new(channel);
    let request = MemberListRequest { linearizable: false };
    let list = timeout(PATIENCE, async move { { list }.member_list(request).await });
    let list = list.await.map_err(late)?.map_err(told)?.into_inner();
    let header = status.header.unwrap_or_default();
    let name = |id: u64| {
        let found = list.members.iter().find(|member| member.id == id);
        found.map_or(format!("{id:x}"), |member| format!("{id:x} ({})", member.name))
    };
    let leader = match status.leader {
        0 => "no leader".to_owned(),
        leader => format!("leader {}", name(leader)),
    };
    let mut says = format!(
        "member {} of cluster {:x}, {leader}, term {}, index {}, {} members",
        name(header.member_id),
        header.cluster_id,
        status.raft_term,
        status.raft_index,
        list.members.len()
    );
    if !status.errors.is_empty() {
        says += &format!("; it says: {}", status.errors.join(", "));
    }
    Ok((says, list.members))
}

/// Whether this member is in the list, and as the settings say.
fn membership(members: &[Member], settings: &Settings, own: Option<&Identity>, report: &mut Report) {
    let wanted = match own {
        Some(identity) => identity.peer_urls.clone(),
        None => urls::texts(&settings.membership.advertise_peer_urls.value),
    };
    let by_id = own.and_then(|identity| members.iter().find(|member| member.id == identity.member_id.0));
    let by_url = || members.iter().find(|member| member.peer_ur_ls.iter().any(|url| wanted.contains(url)));
    let list = || {
        let shown =
            |member: &Member| format!("{:x} ({}) {}", member.id, member.name, member.peer_ur_ls.join(","));
        members.iter().map(shown).collect::<Vec<_>>().join("; ")
    };
    match (own, by_id) {
        (Some(identity), Some(listed)) => {
            let role = if listed.is_learner { "learner" } else { "voter" };
            let mut urls = listed.peer_ur_ls.clone();
            let mut stored = wanted.clone();
            urls.sort();
            stored.sort();
            let says = format!("{} is in the list as {role}", member(identity));
            match urls == stored {
                true => report.ok("membership", says),
                false => report.warn(
                    "membership",
                    format!("{says}, at {} and not at {}", urls.join(","), stored.join(",")),
                ),
            }
        }
        (Some(identity), None) => {
            report.warn("membership", format!("{} is not in the list: {}", member(identity), list()));
        }
        (None, _) => match by_url() {
            Some(listed) if listed.name.is_empty() => report.ok(
                "membership",
                format!(
                    "{:x} waits to be started at {}: with --initial-cluster-state=existing",
                    listed.id,
                    listed.peer_ur_ls.join(",")
                ),
            ),
            Some(listed) => report.warn(
                "membership",
                format!(
                    "{:x} ({}) has these peer URLs, and this directory has no data of it",
                    listed.id, listed.name
                ),
            ),
            None => report
                .warn("membership", format!("nobody in the list has this member's peer URLs: {}", list())),
        },
    }
}

/// How far the clock of the endpoint's host is from ours, by the date of its answer.
async fn clock(text: &str) -> Option<Duration> {
    let url = url::Url::parse(text).ok()?;
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let exchange = async {
        let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.ok()?;
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.ok()?;
        let head = String::from_utf8_lossy(&answer).into_owned();
        let date = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
        })?;
        OffsetDateTime::parse(&date, &Rfc2822).ok()
    };
    let theirs: SystemTime = timeout(PATIENCE, exchange).await.ok()??.into();
    let now = SystemTime::now();
    Some(now.duration_since(theirs).unwrap_or_else(|early| early.duration()))
}
