//! member plan: what a change of members would mean, told before anything is changed. Changes nothing.

use super::quorum::{Count, NEW, Outcome, Problem, Step, judge};
use super::view::{Seen, View};
use crate::cli;
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, json};
use crate::settings::{Format, Settings};
use crate::verbs::confirm::Blast;
use crate::verbs::show;
use clap::ArgMatches;
use std::fmt::Write;

pub async fn plan(settings: &Settings, kind: &str, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let target = arguments.first().map(|word| String::from_utf8_lossy(word).into_owned());
    let target = match (kind, target, arguments.len()) {
        ("add", target, 0 | 1) => target.unwrap_or_default(),
        (_, Some(target), 1) => target,
        ("add", ..) => return Err(Failure::arguments("too many arguments")),
        _ => return Err(Failure::arguments("member ID is not provided")),
    };
    if !matches!(settings.format, Format::Simple | Format::Json) {
        Printer::new(settings).refuse_all()?;
    }
    let view = View::take(settings, settings.endpoints.clone()).await?;
    let mut member = NEW;
    if kind != "add" {
        let seen = view.find(&target, None)?;
        member = seen.ok_or_else(|| unknown(&view, &target))?.member.id;
    }
    let steps = match kind {
        "add" if cli::on(matches, "learner") => vec![Step::AddLearner, Step::Start],
        "add" => vec![Step::AddVoter, Step::Start],
        "remove" => vec![Step::Remove(member)],
        "promote" => vec![Step::Promote(member)],
        "replace" => vec![Step::AddLearner, Step::Start, Step::Promote(NEW), Step::Remove(member)],
        other => unreachable!("the grammar knows a plan {other:?} that nothing makes"),
    };
    let numbers = view.numbers(None);
    let outcomes = judge(&numbers, &steps);
    let now = Count::of(&numbers);
    let text = match settings.format {
        Format::Json => as_json(&view, now, &outcomes),
        _ => as_text(&view, now, &outcomes),
    };
    show(text.as_bytes())?;
    match outcomes.iter().find_map(|outcome| Some((outcome, outcome.problem?))) {
        None => Ok(()),
        Some((outcome, problem)) => Err(refusal(&view, now, outcome, problem)),
    }
}

/// What removing a member means, for whoever is asked.
pub async fn blast(settings: &Settings, id: u64) -> Result<Blast> {
    let view = View::take(settings, settings.endpoints.clone()).await?;
    let name = format!("{id:x}");
    let seen = view.find(&name, None)?.ok_or_else(|| unknown(&view, &name))?;
    let outcomes = judge(&view.numbers(None), &[Step::Remove(id)]);
    let mut more = vec![format!("now:        {}", Count::of(&view.numbers(None)).words())];
    for outcome in &outcomes {
        more.push(format!("after that: {}", outcome.after.words()));
        more.extend(outcome.problem.map(|problem| problem.words().to_owned()));
    }
    more.push("it ends by itself and never comes back under this id; its data stays on its disk".into());
    Ok(Blast {
        what: format!("remove member {} from cluster {:x}", seen.label(), view.cluster),
        more,
        ask: true,
    })
}

pub fn unknown(view: &View, target: &str) -> Failure {
    names_of(target, view.members.iter().map(Seen::label))
}

/// No member is called so; these are there.
pub fn names_of(target: &str, labels: impl Iterator<Item = String>) -> Failure {
    Failure::new(Exit::Error, format!("[MEMBER_UNKNOWN] no member is called {target:?}")).with(Details {
        cause: "neither an id in hexadecimal nor a name of the members is this".into(),
        evidence: labels.map(|label| format!("member {label}")).collect(),
        remedy: vec!["name one of these".into()],
        never: String::new(),
    })
}

