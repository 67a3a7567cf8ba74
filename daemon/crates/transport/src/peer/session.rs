//! Which start of a peer is heard now. One at a time: who comes second under the same id is a copy, and is refused as long as the first
//! is heard.

use std::sync::Arc;

use identity::{Hello, Session, Unique};
use parking_lot::Mutex;
use tokio::time::{Duration, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Peer;

/// A session that was silent through so many ticks of ours is over. Ticks and not a clock: while this process itself stands still it hears
/// nobody, and must not conclude that somebody fell silent.
const SILENT_TICKS_MAX: u32 = 8;

/// After so many it is quiet: a start that runs shows a sign of life on its streams every 1.7 s.
const QUIET_TICKS: u32 = 4;

/// Eight of them are four seconds; streams show a sign of life every 1.7 s.
const TICK: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Sessions(Mutex<State>);

#[derive(Default)]
struct State {
    /// Counts sessions.
    number: u64,
    held: Option<Held>,
}

struct Held {
    number: u64,
    hello: Hello,
    /// Streams in either direction.
    links: usize,
    /// It was heard on a stream. A peer that we cannot dial reads from us and says nothing there: it lives as long as its streams do.
    heard: bool,
    silent: u32,
    over: CancellationToken,
}

impl Held {
    fn is_alive(&self) -> bool {
        !self.heard || self.silent < SILENT_TICKS_MAX
    }

    fn session(&self) -> Session {
        let Hello { dir, boot, home, .. } = self.hello.clone();
        Session { dir, boot, home, is_quiet: !self.heard || self.silent >= QUIET_TICKS }
    }
}

impl Sessions {
    pub(crate) fn current(&self) -> Option<Session> {
        let state = self.0.lock();
        state.held.as_ref().filter(|held| held.is_alive()).map(Held::session)
    }

    pub(crate) fn hello(&self) -> Option<Hello> {
        let state = self.0.lock();
        state.held.as_ref().filter(|held| held.is_alive()).map(|held| held.hello.clone())
    }

    /// This start of the peer was heard: on a stream, which goes on to show signs of life, or in passing.
    pub(crate) fn heard(&self, nonce: Unique, on_stream: bool) {
        let mut state = self.0.lock();
        if let Some(held) = state.held.as_mut().filter(|held| held.hello.boot.nonce == nonce) {
            held.heard |= on_stream;
            held.silent = 0;
        }
    }

    /// Closes the streams of this start.
    pub(crate) fn end(&self, nonce: Unique) {
        let mut state = self.0.lock();
        if state.held.as_ref().is_some_and(|held| held.hello.boot.nonce == nonce)
            && let Some(held) = state.held.take()
        {
            held.over.cancel();
        }
    }

    fn tick(&self) {
        if let Some(held) = &mut self.0.lock().held {
            held.silent = held.silent.saturating_add(1);
        }
    }

    /// One more stream of this start, or the first; `None` while another start is heard that may live.
    fn begin(&self, hello: &Hello) -> Option<(u64, CancellationToken, bool)> {
        let mut state = self.0.lock();
        if let Some(held) = &mut state.held {
            if held.hello.boot.nonce == hello.boot.nonce {
                held.links += 1;
                held.hello = hello.clone();
                return Some((held.number, held.over.clone(), false));
            }
            if held.is_alive() && !hello.succeeds(&held.session()) {
                return None;
            }
            held.over.cancel();
        }
        state.number += 1;
        let (number, over) = (state.number, CancellationToken::new());
        let hello = hello.clone();
        state.held = Some(Held { number, hello, links: 1, heard: false, silent: 0, over: over.clone() });
        Some((number, over, true))
    }

    fn leave(&self, number: u64) {
        let mut state = self.0.lock();
        if let Some(held) = state.held.as_mut().filter(|held| held.number == number) {
            held.links -= 1;
            if held.links == 0 {
                state.held = None;
            }
        }
    }
}

/// One stream of a session, while it lasts.
pub(crate) struct SessionLink {
    peer: Arc<Peer>,
    number: u64,
    nonce: Unique,
    over: CancellationToken,
}

impl SessionLink {
    /// A stream of this start begins; also whether the session does. `None` while another start is heard.
    pub(crate) fn begin(peer: &Arc<Peer>, hello: &Hello) -> Option<(SessionLink, bool)> {
        let (number, over, is_first) = peer.sessions.begin(hello)?;
        Some((SessionLink { peer: peer.clone(), number, nonce: hello.boot.nonce, over }, is_first))
    }

    pub(crate) fn heard(&self) {
        self.peer.sessions.heard(self.nonce, true);
    }

    /// Cancelled when another start of the peer takes over, or this one is not welcome any more.
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.over
    }
}

