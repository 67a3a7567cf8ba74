//! What the service manager is told: that the member is ready, how it is, that it lives, that it needs more time. Without a manager all of
//! this does nothing.
//!
//! One thread talks. Whoever has something to say leaves it here and goes on; a status line goes out at most once a second. The thread
//! judges by itself whether the watchdog is fed ([`watchdog`]) and whether a start or a stop may have more time ([`Progress`]).
//!
//! Not here: what the line says ([`line`]), and sockets that the manager hands over ([`sockets`]).

pub mod line;
pub mod sockets;
mod watchdog;

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use node::Handle;
use parking_lot::{Condvar, Mutex};
use sd_notify::NotifyState;

use crate::refusal::Refusal;
use watchdog::{Patience, Verdict, Watched};

/// Between two status lines: people read them, and the lag of a busy member changes all the time.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the thread looks whether there is something to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often a start or a stop asks for more time, and for how much: two requests may be lost.
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(30);

/// A start without any sign of progress asks for no more time after this. As long as for a disk that hangs: a restart would meet the same
/// disk, and read from it all that was read already.
const START_PATIENCE: Duration = watchdog::DISK_PATIENCE;

/// How long the result of a reload stays in the status line.
const RESULT_SHOWN: Duration = Duration::from_secs(60);

/// Longest wait for room in the manager's queue.
const TELL_WAIT: Duration = Duration::from_secs(1);

const LAST_WORD_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Stopping,
}

/// What is to be said.
struct Desk {
    phase: Phase,
    line: String,
    /// Said instead of any line that comes later: why the member ends.
    last_word: Option<String>,
    result: Option<(String, Instant)>,
    sent: Option<(String, Instant)>,
    extended: Option<Instant>,
    progress: Progress,
    watched: Option<Handle>,
    patience: Patience,
    fed: Option<Instant>,
    /// Since when the watchdog is not fed.
    starved: bool,
}

struct Manager {
    desk: Mutex<Desk>,
    news: Condvar,
    /// The manager's watchdog, if it has one.
    limit: Option<Duration>,
}

/// The one manager of this process. Global because a failing disk and a refusal have nothing else to reach it by.
static MANAGER: OnceLock<Manager> = OnceLock::new();

/// Moves while the state is opened: rows read, pieces of the log applied.
static ROWS: AtomicU64 = AtomicU64::new(0);

/// Turns of the main loop.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// Begins to talk to the service manager, if there is one.
pub fn begin() {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let now = Instant::now();
    let limit = sd_notify::watchdog_enabled();
    let desk = Desk {
        phase: Phase::Starting,
        line: "starting".to_owned(),
        last_word: None,
        result: None,
        sent: None,
        extended: None,
        progress: Progress::new(now),
        watched: None,
        patience: Patience::new(limit.unwrap_or(EXTEND_BY)),
        fed: None,
        starved: false,
    };
    if MANAGER.set(Manager { desk: Mutex::new(desk), news: Condvar::new(), limit }).is_err() {
        return;
    }
    let Some(manager) = MANAGER.get() else { return };
    if let Err(error) = std::thread::Builder::new().name("systemd".into()).spawn(move || manager.run()) {
        tracing::error!(%error, "no thread to talk to the service manager");
    }
}

/// Local state is recovered and the listeners are up. Quorum is another matter: the status line tells of it. Once is enough.
pub fn ready() {
    at_desk(|desk| {
        if desk.phase == Phase::Starting {
            desk.phase = Phase::Running;
            tell(&[NotifyState::Ready, NotifyState::Status(&desk.shown())]);
            desk.sent = Some((desk.shown(), Instant::now()));
        }
    });
}

/// One line for `systemctl status`, said soon. Whoever says how it is does not hang.
pub fn status(text: &str) {
    turned();
    at_desk(|desk| {
        if desk.line != text {
            text.clone_into(&mut desk.line);
        }
    });
}

/// For the one that reads the state at a start.
pub fn rows_read(rows: u64) {
    ROWS.store(rows, Ordering::Relaxed);
    at_desk(|desk| {
        if desk.watched.is_none() {
            desk.line = line::reading(rows);
        }
    });
}

/// For the one that applies what the log holds at a start.
pub fn entries_replayed(done: u64, of: u64) {
    ROWS.fetch_add(1, Ordering::Relaxed);
    at_desk(|desk| {
        if desk.watched.is_none() {
            desk.line = line::replaying(done, of);
        }
    });
}

