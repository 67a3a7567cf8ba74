//! What the peers say of this member. They are asked as a start would ask them, by a question that only judges: no session is made, no boot
//! is counted, and first members that wait for each other neither count the asker nor hear its settings.

use std::time::{Duration, Instant};

use ::identity::{Answer, Boot, Hello, Life, LogEnd, Question, Standing};
use storage::wal::WalContents;
use tokio::{runtime::Runtime, time::sleep};
use types::MemberId;

use super::Report;
use crate::{
    bootstrap::{
        again, ask,
        attend::{self, Founder, Heard, Reply, Step},
        facts, force, hello,
        hello::Target,
        plan::{Beginning, BootPlan, NewMember},
        prepare,
        verdict::Me,
    },
    config::{Attendance, Settings},
    identity::{self, Identity, State},
};

/// Between two rounds, as in a start.
const PAUSE: Duration = Duration::from_millis(300);

/// What a lag or a predecessor can explain is asked again for so long, as in a start.
const SETTLES_WITHIN: Duration = Duration::from_millis(4500);

/// A start waits for the cluster it joins for `join-timeout`; a look does not.
const JOIN_PATIENCE: Duration = Duration::from_secs(4);

/// Tells what was heard; the answer is the state of the cluster for the verdict's line.
pub fn examine(
    plan: &BootPlan,
    settings: &Settings,
    contents: Option<&WalContents>,
    runs: bool,
    runtime: &Runtime,
    report: &mut Report,
) -> String {
    let mut settings = settings.clone();
    // A directory that is yet to be made is named as it will be.
    if let Ok(absolute) = std::path::absolute(&settings.storage.data_dir) {
        settings.storage.data_dir = absolute;
    }
    let settings = &settings;
    match plan {
        BootPlan::Restart(returning) if runs => running(&returning.identity, settings, runtime, report),
        BootPlan::Restart(returning) => match contents {
            Some(contents) => returns(&returning.identity, settings, contents, runtime, report),
            // Without its log it does not come to asking.
            None => String::new(),
        },
        BootPlan::NewStatic(new) => founds(new, settings, runtime, report),
        BootPlan::JoinExisting(joiner) => {
            let mut notes = Vec::new();
            let mut settings = settings.clone();
            settings.membership.join_timeout = settings.membership.join_timeout.min(JOIN_PATIENCE);
            let place = prepare::ask_for_place(joiner, &settings, &mut notes);
            notes.iter().for_each(|note| report.warn("cluster", super::told(note)));
            match place {
                Ok(place) => {
                    let role = if place.is_learner { "learner" } else { "voter" };
                    let says = format!(
                        "cluster {} of {} members has a place for this member: {} as {role}",
                        place.cluster,
                        place.members.len(),
                        place.member
                    );
                    report.ok("cluster", says);
                }
                Err(refusal) => report.fail("cluster", refusal),
            }
            String::new()
        }
        BootPlan::Discover(_) => {
            report.warn("cluster", "the first members would be looked for; doctor does not ask, since asking registers this member");
            String::new()
        }
    }
}

/// Whatever its settings are.
pub fn of_the_running(settings: &Settings, runtime: &Runtime, report: &mut Report) -> String {
    match identity::read(&settings.storage.data_dir.join(facts::MEMBER_DIR)) {
        Ok(Some(identity)) => running(&identity, settings, runtime, report),
        _ => String::new(),
    }
}

/// With data, and about to be started.
fn returns(
    identity: &Identity,
    settings: &Settings,
    contents: &WalContents,
    runtime: &Runtime,
    report: &mut Report,
) -> String {
    if force::is_wanted(identity, settings) {
        report.warn("cluster", "--force-new-cluster: a start would make this member a new cluster of one, whatever the others have");
        return String::new();
    }
    let data_dir = &settings.storage.data_dir;
    let has_nothing = contents.entries.is_empty() && contents.snapshot.index.0 == 0;
    if identity.state == State::Joining && has_nothing {
        let given = &settings.membership.initial_cluster.value;
        if let Err(refusal) = ask::again(identity, given, &data_dir.display().to_string()) {
            report.fail("cluster", refusal);
            return String::new();
        }
    }
    let Some(nonce) = fresh(report) else { return String::new() };
    let boot = Boot { seq: identity.boot_seq + 1, nonce, previous: Some(identity.boot_nonce) };
    let hello = hello::of(identity, boot, hello::log_end(contents), data_dir);
    let targets = prepare::peers(identity, settings);
    heard_of_data(identity, &hello, &targets, runtime, report)
}

