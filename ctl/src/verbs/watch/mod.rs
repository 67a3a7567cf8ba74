//! watch: changes as they happen. One call carries all watches of a command. When it is lost the watches go on at the next member,
//! each from the change after the last one it showed, so that nothing is missing and nothing comes twice.
//!
//! `request` reads what to watch, `watchers` keeps what each watch has shown, `command` runs what `--` asks for; this file moves
//! requests, answers and lines of stdin between them. No signal is caught: whatever was printed is complete, and the server ends
//! the watches of a closed connection by itself.

mod command;
pub(super) mod request;
pub(super) mod watchers;

use super::{begin, show};
use crate::client::{Client, WATCH, server_failure};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, tell};
use crate::session::{Ended, Session};
use crate::settings::Settings;
use crate::{cli, txn_script};
use api::error::EtcdError;
use api::etcdserverpb::watch_request::RequestUnion;
use api::etcdserverpb::{WatchProgressRequest, WatchRequest, WatchResponse};
use clap::ArgMatches;
use request::{Defaults, Wanted};
use std::io::BufRead;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use watchers::{News, Watchers};

/// Pauses between attempts to go on: the first one is at once, then they double. A member that starts is found soon, a cluster
/// that is down is not bothered.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Lines of stdin that wait. One is enough: whoever types or pipes them can wait as well.
const LINES_MAX: usize = 1;

pub async fn watch(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let defaults = Defaults::of_environment()?;
    let interactive = cli::on(matches, "interactive");
    let wanted = if interactive { None } else { Some(Wanted::of(matches, &defaults)?) };
    let (client, printer) = begin(settings, true)?;
    printer.refuse_table_and_raw()?;
    let left = u64::try_from(cli::integer(matches, "exit-after")).ok().filter(|count| *count > 0);
    let mut watch = Watch {
        client: client.without_deadline(),
        printer,
        session: None,
        watchers: Watchers::default(),
        interactive,
        progress_due: false,
        outage: false,
        pause: Duration::ZERO,
        left,
    };
    let mut lines = interactive.then(stdin_lines);
    if let Some(wanted) = wanted {
        watch.add(wanted).await?;
    }
    loop {
        tokio::select! {
            answer = next(watch.session.as_mut()) => {
                if watch.answer(answer).await? == Flow::End {
                    return Ok(());
                }
            }
            line = async { lines.as_mut().expect("checked").recv().await }, if lines.is_some() => {
                match line {
                    Some(Ok(line)) => watch.line(&line, &defaults).await?,
                    Some(Err(why)) => return Err(Failure::input(format!("error reading watch request line: {why}"))),
                    None => return Err(Failure::input("error reading watch request line: EOF")),
                }
            }
        }
    }
}

/// The next answer of the call; never while there is no call.
async fn next(session: Option<&mut Session>) -> Result<WatchResponse, Ended> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

