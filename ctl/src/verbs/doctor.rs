//! doctor: every check of the cluster that can be made from outside, each finding with its cause, evidence and remedy.
//!
//! Not here: the checks themselves (`judge`); a member that does not start (`cairnd doctor` on its host).

use super::judge::{self, Finding, Severity};
use super::show;
use super::status::verdict;
use super::survey::Survey;
use crate::cli;
use crate::failure::{Failure, Result};
use crate::output::paint::{Paint, Tone};
use crate::output::{Printer, Value};
use crate::settings::Settings;
use clap::{ArgMatches, Command};

pub fn command() -> Command {
    cli::verb("doctor", "Looks for what is wrong with the cluster, and says what to do", "cairnctl doctor [flags]").after_help(
        "Checks members, endpoints, leader, versions, clocks, alarms, quota, learners, advertised addresses, and the metrics of each member.\n\
         Exits with 0 when nothing but notes was found, with 11 after warnings and with 1 after errors. cairnd doctor looks at one host.",
    )
}

pub async fn doctor(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("doctor command accepts no arguments"));
    }
    let printer = Printer::new(settings);
    printer.page(&Value::Null, |_, _| String::new())?;
    let survey = Survey::take(settings, true).await?;
    let findings = judge::judge(&survey);
    show(&printer.page(&data(&survey, &findings), |paint, _| text(&survey, &findings, paint))?)?;
    verdict(&findings)
}

fn looked_at(survey: &Survey) -> String {
    let answer = survey.statuses().count();
    let (members, answer) = (
        counted(survey.members.len(), "member"),
        format!("{answer} {}", if answer == 1 { "answers" } else { "answer" }),
    );
    format!("cluster {:x}: {members}, {answer}", survey.cluster)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub fn text(survey: &Survey, findings: &[Finding], paint: Paint) -> String {
    let mut out = format!("{}\n", looked_at(survey));
    for finding in findings {
        let tone = match finding.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Warn,
            Severity::Note => Tone::Strong,
        };
        out.push_str(&format!("\n{}\n{}", paint.tone(tone, &finding.line()), finding.details));
    }
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (number(Severity::Error), number(Severity::Warning));
    let verdict = match (errors, warnings) {
        (0, 0) => paint.good("nothing to mend was found"),
        _ => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
    };
    out.push_str(&format!("\n{verdict}\n"));
    out
}

pub fn data(survey: &Survey, findings: &[Finding]) -> Value {
    Value::map([
        ("cluster_id", format!("{:x}", survey.cluster).into()),
        ("members", survey.members.len().into()),
        ("members_that_answer", survey.statuses().count().into()),
        ("healthy", judge::exit(findings).is_none().into()),
        ("findings", Value::List(findings.iter().map(Finding::value).collect())),
    ])
}