/// Asks and decides as [`prepare`] does.
fn heard_of_data(
    identity: &Identity,
    hello: &Hello,
    targets: &[Target],
    runtime: &Runtime,
    report: &mut Report,
) -> String {
    if targets.is_empty() {
        report.ok("cluster", "no other member is known");
        return String::new();
    }
    let (me, voters) = (prepare::me(identity, hello), prepare::voters(identity));
    let question = Question { hello: hello.clone(), config: None };
    let (replies, step) = runtime.block_on(async {
        let began = Instant::now();
        loop {
            let replies = hello::round(targets, &question).await;
            match again::decide(&me, &voters, &replies, began.elapsed()) {
                again::Step::AskAgain(_) => sleep(PAUSE).await,
                step => return (replies, step),
            }
        }
    });
    tell(&replies, report);
    let answered = replies.iter().filter(|reply| matches!(reply.heard, Heard::Answer(_))).count();
    match step {
        again::Step::Refuse(refusal, _) | again::Step::AskAgain(refusal) => report.fail("cluster", refusal),
        again::Step::Start(Some(doubt)) => report.warn(
            "cluster",
            format!(
                "{} ({}): a majority does not say so, so a start would go on",
                doubt.cause(),
                doubt.id.name()
            ),
        ),
        again::Step::StartAlone(stale) => report.warn("cluster", prepare::alone(identity, &stale)),
        again::Step::Start(None) if answered == 0 => {
            report.warn(
                "cluster",
                match replies.iter().any(|reply| matches!(reply.heard, Heard::Etcd(_))) {
                    true => "only etcd answers, which knows nothing of this directory",
                    false => "no peer answers: without a majority there is no leader",
                },
            );
        }
        again::Step::Start(None) => report.ok("cluster", "no peer speaks against this member"),
    }
    lead(&replies)
}

/// It runs here: what it says of itself is what its peers are asked about.
fn running(identity: &Identity, settings: &Settings, runtime: &Runtime, report: &mut Report) -> String {
    let own: Vec<Target> = identity
        .peer_urls
        .iter()
        .map(|url| Target { member: identity.member_id, name: identity.name.clone(), url: url.clone() })
        .collect();
    let stored = hello::of(identity, hello::boot(identity), LogEnd::default(), &settings.storage.data_dir);
    let question = Question { hello: stored, config: None };
    let replies = runtime.block_on(hello::round(&own, &question));
    let mine = replies.iter().find_map(|reply| match &reply.heard {
        Heard::Answer(answer) if answer.hello.dir == identity.dir_uuid => Some((reply, &**answer)),
        _ => None,
    });
    let Some((reply, answer)) = mine else {
        let why: Vec<String> = replies
            .iter()
            .map(|reply| match &reply.heard {
                Heard::Silent(why) => format!("{}: {why}", reply.url),
                Heard::Etcd(version) => format!("{}: etcd {version}", reply.url),
                Heard::Answer(answer) => {
                    format!("{}: another directory, {}", reply.url, answer.hello.dir)
                }
            })
            .collect();
        report.warn(
            "member",
            format!("does not answer at its peer URLs, so it is being started or hangs ({})", why.join("; ")),
        );
        return "it does not answer at its peer URLs".to_owned();
    };
    let hello = &answer.hello;
    report.ok(
        "member",
        format!(
            "answers at {}: {}, boot #{}, index {}, term {}, started {}",
            reply.url,
            life(&hello.life),
            hello.boot.seq,
            hello.log.last_index,
            hello.log.term,
            hello.home.started
        ),
    );
    let targets = prepare::peers(identity, settings);
    let state = heard_of_data(identity, hello, &targets, runtime, report);
    let witness = &answer.known.witness;
    if witness.leads { format!("it leads in term {}", witness.term) } else { state }
}

