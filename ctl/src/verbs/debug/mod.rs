//! debug bundle: one file with what somebody needs who is to help and cannot see the cluster. No keys and no values are in it, and what
//! looks like a secret is taken out. It is made also when nobody answers: then it says so, and has what this host knows.

mod archive;
mod redact;

use super::survey::Survey;
use super::{doctor, judge, show, survey};
use crate::cli;
use crate::client;
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::paint::Paint;
use crate::output::progress::{Progress, Unit};
use crate::output::{Printer, Value};
use crate::settings::Settings;
use crate::units::format_size;
use crate::verbs::member::view::client_endpoints;
use archive::Archive;
use clap::{ArgMatches, Command};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most of one file: a page of metrics has 150 kB, a day's journal of a quiet member less.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most of all files together, before they are compressed: what a mail can carry afterwards.
const BUNDLE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Members whose pages are fetched: raft clusters have nine at most, and learners some more.
const MEMBERS_MAX: usize = 20;
/// Journal lines of the unit.
const JOURNAL_LINES: &str = "5000";
/// How long a program on this host may take.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(15);
/// Pages of each member beside its metrics.
const PAGES: [(&str, &str); 3] =
    [("health", "/health"), ("readyz", "/readyz?verbose"), ("version", "/version")];
const CONFIG_FILE: &str = "/etc/cairn/cairnd.toml";

pub fn command() -> Command {
    cli::group("debug", "What helps others to help").subcommands([cli::verb(
        "bundle",
        "Gathers what somebody needs who is to find out what is wrong",
        "cairnctl debug bundle [flags]",
    )
    .after_help(
        "Status, findings, metrics, health and versions of all members, and of this host the settings of cairnd and the end of its journal.\n\
         No keys, no values; users, passwords, tokens and private keys are taken out. MANIFEST.txt in it says what is there and what is not.\n\
         Works also when no member answers. Look into it before you give it away.",
    )
    .args([
        cli::value("file", "Where to write it; cairn-debug-<time>.tar.gz when not given").short('f'),
        cli::value("unit", "The unit whose journal is taken; cairnd when not given"),
    ])])
}

/// The files of a bundle, and what became of those that are missing.
#[derive(Default)]
struct Files {
    files: Vec<(String, String)>,
    bytes: usize,
    missing: Vec<String>,
}

impl Files {
    /// `text` has been redacted. The end of it is kept when there is too much: the newest lines stand there.
    fn add(&mut self, name: &str, text: String) {
        let room = FILE_BYTES_MAX.min(BUNDLE_BYTES_MAX.saturating_sub(self.bytes));
        if room == 0 {
            return self.missing.push(format!("{name}: the bundle is full"));
        }
        let kept = if text.len() > room {
            let from =
                (text.len() - room..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            self.missing.push(format!("{name}: the first {from} bytes"));
            text[from..].to_owned()
        } else {
            text
        };
        self.bytes += kept.len();
        self.files.push((name.to_owned(), kept));
    }

    fn add_or(&mut self, name: &str, text: Result<String, String>) {
        match text {
            Ok(text) => self.add(name, text),
            Err(why) => self.missing.push(format!("{name}: {}", redact::text(&why))),
        }
    }
}

pub async fn bundle(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments(
            "debug bundle command accepts no arguments; name the file with --file",
        ));
    }
    let printer = Printer::new(settings);
    printer.page(&Value::Null, |_, _| String::new())?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = format!("cairn-debug-{}", stamp(seconds));
    let path = match cli::text(matches, "file") {
        "" => PathBuf::from(format!("{name}.tar.gz")),
        path => PathBuf::from(path),
    };
    // Taken before anything is asked: a name that cannot be had should not be found out in the end.
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(&path.display().to_string()),
        _ => Failure::new(Exit::Io, format!("create {}: {error}", path.display())),
    })?;
    let unit = match cli::text(matches, "unit") {
        "" => "cairnd",
        unit => unit,
    };
    let files = gather(settings, unit, seconds).await;
    let packed = || -> std::io::Result<u64> {
        let mut archive = Archive::new(&file, &name, seconds);
        archive.add("MANIFEST.txt", manifest(&files, seconds).as_bytes())?;
        for (name, text) in &files.files {
            archive.add(name, text.as_bytes())?;
        }
        archive.finish()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    let bytes = packed().map_err(|error| {
        let _ = std::fs::remove_file(&path);
        Failure::new(Exit::Io, format!("write {}: {error}", path.display()))
    })?;
    let path = path.display().to_string();
    let data = Value::map([
        ("file", path.as_str().into()),
        ("bytes", bytes.into()),
        ("files", files.files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>().into()),
        ("missing", files.missing.clone().into()),
    ]);
    show(&printer.page(&data, |_, _| {
        let mut out = format!("{path}: {} files, {}\n", files.files.len() + 1, format_size(bytes));
        for missing in &files.missing {
            writeln!(out, "  without {missing}").expect("writes to a String");
        }
        out.push_str("look into it before you give it away: no keys and values are in it, host names and addresses are\n");
        out
    })?)
}

