//! status: the cluster on one screen, and an exit code that says whether it is well.

use super::judge::{self, Finding, Severity};
use super::member::quorum::Count;
use super::survey::{Seen, Survey};
use crate::again::{self, Look};
use crate::cli;
use crate::failure::{Exit, Failure, Result};
use crate::output::paint::{Paint, Tone};
use crate::output::{Cell, Column, Printer, Sheet, Value};
use crate::settings::Settings;
use crate::units::format_duration;
use api::etcdserverpb::AlarmType;
use clap::{ArgMatches, Command};
use std::collections::BTreeSet;
use std::time::Duration;

pub fn command() -> Command {
    cli::verb("status", "Shows how the cluster is, on one screen", "cairnctl status [flags]")
        .after_help(
            "Exits with 0 when all is well, with 11 when the cluster serves and something needs a look, and with 1 when it does not serve.\n\
             doctor says more about each trouble; endpoint status is etcdctl's.",
        )
        .arg(again::flag())
}

pub async fn status(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("status command accepts no arguments"));
    }
    let printer = Printer::new(settings);
    printer.page(&Value::Null, |_, _| String::new())?;
    again::looking(settings, matches, async || {
        let survey = Survey::take(settings, false).await?;
        let findings = judge::judge(&survey);
        let bytes =
            printer.page(&data(&survey, &findings), |paint, wide| screen(&survey, &findings, paint, wide))?;
        Ok(Look { bytes, verdict: verdict(&findings) })
    })
    .await
}

/// How a command ends that has told these already.
pub fn verdict(findings: &[Finding]) -> Result<()> {
    judge::exit(findings).map_or(Ok(()), |exit| Err(Failure::silent(exit)))
}

/// One word for everything.
fn health(findings: &[Finding]) -> (&'static str, Tone) {
    match judge::exit(findings) {
        None => ("healthy", Tone::Good),
        Some(Exit::Degraded) => ("degraded", Tone::Warn),
        Some(_) if findings.iter().any(|finding| finding.id == "NO_QUORUM") => ("NO QUORUM", Tone::Bad),
        Some(_) => ("UNHEALTHY", Tone::Bad),
    }
}

fn alarm_name(alarm: i32) -> &'static str {
    match AlarmType::try_from(alarm) {
        Ok(AlarmType::Nospace) => "NOSPACE",
        Ok(AlarmType::Corrupt) => "CORRUPT",
        _ => "UNKNOWN",
    }
}

fn alarms(survey: &Survey) -> Vec<String> {
    let label = |id: u64| {
        let seen = survey.members.iter().find(|seen| seen.member.id == id);
        seen.map_or_else(|| format!("{id:x}"), Seen::label)
    };
    let raised = survey.alarms.as_deref().unwrap_or_default();
    raised
        .iter()
        .map(|alarm| format!("{} of member {}", alarm_name(alarm.alarm), label(alarm.member_id)))
        .collect()
}

pub fn screen(survey: &Survey, findings: &[Finding], paint: Paint, wide: bool) -> String {
    let (word, tone) = health(findings);
    let mut out = format!("cluster {:x}   {}\n", survey.cluster, paint.tone(tone, word));
    let mut line = |name: &str, text: String| out.push_str(&format!("  {name:<10}{text}\n"));
    let newest = survey.statuses().map(|(_, status)| status.raft_term).max().unwrap_or(0);
    match survey.leader() {
        Some(leader) => line("leader", format!("{}, term {newest}", leader.label())),
        None => line("leader", paint.bad("none that answers")),
    }
    line("quorum", Count::of(&survey.numbers()).words());
    match &survey.quorum {
        Ok(took) => line("reads", format!("a linearizable read took {}", format_duration(rounded(*took)))),
        Err(why) => line("reads", paint.bad(&format!("no linearizable read: {why}"))),
    }
    let versions: BTreeSet<&str> = survey.statuses().map(|(_, status)| status.version.as_str()).collect();
    let storage: BTreeSet<&str> = survey
        .statuses()
        .map(|(_, status)| status.storage_version.as_str())
        .filter(|text| !text.is_empty())
        .collect();
    let list = |set: BTreeSet<&str>| set.into_iter().collect::<Vec<_>>().join(", ");
    let storage = if storage.is_empty() { String::new() } else { format!("; storage {}", list(storage)) };
    line("version", format!("{}{storage}", list(versions)));
    let revision = survey.statuses().map(|(_, status)| status.header.unwrap_or_default().revision).max();
    line("revision", revision.unwrap_or(0).to_string());
    let raised = alarms(survey);
    match &survey.alarms {
        Err(_) => line("alarms", "not known".into()),
        Ok(_) if raised.is_empty() => line("alarms", "none".into()),
        Ok(_) => line("alarms", paint.bad(&raised.join(", "))),
    }
    line("backup", "when the last one was made is not known to the cluster".into());
    out.push('\n');
    out.push_str(&members(survey).table(wide, paint));
    for (at, finding) in findings.iter().enumerate() {
        let tone = match finding.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Warn,
            Severity::Note => Tone::Faint,
        };
        let gap = if at == 0 { "\n" } else { "" };
        out.push_str(&format!("{gap}{}\n", paint.tone(tone, &finding.line())));
        if let Some(remedy) = finding.details.remedy.first() {
            out.push_str(&format!("    {}\n", paint.faint(remedy)));
        }
    }
    out
}

/// A time for people: microseconds are enough.
pub fn rounded(took: Duration) -> Duration {
    Duration::from_micros(took.as_micros() as u64)
}

