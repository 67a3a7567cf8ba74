//! member list, move-leader, alarm list and disarm.

use super::{begin, member, serializable, show};
use crate::client::{ALARM_CHANGE, ALARM_GET, Client, MEMBER_LIST, MOVE_LEADER, STATUS};
use crate::failure::{Details, Failure, Result};
use crate::output::Shape;
use crate::settings::{Format, Settings};
use crate::{again, cli};
use api::etcdserverpb::alarm_request::AlarmAction;
use api::etcdserverpb::{
    AlarmRequest, AlarmResponse, MemberListRequest, MemberListResponse, MoveLeaderRequest,
    MoveLeaderResponse, StatusRequest, StatusResponse,
};
use clap::ArgMatches;

pub async fn member_list(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let request = MemberListRequest { linearizable: !serializable(matches)? };
    again::looking(settings, matches, async || {
        let (mut client, printer) = begin(settings, false)?;
        let answer: MemberListResponse = client.call(&MEMBER_LIST, &request).await?;
        printer.member_list(&answer)
    })
    .await
}

/// Asks each endpoint whether it leads, and the one that does to hand over.
pub async fn move_leader(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let [target] = arguments.as_slice() else {
        return Err(Failure::arguments("move-leader command needs 1 argument"));
    };
    let target_id = member::meant(settings, &String::from_utf8_lossy(target), |why| why).await?;
    let (_, printer) = begin(settings, false)?;
    for endpoint in &settings.endpoints {
        let mut client = Client::over(settings, vec![endpoint.clone()], false)?;
        let status: StatusResponse = client.call(&STATUS, &StatusRequest {}).await?;
        let member = status.header.unwrap_or_default().member_id;
        if status.leader == member {
            if matches!(printer.format, Format::Fields | Format::Table) || printer.shape == Some(Shape::Raw) {
                // Refuses the format before anything is moved.
                printer.move_leader(member, target_id, &MoveLeaderResponse::default())?;
            }
            let answer: MoveLeaderResponse =
                client.call(&MOVE_LEADER, &MoveLeaderRequest { target_id }).await?;
            return show(&printer.move_leader(member, target_id, &answer)?);
        }
    }
    let asked: Vec<&str> = settings.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    Err(Failure::arguments(format!("no leader endpoint given at [{}]", asked.join(" "))).with(Details {
        cause: "only the leader can hand over, and none of the asked members leads".into(),
        evidence: asked.iter().map(|name| format!("{name}: a follower")).collect(),
        remedy: vec![
            "find the leader: cairnctl endpoint status --cluster -w table".into(),
            "name it, or all members, with --endpoints".into(),
        ],
        never: String::new(),
    }))
}

pub async fn alarm_list(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("alarm list command accepts no arguments"));
    }
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_table()?;
    let answer: AlarmResponse = client.call(&ALARM_GET, &AlarmRequest::default()).await?;
    show(&printer.alarms(&answer)?)
}

/// Takes back every alarm that is raised, one request each; the answer lists what was disarmed.
pub async fn alarm_disarm(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("alarm disarm command accepts no arguments"));
    }
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_table()?;
    let raised: AlarmResponse = client.call(&ALARM_GET, &AlarmRequest::default()).await?;
    let mut disarmed = AlarmResponse::default();
    for alarm in raised.alarms {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let answer: AlarmResponse = client.call(&ALARM_CHANGE, &request).await?;
        disarmed.alarms.extend(answer.alarms);
    }
    show(&printer.alarms(&disarmed)?)
}
