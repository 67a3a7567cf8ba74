//! What to think of a cluster that was looked at: findings with an id, what was seen and what to do. Pure; `status` and `doctor` show it.

use super::member::quorum::Count;
use super::survey::{Seen, Survey};
use crate::failure::{Details, Exit};
use crate::output::Value;
use crate::units::{format_duration, format_size};
use api::etcdserverpb::AlarmType;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Entries a member may have still to apply and count as in sync: what comes in while the members are asked one beside the other.
pub const IN_SYNC_ENTRIES: u64 = 1000;
/// Part of the quota from which on somebody should look, in percent.
const QUOTA_WARN_PERCENT: i64 = 80;
/// Seconds that two clocks may differ.
const CLOCK_SECONDS: i64 = 2;
/// Leader changes in an hour of a member's life that nobody should have to explain: an upgrade of three members makes about as many.
const LEADER_CHANGES_PER_HOUR: f64 = 6.0;
/// An fsync of the log that takes longer than this in one of a hundred cases makes elections likely; etcd's documentation has the number.
const FSYNC_SECONDS: f64 = 0.01;
/// The same from where on it is an error: a quarter of the default heartbeat interval's tenfold, the election timeout.
const FSYNC_SECONDS_BAD: f64 = 0.25;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Not served, or about to be.
    Error,
    /// Served; less safe or less good than it should be.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub id: &'static str,
    pub severity: Severity,
    pub headline: String,
    pub details: Details,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, headline: impl Into<String>) -> Finding {
        Finding { id, severity, headline: headline.into(), details: Details::default() }
    }

    fn because(mut self, cause: &str) -> Finding {
        self.details.cause = cause.into();
        self
    }

    fn seen(mut self, evidence: impl IntoIterator<Item = String>) -> Finding {
        self.details.evidence.extend(evidence);
        self
    }

    fn mend(mut self, remedy: impl Into<String>) -> Finding {
        self.details.remedy.push(remedy.into());
        self
    }

    fn never(mut self, never: &str) -> Finding {
        self.details.never = never.into();
        self
    }

    pub fn line(&self) -> String {
        format!("[{}] {}: {}", self.id, self.severity.word(), self.headline)
    }

    pub fn value(&self) -> Value {
        Value::map([
            ("id", self.id.into()),
            ("severity", self.severity.word().into()),
            ("headline", self.headline.as_str().into()),
            ("cause", self.details.cause.as_str().into()),
            ("evidence", self.details.evidence.clone().into()),
            ("remedy", self.details.remedy.clone().into()),
            ("never", self.details.never.as_str().into()),
        ])
    }
}

/// How a command ends that found these.
pub fn exit(findings: &[Finding]) -> Option<Exit> {
    match findings.iter().map(|finding| finding.severity).min()? {
        Severity::Error => Some(Exit::Error),
        Severity::Warning => Some(Exit::Degraded),
        Severity::Note => None,
    }
}