/// Whole lines of stdin, read by a thread of their own because a read of stdin cannot be given up.
fn stdin_lines() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (lines, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let line = match stdin.read_until(b'\n', &mut line) {
                Ok(_) if line.pop() == Some(b'\n') => Ok(line),
                // The end of the input; an unfinished line is nobody's request.
                Ok(_) => return,
                Err(error) => Err(error),
            };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

struct Watch {
    client: Client,
    printer: Printer,
    session: Option<Session>,
    watchers: Watchers,
    interactive: bool,
    /// A progress notice was asked for and is not here yet.
    progress_due: bool,
    /// The call was lost and its successor has said nothing yet.
    outage: bool,
    pause: Duration,
    /// Changes to show before the end; `None`: no end.
    left: Option<u64>,
}

impl Watch {
    async fn add(&mut self, wanted: Wanted) -> Result<()> {
        if self.session.is_none() {
            self.session = Some(self.client.open(&WATCH).await?);
        }
        let request = self.watchers.add(wanted);
        self.send(request).await
    }

    async fn send(&mut self, request: WatchRequest) -> Result<()> {
        let session = self.session.as_mut().expect("opened before something is sent");
        match session.send(&request).await {
            Ok(()) => Ok(()),
            // The watch is on the books already; whatever it takes to go on serves it too.
            Err(ended) => self.ended(ended).await,
        }
    }

    async fn line(&mut self, line: &[u8], defaults: &Defaults) -> Result<()> {
        let shown = String::from_utf8_lossy(line);
        let words = match txn_script::words(line) {
            Ok(words) => words,
            Err(failure) => {
                tell(format_args!("Invalid command {shown} ({})", failure.headline));
                return Ok(());
            }
        };
        match words.first().map(Vec::as_slice) {
            None => tell(format_args!("Invalid command: {shown} (watch and progress supported)")),
            Some(b"watch") if words.len() < 2 && !defaults.has_key() => {
                tell(format_args!("Invalid command {shown} (command type or key is not provided)"));
            }
            Some(b"watch") => match Wanted::of_words(words, defaults) {
                Ok(wanted) => return self.add(wanted).await,
                Err(failure) => {
                    let why = failure.headline.lines().next().unwrap_or_default();
                    tell(format_args!("Invalid command {shown} ({why})"));
                }
            },
            Some(b"progress") if self.session.is_some() => {
                self.progress_due = true;
                let request = WatchRequest {
                    request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
                };
                return self.send(request).await;
            }
            // Without a watch there is nothing whose progress could be told.
            Some(b"progress") => {}
            Some(_) => tell(format_args!("Invalid command {shown} (only support watch)")),
        }
        Ok(())
    }

    async fn answer(&mut self, answer: Result<WatchResponse, Ended>) -> Result<Flow> {
        let response = match answer {
            Ok(response) => response,
            Err(ended) => return self.ended(ended).await.map(|()| Flow::GoOn),
        };
        self.pause = Duration::ZERO;
        if std::mem::take(&mut self.outage) {
            let endpoint = self.session.as_ref().map_or("", |session| &session.endpoint);
            tell(format_args!("watch: resumed at {endpoint}{}", self.watchers.from()));
        }
        for news in self.watchers.take(response) {
            let flow = match news {
                News::Events { watcher, response } => self.events(watcher, response).await?,
                News::Progress { manual, response } => {
                    self.progress_due &= !manual;
                    let revision = response.header.unwrap_or_default().revision;
                    show(format!("progress notify: {revision}\n").as_bytes())?;
                    show(&self.printer.watch(&response)?)?;
                    Flow::GoOn
                }
                News::Canceled { watcher, response } => {
                    self.canceled(watcher, response).await?;
                    Flow::GoOn
                }
            };
            if flow == Flow::End {
                return Ok(flow);
            }
        }
        Ok(Flow::GoOn)
    }

    async fn events(&mut self, watcher: usize, mut response: WatchResponse) -> Result<Flow> {
        if let Some(left) = &mut self.left {
            response.events.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= response.events.len() as u64;
        }
        show(&self.printer.watch(&response)?)?;
        let command = self.watchers.command(watcher);
        if !command.is_empty() {
            let revision = response.header.unwrap_or_default().revision;
            for event in &response.events {
                command::run(command, revision, event).await?;
            }
        }
        Ok(if self.left == Some(0) { Flow::End } else { Flow::GoOn })
    }

    /// The server ended one watch. The others of an interactive session go on.
    async fn canceled(&mut self, watcher: usize, response: WatchResponse) -> Result<()> {
        show(&self.printer.watch(&response)?)?;
        let reason = reason(&response);
        tell(format_args!("watch was canceled ({reason})"));
        if response.compact_revision > 0 {
            if let Some(request) = self.watchers.skip_to(watcher, response.compact_revision) {
                tell(format_args!(
                    "watch: changes before revision {0} are gone and were not shown; going on at revision {0}",
                    response.compact_revision
                ));
                return self.send(request).await;
            }
            if !self.interactive {
                let endpoint = self.session.as_ref().map_or("", |session| &session.endpoint);
                return Err(compacted(self.watchers.next(watcher), response.compact_revision, endpoint));
            }
        }
        if self.interactive {
            return Ok(());
        }
        Err(Failure::new(Exit::Interrupted, "watch is canceled by the server"))
    }

    /// The whole call is over: goes on elsewhere if that makes sense, for as long as it takes.
    async fn ended(&mut self, ended: Ended) -> Result<()> {
        let mut why = match ended {
            Ended::Lost(why) => why,
            Ended::Refused(status) if self.client.renew_token(&status) => status.message,
            Ended::Refused(status) => {
                tell(format_args!("watch was canceled ({})", server_failure(&status).headline));
                return Err(Failure::new(Exit::Interrupted, "watch is canceled by the server"));
            }
        };
        loop {
            let session = self.session.take().expect("a call that ended was there");
            if !std::mem::replace(&mut self.outage, true) {
                // Two lines for an outage, however many members are tried in between.
                tell(format_args!("watch: lost {} ({why}); going on elsewhere", session.endpoint));
            }
            drop(session);
            self.client.leave();
            let mut session = self.reopen().await?;
            match self.renew(&mut session).await {
                Ok(()) => {
                    self.session = Some(session);
                    return Ok(());
                }
                Err(Ended::Refused(status)) => return Err(server_failure(&status)),
                Err(Ended::Lost(again)) => why = again,
            }
            self.session = Some(session);
        }
    }

    /// Asks a new call for everything the lost one owed.
    async fn renew(&mut self, session: &mut Session) -> Result<(), Ended> {
        for request in self.watchers.resume() {
            session.send(&request).await?;
        }
        if self.progress_due {
            let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
            session.send(&WatchRequest { request_union: Some(progress) }).await?;
        }
        Ok(())
    }

    async fn reopen(&mut self) -> Result<Session> {
        loop {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            match self.client.open(&WATCH).await {
                Ok(session) => return Ok(session),
                // A user who was removed stays so; everything else may pass.
                Err(failure) if failure.headline == EtcdError::AuthFailed.text() => return Err(failure),
                Err(_) => {}
            }
        }
    }
}

/// Why a watch was canceled, in the words of etcd's client: known texts as they are.
fn reason(response: &WatchResponse) -> String {
    if response.compact_revision > 0 {
        EtcdError::Compacted.text().to_owned()
    } else if response.cancel_reason.is_empty() {
        EtcdError::FutureRev.text().to_owned()
    } else if response.header.is_none()
        || EtcdError::ALL.iter().any(|known| known.text() == response.cancel_reason)
    {
        response.cancel_reason.clone()
    } else {
        format!("rpc error: code = FailedPrecondition desc = {}", response.cancel_reason)
    }
}

fn compacted(from: i64, compact_revision: i64, endpoint: &str) -> Failure {
    let headline =
        format!("[COMPACTED] the changes from revision {from} to {} are gone", compact_revision - 1);
    Failure::new(Exit::Compacted, headline).with(Details {
        cause: format!("history was compacted; what is left begins at revision {compact_revision}"),
        evidence: vec![format!("{endpoint}: compact_revision={compact_revision}")],
        remedy: vec![
            "read the keys as they are now (cairnctl get ... -w json) and watch from the header's revision + 1"
                .into(),
            "or leave the gap and show what is left: --resume-after-compaction".into(),
        ],
        never: "do not take what you have seen for all that happened; deletes are among the changes that are gone"
            .into(),
    })
}