fn members(survey: &Survey) -> Sheet {
    let mut sheet = Sheet::new(
        "members",
        &[
            Column::new("name", "NAME"),
            Column::new("id", "ID"),
            Column::new("role", "ROLE"),
            Column::new("state", "STATE"),
            Column::new("version", "VERSION"),
            Column::number("term", "TERM").only_wide(),
            Column::number("raft_index", "INDEX").only_wide(),
            Column::number("behind", "BEHIND"),
            Column::number("db_size", "SIZE"),
            Column::number("in_use", "IN USE"),
            Column::number("quota", "QUOTA"),
            Column::number("free", "FREE"),
            Column::new("client_urls", "CLIENT URLS").only_wide(),
            Column::new("peer_urls", "PEER URLS").only_wide(),
        ],
    );
    for seen in &survey.members {
        let role = match seen {
            seen if seen.leads() => Cell::text("leader").tone(Tone::Strong),
            seen if seen.member.is_learner => Cell::text("learner"),
            _ => Cell::text("voter"),
        };
        let state = match seen.trouble() {
            None => Cell::text("up").tone(Tone::Good),
            Some(_) if !seen.is_started() => Cell::text("not started").tone(Tone::Warn),
            Some(_) if seen.status.is_ok() => Cell::text("no leader").tone(Tone::Bad),
            Some(why) => Cell::shown(format!("down: {why}").as_str(), "down").tone(Tone::Bad),
        };
        let status = seen.status.as_ref().ok();
        let number = |value: Option<u64>| value.map_or_else(Cell::nothing, Cell::number);
        let size = |bytes: i64| Cell::size(bytes.max(0) as u64);
        let quota = status.map(|status| status.db_size_quota).filter(|quota| *quota > 0);
        let free = status.zip(quota).map(|(status, quota)| (quota - status.db_size).max(0));
        sheet.row(vec![
            if seen.is_started() { Cell::text(&seen.member.name) } else { Cell::nothing() },
            Cell::id(seen.member.id),
            role,
            state,
            status.map_or_else(Cell::nothing, |status| Cell::text(&status.version)),
            number(status.map(|status| status.raft_term)),
            number(status.map(|status| status.raft_index)),
            match survey.behind(seen) {
                Some(behind) if behind > judge::IN_SYNC_ENTRIES => Cell::number(behind).tone(Tone::Warn),
                behind => number(behind),
            },
            status.map_or_else(Cell::nothing, |status| size(status.db_size)),
            status.map_or_else(Cell::nothing, |status| size(status.db_size_in_use)),
            quota.map_or_else(Cell::nothing, size),
            free.map_or_else(Cell::nothing, size),
            Cell::texts(&seen.member.client_ur_ls),
            Cell::texts(&seen.member.peer_ur_ls),
        ]);
    }
    sheet
}

/// The same for programs.
pub fn data(survey: &Survey, findings: &[Finding]) -> Value {
    let count = Count::of(&survey.numbers());
    let read = survey.quorum.as_ref().ok().map(|took| took.as_secs_f64());
    Value::map([
        ("cluster_id", format!("{:x}", survey.cluster).into()),
        ("health", health(findings).0.to_lowercase().into()),
        ("leader", survey.leader().map(|seen| format!("{:x}", seen.member.id)).into()),
        ("term", survey.statuses().map(|(_, status)| status.raft_term).max().into()),
        ("voters", count.voters.into()),
        ("voters_up", count.up.into()),
        ("quorum", count.quorum().into()),
        ("more_may_fail", count.spare().into()),
        ("linearizable_read_seconds", read.into()),
        (
            "revision",
            survey.statuses().map(|(_, status)| status.header.unwrap_or_default().revision).max().into(),
        ),
        ("alarms", alarms(survey).into()),
        ("last_backup", Value::Null),
        ("members", Value::List(members(survey).records())),
        ("findings", Value::List(findings.iter().map(Finding::value).collect())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::judge::tests::healthy;

    #[test]
    fn the_screen_says_what_a_person_wants_to_know_first() {
        let mut survey = healthy();
        let drawn = screen(&survey, &judge::judge(&survey), Paint::NONE, false);
        let expected = "\
cluster 9   healthy
  leader    1 (n1), term 4
  quorum    3 voters, quorum 3 / 2 + 1 = 2, tolerates 1 down; 3 up: 3 - 2 = 1 more may fail
  reads     a linearizable read took 1ms
  version   3.7.0
  revision  0
  alarms    none
  backup    when the last one was made is not known to the cluster

NAME   ID   ROLE     STATE   VERSION   BEHIND     SIZE   IN USE   QUOTA     FREE
n1     1    leader   up      3.7.0          0   1.0 kB    900 B   10 kB   9.0 kB
n2     2    voter    up      3.7.0          0   1.0 kB    900 B   10 kB   9.0 kB
n3     3    voter    up      3.7.0          0   1.0 kB    900 B   10 kB   9.0 kB
";
        assert_eq!(drawn, expected);
        survey.members[2].status = Err("connect: refused".into());
        let findings = judge::judge(&survey);
        let drawn = screen(&survey, &findings, Paint::NONE, false);
        assert!(drawn.starts_with("cluster 9   degraded\n"), "{drawn}");
        assert!(drawn.contains("n3     3    voter    down    -   "), "{drawn}");
        assert!(
            drawn.contains("[MEMBER_DOWN] warning: member 3 (n3) does not answer\n    look at it"),
            "{drawn}"
        );
        assert_eq!(verdict(&findings), Err(Failure::silent(Exit::Degraded)));
        let Value::Map(entries) = data(&survey, &findings) else { panic!("an object") };
        let get =
            |name: &str| entries.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        assert_eq!(get("health"), Some("degraded".into()));
        assert_eq!((get("leader"), get("more_may_fail")), (Some("1".into()), Some(0.into())));
    }
}