/// From here on the watchdog is fed as long as the loops of this member and the main loop turn.
pub fn watch(handle: Handle) {
    at_desk(|desk| desk.watched = Some(handle));
}

/// The member has ended and the process goes on: nothing of it is watched any more.
pub fn unwatched(text: &str) {
    at_desk(|desk| {
        desk.watched = None;
        desk.progress = Progress::new(Instant::now());
        text.clone_into(&mut desk.line);
    });
}

/// A turn of the main loop, or of one that waits for others before there is a member.
pub fn turned() {
    TURNS.fetch_add(1, Ordering::Relaxed);
}

/// The settings are being read again. Ends with [`reloaded`].
pub fn reloading() {
    at_desk(|desk| match NotifyState::monotonic_usec_now() {
        Ok(now) if desk.phase == Phase::Running => {
            tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading the settings")]);
        }
        _ => tell(&[NotifyState::Status("reloading the settings")]),
    });
}

/// What came of it: shown behind the status line for a while.
pub fn reloaded(result: &str) {
    at_desk(|desk| {
        desk.result = Some((result.to_owned(), Instant::now()));
        let shown = desk.shown();
        tell(&after_reload(desk.phase, &shown));
        desk.sent = Some((shown, Instant::now()));
    });
}

/// The word that ends a reload is the one that ends a start too, and a start is ended by nothing but [`ready`].
fn after_reload(phase: Phase, shown: &str) -> Vec<NotifyState<'_>> {
    match phase {
        Phase::Running => vec![NotifyState::Ready, NotifyState::Status(shown)],
        Phase::Starting | Phase::Stopping => vec![NotifyState::Status(shown)],
    }
}

/// The orderly stop begins, which may take this long by itself.
pub fn stopping(text: &str, limit: Duration) {
    at_desk(|desk| {
        desk.phase = Phase::Stopping;
        text.clone_into(&mut desk.line);
        let shown = desk.shown();
        // Once for all of it: the stop has a bound of its own, and is not given up before.
        let extension = NotifyState::ExtendTimeoutUsec(micros(limit + EXTEND_BY));
        tell(&[NotifyState::Stopping, extension, NotifyState::Status(&shown)]);
        desk.sent = Some((shown, Instant::now()));
    });
}

/// Why this process ends, at once and for good.
pub fn last_word(text: &str) {
    let Some(manager) = MANAGER.get() else { return };
    tell(&[NotifyState::Status(&one_line(text))]);
    // Also from a panic hook, in whatever thread: never wait for ever.
    if let Some(mut desk) = manager.desk.try_lock_for(LAST_WORD_WAIT) {
        desk.last_word = Some(text.to_owned());
    }
}

/// A refusal is the last word.
pub fn refused(refusal: &Refusal) {
    last_word(&format!("refused: {}: {}", refusal.id.name(), refusal.cause()));
}

fn at_desk(act: impl FnOnce(&mut Desk)) {
    if let Some(manager) = MANAGER.get() {
        act(&mut manager.desk.lock());
        manager.news.notify_one();
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Says what is said once. A manager whose queue is full is given a moment and not more, since loops of the member wait meanwhile: it may
/// have stopped to read for good.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = post(states, Some(TELL_WAIT)) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Says what is said again and again. False: later.
fn tell_at_once(states: &[NotifyState<'_>]) -> bool {
    match post(states, None) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "the service manager could not be told");
            error.kind() != io::ErrorKind::WouldBlock
        }
    }
}

/// As `sd_notify::notify`, which waits as long as the manager likes.
fn post(states: &[NotifyState<'_>], wait: Option<Duration>) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => post_to(&path, states, wait),
        None => Ok(()),
    }
}

fn post_to(path: &OsStr, states: &[NotifyState<'_>], wait: Option<Duration>) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    match wait {
        Some(wait) => socket.set_write_timeout(Some(wait))?,
        None => socket.set_nonblocking(true)?,
    }
    socket.send_to_addr(text.as_bytes(), &address).map(|_| ())
}