impl Drop for SessionLink {
    fn drop(&mut self) {
        self.peer.sessions.leave(self.number);
    }
}

/// Counts the silence of a peer.
pub(super) async fn watch(peer: Arc<Peer>) {
    let mut pace = interval(TICK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        peer.sessions.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::{Boot, Home, Life, LogEnd};
    use types::{ClusterId, MemberId};

    fn hello(nonce: u128) -> Hello {
        Hello {
            cluster_id: ClusterId(1),
            member: MemberId(2),
            name: "n1".into(),
            life: Life::Formed,
            dir: Unique::for_test(4),
            boot: Boot { seq: 5, nonce: Unique::for_test(nonce), previous: None },
            earlier: Vec::new(),
            log: LogEnd::default(),
            home: Home::default(),
            version: "0.1.0".into(),
        }
    }

    fn nonce(sessions: &Sessions) -> Option<Unique> {
        sessions.current().map(|session| session.boot.nonce)
    }

    #[test]
    fn the_first_start_keeps_its_place_until_its_streams_end() {
        let sessions = Sessions::default();
        let (number, over, first) = sessions.begin(&hello(1)).expect("nobody is there");
        assert!(first);
        let (again, _, first) = sessions.begin(&hello(1)).expect("the same start");
        assert!(again == number && !first);
        assert!(sessions.begin(&hello(2)).is_none(), "a twin");
        sessions.leave(number);
        assert!(sessions.begin(&hello(2)).is_none(), "one stream is left");
        sessions.leave(number);
        assert!(!over.is_cancelled(), "it ended by itself");
        assert!(sessions.begin(&hello(2)).is_some_and(|(_, _, first)| first));
        assert_eq!(nonce(&sessions), Some(Unique::for_test(2)));
    }

    #[test]
    fn who_fell_silent_is_replaced_and_its_streams_are_closed() {
        let sessions = Sessions::default();
        let (number, over, _) = sessions.begin(&hello(1)).expect("nobody is there");
        sessions.heard(Unique::for_test(1), true);
        for _ in 1..SILENT_TICKS_MAX {
            sessions.tick();
        }
        assert!(sessions.begin(&hello(2)).is_none(), "not silent for long enough");
        sessions.heard(Unique::for_test(7), true);
        sessions.tick();
        assert_eq!(nonce(&sessions), None, "only its own voice counts");
        sessions.begin(&hello(2)).expect("the first has fallen silent");
        assert!(over.is_cancelled());
        sessions.leave(number);
        assert_eq!(nonce(&sessions), Some(Unique::for_test(2)), "a stream of the old one ends late");
        sessions.end(Unique::for_test(1));
        assert_eq!(nonce(&sessions), Some(Unique::for_test(2)));
        sessions.end(Unique::for_test(2));
        assert_eq!(nonce(&sessions), None);
    }

    /// Behind an address that nobody can call, killed while its link was cut: nothing tells of its end but its successor.
    #[test]
    fn who_holds_the_lock_of_a_quiet_start_takes_its_place() {
        let start = |seq, nonce, seat: &str| {
            let mut hello = hello(nonce);
            hello.boot.seq = seq;
            hello.home.seat = Some(seat.to_owned());
            hello
        };
        let sessions = Sessions::default();
        let (_, over, _) = sessions.begin(&start(5, 1, "a")).expect("nobody is there");
        assert!(sessions.begin(&start(6, 2, "b")).is_none(), "a copy");
        assert!(sessions.begin(&start(6, 3, "a")).is_some_and(|(_, _, first)| first));
        assert!(over.is_cancelled());
        sessions.heard(Unique::for_test(3), true);
        assert!(sessions.begin(&start(7, 4, "a")).is_none(), "it is heard");
        for _ in 0..QUIET_TICKS {
            sessions.tick();
        }
        assert!(sessions.begin(&start(7, 4, "a")).is_some());
        assert_eq!(nonce(&sessions), Some(Unique::for_test(4)));
    }

    #[test]
    fn who_only_reads_lives_as_long_as_its_streams() {
        let sessions = Sessions::default();
        sessions.begin(&hello(1)).expect("nobody is there");
        sessions.heard(Unique::for_test(1), false);
        for _ in 0..100 {
            sessions.tick();
        }
        assert!(sessions.begin(&hello(2)).is_none());
    }
}