/// Everything that deserves a word, the worst first.
pub fn judge(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    endpoints(survey, &mut findings);
    quorum(survey, &mut findings);
    members(survey, &mut findings);
    leader(survey, &mut findings);
    versions(survey, &mut findings);
    space(survey, &mut findings);
    shape(survey, &mut findings);
    clocks(survey, &mut findings);
    metrics(survey, &mut findings);
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn endpoints(survey: &Survey, findings: &mut Vec<Finding>) {
    use Severity::{Error, Warning};
    let mut clusters: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for asked in &survey.asked {
        if let Ok((cluster, _)) = asked.who {
            clusters.entry(cluster).or_default().push(asked.name.clone());
        }
    }
    if clusters.len() > 1 {
        let each =
            clusters.iter().map(|(cluster, names)| format!("cluster {cluster:x}: {}", names.join(", ")));
        findings.push(
            Finding::new("CLUSTER_IDS_DIFFER", Error, "the endpoints belong to different clusters")
                .because("some of --endpoints are members of another cluster, or a member was started with a new cluster by accident")
                .seen(each)
                .mend("name the members of one cluster with --endpoints; cairnctl member list at each tells who belongs together")
                .mend("if one was bootstrapped by mistake, stop it and see cairnd doctor on its host")
                .never("do not delete a data directory before you know which of the clusters has the data"),
        );
    }
    let listed: BTreeSet<u64> = survey.members.iter().map(|seen| seen.member.id).collect();
    for asked in &survey.asked {
        match &asked.who {
            Err(why) => findings.push(
                Finding::new("ENDPOINT_SILENT", Warning, format!("endpoint {} does not answer", asked.name))
                    .because("nobody serves there, or it cannot be reached from here")
                    .seen([why.clone()])
                    .mend("start the member there: systemctl status cairnd")
                    .mend("if the address is wrong, take it out of --endpoints"),
            ),
            Ok((cluster, member)) if *cluster == survey.cluster && !listed.contains(member) => findings.push(
                Finding::new(
                    "ENDPOINT_NO_MEMBER",
                    Error,
                    format!("endpoint {} is no member any more", asked.name),
                )
                .because("it was removed from the cluster and still runs")
                .seen([format!("it says that it is member {member:x}, whom the cluster does not list")])
                .mend("stop it, and take it out of --endpoints"),
            ),
            Ok(_) => {}
        }
    }
}

fn quorum(survey: &Survey, findings: &mut Vec<Finding>) {
    let count = Count::of(&survey.numbers());
    if let Err(why) = &survey.quorum {
        findings.push(
            Finding::new("NO_QUORUM", Severity::Error, "no quorum answers: nothing can be written, nor read with a quorum")
                .because("fewer voters than a quorum are up and connected, or an election is going on")
                .seen([why.clone(), count.words()])
                .mend("start the members that are down: systemctl status cairnd on their hosts")
                .mend("wait for it: cairnctl wait --for quorum")
                .never("do not force a new cluster while a quorum can be brought back; what the others have acknowledged would be lost"),
        );
    } else if count.spare() == Some(0) && count.voters > 2 {
        findings.push(
            Finding::new("NO_SPARE", Severity::Warning, "one more failure costs the quorum")
                .because("as many voters are down as the cluster tolerates")
                .seen([count.words()])
                .mend("bring back or replace what is down before anything else is stopped: cairnctl member plan replace"),
        );
    }
}

fn members(survey: &Survey, findings: &mut Vec<Finding>) {
    use Severity::Warning;
    for seen in &survey.members {
        let label = seen.label();
        match &seen.status {
            Err(_) if !seen.is_started() => findings.push(
                Finding::new("MEMBER_UNSTARTED", Warning, format!("member {label} was never started"))
                    .because("it was added and has not joined yet; a voter that is not there counts as one that is down")
                    .seen([format!("peer URLs {}", seen.member.peer_ur_ls.join(","))])
                    .mend("start it with the settings that member add has printed")
                    .mend(format!("or take it back: cairnctl member remove {:x}", seen.member.id)),
            ),
            Err(why) => findings.push(
                Finding::new("MEMBER_DOWN", Warning, format!("member {label} does not answer"))
                    .because("it is down, or its client URLs cannot be reached from here")
                    .seen([why.clone()])
                    .mend("look at it on its host: systemctl status cairnd; journalctl -u cairnd -n 50")
                    .mend(format!("if its host is lost: cairnctl member plan replace {:x}", seen.member.id)),
            ),
            Ok(status) => {
                let behind = survey.behind(seen).unwrap_or(0);
                if status.leader == 0 {
                    findings.push(
                        Finding::new("MEMBER_LEADERLESS", Warning, format!("member {label} knows no leader"))
                            .because("it is cut off from the other members, or an election is going on")
                            .seen([format!("term {}, committed {}", status.raft_term, status.raft_index)])
                            .mend("look whether its peer URLs and those of the others can be reached both ways"),
                    );
                } else if behind > IN_SYNC_ENTRIES {
                    let id = if status.is_learner { "LEARNER_BEHIND" } else { "MEMBER_BEHIND" };
                    findings.push(
                        Finding::new(id, Warning, format!("member {label} is {behind} entries behind"))
                            .because("it catches up, or its disk or network is too slow for the load")
                            .seen([format!("applied {} of {}", status.raft_applied_index, survey.committed())])
                            .mend("look again: cairnctl status --watch; if it does not come nearer, look at its disk and network"),
                    );
                }
            }
        }
    }
    for (seen, _) in survey.statuses().filter(|(seen, status)| status.is_learner && seen.is_up()) {
        let behind = survey.behind(seen).unwrap_or(0);
        if behind <= IN_SYNC_ENTRIES {
            findings.push(
                Finding::new(
                    "LEARNER_WAITS",
                    Severity::Note,
                    format!("member {} is in sync and has no vote", seen.label()),
                )
                .because("a learner stays one until somebody promotes it")
                .seen([format!("{behind} entries behind")])
                .mend(format!("if it is to vote: cairnctl member promote {:x}", seen.member.id)),
            );
        }
    }
}

fn leader(survey: &Survey, findings: &mut Vec<Finding>) {
    let terms: BTreeMap<u64, u64> = survey
        .statuses()
        .filter(|(_, status)| status.leader != 0)
        .map(|(_, status)| (status.raft_term, status.leader))
        .collect();
    let leaders: BTreeSet<u64> = terms.values().copied().collect();
    if leaders.len() > 1 {
        let each = survey.statuses().map(|(seen, status)| {
            format!("member {} follows {:x} in term {}", seen.label(), status.leader, status.raft_term)
        });
        findings.push(
            Finding::new("LEADERS_DIFFER", Severity::Warning, "the members do not agree on who leads")
                .because("an election went on while they were asked, or a member is cut off and has not noticed yet")
                .seen(each)
                .mend("look again; if it stays so, look at the network between the members"),
        );
    }
}

fn versions(survey: &Survey, findings: &mut Vec<Finding>) {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (seen, status) in survey.statuses() {
        versions.entry(&status.version).or_default().push(seen.label());
    }
    if versions.len() > 1 {
        let each = versions.iter().map(|(version, labels)| format!("{version}: {}", labels.join(", ")));
        findings.push(
            Finding::new("VERSIONS_DIFFER", Severity::Warning, "the members run different versions")
                .because("an upgrade is under way, or was not finished")
                .seen(each)
                .mend("finish the upgrade, one member after another: cairnctl can-stop, upgrade, restart, cairnctl wait --for synced"),
        );
    }
}

fn space(survey: &Survey, findings: &mut Vec<Finding>) {
    use Severity::{Error, Warning};
    for alarm in survey.alarms.as_deref().unwrap_or_default() {
        let label = survey
            .members
            .iter()
            .find(|seen| seen.member.id == alarm.member_id)
            .map_or_else(|| format!("{:x}", alarm.member_id), Seen::label);
        findings.push(match AlarmType::try_from(alarm.alarm) {
            Ok(AlarmType::Nospace) => {
                Finding::new("ALARM_NOSPACE", Error, format!("member {label} has raised NOSPACE: no key can be written"))
                    .because("the quota of its store is used up")
                    .seen(space_of(survey, alarm.member_id))
                    .mend("see who fills it: cairnctl top --by size")
                    .mend("delete what is not needed, then: cairnctl compaction <revision>; an etcd also needs defrag on each member")
                    .mend("or raise quota-backend-bytes on every member and restart them one by one")
                    .mend("then: cairnctl alarm disarm")
            }
            Ok(AlarmType::Corrupt) => {
                Finding::new("ALARM_CORRUPT", Error, format!("member {label} is said to have other data than the rest"))
                    .because("a check found that its history differs at the same revision")
                    .seen(["raised as CORRUPT".to_owned()])
                    .mend("compare: cairnctl endpoint hashkv --cluster")
                    .mend(format!("replace the member that differs: cairnctl member replace {:x}", alarm.member_id))
                    .never("do not disarm it before you know which member is wrong")
            }
            _ => Finding::new("ALARM_UNKNOWN", Warning, format!("member {label} has raised alarm {}", alarm.alarm))
                .because("the server is newer than this tool")
                .mend("cairnctl alarm list with a newer cairnctl"),
        });
    }
    if let Err(why) = &survey.alarms
        && survey.quorum.is_ok()
    {
        findings.push(
            Finding::new("ALARMS_UNKNOWN", Warning, "the alarms could not be asked for")
                .because("the member that was asked did not tell them")
                .seen([why.clone()])
                .mend("cairnctl alarm list"),
        );
    }
    for (seen, status) in survey.statuses() {
        let (size, quota) = (status.db_size, status.db_size_quota);
        if quota > 0 && size.saturating_mul(100) >= quota.saturating_mul(QUOTA_WARN_PERCENT) {
            findings.push(
                Finding::new("QUOTA_NEAR", Warning, format!("the store of member {} nears its quota", seen.label()))
                    .because("when the quota is used up, no key can be written in the whole cluster")
                    .seen(space_of(survey, seen.member.id))
                    .mend("see who fills it: cairnctl top --by size; compact old history: auto-compaction-retention")
                    .mend("or raise quota-backend-bytes on every member"),
            );
        }
    }
}

fn space_of(survey: &Survey, id: u64) -> Option<String> {
    let (_, status) = survey.statuses().find(|(seen, _)| seen.member.id == id)?;
    let quota = match status.db_size_quota {
        0 => "no quota told".to_owned(),
        quota => format!("quota {}", format_size(quota as u64)),
    };
    let size = |bytes: i64| format_size(bytes.max(0) as u64);
    Some(format!("{} on disk, {} in use, {quota}", size(status.db_size), size(status.db_size_in_use)))
}

fn shape(survey: &Survey, findings: &mut Vec<Finding>) {
    let count = Count::of(&survey.numbers());
    if count.voters > 0 && count.voters.is_multiple_of(2) {
        findings.push(
            Finding::new("EVEN_MEMBERS", Severity::Warning, format!("{} voters tolerate no more than {}", count.voters, count.voters - 1))
                .because("a quorum is more than half, so the last of an even number makes failures likelier and helps against none")
                .seen([count.words()])
                .mend("add one or remove one: cairnctl member plan add, cairnctl member plan remove"),
        );
    }
    if survey.members.len() > 1 {
        let local = survey.members.iter().flat_map(|seen| {
            let urls = seen.member.client_ur_ls.iter().filter(|url| is_local(url));
            urls.map(move |url| format!("member {}: {url}", seen.label()))
        });
        let hosts: BTreeSet<&str> =
            survey.members.iter().flat_map(|seen| &seen.member.peer_ur_ls).map(|url| host(url)).collect();
        let local: Vec<String> = local.collect();
        // A cluster on one machine, for tests, has nothing else.
        if !local.is_empty() && hosts.iter().any(|host| !is_loopback(host)) {
            findings.push(
                Finding::new("LOCALHOST_ADVERTISED", Severity::Warning, "members tell clients to come to localhost")
                    .because("advertise-client-urls is what other hosts are told; there it means themselves")
                    .seen(local)
                    .mend("set advertise-client-urls to an address that clients reach, on each of these members, and restart it"),
            );
        }
    }
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(bracketed),
        None => rest.rsplit_once(':').map_or(rest, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

fn is_local(url: &str) -> bool {
    url.contains("://") && is_loopback(host(url))
}

fn clocks(survey: &Survey, findings: &mut Vec<Finding>) {
    let clocks: Vec<(&Seen, (i64, i64))> =
        survey.members.iter().filter_map(|seen| Some((seen, seen.clock?))).collect();
    let differs = clocks.iter().any(|(_, a)| clocks.iter().any(|(_, b)| a.0 - b.1 >= CLOCK_SECONDS));
    if differs {
        let each = clocks.iter().map(|(seen, (least, most))| {
            format!("member {}: {least} to {most} s ahead of this host", seen.label())
        });
        findings.push(
            Finding::new("CLOCKS_DIFFER", Severity::Warning, "the clocks of the members differ")
                .because("time synchronisation does not work on some host; consensus does not need it, certificates, tokens and logs do")
                .seen(each)
                .mend("on each host: timedatectl; systemctl status systemd-timesyncd chrony"),
        );
    }
}

fn metrics(survey: &Survey, findings: &mut Vec<Finding>) {
    use Severity::{Error, Note, Warning};
    for seen in &survey.members {
        let page = match &seen.metrics {
            Some(Ok(page)) => &page.body,
            Some(Err(why)) if seen.is_up() => {
                findings.push(
                    Finding::new("METRICS_UNREAD", Note, format!("the metrics of member {} were not read", seen.label()))
                        .because("its client URLs do not serve HTTP, or serve it elsewhere")
                        .seen([why.clone()])
                        .mend("nothing, unless this is a surprise: see listen-client-http-urls and listen-metrics-urls"),
                );
                continue;
            }
            _ => continue,
        };
        if let (Some(changes), Some(up)) =
            (sample(page, "etcd_server_leader_changes_seen_total"), uptime(page))
        {
            let hours = (up / 3600.0).max(1.0);
            if changes / hours > LEADER_CHANGES_PER_HOUR {
                findings.push(
                    Finding::new("LEADER_CHANGES", Warning, format!("member {} has seen {changes} changes of leader", seen.label()))
                        .because("members are restarted often, or heartbeats come late: a slow disk, a busy processor, a bad network")
                        .seen([format!("in {}", format_duration(Duration::from_secs(up as u64)))])
                        .mend("look at FSYNC_SLOW here, at the journal around the changes, and at the time between the hosts (heartbeat-interval, election-timeout)"),
                );
            }
        }
        if let Some(p99) = quantile(page, "etcd_disk_wal_fsync_duration_seconds", 0.99)
            && p99 > FSYNC_SECONDS
        {
            let severity = if p99 > FSYNC_SECONDS_BAD { Error } else { Warning };
            findings.push(
                Finding::new(
                    "FSYNC_SLOW",
                    severity,
                    format!("the disk of member {} is slow to sync", seen.label()),
                )
                .because("every write waits for the log to be on disk, on a majority of the members")
                .seen([format!(
                    "one of a hundred syncs of the log takes {} or more; up to {} is good",
                    words(p99),
                    words(FSYNC_SECONDS)
                )])
                .mend("give the log a disk of its own, with power-loss protection: wal-dir")
                .mend("measure puts meanwhile: cairnctl bench put --rate=500"),
            );
        }
    }
}

fn words(seconds: f64) -> String {
    format_duration(Duration::from_micros((seconds * 1e6) as u64))
}

/// The value of a series without labels.
pub fn sample(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn uptime(page: &str) -> Option<f64> {
    let started = sample(page, "process_start_time_seconds")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64();
    Some((now - started).max(0.0))
}

/// The lower bound of the bucket in which this part of a histogram's observations ends; `None` below a hundred of them.
fn quantile(page: &str, name: &str, part: f64) -> Option<f64> {
    const ENOUGH: f64 = 100.0;
    let bucket = format!("{name}_bucket{{");
    let buckets: Vec<(f64, f64)> = page
        .lines()
        .filter_map(|line| {
            let (labels, count) = line.strip_prefix(&bucket)?.split_once("} ")?;
            let bound = labels.split_once("le=\"")?.1.split('"').next()?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.trim().parse().ok()?))
        })
        .collect();
    let all = buckets.last()?.1;
    if all < ENOUGH {
        return None;
    }
    let at = buckets.iter().position(|(_, count)| *count >= all * part)?;
    Some(at.checked_sub(1).map_or(0.0, |below| buckets[below].0))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
pub mod tests;