/// What ends a plan, and a replacement, that would do harm.
pub fn refusal(view: &View, now: Count, outcome: &Outcome, problem: Problem) -> Failure {
    let step = step_words(view, outcome.step);
    let mut remedy = Vec::new();
    let down = view.members.iter().filter(|seen| !seen.member.is_learner && !seen.is_up());
    remedy.extend(down.map(|seen| format!("start member {}, or remove it first", seen.label())));
    if outcome.step == Step::AddVoter {
        remedy.push("add it as a learner, and promote it when it has caught up: --learner".into());
    }
    if remedy.is_empty() {
        remedy.push("see cairnctl member list and cairnctl endpoint status --cluster -w table".into());
    }
    Failure::new(Exit::Error, format!("[{}] not to be done: {step}", problem.id())).with(Details {
        cause: problem.words().into(),
        evidence: vec![
            format!("now:        {}", now.words()),
            format!("after that: {}", outcome.after.words()),
        ],
        remedy,
        never: "do not force a new cluster to get past this; what the others have acknowledged would be lost"
            .into(),
    })
}

fn step_words(view: &View, step: Step) -> String {
    let member = |id: u64| {
        let seen = view.members.iter().find(|seen| seen.member.id == id);
        seen.map_or_else(|| "the new member".to_owned(), |seen| format!("member {}", seen.label()))
    };
    match step {
        Step::AddVoter => "add a voter".into(),
        Step::AddLearner => "add a learner".into(),
        Step::Start => "start the new member".into(),
        Step::Promote(id) => format!("promote {}", member(id)),
        Step::Remove(id) => format!("remove {}", member(id)),
    }
}

fn as_text(view: &View, now: Count, outcomes: &[Outcome]) -> String {
    let mut out = format!("cluster {:x}\n", view.cluster);
    for seen in &view.members {
        let kind = if seen.member.is_learner { "learner" } else { "voter" };
        writeln!(out, "  member {}, {kind}, {}", seen.label(), seen.condition()).expect("writes to a String");
    }
    writeln!(out, "now:    {}", now.words()).expect("writes to a String");
    for (at, outcome) in outcomes.iter().enumerate() {
        writeln!(out, "step {}: {}", at + 1, step_words(view, outcome.step)).expect("writes to a String");
        writeln!(out, "        {}", outcome.after.words()).expect("writes to a String");
        for line in outcome.note.iter().copied().chain(outcome.problem.map(Problem::words)) {
            writeln!(out, "        {line}").expect("writes to a String");
        }
    }
    let verdict = if outcomes.iter().any(|outcome| outcome.problem.is_some()) {
        "not to be done"
    } else {
        "the quorum is kept at every step"
    };
    writeln!(out, "verdict: {verdict}").expect("writes to a String");
    out
}

fn as_json(view: &View, now: Count, outcomes: &[Outcome]) -> String {
    let count = |o: &mut json::Object<'_>, count: Count| {
        o.raw("voters", count.voters);
        o.raw("up", count.up);
        o.raw("quorum", count.quorum());
        o.raw("tolerated", count.tolerated());
        o.raw("has_quorum", count.spare().is_some());
        o.raw("more_may_fail", count.spare().unwrap_or(0));
    };
    let problem = outcomes.iter().find_map(|outcome| outcome.problem);
    let mut out = String::new();
    json::object(&mut out, |o| {
        o.text("cluster_id", &format!("{:x}", view.cluster));
        o.list("members", &view.members, |o, seen| {
            o.text("id", &format!("{:x}", seen.member.id));
            o.text("name", &seen.member.name);
            o.raw("learner", seen.member.is_learner);
            o.raw("started", seen.is_started());
            o.raw("up", seen.is_up());
            o.raw("leads", seen.leads());
            if let Err(why) = &seen.status {
                o.text("why", why);
            }
        });
        o.object("now", |o| count(o, now));
        o.list("steps", outcomes, |o, outcome| {
            o.text("step", &step_words(view, outcome.step));
            o.object("after", |o| count(o, outcome.after));
            o.optional_text("note", outcome.note.unwrap_or_default());
            if let Some(problem) = outcome.problem {
                o.text("problem", problem.id());
                o.text("why", problem.words());
            }
        });
        o.raw("safe", problem.is_none());
        o.optional_text("problem", problem.map_or("", Problem::id));
    });
    out.push('\n');
    out
}
