//! endpoint health, status and hashkv: each endpoint is asked by itself, so that one that is down does not hide the others.

use super::show;
use crate::client::{ALARM_GET, Client, HASH_KV, MEMBER_LIST, RANGE, STATUS};
use crate::failure::{Exit, Failure, Result};
use crate::output::{EndpointHash, EndpointHealth, EndpointStatus, Printer, tell};
use crate::settings::{Format, Settings};
use crate::units::format_duration;
use crate::wire::endpoint::Endpoint;
use crate::{again, cli};
use api::error::EtcdError;
use api::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, HashKvRequest, HashKvResponse, MemberListRequest,
    MemberListResponse, RangeRequest, RangeResponse, StatusRequest,
};
use clap::ArgMatches;
use std::time::Instant;
use tokio::task::JoinSet;

/// The key that is read to see whether a quorum answers; etcdctl's, so that the same permission is enough.
const PROBE_KEY: &str = "health";

/// The endpoints to ask: those of the settings, or every client URL that the cluster lists.
pub(super) async fn asked(settings: &Settings, matches: &ArgMatches) -> Result<Vec<Endpoint>> {
    if !cli::on(matches, "cluster") {
        return Ok(settings.endpoints.clone());
    }
    let answer: MemberListResponse =
        Client::new(settings, false)?.call(&MEMBER_LIST, &MemberListRequest { linearizable: true }).await?;
    let urls = answer.members.iter().flat_map(|member| &member.client_ur_ls);
    let endpoints: Vec<Endpoint> = urls
        .map(|url| {
            Endpoint::parse(url, false).map_err(|why| {
                Failure::new(
                    Exit::Error,
                    format!("the cluster lists a client URL that cannot be used: {why}"),
                )
            })
        })
        .collect::<Result<_>>()?;
    if endpoints.is_empty() {
        return Err(Failure::new(Exit::Error, "the cluster lists no client URL"));
    }
    Ok(endpoints)
}

/// The reason of a failure on one line: what the server said, or what the connection met.
fn reason(failure: &Failure) -> String {
    let evidence = failure
        .details
        .as_ref()
        .filter(|_| failure.exit == Exit::BadConnection)
        .and_then(|details| details.evidence.first());
    let text = evidence.unwrap_or(&failure.headline);
    text.replace('\n', " ")
}

pub async fn health(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let printer = Printer::new(settings);
    if printer.format == Format::Protobuf {
        printer.health(&[])?;
    }
    let mut probes = JoinSet::new();
    for endpoint in asked(settings, matches).await? {
        let settings = settings.clone();
        probes.spawn(async move { probe(&settings, endpoint).await });
    }
    // In the order of completion, as etcdctl prints them.
    let mut all = Vec::new();
    while let Some(probed) = probes.join_next().await {
        all.push(probed.map_err(|error| Failure::new(Exit::Error, format!("probe: {error}")))??);
    }
    if printer.is_simple() {
        for unhealthy in all.iter().filter(|endpoint| !endpoint.error.is_empty()) {
            tell(format_args!(
                "{} is unhealthy: failed to commit proposal: {}",
                unhealthy.endpoint, unhealthy.error
            ));
        }
    }
    show(&printer.health(&all)?)?;
    if all.iter().all(|endpoint| endpoint.healthy) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Error, "unhealthy cluster"))
    }
}

async fn probe(settings: &Settings, endpoint: Endpoint) -> Result<EndpointHealth> {
    let name = endpoint.name.clone();
    let mut client = Client::over(settings, vec![endpoint], false)?;
    let started = Instant::now();
    let read: Result<RangeResponse> =
        client.call(&RANGE, &RangeRequest { key: PROBE_KEY.into(), ..Default::default() }).await;
    let error = match read {
        Err(failure) if failure.headline != EtcdError::PermissionDenied.text() => reason(&failure),
        _ => alarms(&mut client).await,
    };
    Ok(EndpointHealth {
        endpoint: name,
        healthy: error.is_empty(),
        took: format_duration(started.elapsed()),
        error,
    })
}

/// The complaint about alarms that are raised; empty when there are none.
async fn alarms(client: &mut Client) -> String {
    let answer: Result<AlarmResponse> = client.call(&ALARM_GET, &AlarmRequest::default()).await;
    let Ok(answer) = answer else { return "Unable to fetch the alarm list".into() };
    let name = |alarm: i32| match AlarmType::try_from(alarm) {
        Ok(AlarmType::Nospace) => "NOSPACE ",
        Ok(AlarmType::Corrupt) => "CORRUPT ",
        _ => "UNKNOWN ",
    };
    if answer.alarms.is_empty() {
        String::new()
    } else {
        answer.alarms.iter().fold("Active Alarm(s): ".into(), |all, alarm| all + name(alarm.alarm))
    }
}

pub async fn status(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let printer = Printer::new(settings);
    if printer.format == Format::Protobuf {
        printer.status(&[])?;
    }
    again::looking(settings, matches, async || status_once(settings, matches, printer).await).await
}

async fn status_once(
    settings: &Settings,
    matches: &ArgMatches,
    printer: Printer,
) -> Result<(again::Look, Vec<String>)> {
    let mut complaints = Vec::new();
    let mut all = Vec::new();
    for endpoint in asked(settings, matches).await? {
        let name = endpoint.name.clone();
        match Client::over(settings, vec![endpoint], false)?.call(&STATUS, &StatusRequest {}).await {
            Ok(status) => all.push(EndpointStatus { endpoint: name, status }),
            Err(failure) => {
                complaints
                    .push(format!("Failed to get the status of endpoint {name} ({})", reason(&failure)));
            }
        }
    }
    let verdict = if complaints.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Error)) };
    Ok((again::Look { bytes: printer.status(&all)?, verdict }, complaints))
}

pub async fn hash_kv(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let printer = Printer::new(settings);
    if printer.format == Format::Protobuf {
        printer.hash_kv(&[])?;
    }
    let request = HashKvRequest { revision: cli::integer(matches, "rev") };
    let mut all = Vec::new();
    let mut last_failure = None;
    for endpoint in asked(settings, matches).await? {
        let name = endpoint.name.clone();
        match Client::over(settings, vec![endpoint], false)?.call::<HashKvResponse>(&HASH_KV, &request).await
        {
            Ok(hash) => all.push(EndpointHash { endpoint: name, hash }),
            Err(failure) => {
                tell(format_args!("Failed to get the hash of endpoint {name} ({})", reason(&failure)));
                last_failure = Some(reason(&failure));
            }
        }
    }
    show(&printer.hash_kv(&all)?)?;
    last_failure.map_or(Ok(()), |why| Err(Failure::new(Exit::Error, why)))
}