impl Desk {
    /// One line: a manager takes what follows a line end for another message.
    fn shown(&self) -> String {
        let line = self.last_word.as_deref().unwrap_or(&self.line);
        let result = self.result.as_ref().filter(|(_, since)| since.elapsed() < RESULT_SHOWN);
        let text = match result {
            Some((result, _)) => format!("{line}; {result}"),
            None => line.to_owned(),
        };
        one_line(&text)
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Manager {
    fn run(&self) {
        let mut desk = self.desk.lock();
        loop {
            self.look(&mut desk, Instant::now());
            self.news.wait_for(&mut desk, LOOK_INTERVAL);
        }
    }

    fn look(&self, desk: &mut Desk, now: Instant) {
        let shown = desk.shown();
        let due = |at: Option<Instant>, interval: Duration| at.is_none_or(|at| now - at >= interval);
        let is_new = desk.sent.as_ref().is_none_or(|(sent, _)| *sent != shown);
        if is_new && due(desk.sent.as_ref().map(|(_, at)| *at), STATUS_INTERVAL) {
            // What found no room is tried again at the next look.
            if tell_at_once(&[NotifyState::Status(&shown)]) {
                desk.sent = Some((shown, now));
            }
        }
        if desk.phase == Phase::Starting && due(desk.extended, EXTEND_INTERVAL) {
            let goes_on = desk.progress.goes_on(now);
            if !goes_on || tell_at_once(&[NotifyState::ExtendTimeoutUsec(micros(EXTEND_BY))]) {
                desk.extended = Some(now);
            }
        }
        if let Some(limit) = self.limit
            && due(desk.fed, limit / 4)
        {
            desk.feed(now);
        }
    }
}

impl Desk {
    fn feed(&mut self, now: Instant) {
        let verdict = match &self.watched {
            // A stop has a bound of its own.
            _ if self.phase == Phase::Stopping => Verdict::Lives,
            Some(handle) => {
                self.patience.judge(now, &Watched::new(handle.beats(), TURNS.load(Ordering::Relaxed)))
            }
            None if self.progress.goes_on(now) => Verdict::Lives,
            None => Verdict::Silent { who: "the start", for_s: START_PATIENCE.as_secs() },
        };
        match verdict {
            Verdict::Lives => {
                self.starved = false;
                if tell_at_once(&[NotifyState::Watchdog]) {
                    self.fed = Some(now);
                }
            }
            Verdict::Silent { who, for_s } if !self.starved => {
                self.starved = true;
                tracing::error!(who, silent_s = for_s, "{}", crate::announce::NO_PROGRESS);
                self.line = format!("no progress: {who} has been silent for {for_s} s");
            }
            Verdict::Silent { .. } => {}
        }
    }
}

/// Whether a start still does something: it reads rows, asks others, computes, or reads and writes files.
struct Progress {
    seen: (u64, u64, i64, i64),
    since: Instant,
}

/// Less than this in all of a start's patience is what this very thread takes for looking.
const CPU_MS_MIN: i64 = 500;

impl Progress {
    fn new(now: Instant) -> Progress {
        Progress { seen: (0, 0, 0, 0), since: now }
    }

    fn goes_on(&mut self, now: Instant) -> bool {
        use nix::sys::{
            resource::{UsageWho, getrusage},
            time::TimeValLike as _,
        };
        let rows = ROWS.load(Ordering::Relaxed);
        let (cpu, io) = getrusage(UsageWho::RUSAGE_SELF).map_or((0, 0), |usage| {
            let cpu = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
            (cpu, usage.block_reads() + usage.block_writes())
        });
        let turns = TURNS.load(Ordering::Relaxed);
        let (seen_rows, seen_turns, seen_cpu, seen_io) = self.seen;
        if (rows, turns, io) != (seen_rows, seen_turns, seen_io) || cpu - seen_cpu >= CPU_MS_MIN {
            self.seen = (rows, turns, cpu, io);
            self.since = now;
        }
        now - self.since < START_PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_ends_no_start() {
        let texts = |phase| -> Vec<String> {
            after_reload(phase, "how it is").iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(Phase::Running), ["READY=1", "STATUS=how it is"]);
        assert_eq!(texts(Phase::Starting), ["STATUS=how it is"]);
        assert_eq!(texts(Phase::Stopping), ["STATUS=how it is"]);
    }

    /// A manager that has stopped to read holds nobody up for good.
    #[test]
    fn a_full_queue_of_the_manager_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let states = [NotifyState::Ready, NotifyState::Watchdog];
        let mut said = 0;
        let error = loop {
            match post_to(path.as_os_str(), &states, None) {
                Ok(()) => said += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let error = post_to(path.as_os_str(), &states, Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut bytes = [0; 64];
        for _ in 0..said {
            let length = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1\nWATCHDOG=1\n");
        }
        post_to(path.as_os_str(), &states, None).unwrap();

        let name = format!("cairn-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        post_to(OsStr::new(&format!("@{name}")), &states, None).unwrap();
        assert_eq!(manager.recv(&mut bytes).unwrap(), 19);
    }
}