fn exists(path: &str) -> Failure {
    Failure::new(Exit::Io, format!("[FILE_EXISTS] {path} is there already")).with(Details {
        cause:
            "a bundle replaces no file: the other one may be all that is left of a trouble that has passed"
                .into(),
        evidence: vec![path.into()],
        remedy: vec!["give another name with --file, or move that file away".into()],
        never: String::new(),
    })
}

async fn gather(settings: &Settings, unit: &str, seconds: u64) -> Files {
    let mut files = Files::default();
    let mut progress = Progress::begin("debug bundle", Unit::Things("steps"), false);
    files.add("cairnctl.txt", own(settings, seconds));
    match Survey::take(settings, true).await {
        Ok(survey) => {
            progress.tell(1, None);
            cluster(settings, &survey, &mut files).await;
        }
        Err(failure) => files
            .missing
            .push(format!("everything about the cluster: {}", redact::text(&survey::reason(&failure)))),
    }
    progress.tell(2, None);
    let own_config = std::path::Path::new(CONFIG_FILE).exists();
    let explain: Vec<&str> = if own_config {
        vec!["config", "explain", "--config-file", CONFIG_FILE]
    } else {
        vec!["config", "explain"]
    };
    for (name, program, arguments) in [
        ("cairnd-version.txt", "cairnd", vec!["--version"]),
        ("cairnd-config.txt", "cairnd", explain),
        (
            "journal.txt",
            "journalctl",
            vec!["--unit", unit, "--lines", JOURNAL_LINES, "--no-pager", "--output", "short-iso"],
        ),
        ("unit.txt", "systemctl", vec!["status", unit, "--no-pager", "--lines", "0"]),
    ] {
        files.add_or(name, run(program, &arguments).map(|text| redact::text(&text)));
        progress.tell(3, None);
    }
    progress.finish(4);
    files
}

/// What is known of the cluster, and what each member serves.
async fn cluster(settings: &Settings, survey: &Survey, files: &mut Files) {
    let findings = judge::judge(survey);
    let redacted = |text: String| redact::metrics(&text);
    files.add("status.txt", redacted(super::status::screen(survey, &findings, Paint::NONE, true)));
    files.add("status.json", redacted(super::status::data(survey, &findings).to_json()));
    files.add("doctor.txt", redacted(doctor::text(survey, &findings, Paint::NONE)));
    files.add("doctor.json", redacted(doctor::data(survey, &findings).to_json()));
    for seen in survey.members.iter().take(MEMBERS_MAX) {
        let id = format!("{:x}", seen.member.id);
        if let Some(metrics) = &seen.metrics {
            files.add_or(
                &format!("{id}-metrics.txt"),
                metrics.clone().map(|page| redact::metrics(&page.body)),
            );
        }
        let endpoints = client_endpoints(&seen.member.client_ur_ls);
        let Some(endpoint) = endpoints.first().filter(|_| seen.status.is_ok()) else { continue };
        for (name, path) in PAGES {
            let page = async {
                let dialer =
                    client::dialer(settings, &endpoints).map_err(|failure| survey::reason(&failure))?;
                let get = dialer.get(endpoint, path, survey::PAGE_BYTES_MAX);
                let page = tokio::time::timeout(settings.command_timeout, get).await;
                page.map_err(|_| "no answer in time".to_owned())?
            };
            let text =
                page.await.map(|page| format!("HTTP status {}\n{}\n", page.status, redact::text(&page.body)));
            files.add_or(&format!("{id}-{name}.txt"), text);
        }
    }
    if survey.members.len() > MEMBERS_MAX {
        files.missing.push(format!(
            "the pages of {} members beyond {MEMBERS_MAX}",
            survey.members.len() - MEMBERS_MAX
        ));
    }
}

/// This tool and how it was called, without who called it.
fn own(settings: &Settings, seconds: u64) -> String {
    let endpoints: Vec<&str> = settings.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    redact::text(&format!(
        "cairnctl {}\nmade {}\nendpoints {}\nTLS {}\nsystem {}\nkernel {}\n",
        env!("CARGO_PKG_VERSION"),
        stamp(seconds),
        endpoints.join(","),
        if settings.endpoints.iter().any(|endpoint| endpoint.secure) { "yes" } else { "no" },
        pretty.trim_matches('"'),
        kernel.trim(),
    ))
}