/// Without data, as one of the first members.
fn founds(new: &NewMember, settings: &Settings, runtime: &Runtime, report: &mut Report) -> String {
    let Beginning::Founds(genesis) = &new.beginning else { return String::new() };
    let others: Vec<_> = genesis.members.iter().filter(|member| member.id != new.member).cloned().collect();
    if others.is_empty() {
        report.ok("cluster", "this member alone");
        return String::new();
    }
    let (Some(fresh_dir), Some(nonce)) = (fresh(report), fresh(report)) else { return String::new() };
    let own = Hello {
        cluster_id: new.cluster,
        member: new.member,
        name: new.name.clone(),
        life: Life::Unborn,
        dir: new.dir_uuid.unwrap_or(fresh_dir),
        boot: Boot { seq: 1, nonce, previous: None },
        earlier: Vec::new(),
        log: LogEnd::default(),
        home: hello::home(&settings.storage.data_dir),
        version: prepare::VERSION.to_owned(),
    };
    let config = genesis.config(&new.origin.token);
    let me = Me {
        hello: &own,
        peer_urls: &new.peer_urls,
        method: new.origin.method,
        parent: None,
        restored: None,
        exists: &prepare::holds_member,
    };
    let targets = Target::of_founders(&others);
    // Without our settings: who hears other ones than its own gives up its start.
    let question = Question { hello: own.clone(), config: None };
    let everybody = settings.membership.attendance == Attendance::All;
    let (replies, step) = runtime.block_on(async {
        let began = Instant::now();
        loop {
            let replies = hello::round(&targets, &question).await;
            let settled = began.elapsed() >= SETTLES_WITHIN;
            let founder =
                Founder { me, config: &config, others: &others, everybody, contradicted: None, settled };
            match attend::decide(&founder, &replies) {
                Step::AskAgain(_) => sleep(PAUSE).await,
                step => return (replies, step),
            }
        }
    });
    tell(&replies, report);
    match step {
        Step::Form(attendees) => {
            report.ok(
                "cluster",
                format!("{} of {} other first members are there", attendees.len(), others.len()),
            );
        }
        Step::Late(late) => {
            report.ok(
                "cluster",
                format!("runs already ({}); this member would take its place in it", late.url),
            );
        }
        Step::Wait(waiting) => {
            let missing = waiting.missing.join("; ");
            report.warn("cluster", format!("a start would wait for {missing}"));
            return format!("it would wait for {} other first members", waiting.missing.len());
        }
        Step::AskAgain(refusal) | Step::Refuse(refusal) => report.fail("cluster", refusal),
    }
    String::new()
}

fn fresh(report: &mut Report) -> Option<identity::Unique> {
    match identity::random() {
        Ok(random) => Some(random),
        Err(error) => {
            report.warn("cluster", format!("no random numbers, so nobody is asked: {error}"));
            None
        }
    }
}

fn tell(replies: &[Reply], report: &mut Report) {
    for Reply { name, url, heard, .. } in replies {
        let check = format!("peer {name}");
        match heard {
            Heard::Silent(why) => report.warn(&check, format!("{url} does not answer: {why}")),
            Heard::Etcd(version) => report.warn(
                &check,
                format!("{url} is etcd {version}: it knows nothing of data directories, and protects none"),
            ),
            Heard::Answer(answer) => {
                let says = format!("{url} answers as {}; {}", answer.hello.name, knows(answer));
                match answer.verdict.is_welcome() {
                    true => report.ok(&check, says),
                    false => report.warn(&check, format!("{says}; its verdict: {}", answer.verdict.name())),
                }
            }
        }
    }
}

/// What a peer knows of this member.
fn knows(answer: &Answer) -> String {
    let known = &answer.known;
    let mut parts = vec![match &known.standing {
        Standing::Member { is_new: true, .. } => "a place is prepared for this member".to_owned(),
        Standing::Member { is_learner: true, .. } => "this member is a learner".to_owned(),
        Standing::Member { .. } => "this member is one of its cluster".to_owned(),
        Standing::Removed { index, term, .. } => {
            format!("this member was removed by entry {index} of term {term}")
        }
        Standing::Stranger => "this member is a stranger".to_owned(),
    }];
    if let Some(record) = &known.record {
        let home = &record.home;
        parts.push(format!("last admitted as boot #{} ({} on {})", record.boot.seq, home.path, home.host));
    }
    if let Some(mark) = known.watermark.filter(|mark| mark.last_index > 0) {
        parts.push(format!("once held index {} in term {}", mark.last_index, mark.term));
    }
    if let Some(session) = &known.session {
        let home = &session.home;
        parts.push(format!(
            "talks to it now: boot #{}, pid {} on {} ({})",
            session.boot.seq, home.pid, home.host, home.path
        ));
    }
    parts.join(", ")
}

fn life(life: &Life) -> String {
    match life {
        Life::Unborn => "waits for the other first members".into(),
        Life::Formed => "its cluster has no UUID yet".into(),
        Life::Joining => "joins a running cluster".into(),
        Life::Born(uuid) => format!("belongs to cluster UUID {uuid}"),
    }
}

/// The leader, if one of those who answer is it.
fn lead(replies: &[Reply]) -> String {
    let leads = replies.iter().find_map(|reply| match &reply.heard {
        Heard::Answer(answer) if answer.known.witness.leads => Some((reply, answer.known.witness)),
        _ => None,
    });
    match leads {
        Some((reply, witness)) if witness.member != MemberId::NONE => {
            format!("{} leads in term {}", reply.name, witness.term)
        }
        _ => String::new(),
    }
}