fn manifest(files: &Files, seconds: u64) -> String {
    let mut out =
        format!("Debug bundle of cairnctl {}, made {}.\n\n", env!("CARGO_PKG_VERSION"), stamp(seconds));
    out.push_str("No keys and no values are in it. Users, passwords, tokens, private keys and long hexadecimal texts are replaced by (hidden).\n");
    out.push_str("Host names, addresses, member names and ids are in it.\n\nFiles:\n");
    for (name, text) in &files.files {
        writeln!(out, "  {name}: {} bytes, {}", text.len(), describe(name)).expect("writes to a String");
    }
    if !files.missing.is_empty() {
        out.push_str("\nMissing:\n");
        for missing in &files.missing {
            writeln!(out, "  {missing}").expect("writes to a String");
        }
    }
    out
}

fn describe(name: &str) -> &'static str {
    match name {
        "cairnctl.txt" => "this tool, its endpoints and the system it ran on",
        "status.txt" | "status.json" => "the cluster as cairnctl status shows it",
        "doctor.txt" | "doctor.json" => "what cairnctl doctor found",
        "cairnd-version.txt" => "the daemon of this host",
        "cairnd-config.txt" => "its settings and where each comes from",
        "journal.txt" => "the end of its journal",
        "unit.txt" => "its unit",
        name if name.ends_with("-metrics.txt") => "the metrics of this member",
        _ => "what this member says of itself",
    }
}

/// `20261122T173641Z`, which sorts and needs no quotes.
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// What a program of this host prints, for as long as it is waited for; it is ended then.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let (told, reads) = mpsc::channel();
    let stdout = child.stdout.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    for (at, source) in [Box::new(stdout) as Box<dyn Read + Send>, Box::new(stderr)].into_iter().enumerate() {
        let told = told.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // Twice what is kept, since the end is what is kept.
            let _ = source.take(2 * FILE_BYTES_MAX as u64).read_to_end(&mut bytes);
            let _ = told.send((at, bytes));
        });
    }
    let until = std::time::Instant::now() + PROGRAM_PATIENCE;
    let mut texts = [String::new(), String::new()];
    for _ in 0..2 {
        match reads.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            Ok((at, bytes)) => texts[at] = String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program}: no end within {PROGRAM_PATIENCE:?}"));
            }
        }
    }
    // A program that has printed more than was read waits for a reader.
    let _ = child.kill();
    let _ = child.wait();
    let [stdout, stderr] = texts;
    match (stdout.trim().is_empty(), stderr.trim().lines().next()) {
        (false, _) => Ok(stdout),
        (true, Some(why)) => Err(format!("{program}: {why}")),
        (true, None) => Err(format!("{program} says nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_time_in_a_name() {
        for (seconds, expected) in [
            (0, "19700101T000000Z"),
            (951_825_601, "20000229T120001Z"),
            (1_795_369_001, "20261122T173641Z"),
            (4_133_980_799, "21001231T235959Z"),
        ] {
            assert_eq!(stamp(seconds), expected);
        }
    }

    #[test]
    fn files_and_the_bundle_are_bounded_and_the_manifest_says_what_is_missing() {
        let mut files = Files::default();
        files.add("journal.txt", format!("old{}new", "ä".repeat(FILE_BYTES_MAX / 2)));
        let (_, journal) = &files.files[0];
        assert!(journal.len() <= FILE_BYTES_MAX && journal.ends_with("new") && !journal.contains("old"));
        for at in 0..20 {
            files.add(&format!("{at}"), "x".repeat(FILE_BYTES_MAX));
        }
        files.add_or("unit.txt", Err("password=x".into()));
        assert!(files.bytes <= BUNDLE_BYTES_MAX);
        let manifest = manifest(&files, 0);
        for line in [
            "  journal.txt: 41943",
            "  journal.txt: the first ",
            "  19: the bundle is full",
            "  unit.txt: password=(hidden)",
        ] {
            assert!(manifest.contains(line), "{line} in {manifest}");
        }
    }

    #[test]
    fn a_program_that_is_missing_or_silent_is_a_reason() {
        assert!(run("cairn-no-such-program", &[]).unwrap_err().contains("No such file"));
        assert_eq!(run("true", &[]), Err("true says nothing".into()));
        assert_eq!(run("echo", &["a", "b"]), Ok("a b\n".into()));
    }
}
